"""Names of tensors in tables and plots: repeated blocks in one row, long names made short."""

from collections.abc import Container, Hashable, Iterable, Mapping, Sequence
from pathlib import Path

from ..errors import printable

CUT = ".."
LEAST = 6  # characters of a part that is cut


def grouped(keys: Mapping[str, Hashable]) -> dict[str, list[str]]:
    """{row: names} of {name: key}: names of equal keys that differ in a number only share a row.

    Example: {"h.0.w": 1, "h.1.w": 1, "h.2.w": 1, "h.3.w": 2} -> {"h.0-2.w": [...], "h.3.w": [...]}

    A row stands for every combination of its numbers, as "layers.0-31.experts.0-7.w" does, and is
    where its first name was.
    """
    rows = [(tuple(name.split(".")), key, [name]) for name, key in keys.items()]
    for place in range(max((len(parts) for parts, *_ in rows), default=0)):
        alike: dict[Hashable, list] = {}  # rows that differ in this place only
        for i, row in enumerate(rows):
            parts, key, _ = row
            number = len(parts) > place and _is_number(parts[place])
            rest = (*parts[:place], None, *parts[place + 1 :], key) if number else i
            alike.setdefault(rest, []).append(row)
        rows = []
        for members in alike.values():
            parts, key, _ = members[0]
            if len(members) > 1:
                numbers = ranges(sorted(int(each[place]) for each, *_ in members))
                parts = (*parts[:place], numbers, *parts[place + 1 :])
            rows.append((parts, key, [name for *_, names in members for name in names]))
    found: dict[str, list[str]] = {}
    for parts, _, names in rows:
        text = ".".join(parts)
        # A name may read like a range itself: that is not to be taken for the row of others.
        taken = len(names) > 1 and text in keys
        found.update({name: [name] for name in names} if taken else {text: names})
    return found


def _is_number(part: str) -> bool:
    number = part.isdecimal() and part.isascii() and len(part) < 19
    return number and str(int(part)) == part  # not "01"


def ranges(numbers: Sequence[int]) -> str:
    """Ascending integers in short. Example: [0, 1, 2, 5] -> "0-2,5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)


def shorten(names: Iterable[str], width: int) -> dict[str, str]:
    """{name: text of at most `width` characters}, no two the same; `width` is at least 12.

    ".." stands for parts that are left out, those that most names have first, numbers last, as long
    as what remains can be no other of the names; "~" for characters, where that is not enough.
    Example: "encoder.layer.0.attention.self.query.weight" -> "..0..self.query.weight"
    """
    split = {name: printable(name).split(".") for name in names}
    having: dict[str, set[str]] = {}  # the names that have a part
    for name, parts in split.items():
        for part in parts:
            having.setdefault(part, set()).add(name)
    whole = {name: ".".join(parts) for name, parts in split.items()}
    taken = {text for text in whole.values() if len(text) <= width}
    found = {}
    for name, parts in split.items():
        text, number = whole[name], 1
        if len(text) > width:
            text = _cut(_chosen(name, parts, whole, having, width), width)
            unnumbered = text
            while text in taken:
                number += 1
                text = unnumbered[: width - len(f"~{number}")] + f"~{number}"
            taken.add(text)
        found[name] = text
    return found


def _chosen(
    name: str,
    parts: Sequence[str],
    whole: Mapping[str, str],
    having: Mapping[str, set[str]],
    width: int,
) -> list[str]:
    """The parts that stay, CUT in place of others: as many as fit, if that can be no other name."""

    last = len(parts) - 1

    def order(place: int) -> tuple:
        number = parts[place][:1].isdecimal()
        return number, place == last, -len(having[parts[place]]), place

    kept = set(range(len(parts)))
    for place in sorted(kept, key=order):
        fewer = kept - {place}
        over = len(_text(_with_gaps(parts, kept))) - width
        longest = max(len(parts[each]) for each in kept)
        if over <= 0 or not fewer or (order(place)[0] and longest - over >= LEAST):
            break
        if place == last and len(parts[last]) == longest:
            continue  # as "num_batches_tracked", it says more than the rest
        sets = sorted((having[parts[each]] for each in fewer), key=len)
        others = sets[0].intersection(*sets[1:]) - {name}
        text = _text(_with_gaps(parts, fewer))
        if not any(_may_be(text, whole[other]) for other in others):
            kept = fewer
    return _with_gaps(parts, kept)


def _with_gaps(parts: Sequence[str], kept: Container[int]) -> list[str]:
    """Example: ["a", "b", "c", "d"], {3} -> ["..", "d"]."""
    found: list[str] = []
    for place, part in enumerate(parts):
        if place in kept:
            found.append(part)
        elif found[-1:] != [CUT]:
            found.append(CUT)
    return found


def _may_be(text: str, name: str) -> bool:
    """Whether `text`, with CUT for any parts, can stand for `name`."""
    name, at = f".{name}.", 0
    first, *middle, last = text.split(CUT)
    for run in middle:
        at = name.find(f".{run}.", at) + 1
        if not at:
            return False
    begins = not first or name.startswith(f".{first}.")
    return begins and (not last or name[at:].endswith(f".{last}."))


def _text(parts: Sequence[str]) -> str:
    return ".".join(parts).replace(f"{CUT}.", CUT).replace(f".{CUT}", CUT)


def _cut(parts: list[str], width: int) -> str:
    """The text, if it is too long with its longest part cut, or else in its middle."""
    longest = max(range(len(parts)), key=lambda place: len(parts[place]))
    left = len(parts[longest]) - max(0, len(_text(parts)) - width)
    if left >= LEAST:
        return _text(
            [_ends(part, left if place == longest else width) for place, part in enumerate(parts)]
        )
    return _ends(_text(parts), width)


def _ends(text: str, width: int) -> str:
    head = (width - 1) // 2
    return text if len(text) <= width else f"{text[:head]}~{text[len(text) - width + head + 1 :]}"


def csv_names(path: str | Path) -> list[Path]:
    """NAME-stages.csv and NAME-layers.csv, the tables that NAME.csv stands for."""
    path = Path(path)
    return [path.with_name(f"{path.stem}-{kind}{path.suffix}") for kind in ("stages", "layers")]
