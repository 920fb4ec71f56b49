"""The lines of the pages for libraries that the tests do not need: run with each where it is
installed, else with a small stand-in that answers as it does."""

import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

import net
from tests.test_docs import ROOT, blocks

LIBRARIES = ("timm", "transformers", "sentence_transformers", "torchao")


def recipe(page: str, library: str) -> str:
    (found,) = (
        block
        for block in blocks(ROOT / "docs" / page, "py")
        if f"import {library}" in block or f"from {library}" in block
    )
    return found


def run(page: str, library: str, **names) -> dict:
    namespace = {"net": net, **names}
    exec(compile(recipe(page, library), page, "exec"), namespace)
    return namespace


def missing(library: str) -> bool:
    return importlib.util.find_spec(library) is None


def stand_in(monkeypatch, name: str, **contents) -> None:
    """A module of that name where there is none."""
    module = types.ModuleType(name)
    for key, value in contents.items():
        if isinstance(value, type):
            value.__module__ = f"{name}.stand_in"
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)
    parent, _, child = name.rpartition(".")
    if parent:
        stand_in(monkeypatch, parent, **{child: module})


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


def test_every_recipe_is_run():
    found = [block for page in ROOT.glob("docs/*.md") for block in blocks(page, "py")]
    assert len(found) == len(LIBRARIES)


def test_timm(monkeypatch):
    if missing("timm"):
        stand_in(
            monkeypatch, "timm", create_model=lambda name, num_classes: nn.Linear(8, num_classes)
        )
    import timm

    model = timm.create_model("resnet18", num_classes=10)
    net.encoding.save(model.state_dict(), "resnet18.dc", verify=False)
    found = run("python.md", "timm")["model"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, found.state_dict()[name])


@pytest.fixture
def folder(monkeypatch):
    """minilm.dc, of a folder as Hugging Face's libraries write it, and its model."""
    if missing("transformers") or missing("sentence_transformers"):
        return stand_in_folder(monkeypatch)
    import transformers
    from sentence_transformers import SentenceTransformer, models

    sizes = {"hidden_size": 8, "intermediate_size": 16, "max_position_embeddings": 16}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=12, **sizes, **layers)
    Path("vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"])
    )
    transformers.BertModel(config).save_pretrained("tiny")
    transformers.BertTokenizerFast("vocab.txt").save_pretrained("tiny")
    parts = models.Transformer("tiny"), models.Pooling(8)
    SentenceTransformer(modules=parts, device="cpu").save("original")
    state, layout, files = net.layouts.read("original")
    net.encoding.save(state, "minilm.dc", files=files, layout=layout)
    return transformers.AutoModel.from_pretrained("original")


def stand_in_folder(monkeypatch):
    class Config:
        @classmethod
        def from_pretrained(cls, folder):
            assert Path(folder, "config.json").is_file()
            return cls()

    class Model(nn.Linear):
        def __init__(self, config):
            super().__init__(4, 4)
            self.config = config

        @classmethod
        def from_pretrained(cls, path, config, state_dict):
            model = cls(config)
            model.load_state_dict(state_dict)
            return model

        @classmethod
        def from_config(cls, config):
            return cls(config)

        def can_generate(self):
            return False

    class Tokenizer:
        @classmethod
        def from_pretrained(cls, folder):
            assert Path(folder, "tokenizer.json").is_file()
            return cls()

    class SentenceTransformer(Model):
        def __init__(self, folder):
            super().__init__(Config.from_pretrained(folder))
            self.load_state_dict(net.checkpoint.load(folder).state_dict)

    stand_in(
        monkeypatch, "transformers", AutoConfig=Config, AutoModel=Model, AutoTokenizer=Tokenizer
    )
    stand_in(monkeypatch, "sentence_transformers", SentenceTransformer=SentenceTransformer)
    model = Model(Config())
    files = {"config.json": b"{}", "tokenizer.json": b"{}"}
    net.encoding.save(model.state_dict(), "minilm.dc", files=files)
    return model


def test_transformers(folder):
    found = run("python.md", "transformers")
    assert found["tokenizer"] is not None
    for name, tensor in folder.state_dict().items():
        assert torch.equal(tensor, found["model"].state_dict()[name])


def test_sentence_transformers(folder):
    found = list(run("python.md", "sentence_transformers")["model"].state_dict().values())
    assert len(found) == len(folder.state_dict())
    assert all(map(torch.equal, found, folder.state_dict().values()))


def test_torchao(monkeypatch):
    def quantize_(model, config):
        model[0].weight = nn.Parameter(model[0].weight.to(torch.int8), requires_grad=False)

    if missing("torchao"):
        stand_in(
            monkeypatch,
            "torchao.quantization",
            quantize_=quantize_,
            Int8WeightOnlyConfig=type("Config", (), {}),
        )
    model = nn.Sequential(nn.Linear(64, 64))
    run("inference.md", "torchao", model=model)
    assert type(model[0].weight.data) is not torch.Tensor or model[0].weight.dtype == torch.int8
