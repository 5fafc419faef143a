"""Where a model is: a folder, an id on the Hugging Face Hub, or a name that comes with vlmend."""

from __future__ import annotations

import difflib
import importlib
import math
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from vlmend.errors import ModelError

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
"""Owner and name. Ids without an owner exist, but no vision-language model has one."""

# Above us in the import order, hence by name.
ALIASES: dict[str, str] = {"organism": "vlmend.organism"}
"""Model names that come with vlmend -> module whose `weights_folder()` holds them."""


def resolve_alias(name: str) -> str:
    """The folder of a model that comes with vlmend; any other name stays as it is."""
    if name not in ALIASES:
        return name
    return str(importlib.import_module(ALIASES[name]).weights_folder())


def check_location(name: str) -> None:
    """Tell a wrong folder from a model id, before transformers takes one for the other.

    Raises:
        ModelError: Neither a saved model nor an id.
    """
    folder = Path(name)
    if name.strip() and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"folder {name!r} has no config.json, so it is no saved model. Give the folder "
                "that `save_pretrained` wrote, with model and processor."
            )
        return
    if folder.exists() or not _HUB_ID.fullmatch(name):
        raise ModelError(
            f"unknown model {name!r}: there is no such folder, and it is no Hugging Face model "
            "id either. Give a folder with config.json, or an id of the form owner/name, such as "
            f"'llava-hf/llava-1.5-7b-hf'.{_suggest(folder)}"
        )


def _suggest(folder: Path) -> str:
    """The nearest of the models that come with vlmend and of the saved ones beside the path."""
    parent = folder.parent
    try:
        beside = [str(path.parent) for path in parent.glob("*/config.json")]
    except OSError:  # no rights to look
        beside = []
    near = difflib.get_close_matches(str(folder), [*ALIASES, *beside], n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def stored_bytes(name: str, dtype: torch.dtype | None = None) -> int | None:
    """What the weights of a saved model take in memory, from the heads of its files.

    Args:
        name: As for `load_vlm`.
        dtype: What they are loaded in; None for what they are stored in.

    Returns:
        Bytes; None for what is no folder with readable safetensors files.
    """
    folder = Path(resolve_alias(str(Path(name).expanduser())))
    paths = sorted(folder.glob("*.safetensors"))
    if dtype is None:
        return sum(path.stat().st_size for path in paths) if paths else None
    size = torch.empty((), dtype=dtype).element_size()
    try:
        return sum(map(_count_numbers, paths)) * size if paths else None
    except (OSError, SafetensorError):  # loading it says what is wrong with it
        return None


def _count_numbers(path: Path) -> int:
    with safe_open(path, framework="pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
