"""`polgrad run`: the experiment of a paper."""

import dataclasses
from typing import Annotated

import tyro

from polgrad import _flags
from polgrad._ranges import FILLED, documented
from polgrad.cli.common import SEEDS, fail


@documented
@dataclasses.dataclass(frozen=True)
class RunExperiment:
    """Run the experiment of a paper. If the run was killed, the same command goes on with it.

    Attributes:
      name: as `polgrad list experiments` tells, or the path of a file with an `EXPERIMENT`.
      seeds: how many; the experiment's own number when left out.
      arms: some arms, joined by commas; all when left out.
      set: `key=value`, a setting to change; may be given again.
      smoke: the small size, a matter of seconds.
      out: directory of the run; `runs/NAME` when left out (`runs/NAME-smoke` at small size).
      commit: also write `experiments/results/NAME.json` and `.png`.
    """

    name: Annotated[str, tyro.conf.Positional, FILLED]
    seeds: Annotated[int | None, SEEDS] = None
    arms: str = ""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    smoke: bool = False
    out: str = ""
    commit: bool = False


def main(arguments: list[str]) -> int:
    """Runs an experiment and prints its verdict."""
    options = _flags.parsed(RunExperiment, arguments, "polgrad run")
    from polgrad import experiments
    from polgrad.experiments import command

    try:
        command.run(**dataclasses.asdict(options))
    except (ValueError, OSError) as error:
        return fail(error, 2)
    except experiments.ExperimentError as error:
        return fail(error, 1)
    return 0
