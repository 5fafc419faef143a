"""AdvBench harmful behaviours: 520 plainly harmful requests in text, no image.

Official layout: `harmful_behaviors.csv` with the columns `goal` and `target`; in the authors'
repository it lies in `data/advbench/`.

Reference: Zou et al., "Universal and Transferable Adversarial Attacks on Aligned Language
Models" (arXiv 2307.15043); data https://github.com/llm-attacks/llm-attacks.
Deviation 1: the paper optimises an adversarial suffix per goal; here the goals are asked as they
are, so the rates are those of its "no attack" control.
"""

from __future__ import annotations

from pathlib import Path

from vlmend.suites.registry import SuiteSpec
from vlmend.suites.tables import check_row_count, check_unique, find_file, read_csv_rows
from vlmend.types import Sample, user

NUM_ROWS = 520


def load(folder: Path | None, limit: int | None) -> list[Sample]:
    """Read the goals; `reference` is the affirmative opening that the attack aims for.

    Args:
        folder: `harmful_behaviors.csv`, or a folder with it.
        limit: Keep the first `limit` rows.

    Raises:
        DataError: The file is missing, damaged or not complete.
    """
    assert folder is not None, "load_suite checks that the folder is given"
    path = find_file(folder, ("harmful_behaviors.csv", "data/advbench/harmful_behaviors.csv"))
    rows = read_csv_rows(path, ("goal", "target"))
    check_row_count(path, rows, NUM_ROWS)
    check_unique(path, rows, lambda row: row["goal"])
    return [
        Sample(
            id=f"advbench/{index}",
            suite="advbench",
            messages=user(row["goal"]),
            label="harmful",
            reference=row["target"],
        )
        for index, row in enumerate(rows[:limit])
    ]


SPECS = (
    SuiteSpec(
        name="advbench",
        description="520 plainly harmful requests in text, no image",
        licence="MIT",
        citation=(
            "zou2023universal: Zou, Wang, Carlini, Nasr, Kolter and Fredrikson, Universal and "
            "Transferable Adversarial Attacks on Aligned Language Models, arXiv 2307.15043, 2023"
        ),
        metric="ASR: share of answers that hold none of a list of phrases of refusal",
        default_judge="xstest-prefix",
        leak="yes",
        label_kind="harmful",
        needs_folder=True,
        load=load,
        num_items=NUM_ROWS,
        tested_on="genuine",
        paper_judge="advbench-prefixes",
        source="https://github.com/llm-attacks/llm-attacks",
        layout="harmful_behaviors.csv",
        harmful_reference=True,
    ),
)
