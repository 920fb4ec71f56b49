"""One run in a folder at a time. What runs do is tested with the scripts."""

import fcntl
import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch

import deep_compressing
import pruning
import weight_share
from net import checkpoint, files
from net.pipeline import runs, scan, stages
from net.report import plots
from net.training.models import LeNet300100
from net.training.resume import PhaseProgress, RunProgress
from tests.conftest import FAST


@pytest.fixture
def held(tmp_path, monkeypatch):
    """A folder in which another process is writing."""
    monkeypatch.setattr(files, "WAIT", 0)
    folder = tmp_path / "saves"
    folder.mkdir()
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    yield folder
    os.close(handle)


@pytest.mark.parametrize("script", [deep_compressing, pruning, weight_share])
def test_a_second_run_in_a_folder_is_refused_before_any_work(
    script, held, pipeline, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(runs, "load_data", lambda *_: pytest.fail("began"))
    log = tmp_path / "log.txt"  # of the run that goes on
    log.write_text("epoch 1")
    arguments = ["--dataset", "digits", "--device", "cpu", "--log", str(log)]
    if script is weight_share:
        source = pipeline.saves / "model_after_retraining.ptmodel"
        arguments = [str(source), *arguments, "--output", str(held / "m.ptmodel")]
    else:
        arguments += ["--output", str(held)]
    assert script.main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {held}: another process is writing here; wait until it has")
    assert err.count("\n") == 1
    assert os.listdir(held) == []
    assert log.read_text() == "epoch 1"


def test_of_several_processes_the_writer_alone_locks(held, monkeypatch):
    monkeypatch.setattr(runs.distributed, "is_writer", lambda: False)
    with runs.alone(held):
        pass


def test_one_folder_for_all_files(few_digits, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "available", lambda: False)  # which takes most of the time
    arguments = [*FAST, "--epochs", "1", "--output", str(tmp_path), "--directory", str(tmp_path)]
    assert deep_compressing.main(arguments) == 0


@pytest.mark.parametrize("script", [deep_compressing, weight_share])
def test_an_output_that_is_no_file_is_refused_before_any_work(
    script, pipeline, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(runs.stages, "share", lambda *_: pytest.fail("began"))
    monkeypatch.setattr(runs.stages, "train", lambda *_: pytest.fail("began"))
    os.mkfifo(tmp_path / "pipe")
    if script is weight_share:
        source = pipeline.saves / "model_after_retraining.ptmodel"
        arguments = [str(source), *FAST[:4], "--output", str(tmp_path / "pipe")]
    else:
        arguments = [*FAST, "--output", str(tmp_path / "s"), "--json", str(tmp_path / "pipe")]
    assert script.main(arguments) == 1
    err = capsys.readouterr().err
    assert err == (
        f"error: cannot write {tmp_path / 'pipe'}: a pipe or a device, not a file; give another "
        "path\n"
    )
    assert (tmp_path / "pipe").is_fifo()


# What a run is recognised by

QUICK = FAST[:-2]  # what pruning.py takes of it


def pruned(*more):
    quick = ["--epochs", "0", "--retrain-epochs", "0", "--sensitivity", "1", "--preset", "paper"]
    return pruning.main([*QUICK, *quick, *map(str, more), "--resume"])


def test_other_weights_of_one_name_are_another_run(few_digits, tmp_path, pipeline, capsys):
    for seed in (1, 2):
        torch.manual_seed(seed)
        (tmp_path / str(seed)).mkdir()
        torch.save(LeNet300100().state_dict(), tmp_path / str(seed) / "m.pth")
    output, sums = ["--output", tmp_path / "out"], []
    for seed in (1, 2, 2):
        capsys.readouterr()
        assert pruned("--weights", tmp_path / str(seed) / "m.pth", *output) == 0
        model = checkpoint.load(tmp_path / "out" / "model_after_retraining.ptmodel")
        sums.append(checkpoint.fingerprint(model))
    assert sums[0] != sums[1] == sums[2]
    assert "finished already" in capsys.readouterr().out
    (tmp_path / "2" / "m.pth").unlink()  # which a finished run does not need
    assert pruned("--weights", tmp_path / "2" / "m.pth", *output) == 0


def test_data_that_have_changed_are_another_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = "import torch\nfrom torch.utils.data import TensorDataset\ndef data():\n"
    code += "    y = torch.arange(60) % {}\n    d = TensorDataset(torch.rand(60, 1, 28, 28), y)\n"
    own = ["--dataset", "changing:data", "--output", str(tmp_path / "out")]
    for classes, again in ((5, False), (5, True), (4, False)):
        (tmp_path / "changing.py").write_text(code.format(classes) + "    return d, d\n")
        sys.modules.pop("changing", None)
        capsys.readouterr()
        assert pruned(*own, "--num-classes", "5") == 0
        assert ("finished already" in capsys.readouterr().out) == again


def test_a_dense_model_that_was_replaced_is_not_gone_on_with(few_digits, tmp_path, monkeypatch):
    output = ["--output", str(tmp_path)]
    run = [*QUICK, "--density", "0.1", "--prune-epochs", "2", *output]
    with monkeypatch.context() as patch:
        patch.setattr(stages, "fold_constant_inputs", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pruning.main(run)
    kept = (tmp_path / "initial_model.ptmodel").read_bytes()
    assert pruning.main([*QUICK, "--epochs", "1", "--scan", *output]) == 0
    assert (tmp_path / "initial_model.ptmodel").read_bytes() != kept
    assert pruning.main([*run, "--resume"]) == 1
    (tmp_path / "initial_model.ptmodel").write_bytes(kept)
    assert pruning.main([*run, "--resume"]) == 0


def test_an_option_equal_to_the_default_counts(few_digits, tmp_path):
    arguments = [*QUICK, "--epochs", "0", "--retrain-epochs", "0", "--sensitivity", "0"]
    arguments += ["--arch", "tests.own_classes:Rows", "--output", str(tmp_path)]
    assert pruning.main([*arguments, "--num-classes", "12"]) == 0
    model = checkpoint.load(tmp_path / "model_after_retraining.ptmodel")
    assert model.state_dict["fc.weight"].shape == (12, 784)


def test_the_teacher_of_each_stage(few_digits, tmp_path):
    content = {"pruning": {"teacher": "dense", "epochs": 1, "retrain_epochs": 1}}
    (tmp_path / "own.json").write_text(json.dumps(content | {"sharing": {"finetune_epochs": 1}}))
    preset = ["--preset", str(tmp_path / "own.json"), "--output", str(tmp_path)]
    assert pruning.main(["--dataset", "digits", "--device", "cpu", *preset]) == 0
    model = checkpoint.load(tmp_path / "model_after_retraining.ptmodel")
    assert model.options["teacher"] == "dense"


def test_a_teacher_that_is_not_there(few_digits, pipeline, tmp_path, capsys):
    source, target = pipeline.saves / "model_after_retraining.ptmodel", tmp_path / "m.ptmodel"
    share = [str(source), "--dataset", "digits", "--device", "cpu", "--epochs", "1"]
    assert weight_share.main([*share, "--teacher", "lenet-5", "--output", str(target)]) == 1
    assert "error: there is no teacher lenet-5 in" in capsys.readouterr().err
    # the dense one is looked for beside MODEL, too
    assert weight_share.main([*share, "--teacher", "dense", "--output", str(target)]) == 0
    assert "learns from itself" not in "".join(capsys.readouterr())
    alone = tmp_path / "alone" / "m.ptmodel"
    alone.parent.mkdir()
    alone.write_bytes(source.read_bytes())
    share[0] = str(alone)
    assert weight_share.main([*share, "--teacher", "dense", "--output", str(target)]) == 0
    assert "there is no dense lenet-300-100 in" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bits", "fc9=4,*=5"], "no parameter matches 'fc9'"),
        (["--bias-bits", "fc9=4,*=5"], "no parameter matches 'fc9'"),
        (["--weights", ""], "--weights is empty"),
        (["--finetune-epochs", "1", "--set", "share_parts=3"], "cannot be divided among 3 parts"),
        (["--teacher", "bare.ptmodel"], "bare.ptmodel does not say its architecture"),
        (["--arch", "tests.own_classes:OnlyNorm"], "there is nothing to prune"),
    ],
)
def test_what_cannot_work_is_said_before_training(
    few_digits, tmp_path, monkeypatch, capsys, options, message
):
    if "bare.ptmodel" in options:
        torch.save(LeNet300100().state_dict(), tmp_path / "bare.ptmodel")
        options = ["--teacher", str(tmp_path / "bare.ptmodel")]
    monkeypatch.setattr(stages, "train", lambda *_: pytest.fail("began"))
    monkeypatch.setattr(plots, "available", lambda: False)
    folders = ["--output", str(tmp_path / "out"), "--directory", str(tmp_path / "enc")]
    assert deep_compressing.main([*FAST, *options, *folders]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "FailsInTraining",
            r"training .*FailsInTraining.* failed in .*no such thing",
        ),
        ("LearnsNothing", r"training .*LearnsNothing.* failed in .*does not require grad"),
    ],
)
def test_code_that_fails_in_training_alone(few_digits, tmp_path, capsys, name, message):
    arch = ["--arch", f"tests.own_classes:{name}", "--output", str(tmp_path)]
    assert pruning.main([*QUICK, *arch]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\nerror: ") <= 1


def test_a_teacher_of_other_classes(few_digits, tmp_path, capsys):
    first = ["--epochs", "0", "--retrain-epochs", "0", "--sensitivity", "0", "--num-classes", "12"]
    first += ["--arch", "tests.own_classes:Rows", "--output", str(tmp_path)]
    assert pruning.main([*QUICK, *first]) == 0
    capsys.readouterr()
    teacher = ["--teacher", str(tmp_path / "initial_model.ptmodel")]
    assert pruning.main([*QUICK, *teacher, "--output", str(tmp_path / "b")]) == 1
    assert "has 12 outputs, lenet-300-100 has 10: one cannot" in capsys.readouterr().err


def dense(path, seed=0):
    """A model that was not trained, as a file."""
    torch.manual_seed(seed)
    state = LeNet300100().state_dict()
    checkpoint.save(path, checkpoint.Checkpoint(state, "lenet-300-100", "initial", "digits"))
    return str(path)


def test_a_teacher_is_not_written_over(few_digits, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    teacher = dense(tmp_path / "out" / "initial_model.ptmodel")
    before = Path(teacher).read_bytes()
    assert pruned("--teacher", teacher, "--output", tmp_path / "out") == 1
    assert "is a file that this run writes" in capsys.readouterr().err
    assert Path(teacher).read_bytes() == before
    share = [*FAST[:4], "--epochs", "1", "--teacher", teacher, "--output", teacher]
    assert weight_share.main([teacher, *share]) == 1
    assert Path(teacher).read_bytes() == before


def test_another_teacher_of_one_name_is_another_run(few_digits, tmp_path, capsys):
    for seed in (1, 1, 2):
        teacher = dense(tmp_path / "teacher.ptmodel", seed)
        capsys.readouterr()
        assert pruned("--teacher", teacher, "--output", tmp_path / "out") == 0
        again = "finished already" in capsys.readouterr().out
        assert again == (seed == 1 and (tmp_path / "seen").exists())
        (tmp_path / "seen").touch()


def test_the_dense_model_of_the_folder_as_weights(few_digits, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    weights = dense(tmp_path / "out" / "initial_model.ptmodel")
    for _ in range(2):  # it is written again meanwhile, with other things beside the tensors
        capsys.readouterr()
        assert pruned("--weights", weights, "--output", tmp_path / "out") == 0
    assert "finished already" in capsys.readouterr().out


def test_a_run_that_begins_anew_drops_what_a_killed_one_has_left(
    few_digits, tmp_path, monkeypatch, capsys
):
    folders = ["--output", str(tmp_path / "out"), "--directory", str(tmp_path / "enc")]
    run = [*FAST, "--finetune-epochs", "2", *folders]

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # while it is shared
        patch.setattr(
            PhaseProgress,
            "save",
            lambda self, epoch: (
                RunProgress.save(self.run, self.phase, epoch, self.parts),
                killed() if self.phase == "finetune" else None,
            ),
        )
        assert deep_compressing.main(run) == 130
    assert (tmp_path / "out" / runs.SHARING_PROGRESS).exists()
    run += ["--bits", "3"]
    with monkeypatch.context() as patch:
        patch.setattr(stages, "prune", killed)
        assert deep_compressing.main(run) == 130
    assert deep_compressing.main([*run, "--resume"]) == 0


def test_a_sensitivity_takes_the_place_of_a_preset_s_density(few_digits, tmp_path):
    kept = []
    for sensitivity in ("0.1", "2"):
        arguments = ["--preset", "trained", "--sensitivity", sensitivity, "--epochs", "0"]
        arguments += ["--retrain-epochs", "0", "--output", str(tmp_path / sensitivity)]
        assert pruning.main([*FAST[:4], *arguments]) == 0
        state = checkpoint.load(tmp_path / sensitivity / checkpoint.RETRAINED).state_dict
        kept.append(int(state["fc1.weight"].count_nonzero()))
    assert kept[0] > 5 * kept[1]


def test_what_has_no_effect_says_so(few_digits, tmp_path, capsys):
    arguments = ["--density", "0.1", "--sensitivity", "1", "--epochs", "0", "--retrain-epochs", "0"]
    assert pruning.main([*FAST[:4], *arguments, "--output", str(tmp_path)]) == 0
    assert "NOTE: --sensitivity has no effect beside --density\n" in capsys.readouterr().err
    source, target = str(tmp_path / checkpoint.RETRAINED), str(tmp_path / "shared.ptmodel")
    arguments = [source, *FAST[:4], "--epochs", "0", "--output", target, "--noise", "2"]
    assert weight_share.main(arguments) == 0
    assert "NOTE: --noise has no effect without --bits auto\n" in capsys.readouterr().err
    assert weight_share.main([*arguments, "--bits", "auto"]) == 0
    assert "no effect" not in capsys.readouterr().err


def test_a_density_without_epochs_is_reached_at_once(few_digits, tmp_path):
    arguments = ["--density", "0.1", "--set", "prune_epochs=0", "--epochs", "0"]
    arguments += ["--retrain-epochs", "0", "--output", str(tmp_path)]
    assert pruning.main([*FAST[:4], *arguments]) == 0
    state = checkpoint.load(tmp_path / checkpoint.RETRAINED).state_dict
    assert int(state["fc1.weight"].count_nonzero()) < 0.2 * state["fc1.weight"].numel()


def test_an_arch_that_is_not_the_model_s(few_digits, tmp_path, capsys):
    model = dense(tmp_path / "m.ptmodel")
    arguments = [model, *FAST[:4], "--epochs", "0", "--output", str(tmp_path / "o.ptmodel")]
    assert weight_share.main([*arguments, "--arch", "lenet-5"]) == 1
    assert "is a lenet-300-100, not a lenet-5" in capsys.readouterr().err
    assert weight_share.main([*arguments, "--arch", "lenet-300-100"]) == 0


@pytest.mark.parametrize(
    ("script", "name", "epochs"),
    [
        (pruning, checkpoint.INITIAL, "1"),
        (pruning, checkpoint.RETRAINED, "0"),
        (deep_compressing, checkpoint.SHARED, "0"),
        (deep_compressing, checkpoint.DECODED, "0"),
    ],
)
def test_the_weights_that_a_run_begins_with_are_not_written_over(
    few_digits, tmp_path, monkeypatch, capsys, script, name, epochs
):
    monkeypatch.setattr(stages, "train", lambda *_: pytest.fail("began"))
    (tmp_path / "out").mkdir()
    weights = dense(tmp_path / "out" / name)
    before = Path(weights).read_bytes()
    arguments = [
        *QUICK,
        "--weights",
        weights,
        "--epochs",
        epochs,
        "--output",
        str(tmp_path / "out"),
    ]
    if script is deep_compressing:
        arguments += ["--directory", str(tmp_path / "enc"), "--plot", str(tmp_path / "page.png")]
    assert script.main(arguments) == 1
    error = capsys.readouterr().err
    assert error == (
        f"error: the model {weights} is a file that this run writes; copy it, or give another "
        "--output\n"
    )
    assert Path(weights).read_bytes() == before


def test_a_teacher_of_another_architecture_with_other_outputs(
    few_digits, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(stages, "train", lambda *_: pytest.fail("began"))
    arguments = ["--teacher", "lenet-5", "--num-classes", "12", "--output", str(tmp_path)]
    assert pruning.main([*QUICK, *arguments]) == 1
    assert "lenet-5 has 10 outputs, lenet-300-100(num_classes=12) has 12" in capsys.readouterr().err


def test_sharing_does_not_go_on_with_what_another_dense_model_has_taught(
    few_digits, tmp_path, monkeypatch, capsys
):
    source, target = dense(tmp_path / "m.ptmodel"), tmp_path / "out" / "s.ptmodel"
    target.parent.mkdir()
    share = [source, *FAST[:6], "--epochs", "1", "--output", str(target), "--resume"]
    share += ["--teacher", "dense", "--teacher-copies", "1"]
    made = []
    for seed in (1, 2):
        dense(target.parent / checkpoint.INITIAL, seed)
        assert weight_share.main(share) == 0
        made.append(target.read_bytes())
    assert made[0] != made[1]
    assert "s.ptmodel is of another model, data or options; this run begins anew" in (
        capsys.readouterr().err
    )
    assert weight_share.main(share) == 0
    assert "finished already" in capsys.readouterr().out

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunProgress, "finish", killed)
        assert weight_share.main(share[:-5] + share[-4:]) == 130  # without --resume
    dense(target.parent / checkpoint.INITIAL, 3)
    assert weight_share.main(share) == 1
    assert "is of a run with other options" in capsys.readouterr().err


def test_what_is_finished_does_not_ask_for_its_teacher(few_digits, tmp_path, capsys):
    source, target = dense(tmp_path / "m.ptmodel"), tmp_path / "out" / "s.ptmodel"
    target.parent.mkdir()
    dense(target.parent / checkpoint.INITIAL, 1)
    share = [source, *FAST[:6], "--epochs", "1", "--output", str(target), "--resume"]
    share += ["--teacher", "dense", "--teacher-copies", "1"]
    assert weight_share.main(share) == 0
    made = target.read_bytes()
    (target.parent / checkpoint.INITIAL).unlink()
    assert weight_share.main(share) == 0
    assert "finished already" in capsys.readouterr().out
    assert target.read_bytes() == made


def test_a_scan_writes_no_pruned_model(few_digits, tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "scan_initial", lambda *_: pytest.fail("reached"))
    weights = dense(tmp_path / checkpoint.RETRAINED)
    arguments = ["--scan", "--weights", weights, "--epochs", "0", "--output", str(tmp_path)]
    with pytest.raises(pytest.fail.Exception, match="reached"):
        pruning.main([*QUICK, *arguments])
