"""The directory of a run: refused where it holds what the run has not written."""

import os
import pathlib

from polgrad.policies.hub import exporting
from polgrad.training.config import TrainConfig
from polgrad.training.setup import ownership, run_files

OTHERS = {
    "experiment.json": "an experiment's run",
    "sweep.json": "a sweep",
    exporting.MARK: "an exported policy",
}
"""Files by which a directory is known that something else than `train` has written."""


def check_free(config: TrainConfig, run: run_files.Stored | None) -> run_files.Stored | None:
    """A directory is refused before the policy is loaded where a run is in it that does not go on.

    Returns:
      A run that is in it and holds nothing, as one that failed before its first saved step.
    """
    directory = pathlib.Path(config.out)
    for file, kind in OTHERS.items():
        if (directory / file).exists():
            raise ValueError(f"out {config.out!r} holds {kind} ({file}); give another --out")
    replaced = None if config.resume else run_files.stored(directory)
    if replaced is not None and not ownership.holds_nothing(replaced):
        raise ValueError(f"out {config.out!r} holds a run already; give --resume or another --out")
    if config.allow_changed and not config.resume:
        raise ValueError(
            f"allow_changed is {', '.join(config.allow_changed)}; expected only with --resume, whose "
            "settings it lets differ"
        )
    if run is None and config.resume_from is not None:
        raise ValueError(f"resume_from is {config.resume_from}, but {config.out!r} holds no run")
    _check_task_is_kept(config, directory)
    if run is None and replaced is None and (found := _of_others(directory)):
        raise ValueError(
            f"out {config.out!r} holds {found}, which this run has not written and would write to; "
            "give another --out"
        )
    return replaced


WRITTEN = (
    "metrics.jsonl",
    "samples.jsonl",
    "scores*.jsonl",
    run_files.CHANGES,
    "before.json",
    "policy.json",
    "reward.png",
    "tensorboard/*",
    "checkpoints/*",
)
"""What a run writes once its `config.json` is there, as patterns below its directory."""


def _of_others(directory: pathlib.Path) -> str | None:
    """The first file with a name that a run writes, where no run has written its settings.

    A start that ended before that has left `identity.json`, and with it the mark of its place of
    checkpoints; the corrected command begins there.
    """
    left = {ownership.OWNER, ".lock"} if (directory / run_files.IDENTITY).exists() else {".lock"}
    for pattern in WRITTEN:
        for path in sorted(directory.glob(pattern)):
            if path.name not in left:
                return os.path.relpath(path, directory)
    return None


def _check_task_is_kept(config: TrainConfig, directory: pathlib.Path) -> None:
    """The file of problems is none that the run itself writes."""
    if not run_files.is_file(config.task):
        return
    task, here = (pathlib.Path(p).expanduser().resolve() for p in (config.task, directory))
    # With a slash before it, a pattern is compared with the whole path and not with its end.
    below = pathlib.PurePath("/", task.relative_to(here)) if task.is_relative_to(here) else None
    if below is not None and any(below.match(f"/{pattern}") for pattern in WRITTEN):
        raise ValueError(
            f"task {config.task!r} is a file that the run writes to (out {config.out!r}); give "
            "another --out, or the task under another name"
        )
