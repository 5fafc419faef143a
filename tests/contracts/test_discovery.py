"""Families that no file describes: discovered, proven or refused, and remembered.

The model here is of a class that exists nowhere else. Its names lie: the decoder is called
`eyes` and its layers `vision_blocks`, the encoder `language_model`, the projector `lm_head`, the
unembedding `projector`. Encoder and decoder have the same width, the encoder is the deeper one,
and a list called `layers` runs on every word without being the decoder's.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from shown_map import map_in
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    GenerationMixin,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionConfig,
)
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer, SiglipVisionEmbeddings

from vlmend.errors import ConfigError, ModelError
from vlmend.hooks.prove import prove_given, prove_spec
from vlmend.models import proven
from vlmend.models.spec import FamilySpec
from vlmend.models.vlm import Vlm
from vlmend.testing import TINY_FAMILIES, run_contract
from vlmend.testing.tiny.parts import WIDTH, llama_config, siglip_config, spread_weights
from vlmend.types import user

VISION_BLOCKS = 7
DECODER_LAYERS = 4
MANY_LAYERS = 12
"""Enough for the contract to edit some of them only."""

DISTINCT = "layers and blocks are modules of their own"
CAUSAL = "an edit changes its layer and later ones alone"
HANDOVER = "each layer is given what the one before it returned"
LIVE = "every vision block changes what comes after"
IN_ORDER = "an exit runs no block that it skips"


class UnseenConfig(PreTrainedConfig):
    """Parts of two published configs."""

    model_type = "unseen"
    has_no_defaults_at_init = True

    def __init__(self, text_config: Any = None, vision_config: Any = None, **rest: Any) -> None:
        self.text_config = text_config
        self.vision_config = vision_config
        super().__init__(**rest)


class Run:
    """A list of blocks, and the order in which they run; `dead` ones run for nothing."""

    def __init__(self, count: int) -> None:
        self.order = list(range(count))
        self.dead: int | None = None

    def through(self, blocks: nn.ModuleList, states: Tensor, **facts: Any) -> Tensor:
        for number in self.order:
            made = blocks[number](states, **facts)
            states = states if number == self.dead else made
        return states


class LanguageModel(nn.Module):
    """The encoder of pictures."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        self.embed_tokens = SiglipVisionEmbeddings(config)
        count = config.num_hidden_layers
        self.layers = nn.ModuleList(SiglipEncoderLayer(config) for _ in range(count))
        self.norm = nn.LayerNorm(WIDTH)
        self.run = Run(count)

    def forward(self, pixel_values: Tensor) -> Tensor:
        states = self.embed_tokens(pixel_values)
        return self.norm(self.run.through(self.layers, states, attention_mask=None))


class Eyes(nn.Module):
    """The decoder."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        count = config.num_hidden_layers
        self.patch_embedding = nn.Embedding(config.vocab_size, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(5))
        self.positions = LlamaRotaryEmbedding(config)
        self.vision_blocks = nn.ModuleList(LlamaDecoderLayer(config, n) for n in range(count))
        self.merger = LlamaRMSNorm(WIDTH)
        self.run = Run(count)

    def embed(self, ids: Tensor) -> Tensor:
        states = self.patch_embedding(ids)
        for layer in self.layers:
            states = torch.tanh(layer(states))
        return states

    def forward(
        self,
        states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
    ) -> Tensor:
        if position_ids is None:
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(past, past + states.shape[1])[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=states,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        states = self.run.through(
            self.vision_blocks,
            states,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            position_embeddings=self.positions(states, position_ids=position_ids),
        )
        return self.merger(states)


class Unseen(PreTrainedModel, GenerationMixin):
    """Counts its passes."""

    config_class = UnseenConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.language_model = LanguageModel(config.vision_config)
        self.lm_head = nn.Linear(WIDTH, WIDTH)
        self.eyes = Eyes(config.text_config)
        self.projector = nn.Linear(WIDTH, config.text_config.vocab_size, bias=False)
        self.passes = 0
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.eyes.patch_embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.projector

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        self.passes += 1
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config.text_config)
        states = self.eyes.embed(input_ids)
        seen = input_ids == self.config.image_token_id
        if pixel_values is not None and bool(seen.any()):
            pictures = self.lm_head(self.language_model(pixel_values))
            states = states.masked_scatter(seen[..., None], pictures)
        states = self.eyes(
            states,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
        )
        logits = self.projector(states)
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of proven maps."""
    monkeypatch.setenv(proven.CACHE_VARIABLE, str(tmp_path))
    return tmp_path


