"""Tiny models of every family, built offline: genuine classes, random weights.

Each has an own byte-level tokenizer that accepts any text, the family's genuine processor
with the PIL image processor, and a chat template of the published shape. Vision stacks are
deeper than decoders (or of another depth), so that code that mistakes one for the other fails.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vlmend.errors import UnknownNameError
from vlmend.models.processors import image_text_class
from vlmend.models.vlm import Vlm

IMAGE_SIZE = 32
PATCH_SIZE = 8
WIDTH = 32
HEADS = 4

LLAVA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""LLaVA 1.5's: images first; the tokenizer adds BOS."""

MLLAMA_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and messages[1:] | map(attribute='content') | sum(start=[])"
    " | selectattr('type', 'equalto', 'image') | list %}"
    "{{ raise_exception('Prompting with images is incompatible with system messages.') }}"
    "{% endif %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<|image|>' }}"
    "{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}{{ '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
"""Llama 3.2 Vision's: writes BOS itself; no system turn beside an image."""

QWEN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen2.5-VL's: a default system turn, no BOS."""


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
        model, processor = TINY_FAMILIES[family]()
        _spread_weights(model)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return Vlm(model.to(dtype), processor, name=f"tiny-{family}")


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


def _byte_tokenizer(specials: list[str], **roles: Any) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per byte and the given special tokens, in that order."""
    # Specials first: transformers' default ids for BOS and EOS then point at specials as well.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    bos = roles.get("bos_token")
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, vocab[bos])]
        )
    tokenizer.add_special_tokens(specials)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **roles)


def _clip_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=6,
        num_attention_heads=HEADS,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )


def _llama_config(vocab_size: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )


def _llava_tokenizer() -> PreTrainedTokenizerFast:
    return _byte_tokenizer(
        ["<unk>", "<s>", "</s>", "<pad>", "<image>"],
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )


def _build_llava() -> tuple[Any, Any]:
    tokenizer = _llava_tokenizer()
    config = LlavaConfig(
        vision_config=_clip_config(),
        text_config=_llama_config(len(tokenizer)),
        image_token_index=tokenizer.get_vocab()["<image>"],
        vision_feature_layer=-2,
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
    )
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=side),
        tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    return LlavaForConditionalGeneration(config), processor


def _build_llava_next() -> tuple[Any, Any]:
    tokenizer = _llava_tokenizer()
    pinpoints = [[IMAGE_SIZE, 2 * IMAGE_SIZE], [2 * IMAGE_SIZE, IMAGE_SIZE]]
    config = LlavaNextConfig(
        vision_config=_clip_config(),
        text_config=_llama_config(len(tokenizer)),
        image_token_index=tokenizer.get_vocab()["<image>"],
        vision_feature_layer=-2,
        image_grid_pinpoints=pinpoints,
    )
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = LlavaNextProcessor(
        LlavaNextImageProcessorPil(
            size={"shortest_edge": IMAGE_SIZE}, crop_size=side, image_grid_pinpoints=pinpoints
        ),
        tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    return LlavaNextForConditionalGeneration(config), processor


def _build_mllama() -> tuple[Any, Any]:
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>"]
    specials += ["<|end_header_id|>", "<|python_tag|>", "<|finetune_right_pad_id|>"]
    tokenizer = _byte_tokenizer(
        specials,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
    )
    # As published, the image token comes after the vocabulary that lm_head knows.
    vocab_size = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image|>"]})
    intermediate = [1, 3]
    config = MllamaConfig(
        vision_config={
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 5,
            "num_global_layers": 2,
            "attention_heads": HEADS,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "vision_output_dim": WIDTH * (1 + len(intermediate)),
            "intermediate_layers_indices": intermediate,
            "max_num_tiles": 4,
        },
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 6,
            "num_attention_heads": HEADS,
            "num_key_value_heads": 2,
            "cross_attention_layers": [1, 4],
            "max_position_embeddings": 2048,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        image_token_index=vocab_size,
    )
    processor = MllamaProcessor(
        MllamaImageProcessorPil(
            size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, max_image_tiles=4
        ),
        tokenizer,
        chat_template=MLLAMA_TEMPLATE,
    )
    return MllamaForConditionalGeneration(config), processor


def _build_qwen2_5_vl() -> tuple[Any, Any]:
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>"]
    specials += ["<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = _byte_tokenizer(specials, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    ids = tokenizer.get_vocab()
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 6,
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_heads": 2,
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            # Two by two merged patches, so that windows matter in the tiny pictures.
            "window_size": 4 * PATCH_SIZE,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [2, 5],
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 4,
            "num_attention_heads": HEADS,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            # Thirds (time, height, width) of half a head's 8 dimensions.
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 1, 1],
            },
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=PATCH_SIZE,
        temporal_patch_size=2,
        merge_size=2,
        min_pixels=(4 * PATCH_SIZE) ** 2,
        max_pixels=(8 * PATCH_SIZE) ** 2,
    )
    processor_class = image_text_class(Qwen2_5_VLProcessor)
    processor = processor_class(image_processor, tokenizer, chat_template=QWEN_TEMPLATE)
    return Qwen2_5_VLForConditionalGeneration(config), processor


def _spread_weights(model: nn.Module) -> None:
    """Give random weights a scale at which every part of the model matters.

    With the usual initialisation a narrow model is close to constant, and Mllama's gates are
    zero, so that images would have no effect and tests of them could not fail.
    """
    for name, parameter in model.named_parameters():
        if parameter.numel() == 1 and "gate" in name:
            nn.init.constant_(parameter, 0.7)
        elif parameter.dim() >= 2:
            fan_in = parameter[0].numel() if "embed" not in name else WIDTH
            nn.init.normal_(parameter, std=fan_in**-0.5)
        else:
            # Norms and biases too: a norm with unit weight applied twice is applied once.
            mean = 1.0 if name.endswith("weight") else 0.0
            nn.init.normal_(parameter, mean=mean, std=0.25)


TINY_FAMILIES: MappingProxyType[str, Callable[[], tuple[Any, Any]]] = MappingProxyType(
    {
        "llava": _build_llava,
        "llava_next": _build_llava_next,
        "mllama": _build_mllama,
        "qwen2_5_vl": _build_qwen2_5_vl,
    }
)
"""Builders of a (model, processor) by family."""
