"""Versions of what computes the numbers of a run."""

import importlib.metadata
import platform

import polgrad

__all__ = ["versions"]


def versions() -> dict[str, str]:
    """The versions of polgrad, Python, jax, numpy and optax, by name."""
    packages = {name: importlib.metadata.version(name) for name in ("jax", "numpy", "optax")}
    return {"polgrad": polgrad.__version__, "python": platform.python_version()} | packages
