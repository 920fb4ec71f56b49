"""The stages with their files: what a script reads and writes, and how a killed run goes on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from .. import checkpoint, choose, shards
from ..checkpoint import (
    DECODED,
    INITIAL,
    MADE_FROM,
    RETRAINED,
    SHARED,
    STAGE_FILES,
    TEACHER,
    Checkpoint,
    fingerprint,
)
from ..errors import UserError
from ..extras import ProgressBar
from ..files import check_output, check_writable, locked, same_file
from ..parameters import compressible, resolve
from ..prune import nothing_to_prune, prunable
from ..report.tables import plan_text, sharing_notes
from ..shared_tensor import Clustering
from ..sharing import SharedState
from ..tensors import info_of
from ..training import architectures, datasets, distributed, weights
from ..training.log import Log
from ..training.resume import (
    START_AGAIN,
    TAUGHT_BY,
    WEIGHTS,
    RunProgress,
    same_run,
    sharing_phases,
)
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
DATA = "data"  # in the options of a checkpoint: the fingerprint of the data set
DENSE = "dense"  # the teacher that is the dense model itself


class Run:
    """Stages on one architecture and one data set, with their files in one folder.

    Options may be "auto": each stage begins by choosing numbers (choosing.py), which its checkpoint
    records beside what was asked for. Raises UserError for what the user can mend.
    """

    def __init__(self, arch: str, dataset: Dataset, folder: str | Path, runtime: Runtime) -> None:
        self.arch, self.dataset, self.folder, self.runtime = arch, dataset, Path(folder), runtime
        self.folders = [self.folder]  # in which other models may be that this run learns from
        self._targets: dict[tuple, Targets] = {}
        self._sums: dict[str, int | None] = {}

    def announce(self, *planned: PruningOptions | SharingOptions) -> None:
        """Say about how long the training of these stages is going to take here."""
        numbered, teacher = [self.numbers(options) for options in planned], None
        for options in planned:
            self.check(options)
            self.try_out(options)
            if len(planned) > 1:  # of the whole pipeline
                self.check_overwrites(options, SHARED, DECODED)
            if isinstance(options, PruningOptions):
                self.check_overwrites(options, INITIAL, RETRAINED)
                named = options.teacher in ("none", DENSE, self.arch)
                teacher = None if named or is_file_name(options.teacher) else options.teacher
        device = self.runtime.device
        seconds, epochs = duration.expected(self.arch, self.dataset, numbered, device, teacher)
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
        self.check_overwrites(options, INITIAL, RETRAINED)
        check_writable(self.folder)
        options = self.numbers(options)
        made_by = self.made_by(options)
        progress = RunProgress(self.folder / PROGRESS, made_by, resume)
        path = self.folder / RETRAINED
        if resume and progress.record is None and (found := self.finished(path, made_by)):
            return found
        if progress.passed("train"):
            initial = checkpoint.load(self.folder / INITIAL)
            own = fingerprint(initial)
            if progress.found.get("initial", own) != own:  # of another run since, or a scan
                raise UserError(
                    f"{self.folder / INITIAL} is not the one of the run that was killed; "
                    f"{START_AGAIN}"
                )
        else:
            initial = self.train(options.training(), progress)
            progress.found["initial"] = fingerprint(initial)
        learn_from = self.targets(options, initial, progress)
        if options.density == "auto":

            def search() -> float:
                model = stages.restored(initial, options.seed + 1, self.runtime.device)
                return choosing.density(model, self.dataset, options, self.runtime.log)

            options = replace(options, density=progress.once("density", search, "prune"))
        found = stages.prune(initial, self.dataset, options, self.runtime, learn_from, progress)
        found.options |= self.sums(options)
        write(path, found)
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
        found.options |= self.sums(options)
        write(self.folder / (TEACHER if teacher else INITIAL), found)
        return found

    def initial(self, options: TrainingOptions) -> Checkpoint:
        """The dense model of an earlier run with these options, or else of one now."""
        self.check_overwrites(options, INITIAL)
        options = self.numbers(options)
        return earlier(self.folder / INITIAL, self.made_by(options)) or self.train(options)

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
        self.check_overwrites(options, path)
        options = choosing.without_auto(self.numbers(options))
        made_by = self.made_by(options) | {MADE_FROM: fingerprint(source)}
        if options.finetune_epochs and not is_file_name(options.teacher):
            teacher = self._known(options.teacher)  # which may be another by then, or gone
            made_by[TAUGHT_BY] = fingerprint(teacher) if teacher else None
        phases = sharing_phases(options.share_parts)
        progress = RunProgress(self.folder / SHARING_PROGRESS, made_by, resume, phases)
        if resume and progress.record is None and (found := self.finished(path, made_by)):
            return found, changes(source, found)
        if options.bits == "auto" and options.noise == "auto":

            def search() -> float:
                model = stages.restored(source, options.seed + 2, self.runtime.device)
                architectures.check_fits(model, self.arch, self.dataset)
                return choosing.noise(model, self.dataset, options, self.runtime.log)

            options = replace(options, noise=progress.once("noise", search, phases[0]))
        learn_from = self.targets(options, source) if options.finetune_epochs else None
        found, clusterings = stages.share(
            source, self.dataset, options, self.runtime, learn_from, progress
        )
        own = {what: made_by[what] for what in (MADE_FROM, TAUGHT_BY) if what in made_by}
        found.options |= self.sums(options) | own
        write(path, found)
        progress.finish()
        return found, changes(source, found) if progress.record else clusterings

    def adopt(self, source: Checkpoint, path: str | Path) -> Checkpoint:
        """A state dict of the file `path`, as a checkpoint of this architecture."""
        return replace(weights.adopted(source, path, self.arch), dataset=self.dataset.name)

    def targets(
        self, options: CommonOptions, source: Checkpoint, progress: RunProgress | None = None
    ) -> Targets:
        """What to learn from after dense training, made once for all stages that learn the same."""
        how = options.teacher_copies, options.temperature, options.distortion, options.seed
        key = (options.teacher, *how, options.amp)
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
            if found := self._known(options.teacher):
                return found
            if source.stage not in (None, "initial"):
                self.runtime.log.note(
                    f"there is no dense {self.arch} in {self.folder}/, so that the model learns "
                    "from itself, as it is before"
                )
            return source
        # Sharing has no options to train one by: it takes what pruning has left.
        if not isinstance(options, PruningOptions):
            if found := self._known(options.teacher):
                return found
            raise UserError(
                f"there is no teacher {options.teacher} in {self.folder}/; run pruning.py with "
                "that teacher, or name a .ptmodel file"
            )
        training = options.training()
        made_by = self.made_by(training, options.teacher)
        if found := earlier(self.folder / TEACHER, made_by):
            return found
        if progress and progress.passed("teacher"):  # its file has been lost since
            progress = None
        return self.train(training, progress, options.teacher)

    def _known(self, teacher: str) -> Checkpoint | None:
        """The teacher of that name in the folders: the dense model, or one of another architecture
        that pruning has trained."""
        if teacher in (DENSE, self.arch):
            return self._beside(INITIAL, self.arch)
        return self._beside(TEACHER, teacher)

    def _beside(self, file: str, arch: str) -> Checkpoint | None:
        """The model of this architecture, trained on this data set, in a file of the folders."""
        for path in (folder / file for folder in self.folders):
            if path.exists():
                found = checkpoint.load(path)
                if (found.arch, found.dataset) == (arch, self.dataset.name):
                    return found
        return None

    def check(self, options: PruningOptions | SharingOptions) -> None:
        """Find before hours of training what would stop the run after them. Raises UserError."""
        model = architectures.skeleton(self.arch)
        if isinstance(options, PruningOptions):
            kinds = prunable(model, options.include, options.exclude)
            if not kinds:
                raise UserError(nothing_to_prune(model, options.include, options.exclude))
            resolve(options.sensitivity, kinds)
            if isinstance(options.density, dict):
                resolve(options.density, kinds)
        else:
            kinds = compressible(model, options.include, options.exclude)
            resolve(options.bits, kinds)
            resolve(choosing.without_auto(self.numbers(options)).bias_bits, kinds)
        if is_file_name(options.teacher):
            if checkpoint.load(options.teacher).arch is None:
                raise UserError(f"{options.teacher} does not say its architecture: no teacher")
        elif isinstance(options, PruningOptions) and options.teacher not in ("none", DENSE):
            architectures.skeleton(options.teacher)

    def try_out(self, options: PruningOptions | SharingOptions) -> None:
        """The same, of what takes a run of the model, or of its teacher, to be seen."""
        if ":" in self.arch and duration.parts(self.arch, options):
            model = architectures.skeleton(self.arch)
            architectures.check_trains(model, self.arch, self.dataset)
        if options.teacher not in ("none", DENSE, self.arch):
            device = self.runtime.device
            if is_file_name(options.teacher):
                file = checkpoint.load(options.teacher)
                arch, teacher = file.arch or "", weights.restored(file, device)
            else:
                arch, teacher = options.teacher, architectures.build(options.teacher).to(device)
            own = architectures.build(self.arch).to(device)
            outputs = [
                architectures.check_fits(model, name, self.dataset)
                for name, model in ((arch, teacher), (self.arch, own))
            ]
            if len(set(outputs)) > 1:
                both = f"{options.teacher} has {outputs[0]} outputs, {self.arch} has {outputs[1]}"
                raise UserError(f"{both}: one cannot learn from the other")

    def check_overwrites(self, options: CommonOptions, *written: str | Path) -> None:
        """Raises UserError where a file that is to be written, of the folder or a whole path, is
        the teacher, or the weights that a run begins with (which it may write again where it does
        not train them)."""
        begins_with, epochs = getattr(options, "weights", None), getattr(options, "epochs", 0)
        read = {"teacher": options.teacher if is_file_name(options.teacher) else None}
        read["model"] = None if begins_with and weights.is_published(begins_with) else begins_with
        for what, source in read.items():
            for file in written:
                path = self.folder / file if file in STAGE_FILES.values() else file
                again = what == "model" and file == INITIAL and not epochs
                if source and not again and same_file(path, source):
                    raise UserError(
                        f"the {what} {source} is a file that this run writes; copy it, or give "
                        "another --output"
                    )

    def finished(self, path: str | Path, made_by: dict) -> Checkpoint | None:
        """What an earlier run has made, where there is nothing left to go on with; tells so, or
        that a model of another run will be replaced."""
        found = earlier(path, made_by)
        if found:
            self.runtime.log.result(f"{path}: finished already", event="finished")
        elif os.path.exists(path):
            why = "is of another model, data or options"
            if Path(path).suffix == shards.SUFFIX:
                why = "does not say what made it"
            self.runtime.log.note(f"--resume: {path} {why}; this run begins anew, and replaces it")
        return found

    def forget(self) -> None:
        """Drop what a killed run has left: this one begins anew."""
        if distributed.is_writer():
            for name in (PROGRESS, SHARING_PROGRESS):
                (self.folder / name).unlink(missing_ok=True)

    def numbers(self, options: Options) -> Options:
        return choosing.schedules(options, self.dataset, self.runtime.device)

    def made_by(self, options: CommonOptions, arch: str | None = None) -> dict:
        """What identifies a run of these options here, and what it makes."""
        recorded = options.recorded() | self.sums(options)
        return identity(arch or self.arch, self.dataset.name, recorded)

    def sums(self, options: CommonOptions) -> dict[str, int | None]:
        """Of the contents that names stand for: None where a file has gone, and of others that of
        the tensors alone, which a run may have written again with other things beside them."""
        found: dict[str, int | None] = {DATA: self.dataset.fingerprint}
        asked = options.asked or options
        named = {WEIGHTS: getattr(asked, "weights", None), TAUGHT_BY: asked.teacher}
        if not is_file_name(asked.teacher):
            named[TAUGHT_BY] = None
        for what, file in named.items():
            if file and not weights.is_published(file):
                if file not in self._sums:  # which may take a while
                    there = os.path.exists(file)
                    self._sums[file] = fingerprint(checkpoint.load(file)) if there else None
                found[what] = self._sums[file]
        return found


def identity(arch: str | None, dataset: str | None, options: dict) -> dict:
    """What a model depends on: not what was chosen, which follows from it."""
    asked = {name: value for name, value in options.items() if name != "chosen"}
    return {"arch": arch, "dataset": dataset, **asked}


def earlier(path: str | Path, made_by: dict) -> Checkpoint | None:
    """The model in the file `path`, if a run made it by these options (Run.made_by)."""
    if not Path(path).exists():
        return None
    found = checkpoint.load(path)
    own = identity(found.arch, found.dataset, found.options)
    return found if same_run({name: own.get(name) for name in made_by}, made_by) else None


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
    with locked(folder) if distributed.is_writer() else nullcontext():
        yield


def write(path: str | Path, model: Checkpoint) -> None:
    distributed.by_writer(lambda: write_model(path, model))


def write_model(path: str | Path, model: Checkpoint) -> int:
    """Write a .ptmodel file, or a .safetensors file tensor by tensor; return its bytes."""
    if Path(path).suffix != shards.SUFFIX:
        return checkpoint.save(path, model)
    state = model.state_dict
    infos = {name: info_of(state, name) for name in state}
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
