"""Runs an experiment: every arm once, all seeds of an arm as one program."""

import contextlib
import dataclasses
import functools
import inspect
import io
import json
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from polgrad import _files, _outside
from polgrad._versions import versions
from polgrad.experiments.discovery import Found
from polgrad.experiments.recording import sink
from polgrad.experiments.settings import changed
from polgrad.experiments.types import Experiment, HostArm, Results, Verdict

# At small size compiling is nearly all the time there is: spend it on nothing that makes the
# program faster.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


ERROR = "error.txt"
"""Where the traceback of an arm that failed is kept, in the directory of the run."""


class ExperimentError(RuntimeError):
    """An arm, or the check of a claim, that cannot be used; one line with its name."""


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
      start: is called once, when everything has been checked.
      begin: gets a line for each arm that starts.
      point: gets (points there are, points in all) over all seeds of the arm that runs.
      end: gets a line for each arm that ends.
    """

    start: Callable[[], None] = lambda: None
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
    finish: Callable[[Run], None] = lambda run: None,
) -> Run:
    """Runs the arms of an experiment that `directory` does not hold yet.

    The directory is held while this goes on: another process that would write there is refused.

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
      finish: is given the run while its directory is still held.

    Returns:
      Curves, seeds and times.

    Raises:
      ValueError: for unknown arms or settings; for a directory with a run of other settings, with
        something else, with damaged files, or that another process holds.
      ExperimentError: for an arm that raises, whose curves are not finite or lack a metric.
    """
    experiment = found.experiment
    seeds, names = asked(experiment, seeds, arms)
    settings = changed(
        experiment.settings, (dict(experiment.smoke) if smoke else {}) | dict(changes or {})
    )
    description = describe(found, settings, seeds)
    directory = pathlib.Path(directory)
    _check_free(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with _files.alone(directory):
        _claim(directory, description)
        progress.start()
        done = _run(experiment, names, settings, seeds, directory, progress, smoke=smoke)
        finish(done)
    return done


def _run(experiment, names, settings, seeds, directory, progress, *, smoke) -> Run:
    """The arms one after the other, in a directory that is held and taken."""
    _rewrite_metrics(directory, experiment, seeds)
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
            _rewrite_metrics(directory, experiment, seeds)
            progress.end(f"{name}: {seeds} seeds in {float(arm['seconds']):.1f} s")
        else:
            progress.end(f"{name}: {seeds} seeds, already there")
        saved = _load_arm(path, experiment, name, seeds)
        seconds[name] = float(saved.pop("seconds"))
        curves[name] = saved
    return Run(Results(settings, curves), seeds, seconds, directory)


def verdict(found: Found, results: Results) -> Verdict | None:
    """What the experiment's own check says of its curves.

    Args:
      found: the experiment.
      results: of a run.

    Returns:
      The verdict; None where not all arms ran.

    Raises:
      ExperimentError: if the check raises or returns something else; with its file and line.
    """
    if results.curves.keys() != found.experiment.arms.keys():
        return None
    with _as_failure(f"{found.name}: holds", found.path):
        given = found.experiment.holds(results)
    if not isinstance(given, Verdict):
        kind = type(given).__name__
        raise ExperimentError(f"{found.name}: holds returned {kind}; expected experiments.verdict")
    return given


@contextlib.contextmanager
def _as_failure(what: str, path: str | os.PathLike) -> Iterator[None]:
    """Turns whatever somebody's code raises into an `ExperimentError` of one line."""
    try:
        with _outside.calling(path, what):
            try:
                yield
            except ExperimentError as error:
                raise _outside.OutsideError(str(error)) from error
    except _outside.OutsideError as error:
        raise ExperimentError(str(error)) from error.__cause__


def describe(found: Found, settings: Any, seeds: int) -> dict[str, Any]:
    """What a run's curves follow from; runs that agree in it may be joined.

    Raises:
      ValueError: settings that JSON cannot hold.
    """
    with _outside.calling(found.path, "the settings"):
        plain = json.loads(json.dumps(dataclasses.asdict(settings)))
    return {
        "name": found.name,
        "source": found.digest,
        "settings": plain,
        "seeds": seeds,
        "versions": versions(),
    }


def asked(
    experiment: Experiment, seeds: int | None, arms: Sequence[str] | None
) -> tuple[int, list[str]]:
    """How many seeds are to run, and which arms.

    Args:
      experiment: the experiment.
      seeds: how many; the experiment's own number when None.
      arms: which; all when None or empty.

    Returns:
      The number of seeds, and the arms in the experiment's order.

    Raises:
      ValueError: for a number out of range or an arm that the experiment has not.
    """
    seeds = experiment.seeds if seeds is None else seeds
    if not 1 <= seeds < 2**32:
        raise ValueError(f"seeds is {seeds}, expected at least 1 and below 2**32")
    unknown = sorted(set(arms or ()) - experiment.arms.keys())
    if unknown:
        raise ValueError(f"arms has {unknown}, expected some of {', '.join(experiment.arms)}")
    return seeds, [name for name in experiment.arms if not arms or name in arms]


_OWN = {"arms", "experiment.json", "metrics.jsonl", "result.json", "result.png", ERROR}


def _check_free(directory: pathlib.Path) -> None:
    """Refuses a directory with files that are no run's: `metrics.jsonl` may be somebody's."""
    if not directory.is_dir() or (directory / "experiment.json").exists():
        return
    others = [p.name for p in directory.iterdir() if p.name[0] != "." and p.name not in _OWN]
    kept = [n for n in ("metrics.jsonl", "result.json") if (directory / n).exists()]
    if others or kept:
        raise ValueError(
            f"{directory} holds {sorted([*others, *kept])[0]} and no run of an experiment; give "
            "another --out"
        )


