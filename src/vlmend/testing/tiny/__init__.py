"""Tiny models of every family, built offline: genuine classes, random weights.

Each has an own byte-level tokenizer that accepts any text, the family's genuine processor
with the PIL image processor, and a chat template of the published shape. Vision stacks are
deeper than decoders (or of another depth), so that code that mistakes one for the other fails.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from vlmend.errors import UnknownNameError
from vlmend.hooks.prove import prove_spec
from vlmend.models.checks import has_parts
from vlmend.models.families import FAMILIES
from vlmend.models.vlm import Vlm
from vlmend.testing.tiny.parts import spread_weights

_MODULES: dict[str, tuple[str, ...]] = {
    "llava": ("llava", "llava_next"),
    "llava_family": (
        "llava_onevision",
        "vipllava",
        "llava_next_granite",
        "llava_next_video",
        "video_llava",
        "granite4_vision",
    ),
    "internvl": ("internvl", "got_ocr2"),
    "chameleon": ("chameleon",),
    "emu3": ("emu3",),
    "fuyu": ("fuyu",),
    "phi4_multimodal": ("phi4_multimodal",),
    "pixtral_towers": ("mistral3", "llava_pixtral", "lighton_ocr"),
    "cohere_vision": ("aya_vision", "cohere2_vision"),
    "idefics": ("idefics3", "smolvlm"),
    "aria": ("aria",),
    "lfm2_vl": ("lfm2_vl",),
    "deepseek": ("deepseek_vl", "deepseek_vl_hybrid", "janus"),
    "gemma": ("gemma3",),
    "gemma4": ("gemma4", "gemma4_e"),
    "llama4": ("llama4",),
    "kimi": ("kimi_k25",),
    "minicpm": ("minicpmv4_6",),
    "molmo2": ("molmo2",),
    "ovis2": ("ovis2",),
    "paligemma": ("paligemma", "paligemma2"),
    "idefics2": ("idefics2",),
    "mllama": ("mllama",),
    "qwen2_5_vl": ("qwen2_5_vl",),
    "glm_vl": ("glm4v", "glm4v_moe", "glm46v", "glm_ocr"),
    "glmga": ("glmga",),
    "exaone": ("exaone4_5",),
    "qianfan": ("qianfan_ocr",),
    "qwen_vl": ("qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"),
    "video_llama_3": ("video_llama_3",),
    "ernie_vl": ("ernie4_5_vl_moe", "paddleocr_vl"),
    "hunyuan_vl": ("hunyuan_vl",),
    "kosmos": ("kosmos-2",),
    "blip": ("blip-2", "instructblip"),
}
"""Module of this package -> the families in its `BUILDERS`."""

TINY_FAMILIES: MappingProxyType[str, str] = MappingProxyType(
    {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}
)
"""Family (`model_type`) -> module that holds its builder of a (model, processor)."""

STAND_INS: MappingProxyType[str, str] = MappingProxyType(
    {
        "cohere2_vision": "image processor: that of GOT-OCR 2, which cuts tiles alike",
        "kimi_k25": "image processor",
        "lfm2_vl": "image processor, for pictures of one tile",
        "llama4": "image processor",
        "llava_pixtral": "processor around the genuine image processor",
        "mistral3": "processor around the genuine image processor",
        "molmo2": "image processor: the genuine one, with torch where it calls torchvision",
        "phi4_multimodal": "image processor",
    }
)
"""Families whose genuine processor needs torchvision -> what stands in for which part of it."""

NOT_SAVED: MappingProxyType[str, str] = MappingProxyType(
    {
        "got_ocr2": "its processor forgets the number of tokens per picture, and takes 256",
        # The other one is of a class of transformers, and comes back.
        **{family: "a stand-in" for family in STAND_INS if family != "cohere2_vision"},
    }
)
"""Families whose tiny processor does not come back from a folder, and why."""


def tiny_vlm(family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Vlm:
    """Build a tiny model of a family; it answers nonsense, deterministically.

    Args:
        family: The `model_type`, one of `TINY_FAMILIES`.
        dtype: Dtype of the weights; the same numbers, rounded.
        seed: Seed of the weights.

    Raises:
        UnknownNameError: An unknown family.
    """
    if family not in TINY_FAMILIES:
        raise UnknownNameError("tiny family", family, TINY_FAMILIES)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        builders = importlib.import_module(TINY_FAMILIES[family]).BUILDERS
        model, processor = builders[family]()
        spread_weights(model)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    name = f"tiny-{family}"
    model = _cast(model, dtype).eval()
    spec = FAMILIES.get(model.config.model_type)
    if spec is None or not has_parts(model, spec):
        spec = prove_spec(model, processor, name, spec)
    return Vlm(model, processor, name=name, spec=spec)


def _cast(model: Any, dtype: torch.dtype) -> Any:
    """`model.to(dtype)` without the loss of what is imaginary, which some positions are."""
    kept = [
        (model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], buffer)
        for name, buffer in model.named_buffers()
        if buffer.is_complex()
    ]
    for owner, name, _ in kept:
        setattr(owner, name, None)
    model = model.to(dtype)
    for owner, name, buffer in kept:
        setattr(owner, name, buffer)
    return model


def save_tiny_vlm(family: str, folder: Path, *, seed: int = 0) -> Path:
    """Save a tiny model with its processor, as `load_vlm` reads it.

    Args:
        family: The `model_type`, one of `TINY_FAMILIES`.
        folder: Where to; created when missing.
        seed: Seed of the weights.

    Returns:
        The folder.
    """
    vlm = tiny_vlm(family, seed=seed)
    vlm.model.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    return folder
