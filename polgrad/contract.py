"""What an algorithm, a curriculum and a learner are, and what passes between them: types alone.

A settings class, such as `algorithms.GRPO`, builds an `Algorithm` for the sizes of a run. Whoever
runs it (`training.train` on a language policy, a compiled run on a small one) collects samples or
data, calls `prepare` on the whole of it, and makes updates with the gradient of `loss`. The
algorithm knows nothing of networks, tokens or devices; whoever runs it knows no algorithm by name.
"""

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Int, Key

from polgrad._scalars import in_range

Batch = dict[str, Array]
"""Arrays with one leading axis of units: sequences, pairs, groups or lists (see `Unit`).

With `...` for the axes of a unit (none for a sequence), every batch has: `prompts [B, ..., P]`,
`prompt_lengths [B, ...]`, `completions [B, ..., T]`, `completion_lengths [B, ...]`,
`mask [B, ..., T]` and `weights`, the weight of each loss in the sum (`[B, T]` for a loss of tokens,
`[B]` for a loss of units). Batches made from samples also have `behavior_logp [B, ..., T]`. The
rest belongs to the algorithm. Every array has the leading axis, because batches are split by units:
a number that all units share is repeated.
"""


class Needs(NamedTuple):
    """What a loss, or `prepare`, reads of the policy besides the log-probabilities.

    Attributes:
      entropy: `Outputs.entropy`, with its gradient.
      values: `Outputs.values`, and `values [B, T+1]` of the sampling policy in the experience. The
        policy then has a value head.
    """

    entropy: bool = False
    values: bool = False


class Outputs(NamedTuple):
    """What the current policy says of a batch; 0 where the mask is 0.

    Attributes:
      logp: log-probabilities of the completion tokens, in nats.
      entropy: entropy of the distribution at each token, in nats; None unless needed.
      values: the value head's estimates, before each token and after the last; None unless needed.
    """

    logp: Float[Array, "*B T"]
    entropy: Float[Array, "*B T"] | None = None
    values: Float[Array, "*B T+1"] | None = None


class Context(NamedTuple):
    """The sizes of a run that an algorithm may depend on.

    Attributes:
      group_size: samples of one prompt in a rollout.
      max_tokens: longest completion.
      num_prompts: prompts in the training set; `prompt_ids` index it.
      on_policy: one optimiser update for each rollout. The behaviour log-probability is then
        the stopped current one, and the ratio exactly 1.
    """

    group_size: int
    max_tokens: int
    num_prompts: int
    on_policy: bool


# --- units: what a loss is one number of -----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sequence:
    """A row is one answer: `[B, T]`. Losses of tokens and of whole answers."""

    axes: ClassVar[int] = 0


@dataclasses.dataclass(frozen=True)
class Pair:
    """A row holds one answer for each role: `[B, R, T]`.

    Attributes:
      roles: names of the answers, in their order on the second axis.
    """

    axes: ClassVar[int] = 1

    roles: tuple[str, ...] = ("chosen", "rejected")


@dataclasses.dataclass(frozen=True)
class Group:
    """A row holds the samples of one prompt: `[P, G, T]`, with `valid [P, G]`."""

    axes: ClassVar[int] = 1


@dataclasses.dataclass(frozen=True)
class List:
    """A row holds the ranked or scored answers of one prompt: `[B, K, T]`, with `valid [B, K]`."""

    axes: ClassVar[int] = 1


Unit = Sequence | Pair | Group | List
"""Mini-batches, micro-batches and devices divide units; a unit is never split."""


# --- named policies: whose log-probabilities a batch has -------------------------------------------


@dataclasses.dataclass(frozen=True)
class Initial:
    """The policy that training started from. It never changes and is saved once."""


