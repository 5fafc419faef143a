"""`vlmend compare`: arms x suites, what training cost, and paired tests; of one run or several.

The curves over vision exits are printed by `vlmend.cli.compare_exits`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlmend.evals.arm_names import ShortNames
    from vlmend.evals.arms_table import ArmsTable, Column, TableCell
    from vlmend.evals.exit_curves import SuiteCurves

_PARTS = (
    ("Attack success rate, 95 % interval below (lower is better)", ("harmful",)),
    (
        "Benign requests answered and questions answered correctly, 95 % interval below (higher "
        "is better)",
        ("benign", "utility"),
    ),
)
"""Titles of the table's parts, and the kinds of suites in each."""


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "compare",
        help="compare the arms of runs in pairs, on the same items",
        description="With one run: every arm against its first. With several: every arm of the "
        "later runs against the first run's base, if items, judges and generation agree. Prints "
        "the table of arms and suites, what each arm's training cost, the paired tests, and the "
        "curve over vision exits where these were measured (audit --exits, or diagnose).",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="folders of vlmend audit, or of vlmend diagnose",
    )
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument(
        "--figure",
        type=Path,
        metavar="FILE",
        help="draw the curves over vision exits: .html, .svg or .pdf",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import json

    from vlmend.cli.console import print_line, print_unmeasured, results
    from vlmend.evals.arms_table import tabulate_runs
    from vlmend.evals.compare import compare_runs, describe_unfinished
    from vlmend.evals.exit_curves import build_curves
    from vlmend.evals.exit_items import are_diagnoses, read_exit_items
    from vlmend.report.exit_curves import check_figure, write_exit_curves

    if args.figure is not None:
        check_figure(args.figure)
    audits = not are_diagnoses(args.runs)
    records = compare_runs(args.runs) if audits else []
    table = tabulate_runs(args.runs, records) if audits else None
    unfinished = describe_unfinished(args.runs)
    curves = [build_curves(suite) for suite in read_exit_items(args.runs)]
    exits = [suite.record() for suite in curves]
    if args.figure is not None:
        write_exit_curves(exits, args.figure)
    if args.json:
        found: dict[str, Any] = {"comparisons": records, "exits": exits, "unfinished": unfinished}
        print(json.dumps(found | ({"table": table.record()} if table else {}), indent=2))
        return 0
    names = _name_arms(table, curves)
    for line in unfinished:
        results.print(line, highlight=False, markup=False)
    if table is not None:
        rows = [replace(row, arm=names.of[row.arm]) for row in table.rows]
        _print_audits(
            replace(table, rows=tuple(rows)), names.rename(records), exits_follow=bool(curves)
        )
    _print_curves(args, [_rename(suite, names) for suite in curves])
    if not audits:
        print_unmeasured([{"suite_kind": suite.kind} for suite in curves])
    for line in names.explain():
        print_line(line)
    return 0


def _name_arms(table: ArmsTable | None, suites: Sequence[SuiteCurves]) -> ShortNames:
    """Short names of all arms, those that are the mean of several seeds too."""
    from vlmend.evals.arm_names import shorten_arms

    rows = () if table is None else table.rows
    return shorten_arms([*(r.arm for r in rows), *(c.arm for s in suites for c in s.curves)])


def _rename(suite: SuiteCurves, names: ShortNames) -> SuiteCurves:
    curves = [replace(curve, arm=names.of[curve.arm]) for curve in suite.curves]
    return replace(suite, curves=tuple(curves))


def _print_audits(
    table: ArmsTable, records: Sequence[Mapping[str, Any]], *, exits_follow: bool
) -> None:
    """Everything at the default path; exits have tables of their own."""
    from vlmend.cli.console import print_comparisons, results

    print_arms(table)
    if not records:
        results.print("one arm only: nothing to compare")
    shown = [r for r in records if r["exit"] is None or not exits_follow]
    print_comparisons(shown)
    if len(shown) < len(records):
        results.print(
            f"Holm p: among all {len(records)} tests, those at exits too\n", highlight=False
        )


def _print_curves(args: argparse.Namespace, curves: Sequence[SuiteCurves]) -> None:
    from vlmend.cli.compare_exits import print_exits
    from vlmend.cli.console import console

    print_exits(curves)
    if args.figure is not None:
        line = f"figure: {args.figure}"
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def print_arms(table: ArmsTable) -> None:
    """Rates by kind of suite, then whether arms still answer as the base, and the ledger."""
    from vlmend.cli.console import print_unmeasured

    for title, kinds in _PARTS:
        _print_columns(table, title, kinds, _rate)
    _note_marks(table)
    _print_columns(
        table,
        "Over-refusal: benign requests refused, 95 % interval below (lower is better)",
        ("benign",),
        _refusal,
    )
    print_unmeasured([{"suite_kind": column.kind} for column in table.columns])
    _print_columns(
        table,
        "The same answer as the base: same verdict / word for word",
        ("benign", "utility"),
        _same,
        only_compared=True,
    )
    _print_writing(table)
    _print_ledger(table)


def _print_columns(
    table: ArmsTable,
    title: str,
    kinds: Sequence[str],
    write: Callable[[TableCell], str],
    *,
    only_compared: bool = False,
) -> None:
    """One part of the table: arms below one another, suites of some kinds side by side."""
    from vlmend.cli.console import print_wide_table

    rows = table.rows[1:] if only_compared else table.rows
    columns: list[tuple[str, list[str]]] = []
    for index, column in enumerate(table.columns):
        cells = [row.cells[index] for row in rows]
        if column.kind in kinds and any(cell is not None and write(cell) for cell in cells):
            texts = ["not run" if cell is None else write(cell) or "-" for cell in cells]
            columns.append((_heading(table.columns, column), texts))
    if columns:
        print_wide_table(title, ("arm", [row.arm for row in rows]), columns)


def _heading(columns: Sequence[Column], column: Column) -> str:
    """The suite, in two lines where it has a slash, and the judge where there are several."""
    several = len({other.judge for other in columns if other.suite == column.suite}) > 1
    name = column.suite.replace("/", "/\n", 1)
    return f"{name}\n({column.judge})" if several else name


def _rate(cell: TableCell) -> str:
    from vlmend.cli.console import interval, percent

    if cell.rate is None:
        return f"withheld\n{cell.num_scored}/{cell.num_samples} scored"
    mark = "" if cell.better is None else " *"
    return f"{percent(cell.rate)}{mark}\n{interval(cell.low, cell.high)}"


def _refusal(cell: TableCell) -> str:
    from vlmend.cli.console import interval, percent

    if cell.refusal_rate is None:
        return f"withheld\n{cell.num_scored}/{cell.num_samples} scored"
    return f"{percent(cell.refusal_rate)}\n{interval(cell.refusal_low, cell.refusal_high)}"


def _note_marks(table: ArmsTable) -> None:
    from vlmend.cli.console import results

    if any(cell is not None and cell.p_holm is not None for r in table.rows for cell in r.cells):
        results.print(
            "* differs from the base: paired test below, Holm-adjusted p < 0.05\n",
            highlight=False,
        )


def _same(cell: TableCell) -> str:
    from vlmend.cli.console import percent

    if cell.same_verdict_rate is None:
        return ""
    return f"{percent(cell.same_verdict_rate)} / {percent(cell.same_text_rate)}"


def _print_writing(table: ArmsTable) -> None:
    """The worst suite of every arm, so that no mean hides it."""
    from vlmend.cli.console import percent, print_wide_table
    from vlmend.evals.arms_table import KINDS

    columns: list[tuple[str, list[str]]] = []
    for heading, field, write, kinds in (
        ("empty", "empty_rate", percent, KINDS),
        ("repetitive", "repetitive_rate", percent, KINDS),
        ("incoherent", "incoherent_rate", percent, KINDS),
        ("benign refused", "refusal_rate", percent, ("benign", "utility")),
        ("median perplexity", "median_perplexity", "{:.3g}".format, KINDS),
    ):
        found = [_find_worst(table.columns, row.cells, field, kinds) for row in table.rows]
        if any(found):
            # Where the worst is 0, all suites are the same.
            cells = [
                "-" if worst is None else write(worst[0]) + (f"\n({worst[1]})" if worst[0] else "")
                for worst in found
            ]
            columns.append((heading, cells))
    if columns:
        print_wide_table(
            "Does it still write? Share of answers, each arm's worst suite",
            ("arm", [row.arm for row in table.rows]),
            columns,
        )


def _find_worst(
    columns: Sequence[Column], cells: Sequence[TableCell | None], field: str, kinds: Sequence[str]
) -> tuple[float, str] | None:
    """The highest value of a field in suites of some kinds, and which suite has it, if known."""
    known = [
        (value, column.suite)
        for cell, column in zip(cells, columns, strict=True)
        if column.kind in kinds and cell is not None and (value := getattr(cell, field)) is not None
    ]
    return max(known, key=lambda pair: pair[0], default=None)


def _print_ledger(table: ArmsTable) -> None:
    """What the training of every arm cost, and what it took to make the model safe."""
    from vlmend.cli.console import print_wide_table

    trained = [(row.arm, entry) for row in table.rows for entry in row.training]
    if not trained:
        return
    asr = next((e["reached"]["asr"] for _, e in trained if e.get("reached")), 0.08)
    heads = ("steps", "seconds", "FLOPs", "peak memory", "tokens", "images")
    rows = [
        (*_costs(entry.get("ledger") or {}), _reached(entry.get("reached"))) for _, entry in trained
    ]
    columns = zip((*heads, f"to ASR <= {100 * asr:.0f} %"), zip(*rows, strict=True), strict=True)
    print_wide_table(
        "Training ledger (one run on one machine: compare ratios)",
        ("arm", [arm for arm, _ in trained]),
        list(columns),
    )


def _costs(ledger: Mapping[str, Any]) -> tuple[str, ...]:
    memory = ledger.get("peak_memory_bytes")
    return (
        _count(ledger.get("steps")),
        _count(ledger.get("seconds")),
        _flops(ledger.get("flops"), estimated=bool(ledger.get("flops_estimated"))),
        "-" if not memory else f"{memory / 2**20:,.0f} MiB",
        _count(ledger.get("tokens")),
        _count(ledger.get("images")),
    )


def _reached(reached: Mapping[str, Any] | None) -> str:
    """Cost until the watched rate was low enough for good, or why there is none."""
    if reached is None:
        return "not watched"
    if reached.get("steps") is None:
        return "not reached"
    if reached["steps"] == 0:
        return "low from\nthe start"
    flops = _flops(reached.get("flops"), estimated=bool(reached.get("flops_estimated")))
    return f"{reached['steps']} steps\n{_count(reached.get('seconds'))} s\n{flops}"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _flops(value: float | None, *, estimated: bool) -> str:
    if value is None:
        return "-"
    return f"{'about ' if estimated else ''}{value:.2e}"
