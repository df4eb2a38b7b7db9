"""How the C library hands out memory, for commands: a library that is imported never sets it."""

import ctypes
import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping

import jax

# Of malloc.h of the GNU C library.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = -1  # a number would bound it by 2 GiB


def keep(environment: Mapping[str, str] | None = None) -> bool:
    """Keeps memory that was freed for what is asked for next, where arrays lie in host memory.

    On a CPU each program's temporaries are one block, hundreds of megabytes for an update of a small
    policy. The GNU C library gives a block of that size back to the system at every step and takes
    new pages for the next, and the system clears them: a third of a step's time. Kept, they are
    written once; the process stays as large as it has ever been.

    Args:
      environment: `os.environ`. Where it sets the allocator itself (`MALLOC_*`, `GLIBC_TUNABLES`,
        `LD_PRELOAD`), or `JAX_PLATFORMS` or an installed plug-in names an accelerator, nothing is
        changed.

    Returns:
      Whether memory is kept; False also for other C libraries.
    """
    environment = os.environ if environment is None else environment
    chosen = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    if any(name.startswith(chosen) for name in environment) or not _on_cpu():
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # Blocks from the heap alone, one heap for all threads, and none of it returned.
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, _NEVER), mallopt(_ARENA_MAX, 1)])


def _on_cpu() -> bool:
    """Whether JAX will compute on the CPU, told without starting it: processes may join first."""
    if jax.config.jax_platforms:
        return jax.config.jax_platforms.split(",")[0] == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and importlib.util.find_spec("libtpu") is None
