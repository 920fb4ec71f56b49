import contextlib
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from net import prune
from net.sharing import SharedWeight
from net.training import loop
from net.training.architectures import build
from net.training.datasets import Split
from net.training.distillation import Distorted, Taught, distillation_loss
from net.training.log import Log
from net.training.loop import Recipe, evaluate, fit, learning_rate, set_dropout


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


def test_denormals_are_left_as_they_were_even_by_a_run_that_fails(blobs):
    def fail(step):
        assert torch.tensor(1e-40) / 2 == 0
        raise KeyboardInterrupt

    model = linear()
    with pytest.raises(KeyboardInterrupt):
        run(model, model.parameters(), blobs, Recipe(1, 16, 1e-2), after_step=fail)
    assert torch.tensor(1e-40) / 2 > 0


def test_set_dropout():
    model = build("lenet-300-100")
    set_dropout(model, 0.25)
    assert model.dropout.p == 0.25


# A stand-in for a GPU, which these tests must not need


class EpochIsOver(Exception):
    pass


@pytest.fixture
def far_device(monkeypatch):
    """torch's meta device in the place of a GPU.

    Like a GPU it does not mix with the CPU.  It holds no values, so that asking for one, which
    makes a GPU's queue run dry, is an error.
    """

    def stop(*_):
        raise EpochIsOver

    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda p, lr, fused: adam(p, lr, foreach=fused))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(loop, "evaluate", stop)
    return torch.device("meta")


def epoch_of(model, parameters, split, **hooks):
    """One epoch of 40 steps, up to its evaluation."""
    recipe = Recipe(1, len(split) // 40, 1e-2)
    with pytest.raises(EpochIsOver):
        fit(model, parameters, split, None, recipe, phase="train", log=Log(), **hooks)


def far_split(device):
    return Split(torch.zeros(400, 1, 28, 28, device=device), torch.zeros(400, device=device).long())


@pytest.mark.parametrize("arch", ["lenet-300-100", "lenet-5"])
def test_no_step_of_pruning_waits_for_the_device(far_device, arch):
    model = build(arch).to(far_device)
    prune.set_masks(model, lambda name, weight: prune.threshold_mask(weight, 0.5))
    gradual, steps = prune.GradualPruning(model, 0.05), []

    def after_step(step):
        prune.shrink(model, 1e-3)
        gradual(step)
        steps.append(step)

    split = Distorted(far_split(far_device), 1.0)
    epoch_of(model, model.parameters(), split, after_step=after_step)
    assert len(steps) == 40
    assert model.fc1.mask.device == far_device


def test_no_step_of_fine_tuning_waits_for_the_device(far_device):
    model = build("lenet-300-100")
    shared = SharedWeight(model.fc1.weight, bits=3, reassignable=True).to(far_device)
    model.to(far_device)
    weight, steps = model.fc1.weight, []

    def after_step(step):
        shared.reassign()
        shared.write(weight)
        steps.append(step)

    teacher = build("lenet-5").to(far_device)
    epoch_of(
        *(model, [shared.centroids, shared.latent, *model.fc2.parameters()]),
        Taught(far_split(far_device), teacher, 1.0),
        loss_of=distillation_loss,
        after_backward=lambda: shared.gather_gradient(weight),
        after_step=after_step,
    )
    assert len(steps) == 40
    assert shared.labels.device == far_device
