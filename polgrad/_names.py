"""The known names that somebody may have meant by an unknown one."""

import difflib
from collections.abc import Iterable

__all__ = ["hint", "nearest"]


def nearest(name: str, known: Iterable[str], n: int = 1, cutoff: float = 0.6) -> list[str]:
    """The known names that are most like a name, the likeliest first.

    Args:
      name: what was typed.
      known: the names there are.
      n: how many at most.
      cutoff: likeness that is needed, from 0 to 1, as `difflib.get_close_matches` has it.

    Returns:
      The names, or an empty list.
    """
    known = list(known)
    # Capital letters tell no names apart: GRPO is how papers write grpo.
    lower = name.lower()
    small = dict.fromkeys(other.lower() for other in known)
    likely = difflib.get_close_matches(lower, small, max(1, len(small)), cutoff)
    close = [other for one in likely for other in known if other.lower() == one]
    close.sort(key=lambda other: (_order(lower, other.lower()), _slips(name, other)))
    return close[:n]


def hint(name: str, known: Iterable[str], n: int = 1, cutoff: float = 0.6) -> str:
    """The end of a message on an unknown name, or nothing where none is like it.

    Args:
      name: as for `nearest`, and so are the others.
      known: the names there are.
      n: how many names the message suggests at most.
      cutoff: likeness that is needed.

    Returns:
      Such as "; did you mean grpo or gspo?", or "".
    """
    close = nearest(name, known, n, cutoff)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _order(name: str, other: str) -> tuple[bool, int, bool]:
    """How far a known name is from what was typed: the smallest is the likeliest."""
    # The rest of a long name is often left out, and counts as many slips.
    # The commonest slip swaps two letters, which keeps all of them.
    return not other.startswith(name), _slips(name, other), sorted(name) != sorted(other)


def _slips(a: str, b: str) -> int:
    """Letters to insert, to leave out, to replace, and neighbours to swap, until `a` is `b`."""
    before, row = [], list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        earlier, before, row = before, row, [i]
        for j, y in enumerate(b, 1):
            steps = [before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y)]
            if i > 1 and j > 1 and x == b[j - 2] and y == a[i - 2]:
                steps.append(earlier[j - 2] + 1)
            row.append(min(steps))
    return row[-1]