def build_unseen(decoder_layers: int = DECODER_LAYERS) -> tuple[Unseen, Any]:
    """The model and a genuine processor, of a family that hands pictures over the same way."""
    torch.manual_seed(0)
    _, processor = importlib.import_module(TINY_FAMILIES["llava"]).BUILDERS["llava"]()
    vision = siglip_config()
    vision.num_hidden_layers = VISION_BLOCKS
    text = llama_config(len(processor.tokenizer))
    text.num_hidden_layers = decoder_layers
    for part in (text, vision):
        part._attn_implementation = "sdpa"  # parts that are built alone have none
    tokens = {
        "image_token_id": processor.tokenizer.get_vocab()["<image>"],
        "eos_token_id": processor.tokenizer.eos_token_id,
    }
    model = Unseen(UnseenConfig(text_config=text, vision_config=vision, **tokens))
    spread_weights(model)
    return model.eval(), processor


def prove(model: Unseen, processor: Any) -> FamilySpec:
    return prove_spec(model, processor, "unseen")


# ---- a family that nobody has seen


def test_a_family_that_nobody_has_seen_is_discovered_and_proven() -> None:
    model, processor = build_unseen()
    spec = prove(model, processor)
    assert spec.decoder_layers == "eyes.vision_blocks"
    assert spec.final_norm == "eyes.merger"
    assert spec.lm_head == "projector"
    assert spec.vision_stacks == ("language_model.layers",)
    assert spec.projector == "lm_head"
    assert spec.decoder_layer_count == "text_config.num_hidden_layers"
    assert spec.vision_block_counts == ("vision_config.num_hidden_layers",)
    assert not spec.no_exits
    vlm = Vlm(model, processor, name="unseen", spec=spec)
    assert (vlm.num_vision_blocks, vlm.num_decoder_layers) == (VISION_BLOCKS, DECODER_LAYERS)
    assert vlm.default_exit == VISION_BLOCKS
    results = [r for images in (True, False) for r in run_contract(vlm, images=images)]
    assert all(result.passed for result in results)
    assert vlm.generate([user("What is this?")])[0].new_tokens > 0


# ---- broken decoders are refused


def share_a_layer(model: Unseen) -> None:
    model.eyes.vision_blocks[2] = model.eyes.vision_blocks[0]


def disorder_the_layers(model: Unseen) -> None:
    order = model.eyes.run.order
    first = len(order) // 4
    order[first], order[first + 1] = first + 1, first


def bypass_a_layer(model: Unseen) -> None:
    model.eyes.run.dead = len(model.eyes.vision_blocks) // 4


BROKEN_DECODERS: dict[tuple[str, int], tuple[Callable[[Unseen], None], str, str]] = {
    ("shared", DECODER_LAYERS): (
        share_a_layer, DISTINCT, "decoder layer 2 is the same module as another one",
    ),
    ("shared", MANY_LAYERS): (
        share_a_layer, DISTINCT, "decoder layer 2 is the same module as another one",
    ),
    ("disordered", DECODER_LAYERS): (
        disorder_the_layers, CAUSAL, "an edit at layer 1 moved layers [1, 3]",
    ),
    ("disordered", MANY_LAYERS): (
        disorder_the_layers, HANDOVER, "layer 3 runs behind layer 4",
    ),
    ("dead", DECODER_LAYERS): (
        bypass_a_layer, CAUSAL, "an edit at layer 1 moved layers [1]",
    ),
    ("dead", MANY_LAYERS): (
        bypass_a_layer, HANDOVER, "layer 4 is not given what layer 3 returned",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "layers"), BROKEN_DECODERS)
