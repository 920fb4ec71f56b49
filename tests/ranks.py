"""One of several processes, as torchrun starts them: the pipeline up to weight sharing.

Writes a digest of its own final model into FOLDER/rank-N, to be compared with the others'.
"""

import hashlib
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import deep_compressing
from net.pipeline import cli


def body(args) -> None:
    from net import checkpoint

    with cli.runtime(args) as runtime:
        run = cli.new_run(args, runtime, args.output)
        options = cli.chosen(args, run)
        retrained = run.prune(options.pruning)
        path = Path(args.output) / checkpoint.SHARED
        shared, _ = run.share(retrained, options.sharing, path)
    digest = hashlib.sha256()
    for tensor in (*retrained.state_dict.values(), *shared.state_dict.values()):
        digest.update(tensor.numpy().tobytes())
    Path(args.output, f"rank-{os.environ['RANK']}").write_text(digest.hexdigest())


def main(argv=None) -> int:
    return cli.run(deep_compressing.parser(), body, argv)


if __name__ == "__main__":
    sys.exit(main())
