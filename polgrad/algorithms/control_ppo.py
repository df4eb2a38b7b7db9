"""PPO for control worlds: the whole training run is one pure function, to jit and to vmap.

    settings = ControlPPO(world="CartPole-v1")
    state, metrics = jax.jit(functools.partial(train, settings))(jax.random.key(0))
    many, curves = jax.jit(jax.vmap(functools.partial(train, settings)))(jax.random.split(key, 16))

`algorithms.PPO` is the same loss for language policies, in the loop of `training`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key, Num

from polgrad import advantages, losses, randomness
from polgrad._scalars import in_range
from polgrad.environments.gymnax_worlds import World, make
from polgrad.policies.actor_critic import ActorCritic
from polgrad.policies.network import Params
from polgrad.rollouts.unroll import Position, Trajectory, begin, unroll, value_trajectory

__all__ = ["ControlPPO", "State", "Steps", "experience", "loss", "train"]


@dataclasses.dataclass(frozen=True)
class ControlPPO:
    """Settings; the defaults are the usual ones for CartPole.

    Attributes:
      world: a name that gymnax knows.
      total_steps: of the world, over all copies; what is left over by whole updates is not taken.
      copies: of the world, that move at once.
      steps: of each copy between updates of the policy.
      epochs: passes over what was collected.
      minibatches: optimiser updates in a pass; must divide copies * steps.
      learning_rate: of Adam, at the start.
      anneal: let it fall linearly to 0 over the run, in steps of one collection.
      adam_epsilon: added to the root of Adam's second moment.
      max_gradient_norm: clip of the gradient's norm over policy and value jointly; 0 for none.
      discount: gamma, a step.
      lambda_: of the advantage's trace.
      clip: ratios are clipped to 1 +- clip, and values to their old estimates +- clip.
      clip_value: whether values are clipped.
      value_coefficient: weight of the value loss.
      entropy_coefficient: weight of the entropy bonus.
      hidden: widths of the hidden layers, of the policy and of the value function.
      activation: of the hidden layers.

    References:
      Schulman et al., Proximal policy optimization algorithms, 2017 (arXiv:1707.06347).
      Huang et al., The 37 implementation details of PPO, ICLR blog track 2022.
      Lu et al., Discovered policy optimisation, 2022 (arXiv:2210.05639): a run as one program.
      Pardo et al., Time limits in reinforcement learning, 2018 (arXiv:1712.00378).
    """

    world: str = "CartPole-v1"
    total_steps: int = 500_000
    copies: int = 4
    steps: int = 128
    epochs: int = 4
    minibatches: int = 4
    learning_rate: float = 2.5e-4
    anneal: bool = True
    adam_epsilon: float = 1e-5
    max_gradient_norm: float = 0.5
    discount: float = 0.99
    lambda_: float = 0.95
    clip: float = 0.2
    clip_value: bool = True
    value_coefficient: float = 0.5
    entropy_coefficient: float = 0.01
    hidden: tuple[int, ...] = (64, 64)
    activation: Literal["tanh", "relu"] = "tanh"

    def __post_init__(self):
        for name in ("copies", "steps", "epochs", "minibatches"):
            in_range(name, getattr(self, name), low=1)
        for name in ("learning_rate", "max_gradient_norm", "value_coefficient"):
            in_range(name, getattr(self, name), low=0)
        for name in ("discount", "lambda_"):
            in_range(name, getattr(self, name), low=0, high=1)
        in_range("clip", self.clip, low=0, above=True)
        in_range("adam_epsilon", self.adam_epsilon, low=0, above=True)
        if self.collected % self.minibatches:
            raise ValueError(
                f"minibatches is {self.minibatches}, expected a divisor of copies * steps = "
                f"{self.copies} * {self.steps} = {self.collected}"
            )
        if self.total_steps < self.collected:
            raise ValueError(
                f"total_steps is {self.total_steps}, expected at least one collection of copies * "
                f"steps = {self.copies} * {self.steps} = {self.collected}"
            )

    @property
    def collected(self) -> int:
        """Steps of the world between updates of the policy."""
        return self.copies * self.steps

    @property
    def updates(self) -> int:
        """How often the policy is updated."""
        return self.total_steps // self.collected

    def network(self, world: World) -> ActorCritic:
        """The policy and value function of a world."""
        return ActorCritic(
            world.observation_size, world.actions, world.action_size, self.hidden, self.activation
        )

    def rates(self, done: Int[Array, ""]) -> Float[Array, "M"]:
        """The learning rates of the optimiser's updates in the policy's next update.

        Args:
          done: how often the policy was updated before.

        Returns:
          [epochs * minibatches], all equal.
        """
        left = 1.0 - done / self.updates if self.anneal else 1.0
        return jnp.full(self.epochs * self.minibatches, self.learning_rate * left)


class Adam(NamedTuple):
    """Parameters as one vector of P numbers, and what Adam remembers of its gradients.

    Attributes:
      vector: the parameters, [P].
      first: mean of the gradients, decayed by 0.9, [P].
      second: mean of their squares, decayed by 0.999, [P].
    """

    vector: Float[Array, "P"]
    first: Float[Array, "P"]
    second: Float[Array, "P"]


class State(NamedTuple):
    """A run after its last update.

    Attributes:
      params: of `ControlPPO.network`.
      optimizer: the same as one vector, and Adam's state.
      position: where the copies of the world stand.
    """

    params: Params
    optimizer: Adam
    position: Position


class Steps(NamedTuple):
    """Steps to learn from; all leaves have the leading axis N.

    Attributes:
      observations: [N, O].
      actions: [N], or [N, D].
      behavior_logp: log-probability of the actions when they were taken, [N].
      advantages: [N]; whitened only in the mini-batches that `train` makes of them.
      value_targets: [N].
      old_values: [N].
    """

    observations: Float[Array, "N O"]
    actions: Num[Array, "N *D"]
    behavior_logp: Float[Array, "N"]
    advantages: Float[Array, "N"]
    value_targets: Float[Array, "N"]
    old_values: Float[Array, "N"]


def train(
    settings: ControlPPO, key: Key[Array, ""], world: World | None = None
) -> tuple[State, Mapping[str, Float[Array, "U"]]]:
    """A whole run; `jit` it with the settings bound, `vmap` it over keys.

    Args:
      settings: sizes and coefficients.
      key: of the run.
      world: one of your own; None makes the one that the settings name.

    Returns:
      (final state, metrics). The metrics are those of each update, [U]: `episodes` that ended
      and `returns`, the sum of their returns; `policy_loss`, `value_loss`, `entropy`, on the
      last mini-batch after its step.
    """
    world = make(settings.world) if world is None else world
    network = settings.network(world)

    def place(purpose, update=0):
        return jax.random.fold_in(jax.random.fold_in(key, purpose), update)

    vector, unravel = ravel_pytree(network.init(place(randomness.INIT)))

    def descend(adam, inputs):
        batch, rate, count = inputs
        params = unravel(adam.vector)
        gradient, _ = jax.grad(loss, has_aux=True)(params, batch, network, settings)
        return _adam_step(adam, ravel_pytree(gradient)[0], rate, count, settings), None

    def update(carry, number):
        position, adam = carry
        params = unravel(adam.vector)
        position, trajectory = unroll(
            world,
            functools.partial(network.act, params),
            network.noise,
            position,
            place(randomness.SAMPLE, number),
            steps=settings.steps,
            unroll=2,
        )
        steps = experience(params, trajectory, network, settings)
        batches = _minibatches(steps, place(randomness.SHUFFLE, number), settings)
        rates = settings.rates(number)
        counts = number * rates.size + 1 + jnp.arange(rates.size)
        adam, _ = jax.lax.scan(descend, adam, (batches, rates, counts))
        # Once an update: at every mini-batch these sums would be a tenth of its time.
        last = jax.tree.map(lambda x: x[-1], batches)
        _, terms = loss(unravel(adam.vector), last, network, settings)
        return (position, adam), _episodes(trajectory) | terms

    position = begin(world, place(randomness.PREPARE), copies=settings.copies)
    start = position, Adam(vector, jnp.zeros_like(vector), jnp.zeros_like(vector))
    (position, adam), metrics = jax.lax.scan(update, start, jnp.arange(settings.updates))
    return State(unravel(adam.vector), adam, position), metrics


def experience(
    params: Params, trajectory: Trajectory, network: ActorCritic, settings: ControlPPO
) -> Steps:
    """What a trajectory teaches: advantages with a bootstrap at time limits, and value targets.

    Returns:
      `Steps` with N = B T, copy after copy.
    """
    values, final_values = value_trajectory(lambda o: network.values(params, o), trajectory)
    observations = trajectory.observations[:, :-1]
    logp, _ = network.statistics(params, observations, trajectory.actions)
    advantage = advantages.gae(
        trajectory.rewards,
        values,
        settings.discount * (1.0 - trajectory.terminated),
        lambda_=settings.lambda_,
        truncated=trajectory.truncated,
        final_values=final_values,
    )
    old = values[:, :-1]
    steps = Steps(observations, trajectory.actions, logp, advantage, advantage + old, old)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), steps)


def loss(
    params: Params, batch: Steps, network: ActorCritic, settings: ControlPPO
) -> tuple[Float[Array, ""], Mapping[str, Float[Array, ""]]]:
    """The loss of a mini-batch whose advantages are whitened already.

        mean(ppo_clip) + value_coefficient mean(value_loss) - entropy_coefficient mean(entropy)

    Returns:
      (loss, its terms).
    """
    logp, entropy = network.statistics(params, batch.observations, batch.actions)
    values = network.values(params, batch.observations)
    # The losses take [B, T]: here every step stands alone.
    policy = losses.ppo_clip(
        logp[:, None],
        batch.behavior_logp[:, None],
        batch.advantages[:, None],
        clip_low=settings.clip,
        clip_high=settings.clip,
    )
    value = losses.value_loss(
        values,
        batch.value_targets,
        old_values=batch.old_values if settings.clip_value else None,
        clip=settings.clip if settings.clip_value else None,
    )
    terms = {"policy_loss": policy.mean(), "value_loss": value.mean(), "entropy": entropy.mean()}
    total = terms["policy_loss"] + settings.value_coefficient * terms["value_loss"]
    return total - settings.entropy_coefficient * terms["entropy"], terms


def _adam_step(
    adam: Adam, gradient: Array, rate: Array, count: Array, settings: ControlPPO
) -> Adam:
    """One step of Adam (Kingma and Ba, 2015) behind a clip of the gradient's norm.

    Equals optax's `clip_by_global_norm` and `adam`. With all parameters in one vector and the
    corrections of the bias as factors it is two operations, and a sixth of an update faster.
    """
    if settings.max_gradient_norm:
        norm = jnp.sqrt(jnp.vdot(gradient, gradient))
        gradient *= settings.max_gradient_norm / jnp.maximum(norm, settings.max_gradient_norm)
    first = 0.9 * adam.first + 0.1 * gradient
    second = 0.999 * adam.second + 0.001 * jnp.square(gradient)
    size = rate / (1.0 - 0.9**count)
    root = jnp.sqrt(second / (1.0 - 0.999**count)) + settings.adam_epsilon
    return Adam(adam.vector - size * first / root, first, second)


def _minibatches(steps: Steps, key: Array, settings: ControlPPO) -> Steps:
    """All mini-batches of all epochs, leaves [epochs * minibatches, N / minibatches, ...]."""
    order = _shuffles(key, settings.epochs, settings.collected)
    # Gathering rows that hold everything of a step takes a tenth of gathering leaf by leaf.
    rows = jax.vmap(lambda step: ravel_pytree(step)[0])(steps)
    unravel = ravel_pytree(jax.tree.map(lambda x: x[0], steps))[1]
    rows = rows[order.reshape(settings.epochs * settings.minibatches, -1)]
    batches = jax.vmap(jax.vmap(unravel))(rows)
    whiten = jax.vmap(lambda x: advantages.whiten(x, jnp.ones_like(x)))
    return batches._replace(advantages=whiten(batches.advantages))


def _shuffles(key: Array, count: int, size: int) -> Int[Array, "count size"]:
    """Random orders of 0..size-1.

    Random numbers are sorted whose lowest bits are replaced by the place, which is then read off
    them: one array takes a seventh of the time of sorting pairs. Equal numbers stay in order.
    """
    place = jnp.arange(size, dtype=jnp.uint32)
    low = jnp.uint32((1 << (size - 1).bit_length()) - 1)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
    drawn = jax.vmap(lambda k: jax.random.bits(k, (size,)))(keys)
    return (jnp.sort(drawn & ~low | place, axis=-1) & low).astype(jnp.int32)


def _episodes(trajectory: Trajectory) -> dict[str, Array]:
    ended = trajectory.terminated | trajectory.truncated
    return {
        "episodes": jnp.sum(ended, dtype=jnp.float32),
        "returns": jnp.sum(jnp.where(ended, trajectory.returns, 0.0)),
    }
