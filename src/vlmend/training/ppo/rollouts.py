"""Sampling answers at vision exits, and reading them back: log-probabilities, values, entropy.

A rollout keeps what the decoder was fed of its pictures, so the image encoder runs once per
picture and step, whatever exits the rollouts have and however often they are read again.

An answer is read with the prompt exactly as it was sampled from: with the same temperature, and
without what stands for a picture, which the model is not allowed to say. So the first reading of an
answer by the policy that sampled it gives the probabilities that it was sampled with.

Shapes: B = rollouts of a batch, C = columns that predict an answer token of any of them,
M = answer tokens of all of them, T = answer tokens of the longest, V = vocabulary, D = width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from vlmend.hooks.capture import capturing_unembedded
from vlmend.hooks.image_inputs import ImageInputs, feeding, record_image_inputs, take_prompts
from vlmend.models.encode import EncodedBatch
from vlmend.models.generation import GenerationSettings
from vlmend.models.vlm import Vlm
from vlmend.training.batches import TrainingBatch, answer_logits, join_answers
from vlmend.training.examples import Example
from vlmend.training.losses.answer_nll import IGNORED, widen
from vlmend.training.losses.entropy import token_entropy

_NEVER = -1e9
"""The logit of what cannot be said; finite, as nan comes of infinities."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be answered, and where its pictures leave the encoder.

    Attributes:
        stream: Name of its stream.
        example: The prompt.
        exit: The vision exit l.
    """

    stream: str
    example: Example
    exit: int


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """An answer to a prompt, given by the model or to be learnt.

    Attributes:
        prompt: What was asked.
        encoded: The prompt alone, without pixels.
        images: What the decoder is fed of its pictures; one row.
        token_ids: The answer, with the token that ends it where it ended.
        text: The answer as text.
        ended: Whether it ended, and was not cut at the length limit.
    """

    prompt: Prompt
    encoded: EncodedBatch
    images: ImageInputs
    token_ids: tuple[int, ...]
    text: str
    ended: bool


class Reading(NamedTuple):
    """A batch of answers under the weights of the moment; rows are right-padded.

    Attributes:
        log_probs: (B, T) of the tokens, given all before; 0 outside the mask.
        mask: (B, T) true at answer tokens.
        values: (B, T) of the value head before each token; None without a head.
        entropy: (B, T) of the distribution that each token is from; None if not asked for.
        tokens: Tokens that the decoder ran, padding excluded.
    """

    log_probs: Tensor
    mask: Tensor
    values: Tensor | None
    entropy: Tensor | None
    tokens: int


class ValueHead(nn.Linear):
    """One linear map from the last hidden state to the reward still to come; zero at first."""

    def __init__(self, width: int, device: torch.device) -> None:
        """Make it, in float32."""
        super().__init__(width, 1, device=device, dtype=torch.float32)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """(M, D) hidden states in any dtype to (M,) values in float32."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float()).squeeze(-1)


# ---- sampling


def sample_answers(
    vlm: Vlm,
    prompts: Sequence[Prompt],
    settings: GenerationSettings,
    *,
    micro: int,
    asked: Sequence[Asked] | None = None,
) -> list[Rollout]:
    """Let the model answer prompts at their exits, whatever adapters are on.

    Prompts that differ in their exit alone share the run of the image encoder.

    Args:
        vlm: The model, not at an exit.
        prompts: What is asked; one may come several times.
        settings: How to generate; above temperature 0 the seed decides, with the batches.
        micro: Most answers per batch.
        asked: What `record_prompts` made of the prompts; None makes it now.

    Returns:
        One rollout per prompt, in order.
    """
    found: dict[int, Rollout] = {}
    asked = record_prompts(vlm, prompts, micro=micro) if asked is None else asked
    for number, places in enumerate(_batches(prompts, micro)):
        rows = [asked[place] for place in places]
        encoded = _pad_left([row.encoded for row in rows], int(vlm.tokenizer.pad_token_id))
        images = ImageInputs.join([row.images for row in rows])
        seeded = GenerationSettings(
            settings.max_new_tokens, settings.temperature, seed=settings.seed + number
        )
        with feeding(vlm, images, encoded.inputs["input_ids"]):
            answers = vlm.generate_encoded(encoded, seeded)
        for place, answer in zip(places, answers, strict=True):
            ended = answer.finish == "eos"
            found[place] = Rollout(
                prompts[place], *asked[place], answer.token_ids, answer.text, ended
            )
    return [found[place] for place in range(len(prompts))]


