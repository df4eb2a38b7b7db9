"""Distribution-level curricula: recent payments in windows, a bonus for what was rarely visited.

One step, from the advantages [B, T] of a policy update and the source of every sample:

    paid = bandit.absolute_advantage(advantages, mask)
    state, probabilities = windows.update(state, paid, source)
    source = bandit.sample_categories(probabilities, noise)

As with `bandit`, payments need every sample, groups that are all right or all wrong included.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from polgrad import _checks, running
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range
from polgrad.curricula.bandit import boltzmann

__all__ = ["Windows", "init", "mean", "push", "ucb_scores", "update"]


class Windows(NamedTuple):
    """The last W payments of each category, as ring buffers of a fixed shape.

    Attributes:
      values: payments, in no particular order, 0 where there is none yet.
      pushed: how many payments each category has had; the next one goes to pushed modulo W.
      counts: visits of each category, in the unit that the bonus counts.
    """

    values: Float[Array, "C W"]
    pushed: Int[Array, "C"]
    counts: Float[Array, "C"]


def init(categories: int, *, window: int = 300) -> Windows:
    """The state before any sample.

    Args:
      categories: C, >= 1.
      window: W, how many payments of a category count, >= 1. Too long a window remembers a policy
        that is gone.

    Returns:
      The state.

    Raises:
      ValueError: if a number is below 1.
    """
    in_range("categories", categories, low=1)
    in_range("window", window, low=1)
    return Windows(*running.window(window).init((categories,)), jnp.zeros(categories))


def push(
    state: Windows,
    values: Float[Array, "N"],
    category: Int[Array, "N"],
    *,
    valid: Bool[Array, "N"] | None = None,
    group_size: int = 1,
) -> Windows:
    """Adds payments to the windows of their categories, and forgets the oldest.

    Args:
      state: from `init` or the last call.
      values: payments of the samples, in the order in which they came, [N].
      category: of each sample, in 0..C-1; samples outside are left out.
      valid: samples that count; all by default. A payment that is not finite never counts.
      group_size: samples that make one visit: 1 counts samples, the number of samples a prompt
        counts prompts.

    Returns:
      The next state; no gradient flows through it. Of a batch with more than W payments of a
      category the last W survive.

    Raises:
      ValueError: if shapes differ or `group_size` is below 1.

    References:
      Wang et al., DUMP: Automated distribution-level curriculum learning for RL-based LLM
        post-training, 2025 (arXiv:2504.09710), algorithm 1.
    """
    _checks.rank("values", values, 1, "[N], one a sample")
    _checks.same_shape("[N]", values=values, category=category)
    in_range("group_size", group_size, low=1)
    recent = running.WindowState(state.values, state.pushed)
    recent = running.window(state.values.shape[1]).update(
        recent, values, category=category, valid=valid
    )
    came = recent.count - state.pushed
    return Windows(*recent, state.counts + came / group_size)


def mean(state: Windows) -> Float[Array, "C"]:
    """The mean of what each window holds: how much there is to learn.

    Args:
      state: the windows.

    Returns:
      Means, [C]; 0 for an empty window.

    References:
      Wang et al., DUMP, 2025 (arXiv:2504.09710), equation 3.
    """
    window = running.window(state.values.shape[1])
    return window.value(running.WindowState(state.values, state.pushed))


def ucb_scores(
    values: Float[Array, "C"],
    counts: Num[Array, "C"],
    *,
    exploration: float = math.sqrt(2.0),
) -> Float[Array, "C"]:
    """Upper confidence bounds: a value plus a bonus for categories that were rarely visited.

        value_j + exploration sqrt(log(n + 1) / (n_j + 1)),   n = sum of the counts n_j

    Args:
      values: of the categories, such as `mean`, [C].
      counts: visits of each, non-negative.
      exploration: size of the bonus, in units of the values, non-negative.

    Returns:
      Scores, [C], stopped; the values themselves before any visit.

    Raises:
      ValueError: if shapes differ or `exploration` is below 0.

    References:
      Auer et al., Finite-time analysis of the multiarmed bandit problem, 2002. Wang et al., DUMP,
        2025 (arXiv:2504.09710), equation 4.
    """
    _checks.rank("values", values, 1, "[C], one a category")
    _checks.same_shape("[C]", values=values, counts=counts)
    in_range("exploration", exploration, low=0.0)
    values, counts = jax.lax.stop_gradient((accumulate(values), accumulate(counts)))
    return values + exploration * jnp.sqrt(jnp.log1p(jnp.sum(counts)) / (counts + 1.0))


def update(
    state: Windows,
    values: Float[Array, "N"],
    category: Int[Array, "N"],
    *,
    tau: float = 0.1,
    exploration: float = math.sqrt(2.0),
    group_size: int = 1,
    valid: Bool[Array, "N"] | None = None,
    mask: Bool[Array, "C"] | None = None,
) -> tuple[Windows, Float[Array, "C"]]:
    """One step of DUMP: payments in, probabilities of the categories for the next batch out.

        softmax(ucb_scores(mean(state), counts) / tau)

    Every category is scored anew, also those without samples: their bonus grows with the others'
    visits. With payments of about 1 an unvisited category is next almost surely; after some
    thousand visits each the bonus is gone.

    Args:
      state: from `init` or the last call.
      values: payments, |advantage| of the samples (`bandit.absolute_advantage`), [N]; not of
        test prompts.
      category: of each sample, in 0..C-1.
      tau: temperature of the choice, > 0, in units of the payments.
      exploration: size of the bonus.
      group_size: samples that make one visit, as in `push`; the authors' text counts prompts,
        their code samples.
      valid: samples that count; all by default.
      mask: categories that have prompts; all by default.

    Returns:
      `(next state, probabilities)`; uniform where nothing has been seen.

    Raises:
      ValueError: as `push`, `ucb_scores` and `bandit.boltzmann`.

    References:
      Wang et al., DUMP, 2025 (arXiv:2504.09710), algorithm 1.
    """
    state = push(state, values, category, valid=valid, group_size=group_size)
    scores = ucb_scores(mean(state), state.counts, exploration=exploration)
    return state, boltzmann(scores, tau=tau, mask=mask)
