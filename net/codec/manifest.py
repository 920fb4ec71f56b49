"""The manifest of an encoded folder: names, types, shapes, checksums and meta data."""

import dataclasses
import json
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from .tensors import DTYPES

MANIFEST = "manifest.huff"
MAGIC = b"DCE\x05"  # Deep Compression encoding, version 5
READS = (b"\x03", b"\x04", b"\x05")  # the versions; later ones have more forms of tensors
MAX_TENSOR_BYTES = 1 << 34
MAX_MANIFEST_BYTES = 1 << 26  # of the file
# A text that is far larger than its file, and a tree that is far larger than its text, are left
# to those who want to fill a memory: most files have 15 bytes of text in a byte.
SPARE_TEXT, MAX_EXPANSION = 1 << 20, 32
SPARE_ITEMS, ITEMS_IN_A_BYTE = 1 << 14, 2

# Likely text of a manifest for DEFLATE to refer to, the likeliest last: the syntax, the types, and
# words of layers in general. No names or shapes of particular networks.
DICTIONARY = (
    b'"float8_e4m3fn","complex64","bool","uint8","int32","int64",[]],'
    b'"encoder.decoder.layers.blocks.features.classifier.head.embeddings.attention.query.key.value.'
    b'self.output.dense.mlp.proj.linear.conv.norm.gamma","beta",["weight_ih_l0","weight_hh_l0",'
    b'"bias_ih_l0","bias_hh_l0","in_proj_weight","in_proj_bias","out_proj."float64","float16",'
    b'"bfloat16",["0.1.2.3.4.5.6.7.8.9.10.11.12.'
    b'.num_batches_tracked","int64",[]],[".running_mean","float32",[".running_var","float32",['
    b'{"tensors":[[".weight","float32",[,]],[".bias","float32",[]],["'
    b']]],"meta":{"arch":"","dataset":""}}'
)


class ManifestError(ValueError):
    """Text that is no manifest, or names and meta data that make none."""


@dataclasses.dataclass(slots=True)  # frozen, it takes twice the time to make
class Entry:
    """One line of the manifest: a name, and the file of its tensor."""

    number: int
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    checksum: int = 0  # CRC-32 of the file
    same: "Entry | None" = None  # the first name of a tied tensor, whose file this is, too
    tied: list[str] = dataclasses.field(default_factory=list)  # the other names, of the first

    @property
    def file_name(self) -> str:
        """Unique by number, new with every content, harmless on any file system."""
        if self.same:
            return self.same.file_name
        name = re.sub(r"[^A-Za-z0-9_.]", "_", self.name[-40:])
        return f"{self.number:02d}-{name}-{self.checksum:08x}.huff"

    @property
    def bytes(self) -> int:
        """Of the tensor, dense."""
        return math.prod(self.shape) * self.dtype.itemsize

    def line(self) -> list:
        if self.same:
            return [self.name, self.same.number]
        return [self.name, str(self.dtype).removeprefix("torch."), list(self.shape)]


def fits(shape: Sequence[int], dtype: torch.dtype) -> bool:
    """At most 64 dimensions; the product of those that are not 0 within MAX_TENSOR_BYTES."""
    if len(shape) > 64 or not all(0 <= extent <= MAX_TENSOR_BYTES for extent in shape):
        return False  # before any of them is multiplied
    elements = math.prod(max(extent, 1) for extent in shape)
    return elements * dtype.itemsize <= MAX_TENSOR_BYTES


def pack(entries: list[Entry], meta: dict | None) -> bytes:
    """Magic and version, CRC-32 of the rest, DEFLATE of the JSON text, CRC-32 of every file.

    Raises ManifestError for what JSON cannot hold, as NaN, or 64 MiB.
    """
    try:
        document: dict = {"tensors": [entry.line() for entry in entries]}
        document |= {"meta": meta} if meta else {}
        text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ManifestError(f"cannot store the meta data as JSON: {error}") from error
    sums = np.array([entry.checksum for entry in entries if not entry.same], ">u4").tobytes()
    body = deflated(text, sums)
    if len(body) + 8 > MAX_MANIFEST_BYTES:
        raise ManifestError(f"names and meta data of more than {MAX_MANIFEST_BYTES >> 20} MiB")
    return MAGIC + zlib.crc32(body).to_bytes(4, "big") + body


