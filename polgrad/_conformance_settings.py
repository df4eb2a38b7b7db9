"""What `polgrad.conformance` does with settings: rollout, `prepare`, `select`, `loss`, gradient."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from polgrad import _conformance as kit
from polgrad import _conformance_groups as groups
from polgrad import _conformance_rollouts as rollouts
from polgrad._conformance import Check, Measurement
from polgrad.algorithms import common
from polgrad.contract import Algorithm, Context, Group, List, Outputs, Pair, Settings
from polgrad.training import named_policies, step

__all__ = ["Path", "examine", "follows", "name_of"]

_PROMPTS = 4  # of the batch that the checks look at
_GROUP = 4
_KEY = 0
_UNKNOWN = "none of the known"
_WANTED = {
    rollouts.World: "the mean of rewards of 0 and 1",
    rollouts.Contests: "the win rate against the opponent",
    rollouts.Pairs: "the margin of the chosen answers",
    rollouts.Answers: "the likelihood of the demonstrations",
}
Policies, World = rollouts.Policies, rollouts.World


def name_of(settings: Settings) -> str:
    """The class and the settings that differ from its defaults."""
    fields = dataclasses.fields(settings) if dataclasses.is_dataclass(settings) else ()
    changed = common.changed(settings, tuple(f.name for f in fields)) if fields else ()
    told = ", ".join(f"{name}={getattr(settings, name)!r}" for name in changed)
    return f"{type(settings).__name__}({told})"


def examine(settings: Settings) -> tuple[str, tuple[Measurement, ...], dict[str, Check]]:
    """What the algorithm takes, its measurements and its checks."""
    if isinstance(settings, type):
        raise ValueError(
            f"objective is the class {settings.__name__}, expected settings: {settings.__name__}()"
        )
    paths = [Path(settings, problem) for problem in kit.problems()]
    measurements = tuple(m for path in paths for m in path.measurements())
    batch = _Example(settings, kit.problems()[1])
    checks = {
        "direction": _check_direction(paths),
        "micro-batches": _check_micro_batches(batch),
        "permutation": _check_permutation(batch),
        "padding": _check_padding(batch),
        **_check_stopped(batch),
        "minus infinity": _check_edges(batch),
        "number formats": _check_formats(batch),
    }
    if batch.algorithm.samples:
        checks["invalid rewards"] = _check_invalid(batch)
        checks["reuse"] = _check_reuse(batch)
    checks["gradient"] = _tell_gradient(measurements, paths[0].world.exact)
    if batch.algorithm.samples:
        checks |= _notes_on_rewards(paths)
    return batch.layout, measurements, checks


# --- the expected gradient ------------------------------------------------------------------------


class Path:
    """The whole path of an algorithm on one problem, over all rollouts."""

    def __init__(self, settings: Settings, problem: kit.Problem):
        self.problem = problem
        size = groups.SIZES[problem.name]
        kind = rollouts.kind_of(_build(settings, size, 1, True), type(settings).__name__)
        # An opponent doubles the samples: then a rollout has one.
        self.size = 1 if kind is rollouts.Contests else size
        self.build = functools.cache(lambda on_policy: _build(settings, self.size, 1, on_policy))
        self.samples = self.build(True).samples
        self.world: World = kind(problem, self.build(True), self.size, _beta(settings))
        self.gradients = functools.cache(
            lambda on_policy: _gradients(self.build(on_policy), problem)
        )

    def ascent(self, staleness: float, returns: np.ndarray) -> tuple[np.ndarray, Policies]:
        """Direction of each rollout's step, [M, parameters], and the policies."""
        policies = rollouts.policies_at(self.problem, staleness, samples=self.samples)
        rows = self.world.rows
        arrays = _experience(self.world, policies, rows, self.size)
        arrays |= self.world.rewards(returns, self.world.index)
        # Pairs and demonstrations have no sampler whose policy could be the current one.
        gradients = self.gradients(self.samples and staleness == 0.0)
        found = -np.asarray(gradients(policies.current, arrays))
        return found.reshape(len(rows), -1), policies

    def expected(self, staleness: float, returns: np.ndarray) -> tuple[np.ndarray, float, Policies]:
        """Ascent direction of the expected loss, variance of a rollout's, and the policies."""
        ascent, policies = self.ascent(staleness, returns)
        weight = self.world.weight(policies, returns)
        mean, variance = kit.moments(ascent[:, None], weight, np.ones((len(ascent), 1)))
        return mean, variance, policies

    def measurements(self) -> list[Measurement]:
        """At every staleness."""
        found = []
        for staleness in kit.STALENESS:
            mean, variance, policies = self.expected(staleness, self.problem.returns)
            known = self.world.known(policies, self.problem.returns)
            exact = known.gradients[self.world.exact]
            measured = kit.measurement(
                self.problem.name, staleness, mean, exact, variance / known.variance, {}
            )
            terms = {} if staleness else known.terms
            found.append(measured._replace(follows=follows(mean, known.gradients, terms)))
        return found

    @functools.cached_property
    def binary(self) -> np.ndarray:
        """Rewards of 0 and 1."""
        returns = self.problem.returns
        return (returns > np.median(returns)).astype(returns.dtype)


