from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mild_samples import FAMILIES, count_hooks, requests, stream_of
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from unlearning_data import shake

from vlmend._optional import require
from vlmend.errors import ArtifactError, ConfigError, ModelError
from vlmend.hooks.edit import edit_layers
from vlmend.hooks.exits import exit_vision_at
from vlmend.hooks.record import record_layers
from vlmend.models.vlm import GenerationSettings, Vlm
from vlmend.testing import FLOAT32_NOISE, assert_close, picture, tiny_vlm
from vlmend.training.adapter_files import (
    CONFIG_FILE,
    FULL_FILE,
    LORA_FILE,
    read_adapter,
    save_adapter,
)
from vlmend.training.adapter_loading import (
    frozen_sha256,
    probe_logits,
    put_on,
    require_effect,
)
from vlmend.training.adapters import (
    Adapter,
    FullAdapter,
    LoraSettings,
    add_full,
    add_lora,
    lora_targets,
    without_adapter,
)
from vlmend.types import user

SMALL = LoraSettings(rank=2)
SHORT = GenerationSettings(max_new_tokens=4)

KINDS: dict[str, Callable[[Vlm], Adapter]] = {
    "lora": lambda vlm: add_lora(vlm, SMALL),
    "full": add_full,
}


class Snapshot:
    """Everything about a model that an adapter could leave changed."""

    def __init__(self, vlm: Vlm) -> None:
        probe_logits(vlm)  # transformers registers hooks of its own at a first pass
        self.state = {name: tensor.clone() for name, tensor in vlm.model.state_dict().items()}
        self.flags = [p.requires_grad for p in vlm.model.parameters()]
        self.attributes = set(vars(vlm.model))
        self.hooks = count_hooks(vlm)

    def require_same(self, vlm: Vlm) -> None:
        after = vlm.model.state_dict()
        assert list(after) == list(self.state)
        assert all(torch.equal(after[name], tensor) for name, tensor in self.state.items())
        assert [p.requires_grad for p in vlm.model.parameters()] == self.flags
        assert set(vars(vlm.model)) == self.attributes
        assert count_hooks(vlm) == self.hooks
        assert not any(module.training for module in vlm.model.modules())
        assert vlm.conditions == ()


# ---- where an adapter goes


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_reaches_every_linear_module_of_the_decoder_layers_and_nothing_else(
    family: str,
) -> None:
    vlm = tiny_vlm(family)
    linear = {n for n, m in vlm.model.named_modules() if isinstance(m, nn.Linear)}
    with add_lora(vlm, SMALL) as adapter:
        adapted = {
            n.removesuffix(".lora_A") for n, _ in vlm.model.named_modules() if n.endswith("lora_A")
        }
        training = {n for n, p in vlm.model.named_parameters() if p.requires_grad}
    inside = {n for n in linear if n.startswith(vlm.spec.decoder_layers + ".")}
    assert adapted == inside
    assert adapted < linear
    assert len(training) == 2 * len(inside) == len(adapter.parameters)
    assert all(".lora_" in name for name in training)


def test_layers_and_modules_are_chosen_by_kind_or_by_name() -> None:
    vlm = tiny_vlm("mllama")
    root = vlm.spec.decoder_layers
    attention = lora_targets(vlm, LoraSettings(layers=(1, 2), modules=("attention",)))
    assert {name.rsplit(".", 1)[0] for name in attention} == {
        f"{root}.1.cross_attn",
        f"{root}.2.self_attn",
    }
    mixed = lora_targets(vlm, LoraSettings(layers=(3,), modules=("q_proj", "mlp")))
    assert [name.removeprefix(f"{root}.3.") for name in mixed] == [
        "self_attn.q_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (LoraSettings(layers=(0, 9)), "decoder layer.*9 out of range"),
        (LoraSettings(modules=("qproj",)), "LoRA modules qproj are not in.*q_proj"),
    ],
)
def test_what_the_model_does_not_have_is_named(settings: LoraSettings, words: str) -> None:
    vlm = tiny_vlm("llava")
    with pytest.raises(ConfigError, match=words):
        add_lora(vlm, settings)
    assert vlm.conditions == ()


def test_all_wrong_settings_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"rank=0.*alpha=-1.*layers=\(\).*modules=\(\)"):
        LoraSettings(rank=0, alpha=-1, layers=(), modules=())


