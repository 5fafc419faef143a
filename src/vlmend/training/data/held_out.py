"""Examples that are not trained on, to choose by and to stop by."""

from __future__ import annotations

from collections.abc import Sequence

from vlmend.errors import ConfigError, DataError
from vlmend.training.examples import Example
from vlmend.types import sha256_json


def split_held_out(
    examples: Sequence[Example],
    share: float,
    seed: int,
    *,
    choose_from: Sequence[Example] | None = None,
) -> tuple[list[Example], list[Example]]:
    """Hold out whole groups, so that nothing held out is like something trained on.

    Args:
        examples: In any order; it stays.
        share: Of the groups to hold out, above 0 and below 1; at least one group is held out, and
            at least one is not.
        seed: Which groups. That depends on it and their names alone, so that of more examples of
            the same groups the same groups are held out.
        choose_from: Those whose groups can be held out; None for all.

    Returns:
        (to train on, held out).

    Raises:
        ConfigError: A share that is none.
        DataError: All examples that can be held out are of one group.
    """
    if not 0 < share < 1:
        raise ConfigError(f"a held-out share of {share} is not possible: above 0 and below 1.")
    chosen = examples if choose_from is None else choose_from
    groups = {group_of_example(example) for example in chosen}
    if len(groups) < 2:
        raise DataError(
            f"{len(chosen)} examples of {len(groups)} group(s) cannot be split into some to "
            "train on and some to hold out, because a group (a thing that is asked about, or one "
            "prompt) is never split. Give examples of at least two."
        )
    count = min(max(1, round(share * len(groups))), len(groups) - 1)
    held_out = set(sorted(groups, key=lambda group: sha256_json([seed, group]))[:count])
    return (
        [example for example in examples if group_of_example(example) not in held_out],
        [example for example in examples if group_of_example(example) in held_out],
    )


def group_of_example(example: Example) -> str:
    """What an example shares with others: the thing asked about, else the words of its prompt.

    Case, blanks and pictures make no other group.

    Example:
        >>> from vlmend.types import user
        >>> group_of_example(Example("a/1", "a", user("What  is it?"), None))
        'prompt:what is it?'
    """
    thing = " ".join(example.meta.get("thing", "").casefold().split())
    if thing:
        return f"thing:{thing}"
    words = " ".join(message.text for message in example.messages)
    return f"prompt:{' '.join(words.casefold().split())}"
