"""ShiftDC on disk: `direction.safetensors` and `vlmend.json`.

Shapes: K = rank, D = width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors

from vlmend.directions.direction import Direction
from vlmend.errors import ArtifactError, ConfigError, DataError, UnknownNameError
from vlmend.repairs.protocol import ARTIFACT_FILE, read_artifact
from vlmend.repairs.shiftdc.settings import ShiftDCSettings
from vlmend.runs import replacing, write_json

_SCHEMA = 2
"""2: K vectors a layer, where 1 had a single one."""

_TENSORS = "direction.safetensors"

_REQUIRED = (
    "schema",
    "settings",
    "tensors_sha256",
    "model",
    "weights_sha256",
    "num_decoder_layers",
    "items",
)
"""What `vlmend.json` must hold to be used."""

_FAULTS = (
    OSError,
    SafetensorError,
    LookupError,
    TypeError,
    ValueError,
    ConfigError,
    DataError,
    UnknownNameError,
)
"""What reading a damaged artifact can raise."""


def write_artifact(
    folder: Path,
    settings: ShiftDCSettings,
    directions: Mapping[int, Direction],
    facts: Mapping[str, Any],
) -> Path:
    """Write both files.

    `vlmend.json` comes last and holds the hash of the tensors, so that half an artifact is never
    taken for one.

    Args:
        folder: Made if missing.
        settings: How it was fitted.
        directions: By decoder layer.
        facts: What it was fitted on.

    Returns:
        The folder.

    Raises:
        RunError: The disk is full or the folder cannot be written.
    """
    blob = write_tensors({f"direction.{layer}": d.vectors for layer, d in directions.items()})
    with replacing(folder / _TENSORS) as temporary:
        temporary.write_bytes(blob)
    record = {
        "kind": "shiftdc",
        "schema": _SCHEMA,
        "settings": asdict(settings),
        "tensors_sha256": hashlib.sha256(blob).hexdigest(),
        **facts,
    }
    write_json(folder / ARTIFACT_FILE, record)
    return folder


def read_shiftdc(folder: Path) -> tuple[ShiftDCSettings, dict[int, Direction], dict[str, Any]]:
    """Read both files.

    Returns:
        Settings, directions by decoder layer, and what it was fitted on.

    Raises:
        ArtifactError: Of another kind or schema, or damaged.
    """
    record = read_artifact(folder, "shiftdc")
    if record.get("schema") != _SCHEMA:
        raise ArtifactError(
            f"the ShiftDC artifact in {str(folder)!r} has schema {record.get('schema')!r}, and "
            f"this version reads {_SCHEMA}. Fit again with `vlmend repair shiftdc`."
        )
    try:
        settings, directions = _read_parts(folder, record)
    except _FAULTS as error:
        raise ArtifactError(
            f"the ShiftDC artifact in {str(folder)!r} is damaged: "
            f"{type(error).__name__}: {error}. Fit again with `vlmend repair shiftdc`."
        ) from error
    outside = ("kind", "schema", "settings", "tensors_sha256")
    return settings, directions, {k: value for k, value in record.items() if k not in outside}


def _read_parts(
    folder: Path, record: Mapping[str, Any]
) -> tuple[ShiftDCSettings, dict[int, Direction]]:
    """Settings and directions of an artifact; any fault of theirs is raised as it comes."""
    missing = [key for key in _REQUIRED if key not in record]
    if missing:
        raise ValueError(f"{ARTIFACT_FILE} lacks {', '.join(missing)}")
    given = dict(record["settings"])
    layers = given.pop("layers")
    settings = ShiftDCSettings(tuple(map(int, layers)) if layers is not None else None, **given)
    blob = (folder / _TENSORS).read_bytes()
    if hashlib.sha256(blob).hexdigest() != record["tensors_sha256"]:
        raise ValueError(f"{_TENSORS} is not the file that {ARTIFACT_FILE} was written with")
    directions = {
        int(key.removeprefix("direction.")): Direction(s_KD, settings.estimator)
        for key, s_KD in read_tensors(blob).items()
    }
    ranks = {direction.rank for direction in directions.values()}
    if ranks != {settings.rank}:
        raise ValueError(f"it has directions of rank {sorted(ranks)}, not {settings.rank}")
    if not isinstance(record["items"], dict):
        raise TypeError("'items' must map ids to prompt hashes")
    count = int(record["num_decoder_layers"])
    wanted = set(settings.layers or ())
    if not wanted <= set(directions) <= set(range(count)):
        raise ValueError(f"it has directions for layers {sorted(directions)} of {count}")
    return settings, directions
