"""`polgrad export`: a policy as a Hugging Face directory."""

import dataclasses
from typing import Annotated

from polgrad import _flags
from polgrad._ranges import FILLED, documented
from polgrad.cli.common import STEP, fail


@documented
@dataclasses.dataclass(frozen=True)
class Export:
    """Write a policy as a Hugging Face directory that other libraries load.

    Attributes:
      policy: a run's directory, or a policy as `train` takes it.
      out: the directory to write.
      step: which checkpoint of a run; the newest when left out.
      remote: read checkpoints at an address, such as `gs://bucket/run`, that the run names.
    """

    policy: Annotated[str, FILLED]
    out: Annotated[str, FILLED]
    step: Annotated[int | None, STEP] = None
    remote: bool = False


def main(arguments: list[str]) -> int:
    """Writes a trained policy in the format of Hugging Face."""
    options = _flags.parsed(Export, arguments, "polgrad export")
    from polgrad import policies
    from polgrad.serving.loading import load

    try:
        policy, _ = load(options.policy, step=options.step, remote=options.remote)
        files = policies.export(options.out, policy)
    except (ValueError, OSError) as error:
        return fail(error, 2)
    print(f"wrote {options.out}: {', '.join(files)}")
    return 0
