import sys
import textwrap

import pytest
import torch
from torch import nn

from net.checkpoint import Checkpoint
from net.errors import UserError
from net.training.architectures import (
    build,
    check_fits,
    describe,
    input_of,
    skeleton,
    weights_of,
)
from net.training.inputs import Input
from net.training.weights import restored


@pytest.mark.parametrize(("arch", "parameters"), [("lenet-300-100", 266_610), ("lenet-5", 431_080)])
def test_the_papers_networks(arch, parameters):
    model = build(arch)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


def test_other_classes_and_channels():
    for arch in ("lenet-300-100", "lenet-5"):
        model = build(f"{arch}(num_classes=7, in_channels=3)")
        assert model(torch.zeros(2, 3, 28, 28)).shape == (2, 7)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("lenet-6", r"unknown architecture 'lenet-6' \(did you mean lenet-5"),
        ("resnet81", r"unknown architecture 'resnet81' \(did you mean resnet18"),
        ("nonsense", r"unknown architecture 'nonsense'; known: lenet-300-100, lenet-5, resnet-20"),
        ("fasterrcnn_resnet50_fpn", "unknown architecture 'fasterrcnn_resnet50_fpn'"),
        ("resnet18(num_classes=x)", "is not the name of an architecture"),
        (
            "resnet18(in_channels=1)",
            "resnet18 does not take in_channels; it takes only num_classes",
        ),
    ],
)
def test_unknown_architectures(arch, message):
    with pytest.raises(UserError, match=message):
        build(arch)


def test_torchvision_by_name():
    assert build("squeezenet1_1(num_classes=4)")(torch.zeros(1, 3, 17, 17)).shape == (1, 4)


def test_a_description_has_what_differs_from_the_defaults():
    assert describe("lenet-5") == "lenet-5"
    assert describe("lenet-5", num_classes=10, in_channels=1) == "lenet-5"
    assert describe("resnet18", num_classes=10) == "resnet18(num_classes=10)"
    assert describe("resnet18(num_classes=10)") == "resnet18(num_classes=10)"
    assert describe("resnet18(num_classes=10)", num_classes=1000) == "resnet18"
    both = "lenet-5(num_classes=7, in_channels=3)"
    assert describe("lenet-5", 7, 3) == describe(both) == both
    assert build(both).conv1.in_channels == 3


def test_the_data_set_gives_what_is_not_given(blobs):
    assert describe("lenet-5", data=blobs) == "lenet-5(num_classes=3)"
    assert describe("lenet-5", num_classes=5, data=blobs) == "lenet-5(num_classes=5)"
    assert describe("lenet-5(num_classes=10)", data=blobs) == "lenet-5"
    assert describe("resnet18", data=blobs) == "resnet18(num_classes=3)"  # no in_channels


