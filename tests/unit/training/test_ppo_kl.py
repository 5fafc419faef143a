"""Divergence from the reference at sampled tokens, and its price."""

from __future__ import annotations

import math

import ppo_equations as equations
import pytest
import torch
from ppo_rollouts import GARBAGE, answers, log_probs, padded, ragged_mask
from torch import Tensor

from vlmend.errors import ConfigError
from vlmend.testing import FLOAT32_NOISE, FLOAT64_NOISE, assert_close
from vlmend.training.losses.answer_tokens import LOG_RATIO_LIMIT
from vlmend.training.ppo.token_kl import ESTIMATORS, Estimator, adapt_kl_coefficient, token_kl

EQUATIONS = {"k1": equations.k1, "k3": equations.k3}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("seed", range(5))
def test_an_estimate_equals_its_equation(estimator: Estimator, seed: int) -> None:
    mask = ragged_mask(seed)
    for dtype, tolerance in ((torch.float64, FLOAT64_NOISE), (torch.float32, FLOAT32_NOISE)):
        policy, reference = log_probs(1, mask, dtype=dtype), log_probs(2, mask, dtype=dtype)
        found = token_kl(policy, reference, mask, estimator)
        assert found.dtype == dtype
        pairs = zip(answers(policy, mask), answers(reference, mask), strict=True)
        expected = [EQUATIONS[estimator](p, q) for p, q in pairs]
        assert_close(found, padded(expected, mask), tolerance)
        assert not found[~mask].any()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_its_mean_over_the_policy_is_the_divergence(estimator: Estimator) -> None:
    """Every token of a small vocabulary, weighted by how often the policy samples it."""
    generator = torch.Generator().manual_seed(0)
    log_p, log_q = torch.randn(2, 1, 7, generator=generator).double().log_softmax(-1)
    exact = float((log_p.exp() * (log_p - log_q)).sum())
    found = token_kl(log_p, log_q, torch.ones(1, 7, dtype=torch.bool), estimator)
    assert float((log_p.exp() * found).sum()) == pytest.approx(exact, rel=1e-12)
    assert exact > 0.1
    assert bool((found < 0).any()) == (estimator == "k1")


def test_k3_is_never_negative_however_close() -> None:
    near = torch.linspace(-1e-3, 1e-3, 2001)[None]
    mask = torch.ones_like(near, dtype=torch.bool)
    found = token_kl(near - 3.0, torch.full_like(near, -3.0), mask, "k3")
    assert float(found.min()) == 0
    assert float(found.max()) == pytest.approx(5e-7, rel=0.01)


@pytest.mark.parametrize(("estimator", "goal"), [("k1", "nothing"), ("k3", "KL(ref || p)")])
def test_what_it_pulls_towards_as_a_loss(estimator: Estimator, goal: str) -> None:
    generator = torch.Generator().manual_seed(1)
    logits, other = torch.randn(2, 1, 5, generator=generator).double()
    logits.requires_grad_()
    log_p, log_q = logits.log_softmax(-1), other.log_softmax(-1)
    mask = torch.ones(1, 5, dtype=torch.bool)
    sampled = log_p.exp().detach()
    loss = (sampled * token_kl(log_p, log_q, mask, estimator)).sum()
    (found,) = torch.autograd.grad(loss, logits)
    expected = torch.zeros_like(found)
    if goal != "nothing":
        divergence = (log_q.exp() * (log_q - logits.log_softmax(-1))).sum()
        (expected,) = torch.autograd.grad(divergence, logits)
        assert float(expected.abs().max()) > 0.01
    assert found.tolist()[0] == pytest.approx(expected.tolist()[0], abs=1e-12)


def pulls(log_q: Tensor, logits: Tensor) -> dict[str, Tensor]:
    """Gradients at the logits: of both divergences, and of either estimate as a reward.

    That of a reward is exact: every token, weighted by how often the policy samples it.
    """
    logits = logits.clone().requires_grad_()
    log_p = logits.log_softmax(-1)
    mask = torch.ones_like(log_p, dtype=torch.bool)
    goals = {
        "KL(p || ref)": (log_p.exp() * (log_p - log_q)).sum(),
        "KL(ref || p)": (log_q.exp() * (log_q - log_p)).sum(),
    }
    for estimator in ESTIMATORS:
        reward = token_kl(log_p.detach(), log_q, mask, estimator)
        goals[estimator] = (log_p.exp().detach() * reward * log_p).sum()
    return {
        name: torch.autograd.grad(goal, logits, retain_graph=True)[0]
        for name, goal in goals.items()
    }


