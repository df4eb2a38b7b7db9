"""The kit examines whole algorithms: their exact gradients, and the mistakes of people's settings."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pages
import pytest
from enumeration import TabularPolicy, expected_gradient

from polgrad import advantages, algorithms, conformance, losses
from polgrad.conformance import batch_checks, expectations, paths, rollouts
from polgrad.contract import Algorithm, Collect, List
from polgrad.tabular.sequences import token_logp

card_of = functools.cache(conformance.check)
UNKNOWN = "none of the known"


def at(card, problem, staleness=0.0):
    (found,) = (m for m in card.measurements if (m.problem, m.staleness) == (problem, staleness))
    return found


# --- Known gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [algorithms.RLOO(), algorithms.Reinforce(baseline="none")], ids=["rloo", "none"]
)
def test_estimators_without_bias_have_none(settings):
    card = card_of(settings)
    assert card.ok, str(card)
    for problem in ("bandit", "sequences"):
        measured = at(card, problem)
        assert measured.follows == "policy gradient" and measured.bias < 1e-9
    if isinstance(settings, algorithms.RLOO):
        np.testing.assert_allclose([at(card, p).variance for p in ("bandit", "sequences")], 1.0)
        # Its loss has no ratio: on the samples of another policy it is another gradient.
        assert at(card, "sequences", 0.5).follows == "uncorrected REINFORCE"


def test_a_baseline_that_has_seen_the_sample_shrinks_the_gradient_by_one_over_n():
    """Reward less the batch's mean is (1 - 1/N) times reward less the others' mean."""
    card = card_of(algorithms.Reinforce())
    for problem, size in (("bandit", 4), ("sequences", 2)):
        measured = at(card, problem)
        np.testing.assert_allclose(measured.bias, 1.0 / size, rtol=1e-9)
        np.testing.assert_allclose(measured.cosine, 1.0, rtol=1e-12)
        assert measured.follows == f"{1.0 - 1.0 / size:.3g} x policy gradient"


def test_dr_grpo_is_proportional_to_the_policy_gradient_and_grpo_is_not():
    doctor, grpo = card_of(algorithms.DrGRPO()), card_of(algorithms.GRPO(clip_high=0.28))
    for problem, size in (("bandit", 4), ("sequences", 2)):
        # Group means cost 1/G, and the loss is a sum over max_tokens = 3.
        np.testing.assert_allclose(at(doctor, problem).bias, 1.0 - (1.0 - 1.0 / size) / 3.0)
        assert at(doctor, problem).follows.endswith("x policy gradient")
        assert at(grpo, problem).follows == UNKNOWN and at(grpo, problem).cosine < 0.99
    assert doctor.checks["scales with rewards"].ok
    assert not grpo.checks["scales with rewards"].ok
    assert "divided by their deviation" in grpo.checks["scales with rewards"].detail
    assert grpo.checks["gradient"].detail.startswith("not a policy gradient of the mean reward")
    # With two rewards the deviation is one factor for each prompt.
    assert "x policy gradient (bandit)" in grpo.checks["rewards of 0 and 1"].detail
    assert grpo.ok and grpo.name == "GRPO(clip_high=0.28)"


@pytest.mark.parametrize("staleness", [0.0, 0.5])
def test_the_expected_gradient_is_that_of_another_enumeration(staleness):
    """GRPO written out on the bandit, summed over groups by the tests' own tabular policy."""
    with jax.enable_x64(True):
        problem = expectations.problems()[0]
        path = paths.Path(algorithms.GRPO(clip_high=0.28), problem)
        mean, _, policies = path.expected(staleness, problem.returns)
        behavior = jax.nn.log_softmax(policies.behavior)[0]

        def loss(logp, index):
            found = advantages.group_relative(jnp.asarray(problem.returns)[index][None])[0]
            old = jax.lax.stop_gradient(logp) if staleness == 0.0 else behavior[index][:, None]
            return losses.ppo_clip(logp, old, found[:, None], clip_high=0.28).mean()

        expected = expected_gradient(
            TabularPolicy(4, 1),
            policies.current[None],
            loss,
            group_size=4,
            behavior_logits=policies.behavior[None],
        )
    np.testing.assert_allclose(mean, -np.ravel(expected), atol=1e-12)


