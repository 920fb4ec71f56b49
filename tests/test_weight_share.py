import json
import re

import pytest
import torch
from safetensors.torch import save_file

import pruning
import weight_share
from net import checkpoint
from net.pipeline import choosing
from net.training import weights
from net.training.architectures import build
from net.training.resume import RunProgress
from tests.conftest import FAST, use_few_digits

OPTIONS = ["--device", "cpu", "--seed", "7", "--batch-size", "64", "--epochs", "1"]


def share(model, output, *options):
    return weight_share.main([str(model), "--output", str(output), *options])


def test_the_same_bytes_as_the_pipeline(pipeline, tmp_path):
    assert FAST[-1] == "1"  # the pipeline's --finetune-epochs
    assert share(pipeline.saves / checkpoint.RETRAINED, tmp_path / "m", *OPTIONS) == 0
    assert (tmp_path / "m").read_bytes() == (pipeline.saves / checkpoint.SHARED).read_bytes()


def test_prints_values_and_errors(pipeline, tmp_path, capsys):
    share(pipeline.saves / checkpoint.RETRAINED, tmp_path / "m", *OPTIONS)
    printed = capsys.readouterr().out
    for text in ("values before", "after", "noise %", "about bytes"):
        assert text in printed
    for text in ("before weight sharing", "after clustering", "after fine-tuning"):
        assert f"{text}: test error" in printed


@pytest.mark.parametrize("bits", [1, 4])
def test_few_values_and_the_pruned_positions_of_the_stage_before(pipeline, tmp_path, bits):
    source = checkpoint.load(pipeline.saves / checkpoint.RETRAINED)
    share(pipeline.saves / checkpoint.RETRAINED, tmp_path / "m", *OPTIONS, "--bits", str(bits))
    shared = checkpoint.load(tmp_path / "m")
    for name in weights.kinds_of(source):
        weight = shared.state_dict[name]
        assert torch.equal(weight != 0, source.state_dict[name] != 0)
        assert 1 < len(weight[weight != 0].unique()) <= 2**bits


def test_fine_tuning_moves_centroids_not_assignments(pipeline, tmp_path):
    source = pipeline.saves / checkpoint.RETRAINED
    share(source, tmp_path / "clustered", *OPTIONS, "--epochs", "0")
    share(source, tmp_path / "tuned", *OPTIONS)
    clustered = checkpoint.load(tmp_path / "clustered").state_dict["fc1.weight"]
    tuned = checkpoint.load(tmp_path / "tuned").state_dict["fc1.weight"]
    assert not torch.equal(clustered, tuned)
    for value in clustered.unique():
        assert len(tuned[clustered == value].unique()) == 1


def test_a_bare_state_dict_is_clustered_without_its_architecture(tmp_path, capsys):
    torch.manual_seed(0)
    state = {"a.weight": torch.randn(9, 9), "norm.weight": torch.randn(9), "n": torch.tensor(3)}
    torch.save(state, tmp_path / "m.pt")
    assert share(tmp_path / "m.pt", tmp_path / "out", "--epochs", "0", "--bits", "2") == 0
    shown = capsys.readouterr()
    assert "NOTE: shared without data, so that nobody has seen" in shown.err
    plan = [line for line in shown.out.splitlines() if "a.weight" in line or "norm.weight" in line]
    assert plan[0].startswith("shared, 4 values at most")
    assert plan[1].startswith("rounded")
    shared = checkpoint.load(tmp_path / "out")
    assert shared.options["plan"]["n"].startswith("exact: ")
    shared = checkpoint.load(tmp_path / "out")
    assert shared.arch is None
    assert len(shared.state_dict["a.weight"].unique()) == 4
    rounded = shared.state_dict["norm.weight"]
    assert not torch.equal(rounded, state["norm.weight"])
    assert torch.allclose(rounded, state["norm.weight"], rtol=1 / 64)
    options = ["--epochs", "0", "--bits", "2", "--exact-vectors"]
    assert share(tmp_path / "m.pt", tmp_path / "exact", *options) == 0
    exact = checkpoint.load(tmp_path / "exact").state_dict["norm.weight"]
    assert torch.equal(exact, state["norm.weight"])
    assert shared.state_dict["n"] == 3


