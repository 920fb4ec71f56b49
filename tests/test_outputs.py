"""A look at the outputs: which they are, whose tensors, and inputs that every installation has."""

import copy
import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from net import compress, outputs
from net.errors import UserError
from net.outputs import Answers, Unseen
from net.samples import Samples


def answers(model, inputs):
    return outputs.answers(model, Samples(model, inputs))


class TakesLabels(nn.Linear):
    def forward(self, x, labels=None):
        return super().forward(x) if labels is None else nn.functional.mse_loss(x, labels)


# Outputs


def test_equal_outputs_have_not_moved():
    rows = torch.randn(20, 5)
    moved = Answers(rows, True).moved(Answers(rows, True))
    assert moved.cosine == pytest.approx(1)
    assert (moved.divergence, moved.relative_error) == (0, 0)


def test_moved_outputs_by_the_formulas():
    before = Answers(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), True)
    moved = Answers(torch.tensor([[1.0, 1.0], [0.0, 2.0]]), True).moved(before)
    assert moved.cosine == pytest.approx((math.sqrt(0.5) + 1) / 2)
    assert moved.relative_error == pytest.approx(1 / math.sqrt(5))
    p, q = math.e / (math.e + 1), 0.5
    expected = (p * math.log(p / q) + (1 - p) * math.log((1 - p) / q)) / 2
    assert moved.divergence == pytest.approx(expected)


def test_outputs_that_are_no_numbers_are_as_far_as_can_be():
    before = Answers(torch.ones(1, 2), True)
    moved = Answers(torch.tensor([[math.nan, 1.0]]), True).moved(before)
    assert (moved.cosine, moved.divergence) == (-1, math.inf)


def test_rows_of_zeros_have_not_moved():
    rows = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    assert Answers(rows, True).moved(Answers(rows, True)).cosine == pytest.approx(1)
    other = torch.tensor([[0.0, 1.0], [1.0, 2.0]])
    assert Answers(other, True).moved(Answers(rows, True)).cosine == pytest.approx(0.5)


def test_one_figure_per_input_has_more_than_a_sign():
    before = Answers(torch.tensor([[1.0], [3.0]]), False)
    moved = Answers(torch.tensor([[3.0], [1.0]]), False).moved(before)
    assert moved.cosine == pytest.approx(0.6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_outputs_that_were_no_numbers_before_judge_nothing(value):
    model = nn.Linear(3, 2)
    with pytest.raises(Unseen, match="not all finite"):
        outputs.of_module(model, torch.full((4, 3), value))


def test_no_outputs_judge_nothing():
    with pytest.raises(Unseen, match="empty"):
        outputs.of_module(Returns(lambda x: x[:, :0]), torch.zeros(4, 3))


class Changes(nn.Module):
    """Its inputs in place, and a buffer, in every run."""

    def __init__(self):
        super().__init__()
        self.relu, self.linear = nn.ReLU(inplace=True), nn.Linear(3, 2)
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, inputs):
        self.runs += 1
        return self.linear(self.relu(inputs.sub_(0.5)))


def test_a_model_that_changes_its_inputs_and_itself():
    model, inputs = Changes(), torch.rand(8, 3)
    given = inputs.clone()
    subject = outputs.of_module(model, inputs)
    assert subject.moved(model.state_dict()).relative_error == 0
    assert torch.equal(inputs, given)
    assert model.runs == 0


class Returns(nn.Module):
    def __init__(self, give):
        super().__init__()
        self.give = give

    def forward(self, x, attention_mask=None):
        return self.give(x)


def test_what_outputs_are():
    x = torch.randn(4, 3)
    assert answers(Returns(lambda x: x), x).logits
    assert not answers(Returns(lambda x: x[:, None, :].expand(-1, 2, -1)), x).logits
    found = answers(Returns(lambda x: SimpleNamespace(logits=x[:, None].expand(-1, 2, -1))), x)
    assert found.logits
    assert found.rows.shape == (8, 3)
    assert answers(Returns(lambda x: {"loss": None, "features": x}), x).rows.equal(x)
    assert not answers(Returns(lambda x: x[:, :1]), x).logits  # one number
    with pytest.raises(Unseen, match="the output is a str"):
        answers(Returns(lambda _: "text"), x)