def _beta(settings: Settings) -> float:
    """The strength of a KL, 0.1 in settings without one."""
    beta = getattr(settings, "beta", 0.1)
    return float(beta) if isinstance(beta, int | float) else 0.1


def _build(settings: Settings, size: int, prompts: int, on_policy: bool) -> Algorithm:
    algorithm = settings.build(
        Context(
            group_size=size,
            max_tokens=kit.problems()[0].sequences.mask.shape[1],
            num_prompts=prompts,
            on_policy=on_policy,
        )
    )
    algorithm.check()
    return algorithm


def _gradients(algorithm: Algorithm, problem: kit.Problem):
    """`(logits, experience of many rollouts) -> gradient of each one's loss`, compiled."""
    gradient = step.gradient_of(rollouts.Tabular(problem), algorithm)

    def one(logits, experience):
        key = jax.random.key(_KEY)
        _, batch, _ = algorithm.prepare(algorithm.init(key), experience, key)
        return gradient(logits, batch, key)[1]

    return jax.jit(jax.vmap(one, (None, 0)))


def _experience(world: World, policies: Policies, index: np.ndarray, size: int) -> dict:
    """The arrays of a rollout, as `training.train` gives them to `prepare`, for many rollouts.

    Args:
      world: the completions.
      policies: logits.
      index: numbers of completions, [..., rows] or [..., rows, roles].
      size: samples of a prompt, which are neighbouring rows.
    """
    sequences = world.problem.sequences
    mask = sequences.mask[index]
    lengths = mask.sum(-1).astype(np.int32)
    found = {
        "prompts": np.zeros((*index.shape, 1), np.int32),
        "prompt_lengths": np.ones(index.shape, np.int32),
        "completions": sequences.tokens[index].astype(np.int32),
        "completion_lengths": lengths,
        "mask": mask,
    }
    for name, kind in world.algorithm.policies.items():
        found[f"{name}_logp"] = world.token_logp(policies.of(kind))[index]
    if not world.algorithm.samples:
        return found
    number = np.broadcast_to(np.arange(index.shape[-1]), index.shape)
    found |= {
        "behavior_logp": world.token_logp(policies.behavior)[index],
        "stopped": (lengths < mask.shape[-1]) | (found["completions"][..., -1] == 0),
        "prompt_ids": (number // size).astype(np.uint32),
        "sample_ids": (number % size).astype(np.uint32),
    }
    if world.algorithm.needs.values:
        found["values"] = rollouts.Tabular(world.problem).values[index]
    return found


def follows(
    mean: np.ndarray, gradients: dict[str, np.ndarray], terms: dict[str, np.ndarray]
) -> str:
    """The known gradient that this one is, a multiple of it, or its sum with terms."""
    # More vectors than the parameters allow would fit anything.
    most = np.linalg.matrix_rank(np.stack(list(gradients.values()) + list(terms.values()))) - 1
    for count in range(max(1, min(3, most))):
        for name, extra in itertools.product(gradients, itertools.combinations(terms, count)):
            basis = np.stack([gradients[name], *(terms[t] for t in extra)], -1)
            factors = np.linalg.lstsq(basis, mean)[0]
            if kit.distance(basis @ factors, mean) < kit.EXACT and np.all(factors > 1e-9):
                return " ".join([_times(factors[0], name), *map(_with, factors[1:], extra)])
    return _UNKNOWN


def _times(factor: float, name: str) -> str:
    return name if abs(factor - 1.0) < kit.EXACT else f"{factor:.3g} x {name}"


def _with(factor: float, name: str) -> str:
    return f"{'+' if name.startswith('entropy') else '-'} {factor:.3g} x {name}"


# --- in words -------------------------------------------------------------------------------------


def _tell_gradient(measurements: tuple[Measurement, ...], exact: str) -> Check:
    """Which gradient it is on-policy; a property, not a requirement.

    The bandit has too few parameters to tell a gradient with two terms from any other.
    """
    found = [m for m in measurements if m.staleness == 0.0]
    told = [
        f"{m.follows}{f', cosine {m.cosine:.3f}' if m.follows == _UNKNOWN else ''} ({m.problem})"
        for m in found
    ]
    known = found[-1].follows != _UNKNOWN
    names = {"policy gradient": "a policy gradient of the mean reward"}
    start = "" if known else f"not {names.get(exact, f'that of {exact}')}: "
    return Check(known, f"{start}{'; '.join(told)}", required=False)


def _check_direction(paths: list[Path]) -> Check:
    """A step raises what is wanted; of samples, what does not depend on the rewards is left out."""
    wrong, wanted = [], _WANTED[type(paths[0].world)]
    for path in paths:
        returns = path.binary if path.samples else path.problem.returns
        ascent, policies = path.ascent(0.0, returns)
        if path.samples:
            ascent = ascent - path.ascent(0.0, np.zeros_like(returns))[0]
        rise = path.world.rise(policies, returns, ascent)
        if not rise > 0.0:
            word = "lowers" if rise < 0.0 else "does not raise"
            wrong.append(f"a step {word} {wanted} ({path.problem.name})")
    return Check(not wrong, "; ".join(wrong) or f"a step raises {wanted}")


def _notes_on_rewards(paths: list[Path]) -> dict[str, Check]:
    """What constants, scales and rewards of 0 and 1 make of the gradient; properties."""
    path = paths[1]
    returns = path.problem.returns
    rewards = (0.0 * returns, returns, returns + 3.0, 3.0 * returns)
    without, *found = (path.expected(0.0, x)[0] for x in rewards)
    mean, shifted, scaled = (x - without for x in found)
    if kit.distance(scaled, mean) < 1e-4:  # of the constant that keeps a deviation from 0
        scale = (
            "three times the rewards give the same gradient: they are divided by their deviation"
        )
        scale += ", or ranked, so that no fixed function of the rewards is maximised"
    elif kit.distance(scaled, 3.0 * mean) < kit.EXACT:
        scale = "the gradient is proportional to the rewards"
    else:
        scale = "three times the rewards give neither the same gradient nor three times it"
    same = kit.distance(shifted, mean) < kit.EXACT
    constant = f"a constant added to the rewards changes {'nothing' if same else 'the gradient'}"
    proportional = scale.startswith("the gradient")
    return {
        "reward constants": Check(same, constant, required=False),
        "scales with rewards": Check(proportional, scale, required=False),
        "rewards of 0 and 1": _tell_binary(paths),
    }


def _tell_binary(paths: list[Path]) -> Check:
    found = []
    for path in paths:
        mean, _, policies = path.expected(0.0, path.binary)
        known = path.world.known(policies, path.binary)
        found.append(follows(mean, known.gradients, known.terms))
    told = "; ".join(f"{f} ({p.problem.name})" for f, p in zip(found, paths, strict=True))
    return Check(found[-1] != _UNKNOWN, told, required=False)


# --- one batch --------------------------------------------------------------------------------------


class _Example:
    """A small off-policy batch of several prompts, its `prepare` and its gradients."""

    def __init__(self, settings: Settings, problem: kit.Problem):
        self.settings, self.problem = settings, problem
        self.algorithm = _build(settings, _GROUP, _PROMPTS, on_policy=False)
        kind = rollouts.kind_of(self.algorithm, type(settings).__name__)
        self.beta = _beta(settings)
        self.world: World = kind(problem, self.algorithm, 2, self.beta)
        self.policies = rollouts.policies_at(problem, 0.2, samples=self.algorithm.samples)
        self.logits = self.policies.current
        self._prepare = jax.jit(self.algorithm.prepare)
        self.experience = self._drawn()
        self.batch = self.prepare(self.experience)
        self.gradient = functools.cache(self._gradient)
        self.base = self.loss_and_gradient(self.batch)

    def _drawn(self, seed: int = 0) -> dict:
        """Random completions, some with a level of rewards, others right or wrong.

        A loss that knows right and wrong alone has no gradient for other rewards than 0 and 1.
        """
        random = np.random.default_rng(seed)
        roles = (len(self.algorithm.unit.roles),) if isinstance(self.world, rollouts.Pairs) else ()
        rows = _PROMPTS * (_GROUP if self.algorithm.samples else 1)
        index = random.integers(0, self.world.count, (rows, *roles))
        found = _experience(self.world, self.policies, index, _GROUP)
        if not self.algorithm.samples:
            return found
        prompt = np.arange(rows) // _GROUP
        found |= {
            "rewards": np.where(
                prompt % 2 == 0, self.problem.returns[index] + prompt / 4.0, np.arange(rows) % 2
            ),
            "valid": np.ones(rows, bool),
        }
        if isinstance(self.world, rollouts.Contests):
            found["preferences"] = random.uniform(0.1, 0.9, rows)
        return found

    def prepare(self, experience: dict) -> dict:
        """The batch of the first rollout."""
        key = jax.random.key(_KEY)
        return self._prepare(self.algorithm.init(key), experience, key)[1]

    def _gradient(self, micro_batches: int):
        return jax.jit(
            step.gradient_of(
                rollouts.Tabular(self.problem), self.algorithm, micro_batches=micro_batches
            )
        )

    def loss_and_gradient(self, batch: dict, logits=None, micro_batches: int = 1):
        """Loss, and gradient in the logits."""
        logits = self.logits if logits is None else logits
        loss, gradient, _ = self.gradient(micro_batches)(logits, batch, jax.random.key(_KEY))
        return np.asarray(loss), np.asarray(gradient)

    def outputs(self, batch: dict) -> Outputs:
        """What the loss reads of the policy."""
        outputs = rollouts.Tabular(self.problem)(jnp.asarray(self.logits), batch)
        return outputs._replace(entropy=outputs.entropy if self.algorithm.needs.entropy else None)

    def slopes(self, batch: dict) -> np.ndarray:
        """Gradient of the loss in the log-probabilities of the policy, in their shape."""
        outputs = self.outputs(batch)
        batch = self.algorithm.select(outputs, batch, jax.random.key(_KEY))
        loss = lambda logp: self.algorithm.loss(outputs._replace(logp=logp), batch)[0]  # noqa: E731
        return np.asarray(jax.grad(loss)(outputs.logp))

    @property
    def sampler_names(self) -> list[str]:
        """The arrays with log-probabilities of the policy that sampled."""
        policies = self.algorithm.policies.items()
        same = [f"{name}_logp" for name, kind in policies if named_policies.behaves(kind)]
        return ["behavior_logp", *same]

    def replaced(self, row: int) -> dict:
        """The rollout with another answer, reward and preference in one row."""
        experience = self.experience
        differs = (experience["completions"] != experience["completions"][row]).any(-1)
        other = int(np.argmax(differs))
        found = {name: x.copy() for name, x in experience.items()}
        for name in found.keys() - {"prompts", "prompt_lengths", "prompt_ids", "sample_ids"}:
            found[name][row] = experience[name][other]
        found["rewards"][row] = 1.0 - experience["rewards"][row]
        if "preferences" in found:
            found["preferences"][row] = 1.0 - experience["preferences"][row]
        return found

    def with_as_many_invalid(self) -> np.ndarray:
        """The gradient where each group has as many samples again, none of which is valid."""
        algorithm = _build(self.settings, 2 * _GROUP, _PROMPTS, on_policy=False)
        key, other = jax.random.key(_KEY), self._drawn(1)
        other["valid"] = np.zeros_like(other["valid"])
        other["sample_ids"] = other["sample_ids"] + np.uint32(_GROUP)

        def alternate(a, b):
            return np.stack([a, b], 1).reshape(2 * len(a), *a.shape[1:])

        experience = {name: alternate(other[name], x) for name, x in self.experience.items()}
        batch = jax.jit(algorithm.prepare)(algorithm.init(key), experience, key)[1]
        gradient = jax.jit(step.gradient_of(rollouts.Tabular(self.problem), algorithm))
        return np.asarray(gradient(self.logits, batch, key)[1])

    def draws(self) -> bool:
        """Whether another key gives another gradient."""
        key = jax.random.key(_KEY + 1)
        batch = self._prepare(self.algorithm.init(key), self.experience, key)[1]
        return not _same(np.asarray(self.gradient(1)(self.logits, batch, key)[1]), self.base[1])

    def moved(self, batch: dict, **changes) -> bool:
        """Whether another batch, or other arguments, give another gradient."""
        _, gradient = self.loss_and_gradient(batch, **changes)
        return not _same(gradient, self.base[1])

    @property
    def layout(self) -> str:
        """What a row of the batch is, and what there is a loss of."""
        unit, places = self.algorithm.unit, self.batch["weights"].ndim
        if isinstance(unit, Pair):
            return f"pairs [B, {len(unit.roles)}, T] of {', '.join(unit.roles)}"
        if isinstance(unit, Group | List):
            return "groups of samples [P, G, T]"
        rows = "samples" if self.algorithm.samples else "answers"
        return f"{rows} [B, T], one loss {'a token' if places == 2 else 'an answer'}"


def _same(a: np.ndarray, b: np.ndarray, tolerance: float = kit.EXACT) -> bool:
    """Whether two gradients agree, relative to the size of the second."""
    if not np.all(np.isfinite(a)):
        return False
    return bool(np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1e-3))


