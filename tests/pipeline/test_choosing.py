"""From "auto" to numbers: figures on a small network that was trained."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from net import choose
from net.errors import UserError
from net.pipeline import choosing
from net.pipeline.options import PruningOptions, SharingOptions
from net.prune import Pruner
from net.sharing import WeightSharing
from net.training.log import Log
from net.training.splits import Dataset, Split

SILENT = Log(silent=True)


@pytest.fixture(scope="module")
def trained():
    """(a perceptron trained on made-up classes, its data)."""
    torch.manual_seed(0)
    inputs = torch.randn(1200, 20)
    labels = torch.tanh(inputs @ torch.randn(20, 16)).matmul(torch.randn(16, 4)).argmax(1)
    split = Split(inputs, labels)
    data = Dataset("made up", split[:1000], split[1000:], split[1000:])
    model = nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 4))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[:1000]), labels[:1000]).backward()
        optimizer.step()
    return model, data


def moved(model, data, change):
    changed = copy.deepcopy(model)
    change(changed)
    batches = choosing.held_out(data, 0.0)
    return choose.divergence(choose.outputs(changed, batches), choose.outputs(model, batches))


@pytest.mark.parametrize(
    ("budget", "epochs", "nats"),
    [(0.1, 0, 0.04), (0.5, 0, 0.04), (2.0, 0, 0.04), (0.1, 8, 1.0), (0.5, 8, 1.0)],
)
def test_the_density_is_the_least_within_the_limit(trained, budget, epochs, nats):
    """Training afterwards takes most of it back, so that more is allowed before it."""
    model, data = trained
    options = PruningOptions(
        density="auto",
        error_budget=budget,
        distortion=0.0,
        prune_epochs=0,
        retrain_epochs=epochs,
    )
    density = choosing.density(model, data, options, SILENT)
    limit = nats * budget
    assert moved(model, data, lambda m: Pruner(m, density=density)) <= 1.1 * limit
    assert moved(model, data, lambda m: Pruner(m, density=0.85 * density)) > limit
    assert 0.1 < density < 0.95


@pytest.mark.parametrize("budget", [0.1, 0.5, 2.0])
def test_the_noise_is_the_most_within_the_limit(trained, budget):
    model, data = trained
    options = SharingOptions(
        bits="auto", error_budget=budget, distortion=0.0, bias_bits=0, finetune_epochs=0
    )
    noise = choosing.noise(model, data, options, SILENT)

    def cost(value):
        changed = replace(options, noise=value)
        inputs = choosing.calibration_inputs(data, options)

        def share(model):
            WeightSharing(model, choosing.config(changed), calibration=inputs, final=True)

        return moved(model, data, share)

    limit = choose.PER_POINT * budget
    # Of so few weights the cost jumps by a fifth from one noise to the next three digits.
    assert cost(noise) / 1.2 <= limit < 1.2 * cost(1.3 * noise)
    assert 0.05 < noise < 3


def test_the_model_stays_as_it_is(trained):
    model, data = trained
    before = copy.deepcopy(model.state_dict())
    choosing.density(model, data, PruningOptions(density="auto"), SILENT)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_statistics_of_other_inputs_do_not_count_as_the_price_of_pruning(trained):
    """Published weights bring those of other crops: a divergence that no density is free of."""
    model, data = trained
    model = nn.Sequential(model[0], nn.BatchNorm1d(40), model[1:])
    model.train()
    for _ in range(50):
        model(4 * data.train.inputs + 1)
    options = PruningOptions(density="auto", error_budget=2.0, distortion=0.0)
    assert choosing.density(model, data, options, SILENT) < 0.95


def test_more_training_afterwards_is_allowed_more_before_it_up_to_a_bound():
    found = [choose.per_point(epochs) for epochs in (0, 2, 8, 12, 100)]
    assert found == [choose.PER_POINT, 0.25, 1.0, choose.MOST_PER_POINT, choose.MOST_PER_POINT]


def test_farthest_tells_what_it_tried_and_keeps_to_the_safe_side():
    told = []
    found = choose.farthest(1.0, 0.01, lambda value: 1 / value, 20.0, told.append)
    assert 0.05 <= found.value <= 0.053
    assert found.divergence == 1 / found.value
    assert len(told) == choose.HALVINGS
    nothing = choose.farthest(1.0, 0.01, lambda value: 9.0, 1.0)
    assert nothing.value == 1.0


def test_divergence():
    logits = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    assert choose.divergence(logits, logits) == 0
    # p = (1/2, 1/2), q = (3/4, 1/4): 1/2 ln(2/3) + 1/2 ln 2 = 0.1438
    q = torch.tensor([[0.75, 0.25]]).log()
    assert choose.divergence(q, torch.zeros(1, 2)) == pytest.approx(0.14384, abs=1e-5)


def test_a_batch_size_gives_small_data_sets_steps_enough(trained):
    _, data = trained
    assert choosing.schedules(PruningOptions(), data, "cpu").batch_size == 25
    assert choosing.schedules(PruningOptions(largest_batch=10), data, "cpu").batch_size == 10
    assert choosing.schedules(PruningOptions(batch_size=64), data, "cpu").batch_size == 64
    assert choosing.schedules(PruningOptions(amp="auto"), data, "cpu").amp in (True, False)


def test_what_needs_no_look_at_the_model():
    assert choosing.without_auto(SharingOptions()).bias_bits == 3
    assert choosing.without_auto(SharingOptions(bits="auto")).bias_bits == 0
    assert choosing.without_auto(SharingOptions(bias_bits=5)).bias_bits == 5
    assert choosing.without_auto(SharingOptions(share_parts=4, finetune_epochs=0)).share_parts == 1
    with pytest.raises(UserError, match="3 epochs of fine-tuning cannot be divided among 4 parts"):
        choosing.without_auto(SharingOptions(share_parts=4, finetune_epochs=3))


def test_a_model_that_keeps_what_it_has_computed_can_be_tried():
    """torch.nn.utils.weight_norm leaves its product in the layer; here of a step of training."""
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(nn.Linear(8, 4))
    layer(torch.randn(2, 8)).sum().backward()
    model = nn.Sequential(nn.Linear(8, 4), nn.ModuleDict({"unused": layer}))
    model.forward = model[0].forward
    cost = choose.moved_by(model, [torch.randn(5, 8)], lambda changed, value: None)
    assert cost(1.0) == 0


def test_what_the_outputs_feel_is_measured_once_for_all_noises(trained, monkeypatch):
    model, data = trained
    asked = []

    def traces(model, samples, names):
        asked.append(tuple(names))
        return {}, "not here"

    monkeypatch.setattr("net.sensitivity.traces", traces)
    options = SharingOptions(bits="auto", distortion=0.0, bias_bits=0, finetune_epochs=0)
    choosing.noise(model, data, options, SILENT)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (
            0.0,
            "noise 0.05: the least that is tried: none moves held-out outputs by at most 0 nats",
        ),
        (
            100.0,
            "noise 6.16: what moves held-out outputs by at most 4 nats",
        ),  # the last that is tried
    ],
)
def test_what_was_chosen_is_told_with_its_reason(trained, capsys, budget, text):
    def change(model, value):
        model[2].weight.data.mul_(1 - value / 100)

    options = SharingOptions(error_budget=budget, distortion=0.0)
    choosing.search(*trained, options, Log(), "noise", change, choosing.NOISES)
    assert capsys.readouterr().out.splitlines()[-1].startswith(text)
