from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from published_tables import build_published, to_bytes, write_images

from vlmend.errors import DataError
from vlmend.images import open_image
from vlmend.suites import figstep
from vlmend.suites.registry import load_suite

few = settings(max_examples=20, deadline=None)
FULL, TINY = build_published()["figstep"], build_published()["figstep-tiny"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path)
    return tmp_path


def test_each_row_is_its_image_with_the_fixed_prompt(folder: Path) -> None:
    sample = FULL.load(folder, to_bytes(FULL.table))[2]
    assert sample.id == "figstep/1_3"
    assert sample.text == figstep.PROMPT
    assert [image.path for image in sample.images] == [
        folder / "images" / "SafeBench" / "query_ForbidQI_1_3_6.png"
    ]
    assert sample.messages[-1].content[1] == figstep.PROMPT, "image first, as templates expect"
    assert sample.meta == {
        "topic": "Tópic 1",
        "topic_id": "1",
        "policy_topic": "no",
        "question": "How to bake 1, 3?",
        "instruction": "Steps to bake 3.",
    }


def test_topics_eight_to_ten_are_marked(folder: Path) -> None:
    samples = TINY.load(folder, to_bytes(TINY.table))
    marked = {s.meta["topic_id"] for s in samples if s.meta["policy_topic"] == "yes"}
    assert marked == {"8", "9", "10"}
    assert samples[0].id == "figstep-tiny/1_1"
    assert samples[0].images[0].path == (
        folder / "images" / "SafeBench-Tiny" / "query_ForbidQI_1_1_6.png"
    )


def test_the_folder_above_data_and_the_table_itself_are_accepted(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    write_images(data)
    samples = TINY.load(data, to_bytes(TINY.table))
    assert load_suite(f"figstep-tiny={tmp_path}") == samples
    assert load_suite(f"figstep-tiny={data / TINY.path}") == samples


@pytest.fixture(scope="module")
def lasting_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("missing")
    write_images(made)
    return made


@few
@given(number=st.integers(1, 50))
def test_a_missing_image_is_named_with_its_row(lasting_folder: Path, number: int) -> None:
    row = TINY.table[number]
    name = f"query_ForbidQI_{row[1]}_{row[2]}_6.png"
    image = lasting_folder / "images" / "SafeBench-Tiny" / name
    image.unlink()
    with pytest.raises(DataError, match="1 of 50 images") as caught:
        TINY.load(lasting_folder, to_bytes(TINY.table))
    image.touch()
    assert f"row {number}: {str(image)!r}" in str(caught.value)
    assert str(lasting_folder / TINY.path) in str(caught.value)


def test_many_missing_images_are_one_short_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="50 of 50 images") as caught:
        TINY.load(tmp_path, to_bytes(TINY.table))
    assert str(caught.value).count("row ") == 3


def test_with_a_limit_only_the_images_asked_for_must_exist(folder: Path) -> None:
    (folder / "images" / "SafeBench-Tiny" / "query_ForbidQI_1_4_6.png").unlink()
    assert len(TINY.load(folder, to_bytes(TINY.table), 3)) == 3
    with pytest.raises(DataError, match="1 of 4 images"):
        TINY.load(folder, to_bytes(TINY.table), 4)


@pytest.mark.parametrize("part", ["../../secret", "a/b", "a\\b", "x" * 300, "1\n"])
def test_a_table_cannot_point_outside_the_image_folder(folder: Path, part: str) -> None:
    table = [list(row) for row in TINY.table]
    table[9][0] = part
    with pytest.raises(DataError, match=r"row 9: .* cannot be part of an image name"):
        TINY.load(folder, to_bytes(table))


def test_a_corrupt_image_shows_when_it_is_opened(folder: Path) -> None:
    first, second = TINY.load(folder, to_bytes(TINY.table), 2)
    with pytest.raises(DataError, match=r"cannot decode image .*_1_1_6\.png"):
        open_image(first.images[0])
    out = io.BytesIO()
    Image.new("RGB", (4, 3), "white").save(out, "PNG")
    assert second.images[0].path is not None
    second.images[0].path.write_bytes(out.getvalue())
    assert open_image(second.images[0]).size == (4, 3)
