"""Linear probes: can safe and unsafe requests be told apart, at which layer, in which modality?

A probe is L2 logistic regression on standardised activations, both fitted on training groups
alone. Groups (things) are split into folds once, for both modalities: a group that a probe is
tested on was never seen by it, in words or in pictures. All rates are out of fold.

* Classes weigh the same, in the fit (`class_weight="balanced"`) and in every accuracy, which is
  the *balanced accuracy*: a probe that ignores its input has 0.5 however the labels are mixed.
  The share of the larger class stands beside it as "majority".
* Intervals are over groups (`vlmend.evals.clustered`): Wilson over items would be too narrow
  where several items share a thing. They do not hold the randomness of the training.
* The control learns permuted labels. Groups of one label swap labels with each other, groups of
  both labels permute them inside, so that a probe that recognises things gains nothing. Rate and
  limits are means over the permutations: its width is that of one permutation.
* Transfer: the probes of the text folds, tested on the vision-language items of the groups that
  each of them has not seen.

Shapes: N = items, D = width, M = test items, K = kept coordinates, G = groups, L = layers,
R = resamples.

Reference: Zou et al. (NeurIPS 2025, arXiv 2502.13095), linear probes on D_tt and D_vl, and the
probe trained on D_tt and tested on D_vl.

Deviation 1: the paper splits items; here things are split, and both classes weigh the same.
Deviation 2: it leaves regularisation and folds open; here C = 0.1 and 5 folds.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vlmend.errors import ConfigError, DataError
from vlmend.evals.clustered import ClusteredRate, clustered_rate

ProbeModality = Literal["text", "vision_language"]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

LAYER_RULE = "the middle one of the layers compared (index count // 2), and the mean over them"
"""At which layers the modalities are compared; fixed beforehand, never the best one."""

_MIN_ITEMS = 4
_TRIES = 50
"""Draws of folds or of permuted labels before giving up on one with both classes everywhere."""


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """How probes are fitted.

    Attributes:
        folds: Parts that the groups are split into, at least 2; fewer where a class has fewer
            groups.
        permutations: Label permutations of the control, at least 1.
        regularisation: C of the logistic regression (inverse strength), on standardised
            features.
        max_iterations: Limit of the solver; a probe that reaches it is a gap.
        seed: Seed of folds and permutations.
    """

    folds: int = 5
    permutations: int = 5
    regularisation: float = 0.1
    max_iterations: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if (
            self.folds < 2
            or min(self.permutations, self.max_iterations) < 1
            or not 0 < self.regularisation < math.inf
        ):
            raise ConfigError(
                f"probe settings out of range: {self}. Allowed: folds >= 2, permutations and "
                "max_iterations >= 1, regularisation above 0."
            )


@dataclass(frozen=True)
class ProbeSet:
    """The activations of one modality.

    Attributes:
        acts: By decoder layer: (N, D).
        unsafe: (N,) whether the request is unsafe.
        groups: (N,) what must never be on both sides of a split.
    """

    acts: Mapping[int, NDArray[Any]]
    unsafe: Bools
    groups: Sequence[str]

    def __post_init__(self) -> None:
        wrong = [layer for layer, x in self.acts.items() if x.ndim != 2 or len(x) != self.n]
        if wrong or len(self.groups) != self.n:
            raise DataError(
                f"{self.n} labels, {len(self.groups)} groups and the activations of layers "
                f"{wrong} do not belong together. Give one row, label and group per item."
            )

    @property
    def n(self) -> int:
        """Number of items."""
        return len(self.unsafe)


@dataclass(frozen=True)
class LayerProbes:
    """What the probes of one layer said, out of fold; None where there is no probe.

    Attributes:
        layer: Decoder layer.
        predicted: By modality: (N,) whether an item is called unsafe.
        transfer: (N of vision-language,) the same by probes trained on text.
        shuffled: By modality: predictions under each permutation of the labels.
        gap: Why something is missing.
    """

    layer: int
    predicted: Mapping[ProbeModality, Bools]
    transfer: Bools | None
    shuffled: Mapping[ProbeModality, tuple[Bools, ...]]
    gap: str | None


@dataclass(frozen=True)
class ProbeRun:
    """All probes, with the data that they are held against.

    Attributes:
        sets: The two modalities.
        folds: Folds used; 0 when no probe could be fitted.
        settings: How they were fitted.
        permuted: By modality: the permuted labels of the control.
        layers: What was predicted, layer by layer.
        gap: Why there is no probe at all.
    """

    sets: Mapping[ProbeModality, ProbeSet]
    folds: int
    settings: ProbeSettings
    permuted: Mapping[ProbeModality, tuple[Bools, ...]]
    layers: tuple[LayerProbes, ...]
    gap: str | None = None

    def record(self) -> dict[str, Any]:
        """The section "probes" of a diagnosis; a `Rate` has rate, low, high and n."""
        if self.gap:
            return {"gap": self.gap}
        return {
            "folds": self.folds,
            "repeats": 1,
            "permutations": self.settings.permutations,
            "regularisation": self.settings.regularisation,
            "measure": "balanced accuracy",
            "majority": {name: _majority(data) for name, data in self.sets.items()},
            "by_layer": [_layer_record(self, probes) for probes in self.layers],
        }


def run_probes(
    text: ProbeSet, vision_language: ProbeSet, settings: ProbeSettings | None = None
) -> ProbeRun:
    """Fit and test the probes of every layer.

    Args:
        text: The requests in words.
        vision_language: The requests with images; groups are shared with `text`.
        settings: How to fit.

    Returns:
        Predictions; what cannot be fitted (one class, too few items or groups, a layer that did
        not run, equal or non-finite activations, no convergence) is a gap in words.
    """
    settings = settings or ProbeSettings()
    sets: dict[ProbeModality, ProbeSet] = {"text": text, "vision_language": vision_language}
    gaps: dict[ProbeModality, str | None] = {
        name: _explain_unusable(name, data) for name, data in sets.items()
    }
    usable: dict[ProbeModality, ProbeSet] = {
        name: data for name, data in sets.items() if gaps[name] is None
    }
    fold_of = _assign_folds(sets, usable, settings) if usable else None
    if fold_of is None:
        reason = "; ".join(gap for gap in gaps.values() if gap)
        reason = reason or "the groups cannot be split so that both classes are trained on"
        return ProbeRun(sets, 0, settings, {}, (), f"no probe: {reason}.")
    folds: dict[ProbeModality, NDArray[np.int_]] = {
        name: np.array([fold_of[group] for group in data.groups], dtype=int)
        for name, data in sets.items()
    }
    generator = np.random.default_rng(settings.seed)
    permuted: dict[ProbeModality, tuple[Bools, ...]] = {
        name: _permute_labels(data, folds[name], settings.permutations, generator)
        for name, data in usable.items()
    }
    fitter = _Fitter(sets, folds, permuted, settings, gaps)
    layers = sorted({*text.acts, *vision_language.acts})
    return ProbeRun(
        sets,
        max(fold_of.values()) + 1,
        settings,
        permuted,
        tuple(fitter.fit_layer(layer) for layer in layers),
    )


# ---- splits and permutations


def _explain_unusable(name: ProbeModality, data: ProbeSet) -> str | None:
    shown = name.replace("_", "-")
    if data.n < _MIN_ITEMS:
        return f"{data.n} {shown} items are too few for a probe (at least {_MIN_ITEMS})"
    if data.unsafe.all() or not data.unsafe.any():
        return f"all {shown} items are {'unsafe' if data.unsafe.all() else 'safe'}"
    if _fewest_groups(data) < 2:
        return f"a class of the {shown} items has a single group, so none is left to test on"
    return None


def _fewest_groups(data: ProbeSet) -> int:
    """Groups of the class that has the fewest."""
    names = np.asarray(data.groups)
    return min(len(np.unique(names[data.unsafe])), len(np.unique(names[~data.unsafe])))


def _assign_folds(
    sets: Mapping[ProbeModality, ProbeSet],
    usable: Mapping[ProbeModality, ProbeSet],
    settings: ProbeSettings,
) -> dict[str, int] | None:
    """Fold by group, so that every training part of a usable set has both classes."""
    from sklearn.model_selection import StratifiedGroupKFold

    unsafe_N = np.concatenate([data.unsafe for data in sets.values()])
    names_N = np.concatenate([np.asarray(data.groups, dtype=object) for data in sets.values()])
    most = min(settings.folds, *(_fewest_groups(data) for data in usable.values()))
    for count in range(most, 1, -1):
        for attempt in range(_TRIES):
            split = StratifiedGroupKFold(count, shuffle=True, random_state=settings.seed + attempt)
            fold_of: dict[str, int] = {}
            for fold, (_, test) in enumerate(split.split(unsafe_N, unsafe_N, names_N)):
                fold_of |= dict.fromkeys(names_N[test].tolist(), fold)
            if all(
                _trains_on_both(data.unsafe, np.array([fold_of[g] for g in data.groups]), count)
                for data in usable.values()
            ):
                return fold_of
    return None


def _trains_on_both(unsafe_N: Bools, fold_N: NDArray[np.int_], count: int) -> bool:
    """Whether every fold leaves both classes to train on."""
    parts = [unsafe_N[fold_N != fold] for fold in range(count)]
    return all(part.any() and not part.all() for part in parts)


def _permute_labels(
    data: ProbeSet, fold_N: NDArray[np.int_], count: int, generator: np.random.Generator
) -> tuple[Bools, ...]:
    """Labels permuted over groups; fewer than `count` where no draw leaves both classes."""
    group_N = np.unique(np.asarray(data.groups), return_inverse=True)[1]
    share_G = np.bincount(group_N, data.unsafe) / np.bincount(group_N)
    pure_G = (share_G == 0) | (share_G == 1)
    mixed = [np.flatnonzero(group_N == g) for g in np.flatnonzero(~pure_G)]
    found: list[Bools] = []
    for _ in range(count * _TRIES):
        label_G = share_G > 0
        label_G[pure_G] = generator.permutation(label_G[pure_G])
        labels_N = label_G[group_N]
        for rows in mixed:
            labels_N[rows] = generator.permutation(data.unsafe[rows])
        if _trains_on_both(labels_N, fold_N, int(fold_N.max()) + 1):
            found.append(labels_N)
        if len(found) == count:
            break
    return tuple(found)


# ---- fitting


class _NotConvergedError(Exception):
    """The solver stopped at its limit."""


@dataclass(frozen=True)
class _Fitter:
    """Fits the probes of one layer after the other on the same splits."""

    sets: Mapping[ProbeModality, ProbeSet]
    folds: Mapping[ProbeModality, NDArray[np.int_]]
    permuted: Mapping[ProbeModality, tuple[Bools, ...]]
    settings: ProbeSettings
    gaps: Mapping[ProbeModality, str | None] = field(default_factory=dict)

    def fit_layer(self, layer: int) -> LayerProbes:
        predicted: dict[ProbeModality, Bools] = {}
        shuffled: dict[ProbeModality, tuple[Bools, ...]] = {}
        transfer: Bools | None = None
        problems = {name: self._explain_missing(name, layer) for name in self.sets}
        other = self.sets["vision_language"]
        for name, data in self.sets.items():
            if self.gaps[name] or problems[name]:
                continue
            tested = [(data.acts[layer], self.folds[name])]
            if name == "text" and other.n and not problems["vision_language"]:
                tested.append((other.acts[layer], self.folds["vision_language"]))
            try:
                first, *control = self._predict_out_of_fold(name, layer, tested)
            except _NotConvergedError:
                problems[name] = (
                    f"a probe on {name.replace('_', '-')} did not converge within "
                    f"{self.settings.max_iterations} iterations"
                )
                continue
            predicted[name] = first[0]
            shuffled[name] = tuple(parts[0] for parts in control)
            if len(first) > 1:
                transfer = first[1]
        stated = [gap for name in self.sets for gap in (self.gaps[name], problems[name]) if gap] + [
            f"no permutation of the {name.replace('_', '-')} labels leaves both classes to train on"
            for name, parts in shuffled.items()
            if not parts
        ]
        return LayerProbes(layer, predicted, transfer, shuffled, "; ".join(stated) or None)

    def _explain_missing(self, name: ProbeModality, layer: int) -> str | None:
        shown = name.replace("_", "-")
        if self.sets[name].n == 0:
            return None
        acts_ND = self.sets[name].acts.get(layer)
        if acts_ND is None:
            return f"layer {layer} does not run on {shown} input"
        if not np.isfinite(acts_ND).all():
            return f"activations of layer {layer} on {shown} are not finite"
        if (acts_ND == acts_ND[:1]).all():
            return f"layer {layer} has the same activations for every {shown} item"
        return None

    def _predict_out_of_fold(
        self,
        name: ProbeModality,
        layer: int,
        tested: Sequence[tuple[NDArray[Any], NDArray[np.int_]]],
    ) -> list[list[Bools]]:
        """Predictions by (true labels, permutation 1, ...), each by tested set."""
        acts_ND, fold_N = self.sets[name].acts[layer], self.folds[name]
        targets = (self.sets[name].unsafe, *self.permuted[name])
        found = [[np.zeros(len(fold), dtype=bool) for _, fold in tested] for _ in targets]
        for fold in range(int(max(f.max() for f in self.folds.values() if len(f))) + 1):
            train_N = fold_N != fold
            rows = [np.flatnonzero(f == fold) for _, f in tested]
            parts = [x[r].astype(np.float64) for (x, _), r in zip(tested, rows, strict=True)]
            train_NK, test_MKs = prepare_features(acts_ND[train_N].astype(np.float64), parts)
            for number, labels_N in enumerate(targets):
                # The control has no transfer.
                wanted = test_MKs if number == 0 else test_MKs[:1]
                said = self._predict(train_NK, labels_N[train_N], wanted)
                for place, values in enumerate(said):
                    found[number][place][rows[place]] = values
        return found

    def _predict(
        self, train_NK: Floats, unsafe_N: Bools, test_MKs: Sequence[Floats]
    ) -> list[Bools]:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        probe = LogisticRegression(
            C=self.settings.regularisation,
            class_weight="balanced",
            max_iter=self.settings.max_iterations,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            try:
                probe.fit(train_NK, unsafe_N)
            except ConvergenceWarning as warning:
                raise _NotConvergedError from warning
        return [probe.decision_function(x) > 0 if len(x) else np.zeros(0, bool) for x in test_MKs]


def prepare_features(train_ND: Floats, tests_MD: Sequence[Floats]) -> tuple[Floats, list[Floats]]:
    """Standardise by the training items, and rotate into their span where that is narrower.

    L2 logistic regression finds its weight in the span of the standardised training items, and
    a rotation changes neither lengths nor the fit: with fewer items than features the N
    coordinates in that span give the same predictions as the D features, at a fraction of the
    cost. The rotation has to come after standardising, which is not invariant to it. Coordinates
    below 1e-5 of the longest are rounding error (an item or feature given twice) and left out.

    Args:
        train_ND: Training items.
        tests_MD: Sets of test items.

    Returns:
        Training and test items in the same K coordinates.
    """
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train_ND)
    train_ND = np.asarray(scaler.transform(train_ND))
    tests = [np.asarray(scaler.transform(x)) if len(x) else x for x in tests_MD]
    if train_ND.shape[1] <= train_ND.shape[0]:
        return train_ND, tests
    squares_N, vectors_NN = np.linalg.eigh(train_ND @ train_ND.T)
    if squares_N[-1] <= 0:  # No feature varies among the training items: nothing to learn from.
        return train_ND[:, :1], [x[:, :1] * 0 for x in tests]
    kept = squares_N > 1e-10 * squares_N[-1]
    lengths_K, vectors_NK = np.sqrt(squares_N[kept]), vectors_NN[:, kept]
    basis_DK = train_ND.T @ (vectors_NK / lengths_K)
    return vectors_NK * lengths_K, [x @ basis_DK for x in tests]


# ---- records


def _majority(data: ProbeSet) -> float | None:
    share = float(data.unsafe.mean()) if data.n else 0.5
    return max(share, 1 - share) if data.n else None


def _layer_record(run: ProbeRun, probes: LayerProbes) -> dict[str, Any]:
    text, images = run.sets["text"], run.sets["vision_language"]
    said = {
        "text": (text, probes.predicted.get("text")),
        "vision_language": (images, probes.predicted.get("vision_language")),
        "transfer": (images, probes.transfer),
    }
    return {
        "layer": probes.layer,
        **{name: _accuracy(*given).record() for name, given in said.items()},
        "text_shuffled": _control(run, probes, "text"),
        "vision_language_shuffled": _control(run, probes, "vision_language"),
        "confusion": {name: _confusion(*given) for name, given in said.items()},
        "unsafe_as_safe": {n: _unsafe_as_safe(*said[n]).record() for n in ("text", "transfer")},
        "gap": probes.gap,
    }


def _accuracy(data: ProbeSet, predicted: Bools | None) -> ClusteredRate:
    """Balanced accuracy."""
    if predicted is None:
        return ClusteredRate(None, None, None, 0)
    hits = predicted == data.unsafe
    return clustered_rate(hits.tolist(), data.groups, data.unsafe.tolist())


def _control(run: ProbeRun, probes: LayerProbes, name: ProbeModality) -> dict[str, Any]:
    """Mean over permutations of balanced accuracy and of its limits."""
    data = run.sets[name]
    rates = [
        clustered_rate((said == labels).tolist(), data.groups, labels.tolist())
        for said, labels in zip(
            probes.shuffled.get(name, ()), run.permuted.get(name, ()), strict=False
        )
    ]
    values = {
        key: [value for rate in rates if (value := rate.record()[key]) is not None]
        for key in ("rate", "low", "high")
    }
    means = {key: float(np.mean(found)) if found else None for key, found in values.items()}
    return {**means, "n": data.n if rates else 0}


def _confusion(data: ProbeSet, predicted: Bools | None) -> dict[str, int] | None:
    if predicted is None:
        return None
    return {
        f"{true}_as_{said}": int(((data.unsafe == is_unsafe) & (predicted == says_unsafe)).sum())
        for true, is_unsafe in (("unsafe", True), ("safe", False))
        for said, says_unsafe in (("unsafe", True), ("safe", False))
    }


def _unsafe_as_safe(data: ProbeSet, predicted: Bools | None) -> ClusteredRate:
    if predicted is None:
        return ClusteredRate(None, None, None, 0)
    rows = np.flatnonzero(data.unsafe)
    return clustered_rate((~predicted[rows]).tolist(), [data.groups[row] for row in rows.tolist()])