# ---- on and off


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_leaves_no_trace(family: str, kind: str) -> None:
    vlm = tiny_vlm(family)
    before = Snapshot(vlm)
    weights, frozen, logits = vlm.weights_sha256, frozen_sha256(vlm), probe_logits(vlm)
    with KINDS[kind](vlm) as adapter:
        assert torch.equal(probe_logits(vlm), logits), "a fresh adapter changes nothing"
        shake(adapter)
        changed = probe_logits(vlm)
        assert not torch.equal(changed, logits)
        with without_adapter(adapter):
            assert torch.equal(probe_logits(vlm), logits)
            assert (vlm.weights_sha256, frozen_sha256(vlm)) == (weights, frozen)
        assert torch.equal(probe_logits(vlm), changed)
        assert vlm.conditions == ("adapter in training",)
        assert (vlm.weights_sha256, frozen_sha256(vlm)) == (weights, frozen)
    assert torch.equal(probe_logits(vlm), logits)
    assert vlm.weights_sha256 == weights
    before.require_same(vlm)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_leaves_no_trace_after_an_error(kind: str) -> None:
    vlm = tiny_vlm("llava")
    before = Snapshot(vlm)

    def fail() -> None:
        with KINDS[kind](vlm) as adapter:
            shake(adapter)
            with without_adapter(adapter):
                raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    before.require_same(vlm)


def test_an_injection_that_fails_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny_vlm("llava")
    before = Snapshot(vlm)
    peft = require("peft", extra="train")
    real = peft.get_peft_model

    def half(*args: object, **kwargs: object) -> None:
        real(*args, **kwargs)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(peft, "get_peft_model", half)
    with pytest.raises(RuntimeError, match="out of memory"):
        add_lora(vlm, SMALL)
    before.require_same(vlm)


def test_the_hash_still_notices_a_write_into_the_weights_below() -> None:
    vlm = tiny_vlm("llava")
    before = vlm.weights_sha256
    with add_lora(vlm, SMALL), torch.no_grad():
        vlm.model.get_submodule(
            f"{vlm.spec.decoder_layers}.0.self_attn.q_proj"
        ).base_layer.weight.mul_(2)
        assert vlm.weights_sha256 != before


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_pass_costs_the_trained_one_nothing(kind: str) -> None:
    """Gradients are the same with and without a pass that has the adapter off before them."""
    vlm = tiny_vlm("llava")
    encoded = vlm.encode(requests(2))
    found: list[list[Tensor]] = []
    for reference in (False, True):
        with KINDS[kind](vlm) as adapter:
            shake(adapter)
            if reference:
                with torch.no_grad(), without_adapter(adapter):
                    vlm.model(**encoded.inputs)
            vlm.model(**encoded.inputs).logits[:, -1].square().mean().backward()
            gradients = [p.grad for p in adapter.parameters.values()]
            assert all(g is not None and bool(g.any()) for g in gradients)
            found.append([g for g in gradients if g is not None])
            others = [p for p in vlm.model.parameters() if not p.requires_grad]
            assert all(p.grad is None for p in others)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_works_with_an_adapter_on(family: str) -> None:
    """Generation, recording, edits and exits see the adapted model."""
    vlm = tiny_vlm(family)
    plain = {layer: x.clone() for layer, x in stream_of(vlm, requests(2)).items()}
    with add_lora(vlm, SMALL) as adapter:
        shake(adapter)
        stream = stream_of(vlm, requests(2))
        recorded = record_layers(vlm, requests(2))
        last = vlm.num_decoder_layers - 1
        assert_close(recorded[last], stream[last][:, -1], FLOAT32_NOISE)
        assert not torch.allclose(stream[last], plain[last], atol=0.1)
        with edit_layers(vlm, {0: torch.zeros_like}, "prompt_last") as report:
            vlm.generate(requests(2), SHORT)
        report.require_all_edited()
        before = probe_logits(vlm)
        with exit_vision_at(vlm, 0):
            assert vlm.conditions == ("adapter in training", "vision exit 0")
            assert not torch.equal(probe_logits(vlm), before)


def test_full_weights_that_cannot_be_copied_leave_no_trace() -> None:
    vlm = tiny_vlm("llava")
    name = next(n for n, _ in vlm.model.named_parameters() if vlm.spec.decoder_layers in n)
    # Numbers that are not there stand for memory that is not.
    nowhere = {name: torch.empty(vlm.model.get_parameter(name).shape, device="meta")}
    with pytest.raises(NotImplementedError):
        FullAdapter(vlm, nowhere, "never on", trains=True)
    assert vlm.conditions == ()


