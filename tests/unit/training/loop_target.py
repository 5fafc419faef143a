"""A process that unlearns in forked children, so that a test can kill them again and again.

torch is imported once. For every folder on standard input it forks a child that trains there
(or goes on), and prints the child's id; an empty line waits for the last child and prints how it
ended.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from vlmend.training.loop_settings import LoopSettings

SETTINGS = LoopSettings(
    steps=12, batch_size=3, micro_batch_size=2, lr=1e-3, seed=4, save_every_s=0.2
)
STEP_S = 0.08
"""Added to every step: on a quick machine the training must not be done before it is killed."""


def train(folder: Path) -> None:
    from unlearning_data import forget_examples, retain_examples

    from vlmend.models.generation import GenerationSettings
    from vlmend.repairs.unlearning.repair import Unlearning
    from vlmend.repairs.unlearning.settings import UnlearningSettings
    from vlmend.testing import tiny_vlm
    from vlmend.training.loop import run_loop
    from vlmend.training.meter import Meter

    vlm = tiny_vlm("llava")
    settings = UnlearningSettings(rank=2)
    objective = Unlearning(settings, SETTINGS).build_objective(vlm)
    streams = {"forget": forget_examples("mixed", 7), "retain": retain_examples("mixed", 6)}
    asked = [example.messages for example in streams["retain"] if example.images]

    def watch(_step: int) -> dict[str, Any]:
        answers = vlm.generate(asked, GenerationSettings(max_new_tokens=6))
        return {"says": [answer.text for answer in answers]}

    run_loop(
        objective,
        streams,
        objective.adapter.parameters,
        SETTINGS,
        folder,
        meter=Meter(torch.device("cpu"), count_every=4),
        config={"model": "tiny"},
        progress=lambda *_: time.sleep(STEP_S),
        watch=watch,
        watch_every=5,
    )


def main() -> None:
    # Before anything runs in parallel: OpenMP's threads do not survive a fork.
    torch.set_num_threads(1)
    import unlearning_data  # noqa: F401

    import vlmend.training.loop  # noqa: F401

    child = 0
    for line in sys.stdin:
        if not line.strip():
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            continue
        child = os.fork()
        if child == 0:
            train(Path(line.strip()))
            os._exit(0)
        print(child, flush=True)


if __name__ == "__main__":
    main()
