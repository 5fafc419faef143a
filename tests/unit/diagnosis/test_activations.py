"""Activations are those of an independent reader; what is stored is not run again, nor lost.

Shapes: N = items, D = width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from mild_samples import request, stream_of
from safetensors import safe_open

from vlmend.diagnosis import activations, shards
from vlmend.diagnosis.activations import (
    Captured,
    Item,
    capture_activations,
    capture_exits,
    read_activations,
)
from vlmend.diagnosis.shards import ActivationStore
from vlmend.errors import ConfigError, DataError, ModelError, RunError, VlmendError
from vlmend.hooks.edit import edit_layers
from vlmend.hooks.exits import exit_vision_at
from vlmend.hooks.record import record_layers
from vlmend.models.vlm import Vlm
from vlmend.testing import FLOAT32_NOISE, assert_close, picture, tiny_vlm
from vlmend.types import Conversation, user

ALL = [0, 1, 2, 3]


@pytest.fixture(scope="module")
def llava() -> Vlm:
    return tiny_vlm("llava")


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    return ActivationStore(tmp_path / "acts")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batch sizes of the forward passes made by captures."""
    sizes: list[int] = []

    def counting(vlm: Vlm, prompts: Sequence[Conversation]) -> Any:
        sizes.append(len(prompts))
        return record_layers(vlm, prompts)

    monkeypatch.setattr(activations, "record_layers", counting)
    return sizes


def item(index: int, conversation: Conversation | None = None, **facts: Any) -> Item:
    return Item(
        item_id=f"i{index}",
        suite="mild",
        label="unsafe" if index % 2 else "safe",
        group=f"thing {index // 2}",
        conversation=conversation or request(index),
        **facts,
    )


def items(count: int = 5) -> list[Item]:
    return [item(index) for index in range(count)]


def mixed() -> list[Item]:
    asked = (user("Hi"), request(1), user("Compare.", picture(5), picture(6)), user("Sing of tea."))
    return [item(index, conversation) for index, conversation in enumerate(asked)]


def index_of(store: ActivationStore) -> list[dict[str, Any]]:
    return pq.ParquetFile(store.path / "index.parquet").read().to_pylist()


def shards_of(store: ActivationStore) -> list[str]:
    return sorted(path.name for path in store.path.glob("activations-*"))


# ---- what is stored is right


@pytest.mark.parametrize("family", ["llava", "mllama", "qwen2_5_vl"])
def test_rows_are_what_an_independent_reader_sees(family: str, store: ActivationStore) -> None:
    vlm = tiny_vlm(family)
    given = mixed()
    done = capture_activations(vlm, given, store, variant="mixed", batch_size=2)
    assert done == Captured(ran=4, reused=0)
    found = read_activations(store, variant="mixed", items=given)
    everything = set(range(vlm.num_decoder_layers))
    assert set(found.acts) == everything - vlm.image_only_layers
    assert set(found.partial_layers) == vlm.image_only_layers
    for row, one in enumerate(given):
        stream = stream_of(vlm, [one.conversation])
        for layer, acts_ND in found.acts.items():
            assert acts_ND.dtype == np.float32
            assert_close(torch.from_numpy(acts_ND[row]), stream[layer][0, -1], FLOAT32_NOISE)


def test_layers_that_do_not_run_on_text_are_missing(store: ActivationStore) -> None:
    vlm = tiny_vlm("mllama")
    capture_activations(vlm, [item(0, user("Hi")), item(1, user("Tea?"))], store, variant="text")
    capture_activations(vlm, items(2), store, variant="vision-language")
    assert read_activations(store, variant="text").layers == (0, 2, 3, 5)
    assert read_activations(store, variant="text", layers=[1, 2]).layers == (2,)
    assert read_activations(store, variant="vision-language").layers == (0, 1, 2, 3, 4, 5)
    assert read_activations(store, variant="text").partial_layers == ()


