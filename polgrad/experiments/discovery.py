"""From a name or a path to an experiment: one file each, in `experiments/<family>/<name>.py`.

A file is told to be an experiment by its text. Only the file that a user names is run: what lies in
the working directory's `experiments/` may be anybody's.
"""

import ast
import hashlib
import pathlib
import stat
import warnings
from typing import NamedTuple

import polgrad
from polgrad import _names, _outside, _user_files
from polgrad.experiments.types import Experiment

_LONGEST = 1 << 20
"""Bytes of the longest file that is looked at as an experiment."""


class Found(NamedTuple):
    """An experiment and where it was found.

    Attributes:
      name: the file's name without its ending.
      family: the name of its folder.
      path: the file.
      digest: of the file's text, so that a run knows when its experiment has changed.
      experiment: its `EXPERIMENT`.
    """

    name: str
    family: str
    path: pathlib.Path
    digest: str
    experiment: Experiment


class Told(NamedTuple):
    """What the text of a file tells of its experiment; nothing of the file was run.

    Attributes:
      path: the file.
      own: whether it comes with polgrad; the others lie in the working directory.
      claim: the experiment's claim; None where the file does not write it as a text.
      problem: why the file cannot be used; "" where it can be.
    """

    path: pathlib.Path
    own: bool
    claim: str | None
    problem: str = ""


def names() -> dict[str, pathlib.Path]:
    """All experiments by name: those that come with polgrad, and the working directory's own.

    Where both have a name, polgrad's file stands here; `find` refuses the name and asks for a path.
    """
    found: dict[str, pathlib.Path] = {}
    for told in listed():
        if not told.problem:
            found.setdefault(told.path.stem, told.path)
    return found


def listed() -> list[Told]:
    """What is known of each file without running it: polgrad's own first."""
    package = pathlib.Path(polgrad.__file__).resolve().parent
    own = _files(package / "_papers", own=True) or _files(package.parent / "experiments", own=True)
    there = {told.path.resolve() for told in own}
    local = _files(pathlib.Path.cwd() / "experiments", own=False)
    return own + [told for told in local if told.path.resolve() not in there]


def _files(root: pathlib.Path, *, own: bool) -> list[Told]:
    """Experiments of a folder, and the files of which their text does not tell whether they are."""
    files = (p for p in sorted(root.glob("*/*.py")) if not p.stem.startswith("_"))
    return [told for path in files if (told := _tell(path, own)) is not None]


def _tell(path: pathlib.Path, own: bool) -> Told | None:
    """What a file's text says; None for a file that is no experiment."""
    try:
        with _outside.reading(path):
            state = path.stat()
            if not stat.S_ISREG(state.st_mode):
                raise ValueError("is no file")
            if state.st_size > _LONGEST:
                raise ValueError(f"has {state.st_size} bytes; expected at most {_LONGEST}")
            text = path.read_text(encoding="utf-8")
            if "\nEXPERIMENT = " not in text:
                return None
            with warnings.catch_warnings(action="ignore"):  # about the file's own escapes
                return Told(path, own, _claim(ast.parse(text)))
    except _outside.OutsideError as error:
        return Told(path, own, None, str(error).removeprefix(f"{path}: "))


def _claim(tree: ast.Module) -> str | None:
    """The text that `EXPERIMENT = Experiment(claim="...")` gives, if it is a text."""
    for node in tree.body:
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
            continue
        if any(isinstance(t, ast.Name) and t.id == "EXPERIMENT" for t in node.targets):
            for keyword in node.value.keywords:
                value = keyword.value
                if keyword.arg == "claim" and isinstance(value, ast.Constant):
                    return value.value if isinstance(value.value, str) else None
    return None


def result_path(path: pathlib.Path) -> pathlib.Path:
    """Where the committed result of an experiment's file lies: `results/` beside its family."""
    return path.resolve().parents[1] / "results" / f"{path.stem}.json"


def find(name: str) -> Found:
    """Loads an experiment; its file is run.

    Args:
      name: as `names` tells it, or the path of a `.py` file with an `EXPERIMENT`.

    Returns:
      The experiment and where it is.

    Raises:
      ValueError: if there is none of that name, or two are; if the file fails, or holds no
        `EXPERIMENT`; one line with the file.
    """
    if name.endswith(".py"):
        path = pathlib.Path(name)
        if not path.is_file():
            raise ValueError(f"experiment file {name!r} does not exist")
    else:
        path = _named(name)
    module = _user_files.module(str(path), "experiment")
    with _outside.calling(path, "experiment"):
        experiment = getattr(module, "EXPERIMENT", missing := object())
    if experiment is missing:
        raise ValueError(f"{path} has no EXPERIMENT; expected an Experiment of that name")
    if not isinstance(experiment, Experiment):
        raise ValueError(
            f"{path} has EXPERIMENT of type {type(experiment).__name__}; expected an Experiment"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return Found(path.stem, path.resolve().parent.name, path, digest, experiment)


def _named(name: str) -> pathlib.Path:
    """The one file of a name."""
    files = [told for told in listed() if told.path.stem == name]
    usable = [told for told in files if not told.problem]
    if len({told.path.read_bytes() for told in usable}) > 1:
        places = ", ".join(shown(told.path) for told in usable)
        raise ValueError(
            f"experiment {name!r} may be any of {places}; give the path of the one that is meant"
        )
    if usable:  # in a clone beside an installed polgrad, the clone's
        return usable[-1].path
    if files:
        raise ValueError(f"experiment {name!r}: {files[0].path}: {files[0].problem}")
    known = names()
    hint = _names.hint(name, known)
    raise ValueError(f"experiment {name!r} is unknown{hint} (known: {', '.join(known)})")


def shown(path: pathlib.Path) -> str:
    """A path as seen from the working directory where it lies in it."""
    here = pathlib.Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
