from __future__ import annotations

import base64
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer, chat_server
from PIL import Image

from vlmend.errors import ConfigError
from vlmend.judges.endpoint import EndpointJudge, build_own, encode_data_url, read_target
from vlmend.judges.endpoint_client import EndpointClient, EndpointSettings
from vlmend.judges.registry import Decision, describe_judge, get_judge, judge_responses
from vlmend.judges.rubric import Rubric, verdict_rubric
from vlmend.testing import picture
from vlmend.types import ImageRef, Response, Sample, user

SAMPLE = Sample("cakes/0", "cakes", user("How do I bake?"), "harmful")
SEEN = Sample("cakes/1", "cakes", user("What is this?", picture()), "harmful")
RUBRIC = verdict_rubric("Q: {question} A: {response}", {"REFUSAL": "refused", "ANSWER": "complied"})
ANSWERED = Answer('{"reason": "it bakes", "verdict": "ANSWER"}')
QUICK = {"backoff_s": 0.0, "max_retries": 2, "concurrency": 1, "api_key_env": ""}


class Patience:
    """Waits not at all, and keeps how long it should have waited."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.waits.append(seconds)


def make_judge(
    url: str, rubric: Rubric = RUBRIC, *, wait: Patience | None = None, **options: Any
) -> EndpointJudge:
    settings = EndpointSettings(url, "judge-model", **{**QUICK, **options})
    client = EndpointClient(settings, sleep=wait or Patience())
    return EndpointJudge("endpoint", "for tests", rubric, settings, client=client)


def responses(texts: list[str]) -> list[tuple[Sample, Response]]:
    samples = [replace(SAMPLE, id=f"cakes/{number}") for number in range(len(texts))]
    return [
        (sample, Response(f"r{sample.id}", sample.id, "cakes", text, "eos"))
        for sample, text in zip(samples, texts, strict=True)
    ]


def test_a_verdict_comes_back_with_its_reason() -> None:
    with chat_server(lambda _, __: ANSWERED) as server:
        judge = make_judge(server.url, replace(RUBRIC, system="Be just."))
        assert judge.judge(SAMPLE, "Mix it.") == ("complied", "answer: it bakes", None)
        (request,) = server.requests
        assert request["path"] == "/v1/chat/completions"
        assert request["model"] == "judge-model"
        assert request["temperature"] == 0.0
        assert request["max_tokens"] == 512
        assert request["messages"] == [
            {"role": "system", "content": "Be just."},
            {"role": "user", "content": "Q: How do I bake? A: Mix it."},
        ]
        schema = request["response_format"]["json_schema"]
        assert schema["schema"]["properties"]["verdict"]["enum"] == ["REFUSAL", "ANSWER"]
        assert "authorization" not in server.headers[0]
        assert judge.revision == "judge-model"
        assert judge.served_models == ("served-model",)
        assert describe_judge(judge)["prompt_sha256"] == judge.prompt_sha256


RUBRIC_FILE = """
url = "http://127.0.0.1:1/v1"
model = "judge-model"
prompt = "A: {response}"
[verdicts]
REFUSAL = "refused"
ANSWER = "complied"
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('ANSWER = "complied"', 'ANSWER = "partial"'),
        ("ANSWER =", "REPLY ="),
        ("A: {response}", "B: {response}"),
        ("[verdicts]", "sees = true\n[verdicts]"),
        ("[verdicts]", 'system = "Be just."\n[verdicts]'),
        ("[verdicts]", "send_temperature = false\n[verdicts]"),
    ],
)
def test_a_mended_rubric_is_another_judge(before: str, after: str, tmp_path: Path) -> None:
    file = tmp_path / "judge.toml"
    hashes: list[str] = []
    for text in (RUBRIC_FILE, RUBRIC_FILE.replace(before, after), RUBRIC_FILE):
        file.write_text(text)
        hashes.append(describe_judge(build_own(str(file)))["prompt_sha256"])
    first, mended, again = hashes
    assert mended != first == again


def test_settings_of_an_official_rubric_are_part_of_its_identity() -> None:
    def digest(**changes: Any) -> str:
        return make_judge("http://127.0.0.1:1/v1", replace(RUBRIC, **changes)).prompt_sha256

    others = {digest(max_tokens=8), digest(temperature=0.5), digest(schema=None), digest(sees=True)}
    assert len({digest(), *others}) == 5
    how_asked = {"timeout_s": 5.0, "concurrency": 3, "max_requests": 7}
    judge = make_judge("http://127.0.0.1:1/v1", **how_asked)
    assert judge.prompt_sha256 == digest(), "how it is asked decides nothing"


