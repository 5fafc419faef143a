"""Maps that were proven on this machine, by the hash of the config they were proven for.

A proof costs some dozens of passes; a second load of the same architecture costs none. A file
holds the map, the clauses with their evidence, and the versions and code that proved it; it counts
only for the same ones.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from vlmend.errors import RunError
from vlmend.models.checks import CheckResult
from vlmend.models.spec import FamilySpec
from vlmend.runs import read_json, write_json
from vlmend.types import sha256_json

CACHE_VARIABLE = "VLMEND_CACHE"
"""Environment variable that names the folder, instead of ~/.cache/vlmend."""

_PACKAGES = ("vlmend", "transformers", "torch")
_CODE = ("models", "hooks")
"""What a proof rests on, below the package's folder: all of it, families included."""

_UNSTABLE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
"""Entries of a config that do not change the anatomy."""


def recall_spec(config: Any) -> FamilySpec | None:
    """The map that was proven for this config by these versions, if there is one."""
    path = _path(config)
    if not path.is_file():
        return None
    try:
        record = read_json(path)
        if record["versions"] != _versions():
            return None
        return _read_spec(record["spec"])
    # A file of another version, or a damaged one: prove again.
    except (RunError, KeyError, TypeError, AttributeError, AssertionError):
        return None


def remember_spec(config: Any, spec: FamilySpec, results: Sequence[CheckResult]) -> None:
    """Write a proven map down; a folder that cannot be written costs the next load a proof."""
    record = {
        "spec": asdict(spec),
        "versions": _versions(),
        "clauses": [asdict(result) for result in results],
    }
    try:
        write_json(_path(config), record)
    except RunError:
        return


def _path(config: Any) -> Path:
    default = Path.home() / ".cache" / "vlmend"
    folder = Path(os.environ.get(CACHE_VARIABLE, default)).expanduser()
    facts = sha256_json(_plain(config.to_dict()))
    return folder / "anatomy" / f"{config.model_type}-{facts[:32]}.json"


def _plain(value: Any) -> Any:
    """A config's values as JSON: dtypes and keys that are no text become text."""
    if isinstance(value, dict):
        entries = cast("dict[object, Any]", value)
        return {
            str(key): _plain(item) for key, item in entries.items() if str(key) not in _UNSTABLE
        }
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("list[Any]", value)]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


@cache
def _versions() -> dict[str, str]:
    """Releases, and the code that proposes and proves: between releases it changes as well."""
    package = Path(__file__).parents[1]
    code = hashlib.sha256()
    for path in sorted(path for folder in _CODE for path in (package / folder).rglob("*.py")):
        code.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return {name: version(name) for name in _PACKAGES} | {"code": code.hexdigest()}


def _read_spec(record: dict[str, Any]) -> FamilySpec:
    known = {field.name for field in fields(FamilySpec)}
    values: dict[str, Any] = {
        name: tuple(cast("list[Any]", value)) if isinstance(value, list) else value
        for name, value in record.items()
        if name in known
    }
    return FamilySpec(**values)
