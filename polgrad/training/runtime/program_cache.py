"""JAX's persistent compilation cache, for commands: a library that is imported never sets it."""

import hashlib
import os
import pathlib
import platform
from collections.abc import Mapping

import jax
import jaxlib


def use(environment: Mapping[str, str] | None = None) -> pathlib.Path | None:
    """Keeps compiled programs between commands.

    The folder is the user's own (`XDG_CACHE_HOME`, or `~/.cache`), and its name is made of the
    jaxlib version and of what the CPU can do: code compiled by or for another is rejected at best.

    Args:
      environment: `os.environ`. With `JAX_COMPILATION_CACHE_DIR` set nothing is changed.

    Returns:
      The folder; None where the environment names one, or none can be made.
    """
    environment = os.environ if environment is None else environment
    if "JAX_COMPILATION_CACHE_DIR" in environment:
        return None
    folder = place(environment)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return None  # a cache is no reason to fail
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Commands compile many programs of a few tenths of a second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def place(environment: Mapping[str, str]) -> pathlib.Path:
    """The folder's path."""
    home = environment.get("XDG_CACHE_HOME")
    root = pathlib.Path(home) if home else pathlib.Path.home() / ".cache"
    return root / "polgrad" / f"programs-{jaxlib.__version__}-{_machine()}"


def _machine() -> str:
    """A hash of what the CPU can do."""
    text = platform.machine() + platform.processor()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        wanted = ("model name", "flags", "Features")  # the last on ARM
        text += "".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
