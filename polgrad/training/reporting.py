"""What a run says while it goes: metrics, samples, TensorBoard, a live line, a plot."""

import contextlib
import json
import math
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from polgrad.training.checkpoints import read_lines, rewrite_lines

SHOWN = ("reward_mean", "accuracy", "entropy", "completion_length", "seconds")


class Reporter:
    """Writes `metrics.jsonl`, `samples.jsonl`, events and progress of a run.

    Args:
      directory: the run's directory.
      total: steps of the run.
      tensorboard: also write TensorBoard events.
      wandb: Weights & Biases project, or None.
      config: settings shown to Weights & Biases.
      quiet: no progress display.
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
        self._metrics = directory / "metrics.jsonl"
        self._samples = directory / "samples.jsonl"
        self._total, self._quiet = total, quiet
        self._events = self._wandb = self._progress = self._task = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(directory / "tensorboard"))
        if wandb:
            self._wandb = _start_wandb(wandb, directory, config)

    def resume(self, step: int) -> None:
        """Cuts both files to what a checkpoint at `step` covers."""
        for path in (self._metrics, self._samples):
            if path.exists():
                rewrite_lines(path, [e for e in read_lines(path) if e["step"] <= step])

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """One line of `metrics.jsonl`. A value that is not finite is written as null."""
        row = {"step": step} | {k: _plain(v) for k, v in values.items()}
        _append(self._metrics, row)
        numbers = {k: v for k, v in row.items() if k != "step" and v is not None}
        if self._events is not None:
            for name, value in numbers.items():
                self._events.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)
        self._show(step, row)

    def samples(self, rows: list[dict]) -> None:
        """Lines of `samples.jsonl`."""
        for row in rows:
            _append(self._samples, row)

    def say(self, text: str) -> None:
        """A line for the person at the terminal."""
        if self._quiet:
            return
        if self._progress is not None:
            self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def _show(self, step: int, row: Mapping[str, Any]) -> None:
        if self._quiet:
            return
        shown = "  ".join(f"{k} {row[k]:.3g}" for k in SHOWN if row.get(k) is not None)
        if self._progress is not None:
            self._progress.update(self._task, completed=step, status=shown)
        elif step == 1 or step == self._total or step % max(1, self._total // 40) == 0:
            print(f"step {step}/{self._total}  {shown}", flush=True)

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

    def resume(self, step: int) -> None:
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


def _append(path: pathlib.Path, row: Mapping[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()


def _start_wandb(project: str, directory: pathlib.Path, config: Mapping[str, Any] | None):
    try:
        import wandb
    except ImportError:
        raise ValueError(
            f"saving.wandb is {project!r}, but wandb is not installed: pip install 'polgrad[wandb]'"
        ) from None
    return wandb.init(
        project=project, dir=str(directory), config=dict(config or {}), resume="allow"
    )


def plot(directory: str | os.PathLike) -> pathlib.Path:
    """Draws `reward.png` from `metrics.jsonl`: reward, its running mean, held-out accuracy.

    Args:
      directory: the run's directory.

    Returns:
      The path of the picture.
    """
    # Without pyplot, whose backend a notebook may be showing pictures with.
    import numpy as np
    from matplotlib.figure import Figure

    directory = pathlib.Path(directory)
    rows = read_lines(directory / "metrics.jsonl")
    steps = np.array([r["step"] for r in rows if r.get("reward_mean") is not None])
    rewards = np.array([r["reward_mean"] for r in rows if r.get("reward_mean") is not None])
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    if len(steps):
        axis.plot(steps, rewards, color="tab:blue", alpha=0.3, linewidth=1, label="reward")
        window = max(1, len(rewards) // 20)
        smooth = np.convolve(rewards, np.ones(window) / window, mode="valid")
        axis.plot(steps[window - 1 :], smooth, color="tab:blue", label=f"mean of {window} steps")
    scored = [(r["step"], r["accuracy"]) for r in rows if r.get("accuracy") is not None]
    if scored:
        axis.plot(*zip(*scored), "o-", color="tab:orange", label="held-out accuracy (greedy)")
    axis.set_xlabel("step")
    axis.set_ylabel("reward, accuracy")
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend()
    path = directory / "reward.png"
    figure.savefig(path, dpi=120)
    return path
