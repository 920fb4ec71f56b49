"""Train and evaluate: one loop for dense training, retraining and centroid fine-tuning."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from net.data import Dataset, Split, distort


@dataclass
class Recipe:
    """How one phase trains.  `lr` is the peak of a cosine that falls to zero over the phase."""

    epochs: int
    batch_size: int
    lr: float
    dropout: float = 0.0
    distortion: float = 0.0


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, batch_size: int = 1000) -> tuple[float, float]:
    """(mean cross-entropy in nats, top-1 error in percent) of `model` on `split`."""
    model.eval()
    loss, wrong = 0.0, 0
    for images, labels in split.batches(batch_size):
        logits = model(images)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        wrong += (logits.argmax(1) != labels).sum().item()
    return loss / len(split), 100 * wrong / len(split)


def fit(
    model: nn.Module,
    parameters,
    data: Dataset,
    recipe: Recipe,
    *,
    phase: str,
    log,
    after_backward=None,
    after_step=None,
    progress=None,
) -> None:
    """Minimise the cross-entropy on `data.train` over `parameters` with Adam.

    `after_backward()` and `after_step(fraction of the phase done, learning rate)` are called in
    every step; `progress` keeps what a killed run needs to go on (net.progress).
    """
    optimizer = torch.optim.Adam(parameters, lr=recipe.lr, fused=True)
    steps_per_epoch = math.ceil(len(data.train) / recipe.batch_size)
    steps = recipe.epochs * steps_per_epoch
    set_dropout(model, recipe.dropout)
    first = progress.restore(phase, model, optimizer) if progress else 0
    for epoch in range(first, recipe.epochs):
        model.train()
        total = torch.zeros((), device=data.train.images.device)
        bar = tqdm(
            data.train.batches(recipe.batch_size, shuffle=True),
            desc=f"{phase} {epoch + 1}/{recipe.epochs}",
            total=steps_per_epoch,
            leave=False,
            disable=None,  # none where stderr is no terminal
        )
        for i, (images, labels) in enumerate(bar):
            step = epoch * steps_per_epoch + i
            lr = learning_rate(step, steps, recipe.lr)
            optimizer.param_groups[0]["lr"] = lr
            if recipe.distortion:
                images = distort(images, recipe.distortion)
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            if after_backward:
                after_backward()
            optimizer.step()
            if after_step:
                after_step((step + 1) / steps, lr)
            total += loss.detach()
            if (i + 1) % log.interval == 0:
                log.batch(phase, epoch + 1, i + 1, loss.item(), bar)
        validation_loss, error = evaluate(model, data.validation)
        log.epoch(
            phase, epoch + 1, recipe.epochs, total.item() / steps_per_epoch, validation_loss, error
        )
        if progress:
            progress.save(phase, epoch + 1, model, optimizer)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Half a cosine from `peak` to 0, after a linear rise over the first tenth of the steps."""
    warmup = max(1, steps // 10)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def set_dropout(model: nn.Module, p: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