@pytest.mark.parametrize("distance", [1e-3, 0.1, 2.0])
def test_what_it_pulls_towards_as_a_reward(distance: float) -> None:
    """k1 towards the reference; k3 cancels near it: its pull falls with the square."""
    generator = torch.Generator().manual_seed(2)
    other, step = torch.randn(2, 1, 5, generator=generator).double()
    found = pulls(other.log_softmax(-1), other + distance * step)
    goal, back = found["KL(p || ref)"], found["KL(ref || p)"]
    assert float(goal.abs().max()) > 0.01 * distance
    assert found["k1"].tolist()[0] == pytest.approx(goal.tolist()[0], rel=1e-9, abs=1e-15)
    assert found["k3"].tolist()[0] == pytest.approx((goal - back).tolist()[0], rel=1e-6, abs=1e-15)
    share = float(found["k3"].norm() / goal.norm())
    assert share > 0.5 if distance == 2.0 else share < 2 * distance


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_padding_reaches_no_gradient(estimator: Estimator, garbage: float) -> None:
    mask = ragged_mask(3)
    gradients = []
    for outside in (0.0, garbage):
        policy = log_probs(1, mask, outside).requires_grad_()
        reference = log_probs(2, mask, outside).requires_grad_()
        token_kl(policy, reference, mask, estimator).square().sum().backward()
        assert reference.grad is None
        assert policy.grad is not None
        gradients.append(policy.grad)
    assert torch.equal(*gradients)
    assert not gradients[1][~mask].any()
    assert bool(gradients[1][mask].all())


def test_a_token_that_was_given_up_costs_much_but_not_infinity() -> None:
    policy = torch.tensor([[-200.0, -1.0]], requires_grad=True)
    found = token_kl(policy, torch.tensor([[-1.0, -1.5]]), torch.ones(1, 2).bool(), "k3")
    assert found.tolist()[0][0] == pytest.approx(math.exp(LOG_RATIO_LIMIT), rel=1e-6)
    found.sum().backward()
    assert policy.grad is not None
    assert policy.grad.tolist()[0] == pytest.approx([0.0, 1 - math.exp(-0.5)])


def test_a_wrong_estimator_or_shape_is_named() -> None:
    mask = ragged_mask(0)
    values = log_probs(0, mask)
    with pytest.raises(ConfigError, match=r"'k2'. Allowed: k1, k3"):
        token_kl(values, values, mask, "k2")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=r"shape \(1, 9\) with a mask of shape \(6, 9\)"):
        token_kl(values[:1], values, mask, "k1")
    with pytest.raises(ConfigError, match="the mask bool"):
        token_kl(values, values, mask.long(), "k1")


# ---- the price


@pytest.mark.parametrize(
    ("observed", "factor"),
    [(0.1, 1.0), (0.11, 1.0025), (0.09, 0.9975), (5.0, 1.005), (0.0, 0.995), (-3.0, 0.995)],
)
def test_the_price_follows_the_divergence(observed: float, factor: float) -> None:
    found = adapt_kl_coefficient(0.2, observed, target=0.1, horizon=4000, rollouts=100)
    assert found == pytest.approx(0.2 * factor)


def test_the_price_settles_where_the_divergence_is_the_target() -> None:
    """A policy whose divergence is 1 / price is held at a divergence of 4."""
    price = 10.0
    for _ in range(2000):
        price = adapt_kl_coefficient(price, 1 / price, target=4.0, horizon=1000, rollouts=50)
    assert 1 / price == pytest.approx(4.0, rel=1e-3)


def test_what_the_price_cannot_follow_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        adapt_kl_coefficient(0.1, math.nan, target=0.0, horizon=10, rollouts=64)
    for part in ("divergence is nan", "target is 0.0", "horizon is 10", "at least 64"):
        assert part in str(caught.value)