@pytest.mark.parametrize(
    "settings, words",
    [
        (
            algorithms.RLOO(kl=algorithms.RewardKL(0.3)),
            "policy gradient - 0.3 x KL(policy || reference)",
        ),
        (
            algorithms.Reinforce(
                baseline="none", kl=algorithms.KL(0.2), entropy=algorithms.Entropy(0.1)
            ),
            "policy gradient - 0.2 x KL(policy || reference) of each token + 0.1 x entropy of each "
            "token",
        ),
        (
            algorithms.Reinforce(baseline="none", kl=algorithms.KL(0.2, gradient="k3")),
            "policy gradient - 0.2 x KL(reference || policy) of each token",
        ),
        # Any fixed value of a prefix is a baseline without bias.
        (algorithms.PPO(lambda_=1.0, whiten=False, aggregation="sequence_sum"), "policy gradient"),
        (
            algorithms.NashMD(tau=0.05, opponent=algorithms.Mixed(0.5)),
            "policy gradient of the win rate - 0.05 x KL(policy || reference)",
        ),
        (algorithms.GRPO(scale="none"), "0.5 x policy gradient / length"),
    ],
    ids=["reward", "k2", "k3", "values", "opponent", "length"],
)
def test_terms_values_and_opponents_are_in_the_gradient(settings, words):
    """Each is found with its factor, on the policy with several tokens."""
    with expectations.exactly():
        problem = expectations.problems()[1]
        path = paths.Path(settings, problem)
        mean, _, policies = path.expected(0.0, problem.returns)
        known = path.world.known(policies, problem.returns)
        assert paths.follows(mean, known.gradients, known.terms) == words


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_dpo_has_the_gradient_of_dpo_on_every_problem(beta):
    card = card_of(algorithms.DPO(beta=beta))
    assert card.ok and card.layout == "pairs [B, 2, T] of chosen, rejected"
    for m in card.measurements:
        assert m.follows == "DPO" and m.bias < 1e-12
        np.testing.assert_allclose(m.variance, 1.0, rtol=1e-9)


def test_the_gradient_of_pairs_is_that_of_enumeration():
    """IPO by jax on the logits, with every pair of completions written out."""
    with expectations.exactly():
        problem = expectations.problems()[1]
        path = paths.Path(algorithms.IPO(beta=0.7), problem)
        mean, _, policies = path.expected(0.5, problem.returns)
        table = lambda z: token_logp(problem.sequences, z).sum(-1)  # noqa: E731
        reference = table(policies.reference)
        i, j = (x.ravel() for x in np.indices((len(reference),) * 2))
        wins = jax.nn.sigmoid(problem.returns[i] - problem.returns[j])
        weight = 2.0 * jnp.exp(reference[i] + reference[j]) * wins

        def expected(logits):
            x = table(logits) - reference
            return -weight @ losses.ipo(x[i], x[j], beta=0.7)

        np.testing.assert_allclose(weight.sum(), 1.0)
        gradient = jax.grad(expected)(jnp.asarray(policies.current))
    np.testing.assert_allclose(mean, np.ravel(gradient), atol=1e-12)


@pytest.mark.parametrize("name", ["grpo", "nash_md", "dpo", "tpo", "supervised"])
def test_rollouts_are_enumerated_with_their_probabilities(name):
    settings = algorithms.find(name)()
    with expectations.exactly():
        for problem in expectations.problems():
            path = paths.Path(settings, problem)
            world, policies = path.world, rollouts.policies_at(problem, 0.5, samples=path.samples)
            weight = world.weight(policies, problem.returns)
            assert len(weight) == len(world.rows) and np.all(weight > 0.0)
            np.testing.assert_allclose(weight.sum(), 1.0, rtol=1e-12)


