"""What a run may change when it goes on: settings and sources that decide its numbers stay.

A run that goes on compares its settings and fingerprints with those that its files hold
(`run_files`). What decides its numbers must be the same, or be allowed by name.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from polgrad import _names, _outside, _parts
from polgrad.training.config import TrainConfig
from polgrad.training.setup import earlier
from polgrad.training.setup.run_files import (
    RETIRED,
    Stored,
    absolute_target,
    class_name,
    flat,
    plain,
)

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
    return json.loads(json.dumps(_parts.as_json(found), default=class_name))


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
        return isinstance(old, str) and absolute_target(old) == new
    if name in ("rewards.functions", "rewards.preference"):
        both = ([x] if isinstance(x, str) else x for x in (old, new))
        old, new = both
        return bool(old and new) and [absolute_target(str(t)) for t in old] == list(new)
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
