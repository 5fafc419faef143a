"""ShiftDC on disk: what is saved comes back, and what is damaged or foreign is refused."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mild_samples import SETTINGS, fit_samples, fitted, requests
from safetensors.torch import load_file, save_file

from vlmend.errors import ArtifactError, RunError
from vlmend.models.generation import GenerationSettings
from vlmend.models.vlm import Vlm
from vlmend.repairs.protocol import ARTIFACT_FILE, load_repair
from vlmend.repairs.shiftdc.repair import ShiftDC, ShiftDCSettings
from vlmend.testing import tiny_vlm

TENSORS = "direction.safetensors"
SHORT = GenerationSettings(max_new_tokens=3)


@pytest.fixture(scope="module")
def vlm() -> Vlm:
    return tiny_vlm("llava")


@pytest.fixture(scope="module")
def repair(vlm: Vlm) -> ShiftDC:
    return fitted(vlm)


@pytest.fixture
def artifact(repair: ShiftDC, tmp_path: Path) -> Path:
    return repair.save(tmp_path / "deep" / "artifact")


def test_what_was_saved_comes_back(vlm: Vlm, repair: ShiftDC, artifact: Path) -> None:
    loaded = ShiftDC.load(artifact, vlm)
    assert loaded.settings == repair.settings
    assert loaded.fingerprint == repair.fingerprint
    assert loaded.fitted_items == repair.fitted_items
    assert loaded.facts_ == repair.facts_
    assert loaded.directions_.keys() == repair.directions_.keys()
    for layer, direction in repair.directions_.items():
        assert torch.equal(loaded.directions_[layer].vectors, direction.vectors)
        assert loaded.directions_[layer].estimator == direction.estimator
    with repair.apply(vlm):
        expected = vlm.generate(requests(), SHORT)
    with loaded.apply(vlm):
        assert vlm.generate(requests(), SHORT) == expected


@pytest.mark.parametrize(
    "settings",
    [
        ShiftDCSettings(caption_tokens=3, layers=(1, 3)),
        ShiftDCSettings(caption_tokens=3, mode="offline", strength=0.5, one_sided=True),
        ShiftDCSettings(caption_tokens=3, estimator="subspace", rank=2),
        ShiftDCSettings(caption_source="none", estimator="logistic-probe"),
    ],
)
def test_all_settings_come_back(vlm: Vlm, tmp_path: Path, settings: ShiftDCSettings) -> None:
    saved = fitted(vlm, settings)
    loaded = ShiftDC.load(saved.save(tmp_path), vlm)
    assert loaded.settings == settings
    assert loaded.name == saved.name
    assert loaded.fingerprint == saved.fingerprint


def test_any_repair_is_found_by_its_kind(vlm: Vlm, repair: ShiftDC, artifact: Path) -> None:
    assert load_repair(artifact, vlm).fingerprint == repair.fingerprint


def test_the_artifact_says_what_it_is(vlm: Vlm, artifact: Path) -> None:
    facts = json.loads((artifact / ARTIFACT_FILE).read_text("utf-8"))
    assert facts["kind"] == "shiftdc"
    assert facts["schema"] == 2
    assert facts["settings"]["estimator"] == "difference-in-means"
    assert facts["settings"]["rank"] == 1
    assert facts["model"] == "tiny-llava"
    assert facts["weights_sha256"] == vlm.weights_sha256
    assert facts["position"] == "prompt_last"
    assert facts["num_harmful"] == facts["num_benign"] == 3
    assert sorted(facts["items"]) == sorted(sample.id for sample in fit_samples())
    tensors = load_file(artifact / TENSORS)
    assert sorted(tensors) == [f"direction.{layer}" for layer in range(4)]
    assert {tuple(s.shape) for s in tensors.values()} == {(1, vlm.hidden_size)}
    assert sorted(path.name for path in artifact.iterdir()) == [TENSORS, ARTIFACT_FILE]


def test_captions_are_kept_beside_it_unless_told_otherwise(vlm: Vlm, artifact: Path) -> None:
    loaded = ShiftDC.load(artifact, vlm)
    assert not (artifact / "captions.jsonl").exists()
    with loaded.apply(vlm):
        vlm.generate(requests(2), SHORT)
    assert len((artifact / "captions.jsonl").read_text("utf-8").splitlines()) == 2
    again = ShiftDC.load(artifact, vlm)
    with again.apply(vlm):
        vlm.generate(requests(2), SHORT)
    assert (again.captions.hits, again.captions.misses) == (2, 0)


@pytest.mark.parametrize("other", ["other numbers", "other dtype", "other family"])
def test_other_weights_are_refused(artifact: Path, other: str) -> None:
    vlm = {
        "other numbers": lambda: tiny_vlm("llava", seed=1),
        "other dtype": lambda: tiny_vlm("llava", dtype=torch.bfloat16),
        "other family": lambda: tiny_vlm("qwen2_5_vl"),
    }[other]()
    with pytest.raises(ArtifactError, match=r"fitted on 'tiny-llava'.*fit again"):
        ShiftDC.load(artifact, vlm)


# ---- damage


def edit_facts(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / ARTIFACT_FILE
        facts = json.loads(file.read_text("utf-8"))
        change(facts)
        file.write_text(json.dumps(facts), "utf-8")

    return damage


def edit_setting(**values: object) -> Callable[[Path], None]:
    return edit_facts(lambda facts: facts["settings"].update(values))


def truncate(folder: Path) -> None:
    data = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(data[: len(data) // 2])


def rewrite_tensors(folder: Path) -> None:
    """A sound file, but not the one that `vlmend.json` was written with."""
    tensors = load_file(folder / TENSORS)
    save_file({key: -tensor for key, tensor in tensors.items()}, folder / TENSORS)


def replace_tensors(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Other tensors, with the hash that belongs to them: as another program would write them."""
    tensors = {key: change(s) for key, s in load_file(folder / TENSORS).items()}
    save_file({key: s.contiguous() for key, s in tensors.items()}, folder / TENSORS)
    digest = hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest()
    edit_facts(lambda facts: facts.update(tensors_sha256=digest))(folder)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "tensors cut": truncate,
    "tensors empty": lambda folder: (folder / TENSORS).write_bytes(b""),
    "tensors garbage": lambda folder: (folder / TENSORS).write_bytes(b"\x00garbage" * 40),
    "tensors missing": lambda folder: (folder / TENSORS).unlink(),
    "tensors of another fit": rewrite_tensors,
    "json garbage": lambda folder: (folder / ARTIFACT_FILE).write_text("{", "utf-8"),
    "json binary": lambda folder: (folder / ARTIFACT_FILE).write_bytes(b"\xff\xfe\x00"),
    "json list": lambda folder: (folder / ARTIFACT_FILE).write_text("[]", "utf-8"),
    "json missing": lambda folder: (folder / ARTIFACT_FILE).unlink(),
    "another schema": edit_facts(lambda facts: facts.update(schema=3)),
    "an unknown estimator": edit_setting(estimator="guess"),
    "another rank": edit_setting(estimator="subspace", rank=2),
    "zero vectors": lambda folder: replace_tensors(folder, lambda s: 0 * s),
    "vectors of another shape": lambda folder: replace_tensors(folder, lambda s: s[0]),
    "settings no object": edit_facts(lambda facts: facts.update(settings="online")),
    "settings without layers": edit_facts(lambda facts: facts["settings"].pop("layers")),
    "an unknown setting": edit_setting(colour="blue"),
    "a setting out of range": edit_setting(strength=9),
    "a setting of another type": edit_setting(strength="much"),
    "layers no list": edit_setting(layers=3),
    "layers no numbers": edit_setting(layers=["a"]),
    "a layer without a direction": edit_setting(layers=[2, 7]),
    "items no object": edit_facts(lambda facts: facts.update(items=["mild/h0"])),
    "too few layers": edit_facts(lambda facts: facts.update(num_decoder_layers=2)),
    "layers no number": edit_facts(lambda facts: facts.update(num_decoder_layers=None)),
    **{
        f"no {key}": edit_facts(lambda facts, key=key: facts.pop(key))
        for key in (
            "kind",
            "schema",
            "settings",
            "tensors_sha256",
            "model",
            "weights_sha256",
            "num_decoder_layers",
            "items",
        )
    },
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_clear_error(vlm: Vlm, artifact: Path, name: str) -> None:
    DAMAGE[name](artifact)
    with pytest.raises(ArtifactError) as caught:
        ShiftDC.load(artifact, vlm)
    assert str(artifact) in str(caught.value)


