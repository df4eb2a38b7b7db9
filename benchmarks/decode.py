"""The sampler alone: tokens a second next to what reading the weights costs, and slot refill.

    python benchmarks/decode.py [--shape smollm2-135m] [--tokens 32] [--repetitions 5]
    python benchmarks/decode.py --only refill

First the rate: SmolLM2-135M's shape with random weights, batches of 1, 8 and 32, float32 and int8
weights. A decoding step reads every matrix of the layers and the head once, and the whole cache; the
bytes of those over a step's time are the achieved rate, next to that of an XLA sum over 1 GiB in the
same run. A batch of 1 decodes in 2 slots, the fewest there are. The goal is half of the read rate.
On CPU, XLA widens int8 weights to float32 once, before the loop, and so reads them four times as long:
their share says how far that is from reading the bytes once.

A step's time is that of a call less that of the same program on absent prompts, whose loop ends
before its first step: prefill and the rounding of weights are in both.

Then slot refill: completions with a geometric tail, once as one call that refills its slots and once
in calls of as many samples as there are slots. The embedding is 0, so every token is equally likely,
and a share of the vocabulary stops a completion. Both make the same tokens.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from polgrad import policies, rollouts
from polgrad.rehearsal import shapes
from polgrad.rollouts import decoding

WIDTH = 16  # tokens of a prompt
BATCHES = (1, 8, 32)


def seconds(function, *arguments) -> float:
    """Time of one call, until its result is there."""
    began = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - began


def make_policy(config: policies.TransformerConfig, dtype=jnp.float32):
    """A network of a shape, and random parameters."""
    network = policies.TransformerNetwork(config)
    make = jax.jit(lambda key: jax.tree.map(lambda leaf: leaf.astype(dtype), network.init(key)))
    return network, make(jax.random.key(0))


def step_bytes(network, params, rows: int, length: int, *, weights: str, dtype) -> tuple[int, int]:
    """What one decoding step reads: bytes of weights, and of a cache of `rows` times `length`.

    The embedding is not among them: a step reads one of its rows for each slot.
    """

    def made(params):
        sampler = decoding.make_sampler(
            network,
            params,
            None,
            reference_weight=0.0,
            sampling=rollouts.Sampling(max_tokens=1),
            compute_dtype=dtype,
            weights=weights,
        )
        decoder = sampler.decoders[0]
        return (decoder.layers, decoder.norm, sampler.heads), sampler.caches(rows, length)

    def size(tree):
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    return tuple(map(size, jax.eval_shape(made, params)))


class Decode:
    """Sampling of `rows` prompts by `tokens` tokens each, none of which stops.

    Args:
      network: a `policies.Network`.
      params: its parameters.
      rows: prompts.
      tokens: new tokens of each.
      weights: as `rollouts.generate` takes them.
      dtype: of activations, cache and head products.
    """

    def __init__(self, network, params, rows: int, tokens: int, *, weights="full", dtype):
        self.rows, self.steps = rows, tokens - 1  # prefill draws the first token
        prompts = np.arange(rows * WIDTH, dtype=np.int32).reshape(rows, WIDTH)
        ids, key = np.arange(rows, dtype=np.uint32), jax.random.key(1)
        self.bytes = sum(
            step_bytes(network, params, max(rows, 2), WIDTH + tokens, weights=weights, dtype=dtype)
        )

        def call(length):
            return rollouts.generate(
                network,
                params,
                prompts,
                np.full(rows, length, np.int32),
                ids,
                key,
                sampling=rollouts.Sampling(max_tokens=tokens),
                compute_dtype=dtype,
                weights=weights,
            )

        self._call = call
        made = np.asarray(call(WIDTH).completion_lengths)
        if (made != tokens).any():
            raise RuntimeError(f"completions have lengths {made}; expected {tokens} each")

    def seconds(self) -> float:
        """Time of one decoding step, measured once."""
        return (seconds(self._call, WIDTH) - seconds(self._call, 0)) / self.steps


class Read:
    """An XLA sum over `entries` float32 numbers, more than any cache holds."""

    def __init__(self, entries: int = 2**28):
        self._numbers, self._sum = jnp.ones(entries), jax.jit(jnp.sum)
        self.rate()

    def rate(self) -> float:
        """Bytes a second, measured once."""
        return self._numbers.nbytes / seconds(self._sum, self._numbers)


def rates(options) -> None:
    """Prints a line for each batch and kind of weights; both kinds and the sum take turns."""
    network, params = make_policy(shapes.find(options.shape))
    read = Read()
    print(f"{'batch':>5} {'weights':>8} {'ms a step':>10} {'tokens/s':>9} {'GB/s':>6} ", end="")
    print(f"{'sum GB/s':>8} {'share':>6}")
    for rows in BATCHES:
        kinds = {
            weights: Decode(
                network, params, rows, options.tokens, weights=weights, dtype=jnp.float32
            )
            for weights in ("full", "int8")
        }
        steps, reads = {weights: [] for weights in kinds}, []
        for _ in range(options.repetitions):
            for weights, kind in kinds.items():
                steps[weights].append(kind.seconds())
            reads.append(read.rate())
        step = {weights: statistics.median(found) for weights, found in steps.items()}
        whole = statistics.median(reads)
        for weights, kind in kinds.items():
            rate = kind.bytes / step[weights]
            print(
                f"{rows:5} {weights:>8} {1e3 * step[weights]:10.1f} {rows / step[weights]:9.1f} "
                f"{rate / 1e9:6.1f} {whole / 1e9:8.1f} {rate / whole:6.2f}",
                flush=True,
            )
        ratio = step["full"] / step["int8"]
        print(f"{rows:5} tokens a second, int8 over float32: {ratio:.2f}", flush=True)


def decoding_steps(lengths: np.ndarray, slots: int) -> int:
    """Steps until the last of a queue of completions is done, each slot taking the next when free.

    Args:
      lengths: tokens of each completion; prefill draws the first.
      slots: rows decoded together.
    """
    free = np.zeros(slots, int)
    for length in lengths[lengths > 1]:
        free[free.argmin()] += length - 1
    return int(free.max())


def refill(options) -> None:
    """Prints how much longer the same completions take without refill."""
    network, params = make_policy(shapes.find(options.shape))
    params["embed"] = jnp.zeros_like(params["embed"])  # tied: logits are 0
    samples, slots = options.samples, options.slots
    stops = round(network.vocab_size / options.mean)
    sampling = rollouts.Sampling(max_tokens=8 * options.mean, stop_ids=tuple(range(stops)))
    prompts = np.arange(samples * WIDTH, dtype=np.int32).reshape(samples, WIDTH)
    lengths, ids = np.full(samples, WIDTH, np.int32), np.arange(samples, dtype=np.uint32)

    def call(rows):
        rollout = rollouts.generate(
            network,
            params,
            prompts[rows],
            lengths[rows],
            ids[rows],
            jax.random.key(2),
            sampling=sampling,
            slots=slots,
        )
        return np.asarray(rollout.completion_lengths)

    batches = [slice(first, first + slots) for first in range(0, samples, slots)]

    def once(parts):
        began = time.perf_counter()
        made = np.concatenate([call(part) for part in parts])
        return time.perf_counter() - began, made

    ways = {"refilled": [slice(None)], "in batches": batches}
    made = {name: once(parts)[1] for name, parts in ways.items()}
    if (made["refilled"] != made["in batches"]).any():
        raise RuntimeError("the two ways made completions of different lengths")
    tail = made["refilled"]
    print(
        f"{samples} completions in {slots} slots: mean {tail.mean():.1f}, "
        f"median {np.median(tail):.0f}, longest {tail.max()} tokens"
    )
    steps = {
        name: sum(decoding_steps(tail[part], slots) for part in parts)
        for name, parts in ways.items()
    }
    times = {name: [] for name in ways}
    for _ in range(options.repetitions):
        for name, parts in ways.items():
            times[name].append(once(parts)[0])
    for name in ways:
        each = ", ".join(f"{taken:.2f}" for taken in times[name])
        occupied = (tail - 1).sum() / (slots * steps[name])
        print(f"{name}: {each} s, {steps[name]} steps, {occupied:.0%} of slots in use")
    ratio = statistics.median(times["in batches"]) / statistics.median(times["refilled"])
    print(f"tokens a second, refilled over in batches: {ratio:.2f}")
    print(
        f"decoding steps, in batches over refilled: {steps['in batches'] / steps['refilled']:.2f}"
    )


def main() -> None:
    """Runs both parts, or one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--mean", type=int, default=16, help="tokens of a completion, on average")
    parser.add_argument("--only", choices=("rates", "refill"))
    options = parser.parse_args()
    if options.tokens < 2:
        parser.error(f"--tokens is {options.tokens}; expected at least 2: prefill draws the first")
    if options.mean < 2:
        parser.error(f"--mean is {options.mean}; expected at least 2")
    if options.slots < 2 or options.samples % options.slots:
        parser.error(
            f"--slots is {options.slots}; expected at least 2, a divisor of {options.samples}"
        )
    print(f"{options.shape}, {jax.devices()[0].device_kind}, jax {jax.__version__}")
    for name, part in (("rates", rates), ("refill", refill)):
        if options.only in (None, name):
            part(options)


if __name__ == "__main__":
    main()
