"""The pages hang together: links resolve, every error has its section, words stay one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from fences import ROOT, pages

from vlmend import errors

SRC = ROOT / "src" / "vlmend"
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)[^)]*\)")


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    heads = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def broken_links(page: Path, text: str) -> list[str]:
    """Links of a page to files or headings that do not exist; the web is left alone."""
    broken: list[str] = []
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    for match in LINK.finditer(prose):
        target, _, anchor = match["target"].partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (
            anchor and file.suffix == ".md" and anchor not in anchors_of(file)
        ):
            broken.append(match["target"])
    return broken


def error_classes() -> set[str]:
    """Names of all classes of the package that derive from VlmendError."""
    bases: dict[str, set[str]] = {}
    for path in SRC.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    found = {"VlmendError"}
    while more := {name for name, above in bases.items() if above & found} - found:
        found |= more
    return found


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in pages()])
def test_links_resolve(page: Path) -> None:
    assert not broken_links(page, page.read_text("utf-8"))


def test_broken_links_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A heading\n[a](#a-heading) [b](#b) [c](no.md) [d](https://x.org)\n")
    assert broken_links(page, page.read_text()) == ["#b", "no.md"]


def test_every_error_has_its_section() -> None:
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE)
    assert sorted(sections) == sorted(error_classes())
    assert errors.VlmendError.__name__ in sections


def test_glossary_defines_each_word_once_in_order() -> None:
    words = re.findall(
        r"^\*\*(.+?)\*\*", (ROOT / "docs" / "glossary.md").read_text("utf-8"), re.MULTILINE
    )
    assert words == sorted(set(words), key=str.casefold)
    wanted = {"attack success rate (ASR)", "refusal rate", "over-refusal", "exit layer", "judge"}
    wanted |= {"modality-induced shift", "safety direction", "calibration", "forget set"}
    assert (wanted | {"retain set"}) <= set(words)
