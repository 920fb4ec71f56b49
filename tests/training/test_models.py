import pytest
import torch

from net.training.architectures import build, input_of
from net.training.models import Block

# He et al. 2016, table 6, in millions.
PARAMETERS = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7}


@pytest.mark.parametrize(("depth", "millions"), PARAMETERS.items())
def test_the_papers_sizes(depth, millions):
    model = build(f"resnet-{depth}")
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters / 1e6 == pytest.approx(millions, abs=0.05 if depth == 110 else 0.005)
    matrices = [name for name, p in model.named_parameters() if p.dim() > 1]
    assert len(matrices) == depth


def test_the_published_names():
    names = build("resnet-20").state_dict().keys()
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight"} < names
    assert {"layer2.0.bn2.bias", "layer3.2.conv2.weight", "linear.weight", "linear.bias"} < names
    assert not any("downsample" in name or "shortcut" in name for name in names)


@pytest.mark.parametrize(
    ("arch", "mean", "std"),
    [
        ("resnet-20", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("vgg-16", None, None),
    ],
)
def test_inputs_and_outputs(arch, mean, std):
    found = input_of(f"{arch}(num_classes=7)")
    assert (found.channels, found.size) == (3, (32, 32))
    assert (found.mean, found.std) == (mean, std)
    model = build(f"{arch}(num_classes=7)").eval()
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_the_size_and_the_layers_that_others_report_of_vgg():
    model = build("vgg-16")
    assert sum(p.numel() for p in model.parameters()) == 14_724_042
    assert sum(p.dim() == 4 for p in model.parameters()) == 13


def test_the_shortcut_halves_the_size_and_adds_channels_of_zeros():
    block = Block(4, 8, 2).eval()
    torch.nn.init.zeros_(block.conv2.weight)  # the shortcut alone is left
    x = torch.rand(1, 4, 6, 6)
    y = block(x)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert not y[:, :2].any()
    assert not y[:, 6:].any()
