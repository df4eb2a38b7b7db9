"""Which run a directory holds: the settings, problems and source files that decide its numbers.

`config.json` holds the settings of a run, with what was left out filled in. `identity.json` holds
its number and the fingerprints of what the run reads from outside. A run that goes on compares
both: what decides its numbers must be the same, or be allowed by name. `changes.jsonl` has a line
for each start with other settings, which keeps the settings that held before.
"""

import dataclasses
import hashlib
import importlib.machinery
import inspect
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from polgrad import _names, _outside, _parts, _ranges, policies
from polgrad.contract import Algorithm
from polgrad.rewards import compose
from polgrad.training.config import TrainConfig, as_json
from polgrad.training.setup import earlier
from polgrad.training.setup.defaults import SMALL_POLICY

CONFIG, IDENTITY, CHANGES = "config.json", "identity.json", "changes.jsonl"

DECIDES = {
    "task": "the problems",
    "policy": "where the parameters start, and the tokenizer",
    "algorithm": "the loss",
    "settings": "the loss; each of its settings is compared",
    "seed": "every random number",
    "data": "the problems, their order and their texts",
    "small": "the shape of the policy",
    "rollouts.prompts": "the size of a batch",
    "rollouts.group_size": "the size of a group",
    "rollouts.max_tokens": "where a completion is cut",
    "rollouts.temperature": "the distribution that is sampled from and trained",
    "rollouts.stop": "where a completion ends",
    "rollouts.weights": "the weights that are sampled from",
    "update.epochs": "how often a rollout is used",
    "update.mini_batches": "how many updates a rollout gives",
    "update.compute_dtype": "the rounding of every product",
    "optimizer": "the size and direction of every update",
    "rewards.functions": "the reward",
    "rewards.preference": "the reward",
    "rewards.timeout": "which samples are invalid",
    "rewards.memory": "which samples are invalid",
    "warm_start": "the policy of the first step",
}
"""Settings that decide the numbers of a run, or sections of such settings, and how."""

FREE = {
    "steps": "a run may go on for longer; what that does to the learning rate is said",
    "out": "a run's directory may be moved",
    "resume": "says how to start",
    "resume_from": "says how to start",
    "allow_changed": "says how to start",
    "mesh": "the numbers are those of one device, up to rounding",
    "hosts": "the numbers are those of one process, up to rounding",
    "parity_tolerance": "only stops a run",
    "probe": "only stops a run",
    "profile": "only writes a file",
    "track_kl": "only reports a number",
    "rollouts.slots": "every sample has its own random numbers, whatever is decoded beside it",
    "rollouts.gather": "the same weights, up to rounding",
    "update.micro_batches": "the same gradient, up to rounding",
    "update.remat": "the same gradient, up to rounding",
    "update.attention": "the same attention, up to rounding",
    "update.chunk": "the same log-probabilities, up to rounding",
    "update.packing": "the same gradient, up to rounding",
    "update.share_prompts": "the same gradient, up to rounding",
    "update.max_skipped": "only stops a run",
    "rewards.workers": "the same scores from more processes",
    "rewards.environment": "names of variables, whose values are not kept",
    "rewards.failure_limit": "only stops a run",
    "evaluation": "reads the policy; policy small keeps the alphabet that the run began with",
    "saving": "where the numbers are kept, and how many of them",
}
"""Settings that a run may change when it goes on, or sections of them, and why."""

FINGERPRINTS = {
    "train_problems": "the training problems are others",
    "test_problems": "the held-out problems are others",
    "train_prompts": "the training problems have other tokens, as where a chat template writes the date",
    "test_prompts": "the held-out problems have other tokens, as where a chat template writes the date",
    "tokenizer": "the policy has another tokenizer or chat template",
    "network": "the policy's network computes something else",
    "reward_source": "a file of the reward has another text",
    "algorithm_source": "a file of the algorithm has another text",
}
"""What a run reads from outside, and what to say where it is not what it was."""

FLAG_OF = {
    "train_problems": "task",
    "test_problems": "task",
    "train_prompts": "task",
    "test_prompts": "task",
    "tokenizer": "policy",
    "network": "policy",
    "reward_source": "rewards.functions",
    "algorithm_source": "algorithm",
}
"""The flag that names where a fingerprint is taken."""

