import argparse
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import deep_compressing
from net.errors import UserError
from net.pipeline import argument_types, arguments, cli, options, process, sharing_arguments
from net.training import datasets

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))


def parser():
    parser = arguments.Parser("A test.")
    parser.add_argument("--n", type=argument_types.integer(1, 16), default=1)
    parser.add_argument("--x", type=argument_types.real(), default=1.0)
    return parser


def test_a_device_for_each_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    def chosen(*options):
        return cli.device(deep_compressing.parser().parse_args(options))

    assert chosen() == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert chosen("--device", "cuda") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="finds 2 CUDA devices here, too few for one in each"):
        chosen()
    assert chosen("--device", "cpu") == torch.device("cpu")


def test_success():
    seen = []
    assert cli.run(parser(), seen.append, ["--n", "3"]) == 0
    assert seen[0].n == 3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--n", "0"], "argument --n: '0' is not a whole number from 1 to 16"),
        (["--n", "99"], "argument --n: '99' is not a whole number from 1 to 16"),
        (["--n", "2.5"], "argument --n: '2.5' is not a whole number from 1 to 16"),
        (["--x", "nan"], "argument --x: 'nan' is not a number of at least 0"),
        (["--x", "inf"], "argument --x: 'inf' is not a number of at least 0"),
        (["--x", "-1"], "argument --x: '-1' is not a number of at least 0"),
        (["--unknown"], "unrecognized arguments: --unknown"),
    ],
)
def test_bad_usage_is_one_line_and_2(argv, message, capsys):
    assert cli.run(parser(), lambda args: None, argv) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (UserError("a is wrong;\n do b"), 1, "error: a is wrong; do b\n"),
        (PermissionError(13, "Permission denied", "x.txt"), 1, "error: Permission denied: x.txt\n"),
        (MemoryError(), 1, "error: out of memory; try a smaller --batch-size or model\n"),
        (KeyboardInterrupt(), 130, f"\n{process.INTERRUPTED}\n"),
    ],
)
def test_failures_are_one_line(failure, code, message, capsys):
    def body(args):
        raise failure

    assert cli.run(parser(), body, []) == code
    assert capsys.readouterr().err == message


def test_a_bug_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        cli.run(parser(), lambda args: 1 / 0, [])


def chosen(*argv):
    """The preset as the command line leaves it, for an architecture and a data set."""
    parser = arguments.Parser("A test.")
    arguments.add_preset(parser)
    arguments.add_training(parser)
    arguments.add_pruning(parser)
    sharing_arguments.add_sharing(parser)
    arguments.add_budget(parser)
    return cli.chosen(parser.parse_args(argv))


def test_an_explicit_option_overrides_the_preset():
    preset = chosen("--bits", "3")
    assert preset.sharing.bits == 3
    assert preset.sharing.finetune_epochs == options.PAPER.sharing.finetune_epochs


def test_an_option_of_several_stages_reaches_all():
    preset = chosen("--distortion", "0.5", "--amp")
    for stage in (preset.pruning, preset.sharing):
        assert (stage.distortion, stage.amp) == (0.5, True)


def test_what_is_recorded_holds_no_paths_and_keeps_its_order():
    recorded = chosen("--weights", "some/where/net.pth").pruning.recorded()
    assert recorded["weights"] == "net.pth"
    assert list(recorded)[:4] == ["seed", "batch_size", "largest_batch", "distortion"]
    assert list(recorded)[4:8] == ["teacher", "teacher_copies", "temperature", "amp"]


def test_a_preset_is_adjusted_to_the_architecture():
    small, lenet5 = (options.preset("smallest", a) for a in ("lenet-300-100", "lenet-5"))
    assert small.pruning.density == 0.0148
    assert lenet5.pruning.density == 0.0095
    assert small.pruning.lr == lenet5.pruning.lr
    assert small.sharing.teacher == "lenet-5"
    assert lenet5.pruning.teacher == "dense"
    other = options.preset("smallest", "resnet18(num_classes=10)")
    assert other.sharing.teacher == other.pruning.teacher == "dense"
    assert (other.pruning.density, other.sharing.error_budget) == ("auto", 1.0)
    assert (other.sharing.bits, other.sharing.error_budget) == ("auto", 1.0)
    assert other.sharing.share_parts > 1  # of noise that fine-tuning alone would not make up for


def test_weights_that_are_given_are_retrained_gently():
    scratch, trained = (options.preset("paper", "resnet18", given) for given in (False, True))
    assert trained.pruning.retrain_lr < scratch.pruning.retrain_lr
    assert trained.sharing == scratch.sharing  # weight_share.py does not know
    assert options.preset("paper", "lenet-5", True) == options.PAPER


def test_auto_batch_size_gives_small_data_sets_steps_enough():
    assert options.CommonOptions().batch_size_for(60000) == 250
    assert options.CommonOptions().batch_size_for(400) == 10
    assert options.CommonOptions().batch_size_for(3) == 1
    assert options.CommonOptions(batch_size=64).batch_size_for(3) == 64


def test_a_value_per_layer():
    assert argument_types.per_layer(argument_types.real())("1.5") == 1.5
    values = argument_types.per_layer(argument_types.integer(1, 16))(
        "*=5, features.*=8,features.3=7"
    )
    assert values == {"*": 5, "features.*": 8, "features.3": 7}


@pytest.mark.parametrize("text", ["a=", "=3", "a=3,", "a=3,b", "a=99", "x"])
def test_a_malformed_value_per_layer(text):
    with pytest.raises(argparse.ArgumentTypeError):
        argument_types.per_layer(argument_types.integer(1, 16))(text)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_imports_nothing_heavy_and_shows_the_command_line(script):
    code = (
        "import sys, importlib; sys.argv = ['x']; "
        f"code = importlib.import_module('{script[:-3]}').main(['--help']); "
        "sys.exit(code or int('torch' in sys.modules or 'numpy' in sys.modules))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert f"python {script}" in shown.stdout
    assert shown.stderr == ""


def test_every_script_of_the_suite_is_there():
    assert {
        *("pruning.py", "weight_share.py", "huffman_encode.py", "huffman_decode.py"),
        *("compare_stages.py", "deep_compressing.py"),
    } <= set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_every_default_and_fits_a_terminal(script, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    module = __import__(script[:-3])
    assert module.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "None" not in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_the_command_line_knows_every_data_set():
    """It cannot ask net.training.datasets, which imports torch."""
    named = [name for name in datasets.NAMES if ":" not in name]
    assert named == list(argument_types.DATASETS)
