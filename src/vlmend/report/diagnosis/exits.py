"""Figures of the exit sweep: outcomes, coherence, grounding; groups, tests, the weakest exit."""

from __future__ import annotations

from vlmend.report.diagnosis.figure import (
    Along,
    Figure,
    Lines,
    Table,
    key_of,
    known,
    line,
    missing,
    rate_lines,
    stat_lines,
)
from vlmend.report.diagnosis.records import ByExit, Diagnosis, ExitRow, Exits, Section, Value
from vlmend.report.diagnosis.words import (
    ALPHA,
    count_words,
    interval_words,
    p_cell,
    ranges,
    rate_cell,
    rate_words,
    stat_cell,
    stat_words,
)
from vlmend.report.wording import points

OUTCOMES = (("asr", "complied"), ("refusal", "refused"), ("incoherent", "incoherent"))
MEASURES = (
    ("perplexity", "Perplexity of the answers"),
    ("repetition", "Repetition"),
    ("length", "Length, tokens"),
    ("toxicity", "Toxicity"),
    ("reward", "Reward-model score"),
)
SWEEP_NOT = (
    "attacks that are possible in use: nobody can choose the exit of a deployed model. It shows "
    "where in the encoder alignment holds. Intervals are per exit; the tests below are corrected "
    "for looking at many."
)
QUALITY_NOT = (
    "that an answer makes sense: perplexity is measured under the same model on text alone, and a "
    "fluent answer can still be about nothing."
)
GROUNDING_NOT = (
    "safety: it says whether answers still depend on the picture. Where no drop is shown, "
    "answers may come from the text alone."
)
TESTS_NOT = (
    "that exits without a shown difference are alike: with few items, large differences can go "
    "unshown."
)


def along(exits: Exits) -> Along:
    """The axis of exits, with the default marked and incoherent exits on grey."""
    shaded = tuple(row.exit for row in exits.rows.items if row.coherent is False)
    return Along("vision exit", exits.default, "default", shaded)


def exit_lines(rows: tuple[ExitRow, ...], name: str, label: str, style: str):
    """Curve of one value over exits."""
    return line(label, style, [(row.exit, row.values.get(name)) for row in rows])


def _worst(exits: Exits) -> str:
    rows = {row.exit: value for row in exits.rows.items if (value := row.values["asr"])}
    here = rows.get(exits.default) if exits.default is not None else None
    others = {at: value for at, value in rows.items() if at != exits.default}
    if here is None or not others:
        return "The default exit or all others lack a rate, so they cannot be compared."
    at = max(others, key=lambda key: others[key].value)
    text = (
        f"Complied {rate_words(here)} at the default exit {exits.default}; highest elsewhere "
        f"{rate_words(others[at])} at exit {at}{interval_words(here, others[at])}"
    )
    incoherent = next(row.values["incoherent"] for row in exits.rows.items if row.exit == at)
    if incoherent is not None:
        text += f"; incoherent there {rate_words(incoherent)}"
    return text + "."


def _rows_table(rows: tuple[ExitRow, ...]) -> Table:
    measures = [
        (name, title)
        for name, title in MEASURES
        if any(row.values.get(name) is not None for row in rows)
    ]
    coherent = {True: "yes", False: "no", None: "–"}
    head = ("Exit", "Group", "n", *(label.capitalize() for _, label in OUTCOMES))
    body = tuple(
        (
            str(row.exit),
            row.group or "–",
            str(row.n),
            *(rate_cell(row.values[name]) for name, _ in OUTCOMES),
            *(stat_cell(row.values[name]) for name, _ in measures),
            coherent[row.coherent],
        )
        for row in rows
    )
    return Table("Exits", (*head, *(title for _, title in measures), "Coherent"), body)


