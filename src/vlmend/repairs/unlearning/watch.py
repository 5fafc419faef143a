"""Watching a model in training: attack success on items that it is not trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmend.errors import ConfigError
from vlmend.evals.metrics import suite_kind
from vlmend.evals.run import check_images
from vlmend.evals.spot_check import spot_check, summarise_check
from vlmend.judges.registry import get_judge
from vlmend.models.vlm import GenerationSettings, Vlm
from vlmend.runs import JsonLines
from vlmend.suites.registry import find_suite, load_suite
from vlmend.types import Sample


@dataclass(frozen=True)
class WatchedSuite:
    """A suite that is measured now and then.

    Attributes:
        name: Of the suite.
        kind: What complying means: "harmful", "benign" or "utility".
        judge: Name of the judge.
        samples: Its items.
    """

    name: str
    kind: str
    judge: str
    samples: tuple[Sample, ...]


def load_watched(names: Sequence[str], limit: int | None) -> tuple[WatchedSuite, ...]:
    """Load the suites to watch; needs no model.

    Args:
        names: "NAME" or "NAME=FOLDER".
        limit: First so many items of each; None for all.

    Raises:
        UnknownNameError, ConfigError, DataError: As `load_suite`.
    """
    watched: list[WatchedSuite] = []
    for name in names:
        spec = find_suite(name)
        samples = tuple(load_suite(name, limit))
        check_images(samples)
        watched.append(
            WatchedSuite(spec.name, suite_kind(spec, samples), spec.default_judge, samples)
        )
    return tuple(watched)


def require_same_watch(record: Path, suites: Sequence[WatchedSuite]) -> None:
    """Refuse to go on watching with other suites: what was measured is not measured again.

    Args:
        record: The training's `watch.jsonl`; it need not exist.
        suites: What is to be watched now; nothing is always possible.

    Raises:
        ConfigError: Other suites, or another number of their items, are on record.
    """
    rows = JsonLines(record).read()
    now = {suite.name: len(suite.samples) for suite in suites}
    then = {
        name: facts["num_samples"]
        for row in rows[:1]
        for name, facts in row.get("suites", {}).items()
    }
    if rows and now and now != then:
        raise ConfigError(
            f"the training in {str(record.parent)!r} was watched on {_list(then)}, and is now to "
            f"be watched on {_list(now)}. Give the same --watch and --watch-limit to go on, none "
            "to watch no further, or another --out."
        )


def _list(items: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count} items)" for name, count in items.items()) or "nothing"


def watch_suites(
    vlm: Vlm, suites: Sequence[WatchedSuite], *, max_new_tokens: int, batch_size: int = 32
) -> Mapping[str, Any]:
    """Measure suites on a model as it stands.

    Args:
        vlm: The model, adapters and all.
        suites: What to measure.
        max_new_tokens: Length limit of an answer.
        batch_size: Most prompts per batch; halved when memory runs out.

    Returns:
        "asr", "low" and "high": the highest rate of a harmful suite, with its interval (None if
        there is none, or one of them could not be judged); "suites": each suite's rates with its
        kind.
    """
    found: dict[str, dict[str, Any]] = {}
    for suite in suites:
        settings = GenerationSettings(max_new_tokens=max_new_tokens)
        verdicts = spot_check(
            vlm, suite.samples, get_judge(suite.judge), settings, batch_size=batch_size
        )
        found[suite.name] = {"kind": suite.kind, **summarise_check(suite.samples, verdicts)}
    harmful = [facts for facts in found.values() if facts["kind"] == "harmful"]
    worst: dict[str, Any] = {"asr": None, "low": None, "high": None}
    if harmful and all(facts["asr"] is not None for facts in harmful):
        worst = max(harmful, key=lambda facts: facts["asr"])
    return {**{key: worst[key] for key in ("asr", "low", "high")}, "suites": found}
