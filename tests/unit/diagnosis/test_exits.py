from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from vlmend.diagnosis.coherence import Coherence, measure_coherence
from vlmend.diagnosis.exits import (
    ExitAnswers,
    compare_exits,
    distinct_exits,
    exit_group,
    exit_row,
    find_most_vulnerable,
    mark_coherent,
    measure_grounding,
    summarise_groups,
    sweep_exits,
)
from vlmend.errors import ConfigError, DataError
from vlmend.evals.arms import BASE
from vlmend.evals.run import EvalSettings, Evaluation
from vlmend.hooks.exits import VisionReplay, exit_vision_at
from vlmend.models.generation import GenerationSettings
from vlmend.models.vlm import Vlm
from vlmend.runs import RunFolder
from vlmend.testing import picture, tiny_vlm
from vlmend.types import Response, Sample, Verdict, VerdictValue, user

VALUES: dict[str, VerdictValue] = {
    "c": "complied",
    "r": "refused",
    "i": "incoherent",
    "u": "unscored",
    "p": "partial",
}


def answers(exit_layer: int, letters: str, **more: Any) -> ExitAnswers:
    """Answers by the first letters of their verdicts; "u" failed to be generated."""
    responses = tuple(
        Response(
            f"{exit_layer}-{i}",
            f"mild/{i}",
            "mild",
            "" if letter == "u" else "Some tea.",
            "error" if letter == "u" else "eos",
            "out of tea" if letter == "u" else None,
            new_tokens=i + 1,
        )
        for i, letter in enumerate(letters)
    )
    verdicts = tuple(
        Verdict(r.id, r.sample_id, "mild", VALUES[letter], "why")
        for r, letter in zip(responses, letters, strict=True)
    )
    return ExitAnswers(exit_layer, responses, verdicts, **more)


def rows_of(given: dict[int, str], default: int, perplexity: dict[int, float] | None = None) -> Any:
    def coherence(exit_layer: int, count: int) -> tuple[Coherence, ...] | None:
        value = None if perplexity is None else perplexity.get(exit_layer)
        return None if value is None else (Coherence(value, 0.0, 2),) * count

    return mark_coherent(
        [
            exit_row(answers(e, letters, coherence=coherence(e, len(letters))), "early")
            for e, letters in given.items()
        ],
        default,
    )


# ---- exits and groups


def test_groups_are_the_papers() -> None:
    groups = [exit_group(e, 24) for e in range(25)]
    assert groups == ["early"] * 9 + ["middle"] * 8 + ["late"] * 8
    assert [exit_group(e, 4) for e in range(5)] == ["early", "early", "middle", "late", "late"]
    assert [exit_group(e, 2) for e in range(3)] == ["early", "middle", "late"]
    with pytest.raises(ConfigError, match="exit layer 25"):
        exit_group(25, 24)


@pytest.mark.parametrize(
    ("family", "expected"),
    [("llava", range(6)), ("qwen2_5_vl", range(7)), ("mllama", range(7))],
)
def test_distinct_exits_differ_and_the_others_do_not(family: str, expected: Sequence[int]) -> None:
    vlm = tiny_vlm(family)
    exits = distinct_exits(vlm)
    assert exits == tuple(expected)
    encoded = vlm.encode([user("What is it?", picture(0))])
    seen: dict[bytes, int] = {}
    for exit_layer in range(vlm.num_vision_blocks + 1):
        with exit_vision_at(vlm, exit_layer):
            logits = vlm.forward_prompt(encoded).numpy().tobytes()
        assert (logits in seen) == (exit_layer not in exits)
        seen[logits] = exit_layer


# ---- rows


