"""The architectures that `--arch` names, and the layers of a model that can be compressed."""

import difflib
import functools
import importlib
import importlib.util
import inspect
import os
import re
import sys
import sysconfig
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import UserError


class LeNet300100(nn.Module):
    """LeNet-300-100 (LeCun et al. 1998): 784-300-100-10, 266,610 parameters."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1):
        super().__init__()
        self.input_shape = (in_channels, 28, 28)
        self.fc1 = nn.Linear(in_channels * 28 * 28, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, num_classes)
        self.dropout = nn.Dropout(0.0)  # set per training phase

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, C, 28, 28] -> [N, classes]
        x = self.dropout(F.relu(self.fc1(x.flatten(1))))
        x = self.dropout(F.relu(self.fc2(x)))
        return self.fc3(x)


class LeNet5(nn.Module):
    """LeNet-5 in Caffe's variant, which the paper uses: 20 and 50 filters, 431,080 parameters.

    With a ReLU after each pooling, which Caffe's has not: it costs no parameter.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1):
        super().__init__()
        self.input_shape = (in_channels, 28, 28)
        self.conv1 = nn.Conv2d(in_channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, num_classes)
        self.dropout = nn.Dropout(0.0)  # set per training phase

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, C, 28, 28] -> [N, classes]
        x = F.relu(F.max_pool2d(self.conv1(x), 2))  # [N, 20, 12, 12]
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # [N, 50, 4, 4]
        x = self.dropout(F.relu(self.fc1(x.flatten(1))))
        return self.fc2(x)


BUILT_IN = {"lenet-300-100": LeNet300100, "lenet-5": LeNet5}


# Names: `lenet-5`, a model of torchvision, `package.module:factory`; each may carry the options
# that differ from its defaults, as in `resnet18(num_classes=10)`.  Checkpoints record that text,
# which is all that a later stage needs to build the model again.

DESCRIPTION = re.compile(r"([^()]+)(?:\(([a-z_]+=\d+(?:, *[a-z_]+=\d+)*)\))?")
OPTIONS = ("num_classes", "in_channels")


def build(arch: str, num_classes: int | None = None, in_channels: int | None = None) -> nn.Module:
    """The model that `arch` describes, with fresh weights drawn from torch's global generator.

    Raises UserError for a name that is not known, a factory that cannot be imported or that does
    not return a module, and an option that the architecture does not take.
    """
    name, options = parse(describe(arch, num_classes, in_channels))
    try:
        model = factory(name)(**options)
    except (Exception, SystemExit) as error:
        raise failed(f"building {arch}", error) from None
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise UserError(f"--arch {arch} returns a {kind}; it must return a torch.nn.Module")
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters()):
        raise UserError(f"--arch {arch} has lazy layers; give them their sizes, or run it once")
    return model


def describe(
    arch: str, num_classes: int | None = None, in_channels: int | None = None, data=None
) -> str:
    """`arch` with the options that are given, those that equal its defaults left out.

    An option that is None and not in `arch` either is the data set's, where
    the architecture takes it.
    """
    name, options = parse(arch)
    defaults = options_of(factory(name))
    given = {"num_classes": num_classes, "in_channels": in_channels}
    options |= {option: value for option, value in given.items() if value is not None}
    for option in options:
        if option not in defaults:
            taken = f"only {', '.join(defaults)}" if defaults else "no options"
            raise UserError(f"the architecture {name} does not take {option}; it takes {taken}")
    if data is not None:
        of_data = {"num_classes": data.classes, "in_channels": data.shape[0]}
        options = {option: of_data[option] for option in defaults} | options
    text = ", ".join(
        f"{option}={options[option]}"
        for option in OPTIONS
        if option in options and options[option] != defaults[option]
    )
    return f"{name}({text})" if text else name


def parse(arch: str) -> tuple[str, dict[str, int]]:
    """("resnet18", {"num_classes": 10}) for "resnet18(num_classes=10)"."""
    match = DESCRIPTION.fullmatch(arch)
    if match is None:
        raise UserError(f"{arch!r} is no architecture; write it as in 'resnet18(num_classes=10)'")
    name, options = match.groups()
    pairs = (pair.strip().split("=") for pair in (options or "").split(",") if pair)
    return name, {option: int(value) for option, value in pairs}


