"""Small networks: sampling and teacher forcing agree, and samples follow the distribution."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import run

from polgrad.distributions import token_statistics
from polgrad.small import AutoregressiveMLP, FactorizedMLP, PositionTable

SIZES = {"features": 5, "vocabulary": 3, "length": 3, "width": 8}
POLICIES = {
    "sum": AutoregressiveMLP(**SIZES),
    "previous": AutoregressiveMLP(**SIZES, prefix=("previous",)),
    "both": AutoregressiveMLP(**SIZES, prefix=("sum", "previous")),
    "none": AutoregressiveMLP(**SIZES, prefix=()),
    "factorized": FactorizedMLP(**SIZES),
}
PROMPTS = jax.random.normal(jax.random.key(1), (2, 5))
WORDS = jnp.array(list(itertools.product(range(3), repeat=3)))


def parameters(policy, scale=15.0):
    """Far from uniform: the last layer starts near zero."""
    params = policy.init(jax.random.key(0))
    return params | {"out": scale * policy.width**0.5 * params["out"]}


def word_logp(policy, params):
    """Log-probability of every word, [2, 27]."""
    tokens = jnp.broadcast_to(WORDS, (2, *WORDS.shape))
    logits = policy.logits(params, PROMPTS[:, None], tokens)
    return token_statistics(logits, tokens)[0].sum(-1)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", POLICIES)
def test_words_have_probabilities_and_samples_follow_them(name):
    policy = POLICIES[name]

    @jax.jit
    def both(params):
        tokens, logp = policy.sample(params, PROMPTS, jax.random.key(2), samples=20_000)
        forced = token_statistics(policy.logits(params, PROMPTS[:, None], tokens), tokens)[0]
        return word_logp(policy, params), tokens, logp, forced

    exact, tokens, logp, forced = both(parameters(policy))
    np.testing.assert_allclose(np.exp(exact).sum(1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(logp, forced, atol=1e-5)
    index = np.asarray(tokens) @ [9, 3, 1]
    counts = np.stack([np.bincount(row, minlength=27) for row in index]) / 20_000
    np.testing.assert_allclose(counts, np.exp(exact), atol=0.015)
    assert np.exp(exact).max() > 0.1  # not the uniform 1/27, which anything would pass


@pytest.mark.parametrize(
    ("name", "same"),
    [
        # Prefixes of equal sum modulo 3, or of equal last token, or any, have equal logits.
        ("sum", ([1, 2], [0, 0])),
        ("previous", ([1, 2], [0, 2])),
        ("none", ([1, 2], [0, 1])),
        ("factorized", ([1, 2], [0, 1])),
    ],
)
def test_what_the_logits_see_of_the_prefix(name, same):
    policy = POLICIES[name]
    tokens = jnp.array([[*prefix, 0] for prefix in (*same, [2, 2])])
    logits = run(policy.logits, parameters(policy), jnp.tile(PROMPTS[:1], (3, 1)), tokens)
    np.testing.assert_allclose(logits[0, 2], logits[1, 2], rtol=1e-5)
    np.testing.assert_allclose(logits[0, 0], logits[1, 0], rtol=1e-5)
    sees = name in ("sum", "previous")
    # (2, 2) sums to 1 modulo 3 and, for "previous", is told from (1, 1) by its end.
    other = run(policy.logits, parameters(policy), PROMPTS[:1], jnp.array([[1, 1, 0]]))
    assert np.allclose(logits[2, 2], other[0, 2], rtol=1e-5) != sees


@pytest.mark.parametrize("name", ["both", "factorized"])
def test_greedy_takes_the_most_likely_token_at_each_position(name):
    policy = POLICIES[name]
    params = parameters(policy)

    @jax.jit
    def both(params):
        tokens, _ = policy.sample(params, PROMPTS, jax.random.key(0), samples=2, greedy=True)
        return tokens, policy.logits(params, PROMPTS[:, None], tokens)

    tokens, logits = both(params)
    np.testing.assert_array_equal(tokens, jnp.broadcast_to(jnp.argmax(logits, -1), tokens.shape))


@pytest.mark.parametrize("name", ["sum", "factorized"])
def test_a_new_policy_is_nearly_uniform(name):
    policy = POLICIES[name]
    logp = jax.jit(lambda key: word_logp(policy, policy.init(key)))(jax.random.key(3))
    np.testing.assert_allclose(np.exp(logp), 1 / 27, rtol=0.7)


def test_token_statistics_equal_their_definition():
    logits = jax.random.normal(jax.random.key(0), (2, 1, 4))
    tokens = jnp.array([[0, 3], [1, 1]])
    logp, entropy = run(token_statistics, logits, tokens)
    p = np.asarray(jax.nn.softmax(logits))[:, 0]
    np.testing.assert_allclose(logp, np.log([[p[0, 0], p[0, 3]], [p[1, 1], p[1, 1]]]), rtol=1e-5)
    by_hand = -(p * np.log(p)).sum(-1)
    np.testing.assert_allclose(entropy, np.stack([by_hand, by_hand], 1), rtol=1e-5)


def test_gradient_is_that_of_the_log_probability():
    policy, params = POLICIES["both"], parameters(POLICIES["both"])
    # The mean score of a policy over all words, weighted by their probability, is zero.
    score = jax.jit(
        jax.grad(
            lambda q: jnp.sum(
                jnp.exp(jax.lax.stop_gradient(word_logp(policy, q))) * word_logp(policy, q)
            )
        )
    )(params)
    for leaf in jax.tree.leaves(score):
        np.testing.assert_allclose(leaf, 0.0, atol=2e-5)


def test_unknown_prefix_is_named():
    with pytest.raises(ValueError, match="prefix has \\['sums'\\]"):
        AutoregressiveMLP(**SIZES, prefix=("sums",))


def test_a_table_has_the_logits_of_the_symbols():
    """By index; samples are drawn as those of the other networks without a prefix."""
    network = PositionTable(2, 4, length=3)
    table = 3.0 * jax.random.normal(jax.random.key(0), (3, 2, 4))
    prompts = jnp.array([[0, 1, 1], [1, 0, 0]])
    logits = run(network.logits, {"table": table}, prompts)
    np.testing.assert_allclose(logits, table[jnp.arange(3), prompts], rtol=1e-6)
    greedy, logp = run(
        lambda: network.sample({"table": table}, prompts, jax.random.key(1), samples=2, greedy=True)
    )
    np.testing.assert_array_equal(greedy, jnp.repeat(logits.argmax(-1)[:, None], 2, axis=1))
    np.testing.assert_allclose(logp[:, 0], jax.nn.log_softmax(logits).max(-1), rtol=1e-6)