def test_padding_is_not_judged():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    hidden = torch.randn(2, 3, 4)
    model = Returns(lambda _: (hidden,))
    found = answers(model, {"x": torch.zeros(2), "attention_mask": mask})
    assert found.rows.equal(hidden[mask.bool()])
    assert not found.logits


def test_the_mode_of_the_model_stays():
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.9)).train()
    first, second = (answers(model, torch.ones(4, 3)).rows for _ in range(2))
    assert first.equal(second)
    assert model.training


@pytest.mark.parametrize("elements", [1 << 27, 300])
def test_rows_that_are_compared(monkeypatch, elements):
    monkeypatch.setattr(outputs, "ELEMENTS", elements)
    rows, found = torch.arange(100.0)[:, None].expand(100, 7), outputs._Sample()
    for part in rows.split(30):
        found.add(part)
    assert torch.equal(found.whole(), rows if elements > 700 else rows[::4])


def test_half_of_the_inputs_judge():
    judge, calibrate = outputs.halves(torch.arange(5)[:, None])
    assert torch.cat(judge).flatten().tolist() == [0, 2, 4]
    assert torch.cat(calibrate).flatten().tolist() == [1, 3]
    batches = [torch.zeros(2), torch.ones(2), torch.zeros(3)]
    assert [len(part) for part in outputs.halves(batches)] == [2, 1]
    inputs = torch.utils.data.TensorDataset(torch.ones(40, 1), torch.ones(40))
    for batch_size in (8, 40):  # labels are not what a model is called with
        loader = torch.utils.data.DataLoader(inputs, batch_size)
        for half in outputs.halves(loader):
            for readings in Samples(TakesLabels(1, 1), half).batches:
                assert len(readings[0].args) == 1
    one = outputs.halves({"ids": torch.arange(4), "mask": torch.ones(4)})
    assert [[batch["ids"].tolist() for batch in part] for part in one] == [[[0, 2]], [[1, 3]]]
    many, _ = outputs.halves({"ids": torch.arange(4 * outputs.BATCH - 1)})  # as of one tensor
    assert [len(batch["ids"]) for batch in many] == [outputs.BATCH] * 2
    assert torch.cat([batch["ids"] for batch in many]).tolist() == list(range(0, 64, 2))


def test_rows_that_judge_are_every_so_many_of_all(monkeypatch):
    monkeypatch.setattr(outputs, "ROWS", 8)
    samples = Samples(nn.Identity(), [torch.arange(n * 2.0).reshape(n, 2) for n in (3, 5)])
    assert len(outputs.answers(nn.Identity(), samples).rows) == 8
    every = torch.arange(50.0).reshape(25, 2)
    samples = Samples(nn.Identity(), list(every.split([1, 6, 11, 2, 5])))
    found = outputs.answers(nn.Identity(), samples).rows
    assert torch.equal(found, every[::4])
    assert found.untyped_storage().nbytes() == found.nbytes  # nothing holds the others


# Whose tensors


def test_names_with_other_prefixes_and_other_names():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    state = {f"module.net.{name}": each for name, each in model.state_dict().items()}
    found = outputs.names_by_value(model, state)
    assert found == {name: f"module.net.{name}" for name in model.state_dict()}
    gamma = torch.full((4,), 2.0)
    model[1].weight.data.copy_(gamma)
    renamed = {name.replace("1.weight", "1.gamma"): each for name, each in state.items()}
    renamed["module.net.1.gamma"] = gamma
    assert outputs.names_by_value(model, renamed)["1.weight"] == "module.net.1.gamma"


