import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from net.log import Log
from net.models import build
from net.training import Recipe, evaluate, fit, learning_rate, set_dropout


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 3))


def run(model, parameters, data, recipe, **options):
    fit(model, parameters, data.train, data.validation, recipe, phase="train", log=Log(), **options)


def test_evaluate_counts_errors(blobs):
    model = linear()
    nn.init.zeros_(model[1].weight)
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([1.0, 0.0, 0.0]))  # always class 0, a third is right
    loss, error = evaluate(model, blobs.test, batch_size=7)
    assert error == pytest.approx(200 / 3)
    z = math.log(math.e + 2)
    assert loss == pytest.approx((z - 1) / 3 + 2 * z / 3, abs=1e-5)


def test_fit_learns(blobs):
    model = linear()
    before = evaluate(model, blobs.test)[1]
    run(model, model.parameters(), blobs, Recipe(3, 16, 1e-2))
    assert evaluate(model, blobs.test)[1] < min(5, before)


def test_fit_is_reproducible(blobs):
    weights = []
    for _ in range(2):
        model = linear()
        run(model, model.parameters(), blobs, Recipe(2, 16, 1e-2, dropout=0.5))
        weights.append(model[1].weight.detach().clone())
    assert torch.equal(*weights)


def test_hooks_see_every_step(blobs):
    seen = []
    model = linear()
    run(
        model,
        model.parameters(),
        blobs,
        Recipe(2, 48, 1e-2),
        after_backward=lambda: seen.append(model[1].weight.grad is not None),
        after_step=lambda step: seen.append((step.done_before, step.done)),
    )
    assert seen == [True, (0, 0.25), True, (0.25, 0.5), True, (0.5, 0.75), True, (0.75, 1.0)]


def test_only_the_given_parameters_move(blobs):
    model = linear()
    weight = model[1].weight.detach().clone()
    run(model, [model[1].bias], blobs, Recipe(1, 16, 1e-2))
    assert torch.equal(model[1].weight, weight)


def test_lr_factor_scales_the_rate_of_its_group(blobs):
    rates = []
    model = linear()
    run(
        model,
        [{"params": [model[1].bias]}, {"params": [model[1].weight], "lr_factor": 0.25}],
        blobs,
        Recipe(1, 48, 1e-2),
        after_step=lambda step: rates.append([g["lr"] for g in step.optimizer.param_groups]),
    )
    assert all(slow == 0.25 * fast > 0 for fast, slow in rates)


def test_another_loss_and_its_targets(blobs):
    """The target of a batch goes to the loss as it is."""
    shapes = []

    def loss_of(logits, target):
        shapes.append((logits.shape, target.shape))
        return F.cross_entropy(logits, target)

    model = linear()
    run(model, model.parameters(), blobs, Recipe(1, 48, 1e-2), loss_of=loss_of)
    assert shapes == [((48, 3), (48,))] * 2


def test_learning_rate_rises_then_falls_to_zero():
    rates = [learning_rate(step, 100, 1.0) for step in range(100)]
    assert rates[:10] == [pytest.approx((i + 1) / 10) for i in range(10)]
    assert max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-3


def test_set_dropout():
    model = build("lenet-300-100")
    set_dropout(model, 0.25)
    assert model.dropout.p == 0.25
