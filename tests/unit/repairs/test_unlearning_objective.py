from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from unlearning_data import SETTINGS, Kind, forget_examples, retain_examples, shake

from vlmend.errors import ConfigError, DataError
from vlmend.models.vlm import Vlm
from vlmend.repairs.unlearning.objective import UnlearningObjective
from vlmend.repairs.unlearning.settings import OBJECTIVES, UnlearningSettings
from vlmend.testing import FLOAT64_NOISE, assert_close, picture, tiny_vlm
from vlmend.training.adapters import Adapter, LoraSettings, add_full, add_lora, without_adapter
from vlmend.training.examples import Example
from vlmend.training.gradient_checkpointing import recomputing_layers
from vlmend.training.losses.rmu import control_vector
from vlmend.training.objective import StepLoss
from vlmend.types import user

CLOSE = 1e-6
"""Relative. A batch against examples one by one in float64; transformers' norms are in float32
whatever the model is in: worst seen 5e-8."""


def batch(kind: Kind = "text", count: int = 4) -> dict[str, list[Example]]:
    return {"forget": forget_examples(kind, count), "retain": retain_examples(kind, count)}


@contextmanager
def objective_of(
    vlm: Vlm, settings: UnlearningSettings = SETTINGS, *, moved: bool = True
) -> Generator[UnlearningObjective]:
    layers = settings.trained_layers(vlm.num_decoder_layers, vlm.image_only_layers)
    with add_lora(vlm, LoraSettings(rank=2, layers=layers)) as adapter:
        if moved:
            shake(adapter)
        yield UnlearningObjective(vlm, settings, adapter)


# ---- an independent reader: one example at a time, no padding, no labels, sums in Python


def log_probs(vlm: Vlm, example: Example, text: str) -> tuple[np.ndarray, list[int]]:
    """(T, V) log-probabilities in float64 where each token of an answer is predicted."""
    inputs: dict[str, Any] = dict(vlm.encode([example.messages]).inputs)
    ids: list[int] = vlm.tokenizer(text, add_special_tokens=False).input_ids
    ids = [*ids, vlm.tokenizer.eos_token_id]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        logits = vlm.model(**inputs).logits[0].double().numpy()[-len(ids) - 1 : -1]
    top = logits.max(axis=1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True)), ids


def nll(vlm: Vlm, example: Example, text: str) -> float:
    rows, ids = log_probs(vlm, example, text)
    return -sum(rows[t, token] for t, token in enumerate(ids)) / len(ids)


def log_prob(vlm: Vlm, example: Example, text: str) -> float:
    rows, ids = log_probs(vlm, example, text)
    return sum(rows[t, token] for t, token in enumerate(ids))


def divergence(vlm: Vlm, adapter: Adapter, example: Example) -> float:
    current, ids = log_probs(vlm, example, example.answer)
    with without_adapter(adapter):
        reference, _ = log_probs(vlm, example, example.answer)
    return float((np.exp(reference) * (reference - current)).sum() / len(ids))


