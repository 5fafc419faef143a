"""Ablations of ShiftDC as data: which settings are varied, and the arms that come of it.

`Ablation` lists values, `expand` makes one cell of every combination asked for, `build_arms` fits
the cells: each way of captioning is recorded once, and each direction estimated once.

Reference: Zou et al. (NeurIPS 2025, arXiv 2502.13095), ablations of layers, number of samples,
and captions.

Shapes: N = items, D = width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from vlmend.errors import ConfigError, DataError
from vlmend.evals.arms import BASE, Arm
from vlmend.evals.captions import CaptionCache
from vlmend.evals.groups import group_of
from vlmend.evals.text_branch import record_text_branch
from vlmend.models.vlm import Vlm
from vlmend.repairs.shiftdc.repair import ShiftDC
from vlmend.repairs.shiftdc.settings import ShiftDCSettings, name_shiftdc
from vlmend.repairs.shiftdc.sources import CaptionSource, GivenCaptions
from vlmend.types import Sample

_LEAST_SAMPLES = 2
"""One item of either label."""

_NO_WORDS = (
    " Without captions, items whose harm is in the picture alone read alike: leave the caption "
    "source 'none' out, or fit on items whose text names the harm."
)


@dataclass(frozen=True)
class AblationCell:
    """One arm of an ablation.

    Attributes:
        settings: Settings of the repair.
        num_samples: Items that its direction is fitted on, of both labels together; None for all.

    Raises:
        ConfigError: Fewer than two items.
    """

    settings: ShiftDCSettings = field(default_factory=ShiftDCSettings)
    num_samples: int | None = None

    def __post_init__(self) -> None:
        if self.num_samples is not None and self.num_samples < _LEAST_SAMPLES:
            raise ConfigError(
                f"a direction from {self.num_samples} item(s) was asked for. Allowed: "
                f">= {_LEAST_SAMPLES}, one of either label, or all."
            )

    @property
    def name(self) -> str:
        """What differs from the published method, e.g. "shiftdc(layers=2-5, samples=8)"."""
        if self.num_samples is None:
            return name_shiftdc(self.settings)
        return name_shiftdc(self.settings, samples=self.num_samples)


@dataclass(frozen=True)
class Ablation:
    """What is varied. A factor without values stays as it is in the centre.

    Attributes:
        centre: The cell that all others are compared with.
        layers: Sets of decoder layers; None for the default, the upper half.
        estimators: Names of estimators, each of rank 1; "subspace" comes with `ranks`.
        ranks: Ranks of the estimator "subspace".
        num_samples: Numbers of items to fit on; None for all.
        caption_sources: "self", "none", "given".
        caption_tokens: Length limits of self-captions.
        modes: "online", "offline".
        strengths: Shares of the projection removed.
        cross: Every combination, instead of one factor at a time.

    Raises:
        ConfigError: "subspace" without ranks.
    """

    centre: AblationCell = field(default_factory=AblationCell)
    layers: tuple[tuple[int, ...] | None, ...] = ()
    estimators: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    num_samples: tuple[int | None, ...] = ()
    caption_sources: tuple[CaptionSource, ...] = ()
    caption_tokens: tuple[int, ...] = ()
    modes: tuple[Literal["online", "offline"], ...] = ()
    strengths: tuple[float, ...] = ()
    cross: bool = False

    def __post_init__(self) -> None:
        if "subspace" in self.estimators and not self.ranks:
            raise ConfigError(
                "the estimator 'subspace' is varied without ranks; of rank 1 it is the difference "
                "in means. Name ranks, e.g. 2 and 3."
            )


def expand(ablation: Ablation) -> list[AblationCell]:
    """The cells of an ablation, each once: the centre first, then in the order of the factors.

    Raises:
        ConfigError: A value is out of range, or two that do not go together.
        UnknownNameError: No such estimator.
    """
    factors = _factors(ablation)
    if ablation.cross:
        centre: dict[str, Any] = {}
        grid = product(*(values or [centre] for values in factors))
        changes = [{k: v for part in parts for k, v in part.items()} for parts in grid]
    else:
        changes = [change for values in factors for change in values]
    cells = [ablation.centre, *(_changed(ablation.centre, change) for change in changes)]
    return list(dict.fromkeys(cells))


def _factors(ablation: Ablation) -> list[list[dict[str, Any]]]:
    """For every factor the changes that it makes to the centre.

    Estimator and rank are one factor, because a rank belongs to "subspace" alone; so are source
    and length of captions, because only the model's own have a length to set.
    """
    estimators = [
        {"estimator": name, "rank": 1} for name in ablation.estimators if name != "subspace"
    ]
    estimators += [{"estimator": "subspace", "rank": rank} for rank in ablation.ranks]
    captions = [{"caption_source": source} for source in ablation.caption_sources]
    captions += [{"caption_source": "self", "caption_tokens": n} for n in ablation.caption_tokens]
    return [
        [{"layers": layers} for layers in ablation.layers],
        estimators,
        [{"num_samples": n} for n in ablation.num_samples],
        captions,
        [{"mode": mode} for mode in ablation.modes],
        [{"strength": strength} for strength in ablation.strengths],
    ]


def _changed(centre: AblationCell, change: Mapping[str, Any]) -> AblationCell:
    settings = {key: value for key, value in change.items() if key != "num_samples"}
    num_samples = change.get("num_samples", centre.num_samples)
    return AblationCell(replace(centre.settings, **settings), cast("int | None", num_samples))


def build_arms(
    vlm: Vlm,
    cells: Sequence[AblationCell],
    fit_samples: Sequence[Sample],
    captions: CaptionCache,
    *,
    measured: Sequence[Sample] = (),
    seed: int = 0,
) -> tuple[Arm, ...]:
    """Fit every cell.

    Args:
        vlm: The model, without repairs applied.
        cells: From `expand`.
        fit_samples: Harmful and benign items to fit on.
        captions: Where self-captions are kept.
        measured: Items that will be measured; read for the caption source "given" only.
        seed: Of the choice of samples.

    Returns:
        The base arm, then one arm a cell in their order.

    Raises:
        ConfigError: Two cells of one name, or as `ShiftDC.fit`.
        DataError: Fewer items than asked for, items without a given caption, or a cell whose
            direction cannot be estimated; names it.
    """
    names = [cell.name for cell in cells]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"{sorted(twice)[0]!r} is there twice. Name every cell once.")
    repairs = {cell.name: ShiftDC(cell.settings, captions) for cell in cells}
    rows = {cell.name: choose_samples(fit_samples, cell.num_samples, seed=seed) for cell in cells}
    given: GivenCaptions | None = None
    for repair in repairs.values():
        repair.check(vlm, fit_samples)
        if repair.settings.caption_source == "given":
            given = given or GivenCaptions([*fit_samples, *measured])
            repair.captions = given
    recorded: dict[tuple[str, int], dict[int, Tensor]] = {}
    fitted: dict[tuple[Any, ...], ShiftDC] = {}
    for cell in cells:
        _fit_cell(vlm, repairs[cell.name], fit_samples, rows[cell.name], (recorded, fitted))
    return (BASE, *(Arm(cell.name, (repairs[cell.name],)) for cell in cells))


_Known = tuple[dict[tuple[str, int], dict[int, Tensor]], dict[tuple[Any, ...], ShiftDC]]
"""Activations by (caption source, length), and fitted repairs by all that decides a direction."""


def _fit_cell(
    vlm: Vlm, repair: ShiftDC, samples: Sequence[Sample], rows: Sequence[int], known: _Known
) -> None:
    """Fit a repair, from what earlier cells have recorded or fitted where that is the same."""
    recorded, fitted = known
    settings = repair.settings
    # The length limit matters to the model's own captions alone.
    words = (
        settings.caption_source,
        settings.caption_tokens if settings.caption_source == "self" else 0,
    )
    key = (*words, settings.estimator, settings.rank, tuple(rows))
    if key in fitted:
        repair.directions_ = dict(fitted[key].directions_)
        repair.facts_ = dict(fitted[key].facts_)
        return
    if words not in recorded:
        conversations = repair.prepare([sample.messages for sample in samples])
        recorded[words] = record_text_branch(
            vlm, conversations, repair.captions, settings.caption_tokens
        )
    chosen = torch.tensor(rows)
    try:
        repair.fit_recorded(
            vlm,
            [samples[row] for row in rows],
            {layer: x_ND[chosen] for layer, x_ND in recorded[words].items()},
        )
    except DataError as error:
        hint = _NO_WORDS if settings.caption_source == "none" else ""
        raise DataError(
            f"the arm {repair.name!r} on {len(rows)} items cannot be fitted: {error}{hint}"
        ) from error
    fitted[key] = repair


def choose_samples(
    samples: Sequence[Sample], num_samples: int | None, *, seed: int = 0
) -> list[int]:
    """Choose items to fit on, half of either label, from as many groups as possible.

    Of each label the groups (`evals.groups.group_of`) take turns in an order that the seed
    decides, so that few items are not all about one thing; and a larger choice holds every
    smaller one of the same seed.

    Args:
        samples: Items with ids of their own.
        num_samples: How many of both labels together; harmful ones get the odd one. None for all.
        seed: Of the order.

    Returns:
        Their places among the samples, ascending.

    Raises:
        DataError: There are not so many of a label.
        ConfigError: A negative seed.
    """
    if seed < 0:
        raise ConfigError(f"seed={seed} is out of range. Allowed: >= 0.")
    if num_samples is None:
        return list(range(len(samples)))
    wanted = {"harmful": num_samples - num_samples // 2, "benign": num_samples // 2}
    chosen: list[int] = []
    for label, count in wanted.items():
        places = [row for row, sample in enumerate(samples) if sample.label == label]
        if len(places) < count:
            raise DataError(
                f"a direction from {num_samples} items needs {count} {label} ones; there are "
                f"{len(places)}. Ask for fewer, or name more suites to fit on."
            )
        chosen += _in_turns(samples, places, seed)[:count]
    return sorted(chosen)


def _in_turns(samples: Sequence[Sample], places: Sequence[int], seed: int) -> list[int]:
    random = np.random.default_rng(seed)
    groups: dict[str, list[int]] = {}
    for row in random.permutation(places).tolist():
        groups.setdefault(group_of(samples[row]), []).append(row)
    turns = max(map(len, groups.values()), default=0)
    return [rows[turn] for turn in range(turns) for rows in groups.values() if turn < len(rows)]
