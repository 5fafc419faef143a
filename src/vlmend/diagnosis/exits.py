"""What a model does at every vision exit: unsafe, refusing, or merely incoherent?

`sweep_exits` answers the same requests at every exit (the image encoder runs once for all of
them), has a judge decide, and returns rates with intervals, means over early, middle and late
exits, a paired test of every exit against the default, and the exit at which the model is most
vulnerable *while still coherent*. `measure_grounding` asks whether answers still use the picture.

Groups are thirds of the encoder (`vlmend.evals.exit_groups`). AASR, ATS, ATR: mean over a group's
exits of attack success rate, toxicity, reward.

Which exits are still coherent is decided in `vlmend.diagnosis.coherent_exits`.

Intervals and tests are over things (`group_of`), not over answers: one thing asked for in five
pictures gives five answers that go together, and as independent ones they would make differences
out of chance. So p-values flip the signs of things, not McNemar's, and rates have Wilson's
interval at the effective number of answers.

Reference: Bachu et al., Layer-wise Alignment (ICML 2025, arXiv 2411.04291).
Deviation: 1. Refusal, coherence and grounding are measured as well; the paper has none of them,
and counts what a judge calls unsafe whether or not it is language. 2. Exits that equal the
default are left out by `Vlm.distinct_exits`, so they do not count twice in the late group.

Shapes: E = exits, N = items (N of an encoder: its blocks).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlmend.diagnosis.cache import cached_json
from vlmend.diagnosis.coherent_exits import find_most_vulnerable, mark_coherent
from vlmend.diagnosis.intervals import average, average_over_exits, empty_stat
from vlmend.errors import ConfigError, DataError
from vlmend.evals.arms import Arm
from vlmend.evals.clustered import clustered_difference, clustered_rate
from vlmend.evals.coherence import Coherence, measure_coherence
from vlmend.evals.controls import replace_images
from vlmend.evals.exit_groups import EXIT_GROUPS, ExitGroup, exit_group
from vlmend.evals.groups import group_of
from vlmend.evals.run import CellResponses, Evaluation
from vlmend.evals.scorers import AnswerScorer
from vlmend.evals.stats import holm
from vlmend.judges.registry import Judge, judge_responses
from vlmend.models.spec import check_exit
from vlmend.types import Response, Sample, Verdict, VerdictValue, sha256_json

_RATES: dict[str, VerdictValue] = {
    "asr": "complied",
    "refusal": "refused",
    "incoherent": "incoherent",
}
TEST_METHOD = "sign flips over things"

_SCORES = {"toxicity": (0.0, 1.0), "reward": (-math.inf, math.inf)}
"""What a scorer may be called, and the numbers it may give."""


@dataclass(frozen=True)
class ExitAnswers:
    """The answers at one exit with their verdicts and scores; items in one order at all exits.

    Attributes:
        exit: The exit l.
        responses: One per item.
        verdicts: One per item, by one judge.
        groups: What each item shares with others (`group_of`).
        coherence: One per item, or None when it was not measured.
        scores: By scorer ("toxicity", "reward"): one number per item, None for an empty answer.
    """

    exit: int
    responses: tuple[Response, ...]
    verdicts: tuple[Verdict, ...]
    groups: tuple[str, ...]
    coherence: tuple[Coherence, ...] | None = None
    scores: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)

    @property
    def complied(self) -> list[float | None]:
        """1 where the answer complied, 0 where not, None where it is not scored."""
        return outcomes(self.verdicts)


@dataclass(frozen=True)
class ExitSweep:
    """A sweep: the record for a diagnosis, and the outcomes that later questions need.

    Attributes:
        record: The "exits" section without "embeddings", "association" and "decoder".
        answers: By exit, ascending.
    """

    record: dict[str, Any]
    answers: Mapping[int, ExitAnswers]

    @property
    def complied(self) -> dict[int, list[float | None]]:
        """By exit: 1, 0 or None (not scored) per item; what `associate` takes."""
        return {exit_layer: found.complied for exit_layer, found in self.answers.items()}

    @property
    def groups(self) -> tuple[str, ...]:
        """What each item shares with others, in the order of `complied`."""
        return next(iter(self.answers.values())).groups


def outcomes(verdicts: Sequence[Verdict], value: VerdictValue = "complied") -> list[float | None]:
    """1 where an answer has a verdict, 0 where another, None where it is not scored."""
    return [None if v.value == "unscored" else float(v.value == value) for v in verdicts]


# ---- exits


# ---- records from answers


def exit_row(answers: ExitAnswers, group: ExitGroup, *, seed: int = 0) -> dict[str, Any]:
    """The "rows" entry of an exit, without "coherent"; see `mark_coherent`.

    Perplexity is a median (a few answers of noise would decide a mean), the others are means.
    Answers that are empty have no perplexity and no scores; failed ones have nothing.

    Args:
        answers: What was answered at the exit.
        group: Its third of the encoder.
        seed: Seed of the bootstrap of the median.
    """
    rates = {
        name: _rate_of(outcomes(answers.verdicts, value), answers.groups)
        for name, value in _RATES.items()
    }
    n, made = len(answers.verdicts), [r.finish != "error" for r in answers.responses]
    lengths = [float(r.new_tokens) if r.finish != "error" else None for r in answers.responses]
    perplexity, repetition = None, empty_stat()
    if answers.coherence is not None:
        known = [c if m else None for c, m in zip(answers.coherence, made, strict=True)]
        perplexity = _stat_of(
            [c and c.perplexity for c in known], answers.groups, kind="median", seed=seed
        )
        repetition = _stat_of([c and c.repetition for c in known], answers.groups, within=(0, 1))
    return {
        "exit": answers.exit,
        "group": group,
        "n": n,
        **rates,
        "coverage": rates["asr"]["n"] / n if n else None,
        "perplexity": perplexity,
        "repetition": repetition,
        "length": _stat_of(lengths, answers.groups, within=(0, math.inf)),
        **{name: _score_stat(answers, name) for name in _SCORES},
    }


def _score_stat(answers: ExitAnswers, name: str) -> dict[str, Any] | None:
    if name not in answers.scores:
        return None
    return _stat_of(answers.scores[name], answers.groups, within=_SCORES[name])


def _stat_of(values: Sequence[float | None], groups: Sequence[str], **how: Any) -> dict[str, Any]:
    """The average of what is there, over groups."""
    there = [(v, g) for v, g in zip(values, groups, strict=True) if v is not None]
    return average([v for v, _ in there], groups=[g for _, g in there], **how)


def _rate_of(scored: Sequence[float | None], groups: Sequence[str]) -> dict[str, Any]:
    there = [(v == 1, g) for v, g in zip(scored, groups, strict=True) if v is not None]
    return clustered_rate([v for v, _ in there], [g for _, g in there]).record()


def summarise_groups(answers: Sequence[ExitAnswers], num_blocks: int) -> list[dict[str, Any]]:
    """AASR, ATS and ATR of early, middle and late exits, with intervals over things.

    Where all answers of a third are alike (none complied, or all did) the interval of AASR is
    that of a rate, with every thing as one observation.

    Args:
        answers: The same items at every exit.
        num_blocks: Vision blocks N.

    Returns:
        One "groups" record per third that has an exit.
    """
    records: list[dict[str, Any]] = []
    for group in EXIT_GROUPS:
        members = [a for a in answers if exit_group(a.exit, num_blocks) == group]
        if not members:
            continue
        things = members[0].groups
        record: dict[str, Any] = {
            "group": group,
            "exits": [a.exit for a in members],
            "aasr": average_over_exits(
                [a.complied for a in members], groups=things, within=(0.0, 1.0)
            ),
        }
        if record["aasr"]["value"] in (0.0, 1.0):
            rate = _rate_of([c for a in members for c in a.complied], things * len(members))
            record["aasr"] |= {"low": rate["low"], "high": rate["high"]}
        for key, name in (("ats", "toxicity"), ("atr", "reward")):
            values = [a.scores[name] for a in members if name in a.scores]
            record[key] = (
                average_over_exits(values, groups=things, within=_SCORES[name]) if values else None
            )
        records.append(record)
    return records


def compare_exits(
    answers: Sequence[ExitAnswers],
    default_exit: int,
    *,
    value: VerdictValue = "complied",
    seed: int = 0,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Does the share of a verdict at an exit differ from the default's, on the same items?

    `clustered_difference` on the items scored at both: signs are flipped by thing. The p-values
    of all exits are one family for Holm; the limits are each exit's own.

    Args:
        answers: The same items at every exit, the default's among them.
        default_exit: The default exit.
        value: The verdict whose share is compared: "complied" for attack success.
        seed: Seed of the sign flips.

    Returns:
        ("tests" records of all other exits, gaps: exits that share no scored item). With a
        single thing there are no limits and every p-value is 1.
    """
    by_exit = {a.exit: a for a in answers}
    default = by_exit[default_exit]
    records: list[dict[str, Any]] = []
    gaps: list[str] = []
    for exit_layer, found in by_exit.items():
        if exit_layer == default_exit:
            continue
        before, after = (outcomes(a.verdicts, value) for a in (default, found))
        record = _paired(before, after, default.groups, seed)
        if record is None:
            gaps.append(f"exit {exit_layer} is not tested: no item was judged there and at default")
            continue
        records.append({"exit": exit_layer, **record, "method": TEST_METHOD})
    adjusted = holm([record["p_value"] for record in records])
    return [{**r, "p_holm": p} for r, p in zip(records, adjusted, strict=True)], gaps


