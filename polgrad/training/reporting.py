"""What a run says while it goes: metrics, samples, TensorBoard, a live line, a plot."""

import contextlib
import io
import json
import math
import os
import pathlib
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from polgrad import _files, _outside
from polgrad.training.saving.lines import read_lines, rewrite_lines

COMMON = (
    "step",
    "reward_mean",
    "reward_std",
    "invalid_rewards",
    "completion_length",
    "stopped",
    "entropy",
    "kl_reference",
    "clip_fraction",
    "capped_fraction",
    "selected_fraction",
    "gradient_norm",
    "loss",
    "parity_gap",
    "skipped_updates",
    "uniform_groups",
    "tokens_per_second",
    "seconds",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
)
"""Metrics that are not one algorithm's own."""
OWN_SHOWN = 3
"""How many of an algorithm's own metrics a progress line has."""


def own_metrics(row: Mapping[str, Any]) -> list[str]:
    """The metrics that the algorithm itself reports, such as the margin of DPO."""
    return [name for name in row if name not in COMMON and not name.startswith("pass_at_")]


def shown(row: Mapping[str, Any]) -> list[str]:
    """The metrics on a progress line: what the run is about first, then how it goes."""
    first = ["reward_mean"] if "reward_mean" in row else ["loss"]
    names = [*first, "accuracy", *own_metrics(row)[:OWN_SHOWN], "entropy", "completion_length"]
    if row.get("skipped_updates"):
        names.append("skipped_updates")
    return [name for name in (*names, "seconds") if name in row]


class Reporter:
    """Writes `metrics.jsonl`, `samples.jsonl`, events and progress of a run.

    Nothing is written before `begin`, so a run that is refused leaves nothing.

    Args:
      directory: the run's directory.
      total: steps of the run.
      tensorboard: also write TensorBoard events.
      wandb: Weights & Biases project, or None.
      config: settings shown to Weights & Biases.
      quiet: no progress display.

    Raises:
      ValueError: `wandb` is given and the package is not installed.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        total: int,
        *,
        tensorboard: bool = True,
        wandb: str | None = None,
        config: Mapping[str, Any] | None = None,
        quiet: bool = False,
    ):
        self._directory = directory
        self._metrics = directory / "metrics.jsonl"
        self._samples = directory / "samples.jsonl"
        self._total, self._quiet = total, quiet
        self._tensorboard, self._project, self._config = tensorboard, wandb, dict(config or {})
        self._rows: dict[pathlib.Path, list[dict]] = {}
        self._events = self._wandb = self._progress = self._task = None
        self._wandb_module = _wandb_module(wandb) if wandb else None

    def read(self) -> None:
        """Reads what an earlier start has written.

        Raises:
          ValueError: a line is not what a run writes; the message names file and line.
        """
        self._rows = {path: read_lines(path) for path in (self._metrics, self._samples)}

    def begin(self, step: int, number: str) -> None:
        """Cuts everything to what a checkpoint at `step` covers, and opens what is written to.

        Args:
          step: the checkpoint that the run goes on from; 0 where it begins.
          number: of the run, by which Weights & Biases knows it again.
        """
        for path in (self._metrics, self._samples):
            kept = [entry for entry in self._rows.get(path, []) if entry["step"] <= step]
            if os.path.lexists(path):
                rewrite_lines(path, kept)
            self._rows[path] = kept
        rows = self._rows[self._metrics]
        if missing := sorted({*range(1, step + 1)} - {row["step"] for row in rows}):
            self.say(
                f"note: metrics.jsonl lacks {_steps(missing)}, which checkpoint {step} covers: the "
                "file was cut by something else"
            )
        if self._tensorboard:
            self._events = Events(self._directory / "tensorboard", step)
        if self._wandb_module is not None:
            self._start_wandb(number, rows)

    def _start_wandb(self, number: str, rows: list[dict]) -> None:
        """Joins the run of this number, or makes it; sends what a kill has kept from it."""
        self._wandb = self._wandb_module.init(
            project=self._project,
            dir=str(self._directory),
            config=self._config,
            id=number,
            resume="allow",
        )
        for row in rows:
            self._log_wandb(row["step"], _numbers(row))

    def _log_wandb(self, step: int, numbers: Mapping[str, float]) -> None:
        # Steps that are there already have the same numbers; W&B refuses to go back.
        if step >= (getattr(self._wandb, "step", 0) or 0):
            self._wandb.log(dict(numbers), step=step)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """One line of `metrics.jsonl`. A value that is not finite is written as null."""
        row = {"step": step} | {k: _plain(v) for k, v in values.items()}
        _files.append(self._metrics, json.dumps(row) + "\n")
        if self._events is not None:
            self._events.add(step, _numbers(row))
        if self._wandb is not None:
            self._log_wandb(step, _numbers(row))
        self._show(step, row)

    def samples(self, rows: list[dict]) -> None:
        """Lines of `samples.jsonl`."""
        _files.append(self._samples, "".join(json.dumps(row) + "\n" for row in rows))

    def say(self, text: str) -> None:
        """A line for the person at the terminal."""
        if self._quiet:
            return
        # Prompts, answers and names of files come from outside.
        text = "\n".join(_outside.printable(line) for line in text.split("\n"))
        if self._progress is not None:
            self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def _show(self, step: int, row: Mapping[str, Any]) -> None:
        if self._quiet:
            return
        text = "  ".join(f"{name} {_figure(row[name])}" for name in shown(row))
        if self._progress is not None:
            self._progress.update(self._task, completed=step, status=text)
        elif step == 1 or step == self._total or step % max(1, self._total // 40) == 0:
            print(f"step {step}/{self._total}  {text}", flush=True)

    @contextlib.contextmanager
    def live(self, start: int):
        """A progress bar where there is a terminal; plain lines elsewhere."""
        if self._quiet or not sys.stdout.isatty():
            yield self
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
        )
        with Progress(*columns) as progress:
            self._progress = progress
            self._task = progress.add_task("train", total=self._total, completed=start, status="")
            try:
                yield self
            finally:
                self._progress = None

    def close(self) -> None:
        """Flushes and closes what is open."""
        if self._events is not None:
            self._events.close()
        if self._wandb is not None:
            self._wandb.finish()


class SilentReporter:
    """What the other processes of a run report through: nothing, since the first one does."""

    def read(self) -> None:
        """Nothing."""

    def begin(self, step: int, number: str) -> None:
        """Nothing."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def samples(self, rows: list[dict]) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def live(self, start: int) -> contextlib.AbstractContextManager:
        """Nothing."""
        return contextlib.nullcontext(self)

    def close(self) -> None:
        """Nothing."""


