import contextlib
import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from net import Pruner, WeightSharing, prune
from net.pipeline.stages import Runtime
from net.prune import shrink
from net.tensors import version_of
from net.training import loop
from net.training.architectures import build
from net.training.distillation import Distorted, distillation_loss
from net.training.log import Log
from net.training.loop import Schedule, adam, evaluate, fit, learning_rate, set_dropout
from net.training.splits import Split


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 3))


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
    fit(model, adam(model.parameters(), 1e-2), blobs.train, Schedule(3, 16))
    assert evaluate(model, blobs.test)[1] < min(5, before)


def test_fit_is_reproducible(blobs):
    weights = []
    for _ in range(2):
        model = linear()
        model.append(nn.Dropout(0.5))
        fit(model, adam(model.parameters(), 1e-2), blobs.train, Schedule(2, 16))
        weights.append(model[1].weight.detach().clone())
    assert torch.equal(*weights)


def test_the_optimizer_is_the_callers(blobs):
    """Its kind, its parameters, its hooks."""
    model = linear()
    weight, seen = model[1].weight.detach().clone(), []
    optimizer = torch.optim.SGD([model[1].bias], 1e-2, momentum=0.9)
    optimizer.register_step_post_hook(lambda *_: seen.append(optimizer.param_groups[0]["lr"]))
    fit(model, optimizer, blobs.train, Schedule(2, 48))
    assert seen == [learning_rate(step, 4, 1e-2) for step in range(4)]
    assert torch.equal(model[1].weight, weight)


def test_every_group_has_a_rate_of_its_own(blobs):
    rates = []
    model = linear()
    groups = [{"params": [model[1].bias]}, {"params": [model[1].weight], "lr": 0.25e-2}]
    optimizer = adam(groups, 1e-2)
    optimizer.register_step_post_hook(
        lambda *_: rates.append([group["lr"] for group in optimizer.param_groups])
    )
    fit(model, optimizer, blobs.train, Schedule(1, 48))
    assert len(rates) == 2
    assert all(slow == 0.25 * fast > 0 for fast, slow in rates)


def test_another_loss_and_its_targets(blobs):
    """The target of a batch goes to the loss as it is."""
    shapes = []

    def loss(outputs, target):
        shapes.append((outputs.shape, target.shape))
        return F.cross_entropy(outputs, target)

    model = linear()
    fit(model, adam(model.parameters(), 1e-2), blobs.train, Schedule(1, 48), loss=loss)
    assert shapes == [((48, 3), (48,))] * 2


def test_the_held_out_figures_are_the_callers(blobs, capsys):
    model = linear()
    optimizer = adam(model.parameters(), 1e-2)
    fit(model, optimizer, blobs.train, Schedule(1, 48), validate=lambda: (0.5, 12.5), log=Log())
    assert "held-out loss 0.5000  held-out error 12.50 %" in capsys.readouterr().out
    fit(model, optimizer, blobs.train, Schedule(1, 48))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("examples", "size"),
    [
        (55_000, 250),  # MNIST and CIFAR-10, without what is held out: as ever
        (45_833, 229),
        (10_000, 50),
        (3_667, 32),  # 4,000 of one's own: 115 steps an epoch, where 41 left a model half trained
        (1_317, 32),  # the digits
        (400, 10),
        (101, 3),  # of fewer BatchNorm might be left with one
        (1, 3),
    ],
)
def test_a_small_set_has_as_many_steps_as_in_batches_of_32(examples, size):
    assert loop.batch_size_for(examples, 250) == size
    assert loop.batch_size_for(examples, 8) == min(size, 8)


def test_learning_rate_rises_then_falls_to_zero():
    rates = [learning_rate(step, 100, 1.0) for step in range(100)]
    assert rates[:10] == [pytest.approx((i + 1) / 10) for i in range(10)]
    assert max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-3


