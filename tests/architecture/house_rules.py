"""The house rules as functions from source text to violations; the tests apply them to `src`.

Each rule takes a parsed module and its path relative to `src/vlmend` and yields lines
"where: what". They are functions so that tests can prove that each rule can fail.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 60
"""Without its docstring: shapes, units and references are wanted, not rationed."""

BANNED_MODULE_NAMES = {"utils", "util", "helpers", "helper", "misc", "common", "manager"}
PICKLE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve"}
FAMILY_NAME = re.compile(r"llava|mllama|qwen", re.IGNORECASE)
MODEL_TYPE = re.compile(r"(llava|mllama|qwen)\w*", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """One module: its path below `src/vlmend`, its text and its syntax tree."""

    path: PurePosixPath
    text: str
    tree: ast.Module

    @classmethod
    def parse(cls, path: str, text: str) -> Source:
        """Parse a module."""
        return cls(PurePosixPath(path), text, ast.parse(text))

    def inside(self, *places: str) -> bool:
        """Whether this module is one of the places, or in one (a place ending in "/")."""
        return any(
            str(self.path) == place or (place.endswith("/") and str(self.path).startswith(place))
            for place in places
        )

    def calls(self) -> Iterator[tuple[ast.Call, str]]:
        """Every call with the dotted name called, e.g. "torch.load" or "?.load"."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                yield node, dotted(node.func)

    def imports(self) -> Iterator[tuple[ast.stmt, str]]:
        """Every absolute import with the full name imported, type-checking blocks left out."""
        typing_only = {
            child
            for node in ast.walk(self.tree)
            if isinstance(node, ast.If) and dotted(node.test).endswith("TYPE_CHECKING")
            for statement in node.body
            for child in ast.walk(statement)
        }
        for node in ast.walk(self.tree):
            if node in typing_only:
                continue
            if isinstance(node, ast.Import):
                yield from ((node, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


Rule = Callable[[Source], Iterator[str]]


def dotted(node: ast.expr) -> str:
    """The dotted name of an expression; "?" stands for what is not a plain name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return "?"


def short_module(source: Source) -> Iterator[str]:
    """A module has at most `MAX_MODULE_LINES` lines."""
    lines = source.text.count("\n")
    if lines > MAX_MODULE_LINES:
        yield f"{source.path}: {lines} lines, at most {MAX_MODULE_LINES}; split it by idea"


def short_functions(source: Source) -> Iterator[str]:
    """A function has at most `MAX_FUNCTION_LINES` lines besides its docstring."""
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = (node.end_lineno or 0) - node.lineno + 1
        if ast.get_docstring(node) is not None:
            lines -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
        if lines > MAX_FUNCTION_LINES:
            yield f"{source.path}:{node.lineno}: {node.name} has {lines} lines"


def telling_module_name(source: Source) -> Iterator[str]:
    """No module or package is called utils, helpers, misc, common or manager."""
    for part in source.path.with_suffix("").parts:
        if part in BANNED_MODULE_NAMES:
            yield f"{source.path}: name a module for what it holds, not {part!r}"


def no_code_from_data(source: Source) -> Iterator[str]:
    """Nothing that runs code out of a file or a string: pickle, torch.load, eval, exec."""
    for node, name in source.imports():
        if name.partition(".")[0] in PICKLE_MODULES:
            yield f"{source.path}:{node.lineno}: imports {name}; use safetensors or JSON"
    for call, name in source.calls():
        if name in {"eval", "exec", "torch.load"}:
            yield f"{source.path}:{call.lineno}: calls {name}"
        for keyword in call.keywords:
            if keyword.arg in {"allow_pickle", "trust_remote_code", "shell"} and not (
                isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            ):
                yield f"{source.path}:{call.lineno}: passes {keyword.arg}"


def one_door_to_models(source: Source) -> Iterator[str]:
    """Only models/load.py calls `from_pretrained`."""
    if not source.inside("models/load.py"):
        for call, name in source.calls():
            if name.endswith(".from_pretrained"):
                yield f"{source.path}:{call.lineno}: {name}; go through models/load.py"


def one_door_to_hooks(source: Source) -> Iterator[str]:
    """Only hooks/ registers hooks or replaces a forward."""
    if source.inside("hooks/"):
        return
    for call, name in source.calls():
        last = name.rpartition(".")[2]
        if last.startswith("register_") and last.endswith("_hook"):
            yield f"{source.path}:{call.lineno}: {name}; go through hooks/"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Attribute) and target.attr == "forward":
                    yield f"{source.path}:{node.lineno}: replaces a forward; go through hooks/"


def one_door_to_images(source: Source) -> Iterator[str]:
    """Only images.py opens an image file: it may come from a stranger."""
    if not source.inside("images.py"):
        for call, name in source.calls():
            if name.endswith("Image.open"):
                yield f"{source.path}:{call.lineno}: {name}; use vlmend.images.open_image"


def families_in_their_place(source: Source) -> Iterator[str]:
    """No name of a model family in code outside models/families/ (and testing/, organism/).

    Comments, docstrings and prose may name them: papers do. Identifiers, imports and
    strings that equal a model type may not, because they would be a hidden branch.
    """
    if source.inside("models/families/", "testing/", "organism/"):
        return
    for node, name in source.imports():
        if FAMILY_NAME.search(name):
            yield f"{source.path}:{node.lineno}: imports {name}"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str) and MODEL_TYPE.fullmatch(node.value):
                yield f"{source.path}:{node.lineno}: the model type {node.value!r}"
        else:
            name = getattr(node, "id", None) or getattr(node, "attr", None)
            name = name or getattr(node, "arg", None) or getattr(node, "name", None)
            if isinstance(name, str) and FAMILY_NAME.search(name):
                yield f"{source.path}:{getattr(node, 'lineno', 0)}: the name {name!r}"


def nothing_swallowed(source: Source) -> Iterator[str]:
    """No `suppress(Exception)`; ruff's BLE and E722 see to broad `except` clauses."""
    for call, name in source.calls():
        if name.endswith("suppress"):
            for argument in call.args:
                if dotted(argument) in {"Exception", "BaseException"}:
                    yield f"{source.path}:{call.lineno}: suppress({dotted(argument)})"


def make_optional_rule(packages: set[str]) -> Rule:
    """A rule: the packages of the extras come through `_optional.require` only."""

    def optional_through_one_door(source: Source) -> Iterator[str]:
        for node, name in source.imports():
            if name.partition(".")[0] in packages:
                yield f"{source.path}:{node.lineno}: imports {name}; use vlmend._optional.require"

    return optional_through_one_door


RULES: tuple[Rule, ...] = (
    short_module,
    short_functions,
    telling_module_name,
    no_code_from_data,
    one_door_to_models,
    one_door_to_hooks,
    one_door_to_images,
    families_in_their_place,
    nothing_swallowed,
)
