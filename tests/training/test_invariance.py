"""Equal gradients whatever the split, the devices, the padding, the packing or the order.

On stored rollouts and in float64, around a base case: one micro-batch, one device, unpacked.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import lists
import numpy as np
import pytest
from stored import GROUP, PROMPTS, T, V, stored_rollouts

from polgrad import algorithms, policies
from polgrad.contract import Context, Pair
from polgrad.training.runtime import mesh as mesh_lib
from polgrad.training.scoring import SEQUENCE_KEYS, Scoring, one_prompt, sharing, with_packing
from polgrad.training.step import make_gradient

KEY = jax.random.key(7)

# Settings under which every branch of an algorithm has something to do on so few tokens.
SETTINGS = {
    "grpo": {"kl": algorithms.KL(0.1), "entropy": algorithms.Entropy(0.01), "dual_clip": 3.0},
    "dapo": {"overlong": algorithms.OverlongPenalty(3), "mask_truncated": True},
    "clip_cov": {"fraction": 0.1, "low": -9.0, "high": 9.0},
    "kl_cov": {"fraction": 0.1},
    "ppo": {"kl": algorithms.RewardKL(0.1), "entropy": algorithms.Entropy(0.01)},
    "f_dpg": {"target": algorithms.Tilt(beta=2.0)},
    "nash_md": {"tau": 0.1},
    "disco": {"tau": 0.5, "bound": algorithms.KLBound(beta=10.0)},
}
# A row of its batches is a list, as no named algorithm has it yet.
OTHERS = {"ranked": lists.Ranked}
# Nash-MD and strictly on-policy runs take their ratio from the current policy.
ON_POLICY = {"nash_md"}
# Their rewards are right or wrong.
BINARY = {"disco", "disco_b", "nft"}
# Everything at once proves each; alone they tell which one is broken, and all algorithms have all of
# them in `make test-slow`.
VARIANTS = ("all", "mesh222")
KINDS = {"aot", "dpo", "f_dpg", "grpo", "kl_cov", "ppo", "ranked"}  # one of each kind of batch
ON_A_MESH = {"grpo"}
ALONE = ("micro4", "padding", "packing", "permutation")


def variants(names):
    """Every name in every variant."""
    slow = [(name, v) for name in names for v in ALONE]
    slow += [(name, "all") for name in names if name not in KINDS]
    slow += [(name, "mesh222") for name in names if name not in ON_A_MESH]
    quick = [(name, v) for name in names for v in VARIANTS if (name, v) not in slow]
    return quick + [pytest.param(*pair, marks=pytest.mark.slow) for pair in slow]


def as_pairs(experience, answers):
    """Neighbouring rows as chosen and rejected, and as a third answer where there is one."""
    keep = (*SEQUENCE_KEYS, "reference_logp")
    rows = np.arange(8 * answers).reshape(8, answers) % len(experience["mask"])
    return {k: experience[k][rows] for k in keep}


def make_algorithm(name):
    context = Context(GROUP, T, PROMPTS, on_policy=name in ON_POLICY)
    found = OTHERS.get(name) or algorithms.find(name)
    return found(**SETTINGS.get(name, {})).build(context)


# Windows shorter than the sequences, and a cap that bends the logits.
GEMMA = {
    "activation": "gelu_tanh",
    "embedding_scale": True,
    "centered_norms": True,
    "post_norms": True,
    "attention_cap": 2.0,
    "logit_cap": 1.5,
    "window": 3,
    "global_every": 2,
    "local_rope_theta": 100.0,
}


def widen(batch):
    """More padding on the right of prompts and completions."""
    extra = {"prompts": 2}
    tokens = ("completions", "mask", "behavior_logp", "reference_logp", "sampler_logp", "weights")
    tokens += ("previous_logp",)
    tokens += ("advantages", "value_targets", "old_values")
    out = {}
    for name, x in batch.items():
        grow = extra.get(name, 3 if name in tokens and x.shape[-1] == T and x.ndim > 1 else 0)
        out[name] = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, grow)])
    return out


def permuted(batch):
    order = np.random.default_rng(3).permutation(batch["weights"].shape[0])
    return jax.tree.map(lambda x: x[order], batch)


@functools.cache
def network_and_params(kind, values):
    if kind == "linear":
        network = policies.LinearNetwork(V, 8, value_head=values)
    else:
        config = policies.TransformerConfig(
            vocab_size=V, width=8, layers=2, heads=2, kv_heads=1, max_length=32, value_head=values
        )
        if kind == "gemma":
            config = dataclasses.replace(config, **GEMMA)
        network = policies.TransformerNetwork(config)
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), network.init(jax.random.key(1)))
    # A value head starts at zero; its gradient into the trunk should not.
    return network, jax.tree.map(
        lambda x: x + 0.1 * np.sin(np.arange(x.size)).reshape(x.shape), params
    )


def gradient(kind, name, variant):
    """The gradient of an algorithm on the stored rollouts, in one of the variants."""
    algorithm = make_algorithm(name)
    network, params = network_and_params(kind, algorithm.needs.values)
    experience = jax.tree.map(jnp.asarray, stored_rollouts())
    experience["previous_logp"] = experience["behavior_logp"]
    if name in BINARY:
        experience["rewards"] = jnp.round(experience["rewards"])
    if not algorithm.samples and isinstance(algorithm.unit, Pair):
        experience = as_pairs(experience, len(algorithm.unit.roles))
    _, batch, _ = algorithm.prepare(algorithm.init(KEY), experience, KEY)
    every = variant == "all"
    if every or variant == "permutation":
        batch = permuted(batch)
    if every or variant == "padding":
        batch = widen(batch)
    micro = {"micro4": 4, "all": 2, "shared": 2}.get(variant, 1)
    rows, samples = None, 1
    if variant == "shared":
        samples = sharing(network, batch, GROUP, micro, 2)
        assert samples > 1 and one_prompt(batch, samples)
    if every or variant == "packing":
        batch, rows = with_packing(batch, micro)
        assert rows[0] < batch["prompt_lengths"].size, "nothing was packed"
    scoring = Scoring(
        compute_dtype=jnp.float64,
        values=algorithm.needs.values,
        entropy_gradient=algorithm.needs.entropy,
        packed_rows=rows,
        samples=samples,
    )
    function = make_gradient(network, algorithm, scoring, micro_batches=micro)
    sizes = {
        "all": {"data": 2},
        "shared": {"data": 2},
        "mesh222": {"data": 2, "fsdp": 2, "tensor": 2},
    }
    mesh = mesh_lib.make(sizes.get(variant, {"data": 1}))
    with mesh_lib.entered(mesh):
        abstract = jax.eval_shape(lambda: params)
        params = jax.tree.map(
            jax.device_put, params, mesh_lib.parameter_shardings(network, abstract, mesh)
        )
        _, grads, metrics = jax.jit(function)(params, mesh_lib.place_batch(batch, mesh), KEY)
    return jax.device_get(grads), jax.device_get(metrics)


def assert_same_gradient(kind, name, variant):
    with jax.enable_x64(True):
        base, base_metrics = reference(kind, name)
        other, metrics = gradient(kind, name, variant)
        scale = max(np.abs(x).max() for x in jax.tree.leaves(base))
        assert scale > 1e-4, "a gradient of zero would prove nothing"
        for a, b in zip(jax.tree.leaves(base), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-9 * max(scale, 1.0), rtol=0)
        for metric, value in base_metrics.items():
            np.testing.assert_allclose(metrics[metric], value, atol=1e-6, rtol=1e-6)


@functools.cache
def reference(kind, name):
    return gradient(kind, name, "base")


@pytest.mark.parametrize(("name", "variant"), variants(sorted({*algorithms.NAMES, *OTHERS})))
def test_gradient_is_the_same_on_the_bigram_policy(name, variant):
    assert_same_gradient("linear", name, variant)


PPO = [pytest.param("ppo", v, marks=pytest.mark.slow) for v in (*VARIANTS, *ALONE)]


@pytest.mark.parametrize(("name", "variant"), [*variants(["grpo"]), *PPO])
def test_gradient_is_the_same_on_the_transformer(name, variant):
    assert_same_gradient("transformer", name, variant)


@pytest.mark.parametrize(
    "name", ["grpo", *(pytest.param(n, marks=pytest.mark.slow) for n in ("dpo", "ppo", "disco"))]
)
def test_gradient_is_the_same_where_prompts_are_read_once(name):
    assert_same_gradient("transformer", name, "shared")


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["packing", "shared", "all", "mesh222"])
def test_gradient_is_the_same_with_windows_and_caps(variant):
    assert_same_gradient("gemma", "grpo", variant)


def shapes(*lead, tokens=T):
    return {"prompt_lengths": np.zeros(lead), "completions": np.zeros((*lead, tokens))}


def test_what_prompts_are_shared_by():
    network, _ = network_and_params("transformer", False)
    assert sharing(network, shapes(16), 4, 1, 2) == 4
    assert sharing(network, shapes(16), 4, 2, 2) == 2
    assert sharing(network, shapes(16), 4, 8, 1) == 1  # a micro-batch has one of a group's samples
    assert sharing(network, shapes(12), 4, 1, 2) == 1  # three prompts on two devices
    assert sharing(network, shapes(8, 2), 1, 2, 4) == 2  # a row is a pair
    assert sharing(network, shapes(16, tokens=1), 4, 1, 1) == 1
    linear, _ = network_and_params("linear", False)
    assert sharing(linear, shapes(16), 4, 1, 1) == 1


def test_sequences_in_another_order_share_nothing():
    batch = {k: jnp.asarray(stored_rollouts()[k]) for k in ("prompts", "prompt_lengths")}
    assert one_prompt(batch, GROUP) and one_prompt(batch, 2)
    assert not one_prompt(batch, 2 * GROUP)
    order = np.roll(np.arange(PROMPTS * GROUP), 1)
    assert not one_prompt(jax.tree.map(lambda x: x[order], batch), GROUP)
    shorter = batch | {"prompt_lengths": batch["prompt_lengths"].at[1].add(-1)}
    assert not one_prompt(shorter, GROUP)
