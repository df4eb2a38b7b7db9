"""Temporaries of the compiled update on SmolLM2's shape, with and without chunked log-probabilities.

    python benchmarks/memory.py [--sequences 16] [--length 512]

Nothing is run: the update is lowered for abstract arrays, and the compiler says what it would hold.
"""

import argparse
import dataclasses

import jax
import jax.numpy as jnp

from polgrad import algorithms, policies
from polgrad.training import mesh as mesh_lib
from polgrad.training.optimizers import Optimizer
from polgrad.training.programs import Programs
from polgrad.training.scoring import Scoring
from polgrad.training.types import Context

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


def abstract_batch(sequences: int, prompt: int, completion: int) -> dict:
    """The shapes of a GRPO batch."""

    def of(dtype, *shape):
        return jax.ShapeDtypeStruct((sequences, *shape), dtype)

    tokens = {"prompts": of(jnp.int32, prompt), "completions": of(jnp.int32, completion)}
    lengths = {k: of(jnp.int32) for k in ("prompt_lengths", "completion_lengths")}
    names = ("mask", "weights", "behavior_logp", "sampler_logp")
    floats = {k: of(jnp.float32, completion) for k in names}
    return {**tokens, **lengths, **floats, "advantages": of(jnp.float32, 1)}


def temporaries(sequences: int, length: int, chunk: int | None) -> int:
    """Bytes of temporaries of one GRPO update."""
    network = policies.TransformerNetwork(SMOLLM2)
    prompt = length // 8
    context = Context(
        group_size=sequences, max_tokens=length - prompt, num_prompts=1, on_policy=True
    )
    mesh = mesh_lib.make({"data": 1})
    scoring = dataclasses.replace(Scoring(remat="full"), chunk=chunk)
    algorithm = algorithms.GRPO().build(context)
    with mesh_lib.entered(mesh):
        programs = Programs(network, algorithm, Optimizer().build(1), mesh, scoring=scoring)
        batch = abstract_batch(sequences, prompt, length - prompt)
        compiled = programs.lower_update(batch, jax.eval_shape(jax.random.key, 0)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def main() -> None:
    """Prints both figures and their ratio."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--sequences", type=int, default=16)
    options.add_argument("--length", type=int, default=512)
    options = options.parse_args()
    chunked = temporaries(options.sequences, options.length, None)
    whole = temporaries(options.sequences, options.length, options.length)
    print(f"{options.sequences} sequences of {options.length} tokens, full rematerialisation")
    print(f"temporaries, chunked log-probabilities: {chunked / 2**20:,.0f} MiB")
    print(f"temporaries, all logits at once:        {whole / 2**20:,.0f} MiB")
    print(f"ratio: {chunked / whole:.2f}")


if __name__ == "__main__":
    main()
