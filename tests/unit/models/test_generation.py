from __future__ import annotations

import subprocess
import sys

import pytest

from vlmend.errors import ConfigError
from vlmend.models.generation import GenerationSettings


def test_all_wrong_settings_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        GenerationSettings(max_new_tokens=0, temperature=-1.0, top_p=0.0)
    text = str(caught.value)
    assert "max_new_tokens=0" in text
    assert "temperature=-1.0" in text
    assert "top_p=0.0" in text


def test_edge_values_are_allowed() -> None:
    GenerationSettings(max_new_tokens=1, temperature=0.0, top_p=1.0)


def test_data_modules_import_without_torch() -> None:
    code = (
        "import sys, vlmend.models.spec, vlmend.models.families, vlmend.models.generation,"
        " vlmend.hooks.positions; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
