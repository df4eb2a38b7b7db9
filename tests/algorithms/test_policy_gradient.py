"""GRPO and its kin as compositions of primitives, on stored rollouts in float64."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_made import Numbers, by_hand
from stored import GROUP, PROMPTS, T, stored_rollouts

from polgrad import _parts, advantages, algorithms, losses, masking
from polgrad.contract import Context, Needs, Outputs

A, B = 0.5 / (math.sqrt(0.5) + 1e-6), 1.0 / (math.sqrt(2.0) + 1e-6)

HAND_COMPUTED = {
    # The defaults are GRPO: rewards less the mean of their group over its deviation, and
    # -min(r A, clip(r, 0.8, 1.2) A), a mean over answers of means over tokens.
    "policy_gradient": Numbers(
        prepared={
            "advantages": [[A], [-A], [-B], [B]],
            "weights": [[1 / 8, 1 / 8], [1 / 4, 0], [1 / 8, 1 / 8], [0, 1 / 4]],
        },
        loss=-A * (1.2 + 0.5) / 8 + A * 0.8 / 4 + B * (1.5 + 0.9) / 8 - B * 1.2 / 4,
        gradient=[[0, -A * 0.5 / 8], [0, 0], [B * 1.5 / 8, B * 0.9 / 8], [0, 0]],
    ),
    # Rewards 1, 0, 1, 3 less that of the other sample, and -stop(min(r, 4)) A log p over 6 tokens.
    "policy_gradient, leave-one-out and CISPO": Numbers(
        settings={
            "advantage": algorithms.estimators.LeaveOneOut(),
            "surrogate": algorithms.surrogates.CISPO(cap_high=4.0),
        },
        prepared={
            "advantages": [[1], [-1], [-2], [2]],
            "weights": [[1 / 6, 1 / 6], [1 / 6, 0], [1 / 6, 1 / 6], [0, 1 / 6]],
        },
        loss=-(1.5 * math.log(0.75) + 0.5 * math.log(0.25) - 0.5 * math.log(0.25)) / 6
        + 2 * (1.5 * math.log(0.75) + 0.9 * math.log(0.45) - 4 * math.log(0.6)) / 6,
        gradient=[[-1.5 / 6, -0.5 / 6], [0.5 / 6, 0], [2 * 1.5 / 6, 2 * 0.9 / 6], [0, -2 * 4 / 6]],
    ),
    # A loss of answers: the ratios 0.75, 0.5, 1.35, 6 within 0.8 and 1.2, rewards less their mean.
    "policy_gradient, a baseline and answers": Numbers(
        settings={
            "advantage": algorithms.estimators.Baseline(),
            "surrogate": algorithms.surrogates.PPOClipSequence(),
        },
        prepared={"advantages": [-0.25, -1.25, -0.25, 1.75], "weights": [1 / 4] * 4},
        loss=(0.25 * 0.8 + 1.25 * 0.8 + 0.25 * 1.35 - 1.75 * 1.2) / 4,
        gradient=[0, 0, 0.25 * 1.35 / 4, 0],
    ),
}

test_by_hand = by_hand(HAND_COMPUTED)

OFF, ON = (Context(GROUP, T, PROMPTS, on_policy=flag) for flag in (False, True))


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def rollouts():
    return jax.tree.map(jnp.asarray, stored_rollouts())


def moved(experience, amount=0.3):
    noise = np.random.default_rng(4).normal(0, amount, experience["mask"].shape)
    return experience["behavior_logp"] + noise * experience["mask"]


def loss_of(settings, experience, context=OFF):
    """The algorithm's loss as a function of the log-probabilities."""
    algorithm = settings.build(context)
    _, batch, _ = algorithm.prepare(algorithm.init(None), experience, None)
    return lambda logp: algorithm.loss(Outputs(logp), batch)[0]


def assert_same(ours, theirs, at):
    ours, theirs = jax.grad(ours)(at), jax.grad(theirs)(at)
    assert abs(theirs).max() > 1e-4
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def by_group(x):
    return x.reshape(PROMPTS, GROUP)


def test_grpo_with_the_papers_kl():
    experience = rollouts()
    mask = experience["mask"] * experience["valid"][:, None]
    weights = masking.weights(mask, mode="sequence")
    advantage = advantages.group_relative(
        by_group(experience["rewards"]), valid=by_group(experience["valid"])
    ).reshape(-1, 1)

    def paper(logp):
        behavior = experience["behavior_logp"]
        gap = experience["reference_logp"] - logp
        kl = jax.lax.stop_gradient(jnp.exp(logp - behavior)) * (jnp.expm1(gap) - gap)
        loss = losses.ppo_clip(logp, behavior, advantage) + 0.04 * kl
        return masking.weighted_sum(loss, weights)

    settings = algorithms.GRPO(kl=algorithms.KL(0.04, gradient="k3"))
    assert_same(loss_of(settings, experience), paper, moved(experience))
    assert any("KL(reference || policy)" in w for w in settings.build(OFF).warnings)


