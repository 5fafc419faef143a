"""What transformers lists as image-text-to-text and the table has no row for, and why."""

from __future__ import annotations

from types import MappingProxyType

ENCODER_DECODER = "encodes prompts apart from its answers, and is refused when it is loaded"
TORCHVISION = "its processor needs torchvision, and no stand-in was written for it: not tried"
NOT_TRIED = "not tried: no tiny model was built; discovered when one is loaded, proven or refused"
SOUNDS = "its processor reads sounds as well: not tried"

_BY_REASON: dict[str, tuple[str, ...]] = {
    ENCODER_DECODER: (
        *("florence2", "pix2struct", "pp_formulanet", "t5gemma2", "udop"),
        "vision-encoder-decoder",
    ),
    "captions pictures: it asks for one in every prompt, has no chat template, and generates with "
    "a method of its own": ("blip",),
    "captions pictures: they stand before all words in columns that no id counts, and there is no "
    "chat template": ("git",),
    "reads pages for two tasks that are named by tokens, by patches with their places: not tried": (
        "kosmos-2.5",
    ),
    "behind every few of its decoder layers stand gated cross-attention layers of another list, "
    "which change what the next layer reads in prompts of words alone as well; a map knows one "
    "list of layers": ("idefics",),
    "takes videos alone, frame by frame; its pictures are the row `instructblip`": (
        "instructblipvideo",
    ),
    "reads proteins, no pictures": ("evolla",),
    "makes actions of a robot, no text": ("pi0",),
    "writes blocks of text by diffusion, not token after token": ("diffusion_gemma",),
    "a decoder of text alone, without a vision tower": ("mistral4",),
    "judges pictures with the classes of the row `gemma3`; its processor writes the whole prompt, "
    "and refuses words alone (as a judge: shieldgemma-2)": ("shieldgemma2",),
    "has the classes of the row `got_ocr2`; its processor refuses words alone": ("pp_chart2table",),
    "its tower is one of timm, which vlmend does not ask for: not tried": (
        *("fast_vlm", "gemma3n", "perception_lm"),
    ),
    TORCHVISION: (
        *("gemma4_unified", "inkling2", "inkling_mm_model", "minicpm_ocr", "minimax_m3_vl"),
        *(
            "mistral_large4",
            "muse_glimmer",
            "muse_spark",
            "nemotron_h_omni",
            "step3p7",
            "unlimited_ocr",
        ),
    ),
    SOUNDS: ("cosmos3_omni", "dots3_note", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"),
    NOT_TRIED: (
        *("cohere_compass", "cosmos3_edge", "deepseek_ocr2", "glm5_next", "granite_docling"),
        *("hyperclovax_vision_v2", "lfm3_vl", "minicpmv4_7", "qwen4_exp"),
    ),
}

ABSENT: MappingProxyType[str, str] = MappingProxyType(
    {family: reason for reason, families in _BY_REASON.items() for family in families}
)
"""`model_type` -> why the table has no row for it; with the rows, all that transformers lists."""

LACKED_BY_LOWEST = ("fuyu", "gemma4", "gemma4_e", "got_ocr2", "hunyuan_vl", "kimi_k25", "molmo2")
"""Rows that the lowest supported transformers cannot build: it lacks a class, or what one needs."""
