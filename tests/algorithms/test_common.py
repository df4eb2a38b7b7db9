"""What the algorithms share: masks, batches, clips, and sentences before a run."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_made import samples

from polgrad import algorithms
from polgrad.algorithms import common
from polgrad.contract import Context, Outputs

ONE_SAMPLE = Context(group_size=1, max_tokens=2, num_prompts=2, on_policy=False)


def experience(rewards=(1.0, 0.0, math.nan, 3.0)):
    return jax.tree.map(jnp.asarray, samples(list(rewards)))


def test_a_batch_has_the_texts_the_log_probabilities_and_what_is_added():
    given = experience()
    batch = common.make_batch(given, given["mask"], advantages=given["rewards"])
    assert {*common.SEQUENCES, "weights", "advantages", "reference_logp"} <= batch.keys()
    assert {"prompt_ids", "sample_ids"} <= batch.keys()
    assert not {"rewards", "valid", "stopped", "values"} & batch.keys()
    np.testing.assert_array_equal(batch["sampler_logp"], given["behavior_logp"])
    replaced = common.make_batch(given, given["mask"], behavior_logp=given["policy_logp"])
    np.testing.assert_array_equal(replaced["behavior_logp"], given["policy_logp"])
    np.testing.assert_array_equal(replaced["sampler_logp"], given["behavior_logp"])


def test_samples_of_a_prompt_are_neighbouring_rows():
    found = common.by_group(jnp.arange(12).reshape(6, 2), 3)
    np.testing.assert_array_equal(found[1], [[6, 7], [8, 9], [10, 11]])


def test_what_counts_has_a_reward_and_a_token():
    """Sample 2 has no reward; sample 0 is given no token here."""
    given = experience()
    np.testing.assert_array_equal(common.counted(given), [[1, 1], [1, 0], [0, 0], [0, 1]])
    given["mask"] = given["mask"].at[0].set(0.0)
    np.testing.assert_array_equal(common.answered(given), [False, True, False, True])


def test_on_policy_the_sampler_is_the_policy_itself():
    batch = {"behavior_logp": jnp.array([[-3.0]])}
    outputs = Outputs(jnp.array([[-1.0]]))
    assert common.behavior_logp(outputs, batch, False) == -3.0
    assert common.behavior_logp(outputs, batch, True) == -1.0

    def ratio(logp):
        return jnp.exp(logp - common.behavior_logp(Outputs(logp), batch, True)).sum()

    assert jax.grad(ratio)(jnp.array([[-1.0]])) == 1.0


def test_the_log_probability_of_an_answer_is_a_sum_over_its_tokens():
    logp = jnp.array([[[-1.0, -2.0], [-4.0, -jnp.inf]]])
    mask = jnp.array([[[1.0, 1.0], [1.0, 0.0]]])
    np.testing.assert_array_equal(common.sequence_logp(logp, mask), [[-3.0, -4.0]])


def test_where_a_clip_and_the_dual_clip_stop():
    """Ratios 0.5, 1.1, 4 with advantages of both signs, and with 0, which nothing stops."""
    logp = jnp.log(jnp.array([[0.5, 1.1, 4.0]] * 3))
    advantages = jnp.array([[1.0], [-1.0], [0.0]])
    given = logp, jnp.zeros((3, 3)), advantages
    found = common.ppo_clipped(*given, clip_low=0.2, clip_high=0.2)
    np.testing.assert_array_equal(found, [[0, 0, 1], [1, 0, 0], [0, 0, 0]])
    found = common.ppo_clipped(*given, clip_low=0.2, clip_high=0.2, dual_clip=3.0)
    np.testing.assert_array_equal(found, [[0, 0, 1], [1, 0, 1], [0, 0, 0]])


def test_clips_are_those_settings_that_there_are():
    expected = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None}
    assert common.clips(algorithms.GRPO()) == expected
    assert common.clips(algorithms.GSPO()) == {"clip_low": 3e-4, "clip_high": 4e-4}
    assert common.clips(algorithms.SAPO()) == {}


@pytest.mark.parametrize(
    "name",
    ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "sapo", "rloo", "clip_cov", "kl_cov", "nft"]
    + ["disco", "online_dpo", "copg", "best_of_n", "luspo"],
)
def test_groups_whose_gradient_would_be_0_are_refused(name):
    with pytest.raises(
        ValueError, match=r"the group size \(rollouts.group_size\) is 1, expected at least 2"
    ):
        algorithms.find(name)().build(ONE_SAMPLE)


def test_limits_that_hold_a_ratio_of_1():
    assert common.holds_one((0.5, 1.0)) and common.holds_one((1.0, 1.0))
    assert not common.holds_one((1.1, 2.0)) and not common.holds_one((0.0, 0.9))

    @jax.jit
    def traced(low):
        assert not common.holds_one((low, 2.0))
        return low

    traced(0.5)


def test_changed_settings_are_those_with_another_value_than_their_default():
    names = ("clip_low", "clip_high", "dual_clip")
    assert common.changed(algorithms.GRPO(), names) == ()
    assert common.changed(algorithms.GRPO(clip_high=0.28, dual_clip=3.0), names) == names[1:]

    @jax.jit
    def traced(clip):
        assert common.changed(algorithms.GRPO(clip_low=clip), names) == ("clip_low",)
        return clip

    traced(0.2)


def test_settings_without_effect_are_named_in_one_sentence():
    assert common.inert_on_policy(()) == ()
    (one,) = common.inert_on_policy(("clip_low",), "; so")
    assert one.startswith("clip_low has no effect") and one.endswith("; so")
    (two,) = common.inert_on_policy(("clip_low", "clip_high"))
    assert two.startswith("clip_low, clip_high have no effect")


def test_methods_with_other_arguments_are_refused():
    @dataclasses.dataclass(frozen=True)
    class Mine(algorithms.GroupRelative):
        def surrogate(self, logp, old_logp):
            return logp

    with pytest.raises(ValueError, match="surrogate"):
        common.check_arguments(Mine(), algorithms.surrogates.ARGUMENTS)
    common.check_arguments(algorithms.GRPO(), algorithms.surrogates.ARGUMENTS)


def test_what_a_method_returned_is_named():
    mine = algorithms.GRPO()
    common.check_returned(mine, "surrogate", jnp.zeros((2, 3)), (2, 3), "one loss a token")
    common.check_returned(mine, "surrogate", jnp.zeros(7), None, "an array")
    for value, told in (
        (None, "GRPO.surrogate returned nothing, expected .* say return"),
        (1.0, "GRPO.surrogate returned float, expected"),
        (jnp.zeros(2), r"GRPO.surrogate returned shape \[2\], expected \[2, 3\]: one loss a token"),
    ):
        with pytest.raises(ValueError, match=told):
            common.check_returned(mine, "surrogate", value, (2, 3), "one loss a token")