def test_a_model_of_other_weights_is_none():
    model = nn.Linear(3, 2)
    state = copy.deepcopy(model.state_dict())
    state["weight"] += 1
    with pytest.raises(Unseen, match="weight of the model is not in the file"):
        outputs.names_by_value(model, state)


def test_tied_weights_are_found_by_one_name():
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    model[1].weight = model[0].weight
    state = {name: each for name, each in model.state_dict().items() if name != "1.weight"}
    assert "0.weight" in outputs.names_by_value(model, state)


# Inputs that every installation has


def test_photographs_are_what_a_network_takes():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.input_shape, model.input_mean, model.input_std = (3, 20, 30), (0.5,) * 3, (0.5,) * 3
    subject = outputs.of_module(model)
    assert subject.before.rows.shape == (outputs.PHOTOGRAPHS, 4)
    assert "scikit-learn" in subject.about
    assert subject.calibration is None
    batches, _ = outputs.photographs_for(model)
    images = torch.cat(batches)
    assert images.shape == (outputs.PHOTOGRAPHS, 3, 20, 30)
    assert -1 <= images.min() < -0.9
    assert 0.9 < images.max() <= 1
    assert len(images.flatten(1).unique(dim=0)) == outputs.PHOTOGRAPHS


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_photographs_are_the_same_with_another_default_type(dtype):
    expected = outputs.photographs(8, 8)
    torch.set_default_dtype(dtype)
    try:
        found = outputs.photographs(8, 8)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


