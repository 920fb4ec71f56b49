"""Hidden units that pruning has left without inputs or outputs, tidied up.

Nothing here needs to know how the layers are wired: which inputs are constant, which weights get
no gradient, and whether a permutation leaves the function alone, are all read off the running
model.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import nn

from ..modules import modules_by_name
from .loop import Loss
from .splits import Batches

Layer = nn.Linear | nn.modules.conv._ConvNd
Masks = Mapping[str, torch.Tensor]  # {parameter name: bool}, changed in place; net.Pruner.masks


def masked_layers(model: nn.Module, masks: Masks) -> dict[str, Layer]:
    """{weight name: layer} of the linear layers and convolutions among what is pruned.

    What is fed through them is a matrix product with `weight`, which the functions below count on.
    """
    modules = modules_by_name(model)
    owners = {name: modules[name.rpartition(".")[0]] for name in masks}
    return {n: layer for n, layer in owners.items() if isinstance(layer, Layer)}


@torch.no_grad()
def fold_constant_inputs(
    model: nn.Module, masks: Masks, split: Batches, batch_size: int = 1000
) -> None:
    """Move what never changes over the inputs of `split` into the bias of the layer it feeds.

    A unit without inputs has a constant output c: W[:, j] c joins the bias and W[:, j] is pruned.
    For Linear layers with a bias, and for convolutions that are not grouped or padded.
    """
    layers = {n: layer for n, layer in masked_layers(model, masks).items() if can_fold(layer)}
    lowest: dict[str, torch.Tensor] = {}
    highest: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(layer: Layer, inputs: tuple, named: dict) -> None:
            x = inputs[0] if inputs else named["input"]
            # Linear has its inputs last; a convolution before the dimensions of its kernel.
            x = x.movedim(1 - layer.weight.dim(), -1)
            x = x.reshape(-1, x.shape[-1])  # [any, inputs]
            if len(x):
                low, high = x.amin(0), x.amax(0)
                lowest[name] = torch.minimum(lowest.get(name, low), low)
                highest[name] = torch.maximum(highest.get(name, high), high)

        return hook

    handles = [
        layer.register_forward_pre_hook(watch(name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    model.eval()
    for inputs, _ in split.batches(batch_size):
        model(inputs)
        if all((lowest[name] < highest[name]).all() for name in lowest):
            break  # nothing that could be constant is left
    for handle in handles:
        handle.remove()
    for name, constant in lowest.items():
        layer, fixed = layers[name], lowest[name] == highest[name]
        weight = layer.weight.flatten(2).sum(2) if layer.weight.dim() > 2 else layer.weight
        if layer.bias is not None:  # which can_fold has made sure of
            layer.bias += weight[:, fixed] @ constant[fixed]
        masks[name][:, fixed] = False
        layer.weight[:, fixed] = 0.0


def can_fold(layer: Layer) -> bool:
    if layer.bias is None:
        return False
    if isinstance(layer, nn.Linear):
        return True
    padded = layer.padding if isinstance(layer.padding, str) else any(layer.padding)
    return not (layer.transposed or layer.groups > 1 or padded)


def drop_idle(
    model: nn.Module, masks: Masks, split: Batches, loss_of: Loss, batch_size: int = 1000
) -> None:
    """Prune all inputs, and zero the bias, of each unit without a gradient on any input of `split`.

    Such a unit has no outputs, or is never active.  (One weight alone without a gradient must
    stay: it may be what keeps its unit from becoming active.)
    """
    layers = masked_layers(model, masks)
    layers = {n: each for n, each in layers.items() if not getattr(each, "transposed", False)}
    used = {n: torch.zeros(len(each.weight), dtype=torch.bool) for n, each in layers.items()}
    model.eval()
    for inputs, target in split.batches(batch_size):
        model.zero_grad()
        loss_of(model(inputs), target).backward()
        for name, layer in layers.items():
            if layer.weight.grad is None:  # not used in `forward`
                used[name] |= True
                continue
            used[name] |= (layer.weight.grad != 0).flatten(1).any(1).cpu()
            if layer.bias is not None and layer.bias.grad is not None:
                used[name] |= (layer.bias.grad != 0).cpu()
        if all(each.all() for each in used.values()):
            break  # as in most networks without biases: an epoch's time is saved
    model.zero_grad()
    with torch.no_grad():
        for name, layer in layers.items():
            idle = ~used[name].to(layer.weight.device)
            masks[name][idle] = False
            layer.weight[idle] = 0.0
            if layer.bias is not None:
                layer.bias[idle] = 0.0


@torch.no_grad()
def gather_live_units(model: nn.Module, masks: Masks, inputs: torch.Tensor) -> None:
    """Permute hidden units so that the living ones come first, and the dead cost nothing to tell.

    Tries every pair of successive layers whose sizes fit, and takes back what changes the outputs
    for `inputs` by more than rounding: layers that do not feed one another.
    """
    model.eval()
    expected = model(inputs)
    tolerance = 1e-4 * float(expected.abs().max())
    layers = masked_layers(model, masks)
    for (first_name, first), (second_name, second) in pairwise(layers.items()):
        units, width = first.weight.shape[0], second.weight.shape[1]
        if width % units or getattr(first, "transposed", False):
            continue
        live = masks[first_name].flatten(1).any(1)
        if first.bias is not None:
            live |= first.bias != 0
        order = torch.argsort(~live, stable=True)
        outputs_of = [first.weight, masks[first_name], first.bias]
        inputs_of = [second.weight, masks[second_name]]
        permute(outputs_of, inputs_of, order)
        if (model(inputs) - expected).abs().max() > tolerance:
            permute(outputs_of, inputs_of, torch.argsort(order))


def permute(
    outputs_of: list[torch.Tensor | None], inputs_of: list[torch.Tensor], order: torch.Tensor
) -> None:
    """Put the units of a layer into `order` (int64 [units]): the first dimension of its tensors,
    the second of those of the layer that it feeds.

    Where the latter flattens images, each unit feeds a run of successive inputs.
    """
    run = inputs_of[0].shape[1] // len(order)
    inputs = (order[:, None] * run + torch.arange(run, device=order.device)).flatten()
    for tensor in outputs_of:
        if tensor is not None:
            tensor.copy_(tensor[order])
    for tensor in inputs_of:
        tensor.copy_(tensor[:, inputs])
