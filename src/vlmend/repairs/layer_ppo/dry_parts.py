"""The parts of a step of layer-wise PPO for a dry run: what each of them runs, without weights.

    recording   pictures through the image encoder, once, up to their exits
    prompts     the prompts into a cache of keys and values
    decoding    one token after the other, with that cache
    reading     the answers by the policy that sampled them, and by the reference
    update      the answers once more, and backward; as often as there are epochs

Every answer is as long as it may be, and every prompt leaves the encoder as late as it can, so
costs are upper limits. SFT has the first and the last part alone.

Deviation:
    1. Decode steps are run for the first and the last token only. Their FLOPs grow evenly in
       between, so the mean of both is that of all; most memory is taken by the last.
    2. The numbers that choosing a token takes, a few per word of the vocabulary, are left out.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlmend.evals.scorers import Pair
from vlmend.hooks.image_inputs import ImageInputs, feeding, take_prompts
from vlmend.models.generators import cache_of, with_past
from vlmend.models.vlm import EncodedBatch, Vlm
from vlmend.repairs.layer_ppo.experience import Experience
from vlmend.repairs.layer_ppo.objective import ROLLOUTS, LayerPPOObjective, used_exits
from vlmend.repairs.layer_ppo.repair import LayerPPO, Reward
from vlmend.repairs.layer_ppo.settings import GIVEN, HARMFUL, LayerPPOSettings
from vlmend.training.adapters import without_adapter
from vlmend.training.dry_run import Call, Ran, StepPart, blank_batch, micro_batch_size
from vlmend.training.loop_settings import LoopSettings
from vlmend.training.ppo.rollouts import (
    AnswerBatch,
    Prompt,
    Rollout,
    batch_rollouts,
    give_answers,
    read_answers,
)
from vlmend.training.recipes import Recipe


class _NoReward:
    """Stands where the reward model would: a dry run scores nothing."""

    name = "reward"

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Never called."""
        raise AssertionError(f"a dry run scored {len(pairs)} answers")


def build_unscored(
    settings: LayerPPOSettings, loop: LoopSettings, streams: Sequence[str]
) -> Callable[[Vlm], LayerPPOObjective]:
    """What puts the adapter on a model and makes an objective without a reward model."""

    def build(vlm: Vlm) -> LayerPPOObjective:
        reward = Reward(_NoReward())
        return LayerPPO(settings, loop).build_objective(vlm, reward, streams=streams)

    return build


