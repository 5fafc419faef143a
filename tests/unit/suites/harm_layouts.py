"""Mild files in the published layouts of more suites: same keys, same number of rows.

`HARM_LAYOUTS` says for every suite which function writes what it needs into a folder.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from published_tables import Table, to_bytes, write_images
from pyarrow import parquet
from safety_layouts import PICTURE, JsonObject, put_json, put_picture

from vlmend.suites import (
    catqa,
    figstep,
    hades,
    harmbench,
    hh_rlhf,
    holisafe,
    mossbench,
    pku_saferlhf,
)


def put(path: Path, data: bytes) -> None:
    """Write bytes, with the folders above them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def to_lines(rows: list[JsonObject], newline: str = "\n") -> bytes:
    """One object a line."""
    return "".join(json.dumps(row) + newline for row in rows).encode()


# ---- tables


def strongreject_table() -> Table:
    rows = [
        [f"Kitchen {i // 53}", "a cook book", f'Bake "{i}", à la carte\nand serve it.']
        for i in range(313)
    ]
    return [["category", "source", "forbidden_prompt"], *rows]


def write_strongreject(folder: Path) -> None:
    table = folder / "strongreject_dataset" / "strongreject_dataset.csv"
    put(table, to_bytes(strongreject_table()))


def jailbreakbench_table(kind: str, index: str = "Index") -> Table:
    header = [index, "Goal", "Target", "Behavior", "Category", "Source"]
    rows = [
        [
            str(i),
            f"Bake {kind} cake {i}, with jam",
            f"Sure, cake {i}",
            f"Cake {i}",
            f"C{i // 10}",
            "" if i % 9 == 0 else "Original",
        ]
        for i in range(100)
    ]
    return [header, *rows]


def write_jailbreakbench(folder: Path) -> None:
    for kind in ("harmful", "benign"):
        put(folder / "data" / f"{kind}-behaviors.csv", to_bytes(jailbreakbench_table(kind)))


def harmbench_table(split: str) -> Table:
    header = ["Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString"]
    copied, told, plain = {"val": (20, 19, 41), "test": (80, 81, 159)}[split]
    kinds = ["copyright"] * copied + ["contextual"] * told + ["standard"] * plain
    tags = {"copyright": "lyrics, hash_check", "contextual": "context", "standard": ""}
    rows = [
        [
            f"Bake cake {i}",
            kind,
            f"kitchen_{i % 7}",
            tags[kind],
            f"Recipe {i}:\nflour, eggs" if kind == "contextual" else "",
            f"bake_cake_{split}_{i}",
        ]
        for i, kind in enumerate(kinds)
    ]
    # Both kinds mixed, as in the published tables.
    return [[*header, "BehaviorID"], *sorted(rows, key=lambda row: hash_of(row[0]))]


def hash_of(text: str) -> int:
    """A number that differs between texts, the same in every process."""
    return sum((i + 3) * ord(c) ** 2 for i, c in enumerate(text)) % 1009


def harmbench_pictures_table() -> Table:
    header = ["Behavior", "BehaviorID", "FunctionalCategory", "SemanticCategory", "ImageFileName"]
    rows = [
        [
            f"Bake what is in the picture, {i % 66}",
            f"cake_{i}",
            "multimodal",
            "kitchen",
            f"cake_{i}.png",
            "",
            f"A cake, {i}",
            f"A ____, {i}",
            "multimodal",
        ]
        for i in range(harmbench.NUM_MULTIMODAL)
    ]
    more = ["Source", "ImageDescription", "RedactedImageDescription", "Tags"]
    return [[*header, *more], *rows]


def write_harmbench(folder: Path) -> None:
    tables = folder / "data" / "behavior_datasets"
    for split in ("val", "test"):
        data = to_bytes(harmbench_table(split), "\r\n")
        put(tables / f"harmbench_behaviors_text_{split}.csv", data)
    # The published one does not end with a line break.
    data = to_bytes(harmbench_pictures_table()).rstrip(b"\n")
    put(tables / "harmbench_behaviors_multimodal_all.csv", data)
    for row in harmbench_pictures_table()[1:]:
        put_picture(folder / "data" / "multimodal_behavior_images" / row[4])


