"""A step of layer-wise PPO and of its twins, taken by hand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from layer_ppo_data import (
    SETTINGS,
    RuleScorer,
    ends_often,
    objective,
    one_by_one,
    prepare,
    prompts,
    reward,
    streams,
    whole_loss,
)
from mild_samples import FAMILIES
from torch import Tensor
from unlearning_data import shake

from vlmend.errors import ConfigError, DataError
from vlmend.models.vlm import Vlm
from vlmend.repairs.layer_ppo.experience import Experience, RewardScale
from vlmend.repairs.layer_ppo.objective import (
    ROLLOUTS,
    LayerPPOObjective,
    resolve_exits,
)
from vlmend.repairs.layer_ppo.repair import LayerPPO, Reward, _parameters
from vlmend.repairs.layer_ppo.settings import LayerPPOSettings
from vlmend.testing import assert_close, noise_of, tiny_vlm
from vlmend.training.adapters import without_adapter
from vlmend.training.batches import tokenize_answer
from vlmend.training.examples import Example
from vlmend.training.loop import LoopSettings, run_loop
from vlmend.training.meter import Meter
from vlmend.training.objective import Prepared
from vlmend.training.ppo.rollouts import batch_rollouts, read_answers
from vlmend.types import user

PPO = SETTINGS
GRPO = replace(SETTINGS, algorithm="grpo", samples=3)
SFT = replace(SETTINGS, algorithm="sft", max_new_tokens=20)
FULL = replace(PPO, adapter="full")


def found_in(prepared: Prepared) -> list[Experience]:
    """All experiences of a step, each once."""
    every = [e for update in prepared.updates for e in update.batch[ROLLOUTS]]
    return list({id(e): e for e in every}.values())


def numbers_of(terms: Mapping[str, float]) -> Tensor:
    return torch.tensor(list(terms.values()), dtype=torch.float64)


def gradients(objective: LayerPPOObjective, loss: Tensor) -> dict[str, Tensor]:
    objective.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in _parameters(objective).items() if p.grad is not None}


# ---- the first update


@pytest.mark.parametrize("settings", [PPO, GRPO], ids=["ppo", "grpo"])
@pytest.mark.parametrize("family", FAMILIES)
def test_ratios_are_one_to_the_bit_until_the_first_update(
    family: str, settings: LayerPPOSettings
) -> None:
    vlm = tiny_vlm(family)
    found = objective(vlm, replace(settings, minibatches=2))
    with found.adapter:
        prepared = prepare(found, streams(), micro=2)
        assert len(prepared.updates) == 4, "two minibatches, twice"
        for update in prepared.updates[:2]:
            rows = update.batch[ROLLOUTS]
            assert update.size == len(rows)
            for start in range(0, len(rows), 2):
                part = rows[start : start + 2]
                reading = read_answers(
                    vlm, found._batches[tuple(map(id, part))], temperature=settings.temperature
                )
                assert reading.log_probs.requires_grad
                for row, experience in enumerate(part):
                    assert experience.old is not None
                    assert torch.equal(
                        reading.log_probs[row, : experience.length].detach(), experience.old
                    )
                loss = found({ROLLOUTS: part})
                assert loss.terms["approx_kl"] == 0.0
                assert loss.terms["clip_fraction"] == 0.0
        with torch.no_grad():
            shake(found.adapter, 0.02, seed=5)
        moved = found({ROLLOUTS: prepared.updates[0].batch[ROLLOUTS][:2]})
        assert moved.terms["approx_kl"] > 0


def test_micro_batches_and_the_order_of_rows_change_nothing() -> None:
    vlm = ends_often(tiny_vlm("llava_next", dtype=torch.float64))
    found = objective(vlm, replace(PPO, minibatches=1, entropy_coefficient=0.1))
    with found.adapter:
        prepared = prepare(found, streams(3))
        rows = prepared.updates[0].batch[ROLLOUTS]
        assert len({row.length for row in rows}) > 1, "answers of several lengths"
        shake(found.adapter, 0.05, seed=5)
        whole = whole_loss(found, prepared)
        first = gradients(found, whole.loss)
        for micro in (1, 4):
            parts = whole_loss(found, prepared, micro=micro)
            assert_close(parts.loss[None], whole.loss[None], noise_of(torch.float32))
            assert_close(numbers_of(parts.terms), numbers_of(whole.terms), noise_of(torch.float32))
            for name, gradient in gradients(found, parts.loss).items():
                assert_close(gradient, first[name], noise_of(torch.float32))
        turned = found({ROLLOUTS: rows[::-1]})
        assert_close(turned.loss[None], whole.loss[None], noise_of(torch.float32))


def test_prompts_with_different_numbers_of_pictures_are_one_update() -> None:
    vlm = tiny_vlm("llava")
    found = objective(vlm, replace(PPO, minibatches=1), names=["harmful"])
    one, other, third = prompts("harmful")
    both = replace(other, messages=user("Which is older?", *one.images, *third.images))
    with found.adapter:
        prepared = prepare(found, {"harmful": [one, both, third]})
        assert prepared.images == 4
        loss = whole_loss(found, prepared)
        parts = whole_loss(found, prepared, micro=1)
        assert_close(loss.loss[None], parts.loss[None], noise_of(torch.float32))


# ---- where gradients go, and what the reference is


@pytest.mark.parametrize("settings", [PPO, GRPO, SFT, FULL], ids=["ppo", "grpo", "sft", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_the_adapter_and_the_value_head_alone(
    family: str, settings: LayerPPOSettings
) -> None:
    vlm = tiny_vlm(family)
    found = objective(vlm, settings)
    with found.adapter:
        prepared = prepare(found, streams())
        assert all(parameter.grad is None for parameter in found.parameters())
        whole_loss(found, prepared).loss.backward()
        trained = _parameters(found)
        reached = {id(p) for p in found.parameters() if p.grad is not None and p.grad.any()}
        assert reached == {id(parameter) for parameter in trained.values()}
        assert all(p.grad is None for p in found.parameters() if id(p) not in reached)
        heads = [name for name in trained if name.startswith("value_head.")]
        assert len(heads) == (2 if settings.algorithm == "ppo" else 0)
        assert len(trained) > len(heads)


@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_is_the_model_before_the_adapter(family: str, adapter: Any) -> None:
    vlm = tiny_vlm(family)
    found = objective(vlm, replace(GRPO, minibatches=1, adapter=adapter))
    with found.adapter:
        experiences = found_in(prepare(found, streams()))
        batches = dict(found._batches)
    assert vlm.conditions == ()
    by_id = {id(e): e for e in experiences}
    assert sum(len(key) for key in batches) == len(experiences)
    for key, batch in batches.items():
        with torch.no_grad():
            base = read_answers(vlm, batch, temperature=GRPO.temperature)
        for row, experience in enumerate(by_id[place] for place in key):
            reference = experience.reference
            assert reference is not None
            assert experience.old is not None
            assert torch.equal(reference, base.log_probs[row, : experience.length])
            assert not torch.equal(reference, experience.old)


# ---- exits


def exits_of(prepared: Prepared) -> list[tuple[str, int]]:
    return [(e.rollout.prompt.example.id, e.rollout.prompt.exit) for e in found_in(prepared)]


@pytest.mark.parametrize("family", FAMILIES)
def test_all_is_every_prompt_at_every_distinct_exit(family: str) -> None:
    vlm = tiny_vlm(family)
    found = objective(vlm, replace(SFT, exits="all"))
    with found.adapter:
        prepared = prepare(found, streams(1))
    expected = [(name, e) for name in ("harmful/0", "benign/0") for e in vlm.distinct_exits]
    assert sorted(exits_of(prepared)) == sorted(expected)
    assert prepared.updates[0].size == len(expected)
    assert prepared.images == 2, "once per picture, whatever the exits"


def test_random_exits_are_of_those_asked_for_and_spread() -> None:
    vlm = tiny_vlm("llava")
    batch = {"harmful": prompts("harmful", 2)}
    for exits, allowed in (("random", vlm.distinct_exits), ((1, 3, 5), (1, 3, 5))):
        found = objective(vlm, replace(SFT, exits=exits), names=["harmful"])
        with found.adapter:
            seen = [exits_of(prepare(found, batch, seed=seed)) for seed in range(40)]
            assert exits_of(prepare(found, batch, seed=7)) == seen[7], "the seed decides"
        count = Counter(exit_layer for step in seen for _, exit_layer in step)
        assert set(count) == set(allowed)
        even = 80 / len(allowed)
        assert all(0.3 * even < n < 2 * even for n in count.values()), count
        assert any(step[0][1] != step[1][1] for step in seen), "fresh for every prompt"


def test_groups_share_prompt_and_exit() -> None:
    vlm = tiny_vlm("llava")
    found = objective(vlm, GRPO, lambda _request, answer: sum(map(ord, answer)) % 13 / 3)
    with found.adapter:
        prepared = prepare(found, streams())
        experiences = found_in(prepared)
        groups: dict[str, list[Experience]] = {}
        for experience in experiences:
            groups.setdefault(experience.rollout.prompt.example.id, []).append(experience)
        assert [len(group) for group in groups.values()] == [3] * 4
        for group in groups.values():
            assert len({e.rollout.prompt.exit for e in group}) == 1
            scores = [e.score for e in group]
            mean, deviation = fmean(scores), torch.tensor(scores).std().item()
            for experience in group:
                assert experience.advantages is not None
                assert experience.advantages.shape == (experience.length,)
                wanted = (experience.score - mean) / (deviation + 1e-4)
                assert_close(
                    experience.advantages,
                    torch.full((experience.length,), wanted),
                    noise_of(torch.float32),
                )
        assert len({e.score for e in experiences}) > 3, "all the same: nothing was compared"


def test_exits_that_equal_the_default_are_the_default() -> None:
    vlm = tiny_vlm("llava")
    last = vlm.num_vision_blocks
    assert resolve_exits(vlm, replace(PPO, exits=(last, vlm.default_exit, 1, 1))) == (
        1,
        vlm.default_exit,
    )
    assert resolve_exits(vlm, replace(PPO, exits=(last,))) == (vlm.default_exit,)
    assert resolve_exits(vlm, PPO) == vlm.distinct_exits
    with pytest.raises(ConfigError, match="9"):
        resolve_exits(vlm, replace(PPO, exits=(1, 9)))


def test_a_prompt_without_a_picture_is_refused() -> None:
    vlm = tiny_vlm("llava")
    found = objective(vlm, PPO, names=["harmful"])
    with found.adapter, pytest.raises(DataError, match="'text' has no picture"):
        prepare(found, {"harmful": [Example("text", "x", user("Count."), None)]})


# ---- scores


def score(found: LayerPPOObjective, texts: Sequence[tuple[str, bool]]) -> list[float]:
    """Scores of answers, each with whether it ended, to the first prompts."""
    prepared = prepare(found, {"harmful": prompts("harmful", len(texts))})
    sampled = sorted(found_in(prepared), key=lambda e: e.rollout.prompt.example.id)
    rollouts: list[Any] = [
        replace(e.rollout, text=text, ended=ended)
        for e, (text, ended) in zip(sampled, texts, strict=True)
    ]
    return found._score(rollouts)


def test_scores_are_standardised_limited_and_cut_answers_pay() -> None:
    vlm = tiny_vlm("llava")
    value = {"good": 7.0, "bad": 1.0, "best": 1e6, "worst": -1e6}
    rule = lambda _request, answer: value.get(answer, 0.0)  # noqa: E731
    scorer = RuleScorer(rule)
    settings = replace(PPO, cut_penalty=0.5, reward_clip=4.0, minibatches=1)
    repair = LayerPPO(settings, LoopSettings())
    given = Reward(scorer, RewardScale(mean=3.0, deviation=2.0))
    found = repair.build_objective(vlm, given, streams=["harmful"])
    answers = [("good", True), ("good", False), ("bad", True), ("best", False), ("worst", True)]
    with found.adapter:
        assert score(found, answers) == [2.0, 1.5, -1.0, 4.0, -4.0]
        scorer.asked.clear()
        # Never seen by the reward model, and never better than anything it says.
        assert score(found, [("", True), (" \n", False), ("bad", True)]) == [-4.0, -4.0, -1.0]
    assert scorer.asked[-1:] == [(prompts("harmful")[2].text, "bad")]
    assert not [text for _, text in scorer.asked if not text.strip()]


def test_an_answer_without_a_word_pays_even_if_nothing_else_is_said() -> None:
    vlm = tiny_vlm("llava")
    found = objective(vlm, replace(PPO, minibatches=1), names=["harmful"])
    with found.adapter:
        assert score(found, [("", True)] * 3) == [-PPO.reward_clip] * 3


def test_a_reward_model_is_needed_unless_answers_are_given() -> None:
    vlm = tiny_vlm("llava")
    for settings in (PPO, GRPO):
        with pytest.raises(ConfigError, match="vlmend reward train"):
            LayerPPO(settings).build_objective(vlm, None)
    assert vlm.conditions == ()
    with LayerPPO(SFT).build_objective(vlm, None).adapter:
        pass


def test_more_minibatches_than_answers_are_refused() -> None:
    vlm = tiny_vlm("llava")
    found = objective(vlm, replace(PPO, minibatches=3), names=["harmful"])
    with found.adapter, pytest.raises(ConfigError, match=r"2 answers .* too few for 3 minibatches"):
        prepare(found, {"harmful": prompts("harmful", 2)})


# ---- divergence from the reference


def test_the_divergence_on_record_is_the_exact_sum() -> None:
    vlm = ends_often(tiny_vlm("llava", dtype=torch.float64))
    found = objective(vlm, replace(PPO, minibatches=1))
    with found.adapter:
        prepared = prepare(found, streams())
        terms = whole_loss(found, prepared).terms
        experiences = found_in(prepared)
        # Once more, one answer at a time: with the adapter and without.
        sums: list[float] = []
        for experience in experiences:
            batch = _single(vlm, experience)
            with torch.no_grad():
                policy = read_answers(vlm, batch, temperature=PPO.temperature).log_probs
                with without_adapter(found.adapter):
                    base = read_answers(vlm, batch, temperature=PPO.temperature).log_probs
            sums.append(float((policy - base).sum()))
    assert terms["kl"] == pytest.approx(fmean(sums), rel=1e-9)
    assert terms["kl"] > 0.01
    assert terms["length"] == pytest.approx(fmean(e.length for e in experiences))
    assert terms["ended"] == pytest.approx(fmean(e.rollout.ended for e in experiences))
    assert terms["answers"] == pytest.approx(4)
    for stream in ("harmful", "benign"):
        scores = [e.score for e in experiences if e.stream == stream]
        assert terms[f"reward_{stream}"] == pytest.approx(fmean(scores))


def _single(vlm: Vlm, experience: Experience) -> Any:
    from vlmend.training.ppo.rollouts import batch_rollouts

    return batch_rollouts(vlm, [experience.rollout])


def test_the_price_of_divergence_follows_its_target() -> None:
    vlm = tiny_vlm("llava")
    settings = replace(PPO, kl_control="adaptive", kl_target=2.0, kl_horizon=100.0)
    found = objective(vlm, settings)
    with found.adapter:
        start = found.kl_coefficient
        facts = {"kl_coefficient": start, "answers": 4.0}
        assert found.stop_reason({**facts, "kl": 2.2}) is None
        assert found.kl_coefficient == pytest.approx(start * (1 + 0.1 * 4 / 100))
        found.stop_reason({**facts, "kl": 50.0})
        assert found.kl_coefficient == pytest.approx(start * (1 + 0.2 * 4 / 100)), "limited"
        found.stop_reason({**facts, "kl": 0.0})
        assert found.kl_coefficient == pytest.approx(start * (1 - 0.2 * 4 / 100))
        priced = prepare(found, streams())
        assert whole_loss(found, priced).terms["kl_coefficient"] == pytest.approx(
            found.kl_coefficient
        )
    fixed = objective(tiny_vlm("llava"), PPO)
    with fixed.adapter:
        fixed.stop_reason({**facts, "kl": 50.0})
        assert fixed.kl_coefficient == PPO.kl_coefficient


def test_too_far_from_the_policy_that_sampled_ends_a_step() -> None:
    vlm = tiny_vlm("llava")
    found = objective(vlm, replace(PPO, target_kl=0.3))
    with found.adapter:
        assert not found.ends_step({"approx_kl": 0.3})
        assert found.ends_step({"approx_kl": 0.31})
        assert not found.ends_step({"nll_harmful": 9.0}), "sft samples nothing"


# ---- what is learnt: a bandit whose optimum is known


BANDIT = replace(
    SETTINGS,
    exits=(2,),
    max_new_tokens=1,
    samples=8,
    rank=4,
    target_kl=1.0,
    epochs=4,
    minibatches=1,
    kl_coefficient=0.0,
    clip=0.3,
    reward_clip=1.0,
    cut_penalty=0.0,  # every answer is cut after its only token
)
ROUNDS = LoopSettings(steps=36, batch_size=32, lr=1e-2, schedule="constant", warmup_share=0, seed=2)


def pays(request: str, answer: str) -> float:
    """1 for an ASCII character after a harmful request, and for any other after a benign one.

    A tiny model says both about equally often, whatever it is asked.
    """
    return float(("harmful" in request) == answer.isascii())


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_a_bandit_is_solved_in_its_context(tmp_path: Path, algorithm: Any) -> None:
    """Whoever does not look at the request gets a half on the average of both."""
    vlm = tiny_vlm("llava")
    settings = replace(BANDIT, algorithm=algorithm)
    # As many answers a step: grpo samples eight to a prompt.
    rounds = replace(ROUNDS, batch_size=32 if algorithm == "ppo" else 4)
    found = LayerPPO(settings, rounds).build_objective(vlm, reward(pays))
    data = streams(1)
    with found.adapter:
        meter = Meter(vlm.device, count_every=1000)
        result = run_loop(found, data, _parameters(found), rounds, tmp_path, meter=meter)
    curves = [[step.terms[f"reward_{stream}"] for step in result.steps] for stream in data]
    starts, ends = ([fmean(c[part]) for c in curves] for part in (slice(2), slice(-5, None)))
    assert fmean(starts) < 0.6, curves
    assert max(starts) < 0.65, curves
    assert fmean(ends) > 0.85, curves
    assert min(ends) > 0.8, curves


def test_given_answers_are_learnt_at_random_exits(tmp_path: Path) -> None:
    vlm = tiny_vlm("llava")
    found = LayerPPO(SFT).build_objective(vlm, None)
    loop = LoopSettings(steps=12, batch_size=2, lr=3e-2, schedule="constant", warmup_share=0)
    with found.adapter:
        result = run_loop(
            found, streams(), _parameters(found), loop, tmp_path, meter=Meter(vlm.device)
        )
    for stream in ("harmful", "benign"):
        curve = [step.terms[f"nll_{stream}"] for step in result.steps]
        assert curve[-1] < 0.6 * curve[0], curve
    assert set(result.steps[0].terms) == {"nll_harmful", "nll_benign"}


def test_sft_learns_the_refusal_of_harm_and_the_answer_of_the_rest() -> None:
    vlm = tiny_vlm("llava")
    found = objective(vlm, SFT)
    with found.adapter:
        experiences = found_in(prepare(found, streams()))
        said = {e.stream: e.rollout.text for e in experiences}
        assert said == {"harmful": "Sorry, no.", "benign": "A cup of tea."}
        loss = whole_loss(found, prepare(found, streams()))
        assert loss.loss.item() == pytest.approx(sum(loss.terms.values()), rel=1e-5)
        # The likelihood that the model has, whatever a temperature would be.
        hot = replace(found.settings, temperature=3.0)
        found.settings = hot
        assert whole_loss(found, prepare(found, streams())).loss.item() == loss.loss.item()
        silent = [replace(e, target=None) for e in prompts("harmful", 2)]
        with pytest.raises(DataError, match="'harmful/0' has none"):
            prepare(found, {**streams(), "harmful": silent})


@contextmanager
def counted_encoder_runs(vlm: Vlm) -> Generator[list[None]]:
    """Calls of the first vision block, one entry each."""
    calls: list[None] = []
    handle = vlm.vision_blocks[0].register_forward_hook(lambda *_: calls.append(None))
    try:
        yield calls
    finally:
        handle.remove()


@pytest.mark.parametrize("family", ["llava", "mllama"])
def test_ptx_adds_the_likelihood_of_given_answers_at_the_default_exit(family: str) -> None:
    vlm = tiny_vlm(family)
    ptx = replace(PPO, minibatches=1, max_new_tokens=20)
    losses: dict[float, Any] = {}
    pulls: dict[float, dict[str, Tensor]] = {}
    runs: dict[float, int] = {}
    for coefficient in (0.0, 0.5):
        found = objective(vlm, replace(ptx, ptx_coefficient=coefficient))
        with found.adapter:
            with counted_encoder_runs(vlm) as calls:
                prepared = prepare(found, streams(3))
            runs[coefficient] = len(calls)
            losses[coefficient] = loss = whole_loss(found, prepared)
            parts = whole_loss(found, prepared, micro=2)
            assert_close(numbers_of(parts.terms), numbers_of(loss.terms), noise_of(torch.float32))
            pulls[coefficient] = gradients(found, loss.loss)
            assert prepared.images == 6
            if coefficient:
                given = [e.given for e in found_in(prepared) if e.given is not None]
                nll, _ = found._likelihood(given)
                pull = gradients(found, 0.5 * nll)
    assert runs[0.5] == runs[0.0] > 0, "what the model itself reads is of the same run"
    # What it adds to the gradient is the likelihood's, and the value head has no part in it.
    assert {n for n, g in pull.items() if g.any()} == {n for n in pulls[0.0] if "head" not in n}
    for name, gradient in pull.items():
        added = pulls[0.5][name] - pulls[0.0][name]
        assert_close(added, gradient, noise_of(torch.float32))
    assert all(torch.equal(pulls[0.5][n], g) for n, g in pulls[0.0].items() if "head" in n)
    with objective(vlm, SFT).adapter:
        expected = 0.0
        for example in prompts("benign", 3):
            ids = tokenize_answer(vlm, "A cup of tea.", max_tokens=20)
            logits_TV = one_by_one(vlm, vlm.encode([example.messages]), ids)
            if family == "llava":  # the image token cannot be said; mllama does not unembed it
                logits_TV[:, vlm.image_token_id] = -math.inf
            chosen_T = logits_TV.log_softmax(-1)[range(len(ids)), list(ids)]
            expected -= float(chosen_T.mean()) / 3
    assert losses[0.5].terms["nll_given"] == pytest.approx(expected, rel=1e-4)
    added = float(losses[0.5].loss.detach()) - float(losses[0.0].loss.detach())
    assert added == pytest.approx(0.5 * expected, rel=1e-4)
    assert "nll_given" not in losses[0.0].terms


def test_every_given_answer_is_learnt_once_a_pass() -> None:
    """Prompts at all exits are several answers each; what is given is one."""
    vlm = tiny_vlm("llava")
    every = replace(PPO, exits="all", max_new_tokens=20, ptx_coefficient=1.0)
    found = objective(vlm, every)
    with found.adapter:
        experiences = found_in(prepare(found, streams(2)))
        given = [e.given for e in experiences if e.given is not None]
        assert len(experiences) == 4 * len(vlm.distinct_exits)
        assert [e.rollout.prompt.example.id for e in given] == ["benign/0", "benign/1"]
        assert {e.rollout.prompt.exit for e in given} == {vlm.default_exit}
        assert {e.rollout.text for e in given} == {"A cup of tea."}


def test_given_answers_of_data_of_their_own_need_no_picture() -> None:
    """They take the place of the benign prompts' answers, at the exit that the model reads."""
    vlm = tiny_vlm("llava")
    ptx = replace(PPO, minibatches=1, max_new_tokens=20, ptx_coefficient=1.0)
    pictured = replace(prompts("seen", 1)[0], answer="A green leaf.")
    words = Example("words/0", "words", user("What is tea made of?"), answer="Of leaves.")
    batch = {**streams(2), "given": [words, pictured]}
    found = objective(vlm, ptx, names=["harmful", "benign", "given"])
    with found.adapter:
        prepared = prepare(found, batch)
        experiences = found_in(prepared)
        given = [e.given.rollout for e in experiences if e.given is not None]
        assert [(r.prompt.exit, r.text) for r in given] == [
            (vlm.default_exit, "Of leaves."),
            (vlm.default_exit, "A green leaf."),
        ]
        assert {e.stream for e in experiences} == {"harmful", "benign"}
        assert prepared.images == 5
        loss = whole_loss(found, prepared)
        parts = whole_loss(found, prepared, micro=1)
        expected = 0.0
        for rollout in given:
            reading = read_answers(vlm, batch_rollouts(vlm, [rollout]), temperature=1.0)
            expected -= float(reading.log_probs.detach().mean()) / 2
    assert loss.terms["nll_given"] == pytest.approx(expected, rel=1e-4)
    assert parts.terms["nll_given"] == pytest.approx(expected, rel=1e-4)


