"""The utility suites on the genuine published files, with stand-ins for images not at hand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from genuine_folders import TABLES, build_folder

from vlmend.errors import DataError
from vlmend.images import open_image
from vlmend.judges.registry import get_judge
from vlmend.suites.registry import get_suite, load_suite
from vlmend.types import Sample, Verdict


def judge_all(suite: str, samples: list[Sample], answers: list[str]) -> dict[str, float | None]:
    """The suite's scores of some answers by its own judge."""
    spec = get_suite(suite)
    judge = get_judge(spec.default_judge)
    verdicts = [
        Verdict("r", sample.id, judge.name, judge.judge(sample, answer)[0])
        for sample, answer in zip(samples, answers, strict=True)
    ]
    assert spec.scores is not None
    return dict(spec.scores(samples, verdicts))


@pytest.mark.parametrize(
    "suite", [name for name in TABLES if name.startswith("pope-") and name != "pope-v2"]
)
def test_pope(genuine_data: Path, tmp_path: Path, suite: str) -> None:
    samples = load_suite(f"{suite}={build_folder(suite, genuine_data, tmp_path)}")
    assert Counter(sample.reference for sample in samples) == {"yes": 1500, "no": 1500}
    assert set(Counter(sample.meta["group"] for sample in samples).values()) == {6}
    assert all(sample.text.startswith("Is there a") for sample in samples)
    always_yes = judge_all(suite, samples, ["Yes, there is."] * len(samples))
    assert always_yes == pytest.approx(
        {"accuracy": 0.5, "precision": 0.5, "recall": 1.0, "f1": 2 / 3, "yes_rate": 1.0}
    )


def test_pope_without_its_images_names_them(genuine_data: Path) -> None:
    if (genuine_data / "pope" / "val2014").is_dir():
        pytest.skip("COCO's images are here; this test needs a copy without them")
    with pytest.raises(DataError, match="500 of 500 images"):
        load_suite(f"pope-random={genuine_data / 'pope'}")


def test_pope_v2(genuine_data: Path, tmp_path: Path) -> None:
    samples = load_suite(f"pope-v2={build_folder('pope-v2', genuine_data, tmp_path)}")
    assert Counter((s.meta["picture"], s.reference) for s in samples) == {
        ("edited", "no"): 500,
        ("original", "yes"): 500,
    }
    assert set(Counter(sample.meta["group"] for sample in samples).values()) == {2}


def test_nlvr_with_its_images(genuine_data: Path) -> None:
    samples = load_suite(f"nlvr={genuine_data / 'nlvr' / 'dev' / 'images' / '0'}")
    assert Counter(sample.reference for sample in samples) == {"yes": 90, "no": 75}
    assert {open_image(sample.images[0]).size for sample in samples} == {(400, 100)}
    answers = ["Yes." if sample.reference == "yes" else "No." for sample in samples]
    assert judge_all("nlvr", samples, answers) == {"accuracy": 1.0, "consistency": 1.0}
    wrong = judge_all("nlvr", samples, ["Yes."] * len(samples))
    assert wrong["accuracy"] == pytest.approx(90 / 165)
    assert (wrong["consistency"] or 0) < 0.3


def test_truthfulqa(genuine_data: Path) -> None:
    samples = load_suite(f"truthfulqa={genuine_data / 'truthfulqa'}")
    assert Counter(sample.meta["type"] for sample in samples) == {
        "Adversarial": 437,
        "Non-Adversarial": 380,
    }
    assert len({sample.meta["category"] for sample in samples}) == 38
    judge = get_judge("truthfulqa-rouge1")
    right = [judge.judge(sample, sample.reference or "")[0] for sample in samples]
    wrong = [judge.judge(s, json.loads(s.meta["false_answers"])[0])[0] for s in samples]
    # Not all: a few true and false references have the same words.
    assert right.count("complied") >= 810
    assert wrong.count("partial") >= 810


def test_llava_bench(genuine_data: Path, tmp_path: Path) -> None:
    folder = build_folder("llava-bench-coco", genuine_data, tmp_path)
    samples = load_suite(f"llava-bench-coco={folder}")
    assert Counter(sample.meta["category"] for sample in samples) == dict.fromkeys(
        ("conv", "detail", "complex"), 30
    )
    assert len({sample.meta["group"] for sample in samples}) == 30
    assert all(sample.meta["context"].count("\n") >= 5 for sample in samples)
    assert samples[0].reference is not None
    assert samples[0].reference.startswith("The colors of the two suitcases")
