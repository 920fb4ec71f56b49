"""Hidden units that pruning has left without inputs or outputs, tidied up.

Nothing here needs to know how the layers are wired: which inputs are constant, which weights get
no gradient, and whether a permutation leaves the function alone, are all read off the running
model.
"""

from itertools import pairwise

import torch
from torch import nn

from .architectures import compressible_layers


@torch.no_grad()
def fold_constant_inputs(model: nn.Module, split, batch_size: int = 1000) -> None:
    """Move what never changes over the images of `split` into the bias of the layer it feeds.

    A unit without inputs has a constant output c: W[:, j] c joins the bias and W[:, j] is pruned.
    For Linear layers with a bias, and for convolutions that are not grouped or padded.
    """
    layers = {n: layer for n, layer in compressible_layers(model).items() if can_fold(layer)}
    lowest, highest = {}, {}

    def watch(name):
        def hook(layer, inputs):
            # Linear has its inputs last; a convolution before the dimensions of its kernel.
            x = inputs[0].movedim(1 - layer.weight.dim(), -1)
            x = x.reshape(-1, x.shape[-1])  # [any, inputs]
            low, high = x.amin(0), x.amax(0)
            lowest[name] = torch.minimum(lowest.get(name, low), low)
            highest[name] = torch.maximum(highest.get(name, high), high)

        return hook

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    model.eval()
    for images, _ in split.batches(batch_size):
        model(images)
    for handle in handles:
        handle.remove()
    for name, constant in lowest.items():
        layer, fixed = layers[name], lowest[name] == highest[name]
        weight = layer.weight.flatten(2).sum(2) if layer.weight.dim() > 2 else layer.weight
        layer.bias += weight[:, fixed] @ constant[fixed]
        layer.mask[:, fixed] = False
        layer.weight[:, fixed] = 0.0


def can_fold(layer: nn.Module) -> bool:
    if layer.bias is None:
        return False
    if isinstance(layer, nn.Linear):
        return True
    padded = layer.padding if isinstance(layer.padding, str) else any(layer.padding)
    return not (layer.transposed or layer.groups > 1 or padded)


def drop_idle(model: nn.Module, split, loss_of, batch_size: int = 1000) -> None:
    """Prune all inputs, and zero the bias, of each unit without a gradient on any image of `split`.

    Such a unit has no outputs, or is never active.  (One weight alone without a gradient must
    stay: it may be what keeps its unit from becoming active.)
    """
    layers = list(compressible_layers(model).values())
    used = [torch.zeros(len(layer.weight), dtype=torch.bool) for layer in layers]
    model.eval()
    for images, target in split.batches(batch_size):
        model.zero_grad()
        loss_of(model(images), target).backward()
        for layer, units in zip(layers, used, strict=True):
            if layer.weight.grad is None:  # frozen by its owner, or not used in `forward`
                units |= True
                continue
            units |= (layer.weight.grad != 0).flatten(1).any(1).cpu()
            if layer.bias is not None and not getattr(layer, "transposed", False):
                units |= (layer.bias.grad != 0).cpu()
    model.zero_grad()
    with torch.no_grad():
        for layer, units in zip(layers, used, strict=True):
            if not getattr(layer, "transposed", False):  # whose rows are inputs
                layer.mask[~units] = False
                layer.weight[~units] = 0.0
                if layer.bias is not None:
                    layer.bias[~units] = 0.0


@torch.no_grad()
def gather_live_units(model: nn.Module, images: torch.Tensor) -> None:
    """Permute hidden units so that the living ones come first, and the dead cost nothing to tell.

    Tries every pair of successive layers whose sizes fit, and takes back what changes the outputs
    for `images` by more than rounding: layers that do not feed one another.
    """
    model.eval()
    expected = model(images)
    tolerance = 1e-4 * float(expected.abs().max())
    layers = list(compressible_layers(model).values())
    for first, second in pairwise(layers):
        units, inputs = first.weight.shape[0], second.weight.shape[1]
        if inputs % units or getattr(first, "transposed", False):
            continue
        live = first.mask.flatten(1).any(1)
        if first.bias is not None:
            live |= first.bias != 0
        order = torch.argsort(~live, stable=True)
        permute(first, second, order)
        if (model(images) - expected).abs().max() > tolerance:
            permute(first, second, torch.argsort(order))


def permute(first: nn.Module, second: nn.Module, order: torch.Tensor) -> None:
    """Put the outputs of `first`, and the inputs of `second`, into `order` (int64 [units]).

    Where `second` flattens images, each unit feeds a run of successive inputs.
    """
    run = second.weight.shape[1] // len(order)
    inputs = (order[:, None] * run + torch.arange(run, device=order.device)).flatten()
    for tensor in (first.weight, first.mask, first.bias):
        if tensor is not None:
            tensor.copy_(tensor[order])
    for tensor in (second.weight, second.mask):
        tensor.copy_(tensor[:, inputs])
