"""The set-up files agree with each other: pins, extras, scripts, direction of imports."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from vlmend._optional import Extra

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PYPROJECT["project"]["optional-dependencies"]
WANTED = [*PYPROJECT["project"]["dependencies"], *(line for ex in EXTRAS.values() for line in ex)]


def pin_lines() -> list[str]:
    """The lines of constraints.txt that are not comments."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_every_pin_is_exact_public_and_given_once() -> None:
    lines = pin_lines()
    wrong = [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)]
    assert not wrong, "neither ranges nor local tags such as +cpu: other indexes lack them"
    assert lines == sorted(set(lines), key=lambda line: line.partition("==")[0])


@pytest.mark.parametrize("wanted", WANTED)
def test_every_dependency_has_a_pin_in_its_range(wanted: str) -> None:
    pins = dict(line.split("==") for line in pin_lines())
    requirement = Requirement(wanted)
    assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


def test_require_knows_the_extras() -> None:
    assert set(get_args(Extra)) == EXTRAS.keys() - {"dev"}


@pytest.mark.parametrize("script", [".ci/run", ".ci/setup"])
def test_scripts_run_and_stop_at_the_first_error(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    assert "set -euo pipefail" in (ROOT / script).read_text()


def test_a_layer_in_parentheses_is_still_to_come() -> None:
    contracts = PYPROJECT["tool"]["importlinter"]["contracts"]
    layers = next(one for one in contracts if one["id"] == "direction")["layers"]
    for name in re.findall(r"\((\w+)\)", " ".join(layers)):
        here = ROOT / "src" / "vlmend" / name / "__init__.py"
        assert not here.exists(), f"{name} exists: drop its parentheses in pyproject.toml"
