"""Both classes and the encoding in a training script of somebody else's, on one process and two.

What each class does by itself is in test_prune.py and test_sharing.py.
"""

import copy

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import net
from tests import gloo
from tests.optimizers import OPTIMIZERS
from tests.test_sharing import Tagger, autograd_gradients

DENSITY, STEPS, BITS = 0.3, 4, 3
TOKENS = torch.arange(60).view(12, 5) * 7 % 20


def check_zeros(model, pruner):
    for name, mask in pruner.masks.items():
        assert not model.get_parameter(name)[~mask].any(), name


def check_values(model, sharing):
    for name in sharing.tensors:
        weight = model.get_parameter(name)
        assert len(weight[weight != 0].unique()) <= 2**BITS, name


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "fused"])
def test_a_whole_script(name, tmp_path):
    """Prune gradually, share and encode; with autocast, and two batches to the step."""
    torch.manual_seed(0)
    model, make = Tagger(), OPTIMIZERS[name]

    def steps(optimizer, count):
        for _ in range(count):
            for part in TOKENS.chunk(2):
                # Not every processor has oneDNN's LSTM in bfloat16.
                with torch.autocast("cpu", torch.bfloat16), torch.backends.mkldnn.flags(False):
                    loss = model(part).square().mean()
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            yield

    pruner = net.Pruner(model, density=DENSITY, steps=STEPS)
    optimizer = make(model.parameters())
    pruner.attach(optimizer)
    for _ in steps(optimizer, STEPS + 2):
        check_zeros(model, pruner)
    pruner.detach()
    kept, weights = (sum(map(f, pruner.masks.values())) for f in (torch.sum, torch.numel))
    assert int(kept) == round(DENSITY * weights)

    sharing = net.WeightSharing(model, bits=BITS)
    optimizer = make(sharing.parameters())
    sharing.attach(optimizer)
    for _ in steps(optimizer, 3):
        check_zeros(model, pruner)
        check_values(model, sharing)
    sharing.detach()

    net.encoding.save(model.state_dict(), tmp_path)
    state, _ = net.encoding.load(tmp_path)
    assert all(torch.equal(tensor, state[n]) for n, tensor in model.state_dict().items())
    fresh = Tagger()
    fresh.load_state_dict(state)
    assert torch.equal(fresh(TOKENS), model(TOKENS))


# Two processes. Each draws its half of the tokens; gradients are averaged over both.


def one_of_two(rank: int) -> dict:
    return {before: train_in_company(rank, before) for before in (True, False)}


def train_in_company(rank: int, wrapped_before: bool) -> dict:
    """What this process ends with; `wrapped_before` both classes are made, or after that."""
    torch.manual_seed(0)
    model = Tagger()
    network = DistributedDataParallel(model) if wrapped_before else model

    def steps(network, optimizer, count):
        for _ in range(count):
            first, second = TOKENS[rank::2].chunk(2)
            with network.no_sync():
                network(first).square().sum().backward()
            network(second).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            yield

    pruner = net.Pruner(network, density=DENSITY, steps=STEPS)
    parallel = network if wrapped_before else DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(parallel.parameters(), 1e-2)
    pruner.attach(optimizer)
    for _ in steps(parallel, optimizer, STEPS + 1):
        check_zeros(model, pruner)
    pruner.detach()

    sharing = net.WeightSharing(network, bits=BITS, reassign=2)
    parallel = network if wrapped_before else DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(sharing.parameters(), 1e-2)
    sharing.attach(optimizer)
    gradients = []
    optimizer.register_step_pre_hook(
        lambda *_: gradients.append({n: t.centroids.grad for n, t in sharing.tensors.items()})
    )
    # On a copy: the gradients of the model itself belong to DistributedDataParallel.
    expected = autograd_gradients(copy.deepcopy(model), sharing, TOKENS)
    for _ in steps(parallel, optimizer, 3):
        check_zeros(model, pruner)
        check_values(model, sharing)
    sharing.detach()
    return {
        "state": model.state_dict(),
        "masks": pruner.masks,
        "labels": {name: tensor.labels for name, tensor in sharing.tensors.items()},
        "gradients": gradients[0],
        "expected": expected,
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """[what rank 0 ends with, what rank 1 does], by when the model was wrapped."""
    found = gloo.run(one_of_two, 2, tmp_path_factory.mktemp("ranks"))
    return {before: [each[before] for each in found] for before in (True, False)}


@pytest.mark.parametrize("wrapped_before", [True, False])
class TestTwoProcesses:
    @pytest.mark.parametrize("what", ["state", "masks", "labels"])
    def test_end_with_the_same_bits(self, ranks, wrapped_before, what):
        one, two = (each[what] for each in ranks[wrapped_before])
        assert one.keys() == two.keys()
        assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())

    def test_prune_to_the_density(self, ranks, wrapped_before):
        masks = ranks[wrapped_before][0]["masks"].values()
        assert sum(int(mask.sum()) for mask in masks) == round(
            DENSITY * sum(mask.numel() for mask in masks)
        )

    def test_give_centroids_the_gradient_over_the_whole_batch(self, ranks, wrapped_before):
        """That of autograd through centroids[labels], halved: the processes' gradients are
        averaged, and the loss of the whole batch is the sum of theirs."""
        for rank in ranks[wrapped_before]:
            for name, gradient in rank["gradients"].items():
                expected = rank["expected"][name] / 2
                assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-5), name


def test_it_is_the_same_when_the_model_is_wrapped_later(ranks):
    before, after = (ranks[when][0]["state"] for when in (True, False))
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
