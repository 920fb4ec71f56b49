import copy
import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from net import Pruner, WeightSharing
from net.errors import UserError
from net.prune import cubic_density, saliency, shrink, storage_bits, threshold_mask, top_masks
from tests.optimizers import OPTIMIZERS


def test_threshold_is_sensitivity_times_the_standard_deviation():
    weight = torch.tensor([[-2.0, -1.0], [1.0, 2.0]])  # standard deviation sqrt(2.5) = 1.58
    assert threshold_mask(weight, 1.0).tolist() == [[True, False], [False, True]]
    assert threshold_mask(weight, 0.0).all()
    assert not threshold_mask(weight, 2.0).any()


def test_a_constant_weight_is_kept_and_a_zero_is_not():
    assert threshold_mask(torch.full((3, 3), 0.5), 2.0).all()
    assert threshold_mask(torch.zeros(3, 3), 2.0).all()  # a layer that starts from zero
    assert threshold_mask(torch.tensor([1.0, 0.0, -1.0]), 0.0).tolist() == [True, False, True]


def test_top_masks_over_all_tensors_or_each():
    scores = {"a": torch.tensor([[9.0, 8.0], [7.0, 0.0]]), "b": torch.tensor([3.0, 2.0, 1.0, 0.0])}
    together = top_masks(scores, 0.5)
    assert together["a"].tolist() == [[True, True], [True, False]]
    assert together["b"].tolist() == [True, False, False, False]
    each = top_masks(scores, {"a": 0.25, "b": 0.75})
    assert each["a"].sum() == 1
    assert each["b"].tolist() == [True, True, True, False]
    assert top_masks(scores, 1.0)["b"].tolist() == [True, True, True, False]  # never a score of 0
    assert top_masks({}, 0.5) == {}


def test_of_equal_scores_the_first_are_kept():
    scores = {"a": torch.ones(3, 4), "b": torch.tensor([[2.0, 1.0, 0.0]])}
    found = top_masks(scores, 7 / 15)
    assert found["b"].tolist() == [[True, False, False]]
    assert found["a"].flatten().tolist() == [True] * 6 + [False] * 6
    assert top_masks({"a": torch.ones(0, 4)}, 0.5)["a"].shape == (0, 4)
    shared = nn.Linear(16, 16)
    WeightSharing(shared, bits=1)
    assert int(Pruner(shared, density=0.25).masks["weight"].sum()) == 64


def test_cubic_schedule():
    assert cubic_density(0.0, 0.5, 0.1) == 0.5
    assert cubic_density(0.5, 0.5, 0.1) == pytest.approx(0.1 + 0.4 / 8)
    assert cubic_density(1.0, 0.5, 0.1) == cubic_density(1.5, 0.5, 0.1) == 0.1


def test_saliency_is_the_loss_of_a_quadratic():
    """For L = sum h/2 w^2 at its minimum shifted to w, removing w costs w^2 h / 2."""
    weight, curvature = torch.tensor([1.0, -2.0]), torch.tensor([4.0, 0.5])
    assert saliency(weight, curvature).tolist() == [4.0, 2.0]


def test_a_lone_weight_costs_more_bits():
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[0, :20] = True  # a crowded row
    mask[10, 25] = True
    bits = storage_bits(mask)
    assert bits.shape == mask.shape
    assert bits[10, 25] > bits[0, 5] + 2
    assert (bits >= 3).all()
    assert storage_bits(torch.ones(4, 2, 3, 3, dtype=torch.bool)).shape == (4, 2, 3, 3)
    assert torch.isfinite(storage_bits(torch.zeros(3, 3, dtype=torch.bool))).all()


def test_shrink_moves_towards_zero_and_no_further():
    weight = torch.tensor([0.5, -0.5, 0.001])
    shrink([weight], 0.1)
    assert torch.allclose(weight, torch.tensor([0.4, -0.4, 0.0]))


# The class


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 5))


def train(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 1, 4, 4)).square().sum().backward()
        optimizer.step()
        yield


