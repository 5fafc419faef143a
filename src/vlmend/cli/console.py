"""What commands show while they work: progress with time to go, and tables at the end."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from textwrap import fill
from typing import Any, Protocol

from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text


class _Output(Console):
    """A console that leaves the exit code to us when its reader goes away."""

    def on_broken_pipe(self) -> None:
        """Called while handling a `BrokenPipeError`; rich would exit with 1."""
        raise BrokenPipeError


console = _Output(stderr=True)
"""Progress and notes go to standard error, results to standard output."""

# Piped output has no terminal width, and rich would squeeze it into 80 columns.
results = _Output(width=None if sys.stdout.isatty() else 160)

_TEXT_WIDTH = 100
"""Columns of running text; longer lines are hard to read."""

_BAR_WIDTH = 68
"""Columns of a progress bar with its counts and times."""

PROGRESS_EVERY_S = 15.0
"""Seconds between two lines of progress where no bar can be drawn (a log, a pipe)."""


def quiet_libraries() -> None:
    """Keep the libraries' own progress bars and advice out of our output."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


class Report(Protocol):
    """Shows progress: of what, how much is done of how much, and how it goes."""

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """Show it; the note takes the place of the one before."""
        ...


class _Bars(Progress):
    """Progress bars with their notes below them."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield from (Text(task.fields["note"]) for task in self.tasks if task.fields["note"])


@contextmanager
def progress_bars(arms: Iterable[str] = ()) -> Generator[Report]:
    """Progress as `report(what, done, total)`: a bar for each `what`, or lines in a log.

    Args:
        arms: Names of arms; long ones are shown short.
    """
    from vlmend.evals.arm_names import shorten_arms

    names = shorten_arms(arms)
    with _shown_progress() as show:

        def report(what: str, done: int, total: int, note: str = "") -> None:
            show(names.in_text(what), done, total, note)

        yield report


@contextmanager
def _shown_progress() -> Generator[Report]:
    if not sys.stderr.isatty():
        yield _LineProgress().report
        return
    columns = (
        # What does not fit goes on in the next line; in one line it would push the bar out.
        TextColumn(
            "{task.description}",
            table_column=Column(max_width=max(20, console.width - _BAR_WIDTH)),
        ),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with _Bars(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int, note: str = "") -> None:
            if what not in tasks:
                # What an earlier run has done must not count as this one's speed.
                tasks[what] = bars.add_task(what, completed=done, total=total, note=note)
            bars.update(tasks[what], completed=done, total=total, note=note)

        yield report


class _LineProgress:
    """Progress for a log: now and then a line with the time to go, and one at the end."""

    def __init__(self) -> None:
        self._started: dict[str, tuple[float, int]] = {}
        self._printed = time.monotonic()

    def report(self, what: str, done: int, total: int, note: str = "") -> None:
        """Note progress; prints if it is time, or if this is the end."""
        more = f" ({note})" if note else ""
        now = time.monotonic()
        began, before = self._started.setdefault(what, (now, done))
        if done == total:
            self._print(f"{what}: {total} done{more}")
        elif now - self._printed >= PROGRESS_EVERY_S and done > before:
            left = (now - began) / (done - before) * (total - done)
            self._print(f"{what}: {done} of {total}, {timedelta(seconds=round(left))} left{more}")

    def _print(self, line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
        self._printed = time.monotonic()


def percent(value: float | None) -> str:
    """A rate for a table: 0.1234 -> "12.3 %"; None -> "-"."""
    return "-" if value is None else f"{100 * value:.1f} %"


def interval(low: float | None, high: float | None) -> str:
    """An interval for a table."""
    return "" if low is None or high is None else f"[{100 * low:.1f}, {100 * high:.1f}]"


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on standard output; the first column is text, the others are numbers."""
    # Not the table's own title, which is folded to the width of the table.
    results.print(f"[italic]{escape(title)}[/italic]", highlight=False)
    table = Table(
        header_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    results.print(table)
    results.print()


def print_wide_table(
    title: str, names: tuple[str, Sequence[str]], columns: Sequence[tuple[str, Sequence[str]]]
) -> None:
    """A table that goes on below itself where it is wider than the output.

    Args:
        title: Stands above every part.
        names: Heading and cells of the first column, which every part has.
        columns: Heading and cells of each other column; both may have several lines.
    """
    first = 1 + _width(names[0], *names[1])
    parts: list[list[tuple[str, Sequence[str]]]] = [[]]
    used = first
    for heading, cells in columns:
        # A blank of padding, and one between columns.
        width = 2 + _width(heading, *cells)
        if parts[-1] and used + width > results.width:
            parts.append([])
            used = first
        parts[-1].append((heading, cells))
        used += width
    for part in parts:
        rows = list(zip(names[1], *(cells for _, cells in part), strict=True))
        print_table(title, (names[0], *(heading for heading, _ in part)), rows)


def _width(*cells: str) -> int:
    return max(len(line) for cell in cells for line in (cell or " ").split("\n"))


def print_blocks(blocks: Iterable[tuple[str, Sequence[str]]]) -> None:
    """Names, each with indented lines below: readable in any width."""
    width = min(results.width, _TEXT_WIDTH)
    for name, lines in blocks:
        results.print(f"[bold]{escape(name)}[/bold]", highlight=False)
        for line in filter(None, lines):
            text = fill(line, width, initial_indent="    ", subsequent_indent="    ")
            results.print(text, highlight=False, markup=False, soft_wrap=True)


def show_run(metrics: Mapping[str, Any], out: Path, *, exits: bool = True) -> None:
    """Write the report of a run and print its tables.

    Args:
        metrics: What `run_audit` returned.
        out: The run folder.
        exits: Print the cells at exits too; the report has them in any case.
    """
    from vlmend.evals.arm_names import shorten_arms
    from vlmend.evals.caveats import list_skips
    from vlmend.report.render import render_report

    report = render_report(metrics, out / "report.html")
    names = shorten_arms(cell["arm"] for cell in metrics["cells"])
    metrics = names.rename(metrics)
    print_cells(
        f"{metrics['title']} (complied: attack success where the suite is harmful)",
        [cell for cell in metrics["cells"] if exits or cell["exit"] is None],
    )
    for line in (*names.explain(), *list_skips(metrics["suites"])):
        print_line(line)
    print_unmeasured(metrics["cells"])
    print_paper_numbers([cell for cell in metrics["cells"] if exits or cell["exit"] is None])
    print_comparisons([r for r in metrics["comparisons"] if exits or r["exit"] is None])
    console.print(f"report: {report}", highlight=False, soft_wrap=True, markup=False)


def _optional_columns(
    rows: Sequence[Mapping[str, Any]],
) -> tuple[tuple[str, ...], Callable[[Mapping[str, Any]], tuple[str, ...]]]:
    """Columns for exit and judge where they say something: headings, and values of a row."""
    shown: list[str] = []
    if any(row["exit"] is not None for row in rows):
        shown.append("exit")
    if len({row["judge"] for row in rows}) > 1:
        shown.append("judge")

    def values(row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple("-" if row[name] is None else str(row[name]) for name in shown)

    return tuple(shown), values


def print_cells(title: str, cells: Sequence[Mapping[str, Any]]) -> None:
    """The headline table of a run; what is withheld says why below it."""
    shown, values = _optional_columns(cells)
    rows = [
        (
            cell["suite"],
            cell["arm"],
            *values(cell),
            f"{cell['num_scored']}/{cell['num_samples']}",
            *(("withheld", "-", "-") if _why_withheld(cell) else _rates(cell)),
        )
        for cell in cells
    ]
    columns = ("suite", "arm", *shown, "scored", "complied", "refused", "incoherent")
    print_table(title, columns, rows)
    for cell in cells:
        if reason := _why_withheld(cell):
            place = ", ".join((cell["suite"], cell["arm"], *values(cell)))
            print_line(f"withheld: {place}: {reason}")


def _why_withheld(cell: Mapping[str, Any]) -> str:
    from vlmend.evals.stats import explain_withheld

    return explain_withheld(cell["num_scored"], cell["num_samples"], cell.get("num_errors", 0))


def _rates(cell: Mapping[str, Any]) -> tuple[str, str, str]:
    # In 80 columns there is room for one interval; the report has those of the others.
    return (
        f"{percent(cell['asr'])} {interval(cell['asr_low'], cell['asr_high'])}",
        percent(cell["refusal_rate"]),
        percent(cell["incoherent_rate"]),
    )


def print_line(line: str) -> None:
    """A line of results, as it is."""
    results.print(line, highlight=False, soft_wrap=True, markup=False)


def print_unmeasured(cells: Iterable[Mapping[str, Any]]) -> None:
    """Say what must stand beside an attack success rate and was not measured."""
    from vlmend.evals.caveats import list_unmeasured

    missing = list_unmeasured(cells)
    for line in missing:
        print_line(line)
    if missing:
        results.print()


def print_paper_numbers(cells: Sequence[Mapping[str, Any]]) -> None:
    """Macro averages, mean grades and other numbers of the suites' papers, where there are any."""
    shown, values = _optional_columns(cells)
    rows: list[tuple[str, ...]] = []
    for cell in cells:
        if _why_withheld(cell):
            continue
        place = (cell["suite"], cell["arm"], *values(cell))
        if macro := cell.get("macro"):
            name = f"macro over {macro['num_values']} ({macro['key']})"
            limits = interval(macro["asr_low"], macro["asr_high"])
            rows.append((*place, name, percent(macro["asr"]), limits))
        if mean := cell.get("mean_score"):
            rows.append((*place, "mean grade of the judge", *_number(mean)))
        rows += [(*place, name, *_number(found)) for name, found in cell.get("scores", {}).items()]
    if rows:
        columns = ("suite", "arm", *shown, "number", "value", "95 %")
        title = "As the suites' papers count (macro: complied, mean of the rates of groups)"
        print_table(title, columns, rows)


def _number(found: Mapping[str, Any]) -> tuple[str, str]:
    """A number of its own unit, and its interval."""
    value, low, high = found["value"], found["low"], found["high"]
    limits = "" if low is None or high is None else f"[{low:.4g}, {high:.4g}]"
    return "-" if value is None else f"{value:.4g}", limits


def print_comparisons(records: Sequence[Mapping[str, Any]]) -> None:
    """Paired tests, before against after: over things where items have them, else McNemar's."""
    withheld = [r for r in records if r.get("withheld")]
    records = [r for r in records if not r.get("withheld")]
    for r in withheld:
        print_line(f"not compared: {r['suite']}, {r['before']} -> {r['after']}: {r['withheld']}")
    if not records:
        return
    arms = [f"{r['before']} -> {r['after']}" for r in records]
    same = len(set(arms)) == 1
    shown, values = _optional_columns(records)
    clustered = [r.get("clustered_p") is not None for r in records]
    detectable = any(r.get("detectable") is not None for r in records)
    rows: list[tuple[str, ...]] = []
    for r, pair, over_things in zip(records, arms, clustered, strict=True):
        stem, p = ("clustered", "clustered_p") if over_things else ("difference", "p_value")
        rows.append(
            (
                r["suite"],
                *(() if same else (pair,)),
                *values(r),
                f"{r['n']}/{r['num_groups']}" if over_things else str(r["n"]),
                f"{percent(r['asr_before'])} -> {percent(r['asr_after'])}",
                interval(r[f"{stem}_low"], r[f"{stem}_high"]),
                f"{r[p]:.2g}",
                f"{r['p_holm']:.2g}",
                *((percent(r.get("detectable")),) if detectable else ()),
            )
        )
    title = f"Paired comparison{f', {arms[0]}' if same else ''} ({_name_tests(clustered)})"
    pairs = "pairs/things" if any(clustered) else "pairs"
    heads = (*(() if same else ("arms",)), *shown, pairs, "complied", "change, 95 %")
    more = ("would\nshow",) if detectable else ()
    print_table(title, ("suite", *heads, "p", "Holm p", *more), rows)
    if detectable:
        print_line(
            "would show: no difference is shown here, and these items would show one from this "
            "size on (with a chance of 80 %)\n"
        )


def _name_tests(clustered: Sequence[bool]) -> str:
    if all(clustered):
        return "sign flips of things"
    if any(clustered):
        return "sign flips of things; without things McNemar's test"
    return "McNemar's test"
