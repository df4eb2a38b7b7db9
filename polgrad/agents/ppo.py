"""PPO in a control world: the whole run is one pure function, to jit and to vmap.

    run = functools.partial(train, PPO(total_steps=500_000), gymnax_worlds.make("CartPole-v1"))
    state, metrics = jax.jit(run)(jax.random.key(0))
    states, curves = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 16))

`algorithms.PPO` is the same loss for language policies, in the loop of `training`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jaxtyping import Array, Float, Key, Num

from polgrad import advantages, contract, losses
from polgrad._scalars import in_range, whole_number
from polgrad.environments.gymnax_worlds import World
from polgrad.policies.actor_critic import ActorCritic
from polgrad.rollouts.unroll import begin, unroll

__all__ = ["PPO", "State", "Samples", "train"]


class State(NamedTuple):
    """The policy and the value function, and what Adam remembers of their gradients."""

    network: ActorCritic
    optimizer: optax.OptState


class Samples(NamedTuple):
    """Steps of the world to learn from, in any order; every leaf has the leading axis N."""

    observations: Float[Array, "N O"]
    actions: Num[Array, "N *D"]
    behavior_logp: Float[Array, "N"]  # log-probability of the action when it was taken
    advantages: Float[Array, "N"]
    value_targets: Float[Array, "N"]
    old_values: Float[Array, "N"]


@dataclasses.dataclass(frozen=True)
class PPO(contract.Learner):
    """Proximal policy optimisation; the defaults are the usual ones for CartPole.

    Attributes:
      total_steps: of the world, over all copies; what is left over by whole updates is not taken.
      copies: of the world, that move at once.
      steps: of each copy between updates of the policy.
      epochs: passes over what was collected.
      minibatches: optimiser updates in a pass; must divide copies * steps.
      learning_rate: of Adam, at the start.
      anneal: let the learning rate fall linearly to 0 over the run.
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
        for name in ("total_steps", "copies", "steps", "epochs", "minibatches"):
            whole_number(name, getattr(self, name), low=1)
        for name in ("learning_rate", "max_gradient_norm", "value_coefficient"):
            in_range(name, getattr(self, name), low=0)
        for name in ("discount", "lambda_"):
            in_range(name, getattr(self, name), low=0, high=1)
        in_range("entropy_coefficient", self.entropy_coefficient)
        in_range("adam_epsilon", self.adam_epsilon, low=0, above=True)
        in_range("clip", self.clip, low=0, above=True, high=1)
        product = f"copies * steps = {self.copies} * {self.steps} = {self.collected}"
        if self.collected % self.minibatches:
            raise ValueError(f"minibatches is {self.minibatches}, expected a divisor of {product}")
        if self.minibatches == self.collected:
            # The advantages of a mini-batch are whitened: of one step that is 0.
            raise ValueError(f"minibatches is {self.minibatches}, expected less than {product}")
        if self.total_steps < self.collected:
            raise ValueError(f"total_steps is {self.total_steps}, expected at least {product}")

    @property
    def collected(self) -> int:
        """Steps of the world between updates of the policy."""
        return self.copies * self.steps

    @property
    def updates(self) -> int:
        """How often the policy is updated in a run."""
        return self.total_steps // self.collected

    @property
    def wants(self) -> contract.Steps:
        """What `update` is given."""
        return contract.Steps(steps=self.steps, copies=self.copies)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Adam, behind a clip of the gradient's norm."""
        rate = self.learning_rate
        if self.anneal:
            rate = optax.linear_schedule(rate, 0.0, self.updates * self.epochs * self.minibatches)
        clip = optax.clip_by_global_norm(self.max_gradient_norm or jnp.inf)
        return optax.chain(clip, optax.adam(rate, eps=self.adam_epsilon))

    def init(self, key: Key[Array, ""], spec: World) -> State:
        """The state before the first step, for a world of these sizes."""
        network = ActorCritic(
            key, spec.observation_size, spec.actions, spec.action_size, self.hidden, self.activation
        )
        return State(network, self.optimizer.init(network))

    def act(
        self, state: State, memory: Any, observation: Array, key: Array, *, explore: bool
    ) -> tuple[Any, Array, Mapping[str, Array]]:
        """One action for each copy of the world; PPO has no memory."""
        network = state.network
        action = network.sample(observation, key) if explore else network.mode(observation)
        return memory, action, {}

    def update(
        self, state: State, batch: Mapping[str, Array], key: Key[Array, ""]
    ) -> tuple[State, Mapping[str, Float[Array, ""]]]:
        """Several passes over a batch with the fields of a `Trajectory`, in mini-batches."""
        steps = self.experience(state.network, batch)

        def epoch(state, key):
            order = jax.random.permutation(key, self.collected).reshape(self.minibatches, -1)
            return jax.lax.scan(minibatch, state, jax.tree.map(lambda x: x[order], steps))

        def minibatch(state, steps):
            gradient, terms = jax.grad(self.loss, has_aux=True)(state.network, steps)
            change, optimizer = self.optimizer.update(gradient, state.optimizer)
            return State(optax.apply_updates(state.network, change), optimizer), terms

        state, terms = jax.lax.scan(epoch, state, jax.random.split(key, self.epochs))
        return state, jax.tree.map(jnp.mean, terms)

    def experience(self, network: ActorCritic, batch: Mapping[str, Array]) -> Samples:
        """The steps of a batch, with their advantages and value targets, copy after copy."""
        observations, actions = batch["observations"], batch["actions"]
        behavior_logp, _ = network.statistics(observations, actions)
        values = network.values(observations)
        # An episode that a time limit cut off ends in a state that still has a value.
        final_values = network.values(batch["final_observations"])
        advantage = advantages.gae(
            batch["rewards"],
            jnp.append(values, final_values[:, -1:], axis=1),
            self.discount * (1.0 - batch["terminated"]),
            lambda_=self.lambda_,
            truncated=batch["truncated"],
            final_values=final_values,
        )
        steps = Samples(observations, actions, behavior_logp, advantage, advantage + values, values)
        return jax.tree.map(lambda x: rearrange(x, "copies steps ... -> (copies steps) ..."), steps)

    def loss(
        self, network: ActorCritic, steps: Samples
    ) -> tuple[Float[Array, ""], Mapping[str, Float[Array, ""]]]:
        """The loss of a mini-batch, and its terms.

        mean(ppo_clip) + value_coefficient mean(value_loss) - entropy_coefficient mean(entropy)
        """
        logp, entropy = network.statistics(steps.observations, steps.actions)
        whitened = advantages.whiten(steps.advantages, jnp.ones_like(steps.advantages))
        # `ppo_clip` takes [B, T]. The steps are in no order, so here T is 1.
        policy_loss = losses.ppo_clip(
            logp[:, None],
            steps.behavior_logp[:, None],
            whitened[:, None],
            clip_low=self.clip,
            clip_high=self.clip,
        ).mean()
        value_loss = losses.value_loss(
            network.values(steps.observations),
            steps.value_targets,
            old_values=steps.old_values if self.clip_value else None,
            clip=self.clip if self.clip_value else None,
        ).mean()
        entropy = entropy.mean()
        loss = (
            policy_loss + self.value_coefficient * value_loss - self.entropy_coefficient * entropy
        )
        return loss, {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}


