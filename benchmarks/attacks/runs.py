"""Runs that something else has touched, resumed runs with other settings, places in use."""

import functools
import os
import pathlib
import shutil

from attacks import Attack
from attacks.world import TRAIN, edit

RESUME = (*TRAIN[:-1], "runs/a", "--resume", "--steps", "6")
SAMPLE = ("sample", "--policy", "runs/a", "--prompt", "1+1=")
OTHER = {
    "algorithm": ("--algorithm", "rloo"),
    "seed": ("--seed", "7"),
    "learning rate": ("--optimizer.learning-rate", "0.1"),
    "optimiser": ("--optimizer.method", "muon"),
    "schedule": ("--optimizer.schedule", "cosine"),
    "reward": ("--rewards.functions", "mine.py:length"),
    "group": ("--rollouts.group-size", "4"),
    "prompts": ("--rollouts.prompts", "8"),
    "temperature": ("--rollouts.temperature", "0.5"),
    "max tokens": ("--rollouts.max-tokens", "3"),
    "epochs": ("--update.epochs", "2"),
    "mini-batches": ("--update.mini-batches", "2"),
    "a setting of the algorithm": ("--settings.clip-low", "0.1"),
    "layers": ("--small.layers", "2"),
    "task": ("--task", "sums.parquet"),
    "held out": ("--data.held-out", "0.2"),
    "template": ("--data.prompt-template", "Q: {prompt}"),
    "warm start": ("--warm-start.steps", "5"),
}
TOUCHED = {
    "config.json": (b"", b"{", b"[]", b"null", b"{}", b"\xff", b'{"task": 7}'),
    "policy.json": (b"", b"{", b"[]", b"{}", b"\xff", b'{"alphabet": 7}'),
}
ROWS = {
    "metrics.jsonl": (b"[1]\n", b"{}\n", b"\xff\xfe\n", b'{"step": "x"}\n'),
    "samples.jsonl": (b"[1]\n", b"{}\n", b"\xff\xfe\n"),
    "scores.jsonl": (b"[1]\n", b"{}\n", b"\xff\xfe\n"),
}


def _content(name: str, content: bytes, place: pathlib.Path) -> None:
    (place / "runs" / "a" / name).write_bytes(content)


def _gone(name: str, place: pathlib.Path) -> None:
    (place / "runs" / "a" / name).unlink()


def _entry(name: str, value, place: pathlib.Path) -> None:
    edit(place / "runs" / "a" / "config.json", **{name: value})


def _files(place: pathlib.Path, step: str) -> list[pathlib.Path]:
    root = place / "runs" / "a" / "checkpoints" / step
    return sorted(p for p in root.rglob("*") if p.is_file())


def _damage(step: str, how: str, number: int, place: pathlib.Path) -> None:
    """Damages the file of a checkpoint whose number counts from the largest."""
    files = sorted(_files(place, step), key=lambda p: -p.stat().st_size)
    _damage_file(files[number % len(files)], how)


def _damage_arrays(step: str, how: str, place: pathlib.Path) -> None:
    """Damages every file of a checkpoint that holds arrays: a policy is read from some of them."""
    for path in _files(place, step):
        if path.parent.name == "d":
            _damage_file(path, how)