def test_what_becomes_of_a_bare_state_dict_is_said_and_can_be_chosen(tmp_path, capsys):
    torch.manual_seed(0)
    state = {
        **{f"{name}.weight": torch.randn(40, 40) for name in "abc"},
        "a.bias": torch.randn(40),
        "pos_embed": torch.randn(1, 9, 40),
    }
    torch.save(state, tmp_path / "m.pt")
    options = ["--epochs", "0", "--bits", "auto"]
    assert share(tmp_path / "m.pt", tmp_path / "out", *options) == 0
    notes = capsys.readouterr().err
    assert "NOTE: rounded beside the weights: 1 biases and parts" in notes
    assert "NOTE: left as they are (not a weight by its name): pos_embed; " in notes

    def changed(*more):
        assert share(tmp_path / "m.pt", tmp_path / "out", *options, *more) == 0
        found = checkpoint.load(tmp_path / "out").state_dict
        return {name for name in state if not torch.equal(found[name], state[name])}

    assert changed("--exclude", "a,b") == {"c.weight"}
    assert changed("--include", "a,pos_*") == {"a.weight", "a.bias", "pos_embed"}
    assert share(tmp_path / "m.pt", tmp_path / "x", *options, "--include", "d") == 1
    assert "error: no parameter matches 'd'; there are: a, b, c, pos_embed" in (
        capsys.readouterr().err
    )
    assert share(tmp_path / "m.pt", tmp_path / "x", "--include", "a,,b") == 2


def test_a_state_dict_alone_is_shared_by_rate(tmp_path, capsys):
    """Without any other option: no training, and no recipe of an architecture."""
    torch.manual_seed(0)
    weight = torch.randn(64, 64)
    torch.save({"a.weight": weight}, tmp_path / "m.pth")
    assert share(tmp_path / "m.pth", tmp_path / "out") == 0
    assert "shared by rate" in capsys.readouterr().out
    shared = checkpoint.load(tmp_path / "out")
    values = shared.state_dict["a.weight"].unique().double()
    steps = values.diff()
    assert len(values) < 100
    assert 0.08 < float(steps.min()) < 0.15  # 0.58 of 0.2 deviations, each the same
    multiples = steps / steps.median()  # some may not occur
    assert float((multiples - multiples.round()).abs().max()) < 0.05
    assert shared.options["bits"] == "auto"
    assert not {"teacher", "finetune_epochs"} & shared.options.keys()


def test_a_bare_state_dict_cannot_be_fine_tuned(tmp_path, capsys):
    torch.save(build("lenet-300-100").state_dict(), tmp_path / "m.pt")
    assert share(tmp_path / "m.pt", tmp_path / "out", "--epochs", "2") == 1
    assert "shared, not fine-tuned: its architecture is not known" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_odd_layers(tmp_path):
    """Entirely pruned, constant, fewer values than clusters."""
    state = {
        "pruned.weight": torch.zeros(4, 4),
        "constant.weight": torch.full((4, 4), 0.25),
        "few.weight": torch.tensor([[1.0, 0.0], [-1.0, 0.5]]),
    }
    torch.save(state, tmp_path / "m.pt")
    assert share(tmp_path / "m.pt", tmp_path / "out", "--bits", "5") == 0
    shared = checkpoint.load(tmp_path / "out").state_dict
    for name, tensor in state.items():
        assert torch.equal(shared[name], tensor)