def train(
    agent: PPO, world: World, key: Key[Array, ""]
) -> tuple[State, Mapping[str, Float[Array, "U"]]]:
    """A whole run; `jit` it with the agent and the world bound, `vmap` it over keys.

    Args:
      agent: its settings.
      world: such as `gymnax_worlds.make("CartPole-v1")`.
      key: of the run.

    Returns:
      (final state, metrics). The metrics are those of each update, [U]: `episodes` that ended
      and `returns`, the sum of their returns; `policy_loss`, `value_loss` and `entropy`, means
      over the mini-batches.
    """
    init_key, world_key, run_key = jax.random.split(key, 3)

    def update(carry, key):
        state, position = carry
        act_key, update_key = jax.random.split(key)

        def act(observations, key):
            return agent.act(state, (), observations, key, explore=True)[1]

        position, trajectory = unroll(world, act, position, act_key, steps=agent.steps)
        state, metrics = agent.update(state, trajectory._asdict(), update_key)
        ended = trajectory.terminated | trajectory.truncated
        episodes = ended.sum(dtype=jnp.float32)
        returns = jnp.where(ended, trajectory.returns, 0.0).sum()
        return (state, position), {"episodes": episodes, "returns": returns, **metrics}

    start = agent.init(init_key, world), begin(world, world_key, copies=agent.copies)
    (state, _), metrics = jax.lax.scan(update, start, jax.random.split(run_key, agent.updates))
    return state, metrics
