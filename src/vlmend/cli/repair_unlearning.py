"""`vlmend repair unlearn`: train an adapter that makes a model forget, and save it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmend.cli.adapter_training import (
    add_training_options,
    check_folders,
    is_first,
    merge_adapter,
    one_after_the_other,
    open_planned_model,
    say,
    show_course,
    show_dry_run,
)
from vlmend.cli.options import join_command, positive, split_names
from vlmend.cli.settings_options import add_settings
from vlmend.cli.training_plan import as_recipe
from vlmend.cli.unlearning_plan import UnlearningPlan, make_plan
from vlmend.errors import ConfigError
from vlmend.repairs.unlearning.settings import UnlearningSettings
from vlmend.training.loop_settings import LoopSettings

if TYPE_CHECKING:
    from vlmend.models.vlm import Vlm
    from vlmend.repairs.unlearning.repair import Unlearning
    from vlmend.repairs.unlearning.watch import WatchedSuite
    from vlmend.training.examples import Example
    from vlmend.types import Sample

_OWN_ANSWERS = "own_answers.jsonl"

_TARGET_SEED = 0
"""Which refusal an example gets; the same in all runs, so that seeds differ in training alone."""


@dataclass
class _Data:
    """Examples by role, and what is still to be made of suites once there is a model."""

    forget: list[Example] = field(default_factory=list["Example"])
    retain: list[Example] = field(default_factory=list["Example"])
    suites: dict[str, list[Sample]] = field(default_factory=dict[str, list["Sample"]])
    licences: dict[str, dict[str, str]] = field(
        default_factory=lambda: {"forget": {}, "retain": {}}
    )


def add_parser(kinds: Any) -> None:
    """Declare the command."""
    parser: argparse.ArgumentParser = kinds.add_parser(
        "unlearn",
        help="train an adapter that unlearns harmful answers, in text, in pictures or both",
        description="Train an adapter on forget and retain data and save it as a PEFT folder. "
        "The modality is that of the data. The same command goes on where an interrupted one "
        "stopped. 'organism', like one in a folder of `vlmend organism train`, has a preset; "
        "--recipe reads all settings from a file.",
    )
    add_training_options(parser)
    parser.add_argument(
        "--forget",
        type=split_names,
        metavar="A,B",
        help="what to unlearn: data sets (see `vlmend list data`) or suites, NAME or NAME=FOLDER; "
        "do not measure on them later",
    )
    parser.add_argument(
        "--retain",
        type=split_names,
        metavar="A,B",
        help="data sets whose answers are to stay; none for ga, which never reads any",
    )
    _add_watch_options(parser)
    add_settings(parser, UnlearningSettings, "what is trained")
    add_settings(parser, LoopSettings, "how it is optimised")
    parser.set_defaults(run=run)


def _add_watch_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--watch",
        type=split_names,
        default=(),
        metavar="A,B",
        help="suites measured before, during and after training, on items not trained on",
    )
    parser.add_argument(
        "--watch-every",
        type=positive,
        metavar="N",
        help="steps between two measurements (default: only before and after)",
    )
    parser.add_argument(
        "--watch-limit", type=positive, metavar="N", help="first N items of every watched suite"
    )
    parser.add_argument(
        "--max-new-tokens",
        type=positive,
        metavar="N",
        help="length of watched answers (default: 64)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command: first all that can be checked without the model, then the model."""
    plan = make_plan(args)
    if args.dry_run:
        return _run_dry(plan)
    check_folders(args, _OWN_ANSWERS)

    from vlmend._optional import require
    from vlmend.cli.console import progress_bars, quiet_libraries
    from vlmend.repairs.adapter_artifact import TRAINING_FOLDER
    from vlmend.repairs.unlearning.watch import load_watched, require_same_watch
    from vlmend.training.trackers import check_trackers

    require("peft", extra="train")
    check_trackers(plan.loop.report_to)
    quiet_libraries()
    data = _load_data(plan)
    watched = load_watched(plan.watch.suites, plan.watch.limit)
    require_same_watch(args.out / TRAINING_FOLDER / "watch.jsonl", watched)
    if not data.suites:
        _check_data(data, plan, watched)
    vlm = open_planned_model(plan, args.device)
    with progress_bars() as progress:
        if data.suites:
            with one_after_the_other(vlm):
                _add_own_answers(vlm, data, plan, args.out, progress)
        _assign_targets(data, plan)
        _check_data(data, plan, watched, vlm)
        repair = _train(vlm, data, plan, args, watched, progress)
    if is_first():
        _finish(vlm, repair, args)
    return 0


# ---- before the model


def _load_data(plan: UnlearningPlan) -> _Data:
    """Load all data sets, and the items of suites whose answers the model itself must give."""
    from vlmend.suites.registry import get_suite, load_suite, source_name, suite_names
    from vlmend.training.data.registry import data_names, get_data, load_training_data

    for role in plan.settings.recipe.streams:
        if not getattr(plan.data, role):
            raise ConfigError(
                f"no {role} data was named. Give --{role} NAME or NAME=FOLDER; `vlmend list data` "
                "has the names."
            )
    data = _Data()
    for text in plan.data.forget:
        name = source_name(text)
        if name in suite_names() and name not in data_names():
            data.suites[name] = load_suite(text, plan.data.limit)
            data.licences["forget"][name] = get_suite(name).licence
            continue
        data.forget += load_training_data(text, role="forget", limit=plan.data.limit, report=say)
        data.licences["forget"][name] = get_data(name).licence
    for text in plan.data.retain:
        name = source_name(text)
        data.retain += load_training_data(text, role="retain", limit=plan.data.limit, report=say)
        data.licences["retain"][name] = get_data(name).licence
    return data


