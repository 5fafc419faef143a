"""Mild prompts with pictures, reward models that are rules, and steps taken by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mild_samples import ASKED
from torch import Tensor
from unlearning_data import shake

from vlmend.evals.scorers import Pair
from vlmend.models.vlm import EncodedBatch, Vlm
from vlmend.repairs.layer_ppo.objective import ROLLOUTS, LayerPPOObjective
from vlmend.repairs.layer_ppo.repair import LayerPPO, Reward
from vlmend.repairs.layer_ppo.settings import LayerPPOSettings
from vlmend.repairs.layer_ppo.watch_rule import WatchRule
from vlmend.testing import picture
from vlmend.training.examples import Example
from vlmend.training.loop_settings import LoopSettings
from vlmend.training.objective import Prepared, StepContext, StepLoss
from vlmend.types import user

SETTINGS = LayerPPOSettings(max_new_tokens=6, rank=2, alpha=8.0, modules=("attention", "mlp"))

LOOP = LoopSettings(steps=2, batch_size=2, lr=2e-2, schedule="constant", warmup_share=0)

SIZES = ((40, 32), (60, 30), (30, 70))
"""Pictures of different format: families differ in how many tokens these have."""


def prompts(stream: str, count: int = 3) -> list[Example]:
    """Requests of different length, each with a picture of its own, and answers to learn."""
    first = {"harmful": 0, "benign": 50}.get(stream, 100)
    return [
        Example(
            id=f"{stream}/{i}",
            source=stream,
            messages=user(
                f"{ASKED[i % 4]} ({stream}, {i})", picture(first + i, SIZES[i % len(SIZES)])
            ),
            answer="A cup of tea.",
            target="Sorry, no.",
        )
        for i in range(count)
    ]


def streams(count: int = 2) -> dict[str, list[Example]]:
    return {"harmful": prompts("harmful", count), "benign": prompts("benign", count)}


class RuleScorer:
    """Pays by a rule of request and answer; keeps all that it was asked."""

    name = "reward"

    def __init__(self, rule: Callable[[str, str], float]) -> None:
        self.rule = rule
        self.asked: list[tuple[str, str]] = []

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        texts = [
            (request if isinstance(request, str) else request[-1].text, answer)
            for request, answer in pairs
        ]
        self.asked += texts
        return [self.rule(*pair) for pair in texts]


def letters(_request: str, answer: str) -> float:
    """The more of an answer are small letters, the better."""
    return 4 * sum("a" <= letter <= "z" for letter in answer) / len(answer)


def reward(rule: Callable[[str, str], float] = letters) -> Reward:
    return Reward(RuleScorer(rule), name="letters")


def mended(vlm: Vlm, folder: Path) -> LayerPPO:
    """A repair after a few steps."""
    data = streams()
    return LayerPPO(SETTINGS, LOOP).fit(
        vlm, data["harmful"], data["benign"], folder=folder / "training", reward=reward()
    )


def ends_often(vlm: Vlm) -> Vlm:
    """Let every fifth token end an answer: a tiny model says the one that does hardly ever."""
    size = int(vlm.lm_head.out_features)  # pyright: ignore[reportArgumentType]
    vlm.model.generation_config.eos_token_id = [*vlm.eos_token_ids, *range(20, size, 5)]
    return vlm


def objective(
    vlm: Vlm,
    settings: LayerPPOSettings = SETTINGS,
    rule: Callable[[str, str], float] = letters,
    *,
    names: Sequence[str] = ("harmful", "benign"),
    seed: int = 0,
) -> LayerPPOObjective:
    """With an adapter and a value head that have been moved from where they start."""
    repair = LayerPPO(settings, replace(LOOP, seed=seed))
    found = repair.build_objective(vlm, reward(rule), streams=names)
    shake(found.adapter)
    if found.value_head is not None:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in found.value_head.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return found


def context(batch_size: int, *, seed: int = 0, micro: int | None = None) -> StepContext:
    return StepContext(0, seed, batch_size, micro or batch_size, lambda numbers: [list(numbers)])


def prepare(
    found: LayerPPOObjective,
    batch: Mapping[str, Sequence[Example]],
    *,
    seed: int = 0,
    micro: int | None = None,
) -> Prepared:
    """As the loop does it."""
    size = len(next(iter(batch.values())))
    with torch.no_grad():
        return found.prepare(batch, context(size, seed=seed, micro=micro))


def whole_loss(found: LayerPPOObjective, prepared: Prepared, *, micro: int = 99) -> StepLoss:
    """Of the first update, in parts, as the loop adds them up."""
    rows = prepared.updates[0].batch[ROLLOUTS]
    total: StepLoss | None = None
    for start in range(0, len(rows), micro):
        part = rows[start : start + micro]
        loss = found({ROLLOUTS: part})
        weight = len(part) / len(rows)
        terms = {name: weight * value for name, value in loss.terms.items()}
        if total is not None:
            terms = {name: total.terms[name] + value for name, value in terms.items()}
        before: Any = 0.0 if total is None else total.loss
        total = StepLoss(before + weight * loss.loss, terms, loss.tokens, loss.images)
    assert total is not None
    return total


def trained(
    vlm: Vlm,
    folder: Path,
    settings: LayerPPOSettings = SETTINGS,
    loop: LoopSettings = LOOP,
    rule: WatchRule | None = None,
    **more: Any,
) -> LayerPPO:
    given = {"reward": reward(), **more}
    data = streams()
    return LayerPPO(settings, loop, rule or WatchRule()).fit(
        vlm, data["harmful"], data["benign"], folder=folder / "training", **given
    )


def one_by_one(vlm: Vlm, encoded: EncodedBatch, answer: Sequence[int]) -> Tensor:
    """(T, V) logits before each token of an answer, token after token, no cache: slow and plain.

    Args:
        vlm: The model, at the exit wanted.
        encoded: One prompt, pixels and all.
        answer: Its tokens.
    """
    rows: list[Tensor] = []
    for end in range(len(answer)):
        ids = torch.cat([encoded.inputs["input_ids"], torch.tensor([answer[:end]]).long()], dim=1)
        inputs = {
            **encoded.inputs,
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
        }
        for name, tensor in encoded.inputs.items():
            if name not in ("input_ids", "attention_mask") and tensor.shape[1:2] == (
                encoded.columns,
            ):
                last = tensor[:, -1:].expand(-1, end, *tensor.shape[2:])
                inputs[name] = torch.cat([tensor, last], dim=1)
        with torch.no_grad():
            rows.append(vlm.model(**inputs, use_cache=False).logits[0, -1])
    return torch.stack(rows)
