"""Run a pruned model from its sparse weights: CSR matrices in place of dense ones (section 6.3).

    model = net.sparse.sparse_model(model)      # on the CPU, for inference

Only linear layers gain: PyTorch has no sparse convolution for the CPU, so convolutions stay dense.
Whether a layer gains at all depends on its size, its density, the batch and the machine, so it is
measured: a layer stays dense unless a sparse form is faster.
"""

import importlib.util
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.benchmark import Timer

from .extras import needs
from .modules import copied, evaluating
from .parameters import compressible, layer_of, shortest_name

SAMPLES = 25
SAMPLE_SECONDS = 1e-3  # a sample repeats a call for this long: the clock is coarser than a layer


class TorchCSR(nn.Module):
    """y = W x + b with W as torch.sparse_csr.  Equals the dense layer to float rounding."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.weight = self.sparse(layer.weight.detach())  # [out, in]
        self.bias = None if layer.bias is None else layer.bias.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [..., in] -> [..., out]
        rows = x.detach().reshape(-1, x.shape[-1])
        y = self.product(rows) if len(rows) else rows.new_zeros(0, self.weight.shape[0])
        y = y.reshape(*x.shape[:-1], self.weight.shape[0])
        return y if self.bias is None else y + self.bias

    def sparse(self, weight: torch.Tensor) -> Any:
        with warnings.catch_warnings():  # PyTorch calls its CSR support a beta
            warnings.simplefilter("ignore")
            return weight.to_sparse_csr()

    def product(self, rows: torch.Tensor) -> torch.Tensor:  # [n, in] -> [n, out]
        if len(rows) == 1:  # matrix x vector: a fifth of the overhead of matrix x matrix
            return torch.mv(self.weight, rows[0])
        return torch.mm(self.weight, rows.t()).t()


class ScipyCSR(TorchCSR):
    """The same with SciPy's CSR matrix, on one thread."""

    def sparse(self, weight: torch.Tensor) -> Any:
        return needs("scipy.sparse", "SciPy's CSR matrix").csr_matrix(weight.numpy())

    def product(self, rows: torch.Tensor) -> torch.Tensor:
        x = rows.numpy()
        return torch.from_numpy(self.weight @ x[0] if len(x) == 1 else (self.weight @ x.T).T)


FORMS = {"torch": TorchCSR, "scipy": ScipyCSR}


def available() -> dict[str, type[TorchCSR]]:
    """The sparse forms whose library is installed."""
    return {form: FORMS[form] for form in FORMS if importlib.util.find_spec(form)}


def sparse_model(model: nn.Module, batch_size: int = 1) -> nn.Module:
    """A copy of `model` on the CPU whose linear layers are sparse where that is faster.

    Each layer is timed at `batch_size`, dense and in both sparse forms (SciPy's where that is
    installed), and takes the fastest. The copy is for inference (no gradients); it computes what
    `model` does to float rounding. Its attribute `choices`, {layer: text}, says what each weight
    became, and why:

        {"fc1": "torch: 41 us, dense 180 us, 5.0 % non-zero",
         "fc2": "dense: 9 us, torch 14 us, 31.0 % non-zero",
         "conv1": "dense: no plain linear layer"}
    """
    model = on_cpu(model)
    times = layer_times(model, batch_size)
    mixed = replaced(model, {name: fastest(each) for name, each in times.items()})
    layers = map(layer_of, compressible(model))
    mixed.choices = {name: _reason(name, model, times) for name in layers}  # type: ignore[assignment]
    return mixed


def _reason(name: str, model: nn.Module, times: Mapping[str, dict[str, list[float]]]) -> str:
    """The form of a layer, and the one that it was compared with."""
    if name not in times:
        return "dense: no plain linear layer"
    chosen = fastest(times[name])
    medians = {form: 1e6 * statistics.median(each) for form, each in times[name].items()}
    sparse = min(medians.keys() - {"dense"}, key=lambda form: medians[form])
    other = sparse if chosen == "dense" else "dense"
    weight = linear_layers(model)[name].weight
    density = f"{weight.count_nonzero().item() / weight.numel():.1%} non-zero"
    return f"{chosen}: {medians[chosen]:.0f} us, {other} {medians[other]:.0f} us, {density}"


