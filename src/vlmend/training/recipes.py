"""Recipes: a training written down as one TOML file, checked before anything is loaded.

    [model]          id, dtype
    [model.shapes]   what the model's config.json says: a dry run then needs no file of the model
    [model.picture]  tokens and tensors of one picture, for the same purpose
    [data]           forget, retain, ...: options of the command
    [repair]         settings of the repair
    [watch]          what is measured on the way, and how often
    [reward]         the reward model, where there is one
    [loop]           settings of the training loop
    [dry_run]        lengths that a dry run assumes

What belongs to `[data]`, `[repair]`, `[watch]` and `[reward]` is known above this layer: they are
handed on as plain tables, to be checked with `build_settings` by whoever owns the settings. Needs
no torch.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from vlmend.errors import ConfigError, UnknownNameError
from vlmend.training.loop_settings import LoopSettings

S = TypeVar("S")

Table = Mapping[str, Any]

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]

_TABLES = ("model", "data", "repair", "watch", "reward", "loop", "dry_run")


@dataclass(frozen=True, slots=True)
class PictureShapes:
    """What a model's processor makes of one picture.

    Attributes:
        tokens: Tokens that it takes in the prompt.
        shapes: Floating tensors of one picture by name, without the dimension of pictures.
        values: Integer tensors of one picture by name, by value (sizes, grids).
    """

    tokens: int = 0
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Lengths:
    """Lengths that a dry run assumes.

    Attributes:
        prompt_tokens: Of a request, without template and picture.
        answer_tokens: Of an answer, without its end.
        picture_size: Width and height of a picture in pixels, for processors that keep it.

    Raises:
        ConfigError: Naming every length that is below 1.
    """

    prompt_tokens: int = 64
    answer_tokens: int = 64
    picture_size: tuple[int, int] = (336, 336)

    def __post_init__(self) -> None:
        given = {
            "prompt_tokens": (self.prompt_tokens,),
            "answer_tokens": (self.answer_tokens,),
            "picture_size": self.picture_size,
        }
        wrong = [name for name, values in given.items() if min(values) < 1]
        if wrong:
            raise ConfigError(f"{', '.join(wrong)} below 1. Allowed: at least 1.")


@dataclass(frozen=True)
class _Model:
    """Table `[model]`."""

    id: str
    dtype: DtypeName = "auto"
    shapes: dict[str, Any] | None = None
    picture: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        if self.dtype not in get_args(DtypeName):
            raise ConfigError(
                f"unknown dtype {self.dtype!r}. Allowed: {', '.join(get_args(DtypeName))}."
            )


@dataclass(frozen=True)
class Recipe:
    """One training, as written down.

    Attributes:
        path: The file.
        model: A folder, a model id, or "organism".
        dtype: Dtype of the weights, as `load_vlm` takes it.
        shapes: What config.json says, to build the model's shapes offline; None: load them.
        picture: What the processor makes of a picture, where `shapes` are given.
        lengths: What a dry run assumes.
        data: Table `[data]`, not checked.
        repair: Table `[repair]`, not checked.
        loop: Settings of the loop.
        watch: Table `[watch]`, not checked.
        reward: Table `[reward]`, not checked.
    """

    path: Path
    model: str
    dtype: DtypeName
    shapes: Table | None
    picture: PictureShapes
    lengths: Lengths
    data: Table
    repair: Table
    loop: LoopSettings
    watch: Table = field(default_factory=dict[str, Any])
    reward: Table = field(default_factory=dict[str, Any])


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        ConfigError: The file cannot be read, is not TOML, lacks the model, or holds a value of
            the wrong type or out of range.
        UnknownNameError: A table or key that there is none of.
    """
    tables = _read_tables(path)
    where = f"recipe {str(path)!r}"
    if "model" not in tables:
        raise ConfigError(f"{where} has no [model] table. Write at least [model] and id = ...")
    model = build_settings(_Model, tables["model"], f"{where}, [model]")
    return Recipe(
        path=path,
        model=model.id,
        dtype=model.dtype,
        shapes=model.shapes,
        picture=_read_picture(model.picture, f"{where}, [model.picture]"),
        lengths=build_settings(Lengths, tables.get("dry_run", {}), f"{where}, [dry_run]"),
        data=tables.get("data", {}),
        repair=tables.get("repair", {}),
        loop=build_settings(LoopSettings, tables.get("loop", {}), f"{where}, [loop]"),
        watch=tables.get("watch", {}),
        reward=tables.get("reward", {}),
    )


