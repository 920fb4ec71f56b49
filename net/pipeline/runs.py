"""The stages with their files: what a script reads and writes, and how a killed run goes on."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from .. import checkpoint, choose, shards
from ..checkpoint import INITIAL, RETRAINED, TEACHER, Checkpoint
from ..clustering import Clustering
from ..extras import ProgressBar
from ..files import check_output, check_writable, locked
from ..report.tables import plan_text, sharing_notes
from ..training import architectures, datasets, distributed, restore, weights
from ..training.log import Log
from ..training.resume import RunProgress
from ..training.splits import Dataset
from . import choosing, stages
from .options import (
    CommonOptions,
    DataOptions,
    Options,
    PruningOptions,
    SharingOptions,
    TrainingOptions,
)
from .stages import Runtime, Targets

PROGRESS = "progress.ptmodel"
DENSE = "dense"  # the teacher that is the dense model itself


class Run:
    """Stages on one architecture and one data set, with their files in one folder.

    Options may be "auto": each stage begins by choosing numbers (choosing.py), which its checkpoint
    records beside what was asked for. Raises UserError for what the user can mend.
    """

    def __init__(self, arch: str, dataset: Dataset, folder: str | Path, runtime: Runtime) -> None:
        self.arch, self.dataset, self.folder, self.runtime = arch, dataset, Path(folder), runtime
        self._targets: dict[tuple, Targets] = {}

    def prune(self, options: PruningOptions, resume: bool = False) -> Checkpoint:
        """Train, prune and retrain; write the initial and the retrained model, return the latter.

        With `resume` it goes on where a run of the same options was killed.
        """
        self.check(options)
        check_writable(self.folder)
        made_by = self._identity(self.arch, options)
        progress = RunProgress(self.folder / PROGRESS, made_by, resume)
        retrained = self.folder / RETRAINED
        if resume and progress.record is None and was_made_by(retrained, made_by):
            self.runtime.log.result(f"{retrained}: finished already", event="finished")
            return checkpoint.load(retrained)
        if progress.passed("train"):
            initial = checkpoint.load(self.folder / INITIAL)
        else:
            initial = self.train(options.training(), progress)
        teacher = self.teacher(options, initial, progress)
        chosen = self._numbers(options)
        if chosen.density == "auto":

            def search() -> float:
                torch.manual_seed(options.seed + 1)
                model = restore.restored(initial, self.runtime.device)
                return choosing.density(model, self.dataset, chosen, self.runtime.log)

            chosen = replace(chosen, density=progress.once("density", search))
        found = recorded(
            stages.prune(
                initial,
                self.dataset,
                chosen,
                self.runtime,
                self.targets(chosen, teacher),
                progress,
            ),
            options,
            chosen,
        )
        write(retrained, found)
        progress.finish()
        return found

    def train(
        self,
        options: TrainingOptions,
        progress: RunProgress | None = None,
        arch: str | None = None,
        phase: str = "train",
        file: str = INITIAL,
    ) -> Checkpoint:
        """Train a dense model, of the run's architecture unless `arch` is another, and write it."""
        check_writable(self.folder)
        chosen = self._numbers(options)
        made = stages.train(
            arch or self.arch, self.dataset, chosen, self.runtime, phase=phase, progress=progress
        )
        found = recorded(made, options, chosen)
        write(self.folder / file, found)
        return found

    def initial(self, options: TrainingOptions) -> Checkpoint:
        """The dense model of an earlier run with these options, or else of one now."""
        path = self.folder / INITIAL
        if was_made_by(path, self._identity(self.arch, options)):
            return checkpoint.load(path)
        return self.train(options)

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
            return self._dense() or source
        path = self.folder / TEACHER
        # Sharing has no options to train one by: it takes what pruning has left.
        if isinstance(options, PruningOptions):
            training = options.training()
            if not was_made_by(path, self._identity(options.teacher, training)):
                if progress and progress.passed("teacher"):  # its file has been lost since
                    progress = None
                return self.train(training, progress, options.teacher, "teacher", TEACHER)
        return checkpoint.load(path)

    def share(
        self, source: Checkpoint, options: SharingOptions, path: str | Path
    ) -> tuple[Checkpoint, dict[str, Clustering]]:
        """Share the weights of `source`, and write the result to `path`."""
        check_output(path)
        chosen = choosing.without_auto(self._numbers(options))
        if chosen.bits == "auto" and chosen.noise == "auto":
            torch.manual_seed(options.seed + 2)
            model = restore.restored(source, self.runtime.device)
            noise = choosing.noise(model, self.dataset, chosen, self.runtime.log)
            chosen = replace(chosen, noise=noise)
        shared, clusterings = stages.share(
            source,
            self.dataset,
            chosen,
            self.runtime,
            lambda: self.targets(chosen, self.teacher(chosen, source)),
        )
        shared = recorded(shared, options, chosen)
        write(path, shared)
        return shared, clusterings

    def adopt(self, source: Checkpoint, path: str | Path) -> Checkpoint:
        """A state dict of the file `path`, as a checkpoint of this architecture."""
        found, notes = weights.adopted(source, path, self.arch)
        for note in notes:
            self.runtime.log.note(note)
        return replace(found, dataset=self.dataset.name)

    def targets(self, options: CommonOptions, teacher: Checkpoint | None) -> Targets:
        """What to learn from after dense training, made once for all stages that learn the same."""
        key = (
            *(options.teacher, options.teacher_copies, options.temperature),
            *(options.distortion, options.seed),
        )
        if key not in self._targets:
            self._targets[key] = stages.targets(self.dataset, options, teacher, self.runtime)
        return self._targets[key]

    def _dense(self) -> Checkpoint | None:
        """The dense model of this architecture and data set in the folder, if that is there."""
        path = self.folder / INITIAL
        if not path.exists():
            return None
        found = checkpoint.load(path)
        return found if (found.arch, found.dataset) == (self.arch, self.dataset.name) else None

    def check(self, options: PruningOptions) -> None:
        """Find before hours of training what would stop the run after them. Raises UserError."""
        stages.check_patterns(options, architectures.skeleton(self.arch))
        if is_file_name(options.teacher):
            checkpoint.load(options.teacher)
        elif options.teacher not in ("none", DENSE):
            architectures.skeleton(options.teacher)

    def _numbers(self, options: Options) -> Options:
        return choosing.schedules(options, self.dataset, self.runtime.device)

    def _identity(self, arch: str, options: CommonOptions) -> dict:
        return {"arch": arch, "dataset": self.dataset.name, **options.recorded()}


