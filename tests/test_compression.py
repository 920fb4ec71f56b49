"""net.compress: budgets to the byte, promises that hold on other inputs, and what is refused."""

import copy
import threading
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import net
from net import budget, choose, compression, encoding, rounding
from net.errors import UserError
from net.report import contents


@pytest.fixture(scope="module")
def digits():
    """A small network that has learnt the digits, images [N, 1, 8, 8] that it knows, and others."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(data.target)
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(120):
        batch = slice(100 * step % 1200, 100 * step % 1200 + 100)
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    return model.eval(), images[:1200], images[1200:], labels[1200:]


def decoded(model, path):
    found = copy.deepcopy(model)
    found.load_state_dict(net.encoding.load(path)[0])
    return found.eval()


@torch.no_grad()
def moved(model, path, images):
    return choose.divergence(decoded(model, path)(images), model(images))


# Budgets


@pytest.mark.parametrize("most", [6_000, 9_000, 16_000])
def test_a_budget_is_filled_and_kept(digits, tmp_path, most):
    model = digits[0]
    result = net.compress(model, tmp_path / "model.dc", max_bytes=most)
    assert result.bytes == (tmp_path / "model.dc").stat().st_size
    assert 0.98 * most <= result.bytes <= most
    assert result.noise
    assert not result.notes


def test_a_larger_budget_moves_the_outputs_less(digits, tmp_path):
    model, _, images, _ = digits
    divergences = []
    for most in (5_000, 9_000):
        net.compress(model, tmp_path / "model.dc", max_bytes=most)
        divergences.append(moved(model, tmp_path / "model.dc", images))
    assert divergences[0] > 2 * divergences[1] > 0


def test_what_fits_without_loss_stays_as_it_is(digits, tmp_path):
    model = digits[0]
    result = net.compress(model, tmp_path / "model.dc", max_bytes=90_000)
    assert result.noise is None
    assert "without loss" in result.notes[0]
    state = net.encoding.load(tmp_path / "model.dc")[0]
    assert all(torch.equal(state[name], each) for name, each in model.state_dict().items())


def test_an_impossible_budget_says_what_is_possible_and_leaves_what_is_there(digits, tmp_path):
    target = tmp_path / "model.dc"
    net.compress(digits[0], target, noise=0.4)
    before = target.read_bytes()
    with pytest.raises(UserError, match="500 bytes cannot be had: the smallest is ") as error:
        net.compress(digits[0], target, max_bytes=500)
    smallest = int(str(error.value).split("smallest is ")[1].split(", at")[0].replace(",", ""))
    assert target.read_bytes() == before
    assert net.compress(digits[0], target, max_bytes=smallest + 20).bytes <= smallest + 20


def test_a_budget_between_the_finest_noise_and_no_loss_says_so(digits, tmp_path):
    finest = net.compress(digits[0], tmp_path / "a.dc", noise=budget.NOISES[0]).bytes
    lossless = net.compress(digits[0], tmp_path / "a.dc", lossless=True).bytes
    most = (3 * finest + lossless) // 4
    assert finest < 0.98 * most < lossless
    result = net.compress(digits[0], tmp_path / "a.dc", max_bytes=most)
    assert finest <= result.bytes <= most
    assert "the least that fits, or that is tried" in result.notes[0]


# Outputs


def test_the_promise_holds_on_inputs_that_did_not_choose(digits, tmp_path):
    model, known, images, _ = digits
    result = net.compress(model, tmp_path / "model.dc", inputs=known[:256])
    assert result.moved.divergence <= compression.DIVERGENCE
    assert 1 - result.moved.cosine <= compression.TURNED
    assert moved(model, tmp_path / "model.dc", images) <= 1.5 * compression.DIVERGENCE
    assert result.ratio > 6
    assert "inputs of your own" in str(result)


def test_a_divergence_is_kept_and_used(digits, tmp_path):
    model, images = digits[0], digits[2]  # of those that it knows by heart it is surer
    given, others = images[:400], images[400:]
    result = net.compress(model, tmp_path / "model.dc", inputs=given, max_divergence=0.02)
    assert 0.01 < result.moved.divergence <= 0.02
    assert moved(model, tmp_path / "model.dc", others) <= 0.04  # 200 images judge


def test_a_measure_of_the_users_own(digits, tmp_path):
    model, _, images, labels = digits

    def error(model):
        with torch.no_grad():
            return 100 * (model(images).argmax(1) != labels).float().mean().item()

    result = net.compress(model, tmp_path / "a.dc", evaluate=error, tolerance=1.5)
    assert result.measured[0] == error(model)
    assert result.measured[1] == error(decoded(model, tmp_path / "a.dc"))
    assert abs(result.measured[1] - result.measured[0]) <= 1.5
    assert result.ratio > net.compress(model, tmp_path / "b.dc").ratio
    assert f"{result.measured[0]:.5g} -> {result.measured[1]:.5g}" in str(result)


def test_calibration_takes_fewer_bytes_for_the_same_outputs(digits, tmp_path):
    model, known, images, _ = digits
    net.compress(model, tmp_path / "a.dc", max_bytes=6_000)
    net.compress(model, tmp_path / "b.dc", max_bytes=6_000, inputs=known[:512])
    a, b = (moved(model, tmp_path / name, images) for name in ("a.dc", "b.dc"))
    assert b < 0.8 * a


def test_a_model_that_nobody_can_run_gets_the_safe_noise_and_says_so(digits, tmp_path):
    torch.save(digits[0].state_dict(), tmp_path / "model.pth")
    result = net.compress(tmp_path / "model.pth", tmp_path / "model.dc")
    assert result.noise == choose.default_noise(digits[0].state_dict())
    assert result.moved is None
    assert "without its architecture" in result.unseen
    assert "outputs: not checked" in str(result)
    assert moved(digits[0], tmp_path / "model.dc", digits[2]) < compression.DIVERGENCE


def test_the_model_stays_as_it_is(digits, tmp_path):
    model, known, *_ = digits
    before = copy.deepcopy(model.state_dict())
    model.train()
    net.compress(model, tmp_path / "model.dc", inputs=known[:64], noise=1.0)
    assert model.training
    model.eval()
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())


def test_a_path_is_run_by_the_module_that_it_is_given(digits, tmp_path):
    model, known, *_ = digits
    state = {f"module.{name}": each for name, each in model.state_dict().items()}
    torch.save(state, tmp_path / "model.pth")
    result = net.compress(
        tmp_path / "model.pth",
        tmp_path / "model.dc",
        module=lambda _: copy.deepcopy(model),
        inputs=known[:256],
        noise=0.8,
    )
    found, _ = net.encoding.load(tmp_path / "model.dc")
    assert list(found) == list(state)
    assert not torch.equal(found["module.5.weight"], state["module.5.weight"])
    short = {name.removeprefix("module."): each for name, each in found.items()}
    model_after = copy.deepcopy(model)
    model_after.load_state_dict(short)
    assert set(result.clusterings) == {f"module.{n}.weight" for n in (0, 5, 7)}
    judged = known[:256:2]
    with torch.no_grad():
        expected = choose.divergence(model_after.eval()(judged), model(judged))
    assert result.moved.divergence == pytest.approx(expected, rel=1e-4)


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lossless": True, "noise": 0.2}, "lossless decides alone; give it without noise"),
        ({"lossless": True, "max_bytes": 100}, "lossless decides alone"),
        ({"noise": 0.2, "max_bytes": 100}, "noise decides alone; give it without max_bytes"),
        ({"max_bytes": 100, "max_divergence": 1.0}, "max_bytes decides alone"),
        ({"lossless": True, "inputs": torch.ones(2, 1, 8, 8)}, "inputs has no effect"),
        ({"lossless": True, "exclude": "5.*"}, "exclude has no effect"),
        ({"lossless": True, "module": nn.Module}, "module has no effect with lossless"),
        ({"tolerance": 1.0}, "tolerance is for evaluate"),
        ({"noise": 0.0}, "noise must be a positive number"),
        ({"max_bytes": -1}, "max_bytes must be a positive number"),
    ],
)
def test_options_without_effect_are_refused(digits, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        net.compress(digits[0], tmp_path / "model.dc", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{}, {"noise": 1.0}, {"max_bytes": 9_000}])
def test_a_file_in_which_nothing_is_shared_loses_nothing(tmp_path, options):
    torch.save({"ids": torch.arange(4096).view(64, 64)}, tmp_path / "model.pth")
    smallest = net.compress(tmp_path / "model.pth", tmp_path / "a.dc", lossless=True).bytes
    result = net.compress(tmp_path / "model.pth", tmp_path / "b.dc", **options)
    assert (result.noise, result.bytes) == (None, smallest)
    assert "nothing in it can be shared (no floating-point numbers)" in result.notes[0]
    with pytest.raises(UserError, match=f"would take {smallest:,} bytes"):
        net.compress(tmp_path / "model.pth", tmp_path / "c.dc", max_bytes=smallest - 1)
    assert not (tmp_path / "c.dc").exists()


def test_a_figure_that_is_none_cannot_be_kept(digits, tmp_path):
    with pytest.raises(UserError, match="evaluate gives nan"):
        net.compress(
            digits[0], tmp_path / "m.dc", evaluate=lambda model: float("nan"), tolerance=0.1
        )


def test_another_name_is_refused(digits, tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.dc"):
        net.compress(digits[0], tmp_path / "model.zip")


def test_a_divergence_needs_logits(digits, tmp_path):
    features = nn.Sequential(*digits[0][:4])
    with pytest.raises(UserError, match="no logits"):
        net.compress(features, tmp_path / "a.dc", inputs=torch.rand(8, 1, 8, 8), max_divergence=0.1)
    with pytest.raises(UserError, match="cannot be run with these inputs"):
        net.compress(features, tmp_path / "a.dc", inputs=torch.rand(8, 3, 8, 8))


# The noise where nobody looks


def kernels(*shapes, norm=True):
    state = {f"{i}.weight": torch.randn(shape) for i, shape in enumerate(shapes)}
    return state | (
        {"bn.running_var": torch.ones(4), "bn.running_mean": torch.ones(4)} if norm else {}
    )


def test_the_noise_follows_the_shapes():
    noise = choose.default_noise
    plain = noise(kernels((64, 32), norm=False))
    assert plain == choose.NOISE
    # 3 x 3 kernels between normalisations: correlations of .7 leave .51**(4 / 3) of the noise
    assert noise(kernels((64, 32, 3, 3))) == pytest.approx(plain * 0.51 ** (-2 / 3))
    assert noise(kernels((64, 32, 3, 3), norm=False)) == plain
    assert noise(kernels((64, 32, 1, 1))) == plain
    assert noise(kernels((64, 32, 64, 1))) == noise(kernels((64, 32, 3))) == plain  # of sounds
    depthwise = noise(kernels((64, 1, 3, 3), (128, 64, 1, 1), (128, 1, 3, 3)))
    assert depthwise < 0.8 * plain
    assert noise({"embedding.weight": torch.randn(50, 8)}) == pytest.approx(0.7 * plain)
    assert noise({"lstm.weight_hh_l0": torch.randn(32, 8)}) == pytest.approx(0.7 * plain)


def test_the_estimate_of_bytes_falls_with_the_noise():
    state = nn.Linear(40, 30).state_dict()
    estimate = budget.Estimate(state, rounding.steps(rounding.spreads_of(state, ["weight"]), 1.0))
    sizes = [estimate.bytes(noise) for noise in (0.1, 0.4, 1.6)]
    assert np.all(np.diff(sizes) < 0)
    assert estimate.bytes(budget.noise_of(estimate.bytes, 600)) == pytest.approx(600, rel=0.05)


def test_the_noise_of_each_tensor_is_recorded(tmp_path):
    state = {"a.weight": torch.randn(40, 30), "n": torch.tensor(3), "b.weight": torch.randn(9, 30)}
    torch.save(state, tmp_path / "m.pth")
    net.compress(tmp_path / "m.pth", tmp_path / "m.dc", noise=0.5)
    measured = net.report(state, tmp_path / "m.dc").figures["tensors"]
    recorded = contents.figures(tmp_path / "m.dc")["tensors"]
    noises = [row["noise_percent"] for row in recorded]
    assert noises[1] is None
    assert noises[::2] == pytest.approx([row["noise_percent"] for row in measured[::2]], rel=0.05)


def test_a_state_dict_is_compressed_as_a_file_of_it_is(tmp_path):
    state = {"a.weight": torch.randn(40, 30), "a.bias": torch.randn(40)}
    result = net.compress(state, tmp_path / "m.dc")
    assert "state dict without its architecture" in result.unseen
    torch.save(state, tmp_path / "m.pth")
    assert net.compress(tmp_path / "m.pth", tmp_path / "n.dc").noise == result.noise
    same = net.encoding.load(tmp_path / "n.dc")[0]
    assert all(tensor.equal(same[n]) for n, tensor in net.encoding.load(result.path)[0].items())


class Tied(nn.Module):
    """Words in and out by one table."""

    def __init__(self, words=400):
        super().__init__()
        self.embedding, self.layer = nn.Embedding(words, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, words, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.layer(self.embedding(tokens)))

    @classmethod
    def of(cls, state):
        model = cls()
        model.load_state_dict(state)
        return model


@pytest.mark.parametrize("inputs", [None, torch.arange(400).view(20, 20)])
def test_tied_weights_of_a_file_are_one_tensor(tmp_path, inputs):
    torch.manual_seed(0)
    model, path = Tied(), tmp_path / "model.pth"
    torch.save(model.state_dict(), path)
    module = None if inputs is None else Tied.of
    of_file = net.compress(path, tmp_path / "a.dc", noise=0.3, inputs=inputs, module=module)
    of_model = net.compress(model, tmp_path / "b.dc", noise=0.3, inputs=inputs)
    beside = 200  # the layout of a file
    assert of_model.bytes <= of_file.bytes <= of_model.bytes + beside
    assert of_file.dense_bytes == of_model.dense_bytes == 4 * (400 * 32 + 32 * 32 + 32)
    net.load_into(Tied(), tmp_path / "a.dc")
    again = net.encoding.save(net.encoding.open(tmp_path / "a.dc"), tmp_path / "c.dc")
    assert again <= of_file.bytes


def test_a_torchscript_module_is_refused_in_a_line(tmp_path, digits):
    scripted = torch.jit.trace(digits[0].eval(), digits[1][:2])
    for give in (partial(net.compress, target=tmp_path / "a.dc"), net.WeightSharing):
        with pytest.raises(UserError, match="the model is a TorchScript module, which cannot be"):
            give(scripted)
    with pytest.raises(UserError, match="1 is a TorchScript module"):
        net.Pruner(nn.Sequential(nn.Flatten(), scripted), density=0.5)


def test_activations_that_a_module_keeps(tmp_path, digits):
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.kept = digits[0], {}

        def forward(self, images):
            self.kept["all"] = [images.sum(), self.inner(images)]
            return self.kept["all"][1]

    model = Keeping()
    model(digits[1][:4])
    assert net.compress(model, tmp_path / "a.dc", noise=0.5, inputs=digits[1][:64]).moved
    assert model.kept["all"][1].requires_grad


class Scorer(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(16, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        return 5 * self.c(self.b(self.a(x).relu()).relu())


def replaced_forward(model):
    forward = model.forward
    model.forward = lambda x: forward(x)


def replaced_layer(model):
    forward = model.b.forward
    model.b.forward = lambda x: forward(x)


def hooked(model):
    model.register_forward_hook(lambda module, args, output: output + 0 * model.c.weight.sum())


@pytest.mark.parametrize("change", [replaced_forward, replaced_layer, hooked])
def test_a_copy_that_computes_with_the_models_weights_shows_nothing(tmp_path, change):
    model, x = Scorer(), torch.randn(64, 16)
    change(model)
    with pytest.raises(UserError, match="computes with weights of the model itself"):
        net.compress(model, tmp_path / "a.dc", inputs=x)

    def evaluate(copy):
        return float((copy(x) - 1).square().mean())

    result = net.compress(model, tmp_path / "a.dc", evaluate=evaluate, tolerance=0.1)
    assert any(note.startswith("evaluate computes with weights") for note in result.notes)
    whole = net.compress(Scorer(), tmp_path / "a.dc", evaluate=evaluate, tolerance=0.1)
    assert not whole.notes


@pytest.mark.parametrize("pattern", ["*.a*", "module.a", "module.a.weight"])
def test_patterns_are_of_the_names_in_the_file(tmp_path, pattern):
    state = {f"module.{name}": each for name, each in Scorer().state_dict().items()}
    torch.save(state, tmp_path / "model.pth")

    def module(state):
        model = Scorer()
        model.load_state_dict({n.removeprefix("module."): each for n, each in state.items()})
        return model

    give = partial(net.compress, tmp_path / "model.pth", tmp_path / "model.dc", module=module)
    result = give(inputs=torch.randn(64, 16), noise=0.3, exclude=pattern)
    found = net.encoding.load(tmp_path / "model.dc")[0]
    assert torch.equal(found["module.a.weight"], state["module.a.weight"])
    assert result.plan["module.a.weight"].how == "exact"
    assert not torch.equal(found["module.b.weight"], state["module.b.weight"])
    give(inputs=torch.randn(64, 16), noise=0.3, include=pattern)
    found = net.encoding.load(tmp_path / "model.dc")[0]
    assert not torch.equal(found["module.a.weight"], state["module.a.weight"])
    assert torch.equal(found["module.b.weight"], state["module.b.weight"])


def test_weights_of_one_memory_stay_one(tmp_path):
    model = Scorer()
    model.a = nn.Linear(64, 64)
    model.b.weight.data = model.a.weight.data
    of_model = net.compress(model, tmp_path / "a.dc", inputs=torch.randn(64, 64), noise=0.3)
    found = net.encoding.load(tmp_path / "a.dc")[0]
    assert torch.equal(found["a.weight"], found["b.weight"])
    of_state = net.compress(model.state_dict(), tmp_path / "b.dc", noise=0.3)
    assert of_model.dense_bytes == of_state.dense_bytes
    assert abs(of_model.bytes - of_state.bytes) < 200


def test_a_single_figure_has_no_direction_to_judge_by(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(500, 8)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1)).eval()
    for inputs in ([x[:1], x[1:2]], x[:2]):
        net.compress(model, tmp_path / "m.dc", inputs=inputs)
        with torch.no_grad():
            before, after = model(x), decoded(model, tmp_path / "m.dc")(x)
        assert (after - before).norm() < 0.25 * before.norm()


def test_the_users_code_may_change_the_directory(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    model = nn.Linear(8, 3)
    torch.save(model.state_dict(), "m.pth")

    def made(state):
        monkeypatch.chdir(tmp_path / "elsewhere")
        found = nn.Linear(8, 3)
        found.load_state_dict(dict(state))
        return found

    def figure(model):
        monkeypatch.chdir(tmp_path / "elsewhere")
        return 1.0

    x = torch.randn(20, 8)
    net.compress("m.pth", "o.dc", module=made, inputs=x, evaluate=figure, tolerance=0.1)
    assert (tmp_path / "o.dc").exists()


def test_what_a_dict_holds_beside_tensors_is_named(tmp_path):
    state = {"a.weight": torch.randn(8, 8), "l._extra_state": None}
    with pytest.raises(UserError, match=r"'l\._extra_state' is no tensor but a NoneType"):
        net.compress(state, tmp_path / "m.dc")
    with pytest.raises(UserError, match="lazy"):
        net.compress(nn.LazyLinear(3).state_dict(), tmp_path / "m.dc")


def test_in_inference_mode(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)).eval()
    with torch.inference_mode():
        net.compress(model, tmp_path / "m.dc", inputs=torch.randn(64, 8))
        net.compress(model.state_dict(), tmp_path / "n.dc")
    assert decoded(model, tmp_path / "m.dc")[0].weight.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_default_type(tmp_path, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)).eval()
    options = {"inputs": torch.randn(64, 8), "noise": 0.3}
    expected = net.compress(model, tmp_path / "a.dc", **options)
    torch.set_default_dtype(dtype)
    try:
        found = net.compress(model, tmp_path / "b.dc", **options)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (tmp_path / "a.dc").read_bytes() == (tmp_path / "b.dc").read_bytes()
    assert found.moved == expected.moved


class Frozen(nn.Sequential):
    """One for a model and its average."""

    def __deepcopy__(self, memo):
        return self


class Quiet(nn.Linear):
    def train(self, mode=True):
        super().train(mode)  # and returns nothing, as others' do


class Stateful(nn.Linear):
    def get_extra_state(self):
        return {"a": 1}

    def set_extra_state(self, state):
        assert state == {"a": 1}


class Holder(nn.Linear):
    """Has what no deep copy takes."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.lock = threading.Lock()


