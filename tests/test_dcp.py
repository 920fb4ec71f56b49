"""Folders of torch.distributed.checkpoint."""

import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing
from torch.distributed import checkpoint as saved

import net
from net import dcp, encoding, layouts
from net.checkpoint import CheckpointError
from net.shards import Shards


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "fc1.weight": torch.randn(37, 50, generator=generator).bfloat16(),
        "fc1.bias": torch.randn(37, generator=generator),
        "fc2.weight": torch.randn(20, 37, generator=generator),
        "steps": torch.tensor(7),
        "empty": torch.zeros(0, 4),
    }


def save(folder: Path, content: dict[str, Any] | None = None) -> Path:
    training = {"optim": {"state": {"fc1.weight": torch.ones(37, 50)}}, "epoch": 3}
    content = content or {"model": tensors(), **training}
    saved.save(content, checkpoint_id=folder, no_dist=True)
    return folder


def one_of_two(rank: int, folder: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    mesh = init_device_mesh("cpu", (2,))
    state = {
        name: distribute_tensor(tensor, mesh, [Shard(tensor.shape[0] % 2)])
        if name.startswith("fc")
        else tensor
        for name, tensor in tensors().items()
        if name != "fc1.bias"
    }
    saved.save({"app": {"model": state}}, checkpoint_id=f"{folder}/saved")
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(torch.cuda.is_available(), reason="what has used CUDA cannot be copied")
def test_what_two_processes_have_saved(tmp_path):
    """Each has half of every matrix: rows of one, columns of the other."""
    context = multiprocessing.start_processes(
        one_of_two, (str(tmp_path),), nprocs=2, join=False, start_method="fork"
    )
    deadline = time.monotonic() + 120
    while not context.join(timeout=5):
        assert time.monotonic() < deadline, "they wait for each other"
    folder = tmp_path / "saved"
    (folder / "config.json").write_text("{}")
    expected = {name: tensor for name, tensor in tensors().items() if name != "fc1.bias"}
    state, layout, files = layouts.read(folder)
    assert list(files) == ["config.json"]
    assert [line["tensors"] for line in layout["weights"]] == [1, 3]
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    net.compress(folder, tmp_path / "out", lossless=True)
    layouts.restore(encoding.open(tmp_path / "out"), tmp_path / "back")
    found: dict[str, torch.Tensor] = {}
    for file in sorted((tmp_path / "back").glob("*.safetensors")):
        found |= dict(Shards(file))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.filterwarnings("ignore")
class TestOneProcess:
    def test_the_model_is_taken(self, tmp_path):
        state, layout, files = layouts.read(save(tmp_path / "s"))
        assert list(state) == list(tensors())
        assert all(torch.equal(state[name], each) for name, each in tensors().items())
        assert layout["notes"] == ["beside the model and not kept: optim.state.fc1.weight"]
        assert not files

    @pytest.mark.parametrize("content", [tensors(), {"ema": tensors()}])
    def test_wherever_it_is(self, tmp_path, content):
        assert list(layouts.read(save(tmp_path / "s", content))[0]) == list(tensors())

    def test_a_key_chooses(self, tmp_path):
        folder = save(tmp_path / "s", {"a": tensors(), "b": {"w": torch.ones(900, 900)}})
        with pytest.raises(CheckpointError, match=r"\.metadata: holds several models: a, b"):
            layouts.read(folder)
        assert list(layouts.read(folder, "b")[0]) == ["w"]

    def test_into_one_file(self, tmp_path):
        folder = save(tmp_path / "s")
        for _ in range(2):
            net.compress(folder, tmp_path / "s.dc", lossless=True)
        state = encoding.load(tmp_path / "s.dc")[0]
        assert all(torch.equal(state[name], each) for name, each in tensors().items())

    def test_nothing_is_run(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "evil"),)

        folder = save(tmp_path / "s")
        metadata = pickle.loads((folder / ".metadata").read_bytes())
        metadata.planner_data = Evil()
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))
        with pytest.raises(CheckpointError, match=r"refused: it names (posix|nt)\.mkdir, which"):
            layouts.read(folder)
        assert not (tmp_path / "evil").exists()

    def test_nor_of_a_tensor(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "evil"),)

        folder = save(tmp_path / "s", {"w": torch.ones(900)})
        torch.save(Evil(), folder / "__0_0.distcp")
        with pytest.raises(CheckpointError, match="it is not a file of plain tensors"):
            dict(layouts.read(folder)[0])
        assert not (tmp_path / "evil").exists()

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"relative_path": "../x"}, "not a relative path within a folder"),
            ({"relative_path": "/x"}, "not a relative path within a folder"),
            ({"offset": -1}, "is nowhere"),
            ({"transform_descriptors": ["zstd"]}, "was compressed by an extension"),
        ],
    )
    def test_a_place_that_cannot_be(self, tmp_path, change, text):
        folder = save(tmp_path / "s", {"w": torch.ones(9)})
        metadata = pickle.loads((folder / ".metadata").read_bytes())
        (place,) = metadata.storage_data.values()
        vars(place).update(change)
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))
        with pytest.raises(CheckpointError, match=text):
            layouts.read(folder)

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"size": torch.Size([10])}, "'w' lacks some of its parts"),
            ({"size": torch.Size([8])}, "'w' has a part that is outside of it"),
            ({"chunks": []}, "'w' lacks some of its parts"),
            ({"size": 3}, "object is not iterable"),
        ],
    )
    def test_a_tensor_that_cannot_be(self, tmp_path, change, text):
        folder = save(tmp_path / "s", {"w": torch.ones(9)})
        metadata = pickle.loads((folder / ".metadata").read_bytes())
        vars(metadata.state_dict_metadata["w"]).update(change)
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))
        with pytest.raises(CheckpointError, match=text):
            layouts.read(folder)

    def test_another_tensor_than_announced(self, tmp_path):
        folder = save(tmp_path / "s", {"w": torch.ones(9)})
        size = (folder / "__0_0.distcp").stat().st_size
        torch.save(torch.ones(8), folder / "__0_0.distcp")
        state = layouts.read(folder)[0]
        with pytest.raises(CheckpointError, match=r"w is not as announced|cut off"):
            state["w"]
        os.truncate(folder / "__0_0.distcp", size // 2)
        with pytest.raises(CheckpointError, match="is not a checkpoint, or is damaged or cut off"):
            state["w"]
        (folder / "__0_0.distcp").unlink()
        with pytest.raises(CheckpointError, match="cannot be read: No such file"):
            state["w"]

    @pytest.mark.parametrize(
        "data", [b"", b"\x80\x04.", b"\x80\x04}.", b"no pickle", b"\x80\x04]."]
    )
    def test_no_metadata(self, tmp_path, data):
        (tmp_path / ".metadata").write_bytes(data)
        with pytest.raises(CheckpointError, match=r"\.metadata: "):
            dcp.read(tmp_path)
