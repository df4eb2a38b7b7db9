"""A compiler that loses a part of a gradient is found on the first batch, and the leaf is named."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stored import GROUP, PROMPTS, P, T, V, stored_rollouts

from polgrad import _compilers, algorithms, cli, policies
from polgrad.contract import Context, Pair
from polgrad.training import Optimizer, probe, step
from polgrad.training.runtime import mesh as mesh_lib
from polgrad.training.scoring import SEQUENCE_KEYS, Scoring, split_tree

KEY = jax.random.key(3)
EIGHT = {"data": 2, "fsdp": 2, "tensor": 2}
SOUND = step.make_gradient


def losing(network, algorithm, scoring, *, micro_batches=1):
    """`make_gradient`, but a scan loses what its first part gives to the embedding."""
    sound = SOUND(network, algorithm, scoring, micro_batches=micro_batches)
    if micro_batches == 1:
        return sound
    alone = SOUND(network, algorithm, scoring)

    def gradient(params, batch, key):
        loss, grads, metrics = sound(params, batch, key)
        first = jax.tree.map(lambda x: x[0], split_tree(batch, micro_batches))
        lost = alone(params, first, key)[1]["embed"]
        return loss, {**grads, "embed": grads["embed"] - lost}, metrics

    return gradient


def spoiling(*args, micro_batches=1, **kwargs):
    """`make_gradient`, but a scan makes a NaN in the embedding."""
    sound = SOUND(*args, micro_batches=micro_batches, **kwargs)
    if micro_batches == 1:
        return sound

    def gradient(*arguments):
        loss, grads, metrics = sound(*arguments)
        return loss, {**grads, "embed": grads["embed"].at[0, 0].set(jnp.nan)}, metrics

    return gradient


@functools.cache
def network(kind):
    """The linear one compiles fast; a transformer's biases of keys have no gradient but rounding."""
    if kind == "linear":
        return policies.LinearNetwork(V + 5, 8)
    return policies.TransformerNetwork(
        policies.TransformerConfig(
            vocab_size=V + 5, width=16, layers=1, heads=2, max_length=P + T, qkv_bias=True
        )
    )


def found(name="grpo", *, kind="linear", sizes=None, micro=1, packing=False, **fields):
    """What the probe finds on the stored rollouts."""
    algorithm = algorithms.find(name)(**fields).build(Context(GROUP, T, PROMPTS, on_policy=False))
    experience = jax.tree.map(jnp.asarray, stored_rollouts(np.float32))
    if not algorithm.samples and isinstance(algorithm.unit, Pair):
        keep = (*SEQUENCE_KEYS, "reference_logp")
        experience = {k: experience[k].reshape(-1, 2, *experience[k].shape[1:]) for k in keep}
    _, batch, _ = jax.jit(algorithm.prepare)(algorithm.init(KEY), experience, KEY)
    mesh = mesh_lib.make(sizes or {"data": 1})
    made = step.Programs(
        network(kind),
        algorithm,
        Optimizer(learning_rate=1e-3).build(5, network(kind).logical_axes()),
        mesh,
        scoring=Scoring(entropy_gradient=algorithm.needs.entropy),
        micro_batches=micro,
        samples=GROUP,
    )
    with mesh_lib.entered(mesh):
        params = made.place_params(network(kind).init(jax.random.key(0)))
        return probe.differences(
            made,
            params,
            mesh_lib.place_batch(batch, mesh),
            KEY,
            micro_batches=micro,
            packing=packing,
            dtype="float32",
        )


CASES = {
    "grpo": {},
    "micro-batches": {"micro": 4},
    "micro-batches of one row": {"micro": 16},
    "packed": {"packing": True, "micro": 2},
    "eight devices": {"sizes": EIGHT, "micro": 2},
    "selects": {"name": "kl_cov", "fraction": 0.1},
    "pairs": {"name": "dpo"},
    "groups": {"name": "disco"},
    "transformer": {"kind": "transformer", "sizes": EIGHT},
}


def cases(names, quick):
    """The quick ones of `make test`; the others belong to `make test-slow`."""
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("case", cases(CASES, ("micro-batches", "eight devices", "groups")))
def test_a_sound_compiler_passes(case):
    differences = found(**CASES[case])
    assert "embed" in differences
    assert probe.complaint(differences, "float32", "cpu") is None
    # Far below the limit: rounding stops nobody's run.
    assert max(differences.values()) < probe.LIMITS["float32"] / 30


