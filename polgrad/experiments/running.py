"""Runs an experiment: every arm once, all seeds of an arm as one program."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import polgrad
from polgrad.experiments.discovery import Found
from polgrad.experiments.recording import sink
from polgrad.experiments.settings import changed
from polgrad.experiments.types import Experiment, HostArm, Results

# At small size compiling is nearly all the time there is: spend it on nothing that makes the
# program faster.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class ExperimentError(RuntimeError):
    """An arm that cannot be used, with the arm's name."""


class Run(NamedTuple):
    """What `run` returns.

    Attributes:
      results: curves of the arms that ran.
      seeds: how many.
      seconds: wall time of each arm, compilation included.
      directory: where everything lies.
    """

    results: Results
    seeds: int
    seconds: Mapping[str, float]
    directory: pathlib.Path


def keys(seeds: int) -> jax.Array:
    """One key a seed, `[S]`; a seed's key does not depend on how many there are."""
    return jax.vmap(lambda seed: jax.random.key(seed))(np.arange(seeds, dtype=np.uint32))


class Progress(NamedTuple):
    """What `run` tells while it runs; each does nothing by default.

    Attributes:
      begin: gets a line for each arm that starts.
      point: gets (points there are, points in all) over all seeds of the arm that runs.
      end: gets a line for each arm that ends.
    """

    begin: Callable[[str], None] = lambda text: None
    point: Callable[[int, int], None] = lambda done, total: None
    end: Callable[[str], None] = lambda text: None


def run(
    found: Found,
    directory: str | os.PathLike,
    *,
    seeds: int | None = None,
    arms: Sequence[str] | None = None,
    changes: Mapping[str, Any] | None = None,
    smoke: bool = False,
    progress: Progress = Progress(),  # noqa: B008
) -> Run:
    """Runs the arms of an experiment that `directory` does not hold yet.

    An arm is saved, at once, when it ends: a run that is killed goes on with the arm it was in
    (a `HostArm` with its seed).

    Args:
      found: the experiment.
      directory: of the run; curves, `metrics.jsonl` and `experiment.json` are written there.
      seeds: how many; the experiment's own number when left out.
      arms: which; all when left out.
      changes: settings to replace.
      smoke: the small size (`changes` still apply).
      progress: is told how far the run is.

    Returns:
      Curves, seeds and times.

    Raises:
      ValueError: for unknown arms or settings, or a directory with a run of other settings.
      ExperimentError: for an arm whose curves are not finite or lack a metric.
    """
    experiment = found.experiment
    seeds = experiment.seeds if seeds is None else seeds
    if seeds < 1:
        raise ValueError(f"seeds is {seeds}, expected at least 1")
    names = _arms(experiment, arms)
    settings = changed(
        experiment.settings, (dict(experiment.smoke) if smoke else {}) | dict(changes or {})
    )
    directory = pathlib.Path(directory)
    _claim(directory, describe(found, settings, seeds))
    _rewrite_metrics(directory, experiment)
    curves, seconds = {}, {}
    for name in names:
        progress.begin(f"{name}, {seeds} seeds")
        path = directory / "arms" / f"{name}.npz"
        if not path.exists():
            start = time.perf_counter()
            compiler = QUICK if smoke and jax.default_backend() == "cpu" else {}
            arm = _run_arm(experiment, name, settings, seeds, directory, progress, compiler)
            arm["seconds"] = np.array(time.perf_counter() - start)
            _save(path, arm)
            _rewrite_metrics(directory, experiment)
            progress.end(f"{name}: {seeds} seeds in {float(arm['seconds']):.1f} s")
        else:
            progress.end(f"{name}: {seeds} seeds, already there")
        saved = _load(path)
        seconds[name] = float(saved.pop("seconds"))
        curves[name] = saved
    return Run(Results(settings, curves), seeds, seconds, directory)


