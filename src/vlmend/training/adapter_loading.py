"""Putting a trained adapter on a model, and proving that it does something and nothing else.

Adapters that silently do nothing are a known plague: keys that match nothing, weights that are
still zero. So every tensor must find its place in the decoder layers, no place may stay empty,
and the logits of a probe prompt must change.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from vlmend.errors import ArtifactError
from vlmend.evals.controls import blank_image
from vlmend.models.hashing import hash_weights
from vlmend.models.vlm import Vlm
from vlmend.training.adapters import (
    PEFT_PREFIX,
    Adapter,
    AdapterWeights,
    FullAdapter,
    LoraAdapter,
    without_adapter,
)
from vlmend.types import user

_PROBE = "What do you see, and what would you do with it? Explain it step by step."
"""Any prompt will do: an adapter that is there changes some logit of every prompt."""

_PROBE_SIZE = (64, 64)
"""Width and height of the probe's picture; the processor scales it."""


def put_on(vlm: Vlm, weights: AdapterWeights, condition: str, *, proven: bool = False) -> Adapter:
    """Put a trained adapter on a model and prove that it does something.

    Args:
        vlm: The model.
        weights: The adapter.
        condition: What to call it in `vlm.conditions`.
        proven: It was proven on this model before; the probe does not run again.

    Raises:
        ArtifactError: A tensor has no place in this model's decoder layers, one is missing or of
            another shape, or the output is the same with the adapter as without.
        ModelError: A LoRA adapter is on already.
    """
    adapter = _put_lora(vlm, weights, condition) if weights.kind == "lora" else None
    if adapter is None:
        _check_names(vlm, {name: name for name in weights.tensors})
        _check_shapes(weights.tensors, dict(vlm.model.named_parameters()))
        adapter = FullAdapter(vlm, weights.tensors, condition, trains=False)
    if proven:
        return adapter
    try:
        require_effect(adapter)
    except BaseException:
        adapter.remove()
        raise
    return adapter


def _put_lora(vlm: Vlm, weights: AdapterWeights, condition: str) -> LoraAdapter:
    modules = {key: key.removeprefix(PEFT_PREFIX).rsplit(".", 2)[0] for key in weights.tensors}
    _check_names(vlm, modules)
    targets = list(dict.fromkeys(modules.values()))
    adapter = LoraAdapter(vlm, targets, weights.rank, weights.alpha, 0, condition)
    try:
        _check_shapes(weights.tensors, adapter.parameters)
        missing = sorted(set(adapter.parameters) - set(weights.tensors))
        if missing:
            raise ArtifactError(
                f"the adapter lacks {len(missing)} tensors, the first is {missing[0]!r}. It is "
                "damaged: train it again."
            )
        with torch.no_grad():
            for name, parameter in adapter.parameters.items():
                parameter.copy_(weights.tensors[name])
                parameter.requires_grad_(False)
    except BaseException:
        adapter.remove()
        raise
    return adapter


def _check_names(vlm: Vlm, modules: Mapping[str, str]) -> None:
    """Every tensor must belong to a decoder layer of the model; gives each name's module."""
    inside = f"{vlm.spec.decoder_layers}."
    known = {name for name, _ in vlm.model.named_modules()}
    known |= {name for name, _ in vlm.model.named_parameters()}
    foreign = [k for k, name in modules.items() if name not in known or not name.startswith(inside)]
    if foreign or not modules:
        first = f", the first is {foreign[0]!r}" if foreign else ""
        raise ArtifactError(
            f"{len(foreign)} of {len(modules)} tensors of the adapter have no place in the decoder "
            f"layers of {vlm.name!r}{first}. It was trained on a model of another kind, or is "
            "damaged."
        )


def _check_shapes(tensors: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if name not in places or places[name].shape != tensor.shape:
            wanted = list(places[name].shape) if name in places else "no such tensor"
            raise ArtifactError(
                f"the adapter's tensor {name!r} has shape {list(tensor.shape)}, and the model "
                f"wants {wanted}. It was trained on another model, or with another rank."
            )


def require_effect(adapter: Adapter) -> None:
    """Refuse an adapter that silently does nothing.

    Raises:
        ArtifactError: The logits of a probe prompt are bit-identical with and without it.
    """
    with_it = probe_logits(adapter.vlm)
    with without_adapter(adapter):
        without = probe_logits(adapter.vlm)
    if torch.equal(with_it, without):
        raise ArtifactError(
            "the adapter does nothing: the logits of a probe prompt are the same with it as "
            "without. It was never trained, or its weights are zero: train it again."
        )


def probe_logits(vlm: Vlm) -> Tensor:
    """(1, V) logits after a probe prompt with a picture, so that every decoder layer runs."""
    return vlm.forward_prompt(vlm.encode([user(_PROBE, blank_image(_PROBE_SIZE))]))


@contextmanager
def merged_in(vlm: Vlm, weights: AdapterWeights) -> Generator[Tensor]:
    """The model with an adapter's change in its own weights while the context is open.

    Memory must hold the changed tensors once more.

    Args:
        vlm: The model, without the adapter.
        weights: The adapter.

    Yields:
        The `probe_logits` of the model with the adapter beside its weights: what those of the
        merged one are to be.

    Raises:
        ArtifactError: The adapter does not fit, or does nothing.
    """
    with put_on(vlm, weights, "adapter to be merged") as adapter:
        expected = probe_logits(vlm)
        dense = adapter.dense()
    with FullAdapter(vlm, dense, "merged adapter", trains=False):
        yield expected


def frozen_sha256(vlm: Vlm) -> str:
    """Hash of all that must stay as it is: every tensor outside of the decoder layers.

    Vision tower, projector, embeddings, final norm and unembedding are among them.
    """
    inside = f"{vlm.spec.decoder_layers}."
    weights = vlm.own_weights().items()
    return hash_weights({name: t for name, t in weights if not name.startswith(inside)}, {})
