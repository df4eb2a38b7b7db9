"""Every rollout that an algorithm can be given on a tiny policy, and the gradients known there.

There are four kinds: groups of samples, samples beside those of an opponent, labelled pairs, and
demonstrations. Each holds the numbers of the completions that make up a rollout; probabilities,
rewards and log-probabilities are looked up.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polgrad import distributions
from polgrad.conformance import expectations, groups, pairs
from polgrad.contract import Algorithm, NamedPolicy, Outputs, Pair, Sequence
from polgrad.tabular.sequences import token_logp
from polgrad.training import named_policies

__all__ = ["Known", "Policies", "Tabular", "World", "kind_of", "policies_at"]

_PLACES = ("tokens", "prefix")
_REFERENCE = 0.5  # units of noise between the sampled policy and the one that it is compared with


class Policies(NamedTuple):
    """Tables of logits: of the policy that is trained, of the one that sampled, of all others."""

    current: np.ndarray
    behavior: np.ndarray
    reference: np.ndarray

    def of(self, kind: NamedPolicy) -> np.ndarray:
        """Logits of a named policy: those of the sampling policy, or else those of the reference."""
        return self.behavior if named_policies.behaves(kind) else self.reference


def policies_at(problem: expectations.Problem, staleness: float, *, samples: bool) -> Policies:
    """The policies of a rollout.

    Args:
      problem: its logits and its noise.
      staleness: size of the noise on the logits of the policy that sampled; without samples, of
        the noise that leads from the reference, whose answers the data holds, to the policy.
      samples: whether answers are sampled.
    """
    logits, noise = problem.logits, problem.noise
    if samples:
        return Policies(logits, logits + staleness * noise, logits - _REFERENCE * noise)
    return Policies(logits + staleness * noise, logits, logits)


class Known(NamedTuple):
    """What an expected gradient is compared with.

    Attributes:
      gradients: by name, each [parameters]; the first is the exact one that bias is relative to.
      terms: gradients that a settings object may add to one of these, such as that of a KL.
      variance: that of a rollout's gradient for the estimator that variance is relative to.
    """

    gradients: dict[str, np.ndarray]
    terms: dict[str, np.ndarray]
    variance: float


class Tabular:
    """The policy of a problem as what `training.step` calls: logits and a batch to outputs."""

    def __init__(self, problem: expectations.Problem):
        # In 32 bits, with which both number formats work.
        places = {name: getattr(problem.sequences, name).astype(np.int32) for name in _PLACES}
        self.sequences = problem.sequences._replace(**places)
        self.width = problem.sequences.mask.shape[1]
        self.powers = problem.sequences.vocabulary ** np.arange(self.width, dtype=np.int32)
        codes = problem.sequences.tokens @ self.powers
        self.place = np.zeros(codes.max() + 1, np.int32)
        self.place[codes] = np.arange(len(codes))
        # A fixed number for each prefix stands for the estimate of a value head.
        values = problem.noise[:, 0][problem.sequences.prefix]
        self.values = np.pad(values * problem.sequences.mask, ((0, 0), (0, 1)))

    def __call__(self, logits: jax.Array, batch: dict) -> Outputs:
        """Log-probabilities, entropies and values; 0 where the mask is 0."""
        mask = batch["mask"][..., : self.width]
        tokens = batch["completions"][..., : self.width] * (mask > 0)
        place = jnp.asarray(self.place)[tokens @ self.powers]
        entropy = distributions.entropy(logits)[self.sequences.prefix]
        padding = batch["mask"].shape[-1] - self.width

        def at(table, mask):
            found = jnp.where(mask > 0, table[place].astype(logits.dtype), 0.0)
            return jnp.pad(found, [(0, 0)] * (found.ndim - 1) + [(0, padding)])

        after_last = jnp.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, 1)])
        logp = token_logp(self.sequences, logits)
        return Outputs(at(logp, mask), at(entropy, mask), at(jnp.asarray(self.values), after_last))


# --- the four kinds of rollouts ----------------------------------------------------------------


class World:
    """All rollouts of one kind on one problem; this one holds groups of samples of a prompt.

    Attributes:
      index: numbers of the completions of each rollout, [M, rows] or [M, rows, roles].
      size: samples of a prompt.
      beta: strength of the KL of DPO, which losses of pairs are compared with.
    """

    exact = "policy gradient"

    def __init__(
        self, problem: expectations.Problem, algorithm: Algorithm, size: int, beta: float = 0.1
    ):
        self.problem, self.algorithm, self.size, self.beta = problem, algorithm, size, beta
        self.count = len(problem.returns)
        self.index = self.enumerate()

    def enumerate(self) -> np.ndarray:
        """Every group."""
        return groups.all_groups(self.count, self.size)

    @property
    def rows(self) -> np.ndarray:
        """Those of the completions that the algorithm scores."""
        return self.index

    def weight(self, policies: Policies, returns: np.ndarray) -> np.ndarray:
        """Probability of each rollout, [M]."""
        return self.probability(policies.behavior)[self.index].prod(-1)

    def rewards(self, returns: np.ndarray, index: np.ndarray) -> dict[str, np.ndarray]:
        """What is known of the answers besides the policies."""
        return {"rewards": returns[index], "valid": np.ones(index.shape, bool)}

    def known(self, policies: Policies, returns: np.ndarray) -> Known:
        """The policy gradients and the terms that REINFORCE and its kin are compared with."""
        problem, weighted = (
            self.problem,
            functools.partial(expectations.moments, self.problem.score),
        )
        mask, policy = problem.sequences.mask, self.probability(policies.current)
        behavior = self.probability(policies.behavior)
        gap = self.token_logp(policies.current) - self.token_logp(policies.behavior)
        centred = (returns - behavior @ returns)[:, None] * mask
        gradients = {
            self.exact: weighted(policy, returns[:, None] * mask)[0],
            f"{self.exact} / length": weighted(policy, self.over_length(centred))[0],
            "token-ratio surrogate": weighted(behavior, np.exp(gap) * centred)[0],
            "uncorrected REINFORCE": weighted(behavior, centred)[0],
        }
        return Known(gradients, self.terms(policies), self.least_variance(policies, returns))

    def terms(self, policies: Policies) -> dict[str, np.ndarray]:
        """Ascent directions of KL and entropy terms, on-policy.

        "Of each token" holds the distribution of the prefixes fixed, as a loss of tokens does.
        """
        problem, mask = self.problem, self.problem.sequences.mask
        policy, logp = self.probability(policies.current), self.token_logp(policies.current)
        logratio = logp - self.token_logp(policies.reference)
        slopes = {
            "KL(policy || reference)": -logratio.sum(-1, keepdims=True) * mask,
            "KL(policy || reference) of each token": -logratio,
            "KL(reference || policy) of each token": np.expm1(-logratio) * mask,
        }
        found = {}
        for name, slope in slopes.items():
            found[name] = expectations.moments(problem.score, policy, slope)[0]
            found[f"{name} / length"] = expectations.moments(
                problem.score, policy, self.over_length(slope)
            )[0]
        entropy = _entropy_score(problem.sequences, policies.current)
        found["entropy of each token"] = expectations.moments(entropy, policy, mask)[0]
        found["entropy of each token / length"] = expectations.moments(
            entropy, policy, self.over_length(mask)
        )[0]
        return found

    def rise(self, policies: Policies, returns: np.ndarray, ascent: np.ndarray) -> float:
        """How fast a step along the gradient raises what the algorithm is to raise.

        Args:
          policies: logits.
          returns: of each completion, [N].
          ascent: direction of a rollout's step, for each rollout, [M, parameters].
        """
        mean = self.weight(policies, returns) @ ascent
        return float(mean @ self.known(policies, returns).gradients[self.exact])

    def least_variance(self, policies: Policies, returns: np.ndarray) -> float:
        """That of REINFORCE with the mean of the other samples, on-policy."""
        return groups.least_variance(
            self.problem.score.sum(1),
            self.probability(policies.current),
            self.index,
            returns[self.index],
        )

    def token_logp(self, logits: np.ndarray) -> np.ndarray:
        """[N, T]."""
        return np.asarray(token_logp(self.problem.sequences, logits))

    def probability(self, logits: np.ndarray) -> np.ndarray:
        """Of each completion, [N]."""
        return np.exp(self.token_logp(logits).sum(-1))

    def over_length(self, slope: np.ndarray) -> np.ndarray:
        """Numbers of tokens [N, T], each over the length of its completion."""
        return slope / self.problem.sequences.mask.sum(-1, keepdims=True)


class Contests(World):
    """One sample of the policy beside one of an opponent, a mixture of two policies.

    The opponent's sample is the last entry of a rollout. Its preference over the policy's is the
    Bradley-Terry probability with the returns as rewards.
    """

    exact = "policy gradient of the win rate"

    def enumerate(self):
        """Every sample with every opponent."""
        return groups.all_groups(self.count, 2)

    @property
    def rows(self):
        """The policy's own."""
        return self.index[..., :1]

    def weight(self, policies, returns):
        """Both are drawn."""
        own, opponent = self.index.T
        return self.probability(policies.behavior)[own] * self.opponent(policies)[opponent]

    def opponent(self, policies: Policies) -> np.ndarray:
        """Probability of each completion under the mixture, which mixes tokens geometrically."""
        mixture = self.algorithm.collect.samples.versus
        other = policies.of(self.algorithm.policies[mixture.name])
        logits = (1.0 - mixture.weight) * jax.nn.log_softmax(policies.behavior)
        return self.probability(logits + mixture.weight * jax.nn.log_softmax(other))

    def rewards(self, returns, index):
        """The rewards of the policy's samples, and how often they are preferred."""
        own, other = returns[index[..., :1]], returns[index[..., 1:]]
        return super().rewards(returns, index[..., :1]) | {
            "preferences": 1.0 / (1.0 + np.exp(other - own))
        }

    def known(self, policies, returns):
        """The returns are those of the game: how often each completion is preferred."""
        preferred = 1.0 / (1.0 + np.exp(returns[None, :] - returns[:, None]))
        return super().known(policies, preferred @ self.opponent(policies))

    def least_variance(self, policies, returns):
        """That of one sample with the exact win rates, less their mean."""
        policy = self.probability(policies.current)
        centred = (returns - policy @ returns)[:, None] * self.problem.sequences.mask
        return expectations.moments(self.problem.score, policy, centred)[1]


