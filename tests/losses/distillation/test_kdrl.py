"""Distillation on the student's samples: exact gradients, hand numbers, reductions, edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run, value_and_grad
from enumeration import TabularPolicy, expected_gradient, objective_gradient

from polgrad import advantages, losses, masking, schedules, selection, tabular

POLICY = TabularPolicy(vocabulary=4, length=1)
STUDENT = np.array([[[0.5, -0.3, 0.1, 0.9]]])
TEACHER = np.log([[0.1], [0.2], [0.3], [0.4]])  # of each of the four completions
TO_TEACHER = [0.24127, -0.07736, -0.11643, -0.04748]  # gradient of KL(student || teacher)
FROM_TEACHER = [0.17690, -0.07558, -0.11439, 0.01308]  # gradient of KL(teacher || student)

RNG = np.random.default_rng(0)
LOGP, BEHAVIOR, TEACHING = RNG.normal(-2, 0.5, (3, 3, 4)).astype(np.float32)
ADVANTAGES = np.array([[1.5], [-0.5], [0.0]], np.float32)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def follows(loss, rewards=(0.0, 0.0, 0.0, 0.0), behavior_logits=None):
    """Expected gradient over the four actions of `loss(logp, teacher_logp, advantages, sampler)`."""
    sampler = POLICY.token_logp(
        jnp.asarray(STUDENT if behavior_logits is None else behavior_logits)
    )

    def one(logp, index):
        paid = jnp.asarray(rewards)[index][:, None]
        return loss(logp, jnp.asarray(TEACHER)[index], paid, sampler[index]).sum()

    found = expected_gradient(POLICY, jnp.asarray(STUDENT), one, behavior_logits=behavior_logits)
    return np.asarray(found)[0, 0]


# --- the numbers of the four arms ----------------------------------------------------------------


@pytest.mark.parametrize(("gradient", "expected"), [("k2", TO_TEACHER), ("k3", FROM_TEACHER)])
@pytest.mark.parametrize("older", [False, True])
def test_without_advantages_kdrl_is_distillation(gradient, expected, older, x64):
    def loss(logp, teacher, advantage, sampler):
        settings = {"beta": 2.0, "gradient": gradient, "correct_ratio": older}
        return losses.kdrl(logp, sampler, teacher, advantage, **settings)

    sampled = np.array([[[-0.4, 0.6, 0.0, 0.3]]]) if older else None
    np.testing.assert_allclose(
        follows(loss, behavior_logits=sampled), 2 * np.array(expected), atol=2e-5
    )


def test_by_default_kdrl_follows_the_reverse_kl_without_a_ratio(x64):
    def loss(logp, teacher, advantage, sampler):
        return losses.kdrl(logp, sampler - 0.7, teacher, advantage, beta=1.0)

    np.testing.assert_allclose(follows(loss), TO_TEACHER, atol=1e-5)


def test_in_the_advantage_the_gradient_is_the_same(x64):
    def loss(logp, teacher, advantage, sampler):
        shaped = advantages.distillation_advantages(advantage, logp, teacher, beta=0.5)
        return losses.reinforce(logp, shaped)

    rewards = np.array([1.0, 0.0, -0.5, 2.0])
    reward_only = -np.asarray(objective_gradient(POLICY, jnp.asarray(STUDENT), rewards))[0, 0]
    expected = reward_only + 0.5 * np.array(TO_TEACHER)
    np.testing.assert_allclose(follows(loss, rewards), expected, atol=1e-5)

    def joint(logp, teacher, advantage, sampler):
        return losses.kdrl(logp, sampler, teacher, advantage, beta=0.5)

    np.testing.assert_allclose(follows(joint, rewards), follows(loss, rewards), atol=1e-12)


def test_the_joint_optimum_is_the_teacher_tilted_by_the_reward(x64):
    rewards = np.array([1.0, 0.0, -0.5, 2.0])
    optimum = tabular.kl_regularized_optimum(
        jnp.asarray(TEACHER[:, 0]), jnp.asarray(rewards), beta=0.5
    )
    at = jnp.asarray(optimum)[None, None]
    sampler = POLICY.token_logp(at)

    def loss(logp, index):
        paid = jnp.asarray(rewards)[index][:, None]
        teacher = jnp.asarray(TEACHER)[index]
        return losses.kdrl(logp, sampler[index], teacher, paid, beta=0.5).sum()

    np.testing.assert_allclose(expected_gradient(POLICY, at, loss), 0.0, atol=1e-12)


# --- the loss ----------------------------------------------------------------------------------


def test_kdrl_is_the_sum_of_its_parts():
    settings = {"clip_low": 0.05, "clip_high": 0.1}
    expected = run(losses.ppo_clip, LOGP, BEHAVIOR, ADVANTAGES, **settings)
    term = run(losses.kl_penalty, LOGP, TEACHING)
    arguments = LOGP, BEHAVIOR, TEACHING, ADVANTAGES
    some = jax.jit(lambda d: losses.kdrl(*arguments, beta=0.3, distilled=d, **settings))
    kept = np.array([[1.0], [0.0], [1.0]])
    found = some(kept[:, 0] > 0)
    np.testing.assert_allclose(found, expected + 0.3 * kept * term, rtol=1e-5)
    plain = run(losses.ppo_clip, LOGP, BEHAVIOR, ADVANTAGES)
    every = jax.jit(lambda beta: losses.kdrl(*arguments, beta=beta))
    np.testing.assert_allclose(every(0.0), plain, rtol=1e-6)
    np.testing.assert_allclose(every(0.3), plain + 0.3 * term, rtol=1e-5)


def test_clips_of_kdrl_are_those_of_ppo():
    x = jnp.log(jnp.array([[0.7, 0.7], [1.3, 1.3]]))
    signs = jnp.array([[-1.0], [1.0]])
    loss = lambda **k: run(losses.kdrl, x, 0 * x, x, signs, beta=1.0, **k)  # noqa: E731
    np.testing.assert_allclose(loss()[:, 0], [0.8, -1.2], rtol=1e-6)
    np.testing.assert_allclose(loss(clip_low=0.1)[:, 0], [0.9, -1.2], rtol=1e-6)
    np.testing.assert_allclose(loss(clip_high=0.1)[:, 0], [0.8, -1.1], rtol=1e-6)


def test_a_teacher_that_is_the_student_teaches_nothing():
    loss = lambda x: losses.kdrl(x, LOGP, LOGP, 0 * ADVANTAGES, beta=1.0).sum()  # noqa: E731
    for result in value_and_grad(loss)(LOGP):
        np.testing.assert_array_equal(result, 0.0)
    same = run(advantages.distillation_advantages, ADVANTAGES, LOGP, LOGP)
    np.testing.assert_array_equal(same, np.broadcast_to(ADVANTAGES, (3, 4)))


def test_only_the_student_carries_a_gradient():
    def total(x, b, t, a, beta):
        return losses.kdrl(x, b, t, a, beta=beta, correct_ratio=True).sum()

    to_student, *stopped = grad(total, argnums=(0, 1, 2, 3, 4))(
        LOGP, BEHAVIOR, TEACHING, ADVANTAGES, 0.5
    )
    assert np.any(to_student != 0)
    for gradient in stopped:
        np.testing.assert_array_equal(gradient, 0.0)
    shaped = lambda a, x, t, beta: advantages.distillation_advantages(a, x, t, beta=beta).sum()  # noqa: E731
    for gradient in grad(shaped, argnums=(0, 1, 2, 3))(ADVANTAGES, LOGP, TEACHING, 0.5):
        np.testing.assert_array_equal(gradient, 0.0)
    ratio = lambda x, t: advantages.teacher_log_ratio(x, t).sum()  # noqa: E731
    for gradient in grad(ratio, argnums=(0, 1))(LOGP, TEACHING):
        np.testing.assert_array_equal(gradient, 0.0)


def test_impossible_tokens():
    inf = np.inf
    x, teacher = jnp.array([[-1.0, -inf, -inf]]), jnp.array([[-inf, -1.0, -inf]])
    np.testing.assert_array_equal(
        run(advantages.teacher_log_ratio, x, teacher), [[-20.0, 20.0, 0.0]]
    )
    loss = lambda x: losses.kdrl(x, x, teacher, jnp.ones((1, 1)), beta=1.0).sum()  # noqa: E731
    assert all(np.all(np.isfinite(result)) for result in value_and_grad(loss)(x))


# --- masks --------------------------------------------------------------------------------------


def test_a_solved_group_under_the_mask_has_no_gradient_at_all():
    correct = np.ones((1, 3), bool)
    keep = selection.distillation_mask(correct).reshape(-1)

    def loss(x):
        token = losses.kdrl(x, LOGP, TEACHING, 0 * ADVANTAGES, beta=1.0, distilled=keep)
        return masking.reduce(token, np.ones((3, 4)), mode="token")

    np.testing.assert_array_equal(grad(loss)(LOGP), 0.0)


# --- mistakes ------------------------------------------------------------------------------------


def test_bad_arguments_are_named():
    arguments = LOGP, BEHAVIOR, TEACHING, ADVANTAGES
    with pytest.raises(ValueError, match="beta"):
        losses.kdrl(*arguments, beta=-0.1)
    with pytest.raises(ValueError, match="distilled"):
        losses.kdrl(*arguments, beta=1.0, distilled=np.ones((3, 1), bool))
    with pytest.raises(ValueError, match="gradient"):
        losses.kdrl(*arguments, beta=1.0, gradient="k1")
    with pytest.raises(ValueError, match="beta"):
        advantages.distillation_advantages(ADVANTAGES, LOGP, TEACHING, beta=-0.1)
    advantages.distillation_advantages(ADVANTAGES, LOGP, TEACHING, beta=0.0)
    with pytest.raises(ValueError, match="advantages"):
        advantages.distillation_advantages(ADVANTAGES[:, 0], LOGP, TEACHING)
    with pytest.raises(ValueError, match="teacher_logp"):
        advantages.distillation_advantages(ADVANTAGES, LOGP, TEACHING[:2])
    with pytest.raises(ValueError, match="level"):
        selection.distillation_mask(np.ones((1, 2), bool), level="none")
    with pytest.raises(ValueError, match="valid"):
        selection.distillation_mask(np.ones((1, 2), bool), valid=np.ones(2, bool))
    with pytest.raises(ValueError, match="correct has shape"):
        selection.distillation_mask(True)
    x = jnp.zeros((2, 4))
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k is {k}"):
            losses.top_k_kl(x, x, k=k)
    with pytest.raises(ValueError, match="of is"):
        losses.top_k_kl(x, x, of="both")
    with pytest.raises(ValueError, match="teacher_logits"):
        losses.top_k_kl(x, x[:1])


def test_the_annealed_strength_reaches_its_floor_after_eighty_updates():
    """The schedule that the method is used with."""
    loss = jax.jit(
        lambda step: losses.kdrl(
            LOGP, LOGP, TEACHING, 0 * ADVANTAGES, beta=schedules.annealed_coefficient(step)
        )[0, 0]
    )
    assert loss(80) / loss(0) == pytest.approx(0.2, rel=1e-4)
    assert loss(280) == pytest.approx(float(loss(80)), rel=1e-6)  # float32
