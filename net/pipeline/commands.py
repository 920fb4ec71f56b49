"""Make a model small, ship it, load it: one command, one file.

    deep-compression compress MODEL [-o FILE.dc]    a saved model into one file
    deep-compression compress FOLDER -o OUT         one file for each file of weights
    deep-compression decompress FILE.dc [-o PATH]   the file or folder that it was
    deep-compression info FILE.dc                   what is in it, and where the bytes are
    deep-compression pipeline                       the whole of the paper: train, prune, share, ...

In a clone `python -m net` does the same. Each command has a --help of its own.
"""

import argparse
import inspect
import json
import os
import re
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .. import __version__, conflicts
from ..conflicts import SUFFIX
from ..errors import UserError, printable
from . import cli, deep_compressing, process
from .fields import Parser, built, option
from .options import patterns, picture_name

UNITS = {"": 1, "B": 1}
for power, letter in enumerate("KMG", 1):
    UNITS |= {f"{letter}B": 1000**power, letter: 1000**power, f"{letter}IB": 1024**power}


def size(text: str) -> int:
    """The bytes in "2MB", "500 kB", "1.5MiB" or "2000000"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-zA-Z]*)", text.strip())
    if not match or match[2].upper() not in UNITS or not 0 < float(match[1]) < 1e300:
        raise argparse.ArgumentTypeError(f"{text!r} is no size, as 2MB, 500KB or 1.5MiB is")
    return max(1, int(float(match[1]) * UNITS[match[2].upper()]))


def encoded_name(text: str) -> str:
    if Path(text).name == SUFFIX:
        raise argparse.ArgumentTypeError(f"{text!r} is no name, only its end")
    return text


@dataclass(frozen=True)
class CompressOptions:
    """How far a model is compressed. Without any of the first four: as far as its outputs move by
    no more than is promised, or where nobody can run it, by a noise that published networks of
    several kinds bear."""

    max_bytes: int | None = option(
        None,
        "all that is written is to have no more than SIZE: 2MB, 500KB, 1.5MiB; the best that fits",
        metavar="SIZE",
        check=size,
    )
    max_divergence: float | None = option(
        None,
        "the outputs, logits, may move by so many nats on average; higher: fewer bytes",
        low=1e-9,
        metavar="R",
    )
    noise: float | None = option(
        None,
        "the steps between values, in standard deviations of the weights; higher: fewer bytes, "
        "other outputs (default: what moves them by no more than a divergence of 0.02 nats and a "
        "cosine of 0.995; 0.2 or so where they cannot be seen)",
        low=0.001,
        high=100,
        metavar="R",
    )
    lossless: bool = option(False, "change no tensor, not by a bit")
    include: tuple[str, ...] | None = option(
        None,
        "share these parameters, and no others: patterns over names (fc*,*.proj) or kinds "
        "(@linear, @conv, @attention, @rnn, @embedding)",
        metavar="PATTERNS",
        check=patterns,
    )
    exclude: tuple[str, ...] = option(
        (), "leave these as they are, exactly", metavar="PATTERNS", check=patterns
    )


@dataclass(frozen=True)
class OutputOptions:
    """How the model is run, to look at its outputs before and after."""

    arch: str | None = option(
        None,
        "the architecture of a state dict: lenet-5, resnet-20, a classifier of torchvision's, "
        "package.module:factory of your own; a folder of Hugging Face's needs none",
    )
    inputs: str | None = option(
        None,
        "inputs of the model: a .pt or .npz file, a folder of images, or a text file with one "
        "input per line. Half of them are calibrated on, for fewer bytes at the same outputs, the "
        "others judge. Without any, photographs or texts that come with Python's packages judge",
        metavar="FILE",
    )


class _Parser(Parser):
    """With what options can have no effect together."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found = super().parse_args(args, namespace)
        if why := conflict(found):
            self.error(why)
        return found


