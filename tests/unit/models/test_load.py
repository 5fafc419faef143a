from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, T5Config

from vlmend.errors import ConfigError, ModelError
from vlmend.models import load
from vlmend.models.families import FAMILIES
from vlmend.models.generation import GenerationSettings
from vlmend.models.load import load_vlm
from vlmend.models.processors import image_text_class, uses_pil
from vlmend.testing import TINY_FAMILIES, picture, save_tiny_vlm, tiny_vlm
from vlmend.testing.tiny import NOT_SAVED, STAND_INS
from vlmend.types import user

SHORT = GenerationSettings(max_new_tokens=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_vlm("llava", tmp_path / "model")


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("family", sorted(TINY_FAMILIES))
def test_a_saved_model_comes_back(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_the_pin: bool
) -> None:
    built = tiny_vlm(family)
    built.model.save_pretrained(tmp_path)
    # Processors of some discovered families need torchvision under older transformers.
    if family in NOT_SAVED or (family not in FAMILIES and not at_the_pin):
        monkeypatch.setattr(load, "_load_processor", lambda *_: built.processor)
    else:
        built.processor.save_pretrained(tmp_path)
    loaded = load_vlm(tmp_path)
    assert type(loaded.model) is type(built.model)
    assert loaded.weights_sha256 == built.weights_sha256
    assert uses_pil(loaded.processor.image_processor) or family in STAND_INS
    for prompt in (user("Hi"), user("What is this?", picture())):
        assert loaded.generate([prompt], SHORT) == built.generate([prompt], SHORT)


def test_a_type_without_a_class_is_no_fault_of_the_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "_MODEL_CLASSES", load._MODEL_CLASSES[2:])
    with pytest.raises(ModelError, match=r"'llava', for which transformers .* has no class") as e:
        load_vlm(folder)
    assert "safetensors" not in str(e.value)


def test_a_map_of_ones_own(folder: Path) -> None:
    own = replace(FAMILIES["llava"], title="Mine")
    assert load_vlm(folder, family=own).spec is own
    wrong = replace(own, vision_stacks=("model.language_model.layers",))
    with pytest.raises(ModelError, match=r"map that was given .* does not hold"):
        load_vlm(folder, family=wrong)


def test_what_is_saved_again_is_the_same_model(tmp_path: Path) -> None:
    first = load_vlm(save_tiny_vlm("qwen2_5_vl", tmp_path / "first"))
    first.model.save_pretrained(tmp_path / "second", max_shard_size="100KB")
    first.processor.save_pretrained(tmp_path / "second")
    assert len(list((tmp_path / "second").glob("*.safetensors"))) > 1
    second = load_vlm(tmp_path / "second")
    assert second.weights_sha256 == first.weights_sha256
    assert type(second.processor).__name__ == "Qwen2_5_VLProcessor"


def test_dtype(folder: Path) -> None:
    assert load_vlm(folder).dtype == torch.float32
    assert load_vlm(folder, dtype="bfloat16").dtype == torch.bfloat16
    assert load_vlm(folder, dtype="float16").dtype == torch.float16
    with pytest.raises(
        ConfigError, match=r"unknown dtype 'int8'\. Allowed: auto, float32, bfloat16, float16"
    ):
        load_vlm(folder, dtype="int8")  # pyright: ignore


def test_device(folder: Path) -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert load_vlm(folder, device="auto").device.type == expected
    with pytest.raises(ConfigError, match="unknown device 'tpuu'"):
        load_vlm(folder, device="tpuu")


def test_a_gpu_that_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="sees no GPU"):
        load_vlm(folder, device="cuda")


def test_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_vlm("~/model").num_decoder_layers == 4


@pytest.mark.parametrize("name", ["./missing", "/no/such/model", "organsim", "a/b/c", "", " "])
def test_no_such_model(name: str) -> None:
    with pytest.raises(ModelError, match=r"unknown model .* no such folder"):
        load_vlm(name)


def test_hub_id_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    # Offline mode fails at once; without it the client retries for half a minute first.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="no connection") as caught:
        load_vlm("nobody/nothing")
    assert "llava_next, mllama" in str(caught.value)


@pytest.mark.parametrize("family", ["blip-2", "instructblip"])
def test_models_that_encode_prompts_apart_are_refused(family: str, tmp_path: Path) -> None:
    folder = save_tiny_vlm(family, tmp_path / "model")
    change_config(folder, text_config=T5Config().to_dict())
    with pytest.raises(ModelError, match="encodes prompts apart from its answers, with 't5'"):
        load_vlm(folder)


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_vlm(tmp_path)


def test_broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json cannot be used"):
        load_vlm(folder)


def test_model_type_that_transformers_does_not_know(folder: Path) -> None:
    change_config(folder, model_type="lava")
    with pytest.raises(ModelError, match=r"Known families: .*llava, llava_next"):
        load_vlm(folder)


def test_text_only_model(tmp_path: Path) -> None:
    config = LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, vocab_size=8,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="model_type 'llama': no vision-language model"):
        load_vlm(tmp_path)


def test_missing_weights_file(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot load the weights"):
        load_vlm(folder)


def test_pickled_weights_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot load the weights"):
        load_vlm(folder)


def test_damaged_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(ModelError, match="cannot load the weights"):
        load_vlm(folder)


def test_incomplete_weights_are_not_filled_with_noise(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    # Saved names may carry the prefixes of older transformers versions.
    del weights[next(name for name in weights if name.endswith("lm_head.weight"))]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"incomplete \(missing_keys: lm_head\.weight\)"):
        load_vlm(folder)


def test_config_that_does_not_fit_the_weights(folder: Path) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    change_config(folder, text_config={**text, "num_hidden_layers": 5})
    with pytest.raises(ModelError, match="incomplete"):
        load_vlm(folder)
    change_config(folder, text_config={**text, "vocab_size": 300})
    with pytest.raises(ModelError, match="weights of"):
        load_vlm(folder)


def test_missing_processor(folder: Path) -> None:
    (folder / "processor_config.json").unlink()
    with pytest.raises(ModelError, match="cannot load the processor"):
        load_vlm(folder)


def test_cheap_checks_run(folder: Path) -> None:
    change_config(folder, vision_feature_layer=0)
    with pytest.raises(ModelError, match=r"the default exit is an exit.*hidden state 0"):
        load_vlm(folder)


def test_another_image_back_end_is_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with torchvision installed, when transformers chooses it by default."""
    seen: list[bool] = []

    def other_first(image_processor: Any) -> bool:
        seen.append(uses_pil(image_processor))
        return False

    monkeypatch.setattr(load, "uses_pil", other_first)
    vlm = load_vlm(folder)
    assert seen == [True]
    assert uses_pil(vlm.processor.image_processor)


def test_only_the_video_part_of_a_processor_is_left_out() -> None:
    class WithVideo:
        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer", "video_processor"]

    class WithoutVideo(WithVideo):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

    reduced = image_text_class(WithVideo)
    assert reduced.get_attributes() == ["image_processor", "tokenizer"]
    assert reduced.__name__ == "WithVideo"
    assert image_text_class(WithVideo) is reduced
    assert image_text_class(WithoutVideo) is WithoutVideo
