import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run, value_and_grad
from enumeration import TabularPolicy, expected_gradient, objective_gradient
from one_group import one_group

from polgrad import advantages, losses, masking

# Arrays of rank 1 are one group.
one_remax = one_group(advantages.remax)
one_leave_one_out = one_group(advantages.leave_one_out)
one_group_relative = one_group(advantages.group_relative)

RNG = np.random.default_rng(0)
MASK = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], np.float32)
LOGP = RNG.normal(-2, 0.5, size=(3, 4)).astype(np.float32)
ADVANTAGES = np.array([[1.5], [-0.5], [2.0]], np.float32)


def ratio_loss(function, ratios, advantage, **settings):
    """Token losses at given ratios for one advantage."""
    logp = jnp.log(jnp.array([ratios]))
    return run(function, logp, jnp.zeros_like(logp), jnp.array([[advantage]]), **settings)[0]


# --- hand numbers ----------------------------------------------------------------------------


def test_ppo_values_with_clip_higher_and_dual_clip():
    settings = {"clip_low": 0.2, "clip_high": 0.28}
    np.testing.assert_allclose(
        ratio_loss(losses.ppo_clip, [0.5, 1.0, 1.25, 4.0], 1.0, **settings),
        [-0.5, -1.0, -1.25, -1.28],
        rtol=1e-6,
    )
    negative = ratio_loss(losses.ppo_clip, [0.5, 1.0, 1.25, 4.0], -1.0, **settings)
    np.testing.assert_allclose(negative, [0.8, 1.0, 1.25, 4.0], rtol=1e-6)
    dual = ratio_loss(losses.ppo_clip, [0.5, 1.0, 1.25, 4.0], -1.0, dual_clip=3.0, **settings)
    np.testing.assert_allclose(dual, [0.8, 1.0, 1.25, 3.0], rtol=1e-6)
    unmoved = ratio_loss(losses.ppo_clip, [0.5, 4.0], 1.0, dual_clip=3.0, **settings)
    np.testing.assert_allclose(unmoved, [-0.5, -1.28], rtol=1e-6)
    wide = ratio_loss(losses.ppo_clip, [0.5, 4.0], 1.0, dual_clip=3.0, clip_high=9.0)
    np.testing.assert_allclose(wide, [-0.5, -4.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [(1.5, 1.0, 0.0), (1.5, -1.0, 1.5), (0.5, -1.0, 0.0), (0.5, 1.0, -0.5), (4.0, -1.0, 0.0)],
)
def test_ppo_gradient_is_cut_on_one_side_only(ratio, advantage, slope):
    def loss(logp):
        token = losses.ppo_clip(logp, jnp.zeros((1, 1)), jnp.array([[advantage]]), dual_clip=3.0)
        return token.sum()

    assert grad(loss)(jnp.log(jnp.array([[ratio]])))[0, 0] == pytest.approx(slope, abs=1e-6)


def test_ppo_at_an_exact_clip_edge_keeps_the_whole_gradient():
    """exp(0) = 1 exactly, so a range of width 0 puts the ratio on the edge itself."""
    for advantage in (1.0, -1.0):
        gradient = grad(
            lambda x, a=advantage: losses.ppo_clip(
                x, jnp.zeros((1, 1)), jnp.array([[a]]), clip_low=0.0, clip_high=0.0
            ).sum()
        )(jnp.zeros((1, 1)))
        assert gradient[0, 0] == -advantage


def test_cispo_caps_are_the_ratio_itself_and_no_token_loses_its_gradient():
    logp = jnp.log(jnp.array([[0.2, 1.0, 9.0]]))
    loss = lambda x, **k: losses.cispo(x, jnp.zeros((1, 3)), jnp.array([[2.0]]), **k).sum()  # noqa: E731
    np.testing.assert_allclose(grad(loss)(logp)[0], [-0.4, -2.0, -10.0], rtol=1e-5)
    gradient = grad(lambda x: loss(x, cap_low=0.5, cap_high=2.0))(logp)
    np.testing.assert_allclose(gradient[0], [-1.0, -2.0, -4.0], rtol=1e-5)


def test_sapo_value_slope_and_asymmetry():
    np.testing.assert_allclose(ratio_loss(losses.sapo, [1.0], 1.0), [-2.0], rtol=1e-6)
    np.testing.assert_allclose(ratio_loss(losses.sapo, [1.0], -1.0), [2.0 / 1.05], rtol=1e-6)
    for advantage, tau in ((1.0, 1.0), (-1.0, 1.05)):
        ratios = np.array([0.3, 1.0, 2.5], np.float32)

        def loss(r, a=advantage):
            return losses.sapo(jnp.log(r)[None], jnp.zeros((1, 3)), jnp.array([[a]])).sum()

        s = 1 / (1 + np.exp(-tau * (ratios - 1)))
        np.testing.assert_allclose(
            grad(loss)(jnp.array(ratios)), -advantage * 4 * s * (1 - s), rtol=1e-5
        )


# --- identities ------------------------------------------------------------------------------

NOTHING = np.zeros((3, 4), bool)
EVERYTHING = np.ones((3, 4), bool)
ON_POLICY = {
    "reinforce": losses.reinforce,
    "ppo_clip": lambda x, a: losses.ppo_clip(x, LOGP, a),
    "dual_clip": lambda x, a: losses.ppo_clip(x, LOGP, a, dual_clip=3.0),
    "cispo": lambda x, a: losses.cispo(x, LOGP, a),
    "sapo": lambda x, a: losses.sapo(x, LOGP, a),
    "gspo_token": lambda x, a: losses.gspo_token(x, LOGP, a, MASK),
    "clip_cov": lambda x, a: losses.clip_cov(x, LOGP, a, NOTHING),
    "kl_cov": lambda x, a: losses.kl_cov(x, LOGP, a, EVERYTHING),
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", ON_POLICY)
@pytest.mark.parametrize("columns", [1, 4])
def test_on_policy_every_token_loss_has_the_gradient_of_reinforce(name, columns):
    given = np.broadcast_to(ADVANTAGES, (3, 4)) * (1 + np.arange(4)) if columns == 4 else ADVANTAGES
    gradient = grad(lambda x: (ON_POLICY[name](x, given) * MASK).sum())(jnp.asarray(LOGP))
    np.testing.assert_allclose(gradient, -given * MASK, rtol=1e-6)


def test_only_the_current_log_probability_carries_a_gradient():
    for function in (losses.ppo_clip, losses.cispo, losses.sapo):
        gradients = grad(lambda x, b, a, f=function: f(x, b, a).sum(), argnums=(1, 2))(
            LOGP, LOGP - 0.1, ADVANTAGES
        )
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, 0.0)


def test_dr_grpo_is_a_composition():
    """Group mean only, sums over a constant length (Liu et al. 2025, equation 2)."""
    rewards = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]], np.float32)
    mask = (np.arange(4) < np.array([1, 4, 2, 3, 3, 4])[:, None]).astype(np.float32)
    logp, behavior = RNG.normal(-2, 0.3, size=(2, 6, 4)).astype(np.float32)

    centred = run(one_group_relative, rewards, scale="none").reshape(-1, 1)
    token = run(losses.ppo_clip, logp, behavior, centred)
    composed = run(masking.reduce, token, mask, mode="constant", length=4)

    total = 0.0
    for i in range(6):
        a = rewards[i // 3, i % 3] - rewards[i // 3].mean()
        for t in range(int(mask[i].sum())):
            r = np.exp(logp[i, t] - behavior[i, t])
            total -= min(r * a, np.clip(r, 0.8, 1.2) * a)
    assert composed == pytest.approx(total / (6 * 4), rel=1e-5)


def test_dapo_is_a_composition():
    """Group mean and deviation, clip-higher, mean over all tokens of the groups that are kept."""
    rewards = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]], np.float32)
    mask = (np.arange(4) < np.array([1, 4, 2, 3, 3, 4])[:, None]).astype(np.float32)
    logp, behavior = RNG.normal(-2, 0.3, size=(2, 6, 4)).astype(np.float32)

    keep = np.repeat(run(advantages.dynamic_sampling_filter, rewards), 3)[:, None]
    scaled = run(one_group_relative, rewards).reshape(-1, 1)
    token = run(losses.ppo_clip, logp, behavior, scaled, clip_low=0.2, clip_high=0.28)
    composed = run(masking.reduce, token, mask * keep, mode="token")

    total, count = 0.0, 0
    for i in range(3):
        a = (rewards[0, i] - rewards[0].mean()) / rewards[0].std(ddof=1)
        for t in range(int(mask[i].sum())):
            r = np.exp(logp[i, t] - behavior[i, t])
            total -= min(r * a, np.clip(r, 0.8, 1.28) * a)
            count += 1
    assert composed == pytest.approx(total / count, rel=1e-5)


