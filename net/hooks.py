"""What runs before and after every step of an optimizer, whoever wrote the training loop."""

import inspect
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from .errors import UserError, some_names
from .modules import check_not_scripted, parameter_of, parameters_by_name, unwrapped
from .sharded import check, is_sharded, lies_alike, local, reshard
from .tensors import TensorError, overlaps, version_of

EVALUATIONS = 2  # of a closure in one step: SAM's; more is a search along a line
SCALER_FRAMES = 16  # between the step of an optimizer and that of the scaler that calls it


class StepHooks:
    """Base of what attaches itself to a user's optimizer; see Pruner and WeightSharing.

    Any number of optimizers may be attached; `steps_done` counts the steps of the first one that
    trains what this is about (`trained`), and of these only those that had a gradient of it. The
    hooks are those of torch.optim.Optimizer, so that fused optimizers, schedulers, accumulation and
    compiled models need no care. The closure that a step is given is replaced by one after which
    the gradients are looked at. Of an object that holds other optimizers (accelerate's, Lookahead,
    SAM) those are served that really step, and what it does to the parameters afterwards is put
    right. A copy or a pickle of this, with its model and its optimizers, is attached to these.

    Subclasses say in `_parameters` which parameters of the model they write; where the model has
    another one of that name now, as load_state_dict(assign=True) leaves it, that is followed.
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"give a module, not {type(model).__name__}")
        self.steps_done = 0
        self._model = unwrapped(model)
        check_not_scripted(self._model)
        reshard(self._model)
        self._parameters: dict[str, nn.Parameter] = {}
        self._attached: list[_Attached] = []
        self._was_attached = False
        self._moving: set[int] = set()  # optimizers in a step that has gradients
        # {id of a parameter: version of its gradient} after the last step
        self._stepped: dict[int, tuple[int, int]] = {}

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """From here on every step of `optimizer` counts.

        Raises ValueError if it does already, for what is no optimizer, for an optimizer that has no
        parameter of this model, and for LBFGS, whose steps are searches.
        """
        if any(optimizer is each.optimizer for each in self._attached):
            raise ValueError("this optimizer is attached already")
        self._follow()
        found = _Attached(optimizer)
        found.held = self._held(found)
        found.hang(self)
        self._attached.append(found)
        self._was_attached = True
        _live(self)

    def _held(self, attached: "_Attached") -> dict[str, nn.Parameter]:
        """{name: parameter} of the model's own that an optimizer has."""
        held = attached.parameter_ids()
        own = {n: p for n, p in parameters_by_name(self._model).items() if id(p) in held}
        if not own and not any(id(parameter) in held for parameter in self.trained()):
            raise ValueError(
                "this optimizer has no parameter of this model: it was made of another model's, of "
                f"a copy's, or before they were replaced; make it of {self._made_of}"
            )
        return own

    def detach(self) -> None:
        """Leave all optimizers; the model keeps what the last step made of it. What has changed
        its weights since then (averaging, optimizers with an evaluation mode) is put right.

        Warns where training did not do what it was to do.
        """
        mine = (parameter_of(self._model, name) for name in self._written())
        forgotten = not self._was_attached and any(
            p is not None and p.grad is not None for p in mine
        )
        expected = bool(self._attached) or forgotten
        for each in self._attached:
            each.remove()
        self._attached = []
        self._follow()
        self.put_right()
        problem = self.unfinished
        if expected and problem:
            never = "" if self._was_attached else "; nothing was ever attached"
            warnings.warn(problem + never, stacklevel=2)

    # What subclasses do

    def _written(self) -> Iterable[str]:
        """The names of the parameters that this writes."""
        return self._parameters

    _made_of = "model.parameters()"

    def trained(self) -> Iterable[nn.Parameter]:
        """What an optimizer must have the gradients of for a step to count."""
        return self._parameters.values()

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Called when the gradients are there, before they are used."""

    def gather(self, optimizer: torch.optim.Optimizer) -> None:
        """Put gradients where an optimizer looks for them."""

    def after_step(self, optimizer: torch.optim.Optimizer, counted: bool) -> None:
        """Called after every step; `counted` says whether it is one of `steps_done`."""

    def clear(self, optimizer: torch.optim.Optimizer) -> None:
        """Called after `zero_grad`."""

    def step_is_over(self, optimizer: torch.optim.Optimizer) -> None:
        """Called after the step of what is around an optimizer, which a scaler may leave out."""

    def settle(self) -> None:
        """Write what the weights are to be, as after a step."""

    def put_right(self) -> None:
        """The same where anything may have changed them since the last step."""
        self.settle()

    @property
    def unfinished(self) -> str:
        """What is still to be done before `detach`, or empty."""
        return ""

    # Of the hooks

    def _before(self, optimizer: Any, args: tuple, kwargs: dict, inner: bool) -> Any:
        """Of an `inner` optimizer, or of one around it, which may look at the gradients first."""
        self._check_held(optimizer)
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            if inner:
                self._gradients_are_there(optimizer)
            elif not _is_accumulating(optimizer):
                self.gather(optimizer)
            return None
        served = self._served(optimizer, closure, inner)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": served}
        return (args[0], served, *args[2:]), kwargs

    def _served(self, optimizer: Any, closure: Callable[[], Any], inner: bool) -> Callable:
        """`closure`, with a look at the gradients after it."""
        calls = 0

        def served() -> Any:
            nonlocal calls
            calls += 1
            if calls > EVALUATIONS:
                raise ValueError(
                    f"{type(optimizer).__name__} evaluates its closure more than {EVALUATIONS} "
                    "times in a step; train with an optimizer whose step is one gradient step"
                )
            self.settle()  # SAM evaluates it beside the weights
            with torch.enable_grad():
                loss = closure()
            if inner:
                self._gradients_are_there(optimizer)
            else:
                self.gather(optimizer)
            return loss

        return served

    def _gradients_are_there(self, optimizer: Any) -> None:
        self._moving.discard(id(optimizer))
        found_inf = getattr(optimizer, "found_inf", None)  # a scaler's, of a fused optimizer
        if found_inf is None or not bool(found_inf):
            self._follow()
            self.before_step(optimizer)
            held = self._attached_as(optimizer).parameter_ids()
            if any(id(p) in held and self._moves(p) for p in self.trained()):
                self._moving.add(id(optimizer))

    def _moves(self, parameter: nn.Parameter) -> bool:
        """Whether there is a gradient, other than the zeros of zero_grad(set_to_none=False)."""
        gradient = parameter.grad
        if gradient is None or gradient.layout != torch.strided or is_sharded(gradient):
            return gradient is not None
        before, version = self._stepped.get(id(parameter), (0, 0))
        # A backward pass after that is a second change; to look at values is to wait for a GPU.
        once = version_of(gradient) == (before, version + 1)
        return not once or bool(gradient.any())

    def _after(self, optimizer: Any) -> None:
        gradients = ((id(p), p.grad) for p in self.trained())
        self._stepped = {key: version_of(each) for key, each in gradients if each is not None}
        counted = id(optimizer) in self._moving and optimizer is self._counting()
        self._moving.discard(id(optimizer))
        self.steps_done += counted
        self.after_step(optimizer, counted)

    def _counting(self) -> Any:
        """The first optimizer that has any of `trained`."""
        trained = {id(parameter) for parameter in self.trained()}
        for each in self._attached:
            if trained & each.parameter_ids():
                return each.stepping[0]
        return None

    def _ids_in(self, optimizer: Any) -> set[int]:
        """Of the parameters that an optimizer steps, or those that it is around."""
        attached = self._attached_as(optimizer)
        if any(optimizer is each for each in attached.stepping):
            return _ids(optimizer)
        return attached.parameter_ids()

    def _stepped_by(self, optimizer: Any) -> set[int]:
        """Ids of the parameters whose gradients are there, as they are to be, when `optimizer`
        steps: those of another one may be scaled yet, or of another loss."""
        attached = self._attached_as(optimizer)
        others = [_ids(each) for each in attached.stepping if each is not optimizer]
        return attached.parameter_ids().difference(*others) | _ids(optimizer)

    def _attached_as(self, optimizer: Any) -> "_Attached":
        return next(
            attached
            for attached in self._attached
            if any(optimizer is each for each in (*attached.around, *attached.stepping))
        )

    # Parameters that others replace

    def _check_held(self, optimizer: Any) -> None:
        """Raises UserError where the optimizer trains what the model no longer has."""
        for name, parameter in self._attached_as(optimizer).held.items():
            if self._now(name, parameter) is not parameter and not self._has(parameter):
                raise UserError(
                    f"{name} was replaced in the model (load_state_dict(assign=True), a "
                    "conversion, another layer), and this optimizer trains what it was; detach, "
                    "make a new optimizer of the model's parameters, and attach that"
                )

    def _has(self, parameter: nn.Parameter) -> bool:
        """Whether the model has it under any name, as when a layer was wrapped since."""
        return any(parameter is each for each in self._model.parameters())

    def _now(self, name: str, known: nn.Parameter) -> nn.Parameter | None:
        """The model's parameter of that name, which was `known`."""
        current = parameter_of(self._model, name)
        if current is not known and is_sharded(known):  # gathered, by an evaluation perhaps
            reshard(self._model)
            current = parameter_of(self._model, name)
        return current

    def _follow(self) -> None:
        for name, known in self._parameters.items():
            current = self._now(name, known)
            if current is known or (current is None and self._has(known)):
                continue
            if current is None or not lies_alike(current, known):
                raise UserError(
                    f"the model has no {name} of the shape {tuple(known.shape)} any more, or has "
                    f"divided it since; make a new {type(self).__name__} of the model as it is"
                )
            self._parameters[name] = current

    def __copy__(self) -> "StepHooks":
        """Of the same model, and attached to nothing: the hooks on its optimizers stay this one's.
        (A deep copy takes model and optimizers along.)"""
        found = object.__new__(type(self))
        found.__dict__.update(self.__dict__, _moving=set(), _attached=[])
        return found

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_moving": set(), "_stepped": {}}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        for each in self._attached:
            each.hang(self)
        if self._attached:
            _live(self)


