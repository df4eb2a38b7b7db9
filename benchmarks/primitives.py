"""What a primitive costs next to reading its inputs and writing its gradients once.

    python benchmarks/primitives.py [NAME ...] [--repeats N] [--topology v5e:2x2]

Each function of arrays, its value and gradient in one jitted program, on float32 arguments of
[512, 8192] (those with one axis: 2^22; those that compare all of a list with all of it: [524288, 8],
marked *). Subtracted: an empty jitted call. Divided by: the bytes of its arguments and gradients
(for what has no gradient: of its results) over the memory bandwidth, which is that of a copy of
256 MiB in the same run: more than any cache holds. Memory that was freed is kept, as by polgrad's
commands; where a block needs fresh pages nevertheless, both sides pay for it, and the copy is at 4 to 8
instead of 30 GB/s. Sorts are listed apart.

With --topology nothing runs: each program is compiled for a TPU (polgrad[tpu-aot]), and the ratio is
that of the bytes which it moves in the chip's memory to those of its arguments and gradients.
"""

import argparse
import os
import statistics
import sys
import time
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from polgrad.conformance import edges, inputs
from polgrad.conformance.catalogue import Primitive
from polgrad.training.runtime import host_memory

ENTRIES = 2**22
ROOMS = (
    "masking",
    "selection",
    "diagnostics",
    "divergences",
    "advantages",
    "losses",
    "reward_models",
    "ratios",
    "schedules",
    "distributions",
    "data",
)
DIFFERENTIABLE = ("losses", "reward_models", "data")
# Products of all rows with all others are no matter of bytes; targets are made once.
LEFT_OUT = (
    "reward_models.info_nce",
    "reward_models.swav",
    "reward_models.sinkhorn",
)


def axes(primitive: Primitive) -> tuple[set[str], list[list[str]]]:
    """The axis that counts rows, and the named ones of each argument besides it."""
    shapes = [text.replace("*", "").split() for text in inputs.dims(primitive.function).values()]
    names = [name for shape in shapes for name in shape]
    rows = {"...", "B", "X"} & set(names) or set(names[:1])
    return rows, [[n.partition("+")[0] for n in shape if n not in rows] for shape in shapes]


def sizes(primitive: Primitive, widest: int) -> dict[str, int]:
    """Sizes of the axes for which an argument has about ENTRIES entries."""
    rows, named = axes(primitive)
    longest = max(widest ** len(shape) for shape in named)
    wide = {name: widest for shape in named for name in shape}
    return wide | dict.fromkeys(rows, max(ENTRIES // longest, 1))


def widths(primitive: Primitive) -> tuple[int, ...]:
    """Of a list: 8192, or 8 where an argument has more than one axis of that kind."""
    return (8,) if max(map(len, axes(primitive)[1])) > 1 else (8192, 8)


def seconds(function, *arguments, repeats: int) -> float:
    """Median time of a call, compiled before."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def program(primitive: Primitive, settings: dict, learned: tuple[str, ...]):
    """Value and gradients in what is learned; without any, the results."""

    def total(numbers, others):
        result = primitive.function(**(others | numbers), **settings)
        floats = [x for x in jax.tree.leaves(result) if jnp.issubdtype(x.dtype, jnp.floating)]
        return sum(jnp.sum(x) for x in floats)

    def plain(numbers, others):
        return primitive.function(**(others | numbers), **settings)

    return jax.jit(jax.value_and_grad(total) if learned else plain)


class Cost(NamedTuple):
    """What was measured of one primitive, or what a chip's published bandwidth makes of it."""

    ratio: float
    milliseconds: float
    rate: float  # gigabytes a second
    sorts: bool
    name: str


class Case(NamedTuple):
    """A compiled primitive with its arguments and the bytes that it has to move at least."""

    compiled: jax.stages.Compiled
    arguments: tuple
    size: int
    name: str


def prepare(primitive: Primitive, device: jax.Device | None = None) -> Case:
    """Compiles for a device, on narrow lists if it needs memory for all pairs of a list."""
    learned = edges.examine(primitive).reached if primitive.room in DIFFERENTIABLE else ()
    for widest in widths(primitive):
        example = inputs.draw(primitive, np.random.default_rng(0), sizes=sizes(primitive, widest))
        call = program(primitive, example.settings, learned)
        numbers = {n: x for n, x in example.arrays.items() if n in learned}
        others = {n: x for n, x in example.arrays.items() if n not in learned}
        lowered = call.lower(*on(device, (numbers, others)))
        given = sum(x.nbytes for x in example.arrays.values())
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError:  # larger than the chip
            if widest == 8:
                raise
            continue
        if compiled.memory_analysis().temp_size_in_bytes < 50 * given:
            break
    written = numbers if learned else jax.eval_shape(call, numbers, others)
    size = given + sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(written))
    return Case(compiled, (numbers, others), size, primitive.name + " *" * (widest == 8))


def on(device, arguments):
    """Arguments as they are, or as arrays of a described device."""
    if device is None:
        return arguments
    sharding = jax.sharding.SingleDeviceSharding(device)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.asarray(x).dtype, sharding=sharding), arguments
    )


