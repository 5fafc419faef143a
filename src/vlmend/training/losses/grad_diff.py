"""GradDiff: gradient ascent on what is to be forgotten, descent on what is to stay.

    L_GradDiff = L_GA(forget) + w L_retain
    L_retain   = mean_b nll_b

What differs from its parent, `ascent`: the retain term, by likelihood instead of by divergence
from a reference, so that no reference pass is needed. That term is what is here; w is the weight
that the objective gives it, 1 in the paper. NPO, SimNPO and fine-tuning have it too.

Reference:
    Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs" (arXiv 2401.06121),
    "Gradient Difference".

Deviation:
    1. The ascent is bounded, see `ascent`.
    2. Over answer tokens per example, see `answer_nll`.

Shapes: B = examples.
"""

from __future__ import annotations

from torch import Tensor


def retain_loss(nll_B: Tensor) -> Tensor:
    """Mean likelihood loss of answers that are to stay.

    Args:
        nll_B: (B,) nats per answer token of the retain set, from `answer_nll`.

    Returns:
        The loss, a scalar.
    """
    return nll_B.mean()
