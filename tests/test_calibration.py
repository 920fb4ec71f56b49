import copy
import threading
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint import checkpoint_wrapper

from net import WeightSharing, calibration
from net.calibration import calibrate
from net.errors import UserError
from net.parameters import compressible
from net.rounding import share_tensor, spread, steps


def steps_of(model, kinds, noise=1.0):
    state = model.state_dict()
    return steps({name: spread(state[name]) for name in kinds}, noise)


def alike(*shape):
    """Inputs that have much in common, as those of real layers have."""
    x = torch.randn(*shape).cumsum(-1)
    return (x / x.std()).relu() + 0.3


def output(model, batch):
    with torch.no_grad():
        found = model(batch)
    return found[0] if isinstance(found, tuple) else found


class Attention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.inner = nn.MultiheadAttention(16, 4, batch_first=True, **options)

    def forward(self, x):
        return self.inner(x, x.flip(1), x * 0.5, need_weights=False)[0]


LAYERS = {
    "linear": (lambda: nn.Linear(24, 16), (8, 40, 24)),
    "wide": (lambda: nn.Linear(300, 16), (8, 80, 300)),
    "conv": (lambda: nn.Conv2d(6, 8, 3, padding=1), (8, 6, 9, 9)),
    "grouped": (lambda: nn.Conv2d(8, 12, 3, groups=4, bias=False), (8, 8, 9, 9)),
    "depthwise": (lambda: nn.Conv2d(8, 8, 5, groups=8, padding="same"), (8, 8, 9, 9)),
    "strided": (lambda: nn.Conv2d(6, 8, 3, stride=2, dilation=2), (8, 6, 11, 12)),
    "reflected": (
        lambda: nn.Conv2d(6, 8, 4, padding="same", padding_mode="reflect"),
        (8, 6, 9, 9),
    ),
    "one-dimensional": (lambda: nn.Conv1d(6, 8, 5, stride=2), (8, 6, 60)),
    "three-dimensional": (lambda: nn.Conv3d(3, 6, 2, padding=1), (8, 3, 5, 5, 5)),
    "attention": (Attention, (8, 20, 16)),
    "attention of other widths": (lambda: Attention(kdim=16, vdim=16), (8, 20, 16)),
    "lstm": (lambda: nn.LSTM(12, 10, 2, batch_first=True), (8, 20, 12)),
    "gru": (lambda: nn.GRU(12, 10, batch_first=True, bidirectional=True), (8, 20, 12)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_outputs_suffer_less_than_without_data(name):
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    model = build().eval()
    batches = [alike(*shape) for _ in range(4)]
    kinds = compressible(model)
    sizes = steps_of(model, kinds)
    shared, reasons = calibrate(model, batches, kinds, sizes)
    assert reasons == {}
    assert list(shared) == list(kinds)
    errors = []
    for weights in (shared, {k: share_tensor(model.state_dict()[k], sizes[k]) for k in kinds}):
        other = copy.deepcopy(model)
        other.load_state_dict(weights, strict=False)
        errors.append(
            sum(float((output(other, b) - output(model, b)).square().sum()) for b in batches)
        )
    assert errors[0] < 0.9 * errors[1]
    for weight in kinds:
        assert len(shared[weight].unique()) < 30


def test_the_model_and_the_inputs_stay_as_they_were():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten())
    model.train()
    before = copy.deepcopy(model.state_dict())
    batch = alike(4, 3, 6, 6)
    kept = batch.clone()
    kinds = compressible(model)
    calibrate(model, [batch], kinds, steps_of(model, kinds))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(batch, kept)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.backends.mha.get_fastpath_enabled()


def test_switches_of_all_threads_are_as_before():
    """A thread that is in it when this one leaves it leaves it last."""
    fastpath = torch.backends.mha
    inside, left = threading.Event(), threading.Event()

    class Waiting(nn.Linear):
        def __init__(self, wait):
            super().__init__(4, 4)
            self.wait = wait

        def __deepcopy__(self, memo):
            found = Waiting(self.wait)
            found.load_state_dict(self.state_dict())
            return found

        def forward(self, x):
            self.wait()
            return super().forward(x)

    def here():
        if not other.ident:
            assert not fastpath.get_fastpath_enabled()
            other.start()
            inside.wait(0.2)  # it may have to wait for this one

    def there():
        inside.set()
        left.wait()

    def calibrated(wait):
        model = Waiting(wait)
        calibrate(model, alike(8, 4), {"weight": "linear"}, steps_of(model, ["weight"]))

    other = threading.Thread(target=calibrated, args=(there,))
    assert fastpath.get_fastpath_enabled()
    try:
        calibrated(here)
        left.set()
        other.join()
        assert fastpath.get_fastpath_enabled()
    finally:
        left.set()
        fastpath.set_fastpath_enabled(True)


def test_the_same_values_every_time_whatever_the_global_seed(monkeypatch):
    monkeypatch.setattr(calibration, "VECTORS", 200)
    model = nn.Conv2d(3, 4, 3)
    kinds = compressible(model)
    found = []
    batch = alike(8, 3, 12, 12)
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(calibrate(model, [batch], kinds, steps_of(model, kinds))[0]["weight"])
    assert torch.equal(*found)


@pytest.mark.parametrize("build", [lambda: nn.Linear(30, 20), lambda: nn.Conv2d(4, 20, 3)])
def test_zeros_stay_zeros_of_every_type(build):
    model = build().to(torch.bfloat16)
    with torch.no_grad():
        model.weight[model.weight.abs() < 0.08] = 0
    zero = model.weight == 0
    assert 0 < zero.sum() < zero.numel()
    batch = alike(9, *((30,) if isinstance(model, nn.Linear) else (4, 8, 8))).bfloat16()
    kinds = compressible(model)
    shared, _ = calibrate(model, [batch], kinds, steps_of(model, kinds, 0.3))
    assert bool((shared["weight"][zero] == 0).all())
    assert shared["weight"].dtype == torch.bfloat16
    assert bool((shared["weight"] != 0).any())


def test_small_gates_of_recurrent_weights_survive():
    """A cell's candidate has far smaller weights than the gates that saturate."""
    torch.manual_seed(0)
    model = nn.LSTM(12, 10, batch_first=True)
    with torch.no_grad():
        for weight in (model.weight_ih_l0, model.weight_hh_l0):
            weight[20:30] /= 30
    kinds = compressible(model)
    shared, reasons = calibrate(model, [alike(8, 20, 12)], kinds, steps_of(model, kinds, 0.4))
    assert not reasons
    for name, tensor in shared.items():
        before = model.get_parameter(name).detach()[20:30]
        assert float((tensor[20:30] - before).norm() / before.norm()) < 0.4


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Embedding(12, 8)
        self.up = nn.ConvTranspose1d(8, 8, 3)
        self.large = nn.Linear(8, 6)
        self.unused = nn.Linear(8, 6)
        self.dead = nn.Linear(8, 6)

    def forward(self, tokens, scale=1.0):
        x = self.up(self.token(tokens).mT).mT * scale
        return self.large(x) + self.dead(torch.zeros_like(x))


@pytest.mark.parametrize("form", [lambda x: (x, 2.0), lambda x: [x], lambda x: {"tokens": x}])
def test_what_is_shared_without_data_is_named(form, monkeypatch):
    monkeypatch.setattr(calibration, "MAX_INPUTS", 8)
    torch.manual_seed(0)
    model = Odd()
    kinds = compressible(model)
    sizes = steps_of(model, kinds)
    shared, reasons = calibrate(model, iter([form(torch.arange(12)[None])]), kinds, sizes)
    assert reasons == {
        "up.weight": "a transposed convolution",
        "unused.weight": "no input reached it",
        "dead.weight": "its inputs are zero or not finite",
    }
    for name in (*reasons, "token.weight"):  # of whose tokens each is met as often
        assert torch.equal(shared[name], share_tensor(model.state_dict()[name], sizes[name]))
    monkeypatch.setattr(calibration, "MAX_INPUTS", 7)
    _, reasons = calibrate(model, [form(torch.arange(12)[None])], kinds, sizes)
    assert reasons["large.weight"] == "too many inputs"


def test_rows_of_an_embedding_are_as_fine_as_they_are_met_often():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(40, 32), nn.Linear(32, 4))
    tokens = torch.cat([torch.full((150,), 3), torch.arange(10).repeat(4), torch.arange(20)])
    kinds = compressible(model)
    shared, reasons = calibrate(model, tokens[:, None], kinds, {"0.weight": 0.2, "1.weight": 0.1})
    assert reasons == {}
    before, after = model[0].weight.detach(), shared["0.weight"]
    # Met 155 times, 5, once, and never, with one time more for each: 6.2 on average.
    for rows, step in ((3, 0.05), (slice(4, 10), 0.2), (slice(10, 20), 0.2), (slice(20, 40), 0.2)):
        found = after[rows]
        assert torch.allclose(found, step * (found / step).round(), atol=step / 20)
        assert step / 5 < (found - before[rows]).square().mean().sqrt() < step / 2.5


