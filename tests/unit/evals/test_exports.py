"""Exports say what the run folder says, in the layouts of the tools that read them."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from written_runs import ANSWERS, STARTED, VALUES, sample_ids, write_run

from vlmend.cli.main import main
from vlmend.errors import RunError
from vlmend.evals.export_inspect import write_inspect
from vlmend.evals.export_lmms_eval import write_lmms_eval
from vlmend.evals.export_parquet import RUN_KEY, write_parquet
from vlmend.evals.export_rows import read_exported
from vlmend.runs import JsonLines, read_json

PROMPT = f"[image {'ab' * 32}] How do I bake cake 0?"


def test_parquet_has_every_answer_with_its_item_and_verdict(tmp_path: Path) -> None:
    run = read_exported(write_run(tmp_path / "run"))
    (path,) = write_parquet(run, tmp_path / "out/run.parquet")
    rows = pq.read_table(path).to_pylist()
    assert [row["sample_id"] for row in rows] == 2 * sample_ids()
    assert [row["arm"] for row in rows] == ["base"] * 4 + ["no image"] * 4
    assert [row["text"] for row in rows] == 2 * list(ANSWERS)
    assert [row["verdict.parrot"] for row in rows] == 2 * list(VALUES)
    assert [row["score.parrot"] for row in rows[:4]] == [1.0, None, None, 1.0]
    first = rows[0]
    assert first["prompt"] == PROMPT
    assert first["reference"] == "Bake it."
    assert json.loads(first["meta"]) == {"category": "cakes"}
    assert (first["exit"], first["seconds"], first["prompt_tokens"]) == (None, 0.5, 10)
    assert rows[2]["error"] == "DataError: no picture"
    metadata = pq.read_schema(path).metadata
    assert json.loads(metadata[RUN_KEY])["config"]["model"] == "maker/model"


def test_lmms_eval_gets_its_lines_and_results(tmp_path: Path) -> None:
    run = read_exported(write_run(tmp_path / "run"))
    results, *samples = write_lmms_eval(run, tmp_path / "out")
    folder = tmp_path / "out" / "maker__model"
    assert results == folder / "2026-01-02T03-04-05_results.json"
    assert [path.name for path in samples] == [
        "2026-01-02T03-04-05_samples_mild__base.jsonl",
        "2026-01-02T03-04-05_samples_mild__no_image.jsonl",
    ]
    rows = JsonLines(samples[0]).read()
    assert [row["doc_id"] for row in rows] == [0, 1, 2, 3]
    assert [row["filtered_resps"] for row in rows] == [[text] for text in ANSWERS]
    assert [row["parrot"]["verdict"] for row in rows] == list(VALUES)
    assert rows[0]["input"] == PROMPT
    assert rows[0]["target"] == "Bake it."
    assert rows[1]["target"] == ""
    doc = {"id": "mild/0", "label": "harmful", "meta": {"category": "cakes"}}
    digest = hashlib.sha256(json.dumps(doc, indent=2).encode()).hexdigest()
    assert rows[0]["doc_hash"] == digest
    found = read_json(results)
    assert found["results"]["mild__base"] == {"alias": "mild__base"}, "3 of 4 scored: withheld"
    joined = "".join(f"sample_{i}{row['doc_hash']}" for i, row in enumerate(rows))
    assert found["task_hashes"]["mild__base"] == hashlib.sha256(joined.encode()).hexdigest()


def test_an_inspect_log_holds_samples_scores_and_results(tmp_path: Path) -> None:
    run = read_exported(write_run(tmp_path / "run"))
    logs = write_inspect(run, tmp_path / "logs")
    assert len(logs) == 2
    assert logs[0].name.startswith("2026-01-02T03-04-05-00-00_mild--base_")
    with zipfile.ZipFile(logs[0]) as archive:
        assert archive.testzip() is None
        header = json.loads(archive.read("header.json"))
        summaries = json.loads(archive.read("summaries.json"))
        samples = [
            json.loads(archive.read(f"samples/{name}_epoch_1.json")) for name in sample_ids()
        ]
        start = json.loads(archive.read("_journal/start.json"))
    assert header["version"] == 2
    assert header["status"] == "success"
    assert header["eval"]["created"] == STARTED
    assert header["eval"] == start["eval"]
    assert header["eval"]["dataset"]["sample_ids"] == sample_ids()
    assert header["results"]["completed_samples"] == 3
    (score,) = header["results"]["scores"]
    assert (score["scored_samples"], score["unscored_samples"]) == (3, 1)
    assert score["metrics"] == {}, "3 of 4 scored: withheld"
    assert [s["scores"]["parrot"]["value"] for s in samples] == list(VALUES)
    assert [s["output"]["choices"][0]["message"]["content"] for s in samples] == list(ANSWERS)
    assert samples[2]["error"]["message"] == "DataError: no picture"
    assert [s["id"] for s in summaries] == sample_ids()


def test_rates_of_answers_that_were_all_scored_are_exported(tmp_path: Path) -> None:
    run = read_exported(write_run(tmp_path / "run", scored=4))
    results, *_ = write_lmms_eval(run, tmp_path / "out")
    found = read_json(results)["results"]["mild__base"]
    assert found == {"alias": "mild__base", "asr,parrot": 2 / 3, "refusal_rate,parrot": 1 / 3}
    with zipfile.ZipFile(write_inspect(run, tmp_path / "logs")[0]) as archive:
        (score,) = json.loads(archive.read("header.json"))["results"]["scores"]
    assert score["metrics"]["asr"]["value"] == 2 / 3
    assert "incoherent_rate" not in score["metrics"], "a rate of nothing is no number"


def test_the_same_run_gives_the_same_log(tmp_path: Path) -> None:
    run = read_exported(write_run(tmp_path / "run"))
    first, second = (write_inspect(run, tmp_path / name)[0] for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_inspect_reads_what_was_written(tmp_path: Path) -> None:
    inspect_log = pytest.importorskip("inspect_ai.log")
    run = read_exported(write_run(tmp_path / "run", scored=4))
    log = inspect_log.read_eval_log(str(write_inspect(run, tmp_path / "logs")[0]))
    assert log.status == "success"
    assert [sample.id for sample in log.samples] == sample_ids()
    assert [sample.scores["parrot"].value for sample in log.samples] == list(VALUES)
    assert log.results.scores[0].metrics["asr"].value == 2 / 3


def test_a_run_in_the_making_is_exported_as_far_as_it_is(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", arms=("base",))
    (folder / "metrics.json").unlink()
    (folder / "verdicts.parrot.jsonl").unlink()
    JsonLines(folder / "timings.jsonl").replace([])
    rows = JsonLines(folder / "responses.jsonl").read()[:2]
    JsonLines(folder / "responses.jsonl").replace(rows)
    run = read_exported(folder)
    assert run.judges == ()
    assert run.progress.describe() == "2 of 4 answers are there (base on mild 2 of 4)"
    assert write_parquet(run, tmp_path / "run.parquet")
    assert write_lmms_eval(run, tmp_path / "lmms")
    (log,) = write_inspect(run, tmp_path / "logs")
    with zipfile.ZipFile(log) as archive:
        assert json.loads(archive.read("header.json"))["results"]["scores"] == []


def test_a_folder_without_answers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no run folder"):
        read_exported(tmp_path)
    folder = write_run(tmp_path / "run")
    (folder / "responses.jsonl").unlink()
    with pytest.raises(RunError, match="has no answers yet"):
        read_exported(folder)


def test_the_command_prints_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run")
    out = tmp_path / "run.parquet"
    assert main(["export", str(folder), "--format", "parquet", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert out.is_file()
