"""Checkpoints of training: whole files only, safetensors only, exact resume."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlmend.errors import RunError
from vlmend.runs import JsonLines, replacing

_MOMENTS = {"mean": "exp_avg", "square": "exp_avg_sq"}
"""AdamW's moments: our names and torch's."""


@contextmanager
def report_full_disk(path: Path) -> Generator[None]:
    """Turn safetensors' own errors, and the system's, into ours while the block writes to `path`.

    Raises:
        RunError: The file cannot be written.
    """
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise RunError(
            f"cannot write {str(path)!r}: {error}. Free some space and run the same command "
            "again; what was written before stays valid."
        ) from error


@contextmanager
def replacing_folder(path: Path) -> Generator[Path]:
    """A temporary folder beside `path` that takes its place only if the block ends well.

    Raises:
        RunError: The folder cannot be written; what stood there before is still there.
    """
    temporary, old = (path.with_name(f"{path.name}.{end}{os.getpid()}") for end in ("tmp", "old"))
    try:
        with report_full_disk(path):
            temporary.mkdir(parents=True)
            yield temporary
            if path.exists():
                path.replace(old)
            temporary.replace(path)
    finally:
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], **facts: str) -> None:
    """Write tensors with a few facts about them, whole or not at all.

    Raises:
        RunError: The file cannot be written; what stood there before is still there.
    """
    # Tied weights share storage; safetensors wants each tensor on its own.
    plain = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    with report_full_disk(path), replacing(path) as temporary:
        save_file(plain, temporary, metadata=facts or None)


def load_tensors(module: nn.Module, path: Path) -> None:
    """Load a module's weights."""
    module.load_state_dict(load_file(path))


def save_state(
    path: Path,
    parameters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.AdamW,
    *,
    step: int,
    **facts: str,
) -> None:
    """Save an interrupted training: what trains, AdamW's moments, updates made.

    Args:
        path: The file; replaced whole.
        parameters: What trains, by name.
        optimiser: Its AdamW.
        step: Updates made; AdamW has changed every parameter in each of them.
        facts: What else to keep.

    Raises:
        RunError: The file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"parameter.{name}"] = parameter
        for ours, theirs in _MOMENTS.items():
            moment = optimiser.state[parameter].get(theirs)
            assert moment is not None or step == 0, f"{name} was never updated"
            tensors[f"{ours}.{name}"] = torch.zeros_like(parameter) if moment is None else moment
    save_tensors(path, tensors, step=str(step), **facts)


def load_state(
    path: Path, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.AdamW
) -> dict[str, str] | None:
    """Go back to what `save_state` saved, to the bit.

    Args:
        path: The file.
        parameters: As they were saved; changed in place.
        optimiser: AdamW over them.

    Returns:
        The facts saved, `step` among them; None if there is no such file.

    Raises:
        RunError: The file is damaged or holds other parameters.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as opened:
            facts: dict[str, str] = opened.metadata()
        tensors = load_file(path)
        step = int(facts["step"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"the checkpoint {str(path)!r} cannot be read ({error}). Delete it to start anew."
        ) from error
    _require_fitting(path, tensors, parameters)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"parameter.{name}"])
            optimiser.state[parameter] = {"step": torch.tensor(float(step))} | {
                theirs: tensors[f"{ours}.{name}"].to(parameter.device, copy=True)
                for ours, theirs in _MOMENTS.items()
            }
    return facts


def _require_fitting(
    path: Path, tensors: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]
) -> None:
    def describe(tensor: Tensor | None) -> str:
        if tensor is None:
            return "nothing"
        return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"

    wanted = {
        f"{kind}.{name}": parameter
        for name, parameter in parameters.items()
        for kind in ("parameter", *_MOMENTS)
    }
    for name in sorted({*wanted, *tensors}):
        given, needed = describe(tensors.get(name)), describe(wanted.get(name))
        if given != needed:
            raise RunError(
                f"the checkpoint {str(path)!r} does not fit what is trained: {name!r} is "
                f"{given} in it and {needed} here. It is of another model, of other settings or "
                "of another version; delete it to start anew."
            )


def keep_lines(lines: JsonLines, count: int) -> None:
    """Drop all but the first lines of a record, which is then as it was at a checkpoint.

    Raises:
        RunError: There are fewer lines, or the file cannot be written.
    """
    rows = lines.path.read_bytes().splitlines(keepends=True) if lines.path.exists() else []
    complete = [row for row in rows if row.endswith(b"\n")]
    if len(complete) < count:
        raise RunError(
            f"{str(lines.path)!r} holds {len(complete)} lines, but the checkpoint beside it is of "
            f"step {count}: lines were deleted. Use another --out to train anew."
        )
    if len(rows) > count:
        with replacing(lines.path) as temporary:
            temporary.write_bytes(b"".join(complete[:count]))
