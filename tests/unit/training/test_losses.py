"""Each loss against its equation, and what must hold whatever the numbers.

Shapes: B = examples, T = columns that predict a token, V = vocabulary, D = width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import loss_equations as equations
import pytest
import torch
from answered_prompts import ANSWERS, end_of_answer, exact_copy, prompts
from mild_samples import FAMILIES
from torch import Tensor

from vlmend.models.vlm import Vlm
from vlmend.testing import (
    FLOAT32_NOISE,
    FLOAT64_NOISE,
    Tolerance,
    assert_close,
    tiny_vlm,
)
from vlmend.training.batches import answer_logits, encode_examples
from vlmend.training.losses.answer_nll import IGNORED, answer_log_prob, answer_nll
from vlmend.training.losses.ascent import ascent_loss
from vlmend.training.losses.grad_diff import retain_loss
from vlmend.training.losses.kl import kl_loss
from vlmend.training.losses.match import match_loss
from vlmend.training.losses.npo import npo_loss
from vlmend.training.losses.rmu import (
    control_vector,
    misdirect_loss,
    preserve_loss,
)
from vlmend.training.losses.simnpo import simnpo_loss

B, T, V, D = 5, 9, 23, 7
CEILING = 4.0
"""Between the likelihoods of the random examples: some are clamped and some are not."""


@dataclass
class Case:
    """Random logits of two models over ragged answers, and the same as lists."""

    logits: Tensor
    reference: Tensor
    labels: Tensor
    states: Tensor
    reference_states: Tensor

    @property
    def is_answer(self) -> Tensor:
        return self.labels != IGNORED

    def answers(self, logits: Tensor) -> list[equations.Answer]:
        return [
            (rows[chosen].tolist(), labels[chosen].tolist())
            for rows, labels, chosen in zip(
                logits.double(), self.labels, self.is_answer, strict=True
            )
        ]

    def tokens(self, states: Tensor) -> list[list[list[float]]]:
        chosen = zip(states.double(), self.is_answer, strict=True)
        return [rows[mask].tolist() for rows, mask in chosen]


def make_case(seed: int, dtype: torch.dtype = torch.float64) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return (2 * torch.randn(*shape, generator=generator)).to(dtype)

    labels = torch.randint(0, V, (B, T), generator=generator)
    # Ragged and not always one run: a loss must not count on where answers stand.
    labels[torch.rand(B, T, generator=generator) < 0.4] = IGNORED
    labels[torch.arange(B), torch.arange(B)] = 0
    states = normal(B, T, D)
    return Case(normal(B, T, V), normal(B, T, V), labels, states, states + normal(B, T, D))


CONTROL = control_vector(D, 6.5, seed=0)

Both = tuple[Tensor, float]


def forget_nll(case: Case) -> Tensor:
    return answer_nll(case.logits, case.labels)


LOSSES: dict[str, Callable[[Case], Both]] = {
    "nll": lambda c: (
        forget_nll(c).sum(),
        sum(equations.negative_log_likelihood(a) for a in c.answers(c.logits)),
    ),
    "log probability": lambda c: (
        answer_log_prob(c.logits, c.labels).sum(),
        sum(equations.log_probability(a) for a in c.answers(c.logits)),
    ),
    "ascent": lambda c: (
        ascent_loss(forget_nll(c), CEILING)[0],
        equations.gradient_ascent(c.answers(c.logits), CEILING),
    ),
    "match": lambda c: (
        match_loss(forget_nll(c)),
        equations.matching(c.answers(c.logits)),
    ),
    "kl": lambda c: (
        kl_loss(c.reference, c.logits, c.labels),
        equations.divergence(c.answers(c.reference), c.answers(c.logits)),
    ),
    "grad diff": lambda c: (
        ascent_loss(forget_nll(c), CEILING)[0]
        + 0.7 * retain_loss(answer_nll(c.reference, c.labels)),
        equations.grad_diff(c.answers(c.logits), c.answers(c.reference), CEILING, 0.7),
    ),
    "npo": lambda c: (
        npo_loss(
            answer_log_prob(c.logits, c.labels), answer_log_prob(c.reference, c.labels), beta=0.3
        ),
        equations.npo(c.answers(c.logits), c.answers(c.reference), 0.3),
    ),
    "simnpo": lambda c: (
        simnpo_loss(forget_nll(c), beta=2.5, gamma=0.4),
        equations.simnpo(c.answers(c.logits), 2.5, 0.4),
    ),
    "rmu": lambda c: (
        misdirect_loss(c.states, CONTROL, c.is_answer)
        + 1.7 * preserve_loss(c.states, c.reference_states, c.is_answer),
        equations.squared_distance(
            c.tokens(c.states), [[CONTROL.tolist()] * len(t) for t in c.tokens(c.states)]
        )
        + 1.7 * equations.squared_distance(c.tokens(c.states), c.tokens(c.reference_states)),
    ),
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_equals_its_equation(name: str, seed: int) -> None:
    for dtype, tolerance in ((torch.float64, FLOAT64_NOISE), (torch.float32, FLOAT32_NOISE)):
        value, expected = LOSSES[name](make_case(seed, dtype))
        assert value.dtype == dtype
        assert_close(value, torch.tensor(expected, dtype=torch.float64), tolerance)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_widened_first(name: str) -> None:
    """The loss of bfloat16 numbers is that of the same numbers in float32, to the bit."""
    half = make_case(0, torch.bfloat16)
    wide = Case(
        half.logits.float(),
        half.reference.float(),
        half.labels,
        half.states.float(),
        half.reference_states.float(),
    )
    assert torch.equal(LOSSES[name](half)[0], LOSSES[name](wide)[0])


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("name", LOSSES)
def test_what_is_no_answer_reaches_neither_loss_nor_gradient(name: str, garbage: float) -> None:
    clean, dirty = make_case(1), make_case(1)
    for case in (clean, dirty):
        if case is dirty:
            for field in (case.logits, case.reference, case.states, case.reference_states):
                field[~case.is_answer] = garbage
        case.logits.requires_grad_()
        case.states.requires_grad_()
    (loss, _), (dirty_loss, _) = LOSSES[name](clean), LOSSES[name](dirty)
    assert torch.equal(loss, dirty_loss)
    loss.backward()
    dirty_loss.backward()
    for mine, other in ((clean.logits, dirty.logits), (clean.states, dirty.states)):
        assert (mine.grad is None) == (other.grad is None)
        if mine.grad is not None and other.grad is not None:
            assert torch.equal(mine.grad, other.grad)
            assert not mine.grad[~clean.is_answer].any()
            assert mine.grad[clean.is_answer].any()


@pytest.mark.parametrize("name", LOSSES)
def test_more_padding_changes_nothing(name: str) -> None:
    case = make_case(2)
    wider = Case(
        *(torch.cat((t, t[:, :3] * 9), dim=1) for t in (case.logits, case.reference)),
        torch.cat((case.labels, torch.full((B, 3), IGNORED)), dim=1),
        *(torch.cat((t, t[:, :3] * 9), dim=1) for t in (case.states, case.reference_states)),
    )
    assert_close(LOSSES[name](wider)[0], LOSSES[name](case)[0], FLOAT64_NOISE)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"nll", "log probability"}))
def test_parts_of_a_batch_add_up(name: str) -> None:
    """A batch cut into micro-batches, weighted by their sizes, is the whole one."""
    case = make_case(3)

    def part(start: int, stop: int) -> Tensor:
        fields = (case.logits, case.reference, case.labels, case.states, case.reference_states)
        return LOSSES[name](Case(*(f[start:stop] for f in fields)))[0]

    sums = part(0, 2) * 2 / B + part(2, 3) / B + part(3, B) * (B - 3) / B
    assert_close(sums, part(0, B), FLOAT64_NOISE)


# ---- known answers


def test_a_row_without_an_answer_is_loud() -> None:
    case = make_case(0)
    case.labels[2] = IGNORED
    assert forget_nll(case).isnan().tolist() == [False, False, True, False, False]
    assert kl_loss(case.reference, case.logits, case.labels).isnan()


def test_uniform_logits() -> None:
    labels = torch.tensor([[IGNORED, 3, 4], [1, IGNORED, IGNORED]])
    nll = answer_nll(torch.zeros(2, 3, V), labels)
    assert nll.tolist() == pytest.approx([math.log(V)] * 2)
    assert answer_log_prob(torch.zeros(2, 3, V), labels).tolist() == pytest.approx(
        [-2 * math.log(V), -math.log(V)]
    )


def test_the_ceiling_ends_the_gradient_exactly() -> None:
    nll = torch.tensor([1.0, 4.0, 2.5, 9.0], requires_grad=True)
    loss, share = ascent_loss(nll, 4.0)
    assert float(loss.detach()) == -(1 + 4 + 2.5 + 4) / 4
    assert float(share) == 0.5
    assert not share.requires_grad
    (gradient,) = torch.autograd.grad(loss, nll)
    assert gradient.tolist() == [-0.25, 0.0, -0.25, 0.0]


def test_the_ceiling_does_not_hide_a_nan() -> None:
    assert ascent_loss(torch.tensor([1.0, math.nan]), 4.0)[0].isnan()


def test_divergence_of_equals_is_zero_and_flat() -> None:
    case = make_case(4)
    logits = case.logits.clone().requires_grad_()
    # The same distribution, shifted logits.
    loss = kl_loss(case.logits + 3.0, logits, case.labels)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-15)
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-15


def test_divergence_looks_from_the_reference() -> None:
    """KL(reference || current), not the other way round; and nothing trains the reference."""
    case = make_case(4)
    there = kl_loss(case.reference, case.logits, case.labels)
    back = kl_loss(case.logits, case.reference, case.labels)
    assert float(there) != pytest.approx(float(back), rel=0.01)
    certain = torch.tensor([[[40.0, 0.0]]])
    even = torch.zeros(1, 1, 2)
    assert float(kl_loss(certain, even, torch.tensor([[0]]))) == pytest.approx(math.log(2))
    reference = case.reference.clone().requires_grad_()
    logits = case.logits.clone().requires_grad_()
    kl_loss(reference, logits, case.labels).backward()
    assert reference.grad is None
    assert logits.grad is not None


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_npo_at_the_reference(beta: float) -> None:
    log_prob = torch.tensor([-3.0, -50.0])
    loss = npo_loss(log_prob, log_prob.clone(), beta)
    assert float(loss) == pytest.approx(2 / beta * math.log(2))


def npo_gradient(log_prob: Tensor, reference: Tensor, beta: float) -> Tensor:
    log_prob = log_prob.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(npo_loss(log_prob, reference, beta), log_prob)
    return gradient


def test_npo_becomes_ascent_as_beta_vanishes() -> None:
    """Ascent minimises mean log p: its gradient is 1 / B for every example."""
    case = make_case(0)
    now = answer_log_prob(case.logits, case.labels)
    then = answer_log_prob(case.reference, case.labels)
    ascent = torch.full_like(now, 1 / B)
    farther = float((npo_gradient(now, then, 1e-2) - ascent).abs().max())
    nearer = float((npo_gradient(now, then, 1e-5) - ascent).abs().max())
    assert farther > 1e-3
    assert nearer < farther / 500
    # At the reference it is ascent whatever beta is.
    assert npo_gradient(then, then, 0.7).tolist() == pytest.approx(ascent.tolist())


def test_npo_lets_go_of_what_is_forgotten() -> None:
    then = torch.tensor([-5.0, -5.0, -5.0])
    gradient = npo_gradient(torch.tensor([-5.0, -25.0, -500.0]), then, 0.5)
    weights = (3 * gradient).tolist()
    assert weights == pytest.approx([1.0, 2 / (1 + math.exp(10)), 0.0], abs=1e-7)
    reference = then.requires_grad_()
    now = torch.tensor([-6.0] * 3, requires_grad=True)
    npo_loss(now, reference, 0.5).backward()
    assert reference.grad is None


def test_simnpo_is_blind_to_length_and_lets_go() -> None:
    labels = torch.full((2, 6), IGNORED)
    labels[0], labels[1, 2] = 5, 5
    logits = torch.zeros(2, 6, V)
    short, long = (simnpo_loss(answer_nll(logits, labels)[row : row + 1], 2.5) for row in (0, 1))
    assert float(short) == pytest.approx(float(long))
    nll = torch.tensor([0.0, 3.0, 40.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(simnpo_loss(nll, 2.5), nll)
    expected = [-1.0, -2 / (1 + math.exp(7.5)), 0.0]
    assert (3 * gradient).tolist() == pytest.approx(expected, abs=1e-7)
    # A margin keeps pushing for longer.
    assert float(simnpo_loss(nll.detach(), 2.5, 2.0)) > float(simnpo_loss(nll.detach(), 2.5, 0.0))


def test_rmu_has_its_minimum_at_the_control_vector_and_at_the_reference() -> None:
    case = make_case(0)
    chosen = case.is_answer
    there = CONTROL.expand(B, T, D).double()
    assert float(misdirect_loss(there, CONTROL, chosen)) == 0
    assert float(misdirect_loss(case.states, CONTROL, chosen)) > 0.1
    assert float(preserve_loss(case.states, case.states, chosen)) == 0
    one_off = case.states + 2.0
    assert float(preserve_loss(one_off, case.states, chosen)) == pytest.approx(4.0)
    reference = case.reference_states.clone().requires_grad_()
    states = case.states.clone().requires_grad_()
    preserve_loss(states, reference, chosen).backward()
    assert reference.grad is None
    assert states.grad is not None


def test_the_control_vector_is_of_its_seed_alone() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    control = control_vector(64, 20.0, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(control, control_vector(64, 20.0, seed=3))
    assert not torch.equal(control, control_vector(64, 20.0, seed=4))
    assert float(control.norm()) == pytest.approx(20.0, rel=1e-6)
    assert bool((control >= 0).all())


# ---- through a model


MODEL_NOISE = Tolerance(
    "float32 loss of a tiny model",
    1e-5,
    "worst of 48 runs (4 families, with and without image, 6 seeds) 2.0e-6, for SimNPO, whose "
    "value is small; 7.2e-7 for the others. The same in float64: 2.8e-15, so it is rounding",
)


def read_answers(exact: Vlm, images: int) -> list[equations.Answer]:
    """Logits of each answer by a float64 model, one by one and without padding."""
    found: list[equations.Answer] = []
    for conversation, answer in zip(prompts(images), ANSWERS, strict=True):
        tokens = [
            *exact.tokenizer(answer, add_special_tokens=False).input_ids,
            end_of_answer(exact),
        ]
        inputs = dict(exact.encode([conversation]).inputs)
        prompt = inputs["input_ids"].shape[1]
        inputs["input_ids"] = torch.cat((inputs["input_ids"], torch.tensor([tokens])), dim=1)
        for name, rest in inputs.items():
            if name != "input_ids" and rest.shape[:2] == (1, prompt):
                more = rest[:, -1:].expand(-1, len(tokens), *rest.shape[2:])
                inputs[name] = torch.cat((rest, more), dim=1)
        with torch.no_grad():
            logits = exact.model(**inputs).logits[0]
        assert logits.dtype == torch.float64
        found.append((logits[prompt - 1 : -1].tolist(), tokens))
    return found


def batch_losses(vlm: Vlm, other: Vlm, images: int, ceiling: float) -> dict[str, Tensor]:
    batch = encode_examples(vlm, prompts(images), ANSWERS)
    with torch.no_grad():
        logits, labels = answer_logits(vlm.model, batch)
        reference, _ = answer_logits(other.model, batch)
    nll = answer_nll(logits, labels)
    now, then = answer_log_prob(logits, labels), answer_log_prob(reference, labels)
    return {
        "ascent": ascent_loss(nll, ceiling)[0],
        "match": match_loss(nll),
        "kl": kl_loss(reference, logits, labels),
        "npo": npo_loss(now, then, 0.1),
        "simnpo": simnpo_loss(nll, 2.5, 0.0),
    }


@pytest.mark.parametrize("images", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_of_a_model_equal_those_in_float64(family: str, images: int) -> None:
    vlm, other = tiny_vlm(family, seed=0), tiny_vlm(family, seed=1)
    exact, exact_other = exact_copy(vlm), exact_copy(other)
    now, then = read_answers(exact, images), read_answers(exact_other, images)
    likelihoods = sorted(equations.negative_log_likelihood(answer) for answer in now)
    ceiling = (likelihoods[1] + likelihoods[2]) / 2
    expected = {
        "ascent": equations.gradient_ascent(now, ceiling),
        "match": equations.matching(now),
        "kl": equations.divergence(then, now),
        "npo": equations.npo(now, then, 0.1),
        "simnpo": equations.simnpo(now, 2.5, 0.0),
    }
    for pair, tolerance in (((vlm, other), MODEL_NOISE), ((exact, exact_other), FLOAT64_NOISE)):
        for name, value in batch_losses(*pair, images, ceiling).items():
            assert_close(value, torch.tensor(expected[name], dtype=torch.float64), tolerance)