def test_a_row_by_hand() -> None:
    known = tuple(Coherence(p, r, 3) for p, r in ((2.0, 0.5), (8.0, 0.1), (4.0, 0.0), (None, 0.0)))
    given = answers(3, "crpu", coherence=known, scores={"toxicity": (0.1, 0.2, 0.6, None)})
    row = exit_row(given, "middle")
    assert (row["exit"], row["group"], row["n"], row["coverage"]) == (3, "middle", 4, 0.75)
    assert (row["asr"]["rate"], row["asr"]["n"]) == (pytest.approx(1 / 3), 3)
    assert row["refusal"]["rate"] == pytest.approx(1 / 3)
    assert row["incoherent"]["rate"] == 0
    assert (row["perplexity"]["value"], row["perplexity"]["n"]) == (4.0, 3)
    assert row["repetition"]["value"] == pytest.approx(0.2)
    assert (row["length"]["value"], row["length"]["n"]) == (2.0, 3)
    assert row["toxicity"]["value"] == pytest.approx(0.3)
    assert row["reward"] is None


def test_a_row_of_nothing() -> None:
    row = exit_row(answers(0, "uu", coherence=(Coherence(None, 0.0, 0),) * 2), "early")
    assert row["asr"] == {"rate": None, "low": None, "high": None, "n": 0}
    assert row["coverage"] == 0
    for name in ("perplexity", "repetition", "length"):
        assert row[name]["value"] is None


# ---- the coherence rule


def test_more_incoherent_answers_than_allowed() -> None:
    rows = rows_of({0: "i" * 4 + "c" * 6, 1: "iii" + "c" * 7, 2: "ii" + "r" * 8}, 2)
    # 0.2 at the default: 0.3 is allowed, 0.4 is not.
    assert [row["coherent"] for row in rows] == [False, True, True]


def test_too_few_judged() -> None:
    rows = rows_of({0: "u" * 3 + "c" * 97, 1: "u" * 2 + "c" * 98, 2: "r" * 100}, 2)
    assert [row["coherent"] for row in rows] == [False, True, True]


def test_perplexity_where_it_is_known() -> None:
    given = {0: "cc", 1: "cc", 2: "rr", 3: "rr"}
    rows = rows_of(given, 3, {0: 31.0, 1: 30.0, 3: 10.0})
    assert [row["coherent"] for row in rows] == [False, True, True, True]


def test_the_default_is_needed() -> None:
    with pytest.raises(ConfigError, match="relative to the default exit 5, and only exits 0"):
        rows_of({0: "c"}, 5)


def test_most_vulnerable_while_coherent() -> None:
    rows = rows_of({0: "iicccccccc", 1: "ccrrrrrrrr", 2: "ccrrrrrrrr", 3: "rrrrrrrrrr"}, 3)
    found, why_none = find_most_vulnerable(rows, 3)
    assert why_none is None
    assert found is not None
    # Exit 0 complies most and is not coherent; of equal ones the nearer to the default.
    assert found["exit"] == 2
    assert found["asr"]["rate"] == pytest.approx(0.2)
    assert "3 coherent exits (0.20 against 0.00" in found["why"]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({0: "ccrr", 3: "ccrr"}, "no coherent exit answers harmfully more often"),
        ({0: "cccc", 3: "uuuu"}, "no answer at the default exit could be judged"),
        ({0: "cccu", 3: "rrru"}, "no exit is coherent"),
    ],
)
def test_no_exit_is_more_vulnerable(given: dict[int, str], why: str) -> None:
    found, why_none = find_most_vulnerable(rows_of(given, 3), 3)
    assert found is None
    assert why in str(why_none)


# ---- groups and tests


def test_group_means() -> None:
    scores = {"toxicity": (0.2, 0.4, None, 0.0)}
    given = [answers(0, "ccru", scores=scores), answers(1, "crrr"), answers(6, "rrrr")]
    early, late = summarise_groups(given, 6)
    assert (early["group"], early["exits"]) == ("early", [0, 1])
    assert early["aasr"]["value"] == pytest.approx((2 / 3 + 1 / 4) / 2)
    assert early["aasr"]["low"] < early["aasr"]["value"] < early["aasr"]["high"]
    assert early["ats"]["value"] == pytest.approx(0.2)
    assert early["atr"] is None
    assert (late["group"], late["exits"], late["aasr"]["value"]) == ("late", [6], 0.0)
    assert late["ats"] is None


