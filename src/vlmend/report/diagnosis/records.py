"""Types of what `diagnosis.json` holds; `read.py` makes them.

Every number is finite or `None`, every text is printable. A section that was not measured is a
`Section` without items whose `gap` says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

SCHEMA = 1
VERDICTS = ("reproduced", "refuted", "undecided", "not measured")
Verdict = Literal["reproduced", "refuted", "undecided", "not measured"]

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Section(Generic[Item]):
    """Rows of one section, or why there are none.

    Attributes:
        items: The rows, in the order of the file.
        gap: Why the section is empty; "" when it is not.
    """

    items: tuple[Item, ...]
    gap: str = ""


@dataclass(frozen=True, slots=True)
class Value:
    """A rate, mean or median with its 95 % interval; `None` bounds were not recorded."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One claim and what this model says about it."""

    claim: str
    verdict: Verdict
    text: str
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class SampleSet:
    """One of the sets: a modality and a label."""

    modality: str
    label: str
    n: int
    groups: int | None
    suites: tuple[str, ...]

    @property
    def name(self) -> str:
        """How the set is called on the page."""
        return f"{self.modality}, {self.label}"

    @property
    def style(self) -> str:
        """CSS suffix: fill goes with the modality, shape and colour with the label."""
        side = "text" if self.modality == "text" else "vl"
        return f"{side}-{'unsafe' if self.label == 'unsafe' else 'safe'}"


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts of items by what they are and what a probe calls them."""

    unsafe_as_unsafe: int
    unsafe_as_safe: int
    safe_as_safe: int
    safe_as_unsafe: int


@dataclass(frozen=True, slots=True)
class Probe:
    """Linear probes at one decoder layer; `rates` by line name, see `read.PROBE_LINES`."""

    layer: int
    rates: Mapping[str, Value | None]
    confusion: Mapping[str, Confusion | None]
    unsafe_as_safe: Mapping[str, Value | None]
    gap: str


@dataclass(frozen=True, slots=True)
class Map:
    """The sets in a plane; points are (x, y, index of the set)."""

    method: str
    layer: int
    points: tuple[tuple[float, float, int], ...]
    boundary: tuple[tuple[float, float], tuple[float, float]] | None
    boundary_accuracy: float | None
    explained: tuple[float, float] | None
    gap: str


@dataclass(frozen=True, slots=True)
class Shift:
    """The modality-induced shift of one group of items; columns by layer, equal lengths."""

    suite: str
    group: str
    n: int
    layers: tuple[int, ...]
    columns: Mapping[str, tuple[float | None, ...]]
    cosines: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Separation:
    """How well cos(m, s) at one layer tells complied from refused."""

    suite: str
    layer: int
    auroc: Value | None
    n_complied: int
    n_refused: int
    gap: str


@dataclass(frozen=True, slots=True)
class SelfClassification:
    """The model's own yes/no answer to "is this request harmful"; `suite` "" means all."""

    modality: str
    suite: str
    said_yes_unsafe: Value | None
    said_yes_safe: Value | None
    accuracy: Value | None
    auroc: Value | None
    mass_median: float | None
    gap: str


@dataclass(frozen=True, slots=True)
class Agreement:
    """Cosine between two direction estimators at one layer."""

    layer: int
    first: str
    second: str
    cosine: float | None


@dataclass(frozen=True, slots=True)
class Stability:
    """Bootstrap cosine of one estimator with itself, at one layer and sample size."""

    layer: int
    estimator: str
    n: int
    cosine: Value | None
    gap: str


@dataclass(frozen=True, slots=True)
class ExitRow:
    """Answers at one vision exit.

    Attributes:
        values: `Value` by name: asr, refusal, incoherent, perplexity, repetition, length,
            toxicity, reward. Rates are `None` when `withheld`.
        withheld: Why the rates are not shown; "" when they are.
        coherent: Whether answers still count as coherent; `None` when not recorded.
    """

    exit: int
    group: str
    n: int
    values: Mapping[str, Value | None]
    coverage: float | None
    coherent: bool | None
    withheld: str


@dataclass(frozen=True, slots=True)
class ExitGroup:
    """Means over a group of exits: ASR (AASR), toxicity (ATS), reward (ATR)."""

    group: str
    exits: tuple[int, ...]
    aasr: Value | None
    ats: Value | None
    atr: Value | None


@dataclass(frozen=True, slots=True)
class ExitTest:
    """A paired test of one exit against the default exit."""

    exit: int
    n: int
    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    p_holm: float | None
    method: str


@dataclass(frozen=True, slots=True)
class Vulnerable:
    """The exit with the highest attack success while answers are still coherent."""

    exit: int
    asr: Value | None
    why: str


@dataclass(frozen=True, slots=True)
class ByExit:
    """Named values at one vision exit (grounding, embeddings)."""

    exit: int
    values: Mapping[str, Value | None]


@dataclass(frozen=True, slots=True)
class Association:
    """Rank correlation over exits of an embedding measure with attack success."""

    measure: str
    spearman: Value | None
    gap: str


@dataclass(frozen=True, slots=True)
class DecoderCell:
    """Mean position along s at one exit and decoder layer, relative to the default exit."""

    exit: int
    layer: int
    coefficient: Value | None


NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Exits:
    """The exit sweep; `gap` is why there is none at all."""

    default: int | None = None
    suite: str = ""
    judge: str = ""
    rows: Section[ExitRow] = Section((), NOT_MEASURED)
    gaps: tuple[str, ...] = ()
    groups: Section[ExitGroup] = Section((), NOT_MEASURED)
    tests: Section[ExitTest] = Section((), NOT_MEASURED)
    most_vulnerable: Vulnerable | None = None
    grounding: Section[ByExit] = Section((), NOT_MEASURED)
    embeddings: Section[ByExit] = Section((), NOT_MEASURED)
    association: Section[Association] = Section((), NOT_MEASURED)
    decoder: Section[DecoderCell] = Section((), NOT_MEASURED)
    gap: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything the page is made of."""

    title: str
    created: str
    model: Mapping[str, Any]
    sets: Section[SampleSet]
    folds: int | None
    probes: Section[Probe]
    maps: Section[Map]
    shift: Section[Shift]
    separation: Section[Separation]
    self_classification: Section[SelfClassification]
    estimators: Section[Agreement]
    stability: Section[Stability]
    exits: Exits
    findings: Section[Finding]
    gaps: tuple[str, ...]
    cost: Section[tuple[str, float | None]]
    reproduce: Mapping[str, Any]
    judges: tuple[Mapping[str, Any], ...] = field(default=())
