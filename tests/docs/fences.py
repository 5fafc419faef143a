"""Find the code fences of the Markdown pages, with their line numbers."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,}|~{3,})(?P<info>.*)$")
COMMAND_LANGUAGES = {"console", "bash", "sh", "shell", "shell-session"}
COMMANDS = {"vlmend", "make", "pip"}
"""What the commands of a page start with; in a `console` fence other lines are output."""


@dataclass(frozen=True)
class Fence:
    """One fenced block: where it is, the words after the ticks, and its text."""

    page: Path
    line: int
    info: tuple[str, ...]
    text: str

    @property
    def language(self) -> str:
        """First word after the ticks, lower case; empty when there is none."""
        return self.info[0].lower() if self.info else ""

    @property
    def where(self) -> str:
        """Page and line, as an editor opens it."""
        path = self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page
        return f"{path}:{self.line}"


def pages() -> list[Path]:
    """The Markdown pages of the project: those at the top and those under docs/."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def find_fences(page: Path, text: str) -> list[Fence]:
    """All fenced blocks of a page.

    Raises:
        ValueError: A fence that is never closed would hide the rest of the page.
    """
    fences: list[Fence] = []
    opened: re.Match[str] | None = None
    start, body = 0, list[str]()
    for number, line in enumerate(text.splitlines(), start=1):
        match = FENCE.match(line)
        if opened is None:
            if match:
                opened, start, body = match, number, []
        elif match and match["ticks"].startswith(opened["ticks"]) and not match["info"].strip():
            info = tuple(opened["info"].split())
            fences.append(Fence(page, start + 1, info, "\n".join(body)))
            opened = None
        else:
            body.append(line.removeprefix(opened["indent"]))
    if opened is not None:
        raise ValueError(f"{page}:{start}: this fence is never closed")
    return fences


def find_commands(fence: Fence) -> list[list[str]]:
    """The commands of a fence as argument lists; comments, prompts and output are dropped.

    Examples:
        >>> find_commands(Fence(ROOT, 1, ("console",), "$ vlmend list \\\\\\n  suites  # all"))
        [['vlmend', 'list', 'suites']]
    """
    commands: list[list[str]] = []
    for line in fence.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.strip().removeprefix("$ "), comments=True) if line.strip() else []
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        if words and words[0].rpartition("/")[2] in COMMANDS:
            commands.append([words[0].rpartition("/")[2], *words[1:]])
    return commands


def python_script(fences: list[Fence]) -> str:
    """The runnable `python` fences of a page as one script with the page's line numbers.

    One script per page: a tutorial goes on with the names it made. `python no-run` is
    compiled elsewhere but not run (it downloads a model, say).
    """
    lines: list[str] = []
    for fence in fences:
        if fence.language == "python" and "no-run" not in fence.info:
            lines += [""] * (fence.line - 1 - len(lines)) + fence.text.splitlines()
    return "\n".join(lines)
