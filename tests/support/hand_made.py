"""Samples and pairs so small that advantages, losses and gradients can be computed by hand.

`samples()` has the first four rows below, two of each prompt; with a group of three it has all six,
three of each prompt. A token is given by its probability under the policy, the policy that sampled
it and the reference; `-` is a token that the mask leaves out.

| row | policy     | sampler  | policy / sampler | product | policy / reference |
|-----|------------|----------|------------------|---------|--------------------|
| 0   | 0.75, 0.25 | 0.5, 0.5 | 1.5, 0.5         | 0.75    | 3                  |
| 1   | 0.25, -    | 0.5, -   | 0.5, -           | 0.5     | 1/2                |
| 2   | 0.75, 0.45 | 0.5, 0.5 | 1.5, 0.9         | 1.35    | 1/2                |
| 3   | -,    0.6  | -,   0.1 | -,   6           | 6       | 3                  |
| 4   | 0.2,  0.25 | 0.5, 0.5 | 0.4, 0.5         | 0.2     | 1/2                |
| 5   | 0.5,  0.5  | 0.5, 0.5 | no reward: the sample is invalid         |||

`pairs()` has three pairs, of which the last has an answer without a token and is no pair. The third
answer of a pair is read by few losses.

| pair | answer   | policy   | product | reference | policy / reference |
|------|----------|----------|---------|-----------|--------------------|
| 0    | chosen   | 0.5, 0.4 | 0.2     | 0.25, 0.4 | 2                  |
| 0    | rejected | 0.1, -   | 0.1     | 0.2, -    | 1/2                |
| 0    | third    | 0.5, 0.5 | 0.25    | 0.5, 0.5  | 1                  |
| 1    | chosen   | -, 0.3   | 0.3     | -, 0.6    | 1/2                |
| 1    | rejected | 0.8, 0.5 | 0.4     | 0.4, 0.25 | 4                  |
| 1    | third    | 0.7, -   | 0.7     | 0.7, -    | 1                  |
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import algorithms
from polgrad.contract import Context, Outputs, Previous

HOLE = 0.0
"""Where the mask is 0. The log-probabilities there are wrong numbers that nothing may read."""
POLICY = [[0.75, 0.25], [0.25, HOLE], [0.75, 0.45], [HOLE, 0.6], [0.2, 0.25], [0.5, 0.5]]
SAMPLER = [[0.5, 0.5], [0.5, HOLE], [0.5, 0.5], [HOLE, 0.1], [0.5, 0.5], [0.5, 0.5]]
REFERENCE = [[0.25, 0.25], [0.5, HOLE], [0.75, 0.9], [HOLE, 0.2], [0.4, 0.25], [0.5, 0.5]]
REWARDS = {2: [1.0, 0.0, 1.0, 3.0], 3: [1.0, 0.0, 3.0, 2.0, 0.0, np.nan]}
"""By the size of a group."""
# Estimates of a value head when samples of two were drawn, and now; the last column is never read.
OLD_VALUES = [[0.5, 0.2, 9.0], [0.4, 9.0, 9.0], [2.0, 1.5, 9.0], [9.0, 1.0, 9.0]]
VALUES = [[0.6, 0.5, 8.0], [0.1, 8.0, 8.0], [2.4, 1.5, 8.0], [8.0, 1.1, 8.0]]

PAIR_POLICY = [
    [[0.5, 0.4], [0.1, HOLE], [0.5, 0.5]],
    [[HOLE, 0.3], [0.8, 0.5], [0.7, HOLE]],
    [[0.5, 0.5], [HOLE, HOLE], [0.5, 0.5]],
]
PAIR_REFERENCE = [
    [[0.25, 0.4], [0.2, HOLE], [0.5, 0.5]],
    [[HOLE, 0.6], [0.4, 0.25], [0.7, HOLE]],
    [[0.9, 0.9], [HOLE, HOLE], [0.9, 0.9]],
]


class Numbers(NamedTuple):
    """What an algorithm makes of a tiny experience, computed by hand.

    Attributes:
      loss: the reduced loss.
      gradient: of the loss in the log-probabilities, one number a token; or one number an answer,
        which all its tokens have in common.
      prepared: what `prepare` makes, by name of the array in the batch.
      settings: those that are not at their default.
      experience: from `samples` or `pairs`; None for `samples()`.
      group: samples of a prompt.
      on_policy: whether the policy above counts as the one that sampled.
      values: of the loss in the values, for an algorithm with a value head.
    """

    loss: float
    gradient: list
    prepared: dict[str, Any]
    settings: dict[str, Any] = {}
    experience: dict | None = None
    group: int = 2
    on_policy: bool = False
    values: list | None = None


def samples(rewards=None, *, group=2, **others):
    """The experience of a rollout; a reward that is NaN makes a sample invalid."""
    rewards = np.array(REWARDS[group] if rewards is None else rewards)
    rows = len(rewards)
    found = _answers(POLICY[:rows], REFERENCE[:rows])
    return found | {
        "behavior_logp": _logp(SAMPLER[:rows], -5.0),
        "rewards": np.nan_to_num(rewards),
        "valid": np.isfinite(rewards),
        "stopped": np.ones(rows, bool),
        "prompt_ids": (np.arange(rows) // group).astype(np.uint32),
        "sample_ids": (np.arange(rows) % group).astype(np.uint32),
        **({"values": np.array(OLD_VALUES)} if rows == len(OLD_VALUES) else {}),
        **others,
    }


def pairs(roles=2):
    """Pairs of the data, or triples."""
    rows = [[row[:roles] for row in rows] for rows in (PAIR_POLICY, PAIR_REFERENCE)]
    return _answers(*rows)


def _answers(policy, reference):
    mask = (np.array(policy) != HOLE).astype(float)
    # A hole before the last token belongs to the answer.
    lengths = np.max(mask * np.arange(1, mask.shape[-1] + 1), axis=-1).astype(np.int32)
    return {
        "prompts": np.ones((*lengths.shape, 1), np.int32),
        "prompt_lengths": np.ones(lengths.shape, np.int32),
        "completions": np.ones(mask.shape, np.int32),
        "completion_lengths": lengths,
        "mask": mask,
        # As the log-probabilities of any policy it follows its answers into the batch.
        "policy_logp": _logp(policy, -7.0),
        "reference_logp": _logp(reference, -3.0),
    }


def _logp(probabilities, hole):
    probabilities = np.array(probabilities)
    there = probabilities != HOLE
    return np.where(there, np.log(np.where(there, probabilities, 1.0)), hole)


def made_of(algorithm, experience):
    """The batch that an algorithm prepares, with the log-probabilities of its named policies."""
    experience = dict(experience)
    for name, kind in algorithm.policies.items():
        if kind == Previous(every=1):
            experience[f"{name}_logp"] = experience["behavior_logp"]
    experience = jax.tree.map(jnp.asarray, experience)
    return algorithm.prepare(algorithm.init(jax.random.key(0)), experience, jax.random.key(1))[1]


def evaluated(settings, experience, *, group=2, on_policy=False):
    """Batch, loss, and gradients in log-probabilities and values, at the policy above."""
    context = Context(group_size=group, max_tokens=2, num_prompts=2, on_policy=on_policy)
    algorithm = settings.build(context)
    batch = made_of(algorithm, experience)
    values = jnp.array(VALUES) if algorithm.needs.values else None

    def loss(logp, values):
        outputs = Outputs(logp, values=values)
        chosen = algorithm.select(jax.lax.stop_gradient(outputs), batch, jax.random.key(2))
        return algorithm.loss(outputs, chosen)[0]

    found, gradients = jax.value_and_grad(loss, argnums=(0, 1))(batch["policy_logp"], values)
    return jax.tree.map(np.asarray, (batch, found, *gradients))


def check(settings, numbers):
    """Asserts that settings make the numbers."""
    with jax.enable_x64(True):
        experience = samples() if numbers.experience is None else numbers.experience
        batch, loss, gradient, values = evaluated(
            settings, experience, group=numbers.group, on_policy=numbers.on_policy
        )
    for name, expected in numbers.prepared.items():
        _same(batch[name], expected, name)
    _same(loss, numbers.loss, "loss")
    expected = np.array(numbers.gradient, float)
    if expected.ndim < batch["mask"].ndim:
        expected = expected[..., None] * batch["mask"]
    _same(gradient, expected, "gradient")
    if numbers.values is not None:
        _same(values, numbers.values, "gradient in the values")


def _same(found, expected, what):
    # Some weights are float32.
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9, err_msg=what)


def by_hand(table):
    """A test of every entry of a table of `Numbers`.

    Args:
      table: by name of the algorithm; `"<name>, <what>"` is a further case of it.

    Returns:
      A test function, whose attribute `table` is the table.
    """

    @pytest.mark.parametrize("case", list(table))
    def test(case):
        check(algorithms.find(name_of(case))(**table[case].settings), table[case])

    test.table = table
    return test


def name_of(case):
    """The algorithm of an entry."""
    return case.partition(",")[0]
