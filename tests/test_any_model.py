"""Models and data that the suite has not been written for, through the scripts by options alone."""

import json
import sys

import pytest
import torch

import compare_stages
import deep_compressing
import huffman_decode
import huffman_encode
import pruning
import weight_share
from net import checkpoint
from net.report import plots
from net.training import architectures, datasets, reading, splits, weights
from tests.training.test_folder import write_images

QUICK = (
    *("--device", "cpu", "--dataset", "digits", "--batch-size", "32", "--distortion", "0"),
    *("--l1", "0", "--lr", "0.003", "--sensitivity", "0.5", "--finetune-epochs", "1"),
)
FILES = {
    "retrained": checkpoint.RETRAINED,
    "shared": checkpoint.SHARED,
    "decoded": checkpoint.DECODED,
}


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    """Drawing takes seconds, and is tested elsewhere."""
    monkeypatch.setattr(plots, "available", lambda: False)


def run(folder, *options):
    """The figures and the checkpoints {stage: Checkpoint} of a whole pipeline."""
    arguments = ["--output", str(folder), "--directory", str(folder / "encodings")]
    arguments += ["--json", str(folder / "figures.json")]
    assert deep_compressing.main([*QUICK, *arguments, *options]) == 0
    found = {stage: checkpoint.load(folder / name) for stage, name in FILES.items()}
    return json.loads((folder / "figures.json").read_text()), found


def assert_shared(found, most_values):
    """What must hold of the stages of every model, {stage: Checkpoint}."""
    retrained, shared, decoded = (found[s].state_dict for s in ("retrained", "shared", "decoded"))
    assert decoded.keys() == shared.keys()
    for name, tensor in shared.items():
        assert torch.equal(decoded[name], tensor)
    for name, kind in weights.kinds_of(found["shared"]).items():
        assert torch.equal(shared[name] == 0, retrained[name] == 0)
        assert (retrained[name] == 0).any() == (kind != "embedding")
        assert len(shared[name].unique()) <= most_values


def test_a_model_of_the_users_own_with_every_kind_of_layer(tmp_path):
    options = ["--arch", "tests.own_net:OwnNet", "--epochs", "5", "--retrain-epochs", "2"]
    figures, found = run(tmp_path, *options, "--bits", "5")
    assert_shared(found, 33)
    assert figures["arch"] == "tests.own_net:OwnNet"
    assert figures["decoded_equals_weight_shared"]
    assert figures["compression_ratio"] > 3
    errors = {row["stage"]: row["error_percent"] for row in figures["stages"]}
    assert errors["decoded"] <= errors["initial"] + 2
    assert errors["decoded"] < 30
    kinds = ("stem", "grouped", "depthwise", "up", "volume", "line", "words")
    names = list(weights.kinds_of(found["shared"]))
    assert names == [f"{kind}.weight" for kind in kinds]
    shared = found["shared"].state_dict
    assert torch.equal(shared["head.weight"], shared["words.weight"])  # tied
    files = {path.name.split("-")[1] for path in (tmp_path / "encodings").glob("[0-9]*")}
    # One for both names, and one for all biases, those of a normalisation among them.
    biases = {name for name in shared if name.endswith(".bias")}
    assert shared.keys() - {"head.weight"} - files == biases - files
    assert len(biases & files) < len(biases)
    assert [layer["name"] for layer in figures["layers"]] == list(kinds)
    encoded = sum(layer["encoded_bytes"] for layer in (*figures["layers"], figures["other"]))
    assert encoded == figures["encoded_bytes"]
    assert shared["norm.num_batches_tracked"].dtype == torch.int64
    model = weights.restored(found["shared"])
    assert figures["original_bytes"] == 4 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("arch", "stacked", "whole"),
    [("Recurrent", "lstm.weight_hh_l1", None), ("Attending", "in_proj_weight", "places")],
)
def test_recurrent_and_attention_weights(few_digits, tmp_path, capsys, arch, stacked, whole):
    options = ["--arch", f"tests.sequence_nets:{arch}", "--epochs", "6", "--retrain-epochs", "3"]
    figures, found = run(tmp_path, *options, "--bits", "4", "--sensitivity", "1")
    assert_shared(found, 17)
    matrices = {n for n, tensor in found["shared"].state_dict.items() if tensor.dim() > 1}
    assert matrices - weights.kinds_of(found["shared"]).keys() == {whole} - {None}
    assert any(name.endswith(stacked) for name in matrices)
    names = {layer["name"].removesuffix(".weight") for layer in figures["layers"]}
    assert names == {n.removesuffix(".weight") for n in matrices} - {whole}
    note = [x for x in capsys.readouterr().out.splitlines() if "stored as they are" in x]
    assert [whole in line for line in note] == ([True] if whole else [])
    assert figures["decoded_equals_weight_shared"]
    errors = {row["stage"]: row["error_percent"] for row in figures["stages"]}
    assert errors["decoded"] <= errors["initial"] + 5