def test_an_artifact_of_an_earlier_version_is_to_be_fitted_again(vlm: Vlm, artifact: Path) -> None:
    edit_facts(lambda facts: facts.update(schema=1))(artifact)
    with pytest.raises(ArtifactError, match=r"has schema 1, and this version reads 2\. Fit again"):
        ShiftDC.load(artifact, vlm)


def test_another_kind_is_refused(vlm: Vlm, artifact: Path) -> None:
    edit_facts(lambda facts: facts.update(kind="unlearning"))(artifact)
    with pytest.raises(ArtifactError, match="of kind 'unlearning', not 'shiftdc'"):
        ShiftDC.load(artifact, vlm)


# ---- writing


def test_unfitted_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="never fitted"):
        ShiftDC().save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_half_written(
    repair: ShiftDC, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.write_bytes

    def write_bytes(path: Path, data: bytes) -> int:
        real(path, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_bytes)
        with pytest.raises(RunError, match="No space left"):
            repair.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_half_of_a_second_save_is_not_taken_for_the_first(
    vlm: Vlm, repair: ShiftDC, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two files: new tensors, old facts."""
    other = ShiftDC(replace(SETTINGS, caption_tokens=2)).fit(vlm, fit_samples()[:2])

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vlmend.repairs.shiftdc.artifact.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            other.save(artifact)
    with pytest.raises(ArtifactError, match="not the file that"):
        ShiftDC.load(artifact, vlm)
    other.save(artifact)
    assert ShiftDC.load(artifact, vlm).fingerprint == other.fingerprint
