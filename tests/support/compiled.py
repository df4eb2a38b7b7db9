"""Calls compiled as one program.

Called directly, a function is compiled primitive by primitive, and again for every new shape:
most of the time of a small test.
"""

import functools

import jax


def run(function, *args, **settings):
    """function(*args, **settings) as one program; the settings are static and hashable."""
    return _program(function, tuple(sorted(settings.items())))(*args)


@functools.cache
def _program(function, settings):
    return jax.jit(functools.partial(function, **dict(settings)))


def grad(function, **kwargs):
    return jax.jit(jax.grad(function, **kwargs))


def value_and_grad(function):
    return jax.jit(jax.value_and_grad(function))
