"""The manifest of an encoded folder: names, types, shapes, checksums and meta data."""

import dataclasses
import json
import math
import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .tensors import DTYPES

MANIFEST = "manifest.huff"
MAGIC = b"DCE\x06"  # Deep Compression encoding, version 6
READS = (b"\x03", b"\x04", b"\x05", b"\x06")  # the versions; each reads as those before it
MAX_TENSOR_BYTES = 1 << 34
MAX_MANIFEST_BYTES = 1 << 26  # of the file
MAX_JOINED = 1 << 17  # elements of one stream of several tensors
DEEPEST = 64  # of the trees of names that are written
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
    """One line of the manifest: a name, and the stream that its tensor is in.

    Small tensors of a kind may be joined, their elements one after the other as those of a vector,
    in the stream of the first of them.
    """

    number: int
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    checksum: int = 0  # CRC-32 of its own stream
    same: "Entry | None" = None  # the first name of a tied tensor, which this is, too
    tied: list[str] = dataclasses.field(default_factory=list)  # the other names, of the first
    first: "Entry | None" = None  # of those that it is joined to, unless it is that itself
    offset: int = 0  # elements before its own
    joined: int = 0  # elements in the stream, if it is the first of several

    @property
    def own(self) -> "Entry":
        """The first name of its tensor: another entry for a tied one, or else this."""
        return self.same or self

    @property
    def home(self) -> "Entry":
        """The one whose stream this tensor is in."""
        return self.own.first or self.own

    @property
    def has_stream(self) -> bool:
        return not self.same and not self.first

    @property
    def file_name(self) -> str:
        """Unique by number, new with every content, harmless on any file system."""
        home = self.home
        name = re.sub(r"[^A-Za-z0-9_.]", "_", home.name[-40:])
        return f"{home.number:02d}-{name}-{home.checksum:08x}.huff"

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Of the tensor, dense."""
        return self.elements * self.dtype.itemsize

    @property
    def stream_shape(self) -> tuple[int, ...]:
        """Of what its own stream is the elements of."""
        return (self.joined,) if self.joined else self.shape

    @property
    def kind(self) -> tuple[torch.dtype, str]:
        """What tensors that are joined have in common: the type and the last part of the name."""
        return self.dtype, self.name.rpartition(".")[2]

    def join(self, first: "Entry | None") -> None:
        """To the others of its kind; None if it is the first of them. Raises ManifestError."""
        if first is None:
            self.joined = self.elements
            return
        self.first, self.offset = first, first.joined
        first.joined += self.elements
        if first.joined > MAX_JOINED:
            raise ManifestError(f"tensor {self.number}: too many elements in one stream")

    def part(self, whole: torch.Tensor) -> torch.Tensor:
        """This tensor, of the tensor that its stream holds."""
        own = self.own
        if not own.home.joined:
            return whole
        part = whole[own.offset : own.offset + own.elements].view(torch.uint8)
        # Saved, a view would take the whole with it. Of bool, only bytes are copied as they are.
        return part.clone().view(own.dtype).reshape(own.shape)

    def line(self) -> list:
        if self.same:
            return [self.name, self.same.number]
        line: list = [self.name, str(self.dtype).removeprefix("torch."), list(self.shape)]
        return [*line, 1] if self.home.joined else line


def fits(shape: Sequence[int], dtype: torch.dtype) -> bool:
    """At most 64 dimensions; the product of those that are not 0 within MAX_TENSOR_BYTES."""
    if len(shape) > 64 or not all(0 <= extent <= MAX_TENSOR_BYTES for extent in shape):
        return False  # before any of them is multiplied
    elements = math.prod(max(extent, 1) for extent in shape)
    return elements * dtype.itemsize <= MAX_TENSOR_BYTES


def pack(entries: list[Entry], meta: dict | None) -> bytes:
    """Magic and version, CRC-32 of the rest, DEFLATE of the JSON text, CRC-32 of every stream.

    Raises ManifestError for what JSON cannot hold, as NaN, or 64 MiB.
    """
    lines = [entry.line() for entry in entries]
    sums = np.array([entry.checksum for entry in entries if entry.has_stream], ">u4").tobytes()
    body = _body(lines, meta, sums)
    if isinstance(tree := tree_of(lines), dict):
        shorter = _body(tree, meta, sums)
        if len(shorter) < len(body) and _has_room(tree, most_text(len(shorter))):
            body = shorter
    if len(body) + 8 > MAX_MANIFEST_BYTES:
        raise ManifestError(f"names and meta data of more than {MAX_MANIFEST_BYTES >> 20} MiB")
    return MAGIC + zlib.crc32(body).to_bytes(4, "big") + body


def _body(tensors: list | dict, meta: dict | None, sums: bytes) -> bytes:
    document = {"tensors": tensors, "meta": meta} if meta else {"tensors": tensors}
    try:
        text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ManifestError(f"cannot store the meta data as JSON: {error}") from error
    return deflated(text, sums)


def tree_of(lines: list[list]) -> list[list] | dict[str, Any]:
    """Lines as a tree by the parts of their names, {"layer1": {"0": {"weight": [TYPE, SHAPE]}}}, so
    that layers alike have the same text; as they are where that would not say the same."""
    root: dict[str, Any] = {}
    for name, *fields in lines:
        *above, last = name.split(".")
        if len(above) > DEEPEST:
            return lines
        inner = root
        for part in above:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):  # there is a tensor of this name
                return lines
        inner[last] = fields
    return root if lines_of(root, math.inf) == lines else lines


def lines_of(tree: dict[str, Any], most: float) -> list[list]:
    """The lines that `tree_of` was given, whose names have at most so many characters, those of the
    nodes counted; ManifestError for what it does not give."""
    lines: list[list] = []
    nodes = [("", iter(tree.items()))]
    while nodes:
        above, below = nodes[-1]
        for part, inner in below:
            name = above + part
            most -= len(name)  # a long name above many others would fill a memory
            if most < 0:
                raise ManifestError("longer names than a file of this size may hold")
            if isinstance(inner, dict):
                nodes.append((f"{name}.", iter(inner.items())))
                break
            if not isinstance(inner, list):
                raise ManifestError(f"{name[:80]!r}: neither a tensor nor names below it")
            lines.append([name, *inner])
        else:
            nodes.pop()
    return lines


def _has_room(tree: dict[str, Any], most: int) -> bool:
    try:
        lines_of(tree, most)
    except ManifestError:
        return False
    return True


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
    if not isinstance(document, dict) or not isinstance(document.get("tensors"), list | dict):
        raise ManifestError("no list of tensors")
    tensors, meta = document["tensors"], document.get("meta", {})
    if isinstance(tensors, dict):
        tensors = lines_of(tensors, most_text(len(data) - 8))
    if not isinstance(meta, dict) or document.keys() - {"tensors", "meta"}:
        raise ManifestError("fields that this version does not have")
    entries: list[Entry] = []
    shapes: dict[tuple, tuple[int, ...]] = {}
    firsts: dict[tuple[torch.dtype, str], Entry] = {}
    for fields in tensors:
        entries.append(_entry(entries, fields, shapes, firsts))
    streams = [entry for entry in entries if entry.has_stream]
    if len(checksums) != 4 * len(streams):
        raise ManifestError("not one checksum for each tensor")
    for entry, each in zip(streams, np.frombuffer(checksums, ">u4").tolist(), strict=True):
        entry.checksum = each
    for first in firsts.values():
        if first.joined <= first.elements:
            raise ManifestError(f"tensor {first.number}: joined to no other")
    if len({entry.name for entry in entries}) < len(entries):
        raise ManifestError("two tensors of the same name")
    return entries, meta


LINE, JOINED, TIE = [str, str, list], [str, str, list, int], [str, int]  # lines are made of these


def _entry(
    before: list[Entry],
    fields: Any,
    shapes: dict[tuple, tuple[int, ...]],
    firsts: dict[tuple[torch.dtype, str], Entry],
) -> Entry:
    """The next one; `shapes` has those that are within the limits, by type, `firsts` the first
    of those that are joined, by kind."""
    number = len(before)
    kinds = [*map(type, fields)] if isinstance(fields, list) else []
    joined = kinds == JOINED and fields[3] == 1
    if (kinds == LINE or joined) and fields[1] in DTYPES and len(extents := fields[2]) <= 64:
        name, kind, *_ = fields
        if {*map(type, extents)} <= {int}:  # True is as 1, but no extent
            shape = shapes.get(key := (kind, *extents))
            if shape is None and fits(extents, DTYPES[kind]):
                shape = shapes[key] = key[1:]
            if shape is not None:
                entry = Entry(number, name, DTYPES[kind], shape)
                if joined:
                    entry.join(firsts.get(entry.kind))
                    firsts.setdefault(entry.kind, entry)
                return entry
    elif kinds == TIE and 0 <= fields[1] < number:
        name, same = fields[0], before[fields[1]]
        if same.same:
            raise ManifestError(f"tensor {number}: the same as one that has no file itself")
        same.tied.append(name)
        return Entry(number, name, same.dtype, same.shape, same=same)
    raise ManifestError(f"tensor {number}: not a name, a known type and a shape within the limits")
