"""`vlmend compare`: paired tests between arms of one run, or between runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "compare",
        help="compare the arms of runs in pairs, on the same items",
        description="With one run: every arm against its first. With several: every arm of the "
        "later runs against the first run's base, if items, judges and generation agree.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of vlmend audit")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import json

    from vlmend.cli.console import print_comparisons, results
    from vlmend.evals.compare import compare_runs

    records = compare_runs(args.runs)
    if args.json:
        print(json.dumps(records, indent=2))
    elif records:
        print_comparisons(records)
    else:
        results.print("one arm only: nothing to compare")
    return 0
