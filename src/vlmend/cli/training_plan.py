"""What a training command is asked to do: preset or recipe, changed by the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from vlmend.cli.settings_options import given_settings
from vlmend.errors import ConfigError
from vlmend.training.loop_settings import LoopSettings

if TYPE_CHECKING:
    from vlmend.models.load import DtypeName
    from vlmend.training.recipes import Recipe

S = TypeVar("S")
D = TypeVar("D")
W = TypeVar("W")

Table = Mapping[str, Any]


def _keep_all(table: Table, typed: Table) -> dict[str, Any]:
    del typed
    return dict(table)


@dataclass(frozen=True)
class PlanKind(Generic[S, D, W]):
    """What the plans of one repair are made of.

    Attributes:
        settings: Dataclass of the repair's settings, whose `unused` names what is not read.
        data: Dataclass of the table `[data]`; each field is an option of that name.
        watch: Dataclass of the table `[watch]`: what is measured on the way.
        preset: What an organism's tables "repair", "data", "loop" and "watch" hold.
        name_reader: What reads the settings, for people: "objective 'ga'".
        type_watch: What is measured, changed by the command line.
        keep: Of preset or recipe, given also what was typed: the settings that still mean
            something.
    """

    settings: type[S]
    data: type[D]
    watch: type[W]
    preset: Mapping[str, Table]
    name_reader: Callable[[S], str]
    type_watch: Callable[[W, argparse.Namespace], W]
    keep: Callable[[Table, Table], dict[str, Any]] = _keep_all


@dataclass(frozen=True)
class TrainingPlan(Generic[S, D, W]):
    """Everything that decides a training, but for the model and data themselves.

    Attributes:
        model: As typed, or the recipe's.
        dtype: As `load_vlm` takes it.
        settings: Of the repair.
        loop: Of the training loop.
        data: Names of the data.
        watch: What is measured on the way.
        recipe: The recipe file, read; None without one.
    """

    model: str
    dtype: DtypeName
    settings: S
    loop: LoopSettings
    data: D
    watch: W
    recipe: Recipe | None = None


def assemble_plan(args: argparse.Namespace, kind: PlanKind[S, D, W]) -> TrainingPlan[S, D, W]:
    """Put together preset or recipe and what was typed; what was typed wins.

    Raises:
        ConfigError: No model; settings out of range, that contradict each other, or that were
            typed though the repair never reads them.
        UnknownNameError: A name in the recipe that there is none of.
    """
    from vlmend.organism.vocabulary import is_organism
    from vlmend.training.recipes import build_settings, read_recipe

    recipe = read_recipe(args.recipe) if args.recipe is not None else None
    model = args.model or (recipe.model if recipe is not None else None)
    if model is None:
        raise ConfigError("no model was named. Give MODEL, or --recipe with a [model] table.")
    typed = given_settings(args, kind.settings)
    if recipe is not None:
        where = f"recipe {str(recipe.path)!r}"
        kept = kind.keep(recipe.repair, typed)
        base = build_settings(kind.settings, kept, f"{where}, [repair]")
        loop, data = recipe.loop, build_settings(kind.data, recipe.data, f"{where}, [data]")
        watch = build_settings(kind.watch, recipe.watch, f"{where}, [watch]")
    else:
        preset = kind.preset if is_organism(model) else {}
        base = kind.settings(**kind.keep(preset.get("repair", {}), typed))
        loop = LoopSettings(**preset.get("loop", {}))
        data = kind.data(**preset.get("data", {}))
        watch = kind.watch(**preset.get("watch", {}))
    settings = change(base, typed)
    _refuse_unread(settings, typed, kind.name_reader(settings))
    own: Any = kind.data
    named = {field.name: getattr(args, field.name) for field in fields(own)}
    return TrainingPlan(
        model=model,
        dtype=args.dtype if recipe is None or args.dtype != "auto" else recipe.dtype,
        settings=settings,
        loop=replace(loop, **given_settings(args, LoopSettings)),
        data=change(data, {name: value for name, value in named.items() if value is not None}),
        watch=kind.type_watch(watch, args),
        recipe=recipe,
    )


def change(base: S, values: Table) -> S:
    """A copy of a dataclass with other values."""
    own: Any = base
    return replace(own, **values)


def _refuse_unread(settings: Any, typed: Table, reader: str) -> None:
    ignored = sorted(settings.unused() & typed.keys())
    if ignored:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in ignored)
        raise ConfigError(f"{names} would be ignored: {reader} does not read it. Leave it out.")


def as_recipe(plan: TrainingPlan[Any, Any, Any]) -> Recipe:
    """The plan as a recipe, for a dry run."""
    from vlmend.training.recipes import Lengths, Recipe
    from vlmend.training.shape_processor import PictureShapes

    if plan.recipe is not None:
        # The recipe's shapes are those of its own model.
        shapes = plan.recipe.shapes if plan.model == plan.recipe.model else None
        return replace(
            plan.recipe, model=plan.model, dtype=plan.dtype, shapes=shapes, loop=plan.loop
        )
    return Recipe(
        path=Path(),
        model=plan.model,
        dtype=plan.dtype,
        shapes=None,
        picture=PictureShapes(0, {}, {}),
        lengths=Lengths(),
        data={},
        repair={},
        loop=plan.loop,
    )
