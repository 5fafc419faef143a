"""Activations on disk: safetensors shards with a Parquet index that others can read.

docs/activations-format.md documents the format. A shard is written whole before the index names
it, so what a crash leaves is at worst a shard that nothing names, which the next one overwrites.

Shapes: n = rows of a tensor, L = decoder layers, D = width of the decoder.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vlmend.errors import ConfigError, RunError
from vlmend.runs import replacing

INDEX = "index.parquet"
FORMAT = "vlmend-activations"
VERSION = "1"

SHARD_BYTES = 64 * 1024 * 1024
"""Most bytes of a shard; an item's layers share a shard, however large they are."""

FLUSH_S = 30.0
"""Seconds of work that a power cut may cost."""

SafeLabel = Literal["safe", "unsafe"]
StoredDtype = Literal["float32", "model"]

_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("suite", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("variant", pa.string(), nullable=False),
        pa.field("layer", pa.int32(), nullable=False),
        pa.field("position", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("tensor", pa.string(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("weights_sha256", pa.string(), nullable=False),
        pa.field("conditions", pa.string(), nullable=False),
        pa.field("exit", pa.int32()),
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("prompt_sha256", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
    ],
    metadata={"format": FORMAT, "version": VERSION},
)
_PLACE = ("layer", "shard", "tensor", "row", "dtype", "width")
"""Where the numbers of a key are, and in what form."""

_START_AGAIN = "Delete the folder: what stood there is then captured again."


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of one item's activations besides the numbers: columns of the index.

    Attributes:
        key: Content hash of all that can change the numbers.
        item_id: The item, unique within its suite.
        suite: Its suite.
        label: "safe" or "unsafe".
        group: What must not be on both sides of a split.
        variant: Which form of the item, e.g. "text" or "vision-language".
        position: The token read, a name of `vlmend.hooks.positions`.
        model: What the user called the model.
        weights_sha256: Its content hash.
        conditions: What was changed about the model, a JSON list of sentences.
        exit: Vision exit, None for the model as it is.
        prompt_sha256: Hash of the conversation, images included.
    """

    key: str
    item_id: str
    suite: str
    label: SafeLabel
    group: str
    variant: str
    position: str
    model: str
    weights_sha256: str
    conditions: str
    exit: int | None
    prompt_sha256: str

    @property
    def slot(self) -> tuple[object, ...]:
        """What it is looked up by; a newer entry takes the place of an older one."""
        return tuple(getattr(self, name) for name in _SLOT)

    @property
    def tensor(self) -> str:
        """What the names of the tensors that hold it begin with."""
        return self.variant if self.exit is None else f"{self.variant}@exit{self.exit}"


_SLOT = ("variant", "exit", "position", "suite", "item_id", "weights_sha256", "conditions")
_FACTS = tuple(Entry.__dataclass_fields__)


class ActivationStore:
    """A folder of activations. Reading never changes it; one process at a time may write.

    Attributes:
        path: The folder; made when something is written.
        dtype: "float32", or "model" for the dtype in which the model computes. bfloat16 is half
            the size, but NumPy cannot read it.
        shard_bytes: Most bytes of a shard.
        flush_s: Seconds after which what was captured is written though the shard is not full.
    """

    def __init__(
        self,
        path: Path,
        *,
        dtype: StoredDtype = "float32",
        shard_bytes: int = SHARD_BYTES,
        flush_s: float = FLUSH_S,
    ) -> None:
        """Name a store; nothing is read or written yet.

        Raises:
            ConfigError: An unknown dtype, or a shard size below 1 byte.
        """
        if dtype not in get_args(StoredDtype):
            raise ConfigError(f"unknown dtype {dtype!r}. Allowed: float32, model.")
        if shard_bytes < 1:
            raise ConfigError(f"shards of {shard_bytes} bytes are not possible: at least 1.")
        self.path = path
        self.dtype: StoredDtype = dtype
        self.shard_bytes = shard_bytes
        self.flush_s = flush_s

    def load_index(self) -> pa.Table:
        """The index: one row per item, variant and layer; without rows when nothing is stored.

        Raises:
            RunError: It is damaged, of another version, or names a shard that is not there.
        """
        path = self.path / INDEX
        if not path.exists():
            return _SCHEMA.empty_table()
        try:
            # As one file: a folder with "=" in its name must not turn into a column.
            table = pq.ParquetFile(path).read()
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"cannot read {str(path)!r}: {error}. {_START_AGAIN}") from error
        metadata = table.schema.metadata or {}
        found = (metadata.get(b"format", b"").decode(), metadata.get(b"version", b"").decode())
        if found != (FORMAT, VERSION):
            raise RunError(
                f"{str(path)!r} is of format {found[0]!r}, version {found[1]!r}. This vlmend "
                f"reads {FORMAT!r}, version {VERSION!r}. {_START_AGAIN}"
            )
        missing = [n for n in table["shard"].unique().to_pylist() if not (self.path / n).is_file()]
        if missing:
            raise RunError(
                f"{str(path)!r} names {', '.join(sorted(missing))}, not there. {_START_AGAIN}"
            )
        return table.select(_SCHEMA.names)

    def load_rows(self, shard: str, tensor: str, rows: Sequence[int]) -> Tensor:
        """Rows of one tensor of a shard, (n, D) in the stored dtype.

        Raises:
            RunError: The shard is damaged.
        """
        try:
            with safe_open(self.path / shard, "pt") as file:
                return file.get_tensor(tensor)[list(rows)]
        except (OSError, SafetensorError, IndexError) as error:
            raise RunError(
                f"{str(self.path / shard)!r} is damaged: {error}. {_START_AGAIN}"
            ) from error

    @contextlib.contextmanager
    def writing(self) -> Generator[ShardWriter]:
        """Add to the store; what was added is on the disk when the block ends, however it ends.

        Raises:
            RunError: Another process is writing, or the folder cannot be written.
        """
        with _locked(self.path):
            writer = ShardWriter(self)
            try:
                yield writer
            finally:
                writer.flush()


class ShardWriter:
    """Adds rows to a store; made by `ActivationStore.writing`."""

    def __init__(self, store: ActivationStore) -> None:
        """Read what is stored already."""
        self._store = store
        self._index = store.load_index()
        self._keys: set[str] = set(self._index["key"].unique().to_pylist())
        distinct = self._index.select(_FACTS).group_by(_FACTS, use_threads=False).aggregate([])
        stored = (Entry(**row) for row in distinct.to_pylist())
        self._slots: dict[tuple[object, ...], Entry] = {entry.slot: entry for entry in stored}
        self._waiting: list[tuple[Entry, tuple[int, ...], Tensor]] = []
        self._bytes = 0
        self._flushed = time.monotonic()

    def __contains__(self, key: str) -> bool:
        """Whether the numbers of a key are stored, or waiting to be."""
        return key in self._keys

    @property
    def keeps_dtype(self) -> bool:
        """Whether activations are stored in the dtype of the model."""
        return self._store.dtype == "model"

    def add(self, entries: Sequence[Entry], layers: Sequence[int], acts_nLD: Tensor) -> None:
        """Add activations; written when a shard is full or enough time has passed.

        Args:
            entries: n of them, with new keys.
            layers: L decoder layers.
            acts_nLD: Their activations, in the dtype to store.

        Raises:
            RunError: The disk is full.
        """
        size = acts_nLD[0].nbytes
        for entry, acts_LD in zip(entries, acts_nLD, strict=True):
            if self._waiting and self._bytes + size > self._store.shard_bytes:
                self.flush()
            self._waiting.append((entry, tuple(layers), acts_LD))
            self._keys.add(entry.key)
            self._bytes += size
        if time.monotonic() - self._flushed > self._store.flush_s:
            self.flush()

    def adopt(self, entries: Iterable[Entry]) -> None:
        """Index entries whose numbers are stored already, without storing these again.

        Raises:
            RunError: The index cannot be written.
        """
        new = [entry for entry in entries if self._slots.get(entry.slot) != entry]
        self.flush()
        if not new:
            return
        wanted = pa.array(sorted({entry.key for entry in new}))
        places: dict[str, dict[int, dict[str, Any]]] = {}
        among = pc.SetLookupOptions(value_set=wanted)
        found = self._index.filter(pc.call_function("is_in", [self._index["key"]], among))
        for row in found.select(["key", *_PLACE]).to_pylist():
            places.setdefault(row.pop("key"), {})[row["layer"]] = row
        self._write_index(
            new, [{**asdict(e), **place} for e in new for place in places[e.key].values()]
        )

    def flush(self) -> None:
        """Write what is waiting as one shard, then the index that names it.

        Raises:
            RunError: The disk is full.
        """
        waiting, self._waiting = self._waiting, []
        self._bytes, self._flushed = 0, time.monotonic()
        if not waiting:
            return
        name = self._next_shard()
        tensors: dict[str, list[Tensor]] = {}
        rows: list[dict[str, Any]] = []
        for entry, layers, acts_LD in waiting:
            for layer, acts_D in zip(layers, acts_LD, strict=True):
                parts = tensors.setdefault(f"{entry.tensor}/{layer}", [])
                place = (layer, name, f"{entry.tensor}/{layer}", len(parts))
                kind = (str(acts_D.dtype).removeprefix("torch."), len(acts_D))
                rows.append({**asdict(entry), **dict(zip(_PLACE, place + kind, strict=True))})
                parts.append(acts_D)
        with replacing(self._store.path / name) as temporary:
            stacked = {key: torch.stack(parts) for key, parts in tensors.items()}
            temporary.write_bytes(save(stacked, {"format": FORMAT, "version": VERSION}))
        self._write_index([entry for entry, _, _ in waiting], rows)

    def _next_shard(self) -> str:
        used = self._index["shard"].unique().to_pylist()
        numbers = [int(shard.partition("-")[2].partition(".")[0]) for shard in used]
        return f"activations-{1 + max(numbers, default=-1):05}.safetensors"

    def _write_index(self, entries: Sequence[Entry], rows: Sequence[Mapping[str, Any]]) -> None:
        index = self._without({e.slot for e in entries if e.slot in self._slots})
        index = pa.concat_tables([index, pa.Table.from_pylist(list(rows), schema=_SCHEMA)])
        with replacing(self._store.path / INDEX) as temporary:
            pq.write_table(index, temporary)
        self._index = index
        self._slots |= {entry.slot: entry for entry in entries}
        self._keys = set(index["key"].unique().to_pylist())

    def _without(self, slots: set[tuple[object, ...]]) -> pa.Table:
        """The index without the rows that newer ones are about to replace."""
        if not slots:
            return self._index
        columns = [self._index[name].to_pylist() for name in _SLOT]
        kept = [slot not in slots for slot in zip(*columns, strict=True)]
        return cast("pa.Table", self._index.filter(pa.array(kept, pa.bool_())))


@contextlib.contextmanager
def _locked(path: Path) -> Generator[None]:
    """One writer at a time; the lock ends with the process, however that ends."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("w")
    except OSError as error:
        raise RunError(f"cannot write {str(path)!r}: {error.strerror or error}.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                f"{str(path)!r} is in use by another vlmend process, or on a file system without "
                "locks. Wait for it, or choose another folder."
            ) from error
        for left_over in path.glob("*.tmp*"):
            left_over.unlink(missing_ok=True)
        yield