def test_others_read_it_with_pyarrow_and_safetensors(llava: Vlm, store: ActivationStore) -> None:
    given = items()
    capture_activations(llava, given, store, variant="vision-language", batch_size=2)
    expected = {one.item_id: record_layers(llava, [one.conversation]) for one in given}
    rows = index_of(store)
    assert len(rows) == len(given) * llava.num_decoder_layers
    for row in rows:
        with safe_open(store.path / row["shard"], "np") as file:
            acts_D = file.get_tensor(row["tensor"])[row["row"]]
        assert row["tensor"] == f"vision-language/{row['layer']}"
        assert acts_D.shape == (row["width"],) == (llava.hidden_size,)
        assert str(acts_D.dtype) == row["dtype"] == "float32"
        state = expected[row["item_id"]][row["layer"]][0]
        assert_close(torch.from_numpy(acts_D), state, FLOAT32_NOISE)
        assert row["weights_sha256"] == llava.weights_sha256
        assert (row["position"], row["exit"], row["model"]) == ("prompt_last", None, llava.name)
    first = {row["item_id"]: row for row in rows}
    for one in given:
        assert (first[one.item_id]["label"], first[one.item_id]["group"]) == (one.label, one.group)


def test_order_labels_and_groups_go_together(llava: Vlm, store: ActivationStore) -> None:
    given = items()
    capture_activations(llava, given, store, variant="v", batch_size=2)
    by_id = read_activations(store, variant="v")
    assert by_id.item_ids == ("i0", "i1", "i2", "i3", "i4")
    assert by_id.unsafe.tolist() == [False, True, False, True, False]
    assert by_id.groups == ("thing 0", "thing 0", "thing 1", "thing 1", "thing 2")
    chosen = read_activations(store, variant="v", items=[given[3], given[0]], layers=[2])
    assert (chosen.item_ids, chosen.labels, chosen.layers) == (
        ("i3", "i0"),
        ("unsafe", "safe"),
        (2,),
    )
    assert np.array_equal(chosen.acts[2], by_id.acts[2][[3, 0]])


def test_the_hash_changes_with_numbers_labels_and_groups(
    llava: Vlm, store: ActivationStore
) -> None:
    capture_activations(llava, items(3), store, variant="v")
    found = read_activations(store, variant="v")
    assert read_activations(store, variant="v").sha256 == found.sha256
    moved = {layer: acts_ND + np.float32(layer == 1) for layer, acts_ND in found.acts.items()}
    others = [
        replace(found, acts=moved),
        replace(found, labels=("unsafe",) * 3),
        replace(found, groups=("a", "b", "c")),
        replace(found, acts={0: found.acts[0]}),
    ]
    assert len({found.sha256, *(other.sha256 for other in others)}) == 5


def test_the_models_own_dtype_on_request(tmp_path: Path) -> None:
    vlm = tiny_vlm("llava", dtype=torch.bfloat16)
    whole, own = ActivationStore(tmp_path / "a"), ActivationStore(tmp_path / "b", dtype="model")
    for store in (whole, own):
        capture_activations(vlm, items(2), store, variant="v")
    assert {row["dtype"] for row in index_of(whole)} == {"float32"}
    assert {row["dtype"] for row in index_of(own)} == {"bfloat16"}
    found = read_activations(own, variant="v")
    assert found.acts[0].dtype == np.float32
    assert np.array_equal(found.acts[3], read_activations(whole, variant="v").acts[3])


def test_nothing_but_the_last_token_is_kept(llava: Vlm, store: ActivationStore) -> None:
    kept: list[int] = []
    for words in (1, 30):
        with store.writing() as writer:
            given = [item(words, user("tea " * words))]
            entries = activations._make_entries(llava, given, "v", (None,), None)
            activations._capture_batch(llava, given, entries, [0], writer, None)
            ((_, layers, acts_LD),) = writer._waiting
            kept.append(acts_LD.untyped_storage().nbytes())
            assert layers == (0, 1, 2, 3)
    assert kept == [4 * llava.num_decoder_layers * llava.hidden_size] * 2


# ---- nothing is run twice


def test_what_is_stored_is_not_run_again(
    llava: Vlm, store: ActivationStore, asked: list[int]
) -> None:
    told: list[tuple[str, int, int]] = []

    def capture(count: int) -> Captured:
        return capture_activations(
            llava, items(count), store, variant="v", progress=lambda *a: told.append(a)
        )

    assert capture(3) == Captured(ran=3, reused=0)
    assert (store.path / "index.parquet").exists()
    before = (store.path / "index.parquet").stat().st_mtime_ns
    assert capture(3) == Captured(ran=0, reused=3)
    assert (store.path / "index.parquet").stat().st_mtime_ns == before
    assert capture(5) == Captured(ran=2, reused=3)
    assert asked == [3, 2]
    assert len(index_of(store)) == 5 * llava.num_decoder_layers
    what = "activations of v"
    assert told == [(what, 0, 3), (what, 3, 3), (what, 3, 3), (what, 3, 5), (what, 5, 5)]


