from __future__ import annotations

import sys
import types
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest

from vlmend.errors import ConfigError
from vlmend.plugins import index_plugins, load_plugin


@dataclass(frozen=True)
class Oven:
    name: str


@dataclass(frozen=True)
class Kiln:
    name: str


def point(name: str, value: str = "bakery:OVEN") -> EntryPoint:
    return EntryPoint(name, value, "vlmend.ovens")


@pytest.fixture
def bakery(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("bakery")
    module.OVEN = Oven("hot")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bakery", module)
    return module


def test_plugins_are_found_by_name_and_not_imported() -> None:
    found = index_plugins("oven", [point("hot"), point("cold", "cellar:OVEN")], {"warm": "vlmend"})
    assert {name: p.value for name, p in found.items()} == {
        "hot": "bakery:OVEN",
        "cold": "cellar:OVEN",
    }
    assert "cellar" not in sys.modules


def test_one_package_seen_twice_is_one() -> None:
    assert list(index_plugins("oven", [point("hot"), point("hot")], {})) == ["hot"]


@pytest.mark.parametrize(
    ("points", "taken", "other"),
    [
        ([point("hot")], {"hot": "vlmend"}, "vlmend"),
        ([point("hot", "cellar:OVEN"), point("hot")], {}, "cellar:OVEN"),
    ],
    ids=["ours", "another-plug-in"],
)
def test_a_name_that_is_taken_is_refused(
    points: list[EntryPoint], taken: dict[str, str], other: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        index_plugins("oven", points, taken)
    assert str(caught.value) == (
        f"the plug-in 'bakery:OVEN' offers a oven named 'hot', and so does {other!r}. "
        "Uninstall or rename one of them."
    )


def test_a_plugin_is_imported_when_asked_for(bakery: types.ModuleType) -> None:
    assert load_plugin("oven", point("hot"), Oven) is bakery.OVEN


@pytest.mark.parametrize("name", ["cold", "hot"])
def test_what_is_not_as_promised_is_refused(bakery: types.ModuleType, name: str) -> None:
    expected = Oven if name == "cold" else Kiln
    with pytest.raises(ConfigError) as caught:
        load_plugin("oven", point(name), expected)
    assert str(caught.value) == (
        f"the plug-in oven {name!r} (bakery:OVEN) must be a {expected.__name__} of that name, but "
        "is Oven(name='hot'). Tell the author of the package that offers it."
    )


@pytest.mark.parametrize("value", ["no_such_bakery:OVEN", "bakery:KILN"])
def test_what_cannot_be_imported_is_refused(bakery: types.ModuleType, value: str) -> None:
    with pytest.raises(ConfigError, match=r"plug-in oven 'hot' \(.*\) cannot be imported: "):
        load_plugin("oven", point("hot", value), Oven)