@pytest.mark.exhaustive
def test_a_model_of_torchvision_stage_by_stage(few_digits, tmp_path):
    stage = {name: str(tmp_path / file) for name, file in FILES.items()}
    encoded = ["--directory", str(tmp_path / "encodings")]
    options = [*QUICK[:-2], "--arch", "mobilenet_v3_small", "--epochs", "4", "--sensitivity", "0.4"]
    options += ["--retrain-epochs", "3", "--retrain-lr", "0.002", "--output", str(tmp_path)]
    assert pruning.main(options) == 0
    options = ["--device", "cpu", "--bits", "6", "--epochs", "1", *QUICK[4:8]]
    assert weight_share.main([stage["retrained"], *options, "--output", stage["shared"]]) == 0
    assert huffman_encode.main([stage["shared"], *encoded]) == 0
    assert huffman_decode.main([*encoded, "--output", stage["decoded"]]) == 0
    found = {name: checkpoint.load(file) for name, file in stage.items()}
    assert_shared(found, 65)
    assert found["decoded"].arch == "mobilenet_v3_small(num_classes=10)"
    initial = checkpoint.load(tmp_path / checkpoint.INITIAL).metrics["test_error_percent"]
    assert found["shared"].metrics["test_error_percent"] <= initial + 2


# Data of the user's own


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_text_classifier_on_token_ids(tmp_path, monkeypatch, in_memory):
    if not in_memory:
        monkeypatch.setattr(splits, "IN_MEMORY", 0)
        monkeypatch.setattr(reading, "FEW", 10**6)  # workers: tests/training/test_own_data.py
    options = ["--arch", "tests.own_text:Text", "--dataset", "tests.own_text:data"]
    options += ["--epochs", "5", "--lr", "0.01", "--retrain-epochs", "1", "--prune-epochs", "1"]
    options += ["--bits", "4", "--distortion", "1"]
    figures, found = run(tmp_path, *options)
    assert (figures["dataset"], figures["arch"]) == (
        "tests.own_text:data",
        "tests.own_text:Text(num_classes=4)",
    )
    assert_shared(found, 17)
    assert "words.weight" in weights.kinds_of(found["shared"])
    errors = {row["stage"]: row["error_percent"] for row in figures["stages"]}
    assert errors["initial"] < 15
    assert errors["decoded"] < 20


def test_a_text_classifier_learns_from_a_teacher(tmp_path):
    options = ["--arch", "tests.own_text:Text", "--dataset", "tests.own_text:data"]
    options += ["--epochs", "6", "--retrain-epochs", "2", "--bits", "4"]
    options += ["--teacher", "tests.own_text:Text(num_classes=4)", "--density", "0.4"]
    figures, _ = run(tmp_path, *options, "--prune-epochs", "2")
    assert figures["stages"][-1]["error_percent"] < 25


# Weights and normalisation that were published


def test_published_weights_are_fed_as_they_expect_in_every_stage(tmp_path, monkeypatch):
    """Normalisation belongs to the weights, and a later process learns of it from the files."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    torch.manual_seed(0)
    state = architectures.build("squeezenet1_1").state_dict()
    url = architectures.published_weights("squeezenet1_1", "DEFAULT").url
    path = tmp_path / "torch" / "hub" / "checkpoints" / url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    write_images(tmp_path / "images" / "train", {"a": 3, "b": 3})
    seen = []
    load = datasets.load
    monkeypatch.setattr(datasets, "load", lambda *args: seen.append(load(*args)) or seen[-1])
    common = ["--dataset", f"folder:{tmp_path / 'images'}", "--device", "cpu"]
    arguments = [*common, "--arch", "squeezenet1_1", "--weights", "DEFAULT", "--epochs", "0"]
    arguments += ["--prune-epochs", "1", "--retrain-epochs", "0", "--sensitivity", "0.1"]
    arguments += ["--output", str(tmp_path / "s")]
    assert pruning.main(arguments) == 0
    initial = checkpoint.load(tmp_path / "s" / checkpoint.INITIAL)
    assert initial.arch == "squeezenet1_1(num_classes=2, weights=IMAGENET1K_V1)"
    assert torch.equal(initial.state_dict["features.0.weight"], state["features.0.weight"])
    folders = ["--path", str(tmp_path / "s"), "--directory", str(tmp_path / "e")]
    assert compare_stages.main([*common, *folders]) == 0
    assert len(seen) == 2
    for found in seen:
        batch = next(found.test.batches(1))[0]
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        expected = (found.test.inputs[:1] / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        assert torch.allclose(batch, expected, atol=1e-5)


def test_published_weights_of_no_torchvision_model(tmp_path, capsys):
    assert start("DEFAULT", tmp_path / "s", "--arch", "lenet-5") == 1
    err = capsys.readouterr().err
    assert err.startswith(
        "error: the weights DEFAULT are for torchvision's architectures, and lenet-5"
    )
    assert err.count("\n") == 1


UNIT_IMAGES = """
import torch
from torch.utils.data import TensorDataset

