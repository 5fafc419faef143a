"""What `tested_on` of a suite says is what is tested here."""

from __future__ import annotations

from pathlib import Path

import pytest
from genuine_folders import TABLES, WHOLE, build_folder

from vlmend.suites.registry import get_suite, load_suite, suite_names

FIRST_FOLDER = {"nlvr": 165}
"""Suites of which only some of the genuine pictures are at hand -> how many items these make."""


def test_specs_say_genuine_of_what_is_loaded_here_and_of_nothing_else() -> None:
    said = {name: get_suite(name).tested_on for name in suite_names()}
    genuine = {name: what for name, what in said.items() if what.startswith("genuine")}
    loaded = {**dict.fromkeys(WHOLE, "genuine"), **dict.fromkeys(TABLES, "genuine-table")}
    assert genuine == loaded


@pytest.mark.parametrize("suite", sorted({*WHOLE, *TABLES}))
def test_the_published_number_of_items_is_loaded(
    suite: str, genuine_data: Path, tmp_path: Path
) -> None:
    samples = load_suite(f"{suite}={build_folder(suite, genuine_data, tmp_path)}")
    assert len(samples) == FIRST_FOLDER.get(suite, get_suite(suite).num_items)
