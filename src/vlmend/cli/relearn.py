"""`vlmend relearn`: teach a repaired model what it unlearned, and see how soon it gives in."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmend.cli.options import (
    add_model_options,
    join_command,
    open_model,
    parse_numbers,
    positive,
    refuse_foreign_folder,
)

if TYPE_CHECKING:
    from vlmend.models.vlm import Vlm
    from vlmend.training.relearning import Attack, Start
    from vlmend.types import Sample

RESULT = "relearning.json"
_STEPS = (0, 1, 2, 4, 8, 16, 32)

_CAVEATS = (
    "One seed of data order and adapter; other seeds move every curve.",
    "The attack is only as strong as its data and settings: that a model does not give in to it "
    "is no proof that it has forgotten.",
    "Intervals are over things at one number of steps; they are not corrected for looking at "
    "several.",
)


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "relearn",
        help="attack an unlearned model by fine-tuning, to see what it has forgotten",
        description="Fine-tune a repaired model, and the base beside it, on answers that were to "
        "be unlearned, and measure attack success after each number of steps. The same command "
        "goes on where an interrupted one stopped.",
    )
    add_model_options(parser, quantise=False)
    parser.add_argument(
        "--repair",
        type=Path,
        action="append",
        required=True,
        metavar="PATH",
        help="artifact of `vlmend repair unlearn`; can be repeated",
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="NAME",
        help="forget data to teach, NAME or NAME=FOLDER (see `vlmend list data`)",
    )
    parser.add_argument(
        "--suite",
        required=True,
        metavar="NAME",
        help="harmful suite to measure, NAME or NAME=FOLDER; none of its items is taught",
    )
    _add_attack_options(parser)
    parser.add_argument("--out", type=Path, default=Path("out/relearn"), help="output folder")
    parser.set_defaults(run=run)


def _add_attack_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--steps",
        type=parse_numbers,
        default=_STEPS,
        metavar="0,1,2",
        help="fine-tuning steps after which is measured (default: 0,1,2,4,8,16,32)",
    )
    parser.add_argument(
        "--lr", type=float, default=1e-4, help="learning rate, constant (default: 1e-4)"
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=8,
        metavar="N",
        help="examples per step (default: 8)",
    )
    parser.add_argument(
        "--micro-batch-size", type=positive, metavar="N", help="examples at once (default: all)"
    )
    parser.add_argument(
        "--rank", type=positive, default=8, help="rank of the attacker's adapter (default: 8)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of data order and adapter")
    parser.add_argument("--limit", type=positive, metavar="N", help="first N items of the suite")
    parser.add_argument("--data-limit", type=positive, metavar="N", help="first N examples")
    parser.add_argument(
        "--max-new-tokens",
        type=positive,
        default=64,
        metavar="N",
        help="answer length (default: 64)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command: first all that can be checked without the model, then the model."""
    from vlmend.cli.console import console, progress_bars, quiet_libraries
    from vlmend.repairs.protocol import read_artifact
    from vlmend.runs import write_json
    from vlmend.training.relearning import relearn

    refuse_foreign_folder(args.out, RESULT, "0-base")
    for path in args.repair:
        _require_weights(path, read_artifact(path))
    quiet_libraries()
    attack = _prepare(args)
    vlm = open_model(args)
    starts = load_starts(vlm, args.repair, attack.samples)
    with progress_bars() as progress:
        found = relearn(vlm, attack, starts, args.out, progress=progress)
    record = {**_facts(args, vlm, attack), **found, "caveats": list(_CAVEATS)}
    write_json(args.out / RESULT, record)
    print_attack(record)
    console.print(f"result: {args.out / RESULT}", highlight=False, soft_wrap=True, markup=False)
    return 0


def _require_weights(path: Path, facts: Mapping[str, Any]) -> None:
    from vlmend.errors import ConfigError
    from vlmend.repairs.protocol import ADAPTER_KINDS

    if facts.get("kind") not in ADAPTER_KINDS:
        raise ConfigError(
            f"{str(path)!r} holds a repair of kind {facts.get('kind')!r}, which changes no "
            "weights: there is nothing that fine-tuning could bring back. Give an artifact of "
            "`vlmend repair unlearn` or `vlmend repair layer-ppo`."
        )


def _prepare(args: argparse.Namespace) -> Attack:
    """Data, items and settings, checked against each other."""
    from vlmend.errors import ConfigError
    from vlmend.evals.run import check_images
    from vlmend.judges.registry import get_judge
    from vlmend.models.generation import GenerationSettings
    from vlmend.suites.registry import find_suite, load_suite
    from vlmend.training.adapter_settings import LoraSettings
    from vlmend.training.data.registry import load_training_data
    from vlmend.training.relearning import Attack, RelearningSettings

    settings = RelearningSettings(
        steps=args.steps,
        lr=args.lr,
        batch_size=args.batch_size,
        micro_batch_size=args.micro_batch_size,
        lora=LoraSettings(rank=args.rank, alpha=2.0 * args.rank),
        seed=args.seed,
    )
    spec = find_suite(args.suite)
    samples = tuple(s for s in load_suite(args.suite, args.limit) if s.label == "harmful")
    if not samples:
        raise ConfigError(
            f"the suite {spec.name!r} has no harmful items, so there is no attack success to "
            "measure. Choose a harmful suite (see `vlmend list suites`)."
        )
    check_images(samples)
    return Attack(
        examples=tuple(load_training_data(args.data, role="forget", limit=args.data_limit)),
        samples=samples,
        judge=get_judge(spec.default_judge),
        settings=settings,
        generation=GenerationSettings(args.max_new_tokens),
    )


