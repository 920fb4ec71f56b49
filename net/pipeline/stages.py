"""The stages of Deep Compression: functions from a checkpoint to the next one.

    train -> prune -> share -> encode -> decode

Each takes a checkpoint, a data set and options that are plain numbers (choosing.py has made them of
every "auto"), and returns a new checkpoint; none changes its arguments, touches a file but those of
an encoding, or prints, but through the log that it is given. Every stage seeds torch's generator
itself, so that it gives the same bytes in a process of its own as within the whole pipeline.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from .. import checkpoint, encoding
from ..bare import SharedState
from ..checkpoint import Checkpoint
from ..clustering import Clustering
from ..container import stored_in
from ..errors import UserError
from ..files import one_line
from ..parameters import compressible, resolve
from ..plan import Treatment, plan
from ..prune import Pruner, prunable, shrink
from ..report.tables import plan_text, sharing_notes
from ..sharing import WeightSharing
from ..state_dicts import from_json, plain, to_json
from ..training import architectures, restore, weights
from ..training.distillation import Distorted, distillation_loss, distilled
from ..training.log import Log
from ..training.loop import Loss, Schedule, adam, evaluate, fit, set_dropout
from ..training.resume import RunProgress
from ..training.splits import Batches, Dataset
from ..training.units import drop_idle, fold_constant_inputs, gather_live_units
from . import choosing
from .options import CommonOptions, PruningOptions, SharingOptions, TrainingOptions

# The part of the pruning phase in which the density falls; the rest repairs the last cut.
RAMP = 0.7
# What sharing a bare state dict depends on: no teacher, no epochs.
RECORDED_OF_BARE = (
    *("preset", "seed", "bits", "noise", "exact_vectors", "bias_bits", "init"),
    *("include", "exclude"),
)


@dataclass(frozen=True)
class Runtime:
    """Where a stage runs and whom it tells: nothing that its result depends on."""

    device: torch.device | str = "cpu"
    log: Log = field(default_factory=lambda: Log(silent=True))
    test_batch_size: int = 1000

    def test_error(self, model: nn.Module, stage: str, dataset: Dataset) -> float:
        """The top-1 error of `model` on the test set in percent, logged as that of `stage`."""
        _, error = evaluate(model, dataset.test, self.test_batch_size)
        text = f"{stage}: test error {error:.2f} % ({dataset.name})"
        self.log.result(text, event="test", stage=stage, test_error_percent=error)
        return error


class Targets(NamedTuple):
    """What every phase after dense training learns from."""

    split: Batches
    loss: Loss


# Dense training


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
    model = restore.placed(model, runtime.device)
    architectures.check_fits(model, arch, dataset)
    set_dropout(model, options.dropout)
    optimizer = adam(model.parameters(), options.lr)
    compressed = [model.get_parameter(name) for name in compressible(model)]
    optimizer.register_step_post_hook(
        lambda *_: shrink(compressed, options.l1 * optimizer.param_groups[0]["lr"])
    )
    split = Distorted(dataset.train, options.distortion)
    fit(
        model,
        optimizer,
        split,
        schedule(options, options.epochs),
        validate=lambda: evaluate(model, dataset.validation),
        phase=phase,
        log=runtime.log,
        progress=progress.of(phase, model=model, optimizer=optimizer) if progress else None,
    )
    metrics = {"test_error_percent": runtime.test_error(model, phase, dataset)}
    recorded = options.recorded()
    return Checkpoint(state_of(model), arch, "initial", dataset.name, recorded, metrics)


def schedule(options: CommonOptions, epochs: int) -> Schedule:
    assert options.batch_size != "auto"
    return Schedule(epochs, options.batch_size, options.amp)


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the state dict, on the CPU and in the usual memory order."""
    return checkpoint.copied(model.state_dict())


def targets(
    dataset: Dataset, options: CommonOptions, teacher: Checkpoint | None, runtime: Runtime
) -> Targets:
    """The training images with a teacher's logits instead of labels, where there is a teacher."""
    if teacher is None:
        return Targets(Distorted(dataset.train, options.distortion), F.cross_entropy)
    model = restore.restored(teacher, runtime.device)
    torch.manual_seed(options.seed + 3)
    split = distilled(
        dataset.train,
        model,
        options.teacher_copies,
        options.distortion,
        runtime.test_batch_size,
        options.amp,
    )
    return Targets(split, partial(distillation_loss, temperature=options.temperature))


# Pruning


def prune(
    initial: Checkpoint,
    dataset: Dataset,
    options: PruningOptions,
    runtime: Runtime,
    learn_from: Targets | None = None,
    progress: RunProgress | None = None,
) -> Checkpoint:
    """Prune at once by threshold (Han et al. 2015) or gradually to a density, then retrain."""
    torch.manual_seed(options.seed + 1)
    split, loss = learn_from or targets(dataset, options, None, runtime)
    model = restore.restored(initial, runtime.device)
    set_dropout(model, 0.0)

    def train_with(pruner: Pruner, phase: str, epochs: int) -> None:
        if progress and progress.passed(phase):
            return
        optimizer = adam(model.parameters(), options.retrain_lr)
        pruner.attach(optimizer)
        fit(
            model,
            optimizer,
            split,
            schedule(options, epochs),
            loss=loss,
            validate=lambda: evaluate(model, dataset.validation),
            phase=phase,
            log=runtime.log,
            progress=progress.of(phase, model=model, optimizer=optimizer, pruner=pruner)
            if progress
            else None,
        )
        pruner.detach()

    chosen: dict[str, Any] = {"include": options.include, "exclude": options.exclude}
    if options.density is None:
        pruner = Pruner(model, sensitivity=options.sensitivity, **chosen)
    else:
        assert options.density != "auto"
        per_epoch = schedule(options, 1).steps_per_epoch(len(split))
        steps = max(1, int(RAMP * options.prune_epochs * per_epoch))
        pruner = Pruner(model, density=options.density, steps=steps, **chosen)
        train_with(pruner, "prune", options.prune_epochs)
        fold_constant_inputs(model, pruner.masks, dataset.train)
        drop_idle(model, pruner.masks, split, loss)
        gather_live_units(model, pruner.masks, next(dataset.train.batches(500))[0])
    train_with(pruner, "retrain", options.retrain_epochs)
    metrics = {"test_error_percent": runtime.test_error(model, "retrained", dataset)}
    return Checkpoint(
        state_of(model),
        initial.arch,
        "retrained",
        dataset.name,
        options.recorded(),
        metrics,
    )


