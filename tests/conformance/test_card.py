"""The kit accepts our losses and catches the mistakes that people make in theirs."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pages
import pytest

from polgrad import conformance, losses, selection
from polgrad.conformance import calls, catalogue, expectations
from polgrad.ratios import log_ratio

card_of = functools.cache(conformance.check)


def at(card, problem, staleness):
    (found,) = (m for m in card.measurements if (m.problem, m.staleness) == (problem, staleness))
    return found


# --- Our own losses ---------------------------------------------------------------------------

OURS = pages.generate.POLICY_LOSSES


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", OURS)
def test_our_losses_conform(name):
    card = card_of(OURS[name])
    assert card.ok, str(card)
    assert card.failures == ()
    for problem in ("bandit", "sequences"):
        assert at(card, problem, 0.0).cosine > 0.9
        assert np.isfinite([m.variance for m in card.measurements]).all()
    for line in pages.generate.loss_lines(name, card):
        assert line in pages.lines("estimators"), pages.HINT


@pytest.mark.parametrize("name", ["reinforce", "ppo_clip", "cispo", "sapo", "kl_cov", "topr"])
def test_on_policy_they_are_reinforce_exactly(name):
    for problem in ("bandit", "sequences"):
        measured = at(card_of(OURS[name]), problem, 0.0)
        assert measured.follows == "policy gradient" and measured.bias < 1e-12
        np.testing.assert_allclose(measured.variance, 1.0, rtol=1e-10)


def test_which_gradient_is_followed_off_policy():
    expected = {
        ("reinforce", "bandit", 0.5): "uncorrected REINFORCE",
        ("reinforce", "sequences", 0.5): "uncorrected REINFORCE",
        ("kl_cov", "bandit", 1.0): "policy gradient",  # one token: the token ratio is the whole
        ("kl_cov", "sequences", 1.0): "token-ratio surrogate",
        ("ppo_clip", "sequences", 0.1): "token-ratio surrogate",  # nothing is clipped yet
        ("ppo_clip", "sequences", 1.0): "none of the known",
        ("topr(all ratios)", "sequences", 1.0): "policy gradient",
        ("topr", "sequences", 0.5): "none of the known",
    }
    found = {key: at(card_of(OURS[key[0]]), *key[1:]).follows for key in expected}
    assert found == expected


def test_bias_and_variance_off_policy_are_exact():
    # The bandit of the card, by hand: uncorrected REINFORCE averages (R - b) score over the
    # behaviour policy instead of the policy.
    random = np.random.default_rng(0)
    logits, noise, returns = random.normal(size=(3, 4))
    softmax = lambda z: np.exp(z) / np.exp(z).sum()  # noqa: E731
    policy, behavior = softmax(logits), softmax(logits + 0.5 * noise)
    score = np.eye(4) - policy
    exact = (policy * returns) @ score
    advantages = returns - behavior @ returns
    each = advantages[:, None] * score
    mean = behavior @ each
    centred = returns - policy @ returns
    spread = lambda w, g: w @ (g**2).sum(1) - (w @ g) @ (w @ g)  # noqa: E731
    measured = at(card_of(losses.reinforce), "bandit", 0.5)
    np.testing.assert_allclose(
        measured.bias, np.linalg.norm(mean - exact) / np.linalg.norm(exact), rtol=1e-10
    )
    np.testing.assert_allclose(
        measured.cosine, mean @ exact / np.linalg.norm(mean) / np.linalg.norm(exact), rtol=1e-10
    )
    np.testing.assert_allclose(
        measured.variance,
        spread(behavior, each) / spread(policy, centred[:, None] * score),
        rtol=1e-10,
    )


def test_length_normalisation_is_named_and_penalties_are_noted():
    assert at(card_of(losses.gspo), "sequences", 0.0).follows == "policy gradient / length"
    assert card_of(losses.gspo).layout == "logp [B, T], advantages [B]"
    assert card_of(losses.topr).layout == "logp [B], advantages [B]"
    assert card_of(losses.cispo).checks["scales with A"].ok


def test_the_card_prints_its_table_and_verdict():
    text = str(card_of(losses.cispo))
    assert text.startswith("cispo: conforms")
    for word in ("sequences", "policy gradient", "[pass] micro-batches", "[yes ] scales with A"):
        assert word in text
    assert len(text.splitlines()) < 40


# --- Other people's mistakes ------------------------------------------------------------------


def ratio(logp, behavior_logp):
    return jnp.exp(logp - jax.lax.stop_gradient(behavior_logp))


def flipped_sign(logp, advantages):
    return jnp.where(logp == -jnp.inf, 0.0, logp) * jax.lax.stop_gradient(advantages)


def weight_not_stopped(logp, behavior_logp, advantages):
    """CISPO as people write it first."""
    return -ratio(logp, behavior_logp) * jax.lax.stop_gradient(advantages) * logp


def behavior_not_stopped(logp, behavior_logp, advantages):
    return -jnp.exp(logp - behavior_logp) * jax.lax.stop_gradient(advantages)


def advantages_not_stopped(logp, advantages):
    return -logp * advantages


def divides_by_the_count(logp, behavior_logp, advantages, mask):
    loss = losses.ppo_clip(logp, behavior_logp, advantages)
    return loss * mask / jnp.maximum(mask.sum(), 1.0)


def returns_a_mean(logp, behavior_logp, advantages, mask):
    loss = losses.ppo_clip(logp, behavior_logp, advantages)
    return jnp.where(mask > 0, loss, 0.0).sum() / jnp.maximum(mask.sum(), 1.0)


def whitens(logp, advantages):
    advantages = advantages - advantages.mean()
    return losses.reinforce(logp, advantages)


def ignores_the_mask(logp, behavior_logp, advantages, mask):
    return losses.ppo_clip(logp, behavior_logp, advantages[:, None]).sum(axis=-1)


def mean_over_an_empty_row(logp, behavior_logp, advantages, mask):
    loss = jnp.where(mask > 0, losses.reinforce(logp, advantages[:, None]), 0.0)
    return loss.sum(axis=-1) / mask.sum(axis=-1)


def naive_ratio(logp, behavior_logp, advantages):
    return -ratio(logp, behavior_logp) * jax.lax.stop_gradient(advantages)


def depends_on_the_row(logp, advantages):
    rank = jnp.arange(logp.shape[0])[:, None]
    return losses.reinforce(logp, advantages) * (1.0 + rank)


def flipped_clip(logp, behavior_logp, advantages):
    """PPO with the larger of the two surrogates: right on-policy, and a one-way street off it."""
    r = jnp.exp(jnp.clip(log_ratio(logp, behavior_logp), -20.0, 20.0))
    fixed = jax.lax.stop_gradient(advantages)
    return -jnp.maximum(r * fixed, jnp.clip(r, 0.8, 1.2) * fixed)


def underflows(logp, advantages):
    powers = jnp.exp(40.0 * logp)  # exp(-88) is the end of float32
    return -jax.lax.stop_gradient(advantages) * jnp.log(2.0 * powers) / 40.0


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    "wrong, failure, words",
    [
        (flipped_sign, "on-policy gradient", "points away"),
        (weight_not_stopped, "on-policy gradient", "relative bias"),
        (behavior_not_stopped, "stopped arguments", "behavior_logp"),
        (advantages_not_stopped, "stopped arguments", "advantages"),
        (divides_by_the_count, "micro-batches", "count"),
        (returns_a_mean, "unreduced", "scalar"),
        (returns_a_mean, "micro-batches", "count"),
        (whitens, "micro-batches", "statistic"),
        (ignores_the_mask, "padding", "mask = 0"),
        (mean_over_an_empty_row, "empty rows", "NaN"),
        (naive_ratio, "minus infinity", "not finite"),
        (advantages_not_stopped, "minus infinity", "not finite"),
        (depends_on_the_row, "permutation", "order"),
        (underflows, "number formats", "float32"),
        (flipped_clip, "wins samples back", "no gradient for advantage +1"),
    ],
)
def test_a_wrong_loss_is_caught(wrong, failure, words):
    card = card_of(wrong)
    assert not card.ok
    assert failure in card.failures, str(card)
    assert words in card.checks[failure].detail
    assert f"FAIL] {failure}" in str(card)


def test_a_flipped_clip_is_right_on_policy_and_fails_for_its_clip_alone():
    assert card_of(flipped_clip).failures == ("wins samples back",)


@pytest.mark.parametrize(
    "name, words",
    [
        ("ppo_clip", "ratio 1.25 on for A > 0, 0.75 for A < 0"),
        ("reinforce", "no sample's gradient ends"),
        ("cispo", "no sample's gradient ends"),
    ],
)
def test_the_trust_region_is_noted(name, words):
    check = card_of(OURS[name]).checks["trust region"]
    assert words in check.detail and not check.required


def test_the_sign_alone_fails_the_flipped_loss():
    card = card_of(flipped_sign)
    assert card.failures == ("on-policy gradient", "wins samples back")
    np.testing.assert_allclose(at(card, "bandit", 0.0).cosine, -1.0)
    np.testing.assert_allclose(at(card, "bandit", 0.0).bias, 2.0)


# --- Signatures -------------------------------------------------------------------------------


def test_other_names_of_the_field_are_known():
    other = conformance.check(
        lambda logp, old_logp, rewards: losses.ppo_clip(logp, old_logp, rewards)
    )
    assert other.checks == card_of(losses.ppo_clip).checks
    assert other.measurements == card_of(losses.ppo_clip).measurements


# Every function of losses that has a layout; all others are refused.
LAYOUTS = {
    "token": "cispo clip_cov dppo_kl dppo_tv gspo_token kl_cov ppo_clip reinforce sapo",
    "mixed": "gmpo gspo luspo ppo_clip_sequence vespo",
    "sequence": "topr",
    "group": "best_of_n p3o_v1 p3o_v2 pairwise_policy_gradient reward_weighted",
    "pair": "alphapo aot_unpaired apo_down apo_zero bco cpo discopop dpo exo exponential_margin "
    "hinge ipo linear_margin nca orpo robust_dpo simpo",
}


def test_every_loss_has_a_layout_or_is_refused():
    expected = {name: layout for layout, names in LAYOUTS.items() for name in names.split()}
    found = {}
    for primitive in catalogue.primitives(("losses",)):
        try:
            with expectations.exactly():
                found[primitive.name] = calls.Call(primitive.function, None).layout
        except ValueError as error:
            assert re.search("which no layout has|fits no layout|no layout", str(error))
    assert found == {f"losses.{name}": layout for name, layout in expected.items()}


@pytest.mark.parametrize(
    "function, words",
    [
        (losses.topr_weights, "float64 without a gradient in logp"),
        (losses.vespo_weights, "float64 without a gradient in logp"),
        (selection.off_policy_sequence_mask, "bool without a gradient in logp"),
        (losses.kl_penalty, "unknown: reference_logp"),
        (losses.disco, "unknown: scores"),
        (lambda lp, adv: -lp * adv, "unknown: adv, lp"),
    ],
)
def test_what_is_no_loss_or_has_other_names_is_refused_with_the_reason(function, words):
    with pytest.raises(ValueError, match=words):
        conformance.check(function)


# --- Losses of pairs and of groups --------------------------------------------------------------


def test_dpo_follows_dpo_and_its_relatives_what_they_are():
    card = card_of(losses.dpo)
    assert card.ok and card.layout == "chosen [B], rejected [B]"
    assert all(m.follows == "DPO" and m.bias < 1e-12 for m in card.measurements)
    np.testing.assert_allclose([m.variance for m in card.measurements], 1.0, rtol=1e-10)
    assert card.checks["follows DPO"].ok and card.checks["margin alone"].ok
    # At the reference a loss of the margin has the direction of DPO: linear_margin twice its size.
    linear = card_of(losses.linear_margin)
    start, *away = linear.measurements
    np.testing.assert_allclose([start.bias, start.cosine, start.variance], [1.0, 1.0, 4.0])
    assert all(m.follows == "none of the known" for m in away)


def test_the_gradient_of_dpo_in_the_card_is_that_of_enumeration():
    """By jax on the logits, for a beta that is bound; with a bandit's pairs written out."""
    with jax.enable_x64(True):
        problem = expectations.problems()[0]
        reference = jax.nn.log_softmax(problem.logits[0])
        i, j = (x.ravel() for x in np.indices((4, 4)))
        wins = jax.nn.sigmoid(problem.returns[i] - problem.returns[j])
        weight = jnp.exp(reference[i] + reference[j]) * wins

        def expected(logits, loss):
            x = jax.nn.log_softmax(logits) - reference
            return weight @ loss(x[i], x[j])

        loss = functools.partial(losses.ipo, beta=0.7)
        logits = problem.logits[0] + 0.5 * problem.noise[0]
        dpo = functools.partial(losses.dpo, beta=0.7)
        ours, dpos = (jax.grad(expected)(logits, x) for x in (loss, dpo))
    measured = at(conformance.check(loss), "pairs", 0.5)
    bias = np.linalg.norm(ours - dpos) / np.linalg.norm(dpos)
    np.testing.assert_allclose(measured.bias, bias, rtol=1e-9)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", LAYOUTS["pair"].split())
