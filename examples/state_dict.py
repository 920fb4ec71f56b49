#!/usr/bin/env python
"""Compress a file of weights that somebody else saved, without its code and without data.

    python examples/state_dict.py squeezenet1_1.pth
    python examples/state_dict.py                    # random weights of torchvision's SqueezeNet

Any file that torch.save or safetensors wrote. Clustering alone, 6 bits, no weight pruned: with the
architecture and a data set both go much further.
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
    state = net.checkpoint.copied(original)  # a copy that keeps tied weights tied

    weights = net.parameters.compressible(state)  # {name: kind}
    wanted = net.sharing.bits_of_tensors(state, weights, bits=6, bias_bits=6)
    for name, bits in wanted.items():
        net.sharing.shared_tensor(name, state[name], bits).write(state[name])

    encoded = Path(folder, "encodings")
    size = net.encoding.save(state, encoded, meta={"from": path.name})
    decoded, _ = net.encoding.load(encoded)

    same = all(torch.equal(tensor, decoded[name]) for name, tensor in state.items())
    change = max(float((state[n] - original[n]).norm() / original[n].norm()) for n in weights)
    dense = sum(tensor.numel() * tensor.element_size() for tensor in original.values())
    print(f"{path.name}: {dense:,} -> {size:,} bytes, {dense / size:.1f}x")
    print(f"decoded bit for bit: {same}; a weight tensor changes by {change:.1%} at most")
