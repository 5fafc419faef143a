"""Prompts with their answers as one batch, and the logits that predict the answers.

The prompt is exactly what generation sees, and so is the answer: tokenized alone, without
special tokens, and ended by the token that ends an answer. Their boundary never merges.
Generation pads on the left, training on the right, where padding comes after all that counts:
positions need no correction, whatever way a model computes them.

Shapes: B = examples, S = columns of the left-padded prompts, N = columns of the batch,
T = columns that predict an answer token of any example, V = vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlmend.errors import ConfigError, DataError, ModelError
from vlmend.models.vlm import EncodedBatch, Vlm
from vlmend.training.examples import Example
from vlmend.training.losses.answer_nll import IGNORED
from vlmend.types import Conversation


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """A right-padded batch of prompts and answers, on the model's device.

    Attributes:
        inputs: What the model's forward takes; `input_ids` and `attention_mask` are (B, N),
            floating tensors are in the model's dtype.
        labels: (B, N) int64, the token itself in columns of an answer (its end included), -100
            everywhere else.
        num_images: Images per prompt, the same for all of them.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor
    num_images: int

    @property
    def num_answer_tokens(self) -> int:
        """Tokens that a loss is over, ends included."""
        return int((self.labels != IGNORED).sum())

    @property
    def num_tokens(self) -> int:
        """Tokens that the decoder runs, padding excluded, image tokens included."""
        return int(self.inputs["attention_mask"].sum())

    @property
    def total_images(self) -> int:
        """Images of all prompts together."""
        return self.num_images * int(self.labels.shape[0])

    @property
    def predicting(self) -> Tensor:
        """(B, N) bool: the columns whose output predicts an answer token.

        They run from the last prompt token to the last but one of the answer.
        """
        is_answer_BN = self.labels != IGNORED
        return torch.cat((is_answer_BN[:, 1:], torch.zeros_like(is_answer_BN[:, :1])), dim=1)


def encode_examples(
    vlm: Vlm,
    conversations: Sequence[Conversation],
    answers: Sequence[str],
    *,
    max_answer_tokens: int | None = None,
) -> TrainingBatch:
    """Turn prompts and answers into one right-padded batch.

    Args:
        vlm: The model.
        conversations: At least one prompt; all with the same number of images.
        answers: One answer each.
        max_answer_tokens: Longer answers are cut, see `tokenize_answer`; None keeps them whole.

    Raises:
        ConfigError: No conversation, another number of answers, different numbers of images, or
            a limit below 1.
        DataError: An answer that cannot be used, or whatever `Vlm.encode` cannot use.
        ModelError: As `Vlm.encode`; or a model without a token that ends answers.
    """
    if len(conversations) != len(answers):
        raise ConfigError(
            f"{len(conversations)} prompts were given with {len(answers)} answers. Give one "
            "answer per prompt."
        )
    encoded = vlm.encode(conversations)
    ids = [tokenize_answer(vlm, answer, max_tokens=max_answer_tokens) for answer in answers]
    return join_answers(vlm, encoded, ids)


def tokenize_answer(vlm: Vlm, answer: str, *, max_tokens: int | None = None) -> list[int]:
    """Tokens of an answer as the model would generate them, with the end of it.

    Args:
        vlm: The model.
        answer: The answer.
        max_tokens: Most tokens, the end included. What is cut does not get an end: the model
            shall not learn to stop there.

    Returns:
        At least one token id.

    Raises:
        ConfigError: A limit below 1.
        DataError: An answer that is empty, has no tokens or holds what stands for a picture.
        ModelError: Neither model nor tokenizer has a token that ends answers.
    """
    if max_tokens is not None and max_tokens < 1:
        raise ConfigError(f"a limit of {max_tokens} answer tokens was given. Allowed: at least 1.")
    ids: list[int] = vlm.tokenizer(answer, add_special_tokens=False).input_ids
    if not answer.strip() or not ids:
        raise DataError(
            f"the answer {answer!r} is empty for the tokenizer of {vlm.name!r}, so there is "
            "nothing to learn or unlearn. Leave such examples out."
        )
    if not set(ids).isdisjoint(vlm.picture_ids):
        raise DataError(
            f"the answer {answer[:60]!r} contains what {vlm.name!r} takes for an image. Remove it "
            "from the answer."
        )
    return [*ids, end_token_id(vlm)][:max_tokens]


