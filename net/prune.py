"""Pruning: which weights go (pure functions: tensor -> mask) and how they stay gone.

A pruned weight is exactly zero. Masks are kept by parameter name, outside of the model, and applied
after every optimizer step, so that neither momentum nor weight decay can revive or move a pruned
weight. The mask of a model that was loaded is `weight != 0`.
"""

import math
import sys
import warnings
from collections.abc import Iterable, Mapping
from numbers import Integral, Real

import torch
from torch import nn
from torch.nn import functional as F

from .errors import UserError, some_names
from .hooks import StepHooks, check_written, warn_of_zeros
from .modules import parameters_by_name, parameters_of
from .parameters import Patterns, compressible, normed_axes, resolve
from .plan import BY_VALUE, constants
from .sharded import full, kth_greatest, laid, local, part, summed, total
from .tensors import version_of

LEAST, GREATEST = 1e-15, 1e15  # between which squares are float32 numbers, with room
UPDATES = 100  # steps down of a gradual schedule
MEMORY = 0.999  # decay of the mean squared gradient, Adam's beta2
UNSEEN = 1e-30  # and where it begins: above 0, so that before any gradient magnitudes decide


def threshold_mask(weight: torch.Tensor, sensitivity: float) -> torch.Tensor:
    """Bool mask of the weights to keep: |w| >= sensitivity * std(w) (Han et al. 2015, section 3).

    A weight that is zero is not kept, whatever the sensitivity; a constant tensor, of standard
    deviation 0, is kept whole.
    """
    weight = _squarable(weight)
    deviation = full(weight).std(correction=0)
    return (weight.abs() >= sensitivity * deviation) & ((weight != 0) | (deviation == 0))


def top_masks(
    scores: Mapping[str, torch.Tensor], density: float | Mapping[str, float]
) -> dict[str, torch.Tensor]:
    """Bool masks of the weights with the greatest scores, {name: mask} for {name: score}.

    A number as `density` is the fraction to keep of all tensors together; {name: fraction} that of
    each, to one weight; a weight with the score 0 is never kept.
    """
    if isinstance(density, Mapping):
        return {n: top_masks({n: s}, density[n])[n] for n, s in scores.items()}
    if not scores:
        return {}
    count = sum(score.numel() for score in scores.values())
    if not count:
        return {name: score > 0 for name, score in scores.items()}
    keep = max(1, round(density * count))
    threshold = kth_greatest(list(scores.values()), keep)
    masks = {name: score > threshold.to(score.device) for name, score in scores.items()}
    # Of equal scores, as those of shared weights are, the first are kept. Counted where they are: a
    # GPU would run dry if it was asked for the number.
    above = [full(total(mask)).sum().to(threshold.device) for mask in masks.values()]
    left = keep - torch.stack(above).sum()
    for name, score in scores.items():
        limit = threshold.to(score.device)
        equal = (score == limit) & (score > 0)
        every = full(equal)
        first = every & (every.flatten().cumsum(0).view(every.shape) <= left.to(every.device))
        masks[name] |= laid(first, score)
        left = left - every.sum().to(left.device)
    return masks


def cubic_density(done: float, start: float, end: float) -> float:
    """The density after the fraction `done` of the schedule (Zhu and Gupta 2017, eq. 1)."""
    return end + (start - end) * (1 - min(1.0, done)) ** 3


def saliency(weight: torch.Tensor, squared_gradient: torch.Tensor) -> torch.Tensor:
    """How much the loss rises without each weight: w**2 times its curvature.

    Optimal brain damage (LeCun et al. 1990, eq. 5), with the mean squared gradient for the diagonal
    of the Hessian (empirical Fisher, Theis et al. 2018).
    """
    return weight.square() * squared_gradient


