"""GRPO steps a second on a tiny Llama, ours over Tunix's GRPOLearner; the goal is 3.

    python benchmarks/tunix_grpo.py [--steps 12] [--repetitions 3]

The task of `trl_grpo.py`: the same weights, prompts and reward, 16 prompts x 8 samples of 16 tokens
a step, float32, one update a batch, no reference policy (beta 0), no rematerialisation, no
checkpoints, no logging. Tunix samples with its vanilla engine, which shares the trainer's weights,
and compiles prefill, decoding and update. What it does more and no setting turns off: it prefills a
prompt once for each of its samples (ours: once a group), and its update applies the head to the
prompts' tokens too.

A turn is a run from the start; its time is the median step's, the first three left out: for Tunix
the time between two calls of the reward, once a step. Tunix is installed in an environment of its
own at first use.
"""

import json
import pathlib
import statistics
import time

import peers
import trl_grpo

VERSIONS = (
    "google-tunix==0.1.7",
    "qwix==0.1.8",
    "jax==0.10.1",
    "jaxlib==0.10.1",
    "flax==0.12.8",
    "optax==0.2.8",
    "orbax-checkpoint==0.12.8",
    "numpy==2.4.6",
    "transformers==5.12.1",
)


def read_policy(folder: pathlib.Path, mesh):
    """The policy of `make_task` as a model of Tunix."""
    import jax.numpy as jnp
    from tunix.models import llama3

    shape = json.loads((folder / "config.json").read_text())
    config = llama3.model.ModelConfig(
        num_layers=shape["num_hidden_layers"],
        vocab_size=shape["vocab_size"],
        embed_dim=shape["hidden_size"],
        hidden_dim=shape["intermediate_size"],
        num_heads=shape["num_attention_heads"],
        head_dim=shape["hidden_size"] // shape["num_attention_heads"],
        num_kv_heads=shape["num_key_value_heads"],
        rope_theta=10_000,
        norm_eps=shape["rms_norm_eps"],
        weight_tying=shape["tie_word_embeddings"],
    )
    return llama3.params.create_model_from_safe_tensors(
        str(folder), config, mesh, dtype=jnp.float32
    )


def make_cluster(folder: pathlib.Path, steps: int):
    """Policy, sampler and trainer on one device, with the optimiser that ours has."""
    import jax
    import optax
    import transformers
    from tunix.rl import rl_cluster
    from tunix.rl.rollout import base_rollout

    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    adamw = optax.adamw(1e-5, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)
    training = rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.chain(optax.clip_by_global_norm(1.0), adamw),
        eval_every_n_steps=10**6,
        max_steps=steps,
        mini_batch_size=trl_grpo.PROMPTS,
        train_micro_batch_size=trl_grpo.PROMPTS,
    )
    rollout = base_rollout.RolloutConfig(
        max_tokens_to_generate=trl_grpo.TOKENS,
        max_prompt_length=trl_grpo.WIDTH,
        kv_cache_size=trl_grpo.WIDTH + trl_grpo.TOKENS,
        temperature=1.0,
        top_p=1.0,  # the full distribution; without it, Tunix takes the most probable token
        top_k=None,
    )
    return rl_cluster.RLCluster(
        actor=read_policy(folder, mesh),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh),
            rollout_engine="vanilla",
            training_config=training,
            rollout_config=rollout,
        ),
    )


def theirs(options) -> None:
    """Tunix's learner; its reward tells when each step's samples are there."""
    import importlib.metadata

    import jax
    import numpy as np
    from tunix.rl.grpo import grpo_learner

    folder = pathlib.Path(options.folder)
    lines = [json.loads(line) for line in (folder / "prompts.jsonl").open()]
    batch = {"prompts": np.array([line["prompt"] for line in lines])}

    def work():
        calls = []

        def distinct(completions, **_):
            calls.append(time.perf_counter())
            return [len(set(completion.split())) / 16 for completion in completions]

        learner = grpo_learner.GRPOLearner(
            rl_cluster=make_cluster(folder / "model", options.steps),
            algo_config=grpo_learner.GRPOConfig(
                num_generations=trl_grpo.GROUP, num_iterations=1, beta=0.0, epsilon=0.2
            ),
            reward_fns=distinct,
        )
        learner.train([batch] * options.steps)
        steps = [after - before for before, after in zip(calls, calls[1:])]
        return [statistics.median(steps[trl_grpo.WARM_UP - 1 :])]

    version = importlib.metadata.version("google-tunix")
    peers.serve(f"tunix {version}, jax {jax.__version__}", work)


def main() -> None:
    """The comparison with Tunix."""

    def environment():
        return peers.environment("tunix", *VERSIONS, free="all")

    trl_grpo.compare(__doc__.splitlines()[0], __file__, theirs, environment)


if __name__ == "__main__":
    main()
