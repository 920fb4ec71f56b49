"""The stages with their files: what a script reads and writes, and how a killed run goes on."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from .. import checkpoint, choose, shards
from ..checkpoint import INITIAL, RETRAINED, TEACHER, Checkpoint
from ..errors import UserError
from ..extras import ProgressBar
from ..files import check_output, check_writable, locked
from ..parameters import resolve
from ..prune import prunable
from ..report.tables import plan_text, sharing_notes
from ..shared_tensor import Clustering
from ..sharing import SharedState
from ..tensors import memory
from ..training import architectures, datasets, distributed, weights
from ..training.log import Log
from ..training.resume import RunProgress, sharing_phases
from ..training.splits import Dataset
from . import choosing, duration, stages
from .options import (
    CommonOptions,
    DataOptions,
    Options,
    PruningOptions,
    SharingOptions,
    TrainingOptions,
)
from .stages import Runtime, Targets

PROGRESS, SHARING_PROGRESS = "progress.ptmodel", "sharing_progress.ptmodel"
MADE_FROM = "made_from"  # in the options of a checkpoint: which source it was shared from
DENSE = "dense"  # the teacher that is the dense model itself


class Run:
    """Stages on one architecture and one data set, with their files in one folder.

    Options may be "auto": each stage begins by choosing numbers (choosing.py), which its checkpoint
    records beside what was asked for. Raises UserError for what the user can mend.
    """

    def __init__(self, arch: str, dataset: Dataset, folder: str | Path, runtime: Runtime) -> None:
        self.arch, self.dataset, self.folder, self.runtime = arch, dataset, Path(folder), runtime
        self._targets: dict[tuple, Targets] = {}

    def announce(self, *planned: PruningOptions | SharingOptions) -> None:
        """Say about how long the training of these stages is going to take here."""
        stages, teacher = [self.numbers(options) for options in planned], None
        for options in planned:
            if isinstance(options, PruningOptions):
                self.check(options)
                named = options.teacher in ("none", DENSE, self.arch)
                teacher = None if named or is_file_name(options.teacher) else options.teacher
        device = self.runtime.device
        seconds, epochs = duration.expected(self.arch, self.dataset, stages, device, teacher)
        if epochs:
            text = f"{epochs} epochs of {len(self.dataset.train):,} inputs"
            told = {"event": "expected", "seconds": seconds, "epochs": epochs}
            self.runtime.log.result(
                f"training will take about {duration.text(seconds)}: {text}", **told
            )

    def prune(self, options: PruningOptions, resume: bool = False) -> Checkpoint:
        """Train, prune and retrain; write the initial and the retrained model, return the latter.

        With `resume` it goes on where a run of the same options was killed.
        """
        self.check(options)
        check_writable(self.folder)
        options = self.numbers(options)
        made_by = identity(self.arch, self.dataset.name, options.recorded())
        progress = RunProgress(self.folder / PROGRESS, made_by, resume)
        if resume and progress.record is None and (found := self.earlier(RETRAINED, options)):
            path = self.folder / RETRAINED
            self.runtime.log.result(f"{path}: finished already", event="finished")
            return found
        if progress.passed("train"):
            initial = checkpoint.load(self.folder / INITIAL)
        else:
            initial = self.train(options.training(), progress)
        learn_from = self.targets(options, initial, progress)
        if options.density == "auto":

            def search() -> float:
                model = stages.restored(initial, options.seed + 1, self.runtime.device)
                return choosing.density(model, self.dataset, options, self.runtime.log)

            options = replace(options, density=progress.once("density", search, "prune"))
        found = stages.prune(initial, self.dataset, options, self.runtime, learn_from, progress)
        write(self.folder / RETRAINED, found)
        progress.finish()
        return found

    def train(
        self,
        options: TrainingOptions,
        progress: RunProgress | None = None,
        teacher: str | None = None,
    ) -> Checkpoint:
        """Train a dense model and write it: the run's own, or one of the architecture `teacher`."""
        check_writable(self.folder)
        arch, phase = (teacher, "teacher") if teacher else (self.arch, "train")
        found = stages.train(arch, self.dataset, options, self.runtime, phase, progress)
        write(self.folder / (TEACHER if teacher else INITIAL), found)
        return found

    def initial(self, options: TrainingOptions) -> Checkpoint:
        """The dense model of an earlier run with these options, or else of one now."""
        options = self.numbers(options)
        return self.earlier(INITIAL, options) or self.train(options)

    def share(
        self,
        source: Checkpoint,
        options: SharingOptions,
        path: str | Path,
        resume: bool = False,
    ) -> tuple[Checkpoint, dict[str, Clustering]]:
        """Share the weights of `source`, and write the result to `path`.

        With `resume` it goes on where a run of the same options was killed; what became of each
        tensor is then told by the source and the result alone.
        """
        check_output(path)
        options = choosing.without_auto(self.numbers(options))
        made_by = identity(self.arch, self.dataset.name, options.recorded())
        made_by[MADE_FROM] = fingerprint(source)
        phases = sharing_phases(options.share_parts)
        progress = RunProgress(self.folder / SHARING_PROGRESS, made_by, resume, phases)
        if resume and progress.record is None and (found := self.shared(made_by, path)):
            self.runtime.log.result(f"{path}: finished already", event="finished")
            return found, changes(source, found)
        if options.bits == "auto" and options.noise == "auto":

            def search() -> float:
                model = stages.restored(source, options.seed + 2, self.runtime.device)
                return choosing.noise(model, self.dataset, options, self.runtime.log)

            options = replace(options, noise=progress.once("noise", search, phases[0]))
        learn_from = self.targets(options, source) if options.finetune_epochs else None
        found, clusterings = stages.share(
            source, self.dataset, options, self.runtime, learn_from, progress
        )
        found.options[MADE_FROM] = made_by[MADE_FROM]
        write(path, found)
        progress.finish()
        return found, changes(source, found) if progress.record else clusterings

    def shared(self, made_by: dict, path: str | Path) -> Checkpoint | None:
        """The model in the file `path`, if a run made it by these options of this source."""
        if not Path(path).exists():
            return None
        found = checkpoint.load(path)
        own = identity(found.arch, found.dataset, found.options)
        return found if all(own.get(name) == value for name, value in made_by.items()) else None

    def adopt(self, source: Checkpoint, path: str | Path) -> Checkpoint:
        """A state dict of the file `path`, as a checkpoint of this architecture."""
        found, notes = weights.adopted(source, path, self.arch)
        for note in notes:
            self.runtime.log.note(note)
        return replace(found, dataset=self.dataset.name)

    def targets(
        self, options: CommonOptions, source: Checkpoint, progress: RunProgress | None = None
    ) -> Targets:
        """What to learn from after dense training, made once for all stages that learn the same."""
        how = options.teacher_copies, options.temperature, options.distortion, options.seed
        key = (options.teacher, *how)
        if key not in self._targets:
            teacher = self.teacher(options, source, progress)
            self._targets[key] = stages.targets(self.dataset, options, self.runtime, teacher)
        return self._targets[key]

    def teacher(
        self, options: CommonOptions, source: Checkpoint, progress: RunProgress | None = None
    ) -> Checkpoint | None:
        """The stage that makes what `options.teacher` names: nothing, a file, the dense model (or
        `source`, where the folder has none), or a model of another architecture, which is trained
        unless the folder has it from an earlier run."""
        if options.teacher == "none":
            return None
        if is_file_name(options.teacher):
            return checkpoint.load(options.teacher)
        if options.teacher in (DENSE, self.arch):
            path = self.folder / INITIAL
            dense = checkpoint.load(path) if path.exists() else source
            own = (dense.arch, dense.dataset) == (self.arch, self.dataset.name)
            return dense if own else source
        # Sharing has no options to train one by: it takes what pruning has left.
        if not isinstance(options, PruningOptions):
            return checkpoint.load(self.folder / TEACHER)
        training = options.training()
        if found := self.earlier(TEACHER, training, options.teacher):
            return found
        if progress and progress.passed("teacher"):  # its file has been lost since
            progress = None
        return self.train(training, progress, options.teacher)

    def check(self, options: PruningOptions) -> None:
        """Find before hours of training what would stop the run after them. Raises UserError."""
        kinds = prunable(architectures.skeleton(self.arch), options.include, options.exclude)
        resolve(options.sensitivity, kinds)
        if isinstance(options.density, dict):
            resolve(options.density, kinds)
        if is_file_name(options.teacher):
            checkpoint.load(options.teacher)
        elif options.teacher not in ("none", DENSE):
            architectures.skeleton(options.teacher)

    def numbers(self, options: Options) -> Options:
        return choosing.schedules(options, self.dataset, self.runtime.device)

    def earlier(
        self, file: str, options: CommonOptions, arch: str | None = None
    ) -> Checkpoint | None:
        """The model in `file` of the folder, if it is of this data set and of these options."""
        path = self.folder / file
        if not path.exists():
            return None
        found = checkpoint.load(path)
        wanted = identity(arch or self.arch, self.dataset.name, options.recorded())
        return found if identity(found.arch, found.dataset, found.options) == wanted else None


