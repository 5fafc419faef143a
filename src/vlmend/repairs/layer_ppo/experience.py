"""What an update learns from: an answer with its score, probabilities, values and advantages.

Shapes: B = rollouts, T = answer tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlmend.errors import ConfigError
from vlmend.training.objective import StepContext
from vlmend.training.ppo.advantages import Moments, masked_moments
from vlmend.training.ppo.rollouts import Rollout


@dataclass(frozen=True)
class RewardScale:
    """What standardises scores of a reward model.

    Attributes:
        mean: Of its scores.
        deviation: Their standard deviation, above 0.
    """

    mean: float = 0.0
    deviation: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0 < self.deviation < math.inf):
            raise ConfigError(
                f"scores cannot be standardised with mean {self.mean} and deviation "
                f"{self.deviation}. Allowed: a finite mean, a deviation above 0."
            )


@dataclass(slots=True, eq=False)
class Experience:
    """A rollout with all that an update needs; vectors are (T,).

    Attributes:
        rollout: The answer.
        score: Its standardised score; 0 where nothing is scored.
        old: Log-probabilities under the policy that sampled.
        reference: Log-probabilities under the model without the adapter.
        values: What the value head expected; None without a critic.
        advantages: What the policy learns from.
        returns: What the value head learns from; None without a critic.
        given: An answer that data give, to a prompt of its own; it is learnt in the same update.
    """

    rollout: Rollout
    score: float = 0.0
    old: Tensor | None = None
    reference: Tensor | None = None
    values: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None
    given: Experience | None = None

    @property
    def stream(self) -> str:
        """Name of the stream that its prompt is from."""
        return self.rollout.prompt.stream

    @property
    def length(self) -> int:
        """Answer tokens T."""
        return len(self.rollout.token_ids)

    @property
    def kl(self) -> float:
        """Nats of the whole answer between the policy that sampled and the reference."""
        assert self.old is not None, "it was read"
        assert self.reference is not None, "it was read"
        return float((self.old - self.reference).sum())


def pad(found: Sequence[Experience], read: Callable[[Experience], Tensor | None]) -> Tensor:
    """(B, T) one vector of every experience, from the left, then zeros."""
    rows = [read(experience) for experience in found]
    vectors = [row for row in rows if row is not None]
    assert len(vectors) == len(rows), "all experiences of a step are made in the same way"
    return pad_sequence(vectors, batch_first=True)


def mask_of(found: Sequence[Experience], device: torch.device) -> Tensor:
    """(B, T) true at answer tokens."""
    lengths_B = torch.tensor([experience.length for experience in found], device=device)
    return torch.arange(int(lengths_B.max()), device=device) < lengths_B[:, None]


def split_evenly(found: Sequence[Experience], parts: int) -> list[Sequence[Experience]]:
    """Consecutive parts whose sizes differ by one at most.

    Raises:
        ConfigError: There are fewer experiences than parts.
    """
    if len(found) < parts:
        raise ConfigError(
            f"a step has {len(found)} answers in this process, too few for {parts} minibatches. "
            "Use a larger batch size or fewer minibatches."
        )
    ends = [round(len(found) * part / parts) for part in range(parts + 1)]
    return [found[start:end] for start, end in pairwise(ends)]


def split_by_images(found: Sequence[Experience]) -> list[list[Experience]]:
    """Groups that can be one batch, by the number of images; the order stays."""
    groups: dict[int, list[Experience]] = {}
    for experience in found:
        groups.setdefault(len(experience.rollout.prompt.example.images), []).append(experience)
    return list(groups.values())


def column_sums(context: StepContext, numbers: Sequence[float]) -> list[float]:
    """Numbers summed over all processes."""
    return [math.fsum(column) for column in zip(*context.gather(numbers), strict=True)]


def all_moments(context: StepContext, values_BT: Tensor, mask_BT: Tensor) -> Moments:
    """Moments of values at answer tokens, of all processes."""
    return Moments.join(Moments(*row) for row in context.gather(masked_moments(values_BT, mask_BT)))


def describe_rollouts(
    found: Sequence[Experience], streams: Sequence[str], context: StepContext
) -> dict[str, float]:
    """What a step sampled: means over its answers in all processes.

    Returns:
        "reward_<stream>" by stream, "length" in tokens, "kl" in nats per answer, "ended" (share
        that was not cut) and "answers" (how many).
    """
    numbers = [
        math.fsum(values)
        for values in (
            *([e.score for e in found if e.stream == stream] for stream in streams),
            *([1.0 for e in found if e.stream == stream] for stream in streams),
            [float(e.length) for e in found],
            [e.kl for e in found],
            [float(e.rollout.ended) for e in found],
        )
    ]
    sums = column_sums(context, numbers)
    scores, counts = sums[: len(streams)], sums[len(streams) : 2 * len(streams)]
    length, kl, ended = sums[2 * len(streams) :]
    total = sum(counts)
    return {
        **{f"reward_{s}": v / n for s, v, n in zip(streams, scores, counts, strict=True)},
        "length": length / total,
        "kl": kl / total,
        "ended": ended / total,
        "answers": total,
    }