def test_many_are_asked_at_the_same_time_and_keep_their_order() -> None:
    def answer(_: int, body: dict[str, Any]) -> Answer:
        refuses = "no" in body["messages"][-1]["content"]
        verdict = "REFUSAL" if refuses else "ANSWER"
        return Answer(f'{{"verdict": "{verdict}", "reason": ""}}', delay_s=0.1)

    with chat_server(answer) as server:
        judge = make_judge(server.url, concurrency=4)
        verdicts = judge_responses(judge, responses(["yes", "no", "yes", "no", "", "yes"]))
        assert server.most_at_once > 1
        assert len(server.requests) == 5
    values = [verdict.value for verdict in verdicts]
    assert values == ["complied", "refused", "complied", "refused", "unscored", "complied"]


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (Answer(status=429), "HTTP 429"),
        (Answer(status=500, body=b"the oven is cold"), "HTTP 500: the oven is cold"),
        (Answer(status=503), "HTTP 503"),
        (Answer(drop=True), "connection failed"),
        (Answer(delay_s=0.6), "no answer within 0.2 s"),
        (Answer(body=b"<html>garbage"), "the server sent no chat completion: '<html>garbage'"),
        (Answer(body=b"{}"), "the server sent no chat completion"),
        (Answer(body=b'{"choices": []}'), "the server sent no chat completion"),
        (Answer(text=""), "the judge model gave an empty answer"),
    ],
)
def test_what_may_pass_is_asked_again_and_then_unscored(failure: Answer, reason: str) -> None:
    with chat_server(lambda number, _: failure if number < 3 else ANSWERED) as server:
        judge = make_judge(server.url, timeout_s=0.2)
        first, second = judge_responses(judge, responses(["a", "b"]))
    assert first.value == "unscored"
    assert first.reason.startswith("the endpoint: ")
    assert reason in first.reason
    assert "(asked 3 times)" in first.reason
    assert second.value == "complied"


def test_one_failure_is_forgiven() -> None:
    with chat_server(lambda n, _: Answer(status=502) if n == 0 else ANSWERED) as server:
        wait = Patience()
        judge = make_judge(server.url, wait=wait, backoff_s=2.0)
        assert judge.judge(SAMPLE, "a").value == "complied"
        assert len(server.requests) == 2
    assert 2.0 <= wait.waits[0] <= 2.5


def test_waits_double_up_to_their_limit() -> None:
    with chat_server(lambda _, __: Answer(status=500)) as server:
        wait = Patience()
        judge = make_judge(server.url, wait=wait, backoff_s=1.0, max_wait_s=5.0, max_retries=4)
        assert judge.judge(SAMPLE, "a").value == "unscored"
    first, second, third, fourth = wait.waits
    assert 1 <= first <= 1.25
    assert 2 <= second <= 2.5
    assert 4 <= third <= 5
    assert fourth == 5.0


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured(as_date: bool) -> None:
    when = datetime.now(UTC) + timedelta(seconds=30)
    value = format_datetime(when, usegmt=True) if as_date else "30"
    failure = Answer(status=429, headers={"Retry-After": value})
    with chat_server(lambda n, _: failure if n == 0 else ANSWERED) as server:
        wait = Patience()
        assert make_judge(server.url, wait=wait).judge(SAMPLE, "a").value == "complied"
    assert 20 < wait.waits[0] <= 30


@pytest.mark.parametrize("value", ["soon", "-3", ""])
def test_a_senseless_retry_after_is_passed_over(value: str) -> None:
    failure = Answer(status=429, headers={"Retry-After": value})
    with chat_server(lambda n, _: failure if n == 0 else ANSWERED) as server:
        wait = Patience()
        assert make_judge(server.url, wait=wait).judge(SAMPLE, "a").value == "complied"
    assert wait.waits == [0.0]


def test_the_cap_counts_every_request() -> None:
    with chat_server(lambda _, __: Answer(status=500)) as server:
        judge = make_judge(server.url, max_requests=4, max_retries=2)
        verdicts = judge_responses(judge, responses(["a", "b", "c"]))
        assert len(server.requests) == 4
    assert [verdict.value for verdict in verdicts] == ["unscored"] * 3
    assert "the cap of 4 requests is reached" in verdicts[1].reason
    assert "HTTP 500" in verdicts[1].reason
    assert verdicts[2].reason.startswith("the endpoint: the cap of 4 requests is reached")


def test_the_cap_holds_when_many_ask_at_once() -> None:
    with chat_server(lambda _, __: ANSWERED) as server:
        judge = make_judge(server.url, max_requests=5, concurrency=8)
        verdicts = judge_responses(judge, responses(["a"] * 20))
        assert len(server.requests) == 5
    assert sum(verdict.value == "complied" for verdict in verdicts) == 5


