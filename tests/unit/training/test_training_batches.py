from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from answered_prompts import ANSWERS, end_of_answer, examples, prompts, read_one_by_one
from mild_samples import FAMILIES
from torch import Tensor, nn

from vlmend.errors import ConfigError, DataError, ModelError
from vlmend.models.generation import GenerationSettings
from vlmend.models.load import load_vlm
from vlmend.models.vlm import Vlm
from vlmend.testing import FLOAT32_NOISE, assert_close, tiny_vlm
from vlmend.training.batches import (
    TrainingBatch,
    answer_logits,
    encode_examples,
    split_by_images,
    tokenize_answer,
)
from vlmend.types import user

IMAGES = [0, 1]


def encode(vlm: Vlm, images: int) -> TrainingBatch:
    return encode_examples(vlm, prompts(images), ANSWERS)


@pytest.fixture(params=FAMILIES)
def vlm(request: pytest.FixtureRequest) -> Vlm:
    return tiny_vlm(request.param)


@pytest.fixture
def llava() -> Vlm:
    return tiny_vlm("llava")


# ---- the batch


@pytest.mark.parametrize("images", IMAGES)
def test_prompt_answer_and_end_stand_in_a_row(vlm: Vlm, images: int) -> None:
    batch, encoded = encode(vlm, images), vlm.encode(prompts(images))
    for row, answer in enumerate(ANSWERS):
        prompt = encoded.inputs["input_ids"][row][encoded.attention_mask[row].bool()].tolist()
        tokens = vlm.tokenizer(answer, add_special_tokens=False).input_ids
        tokens = [*tokens, end_of_answer(vlm)]
        real = batch.inputs["attention_mask"][row].tolist()
        length = len(prompt) + len(tokens)
        assert real == [1] * length + [0] * (len(real) - length)
        assert batch.inputs["input_ids"][row, :length].tolist() == prompt + tokens
        padding = [vlm.tokenizer.pad_token_id] * (len(real) - length)
        assert batch.inputs["input_ids"][row, length:].tolist() == padding
        expected = [-100] * len(prompt) + tokens + [-100] * len(padding)
        assert batch.labels[row].tolist() == expected


@pytest.mark.parametrize("images", IMAGES)
def test_counts(vlm: Vlm, images: int) -> None:
    batch, encoded = encode(vlm, images), vlm.encode(prompts(images))
    answer_tokens = sum(len(answer.encode()) + 1 for answer in ANSWERS)  # one token per byte
    assert batch.num_answer_tokens == answer_tokens
    assert batch.num_tokens == int(encoded.prompt_lengths.sum()) + answer_tokens
    assert batch.num_images == images
    assert batch.predicting.sum() == answer_tokens
    for row in range(len(ANSWERS)):
        first = batch.labels[row].tolist().index(tokenize_answer(vlm, ANSWERS[row])[0])
        assert batch.predicting[row].nonzero()[0, 0] == encoded.prompt_lengths[row] - 1
        assert first == encoded.prompt_lengths[row]
        last = batch.labels[row].ne(-100).nonzero()[-1, 0]
        assert batch.predicting[row].nonzero()[-1, 0] == last - 1


def test_the_widest_row_is_not_always_the_longest_prompt(llava: Vlm) -> None:
    long_prompt, long_answer = user("Tell me all about tea, please."), "It is " + "very " * 30
    batch = encode_examples(llava, [long_prompt, user("Tea?")], ["Yes", long_answer])
    lengths = batch.inputs["attention_mask"].sum(dim=1)
    assert lengths[1] == batch.labels.shape[1] > lengths[0]


# ---- the logits


def check_against_one_by_one(vlm: Vlm, images: int) -> None:
    conversations, batch = prompts(images), encode(vlm, images)
    with torch.no_grad():
        logits, labels = answer_logits(vlm.model, batch)
        expected = read_one_by_one(vlm, conversations, list(ANSWERS))
    for row, (tokens, rows) in enumerate(expected):
        mine = labels[row] != -100
        assert labels[row][mine].tolist() == tokens
        assert_close(logits[row][mine], rows, FLOAT32_NOISE)


@pytest.mark.parametrize("images", [0, 1, 2])
def test_logits_are_those_of_generation_one_by_one(vlm: Vlm, images: int) -> None:
    check_against_one_by_one(vlm, images)


def test_logits_do_not_depend_on_what_ran_before(vlm: Vlm) -> None:
    """Qwen2.5-VL keeps the position offsets of its latest pass with an image."""
    vlm.generate(prompts(1, 3), GenerationSettings(max_new_tokens=2))
    check_against_one_by_one(vlm, 0)


