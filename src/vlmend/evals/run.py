"""Answer suites with arms, at exits: batched, resumable, nothing lost.

For every arm and batch the vision encoder runs once, however many exits are asked for. Every
batch of responses is on the disk before the next one begins. A response's id hashes all that
can change it, so a resumed run knows what it has, and a changed model, repair, prompt, image
or setting is never mistaken for an old one.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import torch

from vlmend.errors import ConfigError, DataError, VlmendError
from vlmend.evals.arms import Arm
from vlmend.hooks.exits import VisionReplay
from vlmend.images import image_sha256, open_image
from vlmend.models.vlm import GenerationSettings, Vlm
from vlmend.runs import RunFolder
from vlmend.types import Conversation, ImageRef, Response, Sample, sha256_json

LARGE_MODEL = 100_000_000
"""Parameters above which `auto` starts with a small batch."""


@dataclass(frozen=True, slots=True)
class Cell:
    """Coordinates of one table cell: an arm on a suite at an exit (None = the default path)."""

    arm: str
    suite: str
    exit: int | None


@dataclass(frozen=True, slots=True)
class CellResponses:
    """All responses of one cell, in the order of the suite's samples."""

    cell: Cell
    samples: tuple[Sample, ...]
    responses: tuple[Response, ...]


@dataclass(frozen=True)
class EvalSettings:
    """How an evaluation is run.

    Attributes:
        generation: Decoding settings; part of every response's id.
        batch_size: Prompts a batch; None chooses one and halves it when memory runs out.
    """

    generation: GenerationSettings = field(default_factory=GenerationSettings)
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"batch size {self.batch_size} is not possible: at least 1, or auto.")


Progress = Callable[[str, int, int], None]
"""Called as progress(what, done, total) after every batch."""


def _ignore_progress(_what: str, _done: int, _total: int) -> None:
    """Progress for nobody."""


@lru_cache(maxsize=100_000)
def _cached_image_sha256(image: ImageRef) -> str:
    return image_sha256(image)


def describe_prompt(conversation: Conversation) -> list[list[object]]:
    """A conversation as JSON: roles, texts, and images as hashes of their bytes."""
    return [
        [
            message.role,
            [
                part if isinstance(part, str) else {"image": _cached_image_sha256(part)}
                for part in message.content
            ],
        ]
        for message in conversation
    ]


def response_id(
    vlm: Vlm, arm: Arm, exit_layer: int | None, sample: Sample, generation: GenerationSettings
) -> str:
    """Hash of weights, repairs, exit, prompt, image bytes and generation settings."""
    return sha256_json(
        {
            "weights": vlm.weights_sha256,
            "repairs": [repair.fingerprint for repair in arm.repairs],
            "exit": exit_layer,
            "prompt": describe_prompt(sample.messages),
            "generation": asdict(generation),
        }
    )[:32]


def check_images(samples: Iterable[Sample]) -> None:
    """Decode every image once before anything is generated.

    Raises:
        DataError: Naming the first sample whose image is missing or damaged, and how many are.
    """

    def problem(sample: Sample) -> str | None:
        try:
            for image in sample.images:
                open_image(image)
        except DataError as error:
            return f"sample {sample.id!r}: {error}"
        return None

    with ThreadPoolExecutor(4) as pool:
        problems = [text for text in pool.map(problem, samples) if text]
    if problems:
        more = f" ({len(problems) - 1} more images are unusable.)" if len(problems) > 1 else ""
        raise DataError(problems[0] + more)