def identity(arch: str | None, dataset: str | None, options: dict) -> dict:
    """What a model depends on: not what was chosen, which follows from it."""
    asked = {name: value for name, value in options.items() if name != "chosen"}
    return {"arch": arch, "dataset": dataset, **asked}


def fingerprint(source: Checkpoint) -> int:
    """The CRC-32 of all tensors."""
    found = 0
    for name in source.state_dict:
        elements = memory(source.state_dict[name])
        found = zlib.crc32(elements.data, zlib.crc32(name.encode(), found))
    return found


def changes(source: Checkpoint, shared: Checkpoint) -> dict[str, Clustering]:
    """What each tensor has become, of those with other values."""
    before, after = source.state_dict, shared.state_dict
    names = [n for n in weights.kinds_of(source) if not torch.equal(before[n], after[n])]
    return {name: Clustering.of(before[name], after[name]) for name in names}


def share_bare(
    source: Checkpoint, options: SharingOptions, path: str | Path, log: Log
) -> dict[str, Clustering]:
    """Share the weights of a state dict whose architecture is not known, and write the result:
    tensor by tensor into a .safetensors file, from memory into a .ptmodel file. Returns what each
    tensor has become."""
    check_output(path)
    if options.finetune_epochs:
        raise UserError(
            "a bare state dict can be shared, not fine-tuned: its architecture is not known; "
            "name it, or ask for no epochs"
        )
    if options.fold_norms:
        raise UserError(
            "what BatchNorm adds to a variance is not in a bare state dict, so that its statistics "
            "cannot be folded; name the architecture"
        )
    options = choosing.without_auto(options)
    if options.bits == "auto" and options.noise == "auto":
        noise = float(f"{choose.default_noise(source.state_dict):.3g}")
        options = replace(options, noise=noise)
        log.note(f"noise {noise:g}, by the shapes of the weights; more gives fewer bytes")
    config = choosing.config(options)
    state = SharedState(source.state_dict, config)
    plan = stages.texts_of(state.plan)
    log.table(plan_text(state.plan, state), event="plan", plan=plan)
    made_by = {"preset": options.preset, **vars(config), "plan": plan}
    shared = replace(source, state_dict=state, stage="weight_shared", options=made_by, metrics={})
    write(path, shared)
    for note in sharing_notes(state.plan, state.clusterings, state.rounded, state):
        log.note(note)
    return state.clusterings


