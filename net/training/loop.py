"""Train and evaluate: one loop for dense training, pruning, retraining and fine-tuning."""

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from . import distributed


@dataclass
class Recipe:
    """How one phase trains.  `lr` is the peak of a cosine that falls to zero over the phase."""

    epochs: int
    batch_size: int  # of all processes together
    lr: float
    dropout: float = 0.0
    amp: bool = False  # matrix products in bfloat16, which needs no scaling of the loss


class Step(NamedTuple):
    """What a hook after an optimiser step may want to know."""

    done_before: float  # fraction of the phase before this step
    done: float  # and after it
    lr: float  # of the first parameter group
    optimizer: torch.optim.Optimizer


@torch.no_grad()
def evaluate(model: nn.Module, split, batch_size: int = 1000) -> tuple[float, float]:
    """(mean cross-entropy in nats, top-1 error in percent) of `model` on `split`."""
    model.eval()
    loss, wrong = 0.0, 0
    for images, labels in split.batches(batch_size, shard=distributed.shard()):
        logits = model(images)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        wrong += (logits.argmax(1) != labels).sum().item()
    loss, wrong = distributed.total(loss, wrong)
    return loss / len(split), 100 * wrong / len(split)


@contextmanager
def flushed_denormals():
    """Adam's averages of pruned weights decay into denormals, which a CPU handles slowly."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:  # other code of the process may count on them
        torch.set_flush_denormal(False)


@flushed_denormals()
def fit(
    model: nn.Module,
    parameters,
    train,
    validation,
    recipe: Recipe,
    *,
    phase: str,
    log,
    loss_of=F.cross_entropy,
    after_backward=None,
    after_step=None,
    progress=None,
) -> None:
    """Minimise `loss_of(logits, target)` over the batches of `train` with Adam.

    `parameters` are tensors or Adam's parameter groups, in which "lr_factor" scales the learning
    rate.  `after_backward()` and `after_step(Step)` are called in every step; `progress` keeps what
    a killed run needs to go on (net.training.resume).  `validation` is evaluated after every epoch.
    """
    optimizer = torch.optim.Adam(parameters, lr=recipe.lr, fused=True)
    steps_per_epoch = math.ceil(len(train) / recipe.batch_size)
    steps = recipe.epochs * steps_per_epoch
    set_dropout(model, recipe.dropout)
    first = progress.restore(phase, recipe.epochs, model, optimizer) if progress else 0
    network = distributed.parallel(model) if first < recipe.epochs else model
    device = next(model.parameters()).device.type
    for epoch in range(first, recipe.epochs):
        model.train()
        total = 0.0
        bar = tqdm(
            train.batches(recipe.batch_size, shuffle=True, shard=distributed.shard()),
            desc=f"{phase} {epoch + 1}/{recipe.epochs}",
            total=steps_per_epoch,
            leave=False,
            disable=None,  # none where stderr is no terminal
        )
        for i, (images, target) in enumerate(bar):
            number = epoch * steps_per_epoch + i
            lr = set_learning_rate(optimizer, learning_rate(number, steps, recipe.lr))
            with torch.autocast(device, torch.bfloat16, enabled=recipe.amp):
                loss = loss_of(network(images), target)
            optimizer.zero_grad()
            loss.backward()
            if after_backward:
                after_backward()
            optimizer.step()
            if after_step:
                after_step(Step(number / steps, (number + 1) / steps, lr, optimizer))
            total += loss.detach()  # a tensor: no wait for the device in every step
            if (i + 1) % log.interval == 0:
                log.batch(phase, epoch + 1, i + 1, loss.item(), bar)
        figures = evaluate(model, validation)
        log.epoch(phase, epoch + 1, recipe.epochs, float(total) / steps_per_epoch, *figures)
        if progress:
            progress.save(phase, epoch + 1, model, optimizer)
    if recipe.epochs and not (progress and progress.passed(phase)):
        measure_statistics(model, train, recipe.batch_size)
        distributed.agree(model)


@torch.no_grad()
def measure_statistics(model: nn.Module, train, batch_size: int) -> None:
    """Set what BatchNorm layers know of their inputs to plain averages over the batches of `train`.

    Their running averages lag behind weights that change, by thousands of steps in some networks
    (torchvision's MobileNets: 10 % error in training, 80 % in evaluation after a short one).
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
    model.train()
    for images, _ in train.batches(batch_size, shuffle=True):
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Half a cosine from `peak` to 0, after a linear rise over the first tenth of the steps."""
    warmup = max(1, steps // 10)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def set_learning_rate(optimizer, lr: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)
    return lr


def set_dropout(model: nn.Module, p: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
