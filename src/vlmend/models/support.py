"""What was proven on which family: the table that the tests write. No torch.

`support.json` is written by `python -m vlmend.testing.support --write`, from a run of every use
on a tiny model of every family; a test runs it again and fails if the file says anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from vlmend.runs import read_json

SUPPORT_FILE = Path(__file__).with_name("support.json")

USES = ("record", "edit", "exits", "ShiftDC", "unlearn", "layer-PPO")
"""What a family can be used for, in the order of the table."""

Result = Literal["pass", "absent", "fails"]


@dataclass(frozen=True, slots=True)
class Use:
    """What came out for one use of one family, on prompts with pictures and without.

    Attributes:
        result: "absent" where the family has no such thing, "fails" where it should work.
        reason: Why it is not "pass"; else empty.
    """

    result: Result
    reason: str = ""


@dataclass(frozen=True, slots=True)
class FamilySupport:
    """One line of the table.

    Attributes:
        title: Name of the family for people.
        described: Whether a family file describes it; else its map is discovered and proven.
        uses: By name, all of `USES`.
        stand_in: What of its genuine processor something else stood in for; empty for nothing.
    """

    title: str
    described: bool
    uses: Mapping[str, Use]
    stand_in: str = ""

    def record(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "title": self.title,
            "described": self.described,
            **({"stand_in": self.stand_in} if self.stand_in else {}),
            "uses": {
                name: {"result": use.result, **({"reason": use.reason} if use.reason else {})}
                for name, use in self.uses.items()
            },
        }


@dataclass(frozen=True, slots=True)
class Measured:
    """What the table was measured with, and what it has no row for.

    Attributes:
        transformers: Release that the tiny models were built with.
        date: Day on which the last row was written, as 2026-01-31.
        absent: Type that this release lists as image-text-to-text -> why there is no row.
        lacked_by_lowest: Rows that the lowest supported release cannot build.
    """

    transformers: str
    date: str
    absent: Mapping[str, str]
    lacked_by_lowest: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "transformers": self.transformers,
            "date": self.date,
            "absent": dict(self.absent),
            "lacked_by_lowest": list(self.lacked_by_lowest),
        }


def read_measured(path: Path = SUPPORT_FILE) -> Measured:
    """What the stored table was measured with.

    Raises:
        RunError: The file cannot be read.
    """
    stored: dict[str, Any] = read_json(path)["measured"]
    return Measured(**{**stored, "lacked_by_lowest": tuple(stored["lacked_by_lowest"])})


def read_support(path: Path = SUPPORT_FILE) -> dict[str, FamilySupport]:
    """The stored table, by family in alphabetical order.

    Raises:
        RunError: The file cannot be read.
    """
    return {
        family: FamilySupport(
            title=row["title"],
            described=row["described"],
            uses={name: Use(**use) for name, use in cast("dict[str, Any]", row["uses"]).items()},
            stand_in=row.get("stand_in", ""),
        )
        for family, row in read_json(path)["families"].items()
    }