def test_equal_prompts_are_run_once_and_stored_once(
    llava: Vlm, store: ActivationStore, asked: list[int]
) -> None:
    same = [item(index, user("Hi")) for index in range(3)]
    assert capture_activations(llava, same, store, variant="a") == Captured(ran=1, reused=2)
    assert capture_activations(llava, same, store, variant="b") == Captured(ran=0, reused=3)
    assert asked == [1]
    assert shards_of(store) == ["activations-00000.safetensors"]
    a, b = (read_activations(store, variant=name) for name in "ab")
    assert a.item_ids == b.item_ids == ("i0", "i1", "i2")
    assert np.array_equal(a.acts[3], b.acts[3])
    assert np.array_equal(a.acts[3][0], a.acts[3][2])


def test_a_new_label_or_group_takes_the_place_of_the_old(
    llava: Vlm, store: ActivationStore, asked: list[int]
) -> None:
    given = items(3)
    capture_activations(llava, given, store, variant="v")
    given[0] = replace(given[0], label="unsafe", group="elsewhere")
    assert capture_activations(llava, given, store, variant="v") == Captured(ran=0, reused=3)
    found = read_activations(store, variant="v")
    assert found.labels == ("unsafe", "unsafe", "safe")
    assert found.groups == ("elsewhere", "thing 0", "thing 1")
    assert len(index_of(store)) == 3 * llava.num_decoder_layers


def test_a_changed_prompt_takes_the_place_of_the_old(
    llava: Vlm, store: ActivationStore, asked: list[int]
) -> None:
    capture_activations(llava, items(2), store, variant="v")
    old = read_activations(store, variant="v")
    changed = [item(0, request(7)), item(1)]
    assert capture_activations(llava, changed, store, variant="v") == Captured(ran=1, reused=1)
    new = read_activations(store, variant="v")
    expected = stream_of(llava, [request(7)])[3][0, -1]
    assert_close(torch.from_numpy(new.acts[3][0]), expected, FLOAT32_NOISE)
    assert np.array_equal(new.acts[3][1], old.acts[3][1])
    assert asked == [2, 1]


def test_other_weights_are_another_model(store: ActivationStore) -> None:
    vlms = [tiny_vlm("llava"), tiny_vlm("llava", seed=1)]
    for vlm in vlms:
        assert capture_activations(vlm, items(2), store, variant="v") == Captured(2, 0)
    with pytest.raises(DataError, match=r"of 2 models.*weights_sha256"):
        read_activations(store, variant="v")
    for vlm in vlms:
        found = read_activations(store, variant="v", weights_sha256=vlm.weights_sha256)
        assert found.weights_sha256 == vlm.weights_sha256
        expected = record_layers(vlm, [request(0)])[2][0]
        assert_close(torch.from_numpy(found.acts[2][0]), expected, FLOAT32_NOISE)
    with pytest.raises(DataError, match=r"no activations of 'v'.*of weights ab.*Stored: 'v'"):
        read_activations(store, variant="v", weights_sha256="ab")


# ---- exits


def test_exits_are_those_of_the_model_at_that_exit(llava: Vlm, store: ActivationStore) -> None:
    given = items(3)
    assert capture_exits(llava, given, store, variant="v", exits=(None, 0, 2)) == Captured(9, 0)
    assert llava.conditions == ()
    for exit_layer in (0, 2):
        with exit_vision_at(llava, exit_layer):
            expected = record_layers(llava, [one.conversation for one in given])
        found = read_activations(store, variant="v", exit=exit_layer)
        for layer in ALL:
            assert_close(torch.from_numpy(found.acts[layer]), expected[layer], FLOAT32_NOISE)
    plain = read_activations(store, variant="v")
    assert not np.allclose(plain.acts[3], read_activations(store, variant="v", exit=0).acts[3])
    names = {row["tensor"] for row in index_of(store) if row["layer"] == 1}
    assert names == {"v/1", "v@exit0/1", "v@exit2/1"}