class Parts(nn.Module):
    """`made` of x and of what two layers make of it."""

    def __init__(self, made):
        super().__init__()
        self.one, self.two, self.made = nn.Linear(64, 64), nn.Linear(64, 64), made

    def forward(self, x):
        return self.made(x, self.one(x), self.two(x))


def test_weights_that_a_copy_would_share_stay(tmp_path):
    model = nn.Sequential(Frozen(nn.Linear(64, 64)), nn.Linear(64, 8))
    before = copied_state(model)
    for options in ({"noise": 0.3}, {"max_bytes": 7000}, {}):
        net.compress(model, tmp_path / "a.dc", **options)
        assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    with pytest.raises(UserError, match=r"0\.0\.weight of the model itself"):
        net.compress(model, tmp_path / "b.dc", evaluate=lambda _: 1.0, tolerance=1.0)
    assert not (tmp_path / "b.dc").exists()


def copied_state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_train_may_return_nothing(tmp_path):
    inputs = torch.randn(64, 64)
    assert net.compress(Quiet(64, 8), tmp_path / "a.dc", inputs=inputs).moved
    assert net.compress(Quiet(64, 8), tmp_path / "a.dc", evaluate=lambda _: 1.0).measured == (1, 1)


def test_what_cannot_be_copied_is_compressed_without_a_look(tmp_path):
    assert net.compress(Holder(64, 64), tmp_path / "a.dc", noise=0.1).noise == 0.1
    with pytest.raises(UserError, match=r"cannot be copied .*lock"):
        net.compress(Holder(64, 64), tmp_path / "a.dc", inputs=torch.randn(8, 64))