# --- People's settings ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Mine(algorithms.GroupRelative):
    """A right one: the others change one line of it."""

    aggregation: str = "sequence_sum"
    scale: str = "none"

    def surrogate(self, logp, behavior_logp, advantages, mask):
        return losses.ppo_clip(logp, behavior_logp, advantages)


class Flipped(Mine):
    def surrogate(self, logp, behavior_logp, advantages, mask):
        return -losses.ppo_clip(logp, behavior_logp, advantages)


class DividesByACount(Mine):
    def surrogate(self, logp, behavior_logp, advantages, mask):
        return losses.ppo_clip(logp, behavior_logp, advantages) / jnp.maximum(mask.sum(), 1.0)


class Whitens(Mine):
    def surrogate(self, logp, behavior_logp, advantages, mask):
        return losses.ppo_clip(logp, behavior_logp, advantages - advantages.mean())


class DependsOnTheRow(Mine):
    def surrogate(self, logp, behavior_logp, advantages, mask):
        rank = 1.0 + jnp.arange(logp.shape[0])[:, None] / logp.shape[0]
        return losses.ppo_clip(logp, behavior_logp, advantages * rank)


class SeesPadding(Mine):
    def surrogate(self, logp, behavior_logp, advantages, mask):
        weight = jax.lax.stop_gradient((logp - behavior_logp).sum(-1, keepdims=True))
        return losses.reinforce(logp, advantages * jnp.exp(jnp.clip(weight, -1.0, 1.0)))


class LeaksIntoTheSampler(Mine):
    def surrogate(self, logp, behavior_logp, advantages, mask):
        return -jnp.exp(jnp.clip(logp - behavior_logp, -9.0, 9.0)) * advantages


class NotFinite(Mine):
    def surrogate(self, logp, behavior_logp, advantages, mask):
        ratio = jnp.exp(jax.lax.stop_gradient(logp - behavior_logp))
        return -ratio * advantages * logp


class Underflows(Mine):
    def surrogate(self, logp, behavior_logp, advantages, mask):
        powers = jnp.exp(40.0 * jnp.maximum(logp, -9.0))  # exp(-88) is the end of float32
        fixed = advantages * jnp.exp(jnp.clip(behavior_logp, -1.0, 0.0))
        return -jax.lax.stop_gradient(fixed) * jnp.log(2.0 * powers) / 40.0


class CountsTheInvalid(Mine):
    def advantages(self, rewards, valid):
        return rewards - rewards.mean(-1, keepdims=True)


class SaysThatItCorrects(Mine):
    def surrogate(self, logp, behavior_logp, advantages, mask):
        return losses.reinforce(logp, advantages)

    def corrects(self):
        return True


def test_right_settings_of_a_user_conform():
    card = card_of(Mine())
    assert card.ok and card.layout == "samples [B, T], one loss a token"
    assert at(card, "bandit").follows == "0.75 x policy gradient"
    text = str(card)
    assert text.startswith("Mine(): conforms") and "[pass] reuse" in text


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "wrong, failure, words",
    [
        (Flipped, "direction", "lowers the mean of rewards of 0 and 1 (bandit)"),
        (Underflows, "number formats", "float32"),
        (Whitens, "micro-batches", "statistic"),
        (DependsOnTheRow, "permutation", "order"),
        (SeesPadding, "padding", "mask = 0"),
        (DividesByACount, "micro-batches", "count"),
        (LeaksIntoTheSampler, "stopped arguments", "behavior_logp"),
        (NotFinite, "minus infinity", "not finite"),
        (CountsTheInvalid, "invalid rewards", "not valid"),
        (SaysThatItCorrects, "reuse", "does not read behavior_logp, and reuse is True"),
    ],
)
def test_wrong_settings_are_caught(wrong, failure, words):
    card = card_of(wrong())
    assert failure in card.failures, str(card)
    assert words in card.checks[failure].detail


def example_of(settings):
    """The batch that the checks look at."""
    return batch_checks.Example(settings, expectations.problems()[1])


class ZeroForInvalid(Mine):
    def advantages(self, rewards, valid):
        rewards = jnp.where(valid, rewards, 0.0)
        return rewards - rewards.mean(-1, keepdims=True)


