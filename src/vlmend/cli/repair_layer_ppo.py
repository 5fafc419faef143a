"""`vlmend repair layer-ppo`: mend the exits of the image encoder by reinforcement, and save it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from vlmend.cli.adapter_training import (
    add_training_options,
    check_folders,
    choose_device,
    is_first,
    merge_adapter,
    one_after_the_other,
    open_planned_model,
    say,
    show_course,
    show_dry_run,
)
from vlmend.cli.layer_ppo_plan import LayerPPOPlan, make_plan, require_whole
from vlmend.cli.options import join_command, positive, split_names
from vlmend.cli.settings_options import add_settings
from vlmend.cli.training_plan import as_recipe
from vlmend.errors import DataError
from vlmend.repairs.layer_ppo.settings import BENIGN, GIVEN, HARMFUL, LayerPPOSettings
from vlmend.repairs.layer_ppo.watch_rule import WatchRule
from vlmend.training.loop_settings import LoopSettings

if TYPE_CHECKING:
    from vlmend.cli.console import Report
    from vlmend.evals.scorers import RewardScorer
    from vlmend.models.vlm import Vlm
    from vlmend.repairs.layer_ppo.repair import LayerPPO, Reward
    from vlmend.training.examples import Example
    from vlmend.training.loop import Progress

_REWARD_FOLDER = "reward"
"""Where, in the artifact's folder, the organism's own reward model is trained."""

_SPLIT_SEED = 0
"""Which prompts are held out, and which refusal and picture a prompt gets; the same in all runs,
so that seeds differ in training alone."""

_SHOWN_STEPS = 5
"""Steps whose mean is shown while the model trains: one step is noisy."""

_FEW_REFUSALS = 0.05
"""Share of harmful prompts refused at the start, below which fine-tuning first is advised."""

_SHOWN_TERMS = (
    ("reward_harmful", "reward, harmful {:.2f}"),
    ("reward_benign", "benign {:.2f}"),
    ("nll_harmful", "loss, harmful {:.2f}"),
    ("nll_benign", "benign {:.2f}"),
    ("kl", "KL {:.2f}"),
    ("clip_fraction", "clipped {:.0%}"),
    ("explained_variance", "explained variance {:.2f}"),
    ("entropy", "entropy {:.2f}"),
    ("length", "length {:.0f}"),
)
"""Terms of a step that are shown, and how."""


@dataclass
class _Prompts:
    """Prompts by stream: to train on and held out; and under which licences they come."""

    trained: dict[str, list[Example]] = field(default_factory=dict[str, list["Example"]])
    held_out: dict[str, list[Example]] = field(default_factory=dict[str, list["Example"]])
    about: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])


def add_parser(kinds: Any) -> None:
    """Declare the command."""
    parser: argparse.ArgumentParser = kinds.add_parser(
        "layer-ppo",
        help="train an adapter at the exits of the image encoder: PPO, GRPO or its SFT twin",
        description="Let the model answer at exits of its image encoder, have a reward model "
        "score the answers, and train an adapter of the decoder on them. The same command goes "
        "on where an interrupted one stopped. 'organism', like one in a folder of `vlmend organism "
        "train`, has a preset and trains its own reward model; --recipe reads all settings from a "
        "file.",
    )
    add_training_options(parser)
    _add_data_options(parser)
    parser.add_argument(
        "--held-out",
        type=float,
        metavar="SHARE",
        help="share of the prompts not trained on: they decide when to stop and what to keep; 0 "
        "watches nothing (default: 0.1)",
    )
    parser.add_argument(
        "--held-out-from",
        type=split_names,
        metavar="A,B",
        help="data sets of --harmful and --benign that they are chosen from; where there is none "
        "of these, and by default, from all",
    )
    parser.add_argument(
        "--watch-every", type=positive, metavar="N", help="steps between two checks (default: 25)"
    )
    parser.add_argument(
        "--watch-limit",
        type=positive,
        metavar="N",
        help="first N held-out prompts of either kind (default: 64)",
    )
    add_settings(parser, LayerPPOSettings, "what is trained")
    add_settings(parser, LoopSettings, "how it is optimised")
    add_settings(parser, WatchRule, "when to stop, and which checkpoint to keep")
    parser.set_defaults(run=run)


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--harmful",
        type=split_names,
        metavar="A,B",
        help="prompts to refuse: forget data (see `vlmend list data`) or suites, NAME or "
        "NAME=FOLDER; do not measure on them later",
    )
    parser.add_argument(
        "--benign",
        type=split_names,
        metavar="A,B",
        help="prompts to answer, so that refusing everything does not pay: retain data or suites",
    )
    parser.add_argument(
        "--given",
        type=split_names,
        metavar="A,B",
        help="retain data whose own answers are learnt beside the sampled ones, with pictures or "
        "without (--ptx-coefficient; default: the benign prompts)",
    )
    parser.add_argument(
        "--pictures",
        metavar="FOLDER",
        help="benign pictures, one of which is put beside every prompt that has none",
    )
    parser.add_argument(
        "--reward",
        metavar="REWARD",
        help="reward model: a folder of `vlmend reward train`, or folder or id of any sequence "
        "classifier with one output; sft needs none",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command: first all that can be checked without the model, then the model."""
    plan = make_plan(args)
    if args.dry_run:
        return _run_dry(plan)
    check_folders(args, _REWARD_FOLDER)
    require_whole(plan, args)

    from vlmend._optional import require
    from vlmend.cli.console import progress_bars, quiet_libraries
    from vlmend.repairs.layer_ppo.objective import resolve_exits
    from vlmend.training.data.checks import check_prompts
    from vlmend.training.trackers import check_trackers

    require("peft", extra="train")
    check_trackers(plan.training.loop.report_to)
    quiet_libraries()
    prompts = _load_prompts(plan)
    device = choose_device(args.device)
    reward = None if plan.reward.id is None else _load_reward(plan.reward.id, device)
    vlm = open_planned_model(plan.training, args.device)
    resolve_exits(vlm, plan.training.settings)
    check_prompts(vlm, [e for part in prompts.trained.values() for e in part])
    if plan.trains_reward:
        reward = _train_reward(vlm, plan.training.model, args.out / _REWARD_FOLDER, device)
    with progress_bars() as progress:
        repair = _train(vlm, plan, prompts, reward, args.out, progress)
    if is_first():
        _finish(vlm, repair, args)
    return 0


