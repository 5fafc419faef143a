"""Tiny GLM-GA: the classes of GLM-4.6V under a config and with an image processor of its own."""

from __future__ import annotations

from typing import Any

from transformers import Glm46VForConditionalGeneration, Glm46VProcessor, GlmgaConfig
from transformers.models.glmga.image_processing_pil_glmga import GlmgaImageProcessorPil

from vlmend.testing.tiny import glm_vl


def _build_glmga() -> tuple[Any, Any]:
    tokenizer = glm_vl.glm_tokenizer()
    config: Any = GlmgaConfig(
        vision_config={"model_type": "glm4v_vision", **glm_vl.vision_settings()},
        text_config={"model_type": "glm4v_text", **glm_vl.text_settings(tokenizer)},
        **glm_vl.token_ids(tokenizer),
    )
    processor = glm_vl.glm_processor(
        tokenizer, Glm46VProcessor, GlmgaImageProcessorPil, glm_vl.GLM_TEMPLATE
    )
    return Glm46VForConditionalGeneration(config), processor


BUILDERS = {"glmga": _build_glmga}
