import hashlib
import json
import pickle

import numpy as np
import pytest
import torch

from net.errors import UserError
from net.training import datasets, download
from net.training.inputs import Input
from net.training.log import Log


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits", "unused", torch.device("cpu"))


def all_of(split):
    """The inputs as the model gets them."""
    return next(split.batches(len(split)))[0]


def test_digits_splits(digits):
    assert (digits.name, digits.classes) == ("digits", 10)
    assert [len(s) for s in (digits.train, digits.validation, digits.test)] == [1317, 120, 360]
    assert all_of(digits.train).shape[1:] == digits.shape == (1, 28, 28)
    assert all_of(digits.train).dtype == torch.float32
    assert digits.train.labels.dtype == torch.int64


def test_normalised_by_the_training_images(digits):
    images = torch.cat([all_of(digits.train), all_of(digits.validation)])
    assert abs(images.mean()) < 1e-4
    assert abs(images.std() - 1) < 1e-4
    assert abs(all_of(digits.test).mean()) > 1e-5  # the test images had no say


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
    monkeypatch.setattr(download, "reachable", lambda urls: False)


def test_auto_falls_back_to_digits_and_says_so_in_the_log(offline, tmp_path, capsys):
    log = Log(tmp_path / "log.txt")
    assert datasets.load("auto", tmp_path, "cpu", log=log).name == "digits"
    assert "NOT for MNIST" in capsys.readouterr().err
    assert "NOT for MNIST" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist", "cifar10"])
def test_a_named_data_set_never_falls_back(offline, tmp_path, name):
    with pytest.raises(
        UserError, match=f"the data set '{name}' is not in .*take the data set digits"
    ):
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
    every = torch.cat([all_of(split) for split in (found.train, found.validation)])
    assert every.mean((0, 2, 3)).abs().max() < 1e-5
    assert (every.std((0, 2, 3)) - 1).abs().max() < 1e-3


def test_damaged_cifar10(cifar_files, offline):
    path = cifar_files / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match=r"damaged.*delete them"):
        datasets.load("cifar10", cifar_files, "cpu")


def records(n, first_label=0):
    """(bytes of n records of CIFAR-10's binary layout, their images)"""
    rng = np.random.default_rng(n)
    pixels = rng.integers(0, 256, (n, 3, 32, 32)).astype(np.uint8)
    labels = ((np.arange(n) + first_label) % 10).astype(np.uint8)
    return np.column_stack([labels, pixels.reshape(n, -1)]).tobytes(), pixels


@pytest.fixture
def cifar_binary(tmp_path):
    """CIFAR-10's binary files, of a few records each and in no other layout."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for i in range(1, 6):
        (folder / f"data_batch_{i}.bin").write_bytes(records(10 + i, i)[0])
    (folder / "test_batch.bin").write_bytes(records(7)[0])
    return tmp_path


def test_cifar10_in_its_binary_layout(cifar_binary, offline):
    found = datasets.load("cifar10", cifar_binary, "cpu")
    assert [len(split) for split in found.splits] == [60, 5, 7]
    assert (found.name, found.classes, found.shape) == ("cifar10", 10, (3, 32, 32))
    assert found.kind == "photographs"
    pixels = np.concatenate([records(10 + i, i)[1] for i in range(1, 6)])
    assert torch.equal(found.train.inputs, torch.from_numpy(pixels[:60]))
    assert found.train.labels[:13].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3]
    assert torch.equal(found.test.inputs, torch.from_numpy(records(7)[1]))
    every = torch.cat([all_of(split) for split in (found.train, found.validation)])
    assert every.mean((0, 2, 3)).abs().max() < 1e-5
    assert (every.std((0, 2, 3)) - 1).abs().max() < 1e-3


def test_torchvisions_layout_comes_first(cifar_files, offline):
    (cifar_files / "cifar-10-batches-bin").mkdir()
    assert len(datasets.load("cifar10", cifar_files, "cpu").test) == 20


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_3.bin", None, r"cannot read .*data_batch_3.bin: No such file.*; put the file"),
        ("data_batch_1.bin", b"", "data_batch_1.bin is damaged: its 0 bytes are not a whole"),
        ("test_batch.bin", bytes(3072), "its 3072 bytes are not a whole number of records of 3073"),
        ("test_batch.bin", bytes(3073 * 2 + 1), "its 6147 bytes are not a whole number"),
        (
            "test_batch.bin",
            bytes(3073) + b"\x0a" + bytes(3072),
            "damaged: record 1 is of class 10, and there are 0 to 9 only; download it again",
        ),
    ],
)
def test_binary_files_that_are_damaged(cifar_binary, offline, name, content, message):
    path = cifar_binary / "cifar-10-batches-bin" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        datasets.load("cifar10", cifar_binary, "cpu")


# Normalisation by the model's own figures


def test_grey_images_by_figures_of_their_own(digits):
    found = datasets.load("digits", "unused", "cpu", Input(1, (28, 28), mean=(0.5,), std=(0.25,)))
    images = all_of(found.train)
    assert images.min() == -2  # black: (0 - 0.5) / 0.25
    assert images.max() == pytest.approx(2)  # white, 16 of 16
    ours = all_of(digits.train)
    slope = (images.max() - images.min()) / (ours.max() - ours.min())
    assert torch.allclose(images, (ours - ours.min()) * slope - 2, atol=1e-5)


def test_grey_images_by_an_option(digits):
    """Which goes before the model's figures."""
    wanted = Input(mean=(0.5,), std=(0.25,))
    raw = datasets.read_digits()[2]
    for how, scale in (("none", 1), ("unit", 16)):
        found = datasets.load("digits", "unused", "cpu", wanted, normalise=how)
        assert found.name == f"digits(normalise={how})"
        assert torch.equal(all_of(found.test), raw / scale)
    found = datasets.load("digits", "unused", "cpu", wanted, normalise="data")
    assert torch.equal(all_of(found.test), all_of(digits.test))


