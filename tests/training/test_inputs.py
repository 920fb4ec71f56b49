import pytest
import torch
from torch.nn import functional as F

from net.training.inputs import Adapt, augment, distort, normaliser, shift_and_mirror


@pytest.fixture
def strokes():
    """Bright bars on dark ground, [50, 1, 28, 28]."""
    images = torch.full((50, 1, 28, 28), -0.4)
    images[:, :, 4:24, 12:16] = 2.0
    return images


@pytest.fixture
def photographs():
    return torch.randn(40, 3, 16, 24, generator=torch.Generator().manual_seed(1))


def test_distortion(strokes):
    torch.manual_seed(0)
    distorted = distort(strokes, 1.0)
    assert distorted.shape == strokes.shape
    change = (distorted - strokes).flatten(1).norm(dim=1) / strokes.flatten(1).norm(dim=1)
    assert (change > 0.05).all()  # every image moves
    assert (change < 1.5).all()
    assert torch.allclose(distort(strokes, 0.0), strokes, atol=1e-4)


def test_the_numbers_that_a_distortion_draws_are_those_of_earlier_versions(strokes):
    """Six of each image in one go: a recorded run can be repeated."""
    torch.manual_seed(0)
    augment(strokes, "strokes", 1.0)
    after = torch.rand(1)
    torch.manual_seed(0)
    torch.rand(6, 50)
    assert torch.equal(after, torch.rand(1))


def test_every_photograph_is_a_shifted_or_mirrored_one(photographs):
    torch.manual_seed(0)
    changed = shift_and_mirror(photographs, 1.0)
    padded = F.pad(photographs, (3, 3, 2, 2))  # an eighth of 24 and of 16
    seen = set()
    for image, result in zip(padded, changed, strict=True):
        found = [
            (top, left, mirrored)
            for top in range(5)
            for left in range(7)
            for mirrored in (False, True)
            if torch.equal(crop(image, top, left, mirrored), result)
        ]
        assert len(found) == 1
        seen.add(found[0])
    for position, values in ((0, range(5)), (1, range(7)), (2, (False, True))):
        assert {place[position] for place in seen} == set(values)


def crop(image, top, left, mirrored):
    part = image[:, top : top + 16, left : left + 24]
    return part.flip(2) if mirrored else part


def test_strength(photographs):
    torch.manual_seed(0)
    assert augment(photographs, "photographs", 0.0) is photographs
    weak = shift_and_mirror(photographs, 0.05)  # no shift by a whole pixel, few in a mirror
    same = (weak == photographs).flatten(1).all(1)
    assert 30 < same.sum() <= 40
    assert (augment(photographs, "photographs", 3.0) == 0).float().mean() > 0.1


def test_what_is_no_image_stays():
    words = torch.arange(12).view(3, 4)
    assert augment(words, None, 1.0) is words


@pytest.mark.parametrize("kind", ["strokes", "photographs"])
def test_processes_change_their_parts_as_one_would_the_whole(photographs, kind):
    torch.manual_seed(0)
    whole = augment(photographs, kind, 1.0)
    for rank in range(2):
        torch.manual_seed(0)
        part = augment(photographs[rank::2], kind, 1.0, (rank, 2))
        assert torch.allclose(part, whole[rank::2], atol=1e-6)


# Batches as a model takes them


@pytest.mark.parametrize(
    ("stored", "adapt", "expected"),
    [
        ((5,), Adapt(), (5,)),
        ((1, 8, 8), Adapt(), (1, 8, 8)),
        ((1, 8, 8), Adapt(channels=3, size=(4, 6)), (3, 4, 6)),
        ((3, 8, 8), Adapt(channels=1), (1, 8, 8)),
    ],
)
def test_the_shape_of_a_batch_is_known_before(stored, adapt, expected):
    assert adapt.shape(stored) == expected
    if len(stored) == 3:
        assert adapt(torch.zeros(2, *stored)).shape[1:] == expected


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mean", [(0.2,), (0.2, 0.4, 0.6)])
def test_normalisation_by_figures_of_images_from_0_to_1(dtype, channels, mean):
    generator = torch.Generator().manual_seed(0)
    stored = torch.randint(256, (2, channels, 4, 5), generator=generator).to(dtype)
    before = stored.clone()
    std = tuple(0.5 * m for m in mean)
    found = normaliser(mean, std, "cpu", white=255)(stored)
    assert found.dtype == torch.float32
    assert found.shape == (2, max(channels, len(mean)), 4, 5)
    figures = [torch.tensor(each).view(-1, 1, 1) for each in (mean, std)]
    assert torch.allclose(found, (stored / 255 - figures[0]).float() / figures[1], atol=1e-5)
    assert torch.equal(stored, before)
