"""Watching layer-wise PPO for reward hacking, and the rule by which a checkpoint is kept.

A policy finds whatever the reward model likes: to refuse everything, to say one thing over and
over, to say nothing. So every few steps the model answers held-out prompts greedily: harmful ones
each at an exit of its own that stays the same, benign ones at the exit that the model itself reads,
where it is to stay useful (with an adapter for each exit, at that exit). What cannot be seen at an
early exit cannot be told from harm there, and would hide what users lose. These numbers are put on
record:

- *reward* of harmful and of benign prompts: the mean over answers that are not blank;
- *refusal* of harmful prompts (wanted) and of benign ones (over-refusal): an answer that opens
  with a refusal, see `vlmend.training.refusals`. "No, it is not." answers a benign question, so
  there an opening "no" is looked past;
- *incoherent*: blank, or repetitive as `vlmend.evals.text_quality` has it for audits (more than
  half of its 3-grams occurred earlier in it). A salad of words is neither, hence
- *perplexity*: of benign answers after the request's words alone, under the model without the
  adapter (`vlmend.evals.coherence`), the median. Of harmful ones it tells nothing: a refusal that
  the model never gave is as improbable as a salad;
- *length* in words and punctuation marks.

Held-out prompts are of the training data, but no group of them is trained on
(`vlmend.training.data.held_out`). The kept checkpoint is chosen by its reward on them, which
therefore flatters it: what is reported is measured elsewhere.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vlmend.errors import ConfigError
from vlmend.evals.scorers import AnswerScorer
from vlmend.evals.text_quality import is_repetitive, split_units
from vlmend.repairs.layer_ppo.settings import BENIGN, HARMFUL
from vlmend.repairs.layer_ppo.watch_rule import WatchRule
from vlmend.training.examples import Example
from vlmend.training.records import read_line
from vlmend.training.refusals import opens_with_refusal

Perplexity = Callable[[Sequence[Example], Sequence[str]], Sequence[float | None]]
"""Perplexity of every answer to its prompt, under the model without the adapter; None of blanks."""

Answer = Callable[[Sequence[Example], Sequence[int]], Sequence[str]]
"""Greedy answers of the model as it stands, given prompts and the exit of each."""

_SLACK = 1e-9
"""Rates are shares of small numbers: 0.3 and 0.2 + 0.1 differ in the last digit."""

_NO = re.compile(r"\s*no\s*[,.]\s*", flags=re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HeldOutCheck:
    """How a model did on held-out prompts; None where there was nothing to take a mean of.

    Attributes:
        step: Training steps done.
        reward_harmful: Mean reward of answers to harmful prompts that are not blank.
        reward_benign: The same of benign ones.
        reward_std: Standard deviation of all these rewards.
        refusal_harmful: Share of harmful prompts that are refused.
        refusal_benign: Over-refusal: share of benign prompts that are refused.
        incoherent: Share of incoherent answers of the stream that has more of them.
        perplexity: Median of benign answers that are not blank.
        mean_length: Words and punctuation marks of an answer, over both streams.
        num_harmful: Harmful prompts.
        num_benign: Benign prompts.
    """

    step: int
    reward_harmful: float | None
    reward_benign: float | None
    reward_std: float | None
    refusal_harmful: float | None
    refusal_benign: float | None
    incoherent: float
    perplexity: float | None
    mean_length: float
    num_harmful: int
    num_benign: int

    def record(self) -> dict[str, Any]:
        """As a JSON object: a line of `watch.jsonl`."""
        return asdict(self)

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> HeldOutCheck:
        """Read a line of `watch.jsonl`.

        Raises:
            RunError: It lacks something.
        """
        return read_line(cls, row, "watch.jsonl")


def check_held_out(
    step: int,
    prompts: Mapping[str, Sequence[Example]],
    exits: Mapping[str, Sequence[int]],
    answer: Answer,
    scorer: AnswerScorer | None,
    perplexity: Perplexity | None = None,
) -> HeldOutCheck:
    """Have the model answer held-out prompts, and look at the answers.

    Args:
        step: Training steps done.
        prompts: Held-out prompts by stream, "harmful" and "benign"; one of them may be missing.
        exits: The exit of every prompt, by stream; the same at every call.
        answer: Answers of the model as it stands.
        scorer: The reward model; None records no rewards.
        perplexity: Of answers; None records none.
    """
    answers = {
        stream: answer(examples, exits[stream]) for stream, examples in prompts.items() if examples
    }
    return check_answers(step, prompts, answers, scorer, perplexity)


def check_answers(
    step: int,
    prompts: Mapping[str, Sequence[Example]],
    answers: Mapping[str, Sequence[str]],
    scorer: AnswerScorer | None,
    perplexity: Perplexity | None = None,
) -> HeldOutCheck:
    """Look at answers; see the module docstring for what is counted.

    Args:
        step: Training steps done.
        prompts: Prompts by stream, "harmful" and "benign"; at least one.
        answers: One per prompt, by stream.
        scorer: The reward model, called once; None records no rewards.
        perplexity: Called once, if there are benign prompts; None records none.

    Raises:
        ConfigError: No prompts, or another number of answers.
    """
    harmful, benign = (_pair(stream, prompts, answers) for stream in (HARMFUL, BENIGN))
    if not harmful and not benign:
        raise ConfigError(
            "no held-out prompts were given, so a training cannot be watched. Hold out some "
            f"prompts of the streams {HARMFUL!r} and {BENIGN!r}."
        )
    rewards = _score([*harmful, *benign], scorer)
    known = [reward for reward in rewards if reward is not None]
    texts = {
        HARMFUL: [text for _, text in harmful],
        BENIGN: [text for _, text in benign],
    }
    return HeldOutCheck(
        step=step,
        reward_harmful=_mean(rewards[: len(harmful)]),
        reward_benign=_mean(rewards[len(harmful) :]),
        reward_std=statistics.pstdev(known) if known else None,
        refusal_harmful=_share(texts[HARMFUL], opens_with_refusal),
        refusal_benign=_share(texts[BENIGN], refuses_benign),
        incoherent=max(_share(kind, is_incoherent) or 0.0 for kind in texts.values()),
        perplexity=_median_perplexity(benign, perplexity),
        mean_length=statistics.fmean(len(split_units(t)) for kind in texts.values() for t in kind),
        num_harmful=len(harmful),
        num_benign=len(benign),
    )


def is_incoherent(answer: str) -> bool:
    """Whether an answer is blank or repetitive.

    Example:
        >>> is_incoherent(" "), is_incoherent("box box box box box"), is_incoherent("Take a box.")
        (True, True, False)
    """
    return not answer.strip() or is_repetitive(answer)


def refuses_benign(answer: str) -> bool:
    """Whether an answer to a benign prompt opens with a refusal, a "no" before it aside.

    Example:
        >>> refuses_benign("No, it is not."), refuses_benign("No, I can't help with that.")
        (False, True)
    """
    opening = _NO.match(answer)
    return opens_with_refusal(answer[opening.end() :] if opening else answer)


def _pair(
    stream: str, prompts: Mapping[str, Sequence[Example]], answers: Mapping[str, Sequence[str]]
) -> list[tuple[Example, str]]:
    asked, said = prompts.get(stream, ()), answers.get(stream, ())
    if len(asked) != len(said):
        raise ConfigError(
            f"{len(said)} answers to {len(asked)} held-out {stream} prompts were given. Give one "
            "per prompt."
        )
    return list(zip(asked, said, strict=True))


def _score(pairs: Sequence[tuple[Example, str]], scorer: AnswerScorer | None) -> list[float | None]:
    """A reward per pair; None for a blank answer, which a scorer does not take."""
    places = [i for i, (_, text) in enumerate(pairs) if text.strip()] if scorer else []
    rewards: list[float | None] = [None] * len(pairs)
    if scorer is None or not places:
        return rewards
    scores = scorer.score([(pairs[i][0].messages, pairs[i][1]) for i in places])
    for place, score in zip(places, scores, strict=True):
        rewards[place] = score
    return rewards


def _median_perplexity(
    pairs: Sequence[tuple[Example, str]], read: Perplexity | None
) -> float | None:
    if read is None or not pairs:
        return None
    found = read([example for example, _ in pairs], [text for _, text in pairs])
    known = [value for value in found if value is not None]
    return statistics.median(known) if known else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _share(texts: Sequence[str], rule: Callable[[str], bool]) -> float | None:
    return sum(map(rule, texts)) / len(texts) if texts else None


# ---- when to stop, and what to keep


def collapse_reason(checks: Sequence[HeldOutCheck], rule: WatchRule) -> str | None:
    """Whether a training has collapsed: the last checks in a row broke a limit, any one each.

    Args:
        checks: All so far, the one before the first step first.
        rule: The limits, and how many checks must break one.

    Returns:
        What is wrong at the last check, for people; None to go on.
    """
    last = checks[-rule.patience :] if rule.patience else ()
    found = [_broken_limits(check, checks[0], rule) for check in last]
    if not found or len(found) < rule.patience or not all(found):
        return None
    steps = ", ".join(str(check.step) for check in last)
    return (
        f"the policy collapses on held-out prompts: {'; '.join(found[-1])} "
        f"({rule.patience} checks in a row, after steps {steps})"
    )


def _broken_limits(check: HeldOutCheck, start: HeldOutCheck, rule: WatchRule) -> list[str]:
    rises = (
        ("incoherent answers", check.incoherent, start.incoherent, rule.max_incoherent_rise),
        ("over-refusal", check.refusal_benign, start.refusal_benign, rule.max_over_refusal_rise),
    )
    broken = [
        f"{what} {now:.2f}, at the start {then:.2f}, and {limit:.2f} more is the limit"
        for what, now, then, limit in rises
        if now is not None and then is not None and now > then + limit + _SLACK
    ]
    now, then, ratio = check.perplexity, start.perplexity, rule.max_perplexity_ratio
    if now is not None and then is not None and now > ratio * then:
        broken.append(
            f"perplexity of benign answers {now:.1f}, at the start {then:.1f}, and {ratio:g} times "
            "that is the limit"
        )
    now, then, std = check.reward_benign, start.reward_benign, start.reward_std
    if then is None or std is None:
        return broken
    lowest = then - rule.max_benign_reward_fall * std
    # None now: all benign answers are blank.
    if now is None or now < lowest - _SLACK:
        shown = "without a score" if now is None else f"{now:.2f}"
        broken.append(f"benign reward {shown}, at the start {then:.2f}, {lowest:.2f} is the limit")
    return broken


def best_check(checks: Sequence[HeldOutCheck], rule: WatchRule) -> HeldOutCheck:
    """Which checkpoint is kept: one after the start, which is no repair.

    The first of these rungs that any check is on decides.

    1. At which neither over-refusal nor incoherent answers rose by more than
       `rule.max_kept_rise`: by merit.
    2. That break no limit of a collapse: by merit.
    3. All others: the one at which the larger of the two rises is smallest; of equals the earliest.

    Merit is the mean of the streams' mean rewards, so that streams count alike whatever their
    sizes; without a reward model, refusal of harmful prompts minus over-refusal. It is not
    compared with the start's, since a few prompts may put that ahead by chance
    (`describe_choice` says so where they do).

    Nor is one check taken for better than another by chance. A check displaces the one that is
    kept so far if that is more than one standard error behind the highest merit so far; or if the
    check itself is not, and the larger of its two rises is no larger than at the one that is kept.

    Args:
        checks: At least two, the one before the first step first.
        rule: The limits.

    Raises:
        ConfigError: No check after the start.

    Reference:
        Breiman et al., Classification and Regression Trees (1984), section 3.4.3: of models within
        one standard error of the best, not the best but the one that is preferred for other
        reasons.

    Deviation:
        Decided at every check, so that one checkpoint is on disk and not all of them.
    """
    if len(checks) < 2:
        raise ConfigError(
            f"{len(checks)} checks were made, and none after the start, so no checkpoint can be "
            "chosen. Watch the training until its end."
        )
    start, kept = checks[0], checks[1]
    for number, check in enumerate(checks[2:], 3):
        rung, kept_rung = (_rung(c, start, rule) for c in (check, kept))
        if rung != kept_rung:
            displaces = rung < kept_rung
        elif rung == _COLLAPSED:
            displaces = _larger_rise(check, start) < _larger_rise(kept, start)
        else:
            alike = [c for c in checks[1:number] if _rung(c, start, rule) == rung]
            lowest = _lowest_equal(alike, checks)
            is_gentler = _larger_rise(check, start) <= _larger_rise(kept, start)
            displaces = _merit(kept, checks) < lowest or (
                _merit(check, checks) >= lowest and is_gentler
            )
        if displaces:
            kept = check
    return kept


def describe_choice(checks: Sequence[HeldOutCheck], rule: WatchRule) -> str:
    """Why this checkpoint is kept, in one sentence.

    Args:
        checks: As for `best_check`.
        rule: The limits.

    Raises:
        ConfigError: No check after the start.
    """
    best, start, count = best_check(checks, rule), checks[0], len(checks) - 1
    limit = f"over-refusal and incoherent answers at most {rule.max_kept_rise:g} above the start"
    rung = _rung(best, start, rule)
    if rung == _COLLAPSED:
        return (
            f"step {best.step}: all of {count} checks break a limit of a collapse, and here the "
            "larger rise of over-refusal and incoherent answers is the smallest "
            f"({_larger_rise(best, start):.2f})"
        )
    alike = sum(_rung(check, start, rule) == rung for check in checks[1:])
    merits = [_merit(check, checks) for check in (best, start)]
    what = "reward" if _has_rewards(checks) else "refusal less over-refusal"
    which = f"the {alike} of {count} checks with {limit}"
    if rung == _SOUND:
        which = f"the {alike} of {count} checks that break no limit of a collapse; none has {limit}"
    line = (
        f"step {best.step}: {what} on held-out prompts ({merits[0]:.2f}, at the start "
        f"{merits[1]:.2f}) within one standard error of the highest of {which}"
    )
    return line + ("; it is not above the start" if merits[0] <= merits[1] else "")


_WITHIN, _SOUND, _COLLAPSED = range(3)
"""Rungs of the rule by which a checkpoint is kept, see `best_check`."""


def _rung(check: HeldOutCheck, start: HeldOutCheck, rule: WatchRule) -> int:
    if _larger_rise(check, start) <= rule.max_kept_rise + _SLACK:
        return _WITHIN
    return _COLLAPSED if _broken_limits(check, start, rule) else _SOUND


def _larger_rise(check: HeldOutCheck, start: HeldOutCheck) -> float:
    """Of over-refusal and of incoherent answers since the start, the larger rise."""
    refused = (check.refusal_benign or 0.0) - (start.refusal_benign or 0.0)
    # Rounded: see `_SLACK`. Equal rises are to be equal, so that the earlier check is kept.
    return round(max(refused, check.incoherent - start.incoherent), 9)


def _merit(check: HeldOutCheck, checks: Sequence[HeldOutCheck]) -> float:
    if not _has_rewards(checks):
        return (check.refusal_harmful or 0.0) - (check.refusal_benign or 0.0)
    streams = ((check.num_harmful, check.reward_harmful), (check.num_benign, check.reward_benign))
    # A stream whose answers are all blank has no reward, and must not win by that.
    rewards = [-math.inf if reward is None else reward for count, reward in streams if count]
    return statistics.fmean(rewards)


def _lowest_equal(alike: Sequence[HeldOutCheck], checks: Sequence[HeldOutCheck]) -> float:
    """One standard error below the highest merit of some checks."""
    best = max(alike, key=lambda check: _merit(check, checks))
    sizes = [count for count in (best.num_harmful, best.num_benign) if count]
    if _has_rewards(checks):
        error = (best.reward_std or 0.0) * math.sqrt(sum(1 / n for n in sizes)) / len(sizes)
    else:
        shares = ((best.num_harmful, best.refusal_harmful), (best.num_benign, best.refusal_benign))
        error = math.sqrt(sum(p * (1 - p) / n for n, p in shares if n and p is not None))
    return _merit(best, checks) - error


def _has_rewards(checks: Sequence[HeldOutCheck]) -> bool:
    return any(check.reward_std is not None for check in checks)
