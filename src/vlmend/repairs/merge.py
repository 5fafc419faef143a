"""Merging an adapter into its base model: an ordinary model folder without PEFT."""

from __future__ import annotations

from pathlib import Path

import torch

from vlmend.errors import ArtifactError
from vlmend.hooks.tolerances import Tolerance, noise_of, relative_difference
from vlmend.models.hashing import hash_weights
from vlmend.models.load import load_vlm
from vlmend.models.vlm import Vlm
from vlmend.runs import write_json
from vlmend.training.adapter_loading import merged_in, probe_logits
from vlmend.training.adapters import AdapterWeights

MERGED_FILE = "vlmend-merged.json"
"""Marks a folder as a merged model of ours, which may be written over."""

MERGED_BFLOAT16 = Tolerance(
    "weights rounded to bfloat16 after merging",
    0.15,
    "32 merges into tiny models (4 families, 4 seeds, 2 sizes of update): worst 6.6e-2; the same "
    "in float32: worst 1.8e-6",
)


def merge_tolerance(dtype: torch.dtype) -> Tolerance:
    """How far the logits of a merged model may be from those of model and adapter."""
    return MERGED_BFLOAT16 if dtype == torch.bfloat16 else noise_of(dtype)


def save_merged(vlm: Vlm, weights: AdapterWeights, folder: Path) -> float:
    """Save a model with an adapter merged into it, and prove that it is the same model.

    The model in memory stays as it is; memory must hold the changed tensors once more, and the
    saved model once, when it is read back.

    Args:
        vlm: The base model, without the adapter.
        weights: The adapter.
        folder: Where to; made if missing.

    Returns:
        The relative difference of the logits of a probe prompt.

    Raises:
        RunError: The folder cannot be written.
        ArtifactError: The adapter does not fit, the logits differ by more than
            `merge_tolerance`, or the folder read back is another model than the one saved.
    """
    with merged_in(vlm, weights) as expected:
        difference = relative_difference(probe_logits(vlm), expected)
        tolerance = merge_tolerance(vlm.dtype)
        if not difference <= tolerance.relative:
            raise ArtifactError(
                f"the merged model differs from the model with its adapter by {difference:.1e} of "
                f"the largest logit; allowed for {vlm.dtype} is {tolerance.relative:g} "
                f"({tolerance.name}). Merge in float32: --dtype float32."
            )
        # First, so that a folder left half-written is known as ours.
        write_json(
            folder / MERGED_FILE,
            {"base_weights_sha256": vlm.weights_sha256, "adapter_sha256": weights.sha256},
        )
        vlm.model.save_pretrained(folder)
        vlm.processor.save_pretrained(folder)
        merged = hash_weights(vlm.model, {})
    # The folder, not what is in memory, is what is used from now on.
    if hash_weights(load_vlm(folder).model, {}) != merged:
        raise ArtifactError(
            f"the merged model in {str(folder)!r}, read back, has other weights than the one "
            "saved. Delete the folder, check the disk and merge again."
        )
    return difference