@dataclasses.dataclass(frozen=True)
class Previous:
    """A copy of the trained policy that is made anew every few rollouts.

    Before rollout n (from 1) the copy is made where (n - 1) is a multiple of `every`. With
    `every=1` no copy is held: where the trained policy samples, that is the policy which samples,
    and its log-probabilities are `behavior_logp`. Where another policy drew the samples (a
    `small.Log`), it is the trained policy at the start of the rollout, and `behavior_logp` are the
    other policy's.

    Attributes:
      every: rollouts between copies, at least 1.
    """

    every: int

    def __post_init__(self):
        if not (isinstance(self.every, int) and self.every >= 1):
            raise ValueError(f"every is {self.every!r}, expected a whole number of at least 1")


@dataclasses.dataclass(frozen=True)
class Average:
    """An exponential moving average of the trained parameters, in float32.

    After the updates of each rollout, average <- decay average + (1 - decay) parameters.

    Attributes:
      decay: in [0, 1]; at 1 the average stays the first policy.
    """

    decay: float

    def __post_init__(self):
        in_range("decay", self.decay, low=0.0, high=1.0)


NamedPolicy = Initial | Previous | Average
"""Each adds `<name>_logp` to the experience: it scores every rollout once."""


# --- what a step learns from ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The geometric mixture of the trained and a named policy, proportional to pi^(1-w) name^w.

    Attributes:
      name: of the other policy.
      weight: w, its weight in [0, 1]; 1 samples from the named policy alone, 0 from the trained one.
    """

    name: str
    weight: float

    def __post_init__(self):
        in_range("weight", self.weight, low=0.0, high=1.0)


@dataclasses.dataclass(frozen=True)
class Samples:
    """Answers sampled from the trained policy.

    Attributes:
      versus: a second rollout for the same prompts, sampled from this mixture. The experience then
        has its rewards, `opponent_rewards`, or `preferences`, where a preference compares the two.
    """

    versus: Mixture | None = None


@dataclasses.dataclass(frozen=True)
class Collect:
    """Where the experience of a step comes from.

    Attributes:
      samples: how answers are sampled; None where all of them are in the data.
      columns: the columns of the data whose texts are the answers: one for a `Sequence`, one for
        each role of a `Pair`. Only without samples.
    """

    samples: Samples | None = Samples()
    columns: tuple[str, ...] = ()

    def __post_init__(self):
        if (self.samples is None) != bool(self.columns):
            raise ValueError(
                f"samples is {self.samples} and columns is {self.columns}, expected either samples "
                "or columns of the data"
            )


def _no_state(key: Array) -> tuple:
    return ()


def _everything(outputs: Outputs, batch: Batch, key: Array) -> Batch:
    return batch


def _unmoved(state: Any, metrics: Mapping[str, Array]) -> Any:
    return state


class Algorithm(NamedTuple):
    """Five pure functions, and what they read.

    Attributes:
      prepare: `(state, experience, key) -> (state, batch, metrics)`, once for each rollout, on the
        whole of it: rewards to advantages, filters, weights. The experience holds the rollout's
        arrays, with `rewards [N]` and `valid [N]` where answers are sampled, and whatever `needs`
        and `policies` ask for.
      loss: `(outputs, batch) -> (sum, {name: (sum, count)})`. A sum: the weights hold the divisor of
        the whole batch, so that micro-batches and devices just add. The loss has no key, because a
        number drawn here would depend on the split: noise is an array of the batch, made in
        `prepare` or `select`.
      init: `(key) -> state`, the algorithm's own arrays, saved with the run.
      select: `(outputs, batch, key) -> batch`, on the whole optimiser batch with stopped outputs,
        before each update. The default costs nothing; any other costs a forward pass.
      observe: `(state, metrics) -> state`, once a step, after its updates, with the metrics that
        the step reports (means over the updates). For controllers, such as that of an adaptive KL.
      unit: what a row of the batch is.
      collect: where the experience comes from.
      policies: by name, the policies that score each rollout besides the trained one.
      needs: what `loss` and `prepare` read of the policy besides the log-probabilities.
      reuse: whether a rollout may serve several updates. False for policy gradients without an
        importance ratio: after the first update their samples are another policy's.
      warnings: sentences for the user before the first step: changed settings without effect at these
        sizes, gradients with a known bias.
    """

    prepare: Callable[[Any, Batch, Array], tuple[Any, Batch, Mapping[str, Array]]]
    loss: Callable[[Outputs, Batch], tuple[Array, Mapping[str, tuple[Array, Array]]]]
    init: Callable[[Array], Any] = _no_state
    select: Callable[[Outputs, Batch, Array], Batch] = _everything
    observe: Callable[[Any, Mapping[str, Array]], Any] = _unmoved
    unit: Unit = Sequence()
    collect: Collect = Collect()
    policies: Mapping[str, NamedPolicy] = types.MappingProxyType({})
    needs: Needs = Needs()
    reuse: bool = True
    warnings: tuple[str, ...] = ()

    @property
    def samples(self) -> bool:
        """Whether answers are sampled, and not read from the data."""
        return self.collect.samples is not None

    @property
    def selects(self) -> bool:
        """Whether `select` does anything, which costs a forward pass."""
        return self.select is not _everything

    @property
    def observes(self) -> bool:
        """Whether `observe` does anything."""
        return self.observe is not _unmoved

    def without_selection(self) -> "Algorithm":
        """The same for batches from which `select` has selected."""
        return self._replace(select=_everything)

    def check(self) -> None:
        """Checks that the policies that the algorithm names can be had.

        Raises:
          ValueError: a policy of an unknown kind, a mixture with a policy that is not named, the
            sampling policy in an algorithm that samples nothing.
        """
        for name, kind in self.policies.items():
            if not isinstance(kind, NamedPolicy):
                raise ValueError(
                    f"policies has {kind!r} for {name!r}, expected Initial(), Previous(every) or "
                    "Average(decay)"
                )
            if isinstance(kind, Previous) and kind.every == 1 and not self.samples:
                raise ValueError(
                    f"policies has Previous(every=1) for {name!r}, which is the sampling policy, but "
                    "the algorithm reads its answers from the data"
                )
        versus = self.collect.samples and self.collect.samples.versus
        if versus and versus.name not in self.policies:
            known = ", ".join(self.policies) or "none"
            raise ValueError(
                f"collect mixes in policy {versus.name!r}, expected one of policies ({known})"
            )

    def rows(self, prompts: int, group_size: int) -> int:
        """Units in the batch of a step.

        Args:
          prompts: prompts, or rows of the data, of a step.
          group_size: samples of each prompt.
        """
        return prompts * group_size if self.samples and self.unit == Sequence() else prompts


@runtime_checkable
class Settings(Protocol):
    """The settings of an algorithm: a frozen dataclass whose fields are flags of the command."""

    def build(self, context: Context) -> Algorithm:
        """The algorithm for a run of these sizes.

        Raises:
          ValueError: settings out of range, or sizes at which the algorithm cannot learn.
        """


# --- curricula: what a rollout asks ----------------------------------------------------------------


def _unpaid(state: Any, arm: Array, signal: Array, valid: Array) -> Any:
    return state


class Curriculum(NamedTuple):
    """Chooses the questions of each rollout among the arms of a task: three pure functions.

    An arm is a category of questions, such as a level of difficulty; arms count from 0.

    Attributes:
      init: `(arms) -> state`, where `arms` is how many the task has. The state is a tree of arrays,
        saved with the run.
      choose: `(state, step, noise [P]) -> arm [P]`, before each rollout: the arm of each of the P
        questions. `step` counts the rollouts from 0; the noise is uniform in [0, 1).
      update: `(state, arm [N], signal [N], valid [N]) -> state`, once for each rollout, after
        `Algorithm.prepare`, with one entry for each of the N samples: the arm of its question, the
        mean of |advantage| over its tokens, and whether it has a reward. The default reads nothing
        and serves algorithms without advantages too.
    """

    init: Callable[[int], Any]
    choose: Callable[[Any, Int[Array, ""], Float[Array, "P"]], Int[Array, "P"]]
    update: Callable[
        [Any, Int[Array, "N"], Float[Array, "N"], Bool[Array, "N"]],
        Any,
    ] = _unpaid

    @property
    def learns(self) -> bool:
        """Whether `update` does anything, and so reads the advantages of the algorithm."""
        return self.update is not _unpaid


@runtime_checkable
class CurriculumSettings(Protocol):
    """The settings of a curriculum: a frozen dataclass whose fields are numbers and parts."""

    def build(self) -> Curriculum:
        """The functions."""


# --- learners: agents in worlds, and agents that learn from recorded data ----------------------------


def _whole(settings: Any, *names: str) -> None:
    """Checks that fields are whole numbers of at least 1."""
    for name in names:
        value = getattr(settings, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is {value!r}, expected a whole number of at least 1")


@dataclasses.dataclass(frozen=True)
class Steps:
    """The latest steps of several copies of a world, used for one update and then dropped.

    Attributes:
      steps: of each copy between updates, at least 1.
      copies: of the world that move at once, at least 1.
    """

    steps: int
    copies: int

    def __post_init__(self):
        _whole(self, "steps", "copies")


@dataclasses.dataclass(frozen=True)
class Replay:
    """Single steps drawn at random from a memory of the last ones.

    Attributes:
      size: steps that the memory holds; the oldest are overwritten.
      batch: steps of an update, at most `size`.
      every: steps of the world between two rounds of updates, at least 1.
      updates: in a round, at least 1.
    """

    size: int
    batch: int
    every: int = 1
    updates: int = 1

    def __post_init__(self):
        _whole(self, "size", "batch", "every", "updates")
        if self.batch > self.size:
            raise ValueError(f"batch is {self.batch}, expected at most size = {self.size}")


@dataclasses.dataclass(frozen=True)
class Data:
    """Windows of recorded episodes; the learner never moves while it learns.

    Attributes:
      batch: windows of an update, at least 1.
      window: consecutive steps of a window, at least 1.
    """

    batch: int
    window: int = 1

    def __post_init__(self):
        _whole(self, "batch", "window")


@dataclasses.dataclass(frozen=True)
class Nothing:
    """No batch: the learner acts, and `update` is never called."""


Wants = Steps | Replay | Data | Nothing
"""What a learner's batches are made of."""


