"""Tiny EXAONE 4.5: a tower like Qwen2.5-VL's with fewer heads for keys, an EXAONE 4 decoder."""

from __future__ import annotations

from typing import Any

from transformers import (
    Exaone4_5_Config,
    Exaone4_5_ForConditionalGeneration,
    Exaone4_5_Processor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vlmend.models.processors import image_text_class
from vlmend.testing.tiny.parts import HEADS, PATCH_SIZE, WIDTH, byte_tokenizer

EXAONE_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '[|' + message['role'] + '|]\n' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<vision><|image_pad|></vision>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '[|endofturn|]\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[|assistant|]\n' }}{% endif %}"
)
"""Of EXAONE 4's shape: roles in brackets."""


def _build_exaone4_5() -> tuple[Any, Any]:
    specials = ["[PAD]", "[|endofturn|]", "<vision>", "</vision>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = byte_tokenizer(specials, eos_token="[|endofturn|]", pad_token="[PAD]")
    ids = tokenizer.get_vocab()
    config = Exaone4_5_Config(
        vision_config={
            "depth": 6,
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_heads": 2,
            "num_key_value_heads": 1,
            "patch_size": PATCH_SIZE,
            # Two by two merged patches, so that windows matter in the tiny pictures.
            "window_size": 4 * PATCH_SIZE,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [2, 5],
        },
        text_config={
            "model_type": "exaone4",
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 4,
            "num_attention_heads": HEADS,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "sliding_window": 1024,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
    )
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=PATCH_SIZE,
        temporal_patch_size=2,
        merge_size=2,
        min_pixels=(4 * PATCH_SIZE) ** 2,
        max_pixels=(8 * PATCH_SIZE) ** 2,
    )
    processor_class = image_text_class(Exaone4_5_Processor)
    processor = processor_class(image_processor, tokenizer, chat_template=EXAONE_TEMPLATE)
    return Exaone4_5_ForConditionalGeneration(config), processor


BUILDERS = {"exaone4_5": _build_exaone4_5}
