"""Inputs that are read by worker processes: once, into memory, or in every epoch."""

import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..errors import UserError
from ..extras import ProgressBar
from .augmentation import WHOLE, Kind
from .inputs import Adapt
from .splits import Split, batch_indexes

FEW = 512  # inputs that are read sooner than processes to read them would have started


class Source(Protocol):
    """Where inputs come from, all of one shape and type."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        """(input, class number). Any exception means that this one cannot be read."""
        ...

    def broken(self, i: int, reason: str) -> UserError:
        """What to tell the user of an input that cannot be read."""
        ...


class Read(NamedTuple):
    """A batch as a worker hands it over.

    In one tensor, which is one piece of shared memory and one open file until it is let go; one
    per input would soon be more open files than a process may have.
    """

    inputs: torch.Tensor  # [n, ...]
    labels: torch.Tensor  # int64 [n]
    where: torch.Tensor  # int64 [n], indexes of the source
    broken: list[tuple[int, str]]  # the index of every input that is missing, and why


@dataclass(frozen=True)
class Guarded(TorchDataset):
    """What a DataLoader's workers index: an exception in one of them would end the run as it is,
    with the traceback of the worker."""

    source: Source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> tuple[int, torch.Tensor | str, int]:
        try:
            return i, *self.source[i]
        except Exception as error:  # whatever a damaged file or a user's code leads to
            return i, str(error).splitlines()[0] if str(error) else type(error).__name__, -1


def gathered(batch: list[tuple[int, torch.Tensor | str, int]]) -> Read:
    good = [(i, x, label) for i, x, label in batch if isinstance(x, torch.Tensor)]
    inputs = torch.stack([x for _, x, _ in good]) if good else torch.empty(0)
    where, labels = (torch.tensor([item[k] for item in good], dtype=torch.int64) for k in (0, 2))
    return Read(inputs, labels, where, [(i, x) for i, x, _ in batch if isinstance(x, str)])


def read(source: Source, batches: Sequence[torch.Tensor]) -> Iterator[Read]:
    """Yield what `batches`, indexes of `source`, name, in their order."""
    workers = min(8, os.cpu_count() or 1) if len(source) > FEW else 0
    # A generator of its own, since the loader would draw the seed of its workers from torch's
    # global one; other inputs, another seed, for a source that changes its inputs at random.
    seed = zlib.crc32(batches[0].numpy().tobytes()) if batches else 0
    yield from DataLoader(
        Guarded(source),
        batch_sampler=[index.tolist() for index in batches],
        num_workers=workers,
        collate_fn=gathered,
        generator=torch.Generator().manual_seed(seed),
    )


@dataclass(frozen=True)
class StreamedSplit:
    """A split that is read from its source in every epoch; otherwise as splits.Split is."""

    source: Source
    order: torch.Tensor  # int64 [N], indexes of the source
    labels: torch.Tensor  # int64 [N]
    stored_shape: tuple[int, ...]
    device: torch.device | str
    adapt: Adapt | None = None
    kind: Kind = None

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, part: slice) -> "StreamedSplit":
        return replace(self, order=self.order[part], labels=self.labels[part])

    def changed(self, **fields: Any) -> "StreamedSplit":
        return replace(self, **fields)

    def batches(
        self, batch_size: int, shuffle: bool = False, shard: tuple[int, int] = WHOLE
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (inputs, labels); shuffled by torch's global generator."""
        indexes = batch_indexes(len(self), batch_size, shuffle, shard)
        batches = read(self.source, [self.order[index] for index in indexes])
        for index, batch in zip(indexes, batches, strict=True):
            for i, reason in batch.broken:  # it could be read when the run began
                raise self.source.broken(i, reason)
            inputs = batch.inputs.to(self.device)
            labels = self.labels[index].to(self.device)
            yield self.adapt(inputs) if self.adapt else inputs, labels


@dataclass
class Sums:
    """Of the values of inputs, per channel: what their mean and standard deviation come from."""

    total: torch.Tensor | float = 0.0  # float64 [C]
    squares: torch.Tensor | float = 0.0
    pixels: int = 0
    low: float = float("inf")
    high: float = float("-inf")

    def add(self, inputs: torch.Tensor) -> None:
        """`inputs` uint8 or floating [n, C, ...]."""
        channels = inputs.transpose(0, 1).flatten(1)
        exact = channels.int() if channels.dtype == torch.uint8 else channels.double()
        self.total = self.total + exact.sum(1).double()
        self.squares = self.squares + exact.square().sum(1).double()
        self.pixels += channels.shape[1]
        self.low = min(self.low, float(channels.min()))
        self.high = max(self.high, float(channels.max()))

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        mean = torch.as_tensor(self.total) / self.pixels
        variance = torch.as_tensor(self.squares) / self.pixels - mean**2
        return mean.tolist(), variance.clamp(min=1e-6).sqrt().tolist()


class FirstPass(NamedTuple):
    """What reading all inputs of a split once has found."""

    split: Split | StreamedSplit
    skipped: list[int]  # indexes of the broken ones
    sums: Sums  # if they were wanted


def first_pass(
    source: Source,
    order: torch.Tensor,
    device: torch.device | str,
    keep: bool,
    kind: Kind = None,
    measure: bool = False,
    skip_broken: bool = False,
) -> FirstPass:
    """Read the inputs that `order`, int64 indexes of `source`, names.

    With `keep` they stay in memory, as a Split; with `measure` their values are summed. Raises the
    source's UserError for the first that cannot be read, unless `skip_broken`.
    """
    kept = torch.empty(0)
    good, labels = torch.empty_like(order), torch.empty_like(order)
    skipped: list[int] = []
    shape: tuple[int, ...] = ()
    sums, n = Sums(), 0
    batches = order.split(64)
    for inputs, targets, where, broken in ProgressBar(
        read(source, batches), "reading", total=len(batches)
    ):
        for i, reason in broken:
            if not skip_broken:
                raise source.broken(i, reason)
            skipped.append(i)
        if not len(where):
            continue
        shape = tuple(inputs.shape[1:])
        if measure:
            sums.add(inputs)
        if keep and not n:
            kept = torch.empty(len(order), *shape, dtype=inputs.dtype)
        now = slice(n, n + len(where))
        if keep:
            kept[now] = inputs
        good[now], labels[now] = where, targets
        n += len(where)
    good, labels = good[:n], labels[:n]
    split: Split | StreamedSplit
    if keep:
        split = Split(kept[:n].to(device), labels.to(device), kind=kind)
    else:
        split = StreamedSplit(source, good, labels, shape, device, kind=kind)
    return FirstPass(split, skipped, sums)
