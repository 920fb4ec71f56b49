import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint import checkpoint_wrapper
from torch.nn import functional as F

from net import Pruner, WeightSharing, encoding, sharing
from net.codec.tensors import write_tensor
from net.errors import UserError
from net.rounding import share_alone, share_tensor
from net.shared_tensor import SharedTensor
from net.sharing import SharedState
from tests.optimizers import OPTIMIZERS


@pytest.fixture
def weight():
    torch.manual_seed(0)
    weight = torch.randn(20, 30)
    weight[weight.abs() < 1] = 0
    return weight


def test_shared_values_and_pruned_entries(weight):
    shared = SharedTensor.clustered(weight, bits=3)
    pruned = weight == 0
    shared.write(weight)
    assert torch.equal(weight == 0, pruned)
    assert len(weight[~pruned].unique()) == 8


@pytest.mark.parametrize("memory", ["contiguous", "transposed", "channels_last"])
def test_memory_layouts(memory):
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 5, 5)
    plain = weight.clone()
    if memory == "transposed":
        weight = weight.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    elif memory == "channels_last":
        weight = weight.to(memory_format=torch.channels_last)
    SharedTensor.clustered(weight, bits=2).write(weight)
    SharedTensor.clustered(plain, bits=2).write(plain)
    assert torch.equal(weight, plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_of_weights(weight, dtype):
    weight = weight.to(dtype)
    shared = SharedTensor.clustered(weight, bits=3)
    assert shared.centroids.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    shared.write(weight)
    assert len(weight[weight != 0].unique()) == 8
    gradient = torch.ones_like(weight)
    shared.take_gradient(gradient, shared.sums(gradient))
    assert shared.centroids.grad.sum() == weight.count_nonzero()


def test_centroids_are_stored_as_float16_values(weight):
    shared = SharedTensor.clustered(weight, bits=3)
    stored = shared.stored_centroids()
    assert torch.equal(stored, stored.half().float())
    assert not torch.equal(stored, shared.centroids)


@pytest.mark.parametrize("value", [1e-9, 1e6])
def test_a_centroid_that_float16_cannot_hold_stays_exact(value):
    weight = torch.tensor([[value, 0.0, 1.0]])
    before = weight.clone()
    SharedTensor.clustered(weight, bits=2).write(weight)
    assert torch.equal(weight, before)


def test_fully_pruned_constant_and_few_values():
    empty = torch.zeros(3, 3)
    shared = SharedTensor.clustered(empty, bits=5)
    shared.write(empty)
    assert empty.count_nonzero() == 0
    shared.take_gradient(torch.ones(3, 3), shared.sums(torch.ones(3, 3)))
    assert shared.centroids.grad.shape == (0,)

    constant = torch.full((3, 3), 0.5)
    SharedTensor.clustered(constant, bits=5).write(constant)
    assert constant.unique().tolist() == [0.5]

    few = torch.tensor([[1.0, -2.0], [0.0, 1.0]])
    SharedTensor.clustered(few, bits=5).write(few)
    assert few.tolist() == [[1.0, -2.0], [0.0, 1.0]]


def test_reassign_moves_a_weight_to_its_nearest_centroid():
    weight = torch.tensor([[1.0, 1.2, 0.0], [3.0, 3.2, 0.0]])
    shared = SharedTensor.clustered(weight, bits=1, reassignable=True)
    assert shared.labels.tolist() == [0, 0, 1, 1]
    with torch.no_grad():
        shared.latent[0, 1] = 2.9  # what its own gradient made of 1.2
    shared.reassign()
    shared.write(weight)
    assert shared.labels.tolist() == [0, 1, 1, 1]
    assert weight[0, 1] == weight[1, 0]
    assert weight[:, 2].tolist() == [0.0, 0.0]


def test_reassign_keeps_centroids_in_order():
    weight = torch.tensor([1.0, 2.0, 3.0])
    shared = SharedTensor.clustered(weight, bits=2, reassignable=True)
    with torch.no_grad():
        shared.centroids.copy_(torch.tensor([3.0, 1.0, 2.0]))
    shared.reassign()
    assert shared.centroids.tolist() == [1.0, 2.0, 3.0]
    assert shared.labels.tolist() == [0, 1, 2]


# The class


class Tagger(nn.Module):
    """Every kind of weight: embedding, recurrent, attention, convolution, linear."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens):  # int64 [N, length] -> [N, 3]
        x, _ = self.lstm(self.embed(tokens))
        x, _ = self.attention(x, x, x)
        x = self.conv(x.transpose(1, 2)).transpose(1, 2)
        return self.head(self.norm(x)).mean(1)


@pytest.fixture
def tagger():
    torch.manual_seed(0)
    return Tagger()


def loss_of(model):
    return model(torch.randint(20, (6, 5))).square().sum()


def shared_names(model):
    return [n for n, p in model.named_parameters() if p.dim() > 1]


@pytest.mark.parametrize("reassign", [0, 3])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_few_values_and_the_zeros_after_every_step(tagger, make, reassign):
    pruner = Pruner(tagger, sensitivity=0.5)
    names, tensors = list(tagger.state_dict()), list(tagger.parameters())
    shared = WeightSharing(tagger, bits=3, reassign=reassign)
    optimizer = make(shared.parameters())
    shared.attach(optimizer)
    assert list(shared.tensors) == shared_names(tagger)
    before = {name: tagger.get_parameter(name).clone() for name in shared.tensors}
    for _ in range(5):
        optimizer.zero_grad()
        loss_of(tagger).backward()
        optimizer.step()
        for name in shared.tensors:
            weight = tagger.get_parameter(name)
            assert len(weight[weight != 0].unique()) <= 8
            if name in pruner.masks:
                assert torch.equal(weight != 0, pruner.masks[name])
    shared.detach()
    for name, was in before.items():
        weight = tagger.get_parameter(name)
        assert not torch.equal(weight, was), name
        if not reassign:  # what shared a value still does
            for value in was.unique():
                assert len(weight[was == value].unique()) == 1
    assert list(tagger.state_dict()) == names
    assert list(tagger.buffers()) == []
    assert all(a is b for a, b in zip(tagger.parameters(), tensors, strict=True))


def autograd_gradients(model, sharing, tokens):
    """{name: dL/dC} by autograd through centroids[labels], in place of equation 3."""
    leaves, replaced = {}, {}
    for name, shared in sharing.tensors.items():
        weight = model.get_parameter(name)
        leaves[name] = shared.stored_centroids().clone().requires_grad_()
        flat = torch.zeros(weight.numel()).index_put(
            (shared.positions,), leaves[name][shared.labels]
        )
        replaced[name] = flat.view(weight.shape)
    torch.func.functional_call(model, replaced, (tokens,)).square().sum().backward()
    return {name: leaf.grad for name, leaf in leaves.items()}


@pytest.mark.parametrize("batches", [1, 3])
def test_gradients_of_the_centroids_are_those_of_autograd(tagger, batches):
    """Equation 3, over one batch and accumulated over several."""
    Pruner(tagger, sensitivity=0.5)
    shared = WeightSharing(tagger, bits=2)
    optimizer = torch.optim.SGD(shared.parameters(), 0.0)
    shared.attach(optimizer)
    tokens = torch.randint(20, (6, 5))
    expected = autograd_gradients(tagger, shared, tokens)
    tagger.zero_grad()
    for _ in range(2):  # the second step starts from nothing
        for _ in range(batches):
            tagger(tokens).square().sum().backward()
        optimizer.step()
        for name, tensor in shared.tensors.items():
            grad = tensor.centroids.grad
            assert torch.allclose(grad, batches * expected[name], rtol=1e-4, atol=1e-5), name
        # Not optimizer.zero_grad(): loops that call the model's know nothing of the centroids.
        tagger.zero_grad()


def test_autocast(tagger):
    shared = WeightSharing(tagger, bits=3)
    optimizer = torch.optim.AdamW(shared.parameters(), 1e-3)
    shared.attach(optimizer)
    # Not every processor has oneDNN's LSTM in bfloat16.
    with torch.autocast("cpu", torch.bfloat16), torch.backends.mkldnn.flags(enabled=False):
        loss = loss_of(tagger)
    loss.backward()
    optimizer.step()
    assert all(t.centroids.grad.isfinite().all() for t in shared.tensors.values())
    assert len(tagger.head.weight.unique()) <= 8


def test_a_gradient_scaler_sees_the_centroids(tagger):
    shared = WeightSharing(tagger, bits=3)
    optimizer = torch.optim.SGD(shared.parameters(), 1e-3)
    shared.attach(optimizer)
    expected = autograd_gradients(tagger, shared, torch.arange(20).view(4, 5))
    tagger.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(tagger(torch.arange(20).view(4, 5)).square().sum()).backward()
    shared.gather_gradients()
    scaler.step(optimizer)
    for name, tensor in shared.tensors.items():
        assert torch.allclose(tensor.centroids.grad, expected[name], rtol=1e-3, atol=1e-4), name


def test_frozen_and_unused_weights_are_shared_and_stay(tagger):
    """Neither has a gradient."""
    tagger.conv.weight.requires_grad_(False)
    tagger.unused = nn.Linear(4, 4)
    shared = WeightSharing(tagger, bits=2, reassign=2)
    frozen, unused = tagger.conv.weight.clone(), tagger.unused.weight.clone()
    optimizer = torch.optim.Adam(shared.parameters(), 0.1)
    shared.attach(optimizer)
    for _ in range(3):
        loss_of(tagger).backward()
        optimizer.step()
    assert len(frozen.unique()) == len(unused.unique()) == 4
    assert torch.equal(tagger.conv.weight, frozen)
    assert torch.equal(tagger.unused.weight, unused)
    held = {id(p) for p in shared.parameters()}
    assert id(shared.tensors["conv.weight"].centroids) not in held


def test_a_gradient_of_an_earlier_step_does_not_count_again(tagger):
    shared = WeightSharing(tagger, bits=2)
    optimizer = torch.optim.SGD(shared.parameters(), 0.1)
    shared.attach(optimizer)
    loss_of(tagger).backward()
    optimizer.step()
    before = tagger.conv.weight.clone()
    tagger.head.bias.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(tagger.conv.weight, before)


def test_tied_weights_move_together():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    shared = WeightSharing(model, bits=2)
    assert list(shared.tensors) == ["0.weight"]
    optimizer = torch.optim.SGD(shared.parameters(), 0.1)
    shared.attach(optimizer)
    model(torch.randn(4, 6)).square().sum().backward()
    optimizer.step()
    assert model[1].weight is model[0].weight
    assert len(model[1].weight.unique()) == 4


def test_bits_by_pattern_and_biases(tagger):
    shared = WeightSharing(tagger, bits={"*": 3, "@rnn": 2, "head": 1}, bias_bits=1)
    values = {name: len(tagger.get_parameter(name).unique()) for name in shared.tensors}
    assert values["lstm.weight_ih_l0"] == values["lstm.weight_hh_l0"] == 4
    assert values["head.weight"] == 2
    assert values["conv.weight"] == 8
    biases = {"lstm.bias_ih_l0", "lstm.bias_hh_l0", "conv.bias", "head.bias"}
    biases |= {"attention.in_proj_bias", "attention.out_proj.bias"}
    assert shared.tensors.keys() - set(shared_names(tagger)) == biases
    assert all(values[name] <= 2 for name in biases)
    held = {id(p) for p in shared.parameters()}
    assert id(tagger.norm.weight) in held
    assert id(tagger.head.bias) not in held


def test_latent_weights_have_a_rate_of_their_own(tagger):
    first, second = WeightSharing(tagger, bits=2, reassign=5).parameter_groups(1e-2)
    assert second["lr"] == sharing.LATENT_RATE * first["lr"]
    assert sum(p.numel() for p in second["params"]) == sum(
        int(tagger.get_parameter(name).count_nonzero()) for name in shared_names(tagger)
    )
    assert len(WeightSharing(tagger, bits=2).parameter_groups(1e-2)) == 1


def test_an_optimizer_of_the_weights_themselves_is_refused(tagger):
    shared = WeightSharing(tagger, bits=2)
    optimizer = torch.optim.SGD(tagger.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"trains embed.weight itself; make it of sharing\.param"):
        shared.attach(optimizer)


def test_a_resumed_sharing_goes_on_as_if_never_stopped():
    def state_of(stop):
        torch.manual_seed(1)
        model = Tagger()
        shared = WeightSharing(model, bits=3, reassign=6)
        optimizer = torch.optim.SGD(shared.parameters(), 1e-2)
        shared.attach(optimizer)
        for i in range(10):
            if i == stop:
                saved = shared.state_dict()
                shared.detach()
                shared = WeightSharing(model, bits=3, reassign=6)
                shared.load_state_dict(saved)
                optimizer = torch.optim.SGD(shared.parameters(), 1e-2)
                shared.attach(optimizer)
            loss_of(model).backward()
            optimizer.step()
            optimizer.zero_grad()
        return model.state_dict()

    whole, resumed = state_of(None), state_of(4)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def pruned_sharing():
    model = Tagger()
    Pruner(model, sensitivity=0.5)
    return WeightSharing(model, bits=2)


def test_a_state_of_something_else_is_refused(tagger):
    saved = WeightSharing(tagger, bits=2).state_dict()
    for other, message in (
        (WeightSharing(nn.Linear(2, 2), bits=2), "other parameters"),
        (pruned_sharing(), "other zeros"),
        (WeightSharing(Tagger(), bits=2, reassign=1), "latent"),
    ):
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(saved)


def test_a_state_that_is_refused_changes_nothing():
    def model(classes):
        return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, classes))

    saved, other = WeightSharing(model(4), bits=3).state_dict(), model(7)
    sharing = WeightSharing(other, bits=3)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=r"a state of another tensor than this, of \(7, 32\)"):
        sharing.load_state_dict(saved)
    assert all(torch.equal(each, before[name]) for name, each in other.state_dict().items())


def test_sharing_by_rate_takes_its_own_state():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    sharing = WeightSharing(model, bits="auto")
    optimizer = torch.optim.Adam(sharing.parameters(), 1e-2)
    sharing.attach(optimizer)
    for _ in range(20):
        optimizer.zero_grad()
        (model(torch.randn(8, 16)) - 1).square().mean().backward()
        optimizer.step()
    again = copy.deepcopy(model)
    resumed = WeightSharing(again, bits="auto")
    assert any(
        not torch.equal(p, q) for p, q in zip(again.parameters(), model.parameters(), strict=True)
    )
    resumed.load_state_dict(sharing.state_dict())
    assert all(
        torch.equal(p, q) for p, q in zip(again.parameters(), model.parameters(), strict=True)
    )


@pytest.mark.parametrize("parts", [1, 2])
def test_a_weight_that_is_not_finite(tagger, parts):
    with torch.no_grad():
        tagger.head.weight[0, 0] = float("nan")
    before = copy.deepcopy(tagger.state_dict())
    with pytest.raises(UserError, match=r"cannot share head\.weight: not all values are finite"):
        WeightSharing(tagger, bits=2, parts=parts)
    after = tagger.state_dict()
    assert all(torch.equal(after[n], before[n]) for n in after if n != "head.weight")


def test_bits_that_are_another_word_than_auto(tagger):
    with pytest.raises(ValueError, match=r"bits must be a number, .* or 'auto', not '5'"):
        WeightSharing(tagger, bits="5")
    with pytest.raises(ValueError, match="not 'Auto'"):
        SharedState(tagger.state_dict(), bits="Auto")


# Models that are trained already


def test_the_values_that_a_tensor_has_already(weight):
    few = (weight / 4).round() * 4
    shared = SharedTensor.of_values(weight, few)
    written = torch.zeros_like(weight)
    shared.write(written)
    assert torch.equal(written, few)
    assert shared.positions.numel() == few.count_nonzero() < weight.count_nonzero()


def test_auto_bits_share_and_prune_and_round(tagger, tmp_path):
    before = {name: tensor.clone() for name, tensor in tagger.state_dict().items()}
    shared = WeightSharing(tagger, bits="auto", noise=0.5)
    assert list(shared.tensors) == shared_names(tagger)
    for name, tensor in tagger.state_dict().items():
        change = (tensor - before[name]).norm() / before[name].norm().clamp(min=1e-9)
        assert 0 < change < 0.4 or not before[name].any() or name == "norm.weight", name
        if name in shared.tensors:
            assert shared.clusterings[name].noise == pytest.approx(change.item(), rel=1e-4)
    assert (tagger.lstm.weight_hh_l0 == 0).any()
    size = encoding.save(tagger.state_dict(), tmp_path / "auto")
    assert size < encoding.save(before, tmp_path / "exact") / 4
    assert len(tagger.norm.bias.unique()) <= len(before["norm.bias"].unique())


def test_more_noise_takes_fewer_bytes(tmp_path):
    sizes = []
    for noise in (0.1, 0.4, 1.5):
        torch.manual_seed(0)
        model = Tagger()
        WeightSharing(model, bits="auto", noise=noise)
        sizes.append(encoding.save(model.state_dict(), tmp_path / str(noise)))
    assert sizes == sorted(sizes, reverse=True)


def test_auto_bits_can_be_fine_tuned_and_vectors_left(tagger):
    exact = tagger.head.bias.clone()
    shared = WeightSharing(tagger, bits="auto", exact_vectors=True)
    assert torch.equal(tagger.head.bias, exact)
    zeros = {name: tagger.get_parameter(name) == 0 for name in shared.tensors}
    before = {name: tagger.get_parameter(name).clone() for name in shared.tensors}
    optimizer = torch.optim.Adam(shared.parameters(), 1e-2)
    shared.attach(optimizer)
    loss_of(tagger).backward()
    optimizer.step()
    shared.detach()
    for name, was in before.items():
        weight = tagger.get_parameter(name)
        assert not torch.equal(weight, was)
        assert torch.equal(weight == 0, zeros[name])
        assert len(weight.unique()) <= len(was.unique())


def normalised():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 4))


def test_normalisation_is_rounded_beside_shared_weights_and_can_be_left():
    model, left, inputs = normalised(), normalised(), torch.randn(16, 3, 4, 4)
    for each in (model, left):
        each.train()(inputs)
    exact = copy.deepcopy(left.state_dict())
    WeightSharing(left, bits=3, exact_vectors=True)
    sharing = WeightSharing(model, bits=3)
    for name in ("1.running_mean", "1.running_var"):
        now = model.state_dict()[name]
        assert torch.equal(left.state_dict()[name], exact[name])
        assert not torch.equal(now, exact[name])
        assert torch.allclose(now, exact[name], rtol=1 / 64, atol=1 / 64)
    assert torch.equal(model[0].bias, exact["0.bias"])  # bias_bits is 0
    optimizer = torch.optim.SGD(sharing.parameters(), 1e-3)
    sharing.attach(optimizer)
    F.cross_entropy(model(torch.randn(8, 3, 4, 4)), torch.arange(8) % 4).backward()
    optimizer.step()
    trained = model[1].weight.clone()
    sharing.detach()
    assert not torch.equal(model[1].weight, trained)  # trained unrounded, and rounded at the end


@pytest.mark.parametrize("noise", [0.0, -1.0, float("nan")])
def test_noise_that_is_none(tagger, noise):
    with pytest.raises(ValueError, match="noise must be a positive number"):
        WeightSharing(tagger, bits="auto", noise=noise)


class Branching(nn.Module):
    """Three layers, the last of which nothing reaches."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(12, 30), nn.ReLU(), nn.Linear(30, 5))
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        return self.layers(x)


def test_calibration_compensates_for_errors_and_names_what_it_cannot():
    torch.manual_seed(0)
    inputs = torch.randn(200, 12) @ torch.randn(12, 12)  # correlated
    changes = []
    for calibration in (None, inputs.split(50)):
        torch.manual_seed(1)
        model = Branching()
        expected = model(inputs).detach()
        sharing = WeightSharing(model, "auto", noise=0.5, calibration=calibration)
        changes.append((model(inputs) - expected).square().mean().item())
    assert changes[1] < 0.7 * changes[0]
    assert sharing.without_data == {"unused.weight": "no input reached it"}
    assert sharing.tensors.keys() == {"layers.0.weight", "layers.2.weight", "unused.weight"}


def net_of_three():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 30), nn.Linear(30, 4))