def test_the_seed_decides_the_first_matrices() -> None:
    vlm = tiny_vlm("llava")
    torch.manual_seed(123)
    expected = torch.rand(1)
    torch.manual_seed(123)
    found: list[str] = []
    for seed in (0, 0, 1):
        with add_lora(vlm, SMALL, seed=seed) as adapter:
            found.append(adapter.weights().sha256)
    assert found[0] == found[1] != found[2]
    assert torch.equal(torch.rand(1), expected), "nobody else's numbers are used up"


def test_matrices_train_in_float32_on_bfloat16_weights() -> None:
    vlm = tiny_vlm("llava", dtype=torch.bfloat16)
    with add_lora(vlm, SMALL) as adapter:
        assert {p.dtype for p in adapter.parameters.values()} == {torch.float32}
        shake(adapter)
        require_effect(adapter)


def test_full_weights_train_in_float32_only() -> None:
    with pytest.raises(ConfigError, match="--dtype float32"):
        add_full(tiny_vlm("llava", dtype=torch.bfloat16))


def test_full_weights_are_those_of_the_chosen_decoder_layers() -> None:
    vlm = tiny_vlm("llava")
    with add_full(vlm, (1, 2)) as adapter:
        root = vlm.spec.decoder_layers
        assert {name.split(".layers.")[1].split(".")[0] for name in adapter.parameters} == {
            "1",
            "2",
        }
        assert all(name.startswith(root) for name in adapter.parameters)
        trains = {n for n, p in vlm.model.named_parameters() if p.requires_grad}
        assert trains == set(adapter.parameters)
        assert adapter.weights().tensors == {}, "nothing changed, so nothing is stored"


def test_peft_cannot_put_one_lora_on_another() -> None:
    vlm = tiny_vlm("llava")
    with add_lora(vlm, SMALL):
        with pytest.raises(ModelError, match="has a LoRA adapter on already"):
            add_lora(vlm, SMALL)
        assert vlm.conditions == ("adapter in training",)


def test_lora_trains_on_top_of_merged_weights() -> None:
    """What a re-learning attack does: the reference is then the repaired model."""
    vlm = tiny_vlm("llava")
    weights, plain = vlm.weights_sha256, probe_logits(vlm)
    with add_lora(vlm, SMALL) as first:
        shake(first)
        repaired, dense = probe_logits(vlm), first.dense()
    with FullAdapter(vlm, dense, "merged", trains=False):
        merged = probe_logits(vlm)
        assert_close(merged, repaired, FLOAT32_NOISE)
        with add_lora(vlm, SMALL) as second:
            shake(second, seed=1)
            assert vlm.weights_sha256 == weights
            with without_adapter(second):
                assert torch.equal(probe_logits(vlm), merged)
    assert torch.equal(probe_logits(vlm), plain)
    assert vlm.weights_sha256 == weights


# ---- what stays as it is


def test_the_frozen_hash_covers_all_but_the_decoder_layers() -> None:
    vlm = tiny_vlm("llava")
    before = frozen_sha256(vlm)
    names = [name for name, _ in vlm.model.named_parameters()]
    inside = [n for n in names if n.startswith(vlm.spec.decoder_layers + ".")]
    assert inside
    for name in names:
        parameter = vlm.model.get_parameter(name)
        own = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(1)
            assert (frozen_sha256(vlm) == before) == (name in inside), name
            parameter.copy_(own)
    assert frozen_sha256(vlm) == before


# ---- on disk


def stored(vlm: Vlm, folder: Path, kind: str = "lora") -> tuple[Path, Tensor]:
    """A saved adapter that was moved, and the logits with it."""
    with KINDS[kind](vlm) as adapter:
        shake(adapter)
        logits, weights = probe_logits(vlm), adapter.weights()
    return save_adapter(folder, weights, base_model="tiny"), logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_stored_adapter_is_the_same_to_the_bit(family: str, kind: str, tmp_path: Path) -> None:
    vlm = tiny_vlm(family)
    folder, logits = stored(vlm, tmp_path, kind)
    names = {CONFIG_FILE, LORA_FILE} if kind == "lora" else {FULL_FILE}
    assert {path.name for path in folder.iterdir()} == names
    with put_on(vlm, read_adapter(folder), "adapter") as adapter:
        assert torch.equal(probe_logits(vlm), logits)
        assert adapter.weights().sha256 == read_adapter(folder).sha256
        assert not any(p.requires_grad for p in adapter.parameters.values())


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_peft_loads_the_folder(family: str, tmp_path: Path) -> None:
    folder, logits = stored(tiny_vlm(family), tmp_path)
    other = tiny_vlm(family)
    require("peft", extra="train").PeftModel.from_pretrained(other.model, folder)
    assert torch.equal(probe_logits(other), logits)


