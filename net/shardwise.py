"""A folder of weight files into a folder of .dc files, one for each, by one process or by several.

    torchrun --nproc-per-node 8 -m net compress FOLDER -o OUT

Each process reads and writes a share of the files, on any machine that sees both folders. What
depends on all tensors is agreed in between: what becomes of each (net.plan), and the mean that
steps depend on (net.rounding). So the files are the same bytes whatever the number of processes.
An index, written last, makes them one encoding (net.container.InShards). A run that was killed
leaves its finished files, which the next one knows by what they were made of.
"""

import hashlib
import json
import os
import re
import secrets
from collections import ChainMap
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch

from . import __version__, choose, encoding, formats, layouts, unfinished
from .budget import Estimate, bytes_as_they_are, fitting, told
from .container import INDEX, MAGIC
from .encoding import EncodingError
from .errors import UserError
from .files import atomic_write, checksum, locked, sync_folder
from .plan import plan
from .processes import Processes
from .results import Result, Shared, Tell, nothing_shared, write
from .rounding import Spread, spreads_of, steps
from .shared_tensor import Clustering
from .sharing import SharedState
from .state_dicts import Renamed
from .tensors import info_of, memory, tie_of
from .treatments import ByRate, Exact, SharingConfig, Treatment, felt_in, treated

LONGEST = timedelta(hours=6)  # for which a process waits for others, whose share takes longer
TEMPORARY = re.compile(r"\.[0-9a-f]{12}(\.\w+)*\.tmp")  # what killed processes leave
MADE_OF = "made_of"  # in the meta data of a file: a digest of all that decides its bytes
UNSEEN = "the files are compressed one by one, and the model is never in memory"
NOT_COMMON = (
    "the processes do not see the same files in {} and {}: both must be on a file system that all "
    "machines have in common"
)


@dataclass(frozen=True)
class Shard:
    """A file of weights: its line of the layout, its tensors, and the file that is made of it."""

    line: dict
    names: list[str]
    bytes: int  # of the tensors
    target: Path


class Surveyed(NamedTuple):
    """What all processes have to know of the share of one."""

    digests: dict[str, str]  # by the names of the files to be: of the tensors of each
    plan: dict[str, Treatment]
    spreads: dict[str, Spread]  # of the tensors that are shared by rate


class Done(NamedTuple):
    """What one process has made of its share, as of net.sharing.SharedState, and the bytes of its
    files."""

    clusterings: dict[str, Clustering]
    rounded: dict[str, float]
    sizes: dict[str, int]


def compress(
    path: str | Path,
    target: str | Path,
    config: SharingConfig,
    noise: float | None = None,
    max_bytes: int | None = None,
    lossless: bool = False,
    key: str | None = None,
    tell: Tell = lambda *_: None,
) -> Result:
    """Compress the folder of a model at `path` into the folder `target`, together with all other
    processes of torch.distributed, which call the same; return the same Result in all of them.

    `config` has the patterns. A `noise` of None is net.choose.default_noise, or with `max_bytes`,
    of all files together, the least at which they are no more (net.budget). Files that an earlier
    run with the same arguments has finished stay: the plan, clusterings and `rounded` of the result
    are of the others. Raises UserError in the first process, and Told in the others, for what
    cannot be read or written, for more processes than files, for folders that not all of them see,
    for another model in `target`, and for a budget that cannot be kept. Nothing is waited for for
    longer than LONGEST.
    """
    job, is_new = _Job(Path(path), Path(target), config, key, tell), not os.path.lexists(target)
    try:
        return job.run(noise, max_bytes, lossless)
    except UserError:
        if is_new and job.is_first:
            with suppress(OSError):  # only what is empty
                job.target.rmdir()
        raise