@pytest.mark.parametrize("bits", [2, "auto"])
def test_parts_are_shared_one_after_the_other_the_largest_first(bits):
    whole, model = net_of_three(), net_of_three()
    exact = copy.deepcopy(model.state_dict())
    sharing = WeightSharing(model, bits, parts=3)
    left = ["3.weight", "0.weight"]  # 600, 160 and 120 weights, and the other way round
    while True:
        for name in exact:
            waits = name in left or name.endswith("bias")
            if bits != "auto":
                assert torch.equal(model.state_dict()[name], exact[name]) == waits
        assert sharing.parts_left == len(left)
        if not sharing.share_next():
            break
        left.pop()
    assert not left
    assert sharing.tensors.keys() == {"0.weight", "2.weight", "3.weight"}
    WeightSharing(whole, bits)  # nothing was trained between
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


@pytest.mark.parametrize("bits", [2, "auto"])
def test_biases_are_shared_with_the_last_part(bits):
    model = net_of_three()
    biases = {name: p.clone() for name, p in model.named_parameters() if name.endswith("bias")}
    sharing = WeightSharing(model, bits, bias_bits=1, parts=2)
    for name, bias in biases.items():
        assert torch.equal(model.get_parameter(name), bias)
    sharing.share_next()
    for name in biases:
        assert len(model.get_parameter(name).unique()) == 2
    assert sharing.tensors.keys() == {name for name, _ in model.named_parameters()}