def test_the_log_says_once_what_is_done_to_inputs(cifar_files, offline, tmp_path, capsys):
    log = Log(tmp_path / "log.jsonl")
    datasets.load("digits", "unused", "cpu", Input(3, (32, 32)), log=log)
    wanted = Input(1, mean=(0.5,), std=(0.25,))
    datasets.load("cifar10", cifar_files, "cpu", wanted, log=log)
    assert capsys.readouterr().out.splitlines() == [
        "inputs of digits: normalised by the training inputs' own mean 4.89 and deviation 5.195, "
        "scaled to 32x32, 1 channel to 3",
        "inputs of cifar10: normalised by the model's mean 0.5 and deviation 0.25 of values in "
        "[0, 1], 3 channels to 1",
    ]
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(e["event"], e["dataset"]) for e in events] == [
        ("inputs", "digits"),
        ("inputs", "cifar10"),
    ]


def test_grey_images_by_figures_of_colours(mnist_files, offline):
    wanted = Input(3, (32, 32), mean=(0.1, 0.2, 0.4), std=(1.0, 0.5, 0.25))
    found = datasets.load("mnist", mnist_files, "cpu", wanted)
    assert found.shape == (3, 32, 32)
    images = all_of(found.test)
    assert images.shape == (6, 3, 32, 32)
    grey = [images[:, i] * wanted.std[i] + wanted.mean[i] for i in range(3)]
    assert torch.allclose(grey[0], grey[1], atol=1e-6)
    assert torch.allclose(grey[0], grey[2], atol=1e-6)
    assert 0 <= grey[0].min() < grey[0].max() <= 1


def test_photographs_by_the_models_figures(cifar_binary, offline):
    wanted = Input(3, (32, 32), mean=(0.1, 0.2, 0.4), std=(1.0, 0.5, 0.25))
    found = datasets.load("cifar10", cifar_binary, "cpu", wanted)
    images = all_of(found.test)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (wanted.mean, wanted.std))
    expected = (torch.from_numpy(records(7)[1]) / 255 - mean) / std
    assert torch.allclose(images, expected, atol=1e-5)


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
    assert abs(all_of(colour.test).mean() - all_of(grey.test).mean()) < 0.01


def test_channels_that_cannot_be_adapted(cifar_files, offline):
    with pytest.raises(UserError, match="the model takes images of 4 channels, cifar10 has 3"):
        datasets.load("cifar10", cifar_files, "cpu", Input(4))


def test_a_download_that_fails_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(download, "reachable", lambda urls: True)

    def fail(self):
        raise RuntimeError("Error downloading train-images\nmore")

    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "download", fail)
    with pytest.raises(UserError, match=r"downloaded \(Error downloading train-images more\)"):
        datasets.load("mnist", tmp_path, "cpu")
