"""What protects a run: its lock, its checkpoints' owner, checksums, and files that are whole."""

import collections
import dataclasses
import gc
import json
import logging
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from polgrad import _files, _interrupt, cli, data, policies, training
from polgrad._versions import versions
from polgrad.cli import train as train_command
from polgrad.data import sources
from polgrad.rewards.compose import RewardSpec
from polgrad.rewards.pool import RewardFailure
from polgrad.serving import loading
from polgrad.training import collecting, loop, reporting
from polgrad.training.config import (
    Data,
    Evaluation,
    Optimizer,
    Rewards,
    Rollouts,
    Saving,
    Small,
    TrainConfig,
    WarmStart,
)
from polgrad.training.runtime import hosts
from polgrad.training.saving import checksums, description, ocdbt
from polgrad.training.saving.checkpoints import Checkpoints
from polgrad.training.saving.errors import DamagedError, ResumeError, SavingError
from polgrad.training.saving.journal import ScoreJournal
from polgrad.training.saving.lines import read_lines
from polgrad.training.saving.places import steps_in
from polgrad.training.saving.reading import misfit, restore_params
from polgrad.training.setup import (
    beginning,
    building,
    directory,
    fingerprints,
    identity,
    opening,
    ownership,
    planning,
    run_files,
)
from polgrad.training.setup.beginning import Beginning
from polgrad.training.state import TrainState

ALONE = hosts.Processes(index=0, count=1)
LINES = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(6) for b in range(6)]


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    (path.parent / "shorter.py").write_text(
        "def shorter(prompt, completion, example):\n    return -0.1 * len(completion)\n"
    )
    return path


def config(sums, out, **changes):
    """A run with one program, which samples nothing; `sampled` makes one with rollouts."""
    base = TrainConfig(
        task=str(sums),
        algorithm="supervised",
        steps=4,
        out=str(out),
        mesh="data=1",
        track_kl=False,
        data=Data(held_out=0.3),
        small=Small(layers=1, width=16, heads=2, mlp=32),
        rollouts=Rollouts(prompts=4, group_size=4, max_tokens=3),
        evaluation=Evaluation(problems=0),
        saving=Saving(every=2, samples_every=2, tensorboard=True),
    )
    return dataclasses.replace(base, **changes)


def sampled(sums, out, **changes):
    rewards = Rewards(functions=(f"{sums.parent / 'shorter.py'}:shorter",))
    return config(sums, out, **{"algorithm": "grpo", "rewards": rewards} | changes)


@pytest.fixture(scope="module")
def first(sums, tmp_path_factory):
    """A run of four steps with checkpoints 2 and 4, which no test changes."""
    return training.train(config(sums, tmp_path_factory.mktemp("run") / "a"), quiet=True)


@pytest.fixture
def copied(first, tmp_path):
    """Its directory, for a test to change; where it lies decides nothing."""
    shutil.copytree(first.directory, tmp_path / "a")
    owner = tmp_path / "a" / "checkpoints" / ownership.OWNER
    owner.write_text(owner.read_text().replace(str(first.directory), str(tmp_path / "a")))
    return tmp_path / "a"