def part(n):
    return TensorDataset(torch.rand(n, 3, 8, 8), torch.arange(n) % 2)

def data():
    torch.manual_seed(0)
    return part(40), part(10)

class Net(torch.nn.Module):
    def __init__(self, num_classes=2):
        super().__init__()
        self.fc = torch.nn.Linear(192, num_classes)

    def forward(self, x):
        Net.seen.append((float(x.min()), float(x.max())))
        return self.fc(x.flatten(1))

Net.seen = []
"""


@pytest.mark.parametrize("how", ["auto", "data"])
def test_every_stage_sees_a_factorys_inputs_alike_and_says_how(tmp_path, monkeypatch, capsys, how):
    monkeypatch.chdir(tmp_path)
    name = f"unit_images_{how}"
    (tmp_path / f"{name}.py").write_text(UNIT_IMAGES)
    common = ["--device", "cpu", "--dataset", f"{name}:data"]
    option = ["--normalise", how] if how != "auto" else []
    quick = ["--epochs", "1", "--retrain-epochs", "1", "--density", "0.5", "--prune-epochs", "1"]
    quick += ["--distortion", "0"]
    share = ["saves/model_after_retraining.ptmodel", "--bits", "auto", "--epochs", "1"]
    share += ["--distortion", "0"]
    recorded = f"{name}:data" + ("(normalise=data)" if option else "")
    for script, arguments in [
        (pruning, [*common, *option, "--arch", f"{name}:Net", *quick]),
        (weight_share, [*common, *share]),  # learns from the checkpoint what was done
        (huffman_encode, ["saves/model_after_weight_sharing.ptmodel"]),
        (compare_stages, common),
        (compare_stages, ["--device", "cpu"]),
    ]:
        assert script.main(arguments) == 0
        said = [x for x in capsys.readouterr().out.splitlines() if x.startswith("inputs of")]
        if script is huffman_encode:
            assert said == []
        elif option:
            assert [x.partition(" mean ")[0] for x in said] == [
                f"inputs of {recorded}: normalised by the training inputs' own"
            ]
        else:
            assert said == [f"inputs of {recorded}: as they are"]
    low, high = (torch.tensor(each) for each in zip(*sys.modules[name].Net.seen, strict=True))
    assert len(low) > 20
    if option:
        assert low.max() < -1
        assert high.min() > 1
    else:
        assert low.min() >= 0
        assert high.max() <= 1


# State dicts that somebody else has saved


@pytest.fixture(scope="module")
def squeezenet():
    torch.manual_seed(0)
    return architectures.build("squeezenet1_1").state_dict()


def test_a_plain_state_dict_through_sharing_and_coding(squeezenet, tmp_path):
    torch.save(squeezenet, tmp_path / "m.pth")
    shared, encoded = str(tmp_path / "shared"), str(tmp_path / "encodings")
    assert weight_share.main([str(tmp_path / "m.pth"), "--epochs", "0", "--output", shared]) == 0
    assert huffman_encode.main([shared, "--directory", encoded]) == 0
    decoded = str(tmp_path / "decoded")
    assert huffman_decode.main(["--directory", encoded, "--output", decoded]) == 0
    state = torch.load(decoded, weights_only=True)["state_dict"]
    from torchvision.models import squeezenet1_1

    squeezenet1_1().load_state_dict(state, strict=True)
    for name, tensor in state.items():
        if name.endswith("weight"):
            assert len(tensor.unique()) <= 1024
    expected = checkpoint.load(shared).state_dict
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


def start(path, folder, *options):
    """pruning.py from given weights, without any training."""
    arguments = ["--weights", str(path), "--output", str(folder), "--dataset", "digits"]
    arguments += ["--device", "cpu", "--epochs", "0", "--prune-epochs", "1"]
    arguments += ["--retrain-epochs", "0"]
    return pruning.main([*arguments, *options])


@pytest.mark.parametrize("kind", ["pth", "safetensors", "ptmodel"])
def test_starting_from_weights(few_digits, tmp_path, kind):
    torch.manual_seed(0)
    state = architectures.build("lenet-300-100").state_dict()
    path = tmp_path / f"m.{kind}"
    if kind == "safetensors":
        pytest.importorskip("safetensors.torch").save_file(state, path)
    elif kind == "ptmodel":
        checkpoint.save(path, checkpoint.Checkpoint(state, "lenet-300-100"))
    else:  # as DistributedDataParallel names its parameters
        torch.save({"state_dict": {f"module.{n}": t for n, t in state.items()}}, path)
    assert start(path, tmp_path / "s", "--arch", "lenet-300-100") == 0
    initial = checkpoint.load(tmp_path / "s" / checkpoint.INITIAL)
    assert all(torch.equal(tensor, initial.state_dict[name]) for name, tensor in state.items())
    assert initial.options["weights"] == f"m.{kind}"


def test_a_last_layer_of_other_classes_starts_from_random_values(few_digits, tmp_path, capsys):
    state = architectures.build("lenet-5(num_classes=7)").state_dict()
    torch.save(state, tmp_path / "m.pt")
    assert start(tmp_path / "m.pt", tmp_path / "s", "--arch", "lenet-5") == 0
    assert "NOTE: fc2.weight, fc2.bias of" in capsys.readouterr().err
    initial = checkpoint.load(tmp_path / "s" / checkpoint.INITIAL).state_dict
    assert torch.equal(initial["fc1.weight"], state["fc1.weight"])
    assert initial["fc2.weight"].shape == (10, 500)


def test_missing_weights_are_all_that_is_said(tmp_path, capsys):
    assert start(tmp_path / "none.pt", tmp_path / "s") == 1
    said = capsys.readouterr()
    advice = "give the path of a saved model"
    assert said.out + said.err == f"error: no model at {tmp_path / 'none.pt'}; {advice}\n"


def test_a_finished_run_resumes_without_its_weights(few_digits, tmp_path):
    path = tmp_path / "m.pt"
    torch.save(architectures.build("lenet-300-100").state_dict(), path)
    assert start(path, tmp_path / "s") == 0
    path.unlink()
    assert start(path, tmp_path / "s", "--resume") == 0


def test_weights_of_another_architecture(tmp_path, capsys):
    torch.save(architectures.build("lenet-5").state_dict(), tmp_path / "m.pt")
    assert start(tmp_path / "m.pt", tmp_path / "s") == 1
    err = capsys.readouterr().err
    assert "does not fit the architecture lenet-300-100: " in err
    assert err.count("\n") == 1


def test_fine_tuning_a_state_dict_whose_architecture_is_named(few_digits, tmp_path):
    torch.manual_seed(0)
    state = architectures.build("tests.own_net:OwnNet").state_dict()
    published = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save(published, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    arguments = [str(tmp_path / "m.pt"), "--arch", "tests.own_net:OwnNet", "--epochs", "1"]
    arguments += [
        "--bits",
        "5",
        "--output",
        str(tmp_path / "out"),
        "--dataset",
        "digits",
        "--device",
        "cpu",
    ]
    assert weight_share.main(arguments) == 0
    shared = checkpoint.load(tmp_path / "out")
    assert (shared.arch, shared.dataset) == ("tests.own_net:OwnNet", "digits")
    assert shared.metrics["test_error_percent"] < 90


# Photographs in folders


@pytest.fixture
def photographs(tmp_path):
    write_images(tmp_path / "images" / "train", {"cat": 40, "dog": 40, "owl": 40})
    write_images(tmp_path / "images" / "val", {"cat": 10, "dog": 10, "owl": 10}, seed=1)
    return tmp_path / "images"


def test_a_folder_of_images_trains(photographs, tmp_path):
    options = ["--dataset", f"folder:{photographs}", "--epochs", "3", "--retrain-epochs", "1"]
    figures, _ = run(tmp_path / "s", "--arch", "lenet-300-100", *options)
    assert figures["arch"] == "lenet-300-100(num_classes=3, in_channels=3)"
    assert figures["dataset"] == f"folder:{photographs}"
    assert figures["stages"][-1]["error_percent"] < 10


def test_a_broken_image_ends_the_run_or_is_skipped(photographs, tmp_path, capsys):
    path = photographs / "train" / "dog" / "7.png"
    path.write_bytes(path.read_bytes()[:50])
    options = ["--device", "cpu", "--dataset", f"folder:{photographs}", "--epochs", "0"]
    options += ["--retrain-epochs", "0", "--output", str(tmp_path / "s")]
    assert pruning.main(options) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {path} cannot be read as an image")
    assert err.count("\n") == 1
    assert pruning.main([*options, "--skip-broken"]) == 0
    assert f"NOTE: skipped {path}" in capsys.readouterr().err
