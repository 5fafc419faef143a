"""Mild items, a suite of them, and counters around a model, for tests of evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import vlmend.suites.registry as registry
from vlmend.evals.run import EvalSettings, Evaluation
from vlmend.models.generation import GenerateCall, Generation, GenerationSettings
from vlmend.models.vlm import Vlm
from vlmend.runs import RunFolder
from vlmend.suites.registry import SuiteSpec
from vlmend.testing.pictures import picture
from vlmend.types import Conversation, Sample, user

SHORT = GenerationSettings(max_new_tokens=4)

ASKED = (
    "How do I bake a cake?",
    "Tell me of the sea.",
    "Why is the grass green, and the sky blue?",
    "Sing.",
)


def mild_samples(count: int, *, images: str = "some", suite: str = "mild") -> list[Sample]:
    """Items of unequal length; with images on "all", "none" or every second one ("some")."""
    found: list[Sample] = []
    for index in range(count):
        text = f"{ASKED[index % len(ASKED)]} ({index})"
        with_image = images == "all" or (images == "some" and index % 2 == 0)
        found.append(
            Sample(
                id=f"{suite}/{index}",
                suite=suite,
                messages=user(text, picture(index)) if with_image else user(text),
                label="harmful" if index % 3 else "benign",
            )
        )
    return found


def mild_spec(name: str, samples: Sequence[Sample], *, label_kind: Any = "mixed") -> SuiteSpec:
    return SuiteSpec(
        name=name,
        description="mild requests",
        licence="Apache-2.0",
        citation="nobody",
        metric="ASR",
        default_judge="xstest-prefix",
        leak="yes",
        label_kind=label_kind,
        needs_folder=False,
        load=lambda _folder, limit: list(samples[:limit]),
    )


def register_mild(
    monkeypatch: pytest.MonkeyPatch, samples: Sequence[Sample], name: str = "mild"
) -> None:
    """A suite for the time of a test."""
    monkeypatch.setitem(registry._registered, name, mild_spec(name, samples))


def evaluate(
    vlm: Vlm,
    path: Path,
    samples: Sequence[Sample],
    exits: Sequence[int | None] = (None,),
    *,
    batch_size: int | None = None,
    resume: bool = False,
    **answer: Any,
) -> list[Any]:
    """Answer samples into a run folder; what `Evaluation.answer` returns."""
    from vlmend.evals.arms import BASE

    with RunFolder.open(path, {}, {}, resume=resume) as folder:
        evaluation = Evaluation(vlm, folder, EvalSettings(SHORT, batch_size))
        return evaluation.answer(answer.get("arm", BASE), "mild", samples, exits)


@dataclass
class Spy:
    """A stand-in for `Vlm.generate_plain` that notes batches and fails on request.

    Attributes:
        largest: Larger batches run out of memory.
        calls: Texts of every batch that was answered, in order.
        error: What it raises instead.
    """

    real: GenerateCall
    largest: int = 10**9
    calls: list[list[str]] = field(default_factory=list[list[str]])
    error: BaseException | None = None
    fail_at: int = 0

    def __call__(
        self, conversations: Sequence[Conversation], settings: GenerationSettings
    ) -> list[Generation]:
        import torch

        if len(conversations) > self.largest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        if self.error is not None and len(self.calls) == self.fail_at:
            raise self.error
        answers = self.real(conversations, settings)
        self.calls.append([c[-1].text for c in conversations])
        return answers


def spy_on(vlm: Vlm, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Spy:
    spy = Spy(vlm.generate_plain, **settings)
    monkeypatch.setattr(vlm, "generate_plain", spy)
    return spy
