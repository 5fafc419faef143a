"""The parts of a dry step are those that a real step runs, to the FLOP and the token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vlmend.evals.flops import FlopCounter
from vlmend.models.generation import GenerationSettings
from vlmend.repairs.layer_ppo.dry_parts import build_unscored, find_parts
from vlmend.repairs.layer_ppo.settings import LayerPPOSettings
from vlmend.testing import tiny_vlm
from vlmend.training.dry_run import StepCost, blank_batch, dry_run_parts
from vlmend.training.loop_settings import LoopSettings
from vlmend.training.ppo.rollouts import Prompt, sample_answers
from vlmend.training.recipes import Lengths, PictureShapes, Recipe
from vlmend.training.weightless import build_weightless, weightless

LENGTHS = Lengths(prompt_tokens=8, answer_tokens=5, picture_size=(64, 64))


def dry_parts(
    family: str, settings: LayerPPOSettings, loop: LoopSettings, streams: tuple[str, ...]
) -> dict[str, StepCost]:
    vlm = tiny_vlm(family)
    twin = build_weightless(vlm.model.config, vlm.processor, name="twin", dtype=vlm.dtype)
    twin.model.generation_config = vlm.model.generation_config
    recipe = Recipe(Path(), "twin", "auto", None, PictureShapes(), LENGTHS, {}, {}, loop)
    objective = build_unscored(settings, loop, streams)(twin)
    with weightless(twin), torch.no_grad():
        parts = find_parts(twin, objective, recipe)
    found = dry_run_parts(twin, objective, parts, loop, compare=False)
    return {step.kind: step for step in found.steps}


@pytest.mark.parametrize("family", ["llava", "mllama", "kosmos-2"])
def test_sampling_takes_what_it_really_takes(family: str) -> None:
    settings = LayerPPOSettings(max_new_tokens=6, rank=2, modules=("q_proj",), minibatches=1)
    loop = LoopSettings(batch_size=2)
    dry = dry_parts(family, settings, loop, ("harmful",))

    vlm = tiny_vlm(family)
    vlm.model.generation_config.eos_token_id = []  # so that no answer ends early
    objective = build_unscored(settings, loop, ("harmful",))(vlm)
    examples = blank_batch(vlm, ("harmful",), LENGTHS, 2, pictures=1)["harmful"]
    late = objective.exits[:-3:-1]
    prompts = [Prompt("harmful", e, at) for e, at in zip(examples, late, strict=True)]
    with torch.no_grad(), FlopCounter() as counter:
        rollouts = sample_answers(vlm, prompts, GenerationSettings(6, 1.0), micro=2)
    assert [len(rollout.token_ids) for rollout in rollouts] == [6, 6]
    assert dry["recording pictures"].flops is not None
    assert dry["sampling"].flops is not None
    assert dry["recording pictures"].flops + dry["sampling"].flops == counter.total
    assert dry["recording pictures"].images == 2
    # The last token of an answer is chosen, and not run.
    prompt = int(rollouts[0].encoded.prompt_lengths[0])
    assert dry["sampling"].tokens == 2 * (prompt + 5)
    assert dry["reading answers"].tokens == 2 * 2 * (prompt + 6)


def test_every_answer_of_a_step_is_counted() -> None:
    loop = LoopSettings(batch_size=2, micro_batch_size=1)
    how = {"max_new_tokens": 2, "rank": 2, "modules": ("q_proj",)}
    plain = LayerPPOSettings(algorithm="ppo", exits=(0,), epochs=2, minibatches=1, **how)
    one = dry_parts("llava", plain, loop, ("harmful",))
    two = dry_parts("llava", plain, loop, ("harmful", "benign"))
    assert all(two[name].tokens == 2 * step.tokens for name, step in one.items())
    # Every prompt at three exits, three answers at each; pictures through the encoder once.
    grpo = LayerPPOSettings(algorithm="grpo", exits="all", samples=3, minibatches=1, **how)
    many = dry_parts("llava", grpo, loop, ("harmful",))
    exits = len(tiny_vlm("llava").distinct_exits)
    assert many["recording pictures"].images == one["recording pictures"].images == 2
    for name in ("sampling", "reading answers", "update"):
        assert many[name].tokens == exits * 3 * one[name].tokens
    # What is recorded at more exits stays in memory for the rest of the step.
    grown = many["sampling"].total_bytes - many["sampling"].peak_bytes
    before = one["sampling"].total_bytes - one["sampling"].peak_bytes
    assert grown > before
    # Given answers of benign prompts: no picture more, and as many tokens at most.
    ptx = dry_parts("llava", replace(plain, ptx_coefficient=1.0), loop, ("harmful", "benign"))
    assert ptx["recording pictures"].images == two["recording pictures"].images == 4
    assert ptx["sampling"].tokens == two["sampling"].tokens
    assert two["update"].tokens < ptx["update"].tokens <= 2 * two["update"].tokens
    # Of data of their own: as much learnt, and pictures of their own at most.
    streams = ("harmful", "benign", "given")
    own = dry_parts("llava", replace(plain, ptx_coefficient=1.0), loop, streams)
    assert own["recording pictures"].images == 6
    assert own["sampling"].tokens == ptx["sampling"].tokens
    assert own["update"].tokens == ptx["update"].tokens
    sft = LayerPPOSettings(algorithm="sft", exits=(0,), **how)
    learnt = dry_parts("llava", sft, loop, ("harmful",))
    assert list(learnt) == ["recording pictures", "update"]
    assert learnt["update"].tokens * 2 == one["update"].tokens  # one epoch instead of two