# ---- JSON


def catqa_lines() -> list[JsonObject]:
    return [
        {
            "Category": f"Kitchen {i // 50}",
            "Subcategory": f"Óven {i // 10}",
            "Question": f"Bake {i}?",
        }
        for i in range(catqa.NUM_ROWS)
    ]


def catqa_nested() -> JsonObject:
    found: JsonObject = {}
    for row in catqa_lines():
        subcategories = found.setdefault(f"{row['Category']}:", {})
        subcategories.setdefault(f"{row['Subcategory']} : ", []).append(row["Question"])
    return found


def write_catqa(folder: Path) -> None:
    put(folder / "data" / "catqa_english.json", to_lines(catqa_lines()))


def pku_rows(source: int) -> list[JsonObject]:
    """Two requests of each source's own, one of which has an unsafe response, and a shared one."""
    flags = {f"Hide sock {source}?": (True, False), f"Wash sock {source}?": (True, True)}
    flags["Burn a sock?"] = (False, False)
    return [
        {
            "prompt": prompt,
            "response_0": f"In a lake, {source}.",
            "response_1": f"In a tree, {source}.",
            "is_response_0_safe": first,
            "is_response_1_safe": second,
            "better_response_id": 0,
            "safer_response_id": 0,
        }
        for prompt, (first, second) in flags.items()
    ]


def write_pku_saferlhf(folder: Path) -> None:
    """All tables; those of the test split as long as the published ones are together."""
    last = pku_saferlhf.NUM_ROWS["Alpaca3-8B", "test"]
    lengths = (3, pku_saferlhf.NUM_TEST_ROWS - last - 3, last)
    for number, (source, length) in enumerate(zip(pku_saferlhf.SOURCES, lengths, strict=True)):
        rows = pku_rows(number)
        put(folder / "data" / source / "train.jsonl", to_lines(rows))
        rows += rows[1:2] * (length - len(rows))
        put(folder / "data" / source / "test.jsonl", to_lines(rows))


def beavertails_rows() -> list[JsonObject]:
    """3,021 rows: of every three, two answer one request, and one of these is unsafe."""
    return [
        {
            "prompt": f"Wash sock {i // 3}?" if i % 3 == 2 else f"Hide sock {i // 3}?",
            "response": f"So and so, {i}.",
            "category": {"mess,kitchen": i % 3 == 1, "silliness": i % 3 == 1 and i % 2 == 0},
            "is_safe": i % 3 != 1,
        }
        for i in range(3021)
    ]


def write_beavertails(folder: Path) -> None:
    data = gzip.compress(to_lines(beavertails_rows()), compresslevel=1)
    put(folder / "round0" / "30k" / "test.jsonl.gz", data)


def hh_rows() -> list[JsonObject]:
    """2,312 dialogues of one to three questions; 29 of them have two marks for one turn."""
    rows: list[JsonObject] = []
    for i in range(hh_rlhf.NUM_ROWS):
        asked = "".join(f"\n\nHuman: Sock {i // 2}, {n}?\n\nAssistant: Blue." for n in range(i % 3))
        mark = "Human: " if i < hh_rlhf.NUM_ROWS - hh_rlhf.NUM_DIALOGUES else ""
        before = f"{asked}\n\nHuman: {mark}And now?\n\nAssistant:"
        rows.append({"chosen": f"{before} No.", "rejected": f"{before} Yes."})
    return rows


def write_hh_rlhf(folder: Path) -> None:
    put(folder / "harmless-base" / "test.jsonl.gz", gzip.compress(to_lines(hh_rows()), 1))


def mossbench_rows(*, benign: bool) -> JsonObject:
    numbers = range(1, 301) if benign else [n for n in range(1, 301) if n <= 144 or n > 200]
    rows: JsonObject = {}
    for number in numbers:
        more = {"human": 1, "child": 0, "syn": 0, "ocr": number % 2, "harm": [number % 8]}
        rows[str(number)] = {
            "image": f"images/{number}.png",
            "short description": "",
            "question": f"Shall I eat {number}?",
            "description": "A cáke.",
            "pid": str(number),
            "metadata": {"over": f"type {(number - 1) // 100 + 1}", **(more if benign else {})},
        }
    return rows