def contents(directory):
    """All files of a run but its lock."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def refused(config, words, kind=ValueError):
    """The run ends in one line, and nothing of it has changed."""
    directory = pathlib.Path(config.out)
    before = contents(directory)
    with pytest.raises(kind, match=words) as error:
        training.train(config, quiet=True)
    assert "\n" not in str(error.value)
    assert contents(directory) == before


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def as_state(params, optimizer=()):
    """A state of these parameters before the first step."""
    zero = jnp.zeros((), jnp.int32)
    return TrainState(params, {}, {}, optimizer, (), zero, zero)


@pytest.fixture
def quick(monkeypatch):
    """Steps that compute nothing: for what is written around them."""

    def step(self, number, state, initial):
        return state._replace(step=state.step + 1), {"loss": 1.0, "gradient_norm": 1.0}

    monkeypatch.setattr(loop._Loop, "_step", step)


def test_hosts_with_other_versions_are_not_of_one_run(sums, tmp_path, monkeypatch):
    settings = config(sums, tmp_path / "a")
    parts = building.build(settings)

    def told(**other):
        monkeypatch.setattr(
            building, "versions", lambda: {**versions(), "python": "3.12.1", **other}
        )
        return building._fingerprint(parts, settings)

    assert told() == told(python="3.12.4")
    for name in ("polgrad", "jax", "numpy", "optax"):
        assert told(**{name: "0.0"}) != told()
    assert told(python="3.13.1") != told()


@pytest.mark.parametrize(
    ("then", "told"),
    [
        ({}, None),
        ({"polgrad": versions()["polgrad"]}, None),
        (versions(), None),
        (versions() | {"jax": "0.1"}, f"(jax 0.1 then and {jax.__version__} now)"),
    ],
)
def test_a_note_names_the_versions_that_differ(then, told):
    run = types.SimpleNamespace(stored=types.SimpleNamespace(record={"versions": then}))
    note = ownership.version_note(run)
    assert note is None if told is None else told in note
    assert ownership.version_note(types.SimpleNamespace(stored=None)) is None


def test_what_one_process_writes_it_writes_where_all_meet(sums, tmp_path, quick, monkeypatch):
    """The first process writes only where all processes meet.

    If it failed anywhere else, the other processes would wait for it.
    """
    settings = sampled(sums, tmp_path / "a", track_kl=True, evaluation=Evaluation(problems=2))
    meetings, alone = [], []

    class Watched(hosts.Processes):
        def gather(self, name, work):
            meetings.append(name)
            try:
                return super().gather(name, work)
            finally:
                meetings.append(None)

    def watch(owner, name):
        function = getattr(owner, name)

        def watched(*given, **named):
            inside = meetings and meetings[-1]
            if not inside and threading.current_thread() is threading.main_thread():
                alone.append((name, given))
            return function(*given, **named)

        monkeypatch.setattr(owner, name, watched)

    for owner, name in [
        (_files, "write"),
        (_files, "append"),
        (reporting.Events, "_write"),
        (reporting.Reporter, "read"),
        (checksums, "write"),
        (checksums, "forget"),
        (checksums, "fault"),
        (ownership, "record"),
        (os, "unlink"),
    ]:
        watch(owner, name)
    for steps, resume in ((3, False), (5, True)):
        changed = dataclasses.replace(settings, steps=steps, resume=resume)
        parts = dataclasses.replace(building.build(changed), processes=Watched(index=0, count=1))
        alone.clear()  # what `build` writes is none of this
        loop.run(parts, quiet=True)
        assert not alone, alone
    assert {"checkpoint 3", "the end of step 5", "the end of the run"} <= {*meetings}


# One owner.


def test_a_directory_in_use_is_refused(sums, copied):
    with _files.alone(copied):
        refused(config(sums, copied, resume=True, steps=6), "in use by process", opening.StartError)
    refused(config(sums, copied), "holds a run already")


def fails(monkeypatch, error):
    def step(*rest):
        raise error

    monkeypatch.setattr(loop._Loop, "_step", step)


def test_a_run_that_holds_nothing_is_taken_over(sums, tmp_path, quick, monkeypatch, capsys):
    settings = sampled(sums, tmp_path / "a", steps=1, evaluation=Evaluation(problems=2))
    good = loop._Loop._step
    fails(monkeypatch, loop.TrainingError("not finite"))
    with pytest.raises(loop.TrainingError):
        training.train(dataclasses.replace(settings, seed=1), quiet=True)
    before = json.loads((tmp_path / "a" / "before.json").read_text())
    old = restored_initial(tmp_path / "a")
    (tmp_path / "a" / "before.json").write_text(json.dumps(before | {"value": 9.0}))
    # A refused command changes nothing of it.
    refused(dataclasses.replace(settings, rewards=Rewards(functions=("none.py:f",))), "none.py")
    # A kill right after its settings are written: the old policy must not be taken for the new one.
    fails(monkeypatch, loop.TrainingError("not finite"))
    monkeypatch.setattr(Checkpoints, "save_initial", lambda *rest: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        training.train(settings, quiet=True)
    assert not (tmp_path / "a" / "checkpoints" / "initial").exists()
    assert not (tmp_path / "a" / "before.json").exists()
    monkeypatch.undo()
    monkeypatch.setattr(loop._Loop, "_step", good)
    training.train(settings)
    line = f"takes over {tmp_path / 'a'}, whose run had saved no step\n"
    assert capsys.readouterr().out.count(line) == 1
    assert not same(restored_initial(tmp_path / "a"), old)
    assert run_files.stored(tmp_path / "a").config["seed"] == 0
    refused(settings, "holds a run already")


def restored_initial(directory):
    handler = ocp.PyTreeCheckpointHandler()
    tree = handler.restore(directory / "checkpoints" / "initial")
    handler.close()
    return jax.tree.map(np.asarray, tree)


def test_what_a_replaced_run_has_left_elsewhere_is_never_taken_for_the_new_ones(
    sums, tmp_path, quick, monkeypatch
):
    good, place = loop._Loop._step, tmp_path / "ck"
    away = Saving(checkpoints=str(place), tensorboard=False)
    settings = config(sums, tmp_path / "a", steps=1, saving=Saving(tensorboard=False))
    fails(monkeypatch, loop.TrainingError("not finite"))

    def failed(**changes):
        with pytest.raises(loop.TrainingError, match="not finite"):
            training.train(dataclasses.replace(settings, **changes), quiet=True)
        return run_files.stored(tmp_path / "a").record["id"]

    numbers = [failed(seed=1, saving=away)]
    assert (place / "initial").exists()
    numbers.append(failed(seed=2))
    assert not (place / "initial").exists() and not (place / ownership.OWNER).exists()
    # The place is free again, and the default one is cleared in its turn.
    numbers.append(failed(seed=3, saving=away))
    assert not (tmp_path / "a" / "checkpoints" / "initial").exists()
    # The same place again, also after a kill that left a new number in the directory alone.
    record = json.loads((tmp_path / "a" / "identity.json").read_text())
    (tmp_path / "a" / "identity.json").write_text(json.dumps(record | {"id": "ab"}))
    numbers.append(failed(seed=4, saving=away))
    assert len({*numbers}) == 4
    monkeypatch.setattr(loop._Loop, "_step", good)
    again = dataclasses.replace(settings, seed=4, saving=away, resume=True)
    started = training.train(again, quiet=True).state.params
    network = building.build(dataclasses.replace(again, out=str(tmp_path / "b"), resume=False))
    assert same(started, network.policy.params)
    assert run_files.stored(tmp_path / "a").record["id"] == numbers[-1]


@pytest.mark.parametrize("state", ["of another run", "in use"])
def test_a_place_that_is_no_longer_the_replaced_runs_stays_as_it_is(tmp_path, state):
    place = tmp_path / "ck"
    place_with(place, owner="other" if state == "of another run" else "ab")
    (place / "initial").mkdir()
    run = run_files.Stored({"saving": {"checkpoints": str(place)}}, {"id": "ab"}, str(tmp_path))
    parts = types.SimpleNamespace(directory=tmp_path / "a", replaced=run, config=TrainConfig())
    if state == "in use":
        with _files.alone(place), pytest.raises(ValueError, match="ck is in use by process"):
            ownership.clear_replaced(parts)
    else:
        ownership.clear_replaced(parts)
    assert (place / "initial").exists() and (place / ownership.OWNER).exists()


@pytest.mark.parametrize("where", [None, "ck"])
def test_a_warm_start_that_has_ended_is_not_taken_over(sums, tmp_path, quick, monkeypatch, where):
    good, place = loop._Loop._step, where and str(tmp_path / where)
    settings = config(
        sums,
        tmp_path / "a",
        steps=1,
        warm_start=WarmStart(steps=1, demonstrations=4, batch=4),
        saving=Saving(tensorboard=False, checkpoints=place),
    )
    monkeypatch.setattr(beginning, "warm_start", lambda parts, params, reporter: params)
    fails(monkeypatch, loop.TrainingError("not finite"))
    with pytest.raises(loop.TrainingError):
        training.train(settings, quiet=True)
    refused(dataclasses.replace(settings, seed=2), "holds a run already; give --resume")
    monkeypatch.setattr(beginning, "warm_start", lambda *rest: pytest.fail("it was trained again"))
    monkeypatch.setattr(loop._Loop, "_step", good)
    training.train(dataclasses.replace(settings, resume=True), quiet=True)


@pytest.mark.parametrize("steps", [0, 3])
def test_a_removal_that_was_killed_leaves_no_warm_start(tmp_path, steps):
    run = run_files.Stored({"warm_start": {"steps": steps}}, {}, str(tmp_path))
    initial = tmp_path / "checkpoints" / "initial"
    initial.mkdir(parents=True)
    assert ownership.holds_nothing(run)
    (initial / "_METADATA").write_text("{}")
    assert ownership.holds_nothing(run) == (steps == 0)


@pytest.mark.parametrize("kept", ["metrics", "a step", "a step elsewhere", "an address", "a link"])
def test_a_run_that_holds_something_is_not_taken_over(tmp_path, kept):
    place = {"a step elsewhere": str(tmp_path / "ck"), "an address": "gs://b/run"}.get(kept)
    run = run_files.Stored({"saving": {"checkpoints": place}}, {}, str(tmp_path))
    (tmp_path / "metrics.jsonl").write_text("")
    assert ownership.holds_nothing(run) == (kept != "an address")
    if kept == "metrics":
        (tmp_path / "metrics.jsonl").write_text("{")
    elif kept == "a link":
        (tmp_path / "metrics.jsonl").unlink()
        os.symlink(tmp_path / "none", tmp_path / "metrics.jsonl")
    elif kept != "an address":
        (tmp_path / ("ck" if place else "checkpoints") / "2").mkdir(parents=True)
    assert not ownership.holds_nothing(run)


def test_a_run_that_is_at_work_is_not_taken_over(sums, tmp_path):
    settings = config(sums, tmp_path / "a")
    ownership.record(building.build(settings), "ab", 0)
    parts = building.build(dataclasses.replace(settings, seed=2))
    with _files.alone(tmp_path / "a"), pytest.raises(opening.StartError, match="in use by process"):
        loop.run(parts, quiet=True)
    # It has written something, and has ended since the settings were checked.
    (tmp_path / "a" / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(opening.StartError, match="another run has written to"):
        loop.run(parts, quiet=True)
    assert run_files.stored(tmp_path / "a").config["seed"] == 0


def test_a_run_that_began_since_the_settings_were_checked_is_not_overwritten(sums, tmp_path):
    slow, fast = (building.build(config(sums, tmp_path / "a", seed=s)) for s in (1, 2))
    ownership.record(fast, "ab", 0)
    with pytest.raises(opening.StartError, match="another run has written to"):
        loop.run(slow, quiet=True)
    assert run_files.stored(tmp_path / "a").config["seed"] == 2


def test_the_default_place_of_checkpoints_is_held_too(tmp_path):
    parts = types.SimpleNamespace(
        processes=ALONE, config=TrainConfig(), directory=tmp_path, stored=None, replaced=None
    )
    (tmp_path / "checkpoints").mkdir()
    place, words = tmp_path / "checkpoints", "checkpoints is in use"
    with _files.alone(place), pytest.raises(ValueError, match=words), ownership.held(parts):
        pass
    with ownership.held(parts), pytest.raises(ValueError, match=words), _files.alone(place):
        pass


MISSING = object()


def _shown(value):
    return "missing" if value is MISSING else repr(value)


@pytest.mark.parametrize("value", [MISSING, None, 3, "x", [], {}, [{}], {"task": 1}], ids=_shown)
@pytest.mark.parametrize("entry", ["id", "fingerprints", "versions", "directory", "config"])
def test_each_damaged_entry_of_a_place_is_a_line_or_no_run(tmp_path, entry, value):
    place_with(tmp_path / "ck", 2)
    known = {
        "id": "ab",
        "fingerprints": {},
        "versions": {},
        "directory": str((tmp_path / "run").resolve()),
        "config": {"task": "t", "algorithm": "grpo"},
    }
    known.pop(entry) if value is MISSING else known.update({entry: value})
    (tmp_path / "ck" / ownership.OWNER).write_text(json.dumps(known))
    settings = TrainConfig(
        out=str(tmp_path / "run"), resume=True, saving=Saving(checkpoints=str(tmp_path / "ck"))
    )
    allowed = {"id": str, "fingerprints": dict, "versions": dict, "directory": str}
    fits = entry in allowed and isinstance(value, allowed[entry])
    if fits or (entry, value) == ("versions", MISSING):
        assert (ownership.stored(settings) is None) == (entry == "directory")
        return
    with pytest.raises(ValueError, match=f"ck/{ownership.OWNER}: ") as error:
        ownership.stored(settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("number", "goes_on"), [("ab", True), ("cd", False)])
def test_a_kill_while_a_lost_directory_is_made_anew_loses_nothing(tmp_path, number, goes_on):
    place_with(tmp_path / "ck", 2, owner="ab")
    path, run = tmp_path / "ck" / ownership.OWNER, tmp_path / "run"
    settings = {"task": "t", "algorithm": "grpo"}
    known = json.loads(path.read_text()) | {"directory": str(run.resolve()), "config": settings}
    path.write_text(json.dumps(known))
    run.mkdir()
    (run / "identity.json").write_text(json.dumps({"id": number, "fingerprints": {}}))
    place = Saving(checkpoints=str(tmp_path / "ck"))
    found = ownership.stored(TrainConfig(out=str(run), resume=True, saving=place))
    assert (found is not None) == goes_on


def test_an_error_of_the_system_is_told_with_its_file():
    error = OSError(40, "Too many levels of symbolic links", "runs/a/before.json")
    with pytest.raises(opening.StartError) as told, opening.starting():
        raise error
    assert str(told.value) == "runs/a/before.json: Too many levels of symbolic links"


def place_with(directory, *steps, owner=None):
    for step in steps:
        (directory / str(step)).mkdir(parents=True)
    if owner:
        directory.mkdir(parents=True, exist_ok=True)
        known = {"id": owner, "fingerprints": {}, "directory": "/runs/other", "config": {}}
        (directory / ownership.OWNER).write_text(json.dumps(known))


@pytest.mark.parametrize(
    ("steps", "owner", "words"),
    [
        ((2,), "another", "holds the checkpoints of another run .that of /runs/other."),
        ((), "another", "holds the checkpoints of another run"),
        ((2, 4), None, "holds checkpoints .2, 4. that are not known to be this run's"),
    ],
)
def test_a_place_of_another_run_is_refused(sums, tmp_path, steps, owner, words):
    place_with(tmp_path / "ck", *steps, owner=owner)
    before = contents(tmp_path / "ck")
    saving = Saving(checkpoints=str(tmp_path / "ck"), tensorboard=False)
    for resume in (False, True):
        settings = config(sums, tmp_path / "b", saving=saving, resume=resume)
        refused(settings, words, opening.StartError)
    assert contents(tmp_path / "ck") == before


def test_a_place_belongs_to_one_run_which_goes_on_after_its_directory_is_lost(
    sums, tmp_path, quick
):
    place = tmp_path / "ck"
    saving = Saving(checkpoints=str(place), tensorboard=False)
    settings = config(sums, tmp_path / "a", steps=1, saving=saving)
    training.train(settings, quiet=True)
    other = dataclasses.replace(settings, out=str(tmp_path / "b"), seed=9)
    refused(other, "another run", opening.StartError)
    refused(dataclasses.replace(other, resume=True), "another run", opening.StartError)
    shutil.rmtree(tmp_path / "a")
    again = dataclasses.replace(settings, resume=True, steps=2)
    with pytest.raises(ValueError, match="seed .0 there, 9 here"):
        training.train(dataclasses.replace(again, seed=9), quiet=True)
    resumed = training.train(again, quiet=True)
    assert int(resumed.state.step) == 2 and steps_in(place) == [1, 2]
    assert run_files.stored(tmp_path / "a").record["id"]
    # Moved away by a flag, the run must not begin anew.
    moved = Saving(checkpoints=str(tmp_path / "new"), tensorboard=False)
    refused(dataclasses.replace(again, saving=moved), "those of this run are in .*ck: copy them")


@pytest.mark.parametrize("given", ["a_file", "a_file/below", "/proc/polgrad"])
def test_a_place_that_cannot_be_written_is_refused_at_the_start(sums, tmp_path, given):
    (tmp_path / "a_file").write_text("work")
    given = given if "://" in given else str(tmp_path / given)
    settings = config(sums, tmp_path / "run", saving=Saving(checkpoints=given))
    with pytest.raises(ValueError, match=f"saving.checkpoints '{given}' cannot be written: ."):
        building.build(settings)
    assert not (tmp_path / "run").exists()


# Checkpoints that something has damaged.


def some_file(directory, part):
    """The largest file of a checkpoint, of those that hold parameters."""
    paths = [path for path in (directory / part).rglob("*") if path.is_file()]
    if held := ocdbt.files_of(directory / part / "default", "trainable"):
        paths = [directory / part / "default" / name for name in held]
    return max(paths, key=lambda path: path.stat().st_size)


def flip(path, bit=4001):
    body = bytearray(path.read_bytes())
    body[bit // 8 % len(body)] ^= 1 << bit % 8
    path.write_bytes(body)


DAMAGE = {
    "flipped": lambda place: flip(some_file(place, "4")),
    "emptied": lambda place: some_file(place, "4").write_bytes(b""),
    "deleted": lambda place: (place / "4" / "default" / "_METADATA").unlink(),
    "no folder": lambda place: (shutil.rmtree(place / "4"), (place / "4").mkdir()),
    "checksums": lambda place: checksums.path_of(place, "4").write_text("{"),
    "cut, no checksums": lambda place: (
        some_file(place, "4").write_bytes(b"\0"),
        checksums.forget(place, "4"),
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_with_the_newest_whole_one(sums, copied, damage, capfd):
    DAMAGE[damage](copied / "checkpoints")
    if damage != "cut, no checksums":  # that one is told by reading it
        refused(
            config(sums, copied, resume=True, steps=4),
            "checkpoint 4 in .* is damaged: .*newest whole one is 2: give --resume-from 2",
            DamagedError,
        )
    with pytest.raises(DamagedError, match="newest whole one is 2: give --step 2") as error:
        loading.load(str(copied))
    assert "\n" not in str(error.value)
    loading.load(str(copied), step=2)
    assert capfd.readouterr().err == ""


def test_who_reads_the_parameters_alone_needs_no_other_file(copied):
    place = copied / "checkpoints" / "4"
    needed = ocdbt.files_of(place / "default", "trainable")
    data = [p for p in place.rglob("*") if p.is_file() and ocdbt.is_data(p)]
    others = [p for p in data if str(p.relative_to(place / "default")) not in needed]
    assert others
    for path in others:
        flip(path)
    assert checksums.fault(copied / "checkpoints", "4")
    whole, _ = restore_params(copied)
    flip(place / "default" / sorted(needed)[0])
    with pytest.raises(DamagedError, match="has other bytes"):
        restore_params(copied)
    # So it is for the checkpoint that the line advises.
    other = copied / "checkpoints" / "2"
    used = ocdbt.files_of(other / "default", "trainable")
    for path in other.rglob("*"):
        if ocdbt.is_data(path) and str(path.relative_to(other / "default")) not in used:
            flip(path)
    assert checksums.fault(copied / "checkpoints", "2")
    with pytest.raises(DamagedError, match="newest whole one is 2: give --step 2"):
        restore_params(copied)
    assert restore_params(copied, 2)[1] == 2
    checksums.forget(copied / "checkpoints", "4")
    (place / "default" / "_METADATA").write_text("{")
    with pytest.raises(DamagedError, match="cannot be read: .*newest whole one is 2"):
        restore_params(copied)
    assert jax.tree.leaves(whole)


def test_going_on_from_an_earlier_checkpoint_ends_as_the_whole_run(sums, copied, first):
    DAMAGE["cut, no checksums"](copied / "checkpoints")
    settings = config(sums, copied, resume=True)
    refused(settings, "checkpoint 4 in .* is damaged: it cannot be read", DamagedError)
    none = dataclasses.replace(settings, resume_from=3)
    refused(none, "resume_from is 3; expected one of .*2, 4", ResumeError)
    resumed = training.train(dataclasses.replace(settings, resume_from=2), quiet=True)
    assert same(resumed.state.params, first.state.params)
    assert same(resumed.state.optimizer, first.state.optimizer)
    assert [r["step"] for r in read_lines(copied / "metrics.jsonl")] == [1, 2, 3, 4]
    assert checksums.fault(copied / "checkpoints", "4") is None
    assert steps_in(copied / "checkpoints") == [2, 4]


def test_the_plan_of_one_has_no_plural(sums, tmp_path):
    settings = config(sums, tmp_path / "a", steps=1)
    parts = building.build(settings)
    text = "\n".join(planning.plan(parts))
    assert "1 step x 1 update, each in 1 micro-batch; about 2 compiled programs\n" in text
    assert "supervised: 4 demonstrations a step" in text
    assert planning._count(2, "micro-batch", "es") == "2 micro-batches"


def test_fewer_steps_than_the_run_has_done_are_refused(sums, copied, capsys, monkeypatch):
    refused(
        config(sums, copied, resume=True, steps=3),
        r"^steps is 3, but the run stands at step 4; give more steps, or an earlier checkpoint with "
        r"--resume-from \(2\)$",
        ResumeError,
    )
    refused(
        config(sums, copied, resume=True, steps=1, resume_from=2),
        "^steps is 1, but resume_from is 2; give more steps$",
        ResumeError,
    )
    # Nothing is said of a run that does not begin.
    code, said, error = command(capsys, "train", "--resume-from", 3, "--out", copied)
    assert (code, said) == (2, "") and error.startswith("polgrad: resume_from is 3; expected one")


def test_a_damaged_starting_policy_is_named_and_not_read_where_it_is_not_needed(sums, copied):
    flip(some_file(copied / "checkpoints", "initial"))
    checkpoints = Checkpoints(copied / "checkpoints", 2)
    words = "that the run started from, .*initial, is damaged: .*give --no-track-kl"
    assert not checkpoints.initial_is_whole()
    with pytest.raises(DamagedError, match=f"^the policy {words}"):
        checkpoints.check("initial")
    (copied / "checkpoints" / "initial" / "_METADATA").write_text("{")
    with pytest.raises(DamagedError, match=words) as error:
        checkpoints.restore_initial(STATE.params)
    assert "\n" not in str(error.value)
    checkpoints.close()
    training.train(config(sums, copied, resume=True), quiet=True)


def test_a_checkpoint_whose_checksums_were_never_written_is_taken_and_said(sums, copied, capsys):
    checksums.forget(copied / "checkpoints", "4")
    training.train(config(sums, copied, resume=True))
    assert "checkpoint 4 has no checksums" in capsys.readouterr().out
    assert checksums.has(copied / "checkpoints", "4")


def test_later_checkpoints_go_before_the_settings_change_and_the_newest_goes_first(
    tmp_path, monkeypatch
):
    done = []
    manager = types.SimpleNamespace(all_steps=lambda: [2, 6, 4], delete=done.append)
    checkpoints = Checkpoints.__new__(Checkpoints)
    checkpoints._manager, checkpoints._root, checkpoints._processes = manager, tmp_path, ALONE
    monkeypatch.setattr(ownership, "record", lambda *rest: done.append("settings"))
    monkeypatch.setattr(description, "save_description", lambda *rest: None)
    parts = types.SimpleNamespace(processes=ALONE, directory=tmp_path, policy=0, tokenizer=0)
    run = types.SimpleNamespace(
        parts=parts,
        config=TrainConfig(resume=True),
        checkpoints=checkpoints,
        number="ab",
        reporter=types.SimpleNamespace(begin=lambda *rest: done.append("rows")),
    )
    Beginning._record(run, 2)
    assert done == [6, 4, "settings", "rows"]


def starting(place, *names, stored=True):
    """What the loop knows where it decides whether to take the starting policy that is there."""
    checkpoints = Checkpoints.__new__(Checkpoints)
    checkpoints._root, checkpoints._processes = epath.Path(place), ALONE
    changes = [identity.Change(name, 1, 2) for name in names]
    parts = types.SimpleNamespace(processes=ALONE, changes=changes, stored=stored or None)
    return types.SimpleNamespace(parts=parts, checkpoints=checkpoints)


@pytest.fixture
def place(first, tmp_path):
    """The starting policy alone, with its checksums."""
    source = first.directory / "checkpoints"
    shutil.copytree(source / "initial", tmp_path / "initial")
    shutil.copy(checksums.path_of(source, "initial"), tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["seed", "policy", "data.seed", "train_problems"])
def test_a_starting_policy_of_other_settings_is_removed_and_not_taken(place, name):
    for kept in ("steps", "saving.every", "optimizer.learning_rate", "reward_source"):
        assert Beginning._initial_is_kept(starting(place, kept))
    assert not Beginning._initial_is_kept(starting(place, "warm_start.steps", name))
    assert not (place / "initial").exists() and not checksums.has(place, "initial")


def test_a_starting_policy_of_no_known_run_is_not_taken(place):
    assert not Beginning._initial_is_kept(starting(place, stored=False))


def test_a_starting_policy_without_checksums_gets_them_once_it_was_read(place):
    checksums.forget(place, "initial")
    run = starting(place)
    run.checkpoints.restore_initial = lambda like: "parameters"
    like = types.SimpleNamespace(params=None)
    assert Beginning._restored_initial(run, like) == "parameters"
    assert checksums.has(place, "initial") and checksums.fault(place, "initial") is None


@pytest.mark.slow
def test_of_two_hundred_flipped_bits_each_is_noticed(copied):
    place, chosen = copied / "checkpoints", random.Random(0)
    names = ("2", "4", "initial")
    files = [p for name in names for p in (place / name).rglob("*") if p.is_file()]
    files += [checksums.path_of(place, name) for name in names]
    files = [path for path in files if path.stat().st_size]
    for _ in range(200):
        path = chosen.choice(files)
        body = path.read_bytes()
        flip(path, chosen.randrange(8 * len(body)))
        assert any(checksums.fault(place, name) for name in names), path
        path.write_bytes(body)


@pytest.mark.parametrize("method", ["adamw", "muon"])
def test_a_checkpoint_of_each_optimizer_fits_itself_and_no_other_width(tmp_path, method):
    def state(width):
        shape = {"vocab_size": 8, "layers": 1, "heads": 2, "kv_heads": 2, "mlp_width": 8}
        network = policies.TransformerNetwork(
            policies.TransformerConfig(**shape, width=width, max_length=8)
        )
        optimizer = Optimizer(method=method, learning_rate=0.1).build(1, network.logical_axes())
        params = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(network.init, jax.random.key(0))
        )
        return as_state(params, optimizer.init(params))

    made = Checkpoints(tmp_path, 1)
    made.save(3, state(4))
    made.close()
    assert misfit(epath.Path(tmp_path), 3, state(4)) is None
    assert "has shape (8, 4) in the checkpoint, expected (8, 8)" in misfit(
        epath.Path(tmp_path), 3, state(8)
    )


# Saving that fails.

# Several arrays: where one write has failed, the others fail after nobody waits for them.
STATE = as_state({f"w{i}": jnp.arange(10_000.0) + i for i in range(8)})


def without_room(limit=2000):
    """No file of this process grows beyond the limit, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def becomes_a_file(place):
    shutil.rmtree(place)
    place.write_text("")
    return lambda: None


