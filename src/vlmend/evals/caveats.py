"""What a reader must know to read the numbers of a run right. Pure: facts in, sentences out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

_RULES = {"advbench-prefixes", "shiftdc-keywords", "vlguard-substrings", "xstest-prefix"}
"""Judges that look for phrases of refusal."""

_INTERVALS = (
    "Intervals of rates are 95 % intervals: Wilson's over items that share nothing, and where "
    "several items ask about one thing Wilson's at the number of independent items that would "
    "vary as much. They say how far the rate would move with other items of the same kind, not "
    "with other wordings, judges or models. Differences between arms are tested over things, not "
    "items."
)

_SECONDS = (
    "Seconds are wall time of one run on one machine; compare ratios within this report only. "
    "FLOPs are counted on one item of a suite and scaled by tokens."
)


def list_caveats(
    judges: Collection[str],
    suites: Iterable[str],
    kinds: Collection[str],
    without_exits: Collection[str] = (),
) -> list[str]:
    """The notes of a run.

    Args:
        judges: Names of the judges.
        suites: Names of the suites.
        kinds: What its suites are: "harmful", "benign", "utility".
        without_exits: Suites that were to be measured at exits and have no pictures.
    """
    notes = [_INTERVALS, _SECONDS]
    if set(judges) & _RULES:
        notes.append(
            "A refusal judge by string matching reads how an answer begins, not whether it is "
            "harmful: an answer without a refusal phrase counts as complied."
        )
    if any(name.startswith("organism/") for name in suites):
        notes.append(
            "The model organism is a small model trained in a small world. What it shows is that "
            "a method works as described on a real architecture, not how large any effect is on "
            "a large model."
        )
    if without_exits:
        notes.append(
            f"No exits were measured on {', '.join(without_exits)}: there are no pictures in it."
        )
    if "benign" not in kinds:
        notes.append("No benign suite was run: over-refusal is not measured here.")
    if "utility" not in kinds:
        notes.append("No utility suite was run: usefulness is not measured here.")
    return notes


def list_skips(suites: Iterable[Mapping[str, Any]]) -> list[str]:
    """What loaders left out, in words.

    Args:
        suites: Entries of `suites` in `metrics.json`.

    Example:
        >>> list_skips([{"name": "tea", "skipped": [{"count": 2, "reason": "rows without a cup"}]}])
        ['tea: left out: 2 rows without a cup']
    """
    return [
        f"{suite['name']}: left out: {skip['count']:,} {skip['reason']}"
        for suite in suites
        for skip in suite.get("skipped", ())
    ]


def list_unmeasured(cells: Iterable[Mapping[str, Any]]) -> list[str]:
    """What must stand beside an attack success rate and was not measured, in words.

    Args:
        cells: Entries of `cells` in `metrics.json`.

    Returns:
        "over-refusal: not measured" and the like; nothing where there is no harmful suite.

    Example:
        >>> list_unmeasured([{"suite_kind": "harmful"}, {"suite_kind": "benign"}])
        ['utility: not measured (no utility suite was run)']
    """
    kinds = {cell["suite_kind"] for cell in cells}
    if "harmful" not in kinds:
        return []
    return [
        f"{what}: not measured (no {kind} suite was run)"
        for kind, what in (("benign", "over-refusal"), ("utility", "utility"))
        if kind not in kinds
    ]
