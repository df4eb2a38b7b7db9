"""`polgrad evaluate`: the accuracy of a policy on problems."""

import dataclasses
from typing import Annotated

from polgrad import _flags
from polgrad._ranges import COUNT, FILLED, SEED, Range, documented
from polgrad.cli.common import GREEDY, MIN_P, NO_CACHE, STEP, TOP_K, TOP_P, fail


@documented
@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Held-out accuracy of a policy on a task, or of a run on its own.

    Attributes:
      policy: a run's directory, or a policy as `train` takes it.
      step: which checkpoint of a run; the newest when left out.
      remote: read checkpoints at an address, such as `gs://bucket/run`, that the run names.
      task: a reasoning-gym task or a file, of which all rows are used; a run's own when left out.
      parameters: `key=value` settings of a reasoning-gym task.
      held_out: use only this share of the file `task`: the rows that a training run with the same
        `data.held_out` keeps for evaluation. All rows when left out.
      problems: how many problems at most. When left out 500; for a file `task` all rows.
      samples: samples of each problem for pass@k; 0 leaves pass@k out.
      temperature: of the samples for pass@k; greedy accuracy is always reported.
      top_k: of the samples.
      top_p: of the samples.
      min_p: of the samples.
      max_tokens: longest completion; that of the run when left out, else what the policy's context
        leaves, up to 64.
      seed: of problems and samples.
      out: a new JSON file for the accuracy, its interval, pass@k and the result of each problem.
    """

    policy: Annotated[str, FILLED]
    step: Annotated[int | None, STEP] = None
    remote: bool = False
    task: Annotated[str | None, FILLED] = None
    parameters: tuple[str, ...] = ()
    held_out: Annotated[float | None, Range(above=0, at_most=1)] = None
    problems: Annotated[int | None, COUNT] = None
    samples: Annotated[int, Range(at_least=0, at_most=65536)] = 0
    temperature: Annotated[float, GREEDY] = 1.0
    top_k: Annotated[int, TOP_K] = 0
    top_p: Annotated[float, TOP_P] = 1.0
    min_p: Annotated[float, MIN_P] = 0.0
    max_tokens: Annotated[int | None, COUNT] = None
    seed: Annotated[int, SEED] = 0
    out: Annotated[str | None, FILLED] = None


def main(arguments: list[str]) -> int:
    """Evaluates a policy on problems, and prints its accuracy."""
    options = _flags.parsed(Evaluate, arguments, "polgrad evaluate", (NO_CACHE,))
    from polgrad.rewards import RewardFailure
    from polgrad.serving import evaluating

    try:
        accuracy = evaluating.evaluate_policy(**dataclasses.asdict(options))
    except (ValueError, OSError) as error:
        return fail(error, 2)
    except RewardFailure as error:
        return fail(error, 1)
    for k, value in accuracy.pass_at_k.items():
        print(f"pass@{k}: {value:.3f}")
    print(
        f"accuracy: {accuracy.value:.3f} (95% interval {accuracy.low:.3f} to {accuracy.high:.3f}, "
        f"{accuracy.problems} problems, greedy)"
    )
    if options.out is not None:
        print(f"results: {options.out}")
    return 0