def find_parts(vlm: Vlm, objective: LayerPPOObjective, recipe: Recipe) -> list[StepPart]:
    """The parts of a step.

    Args:
        vlm: The model, without weights, with the adapter on.
        objective: From `build_unscored`.
        recipe: Lengths of prompts, and the settings of the loop.
    """
    settings, loop = objective.settings, recipe.loop
    examples = loop.batch_size * len(objective.streams)
    recorded = min(micro_batch_size(loop), examples)
    answers = loop.batch_size * _answers_per_given(objective)
    at_once = min(micro_batch_size(loop), answers)
    step = _Step(vlm, objective, _prompts(vlm, objective, recipe, recorded), at_once)
    recording = StepPart(
        "recording pictures",
        [Call(step.record)],
        recorded,
        examples / recorded,
        trains=False,
        kept=step.recorded,
    )
    samples = settings.algorithm != "sft"
    learnt = min(at_once, answers // settings.minibatches) if samples else at_once
    update = StepPart(
        "update",
        [Call(lambda: step.update(learnt))],
        learnt,
        answers / learnt * (settings.epochs if samples else 1),
        trains=True,
    )
    if not samples:
        return [recording, update]
    steps = settings.max_new_tokens - 1  # the first token is that of the prompt's pass
    return [
        recording,
        StepPart(
            "sampling",
            [
                Call(step.read_prompts),
                Call(lambda: step.decode(1), steps / 2),
                Call(lambda: step.decode(max(1, steps - 2)), 0),
                Call(lambda: step.decode(1), steps / 2),
            ],
            at_once,
            answers / at_once,
            trains=False,
        ),
        StepPart(
            "reading answers",
            [Call(lambda: step.read(learnt)), Call(lambda: step.read_reference(learnt))],
            learnt,
            answers / learnt,
            trains=False,
        ),
        update,
    ]


def _per_example(objective: LayerPPOObjective) -> int:
    """Answers to one example."""
    settings = objective.settings
    exits = len(objective.exits) if settings.exits == "all" else 1
    return exits * (settings.samples if settings.algorithm == "grpo" else 1)


def _answers_per_given(objective: LayerPPOObjective) -> int:
    """Answers to one example of every stream; of such examples one has a given answer."""
    asked = [stream for stream in objective.streams if stream != GIVEN]
    return len(asked) * _per_example(objective)


def _prompts(vlm: Vlm, objective: LayerPPOObjective, recipe: Recipe, count: int) -> list[Prompt]:
    """Prompts of so many examples with a picture each, at the latest exits.

    Where given answers are learnt, those that they are given to come last.
    """
    settings = objective.settings
    repeated = settings.samples if settings.algorithm == "grpo" else 1
    examples = blank_batch(vlm, (HARMFUL,), recipe.lengths, count, pictures=1)[HARMFUL]
    count_given = math.ceil(count / len(objective.streams)) if settings.learns_given else 0
    first_given = count - count_given
    asked = examples[:first_given] if GIVEN in objective.streams else examples
    late = objective.exits[::-1]
    found: list[Prompt] = []
    for number, example in enumerate(asked):
        exits = late if settings.exits == "all" else (late[number % len(late)],)
        found += [Prompt(HARMFUL, example, e) for e in exits for _ in range(repeated)]
    used = used_exits(vlm, settings, objective.exits)
    return found + [Prompt(GIVEN, example, used[-1]) for example in examples[first_given:]]


@dataclass
class _Step:
    """A micro-batch on its way through a step.

    Attributes:
        vlm: The model.
        objective: What trains.
        prompts: What is asked of the examples whose pictures are recorded at once.
        at_once: Prompts answered at once.
        rollouts: Recorded pictures with answers, once there are some.
        cache: Keys and values, while answers are sampled.
        asked: What the model asks for at every step, of one picture.
    """

    vlm: Vlm
    objective: LayerPPOObjective
    prompts: list[Prompt]
    at_once: int
    rollouts: Sequence[Rollout] = ()
    cache: Any = None
    asked: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    def record(self) -> Ran:
        """Pictures through the encoder, up to the exits."""
        word: int = self.vlm.tokenizer("tea", add_special_tokens=False).input_ids[0]
        answers = [[word] * self.objective.settings.max_new_tokens] * len(self.prompts)
        self.rollouts = give_answers(self.vlm, self.prompts, answers, micro=len(self.prompts))
        return Ran(0, len({id(prompt.example) for prompt in self.prompts}))

    def recorded(self) -> list[Tensor]:
        """What stays of the pictures."""
        rows = [rollout.images for rollout in self.rollouts]
        return [t for row in rows for t in (*row.tokens, *row.cross_states) if t is not None]

    # ---- sampling

    def read_prompts(self) -> Ran:
        """The prompts, into a fresh cache."""
        encoded, images = self._encoded()
        with feeding(self.vlm, images, encoded.inputs["input_ids"]):
            output = self._call(**encoded.inputs)
        self.cache = cache_of(output)
        self.asked = {name: encoded.inputs[name][:1] for name in encoded.always_asked}
        return Ran(int(encoded.prompt_lengths.sum()))

    def decode(self, tokens: int) -> Ran:
        """So many more tokens of every answer."""
        rows = self.at_once
        # No mask: nothing is padded here, and some models would count positions by it.
        ids = torch.full((rows, tokens), int(self.vlm.tokenizer.eos_token_id))
        more = dict(self.asked)
        if more:  # such a model would make a mask of the new columns alone
            columns = int(self.cache.get_seq_length()) + tokens
            more["attention_mask"] = torch.ones(rows, columns, dtype=torch.int64)
        self._call(input_ids=ids, **with_past(self.vlm.model, self.cache), **more)
        return Ran(rows * tokens)

    def _call(self, **inputs: Any) -> Any:
        model = self.vlm.model
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            inputs["logits_to_keep"] = 1
        return model(**inputs, use_cache=True)

    def _encoded(self) -> tuple[EncodedBatch, ImageInputs]:
        asked = self.rollouts[: self.at_once]
        encoded = self.vlm.encode([rollout.prompt.example.messages for rollout in asked])
        return take_prompts(encoded, range(len(asked))), ImageInputs.join([r.images for r in asked])

    # ---- learning

    def read(self, rows: int) -> Ran:
        """Answers by the policy that sampled them."""
        self.cache = None
        temperature = self.objective.settings.temperature
        reading = read_answers(
            self.vlm,
            self._batch(rows),
            temperature=temperature,
            value_head=self.objective.value_head,
        )
        return Ran(reading.tokens)

    def read_reference(self, rows: int) -> Ran:
        """Answers by the model without the adapter."""
        temperature = self.objective.settings.temperature
        with without_adapter(self.objective.adapter):
            return Ran(read_answers(self.vlm, self._batch(rows), temperature=temperature).tokens)

    def _batch(self, rows: int) -> AnswerBatch:
        return batch_rollouts(self.vlm, self.rollouts[:rows])

    def update(self, rows: int) -> Ran:
        """The loss of answers."""
        zeros_T = torch.zeros(self.objective.settings.max_new_tokens)
        learnt = [
            Experience(rollout, 0.0, zeros_T, zeros_T, zeros_T, zeros_T, zeros_T)
            for rollout in self.rollouts[:rows]
        ]
        if self.objective.settings.learns_given:
            for experience in learnt[:: _answers_per_given(self.objective)]:
                experience.given = Experience(experience.rollout)
        found = self.objective({ROLLOUTS: learnt})
        return Ran(found.tokens, found.images, found.loss)