def conflict(args: Namespace) -> str | None:
    """Which of the options of `compress` can have no effect, by their flags; or None."""
    given = vars(built(args, CompressOptions)) | vars(built(args, OutputOptions))
    one_file = args.output is None or Path(args.output).suffix == SUFFIX
    return conflicts.conflict(
        **given, called=lambda name: "--" + name.replace("_", "-"), one_file=one_file
    )


# --- compress -------------------------------------------------------------------------------------


def compress_parser() -> Parser:
    """Compress any saved model into one file, or a folder of weights file by file.

        deep-compression compress MODEL
        deep-compression compress MODEL -o small.dc --max-bytes 2MB
        deep-compression compress FOLDER -o OUT
        torchrun --nproc-per-node 8 -m deep_compression compress FOLDER -o OUT

    MODEL is a file of torch.save or of safetensors, or a folder of them with what belongs to them,
    as Hugging Face's, sentence-transformers', diffusers' and PEFT's. What the outputs do is said
    where the model can be run: a folder of Hugging Face's by transformers, others with --arch.

    OUT, a folder, gets a file for each file of weights in FOLDER, and an index: the same bytes by
    any number of processes, each of which has one tensor in memory, on machines that see both
    folders. The outputs are not looked at: --max-divergence, --inputs and --arch are for one file.
    Once more, the command does what a run that was killed has left.
    """
    parser = _Parser(inspect.getdoc(compress_parser))
    cli.add_source(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=encoded_name,
        metavar="FILE.dc | OUT",
        help="the file to write (default: as MODEL is called, in the working directory), or, of "
        "another name than FILE.dc, a folder",
    )
    parser.add_fields("how far", CompressOptions)
    parser.add_fields("a look at the outputs", OutputOptions)
    return parser


def compress(args: Namespace) -> None:
    from .. import encoding
    from ..compression import compress as run
    from ..processes import Processes
    from ..report import tables
    from . import samples

    options, looks = built(args, CompressOptions), built(args, OutputOptions)
    target = Path(args.output) if args.output else _named_after(args.model)
    if target.suffix == SUFFIX and (processes := Processes()).count > 1:
        processes.fail("several processes write several files: give a folder, as in -o OUT")
    with _Progress() as progress:
        result = run(
            args.model,
            target,
            **vars(options),
            inputs=samples.read(looks.inputs) if looks.inputs else None,
            about=f"inputs of {looks.inputs}" if looks.inputs else "",
            module=samples.maker(looks.arch, args.model) if looks.arch else None,
            key=args.key,
            tell=progress.tell,
        )
    notes = list(result.notes)
    if result.noise is not None:
        seen = encoding.open(target)
        notes += tables.sharing_notes(result.plan, result.clusterings, result.rounded, seen)
    if result.unseen:
        how = LOOK if target.suffix == SUFFIX else LOOK_AT_FILE
        notes.append(f"the outputs were not checked: {result.unseen}; {how}")
    for note in notes:
        print(f"NOTE: {printable(note)}", file=sys.stderr)
    print(printable(str(result)))


LOOK = "compare them yourself, or give --arch and, where it takes no images, --inputs"
LOOK_AT_FILE = f"compare them yourself, or compress it into one file that ends in {SUFFIX}"


def _named_after(model: str) -> Path:
    """MODEL's own name in the working directory. UserError where there is such a file already."""
    from ..formats import WEIGHTS

    name = Path(os.path.abspath(model)).name  # of a link its own
    for suffix in WEIGHTS:
        name = name.removesuffix(suffix)
    target = Path((name or "model") + SUFFIX)
    if target.exists():
        raise UserError(f"{target} is there already; name it with -o to replace it, or another")
    return target


