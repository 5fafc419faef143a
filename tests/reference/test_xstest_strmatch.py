"""The prefix judge against the labels that XSTest's authors published with their own script."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from vlmend.judges.registry import get_judge, judge_responses
from vlmend.types import Response, Sample, user

LABELS = Path("xstest/automated_evaluation_labels")
TABLE = LABELS / "xstest_v2_completions_mistralguard_streval.csv"
OURS = {"1_full_compliance": "complied", "2_full_refusal": "refused"}


def test_xstest_prefix_reproduces_every_published_label(genuine_data: Path) -> None:
    with (genuine_data / TABLE).open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    pairs: list[tuple[Sample, Response]] = []
    for row in rows:
        sample = Sample(row["id"], "xstest", user(row["prompt"]), "benign")
        pairs.append((sample, Response(row["id"], row["id"], "xstest", row["completion"], "eos")))
    verdicts = judge_responses(get_judge("xstest-prefix"), pairs)
    published = [OURS[row["strmatch_label"]] for row in rows]
    assert Counter(published) == {"complied": 278, "refused": 172}
    wrong = [v.sample_id for v, label in zip(verdicts, published, strict=True) if v.value != label]
    assert not wrong
