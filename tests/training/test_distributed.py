import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed as torch_distributed

from net import checkpoint
from net.errors import UserError
from net.training import distributed
from net.training.splits import batch_indexes
from tests.conftest import FAST

ROOT = Path(__file__).parents[2]


def torchrun(script, *options):
    with socket.socket() as probe:  # a port that is free
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(port), "--", script, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


def test_two_processes_are_as_good_as_one(pipeline, tmp_path):
    """The same files, one writer, the same model in both processes, an error as of one."""
    done = torchrun("tests/ranks.py", *FAST, "--device", "cpu", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "rank-0").read_text() == (tmp_path / "rank-1").read_text()
    names = {checkpoint.INITIAL, checkpoint.RETRAINED, checkpoint.SHARED}
    assert {path.name for path in tmp_path.iterdir()} == {*names, "rank-0", "rank-1"}
    assert done.stdout.count("retrained: test error") == 1
    assert "Warning" not in done.stderr
    for name in names:
        one, two = (checkpoint.load(folder / name) for folder in (pipeline.saves, tmp_path))
        assert one.options == two.options
        errors = [found.metrics["test_error_percent"] for found in (one, two)]
        assert abs(errors[0] - errors[1]) < 4  # points; 360 images, a short training
        zeros = [(found.state_dict["fc1.weight"] == 0).float().mean() for found in (one, two)]
        assert abs(zeros[0] - zeros[1]) < 0.02


def test_what_ends_one_process_ends_all(tmp_path):
    weights = str(tmp_path / "none.pt")
    done = torchrun("pruning.py", "--weights", weights, "--dataset", "digits", "--device", "cpu")
    assert done.returncode == 1
    assert done.stderr.count("error: no model at") == 1


def test_the_batches_of_all_processes_are_those_of_one():
    for processes in (2, 3):
        torch.manual_seed(5)
        whole = batch_indexes(100, 18, shuffle=True)
        parts = []
        for rank in range(processes):
            torch.manual_seed(5)
            parts.append(batch_indexes(100, 18, shuffle=True, shard=(rank, processes)))
        for batch, *shares in zip(whole, *parts, strict=True):
            assert len({len(share) for share in shares}) == 1
            together = torch.cat(shares)
            assert len(together.unique()) == len(together) > len(batch) - processes
            assert set(together.tolist()) <= set(batch.tolist())


def test_evaluation_sees_every_image_once():
    parts = [batch_indexes(100, 9, shuffle=False, shard=(rank, 3)) for rank in range(3)]
    seen = torch.cat([batch for part in parts for batch in part])
    assert sorted(seen.tolist()) == list(range(100))


def test_a_batch_smaller_than_the_processes():
    with pytest.raises(UserError, match="a batch of 1 is too small for 2 processes"):
        batch_indexes(10, 1, shuffle=True, shard=(0, 2))


def test_one_process_needs_no_other():
    assert not torch_distributed.is_initialized()
    distributed.start(torch.device("cpu"))
    assert distributed.shard() == (0, 1)
    assert distributed.is_writer()
    assert distributed.total(1.5, 2) == [1.5, 2.0]
    model = torch.nn.Linear(2, 2)
    assert distributed.parallel(model) is model
    assert distributed.leave()
