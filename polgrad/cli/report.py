"""`polgrad report`: a page about a run or a sweep, and the README's ledger."""

import dataclasses
from typing import Annotated

import tyro

from polgrad import _flags
from polgrad._ranges import FILLED, documented
from polgrad.cli.common import fail


@documented
@dataclasses.dataclass(frozen=True)
class Report:
    """Write report.md and report.html of a run or a sweep, or make the README's ledger anew.

    Attributes:
      directory: the directory of a training run, an experiment's run or a sweep.
      metric: the metric that compares the cells of a sweep; the experiment's first when left out.
      ledger: write the ledger of papers into README.md, from the committed results.
      check: write nothing; exit with 1 when the ledger is not what it would be.
    """

    directory: Annotated[str, tyro.conf.Positional] = ""
    metric: Annotated[str | None, FILLED] = None
    ledger: bool = False
    check: bool = False


def main(arguments: list[str]) -> int:
    """Prints or writes the report of results, of a sweep or of the ledger."""
    options = _flags.parsed(Report, arguments, "polgrad report")
    from polgrad.experiments import command

    if bool(options.directory) == (options.ledger or options.check):
        return fail("expected either a directory, or --ledger or --check", 2)
    try:
        if options.directory:
            command.report(options.directory, metric=options.metric)
            return 0
        same = command.write_ledger(write=not options.check)
    except (ValueError, OSError) as error:
        return fail(error, 2)
    if options.check and not same:
        return fail("README.md has another ledger; run polgrad report --ledger", 1)
    return 0
