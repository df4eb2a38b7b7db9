"""Sampling SmolLM2-135M: tokens a second, ours over `generate` of transformers.

    python benchmarks/hf_generate.py [--prompts 32] [--tokens 64] [--repetitions 3]

Both sample at temperature 1 from the full distribution, float32, two threads, and never stop early.
The peer is installed in an environment of its own at first use.
"""

import argparse
import tempfile
import time

import peers

WIDTH = 16  # tokens of a prompt


def prompts(count: int) -> list[list[int]]:
    """Token ids that both sides continue."""
    return [
        [(7919 * (i + 1) * (j + 3)) % 40_000 + 1000 for j in range(WIDTH)] for i in range(count)
    ]


def ours(options) -> None:
    """The sampler of polgrad."""
    import jax
    import numpy as np

    import polgrad
    from polgrad import policies, rollouts

    policy = policies.load(options.model)
    params = jax.device_put(policy.params)
    tokens = np.array(prompts(options.prompts), np.int32)
    lengths = np.full(len(tokens), WIDTH, np.int32)
    ids, keys = np.arange(len(tokens), dtype=np.uint32), iter(range(10**9))
    sampling = rollouts.Sampling(max_tokens=options.tokens)

    def work():
        began = time.perf_counter()
        key = jax.random.key(next(keys))
        rollout = rollouts.generate(
            policy.network, params, tokens, lengths, ids, key, sampling=sampling
        )
        made = int(rollout.completion_lengths.sum())
        return time.perf_counter() - began, made

    peers.serve(f"polgrad {polgrad.__version__}, jax {jax.__version__}", work)


def theirs(options) -> None:
    """`generate` of transformers."""
    import torch
    import transformers

    torch.set_num_threads(2)
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    model.eval()
    tokens = torch.tensor(prompts(options.prompts))
    mask = torch.ones_like(tokens)
    settings = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "use_cache": True}
    settings |= {"min_new_tokens": options.tokens, "max_new_tokens": options.tokens}

    def work():
        began = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(tokens, attention_mask=mask, pad_token_id=2, **settings)
        return time.perf_counter() - began, (out.shape[1] - WIDTH) * out.shape[0]

    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    peers.serve(f"{versions}, {torch.get_num_threads()} threads", work)


def main() -> None:
    """Prints tokens a second of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return {"ours": ours, "theirs": theirs}[options.side](options)
    compare(options)


def compare(options) -> None:
    """Exports the weights for both, and lets them take turns."""
    import sys

    from polgrad import policies

    python = peers.environment("transformers", "torch", "transformers")
    with tempfile.TemporaryDirectory() as folder:
        policies.export(folder, policies.load("smollm2-135m-instruct"))
        sizes = ("--prompts", str(options.prompts), "--tokens", str(options.tokens))
        arguments = (__file__, "--model", folder, *sizes, "--side")
        sides = {
            "ours": peers.Side(sys.executable, *arguments, "ours"),
            "theirs": peers.Side(python, *arguments, "theirs"),
        }
        turns = peers.take_turns(sides, options.repetitions)
    rates = {name: [made / seconds for seconds, made in t] for name, t in turns.items()}
    for name, found in rates.items():
        each = ", ".join(f"{rate:.0f}" for rate in found)
        print(f"{name}: {each} tokens/s")
    ratio = peers.median([[r] for r in rates["ours"]]) / peers.median(
        [[r] for r in rates["theirs"]]
    )
    print(f"ours over theirs: {ratio:.2f}")


if __name__ == "__main__":
    main()