@pytest.mark.parametrize("kind", ["no room", "a file"])
def test_saving_that_fails_is_one_line_and_never_hangs(tmp_path, capfd, caplog, kind):
    threads = threading.active_count()
    checkpoints = Checkpoints(tmp_path / "ck", 2)
    checkpoints.save(1, STATE)
    checkpoints._sealed()
    undo = without_room() if kind == "no room" else becomes_a_file(tmp_path / "ck")
    said = "File too large" if kind == "no room" else "Not a directory"
    try:
        with pytest.raises(SavingError, match=f"starting policy in .* cannot be saved: {said}"):
            checkpoints.save_initial(STATE.params)
        with pytest.raises(
            SavingError, match=f"checkpoint 2 in .* cannot be saved: {said}"
        ) as error:
            checkpoints.save(2, STATE)
            checkpoints.save(3, STATE)
        assert "\n" not in str(error.value) and len(str(error.value)) < 400
    finally:
        undo()
        try:
            checkpoints.close()
        except SavingError as error:
            assert said in str(error)
    checkpoints.close()
    assert not [t for t in threading.enumerate()[threads:] if not t.daemon and "save" in t.name]
    gc.collect()
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert capfd.readouterr().err == ""


def test_a_checkpoint_that_orbax_does_not_take_is_an_error(tmp_path):
    checkpoints = Checkpoints(tmp_path / "ck", 2)
    checkpoints.save(3, STATE)
    with pytest.raises(SavingError, match="checkpoint 2 was not saved: .* holds a newer one .3."):
        checkpoints.save(2, STATE)
    checkpoints.close()


