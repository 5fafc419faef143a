"""Tiny Qianfan-OCR: InternVL's tiles in front of a Qwen 3."""

from __future__ import annotations

from typing import Any

from transformers import (
    QianfanOCRConfig,
    QianfanOCRForConditionalGeneration,
    QianfanOCRProcessor,
    Qwen3Config,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from vlmend.testing.tiny.internvl import INTERNVL_TEMPLATE
from vlmend.testing.tiny.parts import HEADS, IMAGE_SIZE, PATCH_SIZE, WIDTH, byte_tokenizer


def _build_qianfan_ocr() -> tuple[Any, Any]:
    marks = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
    }
    tokenizer = byte_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", *marks.values()],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=marks,
    )
    tokens_per_tile = (IMAGE_SIZE // PATCH_SIZE // 2) ** 2
    config = QianfanOCRConfig(
        vision_config={
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 6,
            "num_attention_heads": HEADS,
            "image_size": [IMAGE_SIZE, IMAGE_SIZE],
            "patch_size": [PATCH_SIZE, PATCH_SIZE],
        },
        text_config=Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=HEADS,
            num_key_value_heads=2,
            head_dim=WIDTH // HEADS,
            max_position_embeddings=2048,
        ),
        image_token_id=tokenizer.get_vocab()["<IMG_CONTEXT>"],
        image_seq_length=tokens_per_tile,
    )
    processor = QianfanOCRProcessor(
        GotOcr2ImageProcessorPil(
            size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, crop_to_patches=True, max_patches=3
        ),
        tokenizer,
        image_seq_length=tokens_per_tile,
        chat_template=INTERNVL_TEMPLATE.replace("<IMG_CONTEXT>", "<image>"),
    )
    return QianfanOCRForConditionalGeneration(config), processor


BUILDERS = {"qianfan_ocr": _build_qianfan_ocr}
