"""One run, one directory, one place of checkpoints: who they belong to, and who holds them now.

A run has a number, made when it begins and kept in `identity.json` of its directory and in
`polgrad_run.json` beside its checkpoints. While a run goes on, its first process holds a lock on
its directory, and on the place of its checkpoints where that is a directory, too.
"""

import contextlib
import datetime
import json
import os
import pathlib
import secrets
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from polgrad import _files, _outside
from polgrad._versions import versions
from polgrad.training import named_policies
from polgrad.training.config import TrainConfig
from polgrad.training.saving.checkpoints import discard_initial
from polgrad.training.saving.places import INITIAL, place_of, steps_in
from polgrad.training.saving.reading import misfit
from polgrad.training.setup import identity, run_files
from polgrad.training.state import TrainState

OWNER = "polgrad_run.json"


def check_room(config: TrainConfig) -> None:
    """Sees to it that a run's directories can be made, and leaves nothing behind.

    Of a directory that is not there, the nearest folder above it is tried.

    Raises:
      ValueError: if one of them cannot.
    """
    for name, given in _places(config).items():
        _check_writable(name, given, make=False)


def make_directories(config: TrainConfig) -> None:
    """Makes a run's directories, and sees to it that files can be written there.

    Raises:
      ValueError: if one of them cannot be made or written.
    """
    for name, given in _places(config).items():
        _check_writable(name, given, make=True)


def _places(config: TrainConfig) -> dict[str, str]:
    """The places that settings name; the run's own directory is the last one to be made."""
    kept = config.saving.checkpoints
    return ({} if kept is None else {"saving.checkpoints": kept}) | {"out": config.out}


def _check_writable(name: str, given: str, *, make: bool) -> None:
    try:
        if "://" in given and name != "out":
            if make:  # a missing package or bucket is named here, and not at the first save
                epath.Path(given).exists()
            return
        path = pathlib.Path(given).resolve()
        if make:
            path.mkdir(parents=True, exist_ok=True)
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except Exception as error:  # noqa: BLE001  (libraries of buckets raise what they like)
        raise ValueError(f"{name} {given!r} cannot be written: {_outside.reason(error)}") from None


@contextlib.contextmanager
def held(parts: Any) -> Iterator[None]:
    """Holds a run's directory, and the place of its checkpoints, for this process.

    Raises:
      ValueError: if another process holds one of them, or another run has begun here since the
        settings were checked.
    """
    if not parts.processes.first:
        yield
        return
    place = place_of(parts.directory, parts.config.saving.checkpoints)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_files.alone(parts.directory))
        # The default place, too: another run's --saving.checkpoints may name it.
        if "://" not in str(place) and os.fspath(place) != str(parts.directory.resolve()):
            place.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_files.alone(os.fspath(place)))
        now = run_files.stored(parts.directory)
        known = parts.replaced
        if parts.stored and parts.stored.place == str(parts.directory):
            known = parts.stored
        begun = parts.replaced is not None and not holds_nothing(parts.replaced)
        if begun or (now and now.config) != (known and known.config):
            raise ValueError(
                f"another run has written to {parts.directory} since this one was started; give "
                "--resume or another --out"
            )
        yield


def holds_nothing(run: run_files.Stored) -> bool:
    """Whether a run has saved no step and written no metrics, so that nothing is lost with it.

    A starting policy that a warm start has trained is something: it may have taken hours.

    Args:
      run: what its directory says of it.
    """
    kept = run.config.get("saving", {}).get("checkpoints")
    if kept is not None and (not isinstance(kept, str) or "://" in kept):
        return False  # an address that nobody typed is not opened
    metrics = pathlib.Path(run.place) / "metrics.jsonl"
    written = metrics.is_symlink() or (metrics.exists() and metrics.stat().st_size > 0)
    place = place_of(run.place, kept)
    return not (written or steps_in(place) or _warmed_up(run, place))


def _warmed_up(run: run_files.Stored, place: epath.Path) -> bool:
    """Whether a warm start has ended; what a removal was killed at has no metadata any more."""
    steps = run.config.get("warm_start", {}).get("steps")
    return bool(steps) and (place / INITIAL / "_METADATA").exists()


