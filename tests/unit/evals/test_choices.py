"""Multiple choice: scores are sums of log-probabilities, through whatever is applied."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_items import register_mild
from mild_samples import count_hooks
from torch.nn import functional
from utility_files import write_truthfulqa

from vlmend.audit import AuditPlan, SuitePlan, run_audit
from vlmend.errors import DataError, ModelError
from vlmend.evals.arms import BASE, Arm
from vlmend.evals.choices import (
    UNUSABLE,
    Choices,
    choice_records,
    kept_choices,
    mc1,
    mc2,
    read_choices,
    score_choices,
)
from vlmend.evals.rejudge import choose_judges, judge_run, remake_metrics
from vlmend.evals.reloaded_run import reload_run
from vlmend.models.vlm import Vlm
from vlmend.report.render import render_html
from vlmend.testing import tiny_vlm
from vlmend.types import Conversation, Sample, user

CHOICES = ["It sings.", "No, it is quiet.", "No."]
ASKED = user("Does a cake sing?")


@pytest.fixture(scope="module")
def vlm() -> Vlm:
    return tiny_vlm("llava")


def score_by_hand(vlm: Vlm, conversation: Conversation, choice: str) -> float:
    """Alone, by a plain forward pass of transformers and its cross-entropy."""
    inputs = vlm.encode([conversation]).inputs
    ids = torch.tensor([vlm.tokenizer(choice, add_special_tokens=False).input_ids])
    row = torch.cat((inputs["input_ids"], ids), dim=1)
    with torch.no_grad():
        logits = vlm.model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0].double()
    start = inputs["input_ids"].shape[1]
    return -float(functional.cross_entropy(logits[start - 1 : -1], ids[0], reduction="sum"))


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_score_is_the_sum_over_the_choice_alone(vlm: Vlm, batch_size: int) -> None:
    hooks = count_hooks(vlm)
    found = score_choices(vlm, ASKED, CHOICES, batch_size=batch_size)
    expected = [score_by_hand(vlm, ASKED, choice) for choice in CHOICES]
    assert found == pytest.approx(expected, rel=1e-4)
    assert count_hooks(vlm) == hooks
    assert vlm.middlewares == ()


class Rewriting:
    """A repair that asks in other words, so many times."""

    name = "rewriting"
    fingerprint = "rewriting"

    def __init__(self, times: int = 1) -> None:
        self.times = times

    def apply(self, vlm: Vlm) -> Any:
        def ask(conversations: Any, settings: Any, call_next: Any) -> Any:
            told = [user(c[-1].text, system="Be careful.") for c in conversations]
            answers = [call_next(told, settings) for _ in range(self.times)]
            return answers[-1]

        return vlm.using(ask)


def test_what_a_repair_makes_of_the_question_counts(vlm: Vlm) -> None:
    with Arm("rewriting", (Rewriting(),)).applied(vlm):
        found = score_choices(vlm, ASKED, CHOICES, batch_size=8)
    told = user("Does a cake sing?", system="Be careful.")
    assert found == pytest.approx([score_by_hand(vlm, told, c) for c in CHOICES], rel=1e-4)
    assert found != pytest.approx([score_by_hand(vlm, ASKED, c) for c in CHOICES], rel=1e-3)


def test_a_repair_that_asks_twice_is_not_scored(vlm: Vlm) -> None:
    with Rewriting(2).apply(vlm), pytest.raises(ModelError, match="asks the model 2 times"):
        score_choices(vlm, ASKED, CHOICES, batch_size=8)
    assert vlm.middlewares == ()


def test_a_choice_needs_tokens(vlm: Vlm) -> None:
    with pytest.raises(DataError, match="has no tokens"):
        score_choices(vlm, ASKED, ["No.", ""], batch_size=8)


def item(number: int, **meta: str) -> Sample:
    given = {"true_answers": '["No", "It is quiet."]', "false_answers": '["It sings"]', **meta}
    return Sample(f"cakes/{number}", "cakes", ASKED, "benign", "It is quiet", given)


def test_choices_end_in_a_full_stop_and_the_best_is_found() -> None:
    assert read_choices(item(0)) == Choices(("No.", "It is quiet."), ("It sings.",), best=1)


@pytest.mark.parametrize("meta", [{"true_answers": '["No"]'}, {"false_answers": "[]"}])
def test_items_that_cannot_be_compared_have_no_choices(meta: dict[str, str]) -> None:
    assert read_choices(item(0, **meta)) is None
    assert read_choices(Sample("cakes/1", "cakes", ASKED, "benign", "No")) is None


def test_the_numbers_are_those_of_the_paper() -> None:
    choices = read_choices(item(0))
    assert choices is not None
    first, second = [math.log(p) for p in (0.1, 0.5, 0.2)], [math.log(p) for p in (0.6, 0.1, 0.3)]
    assert (mc1(choices, first), mc1(choices, second)) == (True, False)
    assert mc1(choices, [-1.0, -2.0, -2.0]) is False, (
        "the best answer must be above every false one"
    )
    assert [mc2(choices, found) for found in (first, second)] == pytest.approx([0.6 / 0.8, 0.7])
    records = choice_records([item(0), item(1), item(2)], {"cakes/0": first, "cakes/1": second})
    assert records["MC1"]["value"] == 0.5
    assert records["MC1"]["n"] == records["MC2"]["n"] == 2
    assert records["MC1"]["judge"] is records["MC2"]["judge"] is None
    assert records["MC2"]["value"] == pytest.approx((0.75 + 0.7) / 2)
    assert records["MC2"]["low"] <= records["MC2"]["value"] <= records["MC2"]["high"]


def test_items_that_cannot_be_asked_are_counted_and_said(
    vlm: Vlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def item(index: int, best: str, false: list[str]) -> Sample:
        meta = {"true_answers": json.dumps(["Yes", "Wet"]), "false_answers": json.dumps(false)}
        return Sample(f"tea/{index}", "tea", user(f"Is tea {index}?"), "benign", best, meta)

    items = [item(0, "Yes", ["No"]), item(1, "Maybe", ["No"]), item(2, "Wet", [])]
    register_mild(monkeypatch, items, "tea")
    plan = AuditPlan((SuitePlan("tea"),), max_new_tokens=2, batch_check=False)
    metrics = run_audit(vlm, plan, tmp_path / "out")
    assert metrics["cells"][0]["scores"]["MC1"]["n"] == 1
    assert metrics["suites"][0]["skipped"] == [{"count": 2, "reason": UNUSABLE}]
    assert f"tea: left out: 2 {UNUSABLE}" in metrics["caveats"]


def test_an_audit_of_truthfulqa_has_both_and_judging_again_keeps_them(
    vlm: Vlm, tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    write_truthfulqa(data)
    plan = AuditPlan(
        (SuitePlan(f"truthfulqa={data}", limit=2),), max_new_tokens=2, batch_check=False
    )
    arms = (BASE, Arm("rewriting", (Rewriting(),)), Arm("twice", (Rewriting(2),)))
    metrics = run_audit(vlm, plan, out, arms=arms)
    base, rewriting, twice = metrics["cells"]
    assert base["scores"].keys() == {"MC1", "MC2"}
    assert 0 < base["scores"]["MC2"]["value"] < 1
    assert base["scores"]["MC2"] != rewriting["scores"]["MC2"]
    assert "scores" not in twice
    assert any("twice on truthfulqa: MC1 and MC2 are not measured" in c for c in metrics["caveats"])
    assert "MC2" in render_html(metrics)
    run = reload_run(out)
    judged = judge_run(run, choose_judges(run, ["xstest-prefix"]))
    again = remake_metrics(run, judged, {})
    assert [cell.get("scores", {}) for cell in again["cells"]] == [
        kept_choices(cell) for cell in metrics["cells"]
    ]
