"""What every repair offers, and how an artifact on disk finds its class again.

An artifact is a folder with `vlmend.json` (what it is, what it was fitted on) and tensors as
safetensors. `vlmend.json` names the repair's `kind`; `load_repair` knows the kinds.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, Self

from vlmend.errors import ArtifactError, RunError, UnknownNameError
from vlmend.models.vlm import Vlm
from vlmend.runs import read_json
from vlmend.types import Sample

ARTIFACT_FILE = "vlmend.json"

KINDS: dict[str, tuple[str, str]] = {
    "shiftdc": ("vlmend.repairs.shiftdc.repair", "ShiftDC"),
}
"""Kind in `vlmend.json` -> (module, class); imported on demand."""


class Repair(Protocol):
    """A mend for a VLM: fit, save, load, apply."""

    @property
    def name(self) -> str:
        """Short name of the method with its settings."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of everything in the repair that can change an answer."""
        ...

    def fit(self, vlm: Vlm, samples: Sequence[Sample]) -> Self:
        """Learn from samples; sets the attributes that end in `_`."""
        ...

    def save(self, folder: Path) -> Path:
        """Write the artifact whole or not at all."""
        ...

    @classmethod
    def load(cls, folder: Path, vlm: Vlm) -> Self:
        """Read an artifact and refuse one that was fitted on another model."""
        ...

    def apply(self, vlm: Vlm) -> AbstractContextManager[None]:
        """The VLM is repaired while the context is open, and as before after it."""
        ...


def read_artifact(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """Read `vlmend.json` of an artifact.

    Args:
        folder: The artifact.
        kind: Required kind, if one is.

    Raises:
        ArtifactError: No artifact, a damaged one, or one of another kind.
    """
    try:
        facts = read_json(folder / ARTIFACT_FILE)
    except RunError as error:
        raise ArtifactError(
            f"{str(folder)!r} is no repair artifact: {error} "
            "Give a folder that `vlmend repair ... --out FOLDER` wrote."
        ) from error
    if kind is not None and facts.get("kind") != kind:
        raise ArtifactError(
            f"{str(folder)!r} holds a repair of kind {facts.get('kind')!r}, not {kind!r}."
        )
    return facts


def load_repair(folder: Path, vlm: Vlm) -> Repair:
    """Load any repair artifact for a model.

    Raises:
        ArtifactError: Not an artifact, damaged, or fitted on another model.
        UnknownNameError: A kind of repair that this version does not know.
    """
    kind = str(read_artifact(folder).get("kind"))
    if kind not in KINDS:
        raise UnknownNameError("kind of repair", kind, KINDS)
    module, name = KINDS[kind]
    return getattr(importlib.import_module(module), name).load(folder, vlm)
