"""A policy-gradient update of SmolLM2-135M: seconds and peak memory, ours over PyTorch's.

    python benchmarks/torch_update.py [--sequences 16] [--length 128] [--repetitions 3]

REINFORCE on the same tokens, float32, two threads: log-probabilities of the completions times their
advantages, gradients, the global norm clipped, AdamW. Ours runs without rematerialisation and with
it, PyTorch's without and with checkpointed layers (the model of transformers). Memory is the peak
beyond what parameters and optimiser hold. The losses of the first update must agree. The peer is
installed in an environment of its own at first use. Linux only, for its account of memory.
"""

import argparse
import sys
import tempfile
import time

import peers

PROMPT, RATE = 16, 1e-5
SIDES = ("ours", "ours, rematerialised", "torch", "torch, checkpointed")


def tokens(options) -> list[list[int]]:
    """Token ids of prompt and completion, for both."""
    return [
        [(7919 * (i + 1) * (j + 3)) % 40_000 + 1000 for j in range(options.length)]
        for i in range(options.sequences)
    ]


def advantages(options) -> list[float]:
    """One number a sequence."""
    return [1.0 if i % 2 else -0.5 for i in range(options.sequences)]


def ours(options) -> None:
    """The compiled update of `training`."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import polgrad
    from polgrad import algorithms, policies
    from polgrad.contract import Context
    from polgrad.training.optimizers import Optimizer
    from polgrad.training.runtime import host_memory
    from polgrad.training.runtime import mesh as mesh_lib
    from polgrad.training.scoring import Scoring
    from polgrad.training.step import Programs

    host_memory.keep()  # as `polgrad train` does
    policy = policies.load(options.model)
    count, made = options.sequences, options.length - PROMPT
    context = Context(group_size=1, max_tokens=made, num_prompts=count, on_policy=True)
    scoring = Scoring(remat="full" if options.side == SIDES[1] else "none")
    programs = Programs(
        policy.network,
        algorithms.Reinforce(baseline="none").build(context),
        Optimizer(learning_rate=RATE).build(1),
        mesh_lib.make({"data": 1}),
        scoring=scoring,
    )
    both = np.array(tokens(options), np.int32)
    batch = {
        "prompts": both[:, :PROMPT],
        "prompt_lengths": np.full(count, PROMPT, np.int32),
        "completions": both[:, PROMPT:],
        "completion_lengths": np.full(count, made, np.int32),
        "mask": np.ones((count, made), np.float32),
        "weights": np.full((count, made), 1 / (count * made), np.float32),
        "advantages": np.array(advantages(options), np.float32)[:, None],
    }
    batch, key = jax.tree.map(jnp.asarray, batch), jax.random.key(0)
    with mesh_lib.entered(programs.mesh):
        update = programs.lower_update(batch, key).compile()
        states = [jax.block_until_ready(programs.first_state(policy.params))]
    policy = policy._replace(params=None)
    before = peers.watch_memory()

    def work():
        began = time.perf_counter()
        state, metrics = jax.block_until_ready(update(states.pop(), batch, key))
        states.append(state)
        seconds = time.perf_counter() - began
        return seconds, peers.resident("VmHWM") - before, metrics["loss"]

    peers.serve(f"polgrad {polgrad.__version__}, jax {jax.__version__}", work)


def theirs(options) -> None:
    """The same in PyTorch."""
    import torch
    import transformers

    torch.set_num_threads(2)
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    model.train()
    if options.side == SIDES[3]:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    whole, weight = torch.tensor(tokens(options)), torch.tensor(advantages(options))[:, None]

    def update(ids, rate):
        optimizer.param_groups[0]["lr"] = rate
        logits = model(ids, use_cache=False).logits[:, PROMPT - 1 : -1]
        surprise = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), ids[:, PROMPT:].reshape(-1), reduction="none"
        )
        loss = (weight[: len(ids)] * surprise.view(len(ids), -1)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    update(whole[:1, : PROMPT + 1], 0.0)  # makes the moments, which are no temporaries
    for moments in optimizer.state.values():
        for value in moments.values():
            value.zero_()
    before = peers.watch_memory()

    def work():
        began = time.perf_counter()
        loss = update(whole, RATE)
        return time.perf_counter() - began, peers.resident("VmHWM") - before, loss

    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    peers.serve(f"{versions}, {torch.get_num_threads()} threads", work)


def main() -> None:
    """Prints seconds, memory and losses of all four, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sequences < 1 or options.length <= PROMPT:
        parser.error(f"expected at least 1 sequence of more than {PROMPT} tokens")
    if options.side:
        return (ours if options.side in SIDES[:2] else theirs)(options)
    compare(options)


def compare(options) -> None:
    """Exports the weights for all, and lets them take turns."""
    from polgrad import policies

    python = peers.environment("transformers", "torch", "transformers")
    with tempfile.TemporaryDirectory() as folder:
        policies.export(folder, policies.load("smollm2-135m-instruct"))
        sizes = ("--sequences", str(options.sequences), "--length", str(options.length))
        arguments = (__file__, "--model", folder, *sizes, "--side")
        pythons = dict(zip(SIDES, (sys.executable, sys.executable, python, python)))
        sides = {name: peers.Side(p, *arguments, name) for name, p in pythons.items()}
        turns = peers.take_turns(sides, options.repetitions)
    for name, found in turns.items():
        each = ", ".join(f"{turn[0]:.2f}" for turn in found)
        print(f"{name}: {each} s, {found[-1][1] / 2**30:.2f} GiB, loss {found[0][2]:.4f}")
    losses = [found[0][2] for found in turns.values()]
    if max(losses) - min(losses) > 1e-3 * abs(losses[0]):
        sys.exit("the losses differ: the sides do not compute the same")
    base = turns["torch"]
    for name in SIDES[:2]:
        speed = peers.median(base) / peers.median(turns[name])
        memory = turns[name][-1][1] / base[-1][1]
        print(f"{name}, over torch: {speed:.2f} of the speed, {memory:.2f} of the memory")


if __name__ == "__main__":
    main()
