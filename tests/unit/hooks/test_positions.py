from __future__ import annotations

from typing import Any

import pytest

from vlmend.errors import ConfigError
from vlmend.hooks.positions import POSITIONS, Position, check_position, columns_in_chunk

# A prompt of 5 columns and two new tokens: what every forward pass sees, (past, length).
CACHED = [(0, 5), (5, 1), (6, 1)]
UNCACHED = [(0, 5), (0, 6), (0, 7)]
CHUNKED_PREFILL = [(0, 3), (3, 2), (5, 1)]


def absolute(position: Position, passes: list[tuple[int, int]]) -> list[list[int]]:
    found: list[list[int]] = []
    for past, length in passes:
        start, stop = columns_in_chunk(position, prompt_columns=5, past=past, length=length)
        assert 0 <= start <= stop <= length
        found.append([past + column for column in range(start, stop)])
    return found


@pytest.mark.parametrize(
    ("position", "cached", "uncached", "chunked"),
    [
        ("prompt_last", [[4], [], []], [[4], [4], [4]], [[], [4], []]),
        (
            "prompt",
            [[0, 1, 2, 3, 4], [], []],
            [[0, 1, 2, 3, 4]] * 3,
            [[0, 1, 2], [3, 4], []],
        ),
        ("generated", [[], [5], [6]], [[], [5], [5, 6]], [[], [], [5]]),
        (
            "all",
            [[0, 1, 2, 3, 4], [5], [6]],
            [list(range(5)), list(range(6)), list(range(7))],
            [[0, 1, 2], [3, 4], [5]],
        ),
    ],
)
def test_columns_are_absolute(position: Position, cached: Any, uncached: Any, chunked: Any) -> None:
    assert absolute(position, CACHED) == cached
    assert absolute(position, UNCACHED) == uncached
    assert absolute(position, CHUNKED_PREFILL) == chunked


def test_prompt_and_generated_make_all() -> None:
    for passes in (CACHED, UNCACHED, CHUNKED_PREFILL):
        parts = zip(absolute("prompt", passes), absolute("generated", passes), strict=True)
        assert [a + b for a, b in parts] == absolute("all", passes)


def test_unknown_position() -> None:
    for position in POSITIONS:
        check_position(position)
    with pytest.raises(ConfigError, match=r"'last'\. Allowed: prompt_last, prompt, generated, all"):
        check_position("last")