def give_answers(
    vlm: Vlm,
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[int]],
    *,
    micro: int,
    asked: Sequence[Asked] | None = None,
) -> list[Rollout]:
    """Rollouts of answers that are given instead of sampled; as `sample_answers`.

    Args:
        vlm: The model, not at an exit.
        prompts: What is asked.
        answers: Tokens of one answer each, from `tokenize_answer`.
        micro: Most prompts per batch.
        asked: What `record_prompts` made of the prompts; None makes it now.
    """
    ends = set(vlm.eos_token_ids)
    found: list[Rollout] = []
    asked = record_prompts(vlm, prompts, micro=micro) if asked is None else asked
    for prompt, given, answer in zip(prompts, asked, answers, strict=True):
        ids = tuple(answer)
        text = vlm.tokenizer.decode(ids, skip_special_tokens=True).strip()
        found.append(Rollout(prompt, *given, ids, text, ids[-1] in ends))
    return found


def _batches(prompts: Sequence[Prompt], micro: int) -> Iterator[list[int]]:
    """Places of prompts that can be one batch: equally many images, at most `micro`."""
    groups: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        groups.setdefault(len(prompt.example.images), []).append(place)
    for places in groups.values():
        for start in range(0, len(places), micro):
            yield places[start : start + micro]


class Asked(NamedTuple):
    """A prompt as the decoder gets it.

    Attributes:
        encoded: The prompt alone, without pixels.
        images: What the decoder is fed of its pictures; one row.
    """

    encoded: EncodedBatch
    images: ImageInputs


def record_prompts(vlm: Vlm, prompts: Sequence[Prompt], *, micro: int) -> list[Asked]:
    """Every prompt without pixels, and what the decoder is fed in their place.

    An example may be asked at several exits, or several times at one. Its pictures go through
    the encoder once, however many batches the answers to it are sampled in.

    Args:
        vlm: The model, not at an exit.
        prompts: What is asked; one may come several times.
        micro: Most examples per run of the encoder.

    Returns:
        One per prompt, in order.
    """
    first = {id(prompt.example): prompt for prompt in prompts}
    distinct = list(first.values())
    found: dict[int, Asked] = {}
    for chosen in _batches(distinct, micro):
        rows = {id(distinct[place].example): row for row, place in enumerate(chosen)}
        places = [i for i, prompt in enumerate(prompts) if id(prompt.example) in rows]
        encoded = vlm.encode([distinct[place].example.messages for place in chosen])
        of_prompt = [rows[id(prompts[place].example)] for place in places]
        exits = [prompts[place].exit for place in places]
        images = record_image_inputs(vlm, encoded, exits, prompts=of_prompt)
        for row, place in enumerate(places):
            found[place] = Asked(_one(encoded, of_prompt[row]), images.take([row]))
    return [found[place] for place in range(len(prompts))]


def _one(encoded: EncodedBatch, row: int) -> EncodedBatch:
    """One prompt of a batch, without the padding on its left."""
    columns, length = encoded.columns, int(encoded.prompt_lengths[row])
    one = take_prompts(encoded, [row])
    inputs = {
        name: tensor[:, columns - length :]
        if name not in one.always_asked and tensor.dim() > 1 and tensor.shape[1] == columns
        else tensor
        for name, tensor in one.inputs.items()
    }
    return EncodedBatch(inputs, one.prompt_lengths, one.num_images, one.always_asked)


# ---- reading


class AnswerBatch(NamedTuple):
    """Rollouts as one right-padded batch, ready to be read again and again.

    Attributes:
        batch: Prompts and answers.
        images: What the decoder is fed of the pictures, by row.
    """

    batch: TrainingBatch
    images: ImageInputs


