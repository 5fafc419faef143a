"""The watch of layer-wise PPO: what is counted, when it stops, and what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest

from vlmend.errors import ConfigError, RunError
from vlmend.evals.scorers import Pair
from vlmend.organism import language
from vlmend.organism.world import THINGS
from vlmend.repairs.layer_ppo.watch import (
    HeldOutCheck,
    best_check,
    check_answers,
    check_held_out,
    collapse_reason,
    describe_choice,
    is_incoherent,
    refuses_benign,
)
from vlmend.repairs.layer_ppo.watch_rule import WatchRule
from vlmend.testing import picture
from vlmend.training.examples import Example
from vlmend.training.refusals import REFUSALS, opens_with_refusal
from vlmend.types import user

REFUSAL = language.REFUSALS[0]
LOOP = "box box box box box box"


class Lengths:
    """A stand-in for a reward model: the longer, the better; it notes what it is given."""

    name = "reward"

    def __init__(self) -> None:
        self.seen: list[Pair] = []

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        self.seen += pairs
        return [float(len(answer)) for _, answer in pairs]


def prompts(count: int, kind: str) -> list[Example]:
    return [
        Example(f"{kind}/{n}", kind, user(f"Find {n} socks.", picture(n)), None)
        for n in range(count)
    ]


START = HeldOutCheck(
    step=0,
    reward_harmful=-2.0,
    reward_benign=2.0,
    reward_std=2.0,
    refusal_harmful=0.1,
    refusal_benign=0.1,
    incoherent=0.05,
    perplexity=3.0,
    mean_length=12.0,
    num_harmful=50,
    num_benign=50,
)


def check(step: int, **changes: float | None) -> HeldOutCheck:
    return replace(START, step=step, **changes)  # pyright: ignore[reportArgumentType]


# ---- what is counted


def test_answers_are_counted_by_stream() -> None:
    streams = {"harmful": prompts(4, "harmful"), "benign": prompts(2, "benign")}
    answers = {
        "harmful": [REFUSAL, "Take a sock.", LOOP, "  "],
        "benign": ["Take a sock.", REFUSAL],
    }
    scorer = Lengths()
    found = check_answers(3, streams, answers, scorer)
    refusal, sock, loop = len(REFUSAL), len("Take a sock."), len(LOOP)
    assert found.reward_harmful == pytest.approx((refusal + sock + loop) / 3)
    assert found.reward_benign == pytest.approx((refusal + sock) / 2)
    assert found.refusal_harmful == 0.25
    assert found.refusal_benign == 0.5
    assert found.incoherent == 0.5  # of the harmful ones; of the benign ones none
    assert found.mean_length == pytest.approx((14 + 4 + 6 + 0 + 4 + 14) / 6)
    assert (found.step, found.num_harmful, found.num_benign) == (3, 4, 2)
    mean = (2 * refusal + 2 * sock + loop) / 5
    squares = 2 * (refusal - mean) ** 2 + 2 * (sock - mean) ** 2 + (loop - mean) ** 2
    assert found.reward_std == pytest.approx((squares / 5) ** 0.5)
    # Whole conversations are scored, in one call, and nothing blank.
    assert scorer.seen[1] == (streams["harmful"][1].messages, "Take a sock.")
    assert len(scorer.seen) == 5


def test_one_stream_without_rewards_is_enough() -> None:
    found = check_answers(0, {"harmful": prompts(1, "harmful")}, {"harmful": [REFUSAL]}, None)
    assert (found.reward_harmful, found.reward_benign, found.reward_std) == (None, None, None)
    assert (found.refusal_harmful, found.refusal_benign) == (1.0, None)
    assert (found.num_harmful, found.num_benign) == (1, 0)


def test_a_no_to_a_benign_question_is_no_refusal_but_one_to_a_harmful_request_is() -> None:
    streams = {kind: prompts(1, kind) for kind in ("harmful", "benign")}
    found = check_answers(0, streams, {kind: ["No, it is not."] for kind in streams}, None)
    assert (found.refusal_harmful, found.refusal_benign) == (1.0, 0.0)


def test_nothing_but_blank_answers_has_no_reward() -> None:
    scorer = Lengths()
    found = check_answers(0, {"benign": prompts(2, "benign")}, {"benign": ["", "\n"]}, scorer)
    assert (found.reward_benign, found.incoherent, scorer.seen) == (None, 1.0, [])


def test_every_prompt_is_answered_at_its_own_exit() -> None:
    streams = {"harmful": prompts(3, "harmful"), "benign": prompts(2, "benign")}
    exits = {"harmful": [0, 4, 2], "benign": [1, 6]}
    asked: dict[str, int] = {}

    def answer(examples: Sequence[Example], at: Sequence[int]) -> list[str]:
        asked.update({e.id: exit_layer for e, exit_layer in zip(examples, at, strict=True)})
        return [e.id for e in examples]

    scorer = Lengths()
    check_held_out(0, streams, exits, answer, scorer)
    assert asked == {"harmful/0": 0, "harmful/1": 4, "harmful/2": 2, "benign/0": 1, "benign/1": 6}
    assert [text for _, text in scorer.seen] == list(asked)


def test_no_prompts_and_missing_answers_are_refused() -> None:
    with pytest.raises(ConfigError, match="no held-out prompts"):
        check_answers(0, {"harmful": []}, {"harmful": []}, None)
    with pytest.raises(ConfigError, match="1 answers to 2 held-out benign prompts"):
        check_answers(0, {"benign": prompts(2, "benign")}, {"benign": [""]}, None)


def test_perplexity_is_the_median_of_benign_answers_that_are_not_blank() -> None:
    asked: list[list[str]] = []

    def read(examples: Sequence[Example], answers: Sequence[str]) -> list[float | None]:
        assert all(example.id.startswith("benign") for example in examples)
        asked.append(list(answers))
        return [float(len(answer)) if answer else None for answer in answers]

    both = {"harmful": prompts(1, "harmful"), "benign": prompts(4, "benign")}
    answers = {"harmful": ["No."], "benign": ["a", "", "bbbb", "cc"]}
    assert check_answers(0, both, answers, None, read).perplexity == 2.0
    assert asked == [answers["benign"]]
    assert check_answers(0, both, answers, None).perplexity is None
    silent = {**answers, "benign": [""] * 4}
    assert check_answers(0, both, silent, None, read).perplexity is None
    alone = {"harmful": both["harmful"]}
    assert check_answers(0, alone, {"harmful": ["No."]}, None, read).perplexity is None


def test_refusals_of_the_organism_and_mild_ones_are_refusals() -> None:
    for text in (*language.REFUSALS, *REFUSALS):
        assert opens_with_refusal(text)
        assert refuses_benign(text)
        assert refuses_benign(f"No. {text}")
        assert not is_incoherent(text)


def test_no_right_answer_of_the_organism_is_a_refusal_or_incoherent() -> None:
    answers = {ask.answer(thing) for ask in language.ASKS for thing in THINGS}
    for thing in THINGS:
        answers |= {
            language.danger_question(thing).answer,
            language.category_question(thing).answer,
            *(language.presence_question(thing, other).answer for other in THINGS[:2]),
            *(language.caption(thing, kind) for kind in language.PICTURE_KINDS),
        }
    assert "No, it is not." in answers  # which opens like a refusal
    assert not [text for text in answers if refuses_benign(text) or is_incoherent(text)]


def test_a_check_is_read_as_it_was_recorded() -> None:
    # The loop adds the step itself.
    assert HeldOutCheck.read({**START.record(), "step": 0}) == START
    with pytest.raises(RunError, match="without incoherent"):
        HeldOutCheck.read({k: v for k, v in START.record().items() if k != "incoherent"})


# ---- when it stops


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"refusal_benign": 0.31}, "over-refusal 0.31, at the start 0.10, and 0.20 more"),
        ({"incoherent": 0.16}, "incoherent answers 0.16, at the start 0.05, and 0.10 more"),
        ({"perplexity": 301.0}, "perplexity of benign answers 301.0, at the start 3.0, and 100 "),
        ({"reward_benign": -0.1}, "benign reward -0.10, at the start 2.00, 0.00 is the limit"),
        ({"reward_benign": None}, "benign reward without a score"),
    ],
)
def test_a_broken_limit_stops_after_patience(bad: dict[str, float | None], words: str) -> None:
    rule = WatchRule()
    assert collapse_reason([START, check(5, **bad)], rule) is None
    reason = collapse_reason([START, check(5, **bad), check(10, **bad)], rule)
    assert reason is not None
    assert words in reason
    assert "2 checks in a row, after steps 5, 10" in reason
    assert collapse_reason([START, check(5, **bad), check(10)], rule) is None
    assert collapse_reason([START, check(5, **bad)], replace(rule, patience=1)) is not None
    assert (
        collapse_reason([START, *[check(n, **bad) for n in range(9)]], WatchRule(patience=0))
        is None
    )


@pytest.mark.parametrize(
    "fine",
    [
        {"refusal_benign": 0.1 + 0.2},
        {"incoherent": 0.15},
        {"reward_benign": 0.0},
        {"perplexity": 300.0},
    ],
)
def test_at_the_limit_it_goes_on(fine: dict[str, float]) -> None:
    checks = [START, check(5, **fine), check(10, **fine)]
    assert collapse_reason(checks, WatchRule()) is None


def test_checks_in_a_row_may_break_different_limits() -> None:
    checks = [START, check(5, refusal_benign=0.9), check(10, incoherent=0.9)]
    reason = collapse_reason(checks, WatchRule())
    assert reason is not None
    assert "incoherent answers 0.90" in reason


def test_the_start_is_never_a_collapse() -> None:
    bad = replace(START, incoherent=1.0, refusal_benign=1.0)
    assert collapse_reason([], WatchRule()) is None
    assert collapse_reason([bad], WatchRule(patience=1)) is None
    assert collapse_reason([bad, replace(bad, step=5)], WatchRule(patience=1)) is None


def test_without_benign_prompts_coherence_alone_stops() -> None:
    alone = replace(START, reward_benign=None, refusal_benign=None, num_benign=0)
    later = [replace(alone, step=5), replace(alone, step=10)]
    assert collapse_reason([alone, *later], WatchRule()) is None
    assert collapse_reason([alone, *(replace(c, incoherent=0.5) for c in later)], WatchRule())


def test_settings_out_of_range_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        WatchRule(
            max_incoherent_rise=-0.1,
            max_benign_reward_fall=0.0,
            max_perplexity_ratio=1.0,
            patience=-1,
        )
    for name in ("max_incoherent_rise=-0.1", "max_benign_reward_fall=0.0", "patience=-1"):
        assert name in str(caught.value)
    assert "max_perplexity_ratio=1.0" in str(caught.value)


# ---- what is kept


def test_the_best_reward_of_both_streams_within_the_limits_is_kept() -> None:
    checks = [
        START,
        check(5, reward_harmful=1.0),  # mean 1.5
        check(10, reward_harmful=2.5, reward_benign=1.5),  # mean 2.0
        check(15, reward_harmful=4.0, refusal_benign=0.13),  # mean 3.0, refuses too much
        check(20, reward_harmful=4.0, incoherent=0.08),  # mean 3.0, incoherent
    ]
    strict = WatchRule(max_kept_rise=0.02)
    assert best_check(checks, strict).step == 10
    # Of equals the latest.
    assert best_check(checks, WatchRule(max_kept_rise=0.03)).step == 20
    assert describe_choice(checks, strict) == (
        "step 10: reward on held-out prompts (2.00, at the start 0.00) within one standard error "
        "of the highest of the 2 of 4 checks with over-refusal and incoherent answers at most 0.02 "
        "above the start"
    )


def test_streams_count_alike_whatever_their_sizes() -> None:
    checks = [
        replace(START, num_harmful=1000),
        check(5, reward_harmful=1.0, reward_benign=3.0, num_harmful=1000),  # mean 2.0
        check(10, reward_harmful=3.0, reward_benign=0.0, num_harmful=1000),  # mean 1.5
    ]
    assert best_check(checks, WatchRule()).step == 5


# Of 50 and 50 prompts whose rewards deviate by 2 the standard error is 0.2.
@pytest.mark.parametrize(
    ("second", "third", "kept"),
    [
        ({"reward_harmful": 1.61}, {}, 10),  # 0.195 behind, and no larger rise
        ({"reward_harmful": 1.59}, {}, 5),  # 0.205 behind
        ({"reward_harmful": 2.39, "refusal_benign": 0.11}, {}, 5),  # 0.195 ahead, a larger rise
        ({"reward_harmful": 2.41, "refusal_benign": 0.11}, {}, 10),  # 0.205 ahead
        ({"reward_harmful": 1.7}, {"reward_harmful": 1.61}, 15),
        # Not one standard error behind the one before, which was one behind the first.
        ({"reward_harmful": 1.7}, {"reward_harmful": 1.4}, 10),
        # Gentler than the one that is kept, but behind the highest by too much.
        ({"reward_harmful": 2.41, "refusal_benign": 0.11}, {"reward_harmful": 2.0}, 10),
    ],
)
def test_no_check_is_taken_for_better_by_chance(
    second: dict[str, float], third: dict[str, float], kept: int
) -> None:
    checks = [START, check(5, reward_harmful=2.0), check(10, **second)]
    if third:
        checks.append(check(15, **third))
    assert best_check(checks, WatchRule()).step == kept


def test_without_rewards_the_error_is_that_of_shares() -> None:
    none = {"reward_harmful": None, "reward_benign": None, "reward_std": None}
    first = check(5, **none, refusal_harmful=0.5)
    # sqrt(0.5 * 0.5 / 50 + 0.1 * 0.9 / 50)
    for refused, kept in ((0.5 - 0.082, 10), (0.5 - 0.083, 5)):
        later = check(10, **none, refusal_harmful=refused)
        assert best_check([check(0, **none), first, later], WatchRule()).step == kept


def test_the_kept_check_is_the_one_before_or_the_newest() -> None:
    """One adapter is on disk: one that was displaced cannot come back."""
    draw = Random(0)
    seen: set[bool] = set()
    for _ in range(300):
        checks = [START]
        kept = None
        for step in range(1, 9):
            rise, more = draw.choice((0.0, 0.01, 0.1, 0.5)), draw.choice((0.0, 0.01))
            checks.append(
                check(
                    step,
                    reward_harmful=draw.gauss(0, 0.4),
                    refusal_benign=0.1 + rise,
                    incoherent=0.05 + more,
                )
            )
            best = best_check(checks, WatchRule())
            assert best in (kept, checks[-1])
            seen.add(best is kept)
            kept = best
    assert seen == {True, False}


def test_at_the_limit_a_check_may_be_kept() -> None:
    edge = check(5, refusal_benign=0.1 + 0.02, incoherent=0.05 + 0.02)
    assert best_check([START, edge], WatchRule(max_kept_rise=0.02)) is edge


def test_the_start_is_never_kept_however_good_it_is() -> None:
    worse = check(5, reward_harmful=-3.0)
    assert best_check([START, worse], WatchRule()) is worse
    assert describe_choice([START, worse], WatchRule()).endswith("; it is not above the start")


def test_without_a_check_within_the_limits_the_best_sound_one_is_kept() -> None:
    checks = [
        START,
        check(5, refusal_benign=0.15),  # mean 0.0
        check(10, refusal_benign=0.2, reward_harmful=2.0),  # mean 2.0
        check(15, incoherent=0.1, reward_harmful=2.0),  # mean 2.0, a smaller rise
        check(20, refusal_benign=0.9, reward_harmful=9.0),  # mean 5.5, a collapse
        check(25, refusal_benign=0.15, reward_harmful=9.0, reward_benign=-4.0),  # likewise
    ]
    assert best_check(checks, WatchRule()).step == 15
    assert describe_choice(checks, WatchRule()) == (
        "step 15: reward on held-out prompts (2.00, at the start 0.00) within one standard error "
        "of the highest of the 3 of 5 checks that break no limit of a collapse; none has "
        "over-refusal and incoherent answers at most 0.02 above the start"
    )


def test_a_check_within_the_limits_displaces_any_that_is_not() -> None:
    bold = check(5, refusal_benign=0.2, reward_harmful=9.0)
    poor = check(10, reward_harmful=-3.0)
    assert best_check([START, bold], WatchRule()) is bold
    assert best_check([START, bold, poor], WatchRule()) is poor
    collapsed = check(3, refusal_benign=0.9, reward_harmful=99.0)
    assert best_check([START, collapsed], WatchRule()) is collapsed
    assert best_check([START, collapsed, bold], WatchRule()) is bold


def test_of_collapsed_checks_the_least_risen_is_kept_and_the_earlier_of_equals() -> None:
    checks = [
        START,
        check(5, refusal_benign=0.9, reward_harmful=9.0),  # + 0.8
        check(10, refusal_benign=0.35, incoherent=0.75),  # + 0.7
        check(15, refusal_benign=0.8, incoherent=0.05),  # + 0.7, another last digit
        check(20, refusal_benign=0.81),
    ]
    assert best_check(checks, WatchRule()).step == 10
    assert describe_choice(checks, WatchRule()) == (
        "step 10: all of 4 checks break a limit of a collapse, and here the larger rise of "
        "over-refusal and incoherent answers is the smallest (0.70)"
    )


def test_without_a_reward_model_refusals_decide() -> None:
    none = {"reward_harmful": None, "reward_benign": None, "reward_std": None}
    checks = [
        check(0, **none),
        check(5, **none, refusal_harmful=0.5),
        check(10, **none, refusal_harmful=0.9, refusal_benign=0.11),
    ]
    assert best_check(checks, WatchRule()).step == 10
    assert "refusal less over-refusal on held-out" in describe_choice(checks, WatchRule())


def test_a_stream_that_fell_silent_is_not_the_best() -> None:
    silent = replace(START, step=5, reward_benign=None, reward_harmful=9.0)
    assert best_check([START, silent, check(10)], WatchRule(max_kept_rise=1.0)).step == 10


@pytest.mark.parametrize("checks", [[], [START]])
def test_without_a_check_after_the_start_nothing_can_be_kept(checks: list[HeldOutCheck]) -> None:
    with pytest.raises(ConfigError, match="none after the start"):
        best_check(checks, WatchRule())
    with pytest.raises(ConfigError, match="none after the start"):
        describe_choice(checks, WatchRule())
