"""Controls as arms: only items with pictures, in pairs with the base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from eval_items import SHORT, mild_samples, register_mild, spy_on

from vlmend.audit import AuditPlan, SuitePlan, run_audit
from vlmend.errors import ConfigError, DataError
from vlmend.evals.arms import BASE
from vlmend.evals.captions import CaptionCache
from vlmend.evals.control_arms import (
    ARM_NAMES,
    CONTROLS,
    ControlInstead,
    check_controls,
    control_arms,
    control_of,
    read_control,
    read_controls,
)
from vlmend.evals.controls import CONTROL_KINDS, replace_images
from vlmend.models.vlm import Vlm
from vlmend.testing import tiny_vlm
from vlmend.types import Conversation, conversation_images

SAMPLES = mild_samples(8)
PICTURED = [sample for sample in SAMPLES if sample.images]


@pytest.fixture(scope="module")
def vlm() -> Vlm:
    return tiny_vlm("llava", dtype=torch.float64)


@pytest.mark.parametrize("kind", CONTROL_KINDS)
def test_a_control_asks_the_twins(kind: str, vlm: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    control = ControlInstead(kind, SAMPLES)  # type: ignore[arg-type]
    asked: list[Conversation] = []
    real = vlm.generate_plain
    monkeypatch.setattr(
        vlm, "generate_plain", lambda batch, how: (asked.extend(batch), real(batch, how))[1]
    )
    with control.apply(vlm):
        vlm.generate([sample.messages for sample in PICTURED], SHORT)
    assert asked == [twin.messages for twin in replace_images(PICTURED, control.kind)]
    assert not vlm.middlewares


def test_fingerprints_tell_controls_and_items_apart() -> None:
    prints = [ControlInstead(kind, SAMPLES).fingerprint for kind in CONTROL_KINDS]
    assert len(set(prints)) == len(CONTROL_KINDS)
    other = mild_samples(6)
    for kind, same in (("blank", True), ("none", True), ("noise", False), ("unrelated", False)):
        equal = ControlInstead(kind, other).fingerprint == ControlInstead(kind, SAMPLES).fingerprint
        assert equal is same, kind


def test_other_items_than_those_it_was_made_for_are_refused() -> None:
    control = ControlInstead("blank", PICTURED[:2])
    with pytest.raises(ConfigError, match="made for other items"):
        control.twin(PICTURED[3].messages)
    words = next(sample for sample in SAMPLES if not sample.images)
    assert control.twin(words.messages) == words.messages


@pytest.mark.parametrize(
    ("kinds", "words"),
    [(("blank", "blnk"), "unknown control 'blnk'.*caption"), (("blank",), "no item of these")],
)
def test_what_cannot_be_controlled_is_said_before_the_model_is_loaded(
    kinds: tuple[str, ...], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        check_controls(kinds, [s for s in SAMPLES if not s.images])


def test_an_item_without_an_unrelated_picture_is_an_error() -> None:
    with pytest.raises(DataError, match="no unrelated picture"):
        control_arms(("unrelated",), PICTURED[:1], CaptionCache(), 8)


def test_all_controls_of_an_audit_are_paired_with_the_base(
    vlm: Vlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_mild(monkeypatch, SAMPLES)
    words = [s for s in mild_samples(4, suite="words") if not s.images]
    register_mild(monkeypatch, words, "words")
    arms = (BASE, *control_arms(CONTROLS, SAMPLES, CaptionCache(), 4))
    assert [control_of(arm) for arm in arms] == [None, *CONTROLS]
    spy = spy_on(vlm, monkeypatch)
    plan = AuditPlan(
        (SuitePlan("mild", (0,)), SuitePlan("words")), max_new_tokens=4, batch_check=False
    )
    metrics = run_audit(vlm, plan, tmp_path, arms=arms)
    assert spy.calls
    cells = {(c["arm"], c["suite"].removesuffix(" (benign)"), c["exit"]) for c in metrics["cells"]}
    of_controls = {cell for cell in cells if cell[0] != "base"}
    assert of_controls == {(name, "mild", None) for name in ARM_NAMES.values()}
    by_control = {r["control"] for r in metrics["controls"]}
    assert by_control == set(CONTROLS)
    pairs = {(r["suite"], r["control"]): r["n"] for r in metrics["controls"]}
    harmful = sum(s.label == "harmful" for s in PICTURED)
    assert pairs["mild", "blank"] <= harmful
    assert all(r["reading"] for r in metrics["controls"])
    revisions = {judge["name"]: judge["revision"] for judge in metrics["judges"]}
    for row in (*metrics["controls"], *metrics["comparisons"]):
        assert row["judge_revision"] == revisions[row["judge"]]
        assert (row["judge_prompt_sha256"], row["coverage"] > 0) == ("", True)


def test_rates_that_were_not_judged_completely_are_withheld() -> None:
    at = {"suite": "mild", "exit": None, "judge": "parrot", "after": "blank image", "n": 3}
    found = {**at, **record(0.5, 0.1, 0.01)}
    (shown,) = read_controls([found], {"blank image": "blank"})
    assert (shown["asr_image"], shown["asr_control"]) == (0.5, 0.1)
    assert (shown["difference"], shown["low"], shown["high"]) == (-0.4, -0.6, -0.2), "over things"
    (hidden,) = read_controls([{**found, "withheld": "half is unscored"}], {"blank image": "blank"})
    assert (hidden["asr_image"], hidden["asr_control"]) == (None, None)
    assert (hidden["difference"], hidden["low"], hidden["high"]) == (None, None, None)
    assert hidden["reading"] == "half is unscored"
    assert read_controls([found], {}) == [], "only comparisons with controls"


def record(before: float, after: float, p: float) -> dict[str, float]:
    limits = {"difference_low": -0.9, "difference_high": 0.0}
    over_things = {"clustered_low": -0.6, "clustered_high": -0.2, "clustered_p": p}
    rates = {"asr_before": before, "asr_after": after, "difference": after - before}
    return {**rates, "p_holm": p, **limits, **over_things}


@pytest.mark.parametrize("kind", CONTROLS)
def test_a_sentence_never_claims_what_the_test_does_not_show(kind: str) -> None:
    assert "no difference shown" in read_control(kind, record(0.5, 0.1, 0.2))
    less, more = (read_control(kind, record(0.5, after, 0.01)) for after in (0.1, 0.9))
    assert "less often" in less
    assert "more often" in more


def test_a_twin_has_no_picture_or_another_one() -> None:
    first = PICTURED[0].messages
    assert not conversation_images(ControlInstead("none", SAMPLES).twin(first))
    blank = ControlInstead("blank", SAMPLES).twin(first)
    assert conversation_images(blank) != conversation_images(first)