class Pairs(World):
    """Labelled pairs of answers of the reference; other roles are further answers of it."""

    exact = "DPO"

    def enumerate(self):
        """Every batch of pairs: two for the bandit, whose completions are few, else one."""
        self.labelled = pairs.label(np.zeros(self.count), self.problem.returns)
        rows = np.stack([self.labelled.chosen, self.labelled.rejected], 1)
        roles = self.algorithm.unit.roles
        others = groups.all_groups(self.count, len(roles) - 2)
        columns = {"chosen": 0, "rejected": 1}
        rest = itertools.count(2)
        order = [columns[role] if role in columns else next(rest) for role in roles]
        units = np.concatenate(
            [np.repeat(rows, len(others), 0), np.tile(others, (len(rows), 1))], axis=1
        )[:, order].astype(int)
        self.batches = groups.all_groups(len(units), 2 if self.problem.name == "bandit" else 1)
        self.of_pairs = np.repeat(np.arange(len(rows)), len(others))
        self.extra = [place for place, column in enumerate(order) if column > 1]
        return units[self.batches]

    def weight(self, policies, returns):
        """Both answers and the label, and the answers in other roles."""
        logp = self.token_logp(policies.reference).sum(-1)
        found = pairs.label(logp, returns).weight[self.of_pairs][self.batches]
        return (found * np.exp(logp[self.index[..., self.extra]].sum(-1))).prod(-1)

    def rewards(self, returns, index):
        """Nothing: a pair has a label only."""
        return {}

    def known(self, policies, returns):
        """The gradient of DPO with the same beta, against the uniform policy without a reference."""
        logp, reference = (
            self.token_logp(p).sum(-1) for p in (policies.current, policies.reference)
        )
        first, second, weight = pairs.label(reference, returns)
        x = logp - reference if self.algorithm.policies else logp
        slope = pairs.dpo_slope(x[first] - x[second], self.beta)
        score = expectations.token_score(self.problem.sequences, policies.current).sum(1)
        each = np.stack([-slope, slope], -1)
        mean, variance = expectations.moments(
            np.stack([score[first], score[second]], 1), weight, each
        )
        return Known({"DPO": mean}, {}, variance / self.batches.shape[1])

    def rise(self, policies, returns, ascent):
        """That of each pair's own margin; a loss of mean log-probabilities may lower the others'."""
        score = expectations.token_score(self.problem.sequences, policies.current).sum(1)
        chosen, rejected = (
            score[self.index[..., self.algorithm.unit.roles.index(role)]].mean(1)
            for role in ("chosen", "rejected")
        )
        weight = self.weight(policies, returns)
        return float(weight @ np.sum(ascent * (chosen - rejected), -1))