@pytest.mark.parametrize("limit", [1, 2000])
def test_a_disk_that_fills_in_the_loop_ends_the_run_in_one_line(
    sums, copied, quick, monkeypatch, limit
):
    """With room for nothing the metrics fail, with room for a line the checkpoint does."""
    step, undo = loop._Loop._step, []

    def full(self, *rest):
        outcome = step(self, *rest)
        undo.append(without_room(limit))
        return outcome

    monkeypatch.setattr(loop._Loop, "_step", full)
    saving = Saving(every=2, tensorboard=False)
    settings = config(sums, copied, resume=True, steps=5, saving=saving)
    try:
        with pytest.raises(loop.TrainingError, match="File too large") as error:
            training.train(settings, quiet=True)
    finally:
        undo[0]()
    assert "\n" not in str(error.value)
    monkeypatch.setattr(loop._Loop, "_step", step)
    # With room again the run goes on.
    assert int(training.train(settings, quiet=True).state.step) == 5


def test_a_journal_without_room(tmp_path):
    undo = without_room(1)
    try:
        with pytest.raises(OSError, match="File too large"):
            ScoreJournal(tmp_path).put(1, "reward", [0], np.zeros((1, 3)), [[0.5, True, ""]])
    finally:
        undo()


# Files of a run that something else has touched.

