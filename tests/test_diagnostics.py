import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run

from polgrad import diagnostics, distributions, divergences, losses
from polgrad.tabular import policy_gradient

MASK = jnp.array([[1, 1, 1], [1, 0, 0]])
EMPTY = jnp.zeros((2, 3))
RATIOS = jnp.array([[0.5, 1.0, 2.0], [1.5, 9.0, 0.1]])
LOGP, BEHAVIOR = jnp.log(RATIOS), jnp.zeros((2, 3))
ADVANTAGES = jnp.array([[1.0], [-1.0]])


def test_ratio_statistics():
    np.testing.assert_allclose(
        run(diagnostics.ratio, LOGP, BEHAVIOR, MASK), [1.25, 0.5, 2.0], rtol=1e-6
    )
    np.testing.assert_array_equal(run(diagnostics.ratio, LOGP, BEHAVIOR, EMPTY), [1.0, 1.0, 1.0])


@pytest.mark.parametrize("seed", range(3))
def test_clip_fraction_counts_the_tokens_without_gradient(seed):
    rng = np.random.default_rng(seed)
    logp, advantages = rng.normal(0, 0.4, (2, 2, 3)).astype(np.float32)
    clip = {"clip_low": 0.2, "clip_high": 0.3}
    slope = grad(lambda x, a: losses.ppo_clip(x, BEHAVIOR, a, **clip).sum())(logp, advantages)
    fraction = run(diagnostics.clip_fraction, logp, BEHAVIOR, advantages, MASK, **clip)
    assert fraction == pytest.approx(np.mean(np.asarray(slope)[np.asarray(MASK) > 0] == 0))
    assert run(diagnostics.clip_fraction, logp, BEHAVIOR, advantages, EMPTY, **clip) == 0.0


def test_kl_is_the_mean_estimate():
    for kind in ("k1", "k2", "k3"):
        tokens = divergences.kl_estimate(LOGP, BEHAVIOR, kind=kind)
        expected = np.asarray(tokens)[np.asarray(MASK) > 0].mean()
        assert run(diagnostics.kl, LOGP, BEHAVIOR, MASK, kind=kind) == pytest.approx(expected)


def test_mean_entropy_averages_sequences_of_any_length_alike():
    entropy = jnp.array([[1.0, 2.0, 3.0], [6.0, jnp.nan, jnp.nan]])
    assert run(diagnostics.mean_entropy, entropy, MASK) == 4.0
    assert run(diagnostics.mean_entropy, entropy, EMPTY) == 0.0


def test_effective_sample_size():
    inf = jnp.inf
    size = lambda logs: run(diagnostics.effective_sample_size, jnp.array(logs), jnp.ones(4))  # noqa: E731
    assert size([3.0, 3.0, 3.0, 3.0]) == pytest.approx(4.0)
    assert size([0.0, -inf, -inf, -inf]) == 1.0
    assert size([-inf, -inf, -inf, -inf]) == 0.0
    w = np.array([1.0, 2.0, 3.0, 4.0])
    expected = w.sum() ** 2 / np.square(w).sum()
    assert size(np.log(w)) == pytest.approx(expected)
    assert size(np.log(w) + 500.0) == pytest.approx(expected), "a common factor cancels"
    mask = jnp.array([1, 1, 0, 0])
    assert run(diagnostics.effective_sample_size, jnp.log(w), mask) == pytest.approx(9 / 5)


def test_explained_variance():
    targets = jnp.array([[1.0, 2.0, 4.0], [5.0, jnp.nan, jnp.nan]])
    explained = lambda v: run(diagnostics.explained_variance, v, targets, MASK)  # noqa: E731
    assert explained(targets) == 1.0
    assert explained(targets + 7.0) == pytest.approx(1.0, abs=1e-6)
    assert explained(jnp.full((2, 3), 3.0)) == pytest.approx(0.0, abs=1e-6)
    assert explained(-targets) == pytest.approx(-3.0, abs=1e-5)
    assert run(diagnostics.explained_variance, targets, jnp.ones((2, 3)), MASK) == 0.0