class _Job:
    """One call of `compress` in one process. All processes run its steps at the same time; each
    step gives what the others have to know of it, and knows what the steps before gave."""

    def __init__(
        self, path: Path, target: Path, config: SharingConfig, key: str | None, tell: Tell
    ) -> None:
        self.path, self.target, self.config, self.key = path, target, config, key
        self.tell = tell
        self.processes = Processes(LONGEST)
        self.is_first = self.processes.rank == 0

    def run(self, noise: float | None, max_bytes: int | None, lossless: bool) -> Result:
        gather = self.processes.gather
        self.lossless = lossless
        self.options = [repr(self.config), noise, max_bytes, lossless]
        self.left: list[Shard] = []
        self.done: list[Done] = []
        with ExitStack() as self.held:  # a lock on the target, by the first
            self.met = gather(self.meet)
            self.surveyed = gather(self.survey)
            gather(self.agree)
            [(self.there, whole), *_] = gather(self.find)
            before = set(self.there)
            exact = all(each.how == Exact.how for each in self.plan.values())
            if whole:
                self.noise = json.loads(next(iter(self.there.values()))[0])
            elif lossless or exact:
                self.notes += [] if lossless else [nothing_shared(self.plan)]
                size = self.make(None)
                if max_bytes is not None and size > max_bytes:
                    self.refuse(max_bytes, size)
            elif max_bytes is not None:
                self.within(max_bytes)
            else:
                self.make(choose.default_noise(self.state) if noise is None else noise)
            gather(self.write_index)
        again = {name for shard in self.left for name in shard.names}
        kept = [each for each in self.shards if each not in self.left]
        finished = sum(each.target.name in before for each in kept)
        if finished:
            self.notes.append(f"{finished} of {len(self.shards)} files were finished before")
        return Result(
            self.target,
            self.bytes,
            sum(shard.bytes for shard in self.shards),
            self.noise,
            None,
            unseen=UNSEEN if self.noise is not None else "",
            notes=self.notes,
            plan={name: each for name, each in self.plan.items() if name in again},
            clusterings=dict(ChainMap(*(each.clusterings for each in self.done))),
            rounded=dict(ChainMap(*(each.rounded for each in self.done))),
        )

    @property
    def bytes(self) -> int:
        return len(self.index) + sum(size for _, size in self.there.values())

    def meet(self) -> tuple[list, str]:
        """Find what there is to do: (what this process sees; what the first has put into the
        target, for the others to see)."""
        if not os.path.isdir(self.path) and not formats.is_index(self.path):
            formats.weights_file(self.path)  # raises where there is nothing
            raise UserError(f"{self.path} is one file; give an output that ends in .dc")
        folder = self.path if os.path.isdir(self.path) else self.path.parent
        if folder.resolve() in (self.target.resolve(), *self.target.resolve().parents):
            raise UserError(f"{self.target} is in the folder of the model; give another place")
        self.state, self.layout, self.files = layouts.read(self.path, self.key)
        self.notes: list[str] = self.layout.pop("notes", [])
        self.shards = list(self.divided())
        token = self.target / f".{secrets.token_hex(6)}.tmp"
        if self.is_first:
            self.held.enter_context(locked(self.target))
            self.clean()
            self.held.callback(token.unlink, missing_ok=True)
            with unfinished.changing:
                unfinished.add(token)
                self.held.callback(unfinished.discard, token)
                token.touch()
        return [self.layout, [shard.bytes for shard in self.shards]], token.name

    def divided(self) -> Iterator[Shard]:
        names, lines = iter(self.state), self.layout["weights"]
        seen: set[Hashable] = set()
        for number, line in enumerate(lines, 1):
            own = [next(names) for _ in range(line["tensors"])]
            new = {tie_of(self.state, name): name for name in own}  # of tied ones one
            size = sum(info_of(self.state, new[tie]).bytes for tie in new.keys() - seen)
            seen |= new.keys()
            file = f"model-{number:05}-of-{len(lines):05}.dc"
            yield Shard(line, own, size, self.target / file)

    def clean(self) -> None:
        """Remove what killed processes have left. UserError for files of somebody else."""
        known = {shard.target.name for shard in self.shards} | {INDEX}
        for file in self.target.iterdir():
            if TEMPORARY.fullmatch(file.name):
                file.unlink(missing_ok=True)
            elif file.name not in known and not file.name.startswith("."):
                raise UserError(
                    f"{self.target} holds other files, as {file.name}; give a new folder, or the "
                    "one of an earlier run with the same arguments"
                )

    def survey(self) -> Surveyed:
        """Look at the own share of the tensors."""
        seen, [token, *_] = zip(*self.met, strict=True)
        if any(each != seen[0] for each in seen) or not (self.target / token).exists():
            raise UserError(NOT_COMMON.format(self.path, self.target))
        if self.processes.count > len(self.shards):
            raise UserError(
                f"{self.processes.count} processes for {len(self.shards)} files of weights, so "
                f"that some have none; start at most {len(self.shards)}"
            )
        own = self.share(self.shards)
        digests = {shard.target.name: self.digest(shard) for shard in own}
        if self.lossless:
            return Surveyed(digests, {}, {})
        names = [name for shard in own for name in shard.names]
        found = plan(self.state, self.config, names)
        return Surveyed(digests, found, spreads_of(self.state, treated(found, ByRate.how)))

    def share(self, shards: Sequence[Shard]) -> list[Shard]:
        """The share of this process: the largest first, each to whom has the least."""
        loads, found = [0] * self.processes.count, []
        for shard in sorted(shards, key=lambda shard: -shard.bytes):
            least = loads.index(min(loads))
            loads[least] += shard.bytes
            found += [shard] if least == self.processes.rank else []
        return found

    def digest(self, shard: Shard) -> str:
        found = hashlib.sha256()
        for done, name in enumerate(shard.names):
            self.tell(f"{shard.line['path']}: reading", done, len(shard.names))
            tensor = self.state[name]
            found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
            found.update(memory(tensor).data)
        return found.hexdigest()

    def agree(self) -> None:
        """Put together what all processes have found."""
        digests, plans, spreads = map(ChainMap, *self.surveyed)
        # In the order of the tensors, on which the last digits of a sum depend.
        self.plan = {name: plans[name] for name in self.state if name in plans}
        self.spreads = {name: spreads[name] for name in self.plan if name in spreads}
        made_of = [__version__, MAGIC.hex(), self.layout, self.options]
        made_of += [digests[shard.target.name] for shard in self.shards]
        self.keys = {
            shard.target.name: hashlib.sha256(
                json.dumps([made_of, number, self.beside(shard)]).encode()
            ).hexdigest()
            for number, shard in enumerate(self.shards)
        }
        index = {
            "metadata": {"total_size": sum(shard.bytes for shard in self.shards)},
            "weight_map": {n: shard.target.name for shard in self.shards for n in shard.names},
        }
        self.index = json.dumps(index, indent=2).encode()

    def beside(self, shard: Shard) -> list:
        """What the first file holds beside its tensors."""
        files = self.files if shard is self.shards[0] else {}
        return [[name, *checksum(path)] for name, path in files.items()]

    def find(self) -> tuple[dict[str, tuple[str, int]], bool]:
        """({file: (its noise, its bytes)} of those that were made of the same, with the same
        options; whether that is all of them), as the first process finds it before any is made.
        UserError for a whole encoding of something else."""
        found: dict[str, tuple[str, int]] = {}
        is_named = (self.target / INDEX).exists()
        for shard in self.shards if self.is_first else ():
            try:
                made_of = str(encoding.open(shard.target).meta.get(MADE_OF))
            except EncodingError:
                continue
            key, _, noise = made_of.partition(" ")
            if key == self.keys[shard.target.name]:
                found[shard.target.name] = noise, shard.target.stat().st_size
            elif is_named:
                raise UserError(
                    f"{self.target} holds another model, or what other options made; give a new "
                    "folder"
                )
        noises = {noise for noise, _ in found.values()}
        return found, is_named and len(found) == len(self.shards) and len(noises) == 1

    def make(self, noise: float | None) -> int:
        """Make the files that are not there, with this noise; return the bytes of all."""
        self.noise = noise
        own = json.dumps(noise)
        self.left = [s for s in self.shards if self.there.get(s.target.name, ("",))[0] != own]
        self.done = self.processes.gather(self.encode)
        sizes = ChainMap(*(each.sizes for each in self.done))
        self.there |= {file: (own, size) for file, size in sizes.items()}
        return self.bytes

    def within(self, most: int) -> None:
        gather, shares = self.processes.gather, self.share(self.shards)
        own = [n for shard in shares for n in shard.names if not self.plan[n].tied]
        without_loss = sum(gather(lambda: bytes_as_they_are(self.state, own, most)))
        if without_loss <= most and self.make(None) <= most:
            self.notes.append("it fits without loss")
            return
        units = steps(self.spreads, 1.0, felt=felt_in(self.plan))
        estimates = {
            shard.target.name: Estimate(
                self.state, {n: units[n] for n in shard.names if n in units}
            )
            for shard in shares
        }

        def estimated(noise: float) -> float:
            sizes = gather(lambda: {file: each.bytes(noise) for file, each in estimates.items()})
            every = ChainMap(*sizes)  # in the order of the files, as above
            return sum(every[shard.target.name] for shard in self.shards)

        fit = fitting(most, estimated, self.make)
        if fit.noise is None:
            self.refuse(most, fit.bytes)
        self.notes += told(fit, most)
        self.make(fit.noise)  # where another was tried since

    def refuse(self, most: int, size: int) -> None:
        for shard in self.shards if self.is_first else ():
            shard.target.unlink(missing_ok=True)
        self.processes.fail(f"{most:,} bytes cannot be had: the smallest is {size:,}")

    def encode(self) -> Done:
        state: Mapping[str, torch.Tensor] = self.state
        done = Done({}, {}, {})
        if self.noise is not None:
            config = replace(self.config, noise=self.noise)
            state = SharedState(self.state, config, survey=(self.plan, self.spreads))
            done = Done(state.clusterings, state.rounded, {})
        for shard in self.share(self.left):
            file = shard.target.name

            def tell(what: str, done: int, total: int, file: str = file) -> None:
                self.tell(f"{file}: {what}", done, total)

            files = self.files if shard is self.shards[0] else {}
            own = Renamed(state, {name: name for name in shard.names})
            shared = Shared(own, self.noise, {}, done.clusterings)
            layout = self.layout | {"weights": [shard.line]}
            made_of = {MADE_OF: f"{self.keys[file]} {json.dumps(self.noise)}"}
            done.sizes[file] = write(shared, shard.target, files, layout, tell, made_of)
        return done

    def write_index(self) -> None:
        if self.is_first:
            with atomic_write(self.target / INDEX) as file:
                file.write(self.index)
            sync_folder(self.target)
