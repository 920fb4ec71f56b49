"""What a file is that holds no state dict: by its first bytes, and the names in an archive."""

import json
import os
import tarfile
import zipfile
from pathlib import Path

HEAD = 1 << 12
FETCH = "fetch the file itself"
CONVERT = "load it with its own library and save the state dict, or a .safetensors file"
UNPACK = "unpack it, and give the weights in it"

PROTOCOLS = (b"\2", b"\3", b"\4", b"\5")  # of pickle
# The number with which torch.save began before PyTorch 1.6, in a pickle of its own.
LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

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
    (0, b"DCF", "an encoded model", "decode it first"),
    (0, b"\x08\x01\x12", "a TensorFlow SavedModel", CONVERT),
    (0, b"\x12\x01\x00\x00\x00\x00\x00\x00", "an MXNet file", CONVERT),
    (0, b"\x1f\x8b", "a gzip archive", UNPACK),
    (0, b"BZh", "a bzip2 archive", UNPACK),
    (0, b"\xfd7zXZ\x00", "an xz archive", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (0, b"Rar!", "a RAR archive", UNPACK),
    (0, b"PAR1", "a Parquet table", "give the file of the weights"),
    (0, b"\x7fELF", "a compiled program or library", "give the file of the weights"),
    (0, b"MZ", "a compiled program or library", "give the file of the weights"),
    (0, b"\x89PNG", "a picture", "give the file of the weights"),
    (0, b"\xff\xd8\xff", "a picture", "give the file of the weights"),
    (0, b"%PDF", "a PDF document", "give the file of the weights"),
)


def instead(path: str | Path) -> str | None:
    """What `path` is, and what to do: "a GGUF file (llama.cpp); load it with ..."; None where
    nothing is known of it. It is looked at, not run; an archive is not unpacked."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
            size = os.fstat(file.fileno()).st_size
    except OSError:
        return None
    found = _of_bytes(head, size) or _of_archive(Path(path), head)
    return "; ".join(found) if found else None


def is_other_pickle(path: str | Path) -> bool:
    """Whether a file is a pickle that torch.save did not write."""
    try:
        with open(path, "rb") as file:
            return _is_other_pickle(file.read(HEAD))
    except OSError:
        return False


def _is_other_pickle(head: bytes) -> bool:
    # later protocols have the length of a frame before the number
    return head[:1] == b"\x80" and head[1:2] in PROTOCOLS and LEGACY not in head[:32]


def _of_bytes(head: bytes, size: int) -> tuple[str, str] | None:
    if not head:
        return "empty", FETCH
    if not head.strip(b"\0"):
        return "zeros only, as of a download that was cut off", FETCH
    for offset, magic, what, todo in MAGIC:
        if head[offset:].startswith(magic):
            return what, todo
    if _is_other_pickle(head):
        return "a pickle that torch.save did not write", CONVERT
    if protobuf := _of_protobuf(head):
        return protobuf, CONVERT
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<!--")):
        return "an HTML page, not the file that it is to lead to", FETCH
    if text.startswith(b"<"):
        return "an XML text, as a server answers with when it refuses", FETCH
    return _of_text(head, size)


def _of_text(head: bytes, size: int) -> tuple[str, str] | None:
    try:
        # What was read may end within a character.
        text = head.decode(errors="strict" if size <= HEAD else "ignore").strip()
    except UnicodeDecodeError:
        return None
    if not all(letter.isprintable() or letter.isspace() for letter in text):
        return None
    if text[:1] in ("{", "["):
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            pass
        else:
            return "a JSON text, no weights", "give the file of the weights"
        if size > HEAD:
            return "a JSON text, no weights", "give the file of the weights"
    return "a text, or damaged or cut off", "give the file of the weights"


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


def _of_archive(path: Path, head: bytes) -> tuple[str, str] | None:
    if head[257:262] == b"ustar" and tarfile.is_tarfile(path):
        return "a tar archive", UNPACK
    if not head.startswith(b"PK"):
        return None
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
