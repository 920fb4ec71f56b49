"""A model into one file: by a budget of bytes, by how far its outputs may move, or by a noise.

    result = net.compress(model_or_path, "model.dc", max_bytes=2_000_000)
    print(result)

One number decides: the noise in the weights (net.rounding). More of it, fewer bytes and other
outputs; both are measured, neither is predicted. docs/python.md has every way to choose it.
"""

import glob
import math
import os
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import replace
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import choose, encoding, outputs
from .blocks import OnDisk, Skeleton
from .budget import NOISES, Estimate, bytes_as_they_are, fitting, told
from .checkpoint import copied as copied_state
from .conflicts import conflict
from .container import SUFFIX
from .encoding import TooLarge
from .errors import UserError
from .files import check_output, same_directory, same_file
from .limits import free_memory
from .modules import check_not_scripted, evaluating, only_tensors, unwrapped
from .modules import copied as copied_model
from .outputs import Moved, Subject, Unseen
from .parameters import Patterns, bias_of, listed, matches
from .plan import plan
from .results import Counted, Result, Shared, Tell, nothing_shared, write
from .rounding import Spread, cast, spreads_of, steps
from .samples import Samples
from .sharing import SharedState, WeightSharing
from .state_dicts import Renamed
from .tensors import TensorMap, check_packed, check_shaped, info_of, tie_of
from .treatments import (
    NOT_MEASURED,
    ByRate,
    Exact,
    SharingConfig,
    Treatment,
    felt_in,
    treated,
)

# What is promised by default where a model can be run: nats of logits, 1 - cosine of all outputs.
# A divergence of .02 is half a point of error (choose.PER_POINT).
DIVERGENCE, TURNED = 0.02, 0.005
FINEST = 0.01  # where outputs decide: they hardly feel less
# With inputs that have nothing to do with what the network is for, no more than a network gets
# whose outputs nobody has seen, twice: two photographs, or a manual, are not all that it may see.
TRUSTED = 2.0
SHOWN = 3  # names in an error
# Of a model in float32, that calibration has in memory; and what they may take of what is free.
COPIES, PART_OF_MEMORY = 4, 0.5

Evaluate = Callable[[nn.Module], float]


