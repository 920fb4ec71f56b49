import pytest
import torch
from torch import nn

from net import checkpoint
from net.errors import UserError
from net.training.weights import load_into, start_from, without_prefixes


def normed(classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, classes))


def equal(model: nn.Module, state: dict) -> bool:
    own = model.state_dict()
    return all(torch.equal(own[name], tensor) for name, tensor in state.items())


@pytest.fixture
def old():
    """The state dict of another model, as PyTorch before 0.4.1 gave it."""
    torch.manual_seed(1)
    state = normed().state_dict()
    del state["1.num_batches_tracked"]
    return dict(state)


@pytest.mark.parametrize("key", [None, *checkpoint.NESTED])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("zipped", [True, False])
def test_the_layouts_of_published_files(tmp_path, old, key, prefix, zipped):
    named = {prefix + name: tensor for name, tensor in old.items()}
    content = {key: named, "best_prec1": 91.7, "epoch": 3} if key else named
    torch.save(content, tmp_path / "m.th", _use_new_zipfile_serialization=zipped)
    model = normed()
    start_from(tmp_path / "m.th", model, "normed")
    assert equal(model, old)
    assert model[1].num_batches_tracked == 0


def test_safetensors(tmp_path, old):
    pytest.importorskip("safetensors.torch").save_file(old, tmp_path / "m.safetensors")
    model = normed()
    start_from(tmp_path / "m.safetensors", model, "normed")
    assert equal(model, old)


def test_names_that_a_module_once_had_are_its_own_affair():
    """torchvision's vit_b_16 is published with names of an earlier implementation of this."""
    block = pytest.importorskip("torchvision.models.vision_transformer").MLPBlock
    state = block(4, 8, 0.0).state_dict()
    earlier = {"0.weight": "linear_1.weight", "3.bias": "linear_2.bias"}
    model = block(4, 8, 0.0)
    load_into(model, {earlier.get(n, n): t for n, t in state.items()}, "m.pth", "block")
    assert equal(model, state)


def test_a_model_that_is_called_module_keeps_its_name():
    own = nn.ModuleDict({"module": nn.Linear(2, 2)}).state_dict()
    assert without_prefixes(own, own).keys() == own.keys()
    wrapped = {f"module.{name}": tensor for name, tensor in own.items()}
    assert without_prefixes(wrapped, own).keys() == own.keys()
    assert without_prefixes({"module.a": 1, "b": 2}, own).keys() == {"module.a", "b"}


def test_a_last_layer_of_other_classes_is_left_as_drawn(old):
    model = normed(5)
    drawn = model[3].weight.detach().clone()
    notes = load_into(model, old, "m.th", "normed")
    assert torch.equal(model[3].weight, drawn)
    assert torch.equal(model[0].weight, old["0.weight"])
    assert notes == [
        "3.weight, 3.bias of m.th have another number of classes; they start from random values"
    ]


def test_tied_weights_may_be_stored_once():
    model = nn.ModuleDict({"words": nn.Embedding(3, 2), "head": nn.Linear(2, 3, bias=False)})
    model["head"].weight = model["words"].weight
    given = {"head.weight": torch.arange(6.0).view(3, 2)}
    load_into(model, given, "m.th", "tied")
    assert torch.equal(model["words"].weight, given["head.weight"])


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"1.running_var": None}, "1 tensors .* 1.running_var the first"),
        ({"0.weight": None, "0.bias": None}, "2 tensors .* 0.weight the first"),
        ({"2.weight": torch.zeros(3)}, "1 tensors .* 2.weight the first"),
        ({"0.weight": torch.zeros(4, 1, 5, 5)}, "1 tensors .* 0.weight the first"),
    ],
)
def test_what_does_not_fit_is_named(old, change, first):
    given = {name: t for name, t in {**old, **change}.items() if t is not None}
    with pytest.raises(UserError, match=f"m.th does not fit --arch normed: {first}"):
        load_into(normed(), given, "m.th", "normed")
