"""The architectures that a name stands for: how they are built, and what inputs they want.

Names: `lenet-5`, a model of torchvision, `package.module:factory`; each may carry the options that
differ from its defaults, as in `resnet18(num_classes=10)`. Checkpoints record that text, which is
all that a later stage needs to build the model again and to feed it.
"""

import difflib
import functools
import inspect
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import UserError
from ..extras import needs
from ..modules import copied
from . import own_code
from .inputs import Input
from .models import CifarResNet, CifarVGG16, LeNet5, LeNet300100
from .splits import Dataset

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

BUILT_IN: dict[str, Callable[..., nn.Module]] = {
    "lenet-300-100": LeNet300100,
    "lenet-5": LeNet5,
    **{f"resnet-{n}": functools.partial(CifarResNet, n) for n in (20, 32, 44, 56, 110)},
    "vgg-16": CifarVGG16,
}

LONGEST = 300  # characters: a name may come from a file that anyone has written
OPTION = r"(?:num_classes|in_channels)=[0-9]{1,9}|weights=[A-Z][A-Z0-9_]*"
DESCRIPTION = re.compile(rf"([^()]+)(?:\(((?:{OPTION})(?:, *(?:{OPTION}))*)\))?")
OPTIONS = ("num_classes", "in_channels", "weights")  # `weights` only torchvision's


def build(arch: str) -> nn.Module:
    """The model that `arch` describes, with fresh weights drawn from torch's global generator.

    Raises UserError for a name that is not known, a factory that cannot be imported or that does
    not return a module, and an option that the architecture does not take.
    """
    name, options = parse(describe(arch))
    with own_code.one_line(f"building {arch}"):
        model = factory(name)(**options)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"the architecture {arch} returns a {type(model).__name__}; it must return a "
            "torch.nn.Module"
        )
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters()):
        raise UserError(
            f"the architecture {arch} has lazy layers; give them their sizes, or run it once"
        )
    if any(p.is_meta for p in model.parameters()) and not torch.empty(0).is_meta:
        raise UserError(
            f"the architecture {arch} has parameters on the meta device, which have no values; "
            "build it on another"
        )
    return model


def describe(
    arch: str,
    num_classes: int | None = None,
    in_channels: int | None = None,
    data: Dataset | None = None,
    weights: str | None = None,
) -> str:
    """`arch` with the options that are given, those that equal its defaults left out.

    An option that is None and not in `arch` either is the data set's, where the architecture takes
    it. `weights` is a name of torchvision's weights, "DEFAULT" or "IMAGENET1K_V1"; the model is
    then fed as they were.
    """
    name, options = parse(arch)
    defaults = options_of(name)
    given = {"num_classes": num_classes, "in_channels": in_channels, "weights": weights}
    options |= {option: value for option, value in given.items() if value is not None}
    if options.get("weights"):  # DEFAULT may be others in the next version of torchvision
        options["weights"] = published_weights(name, options["weights"]).name
    for option in options:
        if option not in defaults:
            taken = f"only {', '.join(defaults)}" if defaults else "no options"
            raise UserError(f"the architecture {name} does not take {option}; it takes {taken}")
    if data is not None:
        of_data = {"num_classes": data.classes}
        if len(data.shape) > 1:
            of_data["in_channels"] = data.shape[0]
        options = {name: value for name, value in of_data.items() if name in defaults} | options
    text = ", ".join(
        f"{option}={options[option]}"
        for option in OPTIONS
        if option in options and options[option] != defaults[option]
    )
    return f"{name}({text})" if text else name


def parse(arch: str) -> tuple[str, dict[str, Any]]:
    """("resnet18", {"num_classes": 10}) for "resnet18(num_classes=10)"."""
    match = DESCRIPTION.fullmatch(arch) if len(arch) <= LONGEST else None
    if match is None:
        raise UserError(
            f"{arch[:LONGEST]!r} is not the name of an architecture; write it as in "
            "'resnet18(num_classes=10)'"
        )
    name, options = match.groups()
    pairs = (pair.strip().split("=") for pair in (options or "").split(",") if pair)
    return name, {option: value if option == "weights" else int(value) for option, value in pairs}


