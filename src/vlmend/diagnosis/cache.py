"""Results by content: what was computed from the same facts before is read, not computed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vlmend.errors import ConfigError, RunError
from vlmend.runs import read_json, write_json
from vlmend.types import sha256_json

SCHEMA = 1

_PACKAGES = ("vlmend", "numpy", "scikit-learn", "scipy", "torch")
"""Another version of these may give another result."""


def cached_json(
    folder: Path, name: str, facts: Mapping[str, Any], compute: Callable[[], Any]
) -> Any:
    """A result from `folder/cache`, computed and kept there when it is missing.

    The versions of vlmend and of what it computes with count as facts.

    Args:
        folder: Where the folder `cache` is, or is made.
        name: What it is, e.g. "probes": small letters, digits and hyphens.
        facts: All that decides the result, JSON-able: settings, seeds, and the content hashes of
            what it is computed from (`Activations.sha256`).
        compute: Computes it: JSON-able, without NaN and infinity.

    Returns:
        The result as JSON gives it back, fresh or not: tuples are lists, keys are strings.

    Raises:
        ConfigError: A name that is not allowed.
        ValueError: NaN or infinity in the facts or the result, or something that is not
            JSON-able: a bug of ours.
        RunError: The file is damaged, or cannot be written.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ConfigError(
            f"{name!r} cannot name a cached result. Allowed: small letters, digits and hyphens, "
            "e.g. 'probes'."
        )
    versions = {package: version(package) for package in _PACKAGES}
    # Through JSON first, so that a fact that no file can hold is refused before the work.
    facts = json.loads(json.dumps(facts, allow_nan=False))
    identity = {"schema": SCHEMA, "name": name, "versions": versions, "facts": facts}
    path = folder / "cache" / f"{name}-{sha256_json(identity)[:32]}.json"
    if not path.exists():
        write_json(path, {**identity, "value": compute()})
    stored = read_json(path)
    if "value" not in stored or {key: stored.get(key) for key in identity} != identity:
        raise RunError(
            f"{str(path)!r} does not hold what its name says. Delete it; it is then made again."
        )
    return stored["value"]
