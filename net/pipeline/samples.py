"""What a user names on the command line to have a model run: an architecture, and inputs."""

import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from .. import outputs
from ..errors import UserError
from ..files import FOREIGN, reason
from ..modules import evaluating
from ..outputs import BATCH
from ..tensors import check_dense

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MOST_IMAGES = 1000
MOST_TEXT = 1 << 24  # bytes


def maker(arch: str, path: str) -> Callable[[Mapping[str, torch.Tensor]], nn.Module]:
    """What makes a module of the state dict that is in the file `path`."""

    def make(state: Mapping[str, torch.Tensor]) -> nn.Module:
        from ..training import architectures, weights

        described = architectures.describe(arch)
        model = architectures.build(described)
        weights.load_into(model, state, path, described)
        return evaluating(model)

    return make


def read(path: str) -> Any:
    """The inputs in a file or a folder, as net.compress takes them: tensors, a dict of them, texts,
    or what gives the batches that a module takes. Raises UserError."""
    file = Path(path)
    if file.is_dir():
        return _images(file)
    if not file.is_file():
        raise UserError(f"there are no inputs at {path}; give a .pt or .npz file, images or a text")
    try:
        if file.suffix in (".pt", ".pth"):
            return _checked(path, torch.load(file, map_location="cpu", weights_only=True))
        if file.suffix in (".npz", ".npy"):
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return torch.from_numpy(found)
            arrays = {name: torch.from_numpy(found[name]) for name in found.files}
            return next(iter(arrays.values())) if len(arrays) == 1 else arrays
        if file.stat().st_size > MOST_TEXT:
            raise UserError(f"{path} is too large for a text of inputs; give a part of it")
        lines = [line.strip() for line in file.read_text("utf-8").splitlines()]
    except (*FOREIGN, pickle.PickleError, zipfile.BadZipFile, RuntimeError, EOFError) as error:
        raise UserError(f"{path} holds no inputs that can be read: {reason(error)}") from None
    found = [line for line in lines if line]
    if not found:
        raise UserError(f"{path} is empty; give a text with one input per line")
    return found


def _checked(path: str, found: Any) -> Any:
    for each in tree_leaves(found):
        if isinstance(each, torch.Tensor):
            check_dense("inputs", each, f"{path} cannot be used: ", UserError)
    if isinstance(found, dict | list | tuple) or (isinstance(found, torch.Tensor) and found.ndim):
        if not len(found):
            raise UserError(f"{path} holds no inputs: it is empty")
        return found
    raise UserError(
        f"{path} holds a {type(found).__name__}; give a tensor, a dict or a list of them"
    )


def _images(folder: Path) -> Callable[[nn.Module], list[torch.Tensor]]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES)
    if not paths:
        raise UserError(f"{folder} holds no images")
    paths = paths[:: -(-len(paths) // MOST_IMAGES)]

    def batches(model: nn.Module) -> list[torch.Tensor]:
        from ..training.own_data import read_image

        wanted, found = outputs.images_for(model), []
        for first in range(0, len(paths), BATCH):
            part = []
            for path in paths[first : first + BATCH]:
                try:
                    part.append(read_image(str(path), wanted.size))
                except ImportError:
                    raise UserError("images need Pillow: pip install pillow") from None
                except UserError:
                    raise
                except Exception as error:  # whatever Pillow raises, of bombs as well
                    raise UserError(f"{path} cannot be read: {reason(error)}") from None
            found += wanted.batches(torch.stack(part).float() / 255)
        return found

    return batches
