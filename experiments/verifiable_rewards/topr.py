"""TOPR: good samples at full weight, bad ones as far as the policy still makes them; all offline."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import optax

from polgrad import advantages, algorithms, experiments, small
from polgrad.algorithms import estimators, surrogates
from polgrad.distributions import token_statistics

ADDITION = small.Addition()
VOCABULARY = 20  # ten digits, and ten tokens that make an answer invalid


@dataclasses.dataclass(frozen=True)
class Settings:
    """Two-digit addition from samples of a warm start, logged once.

    Attributes:
      examples: with noisy answers, to warm up on.
      warm_epochs: of the warm start.
      noise: probability that a digit of such an answer is a random token.
      questions: with logged samples.
      samples: of each.
      epochs: through the log.
      batch: an update has the samples of so many questions, in random order.
      learning_rate: of Adam.
      width: of the policy's hidden layer.
      clip: half width of the ratio's range in PPO.
      skew: share of right samples in the skewed log.
    """

    examples: int = 16_384
    warm_epochs: int = 16
    noise: float = 0.2
    questions: int = 4096
    samples: int = 16
    epochs: int = 6
    batch: int = 32
    learning_rate: float = 3e-4
    width: int = 128
    clip: float = 0.2
    skew: float = 0.1


# The arms differ only in the settings of the algorithm, which these functions build. `share` is the
# share of right samples in the log.


def topr(settings, share, *, target=None, positive=(1.0, 1.0), negative=(0.0, 1.0)):
    """The limits of the ratio name the method; a target share is reached by a baseline."""
    baseline = 0.0 if target is None else advantages.baseline_for_fraction(share, target)
    return algorithms.TOPR(baseline, scale=1.0, positive=positive, negative=negative)


def ppo(settings, share):
    """PPO's clip, summed over tokens; the rewards themselves are the advantages."""
    clip = surrogates.PPOClip(
        clip_low=settings.clip, clip_high=settings.clip, aggregation="sequence_sum"
    )
    return algorithms.PolicyGradient(advantage=estimators.Baseline("none"), surrogate=clip)


def log(key, policy, settings):
    """A policy that imitates noisy answers, and samples of it with rewards of +-1."""
    keys = jax.random.split(key, 6)
    questions = ADDITION.draw(keys[0], settings.examples)
    answers = ADDITION.noisy_answer(keys[1], questions, noise=settings.noise, vocabulary=VOCABULARY)
    params = small.imitate(
        keys[2],
        policy.init(keys[3]),
        questions,
        answers,
        policy=policy,
        optimizer=optax.adam(1e-2),
        epochs=settings.warm_epochs,
        batch=256,
    )
    questions = ADDITION.draw(keys[4], settings.questions)
    features = ADDITION.features(questions)
    tokens, logp = policy.network.sample(params, features, keys[5], samples=settings.samples)
    rewards = 2.0 * ADDITION.reward(questions, tokens) - 1.0
    return params, small.Log(questions, tokens, logp, rewards)


def keep(key, rewards, share):
    """Which samples stay so that a share of them is right; the wrong ones all do."""
    right = rewards > 0
    wanted = share / (1.0 - share) * jnp.sum(~right)
    chance = wanted / jnp.maximum(jnp.sum(right), 1)
    return ~right | (jax.random.uniform(key, rewards.shape) < chance)


def train(key, settings, *, algorithm=topr, skewed=False):
    """Epochs over the log; a sample that is not kept has no reward."""
    log_key, keep_key, run_key = jax.random.split(key, 3)
    network = small.FactorizedMLP(ADDITION.width, VOCABULARY, ADDITION.length, width=settings.width)
    policy = small.FeaturePolicy(network, ADDITION.features)
    params, logged = log(log_key, policy, settings)
    rewards = logged.rewards
    kept = keep(keep_key, rewards, settings.skew) if skewed else jnp.ones_like(rewards, bool)
    logged = dataclasses.replace(logged, rewards=jnp.where(kept, rewards, jnp.nan))
    questions = ADDITION.everything()
    everything, answers = ADDITION.features(questions), ADDITION.answer(questions)

    def evaluate(params, key):
        logits = network.logits(params, everything)
        right, _ = token_statistics(logits, answers)
        invalid = jax.nn.softmax(logits)[..., 10:].sum(-1)
        return {
            "accuracy": jnp.exp(right.sum(-1)).mean(),
            "invalid": 1.0 - jnp.prod(1.0 - invalid, axis=-1).mean(),
        }

    _, curves = small.run(
        run_key,
        algorithm(settings, jnp.sum(kept & (rewards > 0)) / jnp.sum(kept)),
        policy=policy,
        task=logged,
        schedule=small.Schedule(
            settings.epochs,
            settings.questions,
            settings.samples,
            settings.epochs,
            mini_batches=settings.questions // settings.batch,
        ),
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(settings.learning_rate)),
        evaluate=evaluate,
        params=params,
        report=experiments.record,
    )
    return small.pick(curves, EXPERIMENT.metrics, axis="epoch")


