from __future__ import annotations

import pytest
import torch

from vlmend.errors import ConfigError
from vlmend.evals.batches import run_in_batches
from vlmend.testing import picture
from vlmend.types import Conversation, user

NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory")


def prompts() -> list[Conversation]:
    """Images 0, 1, 0, 2, 1, 0; of different length."""
    return [
        user("Hi"),
        user("Look at this", picture(0)),
        user("Sing a song of tea"),
        user("Compare", picture(1), picture(2)),
        user("What?", picture(3)),
        user("Tell me more"),
    ]


def test_one_number_of_images_and_the_longest_first() -> None:
    found = list(run_in_batches(prompts(), lambda places: len(places), batch_size=2))
    assert found == [([3], 1), ([1, 4], 2), ([2, 5], 2), ([0], 1)]


def test_halved_when_memory_runs_out_and_nothing_twice() -> None:
    tried: list[int] = []

    def run(places: list[int]) -> list[int]:
        tried.append(len(places))
        if len(places) > 1:
            raise NO_MEMORY
        return places

    conversations = [user(f"Say {n}.") for n in range(4)]
    found = list(run_in_batches(conversations, run, batch_size=4))
    assert tried == [4, 2, 1, 1, 1, 1]
    assert [places for places, _ in found] == [[0], [1], [2], [3]]
    assert all(places == result for places, result in found)


@pytest.mark.parametrize("error", [NO_MEMORY, MemoryError(), RuntimeError("shapes differ")])
def test_what_halving_cannot_mend_is_raised(error: Exception) -> None:
    def run(_places: list[int]) -> None:
        raise error

    count = 1 if error is NO_MEMORY or isinstance(error, MemoryError) else 3
    with pytest.raises(type(error)):
        list(run_in_batches([user("Hi")] * count, run, batch_size=4))


def test_nothing_gives_nothing() -> None:
    assert list(run_in_batches([], lambda places: places, batch_size=4)) == []


def test_a_batch_holds_at_least_one() -> None:
    with pytest.raises(ConfigError, match="batch size 0"):
        list(run_in_batches(prompts(), lambda places: places, batch_size=0))
