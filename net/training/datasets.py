"""Data sets, read once into tensors on the device; a batch is an index slice of them.

Batches are adapted to the model as they are drawn, so that 60,000 small images for a network that
takes 3x224x224 are still 60,000 small images in memory.
"""

import math
import socket
import sys
import threading
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn import functional as F

from ..errors import UserError
from . import distributed
from .architectures import Input

# torchvision's classes; these three share the file layout and the shape [N, 28, 28].
DOWNLOADABLE = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
NAMES = ("auto", *DOWNLOADABLE, "cifar10", "digits", "folder:PATH")
HELD_OUT = 1 / 12  # of the training images: 5,000 of MNIST's 60,000
IN_MEMORY = 2 << 30  # bytes of images that are kept; more are read or made anew in every epoch
WHOLE = (0, 1)  # process 0 of 1


@dataclass
class Adapt:
    """From a batch as it is stored, [N, C, H, W], to the float32 batch that the model takes.

    `mean` and `std` [1, C, 1, 1] normalise images that are stored as bytes; those stored as
    float32 are normalised already.  `channels` and `size` (height, width) of None change nothing.
    """

    mean: torch.Tensor | None = None
    std: torch.Tensor | None = None
    channels: int | None = None
    size: tuple[int, int] | None = None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if self.mean is not None:
            images = images.float().sub_(self.mean).div_(self.std)
        if self.channels == 1:
            images = images.mean(1, keepdim=True)
        if self.size is not None:
            images = F.interpolate(
                images, self.size, mode="bilinear", align_corners=False, antialias=True
            )
        if self.channels is not None:
            images = images.expand(-1, self.channels, -1, -1)
        return images


@dataclass
class Split:
    """`images` float32 or uint8 [N, C, H, W]; `labels` int64 [N]; both on one device."""

    images: torch.Tensor
    labels: torch.Tensor
    adapt: Adapt | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, part: slice) -> "Split":
        return replace(self, images=self.images[part], labels=self.labels[part])

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        return tuple(self.images.shape[1:])

    def batches(self, batch_size: int, shuffle: bool = False, shard=WHOLE):
        """Yield (images float32, labels); shuffled by torch's global generator."""
        for index in batch_indexes(len(self), batch_size, shuffle, shard):
            index = index.to(self.labels.device)
            images = self.images[index]
            yield self.adapt(images) if self.adapt else images, self.labels[index]


def batch_indexes(n: int, batch_size: int, shuffle: bool, shard=WHOLE) -> list[torch.Tensor]:
    """The batches of an epoch over `n` images, int64 [batch_size] each, some fewer.

    `shard` is (process, processes).  Shuffled, for training, each process gets its part of every
    batch; otherwise, for evaluation, whole batches, every image in one of them.
    """
    if not shuffle:
        rank, processes = shard
        return list(torch.arange(n).split(batch_size)[rank::processes])
    return training_batches(torch.randperm(n), batch_size, shard)


