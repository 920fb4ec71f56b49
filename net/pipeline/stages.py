"""The stages of Deep Compression: functions from a checkpoint to the next one.

    train -> prune -> share -> encode -> decode

Each takes a checkpoint, a data set and options that are plain numbers (choosing.py has made them of
every "auto"), and returns a new checkpoint; none changes its arguments, touches a file but those of
an encoding, or prints, but through the log that it is given. Every stage seeds torch's generator
itself, so that it gives the same bytes in a process of its own as within the whole pipeline.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from .. import checkpoint, encoding
from ..checkpoint import Checkpoint
from ..container import stored_in
from ..files import one_line
from ..parameters import compressible
from ..plan import plan
from ..prune import Pruner, shrink
from ..report.tables import plan_text, sharing_notes
from ..shared_tensor import Clustering
from ..sharing import WeightSharing
from ..state_dicts import from_json, plain, to_json
from ..training import architectures, weights
from ..training.distillation import Distorted, distillation_loss, distilled
from ..training.log import Log
from ..training.loop import Loss, Schedule, adam, evaluate, fit, set_dropout
from ..training.resume import RunProgress
from ..training.splits import Batches, Dataset, at_a_time
from ..training.units import drop_idle, fold_constant_inputs, gather_live_units
from ..treatments import NOT_MEASURED, Treatment
from . import choosing
from .options import CommonOptions, PruningOptions, SharingOptions, TrainingOptions

# The part of the pruning phase in which the density falls; the rest repairs the last cut.
RAMP = 0.7


@dataclass(frozen=True)
class Runtime:
    """Where a stage runs and whom it tells: nothing that its result depends on."""

    device: torch.device | str = "cpu"
    log: Log = field(default_factory=lambda: Log(silent=True))
    test_batch_size: int = 1000

    def test_error(self, model: nn.Module, stage: str, dataset: Dataset) -> float:
        """The top-1 error of `model` on the test set in percent, logged as that of `stage`."""
        loss, error = evaluate(model, dataset.test, self.test_batch_size)
        if not math.isfinite(loss):
            self.log.note(f"{stage}: training has diverged, the outputs are not finite")
        text = f"{stage}: test error {error:.2f} % ({dataset.name})"
        self.log.result(text, event="test", stage=stage, test_error_percent=error)
        return error


class Targets(NamedTuple):
    """What a phase learns from."""

    split: Batches
    loss: Loss


# --- what several stages do -----------------------------------------------------------------------


def restored(source: Checkpoint, seed: int, device: torch.device | str) -> nn.Module:
    """The model of a stage that goes on with `source`; from here torch draws by `seed`."""
    torch.manual_seed(seed)
    model = weights.restored(source, device)
    set_dropout(model, 0.0)
    return model


def targets(
    dataset: Dataset, options: CommonOptions, runtime: Runtime, teacher: Checkpoint | None = None
) -> Targets:
    """The training images with a teacher's logits instead of labels, where there is a teacher."""
    if teacher is None:
        return Targets(Distorted(dataset.train, options.distortion), F.cross_entropy)
    assert options.amp != "auto"
    model = weights.restored(teacher, runtime.device)
    torch.manual_seed(options.seed + 3)
    copies, strength, size = options.teacher_copies, options.distortion, at_a_time(dataset.train)
    split = distilled(dataset.train, model, copies, strength, size, options.amp)
    return Targets(split, partial(distillation_loss, temperature=options.temperature))


def schedule(options: CommonOptions, epochs: int) -> Schedule:
    assert options.batch_size != "auto"
    assert options.amp != "auto"
    return Schedule(epochs, options.batch_size, options.amp)


def train_phase(
    phase: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    learn_from: Targets,
    planned: Schedule,
    dataset: Dataset,
    runtime: Runtime,
    progress: RunProgress | None = None,
    **parts: Any,
) -> None:
    """Train `model`; `progress` keeps it, the optimizer and `parts` after every epoch."""
    parts |= {"model": model, "optimizer": optimizer}
    fit(
        model,
        optimizer,
        learn_from.split,
        planned,
        loss=learn_from.loss,
        validate=lambda: evaluate(model, dataset.validation, runtime.test_batch_size),
        phase=phase,
        log=runtime.log,
        progress=progress.of(phase, **parts) if progress else None,
    )


