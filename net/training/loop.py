"""Train and evaluate: one loop for dense training, pruning, retraining and fine-tuning."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import UserError
from ..extras import ProgressBar
from ..modules import copied
from . import distributed
from .log import Log
from .resume import PhaseProgress
from .splits import Batches, batches_in

MEASURED = 10_000  # inputs of BatchNorm's statistics; the mean of more is hardly another

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Schedule:
    """How long one phase trains."""

    epochs: int
    batch_size: int  # of all processes together
    amp: bool = False  # matrix products in bfloat16

    def steps_per_epoch(self, examples: int) -> int:
        return batches_in(examples, self.batch_size, distributed.shard()[1])


def batch_size_for(examples: int, largest: int, processes: int = 1) -> int:
    """Examples per step that suit a training set of so many, `largest` for a large one.

    Adam moves a weight by about its learning rate in each step, however few examples an epoch has:
    what counts is the number of steps. Hence 200 of them an epoch at least, but in batches of 32 at
    least, the usual size for a small set; 40 an epoch at least where even these are too many.
    """
    # BatchNorm cannot train on one input: in batches of 3 or more none is left over.
    return min(largest, max(3 * processes, examples // 200, min(32, examples // 40)))


def adam(parameters: Iterable[Any], lr: float) -> torch.optim.Adam:
    """The optimizer of every phase, for parameters or groups of them."""
    return torch.optim.Adam(parameters, lr=lr, fused=True)


def in_bfloat16(device: torch.device, amp: bool | Literal["auto"]) -> bool:
    """Whether matrix products are in bfloat16; "auto": where `device` is a processor with
    instructions for it.

    A ResNet-20 trains 1.6 times as fast there. An H100 is no faster in it, since launching the
    kernels of so small networks takes most of the time. A torch that is too old to tell is taken
    to have none. There is no need to scale the loss: the exponents reach as far as float32's.
    """
    if amp != "auto":
        return amp
    if device.type != "cpu":
        return False
    able: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


@torch.no_grad()
def evaluate(model: nn.Module, split: Batches, batch_size: int = 1000) -> tuple[float, float]:
    """(mean cross-entropy in nats, top-1 error in percent) of `model` on `split`."""
    model.eval()
    loss, wrong = 0.0, 0.0
    for inputs, labels in split.batches(batch_size, shard=distributed.shard()):
        logits = model(inputs)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        wrong += (logits.argmax(1) != labels).sum().item()
    loss, wrong = distributed.total(loss, wrong)
    return loss / len(split), 100 * wrong / len(split)


@torch.no_grad()
def outputs(
    model: nn.Module, split: Batches, batch_size: int = 1000
) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits float32 [N, classes], labels int64 [N]) of `model` on the whole of `split`."""
    model.eval()
    batches = [(model(inputs), labels) for inputs, labels in split.batches(batch_size)]
    logits, labels = zip(*batches, strict=True)
    return torch.cat(logits).float(), torch.cat(labels)


def error_percent(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """How many answers are not those of the labels [N], in percent; logits [N, classes]."""
    return 100 * (logits.argmax(1) != labels).double().mean().item()


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Adam's averages of pruned weights decay into denormals, which a CPU handles slowly."""
    least = torch.tensor(5e-324, dtype=torch.float64, device="cpu")
    before = bool(least * 1 == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:  # other code of the process may count on them
        torch.set_flush_denormal(before)


@flushed_denormals()
def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: Batches,
    schedule: Schedule,
    *,
    loss: Loss = F.cross_entropy,
    validate: Callable[[], tuple[float, float]] | None = None,
    phase: str = "train",
    log: Log | None = None,
    progress: PhaseProgress | None = None,
) -> None:
    """Minimise `loss(outputs, targets)` over the batches of `train` (net.training.splits).

    The learning rate of every group of `optimizer` rises to the group's own and falls to zero over
    the phase (`learning_rate`). What else is to happen in a step hangs on the optimizer's hooks, as
    net.Pruner does. `validate()` gives the held-out loss and error after every epoch; `progress`
    keeps what a killed run needs to go on.
    """
    log = log or Log(silent=True)
    steps_per_epoch = schedule.steps_per_epoch(len(train))
    steps = schedule.epochs * steps_per_epoch
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    first = progress.restore() if progress else 0
    network = model
    if first < schedule.epochs:
        network = distributed.parallel(model, partial(leaves_some_out, model, train))
    for epoch in range(first, schedule.epochs):
        model.train()
        total: float | torch.Tensor = 0.0
        bar = ProgressBar(
            train.batches(schedule.batch_size, shuffle=True, shard=distributed.shard()),
            desc=f"{phase} {epoch + 1}/{schedule.epochs}",
            total=steps_per_epoch,
            disable=True if log.silent else None,  # None: none where stderr is no terminal
        )
        for i, (inputs, targets) in enumerate(bar):
            for group in optimizer.param_groups:
                step = epoch * steps_per_epoch + i
                group["lr"] = learning_rate(step, steps, group["initial_lr"])
            value = train_step(network, optimizer, loss, inputs, targets, schedule.amp)
            total += value  # a tensor: no wait for the device in every step
            if (i + 1) % log.interval == 0:
                log.batch(phase, epoch + 1, i + 1, value.item(), bar)
        figures = validate() if validate else None
        log.epoch(phase, epoch + 1, schedule.epochs, float(total) / steps_per_epoch, figures)
        if progress:
            progress.save(epoch + 1)
    if schedule.epochs:
        measure_statistics(model, train, schedule.batch_size)
        distributed.agree(model)


def train_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    amp: bool,
) -> torch.Tensor:
    """One step of `optimizer` down `loss(outputs, targets)`; the loss before it, on the device.
    With `amp` matrix products are in bfloat16."""
    device = next(network.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=amp):
        try:
            found = network(inputs)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                "BatchNorm cannot train on one input at a time; give a larger --batch-size"
            ) from None
    # bfloat16 has too few digits for log-likelihoods.
    wide = torch.promote_types(found.dtype, torch.float32)
    value = loss(found.to(wide), targets)
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    return value.detach()


def leaves_some_out(model: nn.Module, train: Batches) -> bool:
    """Whether some parameter has no part in what the model answers, and so no gradient."""
    tried = copied(model).train()
    inputs, _ = next(iter(train.batches(3)))
    with torch.random.fork_rng():
        tried(inputs).float().sum().backward()
    return any(each.requires_grad and each.grad is None for each in tried.parameters())


@torch.no_grad()
def measure_statistics(model: nn.Module, train: Batches, batch_size: int) -> None:
    """Set what BatchNorm layers know of their inputs to plain averages over MEASURED of `train`.

    Their running averages lag behind weights that change, by thousands of steps in some networks
    (torchvision's MobileNets: 10 % error in training, 80 % in evaluation after a short one).
    """
    model.train()
    norms = {
        module: (module.momentum, copy.deepcopy(module.state_dict()))
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.track_running_stats
        and module.training  # not one that the model keeps as it is
    }
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
    batches = train.batches(batch_size, shuffle=True)
    for inputs, _ in islice(batches, math.ceil(MEASURED / batch_size)):
        model(inputs)
    for norm, (momentum, before) in norms.items():
        norm.momentum = momentum
        if not norm.num_batches_tracked:  # nothing came to it
            norm.load_state_dict(before)


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