class Evaluation:
    """One evaluation in progress: arms x suites x exits into a run folder."""

    def __init__(
        self,
        vlm: Vlm,
        folder: RunFolder,
        settings: EvalSettings,
        progress: Progress = _ignore_progress,
    ) -> None:
        """Read what the folder already has.

        Args:
            vlm: The model.
            folder: Where responses go.
            settings: How to generate.
            progress: Called after every batch.
        """
        self.vlm = vlm
        self.folder = folder
        self.settings = settings
        self.progress = progress
        self.batch_size = settings.batch_size or _first_batch_size(vlm)
        self._known = {
            (row["id"], row["sample_id"]): _read_response(row) for row in folder.responses.read()
        }

    def answer(
        self, arm: Arm, suite: str, samples: Sequence[Sample], exits: Sequence[int | None]
    ) -> list[CellResponses]:
        """Answer all samples of a suite with one arm at every exit.

        Args:
            arm: The repairs to apply.
            suite: Name of the suite.
            samples: Its samples.
            exits: Vision exits, None for the default path.

        Returns:
            One entry per exit, in the order given.
        """
        generation = self.settings.generation
        ids = {
            (exit_layer, sample.id): response_id(self.vlm, arm, exit_layer, sample, generation)
            for exit_layer in exits
            for sample in samples
        }
        open_samples = [
            sample
            for sample in samples
            if any((ids[e, sample.id], sample.id) not in self._known for e in exits)
        ]
        total = len(samples) * len(exits)
        what = f"{arm.name} on {suite}"
        with arm.applied(self.vlm):
            remaining = list(_length_sorted(open_samples))
            while remaining:
                batch = _take_batch(remaining, self.batch_size)
                # A smaller batch after running out of memory leaves the rest in the queue.
                done = self._answer_batch(arm, batch, exits, ids)
                remaining = remaining[done:]
                open_items = len(remaining) * len(exits)
                self.progress(what, total - open_items, total)
        if not open_samples:
            self.progress(what, total, total)
        return [
            CellResponses(
                Cell(arm.name, suite, exit_layer),
                tuple(samples),
                tuple(self._known[ids[exit_layer, s.id], s.id] for s in samples),
            )
            for exit_layer in exits
        ]

    def _answer_batch(
        self,
        arm: Arm,
        batch: Sequence[Sample],
        exits: Sequence[int | None],
        ids: Mapping[tuple[int | None, str], str],
    ) -> int:
        """Answer a batch at every exit and write it down; the number of samples done."""
        sweep = VisionReplay(self.vlm) if any(e is not None for e in exits) else None
        rows: list[dict[str, Any]] = []
        try:
            with sweep or nullcontext():
                for exit_layer in exits:
                    if sweep is not None:
                        sweep.exit = exit_layer
                    wanted = [s for s in batch if (ids[exit_layer, s.id], s.id) not in self._known]
                    for response in self._generate(wanted, exit_layer, ids):
                        self._known[response.id, response.sample_id] = response
                        rows.append({**asdict(response), "arm": arm.name, "exit": exit_layer})
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error) or len(batch) == 1:
                raise
            self._write(rows)
            self.batch_size = len(batch) // 2
            _free_memory()
            return 0
        self._write(rows)
        return len(batch)

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            self.folder.responses.append(rows)

    def _generate(
        self,
        samples: Sequence[Sample],
        exit_layer: int | None,
        ids: Mapping[tuple[int | None, str], str],
    ) -> Iterator[Response]:
        """Answer samples as one batch; one that cannot be answered gets an error response."""
        if not samples:
            return
        started = time.perf_counter()
        try:
            answers = self.vlm.generate([s.messages for s in samples], self.settings.generation)
        except VlmendError as error:
            # The boundary of a sample: what is wrong with one must not cost the others.
            if len(samples) > 1:
                for sample in samples:
                    yield from self._generate([sample], exit_layer, ids)
                return
            yield _error_response(ids[exit_layer, samples[0].id], samples[0], error)
            return
        seconds = (time.perf_counter() - started) / len(samples)
        for sample, answer in zip(samples, answers, strict=True):
            yield Response(
                id=ids[exit_layer, sample.id],
                sample_id=sample.id,
                suite=sample.suite,
                text=answer.text,
                finish=answer.finish,
                prompt_tokens=answer.prompt_tokens,
                new_tokens=answer.new_tokens,
                seconds=round(seconds, 6),
            )


def _error_response(identity: str, sample: Sample, error: Exception) -> Response:
    return Response(
        id=identity,
        sample_id=sample.id,
        suite=sample.suite,
        text="",
        finish="error",
        error=f"{type(error).__name__}: {error}",
    )


def _read_response(row: Mapping[str, Any]) -> Response:
    return Response(**{key: row[key] for key in Response.__dataclass_fields__})


def _length_sorted(samples: Sequence[Sample]) -> Iterator[Sample]:
    """Longest prompts first, so that a batch that is too large fails at once; images apart."""
    return iter(
        sorted(samples, key=lambda s: (-len(s.images), -sum(len(m.text) for m in s.messages), s.id))
    )


def _take_batch(samples: Sequence[Sample], size: int) -> list[Sample]:
    """The next samples that fit into one batch: the same number of images in each."""
    count = len(samples[0].images)
    batch: list[Sample] = []
    for sample in samples[:size]:
        if len(sample.images) != count:
            break
        batch.append(sample)
    return batch


def _first_batch_size(vlm: Vlm) -> int:
    parameters = sum(parameter.numel() for parameter in vlm.model.parameters())
    return 64 if parameters < LARGE_MODEL else 8


def _is_out_of_memory(error: BaseException) -> bool:
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "can't allocate memory" in str(error) or "not enough memory" in str(error)
    )


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
