"""Last-token activations at every decoder layer: captured once, kept on disk, read as arrays.

What is stored is never captured again: a row's key hashes the weights, what was changed about the
model, the prompt with its image bytes, and the position. Nothing but the last prompt token is
kept, so memory does not grow with the prompts.

Shapes: N = items, n = items of a batch, L = layers, D = width of the decoder.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlmend.diagnosis.shards import ActivationStore, Entry, SafeLabel, ShardWriter
from vlmend.errors import ConfigError, DataError, ModelError, RunError
from vlmend.evals.batches import is_out_of_memory, run_in_batches
from vlmend.evals.run import Progress, describe_prompt
from vlmend.hooks.exits import VisionReplay
from vlmend.hooks.record import record_layers
from vlmend.models.vlm import Vlm
from vlmend.types import Conversation, conversation_images, sha256_json

POSITION = "prompt_last"
"""The token that is read."""

BATCH_SIZE = 32
"""Prompts per forward pass; halved when memory runs out."""

_SHOWN = 3
"""Items named in an error."""


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt whose activations are wanted.

    Attributes:
        item_id: Unique within its suite.
        suite: Its suite.
        label: Whether complying would be harmful.
        group: What must not be on both sides of a split.
        conversation: The prompt.
    """

    item_id: str
    suite: str
    label: SafeLabel
    group: str
    conversation: Conversation


@dataclass(frozen=True, slots=True)
class Captured:
    """What a capture did, in prompts times exits.

    Attributes:
        ran: Passed through the model.
        reused: Stored already, or equal to another prompt that was run.
    """

    ran: int
    reused: int


@dataclass(frozen=True, slots=True)
class Activations:
    """Activations of one variant, in memory.

    Attributes:
        acts: By decoder layer, ascending: (N, D) float32. Layers that did not run are missing.
        labels: N labels.
        groups: N groups.
        item_ids: N items.
        suites: N suites.
        partial_layers: Layers left out because they ran for some of the items only.
        model: What the user called the model.
        weights_sha256: Its content hash.
    """

    acts: dict[int, NDArray[np.float32]]
    labels: tuple[SafeLabel, ...]
    groups: tuple[str, ...]
    item_ids: tuple[str, ...]
    suites: tuple[str, ...]
    partial_layers: tuple[int, ...]
    model: str
    weights_sha256: str

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that are there, ascending."""
        return tuple(self.acts)

    @property
    def unsafe(self) -> NDArray[np.bool_]:
        """(N,) whether an item is labelled unsafe."""
        return np.array([label == "unsafe" for label in self.labels], dtype=np.bool_)

    @property
    def sha256(self) -> str:
        """Hash of numbers, items, labels and groups: what a cached result of them depends on."""
        numbers = [
            [layer, list(acts_ND.shape), hashlib.sha256(acts_ND.data).hexdigest()]
            for layer, acts_ND in self.acts.items()
        ]
        return sha256_json([numbers, self.suites, self.item_ids, self.labels, self.groups])


# ---- writing


def capture_activations(
    vlm: Vlm,
    items: Sequence[Item],
    store: ActivationStore,
    *,
    variant: str,
    exit: int | None = None,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> Captured:
    """Store the activations of the last prompt token at every decoder layer that runs.

    Args:
        vlm: The model, as it is or inside a context that changes it (and says so in
            `vlm.conditions`); middlewares are refused, they would not apply.
        items: The prompts, with whatever images.
        store: Where to.
        variant: Name of this form of the items, e.g. "text" or "vision-language".
        exit: Vision exit, None for the model as it is.
        batch_size: Most prompts per forward pass; halved when memory runs out.
        progress: Called as progress(what, done, total) after every batch.

    Returns:
        How many prompts were run.

    Raises:
        ConfigError: No items, an item twice, an exit for prompts without images, or a model
            under a middleware.
        ModelError: A layer did not run, or its output is not finite.
        RunError: The disk is full, the store is in use, or there is not enough memory for a
            single prompt.
        VlmendError: As `Vlm.encode`.
    """
    return capture_exits(
        vlm,
        items,
        store,
        variant=variant,
        exits=(exit,),
        batch_size=batch_size,
        progress=progress,
    )


def capture_exits(
    vlm: Vlm,
    items: Sequence[Item],
    store: ActivationStore,
    *,
    variant: str,
    exits: Sequence[int | None],
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> Captured:
    """`capture_activations` at several exits; the vision blocks run once per batch for all.

    Args:
        vlm: The model.
        items: The prompts.
        store: Where to.
        variant: Name of this form of the items.
        exits: Vision exits, None for the model as it is.
        batch_size: Most prompts per forward pass.
        progress: Called after every batch.

    Returns:
        How many prompts were run, over all exits.

    Raises:
        VlmendError: As `capture_activations`.
    """
    _check(vlm, items, variant, exits)
    replay = VisionReplay(vlm) if any(e is not None for e in exits) else None
    with store.writing() as writer, replay or nullcontext():
        entries = _make_entries(vlm, items, variant, exits, replay)
        total = len(entries) * len(items)
        flat = [entry for of_exit in entries.values() for entry in of_exit]
        writer.adopt(entry for entry in flat if entry.key in writer)
        missing = {entry.key for entry in flat if entry.key not in writer}
        # By item: what is still to be run, over the exits.
        lacking = [sum(e.key in missing for e in of) for of in zip(*entries.values(), strict=True)]
        todo = [i for i, count in enumerate(lacking) if count]
        done = total - sum(lacking)
        tell = progress or _tell_nobody
        tell(f"activations of {variant}", done, total)

        def run(places: list[int]) -> None:
            here = [todo[place] for place in places]
            _capture_batch(vlm, items, entries, here, writer, replay)

        prompts = [items[i].conversation for i in todo]
        for places, _ in run_in_batches(prompts, run, batch_size=batch_size):
            done += sum(lacking[todo[place]] for place in places)
            tell(f"activations of {variant}", done, total)
        # Those whose prompt was run for another item of this call.
        writer.adopt(flat)
    return Captured(ran=len(missing), reused=total - len(missing))


def _tell_nobody(_what: str, _done: int, _total: int) -> None:
    """Progress for nobody."""


Entries = Mapping[int | None, Sequence[Entry]]
"""By exit: an entry per item, in order."""


def _capture_batch(
    vlm: Vlm,
    items: Sequence[Item],
    entries: Entries,
    here: Sequence[int],
    writer: ShardWriter,
    replay: VisionReplay | None,
) -> None:
    """Run what a batch still lacks, exit after exit."""
    for exit_layer, of_exit in entries.items():
        if replay is not None:
            replay.exit = exit_layer
        # By key: two items may ask the same.
        wanted = {of_exit[i].key: i for i in here if of_exit[i].key not in writer}
        if not wanted:
            continue
        batch = [items[i] for i in wanted.values()]
        try:
            recorded = record_layers(vlm, [item.conversation for item in batch])
        except (RuntimeError, MemoryError) as error:
            if len(here) > 1 or not is_out_of_memory(error):
                raise
            raise RunError(
                f"there is not enough memory for {batch[0].item_id!r} of {batch[0].suite!r}, even "
                f"alone: {str(error).partition(chr(10))[0]} Use --dtype bfloat16 or another "
                "--device; what was captured is kept."
            ) from error
        acts_nLD = torch.stack(list(recorded.values()), dim=1).cpu()
        _require_finite(acts_nLD, list(recorded), batch)
        acts_nLD = acts_nLD if writer.keeps_dtype else acts_nLD.float()
        writer.add([of_exit[i] for i in wanted.values()], list(recorded), acts_nLD)


def _check(vlm: Vlm, items: Sequence[Item], variant: str, exits: Sequence[int | None]) -> None:
    if vlm.middlewares:
        raise ConfigError(
            "the model is under a repair that works around generation, which a single forward "
            "pass does not go through. Capture activations outside of it."
        )
    if not items or not exits:
        raise ConfigError(f"no items to capture {variant!r} activations of. Give at least one.")
    twice = [k for k, n in Counter((item.suite, item.item_id) for item in items).items() if n > 1]
    if twice:
        raise ConfigError(
            f"{len(twice)} item(s) are given twice ({_list_items(twice)}), so what is stored of "
            "them would be ambiguous. Give each once, or under another variant."
        )
    without = [(i.suite, i.item_id) for i in items if not conversation_images(i.conversation)]
    if without and any(e is not None for e in exits):
        raise ConfigError(
            f"a vision exit does nothing to {len(without)} item(s) without an image "
            f"({_list_items(without)}). Leave them out, or the exit."
        )


def _make_entries(
    vlm: Vlm,
    items: Sequence[Item],
    variant: str,
    exits: Sequence[int | None],
    replay: VisionReplay | None,
) -> Entries:
    weights = vlm.weights_sha256
    prompts = [describe_prompt(item.conversation) for item in items]
    hashes = [sha256_json(prompt) for prompt in prompts]
    entries: dict[int | None, list[Entry]] = {}
    for exit_layer in exits:
        if replay is not None:
            replay.exit = exit_layer
        conditions = list(vlm.conditions)
        entries[exit_layer] = [
            Entry(
                key=sha256_json([weights, conditions, prompt, POSITION]),
                item_id=item.item_id,
                suite=item.suite,
                label=item.label,
                group=item.group,
                variant=variant,
                position=POSITION,
                model=vlm.name,
                weights_sha256=weights,
                conditions=json.dumps(conditions),
                exit=exit_layer,
                prompt_sha256=prompt_sha256,
            )
            for item, prompt, prompt_sha256 in zip(items, prompts, hashes, strict=True)
        ]
    return entries


def _require_finite(acts_nLD: Tensor, layers: Sequence[int], batch: Sequence[Item]) -> None:
    finite_nL = acts_nLD.isfinite().all(dim=2)
    if bool(finite_nL.all()):
        return
    row, place = (~finite_nL).nonzero()[0].tolist()
    raise ModelError(
        f"the output of decoder layer {layers[place]} is not finite for {batch[row].item_id!r} of "
        f"{batch[row].suite!r} ({acts_nLD.dtype}). Use --dtype bfloat16 or float32."
    )


# ---- reading


def read_activations(
    store: ActivationStore,
    *,
    variant: str,
    layers: Sequence[int] | None = None,
    exit: int | None = None,
    items: Iterable[Item] | None = None,
    weights_sha256: str | None = None,
) -> Activations:
    """Read the activations of one variant.

    Args:
        store: Where from.
        variant: Which form of the items.
        layers: Decoder layers, 0-based; all that are stored by default.
        exit: Vision exit, None for the model as it is.
        items: Those wanted; they decide the order; labels and groups are the stored ones. By
            default all, sorted by suite and item id.
        weights_sha256: Of which model, where the store has several.

    Returns:
        The activations; layers that did not run are missing.

    Raises:
        DataError: Nothing fits, an item is not stored, or several models fit.
        RunError: The store is damaged.
    """
    table = _select(store, variant, exit, weights_sha256)
    infos: dict[tuple[str, str], dict[str, Any]] = {}
    places: dict[tuple[str, str], dict[int, tuple[str, str, int]]] = {}
    columns = ["suite", "item_id", "label", "group", "model", "weights_sha256"]
    for row in table.select([*columns, "layer", "shard", "tensor", "row"]).to_pylist():
        item = (row["suite"], row["item_id"])
        infos[item] = row
        places.setdefault(item, {})[row["layer"]] = (row["shard"], row["tensor"], row["row"])
    chosen = sorted(infos) if items is None else [(i.suite, i.item_id) for i in items]
    lacking = [item for item in chosen if item not in infos]
    if lacking or not chosen:
        raise DataError(
            f"{len(lacking)} of {len(chosen)} item(s) have no activations of {variant!r} "
            f"({_list_items(lacking) or 'no items given'}). Capture them first."
        )
    ran = Counter(layer for item in chosen for layer in places[item])
    wanted = sorted(ran if layers is None else set(layers) & set(ran))
    whole = [layer for layer in wanted if ran[layer] == len(chosen)]
    rows = [infos[item] for item in chosen]
    return Activations(
        acts={n: _load_layer(store, [places[item][n] for item in chosen]) for n in whole},
        labels=tuple(row["label"] for row in rows),
        groups=tuple(row["group"] for row in rows),
        item_ids=tuple(row["item_id"] for row in rows),
        suites=tuple(row["suite"] for row in rows),
        partial_layers=tuple(layer for layer in wanted if layer not in whole),
        model=rows[0]["model"],
        weights_sha256=rows[0]["weights_sha256"],
    )


def _select(
    store: ActivationStore, variant: str, exit: int | None, weights_sha256: str | None
) -> pa.Table:
    """The rows of the index that are asked for, of one model."""
    table = store.load_index()
    wanted = pc.field("variant") == variant
    wanted &= pc.field("exit").is_null() if exit is None else pc.field("exit") == exit
    if weights_sha256 is not None:
        wanted &= pc.field("weights_sha256") == weights_sha256
    found = table.filter(wanted)
    if not found.num_rows:
        known = table.group_by(["variant", "exit"], use_threads=False).aggregate([]).to_pylist()
        names = sorted(_name(row["variant"], row["exit"]) for row in known)
        raise DataError(
            f"no activations of {_name(variant, exit)} in {str(store.path)!r}"
            f"{f', of weights {weights_sha256}' if weights_sha256 else ''}. "
            f"Stored: {', '.join(names) or 'nothing'}. Capture them first."
        )
    models = found.group_by(["model", "weights_sha256", "conditions"], use_threads=False).aggregate(
        []
    )
    kinds = {(row["weights_sha256"], row["conditions"]) for row in models.to_pylist()}
    if len(kinds) > 1:
        listed = "; ".join(
            f"{row['model']!r} {row['weights_sha256']} {row['conditions']}"
            for row in models.to_pylist()
        )
        raise DataError(
            f"the activations of {_name(variant, exit)} are of {len(kinds)} models: {listed}. "
            "Say which by weights_sha256, and keep changed models under variants of their own."
        )
    return found


def _load_layer(
    store: ActivationStore, places: Sequence[tuple[str, str, int]]
) -> NDArray[np.float32]:
    """Rows of one layer, (N, D), in the order of their places."""
    by_tensor: dict[tuple[str, str], list[int]] = {}
    for n, (shard, tensor, _) in enumerate(places):
        by_tensor.setdefault((shard, tensor), []).append(n)
    acts_ND: NDArray[np.float32] | None = None
    for (shard, tensor), spots in by_tensor.items():
        rows_nD = store.load_rows(shard, tensor, [places[n][2] for n in spots]).float().numpy()
        if acts_ND is None:
            acts_ND = np.empty((len(places), rows_nD.shape[1]), np.float32)
        acts_ND[spots] = rows_nD
    assert acts_ND is not None, "a layer has at least one item"
    return acts_ND


def _name(variant: str, exit: int | None) -> str:
    return repr(variant) if exit is None else f"{variant!r} at exit {exit}"


def _list_items(items: Sequence[tuple[str, str]]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(f"{suite}: {name}" for suite, name in items[:_SHOWN]) + more
