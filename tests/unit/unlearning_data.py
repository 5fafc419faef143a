"""Mild things to unlearn and to keep, and ways to train and to shake an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from mild_samples import ASKED

from vlmend.models.vlm import Vlm
from vlmend.repairs.unlearning.repair import Unlearning
from vlmend.repairs.unlearning.settings import UnlearningSettings
from vlmend.testing import picture
from vlmend.training.adapters import Adapter
from vlmend.training.examples import Example
from vlmend.training.loop_settings import LoopSettings
from vlmend.types import user

Kind = Literal["text", "pictures", "mixed"]

ANSWERS = ("Stir it.", "A cup of tea, still hot.", "No", "Here it is: north is up.")

SETTINGS = UnlearningSettings(rank=2)

LOOP = LoopSettings(steps=2, batch_size=4, lr=1e-2)


def forget_examples(kind: Kind = "text", count: int = 5) -> list[Example]:
    return [_example("forget", kind, i, "Sorry, no.") for i in range(count)]


def retain_examples(kind: Kind = "text", count: int = 4) -> list[Example]:
    return [_example("retain", kind, i, None) for i in range(count)]


def _example(role: str, kind: Kind, index: int, target: str | None) -> Example:
    seed = index if role == "forget" else 100 + index
    shown = kind == "pictures" or (kind == "mixed" and index % 2 == 1)
    pictures = [picture(seed)] if shown else []
    return Example(
        id=f"{role}/{index}",
        source=role,
        messages=user(f"{ASKED[index % 4]} ({role}, {index})", *pictures),
        answer=ANSWERS[index % 4],
        target=target,
    )


def trained(
    vlm: Vlm,
    folder: Path,
    settings: UnlearningSettings = SETTINGS,
    loop: LoopSettings = LOOP,
    kind: Kind = "text",
) -> Unlearning:
    retain = retain_examples(kind) if "retain" in settings.recipe.streams else []
    return Unlearning(settings, loop).fit(
        vlm, forget_examples(kind), retain, folder=folder / "training"
    )


def shake(adapter: Adapter, size: float = 0.1, seed: int = 0) -> None:
    """Move an adapter's numbers, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters.values():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
