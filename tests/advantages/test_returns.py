import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad, run

from polgrad import advantages

B, T = 3, 6


def trajectory(seed):
    """Random rows in which episodes end (discount 0) and are cut (truncated) anywhere."""
    rng = np.random.default_rng(seed)
    terminated = rng.random((B, T)) < 0.2
    return {
        "rewards": rng.normal(size=(B, T)),
        "values": rng.normal(size=(B, T + 1)),
        "discounts": 0.9 * ~terminated,
        "truncated": (rng.random((B, T)) < 0.3).astype(float),
        "final_values": rng.normal(size=(B, T)),
        "log_ratios": rng.normal(size=(B, T)),
    }


@pytest.fixture(scope="module")
def programs():
    """The functions compiled once in float64, with lambda as an argument."""
    with jax.enable_x64(True):

        def gae(r, v, d, u, f, lam):
            return advantages.gae(r, v, d, lambda_=lam, truncated=u, final_values=f)

        def lambda_returns(r, v, d, u, f, lam):
            return advantages.lambda_returns(r, v, d, lambda_=lam, truncated=u, final_values=f)

        def returns(r, v, d, u, f):
            return advantages.discounted_returns(
                r, d, bootstrap_value=v[:, -1], truncated=u, final_values=f
            )

        def vtrace(r, v, d, u, f, lam, logs, rho, c):
            return advantages.vtrace(
                r, v, d, logs, clip_rho=rho, clip_c=c, lambda_=lam, truncated=u, final_values=f
            )

        compiled = {f.__name__: jax.jit(f) for f in (gae, lambda_returns, returns, vtrace)}
        yield compiled


def inputs(case):
    return [case[k] for k in ("rewards", "values", "discounts", "truncated", "final_values")]


def masked_gae(r, v, d, m):
    return advantages.gae(r, v, d, lambda_=0.8, mask=m)


def masked_lambda_returns(r, v, d, m):
    return advantages.lambda_returns(r, v, d, lambda_=0.8, mask=m)


def masked_returns(r, v, d, m):
    return advantages.discounted_returns(r, d, bootstrap_value=v[:, -1], mask=m)


# --- hand numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rewards", "values", "discounts", "expected"),
    [
        # The discount after the last step is 0: the episode ends there.
        ([0, 0, 1], [0.5, 0.6, 0.8, 7.0], [0.9, 0.9, 0.0], [0.23008, 0.264, 0.2]),
        ([1, 1, 1], [0.5, 0.5, 0.5, 7.0], [0.9, 0.9, 0.0], [1.8932, 1.31, 0.5]),
    ],
)
def test_gae_hand_numbers(rewards, values, discounts, expected):
    r, v, d = (jnp.array([x], jnp.float32) for x in (rewards, values, discounts))
    advantage = run(advantages.gae, r, v, d, lambda_=0.8)
    np.testing.assert_allclose(advantage, [expected], rtol=1e-5)
    targets = run(advantages.lambda_returns, r, v, d, lambda_=0.8)
    np.testing.assert_allclose(targets, advantage + v[:, :-1], rtol=1e-5)


