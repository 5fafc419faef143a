"""`require` imports what is there and says how to install what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlmend._optional import require
from vlmend.errors import MissingExtraError


def test_an_installed_module_is_returned() -> None:
    assert require("json", extra="train") is json


def test_a_missing_package_names_the_pip_line() -> None:
    line = r"'no_such_package'.*pip install 'vlmend\[scale\]'"
    with pytest.raises(MissingExtraError, match=line):
        require("no_such_package", extra="scale")


def test_a_missing_submodule_says_that_another_version_is_there() -> None:
    with pytest.raises(MissingExtraError, match=r"'json\.no_such_module' is not.*another version"):
        require("json.no_such_module", extra="serve")


def test_a_package_broken_inside_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_inside.py").write_text("import something_it_needs\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="something_it_needs"):
        require("broken_inside", extra="judges")
