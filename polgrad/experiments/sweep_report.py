"""What a sweep shows: table, picture, best setting; from the files of its directory alone."""

import io
import pathlib
from typing import Any, NamedTuple

import numpy as np

from polgrad import _outside, statistics
from polgrad.experiments import cells, pages


class Line(NamedTuple):
    """One arm of one cell.

    Attributes:
      changes: the swept settings of the cell.
      arm: the arm.
      seeds: its last point of the metric, one number a seed.
    """

    changes: dict[str, Any]
    arm: str
    seeds: np.ndarray

    @property
    def value(self) -> float:
        """Interquartile mean over seeds."""
        return statistics.interquartile_mean(self.seeds)

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95% bootstrap interval."""
        return statistics.bootstrap_interval(self.seeds)

    @property
    def label(self) -> str:
        """Settings and arm as one text."""
        text = ",".join(f"{key}={value}" for key, value in self.changes.items()) or "all"
        return f"{text}, {self.arm}"


class Summary(NamedTuple):
    """A sweep as read from its directory.

    Attributes:
      description: what `sweep.json` holds.
      metric: the one that is compared.
      lower: whether less of it is better.
      lines: arms of finished cells.
      failed: traceback by cell.
      missing: cells with neither a result nor a traceback.
    """

    description: dict[str, Any]
    metric: str
    lower: bool
    lines: list[Line]
    failed: dict[str, str]
    missing: list[str]

    def ranked(self) -> list[Line]:
        """The best first."""
        return sorted(self.lines, key=lambda line: line.value, reverse=not self.lower)


def read(directory: pathlib.Path, metric: str | None = None) -> Summary:
    """Reads a sweep.

    Args:
      directory: of the sweep.
      metric: to compare; the experiment's first when left out.

    Returns:
      Its summary.

    Raises:
      ValueError: if there is no sweep, no finished cell, no such metric, or a damaged file.
    """
    path = directory / "sweep.json"
    if not path.exists():
        raise ValueError(f"{directory} holds no sweep.json; expected a sweep's directory")
    description = _description(path)
    lines, failed, missing, better = [], {}, [], "higher"
    for changes in combinations(description["grid"]):
        cell = _cell(description, changes)
        place = directory / "cells" / cell.name
        result = cells.finished(place, cell)
        if result is None:
            trace = cells.error(place)
            missing += [cell.name] if trace is None else []
            failed |= {} if trace is None else {cell.name: trace}
            continue
        better, known = result["better"], result["metrics"]
        metric = metric or next(iter(known))
        if metric not in known:
            raise ValueError(f"metric is {metric!r}, expected one of {', '.join(known)}")
        for arm, content in result["arms"].items():
            seeds = np.array(content["metrics"][metric]["seeds"], np.float64)
            lines.append(Line(changes, arm, seeds))
        lower = better == "lower" and metric == next(iter(known))
    if not lines:
        raise ValueError(f"{directory} has no finished cell yet ({len(failed)} failed)")
    return Summary(description, metric, lower, lines, failed, missing)


def _description(path: pathlib.Path) -> dict[str, Any]:
    """What `sweep.json` holds, of the form that `sweeping.plan` gives it.

    Raises:
      ValueError: the file is damaged or of another form; with its name.
    """
    found = _outside.read_json(path)
    kinds = {"name": str, "grid": dict, "seeds": int, "arms": list, "smoke": bool}
    with _outside.reading(path):
        for key, kind in kinds.items():
            if type(found[key]) is not kind:
                raise ValueError(f"{key} is {found[key]!r:.60}; expected {kind.__name__}")
        for key, values in found["grid"].items():
            if not isinstance(values, list) or not values:
                raise ValueError(f"grid.{key} is {values!r:.60}; expected a list of values")
        if not all(isinstance(arm, str) for arm in found["arms"]) or not 0 < found["seeds"] < 2**32:
            raise ValueError("arms or seeds are not those of a sweep")
    return found


def _cell(description: dict[str, Any], changes: dict[str, Any]) -> cells.Cell:
    """The cell of some settings, as `sweeping.plan` made it."""
    arms, smoke = tuple(description["arms"]), description["smoke"]
    return cells.Cell(cells.name(changes), "", changes, description["seeds"], arms, smoke)


def combinations(grid: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """All cells of a grid, the last setting fastest."""
    rows: list[dict[str, Any]] = [{}]
    for key, values in grid.items():
        rows = [row | {key: value} for row in rows for value in values]
    return rows


def _number(value: float) -> str:
    return f"{value:.4g}"


def _range(interval: tuple[float, float]) -> str:
    low, high = interval
    return "one seed" if not np.isfinite(low) else f"[{low:.4g}, {high:.4g}]"


def best(summary: Summary) -> str:
    """The best setting with its interval, and whether it is told from the next one."""
    first, *others = summary.ranked()
    text = (
        f"Best {summary.metric}: {_number(first.value)} {_range(first.interval)} at {first.label}."
    )
    if not others:
        return text
    second = others[0]
    compared = statistics.compare(first.seeds, second.seeds)
    low, high = compared.low, compared.high
    told = low > 0.0 or high < 0.0
    needed = compared.seeds_needed
    verdict = "a difference that these seeds tell" if told else "not told apart by these seeds"
    if not told and needed:
        verdict += f" (about {needed} more a cell would)"
    return (
        f"{text} Next is {second.label} with {_number(second.value)}: the paired difference is "
        f"{_number(compared.difference)} {_range((low, high))}, {verdict}. The best of many looks "
        "better than it is; run it again with other seeds before you rely on it."
    )


def blocks(summary: Summary) -> list[pages.Block]:
    """The report."""
    keys = [*summary.description["grid"]]
    header = [*keys, "arm", f"{summary.metric}, interquartile mean", "95% interval", "seeds"]
    rows = [
        [str(line.changes[key]) for key in keys]
        + [line.arm, _number(line.value), _range(line.interval), str(len(line.seeds))]
        for line in summary.lines
    ]
    found: list[pages.Block] = [pages.Text(best(summary))]
    if summary.missing:
        found.append(pages.Text(f"Not run yet: {'; '.join(summary.missing)}."))
    found.append(pages.Picture("report", f"{summary.metric} by setting", picture(summary)))
    found += [pages.Heading("All cells"), pages.Table(header, rows)]
    if summary.failed:
        found.append(pages.Heading("Failed cells"))
        for name, trace in summary.failed.items():
            found += [pages.Text(name), pages.Listing(trace)]
    return found


def picture(summary: Summary) -> bytes:
    """Curves over one swept setting, heat maps over two, ranks over more; as PNG."""
    swept = [key for key, values in summary.description["grid"].items() if len(values) > 1]
    draw = {1: _curves, 2: _heat_maps}.get(len(swept), _ranks)
    figure = draw(summary, swept)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, format="png")
    return buffer.getvalue()


def _figure(width: float, height: float):
    # Not through pyplot: a notebook keeps its own way of showing pictures.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _curves(summary: Summary, swept: list[str]):
    (key,) = swept
    values = summary.description["grid"][key]
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    figure = _figure(6, 4)
    ax = figure.subplots()
    for arm in dict.fromkeys(line.arm for line in summary.lines):
        lines = [line for line in summary.lines if line.arm == arm]
        x = [line.changes[key] if numbers else str(line.changes[key]) for line in lines]
        middle = np.array([line.value for line in lines])
        ends = np.array([line.interval for line in lines]).T
        spread = np.where(np.isfinite(ends), np.abs(ends - middle), 0.0)
        ax.errorbar(x, middle, spread, marker="o", capsize=3, label=arm)
    if numbers and min(values) > 0 and max(values) / min(values) >= 20:
        ax.set_xscale("log")
    ax.set(xlabel=key, ylabel=summary.metric)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    return figure


def _heat_maps(summary: Summary, swept: list[str]):
    down, across = swept
    grid = summary.description["grid"]
    arms = list(dict.fromkeys(line.arm for line in summary.lines))
    width = min(3, len(arms))
    height = -(-len(arms) // width)
    figure = _figure(4.2 * width, 3.4 * height)
    axes = figure.subplots(height, width, squeeze=False)
    values = [line.value for line in summary.lines]
    for arm, ax in zip(arms, axes.flat):
        field = np.full((len(grid[down]), len(grid[across])), np.nan)
        for line in summary.lines:
            if line.arm == arm:
                row = grid[down].index(line.changes[down])
                field[row, grid[across].index(line.changes[across])] = line.value
        image = ax.imshow(field, vmin=min(values), vmax=max(values), aspect="auto")
        for (row, column), number in np.ndenumerate(field):
            light = not number > (min(values) + max(values)) / 2
            text = "none" if np.isnan(number) else _number(number)
            ax.text(column, row, text, ha="center", va="center", color="w" if light else "k")
        ax.set(title=arm, xlabel=across, ylabel=down)
        ax.set_xticks(range(len(grid[across])), grid[across])
        ax.set_yticks(range(len(grid[down])), grid[down])
    for ax in axes.flat[len(arms) :]:
        ax.set_axis_off()
    figure.colorbar(image, ax=axes, label=summary.metric)
    return figure


def _ranks(summary: Summary, swept: list[str]):
    lines = summary.ranked()[:30]
    figure = _figure(8, 1 + 0.3 * len(lines))
    ax = figure.subplots()
    middle = np.array([line.value for line in lines])
    ends = np.array([line.interval for line in lines]).T
    spread = np.where(np.isfinite(ends), np.abs(ends - middle), 0.0)
    ax.errorbar(middle, range(len(lines)), xerr=spread, fmt="o", capsize=3)
    ax.set_yticks(range(len(lines)), [line.label for line in lines], fontsize=8)
    ax.invert_yaxis()
    ax.set_xlabel(summary.metric)
    ax.spines[["top", "right"]].set_visible(False)
    return figure
