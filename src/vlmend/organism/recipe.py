"""What an organism is trained by: five stages, and what each is shown.

Needs no torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from vlmend.errors import ConfigError
from vlmend.organism import stream
from vlmend.organism.pictures import PICTURES_VERSION
from vlmend.organism.vocabulary import vocabulary
from vlmend.types import sha256_json

REPLAY_SHARE = 0.3
"""Share of tuning's examples that is replayed text; without any, refusals are forgotten."""

MATCHING_SHARE = 0.6
"""Share of the projector stage that matches words before captions begin. With captions alone the
tuned model named 0.60 of the icons after 680 steps; matched first, 250 steps put every mean image
token next to its word."""

MATCHING_SHARPNESS = 10.0
"""Squared distances are divided by a tenth of the words' mean squared norm."""


@dataclass(frozen=True)
class Stage:
    """Settings of one stage.

    Attributes:
        name: One of the five stages.
        steps: Optimiser steps.
        batch: Examples a step; in `tuning` a part of them is replayed text.
        lr: Peak learning rate (AdamW, linear warm-up, cosine to a tenth).
    """

    name: str
    steps: int
    batch: int
    lr: float


@dataclass(frozen=True)
class Recipe:
    """The whole recipe of an organism.

    Attributes:
        seed: Of weights and data.
        picture_refusals: Share of tuning's picture examples whose text names an aligned hazard
            and whose answer is a refusal; see `stream.tuning_mixture`.
        tune_vision: Train the vision tower during `tuning` too (LLaVA does not).
        stages: The five stages in order.
    """

    seed: int = 0
    picture_refusals: float = 0.05
    tune_vision: bool = False
    stages: tuple[Stage, ...] = (
        Stage("language", 1100, 48, 2e-3),
        Stage("alignment", 450, 48, 7e-4),
        Stage("vision", 1800, 64, 1.5e-3),
        Stage("projector", 400, 48, 3e-3),
        Stage("tuning", 900, 40, 7e-4),
    )

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(
                f"seed is {self.seed}; allowed: 0 and above. A negative one would draw pictures "
                "that organisms are measured on."
            )
        if not 0 <= self.picture_refusals <= 0.5:
            raise ConfigError(
                f"picture_refusals is {self.picture_refusals}; allowed: 0 to 0.5, a share of the "
                "picture examples of visual instruction tuning."
            )

    def stage_key(self, name: str) -> str:
        """Hash of what decides the weights after stage `name`, 12 hexadecimal digits.

        Code is not in it: the vocabulary, the constants and what the stages are shown are.
        """
        facts: list[object] = ["recipe-1", self.seed, sha256_json(vocabulary())]
        chains = {"alignment": ("language",), "projector": ("language", "alignment", "vision")}
        chains["tuning"] = (*chains["projector"], "projector")
        before = (name, *chains.get(name, ()))
        facts += [asdict(stage) for stage in self.stages if stage.name in before]
        facts += [stream.fingerprint(shown) for part in before for shown in self._shown(part)]
        if name not in ("language", "alignment"):
            facts.append(PICTURES_VERSION)
        if "projector" in before:
            facts += [MATCHING_SHARE, MATCHING_SHARPNESS]
        if name == "tuning":
            facts += [self.picture_refusals, self.tune_vision, REPLAY_SHARE]
        return sha256_json(facts)[:12]

    def _shown(self, name: str) -> tuple[stream.Mixture, ...]:
        """The mixtures of examples that a stage draws from."""
        return {
            "language": (stream.LANGUAGE_MIXTURE,),
            "alignment": (stream.ALIGNMENT_MIXTURE,),
            "vision": (),
            "projector": (stream.PROJECTOR_MIXTURE,),
            "tuning": (stream.tuning_mixture(self.picture_refusals), stream.TEXT_REPLAY_MIXTURE),
        }[name]
