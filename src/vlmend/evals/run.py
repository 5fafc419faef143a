"""Answer suites with arms, at exits: batched, resumable, nothing lost.

For every arm and batch the vision encoder runs once, however many exits are asked for. Every
batch of responses at one exit is on the disk before the next one begins. A response's id hashes
all that can change it, so a resumed run knows what it has, and a changed model, repair, prompt,
image or setting is never mistaken for an old one.

A run that was killed goes on at the batch it was at, with the same batches as before, and at the
end `responses.jsonl` is put in the order of arms, suites, exits and items. So the file is the
same, byte for byte, however often the run was killed, as long as the batch size is; with another
batch size it is where batching changes no answer (`evals.batch_invariance`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

from vlmend.errors import ConfigError, DataError, ModelError, RunError
from vlmend.evals.arms import Arm
from vlmend.evals.batches import free_memory, is_out_of_memory
from vlmend.evals.ledger import peak_memory_bytes, reset_peak_memory
from vlmend.evals.shards import Shard, assemble, drop_cut_batch, without_seconds
from vlmend.evals.stored import Place, Row, read_responses
from vlmend.hooks.exits import VisionReplay
from vlmend.images import image_sha256, open_image
from vlmend.models.vlm import GenerationSettings, Vlm
from vlmend.runs import RunFolder
from vlmend.types import Conversation, ImageRef, Response, Sample, sha256_json

SHARE_UNIT = "share_unit"
"""Key of `run.json`: prompts a batch where the run is cut into shares."""

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
        batch_size: Prompts a batch, None chooses; halved whenever memory runs out.
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


def hash_labels(samples: Sequence[Sample]) -> str:
    """Hash of what decides verdicts and rates beside what is asked: labels and references."""
    return sha256_json([[sample.id, sample.label, sample.reference] for sample in samples])


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


def conversation_sha256(conversation: Conversation) -> str:
    """Hash of what is asked: roles, texts, image bytes.

    Raises:
        DataError: An image cannot be read.
    """
    return sha256_json(describe_prompt(conversation))


Key = tuple[int | None, str]
"""(exit, sample id): one answer of an arm."""


def response_ids(
    vlm: Vlm,
    arm: Arm,
    exits: Sequence[int | None],
    samples: Sequence[Sample],
    generation: GenerationSettings,
) -> dict[Key, str]:
    """Identify answers: hash of weights, repairs, exit, prompt, image bytes and settings.

    Args:
        vlm: The model as it is, without repairs applied.
        arm: The repairs.
        exits: Vision exits, None for the default path.
        samples: What is asked.
        generation: Decoding settings.

    Returns:
        32 hexadecimal digits for every exit and sample.
    """
    facts = {
        "weights": vlm.weights_sha256,
        "repairs": [repair.fingerprint for repair in arm.repairs],
        "generation": asdict(generation),
    }
    ids: dict[Key, str] = {}
    for sample in samples:
        prompt = describe_prompt(sample.messages)
        for exit_layer in exits:
            identity = sha256_json({**facts, "exit": exit_layer, "prompt": prompt})
            ids[exit_layer, sample.id] = identity[:32]
    return ids


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
        self.batch_size = settings.batch_size or first_batch_size(vlm)
        drop_cut_batch(folder)
        self._known: dict[Place, Response] = {}
        self._rows: dict[Place, Row] = {}
        for row in read_responses(folder.path):
            response = _read_response(row)
            self._known[response.id, response.sample_id] = response
            self._rows[response.id, response.sample_id] = row
        self._cells: list[CellResponses] = []

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

        Raises:
            ConfigError: The model is under a repair or exit that the arm does not know of.
            RunError: The disk is full, or there is not enough memory for a single prompt.
        """
        ids = self._answer_missing(arm, suite, samples, exits, _sort_by_length(samples))
        found = [
            CellResponses(
                Cell(arm.name, suite, exit_layer),
                tuple(samples),
                tuple(self._known[ids[exit_layer, s.id], s.id] for s in samples),
            )
            for exit_layer in exits
        ]
        self._cells += found
        return found

    def answer_share(
        self,
        shard: Shard,
        arm: Arm,
        suite: str,
        samples: Sequence[Sample],
        exits: Sequence[int | None],
    ) -> set[Place]:
        """Answer one share of what `answer` would answer.

        Args:
            shard: The share.
            arm: The repairs to apply.
            suite: Name of the suite.
            samples: All its samples.
            exits: Vision exits, None for the default path.

        Returns:
            Every answer that the whole has, whoever gives it.

        Raises:
            ConfigError, RunError: As `answer`.
        """
        # Not this process's batch size: the shares of all processes must fit together.
        unit = int(self.folder.info.get(SHARE_UNIT, self.batch_size))
        share = shard.share(_split_batches(_sort_by_length(samples), unit))
        mine = [sample for batch in share for sample in batch]
        self._answer_missing(arm, f"{suite}, share {shard}", mine, exits, mine)
        ids = response_ids(self.vlm, arm, exits, samples, self.settings.generation)
        return {(identity, sample_id) for (_, sample_id), identity in ids.items()}

    def finish(self) -> None:
        """Put the answers into their final order: that in which `answer` was asked for them.

        Raises:
            RunError: A file is damaged or cannot be written.
        """
        assert not self.folder.part, "a share of a run does not finish the run"
        rows: dict[Place, Row] = {}
        for cell in self._cells:
            for response in cell.responses:
                place = response.id, response.sample_id
                rows.setdefault(place, _write_response(response, cell.cell.arm, cell.cell.exit))
        # What nobody asked for this time (an audit and a diagnosis in one folder) is kept.
        rows |= {place: self._rows[place] for place in sorted(self._rows.keys() - rows.keys())}
        assemble(self.folder, rows.values())

    def _answer_missing(
        self,
        arm: Arm,
        what: str,
        samples: Sequence[Sample],
        exits: Sequence[int | None],
        ordered: Sequence[Sample],
    ) -> dict[Key, str]:
        """Answer what is not answered yet, batch after batch; the ids of all answers."""
        if self.vlm.middlewares or self.vlm.conditions:
            raise ConfigError(
                "the model is already repaired or at an exit "
                f"({', '.join(self.vlm.conditions) or 'a middleware is in use'}), which the run "
                "would not record. Evaluate outside of that context: give repairs as arms, and "
                "exits as exits."
            )
        # What another arm or suite took is not this one's.
        reset_peak_memory(self.vlm.device)
        ids = response_ids(self.vlm, arm, exits, samples, self.settings.generation)
        remaining = [
            s for s in ordered if any((ids[e, s.id], s.id) not in self._known for e in exits)
        ]
        total = len(samples) * len(exits)
        what = f"{arm.name} on {what}"
        if tuple(exits) != (None,):
            what += f", {len(exits)} exits"
        self.progress(what, total - len(remaining) * len(exits), total)
        with arm.applied(self.vlm):
            while remaining:
                batch = _take_batch(remaining, self.batch_size)
                # A smaller batch after running out of memory leaves the rest in the queue.
                remaining = remaining[self._answer_batch(arm, batch, exits, ids) :]
                self.progress(what, total - len(remaining) * len(exits), total)
        return ids

    def _answer_batch(
        self,
        arm: Arm,
        batch: Sequence[Sample],
        exits: Sequence[int | None],
        ids: Mapping[Key, str],
    ) -> int:
        """Answer a batch at every exit; the number of samples done, 0 if memory ran out."""
        try:
            self._answer_exits(arm, batch, exits, ids)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise RunError(
                    f"there is not enough memory to answer {batch[0].id!r}, even alone: "
                    f"{str(error).partition(chr(10))[0]} Use a lower --max-new-tokens, "
                    "--dtype bfloat16 or another --device; --resume keeps what was answered."
                ) from error
        else:
            return len(batch)
        # Not inside the handler: the error's traceback holds on to the tensors of the batch.
        self.batch_size = len(batch) // 2
        free_memory()
        return 0

    def _answer_exits(
        self,
        arm: Arm,
        batch: Sequence[Sample],
        exits: Sequence[int | None],
        ids: Mapping[Key, str],
    ) -> None:
        """Answer what a batch still lacks, exit after exit, each on disk before the next."""
        sweep = VisionReplay(self.vlm) if any(e is not None for e in exits) else None
        with sweep or nullcontext():
            for exit_layer in exits:
                if sweep is not None:
                    sweep.exit = exit_layer
                wanted = [s for s in batch if (ids[exit_layer, s.id], s.id) not in self._known]
                found = list(self._generate(wanted, exit_layer, ids))
                if not found:
                    continue
                self._store(arm.name, exit_layer, found)

    def _store(self, arm: str, exit_layer: int | None, found: Sequence[Response]) -> None:
        """Put a batch on the disk. First what it holds: a batch that a crash cuts is noticed."""
        self.folder.timings.append(
            [
                {
                    "arm": arm,
                    "exit": exit_layer,
                    "ids": [response.id for response in found],
                    "sample_ids": [response.sample_id for response in found],
                    "seconds": [response.seconds for response in found],
                    "peak_memory_bytes": peak_memory_bytes(self.vlm.device),
                }
            ]
        )
        rows = [_write_response(response, arm, exit_layer) for response in found]
        self.folder.responses.append(rows)
        for response, row in zip(found, rows, strict=True):
            self._known[response.id, response.sample_id] = response
            self._rows[response.id, response.sample_id] = row

    def _generate(
        self, samples: Sequence[Sample], exit_layer: int | None, ids: Mapping[Key, str]
    ) -> Iterator[Response]:
        """Answer samples as one batch; one that cannot be answered gets an error response."""
        if not samples:
            return
        started = time.perf_counter()
        try:
            answers = self.vlm.generate([s.messages for s in samples], self.settings.generation)
        except (DataError, ModelError) as error:
            # The boundary of a sample: what is wrong with one must not cost the others. Other
            # errors (a full disk while captions are written ...) are no property of a sample.
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