@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_the_kl_of_a_whole_answer_in_the_reward(name):
    experience = rollouts()
    mask = experience["mask"] * experience["valid"][:, None]
    distance = (experience["behavior_logp"] - experience["reference_logp"]) * experience["mask"]
    rewards = by_group(experience["rewards"] - 0.05 * distance.sum(1))
    valid = by_group(experience["valid"])
    if name == "rloo":
        settings = algorithms.RLOO(kl=algorithms.RewardKL(0.05))
        advantage = advantages.leave_one_out(rewards, valid=valid)
        mode, surrogate = "sequence_sum", lambda logp, a: losses.reinforce(logp, a)
    else:
        settings = algorithms.GRPO(kl=algorithms.RewardKL(0.05))
        advantage = advantages.group_relative(rewards, valid=valid)
        mode = "sequence"
        surrogate = lambda logp, a: losses.ppo_clip(logp, experience["behavior_logp"], a)  # noqa: E731

    def direct(logp):
        return masking.weighted_sum(
            surrogate(logp, advantage.reshape(-1, 1)), masking.weights(mask, mode=mode)
        )

    assert_same(loss_of(settings, experience), direct, moved(experience))
    assert "reference" in settings.build(OFF).policies


def test_reinforce_plus_plus_with_the_kl_of_each_token_in_the_reward():
    experience = rollouts()
    mask = experience["mask"] * experience["valid"][:, None]
    rewards = advantages.kl_shaped_rewards(
        experience["rewards"],
        experience["behavior_logp"],
        experience["reference_logp"],
        mask,
        beta=0.1,
    )
    advantage = advantages.reinforce_plus_plus(rewards, mask)

    def direct(logp):
        loss = losses.ppo_clip(logp, experience["behavior_logp"], advantage)
        return masking.weighted_sum(loss, masking.weights(mask, mode="token"))

    settings = algorithms.ReinforcePlusPlus(kl=algorithms.RewardKL(0.1))
    assert_same(loss_of(settings, experience), direct, moved(experience))


@pytest.mark.parametrize("name", ["ppo", "reinforce_plus_plus"])
def test_an_outcome_reward_survives_a_hole_at_the_end(name):
    """The last token is masked: the reward belongs to the last token that counts."""
    experience = rollouts()
    experience["completion_lengths"] = jnp.full_like(experience["completion_lengths"], T)
    experience["mask"] = jnp.ones_like(experience["mask"]).at[:, -2:].set(0.0)
    algorithm = algorithms.find(name)().build(OFF)
    _, batch, _ = algorithm.prepare((), experience, None)
    other = {**experience, "rewards": experience["rewards"].at[0].add(3.0)}
    _, changed, _ = algorithm.prepare((), other, None)
    difference = abs(batch["advantages"] - changed["advantages"])
    assert (difference[0, :-2] > 0.1).all()


def test_a_loss_that_uses_an_entropy_it_did_not_ask_for_fails():
    from polgrad.policies import LinearNetwork
    from polgrad.training.scoring import Scoring
    from polgrad.training.step import make_gradient

    @dataclasses.dataclass(frozen=True)
    class Bonus(algorithms.GRPO):
        def loss(self, outputs, batch, context):
            loss, metrics = super().loss(outputs, batch, context)
            return loss - 0.5 * (outputs.entropy * batch["weights"]).sum(), metrics

    network, experience = LinearNetwork(11, 4), rollouts()
    algorithm = Bonus().build(OFF)
    _, batch, _ = algorithm.prepare((), experience, None)
    params = network.init(jax.random.key(0))
    with pytest.raises(TypeError, match="NoneType"):
        make_gradient(network, algorithm, Scoring())(params, batch, jax.random.key(0))
    asked = algorithm._replace(needs=Needs(entropy=True))
    scoring = Scoring(entropy_gradient=True)
    _, with_bonus, _ = make_gradient(network, asked, scoring)(params, batch, None)
    plain = algorithms.GRPO().build(OFF)
    _, without, metrics = make_gradient(network, plain, Scoring())(params, batch, None)
    assert any(
        (abs(a - b) > 1e-3).any() for a, b in zip(*map(jax.tree.leaves, (with_bonus, without)))
    )
    assert {"entropy", "kl_reference", "clip_fraction"} <= metrics.keys()