# Weight sharing


def share(
    source: Checkpoint,
    dataset: Dataset,
    options: SharingOptions,
    runtime: Runtime,
    learn_from: Callable[[], Targets] | None = None,
) -> tuple[Checkpoint, dict[str, Clustering]]:
    """Share the survivors of every compressible weight, then fine-tune the centroids.

    `learn_from` is called if there is something to fine-tune. Returns what each tensor has become,
    by its name, beside the checkpoint.
    """
    torch.manual_seed(options.seed + 2)
    model = restore.restored(source, runtime.device)
    architectures.check_fits(model, source.arch or "the model", dataset)
    set_dropout(model, 0.0)
    runtime.test_error(model, "before weight sharing", dataset)
    epochs, parts = options.finetune_epochs, options.share_parts
    steps_per_epoch = schedule(options, 1).steps_per_epoch(len(dataset.train))
    decided = plan(model, choosing.config(options))
    text = plan_text(decided, model.state_dict())
    runtime.log.table(text, event="plan", plan=texts_of(decided))
    sharing = choosing.shared(
        model,
        options,
        choosing.calibration_inputs(dataset, options),
        reassign=int(options.reassign * epochs * steps_per_epoch),
    )

    def train_values(phase: str, epochs: int) -> None:
        optimizer = adam(sharing.parameter_groups(options.finetune_lr), options.finetune_lr)
        sharing.attach(optimizer)
        fit(
            model,
            optimizer,
            split,
            schedule(options, epochs),
            loss=loss,
            validate=lambda: evaluate(model, dataset.validation),
            phase=phase,
            log=runtime.log,
        )
        sharing.detach()

    if epochs:
        split, loss = learn_from() if learn_from else targets(dataset, options, None, runtime)
        torch.manual_seed(options.seed + 2)  # again, whatever has drawn from it since
    # As long after each part as after the last, which is what has least to make good.
    between = epochs // parts if parts > 1 else 0
    while sharing.parts_left:
        epochs -= between
        if between:
            train_values(f"share {parts - sharing.parts_left}/{parts}", between)
        sharing.share_next()
    for name, reason in sharing.without_data.items():
        runtime.log.note(f"{name} was shared without data: {reason}")
    if not epochs:
        finish(sharing, options, runtime.log)
    error = runtime.test_error(model, "after clustering", dataset)
    if epochs:
        train_values("finetune", epochs)
        finish(sharing, options, runtime.log)
        error = runtime.test_error(model, "after fine-tuning", dataset)
    metrics = {"test_error_percent": error}
    state = model.state_dict()
    for note in sharing_notes(sharing.plan, sharing.clusterings, sharing.rounded, state):
        runtime.log.note(note)
    shared = Checkpoint(
        state_of(model),
        source.arch,
        "weight_shared",
        dataset.name,
        options.recorded() | {"plan": texts_of(decided)},
        metrics,
        extra=source.extra,
    )
    return shared, sharing.clusterings


def texts_of(decided: Mapping[str, Treatment]) -> dict[str, str]:
    return {name: str(treatment) for name, treatment in decided.items()}


def finish(sharing: WeightSharing, options: SharingOptions, log: Log) -> None:
    """What saves bytes once nothing is trained any more."""
    if options.fold_norms and sharing.fold_norms():
        log.note(
            "the running statistics of BatchNorm are folded into its weights and biases: do not "
            "train the model on"
        )


def share_bare(source: Checkpoint, options: SharingOptions) -> tuple[Checkpoint, SharedState]:
    """The same for a state dict that cannot be run, tensor by tensor, without any training.

    The state dict of the checkpoint is the SharedState, which reads, shares and forgets a tensor
    when it is asked for it, and knows the clusterings of those that it was asked for.
    """
    if options.finetune_epochs:
        raise UserError(
            "a bare state dict can be shared, not fine-tuned: its architecture is not known; "
            "name it, or ask for no epochs"
        )
    if options.fold_norms:
        raise UserError(
            "what BatchNorm adds to a variance is not in a bare state dict, so that its statistics "
            "cannot be folded; name the architecture"
        )
    state = SharedState(source.state_dict, choosing.config(options))
    recorded = {name: getattr(options, name) for name in RECORDED_OF_BARE}
    recorded["plan"] = texts_of(state.plan)
    found = Checkpoint(
        state, source.arch, "weight_shared", source.dataset, recorded, extra=source.extra
    )
    return found, state


# Coding


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


def check_patterns(options: PruningOptions, model: nn.Module) -> None:
    """Find before hours of training what would stop the run after them. Raises UserError."""
    kinds = prunable(model, options.include, options.exclude)
    resolve(options.sensitivity, kinds)
    if isinstance(options.density, dict):
        resolve(options.density, kinds)
