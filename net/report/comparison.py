"""The figures of all stages side by side: what `compare_stages.py` prints, writes and draws."""

from pathlib import Path

import numpy as np
import torch

from .. import checkpoint, encoding
from ..checkpoint import Checkpoint
from ..codec.tensors import identity
from ..encoding import TensorInfo
from ..errors import UserError
from ..pipeline import stages
from ..training.loop import evaluate
from . import distributions, plots, tables

STAGE_FILES = {
    "initial": stages.INITIAL,
    "retrained": stages.RETRAINED,
    "weight_shared": stages.SHARED,
    "decoded": stages.DECODED,
}


def compare(args, dataset=None) -> dict:
    """The comparison as a dict, in the layout of `--json` (README, "compare_stages.py").

    Stages that are missing are listed under "missing" with the command that makes them; the
    others are evaluated on the test set of the data set that they were trained on.
    """
    found, missing = find_stages(Path(args.path))
    tensors, encoded_state = None, None
    if Path(args.directory).is_dir() and any(Path(args.directory).glob("[!.]*")):
        tensors = encoding.describe(args.directory)
        encoded_state = encoding.load(args.directory)[0]
    else:
        missing.append(f"no encoded model in {args.directory}; run huffman_encode.py first")
    if not found:
        raise UserError(f"no stage is in {args.path}; run deep_compressing.py or pruning.py first")
    reference = next((c for c in found.values() if c.arch), next(iter(found.values())))
    if dataset is None and reference.arch:
        dataset = stages.load_data(args, reference)
    names = stages.compressible_names(reference)
    rows = [
        stage_row(stage, found[stage], Path(args.path) / STAGE_FILES[stage], args, dataset)
        for stage in found
    ]
    if "initial" in found and rows[0]["error_percent"] is not None:
        for row in rows:
            row["error_change"] = row["error_percent"] - rows[0]["error_percent"]
    original = 4 * rows[0]["parameters"]
    encoded = encoding.directory_bytes(args.directory) if tensors else None
    layers = layer_rows(tensors, encoded_state, names) if tensors else []
    decoded = found.get("decoded")
    return {
        "dataset": dataset.name if dataset else None,
        "arch": reference.arch,
        "original_bytes": original,
        "encoded_bytes": encoded,
        "compression_ratio": original / encoded if encoded else None,
        "stages": rows,
        "layers": layers,
        "other": other_row(tensors, encoded_state, layers, encoded) if tensors else None,
        "total": total_row(layers, original, encoded) if tensors else None,
        "distributions": distributions.distributions(found, names),
        "first_layer_mask": distributions.first_layer_mask(list(found.values())[-1]),
        "decoded_equals_weight_shared": identical(decoded, found.get("weight_shared")),
        "decoded_equals_encoded": tensors is not None
        and decoded is not None
        and same_state(decoded.state_dict, encoded_state),
        "missing": missing,
        **(measured_latency(list(found.values())[-1], dataset) if args.latency else {}),
    }


def measured_latency(model: Checkpoint, dataset) -> dict:
    """Dense against sparse layers of the last stage, on images of the test set."""
    from .. import sparse  # takes SciPy along

    if dataset is None or not model.arch:
        raise UserError("--latency needs the architecture: a bare state dict cannot be run")
    return {"latency": sparse.latency(stages.load_model(model, "cpu"), dataset.test.images)}


def find_stages(folder: Path) -> tuple[dict[str, Checkpoint], list[str]]:
    """The stages in `folder`, in their order, and a line for each that is missing."""
    found, missing = {}, []
    for stage, name in STAGE_FILES.items():
        if (folder / name).exists():
            found[stage] = checkpoint.load(folder / name)
        else:
            missing.append(f"no {folder / name}{checkpoint.origin(name)}")
    return found, missing


def show(figures: dict, args) -> None:
    """Print the comparison; write it where --json, --csv and --plot ask for it."""
    print(tables.comparison_text(figures))
    if args.json:
        tables.write_json(args.json, figures)
    if args.csv:
        tables.write_csv(args.csv, figures)
    if args.plot:
        plots.save(plots.comparison_page(figures), args.plot)


def stage_row(stage: str, model: Checkpoint, path: Path, args, dataset) -> dict:
    error = None
    if dataset is not None and model.arch:
        module = stages.load_model(model, stages.cli.device(args))
        _, error = evaluate(module, dataset.test, args.test_batch_size)
    parameters = parameters_of(model)
    return {
        "stage": stage,
        "error_percent": error,
        "error_change": None,  # against the initial model, in percentage points
        "parameters": sum(tensor.numel() for tensor in parameters),
        "nonzero": sum(int(tensor.count_nonzero()) for tensor in parameters),
        "bytes": path.stat().st_size,
    }


def parameters_of(model: Checkpoint) -> list[torch.Tensor]:
    """The tensors that are parameters; of a bare state dict all of floating point.

    Tied ones count once.
    """
    if model.arch:
        names = stages.parameter_names(model.arch)
        return [tensor for name, tensor in model.state_dict.items() if name in names]
    floating = [tensor for tensor in model.state_dict.values() if tensor.is_floating_point()]
    return list({identity(tensor): tensor for tensor in floating}.values())


# Where the bytes of encodings/ are


def layer_rows(tensors: list[TensorInfo], state: dict, names: list[str]) -> list[dict]:
    """One row per compressible layer; its bias, a file of its own, counts among its "parts"."""
    by_name = {name: tensor for tensor in tensors for name in (tensor.name, *tensor.tied)}
    return [
        layer_row(name, by_name[name], by_name.get(bias_of(name)), state[name])
        for name in names
        if name in by_name
    ]


def bias_of(weight_name: str) -> str:
    return weight_name.removesuffix("weight") + "bias"


def layer_row(name: str, weight: TensorInfo, bias: TensorInfo | None, tensor) -> dict:
    sections = weight.sections
    return {
        "name": name.removesuffix(".weight"),
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


def fixed_width_bytes(tensor, value_bits: int, shared_values: int = 0, sparse: bool = True):
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


def other_row(tensors: list[TensorInfo], state: dict, layers: list[dict], encoded: int) -> dict:
    """All that is not a layer's weight: biases, normalisation, the manifest."""
    weights = {f"{layer['name']}.weight" for layer in layers}
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

    def average(key):
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


def same_state(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(same_bits(tensor, b[name]) for name, tensor in a.items())


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    as_bytes = [t.contiguous().flatten().view(torch.uint8) for t in (a, b)]
    return torch.equal(*as_bytes)