class Answers(World):
    """Demonstrations, drawn from the reference tilted by the returns."""

    exact = "maximum likelihood"

    def enumerate(self):
        """Every batch of two."""
        return groups.all_groups(self.count, 2)

    def demonstrator(self, policies: Policies, returns: np.ndarray) -> np.ndarray:
        """Probability of each completion in the data."""
        tilted = self.probability(policies.reference) * np.exp(returns)
        return tilted / tilted.sum()

    def weight(self, policies, returns):
        """The demonstrations are independent."""
        return self.demonstrator(policies, returns)[self.index].prod(-1)

    def rewards(self, returns, index):
        """Nothing."""
        return {}

    def known(self, policies, returns):
        """The gradient of the demonstrations' log-likelihood."""
        mask, weight = self.problem.sequences.mask, self.demonstrator(policies, returns)
        score = expectations.token_score(self.problem.sequences, policies.current)
        mean, variance = expectations.moments(score, weight, mask)
        shorter, _ = expectations.moments(score, weight, self.over_length(mask))
        return Known({self.exact: mean, f"{self.exact} / length": shorter}, {}, variance / 2)


def kind_of(algorithm: Algorithm, name: str) -> type[World]:
    """The rollouts that an algorithm learns from.

    Raises:
      ValueError: for rows of the data that cannot be enumerated.
    """
    if algorithm.samples:
        return Contests if algorithm.collect.samples.versus else World
    if isinstance(algorithm.unit, Pair) and {"chosen", "rejected"} <= set(algorithm.unit.roles):
        return Pairs
    if algorithm.unit == Sequence() and len(algorithm.collect.columns) == 1:
        return Answers
    raise ValueError(
        f"{name} reads {algorithm.unit} from the columns {', '.join(algorithm.collect.columns)}, "
        "expected samples, demonstrations in one column, or pairs with the roles chosen and rejected"
    )


def _entropy_score(sequences, logits: np.ndarray) -> np.ndarray:
    """Gradient of the entropy at each token in the logits, [N, T, parameters]."""
    jacobian = np.asarray(jax.jacobian(distributions.entropy)(jnp.asarray(logits)))
    return jacobian.reshape(len(logits), -1)[sequences.prefix]
