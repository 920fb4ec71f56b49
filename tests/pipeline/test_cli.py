import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import deep_compressing
import pruning
import weight_share
from net import checkpoint
from net.errors import UserError, printable
from net.pipeline import cli, presets, process
from net.pipeline.cli import Output
from net.pipeline.fields import Parser
from net.pipeline.options import DATASETS
from net.training import datasets, distributed

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))


def parser():
    parser = Parser("A test.")
    parser.add_argument("--n", type=int, default=1)
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


def test_processes_join_with_the_device_that_they_use(monkeypatch):
    joined = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "start", joined.append)
    monkeypatch.setattr(distributed, "leave", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for options in ([], ["--device", "cpu"]):
        assert cli.run(deep_compressing.parser(), lambda args: None, options) == 0
    assert joined == [torch.device("cuda", 0), torch.device("cpu")]


def test_success():
    seen = []
    assert cli.run(parser(), seen.append, ["--n", "3"]) == 0
    assert seen[0].n == 3


def test_bad_usage_is_one_line_and_2(capsys):
    assert cli.run(parser(), lambda args: None, ["--unknown"]) == 2
    assert capsys.readouterr().err.startswith("error: unrecognized arguments: --unknown; see")


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (UserError("a is wrong;\n do b"), 1, "error: a is wrong; do b\n"),
        (PermissionError(13, "Permission denied", "x.txt"), 1, "error: Permission denied: x.txt\n"),
        (MemoryError(), 1, "error: out of memory; try a smaller --batch-size or model\n"),
        (
            ImportError("libtorch_cpu.so: failed to map segment from shared object"),
            1,
            "error: out of memory; try a smaller --batch-size or model\n",
        ),
        (KeyboardInterrupt(), 130, f"\n{process.INTERRUPTED}\n"),
    ],
)
def test_failures_are_one_line(failure, code, message, capsys):
    def body(args):
        raise failure

    assert cli.run(parser(), body, []) == code
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    ("name", "advice"), [(checkpoint.RETRAINED, ", or run pruning.py first"), ("x.pt", "")]
)
def test_the_script_that_makes_a_missing_file_is_named(tmp_path, capsys, name, advice):
    def body(args):
        checkpoint.load(tmp_path / name)

    assert cli.run(parser(), body, []) == 1
    message = f"error: no model at {tmp_path / name}; give the path of a saved model{advice}\n"
    assert capsys.readouterr().err == message
    assert set(cli.MADE_BY) == {*checkpoint.STAGE_FILES.values(), checkpoint.TEACHER}


def test_a_bug_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        cli.run(parser(), lambda args: 1 / 0, [])


def chosen(*argv, recorded=None):
    """The preset as the command line leaves it."""
    return cli.chosen(deep_compressing.parser().parse_args(argv), recorded=recorded)


def test_an_explicit_option_overrides_the_preset():
    preset = chosen("--preset", "smallest", "--bits", "3", "--set", "distortion=0.5")
    assert preset.sharing.bits == 3
    assert preset.pruning.distortion == preset.sharing.distortion == 0.5
    assert preset.sharing.finetune_epochs == presets.load("smallest").sharing.finetune_epochs


@pytest.mark.parametrize(
    ("script", "given", "why"),
    [
        (pruning, "--error-budget 5", "where neither the density nor the noise is auto"),
        (pruning, "--epochs 0 --lr 1", "without epochs of dense training"),
        (pruning, "--epochs 0 --l1 1", "without epochs of dense training"),
        (pruning, "--temperature 3", "without a teacher"),
        (pruning, "--batch-size 9 --largest-batch 9", "beside --batch-size"),
        (weight_share, "m --epochs 0 --lr 1", "without epochs of fine-tuning"),
        (weight_share, "m --epochs 0 --teacher dense --temperature 3", "without a teacher"),
        (weight_share, "m --bits auto --noise 1 --error-budget 5", "where neither the density nor"),
        (deep_compressing, "--finetune-epochs 0 --finetune-lr 1", "without epochs of fine-tuning"),
        (deep_compressing, "--error-budget 5", "where neither the density nor the noise is auto"),
        (weight_share, "m --preset NAME --largest-batch 9", None),
        (pruning, "--density auto --error-budget 5 --lr 1 --l1 1 --largest-batch 9", None),
        (pruning, "--teacher dense --temperature 3", None),
        (weight_share, "m --bits auto --error-budget 5 --epochs 1 --lr 1", None),
        (deep_compressing, "--bits auto --error-budget 5 --finetune-lr 1", None),
    ],
)
def test_an_option_without_effect_is_told(script, given, why, tmp_path, capsys):
    of_pruning = tmp_path / "of_pruning.json"
    of_pruning.write_text('{"pruning": {"batch_size": 64}}')
    given = given.replace("NAME", str(of_pruning))
    cli.chosen(script.parser().parse_args(given.split()))
    flag = given.split()[-2]
    told = capsys.readouterr().err
    assert told.startswith(f"NOTE: {flag} has no effect {why}") if why else told == ""