def training_batches(order: torch.Tensor, batch_size: int, shard=WHOLE) -> list[torch.Tensor]:
    """Batches in the order that the first process has drawn, all of about the same size.

    (BatchNorm cannot train on a last batch of one image.)  The parts of a batch have the same size
    in all processes, so that up to processes - 1 of its images are left out.
    """
    rank, processes = shard
    if batch_size < processes:
        raise UserError(f"a batch of {batch_size} is too small for {processes} processes")
    batches = distributed.from_writer(order).tensor_split(math.ceil(len(order) / batch_size))
    return [batch[rank::processes][: len(batch) // processes] for batch in batches]


@dataclass
class Dataset:
    """`validation` is held out of the training images: choices are made on it, never on `test`."""

    name: str
    train: Split
    validation: Split
    test: Split

    @property
    def splits(self) -> tuple:
        return self.train, self.validation, self.test

    @property
    def classes(self) -> int:
        return max(int(split.labels.max()) for split in self.splits) + 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images in a batch."""
        channels, height, width = self.train.stored_shape
        adapt = self.train.adapt or Adapt()
        return adapt.channels or channels, *(adapt.size or (height, width))


def load(
    name: str,
    data_dir,
    device,
    wanted: Input | None = None,
    val_fraction: float = 0.2,
    skip_broken: bool = False,
) -> Dataset:
    """The data set `name` on `device`, normalised by the mean and deviation of its training images.

    "auto" is MNIST where its files are in `data_dir` or can be downloaded, and scikit-learn's
    digits otherwise, which a line on stderr says.  The batches are as the model `wanted` them (as
    they are for None).  `val_fraction` and `skip_broken`: see folder.load.  Raises UserError
    for an unknown name, a named data set that is neither there nor to be had, and one that cannot
    be adapted to the model.
    """
    wanted = wanted or Input()
    if name.startswith("folder:"):
        from . import folder

        return adapted(folder.load(name, device, wanted, val_fraction, skip_broken), wanted)
    if name not in NAMES:
        raise UserError(f"unknown data set {name!r}; known: {', '.join(NAMES)}")
    return adapted(load_named(name, Path(data_dir), device), wanted)


def load_named(name: str, data_dir: Path, device) -> Dataset:
    if name == "digits":
        return normalised("digits", *read_digits(), device)
    if name == "cifar10":
        return as_bytes("cifar10", *read_cifar10(data_dir), device)
    wanted = "mnist" if name == "auto" else name
    try:
        return normalised(wanted, *read_torchvision(wanted, data_dir), device)
    except UserError as error:
        if name != "auto":
            raise
        print(
            f"NOTE: MNIST is not available ({error}).\n"
            "NOTE: using scikit-learn's bundled digits instead: 1,797 scans of 8x8, "
            "scaled to 28x28. The figures below are for digits, NOT for MNIST.",
            file=sys.stderr,
            flush=True,
        )
        return normalised("digits", *read_digits(), device)


def normalised(name, train_images, train_labels, test_images, test_labels, device) -> Dataset:
    """From images [N, C, H, W] and integer labels, stored as normalised float32."""
    train_images, test_images = train_images.float().to(device), test_images.float().to(device)
    mean, std = train_images.mean(), train_images.std()
    train_images.sub_(mean).div_(std)
    test_images.sub_(mean).div_(std)
    train_labels, test_labels = train_labels.long().to(device), test_labels.long().to(device)
    return with_held_out(name, Split(train_images, train_labels), Split(test_images, test_labels))


def as_bytes(name, train_images, train_labels, test_images, test_labels, device) -> Dataset:
    """From images uint8 [N, C, H, W], which stay bytes: a quarter of the memory."""
    channels = train_images.transpose(0, 1).flatten(1)
    mean = [float(c.sum(dtype=torch.float64)) / c.numel() for c in channels]
    square = [float((c.int() ** 2).sum(dtype=torch.float64)) / c.numel() for c in channels]
    adapt = normaliser(mean, square, device)
    train = Split(train_images.to(device), train_labels.long().to(device), adapt)
    test = Split(test_images.to(device), test_labels.long().to(device), adapt)
    return with_held_out(name, train, test)


def normaliser(mean: list[float], square: list[float], device) -> Adapt:
    """From the mean and the mean square of every channel, over the training images."""
    mean, square = torch.tensor(mean).double(), torch.tensor(square).double()
    std = (square - mean**2).clamp(min=1e-6).sqrt()
    as_batch = [t.float().view(1, -1, 1, 1).to(device) for t in (mean, std)]
    return Adapt(*as_batch)


def with_held_out(name: str, train, test) -> Dataset:
    """The last of the training images are held out; they must be in a random order."""
    n = max(1, round(len(train) * HELD_OUT))
    return Dataset(name, train=train[:-n], validation=train[-n:], test=test)


def adapted(dataset: Dataset, wanted: Input) -> Dataset:
    """`dataset` with batches of the channels and the size that a model takes."""
    channels, *size = dataset.train.stored_shape
    if wanted.channels not in (None, 1, channels) and channels != 1:
        raise UserError(
            f"the model takes images of {wanted.channels} channels, {dataset.name} has {channels}"
        )
    to_channels = None if wanted.channels in (None, channels) else wanted.channels
    target = wanted.size or tuple(max(side, wanted.smallest) for side in size)
    to_size = None if target == tuple(size) else target
    if to_channels or to_size:
        for split in dataset.splits:
            split.adapt = replace(split.adapt or Adapt(), channels=to_channels, size=to_size)
    return dataset


def read_digits():
    """scikit-learn's digits: 1,437 to train on, 360 to test on, shuffled once and for all."""
    from sklearn.datasets import load_digits  # takes a second, and only this data set needs it

    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None]  # [1797, 1, 8, 8], 0..16
    images = F.interpolate(images, size=(28, 28), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(digits.target)
    # The scans are ordered by writer and digit; a fixed order of its own, whatever the seed.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    return images[360:], labels[360:], images[:360], labels[:360]


def read_cifar10(data_dir: Path):
    """CIFAR-10 in torchvision's layout, DATA_DIR/cifar-10-batches-py/..., downloaded if missing."""
    from torchvision.datasets import CIFAR10

    folder = data_dir / CIFAR10.base_folder
    files = [folder / name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    if not all(file.is_file() for file in files):
        download(CIFAR10, [CIFAR10.url], data_dir, f"the data set 'cifar10' is not in {folder}")
    try:  # torchvision checks the files' MD5 sums before it unpickles them
        train, test = CIFAR10(data_dir, train=True), CIFAR10(data_dir, train=False)
    except (RuntimeError, OSError) as error:
        raise UserError(f"the files in {folder} are damaged ({error}); delete them") from None
    images = [
        torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in (train, test)
    ]
    return images[0], torch.tensor(train.targets), images[1], torch.tensor(test.targets)


def read_torchvision(name: str, data_dir: Path):
    """A data set in torchvision's layout, DATA_DIR/MNIST/raw/..., downloaded if it is missing."""
    from torchvision import datasets

    kind = getattr(datasets, DOWNLOADABLE[name])
    raw = data_dir / DOWNLOADABLE[name] / "raw"
    files = [raw / Path(archive).stem for archive, _ in kind.resources]
    if not all(file.is_file() for file in files):
        download(kind, kind.mirrors, data_dir, f"the data set {name!r} is not in {raw}")
    try:
        train, test = kind(data_dir, train=True), kind(data_dir, train=False)
    except (RuntimeError, ValueError, AssertionError, EOFError, OSError) as error:
        raise UserError(f"the files in {raw} are damaged ({error}); delete them") from None
    return train.data[:, None], train.targets, test.data[:, None], test.targets


def download(kind, hosts: list[str], data_dir: Path, problem: str) -> None:
    """Let torchvision download, after a probe that bounds what a silent host can cost to 6 s."""
    hint = "put its files there, name another --data-dir, or use --dataset digits"
    if not reachable(hosts):
        raise UserError(f"{problem} and no host that has it answers; {hint}")
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(8)  # torchvision sets none: a host that stalls would hang the run
    try:
        kind(data_dir, download=True)
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{problem} and cannot be downloaded ({reason}); {hint}") from None
    finally:
        socket.setdefaulttimeout(previous)


def reachable(urls: list[str], seconds: float = 6.0) -> bool:
    """Whether one of `urls` answers in time.

    In threads, since no timeout of a socket covers the name look-up.
    """
    answered = threading.Event()

    def probe(url):
        try:
            urllib.request.urlopen(url, timeout=seconds).close()
            answered.set()
        except urllib.error.HTTPError:  # a folder without an index: the host is there
            answered.set()
        except OSError:
            pass

    threads = [threading.Thread(target=probe, args=(url,), daemon=True) for url in urls]
    for thread in threads:
        thread.start()
    while any(t.is_alive() for t in threads) and seconds > 0 and not answered.wait(0.1):
        seconds -= 0.1
    return answered.is_set()


def distort(images: torch.Tensor, strength: float, shard=WHOLE) -> torch.Tensor:
    """Each image of a batch [N, C, H, W] under a small random affine map of its own.

    At strength 1: rotations of up to 10 degrees, scales of up to 10 %, shears of up to 7 %, shifts
    of up to 1.5 pixels in 28.  What comes in from outside has the colour of the edge.
    """
    n, device = len(images), images.device
    rank, processes = shard  # all draw the same numbers, and each takes its own part
    # Uniform in [-strength, strength]: rotation, scale x, scale y, shear, shift x, shift y.
    u = torch.rand(6, n * processes)[:, rank::processes]
    u = (u * 2 - 1).to(device) * strength
    angle = math.radians(10) * u[0]
    cos, sin = angle.cos(), angle.sin()
    scale_x, scale_y, shear = 1 + 0.1 * u[1], 1 + 0.1 * u[2], 0.07 * u[3]
    shift_x, shift_y = 1.5 / 14 * u[4], 1.5 / 14 * u[5]  # in halves of the image
    theta = torch.stack(
        [scale_x * cos, shear - scale_y * sin, shift_x, scale_x * sin, scale_y * cos, shift_y], 1
    ).view(n, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