def made(
    stage: str, model: nn.Module, arch: str | None, dataset: Dataset, options: dict, error: float
) -> Checkpoint:
    """The checkpoint of a stage, on the CPU and in the usual memory order."""
    state = checkpoint.copied(model.state_dict())
    return Checkpoint(state, arch, stage, dataset.name, options, {"test_error_percent": error})


# --- train, prune, share --------------------------------------------------------------------------


def train(
    arch: str,
    dataset: Dataset,
    options: TrainingOptions,
    runtime: Runtime,
    phase: str = "train",
    progress: RunProgress | None = None,
) -> Checkpoint:
    """A dense model of the architecture `arch`, trained on the labels, from scratch or from
    `options.weights`, or from those of torchvision's that `arch` names."""
    torch.manual_seed(options.seed)
    model = architectures.build(arch)
    start = (options.weights if phase == "train" else None) or architectures.weights_of(arch)
    if start:
        for note in weights.start_from(start, model, arch):
            runtime.log.note(note)
    model = weights.placed(model, runtime.device)
    architectures.check_fits(model, arch, dataset)
    if options.dropout is not None:
        set_dropout(model, options.dropout)
    optimizer = adam(model.parameters(), options.lr)
    compressed = [model.get_parameter(name) for name in compressible(model)]

    def pull(*_: Any) -> None:
        # The others would lose, and have no gradient that holds them.
        trained = (each for each in compressed if each.grad is not None)
        shrink(trained, options.l1 * optimizer.param_groups[0]["lr"])

    optimizer.register_step_post_hook(pull)
    images, planned = targets(dataset, options, runtime), schedule(options, options.epochs)
    train_phase(phase, model, optimizer, images, planned, dataset, runtime, progress)
    error = runtime.test_error(model, phase, dataset)
    return made("initial", model, arch, dataset, options.recorded(), error)


def prune(
    initial: Checkpoint,
    dataset: Dataset,
    options: PruningOptions,
    runtime: Runtime,
    learn_from: Targets | None = None,
    progress: RunProgress | None = None,
) -> Checkpoint:
    """Prune at once by threshold (Han et al. 2015) or gradually to a density, then retrain."""
    model = restored(initial, options.seed + 1, runtime.device)
    learn_from = learn_from or targets(dataset, options, runtime)

    def retrain(phase: str, pruner: Pruner, epochs: int) -> None:
        if progress and progress.passed(phase):
            return
        optimizer = adam(model.parameters(), options.retrain_lr)
        pruner.attach(optimizer)
        planned = schedule(options, epochs)
        train_phase(
            phase, model, optimizer, learn_from, planned, dataset, runtime, progress, pruner=pruner
        )
        pruner.detach()

    chosen: dict[str, Any] = {"include": options.include, "exclude": options.exclude}
    if options.density is None:
        pruner = Pruner(model, sensitivity=options.sensitivity, **chosen)
    else:
        assert options.density != "auto"
        per_epoch = schedule(options, 1).steps_per_epoch(len(learn_from.split))
        steps = int(RAMP * options.prune_epochs * per_epoch)
        steps = max(1, steps) if options.prune_epochs else 0  # at once
        pruner = Pruner(model, density=options.density, steps=steps, **chosen)
        retrain("prune", pruner, options.prune_epochs)
        size = at_a_time(dataset.train)
        fold_constant_inputs(model, pruner.masks, dataset.train, size)
        drop_idle(model, pruner.masks, *learn_from, size)
        gather_live_units(model, pruner.masks, next(dataset.train.batches(min(500, size)))[0])
    retrain("retrain", pruner, options.retrain_epochs)
    error = runtime.test_error(model, "retrained", dataset)
    return made("retrained", model, initial.arch, dataset, options.recorded(), error)


