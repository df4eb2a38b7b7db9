"""Versions of jaxlib whose compiler returns wrong numbers, and the flag that cures each of them.

This module does not import jax, because a flag in `XLA_FLAGS` counts only until jax computes for
the first time. The flag is never set for a version outside the table: XLA ends a process that names
a flag that it does not know.
"""

import contextlib
import os
import sys
import warnings
from collections.abc import Mapping, MutableMapping
from typing import NamedTuple

OPT_IN = "POLGRAD_FIX_COMPILER"
"""Environment variable: with the value 1, `import polgrad` sets the flag itself."""

GOOD = "0.10.1"
"""The newest version of jaxlib that gives right numbers without a flag."""


class Fault(NamedTuple):
    """What is wrong with a version of jaxlib.

    Attributes:
      wrong: the programs that return wrong numbers.
      thread: public discussion of the fault.
      platforms: where it happens, as `JAX_PLATFORMS` names them.
      flag: for `XLA_FLAGS`; turns the faulty part of the compiler off.
    """

    wrong: str
    thread: str
    platforms: tuple[str, ...]
    flag: str


_ROWS = Fault(
    wrong="products with a small matrix that are squared and summed, over 16,385 rows or more; "
    "batched products with a constant matrix that are multiplied and summed",
    thread="https://github.com/jax-ml/jax/issues/39103",
    platforms=("cpu",),
    flag="--xla_cpu_experimental_ynn_fusion_type=",
)
_BATCHED = _ROWS._replace(
    wrong="batched products with a constant matrix that are multiplied and summed",
    thread="https://github.com/jax-ml/jax/issues/39257",  # other symptoms of the same pass
)

# Only versions whose reproducer in tests/test_compilers.py was seen to fail.
FAULTS: Mapping[str, Fault] = {
    "0.10.2": _ROWS,
    "0.11.0": _BATCHED,
    "0.11.1": _BATCHED,
    "0.11.2": _BATCHED,
}


def version() -> str | None:
    """The version of the installed jaxlib; None where there is none."""
    # What `importlib.metadata` would look at first; to import that takes longer than all of
    # `import polgrad`.
    for folder in sys.path:
        with contextlib.suppress(OSError):
            for name in os.listdir(folder or os.curdir):
                if name.startswith("jaxlib-") and name.endswith(".dist-info"):
                    return name[len("jaxlib-") : -len(".dist-info")].partition("+")[0]
    import importlib.metadata

    try:
        return importlib.metadata.version("jaxlib").partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def fault(platform: str | None = None) -> Fault | None:
    """The fault of the installed jaxlib on a platform.

    Args:
      platform: such as "cpu"; any that `JAX_PLATFORMS` allows when left out.

    Returns:
      The fault, or None.
    """
    found = FAULTS.get(version() or "")
    if found is None:
        return None
    allowed = [platform] if platform else _names(os.environ.get("JAX_PLATFORMS", ""), ",")
    return found if not allowed or {*allowed} & {*found.platforms} else None


def protect(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Appends the flag to `XLA_FLAGS` where the installed jaxlib needs it.

    Call it where a process starts, before jax computes.

    Args:
      environment: what to change; that of this process by default.

    Returns:
      Whether the flag was appended. A flag that `XLA_FLAGS` names already is left as it is.
    """
    found = _unprotected(environment)
    if found is not None:
        _append(found, environment)
    return found is not None


def check_import() -> None:
    """What `import polgrad` does: warn of a fault, or set the flag where that is asked for."""
    found = _unprotected(os.environ)
    if found is None:
        return
    if os.environ.get(OPT_IN) == "1" or _is_command():
        _append(found, os.environ)
        return
    warnings.warn(
        f"{_says(found)}; expected {_cures(found)}, or {OPT_IN}=1, with which `import polgrad` "
        "sets that flag",
        RuntimeWarning,
        stacklevel=3,  # past this function and polgrad/__init__.py
    )


def _append(found: Fault, environment: MutableMapping[str, str]) -> None:
    environment["XLA_FLAGS"] = f"{_flags(environment)} {found.flag}".strip()
    if environment is os.environ and _jax_has_computed():
        warnings.warn(
            f"{_says(found)}; jax has computed already, so start again with {_cures(found)}",
            RuntimeWarning,
            stacklevel=4,
        )


def _unprotected(environment: Mapping[str, str]) -> Fault | None:
    """The fault of the installed jaxlib, unless `XLA_FLAGS` names its flag."""
    found = fault()
    if found is None or _name(found.flag) in map(_name, _names(_flags(environment))):
        return None
    return found


def _flags(environment: Mapping[str, str]) -> str:
    """What `XLA_FLAGS` says; a value that is no flag is a file with flags."""
    value = environment.get("XLA_FLAGS", "").strip()
    if value and not value.startswith("-"):
        try:
            with open(value) as file:
                return " ".join(file.read().split())
        except OSError:
            return ""
    return value


def _names(text: str, separator: str | None = None) -> list[str]:
    return [word.strip() for word in text.split(separator) if word.strip()]


def _name(flag: str) -> str:
    return flag.partition("=")[0].lstrip("-")


def _says(found: Fault) -> str:
    return (
        f"jaxlib is {version()}, which returns wrong numbers on {', '.join(found.platforms)} "
        f"({found.wrong}; {found.thread})"
    )


def _cures(found: Fault) -> str:
    return f"jaxlib {GOOD} (pip install jax=={GOOD} jaxlib=={GOOD}) or XLA_FLAGS={found.flag!r}"


def _jax_has_computed() -> bool:
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bool(getattr(bridge, "_backends", None))


def _is_command() -> bool:
    """Whether this process is the `polgrad` command, which is always protected."""
    program, *arguments = getattr(sys, "argv", None) or [""]
    if program == "-m":  # what Python says until it has found the module that it is to run
        module = sys.orig_argv[-1 - len(arguments)].removeprefix("-m")
        return module in ("polgrad", "polgrad.__main__", "polgrad.cli")
    return os.path.basename(program) in ("polgrad", "polgrad.exe")
