import math

import pytest
import torch

from net.constants import few_values, is_table

J, K = torch.arange(64.0), torch.arange(33.0)[:, None]
ANGLES = torch.arange(50)[:, None] / 10000 ** (torch.arange(16) / 16)
PEAK = torch.exp(-torch.linspace(-2, 2, 7).square())


def transform(function, window):
    return (function(2 * math.pi * K * J / 64) * window)[:, None]


TABLES = {
    "cosines": transform(torch.cos, torch.ones(64)),
    "windowed cosines": transform(torch.cos, torch.hann_window(64)),
    "windowed sines": transform(torch.sin, torch.hamming_window(64)),
    "both": torch.cat([transform(f, torch.hann_window(64)) for f in (torch.cos, torch.sin)]),
    "half precision": transform(torch.cos, torch.hann_window(64)).half(),
    "cosine transform": torch.cos(math.pi / 40 * (torch.arange(40) + 0.5) * K),
    "blur": (PEAK[:, None] * PEAK).expand(6, 1, 7, 7),
    "positions": torch.cat([ANGLES.sin(), ANGLES.cos()], 1),
    "interleaved positions": torch.stack([ANGLES.sin(), ANGLES.cos()], 2).flatten(1),
    "positions and padding": torch.cat(
        [torch.zeros(1, 32), torch.cat([ANGLES.sin(), ANGLES.cos()], 1)]
    ),
    "positions along two axes": torch.cat(
        [
            f(ANGLES[rows, :8])
            for rows in (torch.arange(50) // 10, torch.arange(50) % 10)
            for f in (torch.sin, torch.cos)
        ],
        1,
    ),
    "slopes of distances": -(torch.arange(8.0)[:, None] + 1) * torch.arange(32),
    "distances": (torch.arange(32) - torch.arange(32.0)[:, None]).abs(),
    "inexact angles": torch.cos(
        2 * math.pi / 400 * torch.arange(400) * torch.arange(201.0)[:, None]
    ),
    "mel filters": (1 - (K - torch.linspace(0, 33, 90)).abs()).clamp(min=0) * (K + 3),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_known_by_their_values(name):
    assert is_table(TABLES[name])
    learned = TABLES[name] + 0.05 * TABLES[name].abs().max() * torch.randn(TABLES[name].shape)
    assert not is_table(learned)


@pytest.mark.parametrize(
    "weights",
    [
        torch.randn(64, 32),
        torch.rand(64, 32),
        torch.randn(64, 1, 3, 3),
        torch.randn(64, 32).sign(),
        torch.randn(64, 1, 1, 1),
        torch.zeros(9, 9),
        torch.zeros(0, 9),
        torch.nn.functional.normalize(torch.randn(64, 32)),
        torch.randn(64, 32) * (torch.rand(64, 32) < 0.05),
        torch.randn(64, 32).fill_diagonal_(float("inf")),
        torch.zeros(64, 1, 9).scatter(
            2, torch.arange(64)[:, None, None] % 8, torch.randn(64, 1, 1)
        ),
    ],
    ids=lambda each: "x".join(map(str, each.shape)),
)
def test_weights_are_none(weights):
    assert not is_table(weights)


def test_few_values():
    mask = (torch.rand(40, 40) < 0.3).float()
    assert few_values(mask, 16) == 1
    assert few_values(mask - 0.5, 16) == 2
    assert few_values(torch.randint(1, 18, (400,)).float(), 16) == 0
    assert few_values(torch.randn(4, 4), 16) == 0  # few of them, and none twice
    assert few_values(torch.zeros(9), 16) == 0
    assert few_values(3 * torch.eye(3), 16) == 1
    late = torch.ones(1 << 15)
    late[-900:] = torch.randn(900)
    assert few_values(late, 16) == 0
