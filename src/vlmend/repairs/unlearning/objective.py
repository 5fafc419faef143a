"""One training step of unlearning: which passes run, and what their losses add up to.

    L = w_bad * L_forget + w_help * L_match + w_norm * L_retain

`OBJECTIVES` of the settings says which loss each term is; the losses themselves are pure
functions in `vlmend.training.losses`. The reference of KL, NPO and RMU is the model with its
adapter taken off, so that no second model is in memory.

Textual, multimodal and mixed unlearning are the same code on other data: examples with equally
many images run as one batch, and a batch without images never reaches the vision tower.

Reference:
    Chakraborty et al., "Can Textual Unlearning Solve Cross-Modality Safety Alignment?"
    (arXiv 2406.02575), section 3.

Deviation:
    1. The ascent is bounded, see `vlmend.training.losses.ascent`: each answer at a ceiling above
       its own likelihood in the reference, so that one setting fits models that find their
       answers more or less likely. Training stops when it runs away, see
       `vlmend.repairs.unlearning.runaway`, or when nothing is left to unlearn.
    2. The KL weighs 5, not 1 as in the closest public ancestor.
    3. The adapter's reference is the base model, as published; for an adapter that trains on a
       repaired model it is that model.

Shapes: B = examples, T = answer columns, V = vocabulary, N = columns, D = width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlmend.errors import DataError
from vlmend.hooks.capture import capturing
from vlmend.models.spec import check_layers
from vlmend.models.vlm import Vlm
from vlmend.repairs.unlearning.runaway import RunawayWatch
from vlmend.repairs.unlearning.settings import UnlearningSettings
from vlmend.training.adapters import Adapter, without_adapter
from vlmend.training.batches import TrainingBatch, answer_logits, encode_by_images
from vlmend.training.examples import Example
from vlmend.training.losses.answer_nll import answer_log_prob, answer_nll
from vlmend.training.losses.ascent import ascent_loss
from vlmend.training.losses.grad_diff import retain_loss
from vlmend.training.losses.kl import kl_loss
from vlmend.training.losses.match import match_loss
from vlmend.training.losses.npo import npo_loss
from vlmend.training.losses.rmu import control_vector, misdirect_loss, preserve_loss
from vlmend.training.losses.simnpo import simnpo_loss
from vlmend.training.objective import Objective, StepLoss


@dataclass
class _Terms:
    """Losses and numbers to watch of one step, and what was run for them."""

    losses: list[Tensor] = field(default_factory=list[Tensor])
    watched: dict[str, float] = field(default_factory=dict[str, float])
    tokens: int = 0
    images: int = 0

    def add(self, weight: float, loss: Tensor) -> None:
        self.losses.append(weight * loss)

    def watch(self, **values: Tensor) -> None:
        self.watched |= {name: float(value.detach()) for name, value in values.items()}

    def count(self, batch: TrainingBatch) -> None:
        self.tokens += batch.num_tokens
        self.images += batch.total_images


class _Likelihoods(NamedTuple):
    """Of answers: (B,) log-probability, and (B,) nats per token."""

    log_prob: Tensor
    nll: Tensor

    @classmethod
    def read(cls, logits_BTV: Tensor, labels_BT: Tensor) -> _Likelihoods:
        return cls(answer_log_prob(logits_BTV, labels_BT), answer_nll(logits_BTV, labels_BT))

    @classmethod
    def join(cls, parts: Sequence[_Likelihoods]) -> _Likelihoods:
        return cls(*(torch.cat(values) for values in zip(*parts, strict=True)))


class UnlearningObjective(Objective):
    """All terms of one objective; see the module docstring.

    Attributes:
        model: The transformers model, with the adapter on.
        settings: Which terms, with which weights.
        adapter: What trains; off, it is the reference.
        ran_away: Whether training was stopped because it left behind what was to stay.
    """

    def __init__(
        self, vlm: Vlm, settings: UnlearningSettings, adapter: Adapter, *, seed: int = 0
    ) -> None:
        """Set up; nothing runs yet.

        Args:
            vlm: The model, with the adapter on.
            settings: Which objective.
            adapter: What trains; off, it is the reference.
            seed: Of the direction that rmu drives states to.

        Raises:
            ConfigError: rmu's layer is out of range.
        """
        super().__init__()
        recipe = settings.recipe
        self.model = vlm.model
        self.settings = settings
        self.streams = recipe.streams
        self._recipe = recipe
        self._vlm = vlm
        self.adapter = adapter
        self.ran_away = False
        self._runaway = RunawayWatch(settings)
        self._reached_in_a_row = 0
        if recipe.forget == "misdirect":
            self._layer = settings.steered_layer(vlm.num_decoder_layers, vlm.image_only_layers)
            check_layers([self._layer], vlm.num_decoder_layers)
            self._control_D = control_vector(vlm.hidden_size, settings.rmu_coefficient, seed)

    def forward(self, batch: Mapping[str, Sequence[Example]]) -> StepLoss:
        """Loss of a batch; see `Objective.forward`.

        Raises:
            DataError: A forget example without a target, where the match term needs one.
        """
        terms = _Terms()
        if self._recipe.w_bad:
            self._add_forget(batch["forget"], terms)
        if self._recipe.w_help:
            nll_B = self._nll(batch["forget"], terms, answer=_target)
            terms.add(self._recipe.w_help, match_loss(nll_B))
            terms.watch(match_nll=nll_B.mean())
        if self._recipe.w_norm:
            self._add_retain(batch["retain"], terms)
        loss = torch.stack(terms.losses).sum()
        return StepLoss(loss, terms.watched, terms.tokens, terms.images)

    def stop_reason(self, terms: Mapping[str, float]) -> str | None:
        """Whether training ran away, or has nothing left to do."""
        reason = self._runaway.reason(terms)
        if reason is not None:
            self.ran_away = True
            return reason
        # Shares of micro-batches add up to 1 but for rounding.
        done = terms.get("clamped_share", 0.0) > 1 - 1e-6 and (
            terms.get("match_nll", 0.0) <= self.settings.stop_match_nll
        )
        self._reached_in_a_row = self._reached_in_a_row + 1 if done else 0
        patience = self.settings.stop_patience
        if patience and self._reached_in_a_row >= patience:
            return (
                f"nothing was left to unlearn: for {patience} steps in a row every forget answer "
                f"was {self.settings.ceiling:g} nats per token less likely than in the reference"
            )
        return None

    # ---- terms

    def _add_forget(self, examples: Sequence[Example], terms: _Terms) -> None:
        kind, weight = self._recipe.forget, self._recipe.w_bad
        if kind == "misdirect":
            loss = self._states_loss(
                examples,
                terms,
                lambda states, _own, chosen: misdirect_loss(states, self._control_D, chosen),
            )
            terms.watch(misdirect=loss)
        elif kind == "simnpo":
            nll_B = self._nll(examples, terms, answer=Example.require_answer)
            loss = simnpo_loss(nll_B, self.settings.npo_beta, self.settings.gamma)
            terms.watch(forget_nll=nll_B.mean(), simnpo=loss)
        else:
            own, reference = self._beside_reference(examples, terms)
            terms.watch(forget_nll=own.nll.mean(), reference_nll=reference.nll.mean())
            if kind == "npo":
                loss = npo_loss(own.log_prob, reference.log_prob, self.settings.npo_beta)
                terms.watch(npo=loss)
            else:
                ceiling_B = reference.nll + self.settings.ceiling
                loss, reached_share = ascent_loss(own.nll, ceiling_B)
                terms.watch(clamped_share=reached_share)
        terms.add(weight, loss)

    def _add_retain(self, examples: Sequence[Example], terms: _Terms) -> None:
        kind = self._recipe.retain
        if kind == "preserve":
            loss = self._states_loss(examples, terms, preserve_loss, reference=True)
        elif kind == "kl":
            loss = self._kl(examples, terms)
        else:
            loss = retain_loss(self._nll(examples, terms, answer=Example.require_answer))
        terms.add(self._recipe.w_norm, loss)
        terms.watch(**{f"retain_{kind}": loss})

    # ---- passes

    def _encoded(
        self, examples: Sequence[Example], answer: Callable[[Example], str]
    ) -> list[TrainingBatch]:
        """One batch per number of images."""
        limit = self.settings.max_answer_tokens
        return encode_by_images(self._vlm, examples, answer, max_answer_tokens=limit)

    def _nll(
        self, examples: Sequence[Example], terms: _Terms, *, answer: Callable[[Example], str]
    ) -> Tensor:
        """(B,) of all examples, those with fewest images first."""
        found: list[Tensor] = []
        for batch in self._encoded(examples, answer):
            terms.count(batch)
            found.append(answer_nll(*answer_logits(self.model, batch)))
        return torch.cat(found)

    def _beside_reference(
        self, examples: Sequence[Example], terms: _Terms
    ) -> tuple[_Likelihoods, _Likelihoods]:
        """How likely the forget answers are, and how likely they are in the reference."""
        own: list[_Likelihoods] = []
        reference: list[_Likelihoods] = []
        for batch in self._encoded(examples, Example.require_answer):
            reference.append(_Likelihoods.read(*self._reference(batch, terms)))
            terms.count(batch)
            own.append(_Likelihoods.read(*answer_logits(self.model, batch)))
        return _Likelihoods.join(own), _Likelihoods.join(reference)

    def _kl(self, examples: Sequence[Example], terms: _Terms) -> Tensor:
        total: Any = 0.0
        for batch in self._encoded(examples, Example.require_answer):
            reference_BTV, _ = self._reference(batch, terms)
            terms.count(batch)
            logits_BTV, labels_BT = answer_logits(self.model, batch)
            total = total + len(labels_BT) * kl_loss(reference_BTV, logits_BTV, labels_BT)
        return total / len(examples)

    def _reference(self, batch: TrainingBatch, terms: _Terms) -> tuple[Tensor, Tensor]:
        terms.count(batch)
        with torch.no_grad(), without_adapter(self.adapter):
            return answer_logits(self.model, batch)

    def _states_loss(
        self,
        examples: Sequence[Example],
        terms: _Terms,
        loss: Callable[[Tensor, Tensor, Tensor], Tensor],
        *,
        reference: bool = False,
    ) -> Tensor:
        """Mean of a loss on states, reference states and chosen columns of rmu's layer."""
        total: Any = 0.0
        for batch in self._encoded(examples, Example.require_answer):
            own_BND = torch.empty(0)
            if reference:
                terms.count(batch)
                with torch.no_grad(), without_adapter(self.adapter):
                    own_BND = self._states(batch)
            terms.count(batch)
            states_BND = self._states(batch)
            chosen_BN = batch.predicting.to(states_BND.device)
            total = total + len(chosen_BN) * loss(states_BND, own_BND, chosen_BN)
        return total / len(examples)

    def _states(self, batch: TrainingBatch) -> Tensor:
        """(B, N, D) output of rmu's layer."""
        with capturing(self._vlm, [self._layer]) as captured:
            answer_logits(self.model, batch)
            states = captured.pop(self._layer, None)
        if states is None:
            raise DataError(
                f"decoder layer {self._layer} does not run on examples without an image, so rmu "
                "cannot misdirect it. Choose another --rmu-layer."
            )
        return states


def _target(example: Example) -> str:
    if example.target is None:
        raise DataError(
            f"the forget example {example.id!r} has no target to answer instead. Assign targets "
            "first (`vlmend.training.refusals`), or set w_help to 0."
        )
    return example.target
