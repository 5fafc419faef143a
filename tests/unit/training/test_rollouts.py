"""What a rollout keeps of a prompt, how it is sampled, and that it is read as it was sampled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from layer_ppo_data import one_by_one, prompts
from mild_samples import FAMILIES
from torch import Tensor

from vlmend.hooks.exits import exit_vision_at
from vlmend.models.generation import GenerationSettings
from vlmend.models.vlm import Vlm
from vlmend.testing import FLOAT64_NOISE, assert_close, noise_of, tiny_vlm
from vlmend.training.examples import Example
from vlmend.training.ppo.rollouts import (
    Prompt,
    Reading,
    Rollout,
    ValueHead,
    _pad_left,
    batch_rollouts,
    give_answers,
    read_answers,
    sample_answers,
)
from vlmend.types import user

HOT = GenerationSettings(max_new_tokens=5, temperature=1.3, seed=4)

Vlms = dict[str, Vlm]


@pytest.fixture(scope="module")
def vlms() -> Vlms:
    """In float64, where another order of sums differs by 1e-15 and a mistake by 1e-1."""
    return {family: tiny_vlm(family, dtype=torch.float64) for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def vlm(request: pytest.FixtureRequest, vlms: Vlms) -> Vlm:
    return vlms[request.param]


def asked(examples: Sequence[Example], exits: Sequence[int]) -> list[Prompt]:
    return [Prompt("harmful", e, exit_layer) for e, exit_layer in zip(examples, exits, strict=True)]


def head_of(vlm: Vlm) -> ValueHead:
    head = ValueHead(vlm.hidden_size, vlm.device)
    with torch.no_grad():
        head.weight.copy_(torch.linspace(-1, 1, vlm.hidden_size)[None])
        head.bias.fill_(0.25)
    return head


def read(vlm: Vlm, rollouts: Sequence[Rollout]) -> Reading:
    with torch.no_grad():
        return read_answers(
            vlm,
            batch_rollouts(vlm, rollouts),
            temperature=HOT.temperature,
            value_head=head_of(vlm),
            entropy=True,
        )


def rows_of(reading: Reading) -> list[list[Tensor]]:
    """Of every row: log-probabilities, values and entropy of its answer tokens."""
    assert reading.values is not None
    assert reading.entropy is not None
    return [
        [
            part[row][reading.mask[row]]
            for part in (reading.log_probs, reading.values, reading.entropy)
        ]
        for row in range(len(reading.mask))
    ]


def ragged(vlm: Vlm) -> list[Rollout]:
    """Answers that were cut and that ended, one of a single token, at different exits."""
    end = vlm.eos_token_ids[0]
    given = [[70, 80, 90, 100, end], [end], [75, 85, 95], [60], [100, end]]
    exits = [1, 3, vlm.default_exit, 0, 2]
    return give_answers(vlm, asked(prompts("harmful", 5), exits), given, micro=2)


# ---- an answer is read as it was sampled


def test_log_probabilities_are_those_that_the_tokens_were_drawn_with(vlm: Vlm) -> None:
    exits = [1, vlm.default_exit, 2]
    rollouts = sample_answers(vlm, asked(prompts("harmful"), exits), HOT, micro=3)
    for rollout, (log_probs, _, entropy) in zip(
        rollouts, rows_of(read(vlm, rollouts)), strict=True
    ):
        encoded = vlm.encode([rollout.prompt.example.messages])
        with exit_vision_at(vlm, rollout.prompt.exit):
            logits = one_by_one(vlm, encoded, rollout.token_ids) / HOT.temperature
        image_token = vlm.model.config.image_token_id
        if image_token < logits.shape[-1]:
            logits[:, image_token] = -torch.inf
        expected = logits.log_softmax(-1)
        drawn = expected[range(len(rollout.token_ids)), list(rollout.token_ids)]
        assert_close(log_probs, drawn, FLOAT64_NOISE)
        spread = torch.distributions.Categorical(logits=logits).entropy()
        assert_close(entropy, spread, FLOAT64_NOISE)


@pytest.mark.parametrize("family", ["kosmos-2", "blip-2", "instructblip", "ovis2"])
def test_models_that_always_ask_for_a_picture_read_alike_in_any_batch(family: str) -> None:
    vlm = tiny_vlm(family)
    rollouts = ragged(vlm)
    for rollout, row in zip(rollouts, rows_of(read(vlm, rollouts)), strict=True):
        (alone,) = rows_of(read(vlm, [rollout]))
        for found, expected in zip(row, alone, strict=True):
            assert_close(found, expected, noise_of(torch.float32))
        encoded = vlm.encode([rollout.prompt.example.messages])
        with exit_vision_at(vlm, rollout.prompt.exit):
            logits = one_by_one(vlm, encoded, rollout.token_ids) / HOT.temperature
        logits[:, list(vlm.picture_ids)] = -torch.inf
        drawn = logits.log_softmax(-1)[range(len(rollout.token_ids)), list(rollout.token_ids)]
        assert_close(row[0], drawn, noise_of(torch.float32))


def test_tokens_are_drawn_with_these_probabilities(vlms: Vlms) -> None:
    """The frequencies of 200 answers of one token; temperature and suppressed image token count."""
    vlm = vlms["llava"]
    image_token = vlm.model.config.image_token_id
    bias = torch.zeros(vlm.lm_head.out_features, dtype=torch.float64)  # pyright: ignore
    bias[image_token] = 100.0  # without suppression it says nothing else
    hot = replace(HOT, max_new_tokens=1, temperature=0.5)
    handle = vlm.lm_head.register_forward_hook(lambda _m, _a, out: out + bias)
    try:
        rollouts = sample_answers(vlm, asked(prompts("harmful", 1), [2]) * 200, hot, micro=200)
        with torch.no_grad():
            batch = batch_rollouts(vlm, rollouts)
            found = read_answers(vlm, batch, temperature=hot.temperature)
    finally:
        handle.remove()
    said = [rollout.token_ids[0] for rollout in rollouts]
    assert image_token not in said
    # Mean of log p(y) over samples is minus the entropy; another temperature shifts it.
    probs = dict(zip(said, found.log_probs[:, 0].exp().tolist(), strict=True))
    for token, prob in sorted(probs.items(), key=lambda pair: -pair[1])[:3]:
        share, error = said.count(token) / 200, (prob * (1 - prob) / 200) ** 0.5
        assert abs(share - prob) < 4 * error, (token, share, prob)
    assert max(probs.values()) > 0.05, "nothing is likely, so nothing was tested"


def test_the_same_weights_read_bit_identically_with_and_without_gradients(vlm: Vlm) -> None:
    vlm.model.requires_grad_(True)
    rollouts = ragged(vlm)
    batch = batch_rollouts(vlm, rollouts)
    with torch.no_grad():
        old = read_answers(vlm, batch, temperature=1.0)
    new = read_answers(vlm, batch, temperature=1.0)
    assert new.log_probs.requires_grad
    assert torch.equal(old.log_probs, new.log_probs.detach())


# ---- masks and padding


def test_padding_and_order_change_nothing(vlm: Vlm) -> None:
    rollouts = ragged(vlm)
    together = rows_of(read(vlm, rollouts))
    alone = [rows_of(read(vlm, [rollout]))[0] for rollout in rollouts]
    order = [3, 0, 4, 1, 2]
    shuffled = rows_of(read(vlm, [rollouts[place] for place in order]))
    for place, rollout in enumerate(rollouts):
        other = shuffled[order.index(place)]
        for mine, single, moved in zip(together[place], alone[place], other, strict=True):
            assert mine.shape == (len(rollout.token_ids),)
            assert_close(mine, single, noise_of(mine.dtype))
            assert_close(mine, moved, noise_of(mine.dtype))


def test_the_mask_is_right_to_the_token(vlm: Vlm) -> None:
    rollouts = ragged(vlm)
    reading = read(vlm, rollouts)
    assert reading.mask.dtype == torch.bool
    assert reading.mask.sum(1).tolist() == [5, 1, 3, 1, 2]
    # From the left, without a gap.
    assert all(not later or now for row in reading.mask.tolist() for now, later in pairwise(row))
    assert not reading.log_probs[~reading.mask].any()
    assert [rollout.ended for rollout in rollouts] == [True, True, False, False, True]
    lengths = [int(r.encoded.prompt_lengths[0]) + len(r.token_ids) for r in rollouts]
    assert reading.tokens == sum(lengths)


def test_a_value_is_of_the_state_before_its_token(vlm: Vlm) -> None:
    """The last token of an answer is not seen by any value; the prompt's end gives the first."""
    rollouts = ragged(vlm)
    values = rows_of(read(vlm, rollouts))[0][1]
    changed = replace(rollouts[0], token_ids=(*rollouts[0].token_ids[:-1], 111))
    assert_close(rows_of(read(vlm, [changed]))[0][1], values, noise_of(torch.float32))
    changed = replace(rollouts[0], token_ids=(71, *rollouts[0].token_ids[1:]))
    other = rows_of(read(vlm, [changed]))[0][1]
    assert_close(other[:1], values[:1], noise_of(torch.float32))
    assert (other[1:] - values[1:]).abs().min() > 1e-4
    # One linear map of the last hidden state, after the final norm.
    seen: list[Any] = []
    handle = vlm.final_norm.register_forward_hook(lambda _m, _a, out: seen.append(out))
    try:
        read(vlm, rollouts[:1])
    finally:
        handle.remove()
    prompt = int(rollouts[0].encoded.prompt_lengths[0])
    states = seen[0][0, prompt - 1 : prompt + 4].float()
    expected = states @ torch.linspace(-1, 1, vlm.hidden_size) + 0.25
    assert_close(values, expected, noise_of(torch.float32))


