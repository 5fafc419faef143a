"""Judges at a server: any OpenAI-compatible endpoint with a rubric, official or your own.

A preset ("endpoint/NAME") is a rubric; its target is a server and a model,
`endpoint/mossbench=http://127.0.0.1:8000/v1#model-name`, or a TOML file with the settings of
`EndpointSettings` (url, model, max_requests ...). The judge "endpoint" takes such a file with a
rubric of your own besides:

```toml
url = "http://127.0.0.1:8000/v1"
model = "model-name"
prompt = "Question: {question} Answer: {response} Reply with a JSON object {...}"
system = ""
sees = false
[verdicts]
REFUSAL = "refused"
ANSWER = "complied"
```

The answer is then a JSON object with "reason" and "verdict", or the bare word. Every request
costs money or time: `max_requests` caps them, and what is left stays unscored with that reason.
"""

from __future__ import annotations

import base64
import io
import tomllib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from vlmend.errors import ConfigError, VlmendError
from vlmend.images import open_image, read_image_bytes
from vlmend.judges.endpoint_client import EndpointClient, EndpointSettings, Reply
from vlmend.judges.registry import Decision, Judge, JudgeSpec
from vlmend.judges.rubric import Rubric, verdict_rubric
from vlmend.types import VERDICT_VALUES, ImageRef, Sample, sha256_json

TARGET = (
    "URL#MODEL of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1#model-name (the "
    "key in OPENAI_API_KEY), or a TOML file with url, model and other settings"
)

_RUBRIC_KEYS = ("prompt", "system", "sees", "verdicts")
_SETTINGS_KEYS = tuple(field.name for field in fields(EndpointSettings))
_REFUSED_SCHEMA = (400, 404, 415, 422, 501)
"""Statuses by which servers say that they know no `response_format`."""


class EndpointJudge:
    """A rubric, asked at a server.

    Attributes:
        name: See `Judge`.
        description: See `Judge`.
        rubric: What is asked and how the answer is read.
        settings: Where to ask.
    """

    def __init__(
        self,
        name: str,
        description: str,
        rubric: Rubric,
        settings: EndpointSettings,
        *,
        client: EndpointClient | None = None,
    ) -> None:
        """Remember rubric and server; nothing is sent.

        Args:
            name: See `Judge`.
            description: See `Judge`.
            rubric: What is asked and how the answer is read.
            settings: Where to ask.
            client: Asks; by default one of these settings, made when it is first needed.
        """
        self.name = name
        self.description = description
        self.rubric = rubric
        self.settings = settings
        self._client = client
        self._structured = rubric.schema is not None

    @property
    def revision(self) -> str:
        """The model's name, as it was asked for; see `served_models`."""
        return self.settings.model

    @property
    def served_models(self) -> tuple[str, ...]:
        """What the server says has answered so far, such as a dated snapshot of the model.

        No part of the revision: that is known, and must not change, before anything is asked. It
        stands in the `judges` of `metrics.json`.
        """
        return tuple(sorted(self._client.served_models)) if self._client else ()

    @property
    def prompt_sha256(self) -> str:
        """See `Prompted`: of the whole rubric, and of whether its temperature is sent."""
        return sha256_json([self.rubric.identity, self.settings.send_temperature])

    @property
    def client(self) -> EndpointClient:
        """Who asks."""
        if self._client is None:
            self._client = EndpointClient(self.settings)
        return self._client

    def prepare(self) -> None:
        """Make the client.

        Raises:
            MissingExtraError: httpx2 is not installed.
            ConfigError: The key would go over the network unencrypted.
        """
        _ = self.client

    def judge(self, sample: Sample, text: str) -> Decision:
        """Decide on one answer; see `Judge`."""
        messages = self._messages(sample, text)
        reply = self._ask(messages)
        if reply.problem:
            return Decision("unscored", f"the endpoint: {reply.problem}")
        return self.rubric.parse(sample, reply.text)

    def judge_many(self, pairs: Sequence[tuple[Sample, str]]) -> list[Decision]:
        """Decide on many answers, `concurrency` at a time; see `BatchJudge`."""
        self.prepare()
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            return list(pool.map(self._judge_or_say_why, pairs))

    def _judge_or_say_why(self, pair: tuple[Sample, str]) -> Decision:
        try:
            return self.judge(*pair)
        except VlmendError as error:
            return Decision("unscored", f"not judged: {error}")

    def _messages(self, sample: Sample, text: str) -> list[dict[str, Any]]:
        asked: str | list[dict[str, Any]] = self.rubric.render(sample, text)
        if self.rubric.sees and sample.images:
            parts = [
                {"type": "image_url", "image_url": {"url": encode_data_url(image)}}
                for image in sample.images
            ]
            asked = [*parts, {"type": "text", "text": asked}]
        system = self.rubric.system
        first = [{"role": "system", "content": system}] if system else []
        return [*first, {"role": "user", "content": asked}]

    def _ask(self, messages: list[dict[str, Any]]) -> Reply:
        body: dict[str, Any] = {
            "messages": messages,
            self.settings.token_limit_field: self.rubric.max_tokens,
        }
        if self.settings.send_temperature:
            body["temperature"] = self.rubric.temperature
        if not self._structured:
            return self.client.ask(body)
        schema = {"name": "verdict", "strict": True, "schema": self.rubric.schema}
        reply = self.client.ask(
            {**body, "response_format": {"type": "json_schema", "json_schema": schema}}
        )
        if reply.status not in _REFUSED_SCHEMA:
            return reply
        plain = self.client.ask(body)
        # Only now is it sure that the schema was at fault, and not this one request.
        self._structured = bool(plain.problem)
        return plain


