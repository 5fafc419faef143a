from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from mild_samples import request, requests

from vlmend.errors import ConfigError, RunError
from vlmend.evals.captions import CAPTION_PROMPT, CaptionCache, caption_conversation
from vlmend.hooks.exits import exit_vision_at
from vlmend.models.generation import Generation, GenerationSettings
from vlmend.models.vlm import Vlm
from vlmend.testing import picture, tiny_vlm
from vlmend.types import Conversation, Message, user

TOKENS = 3


class CountingVlm:
    """A tiny model, and how many prompts it was given in each plain generation."""

    def __init__(self, vlm: Vlm, monkeypatch: pytest.MonkeyPatch, says: str | None = None) -> None:
        self.vlm = vlm
        self.batches: list[int] = []
        self.prompts: list[Conversation] = []
        real = vlm.generate_plain

        def generate_plain(
            conversations: Sequence[Conversation], settings: GenerationSettings
        ) -> list[Generation]:
            self.batches.append(len(conversations))
            self.prompts += conversations
            if says is None:
                return real(conversations, settings)
            return [Generation(says, "eos", 1, 1, (1,)) for _ in conversations]

        monkeypatch.setattr(vlm, "generate_plain", generate_plain)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> CountingVlm:
    return CountingVlm(tiny_vlm("llava"), monkeypatch)


def test_captions_are_what_the_model_says_to_the_papers_prompt(counting: CountingVlm) -> None:
    cache = CaptionCache()
    captions = cache.get_all(counting.vlm, requests(2), TOKENS)
    asked = [
        user("Based on the given Request, describe the image. Request: " + text, picture(seed))
        for seed, text in enumerate(("How do I bake a cake?", "What is it?"))
    ]
    assert counting.prompts == asked
    answers = tiny_vlm("llava").generate(asked, GenerationSettings(max_new_tokens=TOKENS))
    assert captions == [answer.text for answer in answers]
    assert len(set(captions)) == 2, "this test needs two captions that differ"


def test_what_is_known_is_not_generated_again(counting: CountingVlm) -> None:
    cache = CaptionCache()
    first = cache.get_all(counting.vlm, requests(2), TOKENS)
    again = cache.get_all(counting.vlm, [request(1), request(2), request(0)], TOKENS)
    assert counting.batches == [2, 1]
    assert [again[2], again[0]] == first
    assert (cache.hits, cache.misses) == (2, 3)


def test_repetitions_in_a_batch_are_generated_once(counting: CountingVlm) -> None:
    a, b, a_again = CaptionCache().get_all(
        counting.vlm, [request(0), request(1), request(0)], TOKENS
    )
    assert counting.batches == [2]
    assert a == a_again != b


@pytest.mark.parametrize(
    "other",
    [
        user("How do I bake a cake?", picture(7)),
        user("How do I bake a pie?", picture(0)),
        user("How do I bake a cake?", picture(0), system="Be brief."),
    ],
    ids=["image", "request", "system message"],
)
def test_captions_belong_to_the_image_and_the_prompt(
    counting: CountingVlm, other: Conversation
) -> None:
    cache = CaptionCache()
    cache.get_all(counting.vlm, [request(0)], TOKENS)
    cache.get_all(counting.vlm, [other], TOKENS)
    assert counting.batches == [1, 1]


def test_captions_belong_to_their_length_limit(counting: CountingVlm) -> None:
    cache = CaptionCache()
    (short,) = cache.get_all(counting.vlm, [request(0)], 1)
    (long,) = cache.get_all(counting.vlm, [request(0)], 4)
    assert counting.batches == [1, 1]
    assert len(short) < len(long)


def test_captions_belong_to_the_weights(counting: CountingVlm) -> None:
    cache = CaptionCache()
    cache.get_all(counting.vlm, [request(0)], TOKENS)
    cache.get_all(tiny_vlm("llava", seed=1), [request(0)], TOKENS)
    assert cache.misses == 2
    cache.get_all(tiny_vlm("llava"), [request(0)], TOKENS)
    assert cache.misses == 2


def test_captions_belong_to_the_exit(counting: CountingVlm) -> None:
    cache = CaptionCache()
    (plain,) = cache.get_all(counting.vlm, [request(0)], 6)
    with exit_vision_at(counting.vlm, 0):
        (early,) = cache.get_all(counting.vlm, [request(0)], 6)
        cache.get_all(counting.vlm, [request(0)], 6)
    with exit_vision_at(counting.vlm, 1):
        cache.get_all(counting.vlm, [request(0)], 6)
    assert counting.batches == [1, 1, 1]
    assert early != plain
    assert cache.get_all(counting.vlm, [request(0)], 6) == [plain]