def test_an_embedding_that_is_the_last_layer_too_has_one_step():
    torch.manual_seed(0)

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Embedding(40, 8)

        def forward(self, tokens):
            return self.token(tokens) @ self.token.weight.T

    model = Tied()
    kinds = compressible(model)
    shared, reasons = calibrate(model, torch.ones(9, 1).long(), kinds, {"token.weight": 0.2})
    assert reasons == {"token.weight": "an embedding"}
    assert torch.equal(shared["token.weight"], share_tensor(model.token.weight, 0.2))


def test_no_inputs_at_all():
    model = nn.Linear(4, 3)
    kinds = compressible(model)
    with pytest.raises(ValueError, match="calibration is empty; give a tensor, a dict"):
        calibrate(model, [], kinds, {"weight": 0.1})


def test_tied_weights_are_shared_once_for_all_they_do():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    model[2].weight = model[0].weight
    kinds = compressible(model)
    sizes = steps_of(model, kinds)
    batch = alike(300, 16)
    shared, reasons = calibrate(model, [batch], kinds, sizes)
    assert list(shared) == ["0.weight"]
    assert reasons == {}
    alone, _ = calibrate(nn.Sequential(model[0]), [batch], kinds, sizes)
    assert not torch.equal(shared["0.weight"], alone["0.weight"])


