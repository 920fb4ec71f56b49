"""The figures of all stages side by side, as `--json` has them; tables and plots show no others."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from .. import checkpoint, encoding
from ..checkpoint import MADE_FROM, STAGE_FILES, Checkpoint, fingerprint
from ..choose import divergence
from ..codec.forms import patterns
from ..encoding import TensorInfo
from ..errors import UserError
from ..formats import is_index, weight_map, weights_file
from ..parameters import bias_of, shortest_name
from ..tensors import identity
from ..training import architectures, weights
from ..training.loop import error_percent, outputs
from ..training.splits import Dataset
from . import plots, tables

BINS = 80  # of a histogram of weights
STRETCH = 4  # by which outliers may widen it
MAX_SHARED_VALUES = 4096
MAX_FILTERS = 64
State = Mapping[str, torch.Tensor]


@dataclass
class Stages:
    """What is in the folder of the models and in that of the encoded one."""

    found: dict[str, Checkpoint]  # by stage, in their order
    file_bytes: dict[str, int]
    missing: list[str]  # a line for each that is not there
    state: State  # the encoded model: empty, no tensors and no bytes without one
    tensors: list[TensorInfo]
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
    initial: str | Path | None = None,
    made_by: Mapping[str, str] | None = None,
) -> Stages:
    """The stages in `folder`, and the encoded model, which `directory` or a .dc file holds.

    `initial` is the file of the dense model, where it is not in `folder`; `made_by` has what makes
    a file, by the file's name.

    Raises UserError for a damaged one.
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
    _check_one_run(folder, found)
    arch = next((model.arch for model in found.values() if model.arch), None)
    if arch and initial and not found["initial"].arch:  # a state dict that somebody else saved
        dataset = next((model.dataset for model in found.values() if model.dataset), None)
        adopted = weights.adopted(found["initial"], initial, arch)
        found["initial"] = replace(adopted, dataset=dataset)
    shared = found.get("weight_shared")
    untrained = shared is not None and not shared.options.get("finetune_epochs")
    missing = []
    for stage, file in files.items():
        if stage in found:
            continue
        maker = (made_by or {}).get(file.name)
        line = f"no {file}; run {maker} first" if maker else f"no {file}"
        if untrained and stage in ("initial", "retrained"):
            line = f"{stage}, since the model was shared as it was, without training"
        missing.append(line)
    before = [fingerprint(found[stage]) for stage in ("initial", "retrained") if stage in found]
    source = shared.options.get(MADE_FROM) if shared is not None else None
    if source and "retrained" in found and source not in before:
        missing.append(
            "the model that was shared: it was pruned anew since; run weight_share.py again"
        )
    file_bytes = {stage: _bytes_at(files[stage]) for stage in found}
    if not (directory.is_file() or (directory.is_dir() and any(directory.glob("[!.]*")))):
        return Stages(found, file_bytes, missing, {}, [], None)
    state, meta, tensors = encoding.read(directory)
    if arch and meta.get("arch", arch) != arch:
        raise UserError(
            f"{directory} holds a {meta['arch']}, {folder} a {arch}; give the folders of one run"
        )
    size = encoding.directory_bytes(directory)
    return Stages(found, file_bytes, missing, state, tensors, size)


def _bytes_at(path: Path) -> int:
    """Of a file, or of those of shards: a folder, or their index."""
    file = weights_file(path)
    files = {*weight_map(file).values()} if is_index(file) else {file}
    return sum(each.stat().st_size for each in files)


def _check_one_run(folder: Path, found: Mapping[str, Checkpoint]) -> None:
    """Raises UserError where the stages in a folder are of several architectures or data sets."""
    for what in ("arch", "dataset"):
        known = {stage: own for stage, each in found.items() if (own := getattr(each, what))}
        if len(set(known.values())) > 1:
            each = ", ".join(f"{stage}: {own}" for stage, own in known.items())
            raise UserError(f"{folder} holds stages of several runs ({each}); give one run's")


