"""Pruner and WeightSharing on models that several processes divide, beside one process alone.

In float64 here: gradients that were added up in another order then differ so little that no mask
does.
"""

import re

import pytest
import torch
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
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
HALF, STEPS = 2, 4  # of pruning, and as many of sharing
TEXT = torch.randint(WORDS, (40, 10), generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.mixed = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 10)
        self.down = nn.Linear(10, WIDTH)

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
    parameters = list(parameters)
    alike = len({isinstance(each, DTensor) for each in parameters}) == 1
    return torch.optim.AdamW(parameters, 1e-2, foreach=alike)


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


def pruned_and_shared(model, rank=0, processes=1, steps=STEPS, reassign=0, loss=loss_of):
    """Everything that is compared, whole; zeros and values are looked at after every step."""
    pruner = net.Pruner(model, density=DENSITY, steps=steps)
    optimizer = optimizer_of(model.parameters())
    pruner.attach(optimizer)
    masks = []
    for i in train(model, optimizer, range(steps), processes, rank, loss):
        for name, weight in pruner.weights():
            assert not local(weight.detach())[~local(pruner.masks[name])].any()
        if steps < 10 or i % 10 == 9:
            masks.append(whole(pruner.masks))
    with torch.no_grad():
        model(batch(0))  # leaves the root of fully_shard gathered
    pruner.detach()

    sharing = net.WeightSharing(model, bits=BITS, reassign=reassign)
    optimizer = optimizer_of(sharing.parameters())
    sharing.attach(optimizer)
    for _ in train(model, optimizer, range(steps, 2 * steps), processes, rank, loss):
        state = model.state_dict()
        for name, shared in sharing.tensors.items():
            weight, values = local(state[name]), shared.stored_centroids()
            assert len(values) <= 2**BITS
            assert torch.isin(weight[weight != 0], values).all()
            if name in pruner.masks:
                assert torch.equal(weight != 0, local(pruner.masks[name]))
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


# Ways to divide a model and to train it


def fsdp(rank, processes=2):
    return pruned_and_shared(divided(decoder()), rank, processes)


def of_four(rank):
    return fsdp(rank, 4)


def accumulated(rank):
    """Two batches to a step; the gradients of the first stay where they are. Checkpointed, too,
    wrapped one by one, so that a layer's name is not that of the module that has its weight."""
    model = decoder()
    for block in model.blocks:
        block.up = checkpoint_wrapper(block.up)
    model.blocks[1] = checkpoint_wrapper(model.blocks[1])
    model = divided(model)

    def loss(model, words):
        first, second = words.chunk(2)
        model.set_requires_gradient_sync(False)
        (model.loss(first) / 2).backward()
        model.set_requires_gradient_sync(True)
        return model.loss(second) / 2

    return pruned_and_shared(model, rank, 2, loss=loss)


def compiled(rank):
    model = divided(decoder())
    for block in model.blocks:
        block.compile(backend="eager")
    return pruned_and_shared(model, rank, 2)


def in_tensor_parallel(rank):
    """Rows of one layer, columns of the next, and ordinary tensors beside them."""
    model = decoder()
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    for block in model.blocks:
        parallelize_module(block, init_device_mesh("cpu", (2,)), plan)
    return pruned_and_shared(model)


