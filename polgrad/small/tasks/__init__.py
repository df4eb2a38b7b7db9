"""What a small run learns: questions, and what their answers are worth.

Addition                        two-digit addition, for warm starts and logged data (addition.py)
CipherLadder                    levels of difficulty, each resting on the easier ones (cipher.py)
Listed                          one question whose completions have known rewards (listed.py)
ModularSums                     easy and hard prompts; learning the easy ones lowers the entropy
                                that the hard ones need (modular_sums.py)
OneQuestion                     the base of tasks with one question (listed.py)
PeakBandit, length_rewards      a peak of reward far from the reference, or under it (peaks.py)
"""

from typing import Any, Protocol

from jaxtyping import Array, Bool, Float, Int, Key

from polgrad.small.tasks.addition import Addition
from polgrad.small.tasks.cipher import CipherLadder
from polgrad.small.tasks.listed import Listed, OneQuestion
from polgrad.small.tasks.modular_sums import ModularSums
from polgrad.small.tasks.peaks import PeakBandit, length_rewards

__all__ = [
    "Addition",
    "CipherLadder",
    "Listed",
    "ModularSums",
    "OneQuestion",
    "PeakBandit",
    "Task",
    "length_rewards",
]


class Task(Protocol):
    """Questions and rewards, as the tasks of this package have them.

    A task may have more methods, which the algorithms ask for that read them:
    `prefer(questions, completions, others) -> [Q, G]`, the probability that a completion is
    preferred to the opponent's; and `answers(questions, columns) -> (completions, mask)`, both
    `[Q, R, T]` with an answer for each of R columns such as `chosen` and `rejected`.

    Where `draw` gives rows of data, `asked(rows)` gives the questions that the policy reads, and
    `logged(rows)` the samples that stand in place of the policy's (see `small.Log`); a task with
    `logged` needs no `reward`. Where it has `check_tokens(vocabulary)`, a run calls that with the
    number of the policy's tokens.

    A task whose questions fall into categories, for a curriculum to choose from, has `arms`, how many
    there are, and `draw(key, count, arm=None)`, where `arm [Q]` is the category of each question, in
    0..arms-1; without it the task chooses.

    Attributes:
      size: how many different questions there are; `ids` are below it.
    """

    size: int

    def draw(self, key: Key[Array, ""], count: int) -> Any:
        """`count` questions: any arrays with that leading axis."""

    def ids(self, questions: Any) -> Int[Array, "Q"]:
        """A number for each question, the same whenever it is drawn."""

    def reward(
        self, questions: Any, completions: Int[Array, "Q G T"], mask: Bool[Array, "Q G T"]
    ) -> Float[Array, "Q G"]:
        """One number for each completion; NaN where there is none."""