def test_what_waits_is_trained_between_but_for_its_zeros():
    model = net_of_three()
    Pruner(model, density=0.5)
    before = copy.deepcopy(model.state_dict())
    sharing = WeightSharing(model, bits=2, parts=2)
    for part in range(2):
        optimizer = torch.optim.Adam(sharing.parameters(), 1e-2)
        sharing.attach(optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(5, 8)).square().sum().backward()
            optimizer.step()
        sharing.detach()
        for name in ("0.weight", "2.weight", "3.weight"):
            weight = model.state_dict()[name]
            assert torch.equal(weight == 0, before[name] == 0)
            assert not torch.equal(weight, before[name])
            shared = part == 1 or name != "3.weight"
            assert (len(weight[weight != 0].unique()) <= 4) == shared
        assert sharing.share_next() == (part == 0)


@pytest.mark.parametrize("parts", [0, -1])
def test_a_number_of_parts_that_makes_no_sense(parts):
    with pytest.raises(ValueError, match="parts must be a whole number of at least 1"):
        WeightSharing(net_of_three(), parts=parts)


def test_more_parts_than_tensors():
    sharing = WeightSharing(net_of_three(), bits=2, parts=50)
    assert sharing.parts_left == 2


def test_a_model_in_which_nothing_can_be_shared():
    with pytest.raises(UserError, match="nothing in this model can be shared, no weight of two"):
        WeightSharing(nn.BatchNorm1d(4))
    with pytest.raises(UserError, match="can be shared: left out by include or exclude; include="):
        WeightSharing(nn.Linear(9, 9), exclude="*")


