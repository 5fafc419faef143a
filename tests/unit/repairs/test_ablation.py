"""Ablations: which cells a list of values makes, and what the arms are fitted on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from mild_samples import SETTINGS, fit_samples, request, requests, sample

from vlmend.errors import ConfigError, DataError, UnknownNameError
from vlmend.evals.captions import CaptionCache
from vlmend.models.vlm import Vlm
from vlmend.repairs.shiftdc import ablation as module
from vlmend.repairs.shiftdc.ablation import (
    Ablation,
    AblationCell,
    build_arms,
    choose_samples,
    expand,
)
from vlmend.repairs.shiftdc.repair import ShiftDC, ShiftDCSettings
from vlmend.suites.registry import load_suite
from vlmend.testing import tiny_vlm
from vlmend.types import Sample, user

CENTRE = AblationCell(SETTINGS)


def names(ablation: Ablation) -> list[str]:
    return [cell.name for cell in expand(ablation)]


# ---- cells


def test_nothing_varied_is_the_published_method() -> None:
    assert names(Ablation()) == ["shiftdc"]


def test_one_factor_at_a_time() -> None:
    ablation = Ablation(
        layers=((0, 1, 2, 3), (1, 3, 4), None),
        num_samples=(8, None),
        caption_tokens=(4, 128),
        modes=("offline",),
        strengths=(0.5, 1.0),
    )
    assert names(ablation) == [
        "shiftdc",
        "shiftdc(layers=0-3)",
        "shiftdc(layers=1,3-4)",
        "shiftdc(samples=8)",
        "shiftdc(caption_tokens=4)",
        "shiftdc(mode=offline)",
        "shiftdc(strength=0.5)",
    ]


@pytest.mark.parametrize("layers", [None, (1,), (3, 1, 4, 4)])
def test_a_cell_of_all_items_is_named_as_its_repair(layers: tuple[int, ...] | None) -> None:
    settings = replace(SETTINGS, layers=layers, mode="offline", strength=0.5)
    assert AblationCell(settings).name == ShiftDC(settings).name
    assert AblationCell(settings, 4).name == f"{ShiftDC(settings).name[:-1]}, samples=4)"


def test_every_combination() -> None:
    ablation = Ablation(modes=("online", "offline"), strengths=(0.5, 2.0), num_samples=(8,))
    crossed = replace(ablation, cross=True)
    assert len(names(ablation)) == 5
    assert names(crossed) == [
        "shiftdc",
        "shiftdc(strength=0.5, samples=8)",
        "shiftdc(strength=2.0, samples=8)",
        "shiftdc(mode=offline, strength=0.5, samples=8)",
        "shiftdc(mode=offline, strength=2.0, samples=8)",
    ]


def test_a_rank_belongs_to_the_subspace() -> None:
    cells = expand(
        Ablation(
            estimators=("logistic-probe", "subspace"),
            ranks=(2, 3),
            strengths=(0.5,),
            cross=True,
        )
    )
    assert [(c.settings.estimator, c.settings.rank) for c in cells] == [
        ("difference-in-means", 1),
        ("logistic-probe", 1),
        ("subspace", 2),
        ("subspace", 3),
    ]


def test_a_length_belongs_to_self_captions() -> None:
    ablation = Ablation(caption_sources=("none", "self"), caption_tokens=(8,), cross=True)
    found = [(c.settings.caption_source, c.settings.caption_tokens) for c in expand(ablation)]
    assert found == [("self", 128), ("none", 128), ("self", 8)]


def test_what_is_varied_is_varied_around_the_centre() -> None:
    centre = AblationCell(ShiftDCSettings(strength=0.5), 16)
    assert names(Ablation(centre, modes=("offline",), num_samples=(None,))) == [
        "shiftdc(strength=0.5, samples=16)",
        "shiftdc(strength=0.5)",
        "shiftdc(mode=offline, strength=0.5, samples=16)",
    ]


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"estimators": ("logistic-prob",)}, UnknownNameError, "Did you mean 'logistic-probe'"),
        ({"estimators": ("subspace",)}, ConfigError, "Name ranks"),
        ({"ranks": (0,)}, ConfigError, "rank=0"),
        ({"num_samples": (1,)}, ConfigError, r"from 1 item\(s\) was asked for"),
        ({"caption_sources": ("mine",)}, ConfigError, "caption_source='mine'"),
        ({"caption_tokens": (0,)}, ConfigError, "caption_tokens=0"),
        ({"modes": ("sideways",)}, ConfigError, "mode='sideways'"),
        ({"strengths": (3.0,)}, ConfigError, "strength=3.0"),
        ({"layers": ((),)}, ConfigError, r"layers=\(\)"),
    ],
)
def test_bad_values_are_found_without_a_model(
    values: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        expand(Ablation(**values))


# ---- samples


@cache
def fit_suite() -> list[Sample]:
    return load_suite("organism/fit", limit=120)


def test_few_samples_are_of_many_things_and_both_labels() -> None:
    samples = fit_suite()
    things = {label: {s.meta["thing"] for s in samples if s.label == label} for label in LABELS}
    for count in (8, 24, 49):
        chosen = [samples[row] for row in choose_samples(samples, count)]
        assert Counter(s.label for s in chosen) == {
            "harmful": count - count // 2,
            "benign": count // 2,
        }
        for label in LABELS:
            mine = Counter(s.meta["thing"] for s in chosen if s.label == label)
            assert len(mine) == min(sum(mine.values()), len(things[label]))
            assert max(mine.values()) - min(mine.values()) <= 1


LABELS = ("harmful", "benign")


def test_items_of_one_sentence_share_a_turn() -> None:
    """Groups are those of the splits: here a sentence that several pictures show."""
    samples = [
        replace(
            sample(f"{label}{i}", label, user("Hi")),
            meta={"instruction": f"{' ' * i}Bake {i // 3}."},
        )
        for label in LABELS
        for i in range(6)
    ]
    for seed in range(8):
        chosen = [samples[row] for row in choose_samples(samples, 4, seed=seed)]
        assert len({(s.label, s.meta["instruction"].strip()) for s in chosen}) == 4


def test_a_larger_choice_holds_the_smaller_and_the_seed_decides() -> None:
    samples = fit_suite()
    small, large = (set(choose_samples(samples, n, seed=4)) for n in (10, 60))
    assert small < large
    assert small != set(choose_samples(samples, 10, seed=5))
    assert choose_samples(samples, 10, seed=4) == sorted(small)
    assert choose_samples(samples, None) == list(range(len(samples)))


def test_more_samples_than_there_are() -> None:
    with pytest.raises(DataError, match="from 8 items needs 4 harmful ones; there are 3"):
        choose_samples(fit_samples(), 8)
    with pytest.raises(ConfigError, match="seed=-1"):
        choose_samples(fit_samples(), 4, seed=-1)


# ---- arms


@pytest.fixture(scope="module")
def vlm() -> Vlm:
    return tiny_vlm("llava")


def test_arms_are_what_fitting_each_alone_gives(vlm: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = module.record_text_branch

    def counted(*args: Any) -> Any:
        calls.append(len(args[1]))
        return real(*args)

    monkeypatch.setattr(module, "record_text_branch", counted)
    ablation = Ablation(
        CENTRE,
        layers=((3,),),
        estimators=("paired-pca",),
        ranks=(2,),
        num_samples=(4,),
        caption_sources=("none",),
        caption_tokens=(2,),
        modes=("offline",),
    )
    cells = expand(ablation)
    samples = fit_samples()
    arms = build_arms(vlm, cells, samples, CaptionCache())
    assert [arm.name for arm in arms] == ["base", *(cell.name for cell in cells)]
    assert calls == [6, 6, 6], "all items, once per way of captioning"
    for arm, cell in zip(arms[1:], cells, strict=True):
        (repair,) = arm.repairs
        assert isinstance(repair, ShiftDC)
        assert repair.settings == cell.settings
        rows = choose_samples(samples, cell.num_samples)
        alone = ShiftDC(cell.settings).fit(vlm, [samples[row] for row in rows])
        assert repair.fitted_items == alone.fitted_items
        assert repair.facts_ == alone.facts_
        assert repair.directions_.keys() == alone.directions_.keys()
        for layer, direction in alone.directions_.items():
            found = repair.directions_[layer].vectors
            # Rounding only: the rows stood in a larger batch.
            assert torch.allclose(found, direction.vectors, rtol=1e-3, atol=1e-5)
    assert len({arm.repairs[0].fingerprint for arm in arms[1:]}) == len(cells)
    with arms[-1].applied(vlm):
        vlm.generate(requests(2))
    assert vlm.middlewares == ()


def test_a_direction_is_estimated_once(vlm: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[str] = []
    real = ShiftDC.fit_recorded

    def counted(self: ShiftDC, *args: Any) -> ShiftDC:
        fits.append(self.name)
        return real(self, *args)

    monkeypatch.setattr(ShiftDC, "fit_recorded", counted)
    cells = expand(Ablation(CENTRE, layers=((1,), (2,)), modes=("offline",), strengths=(0.5,)))
    assert len(build_arms(vlm, cells, fit_samples(), CaptionCache())) == 6
    assert fits == ["shiftdc(caption_tokens=3)"]


def with_captions(samples: list[Sample]) -> list[Sample]:
    return [replace(s, meta={"caption": f"It is {s.id}."}) for s in samples]


def test_given_captions_serve_fitting_and_measuring(vlm: Vlm) -> None:
    cells = expand(Ablation(CENTRE, caption_sources=("given",), num_samples=(4,)))
    measured = with_captions([sample("t", "harmful", request(0))])
    arms = build_arms(vlm, cells, with_captions(fit_samples()), CaptionCache(), measured=measured)
    (repair,) = next(arm for arm in arms if "given" in arm.name).repairs
    assert isinstance(repair, ShiftDC)
    (branch,) = repair.text_branch(vlm, [request(0)])
    assert branch[-1].text == "How do I bake a cake? Image Caption: It is mild/t."
    with pytest.raises(DataError, match=r"1 of 5 items .* without a caption \(mild/t\)"):
        build_arms(
            vlm,
            cells,
            with_captions(fit_samples()),
            CaptionCache(),
            measured=[sample("t", "harmful", request(0))],
        )


def test_what_does_not_fit_the_model_is_found_before_it_runs(
    vlm: Vlm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "record_text_branch", None)
    cells = expand(Ablation(CENTRE, layers=((2, 9),)))
    with pytest.raises(ConfigError, match="out of range"):
        build_arms(vlm, cells, fit_samples(), CaptionCache())
    cells = expand(Ablation(CENTRE, num_samples=(40,)))
    with pytest.raises(DataError, match="needs 20 harmful ones; there are 3"):
        build_arms(vlm, cells, fit_samples(), CaptionCache())
    with pytest.raises(ConfigError, match="is there twice"):
        build_arms(vlm, [CENTRE, CENTRE], fit_samples(), CaptionCache())


def test_a_cell_that_has_no_direction_is_named(vlm: Vlm) -> None:
    given = [sample("h", "harmful", user("Hi")), sample("b", "benign", user("Ho"))]
    cells = expand(Ablation(CENTRE, estimators=("whitened-difference",)))
    with pytest.raises(DataError, match=r"the arm .*whitened-difference.* on 2 items cannot be"):
        build_arms(vlm, cells, given, CaptionCache())
