"""Settings of unlearning, checked when they are made: before any model is loaded.

Needs no torch, so that the command line can read them for its help.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

from vlmend.errors import ConfigError
from vlmend.models.spec import format_layers
from vlmend.training.adapter_settings import AdapterKind
from vlmend.training.records import read_settings
from vlmend.training.refusals import Match

ForgetTerm = Literal["ascent", "npo", "simnpo", "misdirect"]
RetainTerm = Literal["kl", "nll", "preserve"]


class LossRecipe(NamedTuple):
    """Which terms an objective is made of, and their weights when none are given.

    Attributes:
        forget: What is done to forget answers; None: nothing.
        retain: What holds retain answers in place; None: nothing.
        w_bad: Weight of the forget term.
        w_help: Weight of the match term: the likelihood of forget examples' targets.
        w_norm: Weight of the retain term.
        about: One line for people.
    """

    forget: ForgetTerm | None
    retain: RetainTerm | None
    w_bad: float
    w_help: float
    w_norm: float
    about: str

    @property
    def held(self) -> RetainTerm | None:
        """What holds retain answers in place, if it weighs anything."""
        return self.retain if self.w_norm else None

    @property
    def streams(self) -> tuple[str, ...]:
        """Data that the terms read."""
        return ("forget", "retain") if self.held else ("forget",)


OBJECTIVES = MappingProxyType(
    {
        "unlearn": LossRecipe(
            "ascent", "kl", 0.5, 1.0, 5.0, "ascent on forget answers, match, KL on retain answers"
        ),
        "ga": LossRecipe("ascent", None, 1.0, 0.0, 0.0, "unlearn without match and KL"),
        "grad-diff": LossRecipe(
            "ascent", "nll", 1.0, 0.0, 1.0, "ga, and likelihood of retain answers"
        ),
        "npo": LossRecipe("npo", "nll", 1.0, 0.0, 1.0, "grad-diff with NPO in place of the ascent"),
        "simnpo": LossRecipe("simnpo", "nll", 1.0, 0.0, 1.0, "npo without a reference"),
        "rmu": LossRecipe("misdirect", "preserve", 1.0, 0.0, 1200.0, "on a layer's states instead"),
        "sft": LossRecipe(
            None, "nll", 0.0, 1.0, 1.0, "match and retain likelihood alone: fine-tuning"
        ),
    }
)
"""The objectives, each the difference to an earlier one. Weights: 1200 as published by RMU; 1 where
a paper tunes them. Those of textual unlearning are open in the paper; its closest public ancestor
has 0.5 / 1 / 1, with which benign answers suffer (docs/how-to-unlearn.md)."""


@dataclass(frozen=True)
class UnlearningSettings:
    """Settings of unlearning.

    Attributes:
        objective: unlearn, ga, grad-diff, npo, simnpo, rmu or sft (docs/how-to-unlearn.md).
        w_bad: Weight of the forget term; None for the objective's own, as for the next two.
        w_help: Weight of the match term, the likelihood of targets.
        w_norm: Weight of the retain term.
        retain_term: "kl" or "nll" in place of the objective's own; None for its own.
        ceiling: How far an ascent goes: nats per token by which a forget answer becomes less
            likely than in the reference; from there the ascent leaves it alone.
        runaway_limit: Nats per token above which training has run away and stops: the mean KL
            of a step's retain answers, the rise of their NLL since the first step, or without a
            retain term how far an ascent is beyond the ceiling.
        stop_patience: Steps in a row with every forget answer at the ceiling, after which there
            is nothing left to unlearn and training stops; 0: never.
        stop_match_nll: Nats per token that the match term must be at or below for that.
        beta: Inverse temperature of npo and simnpo; None for 0.1 and 2.5, their papers'.
        gamma: Reward margin of simnpo.
        rmu_layer: Decoder layer (0-based) whose output rmu misdirects; None for L // 4, or the
            next one that runs without an image.
        rmu_coefficient: Length of the vector that rmu drives states to.
        match: Targets of the match term: "given" takes those of the data and refusals where
            there are none, "refusals" takes refusals throughout.
        adapter: "lora", or "full" for the decoder layers' own weights.
        rank: Rank of LoRA.
        alpha: Scale of LoRA; the update is alpha / rank times the product.
        layers: Decoder layers (0-based) that train; None for all (rmu: its own and two below).
        modules: LoRA: "attention", "mlp", or names of linear modules such as "q_proj".
        max_answer_tokens: Longer answers and targets are cut; None keeps them whole.

    Raises:
        ConfigError: Naming every setting that is out of range, or contradicts another.
    """

    objective: str = "unlearn"
    w_bad: float | None = None
    w_help: float | None = None
    w_norm: float | None = None
    retain_term: Literal["kl", "nll"] | None = None
    ceiling: float = 1.5
    runaway_limit: float = 2.0
    stop_patience: int = 20
    stop_match_nll: float = 0.05
    beta: float | None = None
    gamma: float = 0.0
    rmu_layer: int | None = None
    rmu_coefficient: float = 6.5
    match: Match = "given"
    adapter: AdapterKind = "lora"
    rank: int = 8
    alpha: float = 16.0
    layers: tuple[int, ...] | None = None
    modules: tuple[str, ...] = ("attention", "mlp")
    max_answer_tokens: int | None = 128

    def __post_init__(self) -> None:
        wrong = [
            f"{name}={getattr(self, name)!r} (allowed: {allowed})"
            for name, (is_right, allowed) in self._ranges().items()
            if not is_right
        ]
        if not wrong:
            wrong = self._contradictions()
        if wrong:
            raise ConfigError(f"unlearning settings out of range: {'; '.join(wrong)}.")

    @property
    def recipe(self) -> LossRecipe:
        """Terms and weights, with what was given in place of the objective's own."""
        own = OBJECTIVES[self.objective]
        return own._replace(
            retain=self.retain_term or own.retain,
            w_bad=own.w_bad if self.w_bad is None else self.w_bad,
            w_help=own.w_help if self.w_help is None else self.w_help,
            w_norm=own.w_norm if self.w_norm is None else self.w_norm,
        )

    @property
    def npo_beta(self) -> float:
        """`beta`, or its objective's default."""
        if self.beta is not None:
            return self.beta
        return 2.5 if self.objective == "simnpo" else 0.1

    def steered_layer(self, num_layers: int, image_only: Collection[int] = ()) -> int:
        """The layer that rmu misdirects.

        Args:
            num_layers: Layers of the decoder.
            image_only: Those that do not run without an image.
        """
        if self.rmu_layer is not None:
            return self.rmu_layer
        return next(i for i in range(num_layers // 4, num_layers) if i not in image_only)

    def trained_layers(self, num_layers: int, image_only: Collection[int] = ()) -> tuple[int, ...]:
        """Decoder layers that train, ascending; arguments as for `steered_layer`."""
        if self.layers is not None:
            return tuple(sorted(set(self.layers)))
        if self.recipe.forget == "misdirect":
            last = self.steered_layer(num_layers, image_only)
            return tuple(range(max(0, last - 2), last + 1))
        return tuple(range(num_layers))

    def unused(self) -> frozenset[str]:
        """Settings that this objective and this adapter never read."""
        recipe = self.recipe
        readers = {
            ("ceiling",): recipe.forget == "ascent",
            ("stop_patience",): recipe.forget == "ascent",
            ("stop_match_nll",): recipe.forget == "ascent" and bool(recipe.w_help),
            ("beta",): recipe.forget in ("npo", "simnpo"),
            ("gamma",): recipe.forget == "simnpo",
            ("rmu_layer", "rmu_coefficient"): recipe.forget == "misdirect",
            ("runaway_limit",): recipe.held in ("kl", "nll")
            or (recipe.held is None and recipe.forget == "ascent"),
            ("match",): bool(recipe.w_help),
            ("rank", "alpha", "modules"): self.adapter == "lora",
        }
        return frozenset(n for names, is_read in readers.items() if not is_read for n in names)

    def refuse_unread(self, role: str, given: str) -> None:
        """Refuse data that no term reads.

        Args:
            role: "forget" or "retain".
            given: What was given, for people.

        Raises:
            ConfigError: No term reads data of that role.
        """
        if role not in self.recipe.streams:
            others = [name for name, recipe in OBJECTIVES.items() if role in recipe.streams]
            raise ConfigError(
                f"{given} would be ignored: objective {self.objective!r} with w_norm="
                f"{self.recipe.w_norm:g} never reads {role} data. Leave it out, give a {role} "
                f"term a weight, or use an objective that has one: {', '.join(others)}."
            )

    def record(self) -> dict[str, Any]:
        """All settings as JSON."""
        return asdict(self) | {
            "layers": None if self.layers is None else list(self.layers),
            "modules": list(self.modules),
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> UnlearningSettings:
        """The settings of a record.

        Raises:
            ConfigError: A setting is unknown or out of range.
            TypeError: A value of the wrong type.
        """
        return read_settings(cls, record, "unlearning")

    def _ranges(self) -> dict[str, tuple[bool, str]]:
        weights = {
            name: (value is None or 0 <= value < math.inf, ">= 0")
            for name, value in zip(
                ("w_bad", "w_help", "w_norm"), (self.w_bad, self.w_help, self.w_norm), strict=True
            )
        }
        answer = self.max_answer_tokens
        return weights | {
            "objective": (self.objective in OBJECTIVES, ", ".join(OBJECTIVES)),
            "retain_term": (self.retain_term in (None, "kl", "nll"), "kl, nll"),
            "ceiling": (0 < self.ceiling < math.inf, "above 0, finite"),
            "runaway_limit": (0 < self.runaway_limit < math.inf, "above 0, finite"),
            "stop_patience": (self.stop_patience >= 0, ">= 0; 0 never stops"),
            "stop_match_nll": (0 <= self.stop_match_nll < math.inf, ">= 0, finite"),
            "beta": (self.beta is None or 0 < self.beta < math.inf, "above 0"),
            "gamma": (0 <= self.gamma < math.inf, ">= 0"),
            "rmu_layer": (self.rmu_layer is None or self.rmu_layer >= 0, ">= 0"),
            "rmu_coefficient": (0 < self.rmu_coefficient < math.inf, "above 0"),
            "match": (self.match in get_args(Match), "given, refusals"),
            "adapter": (self.adapter in get_args(AdapterKind), "lora, full"),
            "rank": (self.rank >= 1, ">= 1"),
            "alpha": (0 < self.alpha < math.inf, "above 0"),
            "layers": (self.layers is None or bool(self.layers), "at least one, or None for all"),
            "modules": (bool(self.modules), "attention, mlp, or names such as q_proj"),
            "max_answer_tokens": (answer is None or answer >= 1, ">= 1, or None for all"),
        }

    def _contradictions(self) -> list[str]:
        recipe = self.recipe
        found: list[str] = []
        if recipe.forget is None and recipe.w_bad:
            found.append(f"w_bad={self.w_bad} with {self.objective}, which has no forget term")
        if recipe.retain is None and recipe.w_norm:
            found.append(
                f"w_norm={self.w_norm} with {self.objective}, which has no retain term (give "
                "retain_term=kl or nll)"
            )
        if self.retain_term and not recipe.w_norm:
            found.append(
                f"retain_term={self.retain_term} with a weight of 0 (give w_norm above 0, or no "
                "retain_term)"
            )
        if self.retain_term and recipe.forget == "misdirect":
            found.append("retain_term with rmu, which holds states in place, not answers")
        if recipe.forget and not recipe.w_bad:
            found.append(f"w_bad=0 with {self.objective} (without a forget term it is sft)")
        if not (recipe.w_bad or recipe.w_help):
            found.append("w_bad and w_help are both 0: nothing is trained towards")
        return found


def name_unlearning(settings: UnlearningSettings, data: str, *, seed: int = 0) -> str:
    """The objective with the kind of its data, and the settings that make it another one.

    Settings that differ from the default count, except those that the objective never reads.

    Args:
        settings: The settings.
        data: "text", "pictures" or "mixed".
        seed: Of the run.

    Example:
        >>> name_unlearning(UnlearningSettings("npo", layers=(2, 3, 4)), "text", seed=1)
        'npo(text, layers=2-4, seed=1)'
    """
    default = asdict(UnlearningSettings(settings.objective))
    unused = settings.unused()
    changed = {k: v for k, v in asdict(settings).items() if v != default[k] and k not in unused}
    if settings.layers is not None:
        changed["layers"] = format_layers(settings.layers)
    if "modules" in changed:
        changed["modules"] = "+".join(settings.modules)
    if seed:
        changed["seed"] = seed
    return f"{settings.objective}({', '.join([data, *(f'{k}={v}' for k, v in changed.items())])})"