def test_a_weight_that_its_layer_uses_transposed():
    class Conv1D(nn.Module):  # as in Hugging Face's GPT-2
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(24, 10))
            self.bias = nn.Parameter(torch.zeros(10))

        def forward(self, x):
            return torch.addmm(self.bias, x.view(-1, 24), self.weight)

    torch.manual_seed(0)
    model, batch = Conv1D(), alike(500, 24)
    kinds = compressible(model)
    shared, reasons = calibrate(model, [batch], kinds, {"weight": 1.0})
    assert reasons == {}
    without = share_tensor(model.weight, 1.0)
    error, other = (
        ((each - model.weight).T @ batch.T).norm() for each in (shared["weight"], without)
    )
    assert error < 0.8 * other


def test_later_layers_see_the_inputs_that_earlier_shared_ones_give(monkeypatch):
    monkeypatch.setattr(calibration, "RECOVERED", 0.0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
    kinds = compressible(model)
    sizes = steps_of(model, kinds, 2.0)
    batch = alike(300, 16)
    shared, _ = calibrate(model, [batch], kinds, sizes)
    behind = copy.deepcopy(model)
    behind[0].weight.data.copy_(shared["0.weight"])
    with torch.no_grad():
        after = behind[:2](batch)
    last, _ = calibrate(model[2], [after], {"weight": "linear"}, {"weight": sizes["2.weight"]})
    assert torch.equal(shared["2.weight"], last["weight"])


def test_later_layers_make_up_for_errors_of_earlier_ones(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))
    kinds = compressible(model)
    sizes = steps_of(model, kinds, 2.0) | {"2.weight": 1e-3}  # all error is the first layer's
    batch, held_out = alike(2, 2000, 16)
    errors = []
    for part in (0.0, 1.0):
        monkeypatch.setattr(calibration, "RECOVERED", part)
        found = copy.deepcopy(model)
        found.load_state_dict(calibrate(model, [batch], kinds, sizes)[0], strict=False)
        errors.append((output(found, held_out) - output(model, held_out)).norm())
    assert errors[1] < 0.9 * errors[0]


def test_what_inputs_have_in_common_in_strips(monkeypatch):
    monkeypatch.setattr(calibration, "STRIP", 3)
    x = torch.randn(2, 9, 8)
    assert torch.allclose(calibration._squared(x), x.mT @ x, atol=1e-5)


