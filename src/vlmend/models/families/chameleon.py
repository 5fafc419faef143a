"""Chameleon: pictures become tokens of the vocabulary; there is no encoder to leave early."""

from __future__ import annotations

from vlmend.models.spec import FamilySpec

SPEC = FamilySpec(
    model_type="chameleon",
    title="Chameleon",
    source=(
        "transformers.ChameleonForConditionalGeneration; "
        "https://huggingface.co/docs/transformers/model_doc/chameleon"
    ),
    decoder_layers="model.layers",
    final_norm="model.norm",
    lm_head="lm_head",
    vision_stacks=(),
    projector=None,
    decoder_layer_count="num_hidden_layers",
    vision_block_counts=(),
    no_exits=(
        "a picture is turned into tokens of the vocabulary by a quantiser of convolutions, which "
        "is no stack of blocks that keep their shape"
    ),
    # The published processor has none. It ends every prompt with the separator itself.
    chat_template=(
        "{% for message in messages %}"
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}"
        "{% if not loop.last %}{{ '<reserved08706>' }}{% endif %}"
        "{% endfor %}"
    ),
    picture_columns="some",
    notes=(
        "Tokens of pictures are barred from answers: the model sets their logits to the lowest "
        "number there is. `Vlm.unembed` does not, so perplexities count them as possible words.",
        "The published processor has no chat template; turns are parted by the separator, with "
        "which the processor ends every prompt.",
    ),
)
