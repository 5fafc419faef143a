"""`vlmend reward`: train a reward model on preference pairs, or measure any on them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmend.cli.adapter_training import is_first, say
from vlmend.cli.options import join_command, positive, refuse_foreign_folder, split_names
from vlmend.cli.settings_options import add_settings, given_settings
from vlmend.errors import ConfigError
from vlmend.training.loop_settings import LoopSettings
from vlmend.training.reward_settings import REWARD_FILE, TRAINING_FOLDER, RewardSettings

if TYPE_CHECKING:
    from vlmend.evals.scorers import RewardScorer
    from vlmend.training.examples import Example

_DATA_HELP = "preference data, NAME or NAME=FOLDER (see `vlmend list data`)"


@dataclass
class _Data:
    """Pairs, and under which licences they come."""

    examples: list[Example] = field(default_factory=list["Example"])
    licences: dict[str, str] = field(default_factory=dict[str, str])


def add_parser(commands: Any) -> None:
    """Declare the command with its two actions."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "reward",
        help="train a reward model on preference pairs, or measure one",
        description="A reward model gives an answer a number, from the request's text and the "
        "answer alone. Any text classifier with one output can be used as one.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_train(actions)
    _add_evaluate(actions)


def _add_train(actions: Any) -> None:
    parser: argparse.ArgumentParser = actions.add_parser(
        "train",
        help="train a reward model",
        description="Train a reward model with the Bradley-Terry loss and save it as transformers "
        "does. The same command goes on where an interrupted one stopped. 'organism', like one in "
        "a folder of `vlmend organism train`, has a preset.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="what to start from: a text model, a reward model, or a vision-language model whose "
        "decoder is taken ('organism'); a folder or a Hugging Face id",
    )
    parser.add_argument("--data", type=split_names, metavar="A,B", help=_DATA_HELP)
    parser.add_argument("--limit", type=positive, metavar="N", help="first N of every data set")
    parser.add_argument("--out", type=Path, required=True, help="folder of the reward model")
    _add_device(parser)
    add_settings(parser, RewardSettings, "what is trained")
    add_settings(parser, LoopSettings, "how it is optimised")
    parser.set_defaults(run=run_train)


def _add_evaluate(actions: Any) -> None:
    parser: argparse.ArgumentParser = actions.add_parser(
        "evaluate",
        help="measure how often a reward model prefers what was preferred",
        description="Pair accuracy of any reward model, with 95 % intervals over things or "
        "dialogues.",
    )
    parser.add_argument("reward", metavar="REWARD", help="a folder or a Hugging Face id")
    parser.add_argument("--data", type=split_names, required=True, metavar="A,B", help=_DATA_HELP)
    parser.add_argument("--limit", type=positive, metavar="N", help="first N of every data set")
    parser.add_argument(
        "--batch-size", type=positive, default=16, metavar="N", help="answers at once (default: 16)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result there as JSON")
    _add_device(parser)
    parser.set_defaults(run=run_evaluate)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)"
    )


# ---- train


def run_train(args: argparse.Namespace) -> int:
    """Run `vlmend reward train`: first all that can be checked without the model."""
    preset = _preset(args.model)
    settings = RewardSettings(**{**preset["reward"], **given_settings(args, RewardSettings)})
    loop = LoopSettings(**{**preset["loop"], **given_settings(args, LoopSettings)})
    names = args.data or preset["data"]
    if not names:
        raise ConfigError(
            "no preference data was named. Give --data NAME or NAME=FOLDER; `vlmend list data` "
            "has the names."
        )
    refuse_foreign_folder(args.out, REWARD_FILE, TRAINING_FOLDER)
    _train(args.model, names, settings, loop, args.out, limit=args.limit, device=args.device)
    return 0


def train_preset(model: str, out: Path, *, device: str) -> RewardScorer:
    """Train and save a reward model as `vlmend reward train` does when nothing else is asked for.

    Args:
        model: What to start from; one that has a preset.
        out: Folder of the reward model; an interrupted training in it goes on.
        device: As on the command line.
    """
    preset = _preset(model)
    settings, loop = RewardSettings(**preset["reward"]), LoopSettings(**preset["loop"])
    return _train(model, preset["data"], settings, loop, out, limit=None, device=device)


