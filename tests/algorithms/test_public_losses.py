"""What a run trains is the public function: the gradient of each update, by lines of the test.

A dozen losses of pairs, answers and groups, one of each form.
"""

import dataclasses
import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stored import GROUP, PROMPTS, T, stored_rollouts

from polgrad import advantages, algorithms, divergences, losses, running
from polgrad.contract import Average, Context, Initial, Outputs, Pair, Previous

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


def experience(algorithm):
    """The stored rollouts, in the layout that the algorithm's data have."""
    found = jax.tree.map(jnp.asarray, stored_rollouts())
    if algorithm.samples:
        for name, kind in algorithm.policies.items():
            if kind == Previous(every=1):
                found[f"{name}_logp"] = found["behavior_logp"]
        if algorithm.unit == Pair():
            return found
    found["rewards"] = jnp.round(found["rewards"])
    if algorithm.samples:
        return found
    rows = np.arange(5 * len(algorithm.unit.roles)).reshape(5, -1)
    return {name: x[rows] for name, x in found.items()}


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
    given = experience(algorithm)
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


def test_inpo_with_tau_at_its_inverse_step_is_ipo_against_the_reference():
    both = algorithms.INPO(inverse_step=0.3, tau=0.3), algorithms.IPO(beta=0.3, pairs="samples")
    found = []
    for settings in both:
        algorithm = settings.build(OFF)
        _, batch, _ = algorithm.prepare((), experience(algorithm), None)
        logp = batch["behavior_logp"] + 0.2 * batch["mask"]
        found.append(jax.grad(lambda x, a=algorithm, b=batch: a.loss(Outputs(x), b)[0])(logp))
    assert np.abs(found[0]).max() > 1e-3
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-6)


def test_pairs_name_their_reference_and_only_losses_that_read_one_have_the_setting():
    for reference in (Initial(), Previous(every=3), Average(decay=0.9)):
        found = algorithms.DPO(reference=reference).build(OFF)
        assert found.policies == {"reference": reference}
    with pytest.raises(ValueError, match="'reference', which is the sampling policy"):
        algorithms.DPO(reference=Previous(every=1)).build(OFF).check()
    algorithms.OnlineDPO(reference=Previous(every=1)).build(OFF).check()
    for name in ("simpo", "alphapo", "orpo", "cpo", "slic", "tpo"):
        found = algorithms.find(name)
        assert "reference" not in {field.name for field in dataclasses.fields(found)}
        assert found().build(OFF).policies == {}


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


def test_a_third_answer_may_be_the_chosen_one():
    two, three = (
        algorithms.RPO(beta=0.2, adversary_weight=0.1, third=third).build(OFF)
        for third in ("chosen", "data")
    )
    assert (two.unit, three.unit) == (Pair(), Pair(("chosen", "rejected", "baseline")))
    given = experience(three)
    given = {name: x.at[:, 2].set(x[:, 0]) for name, x in given.items()}
    start = given["behavior_logp"] - 0.1 * given["mask"]

    def gradient(algorithm, given, start):
        _, batch, _ = algorithm.prepare((), given, None)
        return jax.grad(lambda x: algorithm.loss(Outputs(x), batch)[0])(start)

    of_two = gradient(two, {k: x[:, :2] for k, x in given.items()}, start[:, :2])
    of_three = gradient(three, given, start)
    np.testing.assert_allclose(of_two[:, 0], of_three[:, 0] + of_three[:, 2], atol=1e-6)
    np.testing.assert_allclose(of_two[:, 1], of_three[:, 1], atol=1e-6)


def reversed_roles(rejected_logp, chosen_logp):
    """A loss whose arguments begin with the rejected answer."""
    return -(chosen_logp - rejected_logp)


def lengths_first(chosen_lengths, chosen_logp, rejected_logp, *, beta: float = 1.0):
    """A loss that reads a length."""
    return -beta * chosen_logp / chosen_lengths + rejected_logp


def test_samples_take_their_roles_by_name():
    settings = algorithms.settings_of(reversed_roles, "Reversed", algorithms.PairLoss)
    algorithm = settings(pairs="samples").build(OFF)
    given = experience(algorithm)
    _, batch, _ = algorithm.prepare((), given, None)
    pairs, usable = algorithms.pairs.best_and_worst(given, GROUP)
    np.testing.assert_array_equal(batch["completions"][:, 1], pairs["completions"][:, 0])
    np.testing.assert_array_equal(batch["completions"][:, 0], pairs["completions"][:, 1])
    assert usable.any()
    loss, metrics = algorithm.loss(Outputs(batch["behavior_logp"]), batch)
    margin, count = metrics["margin"]
    np.testing.assert_allclose(margin / count, -loss, rtol=1e-5)


