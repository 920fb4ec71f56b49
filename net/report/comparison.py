"""The figures of all stages side by side: what `compare_stages.py` prints, writes and draws."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from .. import checkpoint, encoding
from ..checkpoint import STAGE_FILES, Checkpoint
from ..choose import divergence
from ..encoding import TensorInfo
from ..errors import UserError
from ..parameters import bias_of, shortest_name
from ..tensors import identity
from ..training import restore, weights
from ..training.loop import error_percent, outputs
from ..training.splits import Dataset
from . import comparison_tables, distributions, plots, tables
from .comparison_page import comparison_page


@dataclass(frozen=True)
class Stages:
    """What is in the folder of the models and in that of the encoded one."""

    found: dict[str, Checkpoint]  # by stage, in their order
    file_bytes: dict[str, int]
    missing: list[str]  # a line for each that is not there
    tensors: list[TensorInfo] | None  # None without an encoded model
    encoded_state: Mapping[str, torch.Tensor] | None
    encoded_bytes: int | None

    @property
    def reference(self) -> Checkpoint:
        """The first stage that names its architecture, or else the first."""
        return next((c for c in self.found.values() if c.arch), next(iter(self.found.values())))

    @property
    def last(self) -> Checkpoint:
        return list(self.found.values())[-1]


def read(
    folder: str | Path,
    directory: str | Path,
    known: tuple[Mapping[str, torch.Tensor], list[TensorInfo]] | None = None,
    initial: str | Path | None = None,
) -> Stages:
    """The stages in `folder`, and the encoded model, which `directory` or a .dc file holds; `known`
    is its state dict and what it takes, where somebody has decoded it already. `initial` is the
    file of the dense model, where it is not in `folder`.

    Raises UserError where there is no stage at all, or a damaged one.
    """
    folder, directory = Path(folder), Path(directory)
    files = {stage: folder / name for stage, name in STAGE_FILES.items()}
    if initial:
        files["initial"] = Path(initial)
    found = {
        stage: checkpoint.load(file)
        for stage, file in files.items()
        if file.exists() or (initial and stage == "initial")  # one that was named must be there
    }
    arch = next((model.arch for model in found.values() if model.arch), None)
    if arch and initial and not found["initial"].arch:  # a state dict that somebody else saved
        dataset = next((model.dataset for model in found.values() if model.dataset), None)
        found["initial"] = replace(
            weights.adopted(found["initial"], initial, arch)[0], dataset=dataset
        )
    missing = [missing_line(stage, files[stage], found) for stage in files if stage not in found]
    tensors, state, size = None, None, None
    if known:
        state, tensors = known
        size = encoding.directory_bytes(directory)
    elif directory.is_file() or (directory.is_dir() and any(directory.glob("[!.]*"))):
        state, _, tensors = encoding.read(directory)
        size = encoding.directory_bytes(directory)
    else:
        missing.append(f"no encoded model in {directory}; run huffman_encode.py first")
    if not found:
        raise UserError(f"no stage is in {folder}; run deep_compressing.py or pruning.py first")
    file_bytes = {stage: files[stage].stat().st_size for stage in found}
    return Stages(found, file_bytes, missing, tensors, state, size)


def missing_line(stage: str, file: Path, found: dict[str, Checkpoint]) -> str:
    shared = found.get("weight_shared")
    untrained = shared is not None and shared.options.get("finetune_epochs") == 0
    if untrained and stage in ("initial", "retrained"):
        return f"{stage}, since the model was shared as it was, without training"
    return f"no {file}{checkpoint.origin(file)}"


def compare(
    stages: Stages,
    dataset: Dataset | None,
    device: torch.device | str = "cpu",
    batch_size: int = 1000,
) -> dict:
    """The comparison as a dict, in the layout of `--json`.

    Stages that are missing are listed under "missing" with the command that makes them; the
    others are evaluated on the test set of `dataset`, if there is one.
    """
    found, tensors, encoded = stages.found, stages.tensors, stages.encoded_bytes
    state = stages.encoded_state or {}
    names = list(restore.kinds_of(stages.reference))
    rows, first = [], None
    for stage, model in found.items():
        row = stage_row(stage, model, stages.file_bytes[stage])
        rows.append(row)
        if dataset is not None and model.arch:
            logits, labels = outputs(restore.restored(model, device), dataset.test, batch_size)
            row["error_percent"] = error_percent(logits, labels)
            first = logits if first is None else first
            row["kl_divergence"] = divergence(logits, first)
    if "initial" in found and rows[0]["error_percent"] is not None:
        for row in rows:
            row["error_change"] = row["error_percent"] - rows[0]["error_percent"]
    original = 4 * rows[0]["parameters"]
    layers = layer_rows(tensors, state, names) if tensors else []
    decoded = found.get("decoded")
    return {
        "dataset": dataset.name if dataset else None,
        "arch": stages.reference.arch,
        "original_bytes": original,
        "encoded_bytes": encoded,
        "compression_ratio": original / encoded if encoded else None,
        "stages": rows,
        "layers": layers,
        "other": other_row(tensors, state, names, layers, encoded) if tensors and encoded else None,
        "total": total_row(layers, original, encoded) if tensors and encoded else None,
        "distributions": distributions.distributions(found, names),
        "first_layer_mask": distributions.first_layer_mask(stages.last),
        "decoded_equals_weight_shared": identical(decoded, found.get("weight_shared")),
        "decoded_equals_encoded": tensors is not None
        and decoded is not None
        and same_state(decoded.state_dict, state),
        "missing": stages.missing,
    }


def latency(stages: Stages, dataset: Dataset | None) -> dict:
    """Dense against sparse layers of the last stage, on images of the test set."""
    from .. import sparse  # takes SciPy along

    if dataset is None or not stages.last.arch:
        raise UserError("latency needs the architecture: a bare state dict cannot be run")
    inputs, _ = next(iter(dataset.test.batches(64)))  # as many as the greatest batch that is timed
    return sparse.latency(restore.restored(stages.last), inputs)


def show(
    figures: dict,
    json: str | Path | None = None,
    csv: str | Path | None = None,
    plot: str | Path | None = None,
) -> None:
    """Print the comparison; write it to the files that are named."""
    print(comparison_tables.comparison_text(figures))
    if json:
        tables.write_json(json, figures)
    if csv:
        comparison_tables.write_csv(csv, figures)
    if plot:
        plots.save(comparison_page(figures), plot)


def stage_row(stage: str, model: Checkpoint, file_bytes: int) -> dict:
    """One row of the table, without what takes running the model."""
    parameters = parameters_of(model)
    return {
        "stage": stage,
        "error_percent": None,
        "error_change": None,  # against the initial model, in percentage points
        "kl_divergence": None,  # of the outputs from those of the first stage, in nats
        "parameters": sum(tensor.numel() for tensor in parameters),
        "nonzero": sum(int(tensor.count_nonzero()) for tensor in parameters),
        "bytes": file_bytes,
    }


def parameters_of(model: Checkpoint) -> list[torch.Tensor]:
    """The tensors that are parameters; of a bare state dict all of floating point.

    Tied ones count once.
    """
    if model.arch:
        names = restore.parameter_names(model.arch)
        return [tensor for name, tensor in model.state_dict.items() if name in names]
    floating = [tensor for tensor in model.state_dict.values() if tensor.is_floating_point()]
    return list({identity(tensor): tensor for tensor in floating}.values())


# Where the bytes of encodings/ are


def layer_rows(
    tensors: list[TensorInfo], state: Mapping[str, torch.Tensor], names: list[str]
) -> list[dict]:
    """One row per compressible layer; its bias, a file of its own, counts among its "parts"."""
    by_name = {name: tensor for tensor in tensors for name in (tensor.name, *tensor.tied)}
    return [
        layer_row(name, by_name[name], by_name.get(bias_of(name)), state[name])
        for name in names
        if name in by_name
    ]


def layer_row(name: str, weight: TensorInfo, bias: TensorInfo | None, tensor: torch.Tensor) -> dict:
    sections = weight.sections
    return {
        "name": shortest_name(name),
        "parameters": weight.parameters,
        "nonzero": weight.nonzero,
        "weight_bits": weight.weight_bits,
        "index_bits": weight.index_bits,
        "encoded_bytes": weight.encoded_bytes,
        "weight_bits_before_huffman": weight.weight_bits_before,
        "index_bits_before_huffman": weight.index_bits_before,
        # The paper's P and P+Q: sizes that the steps before Huffman coding would give.
        "bytes_pruned": fixed_width_bytes(tensor, 8 * tensor.element_size()),
        "bytes_before_huffman": bytes_before_huffman(weight, tensor),
        "parts": {  # bytes of the weight's file, and of the bias's
            "values": sections["values"],
            "positions": sections["positions"],
            "codebook": sections["codebook"],
            "bias": bias.encoded_bytes if bias else 0,
            "header": sections["header"] + sections["checksum"],
        },
        "value_code": code(weight.value_stream) if weight.value_stream else None,
        "gap_codes": [code(stream) for stream in weight.gap_streams],
    }


def code(stream: encoding.Stream) -> dict:
    """How often each symbol of a Huffman code occurs, and the bits of its code word."""
    return {
        "symbols": stream.symbols.tolist(),
        "frequencies": stream.frequencies.tolist(),
        "bits": stream.lengths.tolist(),
    }


def bytes_before_huffman(info: TensorInfo, tensor: torch.Tensor) -> float:
    """The size that weight sharing alone would give the tensor (the paper's P+Q)."""
    shared = len(info.value_stream.symbols) if info.value_stream else 0
    sparse = info.kind.startswith("sparse")
    return fixed_width_bytes(tensor, info.weight_bits_before, shared, sparse)


def fixed_width_bytes(
    tensor: torch.Tensor, value_bits: int, shared_values: int = 0, sparse: bool = True
) -> float:
    """The size of a tensor without Huffman coding, as the paper counts it (section 2, equation 1).

    Every stored entry, padding zeros among them, takes `value_bits` and, in sparse form, a relative
    index of the width with the smallest total; a codebook takes 4 bytes per shared value.
    """
    stored, index_bits = tensor.numel(), 0
    if sparse:
        positions = tensor.flatten().nonzero().flatten().numpy()
        index_bits = encoding.fixed_index_bits(positions, value_bits)
        gaps = np.diff(positions, prepend=-1) - 1
        stored = len(gaps) + int((gaps >> index_bits).sum())
    return stored * (value_bits + index_bits) / 8 + 4 * shared_values


def other_row(
    tensors: list[TensorInfo],
    state: Mapping[str, torch.Tensor],
    names: list[str],
    layers: list[dict],
    encoded: int,
) -> dict:
    """All that is not one of the weights `names`, whose rows are `layers`: biases, normalisation,
    the manifest."""
    weights = set(names)
    others = [tensor for tensor in tensors if weights.isdisjoint((tensor.name, *tensor.tied))]
    manifest = encoded - sum(tensor.encoded_bytes for tensor in tensors)
    return {
        "parameters": sum(tensor.parameters for tensor in others),
        "encoded_bytes": encoded - sum(layer["encoded_bytes"] for layer in layers),
        "bytes_pruned": sum(tensor.dense_bytes for tensor in others),
        "bytes_before_huffman": manifest
        + sum(bytes_before_huffman(tensor, state[tensor.name]) for tensor in others),
        # What is in no layer's parts.
        "bytes_beside_layers": encoded - sum(sum(layer["parts"].values()) for layer in layers),
    }


def total_row(layers: list[dict], original: int, encoded: int) -> dict:
    """Sums over the layers; bits are averages over all non-zero weights."""
    nonzero = sum(layer["nonzero"] for layer in layers)

    def average(key: str) -> float:
        return sum(layer[key] * layer["nonzero"] for layer in layers) / max(nonzero, 1)

    return {
        "parameters": sum(layer["parameters"] for layer in layers),
        "nonzero": nonzero,
        "weight_bits": average("weight_bits"),
        "index_bits": average("index_bits"),
        "weight_bits_before_huffman": average("weight_bits_before_huffman"),
        "index_bits_before_huffman": average("index_bits_before_huffman"),
        "original_bytes": original,
        "encoded_bytes": encoded,
    }


# Equality


def identical(a: Checkpoint | None, b: Checkpoint | None) -> bool | None:
    """Whether two checkpoints hold the same bits; None if one is missing."""
    return same_state(a.state_dict, b.state_dict) if a and b else None


def same_state(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(same_bits(tensor, b[name]) for name, tensor in a.items())


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    as_bytes = [t.contiguous().flatten().view(torch.uint8) for t in (a, b)]
    return torch.equal(*as_bytes)
