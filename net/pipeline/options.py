"""The options of the stages as frozen dataclasses, and the presets: named sets of their values.

A checkpoint records the options that made it, in the order of the fields. They hold no paths, so
that equal runs give equal bytes wherever they are.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

# {pattern: number}, net.parameters.resolve
PerLayer = Mapping[str, float]
BitsPerLayer = Mapping[str, int]


@dataclass(frozen=True)
class DataOptions:
    """Which data set, and where it is. Not recorded: a checkpoint names its data set itself."""

    dataset: str = "auto"
    data_dir: str = "data"
    val_fraction: float = 0.2
    skip_broken: bool = False
    normalise: Literal["auto", "none", "unit", "data"] = "auto"


@dataclass(frozen=True)
class CommonOptions:
    """What every stage that trains needs to know."""

    seed: int = 42
    batch_size: int | Literal["auto"] = "auto"  # of all processes together
    largest_batch: int = 250  # that "auto" gives
    distortion: float = 1.0
    teacher: str = "none"
    teacher_copies: int = 8
    temperature: float = 2.0  # of teacher and student (distillation_loss)
    amp: bool | Literal["auto"] = False  # net.training.precision

    def recorded(self) -> dict:
        options = asdict(self)
        if options.get("weights"):
            options["weights"] = Path(options["weights"]).name
        return options

    def batch_size_for(self, images: int) -> int:
        """Images per step on a training set of so many (net.training.loop.batch_size_for)."""
        if self.batch_size != "auto":
            return self.batch_size
        from ..training.loop import batch_size_for  # torch, which --help must not wait for

        return batch_size_for(images, self.largest_batch)


@dataclass(frozen=True)
class TrainingOptions(CommonOptions):
    """Of dense training."""

    weights: str | None = None  # what training starts from
    epochs: int = 20
    lr: float = 2e-3
    dropout: float = 0.0
    l1: float = 0.05


@dataclass(frozen=True)
class PruningOptions(TrainingOptions):
    """Of pruning and retraining."""

    sensitivity: float | PerLayer = 1.5
    # Instead of the sensitivity: gradual pruning, with "auto" to what the error budget allows.
    density: float | PerLayer | Literal["auto"] | None = None
    error_budget: float = 0.5
    prune_epochs: int = 20
    retrain_epochs: int = 25
    retrain_lr: float = 3e-3

    def training(self) -> TrainingOptions:
        """The part that the dense model depends on."""
        return TrainingOptions(**{f.name: getattr(self, f.name) for f in fields(TrainingOptions)})


@dataclass(frozen=True)
class SharingOptions(CommonOptions):
    """Of weight sharing and the fine-tuning of the shared values."""

    # Table 1 of the paper: 8 bits for convolutions, 5 for fully connected layers.
    bits: int | BitsPerLayer | Literal["auto"] = field(default_factory=lambda: {"*": 5, "@conv": 8})
    noise: float | Literal["auto"] = "auto"  # of bits "auto"; "auto": what the budget allows
    calibration_images: int = 1000
    exact_vectors: bool = False
    fold_norms: bool = False
    error_budget: float = 0.5
    bias_bits: int | BitsPerLayer | Literal["auto"] = "auto"
    init: str = "linear"
    finetune_epochs: int = 3
    finetune_lr: float = 5e-4
    reassign: float = 0.0  # fraction of the fine-tuning
    share_parts: int = 1  # in which the weights are shared, with training between

    @property
    def bits_of_biases(self) -> int | BitsPerLayer:
        """`bias_bits` as a number: those of a model that is not trained on are worth more."""
        if self.bias_bits == "auto":
            return 0 if self.bits == "auto" else 3
        return self.bias_bits


@dataclass(frozen=True)
class Preset:
    """Defaults of all stages; every option that the user gives overrides the preset's value."""

    pruning: PruningOptions = PruningOptions()
    sharing: SharingOptions = field(default_factory=SharingOptions)

    def with_options(self, **changed: Any) -> "Preset":
        """The same with some options changed, in the stages that have them."""
        return Preset(
            changed_options(self.pruning, changed), changed_options(self.sharing, changed)
        )

    def with_sharing(self, **changed: Any) -> "Preset":
        """The same with options of weight sharing changed that pruning has, too."""
        return replace(self, sharing=replace(self.sharing, **changed))

    def values(self) -> dict:
        """{option: value} of both stages, as text where they differ."""
        found = {**vars(self.sharing), **vars(self.pruning)}
        for option, value in vars(self.sharing).items():
            if value != found[option]:
                found[option] = f"{shown(found[option])}, in weight sharing {shown(value)}"
        return found