def test_a_fresh_value_head_expects_nothing(vlms: Vlms) -> None:
    vlm = vlms["llava"]
    head = ValueHead(vlm.hidden_size, vlm.device)
    reading = read_answers(vlm, batch_rollouts(vlm, ragged(vlm)), temperature=1.0, value_head=head)
    assert reading.values is not None
    assert not reading.values.any()
    assert reading.values.dtype == torch.float32
    assert reading.entropy is None


# ---- sampling


def test_prompts_are_padded_as_they_are_encoded(vlm: Vlm) -> None:
    examples = prompts("harmful")
    encoded = vlm.encode([example.messages for example in examples])
    rollouts = give_answers(vlm, asked(examples, [1, 2, 3]), [[70]] * 3, micro=2)
    again = _pad_left([r.encoded for r in rollouts], int(vlm.tokenizer.pad_token_id))
    assert again.inputs.keys() == encoded.inputs.keys() - {"pixel_values"}
    for name, tensor in again.inputs.items():
        assert torch.equal(tensor, encoded.inputs[name]), name
    assert torch.equal(again.prompt_lengths, encoded.prompt_lengths)
    assert again.num_images == encoded.num_images


def test_greedy_answers_are_those_at_the_exit(vlm: Vlm) -> None:
    """Given in any batches, with prompts without a picture between them."""
    examples = [*prompts("harmful"), Example("text", "x", user("Count to three."), None)]
    exits = [1, vlm.default_exit, 3, 2]
    order = [3, 2, 0, 1]
    greedy = GenerationSettings(max_new_tokens=5)
    mixed = asked([examples[i] for i in order], [exits[i] for i in order])
    for micro in (1, 4):
        rollouts = sample_answers(vlm, mixed, greedy, micro=micro)
        assert [r.prompt for r in rollouts] == mixed
        for rollout in rollouts:
            with exit_vision_at(vlm, rollout.prompt.exit):
                alone = vlm.generate([rollout.prompt.example.messages], greedy)[0]
            assert rollout.token_ids == alone.token_ids
            assert rollout.text == alone.text
            assert rollout.ended == (alone.finish == "eos")


