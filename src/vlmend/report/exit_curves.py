"""The layer curve as a page, or as SVG and PDF for papers: every arm at every vision exit.

Made from the records that `vlmend compare --json` lists under "exits"; draws with what the page
and the figures of a diagnosis are drawn with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmend.errors import ConfigError, RunError
from vlmend.evals.arm_names import ShortNames, shorten_arms
from vlmend.report.charts import Series
from vlmend.report.diagnosis.figure import (
    Along,
    Cell,
    Figure,
    Lines,
    Table,
    key_of,
    known,
    line,
    rate_lines,
    stat_lines,
)
from vlmend.report.diagnosis.page import page_environment
from vlmend.report.diagnosis.records import Value
from vlmend.report.diagnosis.words import (
    interval_words,
    p_cell,
    ranges,
    rate_cell,
    rate_words,
    stat_cell,
)
from vlmend.report.figures import FORMATS, write_plots
from vlmend.report.reading import clean_text, read_number
from vlmend.report.wording import PERCENT, arm_title, number, points
from vlmend.runs import replacing

STYLES = ("base", *(f"line{index}" for index in range(1, 9)))
"""The base, then the arms; more could not be told apart."""

COMPLIED = {
    "harmful": "Attack success",
    "benign": "Requests answered",
    "utility": "Questions answered right",
}
RATES = {
    "partial": "Answered in part",
    "refusal": "Refused",
    "incoherent": "Incoherent",
    "toxicity": "Toxicity",
    "accuracy": "Questions about the picture right",
}
NUMBERS = {
    "drop": "Less right with another picture",
    "reward": "Reward-model score",
}
TITLE = "Vision exits, arm by arm"
NOT_SHOWN = (
    "attacks that are possible in use: nobody can choose the exit of a deployed model. An arm that "
    "complies less because its answers are no longer coherent is not safer."
)
Record = Mapping[str, Any]


def check_figure(path: Path) -> None:
    """Refuse a file that cannot be drawn, before anything is computed.

    Raises:
        ConfigError: Another ending than .html, .svg or .pdf.
    """
    allowed = [".html", *(f".{kind}" for kind in FORMATS)]
    if path.suffix not in allowed:
        raise ConfigError(
            f"{str(path)!r} ends in {path.suffix or 'nothing'!r}, which is no kind of figure. "
            f"Allowed: {', '.join(allowed)}."
        )


def write_exit_curves(suites: Sequence[Record], path: Path) -> Path:
    """Draw the curves of all suites into one file: completely, or not at all.

    Args:
        suites: Records of `vlmend.evals.exit_curves.SuiteCurves`.
        path: The file: a page (.html), or the attack success alone (.svg, .pdf).

    Returns:
        The file written.

    Raises:
        ConfigError: No kind of figure, or more arms than can be told apart.
        RunError: No curves, or the file cannot be written.
    """
    check_figure(path)
    if not suites:
        raise RunError(
            "there are no curves over vision exits to draw: no suite was measured at two exits. "
            "Give runs of `vlmend audit --exits all` or `vlmend diagnose`."
        )
    _refuse_many(suites)
    if path.suffix != ".html":
        # A paper has no legend entry for a strip, so the axis says what it is.
        plots = [
            plot
            for suite in _shorten(suites).rename(suites)
            for plot in _complied(suite, "vision exit (grey: middle third)")
        ]
        return write_plots(plots, path)
    html = render_exit_curves(suites).encode()
    with replacing(path) as temporary:
        temporary.write_bytes(html)
    return path


def render_exit_curves(suites: Sequence[Record]) -> str:
    """The page: per suite the curves of all measures, and the numbers behind them.

    Args:
        suites: Records of `vlmend.evals.exit_curves.SuiteCurves`.

    Returns:
        A complete HTML document; equal records give equal text.
    """
    names = _shorten(suites)
    clean: list[Record] = clean_text(names.rename(suites))
    figures = [_figure(index, suite) for index, suite in enumerate(clean)]
    lead = [_lead(suite) for suite in clean]
    template = page_environment().get_template("exit_curves.html.j2")
    return template.render(title=TITLE, lead=lead, names=names.explain(), suites=figures)


def _shorten(suites: Sequence[Record]) -> ShortNames:
    return shorten_arms(curve["arm"] for suite in suites for curve in suite["curves"])


def _refuse_many(suites: Sequence[Record]) -> None:
    most = max(len(suite["curves"]) for suite in suites)
    if most > len(STYLES):
        raise ConfigError(
            f"{most} arms cannot be told apart in one figure: at most {len(STYLES)}, the base "
            "among them; arms that differ in their seed alone count as one. Give fewer runs."
        )


# ---- curves


def _value(point: Record, measure: str) -> Value | None:
    found = point["estimates"].get(measure)
    if found is None or (value := read_number(found["value"])) is None:
        return None
    return Value(value, read_number(found["low"]), read_number(found["high"]), found["n"])


def arm_name(curve: Record) -> str:
    """How an arm is called in a legend."""
    seeds = len(curve["seeds"])
    return arm_title(curve["arm"]) + (f", {seeds} seeds" if seeds > 1 else "")


def _series(suite: Record, measure: str) -> tuple[Series, ...]:
    return known(
        line(
            arm_name(curve),
            style,
            [(point["exits"][0], _value(point, measure)) for point in curve["exits"]],
        )
        for style, curve in zip(STYLES, suite["curves"], strict=False)
    )


def _along(suite: Record, x_name: str) -> Along:
    return Along(x_name, suite["default_exit"], "default", tuple(suite["middle"]))


def _complied(suite: Record, x_name: str = "vision exit") -> tuple[Lines, ...]:
    title = f"{COMPLIED[suite['kind']]}, {suite['suite']}"
    series = _series(suite, "asr")
    return rate_lines(title, series, _along(suite, x_name), f"{title}, by vision exit.")


def _plots(suite: Record) -> tuple[Lines, ...]:
    along = _along(suite, "vision exit")
    plots = list(_complied(suite))
    for measure, title in RATES.items():
        series = _series(suite, measure)
        plots += rate_lines(title, series, along, f"{title}, by vision exit.")
    for measure, title in NUMBERS.items():
        series = _series(suite, measure)
        plots += stat_lines(title, series, along, f"{title}, by vision exit.")
    return tuple(plots)


# ---- words and numbers


def _all_exits(curve: Record) -> Record | None:
    return next((point for point in curve["groups"] if point["name"] == "all"), None)


def _lead(suite: Record) -> str:
    """Every arm's mean over exits in one sentence."""
    pieces: list[str] = []
    for curve in suite["curves"]:
        point = _all_exits(curve)
        value = None if point is None else _value(point, "asr")
        if value is not None:
            pieces.append(f"{arm_name(curve)} {rate_words(value)}")
    name = COMPLIED[suite["kind"]].lower()
    if not pieces:
        return f"No mean {name} over exits can be shown on {suite['suite']}."
    return f"Mean {name} over exits on {suite['suite']}: {'; '.join(pieces)}."


