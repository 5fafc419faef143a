"""Qwen2.5-VL: windowed vision blocks, a patch merger, three-dimensional positions."""

from __future__ import annotations

from vlmend.models.spec import FamilySpec

SPEC = FamilySpec(
    model_type="qwen2_5_vl",
    title="Qwen2.5-VL",
    source=(
        "transformers.Qwen2_5_VLForConditionalGeneration; "
        "https://huggingface.co/docs/transformers/model_doc/qwen2_5_vl"
    ),
    decoder_layers="model.language_model.layers",
    final_norm="model.language_model.norm",
    lm_head="lm_head",
    vision_stacks=("model.visual.blocks",),
    projector="model.visual.merger",
    decoder_layer_count="text_config.num_hidden_layers",
    vision_block_counts=("vision_config.depth",),
    notes=(
        "Patches of all images are one sequence, in window order between the first block and "
        "the merger; a block turned into the identity leaves that order as it is.",
        "The merger holds its own norm, which runs on whatever the exit leaves.",
        "The processor also wants a video processor; vlmend leaves it out.",
    ),
)
