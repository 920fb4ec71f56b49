import numpy as np
import pytest
import torch
from PIL import Image
from torch import multiprocessing

from net.errors import UserError
from net.training import datasets, reading, splits
from net.training.inputs import Input
from net.training.log import Log

SMALL = Input(None, (8, 8))


def write_images(root, counts, seed=0):
    """PNG files of noise around a brightness of the class's own: {class: number of images}."""
    rng = np.random.default_rng(seed)
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 80, (12, 16, 3)) + 80 * number
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")


@pytest.fixture
def images(tmp_path):
    write_images(tmp_path / "train", {"cat": 20, "dog": 16, "owl": 12})
    write_images(tmp_path / "val", {"cat": 3, "dog": 2, "owl": 4}, seed=1)
    return tmp_path


def load(path, **options):
    return load_named(f"folder:{path}", **options)


def load_named(name, **options):
    return datasets.load(name, "unused", torch.device("cpu"), SMALL, **options)


def test_the_splits(images):
    found = load(images)
    assert (found.name, found.classes, found.shape) == (f"folder:{images}", 3, (3, 8, 8))
    assert [len(split) for split in found.splits] == [44, 4, 9]
    assert found.test.labels.tolist() == [0] * 3 + [1] * 2 + [2] * 4
    batch, labels = next(found.train.batches(44))
    assert batch.dtype == torch.float32
    assert len(labels.unique()) == 3  # shuffled: the held-out images are of every class
    brightness = [float(batch[labels == label].mean()) for label in range(3)]
    assert brightness == sorted(brightness)


def test_normalised_by_the_training_images_per_channel(images):
    found = load(images)
    every = torch.cat([next(s.batches(100))[0] for s in (found.train, found.validation)])
    assert every.mean((0, 2, 3)).abs().max() < 1e-5
    assert (every.std((0, 2, 3)) - 1).abs().max() < 1e-3


def test_normalised_by_the_models_figures(images):
    wanted = Input(3, (8, 8), mean=(0.1, 0.2, 0.4), std=(1.0, 0.5, 0.25))
    found = datasets.load(f"folder:{images}", "", torch.device("cpu"), wanted)
    assert found.kind == "photographs"
    batch = next(found.test.batches(9))[0]
    raw = found.test.inputs / 255
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (wanted.mean, wanted.std))
    assert torch.allclose(batch, (raw - mean) / std, atol=1e-5)


@pytest.mark.parametrize("part", ["train", ""])
def test_without_val_a_fraction_is_the_test_set(tmp_path, part):
    write_images(tmp_path / part, {"a": 30, "b": 30})
    found = load(tmp_path, val_fraction=0.5)
    assert [len(split) for split in found.splits] == [28, 2, 30]
    # Its name tells a later stage, which would test on images of the training set otherwise.
    again, usual = (load_named(found.name), load_named(found.name, val_fraction=0.2))
    assert found.name == again.name == f"folder:{tmp_path}(val_fraction=0.5)"
    assert torch.equal(again.test.inputs, found.test.inputs)
    assert (usual.name, len(usual.test)) == (f"folder:{tmp_path}", 12)
    both = load(tmp_path, val_fraction=0.25, normalise="unit")
    assert both.name == f"folder:{tmp_path}(val_fraction=0.25)(normalise=unit)"
    assert (load_named(both.name).name, len(both.test)) == (both.name, 15)


@pytest.mark.parametrize("few", [0, 512])
def test_streamed_batches_are_those_in_memory(images, monkeypatch, few):
    kept = load(images)
    monkeypatch.setattr(splits, "IN_MEMORY", 0)
    monkeypatch.setattr(reading, "FEW", few)  # 0: read by processes
    streamed = load(images)
    assert isinstance(kept.train.inputs, torch.Tensor)
    assert isinstance(streamed.train.inputs, reading.Streamed)
    assert streamed.shape == kept.shape
    for shuffle in (False, True):
        for a, b in zip(kept.splits, streamed.splits, strict=True):
            torch.manual_seed(3)
            batches = list(a.batches(7, shuffle))
            torch.manual_seed(3)
            for (x, y), (u, v) in zip(batches, b.batches(7, shuffle), strict=True):
                assert torch.equal(x, u)
                assert torch.equal(y, v)


def read_with_few_open_files(_, path):
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    reading.FEW = 0  # read by processes, which share memory with this one
    for in_memory, kind in ((2**30, torch.Tensor), (0, reading.Streamed)):
        splits.IN_MEMORY = in_memory
        found = load(path)
        assert isinstance(found.train.inputs, kind)
        for batch_size in (2, 100):
            batches = list(found.train.batches(batch_size, shuffle=True))
            assert sum(len(labels) for _, labels in batches) == len(found.train) == 147


def test_more_images_than_files_may_be_open(tmp_path):
    pytest.importorskip("resource")  # which Windows has not
    write_images(tmp_path / "train", {"a": 100, "b": 100})
    # In a process of its own: one that runs out of files may hang instead of failing.
    context = multiprocessing.start_processes(
        read_with_few_open_files, (tmp_path,), join=False, start_method="fork"
    )
    try:
        assert context.join(timeout=120)
    finally:
        context.processes[0].kill()


@pytest.mark.parametrize("content", [b"", b"not an image", "cut off"])
def test_a_broken_file_is_refused_with_its_path_or_skipped(images, content, capsys, tmp_path):
    path = images / "train" / "dog" / "5.png"
    path.write_bytes(path.read_bytes()[:-200] if content == "cut off" else content)
    with pytest.raises(UserError, match=r"dog/5\.png cannot be read as an image.*pass over"):
        load(images)
    log = Log(tmp_path / "log.txt")
    found = load(images, skip_broken=True, log=log)
    assert len(found.train) + len(found.validation) == 47
    assert f"NOTE: skipped {path}" in capsys.readouterr().err
    assert f"NOTE: skipped {path}" in (tmp_path / "log.txt").read_text()


def test_a_file_that_breaks_after_the_first_pass_is_named(images, monkeypatch):
    monkeypatch.setattr(splits, "IN_MEMORY", 0)
    found = load(images)
    (images / "val" / "owl" / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"owl/0\.png cannot be read"):
        list(found.test.batches(4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ({}, "holds no folders; it must hold one per class"),
        ({"val": {"a": 4}}, "no folder .*train; it must hold one folder of images per class"),
        ({"train": {}}, "train holds no folders"),
        ({"train": {"a": 0}}, "train holds no images"),
        ({"train": {"a": 1}, "val": {"a": 1}}, "too few images"),
        ({"train": {"a": 4}, "val": {"b": 1}}, "val/b is a class that the training images do not"),
    ],
)
def test_folders_that_are_no_data_set(tmp_path, make, message):
    for part, counts in make.items():
        (tmp_path / part).mkdir()
        write_images(tmp_path / part, counts)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_beside_val_a_fraction_has_no_effect(images, capsys):
    found = load(images, val_fraction=0.5)
    assert "NOTE: a part to test on has no effect" in capsys.readouterr().err
    usual = load(images)
    assert found.name == usual.name == f"folder:{images}"
    assert torch.equal(found.test.inputs, usual.test.inputs)
    assert capsys.readouterr().err == ""
