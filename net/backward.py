"""Gradients of what a model answers, of whose blocks one at a time is in memory (net.blocks).

As with activation checkpointing: all blocks are passed without gradients, and what each gave is
kept; then each is run again from what came into it, from the last to the first, with the gradients
by its output that the place behind it has left. A model in whole is the case of no blocks.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from .blocks import OUTSIDE, Kept, Passage, block_of
from .samples import Call

# Of what the model answers: (a tensor of it, directions of its shape), or None.
Asked = Callable[[Any], tuple[torch.Tensor, Iterable[torch.Tensor]] | None]
Found = Iterator[tuple[str, nn.Parameter, torch.Tensor]]
Seeds = Iterable[tuple[list[torch.Tensor], list[torch.Tensor]]]  # tensors, and gradients by these


def gradients(passage: Passage, call: Call, names: Collection[str], asked: Asked) -> Found:
    """(name, parameter, gradient of <direction, tensor>) for each direction that `asked` gives, in
    their order, and those of the parameters `names` that it reaches.

    Gradients by what is in no block come at the end: it may be reached from several places.
    """
    backward, last = _Backward(passage, names, asked), len(passage.blocks)
    passage.trail = True
    with closing(passage.through([*range(last), *range(last, -1, -1)])) as places:
        for step, _ in enumerate(places):
            if step < last:
                with torch.no_grad():
                    passage(0, call, keep=True)
            else:
                yield from backward.through(passage.run(0, call))
            if step == 2 * last:
                yield from backward.outside()


class _Backward:
    """What goes from one place of a passage to the place before it."""

    def __init__(self, passage: Passage, names: Collection[str], asked: Asked) -> None:
        self.passage, self.names, self.asked = passage, names, asked
        self._kept, self._sums = Kept(), Kept()
        # By direction: the tensors that the block before gave, and the parameters in no block.
        self._left: list[list[int]] = []
        self._reached: set[tuple[str, int]] = set()

    def through(self, output: Any) -> Found:
        """Of the parameters in blocks that `output`, of the passage's place, comes of."""
        parameters, entries = self.passage.parameters(self.names), self.passage.entries
        sources = [*parameters.values(), *entries.values()]
        seeds = self._seeds(output, self._left)
        self._left = []
        for direction, (roots, by_roots) in enumerate(seeds):
            found = torch.autograd.grad(
                roots, sources, by_roots, retain_graph=True, allow_unused=True
            )
            came = dict(zip(entries, found[len(parameters) :], strict=True))
            self._left.append([i for i, gradient in came.items() if gradient is not None])
            for i in self._left[-1]:
                self._kept[f"{i} {direction}"] = came[i]
            for name, gradient in zip(parameters, found, strict=False):
                if gradient is None:
                    continue
                if self._is_outside(name):
                    self._add(name, direction, gradient)
                else:
                    yield name, parameters[name], gradient

    def _is_outside(self, name: str) -> bool:
        blocks = self.passage.blocks
        return bool(blocks) and block_of(name, blocks) == OUTSIDE

    def _seeds(self, output: Any, left: list[list[int]]) -> Seeds:
        if self.passage.place < len(self.passage.blocks):
            yield from self._of_block(tree_leaves(output), left)
        elif found := self.asked(output):
            tensor, directions = found
            yield from (([tensor], [each]) for each in directions)

    def _of_block(self, leaves: list[Any], left: list[list[int]]) -> Seeds:
        """What the places behind a block have left by the tensors that it gave."""
        for direction, keys in enumerate(left):
            live = [key for key in keys if leaves[key].requires_grad]
            if live:
                by_leaves = [self._kept[f"{key} {direction}"] for key in live]
                roots = [leaves[key] for key in live]
                yield roots, [each.to(self.passage.device) for each in by_leaves]

    def _add(self, name: str, direction: int, gradient: torch.Tensor) -> None:
        key, gradient = f"{name} {direction}", gradient.to_dense()
        if (name, direction) in self._reached:
            gradient = gradient + self._sums[key].to(gradient.device)
        self._sums[key] = gradient
        self._reached.add((name, direction))

    def outside(self) -> Found:
        """Of the parameters in no block."""
        parameters = self.passage.parameters(self.names)
        for name, direction in sorted(self._reached):
            yield name, parameters[name], self._sums[f"{name} {direction}"].to(self.passage.device)
