"""Every judge by name, and the one way to call one: `judge_responses`.

A judge is the constant `JUDGE` of its module. Built-in modules stand in `PROVIDERS` and are
imported only when asked for. Other packages offer a judge through an entry point of the group
"vlmend.judges" whose name is the judge's name and whose object is the judge.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol, runtime_checkable

from vlmend.errors import UnknownNameError, VlmendError
from vlmend.plugins import index_plugins, load_plugin
from vlmend.types import Response, Sample, Verdict, VerdictValue

ENTRY_POINT_GROUP = "vlmend.judges"

PROVIDERS: dict[str, str] = {
    # Above us in the import order, hence by name: it knows the organism's world.
    "organism": "vlmend.organism.judge",
    "shiftdc-keywords": "vlmend.judges.shiftdc_keywords",
    "xstest-prefix": "vlmend.judges.xstest_prefix",
}
"""Judge name -> module that holds it as `JUDGE`."""


@runtime_checkable
class Judge(Protocol):
    """Turns a sample and the text of an answer into a verdict value.

    A judge sees non-empty answers only (`judge_responses` sets the others aside). Of an answer
    that it cannot decide it says "unscored" with a reason; it never guesses "refused".
    """

    @property
    def name(self) -> str:
        """Unique name, as typed by users."""
        ...

    @property
    def revision(self) -> str:
        """Changes whenever the judge may decide differently; stored with the verdicts."""
        ...

    @property
    def description(self) -> str:
        """One line: what it decides, and what it cannot."""
        ...

    def judge(self, sample: Sample, text: str) -> tuple[VerdictValue, str]:
        """Decide on one answer.

        Args:
            sample: What was asked.
            text: The answer, not blank.

        Returns:
            The value, and one short line why.

        Raises:
            VlmendError: This answer cannot be judged; it is recorded as unscored.
        """
        ...


def get_judge(name: str) -> Judge:
    """Look a judge up by its exact name.

    Raises:
        UnknownNameError: No such judge; says which exist and the nearest one.
        ConfigError: A plug-in offers something else than a judge of its own name.
    """
    plugins = _plugins()
    if name in PROVIDERS:
        judge = importlib.import_module(PROVIDERS[name]).JUDGE
        assert isinstance(judge, Judge), f"{PROVIDERS[name]}.JUDGE is not a judge"
        assert judge.name == name, f"{PROVIDERS[name]}.JUDGE is named {judge.name}, not {name}"
        return judge
    if name not in plugins:
        raise UnknownNameError("judge", name, judge_names())
    return load_plugin("judge", plugins[name], Judge)


def judge_names() -> tuple[str, ...]:
    """Names of all judges, sorted: built-in and installed as plug-ins."""
    return tuple(sorted({*PROVIDERS, *_plugins()}))


def judge_responses(judge: Judge, pairs: Iterable[tuple[Sample, Response]]) -> list[Verdict]:
    """Judge responses; what cannot be judged is `unscored` with its reason, never "safe".

    Unscored are: a response with an error, a blank answer, and an answer on which the judge
    raises a `VlmendError`. Any other exception is a bug and comes through.

    Args:
        judge: Who decides.
        pairs: Every sample with its response.

    Returns:
        One verdict per pair, in order.
    """
    return [_judge_one(judge, sample, response) for sample, response in pairs]


def _judge_one(judge: Judge, sample: Sample, response: Response) -> Verdict:
    """The verdict on one response."""
    assert sample.id == response.sample_id, f"{response.sample_id} is no answer to {sample.id}"
    value: VerdictValue = "unscored"
    if response.finish == "error" or response.error is not None:
        reason = f"generation failed: {response.error or 'no message'}"
    elif not response.text.strip():
        reason = "the answer is empty"
    else:
        try:
            value, reason = judge.judge(sample, response.text)
        except VlmendError as error:
            reason = f"the judge failed: {error}"
    if value == "unscored" and not reason:
        reason = "the judge gave no reason"
    return Verdict(response.id, sample.id, judge.name, value, reason)


def _plugins() -> dict[str, EntryPoint]:
    """Installed plug-ins by judge name.

    Raises:
        ConfigError: A name is taken twice; neither is preferred silently.
    """
    return index_plugins("judge", entry_points(group=ENTRY_POINT_GROUP), PROVIDERS)
