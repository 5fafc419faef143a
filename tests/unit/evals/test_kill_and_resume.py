"""Killed at any moment and run again, a run loses no answer and has none twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from eval_items import mild_samples, register_mild
from kill_target import CALL_S, EXITS, NUM_ITEMS

from vlmend.audit import AuditPlan, SuitePlan, run_audit
from vlmend.runs import JsonLines, read_json
from vlmend.testing import tiny_vlm

KILLS = 6
SEED = 20_240_607
PATIENCE_S = 120.0


def answers(folder: Path) -> dict[tuple[str, int | None], str]:
    rows = JsonLines(folder / "responses.jsonl").read()
    times = Counter((row["id"], row["sample_id"]) for row in rows)
    assert not [key for key, count in times.items() if count > 1], "an item was answered twice"
    return {(row["sample_id"], row["exit"]): row["text"] for row in rows}


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_kill_9_at_random_moments_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rng = tmp_path / "killed", random.Random(SEED)
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("kill_target.py")), str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None

    def ask(line: str) -> int:
        assert server.stdin is not None
        assert server.stdout is not None
        print(line, file=server.stdin, flush=True)
        return int(server.stdout.readline())

    seen = 0
    for _ in range(KILLS):
        child = ask(str(rng.choice((1, 2, 3))))
        # At least one line more than before, so that every life makes progress.
        until = time.monotonic() + PATIENCE_S
        while lines_of(out / "responses.jsonl") <= seen:
            assert time.monotonic() < until, "the audit does not go on"
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1.5 * CALL_S))
        os.kill(child, signal.SIGKILL)
        assert ask("") == -signal.SIGKILL, "it was done before it could be killed"
        assert read_json(out / "run.json")["status"] == "running"
        seen = lines_of(out / "responses.jsonl")
    ask("7")
    assert ask("") == 0
    server.stdin.close()
    assert server.wait() == 0

    register_mild(monkeypatch, mild_samples(NUM_ITEMS))
    plan = AuditPlan((SuitePlan("mild", EXITS),), max_new_tokens=4)
    whole = run_audit(tiny_vlm("llava", dtype=torch.float64), plan, tmp_path / "whole")
    assert answers(out) == answers(tmp_path / "whole")
    with_images = len([s for s in mild_samples(NUM_ITEMS) if s.images])
    assert len(answers(out)) == NUM_ITEMS + len(EXITS) * with_images
    killed = read_json(out / "metrics.json")
    untimed = [{**c, "seconds": 0} for c in whole["cells"]]
    assert [{**c, "seconds": 0} for c in killed["cells"]] == untimed
    assert {path.name for path in out.iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }
