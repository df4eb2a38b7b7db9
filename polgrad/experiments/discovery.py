"""From a name or a path to an experiment: one file each, in `experiments/<family>/<name>.py`."""

import difflib
import hashlib
import pathlib
from typing import NamedTuple

import polgrad
from polgrad import _user_files
from polgrad.experiments.types import Experiment


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


def names() -> dict[str, pathlib.Path]:
    """All experiments by name: those that come with polgrad, and the working directory's own."""
    package = pathlib.Path(polgrad.__file__).resolve().parent
    own = _files(package / "_papers") or _files(package.parent / "experiments")
    return own | _files(pathlib.Path.cwd() / "experiments")


def _files(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Experiments of a folder, told by their text: nothing else in it is run."""
    files = (p for p in sorted(root.glob("*/*.py")) if not p.stem.startswith("_"))
    return {p.stem: p for p in files if "\nEXPERIMENT = " in p.read_text()}


def result_path(path: pathlib.Path) -> pathlib.Path:
    """Where the committed result of an experiment's file lies: `results/` beside its family."""
    return path.resolve().parents[1] / "results" / f"{path.stem}.json"


def find(name: str) -> Found:
    """Loads an experiment.

    Args:
      name: as `names` tells it, or the path of a `.py` file with an `EXPERIMENT`.

    Returns:
      The experiment and where it is.

    Raises:
      ValueError: if there is none of that name, or the file holds no `EXPERIMENT`.
    """
    if name.endswith(".py"):
        path = pathlib.Path(name)
        if not path.is_file():
            raise ValueError(f"experiment file {name!r} does not exist")
    else:
        known = names()
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"experiment {name!r} is unknown{hint} (known: {', '.join(known)})")
        path = known[name]
    experiment = getattr(_user_files.load(path), "EXPERIMENT", None)
    if not isinstance(experiment, Experiment):
        raise ValueError(
            f"{path} has EXPERIMENT of type {type(experiment).__name__}; expected an Experiment"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return Found(path.stem, path.resolve().parent.name, path, digest, experiment)