def test_the_model_stays_an_ordinary_one(model):
    names, tensors = list(model.state_dict()), list(model.parameters())
    pruner = Pruner(model, sensitivity=1.0)
    assert list(model.state_dict()) == names
    assert list(model.buffers()) == []
    assert all(a is b for a, b in zip(model.parameters(), tensors, strict=True))
    assert pruner.masks.keys() == {"0.weight", "2.weight"}
    for name, mask in pruner.masks.items():
        weight = model.get_parameter(name)
        assert 0 < mask.sum() < mask.numel()
        assert torch.equal(weight != 0, mask)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_pruned_weights_are_zero_after_every_step(model, make):
    optimizer = make(model.parameters())
    for _ in train(model, optimizer, 3):  # momentum gathers on every weight before pruning
        pass
    pruner = Pruner(model, sensitivity=1.0)
    pruner.attach(optimizer)
    for _ in train(model, optimizer, 5):
        for name, mask in pruner.masks.items():
            weight = model.get_parameter(name)
            assert torch.equal(weight != 0, mask)
            assert (weight[~mask].view(torch.int32) == 0).all()  # +0.0, no sign left behind
    pruner.detach()
    for _ in train(model, optimizer, 1):
        assert any((model.get_parameter(n)[~mask] != 0).any() for n, mask in pruner.masks.items())


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("density", [0.2, {"0": 0.5, "2": 0.1}])
def test_gradual_pruning_reaches_its_density_and_never_goes_back(model, make, density):
    optimizer = make(model.parameters())
    pruner = Pruner(model, density=density, steps=28)
    pruner.attach(optimizer)
    history = []
    for _ in train(model, optimizer, 40):
        history.append(torch.cat([mask.flatten() for mask in pruner.masks.values()]))
        for name, mask in pruner.masks.items():
            assert ((model.get_parameter(name) != 0) <= mask).all()
    for before, after in pairwise(history):
        assert not (after & ~before).any()
    assert history[0].sum() > history[-1].sum()
    assert torch.equal(history[27], history[-1])
    assert not torch.equal(history[13], history[-1])
    assert pruner.finished
    if isinstance(density, dict):
        for layer, fraction in density.items():
            mask = pruner.masks[f"{layer}.weight"]
            assert mask.sum() == round(fraction * mask.numel())
    else:
        assert history[-1].sum() == round(density * len(history[-1]))


def test_a_density_at_once_is_by_magnitude_in_standard_deviations(model):
    with torch.no_grad():
        model[0].weight *= 1000  # large, and yet no better
    pruner = Pruner(model, density=0.25)
    kept = {name: float(mask.float().mean()) for name, mask in pruner.masks.items()}
    assert sum(int(mask.sum()) for mask in pruner.masks.values()) == round(0.25 * 87)
    assert 0.05 < kept["0.weight"] < 0.6


def test_sensitivity_zero_keeps_the_zeros_that_are_there(model):
    Pruner(model, sensitivity=1.0)
    zeros = {name: model.get_parameter(name) == 0 for name in ("0.weight", "2.weight")}
    pruner = Pruner(model, sensitivity=0)
    assert all(torch.equal(~pruner.masks[name], zero) for name, zero in zeros.items())


def test_patterns(model):
    pruner = Pruner(model, sensitivity={"*": 1.0, "@conv": 0.0})
    assert pruner.masks["0.weight"].all()
    assert not pruner.masks["2.weight"].all()
    assert Pruner(model, sensitivity=1.0, exclude="@conv").masks.keys() == {"2.weight"}
    with pytest.raises(UserError, match="no parameter matches 'fc'"):
        Pruner(model, sensitivity=1.0, include="fc")


def test_frozen_and_unused_weights_stay_whole(model):
    model[0].weight.requires_grad_(False)
    model.unused = nn.Linear(4, 4)
    before = model.unused.weight.clone()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    pruner = Pruner(model, density=0.2, steps=10)
    pruner.attach(optimizer)
    for _ in range(10):
        optimizer.zero_grad()
        model[2](model[1](model[0](torch.randn(16, 1, 4, 4)))).square().sum().backward()
        optimizer.step()
    assert "0.weight" not in pruner.masks
    assert torch.equal(model.unused.weight, before)
    assert pruner.masks["2.weight"].sum() == round(0.2 * 60)


def test_embeddings_are_pruned_only_where_they_are_included():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3))
    assert Pruner(model, sensitivity=1.0).masks.keys() == {"1.weight"}
    assert Pruner(model, sensitivity=1.0, include="@embedding").masks.keys() == {"0.weight"}


def test_gradient_accumulation_counts_steps_not_batches(model):
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    pruner = Pruner(model, density=0.5, steps=4)
    pruner.attach(optimizer)
    for i in range(8):
        model(torch.randn(4, 1, 4, 4)).square().sum().backward()
        if i % 2:
            optimizer.step()
            optimizer.zero_grad()
    assert pruner.steps_done == 4
    assert pruner.finished


