"""How far the policy has gone from the reference, and what that costs.

With d_t = log p(y_t | x, y_<t) - log p_ref(y_t | x, y_<t) at a token that p sampled:

    k1_t = d_t                      unbiased, may be negative
    k3_t = exp(-d_t) - 1 + d_t      unbiased, never negative, varies less near the reference

Where an estimate goes decides what it pulls towards, in expectation over tokens that p sampled:

    as a reward, sum k grad log p:   k1: grad KL(p || p_ref)
                                     k3: grad KL(p || p_ref) - grad KL(p_ref || p)
    as a loss, sum grad k:           k1: 0
                                     k3: grad KL(p_ref || p)

Near the reference the two divergences are alike, so that k3 as a reward cancels and holds nothing
back. So rewards (PPO's) are k1, and losses (GRPO's) k3.

Reference:
    J. Schulman, "Approximating KL Divergence" (2020, joschu.net/blog/kl-approx.html); Ziegler
    et al., "Fine-Tuning Language Models from Human Preferences" (arXiv 1909.08593), section 2.2,
    for the controller.

Deviation:
    1. In k3 the difference is cut at +-`LOG_RATIO_LIMIT` before it is exponentiated, so that
       one token that the policy has all but given up costs at most 4.9e8 nats and not infinity.

Shapes: B = rollouts, T = answer columns.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

from torch import Tensor

from vlmend.errors import ConfigError
from vlmend.training.losses.answer_tokens import LOG_RATIO_LIMIT, at_answers

Estimator = Literal["k1", "k3"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)

_LARGEST_ERROR = 0.2
"""Relative distance from the target beyond which the controller does not pull any harder."""


def token_kl(
    log_probs_BT: Tensor,
    reference_log_probs_BT: Tensor,
    mask_BT: Tensor,
    estimator: Estimator,
) -> Tensor:
    """Estimate KL(policy || reference) at each sampled token.

    Args:
        log_probs_BT: (B, T) of the sampled tokens under the policy that sampled them. Its
            gradient flows, for a loss that holds the divergence (GRPO's does).
        reference_log_probs_BT: (B, T) under the reference; no gradient flows into it.
        mask_BT: (B, T) bool, true at answer tokens.
        estimator: "k1" or "k3".

    Returns:
        (B, T) nats, 0 outside the mask; a row's sum estimates the divergence of whole answers.

    Raises:
        ConfigError: Another estimator; as `at_answers`.
    """
    if estimator not in ESTIMATORS:
        raise ConfigError(
            f"unknown estimator of the divergence {estimator!r}. Allowed: {', '.join(ESTIMATORS)}."
        )
    difference_BT = at_answers(log_probs_BT, mask_BT) - at_answers(
        reference_log_probs_BT.detach(), mask_BT
    )
    if estimator == "k1":
        return difference_BT
    back_BT = (-difference_BT).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    # Not exp(x) - 1 - x: near the reference that rounds to a few 1e-8 of either sign.
    return back_BT.expm1() - back_BT


def adapt_kl_coefficient(
    coefficient: float, observed: float, *, target: float, horizon: float, rollouts: int
) -> float:
    """Raise the price of divergence where there is too much of it, and lower it where little.

        e = clip(observed / target - 1, -0.2, 0.2)
        coefficient <- coefficient (1 + e rollouts / horizon)

    Args:
        coefficient: The price so far.
        observed: Mean divergence of the rollouts that were made under it.
        target: Divergence wanted, above 0, in the unit of `observed` (per token or per answer).
        horizon: Rollouts over which the price may change by a fifth.
        rollouts: Number of rollouts since the price was last set.

    Returns:
        The new price.

    Raises:
        ConfigError: A divergence that is no number, a target that is not above 0, or a horizon
            below the number of rollouts, which would make the price jump.
    """
    problems: list[str] = []
    if not math.isfinite(observed):
        problems.append(f"observed divergence is {observed}; allowed: a finite number")
    if not target > 0:
        problems.append(f"target is {target}; allowed: above 0")
    if not horizon >= max(rollouts, 1):
        problems.append(f"horizon is {horizon}; allowed: at least {rollouts}, the rollouts")
    if problems:
        raise ConfigError(f"the price of divergence cannot be adapted: {'; '.join(problems)}.")
    error = max(-_LARGEST_ERROR, min(_LARGEST_ERROR, observed / target - 1.0))
    return coefficient * (1.0 + error * rollouts / horizon)
