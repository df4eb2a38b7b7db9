"""What a run is made of, once its settings are checked."""

import dataclasses
import pathlib

import jax

from polgrad import data, policies
from polgrad.contract import Algorithm
from polgrad.rewards.compose import RewardSpec
from polgrad.rollouts import Sampling
from polgrad.training.config import TrainConfig
from polgrad.training.runtime import hosts
from polgrad.training.setup import identity, run_files
from polgrad.training.setup.problems import Problems


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a run is made of, checked and ready."""

    config: TrainConfig
    policy: policies.Policy
    tokenizer: data.Tokenizer
    train: Problems
    test: Problems | None
    algorithm: Algorithm
    mesh: jax.sharding.Mesh
    processes: hosts.Processes
    reward_specs: tuple[RewardSpec, ...]
    task_specs: tuple[RewardSpec, ...]
    directory: pathlib.Path
    chosen: str | None = None
    """The settings that were filled in for the kind of policy, as a line for the user."""
    stored: run_files.Stored | None = None
    """The run that goes on; None where it begins."""
    replaced: run_files.Stored | None = None
    """A run in the directory that holds nothing, and whose place this one takes."""
    fingerprints: dict[str, str] = dataclasses.field(default_factory=dict)
    """Of what the run reads from outside."""
    changes: tuple[identity.Change, ...] = ()
    """What is not as it was before; all of it may be so."""

    @property
    def network(self) -> policies.Network:
        """The policy's network."""
        return self.policy.network

    def sampling(self, temperature: float | None = None) -> Sampling:
        """Sampling settings of the run, at another temperature if one is given."""
        rollouts = self.config.rollouts
        return Sampling(
            max_tokens=rollouts.max_tokens,
            temperature=rollouts.temperature if temperature is None else temperature,
            stop_ids=tuple(self.tokenizer.stop_ids),
        )