def storage_bits(mask: torch.Tensor) -> torch.Tensor:
    """About what each weight costs in the encoded model, in bits: a value and a position.

    `mask` is bool [out, ...]; the result float32 of its shape. A position in a row and a column
    with many survivors takes few bits, a lone one many; so that saliency per bit empties whole rows
    and columns, which then cost nothing. The probability of a survivor is estimated from its row
    and its column as if these were independent.
    """
    a_row, a_column = total(mask, range(1, mask.dim())), total(mask, [0])
    rows, columns = len(mask), a_column.numel()
    smooth = 0.3
    p = (a_row + smooth) * (a_column + smooth) / (total(a_column) + smooth * (rows + columns))
    position = -p.clamp(max=0.9).log2()
    return 3 + position.clamp(0, 12)


@torch.no_grad()
def shrink(weights: Iterable[torch.Tensor], amount: float) -> None:
    """Move every weight towards zero by `amount`, and no further, in place.

    With `amount` = penalty x learning rate after each step this is the proximal step of an L1
    penalty. Apart from the gradient, so that Adam does not scale it: it pulls on every weight
    alike, and those that do not matter gather at zero, below any threshold.
    """
    if amount:
        for weight in weights:
            weight.copy_(F.softshrink(weight, amount))


class Pruner(StepHooks):
    """Prunes a model, and keeps what it has pruned at zero while the model trains.

        pruner = Pruner(model, sensitivity=1.5)            # at once, by threshold
        pruner = Pruner(model, density=0.1, steps=3000)    # gradually
        pruner.attach(optimizer)
        ...                                                # your own loop
        pruner.detach()

    With `sensitivity`, a number or {pattern: number}, the weights below so many standard deviations
    of their tensor go at once (`threshold_mask`); with 0 only those go that are zero already, which
    keeps the zeros of a pruned model while it is retrained. With `density`, the fraction to keep of
    all pruned tensors together or {pattern: fraction} of each, the least salient go in the course
    of `steps` optimizer steps: by saliency / storage_bits**2, on the cubic schedule from ten times
    the density, in UPDATES equal parts. (The square is a measured choice: on LeNet-5 12 % fewer
    bytes than saliency / bits at the same error.) With `density` and no `steps` they go at once, by
    magnitude in standard deviations of their tensor.

    `include` and `exclude` are patterns over the names of the parameters (net.parameters).
    Embeddings are pruned only where `include` says so: a token's row is seldom trained, and has no
    small weights; so are tables of constants and a lone row or column without a bias. Frozen
    parameters stay whole, as do those that no gradient reaches on a gradual schedule: nothing could
    make good for what they lose.

    A model that several processes divide (fully_shard) is pruned as by one: each of them has to do
    all of this in the same order (net.sharded), and masks are DTensors as the parameters are.

    `masks` is {parameter name: bool tensor, True where the weight stays}. Raises UserError for a
    pattern that matches nothing, a model in which nothing can be pruned, a weight or, on a gradual
    schedule, a gradient that is not finite; ValueError for numbers out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        sensitivity: float | Mapping[str, float] | None = None,
        density: float | Mapping[str, float] | None = None,
        steps: int = 0,
        include: Patterns | None = None,
        exclude: Patterns = (),
    ) -> None:
        super().__init__(model)
        if (sensitivity is None) == (density is None):
            raise ValueError("give either a sensitivity or a density")
        whole = isinstance(steps, Integral) and not isinstance(steps, bool)
        if not whole or steps < 0:
            raise ValueError(f"steps is a whole number of at least 0, not {steps!r}")
        if steps and density is None:
            raise ValueError("steps are those of a gradual schedule: give them with a density")
        from_zero = "a sensitivity is a finite number of at least 0"
        _check_numbers(from_zero, sensitivity, sys.float_info.max)
        _check_numbers("a density is a number from 0 to 1", density, 1)
        kinds = prunable(self._model, include, exclude)
        if not kinds:
            raise UserError(nothing_to_prune(self._model, include, exclude))
        parameters = parameters_by_name(self._model)
        self._parameters = {name: parameters[name] for name in kinds}
        for name, weight in self.weights():
            check_written(name, weight)
            _check_finite(name, weight)
        self.steps = steps
        self._squares: dict[str, torch.Tensor] = {}
        self._not_finite: dict[str, torch.Tensor] = {}
        self.density: float | Mapping[str, float] | None = density
        if isinstance(density, Mapping):
            self.density = resolve(density, kinds)
        if sensitivity is not None:
            least = resolve(sensitivity, kinds)
            self.masks = {n: threshold_mask(w.detach(), least[n]) for n, w in self.weights()}
        elif self.density is not None and not steps:
            self.masks = top_masks({n: _in_deviations(w) for n, w in self.weights()}, self.density)
            warn_of_zeros(self._parameters)
        else:
            self.masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in self.weights()}
        self._keep_directions({name: weight.abs() for name, weight in self.weights()})
        # What goes at once, until a first step: a state that is loaded yet may have kept it.
        self._gone = {n: _Gone.of(w, self.masks[n]) for n, w in self.weights()} if not steps else {}
        self.apply()
        for name, gone in self._gone.items():
            gone.version = version_of(self._parameters[name])

    def __getstate__(self) -> dict:
        """Without what cannot be given back any more: a copy's weights have other versions."""
        gone = {n: e for n, e in self._gone.items() if e.version == version_of(self._parameters[n])}
        return {**super().__getstate__(), "_gone": gone}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        for name, gone in self._gone.items():
            gone.version = version_of(self._parameters[name])

    @torch.no_grad()
    def _keep_directions(self, scores: Mapping[str, torch.Tensor]) -> None:
        """Keep the weight of the highest score of what weight normalisation divides by its norm."""
        every = parameters_by_name(self._model)
        for name, score in scores.items():
            axes = normed_axes(every, name)
            if axes and score.numel():
                mask, score = full(self.masks[name]), full(score)
                best = score == score.amax(axes, keepdim=True)
                kept = mask | (best & ~mask.any(axes, keepdim=True))
                self.masks[name] = laid(kept, self._parameters[name])

    def weights(self) -> Iterable[tuple[str, nn.Parameter]]:
        """(name, parameter) of everything that is pruned."""
        return self._parameters.items()

    def apply(self) -> None:
        """Set every pruned weight to exactly +0.0, as after every step.

        For weights that were changed between steps; `detach` does it, too.
        """
        self._follow()
        for name, weight in self.weights():
            self.masks[name] = laid(self.masks[name], weight)  # of a model that has moved
        self._mask(self._parameters)

    def apply_to(self, copy: nn.Module) -> None:
        """Do the same to the weights of another model with the same names: a copy, an average
        (torch.optim.swa_utils.AveragedModel). Raises ValueError where it has others."""
        self._mask(parameters_of(copy, self.masks))

    @torch.no_grad()
    def _mask(self, weights: Mapping[str, nn.Parameter]) -> None:
        for name, weight in weights.items():
            # masked_fill rather than a product: 0 * negative would leave -0.0, and 0 * inf a NaN.
            local(weight).masked_fill_(~local(laid(self.masks[name], weight)), 0.0)

    settle = apply

    @property
    def finished(self) -> bool:
        """Whether the masks have the density: all steps are done, and gradients have come."""
        return self.steps_done >= self.steps and (not self.steps or bool(self._squares))

    @property
    def unfinished(self) -> str:
        if self.finished:
            return ""
        # Of this process's part: no property may wait for the others.
        kept = sum(int(local(mask).sum()) for mask in self.masks.values())
        share = kept / max(1, sum(local(mask).numel() for mask in self.masks.values()))
        return (
            f"the pruning is not finished: {self.steps_done} of {self.steps} steps, {share:.0%} of "
            "the weights are left; a step without a gradient of the weights does not count"
        )

    @torch.no_grad()
    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the squared gradients into their running mean, which optimizers other than Adam
        do not have."""
        self._gone = {}
        if self.finished:
            return
        scale = getattr(optimizer, "grad_scale", None)  # a scaler's, of a fused optimizer
        own = self._stepped_by(optimizer)
        for name, weight in self.weights():
            if weight.grad is None or id(weight) not in own:
                continue
            gradient = weight.grad.to_dense() if weight.grad.is_sparse else weight.grad
            gradient = local(laid(gradient, weight))
            # Looked at when the schedule goes down: a GPU would run dry if every step asked it.
            wrong = ~gradient.isfinite().all()
            self._not_finite[name] = wrong | self._not_finite.get(name, wrong).to(wrong.device)
            square = gradient.float().square()
            if scale is not None:
                square /= scale.float().square()
            if name not in self._squares:
                self._squares[name] = part(torch.full_like(square, UNSEEN), weight)
            self._squares[name] = laid(self._squares[name], weight)
            mean = local(self._squares[name])
            # The square of a large gradient may be infinite, and must not count for ever.
            mean.copy_(torch.where(square.isfinite(), mean.lerp(square, 1 - MEMORY), mean))

    def after_step(self, optimizer: torch.optim.Optimizer, counted: bool) -> None:
        if counted and self.density is not None and self._is_due(self.steps_done):
            self.apply()  # what the step has revived must not look salient
            self._check_training()
            self._update(self.density, self.steps_done / self.steps)
        self.apply()

    @torch.no_grad()
    def _check_training(self) -> None:
        """Raises UserError where training has diverged, before that prunes everything."""
        names = [*self._parameters, *self._not_finite]
        wrong = [~local(weight).isfinite().all() for _, weight in self.weights()]
        wrong += self._not_finite.values()
        wrong = summed([each.int() for each in wrong], [self._parameters[n] for n in names])
        if not bool(torch.stack([each.to(wrong[0].device) for each in wrong]).any()):
            return
        gradients = dict(zip(self._not_finite, wrong[len(self._parameters) :], strict=True))
        for name, weight in self.weights():
            _check_finite(name, weight)
            if name in gradients and bool(gradients[name]):
                raise UserError(
                    f"cannot prune {name}: its gradient was not finite in one of the last steps; "
                    "lower the learning rate, or leave such steps out"
                )

    def _is_due(self, done: int) -> bool:
        """Whether the schedule goes down with the step that is now `done`."""
        return 0 < done <= self.steps and (
            done * UPDATES // self.steps > (done - 1) * UPDATES // self.steps
        )

    @torch.no_grad()
    def _update(self, final: float | Mapping[str, float], done: float) -> None:
        def now(density: float) -> float:
            return cubic_density(done, min(1.0, 10 * density), density)

        scores = {}
        for name, squares in self._squares.items():
            weight = self._parameters[name].float()
            scores[name] = saliency(weight, squares) / storage_bits(self.masks[name]).square()
        if isinstance(final, Mapping):
            self.masks |= top_masks(scores, {name: now(final[name]) for name in scores})
        else:
            self.masks |= top_masks(scores, now(final))
        self._keep_directions(scores)

    def state_dict(self) -> dict:
        """What a resumed run needs, beside the model's and the optimizer's state."""
        squares = dict(self._squares)
        for name, weight in self.weights() if self.steps else ():
            if name not in squares:  # no gradient yet; what is loaded in place needs the memory
                squares[name] = torch.zeros_like(weight, dtype=torch.float32)
        return {"masks": dict(self.masks), "squares": squares, "steps_done": self.steps_done}

    def load_state_dict(self, state: Mapping) -> None:
        """Go on where `state_dict` was taken. Raises ValueError for another model's state."""
        if not isinstance(state, Mapping) or not {"masks", "squares", "steps_done"} <= set(state):
            raise ValueError("this is no state of a Pruner")
        masks = {name: (mask.dtype, mask.shape) for name, mask in state["masks"].items()}
        if masks != {name: (torch.bool, weight.shape) for name, weight in self.weights()}:
            raise ValueError("these masks belong to other parameters than those pruned here")
        self._squares, self._not_finite = {}, {}
        for name, weight in self.weights():
            if name in self._gone:
                self._gone[name].give_back(weight)
            self.masks[name] = laid(state["masks"][name], weight)
            squares = state["squares"].get(name)
            if squares is not None and bool(total(squares)):
                self._squares[name] = laid(squares, weight).clone()  # it changes in place
        self._gone = {}
        self.steps_done = state["steps_done"]
        self.apply()


