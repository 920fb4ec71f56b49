"""The options of weight sharing, for its own script and for the whole pipeline."""

from .argument_types import integer, or_auto, per_layer, real
from .arguments import Parser, preset_option, preset_switch


def add_sharing(parser: Parser, prefix: str = "finetune-") -> None:
    """`prefix` tells the options apart from those of pruning where one script has both."""
    group = parser.add_argument_group("weight sharing")
    preset_option(
        group,
        "--bits",
        or_auto(per_layer(integer(1, 16))),
        "2**bits shared values per layer at most, by k-means; auto, for a model that is trained "
        "already: the fewest bytes at --noise, calibrated on training inputs where there are some",
        metavar="N",
    )
    preset_option(
        group,
        "--noise",
        or_auto(real(0.001, 100)),
        "of --bits auto: the width of its steps in standard deviations of the weights, half of it "
        "in recurrent ones, larger for fewer bytes; auto: with data the most that --error-budget "
        "allows, without data 0.4, which published image networks do not feel",
        metavar="R",
    )
    group.add_argument(
        "--calibration-images",
        type=integer(0),
        metavar="N",
        help="of --bits auto: training inputs, without labels, on which the errors of each layer "
        "are compensated (default: 1000; 0 for none)",
    )
    group.add_argument(
        "--exact-vectors",
        action="store_true",
        help="leave normalisation, its statistics and, with --bits auto, biases as they are; "
        "otherwise they are rounded",
    )
    preset_switch(
        group,
        "--fold-norms",
        "fold the running statistics of BatchNorm into its weights and biases, for fewer bytes: "
        "the same model, but not to be trained on",
    )
    preset_option(
        group,
        "--bias-bits",
        or_auto(per_layer(integer(0, 16))),
        "the same for the layers' biases; 0 leaves them as they are, rounded beside --bits auto; "
        "auto: 3, or 0 beside --bits auto",
        metavar="N",
    )
    group.add_argument(
        "--init",
        choices=("linear", "density", "random"),
        default="linear",
        help="initial centroids (section 3.2 of the paper; default: linear)",
    )
    preset_option(
        group,
        f"--{prefix}epochs",
        integer(0),
        "epochs of centroid fine-tuning; 0 for clustering alone",
        dest="finetune_epochs",
        metavar="N",
    )
    preset_option(
        group,
        "--reassign",
        real(0, 1),
        "fraction of the fine-tuning in which weights may still change their cluster",
        metavar="R",
    )
    preset_option(
        group,
        "--share-parts",
        integer(1, 1000),
        "share the weights in so many parts, the largest tensors first, with a part of the "
        "fine-tuning after each, in which what is not shared yet makes up for what is",
        metavar="N",
    )
    preset_option(
        group,
        f"--{prefix}lr",
        real(),
        "peak of Adam's learning rate for the centroids",
        dest="finetune_lr",
        metavar="R",
    )
