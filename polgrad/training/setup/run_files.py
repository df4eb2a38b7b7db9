"""The settings and the record of a run, as its files hold them.

`config.json` holds the settings of a run, with what was left out filled in. `identity.json` holds
its number and the fingerprints of what the run reads from outside. `changes.jsonl` has a line for
each start with other settings, which keeps the settings that held before.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from polgrad import _names, _outside, _parts, _ranges
from polgrad.rewards import compose
from polgrad.training.config import TrainConfig, as_json
from polgrad.training.setup import earlier
from polgrad.training.setup.defaults import SMALL_POLICY

CONFIG = "config.json"
IDENTITY = "identity.json"
CHANGES = "changes.jsonl"
RETIRED = {"rollouts.top_k": 0, "rollouts.top_p": 1.0, "rollouts.min_p": 0.0}
"""Settings of earlier versions with the only value that they could have."""

FILLED = (*SMALL_POLICY, "rollouts.max_tokens")
"""Settings that a run fills in where they are left out; one that goes on takes what it took then."""


class Stored(NamedTuple):
    """What is known of the run that goes on.

    Attributes:
      config: its settings, as `config.json` holds them.
      record: of `identity.json`; empty for a run of an earlier version.
      place: the directory that the two were read from.
    """

    config: dict[str, Any]
    record: dict[str, Any]
    place: str


def stored(directory: str | os.PathLike) -> Stored | None:
    """The run that a directory holds, None where it holds none.

    Raises:
      ValueError: if one of its files cannot be read.
    """
    directory = pathlib.Path(directory)
    if not (directory / CONFIG).exists():
        return None
    settings = read_settings(directory / CONFIG)
    record = {}
    if (directory / IDENTITY).exists():
        record = checked_record(_outside.read_json(directory / IDENTITY), directory / IDENTITY)
    return Stored(settings, record, str(directory))


def checked_record(record: dict[str, Any], path: str | os.PathLike) -> dict[str, Any]:
    """The record itself, where it has what a record has."""
    if not isinstance(record.get("id"), str) or not isinstance(record.get("fingerprints"), dict):
        raise _outside.OutsideError(f"{path}: expected an object with 'id' and 'fingerprints'")
    if not isinstance(record.get("versions", {}), dict):
        raise _outside.OutsideError(f"{path}: 'versions' is no object")
    return record


def read_settings(path: str | os.PathLike) -> dict[str, Any]:
    """The settings in a `config.json`, which must have every section as an object.

    Raises:
      ValueError: if the file is not one that `polgrad train` wrote.
    """
    return checked_settings(_outside.read_json(path), path)


def checked_settings(raw: Any, path: str | os.PathLike) -> dict[str, Any]:
    """The settings themselves, where they have what the settings of a run have."""
    if not isinstance(raw, dict) or "task" not in raw or "algorithm" not in raw:
        raise _outside.OutsideError(
            f"{path}: expected the settings of a run, with 'task' and 'algorithm'"
        )
    for field in dataclasses.fields(TrainConfig):
        if dataclasses.is_dataclass(field.default) and not isinstance(
            raw.get(field.name, {}), dict
        ):
            raise _outside.OutsideError(f"{path}: {field.name!r} is no object; expected settings")
    return raw


def settings_of(raw: Mapping[str, Any], path: str | os.PathLike) -> TrainConfig:
    """Settings from a `config.json`, but for those of the algorithm.

    Args:
      raw: what the file holds.
      path: of the file, for messages.

    Returns:
      The settings; what an earlier version did not write has its default.

    Raises:
      ValueError: for a setting that this version does not know, or a value that a setting cannot
        have; one line that names the file.
    """
    names = {f.name for f in dataclasses.fields(TrainConfig)}
    known = {k: v for k, v in raw.items() if k in names and k != "settings"}
    unknown = [k for k in raw if k not in names]
    config = _fill(TrainConfig(), known, "", unknown)
    if unknown:
        every = flat(as_json(TrainConfig()))
        advice = _names.hint(unknown[0], every) or "; take the file's other settings by hand"
        raise _outside.OutsideError(
            f"{path}: this version has no setting {', '.join(unknown)}{advice}"
        )
    return _checked(config, "", path)


def _checked(settings: Any, name: str, path: str | os.PathLike) -> Any:
    """Settings of a file, where each is of its type and in its range."""
    try:
        _ranges.check(settings, name)
    except ValueError as error:
        raise _outside.OutsideError(f"{path}: {error}") from None
    return settings


def _fill(settings: Any, raw: Mapping[str, Any], prefix: str, unknown: list[str]) -> Any:
    """Frozen settings with the values of a JSON object."""
    values = {}
    for name, value in raw.items():
        if not hasattr(settings, name):
            if prefix + name not in RETIRED or RETIRED[prefix + name] != value:
                unknown.append(prefix + name)
            continue
        default = getattr(settings, name)
        if dataclasses.is_dataclass(default) and isinstance(value, dict):
            value = _fill(default, value, f"{prefix}{name}.", unknown)
        elif isinstance(value, list):
            value = tuple(value)
        values[name] = value
    return dataclasses.replace(settings, **values)


def algorithm_settings_of(raw: Mapping[str, Any], found: Any, path: str | os.PathLike) -> Any:
    """The algorithm's settings in a `config.json`.

    Args:
      raw: what the file holds.
      found: what the algorithm's name stands for: a class of settings, or an object.
      path: of the file, for messages.

    Returns:
      Settings of that class; `found` itself where it is an object.

    Raises:
      ValueError: as `settings_of`.
    """
    if not isinstance(found, type):
        return found
    values = raw.get("settings") or {}
    if not isinstance(values, dict):
        raise _outside.OutsideError(f"{path}: 'settings' is no object; expected settings")
    if not dataclasses.is_dataclass(found):
        with _outside.reading(path):
            return found(**values)
    with _outside.reading(path):
        settings = _parts.from_json(found, earlier.settings(found, values), "settings")
    return _checked(settings, "settings", path)


def absolute(config: TrainConfig) -> TrainConfig:
    """Settings whose files are found from any folder.

    Raises:
      ValueError: if a file of a reward does not exist.
    """
    rewards = dataclasses.replace(
        config.rewards,
        functions=tuple(compose.full_target(target) for target in config.rewards.functions),
        preference=config.rewards.preference and compose.full_target(config.rewards.preference),
    )
    kept = config.saving.checkpoints
    if kept is not None and "://" not in kept:
        kept = _absolute_path(kept, True)
    return dataclasses.replace(
        config,
        saving=dataclasses.replace(config.saving, checkpoints=kept),
        task=_absolute_path(config.task, is_file(config.task)),
        policy=_absolute_path(config.policy, os.path.exists(os.path.expanduser(config.policy))),
        algorithm=absolute_target(config.algorithm),
        rewards=rewards,
    )


def is_file(task: str) -> bool:
    """Whether a task is a file and not a name of reasoning-gym."""
    return task.endswith((".jsonl", ".parquet")) or os.sep in task


def _absolute_path(path: str, wanted: bool) -> str:
    return os.path.abspath(os.path.expanduser(path)) if wanted and path != "small" else path


def absolute_target(target: str) -> str:
    """`file.py:NAME` with the absolute path of the file; any other target as it is."""
    place, colon, name = target.rpartition(":")
    return f"{_absolute_path(place, True)}:{name}" if place.endswith(".py") else target


def filled(config: TrainConfig, run: Stored | None) -> TrainConfig:
    """Settings of a run that goes on, with those left out that the run filled in when it began.

    A warm-up that is a share of all updates must not change where a run goes on for longer.
    """
    there = flat(run.config) if run else {}
    for name in FILLED:
        if there.get(name) is not None and _get(config, name) is None:
            config = _set(config, name.split("."), there[name])
    return config


def _get(settings: Any, name: str) -> Any:
    for part in name.split("."):
        settings = getattr(settings, part)
    return settings


def _set(settings: Any, parts: list[str], value: Any) -> Any:
    first, *rest = parts
    changed = _set(getattr(settings, first), rest, value) if rest else value
    return dataclasses.replace(settings, **{first: changed})


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`, with values as JSON brings them back."""
    found = {}
    for name, value in nested.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = list(value) if isinstance(value, tuple) else value
    return found


def plain(config: TrainConfig) -> dict[str, Any]:
    """Settings as they are written to `config.json`; what JSON cannot hold is named."""
    return json.loads(json.dumps(as_json(config), default=class_name))


def class_name(value: Any) -> str:
    """The name of a class, or of the class of a value."""
    return getattr(value, "__qualname__", None) or type(value).__qualname__
