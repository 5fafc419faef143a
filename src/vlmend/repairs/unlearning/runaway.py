"""Whether a training runs away: an ascent that takes along what was to stay.

What is watched is what the objective computes anyway, in every step:

    retain term KL       its mean, against `runaway_limit`
    retain term NLL      its rise above that of the first step, against `runaway_limit`
    rmu's retain term    its distance, against that which forget states had to go at first: states
                         to be kept have then moved as far as those to be misdirected
    none, but an ascent  how far forget answers are beyond the ceiling, which bounds it already:
                         from there an answer gives no gradient, but others may drag it on;
                         against `runaway_limit`

Other objectives without a retain term compute nothing that would tell. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vlmend.repairs.unlearning.settings import UnlearningSettings

Terms = Mapping[str, float]


class RunawayWatch:
    """Looks at every step in order, those on record too where a training goes on."""

    def __init__(self, settings: UnlearningSettings) -> None:
        """Nothing was seen yet.

        Args:
            settings: What trains; decides what is watched.
        """
        recipe = settings.recipe
        kind = recipe.held or (recipe.forget if recipe.forget == "ascent" else None)
        looks: dict[str | None, Callable[[Terms, Terms], str | None]] = {
            "kl": self._look_at_kl,
            "nll": self._look_at_nll,
            "preserve": self._look_at_states,
            "ascent": self._look_at_ascent,
        }
        self._look = looks.get(kind)
        self._limit = settings.runaway_limit
        self._ceiling = settings.ceiling
        self._first: Terms | None = None

    def reason(self, terms: Terms) -> str | None:
        """Why to stop, for people; None goes on.

        Args:
            terms: Those of the step, over its whole batch.
        """
        self._first = terms if self._first is None else self._first
        found = None if self._look is None else self._look(terms, self._first)
        return None if found is None else f"training ran away: {found}"

    def _look_at_kl(self, terms: Terms, _first: Terms) -> str | None:
        distance = terms["retain_kl"]
        if distance <= self._limit:
            return None
        return (
            f"the retain answers are {distance:.2f} nats per token from the reference, above the "
            f"limit of {self._limit:g}"
        )

    def _look_at_nll(self, terms: Terms, first: Terms) -> str | None:
        rise = terms["retain_nll"] - first["retain_nll"]
        if rise <= self._limit:
            return None
        return (
            f"the retain answers are {rise:.2f} nats per token less likely than at the first step, "
            f"above the limit of {self._limit:g}"
        )

    def _look_at_states(self, terms: Terms, first: Terms) -> str | None:
        moved, way = terms["retain_preserve"], first["misdirect"]
        if moved <= way:
            return None
        return (
            f"the states of retain answers are {moved:.3g} (mean square) from the reference, more "
            f"than those of forget answers were from where rmu drives them at the first step "
            f"({way:.3g})"
        )

    def _look_at_ascent(self, terms: Terms, _first: Terms) -> str | None:
        rise = terms["forget_nll"] - terms["reference_nll"]
        if rise <= self._ceiling + self._limit:
            return None
        return (
            f"the forget answers are {rise:.2f} nats per token less likely than in the reference, "
            f"beyond the ceiling of {self._ceiling:g} by more than the limit of {self._limit:g}"
        )
