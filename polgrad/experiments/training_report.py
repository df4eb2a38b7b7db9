"""A run of `polgrad train` as a page: figures of its last step, curves, settings."""

import io
import json
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
    with _outside.reading(path):
        *lines, rest = path.read_bytes().split(b"\n")  # a line that is whole has its end
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {_outside.reason(error)}") from None
            step = row.get("step") if isinstance(row, dict) else None
            if type(step) is not int:
                raise ValueError(f"line {number} is {line.decode()!r:.60}; expected a step's row")
            wrong = [k for k, v in row.items() if v is not None and type(v) not in (int, float)]
            if wrong:
                raise ValueError(f"line {number}: {wrong[0]} is no number")
            rows.append(row)
        if not rows:
            raise ValueError("holds no whole line; expected one for each step that has ended")
    return rows, bool(rest)


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
    from matplotlib.figure import Figure  # not through pyplot, as elsewhere

    there = [n for n in SHOWN if any(row.get(n) is not None for row in rows)]
    names = (there or [n for n in rows[-1] if n != "step"] or ["step"])[:PANELS]
    width = min(3, len(names))
    height = -(-len(names) // width)
    figure = Figure(figsize=(4.2 * width, 3.0 * height), layout="constrained")
    axes = figure.subplots(height, width, squeeze=False)
    for name, ax in zip(names, axes.flat):
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        points = [(step, value) for step, value in points if math.isfinite(value)]
        if points:
            ax.plot(*zip(*points), marker="o" if len(points) < 20 else "", linewidth=1.4)
        ax.set(title=name, xlabel="step")
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, format="png")
    return buffer.getvalue()