def test_calibration_without_noise():
    with pytest.raises(ValueError, match="calibration has no effect with bits=4"):
        WeightSharing(nn.Linear(9, 9), 4, calibration=[torch.zeros(1, 9)])


def test_how_far_vectors_were_rounded():
    model = normalised()
    model.train()(torch.randn(16, 3, 4, 4))
    sharing = WeightSharing(model, "auto")
    first = dict(sharing.rounded)
    assert first.keys() == {"0.bias", "3.bias"} | {
        f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var")
    }
    assert 0 < max(first.values()) < 0.2
    sharing.detach()  # rounds again what is rounded already
    assert sharing.rounded == first


def test_statistics_are_folded_where_vectors_are_rounded():
    inputs = torch.randn(16, 3, 4, 4)
    for bits in (5, "auto"):
        model = normalised()
        model.add_module("plain", nn.BatchNorm1d(4, affine=False))
        model.train()(inputs)
        sharing = WeightSharing(model, bits=bits)
        before = model.eval()(inputs)
        assert sharing.fold_norms() == ["1"]
        assert torch.equal(model[1].running_var, torch.ones(8))
        assert not model[1].running_mean.any()
        assert (model.plain.running_var != 1).any()
        assert torch.allclose(model(inputs), before, atol=0.1)
    left = normalised()
    left.train()(inputs)
    exact = copy.deepcopy(left[1].state_dict())
    assert WeightSharing(left, exact_vectors=True).fold_norms() == []
    assert all(torch.equal(left[1].state_dict()[name], exact[name]) for name in exact)


