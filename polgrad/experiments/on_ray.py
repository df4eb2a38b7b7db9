"""The cells of a sweep as tasks on a Ray cluster."""

import importlib.util
from collections.abc import Iterator

from polgrad.experiments import cells
from polgrad.experiments.cells import Cell
from polgrad.experiments.sweeping import Sweep

RETRIES = 8  # of a cell whose node or worker died under it


def check_installed() -> None:
    """Raises ValueError where Ray is missing, before a sweep's directory is made for it."""
    if importlib.util.find_spec("ray") is None:
        raise ValueError("--ray needs Ray: pip install 'polgrad[ray]'")


def on_ray(
    sweep: Sweep, address: str, *, cpus: float = 1.0, gpus: float = 0.0
) -> Iterator[tuple[Cell, str]]:
    """Runs the open cells as Ray tasks, as many at once as the cluster's resources allow.

    The nodes need polgrad, not this machine's files: the experiment's text travels with the
    task, a cell's files travel back. Ray runs a cell again when the node under it dies.

    Args:
      sweep: planned, and held with `_files.alone`.
      address: of the cluster, or `"auto"`.
      cpus: that a cell asks for.
      gpus: that a cell asks for.

    Yields:
      Each cell that ended, with its error (`""` for none).

    Raises:
      ValueError: if Ray is not installed or no cluster answers at the address.
    """
    check_installed()
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError) as error:
        raise ValueError(f"no Ray cluster answers at {address!r}: {error}") from error
    try:
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(cells.packed)
        source = sweep.found.path.read_text(encoding="utf-8")
        pending = {task.remote(cell, source): cell for cell in sweep.open_cells()}
        while pending:
            (ready, *_), _ = ray.wait(list(pending), num_returns=1)
            cell = pending.pop(ready)
            try:
                error, files = ray.get(ready)
            except ray.exceptions.RayError as failure:
                error, files = str(failure).splitlines()[0], {cells.ERROR: str(failure).encode()}
            cells.unpack(files, sweep.place(cell))
            yield cell, error
    finally:
        ray.shutdown()
