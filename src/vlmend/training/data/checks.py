"""What can be wrong with forget and retain data, found before any model runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vlmend.errors import ConfigError, DataError, ModelError
from vlmend.evals.run import check_images, conversation_sha256
from vlmend.models.encode import render_prompts
from vlmend.models.vlm import Vlm
from vlmend.suites.registry import check_ids
from vlmend.training.batches import tokenize_answer
from vlmend.training.examples import Example
from vlmend.types import Sample

MOST_CUT = 0.5
"""Share of answers that may lose their end; above it another limit is meant."""

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class CheckedSets:
    """What `check_sets` found out on the way.

    Attributes:
        prompts: Example id -> hash of its prompt, of both sets; what `require_unseen` needs to
            keep them out of what is measured.
        repeated: Examples whose prompt and answer an earlier one of their set has, too. They
            count twice in training, which is no fault.
    """

    prompts: Mapping[str, str]
    repeated: int


@dataclass(frozen=True, slots=True)
class AnswerReport:
    """How long answers are.

    Attributes:
        answers: Answers and targets, all of them.
        tokens: Their tokens, each with the token that ends it, before anything is cut.
        longest: The most tokens of one.
        cut: How many are longer than the limit, and lose their end.
    """

    answers: int
    tokens: int
    longest: int
    cut: int

    def record(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def check_sets(forget: Sequence[Example], retain: Sequence[Example] | None = None) -> CheckedSets:
    """Refuse forget and retain data that contradict each other or themselves.

    Args:
        forget: What is to be unlearned.
        retain: What is to stay; None where no retain data is read.

    Returns:
        Hashes of all prompts, and how many pairs are repeated.

    Raises:
        DataError: An empty set, an id that occurs twice, a prompt in both sets, or an example
            whose answer is both to be unlearned and to be learned; names the examples.
    """
    sets = {"forget": forget} if retain is None else {"forget": forget, "retain": retain}
    retain = retain or ()
    for name, examples in sets.items():
        if not examples:
            raise DataError(
                f"the {name} set is empty. Give data with at least one example for it "
                "(see `vlmend list data`)."
            )
    check_ids("forget and retain data together", "example", [*forget, *retain])
    prompts = {e.id: conversation_sha256(e.messages) for e in (*forget, *retain)}
    _check_overlap(forget, retain, prompts)
    same = [e.id for e in forget if e.target and e.answer and e.target.strip() == e.answer.strip()]
    if same:
        raise DataError(
            f"{len(same)} of {len(forget)} forget examples have a target that equals the answer "
            f"to forget ({_show(same)}), so they would be learned and unlearned at once. Leave "
            "them out."
        )
    pairs = [{(prompts[e.id], e.answer) for e in examples} for examples in (forget, retain)]
    return CheckedSets(prompts, len(forget) + len(retain) - sum(map(len, pairs)))


def _check_overlap(
    forget: Sequence[Example], retain: Sequence[Example], prompts: Mapping[str, str]
) -> None:
    kept = {prompts[e.id]: e.id for e in retain}
    both = [f"{e.id} = {kept[prompts[e.id]]}" for e in forget if prompts[e.id] in kept]
    if both:
        raise DataError(
            f"{len(both)} of {len(forget)} forget examples ask what an example of the retain set "
            f"asks, too ({_show(both)}). A prompt can be in one of them only: leave it out of "
            "the other, or give other data."
        )


def check_prompts(vlm: Vlm, examples: Iterable[Example]) -> None:
    """Refuse prompts that this model's chat template cannot say, or whose images are damaged.

    Args:
        vlm: The model, of which only the processor is used.
        examples: All examples.

    Raises:
        ModelError: No chat template, or one without a role that is needed (a system message, an
            earlier turn of the assistant ...); names the example.
        DataError: A text that holds the image placeholder, or an image that cannot be decoded;
            names the example.
    """
    pictured: list[Sample] = []
    for example in examples:
        try:
            render_prompts(vlm.processor, [example.messages], vlm.spec)
        except (DataError, ModelError) as error:
            raise type(error)(f"example {example.id!r}: {error}") from error
        if example.images:
            pictured.append(Sample(example.id, example.source, example.messages, "benign"))
    check_images(pictured)


def check_answers(
    vlm: Vlm, examples: Iterable[Example], max_answer_tokens: int | None
) -> AnswerReport:
    """Refuse answers that the tokenizer leaves nothing of, or that the limit cuts too often.

    Targets count as answers.

    Args:
        vlm: The model, of which only the tokenizer is used.
        examples: All examples.
        max_answer_tokens: Most tokens per answer, its end included; None for no limit.

    Returns:
        How many there are, how long, and how many lose their end.

    Raises:
        ConfigError: A limit below 1.
        DataError: An answer without tokens or with the image placeholder, by example; or more
            than half of them are cut.
        ModelError: Neither model nor tokenizer has a token that ends answers.
    """
    if max_answer_tokens is not None and max_answer_tokens < 1:
        raise ConfigError(f"max_answer_tokens={max_answer_tokens} is not possible: at least 1.")
    lengths = [length for example in examples for length in _measure_answers(vlm, example)]
    limit = max_answer_tokens or max(lengths, default=0)
    cut = sum(length > limit for length in lengths)
    report = AnswerReport(len(lengths), sum(lengths), max(lengths, default=0), cut)
    if cut > MOST_CUT * report.answers:
        raise DataError(
            f"{cut} of {report.answers} answers are longer than max_answer_tokens={limit}, so most "
            f"would lose their end. The longest has {report.longest} tokens, the mean "
            f"{report.tokens / report.answers:.0f}. Raise the limit."
        )
    return report


def _measure_answers(vlm: Vlm, example: Example) -> list[int]:
    """Tokens of an example's answer and target, of what it has of them."""
    texts = [text for text in (example.answer, example.target) if text is not None]
    try:
        return [len(tokenize_answer(vlm, text)) for text in texts]
    except DataError as error:
        raise DataError(f"example {example.id!r}: {error}") from error


def _show(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
