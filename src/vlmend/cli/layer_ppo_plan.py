"""What `vlmend repair layer-ppo` is asked to do."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from vlmend.cli.settings_options import given_settings
from vlmend.cli.training_plan import PlanKind, TrainingPlan, assemble_plan, change
from vlmend.errors import ConfigError
from vlmend.repairs.layer_ppo.settings import BENIGN, GIVEN, HARMFUL, LayerPPOSettings
from vlmend.repairs.layer_ppo.watch_rule import WatchRule


@dataclass(frozen=True)
class PromptNames:
    """Table `[data]` of a recipe.

    Attributes:
        harmful: Data sets or suites whose prompts are to be refused, NAME or NAME=FOLDER.
        benign: Those whose prompts are to be answered.
        given: Retain data whose own answers are learnt beside the sampled ones.
        pictures: Folder of benign pictures, for prompts that have none.
        limit: First so many prompts of each; None for all.
    """

    harmful: tuple[str, ...] = ()
    benign: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    pictures: str | None = None
    limit: int | None = None

    def by_stream(self) -> dict[str, tuple[str, ...]]:
        """Names by stream, those of streams that there are."""
        every = {HARMFUL: self.harmful, BENIGN: self.benign, GIVEN: self.given}
        return {name: found for name, found in every.items() if found or name == HARMFUL}


@dataclass(frozen=True)
class HeldOut(WatchRule):
    """Table `[watch]` of a recipe: the prompts that a training is watched on, and the rule.

    Attributes:
        held_out: Share of them; 0 watches nothing and keeps the last step.
        held_out_from: Data sets that they are chosen from; a stream with none of these, and all
            streams if none are named, may hold out any prompt.
        every: Steps between two checks; 0: only before and after.
        limit: First so many prompts of each stream; None for all that are held out.

    Raises:
        ConfigError: A share that is none, or a rule that is out of range.
    """

    held_out: float = 0.1
    held_out_from: tuple[str, ...] = ()
    every: int = 25
    limit: int | None = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.held_out < 1:
            raise ConfigError(
                f"--held-out {self.held_out} is no share of the prompts. Allowed: 0 to below 1; 0 "
                "watches nothing."
            )


@dataclass(frozen=True)
class RewardName:
    """Table `[reward]` of a recipe.

    Attributes:
        id: A folder or a Hugging Face id of a sequence classifier with one output.
        shapes: What its config.json says; only a dry run reads it.
    """

    id: str | None = None
    shapes: dict[str, Any] = field(default_factory=dict[str, Any])


Plan = TrainingPlan[LayerPPOSettings, PromptNames, HeldOut]


@dataclass(frozen=True)
class LayerPPOPlan:
    """Everything that decides a training.

    Attributes:
        training: What every training has.
        reward: The reward model.
    """

    training: Plan
    reward: RewardName

    @property
    def rule(self) -> WatchRule:
        """When to stop, and what to keep."""
        watch = self.training.watch
        return WatchRule(**{f.name: getattr(watch, f.name) for f in fields(WatchRule)})

    @property
    def data_names(self) -> tuple[str, ...]:
        """Data sets and suites of the prompts, without their folders."""
        from vlmend.suites.registry import source_name

        data = self.training.data
        return tuple(source_name(text) for text in (*data.harmful, *data.benign))

    @property
    def trains_reward(self) -> bool:
        """Whether an organism's own reward model is trained on the way."""
        from vlmend.organism.vocabulary import is_organism

        needed = self.training.settings.algorithm != "sft" and self.reward.id is None
        return needed and is_organism(self.training.model)


