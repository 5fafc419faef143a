"""LLaVA-NeXT (LLaVA 1.6): the parts of LLaVA, several tiles per image."""

from __future__ import annotations

from vlmend.models.spec import FamilySpec

SPEC = FamilySpec(
    model_type="llava_next",
    title="LLaVA-NeXT",
    source=(
        "transformers.LlavaNextForConditionalGeneration; "
        "https://huggingface.co/docs/transformers/model_doc/llava_next"
    ),
    # Same places as in LLaVA. What differs (tiles, un-padding, newline embeddings) comes
    # after the blocks and so runs unchanged under an exit.
    decoder_layers="model.language_model.layers",
    final_norm="model.language_model.norm",
    lm_head="lm_head",
    vision_stacks=("model.vision_tower.encoder.layers",),
    projector="model.multi_modal_projector",
    decoder_layer_count="text_config.num_hidden_layers",
    vision_block_counts=("vision_config.num_hidden_layers",),
    feature_layers="vision_feature_layer",
    picture_columns="some",
    notes=(
        "All tiles of all images of a batch pass the encoder as one batch.",
        "The projector reads the hidden state before the last block (-2), as in LLaVA.",
    ),
)
