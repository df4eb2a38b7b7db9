"""polgrad: policy gradients in JAX.

Submodules load on first use (PEP 562), so `import polgrad` costs almost nothing and
`from polgrad import losses` imports jax and no other large package.
"""

import importlib

from polgrad import _compilers

__version__ = "0.5.0"

_SUBMODULES = (
    "advantages",
    "agents",
    "algorithms",
    "conformance",
    "contract",
    "curricula",
    "data",
    "diagnostics",
    "distributions",
    "divergences",
    "environments",
    "experiments",
    "losses",
    "masking",
    "policies",
    "randomness",
    "ratios",
    "rehearsal",
    "reward_models",
    "rewards",
    "rollouts",
    "running",
    "schedules",
    "selection",
    "serving",
    "small",
    "statistics",
    "tabular",
    "training",
)

__all__ = [*_SUBMODULES, "__version__"]


def __getattr__(name: str):
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


_compilers.check_import()
