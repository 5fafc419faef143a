"""`vlmend list`: what there is to choose from."""

from __future__ import annotations

import argparse
from typing import Any

WHAT = ("suites", "judges", "families", "repairs")


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "list", help="list suites, judges, model families or repairs"
    )
    parser.add_argument("what", choices=WHAT)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from rich.table import Table

    from vlmend.cli.console import results

    header, rows = {
        "suites": _suites,
        "judges": _judges,
        "families": _families,
        "repairs": _repairs,
    }[args.what]()
    table = Table(*header, header_style="bold")
    for row in rows:
        table.add_row(*row)
    results.print(table)
    return 0


Listing = tuple[tuple[str, ...], list[tuple[str, ...]]]


def _suites() -> Listing:
    from vlmend.suites.registry import get_suite, suite_names

    specs = [get_suite(name) for name in suite_names()]
    header = ("suite", "what", "harm readable in text", "judge", "licence", "data")
    return header, [
        (
            spec.name,
            spec.description,
            spec.leak,
            spec.default_judge,
            spec.licence,
            f"{spec.name}=FOLDER" if spec.needs_folder else "built in",
        )
        for spec in specs
    ]


def _judges() -> Listing:
    from vlmend.judges.registry import get_judge, judge_names

    judges = [get_judge(name) for name in judge_names()]
    return ("judge", "revision", "what"), [(j.name, j.revision, j.description) for j in judges]


def _families() -> Listing:
    from vlmend.models.families import FAMILIES

    return ("model_type", "family", "quirks"), [
        (name, spec.title, " ".join(spec.notes)) for name, spec in sorted(FAMILIES.items())
    ]


def _repairs() -> Listing:
    from vlmend.repairs.protocol import KINDS

    return ("repair", "fit it with"), [(name, f"vlmend repair {name}") for name in KINDS]
