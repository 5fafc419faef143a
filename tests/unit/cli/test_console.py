"""What is printed: tables and lists that can be read in a log and in 80 columns."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Command
from rich.console import Console

import vlmend.cli.console as console
from vlmend.models.support import read_measured, read_support


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Standard output of 80 columns."""
    file = io.StringIO()
    monkeypatch.setattr(console, "results", Console(file=file, width=80))
    return file


def cell(**changed: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "suite": "organism/text+image",
        "arm": "shiftdc",
        "exit": None,
        "judge": "organism",
        "num_samples": 360,
        "num_scored": 360,
        "asr": 0.1234,
        "asr_low": 0.09,
        "asr_high": 0.165,
        "refusal_rate": 0.8,
        "incoherent_rate": 0.01,
    }
    return base | changed


def comparison(**changed: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "suite": "organism/icon",
        "before": "base",
        "after": "shiftdc",
        "exit": None,
        "judge": "organism",
        "n": 360,
        "asr_before": 0.7,
        "asr_after": 0.0,
        "difference_low": -0.75,
        "difference_high": -0.64,
        "p_value": 1e-40,
        "p_holm": 2e-40,
    }
    return base | changed


def test_a_usual_table_fits_into_80_columns_unbroken(printed: io.StringIO) -> None:
    console.print_cells("Audit", [cell(), cell(suite="organism/vqa", asr=None)])
    lines = printed.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    (line,) = [line for line in lines if "text+image" in line]
    assert line.split()[:3] == ["organism/text+image", "shiftdc", "360/360"]
    for words in ("12.3 % [9.0, 16.5]", "80.0 %", "1.0 %"):
        assert words in line
    assert "exit" not in printed.getvalue(), "a column that says nothing is left out"
    assert "judge" not in printed.getvalue()


def test_exits_and_judges_have_columns_where_they_differ(printed: io.StringIO) -> None:
    console.print_cells("Audit", [cell(exit=3), cell(judge="xstest-prefix")])
    text = printed.getvalue()
    assert "exit" in text
    assert "judge" in text


def test_a_rate_is_withheld_in_the_table_and_says_why(printed: io.StringIO) -> None:
    console.print_cells("Audit", [cell(num_scored=300, num_errors=2)])
    text = printed.getvalue()
    assert "12.3 %" not in text
    assert (
        "withheld: organism/text+image, shiftdc: 60 of 360 items unscored, 2 of them errors: "
        "coverage 83.3 % is below 98 %"
    ) in text
    with_scores = {"scores": {"F1": {"value": 0.5, "low": 0.4, "high": 0.6}}}
    console.print_paper_numbers([cell(num_scored=300, **with_scores)])
    assert "F1" not in printed.getvalue()


def test_what_was_not_measured_is_said(printed: io.StringIO) -> None:
    console.print_unmeasured([cell(suite_kind="harmful")])
    assert "over-refusal: not measured" in printed.getvalue()
    assert "utility: not measured" in printed.getvalue()
    before = printed.getvalue()
    kinds = ("harmful", "benign", "utility")
    console.print_unmeasured([cell(suite_kind=kind) for kind in kinds])
    assert printed.getvalue() == before


def test_the_papers_numbers_have_a_table(printed: io.StringIO) -> None:
    macro = {"key": "scenario", "num_values": 13, "asr": 0.451, "asr_low": 0.4, "asr_high": 0.5}
    total = {"value": 1472.25, "low": 1400.0, "high": 1544.0}
    console.print_paper_numbers(
        [cell(macro=macro), cell(suite="mme", scores={"total": total, "F1": total | {"low": None}})]
    )
    lines = [" ".join(line.split()) for line in printed.getvalue().splitlines()]
    assert any("macro over 13 (scenario) 45.1 % [40.0, 50.0]" in line for line in lines)
    assert any(line.endswith("total 1472 [1400, 1544]") for line in lines)
    assert any(line.endswith("F1 1472") for line in lines)