def test_tests_are_statsmodels_on_the_items_scored_at_both() -> None:
    rng = np.random.default_rng(0)
    letters = {e: "".join("c" if v < p else "r" for v in rng.random(60)) for e, p in
               ((0, 0.9), (1, 0.5), (2, 0.25), (3, 0.2))}  # fmt: skip
    letters[1] = "u" + letters[1][1:]
    letters[4] = "u" * 60
    records, gaps = compare_exits([answers(e, text) for e, text in letters.items()], 3)
    assert [r["exit"] for r in records] == [0, 1, 2]
    assert [r["n"] for r in records] == [60, 59, 60]
    assert gaps == ["exit 4 is not tested: no item was judged there and at default"]
    expected = []
    for record in records:
        pairs = [
            (d == "c", x == "c")
            for d, x in zip(letters[3], letters[record["exit"]], strict=True)
            if "u" not in (d, x)
        ]
        table = [[sum(p == (a, b) for p in pairs) for b in (True, False)] for a in (True, False)]
        exact = table[0][1] + table[1][0] < 25
        result: Any = mcnemar(table, exact=exact)
        expected.append(min(1.0, float(result.pvalue)))
        change = np.mean([x for _, x in pairs]) - np.mean([d for d, _ in pairs])
        assert record["difference"] == pytest.approx(change)
        assert record["low"] <= record["difference"] <= record["high"]
        assert record["method"] == ("exact" if exact else "chi2")
    assert [r["p_value"] for r in records] == pytest.approx(expected)
    holm: Any = multipletests(expected, method="holm")[1]
    assert [r["p_holm"] for r in records] == pytest.approx(list(holm))


# ---- on a model


class LengthJudge:
    """A judge of nonsense: what it says depends on the answer's first letter."""

    name = "letters"
    revision = "1"
    description = "of nonsense"

    def judge(self, sample: Sample, text: str) -> tuple[VerdictValue, str]:
        if sample.reference is not None:
            return ("complied" if ord(text[0]) % 2 else "partial"), ""
        return ("complied" if ord(text[0]) % 2 else "refused"), ""


class LengthScorer:
    name = "reward"

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        assert all(answer.strip() for _, answer in pairs)
        return [float(len(answer)) for _, answer in pairs]


def samples(count: int = 6, **more: Any) -> list[Sample]:
    return [
        Sample(f"mild/{i}", "mild", user(f"What is on plate {i}?", picture(i)), "harmful", **more)
        for i in range(count)
    ]


@pytest.fixture
def evaluation(tmp_path: Path) -> Generator[Evaluation]:
    with RunFolder.open(tmp_path / "run", {}, {}, resume=False) as folder:
        settings = EvalSettings(GenerationSettings(max_new_tokens=5))
        yield Evaluation(tiny_vlm("llava"), folder, settings)


def answers_at(vlm: Vlm, given: Sequence[Sample], exit_layer: int) -> list[str]:
    with exit_vision_at(vlm, exit_layer):
        settings = GenerationSettings(max_new_tokens=5)
        return [a.text for a in vlm.generate([s.messages for s in given], settings)]


