"""`vlmend audit`: measure a model, and repaired ones beside it, on the same items."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmend.cli.options import (
    add_model_options,
    add_run_options,
    join_command,
    open_model,
    parse_exits,
    parse_shard,
    positive,
    refuse_foreign_folder,
    split_names,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vlmend.evals.arms import Arm
    from vlmend.models.vlm import Vlm
    from vlmend.types import Sample

RUN_FILES = ("run.json", "captions.jsonl", ".lock")
"""Files of which one marks a folder as that of a run."""


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "audit",
        help="measure a model on safety suites, with or without repairs",
        description="Answer suites, judge the answers, and write a run folder with a report.",
    )
    add_model_options(parser)
    parser.add_argument(
        "--suite",
        type=split_names,
        required=True,
        metavar="A,B",
        help="suites, NAME or NAME=FOLDER, separated by commas (see `vlmend list suites`)",
    )
    parser.add_argument(
        "--judge",
        type=split_names,
        default=(),
        metavar="A,B",
        help="judges (default: each suite's own; see `vlmend list judges`)",
    )
    parser.add_argument(
        "--exits",
        type=parse_exits,
        default="default",
        metavar="default|all|0,3,6",
        help="vision exits to measure besides the default path (default: none)",
    )
    _add_arms(parser)
    parser.add_argument("--limit", type=positive, metavar="N", help="first N items of every suite")
    add_run_options(parser, out="out/audit")
    parser.add_argument(
        "--shard",
        type=parse_shard,
        metavar="K/N",
        help="answer one of N shares of the run, in the same folder as the others, at the same "
        "time or later; whoever completes the run writes the report",
    )
    parser.add_argument(
        "--no-batch-check",
        dest="batch_check",
        action="store_false",
        help="do not answer eight items twice to see whether batching changes answers",
    )
    parser.set_defaults(run=run)


def _add_arms(parser: argparse.ArgumentParser) -> None:
    """What is measured besides the model as it is, and besides what it answers."""
    parser.add_argument(
        "--repair",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="artifact of `vlmend repair`, measured as an arm of its own; can be repeated",
    )
    parser.add_argument(
        "--text-branch",
        action="store_true",
        help="measure one more arm: the model's own caption in place of the image",
    )
    parser.add_argument(
        "--control",
        type=split_names,
        default=(),
        metavar="A,B",
        help="measure the items with pictures once more with none, blank, noise, unrelated, or "
        "caption in place of the picture: is it the picture or what it says?",
    )
    parser.add_argument(
        "--perplexity",
        action="store_true",
        help="score every answer under the base model: does a repaired model still write?",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command: first all that can be checked without the model, then the model."""
    from vlmend.runs import require_no_run

    refuse_foreign_folder(args.out, *RUN_FILES)
    if not args.resume and args.shard is None:
        require_no_run(args.out)

    from vlmend.audit import AuditPlan, SuitePlan, load_suites, run_audit
    from vlmend.cli.console import progress_bars, quiet_libraries, show_run
    from vlmend.evals.control_arms import check_controls
    from vlmend.repairs.protocol import read_artifact

    quiet_libraries()
    plan = AuditPlan(
        suites=tuple(SuitePlan(name, args.exits, args.limit) for name in args.suite),
        judges=args.judge,
        max_new_tokens=args.max_new_tokens,
        batch_size=args.batch_size,
        perplexity=args.perplexity,
        title=f"Safety audit of {args.model}",
        batch_check=args.batch_check,
    )
    for path in args.repair:
        read_artifact(path)
    suites = load_suites(plan)
    samples = [sample for suite in suites for sample in suite.samples]
    check_controls(args.control, samples)
    vlm = open_model(args)
    arms = load_arms(
        vlm,
        args.repair,
        args.out,
        text_branch=args.text_branch,
        controls=args.control,
        samples=samples,
    )
    with progress_bars(arm.name for arm in arms) as progress:
        metrics = run_audit(
            vlm,
            plan,
            args.out,
            arms=arms,
            suites=suites,
            resume=args.resume,
            shard=args.shard,
            progress=progress,
            command=join_command(sys.argv[1:]),
        )
    if metrics:
        show_run(metrics, args.out)
        _show_checks(metrics)
    else:
        _show_share(args)
    return 0


def _show_checks(metrics: Mapping[str, Any]) -> None:
    """What controls say, and whether batching changed answers."""
    from vlmend.cli.console import console, interval, percent, print_table
    from vlmend.evals.batch_invariance import warn_of_batches

    if metrics["controls"]:
        columns = (
            *("suite", "instead of the picture", "pairs", "complied", "change, points"),
            *("Holm p", "reading"),
        )
        rows = [
            (
                record["suite"],
                record["control"],
                str(record["n"]),
                f"{percent(record['asr_image'])} -> {percent(record['asr_control'])}",
                interval(record["low"], record["high"]),
                f"{record['p_holm']:.2g}",
                record["reading"],
            )
            for record in metrics["controls"]
        ]
        print_table("Is it the picture or what it says?", columns, rows)
    warning = warn_of_batches(metrics["batch_check"]) if metrics["batch_check"] else ""
    if warning:
        console.print(f"warning: {warning}", highlight=False, markup=False)


def _show_share(args: argparse.Namespace) -> None:
    """What is still missing after a share was done."""
    from vlmend.cli.console import console
    from vlmend.evals.stored import read_progress

    line = f"share {args.shard} is done; {read_progress(args.out).describe()}"
    console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(
        "Run the other shares, or without --shard and with --resume: that answers what is missing "
        "and writes the report.",
        highlight=False,
        soft_wrap=True,
    )


def load_arms(
    vlm: Vlm,
    artifacts: list[Path],
    out: Path,
    *,
    text_branch: bool = False,
    controls: Sequence[str] = (),
    samples: Sequence[Sample] = (),
) -> tuple[Arm, ...]:
    """The base arm and one for each artifact, named by its repair and, if needed, its folder.

    Args:
        vlm: The model.
        artifacts: Folders of repairs.
        out: The run folder, where captions are kept.
        text_branch: Add the text branch, its captions as long as ShiftDC's.
        controls: Controls to add (`evals.control_arms`).
        samples: All items of the run, which controls are made for.
    """
    from vlmend.evals.arms import BASE, Arm
    from vlmend.evals.caption_arm import CaptionInstead, text_branch_arm
    from vlmend.evals.captions import CaptionCache
    from vlmend.evals.control_arms import control_arms
    from vlmend.repairs.protocol import load_repair
    from vlmend.repairs.shiftdc.repair import ShiftDC

    # An artifact may be read-only and shared; captions belong to the run.
    captions = CaptionCache(out / "captions.jsonl")
    repairs = [load_repair(path, vlm) for path in artifacts]
    names = [repair.name for repair in repairs]
    arms = [BASE]
    for path, repair in zip(artifacts, repairs, strict=True):
        if isinstance(repair, ShiftDC):
            repair.captions = captions
        name = repair.name if names.count(repair.name) == 1 else f"{repair.name} ({path})"
        arms.append(Arm(name, (repair,)))
    lengths = [r.settings.caption_tokens for r in repairs if isinstance(r, ShiftDC)]
    caption_tokens = max(lengths, default=CaptionInstead.caption_tokens)
    if text_branch:
        arms.append(text_branch_arm(captions, caption_tokens))
    return (*arms, *control_arms(controls, samples, captions, caption_tokens))