def _paired(
    before: Sequence[float | None],
    after: Sequence[float | None],
    groups: Sequence[str],
    seed: int,
) -> dict[str, Any] | None:
    """Test and limits of after - before over items scored at both; None without any."""
    rows = zip(before, after, groups, strict=True)
    pairs = [(b, a, g) for b, a, g in rows if b is not None and a is not None]
    if not pairs:
        return None
    befores, afters, names = zip(*pairs, strict=True)
    found = clustered_difference(befores, afters, names, seed=seed)
    return {
        "n": found.n,
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "p_value": found.p_value,
    }


# ---- the sweep


def sweep_exits(
    evaluation: Evaluation,
    arm: Arm,
    samples: Sequence[Sample],
    judge: Judge,
    exits: Sequence[int],
    *,
    scorers: Sequence[AnswerScorer] = (),
    gaps: Sequence[str] = (),
    coherence: bool = True,
    seed: int = 0,
) -> ExitSweep:
    """Answer a suite at every exit and say what the model does there.

    The default exit is always among the exits; its answers are those of the default path, so a
    run that has them already does not make them again.

    Args:
        evaluation: Where answers come from and are kept.
        arm: The repairs to apply. Perplexity is that of the model without them.
        samples: Items of one suite, with pictures.
        judge: Decides on the answers.
        exits: Vision exits, e.g. `vlm.distinct_exits`.
        scorers: Toxicity, reward.
        gaps: Why a scorer is not there (what `load_toxicity` says); repeated in the record.
        coherence: Whether to measure perplexity and repetition.
        seed: Seed of sign flips, and of the bootstrap of medians.

    Raises:
        ConfigError: An exit out of range, or a scorer of another name.
        DataError: No items, items of several suites, or items without a picture.
        RunError: As `Evaluation.answer`.
    """
    suite = _check_samples(samples)
    unknown = sorted({s.name for s in scorers} - _SCORES.keys())
    if unknown:
        raise ConfigError(f"unknown score {', '.join(unknown)}. Allowed: {', '.join(_SCORES)}.")
    vlm = evaluation.vlm
    cells = _answer_exits(evaluation, arm, suite, samples, exits)
    read = _measure_coherence(evaluation, cells) if coherence else dict.fromkeys(cells)
    answers = [
        _score_cell(exit_layer, cell, judge, scorers, read[exit_layer])
        for exit_layer, cell in cells.items()
    ]
    blocks, default = vlm.num_vision_blocks, vlm.default_exit
    rows = [exit_row(a, exit_group(a.exit, blocks), seed=seed) for a in answers]
    rows = mark_coherent(rows, default)
    tests, untested = compare_exits(answers, default, seed=seed)
    refusal_tests, _ = compare_exits(answers, default, value="refused", seed=seed)
    most_vulnerable, why_none = find_most_vulnerable(rows, default)
    missing = [] if coherence else ["perplexity and repetition were not measured"]
    record = {
        "default": default,
        "suite": suite,
        "judge": judge.name,
        "rows": rows,
        "gaps": [*gaps, *missing, *untested, *([why_none] if why_none else [])],
        "groups": summarise_groups(answers, blocks),
        "tests": tests,
        "refusal_tests": refusal_tests,
        "most_vulnerable": most_vulnerable,
    }
    return ExitSweep(record, {a.exit: a for a in answers})


