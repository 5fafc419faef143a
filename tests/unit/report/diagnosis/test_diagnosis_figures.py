"""The figures: sentences recomputed by hand, and plots that hold the numbers they claim."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import pytest
from sample_diagnosis import rate, sample_diagnosis, stat

from vlmend.report.diagnosis import directions, embeddings, exits, maps, probes, shift
from vlmend.report.diagnosis.draw import clip, density, draw
from vlmend.report.diagnosis.figure import Heat, Lines, Scatter, Table, Violins
from vlmend.report.diagnosis.read import read_diagnosis
from vlmend.report.diagnosis.records import Value
from vlmend.report.diagnosis.words import apart, by_gap, p_cell, ranges, rate_words, stat_words


def read(**changes: Any):
    return read_diagnosis(sample_diagnosis() | changes)


def test_probe_sentence_names_the_best_text_layer_and_counts_layers_apart() -> None:
    diagnosis = sample_diagnosis()
    rows = diagnosis["probes"]["by_layer"]
    figure = probes.build_curves(read_diagnosis(diagnosis))
    best = max(rows, key=lambda row: row["text"]["rate"])
    count = sum(row["text"]["low"] > row["vision_language"]["high"] for row in rows)
    assert f"best at layer {best['layer']}: {round(100 * best['text']['rate'])}" in figure.shows
    assert f"apart at {count} of 6 layers" in figure.shows
    assert 0 < count < 6
    assert [plot.title for plot in figure.plots] == [
        "Probe accuracy",
        "Control: shuffled labels",
        "Unsafe called safe",
    ]
    accuracy = figure.plots[0]
    assert isinstance(accuracy, Lines)
    assert list(accuracy.series[0].ys) == [row["text"]["rate"] for row in rows]


def test_probe_without_transfer_leaves_the_line_out() -> None:
    diagnosis = sample_diagnosis()
    for row in diagnosis["probes"]["by_layer"]:
        row["transfer"] = None
    figure = probes.build_curves(read_diagnosis(diagnosis))
    assert isinstance(figure.plots[0], Lines)
    assert [item.style for item in figure.plots[0].series] == ["text", "vl"]
    assert "text-trained" not in figure.shows


def test_confusion_has_a_slide_per_layer_that_has_counts() -> None:
    diagnosis = sample_diagnosis()
    diagnosis["probes"]["by_layer"][0]["confusion"] = None
    diagnosis["probes"]["by_layer"][0]["gap"] = "only one class"
    figure = probes.build_confusion(read_diagnosis(diagnosis))
    assert [slide.layer for slide in figure.slides] == [1, 2, 3, 4, 5]
    share = diagnosis["probes"]["by_layer"][4]["unsafe_as_safe"]["transfer"]["rate"]
    assert f"{round(100 * share)}\N{NARROW NO-BREAK SPACE}%" in figure.slides[3].shows
    assert probes.build_curves(read_diagnosis(diagnosis)).gaps == ("Layer 0: only one class",)


@pytest.mark.parametrize("flip", [False, True])
def test_share_on_the_safe_side_does_not_hang_on_the_line_direction(flip: bool) -> None:
    diagnosis = sample_diagnosis()
    row = diagnosis["maps"][4]
    (x1, y1), (x2, y2) = row["boundary"]
    if flip:
        row["boundary"] = [[x2, y2], [x1, y1]]
    slope = (y2 - y1) / (x2 - x1)
    # The safe text points lie above the line, so above is the safe side.
    above = [y > y1 + slope * (x - x1) for x, y, index in row["points"] if index == 3]
    records = read_diagnosis(diagnosis)
    share = maps.share_on_safe_side(records.maps.items[4], records.sets.items)
    assert share == pytest.approx(np.mean(above))
    assert 0.5 < np.mean(above) < 1


def test_maps_need_the_sets_to_be_named() -> None:
    figure = maps.build_maps(read(sets={"gap": "none"}))
    assert figure.empty
    assert figure.gaps == ("the sets that the points belong to were not recorded",)


def test_map_gaps_are_said_beside_the_other_maps() -> None:
    diagnosis = sample_diagnosis()
    diagnosis["maps"][6].update(points=[], boundary=None, gap="two samples")
    figure = maps.build_maps(read_diagnosis(diagnosis))
    assert [len(slide.plots) for slide in figure.slides] == [1, 2, 2, 2, 2, 2]
    assert figure.gaps == ("Layer 0: t-SNE: two samples",)


def test_violins_share_a_panel_unless_a_group_repeats() -> None:
    diagnosis = sample_diagnosis()
    figure = shift.build_violins(read_diagnosis(diagnosis))
    slide = figure.slides[2]
    assert len(slide.plots) == 1
    plot = slide.plots[0]
    assert isinstance(plot, Violins)
    assert [group.label for group in plot.groups] == [
        "complied",
        "refused",
        "benign",
        "blank",
        "noise",
        "unrelated",
    ]
    median = statistics.median(diagnosis["shift"][0]["cosines"][2])
    assert f"{median:.2f} for complied (n = 88)" in slide.shows
    diagnosis["shift"].append(diagnosis["shift"][0] | {"suite": "organism/typographic"})
    again = shift.build_violins(read_diagnosis(diagnosis))
    assert [plot.title for plot in again.slides[2].plots] == [
        "organism/icon",
        "organism/benign",
        "controls",
        "organism/typographic",
    ]


def test_shift_without_single_cosines_still_has_curves() -> None:
    diagnosis = sample_diagnosis()
    for row in diagnosis["shift"]:
        del row["cosines"]
    records = read_diagnosis(diagnosis)
    assert shift.build_violins(records).gaps == ("cosines of single items were not recorded",)
    assert len(shift.build_shift_curves(records).plots) == 9


def test_separation_counts_intervals_above_chance() -> None:
    diagnosis = sample_diagnosis()
    rows = diagnosis["separation"]
    rows[5] |= {"auroc": None, "gap": "only 1 refused"}
    figure = shift.build_separation(read_diagnosis(diagnosis))
    count = sum(row["auroc"]["low"] > 0.5 for row in rows[:5])
    assert f"above 0.5 at {count} of 5 layers" in figure.shows
    assert figure.gaps == ("Layer 5: organism/icon: only 1 refused",)


def test_self_classification_compares_the_two_modalities() -> None:
    figure = directions.build_self_classification(read())
    assert "intervals apart" in figure.shows
    (table,) = figure.tables
    assert len(table.rows) == 4
    assert table.numeric == (False, False, True, True, True, True, True)


def test_estimators_name_the_least_agreeing_pair() -> None:
    diagnosis = sample_diagnosis()
    diagnosis["estimators"][7]["cosine"] = -0.4
    row = diagnosis["estimators"][7]
    figure = directions.build_estimators(read_diagnosis(diagnosis))
    words = f"between {row['first']} and {row['second']} at layer {row['layer']}"
    assert words in figure.shows
    (heat,) = figure.plots
    assert isinstance(heat, Heat)
    assert (len(heat.rows), len(heat.columns)) == (6, 6)
    assert "\N{MINUS SIGN}0.40" in str(draw(heat))


def test_stability_names_the_least_stable_of_the_largest_samples() -> None:
    figure = directions.build_stability(read())
    assert "With 80 samples the least stable is paired PCA at layer 0" in figure.shows
    assert [plot.title for plot in figure.plots] == [
        "Cosine, mean difference",
        "Cosine, logistic probe",
        "Cosine, paired PCA",
    ]


def test_stability_without_any_value_is_a_gap() -> None:
    rows = [{"layer": 0, "estimator": "mean", "n": 2, "cosine": None, "gap": "two samples"}]
    figure = directions.build_stability(read(stability=rows))
    assert figure.empty
    assert figure.gaps == ("Layer 0: mean: two samples",)


def test_exit_sentence_compares_the_extreme_with_the_default() -> None:
    diagnosis = sample_diagnosis()
    rows = diagnosis["exits"]["rows"]
    worst = max((row for row in rows if row["exit"] != 7), key=lambda row: row["asr"]["rate"])
    figure = exits.build_outcomes(read_diagnosis(diagnosis))
    assert f"at exit {worst['exit']}, intervals apart" in figure.shows
    assert "Most vulnerable while still coherent" in figure.shows
    (plot,) = figure.plots
    assert isinstance(plot, Lines)
    assert plot.axes.mark_x == 7
    assert plot.axes.shaded == tuple(row["exit"] for row in rows if not row["coherent"])
    assert plot.axes.shaded


def test_exit_withheld_is_named_and_not_drawn() -> None:
    diagnosis = sample_diagnosis()
    diagnosis["exits"]["rows"][4]["coverage"] = 0.5
    diagnosis["exits"]["most_vulnerable"] = None
    figure = exits.build_outcomes(read_diagnosis(diagnosis))
    assert "exit 4: coverage 50.0 % is below 98 %" in figure.gaps
    (plot,) = figure.plots
    assert isinstance(plot, Lines)
    assert all(item.ys[4] is None for item in plot.series)


def test_quality_states_what_was_not_measured_once() -> None:
    diagnosis = sample_diagnosis()
    figure = exits.build_quality(read_diagnosis(diagnosis))
    assert [plot.title for plot in figure.plots] == [
        "Perplexity of the answers (log scale)",
        "Repetition",
        "Length, tokens",
        "Reward-model score",
    ]
    assert figure.gaps == ()  # the sweep says already why there is no toxicity
    diagnosis["exits"]["gaps"] = []
    assert exits.build_quality(read_diagnosis(diagnosis)).gaps == ("Toxicity was not measured.",)


def test_logarithmic_scale_shows_the_value_itself() -> None:
    plot = exits.build_quality(read()).plots[0]
    assert isinstance(plot, Lines)
    first = sample_diagnosis()["exits"]["rows"][0]["perplexity"]["value"]
    height = plot.series[0].ys[0]
    assert height is not None
    assert 10**height == pytest.approx(first)
    assert f"{first:.2f}" in str(draw(plot))


def test_exit_tests_count_by_holm_not_by_p() -> None:
    diagnosis = sample_diagnosis()
    for row in diagnosis["exits"]["tests"]:
        row.update(p_value=0.01, p_holm=0.08)
    diagnosis["exits"]["tests"][2].update(p_holm=0.0496, difference=-0.2)
    figure = exits.build_tests(read_diagnosis(diagnosis))
    assert figure.shows == "1 of 8 exits differ from the default after Holm; less at exit 2."
    assert figure.tables[0].rows[2][4] == "0.0496"


def test_groups_compare_the_extremes() -> None:
    figure = exits.build_groups(read())
    assert "highest over middle exits" in figure.shows
    assert [row[1] for row in figure.tables[0].rows] == ["1–3", "4–6", "7–8"]


def test_grounding_counts_exits_with_a_clear_drop() -> None:
    diagnosis = sample_diagnosis()
    clear = [row["exit"] for row in diagnosis["exits"]["grounding"] if row["drop"]["low"] > 0]
    figure = exits.build_grounding(read_diagnosis(diagnosis))
    assert f"at {len(clear)} of 9 exits ({ranges(clear)})" in figure.shows


def test_association_tells_which_interval_leaves_out_zero() -> None:
    figure = embeddings.build_embeddings(read())
    assert "the interval leaves out zero for CKA." in figure.shows
    assert "Mahalanobis distance: the covariance is singular" in figure.gaps


def test_decoder_names_the_largest_move_and_its_side() -> None:
    diagnosis = sample_diagnosis()
    diagnosis["exits"]["decoder"][13]["coefficient"] = stat(-3.2, 0.2)
    figure = embeddings.build_decoder(read_diagnosis(diagnosis))
    assert "at exit 2, decoder layer 1: −3.20 (−3.40 to −3.00) towards unsafe" in figure.shows
    (heat,) = figure.plots
    assert isinstance(heat, Heat)
    assert heat.limit == pytest.approx(3.2)
    assert heat.rows[7] == "7 (default)"


def test_wide_heat_maps_print_signs_and_keep_numbers_in_the_table() -> None:
    figure = embeddings.build_decoder(read_diagnosis(sample_diagnosis(layers=20)))
    (heat,) = figure.plots
    text = str(draw(heat))
    assert ">−</text>" in text
    assert ">0.00</text>" not in text
    assert len(figure.tables[0].rows[0]) == 21


def test_maps_draw_one_marked_line_per_set_and_the_boundary() -> None:
    plot = maps.build_maps(read()).slides[3].plots[0]
    assert isinstance(plot, Scatter)
    text = str(draw(plot))
    for style in ("text-safe", "text-unsafe", "vl-safe", "vl-unsafe"):
        assert text.count(f'class="dots s-{style}"') == 1
    assert text.count('class="boundary"') == 1


@pytest.mark.parametrize(
    ("first", "second", "ends"),
    [
        ((0.2, 0.5), (0.4, 0.5), ((0.0, 0.5), (1.0, 0.5))),
        ((0.5, 3.0), (0.5, 2.0), ((0.5, 1.0), (0.5, 0.0))),
        ((-1.0, -1.0), (2.0, 2.0), ((0.0, 0.0), (1.0, 1.0))),
        ((0.0, 2.0), (1.0, 2.0), None),
        ((0.5, 0.5), (0.5, 0.5), None),
        ((0.0, 1.5), (1.5, 3.0), None),
    ],
)
def test_clip_keeps_what_is_inside(
    first: tuple[float, float],
    second: tuple[float, float],
    ends: tuple[tuple[float, float], tuple[float, float]] | None,
) -> None:
    found = clip(first, second, (0.0, 0.0, 1.0, 1.0))
    if ends is None:
        assert found is None
    else:
        assert found is not None
        assert np.allclose(found, ends)


def test_density_is_a_gaussian_kernel_with_silverman_width() -> None:
    values = list(np.random.default_rng(0).normal(0.1, 0.2, 50))
    width = (
        0.9 * min(np.std(values), np.subtract(*np.percentile(values, [75, 25])) / 1.34) * 50**-0.2
    )
    at = np.linspace(min(values), max(values), 37)
    heights = np.exp(-0.5 * ((at[:, None] - np.array(values)) / width) ** 2).sum(1)
    assert np.allclose(np.array(density(values)), np.stack([at, heights / heights.max()], 1))
    assert density([0.5, 0.5, 0.5]) == []


def test_words() -> None:
    space = "\N{NARROW NO-BREAK SPACE}"
    assert rate_words(Value(0.931, 0.902, 0.951)) == f"93{space}% (90.2–95.1)"
    assert stat_words(Value(-0.5)) == "\N{MINUS SIGN}0.50"
    assert stat_words(Value(904.0, 703.2, 1205.0)) == "904 (703 to 1,205)"
    assert stat_words(None) == "not measured"
    assert apart(Value(0.9, 0.8, 1.0), Value(0.7, 0.6, 0.8)) is False
    assert apart(Value(0.9, 0.81, 1.0), Value(0.7, 0.6, 0.8)) is True
    assert apart(Value(0.9), Value(0.7, 0.6, 0.8)) is None
    assert ranges([5, 0, 1, 2, 2]) == "0–2, 5"
    assert by_gap([(0, "a"), (1, "a"), (3, "b"), (4, "")]) == ("Layers 0–1: a", "Layer 3: b")
    assert [p_cell(p) for p in (None, 0.0004, 0.0496, 0.3)] == ["–", "< 0.001", "0.0496", "0.300"]


def test_rates_of_the_sample_have_intervals() -> None:
    item = rate(0.5, 100)
    assert item["low"] == pytest.approx(0.4038, abs=1e-3)


def test_a_column_is_numeric_only_if_every_cell_is() -> None:
    table = Table("t", ("a", "b"), (("x", "1"), ("y", "none")))
    assert table.numeric == (False, False)
