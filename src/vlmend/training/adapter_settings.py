"""Which adapter trains: its kind, and the size of a LoRA adapter. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vlmend.errors import ConfigError

AdapterKind = Literal["lora", "full"]
"""Low-rank matrices beside the decoder layers' own weights, or those weights themselves."""


@dataclass(frozen=True)
class LoraSettings:
    """Which modules get low-rank matrices, and how large these are.

    Attributes:
        rank: Rank of the matrices.
        alpha: Scale; the update is alpha / rank times their product.
        layers: Decoder layers (0-based); None for all.
        modules: "attention", "mlp", or names of linear modules in a layer such as "q_proj".

    Raises:
        ConfigError: Naming every setting that is out of range.
    """

    rank: int = 8
    alpha: float = 16.0
    layers: tuple[int, ...] | None = None
    modules: tuple[str, ...] = ("attention", "mlp")

    def __post_init__(self) -> None:
        wrong: list[str] = []
        if self.rank < 1:
            wrong.append(f"rank={self.rank} (allowed: >= 1)")
        if not self.alpha > 0:
            wrong.append(f"alpha={self.alpha} (allowed: above 0)")
        if self.layers is not None and not self.layers:
            wrong.append("layers=() (allowed: at least one decoder layer, or None for all)")
        if not self.modules:
            wrong.append("modules=() (allowed: attention, mlp, or names such as q_proj)")
        if wrong:
            raise ConfigError(f"LoRA settings out of range: {'; '.join(wrong)}.")
