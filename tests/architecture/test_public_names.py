"""`vlmend.<name>` resolves lazily, and its two tables say the same."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import vlmend


def typed_names() -> dict[str, str]:
    """Name -> module, as the TYPE_CHECKING block of the package tells type checkers."""
    tree = ast.parse(Path(vlmend.__file__).read_text(encoding="utf-8"))
    block = next(
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    return {
        alias.asname or "": str(statement.module)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }


def test_the_lazy_table_equals_the_typed_one() -> None:
    assert typed_names() == vlmend._HOMES


@pytest.mark.parametrize("name", sorted(vlmend._HOMES))
def test_every_public_name_resolves(name: str) -> None:
    value = getattr(importlib.import_module(vlmend._HOMES[name]), name)
    assert getattr(vlmend, name) is value
    assert name in dir(vlmend)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'load_vml'"):
        _ = vlmend.load_vml


def test_version_is_the_installed_one() -> None:
    assert vlmend.__version__ == importlib.import_module("importlib.metadata").version("vlmend")
