"""Properties of every suite that is read from a published table, on mild stand-in tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published_tables import Published, build_published, to_bytes, write_images

from vlmend.errors import DataError
from vlmend.types import Sample

PUBLISHED = build_published()
names = pytest.mark.parametrize("name", sorted(PUBLISHED))
few = settings(max_examples=25, deadline=None)  # each writes and reads up to 520 rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with all FigStep images; the tests rewrite its tables."""
    made = tmp_path_factory.mktemp("published")
    write_images(made)
    return made


def load_whole(published: Published, folder: Path) -> list[Sample]:
    return published.load(folder, to_bytes(published.table))


def error_of(published: Published, folder: Path, data: bytes) -> str:
    with pytest.raises(DataError) as caught:
        published.load(folder, data)
    message = str(caught.value)
    assert str(folder / published.path) in message, "the file must be named"
    return message


@names
def test_every_row_becomes_one_sample(name: str, folder: Path) -> None:
    published = PUBLISHED[name]
    samples = load_whole(published, folder)
    assert len(samples) == len(published.table) - 1
    assert len({sample.id for sample in samples}) == len(samples)
    assert all(sample.id.startswith(f"{name}/") and sample.suite == name for sample in samples)
    assert {sample.label for sample in samples} == (
        {"harmful"} if published.spec.label_kind == "harmful" else {"harmful", "benign"}
    )
    assert all(type(value) is str for sample in samples for value in sample.meta.values())


@names
def test_a_limit_keeps_the_first_but_the_table_must_be_whole(name: str, folder: Path) -> None:
    published = PUBLISHED[name]
    data = to_bytes(published.table)
    assert published.load(folder, data, 3) == load_whole(published, folder)[:3]
    with pytest.raises(DataError, match="rows, but the published file has"):
        published.load(folder, to_bytes(published.table[:-1]), 3)


@names
@few
@given(data=st.data())
def test_order_of_columns_and_line_breaks_do_not_matter(
    name: str, folder: Path, data: st.DataObject
) -> None:
    published = PUBLISHED[name]
    order = data.draw(st.permutations(range(len(published.table[0]))))
    shuffled = [[row[i] for i in order] for row in published.table]
    newline = data.draw(st.sampled_from(["\n", "\r\n"]))
    mark = data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    loaded = published.load(folder, mark + to_bytes(shuffled, newline))
    assert loaded == load_whole(published, folder)


@names
@few
@given(data=st.data())
def test_a_file_cut_off_anywhere_is_refused_or_lost_nothing(
    name: str, folder: Path, data: st.DataObject
) -> None:
    published = PUBLISHED[name]
    whole = to_bytes(published.table)
    # Half of the cuts near the end, where the number of rows does not tell.
    near_end = st.integers(len(whole) - 40, len(whole) - 1)
    cut = data.draw(st.integers(0, len(whole) - 1) | near_end)
    if whole[cut:].strip() == b"" and name.startswith("figstep"):
        assert published.load(folder, whole[:cut]) == load_whole(published, folder)
    else:
        error_of(published, folder, whole[:cut])


@names
@few
@given(data=st.data())
def test_a_byte_that_is_not_utf8_is_named_with_its_position(
    name: str, folder: Path, data: st.DataObject
) -> None:
    published = PUBLISHED[name]
    whole = to_bytes(published.table)
    at = data.draw(st.integers(0, len(whole)))
    bad = data.draw(st.sampled_from([b"\xff", b"\xe9", b"\xc0\xaf"]))
    message = error_of(published, folder, whole[:at] + bad + whole[at:])
    assert "not UTF-8" in message
    assert "position" in message


@names
@few
@given(data=st.data())
def test_a_lost_column_is_named(name: str, folder: Path, data: st.DataObject) -> None:
    published = PUBLISHED[name]
    lost = data.draw(st.integers(0, len(published.table[0]) - 1))
    table = [[cell for i, cell in enumerate(row) if i != lost] for row in published.table]
    message = error_of(published, folder, to_bytes(table))
    assert f"no column {published.table[0][lost]!r}" in message


@names
@few
@given(data=st.data())
def test_a_lost_row_and_a_lost_cell_are_named(name: str, folder: Path, data: st.DataObject) -> None:
    published = PUBLISHED[name]
    number = data.draw(st.integers(1, len(published.table) - 1))
    without = published.table[:number] + published.table[number + 1 :]
    message = error_of(published, folder, to_bytes(without))
    assert f"has {len(without) - 1} rows" in message
    assert str(len(without)) in message
    table = [list(row) for row in published.table]
    del table[number][-1]
    assert f"row {number} " in error_of(published, folder, to_bytes(table))


@names
@few
@given(data=st.data())
def test_a_repeated_id_is_named_with_both_rows(
    name: str, folder: Path, data: st.DataObject
) -> None:
    published = PUBLISHED[name]
    rows = st.integers(1, len(published.table) - 1)
    first, second = sorted(data.draw(st.lists(rows, min_size=2, max_size=2, unique=True)))
    table = [list(row) for row in published.table]
    for column in published.key_columns:
        at = table[0].index(column)
        table[second][at] = table[first][at]
    message = error_of(published, folder, to_bytes(table))
    assert f"row {second}" in message
    assert f"row {first} " in message


@names
@few
@given(data=st.data())
def test_any_damage_gives_all_samples_or_a_data_error(
    name: str, folder: Path, data: st.DataObject
) -> None:
    published = PUBLISHED[name]
    whole = to_bytes(published.table)
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 30)))
    inserted = data.draw(st.text('a,"\n\r\x00/.é1', max_size=20)).encode()
    damaged = whole[:start] + inserted + whole[end:]
    said, samples = "", []
    try:
        samples = published.load(folder, damaged)
    except DataError as error:
        said = str(error)
    assert str(folder) in said if said else len(samples) == len(published.table) - 1