def _plain(value: Any) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite values of a line of `metrics.jsonl`."""
    return {k: v for k, v in row.items() if k != "step" and v is not None}


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"


def _steps(steps: list[int]) -> str:
    if len(steps) == 1:
        return f"step {steps[0]}"
    return f"{len(steps)} steps, of which the first is {steps[0]}"


def _wandb_module(project: str) -> Any:
    try:
        import wandb
    except ImportError:
        raise ValueError(
            f"saving.wandb is {project!r}, but wandb is not installed: pip install 'polgrad[wandb]'"
        ) from None
    return wandb


class Events:
    """TensorBoard events of a run: each step once, also after a kill.

    Every step is flushed at once, so events are never behind a checkpoint. What an earlier start
    wrote after the step that is gone on from is cut from its files, and a mark tells a TensorBoard
    that is already open to forget these steps.

    Args:
      directory: where the files are.
      step: the checkpoint that the run goes on from; 0 where it begins.
    """

    def __init__(self, directory: pathlib.Path, step: int):
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        directory.mkdir(parents=True, exist_ok=True)
        earlier = sorted(directory.glob("events.out.tfevents.*"))
        for path in earlier:
            _cut_events(path, step)
        now = time.time()
        # TensorBoard takes files in the order of their names, and two may be of one second.
        name = f"events.out.tfevents.{int(now)}.{time.time_ns()}.{socket.gethostname()}"
        # Without a buffer: what could not be written is told here, and not when Python ends.
        self._file = (directory / name).open("xb", buffering=0)
        events = [Event(wall_time=now, file_version="brain.Event:2")]
        if earlier:
            mark = SessionLog(status=SessionLog.START)
            events.append(Event(wall_time=now, step=step + 1, session_log=mark))
        self._write(events)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Writes the numbers of a step."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        now = time.time()
        self._write(
            [Event(wall_time=now, step=step, summary=scalar(k, v)) for k, v in numbers.items()]
        )

    def _write(self, events: Sequence[Any]) -> None:
        whole = memoryview(b"".join(_framed(event.SerializeToString()) for event in events))
        while whole:
            whole = whole[self._file.write(whole) :]

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _framed(record: bytes) -> bytes:
    """A record of an event file: its length and itself, each with a checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(record))
    sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, record)]
    return length + sums[0] + record + sums[1]


