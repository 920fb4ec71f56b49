"""Tables of constants among the weights of a model, told by values that no training gives.

Filter banks, windows and sinusoidal positions are often stored as the weight of a layer, where
nothing else tells them from what was learned. In each of them every row follows a law, to the last
digits, which rows of weights do not.
"""

import torch

LEAST = 8  # columns: rows of fewer may follow a law by chance
SAMPLE = 1 << 14  # values that are looked at before all are
MOST = 256  # values that may be called few
ROWS = 16  # and more, that are looked at before all are
NEGLIGIBLE = 1e-5


def is_table(tensor: torch.Tensor) -> bool:
    """Whether `tensor` [rows, ...], flattened to [rows, columns], is a table of constants.

    Its rows are then all one of these: mirrored, up to their sign (filters of a Fourier or cosine
    transform under any symmetric window, blurs); pairs of a sine and a cosine (positions); rising
    and then falling, none negative (mel filters, windows).
    """
    rows = tensor.detach().flatten(1)
    if rows.shape[1] < LEAST or not len(rows):
        return False
    few = rows[:: max(1, len(rows) // ROWS)]
    laws = [law for law in (_mirrored, _sinusoidal, _single_peaked) if law(few)]
    return bool(laws) and bool(rows.isfinite().all()) and any(law(rows) for law in laws)


def _live(rows: torch.Tensor) -> tuple[torch.Tensor, float]:
    """(the rows that are not zero, or next to it as a sine at all its zeros, in float64, divided by
    the largest magnitude of each; how far two equal numbers may lie apart)."""
    tolerance = 1e-4 if rows.dtype.itemsize > 2 else 1e-2
    exact = rows.double()
    largest = exact.abs().amax(1, keepdim=True)
    live = (largest > NEGLIGIBLE * largest.max()).flatten()
    return exact[live] / largest[live], tolerance


def _mirrored(rows: torch.Tensor) -> bool:
    live, tolerance = _live(rows)
    found = torch.zeros(len(live), dtype=torch.bool)
    # About the middle, or about the middle but for a first value, as of a periodic window.
    for part in (live, live[:, 1:]):
        for sign in (1, -1):
            found |= ((part - sign * part.flip(1)).abs() <= tolerance).all(1).cpu()
    return bool(len(live)) and bool(found.all())


def _sinusoidal(rows: torch.Tensor) -> bool:
    if rows.shape[1] % 2:
        return False
    exact = rows.double()
    exact = exact[(exact != 0).any(1)]  # that of padding is zero
    if not exact.numel() or float(exact.abs().amin()) > float(exact.abs().amax()) / 2:
        return False  # as binary weights
    middle = rows.shape[1] // 2
    tolerance = 1e-4 if rows.dtype.itemsize > 2 else 1e-2
    for a, b in (
        (exact[:, :middle], exact[:, middle:]),
        (exact[:, ::2], exact[:, 1::2]),
    ):
        power = a.square() + b.square()
        if float(power.amax() - power.amin()) <= tolerance * float(power.amax()):
            return True
    return False


def _single_peaked(rows: torch.Tensor) -> bool:
    live, _ = _live(rows)
    if not len(live) or bool((live < 0).any()):
        return False
    change = live.diff(dim=1)
    fallen = (change < 0).cumsum(1) > 0
    return not bool((fallen & (change > 0)).any())


def few_values(tensor: torch.Tensor, most: int) -> int:
    """How many values but 0 `tensor` has, if these are at most `most` (and MOST) and each occurs
    four times or more on average; otherwise 0."""
    most = min(most, MOST)
    flat = tensor.detach().flatten()
    sample = flat[:SAMPLE]
    if len(sample[sample != 0].unique()) > most:
        return 0
    live = flat[flat != 0]
    distinct = len(live.unique())
    return distinct if distinct <= most and 4 * distinct <= len(live) else 0