# ---- before the model


def _load_prompts(plan: LayerPPOPlan) -> _Prompts:
    """Load all prompts, hold some out, and give them what sft learns."""
    from vlmend.repairs.layer_ppo.repair import check_streams, require_answers
    from vlmend.suites.registry import source_name
    from vlmend.training.data.held_out import group_of_example, split_held_out
    from vlmend.training.data.prompts import load_prompts
    from vlmend.training.data.registry import load_training_data

    names, found, prompts = plan.training.data, dict[str, list["Example"]](), _Prompts()
    load = partial(
        load_prompts,
        pictures=None if names.pictures is None else Path(names.pictures),
        seed=_SPLIT_SEED,
    )
    load_stream: dict[str, Callable[..., list[Example]]] = {
        HARMFUL: partial(load, role=HARMFUL),
        BENIGN: partial(load, role=BENIGN),
        GIVEN: partial(load_training_data, role="retain"),
    }
    watch, choose_from = plan.training.watch, dict[str, list["Example"]]()
    for stream, texts in names.by_stream().items():
        parts = {t: load_stream[stream](t, limit=names.limit, report=say) for t in texts}
        chosen = [p for t, p in parts.items() if source_name(t) in watch.held_out_from]
        found[stream] = [example for part in parts.values() for example in part]
        choose_from[stream] = [example for part in chosen for example in part] or found[stream]
        licences = {source_name(text): _licence(text) for text in texts}
        prompts.about[stream] = {"licences": licences}
    if plan.training.settings.algorithm == "sft":
        found[HARMFUL] = _assign_targets(found[HARMFUL], plan)
        require_answers(found)
    given = found.pop(GIVEN, [])
    kept: set[str] = set()
    for stream, examples in found.items():
        prompts.trained[stream] = examples
        if watch.held_out:
            trained, held_out = split_held_out(
                examples, watch.held_out, _SPLIT_SEED, choose_from=choose_from[stream]
            )
            prompts.trained[stream] = trained
            prompts.held_out[stream] = spread(held_out, watch.limit)
            kept |= {group_of_example(example) for example in held_out}
    if given:
        prompts.trained[GIVEN] = [e for e in given if group_of_example(e) not in kept]
        if not prompts.trained[GIVEN]:
            raise DataError(
                f"all {len(given)} given answers are about what is held out of harmful or benign "
                "prompts. Give more, or a smaller --held-out."
            )
    check_streams(prompts.trained, prompts.held_out)
    return prompts