def _check_micro_batches(example: _Example) -> Check:
    """Halves of the batch, after `prepare` and `select`, add up."""
    loss, gradient = example.loss_and_gradient(example.batch, micro_batches=2)
    if kit.close(loss, example.base[0]) and _same(gradient, example.base[1]):
        return Check(True, "losses and gradients of two halves add up to those of the batch")
    return Check(
        False,
        f"two halves sum to {float(loss):.4g}, the batch to {float(example.base[0]):.4g}: the loss "
        "divides by a count or takes a statistic of the batch, which prepare, weights or "
        "whole_batch must do",
    )


def _check_permutation(example: _Example) -> Check:
    """Units are exchangeable."""
    order = np.random.default_rng(1).permutation(len(example.batch["weights"]))
    if example.moved({name: x[order] for name, x in example.batch.items()}):
        return Check(False, "the order of the rows of a batch changes the gradient")
    return Check(True, "the order of the rows of a batch does not matter")


def _check_padding(example: _Example) -> Check:
    """Neither what lies under mask = 0 nor how much of it there is."""
    experience = example.experience
    hidden = experience["mask"] == 0
    dirty = {
        name: np.where(hidden, -7.3, x) if name.endswith("_logp") else x
        for name, x in experience.items()
    }
    if example.moved(example.prepare(dirty)):
        return Check(False, "log-probabilities under mask = 0 change the gradient")
    names = ("completions", "mask", "values")

    def wide(name, x):
        if name not in names and not name.endswith("_logp"):
            return x
        return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 2)])

    if example.moved(example.prepare({name: wide(name, x) for name, x in experience.items()})):
        return Check(False, "masked columns at the end change the gradient")
    return Check(True, "what lies under mask = 0 does not matter")


