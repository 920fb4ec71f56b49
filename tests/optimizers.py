"""The optimizers that Pruner and WeightSharing are tested with: {name: parameters -> optimizer}."""

from functools import partial

import torch
from torch.optim import SGD, Adam, AdamW


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023, algorithm 2: an optimizer that torch does not have."""

    def __init__(self, parameters, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    m = self.state[p].setdefault("m", torch.zeros_like(p))
                    p.sub_(group["lr"] * (0.9 * m + 0.1 * p.grad).sign())
                    m.lerp_(p.grad, 0.01)


OPTIMIZERS = {
    "sgd": partial(SGD, lr=1e-3, momentum=0.9, weight_decay=0.1),
    "adam": partial(Adam, lr=1e-2, weight_decay=0.1),
    "adamw": partial(AdamW, lr=1e-2),
    "fused": partial(Adam, lr=1e-2, fused=True),
    "lion": partial(Lion, lr=1e-3),
}
