"""Policies over listed completions: samples, scores and mixtures agree with sums over the list."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from polgrad import algorithms, distributions, small
from polgrad.contract import Needs
from polgrad.small import bigrams
from polgrad.small.policies import OtherPolicy
from polgrad.tabular.sequences import enumerate_sequences

DRAWS = 40_000


class Quality(small.OneQuestion):
    """One question; an answer is worth as much as its number in the list is high."""

    def __init__(self, numbers):
        self.numbers = numbers

    def reward(self, questions, completions, mask):
        return self.numbers(completions) / 10.0


def table(end=None, length=3, vocabulary=3):
    return small.TablePolicy(enumerate_sequences(vocabulary, length, end=end))


def two(policy):
    return [jax.tree.map(lambda x: 2.0 * x, policy.init(jax.random.key(n))) for n in (1, 2)]


def rows(policy, params, **more):
    prompts = policy.prompts(jnp.zeros(2))
    ids = jnp.zeros(2, jnp.int32)
    sample = functools.partial(policy.sample, samples=DRAWS // 2, **more)
    return jax.jit(sample)(params, prompts, ids, jax.random.key(3))


def mixture_by_hand(policy, own, other, weight):
    """Probabilities of all completions of the mixture at each token, one completion at a time."""
    tokens, mask, prefix = policy.sequences[:3]
    mixed = np.exp((1 - weight) * np.asarray(own) + weight * np.asarray(other))
    mixed /= mixed.sum(-1, keepdims=True)
    return np.array(
        [np.prod([mixed[p, t] for t, m, p in zip(*row) if m]) for row in zip(tokens, mask, prefix)]
    )


@pytest.mark.parametrize(("end", "weight"), [(None, None), (1, 0.25), (1, 1.0)])
def test_samples_of_a_table_have_their_probabilities(end, weight):
    policy = table(end)
    own, other = two(policy)
    mixed = None if weight is None else OtherPolicy(other, weight)
    found = rows(policy, own, mixed=mixed)
    expected = mixture_by_hand(policy, own, other, weight or 0.0)
    numbers = policy.numbers(found["completions"])
    np.testing.assert_array_equal(policy.sequences.tokens[numbers], found["completions"])
    np.testing.assert_array_equal(policy.sequences.mask[numbers], found["mask"])
    np.testing.assert_array_equal(found["mask"].sum(-1), found["completion_lengths"])
    rates = np.bincount(numbers, minlength=len(expected)) / DRAWS
    np.testing.assert_array_less(np.abs(rates - expected), 5 * np.sqrt(expected / DRAWS) + 1e-6)
    np.testing.assert_allclose(np.exp(found["behavior_logp"].sum(-1)), expected[numbers], rtol=1e-4)


def test_a_table_is_scored_as_it_is_sampled():
    policy = table(end=2)
    params, _ = two(policy)
    found = rows(policy, params)
    outputs = policy.forward(params, found, needs=Needs())
    np.testing.assert_allclose(outputs.logp, found["behavior_logp"], atol=1e-5)
    chances = np.asarray(jax.nn.softmax(params))
    entropies = -(chances * np.log(chances)).sum(-1)
    numbers = policy.numbers(found["completions"])
    expected = entropies[policy.sequences.prefix[numbers]] * found["mask"]
    np.testing.assert_allclose(outputs.entropy, expected, rtol=1e-4, atol=1e-6)


def test_what_stands_behind_the_end_of_a_completion_does_not_count():
    policy = small.TablePolicy.create(3, 2, end=2)
    assert policy.sequences.tokens.tolist()[-1] == [2, 0]
    # In the range any token may stand there, and out of it with a mask.
    np.testing.assert_array_equal(policy.numbers([[2, 0], [2, 1], [2, 2], [1, 2]]), [6, 6, 6, 5])
    padded, mask = jnp.array([[2, -1], [2, 9], [1, 2]]), jnp.array([[1, 0], [1, 0], [1, 1]])
    np.testing.assert_array_equal(policy.numbers(padded, mask), [6, 6, 5])
    params, _ = two(policy)
    outputs = policy.forward(params, {"completions": padded, "mask": mask}, needs=Needs())
    np.testing.assert_allclose(outputs.logp.sum(-1), policy.logp(params)[jnp.array([6, 6, 5])])
    np.testing.assert_array_equal(outputs.logp[:2, 1], 0.0)
    rewards = small.Listed(policy, jnp.arange(7.0)).reward(jnp.zeros(1), padded[None], mask[None])
    np.testing.assert_array_equal(rewards, [[6, 6, 5]])


@pytest.mark.parametrize("token", [-1, 3])
def test_a_token_that_a_table_does_not_have_is_refused(token):
    with pytest.raises(ValueError, match=rf"completions has token {token}, expected .* 0\.\.2"):
        small.TablePolicy.create(3, 2).numbers([[2, 1], [0, token]])


def test_bigrams_are_sampled_and_scored_as_listed():
    policy = small.BigramPolicy(vocabulary=3, length=4)
    own, other = two(policy)
    mix = functools.partial(distributions.geometric_mixture, reference_weight=0.4)
    mixture = jax.tree.map(mix, own, other)
    for params, found in (
        (own, rows(policy, own)),
        (mixture, rows(policy, own, mixed=OtherPolicy(other, 0.4))),
    ):
        expected = np.exp(bigrams.every_logp(params))
        numbers = found["completions"] @ 3 ** np.arange(4)[::-1]
        rates = np.bincount(numbers, minlength=81) / DRAWS
        np.testing.assert_array_less(np.abs(rates - expected), 5 * np.sqrt(expected / DRAWS) + 1e-6)
        outputs = policy.forward(params, found, needs=Needs())
        np.testing.assert_allclose(outputs.logp, found["behavior_logp"], atol=1e-5)
        np.testing.assert_allclose(np.exp(outputs.logp.sum(-1)), expected[numbers], rtol=1e-4)
    before = np.r_[[-1], found["completions"][0, :-1]]
    rows_of = [mixture.first, *(x[b] for x, b in zip(mixture.following, before[1:]))]
    chances = [np.asarray(jax.nn.softmax(row)) for row in rows_of]
    by_hand = [-(p * np.log(p)).sum() for p in chances]
    np.testing.assert_allclose(outputs.entropy[0], by_hand, rtol=1e-4)


@pytest.mark.parametrize("policy", [table(end=1), small.BigramPolicy(3, 3)])
def test_greedy_samples_take_the_most_likely_token(policy):
    params, _ = two(policy)
    found = rows(policy, params, greedy=True)
    assert (found["completions"] == found["completions"][0]).all()
    first = params.first if isinstance(policy, small.BigramPolicy) else params[0]
    assert found["completions"][0, 0] == jnp.argmax(first)
    outputs = policy.forward(params, found, needs=Needs())
    np.testing.assert_allclose(outputs.logp, found["behavior_logp"], atol=1e-5)


@pytest.mark.parametrize("policy", [table(), small.BigramPolicy(3, 3)])
def test_the_weight_of_a_mixture_may_be_traced(policy):
    own, other = two(policy)
    prompts, ids, key = policy.prompts(jnp.zeros(1)), jnp.zeros(1, jnp.int32), jax.random.key(4)

    def drawn(weight):
        mixed = OtherPolicy(other, weight)
        return policy.sample(own, prompts, ids, key, samples=50, mixed=mixed)["completions"]

    together = jax.jit(jax.vmap(drawn))(jnp.array([0.0, 0.3, 1.0]))
    for found, weight in zip(together, (0.0, 0.3, 1.0)):
        np.testing.assert_array_equal(found, drawn(weight))
    assert (together[0] != together[2]).any()


@pytest.mark.parametrize(
    "settings",
    [
        algorithms.RLOO(),
        algorithms.NashMD(opponent=algorithms.Mixed(0.25)),
        algorithms.INPO(inverse_step=0.5, tau=0.1),
        algorithms.FDPG(target=algorithms.Filtered(), divergence="forward_kl"),
    ],
)
def test_small_runs_on_a_table_raise_the_reward(settings):
    policy = table()
    task = Quality(policy.numbers)
    schedule = small.Schedule(rollouts=40, questions=4, group=16, points=1)
    value = lambda params, key: {  # noqa: E731
        "value": jnp.exp(policy.logp(params)) @ jnp.arange(27) / 10.0
    }
    _, curves = jax.jit(
        lambda: small.run(
            jax.random.key(0),
            settings,
            policy=policy,
            task=task,
            schedule=schedule,
            optimizer=optax.adam(0.1),
            evaluate=value,
            params=jnp.zeros((policy.sequences.prefixes, 3)),
        )
    )()
    assert curves["value"][0] == pytest.approx(1.3, abs=1e-4)
    assert curves["value"][1] > (1.32 if isinstance(settings, algorithms.FDPG) else 1.6)


def test_a_value_head_is_refused():
    policy, batch = table(), {"completions": jnp.zeros((1, 3), jnp.int32)}
    with pytest.raises(ValueError, match="a TablePolicy has no value head"):
        policy.forward(policy.init(jax.random.key(0)), batch, needs=Needs(values=True))
