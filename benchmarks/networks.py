"""Published networks in plain PyTorch, under the names in their files, and inputs for them.

The ResNets are net.training's; MobileNetV2 is as torchvision has it, MiniLM (BERT) and IgLM (GPT-2)
as transformers do, CREPE as torchcrepe does. Only what evaluation needs: no dropout, no training.
What a subject is run on comes in disjoint draws, the same in every run.
"""

import re
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from net import checkpoint
from net.choose import divergence
from net.errors import UserError
from net.training import architectures, datasets
from net.training.models import CifarVGG16


def _unit(inputs: int, outputs: int, size: int = 1, stride: int = 1, groups: int = 1) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6())


def narrow_vgg16() -> nn.Module:
    """A VGG-16 for CIFAR-10 with half of the filters, 3.7 million parameters."""
    return CifarVGG16(width=32)


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expand: int):
        super().__init__()
        hidden = inputs * expand
        self.is_residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *([_unit(inputs, hidden)] if expand > 1 else []),
            _unit(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.is_residual else self.conv(x)


class MobileNetV2(nn.Module):
    """Normalised images, (N, 3, H, W) -> logits (N, 1000)."""

    # expansion, channels, blocks, stride of the first
    STAGES = (
        *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
        *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    )

    def __init__(self):
        super().__init__()
        layers, last = [_unit(3, 32, 3, 2)], 32
        for expand, channels, blocks, stride in self.STAGES:
            for block in range(blocks):
                layers.append(InvertedResidual(last, channels, 1 if block else stride, expand))
                last = channels
        self.features = nn.Sequential(*layers, _unit(last, 1280))
        self.classifier = nn.Sequential(nn.Identity(), nn.Linear(1280, 1000))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


class BertLayer(nn.Module):
    def __init__(self, width: int, inner: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention = nn.ModuleDict(
            {
                "self": nn.ModuleDict(
                    {name: nn.Linear(width, width) for name in ("query", "key", "value")}
                ),
                "output": self._output(width, width),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = self._output(inner, width)

    @staticmethod
    def _output(inputs: int, width: int) -> nn.ModuleDict:
        normalise = nn.LayerNorm(width, eps=1e-12)
        return nn.ModuleDict({"dense": nn.Linear(inputs, width), "LayerNorm": normalise})

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        parts = self.attention["self"]
        q, k, v = (_heads(parts[name](x), self.heads) for name in ("query", "key", "value"))
        seen = F.scaled_dot_product_attention(q, k, v, mask[:, None, None])
        out = self.attention["output"]
        x = out["LayerNorm"](out["dense"](seen.transpose(1, 2).flatten(-2)) + x)
        inner = F.gelu(self.intermediate["dense"](x))
        return self.output["LayerNorm"](self.output["dense"](inner) + x)


class SentenceBert(nn.Module):
    """Tokens (N, L), 0 where there is none -> the mean of the last states (N, width)."""

    def __init__(self, words: int = 30522, width: int = 384, layers: int = 6, heads: int = 12):
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(words, width),
                "position_embeddings": nn.Embedding(512, width),
                "token_type_embeddings": nn.Embedding(2, width),
                "LayerNorm": nn.LayerNorm(width, eps=1e-12),
            }
        )
        layer = partial(BertLayer, width, 4 * width, heads)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layer() for _ in range(layers))})
        self.pooler = nn.ModuleDict({"dense": nn.Linear(width, width)})  # in the file, not used

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        own, mask = self.embeddings, tokens != 0
        x = own["word_embeddings"](tokens) + own["token_type_embeddings"](torch.zeros_like(tokens))
        x = x + own["position_embeddings"](torch.arange(tokens.shape[1]))
        x = own["LayerNorm"](x)
        for layer in self.encoder["layer"]:
            x = layer(x, mask)
        weight = mask[..., None].to(x)
        return (x * weight).sum(1) / weight.sum(1)


def word_pieces(sentences: list[str], words: list[str], longest: int = 64) -> torch.Tensor:
    """BERT's tokens in lower case, (N, L), padded by 0."""
    number = {word: i for i, word in enumerate(words)}
    rows = []
    for sentence in sentences:
        row = [number["[CLS]"]]
        for word in re.findall(r"[a-z0-9]+|[^\sa-z0-9]", sentence.lower()):
            start, pieces = 0, []
            while start < len(word):
                sought = ("##" if start else "") + word[start:]
                while sought not in number and len(sought) > (2 if start else 0):
                    sought = sought[:-1]
                if sought not in number:
                    pieces = [number["[UNK]"]]
                    break
                pieces.append(number[sought])
                start += len(sought) - (2 if start else 0)
            row += pieces
        rows.append(torch.tensor([*row[: longest - 1], number["[SEP]"]]))
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