def replicated_groups(rank):
    """Hybrid: two groups of two; each has the whole model, and half of the batch."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "parts"))
    return pruned_and_shared(divided(decoder(), mesh=mesh), rank, 4)


def reassigned(rank):
    return pruned_and_shared(divided(decoder()), rank, 2, reassign=2)


def in_bfloat16(rank):
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = divided(decoder(torch.float32), mp_policy=policy)
    return pruned_and_shared(model, rank, 2)


def at_once(made):
    """Masks in float32, whose standard deviation is that of the whole."""
    ways = ({"sensitivity": 1.0}, {"density": 0.3}, {"density": {"*": 0.2, "blocks.0.*": 0.5}})
    return [whole(net.Pruner(made(), **way).masks) for way in ways]


def scaled_and_replaced(model, rank=0, processes=1):
    """A scaler and clipping; then the weights of an earlier epoch, which are trained on."""
    sharing = net.WeightSharing(model, bits=BITS)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    optimizer = optimizer_of(sharing.parameters())
    sharing.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    for i in range(3):
        optimizer.zero_grad()
        scaler.scale(model.loss(batch(i, rank, processes))).backward()
        sharing.gather_gradients()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(list(sharing.parameters()), 0.5)
        scaler.step(optimizer)
        scaler.update()
    model.load_state_dict(before)
    list(train(model, optimizer, range(3), processes, rank))
    sharing.detach()
    return whole(model.state_dict())


def everything(rank, folder):
    """All that two processes do, one after the other: to start them takes longer."""
    ways = (fsdp, accumulated, in_tensor_parallel, reassigned, in_bfloat16)
    found = {way.__name__: way(rank) for way in ways}
    found["at_once"] = at_once(lambda: divided(decoder(torch.float32)))
    found["replaced"] = scaled_and_replaced(divided(decoder()), rank, 2)
    sums_and_ranks(rank)
    begun(rank, folder, 2)
    return {**found, "errors": errors(rank, folder)}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes ends with, and the folder of their checkpoints."""
    folder = str(tmp_path_factory.mktemp("two"))
    return gloo.run(everything, 2, folder, folder), folder


@pytest.mark.parametrize("way", ["fsdp", "accumulated", "in_tensor_parallel"])
def test_the_same_as_one_process(alone, two, way):
    for found in two[0]:
        assert_same(alone, found[way])


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("way", "processes"), [(of_four, 4), (replicated_groups, 4), (compiled, 2)]
)
def test_the_same_in_other_ways(alone, way, processes, tmp_path):
    for found in gloo.run(way, processes, tmp_path):
        assert_same(alone, found)


def test_weights_that_change_their_centroid(two):
    expected = pruned_and_shared(decoder(), reassign=2)
    for found in two[0]:
        assert_same(expected, found["reassigned"])


def test_masks_at_once(two):
    expected = at_once(lambda: decoder(torch.float32))
    for found in two[0]:
        for masks, same in zip(found["at_once"], expected, strict=True):
            assert all(torch.equal(mask, same[name]) for name, mask in masks.items())


def test_a_scaler_and_weights_that_were_replaced(two):
    expected = scaled_and_replaced(decoder())
    for found in two[0]:
        for name, each in found["replaced"].items():
            torch.testing.assert_close(each, expected[name], rtol=1e-7, atol=1e-12)


def test_mixed_precision_has_masters_in_float32(two):
    for found in (each["in_bfloat16"] for each in two[0]):
        masks = found["masks"][-1].values()
        every = sum(mask.numel() for mask in masks)
        assert sum(int(mask.sum()) for mask in masks) == round(DENSITY * every)
        assert {each.dtype for each in found["model"].values()} == {torch.float32}
        weight = found["model"]["blocks.0.up.weight"]
        # Not rounded to the eight bits of bfloat16: the centroids have more.
        assert not torch.equal(weight, weight.bfloat16().float())


# Checkpoints


def begun(rank, folder, processes):
    """Half of the pruning and half of the sharing, each saved."""
    model = divided(decoder())
    pruner = net.Pruner(model, density=DENSITY, steps=STEPS)
    optimizer = optimizer_of(model.parameters())
    pruner.attach(optimizer)
    list(train(model, optimizer, range(HALF), processes, rank))
    own, moments = get_state_dict(model, optimizer)
    state = {"model": own, "optimizer": moments, "pruner": pruner.state_dict()}
    dcp.save(state, checkpoint_id=f"{folder}/pruning")
    list(train(model, optimizer, range(HALF, STEPS), processes, rank))
    pruner.detach()

    sharing = net.WeightSharing(model, bits=BITS)
    optimizer = optimizer_of(sharing.parameters())
    sharing.attach(optimizer)
    list(train(model, optimizer, range(STEPS, STEPS + HALF), processes, rank))
    state = {"model": model.state_dict(), "sharing": sharing, "optimizer": optimizer.state_dict()}
    dcp.save(state, checkpoint_id=f"{folder}/sharing")


