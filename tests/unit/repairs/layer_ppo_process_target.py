"""Trains by PPO in as many processes as a launcher starts; run by test_layer_ppo_processes.py."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from layer_ppo_data import SETTINGS, letters, objective, streams

import vlmend.repairs.layer_ppo.objective as module
from vlmend.repairs.layer_ppo.repair import _parameters
from vlmend.testing import tiny_vlm
from vlmend.training.loop import LoopSettings, run_loop
from vlmend.training.meter import Meter

LOOP = LoopSettings(steps=2, batch_size=3, lr=2e-2, seed=4)
"""Three prompts of every stream: two for one process, one for the other."""

TERMS = ("reward_harmful", "reward_benign", "length", "kl", "ended")


def train(folder: Path, rank: int, *, short_of_memory: bool) -> dict[str, Any]:
    """Train, and tell what this process sampled and what it ended with."""
    vlm = tiny_vlm("llava")
    found = objective(vlm, replace(SETTINGS, target_kl=9.0), letters)
    sampled: list[list[dict[str, Any]]] = []
    describe, sample = module.describe_rollouts, module.sample_answers

    def note(experiences: Any, *args: Any) -> Any:
        sampled.append(
            [
                {
                    f"reward_{e.stream}": e.score,
                    "length": e.length,
                    "kl": e.kl,
                    "ended": float(e.rollout.ended),
                }
                for e in experiences
            ]
        )
        return describe(experiences, *args)

    def refuse(*args: Any, micro: int, **more: Any) -> Any:
        if short_of_memory and rank == 1 and micro > 1:
            raise torch.OutOfMemoryError("out of memory, here alone")
        return sample(*args, micro=micro, **more)

    module.describe_rollouts, module.sample_answers = note, refuse
    try:
        with found.adapter as adapter:
            result = run_loop(
                found,
                streams(3),
                _parameters(found),
                LOOP,
                folder,
                meter=Meter(vlm.device),
            )
            weights = adapter.weights().sha256
    finally:
        module.describe_rollouts, module.sample_answers = describe, sample
    return {
        "weights": weights,
        "notes": result.notes,
        "micro": result.micro_batch_size,
        "sampled": sampled,
        "terms": [dict(step.terms) for step in result.steps],
    }


def main() -> None:
    rank = int(os.environ["RANK"])
    out = Path(sys.argv[1])
    for name, short in (("plain", False), ("short", True)):
        told = train(out / name, rank, short_of_memory=short)
        (out / f"{name}-{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
