"""Costs of compiled programs: products of matrices by hand, loops, collectives, memory traffic."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from polgrad.rehearsal import costs as program_costs
from polgrad.training.runtime import mesh as mesh_lib

X = jax.ShapeDtypeStruct((8, 16), jnp.float32)
W = jax.ShapeDtypeStruct((3, 16, 16), jnp.float32)
LAYER = 2 * 8 * 16 * 16


def compiled(function, *shapes):
    return jax.jit(function).lower(*shapes).compile()


def layers(x, w, unroll=1):
    return jax.lax.scan(lambda h, m: (jnp.tanh(h @ m), None), x, w, unroll=unroll)[0]


@pytest.mark.parametrize("unroll", [1, 3])
def test_a_loop_counts_as_often_as_it_runs(unroll):
    program = compiled(functools.partial(layers, unroll=unroll), X, W)
    costs = program_costs.measure(program.as_text())
    assert costs.flops == 3 * LAYER
    once = program_costs.measure(program.as_text(), multiply=False)
    assert once.flops == (LAYER if unroll == 1 else 3 * LAYER)


def test_loops_in_loops_and_loops_that_data_end():
    def twice(x, w):
        return jax.lax.fori_loop(0, 5, lambda _, h: layers(h, w), x)

    assert program_costs.measure(compiled(twice, X, W).as_text()).flops == 15 * LAYER

    def until(x, w):
        return jax.lax.while_loop(lambda h: jnp.sum(h) < 9.0, lambda h: layers(h, w), x)

    text = compiled(until, X, W).as_text()
    assert program_costs.measure(text, unknown_trips=(7.0,)).flops == 7 * 3 * LAYER


def test_products_are_those_that_xla_counts():
    def attention(q, k, v):
        scores = jnp.einsum("bthd,bshd->bhts", q, k)
        return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v)

    shape = jax.ShapeDtypeStruct((2, 8, 4, 16), jnp.float32)
    costs = program_costs.measure(compiled(attention, shape, shape, shape).as_text())
    assert costs.flops == 2 * (2 * 2 * 4 * 8 * 8 * 16)


def test_a_convolution_leaves_out_padding_and_holes():
    text = """ENTRY %main (a: f32[1,4,2], b: f32[3,2,5]) -> f32[1,4,5] {
  %a = f32[1,4,2]{2,1,0} parameter(0)
  %b = f32[3,2,5]{2,1,0} parameter(1)
  ROOT %c = f32[1,4,5]{2,1,0} convolution(%a, %b), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f
}"""
    # Of 4 x 3 places, the first and the last lie outside.
    assert program_costs.measure(text).flops == 2 * 10 * 2 * 5
    stretched = text.replace("pad=1_1", "pad=2_2 lhs_dilate=2").replace("f32[1,4,5]", "f32[1,9,5]")
    by_hand = sum(0 <= o + k - 2 <= 6 and (o + k) % 2 == 0 for o in range(9) for k in range(3))
    assert program_costs.measure(stretched).flops == 2 * by_hand * 2 * 5


def test_memory_traffic():
    big = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)
    costs = program_costs.measure(compiled(lambda x: x * 2.0 + 1.0, big).as_text())
    assert costs.bytes == 2 * 4 * 1024**2

    # Of the stacked matrices a step reads one.
    stack = jax.ShapeDtypeStruct((50, 256, 256), jnp.float32)
    row = jax.ShapeDtypeStruct((1, 256), jnp.float32)
    costs = program_costs.measure(compiled(layers, row, stack).as_text())
    assert 0.9 < costs.bytes / (50 * 4 * 256**2) < 3.5


def test_collectives_of_a_sharded_product():
    mesh = mesh_lib.make({"fsdp": 4})
    rows, everywhere = (NamedSharding(mesh, PartitionSpec(s)) for s in ("fsdp", None))
    x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=rows)
    gather = jax.jit(lambda x: x * 2.0, out_shardings=everywhere).lower(x).compile()
    found = program_costs.measure(gather.as_text()).collectives["all-gather"]
    assert found == (1.0, 3 * 64 * 32 * 4 / 4)
    add = jax.jit(lambda x: jnp.sum(x, axis=0), out_shardings=everywhere).lower(x).compile()
    found = program_costs.measure(add.as_text()).collectives["all-reduce"]
    np.testing.assert_allclose(found, (1.0, 2 * 32 * 4 * 3 / 4))


# How TPUs have collectives: begun in one fusion, computed beside in another, awaited in a third; and
# a sum that keeps a part. Attributes that nothing reads are left out.
IN_FUSIONS = """
%begin (x: f32[8,16]) -> (f32[8,16], f32[32,16]) {
  %x = f32[8,16]{1,0} parameter(0)
  %gather.1 = f32[32,16]{1,0} all-gather(%x), replica_groups=[1,4]<=[4], FLAGS{"flag_start":"-1"}
  ROOT %begun = (f32[8,16], f32[32,16]) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}
