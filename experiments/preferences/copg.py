"""CoPG on logged pairs of a sequence model, next to DPO and IPO, which see rankings alone."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import optax

from polgrad import algorithms, experiments, small
from polgrad.contract import Needs

VOCABULARY, LENGTH = 10, 6


@dataclasses.dataclass(frozen=True)
class Settings:
    """Offline training on pairs that the reference drew, scored by the share of right tokens.

    Attributes:
      prompts: each with a hidden answer of its own.
      pairs: for each prompt.
      width: of the policy's hidden layers.
      skill: probability that a demonstration's token is right; else it is a random one.
      warm_start: updates on demonstrations, which make the reference.
      demonstrations: of each prompt, an update of the warm start.
      batches: an epoch; they divide the pairs.
      epochs: through the pairs.
      learning_rate: of Adam, after the warm start.
      samples: of each prompt, at every point of the curves.
    """

    prompts: int = 64
    pairs: int = 32
    width: int = 64
    skill: float = 0.3
    warm_start: int = 200
    demonstrations: int = 4
    batches: int = 16
    epochs: int = 20
    learning_rate: float = 3e-3
    samples: int = 32


@dataclasses.dataclass(frozen=True)
class Questions:
    """Questions are numbers, each with a hidden answer; a reward is the share of right tokens."""

    answers: jax.Array  # [P, T]

    @property
    def numbers(self):
        return jnp.arange(len(self.answers))

    def ids(self, questions):
        return questions

    def reward(self, questions, completions, mask=None):
        return jnp.mean(completions == self.answers[questions][:, None], axis=-1)


def policy_of(settings):
    network = small.AutoregressiveMLP(
        settings.prompts, VOCABULARY, LENGTH, settings.width, prefix=("previous",)
    )
    return small.FeaturePolicy(network, lambda numbers: jax.nn.one_hot(numbers, settings.prompts))


def sample(policy, params, task, key, count):
    """The rows of a rollout with `count` answers to each question, and their rewards `[P, count]`."""
    prompts = policy.prompts(task.numbers)
    rows = policy.sample(params, prompts, task.numbers, key, samples=count)
    completions = rows["completions"].reshape(len(task.answers), count, LENGTH)
    return rows, task.reward(task.numbers, completions)


def world(key, policy, settings):
    """The questions, and a reference that has seen noisy demonstrations of their answers."""
    s = settings
    keys = jax.random.split(key, 4)
    draw = lambda key, *shape: jax.random.uniform(key, (math.prod(shape),)).reshape(shape)  # noqa: E731
    answers = jnp.floor(draw(keys[0], s.prompts, LENGTH) * VOCABULARY).astype(int)
    batch = s.prompts * s.demonstrations
    right, guess = draw(keys[1], 2, s.warm_start * batch, LENGTH)
    questions = jnp.tile(jnp.arange(s.prompts), s.warm_start * s.demonstrations)
    guess = jnp.floor(guess * VOCABULARY).astype(int)
    reference = small.imitate(
        keys[2],
        policy.init(keys[3]),
        questions,
        jnp.where(right < s.skill, answers[questions], guess),
        policy=policy,
        optimizer=optax.adam(1e-2),
        epochs=1,
        batch=batch,
    )
    return Questions(answers), reference


def logged(policy, reference, task, key, settings):
    """Pairs of samples of the reference with their rewards, as the log of a run."""
    rows, rewards = sample(policy, reference, task, key, 2 * settings.pairs)
    pairs = lambda x: x.reshape(-1, 2, *x.shape[1:])  # noqa: E731
    return small.Log(
        questions=jnp.repeat(task.numbers, settings.pairs),
        completions=pairs(rows["completions"]),
        behavior_logp=pairs(rows["behavior_logp"]),
        rewards=rewards.reshape(-1, 2),
    )


def train(key, settings, *, algorithm, betas):
    """Trains `algorithm(beta)` with every beta and returns the curves of the one that ends best."""
    s = settings
    policy = policy_of(s)
    world_key, pair_key, measure_key, run_key = jax.random.split(key, 4)
    task, reference = world(world_key, policy, s)
    log = logged(policy, reference, task, pair_key, s)

    def evaluate(params, key):
        rows, rewards = sample(policy, params, task, measure_key, s.samples)
        before = policy.forward(reference, rows, needs=Needs()).logp
        # One half of the samples chooses beta, the other one is reported.
        choosing, reported = jnp.split(rewards, 2, axis=1)
        distance = (rows["behavior_logp"] - before).sum(-1)
        return {
            "choosing": choosing.mean(),
            "reward": reported.mean(),
            "kl": distance.mean(),
        }

    def run(beta):
        return small.run(
            run_key,
            algorithm(beta),
            policy=policy,
            task=log,
            schedule=small.Schedule(s.epochs, log.size, 2, s.epochs, mini_batches=s.batches),
            optimizer=optax.adam(s.learning_rate),
            evaluate=evaluate,
            params=reference,
        )[1]

    curves = jax.vmap(run)(jnp.array(betas))
    best = jnp.argmax(curves["choosing"][:, -1])
    curves = {name: curve[best] for name, curve in curves.items()}
    curves["beta"] = jnp.full(curves["rollout"].shape, jnp.array(betas)[best])
    return small.pick(curves, EXPERIMENT.metrics, axis="epoch")


def holds(results):
    reward = lambda arm: results.final(arm, "reward")  # noqa: E731
    return experiments.verdict(
        experiments.at_least("reward, CoPG less IPO", reward("copg") - reward("ipo"), 0.0),
        experiments.at_least("reward, CoPG less DPO", reward("copg") - reward("dpo"), 0.0),
    )


EXPERIMENT = experiments.Experiment(
    paper=experiments.Paper(
        "Contrastive Policy Gradient: Aligning LLMs on sequence-level scores in a "
        "supervised-friendly fashion",
        "Flet-Berliac et al.",
        2024,
        "2406.19185",
    ),
    claim="On the same logged pairs CoPG, which reads scores, ends above IPO and DPO, which rank.",
    # Four strengths of the KL for each method, around its best one.
    arms={
        "copg": functools.partial(
            train, algorithm=lambda beta: algorithms.CoPG(beta=beta), betas=(0.003, 0.01, 0.03, 0.1)
        ),
        "ipo": functools.partial(
            train,
            algorithm=lambda beta: algorithms.IPO(pairs="samples", beta=beta),
            betas=(0.01, 0.03, 0.1, 0.3),
        ),
        "dpo": functools.partial(
            train,
            algorithm=lambda beta: algorithms.DPO(pairs="samples", beta=beta),
            betas=(0.1, 0.3, 1.0, 3.0),
        ),
    },
    settings=Settings(),
    smoke={"prompts": 4, "pairs": 4, "width": 8, "warm_start": 4, "batches": 2, "epochs": 2}
    | {"samples": 4},
    metrics={
        "reward": "mean share of right tokens, at the best of four betas",
        "kl": "from the reference, nats a sequence",
        "beta": "the best one",
    },
    holds=holds,
    baseline="copg",
    at_scale="`copg` on the Reddit TL;DR preference split with Llama-2-7B, batch 128, 8 GPUs",
    axis="epoch",
    seeds=8,
    note="Rankings are those of the scores, without noise; a quarter of the pairs tie, which CoPG "
    "reads as equal and the others cannot use. DPO and IPO end level, where the paper has IPO "
    "above DPO. The four strengths of each method were set around its best one after its curves had "
    "been seen. A third of the learning rate, or three times as many epochs of it, gives the same "
    "order. The exact comparison with the optimum is in copg_bandit.",
)
