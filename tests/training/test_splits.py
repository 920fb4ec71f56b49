import pytest
import torch

from net.errors import UserError
from net.training.inputs import Adapt, Input
from net.training.splits import Dataset, Split, adapted, at_a_time


def test_shuffled_batches_cover_every_image_once():
    split = Split(torch.arange(10.0).view(10, 1, 1, 1), torch.arange(10))
    torch.manual_seed(0)
    batches = list(split.batches(4, shuffle=True))
    assert [len(labels) for _, labels in batches] == [4, 3, 3]
    order = torch.cat([labels for _, labels in batches])
    assert sorted(order.tolist()) == list(range(10))
    assert order.tolist() != list(range(10))
    for images, labels in batches:
        assert torch.equal(images.flatten().long(), labels)


def test_unshuffled_batches_keep_the_order():
    split = Split(torch.zeros(5, 1, 1, 1), torch.arange(5))
    assert torch.cat([labels for _, labels in split.batches(2)]).tolist() == [0, 1, 2, 3, 4]


def test_a_slice_keeps_what_a_split_knows():
    split = Split(torch.zeros(5, 1, 1, 1), torch.arange(5), Adapt(size=(2, 2)), "strokes")
    part = split[1:3]
    assert (part.adapt, part.kind, part.labels.tolist()) == (split.adapt, "strokes", [1, 2])


def dataset(inputs, kind):
    split = Split(inputs, torch.arange(len(inputs)) % 3, kind=kind)
    return Dataset("made", split, split, split)


def test_only_images_are_adapted():
    words = dataset(torch.zeros(6, 3, 9, 9, dtype=torch.int64), None)
    assert adapted(words, Input(1, (4, 4), mean=(0.5, 0.5), std=(1.0, 1.0))) is words
    images = dataset(torch.zeros(6, 3, 9, 9), "photographs")
    assert adapted(images, Input(1, (4, 4))).shape == (1, 4, 4)
    assert images.shape == (3, 9, 9)  # a new data set


def test_images_that_cannot_be_adapted():
    with pytest.raises(UserError, match="the model takes images of 4 channels, made has 3"):
        adapted(dataset(torch.zeros(6, 3, 9, 9), "photographs"), Input(4))


@pytest.mark.parametrize(
    ("shape", "count"),
    [((1, 28, 28), 1000), ((3, 32, 32), 1000), ((), 1000), ((3, 224, 224), 20), ((1 << 22,), 1)],
)
def test_large_inputs_are_fewer_at_a_time(shape, count):
    assert at_a_time(Split(torch.zeros(2, *shape), torch.zeros(2))) == count