def test_a_module_and_its_state_dict_come_to_the_same_file(tmp_path, digits):
    model = digits[0]
    net.compress(model, tmp_path / "a.dc", noise=0.3)
    net.compress(model.state_dict(), tmp_path / "b.dc", noise=0.3)
    one, other = (encoding.load(tmp_path / name)[0] for name in ("a.dc", "b.dc"))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_shared_and_frozen_module_is_kept_as_its_state_dict_is(tmp_path):
    model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 10))
    net.WeightSharing(model, bits=3).detach()
    model.requires_grad_(False)
    for options in ({}, {"noise": 0.1}, {"max_bytes": 30000}):
        result = net.compress(model, tmp_path / "a.dc", **options)
        assert result.noise is None
        loaded = encoding.load(tmp_path / "a.dc")[0]
        assert all(torch.equal(loaded[n], t) for n, t in model.state_dict().items())


@pytest.mark.parametrize("options", [{"noise": 0.1}, {"lossless": True}, {"max_bytes": 4000}])
def test_what_modules_keep_beside_tensors(tmp_path, options):
    result = net.compress(Stateful(64, 64), tmp_path / "a.dc", **options)
    assert any("_extra_state" in note for note in result.notes)
    assert net.load_into(Stateful(64, 64), tmp_path / "a.dc").missing_keys == []


