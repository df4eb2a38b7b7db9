"""What an experiment is: a paper, its arms, its claim as a check, and what became of it."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Key

from polgrad import statistics

Outcome = Literal["holds", "does not hold", "undecided"]
# A pure function of a key and settings; its curves are arrays over the points of the axis.
PureArm = Callable[[Key[Array, ""], Any], Mapping[str, Array]]


@dataclasses.dataclass(frozen=True)
class HostArm:
    """An arm with a loop on the host, such as a training run of a real language policy.

    Its seeds run one after the other, and each is saved when it ends.

    Attributes:
      function: `(seed, settings, directory) -> {metric: points}`, with an integer seed and a
        directory of its own that outlives a kill, for checkpoints.
    """

    function: Callable[[int, Any, pathlib.Path], Mapping[str, np.ndarray]]


Arm = PureArm | HostArm


@dataclasses.dataclass(frozen=True)
class Paper:
    """Where a claim comes from.

    Attributes:
      title: of the paper.
      authors: first author and others, as cited.
      year: of the first version.
      arxiv: its arXiv id.
    """

    title: str
    authors: str
    year: int
    arxiv: str

    def __post_init__(self):
        _texts(self, "title", "authors", "arxiv")
        if not isinstance(self.year, int):
            raise ValueError(f"year is {self.year!r}, expected a whole number")


def _texts(found: Any, *names: str) -> None:
    """Fields that stand in the result as text are text."""
    for name in names:
        if not isinstance(getattr(found, name), str):
            raise ValueError(f"{name} is {getattr(found, name)!r:.60}, expected text")


class Check(NamedTuple):
    """One comparison of seeds with a threshold.

    Attributes:
      text: what is compared, as a short sentence.
      value: interquartile mean over seeds.
      low: lower end of its 95% bootstrap interval.
      high: upper end.
      outcome: decided only when the whole interval lies on one side of the threshold.
    """

    text: str
    value: float
    low: float
    high: float
    outcome: Outcome


class Verdict(NamedTuple):
    """Whether a claim showed, with the numbers that decide.

    Attributes:
      outcome: `"holds"`, `"does not hold"` or `"undecided"`.
      checks: the comparisons behind it.
    """

    outcome: Outcome
    checks: tuple[Check, ...]


class Results(NamedTuple):
    """Curves of all arms at common seeds.

    Attributes:
      settings: those the arms ran with.
      curves: arm, then metric, to `[seeds, points]` (or `[seeds]` for a single figure).
    """

    settings: Any
    curves: Mapping[str, Mapping[str, np.ndarray]]

    def final(self, arm: str, metric: str) -> Float[np.ndarray, " S"]:
        """The last point of every seed."""
        curve = np.asarray(self.curves[arm][metric], np.float64)
        return curve if curve.ndim == 1 else curve[:, -1]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A paper's claim at a size that anyone can re-run.

    Attributes:
      paper: where the claim comes from.
      claim: one sentence.
      arms: name to arm, a pure function `(key, settings) -> {metric: points}`. Seeds are vmapped,
        and every arm sees the same keys, so arms are compared seed by seed. A `HostArm` runs
        its seeds one by one.
      settings: the full size, a frozen dataclass.
      smoke: changes of settings that make it a matter of seconds.
      metrics: name to meaning; the first is the one that the table compares.
      holds: from results to the verdict.
      baseline: the arm that the others are compared with.
      at_scale: the run that a user with accelerators would do, in one line.
      axis: the metric that every arm returns as its horizontal axis.
      better: whether more or less of the first metric is better.
      seeds: how many by default.
      note: what a reader of the verdict should know, such as what was tried.
    """

    paper: Paper
    claim: str
    arms: Mapping[str, Arm]
    settings: Any
    smoke: Mapping[str, Any]
    metrics: Mapping[str, str]
    holds: Callable[[Results], Verdict]
    baseline: str
    at_scale: str
    axis: str = "update"
    better: Literal["higher", "lower"] = "higher"
    seeds: int = 5
    note: str = ""

    def __post_init__(self):
        _texts(self, "claim", "at_scale", "note", "axis")
        if self.better not in ("higher", "lower"):
            raise ValueError(f"better is {self.better!r}, expected 'higher' or 'lower'")
        if not isinstance(self.seeds, int) or self.seeds < 1:
            raise ValueError(f"seeds is {self.seeds!r}, expected at least 1")
        for name in self.arms:
            # The name of an arm is the name of a file, of which some systems have 255 bytes.
            if not re.fullmatch(r"[\w.+=,@ -]{1,100}", str(name)) or name.startswith((".", " ")):
                raise ValueError(f"an arm is called {name!r:.120}, which cannot name a file")
        if self.baseline not in self.arms:
            raise ValueError(f"baseline is {self.baseline!r}, expected one of {list(self.arms)}")
        if not self.metrics:
            raise ValueError("metrics is empty, expected at least the one that is compared")
        unknown = sorted(self.smoke.keys() - {f.name for f in dataclasses.fields(self.settings)})
        if unknown:
            raise ValueError(f"smoke changes {unknown}, which settings lack")

    @property
    def main_metric(self) -> str:
        """The metric that the table compares."""
        return next(iter(self.metrics))


def at_least(text: str, samples: Float[np.ndarray, " S"], threshold: float) -> Check:
    """Whether the interquartile mean over seeds is at least a threshold.

    Args:
      text: what is compared.
      samples: one number a seed; paired differences for a comparison of arms.
      threshold: the claim holds at or above it.

    Returns:
      A check that holds when the 95% interval lies at or above the threshold, does not hold when
      it lies below, and is undecided else.
    """
    value = statistics.interquartile_mean(samples)
    low, high = statistics.bootstrap_interval(samples)
    outcome = "holds" if low >= threshold else "does not hold" if high < threshold else "undecided"
    return Check(f"{text} >= {threshold:g}", value, low, high, outcome)


def at_most(text: str, samples: Float[np.ndarray, " S"], threshold: float) -> Check:
    """Whether the interquartile mean over seeds is at most a threshold; see `at_least`."""
    value = statistics.interquartile_mean(samples)
    low, high = statistics.bootstrap_interval(samples)
    outcome = "holds" if high <= threshold else "does not hold" if low > threshold else "undecided"
    return Check(f"{text} <= {threshold:g}", value, low, high, outcome)


def verdict(*checks: Check) -> Verdict:
    """All checks together: one that does not hold decides, and one undecided leaves it open."""
    if not checks:
        raise ValueError("a verdict needs at least one check, got none")
    outcomes = [check.outcome for check in checks]
    for outcome in ("does not hold", "undecided"):
        if outcome in outcomes:
            return Verdict(outcome, checks)
    return Verdict("holds", checks)
