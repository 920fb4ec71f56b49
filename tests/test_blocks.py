"""Models of repeated blocks, one of them in memory at a time: the same as with the whole model."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import net
from net import blocks, calibration, compression
from net.blocks import NoBlocks, OnDisk, Passage, Skeleton
from net.calibration import calibrate, calibrate_passages
from net.errors import UserError
from net.outputs import Unseen, answers
from net.parameters import compressible
from net.rounding import spread, steps
from net.samples import Samples
from net.sensitivity import traces


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8, bias=False)

    def forward(self, x, scale=1.0):
        return (x + self.down(self.up(x).relu()) * scale,)


class Decoder(nn.Module):
    """`way` is how the blocks are run."""

    def __init__(self, way="one after the other"):
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)
        self.way = way
        self.register_buffer("scale", torch.tensor(0.7), persistent=False)

    def forward(self, x):
        first, order = x, list(self.layers)
        if self.way == "twice":
            order += order
        if self.way == "backwards":
            order.reverse()
        if self.way == "not all":
            order.pop()
        for i, layer in enumerate(order):
            (x,) = layer(x, scale=self.scale)
            x.mul_(1.0)  # as a model may
            if self.way == "skipping" and i == 0:
                first = x
            if self.way == "skipping" and i == 2:
                x = x + first
        return self.head(self.norm(x))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Decoder().eval()


def skeleton_of(model):
    with blocks.without_parameters():
        found = Decoder(model.way)
    assert all(each.is_meta for each in found.parameters())
    assert found.scale == model.scale
    return Skeleton(found, model.state_dict())


def inputs():
    return [torch.randn(20, 8).cumsum(1) for _ in range(4)]


def test_modules_of_other_threads_have_their_parameters():
    with ThreadPoolExecutor(1) as pool, blocks.without_parameters():
        assert not pool.submit(nn.Linear, 2, 2).result().weight.is_meta
        assert nn.Linear(2, 2).weight.is_meta


def test_two_threads_make_skeletons_one_after_the_other():
    def other():
        with blocks.without_parameters():
            return nn.Linear(2, 2).weight.is_meta

    with ThreadPoolExecutor(1) as pool:
        with blocks.without_parameters():
            waits = pool.submit(other)
        assert waits.result()
    assert not nn.Linear(2, 2).weight.is_meta


@pytest.mark.parametrize("most", [0, 1 << 20])
def test_the_same_values_as_of_the_whole_model(model, monkeypatch, most):
    monkeypatch.setattr(blocks, "MOST_IN_MEMORY", most)
    monkeypatch.setattr(blocks, "device", lambda: torch.device("cpu"))
    kinds, batches = compressible(model), inputs()
    assert len(kinds) <= calibration.STAGES  # a run for each of them, both ways
    state = model.state_dict()
    sizes = steps({name: spread(state[name]) for name in kinds}, 1.0)
    whole, reasons = calibrate(model, batches, kinds, sizes, set(kinds))
    assert not reasons
    skeleton = skeleton_of(model)
    assert skeleton.blocks == ["layers.0", "layers.1", "layers.2"]
    pair = skeleton.passage(state), skeleton.passage(state)
    shared = OnDisk()
    samples = Samples(skeleton.model, batches)
    assert calibrate_passages(*pair, samples, kinds, sizes, set(kinds), shared) == {}
    assert shared.keys() == whole.keys()
    assert all(torch.equal(shared[name], whole[name]) for name in whole)


def test_one_block_is_in_memory_at_a_time_and_the_answers_are_the_same(model, monkeypatch):
    monkeypatch.setattr(blocks, "device", lambda: torch.device("cpu"))
    skeleton, batches = skeleton_of(model), inputs()
    passage = skeleton.passage(model.state_dict())
    for place in passage:
        there = {name for name, each in passage.model.named_parameters() if not each.is_meta}
        own = {name for name in there if name.startswith("layers")}
        assert own == {name for name in skeleton.names if name.startswith(f"layers.{place}.")}
        assert there > {"norm.weight", "head.weight"}
        for number, batch in enumerate(batches):
            output = passage(number, calibration.Call((batch,), {}), keep=True)
            assert (output is None) == (place < 3)
    samples = Samples(skeleton.model, batches)
    found = answers(skeleton.passage(model.state_dict()), samples)
    assert torch.equal(found.rows, answers(model, samples).rows)
    assert all(each.is_meta for each in skeleton.model.parameters())


class Tied(nn.Module):
    """What is in no block is reached from several places; one part only by the second output."""

    def __init__(self):
        super().__init__()
        self.token, self.mix = nn.Embedding(5, 8), nn.Linear(8, 8)
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.head, self.other = nn.Linear(8, 5), nn.Linear(8, 3)
        self.head.weight = self.token.weight

    def forward(self, tokens):
        x = self.token(tokens)
        scale = self.mix(x)
        for layer in self.layers:
            (x,) = layer(x, scale=scale)
        return self.head(x), self.other(x)


@pytest.mark.parametrize("most", [0, 1 << 20])
@pytest.mark.parametrize("kind", [Decoder, Tied])
def test_the_same_sensitivities_as_of_the_whole_model(monkeypatch, kind, most):
    monkeypatch.setattr(blocks, "MOST_IN_MEMORY", most)
    monkeypatch.setattr(blocks, "device", lambda: torch.device("cpu"))
    torch.manual_seed(0)
    model = kind().eval()
    with blocks.without_parameters():
        skeleton = Skeleton(kind(), model.state_dict())
    if kind is Tied:
        skeleton.model.head.weight = skeleton.model.token.weight
    given = inputs() if kind is Decoder else [torch.arange(40).reshape(20, 2) % 5]
    samples, names = Samples(model, given), compressible(model)
    whole, reason = traces(model, samples, names)
    assert not reason
    assert whole.keys() == names.keys()
    found, reason = traces(skeleton.passage(model.state_dict()), samples, names)
    assert not reason
    assert found == pytest.approx(whole, rel=1e-5)
    assert all(each.is_meta for each in skeleton.model.parameters())


def test_a_model_that_cannot_be_differentiated_block_by_block(model, monkeypatch):
    monkeypatch.setattr(Block, "forward", torch.no_grad()(Block.forward))
    passage = skeleton_of(model).passage(model.state_dict())
    found, reason = traces(passage, Samples(model, inputs()), ["layers.0.up.weight"])
    assert (found, reason) == ({}, "ValueError: no gradient reaches the weights")
    assert all(each.is_meta for each in passage.model.parameters())


@pytest.mark.parametrize("way", ["twice", "backwards", "not all"])
def test_blocks_in_another_order_are_refused(model, way):
    model.way = way
    skeleton = skeleton_of(model)
    with pytest.raises(Unseen, match="its blocks are not run once each, in their order"):
        answers(skeleton.passage(model.state_dict()), Samples(model, inputs()))


def test_an_answer_that_jumps_over_a_block_shows(model):
    model.way = "skipping"
    skeleton = skeleton_of(model)
    found = answers(skeleton.passage(model.state_dict()), Samples(model, inputs()))
    assert bool(found.rows.isnan().all())


def test_which_models_have_blocks(model):
    assert blocks.repeated(model) == ["layers.0", "layers.1", "layers.2"]
    assert blocks.repeated(nn.Sequential(model)) == [f"0.layers.{i}" for i in range(3)]
    for change in (
        lambda it: setattr(it, "head", nn.Linear(8, 200)),  # most parameters are outside
        lambda it: setattr(it.layers[1], "down", nn.Linear(16, 8)),  # a bias more
        lambda it: setattr(it.layers[1], "up", it.layers[0].up),  # tied
        lambda it: setattr(it, "other", it.layers[0].up),
        lambda it: setattr(it, "layers", it.layers[:1]),
    ):
        other = copy.deepcopy(model)
        change(other)
        assert blocks.repeated(other) == []
        with pytest.raises(NoBlocks, match="no repeated blocks"):
            Skeleton(other, other.state_dict())


def test_names_with_a_prefix_here_or_there(model):
    state = model.state_dict()
    longer = {f"model.{name}": each for name, each in state.items()}
    assert blocks.names_by_prefix(model, longer) == dict(zip(state, longer, strict=True))
    within = nn.ModuleDict({"model": model})
    assert blocks.names_by_prefix(within, state) == dict(zip(longer, state, strict=True))
    assert blocks.names_by_prefix(model, state) == {name: name for name in state}
    with pytest.raises(NoBlocks, match="other names"):
        blocks.names_by_prefix(model, {n: each for n, each in state.items() if "up" not in n})
    scaled = {name: each.to(torch.float8_e4m3fn) for name, each in state.items()}
    with pytest.raises(NoBlocks, match="other names, shapes or kinds of types"):
        blocks.names_by_prefix(model, scaled)


def test_what_a_block_gave_may_be_larger_than_what_the_one_before_gave(model, monkeypatch):
    monkeypatch.setattr(blocks, "MOST_IN_MEMORY", 100)
    passage = skeleton_of(model).passage(model.state_dict())
    for size in (10, 50, 30, 10):
        given = torch.randn(size)
        passage._keep(0, {"x": given, "y": None})
        output = passage._output(is_last=True)
        assert torch.equal(output["x"].cpu(), given)
        assert output["y"] is None


def test_a_full_disk_is_one_line(monkeypatch):
    tensors = OnDisk()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(blocks, "memory", full)
    with pytest.raises(UserError, match=r"No space left on device.*set TMPDIR"):
        tensors["a"] = torch.ones(3)


def test_tensors_on_the_disk():
    tensors = OnDisk()
    for each in (torch.randn(3, 4), torch.randn(3, 4).bfloat16(), torch.arange(6), torch.empty(0)):
        tensors["a"] = each
        tensors["b"] = each.flip(0)
        assert torch.equal(tensors["a"], each)
        assert tensors["a"].dtype == each.dtype
        assert torch.equal(tensors["b"], each.flip(0))
    del tensors["b"]
    assert list(tensors) == ["a"]


# A folder of transformers'


@pytest.fixture
def folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).bfloat16()
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def tokens():
    return {"input_ids": torch.arange(8 * 12).reshape(8, 12) * 7 % 60}


def test_a_folder_block_by_block(folder, tmp_path):
    results = []  # of steps that float16, which a module's values are rounded to, can tell apart
    for blockwise in (True, False):
        path = tmp_path / f"{blockwise}.dc"
        options = {"inputs": tokens(), "noise": 0.8, "blockwise": blockwise}
        results.append(net.compress(folder, path, **options))
    one, whole = results
    assert "block by block" in one.notes[-1]
    assert one.bytes == pytest.approx(whole.bytes, abs=100)  # of the noise as it is recorded
    assert one.moved == whole.moved
    assert {n: each.how for n, each in one.plan.items()} == {
        n: each.how for n, each in whole.plan.items()
    }
    assert one.clusterings.keys() == whole.clusterings.keys()
    states = [net.encoding.load(each.path)[0] for each in results]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_noise_is_found_block_by_block(folder, tmp_path):
    result = net.compress(
        folder, tmp_path / "a.dc", inputs=tokens(), blockwise=True, max_divergence=0.002
    )
    assert result.moved.divergence <= 0.002


def test_a_model_too_large_for_memory_is_taken_block_by_block(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(compression, "free_memory", lambda: 8 * 60_000)
    result = net.compress(folder, tmp_path / "a.dc", inputs=tokens(), noise=0.3)
    assert "block by block" in result.notes[-1]
    monkeypatch.setattr(compression, "free_memory", lambda: 8_000 * 60_000)
    result = net.compress(folder, tmp_path / "a.dc", inputs=tokens(), noise=0.3)
    assert not result.notes


def test_what_has_no_blocks_is_taken_in_whole(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(compression, "free_memory", lambda: 1.0)
    monkeypatch.setattr(blocks, "repeated", lambda _: [])
    result = net.compress(folder, tmp_path / "a.dc", inputs=tokens(), noise=0.3)
    assert not result.notes
    with pytest.raises(UserError, match="cannot be taken block by block: it has no repeated"):
        net.compress(folder, tmp_path / "a.dc", inputs=tokens(), noise=0.3, blockwise=True)


def test_blockwise_is_for_folders(model, tmp_path):
    with pytest.raises(ValueError, match="blockwise is for a folder"):
        net.compress(model, tmp_path / "a.dc", blockwise=True)


def test_a_passage_without_blocks_runs_the_model_as_it_is(model):
    passage, (batch, *_) = Passage(model), inputs()
    assert list(passage) == [0]
    assert torch.equal(passage(0, calibration.Call((batch,), {})), model(batch))
