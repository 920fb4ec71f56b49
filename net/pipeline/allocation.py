"""The fewest bits per layer that an error budget allows (`weight_share.py --bits auto`)."""

import numpy as np
import torch
from torch import nn

from ..parameters import compressible
from ..sharing import SharedTensor
from ..training.loop import evaluate
from ..training.splits import AnySplit

MOST_BITS = 8  # where the paper starts, too; more has never lowered the error


def choose_bits(
    model: nn.Module, validation: AnySplit, budget: float, init: str, seed: int
) -> dict[str, int]:
    """{weight name: bits} such that clustering raises the held-out error by at most `budget`.

    Greedy: from 8 bits each, take one bit at a time off the layer that saves the most bytes per
    rise of the held-out loss, until no layer can give one within the budget.  Clustering alone is
    tried; fine-tuning comes after the choice.  Leaves the weights of `model` as they were.
    """
    parameters, layers = dict(model.named_parameters()), list(compressible(model))
    exact = {name: parameters[name].detach().clone() for name in layers}
    shared = {}

    def cluster(name: str, bits: int) -> SharedTensor:
        if (name, bits) not in shared:
            shared[name, bits] = SharedTensor.clustered(exact[name], bits, init, seed)
        return shared[name, bits]

    def use(name: str, bits: int) -> None:
        cluster(name, bits).write(parameters[name])

    _, allowed = evaluate(model, validation)
    allowed += budget
    bits = dict.fromkeys(layers, MOST_BITS)
    for name in layers:
        use(name, MOST_BITS)
    loss, _ = evaluate(model, validation)
    while True:
        steps = []
        for name in (n for n in layers if bits[n] > 1):
            use(name, bits[name] - 1)
            trial_loss, error = evaluate(model, validation)
            use(name, bits[name])
            saved = coded_bits(cluster(name, bits[name])) - coded_bits(
                cluster(name, bits[name] - 1)
            )
            if error <= allowed:
                steps.append((saved / max(trial_loss - loss, 1e-6), name, trial_loss))
        if not steps:
            break
        _, name, loss = max(steps)
        bits[name] -= 1
        use(name, bits[name])
    with torch.no_grad():
        for name in layers:
            parameters[name].copy_(exact[name])
    return bits


def coded_bits(shared: SharedTensor) -> float:
    """What the values take after Huffman coding, about: their entropy and a 16-bit codebook."""
    counts = np.bincount(shared.labels.cpu().numpy())
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum()) + 16 * len(counts)
