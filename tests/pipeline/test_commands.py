"""`deep-compression`: every command through main(), as a user would give it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import net
from net.pipeline import commands
from net.pipeline.commands import main, size
from net.training import architectures


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(here):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 50), nn.ReLU(), nn.Linear(50, 10))
    torch.save(model.state_dict(), "model.pth")
    return model


def fails(capsys, arguments, code, text):
    assert main(arguments) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("error: ")
    assert text in shown.err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2000000", 2_000_000),
        ("2MB", 2_000_000),
        ("500KB", 500_000),
        ("500 kB", 500_000),
        ("1.5MiB", 3 << 19),
        ("2KiB", 2048),
        ("1G", 10**9),
        ("12B", 12),
    ],
)
def test_sizes(text, expected):
    assert size(text) == expected


@pytest.mark.parametrize("text", ["", "MB", "2 XB", "-1MB", "0", "1e3", "2MBs"])
def test_what_is_no_size(capsys, text):
    fails(capsys, ["compress", "x.pth", f"--max-bytes={text}"], 2, "is no size, as 2MB")


def test_compress_and_decompress(model, here, capsys):
    assert main(["compress", "model.pth"]) == 0
    shown = capsys.readouterr()
    (line,) = shown.out.splitlines()
    size = (here / "model.dc").stat().st_size
    ratio = 4 * (60 * 50 + 50 + 50 * 10 + 10) / size
    assert line == f"model.dc: {size:,} bytes, {ratio:.2f}x; noise 0.2, outputs: not checked"
    assert "the outputs were not checked: it is a state dict without its architecture" in shown.err
    assert "%" not in shown.err.split("NOTE")[0]  # no progress without a terminal
    assert main(["decompress", "model.dc", "-o", "again.pth"]) == 0
    assert capsys.readouterr().out == "4 tensors decoded into again.pth\n"
    again = torch.load("again.pth", weights_only=True)
    assert list(again) == list(model.state_dict())
    assert not torch.equal(again["0.weight"], model[0].weight)
    torch.testing.assert_close(again["0.weight"], model[0].weight, rtol=0, atol=0.02)


def test_without_loss_byte_for_byte(model, here, capsys):
    from safetensors.torch import save_file

    save_file(model.state_dict(), "model.safetensors")
    assert main(["compress", "model.safetensors", "--lossless"]) == 0
    assert "nothing is lost" in capsys.readouterr().out
    assert main(["decompress", "model.dc", "-o", "again.safetensors"]) == 0
    before, after = (
        (here / name).read_bytes() for name in ("model.safetensors", "again.safetensors")
    )
    assert before == after


def test_decompress_replaces_nothing_unasked(model, here, capsys):
    assert main(["compress", "model.pth"]) == 0
    before = (here / "model.pth").read_bytes()
    capsys.readouterr()
    fails(capsys, ["decompress", "model.dc"], 1, "model.pth is there already; give --force")
    assert (here / "model.pth").read_bytes() == before
    assert main(["decompress", "model.dc", "--force"]) == 0
    assert (here / "model.pth").read_bytes() != before


def test_compress_replaces_nothing_unasked(model, here, capsys):
    (here / "model.dc").write_bytes(b"mine")
    fails(capsys, ["compress", "model.pth"], 1, "model.dc is there already; name it with -o")
    assert (here / "model.dc").read_bytes() == b"mine"
    assert main(["compress", "model.pth", "-o", "model.dc"]) == 0


def test_a_name_that_is_all_suffix(model, here, capsys):
    fails(capsys, ["compress", "model.pth", "-o", ".dc"], 2, "'.dc' is no name, only its end")


def test_one_file_into_a_folder(model, here, capsys):
    arguments = ["compress", "model.pth", "-o", "model.zip"]
    fails(capsys, arguments, 1, "model.pth is one file; give an output that ends in .dc")
    assert not (here / "model.zip").exists()


def test_the_model_is_not_written_over(model, here, capsys):
    (here / "link.dc").symlink_to("model.pth")
    before = (here / "model.pth").read_bytes()
    fails(capsys, ["compress", "model.pth", "-o", "link.dc"], 1, "is a file of the model")
    assert (here / "model.pth").read_bytes() == before


def test_a_folder_is_compressed_into_itself_twice(model, here, capsys):
    (here / "m").mkdir()
    (here / "model.pth").rename("m/model.pth")
    sizes = []
    for _ in range(2):
        assert main(["compress", "m", "-o", "m/small.dc", "--lossless"]) == 0
        sizes.append((here / "m" / "small.dc").stat().st_size)
    assert sizes[0] == sizes[1]


def test_a_folder_replaces_no_file(model, here, capsys):
    (here / "m").mkdir()
    (here / "model.pth").rename("m/model.pth")
    (here / "mine").write_text("precious")
    assert main(["compress", "m", "-o", "small.dc"]) == 0
    capsys.readouterr()
    for options in ([], ["--force"]):
        arguments = ["decompress", "small.dc", "-o", "mine", *options]
        fails(capsys, arguments, 1, "mine is there already; give another path")
    assert (here / "mine").read_text() == "precious"


def test_a_budget(model, here, capsys):
    assert main(["compress", "model.pth", "--max-bytes", "2KB", "-o", "a.dc"]) == 0
    assert 1960 <= (here / "a.dc").stat().st_size <= 2000
    capsys.readouterr()
    fails(capsys, ["compress", "model.pth", "--max-bytes", "99B", "-o", "b.dc"], 1, "the smallest")
    assert not (here / "b.dc").exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("--lossless --noise 1", "--lossless decides alone; give it without --noise"),
        ("--noise 1 --max-bytes 2MB", "--noise decides alone; give it without --max-bytes"),
        ("--max-bytes 2MB --max-divergence 1", "--max-bytes decides alone"),
        ("--lossless --inputs a.pt", "--inputs has no effect with --lossless"),
        ("--lossless --arch lenet-5", "--arch has no effect with --lossless"),
        ("--lossless --exclude fc*", "--exclude has no effect with --lossless"),
        ("--noise -1", "is not a number from 0.001 to 100"),
    ],
)
def test_options_without_effect_are_bad_usage(capsys, options, text):
    fails(capsys, ["compress", "model.pth", *options.split()], 2, text)


def test_an_architecture_is_run(here, capsys):
    torch.manual_seed(0)
    network = architectures.build("lenet-5")
    torch.save(network.state_dict(), "lenet.pth")
    assert main(["compress", "lenet.pth", "--arch", "lenet-5"]) == 0
    shown = capsys.readouterr()
    assert "divergence 0.0" in shown.out
    assert "48 crops of two photographs of scikit-learn's" in shown.out
    assert "not checked" not in shown.out + shown.err
    fails(
        capsys,
        ["compress", "lenet.pth", "-o", "b.dc", "--arch", "resnet-20"],
        1,
        "does not fit the architecture resnet-20",
    )


@pytest.mark.parametrize("kind", ["pt", "npz", "folder"])
def test_inputs_of_ones_own(here, capsys, kind):
    torch.manual_seed(0)
    arch = "tests.own_net:OwnNet"
    torch.save(architectures.build(arch).state_dict(), "own.pth")
    images = torch.rand(12, 1, 16, 16)
    if kind == "pt":
        torch.save(images, "inputs.pt")
    elif kind == "npz":
        np.savez("inputs.npz", images=images.numpy())
    else:
        (here / "inputs.folder" / "a").mkdir(parents=True)
        for number, image in enumerate(images):
            pixels = (255 * image[0]).byte().numpy()
            Image.fromarray(pixels).save(here / "inputs.folder" / "a" / f"{number}.png")
    arguments = ["compress", "own.pth", "--arch", arch, "--inputs", f"inputs.{kind}"]
    assert main([*arguments, "--noise", "0.5", "-o", "a.dc"]) == 0
    assert f"(inputs of inputs.{kind})" in capsys.readouterr().out
    assert main(["compress", "own.pth", "--noise", "0.5", "-o", "b.dc"]) == 0
    assert (here / "a.dc").read_bytes() != (here / "b.dc").read_bytes()  # it was calibrated


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.pt", b"no pickle", "a.pt holds no inputs that can be read"),
        ("a.npz", b"no archive", "a.npz holds no inputs that can be read"),
        ("a.txt", b"", "a.txt is empty"),
        ("a.txt", b"\xff\xfe\xfd", "a.txt holds no inputs that can be read"),
        ("a.txt", b"a text", "texts need a tokenizer"),
    ],
)
def test_what_are_no_inputs(model, here, capsys, name, content, text):
    torch.save(architectures.build("lenet-5").state_dict(), "lenet.pth")
    (here / name).write_bytes(content)
    arguments = ["compress", "lenet.pth", "-o", "b.dc", "--arch", "lenet-5", "--inputs", name]
    fails(capsys, arguments, 1, text)


def test_an_image_that_is_a_decompression_bomb(here, capsys, monkeypatch):
    torch.save(architectures.build("lenet-5").state_dict(), "lenet.pth")
    (here / "images").mkdir()
    Image.new("L", (30, 30)).save(here / "images" / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    arguments = ["compress", "lenet.pth", "-o", "b.dc", "--arch", "lenet-5", "--inputs", "images"]
    fails(capsys, arguments, 1, "a.png cannot be read: Image size (900 pixels) exceeds limit")


@pytest.mark.parametrize("empty", [torch.zeros(0, 1, 28, 28), {}, []])
def test_inputs_that_are_none_at_all(here, capsys, empty):
    torch.save(architectures.build("lenet-5").state_dict(), "lenet.pth")
    torch.save(empty, "inputs.pt")
    arguments = ["compress", "lenet.pth", "-o", "b.dc", "--arch", "lenet-5", "--inputs"]
    fails(capsys, [*arguments, "inputs.pt"], 1, "inputs.pt holds no inputs: it is empty")


def test_what_is_decoded_is_not_written_over(model, here, capsys):
    assert main(["compress", "model.pth"]) == 0
    before = (here / "model.dc").read_bytes()
    capsys.readouterr()
    arguments = ["decompress", "model.dc", "-o", "model.dc", "--force"]
    fails(capsys, arguments, 1, "model.dc is a file of the model model.dc")
    assert (here / "model.dc").read_bytes() == before


def test_info(model, here, capsys):
    pytest.importorskip("net.report.contents")
    assert main(["compress", "model.pth"]) == 0
    capsys.readouterr()
    assert main(["info", "model.dc"]) == 0
    assert "0.weight" in capsys.readouterr().out
    assert main(["info", "model.dc", "--json", "--plot", "a.png"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == (here / "model.dc").stat().st_size
    assert (here / "a.png").stat().st_size > 1000


def test_missing_files(here, capsys):
    fails(capsys, ["compress", "none.pth"], 1, "none.pth")
    fails(capsys, ["decompress", "none.dc"], 1, "none.dc")


def test_the_pipeline_is_a_command(capsys):
    assert main(["pipeline", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: deep-compression pipeline")
    fails(capsys, ["pipeline", "--epochs", "no"], 2, "'no' is not a whole number")
    fails(capsys, ["--epochs", "no"], 2, "'no' is not a whole number")  # as it once was called


def test_what_there_is(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{net.__version__}\n"
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"deep-compression {name}" in shown for name in commands.COMMANDS)
    fails(capsys, [], 2, "no command; there are compress, decompress, info, pipeline")
    fails(capsys, ["shrink"], 2, "no command 'shrink'")


def test_help_imports_nothing_heavy():
    code = (
        "import sys, net.pipeline.commands as c; c.main(['compress', '--help']);"
        "print({'torch', 'numpy', 'numba'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("set()\n")


def test_progress_tells_the_time_that_is_left(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    clock = iter([0.0, 10.0, 10.1, 20.0])
    monkeypatch.setattr(commands.time, "monotonic", lambda: next(clock))
    with commands._Progress() as progress:
        for done in (0, 1, 2, 4):
            progress.tell("encoding", done, 5)
    shown = capsys.readouterr().err
    assert "encoding: 20 %  0:40 left" in shown
    assert "40 %" not in shown  # too soon after
    assert "encoding: 80 %  0:05 left" in shown
    assert shown.endswith(" \r")


@pytest.mark.parametrize("given", [["--version"], ["--help"], ["compress", "--help"]])
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_what_cannot_be_printed(given):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "net", *given], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot print the results")


def test_options_that_contradict_each_other_need_no_torch():
    code = (
        "import sys, net.pipeline.commands as c;"
        "c.main(['compress', 'a.pth', '--noise', '1', '--lossless']);"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n"
    assert "--lossless decides alone" in done.stderr
