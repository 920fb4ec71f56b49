"""What the scripts share: what they print, how errors reach the user, and from options to what the
stages take.

Imports nothing heavy: `--help` must answer at once, so torch is imported after parsing.
"""

import contextlib
import os
import re
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import Told, UserError, printable
from . import presets, process
from .fields import Parser, built, declared, given
from .options import (
    CommonOptions,
    DataOptions,
    MachineOptions,
    ModelOptions,
    PruningOptions,
    SharingOptions,
)
from .presets import Preset

if TYPE_CHECKING:
    import torch

    from .runs import Run
    from .stages import Runtime

DEFAULT_ARCH = "lenet-300-100"
# {the file of a stage: the script that makes it}
MADE_BY = {
    "initial_model.ptmodel": "pruning.py",
    "teacher_model.ptmodel": "pruning.py",
    "model_after_retraining.ptmodel": "pruning.py",
    "model_after_weight_sharing.ptmodel": "weight_share.py",
    "model_after_decoding.ptmodel": "huffman_decode.py",
}
WAIT = 5.0  # seconds, in which another process of torchrun says what is wrong
NO_ROOM = re.compile(r"out of memory|an(no|')t allocate|failed to map segment")  # for data, or code


class Output:
    """A text stream that never fails: what cannot be written is dropped, and work goes on.

    An hour of training must not end with its terminal. `failure` is the first error. Characters
    that the stream's encoding does not have become escapes, as those do that a terminal obeys.
    """

    def __init__(self, stream: TextIO | None, keep: str = "\n") -> None:
        self.failure: str | None = None if stream else "it is closed"
        self._stream = stream or open(os.devnull, "w")  # noqa: SIM115 (as long as the process)
        self._keep = keep

    def write(self, text: str) -> int:
        if not self.failure:
            try:
                self._stream.write(printable(text, self.encoding, self._keep))
                self._stream.flush()  # nothing is left to be written by the end of the process
            except (OSError, ValueError) as error:  # ValueError: closed since
                self.failure = getattr(error, "strerror", None) or str(error)
                # What is still in the buffer would fail again when the interpreter ends.
                with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
                    os.dup2(nowhere.fileno(), self._stream.fileno())
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return not self.failure and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def run(
    parser: Parser, body: Callable[[Namespace], None], argv: Sequence[str] | None = None
) -> int:
    """Parse `argv`, call `body(args)`, and turn what goes wrong into one line and an exit code.

    Returns 0, 2 for bad usage, 130 for Ctrl-C, and 1 for anything else that a user can cause, as
    results that could not be printed are. (In a process of its own net.pipeline.process ends a
    script that is interrupted or killed.)
    """
    shown = warnings.formatwarning
    with outputs() as output:
        warnings.formatwarning = _as_note
        try:
            code = attempt(parser, body, argv)
        finally:
            warnings.formatwarning = shown
        return printed(output, code)


def printed(output: "Output", code: int) -> int:
    """The exit code, of what could not print its results another one than 0."""
    if output.failure and not code:
        return fail(f"cannot print the results: stdout: {output.failure}")
    return code