def write_mossbench(folder: Path) -> None:
    for benign, name in ((True, "data"), (False, "data_contrast")):
        rows = mossbench_rows(benign=benign)
        put_json(folder / name / "images_information" / "information.json", rows)
        for row in rows.values():
            put_picture(folder / name / row["image"])


def holisafe_rows() -> list[JsonObject]:
    return [
        {
            # Numbers are left out, as in the published file.
            "id": i + 1 + i // 12,
            "image": f"kitchen/oven_{i % 4}/oven_{i % 40}.png",
            "image_safe": holisafe.TYPES[i % 5][0] == "S",
            "image_safety_label": 0,
            "type": holisafe.TYPES[i % 5],
            "category": f"kitchen {i % 7}",
            "subcategory": f"óven {i % 18}",
            "query": f"Shall I eat {i}?",
        }
        for i in range(holisafe.NUM_ROWS)
    ]


def write_holisafe(folder: Path) -> None:
    rows = holisafe_rows()
    put_json(folder / "holisafe_bench.json", rows)
    for name in {row["image"] for row in rows}:
        put_picture(folder / "images" / name)


# ---- others


def hades_rows() -> list[JsonObject]:
    scenarios = ("Baking", "Frying", "Eating", "Self-Service", "Washing")
    kinds = ("object", "behavior", "concept")
    return [
        {
            "image": {"bytes": PICTURE, "path": None},
            "id": str(i + 1),
            "scenario": scenario,
            "keywords": f"cake {i // 3}",
            "step": step,
            "category": kinds[i % 3],
            "instruction": f"Teach me to cut cake {i // 3} in {i} ways.",
        }
        for scenario in scenarios
        for i in range(150)
        for step in range(6)
    ]


def put_hades(folder: Path, rows: list[JsonObject]) -> None:
    """Both tables, half of the rows in each."""
    middle = len(rows) // 2
    for name, part in zip(hades.FILES, (rows[:middle], rows[middle:]), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.Table.from_pylist(part), folder / name, row_group_size=500)


def write_hades(folder: Path) -> None:
    put_hades(folder, hades_rows())


def pro_sentences() -> list[str]:
    return [f"Steps to bake *, {i}." if i == 40 else f"Steps to bake * {i}." for i in range(50)]


def write_figstep_pro(folder: Path) -> None:
    write_images(folder)
    rows = [
        ["ForbidQI", str(c), str(t), f"Tópic {c}", f"How to bake {c}, {t}?", f"Steps to bake {t}."]
        for c in range(1, 11)
        for t in range(1, 6)
    ]
    put(folder / figstep.TINY.table, to_bytes([[*map(str, figstep.COLUMNS)], *rows], "\r\n"))
    put(folder / figstep.PRO_TABLE, "\n".join(["sentence", *pro_sentences()]).encode())
    for index, parts in enumerate(figstep.PRO_PARTS):
        for part in range(parts):
            name = f"image_{index}_splits/image_{index}_split_{part}.png"
            put_picture(folder / "images" / "FigStep-Pro" / name)


HARM_LAYOUTS: dict[str, Callable[[Path], None]] = {
    "beavertails": write_beavertails,
    "catqa": write_catqa,
    "figstep-pro": write_figstep_pro,
    "hades": write_hades,
    "harmbench-copyright-test": write_harmbench,
    "harmbench-copyright-val": write_harmbench,
    "harmbench-multimodal": write_harmbench,
    "harmbench-text-test": write_harmbench,
    "harmbench-text-val": write_harmbench,
    "hh-rlhf-harmless": write_hh_rlhf,
    "holisafe": write_holisafe,
    "jailbreakbench": write_jailbreakbench,
    "jailbreakbench-benign": write_jailbreakbench,
    "mossbench": write_mossbench,
    "mossbench-contrast": write_mossbench,
    "pku-saferlhf": write_pku_saferlhf,
    "strongreject": write_strongreject,
}
"""Suite name -> what writes its files into a folder."""

assert len(mossbench_rows(benign=False)) == mossbench.CONTRAST.num_rows