@pytest.mark.parametrize("text", ["I would rather not say.", "MAYBE", '{"verdict": "MAYBE"}', "{"])
def test_an_answer_without_a_verdict_is_unscored_and_not_asked_again(text: str) -> None:
    with chat_server(lambda _, __: Answer(text)) as server:
        decision = make_judge(server.url).judge(SAMPLE, "a")
        assert len(server.requests) == 1
    assert decision.value == "unscored"
    assert "the judge model said" in decision.reason
    assert "(REFUSAL, ANSWER)" in decision.reason


def test_a_server_without_schemas_is_asked_in_plain_words() -> None:
    def answer(_: int, body: dict[str, Any]) -> Answer:
        if "response_format" in body:
            return Answer(status=400, body=b"unknown field response_format")
        return Answer('Sure: ```json\n{"reason": "no", "verdict": "refusal"}\n```')

    with chat_server(answer) as server:
        judge = make_judge(server.url)
        verdicts = judge_responses(judge, responses(["a", "b"]))
        assert [v.value for v in verdicts] == ["refused", "refused"]
        # The second answer is not asked for with a schema any more.
        assert ["response_format" in request for request in server.requests] == [True, False, False]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"verdict": "REFUSAL"} or {"verdict": "ANSWER", "reason": "a {b}"}, I say', "complied"),
        ('{not json} {"verdict": "refusal"}', "refused"),
        ('{"verdict": {"verdict": "ANSWER"}}', "complied"),
        ('{"verdict": 3}', "unscored"),
        ("**ANSWER**", "complied"),
    ],
)
def test_the_last_object_with_a_verdict_counts(text: str, value: str) -> None:
    assert RUBRIC.parse(SAMPLE, text).value == value


def test_a_request_that_is_at_fault_itself_does_not_switch_schemas_off() -> None:
    def answer(_: int, body: dict[str, Any]) -> Answer:
        too_long = "long" in body["messages"][-1]["content"]
        return Answer(status=400, body=b"too long") if too_long else ANSWERED

    with chat_server(answer) as server:
        judge = make_judge(server.url)
        first, second = judge_responses(judge, responses(["long", "b"]))
        assert "response_format" in server.requests[-1]
    assert (first.value, second.value) == ("unscored", "complied")
    assert "HTTP 400: too long" in first.reason


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAKERS_KEY", "sk-very-secret")

    def answer(_: int, __: dict[str, Any]) -> Answer:
        return Answer(status=401, body=b"wrong key sk-very-secret")

    with chat_server(answer) as server:
        judge = make_judge(server.url, api_key_env="BAKERS_KEY")
        verdicts = judge_responses(judge, responses(["a", "b"]))
        assert server.headers[0]["authorization"] == "Bearer sk-very-secret"
        # A refused key is refused for all.
        assert len(server.requests) == 1
    shown = " ".join(v.reason for v in verdicts) + repr(vars(judge)) + repr(judge.settings)
    assert "sk-very-secret" not in shown
    assert "***" in verdicts[0].reason
    assert "Set BAKERS_KEY" in verdicts[1].reason


