"""What one tensor costs in the folder, and in what: for tables and plots."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from .bits import BitReader
from .codes import histogram
from .forms import patterns
from .manifest import Entry

SECTIONS = ("header", "positions", "codebook", "values")  # of a tensor's file


@dataclasses.dataclass
class Stream:
    """One Huffman code in use: what the plots show."""

    symbols: np.ndarray  # int64: numbers of shared values, or tokens of gaps
    frequencies: np.ndarray  # int64, how often each symbol occurs
    lengths: np.ndarray  # uint8, bits of its code word


@dataclasses.dataclass
class TensorInfo:
    """What one tensor costs in the folder. All bits are averages per stored (non-zero) value."""

    name: str
    tied: list[str]  # its other names
    shape: tuple[int, ...]
    dtype: str
    parameters: int
    nonzero: int  # elements whose bits are not all zero
    negative_zeros: int  # of these, of real numbers
    kind: str  # "sparse shared", "dense shared", "levels", "sparse raw" or "raw"
    shared_values: int  # that are stored; 0 if they are not shared
    weight_bits_before: int  # ceil(log2(codebook)), or the width of the type if not shared
    weight_bits: float  # code words, or raw values
    index_bits_before: int  # the fixed width with the smallest total, padding zeros included
    index_bits: float  # everything that says where the non-zeros are
    dense_bytes: int  # all elements in their type
    encoded_bytes: int  # of its stream; of a joined one its share, by elements
    sections: dict[str, float]  # bytes of header, positions, codebook, values, checksum
    value_stream: Stream | None
    gap_streams: list[Stream]


def tensor_infos(
    entries: Sequence[Entry], tensor: torch.Tensor, reader: BitReader
) -> list[TensorInfo]:
    """What ``reader``, which kept the codes, has read of the tensors ``entries``, whose elements
    are those of ``tensor``, one after the other.

    The codes of a stream of several are the first's."""
    whole = _info(entries[0], tensor, reader)
    if len(entries) == 1:
        return [whole]
    found: list[TensorInfo] = []
    done = given = 0
    for entry in entries:
        until = done + entry.elements
        part = tensor[done:until]
        present, negative = _counts(part)
        upto = whole.encoded_bytes * until // len(tensor)
        share = (upto - given) / whole.encoded_bytes
        info = dataclasses.replace(
            whole,
            name=entry.name,
            tied=entry.tied,
            shape=entry.shape,
            parameters=entry.elements,
            nonzero=len(present),
            negative_zeros=negative,
            shared_values=len(np.unique(patterns(part))) if whole.shared_values else 0,
            dense_bytes=entry.bytes,
            encoded_bytes=upto - given,
            sections={name: each * share for name, each in whole.sections.items()},
        )
        if found:
            info.value_stream, info.gap_streams = None, []
        found.append(info)
        done, given = until, upto
    return found


def _counts(tensor: torch.Tensor) -> tuple[np.ndarray, int]:
    """Where elements are whose bits are not all zero, int64, and how many are negative zeros."""
    bits = patterns(tensor)
    present = bits != 0
    if tensor.is_complex():
        present = present[0::2] | present[1::2]
    # A sign alone is a negative zero, but in types of 8 bits, which need not have any.
    sign = 1 << (8 * tensor.dtype.itemsize - 1)
    signed = tensor.is_floating_point() and tensor.dtype.itemsize > 1
    return np.flatnonzero(present), int((bits == sign).sum()) if signed else 0


def _info(entry: Entry, tensor: torch.Tensor, reader: BitReader) -> TensorInfo:
    positions, negative_zeros = _counts(tensor)
    streams: dict[str, list[Stream]] = {section: [] for section in SECTIONS}
    for section, code, counts in reader.codes or ():
        streams[section].append(Stream(code.symbols, counts, code.lengths))
    sparse, shared = "positions" in reader.sections, "codebook" in reader.sections
    # Levels have no Huffman code.
    value_stream = streams["values"][0] if shared and streams["values"] else None
    values = 0
    if shared:
        values = len(value_stream.symbols) if value_stream else len(np.unique(patterns(tensor)))
    stored = max(len(positions) if sparse else tensor.numel(), 1)
    weight_bits = 8 * entry.dtype.itemsize
    if shared:
        weight_bits = (values - 1).bit_length()
    sections = {name: reader.sections.get(name, 0) / 8 for name in SECTIONS}
    sections["header"] += reader.end / 8 - sum(sections.values())  # padding
    return TensorInfo(
        name=entry.name,
        tied=entry.tied,
        shape=entry.shape,
        dtype=str(entry.dtype).removeprefix("torch."),
        parameters=tensor.numel(),
        nonzero=len(positions),
        negative_zeros=negative_zeros,
        kind=_kind(sparse, shared, value_stream is not None),
        shared_values=values,
        weight_bits_before=weight_bits,
        weight_bits=sections["values"] * 8 / stored,
        index_bits_before=fixed_index_bits(positions, weight_bits) if sparse else 0,
        index_bits=sections["positions"] * 8 / stored,
        dense_bytes=entry.bytes,
        encoded_bytes=reader.end // 8,
        sections=sections | {"checksum": 4.0},
        value_stream=value_stream,
        gap_streams=streams["positions"],
    )


def _kind(sparse: bool, shared: bool, huffman: bool) -> str:
    if shared and not huffman:
        return "levels"
    if shared:
        return "sparse shared" if sparse else "dense shared"
    return "sparse raw" if sparse else "raw"


def fixed_index_bits(positions: np.ndarray, weight_bits: int) -> int:
    """The width of relative indexes, 1 to 16 bits, with which paper's section 2 stores least.

    A difference beyond 2**width needs padding zeros, each with an index and a weight.
    """
    if not len(positions):
        return 1
    gaps, counts = histogram(np.diff(positions, prepend=-1) - 1)

    def bits(width: int) -> int:
        return int(np.dot(counts, 1 + (gaps >> width))) * (width + weight_bits)

    return min(range(1, 17), key=bits)
