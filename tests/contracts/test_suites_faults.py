"""Every loader on damaged files: an error that names the file and the row, or nothing lost.

One test per way of writing files, so that suites which read the same files are not tested again.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from published_layouts import LAYOUTS
from safety_layouts import PICTURE

from vlmend.errors import DataError
from vlmend.images import SUFFIXES
from vlmend.suites.registry import SuiteSpec, check_ids, get_suite
from vlmend.types import Sample

few = settings(
    max_examples=10,
    deadline=None,
    # Making a failing case smaller would load large suites for minutes.
    phases=(Phase.explicit, Phase.generate),
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

ONE_PER_WRITER = sorted({layout.write: name for name, layout in LAYOUTS.items()}.values())
# `partial` objects are never equal to each other; the nine suites of POPE have two layouts.
SUITES = [
    name
    for name in ONE_PER_WRITER
    if not name.startswith("pope-") or name in ("pope-random", "pope-gqa-random", "pope-v2")
]


def _own_row(number: int) -> dict[str, Any]:
    return {"id": number, "label": "benign", "image": f"{number}.png"}


def _own_messages(number: int) -> dict[str, Any]:
    parts = [{"type": "image"}, {"type": "text", "text": f"Which cake is {number}?"}]
    return {**_own_row(number), "messages": [{"role": "user", "content": parts}]}


def _own_conversation(number: int) -> dict[str, Any]:
    turns = [("human", f"<image>\nWhich cake is {number}?"), ("gpt", "A bun.")]
    told = [{"from": speaker, "value": text} for speaker, text in turns]
    return {**_own_row(number), "conversations": told}


def _own_pair(number: int) -> dict[str, Any]:
    pair = {"instruction": f"Which cake is {number}?", "response": "None."}
    return {"id": number, "image": f"{number}.png", "safe": False, "instr-resp": [pair]}


OWN_FILES: dict[str, Callable[[int], dict[str, Any]]] = {
    "trl.jsonl": _own_messages,
    "llava.json": _own_conversation,
    "vlguard.json": _own_pair,
}
"""Files of one's own -> what writes a row; their suites are named by path."""

UNIDENTIFIED = frozenset(
    {"beavertails", "catqa", "figstep-pro", "hh-rlhf-harmless", "pku-saferlhf"}
)
"""Their rows have no ids and may repeat: a row in the place of another one cannot be noticed."""

UNCOUNTED = frozenset({"trl"})
"""Of no fixed size, a row a line: a file that stops after a whole row cannot be noticed."""

NAMES_A_ROW = re.compile(r"\b(rows?|lines?|position|key|name|column|id)\b", re.IGNORECASE)
"""How an error says where in the file the fault is."""


@dataclass(frozen=True)
class Files:
    """A suite with its whole files."""

    spec: SuiteSpec
    folder: Path
    samples: list[Sample]
    tables: list[Path]

    def load(self) -> list[Sample]:
        return self.spec.load(self.folder, None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Files]:
    """A suite's files, written once."""
    made: dict[str, Files] = {}

    def get(name: str) -> Files:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            spec = _write_own(folder, name) if name in OWN_FILES else _write_published(folder, name)
            tables = sorted(p for p in folder.rglob("*") if p.is_file())
            tables = [path for path in tables if path.suffix not in SUFFIXES]
            made[name] = Files(spec, folder, spec.load(folder, None), tables)
        return made[name]

    return get


def _write_published(folder: Path, name: str) -> SuiteSpec:
    LAYOUTS[name].write_whole(folder)
    return LAYOUTS[name].shrink(get_suite(name))


def _write_own(folder: Path, name: str) -> SuiteSpec:
    rows = [OWN_FILES[name](number) for number in range(4)]
    for row in rows:
        (folder / row["image"]).write_bytes(PICTURE)
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / name).write_text(lines if name.endswith("jsonl") else json.dumps(rows))
    return get_suite(str(folder / name))


def unpack(path: Path, data: bytes) -> bytes:
    return gzip.decompress(data) if path.suffix == ".gz" else data


def pack(path: Path, data: bytes) -> bytes:
    return gzip.compress(data, 1) if path.suffix == ".gz" else data


Rows = list[Any]


def read_rows(path: Path, data: bytes) -> tuple[Rows, Callable[[Rows], bytes]]:
    """The records of a file, and how to write them again."""
    if path.suffix == ".parquet":
        return _read_parquet(data)
    text = unpack(path, data).decode("utf-8-sig")
    if path.suffix in (".csv", ".tsv"):
        return _read_table(path, text)
    if text.lstrip().startswith("["):
        return json.loads(text), lambda rows: json.dumps(rows).encode()
    try:
        items = [*json.loads(text).items()]
    except ValueError:
        lines = text.strip("\n").split("\n")
        return [*lines], lambda rows: pack(path, ("\n".join(rows) + "\n").encode())
    return items, _write_object


def _read_parquet(data: bytes) -> tuple[Rows, Callable[[Rows], bytes]]:
    table = pq.read_table(io.BytesIO(data))

    def write(changed: Rows) -> bytes:
        out = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(changed, schema=table.schema), out)
        return out.getvalue()

    return table.to_pylist(), write


