"""The contract of a suite as code: what must hold before its rates mean anything.

Our own tests run it on every built-in suite; the author of a plug-in runs the same function.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vlmend.errors import DataError
from vlmend.images import open_image
from vlmend.judges.registry import get_judge_spec
from vlmend.models.checks import CheckResult, run_clause
from vlmend.suites.registry import NO_JUDGE, SuiteSpec, check_ids, check_name
from vlmend.types import Sample, Verdict, VerdictValue

MAX_OPENED = 20
"""Pictures that are opened, spread over the suite; the others must exist already to be loaded."""

Finding = tuple[bool, str]


@dataclass(frozen=True)
class _Case:
    """One suite and its files, loaded once for all clauses."""

    spec: SuiteSpec
    folder: Path | None

    @cached_property
    def samples(self) -> list[Sample]:
        return self.load(None)

    def load(self, limit: int | None) -> list[Sample]:
        return list(self.spec.load(self.folder, limit))


def run_suite_contract(spec: SuiteSpec, folder: Path | None = None) -> list[CheckResult]:
    """Check every clause of the contract on a suite.

    Args:
        spec: The suite; it need not be registered.
        folder: A folder or file with its data in the published layout, of the published size;
            None for a suite that needs none.

    Returns:
        One result per clause. A clause that vlmend itself refuses to run has failed; any other
        exception is a bug of the suite and comes through.
    """
    case = _Case(spec, folder)
    clauses: tuple[tuple[str, Callable[[_Case], Finding]], ...] = (
        ("the spec says what the suite is", _check_words),
        ("its judges are known", _check_judges),
        ("it has the published number of samples", _check_count),
        ("ids are unique and begin with the suite's name", _check_ids),
        ("every sample asks something", _check_samples),
        ("labels are of the kind and fit the purpose", _check_labels),
        ("a second load is identical", _check_repeat),
        ("a limit keeps the first samples", _check_limit),
        ("pictures open", _check_pictures),
        ("breakdown and macro are facts of the samples", _check_breakdown),
        ("the paper's numbers can be computed", _check_scores),
        ("a folder without the data is a DataError", _check_empty_folder),
    )
    return [run_clause(name, lambda check=check: check(case)) for name, check in clauses]


def _check_words(case: _Case) -> Finding:
    spec = case.spec
    check_name("suite", spec.name)
    needed = ["description", "licence", "citation", "metric", "default_judge"]
    needed += ["source", "layout"] if spec.needs_folder else []
    missing = [name for name in needed if not getattr(spec, name).strip()]
    if "\n" in spec.description:
        missing.append("a description of one line")
    if spec.name != spec.name.lower():
        missing.append("a name in lower case")
    return not missing, f"missing: {', '.join(missing)}" if missing else "all there"


def _check_judges(case: _Case) -> Finding:
    judges = (case.spec.default_judge, case.spec.paper_judge)
    names = [name for name in judges if name and not name.startswith(NO_JUDGE)]
    for name in names:
        get_judge_spec(name)
    return True, " and ".join(names)


def _check_count(case: _Case) -> Finding:
    found, expected = len(case.samples), case.spec.num_items
    return found > 0 and expected in (None, found), f"{found} loaded, {expected} said"


def _check_ids(case: _Case) -> Finding:
    check_ids(f"suite {case.spec.name!r}", "sample", case.samples)
    odd = [s.id for s in case.samples if not s.id.startswith(f"{case.spec.name}/")]
    return not odd, f"not of the suite: {odd[:3]}" if odd else f"first: {case.samples[0].id!r}"


def _check_samples(case: _Case) -> Finding:
    for sample in case.samples:
        last = sample.messages[-1] if sample.messages else None
        if last is None or last.role != "user" or not (last.text.strip() or last.images):
            return False, f"{sample.id!r} does not end with a question of the user"
        if sample.suite != case.spec.name:
            return False, f"{sample.id!r} is of suite {sample.suite!r}"
        texts = [*sample.meta, *sample.meta.values()]
        if not all(type(text) is str for text in texts):
            return False, f"{sample.id!r}: meta must be flat texts, and is {sample.meta!r}"
    return True, f"{len(case.samples)} questions"


def _check_labels(case: _Case) -> Finding:
    spec, labels = case.spec, {sample.label for sample in case.samples}
    wanted = {"harmful", "benign"} if spec.label_kind == "mixed" else {spec.label_kind}
    fits = {
        "safety": True,
        "over-refusal": "benign" in labels,
        "utility": labels == {"benign"},
    }[spec.purpose]
    return labels == wanted and fits, f"{sorted(labels)} for {spec.label_kind}, {spec.purpose}"


def _check_repeat(case: _Case) -> Finding:
    again = case.load(None)
    pairs = zip(case.samples, again, strict=False)
    first = next((old.id for old, new in pairs if old != new), None)
    same = first is None and len(again) == len(case.samples)
    return same, "identical" if same else f"{len(again)} samples, the first other one: {first!r}"


def _check_limit(case: _Case) -> Finding:
    total = len(case.samples)
    for limit in sorted({1, min(3, total), total + 1}):
        if case.load(limit) != case.samples[:limit]:
            return False, f"limit {limit} of {total} gives other samples"
    return True, f"1 to {total + 1}"


def _check_pictures(case: _Case) -> Finding:
    pictures = list(dict.fromkeys(i for sample in case.samples for i in sample.images))
    chosen = pictures[:: max(1, len(pictures) // MAX_OPENED)]
    for picture in chosen:
        open_image(picture)
    return True, f"{len(chosen)} of {len(pictures)} opened"


def _check_breakdown(case: _Case) -> Finding:
    spec = case.spec
    unknown = [key for key in spec.breakdown if not any(key in s.meta for s in case.samples)]
    if unknown:
        return False, f"no sample has {', '.join(unknown)}"
    if spec.macro and spec.macro not in spec.breakdown:
        return False, f"macro {spec.macro!r} is not in breakdown {spec.breakdown!r}"
    without = [s.id for s in case.samples if spec.macro and spec.macro not in s.meta]
    return not without, f"no {spec.macro!r} in {without[:3]}" if without else str(spec.breakdown)


def _check_scores(case: _Case) -> Finding:
    if case.spec.scores is None:
        return True, "none"
    values: tuple[VerdictValue, ...] = ("complied", "refused", "unscored")
    names: list[str] = []
    for value in values:
        numbers = case.spec.scores(case.samples, _all_alike(case.samples, value))
        wrong = {n: v for n, v in numbers.items() if not (v is None or isinstance(v, float | int))}
        if wrong:
            return False, f"no numbers: {wrong}"
        names += numbers
    return bool(names), f"names: {sorted({*names})}"


def _all_alike(samples: Sequence[Sample], value: VerdictValue) -> list[Verdict]:
    return [Verdict(s.id, s.id, "contract", value, "all alike", None) for s in samples]


def _check_empty_folder(case: _Case) -> Finding:
    if not case.spec.needs_folder:
        return True, "needs no folder"
    with tempfile.TemporaryDirectory() as empty:
        try:
            case.spec.load(Path(empty), None)
        except DataError as error:
            named = empty in str(error)
            return named, str(error) if named else f"the folder is not named: {error}"
    return False, "nothing is said"
