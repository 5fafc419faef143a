"""The pictures that an organism is trained on, drawn once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor

from vlmend.organism.language import PICTURE_KINDS
from vlmend.organism.pictures import draw_picture
from vlmend.organism.world import THINGS
from vlmend.runs import replacing

PICTURES_PER_CELL = 64
"""Pictures drawn per (thing, kind) for training; 192 x 3 x 64 = 36,864 in all."""


class PicturePool:
    """All training pictures in memory, drawn once and cached as a plain .npy file.

    Attributes:
        pixels: (things, kinds, per cell, 64, 64, 3) uint8.
        letters: (things, kinds, per cell, 64) uint8 letter grid, see `pictures.Picture`.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        shape = (len(THINGS), len(PICTURE_KINDS), PICTURES_PER_CELL)
        pixels_file, letters_file = folder / "pictures.npy", folder / "letters.npy"
        if letters_file.exists():
            self.pixels = np.load(pixels_file, allow_pickle=False)
            self.letters = np.load(letters_file, allow_pickle=False)
            return
        self.pixels = np.zeros((*shape, 64, 64, 3), dtype=np.uint8)
        self.letters = np.zeros((*shape, 64), dtype=np.uint8)
        for thing, kind, copy in np.ndindex(*shape):
            index = thing, kind, copy
            # Suites draw with non-negative seeds; training uses negative ones only, so that no
            # picture that is measured on was ever seen in training.
            picture = draw_picture(THINGS[thing], PICTURE_KINDS[kind], -1 - copy - 1000 * seed)
            self.pixels[index] = np.asarray(picture.image)
            self.letters[index] = picture.letters.reshape(-1)
        for file, drawn in ((pixels_file, self.pixels), (letters_file, self.letters)):
            with replacing(file) as temporary, temporary.open("wb") as stream:
                np.save(stream, drawn)

    def batch(self, cells: Sequence[tuple[int, int]], rng: Random) -> tuple[Tensor, Tensor]:
        """Draw one picture per (thing index, kind index).

        Returns:
            pixel values (B, 3, 64, 64) float32 in -1..1, letters (B, P) int64.
        """
        copies = [rng.randrange(PICTURES_PER_CELL) for _ in cells]
        at = tuple(zip(*((t, k, c) for (t, k), c in zip(cells, copies, strict=True)), strict=True))
        pixels = torch.from_numpy(self.pixels[at]).permute(0, 3, 1, 2)
        return pixels.float().div(127.5).sub(1), torch.from_numpy(self.letters[at]).long()
