"""What `vlmend repair unlearn` is asked to do."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlmend.cli.training_plan import PlanKind, TrainingPlan, assemble_plan, change
from vlmend.errors import ConfigError
from vlmend.repairs.unlearning.settings import UnlearningSettings

_OF_ONE_OBJECTIVE = ("w_bad", "w_help", "w_norm", "retain_term")
"""Settings of a preset or recipe that say nothing about another objective."""


@dataclass(frozen=True)
class DataNames:
    """Table `[data]` of a recipe.

    Attributes:
        forget: Data sets or suites to unlearn, NAME or NAME=FOLDER.
        retain: Data sets whose answers are to stay.
        limit: First so many examples of each; None for all.
    """

    forget: tuple[str, ...] = ()
    retain: tuple[str, ...] = ()
    limit: int | None = None


@dataclass(frozen=True)
class WatchNames:
    """Table `[watch]` of a recipe: what is measured while the model trains.

    Attributes:
        suites: Suites, NAME or NAME=FOLDER.
        every: Steps between two measurements; 0: only before and after.
        limit: First so many items of each; None for all.
        max_new_tokens: Length of an answer.

    Raises:
        ConfigError: Naming every number that is out of range.
    """

    suites: tuple[str, ...] = ()
    every: int = 0
    limit: int | None = None
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        ranges = {
            "every": (self.every >= 0, ">= 0; 0: only before and after"),
            "limit": (self.limit is None or self.limit >= 1, ">= 1, or none for all"),
            "max_new_tokens": (self.max_new_tokens >= 1, ">= 1"),
        }
        wrong = [
            f"{name}={getattr(self, name)!r} (allowed: {allowed})"
            for name, (is_right, allowed) in ranges.items()
            if not is_right
        ]
        if wrong:
            raise ConfigError(f"what is watched is out of range: {'; '.join(wrong)}.")


UnlearningPlan = TrainingPlan[UnlearningSettings, DataNames, WatchNames]


def make_plan(args: argparse.Namespace) -> UnlearningPlan:
    """Put together preset or recipe and what was typed; see `assemble_plan`.

    Raises:
        ConfigError: Also where retain data is named that the objective never reads.
    """
    from vlmend.organism.presets import TRAINING

    plan = assemble_plan(
        args,
        PlanKind(
            settings=UnlearningSettings,
            data=DataNames,
            watch=WatchNames,
            preset=TRAINING,
            name_reader=lambda s: f"objective {s.objective!r} with adapter {s.adapter!r}",
            type_watch=_add_typed_watch,
            keep=_keep,
        ),
    )
    return _without_unread(plan, args)


def _without_unread(plan: UnlearningPlan, args: argparse.Namespace) -> UnlearningPlan:
    """Leave out a preset's or recipe's retain data where what was typed made it useless."""
    if not plan.data.retain or "retain" in plan.settings.recipe.streams:
        return plan
    if args.retain is not None:
        plan.settings.refuse_unread("retain", f"--retain {','.join(args.retain)}")
    if plan.recipe is not None:
        from vlmend.training.recipes import build_settings

        where = f"recipe {str(plan.recipe.path)!r}"
        own = build_settings(UnlearningSettings, plan.recipe.repair, f"{where}, [repair]")
        own.refuse_unread("retain", f"retain in {where}, [data],")
    return change(plan, {"data": change(plan.data, {"retain": ()})})


def _add_typed_watch(watch: WatchNames, args: argparse.Namespace) -> WatchNames:
    """What was typed wins; typed suites are measured as typed, without a preset's limit."""
    if args.watch:
        watch = WatchNames(args.watch)
    typed = {
        "every": args.watch_every,
        "limit": args.watch_limit,
        "max_new_tokens": args.max_new_tokens,
    }
    return change(watch, {name: value for name, value in typed.items() if value is not None})


def _keep(table: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a preset or recipe that still mean something beside what was typed."""
    default = UnlearningSettings().objective
    other = typed.get("objective", table.get("objective")) != table.get("objective", default)
    is_other = "objective" in typed and other
    return {k: v for k, v in table.items() if not (is_other and k in _OF_ONE_OBJECTIVE)}
