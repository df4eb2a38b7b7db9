"""Methods that become one another: what ties the library together across its files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polgrad import advantages, losses, masking, tabular

RNG = np.random.default_rng(0)
LOGP, BEHAVIOR, REFERENCE = RNG.normal(-2, 0.5, (3, 4, 5))
ADVANTAGES = RNG.normal(size=4)
ONE = np.eye(5)[[0, 2, 4, 1]]  # one valid token a row, at different places
CLIPS = {"clip_low": 0.2, "clip_high": 0.3}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def gradient(loss):
    return jax.grad(lambda x: jnp.sum(loss(x)))(jnp.asarray(LOGP))


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "sequence_loss", [losses.gspo, losses.ppo_clip_sequence, losses.luspo], ids=lambda f: f.__name__
)
def test_with_one_token_a_sequence_loss_is_ppo(sequence_loss):
    token = lambda x: ONE * losses.ppo_clip(x, BEHAVIOR, ADVANTAGES[:, None], **CLIPS)  # noqa: E731
    whole = lambda x: sequence_loss(x, BEHAVIOR, ADVANTAGES, ONE, **CLIPS)  # noqa: E731
    np.testing.assert_allclose(jnp.sum(whole(LOGP)), jnp.sum(token(LOGP)), rtol=1e-12)
    np.testing.assert_allclose(gradient(whole), gradient(token), atol=1e-12)


def test_a_sequence_ratio_for_every_token_is_gspo_when_advantages_are_a_sequences():
    mask = np.arange(5) < np.array([[5], [3], [1], [4]])
    token = lambda x: masking.reduce(  # noqa: E731
        losses.gspo_token(x, BEHAVIOR, ADVANTAGES[:, None], mask), mask, mode="sequence"
    )
    whole = lambda x: jnp.mean(losses.gspo(x, BEHAVIOR, ADVANTAGES, mask))  # noqa: E731
    np.testing.assert_allclose(gradient(token), gradient(whole), atol=1e-12)


@pytest.mark.parametrize("width", [1e-6, 0.2])
def test_against_itself_the_clip_never_binds(width):
    """The behaviour recomputed from the policy: any clip gives REINFORCE."""
    clipped = lambda x: losses.ppo_clip(  # noqa: E731
        x, jax.lax.stop_gradient(x), ADVANTAGES[:, None], clip_low=width, clip_high=width
    )
    plain = lambda x: losses.reinforce(x, ADVANTAGES[:, None])  # noqa: E731
    np.testing.assert_allclose(gradient(clipped), gradient(plain), rtol=1e-12)


SCORES = RNG.normal(size=5)
BASE = RNG.dirichlet(np.ones(5))
FIRST, SECOND = (x.ravel() for x in np.indices((5, 5)))
BETA = 0.3


def test_reward_and_pairs_have_one_optimum():
    """RLHF with a KL in the reward, and DPO on pairs labelled by the same reward."""
    log_base = jnp.log(BASE)
    optimum = tabular.kl_regularized_optimum(log_base, SCORES, beta=BETA)

    def rlhf(logits):
        logp = jax.nn.log_softmax(logits)
        shaped = advantages.regularized_rewards(SCORES, logp - log_base, beta=BETA)
        return jnp.sum(jax.lax.stop_gradient(jnp.exp(logp) * shaped) * logp)

    def dpo(logits):
        ratio = jax.nn.log_softmax(logits) - log_base
        wins = jax.nn.sigmoid(SCORES[FIRST] - SCORES[SECOND])
        weight = BASE[FIRST] * BASE[SECOND] * wins
        return weight @ losses.dpo(ratio[FIRST], ratio[SECOND], beta=BETA)

    np.testing.assert_allclose(jax.grad(rlhf)(optimum), 0.0, atol=1e-12)
    np.testing.assert_allclose(jax.grad(dpo)(optimum), 0.0, atol=1e-12)
    # So it tells the better of every pair, as a classifier.
    ratio = optimum - log_base
    right = (ratio[FIRST] > ratio[SECOND]) == (SCORES[FIRST] > SCORES[SECOND])
    assert np.all(right)


def test_ipo_pulls_margins_down_and_its_own_samples_accuracy_up():
    """gradient = E[2 d grad d] - E[grad d] / beta: a weight decay, and linear classification."""
    margin = RNG.normal(size=6)
    slope = jax.grad(lambda d: losses.ipo(d, 0 * d, beta=BETA).sum())(jnp.asarray(margin))
    np.testing.assert_allclose(slope, 2 * margin - 1 / BETA, rtol=1e-12)


def test_a_square_in_the_loss_is_dro_and_its_first_step_is_reinforce():
    on_policy = gradient(
        lambda x: losses.dro(x, jax.lax.stop_gradient(x), ADVANTAGES[:, None], beta=0.5)
    )
    plain = gradient(lambda x: losses.reinforce(x, ADVANTAGES[:, None]))
    np.testing.assert_allclose(on_policy, plain, rtol=1e-12)
    # Where advantages are the log ratios times beta, nothing is left to do.
    ratio = 0.5 * (LOGP - BEHAVIOR)
    np.testing.assert_allclose(
        gradient(lambda x: losses.dro(x, BEHAVIOR, ratio, beta=0.5)), 0.0, atol=1e-12
    )


def test_distillation_is_a_kl_penalty_with_the_teacher_as_the_reference():
    kd = lambda x: losses.kdrl(x, BEHAVIOR, REFERENCE, jnp.zeros((4, 5)), beta=0.7)  # noqa: E731
    kl = lambda x: 0.7 * losses.kl_penalty(x, REFERENCE)  # noqa: E731
    np.testing.assert_allclose(gradient(kd), gradient(kl), atol=1e-12)