%beside (y: f32[8,16], z: f32[16,16]) -> f32[8,16] {
  %y = f32[8,16]{1,0} parameter(0)
  %z = f32[16,16]{1,0} parameter(1)
  %gather.2 = f32[32,16]{1,0} all-gather(%y), replica_groups=[1,4]<=[4], FLAGS{"flag_start":"2"}
  ROOT %dot = f32[8,16]{1,0} dot(%y, %z), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
%end (v: f32[8,16]) -> f32[32,16] {
  %v = f32[8,16]{1,0} parameter(0)
  %gather.3 = f32[32,16]{1,0} all-gather(%v), replica_groups=[1,4]<=[4], FLAGS{"flag_start":"2"}
  ROOT %done = f32[32,16]{1,0} custom-call(%gather.3), custom_call_target="AsyncCollectiveDone"
}
%all-reduce-scatter.1 (w: f32[32,16]) -> f32[8,16] {
  %w = f32[32,16]{1,0} parameter(0)
  %sum = f32[32,16]{1,0} all-reduce(%w), replica_groups=[1,4]<=[4], to_apply=%add
  %zero = s32[] constant(0)
  ROOT %part = f32[8,16]{1,0} dynamic-slice(%sum, %zero, %zero), dynamic_slice_sizes={8,16}
}
ENTRY %main (p: f32[8,16], q: f32[16,16]) -> f32[8,16] {
  %p = f32[8,16]{1,0} parameter(0)
  %q = f32[16,16]{1,0} parameter(1)
  %start = (f32[8,16], f32[32,16]) fusion(%p), kind=kCustom, calls=%begin
  %work = f32[8,16]{1,0} fusion(%p, %q), kind=kCustom, calls=%beside
  %whole = f32[32,16]{1,0} fusion(%p), kind=kCustom, calls=%end
  ROOT %kept = f32[8,16]{1,0} fusion(%whole), kind=kCustom, calls=%all-reduce-scatter.1
}
""".replace("FLAGS", 'backend_config={"async_collective_fusion_config":')


def test_collectives_in_fusions_are_counted_once():
    costs = program_costs.measure(IN_FUSIONS)
    assert costs.flops == 2 * 8 * 16 * 16
    assert costs.collectives == {
        "all-gather": (1.0, 3 * 8 * 16 * 4),
        "reduce-scatter": (1.0, 32 * 16 * 4 * 3 / 4),
    }


# A copy to the chip's own memory (space 1), a cut of an array to it, and a fusion that reads both
# there and leaves one of its results there. The tuple of a fetch names its source, too.
FETCHED = """
%work (x: f32[8,128], y: f32[4,128]) -> (f32[128], f32[8,128]) {
  %x = f32[8,128]{1,0} parameter(0)
  %y = f32[4,128]{1,0} parameter(1)
  %zero = f32[] constant(0)
  %sum = f32[128]{0} reduce(%y, %zero), dimensions={0}, to_apply=%add
  %twice = f32[8,128]{1,0} add(%x, %x)
  ROOT %both = (f32[128]{0}, f32[8,128]{1,0}) tuple(%sum, %twice)
}
ENTRY %main (p: f32[8,128], q: f32[64,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  %q = f32[64,128]{1,0:T(8,128)} parameter(1)
  %copy = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%p)
  %copied = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%copy)
  %cut = ((f32[64,128]{1,0:T(8,128)}), f32[4,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%q), slice={[0:4], [0:128]}
  %part = f32[4,128]{1,0:T(8,128)S(1)} slice-done(%cut)
  %done = (f32[128]{0:T(128)S(1)}, f32[8,128]{1,0:T(8,128)}) fusion(%copied, %part), kind=kLoop, calls=%work
  ROOT %result = f32[8,128]{1,0:T(8,128)} get-tuple-element(%done), index=1
}
"""


def test_the_memory_of_the_chip_itself_is_not_the_devices():
    read, written = 4 * (8 + 4) * 128, 4 * 8 * 128
    assert program_costs.measure(FETCHED).bytes == read + written
    # Kept in the device's memory, each of the three is written there and read once more.
    copy, cut, total = 4 * 8 * 128, 4 * 4 * 128, 4 * 128
    assert program_costs.measure(FETCHED.replace("S(1)", "")).bytes == (
        read + written + 2 * copy + 2 * cut + total
    )


@pytest.mark.parametrize(
    "groups, size",
    [
        ("replica_groups=[4,64]<=[256]", 64),
        ("replica_groups={{0,1,2},{3,4,5}}, x", 3),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=8] {'axis_1'}", 8),
        ("replica_groups=mesh['a'=4,'b'=8] {'a','b'}", 32),
    ],
)
def test_groups_however_they_are_written(groups, size):
    assert program_costs._group(groups) == size


KERNEL = """ENTRY %main (a: s8[1,2,2]) -> bf16[3,4,1024,64] {
  %a = s8[1,2,2]{2,1,0} parameter(0)
  %q = bf16[3,4,1024,64]{3,2,1,0} parameter(1)
  %k = bf16[3,2,1024,64]{3,2,1,0} parameter(2)
  %v = bf16[3,2,1024,64]{3,2,1,0} parameter(3)
  ROOT %c = bf16[3,4,1024,64]{3,2,1,0} custom-call(%a, %q, %k, %v), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512, \\"block_q_dq\\": 256, \\"block_kv_dkv\\": 128}"
}}, metadata={op_name="jit(f)/shard_map/pairs_0.5000_runs_0.2500/vmap(x)/splash_mha_fwd_segmented/pallas_call"}
}"""


@pytest.mark.parametrize(
    ("phase", "products", "times"), [("fwd", 2, 2), ("dq", 3, 4), ("dkv", 4, 4)]
)
def test_the_attention_kernel_counts_the_pairs_that_it_sees(phase, products, times):
    # Keys and values are read half of 2 times, for blocks of 512 queries (of 4, for 256), for each of
    # the 2 heads that share them; queries and their gradients half of 8 times, for blocks of keys.
    costs = program_costs.measure(KERNEL.replace("mha_fwd", f"mha_{phase}"))
    pairs = 3 * 4 * 1024 * 1024 / 2
    assert costs.flops == products * 2 * pairs * 64 / 4
    array = 3 * 2 * 1024 * 64 * 2
    once = 2 * 2 * array + 2 * array + 4
    again = 2 * 2 * array if phase == "dkv" else 2 * array
    assert costs.bytes == (once + (times - 1) * again) / 4


def test_other_custom_calls_move_what_they_are_given():
    costs = program_costs.measure(KERNEL.replace("splash", "other"))
    assert costs.flops == 0.0
    assert costs.bytes == 3 * 2 * 1024 * 64 * 2 * 6 + 4


# A fusion that takes one layer of a stack through another fusion, and one that writes rows in place.
IN_PLACE = """
%layer (stack: f32[50,8,16], i: s32[]) -> f32[8,16] {
  %stack = f32[50,8,16]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %cut = f32[1,8,16]{2,1,0} dynamic-slice(%stack, %i, %zero, %zero), dynamic_slice_sizes={1,8,16}
  ROOT %flat = f32[8,16]{1,0} bitcast(%cut)
}
%product (x: f32[4,8], weights: f32[50,8,16], j: s32[]) -> f32[4,16] {
  %x = f32[4,8]{1,0} parameter(0)
  %weights = f32[50,8,16]{2,1,0} parameter(1)
  %j = s32[] parameter(2)
  %same = f32[50,8,16]{2,1,0} bitcast(%weights)
  %w = f32[8,16]{1,0} fusion(%same, %j), kind=kLoop, calls=%layer
  ROOT %dot = f32[4,16]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
%rows (cache: f32[64,16], places: s32[4,1], new: f32[4,16]) -> (f32[64,16], f32[4,16]) {
  %cache = f32[64,16]{1,0} parameter(0)
  %places = s32[4,1]{1,0} parameter(1)
  %new = f32[4,16]{1,0} parameter(2)
  %put = f32[64,16]{1,0} scatter(%cache, %places, %new), to_apply=%last
  ROOT %both = (f32[64,16], f32[4,16]) tuple(%put, %new)
}
ENTRY %main (a: f32[4,8], b: f32[50,8,16], c: s32[], d: f32[64,16], e: s32[4,1]) -> (f32[64,16], f32[4,16]) {
  %a = f32[4,8]{1,0} parameter(0)
  %b = f32[50,8,16]{2,1,0} parameter(1)
  %c = s32[] parameter(2)
  %d = f32[64,16]{1,0} parameter(3)
  %e = s32[4,1]{1,0} parameter(4)
  %r = f32[4,16]{1,0} fusion(%a, %b, %c), kind=kOutput, calls=%product
  ROOT %out = (f32[64,16], f32[4,16]) fusion(%d, %e, %r), kind=kLoop, calls=%rows
}
"""


def test_what_is_cut_from_or_changed_in_place_moves_alone():
    costs = program_costs.measure(IN_PLACE)
    product = 4 * 8 + 8 * 16 + 1 + 4 * 16
    rows = 4 + 4 * 16 + 4 * 16  # places and rows read, rows written; handed on, they are not
    assert costs.bytes == 4 * (product + rows)
    alone = program_costs.measure(
        IN_PLACE.replace("fusion(%d, %e, %r), kind=kLoop, calls=%rows", "scatter(%d, %e, %r)")
    )
    assert alone.bytes == 4 * (product + 2 * 4 * 16)