@torch.inference_mode(False)  # in which nothing can be written in other threads
def compress(
    model: nn.Module | Mapping[str, torch.Tensor] | str | Path,
    target: str | Path,
    *,
    max_bytes: int | None = None,
    noise: float | None = None,
    max_divergence: float | None = None,
    lossless: bool = False,
    inputs: Any = None,
    evaluate: Evaluate | None = None,
    tolerance: float | None = None,
    include: Patterns | None = None,
    exclude: Patterns = (),
    key: str | None = None,
    module: Callable[[Mapping[str, torch.Tensor]], nn.Module] | None = None,
    blockwise: bool | None = None,
    about: str = "",
    tell: Tell = lambda *_: None,
) -> Result:
    """Compress `model`, a module, a state dict or the path of a saved one, into `target` (.dc).

    A target of another name, for a folder of weights, is a folder with a .dc file for each file of
    these, by as many processes as there are (net.shardwise), with a noise or without loss.

    What decides how much is lost, one of these:
        max_bytes: the least noise at which the whole file is no larger, and at least 98 % as large
            unless a bound is met, which a note says.
        max_divergence: the most noise at which logits move by no more nats on average.
        evaluate, tolerance: the most noise at which the figure `evaluate(model)` moves by no more
            than `tolerance`, up or down. Without a tolerance the figure is only told.
        noise: the width of steps in standard deviations of the weights.
        lossless: nothing is lost.
        None of these: where the outputs can be seen, the most noise at which they move by no more
            than DIVERGENCE nats (logits) and 1 - cosine TURNED (all outputs); where they cannot,
            what net.choose.default_noise says.

    inputs: of the model, as of WeightSharing's `calibration`; half of them are calibrated on, the
        others judge. A folder of Hugging Face's, and a network of images, is run with built-in ones
        where there are none (net.outputs).
    include, exclude: patterns over names (net.parameters).
    key: of a state dict in a file of several.
    module: for a path that is no folder of Hugging Face's, what makes a module of its state dict.
    blockwise: whether a folder of Hugging Face's is run with one of its repeated blocks in memory
        at a time (net.blocks), which comes to the same. None: if there are such blocks, nothing to
        `evaluate`, and the whole model would take over half of the free memory.
    about: what `inputs` are, for the report.
    tell: is called with (what is being done, steps done, steps).

    The model stays as it is. Raises ValueError for options out of range or without effect, and
    UserError for what cannot be read, run or written, and for a budget that cannot be kept.
    """
    options: dict[str, Any] = {
        "max_bytes": max_bytes,
        "noise": noise,
        "max_divergence": max_divergence,
    }
    for name, value in (options | {"tolerance": tolerance}).items():
        number = isinstance(value, Real) and not isinstance(value, bool)
        if value is not None and not (number and 0 < value < math.inf):
            raise ValueError(f"{name} must be a positive number, not {value!r}")
    if blockwise and (evaluate or module or isinstance(model, nn.Module | Mapping)):
        raise ValueError("blockwise is for a folder that transformers loads, and not with evaluate")
    why = conflict(
        **options, lossless=lossless, inputs=inputs, evaluate=evaluate, tolerance=tolerance,
        include=include, exclude=exclude, arch=module, one_file=Path(target).suffix == SUFFIX,
        called=lambda name: "module" if name == "arch" else name,
    )  # fmt: skip
    if why:
        raise ValueError(why)
    target, config = Path(target), SharingConfig("auto", include=include, exclude=exclude)
    if target.suffix != SUFFIX:
        if isinstance(model, nn.Module | Mapping):
            raise ValueError(f"{target} must end in {SUFFIX}")
        from . import shardwise

        return shardwise.compress(model, target, config, noise, max_bytes, lossless, key, tell)
    check_output(target)  # refused before any work
    source = _Source(model, key, config)
    for path in source.read_from():
        if same_file(path, target):
            raise UserError(f"{target} is a file of the model, {path}; give another name")
    work = _Work(source, target, tell)
    as_it_is = Shared(source.state)
    if lossless:
        return work.finish(as_it_is)
    if source.stays_exact():
        work.notes.append(nothing_shared(source.plan))
        size = work.save(as_it_is, None if max_bytes is None else int(max_bytes))
        return work.finish(as_it_is, size)
    work.look(inputs, about, module, evaluate, blockwise)
    if max_divergence is not None and (work.subject is None or not work.subject.before.logits):
        raise UserError(
            f"max_divergence cannot be kept: {work.unseen or 'the outputs are no logits'}"
        )
    if tolerance is not None and work.figure is None:
        raise UserError(f"tolerance cannot be kept: {work.unseen}")
    if tolerance is not None and not math.isfinite(work.figure or 0.0):
        raise UserError(f"tolerance cannot be kept: evaluate gives {work.figure} as it is")
    if max_bytes is not None:
        return work.within(max_bytes)
    if noise is None:
        noise = work.chosen(max_divergence, tolerance)
    return work.finish(source.shared(noise, work.subject))


