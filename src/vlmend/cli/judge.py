"""`vlmend judge`: judge stored answers again; do judges agree, and how wrong are they?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmend.cli.options import join_command, split_names

if TYPE_CHECKING:
    from vlmend.evals.labels import Labels
    from vlmend.evals.metrics import JudgedCell
    from vlmend.evals.reloaded_run import ReloadedRun

Record = Mapping[str, Any]

_TRUTH = ("truth", "raw_distance", "corrected_distance")
_TRUTH_HEADS = ("truth", "raw is off by", "corrected is off by")


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "judge",
        help="judge the answers of a run again, by other judges; see how far these agree",
        description="Judge stored answers without generating: writes verdicts.<judge>.jsonl, and "
        "metrics.json and the report anew. Verdicts that are there already are used again. With "
        "several judges it prints how far they agree; with labels, how often each judge is wrong "
        "and what the rates are without its errors.",
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of vlmend audit")
    parser.add_argument(
        "--judge",
        type=split_names,
        action="append",
        default=[],
        metavar="A,B",
        help="judges, NAME or NAME=TARGET; can be repeated (default: those of the run)",
    )
    parser.add_argument(
        "--suite",
        type=split_names,
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="where a suite's files are, if they were moved since; can be repeated",
    )
    truth = parser.add_mutually_exclusive_group()
    truth.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="CSV or JSON lines with label and response_id, or sample_id (and arm, exit)",
    )
    truth.add_argument(
        "--truth",
        metavar="JUDGE",
        help="a judge to be taken for exact: labels half of the answers, tests on the others",
    )
    parser.add_argument(
        "--pool",
        choices=("cell", "suite", "kind"),
        default="cell",
        help="whose labels tell a judge's errors: the same arm, suite and exit; the same suite; "
        "all suites of a kind (default: cell)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of bootstraps and halves (default: 0)")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command: first all that can be wrong, then the judging."""
    from vlmend.cli.console import progress_bars, quiet_libraries
    from vlmend.evals.labels import match_labels, read_labels
    from vlmend.evals.rejudge import choose_judges, earlier_cells, judge_run, remake_metrics
    from vlmend.evals.reloaded_run import reload_run, require_audit
    from vlmend.runs import hold_folder

    quiet_libraries()
    require_audit(args.folder)
    rows = None if args.labels is None else read_labels(args.labels)
    with hold_folder(args.folder):
        stored = reload_run(args.folder, [name for names in args.suite for name in names])
        names = list(dict.fromkeys(name for names in args.judge for name in names))
        if args.truth is not None and args.truth not in names:
            names.append(args.truth)
        judges = choose_judges(stored, names)
        labels = None if rows is None else match_labels(rows, stored.cells)
        _say_what_is_there(stored)
        with progress_bars() as progress:
            judged = judge_run(stored, judges, progress)
        earlier, partly = earlier_cells(stored, judges)
        more = _hold_together(args, stored, earlier, judged, labels)
        metrics = remake_metrics(stored, [*earlier, *judged], more, join_command(sys.argv[1:]))
    _say_who_is_missing(partly)
    _show(args, metrics, more)
    return 0


def _hold_together(
    args: argparse.Namespace,
    stored: ReloadedRun,
    earlier: Sequence[JudgedCell],
    judged: Sequence[JudgedCell],
    labels: Labels | None,
) -> dict[str, Any]:
    """Agreement and calibration, as entries of `metrics.json`."""
    from vlmend.evals.labels import split_truth
    from vlmend.evals.panel import agreement_records, calibration_records, kinds_of

    kinds = kinds_of(judged, {suite.spec.name: suite.spec for suite in stored.suites})
    more: dict[str, Any] = {
        "agreement": agreement_records([*earlier, *judged]),
        # Nothing of an earlier call may stand beside verdicts that it was not computed from.
        "calibration": [],
        "labels": None,
    }
    if args.truth is not None:
        exact = [cell for cell in judged if cell.judge.name == args.truth.partition("=")[0]]
        labels, others = split_truth(exact, args.seed)
        rest = [cell for cell in judged if cell not in exact]
        more["calibration"] = calibration_records(
            rest, kinds, labels, args.pool, truth=others, seed=args.seed
        )
        more["labels"] = {"truth": args.truth, "num_unsure": labels.num_unsure}
    elif labels is not None:
        more["calibration"] = calibration_records(judged, kinds, labels, args.pool, seed=args.seed)
        more["labels"] = {
            "file": str(args.labels),
            "num_labelled": len(labels.values),
            "num_unsure": labels.num_unsure,
            "num_unmatched": labels.num_unmatched,
        }
    return more


# ---- what is said


def _say_what_is_there(stored: ReloadedRun) -> None:
    from vlmend.cli.console import console

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True, markup=False)

    if not stored.progress.finished:
        say(f"the run is not finished: {stored.progress.describe()}; these are judged")
    if stored.num_foreign:
        say(f"{stored.num_foreign} stored answers are to other items than the run's: left out")


def _say_who_is_missing(partly: Sequence[str]) -> None:
    from vlmend.cli.console import console

    for name in partly:
        console.print(
            f"{name} is not (completely) in metrics.json any more: it has not judged all answers "
            f"that are there in the revision it had. Add --judge {name}.",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )


def _show(args: argparse.Namespace, metrics: dict[str, Any], more: dict[str, Any]) -> None:
    import json

    from vlmend.cli.console import show_run
    from vlmend.report.render import render_report

    if args.json:
        render_report(metrics, args.folder / "report.html")
        print(json.dumps({key: metrics[key] for key in ("judges", "cells", *more)}, indent=2))
        return
    show_run(metrics, args.folder)
    print_agreement(more["agreement"])
    if more["calibration"]:
        print_calibration(more["calibration"], more["labels"])


