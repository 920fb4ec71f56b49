import pytest
import torch
from torch import nn

from net.checkpoint import Checkpoint
from net.pipeline import stages
from net.pipeline.options import PruningOptions
from net.pipeline.stages import Runtime
from net.training import splits
from net.training.architectures import build
from net.training.distillation import (
    Distilled,
    Distorted,
    distillation_loss,
    distilled,
)
from net.training.splits import Split


class Brightness(nn.Module):
    """A teacher whose logits can be checked: the mean and the maximum of the image."""

    def forward(self, x):
        return torch.stack([x.mean((1, 2, 3)), x.amax((1, 2, 3))], 1)


@pytest.fixture
def split():
    generator = torch.Generator().manual_seed(0)
    return Split(torch.randn(20, 1, 28, 28, generator=generator), torch.arange(20), kind="strokes")


def test_distorted_batches(split):
    torch.manual_seed(0)
    (images, labels), *_ = Distorted(split, 1.0).batches(8)
    assert labels.tolist() == list(range(8))
    assert not torch.allclose(images, split.inputs[:8], atol=0.1)
    (same, _), *_ = Distorted(split, 0.0).batches(8)
    assert same is not images
    assert torch.equal(same, split.inputs[:8])
    assert len(Distorted(split, 1.0)) == 20


def test_distilled_logits_belong_to_their_images(split):
    torch.manual_seed(0)
    teacher = Brightness()
    distilled = Distilled(split, teacher, copies=3, strength=1.0)
    assert len(distilled) == 20
    seen = 0
    for images, logits in distilled.batches(8):
        assert torch.allclose(teacher(images), logits)
        seen += len(images)
    assert seen == 20
    assert distilled.images.dtype == torch.uint8
    assert distilled.images.shape == (60, 1, 28, 28)


def test_an_epoch_takes_one_version_of_each_image(split):
    """Without distortion, all versions are the image itself but for its rounding to 8 bits."""
    distilled = Distilled(split, Brightness(), copies=3, strength=0.0)
    torch.manual_seed(0)
    images = torch.cat([images for images, _ in distilled.batches(6)])
    distance = torch.cdist(images.flatten(1), split.inputs.flatten(1))
    assert sorted(distance.argmin(1).tolist()) == list(range(20))
    step = float(split.inputs.max() - split.inputs.min()) / 255
    assert distance.amin(1).max() <= step / 2 * 28 * 1.01


def test_what_does_not_fit_into_memory_is_made_anew(split, monkeypatch):
    assert isinstance(distilled(split, Brightness(), 3, 1.0), Distilled)
    assert isinstance(distilled(split, Brightness(), 0, 1.0), Distorted)
    monkeypatch.setattr(splits, "IN_MEMORY", 3 * 20 * 28 * 28 - 1)
    taught = distilled(split, Brightness(), 3, 1.0)
    assert isinstance(taught, Distorted)
    assert len(taught) == 20
    torch.manual_seed(0)
    epochs = [list(taught.batches(8, shuffle=True)) for _ in range(2)]
    for batches in epochs:
        assert sum(len(images) for images, _ in batches) == 20
        for images, logits in batches:
            assert torch.equal(Brightness()(images), logits)
    assert not torch.equal(epochs[0][0][0], epochs[1][0][0])


def test_a_teacher_gets_no_gradients(split):
    layer = nn.Linear(28 * 28, 3)
    taught = Distorted(split, 0.0, nn.Sequential(nn.Flatten(), layer))
    assert not next(taught.batches(4))[1].requires_grad


def test_loss_is_zero_for_the_teachers_own_logits():
    logits = torch.randn(5, 10)
    assert distillation_loss(logits, logits).item() == pytest.approx(0, abs=1e-6)
    assert distillation_loss(logits + 3, logits).item() == pytest.approx(0, abs=1e-5)
    assert distillation_loss(torch.randn(5, 10), logits) > 0


def test_loss_against_its_definition():
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    p, q = (teacher / 2).softmax(1), (student / 2).softmax(1)
    expected = 4 * (p * (p / q).log()).sum(1).mean()
    assert distillation_loss(student, teacher, 2.0).item() == pytest.approx(
        expected.item(), rel=1e-4
    )


def test_what_a_teacher_sees_does_not_depend_on_the_test_batch_size(blobs):
    torch.manual_seed(0)
    teacher = Checkpoint(
        build("lenet-300-100(num_classes=3)").state_dict(), "lenet-300-100(num_classes=3)"
    )
    options = PruningOptions(teacher_copies=2, batch_size=16)
    found = [
        stages.targets(blobs, options, Runtime(test_batch_size=size), teacher).split
        for size in (1000, 7)
    ]
    assert all(isinstance(split, Distilled) for split in found)
    assert torch.equal(found[0].logits, found[1].logits)