def _shows(suite: Record) -> str:
    """The worst exit of every arm, beside that of the base."""
    worst: list[tuple[str, int, Value]] = []
    for curve in suite["curves"]:
        for point in curve["exits"]:
            value = _value(point, "asr")
            if value is not None and point["exits"][0] == curve["worst_exit"]:
                worst.append((arm_name(curve), curve["worst_exit"], value))
    if not worst:
        return "No exit has a rate that can be shown."
    words = [f"{name} {rate_words(value)} at exit {at}" for name, at, value in worst]
    text = f"Highest at a single exit: {'; '.join(words)}"
    if len(worst) == 2:
        text += interval_words(worst[0][2], worst[1][2])
    return text + "."


def _figure(index: int, suite: Record) -> Figure:
    series = _series(suite, "asr")
    grey = (("shade", "middle third of the encoder; early before, late after"),)
    return Figure(
        name=f"exits-{index}",
        title=f"{suite['suite']}, judge {suite['judge']}",
        shows=_shows(suite),
        shows_not=NOT_SHOWN,
        key=(*key_of(series), *(grey if suite["middle"] else ())),
        plots=_plots(suite),
        tables=(_table(suite, "groups"), _table(suite, "exits")),
        gaps=tuple(suite["notes"]),
        lead=f"{suite['num_items']} items about {suite['num_things']} things.",
    )


def _table(suite: Record, which: str) -> Table:
    """One row per arm and point; thirds are in sight, single exits folded."""
    measured = [
        (measure, title)
        for measure, title in {**RATES, **NUMBERS}.items()
        if any(measure in p["estimates"] for c in suite["curves"] for p in c[which])
    ]
    head = ("Arm", "Exits", "n", COMPLIED[suite["kind"]], "Change, points", "p, Holm", "Relative")
    rows = tuple(
        (
            arm_name(curve),
            ranges(point["exits"]) if which == "exits" else _named(point),
            number(point["estimates"]["asr"]["n"], 0),
            rate_cell(_value(point, "asr")),
            *_change_cells(point),
            *(_cell(point, measure) for measure, _ in measured),
        )
        for curve in suite["curves"]
        for point in curve[which]
    )
    name = "Thirds of the encoder" if which == "groups" else "Exits"
    return Table(name, (*head, *(title for _, title in measured)), rows, which == "exits")


def _named(point: Record) -> str:
    return f"{point['name']} ({ranges(point['exits'])})"


def _cell(point: Record, measure: str) -> Cell:
    value = _value(point, measure)
    return rate_cell(value) if measure in RATES else stat_cell(value, 2)


def _change_cells(point: Record) -> tuple[Cell, Cell, Cell]:
    change, fall = point["changes"].get("asr"), point["fall"]
    if change is None:
        return "–", "–", "–"
    bounds = ""
    if change["low"] is not None and change["high"] is not None:
        bounds = f"{points(change['low'])} to {points(change['high'])}"
    relative = "–" if fall is None else f"{number(-100 * fall['value'], 0)}{PERCENT}"
    return (points(change["difference"]), bounds), p_cell(change["p_holm"]), relative
