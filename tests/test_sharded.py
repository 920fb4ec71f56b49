"""Pruner and WeightSharing on models that several processes divide, beside one process alone.

In float64 here: gradients that were added up in another order then differ so little that no mask
does.
"""

import contextlib
import re
import warnings

import pytest
import torch
from torch import distributed, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import net
from net.errors import UserError
from net.sharded import full, kth_greatest, local, put, summed, total, union
from tests import gloo

WORDS, WIDTH, BATCH, BITS, DENSITY = 20, 6, 8, 2, 0.4
TEXT = torch.arange(400).view(40, 10) ** 2 % 7 % WORDS


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.mixed = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 9)
        self.down = nn.Linear(9, WIDTH)

    def forward(self, x):
        so_far = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        x = x + self.mixed(self.norm(x).cumsum(1) / so_far)
        return x + self.down(self.up(x).relu())


class Decoder(nn.Module):
    """Two blocks, and a head of three rows: of four processes, one has none of them."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.narrow = nn.Linear(WIDTH, 3)
        self.head = nn.Linear(3, WORDS, bias=False)

    def forward(self, words):
        x = self.embedding(words)
        for block in self.blocks:
            x = block(x)
        return self.head(self.narrow(x))

    def loss(self, words):
        logits = self(words[:, :-1]).flatten(0, 1)
        return nn.functional.cross_entropy(logits.double(), words[:, 1:].flatten())


def decoder(dtype=torch.float64):
    torch.manual_seed(0)
    return Decoder().to(dtype)


def divided(model, **options):
    for block in model.blocks:
        fully_shard(block, **options)
    return fully_shard(model, **options)


def batch(i, rank=0, processes=1):
    return TEXT[(torch.arange(BATCH) + i * BATCH) % len(TEXT)][rank::processes]


def optimizer_of(parameters):
    return torch.optim.AdamW(parameters, 1e-2, foreach=True)


def loss_of(model, words):
    return model.loss(words)


def train(model, optimizer, steps, processes=1, rank=0, loss=loss_of):
    """Yields after each step; the gradients are those of the whole batch."""
    for i in steps:
        optimizer.zero_grad()
        loss(model, batch(i, rank, processes)).backward()
        optimizer.step()
        yield i


def whole(tensors):
    return {name: full(each.detach()).clone() for name, each in tensors.items()}


def numbers(sharing):
    state = sharing.state_dict()["tensors"]
    return whole({name: each["numbers"] for name, each in state.items()})


def centroids(sharing):
    return whole({name: each.centroids for name, each in sharing.tensors.items()})


def pruned_and_shared(model, rank=0, processes=1, steps=6, reassign=0, loss=loss_of):
    """Everything that is compared, whole; zeros and values are looked at after every step."""
    pruner = net.Pruner(model, density=DENSITY, steps=steps)
    optimizer = optimizer_of(model.parameters())
    pruner.attach(optimizer)
    masks = []
    for _ in train(model, optimizer, range(steps), processes, rank, loss):
        for name, weight in pruner.weights():
            assert not local(weight.detach())[~local(pruner.masks[name])].any()
        masks.append(whole(pruner.masks))
    with torch.no_grad():
        loss(model, batch(0))  # leaves the root of fully_shard gathered
    pruner.detach()

    sharing = net.WeightSharing(model, bits=BITS, reassign=reassign)
    optimizer = optimizer_of(sharing.parameters())
    sharing.attach(optimizer)
    for _ in train(model, optimizer, range(steps, 2 * steps), processes, rank, loss):
        for name in sharing.tensors:
            weight = full(model.state_dict()[name])
            assert len(weight[weight != 0].unique()) <= 2**BITS
            if name in pruner.masks:
                assert not weight[~full(pruner.masks[name])].any()
    nn.utils.clip_grad_norm_(sharing.parameters(), 1.0)
    sharing.detach()
    return {
        "masks": masks,
        "numbers": numbers(sharing),
        "centroids": centroids(sharing),
        "model": whole(model.state_dict()),
    }


def assert_same(one, other, tolerance=1e-9):
    for before, after in zip(one["masks"], other["masks"], strict=True):
        assert all(torch.equal(mask, after[name]) for name, mask in before.items())
    assert all(torch.equal(each, other["numbers"][name]) for name, each in one["numbers"].items())
    for what in ("centroids", "model"):
        assert one[what].keys() == other[what].keys()
        for name, each in one[what].items():
            torch.testing.assert_close(other[what][name], each, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def alone():
    return pruned_and_shared(decoder())


def fsdp(rank, processes):
    return pruned_and_shared(divided(decoder()), rank, processes)


@pytest.mark.parametrize(
    "processes", [2, pytest.param(4, marks=pytest.mark.exhaustive, id="one without rows")]
)
def test_the_same_as_one_process(alone, processes, tmp_path):
    for found in gloo.run(fsdp, processes, tmp_path, processes):
        assert_same(alone, found)
