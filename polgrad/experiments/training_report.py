"""A run of `polgrad train` as a page: figures of its last step, curves, settings."""

import math
import pathlib
from typing import Any

from polgrad import _outside
from polgrad.experiments import pages

SHOWN = (
    "reward_mean",
    "accuracy",
    "pair_accuracy",
    "margin",
    "loss",
    "entropy",
    "completion_length",
    "gradient_norm",
)
"""Metrics that are drawn where a run has them, in this order."""

PANELS = 6


def read(directory: pathlib.Path) -> tuple[str, list[str], list[pages.Block]]:
    """A run as its page and its first lines.

    Args:
      directory: of the run, with `config.json` and `metrics.jsonl`.

    Returns:
      Title, lines for the terminal, and blocks.

    Raises:
      ValueError: a file is damaged, or no step has ended yet; with the file's name.
    """
    settings = _outside.read_json(directory / "config.json")
    rows, cut = _rows(directory / "metrics.jsonl")
    last = rows[-1]
    line = f"{last['step']} of {settings.get('steps', '?')} steps"
    title = f"Training of {settings.get('policy', '?')} on {settings.get('task', '?')}"
    first = f"Algorithm {settings.get('algorithm', '?')}, {line}."
    found: list[pages.Block] = [pages.Text(first)]
    if cut:
        found.append(pages.Text("The last line of metrics.jsonl is cut and left out."))
    figures = [[name, _shown(value)] for name, value in last.items()]
    found.append(pages.Picture("report", "metrics by step", picture(rows)))
    found += [pages.Heading(f"Step {last['step']}"), pages.Table(["metric", "value"], figures)]
    found += [pages.Heading("Settings"), pages.Table(["setting", "value"], _flat(settings))]
    return title, [first], found


def _rows(path: pathlib.Path) -> tuple[list[dict[str, Any]], bool]:
    """The rows of a run, one a step, and whether the last line is cut."""
    # Not above: other commands would wait for the libraries of checkpoints.
    from polgrad.training.saving.lines import cut_short, read_lines

    rows = read_lines(path)
    with _outside.reading(path):
        for number, row in enumerate(rows, start=1):
            wrong = [k for k, v in row.items() if v is not None and type(v) not in (int, float)]
            if wrong:
                raise ValueError(f"{path} line {number}: {wrong[0]} is no number")
        if not rows:
            raise ValueError("holds no whole line; expected one for each step that has ended")
        return rows, cut_short(path)


def _shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.5g}"


def _flat(settings: dict[str, Any], prefix: str = "") -> list[list[str]]:
    """Settings by the names that the command's flags have."""
    found = []
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append([prefix + name, str(value)])
    return found


def picture(rows: list[dict[str, Any]]) -> bytes:
    """Curves of the metrics that are there; as PNG."""
    from polgrad.training.reporting import draw

    rows = [{k: v for k, v in r.items() if v is not None and math.isfinite(v)} for r in rows]
    found = dict.fromkeys(name for row in rows for name in row)
    names = [n for n in SHOWN if n in found] or [n for n in found if n != "step"] or ["step"]
    return draw(rows, [(name,) for name in names[:PANELS]], columns=3)