def resumed(rank, folder, processes):
    def fresh():
        return divided(decoder()) if processes > 1 else decoder()

    model = fresh()
    pruner = net.Pruner(model, density=DENSITY, steps=STEPS)
    optimizer = optimizer_of(model.parameters())
    own, moments = get_state_dict(model, optimizer)
    state = {"model": own, "optimizer": moments, "pruner": pruner.state_dict()}
    dcp.load(state, checkpoint_id=f"{folder}/pruning")
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )
    pruner.load_state_dict(state["pruner"])
    pruner.attach(optimizer)
    list(train(model, optimizer, range(HALF, STEPS), processes, rank))
    pruner.detach()

    model = fresh()
    dcp.load({"model": model.state_dict()}, checkpoint_id=f"{folder}/sharing")
    sharing = net.WeightSharing(model, bits=BITS)
    dcp.load({"sharing": sharing}, checkpoint_id=f"{folder}/sharing")
    optimizer = optimizer_of(sharing.parameters())
    for each in sharing.parameters():  # an optimizer has no moments before its first step
        each.grad = torch.zeros_like(each)
    optimizer.step()
    state = {"optimizer": optimizer.state_dict()}
    dcp.load(state, checkpoint_id=f"{folder}/sharing")
    dcp.load({"model": model.state_dict(), "sharing": sharing}, checkpoint_id=f"{folder}/sharing")
    optimizer.load_state_dict(state["optimizer"])
    sharing.attach(optimizer)
    list(train(model, optimizer, range(STEPS + HALF, 2 * STEPS), processes, rank))
    sharing.detach()
    return {
        "masks": [whole(pruner.masks)],
        "numbers": numbers(sharing),
        "centroids": centroids(sharing),
        "model": whole(model.state_dict()),
    }


@pytest.mark.filterwarnings("ignore")  # of one process, that it is one
def test_resumed_by_one_process(alone, two):
    assert_same({**alone, "masks": alone["masks"][-1:]}, resumed(0, two[1], 1))


@pytest.mark.exhaustive
def test_saved_by_four_and_resumed_by_two(alone, tmp_path):
    gloo.run(begun, 4, tmp_path, str(tmp_path), 4)
    for found in gloo.run(resumed, 2, tmp_path, str(tmp_path), 2):
        assert_same({**alone, "masks": alone["masks"][-1:]}, found)


# Errors are the same on every process


def refused(call) -> str:
    try:
        call()
    except (UserError, ValueError) as error:
        return str(error)
    return ""


def errors(rank, folder):
    found = {}
    model = decoder()
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("parts", "parallel"))
    for block in model.blocks:
        parallelize_module(block, mesh["parallel"], {"up": ColwiseParallel()})
    divided(model, mesh=mesh["parts"])
    found["prune twice divided"] = refused(lambda: net.Pruner(model, sensitivity=1.0))
    found["share twice divided"] = refused(lambda: net.WeightSharing(model))

    model = divided(decoder())
    weight = model.blocks[0].mixed.weight
    pruner = net.Pruner(model, density=DENSITY, steps=1)
    found["calibrate"] = refused(
        lambda: net.WeightSharing(model, "auto", calibration=[batch(0)], final=True)
    )
    found["encode"] = refused(lambda: net.encoding.save(model.state_dict(), f"{folder}/x.dc"))
    gathered = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    if rank == 0:
        assert net.encoding.save(gathered, f"{folder}/x.dc")
    found["share a state"] = refused(lambda: net.SharedState(model.state_dict()))
    found["mask a whole copy"] = refused(lambda: pruner.apply_to(decoder()))
    optimizer = optimizer_of(model.parameters())
    pruner.attach(optimizer)
    model.loss(batch(0, rank, 2)).backward()
    local(weight.grad)[:1] = float("inf") if rank == 0 else 0.0
    found["step"] = refused(optimizer.step)

    local(weight)[:1] = float("nan") if rank == 0 else 0.0
    found["prune"] = refused(lambda: net.Pruner(model, sensitivity=1.0))
    found["share"] = refused(lambda: net.WeightSharing(model))

    model = decoder()
    pruner = net.Pruner(model, sensitivity=1.0)
    divided(model)
    found["divided later"] = refused(pruner.apply)
    return found


