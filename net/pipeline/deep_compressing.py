"""The whole of Deep Compression: train, prune, share, encode, decode, compare.

    python deep_compressing.py
    python deep_compressing.py --dataset digits
    deep-compression pipeline --dataset digits      # where it is installed

The same as pruning.py, weight_share.py, huffman_encode.py, huffman_decode.py
and compare_stages.py one after the other, in one process.  Writes the models of
all stages into saves/, the encoded model into encodings/, and the comparison as
a picture into saves/comparison.png unless --plot names another file.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from . import cli
from .fields import Parser, built, declared
from .options import ModelOptions, PruningOptions, ReportOptions, SharingOptions
from .presets import defaults

HIDDEN = ("include", "exclude", "csv", "latency", "log")


def parser() -> Parser:
    parser = Parser(__doc__)
    cli.add_preset(parser)
    cli.add_folders(parser)
    add_pruning(parser)
    own = [name for name in declared(SharingOptions) if name not in declared(PruningOptions)]
    parser.add_fields("weight sharing", SharingOptions, only=own, defaults=defaults)
    parser.add_fields("comparison", ReportOptions, hide=HIDDEN)
    cli.add_common(parser, hide=HIDDEN)
    return parser


def add_pruning(parser: Parser) -> None:
    title = "training, pruning, retraining"
    known = {"arch": cli.DEFAULT_ARCH}
    parser.add_fields("model", ModelOptions, defaults=lambda name: known.get(name, "none"))
    parser.add_fields(title, PruningOptions, defaults=defaults, hide=HIDDEN)
    cli.add_resume(parser)


def body(args: Namespace) -> None:
    from .. import checkpoint, container
    from ..files import check_output, check_writable
    from ..report import comparison, names, plots, tables
    from ..training import distributed
    from . import stages

    shown, output = built(args, ReportOptions), Path(args.output)
    with cli.runtime(args, output) as runtime:
        # An hour of training must not end in "permission denied".
        check_writable(output)
        one_file = args.directory.endswith(container.SUFFIX)
        (check_output if one_file else check_writable)(args.directory)
        for file in (shown.json, *(names.csv_names(shown.csv) if shown.csv else ()), shown.plot):
            if file:
                check_output(file)
        plot: Path | str | None = shown.plot or output / "comparison.png"
        if shown.plot:
            plots.require()
        elif not plots.available():  # nobody asked for it by name: no reason to fail
            print(f"note: {plot} is not drawn: matplotlib is not installed", file=sys.stderr)
            plot = None
        run = cli.new_run(args, runtime, output)
        options = cli.chosen(args, run)
        run.announce(options.pruning, options.sharing)
        if not args.resume:
            run.forget()
        retrained = run.prune(options.pruning, args.resume)
        path = output / checkpoint.SHARED
        shared, clusterings = run.share(retrained, options.sharing, path, args.resume)
        if not distributed.leave():
            return
        print(tables.sharing_table(clusterings))
        print(tables.encoding_text(stages.encode(shared, args.directory)))
        checkpoint.save(output / checkpoint.DECODED, stages.decode(args.directory))
        found = comparison.read(output, args.directory, made_by=cli.MADE_BY)
        figures = comparison.compare(found, run.dataset, runtime.device, runtime.test_batch_size)
        if shown.latency:
            figures["latency"] = comparison.latency(found, run.dataset)
        comparison.show(figures, shown.json, shown.csv, plot)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(parser(), body, argv)
