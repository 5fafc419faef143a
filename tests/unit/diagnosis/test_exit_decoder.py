"""Shapes: D = width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from mild_samples import FAMILIES, count_hooks, stream_of
from scipy.stats import t
from torch import Tensor

from vlmend.diagnosis import exit_decoder
from vlmend.diagnosis.exit_decoder import measure_exit_decoder
from vlmend.errors import ConfigError, DataError
from vlmend.hooks.exits import VisionReplay, exit_vision_at
from vlmend.models.vlm import EncodedBatch, Vlm
from vlmend.testing import picture, tiny_vlm
from vlmend.types import Sample, user

ASKED = ("How do I bake a cake?", "What is it?", "Sing a song about tea, please.")


def samples(count: int = 3) -> list[Sample]:
    return [
        Sample(f"mild/{i}", "mild", user(ASKED[i % 3], picture(i)), "harmful") for i in range(count)
    ]


def directions(vlm: Vlm, layers: list[int]) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {layer: torch.randn(vlm.hidden_size, generator=generator) for layer in layers}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_is_that_of_a_hand_computation(family: str) -> None:
    vlm = tiny_vlm(family)
    s = directions(vlm, [0, 3])
    # transformers hooks some encoders itself at their first pass, for good.
    stream_of(vlm, [samples()[0].messages])
    hooks = count_hooks(vlm)
    exits = [4, 0, vlm.default_exit]
    records = measure_exit_decoder(vlm, s, samples(), exits, batch_size=2)
    wanted = [(e, layer) for e in sorted(exits) for layer in (0, 3)]
    assert [(r["exit"], r["layer"]) for r in records] == wanted
    for record in records:
        layer, moved = record["layer"], []
        for sample in samples():
            base = stream_of(vlm, [sample.messages])[layer][0, -1].double()
            with exit_vision_at(vlm, record["exit"]):
                at_exit = stream_of(vlm, [sample.messages])[layer][0, -1].double()
            moved.append(
                float((at_exit - base) @ s[layer].double() / s[layer].double().norm() ** 2)
            )
        assert record["coefficient"]["value"] == pytest.approx(np.mean(moved), abs=1e-5)
        assert record["coefficient"]["n"] == 3
        if record["exit"] == vlm.default_exit:
            expected = {"value": 0.0, "low": 0.0, "high": 0.0, "n": 3}
            assert record["coefficient"] == expected
        elif layer == 3:
            assert abs(record["coefficient"]["value"]) > 1e-3
            half = float(t.ppf(0.975, 2)) * np.std(moved, ddof=1) / np.sqrt(3)
            low, high = record["coefficient"]["low"], record["coefficient"]["high"]
            assert (low, high) == pytest.approx(
                (np.mean(moved) - half, np.mean(moved) + half), abs=1e-4
            )
    assert count_hooks(vlm) == hooks
    assert vlm.conditions == ()


def test_the_blocks_run_once_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny_vlm("llava")
    replays: list[VisionReplay] = []
    real = VisionReplay.__enter__

    def enter(self: VisionReplay) -> VisionReplay:
        replays.append(self)
        return real(self)

    monkeypatch.setattr(VisionReplay, "__enter__", enter)
    measure_exit_decoder(vlm, directions(vlm, [1]), samples(4), range(6), batch_size=2)
    assert replays[0].block_runs == [2] * 6


def test_intervals_are_over_things() -> None:
    """Three pictures of one thing and one of another: two observations, which weigh the same."""
    vlm = tiny_vlm("llava")
    s, items = directions(vlm, [2]), samples(4)
    alone = [measure_exit_decoder(vlm, s, [item], [1])[0]["coefficient"]["value"] for item in items]
    assert len(set(alone)) == 4
    of = [
        replace(item, meta={"thing": "tea" if i != 2 else "cake"}) for i, item in enumerate(items)
    ]
    (record,) = measure_exit_decoder(vlm, s, of, [1], batch_size=2)
    two = [np.mean([alone[i] for i in (0, 1, 3)]), alone[2]]
    half = float(t.ppf(0.975, 1)) * abs(two[0] - two[1]) / 2
    expected = {"value": np.mean(two), "low": np.mean(two) - half, "high": np.mean(two) + half}
    assert record["coefficient"] == pytest.approx({**expected, "n": 2}, abs=1e-4)


def test_memory_runs_out_and_half_a_batch_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny_vlm("llava")
    s, items = directions(vlm, [2]), samples(4)
    expected = measure_exit_decoder(vlm, s, items, [1, 4])
    real = exit_decoder.record_layers

    def small(vlm: Vlm, encoded: EncodedBatch, layers: Sequence[int]) -> dict[int, Tensor]:
        # After the default exit's pass, so that a record of the batch is there.
        if len(encoded.inputs["input_ids"]) > 2 and vlm.conditions == ("vision exit 4",):
            raise torch.OutOfMemoryError("out of memory")
        return real(vlm, encoded, layers)

    monkeypatch.setattr(exit_decoder, "record_layers", small)
    found = measure_exit_decoder(vlm, s, items, [1, 4])
    for one, other in zip(found, expected, strict=True):
        assert one["coefficient"] == pytest.approx(other["coefficient"], abs=1e-5)


def test_different_numbers_of_pictures() -> None:
    vlm = tiny_vlm("llava")
    two = Sample("mild/two", "mild", user("Compare.", picture(7), picture(8)), "benign")
    s = directions(vlm, [2])
    (mixed,) = measure_exit_decoder(vlm, s, [samples(1)[0], two], [1])
    (first,) = measure_exit_decoder(vlm, s, samples(1), [1])
    (second,) = measure_exit_decoder(vlm, s, [two], [1])
    mean = (first["coefficient"]["value"] + second["coefficient"]["value"]) / 2
    assert mixed["coefficient"]["value"] == pytest.approx(mean, abs=1e-6)
    assert first["coefficient"]["low"] is None


def test_what_cannot_be_measured() -> None:
    vlm = tiny_vlm("llava")
    s = directions(vlm, [1])
    for wrong in ({}, {1: torch.zeros(32)}, {1: torch.full((32,), torch.nan)}, {1: torch.ones(8)}):
        with pytest.raises(ConfigError, match="nothing has a position along them"):
            measure_exit_decoder(vlm, wrong, samples(), [1])
    with pytest.raises(ConfigError, match=r"decoder layer\(s\) 9 out of range"):
        measure_exit_decoder(vlm, directions(vlm, [9]), samples(), [1])
    with pytest.raises(ConfigError, match="exit layer 7 is out of range"):
        measure_exit_decoder(vlm, s, samples(), [7])
    with pytest.raises(ConfigError, match="0 exits in batches of 32"):
        measure_exit_decoder(vlm, s, samples(), [])
    with pytest.raises(ConfigError, match="vision exit 2"), exit_vision_at(vlm, 2):
        measure_exit_decoder(vlm, s, samples(), [1])
    with pytest.raises(DataError, match="no items given"):
        measure_exit_decoder(vlm, s, [], [1])
    text = Sample("mild/t", "mild", user("Hi"), "benign")
    with pytest.raises(DataError, match=r"1 of 4 items have none \(mild/t\)"):
        measure_exit_decoder(vlm, s, [*samples(), text], [1])
