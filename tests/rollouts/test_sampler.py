"""The slot sampler against the training forward, exact frequencies, and its own invariances."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from scipy import stats

from polgrad.distributions import geometric_mixture, log_softmax
from polgrad.policies import TransformerConfig, TransformerNetwork
from polgrad.policies.decoder import restore, round_matrix
from polgrad.rollouts import Rollout, Sampling, generate, pad_prompts
from polgrad.rollouts import sampler as sampler_module
from polgrad.rollouts.sampler import _generate

KEY = jax.random.key(11)
PROMPTS = [[3], [1, 2, 3, 4, 5, 6], [7, 7], [9, 8, 10], [5, 1, 5, 1], [2, 2, 2]]
IDS = np.array([10, 4_000_000_000, 12, 13, 0, 7], np.uint32)
# Tokens 0 and 1 stop: completions of 1 to 12 tokens.
SAMPLING = Sampling(max_tokens=12, temperature=0.8, stop_ids=(0, 1))
GROUP, SLOTS = 3, 4


@pytest.fixture(scope="module")
def program(transformer):
    """One program for most tests: 6 prompts x 3 samples through 4 slots."""

    def run(prompts=PROMPTS, ids=IDS, key=KEY, params=transformer.params):
        tokens, lengths = (
            prompts if isinstance(prompts, tuple) else pad_prompts(prompts, bucket=6, max_length=32)
        )
        rollout, steps = _generate(
            transformer.network,
            params,
            None,
            jnp.asarray(tokens),
            jnp.asarray(lengths),
            jnp.asarray(ids, jnp.uint32),
            key,
            sampling=SAMPLING,
            group_size=GROUP,
            slots=SLOTS,
            compute_dtype=jnp.float32,
            reference_weight=0.0,
        )
        return jax.tree.map(np.asarray, rollout), int(steps)

    return run


@pytest.fixture(scope="module")
def base(program):
    return program()


def chosen(logp, tokens):
    return np.take_along_axis(np.asarray(logp), np.asarray(tokens)[..., None], -1)[..., 0]


def chi_squared(counts, probabilities):
    """Whether counts fit probabilities at the 0.1 % level."""
    expected = counts.sum() * probabilities
    return ((counts - expected) ** 2 / expected).sum() < stats.chi2.ppf(0.999, counts.size - 1)


def assert_same(a: Rollout, b: Rollout, rows_a=slice(None), rows_b=slice(None)):
    for name, x, y in zip(Rollout._fields, a, b):
        if name == "behavior_logp":
            np.testing.assert_allclose(x[rows_a], y[rows_b], atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(x[rows_a], y[rows_b], err_msg=name)


def test_layout_masks_and_stop_tokens(base):
    rollout, _ = base
    assert rollout.completions.shape == (18, 12) and rollout.prompts.shape == (18, 6)
    np.testing.assert_array_equal(rollout.prompt_ids, np.repeat(IDS, GROUP))
    np.testing.assert_array_equal(rollout.sample_ids, np.tile(np.arange(GROUP), 6))
    np.testing.assert_array_equal(rollout.prompts[4], rollout.prompts[3])
    assert rollout.completion_lengths.min() <= 2 and rollout.completion_lengths.max() == 12
    assert rollout.stopped.any() and not rollout.stopped.all()
    for row in range(18):
        length = rollout.completion_lengths[row]
        tokens = rollout.completions[row, :length]
        ends = np.isin(tokens, SAMPLING.stop_ids)
        assert not ends[:-1].any() and ends[-1] == rollout.stopped[row]
        assert rollout.stopped[row] or length == 12
        np.testing.assert_array_equal(rollout.mask[row], np.arange(12) < length)
        assert np.all(rollout.completions[row, length:] == 0)
        assert np.all(rollout.behavior_logp[row, length:] == 0)
        assert np.all(rollout.behavior_logp[row, :length] < 0)


def test_log_probabilities_equal_the_training_forward(base, transformer, teacher_forced):
    rollout, _ = base
    logp = teacher_forced(transformer.network, transformer.params, rollout)
    # Unlike the tempered logits, the hidden states are the trainer's: temper, then normalise.
    expected = chosen(log_softmax(logp / SAMPLING.temperature), rollout.completions) * rollout.mask
    np.testing.assert_allclose(rollout.behavior_logp, expected, atol=1e-4)


def test_slots_are_refilled_at_once_and_the_loop_stops_early(base):
    rollout, steps = base
    # Greedy list scheduling of the samples' lengths (less the first token, which needs no slot).
    free = [0] * SLOTS
    for length in rollout.completion_lengths - 1:
        if length:
            slot = int(np.argmin(free))
            free[slot] += length
    assert steps == max(free)
    assert steps < (GROUP * 6 // SLOTS) * 11


def test_a_sample_does_not_depend_on_the_order_of_prompts(program, base):
    order = np.array([4, 2, 0, 5, 1, 3])
    rollout, _ = program([PROMPTS[i] for i in order], IDS[order])
    rows = (order[:, None] * GROUP + np.arange(GROUP)).reshape(-1)
    assert_same(rollout, base[0], rows_b=rows)


def test_a_sample_does_not_depend_on_the_others(program, base):
    for kept in (1, 4):
        tokens, lengths = pad_prompts(PROMPTS, bucket=6, max_length=32)
        # All others absent: nobody sat in this slot before, and nobody sits beside.
        alone, steps = program((tokens, np.where(np.arange(6) == kept, lengths, 0)))
        rows = slice(kept * GROUP, (kept + 1) * GROUP)
        assert_same(alone, base[0], rows, rows)
        assert steps == alone.completion_lengths.max() - 1
        others = np.delete(np.arange(18), np.arange(18)[rows])
        assert np.all(alone.completion_lengths[others] == 0)
        assert np.all(alone.mask[others] == 0) and not alone.stopped[others].any()
        assert np.all(alone.completions[others] == 0)


def test_other_keys_ids_and_params_give_other_samples(program, base, transformer):
    for changed in (
        program(key=jax.random.key(12)),
        program(ids=IDS + 1),
        program(params=transformer.reference_params),
    ):
        assert (changed[0].completions != base[0].completions).any(1).mean() > 0.5


def test_nothing_to_sample(program):
    rollout, steps = program((np.ones((6, 6), np.int32), np.zeros(6, np.int32)))
    assert steps == 0 and rollout.mask.sum() == 0 and np.isfinite(rollout.behavior_logp).all()


def test_across_programs_tokens_differ_only_at_a_boundary(base, transformer):
    tokens, lengths = pad_prompts(PROMPTS, bucket=6, max_length=32)
    rollout = generate(
        transformer.network,
        transformer.params,
        tokens,
        lengths,
        IDS,
        KEY,
        sampling=SAMPLING,
        group_size=GROUP,
        slots=2,
    )
    # With these shapes and seeds no number lies on a boundary.
    assert_same(rollout, base[0])


def test_greedy_equals_the_arg_max_of_the_full_forward(transformer, teacher_forced):
    tokens, lengths = pad_prompts(PROMPTS, bucket=6, max_length=32)
    greedy = generate(
        transformer.network,
        transformer.params,
        tokens,
        lengths,
        IDS,
        KEY,
        sampling=Sampling(max_tokens=12, temperature=0.0),
        group_size=GROUP,
    )
    # Given its own prefix each token is the arg max; by induction this is step-by-step decoding.
    logp = teacher_forced(transformer.network, transformer.params, greedy)
    np.testing.assert_array_equal(greedy.completions, logp.argmax(-1))
    assert len(np.unique(greedy.completions)) > 3
    np.testing.assert_array_equal(greedy.behavior_logp, 0)


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_frequencies_of_two_tokens(linear, weight):
    network, params, reference = linear
    many = 6000
    rollout = generate(
        network,
        params,
        np.array([[5, 3]]),
        np.array([2]),
        np.array([0]),
        jax.random.key(0),
        sampling=Sampling(max_tokens=2),
        group_size=many,
        slots=1024,
        reference_params=reference,
        reference_weight=weight,
    )
    tables = [p["embed"] @ p["head"] for p in (params, reference)]
    exact = np.asarray(log_softmax(geometric_mixture(*tables, reference_weight=weight)))
    if weight:
        assert np.abs(np.exp(exact) - np.exp(log_softmax(tables[0]))).max() > 0.1
    first, second = np.asarray(rollout.completions).T
    np.testing.assert_allclose(
        rollout.behavior_logp, np.stack([exact[3][first], exact[first, second]], 1), atol=1e-5
    )
    assert chi_squared(np.bincount(first, minlength=8), np.exp(exact[3]))
    for token in range(8):
        counts = np.bincount(second[first == token], minlength=8)
        if counts.sum() > 200:
            assert chi_squared(counts, np.exp(exact[token])), token


def test_mixture_of_weight_zero_and_one_is_one_of_the_two(linear):
    network, params, reference = linear

    def run(params, **mixture):
        return generate(
            network,
            params,
            np.array([[5, 3]]),
            np.array([2]),
            np.array([0]),
            KEY,
            sampling=Sampling(max_tokens=4),
            group_size=8,
            **mixture,
        )

    policy = run(params)
    assert_same(run(params, reference_params=reference, reference_weight=0.0), policy)
    assert_same(run(reference, reference_params=params, reference_weight=1.0), policy)


def test_mixture_keeps_both_caches(transformer, teacher_forced):
    network, params, reference = transformer
    tokens, lengths = pad_prompts(PROMPTS, bucket=6, max_length=32)
    mixed = generate(
        network,
        params,
        tokens,
        lengths,
        IDS,
        KEY,
        sampling=Sampling(max_tokens=12, temperature=0.7, stop_ids=(0, 1)),
        group_size=GROUP,
        slots=3,
        reference_params=reference,
        reference_weight=0.4,
    )
    both = [teacher_forced(network, p, mixed) for p in (params, reference)]
    exact = log_softmax(geometric_mixture(*both, reference_weight=0.4) / 0.7)
    np.testing.assert_allclose(
        mixed.behavior_logp, chosen(exact, mixed.completions) * mixed.mask, atol=1e-4
    )


def test_bfloat16_stays_near_the_float32_forward(transformer, teacher_forced):
    network, params, _ = transformer
    tokens, lengths = pad_prompts(PROMPTS, bucket=6, max_length=32)
    rollout = generate(
        network,
        params,
        tokens,
        lengths,
        IDS,
        KEY,
        sampling=Sampling(max_tokens=12),
        group_size=GROUP,
        slots=3,
        compute_dtype=jnp.bfloat16,
    )
    assert rollout.behavior_logp.dtype == jnp.float32
    exact = chosen(teacher_forced(network, params, rollout), rollout.completions)
    gap = np.abs(exact - rollout.behavior_logp)
    # Two or three decimal digits, but for a rare token; a wrong position or token gives about 2.
    assert 1e-4 < gap.mean() < 0.05 and np.quantile(gap, 0.9) < 0.1


def test_the_loop_copies_no_cache(transformer):
    # The cache (about 4 MiB) must be updated in place: a copy would double the temporaries.
    network = transformer.network
    prompts = jnp.ones((64, 16), jnp.int32)
    compiled = _generate.lower(
        network,
        transformer.params,
        None,
        prompts,
        jnp.full(64, 16),
        jnp.arange(64, dtype=jnp.uint32),
        KEY,
        sampling=Sampling(max_tokens=16),
        group_size=8,
        slots=512,
        compute_dtype=jnp.float32,
        reference_weight=0.0,
    ).compile()
    cache = network.init_cache(512, 32, jnp.float32)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
    assert compiled.memory_analysis().temp_size_in_bytes < 1.8 * size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": 1}, "slots is 1, expected a number of at least 2$"),
        ({"group_size": 0}, "group_size is 0"),
        ({"sampling": Sampling(max_tokens=40)}, "need 46 positions; .* max_length 32"),
        ({"sampling": Sampling(max_tokens=4, stop_ids=(12,))}, "stop_ids holds 12"),
        ({"reference_weight": 0.5}, "reference_params is None"),
        ({"reference_weight": 1.5}, "reference_weight is 1.5"),
        ({"prompts": np.zeros((0, 6), np.int32), "prompt_lengths": IDS[:0]}, "prompts has shape"),
    ],
)
def test_bad_input_is_named(transformer, change, message):
    tokens, lengths = pad_prompts(PROMPTS, bucket=6, max_length=32)
    given = {
        "prompts": tokens,
        "prompt_lengths": lengths,
        "sampling": SAMPLING,
        **change,
    }
    given["prompt_ids"] = IDS[: len(given["prompts"])]
    with pytest.raises(ValueError, match=message):
        generate(transformer.network, transformer.params, key=KEY, **given)


def test_wrong_shapes_are_named(transformer):
    good = {"prompts": np.ones((6, 4)), "prompt_lengths": np.ones(6), "prompt_ids": IDS[:6]}
    for change, message in (
        ({"prompts": np.ones(6)}, r"prompts has shape \[6\], expected rank 2: \[M, P\]"),
        ({"prompt_lengths": np.ones(5)}, r"prompt_lengths has shape \[5\], expected \[M\] = \[6\]"),
        ({"prompt_ids": IDS[:1]}, r"prompt_ids has shape \[1\], expected \[M\] = \[6\]"),
    ):
        given = {**good, **change}
        with pytest.raises(ValueError, match=message):
            generate(transformer.network, transformer.params, key=KEY, sampling=SAMPLING, **given)


def test_no_weight_is_copied_in_the_decoding_loop():
    config = TransformerConfig(
        vocab_size=12, width=16, layers=3, heads=2, mlp_width=24, max_length=16, tied=False
    )
    network = TransformerNetwork(config)
    compiled = _generate.lower(
        network,
        network.shapes(),
        None,
        jax.ShapeDtypeStruct((2, 4), jnp.int32),
        jax.ShapeDtypeStruct((2,), jnp.int32),
        jax.ShapeDtypeStruct((2,), jnp.uint32),
        KEY,
        sampling=Sampling(max_tokens=4),
        group_size=1,
        slots=2,
        compute_dtype=jnp.float32,
        reference_weight=0.0,
    ).compile()
    computations = re.split(r"\n(?=%|ENTRY)", compiled.as_text())
    # gate and up side by side are [16, 48]: no other array here has that shape.
    matrix = r"= f32\[16,48\]\S* (\S+)\("
    found = [re.findall(matrix, text) for text in computations if "ENTRY" not in text]
    loop = max(found, key=lambda ops: ops.count("get-tuple-element"))
    assert set(loop) == {"get-tuple-element"}


def test_int8_samples_from_the_policy_with_rounded_matrices(transformer, teacher_forced):
    network, params = transformer.network, transformer.params
    tokens, lengths = pad_prompts(PROMPTS, bucket=6, max_length=32)
    rollout = generate(
        network, params, tokens, lengths, IDS, KEY,
        sampling=Sampling(max_tokens=6), group_size=2, slots=4, weights="int8",
    )  # fmt: skip
    rounded = network.round_layers(params)
    rounded["head"] = restore(round_matrix(params["head"]), jnp.float32)
    for given, near in ((rounded, True), (params, False)):
        logp = chosen(teacher_forced(network, given, rollout), rollout.completions) * rollout.mask
        assert (np.abs(logp - rollout.behavior_logp).max() < 1e-4) == near


def test_capped_logits_and_windows_are_the_training_forward_s(transformer, teacher_forced):
    shape = {"logit_cap": 2.0, "attention_cap": 3.0, "window": 3, "global_every": 2}
    network = TransformerNetwork(dataclasses.replace(transformer.network.config, **shape))
    tokens, lengths = pad_prompts(PROMPTS, bucket=6, max_length=32)
    rollout = generate(
        network, transformer.params, tokens, lengths, IDS, KEY,
        sampling=Sampling(max_tokens=6), group_size=1, slots=4,
    )  # fmt: skip
    uncapped = TransformerNetwork(dataclasses.replace(network.config, logit_cap=None))
    for given, near in ((network, True), (uncapped, False)):
        logp = teacher_forced(given, transformer.params, rollout)
        gap = chosen(logp, rollout.completions) * rollout.mask - rollout.behavior_logp
        assert (np.abs(gap).max() < 1e-4) == near


def test_int8_needs_a_network_that_rounds(linear):
    tokens, lengths = pad_prompts([[1]], bucket=2, max_length=8)
    with pytest.raises(ValueError, match="weights is 'int8'"):
        generate(
            linear.network, linear.params, tokens, lengths, IDS[:1], KEY,
            sampling=Sampling(max_tokens=2), weights="int8",
        )  # fmt: skip


def test_slots_are_as_many_on_each_device():
    assert [sampler_module.default_slots(n) for n in (1, 100, 1000)] == [2, 100, 128]
    with jax.set_mesh(jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)):
        assert [sampler_module.default_slots(n) for n in (1, 100, 2000)] == [8, 104, 1024]
