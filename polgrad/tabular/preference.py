"""Preference matrices: checks, win rates, and small games with known solutions.

`preference[i, j]` is P(answer i beats answer j), with preference + preference^T = 1 and 1/2 on
the diagonal. Preferences need not be transitive: that is the point of a game.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from polgrad import _checks
from polgrad._dtypes import accumulate

__all__ = [
    "additive_game",
    "bradley_terry_fit",
    "bradley_terry_game",
    "check_preference",
    "cycle3_game",
    "cyclic_game",
    "debiased_preference",
    "dice_game",
    "policy_win_rate",
    "population_game",
    "rps_game",
    "symmetrize_preference",
    "win_rates",
]


def check_preference(
    preference: Float[Array, "N N"], *, tolerance: float = 1e-6
) -> Float[Array, "N N"]:
    """Returns a preference matrix unchanged, or says what is wrong with it.

    Args:
      preference: concrete (not traced) matrix; entries in [0, 1], P + P^T = 1.
      tolerance: largest absolute deviation that is accepted.

    Returns:
      The argument.

    Raises:
      ValueError: if it is not square, has entries outside [0, 1] or NaN, or P + P^T is not 1.
    """
    p = np.asarray(preference, dtype=np.float64)
    if p.ndim != 2 or p.shape[0] != p.shape[1]:
        raise ValueError(f"preference has shape {list(p.shape)}, expected a square matrix [N, N]")
    if not np.all((p >= -tolerance) & (p <= 1.0 + tolerance)):
        raise ValueError(f"preference has values in [{p.min()}, {p.max()}], expected [0, 1]")
    gap = np.abs(p + p.T - 1.0)
    if gap.max(initial=0.0) > tolerance:
        i, j = np.unravel_index(gap.argmax(), gap.shape)
        raise ValueError(
            f"P[{i}, {j}] + P[{j}, {i}] of preference is {p[i, j] + p[j, i]}, expected 1 "
            "(symmetrize_preference repairs a learned model)"
        )
    return preference


def symmetrize_preference(preference: Float[Array, "... N N"]) -> Float[Array, "... N N"]:
    """(P + 1 - P^T) / 2: the nearest matrix that satisfies P + P^T = 1.

    Args:
      preference: P(i beats j) as some model says it, which may depend on the order shown.

    Returns:
      The symmetrised matrix, same shape, 1/2 on the diagonal.
    """
    return 0.5 * (preference + 1.0 - jnp.swapaxes(preference, -1, -2))


def debiased_preference(
    preference: Float[Array, "..."], swapped_preference: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Hard labels from a model that also prefers a place: both orders are asked.

    1 where P(first shown beats second) > P(the same with their places changed), 0 where it is
    less, 1/2 where they are equal. Whatever the model adds to the logit of the first place
    cancels; a policy trained online would otherwise learn to exploit it. The soft form, for a
    matrix, is `symmetrize_preference`.

    Args:
      preference: P(answer beats other), the answer shown first, in [0, 1].
      swapped_preference: P(other beats answer), the other shown first, same shape.

    Returns:
      P(answer beats other) as 0, 1/2 or 1, same shape, without gradient; 1/2 where a probability
      is not a number.

    Raises:
      ValueError: shapes that differ.

    References:
      Tang et al., Understanding the performance gap between online and offline alignment
      algorithms, 2024 (arXiv:2405.08448).
    """
    _checks.same_shape("one a pair", preference=preference, swapped_preference=swapped_preference)
    preference, swapped = accumulate(preference), accumulate(swapped_preference)
    above, below = preference > swapped, preference < swapped
    return 0.5 * (1.0 + above.astype(preference.dtype) - below)


def win_rates(preference: Float[Array, "N N"], opponent: Float[Array, "N"]) -> Float[Array, "N"]:
    """P(answer i beats a sample of the opponent) for every i: preference @ opponent.

    Args:
      preference: P(i beats j).
      opponent: probabilities of the opponent's answers.

    Returns:
      Win rates, [N].
    """
    return preference @ opponent


def policy_win_rate(
    preference: Float[Array, "N N"], policy: Float[Array, "N"], opponent: Float[Array, "N"]
) -> Float[Array, ""]:
    """P(a sample of the policy beats a sample of the opponent): policy^T preference opponent.

    Args:
      preference: P(i beats j).
      policy: probabilities, [N].
      opponent: probabilities, [N].

    Returns:
      The win rate, a scalar.
    """
    return policy @ preference @ opponent


def rps_game(margin: float = 0.5) -> Float[Array, "3 3"]:
    """Rock-paper-scissors: 1 beats 2, 2 beats 3, 3 beats 1, each with 1/2 + margin.

    Args:
      margin: advantage over 1/2, in [0, 1/2].

    Returns:
      The matrix, whose Nash equilibrium is uniform.
    """
    return cycle3_game(-margin, -margin, -margin)


def dice_game() -> Float[Array, "3 3"]:
    """Intransitive dice {2,4,9}, {1,6,8}, {3,5,7}: each beats the next with 5/9.

    Returns:
      The matrix, whose Nash equilibrium is uniform.
    """
    dice = np.array([[2, 4, 9], [1, 6, 8], [3, 5, 7]])
    wins = (dice[:, None, :, None] > dice[None, :, None, :]).mean(axis=(2, 3))
    np.fill_diagonal(wins, 0.5)
    return jnp.asarray(wins)