def test_denormals_are_left_as_they_were_even_by_a_run_that_fails(blobs):
    def fail(*_):
        assert torch.tensor(1e-40) / 2 == 0
        raise KeyboardInterrupt

    model = linear()
    optimizer = adam(model.parameters(), 1e-2)
    optimizer.register_step_post_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        fit(model, optimizer, blobs.train, Schedule(1, 16))
    assert torch.tensor(1e-40) / 2 > 0


def test_set_dropout():
    model = build("lenet-300-100")
    set_dropout(model, 0.25)
    assert model.dropout.p == 0.25


# Precision


CPU = torch.device("cpu")


@pytest.mark.parametrize("able", [{}, {"avx512_bf16": True}, {"amx_bf16": True}, {"avx2": True}])
def test_auto_is_on_where_the_processor_has_the_instructions(monkeypatch, able):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    has_bfloat16 = any("bf16" in name for name in able)
    assert loop.in_bfloat16(CPU, "auto") == has_bfloat16
    assert loop.in_bfloat16(CPU, True)
    assert not loop.in_bfloat16(CPU, False)
    assert not loop.in_bfloat16(torch.device("cuda"), "auto")


def test_a_torch_that_does_not_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not loop.in_bfloat16(CPU, "auto")


def test_losses_and_what_a_teacher_says_are_in_full_precision():
    torch.manual_seed(0)
    split = Split(torch.randn(64, 6), torch.randint(3, (64,)))
    model = nn.Linear(6, 3)
    model.register_forward_hook(lambda module, given, found: computed.append(found.dtype))
    computed, outputs, targets = [], [], []

    def loss(found, wanted):
        outputs.append(found.dtype)
        targets.append(wanted.dtype)
        return distillation_loss(found, wanted, 1.0)

    taught = Distorted(split, 0.0, nn.Linear(6, 3), amp=True)
    fit(model, adam(model.parameters(), 0.1), taught, Schedule(20, 16, amp=True), loss=loss)
    assert set(computed) == {torch.bfloat16}
    assert set(outputs) == set(targets) == {torch.float32}
    inputs, said = next(taught.batches(64))
    assert F.mse_loss(model(inputs).softmax(1), said.softmax(1)) < 1e-3
    # What the teacher says was computed in bfloat16, of 8 bits.
    exact = taught.teacher(inputs)
    assert not torch.equal(said, exact)
    torch.testing.assert_close(said, exact, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")],
)
def test_outputs_are_never_narrowed(given, wanted):
    split = Split(torch.randn(8, 6, dtype=getattr(torch, given)), torch.randint(3, (8,)))
    model = nn.Linear(6, 3).to(getattr(torch, given))
    seen = []

    def loss(found, labels):
        seen.append(found.dtype)
        return F.cross_entropy(found, labels)

    fit(model, adam(model.parameters(), 0.1), split, Schedule(1, 8), loss=loss)
    assert seen == [getattr(torch, wanted)]


# A stand-in for a GPU, which these tests must not need


@pytest.fixture
def far_device(monkeypatch):
    """torch's meta device in the place of a GPU.

    Like a GPU it does not mix with the CPU. It holds no values, so that asking for one, which
    makes a GPU's queue run dry, is an error.
    """
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(loop, "float", lambda tensor: 0.0, raising=False)  # at the epoch's end
    return torch.device("meta")


