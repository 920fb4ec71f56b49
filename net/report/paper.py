"""What Han, Mao and Dally report (ICLR 2016): tables 1 to 5, to stand beside our figures.

P is pruning, Q weight sharing, H Huffman coding; a pair is (P+Q, P+Q+H).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    name: str
    weights: int  # as rounded in the paper
    density: float  # percent of the weights that survive
    weight_bits: tuple[float, float]  # per surviving weight
    index_bits: tuple[float, float]  # per surviving weight
    rate: tuple[float, float]  # size in percent of dense float32: the paper's "compress rate"


@dataclass(frozen=True)
class Network:
    dataset: str
    reference_error: float  # top-1, percent
    compressed_error: float
    original_bytes: int
    compressed_bytes: int
    ratio: int  # dense bytes over compressed bytes
    layers: tuple[Layer, ...]
    total: Layer


K, M = 1_000, 1_000_000

NETWORKS = {
    "lenet-300-100": Network(
        *("MNIST", 1.64, 1.58, 1070 * K, 27 * K, 40),
        layers=(
            Layer("ip1", 235 * K, 8, (6, 4.4), (5, 3.7), (3.1, 2.32)),
            Layer("ip2", 30 * K, 9, (6, 4.4), (5, 4.3), (3.8, 3.04)),
            Layer("ip3", 1 * K, 26, (6, 4.3), (5, 3.2), (15.7, 12.70)),
        ),
        total=Layer("total", 266 * K, 8, (6, 5.1), (5, 3.7), (3.1, 2.49)),
    ),
    "lenet-5": Network(
        *("MNIST", 0.80, 0.74, 1720 * K, 44 * K, 39),
        layers=(
            Layer("conv1", 500, 66, (8, 7.2), (5, 1.5), (78.5, 67.45)),
            Layer("conv2", 25 * K, 12, (8, 7.2), (5, 3.9), (6.0, 5.28)),
            Layer("ip1", 400 * K, 8, (5, 4.5), (5, 4.5), (2.7, 2.45)),
            Layer("ip2", 5 * K, 19, (5, 5.2), (5, 3.7), (6.9, 6.13)),
        ),
        total=Layer("total", 431 * K, 8, (5.3, 4.1), (5, 4.4), (3.05, 2.55)),
    ),
    "alexnet": Network(
        *("ImageNet", 42.78, 42.78, 240 * M, 6_900 * K, 35),
        layers=(
            Layer("conv1", 35 * K, 84, (8, 6.3), (4, 1.2), (32.6, 20.53)),
            Layer("conv2", 307 * K, 38, (8, 5.5), (4, 2.3), (14.5, 9.43)),
            Layer("conv3", 885 * K, 35, (8, 5.1), (4, 2.6), (13.1, 8.44)),
            Layer("conv4", 663 * K, 37, (8, 5.2), (4, 2.5), (14.1, 9.11)),
            Layer("conv5", 442 * K, 37, (8, 5.6), (4, 2.5), (14.0, 9.43)),
            Layer("fc6", 38 * M, 9, (5, 3.9), (4, 3.2), (3.0, 2.39)),
            Layer("fc7", 17 * M, 9, (5, 3.6), (4, 3.7), (3.0, 2.46)),
            Layer("fc8", 4 * M, 25, (5, 4.0), (4, 3.2), (7.3, 5.85)),
        ),
        total=Layer("total", 61 * M, 11, (5.4, 4.0), (4, 3.2), (3.7, 2.88)),
    ),
    "vgg16": Network(
        *("ImageNet", 31.50, 31.17, 552 * M, 11_300 * K, 49),
        layers=(
            Layer("conv1_1", 2 * K, 58, (8, 6.8), (5, 1.7), (40.0, 29.97)),
            Layer("conv1_2", 37 * K, 22, (8, 6.5), (5, 2.6), (9.8, 6.99)),
            Layer("conv2_1", 74 * K, 34, (8, 5.6), (5, 2.4), (14.3, 8.91)),
            Layer("conv2_2", 148 * K, 36, (8, 5.9), (5, 2.3), (14.7, 9.31)),
            Layer("conv3_1", 295 * K, 53, (8, 4.8), (5, 1.8), (21.7, 11.15)),
            Layer("conv3_2", 590 * K, 24, (8, 4.6), (5, 2.9), (9.7, 5.67)),
            Layer("conv3_3", 590 * K, 42, (8, 4.6), (5, 2.2), (17.0, 8.96)),
            Layer("conv4_1", 1 * M, 32, (8, 4.6), (5, 2.6), (13.1, 7.29)),
            Layer("conv4_2", 2 * M, 27, (8, 4.2), (5, 2.9), (10.9, 5.93)),
            Layer("conv4_3", 2 * M, 34, (8, 4.4), (5, 2.5), (14.0, 7.47)),
            Layer("conv5_1", 2 * M, 35, (8, 4.7), (5, 2.5), (14.3, 8.00)),
            Layer("conv5_2", 2 * M, 29, (8, 4.6), (5, 2.7), (11.7, 6.52)),
            Layer("conv5_3", 2 * M, 36, (8, 4.6), (5, 2.3), (14.8, 7.79)),
            Layer("fc6", 103 * M, 4, (5, 3.6), (5, 3.5), (1.6, 1.10)),
            Layer("fc7", 17 * M, 4, (5, 4.0), (5, 4.3), (1.5, 1.25)),
            Layer("fc8", 4 * M, 23, (5, 4.0), (5, 3.4), (7.1, 5.24)),
        ),
        total=Layer("total", 138 * M, 7.5, (6.4, 4.1), (5, 3.1), (3.2, 2.05)),
    ),
}