def test_two_optimizers_keep_the_zeros_and_count_once(model):
    optimizers = [torch.optim.SGD(layer.parameters(), 1e-3) for layer in (model[0], model[2])]
    pruner = Pruner(model, sensitivity=1.0)
    for optimizer in optimizers:
        pruner.attach(optimizer)
    with pytest.raises(ValueError, match="attached already"):
        pruner.attach(optimizers[0])
    model(torch.randn(4, 1, 4, 4)).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    assert pruner.steps_done == 1
    assert all(torch.equal(model.get_parameter(n) != 0, m) for n, m in pruner.masks.items())


def test_an_overflow_that_a_scaler_skips_does_not_count(model):
    """Fused optimizers are stepped all the same, with gradients that are infinite."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-110)
    pruner = Pruner(model, density=0.5, steps=3)
    pruner.attach(optimizer)
    overflows = 0
    for _ in range(4):
        optimizer.zero_grad()
        scaler.scale(model(torch.randn(16, 1, 4, 4)).square().sum()).backward()
        overflows += not all(p.grad.isfinite().all() for p in model.parameters())
        scaler.step(optimizer)
        scaler.update()
    assert overflows == 1
    assert pruner.steps_done == 3
    assert sum(int(mask.sum()) for mask in pruner.masks.values()) == round(0.5 * 87)


def test_each_optimizer_s_gradients_count_in_its_own_step():
    """Under a scaler those of the other are scaled yet, or have been skipped."""

    def pruned(scaled, overflow):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
        optimizers = [torch.optim.SGD(layer.parameters(), 1e-3) for layer in (model[0], model[2])]
        pruner = Pruner(model, density=0.2, steps=20)
        for each in optimizers:
            pruner.attach(each)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=2.0**16)
        for step in range(20 + overflow):
            for each in optimizers:
                each.zero_grad()
            x = torch.randn(16, 32)
            scaler.scale((model(x) - x).square().mean()).backward()
            if overflow and step == 3:
                model[2].weight.grad[0, 0] = float("inf")
            for each in optimizers:
                scaler.step(each)
            scaler.update()
        return pruner.masks

    plain, scaled = pruned(False, False), pruned(True, False)
    assert all(torch.equal(mask, scaled[name]) for name, mask in plain.items())
    assert sum(int(mask.sum()) for mask in pruned(True, True).values()) == round(0.2 * 2048)


@pytest.mark.parametrize("options", [{"sensitivity": 1.5}, {"density": 0.3}])
@pytest.mark.parametrize("loaded_first", [True, False])
def test_a_pruner_made_to_go_on_takes_no_more(options, loaded_first):
    torch.manual_seed(0)
    model, again = nn.Linear(64, 8), nn.Linear(64, 8)
    pruner = Pruner(model, **options)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    pruner.attach(optimizer)
    for _ in range(100):
        optimizer.zero_grad()
        (model(torch.randn(8, 64)) - 1).square().mean().backward()
        optimizer.step()
    saved = copy.deepcopy((model.state_dict(), pruner.state_dict()))
    if loaded_first:
        again.load_state_dict(saved[0])
    other = Pruner(again, **options)
    if loaded_first and "sensitivity" in options:  # by the deviation of what is left
        assert (again.weight == 0)[saved[1]["masks"]["weight"]].any()
    if not loaded_first:
        again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    assert all(torch.equal(each, saved[0][n]) for n, each in again.state_dict().items())


def test_a_copy_gives_back_what_a_state_had_kept(model):
    saved = Pruner(copy.deepcopy(model), sensitivity=0.1).state_dict()
    before = copy.deepcopy(model)
    other, pruner = copy.deepcopy((model, Pruner(model, sensitivity=1.0)))
    pruner.load_state_dict(saved)
    for name, mask in pruner.masks.items():
        assert torch.equal(other.get_parameter(name), before.get_parameter(name) * mask)


def test_a_state_can_be_gone_back_to(model):
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    pruner = Pruner(model, density=0.3, steps=10)
    pruner.attach(optimizer)
    start = copy.deepcopy((model.state_dict(), pruner.state_dict()))
    list(train(model, optimizer, 5))
    middle = copy.deepcopy((model.state_dict(), pruner.state_dict()))

    def run():
        torch.manual_seed(3)
        list(train(model, optimizer, 5))
        return {name: mask.clone() for name, mask in pruner.masks.items()}

    def go_back(to):
        model.load_state_dict(to[0])
        pruner.load_state_dict(to[1])

    first = run()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    pruner.steps_done = 8  # so that this step is one of the schedule
    with pytest.raises(UserError, match="finite"):
        optimizer.step()
    for _ in range(2):
        go_back(middle)
        assert all(torch.equal(mask, first[name]) for name, mask in run().items())
    go_back(start)
    assert not any(bool(squares.any()) for squares in pruner.state_dict()["squares"].values())


def test_a_resumed_pruner_goes_on_as_if_never_stopped(model):
    def state_of(stop):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 5))
        optimizer = torch.optim.SGD(net.parameters(), 1e-2)
        pruner = Pruner(net, density=0.3, steps=12)
        pruner.attach(optimizer)
        for i, _ in enumerate(train(net, optimizer, 20)):
            if i == stop:
                pruner.detach()
                saved = pruner.state_dict()
                pruner = Pruner(net, density=0.3, steps=12)
                pruner.load_state_dict(saved)
                pruner.attach(optimizer)
        return net.state_dict()

    whole, resumed = state_of(None), state_of(5)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    with pytest.raises(ValueError, match="other parameters"):
        Pruner(nn.Linear(2, 2), sensitivity=0).load_state_dict(
            Pruner(model, sensitivity=0).state_dict()
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either a sensitivity or a density"),
        ({"sensitivity": 1, "density": 0.5}, "either a sensitivity or a density"),
        ({"sensitivity": 1, "steps": 5}, "with a density"),
        ({"density": 1.5}, "from 0 to 1"),
        ({"density": {"*": -1.0}}, "from 0 to 1"),
        ({"sensitivity": -1}, "at least 0"),
        ({"sensitivity": float("nan")}, "at least 0"),
        ({"sensitivity": float("inf")}, "finite number of at least 0, not inf"),
        ({"sensitivity": "auto"}, "not 'auto'"),
        ({"density": "auto"}, "from 0 to 1, not 'auto'"),
        ({"density": 0.5, "steps": 2.5}, "whole number of at least 0, not 2.5"),
    ],
)
def test_bad_numbers(model, options, message):
    with pytest.raises(ValueError, match=message):
        Pruner(model, **options)


# What is not finite, not there or not done


@pytest.mark.parametrize("options", [{"density": 0.5}, {"sensitivity": 1.0}])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite(model, options, value):
    with torch.no_grad():
        model[2].weight[0, 0] = value
    before = model[0].weight.clone()
    with pytest.raises(UserError, match=r"cannot prune 2\.weight: not all .* finite"):
        Pruner(model, **options)
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("what", ["weight", "gradient"])
def test_training_that_diverges_prunes_nothing(model, what):
    pruner = Pruner(model, density=0.2, steps=10)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    pruner.attach(optimizer)
    for _ in train(model, optimizer, 3):
        pass
    masks = {name: mask.clone() for name, mask in pruner.masks.items()}
    optimizer.zero_grad()
    if what == "weight":
        model[2].weight.data[0, 0] = float("nan")
        model[0].weight.grad = torch.zeros_like(model[0].weight)
        message = r"cannot prune 2\.weight: not all of its values are finite"
    else:
        model[2].weight.grad = torch.full_like(model[2].weight, float("inf"))
        optimizer.param_groups[0]["lr"] = 0.0
        model[0].weight.grad = torch.zeros_like(model[0].weight)
        optimizer.register_step_pre_hook(lambda *_: setattr(model[2].weight, "grad", None))
        message = r"cannot prune 2\.weight: its gradient was not finite"
    with pytest.raises(UserError, match=message):
        optimizer.step()
    assert all(torch.equal(mask, pruner.masks[name]) for name, mask in masks.items())


def test_a_model_in_which_nothing_can_be_pruned(model):
    for other, message in (
        (nn.BatchNorm1d(4), "no weights of two or more dimensions"),
        (nn.Embedding(9, 4), "weight are frozen, or embeddings"),
        (model.requires_grad_(False), r"0\.weight, 2\.weight are frozen"),
    ):
        with pytest.raises(UserError, match=message):
            Pruner(other, density=0.5)


def test_weights_that_change_between_steps_are_masked_again(model):
    pruner = Pruner(model, density=0.25)
    for put_right in (pruner.apply, pruner.detach):
        with torch.no_grad():
            model[0].weight.add_(1.0)
        put_right()
        assert torch.equal(model[0].weight != 0, pruner.masks["0.weight"])


def test_a_scaled_gradient_is_as_salient_as_an_unscaled_one(model):
    squares = []
    for scale in (1.0, 2.0**16):
        other = copy.deepcopy(model)
        pruner = Pruner(other, density=0.5, steps=3)
        optimizer = torch.optim.Adam(other.parameters(), 1e-3, fused=True)
        pruner.attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(other(torch.ones(2, 1, 4, 4)).square().sum()).backward()
        scaler.step(optimizer)
        squares.append(pruner.state_dict()["squares"]["2.weight"])
    assert torch.allclose(*squares)


@pytest.mark.parametrize("by", ["weight_norm", "spectral_norm"])
@pytest.mark.parametrize("of", [nn.utils, nn.utils.parametrizations])
def test_parametrized_weights_are_pruned_and_stay_numbers(by, of):
    torch.manual_seed(0)
    model = nn.Sequential(getattr(of, by)(nn.Linear(32, 24)))
    pruner = Pruner(model, density=0.05, steps=10)
    (name,) = pruner.masks
    assert name in ("0.weight_v", "0.weight_orig") or "parametrizations.weight.original" in name
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    pruner.attach(optimizer)
    for _ in range(12):
        optimizer.zero_grad()
        model(torch.randn(9, 32)).square().sum().backward()
        optimizer.step()
    pruner.detach()
    model(torch.randn(9, 32))
    kept = int(pruner.masks[name].sum())
    assert int(model[0].weight.count_nonzero()) == kept <= round(0.05 * 24 * 32) + 24
    assert model[0].weight.isfinite().all()


def test_constants_are_not_pruned():
    """Neither the filters of a Fourier transform, nor a number for each layer."""
    model = nn.Module()
    model.bank = nn.Conv1d(1, 33, 64, bias=False)
    angles = 2 * math.pi / 64 * torch.arange(64) * torch.arange(33.0)[:, None]
    model.bank.weight.data = angles.cos()[:, None]
    model.layer_weight = nn.Parameter(torch.rand(13, 1) / 100)
    model.fc = nn.Linear(32, 32)
    with pytest.warns(UserWarning, match=r"those of tables of constants: bank\.weight; include="):
        assert list(Pruner(model, density=0.2).masks) == ["fc.weight"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(Pruner(model, sensitivity=1.0, include="bank").masks) == ["bank.weight"]
        model.bank.requires_grad_(False)
        Pruner(model, sensitivity=1.0)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        *((torch.float32, 1e37), (torch.bfloat16, 1e38), (torch.float32, 1e-30)),
        *((torch.float64, 1e40), (torch.float64, 1e150), (torch.float64, 1e-46)),
    ],
)
def test_weights_whose_squares_are_no_numbers(dtype, size):
    torch.manual_seed(0)
    weight = (torch.randn(64, 64).double().clamp(-3, 3) * size).to(dtype)
    for options in ({"density": 0.5}, {"sensitivity": 0.5}):
        model = nn.Linear(64, 64, bias=False, dtype=dtype)
        model.weight.data = weight.clone()
        Pruner(model, **options)
        assert 0.4 < model.weight.count_nonzero() / 4096 < 0.7


def test_weight_normalisation_of_no_inputs():
    none = nn.utils.parametrizations.weight_norm(nn.Linear(0, 5))
    model = nn.Sequential(none, nn.Linear(5, 5))
    Pruner(model, density=0.4)
    WeightSharing(model, bits="auto")
    assert model[1].weight.count_nonzero() == 10


def test_zeros_that_zero_grad_leaves_are_no_gradient():
    model = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = Pruner(model, density=0.2, steps=20)
    pruner.attach(optimizer)

    def step(*, zero: bool, backward: bool) -> int:
        if zero:
            optimizer.zero_grad(set_to_none=False)
        if backward:
            model(torch.randn(4, 8)).sum().backward()
        optimizer.step()
        return pruner.steps_done

    assert step(zero=False, backward=True) == 1
    for _ in range(30):
        assert step(zero=True, backward=False) == 1
    assert step(zero=True, backward=True) == 2
    assert step(zero=False, backward=True) == 3  # accumulated
    assert step(zero=False, backward=False) == 4  # moves on by the gradient that is there


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"density": {"*": None}}, "a density is a number"),
        ({"sensitivity": {"*": None}}, "a sensitivity is a finite number"),
        ({"density": 0.1, "exclude": (each for each in "0")}, "a list of patterns"),
        ({"density": 0.1, "steps": True}, "steps is a whole number"),
    ],
)
def test_options_that_would_be_used_up_or_mean_nothing(options, said):
    with pytest.raises(ValueError, match=said):
        Pruner(nn.Linear(8, 8), **options)


def test_whole_numbers_are_those_of_numpy_too():
    assert Pruner(nn.Linear(8, 8), density=0.1, steps=np.int64(3)).steps_done == 0


def test_patterns_that_leave_nothing_are_the_reason():
    with pytest.raises(UserError, match="include and exclude leave none"):
        Pruner(nn.Linear(8, 8), density=0.1, exclude="*")
