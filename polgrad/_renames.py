"""Old names of public functions: each works, with a warning, for two releases.

A function is renamed by an entry below, from its old name to the new one and the first release
that no longer has the old one (two after the release that brought the new name). The rooms ask
here for names that they do not have.
"""

import importlib
import warnings
from collections.abc import Callable

__all__ = ["RENAMES", "finder"]

RENAMES: dict[str, tuple[str, str]] = {}
"""For example "losses.old": ("losses.new", "0.4.0")."""


def finder(module: str) -> Callable[[str], object]:
    """The `__getattr__` of a room.

    Args:
      module: its `__name__`.

    Returns:
      A function of the missing name: what it is called now, with a DeprecationWarning.

    Raises:
      AttributeError: from that function, for a name that never was.
    """
    room = module.removeprefix("polgrad.")

    def missing(name: str) -> object:
        if f"{room}.{name}" not in RENAMES:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new, until = RENAMES[f"{room}.{name}"]
        warnings.warn(
            f"{room}.{name} is called {new} now; the old name goes in polgrad {until}",
            DeprecationWarning,
            stacklevel=2,
        )
        place, _, function = new.rpartition(".")
        return getattr(importlib.import_module(f"polgrad.{place}"), function)

    return missing