Options = TypeVar("Options", bound=DataOptions | CommonOptions)


def changed_options(options: Options, values: Mapping[str, Any]) -> Options:
    """`options` with those of `values` that it has and that are not None."""
    own = {f.name for f in fields(options)}
    given = {k: v for k, v in values.items() if k in own and v is not None}
    return replace(options, **given)


# The paper's three stages: train, prune once by a threshold, retrain; share by k-means, fine-tune
# the centroids. With an L1 pull on the weights in dense training, distorted images and shared
# biases, which the paper does not have.
PAPER = Preset()

# The fewest bytes at the paper's error: prune gradually by saliency per bit, to a density over
# all layers, learning from a convolutional teacher; share by rate, one layer after the other.
SMALLEST = PAPER.with_options(
    epochs=12,
    retrain_epochs=60,
    dropout=0.1,
    l1=0.0,
    teacher="lenet-5",
    density=0.0148,
    prune_epochs=40,
    bits="auto",
    noise=0.48,
    bias_bits=3,
    share_parts=3,
    finetune_epochs=21,
    finetune_lr=2e-3,
)

# A few shared values cannot learn by heart, and fit images best that are distorted no more than
# they must be.
LENET_300 = SMALLEST.with_sharing(distortion=0.6)

PRESETS = {"paper": PAPER, "smallest": LENET_300}
LENETS = ("lenet-300-100", "lenet-5")
OTHER = "other networks"  # than these, as the help calls them

# They are deeper, convolutional more often than not, and already good: the dense model teaches what
# becomes of it. As it is: softened outputs gave 8 to 10 % more divergence after equal training. On
# new images in every epoch: four copies of each were learnt by heart, and new ones then took 6 %
# off a divergence that had come to a halt.
DEEP = {
    "largest_batch": 125,
    "teacher": "dense",
    "teacher_copies": 0,
    "temperature": 1.0,
    "amp": "auto",
}

# Of one that is trained already: no L1 pull has gathered its small weights below the threshold, and
# large steps would lead away from where it is.
TRAINED = {"sensitivity": 0.95, "retrain_epochs": 5, "retrain_lr": 1e-3}

# Convolutions take longer per epoch, and need fewer; the dense model is the teacher.
LENET_5 = SMALLEST.with_options(
    dropout=0.5,
    distortion=1.5,
    teacher="dense",
    density=0.0095,
    prune_epochs=20,
    retrain_epochs=16,
    retrain_lr=2e-3,
    noise=0.7,
    share_parts=4,
    finetune_epochs=12,
).with_sharing(distortion=1.0)

# What an architecture needs differently, {(preset, architecture): preset}.
ADJUSTED = {
    ("smallest", "lenet-5"): LENET_5,
    ("paper", OTHER): PAPER.with_options(**DEEP, bits=4),
    # Rounding roughly, with training between, costs less than pruning far (benchmarks/README.md).
    ("smallest", OTHER): SMALLEST.with_options(
        **DEEP,
        density="auto",
        prune_epochs=4,
        retrain_epochs=8,
        retrain_lr=2e-3,
        noise="auto",
        bias_bits="auto",
        error_budget=1.0,
        fold_norms=True,
        share_parts=4,
        finetune_epochs=16,
        finetune_lr=1e-3,
    ),
}


def preset(name: str, arch: str | None, trained: bool = False) -> Preset:
    """The preset `name` for the architecture `arch`, or for none that is known; with `trained` for
    one whose training starts from weights that are given."""
    family = (arch or "").partition("(")[0]  # without its options
    if family not in ("", *LENETS):
        family = OTHER
    found = ADJUSTED.get((name, family), PRESETS[name])
    if trained and (name, family) == ("paper", OTHER):
        return found.with_options(**TRAINED)
    return found


def defaults_text(option: str) -> str:
    """'default: 20' for the help of `option`; presets that differ are listed."""
    values = {name: each.values()[option] for name, each in PRESETS.items()}
    first, *others = values
    text = f"default: {shown(values[first])}"
    for name in others:
        if values[name] != values[first]:
            text += f"; {name}: {shown(values[name])}"
    for (name, arch), adjusted in ADJUSTED.items():
        if adjusted.values()[option] != values[name]:
            text += f"; {name} with {arch}: {shown(adjusted.values()[option])}"
    if option in TRAINED:
        text += f"; paper with {OTHER} and --weights: {shown(TRAINED[option])}"
    return text


def shown(value: object) -> str:
    """A value as the user would type it."""
    if isinstance(value, dict):
        return ",".join(f"{pattern}={number}" for pattern, number in value.items())
    if isinstance(value, bool):
        return "on" if value else "off"
    return "off" if value is None else str(value)