LINES_OF = {
    "a list": b"[1]\n",
    "no step": b"{}\n",
    "not UTF-8": b'{"step": 1, "a": "\xff"}\n',
    "half a line": b'{"step": 1, \n{"step": 2}\n',
    "a step of text": b'{"step": "1"}\n',
    "null": b"null\n",
    "true": b'{"step": true}\n',
}


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl", "scores.jsonl"])
@pytest.mark.parametrize("damage", LINES_OF)
def test_lines_that_a_run_did_not_write_are_told_with_file_and_line(tmp_path, name, damage):
    (tmp_path / name).write_bytes(LINES_OF[damage])
    with pytest.raises(ValueError, match=f"{name} line 1: ") as error:
        reporter = reporting.Reporter(tmp_path, 1)
        ScoreJournal(tmp_path) if name == "scores.jsonl" else reporter.read()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("entry", ['{"step": 1}', '{"step":1,"name":"a","scores":3}'])
def test_a_journal_of_another_form_is_told(tmp_path, entry):
    (tmp_path / "scores.jsonl").write_text(entry + "\n")
    with pytest.raises(ValueError, match="scores.jsonl line 1: not a line of scores"):
        ScoreJournal(tmp_path)


def test_a_score_that_changed_in_the_journal_is_noticed_and_half_a_line_is_cut(tmp_path):
    path = tmp_path / "scores.jsonl"
    journal = ScoreJournal(tmp_path)
    journal.put(1, "reward", [0], np.zeros((1, 3), np.int32), [[0.5, True, ""]])
    kept = path.read_text()
    path.write_text(kept + '{"step": 2, "na')
    ScoreJournal(tmp_path)
    assert path.read_text() == kept
    path.write_text(kept.replace("0.5", "0.7"))
    with pytest.raises(ValueError, match="remove the file to have the samples scored again"):
        ScoreJournal(tmp_path)


def test_scores_that_something_else_decided_are_computed_anew(tmp_path):
    tokens = np.zeros((1, 3), np.int32)
    ScoreJournal(tmp_path, decided_by="a").put(1, "reward", [0], tokens, [[0.5, True, ""]])
    assert ScoreJournal(tmp_path, decided_by="a").get(1, "reward", [0], tokens)
    for other in ("b", ""):
        assert ScoreJournal(tmp_path, decided_by=other).get(1, "reward", [0], tokens) is None


def scored(rewards, **prints):
    return types.SimpleNamespace(
        config=TrainConfig(rewards=rewards),
        reward_specs=[RewardSpec(target=target) for target in rewards.functions],
        fingerprints={"reward_source": "a", "train_problems": "b", "network": "c"} | prints,
    )


def test_the_fingerprint_of_scores_has_all_that_decides_them():
    base = Rewards(functions=("/here/r.py:fn",))
    same = fingerprints.of_scores(scored(base))
    moved = dataclasses.replace(base, functions=("/there/r.py:fn",), workers=3)
    assert fingerprints.of_scores(scored(moved, network="d")) == same
    changed = [
        scored(dataclasses.replace(base, **change))
        for change in (
            {"functions": ("/here/r.py:other",)},
            {"timeout": 99.0},
            {"memory": 77},
            {"environment": ("HOME",)},
        )
    ]
    changed += [scored(base, reward_source="x"), scored(base, train_problems="x")]
    assert len({same, *map(fingerprints.of_scores, changed)}) == 7


def test_scores_of_a_step_that_fails_are_not_kept(tmp_path):
    score = types.SimpleNamespace(value=0.0, valid=False, reason="no")
    parts = types.SimpleNamespace(
        config=TrainConfig(),
        algorithm=types.SimpleNamespace(samples=True),
        processes=types.SimpleNamespace(gather=lambda name, work: [work()]),
    )
    pool = types.SimpleNamespace(score=lambda items: [score] * len(items))
    journal = ScoreJournal(tmp_path)
    collect = collecting.Collector(parts, pool, journal, None)
    rows = np.arange(40)
    own = collecting.OwnSamples(rows, np.zeros((40, 3), np.int32), ["x"] * 40, 40)
    with pytest.raises(RewardFailure):
        collect._score(1, "reward", own, [{"prompt": "p"}] * 40)
    assert not (tmp_path / "scores.jsonl").exists()
    # Those of a step that goes on are kept where all processes meet, before the update.
    score.valid = True
    collect._score(1, "reward", own, [{"prompt": "p"}] * 40)
    assert not (tmp_path / "scores.jsonl").exists()
    collect.keep()
    collect.keep()
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 1


BROKEN = {
    "config.json": ["", "{", "[]", "{}", '{"task": 1}'],
    "identity.json": ["", "{", "[]", "{}", '{"id": 3}'],
    "checkpoints/polgrad_run.json": ["", "[]", "{}"],
    "metrics.jsonl": ["[1]\n"],
    "scores.jsonl": ["{}\n"],
}


@pytest.mark.parametrize(("name", "text"), [(n, t) for n, ts in BROKEN.items() for t in ts])
def test_a_run_with_a_broken_file_is_refused_with_its_name(sums, copied, name, text):
    (copied / name).write_text(text)
    refused(config(sums, copied, resume=True, steps=6), name)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"value": "x"}', '{"pass_at_k": []}'])
def test_a_broken_accuracy_is_told_with_its_file(tmp_path, text):
    (tmp_path / "before.json").write_text(text)
    run = types.SimpleNamespace(
        _measure=True,
        config=TrainConfig(resume=True),
        before_path=tmp_path / "before.json",
    )
    with pytest.raises(ValueError, match="before.json: "):
        Beginning._read_before(run)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: "",
        lambda d: "[]",
        lambda d: json.dumps(d)[:40],
        lambda d: json.dumps({k: v for k, v in d.items() if k != "network"}),
        lambda d: json.dumps({k: v for k, v in d.items() if k != "alphabet"}),
        lambda d: json.dumps(d | {"network": []}),
        lambda d: json.dumps(d | {"alphabet": 3}),
        lambda d: json.dumps(d | {"network": d["network"] | {"more": 1}}),
        lambda d: json.dumps(d | {"network": d["network"] | {"width": 48}}),
        lambda d: json.dumps(d | {"network": d["network"] | {"heads": "two"}}),
    ],
)
def test_a_broken_description_of_the_policy_is_named(copied, change):
    path = copied / "policy.json"
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(ValueError, match=r"policy\.json: ") as error:
        loading.load(str(copied))
    assert "\n" not in str(error.value)


def test_links_in_a_run_are_replaced_and_not_followed(sums, tmp_path, quick):
    out, notes = tmp_path / "run", tmp_path / "notes.txt"
    names = ["metrics.jsonl", "samples.jsonl", "scores.jsonl", "policy.json", "reward.png"]
    notes.write_text("")
    training.train(config(sums, out, steps=1), quiet=True)
    for name in names:
        (out / name).unlink(missing_ok=True)
        os.symlink(notes, out / name)
    settings = config(sums, out, steps=2, resume=True)
    training.train(settings, quiet=True)
    assert notes.read_text() == "" and not [name for name in names if (out / name).is_symlink()]
    (out / "changes.jsonl").unlink()
    os.symlink(notes, out / "changes.jsonl")
    with pytest.raises(loop.TrainingError, match="changes.jsonl"):
        training.train(dataclasses.replace(settings, steps=3), quiet=True)
    assert notes.read_text() == ""


FOREIGN = (
    "metrics.jsonl",
    "samples.jsonl",
    "scores.jsonl",
    "scores-1.jsonl",
    "changes.jsonl",
    "before.json",
    "policy.json",
    "reward.png",
    "tensorboard/events.out.tfevents.1",
    "checkpoints/4/mine",
    "checkpoints/polgrad_run.json",
)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_somebody_else_are_refused_before_anything_is_built(sums, tmp_path, name, resume):
    path = tmp_path / "work" / name
    path.parent.mkdir(parents=True)
    path.write_text('{"step": 1}\n')
    shown = "checkpoints/4" if name.endswith("mine") else name
    settings = config(sums, tmp_path / "work", resume=resume)
    with pytest.raises(ValueError, match=f"holds {shown}, which this run has not written"):
        directory.check_free(settings, None)
    assert path.read_text() == '{"step": 1}\n'


