import pytest
import torch
from torch import nn

from net import Pruner, checkpoint
from net.errors import UserError
from net.training.distillation import Distorted
from net.training.loop import Schedule, adam, fit
from net.training.resume import PhaseProgress, RunProgress


class Killed(Exception):
    pass


class KilledAfter(PhaseProgress):
    """Stands for a process that dies right after the progress of some epoch is on the disk."""

    last = 0

    def save(self, epoch):
        super().save(epoch)
        if epoch == self.last:
            raise Killed


def train(data, run, last=None):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 3), nn.Dropout(0.5))
    optimizer = adam(model.parameters(), 1e-2)
    pruner = Pruner(model, density=0.1, steps=17)
    pruner.attach(optimizer)
    progress = run.of("prune", model=model, optimizer=optimizer, pruner=pruner)
    if last:
        progress = KilledAfter(run, "prune", progress.parts)
        progress.last = last
    fit(model, optimizer, Distorted(data.train, 1.0), Schedule(4, 16), progress=progress)
    return model[1].weight


@pytest.mark.parametrize("epoch", [1, 3, 4])
def test_a_resumed_run_ends_with_the_same_weights(tmp_path, blobs, epoch):
    path, options = tmp_path / "p", {"seed": 3}
    uninterrupted = train(blobs, RunProgress(path, options, False))
    with pytest.raises(Killed):
        train(blobs, RunProgress(path, options, False), last=epoch)
    torch.manual_seed(99)  # the new process knows nothing of the old one's generator
    assert torch.equal(train(blobs, RunProgress(path, options, True)), uninterrupted)


def test_without_resume_the_file_is_not_read(tmp_path):
    (tmp_path / "p").write_bytes(b"junk")
    assert RunProgress(tmp_path / "p", {}, False).record is None


def test_other_options_are_refused(tmp_path, blobs):
    train(blobs, RunProgress(tmp_path / "p", {"seed": 3}, False))
    with pytest.raises(UserError, match="a run with other options"):
        RunProgress(tmp_path / "p", {"seed": 4}, True)


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "p").write_bytes(b"junk")
    with pytest.raises(checkpoint.CheckpointError):
        RunProgress(tmp_path / "p", {}, True)


def test_earlier_phases_are_done_and_later_ones_begin(tmp_path, blobs):
    train(blobs, RunProgress(tmp_path / "p", {}, False))
    progress = RunProgress(tmp_path / "p", {}, True)
    assert [progress.passed(p) for p in ("train", "prune", "retrain")] == [True, False, False]
    assert progress.of("retrain").restore() == 0


def test_finish_removes_the_file(tmp_path, blobs):
    progress = RunProgress(tmp_path / "p", {}, False)
    train(blobs, progress)
    assert (tmp_path / "p").exists()
    progress.finish()
    progress.finish()
    assert not (tmp_path / "p").exists()


def spoiled(record, change):
    record = dict(record)
    change(record)
    return record


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.pop("phase"),
        lambda r: r.update(phase="dance"),
        lambda r: r.update(phase=["prune"]),
        lambda r: r.update(epoch=-1),
        lambda r: r.update(epoch="2"),
        lambda r: r.update(epoch=True),
        lambda r: r.update(found=[1]),
        lambda r: r.update(found={"density": "all"}),
        lambda r: r.update(options=None),
        lambda r: r.update(parts=[]),
        lambda r: r.update(rng=3),
        lambda r: r.update(cuda_rng=None),
    ],
)
def test_a_file_of_another_kind_is_one_line(tmp_path, blobs, change):
    path = tmp_path / "p"
    train(blobs, RunProgress(path, {"seed": 3}, False))
    checkpoint.save_dict(path, spoiled(checkpoint.load_dict(path), change))
    with pytest.raises(UserError, match=r"p is no progress of a run; start again without resuming"):
        RunProgress(path, {"seed": 3}, True)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["parts"].pop("pruner"),
        lambda r: r["parts"].update(model={"1.weight": torch.zeros(2)}),
        lambda r: r["parts"].update(optimizer={"state": 3}),
        lambda r: r["parts"].update(optimizer=None),
        lambda r: r["parts"].update(pruner={"step": "one"}),
        lambda r: r.update(rng=torch.zeros(3)),
        lambda r: r.update(rng=torch.zeros(3, dtype=torch.uint8)),
    ],
)
def test_parts_that_do_not_fit_are_one_line(tmp_path, blobs, change):
    path = tmp_path / "p"
    with pytest.raises(Killed):
        train(blobs, RunProgress(path, {"seed": 3}, False), last=2)
    checkpoint.save_dict(path, spoiled(checkpoint.load_dict(path), change))
    with pytest.raises(UserError, match=r"p: .*; start again without resuming") as error:
        train(blobs, RunProgress(path, {"seed": 3}, True))
    assert "\n" not in str(error.value)
