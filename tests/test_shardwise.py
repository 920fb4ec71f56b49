"""Folders of weights, file by file, by one process and by several."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import distributed, multiprocessing

import net
from net import container, encoding, layouts, shardwise
from net.encoding import EncodingError
from net.errors import Told, UserError
from net.pipeline.commands import main
from net.processes import Processes
from net.results import Result
from net.treatments import SharingConfig

INDEX = "model.safetensors.index.json"


def tensors() -> dict[str, torch.Tensor]:
    """Several kinds, with a bias and a norm's weight in other files than what they belong to."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "embed.weight": normal(50, 16),
        "fc1.weight": normal(40, 16).bfloat16(),
        "fc1.bias": normal(40),
        "norm.weight": 1 + normal(40) / 10,
        "norm.bias": normal(40),
        "fc2.weight": 3 * normal(30, 40),
        "fc2.bias": normal(30),
        "steps": torch.tensor(7),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of Hugging Face's, in three files of two and four tensors."""
    path = tmp_path / "model"
    path.mkdir()
    state, places = tensors(), {}
    names = list(state)
    for number, own in enumerate((names[:2], names[2:4], names[4:]), 1):
        file = f"model-{number:05}-of-00003.safetensors"
        save_file({name: state[name] for name in own}, path / file, {"format": "pt"})
        places |= dict.fromkeys(own, file)
    (path / INDEX).write_text(json.dumps({"weight_map": places}))
    (path / "config.json").write_text('{"model_type": "none"}')
    return path


@pytest.fixture
def big_folder(tmp_path: Path) -> Path:
    """Large enough for a budget to be met within two percent."""
    path = tmp_path / "big"
    path.mkdir()
    for number in (1, 2, 3):
        state = {f"{number}.weight": torch.randn(100, 50 * number)}
        save_file(state, path / f"model-{number:05}-of-00003.safetensors", {"format": "pt"})
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def compress(folder: Path, out: Path, **options) -> Result:
    return net.compress(folder, out, **{"noise": 0.3} | options)


# Several processes


