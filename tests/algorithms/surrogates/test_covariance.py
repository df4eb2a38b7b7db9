"""The tokens that Clip-Cov and KL-Cov choose, by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from polgrad import algorithms
from polgrad.algorithms import surrogates
from polgrad.algorithms.surrogates.covariance import sample_noise
from polgrad.contract import Outputs

# Log-probabilities -1, -2, -3, -6 of mean -3, and advantages of mean 0: their products are
# 2, 1; 0, 3.
LOGP = jnp.array([[-1.0, -2.0, -9.0], [-3.0, -9.0, -6.0]])
ADVANTAGES = jnp.array([[1.0], [-1.0]])
MASK = jnp.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
BATCH = {
    "mask": MASK,
    "weights": MASK / 4,
    "advantages": ADVANTAGES,
    "prompt_ids": jnp.array([0, 1]),
    "sample_ids": jnp.array([0, 0]),
}
KEY = jax.random.key(0)


def selected(surrogate, behavior=LOGP):
    return surrogate.select(Outputs(LOGP), BATCH, behavior, KEY)["selected"]


def test_kl_cov_takes_the_largest_covariances():
    one = selected(surrogates.KLCov())
    np.testing.assert_array_equal(one, [[False] * 3, [False, False, True]])
    two = selected(surrogates.KLCov(fraction=0.5))
    np.testing.assert_array_equal(two, [[True, False, False], [False, False, True]])


def test_clip_cov_takes_from_a_band_what_the_clip_has_not_stopped():
    band = surrogates.ClipCov(low=1.5, high=2.5)
    np.testing.assert_array_equal(selected(band), [[True, False, False], [False] * 3])
    # The ratio e^2 of the first token, which has A > 0, is past the clip.
    behavior = LOGP.at[0, 0].add(-2.0)
    assert not selected(band, behavior).any()
    # Of two in a band one is taken.
    assert selected(surrogates.ClipCov(low=1.5, high=3.5)).sum() == 1


def test_the_noise_belongs_to_the_sample_and_not_to_its_row():
    ids = jnp.array([3, 5, 3]), jnp.array([0, 0, 1])
    noise = sample_noise(KEY, *ids, 4)
    order = jnp.array([2, 0, 1])
    np.testing.assert_array_equal(sample_noise(KEY, *(x[order] for x in ids), 4), noise[order])
    assert len(np.unique(noise)) == noise.size


def test_losses_with_a_selection_by_hand():
    """Ratios e^0.1, e^-0.1 of the first answer; the first token is selected."""
    logp = jnp.array([[-0.9, -1.1]])
    behavior = jnp.full((1, 2), -1.0)
    batch = {
        "advantages": jnp.array([[2.0]]),
        "selected": jnp.array([[True, False]]),
        "mask": jnp.ones((1, 2)),
    }
    up, down = math.exp(0.1), math.exp(-0.1)
    found = surrogates.ClipCov().batch_loss(Outputs(logp), batch, behavior)
    np.testing.assert_allclose(found, [[0, -2 * down]], rtol=1e-6)
    found = surrogates.KLCov(kl_coefficient=0.5).batch_loss(Outputs(logp), batch, behavior)
    np.testing.assert_allclose(found, [[0.5 * 0.1 - 2 * up, -2 * down]], rtol=1e-5)


def test_both_report_what_they_selected():
    batch = {**BATCH, "selected": jnp.array([[True, True, False], [False, True, False]])}
    for settings in (algorithms.KLCov(), algorithms.ClipCov()):
        metrics = settings.metrics(Outputs(LOGP), batch, LOGP)
        # The third of the selected tokens is masked.
        assert metrics["selected_fraction"] == (2, 4)
    assert "clip_fraction" in metrics
    assert algorithms.KLCov().metrics(Outputs(LOGP), batch, LOGP).keys() == {"selected_fraction"}
