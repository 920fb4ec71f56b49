"""The README and docs/: the Python runs, the commands parse, what is linked or named is there."""

import ast
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

import deep_compressing
from net import parameters
from net.pipeline.commands import COMMANDS
from net.report import plots

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted(ROOT.glob("docs/*.md"))]
SCRIPTS = [
    *("pruning", "weight_share", "huffman_encode", "huffman_decode"),
    *("compare_stages", "deep_compressing"),
]
# docker's, a benchmark's, and one of pytest's
OF_OTHERS = {"--user", "--build-arg", "--spread", "--hypothesis-profile"}
OF_THE_READER = {"mynet.py"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks, each after as many empty lines as stand before it: for tracebacks."""
    text = page.read_text()
    return [
        "\n" * (text[: match.start()].count("\n") + 1) + match[2]
        for match in FENCE.finditer(text)
        if match[1] == language
    ]


def inline(page: Path) -> list[str]:
    """What stands between backticks, line breaks as spaces."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


# Python


def run_python(page: Path, folder: Path, monkeypatch) -> None:
    """All blocks of the page, in order and in one namespace, as a reader pastes them."""
    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    namespace: dict = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), namespace)


def test_the_python_of_the_readme(tmp_path, monkeypatch, capsys):
    run_python(ROOT / "README.md", tmp_path, monkeypatch)
    shown = capsys.readouterr().out
    ratio, error = re.fullmatch(r"([\d.]+)x, test error ([\d.]+)%\n", shown).groups()
    assert float(ratio) > 25
    assert float(error) < 8


def test_the_python_of_the_library(tmp_path, monkeypatch, capsys):
    """Its blocks assert what they show."""
    run_python(ROOT / "docs" / "python.md", tmp_path, monkeypatch)
    assert capsys.readouterr().out.count("\nerror: ") == 4


def test_the_python_of_the_page_on_inference(tmp_path, monkeypatch):
    run_python(ROOT / "docs" / "inference.md", tmp_path, monkeypatch)


def test_the_python_page_has_every_name_of_the_contract():
    code = "".join(blocks(ROOT / "docs" / "python.md", "python"))
    for name in (
        *("Pruner", "WeightSharing", "encoding.save", "encoding.load", "encoding.open"),
        *("huffman.encode", "huffman.decode", "quantization.kmeans_1d"),
        *("checkpoint.save", "checkpoint.load", "sparse.sparse_model", "SharedState"),
        "load_into",
    ):
        assert f"net.{name}(" in code, name


def test_the_model_of_the_usage_page(tmp_path, monkeypatch, capsys):
    (code,) = blocks(ROOT / "docs" / "usage.md", "python")
    (tmp_path / "mynet.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mynet", raising=False)
    monkeypatch.setattr(plots, "available", lambda: False)
    fast = "--epochs 1 --retrain-epochs 1 --finetune-epochs 0 --sensitivity *=1.5,head=0.5"
    arguments = "--arch mynet:Rows --dataset digits --device cpu --bits *=5,@rnn=4"
    assert deep_compressing.main(f"{arguments} {fast}".split()) == 0
    assert "mynet:Rows on digits" in capsys.readouterr().out


# Commands


def commands(page: Path) -> list[list[str]]:
    """Each command that runs one of the scripts or of `python -m net`, from its name on."""
    script = rf"((?:(?:{'|'.join(SCRIPTS)})\.py|(?:{'|'.join(COMMANDS)}))\b.*)"
    lines = [line for block in blocks(page, "") for line in block.splitlines()]
    lines += [code for code in inline(page) if code.startswith("python ")]
    found = [
        re.search(rf"(?:python|--|-m net|deep-compression) {script}", line.rstrip("\\"))
        for line in lines
    ]
    return [shlex.split(match[1], comments=True) for match in found if match]


@pytest.mark.parametrize(
    ("page", "words"),
    [(page, words) for page in PAGES for words in commands(page)],
    ids=lambda part: part.name if isinstance(part, Path) else " ".join(part),
)
def test_the_scripts_take_the_commands(page, words):
    if words[0] in COMMANDS:
        parser = COMMANDS[words[0]].parser()
    else:
        parser = importlib.import_module(words[0].removesuffix(".py")).parser()
    if words[1:] != ["--help"]:
        parser.parse_args(words[1:])  # SystemExit for what the script would refuse


def test_there_are_commands():
    assert {words[0] for page in PAGES for words in commands(page)} >= {
        *("pruning.py", "weight_share.py", "huffman_encode.py", "huffman_decode.py"),
        *("compress", "decompress", "info"),
        "deep_compressing.py",
    }


@every_page
def test_options_that_are_named_exist(page):
    parsers = [importlib.import_module(script).parser() for script in SCRIPTS]
    parsers += [command.parser() for command in COMMANDS.values()]
    known = {
        option
        for parser in parsers
        for action in parser._actions
        for option in action.option_strings
    }
    named = {
        option
        for code in inline(page)
        if code.startswith("--")
        for option in re.findall(r"(?:^|(?<=\s))--[a-z][a-z0-9-]*", code)
    }
    assert named <= known | OF_OTHERS


# Links and names


@every_page
def test_relative_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", page.read_text())
    for link in (markdown or html for markdown, html in links):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_files_that_are_named_exist(page):
    text = prose(page)
    names = set(re.findall(r"(?<![\w/.-])(?:[\w-]+/)*[\w-]+\.py\b(?!:)", text))
    names |= set(re.findall(r"`((?:net|tests|docs|benchmarks|examples)/[\w./-]*)`", text))
    missing = {name for name in names - OF_THE_READER if not (ROOT / name).exists()}
    assert missing == set()


def defined(path: Path) -> set[str]:
    """The names that a Python file defines, those of a class's body included."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    found = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return found | {
        node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def test_the_map_of_the_maintainer_is_true():
    """`file` (`name`, `name`): the file defines these. Any other name is in the code somewhere."""
    page = ROOT / "docs" / "maintaining.md"
    pairs = re.findall(r"`([\w/]+\.py)`\s+\(((?:`\w+`(?:,\s+)?)+)[^)]*\)", prose(page))
    assert len(pairs) > 20
    for file, names in pairs:
        for name in re.findall(r"\w+", names):
            assert name in defined(ROOT / file), (file, name)
    everywhere = set().union(*map(defined, (ROOT / "net").rglob("*.py")))
    everywhere |= {"dest", "include", *parameters.KINDS, "weight"}
    names = {code for code in inline(page) if re.fullmatch(r"[A-Za-z_]\w*", code)}
    assert names - everywhere == set()


def test_the_readme_fits_150_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
