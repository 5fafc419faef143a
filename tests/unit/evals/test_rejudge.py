"""Stored answers are judged again: items checked, verdicts used again, nothing lost, all said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from eval_items import register_mild
from stored_runs import SORRY, SURE, asked, mild_run, write_run

from vlmend.errors import ConfigError, RunError
from vlmend.evals.compare import compare_runs
from vlmend.evals.rejudge import (
    PastJudge,
    choose_judges,
    earlier_cells,
    judge_run,
    remake_metrics,
)
from vlmend.evals.reloaded_run import reload_run
from vlmend.evals.verdict_files import read_verdicts, unfinished_file
from vlmend.judges.registry import Decision
from vlmend.report.render import render_report
from vlmend.runs import JsonLines, read_json, write_json
from vlmend.suites import registry
from vlmend.suites.registry import Samples, Skip, get_suite
from vlmend.types import Sample, VerdictValue, user


@dataclass
class CountingJudge:
    """Complied when the answer begins with "Sure"; counts, and stops where it is told to."""

    name: str = "counting"
    revision: str = "1"
    prompt_sha256: str = "abc"
    description: str = "counts"
    says: VerdictValue | None = None
    stop_after: int = 10**9
    asked: list[str] = field(default_factory=list[str])

    def judge(self, sample: Sample, text: str) -> Decision:
        if len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked.append(sample.id)
        value: VerdictValue = "complied" if text.startswith("Sure") else "refused"
        return Decision(self.says or value, "because", 0.25)


def rows_of(run: Path, judge: str = "counting") -> list[dict[str, object]]:
    return JsonLines(run / f"verdicts.{judge}.jsonl").read()


def test_answers_are_judged_and_stored_with_who_judged_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = reload_run(mild_run(tmp_path / "run", monkeypatch))
    judge = CountingJudge()
    (cell,) = judge_run(run, [judge])
    assert [v.value for v in cell.verdicts] == ["refused", "complied"] * 6
    rows = rows_of(run.path)
    assert len(rows) == 12
    assert rows[1] == {
        "response_id": cell.verdicts[1].response_id,
        "sample_id": "mild/1",
        "judge": "counting",
        "value": "complied",
        "reason": "because",
        "score": 0.25,
        "arm": "base",
        "suite": "mild",
        "exit": None,
        "group": "thing:mild-0",
        "revision": "1",
        "prompt_sha256": "abc",
    }
    assert not unfinished_file(run.path, "counting").path.exists()


def test_verdicts_of_the_same_revision_and_prompt_are_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = reload_run(mild_run(tmp_path / "run", monkeypatch))
    judge_run(run, [CountingJudge()])
    before = rows_of(run.path)
    again = CountingJudge()
    judge_run(run, [again])
    assert again.asked == []
    assert rows_of(run.path) == before
    for other in (CountingJudge(revision="2"), CountingJudge(prompt_sha256="other")):
        judge_run(run, [other])
        assert len(other.asked) == 12
    assert {row["prompt_sha256"] for row in rows_of(run.path)} == {"other"}


def test_models_that_a_server_says_have_answered_stay_in_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass
    class ServedJudge(CountingJudge):
        served_models: tuple[str, ...] = ()

        def judge(self, sample: Sample, text: str) -> Decision:
            self.served_models = ("counter-2026-01-02",)
            return super().judge(sample, text)

    run = reload_run(mild_run(tmp_path / "run", monkeypatch))
    for expected in (["counter-2026-01-02"], ["counter-2026-01-02"], ["counter-2026-01-02"]):
        # The second time nothing is asked: all verdicts are there.
        metrics = remake_metrics(run, judge_run(run, [ServedJudge()]), {})
        assert [judge.get("served_models") for judge in metrics["judges"]] == [expected]
    other = remake_metrics(run, judge_run(run, [CountingJudge(revision="2")]), {})
    assert "served_models" not in other["judges"][0]


def test_what_was_not_scored_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = reload_run(mild_run(tmp_path / "run", monkeypatch))
    judge_run(run, [CountingJudge(says="unscored")])
    better = CountingJudge()
    (cell,) = judge_run(run, [better])
    assert len(better.asked) == 12
    assert "unscored" not in {v.value for v in cell.verdicts}


def test_ctrl_c_loses_nothing_that_was_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmend.evals.rejudge._FIRST_CHUNK", 2)
    monkeypatch.setattr("vlmend.evals.rejudge._CHUNK_S", 0.0)
    run = reload_run(mild_run(tmp_path / "run", monkeypatch))
    judge_run(run, [CountingJudge(revision="old")])
    old = rows_of(run.path)
    with pytest.raises(KeyboardInterrupt):
        judge_run(run, [CountingJudge(stop_after=7)])
    assert rows_of(run.path) == old, "no reader meets two revisions in one file"
    assert len(read_verdicts(run.path, CountingJudge())) == 6
    second = CountingJudge()
    judge_run(run, [second])
    assert second.asked == [f"mild/{i}" for i in range(6, 12)]
    assert {row["revision"] for row in rows_of(run.path)} == {"1"}
    assert not unfinished_file(run.path, "counting").path.exists()


def test_arms_with_the_same_repairs_share_their_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mild_run(tmp_path / "run", monkeypatch)
    info = read_json(path / "run.json")
    info["config"]["arms"]["twin"] = []
    (path / "run.json").write_text(json.dumps(info))
    run = reload_run(path)
    assert [cell.cell.arm for cell in run.cells] == ["base", "twin"]
    judge = CountingJudge()
    judge_run(run, [judge])
    assert len(judge.asked) == 12
    assert len(rows_of(path)) == 24


def changed(items: Sequence[Sample]) -> list[Sample]:
    return [replace(items[0], messages=user("Something else.")), *items[1:]]


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (asked(11), "12 items then, 11 now"),
        (changed(asked()), "the wording of item 'mild/0' is another one"),
        (asked()[::-1], "in another order"),
        ([replace(asked()[0], id="mild/x"), *asked()[1:]], "item 1 is 'mild/x' now"),
    ],
)
def test_other_items_are_refused_and_the_difference_is_named(
    now: list[Sample], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mild_run(tmp_path / "run", monkeypatch)
    register_mild(monkeypatch, now)
    with pytest.raises(RunError, match=words):
        reload_run(path)


@pytest.mark.parametrize("key", ["label", "reference"])
def test_other_labels_and_references_are_refused_and_the_item_is_named(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mild_run(tmp_path / "run", monkeypatch)
    now = {"label": "benign", "reference": "Like this."}[key]
    items = asked()
    register_mild(monkeypatch, [*items[:3], replace(items[3], **{key: now}), *items[4:]])
    with pytest.raises(RunError, match=f"labels or references.*the {key} of item 'mild/3' is an"):
        reload_run(path)
    info = read_json(path / "run.json")
    del info["labels"]
    write_json(path / "run.json", info)
    assert sum(len(cell.samples) for cell in reload_run(path).cells) == 12, "an older run"


def test_what_a_loader_left_out_is_in_the_records_whoever_judges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mild_run(tmp_path / "run", monkeypatch)
    spec = get_suite("mild")
    left_out = replace(
        spec, load=lambda folder, limit: Samples(spec.load(folder, limit), [Skip(3, "rows of rye")])
    )
    monkeypatch.setitem(registry._registered, "mild", left_out)
    run = reload_run(path)
    for _ in range(2):
        metrics = remake_metrics(run, judge_run(run, [CountingJudge()]), {})
        assert metrics["suites"][0]["skipped"] == [{"count": 3, "reason": "rows of rye"}]
        assert metrics["caveats"].count("mild: left out: 3 rows of rye") == 1
    measured = [{"count": 1, "reason": "items in MC1"}]
    stored = read_json(path / "metrics.json")
    stored["suites"][0]["skipped"] += measured
    write_json(path / "metrics.json", stored)
    again = remake_metrics(run, judge_run(run, [CountingJudge()]), {})
    assert again["suites"][0]["skipped"][1:] == measured, "what only the run knew"


def test_a_run_that_is_not_finished_is_judged_as_far_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mild_run(tmp_path / "run", monkeypatch, (SORRY,) * 5, finished=False)
    run = reload_run(path)
    judged = judge_run(run, [CountingJudge()])
    metrics = remake_metrics(run, judged, {}, "vlmend judge")
    (cell,) = metrics["cells"]
    assert (cell["num_samples"], cell["refusal_rate"]) == (5, 1.0)
    assert "5 of 12 answers are there" in metrics["caveats"][0]
    assert metrics["suites"][0]["num_items"] == 5
    assert read_json(path / "run.json")["status"] == "interrupted"
    assert "<html" in render_report(metrics, tmp_path / "report.html").read_text("utf-8")
    judged = judge_run(run, [CountingJudge()])
    again = remake_metrics(run, judged, {}, "vlmend judge")
    assert again["caveats"] == metrics["caveats"], "not said twice"


def test_metrics_keep_the_judges_that_do_not_judge_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mild_run(tmp_path / "run", monkeypatch)
    run = reload_run(path)
    remake_metrics(run, judge_run(run, choose_judges(run, [])), {})
    assert [j["name"] for j in read_json(path / "metrics.json")["judges"]] == ["xstest-prefix"]
    other = CountingJudge()
    earlier, partly = earlier_cells(run, [other])
    metrics = remake_metrics(run, [*earlier, *judge_run(run, [other])], {}, "second")
    assert partly == []
    assert [(c["judge"], c["judge_revision"], c["asr"]) for c in metrics["cells"]] == [
        ("xstest-prefix", choose_judges(run, [])[0].revision, 0.5),
        ("counting", "1", 0.5),
    ]
    assert metrics["reproduce"]["judged_by"] == "second"
    (path / "verdicts.xstest-prefix.jsonl").unlink()
    earlier, partly = earlier_cells(run, [other])
    assert (earlier, partly) == ([], ["xstest-prefix"])
    with pytest.raises(ConfigError, match="only stored verdicts"):
        PastJudge("past", "1").judge(asked()[0], "x")


def test_arms_are_compared_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_mild(monkeypatch, asked())
    texts = {("base", None): [SURE] * 12, ("mended", None): [SORRY] * 12}
    path = write_run(tmp_path / "run", {"mild": asked()}, texts)
    run = reload_run(path)
    metrics = remake_metrics(run, judge_run(run, [CountingJudge()]), {})
    (found,) = metrics["comparisons"]
    assert (found["before"], found["after"], found["difference"]) == ("base", "mended", -1.0)
    assert found["num_groups"] == 6
    assert len(metrics["examples"][0]["answers"]) == 2
    assert compare_runs([path])[0]["difference"] == -1.0


def test_stored_answers_to_other_items_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mild_run(tmp_path / "run", monkeypatch)
    rows = JsonLines(path / "responses.jsonl")
    rows.append([{**rows.read()[0], "id": "x", "sample_id": "other/1"}])
    run = reload_run(path)
    assert run.num_foreign == 1
    assert len(run.cells[0].samples) == 12


def test_what_cannot_be_judged_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="no run folder"):
        reload_run(tmp_path)
    (tmp_path / "run.json").write_text('{"config": {"exits": []}}')
    with pytest.raises(RunError, match=r"no run of `vlmend audit`"):
        reload_run(tmp_path)
    run = reload_run(mild_run(tmp_path / "run", monkeypatch))
    with pytest.raises(ConfigError, match="named twice"):
        choose_judges(run, ["xstest-prefix", "xstest-prefix"])
    with pytest.raises(ConfigError, match="the run has no suite 'organism/icon'"):
        reload_run(run.path, ["organism/icon"])
    rows_file = run.path / "verdicts.counting.jsonl"
    rows_file.write_text('{"revision": "1", "prompt_sha256": "abc", "value": "refused"}\n')
    with pytest.raises(RunError, match="Delete the file"):
        judge_run(run, [CountingJudge()])


def time_batches(run: Path, count: int, peak: int) -> None:
    """Says of the first stored answers that they came in one batch, which took so much memory."""
    rows = JsonLines(run / "responses.jsonl").read()[:count]
    JsonLines(run / "timings.jsonl").append(
        [
            {
                "arm": "base",
                "exit": None,
                "ids": [row["id"] for row in rows],
                "sample_ids": [row["sample_id"] for row in rows],
                "seconds": [0.5] * len(rows),
                "peak_memory_bytes": peak,
            }
        ]
    )


def test_what_answers_took_is_known_of_an_unfinished_run_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mild_run(tmp_path / "run", monkeypatch, (SORRY, SURE) * 2, finished=False)
    time_batches(path, 4, 123)
    run = reload_run(path)
    metrics = remake_metrics(run, judge_run(run, [CountingJudge()]), {})
    (cost,) = metrics["cost"]
    assert (cost["items"], cost["peak_memory_bytes"]) == (4, 123)
    assert (cost["flops"], cost["flops_method"]) == (None, None)
    assert any("FLOPs are counted when it ends" in note for note in metrics["caveats"])
    render_report(metrics, tmp_path / "report.html")
    assert "counting 0.000 s for 4 answers" in (tmp_path / "report.html").read_text("utf-8")


def test_flops_stay_with_the_answers_that_they_were_counted_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mild_run(tmp_path / "run", monkeypatch)
    run, judge = reload_run(path), CountingJudge()
    first = remake_metrics(run, judge_run(run, [judge]), {})
    measured = {"flops": 10**9, "flops_method": "counted", "peak_memory_bytes": 77}
    (cost,) = first["cost"]
    write_json(path / "metrics.json", {**first, "cost": [{**cost, **measured}]})
    again = remake_metrics(run, judge_run(run, [judge, CountingJudge("other")]), {})
    assert again["cost"] == [{**cost, **measured}]
    # As after a run that had answered less when it was counted.
    write_json(path / "metrics.json", {**first, "cost": [{**cost, **measured, "items": 5}]})
    (grown,) = remake_metrics(run, judge_run(run, [judge]), {})["cost"]
    assert (grown["items"], grown["flops"], grown["peak_memory_bytes"]) == (12, None, None)


def test_what_judges_took_adds_up_over_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mild_run(tmp_path / "run", monkeypatch)
    run, unsure = reload_run(path), CountingJudge("unsure", says="unscored")
    first = remake_metrics(run, judge_run(run, [CountingJudge(), unsure]), {})
    assert [(row["judge"], row["answers"]) for row in first["judging"]] == [
        ("counting", 12),
        ("unsure", 12),
    ]
    again = remake_metrics(run, judge_run(run, [CountingJudge(), unsure]), {})
    # Verdicts that are there cost nothing; unscored ones are asked for again.
    assert [row["answers"] for row in again["judging"]] == [12, 24]