def test_errors_are_one_line_on_every_process(two):
    one, other = (found["errors"] for found in two[0])
    for name, message in {
        "prune twice divided": r"'blocks.0.up.weight': a DTensor with the placements .*only",
        "share twice divided": r"'blocks.0.up.weight': a DTensor with the placements .*only",
        "calibrate": "is divided among processes, and calibration takes a whole model: ",
        "encode": "a DTensor, of which every process has a part; gather it first, as .*full_state",
        "share a state": "cannot share .*a DTensor, of which every process has a part; gather",
        "mask a whole copy": r"this model has no .* of the shape .* and its placements",
        "step": r"cannot prune blocks\.0\.mixed\.weight: not all of its values are finite",
        "prune": r"cannot prune blocks\.0\.mixed\.weight: not all of its values are finite",
        "share": r"cannot share blocks\.0\.mixed\.weight: .*finite",
        "divided later": "the model has no .* any more, or has divided it since; make a new",
    }.items():
        assert one[name] == other[name]
        assert re.search(message, one[name]), (name, one[name])
        assert "\n" not in one[name]


# What the others stand on


def sums_and_ranks(rank):
    mesh = init_device_mesh("cpu", (2,))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(7, 5, generator=generator).relu()
    tensors = [drawn, drawn[:1] * 3, torch.ones(4, 3), -drawn]
    laid = [distribute_tensor(each, mesh, [Shard(0)]) for each in tensors[:2]]
    laid += [distribute_tensor(tensors[2], mesh, [Shard(1)])]
    laid += [distribute_tensor(tensors[3], mesh, [Replicate()])]
    every = torch.cat([each.flatten() for each in tensors])
    for k in (1, 2, 12, 17, len(every)):
        expected = max(0.0, float(every.topk(k).values[-1]))
        assert kth_greatest(laid, k) == expected
    for one, tensor in zip(laid, tensors, strict=True):
        for axes in ((), (0,), (1,)):
            expected = tensor.sum(axes or (0, 1), keepdim=True)
            torch.testing.assert_close(full(total(one, axes)), expected)
    counts = [local(each).numel() * torch.ones(2) for each in laid]
    counted = summed([*counts, torch.ones(1)], [*laid, drawn])
    assert [int(each[0]) for each in counted] == [35, 5, 12, 35, 1]
    assert union(torch.tensor([2.0, 1.0 + rank]), laid[0]).tolist() == [1.0, 2.0]
    put(laid[0], drawn + 1)
    assert torch.equal(full(laid[0]), drawn + 1)


# As users do: a decoder of transformers', 200 steps of each


def llama(rank, processes, steps):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        **{"vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 36, "use_cache": False},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    )
    model = LlamaForCausalLM(config).double()
    if processes > 1:
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    return pruned_and_shared(
        *(model, rank, processes, steps),
        loss=lambda model, words: model(input_ids=words, labels=words).loss,
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("processes", [2, 4])
def test_200_steps_of_a_decoder_of_transformers(processes, tmp_path):
    pytest.importorskip("transformers")
    alone = llama(0, 1, 200)
    for found in gloo.run(llama, processes, tmp_path, processes, 200, longest=3600):
        assert_same(alone, found, 1e-5)