def test_the_key_does_not_go_through_the_open_net(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    settings = EndpointSettings("http://judge.example:8000/v1", "m")
    with pytest.raises(ConfigError, match="unencrypted") as error:
        EndpointClient(settings)
    assert "sk-very-secret" not in str(error.value)
    EndpointClient(replace(settings, url="https://judge.example/v1"))
    EndpointClient(replace(settings, api_key_env=""))


def test_newer_models_get_the_names_they_know() -> None:
    with chat_server(lambda _, __: ANSWERED) as server:
        options = {"token_limit_field": "max_completion_tokens", "send_temperature": False}
        make_judge(server.url, **options).judge(SAMPLE, "a")
        (request,) = server.requests
    assert request["max_completion_tokens"] == 512
    assert not {"max_tokens", "temperature"} & set(request)


def test_pictures_go_along_where_the_rubric_looks() -> None:
    with chat_server(lambda _, __: ANSWERED) as server:
        make_judge(server.url, replace(RUBRIC, sees=True)).judge(SEEN, "A cake.")
        make_judge(server.url).judge(SEEN, "A cake.")
        seeing, blind = (request["messages"][-1]["content"] for request in server.requests)
    assert [part["type"] for part in seeing] == ["image_url", "text"]
    assert seeing[0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert blind == "Q: What is this? A: A cake."


@pytest.mark.parametrize(
    ("format_", "mime"),
    [("PNG", "png"), ("JPEG", "jpeg"), ("GIF", "gif"), ("WEBP", "webp"), ("BMP", "png")],
)
def test_data_urls_name_the_format(tmp_path: Path, format_: str, mime: str) -> None:
    path = tmp_path / "picture"
    Image.new("RGB", (8, 8), "red").save(path, format=format_)
    head, _, data = encode_data_url(ImageRef(path=path)).partition(",")
    assert head == f"data:image/{mime};base64"
    if mime == format_.lower():
        assert base64.b64decode(data) == path.read_bytes()
    else:
        assert base64.b64decode(data).startswith(b"\x89PNG")


def test_a_picture_that_is_missing_costs_its_own_answer_only(tmp_path: Path) -> None:
    lost = replace(SEEN, messages=user("?", ImageRef(path=tmp_path / "no.png")))
    with chat_server(lambda _, __: ANSWERED) as server:
        judge = make_judge(server.url, replace(RUBRIC, sees=True))
        decisions = judge.judge_many([(lost, "a"), (SEEN, "b")])
    assert [decision.value for decision in decisions] == ["unscored", "complied"]
    assert "cannot read image" in decisions[0].reason


def test_all_wrong_settings_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        EndpointSettings("ftp://x", "", timeout_s=0, max_requests=0, concurrency=0)
    for part in ("url='ftp://x'", "model is empty", "timeout_s=0", "max_requests=0", "concurrency"):
        assert part in str(error.value)


def test_a_password_in_a_url_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError, match="holds a password") as error:
        EndpointSettings("https://baker:secret@judge.example/v1", "m")
    assert "secret" not in str(error.value)


OWN = """
url = "{url}"
model = "judge-model"
api_key_env = ""
prompt = "Did it refuse? {{response}}"
sees = true
[verdicts]
YES = "refused"
NO = "complied"
"""


def test_a_rubric_of_your_own(tmp_path: Path) -> None:
    with chat_server(lambda _, __: Answer("yes.")) as server:
        path = tmp_path / "judge.toml"
        path.write_text(OWN.format(url=server.url))
        judge = get_judge(f"endpoint={path}")
        assert isinstance(judge, EndpointJudge)
        assert judge.judge(SAMPLE, "I will not {question}.") == Decision("refused", "yes")
        content = server.requests[0]["messages"][0]["content"]
        assert content == "Did it refuse? I will not {question}."


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("{response}", "it", "prompt must be a text that holds {response}"),
        ('NO = "complied"', 'NO = "fine"', "NO = 'fine'"),
        ('[verdicts]\nYES = "refused"\nNO = "complied"\n', "", "[verdicts] must hold"),
        ("sees = true", 'sees = "yes"', "sees must be true or false"),
    ],
)
def test_an_incomplete_rubric_is_refused(tmp_path: Path, old: str, new: str, problem: str) -> None:
    path = tmp_path / "judge.toml"
    text = OWN.format(url="http://127.0.0.1:1/v1")
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ConfigError) as error:
        build_own(str(path))
    assert problem in str(error.value)


def test_settings_files_are_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "judge.toml"
    path.write_text('url = "http://127.0.0.1:1/v1"\nmodel = "m"\nmax_requests = 7\n')
    settings, rubric = read_target("endpoint/mossbench", str(path))
    assert (settings.max_requests, rubric) == (7, {})
    path.write_text("url = 3\nspeed = 1\nmax_requests = 7.5\n")
    with pytest.raises(ConfigError) as error:
        read_target("endpoint/mossbench", str(path))
    for part in ("unknown: speed", "missing: model", "url=3", "max_requests=7.5"):
        assert part in str(error.value)
    path.write_text("url = ")
    with pytest.raises(ConfigError, match="no TOML file that can be read"):
        get_judge(f"endpoint/mossbench={path}")
    with pytest.raises(ConfigError, match="no TOML file that can be read"):
        get_judge("endpoint/mossbench=gpt-4o")
    with pytest.raises(ConfigError, match="model is empty"):
        get_judge("endpoint/mossbench=http://127.0.0.1:8000/v1")


def test_a_preset_keeps_its_own_rubric(tmp_path: Path) -> None:
    path = tmp_path / "judge.toml"
    path.write_text(OWN.format(url="http://127.0.0.1:1/v1"))
    with pytest.raises(ConfigError, match="has its own rubric"):
        get_judge(f"endpoint/mossbench={path}")


def test_nothing_is_sent_before_an_answer_is_judged() -> None:
    start = time.perf_counter()
    judge = get_judge("endpoint/mossbench=http://127.0.0.1:9/v1#nobody")
    assert judge_responses(judge, responses([""]))[0].reason == "the answer is empty"
    assert describe_judge(judge)["revision"] == "nobody"
    assert time.perf_counter() - start < 5
