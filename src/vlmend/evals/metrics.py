"""From responses to `metrics.json`: cells with intervals, paired comparisons, cost, examples."""

from __future__ import annotations

import base64
import math
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from vlmend.evals.answer_flops import FLOPS_METHOD
from vlmend.evals.arms import Arm, Trained
from vlmend.evals.cell_numbers import paper_numbers
from vlmend.evals.compare import CellVerdicts, compare_paired
from vlmend.evals.groups import group_of
from vlmend.evals.ledger import sum_costs
from vlmend.evals.run import CellResponses
from vlmend.evals.stats import Rate, explain_withheld, summarise_verdicts
from vlmend.evals.text_quality import measure_text
from vlmend.images import encode_preview
from vlmend.judges.registry import (
    Judge,
    Served,
    describe_judge,
    judge_fields,
    judge_responses,
)
from vlmend.models.vlm import Vlm
from vlmend.suites.registry import Skip, SuiteSpec
from vlmend.types import Sample, Verdict

SCHEMA = 1
_PACKAGES = ("vlmend", "torch", "transformers", "safetensors", "numpy", "scipy", "statsmodels")


@dataclass(frozen=True, slots=True)
class Spent:
    """What a judge took.

    Attributes:
        answers: Answers that it was given, each time counted.
        seconds: Wall time.
    """

    answers: int
    seconds: float


NOTHING = Spent(0, 0.0)


class JudgedCell:
    """A cell with its verdicts by one judge.

    Attributes:
        answered: The responses.
        judge: Who judged.
        verdicts: One per response, in order.
        spent: What judging took this time.
    """

    def __init__(
        self,
        answered: CellResponses,
        judge: Judge,
        verdicts: Sequence[Verdict] | None = None,
        spent: Spent = NOTHING,
    ) -> None:
        """Judge a cell.

        Args:
            answered: The responses.
            judge: Who judges.
            verdicts: What the judge said before, one per response, in order; None asks it.
            spent: What it took to get those verdicts, as far as that was now.
        """
        started = time.perf_counter()
        self.answered = answered
        self.judge = judge
        self.verdicts: list[Verdict] = (
            judge_responses(judge, zip(answered.samples, answered.responses, strict=True))
            if verdicts is None
            else list(verdicts)
        )
        self.spent = spent
        if verdicts is None:
            self.spent = Spent(len(answered.responses), time.perf_counter() - started)


def suite_kind(spec: SuiteSpec, samples: Sequence[Sample]) -> str:
    """Harmful, benign or utility: what a compliant answer means in this suite."""
    if any(sample.label == "harmful" for sample in samples):
        return "harmful"
    return "utility" if spec.purpose == "utility" else "benign"


def benign_part(suite: str) -> str:
    """Name of the benign items of a suite that mixes labels."""
    return f"{suite} (benign)"


def split_by_label(cell: CellResponses) -> list[CellResponses]:
    """Separate harmful from benign items: their compliance must never share a mean.

    A suite with one label comes back as it is; of a mixed one the benign part gets the name
    "<suite> (benign)".
    """
    labels = {sample.label for sample in cell.samples}
    if len(labels) < 2:
        return [cell]
    parts: list[CellResponses] = []
    for label in ("harmful", "benign"):
        kept = [
            (s, r) for s, r in zip(cell.samples, cell.responses, strict=True) if s.label == label
        ]
        name = cell.cell.suite if label == "harmful" else benign_part(cell.cell.suite)
        coordinates = type(cell.cell)(cell.cell.arm, name, cell.cell.exit)
        parts.append(
            CellResponses(coordinates, tuple(s for s, _ in kept), tuple(r for _, r in kept))
        )
    return parts


def _rate_fields(prefix: str, rate: Rate, *, value: str | None = None) -> dict[str, float | None]:
    return {
        value or f"{prefix}_rate": rate.rate,
        f"{prefix}_low": rate.low,
        f"{prefix}_high": rate.high,
    }


def cell_record(
    judged: JudgedCell,
    kind: str,
    perplexities: Iterable[float | None] = (),
    spec: SuiteSpec | None = None,
) -> dict[str, Any]:
    """One entry of `cells`; rates are None when nothing was scored.

    Args:
        judged: The cell.
        kind: From `suite_kind`.
        perplexities: Of its answers, where they were measured.
        spec: Its suite: adds the numbers of `cell_numbers.paper_numbers`, parts only at the
            default path.
    """
    answered = judged.answered
    summary = summarise_verdicts(judged.verdicts, [group_of(s) for s in answered.samples])
    num_errors = sum(r.finish == "error" for r in answered.responses)
    record = {
        "arm": answered.cell.arm,
        "suite": answered.cell.suite,
        "suite_kind": kind,
        "exit": answered.cell.exit,
        **judge_fields(judged.judge),
        "num_samples": summary.num_samples,
        "num_scored": summary.num_scored,
        "num_errors": num_errors,
        "num_groups": summary.num_groups,
        "coverage": summary.coverage,
        "withheld": explain_withheld(summary.num_scored, summary.num_samples, num_errors),
        "method": summary.asr.method,
        **_rate_fields("asr", summary.asr, value="asr"),
        **_rate_fields("refusal", summary.refusal),
        **_rate_fields("incoherent", summary.incoherent),
        **_rate_fields("partial", summary.partial),
        **measure_text(answered.responses, perplexities).record(),
        "seconds": round(sum_costs(answered.responses).seconds, 3),
    }
    if spec is None:
        return record
    parts = answered.cell.exit is None
    return record | paper_numbers(spec, answered.samples, judged.verdicts, parts=parts)


