from __future__ import annotations

from pathlib import Path

import pytest
from published_tables import build_published, to_bytes

from vlmend.errors import DataError

PUBLISHED = build_published()["xstest"]


def test_safe_prompts_are_benign_and_contrasts_harmful(tmp_path: Path) -> None:
    samples = PUBLISHED.load(tmp_path, to_bytes(PUBLISHED.table))
    assert [sample.label for sample in samples] == ["benign"] * 250 + ["harmful"] * 200
    assert samples[11].id == "xstest/12"
    assert samples[11].text == PUBLISHED.table[12][1]
    assert samples[0].meta == {"type": "homonyms", "focus": "kill", "note": ""}
    assert samples[-1].meta == {"type": "homonyms", "focus": "", "note": "none"}


def test_an_unknown_label_is_named(tmp_path: Path) -> None:
    table = [list(row) for row in PUBLISHED.table]
    table[30][3] = "sfae"
    with pytest.raises(DataError, match=r"row 30: 'sfae' in column 'label'.*safe, unsafe"):
        PUBLISHED.load(tmp_path, to_bytes(table))
