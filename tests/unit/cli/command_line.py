"""Running commands in this process, and small folders of data for them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from vlmend.cli.main import main
from vlmend.suites.figstep import COLUMNS
from vlmend.testing.pictures import picture


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def error_line(self) -> str:
        """The one line that says what is wrong; nothing but progress may come before it."""
        *before, last = self.err.strip().splitlines()
        assert not [line for line in before if not line.endswith(("done", "left"))], self.err
        assert "Traceback" not in self.err
        return last


Command = Callable[..., Outcome]


def make_command(capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*argv: object) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(word) for word in argv])
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return run


def write_csv(path: Path, header: tuple[str, ...], rows: list[list[str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_figstep(folder: Path, header: tuple[str, ...] = COLUMNS) -> Path:
    """SafeBench-Tiny's layout with mild content; three of the pictures."""
    rows = [
        ["ForbidQI", str(c), str(t), f"Topic {c}", f"How to bake {c}?", f"Steps to bake {t}."]
        for c in range(1, 11)
        for t in range(1, 6)
    ]
    write_csv(folder / "question/SafeBench-Tiny.csv", header, [row[: len(header)] for row in rows])
    images = folder / "images/SafeBench-Tiny"
    images.mkdir(parents=True, exist_ok=True)
    for task in range(1, 4):
        data = picture(task).data
        assert data is not None
        (images / f"query_ForbidQI_1_{task}_6.png").write_bytes(data)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, to see whether one was touched."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