LOGITS = jnp.array([1.0, 0.5, -0.5, -1.0])
ADVANTAGE = jnp.array([0.55320, -0.64680, -0.14680, -0.94680])


@pytest.mark.parametrize(("natural", "expected"), [(False, -0.0774357), (True, -0.2552466)])
def test_entropy_change_predicts_a_policy_gradient_step(natural, expected):
    with jax.enable_x64(True):
        z, a = (jnp.asarray(np.asarray(x, np.float64)) for x in (LOGITS, ADVANTAGE))
        direction = a if natural else jax.nn.softmax(z) * a
        change = run(diagnostics.entropy_change, z, direction)
        assert change == pytest.approx(expected, abs=2e-6)
        step = 1e-5
        entropy = distributions.entropy
        difference = (entropy(z + step * direction) - entropy(z)) / step
        assert change == pytest.approx(float(difference), abs=1e-5)


def test_entropy_of_a_uniform_policy_does_not_change_to_first_order():
    change = run(diagnostics.entropy_change, jnp.zeros((2, 4)), jnp.stack([LOGITS, ADVANTAGE]))
    np.testing.assert_allclose(change, 0.0, atol=1e-6)
    excluded = run(
        diagnostics.entropy_change, jnp.array([0.3, -jnp.inf, 0.0]), jnp.array([1.0, 9.0, 0.0])
    )
    without = run(diagnostics.entropy_change, jnp.array([0.3, 0.0]), jnp.array([1.0, 0.0]))
    assert excluded == pytest.approx(without)


def test_entropy_change_tells_the_sign_along_exact_policy_gradients():
    rewards, start = jax.random.normal(jax.random.key(0), (2, 32, 6))

    def step(logits, _):
        change = 0.1 * policy_gradient(logits, rewards)
        after = logits + change
        entropy = distributions.entropy
        return after, (
            diagnostics.entropy_change(logits, change),
            entropy(after) - entropy(logits),
        )

    _, (predicted, actual) = jax.jit(lambda z: jax.lax.scan(step, z, length=200))(start)
    assert np.mean(np.sign(predicted) == np.sign(actual)) >= 0.95
    # Entropy rises somewhere too, so that a constant sign would not do.
    assert 0.05 < np.mean(np.asarray(actual) > 0) < 0.95


def test_fit_entropy_law_recovers_its_coefficients():
    entropy = np.array([1.5, 1.0, 0.5, 0.1])
    law = diagnostics.fit_entropy_law(entropy, -0.3 * np.exp(entropy) + 0.9)
    assert law.a == pytest.approx(0.3, abs=1e-8) and law.b == pytest.approx(0.9, abs=1e-8)
    assert law.ceiling == pytest.approx(0.6, abs=1e-8) and law.rmse < 1e-12
    noisy = diagnostics.fit_entropy_law([0.0, 0.0, np.log(2), np.log(2)], [1.0, 0.0, 2.0, 3.0])
    assert (noisy.a, noisy.b, noisy.rmse) == pytest.approx((-2.0, -1.5, 0.5))