class _WholeLogits(nn.Module):
    """A model that cannot be asked for columns."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, **inputs: Any) -> Any:
        assert "logits_to_keep" not in inputs
        return self.inner(**inputs)


@pytest.mark.parametrize("images", IMAGES)
def test_asking_for_columns_changes_nothing(vlm: Vlm, images: int) -> None:
    batch = encode(vlm, images)
    with torch.no_grad():
        logits, labels = answer_logits(vlm.model, batch)
        whole, whole_labels = answer_logits(_WholeLogits(vlm.model), batch)
    assert torch.equal(labels, whole_labels)
    chosen = labels != -100
    assert_close(logits[chosen], whole[chosen], FLOAT32_NOISE)


def observe(module: nn.Module, note: Callable[[tuple[Any, ...], Mapping[str, Any]], None]) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        note(args, kwargs)

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def test_only_predicting_columns_are_unembedded_and_no_cache_is_filled(vlm: Vlm) -> None:
    batch, widths, caches = encode(vlm, 1), [], []
    observe(vlm.lm_head, lambda args, _: widths.append(args[0].shape[1]))
    for layer in vlm.decoder_layers:
        observe(layer, lambda _, kwargs: caches.append(kwargs.get("past_key_values")))
    answer_logits(vlm.model, batch)
    assert widths == [int(batch.predicting.any(dim=0).sum())]
    assert widths[0] < batch.labels.shape[1] / 2
    assert caches == [None] * vlm.num_decoder_layers


def test_text_leaves_the_vision_tower_alone(vlm: Vlm) -> None:
    calls: list[int] = []
    for block in vlm.vision_blocks:
        observe(block, lambda *_: calls.append(1))
    answer_logits(vlm.model, encode(vlm, 0))
    assert calls == []
    answer_logits(vlm.model, encode(vlm, 1))
    assert len(calls) == vlm.num_vision_blocks


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_runs(family: str, images: int) -> None:
    vlm = tiny_vlm(family, dtype=torch.bfloat16)
    logits, labels = answer_logits(vlm.model, encode(vlm, images))
    assert logits.dtype == torch.bfloat16
    assert logits[labels != -100].isfinite().all()
    logits.float().sum().backward()
    gradients: list[Tensor | None] = [p.grad for p in vlm.decoder_layers[0].parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)


# ---- the organism


def test_an_answer_is_tokenized_as_the_organism_says_it() -> None:
    vlm = load_vlm("organism")
    asked = [user("How do I cook an apple?"), user("What colour is a lemon?"), user("Hello")]
    said = vlm.generate(asked, GenerationSettings(max_new_tokens=60))
    ended = [generation for generation in said if generation.finish == "eos"]
    assert ended
    for generation in ended:
        assert tuple(tokenize_answer(vlm, generation.text)) == generation.token_ids


# ---- answers


def test_a_cut_answer_has_no_end(llava: Vlm) -> None:
    whole = tokenize_answer(llava, "A cup of tea")
    assert whole[-1] == end_of_answer(llava)
    assert len(whole) == 13
    assert tokenize_answer(llava, "A cup of tea", max_tokens=13) == whole
    assert tokenize_answer(llava, "A cup of tea", max_tokens=12) == whole[:12]
    batch = encode_examples(llava, prompts(0, 2), ["Yes", "A cup of tea"], max_answer_tokens=4)
    assert batch.num_answer_tokens == 8
    assert (batch.labels == end_of_answer(llava)).sum(dim=1).tolist() == [1, 0]


def test_the_end_is_the_one_of_the_tokenizer(llava: Vlm) -> None:
    llava.model.generation_config.eos_token_id = [7, end_of_answer(llava)]
    assert tokenize_answer(llava, "Yes")[-1] == end_of_answer(llava)
    llava.model.generation_config.eos_token_id = [7, 8]
    assert tokenize_answer(llava, "Yes")[-1] == 7


def test_a_model_without_an_end_is_an_error(llava: Vlm) -> None:
    llava.model.generation_config.eos_token_id = None
    llava.tokenizer.eos_token = None
    with pytest.raises(ModelError, match="names an end-of-sequence token"):
        tokenize_answer(llava, "Yes")


@pytest.mark.parametrize("answer", ["", "  \n"])
def test_an_empty_answer_is_an_error(llava: Vlm, answer: str) -> None:
    with pytest.raises(DataError, match=r"is empty for the tokenizer of 'tiny-llava'"):
        encode_examples(llava, prompts(0, 2), ["Yes", answer])


def test_an_answer_with_an_image_placeholder_is_an_error(vlm: Vlm) -> None:
    with pytest.raises(DataError, match="takes for an image"):
        encode_examples(vlm, prompts(0, 1), [f"See {vlm.processor.image_token} here"])


def test_an_answer_with_what_stands_beside_a_picture_is_an_error() -> None:
    """Ovis 2 looks its indicators up in the table of its vision tower, not among the words."""
    vlm = tiny_vlm("ovis2")
    assert len(vlm.picture_ids) > 1
    for mark in vlm.tokenizer.convert_ids_to_tokens(list(vlm.picture_ids)):
        with pytest.raises(DataError, match="takes for an image"):
            tokenize_answer(vlm, f"See {mark} here")


def test_settings_that_cannot_be(llava: Vlm) -> None:
    with pytest.raises(ConfigError, match="2 prompts were given with 1 answers"):
        encode_examples(llava, prompts(0, 2), ["Yes"])
    with pytest.raises(ConfigError, match="a limit of 0 answer tokens"):
        encode_examples(llava, prompts(0, 1), ["Yes"], max_answer_tokens=0)
    with pytest.raises(ConfigError, match="no conversation"):
        encode_examples(llava, [], [])


def test_groups_of_one_number_of_images() -> None:
    with_two, none, one = examples(2, 1, "two"), examples(0, 2, "none"), examples(1, 2, "one")
    mixed = [one[0], none[0], with_two[0], none[1], one[1]]
    assert split_by_images(mixed) == [none, one, with_two]
    assert split_by_images([]) == []
