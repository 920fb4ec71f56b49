"""The figures of all stages side by side: what `compare_stages.py` prints, writes and draws."""

from pathlib import Path

import torch

from net import checkpoint, encoding, stages
from net.checkpoint import Checkpoint
from net.errors import UserError
from net.training import evaluate

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
    found, missing = {}, []
    for stage, name in STAGE_FILES.items():
        path = Path(args.path) / name
        if path.exists():
            found[stage] = checkpoint.load(path)
        else:
            missing.append(f"no {path}{checkpoint.origin(path)}")
    tensors = None
    if Path(args.directory).is_dir() and any(Path(args.directory).glob("[!.]*")):
        tensors = encoding.describe(args.directory)
    else:
        missing.append(f"no encoded model in {args.directory}; run huffman_encode.py first")
    if not found:
        raise UserError(f"no stage is in {args.path}; run deep_compressing.py or pruning.py first")
    reference = next((c for c in found.values() if c.arch), next(iter(found.values())))
    if dataset is None and reference.arch:
        dataset = stages.load_data(args, reference)
    weights = set(stages.compressible_names(reference))
    rows = [
        stage_row(stage, found[stage], Path(args.path) / STAGE_FILES[stage], args, dataset)
        for stage in found
    ]
    original = 4 * rows[0]["parameters"]
    encoded = encoding.directory_bytes(args.directory) if tensors else None
    return {
        "dataset": dataset.name if dataset else None,
        "arch": reference.arch,
        "original_bytes": original,
        "encoded_bytes": encoded,
        "compression_ratio": original / encoded if encoded else None,
        "stages": rows,
        "layers": [layer_row(tensor) for tensor in tensors or [] if tensor.name in weights],
        "decoded_equals_weight_shared": identical(found.get("decoded"), found.get("weight_shared")),
        "missing": missing,
    }


def stage_row(stage: str, model: Checkpoint, path: Path, args, dataset) -> dict:
    error = None
    if dataset is not None and model.arch:
        module = stages.load_model(model, stages.cli.device(args))
        _, error = evaluate(module, dataset.test, args.test_batch_size)
    parameters = parameters_of(model)
    return {
        "stage": stage,
        "error_percent": error,
        "parameters": sum(tensor.numel() for tensor in parameters),
        "nonzero": sum(int(tensor.count_nonzero()) for tensor in parameters),
        "bytes": path.stat().st_size,
    }


def parameters_of(model: Checkpoint) -> list[torch.Tensor]:
    """The tensors that are parameters; of a bare state dict all of floating point."""
    if model.arch:
        names = stages.parameter_names(model.arch)
        return [tensor for name, tensor in model.state_dict.items() if name in names]
    return [tensor for tensor in model.state_dict.values() if tensor.is_floating_point()]


def layer_row(tensor: encoding.TensorInfo) -> dict:
    return {
        "name": tensor.name.removesuffix(".weight"),
        "parameters": tensor.parameters,
        "nonzero": tensor.nonzero,
        "weight_bits": tensor.weight_bits,
        "index_bits": tensor.index_bits,
        "encoded_bytes": tensor.encoded_bytes,
        "weight_bits_before_huffman": tensor.weight_bits_before,
        "index_bits_before_huffman": tensor.index_bits_before,
    }


def identical(a: Checkpoint | None, b: Checkpoint | None) -> bool | None:
    """Whether two checkpoints hold the same bits; None if one is missing."""
    if a is None or b is None:
        return None
    if a.state_dict.keys() != b.state_dict.keys():
        return False
    return all(same_bits(tensor, b.state_dict[name]) for name, tensor in a.state_dict.items())


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    as_bytes = [t.contiguous().flatten().view(torch.uint8) for t in (a, b)]
    return torch.equal(*as_bytes)
