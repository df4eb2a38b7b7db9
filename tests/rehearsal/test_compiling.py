"""A rehearsed step: what its programs hold and do, which meshes are proposed, what is refused."""

import math

import jax
import pytest

from polgrad.policies import TransformerConfig, TransformerNetwork
from polgrad.rehearsal import compiling, report, shapes
from polgrad.rehearsal.chips import CHIPS
from polgrad.rehearsal.compiling import Rehearsal, Slice
from polgrad.training.runtime import mesh as mesh_lib

TINY = TransformerConfig(
    vocab_size=64, width=32, layers=3, heads=4, kv_heads=2, mlp_width=48, max_length=64
)
# The tests that compile have one rehearsal and one mesh: what the first has compiled is kept.
WHAT = Rehearsal(
    "tiny", sequences=16, length=32, prompt_length=8, group_size=4, micro_batches=2, chunk=8
)
MESH = "data=2,fsdp=2,tensor=2"


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)


def count():
    params = jax.eval_shape(TransformerNetwork(TINY).init, jax.random.key(0))
    return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


def test_programs_hold_what_the_run_holds_and_do_what_it_does():
    mesh = compiling.make_mesh(compiling.describe("local"), mesh_lib.parse(MESH))
    sample, update = compiling.rehearse(WHAT, mesh)
    assert (sample.name, update.name) == ("sample", "update")
    # A quarter each, but for norms, which tensor parallelism keeps whole.
    assert 1.0 <= update.parameters / (4 * count() / 4) < 1.1
    assert 2.0 <= update.optimizer / update.parameters < 2.01
    # The sampler has its own copy in bfloat16, split in the same way.
    assert sample.optimizer == update.optimizer
    assert 1.5 <= sample.parameters / update.parameters < 1.6
    assert update.temporary > update.parameters  # the gradient, among others
    # Two passes forward (one is repeated backward), two backward; products with the embedding
    # are the head's, over completions alone.
    # A prompt is read once for the two of its samples that a micro-batch has.
    tokens = WHAT.sequences * (WHAT.length - WHAT.prompt_length / 2)
    matrices = count() - TINY.vocab_size * TINY.width
    costs = update.costs["update"]
    assert 0.9 < costs.flops / (8 * matrices * tokens / 8) < 1.8
    assert {"all-gather", "all-reduce"} & costs.collectives.keys()
    times = compiling.times(costs, CHIPS["v5e"])
    assert times["arithmetic"] == pytest.approx(costs.flops / 197e12)
    # A prompt is prefilled once for its group; every sample decodes all its tokens but the first,
    # which prefill has sampled.
    assert set(sample.costs) == {"prefill", "decode"}
    prompts = WHAT.sequences / WHAT.group_size * WHAT.prompt_length
    assert 0.9 < sample.costs["prefill"].flops / (2 * matrices * prompts / 8) < 2.0
    steps = WHAT.sequences * (WHAT.length - WHAT.prompt_length)
    assert 0.9 < sample.costs["decode"].flops / (2 * count() * steps / 8) < 2.0
    assert set(times) == {"arithmetic", "memory", "interconnect"}


@pytest.mark.slow
def test_an_algorithm_with_a_critic_is_scored_first():
    mesh = compiling.make_mesh(Slice("one", jax.devices()[:1], None), {})
    what = Rehearsal("tiny", algorithm="ppo", sequences=8, length=16, prompt_length=8, group_size=4)
    names = [program.name for program in compiling.rehearse(what, mesh)]
    assert names == ["sample", "score", "update"]


def test_meshes_are_ranked_by_what_fits_and_then_by_time():
    slice_ = Slice("v5e:8x8", [None] * 64, CHIPS["v5e"])
    what = Rehearsal("llama-3.1-8b", sequences=256, length=4096, micro_batches=4)
    ranked = compiling.candidates(what, slice_)
    fits = [c.held <= 0.9 * CHIPS["v5e"].memory for c in ranked]
    assert fits == sorted(fits, reverse=True) and fits[0]
    fast = [c.seconds for c, good in zip(ranked, fits) if good]
    assert fast == sorted(fast)
    # Half of the weights a device, half of the time that reading them for every token takes.
    tensor = [next(c for c in ranked if c.sizes["tensor"] == n) for n in (4, 8)]
    assert ranked[0] == tensor[1] and tensor[1].seconds < 0.8 * tensor[0].seconds
    for candidate in ranked:
        assert math.prod(candidate.sizes.values()) == 64
        assert 8 % candidate.sizes["tensor"] == 0


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="prompt_length is 32, expected 1 to length - 1 = 31"):
        Rehearsal("tiny", length=32, prompt_length=32)
    with pytest.raises(ValueError, match="sequences is 9"):
        Rehearsal("tiny", sequences=9)
    with pytest.raises(ValueError, match="topology is 'v99:1', expected local, or v4"):
        compiling.describe("v99:1")
    here = compiling.describe("local")
    assert here.chip is None and here.devices == jax.devices()
    with pytest.raises(ValueError, match="mesh data=1,fsdp=3,tensor=1 has 3 devices; local has"):
        compiling.make_mesh(here, mesh_lib.parse("fsdp=3"))
    with pytest.raises(ValueError, match="attention is 'splash', which runs on a TPU"):
        next(
            compiling.rehearse(
                Rehearsal("tiny", attention="splash"), compiling.make_mesh(here, {"data": 8})
            )
        )
    with pytest.raises(ValueError, match="policy is 'gpt-2'"):
        report.run(Rehearsal("gpt-2"), "local", None)


def test_what_is_printed(capsys):
    assert report.run(WHAT, "local", MESH)
    text = capsys.readouterr().out
    assert "tiny, grpo: 16 sequences of 32 tokens on local (8 x cpu)" in text
    for word in (f"mesh {MESH}", "sample", "prefill", "decode", "update", "TFLOP", "all-reduce"):
        assert word in text


def test_a_slice_that_is_not_there(capsys):
    pytest.importorskip("libtpu", reason="the extra tpu-aot is not installed")
    slice_ = compiling.describe("v5e:2x2")
    assert len(slice_.devices) == 4 and slice_.chip is CHIPS["v5e"]
    assert report.run(WHAT, "v5e:2x2", "fsdp=4")
    text = capsys.readouterr().out
    assert "at published rates" in text and "  fits" in text
    with pytest.raises(ValueError, match="is not one that libtpu knows"):
        compiling.describe("v5e:3x7")


@pytest.mark.parametrize(
    "message",
    [
        "program (18.67G) exceeds available HBM (15.75G)",
        "Ran out of memory in memory space hbm. Used 18.67G of 15.75G hbm. Exceeded by 2.92G",
    ],
)
def test_what_does_not_fit_is_told(message, monkeypatch, capsys):
    def refuse(self):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    assert not report.run(WHAT, "local", MESH)
    assert "DOES NOT FIT: 18.67 GiB of temporaries, 15.75 GiB" in capsys.readouterr().out


def test_a_program_that_cannot_be_read_back_still_tells_its_memory(capsys):
    class Compiled:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure (hlo_instruction.cc:390)")

    costs = compiling._costs(Compiled(), "update", (1.0,))
    assert costs is None
    program = compiling.Program("update", 2**20, 2**21, 0, 2**30, 0, costs, 1.0)
    report._print(program, Slice("v5p:2x2x1", [None] * 4, CHIPS["v5p"]))
    printed = capsys.readouterr().out
    assert "cannot read this program back" in printed and "parameters 1.00 MiB" in printed
    assert "TFLOP" not in printed