def test_folded_statistics(tmp_path, capsys):
    torch.manual_seed(0)
    torch.save(build("tests.own_net:OwnNet").state_dict(), tmp_path / "m.pt")
    options = ["--epochs", "0", "--bits", "6"]
    data = ["--arch", "tests.own_net:OwnNet", "--dataset", "digits", "--device", "cpu"]
    assert share(tmp_path / "m.pt", tmp_path / "kept", *options, *data) == 0
    assert "folded" not in capsys.readouterr().err
    assert share(tmp_path / "m.pt", tmp_path / "out", *options, *data, "--fold-norms") == 0
    assert "are folded into its weights and biases: do not train" in capsys.readouterr().err
    kept, folded = (checkpoint.load(tmp_path / each).state_dict for each in ("kept", "out"))
    assert torch.equal(folded["norm.running_var"], torch.ones(16))
    assert torch.equal(folded["stem.weight"], kept["stem.weight"])
    assert share(tmp_path / "m.pt", tmp_path / "bare", *options, "--fold-norms") == 1
    assert "is not in a bare state dict, so that" in capsys.readouterr().err
    assert not (tmp_path / "bare").exists()


def test_missing_model(tmp_path, capsys):
    assert share(tmp_path / checkpoint.RETRAINED, tmp_path / "out") == 1
    assert "run pruning.py first" in capsys.readouterr().err


@pytest.mark.parametrize("bits", ["0", "99", "nan"])
def test_bits_out_of_range(bits, capsys):
    assert weight_share.main(["m", "--bits", bits]) == 2
    assert "argument --bits" in capsys.readouterr().err


def test_a_weight_that_is_not_finite(tmp_path, capsys):
    torch.save({"a.weight": torch.full((2, 2), float("nan"))}, tmp_path / "m.pt")
    assert share(tmp_path / "m.pt", tmp_path / "out", "--epochs", "0") == 1
    assert "error: cannot share a.weight: not all values are finite" in capsys.readouterr().err


def test_negative_zeros_of_a_model_pruned_elsewhere_count_as_pruned(tmp_path):
    torch.save({"a.weight": torch.tensor([[1.0, -0.0], [-0.0, 2.0]])}, tmp_path / "m.pt")
    assert share(tmp_path / "m.pt", tmp_path / "out", "--epochs", "0") == 0
    weight = checkpoint.load(tmp_path / "out").state_dict["a.weight"]
    assert weight.view(torch.int32).count_nonzero() == 2


def test_to_safetensors_with_an_architecture_too(pipeline, tmp_path):
    source = pipeline.saves / checkpoint.RETRAINED
    options = ["--device", "cpu", "--epochs", "0", "--bits", "4"]
    assert share(source, tmp_path / "m.safetensors", *options) == 0
    assert share(source, tmp_path / "m.ptmodel", *options) == 0
    found, expected = (checkpoint.load(tmp_path / f"m.{end}") for end in ("safetensors", "ptmodel"))
    assert found.arch is None
    assert found.state_dict.keys() == expected.state_dict.keys()
    for name, tensor in expected.state_dict.items():
        assert torch.equal(found.state_dict[name], tensor)


def test_a_dense_model_of_another_network_is_no_teacher(few_digits, pipeline, tmp_path):
    """Left in the folder by an earlier run: then the model itself teaches, as in an empty one."""
    torch.manual_seed(0)
    torch.save(build("tests.own_net:OwnNet").state_dict(), tmp_path / "m.pt")
    (tmp_path / "used").mkdir()
    left = (pipeline.saves / checkpoint.INITIAL).read_bytes()
    (tmp_path / "used" / checkpoint.INITIAL).write_bytes(left)
    options = [*OPTIONS, "--arch", "tests.own_net:OwnNet", "--dataset", "digits", "--bits", "4"]
    for folder in ("used", "empty"):
        assert share(tmp_path / "m.pt", tmp_path / folder / "shared", *options) == 0
    used, empty = ((tmp_path / folder / "shared").read_bytes() for folder in ("used", "empty"))
    assert used == empty


