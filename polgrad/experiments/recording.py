"""From inside an arm's compiled loop to the screen and `metrics.jsonl`, while it runs."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax
from jaxtyping import Array

__all__ = ["record"]

# The seed that is traced, and where its rows go; empty outside of a run.
_SINK: contextvars.ContextVar = contextvars.ContextVar("polgrad_record", default=None)


def record(point: Array | int, total: int, **metrics: Array | float) -> None:
    """Shows how far an arm is, and its metrics so far.

    Call it where a curve gets a point, inside of scans too. The rows stand in `metrics.jsonl`
    until the arm's own curves replace them. Outside of a run it does nothing, so an arm stays
    a pure function.

    Args:
      point: the number of this point, from 0; traced or not.
      total: how many points the arm will have.
      **metrics: single numbers by name.
    """
    sink = _SINK.get()
    if sink is not None:
        seed, receive = sink
        jax.debug.callback(receive, seed, point, total, metrics)


@contextlib.contextmanager
def sink(seed: Array, receive: Callable[..., None]) -> Iterator[None]:
    """While a seed's arm is traced, `record` calls `receive(seed, point, total, metrics)`."""
    token = _SINK.set((seed, receive))
    try:
        yield
    finally:
        _SINK.reset(token)
