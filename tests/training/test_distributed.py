import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed as torch_distributed
from torch import multiprocessing

from net import checkpoint
from net.errors import UserError
from net.training import distributed
from net.training.splits import batch_indexes, batches_in, training_batches
from tests.conftest import FAST

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def torchrun(script, options, folder):
    """Run by torchrun in two processes, each of which imports torch: ten seconds."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", free_port(), "--", script, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


def forked(script, options, folder):
    """The same by copies of this process, which are told what torchrun tells its own."""
    if torch.cuda.is_available():  # a process that may have used it cannot be copied
        return torchrun(script, options, folder)
    printed = folder / "stdout", folder / "stderr"
    arguments = (script, options, free_port(), *printed)
    code = 0
    try:  # the first that fails ends the other
        multiprocessing.start_processes(as_rank, arguments, nprocs=2, start_method="fork")
    except multiprocessing.ProcessExitedException as error:
        code = error.exit_code
    return subprocess.CompletedProcess(script, code, *(path.read_text() for path in printed))


def as_rank(rank, script, options, port, stdout, stderr):
    numbers = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ.update(numbers, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    sys.stdout = sys.__stdout__ = stdout.open("a", buffering=1)
    sys.stderr = sys.__stderr__ = stderr.open("a", buffering=1)
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    sys.exit(module.main(options))


starts = pytest.mark.parametrize(
    "start", [forked, pytest.param(torchrun, marks=pytest.mark.exhaustive)]
)


@pytest.fixture
def output(tmp_path):
    """A folder beside what the processes print."""
    path = tmp_path / "output"
    path.mkdir()
    return path


@starts
def test_two_processes_are_as_good_as_one(pipeline, tmp_path, output, start):
    """The same files, one writer, the same model in both processes, an error as of one."""
    options = [*FAST, "--device", "cpu", "--output", str(output)]
    done = start("tests/ranks.py", options, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (output / "rank-0").read_text() == (output / "rank-1").read_text()
    names = {checkpoint.INITIAL, checkpoint.RETRAINED, checkpoint.SHARED}
    assert {path.name for path in output.iterdir()} == {*names, "rank-0", "rank-1"}
    assert done.stdout.count("retrained: test error") == 1
    assert "Warning" not in done.stderr
    for name in names:
        one, two = (checkpoint.load(folder / name) for folder in (pipeline.saves, output))
        # What training made differs in its last digits, and what was shared says of what.
        own, other = ({**found.options, "made_from": None} for found in (one, two))
        assert own == other
        errors = [found.metrics["test_error_percent"] for found in (one, two)]
        assert abs(errors[0] - errors[1]) < 4  # points; 360 images, a short training
        zeros = [(found.state_dict["fc1.weight"] == 0).float().mean() for found in (one, two)]
        assert abs(zeros[0] - zeros[1]) < 0.02


@starts
def test_what_ends_one_process_ends_all(tmp_path, start):
    options = ["--weights", str(tmp_path / "none.pt"), "--dataset", "digits", "--device", "cpu"]
    done = start("pruning.py", options, tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("error: no model at") == 1


@pytest.mark.exhaustive
@starts
def test_parameters_that_have_no_part(tmp_path, start):
    """Of a model with a BatchNorm, too, in batches as small as they are chosen for two."""
    own = ["--arch", "tests.own_classes:Drops", "--dataset", "digits", "--device", "cpu"]
    own += ["--epochs", "1", "--retrain-epochs", "1", "--set", "largest_batch=6"]
    done = start("pruning.py", [*own, "--output", str(tmp_path / "out")], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nan" not in done.stdout


def test_every_process_has_a_part_of_every_batch():
    order = torch.arange(111)
    for rank in range(2):
        batches = training_batches(order, 2, (rank, 2))
        assert len(batches) == batches_in(111, 2, 2) == 55
        assert min(map(len, batches)) == 1
    assert batches_in(3, 10, 4) == 1


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