# --- exact expectations ----------------------------------------------------------------------

POLICIES = {
    "categorical": TabularPolicy(vocabulary=4, length=1),
    "autoregressive": TabularPolicy(vocabulary=2, length=3, end=0),
}


def group_loss(policy, returns, advantage):
    """REINFORCE on one group: mean over sequences of token sums."""

    def loss(logp, index):
        a = advantage(returns[index])[:, None]
        return masking.reduce(
            losses.reinforce(logp, a), jnp.asarray(policy.mask)[index], mode="sequence_sum"
        )

    return loss


BASELINES = {
    "none": (1, lambda r: r),
    "constant": (1, lambda r: r - 0.7),
    "remax": (2, lambda r: one_remax(r, jnp.asarray(0.4))),
    "leave_one_out": (3, one_leave_one_out),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("baseline", BASELINES)
def test_reinforce_with_an_unbiased_baseline_follows_the_objective(policy, baseline):
    group_size, advantage = BASELINES[baseline]
    with jax.enable_x64(True):
        logits = jnp.asarray(policy.init(1))
        returns = jnp.asarray(np.random.default_rng(2).normal(size=policy.size))
        expected = objective_gradient(policy, logits, returns)
        loss = group_loss(policy, returns, advantage)
        gradient = -expected_gradient(policy, logits, loss, group_size=group_size)
        assert jnp.abs(expected).max() > 0.01
        np.testing.assert_allclose(gradient, expected, atol=1e-12)


def test_dr_grpo_advantages_shrink_the_gradient_and_grpo_ones_turn_it():
    """R - mean R holds the sample itself: the gradient is (G - 1) / G of the true one. The
    division by the deviation is not a mere factor."""
    policy = POLICIES["categorical"]
    with jax.enable_x64(True):
        logits = jnp.asarray(policy.init(1))
        returns = jnp.asarray(np.random.default_rng(2).normal(size=policy.size))
        exact = objective_gradient(policy, logits, returns)

        def follow(scale):
            advantage = lambda r: one_group_relative(r, scale=scale)  # noqa: E731
            loss = group_loss(policy, returns, advantage)
            return -expected_gradient(policy, logits, loss, group_size=3)

        np.testing.assert_allclose(follow("none"), exact * 2 / 3, atol=1e-12)
        turned = follow("group")
        cosine = jnp.vdot(turned, exact) / jnp.linalg.norm(turned) / jnp.linalg.norm(exact)
        assert 0.5 < cosine < 0.9999


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_unclipped_sequence_ratios_follow_the_objective_off_policy(policy):
    """On a one-token policy the token ratio is exact; on longer ones the sequence ratio is."""
    with jax.enable_x64(True):
        logits, behavior = jnp.asarray(policy.init(1)), jnp.asarray(policy.init(5))
        returns = jnp.asarray(np.random.default_rng(2).normal(size=policy.size))
        sampled = policy.sequence_logp(behavior)[:, None]

        def loss(logp, index):
            total = masking.sequence_sum(logp, jnp.asarray(policy.mask)[index])[:, None]
            wide = {"clip_low": 1.0, "clip_high": np.inf}
            return losses.ppo_clip(total, sampled[index], returns[index][:, None], **wide).sum()

        gradient = -expected_gradient(policy, logits, loss, behavior_logits=behavior)
        exact = objective_gradient(policy, logits, returns)
        np.testing.assert_allclose(gradient, exact, atol=1e-12)


# --- edges -----------------------------------------------------------------------------------


def test_excluded_tokens():
    inf = np.inf
    logp = jnp.array([[-inf, -inf, -1.0]])
    behavior = jnp.array([[-1.0, -inf, -inf]])
    reinforce = value_and_grad(lambda x, a: losses.reinforce(x, a).sum())
    for advantage in (1.0, -1.0, 0.0):
        value, gradient = reinforce(logp, jnp.array([[advantage]]))
        assert value == advantage and gradient[0, 0] == gradient[0, 1] == 0.0
    loss = run(losses.ppo_clip, logp, behavior, jnp.array([[1.0]]))
    np.testing.assert_allclose(loss, [[0.0, -1.0, -1.2]], rtol=1e-6)
    sequence = run(losses.gspo, logp, behavior, jnp.array([1.0]), jnp.ones((1, 3)))
    assert sequence[0] == 0.0, "one excluded token makes the sequence impossible"


def test_values_under_the_mask_do_not_matter():
    """Check 14: reduced losses and gradients ignore what stands under the mask."""
    behavior = LOGP + 0.05
    changed = np.where(MASK > 0, LOGP, -7.0).astype(np.float32)
    rows = MASK.any(1)

    def gspo(x):
        loss = losses.gspo(x, behavior, ADVANTAGES[:, 0], MASK)
        return masking.reduce(loss, rows, mode="sequence")

    def gspo_token(x):
        loss = losses.gspo_token(x, behavior, ADVANTAGES, MASK)
        return masking.reduce(loss, MASK, mode="sequence")

    def ppo(x):
        return masking.reduce(losses.ppo_clip(x, behavior, ADVANTAGES), MASK, mode="token")

    for function in (gspo, gspo_token, ppo):
        a, b = (value_and_grad(function)(jnp.asarray(x)) for x in (LOGP, changed))
        assert a[0] == b[0]
        np.testing.assert_array_equal(a[1], b[1])


def test_bad_arguments_are_named():
    square = jnp.zeros((3, 3))
    with pytest.raises(ValueError, match=r"advantages has shape \[3\], expected rank 2"):
        losses.reinforce(square, jnp.zeros(3))
    with pytest.raises(ValueError, match=r"advantages has shape \[2, 3\], expected \[B, T\]"):
        losses.ppo_clip(square, square, jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"advantages has shape \[1, 3\]"):
        losses.cispo(square, square, jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match=r"behavior_logp has shape \[3, 2\]"):
        losses.sapo(square, jnp.zeros((3, 2)), jnp.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"advantages has shape \[3, 1\], expected \[B\] = \[3\]"):
        losses.gspo(square, square, jnp.zeros((3, 1)), square)
    with pytest.raises(ValueError, match=r"mask has shape \[3\]"):
        losses.gspo_token(square, square, jnp.zeros((3, 1)), jnp.zeros(3))
    with pytest.raises(ValueError, match="dual_clip is 1.0"):
        losses.ppo_clip(square, square, square, dual_clip=1.0)
    with pytest.raises(ValueError, match="cap_low is 2.0"):
        losses.cispo(square, square, square, cap_low=2.0, cap_high=1.0)
    with pytest.raises(ValueError, match="tau_negative is 0.0"):
        losses.sapo(square, square, square, tau_negative=0.0)


# --- defaults, edges, what is stopped ----------------------------------------------------------


def test_defaults():
    ratios = [0.5, 0.9, 1.1, 9.0]
    for sign in (1.0, -1.0):
        for function, settings in (
            (losses.ppo_clip, {"clip_low": 0.2, "clip_high": 0.2}),
            (losses.cispo, {"cap_low": 0.0, "cap_high": 5.0}),
            (losses.sapo, {"tau_positive": 1.0, "tau_negative": 1.05}),
        ):
            found = ratio_loss(function, ratios, sign)
            np.testing.assert_array_equal(found, ratio_loss(function, ratios, sign, **settings))
    mask = np.ones((4, 1))
    logp, behavior = np.log([[0.999], [0.9999], [1.0003], [1.001]]), np.zeros((4, 1))
    signs = np.array([-1.0, -1.0, 1.0, 1.0])
    np.testing.assert_allclose(
        losses.gspo(logp, behavior, signs, mask), [0.9997, 0.9999, -1.0003, -1.0004], rtol=2e-6
    )
    np.testing.assert_allclose(
        losses.gspo_token(logp, behavior, signs[:, None], mask)[:, 0],
        [0.9997, 0.9999, -1.0003, -1.0004],
        rtol=2e-6,
    )


def test_the_dual_clip_holds_negative_advantages_alone():
    settings = {"dual_clip": 1.5, "clip_high": 9.0}
    small = ratio_loss(losses.ppo_clip, [4.0], 0.5, **settings)
    np.testing.assert_allclose(small, [-2.0], rtol=1e-6)
    held = ratio_loss(losses.ppo_clip, [1.25, 4.0], -0.5, **settings)
    np.testing.assert_allclose(held, [0.625, 0.75], rtol=1e-6)