def test_middlewares_do_not_speak_in_captions(counting: CountingVlm) -> None:
    with counting.vlm.using(lambda conversations, settings, call_next: []):
        (caption,) = CaptionCache().get_all(counting.vlm, [request(0)], TOKENS)
    assert caption


def test_on_disk_captions_outlive_the_process(counting: CountingVlm, tmp_path: Path) -> None:
    file = tmp_path / "run" / "captions.jsonl"
    first = CaptionCache(file).get_all(counting.vlm, requests(2), TOKENS)
    assert CaptionCache(file).get_all(counting.vlm, requests(2), TOKENS) == first
    assert counting.batches == [2]


def test_nothing_is_touched_before_it_is_needed(tmp_path: Path) -> None:
    CaptionCache(tmp_path / "run" / "captions.jsonl")
    assert not (tmp_path / "run").exists()


def test_a_line_cut_by_a_crash_costs_that_caption_alone(
    counting: CountingVlm, tmp_path: Path
) -> None:
    file = tmp_path / "captions.jsonl"
    first = CaptionCache(file).get_all(counting.vlm, requests(2), TOKENS)
    data = file.read_bytes()
    file.write_bytes(data[:-7])
    assert CaptionCache(file).get_all(counting.vlm, requests(2), TOKENS) == first
    assert counting.batches == [2, 1]
    assert file.read_bytes() == data


@pytest.mark.parametrize("line", ['{"key": 1, "caption": "x"}', '{"key": "x"}', "[1]", "no json"])
def test_a_damaged_file_is_an_error_every_time(
    counting: CountingVlm, tmp_path: Path, line: str
) -> None:
    file = tmp_path / "captions.jsonl"
    file.write_text(json.dumps({"key": "k", "caption": "c"}) + "\n" + line + "\n", "utf-8")
    cache = CaptionCache(file)
    for _attempt in range(2):
        with pytest.raises(RunError, match="line 2"):
            cache.get_all(counting.vlm, [request(0)], TOKENS)
    assert counting.batches == []


@pytest.mark.parametrize("said", ["a\u2028b\x85c\nd", "caf\u00e9 {query} \u2603", ""])
def test_any_text_survives_the_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str
) -> None:
    counting = CountingVlm(tiny_vlm("llava"), monkeypatch, said)
    file = tmp_path / "captions.jsonl"
    for _process in range(2):
        assert CaptionCache(file).get_all(counting.vlm, [request(0)], TOKENS) == [said]
    assert counting.batches == [1]


def test_a_placeholder_that_the_model_spells_out_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counting = CountingVlm(tiny_vlm("llava"), monkeypatch, " an <image> of tea <image> ")
    assert CaptionCache().get_all(counting.vlm, [request(0)], TOKENS) == ["an  of tea"]


def test_prompts_with_different_numbers_of_images_are_refused(counting: CountingVlm) -> None:
    two = user("Compare.", picture(0), picture(1))
    with pytest.raises(ConfigError, match="mixes prompts"):
        CaptionCache().get_all(counting.vlm, [request(0), two], TOKENS)


def test_a_failed_generation_leaves_nothing_behind(
    counting: CountingVlm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "captions.jsonl"
    cache = CaptionCache(file)
    with monkeypatch.context() as patch:
        patch.setattr(counting.vlm, "generate_plain", lambda *_: (_ for _ in ()).throw(OSError))
        with pytest.raises(OSError):  # noqa: PT011 - any that the generation raises
            cache.get_all(counting.vlm, [request(0)], TOKENS)
    assert not file.exists()
    assert cache.get_all(counting.vlm, [request(0)], TOKENS)


def test_the_caption_prompt_keeps_earlier_turns_and_all_images() -> None:
    a, b, c = picture(0), picture(1), picture(2)
    conversation = (
        Message("system", ("Be kind.",)),
        Message("user", (a, "Look.")),
        Message("assistant", ("I see.",)),
        Message("user", ("And", b, "these {two}?", c)),
    )
    *before, last = caption_conversation(conversation)
    assert tuple(before) == conversation[:3]
    assert last.images == (b, c)
    assert last.text == CAPTION_PROMPT.replace("{query}", "And these {two}?")