def one_of(rank: int, count: int, meeting: str, work) -> None:
    """Leave what `work(rank)` gives or raises beside `meeting`."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=count
    )
    try:
        found = work(rank)
    except UserError as error:
        found = type(error), str(error)
    Path(f"{meeting}-{rank}").write_bytes(pickle.dumps(found))
    distributed.destroy_process_group()


def together(count: int, folder: Path, work) -> list:
    """What `work(rank)` gives, or (the class, the text) of the error, in processes that are copies
    of this one; None of those that were killed."""
    meeting = folder / f"meeting-{time.monotonic_ns()}"
    context = multiprocessing.get_context("fork")
    arguments = [(rank, count, str(meeting), work) for rank in range(count)]
    processes = [context.Process(target=one_of, args=each) for each in arguments]
    for process in processes:
        process.start()
    deadline = time.monotonic() + 120
    for process in processes:
        process.join(max(0, deadline - time.monotonic()))
    hung = [process for process in processes if process.is_alive()]
    for process in hung:
        process.kill()
    assert not hung, "they wait for each other"
    files = [Path(f"{meeting}-{rank}") for rank in range(count)]
    return [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]


fork = pytest.mark.skipif(torch.cuda.is_available(), reason="what has used CUDA cannot be copied")


@fork
def test_the_bytes_do_not_depend_on_the_number_of_processes(folder, tmp_path):
    alone = compress(folder, tmp_path / "one")
    expected = content(tmp_path / "one")
    assert alone.bytes == sum(map(len, expected.values()))
    for count in (2, 3):
        out = tmp_path / f"by-{count}"
        results = together(count, tmp_path, lambda _, out=out: compress(folder, out))
        assert content(out) == expected
        assert all(result.plan == alone.plan for result in results)
        assert all(result.rounded == alone.rounded for result in results)
        assert all(result.clusterings == alone.clusterings for result in results)


def refused(results: list, text: str) -> bool:
    """Whether the first process tells why, and the others say nothing."""
    (kind, told), *others = results
    return kind is UserError and text in told and all(each[0] is Told for each in others)


@fork
def test_one_process_says_what_was_wrong(folder, tmp_path):
    out = tmp_path / "out"
    found = together(4, tmp_path, lambda _: compress(folder, out))
    assert refused(found, "4 processes for 3 files of weights, so that some have none; start at")
    assert not out.exists()  # of the lock and the token nothing is left

    found = together(2, tmp_path, lambda rank: compress(folder, tmp_path / f"{rank}"))
    assert refused(found, "both must be on a file system that all machines have in common")

    def missing(rank: int):
        return compress(folder if rank == 0 else tmp_path / "nowhere", out)

    found = together(2, tmp_path, missing)
    assert refused(found, f"process 1 of 2: no model at {tmp_path}/nowhere")


@pytest.mark.exhaustive
@fork
def test_every_process_fails_by_its_exit_code(folder, tmp_path):
    arguments = ["compress", str(folder), "-o"]
    assert together(4, tmp_path, lambda _: main([*arguments, str(tmp_path / "out")])) == [1] * 4
    assert together(2, tmp_path, lambda _: main([*arguments, str(tmp_path / "one.dc")])) == [1] * 2
    assert not (tmp_path / "out").exists()


@pytest.mark.exhaustive
@fork
def test_nobody_is_waited_for_for_ever(tmp_path):
    def wait(rank: int):
        processes = Processes(timedelta(seconds=1))
        return processes.gather(lambda: time.sleep(4 * rank))

    (kind, text), (late, _) = together(2, tmp_path, wait)
    assert text == "another process has not answered for 0:00:01; start them again"
    assert (kind, late) == (UserError, Told)


@fork
def test_a_process_that_is_killed_costs_its_file(folder, tmp_path, monkeypatch):
    """The others finish theirs, and the next run does what is left."""
    expected = compress(folder, tmp_path / "one") and content(tmp_path / "one")
    out = tmp_path / "out"
    write = shardwise.write

    def dying(shared, target, *rest):
        if target.name.startswith("model-00003"):
            os.kill(os.getpid(), signal.SIGKILL)
        return write(shared, target, *rest)

    monkeypatch.setattr(shardwise, "write", dying)
    results = together(3, tmp_path, lambda _: compress(folder, out))
    assert results.count(None) == 1
    kept = {name for name in content(out) if not name.startswith(".")}
    assert kept == {"model-00001-of-00003.dc", "model-00002-of-00003.dc"}
    texts = [text for _, text in filter(None, results)]
    assert all("ended before this one; start them again for what is left" in t for t in texts)
    with pytest.raises(EncodingError, match="encode a model first"):
        encoding.open(out)

    written = []
    monkeypatch.setattr(shardwise, "write", lambda *all: written.append(all[1]) or write(*all))
    result = compress(folder, out)
    assert [path.name for path in written] == ["model-00003-of-00003.dc"]
    assert "2 of 3 files were finished before" in result.notes
    assert content(out) == expected


@fork
def test_a_budget_is_of_all_files_whoever_makes_them(big_folder, tmp_path):
    most = 16_000
    alone = compress(big_folder, tmp_path / "one", noise=None, max_bytes=most)
    assert 0.98 * most <= alone.bytes <= most
    assert alone.bytes == sum(map(len, content(tmp_path / "one").values()))
    (first, second) = together(
        2, tmp_path, lambda _: compress(big_folder, tmp_path / "two", noise=None, max_bytes=most)
    )
    assert first.noise == second.noise == alone.noise
    assert content(tmp_path / "two") == content(tmp_path / "one")
    again = compress(big_folder, tmp_path / "two", noise=None, max_bytes=most)
    assert (again.noise, again.bytes, again.plan) == (alone.noise, alone.bytes, {})

    found = together(
        2, tmp_path, lambda _: compress(big_folder, tmp_path / "no", max_bytes=99, noise=None)
    )
    assert refused(found, "99 bytes cannot be had: the smallest is")
    assert not (tmp_path / "no").exists()


def test_a_budget_that_needs_no_loss(folder, tmp_path):
    result = compress(folder, tmp_path / "out", noise=None, max_bytes=10**6)
    assert result.noise is None
    assert "it fits without loss" in result.notes


# One process


@pytest.mark.parametrize("options", [{}, {"lossless": True, "noise": None}])
def test_the_tensors_are_those_of_one_file(folder, tmp_path, options):
    compress(folder, tmp_path / "out", **options)
    compress(folder, tmp_path / "one.dc", **options)
    many, one = encoding.open(tmp_path / "out"), encoding.open(tmp_path / "one.dc")
    assert list(many) == list(one)
    assert all(torch.equal(many[name], one[name]) for name in one)
    assert all(torch.equal(t, one[n]) for n, t in encoding.load(tmp_path / "out")[0].items())
    assert many.layout == one.layout
    assert many.files == one.files == {"config.json": 22, INDEX: many.files[INDEX]}
    assert many.read_file("config.json") == b'{"model_type": "none"}'
    assert many.meta.items() >= one.meta.items()  # noise, and that of each tensor
    name = next(name for name in one if not one.info(name).home.joined)
    assert many.describe(name)[1].encoded_bytes == one.describe(name)[1].encoded_bytes


def test_it_comes_back(folder, tmp_path, capsys):
    options = ["compress", str(folder), "-o", str(tmp_path / "out")]
    assert main([*options, "--lossless"]) == 0
    assert "nothing is lost" in capsys.readouterr().out
    assert main(["decompress", str(tmp_path / "out"), "-o", str(tmp_path / "back")]) == 0
    assert content(tmp_path / "back") == content(folder)
    assert main(["info", str(tmp_path / "out"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.partition("\n")[2])
    size = sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    assert figures["bytes"] == size
    assert {row["name"] for row in figures["tensors"]} == tensors().keys()


def test_the_outputs_are_not_looked_at(folder, tmp_path, capsys):
    assert main(["compress", str(folder), "-o", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert shown.out.endswith("noise 0.14, outputs: not checked\n")
    assert "the outputs were not checked: the files are compressed one by one" in shown.err
    assert "rounded beside the weights: 4 biases and parts of normalisation" in shown.err


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"max_divergence": 0.1, "noise": None}, "max_divergence"),
        ({"inputs": torch.zeros(2, 3)}, "inputs"),
        ({"evaluate": len}, "evaluate"),
    ],
)
def test_what_is_for_one_file(folder, tmp_path, options, name):
    with pytest.raises(ValueError, match=f"{name} is for one file; give an output that ends in"):
        compress(folder, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_same_by_flags(folder, tmp_path, capsys):
    assert main(["compress", str(folder), "-o", str(tmp_path / "out"), "--inputs", "a.txt"]) == 2
    assert "--inputs is for one file; give an output that ends in .dc" in capsys.readouterr().err


def test_one_file_is_no_folder(folder, tmp_path):
    file = next(folder.glob("*.safetensors"))
    with pytest.raises(UserError, match=r"is one file; give an output that ends in \.dc"):
        compress(file, tmp_path / "out")
    with pytest.raises(ValueError, match=r"must end in \.dc"):
        compress({"a.weight": torch.ones(3, 3)}, tmp_path / "out")


def test_nothing_to_share(tmp_path):
    (tmp_path / "m").mkdir()
    save_file({"steps": torch.arange(9)}, tmp_path / "m" / "model.safetensors")
    result = compress(tmp_path / "m", tmp_path / "out")
    assert result.noise is None
    assert result.notes == [
        "nothing in it can be shared (no floating-point numbers): it is encoded without loss"
    ]
    assert torch.equal(encoding.open(tmp_path / "out")["steps"], torch.arange(9))


# A second run


def test_what_is_finished_stays(folder, tmp_path):
    out = tmp_path / "out"
    compress(folder, out)
    before = {file: file.stat().st_mtime_ns for file in out.glob("*.dc")}
    lost = out / "model-00002-of-00003.dc"
    lost.unlink()
    (out / ".0123456789ab.dc.tmp").write_text("of one that was killed")
    expected = content(out) | {}
    result = compress(folder, out)
    assert result.plan.keys() == {"fc1.bias", "norm.weight"}
    assert {file for file, at in before.items() if file.stat().st_mtime_ns != at} == {lost}
    assert content(out).keys() == expected.keys() - {".0123456789ab.dc.tmp"} | {lost.name}


@pytest.mark.parametrize("what", ["values", "noise", "exclude", "config", "name"])
def test_what_is_stale_is_not_trusted(folder, tmp_path, what):
    """Another model, or other options: files without an index are made anew, a whole encoding is
    left alone."""
    out = tmp_path / "out"
    compress(folder, out)
    options = {"noise": {"noise": 0.31}, "exclude": {"exclude": "embed"}}.get(what, {})
    if what == "values":  # of the same size and time
        file = folder / "model-00003-of-00003.safetensors"
        status = file.stat()
        state = tensors()
        state["fc2.weight"][0, 0] += 1
        names = list(state)[4:]
        save_file({name: state[name] for name in names}, file, {"format": "pt"})
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif what == "config":
        (folder / "config.json").write_text('{"model_type": "some"}')
    elif what == "name":
        folder = folder.rename(tmp_path / "another")
    whole = content(out)
    with pytest.raises(UserError, match="holds another model, or what other options made"):
        compress(folder, out, **options)
    assert content(out) == whole
    (out / container.INDEX).unlink()
    compress(folder, out, **options)
    compress(folder, tmp_path / "fresh", **options)
    assert content(out) == content(tmp_path / "fresh")


def test_files_of_somebody_else(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(UserError, match="holds other files, as mine; give a new folder"):
        compress(folder, tmp_path / "out")
    for inside in (folder, folder / "out"):
        with pytest.raises(UserError, match="is in the folder of the model; give another place"):
            compress(folder, inside)
    assert not (folder / "out").exists()


# Reading


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (
            lambda out: (out / "model-00002-of-00003.dc").unlink(),
            "model-00002-of-00003.dc: No such",
        ),
        (
            lambda out: os.truncate(out / "model-00002-of-00003.dc", 60),
            "model-00002-of-00003.dc: the header ends early",
        ),
        (
            lambda out: (out / "model-00001-of-00003.dc").rename(out / "model-00002-of-00003.dc"),
            "model-00001-of-00003.dc: No such file",
        ),
        (
            lambda out: (out / "model-00002-of-00003.dc").write_bytes(
                (out / "model-00001-of-00003.dc").read_bytes()
            ),
            "model-00002-of-00003.dc: tensors that the index does not name, or elsewhere",
        ),
        (lambda out: (out / container.INDEX).write_text("{}"), "no weight_map"),
        (
            lambda out: (out / container.INDEX).write_text('{"weight_map": {"a": "../x"}}'),
            "the file of 'a' in its weight_map is missing",
        ),
    ],
)
def test_what_is_damaged(folder, tmp_path, damage, text):
    out = tmp_path / "out"
    compress(folder, out)
    damage(out)
    with pytest.raises(EncodingError, match=text):
        encoding.open(out)


def test_an_index_of_more(folder, tmp_path):
    compress(folder, tmp_path / "out")
    index = tmp_path / "out" / container.INDEX
    found = json.loads(index.read_text())
    found["weight_map"]["more"] = "model-00001-of-00003.dc"
    index.write_text(json.dumps(found))
    with pytest.raises(EncodingError, match="'more' is not in the file that the index names"):
        encoding.open(tmp_path / "out")


def test_into_a_module(folder, tmp_path):
    compress(folder, tmp_path / "out")
    model = torch.nn.ModuleDict(
        {
            "embed": torch.nn.Embedding(50, 16),
            "fc1": torch.nn.Linear(16, 40),
            "norm": torch.nn.LayerNorm(40),
            "fc2": torch.nn.Linear(40, 30),
        }
    )
    net.load_into(model, tmp_path / "out", strict=False)
    assert torch.equal(model["fc2"].weight, encoding.open(tmp_path / "out")["fc2.weight"])


def test_one_file_of_them_is_an_encoding(folder, tmp_path):
    compress(folder, tmp_path / "out", noise=None, lossless=True)
    layouts.restore(encoding.open(tmp_path / "out" / "model-00002-of-00003.dc"), tmp_path / "part")
    name = "model-00002-of-00003.safetensors"
    assert content(tmp_path / "part") == {name: (folder / name).read_bytes()}


def test_a_plan_of_some_names_is_a_part_of_the_whole():
    state = tensors()
    config = SharingConfig("auto", exclude="norm.bias")
    whole = net.plan.plan(state, config)
    for names in (["fc1.bias", "embed.weight"], ["norm.weight"], list(state)):
        assert net.plan.plan(state, config, names) == {n: whole[n] for n in state if n in names}


@pytest.mark.exhaustive
def test_by_torchrun(folder, tmp_path):
    """What a user types; the copies of this process above have no agent that ends them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    arguments = ["-m", "net", "compress", str(folder), "--noise", "0.3", "-o"]

    def run(count: int, out: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*command, str(count), *arguments, str(tmp_path / out)],
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )

    for count in (1, 2):
        done = run(count, f"by-{count}")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\n") == 1
    assert content(tmp_path / "by-1") == content(tmp_path / "by-2")
    done = run(4, "by-4")
    assert done.returncode == 1
    assert done.stderr.count("error: 4 processes for 3 files of weights") == 1