def _write_object(items: Rows) -> bytes:
    """By hand, because a name may stand twice."""
    return ("{" + ", ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in items) + "}").encode()


def _read_table(path: Path, text: str) -> tuple[Rows, Callable[[Rows], bytes]]:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    header, *rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)

    def write(changed: Rows) -> bytes:
        out = io.StringIO(newline="")
        csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows([header, *changed])
        return out.getvalue().encode()

    return rows, write


def cut(path: Path, whole: bytes, data: st.DataObject) -> bytes:
    near_end = st.integers(max(0, len(whole) - 60), len(whole) - 1)
    return whole[: data.draw(st.integers(0, len(whole) - 1) | near_end, label="cut at")]


def mis_encode(path: Path, whole: bytes, data: st.DataObject) -> bytes:
    text = unpack(path, whole)
    at = data.draw(st.integers(0, len(text)), label="byte at")
    return pack(path, text[:at] + data.draw(st.sampled_from([b"\xff", b"\xe9("])) + text[at:])


def reorder(path: Path, whole: bytes, data: st.DataObject) -> bytes:
    rows, write = read_rows(path, whole)
    if len(rows) < 2:
        return whole
    first, second = (data.draw(st.integers(0, len(rows) - 1)) for _ in range(2))
    rows[first], rows[second] = rows[second], rows[first]
    return write(rows)


def repeat(path: Path, whole: bytes, data: st.DataObject) -> bytes:
    """One row in the place of another, so that their number does not tell."""
    rows, write = read_rows(path, whole)
    if len(rows) < 2:
        return whole
    first = data.draw(st.integers(0, len(rows) - 1))
    rows[first] = rows[first - 1]
    return write(rows)


def add(path: Path, whole: bytes, data: st.DataObject) -> bytes:
    """A row once more."""
    rows, write = read_rows(path, whole)
    return write([*rows, rows[data.draw(st.integers(0, len(rows) - 1))]])


FAULTS = {"cut": cut, "mis-encode": mis_encode, "reorder": reorder, "repeat": repeat, "add": add}

ROW_FAULTS = ("mis-encode", "reorder", "repeat")
"""Faults that are at one place of the file: the others may show in the number of rows only."""


def content(samples: list[Sample]) -> Counter[tuple[str, str]]:
    """What is asked, without order and without ids, which may be counted."""
    return Counter((sample.label, repr([m.text for m in sample.messages])) for sample in samples)


def check(files: Files, path: Path, fault: str) -> None:
    """Load damaged files: an error with the file's name, or all items."""
    name, said, samples = files.spec.name, "", list[Sample]()
    try:
        samples = files.load()
    except DataError as error:
        said = str(error)
    if said:
        assert str(files.folder) in said, f"no file is named: {said}"
        # Of a binary file nothing can be read at all.
        if fault in ROW_FAULTS and not (path.suffix == ".parquet" and fault == "mis-encode"):
            assert NAMES_A_ROW.search(said), f"no row is named: {said}"
        return
    check_ids(name, "sample", samples)
    lost = content(files.samples) - content(samples)
    added = content(samples) - content(files.samples)
    if fault == "repeat" and name in UNIDENTIFIED:
        assert {*content(samples)} <= {*content(files.samples)}
        return
    assert not added, f"{fault} of {path}: {sum(added.values())} items were changed silently"
    unnoticed = fault == "cut" and name in UNCOUNTED
    assert not lost or unnoticed, f"{fault} of {path}: {sum(lost.values())} items were lost"


@pytest.mark.parametrize("name", [*SUITES, *OWN_FILES])
@few
@given(data=st.data())
def test_damage_is_an_error_or_loses_nothing(
    name: str, whole: Callable[[str], Files], data: st.DataObject
) -> None:
    files = whole(name)
    fault = data.draw(st.sampled_from(sorted(FAULTS)), label="fault")
    path = data.draw(st.sampled_from(files.tables), label="file")
    before = path.read_bytes()
    try:
        path.write_bytes(FAULTS[fault](path, before, data))
        check(files, path, fault)
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("name", [*SUITES, *OWN_FILES])
@few
@given(data=st.data())
def test_a_missing_image_is_named(
    name: str, whole: Callable[[str], Files], data: st.DataObject
) -> None:
    files = whole(name)
    pictures = [i.path for s in files.samples for i in s.images if i.path is not None]
    if not pictures:
        return
    path = data.draw(st.sampled_from(pictures), label="picture")
    before = path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(DataError, match=rf"\b{re.escape(path.stem)}\b"):
            files.load()
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("name", SUITES)
def test_a_missing_table_is_named(name: str, whole: Callable[[str], Files]) -> None:
    files = whole(name)
    for path in files.tables[:1]:
        before = path.read_bytes()
        path.unlink()
        try:
            check(files, path, "cut")
        finally:
            path.write_bytes(before)
    assert files.load() == files.samples, "the files are whole again"