class _Progress:
    """One line on stderr with the time left, on a terminal and only there."""

    EVERY = 0.2  # seconds

    def __init__(self) -> None:
        self.shown = sys.stderr.isatty()
        self.what, self.start, self.last = "", 0.0, 0.0

    def tell(self, what: str, done: int, total: int) -> None:
        if not self.shown:
            return
        now = time.monotonic()
        if what != self.what:
            self.what, self.start, self.last = what, now, 0.0
        if now - self.last < self.EVERY:
            return
        self.last, left = now, ""
        if 0 < done < total:
            seconds = (now - self.start) * (total - done) / done
            left = f"  {int(seconds // 60)}:{int(seconds % 60):02} left"
        self.write(f"{what}: {100 * done // max(total, 1)} %{left}")

    def write(self, text: str) -> None:
        sys.stderr.write(f"\r{text:<70}")

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.last:
            self.write("")
            sys.stderr.write("\r")


# --- decompress, info, pipeline -------------------------------------------------------------------


def decompress_parser() -> Parser:
    """The file or the folder that was compressed, to be loaded by what loaded the original.

    deep-compression decompress FILE.dc
    deep-compression decompress FILE.dc -o PATH

    In place of FILE.dc, here and in info, the folder OUT that compress has written.
    """
    parser = Parser(inspect.getdoc(decompress_parser))
    _add_file(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        help="the file or folder to write (default: as it was called, in the working directory)",
    )
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    return parser


def decompress(args: Namespace) -> None:
    from .. import container, encoding, layouts

    encoded = encoding.open(args.file)
    name = encoded.layout.get("name")
    if not isinstance(name, str) or "/" in name or container.unsafe(name):
        name = f"{Path(args.file).name.removesuffix(SUFFIX)}.safetensors"
    target = Path(args.output or name)
    is_folder = encoded.layout.get("folder") or encoded.files  # which replaces nothing
    if target.is_file() and not args.force and not is_folder:
        raise UserError(f"{target} is there already; give --force to replace it, or another -o")
    written = layouts.restore(encoded, target)
    count = f"{len(written)} files" if len(written) > 1 else f"{len(encoded)} tensors"
    print(printable(f"{count} decoded into {target}"))


def info_parser() -> Parser:
    """What is in a compressed model: per tensor its shape, treatment, bits, bytes and noise.

    deep-compression info FILE.dc
    deep-compression info FILE.dc --json
    deep-compression info FILE.dc --plot info.png
    """
    parser = Parser(inspect.getdoc(info_parser))
    _add_file(parser)
    parser.add_argument("--json", action="store_true", help="the figures, for other programs")
    parser.add_argument("--plot", type=picture_name, metavar="PNG", help="draw them as well")
    return parser


def info(args: Namespace) -> None:
    from ..report import contents

    found = contents.figures(args.file)
    if args.plot:
        contents.draw(found, args.plot)
    print(json.dumps(found, indent=2) if args.json else contents.table(found))


def _add_file(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE.dc", help="what compress has written")


USAGE = "usage: deep-compression [-h] [--version] COMMAND ..."


class Command(NamedTuple):
    parser: Callable[[], Parser]
    body: Callable[[Namespace], None]


COMMANDS = {
    "compress": Command(compress_parser, compress),
    "decompress": Command(decompress_parser, decompress),
    "info": Command(info_parser, info),
    "pipeline": Command(deep_compressing.parser, deep_compressing.body),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code, as net.pipeline.cli.run does."""
    given = list(sys.argv[1:] if argv is None else argv)
    name = given[0] if given else ""
    with cli.outputs() as output:
        if name in ("-h", "--help"):
            print(f"{USAGE}\n\n{(__doc__ or '').rstrip()}")
            return cli.printed(output, 0)
        if name == "--version":
            print(__version__)
            return cli.printed(output, 0)
        if name.startswith("-"):  # options of the pipeline, which once was the only command
            given, name = ["pipeline", *given], "pipeline"
        if name not in COMMANDS:
            what = f"no command {name!r}" if name else "no command"
            sys.stderr.write(
                f"error: {what}; there are {', '.join(COMMANDS)}; see deep-compression --help\n"
            )
            return 2
    command = COMMANDS[name]
    parser = command.parser()
    parser.prog = f"deep-compression {name}"
    return cli.run(parser, command.body, given[1:])


def command() -> int:
    """`deep-compression` of an installed copy, a process of its own as a script is."""
    process.start()
    return main()
