"""`polgrad sweep`: an experiment for each combination of several settings."""

import dataclasses
from typing import Annotated

import tyro

from polgrad import _flags, _interrupt
from polgrad._ranges import FILLED, Range, documented
from polgrad.cli.common import SEEDS, fail


@documented
@dataclasses.dataclass(frozen=True)
class Sweep:
    """Run an experiment for each combination of several settings. Each combination is a cell.

    The same command again goes on where the sweep stood: it runs the cells that have no result, also
    those that failed. The traceback of a failed cell is kept.

    Attributes:
      name: as `polgrad list experiments` tells, or the path of a file with an `EXPERIMENT`.
      set: `key=value,value,...`; give it again for another setting of the grid.
      seeds: how many for each cell; the experiment's own number when left out.
      arms: some arms, joined by commas; all when left out.
      smoke: the small size.
      workers: processes on this machine, which share its cores.
      ray: address of a Ray cluster, or `auto`, to run the cells there instead.
      cpus: processors that Ray reserves for each cell.
      gpus: GPUs that Ray reserves for each cell.
      out: directory of the sweep; `runs/sweep-NAME` when left out.
    """

    name: Annotated[str, tyro.conf.Positional, FILLED]
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    seeds: Annotated[int | None, SEEDS] = None
    arms: str = ""
    smoke: bool = False
    workers: Annotated[int, Range(at_least=1, at_most=1024)] = 2
    ray: str = ""
    cpus: Annotated[float, Range(at_least=0, at_most=65536)] = 1.0
    gpus: Annotated[float, Range(at_least=0, at_most=65536)] = 0.0
    out: str = ""


def main(arguments: list[str]) -> int:
    """Runs a grid of settings."""
    options = _flags.parsed(Sweep, arguments, "polgrad sweep")
    from polgrad.experiments import command

    with _interrupt.terminated() as stopped:
        try:
            failed = command.sweep(**dataclasses.asdict(options))
        except KeyboardInterrupt:
            if not stopped():
                raise
            print("stopped by SIGTERM; the same command goes on where the sweep stood")
            return 0
        except (ValueError, OSError) as error:
            return fail(error, 2)
    return fail(f"{failed} cells failed; their error.txt tells why", 1) if failed else 0
