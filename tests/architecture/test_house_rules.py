"""The house rules hold in `src`, and each of them can fail."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from house_rules import RULES, Rule, Source, make_optional_rule
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src" / "vlmend"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {
    Requirement(line).name
    for extra, lines in PROJECT["optional-dependencies"].items()
    for line in lines
    if extra != "dev"
}
ALL_RULES: dict[str, Rule] = {
    **{rule.__name__: rule for rule in RULES},
    "optional_through_one_door": make_optional_rule(EXTRAS),
}

# For each rule: a path, a source that breaks it once, and one that only looks like it.
CASES: dict[str, tuple[str, str, str]] = {
    "short_module": ("a.py", "x = 1\n" * 501, "x = 1\n" * 500),
    "short_functions": (
        "a.py",
        "def f():\n" + "    x = 1\n" * 60,
        'def f():\n    """' + "\n" * 80 + '    """\n' + "    x = 1\n" * 59,
    ),
    "no_code_from_data": ("a.py", "import torch\ntorch.load('x')\n", "model.eval()\n"),
    "one_door_to_models": ("a.py", "A.from_pretrained('x')\n", "A.save_pretrained('x')\n"),
    "one_door_to_hooks": ("a.py", "m.register_forward_hook(f)\n", "m.register_buffer('b', t)\n"),
    "one_door_to_images": ("a.py", "from PIL import Image\nImage.open(p)\n", "Image.new('RGB')\n"),
    "families_in_their_place": (
        "a.py",
        "if kind == 'mllama': pass\n",
        '"""Mllama and LLaVA-1.5 differ."""\n',
    ),
    "nothing_swallowed": (
        "a.py",
        "with suppress(Exception): f()\n",
        "with suppress(OSError): f()\n",
    ),
    "optional_through_one_door": (
        "a.py",
        "import ray.util\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ray\n",
    ),
}


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    """Every module of the package, parsed."""
    return [
        Source.parse(path.relative_to(SRC).as_posix(), path.read_text(encoding="utf-8"))
        for path in sorted(SRC.rglob("*.py"))
    ]


@pytest.mark.parametrize("name", ALL_RULES)
def test_rule_holds_in_the_package(name: str, sources: list[Source]) -> None:
    violations = [line for source in sources for line in ALL_RULES[name](source)]
    assert not violations, f"{ALL_RULES[name].__doc__}\n" + "\n".join(violations)


@pytest.mark.parametrize("name", CASES)
def test_rule_can_fail(name: str) -> None:
    path, bad, good = CASES[name]
    assert len(list(ALL_RULES[name](Source.parse(path, bad)))) == 1
    assert not list(ALL_RULES[name](Source.parse(path, good)))


@pytest.mark.parametrize("path", ["models/utils.py", "common/loss.py", "cli/manager.py"])
def test_module_name_rule_can_fail(path: str) -> None:
    assert list(ALL_RULES["telling_module_name"](Source.parse(path, "")))
    assert not list(ALL_RULES["telling_module_name"](Source.parse("models/spec.py", "")))


def test_every_rule_is_proven_able_to_fail() -> None:
    assert set(ALL_RULES) == {*CASES, "telling_module_name"}


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("one_door_to_models", "models/load.py"),
        ("one_door_to_hooks", "hooks/edit.py"),
        ("one_door_to_images", "images.py"),
        ("families_in_their_place", "models/families/any.py"),
    ],
)
def test_doors_are_open_in_their_place_only(name: str, place: str) -> None:
    _, bad, _ = CASES[name]
    assert not list(ALL_RULES[name](Source.parse(place, bad)))
    assert list(ALL_RULES[name](Source.parse("evals/" + place.rpartition("/")[2], bad)))


@pytest.mark.parametrize("bad", ["np.load(p, allow_pickle=True)", "import pickle", "eval('1')"])
def test_code_from_data_comes_in_many_guises(bad: str) -> None:
    assert list(ALL_RULES["no_code_from_data"](Source.parse("a.py", bad + "\n")))


def test_replacing_a_forward_counts_as_a_hook() -> None:
    assert list(ALL_RULES["one_door_to_hooks"](Source.parse("a.py", "block.forward = f\n")))