def _write_response(response: Response, arm: str, exit_layer: int | None) -> Row:
    return {**without_seconds(asdict(response)), "arm": arm, "exit": exit_layer}


def _read_response(row: Mapping[str, Any]) -> Response:
    missing = sorted(Response.__dataclass_fields__.keys() - row.keys())
    if missing:
        raise RunError(
            f"responses.jsonl holds a line without {', '.join(missing)} (sample "
            f"{row.get('sample_id')!r}). It is of another version or was changed: choose another "
            "--out."
        )
    return Response(**{key: row[key] for key in Response.__dataclass_fields__})


def _sort_by_length(samples: Iterable[Sample]) -> list[Sample]:
    """Longest prompts first, so that a batch that is too large fails at once; images apart."""
    return sorted(
        samples, key=lambda s: (-len(s.images), -sum(len(m.text) for m in s.messages), s.id)
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


def _split_batches(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """All batches that a run takes, one after the other."""
    batches: list[list[Sample]] = []
    rest = list(samples)
    while rest:
        batches.append(_take_batch(rest, size))
        rest = rest[len(batches[-1]) :]
    return batches


def first_batch_size(vlm: Vlm) -> int:
    """Prompts a batch where nobody said how many."""
    parameters = sum(parameter.numel() for parameter in vlm.model.parameters())
    return 64 if parameters < LARGE_MODEL else 8
