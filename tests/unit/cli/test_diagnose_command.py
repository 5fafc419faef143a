from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from command_line import Command

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