def _check_stopped(example: _Example) -> dict[str, Check]:
    """No gradient reaches what is fixed once the samples are drawn; nothing where nothing is.

    `behavior_logp`, the advantages and the rewards must be stopped. Other arrays are named where
    they are: a log-ratio has a slope in the reference, and a weight that the algorithm adds has one
    too, without harm, because both are constants of the batch.
    """
    batch, required = example.batch, {"behavior_logp", "advantages", "rewards"}
    names = [n for n in batch if jnp.issubdtype(batch[n].dtype, jnp.floating)]
    names = [n for n in names if n not in ("mask", "weights")]
    outputs, key, algorithm = example.outputs(batch), jax.random.key(_KEY), example.algorithm

    def loss(fixed):
        selected = algorithm.select(outputs, {**batch, **fixed}, key)
        return algorithm.loss(outputs, selected)[0]

    slopes = jax.grad(loss)({name: batch[name] for name in names}) if names else {}
    reached = [name for name, slope in slopes.items() if np.any(np.asarray(slope) != 0.0)]
    leaks = [name for name in reached if name in required]
    if leaks:
        told = f"a gradient reaches {' and '.join(leaks)}: stop it inside the loss"
        return {"stopped arguments": Check(False, told)}
    stopped = [name for name in names if name not in reached]
    if not stopped:
        return {}
    return {"stopped arguments": Check(True, f"no gradient reaches {', '.join(stopped)}")}


