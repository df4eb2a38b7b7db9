"""What a run is about to do, in a few lines, before it does it."""

import math

import jax

from polgrad.training.building import Parts


def plan(parts: Parts) -> list[str]:
    """The plan that is printed before the first step."""
    config, algorithm = parts.config, parts.algorithm
    rollouts, update = config.rollouts, config.update
    params = jax.eval_shape(parts.network.init, jax.random.key(0))
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    shape = ", ".join(f"{axis}={size}" for axis, size in parts.mesh.shape.items())
    updates = update.epochs * update.mini_batches
    held = 4 * count
    state = jax.eval_shape(config.optimizer.build(1, parts.network.logical_axes()).init, params)
    moments = sum(x.dtype.itemsize * math.prod(x.shape) for x in jax.tree.leaves(state))
    reference = "reference" in algorithm.requires or config.track_kl
    lines = [
        f"policy {config.policy}: {count:,} parameters; mesh {shape}",
        f"task {config.task}: {len(parts.train.source):,} training problems, "
        f"{len(parts.test.source) if parts.test else 0:,} held out; "
        f"prompts of at most {parts.train.tokens.shape[1]} tokens",
    ]
    if algorithm.source == "rollouts":
        samples = rollouts.prompts * rollouts.group_size
        lines.append(
            f"{config.algorithm}: {rollouts.prompts} prompts x {rollouts.group_size} samples = "
            f"{samples} sequences a step, at most {rollouts.max_tokens} tokens each"
        )
        # Prefill, decoding and drawing are one program; greedy evaluation is another.
        programs = 2 + 1 + (2 if algorithm.opponent is not None else 0)
    else:
        lines.append(f"{config.algorithm}: {rollouts.prompts} {algorithm.source} a step")
        programs = 1
    programs += 1 + bool(reference) + ("values" in algorithm.requires)
    policy = "on-policy" if updates == 1 else f"{updates - 1} of them off-policy"
    lines.append(
        f"{config.steps} steps x {updates} updates ({policy}), each in {update.micro_batches} "
        f"micro-batches; about {programs} compiled programs"
    )
    lines.append(
        f"bytes held: parameters {_size(held)}, {config.optimizer.method} {_size(moments)}"
        + (f", reference {_size(held)}" if reference else "")
    )
    return lines


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            return f"{number:.3g} {unit}"
        number /= 1024