def batch_rollouts(vlm: Vlm, rollouts: Sequence[Rollout]) -> AnswerBatch:
    """Rollouts with equally many images each, as one batch; rows in order."""
    encoded = _pad_left([r.encoded for r in rollouts], int(vlm.tokenizer.pad_token_id))
    batch = join_answers(vlm, encoded, [r.token_ids for r in rollouts])
    return AnswerBatch(batch, ImageInputs.join([r.images for r in rollouts]))


def _pad_left(rows: Sequence[EncodedBatch], pad_id: int) -> EncodedBatch:
    """Single prompts as one left-padded batch."""
    columns = max(row.columns for row in rows)
    inputs: dict[str, Tensor] = {}
    for name, first in rows[0].inputs.items():
        tensors = [row.inputs[name] for row in rows]
        asked = name in rows[0].always_asked
        if asked and first.dim() == 2:  # what a part reads by a tokenizer of its own
            tensors = list(pad_sequence([t[0] for t in tensors], batch_first=True)[:, None])
        elif first.dim() > 1 and all(
            t.shape[1] == row.columns for t, row in zip(tensors, rows, strict=True)
        ):
            fill = pad_id if name == "input_ids" else 0
            tensors = [_pad_columns(tensor, columns, fill) for tensor in tensors]
        inputs[name] = torch.cat(tensors)
    lengths = torch.cat([row.prompt_lengths for row in rows])
    return EncodedBatch(inputs, lengths, rows[0].num_images, rows[0].always_asked)


def _pad_columns(tensor: Tensor, columns: int, fill: int) -> Tensor:
    """(1, S, ...) to (1, columns, ...), filled on the left."""
    missing = columns - tensor.shape[1]
    padding = (0, 0) * (tensor.dim() - 2) + (missing, 0)
    return functional.pad(tensor, padding, value=fill)


def read_answers(
    vlm: Vlm,
    rollouts: AnswerBatch,
    *,
    temperature: float,
    value_head: ValueHead | None = None,
    entropy: bool = False,
) -> Reading:
    """Run prompts with their answers, in one pass, with gradients where they are on.

    Args:
        vlm: The model, adapters and all.
        rollouts: From `batch_rollouts`.
        temperature: That the answers were sampled with, above 0.
        value_head: What tells values from the last hidden states.
        entropy: Whether to compute it: as much work as the log-probabilities.
    """
    batch, images = rollouts
    fed = feeding(vlm, images, batch.inputs["input_ids"])
    with fed, capturing_unembedded(vlm) as unembedded:
        logits_BCV, labels_BC = answer_logits(vlm.model, batch)
    is_answer_BC = labels_BC != IGNORED
    logits_MV = widen(logits_BCV[is_answer_BC]) / temperature
    # Some unembeddings do not know them.
    unsaid = [number for number in vlm.picture_ids if number < logits_MV.shape[-1]]
    if unsaid:
        where = torch.tensor(unsaid, device=logits_MV.device)
        logits_MV = logits_MV.index_fill(1, where, _NEVER)
    log_probs_M = logits_MV.log_softmax(-1).gather(-1, labels_BC[is_answer_BC][:, None])[:, 0]
    values_M: Tensor | None = None
    if value_head is not None:
        states_BCD = unembedded.pop()
        if states_BCD.shape[1] != labels_BC.shape[1]:  # a model that unembeds all columns
            states_BCD = states_BCD[:, (batch.labels[:, 1:] != IGNORED).any(dim=0).nonzero()[:, 0]]
        values_M = value_head(states_BCD[is_answer_BC])
    lengths: list[int] = is_answer_BC.sum(1).tolist()
    return Reading(
        pad_rows(log_probs_M, lengths),
        pad_rows(torch.ones_like(log_probs_M), lengths) > 0,
        None if values_M is None else pad_rows(values_M, lengths),
        pad_rows(token_entropy(logits_MV), lengths) if entropy else None,
        batch.num_tokens,
    )


def pad_rows(values_M: Tensor, lengths: Sequence[int]) -> Tensor:
    """(B, T) values of all rows, one after the other, as rows from the left, then zeros."""
    rows: tuple[Tensor, ...] = torch.split(values_M, list(lengths))
    return pad_sequence(list(rows), batch_first=True)