def share_bare(
    source: Checkpoint, options: SharingOptions, path: str | Path, log: Log
) -> tuple[Checkpoint, dict[str, Clustering]]:
    """Share the weights of a state dict whose architecture is not known, and write the result:
    tensor by tensor into a .safetensors file, from memory into a .ptmodel file."""
    check_output(path)
    options = choosing.without_auto(options)
    if options.bits == "auto" and options.noise == "auto":
        noise = float(f"{choose.default_noise(source.state_dict):.3g}")
        options = replace(options, noise=noise)
        log.note(f"noise {noise:g}, by the shapes of the weights; more gives fewer bytes")
    shared, state = stages.share_bare(source, options)
    log.table(plan_text(state.plan, state), event="plan", plan=shared.options["plan"])
    write(path, shared)
    for note in sharing_notes(state.plan, state.clusterings, state.rounded, state):
        log.note(note)
    return shared, state.clusterings


def recorded(model: Checkpoint, asked: CommonOptions, chosen: CommonOptions) -> Checkpoint:
    """`model` with the options that were asked for, and under "chosen" the numbers that differ."""
    options = asked.recorded()
    numbers = {k: v for k, v in chosen.recorded().items() if v != options[k]}
    plan = {k: v for k, v in model.options.items() if k == "plan"}
    return replace(model, options=options | {"chosen": numbers} | plan)


@contextmanager
def alone(folder: str | Path) -> Iterator[None]:
    """No other run begins in `folder` during the block. Raises UserError where one is going on.

    Of several processes of torchrun the writer speaks for all."""
    if not distributed.is_writer():
        yield
        return
    with locked(folder):
        yield


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


def was_made_by(path: Path, made_by: dict) -> bool:
    """Whether the checkpoint at `path` exists and is of this architecture, data and options."""
    if not path.exists():
        return False
    found = checkpoint.load(path)
    options = {name: value for name, value in found.options.items() if name != "chosen"}
    return {"arch": found.arch, "dataset": found.dataset, **options} == made_by


def write(path: str | Path, model: Checkpoint) -> None:
    distributed.by_writer(lambda: write_model(path, model))
