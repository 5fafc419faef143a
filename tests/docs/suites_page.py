"""Writes the generated part of docs/suites.md: `python tests/docs/suites_page.py`."""

from __future__ import annotations

from pathlib import Path

from vlmend.suites.registry import SuiteSpec, get_suite, suite_names
from vlmend.suites.sources import find_source

PAGE = Path(__file__).resolve().parents[2] / "docs" / "suites.md"

MARK = "<!-- What follows is written by `python tests/docs/suites_page.py`; do not edit it. -->"

PURPOSES = {
    "safety": "Safety: what must not be answered",
    "over-refusal": "Over-refusal: what must not be refused",
    "utility": "Utility: what must be answered rightly",
}

FETCHED = {"github": "yes", "hub": "yes", "manual": "by hand", None: "no files"}

HEAD = (
    "| suite | items | harm in the text | judge (its paper's) | loader tested on | fetched | "
    "licence |"
)


def render() -> str:
    """The generated part, from the registry."""
    specs = [get_suite(name) for name in suite_names()]
    parts = [MARK]
    for purpose, title in PURPOSES.items():
        mine = [spec for spec in specs if spec.purpose == purpose]
        parts += [f"## {title}", "\n".join([HEAD, "|---" * 7 + "|", *map(_row, mine)])]
        parts.append("\n".join(map(_line, mine)))
    return "\n\n".join(parts) + "\n"


def _row(spec: SuiteSpec) -> str:
    found = find_source(spec.name) if spec.needs_folder else None
    fetched = FETCHED[None if found is None else found[1].kind]
    if found is not None and found[1].kind != "manual":
        extra = [
            *(["gated"] if found[1].gated else []),
            *(["rest by hand"] if found[1].steps else []),
        ]
        fetched += f" ({', '.join(extra)})" if extra else ""
    judge = spec.default_judge + (f" ({spec.paper_judge})" if spec.paper_judge else "")
    items = "" if spec.num_items is None else f"{spec.num_items:,}"
    cells = (f"`{spec.name}`", items, spec.leak, judge, spec.tested_on, fetched, spec.licence)
    return f"| {' | '.join(cells)} |"


def _line(spec: SuiteSpec) -> str:
    unchecked = f" Number of rows not checked: {spec.unchecked}." if spec.unchecked else ""
    return (
        f"- `{spec.name}`: {spec.description}. In its paper: {spec.metric}.{unchecked} "
        f"{spec.citation}."
    )


def written_by_hand(page: str) -> str:
    """The part of the page above the mark."""
    return page.partition(MARK)[0]


if __name__ == "__main__":
    PAGE.write_text(written_by_hand(PAGE.read_text("utf-8")) + render(), encoding="utf-8")