class TakesAllForValid:
    """Another algorithm, whose `prepare` ignores `valid`."""

    def __init__(self, settings):
        self.settings = settings

    def build(self, context):
        algorithm = self.settings.build(context)

        def prepare(state, experience, key):
            valid = jnp.ones_like(experience["valid"])
            return algorithm.prepare(state, {**experience, "valid": valid}, key)

        return algorithm._replace(prepare=prepare)


@pytest.mark.parametrize(
    "settings, words",
    [
        (ZeroForInvalid(), "count in a mean"),
        (TakesAllForValid(algorithms.NashMD()), "holds changes the gradient"),
        (TakesAllForValid(algorithms.DisCOB(bound=None)), "holds changes the gradient"),
    ],
    ids=["zero", "preferences", "classes"],
)
def test_samples_without_a_valid_reward_may_neither_add_nor_count(settings, words):
    with expectations.exactly():
        found = batch_checks.check_invalid(example_of(settings))
    assert found.required and not found.ok and words in found.detail


def test_a_preference_alone_is_not_read_where_the_sample_is_invalid():
    """The answer, its tokens and its reward stay as they are."""
    with expectations.exactly():
        example = example_of(TakesAllForValid(algorithms.NashMD(tau=0.0)))
        whole_row, stays = example.replaced, example.experience
        example.replaced = lambda row: {**stays, "preferences": whole_row(row)["preferences"]}
        assert "holds changes" in batch_checks.check_invalid(example).detail


class DrawsByShape:
    """GRPO without a scale, each sample weighted by a number that is drawn."""

    def build(self, context):
        algorithm = algorithms.GRPO(scale="none").build(context)

        def prepare(state, experience, key):
            state, batch, metrics = algorithm.prepare(state, experience, key)
            weights = batch["weights"]
            drawn = jax.random.uniform(key, weights.shape[:1])[:, None]
            return state, {**batch, "weights": weights * drawn}, metrics

        return algorithm._replace(prepare=prepare)


def test_numbers_that_are_drawn_are_not_taken_for_invalid_samples():
    with expectations.exactly():
        found = batch_checks.check_invalid(example_of(DrawsByShape()))
    assert found.ok and found.detail.endswith("examined, because the algorithm draws numbers")


class Unranks(algorithms.DisCOB):
    def rank(self, scores, rewards, valid):
        return -super().rank(scores, rewards, valid)


class GroupReinforce(SaysThatItCorrects):
    """Divided by the deviation: with rewards of 0 and 1 the scale of the rewards is gone."""

    def advantages(self, rewards, valid):
        return advantages.group_relative(rewards, scale="group", valid=valid)


@pytest.mark.parametrize(
    "settings, ok, required, words",
    [
        (algorithms.DisCO(bound=None), False, False, "it ranks right over wrong answers"),
        (algorithms.DisCO(bound=None, score="l_ratio"), True, True, "reads behavior_logp"),
        (Unranks(bound=None), False, True, "does not read behavior_logp"),
        (GroupReinforce(), False, True, "does not read behavior_logp"),
        (algorithms.INPO(), True, True, "the loss reads previous_logp"),
    ],
    ids=["disco", "ratio", "wrong_way", "deviation", "sampler_by_name"],
)
def test_reuse_is_told_of_losses_that_do_not_read_the_sampler(settings, ok, required, words):
    with expectations.exactly():
        found = batch_checks.check_reuse(example_of(settings))
    assert (found.ok, found.required) == (ok, required) and words in found.detail


@pytest.mark.parametrize(
    "settings, words",
    [
        (algorithms.DPO(), None),  # a log-ratio has a slope in the reference
        (algorithms.SimPO(), None),
        (algorithms.Supervised(), None),
        (algorithms.SPPO(), "no gradient reaches behavior_logp, sampler_logp"),
        (
            algorithms.NashMD(),
            "no gradient reaches behavior_logp, preference, reference_logp, sampler_logp",
        ),
    ],
)
def test_what_is_fixed_is_named_and_nothing_where_nothing_is(settings, words):
    with expectations.exactly():
        found = batch_checks.check_stopped(example_of(settings))
    assert [check.detail for check in found.values()] == ([words] if words else [])
    assert all(check.ok for check in found.values())