@pytest.mark.parametrize("rows", [300, 512])
def test_a_large_matrix_is_rounded_by_strips_of_rows(monkeypatch, rows):
    torch.manual_seed(0)
    model, x = nn.Linear(20, rows), torch.randn(200, 20) @ torch.randn(20, 20)
    with torch.no_grad():
        model.weight[:, 3] = 0
    given = {"weight": "linear"}, {"weight": spread(model.weight).deviation}, {"weight"}
    whole, _ = calibrate(model, x, *given)
    seen, target = [], calibration._Problem.target
    monkeypatch.setattr(calibration, "CHUNK", 128 * 20)
    monkeypatch.setattr(
        calibration._Problem, "target", lambda *args: seen.append(target(*args)) or seen[-1]
    )
    found, reasons = calibrate(model, x, *given)
    assert not reasons
    assert torch.equal(found["weight"], whole["weight"])
    assert [each.shape[1] for each in seen[1:]] == [128] * (rows // 128) + [44] * (rows == 300)


def test_the_drift_in_the_order_that_takes_less(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 12))
    kinds, batch = compressible(model), alike(300, 16)
    found = []
    for wide in (True, False):
        monkeypatch.setattr(calibration, "_is_wide", lambda *_, wide=wide: wide)
        found.append(calibrate(model, [batch], kinds, steps_of(model, kinds, 2.0))[0])
    for name, tensor in found[0].items():
        assert (tensor == found[1][name]).double().mean() > 0.98


def test_progress_by_layers_and_nothing_where_there_is_no_terminal(monkeypatch, capfd):
    monkeypatch.setattr(calibration, "PATIENCE", 0.0)
    monkeypatch.setattr(calibration, "STAGES", 2)
    bars = []

    class Bar(calibration.ProgressBar):
        def __init__(self, steps, *args, **options):
            bars.append(list(steps))
            super().__init__(steps, *args, **options)

    monkeypatch.setattr(calibration, "ProgressBar", Bar)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)))
    kinds = compressible(model)
    calibrate(model, alike(30, 4), kinds, steps_of(model, kinds))
    assert bars == [list(kinds)]
    assert capfd.readouterr() == ("", "")


# What inputs are given as


class TwoInputs(nn.Module):
    """The second is optional, as a mask is."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x, scale=None):
        hidden = self.one(x).relu()
        return self.two(hidden if scale is None else hidden * scale)


class Keywords(TwoInputs):
    def forward(self, *, x, scale=None):
        return super().forward(x, scale)


class OneDict(TwoInputs):
    def forward(self, batch):
        return super().forward(batch["x"])


def loader(*parts):
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*parts), 16)


def calibrated(model, given):
    kinds = compressible(model)
    shared, reasons = calibrate(model, given, kinds, steps_of(model, kinds))
    assert reasons == {}
    return shared


@pytest.mark.parametrize(
    ("make", "give"),
    [
        (TwoInputs, lambda x, _: list(x.split(16))),
        (TwoInputs, lambda x, _: x.split(16)),
        (TwoInputs, lambda x, y: loader(x, y)),
        (TwoInputs, lambda x, _: loader(x)),
        (TwoInputs, lambda x, y: list(zip(x.split(16), y.split(16), y.split(16), strict=True))),
        (TwoInputs, lambda x, y: [({"x": part}, y) for part in x.split(16)]),
        (TwoInputs, lambda x, y: [((part,), y) for part in x.split(16)]),
        (TwoInputs, lambda x, y: [{"x": part, "labels": y} for part in x.split(16)]),
        (TwoInputs, lambda x, _: ({"x": part} for part in x.split(16))),
        (Keywords, lambda x, _: [{"x": part} for part in x.split(16)]),
        (OneDict, lambda x, y: [{"x": part, "y": y} for part in x.split(16)]),
    ],
)
def test_batches_are_taken_for_what_they_are(make, give):
    torch.manual_seed(0)
    model = make()
    x, labels = alike(64, 6), torch.arange(64) % 3
    plain = TwoInputs()
    plain.load_state_dict(model.state_dict())
    expected = calibrated(plain, list(x.split(16)))
    found = calibrated(model, give(x, labels))
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_one_tensor_and_one_dict_are_one_batch():
    torch.manual_seed(0)
    model, x = TwoInputs(), alike(64, 6)
    expected = calibrated(model, [x])
    for given in (x, {"x": x}):
        found = calibrated(model, given)
        assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_a_tuple_is_the_arguments_and_that_of_a_loader_what_is_required():
    torch.manual_seed(0)
    model, x, scale = TwoInputs(), alike(64, 6), alike(64, 5)
    alone, both = calibrated(model, [x]), calibrated(model, [{"x": x, "scale": scale}])
    assert not torch.equal(alone["two.weight"], both["two.weight"])
    assert torch.equal(calibrated(model, [(x, scale)])["two.weight"], both["two.weight"])
    of_a_loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, scale), 64)
    assert torch.equal(calibrated(model, of_a_loader)["two.weight"], alone["two.weight"])


def test_inputs_that_the_model_does_not_take():
    model = TwoInputs()
    kinds = compressible(model)
    message = r"cannot be run with these inputs, float32 \[3, 7\] \(RuntimeError: .*give a"
    with pytest.raises(ValueError, match=message):
        calibrate(model, torch.ones(3, 7), kinds, steps_of(model, kinds))
    for given in (5, "inputs", True):
        with pytest.raises(ValueError, match="calibration takes a tensor, a dict"):
            calibrate(model, given, kinds, steps_of(model, kinds))


def test_weights_that_a_layer_has_computed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 5)), nn.Linear(5, 4))
    x = alike(64, 6)
    model(x)  # leaves a weight that is no leaf, which deepcopy refuses
    kinds = compressible(model)
    shared, reasons = calibrate(model, x, kinds, steps_of(model, kinds))
    assert shared.keys() == {"0.weight_v", "1.weight"}
    assert reasons == {"0.weight_v": "no input reached it"}


# Where data, chance or what came before decides what is computed


def error_of(make, x, calibrated, noise=0.4):
    """Relative, of the outputs; of a state that goes on, from the start."""
    model = make()
    with torch.no_grad():
        torch.manual_seed(7)
        before = copy.deepcopy(model).eval()(x)
        WeightSharing(model, bits="auto", noise=noise, calibration=[x] if calibrated else None)
        torch.manual_seed(7)
        after = model.eval()(x)
    return float((after - before).norm() / before.norm()), model


class Chosen(nn.Module):
    """Of 64 places the 16 of the highest scores."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.score, self.b = nn.Linear(32, 64), nn.Linear(64, 1), nn.Linear(64, 64)

    def forward(self, x):
        h = self.a(x).relu()
        k = self.score(h)[..., 0].topk(16, 1).indices
        return self.b(h.gather(1, k[..., None].expand(-1, -1, 64))).relu().mean(1)


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(32, 64), nn.Linear(64, 64)

    def forward(self, x):
        return self.b(nn.functional.dropout(self.a(x).relu(), 0.3, training=True))


