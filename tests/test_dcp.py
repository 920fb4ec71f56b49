"""Folders of torch.distributed.checkpoint."""

import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
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


def changed(folder: Path, **change: Any) -> None:
    """Of the one tensor that is saved, where it is."""
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    (place,) = metadata.storage_data.values()
    vars(place).update(change)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize(
    ("blocks", "overlap"),
    [
        ([((0,), (2,)), ((2,), (2,))], False),
        ([((0,), (2,)), ((0,), (2,))], True),
        ([((0,), (3,)), ((2,), (1,)), ((3,), (0,))], True),
        ([((0, 0), (2, 2)), ((0, 2), (2, 2)), ((2, 0), (1, 4))], False),
        ([((0, 0), (2, 3)), ((1, 2), (1, 2))], True),
        ([((), ()), ((), ())], True),
        ([((), ())], False),
    ],
)
def test_blocks_that_overlap(blocks, overlap):
    """A tensor whose parts add up to it may still lack some of its elements."""
    parts = [dcp._Part(*block, "f", 0, 0) for block in blocks]
    assert dcp._overlap(parts) == overlap


@pytest.mark.filterwarnings("ignore")
class TestOneProcess:
    def test_the_model_is_taken(self, tmp_path):
        state, layout, files = layouts.read(save(tmp_path / "s"))
        assert list(state) == list(tensors())
        assert all(torch.equal(state[name], each) for name, each in tensors().items())
        assert layout["notes"] == ["beside the model and not kept: optim.state.fc1.weight, epoch"]
        assert not files

    @pytest.mark.parametrize("content", [tensors(), {"ema": tensors()}])
    def test_wherever_it_is(self, tmp_path, content):
        assert list(layouts.read(save(tmp_path / "s", content))[0]) == list(tensors())

    def test_a_key_chooses(self, tmp_path):
        folder = save(tmp_path / "s", {"a": tensors(), "b": {"w": torch.ones(900, 900)}})
        with pytest.raises(CheckpointError, match=r"\.metadata: holds several models: a, b"):
            layouts.read(folder)
        assert list(layouts.read(folder, "b")[0]) == ["w"]

    def test_an_export_beside_it(self, tmp_path):
        """It is called as the files are that the folder comes back as."""
        folder = save(tmp_path / "s")
        names = ["model-00001-of-00001.safetensors", "tokens.pt", "config.json"]
        save_file(tensors(), folder / names[0])
        torch.save([1, 2], folder / names[1])
        (folder / names[2]).write_text("{}")
        state, layout, files = layouts.read(folder)
        assert [*files] == names[2:] + names[1:2]
        assert any(f"left out, {layouts.BESIDE}: {names[0]}" in note for note in layout["notes"])
        encoding.save(state, tmp_path / "s.dc", files=files, layout=layout)
        restored = layouts.restore(encoding.open(tmp_path / "s.dc"), tmp_path / "back")
        assert sorted(path.name for path in restored) == sorted(names)
        layout["weights"][0]["path"] = "config.json"
        encoding.save(state, tmp_path / "s.dc", files=files, layout=layout)
        with pytest.raises(encoding.EncodingError, match="and another of the same name"):
            layouts.restore(encoding.open(tmp_path / "s.dc"), tmp_path / "again")

    def test_into_one_file(self, tmp_path):
        folder = save(tmp_path / "s")
        for _ in range(2):
            net.compress(folder, tmp_path / "s.dc", lossless=True)
        state = encoding.load(tmp_path / "s.dc")[0]
        assert all(torch.equal(state[name], each) for name, each in tensors().items())

    def test_a_type_that_safetensors_has_not(self, tmp_path):
        content = tensors() | {"c": torch.randn(3, 2, dtype=torch.complex128)}
        net.compress(save(tmp_path / "s", content), tmp_path / "s.dc", lossless=True)
        (path,) = layouts.restore(encoding.open(tmp_path / "s.dc"), tmp_path / "back")
        back = torch.load(path, weights_only=True)
        assert list(back) == list(content)
        assert all(torch.equal(back[name], tensor) for name, tensor in content.items())

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

        folder = save(tmp_path / "s", {"w": torch.ones(9)})
        torch.save(Evil(), folder / "__0_0.distcp")
        changed(folder, length=(folder / "__0_0.distcp").stat().st_size)
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
            ({"length": 35}, "has a part that is not whole"),
        ],
    )
    def test_a_place_that_cannot_be(self, tmp_path, change, text):
        folder = save(tmp_path / "s", {"w": torch.ones(9)})
        changed(folder, **change)
        with pytest.raises(CheckpointError, match=text):
            layouts.read(folder)

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"size": torch.Size([10])}, "'w' lacks some of its parts"),
            ({"size": torch.Size([8])}, "'w' has a part that is outside of it"),
            ({"chunks": []}, "'w' lacks some of its parts"),
            ({"size": 3}, "object is not iterable"),
            ({"size": torch.Size([1 << 62, 4])}, "a shape that PyTorch does not have"),
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
        torch.save(torch.ones(3, 3), folder / "__0_0.distcp")
        changed(folder, length=(folder / "__0_0.distcp").stat().st_size)
        state = layouts.read(folder)[0]
        with pytest.raises(CheckpointError, match="w is not as announced"):
            state["w"]
        os.truncate(folder / "__0_0.distcp", 100)
        with pytest.raises(CheckpointError, match="is cut off"):
            state["w"]
        (folder / "__0_0.distcp").unlink()
        with pytest.raises(CheckpointError, match="No such file"):
            state["w"]

    @pytest.mark.parametrize(
        "data",
        [
            *(b"", b"\x80\x04.", b"\x80\x04}.", b"no pickle", b"\x80\x04]."),
            b"\x80\x02Nr\xff\xff\xff\xff.",  # place 2**32 - 1 of a memo
        ],
    )
    def test_no_metadata(self, tmp_path, data):
        (tmp_path / ".metadata").write_bytes(data)
        with pytest.raises(CheckpointError, match=r"\.metadata: "):
            dcp.read(tmp_path)
