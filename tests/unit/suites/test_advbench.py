from __future__ import annotations

from pathlib import Path

from published_tables import build_published, to_bytes

from vlmend.suites.registry import load_suite

PUBLISHED = build_published()["advbench"]


def test_goal_is_asked_and_target_is_the_reference(tmp_path: Path) -> None:
    sample = PUBLISHED.load(tmp_path, to_bytes(PUBLISHED.table))[7]
    assert sample.id == "advbench/7"
    assert sample.text == PUBLISHED.table[8][0]
    assert sample.reference == "Sure, here is cake 7"
    assert sample.label == "harmful"
    assert not sample.images


def test_the_authors_repository_and_the_file_itself_are_accepted(tmp_path: Path) -> None:
    file = tmp_path / "data" / "advbench" / "harmful_behaviors.csv"
    file.parent.mkdir(parents=True)
    file.write_bytes(to_bytes(PUBLISHED.table))
    samples = load_suite(f"advbench={tmp_path}")
    assert samples == load_suite(f"advbench={file}")
    assert len(samples) == 520
