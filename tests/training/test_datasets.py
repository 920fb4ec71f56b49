import hashlib
import pickle

import numpy as np
import pytest
import torch

from net.errors import UserError
from net.training import datasets
from net.training.inputs import Input


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits", "unused", torch.device("cpu"))


def test_digits_splits(digits):
    assert (digits.name, digits.classes) == ("digits", 10)
    assert [len(s) for s in (digits.train, digits.validation, digits.test)] == [1317, 120, 360]
    assert digits.train.inputs.shape[1:] == (1, 28, 28)
    assert digits.train.inputs.dtype == torch.float32
    assert digits.train.labels.dtype == torch.int64


def test_normalised_by_the_training_images(digits):
    images = torch.cat([digits.train.inputs, digits.validation.inputs])
    assert abs(images.mean()) < 1e-4
    assert abs(images.std() - 1) < 1e-4
    assert abs(digits.test.inputs.mean()) > 1e-5  # the test images had no say


def test_no_image_is_in_two_splits(digits):
    splits = (digits.train, digits.validation, digits.test)
    seen = [{image.numpy().tobytes() for image in split.inputs.half()} for split in splits]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


def test_unknown_data_set():
    with pytest.raises(UserError, match="unknown data set 'svhn'; known: auto, mnist"):
        datasets.load("svhn", "data", "cpu")


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(datasets, "reachable", lambda urls: False)


def test_auto_falls_back_to_digits_and_says_so(offline, tmp_path, capsys):
    assert datasets.load("auto", tmp_path, "cpu").name == "digits"
    assert "NOT for MNIST" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist", "cifar10"])
def test_a_named_data_set_never_falls_back(offline, tmp_path, name):
    with pytest.raises(UserError, match=f"the data set '{name}' is not in .*--dataset digits"):
        datasets.load(name, tmp_path, "cpu")


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def mnist_files(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, n in (("train", 24), ("t10k", 6)):
        write_idx(raw / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (n, 28, 28)))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(n) % 10)
    return tmp_path


@pytest.mark.parametrize("name", ["mnist", "auto"])
def test_files_in_torchvisions_layout_are_used_as_they_are(mnist_files, offline, name):
    found = datasets.load(name, mnist_files, "cpu")
    assert found.name == "mnist"
    assert [len(s) for s in (found.train, found.validation, found.test)] == [22, 2, 6]


def test_damaged_files_are_reported(mnist_files, offline):
    path = mnist_files / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"damaged.*delete them"):
        datasets.load("mnist", mnist_files, "cpu")


@pytest.fixture
def cifar_files(tmp_path, monkeypatch):
    """CIFAR-10's files, small; torchvision is told their MD5 sums."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(name):
        pixels = rng.integers(0, 256, (20, 3072)).astype(np.uint8)
        return write(name, {"data": pixels, "labels": list(range(10)) * 2})

    monkeypatch.setattr(CIFAR10, "train_list", [batch("data_batch_1"), batch("data_batch_2")])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch")])
    name, md5 = write("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    return tmp_path


def test_cifar10(cifar_files, offline):
    found = datasets.load("cifar10", cifar_files, "cpu")
    assert [len(split) for split in found.splits] == [37, 3, 20]
    assert (found.classes, found.shape) == (10, (3, 32, 32))
    assert found.train.inputs.dtype == torch.uint8  # a quarter of the memory
    every = torch.cat([next(s.batches(100))[0] for s in (found.train, found.validation)])
    assert every.mean((0, 2, 3)).abs().max() < 1e-5
    assert (every.std((0, 2, 3)) - 1).abs().max() < 1e-3


def test_damaged_cifar10(cifar_files, offline):
    path = cifar_files / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match=r"damaged.*delete them"):
        datasets.load("cifar10", cifar_files, "cpu")


# Adapting to a model


@pytest.mark.parametrize(
    ("wanted", "shape"),
    [
        (Input(), (1, 28, 28)),
        (Input(None, (28, 28)), (1, 28, 28)),
        (Input(3, None, 21), (3, 28, 28)),
        (Input(3, None, 63), (3, 63, 63)),
        (Input(1, (12, 14)), (1, 12, 14)),
    ],
)
def test_batches_are_as_the_model_wants_them(wanted, shape):
    found = datasets.load("digits", "unused", "cpu", wanted)
    assert found.shape == shape
    for split in found.splits:
        images, _ = next(split.batches(5))
        assert images.shape == (5, *shape)
        assert split.inputs.shape[1:] == (1, 28, 28)  # stored as they were
        assert torch.equal(images[:, 0], images[:, -1])


def test_grey_from_colours(cifar_files, offline):
    colour = datasets.load("cifar10", cifar_files, "cpu")
    grey = datasets.load("cifar10", cifar_files, "cpu", Input(1, (28, 28)))
    assert grey.shape == (1, 28, 28)
    images = next(colour.test.batches(20))[0]
    assert abs(images.mean() - next(grey.test.batches(20))[0].mean()) < 0.01


def test_channels_that_cannot_be_adapted(cifar_files, offline):
    with pytest.raises(UserError, match="the model takes images of 4 channels, cifar10 has 3"):
        datasets.load("cifar10", cifar_files, "cpu", Input(4))


def test_a_download_that_fails_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "reachable", lambda urls: True)

    def download(self):
        raise RuntimeError("Error downloading train-images\nmore")

    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "download", download)
    with pytest.raises(UserError, match=r"cannot be downloaded \(Error downloading train-images\)"):
        datasets.load("mnist", tmp_path, "cpu")
