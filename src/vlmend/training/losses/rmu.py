"""RMU: representation misdirection, unlearning inside the model instead of at its output.

    L_forget = mean_b (1 / |y_b|) sum_t || h(x_t) - c u ||^2 / D
    L_retain = mean_b (1 / |y_b|) sum_t || h(x_t) - h_ref(x_t) ||^2 / D
    L_RMU    = L_forget + alpha L_retain

h is the output of one decoder layer, h_ref that of the reference, u a fixed random unit vector
and c its length; alpha is the weight that the objective gives to the retain term, 1200 in the
paper. What differs from its parent, `ascent`: states are driven to a meaningless
place instead of tokens to a low likelihood, so that the loss has a minimum.

Reference:
    Li et al., "The WMDP Benchmark: Measuring and Reducing Malicious Use With Unlearning"
    (arXiv 2403.03218), section 4.

Deviation:
    1. Divided by the width D, as the authors' code does and their equation does not; so their
       alpha can be taken over.
    2. Over chosen columns per example (those that predict an answer token) instead of over all
       tokens of a text, see `answer_nll`: in a conversation the rest is the question.

Shapes: B = examples, N = columns, D = width, K = chosen columns of all examples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlmend.training.losses.answer_nll import mean_of_answers, widen


def control_vector(width: int, length: float, seed: int) -> Tensor:
    """The meaningless place c u that states are driven to.

    Args:
        width: Width D of the residual stream.
        length: Its length c; to matter, at least that of the states at the layer.
        seed: Decides the direction, and nothing else does.

    Returns:
        (D,) float32 on the CPU, no entry below 0, as the authors draw it.
    """
    generator = torch.Generator().manual_seed(seed)
    direction_D = torch.rand(width, generator=generator)
    return length * direction_D / direction_D.norm()


def misdirect_loss(states_BND: Tensor, control_D: Tensor, chosen_BN: Tensor) -> Tensor:
    """Distance of states to the control vector: the forget term.

    Args:
        states_BND: (B, N, D) with gradient, from `vlmend.hooks.capture`.
        control_D: (D,) from `control_vector`.
        chosen_BN: (B, N) bool, the columns that count.

    Returns:
        The loss, a scalar.
    """
    states_KD = widen(states_BND[chosen_BN])
    return _distance(states_KD, control_D.to(states_KD), chosen_BN)


def preserve_loss(states_BND: Tensor, reference_BND: Tensor, chosen_BN: Tensor) -> Tensor:
    """Distance of states to what they were: the retain term.

    Args:
        states_BND: (B, N, D) with gradient, from `vlmend.hooks.capture`.
        reference_BND: (B, N, D) the same under the reference; no gradient flows into it.
        chosen_BN: (B, N) bool, the columns that count.

    Returns:
        The loss, a scalar; 0 while the model is the reference.
    """
    return _distance(
        widen(states_BND[chosen_BN]), widen(reference_BND.detach()[chosen_BN]), chosen_BN
    )


def _distance(states_KD: Tensor, goal: Tensor, chosen_BN: Tensor) -> Tensor:
    return mean_of_answers((states_KD - goal).square().mean(dim=-1), chosen_BN).mean()
