"""What several tests share: data sets too small to wait for, and one run of the whole pipeline."""

import gc
from types import SimpleNamespace

import pytest
import torch
from hypothesis import settings

import deep_compressing
from net.training import datasets
from net.training.splits import Dataset, Split

gc.disable()


def pytest_collection_finish():
    """What is imported and collected stays: looking through it for garbage only takes time."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()


torch.set_num_threads(1)  # the models are tiny: threads cost more than they bring

# Of the tests that draw their examples; --hypothesis-profile many, as .ci/run does, draws more.
settings.register_profile("few", max_examples=20, deadline=None)
settings.register_profile("many", max_examples=300, deadline=None)
settings.load_profile("few")

# A pipeline of seconds; every test that changes one of these says so itself.
FAST = (
    *("--dataset", "digits", "--device", "cpu", "--seed", "7", "--batch-size", "64"),
    *("--epochs", "3", "--retrain-epochs", "2", "--finetune-epochs", "1"),
)


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
    """The folders and files of one run of deep_compressing.py on the digits; read only."""
    root = tmp_path_factory.mktemp("pipeline")
    run = SimpleNamespace(
        saves=root / "saves",
        encodings=root / "encodings",
        json=root / "figures.json",
        log=root / "log.jsonl",
    )
    code = deep_compressing.main(
        [*FAST, "--output", str(run.saves), "--directory", str(run.encodings)]
        + ["--json", str(run.json), "--log", str(run.log)]
    )
    assert code == 0
    return run


@pytest.fixture
def few_digits(monkeypatch):
    """A part of the digits, for what does not depend on how much is learnt."""
    use_few_digits(monkeypatch)


def use_few_digits(monkeypatch):
    read = datasets.read_digits

    def few():
        images, labels, test_images, test_labels = read()
        return images[:240], labels[:240], test_images[:120], test_labels[:120]

    monkeypatch.setattr(datasets, "read_digits", few)


@pytest.fixture
def blobs():
    """A data set that a linear model learns in a few steps: [N, 1, 28, 28], 3 classes."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 1, 28, 28, generator=generator)

    def split(n):
        labels = torch.arange(n) % 3
        noise = torch.randn(n, 1, 28, 28, generator=generator)
        return Split(centres[labels] + 0.5 * noise, labels, kind="strokes")

    return Dataset("blobs", split(96), split(30), split(30))