def test_a_start_that_ended_before_its_settings_is_begun_again(sums, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in ("identity.json", "checkpoints/polgrad_run.json", ".lock", "sums.jsonl"):
        (tmp_path / name).write_text("{}")
    directory.check_free(config(tmp_path / "sums.jsonl", tmp_path), None)
    (tmp_path / "metrics.jsonl").write_text("{}")
    with pytest.raises(ValueError, match=r"holds metrics\.jsonl"):
        directory.check_free(config(sums, tmp_path), None)


@pytest.mark.parametrize("name", ["samples.jsonl", "scores-2.jsonl", "tensorboard/a.jsonl"])
def test_the_task_is_no_file_that_the_run_writes(tmp_path, name):
    settings = config(tmp_path / name, tmp_path, resume=True)
    with pytest.raises(ValueError, match="is a file that the run writes to"):
        directory.check_free(settings, run_files.Stored({}, {}, str(tmp_path)))
    for other in (f"data/{name}", "problems.jsonl"):
        directory.check_free(dataclasses.replace(settings, task=str(tmp_path / other)), None)


def test_rows_that_a_checkpoint_covers_and_that_are_gone_are_told(sums, copied, capsys):
    path = copied / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    training.train(config(sums, copied, resume=True))
    assert "metrics.jsonl lacks step 4, which checkpoint 4 covers" in capsys.readouterr().out


# TensorBoard, Weights & Biases, the plot, progress.


def events_of(directory):
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted((directory / "tensorboard").iterdir()):
        for record, _ in reporting._records(path.read_bytes()):
            yield Event.FromString(record)


def shown_by_tensorboard(directory):
    """Steps of one curve, by TensorBoard's rule: a start forgets the steps from its own on."""
    steps = []
    for event in events_of(directory):
        if event.HasField("session_log"):
            steps = [step for step in steps if step < event.step]
        if event.HasField("summary") and event.summary.value[0].tag == "loss":
            steps.append(event.step)
    return steps


def report(directory, begin, steps, **settings):
    """What a start of a run reports that goes on from `begin`."""
    reporter = reporting.Reporter(directory, 9, quiet=True, **settings)
    reporter.read()
    reporter.begin(begin, "0123456789abcdef")
    for step in steps:
        reporter.metrics(step, {"loss": 1 / step, "margin": float("nan")})
    return reporter


def test_tensorboard_shows_each_step_once_after_a_resume_and_a_kill(first, tmp_path):
    assert shown_by_tensorboard(first.directory) == [1, 2, 3, 4]
    report(tmp_path, 0, [1, 2, 3])  # not closed: what a kill leaves
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert shown_by_tensorboard(tmp_path) == [1, 2, 3]
    events.write_bytes(events.read_bytes() + events.read_bytes()[:-7][-30:])
    report(tmp_path, 2, [3, 4]).close()
    report(tmp_path, 4, [5]).close()
    assert shown_by_tensorboard(tmp_path) == [1, 2, 3, 4, 5]
    raw = [e.step for e in events_of(tmp_path) if e.HasField("summary")]
    assert raw == [1, 2, 3, 4, 5] and len(list((tmp_path / "tensorboard").iterdir())) == 3
    marks = [event.step for event in events_of(tmp_path) if event.HasField("session_log")]
    assert marks == [3, 5]
    assert [row["step"] for row in read_lines(tmp_path / "metrics.jsonl")] == raw


def test_an_event_file_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "tensorboard").mkdir()
    other = tmp_path / "tensorboard" / "events.out.tfevents.1"
    other.write_bytes(b"\x05" + bytes(7) + b"1234" + b"\xff" * 5 + b"5678")
    kept = other.read_bytes()
    report(tmp_path, 0, [1]).close()
    assert other.read_bytes() == kept


class StubWandb(types.ModuleType):
    """Weights & Biases as a dictionary of runs; what is sent after a kill is lost."""

    def __init__(self):
        super().__init__("wandb")
        self.runs, self.resumes = {}, []

    def init(self, *, project, dir, config, id, resume):
        json.dumps(config)
        self.resumes.append(resume)
        rows = self.runs.setdefault(id, {})
        step = max(rows, default=-1) + 1

        def log(numbers, step):
            assert step >= max(rows, default=0), "W&B refuses to go back"
            rows[step] = numbers

        return types.SimpleNamespace(step=step, log=log, finish=lambda: None)


def test_wandb_sees_one_run_with_each_step_once(tmp_path, monkeypatch):
    stub = StubWandb()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    settings = {"tensorboard": False, "wandb": "mine", "config": {"seed": 0}}
    report(tmp_path, 0, [1, 2, 3], **settings)
    ((number, rows),) = stub.runs.items()
    assert number == "0123456789abcdef" and list(rows) == [1, 2, 3]
    del rows[2], rows[3]  # lost with a kill
    report(tmp_path, 2, [3, 4], **settings).close()
    assert list(stub.runs) == [number] and list(rows) == [1, 2, 3, 4]
    # Steps that are run again have the same numbers, and are not sent again.
    report(tmp_path, 3, [4, 5], **settings).close()
    assert list(rows) == [1, 2, 3, 4, 5] and stub.resumes == ["allow"] * 3
    assert rows[5] == {"loss": 0.2}


def test_wandb_is_given_the_number_of_the_run(sums, tmp_path, quick, monkeypatch):
    stub = StubWandb()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    saving = Saving(tensorboard=False, wandb="mine")
    training.train(config(sums, tmp_path / "a", saving=saving, steps=1), quiet=True)
    assert list(stub.runs) == [run_files.stored(tmp_path / "a").record["id"]]


DPO = {"loss": 0.6, "margin": 0.1, "pair_accuracy": 0.5, "gradient_norm": 1.0, "seconds": 0.1}
GRPO = {"reward_mean": 0.5, "entropy": 2.0, "loss": 0.0, "accuracy": 0.4, "seconds": 0.1}


@pytest.mark.parametrize(
    ("row", "panels"),
    [
        (GRPO, [("reward_mean", "accuracy")]),
        (GRPO | {"value_loss": 1.0}, [("reward_mean", "accuracy")]),
        (DPO, [("loss",), ("margin",), ("pair_accuracy",)]),
        (DPO | {"accuracy": 0.1}, [("accuracy",), ("loss",), ("margin",), ("pair_accuracy",)]),
        ({"loss": 0.5}, [("loss",)]),
        ({"loss": None}, [()]),
        (None, [()]),
    ],
)
def test_the_plot_has_what_the_run_has(tmp_path, row, panels):
    rows = [] if row is None else [{"step": s, **row} for s in (1, 2, 3)]
    assert reporting._panels(rows) == panels
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert reporting.plot(tmp_path).stat().st_size > 3000


def test_progress_lines_show_what_the_algorithm_is_about(tmp_path, capsys):
    reporter = reporting.Reporter(tmp_path, 1, tensorboard=False)
    reporter.metrics(1, DPO)
    said = capsys.readouterr().out
    assert said == "step 1/1  loss 0.6  margin 0.1  pair_accuracy 0.5  seconds 0.1\n"
    reporter.metrics(1, GRPO | {"loss": float("nan"), "skipped_updates": 2.0})
    said = capsys.readouterr().out
    assert "reward_mean 0.5  accuracy 0.4  entropy 2  skipped_updates 2" in said


# What is refused before anything is written.


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def fn(prompt, completion, example):\n    return 1.0\nraise OSError('no')\n", "no"),
        ("def fn(prompt)\n", "syntax"),
        ("def other(prompt, completion, example):\n    return 1.0\n", "fn"),
        ("def fn(a):\n    return 1.0\n", "fn"),
        ("import sys\nsys.exit(0)\n", "exit"),
        ("import no_such_module_here\n", "no_such_module_here"),
    ],
)
def test_a_reward_that_cannot_be_called_is_found_first(sums, tmp_path, monkeypatch, code, words):
    (tmp_path / "mine.py").write_text(code)
    rewards = Rewards(functions=(f"{tmp_path / 'mine.py'}:fn",))
    settings = sampled(sums, tmp_path / "run", rewards=rewards)
    monkeypatch.setattr(
        building, "build_policy", lambda *_: pytest.fail("the policy was loaded first")
    )
    with pytest.raises(ValueError) as error:
        building.build(settings)
    assert words in str(error.value).lower() and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_reward_of_polgrad_with_other_arguments_is_found_first(sums, tmp_path, monkeypatch):
    monkeypatch.setattr(
        building, "build_policy", lambda *_: pytest.fail("the policy was loaded first")
    )
    settings = sampled(sums, tmp_path / "run", rewards=Rewards(functions=("regex_match",)))
    with pytest.raises(ValueError, match="regex_match.*missing a required .*'pattern'"):
        building.build(settings)


