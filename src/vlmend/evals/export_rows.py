"""What exports are made of: every stored answer with its item and its verdicts.

Everything comes from the run folder, so neither the data nor the model is needed, and a run that
is not finished can be exported as far as it is. Pictures are not in the folder: prompts name them
by the hash of their bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmend.errors import RunError
from vlmend.evals.stats import explain_withheld
from vlmend.evals.stored import Place, Progress, place_of, read_items, read_progress, read_responses
from vlmend.runs import JsonLines, read_json


@dataclass(frozen=True)
class ExportedVerdict:
    """What one judge said of one answer.

    Attributes:
        value: One of `types.VERDICT_VALUES`.
        reason: Why.
        score: Its grade, 0..1, if it grades.
    """

    value: str
    reason: str
    score: float | None


@dataclass(frozen=True)
class ExportedAnswer:
    """One stored answer.

    Attributes:
        response: Its row of `responses.jsonl`, with "seconds".
        item: Its row of `items.jsonl`; empty in runs of older versions.
        verdicts: By the name of the judge.
    """

    response: Mapping[str, Any]
    item: Mapping[str, Any]
    verdicts: Mapping[str, ExportedVerdict] = field(default_factory=dict[str, ExportedVerdict])

    @property
    def sample_id(self) -> str:
        """Id of the item."""
        return str(self.response["sample_id"])

    @property
    def prompt(self) -> str:
        """The texts of all turns, pictures in their places as "[image SHA-256]"."""
        return "\n".join(
            content_text(message["content"]) for message in self.item.get("messages", ())
        )


CellKey = tuple[str, str, int | None]
"""(arm, suite, exit)."""


@dataclass(frozen=True)
class ExportedRun:
    """A run folder, read.

    Attributes:
        path: The folder.
        info: Contents of `run.json`.
        metrics: Contents of `metrics.json`; empty before the run is judged.
        judges: Names of the judges whose verdicts are there.
        answers: All answers, in the order of the run.
        progress: How far the run is.
    """

    path: Path
    info: Mapping[str, Any]
    metrics: Mapping[str, Any]
    judges: tuple[str, ...]
    answers: tuple[ExportedAnswer, ...]
    progress: Progress

    @property
    def model(self) -> str:
        """What the user called the model."""
        return str(self.info.get("config", {}).get("model", "unknown"))

    def cells(self) -> dict[CellKey, list[ExportedAnswer]]:
        """The answers by arm, suite and exit."""
        found: dict[CellKey, list[ExportedAnswer]] = {}
        for answer in self.answers:
            row = answer.response
            found.setdefault((row["arm"], row["suite"], row["exit"]), []).append(answer)
        return found

    def rates(self, key: CellKey) -> list[Mapping[str, Any]]:
        """The entries of `cells` of `metrics.json` that are about these answers and may be shown.

        A suite that mixes labels has one for its harmful and one for its benign items. One whose
        answers were not judged completely is left out: elsewhere nobody would see that its rates
        are withheld.
        """
        arm, suite, exit_layer = key
        return [
            cell
            for cell in self.metrics.get("cells", ())
            if (cell["arm"], cell["exit"]) == (arm, exit_layer)
            and cell["suite"] in (suite, f"{suite} (benign)")
            and not explain_withheld(cell["num_scored"], cell["num_samples"])
        ]


def content_text(content: list[Any]) -> str:
    """The content of a stored message as one text."""
    return " ".join(
        part if isinstance(part, str) else f"[image {part['image']}]" for part in content
    )


def read_exported(run: Path) -> ExportedRun:
    """Read a run folder for an export.

    Raises:
        RunError: No run of `vlmend audit`, a damaged one, or one without answers.
    """
    if not (run / "run.json").is_file():
        raise RunError(
            f"{str(run)!r} is no run folder: it has no run.json. Give a folder that "
            "`vlmend audit --out` wrote."
        )
    rows = read_responses(run)
    if not rows:
        raise RunError(f"the run in {str(run)!r} has no answers yet: there is nothing to export.")
    metrics = read_json(run / "metrics.json") if (run / "metrics.json").is_file() else {}
    verdicts, judges = _read_verdicts(run)
    items = read_items(run)
    return ExportedRun(
        path=run,
        info=read_json(run / "run.json"),
        metrics=metrics,
        judges=tuple(judges),
        answers=tuple(
            ExportedAnswer(row, items.get(row["sample_id"], {}), verdicts.get(place_of(row), {}))
            for row in rows
        ),
        progress=read_progress(run),
    )


def _read_verdicts(run: Path) -> tuple[dict[Place, dict[str, ExportedVerdict]], list[str]]:
    found: dict[Place, dict[str, ExportedVerdict]] = {}
    judges: dict[str, None] = {}
    for path in sorted(run.glob("verdicts.*.jsonl")):
        for row in JsonLines(path).read():
            try:
                judge, place = str(row["judge"]), (row["response_id"], row["sample_id"])
                verdict = ExportedVerdict(row["value"], row.get("reason", ""), row.get("score"))
            except KeyError as error:
                raise RunError(
                    f"a line of {str(path)!r} has no {error}. Run `vlmend judge {run}`: it judges "
                    "the stored answers anew."
                ) from error
            judges.setdefault(judge)
            found.setdefault(place, {})[judge] = verdict
    return found, list(judges)
