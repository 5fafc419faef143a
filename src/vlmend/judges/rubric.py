"""What an endpoint is asked and how its answer is read: rubrics, official ones and your own.

A rubric is words with a rule. Official ones keep their words and their rule exactly; our own ask
for a JSON object with a verdict, which servers can enforce (`response_format`), and read it from
plain text where a server cannot.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from vlmend.judges.model_judge import decide_unreadable
from vlmend.judges.registry import Decision
from vlmend.types import Sample, VerdictValue

ReadAnswer = Callable[[Sample, str], Decision]
"""From a sample and what the judge model said to the decision."""

_FIELD = re.compile(r"\{(question|response|reference|context|safety_warning)\}")


@dataclass(frozen=True, slots=True)
class Rubric:
    """Words and a rule.

    Attributes:
        template: The user turn; {question}, {response}, {reference} and keys of a sample's meta
            ({context}, {safety_warning}) are filled in.
        parse: Reads the judge model's answer.
        system: The system turn; empty for none.
        sees: Whether the sample's pictures go along.
        schema: JSON schema of the answer, for servers that can enforce one.
        max_tokens: Most tokens of the answer.
        temperature: Of the judge model.
        choose: Picks another template for a sample, where one rubric has several.
        all_templates: Every template there is, for the hash; just `template` when empty.
        verdicts: Words of the answer -> what they mean, for the hash; empty where `parse` has a
            rule of its own, which changes with vlmend only.
    """

    template: str
    parse: ReadAnswer
    system: str = ""
    sees: bool = False
    schema: Mapping[str, Any] | None = None
    max_tokens: int = 512
    temperature: float = 0.0
    choose: Callable[[Sample], str] | None = None
    all_templates: tuple[str, ...] = field(default=())
    verdicts: Mapping[str, VerdictValue] = field(default_factory=dict[str, VerdictValue])

    @property
    def identity(self) -> dict[str, Any]:
        """All of it that decides a verdict, as JSON can say it, for the hash."""
        return {
            "system": self.system,
            "templates": list(self.all_templates or (self.template,)),
            "sees": self.sees,
            "schema": self.schema,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "verdicts": dict(self.verdicts),
        }

    def render(self, sample: Sample, text: str) -> str:
        """Fill the template in; what is filled in is never looked into for further fields."""
        template = self.choose(sample) if self.choose else self.template
        values = {
            **{
                key: sample.meta[key] for key in ("context", "safety_warning") if key in sample.meta
            },
            "question": sample.text,
            "response": text,
            "reference": sample.reference or "",
        }
        return _FIELD.sub(lambda found: values.get(found[1], ""), template)


def verdict_rubric(
    template: str,
    verdicts: Mapping[str, VerdictValue],
    *,
    system: str = "",
    sees: bool = False,
    choose: Callable[[Sample], str] | None = None,
    all_templates: tuple[str, ...] = (),
) -> Rubric:
    """A rubric whose answer is a JSON object with "reason" and "verdict".

    Args:
        template: The user turn; must ask for that object itself.
        verdicts: What "verdict" may be -> what it means.
        system: The system turn.
        sees: Whether the sample's pictures go along.
        choose: See `Rubric`.
        all_templates: See `Rubric`.
    """
    return Rubric(
        template,
        lambda _, text: read_verdict(text, verdicts),
        system=system,
        sees=sees,
        schema=verdict_schema(verdicts),
        choose=choose,
        all_templates=all_templates,
        verdicts=verdicts,
    )


def verdict_schema(words: Iterable[str]) -> dict[str, Any]:
    """The JSON schema of an object with "reason" and "verdict".

    Args:
        words: What "verdict" may be.
    """
    return {
        "type": "object",
        "properties": {
            "reason": {"type": "string"},
            "verdict": {"type": "string", "enum": list(words)},
        },
        "required": ["reason", "verdict"],
        "additionalProperties": False,
    }


def read_verdict(text: str, verdicts: Mapping[str, VerdictValue]) -> Decision:
    """Read a JSON object with a verdict, wherever it stands in a text; or the bare word.

    Args:
        text: What the judge model said.
        verdicts: Words that "verdict" may be, compared without case -> what they mean.
    """
    by_word: dict[str, VerdictValue] = {word.lower(): v for word, v in verdicts.items()}
    said: object = text.strip().strip("`*\"'. ")
    reason = ""
    given = find_object(text, "verdict")
    if given is not None:
        said, reason = given["verdict"], str(given.get("reason") or "")
    if not isinstance(said, str) or said.strip().lower() not in by_word:
        return decide_unreadable(text, f"a verdict ({', '.join(verdicts)})")
    word = said.strip().lower()
    shown = " ".join(reason.split())
    return Decision(by_word[word], f"{word}: {shown[:200]}" if shown else word)


def find_object(text: str, key: str) -> dict[str, object] | None:
    """The last JSON object in a text that has a key; None where there is none.

    The last one, because models that think aloud write drafts before it.

    Example:
        >>> find_object('First {"a": 1}, no: {"a": 2}.', "a")
        {'a': 2}
    """
    decoder = json.JSONDecoder()
    for start in range(text.rfind("{") + 1, 0, -1):
        if text[start - 1] != "{":
            continue
        try:
            found: object = decoder.raw_decode(text, start - 1)[0]
        except ValueError:
            continue
        if isinstance(found, dict) and key in found:
            return cast("dict[str, object]", found)
    return None
