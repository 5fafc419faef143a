"""What commands show while they work: progress with time to go, and tables at the end."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

console = Console(stderr=True)
"""Progress and notes go to standard error, results to standard output."""

# Piped output has no terminal width; tables squeezed to 80 columns are not readable.
results = Console(width=None if sys.stdout.isatty() else 160)


def quiet_libraries() -> None:
    """Keep the libraries' own progress bars and advice out of our output."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)


@contextmanager
def progress_bars() -> Generator[Callable[[str, int, int], None]]:
    """Progress as `report(what, done, total)`, one bar for each `what`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as bars:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)
            if bars.disable and done == total:
                console.print(f"{what}: {total} done", highlight=False)

        yield report


def percent(value: float | None) -> str:
    """A rate for a table: 0.1234 -> "12.3 %"; None -> "-"."""
    return "-" if value is None else f"{100 * value:.1f} %"


def interval(low: float | None, high: float | None) -> str:
    """An interval for a table."""
    return "" if low is None or high is None else f"[{100 * low:.1f}, {100 * high:.1f}]"


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on standard output; the first column is text, the others are numbers."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    results.print(table)


def print_cells(metrics: Mapping[str, Any]) -> None:
    """The headline table of a run."""
    rows = [
        (
            f"{cell['suite']}" + ("" if cell["exit"] is None else f" @ exit {cell['exit']}"),
            cell["arm"],
            f"{cell['num_scored']}/{cell['num_samples']}",
            f"{percent(cell['asr'])} {interval(cell['asr_low'], cell['asr_high'])}",
            percent(cell["refusal_rate"]),
            percent(cell["incoherent_rate"]),
            cell["judge"],
        )
        for cell in metrics["cells"]
    ]
    columns = (
        "suite",
        "arm",
        "scored",
        "complied (ASR if harmful)",
        "refused",
        "incoherent",
        "judge",
    )
    print_table(metrics["title"], columns, rows)


def print_comparisons(records: Sequence[Mapping[str, Any]]) -> None:
    """Paired tests, before against after."""
    if not records:
        return
    rows = [
        (
            f"{r['suite']}" + ("" if r["exit"] is None else f" @ exit {r['exit']}"),
            f"{r['before']} -> {r['after']}",
            str(r["n"]),
            f"{percent(r['asr_before'])} -> {percent(r['asr_after'])}",
            interval(r["difference_low"], r["difference_high"]),
            f"{r['p_value']:.2g}",
            f"{r['p_holm']:.2g}",
        )
        for r in records
    ]
    columns = ("suite", "arms", "pairs", "complied", "difference, 95 %", "McNemar p", "Holm p")
    print_table("Paired comparison", columns, rows)
