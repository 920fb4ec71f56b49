"""What a path holds: which file of a folder has the weights, and what a file is instead of them.

A file is known by its first bytes, and by the names in an archive; nothing is run or unpacked.
"""

import json
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from .errors import UserError
from .files import FOREIGN, one_line, open_regular, read_file, reason

SUFFIX = ".safetensors"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
WEIGHTS = (".pth.tar", SUFFIX, ".ptmodel", ".ckpt", ".bin", ".pth", ".pt", ".th")
# Names of indexes of weights, those of other libraries and of encoded models included.
INDEXES = re.compile(
    rf".+(?:{'|'.join(map(re.escape, WEIGHTS))}|\.h5|\.msgpack|\.dc)\.index(\.\w+)?\.json"
)
# What a folder may hold beside: of a trainer's state, not of the model.
NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state).*")
MAX_INDEX_BYTES = 1 << 26
HEAD = 1 << 12  # bytes by which a file is known

AGAIN = "fetch it again"
FETCH = "fetch the file itself"
GIVE = "give the path of a saved model"
WEIGHTS_OF = "give the file of the weights"
CONVERT = "load it with its own library and save the state dict, or a .safetensors file"
UNPACK = "unpack it, and give the weights in it"

PROTOCOLS = (b"\2", b"\3", b"\4", b"\5")  # of pickle
# The number with which torch.save began before PyTorch 1.6, in a pickle of its own.
LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

ENCODED = b"DCF"  # one file, of any version

# (offset, bytes, what it is, what to do)
MAGIC = (
    (0, b"version https://git-lfs", "a pointer of Git LFS, not the file", "run git lfs pull"),
    (0, b"GGUF", "a GGUF file (llama.cpp)", CONVERT),
    (0, b"lmgg", "a GGML file (llama.cpp)", CONVERT),
    (0, b"tjgg", "a GGML file (llama.cpp)", CONVERT),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras, h5py)", CONVERT),
    (4, b"TFL3", "a TFLite model", CONVERT),
    (4, b"ET12", "an ExecuTorch program", CONVERT),
    (0, b"\x93NUMPY", "a NumPy array (.npy)", CONVERT),
    (0, b"MATLAB 5.0", "a MATLAB file", CONVERT),
    (0, b"DCE", "a part of an encoded model", "decode the folder that it is in"),
    (0, ENCODED, "an encoded model", "decode it first"),
    (0, b"\x08\x01\x12", "a TensorFlow SavedModel", CONVERT),
    (0, b"\x12\x01\x00\x00\x00\x00\x00\x00", "an MXNet file", CONVERT),
    (0, b"\x1f\x8b", "a gzip archive", UNPACK),
    (0, b"BZh", "a bzip2 archive", UNPACK),
    (0, b"\xfd7zXZ\x00", "an xz archive", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (0, b"Rar!", "a RAR archive", UNPACK),
    (257, b"ustar", "a tar archive", UNPACK),
    (0, b"PAR1", "a Parquet table", WEIGHTS_OF),
    (0, b"\x7fELF", "a compiled program or library", WEIGHTS_OF),
    (0, b"MZ", "a compiled program or library", WEIGHTS_OF),
    (0, b"\x89PNG", "a picture", WEIGHTS_OF),
    (0, b"\xff\xd8\xff", "a picture", WEIGHTS_OF),
    (0, b"%PDF", "a PDF document", WEIGHTS_OF),
)
HTML = ("<!doctype html", "<html", "<head", "<body", "<script", "<!--")

Content = TypeVar("Content")


class CheckpointError(UserError):
    """A model that cannot be read or written: missing, damaged, unsafe, or none."""


