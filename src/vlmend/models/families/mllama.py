"""Mllama: Llama 3.2 Vision. Two vision stacks, and a decoder that looks by cross-attention."""

from __future__ import annotations

from vlmend.models.spec import FamilySpec

SPEC = FamilySpec(
    model_type="mllama",
    title="Mllama (Llama 3.2 Vision)",
    source=(
        "transformers.MllamaForConditionalGeneration; "
        "https://huggingface.co/docs/transformers/model_doc/mllama"
    ),
    decoder_layers="model.language_model.layers",
    final_norm="model.language_model.norm",
    lm_head="lm_head",
    vision_stacks=(
        "model.vision_model.transformer.layers",
        "model.vision_model.global_transformer.layers",
    ),
    projector="model.multi_modal_projector",
    decoder_layer_count="text_config.num_hidden_layers",
    vision_block_counts=("vision_config.num_hidden_layers", "vision_config.num_global_layers"),
    image_only_layers="text_config.cross_attention_layers",
    picture_columns="none",
    notes=(
        "Local blocks, a norm, then global blocks; the output is the global output "
        "concatenated with some local states (config: intermediate_layers_indices).",
        "An exit inside the local stack leaves the global stack running, on what the exit "
        "leaves; the exit at the end of the local stack equals no exit.",
        "Cross-attention layers do not run on text-only input; recordings miss them then.",
        "The image placeholder's id lies outside the vocabulary of lm_head.",
    ),
)
