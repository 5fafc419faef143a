"""A run folder read back: its items loaded again, and the answers that are there by cell.

The items are held against the run's hash: verdicts on other items than those that were asked
would be worth nothing. Works on a run that is not finished.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmend.errors import ConfigError, RunError
from vlmend.evals.metrics import split_by_label
from vlmend.evals.run import Cell, CellResponses, describe_prompt, hash_labels
from vlmend.evals.stored import ITEMS_FILE, Progress, read_items, read_progress, read_responses
from vlmend.runs import read_json
from vlmend.suites.registry import Skip, SuiteSpec, absolute_source, find_suite, load_suite
from vlmend.types import Response, Sample, sha256_json


@dataclass(frozen=True)
class ReloadedSuite:
    """A suite of a run, loaded again.

    Attributes:
        spec: What it is.
        samples: The items that were asked, in their order.
        exits: Exits measured besides the default path.
        skips: What its loader left out.
    """

    spec: SuiteSpec
    samples: tuple[Sample, ...]
    exits: tuple[int, ...]
    skips: tuple[Skip, ...] = ()


@dataclass(frozen=True)
class ReloadedRun:
    """A run as its folder shows it.

    Attributes:
        path: The folder.
        info: Contents of `run.json`.
        suites: Its suites.
        cells: What was answered so far, harmful and benign items apart; none of them empty.
        progress: How far the run is.
        num_foreign: Stored answers that this run did not ask for; left alone.
    """

    path: Path
    info: Mapping[str, Any]
    suites: tuple[ReloadedSuite, ...]
    cells: tuple[CellResponses, ...]
    progress: Progress
    num_foreign: int

    @property
    def default_judges(self) -> tuple[str, ...]:
        """The judges that the run was started with, each once."""
        by_suite: Mapping[str, Sequence[str]] = self.info["config"].get("judges", {})
        return tuple(dict.fromkeys(name for names in by_suite.values() for name in names))


def reload_run(path: Path, sources: Sequence[str] = ()) -> ReloadedRun:
    """Read a run folder and load its items again.

    Args:
        path: The folder.
        sources: "NAME=FOLDER" where a suite's files are not where they were.

    Raises:
        RunError: No run of `vlmend audit`, or its items are not those that are found now.
        ConfigError: A source for a suite that the run does not have, or a folder is missing.
        DataError: A file of a suite cannot be used.
    """
    info = require_audit(path)
    config: Mapping[str, Any] = info["config"]
    given = _name_sources(sources, config["suites"])
    suites = tuple(
        _load_again(
            path,
            name,
            # Runs of older versions have no hash of labels and references.
            {**facts, "labels": info.get("labels", {}).get(name)},
            given.get(name) or info.get("sources", {}).get(name, name),
        )
        for name, facts in config["suites"].items()
    )
    rows = read_responses(path)
    cells, num_used = _build_cells(suites, config["arms"], rows)
    parts = tuple(part for cell in cells for part in split_by_label(cell))
    return ReloadedRun(path, info, suites, parts, read_progress(path), len(rows) - num_used)


def require_audit(path: Path) -> dict[str, Any]:
    """`run.json` of a run of `vlmend audit`, finished or not.

    Raises:
        RunError: The folder holds none.
    """
    if not (path / "run.json").is_file():
        raise RunError(
            f"{str(path)!r} is no run folder: it has no run.json. Give a folder that "
            "`vlmend audit --out` wrote."
        )
    info = read_json(path / "run.json")
    if not {"suites", "arms", "judges"} <= info.get("config", {}).keys():
        raise RunError(
            f"{str(path)!r} is no run of `vlmend audit`: it names no suites, arms and judges. "
            "Give a folder that `vlmend audit --out` wrote."
        )
    return info


def _name_sources(sources: Sequence[str], suites: Mapping[str, Any]) -> dict[str, str]:
    """Sources by the name of their suite."""
    found: dict[str, str] = {}
    for source in sources:
        name = find_suite(source).name
        if name not in suites:
            raise ConfigError(
                f"the run has no suite {name!r}, which --suite names. It has: {', '.join(suites)}."
            )
        found[name] = absolute_source(source)
    return found


def _load_again(run: Path, name: str, facts: Mapping[str, Any], source: str) -> ReloadedSuite:
    """A suite's items, if they are those of the run."""
    samples = load_suite(source, facts["items"])
    digest = sha256_json([[s.id, describe_prompt(s.messages)] for s in samples])
    if (len(samples), digest) != (facts["items"], facts["sha256"]):
        raise RunError(
            f"the items of suite {name!r} ({source}) are not those that the run in {str(run)!r} "
            f"asked: {_name_difference(run, name, facts, samples)}. Give the folder with the same "
            f"files as --suite {name}=FOLDER, or audit anew."
        )
    if facts["labels"] not in (None, hash_labels(samples)):
        raise RunError(
            f"the labels or references of suite {name!r} ({source}) are not those that the run in "
            f"{str(run)!r} had: {_name_other_label(run, samples)}. Give the folder with the same "
            f"files as --suite {name}=FOLDER, or audit anew."
        )
    spec = find_suite(source)
    return ReloadedSuite(spec, tuple(samples), tuple(facts["exits"]), samples.skips)


