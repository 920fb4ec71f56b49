"""A tensor whose non-zero entries take a few values, the gradient of these values, and what sharing
them has made of the tensor: at what noise, in about how many bytes."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from .quantization import kmeans_1d

COUNTED = 1 << 22  # distinct values among more take a sort that is too long


class SharedTensor:
    """The non-zero entries of a tensor as `centroids[labels]` (section 3 of the paper).

    `positions` int64 [n] are the flat indexes of the survivors, `labels` int64 [n] their clusters,
    `centroids` float32 (float64 for a float64 tensor) [k'] the parameter that is fine-tuned.
    Assignments stay, unless `reassign` is called, and pruned entries stay zero, since only `write`
    touches the tensor. `latent` [n], for `reassign`, follows the gradient of every single weight;
    None unless `reassignable`, since it and its optimizer's averages are as large as the weight.
    """

    def __init__(
        self,
        tensor: torch.Tensor,
        positions: torch.Tensor,
        centroids: np.ndarray,
        labels: np.ndarray,
        reassignable: bool = False,
    ) -> None:
        """`tensor` as it is before sharing; it stays so until `write`."""
        tensor = tensor.detach()
        self.dtype, exact = tensor.dtype, exact_type(tensor.dtype)
        self.latent = None
        if reassignable:
            self.latent = nn.Parameter(tensor.take(positions).to(exact))
        self.positions = positions
        self.labels = torch.from_numpy(labels).to(tensor.device)
        self.centroids = nn.Parameter(torch.from_numpy(centroids).to(tensor.device, exact))
        self.written = self.stored_centroids()  # by the last `write`

    @classmethod
    def clustered(
        cls,
        tensor: torch.Tensor,
        bits: int,
        init: str = "linear",
        seed: int = 42,
        reassignable: bool = False,
    ) -> "SharedTensor":
        """2**bits values at most, by k-means (net.quantization) over the non-zero entries."""
        positions = tensor.detach().flatten().nonzero().flatten()
        centroids, labels = kmeans_1d(values_at(tensor, positions), 2**bits, init, seed)
        return cls(tensor, positions, centroids, labels, reassignable)

    @classmethod
    def of_values(
        cls, tensor: torch.Tensor, shared: torch.Tensor, reassignable: bool = False
    ) -> "SharedTensor":
        """The values of `shared`, of the shape of `tensor`: few already, and zero where an entry is
        to be pruned."""
        positions = shared.detach().flatten().nonzero().flatten()
        centroids, labels = np.unique(values_at(shared, positions), return_inverse=True)
        return cls(tensor, positions, centroids, labels, reassignable)

    def trained(self) -> list[nn.Parameter]:
        """What an optimizer may have: the centroids, and the latent weights if there are any."""
        return [self.centroids] if self.latent is None else [self.centroids, self.latent]

    @torch.no_grad()
    def take_gradient(
        self, gradient: torch.Tensor, add: bool = False, only_finite: bool = False
    ) -> None:
        """Equation 3: dL/dC_k is the sum of dL/dW over the weights assigned to centroid k.

        `gradient` has the shape of the tensor, dense or sparse; sets `centroids.grad`, and
        `latent.grad`, or adds to what is there, with `only_finite` if that is finite.
        """
        if gradient.layout != torch.strided:
            gradient = gradient.to_dense()
        self.follow(gradient)
        each = gradient.take(self.positions).to(self.centroids.dtype)
        own = torch.zeros_like(self.centroids).index_add(0, self.labels, each)
        for trained, new in zip(self.trained(), (own, each), strict=False):
            if add and (last := trained.grad) is not None:
                if only_finite:
                    last = last.where(last.isfinite().all(), torch.zeros_like(last))
                new = last + new
            trained.grad = new

    def follow(self, tensor: torch.Tensor) -> None:
        """Move to the device of `tensor`, which a model may be moved to after it was shared."""
        if self.positions.device != tensor.device:
            self.positions = self.positions.to(tensor.device)
            self.labels = self.labels.to(tensor.device)
            for trained in self.trained():  # in place: it may be in an optimizer
                trained.data = trained.data.to(tensor.device)

    @torch.no_grad()
    def means(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mean [k'] of the values that a tensor of the same shape has where the centroid is
        shared; exact where these are all the same, as in an average of shared tensors."""
        labels = self.labels.to(tensor.device)
        each = tensor.take(self.positions.to(tensor.device)).double()
        sums = torch.zeros(len(self.centroids), dtype=torch.float64, device=tensor.device)
        counts = torch.bincount(labels, minlength=len(sums)).clamp(min=1)
        return (sums.index_add_(0, labels, each) / counts).to(self.centroids.dtype)

    @torch.no_grad()
    def share(self, tensor: torch.Tensor) -> None:
        """Share the values of another tensor of the same shape where this one's are shared, and
        prune it where this one is pruned."""
        stored = self._stored(self.means(tensor))
        tensor.zero_()
        self._put(tensor, stored)

    @torch.no_grad()
    def settle(self, tensor: torch.Tensor) -> None:
        """Write what the centroids are; or, where `tensor` is not what was written last, take it
        for their values. Of another tensor of as few values and with the same zeros, as of an
        earlier epoch, the assignments are taken as well."""
        last = torch.zeros_like(tensor)
        self._put(last, self.written)
        if not torch.equal(tensor, last):
            self.follow(tensor)
            each = tensor.take(self.positions)
            values, labels = each.to(self.centroids.dtype).unique(return_inverse=True)
            means = self.means(tensor)
            same = torch.equal(means.to(tensor.dtype)[self.labels], each)
            if not same and len(values) <= len(self.centroids):
                self.labels, count = labels, len(values)
                self.centroids.fill_(values[-1])[:count] = values
            else:  # what has not moved keeps the digits that are not stored
                still = self._stored(means) == self.written.to(means.device)
                self.centroids.copy_(torch.where(still, self.centroids, means))
            if self.latent is not None:
                self.latent.copy_(each)
            tensor.zero_()
        self.write(tensor)

    @torch.no_grad()
    def reassign(self) -> None:
        """Assign each survivor anew to the centroid nearest to its latent weight.

        Raises ValueError for a tensor that was not made `reassignable`.
        """
        if self.latent is None:
            raise ValueError("there are no latent weights: make the tensor reassignable")
        self.centroids.copy_(self.centroids.sort().values)
        middles = (self.centroids[1:] + self.centroids[:-1]) / 2
        self.labels = torch.bucketize(self.latent, middles)

    @torch.no_grad()
    def write(self, tensor: torch.Tensor) -> None:
        """Put the shared values, as they will be stored, into `tensor`."""
        self.follow(tensor)
        self.written = self.stored_centroids()
        self._put(tensor, self.written)

    def _put(self, tensor: torch.Tensor, stored: torch.Tensor) -> None:
        stored = stored.to(tensor.device, tensor.dtype)
        labels = self.labels.to(tensor.device)
        tensor.put_(self.positions.to(tensor.device), stored[labels])

    def stored_centroids(self) -> torch.Tensor:
        """The centroids [k'] in the tensor's type, rounded to float16, which halves the codebook.

        Unrounded where that would turn one into 0 (which means pruned) or infinity, and in a type
        that is no wider.
        """
        return self._stored(self.centroids.detach())

    def _stored(self, centroids: torch.Tensor) -> torch.Tensor:
        exact = centroids.to(self.dtype)
        if self.dtype.itemsize <= 2:
            return exact
        rounded = exact.half().to(self.dtype)
        # Chosen on the device: a GPU would run dry if every step asked it for the answer.
        return torch.where((rounded.isfinite() & (rounded != 0)).all(), rounded, exact)

    def state_dict(self) -> dict[str, torch.Tensor]:
        state = {"positions": self.positions, "labels": self.labels, "centroids": self.centroids}
        return state if self.latent is None else {**state, "latent": self.latent}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, torch.Tensor], strict: bool = True) -> None:
        if state.keys() != self.state_dict().keys():
            raise ValueError("a state with latent weights, or without, where it is the other way")
        positions = state["positions"].to(self.labels.device)
        if strict and not torch.equal(positions, self.positions):
            raise ValueError("a state of a tensor with other zeros")
        self.positions = positions
        self.labels = state["labels"].to(self.labels.device)
        # A model that was shared already may have given fewer values than its state has.
        if state["centroids"].shape != self.centroids.shape:
            self.centroids = nn.Parameter(state["centroids"].detach().to(self.centroids))
        self.centroids.copy_(state["centroids"])
        if self.latent is not None:
            self.latent.data = state["latent"].detach().to(self.latent)