def _check_edges(example: _Example) -> Check:
    """Tokens that the policy excludes, or nearly, give finite losses and gradients."""
    for place, value in itertools.product(((0, 1), (1, 2)), (-np.inf, -1000.0)):
        logits = example.logits.copy()
        logits[place] = value
        loss, gradient = example.loss_and_gradient(example.batch, logits=logits)
        if not (np.isfinite(loss) and np.all(np.isfinite(gradient))):
            return Check(False, f"not finite where the policy's logit of a token is {value}")
    return Check(True, "losses and gradients stay finite where the policy excludes tokens")


def _check_formats(example: _Example) -> Check:
    """The arithmetic survives float32."""

    def single(x):
        return x.astype(np.float32) if x.dtype == np.float64 else x

    with jax.enable_x64(False):
        batch = example.prepare({name: single(x) for name, x in example.experience.items()})
        _, gradient = example.loss_and_gradient(batch, logits=single(example.logits))
    if _same(gradient, example.base[1], 1e-3):
        return Check(True, "float32 agrees with float64")
    return Check(False, "the gradient in float32 differs from that in float64 by more than 1e-3")


def _check_invalid(example: _Example) -> Check:
    """Samples without a valid reward add nothing, count nowhere, and batches of them give no NaN.

    The check has three parts. First, such a sample gets another answer, reward and preference: the
    gradient must stay the same. Second, every group gets as many such samples as it has valid ones, and
    the algorithm is built for groups of twice the size: the gradient must be a positive multiple of
    the gradient without these samples. A factor may come from the number of rows that the loss is
    divided by; a reward of 0 in a mean, or a count in a deviation, changes the direction. An
    algorithm that draws numbers may draw others for more rows: its direction may change. Third, a
    rollout that has only such samples must have a finite gradient.
    """
    experience = example.experience
    row = len(experience["valid"]) - 1  # of a prompt with rewards of 0 and 1
    invalid = experience["valid"].copy()
    invalid[row] = False
    found = []
    for other in (experience, example.replaced(row)):
        batch = example.prepare({**other, "valid": invalid})
        found.append(example.loss_and_gradient(batch)[1])
    if not _same(*found):
        return Check(False, "what a sample that is not valid holds changes the gradient")
    nothing = {"valid": np.zeros_like(invalid), "rewards": np.zeros(len(invalid))}
    loss, gradient = example.loss_and_gradient(example.prepare({**experience, **nothing}))
    if not (np.isfinite(loss) and np.all(np.isfinite(gradient))):
        return Check(False, "a rollout without a valid reward gives NaN or infinity")
    if _parallel(example.with_as_many_invalid(), example.base[1]):
        return Check(True, "samples without a valid reward do not matter")
    if example.draws():
        told = "what samples without a valid reward hold does not matter; whether they count is not"
        return Check(True, f"{told} examined, because the algorithm draws numbers")
    return Check(
        False,
        "samples that are not valid, added to every group, change the direction of the gradient: "
        "they count in a mean, a deviation or a rank",
    )