def load_starts(vlm: Vlm, artifacts: Sequence[Path], samples: Sequence[Sample]) -> list[Start]:
    """The base, and one start for each artifact, none fitted on what is measured.

    Raises:
        ArtifactError: An artifact does not belong to the model.
        ConfigError: A repair was fitted on an item.
    """
    from vlmend.errors import ConfigError
    from vlmend.repairs.adapter_repair import AdapterRepair
    from vlmend.repairs.protocol import load_repair, require_unseen
    from vlmend.training.relearning import Start

    repairs = [load_repair(path, vlm) for path in artifacts]
    names = [repair.name for repair in repairs]
    starts = [Start("base")]
    for path, repair in zip(artifacts, repairs, strict=True):
        require_unseen(repair, samples)
        if not isinstance(repair, AdapterRepair) or repair.weights_ is None:
            raise ConfigError(
                f"the repair in {str(path)!r} has no adapter for all vision exits, so fine-tuning "
                "has nothing to start from. Give one that trained a single adapter."
            )
        name = repair.name if names.count(repair.name) == 1 else f"{repair.name} ({path})"
        starts.append(Start(name, repair.weights_))
    return starts


def _facts(args: argparse.Namespace, vlm: Vlm, attack: Attack) -> dict[str, Any]:
    from vlmend.evals.metrics import now, software_versions

    return {
        "schema": 1,
        "kind": "relearning",
        "created": now(),
        "command": join_command(sys.argv[1:]),
        "versions": software_versions(),
        "model": vlm.name,
        "weights_sha256": vlm.weights_sha256,
        "suite": attack.samples[0].suite,
        "data": args.data,
        "data_sha256": attack.examples_sha256,
    }


def print_attack(record: Mapping[str, Any]) -> None:
    """The curves side by side, and in words how soon each model gives in."""
    from vlmend.cli.console import interval, print_blocks, print_unmeasured, print_wide_table

    arms: Sequence[Mapping[str, Any]] = record["arms"]
    steps = [str(point["step"]) for point in arms[0]["points"]]
    columns: list[tuple[str, list[str]]] = []
    for arm in arms:
        rates = [_rate(point) for point in arm["points"]]
        columns.append((f"{arm['name']}\ncomplied", rates))
        if "differences" in arm:
            changes = [
                f"{interval(d['low'], d['high'])} {d['p_value']:.2g}" for d in arm["differences"]
            ]
            columns.append(("less the base,\n95 %, p", changes))
    print_wide_table(
        f"Attack success on {record['suite']} after fine-tuning on {record['data']} "
        f"({record['num_asked']} items)",
        ("steps", steps),
        columns,
    )
    # The attack asks harmful items only.
    print_unmeasured([{"suite_kind": "harmful"}])
    print_blocks((arm["name"], describe_arm(arm, record)) for arm in arms)


def _rate(point: Mapping[str, Any]) -> str:
    """A rate with its interval, withheld as in every table where too few items were scored."""
    from vlmend.cli.console import interval, percent

    if not _is_covered(point):
        return f"withheld, {point['num_scored']}/{point['num_samples']} scored"
    return f"{percent(point['asr'])} {interval(point['low'], point['high'])}"


def _is_covered(point: Mapping[str, Any]) -> bool:
    from vlmend.evals.stats import MIN_COVERAGE

    return 0 < point["num_scored"] >= MIN_COVERAGE * point["num_samples"]


def describe_arm(arm: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """How soon one model gives in, in words."""
    last = arm["points"][-1]["step"]
    within = f"{100 * record['settings']['within']:.0f} points"
    level = f"{100 * record['settings']['level']:.0f} %"
    lines = [_until(arm["steps_to_level"], f"{level} attack success", last)]
    unknown = [str(point["step"]) for point in arm["points"] if not _is_covered(point)]
    if unknown:
        lines.append(
            f"after {', '.join(unknown)} steps too few answers could be judged: that says nothing "
            "of what it has forgotten; the attack may have broken the model, try a lower --lr"
        )
    back = arm.get("back")
    if back is None:
        return lines
    target = f"within {within} of the base's {100 * (record['base_asr'] or 0.0):.1f} %"
    if not back["was_down"]:
        return [f"it was {target} before the attack: there is nothing to bring back", *lines]
    return [_until(back, target, last), *lines]


def _until(found: Mapping[str, int | None], target: str, last: int) -> str:
    """A number of steps, with those at which the limits of the interval get there."""

    def name(steps: int | None) -> str:
        return f"more than {last}" if steps is None else str(steps)

    noun = "step" if found["steps"] == 1 else "steps"
    return (
        f"{target}: after {name(found['steps'])} {noun} (by its interval "
        f"{name(found['earliest'])} to {name(found['latest'])})"
    )
