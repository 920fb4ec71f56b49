"""The installed copy, and who imports whom inside net/."""

import ast
import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import net

ROOT = Path(__file__).parent.parent
NAME = "deep_compression"
DISTRIBUTION = ("pyproject.toml", "README.md", "LICENSE")
BASE = {"torch", "numpy", "numba", "safetensors"}


def modules() -> dict[str, Path]:
    """{"net.codec.bits": its file} of everything in net/."""
    found = {}
    for path in sorted((ROOT / "net").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


# Installed


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of `pip install --target`, made from a copy: setuptools leaves files beside."""
    source, target = (
        tmp_path_factory.mktemp("source"),
        tmp_path_factory.mktemp("target"),
    )
    for name in DISTRIBUTION:
        shutil.copy(ROOT / name, source)
    for name in ("net", "presets"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    command += [
        "--no-build-isolation",
        "--no-compile",
        "--target",
        str(target),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return target


def elsewhere(installed, folder, *command):
    """What a process prints that has the installed copy on its path and not the clone."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_package_and_all_of_it(installed):
    top = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert top - {"bin", "Scripts"} == {NAME}
    found = {path.relative_to(installed / NAME) for path in (installed / NAME).rglob("*.py")}
    assert found == {path.relative_to(ROOT / "net") for path in MODULES.values()}
    presets = [path.relative_to(ROOT) for path in (ROOT / "presets").rglob("*.json")]
    inside = [path.relative_to(ROOT / "net") for path in (ROOT / "net").rglob("*.json")]
    assert all((installed / NAME / path).is_file() for path in presets + inside)


def test_its_description(installed):
    (about,) = importlib.metadata.distributions(path=[str(installed)])
    assert about.metadata["Name"] == "deep-compression"
    assert about.version == net.__version__
    needs = [line.partition("; ") for line in about.requires]
    # The suite needs both, in the same versions.
    assert {line for line, *_ in needs} == set((ROOT / "requirements.txt").read_text().split())
    assert len(needs) == len((ROOT / "requirements.txt").read_text().split())
    assert {line.partition(">")[0] for line, _, extra in needs if not extra} == BASE
    assert {extra for *_, extra in needs if extra} == {'extra == "train"'}
    assert about.metadata["License-Expression"] == "BSD-3-Clause"
    (command,) = about.entry_points
    assert (command.group, command.name) == ("console_scripts", "deep-compression")


PYTHON_OF_THE_DESIGN = """
import importlib.util, sys, torch, deep_compression as net

assert importlib.util.find_spec("net") is None, "the clone is on the path"
assert net.encoding.save and "numba" not in sys.modules, "half a second to load"
model = torch.nn.Sequential(torch.nn.Linear(50, 40), torch.nn.ReLU(), torch.nn.Linear(40, 3))
net.Pruner(model, density=0.2)
net.WeightSharing(model, bits=3)
assert "numba" not in sys.modules, "nothing here needs a compiled loop"
"""
CODEC = """
written = net.encoding.save(model.state_dict(), "encodings")
state, _ = net.encoding.load("encodings")
assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
print(written)
"""


def test_it_prunes_and_shares_in_another_folder(installed, tmp_path):
    elsewhere(installed, tmp_path, sys.executable, "-c", PYTHON_OF_THE_DESIGN)


@pytest.mark.exhaustive  # compiles the codec's loops anew
def test_it_encodes_and_decodes_in_another_folder(installed, tmp_path):
    written = int(
        elsewhere(installed, tmp_path, sys.executable, "-c", PYTHON_OF_THE_DESIGN + CODEC)
    )
    assert written == sum(path.stat().st_size for path in (tmp_path / "encodings").iterdir())
    assert written < 4 * (50 * 40 + 40 + 40 * 3 + 3) / 4


def test_its_command_tells_its_options(installed, tmp_path):
    command = installed / "bin" / "deep-compression"
    shown = elsewhere(installed, tmp_path, sys.executable, command, "--help")
    assert shown.startswith("usage: deep-compression ")


@pytest.mark.exhaustive
def test_its_command_compresses(installed, tmp_path):
    arguments = ["pipeline", "--dataset", "digits", "--device", "cpu", "--epochs", "1"]
    arguments += ["--retrain-epochs", "1", "--finetune-epochs", "0"]
    command = installed / "bin" / "deep-compression"
    shown = elsewhere(installed, tmp_path, sys.executable, command, *arguments)
    assert "the decoded model equals the weight-shared one, bit for bit" in shown
    assert {path.name for path in tmp_path.iterdir()} == {"saves", "encodings"}


def test_import_costs_nothing():
    code = "import sys, net; print(*{'torch', 'numpy', 'numba', 'scipy'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", net.__all__)
def test_what_the_package_offers_is_there(name):
    assert getattr(net, name) is not None
    assert name in dir(net)


def test_what_the_package_does_not_offer():
    with pytest.raises(AttributeError, match="module 'net' has no attribute 'Prune'"):
        _ = net.Prune


# Imports


def imports(module: str) -> set[str]:
    """The modules of net/ that `module` imports, at its top or within functions."""
    path, found = MODULES[module], set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
            base = f"{base}.{node.module}" if node.module else base
            for alias in node.names:
                name = f"{base}.{alias.name}"
                if alias.name == "__version__":
                    continue
                found.add(name if name in MODULES else base)
    return found


# net/__init__.py is the door, and knows everyone.
GRAPH = {module: imports(module) for module in MODULES if module != "net"}
LAYERS = ("errors", "tensors", "codec", "library", "training", "report", "pipeline", "__main__")


def layer(module: str) -> int:
    part = module.split(".")[1]
    return LAYERS.index(part if part in LAYERS else "library")


@pytest.mark.parametrize("module", MODULES)
def test_imports_are_relative(module):
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        assert not {"net", NAME} & {name.split(".")[0] for name in names}, node.lineno


@pytest.mark.parametrize("module", GRAPH)
def test_imports_point_down(module):
    """errors <- tensors <- codec <- the library <- training <- report <- pipeline <- __main__"""
    above = {other for other in GRAPH[module] if other == "net" or layer(other) > layer(module)}
    assert above == set()


def circle_through(module: str) -> list[str]:
    """The shortest way from `module` by imports back to itself, or []."""
    ways = [[module]]
    seen = set()
    for way in ways:
        for other in sorted(GRAPH[way[-1]]):
            if other == module:
                return [*way, module]
            if other in GRAPH and other not in seen:
                seen.add(other)
                ways.append([*way, other])
    return []


@pytest.mark.parametrize("module", GRAPH)
def test_imports_make_no_circle(module):
    assert circle_through(module) == []


def test_choosing_parameters_does_not_load_the_codec():
    """numba takes half a second, which a script that only prunes need not wait for."""
    below = {"net.parameters"}
    while more := set().union(*(GRAPH.get(module, set()) for module in below)) - below:
        below |= more
    assert not {module for module in below if module.startswith("net.codec")}
