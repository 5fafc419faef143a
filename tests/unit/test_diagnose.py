"""The whole diagnosis on tiny models, in the organism's world."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import vlmend.diagnosis.self_classification as self_classification
from vlmend.diagnose import DIAGNOSIS_FILE, run_diagnosis
from vlmend.diagnosis.plan import DiagnosisPlan, load_plan
from vlmend.errors import ConfigError, DataError, RunError, UnknownNameError
from vlmend.models.vlm import Vlm
from vlmend.testing import tiny_vlm
from vlmend.types import Sample

SMALL = {"limit": 10, "max_new_tokens": 3, "caption_tokens": 3, "control_items": 3}
SUITES = ("organism/icon", "organism/benign-pictures")


def plan(**changes: Any) -> DiagnosisPlan:
    return DiagnosisPlan(**{"suites": SUITES, **SMALL, **changes})


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, float):
        yield value


@pytest.fixture(scope="module")
def vlm() -> Vlm:
    return tiny_vlm("llava")


@pytest.fixture(scope="module")
def whole(vlm: Vlm, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("diagnosis")
    asked = plan(exit_suite="organism/text+image", vqa_suite="organism/vqa")
    return run_diagnosis(vlm, asked, out), out


def test_every_section_is_there_and_every_number_finite(
    whole: tuple[dict[str, Any], Path],
) -> None:
    record, out = whole
    assert json.loads((out / DIAGNOSIS_FILE).read_text()) == json.loads(json.dumps(record))
    assert all(math.isfinite(number) for number in numbers(record))
    sections = ("sets", "probes", "maps", "shift", "separation", "self_classification")
    for name in (*sections, "estimators", "stability", "exits", "findings", "cost"):
        assert record[name], name
    assert [s["n"] for s in record["sets"]] == [10, 10, 10, 10]
    assert {m["method"] for m in record["maps"]} == {"pca", "tsne"}
    assert {r["group"] for r in record["shift"]} >= {"benign", "blank", "noise", "unrelated"}
    for part in ("rows", "groups", "tests", "grounding", "embeddings", "association", "decoder"):
        assert record["exits"][part], part
    assert len(record["findings"]) == 8


def test_a_second_call_runs_nothing_again(
    vlm: Vlm, whole: tuple[dict[str, Any], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    record, out = whole
    before = (out / "responses.jsonl").read_bytes()

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr(vlm, "_run", refuse)
    monkeypatch.setattr(self_classification, "classify_itself", refuse)
    asked = plan(exit_suite="organism/text+image", vqa_suite="organism/vqa")
    again = run_diagnosis(vlm, asked, out, resume=True)
    assert (out / "responses.jsonl").read_bytes() == before
    for name in ("probes", "maps", "shift", "exits", "findings"):
        assert again[name] == record[name], name


@pytest.mark.parametrize("family", ["llava_next", "mllama", "qwen2_5_vl"])
def test_every_family_can_be_diagnosed(family: str, tmp_path: Path) -> None:
    asked = plan(limit=6, exit_suite="organism/icon", control_items=1)
    other = tiny_vlm(family)
    record = run_diagnosis(other, asked, tmp_path / "run")
    on_text = [i for i in range(other.num_decoder_layers) if i not in other.image_only_layers]
    assert [s["layer"] for s in record["stability"][::5]] == on_text
    by_layer = {p["layer"]: p["gap"] for p in record["probes"]["by_layer"]}
    assert set(by_layer) == set(range(other.num_decoder_layers))
    for layer in other.image_only_layers:
        assert "does not run on text" in by_layer[layer]
    assert len(record["exits"]["rows"]) > 1


def test_given_captions_take_the_place_of_the_model_s_own(
    vlm: Vlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vlmend.diagnosis.plan as plans

    with pytest.raises(DataError, match="no caption in their meta"):
        run_diagnosis(vlm, plan(caption_source="given"), tmp_path / "without")
    load = plans.load_suite

    def with_captions(name: str, limit: int | None) -> list[Sample]:
        found = load(name, limit)
        return [replace(s, meta={**s.meta, "caption": f"a {s.meta['thing']}"}) for s in found]

    monkeypatch.setattr(plans, "load_suite", with_captions)
    question = "Is it dangerous?"
    asked = plan(limit=4, caption_source="given", question=question, control_items=1)
    run_diagnosis(vlm, asked, tmp_path / "given")
    # Only the three control pictures are captioned by the model.
    assert len((tmp_path / "given" / "captions.jsonl").read_text().splitlines()) == 3


def test_one_label_only_is_refused_before_anything_is_run(vlm: Vlm, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no benign item of organism/icon has an image"):
        run_diagnosis(vlm, plan(suites=("organism/icon",)), tmp_path)


def test_two_items_leave_gaps_and_no_numbers(vlm: Vlm, tmp_path: Path) -> None:
    record = run_diagnosis(vlm, plan(limit=1), tmp_path)
    assert "too few" in record["probes"]["gap"]
    assert {f["verdict"] for f in record["findings"]} <= {"not measured", "undecided"}
    assert record["exits"] == {"gap": "no suite was named for vision exits"}


def test_another_plan_does_not_go_on_with_a_run(
    vlm: Vlm, whole: tuple[dict[str, Any], Path]
) -> None:
    with pytest.raises(RunError, match="limit"):
        run_diagnosis(vlm, plan(limit=4), whole[1], resume=True)


def test_wrong_plans_are_refused_without_a_model() -> None:
    with pytest.raises(ConfigError, match="no suite"):
        plan(suites=())
    with pytest.raises(UnknownNameError, match="organism/icon"):
        load_plan(plan(suites=("organism/icons",)))
    with pytest.raises(UnknownNameError):
        load_plan(plan(judge="nobody"))
    with pytest.raises(DataError, match="no harmful item with an image"):
        load_plan(plan(exit_suite="organism/benign-pictures"))
    with pytest.raises(DataError, match="has no images"):
        load_plan(plan(vqa_suite="organism/text"))