def test_vtrace_hand_numbers():
    """V = 0, r = (1, 1), ratios (2, 1/2): errors and advantages (1.5, 0.5)."""
    zeros = jnp.zeros((1, 3))
    logs = jnp.log(jnp.array([[2.0, 0.5]]))
    discounts = jnp.array([[1.0, 0.0]])
    result = run(advantages.vtrace, jnp.ones((1, 2)), zeros, discounts, logs)
    np.testing.assert_allclose(result.value_targets, [[1.5, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(result.advantages, [[1.5, 0.5]], rtol=1e-6)


def test_discounted_returns_hand_numbers():
    rewards = jnp.array([[1.0, 2.0, 4.0]])
    discounts = jnp.array([[0.5, 0.5, 0.5]])
    np.testing.assert_allclose(
        run(advantages.discounted_returns, rewards, discounts), [[3.0, 4.0, 4.0]]
    )
    bootstrapped = run(
        lambda r, d, v: advantages.discounted_returns(r, d, bootstrap_value=v),
        rewards,
        discounts,
        jnp.array([8.0]),
    )
    np.testing.assert_allclose(bootstrapped, [[4.0, 6.0, 8.0]])


# --- identities ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_gae_is_the_lambda_return_minus_the_value(programs, seed, lam):
    case = trajectory(seed)
    with jax.enable_x64(True):
        advantage = programs["gae"](*inputs(case), lam)
        targets = programs["lambda_returns"](*inputs(case), lam)
        np.testing.assert_allclose(advantage, targets - case["values"][:, :-1], atol=1e-12)
        if lam == 1.0:
            np.testing.assert_allclose(targets, programs["returns"](*inputs(case)), atol=1e-12)
        if lam == 0.0:
            cut = case["truncated"] > 0
            following = np.where(cut, case["final_values"], case["values"][:, 1:])
            one_step = case["rewards"] + case["discounts"] * following
            np.testing.assert_allclose(targets, one_step, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_on_policy_vtrace_is_td_lambda_and_gae(programs, seed):
    case = trajectory(seed)
    with jax.enable_x64(True):
        result = programs["vtrace"](*inputs(case), 0.8, np.zeros((B, T)), 1.0, 1.0)
        np.testing.assert_allclose(
            result.value_targets, programs["lambda_returns"](*inputs(case), 0.8), atol=1e-12
        )
        np.testing.assert_allclose(
            result.advantages, programs["gae"](*inputs(case), 0.8), atol=1e-12
        )


def vtrace_by_loop(case, lam, clip_rho, clip_c):
    """Espeholt et al. 2018, remark 1, one row and one step at a time."""
    v, d = case["values"], case["discounts"]
    targets, advantage = np.zeros((B, T)), np.zeros((B, T))
    for b in range(B):
        next_target = v[b, T]
        for t in reversed(range(T)):
            cut = case["truncated"][b, t] > 0
            next_value = case["final_values"][b, t] if cut else v[b, t + 1]
            next_target = next_value if cut else next_target
            ratio = np.exp(case["log_ratios"][b, t])
            rho, c = min(clip_rho, ratio), lam * min(clip_c, ratio)
            delta = rho * (case["rewards"][b, t] + d[b, t] * next_value - v[b, t])
            q = case["rewards"][b, t] + d[b, t] * (lam * next_target + (1 - lam) * next_value)
            advantage[b, t] = rho * (q - v[b, t])
            targets[b, t] = v[b, t] + delta + d[b, t] * c * (next_target - next_value)
            next_target = targets[b, t]
    return advantage, targets


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rho", "c"), [(1.0, 1.0), (1.5, 0.7), (np.inf, np.inf)])
def test_vtrace_equals_the_loop(programs, seed, rho, c):
    case = trajectory(seed)
    with jax.enable_x64(True):
        result = programs["vtrace"](*inputs(case), 0.8, case["log_ratios"], rho, c)
        expected = vtrace_by_loop(case, 0.8, rho, c)
        np.testing.assert_allclose(result.advantages, expected[0], atol=1e-10)
        np.testing.assert_allclose(result.value_targets, expected[1], atol=1e-10)


def test_a_truncated_step_separates_what_follows_as_two_rows_would():
    """Time limit after step 2: the row equals two rows, the first bootstrapping from V_final."""
    case = trajectory(0)
    r, v, f = case["rewards"][:1], case["values"][:1], case["final_values"][:1]
    d, u = np.full((1, T), 0.9), np.zeros((1, T))
    u[0, 2] = 1.0
    first = np.concatenate([v[:, :3], f[:, 2:3]], axis=1)
    for function in (advantages.gae, advantages.lambda_returns):
        joined = run(
            lambda *x, g=function: g(*x[:3], truncated=x[3], final_values=x[4]), r, v, d, u, f
        )
        parts = [
            run(function, r[:, :3], first, d[:, :3]),
            run(function, r[:, 3:], v[:, 3:], d[:, 3:]),
        ]
        np.testing.assert_allclose(joined, np.concatenate(parts, axis=1), rtol=1e-5)


def test_truncation_bootstraps_and_termination_does_not():
    r, v = jnp.ones((1, 1)), jnp.array([[2.0, 99.0]])
    cut, final = jnp.ones((1, 1)), jnp.array([[10.0]])

    def step(d, u):
        return advantages.gae(r, v, d, truncated=u, final_values=final)

    assert run(step, jnp.array([[0.9]]), cut)[0, 0] == pytest.approx(1 + 9 - 2)
    assert run(step, jnp.array([[0.0]]), 0 * cut)[0, 0] == pytest.approx(1 - 2)
    # Both at once: the end of the episode wins.
    assert run(step, jnp.array([[0.0]]), cut)[0, 0] == pytest.approx(1 - 2)


@pytest.mark.parametrize("function", [masked_gae, masked_lambda_returns, masked_returns])
def test_holes_are_skipped_as_if_they_were_not_there(function):
    case = trajectory(1)
    r, v = (case[k][:1].astype(np.float32) for k in ("rewards", "values"))
    d = np.full((1, T), 0.9, np.float32)
    holes = np.array([[1, 0, 1, 1, 0, 0]])
    steps = np.flatnonzero(holes[0])
    whole = np.asarray(run(function, *(_poison(x, holes) for x in (r, v, d)), holes))
    ends = np.append(steps, T)
    compact = run(function, r[:, steps], v[:, ends], d[:, steps], np.ones((1, 3)))
    np.testing.assert_allclose(whole[:, steps], compact, rtol=1e-6)
    assert np.all(whole[holes == 0] == 0.0)


def _poison(x, mask):
    """NaN wherever the mask is 0; the value after the last step stays."""
    wide = np.ones(x.shape)
    wide[:, : mask.shape[1]] = mask
    return np.where(wide > 0, x, np.nan).astype(np.float32)


@pytest.mark.parametrize("function", [masked_gae, masked_lambda_returns, masked_returns])
def test_gradients_survive_nan_under_the_mask(function):
    case = trajectory(1)
    mask = np.array([[1, 0, 1, 1, 0, 0], [0] * 6, [1] + [0] * 5])
    arrays = [_poison(case[k], mask) for k in ("rewards", "values", "discounts")]
    total = lambda r, v, d: function(r, v, d, mask).sum()  # noqa: E731
    for gradient in grad(total, argnums=(0, 1, 2))(*arrays):
        assert np.all(np.isfinite(gradient))


def test_vtrace_with_excluded_actions():
    logs = jnp.array([[-np.inf, np.inf, 0.0]])
    values = jnp.array([[1.0, 2.0, 3.0, 4.0]])
    result = run(advantages.vtrace, jnp.ones((1, 3)), values, jnp.full((1, 3), 0.9), logs)
    assert result.advantages[0, 0] == 0.0 and result.value_targets[0, 0] == 1.0
    assert np.all(np.isfinite(result.advantages)) and np.all(np.isfinite(result.value_targets))


def test_bad_arguments_are_named():
    r, v = jnp.zeros((2, 3)), jnp.zeros((2, 4))
    with pytest.raises(ValueError, match=r"values has shape \[2, 3\], expected \[B, T\+1\]"):
        advantages.gae(r, r, r)
    with pytest.raises(ValueError, match="final_values is None"):
        advantages.gae(r, v, r, truncated=r)
    with pytest.raises(ValueError, match="truncated is None"):
        advantages.vtrace(r, v, r, r, final_values=r)
    with pytest.raises(ValueError, match=r"discounts has shape \[2, 4\]"):
        advantages.lambda_returns(r, v, v)
    with pytest.raises(ValueError, match=r"bootstrap_value has shape \[3\]"):
        advantages.discounted_returns(r, r, bootstrap_value=jnp.zeros(3))
    with pytest.raises(ValueError, match=r"mask has shape \[3\]"):
        advantages.discounted_returns(r, r, mask=jnp.ones(3))
    with pytest.raises(ValueError, match=r"log_ratios has shape \[2\]"):
        advantages.vtrace(r, v, r, jnp.zeros(2))
    with pytest.raises(ValueError, match=r"rewards has shape \[3\], expected rank 2"):
        advantages.discounted_returns(jnp.zeros(3), r)


def test_lambda_by_default():
    world = {k: jnp.asarray(v, jnp.float32) for k, v in trajectory(3).items()}
    for function in (advantages.gae, advantages.lambda_returns):
        given = world["rewards"], world["values"], world["discounts"]
        np.testing.assert_array_equal(function(*given), function(*given, lambda_=0.95))


def test_ratios_of_vtrace_are_bounded_and_stopped():
    one, none = jnp.ones((1, 1)), jnp.zeros((1, 1))
    values = jnp.zeros((1, 2))
    for log_ratio, expected in ((25.0, np.exp(20.0)), (-25.0, np.exp(-20.0)), (-jnp.inf, 0.0)):
        found = advantages.vtrace(one, values, none, log_ratio * one, clip_rho=jnp.inf)
        np.testing.assert_allclose(found.advantages, [[expected]], rtol=1e-5)
    slope = jax.grad(lambda r: advantages.vtrace(one, values, none, r).advantages.sum())(-one)
    np.testing.assert_array_equal(slope, 0.0)
