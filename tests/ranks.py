"""One of several processes that torchrun starts: the pipeline up to weight sharing.

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
    from net.pipeline import stages

    with stages.open_log(args) as log:
        dataset = stages.load_data(args)
        retrained = stages.run_pruning(args, log, dataset)
        path = Path(args.output) / stages.SHARED
        shared = stages.run_sharing(retrained, args, log, path, dataset)
    digest = hashlib.sha256()
    for tensor in (*retrained.state_dict.values(), *shared.state_dict.values()):
        digest.update(tensor.numpy().tobytes())
    Path(args.output, f"rank-{os.environ['RANK']}").write_text(digest.hexdigest())


if __name__ == "__main__":
    sys.exit(cli.run(deep_compressing.parser(), body))
