"""FLOPs equal hand counts, metering changes no number, and the ledger adds up."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from vlmend.errors import ConfigError, RunError
from vlmend.evals.flops import FlopCounter
from vlmend.testing import picture, tiny_vlm
from vlmend.training.meter import Ledger, Meter, cost_to_reach, sum_ledger
from vlmend.types import user

CPU = torch.device("cpu")
BATCH, HEADS, QUERIES, KEYS, WIDTH, VALUE_WIDTH = 2, 4, 10, 12, 8, 8
ONE_PRODUCT = 2 * BATCH * HEADS * QUERIES * KEYS * WIDTH
"""FLOPs of the scores, or of the weighted sum: a multiply and an add per term."""


def count(call: Callable[[], Any]) -> int:
    with FlopCounter() as counter:
        call()
    assert not counter.uncounted
    return counter.total


def attend(
    groups: int, dtype: torch.dtype, **kwargs: Any
) -> tuple[list[torch.Tensor], torch.Tensor]:
    shapes = ((HEADS, QUERIES, WIDTH), (groups, KEYS, WIDTH), (groups, KEYS, VALUE_WIDTH))
    qkv = [torch.randn(BATCH, *shape, dtype=dtype, requires_grad=True) for shape in shapes]
    out = functional.scaled_dot_product_attention(*qkv, enable_gqa=groups != HEADS, **kwargs)
    return qkv, out


@pytest.mark.parametrize("groups", [HEADS, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["plain", "causal", "masked"])
def test_attention_on_the_cpu_is_counted(groups: int, dtype: torch.dtype, kind: str) -> None:
    mask = torch.rand(BATCH, 1, QUERIES, KEYS) > 0.5
    mask[..., 0] = True
    kwargs: dict[str, Any] = {
        "plain": {},
        "causal": {"is_causal": True},
        "masked": {"attn_mask": mask},
    }[kind]
    assert count(lambda: attend(groups, dtype, **kwargs)) == 2 * ONE_PRODUCT
    _, out = attend(groups, dtype, **kwargs)
    # Scores again, then the gradients of scores, value, query and key.
    assert count(lambda: out.float().sum().backward()) == 5 * ONE_PRODUCT


def test_inference_mode_hides_nothing() -> None:
    layer, x = nn.Linear(6, 5), torch.randn(3, 6)
    with torch.inference_mode():
        assert count(lambda: layer(x)) == 2 * 3 * 6 * 5
        assert count(lambda: attend(HEADS, torch.float32)) == 2 * ONE_PRODUCT


def test_an_attention_kernel_without_a_formula_makes_no_number() -> None:
    @torch.library.custom_op("vlmend_test::some_attention", mutates_args=())
    def some_attention(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    meter = Meter(CPU)
    with meter.step() as reading:
        some_attention(torch.randn(2, 2) @ torch.randn(2, 2))
    assert reading.flops is None
    assert meter.uncounted == {"vlmend_test.some_attention"}


def run_tiny(family: str, *, checkpointing: bool = False) -> Any:
    """One forward and backward pass of a tiny model with a picture; the gradients."""
    vlm = tiny_vlm(family)
    encoded = vlm.encode([user("What is this?", picture(0)), user("And this one?", picture(1))])
    if checkpointing:
        vlm.model.gradient_checkpointing_enable({"use_reentrant": False})
        vlm.model.train()

    def run() -> dict[str, torch.Tensor]:
        vlm.model.zero_grad()
        logits = vlm.model(**encoded.inputs, use_cache=False).logits
        logits.float().logsumexp(-1).mean().backward()
        named = vlm.model.named_parameters()
        return {name: p.grad.clone() for name, p in named if p.grad is not None}

    return run


@pytest.mark.parametrize("family", ["llava", "mllama", "qwen2_5_vl"])
def test_counts_of_a_model_are_those_of_torch_plus_attention(family: str) -> None:
    run = run_tiny(family)
    with FlopCounterMode(display=False) as reference:
        run()
    seen: list[int] = []

    def note(factor: int) -> Callable[..., int]:
        def formula(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
            batch, heads, queries, width = query.shape
            seen.append(factor * batch * heads * queries * key.shape[2] * width)
            return seen[-1]

        return formula

    # By hand, from the tensors that the kernels get.
    forward, backward = note(4), note(10)

    class Attention(FlopCounter):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            name = str(getattr(func, "_overloadpacket", func))
            if name == "aten._scaled_dot_product_flash_attention_for_cpu":
                forward(*args)
            elif name == "aten._scaled_dot_product_flash_attention_for_cpu_backward":
                backward(*args[1:])
            return func(*args, **(kwargs or {}))

    with Attention():
        run()
    assert seen
    assert count(run) == reference.get_total_flops() + sum(seen)


def test_recomputation_is_counted() -> None:
    layer = nn.Linear(6, 6)
    x = torch.randn(3, 6, requires_grad=True)
    product = 2 * 3 * 6 * 6
    assert count(lambda: layer(layer(x)).sum().backward()) == (2 + 4) * product

    def again(early: bool) -> None:
        inner = lambda t: layer(layer(t))  # noqa: E731
        checkpoint(inner, x, use_reentrant=False, early_stop=early).sum().backward()

    # Both products once more; torch stops early by itself when the last input is there.
    assert count(lambda: again(early=False)) == (2 + 4 + 2) * product
    assert count(lambda: again(early=True)) == (2 + 4 + 1) * product


def test_checkpointing_a_model_costs_the_layers_once_more() -> None:
    plain, again = count(run_tiny("llava")), count(run_tiny("llava", checkpointing=True))
    vlm = tiny_vlm("llava")
    encoded = vlm.encode([user("What is this?", picture(0)), user("And this one?", picture(1))])
    with torch.no_grad():
        forward = count(lambda: vlm.model(**encoded.inputs, use_cache=False))
    assert plain < again < plain + forward


def test_metering_changes_no_number() -> None:
    run = run_tiny("llava")
    plain = run()
    with Meter(CPU).step() as reading:
        metered = run()
    assert reading.counted
    assert reading.flops
    assert all(torch.equal(plain[name], metered[name]) for name in plain)


def work() -> None:
    torch.randn(4, 8) @ torch.randn(8, 2)


FLOPS = 2 * 4 * 8 * 2


def test_a_known_key_is_not_counted_again() -> None:
    meter = Meter(CPU)
    readings = []
    for key in ("a", "a", "b", None, None):
        with meter.step(key) as reading:
            work()
        readings.append(reading)
    assert [r.flops for r in readings] == [FLOPS] * 5
    assert [r.counted for r in readings] == [True, False, True, True, True]


def test_every_nth_step_is_counted_by_its_number() -> None:
    meter = Meter(CPU, count_every=3)
    flops: list[int | None] = []
    for index in range(2, 8):
        with meter.step(index=index) as reading:
            work()
        flops.append(reading.flops)
    assert flops == [None, FLOPS, None, None, FLOPS, None]
    with pytest.raises(ConfigError, match="count_every 0 is not possible: at least 1"):
        Meter(CPU, count_every=0)


def test_a_step_that_fails_leaves_no_mode_behind() -> None:
    meter = Meter(CPU)

    def fail() -> None:
        with meter.step("key"):
            work()
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    with meter.step("key") as reading:
        work()
    assert reading.flops == FLOPS


def test_seconds_are_those_of_the_step() -> None:
    with Meter(CPU).step() as reading:
        time.sleep(0.05)
    assert 0.05 <= reading.seconds < 5


LARGE = 64 * 2**20


def can_start_peak_anew() -> bool:
    """Whether this machine lets a process forget its peak: asked of the system, not of us."""

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    grown = torch.ones((peak() + LARGE) // 4)
    before = peak()
    del grown
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return peak() < before - LARGE // 2


def test_peak_memory_is_that_of_the_step() -> None:
    if not can_start_peak_anew():
        pytest.skip("this system never forgets a process's peak, as the meter's docstring says")
    meter, large = Meter(CPU), LARGE

    def peak(numbers: int) -> int:
        with meter.step() as reading:
            torch.ones(numbers)
        return reading.peak_memory_bytes

    before, during, after = peak(1), peak(large // 4), peak(1)
    assert during - before > 0.9 * large
    # Without the reset the second small step would report the large one's.
    assert during - after > 0.9 * large


def row(step: int, seconds: float, flops: int | None, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "seconds": seconds,
        "flops": flops,
        "tokens": 10 * step,
        "images": step,
        "peak_memory_bytes": 100 - step,
    } | more


def test_the_ledger_adds_up() -> None:
    rows = [row(1, 5.0, 40), row(2, 1.0, None), row(3, 3.0, None), row(4, 2.0, 160)]
    ledger = sum_ledger(rows)
    assert ledger == Ledger(
        steps=4,
        # Counted steps enter with the median of the others, 2 s.
        seconds=2.0 + 1.0 + 3.0 + 2.0,
        seconds_per_step=2.0,
        flops=400,  # 200 in 50 of 100 tokens
        flops_estimated=True,
        tokens=100,
        images=10,
        peak_memory_bytes=99,
    )
    assert ledger.record()["flops"] == 400


def test_the_ledger_of_exact_counts_is_exact() -> None:
    rows = [row(1, 5.0, 41), row(2, 1.0, 17, counted=False), row(3, 3.0, 1, counted=False)]
    ledger = sum_ledger(rows)
    assert (ledger.flops, ledger.flops_estimated) == (59, False)
    assert (ledger.seconds, ledger.seconds_per_step) == (2.0 + 1.0 + 3.0, 2.0)
    all_counted = sum_ledger([row(1, 5.0, 41), row(2, 1.0, 17)])
    assert (all_counted.seconds, all_counted.seconds_per_step) == (6.0, 3.0)


def test_the_ledger_of_nothing() -> None:
    empty = sum_ledger([])
    assert (empty.steps, empty.seconds, empty.seconds_per_step, empty.flops) == (0, 0, None, 0)
    unknown = sum_ledger([row(1, 2.0, None)])
    assert (unknown.flops, unknown.flops_estimated) == (None, True)


def test_cost_to_reach_a_rate() -> None:
    rows = [row(step, 1.0, 10, counted=False) for step in range(1, 7)]
    watch = [
        {"step": 0, "asr": 1.0},
        {"step": 2, "asr": 0.5},
        {"step": 3, "asr": None},
        {"step": 4, "asr": 0.08},
        {"step": 5, "asr": None},
        {"step": 6, "asr": 0.06},
    ]
    found = cost_to_reach(rows, watch)
    assert found == (4, sum_ledger(rows[:4]))
    assert cost_to_reach(rows, watch, asr=0.05) is None
    assert cost_to_reach(rows, [{"step": 2, "asr": None}]) is None
    assert cost_to_reach(rows, [{"step": 0, "asr": 0.0}]) == (0, sum_ledger([]))
    with pytest.raises(RunError, match="after 4 steps, but the records hold 2"):
        cost_to_reach(rows[:2], watch)


@pytest.mark.parametrize(
    ("rates", "steps"),
    [
        ((0.9, 0.05, 0.3), None),
        ((0.9, 0.05, 0.3, 0.07, 0.01), 3),
        ((0.05, 0.9, 0.08), 2),
        ((0.05, 0.02), 0),
    ],
)
def test_a_rate_that_rises_again_was_not_reached(
    rates: tuple[float, ...], steps: int | None
) -> None:
    rows = [row(step, 1.0, 10, counted=False) for step in range(1, 7)]
    found = cost_to_reach(rows, [{"step": n, "asr": rate} for n, rate in enumerate(rates)])
    assert (None if found is None else found[0]) == steps
