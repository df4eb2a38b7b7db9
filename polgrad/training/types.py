"""The four functions that make an algorithm, and what passes between them and the loop."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxtyping import Array, Float

Batch = dict[str, Array]
"""Arrays with one leading axis of units (a sequence, or a pair of sequences for `[B, 2, ...]`).

Keys every batch has: `prompts [B, P]`, `prompt_lengths [B]`, `completions [B, T]`,
`completion_lengths [B]`, `mask [B, T]` and `weights` (`[B, T]` for token losses, `[B]` for
sequence and pair losses). Batches made from rollouts also have `behavior_logp [B, T]`.
The rest belongs to the algorithm.
"""


class Outputs(NamedTuple):
    """What the current policy says of a batch; 0 where the mask is 0.

    Attributes:
      logp: log-probabilities of the completion tokens, in nats.
      entropy: entropy of the distribution at each token, in nats; None unless the algorithm
        requires it.
      values: the value head's estimates; None unless the algorithm requires them.
    """

    logp: Float[Array, "B T"]
    entropy: Float[Array, "B T"] | None = None
    values: Float[Array, "B T+1"] | None = None


class Context(NamedTuple):
    """The sizes of a run that an algorithm may depend on.

    Attributes:
      group_size: samples of one prompt in a batch of rollouts.
      max_tokens: longest completion.
      num_prompts: prompts in the training set; `prompt_ids` index it.
      on_policy: one optimiser update for each rollout. The behaviour log-probability is then
        the stopped current one, and the ratio exactly 1.
    """

    group_size: int
    max_tokens: int
    num_prompts: int
    on_policy: bool


def _no_state(key) -> tuple:
    return ()


def _select_everything(outputs: Outputs, batch: Batch, key) -> Batch:
    return batch


class Algorithm(NamedTuple):
    """Four pure functions; the loop knows nothing else of an algorithm.

    Attributes:
      prepare: `(algorithm_state, experience, key) -> (algorithm_state, batch, metrics)`. The
        experience holds the rollout's arrays with `rewards [N]`, `valid [N]`, and whatever
        `requires` asks for. Runs once for each rollout, on the whole of it.
      loss: `(outputs, batch) -> (sum, {name: (sum, count)})`. A sum: the weights hold the global
        divisor, so micro-batches and shards just add. It has no key, because a number drawn here
        would depend on the split: noise is an array of the batch, made in `prepare` or `select`.
      init: `(key) -> algorithm_state`, saved with the run.
      select: `(outputs, batch, key) -> batch`, on the whole optimiser batch with stopped outputs,
        before each update. The default is free.
      requires: of `"reference"` (adds `reference_logp`), `"values"` (a value head; adds
        `values`), `"entropy"` (the loss reads `outputs.entropy`, which is None otherwise).
      source: what a batch is made of: `"rollouts"`, `"demonstrations"` or `"pairs"`.
      opponent: None, or the weight of the reference in the geometric mixture that a second
        rollout is sampled from (adds `opponent_rewards`, or `preferences`).
      rows: what a row of a batch made from rollouts is: one of the `"samples"`, or a whole
        `"group"`. Mini-batches and micro-batches must divide their number.
      reuse: whether a rollout may serve several updates. False for losses without an importance
        ratio: after the first update their samples are another policy's.
      warnings: sentences for the user before the first step: changed settings without
        effect at these sizes, gradients with a known bias.
    """

    prepare: Callable[[Any, Batch, Array], tuple[Any, Batch, Mapping[str, Array]]]
    loss: Callable[[Outputs, Batch], tuple[Array, Mapping[str, tuple[Array, Array]]]]
    init: Callable[[Array], Any] = _no_state
    select: Callable[[Outputs, Batch, Array], Batch] = _select_everything
    requires: frozenset[str] = frozenset()
    source: str = "rollouts"
    opponent: float | None = None
    rows: str = "samples"
    reuse: bool = True
    warnings: tuple[str, ...] = ()

    @property
    def selects(self) -> bool:
        """Whether `select` does anything, which costs a forward pass."""
        return self.select is not _select_everything

    def without_selection(self) -> "Algorithm":
        """The same for batches from which `select` has selected."""
        return self._replace(select=_select_everything)


class TrainState(NamedTuple):
    """Everything a step reads and writes; a plain tree, donated to the step."""

    params: Any
    optimizer: Any
    algorithm: Any
    step: Array
    skipped: Array
    """Updates skipped in a row because the loss or a gradient was not finite."""