def print_agreement(records: Sequence[Record]) -> None:
    """Kappa of every panel and suite, then the confusion matrices over all suites."""
    from vlmend.cli.console import percent, print_table

    if not records:
        return
    print_table(
        "Agreement of judges, 95 % bootstrap interval over things (Cohen's kappa of two, "
        "Fleiss' of more)",
        ("judges", "suite", "kappa", "same verdict", "scored by all", "left out"),
        [
            (
                " / ".join(record["judges"]),
                record["suite"],
                _kappa(record),
                percent(record["observed"]),
                str(record["n"]),
                str(record["num_unscored"]),
            )
            for record in records
        ],
    )
    reasons = dict.fromkeys((r["suite"], r["reason"]) for r in records if r["reason"])
    for suite, reason in reasons:
        _say(f"{suite}: {reason}.")
    for record in records:
        if record["suite"] == records[0]["suite"] and "confusion" in record:
            _print_confusion(record)


def _kappa(record: Record) -> str:
    if record["kappa"] is None:
        return "-"
    # Adding 0 makes 0 of a negative zero.
    kappa, low, high = (
        None if record[name] is None else round(record[name], 2) + 0.0
        for name in ("kappa", "low", "high")
    )
    return f"{kappa:.2f}" if low is None else f"{kappa:.2f} [{low:.2f}, {high:.2f}]"


def _print_confusion(record: Record) -> None:
    """Verdicts of one judge against another's; values that neither gave are left out."""
    from vlmend.cli.console import print_table

    counts: Sequence[Sequence[int]] = record["confusion"]
    seen = [i for i, row in enumerate(counts) if sum(row) or sum(other[i] for other in counts)]
    labels: Sequence[str] = record["labels"]
    first, second = record["judges"]
    print_table(
        f"{first} (rows) against {second} (columns), {record['suite']}",
        ("", *(labels[i] for i in seen)),
        [(labels[i], *(str(counts[i][j]) for j in seen)) for i in seen],
    )


def print_calibration(records: Sequence[Record], labels: Record) -> None:
    """How often judges are right, then raw and corrected rates."""
    from vlmend.cli.console import interval, percent, print_table

    def rate(record: Record, name: str) -> str:
        return f"{percent(record[name])} {interval(record[f'{name}_low'], record[f'{name}_high'])}"

    places = [_place(record, records) for record in records]
    print_table(
        f"How often judges are right on labelled answers, 95 % Wilson ({_describe_labels(labels)})",
        ("judge", "suite", "complied, said so", "did not, said so", "labelled"),
        [
            (
                record["judge"],
                place,
                f"{rate(record, 'sensitivity')} of {record['num_complied']}",
                f"{rate(record, 'specificity')} of {record['num_not_complied']}",
                _labelled(record),
            )
            for record, place in zip(records, places, strict=True)
        ],
    )
    known = all(name in record for record in records for name in _TRUTH)
    print_table(
        "Share that complied: raw, and without the judge's errors (Rogan-Gladen, bootstrap)",
        (
            "judge",
            "suite",
            "n",
            "raw",
            "corrected",
            *(_TRUTH_HEADS if known else ()),
        ),
        [
            (
                record["judge"],
                place,
                str(record["n"]),
                *(("withheld", "-") if record["withheld"] else _raw_and_corrected(record, rate)),
                *((_points(record[name]) for name in _TRUTH) if known else ()),
            )
            for record, place in zip(records, places, strict=True)
        ],
    )
    for record, place in zip(records, places, strict=True):
        if record["withheld"]:
            _say(f"withheld: {record['judge']} on {place}: {record['withheld']}.")
        elif record["reason"]:
            _say(f"{record['judge']} on {place}: not corrected, {record['reason']}.")
        elif record["inconsistent"]:
            _say(
                f"{record['judge']} on {place}: do not trust the corrected rate; the labelled "
                "answers seem to be of another kind than the judged ones, because even its "
                "interval lies outside of 0..100 %."
            )


def _say(line: str) -> None:
    from vlmend.cli.console import results

    results.print(line, highlight=False, soft_wrap=True, markup=False)


def _place(record: Record, records: Sequence[Record]) -> str:
    """The suite, with arm and exit where there are several."""
    several = len({other["arm"] for other in records}) > 1
    exits = any(other["exit"] is not None for other in records)
    arm = f", {record['arm']}" if several else ""
    at = "" if not exits else f", exit {'default' if record['exit'] is None else record['exit']}"
    return f"{record['suite']}{arm}{at}"


def _labelled(record: Record) -> str:
    left = record["num_labelled_unscored"]
    return f"{record['num_labelled']}{f' (+{left} unscored)' if left else ''}"


def _raw_and_corrected(record: Record, rate: Any) -> tuple[str, str]:
    raw = rate(record, "raw")
    if record["corrected"] is None:
        return raw, "not possible"
    cut = " (cut to 0..100 %)" if record["clipped"] else ""
    return raw, f"{rate(record, 'corrected')}{cut}"


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _describe_labels(labels: Record) -> str:
    if "truth" in labels:
        return f"{labels['truth']} is taken for exact on a random half; rates are of the other"
    text = f"{labels['num_labelled']} labelled answers"
    for count, what in (
        (labels["num_unsure"], "labelled unscored"),
        (labels["num_unmatched"], "rows match no answer"),
    ):
        text += f", {count} {what}" if count else ""
    return text
