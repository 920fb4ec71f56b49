"""Modules as users have them: in wrappers, with results of computations in their layers, and the
names of their parameters in the state dict."""

import copy
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from .errors import UserError, first_line
from .sharded import is_sharded, lies_alike
from .tensors import identity, is_computed

# Between the names of a layer and of what it has, where torch.distributed checkpoints activations;
# the model's state dict leaves it out.
CHECKPOINTED = "_checkpoint_wrapped_module"


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel or torch.compile, if it is in one."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def check_not_scripted(model: nn.Module) -> None:
    """Raises UserError for a model that is TorchScript, or some part of which is."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(
                f"{name or 'the model'} is a TorchScript module, which cannot be changed; give "
                "the module that it was made of, and script that in the end"
            )


# Names


def plain_name(name: str) -> str:
    """The name of a module or a parameter as the state dict has it."""
    return ".".join(part for part in name.split(".") if part != CHECKPOINTED)


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """{name in the state dict: module}, each once."""
    return {plain_name(name): module for name, module in model.named_modules()}


def parameters_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """{name in the state dict: parameter}, tied ones under each of their names."""
    every = model.named_parameters(remove_duplicate=False)
    return {plain_name(name): parameter for name, parameter in every}


def parameter_of(model: nn.Module, name: str) -> nn.Parameter | None:
    """The parameter of that name, faster than Module.get_parameter; None if there is none."""
    module: nn.Module | None = model
    *path, last = name.split(".")
    for part in path:
        module = module._modules.get(part) if module is not None else None
        if module is not None and CHECKPOINTED in module._modules:
            module = module._modules[CHECKPOINTED]
    return module._parameters.get(last) if module is not None else None


def parameters_of(model: nn.Module, like: Mapping[str, torch.Tensor]) -> dict[str, nn.Parameter]:
    """{name: parameter} of a copy of a model, or of what averages it (swa_utils.AveragedModel).

    Raises ValueError where it has none of that name that lies as that of `like` does.
    """
    model = unwrapped(model)
    if isinstance(model, AveragedModel):
        model = unwrapped(model.module)
    found = {}
    for name, tensor in like.items():
        parameter = parameter_of(model, name)
        if parameter is None or not lies_alike(parameter, tensor):
            where = " and its placements" if is_sharded(tensor) else ""
            raise ValueError(f"this model has no {name} of the shape {tuple(tensor.shape)}{where}")
        found[name] = parameter
    return found


# Copies

WITHOUT_COPY = "give its state dict, or a noise and no inputs"


def only_tensors(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """A module's state dict, without what is kept there beside tensors (get_extra_state)."""
    return {name: each for name, each in state.items() if isinstance(each, torch.Tensor)}


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, of a model whose layers keep the results of computations, too: the weights that
    torch.nn.utils.weight_norm and spectral_norm leave in theirs, activations in a list. Parameters
    that are the same memory become one."""
    results: list[torch.Tensor] = []
    for module in model.modules():
        _computed(list(vars(module).values()), results, set())
    memo: dict[int, Any] = {id(value): value.detach().clone() for value in results}
    first: dict[tuple, nn.Parameter] = {}
    for parameter in model.parameters():
        if not is_sharded(parameter):
            same = first.setdefault(identity(parameter), parameter)
            if same is not parameter and same.requires_grad == parameter.requires_grad:
                memo[id(parameter)] = copy.deepcopy(same, memo)
    try:
        found = copy.deepcopy(model, memo)
    except Exception as error:  # of locks, files, results in objects of somebody's own
        why = first_line(error)
        raise UserError(f"the model cannot be copied ({why}); {WITHOUT_COPY}") from None
    own = model.state_dict(keep_vars=True)
    for name, tensor in found.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor) and tensor is own.get(name):
            raise UserError(
                f"a deep copy of the model has {name} of the model itself, by a __deepcopy__ of "
                f"its own; {WITHOUT_COPY}"
            )
    return found


def evaluating(model: nn.Module) -> nn.Module:
    """The model, in evaluation mode; what `eval` returns is what a `train` of its own does."""
    model.eval()
    return model


def _computed(value: Any, found: list[torch.Tensor], seen: set[int]) -> None:
    """Append the tensors within a value, and the containers in it, that are results."""
    if isinstance(value, torch.Tensor):
        if not value.is_leaf:
            found.append(value)
    elif isinstance(value, list | tuple | set | deque | dict) and id(value) not in seen:
        seen.add(id(value))
        for each in value.values() if isinstance(value, dict) else value:
            _computed(each, found, seen)


def in_evaluation(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode. UserError if that mode changes its weights, as that of adapters
    does that merge: what is found of those says nothing of the ones that the model has."""
    found = evaluating(copied(model))
    if any(module.training for module in model.modules()):
        own = dict(model.named_parameters())
        for name, parameter in found.named_parameters():
            if not is_computed(parameter) or parameter.isnan().any():
                continue
            if name not in own or not torch.equal(own[name], parameter):
                raise UserError(
                    f"eval() changes {plain_name(name)}, as adapters do that are merged then: "
                    "leave the sample inputs out, or merge the adapters for good"
                )
    return found
