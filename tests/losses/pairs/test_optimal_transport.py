"""AOT: sorted margins by hand, one pair, invalid pairs, stopped reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import losses

RNG = np.random.default_rng(0)
LOGS = RNG.normal(-5, 2, (4, 5))


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def test_everything_is_valid_when_nothing_is_said():
    everything = np.ones(5, bool)
    np.testing.assert_array_equal(losses.aot(*LOGS), losses.aot(*LOGS, valid=everything))


def test_one_pair_is_dpo():
    w, r, ref_w, ref_r = LOGS[:, :1]
    dpo = losses.dpo(w - ref_w, r - ref_r, beta=0.3)
    np.testing.assert_allclose(losses.aot(w, r, ref_w, ref_r, beta=0.3), dpo, rtol=1e-12)
    np.testing.assert_allclose(
        losses.aot_unpaired(w, r, beta=0.3), losses.dpo(w, r, beta=0.3), rtol=1e-12
    )


@pytest.mark.parametrize("loss, count", [(losses.aot, 4), (losses.aot_unpaired, 2)])
def test_invalid_pairs_change_nothing(loss, count):
    valid = np.array([1, 0, 1, 1, 0], bool)
    whole = loss(*LOGS[:count], valid=valid)
    np.testing.assert_allclose(whole[valid], loss(*LOGS[:count, valid]), rtol=1e-12)
    np.testing.assert_array_equal(whole[~valid], 0.0)
    slopes = jax.grad(lambda *x: loss(*x, valid=valid).sum(), argnums=tuple(range(count)))(
        *LOGS[:count]
    )
    np.testing.assert_array_equal(np.stack(slopes)[:, ~valid], 0.0)
    assert np.all(slopes[0][valid] < 0) and np.all(slopes[1][valid] > 0)
    np.testing.assert_array_equal(np.stack(slopes)[2:], 0.0)


@pytest.mark.parametrize("loss, count", [(losses.aot, 4), (losses.aot_unpaired, 2)])
def test_edges_and_bad_arguments(loss, count):
    args = [np.array([-np.inf, np.nan, 0.0])] * count
    assert np.all(np.isfinite(loss(*args)))
    zero = jnp.zeros(2)
    with pytest.raises(ValueError, match="beta"):
        loss(*[zero] * count, beta=0.0)
    with pytest.raises(ValueError, match="chosen_log"):
        loss(*[zero[None]] * count)
    with pytest.raises(ValueError, match="rejected_log"):
        loss(zero, jnp.zeros(3), *[zero] * (count - 2))
    with pytest.raises(ValueError, match="valid"):
        loss(*[zero] * count, valid=jnp.ones(3, bool))