def _records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The whole records of an event file, each with the bytes that it takes there."""
    start = 0
    while start + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        end = start + 12 + length + 4
        if end > len(content):
            return
        yield content[start + 12 : end - 4], content[start:end]
        start = end


def _cut_events(path: pathlib.Path, step: int) -> None:
    """Takes the steps after `step`, and half a record that a kill left, out of an event file."""
    from google.protobuf.message import DecodeError
    from tensorboardX.proto.event_pb2 import Event

    content = path.read_bytes()
    try:
        kept = b"".join(
            whole
            for record, whole in _records(content)
            if (event := Event.FromString(record)).step <= step or event.HasField("session_log")
        )
    except DecodeError:  # written by something else
        return
    if kept != content:
        _files.write(path, kept)


PANELS = 4
"""How many of a run's other metrics are drawn where it has no reward."""


def plot(directory: str | os.PathLike) -> pathlib.Path:
    """Draws `reward.png` from `metrics.jsonl`.

    The first panel has the reward with its running mean and the held-out accuracy. A run without a
    reward has a panel for its loss and for each metric that is its algorithm's own.

    Args:
      directory: the run's directory.

    Returns:
      The path of the picture.
    """
    directory = pathlib.Path(directory)
    rows = read_lines(directory / "metrics.jsonl")
    path = directory / "reward.png"
    _files.write(path, draw(rows, _panels(rows)))
    return path


def draw(
    rows: Sequence[Mapping[str, Any]], panels: Sequence[tuple[str, ...]], *, columns: int = 1
) -> bytes:
    """Draws metrics by step.

    Args:
      rows: of `metrics.jsonl`.
      panels: for each panel its metrics, two at most, each with a value in some row.
      columns: panels side by side, at most.

    Returns:
      The picture as PNG.
    """
    # Without pyplot, whose backend a notebook may be showing pictures with.
    from matplotlib.figure import Figure

    columns = min(columns, len(panels))
    lines = -(-len(panels) // columns)
    size = (7, 4) if len(panels) == 1 else (max(7, 4.2 * columns), 2.4 * lines)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis, names in zip(axes.flat, panels):
        _draw(axis, rows, names)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _panels(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """What is drawn together, by what the rows have."""
    found = list(dict.fromkeys(k for row in rows for k, v in row.items() if v is not None))
    top = tuple(name for name in ("reward_mean", "accuracy") if name in found)
    others = [] if "reward_mean" in found else ["loss", *own_metrics(dict.fromkeys(found))]
    panels = [top] if top else []
    panels += [(name,) for name in others[:PANELS] if name in found]
    return panels or [()]


LABELS = {"reward_mean": "reward", "accuracy": "held-out accuracy (greedy)"}


def _draw(axis: Any, rows: Sequence[Mapping[str, Any]], names: tuple[str, ...]) -> None:
    for name, color in zip(names, ("tab:blue", "tab:orange")):
        points = [(r["step"], r[name]) for r in rows if r.get(name) is not None]
        if name == "accuracy":
            axis.plot(*zip(*points), "o-", color="tab:orange", label=LABELS[name])
        else:
            _draw_smoothed(axis, points, LABELS.get(name, name), color)
    axis.set_xlabel("step")
    axis.set_ylabel(", ".join(LABELS.get(n, n).partition(" (")[0] for n in names))
    axis.grid(alpha=0.3)
    if names:
        axis.legend()
    else:
        axis.text(0.5, 0.5, "the run has no step yet", ha="center", transform=axis.transAxes)


def _draw_smoothed(axis: Any, points: list[tuple[int, float]], label: str, color: str) -> None:
    import numpy as np

    steps, values = (np.array(column) for column in zip(*points))
    # A line through one point cannot be seen.
    mark = "o" if len(steps) == 1 else None
    axis.plot(steps, values, color=color, alpha=0.3, linewidth=1, label=label, marker=mark)
    window = max(1, len(values) // 20)
    smooth = np.convolve(values, np.ones(window) / window, mode="valid")
    axis.plot(steps[window - 1 :], smooth, color=color, label=f"mean of {window} steps")