def factory(name: str):
    """What builds the architecture `name`: a callable, not called yet."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    return own_factory(name) if ":" in name else torchvision_factory(name)


def options_of(build) -> dict[str, int | None]:
    """{option: default} of the OPTIONS that a factory takes by name."""
    try:
        parameters = inspect.signature(build).parameters
    except (TypeError, ValueError):  # some callables written in C have none
        return {}
    return {option: parameters[option].default for option in OPTIONS if option in parameters}


def torchvision_factory(name: str):
    from torchvision import models  # takes a second, which a LeNet need not wait for

    names = classifiers()
    if name not in names:
        close = difflib.get_close_matches(name, [*BUILT_IN, *names], cutoff=0.5)
        hint = f" (did you mean {' or '.join(close)}?)" if close else ""
        raise UserError(
            f"unknown architecture {name!r}{hint}; known: {', '.join(BUILT_IN)}, torchvision's "
            "classification models, and package.module:factory for one of your own"
        )

    def build(num_classes: int = 1000):
        # The auxiliary classifiers of these two need a loss of their own, and only in training.
        more = {}
        if name in ("googlenet", "inception_v3"):
            more = {"aux_logits": False, "init_weights": True}
        return models.get_model(name, weights=None, num_classes=num_classes, **more)

    return build


@functools.lru_cache  # torchvision takes 60 ms, and every stage asks several times
def classifiers() -> list[str]:
    from torchvision import models

    # Detection, segmentation and video are in modules of their own.
    return models.list_models(module=models)


def own_factory(name: str):
    """The callable `package.module:factory`, of code in the working directory or PYTHONPATH."""
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # at the end: the user's files shadow no library
    top = module_name.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # an empty name, or a module without a place such as __main__
        spec = None
    if spec is None:
        raise UserError(f"--arch {name}: no module {top!r} in the working directory {os.getcwd()}")
    # The name may come from a checkpoint, which must not call whatever a library has to offer.
    if not is_own_code(spec):
        raise UserError(
            f"--arch {name}: {top!r} is not code of your own; write a function that returns the "
            "model in a file of the working directory, and name that"
        )
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise failed(f"--arch {name}: importing {module_name}", error) from None
    found = getattr(module, attribute, None)
    if not callable(found):
        raise UserError(f"--arch {name}: {module.__file__} has no function or class {attribute!r}")
    return found


def is_own_code(spec) -> bool:
    """Whether a module is neither of the standard library nor an installed package."""
    if spec.origin is None and spec.submodule_search_locations:  # a folder without __init__.py
        origin = Path(next(iter(spec.submodule_search_locations)))
    elif spec.has_location:
        origin = Path(spec.origin)
    else:
        return False  # built in, or frozen
    paths = sysconfig.get_paths()
    libraries = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    return not any(origin.is_relative_to(library) for library in libraries) and not (
        {"site-packages", "dist-packages"} & set(origin.parts)
    )


def failed(what: str, error: Exception) -> UserError:
    """One line for an exception in code of the user's, with its place."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    reason = f"{type(error).__name__}: {error}"
    return UserError(f"{what} failed in {place.filename}, line {place.lineno}: {reason}")


def skeleton(arch: str) -> nn.Module:
    """The model for its names and shapes alone; torch's generator is left as it is.

    Without memory for the weights but for a factory of the user's, whose code may need values.
    """
    if ":" in arch:
        with torch.random.fork_rng(devices=[]):
            return build(arch)
    with torch.device("meta"):
        return build(arch)


@dataclass(frozen=True)
class Input:
    """The images that a model takes; None stands for whatever the data set has."""

    channels: int | None = None
    size: tuple[int, int] | None = None  # exactly this height and width
    smallest: int = 1  # where `size` is None: at least this
    usual: int = 224  # where `size` is None: what photographs are scaled to


def input_of(arch: str) -> Input:
    """What images the model wants: its attribute `input_shape`, or torchvision's figures.

    `input_shape` is (channels, height, width); a factory of the user's need not have it.
    """
    name, options = parse(arch)
    build_it = factory(name)
    if name not in BUILT_IN and ":" not in name:
        from torchvision.models import get_model_weights

        weights = get_model_weights(name).DEFAULT  # only its description: nothing is downloaded
        crop = weights.transforms.keywords["crop_size"]
        return Input(3, None, max(weights.meta["min_size"]), crop)
    takes = options_of(build_it)
    # Any number will do for an option without a default: it is the attribute that counts.
    required = {o: 2 for o in takes if takes[o] is inspect.Parameter.empty and o not in options}
    shape = getattr(skeleton(describe(arch, **required)), "input_shape", None)
    channels, size = options.get("in_channels"), None
    if shape is not None:
        if len(shape) != 3:
            raise UserError(f"{arch}: input_shape must be (channels, height, width), not {shape}")
        size = (shape[1], shape[2])
        channels = channels if "in_channels" in takes else shape[0]
    return Input(channels, size)


@torch.no_grad()
def check_fits(model: nn.Module, arch: str, data) -> None:
    """Raise UserError unless `model` takes the images of `data` and tells all its classes apart."""
    images = next(data.test.batches(2))[0]
    model.eval()
    with torch.random.fork_rng(devices=[]):
        try:
            logits = model(images)
        except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
            shape = "x".join(map(str, images.shape[1:]))
            raise failed(
                f"{arch} does not take the images of {data.name}, {shape}: it", error
            ) from None
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
        raise UserError(f"{arch} must return one tensor [images, classes]")
    if logits.shape[1] < data.classes:
        raise UserError(
            f"{arch} tells {logits.shape[1]} classes apart, {data.name} has {data.classes}; "
            f"give --num-classes {data.classes}"
        )