def _as_note(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """What the library warns its callers of, without their source."""
    if category is UserWarning:
        return f"NOTE: {message}\n"
    return f"{category.__name__}: {message} ({filename}:{lineno})\n"


@contextlib.contextmanager
def outputs() -> Iterator[Output]:
    """Printing that cannot fail, on both streams; gives stdout's."""
    output: Any = Output(sys.stdout)
    errors: Any = Output(sys.stderr, keep="\n\r")  # progress bars begin with a carriage return
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        yield output


def attempt(parser: Parser, body: Callable[[Namespace], None], argv: Sequence[str] | None) -> int:
    """The same, printing to sys.stdout and sys.stderr as they are."""
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:  # --help and bad usage
        return int(stop.code or 0)
    process.limit_threads()
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1  # set by torchrun
    try:
        check_overwrites(args)
        if several:
            import torch

            from ..training import distributed

            on_device = "device" in parser.known
            distributed.start(device(args) if on_device else torch.device("cpu"))
        body(args)
        if several:
            distributed.leave()
    except Told:
        time.sleep(WAIT)
        return 1
    except UserError as error:
        script = MADE_BY.get(error.missing)
        return fail(f"{error}, or run {script} first" if script else str(error))
    except KeyboardInterrupt:
        print(f"\n{process.INTERRUPTED}", file=sys.stderr)
        return 130
    except OSError as error:
        return fail(f"{error.strerror or error}: {error.filename or 'input or output'}")
    except (MemoryError, ImportError, RuntimeError) as error:
        if isinstance(error, MemoryError) or NO_ROOM.search(str(error)):
            return fail("out of memory; try a smaller --batch-size or model")
        if several and "peer" in str(error):
            return fail("another process of torchrun has ended; its own message says why")
        raise
    return 0


# Names of arguments, of the scripts that have them: of models that are read, and of files that are
# written. (A folder that models are written to is none of these.)
READ = ("model", "weights", "teacher", "initial", "path", "file", "directory")
WRITTEN = ("output", "json", "csv", "plot", "log")


def check_overwrites(args: Namespace) -> None:
    """Raises UserError where a file that is to be written is one of a model that is read: itself,
    or weights or a part of an encoding in its folder; where a text is named as a model, which a
    script may read or write under that name; and where one file would be written twice."""
    from ..files import same_file
    from ..formats import WEIGHTS, is_index
    from ..report.names import csv_names

    def paths(names: Sequence[str]) -> Iterator[tuple[str, str]]:
        found = ((name, getattr(args, name, None)) for name in names)
        return ((name, path) for name, path in found if isinstance(path, str))

    for name, path in paths((*READ, *WRITTEN, "arch", "inputs")):
        if not path:
            what = name if name in ("model", "path", "file") else f"--{name}"
            raise UserError(f"{what} is empty")
    twice: dict[str, str] = {}
    written = [
        (what, str(file))
        for what, path in paths(WRITTEN)
        for file in (csv_names(path) if what == "csv" else [path])
    ]
    for what, target in written:
        if what != "output" and target.endswith(WEIGHTS):
            raise UserError(f"{target} is the name of a model; give another --{what}")
        other = twice.setdefault(os.path.realpath(target), what)
        if other != what:
            raise UserError(f"{target} is given as --{other} and as --{what}; give two files")
        if not os.path.isfile(target):
            continue
        file = Path(target)
        of_model = target.endswith((*WEIGHTS, ".huff")) or is_index(file)
        # What is written may be a link in the folder, or what one elsewhere leads to.
        places = {*file.resolve().parents, *(file.parent.resolve() / file.name).parents}
        for _, source in paths(READ):
            read = Path(source)
            folder = (read.parent if is_index(read) else read).resolve()
            if same_file(read, target) or (of_model and folder in places):
                raise UserError(f"{target} is a file of the model {source}; give another --{what}")


def fail(message: str) -> int:
    stream: TextIO | Output = sys.stderr
    if os.environ.get("RANK", "0") != "0":
        # Another process of torchrun, silenced by training.distributed.  The first has likely
        # failed in the same way, and then this one is ended before it repeats the line.
        time.sleep(WAIT)
        stream = Output(sys.__stderr__)
    stream.write("error: " + " ".join(message.split()) + "\n")
    return 1


# --- options that several scripts have ------------------------------------------------------------


def add_source(parser: Parser) -> None:
    """A model that somebody has saved."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a .ptmodel file, a saved state dict or .safetensors file, or a folder with one or "
        "with shards",
    )
    parser.add_argument(
        "--key",
        metavar="NAME",
        help="the state dict to take from a file of several, as in --key params_ema or "
        "--key ema.state_dict",
    )


def add_preset(parser: Parser, default: str = "trained with --weights, else paper") -> None:
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help=f"what the options below are by default: {', '.join(presets.GENERAL)}, or a file such "
        f"as presets/records/lenet-5.json (default: {default})",
    )


def add_folders(parser: Parser, output: bool = True, directory: bool = True) -> None:
    if output:
        add_path(parser, "--output", "saves/", "the folder of the models")
    if directory:
        add_path(
            parser, "--directory", "encodings/", "the folder of the encoded model, or a .dc file"
        )


def add_resume(parser: Parser) -> None:
    text = "go on with a run of the same options that was killed"
    parser.add_argument("--resume", action="store_true", help=text)


def add_path(parser: Parser, flag: str, default: str, text: str, metavar: str = "DIR") -> None:
    parser.add_argument(flag, default=default, metavar=metavar, help=f"{text} (default: {default})")


def add_common(parser: Parser, hide: Sequence[str] = (), seed: bool = False) -> None:
    """`seed`: for a script in which nothing is random, but which takes what all take."""
    parser.add_fields("data", DataOptions, hide=hide)
    parser.add_fields("machine and log", MachineOptions, hide=hide)
    if seed:
        parser.add_fields("data", CommonOptions, only=["seed"], hide=["seed"])


def add_without_effect(parser: Parser) -> None:
    """The common options, for a script that needs none of them: accepted, and shown by --help-all
    alone."""
    add_common(parser, hide=[*declared(DataOptions), *declared(MachineOptions)], seed=True)


# --- from the namespace of a parser to what the stages take; nothing below this file knows of it --


def device(args: Namespace) -> "torch.device":
    """The torch device that the flags ask for."""
    import torch

    machine = built(args, MachineOptions)
    if machine.no_cuda or machine.device == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        rank, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if rank >= count:
            raise UserError(
                f"PyTorch finds {count} CUDA device{'s' if count > 1 else ''} here, too few for "
                "one in each process of torchrun; start fewer, or use --device cpu"
            )
        return torch.device("cuda", rank)
    if machine.device == "cuda":
        raise UserError("--device cuda: PyTorch finds no CUDA device here; use --device cpu")
    return torch.device("cpu")


@contextlib.contextmanager
def runtime(args: Namespace, folder: str | Path | None = None) -> Iterator["Runtime"]:
    """The net.pipeline.stages.Runtime of a script; its log is closed at the end of the block, in
    which no other run may begin in `folder`."""
    from ..training import distributed
    from ..training.log import Log
    from .runs import alone
    from .stages import Runtime

    where = device(args)  # refuses one that is not there, before any folder or file is made
    machine = built(args, MachineOptions)
    path = machine.log if distributed.is_writer() else None
    with (
        alone(folder) if folder else contextlib.nullcontext()
    ):  # before the log of another is overwritten
        append = getattr(args, "resume", False)
        with contextlib.closing(Log(path, machine.log_interval, append=append)) as log:
            yield Runtime(where, log, machine.test_batch_size)


def data_options(args: Namespace, trained_on: str | None) -> DataOptions:
    """`trained_on` is what --dataset auto stands for, where it is known."""
    from ..training import datasets

    found = built(args, DataOptions)
    # With how it was normalised and divided, if by an option.
    if trained_on and found.dataset in ("auto", datasets.described(trained_on)[0]):
        return replace(found, dataset=trained_on)
    return found


def check_arch(args: Namespace, known: str | None, path: str) -> None:
    """Raise UserError for an --arch, or options of one, that are not those of the model, which
    says its own."""
    from ..training import architectures

    asked = built(args, ModelOptions)
    if not known or not any((asked.arch, asked.num_classes, asked.in_channels)):
        return
    name, own = architectures.parse(known)
    wanted, options = architectures.parse(asked.arch or name)
    given = {"num_classes": asked.num_classes, "in_channels": asked.in_channels}
    options |= {option: value for option, value in given.items() if value is not None}
    if wanted == name and options.get("weights"):  # DEFAULT stands for one of them
        options["weights"] = architectures.published_weights(name, options["weights"]).name
    has = architectures.options_of(name) | own
    if wanted != name or any(has.get(option) != value for option, value in options.items()):
        shown = ", ".join(f"{option}={value}" for option, value in options.items())
        asked_for = f"{wanted}({shown})" if shown else wanted
        raise UserError(f"{path} is a {known}, not a {asked_for}; leave --arch and its options out")


def new_run(
    args: Namespace,
    runtime: "Runtime",
    folder: str | Path,
    arch: str | None = None,
    trained_on: str | None = None,
) -> "Run":
    """A net.pipeline.runs.Run in `folder`, of --arch, or of `arch` where a checkpoint names it.

    The data set gives --arch its classes and channels where the user has not."""
    from ..formats import weights_file
    from ..training import architectures
    from ..training.weights import is_published
    from .runs import Run, load_data

    weights = getattr(args, "weights", None)
    published = weights if weights and is_published(weights) else None
    if weights and not published and not args.resume:  # which may not need them any more
        weights_file(weights)  # before anything is read, timed and announced
    model = built(args, ModelOptions)
    named = model.arch or preset(args).arch or DEFAULT_ARCH
    asked = model.num_classes, model.in_channels
    described = arch or architectures.describe(named, *asked, weights=published)
    dataset = load_data(described, data_options(args, trained_on), runtime)
    if arch is None:
        described = architectures.describe(named, *asked, data=dataset, weights=published)
    return Run(described, dataset, folder, runtime)


def preset(args: Namespace, recorded: str | None = None) -> Preset:
    """--preset; where it is not given, the one `recorded` in a checkpoint, "trained" with
    --weights, or "paper"."""
    name = args.preset or recorded
    return presets.load(name or ("trained" if getattr(args, "weights", None) else "paper"))


def no_effect(flag: str, why: str) -> None:
    print(f"NOTE: {flag} has no effect {why}", file=sys.stderr)


def without_effect(
    args: Namespace, pruning: PruningOptions, sharing: SharingOptions, bare: bool
) -> Iterator[tuple[str, bool, str]]:
    """(options, whether they have an effect, why they have none) in the stages of the script, of a
    `bare` state dict in sharing alone."""
    prunes, shares = not hasattr(args, "model"), not hasattr(args, "scan")
    by_rate, tuned = sharing.bits == "auto", sharing.finetune_epochs > 0
    searches = shares and by_rate and sharing.noise == "auto"
    auto = searches or (prunes and pruning.density == "auto")
    learns = [prunes and pruning.teacher != "none", shares and tuned and sharing.teacher != "none"]
    yield "error_budget calibration_images", not bare, "without --arch"
    yield "noise calibration_images", by_rate, "without --bits auto"
    yield "error_budget", auto, "where neither the density nor the noise is auto"
    yield "sensitivity", pruning.density is None, "beside --density"
    yield "prune_epochs", pruning.density is not None, "without --density"
    yield "lr l1 dropout", pruning.epochs > 0, "without epochs of dense training"
    yield "share_parts finetune_lr reassign", tuned, "without epochs of fine-tuning"
    yield "teacher_copies temperature", any(learns), "without a teacher"
    batch_size = (pruning if prunes else sharing).batch_size
    yield "largest_batch", batch_size == "auto", "beside --batch-size"


def chosen(args: Namespace, run: "Run | None" = None, recorded: str | None = None) -> Preset:
    """The preset, with what the user gives in its place."""
    from .runs import teacher_for

    asked = given(args, PruningOptions) | given(args, SharingOptions)
    found = preset(args, recorded).with_options(asked)
    pruning, sharing = found.pruning, found.sharing
    reasons: dict[str, str] = {}  # the first of each
    bare = run is None and recorded == "untrained"
    for names, wanted, why in without_effect(args, pruning, sharing, bare):
        reasons = {name: why for name in names.split() if name in asked and not wanted} | reasons
    for name, why in reasons.items():
        name = name.removeprefix("finetune_") if hasattr(args, "model") else name
        no_effect(f"--{name.replace('_', '-')}", why)
    if run is None:
        return found
    return replace(
        found,
        pruning=replace(pruning, teacher=teacher_for(pruning.teacher, run.dataset)),
        sharing=replace(sharing, teacher=teacher_for(sharing.teacher, run.dataset)),
    )