SHAPES = (
    "task",
    "policy",
    "algorithm",
    "settings",
    "data",
    "small",
    "rollouts.group_size",
    "rollouts.max_tokens",
    "optimizer.method",
    "optimizer.max_gradient_norm",
)
"""Settings that may give the arrays of a run another shape, or sections of such settings."""

_PROBLEMS = ("task", "data", "train_problems", "test_problems")
FOLLOWS = {
    "train_problems": ("task", "data"),
    "test_problems": ("task", "data", "train_problems"),
    "tokenizer": ("policy", *_PROBLEMS),
    "network": ("policy", "algorithm", "settings", "small", "tokenizer", *_PROBLEMS),
    "algorithm_source": ("algorithm",),
}
"""Fingerprints that may go with other shapes, each with the changes that explain it."""

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
        algorithm=_absolute_target(config.algorithm),
        rewards=rewards,
    )


def is_file(task: str) -> bool:
    """Whether a task is a file and not a name of reasoning-gym."""
    return task.endswith((".jsonl", ".parquet")) or os.sep in task


def _absolute_path(path: str, wanted: bool) -> str:
    return os.path.abspath(os.path.expanduser(path)) if wanted and path != "small" else path


def _absolute_target(target: str) -> str:
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
    return json.loads(json.dumps(as_json(config), default=_name))


def _name(value: Any) -> str:
    return getattr(value, "__qualname__", None) or type(value).__qualname__


class Change(NamedTuple):
    """One thing that is not what it was."""

    name: str
    there: Any
    here: Any

    def __str__(self) -> str:
        if self.name in FINGERPRINTS:
            return f"{self.name} ({FINGERPRINTS[self.name]})"
        return f"{self.name} ({self.values()})"

    def values(self) -> str:
        """Both values of a setting, for messages."""
        return f"{_shown(self.there)} there, {_shown(self.here)} here"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def changes(run: Stored, config: TrainConfig, fingerprints: Mapping[str, str]) -> list[Change]:
    """What is not as it was when the run began or last went on.

    Args:
      run: what is known of it.
      config: the settings now, all filled in.
      fingerprints: of what is read from outside now.

    Returns:
      All differences, those that decide nothing included.
    """
    there = flat(run.config | {"settings": _settings_now(run.config, config.settings)})
    defaults, here = flat(plain(_defaults(config))), flat(plain(config))
    found = []
    for name in sorted(there.keys() | here.keys()):
        if name.startswith("settings") and there.get("algorithm") != here["algorithm"]:
            continue  # of another algorithm, whose name is compared
        # An earlier version did not write what it did not have.
        old = there.get(name, RETIRED.get(name, defaults.get(name)))
        new = here.get(name, RETIRED.get(name))
        if old != new and not _same_path(name, old, new):
            found.append(Change(name, old, new))
    known = run.record.get("fingerprints", {})
    for name in FINGERPRINTS:
        # Without an evaluation no held-out problems are loaded.
        if known.get(name) and fingerprints.get(name) and known[name] != fingerprints[name]:
            found.append(Change(name, known[name], fingerprints[name]))
    return found


def _settings_now(stored: Mapping[str, Any], settings: Any) -> Any:
    """The algorithm's settings of a `config.json`, as this version writes them."""
    values = stored.get("settings")
    if not isinstance(values, dict) or not dataclasses.is_dataclass(settings):
        return values
    schema = type(settings)
    try:
        with _outside.reading("settings"):
            found = _parts.from_json(schema, earlier.settings(schema, values), "settings")
    except _outside.OutsideError:
        return values  # Of another algorithm, or not to be read: the difference is told by name.
    return json.loads(json.dumps(_parts.as_json(found), default=_name))


def _defaults(config: TrainConfig) -> TrainConfig:
    """All defaults, with those of the algorithm's own settings."""
    try:
        return TrainConfig(settings=type(config.settings)())
    except TypeError:  # no settings class, or one without defaults
        return TrainConfig()


def _same_path(name: str, old: Any, new: Any) -> bool:
    """Whether two paths are one; earlier versions kept them as they were given."""
    if name in ("task", "policy"):
        return isinstance(old, str) and os.path.abspath(os.path.expanduser(old)) == new
    if name == "algorithm":
        return isinstance(old, str) and _absolute_target(old) == new
    if name in ("rewards.functions", "rewards.preference"):
        both = ([x] if isinstance(x, str) else x for x in (old, new))
        old, new = both
        return bool(old and new) and [_absolute_target(str(t)) for t in old] == list(new)
    return False