def test_the_encoder_runs_once_per_picture(vlm: Vlm) -> None:
    """Whatever the exits, the samples and the batches, and not at all to read."""
    ran: Counter[int] = Counter()

    def count(block: int) -> Any:
        return lambda _module, _args, _out: ran.update([block])

    # Hooks of a block's first part: they tell whether its own code runs.
    handles = [
        next(block.children()).register_forward_hook(count(i))
        for i, block in enumerate(vlm.vision_blocks)
    ]
    exits = [1, 2, 1, 3, 0, 2]
    examples = [e for e in prompts("harmful", 2) for _ in range(3)]
    try:
        rollouts = sample_answers(vlm, asked(examples, exits), HOT, micro=2)
        sampled = dict(ran)
        ran.clear()
        read(vlm, rollouts)
    finally:
        for handle in handles:
            handle.remove()
    # Both pictures are one batch. Blocks above all exits do not run; a later stack reads
    # something else at every exit.
    first = vlm.vision_stack_sizes[0]
    assert [sampled.get(block, 0) for block in range(first)] == [1, 1, 1] + [0] * (first - 3)
    assert [sampled[block] for block in range(first, vlm.num_vision_blocks)] == [4] * (
        vlm.num_vision_blocks - first
    )
    assert not ran


def test_the_seed_decides_what_is_said(vlms: Vlms) -> None:
    vlm = vlms["llava"]
    what = asked(prompts("harmful"), [1, 2, 3])
    said = [
        [r.token_ids for r in sample_answers(vlm, what, replace(HOT, seed=seed), micro=2)]
        for seed in (4, 4, 5)
    ]
    assert said[0] == said[1] != said[2]
    # One prompt several times: other answers, in one batch and in several.
    for micro in (1, 4):
        same = sample_answers(vlm, what[:1] * 4, HOT, micro=micro)
        assert len({rollout.token_ids for rollout in same}) == 4