@dataclass(frozen=True)
class _Seen:
    """The training data, as something that was fitted on it."""

    name: str
    fitted_items: Mapping[str, str]


def _check_data(
    data: _Data, plan: UnlearningPlan, watched: Sequence[WatchedSuite], vlm: Vlm | None = None
) -> None:
    """Refuse data that contradicts itself, is watched, or is nothing for the model."""
    from vlmend.repairs.protocol import require_unseen
    from vlmend.training.data.checks import check_answers, check_prompts, check_sets

    keeps = "retain" in plan.settings.recipe.streams
    checked = check_sets(data.forget, data.retain if keeps else None)
    seen = _Seen(plan.settings.objective, checked.prompts)
    require_unseen(seen, (sample for suite in watched for sample in suite.samples))
    if vlm is None:
        return
    examples = [*data.forget, *data.retain]
    check_prompts(vlm, examples)
    report = check_answers(vlm, examples, plan.settings.max_answer_tokens)
    if report.cut:
        say(
            f"{report.cut} of {report.answers} answers are cut to "
            f"{plan.settings.max_answer_tokens} tokens (the longest has {report.longest})."
        )
    if checked.repeated:
        say(f"{checked.repeated} pairs of prompt and answer are there more than once.")


# ---- with the model


def _add_own_answers(vlm: Vlm, data: _Data, plan: UnlearningPlan, out: Path, progress: Any) -> None:
    """Make forget data of suites: what the model itself answers."""
    from vlmend.judges.registry import get_judge
    from vlmend.models.generation import GenerationSettings
    from vlmend.suites.registry import get_suite
    from vlmend.training.data.own_answers import forget_from_suite

    for name, samples in data.suites.items():
        data.forget += forget_from_suite(
            vlm,
            samples,
            out / _OWN_ANSWERS,
            judge=get_judge(get_suite(name).default_judge),
            generation=GenerationSettings(plan.settings.max_answer_tokens or 64),
            report=say,
            progress=progress,
        )


def _assign_targets(data: _Data, plan: UnlearningPlan) -> None:
    """Give every forget example what it is to be answered with, where that is learnt."""
    from vlmend.organism import language
    from vlmend.organism.vocabulary import is_organism
    from vlmend.training.refusals import REFUSALS, assign_targets

    if plan.settings.recipe.w_help:
        # An organism knows no others than its own.
        sentences = language.REFUSALS if is_organism(plan.model) else REFUSALS
        data.forget = assign_targets(
            data.forget, plan.settings.match, _TARGET_SEED, sentences=sentences
        )


def _train(
    vlm: Vlm,
    data: _Data,
    plan: UnlearningPlan,
    args: argparse.Namespace,
    watched: Sequence[WatchedSuite],
    progress: Any,
) -> Unlearning:
    from vlmend.repairs.adapter_artifact import TRAINING_FOLDER
    from vlmend.repairs.unlearning.repair import Unlearning
    from vlmend.repairs.unlearning.watch import watch_suites

    measure = partial(watch_suites, vlm, watched, max_new_tokens=plan.watch.max_new_tokens)
    return Unlearning(plan.settings, plan.loop).fit(
        vlm,
        data.forget,
        data.retain,
        folder=args.out / TRAINING_FOLDER,
        about={role: {"licences": names} for role, names in data.licences.items()},
        progress=progress,
        watch=(lambda _step: measure()) if watched else None,
        watch_every=plan.watch.every,
    )


def _finish(vlm: Vlm, repair: Unlearning, args: argparse.Namespace) -> None:
    """Save the adapter, merge it if asked to, and say what it cost."""
    repair.facts_["command"] = join_command(sys.argv[1:])
    repair.save(args.out)
    _show(repair)
    say(f"{repair.name} saved in {args.out}. Measure it with vlmend audit --repair {args.out}")
    merge_adapter(vlm, repair.weights_, args.merge)


def _show(repair: Unlearning) -> None:
    """How the training went, and the watched suites before and after."""
    from vlmend.cli.console import interval, percent, print_table

    show_course(repair.facts_)
    rows = [
        (
            f"{row['suite']} ({row['kind']})",
            when,
            f"{rates['num_scored']}/{row['num_samples']}",
            f"{percent(rates['complied_rate'])} {interval(rates['low'], rates['high'])}",
            percent(rates["refusal_rate"]),
            percent(rates["incoherent_rate"]),
        )
        for row in repair.facts_["before_after"]
        for when, rates in (("before", row["before"]), ("after", row["after"]))
    ]
    if not rows:
        say(
            "No suite was watched from the first step on, so there is no table of before and "
            "after. Name suites with --watch, or in the [watch] table of a recipe."
        )
        return
    heads = ("suite", "training", "scored", "complied", "refused", "incoherent")
    print_table("Watched suites (complied: attack success where harmful)", heads, rows)


# ---- without a model


def _run_dry(plan: UnlearningPlan) -> int:
    """Print memory and FLOPs of a step, from shapes alone."""
    from vlmend.cli.console import progress_bars, quiet_libraries
    from vlmend.repairs.unlearning.repair import Unlearning
    from vlmend.training.dry_run import dry_run_recipe

    quiet_libraries()
    repair = Unlearning(plan.settings, plan.loop)
    with progress_bars() as progress:
        found = dry_run_recipe(as_recipe(plan), repair.build_objective, progress=progress)
    show_dry_run(found, f"One optimiser step of {plan.settings.objective} on {found.model}")
    return 0