def cycle3_game(a: float, b: float, c: float) -> Float[Array, "3 3"]:
    """Three answers in a cycle: 2 beats 1 by a, 1 beats 3 by b, 3 beats 2 by c.

    Args:
      a: margin over 1/2, in [-1/2, 1/2].
      b: the same.
      c: the same.

    Returns:
      The matrix; for positive margins its Nash equilibrium is proportional to (c, b, a).
    """
    return jnp.asarray(0.5 + np.array([[0.0, -a, b], [a, 0.0, -c], [-b, c, 0.0]]))


def population_game(
    rankings: Sequence[Sequence[int]], weights: Sequence[float] | None = None
) -> Float[Array, "N N"]:
    """Preference of a random member of a population, each member with its own ranking.

    Args:
      rankings: K rankings of the N answers 0..N-1, best first.
      weights: the K shares of the population, any positive scale; equal by default.

    Returns:
      The matrix. It may have cycles although every member is transitive.

    Raises:
      ValueError: if a ranking is not a permutation, or the number of weights differs.
    """
    size = len(rankings[0])
    shares = np.ones(len(rankings)) if weights is None else np.asarray(weights, dtype=np.float64)
    if shares.shape != (len(rankings),):
        raise ValueError(
            f"weights has shape {list(shares.shape)}, expected one entry a ranking = "
            f"[{len(rankings)}]"
        )
    preference = 0.5 * np.eye(size)
    for ranking, share in zip(rankings, shares / shares.sum()):
        if sorted(ranking) != list(range(size)):
            raise ValueError(f"a ranking is {ranking}, expected a permutation of 0..{size - 1}")
        for better, worse in itertools.combinations(ranking, 2):
            preference[better, worse] += share
    return jnp.asarray(preference)


def bradley_terry_game(rewards: Float[Array, "N"]) -> Float[Array, "N N"]:
    """P(i beats j) = sigmoid(r_i - r_j): the preferences a scalar reward can express.

    Args:
      rewards: [N], in nats (log-odds).

    Returns:
      The matrix.

    References:
      Bradley and Terry, Rank analysis of incomplete block designs, 1952.
    """
    rewards = jnp.asarray(rewards)
    return jax.nn.sigmoid(rewards[:, None] - rewards[None, :])


def bradley_terry_fit(
    preference: Float[Array, "N N"], policy: Float[Array, "N"], *, iterations: int = 1000
) -> Float[Array, "N"]:
    """The reward that a reward model learns from infinitely many pairs drawn from a policy.

    Maximises sum_ij policy_i policy_j P_ij log sigmoid(r_i - r_j). At the optimum every answer
    has the win rate against the policy that it really has: sum_j policy_j sigmoid(r_i - r_j) =
    sum_j policy_j P_ij. Each iteration multiplies the odds exp(r_i) by the quotient of the two.
    Unless the game is a Bradley-Terry one, the reward depends on the policy.

    Args:
      preference: P(i beats j), entries in (0, 1).
      policy: probabilities of the answers in the pairs, > 0.
      iterations: of Zermelo's ascent, in which the likelihood never falls.

    Returns:
      Rewards, [N], in nats, of mean 0 under the policy.

    References:
      Zermelo, Die Berechnung der Turnier-Ergebnisse, 1929. Hunter, MM algorithms for generalized
      Bradley-Terry models, 2004.
    """
    log_wins = jnp.log(win_rates(preference, policy))

    def ascend(_, rewards):
        return rewards + log_wins - jnp.log(win_rates(bradley_terry_game(rewards), policy))

    rewards = jax.lax.fori_loop(0, iterations, ascend, jnp.zeros_like(log_wins))
    return rewards - policy @ rewards


def cyclic_game(
    quality: Float[Array, "N"], classes: Int[Array, "N"], *, a: float = 1.0, b: float = 2.0
) -> Float[Array, "N N"]:
    """Bradley-Terry preferences with rock-paper-scissors between three classes of answers.

    P(i beats j) = sigmoid(a (quality_i - quality_j) + b cycle(class_i, class_j)), where cycle is
    1 if class_i + 1 = class_j modulo 3 (class 0 beats 1, 1 beats 2, 2 beats 0), -1 the other way
    round and 0 within a class. For b = 0 it is `bradley_terry_game(a quality)`.

    Args:
      quality: what everybody agrees on, [N].
      classes: what cycles, integers in 0..2, [N].
      a: weight of the quality, in nats.
      b: weight of the cycle, in nats.

    Returns:
      The matrix. For b > 0 and answers of all classes it has cycles that no reward expresses.
    """
    quality, classes = jnp.asarray(quality), jnp.asarray(classes)
    ahead = (classes[None, :] - classes[:, None]) % 3
    cycle = (ahead == 1).astype(quality.dtype) - (ahead == 2)
    return jax.nn.sigmoid(a * (quality[:, None] - quality[None, :]) + b * cycle)


def additive_game(scores: Float[Array, "N"]) -> Float[Array, "N N"]:
    """P(i beats j) = 1/2 + s_i - s_j: the game that is a reward maximisation.

    Args:
      scores: [N], within a range of 1/2 so that probabilities stay in [0, 1].

    Returns:
      The matrix; its regularised Nash equilibrium is reference exp(s / tau) / Z.
    """
    scores = jnp.asarray(scores)
    return 0.5 + scores[:, None] - scores[None, :]
