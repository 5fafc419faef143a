"""What stands for a picture in prompts: as text in the chat template, as ids in the input.

Some families write a short mark into the prompt (`<image>`, `<start_of_image>`), which their
processor replaces by one id per image token; others write the image token itself. transformers
names all of these in a few attributes, asked for here.
"""

from __future__ import annotations

from typing import Any

_MARKS = (
    *("image_token", "boi_token", "image_start_token", "fake_image_token", "start_image_token"),
    "image_placeholder_token",
)
"""Attributes of processors and tokenizers that hold a mark in the prompt, the commonest first."""

_IDS = ("image_token_id", "image_token_index")
"""Attributes of configs and processors that hold the id of an image token."""

_MORE_IDS = "visual_indicator_token_ids"
"""Attribute of configs: ids that stand beside a picture and are looked up in its own table."""


def image_marks(processor: Any) -> tuple[str, ...]:
    """Texts that a prompt may show a picture by, most probable first; none for some families."""
    found: list[str] = []
    for owner in (processor, processor.tokenizer):
        for name in _MARKS:
            mark = getattr(owner, name, None)
            if mark and str(mark) not in found:
                found.append(str(mark))
    return tuple(found)


def image_token_id(config: Any, processor: Any, *, by_mark: bool = False) -> int | None:
    """The id that stands at the columns of a picture; None where a family has none.

    Args:
        config: The model's config.
        processor: Its processor.
        by_mark: Take the id of the mark that comes before those columns: they hold ids of words.
    """
    if by_mark:
        return int(processor.tokenizer.convert_tokens_to_ids(image_marks(processor)[0]))
    for owner in (config, processor):
        for name in _IDS:
            found = getattr(owner, name, None)
            if isinstance(found, int):
                return found
    mark = getattr(processor, "image_token", None)
    if mark is None:
        return None
    found = processor.tokenizer.convert_tokens_to_ids(str(mark))
    return None if found == processor.tokenizer.unk_token_id else int(found)


def picture_ids(config: Any, processor: Any, *, by_mark: bool = False) -> tuple[int, ...]:
    """All ids at whose columns a model with a picture puts something else than their embedding."""
    found = image_token_id(config, processor, by_mark=by_mark)
    more = getattr(config, _MORE_IDS, None) or ()
    return (*(() if found is None else (found,)), *(int(number) for number in more))