def share(
    source: Checkpoint,
    dataset: Dataset,
    options: SharingOptions,
    runtime: Runtime,
    learn_from: Targets | None = None,
    progress: RunProgress | None = None,
) -> tuple[Checkpoint, dict[str, Clustering]]:
    """Share the survivors of every compressible weight, then fine-tune the centroids.

    Returns what each tensor has become, by its name, beside the checkpoint.
    """
    model = restored(source, options.seed + 2, runtime.device)
    architectures.check_fits(model, source.arch or "the model", dataset)
    runtime.test_error(model, "before weight sharing", dataset)
    epochs, parts = options.finetune_epochs, options.share_parts
    steps = epochs * schedule(options, 1).steps_per_epoch(len(dataset.train))
    config = choosing.config(options, reassign=int(options.reassign * steps))
    decided = plan(model, config)
    text = plan_text(decided, model.state_dict())
    runtime.log.table(text, event="plan", plan=texts_of(decided))
    inputs = choosing.calibration_inputs(dataset, options)
    sharing = WeightSharing(model, config, calibration=inputs, final=not epochs)
    learn_from = learn_from or targets(dataset, options, runtime)

    def finetune(phase: str, epochs: int) -> None:
        if progress and progress.passed(phase):
            return
        state = progress.part(phase, "sharing") if progress else None
        if state:  # before the optimizer is made of its values
            sharing.load_state_dict(state, strict=False)
        optimizer = adam(sharing.parameter_groups(options.finetune_lr), options.finetune_lr)
        sharing.attach(optimizer)
        planned = schedule(options, epochs)
        own = {"sharing": sharing}
        train_phase(phase, model, optimizer, learn_from, planned, dataset, runtime, progress, **own)
        sharing.detach()

    torch.manual_seed(options.seed + 2)  # again, whatever has drawn from it since
    # As long after each part as after the last, which is what has least to make good.
    between = epochs // parts if parts > 1 else 0
    while sharing.parts_left:
        epochs -= between
        if between:
            finetune(f"share {parts - sharing.parts_left}/{parts}", between)
        sharing.share_next()
    if sharing.unmeasured:
        runtime.log.note(NOT_MEASURED.format(sharing.unmeasured))
    for name, reason in sharing.without_data.items():
        runtime.log.note(f"{name} was shared without data: {reason}")
    if epochs:
        if not (progress and progress.part("finetune", "sharing")):
            runtime.test_error(model, "after clustering", dataset)
        finetune("finetune", epochs)
    if options.fold_norms and sharing.fold_norms():  # once nothing is trained any more
        runtime.log.note(
            "the running statistics of BatchNorm are folded into its weights and biases: do not "
            "train the model on"
        )
    when = "after fine-tuning" if epochs else "after clustering"
    error = runtime.test_error(model, when, dataset)
    state = model.state_dict()
    for note in sharing_notes(sharing.plan, sharing.clusterings, sharing.rounded, state):
        runtime.log.note(note)
    recorded = options.recorded() | {"plan": texts_of(decided)}
    shared = made("weight_shared", model, source.arch, dataset, recorded, error)
    shared.extra = source.extra
    return shared, sharing.clusterings


def texts_of(decided: Mapping[str, Treatment]) -> dict[str, str]:
    return {name: str(treatment) for name, treatment in decided.items()}


# --- encode, decode -------------------------------------------------------------------------------


def encode(source: Checkpoint, directory: str | Path) -> encoding.Encoded:
    """Write `source` to a folder, or a .dc file, losslessly; return what it takes."""
    meta = {key: getattr(source, key) for key in ("arch", "dataset") if getattr(source, key)}
    if source.extra:
        meta["extra"] = to_json(source.extra)
    return encoding.write(source.state_dict, directory, meta)


def open_encoded(directory: str | Path) -> Checkpoint:
    """The same as `decode`, but each tensor is decoded when it is asked for."""
    folder = encoding.open(directory)
    return _decoded(directory, folder, folder.meta)


def decode(directory: str | Path) -> Checkpoint:
    """The model in a folder or a .dc file, bit for bit."""
    return _decoded(directory, *encoding.load(directory))


def _decoded(directory: str | Path, state: Mapping[str, torch.Tensor], meta: dict) -> Checkpoint:
    """As what the meta data says, which may be anybody's."""
    with one_line(stored_in(Path(directory)).head, encoding.EncodingError, encoding.AGAIN):
        for key in ("arch", "dataset"):
            if not isinstance(meta.get(key), str | None):
                raise ValueError(f"{key!r} is no name")
        extra = plain(from_json(meta.get("extra", {})))
        if not isinstance(extra, dict):
            raise ValueError("'extra' has no names")
    return Checkpoint(state, meta.get("arch"), "decoded", meta.get("dataset"), extra=extra)
