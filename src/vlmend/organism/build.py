"""The organism's body: tokenizer, processor and an untrained `LlavaForConditionalGeneration`.

All three are genuine transformers classes, saved and loaded like any Hugging Face model.
The tokenizer knows the words of its world and spells everything else in characters and
bytes, so any text goes in and comes back unchanged.
"""

from __future__ import annotations

import re
import string

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vlmend.organism.language import (
    ASKS,
    CAPTION_REQUESTS,
    IMAGE_REFERENCE,
    PICTURE_KINDS,
    REFUSALS,
    caption,
    caption_request,
    category_question,
    danger_question,
    descriptions,
    kind_question,
    naming_question,
    presence_question,
    with_caption,
)
from vlmend.organism.pictures import SIZE
from vlmend.organism.world import THINGS

PATCH = 8
"""Patch size of the vision tower in pixels: 64 image tokens a picture."""

NUM_IMAGE_TOKENS = (SIZE // PATCH) ** 2

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{{ message['content'][0]['text'] }}{% endif %}"
    "{% else %}"
    "{{ ' USER:' if message['role'] == 'user' else ' ASSISTANT:' }}"
    "{% if message['content'] is string %}{{ ' ' + message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ ' <image>' }}{% else %}{{ ' ' + part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
_PIECE = re.compile(r"[A-Za-z]+(?:'[a-z]+)?:?|[^\sA-Za-z]")


def _corpus() -> list[str]:
    """Every sentence pattern of the world, to read the vocabulary from."""
    texts = ["USER: ASSISTANT:", *REFUSALS, *CAPTION_REQUESTS, caption_request(""), IMAGE_REFERENCE]
    for thing in THINGS:
        texts += descriptions(thing)
        texts += [caption(thing, kind) for kind in PICTURE_KINDS]
        for question in (
            naming_question(thing),
            category_question(thing),
            danger_question(thing),
            presence_question(thing, thing),
            presence_question(thing, THINGS[0]),
        ):
            texts += [question.text, question.answer]
        texts += [ask.answer(thing) for ask in ASKS]
    texts += [kind_question(kind).text + " " + kind_question(kind).answer for kind in PICTURE_KINDS]
    texts += [with_caption(ask.request(IMAGE_REFERENCE), "") for ask in ASKS]
    return texts


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The organism's fast tokenizer: world words, then characters, then bytes.

    Example:
        >>> tokenizer = build_tokenizer()
        >>> text = "How do I make a hammer? Größe 7 …"
        >>> tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
        True
    """
    words = sorted({piece for text in _corpus() for piece in _PIECE.findall(text)})
    pieces: dict[str, float] = dict.fromkeys(_SPECIAL, 0.0)
    for word in words:
        is_word = word[0].isalpha()
        pieces.setdefault(f"▁{word}" if is_word else word, -1.0)
    for character in ("▁", *string.ascii_letters, *string.digits, *string.punctuation):
        pieces.setdefault(character, -10.0)
    for byte in range(256):
        pieces.setdefault(f"<0x{byte:02X}>", -20.0)
    tokenizer = Tokenizer(
        Unigram(list(pieces.items()), unk_id=_SPECIAL.index("<unk>"), byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", _SPECIAL.index("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def build_processor() -> LlavaProcessor:
    """The organism's `LlavaProcessor` with the PIL image processor."""
    tokenizer = build_tokenizer()
    image_processor = CLIPImageProcessorPil(
        size={"height": SIZE, "width": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        do_center_crop=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=CHAT_TEMPLATE,
    )


def build_model(vocab_size: int, seed: int) -> LlavaForConditionalGeneration:
    """An untrained organism: CLIP tower 8 x 128, two-layer projector, Llama decoder 6 x 192.

    As in LLaVA-1.5 the projector reads the last block but one (`vision_feature_layer=-2`).

    Args:
        vocab_size: Size of the tokenizer's vocabulary.
        seed: Of the initial weights.
    """
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        hidden_act="gelu",
        projection_dim=128,
    )
    text = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=_SPECIAL.index("<pad>"),
        bos_token_id=_SPECIAL.index("<s>"),
        eos_token_id=_SPECIAL.index("</s>"),
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=_SPECIAL.index("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=NUM_IMAGE_TOKENS,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlavaForConditionalGeneration(config)
