"""The options of the stages: frozen dataclasses, a field an option (fields.py).

A checkpoint records the options that made it, in the order of the fields. They hold no paths, so
that equal runs give equal bytes wherever they are. "auto" is an option's value, never a stage's:
choosing.py makes a number of it before the stage begins.
"""

import argparse
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from .fields import BitsPerLayer, PerLayer, expert, option

# Of net.training.datasets, which imports torch; a test compares the two.
DATASETS = ("auto", "mnist", "fashion-mnist", "kmnist", "cifar10", "digits")


def dataset_name(text: str) -> str:
    if text in DATASETS or all(text.partition(":")):
        return text
    raise argparse.ArgumentTypeError(
        f"unknown data set {text!r}; known: {', '.join(DATASETS)}, folder:PATH, "
        "package.module:factory"
    )


def file_name(text: str) -> str:
    if not Path(text).name:
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a file")
    return text


def picture_name(text: str) -> str:
    if not text.lower().endswith((".png", ".svg", ".pdf")):
        raise argparse.ArgumentTypeError(f"{text!r} ends in none of .png, .svg and .pdf")
    return text


def patterns(text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(","))
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not PATTERN[,PATTERN...]")
    return found


# --- not recorded: no result depends on it, or the data set's name tells --------------------------


@dataclass(frozen=True)
class DataOptions:
    """Which data set, and where it is. A checkpoint names its data set itself."""

    dataset: str = option(
        "auto",
        "mnist, fashion-mnist, kmnist, cifar10, digits; folder:PATH, images in PATH/CLASS/, or in "
        "PATH/train/CLASS/ and PATH/val/CLASS/; package.module:factory, a function of your own "
        "that returns (train, test) or (train, validation, test); auto: what the model was "
        "trained on, or MNIST if it is there or can be downloaded, else digits",
        check=dataset_name,
    )
    data_dir: str = option("data", "where data sets are, or are downloaded to", metavar="DIR")
    val_fraction: float | None = expert(
        None,
        "part of folder:PATH to test on where it has no val/ (0.2, or what the model had)",
        low=0.01,
        high=0.99,
    )
    skip_broken: bool = expert(
        False, "pass over images of folder:PATH that cannot be read; otherwise they end the run"
    )
    normalise: Literal["auto", "none", "unit", "data"] = expert(
        "auto",
        "of inputs: none (as they are), unit (bytes to [0, 1]), data (by the training set's mean "
        "and deviation); auto: by the model's own figures, else images by the training set's, and "
        "what a function of your own returns as it is",
    )


@dataclass(frozen=True)
class MachineOptions:
    """Where a script runs, and what it says of it."""

    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: a GPU where there is one")
    no_cuda: bool = expert(False, "--device cpu")
    test_batch_size: int = expert(1000, "inputs at a time", low=1)
    log: str | None = option(
        None, "write a line per event; JSON lines if FILE ends in .jsonl", metavar="FILE"
    )
    log_interval: int = expert(50, "batches between two training figures", low=1)


@dataclass(frozen=True)
class ModelOptions:
    """Which architecture."""

    arch: str | None = option(
        None,
        "lenet-300-100, lenet-5, resnet-20 (-32, -44, -56, -110) or vgg-16 for CIFAR, a classifier "
        "of torchvision's by its name, resnet18(num_classes=10) with options, or "
        "package.module:factory of your own, found from the working directory",
    )
    num_classes: int | None = expert(
        None, "outputs of the model, if not those of the data set", low=1
    )
    in_channels: int | None = expert(None, "of the images, if not those of the data set", low=1)


@dataclass(frozen=True)
class ReportOptions:
    """How the comparison of the stages is shown."""

    json: str | None = option(None, "write the figures as JSON", metavar="FILE", check=file_name)
    csv: str | None = option(
        None,
        "write the tables as NAME-stages.csv and NAME-layers.csv",
        metavar="NAME.csv",
        check=file_name,
    )
    plot: str | None = option(
        None, "draw the comparison (.png, .svg or .pdf)", metavar="FILE", check=picture_name
    )
    latency: bool = option(
        False, "time the layers on the CPU, dense against sparse, at batch 1 and 64"
    )


# --- what results depend on: recorded -------------------------------------------------------------


@dataclass(frozen=True)
class CommonOptions:
    """What every stage that trains needs to know."""

    preset: str = "paper"  # whose values these are, but for what the user has given
    seed: int = option(42, "of all that torch draws at random", high=2**63 - 1)
    batch_size: int | Literal["auto"] = option(
        "auto", "inputs per step, of all processes; auto: 250, fewer on a small data set", low=1
    )
    largest_batch: int = expert(250, "the most that --batch-size auto takes", low=1)
    distortion: float = option(
        1.0, "strength of the random changes (rotation, shift, ...) of training images; 0: none"
    )
    teacher: str = expert(
        "none",
        "what pruning and weight sharing learn from in place of the labels: dense (the model "
        "before pruning), another architecture, which is trained first, or a .ptmodel file",
    )
    teacher_copies: int = expert(
        8, "distorted versions of each image that the teacher sees; 0: a new one every epoch"
    )
    temperature: float = expert(
        2.0, "softens the outputs of teacher and student (Hinton et al. 2015)", low=0.01, high=1000
    )
    amp: bool | Literal["auto"] = expert(
        False, "matrix products in bfloat16; auto: on a processor that has it", negatable=True
    )
    asked: "CommonOptions | None" = field(default=None, kw_only=True)  # before "auto" was chosen

    def recorded(self) -> dict[str, Any]:
        """What was asked for and, under "chosen", the numbers that were chosen for it."""
        options = {each.name: getattr(self, each.name) for each in fields(self)}
        asked = options.pop("asked")
        if options.get("weights"):
            options["weights"] = Path(options["weights"]).name
        if asked is None:
            return options
        before = asked.recorded()
        return before | {"chosen": {k: v for k, v in options.items() if v != before[k]}}