def test_our_losses_of_pairs_conform(name):
    card = card_of(getattr(losses, name))
    # As their docstrings say: quantiles are a statistic of the batch, and DiscoPOP rises at 0.
    known = {"aot_unpaired": ("micro-batches",), "discopop": ("prefers chosen",)}
    assert card.failures == known.get(name, ()), str(card)


def swapped(chosen_logratio, rejected_logratio):
    return losses.dpo(rejected_logratio, chosen_logratio)


def averaged(chosen_logratio, rejected_logratio):
    return losses.dpo(chosen_logratio, rejected_logratio).mean()


def infinite(chosen_logratio, rejected_logratio):
    return -jax.nn.log_sigmoid(0.1 * (chosen_logratio - rejected_logratio))


@pytest.mark.parametrize(
    "wrong, failure",
    [(swapped, "prefers chosen"), (averaged, "unreduced"), (infinite, "minus infinity")],
)
def test_a_wrong_loss_of_pairs_is_caught(wrong, failure):
    assert failure in card_of(wrong).failures


def test_a_loss_of_groups_is_measured_over_all_groups():
    card = card_of(losses.pairwise_policy_gradient)
    assert card.ok and card.layout == "logp [B, G], rewards [B, G]"
    for m in card.measurements:  # exact off-policy too, by its theorem
        assert m.follows == "policy gradient" and m.bias < 1e-12
    for problem in ("bandit", "sequences"):  # on-policy it is RLOO
        np.testing.assert_allclose(at(card, problem, 0.0).variance, 1.0, rtol=1e-10)
    assert card.checks["on-policy gradient"].ok and card.checks["reward constants"].ok


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", LAYOUTS["group"].split())
def test_our_losses_of_groups_conform(name):
    card = card_of(getattr(losses, name))
    assert card.ok, str(card)
    imitation = name in ("best_of_n", "reward_weighted")
    assert card.checks["on-policy gradient"].ok != imitation