def exact_type(dtype: torch.dtype) -> torch.dtype:
    """What is computed in: float32 as it is takes half the memory, and half the time to sort."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def values_at(tensor: torch.Tensor, positions: torch.Tensor) -> np.ndarray:
    return tensor.detach().take(positions).to("cpu", exact_type(tensor.dtype)).numpy()


class Clustering(NamedTuple):
    """What a user wants to know of a tensor that was shared."""

    nonzero: int  # afterwards
    values_before: int | None  # distinct ones but 0; None among more than COUNTED
    values_after: int
    noise: float  # root of the mean squared change, over that of the mean square before
    coded_bytes: float  # the entropy of all values, zeros included, and 2 bytes for each distinct

    @classmethod
    def of(cls, before: torch.Tensor, after: torch.Tensor) -> "Clustering":
        """From the tensor as it was and as it is, of any floating-point type and one shape."""
        before, after = before.detach(), after.detach()
        values, counts = after.unique(return_counts=True)
        distinct = int(values.count_nonzero())
        known = before.numel() <= COUNTED
        return cls(
            nonzero=int(after.count_nonzero()),
            values_before=int(before.unique().count_nonzero()) if known else None,
            values_after=distinct,
            noise=_norm(after - before) / (_norm(before) or 1.0),
            coded_bytes=entropy(counts.tolist()) / 8 + 2 * distinct,
        )


def entropy(counts: list[int]) -> float:
    """Bits of all values together in an ideal code for their frequencies."""
    total = sum(counts)
    return sum(count * math.log2(total / count) for count in counts)


def relative_change(
    before: torch.Tensor, after: torch.Tensor, beside: torch.Tensor | None = None
) -> float:
    """Root of the mean squared change over that of the mean square before, or over that of what
    the values count beside, where that is larger; 0 for no change."""
    finite = before.isfinite()
    change = _norm((after - before)[finite])
    size = 0.0 if beside is None else _norm(beside[beside.isfinite()])
    return change / max(_norm(before[finite]), size) if change else 0.0


def _norm(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64))
