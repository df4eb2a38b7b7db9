"""An experiment whose cells are cheap and can misbehave, as the text of its file."""

# Arms on the host: a cell is a matter of milliseconds, and it can misbehave.
WORLD = '''"""A small experiment."""

import dataclasses
import os
import pathlib
import signal
import sys
import time

import numpy as np

from polgrad import experiments


class Own(BaseException):
    pass


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a cell behaves.

    Attributes:
      gain: of its outcome.
      kind: of its behaviour.
      pause: seconds that a seed takes.
      limits: a pair.
    """

    gain: float = 1.0
    kind: str = "good"
    pause: float = 0.0
    limits: tuple[float, float] = (0.0, 1.0)


def arm(seed, settings, directory):
    if settings.kind == "raises":
        raise RuntimeError(f"no such world at gain {settings.gain}")
    if settings.kind == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if settings.kind == "leaves":
        sys.exit(0)
    if settings.kind == "own":
        raise Own("enough")
    if settings.kind == "objects":
        return {"step": np.arange(2), "score": np.array([None, None])}
    if settings.kind == "seconds":
        return {"step": np.arange(2), "score": np.arange(2), "seconds": np.arange(2)}
    if settings.kind == "shapes":
        return {"step": np.arange(2 + seed), "score": np.arange(2 + seed)}
    if settings.kind == "scalar":
        return 5
    if place := os.environ.get("RUNS_LOG"):
        with pathlib.Path(place).open("a") as log:
            log.write(f"{settings.gain},{settings.kind},{seed} {os.getpid()}\\n")
    time.sleep(settings.pause)
    return {"step": np.arange(2), "score": np.array([0.0, settings.gain * (1 + seed)])}


def holds(results):
    if results.settings.kind == "check":
        return 1 / 0
    if results.settings.kind == "nothing":
        return None
    return experiments.verdict(experiments.at_least("x", results.final("only", "score"), 0))


EXPERIMENT = experiments.Experiment(
    paper=experiments.Paper("Worlds", "Nobody", 2020, "2001.00001"),
    claim="Scores are positive.",
    arms={"only": experiments.HostArm(arm)},
    settings=Settings(),
    smoke={},
    metrics={"score": "gain times seeds"},
    holds=holds,
    baseline="only",
    at_scale="no need",
    axis="step",
    seeds=2,
)
'''
