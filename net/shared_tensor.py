"""A tensor whose non-zero entries take a few values, the gradient of these values, and what sharing
them has made of the tensor: at what noise, in about how many bytes."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from .quantization import kmeans_1d
from .sharded import laid, local, part, replicated, summed, total, union

COUNTED = 1 << 22  # distinct values among more take a sort that is too long


def put_at(tensor: torch.Tensor, positions: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """`tensor` with values [n] at the flat indexes `positions` [n], none of which comes twice, in
    place. (Tensor.put_ refuses under torch.use_deterministic_algorithms.)"""
    if tensor.is_contiguous():
        tensor.view(-1).scatter_(0, positions, values)
        return tensor
    flat = tensor.flatten().scatter_(0, positions, values)
    return tensor.copy_(flat.view(tensor.shape))


class SharedTensor:
    """The non-zero entries of a tensor as `centroids[labels]` (section 3 of the paper).

    `positions` int64 [n] are the flat indexes of the survivors, `labels` int64 [n] their clusters,
    `centroids` float32 (float64 for a float64 tensor) [k'] the parameter that is fine-tuned.
    Assignments stay, unless `reassign` is called, and pruned entries stay zero, since only `write`
    touches the tensor. `latent`, for `reassign`, has the tensor's shape and follows the gradient of
    every single weight; None unless `reassignable`, since it and its optimizer's averages are as
    large as the weight.

    After `lie_as` a DTensor, survivors are those of this process's part, centroids all, replicated,
    and what takes a tensor takes one that lies so.
    """

    def __init__(
        self,
        tensor: torch.Tensor,
        positions: torch.Tensor,
        centroids: np.ndarray,
        labels: np.ndarray,
        reassignable: bool = False,
        in_half: bool = True,
    ) -> None:
        """`tensor` as it is before sharing; it stays so until `write`. `in_half`: as of
        `stored_centroids`."""
        tensor = tensor.detach()
        self.in_half = in_half
        self.dtype, exact = tensor.dtype, exact_type(tensor.dtype)
        self.latent = None
        if reassignable:
            self.latent = nn.Parameter(tensor.to(exact, copy=True))
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
        to be pruned. They are rounded to float16 if they are so already; else too finely spaced."""
        positions = shared.detach().flatten().nonzero().flatten()
        centroids, labels = np.unique(values_at(shared, positions), return_inverse=True)
        in_half = np.array_equal(centroids.astype(np.float16), centroids)
        return cls(tensor, positions, centroids, labels, reassignable, in_half)

    @torch.no_grad()
    def lie_as(self, tensor: torch.Tensor) -> None:
        """Keep of all survivors those in this process's part of `tensor`, of the same shape."""
        self._set_numbers(laid(self._numbers(tensor), tensor))
        self.centroids = nn.Parameter(replicated(self.centroids.detach(), tensor))
        if self.latent is not None:
            self.latent = nn.Parameter(laid(self.latent.detach(), tensor))

    def _numbers(self, tensor: torch.Tensor) -> torch.Tensor:
        """int32, of the shape of `tensor`: 0 where an entry is pruned, else its label + 1."""
        numbers = torch.zeros(tensor.shape, dtype=torch.int32, device=self.labels.device)
        return put_at(numbers, self.positions, self.labels.int() + 1)

    def _set_numbers(self, numbers: torch.Tensor) -> None:
        self.positions = local(numbers).flatten().nonzero().flatten()
        self.labels = local(numbers).take(self.positions).long() - 1

    def trained(self) -> list[nn.Parameter]:
        """What an optimizer may have: the centroids, and the latent weights if there are any."""
        return [self.centroids] if self.latent is None else [self.centroids, self.latent]

    @torch.no_grad()
    def sums(self, gradient: torch.Tensor) -> torch.Tensor:
        """Equation 3: dL/dC_k is the sum of dL/dW over the weights assigned to centroid k; [k'], of
        this process's part of a dense gradient of the tensor's shape."""
        self.follow(gradient)
        each = local(gradient).take(self.positions).to(self.centroids.dtype)
        return torch.zeros_like(self.values()).index_add(0, self.labels, each)

    @torch.no_grad()
    def take_gradient(
        self,
        gradient: torch.Tensor,
        sums: torch.Tensor,
        add: bool = False,
        only_finite: bool = False,
    ) -> None:
        """Set `centroids.grad` to `sums`, those of all parts, and `latent.grad` to the gradient of
        the survivors; or add to what is there, with `only_finite` if that is finite."""
        news = [replicated(sums, gradient)]
        if self.latent is not None:
            each = local(gradient).take(self.positions).to(self.latent.dtype)
            single = torch.zeros_like(local(self.latent.detach()))
            single = put_at(single, self.positions, each)
            news.append(part(single, gradient))
        for trained, new in zip(self.trained(), news, strict=True):
            if add and (last := trained.grad) is not None:
                if only_finite:
                    last = last.where(last.isfinite().all(), torch.zeros_like(last))
                new = last + new
            trained.grad = new

    def follow(self, tensor: torch.Tensor) -> None:
        """Move to the device and the type of `tensor`, to which a model may be moved after it was
        shared."""
        self.dtype = tensor.dtype
        if self.positions.device != tensor.device:
            self.positions = self.positions.to(tensor.device)
            self.labels = self.labels.to(tensor.device)
            for trained in self.trained():  # in place: it may be in an optimizer
                trained.data = trained.data.to(tensor.device)

    def values(self) -> torch.Tensor:
        """The centroids [k'] as an ordinary tensor, in their memory."""
        return local(self.centroids.detach())

    @torch.no_grad()
    def means(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mean [k'] of the values that a tensor of the same shape has where the centroid is
        shared; exact where these are all the same, as in an average of shared tensors. A centroid
        that nothing shares, as `reassign` may leave one, stays what it is."""
        labels = self.labels.to(tensor.device)
        each = local(tensor).take(self.positions.to(tensor.device)).double()
        sums = torch.zeros(len(self.centroids), dtype=torch.float64, device=tensor.device)
        counts = torch.bincount(labels, minlength=len(sums)).double()
        sums, counts = summed([sums.index_add_(0, labels, each), counts], [tensor, tensor])
        means = (sums / counts).to(self.centroids.dtype)
        return means.where(counts > 0, self.values().to(tensor.device))

    @torch.no_grad()
    def share(self, tensor: torch.Tensor) -> None:
        """Share the values of another tensor of the same shape where this one's are shared, and
        prune it where this one is pruned."""
        stored = self._stored(self.means(tensor))
        local(tensor).zero_()
        self._put(tensor, stored)

    @torch.no_grad()
    def settle(self, tensor: torch.Tensor) -> None:
        """Write what the centroids are; or, where `tensor` is not what was written last, take it
        for their values. Of another tensor of as few values and with the same zeros, as of an
        earlier epoch, the assignments are taken as well."""
        last = torch.zeros_like(tensor)
        self._put(last, self.written)
        changed = (local(tensor) != local(last)).sum()  # DTensors cannot be compared before 2.9
        if int(summed([changed], [tensor])[0]):
            self.follow(tensor)
            each, own = local(tensor).take(self.positions), self.values()
            means = self.means(tensor)
            each = each.to(own.dtype)
            others = (means.to(tensor.dtype)[self.labels] != each).sum()
            # Of more values than there may be, one more says so.
            values = union(each.unique()[: len(own) + 1], tensor)
            if int(summed([others], [tensor])[0]) and len(values) <= len(own):
                self.labels = torch.searchsorted(values, each)
                own.fill_(values[-1])[: len(values)] = values
            else:  # what has not moved keeps the digits that are not stored
                still = self._stored(means) == self.written.to(means.device)
                own.copy_(torch.where(still, own, means))
            if self.latent is not None:
                self.latent.copy_(tensor)
            local(tensor).zero_()
        self.write(tensor)

    @torch.no_grad()
    def reassign(self) -> None:
        """Assign each survivor anew to the centroid nearest to its latent weight.

        Raises ValueError for a tensor that was not made `reassignable`.
        """
        if self.latent is None:
            raise ValueError("there are no latent weights: make the tensor reassignable")
        own = self.values()
        own.copy_(own.sort().values)
        middles = (own[1:] + own[:-1]) / 2
        self.labels = torch.bucketize(local(self.latent).take(self.positions), middles)

    @torch.no_grad()
    def write(self, tensor: torch.Tensor) -> None:
        """Put the shared values, as they will be stored, into `tensor`."""
        self.follow(tensor)
        self.written = self.stored_centroids()
        self._put(tensor, self.written)

    def _put(self, tensor: torch.Tensor, stored: torch.Tensor) -> None:
        stored = stored.to(tensor.device, tensor.dtype)
        labels = self.labels.to(tensor.device)
        put_at(local(tensor), self.positions.to(tensor.device), stored[labels])

    def stored_centroids(self) -> torch.Tensor:
        """The centroids [k'] in the tensor's type, rounded to float16, which halves the codebook.

        Unrounded where that would turn one into 0 (which means pruned) or infinity, in a type that
        is no wider, and without `in_half`.
        """
        return self._stored(self.values())

    def _stored(self, centroids: torch.Tensor) -> torch.Tensor:
        exact = centroids.to(self.dtype)
        if self.dtype.itemsize <= 2 or not self.in_half:
            return exact
        rounded = exact.half().to(self.dtype)
        # Chosen on the device: a GPU would run dry if every step asked it for the answer.
        return torch.where((rounded.isfinite() & (rounded != 0)).all(), rounded, exact)

    def state_dict(self, tensor: torch.Tensor) -> dict[str, Any]:
        """`numbers` int32, 0 where an entry is pruned, else its label + 1, and `latent`, if there
        is one, lie as `tensor`, that this is of. `centroids` are a list: what loads in place
        (torch.distributed.checkpoint) needs to know the size of a tensor beforehand, and a model
        that was shared already may give fewer values than its state has."""
        numbers = part(self._numbers(local(tensor)), tensor)
        state = {"numbers": numbers, "centroids": self.values().tolist()}
        return state if self.latent is None else {**state, "latent": self.latent}

    @torch.no_grad()
    def check_state(
        self, state: Mapping[str, Any], tensor: torch.Tensor, strict: bool, rounds: bool
    ) -> None:
        """Raises ValueError for a state of another tensor than `tensor`, that this is of, and, if
        `strict`, for one of other zeros; where sharing `rounds` to zero, too, as it does anew when
        what has been shared is shared to go on, for one with zeros that this has not."""
        expected = self.state_dict(tensor)
        if {*state} ^ {*expected} == {"latent"}:
            raise ValueError("a state with latent weights, or without, where it is the other way")
        if state.keys() != expected.keys() or state["numbers"].shape != tensor.shape:
            raise ValueError(f"a state of another tensor than this, of {tuple(tensor.shape)}")
        pruned, zero = laid(state["numbers"], tensor) == 0, expected["numbers"] == 0
        if strict and bool(total(pruned & ~zero if rounds else pruned ^ zero)):
            raise ValueError("a state of a tensor with other zeros")

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any], tensor: torch.Tensor) -> None:
        """Take a state that `check_state` lets pass."""
        self._set_numbers(laid(state["numbers"], tensor))
        centroids = torch.tensor(state["centroids"], dtype=torch.float64, device="cpu").to(
            self.values()
        )
        if len(centroids) == len(self.centroids):
            self.values().copy_(centroids)
        else:
            self.centroids = nn.Parameter(replicated(centroids, tensor))
        if self.latent is not None:
            self.latent.copy_(laid(state["latent"], tensor))


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
        values, counts = counted(after)
        distinct = int(values.count_nonzero())
        known = before.numel() <= COUNTED
        return cls(
            nonzero=int(after.count_nonzero()),
            values_before=int(before.unique().count_nonzero()) if known else None,
            values_after=distinct,
            noise=_change(before, after) / (_norm(before) or 1.0),
            coded_bytes=entropy(counts.tolist()) / 8 + 2 * distinct,
        )


def counted(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(distinct values, ascending; how often each occurs), a part at a time: sorting takes several
    times the memory of what is sorted."""
    parts = [part.unique(return_counts=True) for part in tensor.flatten().split(COUNTED)]
    values, place = torch.cat([part for part, _ in parts]).unique(return_inverse=True)
    counts = torch.cat([count for _, count in parts])
    return values, torch.zeros_like(values, dtype=counts.dtype).index_add_(0, place, counts)


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


def _change(before: torch.Tensor, after: torch.Tensor) -> float:
    pairs = zip(before.flatten().split(COUNTED), after.flatten().split(COUNTED), strict=True)
    return math.hypot(*(_norm(new - old) for old, new in pairs))


def _norm(tensor: torch.Tensor) -> float:
    """In parts: torch makes float64 of a whole tensor."""
    parts = tensor.detach().flatten().split(COUNTED)
    return math.hypot(*(float(torch.linalg.vector_norm(x, dtype=torch.float64)) for x in parts))