def decides(name: str) -> bool:
    """Whether a setting or fingerprint decides the run's numbers; the unknown are taken to."""
    return not _within(name, FREE)


def decides_start(name: str) -> bool:
    """Whether a setting or fingerprint decides the policy that training starts from.

    The rewards and how rollouts are drawn do not: that policy is made before the first of them. The
    algorithm does, because its network may have a head of values.
    """
    after = ("rewards", "reward_source", "optimizer", "rollouts", "update.epochs")
    needed = "rollouts.max_tokens"  # where demonstrations end
    return name == needed or (decides(name) and not _within(name, after))


def _within(name: str, names: Iterable[str]) -> bool:
    return any(name == entry or name.startswith(f"{entry}.") for entry in names)


def check(
    run: Stored, found: list[Change], allowed: tuple[str, ...], misfit: str | None = None
) -> None:
    """Refuses a run that would go on as another one.

    Args:
      run: what is known of it.
      found: what differs.
      allowed: names that may differ; a section's name allows all of it.
      misfit: the array of the run's checkpoint that has another shape now, if there is one.

    Raises:
      ValueError: one line that lists every difference that decides numbers and is not allowed. With
        a misfit nothing can be allowed; the line lists the differences that may explain it.
    """
    names = tuple(name.replace("-", "_") for name in allowed)
    _check_names(names, run, found)
    if misfit:
        raise ValueError(
            f"the run in {run.place} cannot be resumed with {_typed(found)}: {misfit}. Give the run's "
            "own, or another --out for a new run"
        )
    refused = [c for c in found if decides(c.name) and not _within(c.name, names)]
    if refused:
        raise ValueError(
            f"the run in {run.place} cannot go on with other settings: "
            f"{'; '.join(map(str, refused))}. Give the run's own, or allow the change: "
            f"--allow-changed {' '.join(_sections(c.name for c in refused))}"
        )


def _sections(names: Iterable[str]) -> list[str]:
    """The names, with that of a part in place of all its settings where the part is another one."""
    names = list(names)
    parts = [n.removesuffix(f".{_parts.KIND}") for n in names if n.endswith(f".{_parts.KIND}")]
    outer = [p for p in parts if not _within(p, [q for q in parts if q != p])]
    return [*outer, *(n for n in names if not _within(n, outer))]


def _typed(found: list[Change]) -> str:
    """The changes that may explain another shape, as flags of the command line."""
    decisive = [c for c in found if decides(c.name)]
    shaping = [c for c in decisive if _within(c.name, (*SHAPES, *FOLLOWS))]
    causes = [
        c for c in shaping if not any(_within(o.name, FOLLOWS.get(c.name, ())) for o in shaping)
    ]
    return "; ".join(_flag(c) for c in causes or decisive)


def _flag(change: Change) -> str:
    name = change.name
    if name in FINGERPRINTS:
        return f"--{FLAG_OF[name]} ({FINGERPRINTS[name]})"
    flag = name.removesuffix(f".{_parts.KIND}").replace("_", "-")
    return f"--{flag} ({change.values()})"


def _check_names(names: tuple[str, ...], run: Stored, found: list[Change]) -> None:
    known = {*DECIDES, *FREE, *FINGERPRINTS, *flat(run.config), *(c.name for c in found)}
    known |= {name.rpartition(".")[0] for name in known if "." in name}
    for name in names:
        if name not in known:
            hint = _names.hint(name, sorted(known))
            raise ValueError(
                f"allow_changed has {name!r}, which is no setting{hint} (expected names such as "
                f"optimizer.learning_rate, or one of {', '.join(FINGERPRINTS)})"
            )


def fingerprint(*parts: bytes | str) -> str:
    """A short digest of texts or bytes."""
    digest = hashlib.sha256()
    for part in parts:
        body = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(body).to_bytes(8, "big") + body)
    return digest.hexdigest()[:32]


def of_policy(policy: policies.Policy, tokenizer: Any) -> dict[str, str]:
    """Fingerprints of a policy's network and tokenizer.

    Its longest sequence and how its layers are compiled do not change what it computes.
    """
    text = policy.text._asdict() if policy.text else {"alphabet": tokenizer.alphabet}
    shape = getattr(policy.network, "config", None)
    shape = dataclasses.asdict(shape) if dataclasses.is_dataclass(shape) else {"is": repr(shape)}
    shape = {k: v for k, v in shape.items() if k not in ("max_length", "unroll")}
    return {
        "tokenizer": _of_text(text),
        "network": fingerprint(json.dumps(shape, sort_keys=True, default=_name)),
    }


