"""Temporaries of the compiled update on SmolLM2's shape, with and without chunked log-probabilities.

    python benchmarks/memory.py [--sequences 16] [--length 512] [--micro-batches 1] [--measure]

Nothing is run: the update is lowered for abstract arrays, and the compiler says what it would hold.
With `--measure` one update is run, and the resident memory that it took at its peak, beyond what was
there just before, is set next to the compiled figure (Linux).
"""

import argparse
import dataclasses

import jax
import jax.numpy as jnp
import peers

from polgrad import algorithms, policies
from polgrad.contract import Context
from polgrad.training.optimizers import Optimizer
from polgrad.training.runtime import mesh as mesh_lib
from polgrad.training.scoring import Scoring
from polgrad.training.step import Programs

SMOLLM2 = policies.TransformerConfig(
    vocab_size=49152,
    width=576,
    layers=30,
    heads=9,
    kv_heads=3,
    mlp_width=1536,
    max_length=2048,
    rope_theta=100_000.0,
    norm_epsilon=1e-5,
)


MESH = mesh_lib.make({"data": 1})


def abstract_batch(sequences: int, prompt: int, completion: int) -> dict:
    """The shapes of a GRPO batch."""

    def of(dtype, *shape):
        return jax.ShapeDtypeStruct((sequences, *shape), dtype)

    tokens = {"prompts": of(jnp.int32, prompt), "completions": of(jnp.int32, completion)}
    lengths = {k: of(jnp.int32) for k in ("prompt_lengths", "completion_lengths")}
    names = ("mask", "weights", "behavior_logp", "sampler_logp")
    floats = {k: of(jnp.float32, completion) for k in names}
    return {**tokens, **lengths, **floats, "advantages": of(jnp.float32, 1)}


def make_programs(options, prompt: int, chunk: int | None) -> Programs:
    """The programs of GRPO on SmolLM2's shape, on one device."""
    network = policies.TransformerNetwork(SMOLLM2)
    context = Context(
        group_size=options.sequences,
        max_tokens=options.length - prompt,
        num_prompts=1,
        on_policy=True,
    )
    scoring = dataclasses.replace(Scoring(remat="full"), chunk=chunk)
    algorithm = algorithms.GRPO().build(context)
    return Programs(
        network,
        algorithm,
        Optimizer(learning_rate=1e-3).build(1),
        MESH,
        scoring=scoring,
        micro_batches=options.micro_batches,
    )


def temporaries(options, chunk: int | None) -> int:
    """Bytes of temporaries of one GRPO update."""
    prompt = options.length // 8
    with mesh_lib.entered(MESH):
        programs = make_programs(options, prompt, chunk)
        batch = abstract_batch(options.sequences, prompt, options.length - prompt)
        compiled = programs.lower_update(batch, jax.eval_shape(jax.random.key, 0)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def measure(options) -> tuple[int, int]:
    """Bytes that one update needs beyond its arguments: as compiled, and as seen while it runs."""
    prompt = options.length // 8
    with mesh_lib.entered(MESH):
        programs = make_programs(options, prompt, None)
        shapes = abstract_batch(options.sequences, prompt, options.length - prompt)
        batch = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes)
        batch["prompt_lengths"] *= prompt
        batch["completion_lengths"] *= options.length - prompt
        key = jax.random.key(0)
        compiled = programs.lower_update(batch, key).compile()
        found = compiled.memory_analysis()
        new = found.output_size_in_bytes - found.alias_size_in_bytes
        params = policies.TransformerNetwork(SMOLLM2).init(key)
        state = jax.block_until_ready(programs.first_state(params))
        del params
        before = peers.watch_memory()
        jax.block_until_ready(compiled(state, batch, key))
        return found.temp_size_in_bytes + max(new, 0), peers.resident("VmHWM") - before


def main() -> None:
    """Prints both figures and their ratio."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--sequences", type=int, default=16)
    options.add_argument("--length", type=int, default=512)
    options.add_argument("--micro-batches", type=int, default=1)
    options.add_argument("--measure", action="store_true")
    options = options.parse_args()
    size = f"{options.sequences} sequences of {options.length} tokens"
    size += f" in {options.micro_batches} micro-batches"
    if options.measure:
        compiled, seen = measure(options)
        print(f"one update of {size}")
        print(f"compiled: {compiled / 2**20:,.0f} MiB beyond its arguments")
        print(f"measured: {seen / 2**20:,.0f} MiB at the peak beyond what was there before")
        print(f"ratio: {seen / compiled:.2f}")
        return
    chunked = temporaries(options, None)
    whole = temporaries(options, options.length)
    print(f"{size}, full rematerialisation")
    print(f"temporaries, chunked log-probabilities: {chunked / 2**20:,.0f} MiB")
    print(f"temporaries, all logits at once:        {whole / 2**20:,.0f} MiB")
    print(f"ratio: {chunked / whole:.2f}")


if __name__ == "__main__":
    main()
