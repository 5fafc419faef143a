"""An organism that has learnt nothing, in a folder as `vlmend organism train` leaves one."""

from __future__ import annotations

from pathlib import Path

from vlmend.organism.build import build_model, build_processor
from vlmend.organism.train import save_organism


def save_untrained(folder: Path) -> Path:
    """Save one; returns the folder."""
    processor = build_processor()
    return save_organism(build_model(len(processor.tokenizer), seed=0), processor, folder)