class Packed(nn.Linear):
    """As torch.ao's: its weight is in no tensor of the state dict."""

    def get_extra_state(self):
        return torch.quantize_per_tensor(self.weight, 0.1, 0, torch.qint8), self.bias

    def set_extra_state(self, state):
        pass


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{"noise": 0.1}, {"lossless": True}])
def test_packed_weights_are_refused(tmp_path, options):
    with pytest.raises(UserError, match=r"'0\._extra_state': quantized"):
        net.compress(nn.Sequential(Packed(8, 8)), tmp_path / "a.dc", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [None, [1.0], {"a": 1}, torch.ones(3)])
def test_what_evaluate_gives_is_a_number(tmp_path, given):
    with pytest.raises(ValueError, match="evaluate must give a number, not a"):
        net.compress(nn.Linear(64, 64), tmp_path / "a.dc", evaluate=lambda _: given)


def test_of_several_outputs_the_one_that_moves_farthest_decides(tmp_path):
    torch.manual_seed(0)
    model, inputs = Parts(lambda x, a, b: (x * 3 + 0.1 * a, b)), torch.randn(64, 64)
    result = net.compress(model, tmp_path / "a.dc", inputs=inputs)
    again = copy.deepcopy(model)
    net.load_into(again, tmp_path / "a.dc")
    with torch.no_grad():
        cosines = [
            F.cosine_similarity(*pair).mean()
            for pair in zip(model(inputs), again(inputs), strict=True)
        ]
    assert min(cosines) > 0.99
    assert result.moved.cosine < 0.999


