"""How the cost of a GRPO step grows: with sequences, length, group and the policy's size.

    python benchmarks/cost.py [--repetitions 5]

From one base (64 sequences of 16 + 48 tokens in groups of 8, 4 layers 128 wide, 1,024 words) one
quantity at a time is doubled. Sampling and update are compiled before the clock starts; of each the
median is printed, and the exponent of its growth from the smallest to the largest.
"""

import argparse
import dataclasses
import math
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from polgrad import algorithms, policies, rollouts
from polgrad.contract import Context
from polgrad.training.optimizers import Optimizer
from polgrad.training.runtime import host_memory
from polgrad.training.runtime import mesh as mesh_lib
from polgrad.training.scoring import Scoring
from polgrad.training.step import Programs

PROMPT, WORDS = 16, 1024


@dataclasses.dataclass(frozen=True)
class Size:
    """A step's sizes."""

    sequences: int = 64
    tokens: int = 48
    group: int = 8
    width: int = 128
    layers: int = 4


AXES = {
    "sequences": (32, 64, 128, 256),
    "tokens": (24, 48, 96, 192),
    "group": (2, 4, 8, 16, 32),
    "width": (64, 128, 256, 512),
    "layers": (2, 4, 8, 16),
}


def make_step(size: Size):
    """Sampling and update as functions without arguments that wait for their results."""
    network = policies.TransformerNetwork(
        policies.TransformerConfig(
            vocab_size=WORDS, width=size.width, layers=size.layers, heads=4, max_length=512
        )
    )
    mesh, key = mesh_lib.make({"data": 1}), jax.random.key(0)
    context = Context(size.group, size.tokens, size.sequences // size.group, on_policy=True)
    programs = Programs(
        network,
        algorithms.GRPO().build(context),
        Optimizer(learning_rate=1e-3).build(1),
        mesh,
        scoring=Scoring(),
        samples=size.group,
    )
    states = [programs.first_state(network.init(key))]
    count = size.sequences // size.group
    prompts = np.random.default_rng(0).integers(0, WORDS, (count, PROMPT)).astype(np.int32)

    def sample():
        return jax.block_until_ready(
            rollouts.generate(
                network,
                states[0].params,
                prompts,
                np.full(count, PROMPT, np.int32),
                np.arange(count, dtype=np.uint32),
                key,
                sampling=rollouts.Sampling(max_tokens=size.tokens),
                group_size=size.group,
            )
        )

    experience = sample()._asdict()
    experience |= {
        "rewards": jnp.arange(size.sequences) % 3.0,
        "valid": jnp.ones(size.sequences, bool),
    }
    _, batch, _ = programs.prepare(states[0].algorithm, experience, key)

    def update():
        with mesh_lib.entered(mesh):
            states.append(jax.block_until_ready(programs.update(states.pop(), batch, key))[0])

    return sample, update


def measure(size: Size, repetitions: int) -> tuple[float, float]:
    """Median seconds of sampling and of the update."""
    found = []
    for work in make_step(size):
        work()
        times = []
        for _ in range(repetitions):
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
        found.append(statistics.median(times))
    return tuple(found)


def main() -> None:
    """Prints a table for each quantity."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    host_memory.keep()  # as `polgrad train` does
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}; base {Size()}")
    for axis, values in AXES.items():
        print(f"\n| {axis} | sampling | update |\n|---|---|---|")
        found = []
        for value in values:
            found.append(measure(dataclasses.replace(Size(), **{axis: value}), options.repetitions))
            sample, update = (f"{1e3 * seconds:.1f} ms" for seconds in found[-1])
            print(f"| {value} | {sample} | {update} |", flush=True)
        doublings = math.log(values[-1] / values[0])
        powers = (math.log(last / first) / doublings for first, last in zip(found[0], found[-1]))
        print("exponents: {:.2f}, {:.2f}".format(*powers))


if __name__ == "__main__":
    main()
