"""Settings of layer-wise PPO and its twins, checked when they are made: before any model is loaded.

Needs no torch, so that the command line can read them for its help.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from vlmend.errors import ConfigError
from vlmend.models.spec import format_layers
from vlmend.training.adapter_settings import AdapterKind
from vlmend.training.records import read_settings

Algorithm = Literal["ppo", "grpo", "sft"]
Adapters = Literal["shared", "per-exit"]
KlControl = Literal["fixed", "adaptive"]
Exits = Literal["random", "all"] | tuple[int, ...]

HARMFUL, BENIGN = "harmful", "benign"
"""Names of the streams of prompts."""

GIVEN = "given"
"""Name of the stream of examples whose answers are learnt beside the sampled ones."""

_SAMPLING = (
    "temperature",
    "kl_coefficient",
    "kl_control",
    "epochs",
    "minibatches",
    "target_kl",
    "clip",
    "entropy_coefficient",
    "reward_clip",
    "cut_penalty",
)
"""Settings of what samples its answers."""

_OF_ONE_ALGORITHM = {
    "ppo": (
        *("gamma", "lam", "value_coefficient", "value_clip", "whiten_advantages"),
        "ptx_coefficient",
    ),
    "grpo": ("samples", "scale_advantages"),
}

_OF_LORA = ("rank", "alpha", "modules")

_OF_ADAPTIVE_CONTROL = ("kl_target", "kl_horizon")


@dataclass(frozen=True)
class LayerPPOSettings:
    """Settings of layer-wise PPO.

    Attributes:
        algorithm: "ppo"; "grpo", which has no critic and compares several answers to a prompt;
            or "sft", the supervised twin: likelihood of refusals and of given answers.
        exits: Vision exits to train at: "random" (a fresh one of all for every prompt), "all"
            (every prompt at every exit), or a list, a fresh one of which every prompt gets.
        adapters: "shared" by all exits, or "per-exit": one after the other.
        max_new_tokens: Most tokens of a sampled answer.
        temperature: Of sampling.
        samples: Answers to every prompt that grpo compares.
        epochs: How often the answers of a step are learnt from.
        minibatches: Updates per epoch.
        clip: Half the width of the range of probability ratios.
        target_kl: Nats per token between the policy and the one that sampled, from which the
            other updates of a step are left out.
        gamma: Discount per token.
        lam: Between one step ahead (0) and the whole answer (1) in the advantages.
        whiten_advantages: Scale advantages of a step to mean 0 and variance 1.
        scale_advantages: grpo: divide by the standard deviation of the group.
        value_coefficient: Weight of the value loss.
        value_clip: Half the width of the range of new values; None for no limit.
        entropy_coefficient: Weight of the entropy bonus.
        ptx_coefficient: Weight of the likelihood of given answers, at the exit that the model is
            used at (PPO-ptx): those of data of their own or, without such, of the benign prompts.
        kl_coefficient: Price of a nat between the policy and the model without the adapter.
        kl_control: "fixed", or "adaptive": the price follows kl_target.
        kl_target: Nats per answer that an adaptive price aims at.
        kl_horizon: Answers over which an adaptive price adapts.
        reward_clip: Largest standardised score, in either direction.
        cut_penalty: Taken off the score of an answer that does not end.
        adapter: "lora", or "full" for the decoder layers' own weights.
        rank: Rank of LoRA.
        alpha: Scale of LoRA; the update is alpha / rank times the product.
        layers: Decoder layers (0-based) that train; None for all.
        modules: "attention", "mlp", or names of linear modules such as "q_proj".

    Raises:
        ConfigError: Naming every setting that is out of range.
    """

    algorithm: Algorithm = "ppo"
    exits: Exits = "random"
    adapters: Adapters = "shared"
    max_new_tokens: int = 128
    temperature: float = 1.0
    samples: int = 4
    epochs: int = 2
    minibatches: int = 2
    clip: float = 0.2
    target_kl: float = 0.1
    gamma: float = 1.0
    lam: float = 0.95
    whiten_advantages: bool = True
    scale_advantages: bool = True
    value_coefficient: float = 0.1
    value_clip: float | None = 0.2
    entropy_coefficient: float = 0.0
    ptx_coefficient: float = 0.0
    kl_coefficient: float = 0.05
    kl_control: KlControl = "fixed"
    kl_target: float = 6.0
    kl_horizon: float = 10_000.0
    reward_clip: float = 5.0
    cut_penalty: float = 1.0
    adapter: AdapterKind = "lora"
    rank: int = 8
    alpha: float = 16.0
    layers: tuple[int, ...] | None = None
    modules: tuple[str, ...] = ("q_proj", "v_proj")

    def __post_init__(self) -> None:
        wrong = [
            f"{name}={getattr(self, name)!r} (allowed: {allowed})"
            for name, (is_right, allowed) in self._ranges().items()
            if not is_right
        ]
        if wrong:
            raise ConfigError(f"layer-ppo settings out of range: {'; '.join(wrong)}.")

    @property
    def learns_given(self) -> bool:
        """Whether given answers are learnt beside the sampled ones."""
        return self.algorithm == "ppo" and self.ptx_coefficient > 0

    def unused(self) -> frozenset[str]:
        """Settings that this algorithm and this adapter never read."""
        names = {n for algorithm, own in _OF_ONE_ALGORITHM.items() for n in own}
        names -= set(_OF_ONE_ALGORITHM.get(self.algorithm, ()))
        if self.algorithm == "sft":
            names |= set(_SAMPLING)
        if self.algorithm == "sft" or self.kl_control == "fixed":
            names |= set(_OF_ADAPTIVE_CONTROL)
        if self.adapter == "full":
            names |= set(_OF_LORA)
        return frozenset(names)

    def record(self) -> dict[str, Any]:
        """All settings as JSON."""
        return asdict(self) | {
            "exits": self.exits if isinstance(self.exits, str) else list(self.exits),
            "layers": None if self.layers is None else list(self.layers),
            "modules": list(self.modules),
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> LayerPPOSettings:
        """The settings of a record.

        Artifacts of early versions also hold `kl_estimator`, which is always k1 now.

        Raises:
            ConfigError: A setting is unknown or out of range; or PPO with another estimator.
            TypeError: A value of the wrong type.
        """
        kept = {name: value for name, value in record.items() if name != "kl_estimator"}
        settings = read_settings(cls, kept, "layer-ppo")
        estimator = record.get("kl_estimator", "k1")
        if settings.algorithm == "ppo" and estimator != "k1":
            raise ConfigError(
                f"trained with kl_estimator={estimator!r} (allowed: 'k1'): as a reward that does "
                "not hold the policy at the reference. Train it again."
            )
        return settings

    def _ranges(self) -> dict[str, tuple[bool, str]]:
        return (
            self._ranges_of_what_trains()
            | {
                name: (0 < getattr(self, name) < math.inf, "above 0, finite")
                for name in ("temperature", "target_kl", "kl_target", "kl_horizon", "reward_clip")
            }
            | {
                name: (0 <= getattr(self, name) < math.inf, ">= 0, finite")
                for name in (
                    "value_coefficient",
                    "entropy_coefficient",
                    "ptx_coefficient",
                    "kl_coefficient",
                    "cut_penalty",
                )
            }
            | {
                "max_new_tokens": (self.max_new_tokens >= 1, ">= 1"),
                "samples": (self.samples >= 2, ">= 2"),
                "epochs": (self.epochs >= 1, ">= 1"),
                "minibatches": (self.minibatches >= 1, ">= 1"),
                "clip": (0 < self.clip < 1, "above 0, below 1"),
                "gamma": (0 < self.gamma <= 1, "above 0, at most 1"),
                "lam": (0 <= self.lam <= 1, "0 to 1"),
                "value_clip": (
                    self.value_clip is None or 0 < self.value_clip < math.inf,
                    "above 0, or None for no limit",
                ),
                "kl_control": (self.kl_control in get_args(KlControl), "fixed, adaptive"),
            }
        )

    def _ranges_of_what_trains(self) -> dict[str, tuple[bool, str]]:
        exits = self.exits
        known = exits in ("random", "all") if isinstance(exits, str) else bool(exits)
        return {
            "algorithm": (self.algorithm in get_args(Algorithm), "ppo, grpo, sft"),
            "exits": (known, "random, all, or at least one exit"),
            "adapters": (self.adapters in get_args(Adapters), "shared, per-exit"),
            "adapter": (self.adapter in get_args(AdapterKind), "lora, full"),
            "rank": (self.rank >= 1, ">= 1"),
            "alpha": (0 < self.alpha < math.inf, "above 0, finite"),
            "layers": (self.layers is None or bool(self.layers), "at least one, or None for all"),
            "modules": (bool(self.modules), "attention, mlp, or names such as q_proj"),
        }


def name_layer_ppo(settings: LayerPPOSettings, *, seed: int = 0) -> str:
    """The algorithm with its exits, and the settings that make it another one.

    Settings that differ from the default count, except those that the algorithm never reads.

    Args:
        settings: The settings.
        seed: Of the run.

    Example:
        >>> name_layer_ppo(LayerPPOSettings(exits=(1, 2, 5), rank=4), seed=1)
        'layer-ppo(exits=1-2,5, rank=4, seed=1)'
    """
    default, unused = asdict(LayerPPOSettings()), settings.unused()
    changed = {k: v for k, v in asdict(settings).items() if v != default[k] and k not in unused}
    changed.pop("algorithm", None)
    changed["exits"] = (
        settings.exits if isinstance(settings.exits, str) else format_layers(settings.exits)
    )
    if settings.layers is not None:
        changed["layers"] = format_layers(settings.layers)
    if "modules" in changed:
        changed["modules"] = "+".join(settings.modules)
    if seed:
        changed["seed"] = seed
    order = ["exits", *(key for key in changed if key != "exits")]
    return f"layer-{settings.algorithm}({', '.join(f'{key}={changed[key]}' for key in order)})"