def test_statistics_in_a_checkpoint_wrapper_are_folded():
    inner = checkpoint_wrapper.checkpoint_wrapper(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)))
    model = nn.Sequential(inner, nn.Linear(8, 3))
    model.train()(torch.randn(16, 4))
    assert WeightSharing(model, bits="auto").fold_norms() == ["0.1"]
    assert torch.equal(inner[1].running_var, torch.ones(8))


# Loops


def scaled_step(model, sharing, optimizer, scaler, order):
    optimizer.zero_grad()
    scaler.scale(loss_of(model)).backward()
    for what in order.split():
        if what == "gather":
            sharing.gather_gradients()
        elif what == "unscale":
            scaler.unscale_(optimizer)
        else:
            nn.utils.clip_grad_norm_(list(sharing.parameters()), 1.0)
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("order", "step"), [("", 0), ("unscale", 0), ("unscale gather", 0), ("unscale gather clip", 1)]
)
def test_gradients_that_a_scaler_did_not_unscale_are_noticed(tagger, order, step, fused):
    sharing = WeightSharing(tagger, bits=3)
    optimizer = torch.optim.Adam(sharing.parameters(), 1e-3, fused=fused)
    sharing.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for _ in range(step):
        scaled_step(tagger, sharing, optimizer, scaler, order)
    with pytest.raises(UserError, match=r"call sharing\.gather_gradients\(\) after backward"):
        scaled_step(tagger, sharing, optimizer, scaler, order)