LOSING = ("grpo", "micro-batches", "packed", "eight devices", "selects", "groups")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("case", cases(LOSING, ("packed", "eight devices")))
def test_a_lost_part_is_found_and_its_leaf_named(monkeypatch, case):
    monkeypatch.setattr(step, "make_gradient", losing)
    differences = found(**CASES[case])
    bad = [name for name, difference in differences.items() if difference > 1e-4]
    assert bad == ["embed"]
    message = probe.complaint(differences, "float32", "tpu")
    assert "gradient of embed is" in message and "\n" not in message
    assert "newer libtpu" in message and "XLA_FLAGS=" in message and "--probe off" in message


def test_a_nan_that_only_the_scan_makes_is_found(monkeypatch):
    monkeypatch.setattr(step, "make_gradient", spoiling)
    differences = found()
    assert [name for name, x in differences.items() if not x <= 1e-4] == ["embed"]
    assert "gradient of embed is nan" in probe.complaint(differences, "float32", "cpu")


@pytest.mark.parametrize("dtype, share", [("float32", 1e-6), ("bfloat16", 3e-3)])
def test_the_loss_of_a_leaf_is_seen_from_a_share_of_the_whole_on(dtype, share):
    def complaint(size):
        whole = {"large": jnp.array([3.0, 4.0]), "small": jnp.array([5.0 * size])}
        split = {**whole, "small": jnp.zeros(1)}
        _, differences = probe._compare(whole, split, probe.FLOORS[dtype])
        return probe.complaint({k: float(x) for k, x in differences.items()}, dtype, "cpu")

    assert complaint(0.9 * share) is None
    assert "gradient of small" in complaint(1.1 * share)


def test_products_in_bfloat16_may_differ_more():
    assert probe.complaint({"embed": 2e-2}, "bfloat16", "tpu") is None
    assert "at most 0.03" in probe.complaint({"embed": 4e-2}, "bfloat16", "tpu")
    assert "at most 0.0001" in probe.complaint({"embed": 2e-4}, "float32", "tpu")
    message = probe.complaint({"norm": 9.0, "embed": float("nan")}, "float32", "tpu")
    assert "gradient of embed is nan" in message


@pytest.mark.slow
def test_a_gradient_that_is_not_a_number_is_looked_at_again(monkeypatch):
    def scaled(factor):
        def make(*args, **kwargs):
            gradient = SOUND(*args, **kwargs)

            def changed(*arguments):
                loss, grads, metrics = gradient(*arguments)
                return loss, jax.tree.map(lambda x: factor * x, grads), metrics

            return changed

        return make

    for factor in (0.0, jnp.nan):
        monkeypatch.setattr(step, "make_gradient", scaled(factor))
        assert found() is None


def test_when_a_run_is_probed(monkeypatch):
    for version, cpu in (("0.10.1", False), ("0.10.2", True), ("0.11.2", True), (None, False)):
        monkeypatch.setattr(_compilers, "version", lambda version=version: version)
        assert probe.wanted(None, "cpu") is cpu
        assert probe.wanted(None, "tpu") and not probe.wanted(None, "gpu")
        assert probe.wanted("on", "gpu") and not probe.wanted("off", "tpu")
    monkeypatch.setattr(_compilers, "version", lambda: "0.10.2")
    message = probe.complaint({"a": 1.0, "b": 2.0}, "float32", "cpu")
    assert "gradient of b is 2" in message and "xla_cpu_experimental_ynn_fusion_type=" in message


@pytest.fixture
def command(tmp_path):
    """A run of two steps whose batches have a gradient."""
    lines = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(4) for b in range(4)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "shorter.py").write_text(
        "def shorter(prompt, completion, example):\n    return -0.1 * len(completion)\n"
    )
    return (
        f"train --task {tmp_path / 'sums.jsonl'} --steps 2 --out {tmp_path / 'run'} --mesh data=1 "
        "--small.layers 1 --small.width 16 --small.heads 2 --small.mlp 32 --rollouts.prompts 4 "
        "--rollouts.group-size 4 --rollouts.max-tokens 3 --evaluation.problems 2 --no-cache "
        f"--rewards.functions {tmp_path / 'shorter.py'}:shorter --saving.no-tensorboard"
    ).split()


def run(arguments):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    return end.value.code


def test_the_run_stops_with_one_line(monkeypatch, capsys, command, tmp_path):
    monkeypatch.setattr(step, "make_gradient", losing)
    assert run([*command, "--probe", "on"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("polgrad: the gradient of embed is ")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()  # no step is done


@pytest.mark.slow
def test_a_run_is_probed_until_a_batch_has_a_gradient(monkeypatch, command):
    found = [None, {"embed": 0.0}, {"embed": 9.0}]
    monkeypatch.setattr(probe, "differences", lambda *args, **kwargs: found.pop(0))
    command[command.index("--steps") + 1] = "3"
    assert run([*command, "--probe", "on"]) == 0
    assert len(found) == 1  # what the third step would have found