def of_alphabet(alphabet: str) -> str:
    """The fingerprint of the tokenizer whose tokens are these characters."""
    return _of_text({"alphabet": alphabet})


def _of_text(text: Mapping[str, Any]) -> str:
    return fingerprint(json.dumps(text, sort_keys=True, default=_name))


def of_rewards(targets: Iterable[str]) -> str:
    """The fingerprint of the files that rewards are defined in; "" where all are polgrad's own."""
    places = [target.rpartition(":")[0] for target in targets]
    found = [p if p.endswith(".py") else _module_file(p) for p in places]
    return _of_files(path for path in found if path)


def of_scores(parts: Any) -> str:
    """The fingerprint of everything that decides the score of a completion.

    Args:
      parts: the run, with the fingerprints of what it reads from outside.

    Returns:
      A digest that is the same on every host, whatever folder a reward's file is in there.
    """
    settings = parts.config.rewards
    targets = []
    for spec in parts.reward_specs:
        place, _, name = spec.target.rpartition(":")
        place = os.path.basename(place) if place.endswith(".py") else place
        targets.append([place, name, spec.weight, dict(spec.parameters)])
    names = ("reward_source", "train_problems")
    decides = {
        "targets": targets,
        "timeout": settings.timeout,
        "memory": settings.memory,
        "environment": sorted(settings.environment),
        **{name: parts.fingerprints.get(name) for name in names},
    }
    return fingerprint(json.dumps(decides, sort_keys=True, default=_name))


def _module_file(name: str) -> str | None:
    """The file of a module, found without importing anything of it."""
    first, *rest = name.split(".")
    if first == "polgrad":
        return None
    spec = importlib.machinery.PathFinder.find_spec(first)
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        first = f"{first}.{part}"
        spec = importlib.machinery.PathFinder.find_spec(first, [*spec.submodule_search_locations])
    return spec.origin if spec and spec.has_location else None


def of_algorithm(settings: Any) -> str:
    """The fingerprint of the files that an algorithm is written in; "" for polgrad's own."""
    if isinstance(settings, Algorithm):
        parts = [part for part in settings if callable(part)]
    else:
        parts = [c for c in type(settings).__mro__ if c is not object]
    bodies = {}
    for part in parts:
        part = getattr(part, "func", part)
        module = getattr(inspect.unwrap(part), "__module__", "") or ""
        if module.partition(".")[0] != "polgrad":
            where, body = _source_of(part)
            bodies[where] = body
    found = [body for body in bodies.values() if body]
    return fingerprint(*found) if found else ""


def _source_of(part: Any) -> tuple[str, bytes]:
    """Where a class or function is written, and what is written there: b"" where nothing is.

    What was typed into a notebook has no file; its own text is known there.
    """
    try:
        if path := inspect.getsourcefile(part):
            return path, pathlib.Path(path).read_bytes()
    except (TypeError, OSError):  # built in, or of a session without a file
        pass
    where = f"{getattr(part, '__module__', '')}:{_name(part)}"
    try:
        return where, inspect.getsource(part).encode("utf-8", "surrogatepass")
    except (TypeError, OSError):
        return where, b""


def _of_files(paths: Iterable[str]) -> str:
    bodies = []
    for path in paths:
        try:
            bodies.append(pathlib.Path(path).read_bytes())
        except OSError:
            continue
    return fingerprint(*bodies) if bodies else ""


def schedule_note(config: TrainConfig, run: Stored, step: int) -> str | None:
    """What a run of another length does to the learning rate.

    Args:
      config: the settings now.
      run: what is known of the run.
      step: the newest checkpoint.

    Returns:
      A line for the user; None where nothing changes.
    """
    before, now = run.config.get("steps"), config.steps
    schedule = config.optimizer.schedule
    if before == now or not isinstance(before, int) or schedule not in ("linear", "cosine"):
        return None
    updates = config.update.epochs * config.update.mini_batches
    rates = [float(config.optimizer.rate(n * updates)(step * updates)) for n in (before, now)]
    return (
        f"note: the {schedule} schedule is laid over {now} steps instead of {before}: after step "
        f"{step} the learning rate is {rates[1]:.3g}, where it would have been {rates[0]:.3g}"
    )