def test_logits_of_a_dict_judge_and_not_its_loss(tmp_path):
    torch.manual_seed(0)
    model = Parts(lambda x, a, b: {"loss": x.sum() + 1e-3 * a.sum(), "logits": a + b})
    result = net.compress(model, tmp_path / "a.dc", inputs=torch.randn(64, 64))
    assert result.moved.divergence is not None
    assert result.noise < 1


def test_of_complex_outputs_both_parts_count(tmp_path):
    torch.manual_seed(0)
    model = Parts(lambda x, a, b: torch.complex(x + 1e-3 * a, b))
    result = net.compress(model, tmp_path / "a.dc", inputs=torch.randn(64, 64))
    assert result.moved.divergence is None
    assert result.noise < 2


def test_numbers_are_those_of_numpy_too(tmp_path):
    assert net.compress(nn.Linear(64, 64), tmp_path / "a.dc", noise=np.float32(0.2)).noise
    with pytest.raises(ValueError, match="max_bytes must be a positive number"):
        net.compress(nn.Linear(64, 64), tmp_path / "a.dc", max_bytes=True)


def test_tensors_that_a_model_has_not_are_told_of(tmp_path):
    model = nn.Sequential(nn.Linear(64, 64))
    torch.save({**model.state_dict(), "extra.weight": torch.randn(64, 64)}, tmp_path / "f.pth")

    def made(state):
        found = nn.Sequential(nn.Linear(64, 64))
        found.load_state_dict({name: state[name] for name in found.state_dict()})
        return found

    options = {"noise": 0.5, "module": made, "inputs": torch.randn(64, 64)}
    result = net.compress(tmp_path / "f.pth", tmp_path / "f.dc", **options)
    assert "extra.weight" in result.clusterings


@pytest.mark.parametrize("noise", [1e-4, 1e-3, 0.3])
def test_the_noise_is_what_was_asked_for_however_fine_with_inputs_too(tmp_path, noise):
    """Multiples of a fine step are not rounded to float16 afterwards, which has fewer."""
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(64, 64)), torch.randn(256, 64)
    state, sizes = model.state_dict(), []
    for given in (None, inputs):
        sizes.append(net.compress(model, tmp_path / "a.dc", noise=noise, inputs=given).bytes)
        weight, before = encoding.load(tmp_path / "a.dc")[0]["0.weight"], state["0.weight"]
        assert float((weight - before).norm() / before.norm()) < noise
    assert sizes[1] < 1.1 * sizes[0]
