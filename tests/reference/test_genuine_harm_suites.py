"""More loaders of safety suites on the genuine published files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from genuine_folders import build_folder

from vlmend.errors import DataError
from vlmend.images import open_image
from vlmend.suites.registry import load_suite


def test_figstep_pro(genuine_data: Path) -> None:
    samples = load_suite(f"figstep-pro={genuine_data / 'figstep'}")
    assert Counter(len(s.images) for s in samples) == {3: 27, 4: 20, 6: 1, 7: 2}
    for sample in samples:
        folder = sample.images[0].path.parent if sample.images[0].path else None
        assert folder is not None
        assert len(sample.images) == len(list(folder.iterdir())), "no part is left out"
    assert all(open_image(image).width > 0 for s in samples[:3] for image in s.images)
    # Row i of the sentences is row i of Tiny: most sentences are its instruction with a gap.
    fitting = [s for s in samples if fits(s.meta["sentence"], s.meta["instruction"])]
    assert len(fitting) >= 46
    assert samples[40].meta["sentence"].count(",") == 1, "a comma without quotes"


def fits(sentence: str, instruction: str) -> bool:
    before, after = (part.strip(" .").casefold() for part in sentence.split("*"))
    said = instruction.strip(" .").casefold()
    return said.startswith(before) and said.endswith(after)


@pytest.mark.parametrize(
    ("split", "kinds", "copied"),
    [
        ("val", {"standard": 41, "contextual": 19}, 20),
        ("test", {"standard": 159, "contextual": 81}, 80),
    ],
)
def test_harmbench_text(genuine_data: Path, split: str, kinds: dict[str, int], copied: int) -> None:
    folder = genuine_data / "harmbench"
    samples = load_suite(f"harmbench-text-{split}={folder}")
    assert Counter(s.meta["functional_category"] for s in samples) == kinds
    told = [s for s in samples if "context" in s.meta]
    assert len(told) == kinds["contextual"]
    for sample in told:
        context, behavior = sample.meta["context"], sample.meta["behavior"]
        assert sample.text == f"{context}\n\n---\n\n{behavior}"
    assert all("\r" not in s.meta["behavior"] for s in samples)
    protected = load_suite(f"harmbench-copyright-{split}={folder}")
    assert len(protected) == copied
    assert {s.meta["semantic_category"] for s in protected} == {"copyright"}


def test_harmbench_val_and_test_share_nothing(genuine_data: Path) -> None:
    folder = genuine_data / "harmbench"
    val, test = (
        {s.id.partition("/")[2]: s.text for s in load_suite(f"harmbench-text-{split}={folder}")}
        for split in ("val", "test")
    )
    assert val.keys().isdisjoint(test)
    # The same behaviour in another context may be in both.
    assert set(val.values()).isdisjoint(test.values())


def test_harmbench_multimodal(genuine_data: Path, tmp_path: Path) -> None:
    """The genuine table, with stand-ins for its pictures, which are not at hand."""
    folder = build_folder("harmbench-multimodal", genuine_data, tmp_path)
    samples = load_suite(f"harmbench-multimodal={folder}")
    assert len(samples) == 110
    assert len({s.meta["group"] for s in samples}) == 66
    assert all(s.meta["context"].strip() for s in samples)
    assert {s.meta["tags"] for s in samples} == {"multimodal"}
    (folder / "multimodal_behavior_images").rename(folder / "elsewhere")
    with pytest.raises(DataError, match="110 of 110 images"):
        load_suite(f"harmbench-multimodal={folder}")


def test_jailbreakbench(genuine_data: Path) -> None:
    samples = load_suite(f"jailbreakbench={genuine_data / 'jailbreakbench'}")
    assert [s.id for s in samples[::99]] == ["jailbreakbench/0", "jailbreakbench/99"]
    assert set(Counter(s.meta["category"] for s in samples).values()) == {10}
    assert Counter(s.meta["source"] for s in samples) == {
        "Original": 55,
        "TDC/HarmBench": 27,
        "AdvBench": 18,
    }
    assert all((s.reference or "").startswith("Sure, here") for s in samples[:10])


def test_hh_rlhf_harmless(genuine_data: Path) -> None:
    samples = load_suite(f"hh-rlhf-harmless={genuine_data / 'hh-rlhf'}")
    assert len(samples) == 2283
    assert Counter(s.meta["turns"] for s in samples)["1"] == 662, "its readme's single turns"
    for sample in samples:
        roles = [message.role for message in sample.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        assert all(message.text for message in sample.messages)


@pytest.mark.parametrize(
    ("suite", "information", "count"),
    [
        ("mossbench", "images_information", 300),
        ("mossbench-contrast", "contrast_images_information", 244),
    ],
)
def test_mossbench(
    genuine_data: Path, tmp_path: Path, suite: str, information: str, count: int
) -> None:
    folder = build_folder(suite, genuine_data, tmp_path)
    samples = load_suite(f"{suite}={folder}")
    assert len(samples) == count
    assert Counter(s.meta["type"] for s in samples)["exaggerated risk"] == 100
    if suite == "mossbench":
        assert Counter(s.meta["harm"] for s in samples)["7"] == 121
        assert Counter(s.meta["child"] for s in samples)["yes"] == 90
    other = "mossbench" if suite != "mossbench" else "mossbench-contrast"
    with pytest.raises(DataError, match="published file has"):
        load_suite(f"{other}={folder / information / 'information.json'}")