LAYERS = ("--include", "stem,grouped,line")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """The file of a pruned model of so few weights that to share it by rate takes no second."""
    folder = tmp_path_factory.mktemp("pruned")
    with pytest.MonkeyPatch.context() as patch:
        use_few_digits(patch)
        options = ["--arch", "tests.own_net:OwnNet", "--dataset", "digits", "--retrain-epochs", "1"]
        assert pruning.main([*OPTIONS, *options, "--output", str(folder)]) == 0
    return folder / checkpoint.RETRAINED


@pytest.mark.parametrize("bits", ["3", "auto"])
def test_shared_in_parts_with_training_between(few_digits, pruned, tmp_path, bits, capsys):
    options = [
        *OPTIONS[:-1],
        "5",
        *LAYERS,
        "--bits",
        bits,
        "--share-parts",
        "2",
        "--bias-bits",
        "0",
    ]
    assert share(pruned, tmp_path / "m", *options) == 0
    printed = capsys.readouterr().out
    # Two of the five epochs between, three when all is shared.
    for phase in ("share 1/2 epoch  2/2", "finetune  epoch  3/3"):
        assert " ".join(phase.split()) in " ".join(printed.split())
    assert ("nats before training" in printed) == (bits == "auto")
    shared = checkpoint.load(tmp_path / "m").state_dict
    before = checkpoint.load(pruned).state_dict
    for name in ("stem.weight", "grouped.weight", "line.weight"):
        kept = shared[name] != 0
        assert not (kept & (before[name] == 0)).any()
        if bits == "3":
            assert len(shared[name][kept].unique()) <= 8


@pytest.mark.exhaustive
def test_what_the_budget_chooses_does_not_depend_on_what_ran_before(
    few_digits, pruned, tmp_path, capsys
):
    options = [*OPTIONS[:-1], "2", *LAYERS, "--bits", "auto", "--share-parts", "2"]
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        assert share(pruned, tmp_path / "m", *options) == 0
        printed = capsys.readouterr().out.splitlines()
        found.append([line for line in printed if "nats" in line])
    assert found[0] == found[1] != []


EXHAUSTIVE = pytest.mark.exhaustive


class Killed(BaseException):
    pass


AUTO = [*OPTIONS, "--bits", "auto", "--share-parts", "3", "--epochs", "4", *LAYERS]
AUTO += ["--error-budget", "9"]


@pytest.fixture(scope="module")
def in_parts(pruned, tmp_path_factory):
    """The file of a run that shares by rate in three parts."""
    path = tmp_path_factory.mktemp("parts") / "m"
    with pytest.MonkeyPatch.context() as patch:
        use_few_digits(patch)
        assert share(pruned, path, *AUTO) == 0
    return path


@pytest.mark.parametrize(
    "die_in",
    [
        *(("share 2/3", 1), "search"),
        *(pytest.param(each, marks=EXHAUSTIVE) for each in (("share 1/3", 1), ("finetune", 1))),
    ],
)
def test_resume_after_a_kill_gives_the_same_model(
    few_digits, pruned, in_parts, tmp_path, monkeypatch, capsys, die_in
):
    save = RunProgress.save

    def save_and_die(self, phase, epoch, parts):
        save(self, phase, epoch, parts)
        if (phase, epoch) == die_in or (die_in == "search" and not epoch):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunProgress, "save", save_and_die)
        with pytest.raises(Killed):
            share(pruned, tmp_path / "m", *AUTO)
    monkeypatch.setattr(choosing, "noise", lambda *args: pytest.fail("searched again"))
    assert share(pruned, tmp_path / "m", *AUTO, "--resume") == 0
    assert (tmp_path / "m").read_bytes() == in_parts.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["m"]  # no progress is left
    capsys.readouterr()
    assert share(pruned, tmp_path / "m", *AUTO, "--resume") == 0
    assert "m: finished already" in capsys.readouterr().out


def test_resume_of_another_source_starts_anew(few_digits, pruned, in_parts, tmp_path, capsys):
    (tmp_path / "m").write_bytes(in_parts.read_bytes())
    source = checkpoint.load(pruned)
    source.state_dict["stem.bias"] = source.state_dict["stem.bias"] + 1
    checkpoint.save(tmp_path / "other", source)
    assert share(tmp_path / "other", tmp_path / "m", *AUTO, "--resume") == 0
    assert "finished already" not in capsys.readouterr().out
    assert (tmp_path / "m").read_bytes() != in_parts.read_bytes()


