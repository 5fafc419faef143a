"""One training in one or several processes: what they must agree on. Started by any launcher.

Every process holds the whole model and runs its share of a step's examples. Gradients are
summed here after the backward pass instead of by DistributedDataParallel during it: a process
in which memory runs out would otherwise leave the others waiting in the middle of a backward
pass, and a parameter that a batch does not reach (cross-attention without an image) needs no
special case. An adapter's gradients are a few megabytes, so that there is little to overlap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.state import is_initialized
from accelerate.utils import InitProcessGroupKwargs, broadcast, gather, reduce
from torch import Tensor

from vlmend.errors import ConfigError

_KNOWN = {"NO", "MULTI_CPU", "MULTI_GPU"}
"""Kinds of launch in which every process holds the whole model."""

_BUCKET = 8_388_608
"""Numbers sent at once: one message per matrix is slow, all in one doubles the memory."""

_PATIENCE = timedelta(days=7)
"""How long a process waits for another. The first one works alone at times (it measures, or lets
the model answer), and after ten minutes of that NCCL would end the others, and the training."""


class Processes:
    """The processes that train together, seen from one of them; a single one is a group too.

    Attributes:
        accelerator: What accelerate knows about them; holds the trackers.
        rank: Number of this process, from 0.
        world: How many there are.
    """

    def __init__(
        self, device: torch.device, *, report_to: Sequence[str] = (), folder: Path | None = None
    ) -> None:
        """Join the group that a launcher such as torchrun describes.

        Args:
            device: Where this process trains.
            report_to: Trackers to make.
            folder: Where trackers write.

        Raises:
            ConfigError: A launch that shards the model, or processes on another kind of device.
        """
        # Once started, the group is that of the whole process and cannot be asked for again.
        cpu = device.type == "cpu" and not is_initialized()
        self.accelerator = Accelerator(
            cpu=cpu,
            log_with=list(report_to) or None,
            project_dir=folder,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
        )
        self.rank = int(self.accelerator.process_index)
        self.world = int(self.accelerator.num_processes)
        self._device = device
        kind = str(self.accelerator.distributed_type.value)
        if kind not in _KNOWN:
            raise ConfigError(
                f"the launcher asks for {kind}, which spreads one model over processes. Allowed: "
                "plain data parallelism. Start it with `torchrun --nproc_per_node N -m "
                "vlmend.cli.main ...`."
            )
        if self.world > 1 and self.accelerator.device.type != device.type:
            raise ConfigError(
                f"the launcher started {self.world} processes on "
                f"{self.accelerator.device.type!r}, but the model is on {device.type!r}. Load it "
                f"there: --device {self.accelerator.device.type}."
            )

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, size: int) -> slice:
        """This process's part of a list of `size` or more."""
        return slice(self.rank, size, self.world)

    def any(self, flag: bool) -> bool:
        """Whether a flag is up in any process. All must ask."""
        return any(row[0] for row in self.gather([float(flag)]))

    def gather(self, numbers: Sequence[float]) -> list[list[float]]:
        """Numbers of all processes, in the order of their ranks. All must give as many."""
        if self.world == 1:
            return [list(numbers)]
        mine = torch.tensor([numbers], dtype=torch.float64, device=self._device)
        return cast("Tensor", gather(mine)).tolist()

    def sum_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their sums over the processes."""
        if self.world == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([t.flatten() for t in bucket])
            total = cast("Tensor", reduce(flat, "sum"))
            parts = total.split([t.numel() for t in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by those of the first process."""
        if self.world > 1:
            for tensor in tensors:
                tensor.copy_(broadcast(tensor.clone(), from_process=0))

    def wait(self) -> None:
        """Return when all are here."""
        self.accelerator.wait_for_everyone()


def _buckets(tensors: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """Tensors of one dtype together, up to a size; a larger one on its own."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.numel() > _BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket
