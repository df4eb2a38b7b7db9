"""f-DPG by hand, on the samples of `tests/support/hand_made.py`."""

import math

import jax
import jax.numpy as jnp
from hand_made import Numbers, by_hand, samples

from polgrad import algorithms
from polgrad.contract import Context

# The reference over the sampler is 1/4, 1; 2.7, 2. The rewards make exp(reward / 0.1) = 4, 1; 1, 2.
REWARDS = [0.1 * math.log(4), 0.0, 0.0, 0.1 * math.log(2)]
# Z is the mean over a group of reference x exp(reward / 0.1) / sampler: (1 + 1) / 2, (2.7 + 4) / 2.
Z = [1.0, 1.0, 3.35, 3.35]
# The target, reference x exp(reward / 0.1) / Z, of answers with the reference 1/16, 1/2; 0.675, 0.2.
TARGET = [0.25, 0.5, 0.675 / 3.35, 0.4 / 3.35]
POLICY = [0.1875, 0.25, 0.3375, 0.6]
# The products of the token ratios.
WEIGHT = [0.75, 0.5, 1.35, 6.0]
T = [p / q for p, q in zip(POLICY, TARGET, strict=True)]


def of(pseudo, weight=WEIGHT):
    """Loss and gradient of -stop(w r) log p, the mean over 4 answers."""
    terms = [w * r for w, r in zip(weight, pseudo, strict=True)]
    loss = -sum(c * math.log(p) for c, p in zip(terms, POLICY, strict=True)) / 4
    return {"loss": loss, "gradient": [-c / 4 for c in terms]}


UNKNOWN = samples([0.0, 0.0, 1.0, math.nan])

HAND_COMPUTED = {
    # -stop(w r) log p, w = policy / sampler, r = -f'(t) = -log(2 t / (1 + t)), t = policy / target:
    # Jensen-Shannon's f(t) = t log(2 t / (1 + t)) + log(2 / (1 + t)).
    "f_dpg": Numbers(
        experience=samples(REWARDS),
        prepared={
            "log_target": [math.log(q) for q in TARGET],
            "baseline": [0] * 4,
            "weights": [1 / 4] * 4,
        },
        **of([-math.log(2 * t / (1 + t)) for t in T]),
    ),
    # f(t) = t log t: f'(t) = log t + 1.
    "f_dpg, reverse KL": Numbers(
        settings={"divergence": "reverse_kl"},
        experience=samples(REWARDS),
        prepared={},
        **of([-math.log(t) - 1 for t in T]),
    ),
    # f(t) = -log t: f'(t) = -1 / t. The log of t is held within 0.3.
    "f_dpg, forward KL, clipped": Numbers(
        settings={"divergence": "forward_kl", "log_ratio_clip": 0.3},
        experience=samples(REWARDS),
        prepared={},
        **of([1 / min(max(t, math.exp(-0.3)), math.exp(0.3)) for t in T]),
    ),
    # The target is the reference where the reward is above 0. Z: (1/4 + 0) / 2 and 2 / 2. For total
    # variation f'(t) = sign(t - 1) / 2; the log of t is minus or plus 20 where the target is 0.
    "f_dpg, filtered": Numbers(
        settings={"divergence": "total_variation", "target": algorithms.Filtered()},
        experience=samples([1.0, 0.0, 0.0, 2.0]),
        # Targets 1/16 / (1/8) = 1/2, 0; 0, 0.2 / 1.
        prepared={"log_target": [math.log(0.5), -math.inf, -math.inf, math.log(0.2)]},
        # The first answer has t = 0.1875 / 0.5 < 1, all others t > 1.
        **of([0.5, -0.5, -0.5, -0.5]),
    ),
    # No answer of the first prompt is in the target, whose Z is then unknown; the last sample is
    # invalid. Z of the second prompt is 0.675 / 0.25; the target is 0.25, t = 1.35 and r = 1 / 1.35.
    "f_dpg, an unknown Z": Numbers(
        settings={"divergence": "forward_kl", "target": algorithms.Filtered()},
        experience=UNKNOWN,
        prepared={
            "log_target": [math.inf, math.inf, math.log(0.25), -math.inf],
            "weights": [1 / 3, 1 / 3, 1 / 3, 0],
        },
        loss=-math.log(0.3375) / 3,
        gradient=[0, 0, -1 / 3, 0],
    ),
}

test_by_hand = by_hand(HAND_COMPUTED)


def test_the_baseline_is_the_mean_of_earlier_pseudo_rewards():
    """Those of the sampler, at which the samples were drawn: t = sampler / target."""
    context = Context(group_size=2, max_tokens=2, num_prompts=2, on_policy=False)
    algorithm = algorithms.FDPG().build(context)
    sampler = [0.25, 0.5, 0.25, 0.1]
    pseudo = [-math.log(2 * p / (p + q)) for p, q in zip(sampler, TARGET, strict=True)]
    with jax.enable_x64(True):
        experience = jax.tree.map(jnp.asarray, samples(REWARDS))
        state, first, metrics = algorithm.prepare(algorithm.init(None), experience, None)
        _, second, _ = algorithm.prepare(state, experience, None)
        assert first["baseline"][0] == 0.0
        assert math.isclose(metrics["pseudo_reward"], sum(pseudo) / 4, rel_tol=1e-6)
        assert math.isclose(second["baseline"][0], sum(pseudo) / 4, rel_tol=1e-6)
        # Z stays, because the same samples were added once more.
        assert math.isclose(second["log_target"][3], math.log(TARGET[3]), rel_tol=1e-6)


def test_the_means_of_a_step_leave_out_what_has_no_known_z():
    context = Context(group_size=2, max_tokens=2, num_prompts=2, on_policy=False)
    settings = algorithms.FDPG(divergence="forward_kl", target=algorithms.Filtered())
    algorithm = settings.build(context)
    experience = jax.tree.map(jnp.asarray, UNKNOWN)
    state, _, metrics = algorithm.prepare(algorithm.init(None), experience, None)
    assert metrics["known_z"] == 0.5
    # The window of the baseline holds that one answer and no other.
    assert int(state.baseline.count) == 1
    assert math.isclose(state.baseline.values.sum(), 1.0, rel_tol=1e-6)
    assert math.isclose(metrics["log_z"], math.log(2.7), rel_tol=1e-6)
    # The sampler's probability of the one answer is that of the target, 0.25.
    assert math.isclose(metrics["pseudo_reward"], 1.0, rel_tol=1e-6)
    experience["rewards"] = 0.0 * experience["rewards"]
    _, _, metrics = algorithm.prepare(algorithm.init(None), experience, None)
    assert metrics["known_z"] == 0.0 and math.isnan(metrics["log_z"])
