"""Resets to prefixes: their distribution, the sampler's teacher forcing, masks, the update."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run
from hypothesis import given
from hypothesis import strategies as st

from polgrad import losses, masking, rollouts
from polgrad.policies import LinearNetwork
from polgrad.rollouts.resets import (
    forced_tokens,
    join_prefix,
    prefix_lengths,
    reset_prompts,
    reset_states,
)
from polgrad.tabular import nash_md_step, self_play_step

REFERENCES = jnp.array([[5, 6, 7], [4, 3, 2], [1, 2, 0], [7, 7, 7]])
PREFIX = jnp.array([2, 0, 1, 3])


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def test_prefixes_are_uniform_over_the_admissible_lengths():
    noise = (np.arange(1000) + 0.5) / 1000
    five = jnp.full(1000, 5)
    counts = np.bincount(run(prefix_lengths, five, noise), minlength=5)
    np.testing.assert_array_equal(counts, [0, 250, 250, 250, 250])
    counts = np.bincount(run(prefix_lengths, five, noise, min_prefix=0), minlength=5)
    np.testing.assert_array_equal(counts, [200] * 5)
    counts = np.bincount(run(prefix_lengths, five, noise, beta=0.3), minlength=5)
    np.testing.assert_allclose(counts, [700, 75, 75, 75, 75], atol=1)
    np.testing.assert_array_equal(run(prefix_lengths, five, noise, beta=0.0), 0)


def test_prefixes_of_random_numbers():
    noise = jax.random.uniform(jax.random.key(0), (10_000,))
    drawn = np.asarray(run(prefix_lengths, jnp.full(10_000, 5), noise, beta=0.3))
    assert abs(np.mean(drawn == 0) - 0.7) < 4 * np.sqrt(0.3 * 0.7 / 10_000)
    share = np.bincount(drawn, minlength=5)[1:] / np.sum(drawn > 0)
    np.testing.assert_allclose(share, 0.25, atol=4 * np.sqrt(0.25 * 0.75 / 3000))


def test_short_references_give_nothing():
    lengths = jnp.array([0, 1, 2, 3])
    top = jnp.full(4, np.nextafter(np.float32(1), np.float32(0)))
    np.testing.assert_array_equal(run(prefix_lengths, lengths, top), [0, 0, 1, 2])
    np.testing.assert_array_equal(run(prefix_lengths, lengths, top, min_prefix=2), [0, 0, 0, 2])
    np.testing.assert_array_equal(run(prefix_lengths, lengths, top, min_prefix=0), [0, 0, 1, 2])
    np.testing.assert_array_equal(run(prefix_lengths, lengths, jnp.zeros(4)), [0, 0, 1, 1])
    # Not even a long reference and rounding reach its last token.
    long = run(prefix_lengths, jnp.array([2**24]), top[:1], min_prefix=0)
    np.testing.assert_array_less(long, 2**24)


def test_a_lock_is_opened_far_more_often_from_inside():
    # Ten digits, each right with probability 1/2 as long as all before were.
    noise = (np.arange(1000) + 0.5) / 1000
    inside = run(prefix_lengths, jnp.full(1000, 10), noise, min_prefix=0)
    np.testing.assert_allclose(np.mean(0.5 ** (10 - np.asarray(inside))), 0.0999, atol=1e-4)
    start = run(prefix_lengths, jnp.full(1000, 10), noise, beta=0.0, min_prefix=0)
    np.testing.assert_allclose(np.mean(0.5 ** (10 - np.asarray(start))), 0.000977, atol=1e-6)


def test_forced_tokens_by_hand():
    forced = run(forced_tokens, REFERENCES, PREFIX)
    np.testing.assert_array_equal(forced.tokens, [[5, 6, 0], [0, 0, 0], [1, 0, 0], [7, 7, 7]])
    np.testing.assert_array_equal(forced.mask, [[1, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 1]])


def test_prompts_and_answers_by_hand():
    prompts = jnp.array([[9, 8], [9, 1], [9, 1], [9, 1]])
    reset = run(reset_prompts, prompts, jnp.array([2, 1, 1, 0]), REFERENCES, PREFIX)
    expected = [[9, 8, 5, 6, 0], [9, 0, 0, 0, 0], [9, 1, 0, 0, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(reset.prompts, expected)
    np.testing.assert_array_equal(reset.prompt_lengths, [4, 1, 2, 0])
    completions = jnp.array([[1, 2], [3, 4], [5, 6], [7, 8]])
    answers = run(join_prefix, REFERENCES, PREFIX, completions, jnp.array([2, 1, 0, 2]))
    expected = [[5, 6, 1, 2, 0], [3, 0, 0, 0, 0], [1, 0, 0, 0, 0], [7, 7, 7, 7, 8]]
    np.testing.assert_array_equal(answers.tokens, expected)
    mask = [[1, 1, 1, 1, 0], [1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]
    np.testing.assert_array_equal(answers.mask, mask)
    generated = [[0, 0, 1, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 1, 1]]
    np.testing.assert_array_equal(answers.generated, generated)
    cut = run(join_prefix, REFERENCES, PREFIX, completions, jnp.array([2, 1, 0, 2]), width=3)
    for short, whole in zip(cut, answers):
        np.testing.assert_array_equal(short, whole[:, :3])
    one = run(join_prefix, REFERENCES, PREFIX, completions, jnp.array([2, 1, 0, 2]), width=1)
    assert one.tokens.shape == (4, 1)


@given(st.integers(0, 10_000))
def test_rows_are_joined_as_lists_are(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.integers(1, 9, (2, 4, 3))
    lengths = rng.integers(0, 4, (2, 4))
    answers = run(join_prefix, first, lengths[0], second, lengths[1])
    for b in range(4):
        joined = [*first[b, : lengths[0, b]], *second[b, : lengths[1, b]]]
        np.testing.assert_array_equal(answers.tokens[b], joined + [0] * (6 - len(joined)))
        assert answers.mask[b].sum() == len(joined)
        np.testing.assert_array_equal(
            answers.mask[b] - answers.generated[b], np.arange(6) < lengths[0, b]
        )


def test_the_sampler_goes_on_from_the_prefix():
    network = LinearNetwork(vocab_size=8, width=6)
    params = network.init(jax.random.key(0))
    prompts, prompt_lengths = jnp.array([[3, 1], [2, 0], [5, 5], [4, 0]]), jnp.array([2, 1, 2, 1])
    sampling = rollouts.Sampling(max_tokens=4, stop_ids=(0,))
    reset = reset_prompts(prompts, prompt_lengths, REFERENCES, PREFIX)
    ids, key = jnp.arange(4), jax.random.key(1)
    rollout = rollouts.generate_fixed(network, params, *reset, ids, key, sampling=sampling)
    answers = join_prefix(REFERENCES, PREFIX, rollout.completions, rollout.completion_lengths)
    forced = forced_tokens(REFERENCES, PREFIX)
    np.testing.assert_array_equal(np.where(forced.mask, answers.tokens[:, :3], 0), forced.tokens)
    np.testing.assert_array_equal(answers.mask.sum(-1), PREFIX + rollout.completion_lengths)
    # The continuation is plain sampling from the same text, given as a prompt by hand.
    texts = [[3, 1, 5, 6], [2], [5, 5, 1], [4, 7, 7, 7]]
    tokens, lengths = rollouts.pad_prompts(texts, bucket=5, max_length=5)
    plain = rollouts.generate_fixed(network, params, tokens, lengths, ids, key, sampling=sampling)
    np.testing.assert_array_equal(rollout.completions, plain.completions)
    np.testing.assert_array_equal(rollout.behavior_logp, plain.behavior_logp)
    for b in range(4):
        kept = np.asarray(answers.tokens[b])[np.asarray(answers.generated[b]) > 0]
        np.testing.assert_array_equal(kept, plain.completions[b, : len(kept)])
    # Without a reset it is the ordinary rollout.
    start = reset_prompts(prompts, prompt_lengths, REFERENCES, jnp.zeros(4, int))
    np.testing.assert_array_equal(start.prompts[:, :2], prompts)
    np.testing.assert_array_equal(start.prompt_lengths, prompt_lengths)


def test_the_policy_loss_sees_what_was_generated(x64):
    rng = np.random.default_rng(0)
    logp = -rng.random((5, 4))
    behavior, advantages = logp + 0.1 * rng.normal(size=(5, 4)), rng.normal(size=(5, 4))
    answers = join_prefix(
        jnp.ones((5, 2), int), jnp.array([2, 0, 1, 2, 0]), jnp.ones((5, 2), int), jnp.full(5, 2)
    )

    def loss(x, mask):
        return masking.reduce(losses.ppo_clip(x, behavior, advantages), mask, mode="token")

    slope = grad(loss)(jnp.asarray(logp), answers.generated)
    np.testing.assert_array_equal(slope[answers.generated == 0], 0.0)
    assert np.any(slope[answers.generated > 0] != 0)
    # Without resets every token of the answer is generated, and the loss is PPO's.
    start = join_prefix(
        jnp.ones((5, 2), int), jnp.zeros(5, int), jnp.ones((5, 4), int), jnp.full(5, 4), width=4
    )
    np.testing.assert_array_equal(start.generated, 1.0)
    assert loss(logp, start.generated) == loss(logp, jnp.ones((5, 4)))
    # A prefix may leave nothing to generate.
    np.testing.assert_array_equal(grad(loss)(jnp.asarray(logp), jnp.zeros((5, 4))), 0.0)


def test_simulators_are_reset_to_recorded_states():
    states = {"x": jnp.arange(8.0).reshape(4, 2), "t": jnp.arange(4)}
    initial = {"x": -jnp.ones((5, 2)), "t": jnp.full(5, -1)}
    noise = jnp.array([0.0, 0.1249, 0.126, 0.4999, 0.5])
    chosen = run(reset_states, states, initial, noise, beta=0.5)
    np.testing.assert_array_equal(chosen["t"], [0, 0, 1, 3, -1])
    np.testing.assert_array_equal(chosen["x"], [[0, 1], [0, 1], [2, 3], [6, 7], [-1, -1]])
    always = run(reset_states, states, initial, noise)
    np.testing.assert_array_equal(always["t"], [0, 0, 0, 1, 2])
    never = run(reset_states, states, initial, noise, beta=0.0)
    np.testing.assert_array_equal(never["t"], -1)


def npg_step(policy, reference, values, *, eta, lambda_):
    """argmax <Q, p> - lambda KL(p || reference) - KL(p || policy) / eta, as a game against itself.

    Action values are a preference with constant rows; the step is that of mirror descent with
    eta / (1 + eta lambda).
    """
    preference = jnp.broadcast_to(values[:, None], (len(values),) * 2)
    scaled = eta / (1.0 + eta * lambda_)
    return nash_md_step(policy, reference, preference, eta=scaled, tau=lambda_)


def test_the_natural_policy_gradient_step_is_mirror_descent(x64):
    reference, policy = jnp.array([0.5, 0.3, 0.2]), jnp.array([0.2, 0.5, 0.3])
    values, eta, lambda_ = jnp.array([1.0, 0.0, -0.5]), 2.0, 0.5
    step = npg_step(policy, reference, values, eta=eta, lambda_=lambda_)
    np.testing.assert_allclose(step, [0.61599, 0.27754, 0.10647], atol=1e-5)
    same = self_play_step(
        policy, reference, jnp.tile(values[:, None], (1, 3)), eta=eta / 2, tau=lambda_
    )
    np.testing.assert_allclose(same, step, rtol=1e-12)

    def objective(z):
        logp = jax.nn.log_softmax(z)
        p = jnp.exp(logp)
        held = lambda_ * p @ (logp - jnp.log(reference)) + p @ (logp - jnp.log(policy)) / eta
        return -p @ values + held

    np.testing.assert_allclose(grad(objective)(jnp.log(step)), 0.0, atol=1e-12)
    free = npg_step(policy, reference, values, eta=eta, lambda_=0.0)
    np.testing.assert_allclose(free, jax.nn.softmax(jnp.log(policy) + eta * values), rtol=1e-12)
    far = npg_step(policy, reference, values, eta=1e12, lambda_=lambda_)
    optimum = jax.nn.softmax(jnp.log(reference) + values / lambda_)
    np.testing.assert_allclose(far, optimum, rtol=1e-9)
    flat = npg_step(reference, reference, jnp.ones(3), eta=eta, lambda_=lambda_)
    np.testing.assert_allclose(flat, reference, rtol=1e-12)


def test_bad_arguments_are_named():
    lengths, noise = jnp.ones(2, int), jnp.ones(2)
    for beta in (-0.1, 1.1):
        with pytest.raises(ValueError, match="beta is"):
            prefix_lengths(lengths, noise, beta=beta)
        with pytest.raises(ValueError, match="beta is"):
            reset_states(jnp.ones(3), jnp.ones(2), noise, beta=beta)
    with pytest.raises(ValueError, match="min_prefix is -1"):
        prefix_lengths(lengths, noise, min_prefix=-1)
    with pytest.raises(ValueError, match="noise has shape"):
        prefix_lengths(lengths, noise[:1])
    with pytest.raises(ValueError, match="reference_lengths has shape"):
        prefix_lengths(lengths[None], noise[None])
    with pytest.raises(ValueError, match="references has shape"):
        forced_tokens(lengths, lengths)
    with pytest.raises(ValueError, match="prefix has shape"):
        forced_tokens(REFERENCES, lengths)
    with pytest.raises(ValueError, match="prompts has shape"):
        reset_prompts(lengths, lengths, REFERENCES, PREFIX)
    with pytest.raises(ValueError, match="prompt_lengths has shape"):
        reset_prompts(REFERENCES, lengths, REFERENCES, PREFIX)
    with pytest.raises(ValueError, match="references has shape"):
        reset_prompts(REFERENCES, PREFIX, REFERENCES[:2], PREFIX)
    with pytest.raises(ValueError, match="prefix has shape"):
        reset_prompts(REFERENCES, PREFIX, REFERENCES, PREFIX[:2])
    with pytest.raises(ValueError, match="references has shape"):
        join_prefix(lengths, PREFIX, REFERENCES, PREFIX)
    with pytest.raises(ValueError, match="prefix has shape"):
        join_prefix(REFERENCES, lengths, REFERENCES, PREFIX)
    with pytest.raises(ValueError, match="completions has shape"):
        join_prefix(REFERENCES, PREFIX, REFERENCES[:2], PREFIX)
    with pytest.raises(ValueError, match="completion_lengths has shape"):
        join_prefix(REFERENCES, PREFIX, REFERENCES, lengths)
    with pytest.raises(ValueError, match="width is 0"):
        join_prefix(REFERENCES, PREFIX, REFERENCES, PREFIX, width=0)
    with pytest.raises(ValueError, match="initial has shape"):
        reset_states(jnp.ones((3, 2)), jnp.ones(2), noise)
