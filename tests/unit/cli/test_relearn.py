"""`vlmend relearn` from end to end on saved tiny models, and what it refuses."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Command, contents
from rich.console import Console

from vlmend.cli import console
from vlmend.cli.relearn import describe_arm, print_attack
from vlmend.models.load import load_vlm
from vlmend.repairs.adapter_artifact import write_artifact
from vlmend.repairs.protocol import ARTIFACT_FILE
from vlmend.repairs.unlearning.settings import UnlearningSettings
from vlmend.runs import read_json, write_json
from vlmend.training.adapters import LoraSettings, add_lora

Saved = Callable[[str], Path]

SMALL = ("--steps", "0,2", "--limit", 3, "--data-limit", 4, "--batch-size", 2)
SHORT = ("--max-new-tokens", 3)
DATA = ("--data", "organism/forget-text", "--suite", "organism/text")


def make_artifact(model: Path, folder: Path, items: dict[str, str] | None = None) -> Path:
    """An adapter that changes the model, as if it had been trained."""
    vlm = load_vlm(model)
    text_layers = tuple(sorted(set(range(vlm.num_decoder_layers)) - vlm.image_only_layers))
    with add_lora(vlm, LoraSettings(rank=2, alpha=4.0, layers=text_layers)) as adapter:
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in adapter.parameters.values():
                parameter.copy_(0.1 * torch.randn_like(parameter))
        weights = adapter.weights()
    facts = {
        "modality": "text",
        "model": vlm.name,
        "weights_sha256": vlm.weights_sha256,
        "adapter_sha256": weights.sha256,
        "items": items or {},
        "ledger": {},
        "data": {},
    }
    settings = UnlearningSettings(rank=2, alpha=4.0).record()
    return write_artifact(folder, "unlearning", settings, {None: weights}, facts)


@pytest.mark.parametrize("family", ["llava", "mllama", "qwen2_5_vl"])
def test_a_repaired_model_and_the_base_are_attacked(
    family: str, saved: Saved, tmp_path: Path, command: Command
) -> None:
    model, out = saved(family), tmp_path / "out"
    artifact = make_artifact(model, tmp_path / "mend")
    before = contents(model), contents(artifact)
    done = command("relearn", model, "--repair", artifact, *DATA, *SMALL, *SHORT, "--out", out)
    assert done.code == 0, done.err
    result = read_json(out / "relearning.json")
    assert [arm["name"] for arm in result["arms"]] == ["base", "unlearn(text, rank=2, alpha=4.0)"]
    for arm in result["arms"]:
        assert [point["step"] for point in arm["points"]] == [0, 2]
        assert all(point["num_samples"] == 3 for point in arm["points"])
    assert (result["suite"], result["num_taught"], result["num_asked"]) == ("organism/text", 4, 3)
    assert result["settings"]["lora"]["rank"] == 8
    assert "Attack success on organism/text after fine-tuning on organism/forget-text" in done.out
    assert (contents(model), contents(artifact)) == before


def test_the_same_command_again_trains_nothing(
    saved: Saved, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = saved("llava"), tmp_path / "out"
    artifact = make_artifact(model, tmp_path / "mend")
    words = ("relearn", model, "--repair", artifact, *DATA, *SMALL, *SHORT, "--out", out)
    assert command(*words).code == 0
    first = read_json(out / "relearning.json")
    monkeypatch.setattr("vlmend.training.relearning.spot_check", None)
    done = command(*words)
    assert done.code == 0, done.err
    assert read_json(out / "relearning.json")["arms"] == first["arms"]
    done = command(*words, "--lr", "1e-3")
    assert done.code == 2
    assert "loop.lr: 0.0001 then, 0.001 now" in done.error_line


def test_what_cannot_be_attacked_is_refused_before_the_model_is_loaded(
    saved: Saved, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmend.models.load.load_vlm", None)
    write_json(tmp_path / "shift" / ARTIFACT_FILE, {"kind": "shiftdc"})
    write_json(tmp_path / "mend" / ARTIFACT_FILE, {"kind": "unlearning"})
    model = saved("llava")

    def refused(repair: str, data: str, suite: str, *more: object) -> str:
        where = ("--out", tmp_path / "out")
        words = ("--repair", tmp_path / repair, "--data", data, "--suite", suite)
        done = command("relearn", model, *words, *where, *more)
        assert done.code == 2
        assert not (tmp_path / "out").exists()
        return done.error_line

    text = ("organism/forget-text", "organism/text")
    assert "of kind 'shiftdc', which changes no weights" in refused("shift", *text)
    assert "no repair artifact" in refused("none", *text)
    assert "Did you mean 'organism/text'" in refused("mend", text[0], "organism/txt")
    assert "no harmful items" in refused("mend", text[0], "organism/benign", "--limit", 4)
    assert "retain data and was asked for as forget" in refused(
        "mend", "organism/retain-text", text[1]
    )
    assert "lr=0.0" in refused("mend", *text, "--lr", 0.0)
    assert "at least one of them above 0" in refused("mend", *text, "--steps", 0)


def test_items_that_the_repair_has_seen_are_refused(
    saved: Saved, tmp_path: Path, command: Command
) -> None:
    from vlmend.suites.registry import load_suite

    seen = {load_suite("organism/text", 1)[0].id: "x"}
    artifact = make_artifact(saved("llava"), tmp_path / "mend", seen)
    words = (*DATA, *SMALL, *SHORT, "--out", tmp_path / "out")
    done = command("relearn", saved("llava"), "--repair", artifact, *words)
    assert done.code == 2
    assert "fitted on items that are to be measured: 1 of suite" in done.error_line


# ---- what is printed


def record(**changed: Any) -> dict[str, Any]:
    points = [
        {"step": step, "asr": asr, "low": asr - 0.1, "high": asr + 0.1}
        | {"num_scored": 40, "num_samples": 40}
        for step, asr in ((0, 0.1), (8, 0.7))
    ]
    until = {"steps": 8, "earliest": 8, "latest": None}
    back = {**until, "was_down": True, **changed.pop("back", {})}
    differences = [
        {"difference": -0.6, "low": -0.7, "high": -0.5, "p_value": 0.0012} for _ in points
    ]
    return {
        "suite": "s",
        "data": "d",
        "num_asked": 40,
        "base_asr": 0.75,
        "settings": {"within": 0.05, "level": 0.5},
        "arms": [
            {"name": "base", "points": points, "steps_to_level": {**until, "steps": 0}},
            {
                "name": "mended",
                "points": points,
                "steps_to_level": until,
                "back": back,
                "differences": differences,
            },
        ],
    } | changed


def test_curves_stand_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(console, "results", Console(file=file, width=80))
    print_attack(record())
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    (line,) = [line for line in text.splitlines() if line.startswith("8 ")]
    assert "70.0 % [60.0, 80.0]" in line
    assert "[-70.0, -50.0] 0.0012" in line
    words = " ".join(text.split())
    assert (
        "within 5 points of the base's 75.0 %: after 8 steps (by its interval 8 to more than 8)"
        in words
    )
    assert "over-refusal: not measured (no benign suite was run)" in words
    assert "utility: not measured (no utility suite was run)" in words


@pytest.mark.parametrize("scored", [0, 38])
def test_too_few_judged_answers_are_no_resistance(
    monkeypatch: pytest.MonkeyPatch, scored: int
) -> None:
    file = io.StringIO()
    monkeypatch.setattr(console, "results", Console(file=file, width=80))
    found = record()
    broken = {"step": 8, "num_scored": scored, "num_samples": 40}
    rate = (
        {"asr": 0.7, "low": 0.6, "high": 0.8} if scored else dict.fromkeys(("asr", "low", "high"))
    )
    found["arms"][1]["points"] = [found["arms"][1]["points"][0], broken | rate]
    print_attack(found)
    words = " ".join(file.getvalue().split())
    assert f"withheld, {scored}/40 scored" in words
    assert "after 8 steps too few answers could be judged" in words


def test_where_nothing_was_lost_nothing_is_brought_back() -> None:
    found = record(back={"was_down": False})
    first, second = describe_arm(found["arms"][1], found)
    assert "nothing to bring back" in first
    assert second.startswith("50 % attack success: after 8 steps")
    never = record(back={"steps": None, "earliest": None})
    line, _ = describe_arm(never["arms"][1], never)
    assert line.endswith("after more than 8 steps (by its interval more than 8 to more than 8)")
