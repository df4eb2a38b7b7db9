"""One NVIDIA GPU: decoding next to the memory's bandwidth, and model-FLOPs utilisation of an update.

    python benchmarks/gpu.py [--shape qwen2.5-0.5b qwen2.5-1.5b] [--weights full int8]
    python benchmarks/gpu.py --shape tiny         checks the command, on CPU in float32

The shapes of Qwen2.5 0.5B and 1.5B with random weights. Decoding: weights, cache and products in
bfloat16, batches of 1, 8, 32 and 128; the bytes that a step reads (all matrices of the layers, the
head, the whole cache) over its time, as a share of the card's bandwidth. A batch of 1 decodes in 2
slots, the fewest there are.

The update is GRPO's as a run compiles it: products in bfloat16, parameters, moments and gradients in
float32, activations rematerialised. Its model FLOPs over its time are a share of the card's dense
bfloat16 peak. With N the entries of the layers' matrices, H those of the head, and prompts and
completions together L tokens long:

    6 N L + 6 H completion + 6 layers heads head_dim L^2        a sequence

The last term is causal attention, half of all pairs. What rematerialisation computes again is not
counted. The goals are 0.6 of the bandwidth and 0.5 of the peak. Compiled for CPU, the update of 0.5B
needs 15 GiB and that of 1.5B 34 GiB: on a small card, name the shape or split with --micro-batches.

Peaks are NVIDIA's figures for the cards listed below; on any other, and for `tiny`, they are those
of a copy and a matrix product in the same run. What `tiny` reads stays in a CPU's cache: its shares
say nothing, only that the command works.
"""

import argparse
import statistics
import time
from typing import NamedTuple

import decode
import jax
import jax.numpy as jnp

from polgrad import algorithms, masking, policies
from polgrad.contract import Context
from polgrad.rehearsal import shapes
from polgrad.training.optimizers import Optimizer
from polgrad.training.runtime import mesh as mesh_lib
from polgrad.training.scoring import Scoring
from polgrad.training.step import Programs

QWEN = ("qwen2.5-0.5b", "qwen2.5-1.5b")
BATCHES = (1, 8, 32, 128)
GROUP = 8
TINY = policies.TransformerConfig(
    vocab_size=512, width=64, layers=2, heads=4, kv_heads=2, mlp_width=192, max_length=4096
)


class Peak(NamedTuple):
    """What a card can do at most."""

    bandwidth: float  # bytes a second
    flops: float  # dense bfloat16, summed in float32


# By the `device_kind` that JAX tells. Source: NVIDIA's data sheets; where they give the figure with
# sparsity, half of it.
PEAKS = {
    "NVIDIA H100 80GB HBM3": Peak(3.35e12, 989e12),
    "NVIDIA H100 PCIe": Peak(2.0e12, 756e12),
    "NVIDIA H200": Peak(4.8e12, 989e12),
    "NVIDIA A100-SXM4-40GB": Peak(1.555e12, 312e12),
    "NVIDIA A100-PCIE-40GB": Peak(1.555e12, 312e12),
    "NVIDIA A100-SXM4-80GB": Peak(2.039e12, 312e12),
    "NVIDIA A100 80GB PCIe": Peak(1.935e12, 312e12),
    "NVIDIA L4": Peak(300e9, 121e12),
    "NVIDIA GeForce RTX 4090": Peak(1.008e12, 165.2e12),
}


def compute_dtype(device):
    """bfloat16; float32 on CPU, where XLA does not run products of bfloat16 summed in float32."""
    return jnp.float32 if device.platform == "cpu" else jnp.bfloat16


def measured_peak(*, entries: int, width: int, dtype, repetitions: int = 9) -> Peak:
    """Of a copy of `entries` float32 numbers, and a product of matrices `width` wide."""
    numbers, matrix = jnp.ones(entries), jnp.ones((width, width), dtype)
    copy = jax.jit(lambda x: x + 1)
    product = jax.jit(lambda x: jnp.dot(x, x, preferred_element_type=jnp.float32))

    def shortest(function, x):
        return min(decode.seconds(function, x) for _ in range(repetitions + 1))

    return Peak(
        bandwidth=2 * numbers.nbytes / shortest(copy, numbers),
        flops=2 * width**3 / shortest(product, matrix),
    )


def find_peak(device, *, tiny: bool) -> tuple[Peak, str]:
    """The device's peak, and where it is from."""
    if not tiny and device.device_kind in PEAKS:
        return PEAKS[device.device_kind], "published"
    size = {"entries": 2**24, "width": 512} if tiny else {"entries": 2**28, "width": 8192}
    return measured_peak(**size, dtype=compute_dtype(device)), "measured"


def find_config(shape: str) -> policies.TransformerConfig:
    """The configuration of a shape; a ValueError for one that is not known."""
    return TINY if shape == "tiny" else shapes.find(shape)


def model_flops(config, sequences: int, prompt: int, completion: int) -> float:
    """Operations of forward and backward pass that the model itself needs (module docstring)."""
    c, length = config, prompt + completion
    attention = c.width * c.head_dim * (2 * c.heads + 2 * c.kv_heads)
    layer = attention + 3 * c.width * c.mlp_width
    products = c.layers * layer * length + c.vocab_size * c.width * completion
    pairs = c.layers * c.heads * c.head_dim * length**2
    return 6.0 * sequences * (products + pairs)


