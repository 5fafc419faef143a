"""What a preset says, and what is typed beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from untrained_organism import save_untrained

from vlmend.cli.main import build_parser
from vlmend.cli.unlearning_plan import UnlearningPlan, WatchNames, make_plan


def plan_of(*words: str) -> UnlearningPlan:
    return make_plan(build_parser().parse_args(["repair", "unlearn", *words]))


def test_the_organism_is_watched_by_default_and_other_models_are_not() -> None:
    watch = plan_of("organism").watch
    own = ("organism/icon", "organism/text", "organism/benign", "organism/vqa")
    assert watch.suites == own
    assert (watch.every, watch.limit) == (25, 72)
    assert plan_of("owner/model", "--forget", "a", "--retain", "b").watch == WatchNames()


def test_an_organism_in_a_folder_has_the_preset_too(tmp_path: Path) -> None:
    folder = str(save_untrained(tmp_path / "trained"))
    assert plan_of(folder) == replace(plan_of("organism"), model=folder)


def test_what_is_typed_is_watched_instead() -> None:
    plan = plan_of("organism", "--watch", "organism/text", "--watch-every", "3")
    assert plan.watch == WatchNames(("organism/text",), every=3)
    assert plan_of("organism", "--watch-limit", "5").watch.limit == 5
