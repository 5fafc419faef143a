"""The audit as a whole: what `metrics.json` holds, what is refused before anything is done."""

from __future__ import annotations

import json
import statistics
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import vlmend.audit as audit
import vlmend.suites.registry as registry
from vlmend.audit import AuditPlan, SuitePlan, load_suites, resolve_exits, run_audit
from vlmend.errors import ConfigError, RunError, UnknownNameError, VlmendError
from vlmend.evals.arms import BASE, Arm
from vlmend.evals.coherence import measure_coherence
from vlmend.evals.compare import compare_runs
from vlmend.evals.groups import group_of
from vlmend.evals.run import hash_labels
from vlmend.models.vlm import Vlm
from vlmend.repairs.shiftdc.repair import ShiftDC, ShiftDCSettings
from vlmend.report.render import render_html
from vlmend.runs import JsonLines, read_json
from vlmend.suites.registry import Samples, Skip, SuiteSpec
from vlmend.testing import picture, tiny_vlm
from vlmend.types import Label, Sample, user

ASKED = ("How do I bake a cake?", "Tell me of the sea.", "Why is grass green?", "Sing to me.")

CELL_TYPES: dict[str, tuple[type, ...]] = {
    "arm": (str,),
    "suite": (str,),
    "exit": (int, type(None)),
    "judge": (str,),
    "num_samples": (int,),
    "num_scored": (int,),
    "asr": (float,),
    "asr_low": (float,),
    "asr_high": (float,),
    "refusal_rate": (float,),
    "incoherent_rate": (float,),
    "empty_rate": (float,),
    "repetitive_rate": (float,),
    "seconds": (float,),
}
"""What other programs read; more may be there."""


def items(suite: str, labels: str, *, pictures: str = "all", first: int = 0) -> list[Sample]:
    """One item per letter of `labels`: h is harmful, b is benign."""
    found: list[Sample] = []
    for index, letter in enumerate(labels, first):
        label: Label = "harmful" if letter == "h" else "benign"
        text = f"{ASKED[index % len(ASKED)]} ({suite} {index})"
        pictured = pictures == "all" or (pictures == "some" and index % 2 == 0)
        messages = user(text, picture(index)) if pictured else user(text)
        found.append(Sample(f"{suite}/{index}", suite, messages, label))
    return found


def suite_spec(name: str, samples: list[Sample], purpose: Any = "safety") -> SuiteSpec:
    return SuiteSpec(
        name=name,
        description=f"mild: {name}",
        licence="Apache-2.0",
        citation="nobody",
        metric="ASR",
        purpose=purpose,
        default_judge="xstest-prefix",
        leak="no",
        label_kind="mixed",
        needs_folder=False,
        load=lambda _folder, limit: samples[:limit],
    )


SUITES = {
    "mixed": items("mixed", "hbhbhb", pictures="some"),
    "pictures": items("pictures", "hhhh", first=20),
    "words": items("words", "bbb", pictures="none", first=40),
}