@dataclass(frozen=True)
class Grounding:
    """Answers to visual questions at every exit, with the item's own picture and another's.

    Attributes:
        record: One "grounding" record per exit, ascending, with intervals over things. The rates
            are over scored items; the drop is paired, over items scored with both pictures.
        samples: The questions.
        right: By exit: 1, 0 or None (not scored) per question, with its own picture.
        replaced: The same with another item's picture.
    """

    record: list[dict[str, Any]]
    samples: tuple[Sample, ...]
    right: Mapping[int, list[float | None]]
    replaced: Mapping[int, list[float | None]]


def measure_grounding(
    evaluation: Evaluation,
    arm: Arm,
    samples: Sequence[Sample],
    judge: Judge,
    exits: Sequence[int],
) -> Grounding:
    """Accuracy on visual questions at every exit, and its drop with another item's picture.

    Answers that do not use the picture lose nothing. Some questions are answered right with the
    wrong picture (is there ... in it? no), so the drop stays below the accuracy.

    Args:
        evaluation: Where answers come from and are kept.
        arm: The repairs to apply.
        samples: Questions of one suite about pictures.
        judge: Says `complied` of a right answer.
        exits: Vision exits; the default is always among them.

    Raises:
        ConfigError, DataError, RunError: As `sweep_exits` and `replace_images`.
    """
    suite = _check_samples(samples)
    twins = replace_images(samples, "unrelated")
    own, other = (
        {e: _right(cell, judge) for e, cell in cells.items()}
        for cells in (
            _answer_exits(evaluation, arm, suite, samples, exits),
            _answer_exits(evaluation, arm, f"{suite}@unrelated", twins, exits),
        )
    )
    groups = [group_of(sample) for sample in samples]
    record = [{"exit": e, **_compare_pictures(own[e], other[e], groups)} for e in own]
    return Grounding(record, tuple(samples), own, other)


