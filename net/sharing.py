"""Weight sharing: a tensor whose non-zero entries take a few values, and how those are trained."""

from typing import NamedTuple

import numpy as np
import torch

from .quantization import CHUNK, kmeans_1d

COUNTED = 1 << 22


class Clustering(NamedTuple):
    """What a user wants to know of it."""

    nonzero: int
    values_before: int | None  # distinct ones; None among more than COUNTED, which takes a sort
    values_after: int
    mean_squared_error: float


class SharedWeight:
    """The non-zero entries of a tensor as `centroids[labels]` (section 3 of the paper).

    `positions` int64 [n] are the flat indexes of the survivors, `labels` int64 [n] their clusters,
    `centroids` floating-point [k'] the parameter that is fine-tuned.  Assignments stay, unless
    `reassign` is called, and pruned entries stay zero, since only `write` touches the tensor.
    `latent` [n], for `reassign`, follows the gradient of every single weight; None unless
    `reassignable`, since it and its optimiser's averages are as large as the weight.
    """

    def __init__(
        self,
        tensor: torch.Tensor,
        bits: int,
        init: str = "linear",
        seed: int = 42,
        reassignable: bool = False,
    ):
        tensor = tensor.detach()
        survivors = tensor.flatten()
        survivors = survivors[survivors != 0]
        self.latent = torch.nn.Parameter(survivors.clone()) if reassignable else None
        # float32 as it is: half the memory, and k-means sorts it in half the time.
        values = survivors.cpu()
        values = (values if values.dtype == torch.float64 else values.float()).numpy()
        centroids, labels = kmeans_1d(values, 2**bits, init, seed)
        self.labels = torch.from_numpy(labels).to(tensor.device)
        self.centroids = torch.nn.Parameter(
            torch.from_numpy(centroids).to(tensor.device, tensor.dtype)
        )
        self.clustering = self.compare(values, labels)
        del survivors, values  # as large as the weight, and the positions are twice as large
        self.positions = tensor.flatten().nonzero().flatten()

    def compare(self, values: np.ndarray, labels: np.ndarray) -> Clustering:
        """The values as they were with those that `write` will put in their place."""
        stored = self.stored_centroids().double().cpu().numpy()
        error = 0.0
        for i in range(0, len(values), CHUNK):
            part = slice(i, i + CHUNK)
            error += float(np.square(values[part] - stored[labels[part]]).sum())
        before = len(np.unique(values)) if len(values) <= COUNTED else None
        return Clustering(len(values), before, len(np.unique(stored)), error / max(1, len(values)))

    @torch.no_grad()
    def gather_gradient(self, tensor: torch.Tensor) -> None:
        """Equation 3: dL/dC_k is the sum of dL/dW over the weights assigned to centroid k.

        Moves the gradient: `tensor.grad` is None afterwards, since no optimiser that knows the
        centroids alone would clear it before the next step.
        """
        gradient = tensor.grad.take(self.positions)
        self.centroids.grad = torch.zeros_like(self.centroids).index_add_(0, self.labels, gradient)
        if self.latent is not None:
            self.latent.grad = gradient
        tensor.grad = None

    @torch.no_grad()
    def reassign(self) -> None:
        """Assign each survivor anew to the centroid nearest to its latent weight."""
        self.centroids.copy_(self.centroids.sort().values)
        middles = (self.centroids[1:] + self.centroids[:-1]) / 2
        self.labels = torch.bucketize(self.latent, middles)

    @torch.no_grad()
    def write(self, tensor: torch.Tensor) -> None:
        """Put the shared values, as they will be stored, into `tensor`."""
        tensor.put_(self.positions, self.stored_centroids()[self.labels])

    def stored_centroids(self) -> torch.Tensor:
        """The centroids rounded to float16, which halves the codebook.

        Unrounded where that would turn one into 0 (which means pruned) or infinity.
        """
        exact = self.centroids.detach()
        rounded = exact.half().to(exact.dtype)
        # Chosen on the device: a GPU would run dry if every step asked it for the answer.
        return torch.where((rounded.isfinite() & (rounded != 0)).all(), rounded, exact)

    def to(self, device) -> "SharedWeight":
        """Move everything to `device`, before an optimiser sees `centroids`."""
        self.positions, self.labels = self.positions.to(device), self.labels.to(device)
        self.centroids = torch.nn.Parameter(self.centroids.detach().to(device))
        if self.latent is not None:
            self.latent = torch.nn.Parameter(self.latent.detach().to(device))
        return self
