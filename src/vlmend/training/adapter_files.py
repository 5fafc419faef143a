"""Adapters on disk: LoRA as a PEFT folder that plain PEFT loads, full weights as safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors

from vlmend._optional import require
from vlmend.errors import ArtifactError, RunError
from vlmend.runs import read_json, replacing, write_json
from vlmend.training.adapters import PEFT_PREFIX, AdapterWeights

CONFIG_FILE = "adapter_config.json"
LORA_FILE = "adapter_model.safetensors"
FULL_FILE = "decoder.safetensors"

_OF_THE_SAVER = frozenset({"base_model_name_or_path", "peft_version", "revision", "auto_mapping"})
"""Entries of PEFT's config that say who saved it, not what it computes."""


def save_adapter(folder: Path, weights: AdapterWeights, *, base_model: str) -> Path:
    """Write an adapter; the weights' file comes last.

    Args:
        folder: Made if missing.
        weights: The adapter.
        base_model: What the base model is called, for PEFT.

    Returns:
        The folder.

    Raises:
        RunError: The disk is full or the folder cannot be written.
        MissingExtraError: PEFT is not installed.
    """
    if weights.kind == "lora":
        config = _peft_config(weights)
        write_json(folder / CONFIG_FILE, {**config, "base_model_name_or_path": base_model})
    plain = {name: tensor.contiguous() for name, tensor in weights.tensors.items()}
    with replacing(folder / _file_of(weights.kind == "lora")) as temporary:
        temporary.write_bytes(write_tensors(plain, metadata={"format": "pt"}))
    return folder


def read_adapter(folder: Path) -> AdapterWeights:
    """Read what `save_adapter` wrote.

    Raises:
        ArtifactError: Missing, damaged, or with PEFT settings that would compute something else.
    """
    is_lora = (folder / CONFIG_FILE).is_file()
    path = folder / _file_of(is_lora)
    try:
        tensors = read_tensors(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"the adapter's weights {str(path)!r} cannot be read: {error}. Give a folder that "
            "`vlmend repair unlearn --out FOLDER` wrote, or train it again."
        ) from error
    if not is_lora:
        return AdapterWeights("full", tensors)
    try:
        given = read_json(folder / CONFIG_FILE)
    except RunError as error:
        raise ArtifactError(f"the adapter has no usable config: {error}") from error
    try:
        weights = AdapterWeights("lora", tensors, int(given["r"]), float(given["lora_alpha"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{str(folder / CONFIG_FILE)!r} is no LoRA config with 'r' and 'lora_alpha' "
            f"({error!r}). Train the adapter again."
        ) from error
    _require_plain(folder, given, weights)
    return weights


def _file_of(is_lora: bool) -> str:
    return LORA_FILE if is_lora else FULL_FILE


def _peft_config(weights: AdapterWeights) -> dict[str, Any]:
    """PEFT's config of an adapter, as plain JSON."""
    targets = {key.removeprefix(PEFT_PREFIX).rsplit(".", 2)[0] for key in weights.tensors}
    config = require("peft", extra="train").LoraConfig(
        r=weights.rank, lora_alpha=weights.alpha, target_modules=sorted(targets)
    )
    config.inference_mode = True
    return {key: _plain(value) for key, value in config.to_dict().items()}


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    return sorted(map(str, value)) if isinstance(value, set) else value


def _require_plain(folder: Path, given: Mapping[str, Any], weights: AdapterWeights) -> None:
    """Refuse settings of PEFT that we never write: ignoring them would compute something else."""
    expected = _peft_config(weights)
    different = [
        key
        for key, value in given.items()
        if key not in _OF_THE_SAVER and value != expected.get(key) and (value or key in expected)
    ]
    if different:
        raise ArtifactError(
            f"{str(folder / CONFIG_FILE)!r} does not fit the adapter's tensors, or has settings "
            f"that vlmend does not know: {', '.join(sorted(different))}. Use an adapter that "
            "`vlmend repair unlearn` wrote, unchanged."
        )