@pytest.mark.exhaustive
def test_a_model_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "vocab_size": 90}
    config = transformers.LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "model", max_shard_size="40KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    compress(tmp_path / "model", tmp_path / "out", noise=None, lossless=True)
    found = net.from_pretrained(transformers.AutoModelForCausalLM, tmp_path / "out")
    tokens = torch.arange(12).view(2, 6)
    assert torch.equal(found(tokens).logits, model(tokens).logits)
    net.load_into(model, tmp_path / "out")


def test_files_of_this_run_were_not_finished_before(folder, tmp_path):
    whole = compress(folder, tmp_path / "out", noise=0.3)
    result = compress(folder, tmp_path / "other", noise=None, max_bytes=whole.bytes)
    assert not any("finished before" in note for note in result.notes)


def test_tied_tensors_count_once(tmp_path):
    weight = torch.randn(256, 256)
    (tmp_path / "hf").mkdir()
    torch.save({"a.weight": weight, "b.weight": weight}, tmp_path / "hf/pytorch_model.bin")
    one = net.compress(tmp_path / "hf", tmp_path / "one.dc", lossless=True)
    many = net.compress(tmp_path / "hf", tmp_path / "many", lossless=True)
    assert many.dense_bytes == one.dense_bytes
    fits = one.bytes + 2000
    assert net.compress(tmp_path / "hf", tmp_path / "fits", max_bytes=fits).noise is None
