"""Shared fixtures: where genuine data files are, when they are there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def genuine_data() -> Path:
    """Folder with genuine benchmark files, or a skip that says how to provide it."""
    folder = Path(os.environ.get("VLMEND_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"genuine data files are not at {folder}; set VLMEND_DATA to run this test")
    return folder