class _Gone:
    """The values of a weight that were pruned when its Pruner was made.

    One that is made to go on with a pruned model prunes that anew, by what its weights are now,
    before it is told the masks that it had.
    """

    def __init__(self, mask: torch.Tensor, values: torch.Tensor) -> None:
        self.mask, self.values = mask, values  # of this process's part
        self.version: tuple[int, int] | None = None  # of the weight, once they have gone

    @classmethod
    def of(cls, weight: nn.Parameter, mask: torch.Tensor) -> "_Gone":
        own = local(mask).clone()
        return cls(own, local(weight.detach())[~own].clone())

    @torch.no_grad()
    def give_back(self, weight: nn.Parameter) -> None:
        """Put them where they were, unless the weight has changed since."""
        if version_of(weight) == self.version:
            local(weight).masked_scatter_(~self.mask, self.values)


def prunable(
    model: nn.Module, include: Patterns | None = None, exclude: Patterns = ()
) -> dict[str, str]:
    """{name: kind} of the parameters that a Pruner prunes: the compressible ones that can learn,
    without embeddings and constants (net.plan) unless `include` names some."""
    kinds = compressible(model, include, exclude)
    parameters = parameters_by_name(model)
    found = {name: kind for name, kind in kinds.items() if parameters[name].requires_grad}
    if include is not None:
        return found
    wrong = constants(model)
    if tables := [name for name in found if wrong.get(name) == BY_VALUE]:
        warnings.warn(
            "not pruned, since their values now are those of tables of constants: "
            f"{some_names(tables)}; include= names them where they are to be trained",
            stacklevel=3,
        )
    return {n: kind for n, kind in found.items() if kind != "embedding" and n not in wrong}