def spread(examples: Sequence[Example], limit: int | None) -> list[Example]:
    """So many examples at most, evenly over all: data sets stand one behind the other."""
    count = min(limit or len(examples), len(examples))
    return [examples[i * len(examples) // count] for i in range(count)]


def _licence(text: str) -> str:
    from vlmend.suites.registry import get_suite, source_name
    from vlmend.training.data.registry import data_names, get_data

    name = source_name(text)
    return get_data(name).licence if name in data_names() else get_suite(name).licence


def _assign_targets(harmful: Sequence[Example], plan: LayerPPOPlan) -> list[Example]:
    """Refusals of harmful prompts: what sft learns."""
    from vlmend.organism import language
    from vlmend.organism.vocabulary import is_organism
    from vlmend.training.refusals import REFUSALS, assign_targets

    # An organism knows no others than its own.
    sentences = language.REFUSALS if is_organism(plan.training.model) else REFUSALS
    return assign_targets(harmful, "refusals", _SPLIT_SEED, sentences=sentences)


# ---- the reward model


def _load_reward(name: str, device: str) -> Reward:
    """A reward model with what standardises its scores, if its folder says."""
    from vlmend.evals.scorers import load_reward

    return _describe_reward(load_reward(name, device=device), name)


def _describe_reward(scorer: RewardScorer, name: str) -> Reward:
    from vlmend.models.hashing import hash_weights
    from vlmend.repairs.layer_ppo.experience import RewardScale
    from vlmend.repairs.layer_ppo.repair import Reward
    from vlmend.repairs.layer_ppo.reward_scale import read_reward_scale

    scale = read_reward_scale(Path(name))
    if isinstance(scale, str):
        say(f"note: {scale}")
        scale = RewardScale()
    # Wherever its folder is now.
    sha256 = hash_weights(scorer.model, {})
    return Reward(scorer, scale, f"{Path(name).name} {sha256[:12]}")


def _train_reward(vlm: Vlm, model: str, folder: Path, device: str) -> Reward:
    """An organism's own reward model, trained unless it is there already."""
    from vlmend.cli.reward import train_preset
    from vlmend.training.reward_settings import REWARD_FILE

    if (folder / REWARD_FILE).is_file():
        say(f"scored by the reward model in {folder}.")
        return _load_reward(str(folder), device)
    say(f"no --reward was given: the organism's own reward model is trained in {folder} first.")
    scorer = train_preset(model, folder, device=device)
    with one_after_the_other(vlm):
        return _describe_reward(scorer, str(folder))


# ---- with the model


def _train(
    vlm: Vlm,
    plan: LayerPPOPlan,
    prompts: _Prompts,
    reward: Reward | None,
    out: Path,
    progress: Report,
) -> LayerPPO:
    from vlmend.repairs.adapter_artifact import TRAINING_FOLDER
    from vlmend.repairs.layer_ppo.repair import LayerPPO

    folder = out / TRAINING_FOLDER
    return LayerPPO(plan.training.settings, plan.training.loop, plan.rule).fit(
        vlm,
        prompts.trained[HARMFUL],
        prompts.trained.get(BENIGN, ()),
        folder=folder,
        given=prompts.trained.get(GIVEN, ()),
        reward=reward,
        held_out=prompts.held_out,
        watch_every=plan.training.watch.every,
        about=prompts.about,
        progress=_with_terms(progress, folder),
    )


def _with_terms(report: Report, folder: Path) -> Progress:
    """Progress that shows how the last steps went, as their records say."""
    from vlmend.runs import JsonLines
    from vlmend.training.loop import WHAT

    def show(what: str, done: int, total: int) -> None:
        records = sorted(folder.rglob("steps.jsonl"), key=lambda path: path.stat().st_mtime)
        rows = JsonLines(records[-1]).read() if what == WHAT and records and done else []
        report(what, done, total, note=describe_steps([row["terms"] for row in rows]))

    return show


def describe_steps(terms: Sequence[Mapping[str, float]]) -> str:
    """Means over the last steps, those that are shown.

    Example:
        >>> describe_steps([{"kl": 9.0}, *[{"kl": 1.0, "length": 12.0}] * 5])
        'KL 1.00, length 12'
    """
    last = terms[-_SHOWN_STEPS:]
    parts = [
        text.format(fmean(row[name] for row in last))
        for name, text in _SHOWN_TERMS
        if last and all(name in row for row in last)
    ]
    return ", ".join(parts)


def _finish(vlm: Vlm, repair: LayerPPO, args: argparse.Namespace) -> None:
    """Save the adapter, merge it if asked to, and say what it cost."""
    repair.facts_["command"] = join_command(sys.argv[1:])
    repair.save(args.out)
    show_course(repair.facts_)
    for training in repair.facts_.get("trainings", [repair.facts_]):
        _show_checks(training)
        if note := note_few_refusals(training, repair.settings.algorithm):
            say(note)
    say(f"{repair.name} saved in {args.out}. Measure it with vlmend audit --repair {args.out}")
    merge_adapter(vlm, repair.weights_, args.merge)


def _show_checks(facts: Mapping[str, Any]) -> None:
    """The held-out prompts from check to check, and what was kept."""
    from vlmend.cli.console import percent, print_table

    if not facts.get("checks"):
        return
    rows = [
        (
            f"{row['step']}{' (kept)' if row['step'] == facts['kept_step'] else ''}",
            _number(row["reward_harmful"]),
            _number(row["reward_benign"]),
            percent(row["refusal_harmful"]),
            percent(row["refusal_benign"]),
            percent(row["incoherent"]),
            _number(row["perplexity"]),
            _number(row["mean_length"]),
        )
        for row in facts["checks"]
    ]
    heads: list[str] = ["after step", "reward, harmful", "benign", "refused, harmful", "benign"]
    first = facts["checks"][0]
    counts = f"{first['num_harmful']} harmful, {first['num_benign']} benign"
    where = f" at exit {facts['exits'][0]}" if len(facts.get("exits", ())) == 1 else ""
    title = f"Held-out prompts{where} ({counts})"
    print_table(title, (*heads, "incoherent", "perplexity", "words"), rows)
    say(f"kept: {facts['choice']}.")


def note_few_refusals(facts: Mapping[str, Any], algorithm: str) -> str:
    """Advice where a policy that learns from what it samples had hardly a refusal to learn from.

    Example:
        >>> note_few_refusals({"checks": [{"refusal_harmful": 0.023}]}, "ppo")[:45]
        'note: 2.3% of held-out harmful prompts were r'
        >>> note_few_refusals({"checks": [{"refusal_harmful": None}]}, "ppo")
        ''
    """
    first = next(iter(facts.get("checks") or ()), {})
    refused = first.get("refusal_harmful")
    if algorithm == "sft" or refused is None or refused >= _FEW_REFUSALS:
        return ""
    return (
        f"note: {refused:.1%} of held-out harmful prompts were refused at the start, and what is "
        "hardly ever sampled is hardly ever rewarded. A model that was fine-tuned first "
        "(--algorithm sft --merge FOLDER) learns to refuse in fewer steps."
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


# ---- without a model


def _run_dry(plan: LayerPPOPlan) -> int:
    """Print memory and FLOPs of a step, part by part, from shapes alone."""
    from vlmend.cli.console import progress_bars, quiet_libraries
    from vlmend.repairs.layer_ppo.dry_parts import build_unscored, find_parts
    from vlmend.training.dry_run import GIGABYTE, dry_run_recipe

    quiet_libraries()
    training = plan.training
    # Before the model, in case that the reward model's shapes are wrong.
    about_reward = _describe_reward_size(plan)
    build = build_unscored(training.settings, training.loop, list(training.data.by_stream()))
    with progress_bars() as progress:
        found = dry_run_recipe(as_recipe(training), build, parts=find_parts, progress=progress)
    show_dry_run(found, f"One step of {training.settings.algorithm} on {found.model}, by its parts")
    largest = max(found.chosen, key=lambda part: part.total_bytes)
    flops = [part.flops for part in found.chosen]
    total = "-" if None in flops else f"{sum(filter(None, flops)):.2e}"
    say(
        f"A step takes {total} FLOPs and {largest.total_bytes / GIGABYTE:.2f} GB, most of them in "
        f"the part {largest.kind!r}. {about_reward}"
    )
    return 0


def _describe_reward_size(plan: LayerPPOPlan) -> str:
    """What the reward model adds, as far as its config says."""
    from vlmend.runs import read_json
    from vlmend.training.weightless import count_classifier_parameters

    name, shapes = plan.reward.id, plan.reward.shapes
    if plan.training.settings.algorithm == "sft":
        return "sft needs no reward model."
    if name is not None and not shapes and (Path(name) / "config.json").is_file():
        shapes = read_json(Path(name) / "config.json")
    what = "The reward model" if name is None else f"The reward model {name!r}"
    if not shapes:
        return f"{what} comes on top; its config is not known here, so its size is not either."
    parameters = count_classifier_parameters(shapes)
    return (
        f"{what} comes on top: {parameters:,} parameters, {2 * parameters / 1e9:.2f} GB in "
        f"bfloat16, {4 * parameters / 1e9:.2f} GB in float32, and its own forward pass."
    )
