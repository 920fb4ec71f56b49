import pytest
import torch

from net import sharing
from net.report.tables import sharing_table
from net.sharing import SharedWeight


@pytest.fixture
def weight():
    torch.manual_seed(0)
    weight = torch.randn(20, 30)
    weight[weight.abs() < 1] = 0
    return weight


def test_shared_values_and_pruned_entries(weight):
    shared = SharedWeight(weight, bits=3)
    pruned = weight == 0
    shared.write(weight)
    assert torch.equal(weight == 0, pruned)
    assert len(weight[~pruned].unique()) == 8
    assert shared.clustering[:3] == ((~pruned).sum(), (~pruned).sum(), 8)


def test_values_before_are_not_counted_among_millions(weight, monkeypatch):
    monkeypatch.setattr(sharing, "COUNTED", 50)
    clustering = SharedWeight(weight, bits=3).clustering
    assert clustering.values_before is None
    assert "  -  " in sharing_table({"fc1.weight": clustering})


def test_the_stored_error_is_that_of_the_written_tensor(weight):
    before = weight.clone()
    shared = SharedWeight(weight, bits=4)
    shared.write(weight)
    survivors = before != 0
    expected = (weight - before)[survivors].double().square().mean().item()
    assert shared.clustering.mean_squared_error == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("memory", ["contiguous", "transposed", "channels_last"])
def test_memory_layouts(memory):
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 5, 5)
    plain = weight.clone()
    if memory == "transposed":
        weight = weight.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    elif memory == "channels_last":
        weight = weight.to(memory_format=torch.channels_last)
    SharedWeight(weight, bits=2).write(weight)
    SharedWeight(plain, bits=2).write(plain)
    assert torch.equal(weight, plain)


def test_gradient_of_a_centroid_is_the_sum_over_its_weights():
    """Equation 3, against autograd through centroids[labels]."""
    weight = torch.nn.Parameter(torch.tensor([[1.0, 0.0, 1.1], [-2.0, 1.0, 0.0]]))
    shared = SharedWeight(weight, bits=1)
    shared.write(weight)
    x, target = torch.randn(5, 3), torch.randn(5, 2)
    (x @ weight.T - target).square().sum().backward()
    shared.gather_gradient(weight)

    centroids = shared.stored_centroids().clone().requires_grad_()
    dense = torch.zeros(6).index_put((shared.positions,), centroids[shared.labels]).view(2, 3)
    (x @ dense.T - target).square().sum().backward()
    assert torch.allclose(shared.centroids.grad, centroids.grad, rtol=1e-5)

    # The next step starts from nothing.
    (x @ weight.T - target).square().sum().backward()
    shared.gather_gradient(weight)
    assert torch.allclose(shared.centroids.grad, centroids.grad, rtol=1e-5)


def test_centroids_are_stored_as_float16_values(weight):
    shared = SharedWeight(weight, bits=3)
    stored = shared.stored_centroids()
    assert torch.equal(stored, stored.half().float())
    assert not torch.equal(stored, shared.centroids)


@pytest.mark.parametrize("value", [1e-9, 1e6])
def test_a_centroid_that_float16_cannot_hold_stays_exact(value):
    weight = torch.tensor([[value, 0.0, 1.0]])
    before = weight.clone()
    SharedWeight(weight, bits=2).write(weight)
    assert torch.equal(weight, before)


def test_fully_pruned_constant_and_few_values():
    empty = torch.zeros(3, 3)
    shared = SharedWeight(empty, bits=5)
    shared.write(empty)
    assert empty.count_nonzero() == 0
    assert shared.clustering == (0, 0, 0, 0.0)

    constant = torch.full((3, 3), 0.5)
    SharedWeight(constant, bits=5).write(constant)
    assert constant.unique().tolist() == [0.5]

    few = torch.tensor([[1.0, -2.0], [0.0, 1.0]])
    SharedWeight(few, bits=5).write(few)
    assert few.tolist() == [[1.0, -2.0], [0.0, 1.0]]


def test_a_fully_pruned_weight_has_an_empty_gradient():
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    shared = SharedWeight(weight, bits=2)
    weight.grad = torch.ones(2, 2)
    shared.gather_gradient(weight)
    assert shared.centroids.grad.shape == (0,)
    assert shared.clustering.mean_squared_error == 0


def test_reassign_moves_a_weight_to_its_nearest_centroid():
    weight = torch.tensor([[1.0, 1.2, 0.0], [3.0, 3.2, 0.0]])
    shared = SharedWeight(weight, bits=1, reassignable=True)
    assert shared.labels.tolist() == [0, 0, 1, 1]
    with torch.no_grad():
        shared.latent[1] = 2.9  # what its own gradient made of 1.2
    shared.reassign()
    shared.write(weight)
    assert shared.labels.tolist() == [0, 1, 1, 1]
    assert weight[0, 1] == weight[1, 0]
    assert weight[:, 2].tolist() == [0.0, 0.0]


def test_reassign_keeps_centroids_in_order():
    weight = torch.tensor([1.0, 2.0, 3.0])
    shared = SharedWeight(weight, bits=2, reassignable=True)
    with torch.no_grad():
        shared.centroids.copy_(torch.tensor([3.0, 1.0, 2.0]))
    shared.reassign()
    assert shared.centroids.tolist() == [1.0, 2.0, 3.0]
    assert shared.labels.tolist() == [0, 1, 2]
