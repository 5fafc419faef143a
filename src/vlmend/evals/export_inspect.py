"""A run as Inspect logs, which `inspect view` opens: one `.eval` file per arm, suite and exit.

An `.eval` file is a ZIP archive of JSON: `header.json` (what was run, and the results),
`summaries.json`, one file per sample, and a journal from which an interrupted log is recovered.
Every judge is a scorer, whose value of a sample is the verdict; a verdict "unscored" is counted
in `unscored_samples` and in no metric, and a log whose samples were not judged completely has no
metrics: its rates are withheld, as everywhere.

Reference: UKGovernmentBEIS/inspect_ai, log schema version 2 (`log/_log.py`,
`log/_recorders/eval.py`); files were read back by `inspect_ai.log.read_eval_log` of 0.3.285.

Deviation 1: the archive is written here and not by inspect_ai, whose dependencies (s3fs, hence
botocore and its python-dateutil below 3) cannot be installed beside those pinned here.
Deviation 2: pictures stand in prompts as "[image SHA-256]": a run folder has no pictures.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmend.evals.export_lmms_eval import task_name
from vlmend.evals.export_rows import CellKey, ExportedAnswer, ExportedRun, content_text
from vlmend.runs import encode_json_text, replacing
from vlmend.types import sha256_json

LOG_VERSION = 2

_STOP_REASONS = {"eos": "stop", "length": "max_tokens", "error": "unknown"}

_STATUS = {"finished": "success", "failed": "error", "interrupted": "cancelled"}
"""Status in `run.json` -> Inspect's; anything else is "started"."""

_RATES = ("asr", "refusal_rate", "incoherent_rate")

_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
"""The same run gives the same bytes."""

_SUMMARY_LENGTH = 1024
"""Characters of a text in the summary of a sample."""


def write_inspect(run: ExportedRun, out: Path) -> list[Path]:
    """Write the logs.

    Args:
        run: The run.
        out: The folder of the logs.

    Returns:
        One file per arm, suite and exit.

    Raises:
        RunError: A file cannot be written.
    """
    return [_write_log(run, key, answers, out) for key, answers in run.cells().items()]


def _write_log(
    run: ExportedRun, key: CellKey, answers: Sequence[ExportedAnswer], out: Path
) -> Path:
    identity = sha256_json([run.info.get("config_sha256"), *key])[:22]
    started = _utc(run.info["started"])
    samples = [_sample(run, answer) for answer in answers]
    log = _header(run, key, answers, identity)
    summaries = [_summary(sample) for sample in samples]
    # The pattern of Inspect's own file names, which its viewer sorts by.
    date = re.sub(r"[:+]", "-", started)
    path = out / f"{date}_{task_name(key).replace('_', '-')}_{identity}.eval"
    start = {name: log[name] for name in ("version", "eval", "plan")}
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        _add(archive, "_journal/start.json", start)
        for sample in samples:
            _add(archive, f"samples/{sample['id']}_epoch_1.json", sample)
        _add(archive, "_journal/summaries/1.json", summaries)
        _add(archive, "summaries.json", summaries)
        _add(archive, "header.json", log)
    return path


def _add(archive: zipfile.ZipFile, name: str, value: object) -> None:
    member = zipfile.ZipInfo(name, _ZIP_TIME)
    member.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(member, encode_json_text(json.dumps(value, ensure_ascii=False)))


def _utc(time: str) -> str:
    """A time of ours, which ends in "+00:00"; runs of older versions may have none."""
    return time if re.match(r"\d{4}-\d\d-\d\dT", time) else "1970-01-01T00:00:00+00:00"