def _parallel(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether the first gradient is a positive multiple of the second, or both are 0."""
    factor = np.sum(a * b) / max(np.sum(b * b), np.finfo(b.dtype).tiny)
    return _same(a, b) or bool(factor > 0.0 and _same(a / factor, b))


def _check_reuse(example: _Example) -> Check:
    """A loss for the samples of an earlier policy reads that policy, or needs none.

    It needs none if its gradient is 0 for any samples once the policy is optimal, as CoPG's is, or
    if it compares the answers of a pair: their order is the same whoever wrote them. A loss that
    knows answers by their class alone ranks right over wrong whoever wrote them. That is noted, and
    no proof: with rewards of 0 and 1 REINFORCE with centred rewards has this gradient, up to the
    weights of the prompts.
    """
    batch, reuse = example.batch, example.algorithm.reuse
    for name, shift in itertools.product(example.sampler_names, (0.05, -0.05, 0.5)):
        if name in batch and example.moved({**batch, name: batch[name] + shift * batch["mask"]}):
            return Check(True, f"the loss reads {name}, and reuse is {reuse}")
    told = f"the loss does not read behavior_logp, and reuse is {reuse}"
    if reuse and isinstance(example.algorithm.unit, Pair):
        return Check(True, f"{told}: a pair has the same order whoever wrote its answers")
    if reuse and _rests_at_optimum(example):
        return Check(True, f"{told}: samples of any policy lead to one optimum")
    if reuse and _knows_classes_alone(example):
        told += ": it ranks right over wrong answers, also those of an earlier policy"
        return Check(False, told, required=False)
    return Check(not reuse, told)


def _knows_classes_alone(example: _Example) -> bool:
    """Whether a loss raises right answers, lowers wrong ones, and reads no amount of a reward.

    Each group has a reward of 1, one of 0, and one in between that is changed a little: a policy
    gradient weighs every sample by its reward, so that the change reaches all slopes of the group.
    """
    rewards = np.random.default_rng(0).integers(0, 2, (_PROMPTS, _GROUP)).astype(float)
    found = []
    for between in (0.3, 0.4):
        rewards[:, :3] = 1.0, 0.0, between
        batch = example.prepare({**example.experience, "rewards": rewards.reshape(-1)})
        found.append(example.slopes(batch))
    if found[0].size != rewards.size * batch["mask"].shape[-1] or not _same(*found):
        return False
    of_answers = found[0].reshape(rewards.size, -1).sum(-1)
    right, wrong = (of_answers[rewards.reshape(-1) == reward] for reward in (1.0, 0.0))
    signs = np.all(right <= 0.0) and np.all(wrong >= 0.0)
    return bool(signs and np.any(right < 0.0) and np.any(wrong > 0.0))


def _rests_at_optimum(example: _Example) -> bool:
    """Whether rewards that make the policy the KL-regularised optimum leave no gradient."""
    if "reference_logp" not in example.experience:
        return False
    outputs = rollouts.Tabular(example.problem)(jnp.asarray(example.logits), example.experience)
    distance = np.sum(outputs.logp - example.experience["reference_logp"], -1)
    batch = example.prepare({**example.experience, "rewards": example.beta * distance + 0.3})
    _, gradient = example.loss_and_gradient(batch)
    return bool(np.abs(gradient).max() < kit.EXACT)
