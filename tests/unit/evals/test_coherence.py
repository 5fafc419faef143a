from __future__ import annotations

import math

import pytest
import torch
from mild_samples import FAMILIES, count_hooks
from torch.nn import functional

from vlmend.errors import ConfigError
from vlmend.evals.coherence import measure_coherence
from vlmend.models.vlm import EncodedBatch, Vlm
from vlmend.testing import picture, tiny_vlm
from vlmend.types import Conversation, user

REQUESTS = [
    user("How do I bake a cake?", picture(0)),
    user("Sing."),
    user("What is it?", picture(1), picture(2)),
]
ANSWERS = ["Whisk two eggs.", "la la la la", "x"]


@pytest.fixture(params=[*FAMILIES, "kosmos-2", "instructblip"])
def vlm(request: pytest.FixtureRequest) -> Vlm:
    return tiny_vlm(request.param)


def perplexity_by_hand(vlm: Vlm, conversation: Conversation, answer: str) -> float:
    """One by one, by a plain forward pass of transformers and its cross-entropy."""
    encoded = vlm.encode([user(conversation[-1].text)])
    inputs = dict(encoded.inputs)
    ids = torch.tensor([vlm.tokenizer(answer, add_special_tokens=False).input_ids])
    start = inputs["input_ids"].shape[1]
    for key, value in encoded.inputs.items():
        if key in encoded.always_asked:
            continue
        more = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}.get(key, 0 * ids)
        inputs[key] = torch.cat((value, more), dim=1)
    with torch.no_grad():
        logits = vlm.model(**inputs).logits[0].double()
    return math.exp(float(functional.cross_entropy(logits[start - 1 : -1], ids[0])))


def test_perplexity_is_that_of_a_plain_pass_without_the_picture(vlm: Vlm) -> None:
    hooks = count_hooks(vlm)
    found = measure_coherence(vlm, REQUESTS, ANSWERS)
    for entry, request, answer in zip(found, REQUESTS, ANSWERS, strict=True):
        assert entry.perplexity == pytest.approx(perplexity_by_hand(vlm, request, answer), rel=1e-4)
    assert [entry.tokens for entry in found] == [15, 11, 1]
    assert count_hooks(vlm) == hooks


def test_the_batch_does_not_matter(vlm: Vlm) -> None:
    together = measure_coherence(vlm, REQUESTS, ANSWERS)
    for one, expected in zip(
        measure_coherence(vlm, REQUESTS, ANSWERS, batch_size=1), together, strict=True
    ):
        assert one.perplexity == pytest.approx(expected.perplexity, rel=1e-4)


def test_the_request_counts_and_the_picture_does_not() -> None:
    vlm = tiny_vlm("llava")
    asked = [user("Bake!", picture(0)), user("Bake!", picture(1)), user("Sing!", picture(0))]
    one, other, third = (e.perplexity for e in measure_coherence(vlm, asked, ["A cake."] * 3))
    assert one == pytest.approx(other, rel=1e-5)
    assert one != pytest.approx(third, rel=1e-2)


def test_an_empty_answer_has_no_perplexity() -> None:
    vlm = tiny_vlm("llava")
    found = measure_coherence(vlm, REQUESTS, ["", " \n", "<image>"])
    assert [(e.perplexity, e.repetition, e.tokens) for e in found] == [(None, 0.0, 0)] * 3
    assert measure_coherence(vlm, [], []) == []


def test_a_model_that_knows_its_answer_is_not_perplexed() -> None:
    """The model's own greedy answer, forced, beats the same letters in another order."""
    vlm = tiny_vlm("llava")
    own = vlm.generate([user("Sing.")])[0].text
    forced, shuffled = measure_coherence(vlm, [user("Sing.")] * 2, [own, own[::-1]])
    assert forced.perplexity is not None
    assert shuffled.perplexity is not None
    assert 1 < forced.perplexity < shuffled.perplexity


def test_a_batch_that_is_too_large_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny_vlm("llava")
    expected = measure_coherence(vlm, REQUESTS, ANSWERS)
    real, sizes = vlm.forward_prompt, []

    def small_memory(encoded: EncodedBatch) -> torch.Tensor:
        sizes.append(encoded.batch_size)
        if encoded.batch_size > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(encoded)

    monkeypatch.setattr(vlm, "forward_prompt", small_memory)
    found = measure_coherence(vlm, REQUESTS, ANSWERS)
    assert sizes == [3, 1, 1, 1]
    for entry, other in zip(found, expected, strict=True):
        assert entry.perplexity == pytest.approx(other.perplexity, rel=1e-4)


def test_the_same_answer_to_the_same_words_is_scored_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vlm = tiny_vlm("llava")
    real, sizes = vlm.forward_prompt, []

    def count(encoded: EncodedBatch) -> torch.Tensor:
        sizes.append(encoded.batch_size)
        return real(encoded)

    monkeypatch.setattr(vlm, "forward_prompt", count)
    asked = [user("Bake!", picture(0)), user("Bake!", picture(1)), user("Sing!"), user("Bake!")]
    found = measure_coherence(vlm, asked, ["A cake.", "A cake.", "A cake.", "No."])
    assert sizes == [3]
    assert found[0] == found[1]
    assert len({entry.perplexity for entry in found}) == 3


def test_other_errors_come_through(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny_vlm("llava")

    def fail(_encoded: EncodedBatch) -> torch.Tensor:
        raise RuntimeError("a shape is wrong")

    monkeypatch.setattr(vlm, "forward_prompt", fail)
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        measure_coherence(vlm, REQUESTS, ANSWERS)


def test_pairs_are_needed() -> None:
    with pytest.raises(ConfigError, match="1 answers to 3 requests"):
        measure_coherence(tiny_vlm("llava"), REQUESTS, ["x"])
    with pytest.raises(ConfigError, match="batches of 0"):
        measure_coherence(tiny_vlm("llava"), REQUESTS, ANSWERS, batch_size=0)


# ---- repetition


def test_repetition_counts_tokens_of_the_answer() -> None:
    entry, _, _ = measure_coherence(tiny_vlm("llava"), REQUESTS, ["aaaaa", "b", "c"])
    assert entry.repetition == pytest.approx(2 / 3)
