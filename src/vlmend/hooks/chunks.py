"""Forward hooks on decoder layers that know which columns they see."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from vlmend.errors import ConfigError, ModelError
from vlmend.hooks.positions import Position, check_position, columns_in_chunk
from vlmend.models.generators import past_of
from vlmend.models.spec import check_layers
from vlmend.models.vlm import Vlm

LayerHook = Callable[[int, Tensor, int, int], Tensor | None]
"""(layer, hidden (B, S, D), start, stop) -> a replacement of hidden, or None to keep it."""


@contextmanager
def hook_layers(
    vlm: Vlm,
    hooks: Mapping[int, LayerHook],
    position: Position,
    *,
    prompt_columns: int | None = None,
) -> Generator[None]:
    """Call a function at the output of decoder layers, whenever the position is in the chunk.

    Every hook is removed on the way out, whatever happened inside.

    Args:
        vlm: The model.
        hooks: Function per layer, called with the columns that the position means.
        position: The named position.
        prompt_columns: Padded prompt length, for forward passes outside `Vlm.generate` and
            `Vlm.forward_prompt`, which know it themselves.

    Raises:
        ConfigError: Layer or position unknown; or, during a pass, no prompt length known.
        ModelError: During a pass, columns behind the prompt without a cache.
    """
    check_position(position)
    check_layers(list(hooks), vlm.num_decoder_layers)
    past = 0

    def note_past(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal past
        past = past_of(kwargs)

    def on_output(
        layer: int, _module: nn.Module, _args: tuple[Any, ...], output: Any
    ) -> Any | None:
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        length = hidden.shape[1]
        columns = vlm.prompt_columns if prompt_columns is None else prompt_columns
        if columns is None:
            if position != "all":
                raise ConfigError(
                    f"position {position!r} needs to know where the prompt ends. Run the model "
                    "through Vlm.generate or Vlm.forward_prompt, or give prompt_columns."
                )
            columns = length
        if past == 0 and length < columns:
            raise ModelError(
                f"a pass of {length} columns has no cache behind it that vlmend can find, although "
                f"the prompt has {columns}, so it cannot be told which columns these are. Use "
                "`use_cache=False`, or a release of transformers that vlmend is tested with."
            )
        start, stop = columns_in_chunk(position, prompt_columns=columns, past=past, length=length)
        if start == stop:
            return None
        replaced = hooks[layer](layer, hidden, start, stop)
        if replaced is None:
            return None
        return (replaced, *output[1:]) if isinstance(output, tuple) else replaced

    with ExitStack() as stack:
        handle = vlm.decoder.register_forward_pre_hook(note_past, with_kwargs=True)
        stack.callback(handle.remove)
        for layer in hooks:
            handle = vlm.decoder_layers[layer].register_forward_hook(partial(on_output, layer))
            stack.callback(handle.remove)
        yield