def test_what_a_bare_state_dict_has_no_use_for_is_told(capsys):
    given = ["m.pth", "--error-budget", "5", "--calibration-images", "9"]
    cli.chosen(weight_share.parser().parse_args(given), recorded="untrained")
    told = capsys.readouterr().err
    assert told == (
        "NOTE: --error-budget has no effect without --arch\n"
        "NOTE: --calibration-images has no effect without --arch\n"
    )


@pytest.mark.parametrize(
    ("known", "asked", "fits"),
    [
        ("lenet-300-100", "--arch lenet-300-100(num_classes=3)", False),
        ("lenet-300-100", "--num-classes 7", False),
        ("lenet-300-100", "--in-channels 3", False),
        ("lenet-300-100(num_classes=3)", "--arch lenet-300-100 --num-classes 10", False),
        ("lenet-300-100", "--arch lenet-300-100(num_classes=10)", True),
        ("lenet-300-100", "--num-classes 10", True),
        ("lenet-300-100(num_classes=3)", "--arch lenet-300-100", True),
        ("lenet-300-100(num_classes=3)", "--num-classes 3", True),
        (None, "--num-classes 7", True),
    ],
)
def test_options_of_an_architecture_that_are_not_the_model_s(known, asked, fits):
    args = weight_share.parser().parse_args(["m", *asked.split()])
    if fits:
        cli.check_arch(args, known, "m")
    else:
        with pytest.raises(UserError, match=r"m is a lenet-300-100.*, not a lenet-300-100\("):
            cli.check_arch(args, known, "m")


def test_which_preset_holds_where_none_is_given():
    assert chosen().name == "paper"
    assert chosen("--weights", "net.pth").name == "trained"
    assert chosen(recorded="smallest").name == "smallest"
    assert chosen("--preset", "paper", "--weights", "net.pth", recorded="smallest").name == "paper"


def test_flags_of_earlier_versions_are_taken(capsys):
    """By their names, as commands in other people's notes have them."""
    flags = {
        "deep_compressing": "--no-cuda --num-classes 3 --in-channels 1 --lr 1 --retrain-lr 1 "
        "--dropout 0 --l1 0 --teacher none --teacher-copies 1 --temperature 2 --no-amp "
        "--prune-epochs 1 --calibration-images 5 --exact-vectors --no-fold-norms --bias-bits 3 "
        "--init linear --reassign 0 --share-parts 1 --finetune-lr 1 --csv x --latency --log x "
        "--log-interval 5 --val-fraction .5 --skip-broken --test-batch-size 9",
        "huffman_encode": "m --seed 1 --device cpu --no-cuda --data-dir d --dataset digits "
        "--val-fraction .5 --skip-broken --test-batch-size 9",
        "weight_share": "m --epochs 1 --lr 1 --error-budget 1 --batch-size auto --preset smallest",
        "compare_stages": "--path s --initial f --directory e --json j --csv c --plot p.png "
        "--latency --seed 1",
        "pruning": "--scan --scan-target 0.1 --json j --plot p.png --resume --density auto",
    }
    for script, text in flags.items():
        __import__(script).parser().parse_args(text.split())
        assert capsys.readouterr().err == ""


def test_the_help_of_each_script_is_short(capsys):
    counts = {}
    for script in SCRIPTS:
        assert __import__(script[:-3]).main(["--help"]) == 0
        lines = capsys.readouterr().out.splitlines()
        counts[script] = sum(line.startswith("  -") for line in lines)
    assert counts["deep_compressing.py"] <= 30
    assert max(counts.values()) <= 30
    assert max(counts["huffman_encode.py"], counts["huffman_decode.py"]) <= 6


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
    assert named == list(DATASETS)


# What is printed: streams that cannot be written, terminals of few characters, and names that they
# would obey

EVIL = "a\x1b[2J\x9b1m\u202e\r日本\udce9"


@pytest.mark.parametrize(
    ("text", "encoding", "shown"),
    [
        ("fc1.weight × –", None, "fc1.weight × –"),
        ("a\x1b[31m\x07\x7f\x9b\n\r\t", None, r"a\x1b[31m\x07\x7f\x9b\n\r\t"),
        ("a\u202eb\u200bc\u2028", None, r"a\u202eb\u200bc\u2028"),
        ("a\udce9\ud800", None, r"a\udce9\ud800"),
        ("日×", "ascii", r"\u65e5\xd7"),
        ("日×", "cp1252", r"\u65e5×"),
    ],
)
def test_printable(text, encoding, shown):
    assert printable(text, encoding) == shown
    assert printable(shown, encoding) == shown


def test_an_error_is_printable():
    assert str(UserError("no\n\x1b[2J")) == "no\n\\x1b[2J"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_what_is_printed_is_not_obeyed(encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding)
    Output(stream).write(f"{EVIL}\n")
    shown = raw.getvalue().decode(encoding)
    assert shown.startswith(r"a\x1b[2J\x9b1m\u202e\r")
    assert shown.endswith("\\udce9\n")