@dataclass(frozen=True)
class ChoiceOptions:
    """Which parameters are compressed, and how far choices may go."""

    include: tuple[str, ...] | None = option(
        None,
        "prune and share these parameters, and no others: patterns over names (fc*,*.proj) or "
        "kinds (@linear, @conv, @attention, @rnn, @embedding)",
        metavar="PATTERNS",
        check=patterns,
    )
    exclude: tuple[str, ...] = option(
        (), "leave these as they are, exactly", metavar="PATTERNS", check=patterns
    )
    error_budget: float = option(
        0.5, "points of error that auto may cost, before training; higher: fewer bytes", high=100
    )


@dataclass(frozen=True)
class TrainingOptions(CommonOptions):
    """Of dense training."""

    weights: str | None = option(
        None,
        "start from this saved model, or from published weights of torchvision's (DEFAULT, "
        "IMAGENET1K_V1, ...); --epochs 0 leaves dense training out",
        metavar="FILE",
    )
    epochs: int = option(20, "epochs of dense training")
    lr: float = expert(2e-3, "peak of Adam's learning rate in dense training")
    dropout: float | None = expert(
        None,
        "in dense training, of all nn.Dropout (as the model has it); what follows trains without",
        high=0.99,
    )
    l1: float = expert(
        0.05, "L1 penalty of dense training: each step takes l1 x learning rate off every weight"
    )


@dataclass(frozen=True)
class PruningOptions(TrainingOptions, ChoiceOptions):
    """Of pruning and retraining."""

    sensitivity: float | PerLayer = option(
        1.5, "prune weights below so many standard deviations of their layer; higher: fewer stay"
    )
    density: float | PerLayer | Literal["auto"] | None = option(
        None,
        "instead of --sensitivity: the fraction of weights to keep at most, in all or per layer, "
        "reached gradually; lower: fewer bytes; auto: as low as --error-budget allows",
        high=1,
    )
    prune_epochs: int = expert(20, "epochs of gradual pruning (--density)")
    retrain_epochs: int = option(25, "epochs of training after pruning")
    retrain_lr: float = expert(3e-3, "peak of Adam's learning rate after pruning")

    def training(self) -> TrainingOptions:
        """The part that the dense model depends on."""
        own = {each.name: getattr(self, each.name) for each in fields(TrainingOptions)}
        if isinstance(self.asked, PruningOptions):
            own["asked"] = self.asked.training()
        return TrainingOptions(**own)


@dataclass(frozen=True)
class SharingOptions(CommonOptions, ChoiceOptions):
    """Of weight sharing and the fine-tuning of the shared values."""

    # Table 1 of the paper: 8 bits for convolutions, 5 for fully connected layers.
    bits: int | BitsPerLayer | Literal["auto"] = option(
        {"*": 5, "@conv": 8},
        "2**N shared values per layer, by k-means; fewer bits: fewer bytes; auto: by rate, the "
        "fewest bytes at --noise",
        low=1,
        high=16,
    )
    noise: float | Literal["auto"] = option(
        "auto",
        "of --bits auto: the steps between values, in standard deviations of the weights; larger: "
        "fewer bytes, other outputs; auto: with data what --error-budget allows",
        low=0.001,
        high=100,
    )
    calibration_images: int = expert(
        1000, "of --bits auto: training inputs on which errors are compensated; 0: none"
    )
    exact_vectors: bool = expert(
        False, "leave biases and normalisation as they are, instead of rounding them"
    )
    fold_norms: bool = expert(
        False,
        "fold the running statistics of BatchNorm into its weights and biases, for fewer bytes: "
        "the same outputs, but not to be trained on",
        negatable=True,
    )
    bias_bits: int | BitsPerLayer | Literal["auto"] = expert(
        "auto",
        "2**N shared values for the biases of a layer; 0: none, as they are, or rounded beside "
        "--bits auto; auto: 3, or 0 beside --bits auto",
        high=16,
    )
    init: Literal["linear", "density", "random"] = expert(
        "linear", "initial centroids (section 3.2 of the paper)"
    )
    finetune_epochs: int = option(3, "epochs of fine-tuning the shared values; 0: sharing alone")
    finetune_lr: float = expert(5e-4, "peak of Adam's learning rate for the shared values")
    reassign: float = expert(
        0.0, "part of the fine-tuning in which weights may change their shared value", high=1
    )
    share_parts: int = expert(
        1,
        "share the weights in so many parts, the largest tensors first; between parts, the weights "
        "that are not shared yet train on and compensate for those that are",
        low=1,
        high=1000,
    )


Options = TypeVar("Options", bound=CommonOptions)