def build_outcomes(diagnosis: Diagnosis) -> Figure:
    """Complied, refused and incoherent over exits."""
    name, title, exits = "exits", "What the model does at each exit", diagnosis.exits
    gap = exits.gap or exits.rows.gap
    if gap:
        return missing(name, title, gap)
    rows = exits.rows.items
    series = known(exit_lines(rows, key, label, label) for key, label in OUTCOMES)
    withheld = tuple(row.withheld for row in rows if row.withheld)
    if not series:
        return Figure(name, title, gaps=withheld or ("no rate was recorded",))
    shows = _worst(exits)
    # Drawn last lies on top: the complied line is the one the reader looks for.
    plots = rate_lines("Share of answers", series[::-1], along(exits), f"By vision exit. {shows}")
    most = exits.most_vulnerable
    if most is not None:
        shows += (
            f" Most vulnerable while still coherent: exit {most.exit}, {rate_words(most.asr)} "
            f"complied{f' ({most.why})' if most.why else ''}."
        )
    lead = (
        "Exit l means that only the first l blocks of the picture encoder run; nothing is "
        f"retrained. Suite {exits.suite or 'not named'}, judge {exits.judge or 'not named'}."
    )
    return Figure(
        name,
        title,
        shows,
        SWEEP_NOT,
        (*key_of(series), *_shade_key(exits)),
        plots,
        tables=(_rows_table(rows),),
        gaps=(*withheld, *exits.gaps),
        lead=lead,
    )


def _shade_key(exits: Exits) -> tuple[tuple[str, str], ...]:
    return (("shade", "answers no longer coherent"),) if along(exits).shaded else ()


def _span_words(rows: tuple[ExitRow, ...], name: str, title: str) -> str:
    values = {row.exit: value for row in rows if (value := row.values.get(name))}
    low = min(values, key=lambda at: values[at].value)
    high = max(values, key=lambda at: values[at].value)
    return (
        f"{title.split(',')[0].lower()} from {stat_words(values[low])} at exit {low} to "
        f"{stat_words(values[high])} at exit {high}"
    )


def build_quality(diagnosis: Diagnosis) -> Figure:
    """Perplexity, repetition, length, toxicity and reward over exits."""
    name, title, exits = "coherence", "Are the answers still answers?", diagnosis.exits
    gap = exits.gap or exits.rows.gap
    if gap:
        return missing(name, title, gap)
    rows, plots, told, gaps = exits.rows.items, [], [], []
    for key, label in MEASURES:
        series = known([exit_lines(rows, key, label, "all")])
        if not series:
            if not any(key in gap.lower() for gap in exits.gaps):
                gaps.append(f"{label.split(',')[0]} was not measured.")
            continue
        words = _span_words(rows, key, label)
        told.append(words)
        plots += stat_lines(
            label, series, along(exits), f"By vision exit: {words}.", far=key == "perplexity"
        )
    if not plots:
        return missing(name, title, "none of perplexity, repetition, length was recorded")
    shows = f"{'; '.join(told)}."
    return Figure(
        name,
        title,
        shows[0].upper() + shows[1:],
        QUALITY_NOT,
        (("all", "mean or median with its 95 % interval"), *_shade_key(exits)),
        tuple(plots),
        gaps=tuple(gaps),
    )


def build_groups(diagnosis: Diagnosis) -> Figure:
    """Means over early, middle and late exits."""
    name, title, exits = "groups", "Early, middle and late exits", diagnosis.exits
    gap = exits.gap or exits.groups.gap
    if gap:
        return missing(name, title, gap)
    items = exits.groups.items
    rows = tuple(
        (
            item.group,
            ranges(item.exits),
            rate_cell(item.aasr),
            stat_cell(item.ats),
            stat_cell(item.atr),
        )
        for item in items
    )
    head = ("Group", "Exits", "AASR", "ATS (toxicity)", "ATR (reward)")
    found = [(item, item.aasr) for item in items if item.aasr is not None]
    shows = "No mean attack success was recorded."
    if found:
        best, high = max(found, key=lambda pair: pair[1].value)
        last, low = min(found, key=lambda pair: pair[1].value)
        shows = (
            f"Mean attack success is highest over {best.group} exits, {rate_words(high)}, and "
            f"lowest over {last.group} exits, {rate_words(low)}{interval_words(high, low)}."
        )
    not_shown = "single exits: a mean over a group hides the exit where the model is weakest."
    return Figure(name, title, shows, not_shown, tables=(Table(title, head, rows, False),))