@pytest.mark.parametrize("order", ["gather", "gather unscale", "gather unscale clip"])
@pytest.mark.parametrize("enabled", [True, False])
def test_gradients_that_a_scaler_did_unscale(tagger, order, enabled):
    sharing = WeightSharing(tagger, bits=3)
    optimizer = torch.optim.Adam(sharing.parameters(), 1e-3)
    sharing.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=enabled)
    for _ in range(3):
        scaled_step(tagger, sharing, optimizer, scaler, order)
    assert sharing.steps_done == 3


def test_gradients_that_are_gathered_after_every_batch_add_up(tagger):
    found = []
    for after_each in (True, False):
        model = copy.deepcopy(tagger)
        sharing = WeightSharing(model, bits=2)
        optimizer = torch.optim.SGD(sharing.parameters(), 1e-3)
        sharing.attach(optimizer)
        for _ in range(2):
            for part in torch.arange(20).view(2, 2, 5):
                model(part).square().sum().backward()
                if after_each:
                    sharing.gather_gradients()
            optimizer.step()
            optimizer.zero_grad()
        found.append(model.state_dict())
    assert all(torch.allclose(t, found[1][name], atol=1e-6) for name, t in found[0].items())


def begun_training(model, **options):
    sharing = WeightSharing(model, bits=2, **options)
    optimizer = torch.optim.SGD(sharing.parameters(), 1e-2)
    sharing.attach(optimizer)
    loss_of(model).backward()
    optimizer.step()
    return sharing, optimizer


