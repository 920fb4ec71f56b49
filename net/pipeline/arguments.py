"""The options of the scripts, in the groups in which several scripts share them.

Imports nothing heavy: `--help` must answer at once.
"""

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from .argument_types import DATASETS, dataset, integer, or_auto, per_layer, picture, real
from .options import PRESETS, defaults_text


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and whose help is the script's docstring."""

    def __init__(self, docstring: str | None) -> None:
        super().__init__(
            description=docstring,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def preset_option(
    group: argparse._ArgumentGroup,
    flag: str,
    kind: Callable[[str], Any],
    text: str,
    dest: str | None = None,
    **more: Any,
) -> None:
    """An option whose default comes from the preset."""
    dest = dest or flag.lstrip("-").replace("-", "_")
    group.add_argument(flag, type=kind, dest=dest, help=f"{text} ({defaults_text(dest)})", **more)


def preset_switch(group: argparse._ArgumentGroup, flag: str, text: str) -> None:
    """The same for one that is on, or off with `--no-` before its name."""
    default = defaults_text(flag.lstrip("-").replace("-", "_"))
    group.add_argument(flag, action=argparse.BooleanOptionalAction, help=f"{text} ({default})")


# Groups of options, each declared once for the stage script and deep_compressing.py.


def add_common(parser: Parser) -> None:
    group = parser.add_argument_group("common")
    group.add_argument("--seed", type=integer(0, 2**63 - 1), default=42, help="default: 42")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    group.add_argument("--no-cuda", action="store_true", help="the same as --device cpu")
    group.add_argument(
        "--data-dir",
        default="data",
        metavar="DIR",
        help="where data sets are, or are downloaded to (default: data)",
    )
    group.add_argument(
        "--dataset",
        type=dataset,
        default="auto",
        metavar="NAME",
        help=f"{', '.join(DATASETS)}; folder:PATH for images in PATH/CLASS/, or PATH/train/CLASS/ "
        "and PATH/val/CLASS/; package.module:factory of your own, which returns (train, test) or "
        "(train, validation, test). auto (default): the one that the model was trained on; for a "
        "new model MNIST if it is there or can be downloaded, else scikit-learn's digits",
    )
    group.add_argument(
        "--val-fraction",
        type=real(0.01, 0.99),
        default=0.2,
        metavar="R",
        help="of the images, to test on where there is no PATH/val; the same for every stage "
        "(default: 0.2)",
    )
    group.add_argument(
        "--skip-broken",
        action="store_true",
        help="pass over image files of folder:PATH that cannot be read, with a note; otherwise "
        "the first of them ends the run",
    )
    group.add_argument(
        "--normalise",
        choices=("auto", "none", "unit", "data"),
        default="auto",
        help="none: inputs as they are; unit: bytes to [0, 1]; data: by the training inputs' own "
        "mean and deviation. auto (default): by the model's figures where it has any, else data "
        "for named data sets and folders, none for a function of your own. Later stages do the "
        "same",
    )
    group.add_argument(
        "--test-batch-size", type=integer(1), default=1000, metavar="N", help="default: 1000"
    )


def add_preset(parser: Parser) -> None:
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        default="paper",
        help="the defaults of the options marked below (default: paper)",
    )


def add_training(parser: Parser) -> None:
    """What every stage that trains needs."""
    group = parser.add_argument_group("training")
    preset_option(
        group,
        "--batch-size",
        or_auto(integer(1)),
        "inputs per step; auto: 250, for other networks than the LeNets 125, or fewer on a small "
        "data set for 200 steps an epoch, down to 32, or 40 steps an epoch",
        metavar="N",
    )
    preset_option(
        group,
        "--distortion",
        real(),
        "strength of the random changes of training images, 0 for none: grey ones are rotated, "
        "scaled and sheared, those in colour shifted and mirrored",
        metavar="R",
    )
    preset_option(
        group,
        "--teacher",
        str,
        "learn from a model instead of the labels after dense training: none, dense (what is "
        "compressed, as it was), another architecture, which is trained first, or a .ptmodel file",
        metavar="NAME",
    )
    preset_option(
        group,
        "--teacher-copies",
        integer(0),
        "distorted versions of every image that the teacher sees, made once; a new one in every "
        "epoch for 0, and where these would take over 2 GiB",
        metavar="N",
    )
    preset_option(
        group,
        "--temperature",
        real(0.01, 1000),
        "softens the outputs of the teacher, and of what learns from it (Hinton et al. 2015)",
        metavar="R",
    )
    preset_switch(group, "--amp", "matrix products in bfloat16; auto: on a processor that has it")


