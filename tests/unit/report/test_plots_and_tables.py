"""Rows and panels: what is compared with what, and what the captions claim."""

from __future__ import annotations

import pytest
from sample_metrics import cell, sample_metrics

from vlmend.report.plots import build_exit_changes, build_exits, build_shift
from vlmend.report.records import read_records
from vlmend.report.tables import breakable, build_cost, build_headline, flatten


def test_headline_puts_over_refusal_and_utility_beside_attack_success() -> None:
    groups = build_headline(read_records(sample_metrics()))
    assert [group.kind for group in groups] == ["harmful", "benign", "utility"]
    assert sum(len(group.rows) for group in groups) == 8


def test_headline_has_a_row_per_judge() -> None:
    metrics = sample_metrics()
    metrics["judges"].insert(0, {"name": "prefix", "revision": "1", "description": ""})
    metrics["cells"].append(cell("base", "organism/icon", "harmful", 0.6, judge="prefix"))
    rows = build_headline(read_records(metrics))[0].rows
    judged = [(row.judge, [item is not None for item in row.cells]) for row in rows[2:4]]
    assert judged == [("prefix", [True, False]), ("organism", [True, True])]


def test_exit_caption_compares_with_the_default() -> None:
    groups = {group.suite: group for group in build_exits(read_records(sample_metrics()))}
    assert set(groups) == {"organism/icon", "organism/text+image", "organism/benign"}
    assert "highest elsewhere 43.0" in groups["organism/text+image"].panels[0].caption
    assert "the intervals are apart" in groups["organism/text+image"].panels[0].caption
    assert "the intervals overlap" in groups["organism/icon"].panels[0].caption
    assert "lowest elsewhere" in groups["organism/benign"].panels[0].caption


def test_default_cell_completes_the_exit_curve() -> None:
    metrics = sample_metrics()
    metrics["cells"] = [row for row in metrics["cells"] if row["exit"] != 7]
    group = next(g for g in build_exits(read_records(metrics)) if g.suite == "organism/icon")
    default = [item for at, item in group.numbers if at == "7" and item.arm == "base"]
    assert [item.complied.value for item in default if item.complied] == [0.744]


def test_one_exit_is_no_curve() -> None:
    metrics = sample_metrics()
    metrics["cells"] = [row for row in metrics["cells"] if row["exit"] is None]
    assert build_exits(read_records(metrics)) == []


def test_comparisons_at_other_exits_are_listed() -> None:
    metrics = sample_metrics()
    metrics["comparisons"] += [
        metrics["comparisons"][2] | {"exit": 3},
        metrics["comparisons"][2] | {"exit": 7},  # the default, not another exit
    ]
    rows = build_exit_changes(read_records(metrics))
    assert [(row.suite, row.exit, row.change.effect.words) for row in rows] == [
        ("organism/icon", 3, "fall")
    ]


@pytest.mark.parametrize("arm", ["base", "shiftdc"])
@pytest.mark.parametrize("compared_at", [3, 7, None])
def test_comparison_of_a_withheld_rate_is_dropped(arm: str, compared_at: int | None) -> None:
    metrics = sample_metrics()
    metrics["comparisons"] = [metrics["comparisons"][2] | {"exit": compared_at}]
    assert len(read_records(metrics).comparisons) == 1
    cell_at = 3 if compared_at == 3 else None  # 7 and None both name the default exit
    for row in metrics["cells"]:
        if (row["arm"], row["suite"], row["exit"]) == (arm, "organism/icon", cell_at):
            row["num_scored"] = 300
    assert read_records(metrics).comparisons == ()


def test_shift_skips_empty_groups_and_shares_scales() -> None:
    metrics = sample_metrics()
    metrics["shift"][1].update(n=0)
    metrics["shift"][2]["norm_median"] = None
    groups = build_shift(read_records(metrics))
    assert [[name for _, name, _ in group.groups] for group in groups] == [
        ["complied"],
        ["complied", "refused"],
    ]
    assert [len(group.panels) for group in groups] == [3, 3]


def test_shift_with_nan_keeps_the_rest() -> None:
    metrics = sample_metrics()
    metrics["shift"][0]["cos_median"][3] = float("nan")
    assert "nan" not in str(build_shift(read_records(metrics))[0].panels[0].chart).lower()


def test_cost_ratio_is_to_the_base_of_the_same_suite() -> None:
    rows = build_cost(read_records(sample_metrics()))
    first, last = rows[0].cells, rows[-1].cells
    assert first[0] is not None
    assert first[1] is not None
    assert float(first[1].ratio) == pytest.approx(0.0781 / 0.0655, abs=0.005)
    assert (first[0].memory, first[1].memory) == ("774", "–")
    assert rows[-1].suite == "All suites"
    assert last[1] is not None
    base = sum(0.0655 + index / 400 for index in range(8))
    after = sum(0.0781 + index / 350 for index in range(8))
    assert float(last[1].ratio) == pytest.approx(after / base, abs=0.005)


def test_cost_total_needs_every_arm_on_every_suite() -> None:
    metrics = sample_metrics()
    metrics["cost"].pop()
    rows = build_cost(read_records(metrics))
    assert rows[-1].suite == "organism/vqa"
    assert rows[-1].cells[1] is None


def test_flatten_and_breakable() -> None:
    assert flatten({"a": {"b": [1, 2]}, "c": "x", "d": None}) == [
        ("a.b", "[1, 2]"),
        ("c", "x"),
        ("d", "null"),
    ]
    assert breakable("a/<b>") == "a/<wbr>&lt;b&gt;"