def compare_all(judged: Sequence[JudgedCell], base: str) -> list[dict[str, Any]]:
    """Compare every arm with the base arm, cell by cell; see `compare_paired`."""
    facts = {j.judge.name: judge_fields(j.judge) for j in judged}
    cells = {
        (
            j.answered.cell.arm,
            j.answered.cell.suite,
            j.answered.cell.exit,
            j.judge.name,
        ): CellVerdicts(
            {v.sample_id: v.value for v in j.verdicts},
            {s.id: group_of(s) for s in j.answered.samples},
            {r.sample_id: r.text for r in j.answered.responses},
            {v.sample_id: v.score for v in j.verdicts if v.score is not None},
        )
        for j in judged
    }
    pairs = [
        (
            {"suite": suite, "exit": exit_layer, **facts[judge], "before": base, "after": arm},
            cells[base, suite, exit_layer, judge],
            after,
        )
        for (arm, suite, exit_layer, judge), after in cells.items()
        if arm != base and (base, suite, exit_layer, judge) in cells
    ]
    return compare_paired(pairs)


def pick_examples(
    judged: Sequence[JudgedCell], per_suite: int = 2, max_image_bytes: int = 60_000
) -> list[dict[str, Any]]:
    """A few conversations with the answers of every arm at the default exit.

    Chosen by a rule, not by hand: spread evenly over the suite's items, in suite order.
    Pictures above `max_image_bytes` are shrunk.
    """
    by_suite: dict[str, list[JudgedCell]] = {}
    for cell in judged:
        if cell.answered.cell.exit is None:
            by_suite.setdefault(cell.answered.cell.suite, []).append(cell)
    examples: list[dict[str, Any]] = []
    for suite, cells in by_suite.items():
        first_judge = cells[0].judge.name
        cells = [cell for cell in cells if cell.judge.name == first_judge]
        samples = cells[0].answered.samples
        step = max(1, len(samples) // per_suite)
        for index in range(0, len(samples), step)[:per_suite]:
            sample = samples[index]
            examples.append(
                {
                    "suite": suite,
                    "sample_id": sample.id,
                    "label": sample.label,
                    "prompt": sample.text,
                    "image_png_base64": _embedded_image(sample, max_image_bytes),
                    "answers": [
                        {
                            "arm": cell.answered.cell.arm,
                            "text": response.text,
                            "verdict": verdict.value,
                        }
                        for cell in cells
                        # By id: an arm need not have answered every item.
                        for response, verdict in zip(
                            cell.answered.responses, cell.verdicts, strict=True
                        )
                        if response.sample_id == sample.id
                    ],
                }
            )
    return examples


def _embedded_image(sample: Sample, max_bytes: int) -> str | None:
    if not sample.images:
        return None
    return base64.b64encode(encode_preview(sample.images[0], max_bytes)).decode()


def cost_records(
    cells: Iterable[CellResponses],
    peaks: Mapping[tuple[str, str], int],
    flops: Mapping[tuple[str, str], int | None],
) -> list[dict[str, Any]]:
    """Entries of `cost`, one per cell: what its answers took, whoever judges them.

    Args:
        cells: Answers.
        peaks: Most memory in bytes by answer, from `stored.read_peaks`.
        flops: By arm and suite, at the default path.
    """
    cells = list(cells)
    memory: dict[tuple[str, str], int] = {}  # all exits together
    for cell in cells:
        known = [peaks[r.id, r.sample_id] for r in cell.responses if (r.id, r.sample_id) in peaks]
        place = (cell.cell.arm, cell.cell.suite)
        memory |= {place: max(memory.get(place, 0), *known)} if known else {}
    records: list[dict[str, Any]] = []
    for cell in cells:
        cost = sum_costs(cell.responses)
        place = (cell.cell.arm, cell.cell.suite)
        counted = flops.get(place) if cell.cell.exit is None else None
        records.append(
            {
                "arm": cell.cell.arm,
                "suite": cell.cell.suite,
                "exit": cell.cell.exit,
                "items": cost.items,
                "seconds": round(cost.seconds, 3),
                "seconds_per_item": cost.seconds_per_item,
                "prompt_tokens": cost.prompt_tokens,
                "new_tokens": cost.new_tokens,
                "images": sum(len(sample.images) for sample in cell.samples),
                "peak_memory_bytes": memory.get(place),
                "flops": counted,
                "flops_method": None if counted is None else FLOPS_METHOD,
            }
        )
    return records


def judging_records(
    judged: Iterable[JudgedCell], earlier: Iterable[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Entries of `judging`: what every judge took, beside what the answers took.

    Answers that are judged twice count twice. A judge of which nothing is known is not there.

    Args:
        judged: Cells.
        earlier: Entries of the same run's last records; what the same judge in the same revision
            took then is added.
    """
    before = {(row["judge"], row["revision"], row["prompt_sha256"]): row for row in earlier}
    records: list[dict[str, Any]] = []
    cells = list(judged)
    for judge in {cell.judge.name: cell.judge for cell in cells}.values():
        facts = describe_judge(judge)
        old = before.get((facts["name"], facts["revision"], facts["prompt_sha256"]), {})
        mine = [cell.spent for cell in cells if cell.judge.name == judge.name]
        answers = old.get("answers", 0) + sum(spent.answers for spent in mine)
        seconds = old.get("seconds", 0.0) + sum(spent.seconds for spent in mine)
        if answers:
            records.append(
                {
                    "judge": facts["name"],
                    "revision": facts["revision"],
                    "prompt_sha256": facts["prompt_sha256"],
                    "answers": answers,
                    "seconds": round(seconds, 3),
                }
            )
    return records


def judge_records(
    judged: Iterable[JudgedCell], earlier: Iterable[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Entries of `judges`, in the order in which they judged.

    Args:
        judged: Cells.
        earlier: Entries of the same run's last records: what a server said then of the models
            that answered stays, as the verdicts do.
    """
    before = {_judge_key(row): row for row in earlier}
    records: list[dict[str, Any]] = []
    for judge in {j.judge.name: j.judge for j in judged}.values():
        record: dict[str, Any] = {**describe_judge(judge), "description": judge.description}
        served = {*before.get(_judge_key(record), {}).get("served_models", ())}
        served |= {*judge.served_models} if isinstance(judge, Served) else set()
        records.append(record | ({"served_models": sorted(served)} if served else {}))
    return records


def _judge_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["name"], row.get("revision"), row.get("prompt_sha256", "")


def suite_record(
    spec: SuiteSpec, name: str, kind: str, num_items: int, skips: Sequence[Skip] = ()
) -> dict[str, Any]:
    """One entry of `suites`.

    Args:
        spec: What the suite is.
        name: Its name, or that of its benign part.
        kind: From `suite_kind`.
        num_items: Items of that part that were answered.
        skips: What the suite's loader left out; told of the suite, not of its benign part.
    """
    left_out = [asdict(skip) for skip in skips] if name == spec.name else []
    return {
        "name": name,
        "kind": kind,
        "description": spec.description,
        "num_items": num_items,
        "leak": spec.leak,
        "licence": spec.licence,
        "citation": spec.citation,
        **({"skipped": left_out} if left_out else {}),
    }


def arm_record(arm: Arm) -> dict[str, Any]:
    """One entry of `arms`, with what the training of its repairs cost, where one was trained."""
    training = [repair.training_record() for repair in arm.repairs if isinstance(repair, Trained)]
    record = {
        "name": arm.name,
        "repairs": [repair.name for repair in arm.repairs],
        "description": " + ".join(r.name for r in arm.repairs) or "the model as it is",
    }
    return {**record, "training": training} if training else record


def model_record(vlm: Vlm) -> dict[str, Any]:
    """The `model` entry."""
    return {
        "name": vlm.name,
        "family": vlm.spec.model_type,
        "weights_sha256": vlm.weights_sha256,
        "num_parameters": sum(parameter.numel() for parameter in vlm.model.parameters()),
        "num_vision_blocks": vlm.num_vision_blocks,
        "default_exit": vlm.default_exit,
        "num_decoder_layers": vlm.num_decoder_layers,
        "dtype": str(vlm.dtype).removeprefix("torch."),
        "device": str(vlm.device),
    }


def software_versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def replace_nan(value: Any) -> Any:
    """The same JSON value with null for every number that JSON does not know."""
    if isinstance(value, Mapping):
        return {key: replace_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def find_cell(
    judged: Sequence[JudgedCell], arm: str, suite: str, exit_layer: int | None = None
) -> JudgedCell | None:
    """The cell at these coordinates, by the first judge, or None."""
    for cell in judged:
        at = cell.answered.cell
        if (at.arm, at.suite, at.exit) == (arm, suite, exit_layer):
            return cell
    return None