class _Source:
    """The tensors that are compressed, whatever they came in."""

    def __init__(
        self,
        model: nn.Module | Mapping[str, torch.Tensor] | str | Path,
        key: str | None,
        config: SharingConfig,
    ) -> None:
        self.config = config
        self.module = unwrapped(model) if isinstance(model, nn.Module) else None
        if self.module is not None:
            check_not_scripted(self.module)
        self.path = None if isinstance(model, nn.Module | Mapping) else Path(model)
        self.layout: dict = {}
        self.files: Mapping[str, Path] = {}
        self.state: Mapping[str, torch.Tensor]
        if self.module is not None:
            own = self.module.state_dict()
            for name, value in own.items():
                check_packed(name, value)
            self.state = copied_state(only_tensors(own))
            if beside := [name for name in own if name not in self.state]:
                text = f"no tensors, and not in the file: {', '.join(beside[:SHOWN])}"
                self.layout["notes"] = [text]
        elif isinstance(model, Mapping):
            for name, value in model.items() if isinstance(model, dict) else ():
                if not isinstance(value, torch.Tensor):
                    raise UserError(f"{name!r} is no tensor but a {type(value).__name__}; drop it")
                check_shaped(name, value)
            self.state = model
        else:
            from . import layouts

            assert self.path is not None
            self.state, self.layout, self.files = layouts.read(self.path, key)
        self.notes: list[str] = list(self.layout.pop("notes", ()))
        names = {tie_of(self.state, name): name for name in self.state}.values()  # each once
        self.dense_bytes = sum(info_of(self.state, name).bytes for name in names)

    def read_from(self) -> list[Path]:
        """The files that are compressed, or some of them."""
        if self.path is None or os.path.isfile(self.path):
            return [self.path] if self.path else []
        return [
            *(self.path / line["path"] for line in self.layout["weights"]),
            *self.files.values(),
        ]

    def stays_exact(self) -> bool:
        """Whether there is nothing that a noise would change."""
        return all(each.how == Exact.how for each in self.plan.values())

    @cached_property
    def plan(self) -> dict[str, Treatment]:
        """What becomes of every tensor, at any noise; made once, since it reads them all."""
        if self.module is not None:
            return plan(self.module, self.config)
        return SharedState(self.state, self.config).plan

    @cached_property
    def spreads(self) -> dict[str, Spread]:
        return spreads_of(self.state, treated(self.plan, ByRate.how))

    def fits_memory(self) -> bool:
        """Whether a module of these tensors, and its copies, take no more than a part of what is
        free; True where the system does not say what that is."""
        values = sum(math.prod(info_of(self.state, name).shape) for name in self.state)
        return 4 * values * COPIES <= PART_OF_MEMORY * free_memory()

    def shared(self, noise: float, subject: Subject | None) -> Shared:
        """With calibration where the subject has inputs for it; tensors of a file are shared as
        they are asked for."""
        config = replace(self.config, noise=noise)
        inputs = subject.calibration if subject else None
        if subject and subject.skeleton and inputs:
            return self.by_blocks(config, subject.skeleton, inputs)
        if self.module is not None and inputs is not None:
            model = copied_model(self.module)
            sharing = self.calibrated(model, config, inputs)
            found = sharing.plan, sharing.clusterings, sharing.rounded
            return Shared(only_tensors(model.state_dict()), noise, *found)
        rest = SharedState(self.state, config, survey=(self.plan, self.spreads))
        if subject is None or inputs is None:
            return Shared(rest, noise, rest.plan, rest.clusterings, rest.rounded)
        model = copied_model(subject.model)
        sharing = self.calibrated(model, self.in_model(config, subject.names), inputs)

        def renamed(found: Mapping[str, Any]) -> dict[str, Any]:
            return {subject.names[name]: found[name] for name in found if name in subject.names}

        state = _Calibrated(rest, renamed(model.state_dict()))
        plan = {**rest.plan, **renamed(sharing.plan)}
        # What the model has not is shared as it is read, and told there.
        rest.clusterings |= renamed(sharing.clusterings)
        rest.rounded |= renamed(sharing.rounded)
        return Shared(state, noise, plan, rest.clusterings, rest.rounded)

    def in_model(self, config: SharingConfig, names: Mapping[str, str]) -> SharingConfig:
        """The same with the tensors that its patterns mean in the file, by their names in a model:
        {name in the model: name in the file}."""
        kinds = {name: each.kind or "" for name, each in self.plan.items()}
        biases = {bias_of(name) for name, kind in kinds.items() if kind}  # follow their weights

        def meant(patterns: Patterns, leave: Collection[str] = ()) -> tuple[str, ...]:
            return tuple(
                glob.escape(name)
                for name, other in names.items()
                if other in kinds.keys() - leave
                and any(matches(other, kinds[other], each) for each in listed(patterns))
            )

        exact = {name for name, each in self.plan.items() if each.how == Exact.how}
        include = None if config.include is None else meant(config.include, exact | biases)
        return replace(config, include=include, exclude=meant(config.exclude))

    def by_blocks(self, config: SharingConfig, skeleton: Skeleton, inputs: Samples) -> Shared:
        """With calibration of one block at a time; what comes of it is on the disk."""
        from .calibration import calibrate_passages
        from .sensitivity import known_traces

        names = treated(self.plan, ByRate.how)
        own = {name: skeleton.names[name] for name, _ in skeleton.model.named_parameters()}
        own = {name: other for name, other in own.items() if other in names}
        kinds = {name: self.plan[other].kind for name, other in own.items()}
        traces, unmeasured = known_traces(lambda: skeleton.passage(self.state), inputs, own)
        if unmeasured:
            self.note(NOT_MEASURED.format(unmeasured))
        self.note("the model is calibrated block by block")
        traces = {own[name]: each for name, each in traces.items()}
        found = steps(self.spreads, config.noise, traces, felt_in(self.plan))
        own_steps = {name: found[other] for name, other in own.items()}
        exact, work, on_disk = skeleton.passage(self.state), skeleton.passage(self.state), OnDisk()
        calibrate_passages(exact, work, inputs, kinds, own_steps, set(own), on_disk)
        calibrated = Renamed(on_disk, {other: name for name, other in own.items()})
        survey = self.plan, self.spreads
        state = SharedState(self.state, config, survey=survey, calibrated=calibrated)
        return Shared(state, config.noise, state.plan, state.clusterings, state.rounded)

    def note(self, text: str) -> None:
        self.notes += [text] if text not in self.notes else []

    def calibrated(self, model: nn.Module, config: SharingConfig, inputs: Any) -> WeightSharing:
        sharing = WeightSharing(model, config, calibration=inputs, final=True)
        if sharing.unmeasured:
            self.note(NOT_MEASURED.format(sharing.unmeasured))
        return sharing


