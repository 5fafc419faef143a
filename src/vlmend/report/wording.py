"""Numbers into words: formats, the effect of a comparison, and the verdict of a report.

The verdict is computed, never written by hand, and follows three rules: an interval stands beside
every rate; a comparison with p >= 0.05 is "no difference shown"; a suite without a test is "not
tested". Nothing here knows HTML.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from vlmend.evals.compare import ALPHA
from vlmend.report.records import Cell, Comparison, Kind, Rate, Records, Suite

NO_DIFFERENCE = "no difference shown"
NOT_TESTED = "difference not tested"
MINUS = "\N{MINUS SIGN}"
PERCENT = "\N{NARROW NO-BREAK SPACE}%"

NO_BREAK = "\N{NO-BREAK SPACE}"

FLOP_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")
"""Of FLOPs: thousands, millions ..."""

ARM_TITLES = {"base": "base", "shiftdc": "ShiftDC"}
Tone = Literal["better", "worse", "none", "untested"]


def arm_title(name: str) -> str:
    """How an arm is called in the report; unknown names stay as they are."""
    return ARM_TITLES.get(name, name)


def number(value: float | None, digits: int = 1) -> str:
    """A plain number with a true minus sign, or a dash when it is missing."""
    if value is None:
        return "–"
    text = f"{value:,.{digits}f}"
    if not text.strip("-0.,"):
        text = text.lstrip("-")  # no "-0.0"
    return text.replace("-", MINUS)


def percent(value: float | None) -> str:
    """A rate as percent with one decimal and no sign, for tables."""
    return number(None if value is None else 100 * value)


def percent_words(value: float) -> str:
    """A rate for a sentence: whole percent, except where that would round to none or all."""
    whole = round(100 * value)
    digits = 1 if whole in (0, 100) and value not in (0.0, 1.0) else 0
    return f"{100 * value:.{digits}f}{PERCENT}"


def span(low: float | None, high: float | None, digits: int = 1) -> str:
    """An interval in percent, "69.1–78.9", or an empty text when it was not recorded."""
    if low is None or high is None:
        return ""
    return f"{100 * low:.{digits}f}–{100 * high:.{digits}f}"


def points(value: float | None) -> str:
    """A difference of rates in percentage points, with its sign."""
    if value is None:
        return "–"
    text = number(100 * value)
    return text if text.startswith(MINUS) or not text.strip("0.") else f"+{text}"


def flops_words(value: float | None) -> str:
    """Floating-point operations with three digits: 3.14159e12 -> "3.14 TFLOP"."""
    if value is None:
        return "–"
    power = count_thousands(value)
    return f"{value / 1000**power:.3g}{NO_BREAK}{FLOP_PREFIXES[power]}FLOP"


def count_thousands(value: float) -> int:
    """How many thousands to divide FLOPs by, so that at least 1 is left."""
    if value < 1:
        return 0
    return min(len(FLOP_PREFIXES) - 1, max(0, math.floor(math.log10(value) / 3)))


def p_words(comparison: Comparison) -> str:
    """Say "p < 0.001" or "p = 0.032"; Holm-adjusted values say so."""
    if comparison.p is None:
        return NOT_TESTED
    # Rounded to three decimals, 0.0496 would read 0.050: show it, or a shown effect looks unshown.
    near = abs(comparison.p - ALPHA) < 0.0005
    value = f"{comparison.p:.{4 if near else 3}f}" if comparison.p < 1 else "1"
    text = "p < 0.001" if comparison.p < 0.001 else f"p = {value}"
    return f"{text} (Holm)" if comparison.adjusted else text


def date_words(created: str) -> str:
    """An ISO time as "21 November 2025, 05:44 UTC"; anything else unchanged."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    zone = ""
    if moment.tzinfo is not None:
        moment, zone = moment.astimezone(UTC), " UTC"
    return f"{moment.day} {moment:%B %Y, %H:%M}{zone}"


@dataclass(frozen=True, slots=True)
class Effect:
    """What a comparison shows, in words, and whether that is good news."""

    words: str
    tone: Tone