def test_a_loss_of_lengths_holds_no_reference_and_has_a_margin():
    settings = algorithms.settings_of(lengths_first, "Lengths", algorithms.PairLoss)
    algorithm = settings().build(OFF)
    assert not algorithm.policies and settings().beta == 1.0
    given = experience(algorithm)
    _, batch, _ = algorithm.prepare((), given, None)
    _, metrics = algorithm.loss(Outputs(batch["behavior_logp"]), batch)
    chosen, rejected = columns(totals(batch["behavior_logp"], batch))
    margin, count = metrics["margin"]
    np.testing.assert_allclose(margin / count, (chosen - rejected).mean(), rtol=1e-5)


def test_samples_make_no_other_roles():
    with pytest.raises(ValueError, match="make chosen and rejected; or set third to 'chosen'"):
        algorithms.TPO(pairs="samples").build(OFF)


def test_settings_can_be_pickled():
    for settings in (algorithms.DPO(beta=0.3), algorithms.CoPG(), algorithms.LUSPO()):
        assert pickle.loads(pickle.dumps(settings)) == settings


@pytest.mark.parametrize("target", [algorithms.Tilt(beta=0.7), algorithms.Filtered()])
def test_f_dpg_goes_to_its_target(target):
    """Z of each group is the mean of score over behaviour.

    An answer that the target excludes counts as any other, and a group whose Z is 0 does not.
    """
    algorithm = algorithms.FDPG(divergence="forward_kl", target=target).build(OFF)
    given = experience(algorithm)
    reference, behavior = (totals(given[f"{x}_logp"], given) for x in ("reference", "behavior"))
    if isinstance(target, algorithms.Tilt):
        scores = reference + given["rewards"] / 0.7
    else:
        scores = jnp.where(given["rewards"] == 1.0, reference, -jnp.inf)
    weights = (jnp.exp(scores - behavior) * given["valid"]).reshape(-1, GROUP)
    log_z = jnp.log(weights.sum(-1) / given["valid"].reshape(-1, GROUP).sum(-1))
    unknown = jnp.repeat(jnp.isneginf(log_z), GROUP)
    assert unknown.any() == isinstance(target, algorithms.Filtered)
    log_target = jnp.where(unknown, jnp.inf, scores - jnp.repeat(log_z, GROUP))
    form = {"divergence": divergences.forward_kl}

    state, batch, metrics = algorithm.prepare(algorithm.init(None), given, None)
    pseudo = losses.f_dpg_pseudo_reward(behavior, log_target, **form)
    mean = over_samples(pseudo, given | {"valid": given["valid"] & ~unknown})
    np.testing.assert_allclose(metrics["pseudo_reward"], mean, rtol=1e-4)
    known = ~np.isneginf(log_z)
    np.testing.assert_allclose(metrics["log_z"], log_z[known].mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["known_z"], known.mean())
    np.testing.assert_allclose(running.window().value(state.baseline), mean, rtol=1e-4)

    def direct(logp):
        loss = losses.f_dpg(totals(logp, given), log_target, behavior_logp=behavior, **form)
        return over_samples(loss, given)

    start = given["behavior_logp"] + 0.1 * given["mask"]
    ours = jax.grad(lambda x: algorithm.loss(Outputs(x), batch)[0])(start)
    assert np.abs(ours).max() > 1e-3
    np.testing.assert_allclose(ours, jax.grad(direct)(start), rtol=1e-4, atol=1e-5)


def test_f_dpg_without_a_known_z_has_no_mean_of_them():
    algorithm = algorithms.FDPG(target=algorithms.Filtered()).build(OFF)
    given = experience(algorithm)
    given["rewards"] = 0.0 * given["rewards"]
    _, _, metrics = algorithm.prepare(algorithm.init(None), given, None)
    assert metrics["known_z"] == 0.0 and np.isnan(metrics["log_z"])


def test_a_ranking_without_a_bound_adds_up_over_groups():
    """With one, the loss is one of the whole batch, which costs a forward pass."""
    assert algorithms.DisCOB().build(OFF).selects
    assert not algorithms.DisCOB(bound=None).build(OFF).selects