def _right(cell: CellResponses, judge: Judge) -> list[float | None]:
    return outcomes(judge_responses(judge, zip(cell.samples, cell.responses, strict=True)))


def _compare_pictures(
    own: Sequence[float | None], other: Sequence[float | None], groups: Sequence[str]
) -> dict[str, Any]:
    found = _paired(other, own, groups, seed=0)
    drop = empty_stat()
    if found is not None:
        drop = {"value": found["difference"], **{k: found[k] for k in ("low", "high", "n")}}
    return {
        "accuracy": _rate_of(own, groups),
        "replaced": _rate_of(other, groups),
        "drop": drop,
    }


def _answer_exits(
    evaluation: Evaluation, arm: Arm, suite: str, samples: Sequence[Sample], exits: Sequence[int]
) -> dict[int, CellResponses]:
    """Responses by exit, ascending; the default exit as the default path."""
    vlm = evaluation.vlm
    for exit_layer in exits:
        check_exit(exit_layer, vlm.num_vision_blocks)
    wanted = sorted({*exits, vlm.default_exit})
    asked = [None if e == vlm.default_exit else e for e in wanted]
    return dict(zip(wanted, evaluation.answer(arm, suite, samples, asked), strict=True))


def _measure_coherence(
    evaluation: Evaluation, cells: Mapping[int, CellResponses]
) -> dict[int, tuple[Coherence, ...]]:
    """The answers of all exits in one go, because many are the same; kept by content."""
    prompts = [sample.messages for cell in cells.values() for sample in cell.samples]
    texts = [response.text for cell in cells.values() for response in cell.responses]

    def compute() -> list[list[float | None]]:
        found = measure_coherence(evaluation.vlm, prompts, texts)
        return [[c.perplexity, c.repetition, c.tokens] for c in found]

    # A response's id hashes weights, prompt and exit; the answer itself may still be another.
    answers = [[r.id, r.text] for cell in cells.values() for r in cell.responses]
    facts = {"weights": evaluation.vlm.weights_sha256, "answers": sha256_json(answers)}
    rows = iter(cached_json(evaluation.folder.path, "coherence", facts, compute))
    return {e: tuple(Coherence(*next(rows)) for _ in cell.responses) for e, cell in cells.items()}


def _score_cell(
    exit_layer: int,
    cell: CellResponses,
    judge: Judge,
    scorers: Sequence[AnswerScorer],
    coherence: tuple[Coherence, ...] | None,
) -> ExitAnswers:
    texts = [response.text for response in cell.responses]
    there = [i for i, text in enumerate(texts) if text.strip()]
    scores: dict[str, tuple[float | None, ...]] = {}
    for scorer in scorers:
        found = scorer.score([(cell.samples[i].text, texts[i]) for i in there])
        by_item = dict(zip(there, found, strict=True))
        scores[scorer.name] = tuple(by_item.get(i) for i in range(len(texts)))
    verdicts = judge_responses(judge, zip(cell.samples, cell.responses, strict=True))
    groups = tuple(group_of(sample) for sample in cell.samples)
    return ExitAnswers(exit_layer, cell.responses, tuple(verdicts), groups, coherence, scores)


def _check_samples(samples: Sequence[Sample]) -> str:
    """The suite that all samples are of."""
    suites = sorted({sample.suite for sample in samples})
    without = [sample.id for sample in samples if not sample.images]
    if len(suites) != 1 or without:
        raise DataError(
            f"exits are swept on items of one suite, with pictures: given are {len(samples)} items "
            f"of {len(suites)} suites ({', '.join(suites[:3]) or 'none'}), {len(without)} of them "
            f"without a picture ({', '.join(without[:3]) or 'none'}). Choose items of one suite "
            "that has pictures."
        )
    return suites[0]
