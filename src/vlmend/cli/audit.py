"""`vlmend audit`: measure a model, and repaired ones beside it, on the same items."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmend.cli.options import (
    add_model_options,
    join_command,
    open_model,
    parse_batch_size,
    parse_exits,
    positive,
    refuse_foreign_folder,
    split_names,
)

if TYPE_CHECKING:
    from vlmend.evals.arms import Arm
    from vlmend.models.vlm import Vlm


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
    parser.add_argument(
        "--repair",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="artifact of `vlmend repair`, measured as an arm of its own; can be repeated",
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="first N items of every suite")
    parser.add_argument(
        "--max-new-tokens",
        type=positive,
        default=64,
        metavar="N",
        help="answer length (default: 64)",
    )
    parser.add_argument(
        "--batch-size",
        type=parse_batch_size,
        default=None,
        metavar="auto|N",
        help="prompts a batch; auto halves it when memory runs out (default: auto)",
    )
    parser.add_argument("--out", type=Path, default=Path("out/audit"), help="run folder")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from vlmend.audit import AuditPlan, SuitePlan, run_audit
    from vlmend.cli.console import console, print_cells, print_comparisons, progress_bars
    from vlmend.cli.console import quiet_libraries as quiet
    from vlmend.report.render import render_report

    refuse_foreign_folder(args.out, "run.json", "captions.jsonl", ".lock")
    quiet()
    vlm = open_model(args)
    plan = AuditPlan(
        suites=tuple(SuitePlan(name, args.exits, args.limit) for name in args.suite),
        judges=args.judge,
        max_new_tokens=args.max_new_tokens,
        batch_size=args.batch_size,
        title=f"Safety audit of {args.model}",
    )
    with progress_bars() as progress:
        metrics = run_audit(
            vlm,
            plan,
            args.out,
            arms=load_arms(vlm, args.repair, args.out),
            resume=args.resume,
            progress=progress,
            command=join_command(sys.argv[1:]),
        )
    report = render_report(metrics, args.out / "report.html")
    print_cells(metrics)
    print_comparisons(metrics["comparisons"])
    console.print(f"report: {report}", highlight=False, soft_wrap=True)
    return 0


def load_arms(vlm: Vlm, artifacts: list[Path], out: Path) -> tuple[Arm, ...]:
    """The base arm and one for each artifact, named by its kind and, if needed, its folder."""
    from vlmend.evals.arms import BASE, Arm
    from vlmend.repairs.protocol import load_repair
    from vlmend.repairs.shiftdc.captions import CaptionCache
    from vlmend.repairs.shiftdc.repair import ShiftDC

    arms = [BASE]
    captions = CaptionCache(out / "captions.jsonl") if artifacts else None
    for path in artifacts:
        repair = load_repair(path, vlm)
        if isinstance(repair, ShiftDC) and captions is not None:
            # The artifact may be read-only and shared; captions belong to the run.
            repair.captions = captions
        taken = {arm.name for arm in arms}
        name = repair.name if repair.name not in taken else f"{repair.name} {path.name}"
        arms.append(Arm(name, (repair,)))
    return tuple(arms)