class Learner(Protocol):
    """An agent for control: pure functions, to be traced, and what its batches are made of.

    Use it for agents that act in a world, or that learn from recorded episodes. An algorithm that
    answers prompts is an `Algorithm`. A class that derives from this one need not write `start`.

    Attributes:
      wants: what `update` is given; a learner that wants `Data` acts only when it is evaluated.
    """

    wants: Wants

    def init(self, key: Key[Array, ""], spec: Any) -> Any:
        """The state before the first step.

        Args:
          key: of the first parameters.
          spec: the world's sizes: `observation_size`, and `actions` or `action_size`, as
            `environments.gymnax_worlds.World` has them.

        Returns:
          A tree of arrays, saved with the run.
        """

    def start(self, state: Any, copies: int) -> Any:
        """What the learner remembers within an episode, before the first step of one.

        Args:
          state: of the learner.
          copies: of the world, the leading axis of each array of the memory.

        Returns:
          A tree of arrays; `()` for a learner that sees all it needs.
        """
        return ()

    def act(
        self,
        state: Any,
        memory: Any,
        observation: Float[Array, "B O"],
        key: Key[Array, ""],
        *,
        explore: bool,
    ) -> tuple[Any, Array, Mapping[str, Array]]:
        """One action for each copy of the world.

        Args:
          state: of the learner.
          memory: from `start` or the last call.
          observation: of each copy.
          key: of the choice.
          explore: whether the action is one for learning; else it is the learner's best.

        Returns:
          `(memory, action, extras)`: actions [B], or [B, D] where they are continuous; extras by
          name [B, ...], kept with the step for `update`, such as log-probabilities.
        """

    def update(
        self, state: Any, batch: Mapping[str, Array], key: Key[Array, ""]
    ) -> tuple[Any, Mapping[str, Float[Array, ""]]]:
        """Learns from one batch of what `wants` asks for.

        Returns:
          `(state, metrics)`.
        """