def test_a_broken_decoder_is_refused_with_the_clause_it_breaks(
    kind: str, layers: int, cache: Path
) -> None:
    damage, clause, evidence = BROKEN_DECODERS[kind, layers]
    model, processor = build_unseen(layers)
    damage(model)
    with pytest.raises(ModelError) as caught:
        prove(model, processor)
    text = str(caught.value)
    assert clause in text
    assert evidence in text
    # The map to start from, with what was found of the encoder.
    shown = map_in(text)
    assert shown.decoder_layers == "eyes.vision_blocks"
    assert shown.vision_stacks == ("language_model.layers",)
    assert not shown.no_exits
    assert not list(cache.rglob("*.json"))


class NeedsPictures(Unseen):
    """Refuses words alone, as captioning models do."""

    def forward(self, *given: Any, **named: Any) -> Any:
        if named.get("pixel_values") is None:
            raise ValueError("You have to specify pixel_values")
        return super().forward(*given, **named)


def test_a_model_that_refuses_words_alone_is_refused() -> None:
    model, processor = build_unseen()
    model.__class__ = NeedsPictures
    said = r"words alone .ValueError: You have to specify pixel_va"
    with pytest.raises(ModelError, match=said) as caught:
        prove(model, processor)
    assert map_in(str(caught.value)).lm_head == "projector"


def test_a_model_without_an_unembedding_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = build_unseen()
    monkeypatch.setattr(Unseen, "get_output_embeddings", lambda _: None)
    with pytest.raises(ModelError, match="no unembedding of one matrix") as caught:
        prove(model, processor)
    assert map_in(str(caught.value)).model_type == "unseen"


# ---- a map of one's own


def test_a_map_of_ones_own_is_proven_like_any_other(cache: Path) -> None:
    model, processor = build_unseen()
    own = replace(FAMILY, image_only_layers=None)
    assert prove_given(model, processor, "unseen", own) is own
    assert model.passes > 20
    assert not list(cache.rglob("*.json"))
    with pytest.raises(ModelError, match=r"does not hold\. Failed: each layer is given what"):
        prove_given(model, processor, "unseen", replace(own, decoder_layers="eyes.layers"))


def test_a_map_of_another_type_is_refused() -> None:
    model, processor = build_unseen()
    with pytest.raises(ConfigError, match="the map of 'seen' was given for 'unseen'"):
        prove_given(model, processor, "unseen", replace(FAMILY, model_type="seen"))


# ---- broken encoders cost the exits, and nothing else


def share_a_block(model: Unseen) -> None:
    model.language_model.layers[4] = model.language_model.layers[1]


def disorder_the_blocks(model: Unseen) -> None:
    model.language_model.run.order = [0, 1, 3, 2, 4, 5, 6]


def bypass_a_block(model: Unseen) -> None:
    model.language_model.run.dead = 3


BROKEN_ENCODERS: dict[str, tuple[Callable[[Unseen], None], str, str]] = {
    "shared": (share_a_block, DISTINCT, "vision block 4 is the same module as another one"),
    "disordered": (disorder_the_blocks, IN_ORDER, "exit 4 runs blocks [0, 1, 3, 2]"),
    "dead": (bypass_a_block, LIVE, "exits 3 and 4 are the same: a block between is dead"),
}


@pytest.mark.parametrize("kind", BROKEN_ENCODERS)
def test_a_broken_encoder_has_no_exits_and_says_why(kind: str) -> None:
    damage, clause, evidence = BROKEN_ENCODERS[kind]
    model, processor = build_unseen()
    damage(model)
    spec = prove(model, processor)
    assert spec.vision_stacks == ()
    assert spec.no_exits.startswith("not proven: ")
    assert clause in spec.no_exits
    assert evidence in spec.no_exits
    vlm = Vlm(model, processor, name="unseen", spec=spec)
    assert all(result.passed for result in run_contract(vlm, images=True))


# ---- what was proven is remembered


