"""What answers cost."""

from __future__ import annotations

import pytest
import torch

from vlmend.evals.ledger import peak_memory_bytes, reset_peak_memory, sum_costs
from vlmend.types import Response


def response(seconds: float, prompt: int, new: int) -> Response:
    return Response(
        "id", "s/1", "s", "text", "eos", prompt_tokens=prompt, new_tokens=new, seconds=seconds
    )


def test_costs_add_up() -> None:
    cost = sum_costs([response(0.5, 10, 3), response(1.5, 20, 4)])
    assert (cost.items, cost.seconds, cost.prompt_tokens, cost.new_tokens) == (2, 2.0, 30, 7)
    assert cost.seconds_per_item == 1.0


def test_no_answers_cost_nothing_and_have_no_mean() -> None:
    cost = sum_costs([])
    assert (cost.items, cost.seconds, cost.seconds_per_item) == (0, 0, None)


def test_peak_memory_of_the_process_never_falls() -> None:
    device = torch.device("cpu")
    reset_peak_memory(device)
    before = peak_memory_bytes(device)
    block = torch.ones(8_000_000)
    after = peak_memory_bytes(device)
    assert after >= before
    assert after > block.nbytes


def test_a_gpu_is_asked_for_its_own_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, torch.device]] = []
    device = torch.device("cuda:1")
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda where: asked.append(("reset", where))
    )
    monkeypatch.setattr(
        torch.cuda, "max_memory_allocated", lambda where: 17 if where == device else 0
    )
    reset_peak_memory(device)
    assert peak_memory_bytes(device) == 17
    assert asked == [("reset", device)]