@pytest.mark.parametrize("written", [["--output", "m.pth"], ["--output", "x", "--log", "m.pth"]])
def test_the_model_itself_is_not_written_over(tmp_path, monkeypatch, capsys, written):
    monkeypatch.chdir(tmp_path)
    torch.save({"a.weight": torch.randn(9, 9)}, "m.pth")
    before = (tmp_path / "m.pth").read_bytes()
    assert weight_share.main(["m.pth", *written]) == 1
    assert re.search("m.pth is (a file of the model m.pth|the name)", capsys.readouterr().err)
    assert (tmp_path / "m.pth").read_bytes() == before


def test_nor_is_a_shard_of_it(tmp_path, capsys):
    save_file({"a.weight": torch.randn(9, 9)}, tmp_path / "model.safetensors")
    shard = tmp_path / "model.safetensors"
    before = shard.read_bytes()
    assert share(tmp_path, shard) == 1
    assert "is a file of the model" in capsys.readouterr().err
    assert shard.read_bytes() == before


@pytest.mark.parametrize("given", ["snapshot", "snapshot/model.safetensors.index.json"])
@pytest.mark.parametrize("written", ["snapshot/model-1.safetensors", "link.safetensors"])
def test_nor_by_its_index_or_a_link(tmp_path, capsys, given, written):
    """As the Hugging Face hub keeps models: links to files elsewhere."""
    for folder in ("blobs", "snapshot"):
        (tmp_path / folder).mkdir()
    blob, shard = tmp_path / "blobs/0a1b", tmp_path / "snapshot/model-1.safetensors"
    save_file({"a.weight": torch.randn(9, 9)}, blob)
    shard.symlink_to(blob)
    index = {"weight_map": {"a.weight": shard.name}}
    (tmp_path / "snapshot/model.safetensors.index.json").write_text(json.dumps(index))
    if written == "link.safetensors":
        own = tmp_path / "snapshot/model-1.safetensors"
        own.unlink()
        blob.rename(own)
        (tmp_path / written).symlink_to(own)
    before = shard.read_bytes()
    assert share(tmp_path / given, tmp_path / written) == 1
    assert "is a file of the model" in capsys.readouterr().err
    assert shard.read_bytes() == before


def test_a_model_that_does_not_take_the_data_is_one_line(few_digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Linear(64, 10))\n"
    (tmp_path / "of_64_numbers.py").write_text(text)
    torch.save(torch.nn.Sequential(torch.nn.Linear(64, 10)).state_dict(), "m.pth")
    assert share("m.pth", "x", "--arch", "of_64_numbers:net", "--dataset", "digits") == 1
    assert "does not take the inputs of digits" in capsys.readouterr().err


def test_a_full_disk_under_the_log(tmp_path, capsys):
    torch.save({"a.weight": torch.randn(9, 9)}, tmp_path / "m.pth")
    assert share(tmp_path / "m.pth", tmp_path / "x", "--log", "/dev/full") == 0
    assert "the log /dev/full ends here" in capsys.readouterr().err
    assert checkpoint.load(tmp_path / "x").state_dict["a.weight"].shape == (9, 9)


def test_what_resume_replaces_is_told(pipeline, tmp_path, capsys):
    source = pipeline.saves / checkpoint.RETRAINED
    share(source, tmp_path / "m", *OPTIONS, "--bits", "3")
    capsys.readouterr()
    share(source, tmp_path / "m", *OPTIONS, "--bits", "4", "--resume")
    assert "begins anew, and replaces it" in capsys.readouterr().err
    share(source, tmp_path / "m", *OPTIONS, "--bits", "4", "--resume")
    assert "replaces it" not in capsys.readouterr().err
