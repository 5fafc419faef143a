"""The command line under a launcher: two processes train the adapter that one trains."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vlmend.runs import JsonLines, read_json
from vlmend.testing import FLOAT32_NOISE, Tolerance, assert_close

PATIENCE_S = 600
STEPS = 3

LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
"""What `torchrun` is, in this Python."""


ADAMW_NOISE = Tolerance(
    "AdamW of gradients that were summed in another order",
    1e-3,
    "two families, five steps: worst 1.5e-5, for a gradient near zero is divided by its own size",
)


def unlearn(model: Path, out: Path, *launcher: str) -> subprocess.CompletedProcess[str]:
    """Text and pictures; of three examples one process gets two, the other one."""
    words = (
        *("repair", "unlearn", model, "--out", out, "--rank", 2, "--limit", 6, "--lr", "1e-2"),
        *("--forget", "organism/forget-text,organism/forget-pictures"),
        *("--retain", "organism/retain-text", "--steps", STEPS, "--batch-size", 3),
        *("--watch", "organism/icon", "--watch-limit", 2, "--max-new-tokens", 2),
    )
    return subprocess.run(
        [sys.executable, *launcher, "-m", "vlmend.cli.main", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def numbers(folder: Path) -> torch.Tensor:
    """(steps, numbers): what does not depend on the machine."""
    rows = JsonLines(folder / "training/steps.jsonl").read()
    return torch.tensor(
        [[r["loss"], *r["terms"].values(), r["grad_norm"], r["tokens"], r["images"]] for r in rows],
        dtype=torch.float64,
    )


@pytest.mark.slow
def test_two_processes_of_the_command_train_as_one(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    printed: dict[str, str] = {}
    for name, launcher in (("one", ()), ("two", LAUNCHER)):
        done = unlearn(saved("llava"), tmp_path / name, *launcher)
        assert done.returncode == 0, done.stderr
        printed[name] = done.stdout + done.stderr
    for name, world in (("one", 1), ("two", 2)):
        config = read_json(tmp_path / name / "training/run.json")["config"]
        assert config["processes"] == world
        assert printed[name].count("saved in") == 1, "the first process speaks alone"
    # The model is in float32, and parts of a sum are added in another order: worst of two
    # families and five steps 2.6e-7. A share with a wrong weight is off by 1e-1.
    one, two = numbers(tmp_path / "one"), numbers(tmp_path / "two")
    assert one.shape[0] == STEPS
    for column in range(one.shape[1]):
        assert_close(two[:, column], one[:, column], FLOAT32_NOISE)
    weights = load_file(tmp_path / "two/adapter_model.safetensors")
    for name, tensor in load_file(tmp_path / "one/adapter_model.safetensors").items():
        assert_close(weights[name], tensor, ADAMW_NOISE)
    looks = [JsonLines(tmp_path / n / "training/watch.jsonl").read() for n in ("one", "two")]
    assert looks[0] == looks[1]
