"""The bigram network against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import policies

NETWORK = policies.LinearNetwork(7, 4, value_head=True)


def test_logits_are_a_bigram_table():
    params = NETWORK.init(jax.random.key(0))
    tokens = jnp.array([[3, 1, 3], [0, 6, 2]])
    hidden = NETWORK.hidden(params, tokens, jnp.zeros_like(tokens), jnp.ones_like(tokens))
    table = np.asarray(params["embed"] @ params["head"])
    np.testing.assert_allclose(hidden @ NETWORK.head(params), table[np.asarray(tokens)], rtol=1e-5)
    assert np.all(NETWORK.values(params, hidden) == 0)


def test_sampling_path_gives_the_hidden_states_of_training():
    params = jax.tree.map(np.asarray, NETWORK.init(jax.random.key(0)))
    tokens, lengths = jnp.array([[3, 1, 0], [5, 0, 0]]), jnp.array([2, 0])
    cache = NETWORK.init_cache(2, 8, jnp.float32)
    last, cache = jax.jit(NETWORK.prefill)(params, tokens, lengths, cache)
    np.testing.assert_array_equal(last, params["embed"][[1, 5]])
    step, _ = jax.jit(NETWORK.decode)(params, jnp.array([2, 4]), lengths, cache)
    np.testing.assert_array_equal(step, params["embed"][[2, 4]])


def test_a_head_does_not_change_the_rest():
    plain = policies.LinearNetwork(7, 4).init(jax.random.key(0))
    both = policies.LinearNetwork(7, 4, value_head=True, reward_head=True)
    params = both.init(jax.random.key(0))
    for name in plain:
        np.testing.assert_array_equal(plain[name], params[name])
    params["reward_head"] = params["reward_head"] + 2.0
    hidden = jnp.array([[1.0, 2.0, 3.0, 4.0]])
    np.testing.assert_allclose(both.rewards(params, hidden), [20.0])
    assert jax.tree.structure(params) == jax.tree.structure(
        both.logical_axes(), is_leaf=lambda leaf: isinstance(leaf, tuple)
    )


def test_it_is_a_network_and_static():
    assert isinstance(NETWORK, policies.Network)
    assert hash(NETWORK) == hash(policies.LinearNetwork(7, 4, value_head=True))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="reward_head"):
        NETWORK.rewards(NETWORK.init(jax.random.key(0)), jnp.zeros((1, 4)))
    with pytest.raises(ValueError, match="vocab_size"):
        policies.LinearNetwork(0, 4)