def clear_replaced(parts: Any) -> None:
    """Removes what a run whose directory is taken over has left where it kept its checkpoints.

    Args:
      parts: the run that takes over.

    Raises:
      ValueError: if somebody else uses that place now, or its file cannot be read.
      OSError: if something cannot be removed.
    """
    place = place_of(parts.directory, parts.replaced.config.get("saving", {}).get("checkpoints"))
    here = place_of(parts.directory, parts.config.saving.checkpoints)
    owner = _owner(place)
    # An earlier version did not write whose place it is; below its directory it is the run's.
    its = _is_replaced(owner, parts) if owner else place == place_of(parts.directory, None)
    if place == here or not its or not place.exists():
        return
    with _files.alone(os.fspath(place)):
        discard_initial(place)
        (place / OWNER).unlink(missing_ok=True)


def _is_replaced(owner: dict[str, Any], parts: Any) -> bool:
    """Whether the run that a place belongs to is the one whose directory is taken over.

    After a kill during an earlier takeover the two numbers may differ.
    """
    run = parts.replaced
    if run is None:
        return False
    same = owner["directory"] == str(parts.directory.resolve())
    return same or owner["id"] == run.record.get("id")


def check_changes(parts: Any, found: list[identity.Change]) -> None:
    """Refuses a run that would go on as another one, or that cannot go on at all.

    Args:
      parts: the run.
      found: what differs from the run that it goes on from.

    Raises:
      ValueError: as `identity.check`.
    """
    decisive = any(identity.decides(c.name) for c in found)
    identity.check(
        parts.stored, found, parts.config.allow_changed, _misfit(parts) if decisive else None
    )


def _misfit(parts: Any) -> str | None:
    """The array that has another shape in the run's newest checkpoint, if there is one."""
    place = place_of(parts.directory, parts.config.saving.checkpoints)
    steps = steps_in(place)
    if not steps:
        return None
    config, algorithm = parts.config, parts.algorithm
    optimizer = config.optimizer.build(1, parts.network.logical_axes())
    policies = named_policies.wanted(algorithm, track_kl=config.track_kl)

    def first(key):
        params = parts.network.init(key)
        zero = jnp.zeros((), jnp.int32)
        moving = named_policies.first(policies, params)
        return TrainState(
            params, {}, moving, optimizer.init(params), algorithm.init(key), zero, zero
        )

    state = jax.eval_shape(first, jax.random.key(0))
    step = config.resume_from
    return misfit(place, steps[-1] if step is None else step, state)


def run_id(parts: Any) -> str:
    """The number of the run: the one that its directory holds, or a new one.

    A run that takes a directory over has a new number: what the other run has left elsewhere must
    not be taken for its own.
    """
    if parts.stored and parts.stored.record:
        return parts.stored.record["id"]
    if parts.replaced is not None:
        return secrets.token_hex(8)
    path = parts.directory / run_files.IDENTITY
    if path.exists():  # an earlier start was killed before it wrote its settings
        return run_files.checked_record(_outside.read_json(path), path)["id"]
    return secrets.token_hex(8)


def check_place(parts: Any, number: str) -> None:
    """Sees to it that the checkpoints of a place, if there are any, are this run's.

    Args:
      parts: the run.
      number: of the run.

    Raises:
      ValueError: if they belong to another run, or this run's are at another place.
    """
    place = place_of(parts.directory, parts.config.saving.checkpoints)
    owner, steps = _owner(place), steps_in(place)
    if owner is not None:
        if owner["id"] != number and not _is_replaced(owner, parts):
            raise ValueError(
                f"{place} holds the checkpoints of another run (that of {owner['directory']}); "
                "give another --saving.checkpoints"
            )
        if steps and parts.stored is None:
            raise ValueError(f"{place} holds checkpoints ({_listed(steps)}); give --resume")
        return
    own = place == place_of(parts.directory, None) or not (parts.stored and parts.stored.record)
    if (steps or (place / "initial").exists()) and not (parts.stored and own):
        raise ValueError(
            f"{place} holds checkpoints ({_listed(steps)}) that are not known to be this run's; "
            "give --resume with the run's own --out, or another --saving.checkpoints"
        )
    if parts.stored and not steps:
        _check_not_moved(parts, place)