# Models of the user's own


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write a module into the working directory; its name is new in every test."""
    monkeypatch.chdir(tmp_path)
    name = f"own_{tmp_path.name.replace('-', '_')}"

    def write(code):
        (tmp_path / f"{name}.py").write_text("from torch import nn\n" + textwrap.dedent(code))
        return name

    yield write
    sys.modules.pop(name, None)
    sys.path[:] = [path for path in sys.path if path != str(tmp_path)]


def test_a_factory_of_the_users_own(own):
    name = own("class Net(nn.Linear):\n    def __init__(self): super().__init__(4, 2)")
    assert isinstance(build(f"{name}:Net"), nn.Linear)
    with pytest.raises(UserError, match="does not take num_classes; it takes no options"):
        build(f"{name}:Net(num_classes=3)")


def test_a_factory_that_takes_options(own, blobs):
    name = own("def net(num_classes, in_channels=1): return nn.Linear(in_channels, num_classes)")
    described = describe(f"{name}:net", data=blobs)
    assert described == f"{name}:net(num_classes=3)"
    assert build(described).weight.shape == (3, 1)
    assert input_of(f"{name}:net") == Input(None, None)  # though num_classes has no default


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def net(): return 3", "returns a int; it must return a torch.nn.Module"),
        ("net = 3", "has no function or class 'net'"),
        ("def other(): pass", "has no function or class 'net'"),
        ("import nonsense_", "importing own_.* failed in .*line 2: ModuleNotFoundError"),
        ("def net(): return 1 / 0", "building own_.* failed in .*line 2: ZeroDivisionError"),
        ("def net(): raise SystemExit(3)", "building own_.* failed in"),
        ("def net(): return nn.LazyLinear(3)", "has lazy layers"),
    ],
)
def test_factories_that_fail(own, code, message):
    with pytest.raises(UserError, match=message):
        build(f"{own(code)}:net")


@pytest.mark.parametrize("name", ["nowhere_", ""])
def test_a_module_that_is_not_there(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"no module '{name}' in the working directory"):
        build(f"{name}:net")


@pytest.mark.parametrize(
    "arch", ["os:abort", "__main__:exit", "builtins:exit", "numpy:zeros", "posix:abort"]
)
def test_a_checkpoint_cannot_name_a_librarys_code(arch):
    with pytest.raises(UserError, match="is not code of your own"):
        build(arch)


# Inputs


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("lenet-300-100", Input(None, (28, 28))),
        ("lenet-5(in_channels=3)", Input(3, (28, 28))),
        ("alexnet", Input(3, None, 63, 224)),
        ("inception_v3(num_classes=10)", Input(3, None, 75, 299)),
        ("vit_b_16", Input(3, None, 224, 224)),
    ],
)
def test_what_a_model_wants(arch, expected):
    assert input_of(arch) == expected


def test_what_a_users_model_wants(own):
    name = own("""
        def net():
            model = nn.Flatten()
            model.input_shape = (2, 9, 8)
            return model
        def bad():
            model = nn.Flatten()
            model.input_shape = (9, 8)
            return model
    """)
    assert input_of(f"{name}:net") == Input(2, (9, 8))
    with pytest.raises(UserError, match=r"input_shape must be \(channels, height, width\)"):
        input_of(f"{name}:bad")


def test_a_model_that_does_not_fit_the_data(blobs):
    check_fits(build("lenet-5(num_classes=3)"), "lenet-5", blobs)
    check_fits(build("lenet-5"), "lenet-5", blobs)
    with pytest.raises(
        UserError, match="has 2 outputs, blobs has 3 classes; build it with num_classes=3"
    ):
        check_fits(build("lenet-5(num_classes=2)"), "lenet-5", blobs)
    with pytest.raises(UserError, match="resnet18 does not take the inputs of blobs, 1x28x28"):
        check_fits(build("resnet18"), "resnet18", blobs)
    with pytest.raises(UserError, match="must return one tensor"):
        check_fits(nn.Identity(), "identity", blobs)


# Normalisation that belongs to the model


def test_the_weights_of_torchvision_bring_their_normalisation():
    arch = describe("resnet18", num_classes=10, weights="DEFAULT")
    assert arch == "resnet18(num_classes=10, weights=IMAGENET1K_V1)"
    assert (weights_of(arch), weights_of("resnet18")) == ("IMAGENET1K_V1", None)
    found = input_of(arch)
    assert (found.mean, found.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert input_of("resnet18(num_classes=10)").mean is None
    assert input_of("efficientnet_v2_l(weights=DEFAULT)").mean == (0.5, 0.5, 0.5)
    assert build(arch).fc.out_features == 10  # nothing is downloaded


def test_models_that_change_their_inputs_do_so_with_published_weights_alone():
    assert skeleton("googlenet(weights=DEFAULT)").transform_input
    assert not skeleton("googlenet").transform_input


@pytest.mark.parametrize(
    ("arch", "weights", "message"),
    [
        ("resnet18", "IMAGENET1K_V7", "resnet18 has no weights 'IMAGENET1K_V7'; there are IMAGE"),
        ("lenet-5", "DEFAULT", "the weights DEFAULT are for torchvision's .* lenet-5 is none"),
        ("resnet18(weights=default)", None, "is not the name of an architecture"),
    ],
)
def test_weights_that_there_are_not(arch, weights, message):
    with pytest.raises(UserError, match=message):
        describe(arch, weights=weights)


def test_a_users_factory_is_not_given_the_names_of_torchvisions_weights(own):
    name = own("def net(weights=None): return nn.Linear(1, 1)")
    with pytest.raises(UserError, match="are for torchvision's architectures"):
        describe(f"{name}:net", weights="DEFAULT")


OWN_NORMALISATION = """
    import torch
    def net(shape=(3, 8, 8), mean=(0.1, 0.2, 0.3), std=(1, 2, 3)):
        model = nn.Flatten()
        if shape: model.input_shape = shape
        if mean is not None: model.input_mean = mean
        if std is not None: model.input_std = std
        return model
    def tensors(): return net(None, torch.tensor([0.5, 0.5]), torch.ones(2))
    def one_for_all(): return net(mean=[0.5], std=[0.25])
    def number(): return net(mean=0.5, std=0.25)
    def fewer(): return net(std=(1, 2))
    def other(): return net(shape=(1, 8, 8))
    def half(): return net(std=None)
    def zero(): return net(std=(1, 2, 0))
    def text(): return net(mean="abc")
    def nan(): return net(mean=(0, 0, float("nan")))
