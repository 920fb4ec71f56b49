"""The whole of Deep Compression: train, prune, share, encode, decode, compare.

    python deep_compressing.py
    python deep_compressing.py --dataset digits
    deep-compression --dataset digits      # where the package is installed

The same as pruning.py, weight_share.py, huffman_encode.py, huffman_decode.py
and compare_stages.py one after the other, in one process.  Writes the models of
all stages into saves/, the encoded model into encodings/, and the comparison as
a picture into saves/comparison.png unless --plot names another file.
"""

from argparse import Namespace
from collections.abc import Sequence

from . import arguments, cli, process, sharing_arguments


def parser() -> arguments.Parser:
    parser = arguments.Parser(__doc__)
    arguments.add_preset(parser)
    arguments.add_output_folder(parser)
    arguments.add_directory(parser)
    arguments.add_training(parser)
    arguments.add_pruning(parser)
    sharing_arguments.add_sharing(parser)
    arguments.add_budget(parser)
    arguments.add_comparison(parser)
    arguments.add_log(parser)
    arguments.add_common(parser)
    return parser


def body(args: Namespace) -> None:
    from pathlib import Path

    from .. import checkpoint
    from ..files import check_writable
    from ..report import comparison, plots, tables
    from ..training import distributed
    from . import stages

    output = Path(args.output)
    cli.device(args)  # refuses a device that is not there, before any folder is made
    # An hour of training must not end in "permission denied".
    for folder in (output, args.directory, *(Path(f).parent for f in (args.json, args.csv) if f)):
        check_writable(folder)
    plot = args.plot
    if plot or plots.available():
        plots.require()
        plot = plot or output / "comparison.png"
    else:  # nobody asked for it by name: no reason to fail
        plots.note_missing(output / "comparison.png")
    with cli.setting(args) as setting:
        run = cli.new_run(args, setting, output)
        options = cli.chosen(args, run)
        retrained = run.prune(options.pruning, args.resume)
        shared, clusterings = run.share(retrained, options.sharing, output / checkpoint.SHARED)
    if not distributed.leave():
        return
    print(tables.sharing_table(clusterings))
    encoded = stages.encode(shared, args.directory)
    print(tables.encoding_text(encoded))
    decoded = stages.decode(args.directory)
    checkpoint.save(output / checkpoint.DECODED, decoded)
    found = comparison.read(output, args.directory, (decoded.state_dict, encoded.tensors))
    figures = comparison.compare(found, run.dataset, setting.device, setting.test_batch_size)
    if args.latency:
        figures["latency"] = comparison.latency(found, run.dataset)
    comparison.show(figures, args.json, args.csv, plot)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(parser(), body, argv)


def command() -> int:
    """The installed command: `main` in a process of its own."""
    process.start()
    return main()
