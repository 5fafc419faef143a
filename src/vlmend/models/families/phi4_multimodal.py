"""Phi-4-multimodal: the decoder holds the encoder, and puts pictures among the words itself."""

from __future__ import annotations

from vlmend.models.spec import FamilySpec

SPEC = FamilySpec(
    model_type="phi4_multimodal",
    title="Phi-4-multimodal",
    source=(
        "transformers.Phi4MultimodalForCausalLM; "
        "https://huggingface.co/docs/transformers/model_doc/phi4_multimodal"
    ),
    decoder_layers="model.layers",
    final_norm="model.norm",
    lm_head="lm_head",
    vision_stacks=("model.embed_tokens_extend.image_embed.img_processor.encoder.layers",),
    # Two matrices, run once per picture.
    projector=None,
    decoder_layer_count="num_hidden_layers",
    vision_block_counts=("vision_config.num_hidden_layers",),
    feature_layers="vision_config.feature_layer",
    inserter="model.embed_tokens_extend",
    picture_columns="some",
    notes=(
        "The published models were trained to see through LoRA weights that lie in a folder of "
        "their own (vision-lora). What is loaded from the main folder sees without them.",
        "Sounds are no part of an audit: prompts never hold any, and their encoder never runs.",
        "A picture is cropped; a separator ends each row of its tokens.",
    ),
)
