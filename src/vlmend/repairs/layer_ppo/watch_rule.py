"""When a watched training has collapsed, and which checkpoint is kept. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vlmend.errors import ConfigError


@dataclass(frozen=True)
class WatchRule:
    """When a training has collapsed, and which checkpoint is kept.

    All limits are changes since the start: at early exits a model may be incoherent before.

    Attributes:
        max_incoherent_rise: Rise of the share of incoherent answers beyond which it collapses.
        max_over_refusal_rise: Rise of over-refusal beyond which it collapses.
        max_benign_reward_fall: Fall of the benign reward beyond which it collapses, in standard
            deviations of the rewards at the start.
        max_perplexity_ratio: Rise of the perplexity of benign answers beyond which it collapses, as
            a multiple of that at the start.
        patience: Checks in a row that must say so; 0 never stops.
        max_kept_rise: Rise of over-refusal, and of incoherent answers, beyond which a checkpoint
            is kept only if none is within; then a collapsed one only if all are. With fewer
            prompts than 1 / this, not one more is allowed.

    Raises:
        ConfigError: Naming every setting that is out of range.
    """

    max_incoherent_rise: float = 0.1
    max_over_refusal_rise: float = 0.2
    max_benign_reward_fall: float = 1.0
    # On the organism answers have 1 to 1.5, and the same words in any order 70,000.
    max_perplexity_ratio: float = 100.0
    patience: int = 2
    max_kept_rise: float = 0.02

    def __post_init__(self) -> None:
        shares = ("max_incoherent_rise", "max_over_refusal_rise", "max_kept_rise")
        wrong = [
            f"{name}={getattr(self, name)!r} (allowed: 0 to 1)"
            for name in shares
            if not 0 <= getattr(self, name) <= 1
        ]
        if not 0 < self.max_benign_reward_fall < math.inf:
            wrong.append(
                f"max_benign_reward_fall={self.max_benign_reward_fall!r} (allowed: above 0, finite)"
            )
        if not 1 < self.max_perplexity_ratio < math.inf:
            wrong.append(
                f"max_perplexity_ratio={self.max_perplexity_ratio!r} (allowed: above 1, finite)"
            )
        if self.patience < 0:
            wrong.append(f"patience={self.patience!r} (allowed: >= 0; 0 never stops)")
        if wrong:
            raise ConfigError(f"settings of the watch out of range: {'; '.join(wrong)}.")
