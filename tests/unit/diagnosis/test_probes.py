"""Shapes: N = items, D = width."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vlmend.diagnosis.modality_gap import compare_modalities
from vlmend.diagnosis.probes import (
    LayerProbes,
    ProbeRun,
    ProbeSet,
    ProbeSettings,
    prepare_features,
    run_probes,
)
from vlmend.errors import ConfigError, DataError

SETTINGS = ProbeSettings(permutations=3)


def probe_set(
    seed: int = 0,
    *,
    strength: float = 0.0,
    thing_strength: float = 0.0,
    offset: float = 0.0,
    width: int = 8,
    things: int = 20,
    per_thing: int = 6,
    layers: tuple[int, ...] = (0,),
) -> ProbeSet:
    """Even things are unsafe; column 0 tells it, and every thing has a place of its own."""
    generator = np.random.default_rng(seed)
    thing_N = np.repeat(np.arange(things), per_thing)
    unsafe_N = thing_N % 2 == 0
    places = np.random.default_rng(99).normal(size=(things, width))
    acts: dict[int, np.ndarray] = {}
    for layer in layers:
        x_ND = generator.normal(size=(len(thing_N), width)) + thing_strength * places[thing_N]
        x_ND[:, 0] += strength * np.where(unsafe_N, 1, -1) + offset
        acts[layer] = x_ND.astype(np.float32)
    return ProbeSet(acts, unsafe_N, [f"t{t}" for t in thing_N])


def only(record: dict[str, Any]) -> dict[str, Any]:
    (layer,) = record["by_layer"]
    return layer


def test_the_predictions_are_those_of_scikit_learn_out_of_fold() -> None:
    text = probe_set(1, strength=0.2, width=30, things=6, per_thing=10)
    run = run_probes(text, probe_set(2, strength=0.2, things=6, per_thing=10, width=30), SETTINGS)
    assert run.folds == 3
    acts_ND, groups = text.acts[0].astype(float), np.asarray(text.groups)
    # A fold is one of the unsafe things t0, t2, t4 with one of the safe t1, t3, t5: six ways.
    matching = 0
    for safe in itertools.permutations(("t1", "t3", "t5")):
        expected = np.zeros(60, dtype=bool)
        for pair in zip(("t0", "t2", "t4"), safe, strict=True):
            test = np.isin(groups, pair)
            model = make_pipeline(
                StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000)
            ).fit(acts_ND[~test], text.unsafe[~test])
            expected[test] = model.predict(acts_ND[test])
        matching += bool((expected == run.layers[0].predicted["text"]).all())
    assert matching == 1


def test_balanced_accuracy_and_confusion_by_hand() -> None:
    text = probe_set(1, strength=0.6)
    run = run_probes(text, probe_set(2, strength=0.3), SETTINGS)
    record = only(run.record())
    predicted, images = run.layers[0].predicted, run.sets["vision_language"]
    for name, data, said in (
        ("text", text, predicted["text"]),
        ("vision_language", images, predicted["vision_language"]),
        ("transfer", images, run.layers[0].transfer),
    ):
        assert said is not None
        counts = record["confusion"][name]
        assert counts == {
            "unsafe_as_unsafe": np.sum(data.unsafe & said),
            "unsafe_as_safe": np.sum(data.unsafe & ~said),
            "safe_as_safe": np.sum(~data.unsafe & ~said),
            "safe_as_unsafe": np.sum(~data.unsafe & said),
        }
        recall = counts["unsafe_as_unsafe"] / 60, counts["safe_as_safe"] / 60
        assert record[name]["rate"] == pytest.approx(np.mean(recall))
        assert record[name]["n"] == 120
        assert record[name]["low"] < record[name]["rate"] < record[name]["high"]
    missed = record["unsafe_as_safe"]["transfer"]
    assert missed["rate"] == pytest.approx(record["confusion"]["transfer"]["unsafe_as_safe"] / 60)
    assert missed["n"] == 60
    assert record["gap"] is None


def test_a_thing_is_never_on_both_sides() -> None:
    """Things are easy to recognise and say nothing of safety: any leak would be near 1."""
    kinds = {"thing_strength": 4.0, "width": 64}
    record = only(run_probes(probe_set(1, **kinds), probe_set(2, **kinds), SETTINGS).record())
    for name in ("text", "vision_language", "transfer", "text_shuffled"):
        assert record[name]["rate"] < 0.75, name
    leaked = replace(probe_set(1, **kinds), groups=[str(i) for i in range(120)])
    leak = only(run_probes(leaked, replace(probe_set(2, **kinds), groups=leaked.groups)).record())
    assert leak["text"]["rate"] > 0.95


def test_the_control_keeps_things_together_and_is_chance() -> None:
    run = run_probes(
        probe_set(1, strength=2.0, things=40), probe_set(2, strength=2.0, things=40), SETTINGS
    )
    record = only(run.record())
    assert record["text"]["rate"] > 0.95
    assert 0.3 < record["text_shuffled"]["rate"] < 0.7
    assert record["text_shuffled"]["low"] < 0.5 < record["text_shuffled"]["high"]
    for labels in run.permuted["text"]:
        per_thing = labels.reshape(40, 6)
        assert (per_thing == per_thing[:, :1]).all()
        assert labels.sum() == 120
        assert (labels != run.sets["text"].unsafe).any()
    assert len(run.permuted["text"]) == 3


def test_things_of_both_labels_permute_inside() -> None:
    text = probe_set(1, strength=1.0)
    unsafe = np.tile([True, False, False], 40)
    mixed = replace(text, unsafe=unsafe)
    run = run_probes(mixed, mixed, SETTINGS)
    assert run.gap is None
    for labels in run.permuted["text"]:
        assert (labels.reshape(20, 6).sum(axis=1) == 2).all()


def test_transfer_sees_the_shift_that_the_own_probe_does_not() -> None:
    """Pictures push all towards safe: their own probe is right, the text probe calls all safe."""
    text = probe_set(1, strength=2.0)
    images = probe_set(2, strength=2.0, offset=-6.0)
    record = only(run_probes(text, images, SETTINGS).record())
    assert record["vision_language"]["rate"] > 0.9
    assert record["unsafe_as_safe"]["transfer"]["rate"] > 0.9
    assert record["unsafe_as_safe"]["text"]["rate"] < 0.05
    assert record["transfer"]["rate"] == pytest.approx(0.5, abs=0.06)


def test_a_rare_class_weighs_as_much() -> None:
    """A probe that ignores its input has 0.5, not the share of the larger class."""
    text = probe_set(1, things=40, per_thing=3)
    rare = np.repeat(np.arange(40) % 8 == 0, 3)
    text = replace(text, unsafe=rare)
    run = run_probes(text, text, SETTINGS)
    record = run.record()
    assert record["majority"]["text"] == pytest.approx(35 / 40)
    assert only(record)["text"]["low"] < 0.5 < only(record)["text"]["high"]
    assert only(record)["text"]["rate"] < 0.7


@pytest.mark.parametrize("width", [5, 200])
def test_the_rotation_changes_no_decision(width: int) -> None:
    generator = np.random.default_rng(0)
    train, test = generator.normal(size=(40, width)), generator.normal(size=(30, width))
    train[:, 0] = 3.0  # a constant feature
    train[1] = train[0]  # an item given twice
    labels = generator.random(40) < 0.5
    train[labels] += 0.3
    scaler = StandardScaler().fit(train)
    model = LogisticRegression(C=0.1, class_weight="balanced", tol=1e-10, max_iter=5000)
    plain = model.fit(scaler.transform(train), labels).decision_function(scaler.transform(test))
    kept, (tested, empty) = prepare_features(train, [test, np.zeros((0, width))])
    assert kept.shape[1] <= 40
    assert len(empty) == 0
    assert model.fit(kept, labels).decision_function(tested) == pytest.approx(plain, abs=1e-5)


def test_same_seed_same_record_and_json() -> None:
    sets = probe_set(1, strength=0.5), probe_set(2, strength=0.5)
    one, two = (run_probes(*sets, SETTINGS).record() for _ in range(2))
    assert json.dumps(one, allow_nan=False) == json.dumps(two, allow_nan=False)
    assert (one["folds"], one["repeats"], one["permutations"]) == (5, 1, 3)


# ---- gaps


def test_a_layer_that_text_skips() -> None:
    text = probe_set(1, strength=1.0, layers=(0, 2))
    images = probe_set(2, strength=1.0, layers=(0, 1, 2))
    record = run_probes(text, images, SETTINGS).record()
    assert [row["layer"] for row in record["by_layer"]] == [0, 1, 2]
    skipped = record["by_layer"][1]
    assert skipped["gap"] == "layer 1 does not run on text input"
    assert skipped["text"] == {"rate": None, "low": None, "high": None, "n": 0}
    assert skipped["transfer"]["rate"] is skipped["text_shuffled"]["rate"] is None
    assert skipped["confusion"]["transfer"] is None
    assert skipped["vision_language"]["rate"] > 0.7
    assert record["by_layer"][0]["gap"] is None


@pytest.mark.parametrize(
    ("value", "reason"), [(1.5, "same activations for every"), (np.nan, "not finite")]
)
@pytest.mark.parametrize("width", [8, 300])
def test_activations_without_information(value: float, reason: str, width: int) -> None:
    text = probe_set(1, strength=1.0, width=width, layers=(0, 1))
    acts = {**text.acts, 1: np.full_like(text.acts[1], value)}
    images = probe_set(2, width=width, layers=(0, 1))
    record = run_probes(replace(text, acts=acts), images, SETTINGS).record()
    assert reason in record["by_layer"][1]["gap"]
    assert record["by_layer"][1]["text"]["rate"] is None
    json.dumps(record, allow_nan=False)


def test_features_that_do_not_vary_in_training_are_no_crash() -> None:
    """All the variation lies in one thing, so that its fold trains on constants."""
    text = probe_set(1, width=300, things=4, per_thing=2)
    x_ND = np.ones_like(text.acts[0])
    x_ND[:2] = text.acts[0][:2]
    record = only(run_probes(replace(text, acts={0: x_ND}), text, SETTINGS).record())
    assert record["text"]["rate"] is not None
    assert prepare_features(np.ones((3, 9)), [np.ones((2, 9))])[0].shape == (3, 1)


def test_one_class() -> None:
    text = probe_set(1, strength=1.0)
    all_unsafe = replace(text, unsafe=np.ones(120, dtype=bool))
    assert run_probes(all_unsafe, all_unsafe).record() == {
        "gap": "no probe: all text items are unsafe; all vision-language items are unsafe."
    }
    record = only(run_probes(text, all_unsafe, SETTINGS).record())
    assert record["gap"] == "all vision-language items are unsafe"
    assert record["text"]["rate"] > 0.7
    assert record["transfer"]["rate"] is None  # no safe item to weigh against
    assert record["unsafe_as_safe"]["transfer"]["n"] == 120


def test_two_samples_and_no_pictures_at_all() -> None:
    def first(data: ProbeSet, n: int) -> ProbeSet:
        acts = {layer: x[:n] for layer, x in data.acts.items()}
        return ProbeSet(acts, data.unsafe[:n], data.groups[:n])

    text = probe_set(1, strength=1.0)
    two = first(text, 2)
    assert "2 text items are too few" in run_probes(two, two).record()["gap"]
    record = only(run_probes(text, first(text, 0), SETTINGS).record())
    assert "0 vision-language items are too few" in record["gap"]
    assert record["transfer"]["rate"] is record["vision_language"]["rate"] is None
    assert record["text"]["rate"] > 0.7


def test_few_groups_mean_few_folds() -> None:
    small = probe_set(1, strength=1.0, things=4)
    assert run_probes(small, small, SETTINGS).folds == 2
    smaller = probe_set(1, strength=1.0, things=3)
    assert "single group" in run_probes(smaller, smaller, SETTINGS).record()["gap"]


def test_no_convergence_is_a_gap() -> None:
    settings = ProbeSettings(max_iterations=1, permutations=1)
    data = probe_set(1, strength=0.3)
    record = only(run_probes(data, data, settings).record())
    assert "a probe on text did not converge within 1 iterations" in record["gap"]
    assert record["text"]["rate"] is None


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="folds >= 2"):
        ProbeSettings(folds=1)
    with pytest.raises(DataError, match=r"layers \[3\]"):
        ProbeSet({3: np.zeros((2, 4))}, np.array([True]), ["a"])


# ---- text against vision-language


def test_the_difference_is_the_difference_of_the_accuracies() -> None:
    layers = (0, 1, 2, 4)
    text = probe_set(1, strength=0.9, layers=layers)
    images = probe_set(2, strength=0.1, layers=layers)
    run = run_probes(text, images, SETTINGS)
    rows = run.record()["by_layer"]
    compared = compare_modalities(run)
    differences = [row["text"]["rate"] - row["vision_language"]["rate"] for row in rows]
    assert [row["layer"] for row in compared["by_layer"]] == list(layers)
    found = [row["difference"]["value"] for row in compared["by_layer"]]
    assert found == pytest.approx(differences)
    assert compared["middle"] == compared["by_layer"][2]
    assert compared["mean"]["difference"]["value"] == pytest.approx(np.mean(differences))
    assert compared["mean"]["difference"]["low"] > 0
    assert compared["mean"]["difference"]["n"] == 20


def fixed_run(text_hits: np.ndarray, image_hits: np.ndarray, groups: list[str]) -> ProbeRun:
    unsafe = np.arange(len(groups)) % 2 == 0
    data = ProbeSet({}, unsafe, groups)
    said = {"text": text_hits == unsafe, "vision_language": image_hits == unsafe}
    layer = LayerProbes(0, said, None, {}, None)  # pyright: ignore[reportArgumentType]
    return ProbeRun({"text": data, "vision_language": data}, 2, SETTINGS, {}, (layer,))


def test_the_interval_is_paired_over_groups() -> None:
    """Same errors in both modalities: no difference in any resample of whole groups."""
    generator = np.random.default_rng(0)
    groups = [f"g{i // 8}" for i in range(240)]
    text = generator.random(240) < np.repeat(generator.random(30), 8)
    images = text.copy()
    images[:40] &= generator.random(40) < 0.5
    middle = compare_modalities(fixed_run(text, images, groups))["middle"]["difference"]
    values = []
    for _ in range(1500):
        rows = np.concatenate([np.arange(8) + 8 * g for g in generator.integers(0, 30, 30)])
        shares = [
            np.mean([hits[rows][rows % 2 == parity].mean() for parity in (0, 1)])
            for hits in (text, images)
        ]
        values.append(shares[0] - shares[1])
    low, high = np.quantile(values, [0.025, 0.975])
    assert middle["low"] == pytest.approx(low, abs=0.01)
    assert middle["high"] == pytest.approx(high, abs=0.01)


def test_no_error_at_all_still_has_a_width() -> None:
    hits = np.ones(80, dtype=bool)
    compared = compare_modalities(fixed_run(hits, hits, [f"g{i // 4}" for i in range(80)]))
    for found in (compared["middle"]["difference"], compared["mean"]["difference"]):
        assert found["value"] == 0
        assert -0.25 < found["low"] < -0.1
        assert found["high"] == pytest.approx(-found["low"])


def test_what_cannot_be_compared() -> None:
    text = probe_set(1, strength=1.0)
    unsafe = replace(text, unsafe=np.ones(120, dtype=bool))
    gap = compare_modalities(run_probes(text, unsafe, SETTINGS))["gap"]
    assert gap == "the modalities cannot be compared: no layer has a probe in both modalities."
    assert "all text items" in compare_modalities(run_probes(unsafe, unsafe))["gap"]
    with pytest.raises(ConfigError, match="at least 1"):
        compare_modalities(run_probes(text, text, SETTINGS), num_resamples=0)