def softplus(x: float) -> float:
    """Minus log sigmoid of -x."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def terms_of(vlm: Vlm, adapter: Adapter, given: dict[str, list[Example]]) -> dict[str, list[float]]:
    """Everything that losses are made of, per example."""
    forget, retain = given["forget"], given["retain"]
    with without_adapter(adapter):
        before = [log_prob(vlm, e, e.answer) for e in forget]
        reference = [nll(vlm, e, e.answer) for e in forget]
    return {
        "forget": [nll(vlm, e, e.answer) for e in forget],
        "reference": reference,
        "ratio": [log_prob(vlm, e, e.answer) - b for e, b in zip(forget, before, strict=True)],
        "match": [nll(vlm, e, e.target or "") for e in forget],
        "retain": [nll(vlm, e, e.answer) for e in retain],
        "kl": [divergence(vlm, adapter, e) for e in retain],
    }


@pytest.mark.parametrize("kind", ["text", "mixed"])
def test_losses_equal_an_independent_recomputation(kind: Kind) -> None:
    """Each objective on a batch with padding, and in the mixed case with and without pictures."""
    vlm = tiny_vlm("llava", dtype=torch.float64)
    given = batch(kind)
    with add_lora(vlm, LoraSettings(rank=2)) as adapter:
        shake(adapter)
        found = terms_of(vlm, adapter, given)
        pairs = list(zip(found["forget"], found["reference"], strict=True))
        ceiling = sorted(x - r for x, r in pairs)[2]  # two examples are at it or above
        ascent = -mean([min(x, r + ceiling) for x, r in pairs])
        expected = {
            "unlearn": 0.5 * ascent + mean(found["match"]) + 5 * mean(found["kl"]),
            "ga": ascent,
            "grad-diff": ascent + mean(found["retain"]),
            "npo": 2 / 0.1 * mean([softplus(0.1 * x) for x in found["ratio"]])
            + mean(found["retain"]),
            "simnpo": 2 / 2.5 * mean([softplus(-2.5 * x) for x in found["forget"]])
            + mean(found["retain"]),
            "sft": mean(found["match"]) + mean(found["retain"]),
        }
        for name, loss in expected.items():
            settings = replace(SETTINGS, objective=name, ceiling=ceiling * (1 - 1e-9))
            step = UnlearningObjective(vlm, settings, adapter)(given)
            assert float(step.loss.detach()) == pytest.approx(loss, rel=CLOSE), name
            watched = {
                "forget_nll": mean(found["forget"]),
                "match_nll": mean(found["match"]),
                "retain_nll": mean(found["retain"]),
                "retain_kl": mean(found["kl"]),
                "clamped_share": 0.5,
            }
            for term in step.terms.keys() & watched.keys():
                assert step.terms[term] == pytest.approx(watched[term], rel=CLOSE), (name, term)


def test_rmu_equals_an_independent_recomputation() -> None:
    vlm = tiny_vlm("llava", dtype=torch.float64)
    given = batch()
    settings = UnlearningSettings("rmu", rmu_layer=1, rmu_coefficient=3.0, w_norm=7.0)
    control = control_vector(vlm.hidden_size, 3.0, 0).double().numpy()

    def states(example: Example) -> np.ndarray:
        inputs: dict[str, Any] = dict(vlm.encode([example.messages]).inputs)
        ids = vlm.tokenizer(example.answer, add_special_tokens=False).input_ids
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.no_grad():
            output = vlm.model(**inputs, output_hidden_states=True)
        # Columns that predict the answer and its end; hidden_states[0] are the embeddings.
        return output.hidden_states[2][0, -len(ids) - 1 :].double().numpy()

    with objective_of(vlm, settings) as objective:
        loss = objective(given)
        current = [states(e) for e in given["retain"]]
        with without_adapter(objective.adapter):
            before = [states(e) for e in given["retain"]]
        away = mean([float(((states(e) - control) ** 2).mean()) for e in given["forget"]])
    kept = mean([float(((a - b) ** 2).mean()) for a, b in zip(current, before, strict=True)])
    assert float(loss.loss.detach()) == pytest.approx(away + 7 * kept, rel=CLOSE)
    assert loss.terms == pytest.approx({"misdirect": away, "retain_preserve": kept}, rel=CLOSE)


# ---- what is run


@contextmanager
def counting_calls(vlm: Vlm) -> Generator[dict[str, int]]:
    """Calls of the first vision block, the projector and the first decoder layer."""
    calls = {"vision": 0, "projector": 0, "decoder": 0}
    watched = {
        "vision": vlm.vision_blocks[0],
        "projector": vlm.projector,
        "decoder": vlm.decoder_layers[0],
    }

    def note(name: str) -> Any:
        def hook(*_: object) -> None:
            calls[name] += 1

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in watched.items()]
    yield calls
    for handle in handles:
        handle.remove()


PASSES = {"unlearn": 5, "ga": 2, "grad-diff": 3, "npo": 3, "simnpo": 2, "rmu": 3, "sft": 2}
"""Forward passes of a step: forget, its reference, match, retain, its reference."""


@pytest.mark.parametrize("name", OBJECTIVES)
def test_only_the_passes_that_are_needed_run_and_text_never_reaches_the_vision_tower(
    name: str,
) -> None:
    vlm = tiny_vlm("llava")
    settings = replace(SETTINGS, objective=name)
    with objective_of(vlm, settings) as objective, counting_calls(vlm) as calls:
        step = objective(batch("text"))
        assert calls == {"vision": 0, "projector": 0, "decoder": PASSES[name]}
        assert step.images == 0
        step = objective(batch("pictures"))
        assert calls == {
            "vision": PASSES[name],
            "projector": PASSES[name],
            "decoder": 2 * PASSES[name],
        }
        assert step.images == 4 * PASSES[name]
        # In a mixed step only those with pictures reach it: 2 of 4 in every pass.
        step = objective(batch("mixed"))
        assert calls["vision"] == 2 * PASSES[name]
        assert step.images == 2 * PASSES[name]


def test_tokens_of_every_pass_are_counted() -> None:
    vlm = tiny_vlm("llava")
    given = batch(count=2)

    def tokens(example: Example, text: str) -> int:
        prompt = int(vlm.encode([example.messages]).prompt_lengths[0])
        return prompt + len(vlm.tokenizer(text, add_special_tokens=False).input_ids) + 1

    expected = sum(2 * tokens(e, e.answer) + tokens(e, e.target or "") for e in given["forget"])
    expected += 2 * sum(tokens(e, e.answer) for e in given["retain"])
    with objective_of(vlm) as objective:
        assert objective(given).tokens == expected


@pytest.mark.parametrize("family", ["mllama", "qwen2_5_vl", "llava_next"])
def test_every_family_runs_text_and_pictures_in_one_step(family: str) -> None:
    vlm = tiny_vlm(family, dtype=torch.float64)
    given = batch("mixed")
    with objective_of(vlm) as objective:
        whole = objective(given)
        parts = [objective({name: [row[i]] for name, row in given.items()}) for i in range(4)]
    assert float(whole.loss.detach()) == pytest.approx(
        mean([float(part.loss.detach()) for part in parts]), rel=CLOSE
    )
    for term, value in whole.terms.items():
        assert value == pytest.approx(mean([part.terms[term] for part in parts]), rel=CLOSE), term
    assert whole.tokens == sum(part.tokens for part in parts)
    assert whole.images == sum(part.images for part in parts)


# ---- gradients


def test_at_the_start_the_divergence_and_its_gradient_are_zero() -> None:
    vlm = tiny_vlm("llava")
    settings = replace(SETTINGS, w_bad=1e-9, w_help=0.0)
    with objective_of(vlm, settings, moved=False) as objective:
        step = objective(batch())
        step.loss.backward()
        gradients = [p.grad for p in objective.adapter.parameters.values()]
    assert step.terms["retain_kl"] == pytest.approx(0, abs=1e-6)
    assert all(g is not None and float(g.abs().max()) < 1e-6 for g in gradients)


def test_an_example_at_the_ceiling_gives_no_gradient() -> None:
    """Whose answer has become less likely than in the reference by the ceiling or more."""
    vlm, given = tiny_vlm("llava"), batch(count=8)
    with objective_of(vlm) as moved:
        found = terms_of(vlm, moved.adapter, given)
        rise = [x - r for x, r in zip(found["forget"], found["reference"], strict=True)]
        low, high = sorted(rise)[0], sorted(rise)[-1]
        assert high > 0
        settings = replace(SETTINGS, objective="ga", ceiling=max(high / 2, (low + high) / 2))
        for is_above in (True, False):
            chosen = [
                example
                for example, x in zip(given["forget"], rise, strict=True)
                if bool(x > settings.ceiling) is is_above
            ]
            assert chosen, rise
            objective = UnlearningObjective(vlm, settings, moved.adapter)
            objective.zero_grad()
            step = objective({"forget": chosen})
            step.loss.backward()
            gradients = [p.grad for p in moved.adapter.parameters.values()]
            assert step.terms["clamped_share"] == is_above
            assert any(g is not None and bool(g.any()) for g in gradients) is not is_above


@pytest.mark.parametrize("name", OBJECTIVES)
def test_full_weights_train_with_every_objective(name: str) -> None:
    """The reference is then the kept copy, and only the decoder layers get gradients."""
    vlm = tiny_vlm("llava")
    with add_full(vlm) as adapter:
        shake(adapter, 0.02)
        UnlearningObjective(vlm, replace(SETTINGS, objective=name), adapter)(
            batch("mixed", 2)
        ).loss.backward()
        with_gradient = {n for n, p in vlm.model.named_parameters() if p.grad is not None}
        assert with_gradient
        assert with_gradient <= set(adapter.parameters)


@pytest.mark.parametrize("name", ["unlearn", "rmu"])
@pytest.mark.parametrize("family", ["llava", "mllama"])
def test_recomputed_layers_give_the_same_loss_and_gradients(family: str, name: str) -> None:
    """Passes with the adapter and without it, and states that a hook hands out."""
    vlm = tiny_vlm(family, dtype=torch.float64)
    last = vlm.num_decoder_layers - 1
    settings = replace(SETTINGS, objective=name, rmu_layer=last)
    given = batch("mixed")
    runs = [0]

    def count(*_: Any) -> None:
        runs[0] += 1

    vlm.decoder_layers[last].get_submodule("mlp").register_forward_pre_hook(count)
    with objective_of(vlm, settings) as objective:

        def take() -> tuple[StepLoss, dict[str, torch.Tensor], int]:
            objective.zero_grad()
            runs[0] = 0
            step = objective(given)
            step.loss.backward()
            gradients = {
                n: torch.zeros(1) if p.grad is None else p.grad.clone()
                for n, p in objective.adapter.parameters.items()
            }
            return step, gradients, runs[0]

        plain, gradients, passes = take()
        with recomputing_layers(objective):
            again, recomputed, all_passes = take()
    # Those of the reference have no backward pass.
    assert passes < all_passes < 2 * passes
    assert torch.equal(again.loss, plain.loss)
    assert again == plain._replace(loss=again.loss)
    assert sum(bool(gradient.any()) for gradient in gradients.values()) > 4
    for parameter, gradient in gradients.items():
        assert_close(recomputed[parameter], gradient, FLOAT64_NOISE)


# ---- the end of it


RUNAWAYS: dict[str, tuple[UnlearningSettings, list[dict[str, float]], dict[str, float], str]] = {
    "kl": (
        SETTINGS,
        [{"retain_kl": 0.0}, {"retain_kl": 2.0}],
        {"retain_kl": 2.5},
        "2.50 nats per token from the reference, above the limit of 2",
    ),
    "the limit is declared": (
        replace(SETTINGS, runaway_limit=0.5),
        [{"retain_kl": 0.5}],
        {"retain_kl": 0.75},
        "0.75 nats per token from the reference, above the limit of 0.5",
    ),
    **{
        name: (
            replace(SETTINGS, objective=name),
            [{"retain_nll": 5.0}, {"retain_nll": 1.0}, {"retain_nll": 7.0}],
            {"retain_nll": 7.5},
            "2.50 nats per token less likely than at the first step, above the limit of 2",
        )
        for name in ("grad-diff", "npo", "simnpo", "sft")
    },
    "npo with kl": (
        replace(SETTINGS, objective="npo", retain_term="kl"),
        [{"retain_kl": 2.0}],
        {"retain_kl": 2.5},
        "2.50 nats per token from the reference",
    ),
    "rmu": (
        replace(SETTINGS, objective="rmu"),
        [{"retain_preserve": 0.0, "misdirect": 0.4}, {"retain_preserve": 0.3, "misdirect": 0.1}],
        {"retain_preserve": 0.5, "misdirect": 0.9},
        "0.5 (mean square) from the reference, more than those of forget answers were",
    ),
    **{
        name: (
            replace(SETTINGS, objective=name, w_norm=0.0),
            [{"forget_nll": 9.0, "reference_nll": 5.5}, {"forget_nll": 5.0, "reference_nll": 2.0}],
            {"forget_nll": 9.0, "reference_nll": 5.0},
            "4.00 nats per token less likely than in the reference, beyond the ceiling of 1.5",
        )
        for name in ("ga", "unlearn")
    },
}
"""What is watched, steps that go on, and one that does not: settings, terms and why."""


@pytest.mark.parametrize("case", RUNAWAYS)
def test_training_that_ran_away_stops_and_says_why(case: str) -> None:
    settings, fine, far, why = RUNAWAYS[case]
    more = {"clamped_share": 0.0, "match_nll": 9.0}
    with objective_of(tiny_vlm("llava"), settings) as objective:
        assert [objective.stop_reason(terms | more) for terms in fine] == [None] * len(fine)
        assert not objective.ran_away
        reason = objective.stop_reason(far | more)
        assert objective.ran_away
    assert reason is not None
    assert reason.startswith("training ran away: the ")
    assert why in reason


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_watch_reads_terms_that_its_objective_computes(name: str) -> None:
    given = batch()
    for settings in (
        replace(SETTINGS, objective=name),
        replace(SETTINGS, objective=name, w_norm=0.0),
    ):
        with objective_of(tiny_vlm("llava"), settings, moved=False) as objective:
            assert objective.stop_reason(objective(given).terms) is None


def test_training_stops_when_nothing_is_left_to_unlearn() -> None:
    settings = replace(SETTINGS, stop_patience=3)
    done = {"clamped_share": 1.0 - 1e-8, "match_nll": 0.04, "retain_kl": 0.1}
    with objective_of(tiny_vlm("llava"), settings) as objective:
        for other in ({"clamped_share": 0.9}, {"match_nll": 0.06}):
            assert [objective.stop_reason(done) for _ in range(2)] == [None, None]
            assert objective.stop_reason({**done, **other}) is None
        assert [objective.stop_reason(done) for _ in range(2)] == [None, None]
        assert "nothing was left to unlearn" in (objective.stop_reason(done) or "")


def test_patience_zero_never_stops() -> None:
    with objective_of(tiny_vlm("llava"), replace(SETTINGS, stop_patience=0)) as objective:
        done = {"clamped_share": 1.0, "match_nll": 0.0, "retain_kl": 0.0}
        assert [objective.stop_reason(done) for _ in range(50)] == [None] * 50


# ---- bad input


def test_a_forget_example_without_a_target_is_named() -> None:
    given = batch(count=2)
    given["forget"][1] = replace(given["forget"][1], target=None)
    with (
        objective_of(tiny_vlm("llava")) as objective,
        pytest.raises(DataError, match="'forget/1' has no target"),
    ):
        objective(given)


def test_the_layer_of_rmu_must_exist_and_run_on_text() -> None:
    vlm = tiny_vlm("mllama")
    with add_lora(vlm, LoraSettings(rank=2)) as adapter:
        with pytest.raises(ConfigError, match="9 out of range"):
            UnlearningObjective(vlm, UnlearningSettings("rmu", rmu_layer=9), adapter)
        objective = UnlearningObjective(vlm, UnlearningSettings("rmu", rmu_layer=1), adapter)
        with pytest.raises(DataError, match="decoder layer 1 does not run on examples without"):
            objective(batch())
        assert UnlearningObjective(vlm, UnlearningSettings("rmu"), adapter)(batch()).terms


def test_streams_name_only_what_is_run() -> None:
    vlm = tiny_vlm("llava")
    with objective_of(vlm) as objective:
        assert objective.streams == ("forget", "retain")
    with objective_of(vlm, UnlearningSettings("ga")) as objective:
        assert objective.streams == ("forget",)


def test_long_answers_are_cut_alike_for_all_terms() -> None:
    vlm = tiny_vlm("llava")
    long = Example("forget/x", "forget", user("Hi", picture()), "tea " * 50, target="no " * 50)
    given = {"forget": [long], "retain": [replace(long, id="retain/x")]}
    with objective_of(vlm, replace(SETTINGS, max_answer_tokens=8)) as objective:
        prompt = int(vlm.encode([long.messages]).prompt_lengths[0])
        assert objective(given).tokens == 5 * (prompt + 8)
