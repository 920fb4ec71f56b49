import pytest
import torch
from safetensors.torch import save_file

from net import encoding, shards
from net.errors import UserError
from net.shards import Shards
from net.sharing import SharedState
from net.tensors import info_of


@pytest.fixture
def state():
    torch.manual_seed(0)
    return {
        "embed.weight": torch.randn(30, 8),
        "fc.weight": torch.randn(40, 30).bfloat16(),
        "fc.bias": torch.randn(40),
        "steps": torch.tensor(3),
    }


def test_auto_shares_every_matrix_and_rounds_the_vectors(state):
    shared = SharedState(state)
    assert list(shared) == list(state)
    found = dict(shared)
    for name, tensor in found.items():
        assert (tensor.dtype, tensor.shape) == (state[name].dtype, state[name].shape)
    assert len(found["fc.weight"].unique()) < 60 < len(state["fc.weight"].unique())
    assert shared.clusterings.keys() == {"embed.weight", "fc.weight"}
    assert not torch.equal(found["fc.bias"], state["fc.bias"])
    assert torch.equal(found["steps"], state["steps"])
    exact = SharedState(state, exact_vectors=True)
    assert torch.equal(exact["fc.bias"], state["fc.bias"])


def test_k_means(state):
    shared = SharedState(state, {"*": 3, "@embedding": 2}, bias_bits=1)
    counts = {name: len(tensor.unique()) for name, tensor in shared.items()}
    assert counts == {"embed.weight": 4, "fc.weight": 8, "fc.bias": 2, "steps": 1}


def test_auto_beside_clustered_biases(state):
    rounded, clustered = SharedState(state), SharedState(state, bias_bits=1)
    assert len(rounded["fc.bias"].unique()) > 20
    assert len(clustered["fc.bias"].unique()) == 2
    assert torch.equal(rounded["fc.weight"], clustered["fc.weight"])


def test_a_file_is_shared_encoded_and_written_tensor_by_tensor(state, tmp_path):
    save_file(state, tmp_path / "m.safetensors")
    shared = SharedState(Shards(tmp_path / "m.safetensors"))
    expected = dict(SharedState(state))
    encoding.save(shared, tmp_path / "e")
    decoded = encoding.open(tmp_path / "e")
    for name, tensor in expected.items():
        assert torch.equal(decoded[name], tensor)
    infos = {name: info_of(decoded, name) for name in decoded}
    shards.write(tmp_path / "out.safetensors", infos, (decoded[name] for name in decoded))
    assert all(torch.equal(t, expected[n]) for n, t in Shards(tmp_path / "out.safetensors").items())


def test_tied_tensors_stay_one(state, tmp_path):
    state["head.weight"] = state["embed.weight"]
    shared = SharedState(state)
    assert shared["head.weight"] is shared["embed.weight"]
    encoding.save(shared, tmp_path)
    assert len(list(tmp_path.glob("[0-9]*"))) == 4


def test_what_is_not_finite_is_named(state):
    state["fc.weight"][0, 0] = float("inf")
    with pytest.raises(UserError, match=r"cannot share fc\.weight: not all values are finite"):
        SharedState(state)
    with pytest.raises(UserError, match=r"cannot share fc\.weight: k-means needs finite"):
        SharedState(state, 3)["fc.weight"]


def test_an_expanded_tensor_is_refused_before_there_is_memory_for_it():
    with pytest.raises(UserError, match=r"cannot share 'a\.weight': an expanded tensor"):
        SharedState({"a.weight": torch.ones(1, 1).expand(2**16, 2**16)})


def test_a_tiny_bias_beside_a_large_factor_has_hardly_changed():
    """As of MobileNetV2, whose biases of 1e-7 beside factors of 1 become 0."""
    state = {
        "norm.weight": torch.full((8,), 1.0),
        "norm.bias": torch.full((8,), 1e-7),
        "norm.running_mean": torch.zeros(8),
        "norm.running_var": torch.ones(8),
        "conv.weight": torch.randn(8, 9),
    }
    shared = SharedState(state)
    assert not shared["norm.bias"].any()
    assert shared.rounded["norm.bias"] == pytest.approx(1e-7)
