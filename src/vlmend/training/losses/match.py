"""Towards an answer: cross-entropy of a target (a refusal, or a helpful and safe answer).

    L_match = mean_b nll_b

On its own it is plain supervised fine-tuning.

Reference:
    Chakraborty et al., "Can Textual Unlearning Solve Cross-Modality Safety Alignment?"
    (arXiv 2406.02575), the second of its three terms.

Deviation:
    1. Over answer tokens per example, see `answer_nll`.

Shapes: B = examples.
"""

from __future__ import annotations

from torch import Tensor


def match_loss(nll_B: Tensor) -> Tensor:
    """Mean likelihood loss of targets.

    Args:
        nll_B: (B,) nats per answer token, from `answer_nll`.

    Returns:
        The loss, a scalar.
    """
    return nll_B.mean()
