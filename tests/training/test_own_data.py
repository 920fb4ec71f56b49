import importlib
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from net.errors import UserError
from net.training import datasets, reading, splits
from net.training.distillation import Distorted, distilled
from net.training.inputs import Input
from net.training.own_data import image_kind, read_image


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load what a factory in a module of the working directory returns."""
    monkeypatch.chdir(tmp_path)
    name = f"data_{tmp_path.name.replace('-', '_')}"

    def load(*parts, wanted=None, normalise="auto"):
        (tmp_path / f"{name}.py").write_text("def factory():\n    return parts\n")
        monkeypatch.syspath_prepend(tmp_path)
        importlib.import_module(name).parts = parts if len(parts) != 1 else parts[0]
        cpu = torch.device("cpu")
        return datasets.load(f"{name}:factory", "unused", cpu, wanted, normalise=normalise)

    return load


def numbered(n: int, shape=(5,), dtype=torch.int64, start=0) -> TensorDataset:
    """Inputs that tell their index, and three classes."""
    index = torch.arange(start, start + n)
    inputs = index.view(-1, *[1] * len(shape)).expand(n, *shape).to(dtype)
    return TensorDataset(inputs, index % 3)


def all_of(split, batch_size=7) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, labels = zip(*split.batches(batch_size), strict=True)
    return torch.cat(inputs), torch.cat(labels)


SHAPES = [((5,), torch.int64), ((), torch.int32), ((4, 6), torch.float64)]
SHAPES += [((2, 3, 2, 2), torch.bool)]
BY_PROCESSES = [(*SHAPES[0], True)]
BY_PROCESSES += [pytest.param(*each, True, marks=pytest.mark.exhaustive) for each in SHAPES[1:]]


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(
    ("shape", "dtype", "processes"), [*((*each, False) for each in SHAPES), *BY_PROCESSES]
)
def test_inputs_of_any_shape_and_type_reach_the_model_as_they_are(
    load, monkeypatch, in_memory, shape, dtype, processes
):
    if not in_memory:
        monkeypatch.setattr(splits, "IN_MEMORY", 0)
    if processes:
        monkeypatch.setattr(reading, "FEW", 0)
    train, test = numbered(24, shape, dtype), numbered(9, shape, dtype, start=100)
    found = load(train, test)
    kind = torch.Tensor if in_memory else reading.Streamed
    assert all(isinstance(split.inputs, kind) for split in found.splits)
    assert [len(split) for split in found.splits] == [22, 2, 9]
    assert (found.shape, found.classes, found.kind) == (shape, 3, None)
    inputs, labels = all_of(found.test)
    assert inputs.dtype == dtype
    assert torch.equal(inputs, test.tensors[0])
    assert torch.equal(labels, test.tensors[1])
    parts = [all_of(split) for split in (found.train, found.validation)]
    inputs, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(inputs, train.tensors[0][order])
    assert torch.equal(labels, train.tensors[1][order])


def test_the_factorys_own_validation_set_is_used(load):
    found = load(numbered(12), numbered(4, start=50), numbered(6, start=70))
    assert [len(split) for split in found.splits] == [12, 4, 6]
    assert all_of(found.train)[0][:, 0].tolist() == list(range(12))
    assert all_of(found.validation)[0][:, 0].tolist() == [50, 51, 52, 53]


def test_shuffled_batches_are_the_same_in_memory_and_streamed(load, monkeypatch):
    kept = load(numbered(30), numbered(6))
    monkeypatch.setattr(splits, "IN_MEMORY", 0)
    streamed = load(numbered(30), numbered(6))
    for split, other in zip(kept.splits, streamed.splits, strict=True):
        for shard in ((0, 1), (1, 2)):
            torch.manual_seed(3)
            expected = list(split.batches(8, shuffle=True, shard=shard))
            torch.manual_seed(3)
            found = list(other.batches(8, shuffle=True, shard=shard))
            assert len(found) == len(expected)
            for (x, y), (u, v) in zip(expected, found, strict=True):
                assert torch.equal(x, u)
                assert torch.equal(y, v)


class Random(torch.utils.data.Dataset):
    """Another input each time."""

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return torch.rand(3), i % 2


def test_a_data_set_that_changes_its_inputs_does_so_in_every_epoch(load, monkeypatch):
    monkeypatch.setattr(splits, "IN_MEMORY", 0)
    monkeypatch.setattr(reading, "FEW", 0)
    found = load(Random(), Random())
    torch.manual_seed(0)
    epochs = [torch.cat([x for x, _ in found.train.batches(4, shuffle=True)]) for _ in range(2)]
    assert not set(epochs[0].flatten().tolist()) & set(epochs[1].flatten().tolist())


# Images


def images(n, channels=3, dtype=torch.uint8, scale=255.0):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(n, channels, 8, 10, generator=generator) * scale
    return TensorDataset(values.to(dtype), torch.arange(n) % 3)


@pytest.mark.parametrize(
    ("shape", "dtype", "kind"),
    [
        ((3, 8, 8), torch.uint8, "photographs"),
        ((1, 28, 28), torch.float32, "strokes"),
        ((3, 9, 9), torch.float16, "photographs"),
        ((2, 28, 28), torch.uint8, None),
        ((28, 28), torch.uint8, None),
        ((1, 7, 28), torch.float32, None),
        ((3, 28, 28), torch.int64, None),
    ],
)
def test_what_is_an_image(shape, dtype, kind):
    assert image_kind(torch.zeros(shape, dtype=dtype)) == kind


@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.uint8, 255.0), (torch.float32, 1.0), (torch.float64, 1.0)]
)
def test_images_are_normalised_by_the_training_images(load, dtype, scale):
    found = load(images(36, 3, dtype, scale), images(9, 3, dtype, scale), normalise="data")
    assert (found.kind, found.shape) == ("photographs", (3, 8, 10))
    values = torch.cat([all_of(split)[0] for split in (found.train, found.validation)])
    assert values.dtype == torch.float32
    assert values.mean((0, 2, 3)).abs().max() < 1e-5
    assert (values.std((0, 2, 3)) - 1).abs().max() < 1e-3


@pytest.mark.parametrize(("dtype", "scale"), [(torch.uint8, 255.0), (torch.float32, 1.0)])
def test_images_are_normalised_by_the_models_figures(load, dtype, scale):
    wanted = Input(3, None, mean=(0.2, 0.4, 0.6), std=(0.5, 1.0, 2.0))
    train, test = images(36, 3, dtype, scale), images(9, 3, dtype, scale)
    values = all_of(load(train, test, wanted=wanted).test)[0]
    raw = test.tensors[0] / scale
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (wanted.mean, wanted.std))
    assert torch.allclose(values, (raw - mean) / std, atol=1e-5)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(("dtype", "scale"), [(torch.uint8, 255.0), (torch.float32, 1.0)])
def test_images_reach_the_model_as_they_are(load, monkeypatch, capsys, in_memory, dtype, scale):
    """A model that its user has trained on [0, 1], or that itself takes bytes, gets the same."""
    if not in_memory:
        monkeypatch.setattr(splits, "IN_MEMORY", 0)
    train, test = images(36, 3, dtype, scale), images(9, 3, dtype, scale)
    found = load(train, test)
    assert found.kind == "photographs"
    inputs = all_of(found.test)[0]
    assert inputs.dtype == dtype
    assert torch.equal(inputs, test.tensors[0])
    torch.manual_seed(0)
    changed = next(Distorted(found.train, 1.0).batches(36))[0]
    assert changed.dtype == dtype
    assert not torch.equal(changed, next(found.train.batches(36))[0])
    out = capsys.readouterr().out.splitlines()
    assert out == [f"inputs of {found.name}: as they are"]


@pytest.mark.parametrize("copies", [0, 2])
def test_a_student_sees_bytes_where_its_teacher_does(load, copies):
    class Bytes(torch.nn.Module):
        def forward(self, x):
            assert x.dtype == torch.uint8
            return x.float().mean((2, 3))

    found = load(images(36), images(9))
    for x, logits in distilled(found.train, Bytes(), copies, 1.0).batches(8, shuffle=True):
        assert torch.equal(Bytes()(x), logits)


def test_bytes_are_resized_as_bytes(load):
    inputs = all_of(load(images(36), images(9), wanted=Input(1, (16, 16))).test)[0]
    assert (inputs.shape, inputs.dtype) == ((9, 1, 16, 16), torch.uint8)
    assert inputs.float().mean() == pytest.approx(127, abs=5)


def test_images_outside_of_0_to_1_are_not_for_the_models_figures(load):
    train, test = images(36, 1, torch.float32, 4.0), images(9, 1, torch.float32, 4.0)
    wanted = Input(1, None, mean=(0.2,), std=(0.5,))
    found = load(train, test, wanted=wanted)
    assert found.kind == "strokes"
    assert torch.equal(all_of(found.test)[0], test.tensors[0])
    assert found.treatment.startswith("as they are: values from 0.0")
    assert found.treatment.endswith("to 3.999, the model's figures are for [0, 1]")


def test_an_option_goes_before_the_models_figures(load):
    wanted = Input(3, None, mean=(0.2, 0.4, 0.6), std=(0.5, 1.0, 2.0))
    train, test = images(36), images(9)
    found = load(train, test, wanted=wanted, normalise="none")
    assert torch.equal(all_of(found.test)[0], test.tensors[0])
    found = load(train, test, wanted=wanted, normalise="unit")
    assert torch.equal(all_of(found.test)[0], test.tensors[0] / 255)
    assert found.treatment == "values in [0, 255] to [0, 1]"


def test_how_inputs_are_normalised_is_a_part_of_the_name(load):
    found = load(images(36), images(9), normalise="data")
    assert found.name.endswith(":factory(normalise=data)")
    again = datasets.load(found.name, "unused", "cpu")
    assert again.name == found.name
    assert torch.equal(all_of(again.test)[0], all_of(found.test)[0])


@pytest.mark.parametrize("shape", [(5,), (4, 6), (4, 9, 9)])
def test_what_is_no_image_is_normalised_by_an_option_alone(load, shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(36, *shape, generator=generator)
    train = TensorDataset(x, torch.arange(36) % 3)
    assert torch.equal(all_of(load(train, train).test)[0], x)
    values = all_of(load(train, train, normalise="data").test)[0]
    over = [0, *range(2, x.dim())]
    assert values.mean(over).abs().max() < 0.2  # 33 of 36 are trained on
    assert (values.std(over) - 1).abs().max() < 0.2


def test_one_figure_of_the_models_is_for_inputs_of_any_shape(load):
    train = TensorDataset(torch.rand(36, 4, 6), torch.arange(36) % 3)
    wanted = Input(mean=(0.2,), std=(0.5,))
    found = load(train, train, wanted=wanted)
    assert torch.allclose(all_of(found.test)[0], (train.tensors[0] - 0.2) / 0.5)
    assert found.treatment == (
        "normalised by the model's mean 0.2 and deviation 0.5 of values in [0, 1]"
    )
    words = load(numbered(12), numbered(4), wanted=wanted)
    assert (words.treatment, all_of(words.test)[0].dtype) == ("as they are", torch.int64)


@pytest.mark.parametrize(
    ("parts", "how", "wanted", "message"),
    [
        (numbered(9), "data", None, "has inputs of 5 int64, which cannot be normalised; they must"),
        (images(9, 3, torch.float32, 4.0), "unit", None, r"has values from 0.* only bytes can be"),
        (images(9, 4), "auto", Input(mean=(0.1, 0.2), std=(1, 1)), "2 numbers, the inputs have 4"),
    ],
)
def test_inputs_that_cannot_be_normalised(load, parts, how, wanted, message):
    with pytest.raises(UserError, match=message):
        load(parts, parts, wanted=wanted, normalise=how)


def test_images_are_adapted_to_the_model(load):
    found = load(images(36, 1), images(9, 1), wanted=Input(3, (16, 16)))
    assert found.shape == tuple(all_of(found.test)[0].shape[1:]) == (3, 16, 16)


# What cannot be used


class Streams:
    def __iter__(self):
        return iter(())


class Failing(list):
    def __getitem__(self, i):
        raise KeyError("text")


class Endless:
    """As what wraps an iterable: a data set that has no length."""

    def __len__(self):
        raise TypeError("endless")

    def __getitem__(self, i):
        return X, 0


X = torch.zeros(4)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((3,), r"returns something of type int; it must return \(train, test\)"),
        ((numbered(3),) * 4, r"returns a tuple of 4; it must"),
        ((numbered(3), Streams()), "the test data set is of the type Streams; .* map-style"),
        ((numbered(3), []), "the test data set is empty"),
        ((numbered(1), numbered(3)), "the train data set has one item only"),
        ((Failing([1, 2]), []), "the train data set: item 0 cannot be used: KeyError: 'text'"),
        (
            ([X, X], []),
            r"item 0 cannot be used: it is something of type Tensor, not \(input tensor, class",
        ),
        (([(X, 0, 0)] * 2, []), "item 0 cannot be used: it is a tuple of 3, not"),
        (([{"x": X}] * 2, []), "item 0 cannot be used: it is something of type dict, not"),
        (
            ([("text", 0)] * 2, []),
            "item 0 cannot be used: its input is something of type str, not a tensor",
        ),
        (([(X, 0.5)] * 2, []), "its class is something of type float, not a whole number"),
        (([(X, X)] * 2, []), "its class is something of type Tensor, not a whole number"),
        (([(X, 0), (X, -1)], [(X, 0)]), "item 1 cannot be used: its class is -1"),
        (([(X, 0), (X, 1 << 63)], [(X, 0)]), "item 1 cannot be used: its class is 9223372036"),
        (([(X.to_sparse(), 0)] * 2, []), r"item 0 cannot be used: its input is of the layout to"),
        ((Endless(), []), r"the length of .*train data set failed in .*TypeError: endless"),
        (
            ([(X, 0), (X[:3], 1)], [(X, 0)]),
            "item 1 cannot be used: its input is 3 float32, that of item 0 4 float32; make all al",
        ),
        (
            ([(X, 0)] * 2, [(X.double(), 0)]),
            "test data set has inputs of 4 float64, training has 4 float32",
        ),
    ],
)
@pytest.mark.parametrize("processes", [True, False])
def test_data_that_cannot_be_used(load, monkeypatch, parts, message, processes):
    if processes:
        monkeypatch.setattr(reading, "FEW", 0)
    with pytest.raises(UserError, match=message) as error:
        load(*parts)
    assert "\n" not in str(error.value)


def test_arrays_and_numbers_of_numpy_are_taken(load):
    items = [(np.full((2, 2), i, np.float32), np.int64(i)) for i in range(4)]
    inputs, labels = all_of(load(items, items).test)
    assert inputs[:, 0, 0].tolist() == labels.tolist() == [0, 1, 2, 3]
    assert inputs.dtype == torch.float32


def test_a_factory_that_fails_is_named_with_its_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    code = "def factory():\n    return 1 / 0\n"
    (tmp_path / "failing_data.py").write_text(code)
    with pytest.raises(UserError, match=r"failing_data:factory failed in .*line 2: ZeroDivision"):
        datasets.load("failing_data:factory", "", "cpu")
    with pytest.raises(UserError, match=r"the data set failing_data:other: .* has no function"):
        datasets.load("failing_data:other", "", "cpu")


@pytest.mark.parametrize("name", ["os:getcwd", "torchvision:datasets", "builtins:exit"])
def test_a_checkpoint_cannot_name_a_librarys_code(name):
    with pytest.raises(UserError, match="is not code of your own"):
        datasets.load(name, "", "cpu")


@pytest.mark.parametrize(
    ("name", "dtype"), [("a.png", "<u2"), ("a.tif", "<u2"), ("a.tif", ">u2"), ("a.tif", "i4")]
)
def test_grey_values_of_16_bits_are_scaled_to_8(tmp_path, name, dtype):
    values = np.array([[0, 256, 300], [20000, 60000, 65535]], dtype)
    Image.fromarray(values).save(tmp_path / name)
    shown = read_image(str(tmp_path / name), (2, 3))
    assert all(channel.tolist() == [[0, 1, 1], [78, 234, 255]] for channel in shown)


def test_grey_values_of_which_nobody_says_what_white_is(tmp_path):
    for values in (np.full((2, 3), 0.5, np.float32), np.full((2, 3), 1 << 16, np.int32)):
        path = str(tmp_path / "a.tif")
        Image.fromarray(values).save(path)
        with pytest.raises(ValueError, match="grey values that are not of 8 or 16 bits"):
            read_image(path, (2, 3))
