"""`algorithms.whole_batch`: losses that couple the rows of a batch, in micro-batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import algorithms, losses, masking
from polgrad.contract import Algorithm, Outputs
from polgrad.training.scoring import split_tree

ROWS, T = 8, 5


def whitened(outputs, batch):
    """A user's own loss: REINFORCE with surprises that are whitened over the batch."""
    logp = (outputs.logp * batch["mask"]).sum(-1)
    z = (logp - logp.mean()) / jnp.std(logp)
    return (jnp.tanh(z) * batch["rewards"]).sum() + 0.1 * outputs.entropy.mean(), {
        "spread": (logp.std(), jnp.ones(()))
    }


def optimal_transport(outputs, batch):
    chosen, rejected = jnp.split((outputs.logp * batch["mask"]).sum(-1), 2)
    old_chosen, old_rejected = jnp.split(batch["reference_logp"].sum(-1), 2)
    return losses.aot(chosen, rejected, old_chosen, old_rejected, beta=0.5).mean(), {}


def kto(outputs, batch):
    ratio = ((outputs.logp - batch["reference_logp"]) * batch["mask"]).sum(-1)
    # A reference point with its gradient, unlike that of the paper.
    point = jnp.maximum(ratio.mean(), 0.0)
    return losses.kto(ratio, batch["rewards"] > 0, point).sum(), {}


def hinge(outputs, batch):
    kl = (0.5 * (outputs.logp - batch["reference_logp"]) ** 2 * batch["mask"]).mean()
    return 10.0 * jnp.maximum(kl - 0.01, 0.0) ** 2, {"kl": (kl, jnp.ones(()))}


LOSSES = {"whitened": whitened, "aot": optimal_transport, "kto": kto, "hinge": hinge}


def batch():
    keys = jax.random.split(jax.random.key(0), 4)
    mask = (jax.random.uniform(keys[0], (ROWS, T)) < 0.8).astype(float).at[:, 0].set(1.0)
    return {
        "mask": mask,
        "weights": masking.weights(mask, mode="token"),
        "rewards": jax.random.normal(keys[1], (ROWS,)),
        "reference_logp": -1.0 + 0.3 * jax.random.normal(keys[2], (ROWS, T)),
    }, 0.5 * jax.random.normal(keys[3], (ROWS, T))


def outputs_of(x):
    return Outputs(-1.0 + jnp.sin(x), 1.0 + x**2)


def in_parts(loss, x, batch, parts, select=None):
    """Value, gradient and metrics, added up over micro-batches."""
    chosen, linear = algorithms.whole_batch(loss, select=select)
    batch = chosen(jax.lax.stop_gradient(outputs_of(x)), batch, jax.random.key(1))

    def part(index):
        piece = jax.tree.map(lambda y: y[index], split_tree(batch, parts))
        rows = split_tree({"x": jnp.arange(ROWS)}, parts)["x"][index]
        return lambda x: linear(outputs_of(x[rows]), piece)

    found = [jax.value_and_grad(part(i), has_aux=True)(x) for i in range(parts)]
    return jax.tree.map(lambda *parts: sum(parts), *found)


@pytest.mark.parametrize("name", LOSSES)
def test_value_gradient_and_metrics_do_not_depend_on_the_split(name):
    with jax.enable_x64(True):
        loss, (given, x) = LOSSES[name], batch()
        (value, metrics), gradient = jax.value_and_grad(
            lambda x: loss(outputs_of(x), given), has_aux=True
        )(x)
        assert np.abs(gradient).max() > 1e-3
        for parts in (1, 2, 4):
            (total, measured), found = in_parts(loss, x, given, parts)
            np.testing.assert_allclose(total, value, atol=1e-12)
            np.testing.assert_allclose(found, gradient, atol=1e-9)
            for key, (amount, count) in metrics.items():
                np.testing.assert_allclose(measured[key][0], amount, atol=1e-12)
                np.testing.assert_allclose(measured[key][1], count, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_plain_parts_give_another_gradient(name):
    """Otherwise the test above would prove nothing."""
    with jax.enable_x64(True):
        loss, (given, x) = LOSSES[name], batch()
        whole = jax.grad(lambda x: loss(outputs_of(x), given)[0])(x)

        def parts(x):
            pieces = split_tree({**given, "x": x}, 4)
            pieces = [jax.tree.map(lambda y, i=i: y[i], pieces) for i in range(4)]
            return sum(loss(outputs_of(p["x"]), p)[0] for p in pieces) / 4

        assert not np.allclose(jax.grad(parts)(x), whole, rtol=1e-2, atol=1e-4)


def test_another_selection_comes_first():
    with jax.enable_x64(True):
        given, x = batch()

        def double(outputs, batch, key):
            return {**batch, "rewards": 2.0 * batch["rewards"]}

        doubled = {**given, "rewards": 2.0 * given["rewards"]}
        found = in_parts(whitened, x, given, 2, select=double)[1]
        np.testing.assert_allclose(found, in_parts(whitened, x, doubled, 1)[1], atol=1e-12)


def test_an_algorithm_is_made_to_split():
    given, _ = batch()
    plain = Algorithm(prepare=lambda state, experience, key: (state, experience, {}), loss=hinge)
    assert not plain.selects
    assert algorithms.splits(plain).selects
    chosen = algorithms.splits(plain).select(
        Outputs(jnp.zeros((ROWS, T))), given, jax.random.key(0)
    )
    assert all(x.shape[0] == ROWS for x in chosen.values())


def test_a_loss_that_is_no_number_is_refused():
    given, x = batch()
    select, _ = algorithms.whole_batch(lambda outputs, batch: (outputs.logp.sum(-1), {}))
    with pytest.raises(ValueError, match=r"shape \[8\], expected \[\]"):
        select(outputs_of(x), given, jax.random.key(0))


def test_a_token_that_the_policy_excludes_does_not_spoil_the_batch():
    given, _ = batch()
    logp = jnp.full((ROWS, T), -1.0).at[0, 0].set(-jnp.inf)

    def loss(outputs, batch):
        safe = jnp.where(jnp.isfinite(outputs.logp), outputs.logp, 0.0)
        return (safe.sum(-1).mean() ** 2), {}

    select, linear = algorithms.whole_batch(loss)
    chosen = select(Outputs(logp), given, jax.random.key(0))
    value, gradient = jax.value_and_grad(lambda x: linear(Outputs(x), chosen)[0])(logp)
    np.testing.assert_allclose(value, loss(Outputs(logp), given)[0], rtol=1e-6)
    assert np.isfinite(gradient).all() and gradient[0, 0] == 0.0
