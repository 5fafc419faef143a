"""LLaVA 1.5 and everything saved in its format (ShareGPT4V, BakLLaVA ...)."""

from __future__ import annotations

from vlmend.models.spec import FamilySpec

SPEC = FamilySpec(
    model_type="llava",
    title="LLaVA",
    source=(
        "transformers.LlavaForConditionalGeneration; "
        "https://huggingface.co/docs/transformers/model_doc/llava"
    ),
    decoder_layers="model.language_model.layers",
    final_norm="model.language_model.norm",
    lm_head="lm_head",
    vision_stacks=("model.vision_tower.encoder.layers",),
    projector="model.multi_modal_projector",
    decoder_layer_count="text_config.num_hidden_layers",
    vision_block_counts=("vision_config.num_hidden_layers",),
    feature_layers="vision_feature_layer",
    notes=(
        "The projector reads the hidden state before the last block (-2): the last block runs "
        "but changes nothing, and exits N - 1 and N are the same.",
        "The CLS token is dropped after the exit, and no norm follows the selected state.",
        "vision_feature_layer=0 crashes in transformers 5.23; exit 0 does not use it.",
    ),
)
