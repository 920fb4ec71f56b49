"""Weight sharing in a model: which tensors take a few values, and how an optimizer trains those."""

import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from .calibration import Samples
from .calibration import share as shared_values
from .clustering import Clustering, relative_change
from .errors import UserError, naming
from .hooks import StepHooks, attached_to, gradient_scaler, normed_axes, parameters_of
from .plan import Bits, SharingConfig, plan, treated
from .post_training import steps_of
from .prune import Pruner
from .shared_tensor import SharedTensor
from .tensors import check_dense
from .vectors import FOLDED, fold_statistics, rounded_vector, scale_of

# The learning rate of single weights over that of the centroids, while weights may be reassigned.
LATENT_RATE = 0.5
MOST_BITS = 16


class WeightSharing(StepHooks):
    """Shares the weights of a model, and trains the shared values in place of single weights.

        sharing = WeightSharing(model, bits=5)
        optimizer = torch.optim.Adam(sharing.parameters(), 1e-4)
        sharing.attach(optimizer)
        ...                                                # your own loop
        sharing.detach()

    The options are the fields of net.plan.SharingConfig, or one of these in place of `bits`; what
    becomes of each tensor is decided by them at once, and is `plan`: {name: Treatment}.

    `bits`, a number or {pattern: number}: every weight gets 2**bits values at most, by k-means over
    its non-zero entries; zeros stay zeros. `bias_bits`, likewise, is for the biases that belong to
    these weights; {pattern: number} means the weights' names, and 0 leaves them as they are, or
    rounded with `bits="auto"`. During the first `reassign` steps each weight still follows its own
    gradient as well, and moves to the centroid that is nearest then; afterwards assignments stay.

    `bits="auto"` is for a model that is trained already (net.post_training): the values of every
    tensor are those that give the fewest bytes at a `noise` in the weights, 0.2 standard deviations
    wide steps by default, half of that in recurrent ones; weights become zero where that pays.
    `calibration`, an iterable of inputs of the model (tensors, or tuples or dicts of arguments),
    gives far fewer bytes at the same error of the outputs (net.calibration); `without_data` then
    names the tensors that no input reached, and why.

    With `parts` > 1 the weights are shared in so many parts, the largest first, and the biases with
    the last: one part at once and each further one by `share_next`. What is not shared yet is
    trained between, single weights, zeros excepted: it makes up for the errors of what is (after
    Zhou et al. 2017, incremental network quantization, where the parts are of each tensor).

    Normalisation and, with "auto", biases of 0 bits are rounded, when the sharing begins and when
    it is detached, unless `exact_vectors`; `rounded` is {name: the largest relative change by
    it}; `fold_norms` leaves half of those of batch normalisation. All else stays exact.

    The model is an ordinary one all the time: the shared values are written into its parameters,
    when the sharing begins and after every step. Frozen weights are shared and stay; so do those
    that no gradient reaches. With torch.amp.GradScaler call `gather_gradients` before the scaler's
    `unscale_` or `step`, so that it sees the gradients of the centroids.

    `tensors` is {parameter name: SharedTensor}, `clusterings` {parameter name: Clustering}. Raises
    ValueError for options out of range, UserError for a pattern that matches nothing and for a
    tensor with infinite or NaN entries.
    """

    def __init__(
        self,
        model: nn.Module,
        bits: Bits | Literal["auto"] | SharingConfig = 5,
        *,
        calibration: Samples | Iterable | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model)
        model = self._model
        config = bits if isinstance(bits, SharingConfig) else SharingConfig(bits, **options)
        if isinstance(bits, SharingConfig) and options:
            raise ValueError("give either a SharingConfig or its fields")
        if calibration is not None and config.bits != "auto":
            raise ValueError(
                f"calibration has no effect with bits={config.bits!r}; it is for bits='auto'"
            )
        self.config = config
        self.plan = plan(model, config)
        self._check_model()
        self.reassign_steps = config.reassign
        self.tensors: dict[str, SharedTensor] = {}
        self.clusterings: dict[str, Clustering] = {}
        self.rounded: dict[str, float] = {}
        self.without_data: dict[str, str] = {}
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        # {name: what was gathered since the last step, where a scaler may have to see it}
        self._gathered: dict[str, torch.Tensor | None] = {}
        self._waiting: set[str] = set()  # gathered when another optimizer has stepped
        # {name: (parameter, its version) as it was written}
        self._versions: dict[str, tuple[int, int]] = {}
        self._reached: set[str] = set()  # by a gradient since `attach`
        self._trained: set[str] = set()  # and in an optimizer
        self._scaler: weakref.ref | None = None
        self._scale: tuple[int, int] | None = None  # which one the last gradients have
        self._by_rate = {name: self.plan[name].kind for name in treated(self.plan, "rate")}
        self._inputs = None if calibration is None else Samples.of(model, calibration)
        self._steps = steps_of(self._parameters, self._by_rate, config.noise)
        self._vectors = treated(self.plan, "round")
        # Where errors of the weights are compensated, those of the vectors would show.
        self._rounding = config.noise if calibration is None else config.noise / 2
        self._parts = self._in_parts(config.parts)
        # In what is shared later, too, zeros stay zeros.
        later = [name for part in self._parts[1:] for name in part]
        self._masks = {name: self._parameters[name] != 0 for name in later}
        self.share_next()
        self._round_vectors()

    def _check_model(self) -> None:
        if not any(each.kind and each.how != "exact" for each in self.plan.values()):
            reasons = Counter(each.reason for each in self.plan.values() if each.kind)
            why = f": {', '.join(reasons)}" if reasons else ", no weight of two or more dimensions"
            raise UserError(f"nothing in this model can be shared{why}; include= names others")
        parameters = dict(self._model.named_parameters())
        for name, each in self.plan.items():
            if each.kind and name in parameters:
                check_dense(name, parameters[name])
        for other in attached_to(self._model):
            if isinstance(other, Pruner) and not other.finished:
                warnings.warn(f"a Pruner is attached, and {other.unfinished}", stacklevel=3)

    def _in_parts(self, parts: int) -> list[list[str]]:
        names = [*self._by_rate, *treated(self.plan, "cluster")]
        if parts == 1:
            return [names]
        biases = [name for name in names if not self.plan[name].kind]
        ordered = [name for name in names if self.plan[name].kind]
        ordered.sort(key=lambda name: -self._parameters[name].numel())
        size = max(1, -(-len(ordered) // parts))
        found = [ordered[i : i + size] for i in range(0, len(ordered), size)] or [[]]
        found[-1] += biases
        return found

    def share_next(self) -> bool:
        """Share the next part of the tensors; False if there is none left.

        What there is to train is other parameters then: detach, and make a new optimizer.
        """
        if not self._parts:
            return False
        names = self._parts.pop(0)
        for name in names:
            self._masks.pop(name, None)
        self._share_by_rate([name for name in names if name in self._by_rate])
        self._share_by_clustering([name for name in names if name not in self._by_rate])
        if not self._parts:
            self._inputs = None  # which may be large, and fine-tuning goes on for long
        return True

    @property
    def parts_left(self) -> int:
        return len(self._parts)

    def _share_by_rate(self, names: list[str]) -> None:
        if not names:
            return
        own = {name: self._by_rate[name] for name in names}
        values, reasons = shared_values(self._model, own, self._steps, self._inputs)
        self.without_data |= reasons
        for name in names:
            found = self._with_directions(name, values.pop(name))
            self._add(name, SharedTensor.of_values, found)

    @torch.no_grad()
    def _with_directions(self, name: str, shared: torch.Tensor) -> torch.Tensor:
        """`shared`, where weight normalisation divides it by its norm without that being zero: the
        largest weight then has the smallest of the values, which is as good as any."""
        axes = normed_axes(self._model, name)
        if not axes or not shared.any():
            return shared
        weight = self._parameters[name].abs()
        lone = (weight == weight.amax(axes, keepdim=True)) & ~shared.any(axes, keepdim=True)
        smallest = shared[shared != 0].abs().min()
        return torch.where(lone, smallest * self._parameters[name].sign(), shared)

    def _share_by_clustering(self, names: list[str]) -> None:
        for name in names:
            config = self.config
            make = partial(SharedTensor.clustered, init=config.init, seed=config.seed)
            self._add(name, make, self.plan[name].bits)

    @torch.no_grad()
    def _add(self, name: str, make: Callable, how: Any) -> None:
        """Share the parameter `name`, by make(parameter, how), and put the values in its place."""
        parameter = self._parameters[name]
        trained = self.reassign_steps > 0 and parameter.requires_grad
        with naming(f"cannot share {name}"):  # not finite
            shared = make(parameter, how, reassignable=trained)
        before = parameter.clone()
        # Not what `weight * mask`, as others prune, leaves: -0.0 would have to be stored.
        parameter.zero_()
        parameter.grad = None  # of what it was; the optimizer to come does not clear it
        shared.write(parameter)
        self.tensors[name] = shared
        self._versions[name] = _version(parameter)
        self.clusterings[name] = Clustering.of(before, parameter)

    @torch.no_grad()
    def _round_vectors(self) -> None:
        state = self._model.state_dict()
        for name in self._vectors:
            rounded = rounded_vector(name, state, self._rounding)
            change = relative_change(state[name], rounded, scale_of(name, state))
            self.rounded[name] = max(change, self.rounded.get(name, 0.0))
            state[name].copy_(rounded)

    def detach(self) -> None:
        """Leave all optimizers, with shared values in the model.

        What has changed these since the last step (averaging, the evaluation mode of an optimizer,
        a state dict of an earlier epoch) is taken over. Warns where no gradient came.
        """
        super().detach()
        self._reached, self._trained = set(), set()
        self._round_vectors()

    def put_right(self) -> None:
        for name, shared in self.tensors.items():
            shared.settle(self._parameters[name])
            self._versions[name] = _version(self._parameters[name])

    def _take_over(self) -> None:
        """The values of weights that something else has written since: load_state_dict."""
        for name, shared in self.tensors.items():
            parameter = self._parameters[name]
            if self._versions[name] != _version(parameter):
                shared.settle(parameter)
                self._versions[name] = _version(parameter)

    @property
    def unfinished(self) -> str:
        own = {n for n in self.tensors if self._parameters[n].requires_grad}
        lost = sorted((self._reached & own) - self._trained)
        wrong = [n for n, each in self.tensors.items() if not each.centroids.isfinite().all()]
        if wrong:
            return f"training has diverged: {', '.join(wrong[:5])} have values that are not finite"
        if own and not self._reached & own:
            return "no step has trained the shared values: no gradient of the weights ever came"
        if lost:
            return (
                f"the shared values of {', '.join(lost[:5])} were not trained: they are in no "
                "attached optimizer that has stepped; make it of sharing.parameters()"
            )
        return ""

    def fold_norms(self) -> list[str]:
        """Fold the running statistics of batch normalisation into its weight and bias, once all
        training is done: the same outputs in evaluation, other ones in training, fewer bytes.

        Returns the names of the layers; none with `exact_vectors`.
        """
        rounded = set(self._vectors)
        found = {
            name: module
            for name, module in self._model.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            and rounded.issuperset(f"{name}.{each}" for each in FOLDED)
        }
        for module in found.values():
            fold_statistics(module, self._rounding)
        return list(found)

    _made_of = "sharing.parameters()"

    def _written(self) -> Iterable[str]:
        return self.tensors

    def trained(self) -> Iterator[nn.Parameter]:
        for shared in self.tensors.values():
            yield shared.centroids
            if shared.latent is not None:
                yield shared.latent

    def parameters(self) -> Iterator[nn.Parameter]:
        """What an optimizer is to train: the centroids, the latent weights while there are
        reassignments, and the parameters of the model that are not shared."""
        for group in self.parameter_groups(1.0):
            yield from group["params"]

    def parameter_groups(self, lr: float) -> list[dict]:
        """The same for a learning rate: groups in which latent weights have LATENT_RATE of it."""
        self._follow()
        for name, shared in self.tensors.items():
            shared.follow(self._parameters[name])
        trained = {
            name: shared
            for name, shared in self.tensors.items()
            if self._parameters[name].requires_grad
        }
        shared_ones = {id(self._parameters[name]) for name in self.tensors}
        others = [
            parameter
            for parameter in self._model.parameters()
            if id(parameter) not in shared_ones and parameter.requires_grad
        ]
        centroids = [shared.centroids for shared in trained.values()]
        latent = [shared.latent for shared in trained.values() if shared.latent is not None]
        groups = [{"params": [*others, *centroids], "lr": lr}]
        if latent:
            groups.append({"params": latent, "lr": lr * LATENT_RATE})
        return groups

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """From here on every step of `optimizer` trains the shared values.

        Raises ValueError for an optimizer of the weights themselves, which would train nothing, and
        for those that StepHooks.attach refuses.
        """
        if isinstance(optimizer, torch.optim.SparseAdam):
            raise ValueError("gradients of shared values are dense; use Adam, not SparseAdam")
        self._follow()
        super().attach(optimizer)

    def _held(self, attached: Any) -> dict[str, nn.Parameter]:
        held = attached.parameter_ids()
        for name in self.tensors:
            if id(self._parameters[name]) in held:
                raise ValueError(
                    f"this optimizer trains {name} itself; make it of sharing.parameters()"
                )
        return super()._held(attached)

    def gather_gradients(self) -> None:
        """Move the gradients of the weights to the centroids, as before every step.

        The weights' own are None afterwards: no optimizer that knows the centroids alone would
        clear them before the next step. For what looks at the gradients before a step: a scaler
        (before its `unscale_`), clipping. Raises UserError after the scaler's `unscale_`.
        """
        scaler = self._scaler() if self._scaler is not None else None
        if scaler is not None and self._is_unscaled(scaler):
            raise UserError(SCALED)
        self._follow()
        scale = None if scaler is None else scaler._scale
        if scale is not None and self._scale != (id(scale), scale._version):
            self._scale = id(scale), scale._version
            self._gathered.clear()  # of a step that the scaler has left out
        for name in self._take():
            gradient = self.tensors[name].centroids.grad
            if scaler is None and gradient is not None:
                self._gathered[name] = gradient.clone()

    def _take(self) -> list[str]:
        """The names of the tensors whose gradients were taken."""
        self._take_over()
        found = []
        for name, shared in self.tensors.items():
            parameter = self._parameters[name]
            if parameter.grad is not None:
                # A scaler is not known before its first step, and may have left out others.
                unknown = self._scaler is None
                shared.take_gradient(parameter.grad, name in self._gathered, unknown)
                parameter.grad = None
                self._gathered[name] = None
                found.append(name)
        self._reached.update(found)
        return found

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_scaler": None}

    def _is_unscaled(self, scaler: Any) -> bool:
        """Whether a scaler has unscaled the gradients of this step already."""
        states = scaler._per_optimizer_states
        stages = (
            states[id(optimizer)]["stage"]
            for each in self._attached
            for optimizer in each.stepping
            if id(optimizer) in states
        )
        return any(stage.name == "UNSCALED" for stage in stages)

    def gather(self, optimizer: torch.optim.Optimizer) -> None:
        scaler = gradient_scaler()
        if scaler is not None:
            self._scaler = weakref.ref(scaler)
            self._check_unscaled(scaler, optimizer)
        self._take()

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.gather(optimizer)
        held = self._ids_in(optimizer)
        for name, shared in self.tensors.items():
            if id(shared.centroids) not in held:
                continue
            # Of an earlier step, where this one did not reach the tensor.
            if name not in self._gathered and name not in self._waiting:
                shared.centroids.grad = None
                if shared.latent is not None:
                    shared.latent.grad = None
            else:
                self._trained.add(name)

    def _check_unscaled(self, scaler: Any, optimizer: torch.optim.Optimizer) -> None:
        """Raises UserError where a scaler, whose step this is, did not see a gradient."""
        if any(self._parameters[name].grad is not None for name in self.tensors):
            raise UserError(SCALED)
        if getattr(optimizer, "grad_scale", None) is not None or scaler.get_scale() == 1:
            return  # unscaled by the step itself
        held = self._attached_as(optimizer).parameter_ids()
        for name, before in self._gathered.items():
            after = self.tensors[name].centroids
            if before is None or after.grad is None or id(after) not in held:
                continue
            if torch.equal(before, after.grad) and bool(before.any()):
                raise UserError(SCALED)

    def after_step(self, optimizer: torch.optim.Optimizer, counted: bool) -> None:
        self.step_is_over(optimizer)
        if counted and self.steps_done <= self.reassign_steps:
            for shared in self.tensors.values():
                if shared.latent is not None:
                    shared.reassign()
        self.write()

    def step_is_over(self, optimizer: torch.optim.Optimizer) -> None:
        # What is left is for another optimizer that steps next, unless a new gradient comes first.
        self._waiting.update(self._gathered)
        self._waiting.difference_update(self._names_in(optimizer))
        self._gathered.clear()

    def clear(self, optimizer: torch.optim.Optimizer) -> None:
        # Of steps that were left out, or of what had a gradient for the sake of its inputs alone.
        for name in self._names_in(optimizer):
            self._parameters[name].grad = None
            self._gathered.pop(name, None)
            self._waiting.discard(name)

    def _names_in(self, optimizer: torch.optim.Optimizer) -> list[str]:
        held = self._ids_in(optimizer)
        return [name for name, each in self.tensors.items() if id(each.centroids) in held]

    def write(self) -> None:
        """Put the shared values into the model's parameters, in place, as after every step.

        For centroids that were changed between steps, as by the evaluation mode of an optimizer.
        """
        for name, shared in self.tensors.items():
            shared.write(self._parameters[name])
            self._versions[name] = _version(self._parameters[name])
        with torch.no_grad():
            for name, mask in self._masks.items():
                parameter = self._parameters[name]
                parameter.mul_(mask.to(parameter.device))

    settle = write

    def apply_to(self, copy: nn.Module) -> None:
        """Share the weights of another model with the same names, a copy or an average of this one
        (torch.optim.swa_utils.AveragedModel): those that have one value here get one there, their
        mean, and what is pruned here is zero. Raises ValueError where it has other parameters."""
        shapes = {name: self._parameters[name].shape for name in self.tensors}
        for name, parameter in parameters_of(copy, shapes).items():
            self.tensors[name].share(parameter)

    def state_dict(self) -> dict:
        """What a resumed run needs, beside the model's and the optimizer's state."""
        tensors = {name: shared.state_dict() for name, shared in self.tensors.items()}
        model = self._model.state_dict()
        # Copies, as they are in training: `detach` rounds them, and so does a new sharing.
        vectors = {name: model[name].clone() for name in self._vectors}
        return {"tensors": tensors, "vectors": vectors, "steps_done": self.steps_done}

    def load_state_dict(self, state: Mapping) -> None:
        """Go on where `state_dict` was taken; call it before you make the optimizer.

        Raises ValueError for another model's state.
        """
        if not isinstance(state, Mapping) or not {"tensors", "vectors", "steps_done"} <= set(state):
            raise ValueError("this is no state of a WeightSharing")
        if state["tensors"].keys() != self.tensors.keys():
            raise ValueError("this state belongs to other parameters than those shared here")
        for name, shared in self.tensors.items():
            shared.load_state_dict(state["tensors"][name])
        self._model.load_state_dict(state["vectors"], strict=False)
        self.steps_done = state["steps_done"]
        self.write()


SCALED = (
    "the gradients of the weights were left out when the scaler unscaled: call "
    "sharing.gather_gradients() after backward, before the scaler's unscale_ or step"
)


def _version(parameter: nn.Parameter) -> tuple[int, int]:
    """Another one after every change of a parameter that autograd knows of."""
    return id(parameter), 0 if parameter.is_inference() else parameter._version
