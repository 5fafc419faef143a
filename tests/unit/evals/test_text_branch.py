from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from mild_samples import ASKED, FAMILIES, request, requests, stream_of

from vlmend.errors import ConfigError
from vlmend.evals import text_branch
from vlmend.evals.captions import CaptionCache
from vlmend.evals.text_branch import (
    caption_all,
    put_all_in_words,
    put_in_words,
    record_text_branch,
    text_conversation,
)
from vlmend.models.vlm import Vlm
from vlmend.testing import FLOAT32_NOISE, assert_close, picture, tiny_vlm
from vlmend.types import Conversation, Message, conversation_images, user

TOKENS = 3


def test_the_papers_words() -> None:
    (turn,) = text_conversation(user("What is {it}?", picture()), "a cup {of} tea")
    assert turn == Message("user", ("What is {it}? Image Caption: a cup {of} tea",))


def test_an_empty_caption_leaves_the_request() -> None:
    (turn,) = text_conversation(user("What is it?", picture()), "")
    assert turn.text == "What is it? Image Caption: "


def test_the_system_message_stays() -> None:
    conversation = user("What is it?", picture(), system="Be kind.")
    system, last = text_conversation(conversation, "tea")
    assert system == Message("system", ("Be kind.",))
    assert last.text == "What is it? Image Caption: tea"


def test_earlier_images_go_and_turns_keep_their_order() -> None:
    conversation = (
        Message("system", ("Be kind.",)),
        Message("user", (picture(0), "Look", picture(1), "here.")),
        Message("assistant", ("I see.",)),
        Message("user", ("What is it?",)),
    )
    assert text_conversation(conversation, "tea") == (
        Message("system", ("Be kind.",)),
        Message("user", ("Look here.",)),
        Message("assistant", ("I see.",)),
        Message("user", ("What is it? Image Caption: tea",)),
    )


def test_several_images_are_one_caption() -> None:
    (turn,) = text_conversation(user("Compare.", picture(0), picture(1)), "two cups")
    assert turn == Message("user", ("Compare. Image Caption: two cups",))


def test_put_in_words_is_caption_by_caption() -> None:
    vlm, cache = tiny_vlm("llava"), CaptionCache()
    conversations = requests(3)
    captions = cache.get_all(vlm, conversations, TOKENS)
    assert put_in_words(vlm, conversations, cache, TOKENS) == [
        user(f"{text} Image Caption: {caption}")
        for text, caption in zip(ASKED, captions, strict=False)
    ]


def mixed() -> list[Conversation]:
    return [
        request(0),
        user("Say something."),
        user("Compare these two.", picture(5), picture(6)),
        request(1),
        user("Hi"),
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_all_in_words_is_each_alone_in_order(family: str) -> None:
    vlm, cache = tiny_vlm(family), CaptionCache()
    conversations = mixed()
    words = put_all_in_words(vlm, conversations, cache, TOKENS, batch_size=2)
    assert cache.misses == 3
    pictured = [c for c in conversations if conversation_images(c)]
    captions = caption_all(vlm, pictured, cache, TOKENS, batch_size=2)
    alone = CaptionCache()
    assert captions == [alone.get_all(vlm, [c], TOKENS)[0] for c in pictured]
    # What has no image stays as it is.
    assert (words[1], words[4]) == (conversations[1], conversations[4])
    assert [words[0], words[2], words[3]] == [
        text_conversation(c, caption) for c, caption in zip(pictured, captions, strict=True)
    ]


def test_captions_are_halved_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny_vlm("llava")
    expected = caption_all(vlm, requests(5), CaptionCache(), TOKENS, batch_size=5)
    sizes: list[int] = []
    real = Vlm.generate_plain

    def generate(self: Vlm, prompts: Sequence[Conversation], settings: Any) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, prompts, settings)

    monkeypatch.setattr(Vlm, "generate_plain", generate)
    cache = CaptionCache()
    assert caption_all(vlm, requests(5), cache, TOKENS, batch_size=5) == expected
    assert sizes == [5, 2, 2, 1]


def test_nothing_to_caption() -> None:
    vlm, cache = tiny_vlm("llava"), CaptionCache()
    assert put_all_in_words(vlm, [user("Hi")], cache, TOKENS, batch_size=1) == [user("Hi")]
    assert caption_all(vlm, [], cache, TOKENS, batch_size=1) == []
    with pytest.raises(ConfigError, match="batch size 0"):
        caption_all(vlm, requests(1), cache, TOKENS, batch_size=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_rows_are_in_order_whatever_the_images(family: str) -> None:
    vlm, cache = tiny_vlm(family), CaptionCache()
    conversations = mixed()
    rows = record_text_branch(vlm, conversations, cache, TOKENS)
    text_layers = set(range(vlm.num_decoder_layers)) - vlm.image_only_layers
    assert set(rows) == text_layers
    for index, conversation in enumerate(conversations):
        images = conversation_images(conversation)
        words = put_in_words(vlm, [conversation], cache, TOKENS) if images else [conversation]
        stream = stream_of(vlm, words)
        for layer in text_layers:
            assert rows[layer].dtype == torch.float32
            assert_close(rows[layer][index], stream[layer][0, -1], FLOAT32_NOISE)


def test_batches_are_halved_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny_vlm("llava")
    expected = record_text_branch(vlm, requests(7), CaptionCache(), TOKENS)
    sizes: list[int] = []
    real = text_branch.record_layers

    def record_layers(vlm: Vlm, prompts: Sequence[Conversation]) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(vlm, prompts)

    monkeypatch.setattr(text_branch, "record_layers", record_layers)
    rows = record_text_branch(vlm, requests(7), CaptionCache(), TOKENS)
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    for layer, row in rows.items():
        assert_close(row, expected[layer], FLOAT32_NOISE)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("x")])
def test_what_halving_cannot_mend_is_raised(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def record_layers(*_: object) -> Any:
        raise error

    monkeypatch.setattr(text_branch, "record_layers", record_layers)
    with pytest.raises(type(error)):
        record_text_branch(tiny_vlm("llava"), [user("Hi"), user("Hello")], CaptionCache(), TOKENS)
