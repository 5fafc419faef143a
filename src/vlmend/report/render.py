"""metrics.json -> report.html: one file, no script, nothing fetched from anywhere.

Model text is a stranger's text: it reaches the page through Jinja's autoescape only, and a content
security policy forbids scripts and every address but `data:` pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from vlmend.evals.arm_names import shorten_arms
from vlmend.evals.stats import MIN_COVERAGE
from vlmend.report import (
    charts,
    examples,
    judge_views,
    paper_views,
    plots,
    tables,
    training_views,
    wording,
)
from vlmend.report.reading import clean_text
from vlmend.report.records import read_records
from vlmend.runs import replacing


@cache
def build_environment() -> Environment:
    """Templates with the filters that every page of a report uses."""
    environment = Environment(
        loader=PackageLoader("vlmend.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        arm=wording.arm_title,
        number=wording.number,
        percent=wording.percent,
        points=wording.points,
        span=wording.span,
        flatten=tables.flatten,
        breakable=tables.breakable,
    )
    environment.globals.update(
        swatch=charts.swatch,
        track_axis=charts.track_axis,
        arm_style=plots.arm_style,
        percent_words=wording.percent_words,
        min_coverage=MIN_COVERAGE,
    )
    return environment


def render_html(metrics: Mapping[str, Any]) -> str:
    """Render a report.

    Args:
        metrics: Contents of metrics.json; comparisons, shift, cost, examples and what concerns
            trained arms may be missing.

    Returns:
        A complete HTML document; equal metrics give equal text.

    Raises:
        RunError: The metrics have another schema or a malformed section.
    """
    names = shorten_arms(arm.name for arm in read_records(metrics).arms)
    metrics = names.rename(metrics)
    records = read_records(metrics)
    headline = tables.build_headline(records)
    writing = training_views.build_writing(records)
    return (
        build_environment()
        .get_template("report.html.j2")
        .render(
            records=records,
            verdict=wording.build_verdict(records),
            names=names.explain(),
            created=wording.date_words(records.created),
            headline=headline,
            partial=tables.any_partial(headline),
            withheld=tables.list_withheld(records),
            numbers=paper_views.build_numbers(records),
            part_tables=paper_views.build_parts(records),
            evidence=paper_views.build_evidence(records),
            changes=plots.build_changes(records, headline),
            controls=clean_text(metrics.get("controls") or ()),
            agreement=judge_views.build_agreement(metrics),
            corrected=judge_views.build_corrected(metrics),
            judging=judge_views.build_judging(metrics),
            writing=writing,
            perplexity=training_views.any_perplexity(writing),
            same=training_views.build_same(records),
            ledger=training_views.build_ledger(records),
            exit_changes=plots.build_exit_changes(records),
            exits=plots.build_exits(records),
            shift=plots.build_shift(records),
            cost=tables.build_cost(records),
            cards=examples.build_cards(records),
        )
    )


def render_report(metrics: Mapping[str, Any], out: Path) -> Path:
    """Render a report into a file: completely, or not at all.

    Args:
        metrics: Contents of metrics.json.
        out: The file to write; its folder is made if need be, an older report is replaced.

    Returns:
        The file written.

    Raises:
        RunError: The metrics cannot be read, or the file cannot be written.
    """
    html = render_html(metrics).encode()
    with replacing(out) as temporary:
        temporary.write_bytes(html)
    return out
