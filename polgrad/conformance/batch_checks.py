"""What settings are required to do with one batch: a function for each `Check`."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from polgrad.conformance import expectations, requirements, rollouts
from polgrad.conformance.paths import KEY, beta_of, build, experience_of
from polgrad.conformance.requirements import Check
from polgrad.conformance.rollouts import World
from polgrad.contract import Group, List, Outputs, Pair, Settings
from polgrad.training import named_policies, step

__all__ = [
    "Example",
    "check_edges",
    "check_formats",
    "check_invalid",
    "check_micro_batches",
    "check_padding",
    "check_permutation",
    "check_reuse",
    "check_stopped",
]

_PROMPTS = 4  # of the batch that the checks look at
_GROUP = 4


class Example:
    """A small off-policy batch of several prompts, its `prepare` and its gradients."""

    def __init__(self, settings: Settings, problem: expectations.Problem):
        self.settings, self.problem = settings, problem
        self.algorithm = build(settings, _GROUP, _PROMPTS, on_policy=False)
        kind = rollouts.kind_of(self.algorithm, type(settings).__name__)
        self.beta = beta_of(settings)
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
        found = experience_of(self.world, self.policies, index, _GROUP)
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
        key = jax.random.key(KEY)
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
        loss, gradient, _ = self.gradient(micro_batches)(logits, batch, jax.random.key(KEY))
        return np.asarray(loss), np.asarray(gradient)

    def outputs(self, batch: dict) -> Outputs:
        """What the loss reads of the policy."""
        outputs = rollouts.Tabular(self.problem)(jnp.asarray(self.logits), batch)
        return outputs._replace(entropy=outputs.entropy if self.algorithm.needs.entropy else None)

    def slopes(self, batch: dict) -> np.ndarray:
        """Gradient of the loss in the log-probabilities of the policy, in their shape."""
        outputs = self.outputs(batch)
        batch = self.algorithm.select(outputs, batch, jax.random.key(KEY))
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
        algorithm = build(self.settings, 2 * _GROUP, _PROMPTS, on_policy=False)
        key, other = jax.random.key(KEY), self._drawn(1)
        other["valid"] = np.zeros_like(other["valid"])
        other["sample_ids"] = other["sample_ids"] + np.uint32(_GROUP)

        def alternate(a, b):
            return rearrange([a, b], "two samples ... -> (samples two) ...")

        experience = {name: alternate(other[name], x) for name, x in self.experience.items()}
        batch = jax.jit(algorithm.prepare)(algorithm.init(key), experience, key)[1]
        gradient = jax.jit(step.gradient_of(rollouts.Tabular(self.problem), algorithm))
        return np.asarray(gradient(self.logits, batch, key)[1])

    def draws(self) -> bool:
        """Whether another key gives another gradient."""
        key = jax.random.key(KEY + 1)
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


def _same(a: np.ndarray, b: np.ndarray, tolerance: float = expectations.EXACT) -> bool:
    """Whether two gradients agree, relative to the size of the second."""
    if not np.all(np.isfinite(a)):
        return False
    return bool(np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1e-3))


def check_micro_batches(example: Example) -> Check:
    """Halves of the batch, after `prepare` and `select`, add up."""
    loss, gradient = example.loss_and_gradient(example.batch, micro_batches=2)
    if requirements.close(loss, example.base[0]) and _same(gradient, example.base[1]):
        return Check(True, "losses and gradients of two halves add up to those of the batch")
    return Check(
        False,
        f"two halves sum to {float(loss):.4g}, the batch to {float(example.base[0]):.4g}: the loss "
        "divides by a count or takes a statistic of the batch, which prepare, weights or "
        "whole_batch must do",
    )


def check_permutation(example: Example) -> Check:
    """Units are exchangeable."""
    order = np.random.default_rng(1).permutation(len(example.batch["weights"]))
    if example.moved({name: x[order] for name, x in example.batch.items()}):
        return Check(False, "the order of the rows of a batch changes the gradient")
    return Check(True, "the order of the rows of a batch does not matter")


def check_padding(example: Example) -> Check:
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


def check_stopped(example: Example) -> dict[str, Check]:
    """No gradient reaches what is fixed once the samples are drawn; nothing where nothing is.

    `behavior_logp`, the advantages and the rewards must be stopped. Other arrays are named where
    they are: a log-ratio has a slope in the reference, and a weight that the algorithm adds has one
    too, without harm, because both are constants of the batch.
    """
    batch, required = example.batch, {"behavior_logp", "advantages", "rewards"}
    names = [n for n in batch if jnp.issubdtype(batch[n].dtype, jnp.floating)]
    names = [n for n in names if n not in ("mask", "weights")]
    outputs, key, algorithm = example.outputs(batch), jax.random.key(KEY), example.algorithm

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


def check_edges(example: Example) -> Check:
    """Tokens that the policy excludes, or nearly, give finite losses and gradients."""
    for place, value in itertools.product(((0, 1), (1, 2)), (-np.inf, -1000.0)):
        logits = example.logits.copy()
        logits[place] = value
        loss, gradient = example.loss_and_gradient(example.batch, logits=logits)
        if not (np.isfinite(loss) and np.all(np.isfinite(gradient))):
            return Check(False, f"not finite where the policy's logit of a token is {value}")
    return Check(True, "losses and gradients stay finite where the policy excludes tokens")


def check_formats(example: Example) -> Check:
    """The arithmetic survives float32."""

    def single(x):
        return x.astype(np.float32) if x.dtype == np.float64 else x

    with jax.enable_x64(False):
        batch = example.prepare({name: single(x) for name, x in example.experience.items()})
        _, gradient = example.loss_and_gradient(batch, logits=single(example.logits))
    if _same(gradient, example.base[1], 1e-3):
        return Check(True, "float32 agrees with float64")
    return Check(False, "the gradient in float32 differs from that in float64 by more than 1e-3")


def check_invalid(example: Example) -> Check:
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


def check_reuse(example: Example) -> Check:
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


def _knows_classes_alone(example: Example) -> bool:
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


def _rests_at_optimum(example: Example) -> bool:
    """Whether rewards that make the policy the KL-regularised optimum leave no gradient."""
    if "reference_logp" not in example.experience:
        return False
    outputs = rollouts.Tabular(example.problem)(jnp.asarray(example.logits), example.experience)
    distance = np.sum(outputs.logp - example.experience["reference_logp"], -1)
    batch = example.prepare({**example.experience, "rewards": example.beta * distance + 0.3})
    _, gradient = example.loss_and_gradient(batch)
    return bool(np.abs(gradient).max() < expectations.EXACT)
