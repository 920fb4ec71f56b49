import io
from email.message import Message
from urllib.error import URLError
from urllib.response import addinfourl

import pytest
import torch
from torch import nn

from net import checkpoint, state_dicts
from net.errors import UserError
from net.training import architectures, download, weights
from net.training.weights import downloaded, is_published, load_into, start_from, without_prefixes


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


@pytest.mark.parametrize("key", [None, *state_dicts.MAIN, "model_state"])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.module.", "model.", "net.", "model.backbone.module."]
)
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


def test_adopted_are_the_weights_and_what_is_beside_them():
    state = architectures.build("lenet-5").state_dict()
    given = {f"model.net.{name}": tensor for name, tensor in state.items()}
    source = checkpoint.Checkpoint(given, extra={"names": {0: "cat"}})
    found = weights.adopted(source, "m.ckpt", "lenet-5")
    assert (found.arch, found.extra) == ("lenet-5", {"names": {0: "cat"}})
    assert list(found.state_dict) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.state_dict.items())


def test_what_nothing_is_going_to_train_is_not_adopted_with_a_last_layer_as_drawn():
    source = checkpoint.Checkpoint(architectures.build("lenet-5(num_classes=5)").state_dict())
    with pytest.raises(UserError, match=r"m\.pth has another number of classes than lenet-5; give"):
        weights.adopted(source, "m.pth", "lenet-5")
    found = weights.adopted(source, "m.pth", "lenet-5(num_classes=5)")
    assert len(found.state_dict["fc2.bias"]) == 5


def test_an_average_of_weights_and_its_counter(old):
    given = {f"module.{name}": tensor for name, tensor in old.items()}
    model = normed()
    load_into(model, given | {"n_averaged": torch.tensor(9)}, "m.th", "normed")
    assert equal(model, old)


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
    with pytest.raises(UserError, match=f"m.th does not fit the architecture normed: {first}"):
        load_into(normed(), given, "m.th", "normed")


# torchvision's published weights, of which a made-up file lies in torch.hub's folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Put a file of weights where torch.hub keeps those that are published under this name."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(download, "reachable", lambda urls: False)

    def put(arch, content, name="DEFAULT"):
        url = architectures.published_weights(arch, name).url
        path = tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        return path

    return put


def test_torchvisions_own_weights(hub):
    torch.manual_seed(1)
    state = architectures.build("squeezenet1_1").state_dict()
    hub("squeezenet1_1", state)
    for name in ("DEFAULT", "IMAGENET1K_V1"):
        model = architectures.build("squeezenet1_1")
        assert start_from(name, model, "squeezenet1_1") == []
        assert equal(model, state)


def test_torchvisions_weights_for_other_classes(hub):
    state = architectures.build("squeezenet1_1").state_dict()
    hub("squeezenet1_1", state)
    arch = "squeezenet1_1(num_classes=4, weights=IMAGENET1K_V1)"
    model = architectures.build(arch)
    notes = start_from("DEFAULT", model, arch)
    assert notes == [
        "classifier.1.weight, classifier.1.bias of SqueezeNet1_1_Weights.IMAGENET1K_V1 have "
        "another number of classes; they start from random values"
    ]
    assert torch.equal(model.features[0].weight, state["features.0.weight"])


def test_auxiliary_classifiers_are_left_out(hub):
    """Those of GoogLeNet, which its published file holds and the model here has not."""
    small = nn.Sequential(nn.Linear(2, 2))
    hub("googlenet", {**small.state_dict(), "aux1.fc.weight": torch.zeros(3)})
    assert downloaded(architectures.published_weights("googlenet", "DEFAULT")).keys() == {
        "0.weight",
        "0.bias",
    }


def test_a_damaged_download_is_named(hub):
    path = hub("squeezenet1_1", b"PK damaged")
    with pytest.raises(UserError, match=f"{path} is damaged .*; delete it"):
        start_from("DEFAULT", nn.Linear(1, 1), "squeezenet1_1")


class Harmful:
    def __reduce__(self):
        return print, ("this code must not run",)


def test_code_in_a_published_file_does_not_run(hub, capsys):
    hub("squeezenet1_1", {"0.weight": Harmful()})
    with pytest.raises(UserError, match="is damaged"):
        start_from("DEFAULT", nn.Linear(1, 1), "squeezenet1_1")
    assert "must not run" not in capsys.readouterr().out


def test_weights_whose_host_does_not_answer(hub, tmp_path):
    with pytest.raises(UserError) as error:
        start_from("IMAGENET1K_V1", nn.Linear(1, 1), "squeezenet1_1")
    message = str(error.value)
    assert message.startswith("SqueezeNet1_1_Weights.IMAGENET1K_V1 is not in")
    assert "download https://download.pytorch.org/models/squeezenet1_1-" in message
    assert f"put it there as {tmp_path}" in message
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"wrong hash", None])
def test_a_download_that_fails_is_one_line(hub, tmp_path, monkeypatch, content, capsys):
    """A host that sends something else, whose hash torch.hub checks, or nothing at all."""
    monkeypatch.setattr(download, "reachable", lambda urls: True)

    def urlopen(request, **options):
        if content is None:
            raise URLError("no route")
        headers = Message()
        headers["Content-Length"] = str(len(content))
        return addinfourl(io.BytesIO(content), headers, "")

    monkeypatch.setattr(torch.hub, "urlopen", urlopen)
    reason = "invalid hash value" if content else "no route"
    with pytest.raises(UserError, match=f"cannot be downloaded .*{reason}.*; download https"):
        start_from("DEFAULT", nn.Linear(1, 1), "squeezenet1_1")
    assert list((tmp_path / "hub" / "checkpoints").iterdir()) == []
    assert capsys.readouterr().out == ""  # torch.hub's own note goes to stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DEFAULT", True),
        ("IMAGENET1K_SWAG_E2E_V1", True),
        ("MODEL.pth", False),
        ("./DEFAULT", False),
        ("default", False),
    ],
)
def test_names_of_published_weights_are_told_from_files(text, expected):
    assert is_published(text) == expected