@pytest.mark.parametrize("found", [algorithms.Reinforce, algorithms.ReinforcePlusPlus])
def test_a_filter_of_uniform_groups_needs_groups(found):
    with pytest.raises(
        ValueError, match=r"the group size \(rollouts.group_size\) is 1, expected at least 2"
    ):
        found(drop_uniform_groups=True).build(Context(1, T, PROMPTS, on_policy=False))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["reinforce", "reinforce_plus_plus", "ppo", "topr", "f_dpg"])
def test_other_algorithms_learn_from_groups_of_one(name):
    algorithm = algorithms.find(name)().build(Context(1, T, PROMPTS * GROUP, on_policy=False))
    experience = rollouts()
    _, batch, _ = algorithm.prepare(algorithm.init(None), experience, None)
    values = 1.1 * experience["values"]
    gradient = jax.grad(lambda x: algorithm.loss(Outputs(x, values=values), batch)[0])(
        moved(experience)
    )
    assert abs(gradient).max() > 1e-3


def test_whether_a_loss_corrects_for_older_samples_is_seen_from_its_gradient():
    @dataclasses.dataclass(frozen=True)
    class Plain(algorithms.GroupRelative):
        def surrogate(self, logp, behavior_logp, advantages, mask):
            return -advantages * jnp.exp(logp - jax.lax.stop_gradient(logp))

    @dataclasses.dataclass(frozen=True)
    class Ratio(algorithms.GroupRelative):
        def surrogate(self, logp, behavior_logp, advantages, mask):
            return -advantages * jnp.exp(logp - behavior_logp)

    assert not Plain().build(OFF).reuse and Ratio().build(OFF).reuse
    wanted = {"reinforce": False, "rloo": False}
    for name in ("grpo", "gspo", "cispo", "sapo", "clip_cov", "kl_cov", "reinforce", "rloo"):
        assert algorithms.find(name)().build(OFF).reuse == wanted.get(name, True), name


def test_a_surrogate_of_the_wrong_shape_is_named():
    @dataclasses.dataclass(frozen=True)
    class Wrong(algorithms.GroupRelative):
        def surrogate(self, logp, behavior_logp, advantages, mask):
            return (logp - behavior_logp).sum(-1)

    experience = rollouts()
    with pytest.raises(
        ValueError, match=r"Wrong.surrogate returned shape \[16\], expected \[16, 6\]"
    ):
        loss_of(Wrong(), experience)(moved(experience))


def grpo_with_kl(kl, **numbers):
    return algorithms.GRPO(kl=algorithms.KL(kl), **numbers)


def corrected(cap):
    return algorithms.GRPO(sampler_correction=algorithms.TruncatedWeights(cap))


def composed(cap_high, entropy):
    return algorithms.PolicyGradient(
        advantage=algorithms.estimators.LeaveOneOut(),
        surrogate=algorithms.surrogates.CISPO(cap_high=cap_high),
        entropy=algorithms.Entropy(entropy),
    )


