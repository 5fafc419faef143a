"""Emu3: pictures become tokens of the vocabulary; there is no encoder to leave early."""

from __future__ import annotations

from vlmend.models.spec import FamilySpec

SPEC = FamilySpec(
    model_type="emu3",
    title="Emu3",
    source=(
        "transformers.Emu3ForConditionalGeneration; "
        "https://huggingface.co/docs/transformers/model_doc/emu3"
    ),
    decoder_layers="model.text_model.layers",
    final_norm="model.text_model.norm",
    lm_head="lm_head",
    vision_stacks=(),
    projector=None,
    decoder_layer_count="text_config.num_hidden_layers",
    vision_block_counts=(),
    no_exits=(
        "a picture is turned into tokens of the vocabulary by a quantiser of convolutions, which "
        "is no stack of blocks that keep their shape"
    ),
    pictures_alone=True,
    picture_columns="some",
    notes=(
        "The quantiser normalises over a whole picture, padding included, so pictures are encoded "
        "one at a time: in a padded batch their tokens would depend on their neighbours' sizes.",
        "Tokens of pictures are words like others: nothing bars them from an answer, and the "
        "probability of a word counts them as possible.",
    ),
)
