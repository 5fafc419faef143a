"""Saved tiny models and a way to run commands."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from command_line import Command, make_command


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a saved tiny model, by family; saved once."""
    from vlmend.testing import save_tiny_vlm

    folder = tmp_path_factory.mktemp("models")

    @cache
    def save(family: str) -> Path:
        # A seed whose self-captions differ by picture in every family: ShiftDC needs that.
        return save_tiny_vlm(family, folder / family, seed=5)

    return save


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process."""
    return make_command(capsys)