def compare(
    stages: Stages,
    dataset: Dataset | None,
    device: torch.device | str = "cpu",
    batch_size: int = 1000,
) -> dict:
    """The comparison as a dict, in the layout of `--json`.

    Stages that are missing are listed under "missing"; the others are evaluated on the test set of
    `dataset`, if there is one.
    """
    found, encoded = stages.found, stages.encoded_bytes
    names = list(weights.kinds_of(stages.reference))
    rows, first = [], None
    for stage, model in found.items():
        parameters = parameters_of(model)
        row: dict = {
            "stage": stage,
            "error_percent": None,
            "error_change": None,  # against the initial model, in percentage points
            "kl_divergence": None,  # of the outputs from those of the first stage, in nats
            "parameters": sum(tensor.numel() for tensor in parameters),
            "nonzero": sum(int(tensor.count_nonzero()) for tensor in parameters),
            "bytes": stages.file_bytes[stage],
        }
        rows.append(row)
        if dataset is not None and model.arch:
            restored = weights.restored(model, device)
            architectures.check_fits(restored, model.arch, dataset)
            logits, labels = outputs(restored, dataset.test, batch_size)
            row["error_percent"] = error_percent(logits, labels)
            first = logits if first is None else first
            row["kl_divergence"] = divergence(logits, first)
    if "initial" in found and rows[0]["error_percent"] is not None:
        for row in rows:
            if row["error_percent"] is not None:
                row["error_change"] = row["error_percent"] - rows[0]["error_percent"]
    original = 4 * rows[0]["parameters"]
    layers = layer_rows(stages, names)
    decoded = found.get("decoded")
    return {
        "dataset": dataset.name if dataset else None,
        "arch": stages.reference.arch,
        "original_bytes": original,
        "encoded_bytes": encoded,
        "compression_ratio": original / encoded if encoded else None,
        "stages": rows,
        "layers": layers,
        "other": other_row(stages, names, layers, encoded) if encoded else None,
        "total": total_row(layers, original, encoded) if encoded else None,
        "distributions": [distribution(name, found) for name in names],
        "first_layer_mask": first_layer_mask(stages.last),
        "decoded_equals_weight_shared": identical(decoded, found.get("weight_shared")),
        "decoded_equals_encoded": identical(decoded, Checkpoint(stages.state) if encoded else None),
        "missing": stages.missing,
    }


