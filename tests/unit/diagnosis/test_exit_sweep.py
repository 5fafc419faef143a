from __future__ import annotations

import json
import math
from collections.abc import Generator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import t
from statsmodels.stats.multitest import multipletests

from vlmend.diagnosis.coherent_exits import find_most_vulnerable, mark_coherent
from vlmend.diagnosis.exits import (
    ExitAnswers,
    compare_exits,
    exit_row,
    measure_grounding,
    summarise_groups,
    sweep_exits,
)
from vlmend.errors import ConfigError, DataError
from vlmend.evals.arms import BASE
from vlmend.evals.clustered import clustered_difference, clustered_rate
from vlmend.evals.coherence import Coherence, measure_coherence
from vlmend.evals.exit_groups import exit_group
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


def answers(exit_layer: int, letters: str, things: str = "", **more: Any) -> ExitAnswers:
    """Answers by the first letters of their verdicts; "u" failed to be generated.

    Of one thing each, or of things with a letter each.
    """
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
    groups = tuple(f"thing:{thing}" for thing in things or range(len(letters)))
    return ExitAnswers(exit_layer, responses, verdicts, groups, **more)


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
    exits = vlm.distinct_exits
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


def test_intervals_of_a_row_are_over_things() -> None:
    """An answer and its two copies about the same thing say no more than the answer."""
    letters, count = "crpuccircr", 10
    numbers = np.random.default_rng(0).random((4, count))

    def row(times: int) -> Any:
        text = letters * times
        known = tuple(Coherence(p + 1, r, 3) for p, r in numbers[:2].T) * times
        scores = {"toxicity": tuple(numbers[2]) * times, "reward": tuple(numbers[3]) * times}
        given = answers(3, text, "abcdefghij" * times, coherence=known, scores=scores)
        lengths = [replace(r, new_tokens=i % count) for i, r in enumerate(given.responses)]
        return exit_row(replace(given, responses=tuple(lengths)), "middle", seed=1)

    once, thrice = row(1), row(3)
    for name in ("asr", "refusal", "incoherent", "repetition", "length", "toxicity", "reward"):
        assert thrice[name].pop("n") == 3 * once[name].pop("n")
        assert thrice[name] == pytest.approx(once[name])
        assert once[name]["low"] < once[name]["high"]
    assert thrice["perplexity"]["low"] == pytest.approx(once["perplexity"]["low"])
    rate = clustered_rate([x == "c" for x in letters if x != "u"], list("abcefghij"))
    assert (once["asr"]["low"], once["asr"]["high"]) == (rate.low, rate.high)
    assert (row(1)["asr"]["n"], row(1)["repetition"]["n"]) == (9, 9)


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


def test_group_means_are_over_things() -> None:
    letters, things = "ccrrcrccrrcc", "aabbccddeeff"
    scores = {"reward": tuple(float(i) for i in (3, 3, 1, 1, 2, 4, 5, 5, 2, 2, 9, 9))}
    (one,) = summarise_groups([answers(0, letters, things, scores=scores)], 6)
    for name, values in (("aasr", [x == "c" for x in letters]), ("atr", scores["reward"])):
        by_thing = np.reshape(np.asarray(values, dtype=float), (6, 2)).mean(axis=1)
        half = t.ppf(0.975, 5) * np.std(by_thing, ddof=1) / math.sqrt(6)
        assert one[name]["n"] == 12
        assert one[name]["high"] == pytest.approx(min(by_thing.mean() + half, HIGHEST[name]))
        assert one[name]["low"] == pytest.approx(max(by_thing.mean() - half, LOWEST[name]))
    assert one["aasr"]["high"] == 1


HIGHEST, LOWEST = {"aasr": 1.0, "atr": math.inf}, {"aasr": 0.0, "atr": -math.inf}


@pytest.mark.parametrize(("letter", "rate"), [("r", 0.0), ("c", 1.0)])
def test_a_group_in_which_nothing_varies_has_a_width(letter: str, rate: float) -> None:
    (one,) = summarise_groups([answers(e, letter * 10, "abcde" * 2) for e in (0, 1)], 6)
    expected = clustered_rate([letter == "c"] * 5, list("abcde"))
    limits = (expected.low, expected.high)
    assert (one["aasr"]["value"], one["aasr"]["n"]) == (rate, 10)
    assert (one["aasr"]["low"], one["aasr"]["high"]) == pytest.approx(limits)


