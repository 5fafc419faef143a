"""Tiny GLM-4.1V, GLM-4.5V, GLM-4.6V and GLM-OCR."""

from __future__ import annotations

from typing import Any

from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vMoeConfig,
    Glm4vMoeForConditionalGeneration,
    Glm4vProcessor,
    Glm46VConfig,
    Glm46VForConditionalGeneration,
    Glm46VProcessor,
    GlmOcrConfig,
    GlmOcrForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil

from vlmend.models.processors import image_text_class
from vlmend.testing.tiny.parts import HEADS, IMAGE_SIZE, PATCH_SIZE, WIDTH, byte_tokenizer

_TURNS = (
    "[gMASK]<sop>"
    "{% for message in messages %}"
    "<|{{ message['role'] }}|>\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|begin_of_image|><|image|><|end_of_image|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
    "{% endfor %}"
)
GLM_TEMPLATE = _TURNS + "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
"""GLM-4.5V's and later: no end of turn, the next role ends it."""

GLM_THINKING_TEMPLATE = _TURNS + "{% if add_generation_prompt %}<|assistant|>\n<think>{% endif %}"
"""GLM-4.1V-Thinking's: an answer begins with thoughts."""


def glm_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with GLM's marks."""
    specials = ["<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"]
    specials += ["<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>"]
    specials += ["<|end_of_video|>", "<|image|>", "<|video|>", "<think>", "</think>"]
    return byte_tokenizer(specials, eos_token="<|user|>", pad_token="<|endoftext|>")


def token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The entries of a config that name what stands for pictures."""
    ids = tokenizer.get_vocab()
    return {
        "image_token_id": ids["<|image|>"],
        "video_token_id": ids["<|video|>"],
        "image_start_token_id": ids["<|begin_of_image|>"],
        "image_end_token_id": ids["<|end_of_image|>"],
        "video_start_token_id": ids["<|begin_of_video|>"],
        "video_end_token_id": ids["<|end_of_video|>"],
    }


def text_settings(tokenizer: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    """A GLM decoder of four layers."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        # Thirds (time, height, width) of half of a head's 8 dimensions, all of them rotated.
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [2, 1, 1],
            "partial_rotary_factor": 1.0,
        },
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **more,
    }


def vision_settings() -> dict[str, Any]:
    """A tower of six blocks."""
    return {
        "depth": 6,
        "hidden_size": WIDTH,
        # Also the inner width of the merger, which follows the blocks.
        "intermediate_size": 2 * WIDTH,
        "num_heads": 2,
        # Sets the grid of learned positions, which is resampled to that of the picture.
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": WIDTH,
    }


def glm_processor(
    tokenizer: PreTrainedTokenizerFast, processor_class: Any, image_class: Any, template: str
) -> Any:
    """A processor for small pictures, without its video part."""
    image_processor = image_class(
        patch_size=PATCH_SIZE,
        temporal_patch_size=2,
        merge_size=2,
        # Of two frames, which one picture counts as.
        size={
            "shortest_edge": 2 * (4 * PATCH_SIZE) ** 2,
            "longest_edge": 2 * (8 * PATCH_SIZE) ** 2,
        },
    )
    return image_text_class(processor_class)(image_processor, tokenizer, chat_template=template)


def _build_glm4v() -> tuple[Any, Any]:
    tokenizer = glm_tokenizer()
    config = Glm4vConfig(
        vision_config=vision_settings(),
        text_config=text_settings(tokenizer),
        **token_ids(tokenizer),
    )
    template = GLM_THINKING_TEMPLATE
    processor = glm_processor(tokenizer, Glm4vProcessor, Glm4vImageProcessorPil, template)
    return Glm4vForConditionalGeneration(config), processor


def _build_glm4v_moe() -> tuple[Any, Any]:
    tokenizer = glm_tokenizer()
    text = text_settings(
        tokenizer,
        first_k_dense_replace=1,
        moe_intermediate_size=WIDTH,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
    )
    config = Glm4vMoeConfig(
        vision_config=vision_settings(), text_config=text, **token_ids(tokenizer)
    )
    processor = glm_processor(tokenizer, Glm4vProcessor, Glm4vImageProcessorPil, GLM_TEMPLATE)
    return Glm4vMoeForConditionalGeneration(config), processor


def _build_glm46v() -> tuple[Any, Any]:
    tokenizer = glm_tokenizer()
    config = Glm46VConfig(
        vision_config={"model_type": "glm4v_vision", **vision_settings()},
        text_config={"model_type": "glm4v_text", **text_settings(tokenizer)},
        **token_ids(tokenizer),
    )
    processor = glm_processor(tokenizer, Glm46VProcessor, Glm46VImageProcessorPil, GLM_TEMPLATE)
    return Glm46VForConditionalGeneration(config), processor


def _build_glm_ocr() -> tuple[Any, Any]:
    tokenizer = glm_tokenizer()
    config = GlmOcrConfig(
        vision_config=vision_settings(),
        text_config=text_settings(tokenizer, head_dim=WIDTH // HEADS),
        **token_ids(tokenizer),
    )
    processor = glm_processor(tokenizer, Glm46VProcessor, Glm46VImageProcessorPil, GLM_TEMPLATE)
    return GlmOcrForConditionalGeneration(config), processor


BUILDERS = {
    "glm4v": _build_glm4v,
    "glm4v_moe": _build_glm4v_moe,
    "glm46v": _build_glm46v,
    "glm_ocr": _build_glm_ocr,
}
