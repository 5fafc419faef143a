"""Checkpoints of training: whole files only, safetensors only, exact resume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlmend.runs import replacing


def save_tensors(path: Path, tensors: dict[str, Tensor], **facts: str) -> None:
    """Write tensors with a few facts about them, whole or not at all."""
    # Tied weights share storage; safetensors wants each tensor on its own.
    plain = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(plain, temporary, metadata=facts or None)


def load_tensors(module: nn.Module, path: Path) -> None:
    """Load a module's weights."""
    module.load_state_dict(load_file(path))


def save_partial(
    path: Path,
    step: int,
    modules: nn.Module,
    optimiser: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
) -> None:
    """Save an interrupted stage: weights, AdamW's moments, steps done."""
    tensors = {f"model.{name}": tensor for name, tensor in modules.state_dict().items()}
    for index, parameter in enumerate(parameters):
        state = optimiser.state[parameter]
        tensors[f"mean.{index}"] = state["exp_avg"]
        tensors[f"square.{index}"] = state["exp_avg_sq"]
    save_tensors(path, tensors, step=str(step))


def load_partial(
    path: Path,
    modules: nn.Module,
    optimiser: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
) -> int:
    """Restore an interrupted stage; the number of steps already done."""
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as opened:
        step = int(opened.metadata()["step"])
    tensors = load_file(path)
    modules.load_state_dict(
        {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    )
    for index, parameter in enumerate(parameters):
        optimiser.state[parameter] = {
            "step": torch.tensor(float(step)),
            "exp_avg": tensors[f"mean.{index}"].to(parameter.device, copy=True),
            "exp_avg_sq": tensors[f"square.{index}"].to(parameter.device, copy=True),
        }
    return step