def _claim(directory: pathlib.Path, description: dict[str, Any]) -> None:
    """Takes a directory for a run, unless another one has it."""
    path = directory / "experiment.json"
    if path.exists():
        there = _outside.read_json(path)
        for name in description:
            if there.get(name) != description[name]:
                raise ValueError(
                    f"{directory} holds a run with {name} {there.get(name)}, this one has "
                    f"{description[name]}; give another --out or remove it"
                )
    else:
        _files.write(path, json.dumps(description, indent=2) + "\n")
    (directory / "arms").mkdir(exist_ok=True)


def _run_arm(
    experiment, name, settings, seeds, directory, progress, compiler
) -> dict[str, np.ndarray]:
    arm = experiment.arms[name]
    path = _file_of(arm)
    if isinstance(arm, HostArm):
        curves = _run_on_host(arm, name, settings, seeds, directory, progress, path)
    else:
        stream = _Stream(directory / "metrics.jsonl", name, seeds, progress)
        with _as_failure(f"arm {name}", path):
            curves = _run_compiled(arm, settings, seeds, stream, compiler)
    _check(experiment, name, curves, seeds)
    return curves


def _file_of(arm: Any) -> str:
    """The file in which an arm's function is written."""
    function = arm.function if isinstance(arm, HostArm) else arm
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code.co_filename if code else type(function).__module__


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


def _run_on_host(arm, name, settings, seeds, directory, progress, path) -> dict[str, np.ndarray]:
    """Seed by seed; each is saved when it ends."""
    parts = []
    for seed in range(seeds):
        place = directory / "arms" / f"{name}-seed{seed}"
        place.mkdir(exist_ok=True)
        saved = place / "curves.npz"
        if not saved.exists():
            with _as_failure(f"arm {name}, seed {seed}", path):
                curves = arm.function(seed, settings, place)
                curves = {metric: np.asarray(curve) for metric, curve in curves.items()}
                _numeric(name, curves)
            _save(saved, curves)
        parts.append(_load(saved))
        progress.point(seed + 1, seeds)
    if any(part.keys() != parts[0].keys() for part in parts):
        raise ExperimentError(f"arm {name}: seeds differ in their metrics")
    for metric in parts[0]:
        shapes = {part[metric].shape for part in parts}
        if len(shapes) > 1:
            raise ExperimentError(f"arm {name}: seeds differ in the shape of {metric}: {shapes}")
    return {metric: np.stack([part[metric] for part in parts]) for metric in parts[0]}


def _check(experiment: Experiment, name: str, curves, seeds: int) -> None:
    missing = [m for m in (experiment.axis, *experiment.metrics) if m not in curves]
    if missing:
        raise ExperimentError(f"arm {name} returns no {', '.join(missing)} (it has: {[*curves]})")
    _numeric(name, curves)
    for metric, curve in curves.items():
        if curve.ndim < 1 or curve.shape[0] != seeds or curve.size == 0:
            raise ExperimentError(f"arm {name}: {metric} has shape {curve.shape} for {seeds} seeds")
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


def _numeric(name: str, curves: Mapping[str, np.ndarray]) -> None:
    """Curves are numbers that a file of arrays holds as they are."""
    for metric, curve in curves.items():
        if curve.dtype.kind not in "fiub":
            raise ExperimentError(
                f"arm {name}: {metric} is of type {curve.dtype}, expected numbers"
            )
        if metric == "seconds":
            raise ExperimentError(f"arm {name}: a metric is called seconds, which is the wall time")


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
            _files.append(self.path, json.dumps(row) + "\n")
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


def _rewrite_metrics(directory: pathlib.Path, experiment: Experiment, seeds: int) -> None:
    """Makes `metrics.jsonl` from the saved arms: what an arm streamed before it ended goes."""
    lines = []
    for name in experiment.arms:
        path = directory / "arms" / f"{name}.npz"
        if path.exists():
            arm = _load_arm(path, experiment, name, seeds)
            lines += [json.dumps(row) + "\n" for row in _rows(experiment, name, arm)]
    _files.write(directory / "metrics.jsonl", "".join(lines))


def _load_arm(path: pathlib.Path, experiment: Experiment, name: str, seeds: int):
    """A saved arm, which is held against what an arm must be as it was when it was saved."""
    saved = _load(path)
    with _damaged(path):
        seconds = saved.get("seconds")
        if seconds is None or seconds.ndim or seconds.dtype.kind != "f":
            raise ValueError("it lacks the time that the arm took")
        try:
            curves = {metric: curve for metric, curve in saved.items() if metric != "seconds"}
            _check(experiment, name, curves, seeds)
        except ExperimentError as error:
            raise ValueError(str(error)) from None
    return saved


def _load(path: pathlib.Path) -> dict[str, np.ndarray]:
    with _damaged(path), np.load(path) as saved:
        return {name: saved[name] for name in saved.files}


@contextlib.contextmanager
def _damaged(path: pathlib.Path) -> Iterator[None]:
    """Whatever is wrong with a file of curves is one line that also says what to do."""
    try:
        with _outside.reading(path):
            yield
    except _outside.OutsideError as error:
        raise _outside.OutsideError(f"{error}; remove the file to compute it again") from error


def _save(path: pathlib.Path, arm: Mapping[str, np.ndarray]) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, **arm)
    _files.write(path, content.getvalue())
