"""A Chromium found on the machine: `VLMEND_CHROMIUM`, else the usual names on PATH.

Without one, or without the playwright package, the tests skip and say so.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium() -> str | None:
    named = os.environ.get("VLMEND_CHROMIUM")
    if named:
        return shutil.which(named)
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip(
        "playwright.sync_api",
        reason="browser test skipped: the playwright package is not installed",
    )
    executable = find_chromium()
    if executable is None:
        pytest.skip(
            "browser test skipped: no Chromium on this machine; install one of "
            f"{', '.join(NAMES)}, or set VLMEND_CHROMIUM to its path"
        )
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield opened
        opened.close()
