"""Several processes at one job, with torch.distributed or, as one process is, without it."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from torch import distributed

from .errors import Told, UserError

Value = TypeVar("Value")


class Processes:
    """All processes of torch.distributed, which do the same calls of `gather` in the same order.

    `rank`: the number of this one, of `count`. A process that has ended is noticed at once by
    those that wait for it, one that hangs after `longest`, 30 minutes by default.
    """

    def __init__(self, longest: timedelta = timedelta(minutes=30)) -> None:
        several = distributed.is_available() and distributed.is_initialized()
        self.rank, self.count = 0, 1
        if several:
            self.rank, self.count = distributed.get_rank(), distributed.get_world_size()
        self.longest = longest
        # of its own, since the default one may be of GPUs, and has another bound
        self.group: Any = (
            distributed.new_group(backend="gloo", timeout=longest) if several else None
        )

    def gather(self, work: Callable[[], Value]) -> list[Value]:
        """What `work` returns in every process, which can be pickled, in the order of the ranks.

        Where it fails in one of them, that is the UserError of the first process, and Told in the
        others.
        """
        found, error = None, ""
        try:
            found = work()
        except (UserError, OSError, MemoryError) as problem:
            error = str(problem) or type(problem).__name__
        everything: list = [(found, error)] * self.count
        if self.group is not None:
            try:
                distributed.all_gather_object(everything, (found, error), self.group)
            except RuntimeError as problem:
                self.fail(error or self._lost(problem))
        errors = {rank: text for rank, (_, text) in enumerate(everything) if text}
        for rank, text in errors.items():
            everywhere = len(set(errors.values())) == 1 and len(errors) == self.count
            self.fail(text if everywhere else f"process {rank} of {self.count}: {text}")
        return [found for found, _ in everything]

    def fail(self, text: str) -> NoReturn:
        """Called in every process, where one of them is to say why."""
        raise UserError(text) if self.rank == 0 else Told(text)

    def _lost(self, problem: RuntimeError) -> str:
        if "imed out" in str(problem):
            return f"another process has not answered for {self.longest}; start them again"
        return "another process has ended before this one; start them again for what is left"