def _name_difference(
    run: Path, name: str, facts: Mapping[str, Any], samples: Sequence[Sample]
) -> str:
    """In what items differ from those of the run, as far as the run's records tell."""
    if len(samples) != facts["items"]:
        return f"{facts['items']} items then, {len(samples)} now"
    stored = read_items(run)
    for number, sample in enumerate(samples, start=1):
        row = stored.get(sample.id)
        if stored and row is None:
            return f"item {number} is {sample.id!r} now, which the run did not ask"
        then = [[m["role"], m["content"]] for m in row["messages"]] if row else None
        if then is not None and then != describe_prompt(sample.messages):
            what = (
                "wording" if _texts(then) != _texts(describe_prompt(sample.messages)) else "image"
            )
            return f"the {what} of item {sample.id!r} is another one"
    if stored:
        return "the same items in another order"
    return f"the wording, an image or the id of an item ({ITEMS_FILE} is missing)"


def _name_other_label(run: Path, samples: Sequence[Sample]) -> str:
    """Of which item the label or the reference is another one, as far as records tell."""
    stored = read_items(run)
    for sample in samples:
        row = stored.get(sample.id, {})
        for key, now in (("label", sample.label), ("reference", sample.reference)):
            if key in row and row[key] != now:
                return f"the {key} of item {sample.id!r} is another one"
    return f"those of some item ({ITEMS_FILE} does not tell which)"


def _texts(prompt: Sequence[Sequence[Any]]) -> list[Any]:
    return [[role, [part for part in parts if isinstance(part, str)]] for role, parts in prompt]


def _build_cells(
    suites: Sequence[ReloadedSuite],
    arms: Mapping[str, Sequence[str]],
    rows: Sequence[Mapping[str, Any]],
) -> tuple[list[CellResponses], int]:
    """Cells that have an answer, and how many stored answers they use."""
    # Arms with the same repairs share their answers, which are stored once.
    prints = {name: tuple(fingerprints) for name, fingerprints in arms.items()}
    answers: dict[tuple[Any, ...], Response] = {}
    for row in rows:
        key = (prints.get(row["arm"]), row["exit"], row["sample_id"])
        answers[key] = Response(**{name: row[name] for name in Response.__dataclass_fields__})
    cells: list[CellResponses] = []
    used: set[tuple[Any, ...]] = set()
    for arm, fingerprints in prints.items():
        for suite in suites:
            for exit_layer in (None, *suite.exits):
                keys = [(fingerprints, exit_layer, sample.id) for sample in suite.samples]
                kept = [(s, k) for s, k in zip(suite.samples, keys, strict=True) if k in answers]
                used.update(key for _, key in kept)
                if kept:
                    cells.append(
                        CellResponses(
                            Cell(arm, suite.spec.name, exit_layer),
                            tuple(sample for sample, _ in kept),
                            tuple(answers[key] for _, key in kept),
                        )
                    )
    return cells, len(used)