def end_token_id(vlm: Vlm) -> int:
    """The token that ends an answer in training.

    Of the model's end tokens the one that its tokenizer calls so: with Llama 3 that ends the
    turn, while the first of the model's list ends the text.

    Raises:
        ModelError: There is none.
    """
    ends = vlm.eos_token_ids
    if not ends:
        raise ModelError(
            f"neither {vlm.name!r} nor its tokenizer names an end-of-sequence token, so the model "
            "cannot learn where an answer ends. Set eos_token_id in generation_config.json."
        )
    preferred = vlm.tokenizer.eos_token_id
    return int(preferred if preferred in ends else ends[0])


def split_by_images(examples: Sequence[Example]) -> list[list[Example]]:
    """Group examples so that each group can be one batch: by number of images, fewest first.

    Within a group the order stays.
    """
    groups: dict[int, list[Example]] = {}
    for example in examples:
        groups.setdefault(len(example.images), []).append(example)
    return [groups[count] for count in sorted(groups)]


def encode_by_images(
    vlm: Vlm,
    examples: Sequence[Example],
    answer: Callable[[Example], str] = Example.require_answer,
    *,
    max_answer_tokens: int | None = None,
) -> list[TrainingBatch]:
    """Encode examples in as many batches as there are numbers of images, fewest first.

    Args:
        vlm: The model.
        examples: Numbers of images may be mixed; within a batch the order stays.
        answer: What an example is answered with.
        max_answer_tokens: As `encode_examples`.

    Raises:
        ConfigError, DataError, ModelError: As `encode_examples`; or what `answer` raises.
    """
    return [
        encode_examples(
            vlm,
            [example.messages for example in group],
            [answer(example) for example in group],
            max_answer_tokens=max_answer_tokens,
        )
        for group in split_by_images(examples)
    ]


def answer_logits(model: Any, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
    """Run a batch and return the logits that predict its answers.

    A model that can is asked for those columns alone: a vocabulary of 128,000 over a long
    prompt would otherwise take most of the memory.

    Args:
        model: A transformers model (`Vlm.model`), adapters included.
        batch: From `encode_examples`.

    Returns:
        (B, T, V) logits in the model's dtype, and (B, T) the tokens that they are to predict,
        -100 where an example has no answer token.
    """
    next_BN = batch.labels[:, 1:]
    columns_T = (next_BN != IGNORED).any(dim=0).nonzero()[:, 0]
    # No cache: training would fill one with every layer's keys and never read it.
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        output = model(**batch.inputs, use_cache=False, logits_to_keep=columns_T)
        return output.logits, next_BN[:, columns_T]
    return model(**batch.inputs, use_cache=False).logits[:, columns_T], next_BN[:, columns_T]


def join_answers(
    vlm: Vlm, encoded: EncodedBatch, answers: Sequence[Sequence[int]]
) -> TrainingBatch:
    """One right-padded batch of encoded prompts and the tokens of their answers.

    Args:
        vlm: The model.
        encoded: Left-padded prompts, from `Vlm.encode`.
        answers: At least one token each; with the token that ends it where the answer ended.
    """
    # Strip the padding on the left, append the answers, pad on the right.
    pad_id = int(vlm.tokenizer.pad_token_id)
    ids_BS = encoded.inputs["input_ids"]
    device = ids_BS.device
    prompt_B1 = encoded.prompt_lengths[:, None]
    lengths = torch.tensor([len(answer) for answer in answers], device=device)
    end_B1 = prompt_B1 + lengths[:, None]
    column_N = torch.arange(int(end_B1.max()), device=device)
    is_prompt_BN = column_N < prompt_B1
    is_answer_BN = (column_N < end_B1) & ~is_prompt_BN
    labels_BN = torch.full_like(is_prompt_BN, IGNORED, dtype=torch.int64)
    # Row after row, as the mask is read.
    labels_BN[is_answer_BN] = torch.tensor([i for row in answers for i in row], device=device)

    # Where each column comes from; after the prompt's end, from its last column again.
    source_BN = (encoded.columns - prompt_B1 + column_N).clamp(max=encoded.columns - 1)
    row_B1 = torch.arange(encoded.batch_size, device=device)[:, None]
    inputs = {
        # What else goes by columns (which tiles a token may look at, what kind of token it is)
        # goes on as at the prompt's last token; `generate` does the same.
        name: tensor[row_B1, source_BN]
        if tensor.shape[:2] == ids_BS.shape and name not in encoded.always_asked
        else tensor
        for name, tensor in encoded.inputs.items()
    }
    moved_BN = inputs["input_ids"].masked_fill(~is_prompt_BN, pad_id)
    inputs["input_ids"] = torch.where(is_answer_BN, labels_BN, moved_BN)
    inputs["attention_mask"] = (column_N < end_B1).to(encoded.attention_mask.dtype)
    return TrainingBatch(inputs=inputs, labels=labels_BN, num_images=encoded.num_images)
