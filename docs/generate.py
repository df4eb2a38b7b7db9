"""Writes the pages that are made from the code: docs/primitives.md, guarantees.md, estimators.md.

python docs/generate.py [NAME ...]      all pages, or those named
"""

import pathlib
import sys

from polgrad import _guarantees

HERE = pathlib.Path(__file__).parent

GUARANTEES = """# What every primitive returns for the worst inputs

Made by `python docs/generate.py` from calls of the functions; `tests/test_guarantees.py` makes the
same calls and fails where this page says something else. It also shows that each function gives
the same under `vmap` as alone, accumulates bfloat16 in float32 (but for games, which are exact
tables in float32 or float64), and has finite values and gradients in all of these situations, those
with several NaNs, with -900 nats and with minus infinity under the mask included. (Two kinds are
exempt, and say so: rewards in, rewards or returns out keep a NaN, so that it is still known for
what it is; and logarithms of 0 are minus infinity.)

A cell tells what the changed row (of a group, sequence or sample; the changed entry for minus
infinity and NaN) becomes: a number where it is always that one, else that it is finite. "No
gradient" means exactly 0. Results with several parts are separated by a slash. Empty: there is no
such input.

- *gradient reaches*: arguments with a gradient that is not 0. For a loss: what is learned.
- *nothing valid*, *one valid*: `mask` or `valid` is 0 in the whole row, or but for its first entry.
  Where all rows give one number, nothing is valid anywhere, and all rewards are NaN.
- *equal rewards*: all of the row's rewards are 0.5.
- *logp -inf*: the current policy excludes the first entry; *stopped -inf*: the behaviour, reference
  or teacher does; *both -inf*.
- *NaN reward*: the first reward is NaN.
"""


def guarantees() -> str:
    """One table a room."""
    parts, room = [GUARANTEES], None
    head = ["primitive", "gradient reaches", *_guarantees.COLUMNS]
    for primitive in _guarantees.examinable():
        if primitive.room != room:
            room = primitive.room
            rule = "|".join("---" for _ in head)
            parts.append(f"\n## {room}\n\n| {' | '.join(head)} |\n|{rule}|\n")
        parts.append(_guarantees.row(primitive, _guarantees.examine(primitive)) + "\n")
    return "".join(parts)


PAGES = {"guarantees": guarantees}


def main() -> None:
    """Writes the pages named on the command line, or all."""
    for name in sys.argv[1:] or PAGES:
        (HERE / f"{name}.md").write_text(PAGES[name]())


if __name__ == "__main__":
    main()
