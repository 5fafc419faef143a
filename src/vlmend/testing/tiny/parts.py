"""What the tiny models share: sizes, a tokenizer that accepts any text, common towers."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

IMAGE_SIZE = 32
PATCH_SIZE = 8
WIDTH = 32
HEADS = 4


def byte_tokenizer(specials: list[str], **roles: Any) -> PreTrainedTokenizerFast:
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


_TOWER: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 6,
    "num_attention_heads": HEADS,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
}

_DECODER: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


def clip_config() -> CLIPVisionConfig:
    """A CLIP tower of six blocks."""
    return CLIPVisionConfig(**_TOWER)


def siglip_config() -> SiglipVisionConfig:
    """A SigLIP tower of six blocks."""
    return SiglipVisionConfig(**_TOWER, vision_use_head=False)


def llama_config(vocab_size: int) -> LlamaConfig:
    """A Llama decoder of four layers."""
    return LlamaConfig(vocab_size=vocab_size, **_DECODER)


def qwen2_config(vocab_size: int) -> Qwen2Config:
    """A Qwen2 decoder of four layers."""
    return Qwen2Config(vocab_size=vocab_size, **_DECODER)


def spread_weights(model: nn.Module) -> None:
    """Give random weights a scale at which every part of the model matters.

    With the usual initialisation a narrow model is close to constant, and Mllama's gates are
    zero, so that images would have no effect and tests of them could not fail.
    """
    for name, parameter in model.named_parameters():
        if parameter.numel() == 1 and "gate" in name:
            nn.init.constant_(parameter, 0.7)
        elif "quantize" in name and parameter.dim() >= 2:
            # Codes as far apart as the states: between closer ones the nearest is always the same.
            nn.init.normal_(parameter)
        elif parameter.dim() >= 2:
            fan_in = parameter[0].numel() if "embed" not in name else WIDTH
            if ".experts." in name and parameter.dim() == 3:
                # One matrix per expert: each of them is as strong as a layer of its own.
                fan_in = parameter.shape[-1]
            nn.init.normal_(parameter, std=fan_in**-0.5)
        else:
            # Norms and biases too: a norm with unit weight applied twice is applied once.
            mean = 1.0 if name.endswith("weight") else 0.0
            nn.init.normal_(parameter, mean=mean, std=0.25)