def test_centroids_that_change_between_steps_are_written(tagger):
    sharing, _ = begun_training(tagger)
    with torch.no_grad():
        sharing.tensors["head.weight"].centroids.mul_(2.0)
    expected = 2 * tagger.head.weight.detach()
    sharing.detach()
    assert torch.allclose(tagger.head.weight, expected, rtol=1e-2)


def test_weights_that_change_between_steps_are_shared_again(tagger):
    sharing, _ = begun_training(tagger)
    before = tagger.head.weight.detach().clone()
    with torch.no_grad():
        tagger.head.weight.add_(1 + 0.1 * torch.randn_like(before))
    sharing.detach()
    assert len(tagger.head.weight.unique()) <= 4
    assert (tagger.head.weight - before - 1).abs().max() < 0.2


@pytest.mark.parametrize("reassign", [0, 5])
def test_weights_of_an_earlier_epoch_stay(tagger, reassign):
    sharing, optimizer = begun_training(tagger, reassign=reassign)
    best = copy.deepcopy(tagger.state_dict())
    for _ in range(4):
        loss_of(tagger).backward()
        optimizer.step()
    assert not torch.equal(tagger.head.weight, best["head.weight"])
    tagger.load_state_dict(best)
    sharing.detach()
    for name in sharing.tensors:
        assert torch.equal(tagger.get_parameter(name), best[name]), name


def test_a_pruner_that_is_not_finished(tagger):
    pruner = Pruner(tagger, density=0.5, steps=10)
    optimizer = torch.optim.SGD(tagger.parameters(), 1e-2)
    pruner.attach(optimizer)
    with pytest.warns(UserWarning, match="a Pruner is attached, and .* 0 of 10 steps, 100%"):
        WeightSharing(tagger, bits=3)


def test_centroids_that_are_in_no_optimizer_are_named(tagger):
    sharing = WeightSharing(tagger, bits=2)
    some = [p for p in sharing.parameters() if p is not sharing.tensors["head.weight"].centroids]
    optimizer = torch.optim.SGD(some, 1e-2)
    sharing.attach(optimizer)
    loss_of(tagger).backward()
    optimizer.step()
    with pytest.warns(UserWarning, match=r"values of head\.weight were not trained"):
        sharing.detach()


def test_an_optimizer_that_takes_no_dense_gradients_is_refused():
    sharing = WeightSharing(nn.Embedding(50, 8, sparse=True), bits=2)
    with pytest.raises(ValueError, match="use Adam, not SparseAdam"):
        sharing.attach(torch.optim.SparseAdam(list(sharing.parameters())))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 99}, "from 1 to 16, not 99"),
        ({"bits": -1}, "not -1"),
        ({"bits": 2.5}, "not 2.5"),
        ({"bits": {"*": "4"}}, "not '4'"),
        ({"bias_bits": "auto"}, "not 'auto'"),
        ({"init": "foo"}, "init must be one of linear, density, random, not 'foo'"),
        ({"bits": "auto", "noise": "auto"}, "noise must be a positive number, not 'auto'"),
        ({"reassign": -1}, "reassign must be a whole number of at least 0"),
        ({"parts": 1.5}, "parts must be a whole number of at least 1"),
        ({"bits": 4, "calibration": [torch.ones(2)]}, "calibration has no effect with bits=4"),
        ({"bits": "auto", "calibration": 5}, "calibration takes a tensor, .*, not 5"),
        ({"bits": "auto", "calibration": []}, "calibration is empty"),
    ],
)
def test_bad_arguments(tagger, options, message):
    before = copy.deepcopy(tagger.state_dict())
    with pytest.raises(ValueError, match=message):
        WeightSharing(tagger, **options)
    assert all(torch.equal(tensor, before[n]) for n, tensor in tagger.state_dict().items())


def test_a_direction_of_weight_normalisation_is_never_zero():
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(32, 24)))
    with torch.no_grad():
        model[0].weight_v[3:9] *= 0.02  # its length is kept elsewhere
    states = [copy.deepcopy(model.state_dict()) for _ in range(3)]
    inputs = torch.eye(32)
    before = model(inputs)
    for calibration in (None, inputs):
        model.load_state_dict(states[0])
        WeightSharing(model, bits="auto", final=True, calibration=calibration)
        assert nn.functional.cosine_similarity(model(inputs), before, dim=0).min() > 0.97
        shared = SharedState(states[1], bits="auto")["0.weight_v"]
        torch.testing.assert_close(model[0].weight_v.detach(), shared)
    assert SharedState(states[2], bits="auto", noise=60)["0.weight_v"].any(1).all()


# --- values that nothing trains -----------------------------------------------------------------