def factory(name: str) -> Callable[..., nn.Module]:
    """What builds the architecture `name`: a callable, not called yet."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    return own_code.find(name, "the architecture") if ":" in name else torchvision_factory(name)


def options_of(name: str) -> dict[str, Any]:
    """{option: default} of the OPTIONS that the factory of an architecture takes by name."""
    try:
        parameters = inspect.signature(factory(name)).parameters
    except (TypeError, ValueError):  # some callables written in C have none
        return {}
    ours = OPTIONS if is_torchvisions(name) else ("num_classes", "in_channels")
    return {option: parameters[option].default for option in ours if option in parameters}


# torchvision's


def is_torchvisions(name: str) -> bool:
    return name not in BUILT_IN and ":" not in name


@functools.lru_cache  # torchvision takes 60 ms for its list, and every stage asks several times
def torchvision_factory(name: str) -> Callable[..., nn.Module]:
    # It takes a second, which a LeNet need not wait for.
    models = needs("torchvision.models", f"the architecture {name}")
    # Detection, segmentation and video are in modules of their own.
    names = models.list_models(module=models)
    if name not in names:
        close = difflib.get_close_matches(name, [*BUILT_IN, *names], cutoff=0.5)
        hint = f" (did you mean {' or '.join(close)}?)" if close else ""
        raise UserError(
            f"unknown architecture {name!r}{hint}; known: {', '.join(BUILT_IN)}, torchvision's "
            "classification models, and package.module:factory for one of your own"
        )

    def build(num_classes: int = 1000, weights: str | None = None) -> nn.Module:
        more = {}
        if name in ("googlenet", "inception_v3"):
            # Their auxiliary classifiers need a loss of their own, and only in training; the
            # published weights expect inputs that the models change first.
            fresh = weights is None
            more = {"aux_logits": False, "init_weights": fresh, "transform_input": not fresh}
        return models.get_model(name, weights=None, num_classes=num_classes, **more)

    return build


def published_weights(name: str, weights: str) -> "WeightsEnum":
    """torchvision's description of the weights, "DEFAULT" or "IMAGENET1K_V1", of its model `name`.

    Nothing is downloaded. Raises UserError where there are none of that name.
    """
    if not is_torchvisions(name):
        raise UserError(
            f"the weights {weights} are for torchvision's architectures, and {name} is none of "
            "them; give the name of a file"
        )
    torchvision_factory(name)
    models = needs("torchvision.models", f"the architecture {name}")
    known = models.get_model_weights(name).__members__
    if weights not in known:
        raise UserError(f"{name} has no weights {weights!r}; there are {', '.join(known)}")
    return known[weights]


def weights_of(arch: str) -> str | None:
    """The name of torchvision's weights that `arch` says it starts from."""
    return parse(arch)[1].get("weights")


# Inputs


def skeleton(arch: str) -> nn.Module:
    """The model for its names and shapes alone; torch's generator is left as it is.

    Without memory for the weights but for a factory of the user's, whose code may need values.
    """
    if ":" in arch:
        with torch.random.fork_rng(devices=[]):
            return build(arch)
    with torch.device("meta"):
        return build(arch)