def latency(stages: Stages, dataset: Dataset | None) -> dict:
    """Dense against sparse layers of the last stage, on images of the test set."""
    from .. import sparse  # takes SciPy along

    if dataset is None or not stages.last.arch:
        raise UserError("latency needs the architecture: a bare state dict cannot be run")
    inputs, _ = next(dataset.test.batches(64))  # as many as the greatest batch that is timed
    inputs = torch.cat([inputs] * -(-64 // len(inputs)))[:64]
    return sparse.latency(weights.restored(stages.last), inputs)


def show(
    figures: dict,
    json: str | Path | None = None,
    csv: str | Path | None = None,
    plot: str | Path | None = None,
) -> None:
    """Print the comparison; write it to the files that are named."""
    print(tables.comparison_text(figures))
    if json:
        tables.write_json(json, figures)
    if csv:
        tables.write_csv(csv, figures)
    if plot:
        plots.save(plots.comparison_page(figures), plot)


def parameters_of(model: Checkpoint) -> list[torch.Tensor]:
    """The tensors that are parameters; of a bare state dict all of floating point.

    Tied ones count once.
    """
    if model.arch:
        names = dict(architectures.skeleton(model.arch).named_parameters())
        return [tensor for name, tensor in model.state_dict.items() if name in names]
    floating = [tensor for tensor in model.state_dict.values() if tensor.is_floating_point()]
    return list({identity(tensor): tensor for tensor in floating}.values())


def identical(a: Checkpoint | None, b: Checkpoint | None) -> bool | None:
    """Whether two checkpoints hold the same bits; None if one is missing."""
    if a is None or b is None:
        return None
    first, second = a.state_dict, b.state_dict
    return first.keys() == second.keys() and all(
        (one.dtype, one.shape) == (second[name].dtype, second[name].shape)
        and np.array_equal(patterns(one), patterns(second[name]))
        for name, one in first.items()
    )


# --- where the bytes of the encoded model are -----------------------------------------------------


def layer_rows(stages: Stages, names: list[str]) -> list[dict]:
    """One row per compressible layer; its bias, a file of its own, counts among its "parts"."""
    by_name = {name: tensor for tensor in stages.tensors for name in (tensor.name, *tensor.tied)}
    rows = []
    for name in names:
        if name not in by_name:
            continue
        weight, bias, tensor = by_name[name], by_name.get(bias_of(name)), stages.state[name]
        retrained = stages.found.get("retrained")
        pruned = retrained.state_dict.get(name, tensor) if retrained else tensor
        sections = weight.sections
        row = {
            "name": shortest_name(name),
            "parameters": weight.parameters,
            "nonzero": weight.nonzero,
            "weight_bits": weight.weight_bits,
            "index_bits": weight.index_bits,
            "encoded_bytes": weight.encoded_bytes,
            "weight_bits_before_huffman": weight.weight_bits_before,
            "index_bits_before_huffman": weight.index_bits_before,
            # The paper's P and P+Q: sizes that the steps before Huffman coding would give.
            "bytes_pruned": fixed_width_bytes(pruned, 8 * pruned.element_size()),
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
        rows.append(row)
    return rows


def code(stream: encoding.Stream) -> dict:
    """How often each symbol of a Huffman code occurs, and the bits of its code word."""
    return {
        "symbols": stream.symbols.tolist(),
        "frequencies": stream.frequencies.tolist(),
        "bits": stream.lengths.tolist(),
    }


def bytes_before_huffman(info: TensorInfo, tensor: torch.Tensor) -> float:
    """The size that weight sharing alone would give the tensor (the paper's P+Q)."""
    sparse = info.kind.startswith("sparse")
    return fixed_width_bytes(tensor, info.weight_bits_before, info.shared_values, sparse)


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


def other_row(stages: Stages, names: list[str], layers: list[dict], encoded: int) -> dict:
    """All that is not one of the weights `names`, whose rows are `layers`: biases, normalisation,
    the manifest."""
    weights = set(names)
    others = [t for t in stages.tensors if weights.isdisjoint((t.name, *t.tied))]
    manifest = encoded - sum(tensor.encoded_bytes for tensor in stages.tensors)
    return {
        "parameters": sum(tensor.parameters for tensor in others),
        "encoded_bytes": encoded - sum(layer["encoded_bytes"] for layer in layers),
        "bytes_pruned": sum(tensor.dense_bytes for tensor in others),
        "bytes_before_huffman": manifest
        + sum(bytes_before_huffman(tensor, stages.state[tensor.name]) for tensor in others),
        # What is in no layer's parts.
        "bytes_beside_layers": encoded - sum(sum(layer["parts"].values()) for layer in layers),
    }


def total_row(layers: list[dict], original: int, encoded: int) -> dict:
    """Sums over the layers; bits are averages over all weights that are stored: those that are not
    zero where there is an index, else all."""
    stored = [x["nonzero" if x["index_bits_before_huffman"] else "parameters"] for x in layers]
    pairs = list(zip(layers, stored, strict=True))
    bits = ("weight_bits", "index_bits", "weight_bits_before_huffman", "index_bits_before_huffman")
    return {
        "parameters": sum(layer["parameters"] for layer in layers),
        "nonzero": sum(layer["nonzero"] for layer in layers),
        **{key: sum(x[key] * n for x, n in pairs) / max(sum(stored), 1) for key in bits},
        "original_bytes": original,
        "encoded_bytes": encoded,
    }


# --- the weights themselves -----------------------------------------------------------------------


def span(values: np.ndarray) -> tuple[float, float]:
    """From the least to the largest value, or between the percentiles plots.INSIDE where a few
    outliers would leave the others in less than a STRETCH-th of that."""
    low, high = float(values.min()), float(values.max())
    inner = np.percentile(values, plots.INSIDE)
    if high - low > STRETCH * (inner[1] - inner[0]) > 0:
        return float(inner[0]), float(inner[1])
    return low, high


def distribution(name: str, found: dict[str, Checkpoint]) -> dict:
    """Counts over BINS equal bins of [low, high], and the shared values with theirs. Outliers may
    lie outside: "beyond" is their number.

    `found` is {stage: Checkpoint} of the stages that are there. "initial" counts every weight,
    "retrained" the survivors; each is None without its stage, as are "shared_values" and
    "shared_counts" where no stage has shared values.
    """
    weights = {}  # finite ones, of the stages that have them
    for stage in ("initial", "retrained", "weight_shared", "decoded"):
        if stage in found and name in found[stage].state_dict:
            values = found[stage].state_dict[name].flatten().float()
            weights[stage] = values[values.isfinite() & ((values != 0) | (stage == "initial"))]
    histograms = [weights[stage] for stage in ("initial", "retrained") if stage in weights]
    spans = [span(values.numpy()) for values in histograms if len(values)]
    low = min((low for low, _ in spans), default=-1.0)
    high = max((high for _, high in spans), default=1.0)
    if low == high:  # a constant weight
        low, high = low - 1, high + 1
    beyond = sum(int(((values < low) | (values > high)).sum()) for values in histograms)
    states = [model.state_dict for model in found.values()]
    parameters = max((state[name].numel() for state in states if name in state), default=0)
    row: dict = {"name": shortest_name(name), "parameters": parameters}
    row |= {"low": low, "high": high, "beyond": beyond}
    for stage in ("initial", "retrained"):
        row[stage] = None
        if stage in weights:
            row[stage] = torch.histc(weights[stage], BINS, low, high).long().tolist()
    row |= {"shared_values": None, "shared_counts": None}
    shared = weights.get("decoded", weights.get("weight_shared"))
    if shared is not None:
        values, counts = shared.unique(return_counts=True)
        if len(values) <= MAX_SHARED_VALUES:
            row |= {"shared_values": values.tolist(), "shared_counts": counts.tolist()}
    return row


def first_layer_mask(source: Checkpoint) -> dict | None:
    """How many weights are left at each place that the first layer looks at.

    Of a linear layer that sees an image: per pixel [height, width] over all units and channels.
    Of a 2-d convolution: per filter and place in its kernel [filters, height, width] over the
    input channels, the first MAX_FILTERS filters.  None for anything else.
    "counts" is flat, in row order; "most" is what a dense layer would have at each place.
    """
    names = list(weights.kinds_of(source))
    if not names:
        return None
    weight = source.state_dict[names[0]] != 0
    model = architectures.skeleton(source.arch) if source.arch else None
    shape = tuple(getattr(model, "input_shape", None) or ())  # of an image: channels, height, width
    if weight.dim() == 2 and len(shape) == 3 and weight.shape[1] == np.prod(shape):
        counts = weight.sum(0).view(shape).sum(0)
        kind, most = "pixels", len(weight) * shape[0]
    elif weight.dim() == 4:
        counts, kind, most = weight[:MAX_FILTERS].sum(1), "filters", weight.shape[1]
    else:
        return None
    return {
        "layer": shortest_name(names[0]),
        "kind": kind,
        "shape": list(counts.shape),
        "counts": counts.flatten().tolist(),
        "most": most,
    }