def test_final_values_are_those_of_the_state_dict_and_cannot_be_trained():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 30))
    state = dict(SharedState(model.state_dict(), bits="auto"))
    sharing = WeightSharing(model, bits="auto", final=True)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="final; to train them, leave out final=True"):
        sharing.attach(torch.optim.SGD(sharing.parameters(), 0.1))


@pytest.mark.parametrize("calibrated", [False, True])
def test_final_values_take_fewer_bytes(calibrated):
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 16, 64))
    images = torch.randn(100, 3, 6, 6) if calibrated else None
    bits = {}
    for final in (False, True):
        model = copy.deepcopy(dense)
        WeightSharing(model, bits="auto", noise=0.5, final=final, calibration=images)
        error = (model[3].weight - dense[3].weight).double().square().mean()
        length = write_tensor(model[3].weight).length / model[3].weight.numel()
        bits[final] = length + 0.5 * float(torch.log2(error))
    assert bits[True] < bits[False] - 0.08


def test_weights_divided_by_their_norm_have_no_trellis():
    torch.manual_seed(0)
    plain = nn.Linear(40, 60)
    model = nn.Sequential(plain, nn.utils.parametrizations.weight_norm(nn.Linear(60, 60)))
    normed = "1.parametrizations.weight.original1"
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    shared = WeightSharing(model, bits="auto", final=True)
    for name, each in (("0.weight", ()), (normed, (1,))):
        steps = shared._work.steps[name]
        with_trellis, without = (
            share_tensor(before[name], steps, "linear", trellis) for trellis in (True, False)
        )
        found = model.state_dict()[name]
        assert torch.equal(found, with_trellis) == (not each)
        assert torch.equal(found, share_alone(before[name], steps, "linear", True, each))
        assert not torch.equal(with_trellis, without)


def test_what_cannot_be_written_is_refused_in_a_line():
    lazy = nn.Sequential(nn.Linear(4, 4), nn.LazyBatchNorm1d(affine=False))
    with pytest.raises(UserError, match=r"1\.running_mean is lazy and has no shape yet; run the"):
        WeightSharing(lazy, bits=2)
    expanded = nn.Linear(3, 3)
    expanded.weight = nn.Parameter(torch.randn(1, 3).expand(3, 3))
    for make in (partial(WeightSharing, bits=2), partial(Pruner, density=0.5)):
        with pytest.raises(
            UserError, match="'weight': an expanded tensor, elements of which share"
        ):
            make(expanded)


@pytest.mark.parametrize("bits", [3, "auto"])
def test_under_deterministic_algorithms(bits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    torch.use_deterministic_algorithms(True)
    try:
        own = WeightSharing(model, bits=bits)
        own.load_state_dict(own.state_dict())
        state = SharedState(model.state_dict(), bits=4)["0.weight"]
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(model[0].weight.unique()) < 256
    assert len(state.unique()) <= 17


def test_two_parameters_of_one_memory_are_not_trained_apart():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.b.weight = nn.Parameter(self.a.weight)

        def forward(self, x):
            return self.a(x)

    own = WeightSharing(Two(), bits=3)
    with pytest.raises(UserError, match=r"a\.weight and b\.weight are two parameters of the same"):
        own.attach(torch.optim.SGD(own.parameters(), 0.1))


def test_a_shallow_copy_is_attached_to_nothing():
    torch.manual_seed(0)
    model, x = nn.Linear(8, 3), torch.randn(16, 8)
    pruner = Pruner(model, density=0.1, steps=10)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner.attach(optimizer)
    copy.copy(pruner)
    for _ in range(12):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    assert pruner.steps_done == 12
    assert model.weight.count_nonzero() <= 3


@pytest.mark.parametrize("kind", [Pruner, WeightSharing])
def test_what_was_made_in_inference_mode_is_refused(kind):
    with torch.inference_mode():
        model = nn.Linear(8, 3)
    with pytest.raises(UserError, match="made in torch"):
        kind(model, **({"density": 0.5} if kind is Pruner else {"bits": 3}))


def test_another_default_device():
    model = nn.Linear(8, 3)
    torch.set_default_device("meta")
    try:
        own = WeightSharing(model, bits="auto")
        own.load_state_dict(own.state_dict())
    finally:
        torch.set_default_device(None)
    assert model.weight.isfinite().all()


def test_values_have_the_type_that_a_model_was_given_since():
    torch.manual_seed(0)
    model = nn.Linear(8, 8).bfloat16()
    sharing = WeightSharing(model, bits=2)
    model.float()
    optimizer = torch.optim.SGD(sharing.parameters(), 0.1)
    sharing.attach(optimizer)
    model(torch.randn(4, 8)).square().sum().backward()
    optimizer.step()
    values = model.weight.detach().unique()
    assert len(values) == 4
    assert not torch.equal(values, values.bfloat16().float())
