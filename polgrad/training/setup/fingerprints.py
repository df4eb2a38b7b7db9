"""Fingerprints of what a run reads from outside: the policy, and files of rewards and algorithms."""

import dataclasses
import hashlib
import importlib.machinery
import inspect
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from polgrad import policies
from polgrad.contract import Algorithm
from polgrad.training.setup.run_files import class_name


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
        "network": fingerprint(json.dumps(shape, sort_keys=True, default=class_name)),
    }


def of_alphabet(alphabet: str) -> str:
    """The fingerprint of the tokenizer whose tokens are these characters."""
    return _of_text({"alphabet": alphabet})


def _of_text(text: Mapping[str, Any]) -> str:
    return fingerprint(json.dumps(text, sort_keys=True, default=class_name))


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
    return fingerprint(json.dumps(decides, sort_keys=True, default=class_name))


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
    where = f"{getattr(part, '__module__', '')}:{class_name(part)}"
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
