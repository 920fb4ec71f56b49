"""The stages with their files: what a script reads and writes, and how a killed run goes on."""

from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from .. import checkpoint, shards
from ..checkpoint import INITIAL, RETRAINED, TEACHER, Checkpoint
from ..clustering import Clustering
from ..files import check_writable
from ..training import architectures, datasets, distributed, weights
from ..training.resume import RunProgress
from ..training.splits import Dataset
from . import stages
from .options import CommonOptions, DataOptions, PruningOptions, SharingOptions, TrainingOptions
from .stages import Lessons, Setting

PROGRESS = "progress.ptmodel"
DENSE = "dense"  # the teacher that is the dense model itself


class Run:
    """Stages on one architecture and one data set, with their files in one folder.

    Raises UserError from every method for what the user can mend.
    """

    def __init__(self, arch: str, dataset: Dataset, folder: str | Path, setting: Setting) -> None:
        self.arch, self.dataset, self.folder, self.setting = arch, dataset, Path(folder), setting
        self._lessons: dict[tuple, Lessons] = {}

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
            self.setting.log.result(f"{retrained}: finished already", event="finished")
            return checkpoint.load(retrained)
        if progress.passed("train"):
            initial = checkpoint.load(self.folder / INITIAL)
        else:
            initial = self.train(options.training(), progress)
        found = stages.prune(
            *(initial, self.dataset, options, self.setting),
            self.lessons(options, initial, progress),
            progress,
        )
        write(retrained, found)
        progress.finish()
        return found

    def train(self, options: TrainingOptions, progress: RunProgress | None = None) -> Checkpoint:
        """Train the dense model, and write it."""
        check_writable(self.folder)
        initial = stages.train(self.arch, self.dataset, options, self.setting, progress=progress)
        write(self.folder / INITIAL, initial)
        return initial

    def initial(self, options: TrainingOptions) -> Checkpoint:
        """The dense model of an earlier run with these options, or else of one now."""
        path = self.folder / INITIAL
        if was_made_by(path, self._identity(self.arch, options)):
            return checkpoint.load(path)
        return self.train(options)

    def share(
        self, source: Checkpoint, options: SharingOptions, path: str | Path
    ) -> tuple[Checkpoint, dict[str, Clustering]]:
        """Share the weights of `source`, and write the result to `path`."""
        check_writable(Path(path).parent)
        shared, clusterings = stages.share(
            *(source, self.dataset, options, self.setting), lambda: self.lessons(options, source)
        )
        write(path, shared)
        return shared, clusterings

    def adopt(self, path: str | Path) -> Checkpoint:
        """A state dict that somebody else has saved, as a checkpoint of this architecture."""
        found, notes = weights.adopted(path, self.arch)
        for note in notes:
            self.setting.log.note(note)
        return replace(found, dataset=self.dataset.name)

    def lessons(
        self, options: CommonOptions, source: Checkpoint, progress: RunProgress | None = None
    ) -> Lessons:
        """What to learn from after dense training, made once for all stages that learn the same.

        `source` is what the stage begins with, its own teacher if there is no dense model."""
        key = (
            *(options.teacher, options.teacher_copies, options.temperature),
            *(options.distortion, options.seed),
        )
        if key not in self._lessons:
            teacher = self._teacher(options, source, progress)
            self._lessons[key] = stages.lessons(self.dataset, options, teacher, self.setting)
        return self._lessons[key]

    def _teacher(
        self, options: CommonOptions, source: Checkpoint, progress: RunProgress | None
    ) -> Checkpoint | None:
        """The model that options.teacher names: a file, the dense model itself, or one of another
        architecture, which is trained first unless the folder has it from an earlier run."""
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
                trained = stages.train(
                    *(options.teacher, self.dataset, training, self.setting, "teacher", progress)
                )
                write(path, trained)
        return checkpoint.load(path)

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

    def _identity(self, arch: str, options: CommonOptions) -> dict:
        return {"arch": arch, "dataset": self.dataset.name, **options.recorded()}


def share_bare(
    source: Checkpoint, options: SharingOptions, path: str | Path
) -> tuple[Checkpoint, dict[str, Clustering]]:
    """Share the weights of a state dict whose architecture is not known, and write the result:
    tensor by tensor into a .safetensors file, from memory into a .ptmodel file."""
    check_writable(Path(path).parent)
    shared, clusterings = stages.share_bare(source, options)
    write(path, shared)
    return shared, clusterings


def write_model(path: str | Path, model: Checkpoint) -> int:
    """Write a .ptmodel file, or a .safetensors file tensor by tensor; return its bytes."""
    if Path(path).suffix != shards.SUFFIX:
        return checkpoint.save(path, model)
    state = model.state_dict
    infos = {name: shards.info_of(state, name) for name in state}
    bar = tqdm(state, "writing tensors", leave=False, disable=None)
    return shards.write(path, infos, (state[name] for name in bar))


def load_data(arch: str, options: DataOptions, setting: Setting) -> Dataset:
    """The data set that the user names, its inputs as the model takes them."""
    with distributed.writer_first():
        return datasets.load(
            *(options.dataset, options.data_dir, setting.device, architectures.input_of(arch)),
            *(options.val_fraction, options.skip_broken, options.normalise, setting.log),
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
    return {"arch": found.arch, "dataset": found.dataset, **found.options} == made_by


def write(path: str | Path, model: Checkpoint) -> None:
    distributed.by_writer(lambda: write_model(path, model))
