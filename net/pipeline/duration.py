"""How long training is going to take, said before it begins."""

import time
from collections.abc import Sequence
from itertools import islice
from statistics import median
from typing import NamedTuple

import torch
from torch.nn import functional as F

from ..training import architectures, distributed
from ..training.distillation import Distorted, distillation_loss
from ..training.loop import Loss, adam, flushed_denormals, train_step
from ..training.splits import Dataset
from ..training.weights import placed
from .options import CommonOptions, PruningOptions, SharingOptions
from .stages import schedule

TRIED, LEAST, LONG = 20, 3, 1.0  # steps, of slow ones fewer, in seconds; the first does not count


class Part(NamedTuple):
    """Epochs of an architecture; `taught`, by a teacher that answers anew in every step."""

    epochs: int
    arch: str
    taught: bool = False


def parts(
    arch: str, options: PruningOptions | SharingOptions, teacher: str | None = None
) -> list[Part]:
    """What a stage trains; `teacher`: another architecture, which pruning trains first."""
    taught = options.teacher != "none" and not options.teacher_copies
    if isinstance(options, SharingOptions):
        found = [Part(options.finetune_epochs, arch, taught)]
    else:
        gradual = options.prune_epochs if options.density is not None else 0
        found = [
            Part(options.epochs, arch),
            Part(options.epochs if teacher else 0, teacher or arch),
            Part(gradual + options.retrain_epochs, arch, taught),
        ]
    return [part for part in found if part.epochs]


@flushed_denormals()
def seconds_of_a_step(
    part: Part, dataset: Dataset, options: CommonOptions, device: torch.device | str
) -> float:
    """The median of some steps of a model that is thrown away; torch draws as it would have."""
    planned = schedule(options, 1)
    with torch.random.fork_rng():
        model, teacher = (placed(architectures.build(part.arch), device) for _ in range(2))
        how = (teacher, planned.amp) if part.taught else ()
        architectures.check_fits(model, part.arch, dataset)
        model.train()
        batches = Distorted(dataset.train, options.distortion, *how).batches(
            planned.batch_size, shuffle=True, shard=distributed.shard()
        )
        optimizer = adam(model.parameters(), 1e-6)
        loss: Loss = distillation_loss if part.taught else F.cross_entropy
        took, start = [], time.perf_counter()
        for inputs, targets in islice(batches, TRIED):
            value = train_step(model, optimizer, loss, inputs, targets, planned.amp)
            value.item()  # a GPU has done all of it then
            now = time.perf_counter()
            took.append(now - start)
            start = now
            if len(took) >= LEAST and sum(took) > LONG:
                break
    return median(took[1:] or took)


def expected(
    arch: str,
    dataset: Dataset,
    stages: Sequence[PruningOptions | SharingOptions],
    device: torch.device | str,
    teacher: str | None = None,
) -> tuple[float, int]:
    """(seconds, epochs) of all training in these stages, whose options are numbers."""
    seconds, epochs, known = 0.0, 0, {}
    for options in stages:
        steps = schedule(options, 1).steps_per_epoch(len(dataset.train))
        for part in parts(arch, options, teacher):
            key = part._replace(epochs=1)
            if key not in known:
                known[key] = seconds_of_a_step(part, dataset, options, device)
            seconds += part.epochs * steps * known[key]
            epochs += part.epochs
    return seconds, epochs


def text(seconds: float) -> str:
    """Two minutes are told in seconds, two hours in minutes."""
    for size, name in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}" if size > 60 else f"{seconds / size:.0f} {name}"
    return f"{round(seconds)} seconds" if seconds >= 1.5 else "a second"
