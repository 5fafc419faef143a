"""Which suites are loaded from genuine files, and how their folders come about here."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

Build = Callable[[Path, Path], Path]
"""From the folder of genuine files and an empty one to the folder that a suite is loaded from."""

WHOLE: dict[str, str] = {
    "advbench": "advbench",
    "figstep-pro": "figstep",
    "figstep-tiny": "figstep",
    "harmbench-copyright-test": "harmbench",
    "harmbench-copyright-val": "harmbench",
    "harmbench-text-test": "harmbench",
    "harmbench-text-val": "harmbench",
    "hh-rlhf-harmless": "hh-rlhf",
    "jailbreakbench": "jailbreakbench",
    "nlvr": "nlvr/dev/images/0",
    "truthfulqa": "truthfulqa",
    "xstest": "xstest",
}
"""Suites whose files are all genuine -> where these are."""


def link(source: Path, folder: Path, *names: str) -> None:
    """Genuine files in a folder of ours, to which stand-ins for pictures can be added."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(source / name)


def stand_in(folder: Path, names: Iterable[str]) -> Path:
    """Empty files for pictures that are not at hand."""
    for name in names:
        file = folder / name.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return folder


def _figstep(genuine: Path, folder: Path) -> Path:
    link(genuine / "figstep", folder, "question/safebench.csv")
    pictures = (f"query_ForbidQI_{c}_{t}_6.png" for c in range(1, 11) for t in range(1, 51))
    return stand_in(folder, (f"images/SafeBench/{name}" for name in pictures))


def _harmbench_multimodal(genuine: Path, folder: Path) -> Path:
    table = "behavior_datasets/harmbench_behaviors_multimodal_all.csv"
    link(genuine / "harmbench", folder, table)
    with (folder / table).open(encoding="utf-8", newline="") as file:
        names = [row["ImageFileName"] for row in csv.DictReader(file)]
    return stand_in(folder, (f"multimodal_behavior_images/{name}" for name in names))


def _llava_bench(genuine: Path, folder: Path) -> Path:
    questions = "qa90_questions.jsonl"
    others = ("qa90_gpt4_answer.jsonl", "caps_boxes_coco2014_val_80.jsonl")
    link(genuine / "llava-bench-coco", folder, questions, *others)
    rows = map(json.loads, (folder / questions).read_text().splitlines())
    return stand_in(folder, (f"val2014/COCO_val2014_{row['image']}" for row in rows))


def _mossbench(pictures: str, genuine: Path, folder: Path) -> Path:
    link(genuine / "mossbench", folder, f"{pictures}_information/information.json")
    return stand_in(folder, (f"{pictures}/{number}.png" for number in range(1, 301)))


def _pope(table: str, pictures: str, genuine: Path, folder: Path) -> Path:
    link(genuine / "pope", folder, table)
    names = set(re.findall(r'"image": "([^"]+)"', (folder / table).read_text()))
    assert len(names) == 500
    return stand_in(folder, (f"{pictures}/{name}" for name in names))


def _pope_v2(genuine: Path, folder: Path) -> Path:
    link(genuine / "pope" / "POPEv2", folder, "annotations.json")
    rows = json.loads((folder / "annotations.json").read_text())
    return stand_in(folder, (row["image_name"] for row in rows))


TABLES: dict[str, Build] = {
    "figstep": _figstep,
    "harmbench-multimodal": _harmbench_multimodal,
    "llava-bench-coco": _llava_bench,
    "mossbench": partial(_mossbench, "images"),
    "mossbench-contrast": partial(_mossbench, "contrast_images"),
    "pope-adversarial": partial(_pope, "coco/coco_pope_adversarial.json", "val2014"),
    "pope-gqa-random": partial(_pope, "seem/gqa/gqa_pope_seem_random.json", "images"),
    "pope-popular": partial(_pope, "coco/coco_pope_popular.json", "val2014"),
    "pope-random": partial(_pope, "coco/coco_pope_random.json", "val2014"),
    "pope-v2": _pope_v2,
}
"""Suites whose tables are genuine and whose pictures are stood in for."""


def build_folder(suite: str, genuine: Path, folder: Path) -> Path:
    """Where a suite of `WHOLE` or `TABLES` is loaded from.

    Args:
        suite: Its name.
        genuine: The folder of genuine files.
        folder: An empty folder.
    """
    return genuine / WHOLE[suite] if suite in WHOLE else TABLES[suite](genuine, folder)
