"""Tasks whose answers are there before the run: logged samples, demonstrations, pairs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, Num

from polgrad import _checks
from polgrad.algorithms import Supervised
from polgrad.contract import Batch
from polgrad.small.policies import Policy, check_tokens
from polgrad.small.running import Schedule, run

__all__ = ["Answers", "Log", "imitate"]


class _Rows:
    """A task that draws rows of data, each at most once."""

    questions: Any

    @property
    def size(self) -> int:
        """Number of rows."""
        return jax.tree.leaves(self.questions)[0].shape[0]

    def draw(self, key: Key[Array, ""], count: int) -> Int[Array, "Q"]:
        """Different rows in random order; all of them where `count` is the size.

        Raises:
          ValueError: if there are fewer rows.
        """
        if count > self.size:
            raise ValueError(
                f"questions is {count}, expected at most {self.size}, the rows of the data"
            )
        return jax.random.permutation(key, self.size)[:count]

    def ids(self, rows: Int[Array, "Q"]) -> Int[Array, "Q"]:
        """The rows themselves."""
        return rows

    def asked(self, rows: Int[Array, "Q"]) -> Any:
        """The questions of rows, as the policy reads them."""
        return jax.tree.map(lambda x: x[rows], self.questions)


@dataclasses.dataclass(frozen=True, eq=False)
class Log(_Rows):
    """Samples of another policy with their rewards, as the task of `small.run`.

    Use it for off-policy learning: the run draws no samples. A rollout is `Schedule.questions` rows
    of the log, each with its G = `Schedule.group` samples; an epoch over the log is a rollout of all
    rows in many mini-batches. The importance ratio, for algorithms that have one, is that to the
    policy which drew the log. Algorithms without a ratio may use the log as well: the samples are
    another policy's from the start. `Previous(every=1)` is here the trained policy at the start of
    the rollout, which is scored anew; it did not draw the log.

    Attributes:
      questions: arrays with a leading axis of N rows, which the policy reads.
      completions: tokens of the samples; any number where the mask is 0.
      behavior_logp: log-probabilities of the tokens under the policy that drew them, in nats; any
        number, NaN too, where the mask is 0.
      rewards: of the samples; NaN where a sample has none, or is to be left out.
      mask: tokens that count; all of them by default.
      stopped: whether a sample ended before the longest length; all of them by default.

    Raises:
      ValueError: for arrays whose shapes do not match.
    """

    questions: Any
    completions: Int[Array, "N G T"]
    behavior_logp: Float[Array, "N G T"]
    rewards: Float[Array, "N G"]
    mask: Num[Array, "N G T"] | Bool[Array, "N G T"] | None = None
    stopped: Bool[Array, "N G"] | None = None

    def __post_init__(self):
        _checks.rank("completions", self.completions, 3, "[N, G, T], rows, samples, tokens")
        shape = self.completions.shape
        _checks.shape("behavior_logp", self.behavior_logp, shape, "[N, G, T], as the completions")
        _checks.shape("rewards", self.rewards, shape[:2], "[N, G], one number a sample")
        if self.mask is not None:
            _checks.shape("mask", self.mask, shape, "[N, G, T], as the completions")
        if self.stopped is not None:
            _checks.shape("stopped", self.stopped, shape[:2], "[N, G], one value a sample")
        _same_rows(self.questions, shape[0])

    def check_tokens(self, vocabulary: int) -> None:
        """Refuses samples with tokens that a policy does not have.

        Raises:
          ValueError: if a token that counts is not in 0..vocabulary-1; traced ones are not checked.
        """
        check_tokens("completions", self.completions, self.mask, vocabulary)

    def logged(self, rows: Int[Array, "Q"]) -> Batch:
        """The samples of rows: the log's arrays by name, with leading axes [Q, G].

        Where the mask is 0, tokens and log-probabilities are 0, as in a rollout.
        """
        completions, mask, stopped = self.completions[rows], self.mask, self.stopped
        mask = jnp.ones_like(completions, bool) if mask is None else mask[rows] > 0
        return {
            "completions": jnp.where(mask, completions, 0),
            "mask": mask,
            "behavior_logp": jnp.where(mask, self.behavior_logp[rows], 0.0),
            "stopped": jnp.ones(completions.shape[:2], bool) if stopped is None else stopped[rows],
            "rewards": self.rewards[rows],
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Answers(_Rows):
    """Questions with ready answers, as the task of `small.run`: demonstrations or pairs.

    Use it for the algorithms that read columns of the data: `answer` for `algorithms.Supervised`,
    `chosen` and `rejected` for the pair losses. All answers have one length.

    Attributes:
      questions: arrays with a leading axis of N rows, which the policy reads.
      columns: by name of the column, the tokens of an answer to each question.

    Raises:
      ValueError: for arrays whose shapes do not match.
    """

    questions: Any
    columns: Mapping[str, Int[Array, "N T"]]

    def __post_init__(self):
        for name, tokens in self.columns.items():
            _checks.rank(f"columns[{name!r}]", tokens, 2, "[N, T], rows and tokens")
            _same_rows(self.questions, tokens.shape[0])

    def check_tokens(self, vocabulary: int) -> None:
        """Refuses answers with tokens that a policy does not have.

        Raises:
          ValueError: if a token is not in 0..vocabulary-1; traced ones are not checked.
        """
        for name, tokens in self.columns.items():
            check_tokens(f"columns[{name!r}]", tokens, None, vocabulary)

    def answers(self, rows: Int[Array, "Q"], columns: tuple[str, ...]) -> tuple[Array, Array]:
        """`(completions, mask)` of rows, `[Q, R, T]`, an answer for each of R columns.

        Raises:
          ValueError: if a column is not there.
        """
        for name in columns:
            if name not in self.columns:
                known = ", ".join(self.columns)
                raise ValueError(f"the algorithm reads column {name!r}, expected one of {known}")
        completions = jnp.stack([self.columns[name][rows] for name in columns], axis=1)
        return completions, jnp.ones_like(completions, bool)


def imitate(
    key: Key[Array, ""],
    params: Any,
    questions: Any,
    answers: Int[Array, "N T"],
    *,
    policy: Policy,
    optimizer: optax.GradientTransformation,
    epochs: int,
    batch: int,
) -> Any:
    """Supervised learning of answers, such as a warm start from noisy ones.

    Args:
      key: of the order.
      params: initial parameters.
      questions: arrays with a leading axis of N.
      answers: tokens, one answer to each question.
      policy: that is trained.
      optimizer: from optax.
      epochs: passes over the answers.
      batch: answers of an update.

    Returns:
      The final parameters.

    Raises:
      ValueError: if `batch` does not divide N.
    """
    task = Answers(questions, {"answer": answers})
    if batch < 1 or task.size % batch:
        raise ValueError(f"batch is {batch}, expected a divisor of the {task.size} answers")
    schedule = Schedule(epochs, task.size, 1, points=1, mini_batches=task.size // batch)
    return run(
        key,
        Supervised(),
        policy=policy,
        task=task,
        schedule=schedule,
        optimizer=optimizer,
        params=params,
    )[0]


def _same_rows(questions: Any, rows: int) -> None:
    for x in jax.tree.leaves(questions):
        if x.shape[0] != rows:
            raise ValueError(f"questions has {x.shape[0]} rows, expected {rows}, as the answers")
