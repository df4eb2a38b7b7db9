"""Static checks whose message names the argument, what came and what was expected.

They look at shapes, which are known when a function is traced: a compiled call spends no time on
them. Nested lists of numbers have a shape as arrays have: numpy's `shape` takes lists, jax's does
not.
"""

from collections.abc import Collection

import numpy as np

__all__ = ["choice", "groups", "rank", "same_shape", "shape", "token_advantages"]


def shape(name: str, x, expected: tuple[int | None, ...], meaning: str) -> None:
    """Raises ValueError unless `x` has the shape `expected` (None: any size)."""
    given = np.shape(x)
    if len(given) == len(expected) and all(m in (n, None) for n, m in zip(given, expected)):
        return
    wanted = "[" + ", ".join("any" if n is None else str(n) for n in expected) + "]"
    raise ValueError(f"{name} has shape {list(given)}, expected {meaning} = {wanted}")


def rank(name: str, x, expected: int, meaning: str) -> None:
    """Raises ValueError unless `x` has `expected` axes."""
    if np.ndim(x) != expected:
        raise ValueError(
            f"{name} has shape {list(np.shape(x))}, expected rank {expected}: {meaning}"
        )


def same_shape(meaning: str, **arrays) -> None:
    """Raises ValueError unless all arrays have the shape of the first."""
    (first, reference), *others = arrays.items()
    for name, x in others:
        if np.shape(x) != np.shape(reference):
            raise ValueError(
                f"{name} has shape {list(np.shape(x))}, expected {meaning} = "
                f"{list(np.shape(reference))}, the shape of {first}"
            )


def token_advantages(advantages, logp) -> None:
    """Raises ValueError unless `advantages` is [B, T] or [B, 1] for `logp` of shape [B, T].

    Rank 1 is refused although it would broadcast: [T] against [B, T] puts the advantage of
    sequence t on token t, silently so when B == T.
    """
    rank("logp", logp, 2, "[B, T]")
    rank("advantages", advantages, 2, "[B, T] or [B, 1] (write advantages[:, None])")
    rows, columns = np.shape(logp)
    given = np.shape(advantages)
    if given not in {(rows, columns), (rows, 1)}:
        raise ValueError(
            f"advantages has shape {list(given)}, expected [B, T] = [{rows}, {columns}] "
            f"or [B, 1] = [{rows}, 1]"
        )


def groups(name: str, x) -> None:
    """Raises ValueError unless `x` is [..., G] with at least one axis before the group.

    Rank 1 is refused because it means two things: the G samples of one prompt, or (in the layout
    of other libraries) the samples of all prompts, whose statistics would then be taken as one
    group's.
    """
    if np.ndim(x) > 1:
        return
    if np.ndim(x) == 0:
        raise ValueError(f"{name} has shape [], expected [..., G] with the group on the last axis")
    raise ValueError(
        f"{name} has shape {list(np.shape(x))}, expected [..., G] with the group on the last axis "
        f"(write {name}.reshape(-1, G) for groups of G samples one after the other, {name}[None] "
        "for one group)"
    )


def choice(name: str, value: str, allowed: Collection[str]) -> None:
    """Raises ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, allowed))}")
