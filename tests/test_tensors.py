import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from net import encoding, layouts, shards
from net.errors import UserError
from net.sharded import Gathered
from net.sharing import SharedState
from net.state_dicts import Renamed
from net.tensors import check_dense, is_computed


class Scaled(torch.Tensor):
    """Whose elements mean something else, as those of quantized subclasses do."""


def freed():
    tensor = torch.ones(100)
    tensor.untyped_storage().resize_(0)
    return tensor


ODD = {
    "a int, not a tensor": lambda: 3,
    "of the layout sparse_coo": lambda: torch.eye(3).to_sparse(),
    "of the layout sparse_csc": lambda: torch.eye(3).to_sparse_csc(),
    "on the meta device": lambda: torch.ones(2, 2, device="meta"),
    "quantized by torch": lambda: torch.quantize_per_tensor(torch.ones(2, 2), 1, 0, torch.qint8),
    "a nested tensor": lambda: torch.nested.nested_tensor([torch.ones(2, 2)]),
    "lazy, without a shape": lambda: nn.LazyLinear(3).weight,
    "lazy, without": lambda: nn.LazyBatchNorm1d().running_mean,
    "a Scaled, not a plain tensor": lambda: torch.ones(2, 2).as_subclass(Scaled),
    "its memory was freed": freed,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", ODD)
def test_what_has_no_plain_values_is_named_by_all(tmp_path, what):
    state = {"a.weight": torch.randn(4, 4), "layer.x": ODD[what]()}
    with pytest.raises(ValueError, match=f"^'layer.x': (a )?{what}"):
        check_dense("layer.x", state["layer.x"])
    with pytest.raises(encoding.EncodingError, match=f"cannot encode 'layer.x': (a )?{what}"):
        encoding.save(state, tmp_path)
    with pytest.raises(UserError, match=f"'layer.x': (a )?{what}"):
        SharedState(state)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(3),
        nn.Parameter(torch.ones(3)),
        nn.Linear(2, 2).weight,
        torch.ones(4, 6)[1:, ::2].t(),
        torch.ones(1).expand(9),
        torch.zeros(0, 3),
        torch.tensor(3),
        torch.ones(2, dtype=torch.complex64).conj(),
        torch.ones(2).to(torch.float8_e4m3fn),
    ],
)
def test_ordinary_tensors(tensor):
    check_dense("x", tensor)


EIGHTS = [
    getattr(torch, name)
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
]


@pytest.mark.parametrize("dtype", EIGHTS)
@pytest.mark.parametrize("bits", ["auto", 3])
def test_types_that_torch_does_not_compute_in_are_kept_exactly(tmp_path, dtype, bits):
    assert not is_computed(torch.zeros(2).to(dtype))
    state = {
        "a.weight": torch.randn(32, 32).to(dtype),
        "a.bias": torch.randn(32).to(dtype),
        "b.weight": torch.randn(32, 32),
    }
    shared = SharedState(state, bits=bits)
    for name in ("a.weight", "a.bias"):
        assert torch.equal(shared[name].view(torch.uint8), state[name].view(torch.uint8))
    assert len(shared["b.weight"].unique()) < 1000
    encoding.save(shared, tmp_path)
    assert torch.equal(encoding.load(tmp_path)[0]["a.weight"].view(torch.uint8),
                       state["a.weight"].view(torch.uint8))  # fmt: skip


def test_a_name_is_looked_for_without_reading_its_tensor(tmp_path, monkeypatch):
    """What is large, or on other processes, is read once, when its values are wanted."""
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    weight_map = {"weight": "model.safetensors"}
    text = json.dumps({"weight_map": weight_map})
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with monkeypatch.context() as patch:
        patch.setattr(shards.Shards, "__getitem__", None)
        state, *_ = layouts.read(tmp_path)
    mappings = state, SharedState(state), Gathered(state), Renamed(state, {"weight": "weight"})
    monkeypatch.setattr(shards.Shards, "__getitem__", None)
    for tensors in mappings:
        assert "weight" in tensors
        assert "bias" not in tensors
        assert [*tensors] == ["weight"]
