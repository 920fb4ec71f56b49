"""Train on what a teacher says of distorted images, rather than on labels alone."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from ..extras import ProgressBar
from . import splits
from .inputs import WHOLE, augment
from .loop import outputs
from .splits import Batches, Split, training_batches


class Distorted:
    """A split whose every batch is changed afresh, in the way of its kind of images; with a
    `teacher`, what it says of them, in bfloat16 if `amp`, in the place of the labels."""

    def __init__(
        self, split: Split, strength: float, teacher: nn.Module | None = None, amp: bool = False
    ) -> None:
        self.split, self.strength, self.amp = split, strength, amp
        self.teacher = None if teacher is None else teacher.eval()

    def __len__(self) -> int:
        return len(self.split)

    def batches(
        self, batch_size: int, shuffle: bool = False, shard: tuple[int, int] = WHOLE
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (inputs, labels) or (inputs, the teacher's logits)."""
        for inputs, targets in self.split.batches(batch_size, shuffle, shard):
            inputs = augment(inputs, self.split.kind, self.strength, shard)
            if self.teacher is not None:
                bfloat16 = torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.amp)
                with torch.no_grad(), bfloat16:
                    targets = self.teacher(inputs)
                targets = targets.float()
            yield inputs, targets


def distilled(
    split: Split,
    teacher: nn.Module,
    copies: int,
    strength: float,
    batch_size: int = 500,
    amp: bool = False,
) -> Batches:
    """`split` as the teacher sees it: `copies` versions of every image, made once; a new one in
    every epoch for 0, or where these do not fit into memory, which the teacher sees in
    bfloat16 if `amp`. What is no image has one version."""
    if split.kind is None:
        return replace(split, labels=outputs(teacher, split, batch_size)[0])
    images, _ = next(iter(split.batches(1)))
    if 0 < copies * len(split) * images.numel() <= splits.IN_MEMORY:
        return Distilled(split, teacher, copies, strength, batch_size)
    return Distorted(split, strength, teacher, amp)


class Distilled:
    """`copies` distorted versions of every image of `split`, each with the teacher's logits.

    Made once, since both the distortion and a convolutional teacher cost more than a step of a
    small student; an epoch takes one version of each image.  Images are kept in 8 bits, between
    the least and the greatest value of the split: `images` uint8 [copies * N, C, H, W], `logits`
    float32 [copies * N, classes].
    """

    def __init__(
        self, split: Split, teacher: nn.Module, copies: int, strength: float, batch_size: int = 500
    ) -> None:
        extremes = [batch.aminmax() for batch, _ in split.batches(batch_size)]
        low, high = min(e.min for e in extremes), max(e.max for e in extremes)
        self.low, self.scale = low, (high - low) / 255
        self.bytes = low.dtype == torch.uint8  # which the model takes, and which stay exact
        self.size = len(split)
        images, logits = [], []
        teacher.eval()
        with torch.no_grad():
            for _ in ProgressBar(range(copies), "teacher's view"):
                for batch, _ in Distorted(split, strength).batches(batch_size):
                    images.append(self.stored(batch))
                    logits.append(teacher(self.restored(images[-1])))
        self.images, self.logits = torch.cat(images), torch.cat(logits)

    def stored(self, images: torch.Tensor) -> torch.Tensor:
        if self.bytes:
            return images
        return ((images - self.low) / self.scale).round().clamp(0, 255).byte()

    def restored(self, images: torch.Tensor) -> torch.Tensor:
        if self.bytes:
            return images
        return images.float().mul_(self.scale).add_(self.low)

    def __len__(self) -> int:
        return self.size

    def batches(
        self, batch_size: int, shuffle: bool = True, shard: tuple[int, int] = WHOLE
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (images, the teacher's logits), always shuffled; which version of an image is drawn
        each time."""
        order = torch.randperm(self.size)
        order += self.size * torch.randint(len(self.logits) // self.size, (self.size,))
        for index in training_batches(order, batch_size, shard):
            index = index.to(self.images.device)
            yield self.restored(self.images[index]), self.logits[index]


def distillation_loss(
    logits: torch.Tensor, teacher: torch.Tensor, temperature: float = 2.0
) -> torch.Tensor:
    """Kullback-Leibler divergence from the teacher's softened outputs (Hinton et al. 2015, eq. 1).

    Both arguments are logits [N, classes].  Times temperature squared, which keeps the size of the
    gradient (section 2.1 there).
    """
    return temperature**2 * F.kl_div(
        F.log_softmax(logits / temperature, 1),
        F.log_softmax(teacher / temperature, 1),
        log_target=True,
        reduction="batchmean",
    )
