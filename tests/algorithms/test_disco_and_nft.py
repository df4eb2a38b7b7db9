"""DisCO and NFT as algorithms: the composition of their primitives on a stored rollout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import grad
from stored import GROUP, PROMPTS, T, stored_rollouts

from polgrad import algorithms, losses, masking
from polgrad.contract import Context, Outputs


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def rollouts():
    experience = jax.tree.map(jnp.asarray, stored_rollouts())
    return experience | {"rewards": jnp.round(experience["rewards"])}


def gradient(settings, *, on_policy):
    """Of the algorithm's loss on the whole rollout, in the log-probabilities [N, T]."""
    algorithm = settings.build(Context(GROUP, T, PROMPTS, on_policy=on_policy))
    experience = rollouts()
    _, batch, _ = algorithm.prepare((), experience, None)
    start = experience["behavior_logp"] + 0.2 * experience["mask"]

    def loss(logp):
        logp = logp.reshape(batch["mask"].shape)
        outputs = Outputs(logp, jnp.zeros_like(logp))
        chosen = algorithm.select(jax.lax.stop_gradient(outputs), batch, None)
        return algorithm.loss(outputs, chosen)[0]

    return grad(loss)(start)


@pytest.mark.parametrize("score", ["log_l", "l_ratio"])
def test_disco_is_the_mean_over_questions_and_a_hinge_on_the_mean_kl(score):
    bound = algorithms.KLBound(beta=10.0, delta=0.01)
    settings = algorithms.DisCO(score=score, tau=0.7, bound=bound)
    experience = rollouts()
    mask, behavior = experience["mask"], experience["behavior_logp"]
    start = behavior - 0.3 * mask  # a KL above the bound

    def direct(logp):
        scores = losses.sequence_score(logp, behavior, mask, kind=score)
        by_group = lambda x: x.reshape(-1, GROUP)  # noqa: E731
        rank = losses.disco(
            by_group(scores),
            by_group(experience["rewards"]),
            tau=0.7,
            valid=by_group(experience["valid"]),
        )
        counted = mask * experience["valid"][:, None]
        kl = masking.masked_mean(losses.behavior_kl(logp, behavior), counted)
        return rank.mean() + losses.kl_hinge(kl, beta=10.0, delta=0.01)

    algorithm = settings.build(Context(GROUP, T, PROMPTS, on_policy=False))
    _, batch, _ = algorithm.prepare((), experience, None)

    def loss(logp):
        outputs = Outputs(logp.reshape(batch["mask"].shape), jnp.zeros_like(batch["mask"]))
        chosen = algorithm.select(jax.lax.stop_gradient(outputs), batch, None)
        return algorithm.loss(outputs, chosen)[0]

    ours, theirs = grad(loss)(start), grad(direct)(start)
    assert abs(theirs).max() > 1e-3
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_nft_on_policy_is_dr_grpo_without_its_length():
    nft = gradient(algorithms.NFT(), on_policy=True)
    grpo = algorithms.GRPO(scale="none", aggregation="token")
    np.testing.assert_allclose(nft, gradient(grpo, on_policy=True), atol=1e-12)
    assert abs(nft).max() > 1e-3


def test_nft_off_policy_leaves_right_answers_without_a_ratio():
    nft = gradient(algorithms.NFT(), on_policy=False)
    on = gradient(algorithms.NFT(), on_policy=True)
    right = np.asarray(rollouts()["rewards"] == 1)
    np.testing.assert_allclose(nft[right], on[right], atol=1e-12)
    assert (abs(nft - on)[~right] > 1e-3).any()


def test_disco_needs_groups():
    with pytest.raises(ValueError, match=r"group_size\) is 1, expected at least 2"):
        algorithms.DisCO().build(Context(1, T, PROMPTS, on_policy=True))