def build_tests(diagnosis: Diagnosis) -> Figure:
    """Paired tests of every exit against the default."""
    name, title, exits = "tests", "Which exits differ from the default?", diagnosis.exits
    gap = exits.gap or exits.tests.gap
    if gap:
        return missing(name, title, gap)
    items = exits.tests.items
    differ = [item for item in items if item.p_holm is not None and item.p_holm < ALPHA]
    more = [item.exit for item in differ if (item.difference or 0) > 0]
    less = [item.exit for item in differ if (item.difference or 0) < 0]
    parts = [f"{len(differ)} of {len(items)} exits differ from the default after Holm"]
    if more:
        parts.append(f"more attack success at {count_words('exit', more)}")
    if less:
        parts.append(f"less at {count_words('exit', less)}")
    rows = tuple(
        (
            str(item.exit),
            str(item.n),
            (f"{points(item.difference)} points", _points_span(item.low, item.high)),
            p_cell(item.p_value),
            p_cell(item.p_holm),
            item.method or "–",
        )
        for item in items
    )
    head = ("Exit", "n", "Difference in ASR", "p", "p, Holm", "Test")
    shows = f"{'; '.join(parts)}."
    return Figure(
        name,
        title,
        shows,
        TESTS_NOT,
        (("all", "difference with its 95 % interval"), *_shade_key(exits)),
        _difference_lines(exits, shows),
        tables=(Table(title, head, rows),),
    )


def _difference_lines(exits: Exits, shows: str) -> tuple[Lines, ...]:
    values = [
        (
            item.exit,
            None
            if item.difference is None
            else Value(100 * item.difference, _hundred(item.low), _hundred(item.high), item.n),
        )
        for item in exits.tests.items
    ]
    series = known([line("difference", "all", values)])
    return stat_lines("Difference in ASR, points", series, along(exits), shows)


def _hundred(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _points_span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{points(low)} to {points(high)}"


def _value(row: ByExit, name: str) -> Value | None:
    return row.values.get(name)


def _grounding_shows(section: Section[ByExit], default: int | None) -> str:
    drops = {row.exit: drop for row in section.items if (drop := _value(row, "drop"))}
    if not drops:
        return "No drop was recorded."
    used = [at for at, drop in drops.items() if drop.low is not None and drop.low > 0]
    text = (
        f"Replacing the picture lowers accuracy, with an interval above zero, at {len(used)} of "
        f"{len(drops)} exits"
    )
    text += f" ({ranges(used)})" if used else ""
    if default in drops:
        text += f"; at the default exit by {stat_words(drops[default])}"
    return text + "."


def build_grounding(diagnosis: Diagnosis) -> Figure:
    """Accuracy with the right and with another picture, over exits."""
    name, title, exits = "grounding", "Do answers still use the picture?", diagnosis.exits
    gap = exits.gap or exits.grounding.gap
    if gap:
        return missing(name, title, gap)
    rows = exits.grounding.items

    def curve(key: str, label: str, style: str):
        return line(label, style, [(row.exit, _value(row, key)) for row in rows])

    pair = known(
        [curve("accuracy", "own picture", "line1"), curve("replaced", "another picture", "line2")]
    )
    drop = known([curve("drop", "drop", "all")])
    shows = _grounding_shows(exits.grounding, exits.default)
    at = along(exits)
    plots: tuple[Lines, ...] = (
        *rate_lines("Accuracy on questions", pair, at, f"Accuracy by vision exit. {shows}"),
        *stat_lines("Drop when the picture is replaced", drop, at, shows),
    )
    if not plots:
        return missing(name, title, "no accuracy was recorded")
    body = tuple(
        (
            str(row.exit),
            rate_cell(_value(row, "accuracy")),
            rate_cell(_value(row, "replaced")),
            stat_cell(_value(row, "drop")),
        )
        for row in rows
    )
    table = Table("Grounding", ("Exit", "Own picture", "Another picture", "Drop"), body)
    key = (*key_of(pair), *_shade_key(exits))
    return Figure(name, title, shows, GROUNDING_NOT, key, plots, tables=(table,))