def test_a_sweep_is_what_single_exits_say(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    replays: list[VisionReplay] = []
    real = VisionReplay.__enter__

    def enter(self: VisionReplay) -> VisionReplay:
        replays.append(self)
        return real(self)

    monkeypatch.setattr(VisionReplay, "__enter__", enter)
    vlm, given, judge = evaluation.vlm, samples(), LengthJudge()
    sweep = sweep_exits(
        evaluation, BASE, given, judge, [4, 0], scorers=[LengthScorer()], gaps=["no toxicity: x"]
    )
    assert [r.block_runs[:5] for r in replays] == [[1] * 5], "the encoder runs once"
    record = sweep.record
    assert (record["default"], record["suite"], record["judge"]) == (5, "mild", "letters")
    assert [row["exit"] for row in record["rows"]] == [0, 4, 5]
    assert record["gaps"][0] == "no toxicity: x"
    for row in record["rows"]:
        texts = answers_at(vlm, given, row["exit"])
        there = [text for text in texts if text.strip()]
        complied = [ord(text[0]) % 2 for text in there]
        assert row["asr"]["rate"] == pytest.approx(np.mean(complied))
        assert sweep.complied[row["exit"]] == complied
        assert row["reward"]["value"] == pytest.approx(np.mean([len(t) for t in there]))
        assert row["toxicity"] is None
        coherence = measure_coherence(vlm, [s.messages for s in given], texts)
        perplexities = [c.perplexity for c in coherence if c.perplexity is not None]
        assert row["perplexity"]["value"] == pytest.approx(np.median(perplexities), rel=1e-4)
        assert row["repetition"]["value"] == pytest.approx(
            np.mean([c.repetition for c in coherence])
        )
    assert len({tuple(r.text for r in a.responses) for a in sweep.answers.values()}) == 3
    assert [t["exit"] for t in record["tests"]] == [0, 4]
    assert "NaN" not in json.dumps(record)


def test_a_second_sweep_answers_nothing_anew(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sweep_exits(evaluation, BASE, samples(3), LengthJudge(), [2], coherence=False)
    evaluation.answer(BASE, "mild", samples(3), [None])

    def fail(*_args: object) -> None:
        raise AssertionError("answered anew")

    monkeypatch.setattr(evaluation.vlm, "generate", fail)
    again = sweep_exits(evaluation, BASE, samples(3), LengthJudge(), [2, 5], coherence=False)
    assert again == first
    assert "perplexity and repetition were not measured" in again.record["gaps"]
    assert first.record["rows"][0]["perplexity"] is None


def test_grounding_is_the_drop_with_another_picture(evaluation: Evaluation) -> None:
    given, judge = samples(6, reference="tea"), LengthJudge()
    records = measure_grounding(evaluation, BASE, given, judge, [1])
    assert [record["exit"] for record in records] == [1, 5]
    for record in records:
        vlm = evaluation.vlm
        own = [ord(t[0]) % 2 for t in answers_at(vlm, given, record["exit"])]
        turned = [
            s.with_messages(user(s.text, *given[(i + 3) % 6].images)) for i, s in enumerate(given)
        ]
        other = [ord(t[0]) % 2 for t in answers_at(vlm, turned, record["exit"])]
        assert record["accuracy"]["rate"] == pytest.approx(np.mean(own))
        assert record["replaced"]["rate"] == pytest.approx(np.mean(other))
        assert record["drop"]["value"] == pytest.approx(np.mean(own) - np.mean(other))
        assert record["drop"]["low"] <= record["drop"]["value"] <= record["drop"]["high"]
        assert record["drop"]["n"] == 6


def test_grounding_of_one_item_needs_another_picture(evaluation: Evaluation) -> None:
    with pytest.raises(DataError, match="no unrelated picture"):
        measure_grounding(evaluation, BASE, samples(1), LengthJudge(), [1])


def test_what_cannot_be_swept(evaluation: Evaluation) -> None:
    text = Sample("mild/t", "mild", user("Hi"), "benign")
    other = Sample("o/1", "other", user("Hi", picture(0)), "benign")
    for given, words in (
        ([], r"0 items of 0 suites \(none\)"),
        ([*samples(1), text], r"1 of them without a picture \(mild/t\)"),
        ([*samples(1), other], r"of 2 suites \(mild, other\)"),
    ):
        with pytest.raises(DataError, match=words):
            sweep_exits(evaluation, BASE, given, LengthJudge(), [1])
    with pytest.raises(ConfigError, match="exit layer 9 is out of range"):
        sweep_exits(evaluation, BASE, samples(1), LengthJudge(), [9])
    scorer = LengthScorer()
    scorer.name = "wit"
    with pytest.raises(ConfigError, match=r"unknown score wit\. Allowed: toxicity, reward"):
        sweep_exits(evaluation, BASE, samples(1), LengthJudge(), [1], scorers=[scorer])