class MissingError(CheckpointError):
    """There is no file."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"no model at {path}; {GIVE}")
        self.missing = path.name


# --- which file ---------------------------------------------------------------------------------


def weights_file(path: str | Path) -> Path:
    """`path`, or of a folder the file of its weights, or the index of its files.

    An index comes first, then model.safetensors, then the only other one; a safetensors file makes
    those of torch.save unnecessary. Raises CheckpointError for none, and for several.
    """
    path = Path(path)
    if os.path.isfile(path):
        return path
    if not os.path.isdir(path):
        raise MissingError(path)
    with one_line(path, CheckpointError, GIVE):
        files = sorted(file for file in path.iterdir() if os.path.isfile(file))
    indexes = [file for file in files if is_index(file)]
    weights = [
        file
        for file in files
        if file.name.endswith(WEIGHTS) and not NO_WEIGHTS.fullmatch(file.name)
    ]
    safe = [file for file in weights if file.suffix == SUFFIX]
    for found in (
        [file for file in indexes if SUFFIX in file.name],
        [file for file in safe if file.name == SINGLE],
        safe,
        indexes,
        weights,
    ):
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(file.name for file in found)
            raise CheckpointError(f"{path} holds several weights: {names}; give the path of one")
    below = sorted({file.parent.name for file in path.glob("*/*") if file.name.endswith(WEIGHTS)})
    if below:
        raise CheckpointError(
            f"{path} holds no weights itself; give the path of one of its folders: "
            + ", ".join(below)
        )
    other = max(files, key=lambda file: file.stat().st_size, default=path)
    if what := instead(other):
        raise CheckpointError(f"{path} holds no weights; its largest file, {other.name}, is {what}")
    raise CheckpointError(f"no {INDEX} or {SINGLE} in {path}, nor other weights; {GIVE}")


def begins_as_encoded(file: Path) -> bool:
    """Whether a file is an encoded model, by its first bytes."""
    try:
        with open_regular(file) as (opened, _):
            return opened.read(3) == ENCODED
    except OSError:
        return False


def is_index(file: Path) -> bool:
    return bool(INDEXES.fullmatch(file.name))


def indexed(index: Path, read: Callable[[Path], Mapping[str, Content]]) -> dict[str, Content]:
    """What `read` finds in the files that an index names, under its names and in its order."""
    files = weight_map(index)
    contents = {file: read(file) for file in sorted(set(files.values()))}
    for name, file in files.items():
        if name not in contents[file]:
            raise CheckpointError(f"{file} lacks {name}, which {index.name} names")
    return {name: contents[file][name] for name, file in files.items()}


def weight_map(index: Path) -> dict[str, Path]:
    """{tensor: its file, beside the index}. Raises CheckpointError."""
    with one_line(index, CheckpointError, GIVE):
        data = read_file(index, MAX_INDEX_BYTES)
    try:
        files = mapped(data)
    except FOREIGN as error:
        what = instead(index) or ""
        what = f"it is {what}" if "LFS" in what or "HTML" in what else f"{reason(error)}; {AGAIN}"
        raise CheckpointError(f"{index} is damaged: {what}") from error
    return {name: index.parent / file for name, file in files.items()}


def mapped(data: bytes) -> dict[str, str]:
    """{tensor: its file, beside the index} in the text of an index. Raises what is in FOREIGN."""
    content = json.loads(data)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        raise ValueError("no weight_map")
    for name, file in files.items():
        # beside the index, and nowhere else
        plain = isinstance(file, str) and file.isprintable() and file not in ("", "..")
        if not plain or Path(file).name != file:
            raise ValueError(f"the file of {name[:80]!r} in its weight_map is missing")
    return files


def is_safetensors(file: Path) -> bool:
    """Whether a file, or all that an index names, is safetensors', whatever it is called."""
    if is_index(file):
        return all(part.suffix == SUFFIX for part in weight_map(file).values())
    try:
        with open_regular(file) as (opened, size):
            head = opened.read(9)
    except OSError:
        return file.suffix == SUFFIX
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= size:
        return True
    # One that is cut off or something else; torch's files alone are not read as safetensors.
    return file.suffix == SUFFIX and not head.startswith((b"PK\3\4", b"\x80"))


# --- what it is instead ---------------------------------------------------------------------------


def instead(path: str | Path) -> str | None:
    """What `path` is, and what to do: "a GGUF file (llama.cpp); load it with ..."; None where
    nothing is known of it, or it may be a file of torch.save."""
    try:
        with open_regular(path) as (file, _):
            head = file.read(HEAD)
    except OSError:
        return None
    found = _of_bytes(head) or (_of_zip(path) if head.startswith(b"PK") else _of_text(head))
    return "; ".join(found) if found else None


def _of_bytes(head: bytes) -> tuple[str, str] | None:
    if not head:
        return "empty", FETCH
    if not head.strip(b"\0"):
        return "zeros only, as of a download that was cut off", FETCH
    for offset, magic, what, todo in MAGIC:
        if head.startswith(magic, offset):
            return what, todo
    # later protocols have the length of a frame before the number
    if head[:1] == b"\x80" and head[1:2] in PROTOCOLS and LEGACY not in head[:32]:
        return "a pickle that torch.save did not write", CONVERT
    protobuf = _of_protobuf(head)
    return (protobuf, CONVERT) if protobuf else None


def _of_protobuf(head: bytes) -> str | None:
    """Messages without a magic: the version first; then, of ONNX, the producer's name or, without
    one, another of its fields; of Core ML a description of the inputs."""
    if len(head) < 4 or head[0] != 0x08 or not 3 <= head[1] < 0x40:
        return None
    if head[2] != 0x12:
        return "an ONNX model" if head[2] in (0x1A, 0x22, 0x28, 0x3A, 0x42) else None
    name = head[4 : 4 + head[3]]
    if head[3] < 0x80 and len(name) == head[3] and all(32 <= letter < 127 for letter in name):
        return "an ONNX model"
    return "a Core ML model" if 0x0A in head[3:8] else None


def _of_text(head: bytes) -> tuple[str, str] | None:
    text = head.decode(errors="ignore").strip("\ufeff \t\r\n")  # it may end within a character
    if not text or not all(letter.isprintable() or letter.isspace() for letter in text):
        return None
    if text.lower().startswith(HTML):
        return "an HTML page, not the file that it is to lead to", FETCH
    if text.startswith("<"):
        return "an XML text, as a server answers with when it refuses", FETCH
    if text.startswith(("{", "[")):
        return "a JSON text, no weights", WEIGHTS_OF
    return "a text, or damaged or cut off", WEIGHTS_OF


def _of_zip(path: str | Path) -> tuple[str, str] | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return None  # cut off
    last = {name.rpartition("/")[2] for name in names}
    if {"archive_format", "serialized_exported_program.json"} & last:
        return "a program of torch.export", CONVERT
    if "constants.pkl" in last or any("/code/" in f"/{name}" for name in names):
        return (
            "a TorchScript archive, which is code",
            "save the state_dict() of what torch.jit.load gives instead",
        )
    if "data.pkl" in last:
        return None  # of torch.save
    if {"metadata.json", "config.json"} <= last:
        return "a Keras archive", CONVERT
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy archive (.npz)", CONVERT
    if "extern_modules" in last:
        return "a torch.package archive, which is code", CONVERT
    return "a zip archive without a state dict", UNPACK