@pytest.mark.parametrize("given", ["a_file", "a_file/below", "/proc/polgrad"])
def test_a_directory_that_cannot_be_written_is_found_first(sums, tmp_path, monkeypatch, given):
    (tmp_path / "a_file").write_text("work")
    out = str(tmp_path / given)
    monkeypatch.setattr(
        building, "load_sources", lambda *_: pytest.fail("the data were read first")
    )
    with pytest.raises(ValueError, match=f"^out '{out}' cannot be written: ."):
        building.build(sampled(sums, out))
    assert [path.name for path in tmp_path.iterdir()] == ["a_file"]


@pytest.mark.parametrize("algorithm", ["dpo", "supervised"])
def test_a_run_reads_its_file_once_and_tokenises_each_text_once(tmp_path, monkeypatch, algorithm):
    path, pairs = tmp_path / "data.jsonl", algorithm == "dpo"
    name, more = ("chosen", {"rejected": "n"}) if pairs else ("answer", {})
    rows = [{"prompt": f"{i}?", name: "y" * (1 + i % 3), **more} for i in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    calls = collections.Counter()

    def counted(owner, name, key):
        method = getattr(owner, name)

        def call(self, *given):
            calls[name, key(self, *given)] += 1
            return method(self, *given)

        monkeypatch.setattr(owner, name, call)

    counted(sources.JsonlSource, "_records", lambda self: self.path)
    counted(sources.JsonlSource, "_read", lambda self, position: position)
    counted(data.CharacterTokenizer, "prompt_ids", lambda self, text: text)
    counted(data.CharacterTokenizer, "completion_ids", lambda self, *texts: texts)
    settings = config(
        path,
        tmp_path / "run",
        algorithm=algorithm,
        evaluation=Evaluation(),
        warm_start=WarmStart() if pairs else WarmStart(steps=1),
    )
    for rollouts in (Rollouts(prompts=4), Rollouts(prompts=4, max_tokens=4)):
        calls.clear()
        parts = building.build(dataclasses.replace(settings, rollouts=rollouts))
        assert parts.config.rollouts.max_tokens == 4
        count = len(parts.train.source)
        names = collections.Counter(name for name, _ in calls)
        assert names["_records"] == 1 and names["_read"] == 30 and count < 30
        # The held-out prompts of pairs are not scored.
        assert names["prompt_ids"] == (count if pairs else 30)
        assert names["completion_ids"] == (2 * count if pairs else count)
        # The first row is also asked for what kind of data it is of.
        once = {key: n for key, n in calls.items() if key != ("_read", 0)}
        assert set(once.values()) == {1}


@pytest.mark.parametrize(
    ("algorithm", "field"), [("supervised", "answer"), ("dpo", "chosen"), ("dpo", "rejected")]
)
def test_a_completion_that_is_too_long_is_found_at_the_start(tmp_path, algorithm, field):
    fields = ("answer",) if algorithm == "supervised" else ("chosen", "rejected")
    rows = [{"prompt": f"{i}?", **dict.fromkeys(fields, "y")} for i in range(8)]
    rows[5][field] = "y" * 9
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = config(path, tmp_path / "run", algorithm=algorithm, data=Data(held_out=0.0))
    with pytest.raises(ValueError, match=f"(row 5|line 6): '{field}' has 10 tokens.*max_tokens 3"):
        building.build(settings)
    assert not (tmp_path / "run").exists()


def test_demonstrations_of_the_warm_start_are_checked_at_the_start(sums, tmp_path):
    rollouts = Rollouts(prompts=4, group_size=4, max_tokens=1)
    settings = sampled(sums, tmp_path / "run", rollouts=rollouts)
    building.build(settings)
    with pytest.raises(
        ValueError, match="'answer' has 2 tokens.*lower --warm-start.demonstrations"
    ):
        building.build(dataclasses.replace(settings, warm_start=WarmStart(steps=1)))


# The command.


def command(capsys, *arguments):
    try:
        code = cli._run([str(a) for a in arguments])
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_resume_alone_reads_the_settings_and_flags_are_compared(copied, quick, capsys):
    code, said, error = command(capsys, "train", "--resume", "--out", copied, "--steps", "5")
    assert code == 0, error
    assert 0 <= said.find("resumes after step 4 of 5\n") < said.find("step 5/5")
    assert "changed: steps (4 there, 5 here)" in said
    kept = run_files.stored(copied)
    assert kept.config["steps"] == 5 and kept.config["rollouts"]["prompts"] == 4
    (line,) = (copied / "changes.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 4 and json.loads(line)["config"]["steps"] == 4
    before = contents(copied)
    flags = ["--seed", "7", "--optimizer.learning-rate", "0.1", "--algorithm", "grpo"]
    code, _, error = command(capsys, "train", "--resume", "--out", copied, *flags)
    assert code == 2 and error.count("\n") == 1 and contents(copied) == before
    assert "--allow-changed algorithm optimizer.learning_rate seed\n" in error


def test_a_file_of_settings_starts_a_sibling(first, tmp_path, quick, capsys):
    out = tmp_path / "b"
    source = first.directory / "config.json"
    code, said, error = command(
        capsys, "train", "--config", source, "--out", out, "--steps", "1", "--saving.every", "3",
    )  # fmt: skip
    assert code == 0, error
    here, there = (run_files.read_settings(d / "config.json") for d in (out, first.directory))
    changed = {"steps": 1, "out": str(out)}
    assert {k: v for k, v in here.items() if there[k] != v} == {
        **changed,
        "saving": there["saving"] | {"every": 3},
    }
    assert run_files.stored(out).record["id"] != run_files.stored(first.directory).record["id"]


@pytest.mark.parametrize("name", ["Mine", "OBJECT", "BUILT"])
def test_an_algorithm_may_be_a_class_settings_or_an_object(sums, tmp_path, name):
    code, out = tmp_path / "alg.py", str(tmp_path / "run")
    code.write_text(
        "import dataclasses\nfrom polgrad.algorithms import GRPO\nfrom polgrad.training import "
        "Context\n@dataclasses.dataclass(frozen=True)\nclass Mine(GRPO):\n    gain: float = 2.0\n"
        "OBJECT = Mine()\nBUILT = OBJECT.build(Context(4, 3, 9, True))\n"
    )
    flags = ["--task", str(sums), "--algorithm", f"{code}:{name}", "--mesh", "data=1"]
    sizes = ["--rollouts.prompts", "4", "--rollouts.group-size", "4", "--small.width", "16"]
    more = ["--settings.gain", "3"] if name == "Mine" else []
    parts = train_command._train_settings([*flags, *sizes, *more, "--out", out])
    ownership.record(parts, "ab", 0)
    again = train_command._train_settings(["--resume", "--out", out])
    assert again.changes == () and again.config.rollouts.prompts == 4
    assert again.config.algorithm == f"{code}:{name}"
    assert getattr(again.config.settings, "gain", 3) == (2 if name == "OBJECT" else 3)
    sibling = train_command._train_settings(["--config", f"{out}/config.json", "--out", f"{out}2"])
    assert sibling.stored is None and type(sibling.config.settings) is type(parts.config.settings)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_file_that_holds_no_settings_is_named(tmp_path, capsys, text):
    (tmp_path / "c.json").write_text(text)
    code, _, error = command(capsys, "train", "--config", tmp_path / "c.json")
    assert code == 2 and error.count("\n") == 1 and "c.json: " in error


def test_an_address_that_only_a_file_names_is_not_opened(copied, capsys):
    path = copied / "config.json"
    raw = json.loads(path.read_text())
    raw["saving"]["checkpoints"] = "gs://strangers/run"
    path.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="config.json .*gs://strangers/run; give --remote"):
        loading.load(str(copied))
    code, _, error = command(capsys, "train", "--resume", "--out", copied)
    assert code == 2 and error.count("\n") == 1
    assert "give --saving.checkpoints gs://strangers/run" in error


@pytest.mark.parametrize("moment", ["building", "the loop"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_signals_end_in_one_line(copied, quick, capsys, monkeypatch, moment, number, code):
    step = loop._Loop._step

    def stop(self, *rest):
        monkeypatch.setattr(loop._Loop, "_step", step)
        signal.raise_signal(number)
        return step(self, *rest)

    # Somebody's code may catch whatever is raised: the process is to end inside the handler.
    monkeypatch.setattr(os, "_exit", lambda code: pytest.exit(f"left with {code}"))
    left = moment == "building" and number == signal.SIGTERM
    if moment == "building":
        monkeypatch.setattr(building, "_build", lambda *rest: signal.raise_signal(number))
    else:
        monkeypatch.setattr(loop._Loop, "_step", stop)
    arguments = ["train", "--resume", "--out", copied, "--steps", "6", "--saving.no-tensorboard"]
    if left:
        with pytest.raises(pytest.exit.Exception, match="left with 0"):
            command(capsys, *arguments)
        found, (said, error) = 0, capsys.readouterr()
    else:
        monkeypatch.setattr(_interrupt, "_presses", 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with _interrupt.caught():
            found, said, error = command(capsys, *arguments)
    assert found == code and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    line = (error if number == signal.SIGINT else said).strip().splitlines()[-1]
    if moment == "building":
        assert "nothing is lost" in line
    elif number == signal.SIGINT:
        assert line.startswith("polgrad: interrupted; checkpoint 5 is the newest; go on with --res")
    else:
        assert line == "stopped by a signal and saved at step 5; go on with --resume"
    assert error.count("\n") == (number == signal.SIGINT)
    # Nothing is lost: the lock is free, and the run goes on.
    with _files.alone(copied):
        assert run_files.stored(copied) is not None
    assert restore_params(copied)[1] in (4, 5)


def test_ctrl_c_before_anything_is_written_says_so(sums, tmp_path, capsys, monkeypatch):
    parts = building.build(config(sums, tmp_path / "a"))

    def press(parts, **_):
        (parts.directory / ".lock").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "run", press)
        assert train_command._train_parts(parts) == 130
    words = "polgrad: interrupted; nothing was saved; give the same command again\n"
    assert capsys.readouterr().err == words
    again = f"go on with --resume --out {parts.directory}"
    ownership.record(parts, "1", 0)
    assert train_command._where_to_go_on(parts) == f"there is no checkpoint yet; {again}"
    # Settings of an earlier start, which --resume would read in the place of those typed now.
    longer = dataclasses.replace(parts, config=dataclasses.replace(parts.config, steps=9))
    assert train_command._where_to_go_on(longer) == "nothing was saved; give the same command again"
    (parts.directory / "checkpoints" / "3").mkdir()
    assert (
        train_command._where_to_go_on(parts, at_once=True) == f"checkpoint 3 is the newest; {again}"
    )
    (parts.directory / "config.json").write_text("{")
    told = "checkpoint 3 is the newest; give the same command again"
    assert train_command._where_to_go_on(parts) == told


def test_a_second_ctrl_c_in_a_step_tells_how_to_go_on(copied, quick, capfd, monkeypatch):
    def leave(code):
        raise SystemExit(code)

    def press(self, *_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(loop._Loop, "_step", press)
    monkeypatch.setattr(os, "_exit", leave)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with _interrupt.caught():
            code = cli._run(["train", "--resume", "--out", str(copied), "--steps", "6"])
    except SystemExit as stop:
        code = stop.code
    finally:
        signal.signal(signal.SIGINT, before)
    again = f"go on with --resume --out {copied}"
    last = f"polgrad: interrupted; checkpoint 4 is the newest; {again}"
    assert code == 130 and capfd.readouterr().err.splitlines()[-1] == last


@pytest.mark.parametrize("moment", ["the last step", "the last evaluation"])
def test_ctrl_c_at_the_end_leaves_a_complete_run(copied, quick, capsys, monkeypatch, moment):
    name = {"the last step": "_step", "the last evaluation": "_last_accuracy"}[moment]
    work = getattr(loop._Loop, name)

    def press(self, *rest):
        signal.raise_signal(signal.SIGINT)
        return work(self, *rest)

    monkeypatch.setattr(loop._Loop, name, press)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with _interrupt.caught() as pressed:
            found, said, _ = command(capsys, "train", "--resume", "--out", copied, "--steps", "5")
            assert pressed()
    finally:
        signal.signal(signal.SIGINT, before)
    assert found == 0 and said.rstrip().endswith("reward.png") and "interrupted" not in said
    assert steps_in(copied / "checkpoints")[-1] == 5


def test_after_the_run_sigterm_no_longer_tells_that_there_was_no_step(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    try:
        with train_command._ending_on_sigterm():
            assert signal.getsignal(signal.SIGTERM) is train_command._early_end
            with loop._stop_signal(signal.SIG_DFL) as seen:
                signal.raise_signal(signal.SIGTERM)
            assert seen and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        with loop._stop_signal():
            pass
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    "flags", [["--resume_from", "2"], ["--resume_from=2"], ["--resume-from=2"], ["--resume"]]
)
def test_each_spelling_of_a_flag_reads_the_settings_of_the_run(first, flags):
    base, raw, source, _ = train_command._base_settings([*flags, "--out", str(first.directory)])
    assert raw and source.endswith("config.json") and base.rollouts.prompts == 4


@pytest.mark.parametrize(
    ("field", "flag"),
    [
        ("algorithm", "--algorithm"),
        ("functions", "--rewards.functions"),
        ("preference", "--rewards.preference"),
    ],
)
def test_code_that_a_file_of_settings_names_is_told_before_it_is_run(tmp_path, capsys, field, flag):
    mark = tmp_path / "it_was_run"
    body = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
    for path in (tmp_path / "run" / "evil.py", tmp_path / "mine.py"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(body)
    source = tmp_path / "run" / "config.json"

    def named(code):
        raw = {"task": "chain_sum", "algorithm": "grpo"}
        value = [f"{code}:f"] if field == "functions" else f"{code}:f"
        raw |= {field: value} if field == "algorithm" else {"rewards": {field: value}}
        source.write_text(json.dumps(raw))
        return f"{code}:f"

    inside = named(tmp_path / "run" / "evil.py")
    for arguments in (["--resume", "--out", source.parent], ["--config", source]):
        code, said, error = command(capsys, "train", *arguments)
        assert code == 2 and error.count("\n") == 1 and not mark.exists() and not said
        assert f"names the code {inside}, which lies in the run's own directory" in error
        assert f"give {flag} {inside} to run it" in error
    base, raw, place, rest = train_command._base_settings(["--config", str(source), flag, inside])
    train_command._say_code(base, raw, place, rest)
    assert capsys.readouterr().out == ""
    outside = named(tmp_path / "mine.py")
    base, raw, place, rest = train_command._base_settings(["--config", str(source)])
    train_command._say_code(base, raw, place, rest)
    assert capsys.readouterr().out == f"{source} names the code {outside}, which is run\n"


# A third answer.


def test_a_third_answer_is_read_from_its_column(sums, tmp_path):
    rows = [
        {"prompt": f"{i}+1=", "chosen": str(i + 1), "rejected": "0", "gold": f"{i + 1}!"}
        for i in range(4)
    ]
    task = tmp_path / "triples.jsonl"
    task.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = config(sums, tmp_path / "a", task=str(task), algorithm="tpo", steps=2)
    settings = dataclasses.replace(settings, data=Data(held_out=0.0))
    result = training.train(settings, quiet=True)
    batch, _, _ = collecting.Collector(result.parts, None, None, None)(1, None, {})
    assert batch["completions"].shape == (4, 3, 3)
    texts = {result.parts.tokenizer.decode(r[r != 0].tolist()) for r in batch["completions"][:, 2]}
    assert {text[-1] for text in texts} == {"!"}
    for gold, words in (
        (None, "reads 'prompt' and 'chosen' and 'rejected' and 'gold'; .* lacks 'gold'"),
        (3, "line 3: field 'gold' must be a string, got a number"),
        (" ", "line 3: field 'gold' is empty, expected text"),
    ):
        wrong = [dict(row) for row in rows]
        if gold is None:
            wrong = [{k: x for k, x in row.items() if k != "gold"} for row in rows]
        else:
            wrong[2]["gold"] = gold
        task.write_text("".join(json.dumps(row) + "\n" for row in wrong))
        refused(dataclasses.replace(settings, out=str(tmp_path / "b")), words)


@pytest.mark.parametrize(
    ("long", "count", "told"),
    [
        (
            99,
            1,
            (
                "line 4: the prompt has 99 tokens, and 5 of 6 prompts have at most 4; every prompt "
                "is padded to the longest one",
            ),
        ),
        (63, 1, ()),  # padding costs next to nothing
        (99, 2, ()),  # no prompt stands out
    ],
)
def test_a_prompt_that_is_far_longer_than_the_others_is_told(sums, tmp_path, long, count, told):
    rows = LINES[: 6 - count]
    rows[3:3] = [{"prompt": "1" * (long - 1) + "=", "answer": "1"}] * count
    task = tmp_path / "rows.jsonl"
    task.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = config(sums, tmp_path / "a", task=str(task), data=Data(held_out=0.0))
    warnings = building.build(settings).algorithm.warnings
    assert len(warnings) == len(told)
    assert all(text in warning for text, warning in zip(told, warnings))