@contextmanager
def alone(folder: str | Path) -> Iterator[None]:
    """No other run begins in `folder` during the block. Raises UserError where one is going on.

    Of several processes of torchrun the writer speaks for all."""
    if not distributed.is_writer():
        yield
        return
    with locked(folder):
        yield


def write(path: str | Path, model: Checkpoint) -> None:
    distributed.by_writer(lambda: write_model(path, model))


def write_model(path: str | Path, model: Checkpoint) -> int:
    """Write a .ptmodel file, or a .safetensors file tensor by tensor; return its bytes."""
    if Path(path).suffix != shards.SUFFIX:
        return checkpoint.save(path, model)
    state = model.state_dict
    infos = {name: shards.info_of(state, name) for name in state}
    bar = ProgressBar(state, "writing tensors")
    return shards.write(path, infos, (state[name] for name in bar), model.metadata())


def load_data(arch: str, options: DataOptions, runtime: Runtime) -> Dataset:
    """The data set that the user names, its inputs as the model takes them."""
    with distributed.writer_first():
        return datasets.load(
            options.dataset,
            options.data_dir,
            runtime.device,
            architectures.input_of(arch),
            options.val_fraction,
            options.skip_broken,
            options.normalise,
            runtime.log,
        )


def teacher_for(teacher: str, dataset: Dataset) -> str:
    """The teacher's architecture with the classes and channels of the data set."""
    if teacher in ("none", DENSE) or is_file_name(teacher):
        return teacher
    return architectures.describe(teacher, data=dataset)


def is_file_name(teacher: str) -> bool:
    return bool(Path(teacher).suffix) and ":" not in teacher  # package.module:factory