def _check_not_moved(parts: Any, place: epath.Path) -> None:
    """A run whose checkpoints lie where it kept them before must not begin anew elsewhere."""
    before = parts.stored.config.get("saving", {}).get("checkpoints")
    old = place_of(parts.directory, before)
    if old != place and ("://" in str(old) or steps_in(old)):
        raise ValueError(
            f"{place} holds no checkpoint; those of this run are in {old}: copy them, or leave "
            "--saving.checkpoints as it was"
        )


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) or "the policy that a run started from"


def _owner(place: epath.Path) -> dict[str, Any] | None:
    """What the place says of the run that its checkpoints belong to."""
    path = place / OWNER
    if not path.exists():
        return None
    with _outside.reading(path):
        owner = json.loads(path.read_text())
        known = isinstance(owner, dict) and isinstance(owner.get("directory"), str)
        if not known or not isinstance(owner.get("config"), dict):
            raise ValueError("expected an object with 'id', 'directory' and 'config'")
    return run_files.checked_record(owner, path)


def stored(config: TrainConfig) -> run_files.Stored | None:
    """The run that goes on, None where it begins.

    A run that keeps its checkpoints elsewhere can go on after its directory was lost with the
    machine: the place of its checkpoints holds its settings, too.

    Raises:
      ValueError: if the directory or the place holds files that cannot be read.
    """
    if not config.resume:
        return None
    directory = pathlib.Path(config.out)
    if found := run_files.stored(directory):
        return found
    if config.saving.checkpoints is None:
        return None
    place = place_of(directory, config.saving.checkpoints)
    owner = _owner(place) if place.exists() else None
    if owner is None or owner["directory"] != str(directory.resolve()) or not steps_in(place):
        return None
    path = directory / run_files.IDENTITY
    # A start that was killed before it wrote its settings has left the number of its run.
    if path.exists():
        begun = run_files.checked_record(_outside.read_json(path), path)
        if begun["id"] != owner["id"]:
            return None
    settings = run_files.checked_settings(owner["config"], place / OWNER)
    return run_files.Stored(settings, owner, str(place))


def record(parts: Any, number: str, step: int) -> None:
    """Writes what run this is, once everything is checked and before its next step.

    Args:
      parts: the run.
      number: of the run.
      step: the checkpoint that it goes on from; 0 where it begins.

    Raises:
      OSError: if a file cannot be written.
    """
    settings = run_files.plain(parts.config)
    text = json.dumps(settings, indent=2) + "\n"
    before = parts.stored.record if parts.stored else {}
    # Without an evaluation no held-out problems are loaded: what was known of them stays.
    prints = before.get("fingerprints", {}) | parts.fingerprints
    known = {"id": number, "fingerprints": prints, "versions": versions()}
    if parts.changes or version_note(parts):
        _files.append(
            parts.directory / run_files.CHANGES,
            json.dumps(_entry(parts, step)) + "\n",
            durable=True,
        )
    _files.write(parts.directory / run_files.IDENTITY, json.dumps(known, indent=2) + "\n")
    place = place_of(parts.directory, parts.config.saving.checkpoints)
    place.mkdir(parents=True, exist_ok=True)
    whole = {**known, "directory": str(parts.directory.resolve()), "config": settings}
    if "://" in str(place):
        (place / OWNER).write_text(json.dumps(whole, indent=2))
    else:
        _files.write(os.fspath(place / OWNER), json.dumps(whole, indent=2) + "\n")
    # The last of all: what holds this file holds a run.
    _files.write(parts.directory / run_files.CONFIG, text)


def _entry(parts: Any, step: int) -> dict[str, Any]:
    """A line of `changes.jsonl`: the settings that held up to a step, and what changed then."""
    return {
        "step": step,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "changed": {c.name: [c.there, c.here] for c in parts.changes},
        "allowed": list(parts.config.allow_changed),
        "versions": parts.stored.record.get("versions", {}),
        "config": parts.stored.config,
    }


def version_note(parts: Any) -> str | None:
    """A line for the user where a run goes on with another version than it began with."""
    then = parts.stored.record.get("versions") if parts.stored else None
    # An earlier version of polgrad wrote down fewer of them.
    other = {n: v for n, v in versions().items() if then and n in then and then[n] != v}
    if not other:
        return None
    both = ", ".join(f"{name} {then[name]} then and {now} now" for name, now in other.items())
    return f"note: the run goes on with other versions ({both}); its numbers may differ"