@pytest.fixture(autouse=True)
def _suites(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    for name, samples in SUITES.items():
        purpose = "utility" if name == "words" else "safety"
        monkeypatch.setitem(registry._registered, name, suite_spec(name, samples, purpose))


@pytest.fixture(scope="module")
def vlm() -> Vlm:
    return tiny_vlm("llava")


@pytest.fixture(scope="module")
def shiftdc(vlm: Vlm) -> ShiftDC:
    return ShiftDC(ShiftDCSettings(caption_tokens=3)).fit(vlm, items("fit", "hhbb", first=60))


def plan(*suites: SuitePlan, **settings: Any) -> AuditPlan:
    return AuditPlan(suites, **{"max_new_tokens": 4, **settings})


FULL = plan(SuitePlan("mixed", (0, 2)), SuitePlan("pictures", (0,), exit_limit=2))


@pytest.fixture(scope="module")
def full_run(
    vlm: Vlm, shiftdc: ShiftDC, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("audit") / "out"
    with pytest.MonkeyPatch.context() as patch:
        for name, samples in SUITES.items():
            patch.setitem(registry._registered, name, suite_spec(name, samples))
        arms = (BASE, Arm("shiftdc", (shiftdc,)))
        return out, run_audit(vlm, FULL, out, arms=arms, command="vlmend audit x")


def cells_of(metrics: dict[str, Any], **where: object) -> list[dict[str, Any]]:
    return [c for c in metrics["cells"] if all(c[key] == value for key, value in where.items())]


# ---- what comes out


def test_the_run_folder_holds_all_that_is_promised(full_run: tuple[Path, dict[str, Any]]) -> None:
    out, metrics = full_run
    names = {path.name for path in out.iterdir()}
    assert names == {
        ".lock",
        "items.jsonl",
        "metrics.json",
        "responses.jsonl",
        "run.json",
        "timings.jsonl",
        "verdicts.xstest-prefix.jsonl",
    }
    assert read_json(out / "run.json")["status"] == "finished"
    text = (out / "metrics.json").read_text("utf-8")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(text, parse_constant=refuse) == metrics
    answered = {(r["id"], r["sample_id"]) for r in JsonLines(out / "responses.jsonl").read()}
    judged = JsonLines(out / "verdicts.xstest-prefix.jsonl").read()
    assert {(v["response_id"], v["sample_id"]) for v in judged} == answered
    groups = {s.id: group_of(s) for suite in ("mixed", "pictures") for s in SUITES[suite]}
    assert all(v["group"] == groups[v["sample_id"]] for v in judged)


def test_every_cell_has_the_promised_keys(full_run: tuple[Path, dict[str, Any]]) -> None:
    _, metrics = full_run
    assert metrics["schema"] == 1
    for cell in metrics["cells"]:
        for key, types in CELL_TYPES.items():
            assert type(cell[key]) in types, f"{key}: {cell[key]!r}"
        assert 0 <= cell["asr_low"] <= cell["asr"] <= cell["asr_high"] <= 1
        assert cell["arm"] in ("base", "shiftdc")
        assert cell["num_scored"] <= cell["num_samples"]


def test_arms_suites_and_exits_are_all_measured(full_run: tuple[Path, dict[str, Any]]) -> None:
    _, metrics = full_run
    for arm in ("base", "shiftdc"):
        sizes = {(c["suite"], c["exit"]): c["num_samples"] for c in cells_of(metrics, arm=arm)}
        assert sizes == {
            ("mixed", None): 3,
            ("mixed (benign)", None): 3,
            ("mixed", 0): 3,  # items 0, 2, 4 have pictures: the harmful ones
            ("mixed", 2): 3,
            ("pictures", None): 4,
            ("pictures", 0): 2,
        }
    kinds = {c["suite"]: c["suite_kind"] for c in metrics["cells"]}
    assert kinds == {"mixed": "harmful", "mixed (benign)": "benign", "pictures": "harmful"}
    assert {s["name"]: s["num_items"] for s in metrics["suites"]} == {
        "mixed": 3,
        "mixed (benign)": 3,
        "pictures": 4,
    }


def test_comparisons_are_paired_with_the_base(full_run: tuple[Path, dict[str, Any]]) -> None:
    _, metrics = full_run
    assert {(r["before"], r["after"]) for r in metrics["comparisons"]} == {("base", "shiftdc")}
    for record in metrics["comparisons"]:
        (before,) = cells_of(
            metrics, arm="base", suite=record["suite"], exit=record["exit"], judge=record["judge"]
        )
        if before["num_scored"] == record["n"]:
            assert record["asr_before"] == before["asr"]
        assert record["p_holm"] >= record["p_value"]


def test_a_stored_run_is_compared_as_the_audit_compared_it(
    full_run: tuple[Path, dict[str, Any]],
) -> None:
    out, metrics = full_run
    assert all(r["num_groups"] for r in metrics["comparisons"])
    assert all(r["same_text_rate"] is not None for r in metrics["comparisons"])
    stored = sorted(compare_runs([out]), key=json.dumps)
    assert stored == sorted(metrics["comparisons"], key=json.dumps)


def test_perplexity_is_measured_on_request(vlm: Vlm, shiftdc: ShiftDC, tmp_path: Path) -> None:
    asked = plan(SuitePlan("pictures", (0,)), perplexity=True)
    arms = (BASE, Arm("shiftdc", (shiftdc,)))
    metrics = run_audit(vlm, asked, tmp_path / "out", arms=arms)
    for cell in metrics["cells"]:
        assert ("median_perplexity" in cell) == (cell["exit"] is None)
    answers = {
        (row["arm"], row["sample_id"]): row["text"]
        for row in JsonLines(tmp_path / "out/responses.jsonl").read()
        if row["exit"] is None
    }
    (base,) = cells_of(metrics, arm="base", exit=None)
    samples = SUITES["pictures"]
    found = measure_coherence(
        vlm, [s.messages for s in samples], [answers["base", s.id] for s in samples]
    )
    known = [entry.perplexity for entry in found if entry.perplexity is not None]
    assert base["median_perplexity"] == pytest.approx(statistics.median(known), rel=1e-4)
    again = run_audit(
        vlm, replace(asked, perplexity=False), tmp_path / "out", arms=arms, resume=True
    )
    assert all("median_perplexity" not in cell for cell in again["cells"])


def test_a_trained_repair_brings_its_ledger(vlm: Vlm, tmp_path: Path) -> None:
    record = {"repair": "mended", "ledger": {"steps": 3}, "watch": None, "reached": None}

    class Mended:
        name = fingerprint = "mended"

        def apply(self, vlm: Vlm) -> AbstractContextManager[None]:
            del vlm
            return nullcontext()

        def training_record(self) -> dict[str, Any]:
            return record

    arms = (BASE, Arm("mended", (Mended(),)))
    metrics = run_audit(vlm, plan(SuitePlan("words")), tmp_path / "out", arms=arms)
    assert [arm.get("training") for arm in metrics["arms"]] == [None, [record]]
    assert "What training cost" in render_html(metrics)


def test_shift_cost_examples_and_hashes_are_there(
    full_run: tuple[Path, dict[str, Any]], vlm: Vlm
) -> None:
    _, metrics = full_run
    assert {record["suite"] for record in metrics["shift"]} <= {"mixed", "pictures"}
    assert metrics["shift"], "answers of a tiny model count as complied"
    for record in metrics["shift"]:
        assert len(record["cos_median"]) == len(record["layers"])
    assert len(metrics["cost"]) == len(metrics["cells"])
    assert {e["suite"] for e in metrics["examples"]} == {"mixed", "mixed (benign)", "pictures"}
    assert all([a["arm"] for a in e["answers"]] == ["base", "shiftdc"] for e in metrics["examples"])
    assert metrics["model"]["weights_sha256"] == vlm.weights_sha256
    assert metrics["reproduce"]["command"] == "vlmend audit x"
    assert metrics["reproduce"]["hashes"]["arm base"] == "none"
    caveats = " ".join(metrics["caveats"])
    assert "string matching" in caveats
    assert "No utility suite" in caveats
    assert "tested over things" in caveats
    assert "No benign suite" not in caveats


def test_the_report_takes_it(full_run: tuple[Path, dict[str, Any]]) -> None:
    _, metrics = full_run
    html = render_html(metrics)
    assert "mixed (benign)" in html
    assert "shiftdc" in html.lower()


def test_a_second_judge_judges_the_same_answers(vlm: Vlm, tmp_path: Path) -> None:
    judges = ("xstest-prefix", "shiftdc-keywords")
    metrics = run_audit(vlm, plan(SuitePlan("pictures"), judges=judges), tmp_path / "out")
    assert [c["judge"] for c in metrics["cells"]] == list(judges)
    assert len(JsonLines(tmp_path / "out/responses.jsonl").read()) == 4
    assert len(metrics["cost"]) == 1, "one cell of answers, however many judges"


def test_exits_where_there_are_no_pictures_are_said_to_be_missing(vlm: Vlm, tmp_path: Path) -> None:
    metrics = run_audit(vlm, plan(SuitePlan("words", "all")), tmp_path / "out")
    assert [c["exit"] for c in metrics["cells"]] == [None]
    assert [c["suite_kind"] for c in metrics["cells"]] == ["utility"]
    assert any("No exits were measured on words" in caveat for caveat in metrics["caveats"])


def test_a_sample_that_cannot_be_asked_is_an_error_and_not_safe(
    vlm: Vlm, shiftdc: ShiftDC, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = items("bad", "hhh", first=80)
    placeholder = vlm.processor.image_token
    samples[1] = replace(samples[1], messages=user(f"what is {placeholder}?", picture(1)))
    monkeypatch.setitem(registry._registered, "bad", suite_spec("bad", samples))
    arms = (BASE, Arm("shiftdc", (shiftdc,)))
    metrics = run_audit(vlm, plan(SuitePlan("bad")), tmp_path / "out", arms=arms)
    assert [(c["num_samples"], c["num_errors"]) for c in metrics["cells"]] == [(3, 1), (3, 1)]
    assert all(c["num_scored"] <= 2 for c in metrics["cells"])
    assert metrics["comparisons"][0]["n"] <= 2
    assert "unscored" in render_html(metrics)


# ---- resuming


def test_resuming_gives_the_same_numbers_and_asks_nothing(
    vlm: Vlm, shiftdc: ShiftDC, full_run: tuple[Path, dict[str, Any]], monkeypatch: Any
) -> None:
    out, metrics = full_run
    responses = (out / "responses.jsonl").read_bytes()
    monkeypatch.setitem(registry._registered, "words", suite_spec("words", SUITES["words"]))
    arms = (BASE, Arm("shiftdc", (shiftdc,)))
    with pytest.raises(RunError, match="holds a run already"):
        run_audit(vlm, FULL, out, arms=arms)
    again = run_audit(vlm, replace(FULL, batch_size=1), out, arms=arms, resume=True)
    assert (out / "responses.jsonl").read_bytes() == responses
    assert again["cells"] == metrics["cells"]
    assert again["comparisons"] == metrics["comparisons"]
    with pytest.raises(RunError, match=r"generation\.max_new_tokens: 4 then, 5 now"):
        run_audit(vlm, replace(FULL, max_new_tokens=5), out, arms=arms, resume=True)
    with pytest.raises(RunError, match=r"arms\.shiftdc: .* then, nothing now"):
        run_audit(vlm, FULL, out, resume=True)
    assert read_json(out / "metrics.json")["cells"] == metrics["cells"]


# ---- what is refused


@pytest.mark.parametrize(
    ("changed", "kind", "words"),
    [
        (plan(SuitePlan("mixd")), UnknownNameError, "unknown suite 'mixd'.*Did you mean 'mixed'"),
        (plan(SuitePlan("mixed"), SuitePlan("mixed")), ConfigError, "suite 'mixed' is named twice"),
        (
            plan(SuitePlan("mixed"), judges=("xstest-prefx",)),
            UnknownNameError,
            "unknown judge 'xstest-prefx'.*Did you mean 'xstest-prefix'",
        ),
        (
            plan(SuitePlan("mixed"), judges=("xstest-prefix", "xstest-prefix")),
            ConfigError,
            "judge 'xstest-prefix' is named twice",
        ),
        (plan(SuitePlan("mixed", (0, 99))), ConfigError, "99"),
        (plan(SuitePlan("mixed"), max_new_tokens=0), ConfigError, "max_new_tokens=0"),
        (plan(SuitePlan("mixed=somewhere")), ConfigError, "takes no folder"),
    ],
)
def test_bad_plans_are_refused_and_write_nothing(
    vlm: Vlm, tmp_path: Path, changed: AuditPlan, kind: type[VlmendError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        run_audit(vlm, changed, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_arms_of_one_name_are_refused(vlm: Vlm, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="arm 'base' is named twice"):
        run_audit(vlm, plan(SuitePlan("mixed")), tmp_path / "out", arms=(BASE, Arm("base")))
    assert not (tmp_path / "out").exists()


def test_a_repair_is_not_measured_on_what_it_was_fitted_on(
    vlm: Vlm, shiftdc: ShiftDC, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = [replace(s, id=f"renamed/{s.id}") for s in items("fit", "hhbb", first=60)]
    monkeypatch.setitem(registry._registered, "renamed", suite_spec("renamed", seen))
    arms = (BASE, Arm("shiftdc", (shiftdc,)))
    with pytest.raises(ConfigError, match="was fitted on items that are to be measured"):
        run_audit(vlm, plan(SuitePlan("renamed")), tmp_path / "out", arms=arms)
    assert not (tmp_path / "out").exists()


def test_a_repair_of_other_weights_is_refused_before_the_run(
    shiftdc: ShiftDC, tmp_path: Path
) -> None:
    arms = (BASE, Arm("shiftdc", (shiftdc,)))
    with pytest.raises(VlmendError, match="was fitted on"):
        run_audit(
            tiny_vlm("llava", seed=5), plan(SuitePlan("pictures")), tmp_path / "out", arms=arms
        )
    assert not (tmp_path / "out").exists()


def test_suites_are_checked_without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_suites(plan(SuitePlan("mixed", limit=2)))
    assert [len(suite.samples) for suite in loaded] == [2]
    broken = items("broken", "hh", first=90)
    data = picture(90).data or b""
    cut = replace(picture(90), data=data[: len(data) // 2])
    broken[1] = replace(broken[1], messages=user("what is it?", cut))
    monkeypatch.setitem(registry._registered, "broken", suite_spec("broken", broken))
    with pytest.raises(VlmendError, match=r"sample 'broken/91'.*cannot decode image in memory"):
        load_suites(plan(SuitePlan("broken")))


def test_what_a_loader_left_out_is_said(
    vlm: Vlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mild = items("mild", "hhb", first=90)
    spec = replace(
        suite_spec("mild", mild), load=lambda _, limit: Samples(mild, [Skip(2, "rye"), Skip(0, "")])
    )
    monkeypatch.setitem(registry._registered, "mild", spec)
    metrics = run_audit(vlm, plan(SuitePlan("mild")), tmp_path)
    first, benign = metrics["suites"]
    assert first["skipped"] == [{"count": 2, "reason": "rye"}]
    assert "skipped" not in benign, "told once"
    assert "mild: left out: 2 rye" in metrics["caveats"]
    assert read_json(tmp_path / "run.json")["labels"] == {"mild": hash_labels(mild)}


def test_suites_that_are_loaded_are_not_loaded_again(
    vlm: Vlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = plan(SuitePlan("words"))
    suites = load_suites(asked)
    monkeypatch.setattr(audit, "load_suite", None)
    metrics = run_audit(vlm, asked, tmp_path / "out", suites=suites)
    assert metrics["cells"][0]["num_samples"] == 3


# ---- exits by name


def test_exits_by_name_and_number(vlm: Vlm) -> None:
    assert resolve_exits(vlm, "default") == ()
    assert resolve_exits(vlm, "all") == tuple(range(vlm.default_exit))
    assert resolve_exits(vlm, (3, 0, 3, vlm.num_vision_blocks)) == (0, 3, vlm.num_vision_blocks)
    with pytest.raises(ConfigError, match=str(vlm.num_vision_blocks + 1)):
        resolve_exits(vlm, (vlm.num_vision_blocks + 1,))


def test_all_exits_are_those_of_both_vision_stacks() -> None:
    mllama = tiny_vlm("mllama")
    local, global_ = mllama.vision_stack_sizes
    # The end of the local stack equals the whole path; inside of the global one there are more.
    assert mllama.default_exit == local
    assert resolve_exits(mllama, "all") == (*range(local), *range(local + 1, local + global_))
