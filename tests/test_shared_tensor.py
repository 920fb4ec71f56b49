import pytest
import torch

from net import shared_tensor
from net.report.tables import sharing_table
from net.shared_tensor import Clustering, SharedTensor, entropy


def test_what_it_says():
    before = torch.tensor([[3.0, 4.0], [0.0, 0.1]])
    after = torch.tensor([[3.5, 3.5], [0.0, 0.0]])
    found = Clustering.of(before, after)
    assert found[:3] == (2, 3, 1)
    assert found.noise == pytest.approx((0.51 / 25.01) ** 0.5)
    assert found.coded_bytes == 4 / 8 + 2  # two of each: a bit a value


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types(dtype):
    weight = torch.randn(50, dtype=dtype)
    assert Clustering.of(weight, weight)[2:4] == (len(weight.unique()), 0.0)


def test_a_change_beside_something_larger():
    before, after = torch.tensor([3e-7, 4e-7]), torch.zeros(2)
    assert shared_tensor.relative_change(before, after) == 1
    assert shared_tensor.relative_change(before, after, torch.tensor([3.0, 4.0])) == pytest.approx(
        1e-7
    )
    assert shared_tensor.relative_change(before, after, torch.zeros(2)) == 1


def test_nothing_and_zeros():
    assert Clustering.of(torch.zeros(0), torch.zeros(0)) == (0, 0, 0, 0.0, 0.0)
    assert Clustering.of(torch.zeros(3), torch.zeros(3)) == (0, 0, 0, 0.0, 0.0)


def test_values_before_are_not_counted_among_millions(monkeypatch):
    monkeypatch.setattr(shared_tensor, "COUNTED", 50)
    found = Clustering.of(torch.arange(60.0), torch.arange(60.0))
    assert found.values_before is None
    assert "  -  " in sharing_table({"fc1.weight": found})


def test_a_centroid_that_nothing_shares_stays():
    weight = torch.tensor([1.0, 2.0, 3.0])
    shared = SharedTensor.clustered(weight, bits=2, reassignable=True)
    with torch.no_grad():
        shared.latent.fill_(2.0)
    shared.reassign()
    assert shared.means(torch.tensor([3.0, 4.0, 5.0])).tolist() == [1.0, 4.0, 3.0]
    shared.settle(torch.full((3,), 4.0))
    assert shared.stored_centroids().tolist() == [1.0, 4.0, 3.0]


def test_a_model_that_is_moved_to_another_type_has_its_centroids_rounded_once():
    weight = torch.tensor([1e-6, 1.0])
    shared = SharedTensor.clustered(weight, bits=1)
    moved = torch.zeros(2, dtype=torch.bfloat16)
    shared.write(moved)
    assert torch.equal(moved, weight.bfloat16())  # and not to float16, which is coarser there
    shared.write(weight)
    assert torch.equal(weight, torch.tensor([1e-6, 1.0]).half().float())


def test_entropy():
    assert entropy([4, 4]) == 8
    assert entropy([5]) == 0
