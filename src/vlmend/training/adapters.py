"""Adapters: what trains in a model, put on and taken off without a trace.

Two kinds. A *LoRA* adapter adds low-rank matrices to linear modules inside the decoder layers,
so the vision tower, the projector and the embeddings cannot be reached. *Full* weights take the
place of the decoder layers' own tensors, which are kept: one more copy of the decoder layers.

With the adapter taken off for a moment (`without_adapter`) the model is the reference; there is
never a second model in memory. Off is exact: the modules and tensors that stood there before
come back, so `vlm.weights_sha256` is the same before, while and after an adapter is on.

Reference: Hu et al., LoRA (ICLR 2022, arXiv 2106.09685), through PEFT.
"""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from vlmend._optional import require
from vlmend.errors import ConfigError, ModelError
from vlmend.models.hashing import hash_weights
from vlmend.models.spec import check_layers
from vlmend.models.vlm import Vlm
from vlmend.training.adapter_settings import AdapterKind, LoraSettings

TRAINING = "adapter in training"
"""The condition of a model whose adapter trains: what it computes has no fingerprint."""

PEFT_PREFIX = "base_model.model."
"""What PEFT puts before a module's name in its files."""

_PEFT_NAME = "default"
"""PEFT's name of the only adapter; its files leave it out."""

_ATTENTION = re.compile(r"attn|attention")
"""Modules of a decoder layer on whose way this stands belong to attention, others to the MLP."""


@dataclass(frozen=True)
class AdapterWeights:
    """An adapter as numbers: on no model.

    Attributes:
        kind: "lora" or "full".
        tensors: By name, on the CPU. LoRA: PEFT's names; full: the names of the model's tensors.
        rank: Rank of a LoRA adapter, else 0.
        alpha: Scale of a LoRA adapter, else 0.
    """

    kind: AdapterKind
    tensors: Mapping[str, Tensor]
    rank: int = 0
    alpha: float = 0.0

    @property
    def sha256(self) -> str:
        """Hash of kind, scale, names and numbers."""
        scale = {"kind": self.kind, "rank": self.rank, "alpha": float(self.alpha)}
        return hash_weights(self.tensors, scale)


