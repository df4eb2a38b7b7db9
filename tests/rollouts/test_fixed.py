import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad.rollouts import Rollout, Sampling, generate, generate_fixed, pad_prompts

PROMPTS = [[3], [1, 2, 3, 4], [7, 7], [6, 5]]
SAMPLING = Sampling(max_tokens=6, temperature=0.9, stop_ids=(0,))


def assert_same(a, b):
    for name, x, y in zip(Rollout._fields, a, b):
        if name == "behavior_logp":
            np.testing.assert_allclose(x, y, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(x, y, err_msg=name)


def test_tokens_are_those_of_generate(transformer):
    tokens, lengths = pad_prompts(PROMPTS, bucket=4, max_length=16)
    lengths[2] = 0  # an absent prompt
    given = (
        transformer.network,
        transformer.params,
        tokens,
        lengths,
        np.arange(4),
        jax.random.key(5),
    )
    settings = {
        "sampling": SAMPLING,
        "group_size": 2,
        "reference_params": transformer.reference_params,
        "reference_weight": 0.5,
    }
    queued = generate(*given, **settings, slots=3)
    fixed = generate_fixed(*given, **settings)
    assert queued.stopped.any() and queued.completion_lengths.max() == 6
    assert_same(fixed, queued)


def test_vmaps_over_seeds_and_parameters_inside_one_program(linear):
    network = linear.network
    tokens, lengths = (jnp.asarray(x) for x in pad_prompts(PROMPTS, bucket=4, max_length=16))
    settings = {"sampling": SAMPLING, "group_size": 2}

    @jax.jit
    @jax.vmap
    def fixed(seed):
        key = jax.random.key(seed)
        params = network.init(key)
        given = (network, params, tokens, lengths, jnp.arange(4), key)
        return params, generate_fixed(*given, **settings)

    params, many = fixed(jnp.arange(3))
    for seed in range(3):
        own, one = jax.tree.map(lambda x, i=seed: x[i], (params, many))
        given = (network, own, tokens, lengths, jnp.arange(4), jax.random.key(seed))
        assert_same(one, generate(*given, **settings))
    assert (many.completions[0] != many.completions[1]).any()


def test_one_token(linear):
    tokens, lengths = pad_prompts(PROMPTS, bucket=4, max_length=16)
    given = (linear.network, linear.params, tokens, lengths, np.arange(4), jax.random.key(0))
    sampling = Sampling(max_tokens=1, stop_ids=(0,))
    fixed = generate_fixed(*given, sampling=sampling, group_size=2)
    assert fixed.completions.shape == (8, 1) and np.all(fixed.completion_lengths == 1)
    assert_same(fixed, generate(*given, sampling=sampling, group_size=2))


def test_bad_input_is_named(linear):
    with pytest.raises(ValueError, match="group_size is 0"):
        generate_fixed(
            linear.network,
            linear.params,
            np.ones((1, 2)),
            np.ones(1),
            np.ones(1),
            jax.random.key(0),
            sampling=SAMPLING,
            group_size=0,
        )