def measure(case: Case, bandwidth: float, empty: float, repeats: int) -> Cost:
    """Times a primitive."""
    arguments = jax.tree.map(jnp.asarray, case.arguments)
    taken = max(seconds(case.compiled, *arguments, repeats=repeats) - empty, 1e-9)
    return cost(case, taken, bandwidth)


def cost(case: Case, taken: float, bandwidth: float) -> Cost:
    """What so many seconds are next to moving what has to be moved."""
    sorts = " sort(" in case.compiled.as_text()
    ratio = taken * bandwidth / case.size
    return Cost(ratio, 1e3 * taken, case.size / taken / 1e9, sorts, case.name)


def rehearse(case: Case, bandwidth: float) -> Cost:
    """The time that a chip's memory takes, from the program's text."""
    from polgrad.rehearsal import costs as program_costs

    return cost(case, program_costs.measure(case.compiled.as_text()).bytes / bandwidth, bandwidth)


def main() -> None:
    """Prints a line for each primitive, the most expensive first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="beginnings of names; all when left out")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--topology", help="of TPUs to compile for, such as v5e:2x2")
    options = parser.parse_args()
    chosen = [
        p
        for p in edges.examinable()
        if p.room in ROOMS and not p.name.startswith(LEFT_OUT)
        if not options.names or p.name.startswith(tuple(options.names))
    ]
    if options.topology:
        rehearse_all(chosen, options.topology)
    else:
        measure_all(chosen, options.repeats)


def rehearse_all(chosen: list[Primitive], topology: str) -> None:
    """Compiles for a TPU that need not be there."""
    from polgrad.rehearsal import compiling

    where = compiling.describe(topology)
    print(f"{where.chip.name}: {where.chip.bandwidth / 1e9:.0f} GB/s", flush=True)
    report(lambda p: rehearse(prepare(p, where.devices[0]), where.chip.bandwidth), chosen)


def measure_all(chosen: list[Primitive], repeats: int) -> None:
    """Times on this machine."""
    host_memory.keep()
    x = jnp.ones(2**26)
    copy = jax.jit(lambda x: x + 1.0)
    empty = seconds(jax.jit(lambda x: x[0]), x, repeats=100)
    seconds(copy, x, repeats=9)  # the first calls still get pages that the system has to clear
    bandwidth = 2 * x.nbytes / (seconds(copy, x, repeats=9) - empty)
    device = jax.devices()[0].device_kind
    print(f"{device}: copy {bandwidth / 1e9:.1f} GB/s, empty {1e6 * empty:.0f} us", flush=True)
    report(lambda p: measure(prepare(p), bandwidth, empty, repeats), chosen)
    again = 2 * x.nbytes / (seconds(copy, x, repeats=9) - empty)
    print(f"\ncopy at the end {again / 1e9:.1f} GB/s")


def report(examine, chosen: list[Primitive]) -> None:
    """Examines each primitive; a line for each, the most expensive first."""
    found = []
    for primitive in chosen:
        found.append(examine(primitive))
        print(found[-1].name, f"{found[-1].ratio:.2f}", file=sys.stderr, flush=True)
    for title, sorts in (("without a sort", False), ("with a sort", True)):
        print(f"\n{title:44} {'ratio':>6} {'ms':>8} {'GB/s':>6}")
        for c in sorted((c for c in found if c.sorts == sorts), reverse=True):
            print(f"{c.name:44} {c.ratio:6.2f} {c.milliseconds:8.2f} {c.rate:6.1f}")


if __name__ == "__main__":
    main()
