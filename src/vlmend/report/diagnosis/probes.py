"""Figures of the linear probes: accuracy by layer, confusion, unsafe called safe."""

from __future__ import annotations

from vlmend.report.diagnosis.figure import (
    LAYERS,
    Figure,
    Matrix,
    Slide,
    Table,
    key_of,
    known,
    line,
    missing,
    rate_lines,
)
from vlmend.report.diagnosis.records import Confusion, Diagnosis, Probe, Section, Value
from vlmend.report.diagnosis.words import apart, by_gap, rate_cell, rate_words
from vlmend.report.wording import percent_words

LABELS = {
    "text": ("text", "text"),
    "vision_language": ("vision-language", "vl"),
    "transfer": ("trained on text, tested on vision-language", "transfer"),
    "text_shuffled": ("text, shuffled labels", "text-shuffled"),
    "vision_language_shuffled": ("vision-language, shuffled labels", "vl-shuffled"),
}
MATRICES = {
    "text": "Text",
    "vision_language": "Vision-language",
    "transfer": "Text probe on vision-language",
}
CURVES_NOT = (
    "that the model uses what a probe can read: a probe finds any trace of safety that is linear. "
    "Intervals are per layer and not corrected for looking at many layers."
)
CONFUSION_NOT = (
    "why a request lands on the wrong side: a probe trained on text can be off because safety is "
    "lost or because all vision-language activations are moved alike; the shift figures tell them "
    "apart."
)


def _series(probes: Section[Probe], names: tuple[str, ...], of: str):
    return known(
        line(
            LABELS[name][0],
            LABELS[name][1],
            [(probe.layer, getattr(probe, of).get(name)) for probe in probes.items],
        )
        for name in names
    )


def _best(probes: Section[Probe]) -> tuple[Probe, Value] | None:
    pairs = [(probe, value) for probe in probes.items if (value := probe.rates["text"])]
    return max(pairs, key=lambda pair: pair[1].value, default=None)


def _curves_shows(probes: Section[Probe]) -> str:
    best = _best(probes)
    if best is None:
        return "No probe on text was measured."
    probe, value = best
    text = f"The text probe does best at layer {probe.layer}: {rate_words(value)} right"
    other, transfer = probe.rates["vision_language"], probe.rates["transfer"]
    if other is not None:
        text += f"; there the vision-language probe has {rate_words(other)}"
    if transfer is not None:
        text += (
            f"{' and' if other else '; there'} the text-trained probe on vision-language "
            f"{rate_words(transfer)}"
        )
    told = [
        apart(item.rates["text"], item.rates["vision_language"])
        for item in probes.items
        if (item.rates["text"] and item.rates["vision_language"])
    ]
    if told and None not in told:
        text += (
            f". The intervals of text and vision-language are apart at {sum(map(bool, told))} of "
            f"{len(told)} layers"
        )
    return text + "."


def _table(probes: Section[Probe]) -> Table:
    rows = tuple(
        (
            str(probe.layer),
            *(rate_cell(probe.rates[name]) for name in LABELS),
            *(rate_cell(probe.unsafe_as_safe[name]) for name in ("text", "transfer")),
        )
        for probe in probes.items
    )
    head = (
        "Layer",
        "Text",
        "Vision-language",
        "Transfer",
        "Text, shuffled",
        "Vision-lang., shuffled",
        "Unsafe as safe, text",
        "Unsafe as safe, transfer",
    )
    return Table("Probe accuracy by layer", head, rows)


def build_curves(diagnosis: Diagnosis) -> Figure:
    """Accuracy by layer: two modalities, the transfer, and controls with shuffled labels."""
    name, title, probes = "probes", "Can safety be read off the activations?", diagnosis.probes
    if probes.gap:
        return missing(name, title, probes.gap)
    main = _series(probes, ("text", "vision_language", "transfer"), "rates")
    control = _series(probes, ("text_shuffled", "vision_language_shuffled"), "rates")
    called = _series(probes, ("text", "transfer"), "unsafe_as_safe")
    shows = _curves_shows(probes)
    plots = (
        *rate_lines("Probe accuracy", main, LAYERS, f"Probe accuracy by decoder layer. {shows}"),
        *rate_lines(
            "Control: shuffled labels",
            control,
            LAYERS,
            "Accuracy of probes trained on shuffled labels, by decoder layer; chance is a half.",
        ),
        *rate_lines(
            "Unsafe called safe",
            called,
            LAYERS,
            "Share of unsafe requests that the text-trained probe calls safe, by decoder layer.",
        ),
    )
    folds = f"Cross-validated in {diagnosis.folds} folds" if diagnosis.folds else "Cross-validated"
    lead = f"{folds}; no item or thing is in both training and test. Bands are 95 % intervals."
    gaps = by_gap((probe.layer, probe.gap) for probe in probes.items)
    if not plots:
        return Figure(name, title, gaps=gaps or ("no layer has a probe",))
    return Figure(
        name,
        title,
        shows,
        CURVES_NOT,
        key_of((*main, *control)),
        plots,
        tables=(_table(probes),),
        gaps=gaps,
        lead=lead,
    )


def _matrix(name: str, counts: Confusion) -> Matrix:
    alternative = (
        f"{MATRICES[name]}: of {counts.unsafe_as_unsafe + counts.unsafe_as_safe} unsafe, "
        f"{counts.unsafe_as_safe} called safe; of {counts.safe_as_safe + counts.safe_as_unsafe} "
        f"safe, {counts.safe_as_unsafe} called unsafe."
    )
    return Matrix(MATRICES[name], counts, alternative)


def _called_safe(counts: Confusion | None) -> str:
    total = 0 if counts is None else counts.unsafe_as_unsafe + counts.unsafe_as_safe
    return percent_words(counts.unsafe_as_safe / total) if counts is not None and total else ""


def _confusion_shows(probe: Probe) -> str:
    measured = probe.unsafe_as_safe
    parts: list[str] = []
    for name, words in (("text", "on text"), ("transfer", "on vision-language")):
        share = measured.get(name)
        text = rate_words(share) if share else _called_safe(probe.confusion[name])
        if text:
            parts.append(f"{text} of unsafe requests {words}")
    if not parts:
        return f"Layer {probe.layer}: no share of unsafe requests called safe was recorded."
    joined = " and ".join(parts)
    return f"At layer {probe.layer}, the probe trained on text calls safe {joined}."


def build_confusion(diagnosis: Diagnosis) -> Figure:
    """Confusion matrices with a slide per layer."""
    name, title, probes = "confusion", "What the probes get wrong", diagnosis.probes
    if probes.gap:
        return missing(name, title, probes.gap)
    slides: list[Slide] = []
    for probe in sorted(probes.items, key=lambda item: item.layer):
        plots = tuple(_matrix(key, counts) for key in MATRICES if (counts := probe.confusion[key]))
        if plots:
            slides.append(Slide(probe.layer, plots, _confusion_shows(probe)))
    if not slides:
        gaps = by_gap((probe.layer, probe.gap) for probe in probes.items)
        return Figure(name, title, gaps=gaps or ("no confusion matrix was recorded",))
    return Figure(name, title, shows_not=CONFUSION_NOT, slides=tuple(slides))
