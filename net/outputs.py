"""A look at what a model answers: before its weights are changed, and after.

A module is run with inputs of the user's, or with some that every installation has: photographs of
scikit-learn's, and what Python's own library says of itself. Of logits the divergence is told, of
all outputs the cosine and the relative error. Labels are not needed.
"""

import copy
import importlib
import importlib.util
import inspect
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .activations import Foreign
from .blocks import NoBlocks, OnDisk, Passage, Skeleton, without_parameters
from .choose import divergence
from .errors import UserError, first_line
from .modules import copied, evaluating, only_tensors
from .samples import Call, Labelled, Samples, first_that_runs
from .sharded import is_sharded
from .tensors import is_computed

PHOTOGRAPHS = 48  # crops of scikit-learn's two
# Outputs of a MobileNetV2 move that much farther on small photographs of other things.
FEW_PHOTOGRAPHS = 2.0
TEXTS, TOKENS = 48, 64
MODULES = ("argparse", "json", "pathlib", "random", "statistics", "textwrap")  # of which they tell
SHORTEST, LONGEST = 60, 400  # characters of a text
BATCH = 16
CHUNK = 1 << 20  # outputs that are compared at a time
ROWS = 2048  # of outputs that are compared: a language model has one for each token
ELEMENTS = 1 << 27  # of these: half a gigabyte
MOST_OTHERS = 8  # outputs beside the one that is judged first
USUAL_SIZE = 224  # of photographs for a network that does not say what it takes
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what most networks are trained with
TRANSFORMERS = "transformers"
OWN = "inputs of your own"
CONFIG = "config.json"


class Unseen(UserError):
    """Why nobody can look at the outputs, and what to do about it."""


class Moved(NamedTuple):
    """How far outputs are from those of before. Means over all inputs that judge."""

    cosine: float  # of one figure for each input at most 1 - relative_error**2 / 2
    relative_error: float  # norm of the change over that of the outputs before
    divergence: float | None  # nats; None for what are no logits

    def __str__(self) -> str:
        nats = "" if self.divergence is None else f"divergence {self.divergence:.4f} nats, "
        return f"{nats}cosine {self.cosine:.4f}, relative error {self.relative_error:.2%}"