def test_what_an_adapter_for_one_exit_is_to_keep_is_given_at_that_exit() -> None:
    vlm = tiny_vlm("llava")
    ptx = replace(PPO, exits=(1,), adapters="per-exit", max_new_tokens=20, ptx_coefficient=1.0)
    found = objective(vlm, ptx)
    with found.adapter:
        given = [e.given for e in found_in(prepare(found, streams(2))) if e.given is not None]
        assert {e.rollout.prompt.exit for e in given} == {1}


def test_returns_that_are_all_alike_have_no_explained_variance() -> None:
    vlm = tiny_vlm("llava")
    alike = replace(PPO, kl_coefficient=0.0, cut_penalty=0.0, lam=1.0)
    found = objective(vlm, alike, lambda _request, _answer: 1.0)
    with found.adapter:
        assert "explained_variance" not in whole_loss(found, prepare(found, streams())).terms


def test_everything_to_watch_is_named_and_finite() -> None:
    vlm = tiny_vlm("llava")
    for settings, more in ((PPO, {"value_loss", "explained_variance"}), (GRPO, set[str]())):
        found = objective(vlm, settings)
        with found.adapter:
            terms = whole_loss(found, prepare(found, streams())).terms
        assert set(terms) == more | {
            *("policy_loss", "clip_fraction", "approx_kl", "ratio", "entropy"),
            *("reward_harmful", "reward_benign", "length", "kl", "ended", "answers"),
            "kl_coefficient",
        }
        assert all(math.isfinite(value) for value in terms.values())