def _damage_file(path: pathlib.Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "deleted":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "zeroed":
        path.write_bytes(bytes(len(content)))
    else:
        content[len(content) // 2] ^= 16
        path.write_bytes(content)


def _emptied(place: pathlib.Path) -> None:
    for path in _files(place, "4"):
        path.unlink()


def _no_checkpoints(place: pathlib.Path) -> None:
    shutil.rmtree(place / "runs" / "a" / "checkpoints")


def _changed_data(place: pathlib.Path) -> None:
    path = place / "sums.jsonl"
    path.write_text(path.read_text().replace('"answer": "2"', '"answer": "3"'))


def _held(name: str, place: pathlib.Path):
    from polgrad import _files as files

    (place / name).mkdir(parents=True, exist_ok=True)
    return files.alone(place / name)


def _elsewhere(place: pathlib.Path) -> None:
    shutil.copytree(place / "runs" / "a" / "checkpoints", place / "ck")


def _bucket(place: pathlib.Path) -> None:
    import json

    path = place / "runs" / "a" / "config.json"
    content = json.loads(path.read_text())
    content["saving"]["checkpoints"] = "gs://bucket/run"
    path.write_text(json.dumps(content))


def attacks() -> list[Attack]:
    """Sampling from, resuming and evaluating runs that are not as they were left."""
    found = []
    for name, flags in OTHER.items():
        found.append(Attack(f"runs: resumed with another {name}", (*RESUME, *flags)))
    for name, contents in TOUCHED.items():
        for content in contents:
            prepare = functools.partial(_content, name, content)
            for command in (SAMPLE, ("evaluate", "--policy", "runs/a")):
                found.append(Attack(f"runs: {name} is {content!r}, {command[0]}", command, prepare))
        for command in (SAMPLE, ("export", "--policy", "runs/a", "--out", "new")):
            prepare = functools.partial(_content, name, b'{"x": ' + b"[" * 100_000)
            found.append(Attack(f"runs: {name} is deep, {command[0]}", command, prepare))
    for content in TOUCHED["config.json"]:
        prepare = functools.partial(_content, "config.json", content)
        found.append(Attack(f"runs: config.json is {content!r}, resumed", RESUME, prepare))
    for name, contents in ROWS.items():
        for content in contents:
            prepare = functools.partial(_content, name, content)
            found.append(Attack(f"runs: {name} is {content!r}, resumed", RESUME, prepare))
    export = ("export", "--policy", "runs/a", "--out", "new")
    for how in ("deleted", "cut", "zeroed", "flipped"):
        for number in range(3):
            prepare = functools.partial(_damage, "4", how, number)
            found.append(Attack(f"runs: checkpoint, file {number} {how}, resumed", RESUME, prepare))
        prepare = functools.partial(_damage_arrays, "4", how)
        found.append(Attack(f"runs: arrays {how}, sampled", SAMPLE, prepare))
        found.append(Attack(f"runs: arrays {how}, exported", export, prepare))
        prepare = functools.partial(_damage, "initial", how, 0)
        found.append(Attack(f"runs: initial, file 0 {how}, resumed", RESUME, prepare))
    found += [
        Attack("runs: a checkpoint without files, resumed", RESUME, _emptied),
        Attack("runs: a checkpoint without files, sampled", SAMPLE, _emptied),
        Attack("runs: no checkpoints, sampled", SAMPLE, _no_checkpoints),
        Attack("runs: no policy.json, sampled", SAMPLE, functools.partial(_gone, "policy.json")),
        Attack("runs: other problems, resumed", RESUME, _changed_data),
        Attack("runs: there is one already", (*TRAIN[:-1], "runs/a")),
        Attack("runs: an experiment's run", (*TRAIN[:-1], "runs/trial", "--resume")),
        Attack("runs: checkpoints at a bucket, sampled", SAMPLE, _bucket),
        Attack("runs: checkpoints at a bucket, exported", export, _bucket),
        Attack("runs: in use, resumed", RESUME, beside=functools.partial(_held, "runs/a")),
        Attack("runs: in use, begun", TRAIN, beside=functools.partial(_held, "runs/new")),
        Attack(
            "runs: another run's checkpoints",
            (*TRAIN, "--saving.checkpoints", "runs/a/checkpoints"),
        ),
        Attack(
            "runs: another run's checkpoints, elsewhere",
            (*TRAIN, "--saving.checkpoints", "ck"),
            _elsewhere,
        ),
        Attack(
            "runs: another run's checkpoints, resumed",
            (*TRAIN, "--saving.checkpoints", "ck", "--resume"),
            _elsewhere,
        ),
        Attack("runs: sampled from nothing", ("sample", "--policy", "nosuch", "--prompt", "x")),
        Attack("runs: evaluated nothing", ("evaluate", "--policy", "nosuch")),
        Attack("runs: a prompt without a token", ("sample", "--policy", "runs/a", "--prompt", "")),
        Attack(
            "runs: a prompt of unknown characters",
            ("sample", "--policy", "runs/a", "--prompt", "\u4e2d"),
        ),
        Attack(
            "runs: a prompt longer than the context",
            ("sample", "--policy", "runs/a", "--prompt", "1+1=" * 50),
        ),
        Attack("runs: resumed from a step that is not there", (*RESUME, "--resume-from", "3")),
        Attack("runs: fewer steps than done", (*RESUME, "--steps", "2")),
    ]
    assert os.sep == "/"
    return found