def add_budget(parser: Parser) -> None:
    preset_option(
        parser.add_argument_group("error budget"),
        "--error-budget",
        real(0, 100),
        "what --density auto and --bits auto may cost in points of error, about, judged by how far "
        "the outputs on held-out inputs move",
        metavar="R",
    )


def add_log(parser: Parser) -> None:
    group = parser.add_argument_group("log")
    group.add_argument(
        "--log-interval",
        type=integer(1),
        default=50,
        metavar="N",
        help="batches between two training figures (default: 50)",
    )
    group.add_argument(
        "--log", metavar="FILE", help="write one line per event; JSON lines if it ends in .jsonl"
    )


def add_pruning(parser: Parser) -> None:
    add_model(parser, default="lenet-300-100")
    group = parser.add_argument_group("dense training, pruning, retraining")
    group.add_argument(
        "--weights",
        metavar="FILE",
        help="start from this state dict (.ptmodel, .pt, .pth, .th or .safetensors), or from the "
        "published weights of a model of torchvision's: DEFAULT, IMAGENET1K_V1, ...; with "
        "--epochs 0 the dense training is skipped",
    )
    preset_option(group, "--epochs", integer(0), "epochs of dense training", metavar="N")
    preset_option(group, "--retrain-epochs", integer(0), "epochs after pruning", metavar="N")
    preset_option(group, "--lr", real(), "peak of Adam's learning rate", metavar="R")
    preset_option(group, "--retrain-lr", real(), "the same for retraining", metavar="R")
    preset_option(group, "--dropout", real(0, 0.99), "in dense training", metavar="P")
    preset_option(
        group,
        "--l1",
        real(),
        "L1 penalty on the weights in dense training: each step takes l1 x lr off every magnitude",
        metavar="R",
    )
    preset_option(
        group,
        "--sensitivity",
        per_layer(real()),
        "prune weights smaller than this times the standard deviation of their layer",
        metavar="R",
    )
    preset_option(
        group,
        "--density",
        or_auto(per_layer(real(0, 1))),
        "instead of the threshold: the fraction of weights to keep, of all layers together or "
        "per layer, reached gradually by saliency per bit; auto: as few as --error-budget allows",
        metavar="R",
    )
    preset_option(group, "--prune-epochs", integer(0), "epochs of gradual pruning", metavar="N")
    group.add_argument(
        "--resume", action="store_true", help="go on with a run of the same options that was killed"
    )


def add_model(parser: Parser, default: str | None) -> None:
    """Which architecture; `default` None where the checkpoint tells."""
    group = parser.add_argument_group("model")
    shown = f"default: {default}" if default else "of a state dict that is no .ptmodel file"
    group.add_argument(
        "--arch",
        default=default,
        metavar="NAME",
        help="lenet-300-100, lenet-5, resnet-20 (-32, -44, -56, -110) for CIFAR, a classification "
        "model of torchvision, or package.module:factory of your own, found from the working "
        f"directory ({shown})",
    )
    group.add_argument(
        "--num-classes", type=integer(1), metavar="N", help="default: those of the data set"
    )
    group.add_argument(
        "--in-channels",
        type=integer(1),
        metavar="N",
        help="of the images, where the architecture leaves it open (default: as in the data set)",
    )


def add_scan(parser: Parser) -> None:
    group = parser.add_argument_group("sensitivity scan")
    group.add_argument(
        "--scan",
        action="store_true",
        help="prune nothing; show the held-out error of the dense model with each layer pruned "
        "alone, and the densities per layer that suit --scan-target",
    )
    group.add_argument(
        "--scan-target",
        type=real(0, 1),
        default=0.05,
        metavar="R",
        help="fraction of all weights to keep (default: 0.05)",
    )
    group.add_argument("--json", metavar="FILE", help="write the scan as JSON")
    group.add_argument("--plot", type=picture, metavar="FILE", help="draw it (.png, .svg or .pdf)")


def add_output_folder(parser: Parser) -> None:
    parser.add_argument(
        "--output",
        default="saves/",
        metavar="DIR",
        help="the folder of the models (default: saves/)",
    )


def add_directory(parser: Parser) -> None:
    parser.add_argument(
        "--directory",
        default="encodings/",
        metavar="DIR",
        help="the folder of the encoded model (default: encodings/)",
    )


def add_comparison(parser: Parser) -> None:
    group = parser.add_argument_group("comparison")
    group.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    group.add_argument(
        "--csv", metavar="NAME.csv", help="write the tables as NAME-stages.csv and NAME-layers.csv"
    )
    group.add_argument(
        "--plot", type=picture, metavar="FILE", help="draw the comparison (.png, .svg or .pdf)"
    )
    group.add_argument(
        "--latency",
        action="store_true",
        help="time the layers on the CPU, dense against sparse, at batch 1 and 64",
    )
