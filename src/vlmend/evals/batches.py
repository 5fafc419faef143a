"""Run prompts in batches that a model accepts and memory can hold.

One batch, one number of images. Longest prompts first, so that a batch that is too large fails
at once, and prompts of like length share a batch. Halved whenever memory runs out.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from vlmend.errors import ConfigError
from vlmend.types import Conversation, conversation_images

R = TypeVar("R")


def run_in_batches(
    conversations: Sequence[Conversation], run: Callable[[list[int]], R], *, batch_size: int
) -> Iterator[tuple[list[int], R]]:
    """Call a function on batches of prompts until all are done.

    Args:
        conversations: All prompts, whatever their images.
        run: Given the places of a batch in `conversations`; what it returns is handed on.
        batch_size: Most prompts per batch; halved for the rest whenever memory runs out.

    Yields:
        (places, result) per batch; every place comes exactly once.

    Raises:
        ConfigError: A batch size below 1.
        RuntimeError, MemoryError: Whatever `run` raises, except that memory ran out on a batch
            of several.
    """
    if batch_size < 1:
        raise ConfigError(f"batch size {batch_size} is not possible: at least 1.")
    images = [len(conversation_images(conversation)) for conversation in conversations]
    lengths = [sum(len(m.text) for m in conversation) for conversation in conversations]
    waiting = sorted(range(len(conversations)), key=lambda i: (-images[i], -lengths[i], i))
    size = batch_size
    while waiting:
        batch = [i for i in waiting[:size] if images[i] == images[waiting[0]]]
        done: tuple[R] | None = None
        try:
            done = (run(batch),)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(batch) == 1:
                raise
        if done is None:
            # Not inside the handler: the error's traceback holds on to the tensors of the batch.
            size = len(batch) // 2
            free_memory()
            continue
        waiting = waiting[len(batch) :]
        yield batch, done[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    # Only PyTorch's own GPU allocator has a type for it.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in str(error)
        for words in (
            "can't allocate memory",
            "not enough memory",
            "out of memory",
            "CUBLAS_STATUS_ALLOC_FAILED",
        )
    )


def free_memory() -> None:
    """Give back what a failed batch had taken."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
