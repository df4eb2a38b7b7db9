"""Experiments' runs, sweeps and reports that something else has touched."""

import functools
import os
import pathlib
import shutil

from attacks import Attack

RUN = ("run", "own/trial.py", "--out", "runs/trial")
SWEEP = ("sweep", "own/trial.py", "--set", "gain=1,2", "--out", "runs/sweep")
JUNK = (b"", b"{", b"[]", b"null", b"{}", b"\xff")


def _content(name: str, content: bytes, place: pathlib.Path) -> None:
    (place / name).write_bytes(content)


def _cut(name: str, place: pathlib.Path) -> None:
    path = place / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _again(name: str, place: pathlib.Path) -> None:
    """Something must be left to do: the files of this attack are read only then."""
    (place / name).unlink()


def _cell(content: bytes, place: pathlib.Path) -> None:
    next((place / "runs" / "sweep" / "cells").glob("*/result.json")).write_bytes(content)


def _text(place: pathlib.Path) -> None:
    (place / "own" / "trial.py").write_text((place / "own" / "trial.py").read_text() + "\n# more\n")


def _held(name: str, place: pathlib.Path):
    from polgrad import _files as files

    return files.alone(place / name)


def _beside(text: bytes, place: pathlib.Path) -> None:
    """A working directory with an experiment that takes the name of a built-in one."""
    folder = place / "experiments" / "own"
    folder.mkdir(parents=True)
    (folder / "nash_md.py").write_bytes(text)


def _foreign(place: pathlib.Path) -> None:
    shutil.rmtree(place / "runs" / "sweep")
    os.mkdir(place / "runs" / "sweep")
    (place / "runs" / "sweep" / "thesis.tex").write_text("work")


def attacks() -> list[Attack]:
    """Runs, sweeps and reports over files that are not as they were left."""
    found = []
    for content in JUNK:
        shown = repr(content)
        for name, words in (
            ("runs/trial/experiment.json", RUN),
            ("runs/trial/result.json", ("report", "runs/trial")),
            ("runs/sweep/sweep.json", SWEEP),
            ("runs/sweep/sweep.json", ("report", "runs/sweep")),
        ):
            prepare = functools.partial(_content, name, content)
            label = f"experiments: {name} is {shown}, {words[0]}"
            found.append(Attack(label, words, prepare))
        for words in (SWEEP, ("report", "runs/sweep")):
            label = f"experiments: a cell's result is {shown}, {words[0]}"
            found.append(Attack(label, words, functools.partial(_cell, content)))
        prepare = functools.partial(_content, "runs/trial/arms/only.npz", content)
        found.append(Attack(f"experiments: arms is {shown}, run", RUN, prepare))
    found += [
        Attack(
            "experiments: arms is cut", RUN, functools.partial(_cut, "runs/trial/arms/only.npz")
        ),
        Attack("experiments: other settings", (*RUN, "--set", "gain=3")),
        Attack("experiments: other seeds", (*RUN, "--seeds", "3")),
        Attack("experiments: another text", RUN, _text),
        Attack("experiments: another grid", (*SWEEP[:2], "--set", "gain=1,3", *SWEEP[4:])),
        Attack("experiments: a sweep's other seeds", (*SWEEP, "--seeds", "3")),
        Attack("experiments: a sweep's other text", SWEEP, _text),
        Attack("experiments: somebody's folder", SWEEP, _foreign),
        Attack("experiments: a run where a sweep is", (*RUN[:-1], "runs/sweep")),
        Attack("experiments: a sweep where a run is", (*SWEEP[:-1], "runs/trial")),
        Attack("experiments: a run where training is", (*RUN[:-1], "runs/a")),
        Attack("experiments: in use, run", RUN, beside=functools.partial(_held, "runs/trial")),
        Attack("experiments: in use, sweep", SWEEP, beside=functools.partial(_held, "runs/sweep")),
        Attack("experiments: no such name", ("run", "nosuch", "--out", "runs/other")),
        Attack("experiments: a name nearly right", ("run", "nash_mb", "--out", "runs/other")),
        Attack("experiments: no such file", ("run", "nosuch.py", "--out", "runs/other")),
        Attack("experiments: a folder", ("run", "own", "--out", "runs/other")),
        Attack(
            "experiments: a name that two files have",
            ("run", "nash_md", "--smoke", "--out", "runs/other"),
            functools.partial(_beside, b"\nEXPERIMENT = print('ran')\n"),
        ),
        Attack("experiments: out is a file", (*RUN[:-1], "notes.txt")),
        Attack("experiments: a sweep's out is a file", (*SWEEP[:-1], "notes.txt")),
        Attack("experiments: commit at small size", (*RUN[:2], "--smoke", "--commit")),
        Attack("experiments: no such metric", ("report", "runs/sweep", "--metric", "nosuch")),
        Attack("experiments: report of nothing", ("report", "nosuch")),
        Attack("experiments: report of an empty folder", ("report", "empty")),
        Attack("experiments: report of a file", ("report", "notes.txt")),
        Attack("experiments: the ledger outside of a checkout", ("report", "--ledger")),
        Attack("experiments: a check outside of a checkout", ("report", "--check")),
        Attack("experiments: ray is not there", (*SWEEP[:-1], "runs/other", "--ray", "auto")),
    ]
    return found
