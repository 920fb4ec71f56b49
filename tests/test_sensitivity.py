from typing import NamedTuple

import pytest
import torch
from torch import nn

import net
from net import sensitivity
from net.choose import divergence
from net.parameters import compressible
from net.rounding import Spread, steps
from net.samples import Samples
from net.sensitivity import traces


class Two(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


class Logits(NamedTuple):
    logits: torch.Tensor
    hidden: torch.Tensor


class Heads(nn.Module):
    """Two outputs, and a part that none of them needs."""

    def __init__(self, answer=Two):
        super().__init__()
        self.body, self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 4)
        self.unused = nn.Linear(6, 6)
        self.answer = answer

    def forward(self, x):
        hidden = self.body(x).relu()
        return self.answer(self.one(hidden), self.two(hidden))


class Decoder(nn.Module):
    """A transformer that is asked about every token that is not padding."""

    def __init__(self, sparse=False):
        super().__init__()
        self.token = nn.Embedding(11, 8, sparse=sparse)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 11)

    def forward(self, tokens, attention_mask):
        states = self.layer(self.token(tokens), src_key_padding_mask=attention_mask == 0)
        return Logits(self.head(states), states)


def of(model, given):
    return traces(model.eval(), Samples(model, given), compressible(model))


def padded():
    tokens = torch.randint(1, 11, (6, 5))
    return [{"tokens": tokens, "attention_mask": (torch.arange(5) < 3).expand(6, 5).long()}]


MODELS = {
    "linear": (lambda: nn.Linear(6, 4), lambda: torch.randn(9, 6)),
    "conv": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.Flatten()),
        lambda: torch.randn(9, 2, 4, 4),
    ),
    "lstm": (lambda: nn.LSTM(5, 4, 2), lambda: torch.randn(7, 3, 5)),
    "bidirectional gru": (
        lambda: nn.GRU(5, 4, bidirectional=True, batch_first=True),
        lambda: [(torch.randn(3, 7, 5), torch.zeros(2, 3, 4))],
    ),
    "attention": (
        lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        lambda: [(torch.randn(4, 5, 8),) * 3],
    ),
    "transformer": (Decoder, padded),
    "sparse gradients": (lambda: Decoder(sparse=True), padded),
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)),
        lambda: torch.randn(9, 6),
    ),
    "one output": (lambda: nn.Linear(6, 1), lambda: torch.randn(9, 6)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kind_of_model_is_measured(name, dtype):
    torch.manual_seed(0)
    build, give = MODELS[name]
    model, given = build().to(dtype).eval(), give()
    if dtype is torch.bfloat16 and isinstance(given, torch.Tensor):
        given = given.bfloat16()
    elif dtype is torch.bfloat16 and isinstance(given[0], tuple):
        given = [tuple(each.bfloat16() for each in given[0])]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found, reason = of(model, given)
    assert reason == ""
    assert found.keys() == compressible(model).keys()
    assert all(value > 0 for value in found.values())
    assert of(model, given) == (found, "")
    assert all(each.requires_grad and each.grad is None for each in model.parameters())
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())


def test_noise_moves_the_answers_as_far_as_the_trace_says(monkeypatch):
    monkeypatch.setattr(sensitivity, "DIRECTIONS", 64)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 5))
    with torch.no_grad():
        model[2].weight.mul_(4)
    x, size = torch.randn(120, 6), 0.01
    found, _ = of(model, x)
    with torch.no_grad():
        before = model(x)
        for name, parameter in model.named_parameters():
            if name not in found:
                continue
            kept, moved = parameter.clone(), []
            for _ in range(100):
                parameter.copy_(kept + size * torch.randn_like(kept))
                moved.append(divergence(model(x), before))
            parameter.copy_(kept)
            assert sum(moved) / 100 == pytest.approx(found[name] * size**2 / 2, rel=0.15)