def test_what_takes_no_images_is_not_run():
    with pytest.raises(Unseen, match="takes no images"):
        outputs.of_module(nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("first", "says", "size"),
    [
        (nn.Linear(64, 10), {"input_size": 64}, None),
        (nn.Conv1d(1, 4, 3), {"input_shape": (1, 128)}, None),
        (nn.Conv2d(1, 4, 3), {"input_shape": (1, 128)}, (224, 224)),
        (nn.Conv2d(3, 4, 3), {"image_size": {"width": 24, "height": 32}}, (32, 24)),
        (nn.Conv2d(3, 4, 3), {"image_size": (32, 24)}, (32, 24)),
        (nn.Conv2d(3, 4, 3), {"image_size": 32}, (32, 32)),
        (nn.Linear(64, 10), {"input_size": (3, 32, 24)}, (32, 24)),
    ],
)
def test_what_a_model_says_of_its_inputs_may_be_of_no_images(first, says, size):
    model = nn.Sequential(first)
    model.config = SimpleNamespace(**says)
    if "input_shape" in says:
        model.input_shape = says["input_shape"]
    if size:
        assert outputs.images_for(model).size == size
    else:
        with pytest.raises(Unseen, match=r"takes no images$"):
            outputs.images_for(model)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(outputs.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(Unseen, match="pip install scikit-learn"):
        outputs.photographs(8, 8)


def test_documentation_is_texts():
    texts = outputs.documentation()
    assert len(set(texts)) > 0.9 * outputs.TEXTS
    assert all(outputs.SHORTEST <= len(each) <= outputs.LONGEST for each in texts)


def test_folders_that_cannot_be_run(tmp_path, monkeypatch):
    with pytest.raises(Unseen, match="without its architecture"):
        outputs.of_folder(tmp_path, {})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    monkeypatch.setattr(outputs.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(Unseen, match="pip install transformers"):
        outputs.of_folder(tmp_path, {})


def test_a_folder_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    model.save_pretrained(tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    state = {f"bert.{name}": each for name, each in model.state_dict().items()}
    subject = outputs.of_folder(tmp_path, state)
    assert "documentation" in subject.about
    assert not subject.own
    assert subject.moved(state).cosine == pytest.approx(1)
    other = {name: each + 0.1 * torch.randn_like(each.float()) for name, each in state.items()}
    assert subject.moved(other).cosine < 0.999


@pytest.mark.parametrize("beside", [2.0, None, "mean", torch.tensor(3.0), torch.ones(1, 4)])
def test_what_is_no_batch_goes_with_each_half(beside):
    x = torch.arange(40.0).view(40, 1)
    for given, key in (({"x": x, "beside": beside}, "x"), ([(x, beside)], 0)):
        first, second = outputs.halves(given)
        other = 1 if key == 0 else "beside"
        assert all(each[other] is beside for half in (first, second) for each in half)
        got = [torch.cat([each[key] for each in half]).flatten() for half in (first, second)]
        assert torch.equal(got[0], x[::2, 0])
        assert torch.equal(got[1], x[1::2, 0])
        assert max(len(each[key]) for each in first) == outputs.BATCH


def test_inputs_that_are_one_or_nobody_knows_how_many(tmp_path):
    for one in (torch.ones(1, 4), torch.tensor(3.0), {"x": torch.ones(1, 4)}, [torch.ones(1, 4)]):
        assert outputs.halves(one)[1] is None
    with pytest.raises(
        ValueError, match="whose parts have the lengths 40, 7: nobody says how many"
    ):
        outputs.halves({"x": torch.ones(40, 1), "position": torch.ones(7)})
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    result = compress(model, tmp_path / "a.dc", inputs=torch.randn(1, 64))
    assert result.noise <= 0.4  # as by inputs that come with every installation
    assert not result.notes or "one input is trusted with" in result.notes[-1]


def test_outputs_whose_number_the_weights_decide(tmp_path):
    class Selecting(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            return y[y[:, 0] > 0]

    torch.manual_seed(0)
    model = Selecting(8, 6)
    with pytest.raises(UserError, match="gives other numbers of outputs once its weights change"):
        compress(model, tmp_path / "a.dc", inputs=torch.randn(400, 8), noise=1.0)
    model.bias.data[0] = -100.0
    with pytest.raises(UserError, match="the output is empty"):
        compress(model, tmp_path / "a.dc", inputs=torch.randn(400, 8), noise=1.0)


def test_one_batch_beside_its_labels():
    x, labels = torch.arange(40.0).view(40, 1), torch.zeros(40)
    first, second = outputs.halves([({"x": x}, labels)])
    assert torch.equal(torch.cat([each["x"] for each in first]), x[::2])
    assert torch.equal(torch.cat([each["x"] for each in second]), x[1::2])
    first, second = outputs.halves([[x, labels]])
    assert torch.equal(torch.cat([each[0] for each in second]), x[1::2])


class Keeps(nn.Linear):
    """Computes with what it has made of its weights before, until it is trained."""

    kept = None

    def train(self, mode=True):
        self.kept = None if mode else self.kept
        return super().train(mode)

    def forward(self, x):
        if self.training or self.kept is None:
            self.kept = nn.functional.normalize(self.weight.detach(), dim=1)
        return nn.functional.linear(x, self.kept)


def test_outputs_that_do_not_depend_on_the_weights_are_none(tmp_path):
    torch.manual_seed(0)
    x, model = torch.randn(64, 16), nn.Sequential(Keeps(16, 16), nn.ReLU(), Keeps(16, 16)).eval()
    model(x)
    with pytest.raises(Unseen, match="do not depend on the weights"):
        compress(model, tmp_path / "k.dc", inputs=x)
    assert not (tmp_path / "k.dc").exists()
    model.train()
    assert compress(model, tmp_path / "k.dc", inputs=x).moved.relative_error > 0


def test_another_shape_is_told_of_a_parameter_and_not_asked_of_a_buffer():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    model.register_buffer("places", torch.arange(9.0))
    state = {**model.state_dict(), "places": torch.arange(5.0)}
    assert "0.weight" in outputs.names_by_value(model, state)
    state["0.weight"] = torch.randn(2, 4)
    with pytest.raises(UserError, match=r"0\.weight of the model has the shape \(3, 4\), in the "):
        outputs.names_by_value(model, state)
