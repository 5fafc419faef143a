"""The contract fails when something is broken: one classic mistake per clause."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vlmend.hooks import chunks, edit, exits
from vlmend.models import encode
from vlmend.models import vlm as vlm_module
from vlmend.models.families import FAMILIES
from vlmend.models.vlm import Vlm
from vlmend.testing import run_contract, tiny_vlm
from vlmend.types import user


def failed_clauses(vlm: Vlm, **options: Any) -> set[str]:
    return {result.clause for result in run_contract(vlm, **options) if not result.passed}


def test_columns_relative_to_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steering "the last column of this chunk" hits every new token too."""

    def last_of_chunk(*_: Any, length: int, **__: Any) -> tuple[int, int]:
        return length - 1, length

    monkeypatch.setattr(chunks, "columns_in_chunk", last_of_chunk)
    assert "cache on equals cache off at every position" in failed_clauses(
        tiny_vlm("llava"), images=False
    )


def test_a_past_that_is_not_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the cache's length a decode step looks like the start of the prompt."""
    real = chunks.columns_in_chunk
    monkeypatch.setattr(
        chunks, "columns_in_chunk", lambda position, **facts: real(position, **{**facts, "past": 0})
    )
    assert "cache on equals cache off at every position" in failed_clauses(
        tiny_vlm("llava"), images=False
    )


def test_recording_after_the_norm() -> None:
    """The last entry of transformers' `hidden_states` is such a recording."""
    vlm = tiny_vlm("llava")
    vlm.decoder_layers = (*vlm.decoder_layers[:-1], vlm.final_norm)
    assert "the last layer, normed and unembedded, gives the logits" in failed_clauses(
        vlm, images=False
    )


def test_layers_of_the_wrong_stack() -> None:
    """A guess by depth or name takes the vision blocks for the decoder."""
    spec = replace(FAMILIES["llava"], decoder_layers="model.vision_tower.encoder.layers")
    tiny = tiny_vlm("llava")
    wrong = Vlm(tiny.model, tiny.processor, name="wrong", spec=spec)
    failed = failed_clauses(wrong, images=False)
    assert "decoder has the layers its config says" in failed
    assert "recording returns the layers that run" in failed


def test_layers_in_the_wrong_order() -> None:
    vlm = tiny_vlm("llava")
    vlm.decoder_layers = vlm.decoder_layers[::-1]
    failed = failed_clauses(vlm, images=False)
    assert "an edit changes its layer and later ones alone" in failed


HANDOVER = "each layer is given what the one before it returned"
PIXELS = "other pixels change the columns of pictures alone"


def test_a_layer_that_returns_what_it_is_given() -> None:
    vlm = tiny_vlm("llava")
    layer: Any = vlm.decoder_layers[2]
    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    assert failed_clauses(vlm, images=False) == {HANDOVER}


def test_pictures_added_behind_layers_that_the_map_does_not_name() -> None:
    vlm = tiny_vlm("qwen3_vl")
    vlm.spec = replace(vlm.spec, changed_after=(0,))
    assert failed_clauses(vlm) == {HANDOVER}
    assert not failed_clauses(vlm, images=False)


def test_the_token_of_a_picture_mistaken_for_another_one() -> None:
    vlm = tiny_vlm("llava")
    vlm.picture_ids = (vlm.tokenizer.bos_token_id,)
    assert failed_clauses(vlm) == {PIXELS}


def test_a_picture_with_columns_that_never_change() -> None:
    vlm = tiny_vlm("llava_next")
    vlm.spec = replace(vlm.spec, picture_columns="all")
    assert failed_clauses(vlm) == {PIXELS}


def test_pictures_that_are_not_seen() -> None:
    vlm = tiny_vlm("mllama")

    def show_nothing(_module: Any, args: Any, kwargs: Any) -> Any:
        states = kwargs["cross_attention_states"]
        if states is None:  # behind a cache
            return None
        return args, {**kwargs, "cross_attention_states": torch.ones_like(states)}

    handle = vlm.decoder.register_forward_pre_hook(show_nothing, with_kwargs=True)
    assert PIXELS in failed_clauses(vlm)
    handle.remove()
    assert not failed_clauses(vlm)


def test_undeclared_image_only_layers() -> None:
    vlm = tiny_vlm("mllama")
    vlm.image_only_layers = frozenset()
    failed = failed_clauses(vlm, images=False)
    assert "recording returns the layers that run" in failed


def test_an_edit_that_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    rounding = SimpleNamespace(cat=lambda *args, **options: torch.cat(*args, **options) * 1.001)
    monkeypatch.setattr(edit, "torch", rounding)
    assert "a zero edit is bit-identical" in failed_clauses(tiny_vlm("llava"), images=False)


def test_a_hook_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(chunks.ExitStack):
        def callback(self, *_: Any, **__: Any) -> Any:
            return None

    monkeypatch.setattr(chunks, "ExitStack", Forgetful)
    assert "no hook is left behind" in failed_clauses(tiny_vlm("llava"), images=False)


def test_a_forward_left_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def patch_and_forget(module: Any, forward: Any) -> Generator[None]:
        module.forward = forward
        yield

    monkeypatch.setattr(exits, "patched_forward", patch_and_forget)
    assert "no hook is left behind" in failed_clauses(tiny_vlm("llava"), images=True)


def test_padding_that_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = encode.encode_conversations

    def without_mask(*args: Any, **options: Any) -> Any:
        encoded = real(*args, **options)
        ones = torch.ones_like(encoded.attention_mask)
        return replace(encoded, inputs={**encoded.inputs, "attention_mask": ones})

    monkeypatch.setattr(vlm_module, "encode_conversations", without_mask)
    assert "a left-padded batch equals one by one" in failed_clauses(
        tiny_vlm("llava"), images=False
    )


def test_equally_long_prompts_prove_nothing_about_padding() -> None:
    prompts = [user("abc"), user("xyz")]
    failed = failed_clauses(tiny_vlm("llava"), images=False, conversations=prompts)
    assert failed == {"a left-padded batch equals one by one"}


@pytest.mark.parametrize("off_by", [-1, 1])
def test_exits_off_by_one(monkeypatch: pytest.MonkeyPatch, off_by: int) -> None:
    real = exits.skipped_blocks

    def shifted(sizes: tuple[int, ...], exit_layer: int) -> range:
        skipped = real(sizes, exit_layer)
        return range(max(skipped.start + off_by, 0), skipped.stop)

    monkeypatch.setattr(exits, "skipped_blocks", shifted)
    assert "an exit runs no block that it skips" in failed_clauses(tiny_vlm("qwen2_5_vl"))


def test_a_replay_of_blocks_behind_a_cut_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serving the recorded global stack below a cut local one would be stale."""
    monkeypatch.setattr(exits.VisionReplay, "_reads_cut_stack", lambda *_: False)
    assert "one run of the blocks serves every exit" in failed_clauses(tiny_vlm("mllama"))


def test_a_replay_that_runs_the_encoder_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exits, "_same", lambda *_: False)
    assert "one run of the blocks serves every exit" in failed_clauses(tiny_vlm("llava"))