def test_outputs_that_are_no_logits_by_their_relative_error(monkeypatch):
    monkeypatch.setattr(sensitivity, "DIRECTIONS", 200)
    torch.manual_seed(0)
    model = nn.Conv1d(3, 6, 1, bias=False)  # [N, 6, 8]
    x = torch.randn(60, 3, 8)
    found, _ = of(model, x)
    # Every weight meets the inputs of a channel: the outputs' gradients by the weights are these.
    power = x.square().sum((0, 2)).sum() * 6
    expected = power / model(x).square().sum()
    assert found["weight"] == pytest.approx(float(expected), rel=0.1)


def test_zeros_do_not_count():
    torch.manual_seed(0)
    model = nn.Linear(6, 3, bias=False)
    x = torch.randn(40, 6)
    x[:, 0] *= 100
    with torch.no_grad():
        model.weight /= 100
        whole = of(model, x)[0]["weight"]
        model.weight[:, 0] = 0
    assert of(model, x)[0]["weight"] < whole / 100


def test_an_output_of_its_own_for_what_is_no_part_of_the_first():
    torch.manual_seed(0)
    model = Heads()
    x = torch.randn(20, 6)
    found, reason = of(model, x)
    assert reason == ""
    assert found.keys() == {"body.weight", "one.weight", "two.weight"}
    with torch.no_grad():
        model.two.weight *= 3
    again, _ = of(model, x)
    assert again["body.weight"] == found["body.weight"]
    assert again["two.weight"] != found["two.weight"]


def no_gradients(x):
    with torch.no_grad():
        return nn.functional.linear(x, torch.ones(3, 6))


class Refuses(nn.Linear):
    def forward(self, x):
        with torch.inference_mode():
            return super().forward(x)


class InPlace(nn.Linear):
    def forward(self, x):
        self.weight.mul_(1.0)
        return super().forward(x)


@pytest.mark.parametrize(
    ("model", "reason"),
    [(Refuses(6, 3), "no gradient reaches the weights"), (InPlace(6, 3), "in-place operation")],
)
def test_without_gradients_there_is_a_reason_and_the_steps_stay(model, reason):
    x = torch.randn(20, 6)
    found, why = of(model, x)
    assert not found
    assert reason in why
    if isinstance(model, Refuses):
        expected = steps({"weight": Spread(18, 1.0)}, 0.3)["weight"]
        assert expected == pytest.approx(0.3)
        sharing = net.WeightSharing(model, "auto", calibration=x)
        assert reason in sharing.unmeasured


def test_few_inputs_at_a_time(monkeypatch):
    """A large batch is taken in parts; one whose tensors are not of one length as it is."""
    monkeypatch.setattr(sensitivity, "INPUTS", 40)
    seen = []

    class Model(nn.Linear):
        def forward(self, x, scale=None):
            seen.append(len(x))
            return super().forward(x) if scale is None else super().forward(x) * scale

    model = Model(6, 3)
    of(model, torch.randn(500, 6))
    assert seen == [16, 16, 8]
    seen.clear()
    of(model, [(torch.randn(50, 6), torch.ones(3))])
    assert seen == [50]
    seen.clear()
    of(model, list(torch.randn(800, 6).split(8)))
    assert seen == [1] * 50


def test_a_file_says_why_the_sensitivity_is_not_measured(tmp_path):
    x = torch.randn(40, 6)
    for model, said in ((nn.Linear(6, 3), False), (Refuses(6, 3), True)):
        notes = net.compress(model, tmp_path / "model.dc", inputs=x, noise=0.3).notes
        assert any("not by measured sensitivity" in note for note in notes) == said


def test_inputs_are_measured_once_for_all_noises(monkeypatch, tmp_path):
    calls = []

    def counted(*args):
        calls.append(args)
        return traces(*args)

    monkeypatch.setattr(sensitivity, "traces", counted)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 3))
    net.compress(model, tmp_path / "model.dc", inputs=torch.randn(40, 6), max_divergence=0.01)
    assert len(calls) == 1


def test_a_model_in_float64(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    inputs = torch.randn(64, 16)
    names = compressible(model)
    single, _ = traces(model, Samples(model, inputs), names)
    double, reason = traces(model.double(), Samples(model, inputs.double()), names)
    assert not reason
    assert double == pytest.approx(single, rel=1e-4)
