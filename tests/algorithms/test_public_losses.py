"""What a run trains is the public function: the gradient of each update, by lines of the test.

A dozen losses of pairs, answers and groups, one of each form.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stored import GROUP, PROMPTS, T, stored_for

from polgrad import advantages, algorithms, losses
from polgrad.contract import Context, Outputs, Pair

OFF = Context(GROUP, T, PROMPTS, on_policy=False)


def totals(logp, batch):
    """Sums over the tokens that count."""
    return (logp * batch["mask"]).sum(-1)


def means(logp, batch):
    return totals(logp, batch) / batch["mask"].sum(-1)


def ratios(logp, batch):
    return totals(logp - batch["reference_logp"], batch)


def columns(x):
    return [x[:, i] for i in range(x.shape[1])]


def over_samples(loss, batch):
    """The mean over samples with a reward."""
    return (loss * batch["valid"]).sum() / batch["valid"].sum()


def standardised(batch):
    """GRPO's advantages of the groups, one a sample."""
    groups = [batch[name].reshape(-1, GROUP) for name in ("rewards", "valid")]
    return advantages.group_relative(groups[0], valid=groups[1]).reshape(-1)


def of_answers(function, **settings):
    def loss(logp, batch):
        loss = function(
            logp, batch["behavior_logp"], standardised(batch), counted(batch), **settings
        )
        return loss.sum() / batch["valid"].sum()

    return loss


def counted(batch):
    return batch["mask"] * batch["valid"][:, None]


def groups(x):
    return x.reshape(-1, GROUP, *x.shape[1:])


# The mean over units of the public function, from nothing but log-probabilities and stored arrays.
DIRECT = {
    "ipo": lambda x, b: losses.ipo(*columns(ratios(x, b)), beta=0.3).mean(),
    "inpo": lambda x, b: losses.inpo(
        losses.inpo_contrast(
            *columns(totals(x, b)),
            *columns(totals(b["reference_logp"], b)),
            *columns(totals(b["behavior_logp"], b)),
            inverse_step=0.3,
            tau=0.1,
        ),
        inverse_step=0.3,
    ).mean(),
    "sppo": lambda x, b: sum(
        losses.sppo(totals(x - b["behavior_logp"], b)[:, i], jnp.full(len(x), rate), eta=2.0)
        for i, rate in enumerate((1.0, 0.0))
    ).mean(),
    "simpo": lambda x, b: losses.simpo(*columns(means(x, b)), beta=1.5, gamma=0.4).mean(),
    "orpo": lambda x, b: losses.orpo(*columns(means(x, b)), beta=0.3).mean(),
    "rpo": lambda x, b: losses.rpo(
        *columns(ratios(x, b))[:2], totals(x, b)[:, 2], beta=0.2, adversary_weight=0.1
    ).mean(),
    "aot": lambda x, b: losses.aot(
        *columns(totals(x, b)), *columns(totals(b["reference_logp"], b)), beta=0.2
    ).mean(),
    "gspo": of_answers(losses.gspo, clip_low=0.1, clip_high=0.2),
    "luspo": of_answers(losses.luspo, clip_low=0.1, clip_high=0.2),
    "ppo_clip_sequence": of_answers(losses.ppo_clip_sequence, clip_low=0.5, clip_high=0.7),
    "copg": lambda x, b: over_samples(
        losses.copg_group(ratios(x, b), b["rewards"], beta=0.2, valid=b["valid"]), b
    ),
    "p3o_v2": lambda x, b: over_samples(
        losses.p3o_v2(
            totals(x, b),
            totals(b["behavior_logp"], b),
            b["rewards"],
            clip=0.3,
            clip_logits=2.0,
            valid=b["valid"],
        ),
        b,
    ),
    "disco_b": lambda x, b: losses.disco_b(
        means(x, b), b["rewards"], surrogate="logistic", valid=b["valid"]
    ).mean(),
    "best_of_n": lambda x, b: losses.best_of_n(
        totals(x, b), b["rewards"], negative="mean", negative_weight=0.5, valid=b["valid"]
    ).mean(),
}
SETTINGS = {
    "ipo": {"beta": 0.3},
    "inpo": {"inverse_step": 0.3, "tau": 0.1},
    "sppo": {"eta": 2.0},
    "simpo": {"beta": 1.5, "gamma": 0.4},
    "orpo": {"beta": 0.3},
    "rpo": {"beta": 0.2, "adversary_weight": 0.1, "third": "data"},
    "aot": {"beta": 0.2},
    "gspo": {"clip_low": 0.1, "clip_high": 0.2},
    "luspo": {"clip_low": 0.1, "clip_high": 0.2},
    "ppo_clip_sequence": {"clip_low": 0.5, "clip_high": 0.7},
    "copg": {"beta": 0.2},
    "p3o_v2": {"clip": 0.3, "clip_logits": 2.0},
    "disco_b": {"surrogate": "logistic", "bound": None},
    "best_of_n": {"negative": "mean", "negative_weight": 0.5},
}


def extremes(given):
    """The best and the worst sample with a reward of each group."""
    rows = []
    for start in range(0, GROUP * PROMPTS, GROUP):
        known = [i for i in range(start, start + GROUP) if given["valid"][i]]
        rows.append([pick(known, key=lambda i: given["rewards"][i]) for pick in (max, min)])
    return jax.tree.map(lambda x: x[np.array(rows)], given)


def by_unit(algorithm, given):
    """The stored arrays in the layout of the batch."""
    if algorithm.unit.axes == 0 or not algorithm.samples:
        return given
    return extremes(given) if algorithm.unit == Pair() else jax.tree.map(groups, given)


def gradients(name, settings):
    """Of the algorithm and of the test's own lines, in the log-probabilities."""
    algorithm = settings.build(OFF)
    given = stored_for(algorithm)
    _, batch, _ = algorithm.prepare(algorithm.init(None), given, None)
    # The arrays as they are stored, for the direct lines.
    kept = by_unit(algorithm, given)
    noise = jax.random.normal(jax.random.key(1), kept["mask"].shape)
    start = kept["behavior_logp"] + 0.3 * noise * kept["mask"]

    def ours(logp):
        outputs = Outputs(logp)
        chosen = algorithm.select(jax.lax.stop_gradient(outputs), batch, None)
        return algorithm.loss(outputs, chosen)[0]

    return jax.grad(ours)(start), jax.grad(lambda x: DIRECT[name](x, kept))(start)


@pytest.mark.parametrize("name", DIRECT)
def test_the_update_has_the_gradient_of_the_public_function(name):
    ours, direct = gradients(name, algorithms.find(name)(**SETTINGS[name]))
    assert np.abs(direct).max() > 1e-3
    np.testing.assert_allclose(ours, direct, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["ipo", "luspo", "copg"])
def test_a_loss_of_zero_would_be_found(name):
    found = algorithms.find(name)

    class Zero(found):
        @staticmethod
        def function(*arrays, **settings):
            return 0.0 * found.function(*arrays, **settings)

    Zero.function.__signature__ = inspect.signature(found.function)
    ours, direct = gradients(name, Zero(**SETTINGS[name]))
    assert not np.allclose(ours, direct, atol=1e-3)