def holds(results):
    curve = lambda arm: results.curves[arm]["accuracy"]  # noqa: E731
    last = lambda arm: results.final(arm, "accuracy")  # noqa: E731
    naive, tapered = curve("naive"), curve("topr")
    return experiments.verdict(
        experiments.at_most("accuracy, naive: last over best", naive[:, -1] / naive.max(1), 0.25),
        experiments.at_most("accuracy, naive: last less start", naive[:, -1] - naive[:, 0], 0.0),
        experiments.at_least(
            "accuracy, TOPR: last less best", last("topr") - tapered.max(1), -0.02
        ),
        experiments.at_least("accuracy, TOPR less PPO", last("topr") - last("ppo"), 0.05),
        experiments.at_least("accuracy, TOPR less supervised", last("topr") - last("sft"), -0.01),
    )


NEVER, FULL, ANY, CUT = (0.0, 0.0), (1.0, 1.0), (0.0, math.inf), (0.0, 1.0)


def arm(algorithm=topr, *, skewed=False, **changes):
    return functools.partial(
        train, algorithm=functools.partial(algorithm, **changes), skewed=skewed
    )


EXPERIMENT = experiments.Experiment(
    paper=experiments.Paper(
        "Tapered Off-Policy REINFORCE: Stable and efficient reinforcement learning for LLMs",
        "Le Roux et al.",
        2025,
        "2503.14286",
    ),
    claim="On logged samples REINFORCE collapses and PPO stops learning; with the weights of bad "
    "samples tapered it goes on to improve.",
    arms={
        "sft": arm(positive=FULL, negative=NEVER),
        "naive": arm(positive=FULL, negative=FULL),
        "importance": arm(positive=ANY, negative=ANY),
        "truncated": arm(positive=CUT, negative=CUT),
        "ppo": arm(ppo),
        "topr": arm(),
        "topr_share_0.2": arm(target=0.2),
        "skewed_sft": arm(target=1.0, skewed=True),
        "skewed_share_0.5": arm(target=0.5, skewed=True),
        "skewed_share_0.2": arm(target=0.2, skewed=True),
        "skewed_topr": arm(skewed=True),
        "skewed_share_0.05": arm(target=0.05, skewed=True),
    },
    settings=Settings(),
    smoke={
        "examples": 512,
        "warm_epochs": 1,
        "questions": 64,
        "samples": 4,
        "epochs": 2,
        "batch": 16,
        "width": 16,
    },
    metrics={
        "accuracy": "probability of the right answer, exact over all questions",
        "invalid": "probability of an answer with a token that is no digit",
    },
    holds=holds,
    baseline="sft",
    at_scale="Llama-3-8B-Instruct on GSM8K and MATH, 16 or 32 logged samples a question, one epoch "
    "over each log, one node of eight GPUs",
    axis="epoch",
    seeds=10,
    note="Arms named by a share reach that effective share of right samples by a baseline; the "
    "skewed ones have a log of which a tenth is right (skewed_topr leaves it so, skewed_sft has "
    "share 1). There wrong samples help a little: a share of 0.5 gains 0.021 over right samples "
    "alone. The last check fails by 0.001: a mini-batch mixes answers to many questions, and right "
    "answers alone gain more from that than TOPR does (with mini-batches of whole questions they "
    "end at 0.717 and 0.716). In the balanced log they do not, and this is not claimed: the digits of an answer are "
    "independent, so right samples take the probability from wrong tokens, invalid ones "
    "included, wherever they stand. The paper's best shares, 0.1 to 0.2, are too low here, and "
    "below 0.1 TOPR too loses what it had.",
)
