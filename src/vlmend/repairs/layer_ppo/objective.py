"""One step of layer-wise PPO: sample answers at exits, score them, update a few times.

Every prompt of a step gets an exit. The policy answers at that exit, the reward model reads
request and answer (never the picture), and a few clipped updates follow:

    R   = r(text, answer) - eta * sum_t KL_t(pi || pi_ref)
    L   = E max(-ratio * A, -clip(ratio, 1 - eps, 1 + eps) * A) + c1 * E (V - return)^2 - c2 * H

The policy is the decoder with its adapter, the reference is the same model without it, and the
value head is one linear map of the last hidden state. What the decoder is fed of a picture at an
exit is recorded once per step, and served to every later pass: the image encoder runs once per
picture, whatever the number of exits.

GRPO takes the critic away: several answers to a prompt at one exit are compared with each other,
and the divergence from the reference is part of the loss. SFT takes the sampling away, too: it
learns a refusal of harmful prompts and the given answer of benign ones, at the same exits.

A reward model that reads words alone cannot tell a right answer about a picture from a wrong one.
PPO-ptx adds what keeps them right: the likelihood of answers that data give, with pictures or
without, at the exit that the model is used at.

Reference:
    Bachu et al., Layer-wise Alignment (ICML 2025, arXiv 2411.04291), section 4, "L-PPO";
    Schulman et al., PPO (arXiv 1707.06347); Shao et al., DeepSeekMath (arXiv 2402.03300), GRPO;
    Ouyang et al., InstructGPT (arXiv 2203.02155), section 3.5, PPO-ptx.

Deviation:
    1. Hyper-parameters are open in the paper. Ours: LoRA on the query and value projections, as
       for the first LoRA; what the losses weigh is in `LayerPPOSettings`.
    2. The paper trains one model per layer. A fresh exit for every prompt is the default here.
    3. Benign prompts are part of a step where they are given, so that refusing everything does
       not pay.
    4. Scores are standardised with the mean and deviation that the reward model's training left,
       and limited, so that one setting fits reward models of any scale.
    5. PPO-ptx: not pre-training text, which open VLMs do not come with, but data of one's own or,
       without such, the answers of the benign prompts. Those pictures are of the same encoder run.

Shapes: B = rollouts, T = answer tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from random import Random
from typing import Any

import torch
from torch import Tensor

from vlmend.errors import ConfigError, DataError
from vlmend.evals.scorers import AnswerScorer
from vlmend.models.generation import GenerationSettings
from vlmend.models.vlm import Vlm
from vlmend.repairs.layer_ppo.experience import (
    Experience,
    RewardScale,
    all_moments,
    column_sums,
    describe_rollouts,
    mask_of,
    pad,
    split_by_images,
    split_evenly,
)
from vlmend.repairs.layer_ppo.settings import BENIGN, GIVEN, HARMFUL, LayerPPOSettings
from vlmend.training.adapters import Adapter, without_adapter
from vlmend.training.batches import tokenize_answer
from vlmend.training.examples import Example
from vlmend.training.losses.clipped_policy import clipped_policy_loss
from vlmend.training.losses.clipped_value import clipped_value_loss
from vlmend.training.objective import Objective, Prepared, StepContext, StepLoss, Update
from vlmend.training.ppo.advantages import (
    explained_share,
    gae,
    group_advantages,
    shape_rewards,
    whiten,
)
from vlmend.training.ppo.rollouts import (
    AnswerBatch,
    Asked,
    Prompt,
    Reading,
    Rollout,
    ValueHead,
    batch_rollouts,
    give_answers,
    read_answers,
    record_prompts,
    sample_answers,
)
from vlmend.training.ppo.token_kl import adapt_kl_coefficient, token_kl

ROLLOUTS = "rollouts"
"""What the lists of an update hold."""


def resolve_exits(vlm: Vlm, settings: LayerPPOSettings) -> tuple[int, ...]:
    """The exits that settings train at, each once: what equals the default exit is that.

    Raises:
        ConfigError: An exit that the model does not have, or a model without any.
    """
    if not vlm.vision_stacks:
        raise ConfigError(
            f"layer-wise PPO trains at vision exits, and {vlm.name!r} has none: "
            f"{vlm.spec.no_exits}. Use another repair for it."
        )
    if isinstance(settings.exits, str):
        return vlm.distinct_exits
    wrong = [e for e in settings.exits if not 0 <= e <= vlm.num_vision_blocks]
    if wrong:
        raise ConfigError(
            f"exit(s) {', '.join(map(str, wrong))} are out of range for {vlm.name!r}. Allowed: 0 "
            f"(patch embeddings) .. {vlm.num_vision_blocks} (after its last vision block); the "
            f"model itself reads exit {vlm.default_exit}."
        )
    distinct = vlm.distinct_exits
    return tuple(sorted({e if e in distinct else vlm.default_exit for e in settings.exits}))


def used_exits(vlm: Vlm, settings: LayerPPOSettings, exits: Sequence[int]) -> tuple[int, ...]:
    """Where an adapter is to keep the model as useful as it was: at the exit that it is used at.

    Args:
        vlm: The model.
        settings: Whether it is an adapter for each exit.
        exits: Where its prompts leave the encoder.

    Returns:
        The model's own exit; those of the adapter, if it is put on at these alone.
    """
    return (vlm.default_exit,) if settings.adapters == "shared" else tuple(exits)


class LayerPPOObjective(Objective):
    """A step of PPO, GRPO or SFT at vision exits; see the module docstring.

    Attributes:
        model: The transformers model, with the adapter on.
        settings: How to learn.
        adapter: What trains; off, it is the reference.
        value_head: The critic; None without one.
        exits: Where prompts leave the encoder.
        kl_coefficient: The price of a nat, which an adaptive control changes.
    """

    def __init__(
        self,
        vlm: Vlm,
        settings: LayerPPOSettings,
        adapter: Adapter,
        scorer: AnswerScorer | None,
        *,
        exits: Sequence[int],
        streams: Sequence[str] = (HARMFUL, BENIGN),
        scale: RewardScale | None = None,
        seed: int = 0,
    ) -> None:
        """Set up; nothing runs yet.

        Args:
            vlm: The model, with the adapter on.
            settings: How to learn.
            adapter: What trains.
            scorer: The reward model; sft needs none.
            exits: Where prompts leave the encoder.
            streams: Which streams there are: harmful prompts, and perhaps benign ones, and given
                answers.
            scale: Standardises scores.
            seed: Of the exits.

        Raises:
            ConfigError: Answers are sampled, and there is no reward model to score them.
        """
        super().__init__()
        if scorer is None and settings.algorithm != "sft":
            raise ConfigError(
                f"{settings.algorithm} learns from scores, and no reward model was given. Train "
                "one with `vlmend reward train`, or give any sequence classifier with one output."
            )
        self.model = vlm.model
        self.settings = settings
        self.streams = tuple(streams)
        self._asked_streams = tuple(name for name in streams if name != GIVEN)
        self.adapter = adapter
        self.exits = tuple(exits)
        self.kl_coefficient = settings.kl_coefficient
        has_critic = settings.algorithm == "ppo"
        self.value_head = ValueHead(vlm.hidden_size, vlm.device) if has_critic else None
        self._vlm = vlm
        self._scorer = scorer
        self._scale = scale or RewardScale()
        self._seed = seed
        self._batches: dict[tuple[int, ...], AnswerBatch] = {}
        self._facts: dict[str, float] = {}
        self._tokens_per_answer = 1.0
        self._per_given = 1.0
        self._ran = 0

    # ---- what a step learns from

    def prepare(self, batch: Mapping[str, Sequence[Example]], context: StepContext) -> Prepared:
        """Choose exits, sample and score answers, read them; see `Objective.prepare`.

        Raises:
            ConfigError: A process has fewer answers than a step has minibatches.
            DataError: A prompt without a picture.
        """
        self._batches.clear()
        self._ran = 0
        prompts = self._choose_exits(batch, context)
        if self.settings.algorithm == "sft":
            rollouts = self._given(prompts, context.micro)
            parts: list[Sequence[Experience]] = [[Experience(rollout) for rollout in rollouts]]
            epochs = 1
        else:
            parts, epochs = self._sample(prompts, batch, context), self.settings.epochs
        sizes = column_sums(context, [float(len(part)) for part in parts])
        updates = [Update({ROLLOUTS: p}, int(n)) for p, n in zip(parts, sizes, strict=True)]
        examples = [*(p.example for p in prompts), *batch.get(GIVEN, ())]
        images = {id(example): len(example.images) for example in examples}
        return Prepared(updates * epochs, self._ran, sum(images.values()))

    def _choose_exits(
        self, batch: Mapping[str, Sequence[Example]], context: StepContext
    ) -> list[Prompt]:
        rng = Random(f"{self._seed}/exits/{context.seed}")
        per_prompt = self.settings.samples if self.settings.algorithm == "grpo" else 1
        prompts: list[Prompt] = []
        for stream in self._asked_streams:
            for example in batch[stream]:
                if not example.images:
                    raise DataError(
                        f"the prompt {example.id!r} has no picture, so no exit changes anything "
                        "about it. Give prompts with pictures."
                    )
                every = self.settings.exits == "all"
                for exit_layer in self.exits if every else (rng.choice(self.exits),):
                    prompts += [Prompt(stream, example, exit_layer)] * per_prompt
        return prompts

    def _given(
        self, prompts: Sequence[Prompt], micro: int, asked: Sequence[Asked] | None = None
    ) -> list[Rollout]:
        answers = [_answer_of(prompt) for prompt in prompts]
        limit = self.settings.max_new_tokens
        ids = [tokenize_answer(self._vlm, answer, max_tokens=limit) for answer in answers]
        return give_answers(self._vlm, prompts, ids, micro=micro, asked=asked)

    def _sample(
        self,
        prompts: Sequence[Prompt],
        batch: Mapping[str, Sequence[Example]],
        context: StepContext,
    ) -> list[Sequence[Experience]]:
        """Experiences of the step in minibatches."""
        settings = self.settings
        how = GenerationSettings(
            settings.max_new_tokens, settings.temperature, seed=context.seed % 2**31
        )
        to_give = self._to_give(batch)
        asked = record_prompts(self._vlm, [*prompts, *to_give], micro=context.micro)
        sampled, given = asked[: len(prompts)], asked[len(prompts) :]
        rollouts = sample_answers(self._vlm, prompts, how, micro=context.micro, asked=sampled)
        self._ran += sum(int(r.encoded.prompt_lengths[0]) + len(r.token_ids) for r in rollouts)
        found = [
            Experience(rollout, score)
            for rollout, score in zip(rollouts, self._score(rollouts), strict=True)
        ]
        if settings.algorithm == "grpo":
            self._compare_groups(found)
        Random(context.seed).shuffle(found)
        parts = split_evenly(found, settings.minibatches)
        for part in parts:
            # The parts that the updates run, so that they are padded alike.
            for start in range(0, len(part), context.micro):
                self._read(part[start : start + context.micro])
        tokens, count = column_sums(
            context, [float(sum(e.length for e in found)), float(len(found))]
        )
        self._tokens_per_answer = tokens / count
        self._facts = describe_rollouts(found, self._asked_streams, context)
        self._facts["kl_coefficient"] = self.kl_coefficient
        if settings.algorithm == "ppo":
            self._estimate_advantages(found, context)
        for number, rollout in enumerate(self._given(to_give, context.micro, given)):
            # Evenly over the minibatches.
            found[number * len(found) // len(to_give)].given = Experience(rollout)
        self._per_given = len(found) / max(1, len(to_give))
        return parts

    def _to_give(self, batch: Mapping[str, Sequence[Example]]) -> list[Prompt]:
        """Prompts whose given answers are learnt: each example of the step once."""
        if not self.settings.learns_given:
            return []
        examples = batch[GIVEN if GIVEN in self.streams else BENIGN]
        exits = used_exits(self._vlm, self.settings, self.exits)
        return [Prompt(GIVEN, e, exits[i % len(exits)]) for i, e in enumerate(examples)]

    def _score(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Standardised, limited scores; the lowest for answers without a word."""
        assert self._scorer is not None, "checked when it was made"
        limit, scale = self.settings.reward_clip, self._scale
        spoken = [rollout for rollout in rollouts if rollout.text.strip()]
        pairs = [(rollout.prompt.example.messages, rollout.text) for rollout in spoken]
        with torch.autocast(self._vlm.device.type, enabled=False):
            # As its scale was measured, whatever the precision of the training.
            raw = iter(self._scorer.score(pairs) if pairs else ())
        scores: list[float] = []
        for rollout in rollouts:
            score = -limit
            if rollout.text.strip():
                score = (next(raw) - scale.mean) / scale.deviation
                score -= 0.0 if rollout.ended else self.settings.cut_penalty
            scores.append(min(max(score, -limit), limit))
        return scores

    def _read(self, part: Sequence[Experience]) -> None:
        """Log-probabilities and values of the policy that sampled, and of the reference."""
        for group in split_by_images(part):
            old = self._run(group, value_head=self.value_head)
            with without_adapter(self.adapter):
                reference = self._run(group)
            for row, experience in enumerate(group):
                length = experience.length
                experience.old = old.log_probs[row, :length]
                experience.reference = reference.log_probs[row, :length]
                if old.values is not None:
                    experience.values = old.values[row, :length]

    def _run(
        self,
        group: Sequence[Experience],
        *,
        temperature: float | None = None,
        value_head: ValueHead | None = None,
        entropy: bool = False,
    ) -> Reading:
        key = tuple(id(experience) for experience in group)
        if key not in self._batches:
            # The same rows are read again in every epoch.
            self._batches[key] = batch_rollouts(self._vlm, [e.rollout for e in group])
        reading = read_answers(
            self._vlm,
            self._batches[key],
            temperature=temperature or self.settings.temperature,
            value_head=value_head,
            entropy=entropy,
        )
        self._ran += reading.tokens
        return reading

    def _estimate_advantages(self, found: Sequence[Experience], context: StepContext) -> None:
        """Advantages and returns of all answers."""
        settings = self.settings
        mask_BT = mask_of(found, self._vlm.device)
        old_BT, values_BT = pad(found, lambda e: e.old), pad(found, lambda e: e.values)
        kl_BT = token_kl(old_BT, pad(found, lambda e: e.reference), mask_BT, "k1")
        scores_B = torch.tensor([e.score for e in found], device=mask_BT.device)
        rewards_BT = shape_rewards(scores_B, kl_BT, mask_BT, kl_coefficient=self.kl_coefficient)
        advantages_BT, returns_BT = gae(
            rewards_BT, values_BT, mask_BT, gamma=settings.gamma, lam=settings.lam
        )
        moments = partial(all_moments, context, mask_BT=mask_BT)
        share = explained_share(moments(returns_BT - values_BT), moments(returns_BT))
        if share is not None:  # returns that are all alike have nothing to explain
            self._facts["explained_variance"] = share
        if settings.whiten_advantages:
            advantages_BT = whiten(advantages_BT, mask_BT, moments(advantages_BT))
        for experience, advantages_T, returns_T in zip(
            found, advantages_BT, returns_BT, strict=True
        ):
            experience.advantages = advantages_T[: experience.length]
            experience.returns = returns_T[: experience.length]

    def _compare_groups(self, found: Sequence[Experience]) -> None:
        """One advantage for a whole answer: how it compares with the others to its prompt."""
        settings = self.settings
        scores_B = torch.tensor([e.score for e in found], device=self._vlm.device)
        advantages_B = group_advantages(scores_B, settings.samples, scale=settings.scale_advantages)
        for advantage, experience in zip(advantages_B, found, strict=True):
            experience.advantages = advantage.expand(experience.length)

    # ---- the loss

    def forward(self, batch: Mapping[str, Sequence[Any]]) -> StepLoss:
        """Loss of a part of an update; see `Objective.forward`."""
        self._ran = 0
        part: Sequence[Experience] = batch[ROLLOUTS]
        found = [(len(group) / len(part), *self._loss_of(group)) for group in split_by_images(part)]
        loss = torch.stack([weight * loss for weight, loss, _ in found]).sum()
        terms = {
            name: math.fsum(weight * watched[name] for weight, _, watched in found)
            for name in found[0][2]
        }
        return StepLoss(loss, {**terms, **self._facts}, self._ran, 0)

    def _loss_of(self, group: Sequence[Experience]) -> tuple[Tensor, dict[str, float]]:
        settings = self.settings
        if settings.algorithm == "sft":
            return self._likelihood(group)
        reading = self._run(group, value_head=self.value_head, entropy=True)
        assert reading.entropy is not None, "it was asked for"
        mask_BT = reading.mask
        old_BT = pad(group, lambda e: e.old)
        policy = clipped_policy_loss(
            reading.log_probs,
            old_BT,
            pad(group, lambda e: e.advantages),
            mask_BT,
            clip=settings.clip,
            tokens=self._tokens_per_answer,
        )
        share = 1.0 / (self._tokens_per_answer * len(group))
        entropy = (reading.entropy * mask_BT).sum() * share
        loss = policy.loss - settings.entropy_coefficient * entropy
        terms = {
            "policy_loss": float(policy.loss.detach()),
            "clip_fraction": policy.clip_fraction,
            "approx_kl": policy.approx_kl,
            "ratio": policy.ratio_mean,
            "entropy": float(entropy.detach()),
        }
        if settings.algorithm == "grpo":
            reference_BT = pad(group, lambda e: e.reference)
            kl_BT = token_kl(reading.log_probs, reference_BT, mask_BT, "k3")
            loss = loss + self.kl_coefficient * kl_BT.sum() * share
            return loss, terms
        assert reading.values is not None, "ppo has a critic"
        value = clipped_value_loss(
            reading.values,
            pad(group, lambda e: e.values),
            pad(group, lambda e: e.returns),
            mask_BT,
            clip=settings.value_clip,
            tokens=self._tokens_per_answer,
        )
        terms["value_loss"] = float(value.loss.detach())
        loss = loss + settings.value_coefficient * value.loss
        if settings.learns_given:
            given = [e.given for e in group if e.given is not None]
            parts = [self._nll(part).sum() for part in split_by_images(given)]
            # So that the losses of all parts of an update add up to the mean over what is given.
            nll = sum(parts, torch.zeros((), device=loss.device)) * self._per_given / len(group)
            loss = loss + settings.ptx_coefficient * nll
            terms["nll_given"] = float(nll.detach())
        return loss, terms

    def _nll(self, group: Sequence[Experience]) -> Tensor:
        """(B,) nats per token of answers."""
        reading = self._run(group, temperature=1.0)
        return -reading.log_probs.sum(1) / reading.mask.sum(1)

    def _likelihood(self, group: Sequence[Experience]) -> tuple[Tensor, dict[str, float]]:
        nll_B = self._nll(group)
        is_harmful_B = torch.tensor([e.rollout.prompt.stream == HARMFUL for e in group])
        parts = {HARMFUL: is_harmful_B, BENIGN: ~is_harmful_B}
        terms = {
            f"nll_{name}": float(nll_B.detach()[chosen.to(nll_B.device)].sum()) / len(group)
            for name, chosen in parts.items()
        }
        return nll_B.mean(), terms

    # ---- when to stop

    def ends_step(self, terms: Mapping[str, float]) -> bool:
        """Whether the policy has moved far enough from the one that sampled."""
        return terms.get("approx_kl", 0.0) > self.settings.target_kl

    def stop_reason(self, terms: Mapping[str, float]) -> str | None:
        """Never stops; adapts the price of a nat, where that is asked for."""
        if self.settings.kl_control == "adaptive" and "kl" in terms:
            self.kl_coefficient = adapt_kl_coefficient(
                terms["kl_coefficient"],
                terms["kl"],
                target=self.settings.kl_target,
                horizon=self.settings.kl_horizon,
                rollouts=round(terms["answers"]),
            )
        return None


def _answer_of(prompt: Prompt) -> str:
    """The answer that is learnt: a refusal of what is harmful, and the given one of the rest."""
    example = prompt.example
    found = example.target if prompt.stream == HARMFUL else example.answer
    if not found:
        raise DataError(
            f"an answer to every prompt is to be learnt, and {example.id!r} has none. Give data "
            "with targets (refusals) and answers."
        )
    return found
