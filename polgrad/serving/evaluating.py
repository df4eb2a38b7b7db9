"""The accuracy of a policy on problems, and the result of each (`polgrad evaluate`)."""

import dataclasses
import json
import os
import pathlib
import tempfile
from typing import Any

import jax

from polgrad import _files, _outside, data, policies
from polgrad.rewards.pool import RewardPool
from polgrad.rollouts import Sampling, sampler
from polgrad.serving.loading import load, say_missing_template
from polgrad.serving.sampling import room
from polgrad.training import config
from polgrad.training.evaluation import CHUNK, Accuracy, ProblemResult, evaluate
from polgrad.training.runtime import hosts
from polgrad.training.runtime import mesh as mesh_lib
from polgrad.training.saving.description import POLICY_FILE
from polgrad.training.setup import footprint, run_files, scorers
from polgrad.training.setup.problems import Problems, load_source, tokenize

PROBLEMS = 500
"""How many held-out problems are tried where nothing else is said."""


def evaluate_policy(
    policy: str,
    *,
    step: int | None = None,
    remote: bool = False,
    task: str | None = None,
    parameters: tuple[str, ...] = (),
    held_out: float | None = None,
    problems: int | None = None,
    samples: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    max_tokens: int | None = None,
    seed: int = 0,
    out: str | None = None,
) -> Accuracy:
    """Held-out accuracy of a policy on a task, or of a run on its own task.

    Args:
      policy: as for `load`.
      step: which checkpoint of a run; the newest when left out.
      remote: read checkpoints at an address that the run names.
      task: a reasoning-gym task, or a file, of which all rows are used; a run's own, with its
        settings and its held-out part, when left out.
      parameters: `key=value` settings of a reasoning-gym task.
      held_out: share of the file `task` that is used, the share that a training run with the same
        setting keeps for evaluation; all of it when left out.
      problems: how many at most; when left out 500, and all rows of a file `task`.
      samples: samples a problem for pass@k; 0 leaves it out.
      temperature: of those samples; so are `top_k`, `top_p`, `min_p`.
      top_k: keep only the k likeliest tokens.
      top_p: keep the likeliest tokens up to this mass.
      min_p: keep tokens at least this likely, relative to the likeliest.
      max_tokens: longest completion; the run's when left out, else what the context leaves, up to
        64.
      seed: of the problems (unless the run says) and the samples.
      out: a new JSON file for the accuracy and the result of each problem.

    Returns:
      The accuracy.

    Raises:
      ValueError: for a policy without a task of its own and none given, and for bad settings.
    """
    filters = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    Sampling(max_tokens=max_tokens or 1, **filters)  # refuses numbers out of range
    _check_counts(problems, samples)
    place = None if out is None else _new_file(out)
    loaded, tokenizer = load(policy, step=step, remote=remote)
    say_missing_template(policy, loaded)
    settings, test, count = _evaluated(policy, task, parameters, held_out, problems, seed)
    context = loaded.network.max_length
    longest = max(len(tokenizer.prompt_ids(test[i]["prompt"])) for i in range(len(test)))
    wanted = settings.rollouts.max_tokens if max_tokens is None else max_tokens
    tokens = room("the longest prompt", longest, wanted, context)
    settings = dataclasses.replace(
        settings, seed=seed, rollouts=dataclasses.replace(settings.rollouts, max_tokens=tokens)
    )
    mesh = mesh_lib.make()
    parts = _Evaluated(
        config=settings,
        network=loaded.network,
        tokenizer=tokenizer,
        test=tokenize(test, tokenizer, context - tokens),
        mesh=mesh,
        processes=hosts.Processes(),
        filters=filters,
    )
    specs = scorers.task_specs(settings, test)
    if not specs:
        raise ValueError(f"task {settings.task} has no answers to check against")
    each: list[ProblemResult] | None = None if place is None else []
    with mesh_lib.entered(mesh), RewardPool(specs, failure_limit=1.0) as pool:
        rows = CHUNK * max(1, samples)
        footprint.check_sampling(
            loaded.network,
            rows=rows,
            slots=sampler.default_slots(rows),
            tokens=tokens,
            lower="samples or max_tokens",
        )
        params = jax.device_put(loaded.params, mesh_lib.replicated(mesh))
        accuracy = evaluate(parts, params, pool, problems=count, samples=samples, each=each)
    if place is not None:
        report = {"policy": policy, "task": settings.task, "max_tokens": tokens, "seed": seed}
        report |= {"samples": samples, **filters} if samples else {}
        results = [result._asdict() for result in each]
        content = report | accuracy._asdict() | {"results": results}
        _write_results(place, content)
    return accuracy


