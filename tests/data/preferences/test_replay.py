import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import run

from polgrad import losses
from polgrad.data.preferences import replay_order

NOISE = jnp.array([0.5, 0.1, 0.9, 0.4, 0.3])


def test_windows_by_hand():
    np.testing.assert_array_equal(run(replay_order, NOISE), [1, 4, 3, 0, 2])
    np.testing.assert_array_equal(run(replay_order, NOISE, window=1), [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(run(replay_order, NOISE, window=2), [1, 0, 3, 2, 4])
    np.testing.assert_array_equal(run(replay_order, NOISE, window=3), [1, 0, 2, 4, 3])
    np.testing.assert_array_equal(run(replay_order, NOISE, window=9), [1, 4, 3, 0, 2])


def test_replayed_in_order_the_stream_reproduces_the_online_run():
    rewards = jnp.array([0.0, 1.0, 2.0])

    def update(logits, pair):
        ratio = lambda z, i: jax.nn.log_softmax(z)[i] + jnp.log(3.0)  # noqa: E731
        loss = lambda z: losses.ipo(ratio(z, pair[:1]), ratio(z, pair[1:]), beta=0.5).sum()  # noqa: E731
        return logits - 0.05 * jax.grad(loss)(logits)

    @jax.jit
    def online(key):
        def step(logits, key):
            pair = jax.random.categorical(key, logits, shape=(2,))
            pair = jnp.where(rewards[pair[0]] >= rewards[pair[1]], pair, pair[::-1])
            return update(logits, pair), pair

        return jax.lax.scan(step, jnp.zeros(3), jax.random.split(key, 16))

    @jax.jit
    def offline(stream):
        return jax.lax.scan(lambda z, pair: (update(z, pair), None), jnp.zeros(3), stream)[0]

    final, stream = online(jax.random.key(0))
    noise = jax.random.uniform(jax.random.key(1), (16,))
    np.testing.assert_allclose(offline(stream[replay_order(noise, window=1)]), final, atol=1e-6)
    shuffled = offline(stream[replay_order(noise)])
    assert np.abs(shuffled - final).max() > 1e-4
    # A batch that is missing shows: with equality at 1e-6 above, no step can have been left out.
    informative = int(np.flatnonzero(stream[:, 0] != stream[:, 1])[0])
    missing = jnp.delete(stream, informative, axis=0)
    assert np.abs(offline(missing) - final).max() > 1e-4


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="window is 0"):
        replay_order(NOISE, window=0)
    with pytest.raises(ValueError, match="noise has shape"):
        replay_order(NOISE[None])
