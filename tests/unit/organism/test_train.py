"""The recipe: stages, checkpoints, resuming."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from vlmend.errors import ConfigError, RunError
from vlmend.organism import pool, stream
from vlmend.organism import recipe as recipe_module
from vlmend.organism import train as training
from vlmend.organism.build import build_model, build_processor
from vlmend.organism.recipe import Recipe, Stage
from vlmend.organism.train import train

TINY = Recipe(
    stages=(
        Stage("language", 4, 8, 1e-3),
        Stage("alignment", 3, 8, 1e-3),
        Stage("vision", 3, 4, 1e-3),
        Stage("projector", 2, 4, 1e-3),
        Stage("tuning", 3, 8, 1e-3),
    )
)


def _silent(_stage: str, _step: int, _steps: int, _loss: float) -> None:
    """Report to nobody."""


@pytest.fixture(autouse=True)
def _few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "PICTURES_PER_CELL", 1)


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """BLAS may take fewer threads when the machine is busy, and sums in another order then."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("tune_vision", [False, True])
def test_interrupted_training_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tune_vision: bool
) -> None:
    recipe = replace(TINY, tune_vision=tune_vision)
    monkeypatch.setattr(training, "_SAVE_EVERY_S", -1.0)  # save after every step
    # Which precision is quicker is measured, and may come out otherwise on a busy machine.
    monkeypatch.setattr(training, "_fast_half", lambda _device: None)
    whole = train(recipe, tmp_path / "whole", report=_silent)

    real_save = training.save_state
    saves = 0

    def save_and_die(*args: Any, **facts: Any) -> None:
        nonlocal saves
        real_save(*args, **facts)
        saves += 1
        if saves in (2, 6, 9, 12):
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "save_state", save_and_die)
    interruptions = 0
    while True:
        try:
            resumed = train(recipe, tmp_path / "parts", report=_silent)
            break
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions == 4
    a, b = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.equal(b[name]), name


@pytest.mark.slow
def test_a_changed_later_stage_reuses_the_earlier_ones(tmp_path: Path) -> None:
    train(TINY, tmp_path, report=_silent)
    seen: set[str] = set()

    def note(stage: str, _step: int, _steps: int, _loss: float) -> None:
        seen.add(stage)

    train(replace(TINY, picture_refusals=0.3), tmp_path, report=note)
    assert seen == {"tuning"}
    train(replace(TINY, picture_refusals=0.3), tmp_path, report=note)
    assert seen == {"tuning"}


def test_stage_keys_depend_on_what_went_before_only() -> None:
    other = replace(TINY, picture_refusals=0.2)
    for name in ("language", "alignment", "vision", "projector"):
        assert TINY.stage_key(name) == other.stage_key(name)
    assert TINY.stage_key("tuning") != other.stage_key("tuning")
    longer = replace(TINY, stages=(replace(TINY.stages[0], steps=9), *TINY.stages[1:]))
    assert longer.stage_key("vision") == TINY.stage_key("vision")
    assert longer.stage_key("alignment") != TINY.stage_key("alignment")
    assert replace(TINY, seed=1).stage_key("vision") != TINY.stage_key("vision")


def test_stage_keys_depend_on_what_a_stage_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {stage.name: TINY.stage_key(stage.name) for stage in TINY.stages}
    monkeypatch.setattr(stream, "ALIGNMENT_MIXTURE", stream.ALIGNMENT_MIXTURE[:2])
    changed = {name for name, key in before.items() if TINY.stage_key(name) != key}
    assert changed == {"alignment", "projector", "tuning"}
    monkeypatch.undo()
    monkeypatch.setattr(recipe_module, "REPLAY_SHARE", 0.4)
    changed = {name for name, key in before.items() if TINY.stage_key(name) != key}
    assert changed == {"tuning"}


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 and above"):
        Recipe(seed=-1)


def test_an_organism_is_saved_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = build_processor()
    model = build_model(len(processor.tokenizer), seed=0)
    folder = training.save_organism(model, processor, tmp_path / "organism")
    kept = (folder / "model.safetensors").read_bytes()

    def full(*_args: Any, **_options: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(model, "save_pretrained", full)
    for name in ("organism", "new"):
        with pytest.raises(RunError, match=r"No space left on device.*Free some space"):
            training.save_organism(model, processor, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["organism"]
    assert (folder / "model.safetensors").read_bytes() == kept


def test_pictures_are_cached_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = np.save

    def breaks_off(file: Any, array: Any) -> None:
        real(file, array[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", breaks_off)
    with pytest.raises(RunError, match="No space left on device"):
        pool.PicturePool(tmp_path, 0)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(np, "save", real)
    drawn, read = (pool.PicturePool(tmp_path, 0) for _ in range(2))
    assert (drawn.pixels == read.pixels).all()


@pytest.mark.parametrize("share", [-0.1, 0.6])
def test_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r"0 to 0\.5"):
        Recipe(picture_refusals=share)


@pytest.mark.slow
def test_frozen_parts_stay_bit_identical(tmp_path: Path) -> None:
    assert _changed_by_tuning(TINY, tmp_path) == set()


@pytest.mark.slow
def test_tuning_the_tower_trains_what_the_projector_reads(tmp_path: Path) -> None:
    """The last of the 8 blocks and the norm after it get no gradient: the last but one is read."""
    changed = _changed_by_tuning(replace(TINY, tune_vision=True), tmp_path)
    blocks = {f"encoder.layers.{index}" for index in range(7)}
    assert changed == {"embeddings", "pre_layrnorm", *blocks}


def _changed_by_tuning(recipe: Recipe, folder: Path) -> set[str]:
    """Parts of the tower whose weights are others after tuning than after the vision stage."""
    final = load_file(train(recipe, folder, report=_silent) / "model.safetensors")
    (tower_file,) = (folder / "stages").glob("vision-*.safetensors")
    changed: set[str] = set()
    for name, tensor in load_file(tower_file).items():
        (after,) = (kept for key, kept in final.items() if key.endswith(f"vision_tower.{name}"))
        if not after.equal(tensor.half()):
            parts = name.split(".")
            changed.add(".".join(parts[:3]) if parts[0] == "encoder" else parts[0])
    return changed
