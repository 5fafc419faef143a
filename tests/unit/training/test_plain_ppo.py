"""At the default exit a step is plain PPO, or GRPO, on the text model of the same weights.

The text model is a `LlamaForCausalLM` that is fed embeddings, one answer at a time, without
padding, in float64; rewards, advantages and losses are those of `ppo_equations`.

Shapes: S = prompt columns, T = answer tokens, V = vocabulary, D = width.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from statistics import fmean
from typing import Any, NamedTuple

import ppo_equations as equations
import pytest
import torch
from layer_ppo_data import SETTINGS, ends_often, letters, objective, prepare, streams, whole_loss
from torch import Tensor
from transformers import LlamaForCausalLM
from unlearning_data import shake

from vlmend.models.vlm import Vlm
from vlmend.repairs.layer_ppo.experience import Experience
from vlmend.repairs.layer_ppo.objective import ROLLOUTS, LayerPPOObjective
from vlmend.repairs.layer_ppo.settings import LayerPPOSettings
from vlmend.testing import assert_close, noise_of, tiny_vlm

PLAIN = replace(
    SETTINGS,
    temperature=0.8,
    minibatches=1,
    gamma=0.97,
    lam=0.9,
    value_coefficient=0.4,
    entropy_coefficient=0.03,
    kl_coefficient=0.2,
)


PLAIN_GRPO = replace(PLAIN, algorithm="grpo", samples=3)


class Read(NamedTuple):
    """One answer by the text model, as lists over its tokens."""

    log_probs: list[float]
    values: list[float]
    entropy: list[float]


def text_model(vlm: Vlm, changed: dict[str, Tensor]) -> Any:
    """The decoder of a LLaVA as a language model of its own, with some tensors changed."""
    model = LlamaForCausalLM(vlm.model.config.text_config).double().eval()
    own: dict[str, Tensor] = {**vlm.own_weights(), **changed}
    prefix = "model.language_model."
    state = {
        name.replace(prefix, "model."): tensor.double()
        for name, tensor in own.items()
        if name.startswith((prefix, "lm_head."))
    }
    model.load_state_dict(state)
    return model


def embeddings(vlm: Vlm, model: Any, experience: Experience) -> Tensor:
    """(1, S + T, D) of a prompt with its picture at the default exit, and the answer."""
    rollout = experience.rollout
    encoded = vlm.encode([rollout.prompt.example.messages])
    ids = torch.cat([encoded.inputs["input_ids"], torch.tensor([rollout.token_ids])], dim=1)
    with torch.no_grad():
        embeds = model.model.embed_tokens(ids)
        tower = vlm.model.model.vision_tower(
            encoded.inputs["pixel_values"], output_hidden_states=True
        )
        picture = vlm.model.model.multi_modal_projector(tower.hidden_states[-2][:, 1:])
    embeds[ids == vlm.model.config.image_token_id] = picture[0].double()
    return embeds


def read(
    vlm: Vlm,
    model: Any,
    experience: Experience,
    head: tuple[Tensor, Tensor] | None,
    temperature: float,
) -> Read:
    answer = experience.rollout.token_ids
    with torch.no_grad():
        embeds = embeddings(vlm, model, experience)
        states = model.model(inputs_embeds=embeds, use_cache=False).last_hidden_state[0]
        states = states[-len(answer) - 1 : -1]
        logits = model.lm_head(states) / temperature
    logits[:, vlm.model.config.image_token_id] = -1e9
    log_probs = logits.log_softmax(-1)
    values: list[float] = []
    if head is not None:
        weight, bias = (tensor.double() for tensor in head)
        values = (states @ weight[0] + bias).tolist()
    return Read(
        [float(row[token]) for row, token in zip(log_probs, answer, strict=True)],
        values,
        [equations.entropy(row) for row in logits.tolist()],
    )


def head_of(found: LayerPPOObjective) -> tuple[Tensor, Tensor]:
    assert found.value_head is not None
    return found.value_head.weight.detach().clone(), found.value_head.bias.detach().clone()


def scored(experience: Experience, settings: LayerPPOSettings) -> float:
    answer = experience.rollout.text
    if not answer:
        return -settings.reward_clip
    score = letters("", answer) - (0.0 if experience.rollout.ended else settings.cut_penalty)
    return equations.clip(score, -settings.reward_clip, settings.reward_clip)


def test_a_step_at_the_default_exit_is_plain_ppo() -> None:
    vlm = ends_often(tiny_vlm("llava", dtype=torch.float64))
    settings = replace(PLAIN, exits=(vlm.default_exit,))
    found = objective(vlm, settings)
    with found.adapter:
        prepared = prepare(found, streams(3))
        experiences: list[Experience] = list(prepared.updates[0].batch[ROLLOUTS])
        heads, policies = [head_of(found)], [text_model(vlm, found.adapter.dense())]
        # As if updates had been made since: the second reading is not the first.
        shake(found.adapter, 0.03, seed=9)
        assert found.value_head is not None
        with torch.no_grad():
            found.value_head.weight.add_(0.1)
        heads.append(head_of(found))
        policies.append(text_model(vlm, found.adapter.dense()))
        loss = whole_loss(found, prepared, micro=2)
    base = text_model(vlm, {})
    heat = settings.temperature

    old = [read(vlm, policies[0], e, heads[0], heat) for e in experiences]
    new = [read(vlm, policies[1], e, heads[1], heat) for e in experiences]
    reference = [read(vlm, base, e, heads[0], heat).log_probs for e in experiences]
    divergence = [equations.k1(o.log_probs, r) for o, r in zip(old, reference, strict=True)]
    rewards = [
        equations.rewards(scored(e, settings), nats, settings.kl_coefficient)
        for e, nats in zip(experiences, divergence, strict=True)
    ]
    how = (settings.gamma, settings.lam)
    pairs = list(zip(rewards, [o.values for o in old], strict=True))
    goals = [equations.returns(r, v, *how) for r, v in pairs]
    gains = equations.whitened(
        [equations.advantages(r, v, *how) for r, v in pairs], shift_mean=True
    )

    now, then = [n.log_probs for n in new], [o.log_probs for o in old]
    policy = equations.mean(equations.policy(now, then, gains, settings.clip))
    value = equations.mean(
        equations.value(
            [n.values for n in new], [o.values for o in old], goals, settings.value_clip
        )
    )
    entropy = equations.mean(equations.flat([n.entropy for n in new]))
    expected = {
        "policy_loss": policy,
        "value_loss": value,
        "entropy": entropy,
        "clip_fraction": equations.mean(equations.policy_clipped(now, then, gains, settings.clip)),
        "explained_variance": equations.explained([o.values for o in old], goals),
        "kl": fmean(map(sum, divergence)),
    }
    assert len({e.length for e in experiences}) > 1, "answers of several lengths"
    assert 0 < expected["clip_fraction"] < 1, "nothing was clipped, or everything"
    # The value head computes in float32; in float64 alone the worst difference is 1e-12.
    for name, number in expected.items():
        assert loss.terms[name] == pytest.approx(number, rel=1e-5, abs=1e-6), name
    whole = policy + settings.value_coefficient * value - settings.entropy_coefficient * entropy
    assert_close(
        loss.loss.detach()[None].double(), torch.tensor([whole]).double(), noise_of(torch.float32)
    )


@pytest.mark.parametrize("scale", [True, False])
def test_a_step_at_the_default_exit_is_plain_grpo(scale: bool) -> None:
    """No critic: answers to a prompt are compared, and the divergence is in the loss, as k3."""
    vlm = ends_often(tiny_vlm("llava", dtype=torch.float64))
    settings = replace(PLAIN_GRPO, exits=(vlm.default_exit,), scale_advantages=scale)
    found = objective(vlm, settings)
    with found.adapter:
        prepared = prepare(found, streams(2))
        experiences: list[Experience] = list(prepared.updates[0].batch[ROLLOUTS])
        policies = [text_model(vlm, found.adapter.dense())]
        shake(found.adapter, 0.03, seed=9)
        policies.append(text_model(vlm, found.adapter.dense()))
        loss = whole_loss(found, prepared, micro=5)
    heat = settings.temperature
    # The answers to a prompt stand together again.
    experiences.sort(key=lambda e: e.rollout.prompt.example.id)
    old, new, reference = (
        [read(vlm, model, e, None, heat) for e in experiences]
        for model in (*policies, text_model(vlm, {}))
    )
    gains: list[list[float]] = []
    for _, members in groupby(experiences, key=lambda e: e.rollout.prompt.example.id):
        answers = list(members)
        assert len(answers) == settings.samples
        merits = equations.group([scored(e, settings) for e in answers], scale=scale)
        gains += [[merit] * e.length for merit, e in zip(merits, answers, strict=True)]

    now, then, base = ([r.log_probs for r in reads] for reads in (new, old, reference))
    policy = equations.mean(equations.policy(now, then, gains, settings.clip))
    divergence = equations.mean(
        equations.flat([equations.k3(n, b) for n, b in zip(now, base, strict=True)])
    )
    entropy = equations.mean(equations.flat([n.entropy for n in new]))
    clipped = equations.mean(equations.policy_clipped(now, then, gains, settings.clip))
    assert loss.terms["policy_loss"] == pytest.approx(policy, rel=1e-5, abs=1e-6)
    assert loss.terms["entropy"] == pytest.approx(entropy, rel=1e-5)
    assert loss.terms["clip_fraction"] == pytest.approx(clipped, rel=1e-5)
    assert loss.terms["kl"] == pytest.approx(
        fmean(sum(equations.k1(t, b)) for t, b in zip(then, base, strict=True)), rel=1e-5
    )
    assert 0 < clipped < 1, "nothing was clipped, or everything"
    assert settings.kl_coefficient * divergence > 1e-3, "the divergence does not count"
    whole = policy + settings.kl_coefficient * divergence - settings.entropy_coefficient * entropy
    assert float(loss.loss.detach()) == pytest.approx(whole, rel=1e-5)


def test_the_divergence_in_grpos_loss_pulls_as_it_counts() -> None:
    """Its gradient is the slope of what it adds to the loss: a detached one would have none."""
    vlm = ends_often(tiny_vlm("llava", dtype=torch.float64))
    found = objective(vlm, replace(PLAIN_GRPO, exits=(vlm.default_exit,)))
    weights = list(found.adapter.parameters.values())

    def priced() -> Tensor:
        losses: list[Tensor] = []
        for found.kl_coefficient in (2.0, 0.0):
            losses.append(whole_loss(found, prepared).loss)
        return losses[0] - losses[1]

    with found.adapter:
        prepared = prepare(found, streams(2))
        gradient = torch.autograd.grad(priced(), weights)
        length = float(torch.stack([g.norm() for g in gradient]).norm())
        ends: list[float] = []
        for sign in (1, -1):
            with torch.no_grad():
                for weight, g in zip(weights, gradient, strict=True):
                    weight.add_(g, alpha=(2 if sign < 0 else 1) * sign * _STEP / length)
                ends.append(float(priced()))
    assert length > 0.01
    assert (ends[0] - ends[1]) / (2 * _STEP) == pytest.approx(length, rel=1e-3)


_STEP = 1e-3
"""Of a finite difference: weights are float32, so a smaller one is rounded."""
