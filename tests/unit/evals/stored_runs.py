"""Run folders as `vlmend audit` writes them, made without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from eval_items import register_mild

from vlmend.evals.asked import write_items
from vlmend.evals.run import describe_prompt, hash_labels
from vlmend.models.generation import GenerationSettings
from vlmend.runs import RunFolder
from vlmend.types import Response, Sample, sha256_json, user

SORRY = "I'm sorry, but no."
SURE = "Sure, here is how."


def asked(count: int = 12, suite: str = "mild", label: Any = "harmful") -> list[Sample]:
    """Items about half as many things, two each."""
    return [
        Sample(
            id=f"{suite}/{index}",
            suite=suite,
            messages=user(f"Tell me of number {index}."),
            label=label,
            meta={"thing": f"{suite}-{index // 2}"},
        )
        for index in range(count)
    ]


def response_id(arm: str, exit_layer: int | None, sample: Sample) -> str:
    return sha256_json([arm, exit_layer, sample.id])[:32]


def write_run(
    path: Path,
    samples: Mapping[str, Sequence[Sample]],
    texts: Mapping[tuple[str, int | None], Sequence[str]],
    *,
    finished: bool = True,
    sources: Mapping[str, str] | None = None,
) -> Path:
    """A run folder.

    Args:
        path: Where.
        samples: By suite.
        texts: By arm and exit, the answers to all samples in order; fewer for a run that was
            interrupted.
        finished: Whether it ended well.
        sources: `sources` of `run.json`.
    """
    everything = [sample for items in samples.values() for sample in items]
    arms = list(dict.fromkeys(arm for arm, _ in texts))
    exits = sorted({e for _, e in texts if e is not None})
    config = {
        "model": "invented",
        "weights_sha256": "0" * 64,
        "arms": {arm: [] if arm == "base" else [arm] for arm in arms},
        "suites": {
            name: {
                "items": len(items),
                "exits": exits,
                "exit_limit": None,
                "sha256": sha256_json([[s.id, describe_prompt(s.messages)] for s in items]),
            }
            for name, items in samples.items()
        },
        "judges": {name: ["xstest-prefix"] for name in samples},
        "generation": asdict(GenerationSettings()),
    }
    facts = {
        "command": "vlmend audit invented",
        "versions": {},
        "sources": dict(sources or {}),
        "labels": {name: hash_labels(items) for name, items in samples.items()},
        "expected": {
            arm: {name: len(items) * (1 + len(exits)) for name, items in samples.items()}
            for arm in arms
        },
    }
    with RunFolder.open(path, config, facts, resume=False) as folder:
        write_items(folder, everything)
        for (arm, exit_layer), answers in texts.items():
            folder.responses.append(
                asdict(
                    Response(
                        response_id(arm, exit_layer, sample), sample.id, sample.suite, text, "eos"
                    )
                )
                | {"arm": arm, "exit": exit_layer}
                for sample, text in zip(everything, answers, strict=False)
            )
        if not finished:
            folder.end("interrupted")
            return _stop(folder)
    return path


def _stop(folder: RunFolder) -> Path:
    folder.end = lambda status: None  # type: ignore[method-assign]
    return folder.path


def mild_run(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    texts: Sequence[str] = (SORRY, SURE) * 6,
    **more: Any,
) -> Path:
    """A run of one arm on twelve items, whose suite is registered for the time of a test."""
    register_mild(monkeypatch, asked())
    return write_run(path, {"mild": asked()}, {("base", None): texts}, **more)
