"""How the files of a model are laid out, so that they can be had back: `read` and `restore`."""

from collections.abc import Mapping
from pathlib import Path

import torch

from .encoding import Encoding


def read(
    path: str | Path, key: str | None = None
) -> tuple[Mapping[str, torch.Tensor], dict, dict[str, Path]]:
    """(the tensors, the layout, the other files) of a saved model: a file or a folder.

    layout["notes"] has the lines that a user should know, if there are any.
    """
    from . import checkpoint

    return checkpoint.load(path, key).state_dict, {}, {}


def restore(encoding: Encoding, target: str | Path) -> list[Path]:
    """Write the folder or the file that `encoding` was made of to `target`; return these."""
    raise NotImplementedError
