import pytest
import torch
from torch import nn

from net import checkpoint
from net.errors import UserError
from net.prune import GradualPruning, set_masks
from net.training.distillation import Distorted
from net.training.log import Log
from net.training.loop import Recipe, fit
from net.training.resume import Progress


class Killed(Exception):
    pass


class KilledAfter(Progress):
    """Stands for a process that dies right after the progress of some epoch is on the disk."""

    def __init__(self, *args, epoch):
        super().__init__(*args)
        self.last = epoch

    def save(self, phase, epoch, model, optimizer):
        super().save(phase, epoch, model, optimizer)
        if epoch == self.last:
            raise Killed


def train(data, progress):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 3), nn.Dropout(0.5))
    set_masks(model, lambda name, weight: torch.ones_like(weight, dtype=torch.bool))
    fit(
        model,
        model.parameters(),
        Distorted(data.train, 1.0),
        data.validation,
        Recipe(4, 16, 1e-2, dropout=0.2),
        phase="prune",
        log=Log(),
        after_step=GradualPruning(model, 0.1),
        progress=progress,
    )
    return model[1].weight


@pytest.mark.parametrize("epoch", [1, 3, 4])
def test_a_resumed_run_ends_with_the_same_weights(tmp_path, blobs, epoch):
    path, options = tmp_path / "p", {"seed": 3}
    uninterrupted = train(blobs, Progress(path, options, False))
    with pytest.raises(Killed):
        train(blobs, KilledAfter(path, options, False, epoch=epoch))
    torch.manual_seed(99)  # the new process knows nothing of the old one's generator
    assert torch.equal(train(blobs, Progress(path, options, True)), uninterrupted)


def test_without_resume_the_file_is_not_read(tmp_path):
    (tmp_path / "p").write_bytes(b"junk")
    assert Progress(tmp_path / "p", {}, False).record is None


def test_other_options_are_refused(tmp_path, blobs):
    train(blobs, Progress(tmp_path / "p", {"seed": 3}, False))
    with pytest.raises(UserError, match="a run with other options"):
        Progress(tmp_path / "p", {"seed": 4}, True)


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "p").write_bytes(b"junk")
    with pytest.raises(checkpoint.CheckpointError):
        Progress(tmp_path / "p", {}, True)


def test_earlier_phases_are_done_and_later_ones_begin(tmp_path, blobs):
    train(blobs, Progress(tmp_path / "p", {}, False))
    progress = Progress(tmp_path / "p", {}, True)
    assert [progress.passed(p) for p in ("train", "prune", "retrain")] == [True, False, False]
    assert progress.restore("train", 9, None, None) == 9
    assert progress.restore("retrain", 9, None, None) == 0


def test_finish_removes_the_file(tmp_path, blobs):
    progress = Progress(tmp_path / "p", {}, False)
    train(blobs, progress)
    assert (tmp_path / "p").exists()
    progress.finish()
    progress.finish()
    assert not (tmp_path / "p").exists()