def input_of(arch: str) -> Input:
    """What images the model wants, by its own attributes or by torchvision's figures.

    `input_shape` is (channels, height, width); `input_mean` and `input_std`, one number per
    channel, normalise images in [0, 1]. A factory of the user's need not have them.
    """
    name, options = parse(arch)
    if is_torchvisions(name):
        weights = published_weights(name, options.get("weights", "DEFAULT"))
        crop = weights.transforms.keywords["crop_size"]
        smallest = max(weights.meta["min_size"])
        if "weights" not in options:
            return Input(3, None, smallest, crop)
        preset = weights.transforms()
        return Input(3, None, smallest, crop, tuple(preset.mean), tuple(preset.std))
    takes = options_of(name)
    # Any number will do for an option without a default: it is the attribute that counts.
    required: dict[str, Any] = {
        o: 2 for o in takes if takes[o] is inspect.Parameter.empty and o not in options
    }
    model = skeleton(describe(arch, **required))
    shape = getattr(model, "input_shape", None)
    channels, size = options.get("in_channels"), None
    if shape is not None:
        if not isinstance(shape, Sequence) or len(shape) != 3:
            raise UserError(f"{arch}: input_shape must be (channels, height, width), not {shape}")
        size = (shape[1], shape[2])
        channels = channels if "in_channels" in takes else shape[0]
    mean, std = _normalisation_of(model, arch)
    if mean and len(mean) > 1:
        if channels not in (None, len(mean)):
            raise UserError(
                f"{arch}: input_mean has {len(mean)} numbers, but the model takes {channels} "
                "channels; give one number for each, or one for all"
            )
        channels = len(mean)
    return Input(channels, size, mean=mean, std=std)


def _normalisation_of(
    model: nn.Module, arch: str
) -> tuple[tuple[float, ...], tuple[float, ...]] | tuple[None, None]:
    """The attributes input_mean and input_std of `model`, where it has them."""
    figures = [getattr(model, name, None) for name in ("input_mean", "input_std")]
    if all(figure is None for figure in figures):
        return None, None
    try:
        mean, std = (
            tuple(torch.as_tensor(each, dtype=torch.float64, device="cpu").flatten().tolist())
            for each in figures
        )
        valid = len(mean) == len(std) > 0 and all(map(math.isfinite, mean + std)) and min(std) > 0
    except (TypeError, ValueError, RuntimeError):
        valid = False
    if not valid:
        raise UserError(
            f"{arch}: input_mean and input_std must have one number for each channel, "
            "the latter greater than 0"
        )
    return mean, std


@torch.no_grad()
def check_fits(model: nn.Module, arch: str, data: Dataset) -> int:
    """The outputs of `model`. Raises UserError unless it takes the inputs of `data`, has an output
    per class, and nothing in its state dict that a checkpoint could not hold."""
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise UserError(
                f"{arch} has {name} in its state dict, no tensor but a {type(value).__name__}; "
                "make its get_extra_state return a tensor"
            )
    inputs = next(iter(data.test.batches(2)))[0]
    model.eval()
    shape = "x".join(map(str, inputs.shape[1:])) or "numbers"
    if inputs.dtype == torch.uint8:
        shape += " bytes as they are (normalise by unit or data for floating-point numbers)"
    problem = f"{arch} does not take the inputs of {data.name}, {shape}: it"
    with torch.random.fork_rng(devices=[]), own_code.one_line(problem):
        logits = model(inputs)
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
        raise UserError(f"{arch} must return one tensor [inputs, classes]")
    if logits.shape[1] < data.classes:
        raise UserError(
            f"{arch} has {logits.shape[1]} outputs, {data.name} has {data.classes} classes; "
            f"build it with num_classes={data.classes}"
        )
    return logits.shape[1]


def check_trains(model: nn.Module, arch: str, data: Dataset) -> None:
    """Raise UserError where code of the user's own fails in training alone, or learns nothing."""
    inputs, labels = next(iter(data.train.batches(3)))
    model = copied(model).to(labels.device).train()
    fork = torch.random.fork_rng(devices=[])
    with fork, torch.enable_grad(), own_code.one_line(f"training {arch}"):
        F.cross_entropy(model(inputs), labels).backward()
    if all(each.grad is None for each in model.parameters()):
        raise UserError(f"training {arch}: no gradient reaches any of its parameters")