def on_cpu(model: nn.Module) -> nn.Module:
    return evaluating(copied(model).cpu()).requires_grad_(False)


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    found = {}
    for name in map(layer_of, compressible(model)):
        layer, parent = model.get_submodule(name), model.get_submodule(name.rpartition(".")[0])
        # Whose fused kernel takes the matrices of its layers, whatever these are.
        if isinstance(parent, nn.TransformerEncoderLayer) or type(layer) is not nn.Linear:
            continue
        computed = layer.weight.dtype in (torch.float32, torch.float64)  # by both libraries
        if computed and not (layer._forward_hooks or layer._forward_pre_hooks):
            found[name] = layer
    return found


def replaced(model: nn.Module, choice: dict[str, str]) -> nn.Module:
    """A copy of `model` with the layers of `choice`, {name: form}, in that form."""
    model = copied(model)
    for name, layer in linear_layers(model).items():
        if choice.get(name) in FORMS:
            if not name:  # a model that is one layer
                return FORMS[choice[name]](layer)
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, FORMS[choice[name]](layer))
    return model


# Timing


def fastest(times: dict[str, list[float]]) -> str:
    """The form of the least median; "dense" unless another is faster by more than the noise.

    A sparse form has to win by the middle half of the samples of both, not by luck.
    """
    best = min(times, key=lambda form: statistics.median(times[form]))
    clear = quartiles(times[best])[2] < quartiles(times["dense"])[0]
    return best if clear else "dense"


def quartiles(samples: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(samples, n=4)
    return low, middle, high


@torch.no_grad()
def layer_times(model: nn.Module, batch_size: int) -> dict[str, dict[str, list[float]]]:
    """{layer: {form: seconds per call, SAMPLES of them}} of the linear layers, random inputs."""
    found = {}
    for name, layer in linear_layers(model).items():
        x = torch.randn(batch_size, layer.in_features, dtype=layer.weight.dtype)
        forms = {"dense": layer, **{form: make(layer) for form, make in available().items()}}
        found[name] = alternate({form: partial(f, x) for form, f in forms.items()})
    return found


def alternate(calls: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds per call of each function, taken in turns: all suffer the same disturbances."""
    threads = torch.get_num_threads()
    timers = {
        name: Timer("f()", globals={"f": f}, num_threads=threads) for name, f in calls.items()
    }
    repeats = {n: max(1, int(SAMPLE_SECONDS / each.timeit(1).mean)) for n, each in timers.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(SAMPLES):
        for name, timer in timers.items():
            times[name].append(timer.timeit(repeats[name]).mean)
    return times


@torch.no_grad()
def latency(model: nn.Module, images: torch.Tensor, batch_sizes: Sequence[int] = (1, 64)) -> dict:
    """Dense against sparse, per linear layer and for the whole model, at each batch size.

    `images` [N, ...] are inputs of the model, N >= the largest batch.  Times are microseconds per
    call: median and quartiles.  "sparse_model" is what `sparse_model` gives at that batch size.

    All on one thread, as SciPy works: more of them help dense layers of millions of weights, and
    on a machine with other work make the figures those of its scheduler.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model, images = on_cpu(model), images.cpu()
        layers = linear_layers(model)
        others = [shortest_name(n) for n in compressible(model) if layer_of(n) not in layers]
        return {
            "dense_layers": others,
            "batches": [_at_batch_size(model, images[:size], size) for size in batch_sizes],
        }
    finally:
        torch.set_num_threads(threads)


def _at_batch_size(model: nn.Module, x: torch.Tensor, batch_size: int) -> dict:
    times = layer_times(model, batch_size)
    choice = {name: fastest(each) for name, each in times.items()}
    mixed = replaced(model, choice)
    total = alternate({"dense": partial(model, x), "sparse_model": partial(mixed, x)})
    layers = [
        {
            "name": name,
            "density": int(layer.weight.count_nonzero()) / layer.weight.numel(),
            "chosen": choice[name],
            "times": {form: microseconds(each) for form, each in times[name].items()},
        }
        for name, layer in linear_layers(model).items()
    ]
    return {
        "batch_size": batch_size,
        "layers": layers,
        "total": {form: microseconds(each) for form, each in total.items()},
        "largest_difference": (model(x) - mixed(x)).abs().max().item(),  # by float rounding
    }


def microseconds(samples: list[float]) -> dict:
    low, median, high = (1e6 * q for q in quartiles(samples))
    return {"median": median, "low": low, "high": high}
