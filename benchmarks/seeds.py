"""What 16 seeds in one program cost next to one seed, for the small world of every experiment.

    python benchmarks/seeds.py [NAME ...] [--smoke]

Runs each experiment's baseline arm at full size (`--smoke`: at small size), compiled before the
clock starts, one seed and 16 seeds in turn, twice, and prints the faster of each and their ratio.
"""

import argparse
import dataclasses
import time

import jax
import numpy as np

from polgrad import experiments
from polgrad.experiments.running import keys


def compiled(arm, settings, seeds: int):
    """The arm as `polgrad run` compiles it."""
    program = jax.jit(jax.vmap(lambda key: dict(arm(key, settings))))
    return program.lower(keys(seeds)).compile()


def seconds(program, seeds: int) -> float:
    """One run of all seeds."""
    start = time.perf_counter()
    jax.block_until_ready(program(keys(seeds)))
    return time.perf_counter() - start


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="experiments; all when left out")
    parser.add_argument("--smoke", action="store_true", help="at small size")
    options = parser.parse_args()
    print(f"{'experiment':16} {'arm':24} {'1 seed':>9} {'16 seeds':>9} {'ratio':>6}")
    for name in options.names or experiments.names():
        found = experiments.find(name).experiment
        arm = found.arms[found.baseline]
        if isinstance(arm, experiments.HostArm):
            continue
        changes = found.smoke if options.smoke else {}
        settings = dataclasses.replace(found.settings, **changes)
        one, many = compiled(arm, settings, 1), compiled(arm, settings, 16)
        times = np.array([(seconds(one, 1), seconds(many, 16)) for _ in range(2)]).min(0)
        print(
            f"{name:16} {found.baseline:24} {times[0]:8.2f}s {times[1]:8.2f}s "
            f"{times[1] / times[0]:6.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