FAMILY = FamilySpec(
    model_type="unseen",
    title="Unseen",
    source="a test",
    decoder_layers="eyes.vision_blocks",
    final_norm="eyes.merger",
    lm_head="projector",
    vision_stacks=(),
    projector=None,
    decoder_layer_count=None,
    vision_block_counts=(),
    image_only_layers=(1, 2),
    no_exits="a test",
)


def test_a_second_load_proves_nothing_unless_the_file_is_damaged(cache: Path) -> None:
    model, processor = build_unseen()
    first = prove(model, processor)
    assert model.passes > 20
    second, processor = build_unseen()
    assert prove(second, processor) == first
    assert second.passes == 0
    (path,) = cache.rglob("*.json")
    record = json.loads(path.read_text())
    assert all(clause["passed"] for clause in record["clauses"])
    assert set(record["versions"]) == {"vlmend", "transformers", "torch", "code"}
    path.write_text("{")
    assert prove(second, processor) == first
    assert second.passes == model.passes
    assert json.loads(path.read_text()) == record


def test_a_map_counts_for_its_config_alone() -> None:
    model, _ = build_unseen()
    config = model.config
    proven.remember_spec(config, FAMILY, [])
    assert proven.recall_spec(config) == FAMILY
    config.dtype = torch.bfloat16
    assert proven.recall_spec(config) == FAMILY
    config.text_config.rms_norm_eps = 1e-3
    assert proven.recall_spec(config) is None


def _of_another_version(record: dict[str, Any]) -> str:
    return json.dumps({**record, "versions": {**record["versions"], "transformers": "5.0.0"}})


def _of_another_torch(record: dict[str, Any]) -> str:
    return json.dumps({**record, "versions": {**record["versions"], "torch": "2.6.0"}})


def _of_other_code(record: dict[str, Any]) -> str:
    return json.dumps({**record, "versions": {**record["versions"], "code": "0" * 64}})


def _cut_off(record: dict[str, Any]) -> str:
    return json.dumps(record)[:100]


def _another_document(_: dict[str, Any]) -> str:
    return "[1]"


def _without_map(record: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in record.items() if key != "spec"})


def _map_of_another_kind(record: dict[str, Any]) -> str:
    return json.dumps({**record, "spec": ["eyes.vision_blocks"]})


def _half_a_map(record: dict[str, Any]) -> str:
    return json.dumps({**record, "spec": {"model_type": "unseen"}})


def _map_that_contradicts_itself(record: dict[str, Any]) -> str:
    return json.dumps({**record, "spec": {**record["spec"], "vision_stacks": ["a"]}})


DAMAGES = (
    _of_another_version,
    _of_another_torch,
    _of_other_code,
    _cut_off,
    _another_document,
    _without_map,
    _map_of_another_kind,
    _half_a_map,
    _map_that_contradicts_itself,
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_does_not_count_is_forgotten(
    damage: Callable[[dict[str, Any]], str], cache: Path
) -> None:
    model, _ = build_unseen()
    proven.remember_spec(model.config, FAMILY, [])
    (path,) = cache.rglob("*.json")
    path.write_text(damage(json.loads(path.read_text())))
    assert proven.recall_spec(model.config) is None


@pytest.mark.parametrize("name", ["hooks/edit.py", "models/encode.py", "models/families/llava.py"])
def test_all_code_of_models_and_hooks_counts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Path(proven.__file__).parents[1]
    for folder in ("models", "hooks"):
        shutil.copytree(package / folder, tmp_path / "vlmend" / folder)
    monkeypatch.setattr(proven, "__file__", str(tmp_path / "vlmend/models/proven.py"))
    before = proven._versions.__wrapped__()
    assert before == proven._versions.__wrapped__()
    with (tmp_path / "vlmend" / name).open("a") as file:
        file.write("# changed\n")
    after = proven._versions.__wrapped__()
    assert {key for key in before if before[key] != after[key]} == {"code"}


def test_a_folder_that_cannot_be_written_is_no_error(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache / "file").write_text("")
    monkeypatch.setenv(proven.CACHE_VARIABLE, str(cache / "file"))
    model, _ = build_unseen()
    proven.remember_spec(model.config, FAMILY, [])
    assert proven.recall_spec(model.config) is None
