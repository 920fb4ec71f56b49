"""Weight sharing: a tensor whose non-zero entries take a few values, and how those are trained."""

import numpy as np
import torch

from net.quantization import kmeans_1d


class SharedWeight:
    """The non-zero entries of a tensor as `centroids[labels]` (section 3 of the paper).

    `positions` int64 [n] are the flat indexes of the survivors, `labels` int64 [n] their clusters,
    `centroids` floating-point [k'] the parameter that is fine-tuned.  Assignments stay, unless
    `reassign` is called, and pruned entries stay zero, since only `write` touches the tensor.
    """

    def __init__(self, tensor: torch.Tensor, bits: int, init: str = "linear", seed: int = 42):
        self.positions = tensor.detach().flatten().nonzero().flatten()
        values = tensor.detach().take(self.positions).cpu()
        # float32 as it is: half the memory, and k-means sorts it in half the time.
        survivors = (values if values.dtype == torch.float64 else values.float()).numpy()
        centroids, labels = kmeans_1d(survivors, 2**bits, init, seed)
        self.labels = torch.from_numpy(labels).long().to(tensor.device)
        self.centroids = torch.nn.Parameter(
            torch.from_numpy(centroids).to(tensor.device, tensor.dtype)
        )
        # Follows the gradient of every single weight; only `reassign` looks at it.
        self.latent = torch.nn.Parameter(tensor.detach().take(self.positions))
        # What a user wants to know of the clustering.
        self.values_before = len(np.unique(survivors))
        error = survivors - self.stored_centroids().double().cpu().numpy()[labels]
        self.mean_squared_error = float(np.mean(error**2)) if len(error) else 0.0

    @torch.no_grad()
    def gather_gradient(self, tensor: torch.Tensor) -> None:
        """Equation 3: dL/dC_k is the sum of dL/dW over the weights assigned to centroid k.

        Moves the gradient: `tensor.grad` is None afterwards, since no optimiser that knows the
        centroids alone would clear it before the next step.
        """
        gradient = tensor.grad.take(self.positions)
        self.centroids.grad = torch.zeros_like(self.centroids).index_add_(0, self.labels, gradient)
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
        self.latent = torch.nn.Parameter(self.latent.detach().to(device))
        return self
