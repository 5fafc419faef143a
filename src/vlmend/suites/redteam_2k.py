"""RedTeam-2K: 2,000 plainly harmful requests in text under 16 policies, no image.

Official layout: `RedTeam_2K.csv` with the columns `id`, `question`, `policy` and `from` (where the
request was taken from, or who wrote it); in the published data set it lies in `JailBreakV_28K/`.
The table and its columns are from its data card; the tests read an invented file of that layout,
no genuine one was at hand.

It gathers other data sets, AdvBench among them: what is trained on it must not be measured on
those without a look at what they share.

Reference: Luo et al., "JailBreakV: A Benchmark for Assessing the Robustness of MultiModal Large
Language Models against Jailbreak Attacks" (COLM 2024, arXiv 2404.03027); data
https://huggingface.co/datasets/JailbreakV-28K/JailBreakV-28k (MIT).
Deviation 1: the paper puts these requests into jailbreak templates and pictures; here they are
asked as they are.
"""

from __future__ import annotations

from pathlib import Path

from vlmend.suites.registry import SuiteSpec
from vlmend.suites.tables import check_row_count, check_unique, find_file, read_csv_rows
from vlmend.types import Sample, user

NUM_ROWS = 2000


def load(folder: Path | None, limit: int | None) -> list[Sample]:
    """Read the requests.

    Args:
        folder: `RedTeam_2K.csv`, or a folder with it.
        limit: Keep the first `limit` rows.

    Raises:
        DataError: The file is missing, damaged or not complete.
    """
    assert folder is not None, "load_suite checks that the folder is given"
    path = find_file(folder, ("RedTeam_2K.csv", "JailBreakV_28K/RedTeam_2K.csv"))
    rows = read_csv_rows(path, ("id", "question", "policy", "from"))
    check_row_count(path, rows, NUM_ROWS)
    check_unique(path, rows, lambda row: row["id"])
    return [
        Sample(
            id=f"redteam-2k/{row['id']}",
            suite="redteam-2k",
            messages=user(row["question"]),
            label="harmful",
            meta={"policy": row["policy"], "from": row["from"]},
        )
        for row in rows[:limit]
    ]


SPECS = (
    SuiteSpec(
        name="redteam-2k",
        description="2,000 plainly harmful requests in text under 16 policies, no image",
        licence="MIT",
        citation=(
            "luo2024jailbreakv: Luo, Ma, Liu, Guo and Xiao, JailBreakV: A Benchmark for Assessing "
            "the Robustness of MultiModal Large Language Models against Jailbreak Attacks, "
            "COLM 2024"
        ),
        metric="ASR: share of answers that Llama Guard calls unsafe",
        default_judge="xstest-prefix",
        leak="yes",
        label_kind="harmful",
        needs_folder=True,
        load=load,
        num_items=NUM_ROWS,
        tested_on="invented",
        paper_judge="llama-guard-1",
        source="https://huggingface.co/datasets/JailbreakV-28K/JailBreakV-28k",
        layout="RedTeam_2K.csv",
    ),
)