def describe(found: Found, settings: Any, seeds: int) -> dict[str, Any]:
    """What a run's curves follow from; runs that agree in it may be joined."""
    plain = json.loads(json.dumps(dataclasses.asdict(settings)))
    return {
        "name": found.name,
        "source": found.digest,
        "settings": plain,
        "seeds": seeds,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of what computes the curves."""
    packages = {name: importlib.metadata.version(name) for name in ("jax", "numpy", "optax")}
    return {"polgrad": polgrad.__version__, "python": platform.python_version()} | packages


def _arms(experiment: Experiment, arms: Sequence[str] | None) -> list[str]:
    unknown = sorted(set(arms or ()) - experiment.arms.keys())
    if unknown:
        raise ValueError(f"arms has {unknown}, expected some of {', '.join(experiment.arms)}")
    return [name for name in experiment.arms if not arms or name in arms]


def _claim(directory: pathlib.Path, description: dict[str, Any]) -> None:
    """Takes a directory for a run, unless another one has it."""
    path = directory / "experiment.json"
    if path.exists():
        there = json.loads(path.read_text())
        for name in description:
            if there.get(name) != description[name]:
                raise ValueError(
                    f"{directory} holds a run with {name} {there.get(name)}, this one has "
                    f"{description[name]}; give another --out or remove it"
                )
    (directory / "arms").mkdir(parents=True, exist_ok=True)
    _write(path, json.dumps(description, indent=2) + "\n")


def _run_arm(
    experiment, name, settings, seeds, directory, progress, compiler
) -> dict[str, np.ndarray]:
    arm = experiment.arms[name]
    if isinstance(arm, HostArm):
        curves = _run_on_host(arm, name, settings, seeds, directory, progress)
    else:
        stream = _Stream(directory / "metrics.jsonl", name, seeds, progress)
        curves = _run_compiled(arm, settings, seeds, stream, compiler)
    _check(experiment, name, curves, seeds)
    return curves


def _run_compiled(arm, settings, seeds, stream, compiler) -> dict[str, np.ndarray]:
    """All seeds as one program."""

    def one(key, seed):
        with sink(seed, stream):
            return dict(arm(key, settings))

    program = jax.jit(jax.vmap(one), compiler_options=compiler)
    curves = program(keys(seeds), np.arange(seeds))
    curves = {metric: np.asarray(curve) for metric, curve in curves.items()}
    jax.effects_barrier()  # no row may come after the arm's own curves
    return curves


def _run_on_host(arm, name, settings, seeds, directory, progress) -> dict[str, np.ndarray]:
    """Seed by seed; each is saved when it ends."""
    parts = []
    for seed in range(seeds):
        place = directory / "arms" / f"{name}-seed{seed}"
        place.mkdir(exist_ok=True)
        path = place / "curves.npz"
        if not path.exists():
            curves = arm.function(seed, settings, place)
            _save(path, {metric: np.asarray(curve) for metric, curve in curves.items()})
        parts.append(_load(path))
        progress.point(seed + 1, seeds)
    if any(part.keys() != parts[0].keys() for part in parts):
        raise ExperimentError(f"arm {name}: seeds differ in their metrics")
    return {metric: np.stack([part[metric] for part in parts]) for metric in parts[0]}


def _check(experiment: Experiment, name: str, curves, seeds: int) -> None:
    missing = [m for m in (experiment.axis, *experiment.metrics) if m not in curves]
    if missing:
        raise ExperimentError(f"arm {name} returns no {', '.join(missing)} (it has: {[*curves]})")
    if curves[experiment.axis].ndim != 2:
        raise ExperimentError(f"arm {name}: {experiment.axis} is one number; expected [points]")
    points = curves[experiment.axis].shape[1]
    for metric, curve in curves.items():
        if curve.ndim > 1 and curve.shape != (seeds, points):
            raise ExperimentError(
                f"arm {name}: {metric} has shape {curve.shape[1:]} a seed; expected one number, "
                f"or [{points}] as {experiment.axis}"
            )
        bad = np.flatnonzero(~np.isfinite(curve.reshape(seeds, -1)).all(1))
        if len(bad):
            raise ExperimentError(f"arm {name}: {metric} is not finite for seeds {bad.tolist()}")


class _Stream:
    """Takes what `record` sends and appends it to `metrics.jsonl`, row by row."""

    def __init__(self, path: pathlib.Path, arm: str, seeds: int, progress: Progress):
        self.path, self.arm, self.seeds, self.progress = path, arm, seeds, progress
        self.lock, self.done = threading.Lock(), 0  # rows come from the runtime's own threads

    def __call__(self, seed, point, total, metrics) -> None:
        row = {"arm": self.arm, "seed": int(seed), "point": int(point)}
        values = {name: np.asarray(value).item() for name, value in metrics.items()}
        row |= {name: value if np.isfinite(value) else None for name, value in values.items()}
        with self.lock:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            self.done += 1
            self.progress.point(self.done, int(total) * self.seeds)


def _rows(experiment: Experiment, name: str, arm: Mapping[str, np.ndarray]):
    """The curves of an arm as rows of `metrics.jsonl`."""
    axis = arm[experiment.axis]
    series = {k: v for k, v in arm.items() if v.ndim == 2 and k != experiment.axis}
    for seed in range(axis.shape[0]):
        for point in range(axis.shape[1]):
            row = {"arm": name, "seed": seed, "point": point}
            row[experiment.axis] = axis[seed, point].item()
            yield row | {k: v[seed, point].item() for k, v in series.items()}


def _rewrite_metrics(directory: pathlib.Path, experiment: Experiment) -> None:
    """Makes `metrics.jsonl` from the saved arms: what an arm streamed before it ended goes."""
    lines = []
    for name in experiment.arms:
        path = directory / "arms" / f"{name}.npz"
        if path.exists():
            lines += [json.dumps(r) + "\n" for r in _rows(experiment, name, _load(path))]
    _write(directory / "metrics.jsonl", "".join(lines))


def _load(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path) as saved:
        return {name: saved[name] for name in saved.files}


def _save(path: pathlib.Path, arm: Mapping[str, np.ndarray]) -> None:
    draft = path.with_suffix(".new.npz")
    with draft.open("wb") as file:
        np.savez_compressed(file, **arm)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _write(path: pathlib.Path, text: str) -> None:
    draft = path.with_name(path.name + ".new")
    draft.write_text(text)
    draft.replace(path)
