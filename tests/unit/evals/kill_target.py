"""A process that audits in forked children, so that a test can kill them again and again.

torch is imported once. For every line "batch_size" on standard input it forks a child that runs
(or goes on with) the audit in the folder given on the command line, and prints the child's id;
an empty line waits for the last child and prints how it ended.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

NUM_ITEMS = 30
EXITS = (0, 3)
CALL_S = 0.04
"""Added to every batch: on a quick machine the audit must not be done before it is killed."""


def main() -> None:
    # Before anything runs in parallel: OpenMP's threads do not survive a fork.
    torch.set_num_threads(1)
    from eval_items import mild_samples, mild_spec

    from vlmend.audit import AuditPlan, SuitePlan, run_audit
    from vlmend.models.generation import Generation, GenerationSettings
    from vlmend.suites.registry import register
    from vlmend.testing import tiny_vlm
    from vlmend.types import Conversation

    register(mild_spec("mild", mild_samples(NUM_ITEMS)))
    vlm = tiny_vlm("llava", dtype=torch.float64)
    real = vlm.generate_plain

    def slow(
        conversations: Sequence[Conversation], settings: GenerationSettings
    ) -> list[Generation]:
        time.sleep(CALL_S)
        return real(conversations, settings)

    vlm.generate_plain = slow
    child = 0
    for line in sys.stdin:
        if not line.strip():
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            continue
        child = os.fork()
        if child == 0:
            plan = AuditPlan((SuitePlan("mild", EXITS),), max_new_tokens=4, batch_size=int(line))
            run_audit(vlm, plan, Path(sys.argv[1]), resume=True)
            os._exit(0)
        print(child, flush=True)


if __name__ == "__main__":
    main()
