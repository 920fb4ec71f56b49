"""Data sets, read once into tensors on the device; a batch is an index slice of them."""

import math
import socket
import sys
import threading
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from net.errors import UserError

# torchvision's classes; all three share the file layout and the shape [N, 28, 28].
DOWNLOADABLE = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
NAMES = ("auto", *DOWNLOADABLE, "digits")
HELD_OUT = 1 / 12  # of the training images: 5,000 of MNIST's 60,000


@dataclass
class Split:
    """`images` float32 [N, C, H, W], normalised; `labels` int64 [N]; both on one device."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, batch_size: int, shuffle: bool = False):
        """Yield (images, labels); shuffled by torch's global generator."""
        if not shuffle:
            yield from zip(
                self.images.split(batch_size), self.labels.split(batch_size), strict=True
            )
            return
        order = torch.randperm(len(self)).to(self.labels.device)
        for index in order.split(batch_size):
            yield self.images[index], self.labels[index]


@dataclass
class Dataset:
    """`validation` is held out of the training images: choices are made on it, never on `test`."""

    name: str
    train: Split
    validation: Split
    test: Split

    @property
    def classes(self) -> int:
        return int(self.train.labels.max()) + 1


def load(name: str, data_dir, device) -> Dataset:
    """The data set `name` on `device`, normalised by the mean and deviation of its training images.

    "auto" is MNIST where its files are in `data_dir` or can be downloaded, and scikit-learn's
    digits otherwise, which a line on stderr says.  Raises UserError for an unknown name, and for a
    named data set that is neither there nor to be had.
    """
    if name not in NAMES:
        raise UserError(f"unknown data set {name!r}; known: {', '.join(NAMES)}")
    if name == "digits":
        return normalised("digits", *read_digits(), device)
    wanted = "mnist" if name == "auto" else name
    try:
        return normalised(wanted, *read_torchvision(wanted, Path(data_dir)), device)
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
    """From images [N, C, H, W] and integer labels; the last of the training images are held out."""
    train_images, test_images = train_images.float().to(device), test_images.float().to(device)
    mean, std = train_images.mean(), train_images.std()
    train_images.sub_(mean).div_(std)
    test_images.sub_(mean).div_(std)
    train_labels, test_labels = train_labels.long().to(device), test_labels.long().to(device)
    held_out = max(1, round(len(train_labels) * HELD_OUT))
    return Dataset(
        name,
        train=Split(train_images[:-held_out], train_labels[:-held_out]),
        validation=Split(train_images[-held_out:], train_labels[-held_out:]),
        test=Split(test_images, test_labels),
    )


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


def read_torchvision(name: str, data_dir: Path):
    """A data set in torchvision's layout, DATA_DIR/MNIST/raw/..., downloaded if it is missing."""
    from torchvision import datasets

    kind = getattr(datasets, DOWNLOADABLE[name])
    raw = data_dir / DOWNLOADABLE[name] / "raw"
    files = [raw / Path(archive).stem for archive, _ in kind.resources]
    if not all(file.is_file() for file in files):
        download(kind, data_dir, f"the data set {name!r} is not in {raw}")
    try:
        train, test = kind(data_dir, train=True), kind(data_dir, train=False)
    except (RuntimeError, ValueError, AssertionError, EOFError, OSError) as error:
        raise UserError(f"the files in {raw} are damaged ({error}); delete them") from None
    return train.data[:, None], train.targets, test.data[:, None], test.targets


def download(kind, data_dir: Path, problem: str) -> None:
    """Let torchvision download, after a probe that bounds what a silent host can cost to 6 s."""
    hint = "put its files there, name another --data-dir, or use --dataset digits"
    if not reachable(kind.mirrors):
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


def distort(images: torch.Tensor, strength: float) -> torch.Tensor:
    """Each image of a batch [N, C, H, W] under a small random affine map of its own.

    At strength 1: rotations of up to 10 degrees, scales of up to 10 %, shears of up to 7 %, shifts
    of up to 1.5 pixels in 28.  What comes in from outside has the colour of the edge.
    """
    n, device = len(images), images.device
    # Uniform in [-strength, strength]: rotation, scale x, scale y, shear, shift x, shift y.
    u = (torch.rand(6, n) * 2 - 1).to(device) * strength
    angle = math.radians(10) * u[0]
    cos, sin = angle.cos(), angle.sin()
    scale_x, scale_y, shear = 1 + 0.1 * u[1], 1 + 0.1 * u[2], 0.07 * u[3]
    shift_x, shift_y = 1.5 / 14 * u[4], 1.5 / 14 * u[5]  # in halves of the image
    theta = torch.stack(
        [scale_x * cos, shear - scale_y * sin, shift_x, scale_x * sin, scale_y * cos, shift_y], 1
    ).view(n, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
