"""Architectures that a test names: `tests.own_classes:Rows`."""

from typing import ClassVar

from torch import nn


class Rows(nn.Module):
    """One layer; its default is the number of classes that the digits have."""

    def __init__(self, num_classes=12):
        super().__init__()
        self.fc = nn.Linear(784, num_classes)

    def forward(self, x):
        return self.fc(x.flatten(1))


class OnlyNorm(nn.Module):
    """Nothing that can be pruned."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(784)

    def forward(self, x):
        return self.norm(x.flatten(1))[:, :10]


class Frozen(nn.Module):
    """A first layer that is not trained."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(784, 32), nn.Linear(32, 10)
        nn.init.constant_(self.first.weight, 0.01)
        self.first.requires_grad_(False)

    def forward(self, x):
        return self.second(self.first(x.flatten(1)).relu())


class FailsInTraining(Rows):
    """As the code of somebody may."""

    def forward(self, x):
        if self.training:
            raise KeyError("no such thing")
        return super().forward(x)


class LearnsNothing(Rows):
    """Its answers have no gradient."""

    def forward(self, x):
        return super().forward(x).detach()


class Takes100(Rows):
    """Of other inputs than the digits."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(100, 10)


class Drops(Rows):
    """With a dropout of its own, a layer that it does not use, and a normalisation of batches."""

    rates: ClassVar[set] = set()

    def __init__(self, num_classes=12):
        super().__init__(num_classes)
        self.drop, self.unused = nn.Dropout(0.5), nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(784)

    def forward(self, x):
        if self.training:
            self.rates.add(self.drop.p)
        return super().forward(self.drop(self.norm(x.flatten(1))))