class Conv1D(nn.Module):
    """A linear layer whose weight is (inputs, outputs), as GPT-2 has them."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(0.02 * torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        parts = {"c_attn": Conv1D(width, 3 * width), "c_proj": Conv1D(width, width)}
        self.attn = nn.ModuleDict(parts)
        parts = {"c_fc": Conv1D(width, 4 * width), "c_proj": Conv1D(4 * width, width)}
        self.mlp = nn.ModuleDict(parts)

    def forward(self, x: torch.Tensor, past: list | None) -> torch.Tensor:
        q, k, v = (_heads(t, self.heads) for t in self.attn["c_attn"](self.ln_1(x)).chunk(3, -1))
        if past is not None:
            past.append((k, v))
            k, v = (torch.cat(parts, -2) for parts in zip(*past, strict=True))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[-2] > 1)
        x = x + self.attn["c_proj"](seen.transpose(1, 2).flatten(-2))
        inner = F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh")
        return x + self.mlp["c_proj"](inner)


class GPT2(nn.Module):
    """Tokens (N, L) -> logits of the next ones (N, L, words)."""

    def __init__(self, words: int, width: int, layers: int, heads: int, positions: int = 512):
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(words, width),
                "wpe": nn.Embedding(positions, width),
                "h": nn.ModuleList(Block(width, heads) for _ in range(layers)),
                "ln_f": nn.LayerNorm(width),
            }
        )

    def forward(self, tokens: torch.Tensor, past: list[list] | None = None) -> torch.Tensor:
        own = self.transformer
        start = len(past[0]) if past else 0  # sampling adds one token a call
        x = own["wte"](tokens) + own["wpe"](torch.arange(start, start + tokens.shape[1]))
        for i, block in enumerate(own["h"]):
            x = block(x, past[i] if past else None)
        return own["ln_f"](x) @ own["wte"].weight.T

    @torch.no_grad()
    def sample(self, first: torch.Tensor, length: int, seed: int) -> torch.Tensor:
        """Its own sequences, (N, length), from the first tokens (N,)."""
        generator = torch.Generator().manual_seed(seed)
        tokens, past = [first], [[] for _ in self.transformer["h"]]
        while len(tokens) < length:
            odds = self(tokens[-1][:, None], past)[:, -1].softmax(-1)
            tokens.append(torch.multinomial(odds, 1, generator=generator)[:, 0])
        return torch.stack(tokens, 1)


class Crepe(nn.Module):
    """Frames of sound, (N, 1024), of mean 0 and deviation 1 -> logits of pitches (N, 360)."""

    def __init__(self, capacity: int = 32):
        super().__init__()
        channels = [1, *(capacity * n for n in (32, 4, 4, 4, 8, 16))]
        for i, (inputs, outputs) in enumerate(pairwise(channels), 1):
            size, stride = ((512, 1), (4, 1)) if i == 1 else ((64, 1), 1)
            setattr(self, f"conv{i}", nn.Conv2d(inputs, outputs, size, stride))
            setattr(self, f"conv{i}_BN", nn.BatchNorm2d(outputs, eps=1e-3))
        self.classifier = nn.Linear(64 * capacity, 360)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, None, :, None]
        for i in range(1, 7):
            x = F.pad(x, (0, 0, 254, 254) if i == 1 else (0, 0, 31, 32))
            x = getattr(self, f"conv{i}_BN")(F.relu(getattr(self, f"conv{i}")(x)))
            x = F.max_pool2d(x, (2, 1))
        return self.classifier(x.permute(0, 2, 1, 3).flatten(1))


Draw = Callable[[int], torch.Tensor]
CALIBRATION = -1  # the draw that is calibrated on; 0, 1, ... are measured on
IMAGES, PHOTOGRAPHS, SENTENCES, SEQUENCES, FRAMES = 500, 80, 100, 16, 24  # of a draw


class Subject(NamedTuple):
    """A trained network, what it is run on, and how far outputs are from others."""

    name: str
    model: nn.Module
    draw: Draw
    distance: Callable[[torch.Tensor, torch.Tensor], float]  # (outputs, dense ones)

    def batches(self, number: int) -> tuple[torch.Tensor, ...]:
        return self.draw(number).split(32)


def token_divergence(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """Mean Kullback-Leibler divergence of a token (or of an image), in nats."""
    return divergence(logits.flatten(0, -2), reference.flatten(0, -2))


def turned(vectors: torch.Tensor, reference: torch.Tensor) -> float:
    """1 - the mean cosine."""
    return 1 - F.cosine_similarity(vectors.double(), reference.double()).mean().item()


def pitch_divergence(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """Kullback-Leibler divergence of a frame's 360 pitches, each there or not, in nats."""
    q, p = logits.double(), reference.double()
    parts = [p.mul(s).sigmoid() * (F.softplus(-s * q) - F.softplus(-s * p)) for s in (1, -1)]
    return sum(parts).sum(1).mean().item()


