import torch

from net.training.architectures import build, input_of


def test_the_size_and_the_layers_that_others_report():
    model = build("vgg-16")
    assert sum(p.numel() for p in model.parameters()) == 14_724_042
    assert sum(p.dim() == 4 for p in model.parameters()) == 13


def test_inputs_and_outputs():
    found = input_of("vgg-16(num_classes=7)")
    assert (found.channels, found.size, found.mean) == (3, (32, 32), None)
    model = build("vgg-16", num_classes=7).eval()
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
