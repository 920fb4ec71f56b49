"""Inputs that are read by worker processes: once, into memory, or in every epoch."""

import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..errors import UserError
from ..extras import ProgressBar
from ..files import reason

FEW = 512  # inputs that are read sooner than processes to read them would have started


class Source(Protocol):
    """Where inputs come from, all of one shape and type."""

    @property
    def like(self) -> torch.Tensor:
        """An input of this shape and type."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        """(input, class number). Any exception means that this one cannot be read."""
        ...

    def name_of(self, i: int) -> str:
        """What a user knows it by."""
        ...

    def broken(self, i: int, why: str) -> UserError:
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
class _Reader(TorchDataset):
    """What a DataLoader's workers index, by the indexes of a batch.

    An exception in one of them would end the run as it is, with the traceback of the worker.
    """

    source: Source

    def __getitem__(self, batch: Sequence[int]) -> Read:
        inputs: list[torch.Tensor] = []
        labels, where, broken = [], [], []
        for i in batch:
            try:
                item, label = self.source[i]
            except Exception as error:  # whatever a damaged file or a user's code leads to
                broken.append((i, reason(error)))
                continue
            inputs.append(item)
            labels.append(label)
            where.append(i)
        stacked = torch.stack(inputs) if inputs else torch.empty(0)
        return Read(stacked, torch.tensor(labels), torch.tensor(where), broken)


def read(source: Source, batches: Sequence[torch.Tensor]) -> Iterator[Read]:
    """Yield what `batches`, indexes of `source`, name, in their order."""
    workers = min(8, os.cpu_count() or 1) if len(source) > FEW else 0
    # A generator of its own, since the loader would draw the seed of its workers from torch's
    # global one; other inputs, another seed, for a source that changes its inputs at random.
    seed = zlib.crc32(batches[0].numpy().tobytes()) if batches else 0
    yield from DataLoader(
        _Reader(source),
        sampler=[index.tolist() for index in batches],
        batch_size=None,
        num_workers=workers,
        generator=torch.Generator().manual_seed(seed),
    )


@dataclass(frozen=True)
class Streamed:
    """Inputs that are read from their source in every epoch, where others are a tensor."""

    source: Source
    order: torch.Tensor  # int64 [N], indexes of the source
    device: torch.device | str

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.order), *self.source.like.shape

    def __getitem__(self, part: slice) -> "Streamed":
        return replace(self, order=self.order[part])


def drawn(
    inputs: torch.Tensor | Streamed, batches: Sequence[torch.Tensor]
) -> Iterator[torch.Tensor]:
    """Yield the inputs [n, ...] of each batch of indexes."""
    if isinstance(inputs, torch.Tensor):
        yield from (inputs[index.to(inputs.device)] for index in batches)
        return
    for batch in read(inputs.source, [inputs.order[index] for index in batches]):
        for i, why in batch.broken:  # it could be read when the run began
            raise inputs.source.broken(i, why)
        yield batch.inputs.to(inputs.device)


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

    inputs: torch.Tensor | Streamed  # [N, ...]
    labels: torch.Tensor  # int64 [N]
    skipped: list[int]  # indexes of the broken ones
    sums: Sums  # if they were wanted


def first_pass(
    source: Source,
    order: torch.Tensor,
    device: torch.device | str,
    keep: bool,
    measure: bool,
    skip_broken: bool,
) -> FirstPass:
    """Read the inputs that `order`, int64 indexes of `source`, names.

    With `keep` they stay in memory; with `measure` their values are summed. Raises the source's
    UserError for the first that cannot be read, unless `skip_broken`.
    """
    kept = torch.empty(len(order) if keep else 0, *source.like.shape, dtype=source.like.dtype)
    good, labels = torch.empty_like(order), torch.empty_like(order)
    skipped: list[int] = []
    sums, n = Sums(), 0
    batches = order.split(64)
    for inputs, targets, where, broken in ProgressBar(
        read(source, batches), "reading", total=len(batches)
    ):
        for i, why in broken:
            if not skip_broken:
                raise source.broken(i, why)
            skipped.append(i)
        if not len(where):
            continue
        if measure:
            sums.add(inputs)
        now = slice(n, n + len(where))
        if keep:
            kept[now] = inputs
        good[now], labels[now] = where, targets
        n += len(where)
    found = kept[:n].to(device) if keep else Streamed(source, good[:n], device)
    return FirstPass(found, labels[:n].to(device), skipped, sums)