def test_tests_flip_things_on_the_items_scored_at_both() -> None:
    """Twelve things of five answers each, against all 4096 flips."""
    rng = np.random.default_rng(0)
    letters = {e: "".join("c" if v < p else "r" for v in rng.random(60)) for e, p in
               ((0, 0.9), (1, 0.5), (2, 0.25), (3, 0.2))}  # fmt: skip
    letters[1] = "u" + letters[1][1:]
    letters[4] = "u" * 60
    things = "abcdefghijkl" * 5
    given = [answers(e, text, things) for e, text in letters.items()]
    records, gaps = compare_exits(given, 3)
    assert [r["exit"] for r in records] == [0, 1, 2]
    assert [r["n"] for r in records] == [60, 59, 60]
    assert gaps == ["exit 4 is not tested: no item was judged there and at default"]
    signs = np.array(list(product((-1, 1), repeat=12)))
    expected = []
    for record in records:
        change, sizes = dict.fromkeys("abcdefghijkl", 0), dict.fromkeys("abcdefghijkl", 0)
        for d, x, thing in zip(letters[3], letters[record["exit"]], things, strict=True):
            if "u" not in (d, x):
                change[thing] += (x == "c") - (d == "c")
                sizes[thing] += 1
        sums, counts = np.array(list(change.values())), np.array(list(sizes.values()))
        expected.append((abs(signs @ sums) >= abs(sums.sum())).mean())
        mean = sums.sum() / counts.sum()
        error = math.sqrt(12 / 11 * float(((sums - mean * counts) ** 2).sum())) / counts.sum()
        half = float(t.ppf(0.975, 11)) * error
        assert record["difference"] == pytest.approx(mean)
        assert record["low"] == pytest.approx(mean - half)
        assert record["high"] == pytest.approx(min(1, mean + half))
        assert record["method"] == "sign flips over things"
    assert [r["p_value"] for r in records] == pytest.approx(expected)
    holm: Any = multipletests(expected, method="holm")[1]
    assert [r["p_holm"] for r in records] == pytest.approx(list(holm))
    one_thing, _ = compare_exits([answers(e, letters[e], "a" * 60) for e in (0, 3)], 3)
    assert (one_thing[0]["low"], one_thing[0]["p_holm"]) == (None, 1.0)


def test_the_seed_decides_where_flips_are_drawn() -> None:
    given = [answers(0, "ccrcr" * 6), answers(3, "rrcrc" * 6)]
    tests = [compare_exits(given, 3, seed=seed)[0][0] for seed in (1, 1, 2)]
    assert tests[0] == tests[1]
    assert tests[0]["p_value"] != tests[2]["p_value"]
    assert tests[0]["low"] == tests[2]["low"]


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
    """Two of each thing."""
    return [
        Sample(
            f"mild/{i}",
            "mild",
            user(f"What is on plate {i}?", picture(i)),
            "harmful",
            meta={"thing": f"Cake {i // 2}"},
            **more,
        )
        for i in range(count)
    ]


THINGS = [f"thing:cake {i // 2}" for i in range(6)]


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
    assert [test["exit"] for test in record["tests"]] == [0, 4]
    assert list(sweep.groups) == THINGS
    default = sweep.complied[5]
    for test in record["tests"]:
        pairs = [
            (b, a, g)
            for b, a, g in zip(default, sweep.complied[test["exit"]], THINGS, strict=True)
            if b is not None and a is not None
        ]
        expected = clustered_difference(*zip(*pairs, strict=True))
        assert (test["p_value"], test["low"]) == (expected.p_value, expected.low)
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
    records = measure_grounding(evaluation, BASE, given, judge, [1]).record
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
        expected = clustered_difference(other, own, THINGS)
        assert (record["drop"]["low"], record["drop"]["high"]) == (expected.low, expected.high)
        assert record["drop"]["n"] == 6
        for name, hits in (("accuracy", own), ("replaced", other)):
            assert record[name] == clustered_rate([h == 1 for h in hits], THINGS).record()


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