def _check_counts(problems: int | None, samples: int) -> None:
    if problems is not None and problems < 1:
        raise ValueError(f"problems is {problems}; expected at least 1")
    if samples < 0:
        raise ValueError(f"samples is {samples}; expected at least 0")


def _new_file(out: str) -> pathlib.Path:
    """Where the result is written at the end; that it can be is seen before anything is computed."""
    path = pathlib.Path(out).expanduser()
    if path.exists() or path.is_symlink():
        raise ValueError(f"out {out!r} is there already; give the name of a new file")
    if not path.parent.is_dir():
        raise ValueError(f"out {out!r} cannot be written: {path.parent} is no directory")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"out {out!r} cannot be written: {_outside.reason(error)}") from error
    return path


def _write_results(path: pathlib.Path, content: dict) -> None:
    """Writes the results; where this fails, the message keeps the accuracy."""
    try:
        _files.write(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise _outside.OutsideError(
            f"{path} cannot be written: {_outside.reason(error)}; the accuracy is "
            f"{content['value']:.3f} (95% interval {content['low']:.3f} to {content['high']:.3f}, "
            f"{content['problems']} problems, greedy)"
        ) from error


def _evaluated(
    policy: str,
    task: str | None,
    parameters: tuple[str, ...],
    held_out: float | None,
    problems: int | None,
    seed: int,
) -> tuple[config.TrainConfig, data.Source, int]:
    """The settings of an evaluation, its problems, and how many of them are tried."""
    settings, split = _run_settings(policy), "test"
    is_file = task is not None and (task.endswith((".jsonl", ".parquet")) or os.sep in task)
    if held_out is not None and not is_file:
        raise ValueError("held_out is for a file that is given as task")
    if task is not None:
        share = config.Data.held_out if held_out is None else held_out
        own = config.Data(parameters=parameters, seed=seed, held_out=share)
        settings = dataclasses.replace(settings, task=task, data=own)
        # Who names a file as a test wants all of it.
        split = "all" if is_file and held_out is None else "test"
    elif parameters:
        raise ValueError("parameters are for a task; give the task too")
    elif not (pathlib.Path(policy).expanduser() / "config.json").is_file() or not settings.task:
        raise ValueError(f"policy {policy} is not a run; say which task with --task")
    size = problems or PROBLEMS
    settings = dataclasses.replace(
        settings, data=dataclasses.replace(settings.data, test_size=size)
    )
    source = load_source(settings, split, size_flag="--problems")
    return (
        settings,
        source,
        min(len(source), len(source) if split == "all" and not problems else size),
    )


def _run_settings(directory: str) -> config.TrainConfig:
    """Task and rollout settings of a run; the defaults for anything else."""
    path = pathlib.Path(directory).expanduser() / "config.json"
    if not path.is_file() or not (path.parent / POLICY_FILE).is_file():
        return config.TrainConfig(task="", rollouts=config.Rollouts(max_tokens=None))
    with _outside.reading(path):
        found = run_files.settings_of(run_files.read_settings(path), path)
    return config.TrainConfig(
        task=found.task,
        data=found.data,
        rollouts=found.rollouts,
        rewards=config.Rewards(functions=found.rewards.functions),
    )


@dataclasses.dataclass(frozen=True)
class _Evaluated:
    """The parts of a run that an evaluation reads."""

    config: config.TrainConfig
    network: policies.Network
    tokenizer: data.Tokenizer
    test: Problems
    mesh: jax.sharding.Mesh
    filters: dict[str, Any]
    processes: hosts.Processes

    def sampling(self, temperature: float | None = None) -> Sampling:
        """Greedy at temperature 0; else the filters that were asked for."""
        filters = {"temperature": 0.0} if temperature == 0.0 else self.filters
        return Sampling(
            max_tokens=self.config.rollouts.max_tokens,
            stop_ids=tuple(self.tokenizer.stop_ids),
            **filters,
        )