_ALIVE: "weakref.WeakSet[StepHooks]" = weakref.WeakSet()  # of all threads
_ALIVE_LOCK = threading.Lock()


def _live(one: StepHooks) -> None:
    with _ALIVE_LOCK:
        _ALIVE.add(one)


def attached_to(model: nn.Module) -> Iterator[StepHooks]:
    """What is attached to optimizers for a model."""
    inner = unwrapped(model)
    with _ALIVE_LOCK:
        alive = list(_ALIVE)
    return (each for each in alive if each._attached and each._model is inner)


def check_written(name: str, parameter: nn.Parameter) -> None:
    """Raises TensorError for a parameter that has no plain values, or that cannot be written in
    place."""
    check(name, parameter)
    if parameter.is_inference():
        raise TensorError(
            f"{name!r}: made in torch.inference_mode(), and not to be trained; make the model "
            "outside of it"
        )
    if overlaps(local(parameter.detach())):
        raise TensorError(
            f"{name!r}: an expanded tensor, elements of which share memory; make it one of its own "
            "(contiguous())"
        )


def warn_of_zeros(weights: Mapping[str, nn.Parameter]) -> None:
    """Warn of those that are to be trained and cannot be any more: what is pruned stays zero."""
    zeros = [
        name
        for name, weight in weights.items()
        if weight.requires_grad and not is_sharded(weight) and weight.numel() and not weight.any()
    ]
    if zeros:
        warnings.warn(
            f"all zeros, as those of a new adapter, and zeros from here on: {some_names(zeros)}; "
            "exclude= leaves them to be trained",
            stacklevel=3,
        )


