"""How long training is going to take."""

import re

import pytest
import torch

from net.pipeline import choosing, duration
from net.pipeline.duration import Part, expected, parts, text
from net.pipeline.options import PruningOptions, SharingOptions
from net.training import datasets
from net.training.architectures import input_of


def test_what_is_trained():
    pruning = PruningOptions(epochs=3, prune_epochs=4, retrain_epochs=5, teacher="none")
    assert parts("a", pruning) == [Part(3, "a"), Part(5, "a")]
    gradual = PruningOptions(epochs=0, prune_epochs=4, retrain_epochs=5, density=0.1)
    assert [part.epochs for part in parts("a", gradual)] == [9]
    taught = PruningOptions(epochs=3, retrain_epochs=5, teacher="b", teacher_copies=0)
    assert parts("a", taught, "b") == [Part(3, "a"), Part(3, "b"), Part(5, "a", True)]
    assert parts("a", SharingOptions(finetune_epochs=0)) == []
    copies = SharingOptions(finetune_epochs=2, teacher="b", teacher_copies=3)
    assert parts("a", copies) == [Part(2, "a")]


def test_seconds_by_steps(monkeypatch):
    data = datasets.load("digits", "", "cpu", input_of("lenet-300-100"))
    asked = PruningOptions(epochs=3, retrain_epochs=5, teacher="none", batch_size=50)
    options = choosing.schedules(asked, data, "cpu")
    monkeypatch.setattr(duration, "seconds_of_a_step", lambda *args: 2.0)
    steps = -(-len(data.train) // 50)
    assert expected("lenet-300-100", data, [options], "cpu") == (2.0 * 8 * steps, 8)


def test_measuring_leaves_the_generator_alone():
    data = datasets.load("digits", "", "cpu", input_of("lenet-300-100"))
    asked = SharingOptions(finetune_epochs=1, teacher="dense", teacher_copies=0, batch_size=50)
    options = choosing.schedules(asked, data, "cpu")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    seconds, epochs = expected("lenet-300-100", data, [options], "cpu")
    assert (0 < seconds < 60, epochs) == (True, 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.1, "a second"), (119, "119 seconds"), (120, "2 minutes"), (9000, "2.5 hours")],
)
def test_units(seconds, told):
    assert re.fullmatch(re.escape(told), text(seconds))