def test_what_loaders_left_out_is_printed(
    printed: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmend.report.render.render_report", lambda _, out: out)
    suite = {"name": "bread", "skipped": [{"count": 1029, "reason": "rows of rye"}]}
    cells = [{**cell(), "suite_kind": "harmful"}]
    metrics = {"title": "t", "suites": [suite], "cells": cells, "comparisons": []}
    console.show_run(metrics, tmp_path)
    assert "bread: left out: 1,029 rows of rye" in printed.getvalue()


def test_a_comparison_of_a_withheld_rate_is_not_shown(printed: io.StringIO) -> None:
    console.print_comparisons([comparison(withheld="9 of 10 items unscored")])
    assert printed.getvalue() == (
        "not compared: organism/icon, base -> shiftdc: 9 of 10 items unscored\n"
    )


def test_no_difference_says_what_would_have_shown(printed: io.StringIO) -> None:
    console.print_comparisons([comparison(), comparison(detectable=0.0721, p_holm=0.4)])
    text = printed.getvalue()
    assert "7.2 %" in text
    assert "with a chance of 80 %" in text


def test_a_usual_comparison_fits_into_80_columns_unbroken(printed: io.StringIO) -> None:
    console.print_comparisons([comparison(), comparison(suite="organism/text+image")])
    lines = printed.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "base -> shiftdc" in lines[0]
    (line,) = [line for line in lines if "text+image" in line]
    for words in ("360", "70.0 % -> 0.0 %", "[-75.0, -64.0]", "1e-40", "2e-40"):
        assert words in line


def test_things_are_tested_where_items_have_them(printed: io.StringIO) -> None:
    clustered = {
        "num_groups": 90,
        "clustered_low": -0.8,
        "clustered_high": -0.6,
        "clustered_p": 1e-20,
    }
    console.print_comparisons([comparison(**clustered)])
    text = printed.getvalue()
    assert "sign flips of things" in text
    for words in ("360/90", "[-80.0, -60.0]", "1e-20"):
        assert words in text
    assert "1e-40" not in text
    console.print_comparisons([comparison(**clustered), comparison(suite="old")])
    assert "without things McNemar's test" in " ".join(printed.getvalue().split())


def test_a_table_that_is_too_wide_goes_on_below(printed: io.StringIO) -> None:
    columns = [(f"a/\nsuite{i}", [f"{i}0.0 %\n[1.0, 2.0]", "x" * 18]) for i in range(9)]
    console.print_wide_table("Rates", ("arm", ["base", "mended"]), columns)
    lines = printed.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("mended" in line for line in lines) == 3
    assert all(any(f"{i}0.0 %" in line for line in lines) for i in range(9))
    assert "x" * 18 in printed.getvalue(), "no cell is folded"


def test_several_arms_have_a_column(printed: io.StringIO) -> None:
    console.print_comparisons([comparison(suite="s"), comparison(suite="s", after="other")])
    words = printed.getvalue().split()
    assert "shiftdc" in words
    assert "other" in words


def test_nothing_to_compare_prints_nothing(printed: io.StringIO) -> None:
    console.print_comparisons([])
    assert printed.getvalue() == ""


def test_names_in_brackets_are_text_and_no_markup(printed: io.StringIO) -> None:
    console.print_cells("Audit [bold]", [cell(suite="a", arm="shiftdc([red]x)")])
    console.print_blocks([("name[bold]", ["line [red] of text"])])
    text = printed.getvalue()
    assert "shiftdc([red]x)" in text
    assert "Audit [bold]" in text
    assert "name[bold]" in text
    assert "line [red] of text" in text


def test_piped_tables_are_not_squeezed_into_80_columns() -> None:
    # pytest's standard output is no terminal.
    assert console.results.width >= 160


@pytest.mark.parametrize("what", ["suites", "judges", "families", "repairs"])
def test_lists_are_readable_in_80_columns(
    what: str, command: Command, printed: io.StringIO
) -> None:
    done = command("list", what)
    assert done.code == 0
    lines = printed.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if line != line.rstrip()]
    names = [line for line in lines if not line.startswith(" ")]
    known = {
        "suites": ["figstep=FOLDER", "organism/icon", "xstest=FOLDER"],
        "judges": ["organism", "shiftdc-keywords", "xstest-prefix"],
        "families": ["llava", "llava_next", "mllama", "qwen2_5_vl"],
        "repairs": ["shiftdc"],
    }
    assert set(known[what]) <= set(names)


def test_families_without_a_row_are_listed_with_the_reason(command: Command) -> None:
    measured = read_measured()
    shown = " ".join(command("list", "families").out.split())
    assert "measured with a stand-in, image processor" in shown
    assert f"florence2 no row: {measured.absent['florence2']}" in shown
    assert f"with transformers {measured.transformers}" in shown
    facts = {row["name"]: row for row in json.loads(command("list", "families", "--json").out)}
    assert facts["florence2"] == {"name": "florence2", "absent": measured.absent["florence2"]}
    assert set(facts) == {*read_support(), *measured.absent}


def test_an_unknown_list_is_a_usage_error(command: Command) -> None:
    done = command("list", "suits")
    assert done.code == 2
    assert "suites" in done.err


def test_progress_in_a_log_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.progress_bars() as report:
        for done in range(10, 101, 10):
            report("base on mild", done, 100, "so far" if done == 40 else "")
            now[0] += 6.0
        report("base on more", 0, 0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "base on mild: 40 of 100, 0:00:36 left (so far)"
    assert lines[-2:] == ["base on mild: 100 done", "base on more: 0 done"]
    assert len(lines) == 4, "no line before the time has come"


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=file, force_terminal=True, width=100))
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: True, raising=False)
    with console.progress_bars() as report:
        report("base on mild", 2, 4)
        report("base on mild", 4, 4, note="reward 0.5")
    assert "base on mild" in file.getvalue()
    assert "4/4" in file.getvalue()
    assert "reward 0.5" in file.getvalue()


@pytest.mark.parametrize("width", [80, 160])
def test_a_long_name_does_not_push_the_bar_out(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    file = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=file, force_terminal=True, width=width))
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: True, raising=False)
    arms = [f"mend({', '.join(f'setting_{i}=1.0' for i in range(9))}, seed={s})" for s in (1, 2)]
    with console.progress_bars(arms) as report:
        for arm in arms:
            report(f"{arm} on mild", 3, 4)
        report("something that has no short name " * 9, 5, 6)
    text = file.getvalue()
    for shown in ("mend(seed=1)", "mend(seed=2)", "3/4", "5/6", "left"):
        assert shown in text, shown
    assert "setting_0" not in text


def test_rates_and_intervals_as_text() -> None:
    assert console.percent(0.1234) == "12.3 %"
    assert console.percent(None) == "-"
    assert console.interval(0.1, 0.2) == "[10.0, 20.0]"
    assert console.interval(None, 0.2) == ""