def test_an_adapter_that_does_nothing_is_refused(tmp_path: Path) -> None:
    vlm = tiny_vlm("llava")
    before = Snapshot(vlm)
    with add_lora(vlm, SMALL) as adapter:
        save_adapter(tmp_path, adapter.weights(), base_model="tiny")
    with pytest.raises(ArtifactError, match="the adapter does nothing"):
        put_on(vlm, read_adapter(tmp_path), "adapter")
    before.require_same(vlm)


def test_a_probe_sees_adapters_in_layers_that_only_images_reach() -> None:
    vlm = tiny_vlm("mllama")
    with add_lora(vlm, LoraSettings(rank=2, layers=(1,))) as adapter:
        shake(adapter)
        require_effect(adapter)


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / LORA_FILE)
    change(tensors)
    save_file(tensors, folder / LORA_FILE)


def drop_one_matrix(tensors: dict[str, Tensor]) -> None:
    del tensors[next(name for name in tensors if "lora_B" in name)]


def drop_one_module(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if ".0.self_attn.q_proj." in name]:
        del tensors[name]


def reach_the_vision_tower(tensors: dict[str, Tensor]) -> None:
    name = next(iter(tensors))
    tensors[name.replace("language_model", "vision_tower")] = tensors.pop(name)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: edit_tensors(f, drop_one_matrix), "lacks 1 tensors"),
        (lambda f: edit_tensors(f, drop_one_module), "does not fit.*target_modules"),
        (lambda f: edit_tensors(f, reach_the_vision_tower), "does not fit.*target_modules"),
        (lambda f: edit_config(f, use_dora=True), "settings that vlmend does not know: use_dora"),
        (lambda f: edit_config(f, modules_to_save=["lm_head"]), "modules_to_save"),
        (lambda f: edit_config(f, r=4), r"has shape .*, and the model wants .*4"),
        (lambda f: edit_config(f, r="many"), "no LoRA config"),
        (lambda f: (f / CONFIG_FILE).write_text("{", "utf-8"), "no usable config"),
        (lambda f: (f / LORA_FILE).write_bytes(b"x"), "cannot be read"),
        (lambda f: (f / LORA_FILE).unlink(), "cannot be read"),
        (lambda f: (f / CONFIG_FILE).unlink(), "cannot be read.*"),
    ],
)
def test_a_damaged_adapter_is_refused(
    tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    vlm = tiny_vlm("llava")
    folder, _ = stored(vlm, tmp_path)
    before = Snapshot(vlm)
    damage(folder)
    with pytest.raises(ArtifactError, match=words):
        put_on(vlm, read_adapter(folder), "adapter")
    before.require_same(vlm)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_another_architecture_is_refused(kind: str, tmp_path: Path) -> None:
    folder, _ = stored(tiny_vlm("mllama"), tmp_path, kind)
    with pytest.raises(ArtifactError, match="have no place in the decoder layers"):
        put_on(tiny_vlm("llava"), read_adapter(folder), "adapter")


def test_weights_outside_of_the_decoder_layers_are_refused() -> None:
    vlm = tiny_vlm("llava")
    with add_full(vlm) as adapter:
        shake(adapter)
        weights = adapter.weights()
    name = next(n for n, _ in vlm.model.named_parameters() if "vision" in n)
    tensors = {**weights.tensors, name: vlm.model.get_parameter(name).detach() + 1}
    with pytest.raises(ArtifactError, match=f"1 of .* have no place.*{name}"):
        put_on(vlm, type(weights)("full", tensors), "x")


def test_scale_counts_in_the_hash(tmp_path: Path) -> None:
    folder, _ = stored(tiny_vlm("llava"), tmp_path)
    before = read_adapter(folder).sha256
    edit_config(folder, lora_alpha=32.0)
    assert read_adapter(folder).sha256 != before


def test_the_config_names_the_base_and_every_module(tmp_path: Path) -> None:
    vlm = tiny_vlm("llava")
    folder, _ = stored(vlm, tmp_path)
    config = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
    assert config["base_model_name_or_path"] == "tiny"
    assert config["peft_type"] == "LORA"
    assert config["target_modules"] == sorted(lora_targets(vlm, SMALL))


def test_an_adapter_answers_text_and_pictures() -> None:
    vlm = tiny_vlm("llava")
    with add_lora(vlm, SMALL) as adapter:
        shake(adapter)
        first = vlm.generate([user("Hi")], SHORT)[0].token_ids
        both = vlm.generate([user("Hi"), user("How do I bake a cake?")], SHORT)
        assert both[0].token_ids == first
        assert vlm.generate([user("Hi", picture())], SHORT)[0].token_ids != first