def _header(
    run: ExportedRun, key: CellKey, answers: Sequence[ExportedAnswer], identity: str
) -> dict[str, Any]:
    arm, suite, exit_layer = key
    config: Mapping[str, Any] = run.info.get("config", {})
    generation: Mapping[str, Any] = config.get("generation", {})
    generate = {
        name: generation[own]
        for name, own in (("max_tokens", "max_new_tokens"), ("temperature", "temperature"))
        if own in generation
    }
    started = _utc(run.info["started"])
    return {
        "version": LOG_VERSION,
        "status": _STATUS.get(run.progress.status, "started"),
        "eval": {
            "eval_id": identity,
            "run_id": str(run.info.get("config_sha256", identity))[:22],
            "created": started,
            "task": task_name(key),
            "task_id": identity,
            "task_args": {"arm": arm, "suite": suite, "exit": exit_layer},
            "dataset": {
                "name": suite,
                "samples": len(answers),
                "sample_ids": [answer.sample_id for answer in answers],
                "shuffled": False,
            },
            "model": f"vlmend/{run.model}",
            "model_generate_config": generate,
            "config": {"epochs": 1},
            "packages": dict(run.info.get("versions", {})),
            "metadata": {
                "arm": arm,
                "repairs": config.get("arms", {}).get(arm, []),
                "exit": exit_layer,
                "weights_sha256": config.get("weights_sha256"),
                "vlmend_config_sha256": run.info.get("config_sha256"),
            },
            "scorers": [{"name": judge} for judge in run.judges],
        },
        "plan": {"name": "plan", "steps": [], "config": generate},
        "results": {
            "total_samples": len(answers),
            "completed_samples": sum(a.response["finish"] != "error" for a in answers),
            "scores": [
                score for judge in run.judges for score in _scores(run, key, answers, judge)
            ],
        },
        "stats": {
            "started_at": started,
            "completed_at": _utc(run.info.get("ended", run.info["started"])),
            "model_usage": {},
        },
    }


def _scores(
    run: ExportedRun, key: CellKey, answers: Sequence[ExportedAnswer], judge: str
) -> list[dict[str, Any]]:
    """What `metrics.json` says of these answers, harmful and benign items apart."""
    given = [answer.verdicts[judge] for answer in answers if judge in answer.verdicts]
    if not given:
        return []
    metrics: dict[str, dict[str, Any]] = {}
    for cell in run.rates(key):
        if cell["judge"] != judge:
            continue
        part = "" if cell["suite"] == key[1] else "benign_"
        # A rate of nothing is null in our records, which Inspect does not know.
        metrics |= {
            part + rate: {"name": part + rate, "value": cell[rate], "params": {}}
            for rate in _RATES
            if cell.get(rate) is not None
        }
    scored = sum(verdict.value != "unscored" for verdict in given)
    return [
        {
            "name": judge,
            "scorer": judge,
            "scored_samples": scored,
            "unscored_samples": len(given) - scored,
            "params": {},
            "metrics": metrics,
        }
    ]


def _sample(run: ExportedRun, answer: ExportedAnswer) -> dict[str, Any]:
    response, item = answer.response, answer.item
    asked = [
        {"role": message["role"], "content": content_text(message["content"])}
        for message in item.get("messages", ())
    ]
    said = {"role": "assistant", "content": response["text"], "source": "generate"}
    model = f"vlmend/{run.model}"
    usage = {
        "input_tokens": response["prompt_tokens"],
        "output_tokens": response["new_tokens"],
        "total_tokens": response["prompt_tokens"] + response["new_tokens"],
    }
    sample = {
        "id": answer.sample_id,
        "epoch": 1,
        "input": asked or answer.sample_id,
        "target": str(item.get("reference") or ""),
        "messages": [*asked, said],
        "output": {
            "model": model,
            "choices": [{"message": said, "stop_reason": _STOP_REASONS[response["finish"]]}],
            "usage": usage,
            "time": float(response["seconds"]),
        },
        "scores": {
            judge: {
                "value": verdict.value,
                "answer": response["text"],
                "explanation": verdict.reason,
                "metadata": {"score": verdict.score},
            }
            for judge, verdict in answer.verdicts.items()
        },
        "metadata": {
            "label": item.get("label"),
            "group": item.get("group"),
            "response_id": response["id"],
            **item.get("meta", {}),
        },
        "store": {},
        "events": [],
        "model_usage": {model: usage},
        "attachments": {},
        "total_time": float(response["seconds"]),
    }
    if response["error"]:
        sample["error"] = {
            "message": response["error"],
            "traceback": "",
            "traceback_ansi": "",
        }
    return sample


def _summary(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sample as lists of samples show it."""
    kept = ("id", "epoch", "input", "target", "metadata", "model_usage", "total_time")
    scores = {
        judge: {**score, "answer": score["answer"][:_SUMMARY_LENGTH]}
        for judge, score in sample["scores"].items()
    }
    return {
        **{name: sample[name] for name in kept},
        "scores": scores,
        "completed": True,
        "message_count": len(sample["messages"]),
        "error": sample["error"]["message"] if "error" in sample else None,
    }