def test_one_exit_at_a_time_is_the_same_and_is_known(
    llava: Vlm, store: ActivationStore, asked: list[int]
) -> None:
    capture_activations(llava, items(2), store, variant="v", exit=2)
    assert capture_exits(llava, items(2), store, variant="v", exits=(0, 2)) == Captured(2, 2)
    assert asked == [2, 2]
    with exit_vision_at(llava, 2):
        # Equal content, under another name.
        again = capture_activations(llava, items(2), store, variant="in a context")
    assert again == Captured(ran=0, reused=2)


def test_exits_share_one_run_of_the_vision_blocks(llava: Vlm, store: ActivationStore) -> None:
    runs: list[list[int]] = []

    class Counting(activations.VisionReplay):
        def __exit__(self, *error: Any) -> None:
            runs.append(self.block_runs)
            super().__exit__(*error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations, "VisionReplay", Counting)
        capture_exits(llava, items(4), store, variant="v", exits=range(7), batch_size=2)
    # Two batches; the last of six blocks feeds nothing that the projector reads, but runs.
    assert runs == [[2] * llava.num_vision_blocks]


# ---- crashes


def test_an_interrupted_capture_goes_on(
    llava: Vlm, store: ActivationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def interrupted(vlm: Vlm, prompts: Sequence[Conversation]) -> Any:
        sizes.append(len(prompts))
        if len(sizes) == 3:
            raise KeyboardInterrupt
        return record_layers(vlm, prompts)

    monkeypatch.setattr(activations, "record_layers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        capture_activations(llava, items(6), store, variant="v", batch_size=2)
    assert len(index_of(store)) == 4 * llava.num_decoder_layers
    assert capture_activations(llava, items(6), store, variant="v") == Captured(ran=2, reused=4)
    assert sizes == [2, 2, 2, 2]
    rows = [(row["item_id"], row["layer"]) for row in index_of(store)]
    assert len(rows) == len(set(rows)) == 6 * llava.num_decoder_layers
    expected = record_layers(llava, [one.conversation for one in items(6)])
    found = read_activations(store, variant="v")
    assert_close(torch.from_numpy(found.acts[3]), expected[3], FLOAT32_NOISE)


def test_a_shard_that_the_index_did_not_get_to_name_is_overwritten(
    llava: Vlm, store: ActivationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture_activations(llava, items(1), store, variant="v")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shards.ShardWriter, "_write_index", die)
        with pytest.raises(KeyboardInterrupt):
            capture_activations(llava, items(3)[1:], store, variant="v")
    names = ["activations-00000.safetensors", "activations-00001.safetensors"]
    assert shards_of(store) == names
    assert {row["shard"] for row in index_of(store)} == {names[0]}
    (store.path / "activations-00002.safetensors.tmp1").write_bytes(b"half")
    assert capture_activations(llava, items(4), store, variant="v") == Captured(ran=3, reused=1)
    assert shards_of(store) == names
    found = read_activations(store, variant="v")
    expected = record_layers(llava, [one.conversation for one in items(4)])
    assert_close(torch.from_numpy(found.acts[2]), expected[2], FLOAT32_NOISE)


def test_shards_are_limited_and_hold_items_whole(llava: Vlm, tmp_path: Path) -> None:
    size = 4 * llava.num_decoder_layers * llava.hidden_size
    store = ActivationStore(tmp_path, shard_bytes=2 * size + 1)
    capture_activations(llava, items(5), store, variant="v")
    rows = index_of(store)
    assert len(shards_of(store)) == 3
    for name in shards_of(store):
        held = {row["item_id"] for row in rows if row["shard"] == name}
        assert 1 <= len(held) <= 2
        assert len([row for row in rows if row["shard"] == name]) == len(held) * 4
    expected = record_layers(llava, [one.conversation for one in items(5)])
    found = read_activations(store, variant="v").acts[1]
    assert_close(torch.from_numpy(found), expected[1], FLOAT32_NOISE)


def test_a_shard_is_written_after_a_while(llava: Vlm, tmp_path: Path) -> None:
    store = ActivationStore(tmp_path, flush_s=0.0)
    capture_activations(llava, items(4), store, variant="v", batch_size=2)
    assert len(shards_of(store)) == 2


def test_batches_are_halved_when_memory_runs_out(
    llava: Vlm, store: ActivationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(limit: int) -> Callable[..., Any]:
        def record(vlm: Vlm, prompts: Sequence[Conversation]) -> Any:
            if len(prompts) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return record_layers(vlm, prompts)

        return record

    monkeypatch.setattr(activations, "record_layers", small(1))
    exits = (None, 0)
    assert capture_exits(llava, items(4), store, variant="v", exits=exits) == Captured(8, 0)
    assert len(index_of(store)) == 8 * llava.num_decoder_layers
    monkeypatch.setattr(activations, "record_layers", small(0))
    with pytest.raises(RunError, match=r"not enough memory for 'i\d' of 'mild'"):
        capture_activations(llava, items(2), store, variant="w", exit=1)


# ---- what is refused


@pytest.mark.parametrize(
    ("given", "exit_layer", "message"),
    [
        ([], None, "Give at least one"),
        ([item(0), item(1), item(0, user("Hi"))], None, r"1 item.*twice \(mild: i0\)"),
        ([item(0), item(1, user("Hi"))], 1, r"does nothing to 1 item.*mild: i1"),
        ([item(0)], 99, "exit layer 99"),
    ],
)
def test_settings_that_make_no_sense(
    llava: Vlm, store: ActivationStore, given: list[Item], exit_layer: int | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        capture_activations(llava, given, store, variant="v", exit=exit_layer)
    assert not (store.path / "index.parquet").exists()


def test_a_middleware_would_not_apply(llava: Vlm, store: ActivationStore) -> None:
    with (
        llava.using(lambda conversations, settings, call_next: call_next(conversations, settings)),
        pytest.raises(ConfigError, match="under a repair"),
    ):
        capture_activations(llava, items(1), store, variant="v")


def test_numbers_that_are_none_are_refused(llava: Vlm, store: ActivationStore) -> None:
    with (
        edit_layers(llava, {2: lambda x: x * float("inf")}),
        pytest.raises(ModelError, match=r"layer 2 is not finite for 'i0' of 'mild'.*float32"),
    ):
        capture_activations(llava, items(1), store, variant="v")


def test_one_writer_at_a_time(llava: Vlm, store: ActivationStore) -> None:
    with store.writing(), pytest.raises(RunError, match="in use by another vlmend process"):
        capture_activations(llava, items(1), store, variant="v")


def test_reading_says_what_is_there(llava: Vlm, store: ActivationStore) -> None:
    with pytest.raises(DataError, match="Stored: nothing"):
        read_activations(store, variant="v")
    capture_activations(llava, items(1), store, variant="v", exit=1)
    with pytest.raises(DataError, match=r"no activations of 'v' in .*Stored: 'v' at exit 1\."):
        read_activations(store, variant="v")
    with pytest.raises(DataError, match=r"1 of 2 item\(s\).*mild: i1"):
        read_activations(store, variant="v", exit=1, items=items(2))
    with pytest.raises(DataError, match="no items given"):
        read_activations(store, variant="v", exit=1, items=[])


def remove_shard(folder: Path) -> None:
    (folder / "activations-00000.safetensors").unlink()


def cut_shard(folder: Path) -> None:
    path = folder / "activations-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def cut_index(folder: Path) -> None:
    path = folder / "index.parquet"
    path.write_bytes(path.read_bytes()[:-8])


def foreign_index(folder: Path) -> None:
    path = folder / "index.parquet"
    table = pq.ParquetFile(path).read()
    pq.write_table(table.replace_schema_metadata({"format": "other", "version": "7"}), path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_shard, "names activations-00000.safetensors, not there"),
        (cut_shard, "activations-00000.safetensors' is damaged"),
        (cut_index, "cannot read"),
        (foreign_index, "is of format 'other', version '7'"),
    ],
)
def test_damage_is_named_with_the_way_out(
    llava: Vlm, store: ActivationStore, damage: Callable[[Path], None], message: str
) -> None:
    capture_activations(llava, items(2), store, variant="v")
    damage(store.path)
    with pytest.raises(RunError, match=message) as caught:
        read_activations(store, variant="v")
    assert "Delete the folder" in str(caught.value)
    assert isinstance(caught.value, VlmendError)


def test_store_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shards of 0 bytes"):
        ActivationStore(tmp_path, shard_bytes=0)
    with pytest.raises(ConfigError, match="unknown dtype 'int8'"):
        ActivationStore(tmp_path, dtype="int8")  # pyright: ignore