def _train(
    model: str,
    names: tuple[str, ...],
    settings: RewardSettings,
    loop: LoopSettings,
    out: Path,
    *,
    limit: int | None,
    device: str,
) -> RewardScorer:
    from vlmend.cli.console import progress_bars, quiet_libraries
    from vlmend.evals.scorers import RewardScorer
    from vlmend.models.load import load_classifier_base
    from vlmend.training.reward_model import check_pairs, hold_out, save_reward, train_reward
    from vlmend.training.trackers import check_trackers

    check_trackers(loop.report_to)
    quiet_libraries()
    data = _load_data(names, limit)
    check_pairs(data.examples)
    hold_out(data.examples, settings.held_out, loop.seed)
    scorer = RewardScorer(*load_classifier_base(model, seed=loop.seed, device=device))
    with progress_bars() as progress:
        facts = train_reward(scorer, data.examples, settings, loop, out, progress=progress)
    if is_first():
        save_reward(out, scorer, {"base_model": model, **_facts(data), **facts})
        _show_training(facts, out)
    return scorer


def _preset(model: str) -> Mapping[str, Any]:
    from vlmend.organism.presets import REWARD
    from vlmend.organism.vocabulary import is_organism

    return REWARD if is_organism(model) else {"data": (), "reward": {}, "loop": {}}


def _load_data(names: tuple[str, ...], limit: int | None) -> _Data:
    from vlmend.suites.registry import source_name
    from vlmend.training.data.registry import get_data, load_training_data

    data = _Data()
    for text in names:
        data.examples += load_training_data(text, role="preference", limit=limit, report=say)
        name = source_name(text)
        data.licences[name] = get_data(name).licence
    return data


def _facts(data: _Data) -> dict[str, Any]:
    from vlmend.evals.metrics import now, software_versions

    return {
        "created": now(),
        "command": join_command(sys.argv[1:]),
        "versions": software_versions(),
        "licences": data.licences,
    }


def _show_training(facts: Mapping[str, Any], out: Path) -> None:
    for note in facts["notes"]:
        say(f"note: {note}")
    ledger = facts["ledger"]
    flops = "-" if ledger["flops"] is None else f"{ledger['flops']:.2e}"
    say(
        f"{ledger['steps']} steps, {ledger['seconds']:,.0f} s, {flops} FLOPs, peak memory "
        f"{ledger['peak_memory_bytes'] / 2**20:,.0f} MiB, {ledger['tokens']:,} tokens"
    )
    _show_pairs("Pairs held out", facts["held_out"])
    say(f"reward model saved in {out}. Measure it with vlmend reward evaluate {out} --data NAME")


# ---- evaluate


def run_evaluate(args: argparse.Namespace) -> int:
    """Run `vlmend reward evaluate`."""
    if args.out is not None and args.out.is_dir():
        raise ConfigError(f"--out {str(args.out)!r} is a folder. Give a file, such as pairs.json.")

    from vlmend.cli.console import progress_bars, quiet_libraries
    from vlmend.evals.scorers import load_reward
    from vlmend.runs import write_json
    from vlmend.training.data_facts import describe_data
    from vlmend.training.reward_model import STREAM, check_pairs, measure_pairs

    quiet_libraries()
    data = _load_data(args.data, args.limit)
    check_pairs(data.examples)
    scorer = load_reward(args.reward, device=args.device)
    scorer.batch_size = args.batch_size
    with progress_bars() as progress:
        found = measure_pairs(scorer, data.examples, progress=progress)
    _show_pairs(f"Pairs of {', '.join(data.licences)}", found)
    if args.out is not None:
        about = {"reward": args.reward, "data": describe_data({STREAM: data.examples})}
        write_json(args.out, {"schema": 1, "kind": "pairs", **_facts(data), **about, **found})
        say(f"result: {args.out}")
    return 0


def _show_pairs(title: str, found: Mapping[str, Any]) -> None:
    from vlmend.cli.console import interval, percent, print_table

    rates = {"all": found["accuracy"], **found["by_pair"]}
    rows = [
        (
            kind,
            str(rate["n"]),
            str(rate["num_groups"]),
            f"{percent(rate['rate'])} {interval(rate['low'], rate['high'])}",
        )
        for kind, rate in rates.items()
        if kind == "all" or len(rates) > 2
    ]
    heads = ("pairs", "n", "groups", "preferred answer scored higher, 95 %")
    print_table(title, heads, rows)
    scores = found["scores"]
    rows = [(name, f"{s['mean']:.2f}", f"{s['std']:.2f}") for name, s in scores.items()]
    print_table("Rewards", ("answers", "mean", "standard deviation"), rows)
