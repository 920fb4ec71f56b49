"""What the scripts share: how errors reach the user, and from options to what the stages take.

Imports nothing heavy: `--help` must answer at once, so torch is imported after parsing.
"""

import os
import signal
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from . import options
from .arguments import Parser
from .options import DataOptions, Preset

if TYPE_CHECKING:
    import torch

    from .runs import Run
    from .stages import Setting

OUT_OF_MEMORY = "out of memory; try a smaller --batch-size or model"


def run(
    parser: Parser, body: Callable[[Namespace], None], argv: Sequence[str] | None = None
) -> int:
    """Parse `argv`, call `body(args)`, and turn what goes wrong into one line and an exit code.

    Returns 0, 2 for bad usage, 130 for Ctrl-C or a kill, and 1 for anything else that a user can
    cause.
    """
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:  # --help and bad usage
        return int(stop.code or 0)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a kill cleans up too
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1  # set by torchrun
    try:
        if several:
            import torch

            from ..training import distributed

            distributed.start(device(args) if "device" in args else torch.device("cpu"))
        body(args)
        sys.stdout.flush()
        if several:
            distributed.leave()
    except UserError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        print("\ninterrupted; finished files are whole", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `script | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return fail(f"{error.strerror or error}: {error.filename or 'input or output'}")
    except MemoryError:
        return fail(OUT_OF_MEMORY)
    except RuntimeError as error:
        if "out of memory" in str(error) or "can't allocate" in str(error):  # of torch
            return fail(OUT_OF_MEMORY)
        if several and "peer" in str(error):
            return fail("another process of torchrun has ended; its own message says why")
        raise
    return 0


def fail(message: str) -> int:
    stream = sys.stderr
    if os.environ.get("RANK", "0") != "0":
        # Another process of torchrun, silenced by training.distributed.  The first has likely
        # failed in the same way, and then this one is ended before it repeats the line.
        time.sleep(2)
        stream = sys.__stderr__
    print("error: " + " ".join(message.split()), file=stream)
    return 1


# From the namespace of a parser to what the stages take. Nothing below this file knows of it.


def device(args: Namespace) -> "torch.device":
    """The torch device that the flags ask for."""
    import torch

    if args.no_cuda or args.device == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        rank, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if rank >= count:
            raise UserError(
                f"PyTorch finds {count} CUDA device{'s' if count > 1 else ''} here, too few for "
                "one in each process of torchrun; start fewer, or use --device cpu"
            )
        return torch.device("cuda", rank)
    if args.device == "cuda":
        raise UserError("--device cuda: PyTorch finds no CUDA device here; use --device cpu")
    return torch.device("cpu")


@contextmanager
def setting(args: Namespace) -> Iterator["Setting"]:
    """The net.pipeline.stages.Setting of a script; its log is closed at the end of the block."""
    from ..training import distributed
    from ..training.log import Log
    from .stages import Setting

    where = device(args)  # refuses one that is not there, before any file is made
    if "log_interval" not in args:  # a script that does not train
        yield Setting(where, Log(), args.test_batch_size)
        return
    path = args.log if distributed.is_writer() else None
    log = Log(path, args.log_interval, append=getattr(args, "resume", False))
    try:
        yield Setting(where, log, args.test_batch_size)
    finally:
        log.close()


def data_options(args: Namespace, trained_on: str | None = None) -> DataOptions:
    """`trained_on` is what --dataset auto stands for, where it is known."""
    found = options.changed_options(DataOptions(), vars(args))
    # With how its inputs were normalised, if by an option (net.training.datasets.NORMALISED).
    if trained_on and found.dataset in ("auto", trained_on.partition("(normalise=")[0]):
        return replace(found, dataset=trained_on)
    return found


def new_run(
    args: Namespace,
    setting: "Setting",
    folder: str | Path,
    arch: str | None = None,
    trained_on: str | None = None,
) -> "Run":
    """A net.pipeline.runs.Run in `folder`, of --arch, or of `arch` where a checkpoint names it.

    The data set gives --arch its classes and channels where the user has not."""
    from ..training import architectures
    from ..training.weights import is_published
    from .runs import Run, load_data

    weights = getattr(args, "weights", None)
    published = weights if weights and is_published(weights) else None
    described = arch or architectures.describe(
        args.arch, args.num_classes, args.in_channels, weights=published
    )
    dataset = load_data(described, data_options(args, trained_on), setting)
    if arch is None:
        described = architectures.describe(described, data=dataset)
    return Run(described, dataset, folder, setting)


def chosen(args: Namespace, run: "Run | None" = None) -> Preset:
    """--preset, adjusted to the architecture, with what the user gives in its place."""
    from .runs import teacher_for

    trained = bool(getattr(args, "weights", None))
    preset = options.preset(args.preset, run.arch if run else None, trained)
    preset = preset.with_options(**vars(args))
    if run is None:
        return preset
    return preset.with_options(teacher=teacher_for(preset.sharing.teacher, run.dataset))
