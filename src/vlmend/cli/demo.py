"""`vlmend demo`: the whole idea on the model organism: audit, mend with ShiftDC, audit again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from vlmend.cli.audit import RUN_FILES
from vlmend.cli.options import join_command, refuse_foreign_folder

SUITES = ("text", "caption", "icon", "typographic", "both", "text+image", "benign", "vqa")
EXIT_SUITES = ("icon", "text+image", "benign")
LIMIT: int | None = None
"""First so many items of every suite; None for all."""
EXIT_LIMIT = 90
"""The same at exits other than the default."""


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "demo",
        help="audit the built-in model organism, mend it with ShiftDC, audit it again",
        description="Runs base and ShiftDC on the organism's six harmful suites, benign requests "
        "and visual questions, with an exit sweep, and writes report.html and metrics.json. "
        "Resumes by itself.",
    )
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="run folder")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from vlmend.audit import AuditPlan, SuitePlan, run_audit
    from vlmend.cli.console import console, progress_bars, quiet_libraries, show_run
    from vlmend.evals.arms import BASE, Arm
    from vlmend.evals.captions import CaptionCache
    from vlmend.models.load import load_vlm
    from vlmend.repairs.protocol import ARTIFACT_FILE
    from vlmend.repairs.shiftdc.repair import ShiftDC, ShiftDCSettings
    from vlmend.suites.registry import load_suite

    refuse_foreign_folder(args.out, *RUN_FILES)
    quiet_libraries()
    vlm = load_vlm("organism")
    captions = CaptionCache(args.out / "captions.jsonl")
    if (args.out / "shiftdc" / ARTIFACT_FILE).exists():
        # Fitted anew it could differ in the last digit, and would then be another repair.
        repair = ShiftDC.load(args.out / "shiftdc", vlm, captions)
    else:
        with console.status("fitting ShiftDC on things that are measured nowhere"):
            repair = ShiftDC(ShiftDCSettings(caption_tokens=32), captions)
            repair.fit(vlm, load_suite("organism/fit", LIMIT)).save(args.out / "shiftdc")
    plan = AuditPlan(
        suites=tuple(
            SuitePlan(
                f"organism/{name}",
                "all" if name in EXIT_SUITES else "default",
                limit=LIMIT,
                exit_limit=EXIT_LIMIT,
            )
            for name in SUITES
        ),
        max_new_tokens=40,
        title="Audit, mend, audit again: the vlmend model organism",
    )
    with progress_bars() as progress:
        metrics = run_audit(
            vlm,
            plan,
            args.out,
            arms=(BASE, Arm("shiftdc", (repair,))),
            resume=True,
            progress=progress,
            command=join_command(sys.argv[1:]),
        )
    show_run(metrics, args.out, exits=False)
    return 0
