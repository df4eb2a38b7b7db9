"""What a run is about to do, in a few lines, before it does it."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from polgrad.contract import Algorithm, Initial
from polgrad.rewards.pool import RewardPool
from polgrad.rollouts import sampling_weights
from polgrad.training import named_policies
from polgrad.training.setup import defaults
from polgrad.training.setup.parts import Parts


def plan(parts: Parts) -> list[str]:
    """The plan that is printed before the first step."""
    config, algorithm = parts.config, parts.algorithm
    rollouts, update = config.rollouts, config.update
    params = jax.eval_shape(parts.network.init, jax.random.key(0))
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    shape = ", ".join(f"{axis}={size}" for axis, size in parts.mesh.shape.items())
    updates = update.epochs * update.mini_batches
    held = 4 * count
    state = jax.eval_shape(config.optimizer.build(1, parts.network.logical_axes()).init, params)
    moments = sum(x.dtype.itemsize * math.prod(x.shape) for x in jax.tree.leaves(state))
    policies = named_policies.wanted(algorithm, track_kl=config.track_kl)
    lines = [
        f"policy {config.policy}: {count:,} parameters; mesh {shape}",
        f"task {config.task}: {_count(len(parts.train.source), 'training problem')}, "
        f"{len(parts.test.source) if parts.test else 0:,} held out; "
        f"prompts of at most {_count(parts.train.tokens.shape[1], 'token')}",
    ]
    if algorithm.samples:
        samples = rollouts.prompts * rollouts.group_size
        lines.append(
            f"{config.algorithm}: {_count(rollouts.prompts, 'prompt')} x "
            f"{_count(rollouts.group_size, 'sample')} = {_count(samples, 'sequence')} a step, at "
            f"most {_count(rollouts.max_tokens, 'token')} each"
        )
        # Prefill, decoding and drawing are one program; greedy evaluation is another.
        programs = 2 + 1 + (2 if algorithm.collect.samples.versus else 0)
    else:
        kind = defaults.kind_of(algorithm).removesuffix("s")
        lines.append(f"{config.algorithm}: {_count(rollouts.prompts, kind)} a step")
        programs = 1
    programs += 1 + bool(policies) + algorithm.needs.values
    policy = ""
    if algorithm.samples:
        policy = " (on-policy)" if updates == 1 else f" ({updates - 1} of them off-policy)"
    lines.append(
        f"{_count(config.steps, 'step')} x {_count(updates, 'update')}{policy}, each in "
        f"{_count(update.micro_batches, 'micro-batch', 'es')}; about "
        f"{_count(programs, 'compiled program')}"
    )
    lines.append(
        f"bytes held: parameters {_size(held)}, {config.optimizer.method} {_size(moments)}"
        + "".join(f", {name} {_size(size)}" for name, size in _held(parts, policies, params))
    )
    lines += [parts.chosen] if parts.chosen else []
    lines += [f"note: {sentence}" for sentence in algorithm.warnings]
    return lines


def _count(number: int, noun: str, ending: str = "s") -> str:
    """A number with its noun, such as "1 update" or "2 updates"."""
    return f"{number:,} {noun}{'' if number == 1 else ending}"


def _held(parts: Parts, policies: Mapping[str, Any], params: Any) -> list[tuple[str, int]]:
    """The bytes of each named policy; those of the initial policy are held once for all its names."""
    held = {}
    initial = [name for name, kind in policies.items() if isinstance(kind, Initial)]
    if initial:
        types = sampling_weights.types(
            params, parts.network.logical_axes(), parts.config.update.dtype
        )
        held["/".join(initial)] = _bytes(params, types)
    wide = jax.tree.map(lambda x: jnp.dtype(jnp.float32), params)
    held |= dict.fromkeys(named_policies.moving(policies), _bytes(params, wide))
    return list(held.items())


def _bytes(params: Any, types: Any) -> int:
    sizes = jax.tree.map(lambda x, dtype: math.prod(x.shape) * dtype.itemsize, params, types)
    return sum(jax.tree.leaves(sizes))


def first_example(parts: Parts, reward: RewardPool | None, task: RewardPool | None) -> list[str]:
    """The first problem as the policy reads it, and what its known answer scores.

    Args:
      parts: the run.
      reward: workers that compute the training reward; None where nothing is sampled.
      task: workers that score held-out problems; None without them.

    Returns:
      Lines for the user.
    """
    example, length = parts.train.source[0], parts.train.lengths[0]
    text = parts.tokenizer.shown(parts.train.tokens[0][:length].tolist())
    lines = [f"first prompt, as the policy reads it: {_short(text)}"]
    if reward is not None and parts.config.rewards.preference:
        lines.append(f"preferences: {_names(reward)}")
    elif reward is not None:
        both = "reward and held-out accuracy" if task is reward else "reward"
        against = with_opponent(parts.algorithm, example)
        lines += _known_answer(f"{both}: {_names(reward)}", reward, against)
    if task is not None and task is not reward:
        lines += _known_answer(f"held-out accuracy: {_names(task)}", task, example)
    return lines


def with_opponent(algorithm: Algorithm, example: Mapping[str, Any]) -> Mapping[str, Any]:
    """An example as the reward gets it before a policy has sampled anything.

    Args:
      algorithm: what is trained.
      example: of a `data.load_task` source.

    Returns:
      The example; where the algorithm samples an opponent, whose completion the reward may read,
      with the right answer in the opponent's place.
    """
    versus = algorithm.collect.samples and algorithm.collect.samples.versus
    if versus is None or "answer" not in example:
        return example
    return {**example, "opponent": example["answer"]}


def _names(pool: RewardPool) -> str:
    """The functions of a pool, files without their folder."""
    return ", ".join(spec.target.rpartition("/")[2] for spec in pool.specs)


def _known_answer(named: str, pool: RewardPool, example: Mapping[str, Any]) -> list[str]:
    """What a pool makes of a right answer; where that is no value, a warning of its own."""
    answer = example.get("answer")
    if not isinstance(answer, str):
        return [f"{named}; the data has no answer to try it on"]
    score = pool.score([(example["prompt"], answer, example)], limit=1.0)[0]
    if score.valid:
        return [f"{named}; the known answer {_short(answer)} scores {float(score.value):g}"]
    return [
        named,
        f"WARNING: {_names(pool)} gives no value for the right answer {_short(answer)}: "
        f"{score.reason}. Samples without a value do not count, and the run stops where their share "
        "in a step is above --rewards.failure-limit",
    ]


def _short(text: str, limit: int = 300) -> str:
    """A text in quotes, its middle left out where it is long."""
    half = limit // 2
    return repr(text if len(text) <= limit else f"{text[:half]} ... {text[-half:]}")


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            return f"{number:.3g} {unit}"
        number /= 1024
