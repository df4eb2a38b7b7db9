"""What the commands share: ending with one line, ranges of flags, and flags read in advance."""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from polgrad._outside import printable
from polgrad._ranges import Range

NO_CACHE = "--no-cache"
TRACEBACK = "POLGRAD_TRACEBACK"
"""The environment variable that asks for the traceback of an error."""

STEP = Range(at_least=0)
SEEDS = Range(at_least=1, at_most=65536)
GREEDY = Range(at_least=0)
TOP_K = Range(at_least=0)
TOP_P = Range(above=0, at_most=1)
MIN_P = Range(at_least=0, at_most=1)


def fail(message: Any, code: int, error: BaseException | None = None) -> int:
    """One line on stderr, whatever the error's text looked like."""
    error = message if isinstance(message, BaseException) else error
    if error is not None and os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    print(f"polgrad: {printable(' '.join(str(message).split()))}", file=sys.stderr)
    return code


def value_of(arguments: Sequence[str], flag: str) -> str | None:
    """The value of a flag, read before the options are known in full; the last one counts."""
    found = None
    for index, argument in enumerate(arguments):
        if flag_of(argument) != flag:
            continue
        if "=" in argument:
            found = argument.partition("=")[2]
        elif index + 1 < len(arguments):
            found = arguments[index + 1]
    return found


def flag_of(argument: str) -> str:
    """The flag of an argument as it is documented: `--resume_from=2` is `--resume-from`."""
    name = argument.partition("=")[0]
    return name.replace("_", "-") if name.startswith("--") else ""