def make_batch(config, sequences: int, prompt: int, completion: int) -> dict:
    """A GRPO batch of random tokens, none of them padding."""
    keys = iter(jax.random.split(jax.random.key(0), 3))

    def tokens(length):
        shape = (sequences, length)
        return jax.random.randint(next(keys), shape, 0, config.vocab_size, jnp.int32)

    mask = jnp.ones((sequences, completion))
    return {
        "prompts": tokens(prompt),
        "completions": tokens(completion),
        "prompt_lengths": jnp.full(sequences, prompt, jnp.int32),
        "completion_lengths": jnp.full(sequences, completion, jnp.int32),
        "mask": mask,
        "weights": masking.weights(mask, mode="token"),
        "behavior_logp": jnp.zeros_like(mask),
        "sampler_logp": jnp.zeros_like(mask),
        "advantages": jax.random.normal(next(keys), (sequences, 1)),
    }


def update_seconds(network, dtype, options) -> float:
    """Median time of an update, the first two left out."""
    sequences, prompt, completion = options.sequences, options.prompt, options.completion
    context = Context(
        group_size=GROUP,
        max_tokens=completion,
        num_prompts=sequences // GROUP,
        on_policy=True,
    )
    mesh = mesh_lib.make({"data": 1})
    scoring = Scoring(compute_dtype=dtype, remat=options.remat, attention=options.attention)
    with mesh_lib.entered(mesh):
        programs = Programs(
            network,
            algorithms.GRPO().build(context),
            Optimizer(learning_rate=1e-5).build(10**6),
            mesh,
            scoring=scoring,
            micro_batches=options.micro_batches,
        )
        batch, key = make_batch(network.config, sequences, prompt, completion), jax.random.key(1)
        state = programs.first_state(programs.place_params(network.init(jax.random.key(0))))
        times = []
        for _ in range(options.repetitions + 2):
            began = time.perf_counter()
            state, metrics = jax.block_until_ready(programs.update(state, batch, key))
            times.append(time.perf_counter() - began)
    if int(state.skipped):
        raise RuntimeError(f"{int(state.skipped)} updates were skipped; expected none: {metrics}")
    return statistics.median(times[2:])


def decoding(config, dtype, peak: Peak, options) -> None:
    """Prints a line for each batch."""
    network, params = decode.make_policy(config, dtype)
    for weights in options.weights:
        for rows in options.batches:
            sampler = decode.Decode(
                network, params, rows, options.tokens, weights=weights, dtype=dtype
            )
            step = statistics.median(sampler.seconds() for _ in range(options.repetitions))
            rate = sampler.bytes / step
            print(
                f"  decode, batch {rows:4}, {weights} weights: {1e3 * step:8.2f} ms a step, "
                f"{rows / step:9.0f} tokens/s, {rate / 1e9:7.1f} GB/s, "
                f"{rate / peak.bandwidth:.2f} of the bandwidth",
                flush=True,
            )


def updating(config, dtype, peak: Peak, options) -> None:
    """Prints a line for the update."""
    taken = update_seconds(policies.TransformerNetwork(config), dtype, options)
    tokens = options.sequences * (options.prompt + options.completion)
    flops = model_flops(config, options.sequences, options.prompt, options.completion)
    print(
        f"  update, {options.sequences} sequences of {options.prompt} + {options.completion} "
        f"tokens, remat {options.remat}, attention {options.attention}: {1e3 * taken:.1f} ms, {tokens / taken:.0f} tokens/s, "
        f"{flops / taken / 1e12:.2f} model TFLOP/s, {flops / taken / peak.flops:.2f} of the peak",
        flush=True,
    )


def parse() -> argparse.Namespace:
    """The options, checked against the device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", default=QWEN, choices=(*shapes.SHAPES, "tiny"))
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--weights", nargs="+", default=("full",), choices=("full", "int8"))
    parser.add_argument("--tokens", type=int, default=128, help="decoded of each sample")
    parser.add_argument("--sequences", type=int, default=16, help="of an update")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of an update's prompts")
    parser.add_argument("--completion", type=int, default=896)
    parser.add_argument("--micro-batches", type=int, default=1)
    parser.add_argument("--attention", choices=("auto", "xla", "cudnn"), default="auto")
    parser.add_argument("--remat", choices=("none", "dots", "full"), default="full")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    device = jax.devices()[0]
    if device.platform != "gpu" and set(options.shape) != {"tiny"}:
        parser.error(
            f"the device is {device.device_kind} ({device.platform}); expected an NVIDIA GPU with "
            "jax[cuda] installed, or --shape tiny, which checks the command on any device"
        )
    if options.sequences % (GROUP * options.micro_batches):
        parser.error(
            f"--sequences is {options.sequences}; expected a multiple of {GROUP} samples a prompt "
            f"times {options.micro_batches} micro-batches"
        )
    if options.tokens < 2:
        parser.error(f"--tokens is {options.tokens}; expected at least 2: prefill draws the first")
    return options


def main() -> None:
    """Prints the device, its peaks, and the figures of each shape."""
    options = parse()
    device = jax.devices()[0]
    peak, source = find_peak(device, tiny=set(options.shape) == {"tiny"})
    dtype = compute_dtype(device)
    print(f"{device.device_kind}, jax {jax.__version__}, {jnp.dtype(dtype).name}")
    print(f"{source}: {peak.bandwidth / 1e9:.0f} GB/s, {peak.flops / 1e12:.2f} TFLOP/s")
    for shape in options.shape:
        config = find_config(shape)
        print(shape, flush=True)
        decoding(config, dtype, peak, options)
        updating(config, dtype, peak, options)


if __name__ == "__main__":
    main()
