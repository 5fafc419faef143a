"""Every registry line resolves, and no plug-in file is left out of its registry."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import vlmend
from vlmend.judges import registry as judges
from vlmend.models.families import FAMILIES
from vlmend.suites import registry as suites
from vlmend.training.data import registry as data

SRC = Path(vlmend.__file__).parent


def modules_defining(constant: str, folder: str) -> set[str]:
    """Modules of a folder that define a constant at the left margin."""
    pattern = re.compile(rf"^{constant}\b", re.MULTILINE)
    return {
        "vlmend." + ".".join(path.relative_to(SRC).with_suffix("").parts)
        for path in (SRC / folder).rglob("*.py")
        if pattern.search(path.read_text(encoding="utf-8"))
    }


def test_every_suite_line_resolves() -> None:
    for prefix, module in suites.PROVIDERS:
        found = [name for name in suites.suite_names() if name.startswith(prefix)]
        assert found, f"{module} offers no suite that starts with {prefix!r}"
    for name in suites.suite_names():
        assert suites.get_suite(name).name == name


def test_every_suite_names_a_judge_that_exists() -> None:
    for name in suites.suite_names():
        spec = suites.get_suite(name)
        assert spec.default_judge in judges.judge_names(), name
        # It is used where none is asked for, so it must do without a model of its own.
        assert not judges.get_judge_spec(spec.default_judge).target, name
        if spec.paper_judge.startswith(suites.NO_JUDGE):
            assert spec.paper_judge.removeprefix(suites.NO_JUDGE).strip(), name
        else:
            assert spec.paper_judge in ("", *judges.judge_names()), name


def test_every_suite_file_has_its_line() -> None:
    assert modules_defining("SPECS", "suites") <= {module for _, module in suites.PROVIDERS}


def test_every_data_line_resolves() -> None:
    for prefix, module in data.PROVIDERS:
        found = [name for name in data.data_names() if name.startswith(prefix)]
        assert found, f"{module} offers no data set that starts with {prefix!r}"
    for name in data.data_names():
        assert data.get_data(name).name == name


def test_every_data_file_has_its_line() -> None:
    assert modules_defining("SPECS", "training/data") <= {module for _, module in data.PROVIDERS}


@pytest.mark.parametrize("name", sorted(judges.PROVIDERS))
def test_every_judge_line_resolves(name: str) -> None:
    assert judges.get_judge_spec(name).name == name


def test_every_judge_file_has_its_line() -> None:
    assert modules_defining("JUDGE", "judges") <= set(judges.PROVIDERS.values())


def test_every_family_file_has_its_line() -> None:
    files = {path.stem for path in (SRC / "models" / "families").glob("*.py")} - {"__init__"}
    assert files == {name.replace("-", "_") for name in FAMILIES}
    assert all(spec.model_type == key for key, spec in FAMILIES.items())