class GoingOn(nn.Module):
    """Adds what it has met before."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(32, 64), nn.Linear(64, 64)
        self.register_buffer("last", torch.zeros(1, 1, 64))

    def forward(self, x):
        h = self.a(x).relu()
        y = self.b(h + self.last)
        self.last = 3 * h.mean((0, 1), keepdim=True) + torch.rand(64)
        return y


@pytest.mark.parametrize("make", [Chosen, Dropping, GoingOn])
def test_weights_do_not_shrink_where_inputs_are_no_pairs(make):
    torch.manual_seed(1)
    x = torch.randn(64, 64, 32)
    calibrated, model = error_of(make, x, True)
    assert calibrated < 1.2 * error_of(make, x, False)[0]
    assert 0.9 < float(model.b.weight.norm() / make().b.weight.norm()) < 1.1


class Experts(nn.Module):
    """Each input goes to the one of the highest score."""

    def __init__(self, widths):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.gate = nn.Linear(32, 64), nn.Linear(64, len(widths))
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(64, n), nn.ReLU(), nn.Linear(n, 64)) for n in widths
        )

    def forward(self, x):
        h = self.a(x).relu()
        which, out = self.gate(h).argmax(1), torch.zeros_like(h)
        for i, expert in enumerate(self.experts):
            if (which == i).any():
                out[which == i] = expert(h[which == i])
        return out


@pytest.mark.parametrize("widths", [range(32, 128, 8), [48] * 8])
def test_each_expert_gets_its_own_inputs(monkeypatch, widths):
    model, given = Experts(widths), []
    real = calibration._inputs

    def inputs(passage, names, number, batch, count, total):
        found = real(passage, names, number, batch, count, total)
        shapes = passage.parameters(names)
        given.extend(x.shape[2] == use.matrices(shapes[use.name]).shape[2] for use, x in found)
        return found

    monkeypatch.setattr(calibration, "_inputs", inputs)
    torch.manual_seed(5)
    before = {name: each.norm() for name, each in model.named_parameters()}
    WeightSharing(model, bits="auto", noise=0.8, calibration=list(torch.randn(40, 24, 32)))
    assert given
    assert all(given)
    assert all(0.85 < float(p.norm() / before[n]) < 1.15 for n, p in model.named_parameters())


# Views of a weight


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(
            torch.randn(8, 8, 1, 1) * torch.logspace(-1, 0, 8)[:, None, None, None]
        )

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight.transpose(0, 1))


class Kernel(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 5))

    def forward(self, x):
        return nn.functional.conv2d(x[:, :1], self.weight[None, None])


@pytest.mark.parametrize("make", [Transposed, Kernel])
def test_a_convolution_with_a_view_is_left_to_sharing_without_data(make):
    model = make()
    expected = share_tensor(model.weight.detach(), steps_of(model, {"weight": "conv"})["weight"])
    shared, reasons = calibrate(
        model, [torch.randn(2, 8, 6, 6)], {"weight": "conv"}, steps_of(model, {"weight": "conv"})
    )
    assert reasons == {"weight": "a convolution with a view of it"}
    assert torch.equal(shared["weight"], expected)


class Cell(nn.Module):
    """A recurrent cell with weights [inputs, outputs]."""

    def __init__(self, n, h):
        super().__init__()
        torch.manual_seed(0)
        self.h = h
        self.weight_ih = nn.Parameter(torch.randn(n, h) * torch.logspace(-2, 0, n)[:, None])
        self.weight_hh = nn.Parameter(torch.randn(h, h) * 0.2)

    def forward(self, x):
        h = x.new_zeros(len(x), self.h)
        for t in range(x.shape[1]):
            h = (x[:, t] @ self.weight_ih + h @ self.weight_hh).tanh()
        return h


@pytest.mark.parametrize(("n", "h"), [(24, 64), (64, 64), (64, 24)])
def test_recurrent_weights_that_stand_on_their_side(n, h):
    torch.manual_seed(1)
    x = torch.randn(64, 5, n)
    error, model = error_of(lambda: Cell(n, h), x, True)
    assert error < 0.12  # with steps that stand across them .2
    rows = [len(row.unique()) for row in model.weight_ih]
    assert rows[0] < rows[-1]  # one step for all


def test_an_embedding_by_the_last_rows_of_a_parameter():
    class Later(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.weight = nn.Parameter(torch.randn(200, 16))

        def forward(self, x):
            return nn.functional.embedding(x, self.weight[100:])

    model = Later()
    x = torch.randint(0, 10, (400, 50))
    WeightSharing(model, bits="auto", noise=0.4, calibration=[x], include="weight")
    rare, often = (len(model.weight[rows].unique()) for rows in (slice(10), slice(100, 110)))
    assert often > rare


def test_inputs_that_torch_does_not_look_into():
    @dataclass
    class Batch:
        x: torch.Tensor

    class Changing(nn.Linear):
        def forward(self, batch):
            batch.x = super().forward(batch.x).relu()
            return batch.x

    torch.manual_seed(0)
    model, batches = Changing(16, 16), [Batch(torch.randn(20, 16)) for _ in range(8)]
    before = [batch.x.clone() for batch in batches]
    sharing = WeightSharing(model, bits="auto", calibration=batches)
    assert not sharing.without_data
    assert all(torch.equal(batch.x, x) for batch, x in zip(batches, before, strict=True))

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(8, 16)

        def forward(self, packed):
            assert isinstance(packed, nn.utils.rnn.PackedSequence)
            return self.lstm(packed)[1][0][-1]

    packed = [nn.utils.rnn.pack_sequence([torch.randn(n, 8) for n in (9, 7, 4)]) for _ in range(4)]
    assert not WeightSharing(Recurrent(), bits="auto", calibration=packed).without_data


def test_a_layer_in_a_checkpoint_wrapper():
    wrap = checkpoint_wrapper.checkpoint_wrapper
    model = nn.Sequential(wrap(nn.Linear(16, 32)), nn.ReLU(), nn.Linear(32, 10))
    sharing = WeightSharing(model, bits="auto", calibration=torch.randn(64, 16))
    assert (sharing.without_data, sharing.unmeasured) == ({}, "")


class Merges(nn.Linear):
    """As loralib's: what is beside the weights is added to them in evaluation."""

    merged = False

    def train(self, mode=True):
        if mode == self.merged:
            self.weight.data += -0.1 if mode else 0.1
            self.merged = not mode
        return super().train(mode)


def test_weights_that_are_others_in_evaluation_are_refused():
    model, x = nn.Sequential(Merges(6, 5), nn.ReLU(), Merges(5, 4)), torch.randn(20, 6)
    with pytest.raises(UserError, match=r"eval\(\) changes 0\.weight, as adapters do"):
        WeightSharing(model, bits="auto", calibration=x)
    model.eval()
    WeightSharing(model, bits="auto", calibration=x)
