"""`load_task`: a reasoning-gym task by name, or a user's own file by path, as a source."""

import dataclasses
import json
import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polgrad import _names, _ranges
from polgrad.data import sources


def default_data_dir() -> Path:
    """Where built tasks are kept: `$POLGRAD_DATA`, or `~/.cache/polgrad/data`.

    Returns:
        The directory, which need not exist.
    """
    return Path(os.environ.get("POLGRAD_DATA") or "~/.cache/polgrad/data").expanduser()


def _registry() -> dict[str, tuple[type, type]]:
    from reasoning_gym.factory import DATASETS

    # "composite" is a mixture described by objects, not a task with parameters.
    return {name: classes for name, classes in DATASETS.items() if name != "composite"}


def task_names() -> list[str]:
    """Names of the reasoning-gym tasks that `load_task` knows.

    Returns:
        The names, sorted.
    """
    return sorted(_registry())


def _check_parameters(task: str, config_class: type, parameters: Mapping[str, Any]) -> None:
    """Raise ValueError for a parameter that the task lacks, or of a wrong type or value."""
    hints = typing.get_type_hints(config_class)
    known = [
        field.name
        for field in dataclasses.fields(config_class)
        if field.init and field.name not in ("size", "seed")
    ]
    for name, value in parameters.items():
        if name not in known:
            raise ValueError(
                f"task {task!r} has no parameter {name!r}{_names.hint(name, known, n=3)} "
                f"(it has: {', '.join(known) or 'none'})"
            )
        expected = hints.get(name)
        accepted = {int: (int,), float: (int, float), bool: (bool,), str: (str,)}.get(expected)
        if accepted and (
            not isinstance(value, accepted) or (isinstance(value, bool) and expected is not bool)
        ):
            raise ValueError(
                f"parameter {name!r} of task {task!r} must be {_ranges.called(expected)}, got "
                f"{value!r}"
            )
    try:
        config = config_class(**parameters)
        if hasattr(config, "validate"):
            config.validate()
    # The library validates with asserts; a list where it expects a number is a TypeError.
    except (AssertionError, ValueError, TypeError) as error:
        reason = str(error) or "rejected by the task"
        raise ValueError(
            f"parameters of task {task!r}: {reason} (got {dict(parameters)})"
        ) from None


def _is_path(name: str) -> bool:
    return os.sep in name or "/" in name or Path(name).suffix != ""


def load_task(
    name_or_path: str | os.PathLike,
    *,
    split: str = "train",
    size: int | None = None,
    seed: int = 0,
    parameters: Mapping[str, Any] | None = None,
    prompt_pattern: str | None = None,
    prompt_template: str = "{prompt}",
    held_out: float = 0.1,
    distinct: bool = False,
    data_dir: str | os.PathLike | None = None,
) -> sources.Source:
    """Examples of a reasoning-gym task or of a user's own file, by random access.

    A prompt belongs to "test" when a digest of its text falls below `held_out`, and to "train"
    otherwise: the two share no prompt, whatever their sizes and seeds. A task's "test" holds
    distinct prompts. A file that is one split by itself is opened with `split="all"`.

    Args:
        name_or_path: name of a reasoning-gym task ("chain_sum"), or path of a `.jsonl` or
            `.parquet` file with `prompt` and `answer`, or `prompt`, `chosen` and `rejected`.
        split: "train", "test" or "all".
        size: number of examples; for a file, at most so many (None: all).
        seed: non-negative int; a task's problems depend on it, a file's do not.
        parameters: the task's own (`{"min_terms": 2, "max_terms": 2}`); none for a file.
        prompt_pattern: regular expression with one group; the prompt is the group's first match
            in the question. `r": (.+)$"` turns chain_sum's sentence into "12 + 34 =". The scorer
            still gets the task's own question.
        prompt_template: text around the prompt, with `{prompt}` once; applied last.
        held_out: share of the prompts that makes up "test", in [0, 1].
        distinct: keep each prompt of a generated task once. Generators repeat easy problems more
            often than hard ones; distinct training problems match the held-out ones.
        data_dir: where built tasks are kept; see `default_data_dir`.

    Returns:
        A source: `len(source)`, `source[i]`.

    Raises:
        ValueError: an unknown task (with a suggestion), parameter or split; a value out of range;
            a missing, empty or malformed file, with the line.
    """
    parameters = dict(parameters or {})
    if split not in sources.SPLITS:
        raise ValueError(f"split must be one of {', '.join(sources.SPLITS)}, got {split!r}")
    if not 0 <= held_out <= 1:
        raise ValueError(f"held_out must be in [0, 1], got {held_out!r}")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"size must be a positive integer, got {size!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed!r}")
    formatter = sources.prompt_formatter(prompt_pattern, prompt_template)
    name = os.fspath(name_or_path)
    # A folder may have the name of a task.
    if _is_path(name) or (os.path.isdir(name) and name not in _registry()):
        if parameters:
            raise ValueError(f"{name} is a file, which has no parameters; got {parameters}")
        if distinct:
            raise ValueError(f"distinct is for generated tasks; {name} is a file, read as it is")
        return sources.open_file(
            name, split=split, size=size, held_out=held_out, formatter=formatter
        )
    registry = _registry()
    if name not in registry:
        raise ValueError(
            f"unknown task {name!r}{_names.hint(name, list(registry), n=3)} "
            "(expected a reasoning-gym task, which `polgrad list tasks` names, or the path of a "
            ".jsonl or .parquet file)"
        )
    if size is None:
        raise ValueError(f"size must be given for the generated task {name!r}, got None")
    if held_out in (0, 1) and split == ("test", "train")[int(held_out)]:
        raise ValueError(f"split {split!r} is empty with held_out={held_out}")
    _check_parameters(name, registry[name][1], parameters)
    from polgrad.data import reasoning_gym

    config = reasoning_gym.TaskConfig(
        task=name,
        parameters=json.dumps(parameters, sort_keys=True),
        split=split,
        size=size,
        seed=seed,
        held_out=float(held_out),
        distinct=distinct,
        prompt_pattern=prompt_pattern,
        prompt_template=prompt_template,
    )
    return reasoning_gym.open_task(config, data_dir or default_data_dir())
