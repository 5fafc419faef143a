"""Records of a panel of judges -> tables: how far they agree, and rates without their errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlmend.report.reading import clean_text, read_int, read_name, read_number, read_rows, read_text
from vlmend.report.wording import number, percent, span


@dataclass(frozen=True, slots=True)
class AgreementRow:
    """How far judges agree on one suite, ready to print."""

    suite: str
    judges: str
    kappa: str
    interval: str
    observed: str
    n: str
    unscored: str
    note: str


@dataclass(frozen=True, slots=True)
class CorrectedRow:
    """One rate as a judge sees it, and without the judge's errors, ready to print."""

    suite: str
    arm: str
    exit: str
    judge: str
    raw: str
    raw_interval: str
    corrected: str
    corrected_interval: str
    truth: str
    sensitivity: str
    specificity: str
    labelled: str
    note: str


def build_agreement(metrics: Mapping[str, Any]) -> list[AgreementRow]:
    """Kappa of every pair of judges, and of all together.

    Raises:
        RunError: The section is malformed.
    """
    rows: list[AgreementRow] = []
    for row in map(clean_text, read_rows(metrics, "agreement")):
        low, high = read_number(row.get("low")), read_number(row.get("high"))
        between = "" if low is None or high is None else f"{number(low, 2)} to {number(high, 2)}"
        rows.append(
            AgreementRow(
                suite=read_name(row, "suite", "agreement"),
                judges=", ".join(map(str, row.get("judges") or ())),
                kappa=number(read_number(row.get("kappa")), 2),
                interval=between,
                observed=percent(read_number(row.get("observed"))),
                n=number(read_number(row.get("n")), 0),
                unscored=number(read_number(row.get("num_unscored")), 0),
                note=read_text(row, "reason"),
            )
        )
    return rows


def build_judging(metrics: Mapping[str, Any]) -> list[str]:
    """What every judge took, in words.

    Raises:
        RunError: The section is malformed.
    """
    return [
        f"{read_name(row, 'judge', 'judging')} {number(read_number(row.get('seconds')), 3)} s for "
        f"{number(read_number(row.get('answers')), 0)} answers"
        for row in map(clean_text, read_rows(metrics, "judging"))
    ]


def build_corrected(metrics: Mapping[str, Any]) -> list[CorrectedRow]:
    """Rates corrected for judge errors, beside the raw ones.

    Raises:
        RunError: The section is malformed.
    """
    return [_correct(clean_text(row)) for row in read_rows(metrics, "calibration")]


def _correct(row: Mapping[str, Any]) -> CorrectedRow:
    def rate(name: str) -> str:
        return percent(read_number(row.get(name)))

    def between(name: str) -> str:
        return span(read_number(row.get(f"{name}_low")), read_number(row.get(f"{name}_high")))

    notes = [read_text(row, "reason")]
    if row.get("clipped"):
        notes.append("the correction left 0 to 100 % and was cut")
    if row.get("inconsistent"):
        notes.append("the raw rate does not fit the judge's errors")
    exit_layer = read_int(row.get("exit"))
    return CorrectedRow(
        suite=read_name(row, "suite", "calibration"),
        arm=read_name(row, "arm", "calibration"),
        exit="default" if exit_layer is None else str(exit_layer),
        judge=read_name(row, "judge", "calibration"),
        raw="withheld" if read_text(row, "withheld") else rate("raw"),
        raw_interval=between("raw"),
        corrected=rate("corrected"),
        corrected_interval=between("corrected"),
        truth=rate("truth"),
        sensitivity=f"{rate('sensitivity')} {_in_brackets(between('sensitivity'))}".strip(),
        specificity=f"{rate('specificity')} {_in_brackets(between('specificity'))}".strip(),
        labelled=number(read_number(row.get("num_labelled")), 0),
        note="; ".join(note for note in notes if note),
    )


def _in_brackets(text: str) -> str:
    return f"({text})" if text else ""
