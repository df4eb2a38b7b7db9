"""An experiment whose cells are cheap and can misbehave, as the text of its file."""

# Arms on the host: a cell is a matter of milliseconds, and it can misbehave.
WORLD = '''
import dataclasses
import os
import pathlib
import signal
import time

import numpy as np

from polgrad import experiments


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
    with pathlib.Path(os.environ["RUNS_LOG"]).open("a") as log:
        log.write(f"{settings.gain},{settings.kind},{seed} {os.getpid()}\\n")
    time.sleep(settings.pause)
    return {"step": np.arange(2), "score": np.array([0.0, settings.gain * (1 + seed)])}


EXPERIMENT = experiments.Experiment(
    paper=experiments.Paper("Worlds", "Nobody", 2020, "2001.00001"),
    claim="Scores are positive.",
    arms={"only": experiments.HostArm(arm)},
    settings=Settings(),
    smoke={},
    metrics={"score": "gain times seeds"},
    holds=lambda r: experiments.verdict(experiments.at_least("x", r.final("only", "score"), 0)),
    baseline="only",
    at_scale="no need",
    axis="step",
)
'''