def gradient_scaler() -> Any:
    """The torch.amp.GradScaler, enabled, from whose step the optimizer's is called; or None."""
    frame = sys._getframe(1)
    for _ in range(SCALER_FRAMES):
        if frame is None:
            return None
        caller = frame.f_locals.get("self") if frame.f_code.co_name == "step" else None
        if isinstance(caller, torch.amp.GradScaler) and caller.is_enabled():
            return caller
        frame = frame.f_back  # type: ignore[assignment]
    return None


class _Attached:
    """An optimizer that was given to attach, and those that step when it does."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.around: list[Any] = []  # that hold others, the outermost first
        self.stepping: list[Any] = []  # that hold none
        self.held: dict[str, nn.Parameter] = {}
        self.handles: list[Any] = []
        self._sort(optimizer)

    def _sort(self, optimizer: Any) -> None:
        if isinstance(optimizer, torch.optim.LBFGS) or not _is_optimizer(optimizer):
            raise ValueError(
                f"{type(optimizer).__name__} cannot be attached; give an optimizer each of whose "
                "steps is one gradient step"
            )
        held = [each for value in _fields(optimizer).values() for each in _optimizers_in(value)]
        if held:
            self.around.append(optimizer)
        elif not any(optimizer is each for each in self.stepping):
            self.stepping.append(optimizer)
        for each in held:
            if not any(each is known for known in self.around):
                self._sort(each)

    def parameter_ids(self) -> set[int]:
        return set().union(*map(_ids, (*self.around, *self.stepping)))

    def hang(self, owner: StepHooks) -> None:
        """Register the hooks, or those that a copy of an optimizer has not got; all or none."""
        self.remove()
        try:
            for each in self.stepping:
                self._serve(each, "step", _Hook(owner, "step", inner=True))
            for each in (*self.stepping, *self.around):
                if "zero_grad" in _fields(each) or hasattr(type(each), "zero_grad"):
                    self._serve(each, "zero_grad", _Hook(owner, "zero_grad", inner=False))
            for each in self.around:
                # SAM's first_step and second_step look at the gradients.
                for method in ("step", "first_step", "second_step"):
                    if callable(getattr(each, method, None)):
                        self._serve(each, method, _Hook(owner, method, inner=False))
        except ValueError:
            self.remove()
            raise

    def _serve(self, optimizer: Any, method: str, hook: "_Hook") -> None:
        # As Optimizer.__init__ wraps the step of its class, to call hooks.
        hooked = getattr(getattr(type(optimizer), "step", None), "hooked", False)
        if method == "step" and hooked and "_optimizer_step_pre_hooks" in _fields(optimizer):
            self.handles.append(optimizer.register_step_pre_hook(hook.before))
            self.handles.append(optimizer.register_step_post_hook(hook.after))
        else:
            self.handles.append(_Method(optimizer, method, hook))

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def __getstate__(self) -> dict:
        return {**self.__dict__, "handles": []}


class _Hook:
    """What is called before and after a method of an optimizer, for its owner.

    A copy does nothing: some optimizers take their hooks along when they are copied, and the copy
    of the owner registers its own.
    """

    def __init__(self, owner: StepHooks | None, method: str, inner: bool) -> None:
        self.owner, self.method, self.inner = owner, method, inner

    def before(self, optimizer: Any, args: tuple, kwargs: dict) -> Any:
        if self.owner is None:
            return None
        if self.method == "step":
            return self.owner._before(optimizer, args, kwargs, self.inner)
        if self.method != "zero_grad":
            self.owner.gather(optimizer)
        return None

    def after(self, optimizer: Any, args: tuple, kwargs: dict) -> None:
        if self.owner is None:
            return
        if self.inner:
            self.owner._after(optimizer)
        elif self.method == "zero_grad":
            self.owner.clear(optimizer)
        else:
            self.owner.settle()
            if self.method == "step" and not _is_accumulating(optimizer):
                self.owner.step_is_over(optimizer)

    def __reduce__(self) -> tuple:
        return _Hook, (None, self.method, self.inner)


class _Method:
    """In the place of a method of an object that calls no hooks of torch.optim.Optimizer."""

    def __init__(self, owner: Any, name: str, hook: _Hook) -> None:
        self.owner, self.name, self.hook = owner, name, hook
        self.replaced = _fields(owner).get(name)
        try:
            setattr(owner, name, self)
        except AttributeError:  # with __slots__
            raise ValueError(
                f"{type(owner).__name__} cannot be attached: nothing can be hung on its {name}"
            ) from None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args = (self.owner, *args)
        args, kwargs = self.hook.before(self.owner, args, kwargs) or (args, kwargs)
        result = self._method()(*args[1:], **kwargs)
        self.hook.after(self.owner, args, kwargs)
        return result

    def _method(self) -> Callable:
        return self.replaced or getattr(type(self.owner), self.name).__get__(self.owner)

    @property
    def __signature__(self) -> inspect.Signature:  # which accelerate asks for
        return inspect.signature(self._method())

    # Schedulers of torch take a method apart, and bind it again.

    @property
    def __func__(self) -> "_Method":
        return self

    def __get__(self, owner: Any, kind: Any = None) -> "_Method":
        return self

    def remove(self) -> None:
        self.hook.owner = None  # a scheduler may hold this for good
        if _fields(self.owner).get(self.name) is self:
            if self.replaced is None:
                delattr(self.owner, self.name)
            else:
                setattr(self.owner, self.name, self.replaced)


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, torch.optim.Optimizer) or (
        hasattr(value, "param_groups") and callable(getattr(value, "step", None))
    )


def _optimizers_in(value: Any) -> list[Any]:
    parts = value if isinstance(value, list | tuple) else [value]
    return [each for each in parts if not isinstance(each, nn.Module) and _is_optimizer(each)]


def _fields(value: Any) -> dict[str, Any]:
    return getattr(value, "__dict__", {})


def _is_accumulating(optimizer: Any) -> bool:
    """Whether the step of accelerate's does nothing, since more gradients are to come."""
    return not getattr(getattr(optimizer, "gradient_state", None), "sync_gradients", True)


def _ids(optimizer: Any) -> set[int]:
    return {id(each) for group in optimizer.param_groups for each in group["params"]}
