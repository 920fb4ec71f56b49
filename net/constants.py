"""Tables of constants among the weights of a model, told by values that no training gives.

Filter banks, windows and sinusoidal positions are often stored as the weight of a layer, where
nothing else tells them from what was learned. In each of them every row follows a law, to the last
digits, which rows of weights do not.
"""

import numpy as np
import torch

LEAST = 8  # columns: rows of fewer may follow a law by chance
ROWS = 8  # and up to twice as many, that are looked at before all are
NEGLIGIBLE = 1e-3
SAMPLE = 1 << 12  # values that are looked at before all are
MOST = 256  # values that may be called few


def is_table(tensor: torch.Tensor) -> bool:
    """Whether `tensor` [rows, ...], flattened to [rows, columns], is a table of constants.

    Its rows are then all one of these: mirrored, up to their sign (filters of a Fourier or cosine
    transform under a periodic window, blurs); pairs of a sine and a cosine (positions, along one
    axis or more); rising and then falling (mel filters, windows) or the other way (distances), if
    all have one sign or hardly a zero. Or it is a diagonal matrix, as shifts of colours are.
    """
    rows = tensor.detach().flatten(1)
    if _is_diagonal(rows):
        return True
    if rows.shape[1] < LEAST or not len(rows):
        return False
    # Angles of thousands are exact to some thousandths in float32.
    tolerance = 2e-3 if rows.dtype.itemsize > 2 else 1e-2
    few = _exact(rows[:: max(1, len(rows) // ROWS)])
    laws = [law for law in (_mirrored, _sinusoidal, _single_peaked) if law(few, tolerance)]
    return any(law(_exact(rows), tolerance) for law in laws)


def _is_diagonal(rows: torch.Tensor) -> bool:
    height, width = rows.shape
    if height != width or width < 3 or bool(rows[0, 1:].any()):  # most are no more looked at
        return False
    return bool(rows.diagonal().all()) and int(rows.count_nonzero()) == height


def _exact(rows: torch.Tensor) -> np.ndarray:
    """float64 [rows, columns] of those rows that are not zero, or next to it, as is a sine of which
    only the zeros were taken; none if any value is not finite."""
    values = rows.to("cpu", torch.float64).numpy()
    largest = np.abs(values).max(axis=1)
    if not np.isfinite(largest).all():
        return values[:0]
    return values[largest > NEGLIGIBLE * largest.max()]


def _mirrored(rows: np.ndarray, tolerance: float) -> bool:
    allowed = tolerance * np.abs(rows).max(axis=1, initial=0.0, keepdims=True)
    found = np.zeros(len(rows), bool)
    # About the middle, or about the middle but for a first value, as of a periodic window.
    for part in (rows, rows[:, 1:]):
        for sign in (1, -1):
            found |= (np.abs(part - sign * part[:, ::-1]) <= allowed).all(axis=1)
    return bool(len(rows)) and bool(found.all())


def _sinusoidal(rows: np.ndarray, tolerance: float) -> bool:
    sizes = np.abs(rows)
    if not len(rows) or rows.shape[1] % 2 or sizes.min() > sizes.max() / 2:  # binary weights
        return False
    for apart in range(1, rows.shape[1] // 2 + 1):  # each sine from its cosine
        if rows.shape[1] % (2 * apart):
            continue
        power = (rows**2).reshape(len(rows), -1, 2, apart).sum(axis=2)
        if power.max() - power.min() <= tolerance * power.max():
            return True
    return False


def _single_peaked(rows: np.ndarray, _: float) -> bool:
    one_sign = len(rows) and (rows.min() >= 0 or rows.max() <= 0)
    if not one_sign and 4 * np.count_nonzero(rows) < 3 * rows.size:  # a pruned weight
        return False
    change = np.diff(rows, axis=1)
    found = np.zeros(len(rows), bool)
    for steps in (change, -change):
        fallen = np.logical_or.accumulate(steps < 0, axis=1)
        found |= ~(fallen & (steps > 0)).any(axis=1)
    return bool(len(rows)) and bool(found.all())


def few_values(tensor: torch.Tensor, most: int) -> int:
    """How many values but 0 `tensor` has, if these are at most `most` (and MOST) and each occurs
    four times or more on average, or it is one; otherwise 0, as of a tensor that is not finite."""
    most = min(most, MOST)
    flat = tensor.detach().flatten()
    if _distinct(flat[:SAMPLE]) > most:
        return 0
    count, distinct = int(flat.count_nonzero()), _distinct(flat)
    few = distinct <= most and (distinct == 1 or 4 * distinct <= count)
    return distinct if few and bool(flat.isfinite().all()) else 0


def _distinct(values: torch.Tensor) -> int:
    """The number of values but 0, infinities included."""
    found = np.unique(values.to("cpu", torch.float64).numpy())
    return found.size - bool((found == 0).any())
