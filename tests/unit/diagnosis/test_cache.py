from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlmend.diagnosis.cache import cached_json
from vlmend.errors import ConfigError, RunError

FACTS = {"acts": "ab12", "folds": 5, "layers": (1, 2)}


def refuse() -> Any:
    raise AssertionError("computed again")


def test_the_same_facts_are_not_computed_twice(tmp_path: Path) -> None:
    first = cached_json(tmp_path, "probes", FACTS, lambda: {1: (0.5, None)})
    assert first == {"1": [0.5, None]}
    # Lists and tuples, and the order of keys, are the same facts.
    again = {"layers": [1, 2], "folds": 5, "acts": "ab12"}
    assert cached_json(tmp_path, "probes", again, refuse) == first
    (path,) = (tmp_path / "cache").iterdir()
    assert path.name.startswith("probes-")
    assert json.loads(path.read_text())["facts"] == again


@pytest.mark.parametrize(
    ("name", "facts"),
    [("maps", FACTS), ("probes", FACTS | {"folds": 4}), ("probes", FACTS | {"seed": 0})],
)
def test_another_fact_is_another_result(tmp_path: Path, name: str, facts: dict[str, Any]) -> None:
    cached_json(tmp_path, "probes", FACTS, lambda: "old")
    assert cached_json(tmp_path, name, facts, lambda: "new") == "new"
    assert cached_json(tmp_path, "probes", FACTS, refuse) == "old"


def test_another_version_computes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached_json(tmp_path, "probes", FACTS, lambda: "old")
    monkeypatch.setattr("vlmend.diagnosis.cache.version", lambda _package: "99")
    assert cached_json(tmp_path, "probes", FACTS, lambda: "new") == "new"


@pytest.mark.parametrize("value", [float("nan"), {"a": [float("inf")]}])
def test_nan_is_refused_and_nothing_is_kept(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        cached_json(tmp_path, "probes", FACTS, lambda: value)
    assert cached_json(tmp_path, "probes", FACTS, lambda: "mended") == "mended"


def test_nan_among_the_facts_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        cached_json(tmp_path, "probes", {"c": float("nan")}, refuse)


def test_a_failure_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        cached_json(tmp_path, "probes", FACTS, refuse)
    assert cached_json(tmp_path, "probes", FACTS, lambda: 1) == 1


@pytest.mark.parametrize("damaged", ["{", "[]", "{}", '{"value": 3, "facts": {}}'])
def test_a_damaged_file_is_named(tmp_path: Path, damaged: str) -> None:
    cached_json(tmp_path, "probes", FACTS, lambda: 1)
    (path,) = (tmp_path / "cache").iterdir()
    path.write_text(damaged)
    with pytest.raises(RunError, match=path.name):
        cached_json(tmp_path, "probes", FACTS, refuse)


@pytest.mark.parametrize("name", ["", "../up", "Probes", "a b", "-a"])
def test_names_are_checked(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a cached result"):
        cached_json(tmp_path, name, FACTS, refuse)