def test_parameters_without_a_part_are_found(blobs):
    for name, found in (("Rows", False), ("Drops", True)):
        model = build(f"tests.own_classes:{name}")
        before = copy.deepcopy(model.state_dict())
        assert loop.leaves_some_out(model, blobs.train) == found
        assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def steps_of(model, optimizer, split, **options):
    """The steps of one epoch of 12."""
    steps = []
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    fit(model, optimizer, split, Schedule(1, len(split) // 12), **options)
    return len(steps)


def far_split(device):
    return Split(torch.zeros(120, 1, 28, 28, device=device), torch.zeros(120, device=device).long())


@pytest.mark.parametrize("arch", ["lenet-300-100", "lenet-5"])
def test_no_step_of_pruning_waits_for_the_device(far_device, arch, monkeypatch):
    # What is looked at when a Pruner is made, and when its schedule goes down.
    monkeypatch.setattr(prune, "check_written", lambda *_: None)
    monkeypatch.setattr(prune, "_check_finite", lambda *_: None)
    monkeypatch.setattr(Pruner, "_check_training", lambda _: None)
    model = build(arch).to(far_device)
    pruner = Pruner(model, density=0.05, steps=9)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, foreach=True)
    optimizer.register_step_post_hook(lambda *_: shrink(model.parameters(), 1e-3))
    pruner.attach(optimizer)
    assert steps_of(model, optimizer, Distorted(far_split(far_device), 1.0)) == 12
    assert pruner.finished
    assert pruner.masks["fc1.weight"].device == far_device


def test_no_step_of_fine_tuning_waits_for_the_device(far_device):
    model = build("lenet-300-100")
    sharing = WeightSharing(model, bits=3, reassign=6)
    model.to(far_device)
    # Clustering is done on the CPU; what trains moves.
    for shared in sharing.tensors.values():
        shared.positions, shared.labels = shared.positions.to("meta"), shared.labels.to("meta")
        shared.centroids = nn.Parameter(shared.centroids.to("meta"))
        shared.latent = nn.Parameter(shared.latent.to("meta"))
    sharing = moved(sharing, model)
    optimizer = torch.optim.Adam(sharing.parameter_groups(1e-2), 1e-2, foreach=True)
    sharing.attach(optimizer)
    split = Distorted(far_split(far_device), 1.0, build("lenet-5").to(far_device))
    assert steps_of(model, optimizer, split, loss=distillation_loss) == 12
    assert sharing.tensors["fc1.weight"].labels.device == far_device


def moved(sharing, model):
    """`sharing` of the parameters that `model` has since it was moved."""
    sharing._parameters = dict(model.named_parameters())
    # Not as if something else had written the weights.
    sharing._versions = {n: version_of(each) for n, each in sharing._parameters.items()}
    return sharing


def test_norms_that_a_model_keeps_or_does_not_reach_keep_their_statistics():
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.kept, self.own, self.idle = (nn.BatchNorm1d(4) for _ in range(3))
            for norm in (self.kept, self.own, self.idle):
                norm.running_mean.fill_(3.0)

        def train(self, mode=True):
            super().train(mode)
            self.kept.eval()
            return self

        def forward(self, x):
            return self.own(self.kept(x))

    model = Keeping()
    split = Split(torch.randn(64, 4), torch.zeros(64).long())
    loop.measure_statistics(model, split, 16)
    assert (model.kept.running_mean == 3).all()
    assert (model.idle.running_mean == 3).all()
    assert model.own.running_mean.abs().max() < 10
    assert not (model.own.running_mean == 3).any()
    assert model.idle.momentum == model.own.momentum == 0.1


@pytest.mark.parametrize("before", [True, False])
def test_denormals_are_for_the_caller_what_they_were(before):
    torch.set_flush_denormal(before)
    try:
        with loop.flushed_denormals():
            assert torch.tensor([1e-310], dtype=torch.float64) * 1 == 0
        assert bool(torch.tensor([1e-310], dtype=torch.float64) * 1 == 0) == before
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("value", [1.0, math.nan, math.inf])
def test_training_that_has_diverged_is_told(blobs, capsys, value):
    model = linear()
    with torch.no_grad():
        model[1].bias[0] = value
    Runtime(log=Log()).test_error(model, "retrained", blobs)
    told = capsys.readouterr().err
    expected = "NOTE: retrained: training has diverged, the outputs are not finite\n"
    assert told == ("" if value == 1 else expected)