def deflated(text: bytes, rest: bytes = b"") -> bytes:
    """JSON text as DEFLATE, and `rest`; stored where DEFLATE made it smaller than a reader
    believes."""
    for level in (9, 0):
        packer = zlib.compressobj(level, zlib.DEFLATED, -15, 9, zdict=DICTIONARY)
        body = packer.compress(text) + packer.flush() + rest
        if _plausible(text, len(body)):
            break
    return body


def inflated(body: bytes) -> tuple[bytes, bytes]:
    """What `deflated` was given. Raises ManifestError or zlib.error for anything else."""
    unpacker = zlib.decompressobj(-15, zdict=DICTIONARY)
    text = unpacker.decompress(body, most_text(len(body)) + 1)
    if not _plausible(text, len(body)):
        raise ManifestError("more text than a file of this size may hold")
    if not unpacker.eof:
        raise ManifestError("the data ends early")
    return text, unpacker.unused_data


def most_text(size: int) -> int:
    """The bytes of text that a body of ``size`` bytes may have."""
    return SPARE_TEXT + MAX_EXPANSION * size


def _plausible(text: bytes, size: int) -> bool:
    """Whether text, and the tree that JSON makes of it, are in proportion to ``size`` bytes."""
    items = sum(text.count(mark) for mark in (b",", b"[", b"{"))
    return len(text) <= most_text(size) and items <= SPARE_ITEMS + ITEMS_IN_A_BYTE * size


def check_version(data: bytes) -> None:
    """Raises ManifestError unless the byte behind the magic names a version that is read here."""
    if data[3:4] not in READS:
        known = f"{', '.join(each.hex() for each in READS[:-1])} and {READS[-1].hex()}"
        raise ManifestError(f"format version {data[3:4].hex()}; this program reads {known}")


def unpack(data: bytes) -> tuple[list[Entry], dict]:
    """Raises ValueError, RecursionError or zlib.error for anything that ``pack`` does not write."""
    if data[:3] != MAGIC[:3]:
        raise ManifestError("not a manifest of this program")
    check_version(data)
    if zlib.crc32(data[8:]) != int.from_bytes(data[4:8], "big"):
        raise ManifestError("the checksum does not match: the file is damaged")
    text, checksums = inflated(data[8:])
    document = json.loads(text)
    if not isinstance(document, dict) or not isinstance(document.get("tensors"), list):
        raise ManifestError("no list of tensors")
    tensors, meta = document["tensors"], document.get("meta", {})
    if not isinstance(meta, dict) or document.keys() - {"tensors", "meta"}:
        raise ManifestError("fields that this version does not have")
    stored = sum(isinstance(fields, list) and len(fields) == 3 for fields in tensors)
    if len(checksums) != 4 * stored:
        raise ManifestError("not one checksum for each tensor")
    sums = iter(np.frombuffer(checksums, ">u4").tolist())
    entries: list[Entry] = []
    shapes: dict[tuple, tuple[int, ...]] = {}
    for fields in tensors:
        entries.append(_entry(entries, fields, sums, shapes))
    if len({entry.name for entry in entries}) < len(entries):
        raise ManifestError("two tensors of the same name")
    return entries, meta


LINE, TIE = [str, str, list], [str, int]  # what a tensor's line is made of


def _entry(
    before: list[Entry],
    fields: Any,
    sums: Iterator[int],
    shapes: dict[tuple, tuple[int, ...]],
) -> Entry:
    """The next one; `shapes` has those that are within the limits, by type."""
    number = len(before)
    kinds = [*map(type, fields)] if isinstance(fields, list) else []
    if kinds == LINE and fields[1] in DTYPES and len(extents := fields[2]) <= 64:
        name, kind, _ = fields
        if {*map(type, extents)} <= {int}:  # True is as 1, but no extent
            shape = shapes.get(key := (kind, *extents))
            if shape is None and fits(extents, DTYPES[kind]):
                shape = shapes[key] = key[1:]
            if shape is not None:
                return Entry(number, name, DTYPES[kind], shape, next(sums))
    elif kinds == TIE and 0 <= fields[1] < number:
        name, same = fields[0], before[fields[1]]
        if same.same:
            raise ManifestError(f"tensor {number}: the same as one that has no file itself")
        same.tied.append(name)
        return Entry(number, name, same.dtype, same.shape, same.checksum, same)
    raise ManifestError(f"tensor {number}: not a name, a known type and a shape within the limits")