# --- What cannot be examined ------------------------------------------------------------------------


class Ranks:
    """Lists of answers from the data."""

    def build(self, context):
        nothing = lambda *arguments: None  # noqa: E731
        return Algorithm(
            nothing, nothing, unit=List(), collect=Collect(None, columns=("best", "worst"))
        )


@pytest.mark.parametrize(
    "objective, words",
    [
        (algorithms.GRPO, r"objective is the class GRPO, expected settings: GRPO\(\)"),
        (Ranks(), "Ranks reads List.. from the columns best, worst, expected samples"),
        (algorithms.DAPO(clip_low=-1.0), "clip_low"),
    ],
)
def test_what_cannot_be_examined_is_told_in_one_line(objective, words):
    with pytest.raises(ValueError, match=words) as error:
        conformance.check(objective)
    assert "\n" not in str(error.value)


def test_settings_have_no_layout_to_choose():
    with pytest.raises(ValueError, match="layout is 'token', expected None for settings"):
        conformance.check(algorithms.GRPO(), layout="token")


# --- All algorithms ---------------------------------------------------------------------------------

# On-policy, on the bandit and on the tiny policy; all others follow none of the known.
FOLLOWS = {
    "supervised": ("maximum likelihood", UNKNOWN),
    "reinforce": ("0.75 x policy gradient", "0.5 x policy gradient"),
    "rloo": ("policy gradient", "policy gradient"),
    "p3o_v1": ("policy gradient", "policy gradient"),
    "p3o_v2": ("policy gradient", "policy gradient"),
    "pairwise_policy_gradient": ("policy gradient", "policy gradient"),
    "dr_grpo": ("0.25 x policy gradient", "0.167 x policy gradient"),
    "topr": ("2 x policy gradient", "2 x policy gradient"),
    "nash_md": (
        "policy gradient of the win rate - 0.008 x KL(policy || reference)",
        "policy gradient of the win rate - 0.008 x KL(policy || reference)",
    ),
    "dpo": ("DPO", "DPO"),
    "aot": ("DPO", "DPO"),
    "tpo": ("DPO", "DPO"),
    "ipo": ("200 x DPO", "200 x DPO"),
    "hinge": ("2 x DPO", "2 x DPO"),
    "exponential_margin": ("2 x DPO", "2 x DPO"),
    "linear_margin": ("2 x DPO", "2 x DPO"),
    "exo": ("3.45 x DPO", "3.45 x DPO"),
    "robust_dpo": ("1.25 x DPO", "1.25 x DPO"),
    "nca": ("0.5 x DPO", "0.5 x DPO"),
    "apo_zero": ("0.5 x DPO", "0.5 x DPO"),
    "apo_down": ("0.25 x DPO", "0.25 x DPO"),
    "rpo": ("1.01 x DPO", "1.01 x DPO"),
    "copg": (
        "policy gradient - 0.1 x KL(policy || reference)",
        "policy gradient - 0.1 x KL(policy || reference)",
    ),
}
# As its docstring says: DiscoPOP pushes pairs apart the wrong way near an even margin.
FAILURES = {"discopop": ("direction",)}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", algorithms.NAMES)
def test_every_algorithm_has_a_card(name):
    card = card_of(algorithms.find(name)())
    assert card.failures == FAILURES.get(name, ()), str(card)
    found = tuple(at(card, problem).follows for problem in ("bandit", "sequences"))
    assert found == FOLLOWS.get(name, (UNKNOWN, UNKNOWN))
    assert np.isfinite([(m.bias, m.variance) for m in card.measurements]).all()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", pages.generate.ALGORITHMS)
def test_the_page_shows_the_cards(name):
    for line in pages.generate.loss_lines(name, card_of(pages.generate.ALGORITHMS[name])):
        assert line in pages.lines("estimators"), pages.HINT
