"""PPO on CartPole-v1 with PureJaxRL's settings: steps of the world a second, one seed and many.

    python benchmarks/purejaxrl_ppo.py [--purejaxrl DIRECTORY] [--steps 500000] [--seeds 16]

DIRECTORY is a clone of github.com/luchris429/purejaxrl, which is run as it is, in an environment of
its own that is made at first use. Without it ours runs alone. Both are compiled before the clock
starts. The return is that of all episodes that ended in the last tenth of the run.

Our many seeds are split over as many devices as there are cores: on a CPU a program of this size runs
in one thread, whatever `vmap` adds to it. PureJaxRL runs one seed: under `vmap` its program may never
end on a CPU of few cores, for the batched QR decompositions of its initialisation wait for one
another's threads.
"""

import argparse
import contextlib
import functools
import math
import os
import statistics
import sys
import time
from importlib import metadata

import peers

NEEDED = ("jax", "flax", "optax", "gymnax<1", "distrax", "brax", "navix")


def ours(options) -> None:
    """`agents.ppo.train`."""
    import jax

    import polgrad
    from polgrad.agents.ppo import PPO, train
    from polgrad.environments.gymnax_worlds import make

    run = functools.partial(train, PPO(total_steps=options.steps), make("CartPole-v1"))

    def episodes(out):
        return out[1]["returns"], out[1]["episodes"]

    name = f"polgrad {polgrad.__version__}, jax {jax.__version__}"
    serve(name, run, episodes, options, (1, options.seeds))


def theirs(options) -> None:
    """`make_train` of PureJaxRL."""
    sys.path.insert(0, f"{options.purejaxrl}/purejaxrl")
    import jax

    # What its imports print must not be taken for the line that describes this side.
    with contextlib.redirect_stdout(sys.stderr):
        import ppo

    train = ppo.make_train(
        {
            "LR": 2.5e-4,
            "NUM_ENVS": 4,
            "NUM_STEPS": 128,
            "TOTAL_TIMESTEPS": options.steps,
            "UPDATE_EPOCHS": 4,
            "NUM_MINIBATCHES": 4,
            "GAMMA": 0.99,
            "GAE_LAMBDA": 0.95,
            "CLIP_EPS": 0.2,
            "ENT_COEF": 0.01,
            "VF_COEF": 0.5,
            "MAX_GRAD_NORM": 0.5,
            "ACTIVATION": "tanh",
            "ENV_NAME": "CartPole-v1",
            "ANNEAL_LR": True,
            "DEBUG": False,
        }
    )

    def episodes(out):
        ended = out["metrics"]["returned_episode"].sum((-1, -2))
        returns = out["metrics"]["returned_episode_returns"] * out["metrics"]["returned_episode"]
        return returns.sum((-1, -2)), ended

    name = f"PureJaxRL, jax {jax.__version__}, gymnax {metadata.version('gymnax')}"
    serve(name, train, episodes, options, (1,))


def serve(name, train, episodes, options, sizes: tuple[int, ...]) -> None:
    """One turn is a run of each of these numbers of seeds."""
    import jax

    keys = jax.random.split(jax.random.key(0), options.seeds)
    count = math.gcd(jax.device_count(), options.seeds)
    mesh = jax.make_mesh((count,), ("seed",), (jax.sharding.AxisType.Auto,))
    spread = jax.device_put(keys, jax.NamedSharding(mesh, jax.P("seed")))
    programs, seconds = [], []
    for size in sizes:
        run, argument = (train, keys[0]) if size == 1 else (jax.vmap(train), spread)
        began = time.perf_counter()
        programs.append(jax.jit(run).lower(argument).compile())
        seconds.append(time.perf_counter() - began)
    turn = iter(range(10**9))

    def last_return(out) -> float:
        returns, ended = episodes(out)
        tail = max(1, returns.shape[-1] // 10)
        return float(returns[..., -tail:].sum() / ended[..., -tail:].sum())

    def work():
        numbers = []
        for program, argument in zip(programs, (keys[next(turn) % options.seeds], spread)):
            began = time.perf_counter()
            out = jax.block_until_ready(program(argument))
            numbers += [time.perf_counter() - began, last_return(out)]
        return numbers

    compiled = " and ".join(f"{s:.1f} s" for s in seconds)
    peers.serve(f"{name}; {count} device(s), compiled in {compiled}", work)


def report(name: str, turns: list[list[float]], options) -> None:
    """Steps a second and returns of every turn."""
    for index, seeds in list(enumerate((1, options.seeds)))[: len(turns[0]) // 2]:
        rates = ", ".join(f"{options.steps * seeds / t[2 * index] / 1e3:.0f}" for t in turns)
        mean = statistics.mean(t[2 * index + 1] for t in turns)
        print(f"{name}, {seeds} seed(s): {rates} thousand steps/s; final return {mean:.1f}")
    if len(turns[0]) > 2:
        many = statistics.median(t[2] / t[0] for t in turns)
        print(f"{name}: {options.seeds} seeds take {many:.1f} times as long as one")


def main() -> None:
    """Prints steps a second of both, their ratio, and what many seeds cost next to one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--purejaxrl", metavar="DIRECTORY", help="a clone of PureJaxRL")
    parser.add_argument("--steps", type=int, default=500_000)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side == "ours":
        devices = f"--xla_force_host_platform_device_count={os.cpu_count()}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {devices}"
    if options.side:
        return {"ours": ours, "theirs": theirs}[options.side](options)
    compare(options)


def compare(options) -> None:
    """Lets both take turns."""
    arguments = [__file__, "--steps", str(options.steps), "--seeds", str(options.seeds)]
    sides = {"ours": peers.Side(sys.executable, *arguments, "--side", "ours")}
    if options.purejaxrl:
        python = peers.environment("purejaxrl", *NEEDED, free=("gymnax",))
        arguments += ["--purejaxrl", options.purejaxrl, "--side", "theirs"]
        sides["theirs"] = peers.Side(python, *arguments)
    else:
        print("ours alone; for the peer: git clone https://github.com/luchris429/purejaxrl")
        print(f"           and again with: {sys.argv[0]} --purejaxrl purejaxrl")
    turns = peers.take_turns(sides, options.repetitions)
    for name, found in turns.items():
        report(name, found, options)
    if options.purejaxrl:
        pairs = zip(turns["ours"], turns["theirs"])
        ratio = statistics.median(theirs[0] / ours[0] for ours, theirs in pairs)
        print(f"ours over theirs, one seed: {ratio:.2f}, median of turns side by side")


if __name__ == "__main__":
    main()
