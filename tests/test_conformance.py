"""The kit accepts our losses and catches the mistakes that people make in theirs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pages
import pytest

from polgrad import conformance, losses
from polgrad.ratios import log_ratio

card_of = functools.cache(conformance.check)


def at(card, problem, staleness):
    (found,) = (m for m in card.measurements if (m.problem, m.staleness) == (problem, staleness))
    return found


# --- Our own losses ---------------------------------------------------------------------------

OURS = pages.generate.POLICY_LOSSES


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


def test_arguments_by_position_and_by_name_agree():
    by_position = conformance.check(
        lambda lp, behavior_logp, a: losses.ppo_clip(lp, behavior_logp, a)
    )
    assert by_position.checks == card_of(losses.ppo_clip).checks
    assert by_position.measurements == card_of(losses.ppo_clip).measurements


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
        (lambda logp: logp, "expected \\(logp, advantages\\)"),
        (lambda logp, advantages, mystery: logp, "mystery"),
        (lambda logp, advantages: logp[:, :, None], "returned shape"),
    ],
)
def test_what_is_no_objective_is_refused(objective, message):
    with pytest.raises(ValueError, match=message):
        conformance.check(objective)


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match="layout is 'pair'"):
        conformance.check(losses.reinforce, layout="pair")
