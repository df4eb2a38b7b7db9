"""Which examples make up a batch: a pure function of the seed and the step."""

import functools

import numpy as np


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    # The raw stream of a bit generator is stable across numpy releases; that of
    # Generator.permutation is not, and a resumed run must meet the same batches.
    raw = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(size)
    order = np.argsort(raw, kind="stable").astype(np.int64)
    order.setflags(write=False)
    return order


def batch_indices(seed: int, step: int, batch_size: int, size: int) -> np.ndarray:
    """Indices of the examples of one batch, drawn without replacement in each epoch.

    Batch `step` holds positions `step * batch_size ... (step + 1) * batch_size - 1` of the
    endless sequence `permutation(seed, 0), permutation(seed, 1), ...`, each of `size`
    indices; a batch may cross an epoch boundary, or hold several epochs.

    Args:
        seed: non-negative int; together with the epoch it fixes the order.
        step: non-negative int, the number of batches before this one.
        batch_size: examples in a batch, at least 1.
        size: examples in the source, at least 1.

    Returns:
        int64 array of shape [batch_size] with values in [0, size).

    Raises:
        ValueError: an argument is out of range.
    """
    for name, value, low in (
        ("seed", seed, 0),
        ("step", step, 0),
        ("batch_size", batch_size, 1),
        ("size", size, 1),
    ):
        if isinstance(value, bool) or int(value) != value or value < low:
            raise ValueError(f"{name} must be an integer of at least {low}, got {value!r}")
    # Python integers: step * batch_size may pass 2^63 only in theory, and then still be right.
    start, stop = int(step) * int(batch_size), (int(step) + 1) * int(batch_size)
    pieces = []
    while start < stop:
        epoch, offset = divmod(start, int(size))
        piece = _permutation(int(seed), epoch, int(size))[offset : offset + stop - start]
        pieces.append(piece)
        start += len(piece)
    return np.concatenate(pieces)
