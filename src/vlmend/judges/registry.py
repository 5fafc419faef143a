"""Every judge by name, and the one way to call one: `judge_responses`.

A judge is the constant `JUDGE` of its module. Built-in modules stand in `PROVIDERS` and are
imported only when asked for. Other packages offer a judge through an entry point of the group
"vlmend.judges" whose name is the judge's name and whose object is the judge.

A judge that needs a model or an endpoint is a `JudgeSpec`, which makes the judge of a target:
`get_judge("llama-guard-3=FOLDER")`. Nothing is loaded before the first answer is judged.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from vlmend.errors import ConfigError, UnknownNameError, VlmendError
from vlmend.plugins import index_plugins, load_plugin
from vlmend.types import Response, Sample, Verdict, VerdictValue

ENTRY_POINT_GROUP = "vlmend.judges"

PROVIDERS: dict[str, str] = {
    "advbench-prefixes": "vlmend.judges.advbench_prefixes",
    "beaver-dam": "vlmend.judges.beaver_dam",
    "endpoint": "vlmend.judges.endpoint",
    "endpoint/holisafe": "vlmend.judges.rubrics.holisafe",
    "endpoint/jailbreakbench": "vlmend.judges.rubrics.jailbreakbench",
    "endpoint/jailbreakbench-refusal": "vlmend.judges.rubrics.jailbreakbench_refusal",
    "endpoint/llava-bench": "vlmend.judges.rubrics.llava_bench",
    "endpoint/mm-safetybench": "vlmend.judges.rubrics.mm_safetybench",
    "endpoint/mm-vet": "vlmend.judges.rubrics.mm_vet",
    "endpoint/mossbench": "vlmend.judges.rubrics.mossbench",
    "endpoint/siuo": "vlmend.judges.rubrics.siuo",
    "endpoint/vlguard": "vlmend.judges.rubrics.vlguard",
    "endpoint/vlsbench": "vlmend.judges.rubrics.vlsbench",
    "endpoint/xstest": "vlmend.judges.rubrics.xstest",
    "harmbench-llama-2": "vlmend.judges.harmbench_llama_2",
    "harmbench-mistral": "vlmend.judges.harmbench_mistral",
    "llama-guard-1": "vlmend.judges.llama_guard_1",
    "llama-guard-3": "vlmend.judges.llama_guard_3",
    "llama-guard-3-vision": "vlmend.judges.llama_guard_3_vision",
    "llama-guard-4": "vlmend.judges.llama_guard_4",
    "mme-yes-no": "vlmend.judges.mme_yes_no",
    "open-answer": "vlmend.judges.open_answer",
    "option-letter": "vlmend.judges.option_letter",
    # Above us in the import order, hence by name: it knows the organism's world.
    "organism": "vlmend.organism.judge",
    "shieldgemma-2": "vlmend.judges.shieldgemma_2",
    "shiftdc-keywords": "vlmend.judges.shiftdc_keywords",
    "short-answer": "vlmend.judges.short_answer",
    "strongreject-finetuned": "vlmend.judges.strongreject_finetuned",
    "strongreject-rubric": "vlmend.judges.rubrics.strongreject",
    "truthfulqa-rouge1": "vlmend.judges.truthfulqa_rouge1",
    "vlguard-substrings": "vlmend.judges.vlguard_substrings",
    "wildguard": "vlmend.judges.wildguard",
    "xstest-prefix": "vlmend.judges.xstest_prefix",
    "yes-no": "vlmend.judges.yes_no",
}
"""Judge name -> module that holds it as `JUDGE`."""


class Decision(NamedTuple):
    """What a judge says of one answer.

    Attributes:
        value: One of `VERDICT_VALUES`.
        reason: One short line why; required for "unscored".
        score: Between 0 and 1, from judges that grade (1: fully harmful, or fully right).
    """

    value: VerdictValue
    reason: str
    score: float | None = None


@runtime_checkable
class Judge(Protocol):
    """Turns a sample and the text of an answer into a decision.

    A judge sees non-empty answers only (`judge_responses` sets the others aside). Of an answer
    that it cannot decide it says "unscored" with a reason; it never guesses "refused".

    What a judge may have besides, and `judge_responses` and records then use: `prompt_sha256`
    (see `Prompted`), `judge_many` (see `BatchJudge`), `prepare` (see `Prepared`).
    """

    @property
    def name(self) -> str:
        """Unique name, as typed by users, without the target."""
        ...

    @property
    def revision(self) -> str:
        """Changes whenever the judge may decide differently; stored with the verdicts."""
        ...

    @property
    def description(self) -> str:
        """One line: what it decides, and what it cannot."""
        ...

    def judge(self, sample: Sample, text: str) -> tuple[VerdictValue, str] | Decision:
        """Decide on one answer.

        Args:
            sample: What was asked.
            text: The answer, not blank.

        Returns:
            The decision; a plain pair of value and reason is one without a score.

        Raises:
            VlmendError: This answer cannot be judged; it is recorded as unscored.
        """
        ...


@runtime_checkable
class Prompted(Protocol):
    """A judge that asks a model."""

    @property
    def prompt_sha256(self) -> str:
        """SHA-256 of its prompt template, and of what else of its own decides beside it.

        Hexadecimal; empty for rules without a prompt. Stored verdicts are used again as long as
        it and the revision stay the same.
        """
        ...


@runtime_checkable
class Served(Protocol):
    """A judge that asks a server, which may answer with another model than it was asked for."""

    @property
    def served_models(self) -> tuple[str, ...]:
        """Names of the models that the server says have answered, sorted."""
        ...


@runtime_checkable
class BatchJudge(Protocol):
    """A judge that decides on many answers faster than on one after the other."""

    def judge_many(self, pairs: Sequence[tuple[Sample, str]]) -> list[Decision]:
        """Decide on many answers.

        Args:
            pairs: Samples with their answers, none of them blank.

        Returns:
            One decision per pair, in order; "unscored" with a reason for each that cannot be
            judged.

        Raises:
            VlmendError: Nothing can be said about the whole lot; `judge_responses` then asks for
                one after the other, so that one answer does not cost the others.
        """
        ...


@runtime_checkable
class Prepared(Protocol):
    """A judge with something to load or to check before its first decision."""

    def prepare(self) -> None:
        """Get ready; does nothing when it is.

        Raises:
            VlmendError: It cannot judge anything at all (a model that does not load, a key that
                is not set). Not a matter of one answer, so it comes through `judge_responses`.
        """
        ...


@dataclass(frozen=True, slots=True)
class JudgeSpec:
    """How a judge is made of its target.

    Attributes:
        name: Unique name, as typed by users before the "=".
        description: One line: what it decides, and what it cannot.
        target: What must be given after the "="; empty when nothing may be given.
        build: From the target to the judge; checks what is cheap to check, loads nothing.
        kind: "rule" decides by rules of its own, "model" runs a model, "endpoint" asks a server.
        source: Where the model or the rubric was published.
        licence: Of the model or the rubric.
    """

    name: str
    description: str
    target: str
    build: Callable[[str], Judge]
    kind: Literal["rule", "model", "endpoint"] = "model"
    source: str = ""
    licence: str = ""


def get_judge(name: str) -> Judge:
    """Make a judge of its name, or of name and target: "NAME" or "NAME=TARGET".

    The same text gives the same judge, so that a model is loaded once. Nothing is loaded here.

    Args:
        name: Such as "xstest-prefix" or "llama-guard-3=models/Llama-Guard-3-8B".

    Raises:
        UnknownNameError: No such judge; says which exist and the nearest one.
        ConfigError: A target is missing, not wanted or no possible one; or a plug-in offers
            something else than a judge of its own name.
        ModelError: A target that is no model of the kind.
    """
    bare, equals, target = (part.strip() for part in name.partition("="))
    spec = get_judge_spec(bare)
    if not spec.target:
        if equals:
            raise ConfigError(
                f"judge {bare!r} takes no target, but {target!r} was given. Write just {bare}."
            )
        return spec.build("")
    if not target:
        raise ConfigError(
            f"judge {bare!r} needs to know which model judges, and nothing was given. "
            f"Write {bare}=TARGET, where TARGET is {spec.target}."
        )
    return _build(spec, target)


@lru_cache(maxsize=32)
def _build(spec: JudgeSpec, target: str) -> Judge:
    judge = spec.build(target)
    assert judge.name == spec.name, f"{spec.name} built a judge named {judge.name}"
    return judge


def get_judge_spec(name: str) -> JudgeSpec:
    """What there is to know of a judge without its target.

    Args:
        name: Its exact name, without a target.

    Raises:
        UnknownNameError: No such judge; says which exist and the nearest one.
        ConfigError: A plug-in offers something else than a judge of its own name.
    """
    plugins = _plugins()
    if name in PROVIDERS:
        found = importlib.import_module(PROVIDERS[name]).JUDGE
        assert isinstance(found, Judge | JudgeSpec), f"{PROVIDERS[name]}.JUDGE is not a judge"
        assert found.name == name, f"{PROVIDERS[name]}.JUDGE is named {found.name}, not {name}"
    elif name in plugins:
        found = load_plugin("judge", plugins[name], (Judge, JudgeSpec))
    else:
        raise UnknownNameError("judge", name, judge_names())
    if isinstance(found, JudgeSpec):
        return found
    return JudgeSpec(found.name, found.description, "", lambda _: found, "rule")


def judge_names() -> tuple[str, ...]:
    """Names of all judges, sorted, without targets: built-in and installed as plug-ins."""
    return tuple(sorted({*PROVIDERS, *_plugins()}))


def describe_judge(judge: Judge) -> dict[str, str]:
    """What records keep of a judge beside every number: name, revision, prompt_sha256.

    The revision of a judge that runs a model is known only when the model is loaded (`prepare`).
    """
    return {
        "name": judge.name,
        "revision": judge.revision,
        "prompt_sha256": judge.prompt_sha256 if isinstance(judge, Prompted) else "",
    }


def judge_fields(judge: Judge) -> dict[str, str]:
    """How a record with a number names the judge that it is by."""
    found = describe_judge(judge)
    return {
        "judge": found["name"],
        "judge_revision": found["revision"],
        "judge_prompt_sha256": found["prompt_sha256"],
    }


def verdicts_file(judge: str) -> str:
    """Name of the file with a judge's verdicts in a run folder, without "/" of its name.

    Args:
        judge: Its name, such as "endpoint/mossbench".
    """
    return f"verdicts.{re.sub('[^A-Za-z0-9._-]', '-', judge)}.jsonl"


def sha256_text(text: str) -> str:
    """SHA-256 of a text, hexadecimal: what `prompt_sha256` is of."""
    return hashlib.sha256(text.encode()).hexdigest()


def judge_responses(judge: Judge, pairs: Iterable[tuple[Sample, Response]]) -> list[Verdict]:
    """Judge responses; what cannot be judged is `unscored` with its reason, never "safe".

    Unscored are: a response with an error, a blank answer, and an answer on which the judge
    raises a `VlmendError`. Any other exception is a bug and comes through, and so does an error
    of the judge's `prepare`: then nothing could be judged.

    Args:
        judge: Who decides.
        pairs: Every sample with its response.

    Returns:
        One verdict per pair, in order.

    Raises:
        VlmendError: From the judge's `prepare`.
    """
    listed = list(pairs)
    decided = [_decide_unasked(sample, response) for sample, response in listed]
    open_places = [place for place, decision in enumerate(decided) if decision is None]
    asked = [(listed[place][0], listed[place][1].text) for place in open_places]
    if asked and isinstance(judge, Prepared):
        judge.prepare()
    for place, decision in zip(open_places, _decide(judge, asked), strict=True):
        decided[place] = decision
    return [
        _verdict(judge, response, decision)
        for (_, response), decision in zip(listed, decided, strict=True)
    ]


def _decide_unasked(sample: Sample, response: Response) -> Decision | None:
    """The decision on a response that no judge needs to see; None where one does."""
    assert sample.id == response.sample_id, f"{response.sample_id} is no answer to {sample.id}"
    if response.finish == "error" or response.error is not None:
        return Decision("unscored", f"generation failed: {response.error or 'no message'}")
    if not response.text.strip():
        return Decision("unscored", "the answer is empty")
    return None


def _decide(judge: Judge, pairs: Sequence[tuple[Sample, str]]) -> list[Decision]:
    """Decisions on answers that are not blank: together where the judge can, else one by one."""
    if isinstance(judge, BatchJudge) and pairs:
        try:
            decisions = judge.judge_many(pairs)
        except VlmendError:
            # Not swallowed: whoever fails alone as well says so in its own reason.
            return [_decide_one(judge, sample, text) for sample, text in pairs]
        assert len(decisions) == len(pairs), f"{judge.name}: {len(decisions)} of {len(pairs)}"
        return decisions
    return [_decide_one(judge, sample, text) for sample, text in pairs]


def _decide_one(judge: Judge, sample: Sample, text: str) -> Decision:
    try:
        decided = judge.judge(sample, text)
        return Decision(decided[0], decided[1], decided[2] if len(decided) == 3 else None)
    except VlmendError as error:
        return Decision("unscored", f"the judge failed: {error}")


def _verdict(judge: Judge, response: Response, decision: Decision | None) -> Verdict:
    assert decision is not None
    value, reason, score = decision
    if value == "unscored":
        reason, score = reason or "the judge gave no reason", None
    return Verdict(response.id, response.sample_id, judge.name, value, reason, score)


def _plugins() -> dict[str, EntryPoint]:
    """Installed plug-ins by judge name.

    Raises:
        ConfigError: A name is taken twice; neither is preferred silently.
    """
    return index_plugins("judge", entry_points(group=ENTRY_POINT_GROUP), PROVIDERS)