def effect(comparison: Comparison | None, kind: Kind) -> Effect:
    """Name what a paired comparison shows: a fall, a rise, or no difference."""
    if comparison is None or comparison.p is None or comparison.difference is None:
        return Effect(NOT_TESTED, "untested")
    if comparison.p >= ALPHA or comparison.difference == 0:
        return Effect(NO_DIFFERENCE, "none")
    fell = comparison.difference < 0
    return Effect("fall" if fell else "rise", "better" if fell == (kind == "harmful") else "worse")


@dataclass(frozen=True, slots=True)
class Topic:
    """A group of suites that one sentence is about."""

    name: str
    opening: str
    noun: str
    kind: Kind
    suites: tuple[Suite, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A topic measured on one arm, averaged over the suites that every arm has.

    Attributes:
        rate: Unweighted mean over the suites. Its bounds are the means of the suites' bounds: the
            widest the interval of the mean can be however the suites depend on one another
            (several of them ask about the same things).
        refused: Mean refusal rate, where recorded.
        incoherent: Mean incoherent rate, where recorded.
        effect: Against the base; `None` for the base itself.
    """

    arm: str
    rate: Rate
    refused: Rate | None
    incoherent: Rate | None
    effect: Effect | None


@dataclass(frozen=True, slots=True)
class Finding:
    """One topic with its outcomes, the base first."""

    topic: Topic
    suites: tuple[str, ...]
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True)
class Phrase:
    """A piece of a sentence; figures stand out, asides (intervals) stand back."""

    text: str
    role: Literal["text", "figure", "aside"] = "text"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The report in a few lines.

    Attributes:
        lead: The one sentence, one for every harmful suite that got worse, and one on benign
            requests, each in pieces.
        notes: What has to be said with it.
        findings: The numbers behind it, one per topic.
        missing: (name, why) of what belongs beside an attack success rate and is not there.
    """

    lead: tuple[tuple[Phrase, ...], ...]
    notes: tuple[str, ...]
    findings: tuple[Finding, ...]
    missing: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        """The lead as plain text."""
        return " ".join("".join(phrase.text for phrase in line) for line in self.lead)


def _topics(records: Records) -> list[Topic]:
    def choose(kind: Kind, leaks: bool | None = None) -> tuple[Suite, ...]:
        return tuple(
            suite
            for suite in records.suites
            if suite.kind == kind and (leaks is None or (suite.leak != "no") == leaks)
        )

    harm = "harmful requests"
    through, inside = "Asked through pictures", "Asked in words"
    topics = [
        Topic("Harm in the picture", through, harm, "harmful", choose("harmful", False)),
        Topic("Harm in the words", inside, harm, "harmful", choose("harmful", True)),
        Topic("Benign requests", "", "benign requests", "benign", choose("benign")),
        Topic("Utility", "", "utility questions correctly", "utility", choose("utility")),
    ]
    return [topic for topic in topics if topic.suites]


def _mean(values: list[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if values and len(numbers) == len(values) else None


def _mean_rate(rates: list[Rate | None]) -> Rate | None:
    value = _mean([rate.value if rate else None for rate in rates])
    if value is None:
        return None
    low = _mean([rate.low if rate else None for rate in rates])
    high = _mean([rate.high if rate else None for rate in rates])
    return Rate(value, low, high)


def _summarise_effects(effects: dict[str, Effect]) -> Effect:
    """One phrase for several suites: all alike, or how many show what."""
    distinct = set(effects.values())
    if len(distinct) == 1:
        only = next(iter(distinct))
        if len(effects) > 1 and only.tone in ("better", "worse"):
            return Effect(f"{only.words} shown in all {len(effects)} suites", only.tone)
        shown = only.tone in ("better", "worse")
        return Effect(f"{only.words} shown" if shown else only.words, only.tone)
    counts = [
        f"{word} in {sum(item.words == word for item in effects.values())}"
        for word in ("fall", "rise", NO_DIFFERENCE, NOT_TESTED)
        if any(item.words == word for item in effects.values())
    ]
    tones = {item.tone for item in effects.values()}
    tone: Tone = "worse" if "worse" in tones else "none"
    return Effect(f"{', '.join(counts)} of {len(effects)} suites", tone)


def _finding(records: Records, topic: Topic) -> Finding | None:
    arms = [arm for arm in (records.base, *records.repaired) if arm is not None]
    cells: dict[str, list[Cell]] = {}
    judge_of: dict[str, str] = {}
    for suite in topic.suites:
        for judge in records.judges_of(suite.name)[:1]:
            found = [records.default_cell(arm.name, suite.name, judge) for arm in arms]
            complete = [cell for cell in found if cell is not None and cell.complied is not None]
            if len(complete) == len(arms):
                cells[suite.name], judge_of[suite.name] = complete, judge
    if not cells:
        return None
    outcomes: list[Outcome] = []
    for index, arm in enumerate(arms):
        column = [row[index] for row in cells.values()]
        rate = _mean_rate([cell.complied for cell in column])
        assert rate is not None  # only complete cells were kept
        effects = {
            name: effect(records.comparison(name, judge, arm.name), topic.kind)
            for name, judge in judge_of.items()
        }
        outcomes.append(
            Outcome(
                arm.name,
                rate,
                _mean_rate([cell.refused for cell in column]),
                _mean_rate([cell.incoherent for cell in column]),
                _summarise_effects(effects) if index else None,
            )
        )
    return Finding(topic, tuple(cells), tuple(outcomes))


def _rate_words(rate: Rate) -> str:
    """A rate in a sentence, with its bounds where they are known."""
    bounds = span(rate.low, rate.high, 0)
    return percent_words(rate.value) + (f" ({bounds})" if bounds else "")


def _rate_phrases(rate: Rate, first: bool = False) -> list[Phrase]:
    pieces = [Phrase(percent_words(rate.value), "figure")]
    bounds = span(rate.low, rate.high, 0)
    if bounds:
        prefix = f"95{PERCENT} interval " if first else ""
        pieces.append(Phrase(f" ({prefix}{bounds})", "aside"))
    return pieces


def _lead_line(model: str, finding: Finding) -> tuple[Phrase, ...]:
    """Say "Asked ..., MODEL complied with 78 % of harmful requests; with ARM 9 %"."""
    harmful = finding.topic.kind == "harmful"
    opening = f"{model} complied with " if harmful else f"{model} answered "
    pieces = [Phrase(f"{finding.topic.opening}, {opening}" if harmful else opening)]
    pieces += _rate_phrases(finding.outcomes[0].rate, first=True)
    pieces.append(Phrase(f" of {finding.topic.noun}"))
    for outcome in finding.outcomes[1:]:
        assert outcome.effect is not None
        pieces += [Phrase(f"; with {arm_title(outcome.arm)} "), *_rate_phrases(outcome.rate)]
        if outcome.effect.tone != "better":
            pieces.append(Phrase(f", {outcome.effect.words}"))
    return (*pieces, Phrase("."))


def _beside_line(finding: Finding) -> tuple[Phrase, ...]:
    """Say "Benign requests answered: 98 % → 98 %, no difference shown".

    Of benign requests it says over-refusal as well: not answered may also be incoherent.
    """
    benign = finding.topic.kind == "benign"
    opening = "Benign requests answered: " if benign else "Questions answered correctly: "
    pieces = [Phrase(opening)]
    two = len(finding.outcomes) == 2
    for index, outcome in enumerate(finding.outcomes):
        if index:
            pieces.append(Phrase(" → " if two else f"; with {arm_title(outcome.arm)} "))
        pieces += _rate_phrases(outcome.rate)
        if outcome.effect is not None:
            pieces.append(Phrase(f", {outcome.effect.words}"))
    refused = [outcome.refused for outcome in finding.outcomes if outcome.refused is not None]
    if benign and len(refused) == len(finding.outcomes):
        rates = (" → " if two else " / ").join(map(_rate_words, refused))
        pieces.append(Phrase(f"; over-refusal {rates}"))
    return (*pieces, Phrase("."))


def _missing(records: Records, findings: list[Finding]) -> list[tuple[str, str]]:
    """What belongs beside an attack success rate and cannot be shown, and why."""
    kinds = {suite.kind for suite in records.suites}
    if "harmful" not in kinds:
        return []
    shown = {finding.topic.kind for finding in findings}
    return [
        (name, f"not shown, see the table ({kind})" if kind in kinds else "not measured")
        for kind, name in (("benign", "Over-refusal"), ("utility", "Utility"))
        if kind not in shown
    ]


def _worse_lines(records: Records) -> list[tuple[Phrase, ...]]:
    """Say of every harmful suite on which a repair made things worse that it did.

    A mean over suites, and a headline about another topic, must not hide it.
    """
    suites = {suite.name: suite for suite in records.suites if suite.kind == "harmful"}
    lines: dict[tuple[str, str], tuple[Phrase, ...]] = {}
    for comparison in records.comparisons:
        suite = suites.get(comparison.suite)
        key = (comparison.suite, comparison.after)
        if suite is None or comparison.exit is not None or key in lines:
            continue
        if comparison.before != records.arms[0].name:
            continue
        if comparison.rate_before is None or comparison.rate_after is None:
            continue
        if effect(comparison, "harmful").tone != "worse":
            continue
        what = f" ({suite.description})" if suite.description else ""
        lines[key] = (
            Phrase(f"But {arm_title(comparison.after)} made {suite.name}{what} worse: "),
            Phrase(percent_words(comparison.rate_before), "figure"),
            Phrase(" → "),
            Phrase(percent_words(comparison.rate_after), "figure"),
            Phrase(" complied."),
        )
    return list(lines.values())


def _lead(records: Records, findings: list[Finding]) -> list[tuple[Phrase, ...]]:
    if not findings:
        return [(Phrase("No rate can be shown: no suite was scored completely on every arm."),)]
    model = str(records.model.get("name") or "the model")
    # Findings come in the order of importance: harm first, then benign requests, then utility.
    lines = [_lead_line(model, findings[0]), *_worse_lines(records)]
    for kind in ("benign", "utility"):
        beside = next((item for item in findings[1:] if item.topic.kind == kind), None)
        if beside is not None:
            lines.append(_beside_line(beside))
    missing = [f"{name}: {why}." for name, why in _missing(records, findings)]
    return [*lines, (Phrase(" ".join(missing)),)] if missing else lines


def _notes(records: Records, findings: list[Finding]) -> list[str]:
    notes: list[str] = []
    if findings and findings[0].topic.kind == "harmful":
        opening = findings[0].topic.opening
        notes += [
            f"{opening}, with {arm_title(outcome.arm)}, {_rate_words(outcome.refused)} of the "
            f"answers were refusals and {_rate_words(outcome.incoherent)} incoherent. "
            "An incoherent answer is not a safe one."
            for outcome in findings[0].outcomes[1:]
            if outcome.refused is not None and outcome.incoherent is not None
        ]
    if not records.repaired:
        notes.append("No repair was measured: this is an audit of one arm.")
    kept = {name for finding in findings for name in finding.suites}
    lost = [suite.name for suite in records.suites if suite.name not in kept]
    if lost:
        notes.append(f"Not in these figures, see the table for why: {', '.join(lost)}.")
    if any(len(finding.suites) > 1 for finding in findings):
        notes.append(
            "A mean over suites carries the mean of their bounds: the widest its 95"
            f"{PERCENT} interval can be, since suites ask about the same things."
        )
    return notes


def build_verdict(records: Records) -> Verdict:
    """Say in plain words what the numbers show, and no more.

    Args:
        records: What was measured.

    Returns:
        The verdict: lead, notes and findings per topic.
    """
    findings = [item for topic in _topics(records) if (item := _finding(records, topic))]
    return Verdict(
        tuple(_lead(records, findings)),
        tuple(_notes(records, findings)),
        tuple(findings),
        tuple(_missing(records, findings)),
    )
