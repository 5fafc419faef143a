"""Shared fixtures: where genuine data files are, when they are there."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import traceback
from collections.abc import Generator
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: workers with two threads each on two cores crawl.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
else:
    # Maps of models are proven anew in every run of the tests, once for all of its processes,
    # which inherit this: what was proven by yesterday's code says nothing about today's.
    os.environ["VLMEND_CACHE"] = tempfile.mkdtemp(prefix="vlmend-tests-")


def _pin_of(package: str, file: str) -> Version:
    pin = re.search(rf"^{package}==(.+)$", (ROOT / file).read_text(), re.MULTILINE)
    assert pin is not None, f"{file} pins no {package}"
    return Version(pin[1])


TRANSFORMERS = Version(metadata.version("transformers"))
PIN = _pin_of("transformers", "constraints.txt")
LOWEST = _pin_of("transformers", "constraints-lowest.txt")


def _is_other_transformers() -> bool:
    """Whether transformers is another one than the pin that the tests are written at."""
    return TRANSFORMERS != PIN


FAULTS_OF_OTHERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "emu3": (
        "older ones do not hand pixels on to the model: it sees no picture",
        ("test_a_run_says*", "test_contract*image*"),
    ),
    "kosmos-2": (
        "older ones zero the padding row of its embeddings when they load it",
        ("test_a_saved_model_comes_back*",),
    ),
    "paligemma": (
        "without a cache, older ones take generated tokens for the prefix",
        ("test_a_run_says*", "test_contract*"),
    ),
    "paligemma2": ("as paligemma, and older ones do not cap its logits", ("test_a_run_says*",)),
    "video_llava": ("the processor of older ones does not take add_special_tokens", ("*",)),
}
"""Family -> why an older transformers fails the contract, and in which tests; vlmend says so, and
cannot help it. At the lowest one they must fail: what passes is no fault any more."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let families fail on an older transformers where the fault is its own."""
    if TRANSFORMERS >= PIN:
        return
    for item in items:
        called = getattr(item, "callspec", None)
        family = called.params.get("family", "") if called else ""
        reason, tests = FAULTS_OF_OTHERS.get(family, ("", ()))
        if any(fnmatch(item.name, test) for test in tests):
            item.add_marker(pytest.mark.xfail(reason=reason, strict=TRANSFORMERS == LOWEST))


@pytest.fixture(scope="session")
def at_the_pin() -> bool:
    """Whether transformers is the one that records of its families were made at."""
    return not _is_other_transformers()


def _skip_absent_families() -> Generator[None, object, object]:
    """Skip tests of families that an older transformers lacks; at the pin nothing is lacking."""
    try:
        return (yield)
    except ImportError as error:
        # Of a family's builder: what it imports of transformers is not there, or needs more.
        source = traceback.extract_tb(error.__traceback__)
        if not any(Path(frame.filename).parent.name == "tiny" for frame in source):
            raise
        if not _is_other_transformers():
            raise
        pytest.skip(f"transformers {metadata.version('transformers')} lacks it: {error}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Fixtures build models too."""
    return (yield from _skip_absent_families())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """And so do tests."""
    return (yield from _skip_absent_families())


@pytest.fixture(scope="session")
def genuine_data() -> Path:
    """Folder with genuine benchmark files, or a skip that says how to provide it."""
    folder = Path(os.environ.get("VLMEND_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"genuine data files are not at {folder}; set VLMEND_DATA to run this test")
    return folder


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Forget the proven maps, once all processes are done."""
    if not hasattr(session.config, "workerinput"):
        shutil.rmtree(os.environ["VLMEND_CACHE"], ignore_errors=True)