class Adapter(ABC):
    """Weights that are on a model until `remove`, which also ends the `with` block.

    Attributes:
        vlm: The model.
        parameters: What trains, by the name that it is stored under.
    """

    kind: AdapterKind

    def __init__(self, vlm: Vlm, condition: str) -> None:
        """Note on the model that an adapter is on; the kinds put it there."""
        self.vlm = vlm
        self.parameters: Mapping[str, nn.Parameter] = {}
        self._flags = [(p, p.requires_grad) for p in vlm.model.parameters()]
        self._stack = ExitStack()
        self._stack.enter_context(vlm.adapted(condition, self._own_weights))

    @abstractmethod
    def _swap(self, *, on: bool) -> None:
        """Put the adapter's modules or tensors in place, or those that stood there before."""

    @abstractmethod
    def _own_weights(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The model's tensors without the adapter."""

    @abstractmethod
    def dense(self) -> dict[str, Tensor]:
        """By name, the model's tensors that the adapter changes, with the change in them."""

    @abstractmethod
    def weights(self) -> AdapterWeights:
        """A copy of its numbers."""

    def remove(self) -> None:
        """Take it off for good; the model is what it was before."""
        self._swap(on=False)
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


@contextmanager
def without_adapter(adapter: Adapter) -> Generator[None]:
    """The model as it is without the adapter while the context is open: the reference."""
    adapter._swap(on=False)
    try:
        yield
    finally:
        adapter._swap(on=True)


# ---- LoRA


def add_lora(
    vlm: Vlm, settings: LoraSettings | None = None, *, seed: int = 0, condition: str = TRAINING
) -> LoraAdapter:
    """Put a fresh LoRA adapter on the decoder layers; it changes nothing until it is trained.

    Args:
        vlm: The model; its own weights stop training.
        settings: Which modules; the default if none are given.
        seed: Seed of the first matrices; the second ones are zero.
        condition: What to call it in `vlm.conditions`.

    Raises:
        ConfigError: A layer or module that the model does not have.
        ModelError: A LoRA adapter is on already.
        MissingExtraError: PEFT is not installed.
    """
    settings = settings or LoraSettings()
    targets = lora_targets(vlm, settings)
    return LoraAdapter(vlm, targets, settings.rank, settings.alpha, seed, condition)


def lora_targets(vlm: Vlm, settings: LoraSettings) -> list[str]:
    """Full names of the linear modules in the decoder layers that settings choose, in order.

    Raises:
        ConfigError: A layer or module that the model does not have.
    """
    chosen = range(vlm.num_decoder_layers) if settings.layers is None else settings.layers
    check_layers(list(chosen), vlm.num_decoder_layers)
    found: dict[str, str] = {}
    for layer in sorted(set(chosen)):
        for name, module in vlm.decoder_layers[layer].named_modules():
            if _is_linear(module):
                found[f"{vlm.spec.decoder_layers}.{layer}.{name}"] = name
    names = {path.rpartition(".")[2] for path in found.values()}
    unknown = [m for m in settings.modules if m not in names | {"attention", "mlp"}]
    targets = [name for name, path in found.items() if _is_chosen(path, settings.modules)]
    if unknown or not targets:
        raise ConfigError(
            f"LoRA modules {', '.join(unknown or settings.modules)} are not in the decoder layers "
            f"of {vlm.name!r}. Allowed: attention, mlp, {', '.join(sorted(names))}."
        )
    return targets


def _is_linear(module: nn.Module) -> bool:
    # A model's own subclass may return more than a product, as routers do. Those of quantisers
    # have a forward of their own, too, and are linear.
    own = type(module).__module__.startswith("transformers.models.")
    return isinstance(module, nn.Linear) and not own


def _is_chosen(path: str, modules: Collection[str]) -> bool:
    part = "attention" if _ATTENTION.search(path) else "mlp"
    return part in modules or path.rpartition(".")[2] in modules


class LoraAdapter(Adapter):
    """Low-rank matrices beside linear modules, made by PEFT.

    Attributes:
        targets: Full names of the modules.
        rank: Rank of the matrices.
        alpha: Their scale times the rank.
    """

    kind = "lora"

    def __init__(
        self, vlm: Vlm, targets: Sequence[str], rank: int, alpha: float, seed: int, condition: str
    ) -> None:
        """Put it on; see `add_lora`."""
        require("peft", extra="train")
        lora_layer = require("peft.tuners.lora", extra="train").LoraLayer
        if any(isinstance(module, lora_layer) for module in vlm.model.modules()):
            raise ModelError(
                f"{vlm.name!r} has a LoRA adapter on already ({', '.join(vlm.conditions)}), and "
                "PEFT cannot put one on top. Take it off first, or merge it into the weights."
            )
        self.targets = tuple(targets)
        self.rank, self.alpha = rank, alpha
        self._own: dict[str, nn.Module] = {n: vlm.model.get_submodule(n) for n in targets}
        super().__init__(vlm, condition)
        try:
            self._inject(seed)
        except BaseException:
            self._adapted = {}
            self.remove()
            raise
        self._adapted = {name: vlm.model.get_submodule(name) for name in targets}
        self.parameters = self._find_parameters()

    def _inject(self, seed: int) -> None:
        peft = require("peft", extra="train")
        model = self.vlm.model
        config = peft.LoraConfig(
            r=self.rank, lora_alpha=self.alpha, target_modules=list(self.targets)
        )
        try:
            with torch.random.fork_rng(), warnings.catch_warnings():
                # PEFT 0.21 reads an attribute that transformers 5.23 renames: nothing to act on.
                warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
                torch.manual_seed(seed)
                wrapped = peft.get_peft_model(model, config)
        finally:
            # PEFT marks the model, and would take the next adapter for a second one.
            vars(model).pop("peft_config", None)
        model.eval()
        reached = set(wrapped.base_model.targeted_module_names)
        if reached != set(self.targets):
            wrong = sorted(reached ^ set(self.targets))
            raise ModelError(
                f"PEFT put the adapter on other modules of {self.vlm.name!r} than asked for: "
                f"{', '.join(wrong[:3])}. Choose other modules."
            )

    def _find_parameters(self) -> dict[str, nn.Parameter]:
        return {
            f"{PEFT_PREFIX}{target}.{name.replace(f'.{_PEFT_NAME}.', '.')}": parameter
            for target, module in self._adapted.items()
            for name, parameter in module.named_parameters()
            if not name.startswith("base_layer.")
        }

    def _swap(self, *, on: bool) -> None:
        for name, module in (self._adapted if on else self._own).items():
            self.vlm.model.set_submodule(name, module)

    def _own_weights(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        own: dict[str, Tensor] = {}
        targets = set(self.targets)
        for key, tensor in state.items():
            target = next((t for t in _parents(key) if t in targets), None)
            rest = key if target is None else key[len(target) + 1 :]
            if target is None:
                own[key] = tensor
            elif rest.startswith("base_layer."):
                own[f"{target}.{rest.removeprefix('base_layer.')}"] = tensor
            elif not rest.startswith("lora_"):
                own[key] = tensor  # taken off for the moment
        return own

    def dense(self) -> dict[str, Tensor]:
        """Weights with the low-rank product added, computed in float32 and rounded once."""
        merged: dict[str, Tensor] = {}
        for name, module in self._adapted.items():
            own: Any = self._own[name]
            layer: Any = module
            with torch.no_grad():
                delta: Tensor = layer.get_delta_weight(_PEFT_NAME)
                total = own.weight.float() + delta.float()
            merged[f"{name}.weight"] = total.to(own.weight.dtype)
        return merged

    def weights(self) -> AdapterWeights:
        """A copy of its numbers, under PEFT's names."""
        return AdapterWeights("lora", _copies(self.parameters), self.rank, self.alpha)


def _parents(key: str) -> Generator[str]:
    """The dotted names above a tensor, the nearest first."""
    while "." in key:
        key = key.rpartition(".")[0]
        yield key


# ---- full weights


def add_full(
    vlm: Vlm, layers: Sequence[int] | None = None, *, condition: str = TRAINING
) -> FullAdapter:
    """Train decoder layers themselves; embeddings, norm and unembedding stay as they are.

    Args:
        vlm: The model, in float32: smaller steps than its dtype knows would be lost.
        layers: Decoder layers (0-based); None for all.
        condition: What to call it in `vlm.conditions`.

    Raises:
        ConfigError: A layer that the model does not have, or weights in another dtype.
    """
    chosen = sorted(set(range(vlm.num_decoder_layers) if layers is None else layers))
    check_layers(chosen, vlm.num_decoder_layers)
    if vlm.dtype != torch.float32:
        raise ConfigError(
            f"full weights train in float32 only, and {vlm.name!r} is loaded in {vlm.dtype}. "
            "Load it with --dtype float32, or train a LoRA adapter."
        )
    return FullAdapter(
        vlm,
        {
            f"{vlm.spec.decoder_layers}.{layer}.{name}": parameter
            for layer in chosen
            for name, parameter in vlm.decoder_layers[layer].named_parameters()
        },
        condition,
        trains=True,
    )


class FullAdapter(Adapter):
    """Tensors in place of the model's own, which are kept for the reference and for `remove`."""

    kind = "full"

    def __init__(
        self, vlm: Vlm, tensors: Mapping[str, Tensor], condition: str, *, trains: bool
    ) -> None:
        """Put copies of tensors on.

        Args:
            vlm: The model.
            tensors: By the name of the tensor whose place they take.
            condition: What to call it.
            trains: Whether they, and nothing else, get gradients.
        """
        self._own: dict[str, nn.Parameter] = {n: vlm.model.get_parameter(n) for n in tensors}
        # Before anything is noted on the model: memory may not suffice for the copies.
        self._adapted = {
            name: nn.Parameter(
                tensor.detach().to(vlm.device, self._own[name].dtype, copy=True),
                requires_grad=trains,
            )
            for name, tensor in tensors.items()
        }
        super().__init__(vlm, condition)
        if trains:
            vlm.model.requires_grad_(False)
        self._swap(on=True)
        self.parameters = dict(self._adapted)

    def _swap(self, *, on: bool) -> None:
        for name, tensor in (self._adapted if on else self._own).items():
            parent, _, leaf = name.rpartition(".")
            setattr(self.vlm.model.get_submodule(parent), leaf, tensor)

    def _own_weights(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        # detached like those of a state dict: same memory, same version counter.
        own = {name: tensor.detach() for name, tensor in self._own.items()}
        return {key: own.get(key, tensor) for key, tensor in state.items()}

    def dense(self) -> dict[str, Tensor]:
        """Its tensors."""
        return {name: tensor.detach() for name, tensor in self._adapted.items()}

    def weights(self) -> AdapterWeights:
        """A copy of the tensors that differ from the model's own."""
        changed = {n: t for n, t in self._adapted.items() if not torch.equal(t, self._own[n])}
        return AdapterWeights("full", _copies(changed))


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
