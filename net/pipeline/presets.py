"""Named sets of defaults.  An option that the user gives overrides its preset's value."""

PRESETS = {
    # The paper's three stages as they are: train, prune once by a threshold, retrain; share by
    # k-means, fine-tune the centroids; Huffman coding.
    "paper": {
        "epochs": 20,
        "retrain_epochs": 25,
        "batch_size": "auto",
        "lr": 2e-3,
        "retrain_lr": 3e-3,
        "dropout": 0.0,
        "l1": 0.05,
        "distortion": 1.0,
        "teacher": "none",
        "teacher_copies": 8,
        "sensitivity": 1.5,
        "density": None,
        "prune_epochs": 20,
        "bits": {"@conv": 8, "@linear": 5},  # table 1 of the paper
        "bias_bits": 3,
        "finetune_epochs": 3,
        "finetune_lr": 5e-4,
        "reassign": 0.0,
    },
    # The fewest bytes at the paper's error: prune gradually by saliency per bit, to a density over
    # all layers, learning from a convolutional teacher; share few values, assigned while training.
    "smallest": {
        "epochs": 12,
        "retrain_epochs": 60,
        "batch_size": "auto",
        "lr": 2e-3,
        "retrain_lr": 3e-3,
        "dropout": 0.1,
        "l1": 0.0,
        "distortion": 1.0,
        "teacher": "lenet-5",
        "teacher_copies": 8,
        "sensitivity": 1.5,
        "density": 0.0135,
        "prune_epochs": 40,
        "bits": 3,
        "bias_bits": 3,
        "finetune_epochs": 20,
        "finetune_lr": 2e-3,
        "reassign": 0.7,
    },
}

# What an architecture needs differently, {(preset, architecture): options}.
ADJUSTED = {
    # Convolutions take longer per epoch, and need fewer; the dense model is the teacher.
    ("smallest", "lenet-5"): {
        "epochs": 12,
        "dropout": 0.5,
        "distortion": 1.5,
        "density": 0.0098,
        "prune_epochs": 11,
        "retrain_epochs": 3,
        "retrain_lr": 2e-3,
        "finetune_epochs": 5,
    },
}


def fill(args, arch: str | None) -> None:
    """Set every option of `args` (an argparse namespace) that is None to its preset's value."""
    name = (arch or "").partition("(")[0]  # without its options (architectures.describe)
    values = PRESETS[args.preset] | ADJUSTED.get((args.preset, name), {})
    if name not in ("", "lenet-300-100") and values["teacher"] != "none":
        values["teacher"] = arch  # the dense model: LeNet-5 may not take its images
    for name, value in values.items():
        if getattr(args, name, value) is None:
            setattr(args, name, value)


def defaults_text(name: str) -> str:
    """'default: 20' for the help of option `name`; presets that differ are listed."""
    first, *others = PRESETS
    text = f"default: {shown(PRESETS[first][name])}"
    for preset in others:
        if PRESETS[preset][name] != PRESETS[first][name]:
            text += f"; {preset}: {shown(PRESETS[preset][name])}"
    for (preset, arch), values in ADJUSTED.items():
        if name in values:
            text += f"; {preset} with {arch}: {shown(values[name])}"
    return text


def shown(value) -> str:
    """A value as the user would type it."""
    if isinstance(value, dict):
        return ",".join(f"{pattern}={number}" for pattern, number in value.items())
    return "off" if value is None else str(value)