"""


@pytest.mark.parametrize(
    ("factory", "channels", "mean"),
    [
        ("net", 3, (0.1, 0.2, 0.3)),
        ("tensors", 2, (0.5, 0.5)),
        ("one_for_all", 3, (0.5,)),
        ("number", 3, (0.5,)),
    ],
)
def test_a_model_may_say_how_its_inputs_are_normalised(own, factory, channels, mean):
    found = input_of(f"{own(OWN_NORMALISATION)}:{factory}")
    assert found.channels == channels
    assert found.mean == pytest.approx(mean)
    assert len(found.std) == len(mean)


@pytest.mark.parametrize("factory", ["fewer", "other", "half", "zero", "text", "nan"])
def test_normalisation_that_cannot_be(own, factory):
    with pytest.raises(UserError, match=r"input_mean .*one number for each"):
        input_of(f"{own(OWN_NORMALISATION)}:{factory}")


def test_a_skeleton_takes_no_memory_and_no_random_numbers():
    before = torch.get_rng_state()
    assert all(p.is_meta for p in skeleton("vgg16").parameters())
    assert torch.equal(torch.get_rng_state(), before)


# Layers


@pytest.mark.parametrize(
    "text",
    ["x" * 10_000_000, "(" * 10_000_000, "lenet-5(num_classes=" + "9" * 5000 + ")", "a=" * 400],
)
def test_a_name_out_of_any_file_is_short(text):
    with pytest.raises(UserError, match="is not the name of an architecture") as error:
        build(text)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "text",
    ["", " ", "()", "lenet-5()", "lenet-5(num_classes=-1)", "lenet-5(num_classes=1e9)", "\ud800:x",
     ":", "a:", ":b", "..:x", ".a:b", "a\0:b", "os:system", "lenet-5(weights=X)", "../x", "a.b.c"],
)  # fmt: skip
def test_a_name_that_means_nothing_is_one_line(text):
    with pytest.raises(UserError) as error:
        build(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("arch", ["lenet-5", "resnet18"])
def test_no_memory_is_taken_for_classes_that_the_file_does_not_have(arch):
    """300 GB of them."""
    claimed = Checkpoint({"a": torch.ones(3)}, f"{arch}(num_classes=150000000)")
    with pytest.raises(UserError, match="it has 3 values, not"):
        restored(claimed)