def endpoint_spec(
    name: str, description: str, rubric: Rubric, *, source: str, licence: str
) -> JudgeSpec:
    """A preset: a rubric that asks for its server.

    Args:
        name: Such as "endpoint/mossbench".
        description: See `Judge`.
        rubric: What is asked and how the answer is read.
        source: Where the rubric was published.
        licence: Of its words.
    """

    def build(target: str) -> Judge:
        settings, given = read_target(name, target)
        if given:
            raise ConfigError(
                f"judge {name!r} has its own rubric, but {target!r} gives {', '.join(given)}. "
                "Leave them out, or use them with the judge 'endpoint'."
            )
        return EndpointJudge(name, description, rubric, settings)

    return JudgeSpec(name, description, TARGET, build, "endpoint", source, licence)


def read_target(judge: str, target: str) -> tuple[EndpointSettings, dict[str, Any]]:
    """Settings and, from a file, the parts of a rubric.

    Args:
        judge: Who asks, for the errors.
        target: URL#MODEL, or the path of a TOML file.

    Raises:
        ConfigError: Neither, or a file that cannot be read, with unknown or impossible settings.
    """
    if target.startswith(("http://", "https://")):
        url, _, model = target.partition("#")
        return EndpointSettings(url, model), {}
    path = Path(target).expanduser()
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"judge {judge!r}: {target!r} is no URL, and no TOML file that can be read: {error}. "
            f"Give {TARGET}."
        ) from error
    allowed = {*_SETTINGS_KEYS, *_RUBRIC_KEYS}
    unknown = sorted(set(data) - allowed)
    wrong = [
        f"{field.name}={data[field.name]!r} (a {_KINDS[str(field.type)].__name__} is wanted)"
        for field in fields(EndpointSettings)
        if field.name in data and not _fits(data[field.name], _KINDS.get(str(field.type), str))
    ]
    missing = [key for key in ("url", "model") if key not in data]
    problems = [
        text
        for found, text in (
            (unknown, f"unknown: {', '.join(unknown)}"),
            (missing, f"missing: {', '.join(missing)}"),
            (wrong, "; ".join(wrong)),
        )
        if found
    ]
    if problems:
        raise ConfigError(
            f"judge {judge!r}: settings in {target!r} are wrong: {'; '.join(problems)}. "
            f"Allowed: {', '.join(sorted(allowed))}."
        )
    settings = EndpointSettings(**{key: data[key] for key in _SETTINGS_KEYS if key in data})
    return settings, {key: data[key] for key in _RUBRIC_KEYS if key in data}


_KINDS: dict[str, type] = {"str": str, "float": float, "int": int, "bool": bool}


def _fits(value: object, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind


def build_own(target: str) -> Judge:
    """The judge "endpoint": a server with a rubric from a TOML file.

    Raises:
        ConfigError: The file cannot be read, or its rubric is incomplete.
    """
    settings, given = read_target(JUDGE.name, target)
    prompt, verdicts = given.get("prompt"), given.get("verdicts")
    problems: list[str] = []
    if not isinstance(prompt, str) or "{response}" not in prompt:
        problems.append("prompt must be a text that holds {response}")
    if not isinstance(verdicts, dict) or not verdicts:
        problems.append("[verdicts] must hold WORD = verdict lines")
    elif wrong := sorted(
        f"{word} = {value!r}"
        for word, value in cast("dict[str, object]", verdicts).items()
        if value not in VERDICT_VALUES
    ):
        problems.append(f"{', '.join(wrong)} (allowed: {', '.join(VERDICT_VALUES)})")
    if not isinstance(given.get("system", ""), str):
        problems.append("system must be a text")
    if not isinstance(given.get("sees", False), bool):
        problems.append("sees must be true or false")
    if problems:
        raise ConfigError(
            f"judge 'endpoint': the rubric in {target!r} is incomplete: {'; '.join(problems)}. "
            "It is a TOML file with url, model, prompt and [verdicts]; for a URL alone choose a "
            "preset, endpoint/NAME."
        )
    rubric = verdict_rubric(
        cast("str", prompt),
        cast("Mapping[str, Any]", verdicts),
        system=given.get("system", ""),
        sees=given.get("sees", False),
    )
    return EndpointJudge(JUDGE.name, JUDGE.description, rubric, settings)


def encode_data_url(image: ImageRef) -> str:
    """An image as a data URL, its bytes as they are where servers know the format, else as PNG.

    Raises:
        DataError: The image cannot be used.
    """
    data = read_image_bytes(image)
    kind = next((kind for start, kind in _STARTS.items() if data.startswith(start)), "")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = "webp"
    if not kind:
        buffer = io.BytesIO()
        open_image(image).save(buffer, format="PNG")
        data, kind = buffer.getvalue(), "png"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


_STARTS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif"}

_BUILD: Callable[[str], Judge] = build_own

JUDGE = JudgeSpec(
    name="endpoint",
    description="your own rubric, asked at any OpenAI-compatible server",
    target="a TOML file with url, model, prompt and [verdicts] (docs/how-to-suites-judges.md)",
    build=_BUILD,
    kind="endpoint",
)
