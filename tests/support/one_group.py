"""Group functions on one group at a time, which tests write as arrays of rank 1."""

import functools

import jax
import numpy as np

__all__ = ["one_group"]


def one_group(function):
    """`function`, of which arrays [G] are the only group; others are passed on as they are."""

    @functools.wraps(function)
    def call(first, *arrays, **settings):
        if np.ndim(first) != 1:
            return function(first, *arrays, **settings)
        size = np.shape(first)

        def lifted(x):
            return x[None] if hasattr(x, "shape") and np.shape(x) in (size, ()) else x

        arrays = [lifted(x) for x in (first, *arrays)]
        settings = {name: lifted(x) for name, x in settings.items()}
        return jax.tree.map(lambda x: x[0], function(*arrays, **settings))

    return call