class _Calibrated(TensorMap):
    """The tensors of a file, those that were calibrated in a model in their place."""

    def __init__(self, rest: SharedState, own: Mapping[str, torch.Tensor]) -> None:
        self.rest = self._named = rest
        self.own = {rest.tie(name): tensor for name, tensor in own.items()}

    def tie(self, name: str) -> Hashable:
        """Equal for the names of one tensor (net.tensors.tie_of)."""
        return self.rest.tie(name)

    def __getitem__(self, name: str) -> torch.Tensor:
        own = self.own.get(self.tie(name))
        return self.rest[name] if own is None else cast(own, self.rest.info(name).dtype)


class _Work:
    """One call of `compress`, once its source is read."""

    def __init__(self, source: _Source, target: Path, tell: Tell) -> None:
        self.source, self.target, self.tell = source, target, tell
        self.subject: Subject | None = None
        self.unseen = ""
        self.evaluate: Evaluate | None = None
        self.figure: float | None = None
        self.notes = source.notes

    # Looking

    def look(
        self,
        inputs: Any,
        about: str,
        module: Callable[[Mapping[str, torch.Tensor]], nn.Module] | None,
        evaluate: Evaluate | None,
        blockwise: bool | None,
    ) -> None:
        """Find out how the model can be run, and what it answers now."""
        source = self.source
        self.tell("looking at the outputs", 0, 1)
        try:
            if source.module is not None:
                self.subject = outputs.of_module(source.module, inputs, about)
            elif module is not None:
                with same_directory():
                    model = module(source.state)
                names = outputs.names_by_value(model, source.state)
                self.subject = outputs.of_module(model, inputs, about, names)
            else:
                if source.path is None:
                    raise Unseen("it is a state dict without its architecture")
                if blockwise is None and (evaluate or source.fits_memory()):
                    blockwise = False
                path, state = source.path, source.state
                self.subject = outputs.of_folder(path, state, inputs, about, blockwise)
        except Unseen as error:
            if inputs is not None:  # which the user wants to be used
                raise
            self.unseen = str(error)
        except ValueError as error:  # of what calibration does not take
            raise UserError(str(error)) from None
        if evaluate is not None:
            own = self.subject.model if self.subject else source.module
            if own is None:
                raise UserError(f"evaluate has nothing to run: {self.unseen}")
            model = evaluating(copied_model(own))
            try:
                with outputs.own_weights(own, model):
                    self.evaluate, self.figure = evaluate, _figure(evaluate, model)
            except Unseen:
                self.notes.append(
                    "evaluate computes with weights of the model itself: unless it compares with "
                    "that, a function is in the place of a method (torch.compile(model.forward), a "
                    "closure), and what it gives says nothing of other weights"
                )
        self.tell("looking at the outputs", 1, 1)

    def evaluated(self, state: Mapping[str, torch.Tensor]) -> float:
        assert self.evaluate is not None
        if self.subject:
            return _figure(self.evaluate, evaluating(self.subject.changed(state)))
        assert self.source.module is not None
        names = {name: name for name in self.source.state}
        model = outputs.with_tensors(self.source.module, state, names)
        return _figure(self.evaluate, evaluating(model))

    # Choosing

    def chosen(self, max_divergence: float | None, tolerance: float | None) -> float:
        """The noise that keeps what was asked for, or what is promised by default."""
        safe = choose.default_noise(self.source.state)
        if tolerance is None and self.subject is None:
            return safe
        finest, coarsest = FINEST, NOISES[1]
        by_default = max_divergence is None and tolerance is None
        few = self.subject is not None and self.subject.calibration is None
        if by_default and few:
            coarsest = TRUSTED * safe

        def excess(noise: float) -> float:
            """What the outputs move by, over what they may; above 1 it is too far."""
            state = self.source.shared(noise, self.subject).state
            counted: Mapping[str, torch.Tensor] = Counted(state, f"noise {noise:.3g}", self.tell)
            # What shares as it is read, but for one block at a time, is read once.
            by_blocks = self.subject and self.subject.skeleton
            state = counted if by_blocks else {name: counted[name] for name in counted}
            if tolerance is not None:
                assert self.figure is not None
                found = abs(self.evaluated(state) - self.figure) / tolerance
                return found if math.isfinite(found) else math.inf
            assert self.subject is not None
            found = _excess(self.subject.moved(state), max_divergence)
            return found * (self.subject.margin if by_default else 1.0)

        if self.subject and self.subject.margin > 1:
            self.notes.append(
                f"{self.subject.about} judge: on other images the outputs may move "
                f"{self.subject.margin:g} times as far; inputs of your own tell more"
            )
        # The most that may be is tried first: often nothing has to be looked for.
        if by_default and excess(coarsest) <= 1:
            if few:
                which = (
                    "one input is" if self.subject and self.subject.own else "built-in inputs are"
                )
                self.notes.append(
                    f"noise {coarsest:.3g} is the most that {which} trusted with; more inputs of "
                    "your own may allow more"
                )
            return coarsest
        found = choose.farthest(finest, coarsest, excess, 1.0)
        if math.isnan(found.divergence):
            if not by_default:
                raise UserError(
                    f"even a noise of {finest:g} moves the outputs farther than that; compress "
                    "without loss, or allow more"
                )
            self.notes.append(f"even a noise of {finest:g} moves the outputs farther than promised")
        elif found.value * 1.1 > coarsest:
            self.notes.append(f"noise {found.value:.3g} is the most that is tried")
        return found.value

    # Writing

    def save(self, shared: Shared, most: int | None = None) -> int:
        """Write the file; TooLarge, and nothing is written, if it would have more bytes than
        `most`."""
        source = self.source
        return write(shared, self.target, source.files, source.layout, self.tell, most=most)

    def finish(self, shared: Shared, size: int | None = None) -> Result:
        """The result of what is written, or is to be."""
        size = self.save(shared) if size is None else size
        moved = measured = None
        if shared.noise is not None:
            self.tell("looking at the outputs", 0, 1)
            state: Mapping[str, torch.Tensor] = {}
            if self.subject and self.subject.skeleton:
                state = encoding.open(self.target)
            elif self.subject or self.evaluate:
                state = encoding.load(self.target)[0]
            moved = self.subject.moved(state) if self.subject else None
            if self.figure is not None:
                measured = self.figure, self.evaluated(state)
            self.tell("looking at the outputs", 1, 1)
        return Result(
            self.target,
            size,
            self.source.dense_bytes,
            shared.noise,
            moved,
            self.subject.about if self.subject else "",
            self.unseen if shared.noise is not None else "",
            measured,
            self.notes,
            shared.plan,
            shared.clusterings,
            shared.rounded,
        )

    def within(self, most: int) -> Result:
        """By the least noise at which the file has no more bytes than `most`."""
        source = self.source
        names = [name for name, each in source.plan.items() if not each.tied]
        spare = 64 * len(source.plan)
        if bytes_as_they_are(source.state, names, most + spare) <= most + spare:
            try:
                size = self.save(Shared(source.state), most)
                self.notes.append("it fits without loss")
                return self.finish(Shared(source.state), size)
            except TooLarge:
                pass
        units = steps(source.spreads, 1.0, felt=felt_in(source.plan))
        best: list[Shared] = []

        def encoded(noise: float) -> int:
            shared = source.shared(noise, self.subject)
            try:
                size = self.save(shared, most)
            except TooLarge as error:
                return error.bytes
            best[:] = [shared]
            return size

        fit = fitting(most, Estimate(source.state, units).bytes, encoded)
        if not best:
            raise UserError(self.too_small(most, fit.bytes))
        self.notes += told(fit, most)
        return self.finish(best[0], fit.bytes)

    def too_small(self, most: int, smallest: int) -> str:
        state, plan = self.source.state, self.source.plan
        exact = {
            name: info_of(state, name).bytes
            for name, each in plan.items()
            if each.how == Exact.how and not each.tied
        }
        largest = sorted(exact, key=lambda name: -exact[name])[:SHOWN]
        beside = sum(os.path.getsize(path) for path in self.source.files.values())
        helps = ["prune and retrain it first"]
        if beside > 0.05 * smallest:
            helps.append(f"leave out some of the {beside:,} bytes of files beside the weights")
        if sum(exact.values()) > 0.05 * smallest:
            helps.append(
                f"include some of what stays exact ({sum(exact.values()):,} bytes: "
                f"{', '.join(largest)})"
            )
        return (
            f"{most:,} bytes cannot be had: the smallest is {smallest:,}, at a noise of "
            f"{NOISES[1]:g}, at which little is left of the outputs; {', or '.join(helps)}"
        )


def _figure(evaluate: Callable[[nn.Module], float], model: nn.Module) -> float:
    with same_directory():
        figure: Any = evaluate(model)
    try:
        return float(figure)
    except (TypeError, ValueError, RuntimeError):  # of a tensor of several
        raise ValueError(f"evaluate must give a number, not a {type(figure).__name__}") from None


def _excess(moved: Moved, max_divergence: float | None) -> float:
    if max_divergence is not None:
        assert moved.divergence is not None
        return moved.divergence / max_divergence
    return max((moved.divergence or 0.0) / DIVERGENCE, (1 - moved.cosine) / TURNED)