def ranks_by_place(logp, rewards):
    return losses.best_of_n(logp, rewards * jnp.arange(rewards.shape[-1]))


def rewards_not_stopped(logp, behavior_logp, rewards):
    return -(rewards - rewards.mean(-1, keepdims=True)) * logp


@pytest.mark.parametrize(
    "wrong, failure",
    [(ranks_by_place, "order in a group"), (rewards_not_stopped, "stopped arguments")],
)
def test_a_wrong_loss_of_groups_is_caught(wrong, failure):
    card = conformance.check(wrong, layout="group")
    assert failure in card.failures, str(card)


def test_a_sequence_loss_without_checks_says_its_layout():
    card = conformance.check(
        lambda logp, advantages: (
            -jax.lax.stop_gradient(advantages) * jnp.where(logp == -jnp.inf, 0.0, logp)
        ),
        layout="sequence",
    )
    assert card.ok and card.layout == "logp [B], advantages [B]"


@pytest.mark.parametrize(
    "objective, message",
    [
        (lambda logp: logp, "which no layout has"),
        (lambda logp, advantages, mystery: logp, "mystery"),
        (lambda logp, advantages: logp[:, :, None], "returned shape"),
    ],
)
def test_what_is_no_objective_is_refused(objective, message):
    with pytest.raises(ValueError, match=message):
        conformance.check(objective)


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match="layout is 'tokens', expected one of token"):
        conformance.check(losses.reinforce, layout="tokens")
    with pytest.raises(ValueError, match="layout is 'pair', but the arguments"):
        conformance.check(losses.reinforce, layout="pair")