def _read_tables(path: Path) -> dict[str, Table]:
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the recipe {str(path)!r}: {error.strerror or error}. Give a TOML file."
        ) from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise ConfigError(f"the recipe {str(path)!r} is no TOML file: {error}.") from error
    for name, table in tables.items():
        if name not in _TABLES:
            raise UnknownNameError("table of a recipe", name, _TABLES)
        if not isinstance(table, dict):
            raise ConfigError(
                f"{name!r} in the recipe {str(path)!r} is no table. Write [{name}] above its keys."
            )
    return cast("dict[str, Table]", tables)


def _read_picture(table: Table, where: str) -> PictureShapes:
    given = dict(table)
    tokens, values = given.pop("tokens", 0), given.pop("values", {})
    wrong = [
        f"{name}={value!r}" for name, value in given.items() if not _fits(value, tuple[int, ...])
    ]
    if not _fits(tokens, int) or not isinstance(values, dict):
        wrong.append(f"tokens={tokens!r}, values={values!r}")
    if wrong:
        raise ConfigError(
            f"{where} holds {'; '.join(wrong)}. Allowed: tokens = a number, shapes of floating "
            "tensors such as pixel_values = [3, 336, 336], and integer tensors in "
            "[model.picture.values]."
        )
    shapes = {name: tuple(shape) for name, shape in given.items()}
    return PictureShapes(tokens, shapes, cast("dict[str, Any]", values))


def build_settings(kind: type[S], table: Table, where: str) -> S:
    """Settings from a table; keys are exactly the fields of the dataclass.

    Lists become tuples. Ranges are checked by the dataclass itself.

    Args:
        kind: A dataclass.
        table: Its fields by name; those left out have their defaults.
        where: What to call the table in errors.

    Raises:
        UnknownNameError: A key that is no field.
        ConfigError: Naming every value of the wrong type; a field without a default that is
            missing; or whatever the dataclass refuses.
    """
    own: Any = kind
    known = {item.name: item for item in fields(own) if item.init}
    for name in table:
        if name not in known:
            raise UnknownNameError(f"key of {where}", name, known)
    missing = [
        name
        for name, item in known.items()
        if name not in table and item.default is MISSING and item.default_factory is MISSING
    ]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}. Add it.")
    hints = get_type_hints(kind)
    wrong = [
        f"{name}={value!r} (a {_name(hints[name])} is wanted)"
        for name, value in table.items()
        if not _fits(value, hints[name])
    ]
    if wrong:
        raise ConfigError(f"{where} holds values of the wrong type: {'; '.join(wrong)}.")
    return kind(**{name: _to_tuples(value) for name, value in table.items()})


def _to_tuples(value: Any) -> Any:
    return tuple(cast("list[Any]", value)) if isinstance(value, list) else value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a TOML value is of a field's type; literals are left to the dataclass's check."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (UnionType, Union):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) for part in parts)
    if origin is tuple:
        return isinstance(value, list) and _fit_all(cast("list[Any]", value), parts)
    if origin is dict:
        return isinstance(value, dict)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _fit_all(values: list[Any], parts: tuple[Any, ...]) -> bool:
    if len(parts) == 2 and parts[1] is Ellipsis:
        return all(_fits(value, parts[0]) for value in values)
    return len(values) == len(parts) and all(map(_fits, values, parts))


def _name(hint: Any) -> str:
    """A type for people."""
    if get_origin(hint) in (UnionType, Union):
        return " or ".join(_name(part) for part in get_args(hint) if part is not NoneType)
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
