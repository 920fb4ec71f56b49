"""Data sets: three splits of inputs and labels, and the batches that are drawn of them.

Batches are adapted to the model as they are drawn, so that 60,000 small images for a network that
takes 3x224x224 are still 60,000 small images in memory. What does not fit there is read in every
epoch (net.training.reading).
"""

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch

from ..errors import UserError
from ..tensors import memory
from . import distributed
from .inputs import AS_THEY_ARE, WHOLE, Adapt, Input, Kind
from .reading import Streamed, drawn

HELD_OUT = 1 / 12  # of the training images: 5,000 of MNIST's 60,000
SEEN = 1000  # inputs of a split by which its contents are recognised
FOLDER = "folder:"
AT_A_TIME, OF_SIZE = 1000, 3 * 32 * 32  # inputs of CIFAR-10's size; of larger ones fewer
IN_MEMORY = 2 << 30  # bytes of inputs that are kept; more are read or made anew in every epoch


def is_factory(name: str) -> bool:
    """Whether a data set is what a function of the user's own returns."""
    return ":" in name and not name.startswith(FOLDER)


class Batches(Protocol):
    """What is trained on. A target is a class number, or the logits of a teacher."""

    def __len__(self) -> int: ...

    def batches(
        self, batch_size: int, shuffle: bool = False, shard: tuple[int, int] = WHOLE
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (inputs, targets); shuffled by torch's global generator."""
        ...


@dataclass(frozen=True)
class Split:
    """`inputs` [N, ...] of any type, images as [N, C, H, W]; `labels` int64 [N]; on one device."""

    inputs: torch.Tensor | Streamed
    labels: torch.Tensor
    adapt: Adapt | None = None
    kind: Kind = None  # of images: how training may change them (net.training.inputs)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, part: slice) -> "Split":
        return replace(self, inputs=self.inputs[part], labels=self.labels[part])

    def batches(
        self, batch_size: int, shuffle: bool = False, shard: tuple[int, int] = WHOLE
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (inputs, labels); shuffled by torch's global generator."""
        indexes = batch_indexes(len(self), batch_size, shuffle, shard)
        for index, inputs in zip(indexes, drawn(self.inputs, indexes), strict=True):
            labels = self.labels[index.to(self.labels.device)]
            yield self.adapt(inputs) if self.adapt else inputs, labels


def batch_indexes(
    n: int, batch_size: int, shuffle: bool, shard: tuple[int, int] = WHOLE
) -> list[torch.Tensor]:
    """The batches of an epoch over `n` inputs, int64 [batch_size] each, some fewer.

    `shard` is (process, processes). Shuffled, for training, each process gets its part of every
    batch; otherwise, for evaluation, whole batches, every input in one of them.
    """
    if not shuffle:
        rank, processes = shard
        return list(torch.arange(n).split(batch_size)[rank::processes])
    return training_batches(torch.randperm(n), batch_size, shard)


def at_a_time(split: Split) -> int:
    """How many inputs of a split a model may have at once outside of training: by their size, and
    by no option, for what is drawn at random depends on it."""
    inputs, _ = next(split.batches(1))
    return max(1, min(AT_A_TIME, AT_A_TIME * OF_SIZE // max(1, inputs.numel())))


def batches_in(examples: int, batch_size: int, processes: int) -> int:
    """How many batches of about that size, so that each has something for every process."""
    return min(math.ceil(examples / batch_size), max(1, examples // processes))


def training_batches(
    order: torch.Tensor, batch_size: int, shard: tuple[int, int] = WHOLE
) -> list[torch.Tensor]:
    """Batches in the order that the first process has drawn, all of about the same size.

    (BatchNorm cannot train on a last batch of one image.) The parts of a batch have the same size
    in all processes, so that up to processes - 1 of its inputs are left out.
    """
    rank, processes = shard
    if batch_size < processes:
        raise UserError(f"a batch of {batch_size} is too small for {processes} processes")
    count = batches_in(len(order), batch_size, processes)
    batches = distributed.from_writer(order).tensor_split(count)
    return [batch[rank::processes][: len(batch) // processes] for batch in batches]


@dataclass(frozen=True)
class Dataset:
    """`validation` is held out of the training set: choices are made on it, never on `test`.

    `treatment` says what becomes of the inputs on their way to the model, in words.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    treatment: str = AS_THEY_ARE

    @property
    def splits(self) -> tuple[Split, Split, Split]:
        return self.train, self.validation, self.test

    @cached_property
    def fingerprint(self) -> int:
        """CRC-32 of all labels, and of some inputs of each split that are always the same: what a
        function of the user's own returns may be drawn anew each time."""
        found = 0
        for split in self.splits:
            found = zlib.crc32(memory(split.labels).data, found)
            if isinstance(split.inputs, torch.Tensor) and not is_factory(self.name):
                some = split.inputs[:: max(1, len(split) // SEEN)]
                found = zlib.crc32(memory(some).data, found)
        return found

    @property
    def classes(self) -> int:
        return max(int(split.labels.max()) for split in self.splits) + 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input in a batch; of an image (channels, height, width)."""
        stored = tuple(self.train.inputs.shape[1:])
        return self.train.adapt.shape(stored) if self.train.adapt else stored

    @property
    def kind(self) -> Kind:
        """How training may change the inputs, if they are images."""
        return self.train.kind


def with_held_out(name: str, train: Split, test: Split, treatment: str) -> Dataset:
    """The last of the training inputs are held out; they must be in a random order."""
    n = max(1, round(len(train) * HELD_OUT))
    return Dataset(name, train[:-n], train[-n:], test, treatment)


def adapted(dataset: Dataset, wanted: Input) -> Dataset:
    """`dataset`, if it is of images, with batches of the channels and the size that a model takes.

    Raises UserError where colours would have to be guessed.
    """
    if dataset.kind is None:
        return dataset
    channels, height, width = dataset.train.inputs.shape[1:]
    if wanted.channels not in (None, 1, channels) and channels != 1:
        raise UserError(
            f"the model takes images of {wanted.channels} channels, {dataset.name} has {channels}"
        )
    size = wanted.size or (max(height, wanted.smallest), max(width, wanted.smallest))
    to_size = None if size == (height, width) else size
    to_channels = None if wanted.channels == channels else wanted.channels
    if not (to_channels or to_size):
        return dataset
    train, validation, test = (
        replace(split, adapt=replace(split.adapt or Adapt(), channels=to_channels, size=to_size))
        for split in dataset.splits
    )
    treatment = dataset.treatment
    if to_size:
        treatment += f", scaled to {to_size[0]}x{to_size[1]}"
    if to_channels:
        treatment += f", {channels} channel{'s' * (channels > 1)} to {to_channels}"
    return Dataset(dataset.name, train, validation, test, treatment)
