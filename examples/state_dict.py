#!/usr/bin/env python
"""Compress a file of weights that somebody else saved, without its code and without data.

    python examples/state_dict.py squeezenet1_1.pth
    python examples/state_dict.py                    # random weights of torchvision's SqueezeNet

Any file that torch.save or safetensors wrote, or a folder of shards. Sharing at a noise that
published image networks do not feel; with the architecture and sample inputs it goes further.
"""

import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the clone that holds `net`
import net  # installed: import deep_compression as net


def made_up(folder: str) -> Path:
    from torchvision.models import squeezenet1_1

    path = Path(folder, "squeezenet1_1.pth")
    torch.save(squeezenet1_1().state_dict(), path)
    return path


with tempfile.TemporaryDirectory() as folder:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else made_up(folder)
    original = net.checkpoint.load(path).state_dict
    # Reads, shares and forgets a tensor when it is asked for one: no file is too large.
    shared = net.SharedState(original, "auto")

    encoded = Path(folder, "encodings")
    size = net.encoding.save(shared, encoded, meta={"from": path.name})
    decoded = net.encoding.open(encoded)  # a mapping that decodes a tensor when it is asked for

    same = all(torch.equal(tensor, shared[name]) for name, tensor in decoded.items())
    noise = max((each.noise for each in shared.clusterings.values()), default=0)
    dense = sum(tensor.numel() * tensor.element_size() for tensor in original.values())
    print(f"{path.name}: {dense:,} -> {size:,} bytes, {dense / size:.1f}x")
    print(f"decoded bit for bit: {same}; a weight tensor changes by {noise:.1%} at most")