def _in_deviations(weight: torch.Tensor) -> torch.Tensor:
    weight = _squarable(weight.detach())
    if not weight.numel():
        return weight.float()
    deviation = full(weight).float().std(correction=0)
    return weight.float().abs() / deviation.clamp(min=1e-30)


def _squarable(weight: torch.Tensor) -> torch.Tensor:
    """`weight`, or a multiple of it in float64 where float32 does not reach as far as its squares,
    whose deviation would be infinite or 0."""
    greatest = float(full(weight).abs().max()) if weight.numel() else 0.0
    if not greatest or not math.isfinite(greatest) or LEAST < greatest < GREATEST:
        return weight
    return weight.double() / greatest


def _check_numbers(what: str, values: float | Mapping[str, float] | None, most: float) -> None:
    many = values if isinstance(values, Mapping) else {} if values is None else {"": values}
    for each in many.values():
        number = isinstance(each, Real) and not isinstance(each, bool)
        if not (number and 0 <= each <= most):
            raise ValueError(f"{what}, not {each!r}")


def _check_finite(name: str, weight: torch.Tensor) -> None:
    if bool(total(~weight.isfinite())):
        raise UserError(f"cannot prune {name}: not all of its values are finite")


def nothing_to_prune(model: nn.Module, include: Patterns | None, exclude: Patterns) -> str:
    """Why there is nothing to prune."""
    names = ", ".join(list(compressible(model, include, exclude))[:5])
    if not names:
        if compressible(model):
            return "there is nothing to prune: include and exclude leave none of the weights"
        return "there is nothing to prune: the model has no weights of two or more dimensions"
    return (
        f"there is nothing to prune: {names} are frozen, or embeddings or constants, which are "
        "pruned only where include names them"
    )
