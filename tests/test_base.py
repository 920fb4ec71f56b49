"""An installation of the base alone: what [train] brings is missing, and nothing needs it untold.

One process in which its packages cannot be imported does everything that the base is for, and each
of the others says in one line what to install.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKED = """
import importlib, io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

TRAIN = {"torchvision", "sklearn", "scipy", "tqdm", "matplotlib", "PIL"}


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in TRAIN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: (
    None if name.partition(".")[0] in TRAIN else found(name, *rest)
)
sys.meta_path.insert(0, Missing())

import torch
import net
from net import sparse


def call(module, *arguments):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = importlib.import_module(module).main(list(arguments))
        except SystemExit as stop:
            code = stop.code
        except Exception as error:
            code, err = -1, io.StringIO(repr(error))
    return [code, out.getvalue(), err.getvalue()]


results = {}
model = torch.nn.Sequential(torch.nn.Linear(60, 40), torch.nn.ReLU(), torch.nn.Linear(40, 3))
state = model.state_dict()
torch.save(state, "model.pth")
for target in ("encodings", "model.dc"):
    net.encoding.save(net.SharedState(state, noise=0.2), target)
    loaded, _ = net.encoding.load(target)
    assert torch.equal(net.encoding.open(target)["0.weight"], loaded["0.weight"])
    net.load_into(model, target)
assert str(net.report(target, target)).startswith("model.dc: 4 tensors")
net.Pruner(model, density=0.2)
net.WeightSharing(model, bits=3)
sparse.SAMPLES = 3
assert sparse.sparse_model(model).choices.keys() == {"0", "2"}
assert isinstance(net.quantization.kmeans_1d(state["0.weight"].numpy().ravel(), 4)[0][0], float)

commands = json.loads(sys.argv[1])
print(json.dumps({" ".join(words): call(*words) for words in commands}))
"""
SCRIPTS = [
    *("pruning", "weight_share", "huffman_encode", "huffman_decode"),
    *("compare_stages", "deep_compressing"),
]
WORKS = [
    *([name, "--help"] for name in SCRIPTS),
    ["weight_share", "model.pth", "--output", "saves/shared.ptmodel"],
    ["huffman_encode", "model.pth", "--directory", "other.dc"],
    ["huffman_decode", "--directory", "model.dc", "--output", "decoded.safetensors"],
    ["net.__main__", "--help"],
    ["net.__main__", "compress", "model.pth", "-o", "small.dc"],
    ["net.__main__", "info", "small.dc"],
    ["net.__main__", "decompress", "small.dc", "-o", "back.pth"],
]
NEEDS = {
    "the data set digits needs sklearn": ["deep_compressing", "--dataset", "digits"],
    "the data set mnist needs torchvision": ["pruning", "--dataset", "mnist"],
    "a plot needs matplotlib": ["deep_compressing", "--dataset", "digits", "--plot", "a.png"],
    "the architecture resnet18 needs torchvision": ["pruning", "--arch", "resnet18"],
    "a folder of images needs torchvision": ["pruning", "--dataset", "folder:images"],
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """{command: (exit code, stdout, stderr)}."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, json.dumps([*WORKS, *NEEDS.values()])],
        cwd=tmp_path_factory.mktemp("base"),
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("words", WORKS, ids=" ".join)
def test_the_base_is_enough(results, words):
    code, out, err = results[" ".join(words)]
    assert code == 0, err
    assert out


@pytest.mark.parametrize("what", NEEDS)
def test_the_rest_says_in_one_line_what_to_install(results, what):
    code, _, err = results[" ".join(NEEDS[what])]
    *_, last = err.splitlines()
    assert code == 1
    assert last.startswith(f"error: {what}, which is not installed: pip install ")
    assert '"deep-compression[train]"' in last