class Answers(NamedTuple):
    """What is judged first among a model's outputs, float32 [rows, width], and the others, too."""

    rows: torch.Tensor
    logits: bool
    others: tuple[torch.Tensor, ...] = ()

    @property
    def every(self) -> tuple[torch.Tensor, ...]:
        return self.rows, *self.others

    def moved(self, before: "Answers") -> Moved:
        """The divergence of the first, the cosine and the error of the one that moves farthest;
        others are left out that were not finite, or have another shape now."""
        first = self._moved(before)
        pairs = zip(self.others, before.others, strict=False)
        every = [first] + [
            Answers(new, False)._moved(Answers(old, False))
            for new, old in pairs
            if new.shape == old.shape and bool(old.isfinite().all())
        ]
        cosine, relative = min(x.cosine for x in every), max(x.relative_error for x in every)
        return Moved(cosine, relative, first.divergence)

    def _moved(self, before: "Answers") -> Moved:
        if not bool(self.rows.isfinite().all()):
            return Moved(-1.0, math.inf, math.inf if self.logits else None)
        if self.rows.shape != before.rows.shape:
            raise UserError(
                "the model gives other numbers of outputs once its weights change, so that nobody "
                "can compare them; give noise=, or evaluate="
            )
        count, width = before.rows.shape
        # One figure for each input has a sign and no direction: all of them together have one.
        height = count if width == 1 else max(1, CHUNK // width)
        squares = torch.zeros(2, dtype=torch.float64, device="cpu")
        cosines, nats = [], 0.0
        for part in zip(self.rows.split(height), before.rows.split(height), strict=True):
            new, old = (each.double() for each in part)
            pair = (new.T, old.T) if width == 1 else (new, old)
            both_zero = ~torch.stack(pair).any(0).any(1)  # as rows behind a ReLU may be
            cosines.append(F.cosine_similarity(*pair, dim=1).where(~both_zero, 1.0))
            squares += torch.stack([(new - old).square().sum(), old.square().sum()])
            nats += divergence(new, old) * len(new) / count if self.logits else 0.0
        change, size = squares.sqrt()
        cosine = torch.cat(cosines).mean().item()
        relative = (change / size.clamp_min(torch.finfo(size.dtype).tiny)).item()
        if width == 1:  # the size of a figure counts as well, and of a single one nothing else
            cosine = max(-1.0, min(cosine, 1 - relative**2 / 2))
        return Moved(cosine, relative, nats if self.logits else None)


class Subject:
    """A model that can be run, the inputs that judge it, and those on which it may be calibrated.

    `names` is {name in the model: name in what is compressed}; `about` says which inputs these are.
    Half of a user's own `inputs` (net.samples.Samples) calibrate, the others judge, as one does
    alone; built-in ones (`own` False) judge, and calibrate nothing: network and inputs may have
    little in common. On inputs of another kind outputs may move `margin` times as far. With a
    `skeleton`, whose model it is, one block of it is in memory at a time.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Mapping[str, str],
        inputs: Any,
        about: str,
        own: bool,
        margin: float = 1.0,
        skeleton: Skeleton | None = None,
    ) -> None:
        self.model, self.names, self.about, self.own = model, names, about, own
        self.margin, self.skeleton = margin, skeleton
        judge, calibrate = halves(inputs) if own else (inputs, None)
        self.judging = Samples(model, judge)
        self.calibration = None if calibrate is None else Samples(model, calibrate)
        # Of a copy: a run may change buffers.
        source = skeleton.passage(skeleton.state) if skeleton else copied(model)
        with own_weights(model, source):
            self._before, self._rows = answers(source, self.judging), OnDisk()
        if not bool(self._before.rows.isfinite().all()):
            raise Unseen(
                "the model's outputs are not all finite with these inputs, as it is before"
            )
        if not skeleton and not self._feels_weights():
            raise Unseen(
                "the outputs with these inputs do not depend on the weights, as where the model "
                "keeps results of them, and say nothing of others; compress the model before it is "
                "run, or without inputs"
            )
        if skeleton:
            for i, rows in enumerate(self._before.every):
                self._rows[str(i)] = rows
            self._before = Answers(self._before.rows[:0].clone(), self._before.logits)

    def _feels_weights(self) -> bool:
        """Whether a batch is answered otherwise with all tensors in disorder."""
        own = self.model.state_dict()
        if any(map(is_sharded, own.values())):
            return True
        disordered = {
            self.names[name]: -tensor.roll(1) if is_computed(tensor) else tensor
            for name, tensor in own.items()
            if name in self.names
        }
        one = copy.copy(self.judging)
        one.batches = one.batches[:1]
        try:
            answer = answers(self.changed(disordered), one)
        except (Unseen, RuntimeError):  # a model whose tensors have to be what they are
            return True
        pairs = zip(answer.every, self._before.every, strict=False)
        return not all(torch.equal(new, old[: len(new)]) for new, old in pairs)

    @property
    def before(self) -> Answers:
        """What the model answers as it is; with a skeleton it is on the disk."""
        if not self._rows:
            return self._before
        rows, *others = map(self._rows.mapped, self._rows)
        return Answers(rows, self._before.logits, tuple(others))

    def moved(self, state: Mapping[str, torch.Tensor]) -> Moved:
        """The outputs with the tensors of `state` instead."""
        changed = self.skeleton.passage(state) if self.skeleton else self.changed(state)
        return answers(changed, self.judging).moved(self.before)

    def changed(self, state: Mapping[str, torch.Tensor]) -> nn.Module:
        """A copy of the model with the tensors of `state`."""
        return with_tensors(self.model, state, self.names)


def with_tensors(
    model: nn.Module, state: Mapping[str, torch.Tensor], names: Mapping[str, str]
) -> nn.Module:
    """A copy with the tensors of `state`, `names` being {name in the model: name there}."""
    model = copied(model)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name in names:
                tensor.copy_(state[names[name]])
    return model


@contextmanager
def own_weights(model: nn.Module, copy: nn.Module | Passage) -> Iterator[None]:
    """Raises Unseen where what runs meanwhile, a `copy` of `model`, computes with weights of the
    model itself: a function that took the place of a method (torch.compile(model.forward), a
    closure) is not copied, and whatever the copy's weights were, it would answer the same."""
    theirs = [] if isinstance(copy, Passage) else [*model.parameters(), *model.buffers()]
    watch = Foreign(each.detach() for each in theirs if not is_sharded(each))
    with watch:
        yield
    if watch.met:
        raise Unseen(
            "a copy of the model computes with weights of the model itself, since a function is in "
            "the place of a method (torch.compile(model.forward), a closure), so that nobody can "
            "see what other weights would do; compress the model before that is done to it"
        )


def halves(inputs: Any) -> tuple[Any, Any]:
    """Every second input, or batch of inputs, and the others; (all, None) if there is one.

    Raises ValueError for a batch of several parts of which nobody says how many inputs it has.
    """
    if isinstance(inputs, torch.Tensor):
        return _halves([inputs], lambda parts: parts[0])
    if isinstance(inputs, Mapping):
        return _halves(list(inputs.values()), lambda p: dict(zip(inputs, p, strict=True)))
    if not hasattr(inputs, "__iter__"):
        return inputs, None  # refused by Samples
    kind = Labelled if isinstance(inputs, torch.utils.data.DataLoader) else list
    batches = kind(inputs)
    if len(batches) != 1:
        return kind(batches[::2]), kind(batches[1::2]) or None
    [batch] = batches
    if type(batch) in (tuple, list) and batch and isinstance(batch[0], Mapping):
        batch = batch[0]  # beside labels
    if isinstance(batch, torch.Tensor | Mapping):
        return halves(batch)
    if type(batch) not in (tuple, list):
        return batches, None
    first, second = _halves(list(batch), tuple)
    return kind(first), kind(second) if second else None


def _halves(parts: list, made: Callable[[list], Any]) -> tuple[list, list | None]:
    """Of one batch of these parts, `made` a batch again: what has its length is divided."""
    sizes = [_length(part) for part in parts]
    lengths = {size for size in sizes if size > 1}
    if len(lengths) > 1:
        raise ValueError(
            f"inputs whose parts have the lengths {', '.join(map(str, sizes))}: nobody says how "
            "many inputs these are; give a list of batches"
        )
    if not lengths:
        return [made(parts)], None
    [count] = lengths

    def taken(which: slice) -> Any:
        pairs = zip(parts, sizes, strict=True)
        return made([part[which] if size == count else part for part, size in pairs])

    starts = range(0, count, 2 * BATCH)
    first, second = (
        [taken(slice(i + half, i + 2 * BATCH, 2)) for i in starts if i + half < count]
        for half in range(2)
    )
    return first, second


def _length(value: Any) -> int:
    """Of what may be a batch: a tensor, an array, a list; 0 for anything else."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return len(value) if value.ndim else 0
    return len(value) if isinstance(value, list | tuple) else 0


@torch.no_grad()
def answers(model: nn.Module | Passage, samples: Samples) -> Answers:
    """What `model` answers in evaluation, of each batch by the first reading of it that it takes.

    Raises Unseen if there is none, or no tensor among the outputs.
    """
    passage = model if isinstance(model, Passage) else Passage(model)
    training, calls = passage.model.training, [list(readings) for readings in samples.batches]
    found, others, logits = _Sample(), [_Sample() for _ in range(MOST_OTHERS)], True
    passage.model.eval()
    try:
        for place in passage:
            for number, readings in enumerate(calls):
                run = partial(_answer, passage, number)
                call, answer = first_that_runs(run, readings)
                calls[number] = [call]
                if place == len(passage.blocks):
                    rows, is_logits, more = answer
                    logits &= is_logits
                    for sample, each in zip((found, *others), (rows, *more), strict=False):
                        sample.add(each.cpu())
    except ValueError as error:
        raise Unseen(str(error)) from None
    finally:
        passage.model.train(training)
    if not found.is_of_one_width:
        raise Unseen("the model's outputs are not of one size; give inputs of one size")
    rows = found.whole()
    if not rows.numel():
        raise Unseen("the model's outputs are empty")
    beside = tuple(each.whole() for each in others if each.parts and each.is_of_one_width)
    return Answers(rows, logits and rows.shape[1] > 1, beside)


class _Sample:
    """Of rows that come in parts every n-th, n the least power of two for at most ROWS of them and
    ELEMENTS in all."""

    def __init__(self) -> None:
        self.parts: list[torch.Tensor] = []
        self.every, self.seen = 1, 0

    def add(self, rows: torch.Tensor) -> None:
        first = -self.seen % self.every
        self.seen += len(rows)
        self.parts.append(rows[first :: self.every])
        most = min(ROWS, max(1, ELEMENTS // max(1, rows[0].numel() if len(rows) else 1)))
        while sum(map(len, self.parts)) > most:
            self.every *= 2
            odd = 0
            for i, part in enumerate(self.parts):
                self.parts[i], odd = part[odd::2], (odd + len(part)) % 2
        # No view of what is left out, which would hold it.
        self.parts = [
            each.clone() if each.untyped_storage().nbytes() > each.nbytes else each
            for each in self.parts
        ]

    @property
    def is_of_one_width(self) -> bool:
        return len({rows.shape[1] for rows in self.parts}) == 1

    def whole(self) -> torch.Tensor:
        """All of them, float32 [rows, width], in memory once."""
        shape = sum(map(len, self.parts)), *self.parts[0].shape[1:]
        found, end = torch.empty(shape, dtype=torch.float32, device="cpu"), 0
        while self.parts:
            part = self.parts.pop(0)
            found[end : end + len(part)] = part
            end += len(part)
        return found


def _answer(passage: Passage, number: int, call: Call) -> Any:
    """As of rows_of, and the rows of other outputs, behind the last block; before it, nothing."""
    output, mask = passage(number, call, keep=True), call.kwargs.get("attention_mask")
    if passage.place < len(passage.blocks):
        return None
    return *rows_of(output, mask), [rows_of(each, mask)[0] for each in others_of(output)]


def rows_of(output: Any, mask: torch.Tensor | None) -> tuple[torch.Tensor, bool]:
    """(float32 [rows, width], whether they are logits): of what `judged` gives, a row for each
    input or, of a sequence, for each token that is not padding. Complex figures are two."""
    found, logits = judged(output)
    if not found.numel():
        raise ValueError("the output is empty")
    if found.is_complex():
        found, logits = torch.view_as_real(found.resolve_conj()), False
        found = found.flatten(-2) if found.dim() > 1 else found
    if found.dim() == 3 and mask is not None and mask.shape == found.shape[:2]:
        return found[mask.bool()].float(), logits
    if found.dim() == 3 and logits:  # a row of logits per token
        return found.flatten(0, 1).float(), logits
    return found.reshape(len(found) if found.dim() else 1, -1).float(), logits


def judged(output: Any) -> tuple[torch.Tensor, bool]:
    """(what counts among all that a model gives, whether it is logits): what is called so, or else
    the first tensor; a single figure, as a loss is, where there is no other."""
    if isinstance(output, torch.Tensor):
        return output, output.dim() == 2
    named = output.get if isinstance(output, Mapping) else partial(getattr, output)
    logits = named("logits", None)
    if isinstance(logits, torch.Tensor):
        return logits, True
    parts = _parts(output)
    if not parts:
        raise ValueError(f"the output is a {type(output).__name__}, not a tensor")
    first = next((x for x in parts if not (isinstance(x, torch.Tensor) and x.dim() == 0)), parts[0])
    return judged(first)


def _parts(output: Any) -> list:
    """Of a series, a mapping or what transformers gives; of anything else none."""
    found: Any = output.to_tuple() if hasattr(output, "to_tuple") else output
    found = list(found.values()) if isinstance(found, Mapping) else found
    return [x for x in found if x is not None] if isinstance(found, tuple | list) else []


def others_of(output: Any) -> list[torch.Tensor]:
    """The other outputs of as many inputs, MOST_OTHERS at most; no states and caches, which come as
    series of their own."""
    own, _ = judged(output)
    tensors = [
        x for x in _parts(output) if isinstance(x, torch.Tensor) and x is not own and x.numel()
    ]
    figures = [x for x in tensors if x.is_floating_point() or x.is_complex()]
    alike = [x for x in figures if x.dim() and own.dim() and len(x) == len(own)]
    return alike[:MOST_OTHERS]


# --- whose tensors these are ----------------------------------------------------------------------


def names_by_value(model: nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """{name of a tensor in the model: name in `state`} of equal values; the model was loaded from
    it, under longer or shorter names, or others.

    Raises Unseen where a parameter is found nowhere: the outputs would not be those of `state`.
    """
    own = model.state_dict()
    ends: dict[str, list[str]] = {}
    for name in state:
        parts = re.split(r"[./]", name)
        for i in range(len(parts)):
            ends.setdefault(".".join(parts[i:]), []).append(name)
    found, lost = {}, []
    for name, tensor in own.items():
        parts = name.split(".")
        tails = (".".join(parts[i:]) for i in range(len(parts)))
        near = [each for tail in tails for each in ends.get(tail, ())]
        same = next((each for each in near if _equal(tensor, state[each])), None)
        if same is not None:
            found[name] = same
        else:
            lost.append(name)
    held = {own[name].data_ptr() for name in found}
    left = [name for name in state if name not in set(found.values())]
    parameters = {name for name, _ in model.named_parameters()}
    for name in lost:
        same = next((each for each in left if _equal(own[name], state[each])), None)
        if same is not None:
            found[name] = same
        elif name in parameters and own[name].data_ptr() not in held:
            if name in state and state[name].shape != own[name].shape:
                here, there = tuple(own[name].shape), tuple(state[name].shape)
                raise Unseen(f"{name} of the model has the shape {here}, in the file {there}")
            raise Unseen(f"{name} of the model is not in the file under any name")
    return found


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or not (is_computed(a) and is_computed(b)):
        return a.shape == b.shape and a.dtype == b.dtype and a.numel() == b.numel() == 0
    return torch.equal(a.detach().cpu().double(), b.detach().cpu().double())


def of_folder(
    path: str | Path,
    state: Mapping[str, torch.Tensor],
    inputs: Any = None,
    about: str = "",
    blockwise: bool | None = False,
) -> Subject:
    """A folder of Hugging Face's, run by transformers; `inputs` may be a list of texts. With
    `blockwise` a model of repeated blocks has one of them in memory at a time (net.blocks); None
    takes any other in whole.

    Raises Unseen where it cannot be: no such folder, transformers not installed, code of its own.
    """
    folder = _transformer(Path(path))
    if importlib.util.find_spec(TRANSFORMERS) is None:
        raise Unseen("transformers is not installed, which would run it: pip install transformers")
    skeleton = None
    with _quiet() as transformers:
        try:
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            if getattr(config, "quantization_config", None):
                raise Unseen("it is quantized already, and computes with more than its weights")
            own = [getattr(transformers, name, None) for name in config.architectures or ()]
            kind = next((each for each in own if each is not None), transformers.AutoModel)
            if blockwise is not False:
                with suppress(*([NoBlocks] if blockwise is None else [])), without_parameters():
                    make = kind if issubclass(kind, nn.Module) else kind.from_config
                    skeleton = Skeleton(make(config).float(), state)
            if skeleton:
                model, names = skeleton.model, skeleton.names
            else:
                options = {"local_files_only": True, "dtype": torch.float32}
                model = evaluating(kind.from_pretrained(folder, **options))
        except Unseen:
            raise
        except NoBlocks as error:
            raise Unseen(f"it cannot be taken block by block: {error}") from None
        except Exception as error:  # whatever a library raises for a folder that it does not take
            raise Unseen(f"transformers cannot load it ({first_line(error)})") from None
        if not skeleton:
            names = names_by_value(model, state)
        if inputs is None and hasattr(config, "vocab_size"):
            inputs, about = documentation(), f"{TEXTS} texts of Python's own documentation"
            batches = tokens(folder, inputs)
            return Subject(model, names, batches, about, own=False, skeleton=skeleton)
        if _are_texts(inputs):
            inputs, about = tokens(folder, inputs), about or OWN
    return of_module(model, inputs, about, names, skeleton)


def of_module(
    model: nn.Module,
    inputs: Any = None,
    about: str = "",
    names: Mapping[str, str] | None = None,
    skeleton: Skeleton | None = None,
) -> Subject:
    """A module with inputs of the user's, or with photographs if it takes images.

    Raises Unseen for one that takes anything else, and where there are no photographs.
    """
    if names is None:
        names = {name: name for name in only_tensors(model.state_dict())}
    if callable(inputs):
        inputs = inputs(model)
    if inputs is not None:
        if _are_texts(inputs):
            raise Unseen("texts need a tokenizer, and this model comes without one")
        return Subject(model, names, inputs, about or OWN, own=True, skeleton=skeleton)
    wanted, about = photographs_for(model)
    few = FEW_PHOTOGRAPHS
    return Subject(model, names, wanted, about, own=False, margin=few, skeleton=skeleton)


def _are_texts(inputs: Any) -> bool:
    return isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], str)


def _transformer(path: Path) -> Path:
    """The folder in which there is a config.json of a model; of sentence-transformers' a part."""
    folders = [path]
    with_parts = path / "modules.json"
    if with_parts.is_file():
        try:
            parts = json.loads(with_parts.read_text("utf-8"))
            folders.append(path / str(parts[0]["path"]))
        except (OSError, ValueError, LookupError, TypeError):
            pass
    for folder in folders:
        try:
            found = json.loads((folder / CONFIG).read_text("utf-8"))
            if isinstance(found, dict) and ("model_type" in found or "architectures" in found):
                return folder
        except (OSError, ValueError):
            continue
    raise Unseen("it is a state dict without its architecture")


@contextmanager
def _quiet() -> Iterator[Any]:
    """transformers, which says nothing and draws no bars of its own meanwhile."""
    variable = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(variable)
    os.environ[variable] = "false"
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    bars = None
    try:
        import transformers

        if transformers.utils.logging.is_progress_bar_enabled():
            bars = transformers.utils.logging
            bars.disable_progress_bar()
        yield transformers
    finally:
        if bars is not None:
            bars.enable_progress_bar()
        logging.disable(level)
        if before is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = before


# --- inputs that every installation has -----------------------------------------------------------


def documentation() -> list[str]:
    """TEXTS paragraphs of what Python's library says of itself."""
    found: dict[str, None] = {}
    for name in MODULES:
        module = importlib.import_module(name)
        members = [each for _, each in inspect.getmembers(module) if inspect.isroutine(each)]
        classes = [each for _, each in inspect.getmembers(module, inspect.isclass)]
        for each in (module, *classes, *members):
            paragraphs = (
                " ".join(part.split()) for part in (inspect.getdoc(each) or "").split("\n\n")
            )
            found |= {part[:LONGEST]: None for part in paragraphs if len(part) >= SHORTEST}
    if len(found) < TEXTS:  # as of an interpreter that strips them
        raise Unseen("Python's own documentation is not there, and no inputs were given")
    texts = list(found)
    return [texts[i * len(texts) // TEXTS] for i in range(TEXTS)]


def tokens(folder: Path, texts: list[str]) -> list[dict[str, torch.Tensor]]:
    """Batches of a tokenizer's that is in `folder`. Raises Unseen where there is none."""
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        options: dict[str, Any] = {"padding": True, "truncation": True, "max_length": TOKENS}
        return [
            dict(tokenizer(texts[i : i + BATCH], return_tensors="pt", **options))
            for i in range(0, len(texts), BATCH)
        ]
    except Exception as error:  # whatever a library raises for a folder that it does not take
        raise Unseen(f"no tokenizer can be loaded from it ({first_line(error)})") from None


class Images(NamedTuple):
    """The images that a network takes: of these channels and this size, from [0, 1] by
    (x - mean) / std."""

    channels: int
    size: tuple[int, int]  # height, width
    mean: torch.Tensor  # [1, channels, 1, 1]
    std: torch.Tensor

    def batches(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Of `images` [N, 3, height, width] in [0, 1]."""
        if self.channels == 1:
            images = images.mean(1, keepdim=True)
        return list(((images - self.mean) / self.std).split(BATCH))


def images_for(model: nn.Module) -> Images:
    """By what the model says of itself, as those of this suite, timm's and transformers' do; else
    what networks for ImageNet take. Raises Unseen for one that does not begin with images."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)), None)
    # What another network calls so may be anything: a number of features, of time steps.
    shape = _whole(getattr(model, "input_shape", None), 3)
    shape = shape or _whole(_config_of(model, "input_size"), 3)
    channels = shape[0] if shape else first.in_channels if isinstance(first, nn.Conv2d) else 0
    if channels not in (1, 3):
        raise Unseen("the model takes no images")
    size = _config_of(model, "image_size")
    sides = [size.get(side) for side in ("height", "width")] if isinstance(size, Mapping) else size
    size = _whole(sides, 2)
    height, width = shape[1:] if shape else size or (USUAL_SIZE, USUAL_SIZE)
    own = ("input_mean", "input_std"), ("mean", "std")
    pairs = [(_of(model, mean), _of(model, std)) for mean, std in own]
    mean, std = next(((m, s) for m, s in pairs if m is not None and s is not None), IMAGENET)
    figures = [torch.as_tensor(each).float().reshape(1, -1, 1, 1) for each in (mean, std)]
    if channels == 1:
        figures = [each.mean(1, keepdim=True) for each in figures]
    return Images(channels, (int(height), int(width)), *figures)


def _whole(value: object, count: int) -> list[int] | None:
    """So many positive whole numbers, of a size one for both; None if it is nothing of the kind."""
    values = [value] * 2 if count == 2 and isinstance(value, int) else value
    if not isinstance(values, list | tuple | torch.Size) or len(values) != count:
        return None
    whole = all(isinstance(each, int) and each > 0 for each in values)
    return [int(each) for each in values] if whole else None


def photographs_for(model: nn.Module) -> tuple[list[torch.Tensor], str]:
    """(photographs as an image network takes them, in batches; which they are)."""
    try:
        wanted = images_for(model)
    except Unseen as error:
        raise Unseen(f"{error}, and no inputs were given") from None
    text = f"{PHOTOGRAPHS} crops of two photographs of scikit-learn's"
    return wanted.batches(photographs(*wanted.size)), text


def _of(model: nn.Module, name: str) -> Any:
    found = getattr(model, name, None)
    return found if isinstance(found, tuple | list | torch.Tensor) else _config_of(model, name)


def _config_of(model: nn.Module, name: str) -> Any:
    """A figure of timm's or of transformers'."""
    for attribute in ("pretrained_cfg", "default_cfg", "config"):
        config = getattr(model, attribute, None)
        value = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
        if value is not None:
            return value
    return None


def photographs(height: int, width: int) -> torch.Tensor:
    """PHOTOGRAPHS crops of scikit-learn's two, float32 [N, 3, height, width] in [0, 1]."""
    if importlib.util.find_spec("sklearn") is None:
        raise Unseen(
            "scikit-learn is not installed, whose photographs would do: pip install scikit-learn"
        )
    from sklearn.datasets import load_sample_images

    generator = torch.Generator().manual_seed(0)
    sources = [
        torch.from_numpy(each.copy()).permute(2, 0, 1) for each in load_sample_images().images
    ]
    found = []
    for number in range(PHOTOGRAPHS):
        source = sources[number % len(sources)]
        side = min(source.shape[1:])
        share = torch.rand((), generator=generator, dtype=torch.float32)
        part = int(side * (0.3 + 0.7 * share))
        top, left = (
            int(torch.randint(extent - part + 1, (), generator=generator))
            for extent in source.shape[1:]
        )
        crop = source[None, :, top : top + part, left : left + part].float() / 255
        crop = F.interpolate(
            crop, (height, width), mode="bilinear", align_corners=False, antialias=True
        )
        found.append(crop.flip(3) if number % 4 > 1 else crop)
    return torch.cat(found)