class Broken(io.StringIO):
    def flush(self):
        raise BrokenPipeError(32, "Broken pipe")


def test_work_goes_on_where_nothing_can_be_printed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Broken())
    seen = []

    def body(args):
        for i in range(3):
            print(i)
            seen.append(i)

    assert cli.run(parser(), body, []) == 1
    assert seen == [0, 1, 2]
    assert capsys.readouterr().err == "error: cannot print the results: stdout: Broken pipe\n"


def test_the_streams_are_as_before_afterwards():
    before = sys.stdout, sys.stderr
    with pytest.raises(ZeroDivisionError):
        cli.run(parser(), lambda args: print(1 / (sys.stdout is before[0])), [])
    assert (sys.stdout, sys.stderr) == before


CODE = """
import sys
from net.pipeline import process
process.start()
from net.pipeline import cli, fields
def body(args):
    for i in range(2):
        with open("result", "wb") as file:
            assert file.fileno() > 2  # not that of a closed stream
            print(sys.argv[1], flush=True)
            file.write(b"whole")
sys.exit(cli.run(fields.Parser("A test."), body, []))
"""


def script(folder, redirection="", **environment):
    """(exit code, stdout, stderr) of a script that prints EVIL twice and writes a file."""
    done = subprocess.run(
        ["bash", "-c", f'exec "$@" {redirection}', "bash", sys.executable, "-c", CODE, EVIL],
        cwd=folder,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    assert (folder / "result").read_bytes() == b"whole"  # whatever happens to the output
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.mark.parametrize(
    ("redirection", "reason"),
    [
        (">&-", "it is closed"),
        (">/dev/full", "No space left on device"),
        ("<&- >&- 2>&-", None),
        (">/dev/full 2>/dev/full", None),
    ],
)
def test_results_that_cannot_be_printed(tmp_path, redirection, reason):
    code, out, err = script(tmp_path, redirection)
    line = f"error: cannot print the results: stdout: {reason}\n" if reason else ""
    assert (code, out, err) == (1, b"", line)


@pytest.mark.parametrize("redirection", ["<&-", "2>&-", "2>/dev/full"])
def test_streams_that_nobody_needs(tmp_path, redirection):
    code, out, err = script(tmp_path, redirection)
    assert (code, err) == (0, "")
    assert out.count(b"2J") == 2


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"PYTHONIOENCODING": "ascii"}, rb"\u202e\r\u65e5\u672c\udce9"),
        ({"PYTHONIOENCODING": "shift-jis"}, "\\u202e\\r日本\\udce9".encode("shift-jis")),
        ({"LC_ALL": "C", "PYTHONUTF8": "0"}, rb"\udce6\udc97\udca5\udce6\udc9c\udcac\udce9"),
    ],
)
def test_a_terminal_of_few_characters(tmp_path, environment, shown):
    code, out, err = script(tmp_path, **environment)
    assert (code, err) == (0, "")
    assert out.splitlines()[0].endswith(shown)


def test_paths_of_another_encoding(tmp_path, capsys):
    base = os.fsdecode(os.fsencode(tmp_path) + b"/m\xe9")
    state = {"a.weight": torch.randn(9, 9)}
    checkpoint.save(f"{base}.ptmodel", checkpoint.Checkpoint(state))

    def run(script, *argv):
        assert __import__(script).main(list(argv)) == 0, capsys.readouterr().err

    run("huffman_encode", f"{base}.ptmodel", "--directory", f"{base}.e")
    for end in ("ptmodel", "safetensors"):
        run("huffman_decode", "--directory", f"{base}.e", "--output", f"{base}.2.{end}")
        found = checkpoint.load(f"{base}.2.{end}").state_dict
        assert torch.equal(found["a.weight"], state["a.weight"])
    assert "m\\udce9.2.safetensors" in capsys.readouterr().out
    assert __import__("huffman_encode").main([f"{base}.no", "--directory", f"{base}.e"]) == 1
    assert "m\\udce9.no; give" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--json", "saves/initial_model.ptmodel"], "the name of a model; give another --json"),
        (["--log", "new.safetensors"], "the name of a model; give another --log"),
        (["--json", "a", "--log", "./a"], "./a is given as --json and as --log"),
        (["--csv", "y.csv", "--json", "y-stages.csv"], "is given as --json and as --csv"),
        (["--log", ""], "--log is empty"),
        (["--weights", ""], "--weights is empty"),
    ],
)
def test_names_that_would_cost_a_file(tmp_path, monkeypatch, capsys, given, said):
    monkeypatch.chdir(tmp_path)
    assert deep_compressing.main(["--dataset", "digits", *given]) == 1
    assert said in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_what_the_library_warns_of_is_a_note():
    code = (
        "import warnings; from net.pipeline import cli; from net.pipeline.fields import Parser;"
        "cli.run(Parser('A test.'), lambda _: warnings.warn('nothing was trained'), [])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr == "NOTE: nothing was trained\n"
