"""What must be quick is quick: neither torch nor transformers behind it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

HELP_LIMIT_S = 0.3
"""What feels immediate; 0.06 s were measured on two busy cores."""

HELP_TRIES = 15
"""The best of so many: a busy machine slows a run down, nothing speeds one up."""

LIGHT_MODULES = [
    "vlmend",
    "vlmend._optional",
    "vlmend.cli.main",
    "vlmend.errors",
    "vlmend.evals.stats",
    "vlmend.images",
    "vlmend.judges.registry",
    "vlmend.models.spec",
    "vlmend.plugins",
    "vlmend.report",
    "vlmend.runs",
    "vlmend.suites.registry",
    "vlmend.types",
]


def heavy_after(code: str) -> str:
    """Run code in a fresh interpreter; the heavy modules it left imported, as text."""
    probe = f"{code}\nimport sys; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_module_imports_no_torch(module: str) -> None:
    assert heavy_after(f"import {module}") == "[]"


def test_the_probe_sees_torch() -> None:
    assert heavy_after("import torch") == "['torch']"


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['vlmend', '--help']\n"
        "from vlmend.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
    )
    assert heavy_after(code) == "[]"


def test_help_is_immediate() -> None:
    command = shutil.which("vlmend", path=str(Path(sys.executable).parent))
    assert command, "the vlmend command is not installed beside this python: make setup"
    best = float("inf")
    for _ in range(HELP_TRIES):
        start = time.perf_counter()
        subprocess.run([command, "--help"], stdout=subprocess.DEVNULL, timeout=60, check=True)
        best = min(best, time.perf_counter() - start)
        if best < HELP_LIMIT_S:
            break
    assert best < HELP_LIMIT_S, f"vlmend --help took {best:.2f} s at best"