def images(data_dir: str, count: int, size: int) -> Draw:
    """Normalised images of CIFAR-10, enlarged to `size` pixels: test ones, or for calibration."""
    data = datasets.load("cifar10", data_dir, "cpu", architectures.input_of("resnet-20"))

    def draw(number: int) -> torch.Tensor:
        first = count * max(number, 0)
        part = (data.train if number == CALIBRATION else data.test)[first : first + count]
        if len(part) < count:
            raise UserError(f"CIFAR-10 in {data_dir} has too few images; take fewer draws")
        pixels = next(iter(part.batches(count)))[0]
        return F.interpolate(pixels, (size, size), mode="bilinear")

    return draw


@cache
def sentences() -> list[str]:
    """The prose of Python's own manual, in an order of chance."""
    from pydoc_data.topics import topics

    text = " ".join(" ".join(each.split()) for each in topics.values())
    found = set(re.findall(r"(?<=[.] )[A-Z][A-Za-z ,;'()-]{40,200}[.](?= )", text))
    order = np.random.default_rng(0).permutation(len(found))
    return np.array(sorted(found))[order].tolist()


def tokens(words: list[str], count: int = SENTENCES) -> Draw:
    def draw(number: int) -> torch.Tensor:
        first = count * (number + 1)
        return word_pieces(sentences()[first : first + count], words)

    return draw


def sampled(model: GPT2, starts: tuple[int, ...], length: int) -> Draw:
    """What the network writes itself, after each of the tokens `starts` in turn."""
    first = torch.tensor(starts).repeat(SEQUENCES // len(starts))
    return lambda number: model.sample(first, length, seed=1000 + number)


def tones(number: int) -> torch.Tensor:
    """Frames of 1,024 samples at 16 kHz: a tone of any pitch, seven overtones, and noise."""
    rng = np.random.default_rng(1000 + number)
    pitch = 50 * 2 ** rng.uniform(0, 4.5, (FRAMES, 1, 1)) * np.arange(1, 9)[:, None]
    power = rng.exponential(1, pitch.shape) / np.arange(1, 9)[:, None] * (pitch < 7900)
    turns = pitch * np.arange(1024) / 16000 + rng.uniform(0, 1, pitch.shape)
    sound = (power * np.sin(2 * np.pi * turns)).sum(1)
    noise = rng.uniform(0, 0.5, (FRAMES, 1)) * sound.std(1, keepdims=True)
    sound += noise * rng.normal(size=sound.shape)
    sound = (sound - sound.mean(1, keepdims=True)) / sound.std(1, keepdims=True)
    return torch.from_numpy(sound.astype(np.float32))


def filled(model: nn.Module, path: Path) -> nn.Module:
    """`model` with the tensors of a file, whatever the file has beside them."""
    state = checkpoint.load(path).state_dict
    state = {name.removeprefix("module."): state[name].float() for name in state}
    result = model.load_state_dict(state, strict=False)
    missing = [name for name in result.missing_keys if "num_batches_tracked" not in name]
    if missing:
        raise UserError(f"{path} lacks {missing[0]}, and is no {type(model).__name__}")
    return model.eval()


NAMES = ("resnet20", "resnet56", "mobilenetv2", "minilm", "iglm", "crepe")


def found(folder: Path, data_dir: str) -> list[Subject]:
    """The networks of NAMES whose files, NAME.* or a folder NAME, are in `folder`."""
    return [
        subject(name, path, data_dir)
        for name in NAMES
        for path in [*folder.glob(name), *sorted(folder.glob(f"{name}.*"))][:1]
    ]


def subject(name: str, path: Path, data_dir: str) -> Subject:
    if name.startswith("resnet"):
        model = filled(architectures.build(f"resnet-{name[6:]}"), path)
        return Subject(name, model, images(data_dir, IMAGES, 32), token_divergence)
    if name == "mobilenetv2":
        draw = images(data_dir, PHOTOGRAPHS, 160)
        return Subject(name, filled(MobileNetV2(), path), draw, token_divergence)
    if name == "minilm":
        words = (path / "vocab.txt").read_text(encoding="utf-8").splitlines()
        return Subject(name, filled(SentenceBert(), path), tokens(words), turned)
    if name == "iglm":  # heavy and light chains
        model = filled(GPT2(33, 512, 4, 8), path)
        return Subject(name, model, sampled(model, (31, 32), 128), token_divergence)
    return Subject(name, filled(Crepe(), path), tones, pitch_divergence)


def small() -> list[Subject]:
    """Two networks of random weights, in no time and without files."""
    torch.manual_seed(0)
    words = sorted({"[CLS]", "[SEP]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz"})
    bert = SentenceBert(len(words), 32, 1, 2).eval()
    gpt = GPT2(40, 32, 1, 2).eval()
    return [
        Subject("bert", bert, tokens(words, 8), turned),
        Subject("gpt2", gpt, sampled(gpt, (1,), 16), token_divergence),
    ]