NUMBERS = [
    (grpo_with_kl, {"kl": 0.1, "clip_low": 0.1, "clip_high": 0.1, "dual_clip": 1.5}),
    (corrected, {"cap": 1.2}),
    (algorithms.CISPO, {"cap_low": 0.9, "cap_high": 1.1}),
    (algorithms.SAPO, {"tau_positive": 2.0, "tau_negative": 2.0}),
    (lambda kl: algorithms.RLOO(kl=algorithms.RewardKL(kl)), {"kl": 0.1}),
    (lambda kl: algorithms.ReinforcePlusPlus(kl=algorithms.RewardKL(kl)), {"kl": 0.1}),
    (algorithms.PPO, {"value_clip": 0.1, "lambda_": 0.5, "discount": 0.9}),
    (composed, {"cap_high": 1.1, "entropy": 0.1}),
    (algorithms.TOPR, {"baseline": 0.3, "scale": 1.5}),
    (algorithms.NFT, {"epsilon": 0.5, "negative_weight": 0.5}),
    (algorithms.DPO, {"beta": 0.3, "label_smoothing": 0.1}),
    (algorithms.NashMD, {"tau": 0.1, "reward_scale": 2.0}),
]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("found", "numbers"), NUMBERS)
def test_numbers_can_be_swept_under_vmap(found, numbers):
    experience = rollouts()
    context = ON if found is corrected else OFF
    if found is algorithms.DPO:
        experience = jax.tree.map(lambda x: x.reshape(-1, 2, *x.shape[1:]), experience)
    logp = moved(experience)

    def gradient(values):
        algorithm = found(**values).build(context)
        _, batch, _ = algorithm.prepare(algorithm.init(None), experience, None)
        return jax.grad(
            lambda x: algorithm.loss(
                Outputs(x, 1.0 + jnp.abs(x), 1.3 * experience["values"]), batch
            )[0]
        )(logp)

    sweep = {k: jnp.array([v, 0.9 * v]) for k, v in numbers.items()}
    both = jax.vmap(gradient)(sweep)
    for i in range(2):
        alone = gradient({k: float(v[i]) for k, v in sweep.items()})
        np.testing.assert_allclose(both[i], alone, atol=1e-12)
    assert abs(both[0] - both[1]).max() > 1e-9


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (algorithms.GRPO(kl=0.1), "kl is 0.1, expected KL, RewardKL or None"),
        (algorithms.GRPO(sampler_correction=2.0), "sampler_correction is 2.0, expected"),
        (algorithms.PolicyGradient(advantage=3), "advantage is 3, expected GroupRelative, Leave"),
        (
            algorithms.PolicyGradient(surrogate=algorithms.CISPO(kl=algorithms.KL(0.3))),
            "surrogate is the algorithm CISPO, expected a part: algorithms.surrogates.CISPO",
        ),
        (algorithms.NashMD(opponent=0.1), "opponent is 0.1, expected Mixed, Average"),
        (algorithms.FDPG(target=None), "target is None, expected Tilt, Filtered"),
        (algorithms.DisCO(bound=2.0), "bound is 2.0, expected KLBound or None"),
        (algorithms.PPO(kl=algorithms.KL()), "kl is KL.*, expected RewardKL or None"),
        (algorithms.DPO(reference=1), "reference is 1, expected Initial, Previous, Average"),
        (algorithms.PPO(value_clip=0.0), "value_clip is 0.0, expected a number above 0"),
    ],
)
def test_what_is_no_part_is_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        settings.build(OFF)


def test_a_part_of_ones_own_stands_where_the_named_ones_do():
    @dataclasses.dataclass(frozen=True)
    class Squared(algorithms.surrogates.TokenSurrogate):
        power: float = 2.0

        def surrogate(self, logp, behavior_logp, advantages, mask):
            return -advantages * jnp.exp(self.power * (logp - behavior_logp))

    experience = rollouts()
    mask = experience["mask"] * experience["valid"][:, None]
    advantage = advantages.leave_one_out(
        by_group(experience["rewards"]), valid=by_group(experience["valid"])
    ).reshape(-1, 1)

    def direct(logp):
        loss = -advantage * jnp.exp(3.0 * (logp - experience["behavior_logp"]))
        return masking.weighted_sum(loss, masking.weights(mask, mode="token"))

    settings = algorithms.PolicyGradient(
        advantage=algorithms.estimators.LeaveOneOut(), surrogate=Squared("token", power=3.0)
    )
    assert_same(loss_of(settings, experience), direct, moved(experience))


@pytest.mark.parametrize("name", ["advantages", "surrogate"])
def test_methods_that_a_composition_would_not_call_are_refused(name):
    with pytest.raises(TypeError, match=f"Mine has the method {name}.*TokenPolicyGradient"):
        type("Mine", (algorithms.PolicyGradient,), {name: lambda self, *arguments: None})


COMBINATIONS = [
    (advantage, surrogate)
    for advantage in _parts.choices(algorithms.PolicyGradient)["advantage"].kinds.values()
    for surrogate in _parts.choices(algorithms.PolicyGradient)["surrogate"].kinds.values()
]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("advantage", "surrogate"), COMBINATIONS)
def test_every_combination_of_an_advantage_and_a_surrogate_has_a_gradient(advantage, surrogate):
    settings = algorithms.PolicyGradient(advantage=advantage(), surrogate=surrogate())
    if advantage().of_tokens and surrogate().of_answers:
        with pytest.raises(ValueError, match="has an advantage for each token"):
            settings.build(OFF)
        return
    experience = rollouts()
    algorithm = settings.build(OFF)
    _, batch, _ = algorithm.prepare((), experience, None)
    logp = moved(experience, 1e-4)
    chosen = algorithm.select(Outputs(logp), batch, jax.random.key(0))
    gradient = jax.grad(lambda x: algorithm.loss(Outputs(x), chosen)[0])(logp)
    assert np.isfinite(gradient).all() and abs(gradient).max() > 1e-4
