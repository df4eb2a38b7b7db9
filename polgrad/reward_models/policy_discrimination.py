"""Policy discrimination (POLAR): a reward model that tells which policy an answer comes from.

`policy_pairs` draws the policies of pre-training triples, `reference_triples` makes triples of ranked
answers for fine-tuning, `comparison_input` lays out the tokens of one comparison, and
`policy_discrimination` is the exact answer in a table.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from polgrad import _checks
from polgrad._dtypes import accumulate
from polgrad._scalars import in_range


def policy_pairs(
    key: Key[Array, ""], *, policies: int, count: int
) -> tuple[Int[Array, "N"], Int[Array, "N"]]:
    """Two different policies of a pool for each pre-training triple of a policy discriminator.

    Two answers of the first policy are the reference and the positive, one of the second the
    negative, all to the same prompt and drawn independently.

    Args:
      key: for the draws.
      policies: number of policies in the pool, at least 2. Close ones belong into it too, such as
        checkpoints and mixtures.
      count: number of triples.

    Returns:
      (first, second) in 0..policies - 1, [N] each, never equal; every ordered pair equally likely.

    Raises:
      ValueError: fewer than two policies.

    References:
      Dou et al., Pre-Trained Policy Discriminators are General Reward Models, 2025
      (arXiv:2507.05197), section 3.
    """
    in_range("policies", policies, low=2)
    keys = jax.random.split(key)
    first = jax.random.randint(keys[0], (count,), 0, policies)
    return first, (first + jax.random.randint(keys[1], (count,), 1, policies)) % policies


class Triple(NamedTuple):
    """Indices of a reference and of two answers to compare with it.

    Attributes:
      reference: the best answer.
      chosen: the second best.
      rejected: the third.
      usable: whether there are three answers and the second is better than the third.
    """

    reference: Int[Array, "..."]
    chosen: Int[Array, "..."]
    rejected: Int[Array, "..."]
    usable: Bool[Array, "..."]


def reference_triples(
    scores: Float[Array, "... K"], *, valid: Bool[Array, "... K"] | None = None
) -> Triple:
    """From ranked answers, what fine-tunes a reward model that compares with a reference.

    Against the best answer as the reference, the second is to score above the third:
    `reward_models.bradley_terry` of these two scores.

    Args:
      scores: of the answers to a prompt, [..., K], K of at least 3; higher is better.
      valid: False for answers to leave out, [..., K]; scores that are not finite are left out in
        any case.

    Returns:
      `Triple(reference, chosen, rejected, usable)`, each [...]; of equal scores the earlier.

    Raises:
      ValueError: shapes that differ; fewer than three answers.

    References:
      Dou et al., Pre-Trained Policy Discriminators are General Reward Models, 2025
      (arXiv:2507.05197), equation 8.
    """
    if jnp.ndim(scores) == 0 or jnp.shape(scores)[-1] < 3:
        raise ValueError(
            f"scores has shape {list(jnp.shape(scores))}, expected [..., K] with K of at least 3"
        )
    known = jnp.isfinite(scores)
    if valid is not None:
        _checks.same_shape("[..., K]", scores=scores, valid=valid)
        known &= jnp.asarray(valid) != 0
    ranked = jnp.where(known, scores, -jnp.inf)
    order = jnp.argsort(-ranked, axis=-1)[..., :3]
    second, third = jnp.moveaxis(jnp.take_along_axis(ranked, order, axis=-1), -1, 0)[1:]
    return Triple(*jnp.moveaxis(order, -1, 0), (second > third) & (third > -jnp.inf))


class ComparisonInput(NamedTuple):
    """Tokens of one comparison, padded on the right.

    Attributes:
      tokens: ids, 0 behind the end.
      mask: True where there is a token; the last of them is the one whose state is scored.
    """

    tokens: Int[np.ndarray, "L"]
    mask: Bool[np.ndarray, "L"]


def comparison_input(
    prompt: Sequence[int],
    reference: Sequence[int],
    candidate: Sequence[int],
    *,
    separator: int,
    end: int,
    length: int,
    response_length: int,
) -> ComparisonInput:
    """Lays out prompt + reference + <separator> + prompt + candidate + <end>.

    A causal model reads both trajectories in one pass, and its score is a linear function of the
    state at <end> (`policies.heads.last_token_score`). Responses are cut on the right to
    `response_length` tokens, the prompt on the LEFT to half of what then remains.

    Args:
      prompt: token ids.
      reference: token ids of the trajectory to compare with, such as a demonstration.
      candidate: token ids of the trajectory to score.
      separator: id of the token between the two halves.
      end: id of the token that is scored.
      length: tokens of the result, at least 2 response_length + 2.
      response_length: most tokens of either response, at least 0 (4096 in the paper).

    Returns:
      `ComparisonInput(tokens, mask)`, int32 and bool, [length] each.

    Raises:
      ValueError: if two responses of the greatest length do not fit.

    References:
      Dou et al., Pre-Trained Policy Discriminators are General Reward Models, 2025
      (arXiv:2507.05197).
    """
    if response_length < 0 or length < 2 * response_length + 2:
        raise ValueError(
            f"length is {length} with response_length {response_length}, expected at least "
            f"2 response_length + 2 = {2 * response_length + 2}, and no negative number"
        )
    reference, candidate = list(reference)[:response_length], list(candidate)[:response_length]
    room = (length - len(reference) - len(candidate) - 2) // 2
    prompt = list(prompt)
    prompt = prompt[max(len(prompt) - room, 0) :]
    ids = [*prompt, *reference, separator, *prompt, *candidate, end]
    tokens = np.zeros(length, np.int32)
    tokens[: len(ids)] = ids
    return ComparisonInput(tokens, np.arange(length) < len(ids))


def policy_discrimination(policies: Float[Array, "P A"]) -> Float[Array, "A A A"]:
    """P(which of two answers comes from the policy that the reference answer comes from).

    Two different policies are drawn; the first gives a reference r and the one answer, the
    second the other answer. For a pair {a, b}

        preference[r, a, b] = J(r, a, b) / (J(r, a, b) + J(r, b, a))
        J(r, a, b) = sum_{i != j} policy_i(r) policy_i(a) policy_j(b)

    The log-odds of this are what r(reference, a) - r(reference, b) tends to when pre-trained
    with `reward_models.bradley_terry`, if some score expresses it (with two answers it always does).
    They are NOT those of the product of marginals: the reference tells which policy was drawn.

    Args:
      policies: probabilities of the answers under each policy of the pool, [P, A], P >= 2.

    Returns:
      Preferences, [A, A, A], for each reference answer a matrix with P + P^T = 1; 1/2 where a
      triple never occurs, and everywhere for equal policies.

    Raises:
      ValueError: fewer than two policies.

    References:
      Dou et al., Pre-Trained Policy Discriminators are General Reward Models, 2025
      (arXiv:2507.05197), section 3.
    """
    _checks.rank("policies", policies, 2, "[P, A]")
    if jnp.shape(policies)[0] < 2:
        raise ValueError(
            f"policies has shape {list(jnp.shape(policies))}, expected P of at least 2"
        )
    policies = accumulate(policies)
    others = jnp.sum(policies, axis=0) - policies
    triples = jnp.einsum("ir,ia,ib->rab", policies, policies, others)
    both = triples + jnp.swapaxes(triples, -1, -2)
    return jnp.where(both > 0.0, triples / jnp.where(both > 0.0, both, 1.0), 0.5)