def test_nothing_carries_a_gradient():
    args = (BEHAVIOR, ADVANTAGES, MASK)
    for function in (
        lambda x: diagnostics.ratio(x, BEHAVIOR, MASK).largest,
        lambda x: diagnostics.clip_fraction(x, *args),
        lambda x: diagnostics.kl(x, BEHAVIOR, MASK),
        lambda x: diagnostics.mean_entropy(x, MASK),
        lambda x: diagnostics.effective_sample_size(x, MASK),
        lambda x: diagnostics.explained_variance(x, 2 * x, MASK),
        lambda x: diagnostics.entropy_change(x, x).sum(),
    ):
        np.testing.assert_array_equal(grad(function)(LOGP), 0.0)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"mask has shape \[3\]"):
        diagnostics.ratio(LOGP, BEHAVIOR, jnp.ones(3))
    with pytest.raises(ValueError, match=r"advantages has shape \[2\]"):
        diagnostics.clip_fraction(LOGP, BEHAVIOR, jnp.ones(2), MASK)
    with pytest.raises(ValueError, match="kind .*k4"):
        diagnostics.kl(LOGP, BEHAVIOR, MASK, kind="k4")
    with pytest.raises(ValueError, match="at least three points"):
        diagnostics.fit_entropy_law([1.0, 2.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="3 points with 1 values"):
        diagnostics.fit_entropy_law([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"performance has shape \[2\], entropy \[3\]"):
        diagnostics.fit_entropy_law([1.0, 2.0, 3.0], [1.0, 2.0])


def test_pair_accuracy_counts_a_tie_half():
    chosen = jnp.array([1.0, 2.0, 3.0, jnp.nan, jnp.inf])
    rejected = jnp.array([2.0, 1.0, 3.0, 1.0, 0.0])
    found = run(diagnostics.pair_accuracy, chosen, rejected)
    np.testing.assert_array_equal(found, [0.0, 1.0, 0.5, 0.5, 1.0])
    assert (
        run(diagnostics.pair_accuracy, jnp.zeros(2, jnp.bfloat16), jnp.ones(2)).dtype == "float32"
    )
    with pytest.raises(ValueError, match="rejected_scores has shape"):
        diagnostics.pair_accuracy(chosen, rejected[:2])


def gain_of_ranking(scores, labels, top):
    """Mean over all rankings that sort the scores: ties are broken at random."""
    n = len(scores)
    orders = [
        order
        for order in itertools.permutations(range(n))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    total = 0.0
    for order in orders:
        total += sum((2.0 ** labels[i] - 1) / np.log(2.0 + p) for p, i in enumerate(order[:top]))
    return total / len(orders)


@pytest.mark.parametrize("top", [None, 2])
def test_ndcg_is_the_mean_over_ways_to_break_ties(top):
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 3, (2, 6, 4)) / 4.0
    labels[0] = 0.0
    found = run(diagnostics.ndcg, scores, labels, top=top)
    for s, y, value in zip(scores, labels, found):
        best = gain_of_ranking(y, y, top)
        expected = gain_of_ranking(s, y, top) / best if best else 0.0
        assert float(value) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(run(diagnostics.ndcg, labels, labels, top=top)[1:], 1.0, rtol=1e-6)


def test_ndcg_edges():
    def call(scores, labels, valid):
        return diagnostics.ndcg(scores, labels, valid=valid)

    scores = np.array([[3.0, 1.0, 2.0, np.nan], [1.0, 2.0, 3.0, np.inf]], np.float32)
    labels = np.array([[0.0, 1.0, 0.5, 1.0], [0.0, 0.0, 0.0, 1.0]], np.float32)
    found = run(call, scores, labels, np.ones((2, 4), bool))
    worst = (2**0.5 - 1) / np.log(3) + 1 / np.log(4)
    best = 1 / np.log(2) + (2**0.5 - 1) / np.log(3)
    np.testing.assert_allclose(found, [worst / best, 0.0], rtol=1e-6)
    found = run(call, scores, labels, np.array([[1, 1, 0, 1], [0, 0, 0, 0]], bool))
    np.testing.assert_allclose(found, [np.log(2) / np.log(3), 0.0], rtol=1e-6)
    np.testing.assert_array_equal(run(call, scores, labels, np.zeros((2, 4), bool)), 0.0)
    assert run(diagnostics.ndcg, np.zeros((2, 0)), np.zeros((2, 0))).tolist() == [0.0, 0.0]
    slope = grad(lambda s, y: diagnostics.ndcg(s, y).sum(), argnums=(0, 1))(scores, labels)
    np.testing.assert_array_equal(slope, 0.0)
    x = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match="labels has shape"):
        diagnostics.ndcg(x, x[0])
    with pytest.raises(ValueError, match="valid has shape"):
        diagnostics.ndcg(x, x, valid=jnp.ones(3, bool))
    with pytest.raises(ValueError, match="scores has shape"):
        diagnostics.ndcg(jnp.zeros(()), jnp.zeros(()))
    with pytest.raises(ValueError, match="top is 0"):
        diagnostics.ndcg(x, x, top=0)
