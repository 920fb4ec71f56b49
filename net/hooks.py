"""What runs before and after every step of an optimizer, whoever wrote the training loop."""

import torch


class StepHooks:
    """Base of what attaches itself to a user's optimizer; see Pruner and WeightSharing.

    Any number of optimizers may be attached; `steps_done` counts the steps of the first. The hooks
    are those of torch.optim.Optimizer, so that fused optimizers, schedulers, gradient accumulation
    and wrappers such as those of accelerate need no care. An optimizer that computes its gradients
    inside of step (LBFGS) has none when the hook before the step runs, and cannot be used.
    """

    def __init__(self) -> None:
        self.steps_done = 0
        self._attached: dict[torch.optim.Optimizer, list] = {}

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """From here on every step of `optimizer` counts. Raises ValueError if it does already."""
        if optimizer in self._attached:
            raise ValueError("this optimizer is attached already")
        self._attached[optimizer] = [
            optimizer.register_step_pre_hook(lambda *_: self.before_step()),
            optimizer.register_step_post_hook(lambda *_: self._stepped(optimizer)),
        ]

    def detach(self) -> None:
        """Leave all optimizers; the model stays as it is."""
        for handles in self._attached.values():
            for handle in handles:
                handle.remove()
        self._attached = {}

    def before_step(self) -> None:
        """Called before every step, when the gradients are there."""

    def after_step(self) -> None:
        """Called after every step."""

    def _stepped(self, optimizer: torch.optim.Optimizer) -> None:
        if optimizer is next(iter(self._attached)):
            self.steps_done += 1
        self.after_step()
