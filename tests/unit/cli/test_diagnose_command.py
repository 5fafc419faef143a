from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import Command
from untrained_organism import save_untrained

from vlmend.cli.diagnose import _build_plan
from vlmend.cli.main import build_parser
from vlmend.diagnosis.plan import DiagnosisPlan

SMALL = (
    *("--limit", "6", "--max-new-tokens", "2", "--caption-tokens", "2"),
    *("--control-items", "2", "--no-exits"),
)
SUITES = ("--suite", "organism/icon,organism/benign-pictures")


def test_the_page_and_its_figures_are_written(
    saved: Callable[[str], Path], tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "run"
    done = command("diagnose", str(saved("llava")), *SUITES, *SMALL, "--out", str(out))
    assert done.code == 0, done.err
    assert "verdict" in done.out
    assert "Where the four sets lie" in (out / "report.html").read_text()
    suffixes = {path.suffix for path in (out / "figures").iterdir()}
    assert suffixes == {".svg", ".pdf", ".json"}
    repeated = command("diagnose", str(saved("llava")), *SUITES, *SMALL, "--out", str(out))
    assert repeated.code == 2
    assert "--resume" in repeated.err


@pytest.mark.parametrize("options", [(), ("--only", "exits")], ids=["all", "exits"])
def test_an_organism_in_a_folder_brings_its_own_defaults(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    def plan_of(model: str) -> DiagnosisPlan:
        args = build_parser().parse_args(["diagnose", model, *options, "--out", "run"])
        return replace(_build_plan(args), title="")

    assert plan_of(str(save_untrained(tmp_path / "trained"))) == plan_of("organism")


def test_other_models_must_name_their_suites(
    saved: Callable[[str], Path], tmp_path: Path, command: Command
) -> None:
    done = command("diagnose", str(saved("llava")), "--out", str(tmp_path / "run"))
    assert done.code == 2
    assert "--suite is missing" in done.err
    assert not (tmp_path / "run").exists()


def test_a_wrong_suite_is_found_before_the_model_is_loaded(
    tmp_path: Path, command: Command
) -> None:
    done = command(
        "diagnose", "nowhere", "--suite", "organism/icons", "--out", str(tmp_path / "run")
    )
    assert done.code == 2
    assert "organism/icon" in done.err


def test_a_repair_is_diagnosed_at_the_exits_and_compared(
    saved: Callable[[str], Path], tmp_path: Path, command: Command
) -> None:
    model, artifact = saved("llava"), tmp_path / "mend"
    done = command(
        *("repair", "shiftdc", model, "--suite", "organism/fit", "--limit", 4),
        *("--caption-tokens", 2, "--out", artifact),
    )
    assert done.code == 0, done.err
    asked = ("--only", "exits", "--exit-suite", "organism/icon", "--limit", 2)
    runs = [tmp_path / "base", tmp_path / "mended"]
    for run, more in zip(runs, ((), ("--repair", artifact)), strict=True):
        done = command(
            *("diagnose", model, *asked, "--max-new-tokens", 2, *more, "--out", run),
        )
        assert done.code == 0, done.err
        assert "ASR over vision exits of organism/icon" in done.out
        assert "over-refusal: not measured (no benign suite was run)" in done.out
        assert (run / "figures" / "exits.svg").is_file()
    assert "with shiftdc" in (runs[1] / "report.html").read_text()
    compared = command("compare", *runs)
    assert compared.code == 0, compared.err
    assert "shiftdc(caption_tokens=2) on organism/icon" in compared.out
    assert compared.out.count("over-refusal: not measured") == 1
    refused = command("diagnose", model, *asked[2:], "--repair", artifact, "--out", tmp_path / "x")
    assert refused.code == 2
    assert "add --only exits" in refused.error_line


def test_options_that_exits_do_not_depend_on_are_refused(tmp_path: Path, command: Command) -> None:
    out = ("--out", tmp_path / "run")
    done = command(
        *("diagnose", "organism", "--only", "exits", "--maps", "pca", "--control-items", 3, *out)
    )
    assert done.code == 2
    assert "--control-items, --maps would have no effect" in done.error_line
    done = command("diagnose", "organism", "--only", "exits", "--suite", "organism/icon", *out)
    assert done.code == 2
    assert "--suite would have no effect" in done.error_line
    done = command("diagnose", "nowhere", "--only", "exits", *out)
    assert done.code == 2
    assert "--exit-suite" in done.error_line
    assert command("diagnose", "organism", "--only", "exits", "--no-exits", *out).code == 2