def make_plan(args: argparse.Namespace) -> LayerPPOPlan:
    """Put together preset or recipe and what was typed; see `assemble_plan`.

    Raises:
        ConfigError: Also where answers are to be scored and no reward model was named, or no
            harmful prompts were.
    """
    from vlmend.organism.presets import LAYER_PPO

    kind = PlanKind(
        settings=LayerPPOSettings,
        data=PromptNames,
        watch=HeldOut,
        preset=LAYER_PPO,
        name_reader=_name_reader,
        type_watch=_add_typed_watch,
        keep=_keep,
    )
    plan = LayerPPOPlan(training=assemble_plan(args, kind), reward=RewardName())
    if plan.training.recipe is not None:
        plan = change(plan, {"reward": _read_reward(plan.training)})
    if args.reward is not None:
        plan = change(plan, {"reward": RewardName(args.reward)})
    if args.held_out_from is None and (args.harmful or args.benign):
        # Of preset or recipe, whose data may not be what was typed.
        names = tuple(n for n in plan.training.watch.held_out_from if n in plan.data_names)
        watch = change(plan.training.watch, {"held_out_from": names})
        plan = change(plan, {"training": change(plan.training, {"watch": watch})})
    switched = {"algorithm", "ptx_coefficient"} & given_settings(args, LayerPPOSettings).keys()
    if switched and args.given is None and not plan.training.settings.learns_given:
        # Of preset or recipe, as `_keep` has it for settings.
        data = change(plan.training.data, {"given": ()})
        plan = change(plan, {"training": change(plan.training, {"data": data})})
    return plan


def require_whole(plan: LayerPPOPlan, args: argparse.Namespace) -> None:
    """Refuse a plan that nothing can be trained by.

    Raises:
        ConfigError: No harmful prompts, none where some are to be held out, names to hold out
            from where nothing is held out, no reward model, or a merge of several adapters.
    """
    settings = plan.training.settings
    if not plan.training.data.harmful:
        raise ConfigError(
            "no harmful prompts were named. Give --harmful NAME or NAME=FOLDER: data sets of "
            "forget data (`vlmend list data`) or suites (`vlmend list suites`)."
        )
    if args.held_out_from is not None and not plan.training.watch.held_out:
        raise ConfigError(
            f"--held-out-from {','.join(args.held_out_from)} would be ignored: --held-out is 0, so "
            "nothing is held out. Leave it out, or give --held-out a share above 0."
        )
    unknown = [n for n in plan.training.watch.held_out_from if n not in plan.data_names]
    if unknown:
        raise ConfigError(
            f"--held-out-from {','.join(unknown)}: no prompts come from there. Allowed: "
            f"{', '.join(plan.data_names)}."
        )
    if settings.algorithm != "sft" and plan.reward.id is None and not plan.trains_reward:
        raise ConfigError(
            f"{settings.algorithm} learns from scores, and no reward model was named. Give "
            "--reward: a folder or id of a sequence classifier with one output, such as `vlmend "
            "reward train` makes; or use --algorithm sft, which needs none."
        )
    data = plan.training.data
    if settings.learns_given and not (data.given or data.benign):
        raise ConfigError(
            f"--ptx-coefficient {settings.ptx_coefficient}: given answers are to be learnt, and "
            "none were named. Give --given or --benign: retain data with answers."
        )
    if data.given and not settings.learns_given:
        raise ConfigError(
            f"--given {','.join(data.given)} would be ignored: {settings.algorithm} with "
            f"--ptx-coefficient {settings.ptx_coefficient:g} does not read it. Leave it out, or "
            "use ppo with --ptx-coefficient above 0."
        )
    if settings.adapters == "per-exit" and args.merge is not None:
        raise ConfigError(
            "--merge would be ignored: an adapter for each exit cannot be merged into one model. "
            "Leave it out, or use --adapters shared."
        )


def _read_reward(plan: Plan) -> RewardName:
    from vlmend.training.recipes import build_settings

    assert plan.recipe is not None, "the caller looked"
    return build_settings(
        RewardName, plan.recipe.reward, f"recipe {str(plan.recipe.path)!r}, [reward]"
    )


def _name_reader(settings: LayerPPOSettings) -> str:
    control = f", kl control {settings.kl_control!r}" if settings.algorithm != "sft" else ""
    return f"algorithm {settings.algorithm!r} with adapter {settings.adapter!r}{control}"


def _add_typed_watch(watch: HeldOut, args: argparse.Namespace) -> HeldOut:
    typed = {
        "held_out": args.held_out,
        "held_out_from": args.held_out_from,
        "every": args.watch_every,
        "limit": args.watch_limit,
    }
    named = {name: value for name, value in typed.items() if value is not None}
    return change(watch, {**named, **given_settings(args, WatchRule)})


def _keep(table: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a preset or recipe that the algorithm that was typed reads."""
    if "algorithm" not in typed:
        return dict(table)
    unused = LayerPPOSettings(algorithm=typed["algorithm"], kl_control="adaptive").unused()
    return {name: value for name, value in table.items() if name not in unused}
