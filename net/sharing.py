"""Weight sharing in a model, whose shared values an optimizer can train, and in a state dict."""

import warnings
import weakref
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.amp.grad_scaler import OptState

from .errors import UserError, naming
from .hooks import (
    StepHooks,
    attached_to,
    check_written,
    gradient_scaler,
    warn_of_zeros,
)
from .modules import modules_by_name, parameters_by_name, parameters_of
from .plan import plan
from .prune import Pruner
from .rounding import FOLDED, Spread, fold_statistics, scale_of
from .sharded import Gathered, full, is_sharded, laid, local, put, summed
from .shared_tensor import Clustering, SharedTensor, relative_change
from .tensors import Info, TensorError, TensorMap, check_dense, info_of, tie_of, version_of
from .treatments import TREATMENTS, Bits, ByRate, Exact, SharingConfig, Treatment, Work, treated

if TYPE_CHECKING:
    from .samples import Samples

# The learning rate of single weights over that of the centroids, while weights may be reassigned.
LATENT_RATE = 0.5


class WeightSharing(StepHooks):
    """Shares the weights of a model, and trains the shared values in place of single weights.

        sharing = WeightSharing(model, bits=5)
        optimizer = torch.optim.Adam(sharing.parameters(), 1e-4)
        sharing.attach(optimizer)
        ...                                                # your own loop
        sharing.detach()

    The options are the fields of net.treatments.SharingConfig, or one of these in place of `bits`;
    they decide at once what becomes of each tensor: `plan`, {name: Treatment}. Zeros stay zeros.

    `bits="auto"` is for a model that is trained already. `calibration`, an iterable of inputs of
    the model (tensors, or tuples or dicts of arguments), then gives far fewer bytes at the same
    error of the outputs (net.calibration), which also say how fine each tensor's steps are
    (net.sensitivity). `without_data` names the tensors that no input reached, and why;
    `unmeasured` says why the steps are those without data, or is empty. With `final` nothing can
    train the values, which then take fewer bytes: they follow a trellis (net.compensation).

    With `parts` > 1 the first part of the weights is shared at once, each further one by
    `share_next`, the biases with the last. Between parts, the weights that are not shared yet train
    on, zeros excepted, and compensate for those that are (after Zhou et al. 2017, incremental
    network quantization, where the parts are of each tensor). During the first `reassign` steps
    each weight follows its own gradient, too, and moves to the centroid that is nearest then.

    Normalisation and, with "auto", biases of 0 bits are rounded when the sharing begins and when it
    is detached; `rounded` is {name: the largest relative change by it}.

    The model is an ordinary one all the time: the shared values are written into its parameters,
    when the sharing begins and after every step. Frozen weights are shared and stay; so do those
    that no gradient reaches. With torch.amp.GradScaler call `gather_gradients` before the scaler's
    `unscale_` or `step`, so that it sees the gradients of the centroids.

    A model that several processes divide (fully_shard) takes the steps of one: each of them has to
    do all of this, calibration excepted, in the same order (net.sharded).

    `tensors` is {parameter name: SharedTensor}, `clusterings` {parameter name: Clustering}. Raises
    ValueError for options out of range, UserError for a pattern that matches nothing and for a
    tensor with infinite or NaN entries.
    """

    def __init__(
        self,
        model: nn.Module,
        bits: Bits | SharingConfig = 5,
        *,
        calibration: "Samples | Iterable | None" = None,
        final: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model)
        model = self._model
        self.config = config = SharingConfig.of(bits, options)
        if calibration is not None and config.bits != "auto":
            raise ValueError(
                f"calibration has no effect with bits={config.bits!r}; it is for bits='auto'"
            )
        self.final = final
        self.plan = plan(model, config)
        self._check_model(calibration is not None)
        self.tensors: dict[str, SharedTensor] = {}
        self.clusterings: dict[str, Clustering] = {}
        self.rounded: dict[str, float] = {}
        self._parameters = parameters_by_name(model)
        # {name: what was gathered since the last step, where a scaler may have to see it}
        self._gathered: dict[str, torch.Tensor | None] = {}
        self._waiting: set[str] = set()  # gathered when another optimizer has stepped
        # {name: (parameter, its version) as it was written}
        self._versions: dict[str, tuple[int, int]] = {}
        self._reached: set[str] = set()  # by a gradient since `attach`
        self._trained: set[str] = set()  # and in an optimizer
        self._scaler: weakref.ref | None = None
        self._scale: tuple[int, int] | None = None  # which one the last gradients have
        samples = None
        if calibration is not None:
            from .samples import Samples

            samples = Samples.of(model, calibration)
        state = Gathered(model.state_dict())
        self._work = Work(state, config, self.plan, model, samples, final)
        self.without_data = self._work.without_data
        self.unmeasured = self._work.unmeasured
        # In the order of the treatments, of each in that of the model.
        self._vectors: list[str] = []
        shared: list[str] = []
        for each in TREATMENTS:
            if each is not Exact:
                (shared if each.shares else self._vectors).extend(treated(self.plan, each.how))
        self._parts = self._in_parts(shared)
        # In what is shared later, too, zeros stay zeros.
        later = [name for part in self._parts[1:] for name in part]
        self._masks = {name: self._parameters[name] != 0 for name in later}
        self.share_next()
        self._round_vectors()

    def _check_model(self, calibrated: bool) -> None:
        shared = {name for name, each in self.plan.items() if each.kind and each.how != Exact.how}
        if not shared:
            reasons = Counter(each.reason for each in self.plan.values() if each.kind)
            why = f": {', '.join(reasons)}" if reasons else ", no weight of two or more dimensions"
            raise UserError(f"nothing in this model can be shared{why}; include= names others")
        parameters = parameters_by_name(self._model)
        for name, each in self.plan.items():
            if each.kind and name in parameters:
                check_written(name, parameters[name])
                if calibrated and is_sharded(parameters[name]):
                    raise UserError(
                        f"{name} is divided among processes, and calibration takes a whole model: "
                        "calibrate before fully_shard, or leave it out"
                    )
        if not self.final:
            warn_of_zeros({name: each for name, each in parameters.items() if name in shared})
        for other in attached_to(self._model):
            if isinstance(other, Pruner) and not other.finished:
                warnings.warn(f"a Pruner is attached, and {other.unfinished}", stacklevel=3)

    def _in_parts(self, names: list[str]) -> list[list[str]]:
        parts = self.config.parts
        if parts == 1:
            return [names]
        biases = [name for name in names if not self.plan[name].kind]
        weights = [name for name in names if self.plan[name].kind]
        weights.sort(key=lambda name: -self._parameters[name].numel())
        size = max(1, -(-len(weights) // parts))
        found = [weights[i : i + size] for i in range(0, len(weights), size)] or [[]]
        found[-1] += biases
        return found

    @property
    def parts_left(self) -> int:
        return len(self._parts)

    def share_next(self) -> bool:
        """Share the next part of the tensors; False if there is none left.

        What there is to train is other parameters then: detach, and make a new optimizer.
        """
        if not self._parts:
            return False
        for name in (name for part in self._parts for name in part):  # before any is changed
            if not bool(full(self._parameters[name].detach().isfinite().all())):
                raise UserError(f"cannot share {name}: not all values are finite")
        names = self._parts.pop(0)
        with self._at_work() as work:
            for each in TREATMENTS:
                each.prepare([name for name in names if self.plan[name].how == each.how], work)
            for name in names:
                self._masks.pop(name, None)
                self._share(name, work)
        if not self._parts:
            self._work.samples = None  # which may be large, and fine-tuning goes on for long
        return True

    @contextmanager
    def _at_work(self) -> Iterator[Work]:
        """The work with the tensors as they are now; kept, they would hold what has moved since."""
        self._work.tensors = Gathered(self._model.state_dict())
        yield self._work
        self._work.tensors, self._work.calibrated = {}, {}

    @torch.no_grad()
    def _share(self, name: str, work: Work) -> None:
        """Put the shared values of a parameter in its place."""
        parameter = self._parameters[name]
        reassignable = self.config.reassign > 0 and parameter.requires_grad
        # Of a divided one every process makes the same, and keeps its own part.
        before = full(parameter.detach())
        with naming(f"cannot share {name}"):  # not finite
            shared = self.plan[name].trainable(before, name, work, reassignable)
        # Not what `weight * mask`, as others prune, leaves: -0.0 would have to be stored.
        after = torch.zeros_like(before)
        shared.write(after)
        self.clusterings[name] = Clustering.of(before, after)
        put(parameter, after)
        parameter.grad = None  # of what it was; the optimizer to come does not clear it
        if is_sharded(parameter):
            shared.lie_as(parameter)
        self.tensors[name] = shared
        self._versions[name] = version_of(parameter)

    @torch.no_grad()
    def _round_vectors(self) -> None:
        state = self._model.state_dict()
        with self._at_work() as work:
            for name in self._vectors:
                tensor = work.tensors[name]
                rounded = self.plan[name].values(tensor, name, work)
                change = relative_change(tensor, rounded, scale_of(name, work.tensors))
                self.rounded[name] = max(change, self.rounded.get(name, 0.0))
                put(state[name], rounded)

    def detach(self) -> None:
        """Leave all optimizers, with shared values in the model.

        What has changed these since the last step (averaging, the evaluation mode of an optimizer,
        a state dict of an earlier epoch) is taken over. Warns where no gradient came.
        """
        super().detach()
        self._reached, self._trained = set(), set()
        self._round_vectors()

    def put_right(self, known: bool = False) -> None:
        """Take over what something else has written since: load_state_dict, averaging; with `known`
        only what autograd knows of."""
        for name, shared in self.tensors.items():
            parameter = self._parameters[name]
            if not known or self._versions[name] != version_of(parameter):
                shared.settle(parameter)
                self._versions[name] = version_of(parameter)

    @property
    def unfinished(self) -> str:
        own = {n for n in self.tensors if self._parameters[n].requires_grad}
        lost = sorted((self._reached & own) - self._trained)
        wrong = [n for n, each in self.tensors.items() if not each.values().isfinite().all()]
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
            for name, module in modules_by_name(self._model).items()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            and rounded.issuperset(f"{name}.{each}" for each in FOLDED)
        }
        for module in found.values():
            fold_statistics(module, self._work.noise)
        return list(found)

    _made_of = "sharing.parameters()"

    def _written(self) -> Iterable[str]:
        return self.tensors

    def trained(self) -> Iterator[nn.Parameter]:
        return (each for shared in self.tensors.values() for each in shared.trained())

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
        own = {id(self._parameters[name]) for name in self.tensors}
        single = [p for p in self._model.parameters() if p.requires_grad and id(p) not in own]
        trained = [each for n, each in self.tensors.items() if self._parameters[n].requires_grad]
        latent = [each.latent for each in trained if each.latent is not None]
        groups = [{"params": [*single, *(each.centroids for each in trained)], "lr": lr}]
        if latent:
            groups.append({"params": latent, "lr": lr * LATENT_RATE})
        return groups

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """From here on every step of `optimizer` trains the shared values.

        Raises ValueError for an optimizer of the weights themselves, which would train nothing, for
        those that StepHooks.attach refuses, and if the values are final.
        """
        if self.final:
            raise ValueError("these shared values are final; to train them, leave out final=True")
        if isinstance(optimizer, torch.optim.SparseAdam):
            raise ValueError("gradients of shared values are dense; use Adam, not SparseAdam")
        first: dict[tuple, str] = {}
        for name in self.tensors:  # what one writes the other would write over
            memory = local(self._parameters[name].detach())
            if not memory.numel() or memory.is_meta:
                continue
            same = first.setdefault((memory.device, memory.data_ptr()), name)
            if same != name:
                raise UserError(
                    f"{same} and {name} are two parameters of the same memory; make them one, as "
                    "in b.weight = a.weight, before the model is shared"
                )
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
        self.put_right(known=True)
        gradients = {}
        for name in self.tensors:
            parameter = self._parameters[name]
            if (gradient := parameter.grad) is not None:
                dense = gradient if gradient.layout == torch.strided else gradient.to_dense()
                gradients[name] = laid(dense, parameter)
                parameter.grad = None
        parts = [self.tensors[name].sums(each) for name, each in gradients.items()]
        sums = summed(parts, list(gradients.values()))
        for (name, gradient), own in zip(gradients.items(), sums, strict=True):
            # A scaler is not known before its first step, and may have left out others.
            unknown = self._scaler is None
            self.tensors[name].take_gradient(gradient, own, name in self._gathered, unknown)
            self._gathered[name] = None
        self._reached.update(gradients)
        return list(gradients)

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_scaler": None}

    def _is_unscaled(self, scaler: Any) -> bool:
        """Whether a scaler has unscaled the gradients of this step already."""
        of = scaler._per_optimizer_states.get
        found = (of(id(each), {}) for attached in self._attached for each in attached.stepping)
        return any(state.get("stage") is OptState.UNSCALED for state in found)

    def gather(self, optimizer: torch.optim.Optimizer) -> None:
        scaler = gradient_scaler()
        if scaler is not None:
            self._scaler = weakref.ref(scaler)
            self._check_unscaled(scaler, optimizer)
        self._take()

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.gather(optimizer)
        for name in self._names_in(optimizer):
            if name in self._gathered or name in self._waiting:
                self._trained.add(name)
            else:  # of an earlier step, where this one did not reach the tensor
                for each in self.tensors[name].trained():
                    each.grad = None

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
            before, now = full(before), full(after.grad)
            if torch.equal(before, now) and bool(before.any()):
                raise UserError(SCALED)

    def after_step(self, optimizer: torch.optim.Optimizer, counted: bool) -> None:
        self.step_is_over(optimizer)
        if counted and self.steps_done <= self.config.reassign:
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
        self._follow()
        for name, shared in self.tensors.items():
            shared.write(self._parameters[name])
            self._versions[name] = version_of(self._parameters[name])
        with torch.no_grad():
            for name, mask in self._masks.items():
                parameter = self._parameters[name]
                parameter.mul_(mask.to(parameter.device))

    settle = write

    def apply_to(self, copy: nn.Module) -> None:
        """Share the weights of another model with the same names, a copy or an average of this one
        (torch.optim.swa_utils.AveragedModel): those that have one value here get one there, their
        mean, and what is pruned here is zero. Raises ValueError where it has other parameters."""
        own = {name: self._parameters[name] for name in self.tensors}
        for name, parameter in parameters_of(copy, own).items():
            self.tensors[name].share(parameter)

    def state_dict(self) -> dict:
        """What a resumed run needs, beside the model's and the optimizer's state."""
        tensors = {n: each.state_dict(self._parameters[n]) for n, each in self.tensors.items()}
        model = self._model.state_dict()
        # Copies, as they are in training: `detach` rounds them, and so does a new sharing.
        vectors = {name: model[name].clone() for name in self._vectors}
        return {"tensors": tensors, "vectors": vectors, "steps_done": self.steps_done}

    def load_state_dict(self, state: Mapping, strict: bool = True) -> None:
        """Go on where `state_dict` was taken; call it before you make the optimizer.

        Raises ValueError for another model's state, and, if `strict`, where this sharing has other
        zeros than that one had; nothing has changed then.
        """
        if not isinstance(state, Mapping) or not {"tensors", "vectors", "steps_done"} <= set(state):
            raise ValueError("this is no state of a WeightSharing")
        if state["tensors"].keys() != self.tensors.keys():
            raise ValueError("this state belongs to other parameters than those shared here")
        model = self._model.state_dict()
        if any(n not in model or model[n].shape != v.shape for n, v in state["vectors"].items()):
            raise ValueError("this state has vectors that the model has not")
        for name, shared in self.tensors.items():  # all of it, before anything is changed
            rounds = self.plan[name].how == ByRate.how
            shared.check_state(state["tensors"][name], self._parameters[name], strict, rounds)
        for name, shared in self.tensors.items():
            parameter = self._parameters[name]
            shared.load_state_dict(state["tensors"][name], parameter)
            local(parameter.detach()).zero_()  # `write` leaves pruned ones as they are
        self._model.load_state_dict(state["vectors"], strict=False)
        self.steps_done = state["steps_done"]
        if self.steps_done:  # by which all have been trained, whether more are to come or not
            self._reached, self._trained = set(self.tensors), set(self.tensors)
        self.write()


SCALED = (
    "the gradients of the weights were left out when the scaler unscaled: call "
    "sharing.gather_gradients() after backward, before the scaler's unscale_ or step"
)


class SharedState(TensorMap):
    """A state dict with shared values, without architecture, data and training; state[name] reads,
    shares and returns one tensor.

    Nothing is kept, so that a checkpoint larger than memory can be shared and encoded, but for
    tied tensors, which stay one tensor. The options are those of WeightSharing, the
    fields of SharingConfig, or one of these in place of `bits`; `plan` is {name: Treatment}.
    `clusterings` and `rounded`, {name: relative change}, fill with every tensor that was asked for.
    `survey` has the plan, and the spreads of what is shared by rate, where these are known;
    `calibrated` what has come of tensors that are shared by rate, where there were inputs for it.
    Raises ValueError for options out of range, UserError for a pattern that matches nothing and for
    a tensor that is not finite, or not dense.
    """

    def __init__(
        self,
        source: Mapping[str, torch.Tensor],
        bits: Bits | SharingConfig = "auto",
        *,
        survey: tuple[dict[str, Treatment], dict[str, Spread]] | None = None,
        calibrated: Mapping[str, torch.Tensor] | None = None,
        **options: Any,
    ) -> None:
        if not hasattr(source, "info"):  # in memory; what is read from a file is dense
            for name in source:
                try:
                    check_dense(name, source[name])
                except TensorError as error:
                    raise UserError(f"cannot share {error}") from None
        self.source = self._named = source
        self.config = SharingConfig.of(bits, options)
        self.plan, spreads = survey or (plan(source, self.config), None)
        self.clusterings: dict[str, Clustering] = {}
        self.rounded: dict[str, float] = {}
        self._work = Work(
            source,
            self.config,
            self.plan,
            final=True,
            spreads=spreads,
            calibrated=calibrated or {},
        )
        self._tied = {each.tied for each in self.plan.values() if each.tied}
        self._kept: dict[str, torch.Tensor] = {}

    def info(self, name: str) -> Info:
        """The type and shape of a tensor."""
        return info_of(self.source, name)

    def tie(self, name: str) -> Hashable:
        """Equal for the names of one tensor (net.tensors.tie_of)."""
        return tie_of(self.source, name)

    def __getitem__(self, name: str) -> torch.Tensor:
        treatment = self.plan.get(name)
        if treatment is None:  # no tensor
            return self.source[name]
        name = treatment.tied or name
        if name in self._kept:
            return self._kept[name]
        before = self.source[name]
        with naming(f"cannot share {name}"):  # not finite
            after = treatment.values(before, name, self._work)
        if treatment.shares:
            self.clusterings[name] = Clustering.of(before, after)
        elif after is not before:
            self.rounded[name] = relative_change(before, after, scale_of(name, self.source))
        if name in self._tied:
            self._kept[name] = after
        return after
