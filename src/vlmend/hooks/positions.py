"""Named positions, and the columns of a forward pass that they mean. No torch.

A forward pass sees a *chunk* of columns: with a cache, first the whole prompt and then one
new column per step; without, the whole sequence again at every step. Names are absolute, so
`prompt_last` is the same token in all of these, and never "the last of this chunk".
Prompts are padded on the left, so the last prompt token is column P - 1 in every row.
"""

from __future__ import annotations

from typing import Literal, get_args

from vlmend.errors import ConfigError

Position = Literal["prompt_last", "prompt", "generated", "all"]
POSITIONS: tuple[Position, ...] = get_args(Position)


def check_position(position: str, allowed: tuple[str, ...] = POSITIONS) -> None:
    """Refuse an unknown position.

    Raises:
        ConfigError: With the allowed names.
    """
    if position not in allowed:
        raise ConfigError(f"unknown position {position!r}. Allowed: {', '.join(allowed)}.")


def columns_in_chunk(
    position: Position, *, prompt_columns: int, past: int, length: int
) -> tuple[int, int]:
    """Columns of the current chunk that a position means.

    Args:
        position: The name.
        prompt_columns: Padded prompt length P.
        past: Columns already in the cache; 0 without one.
        length: Columns of this chunk.

    Returns:
        (start, stop) relative to the chunk; start == stop when it holds none of them.

    Example:
        >>> columns_in_chunk("prompt_last", prompt_columns=5, past=0, length=5)  # prefill
        (4, 5)
        >>> columns_in_chunk("prompt_last", prompt_columns=5, past=5, length=1)  # cached step
        (0, 0)
        >>> columns_in_chunk("prompt_last", prompt_columns=5, past=0, length=7)  # no cache
        (4, 5)
    """
    end = past + length
    first, last = {
        "prompt_last": (prompt_columns - 1, prompt_columns),
        "prompt": (0, prompt_columns),
        "generated": (prompt_columns, end),
        "all": (0, end),
    }[position]
    start, stop = max(first, past), min(last, end)
    return (start - past, stop - past) if start < stop else (0, 0)
