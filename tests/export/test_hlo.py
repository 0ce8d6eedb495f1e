"""What is read from a compiled module, against programs whose communication is known."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import toy

from jaxclone.export.hlo import Collective, Module

HEADER = "HloModule step, is_scheduled=true\n\n"
# Twelve turns, counted from 2 in steps of 2 up to 26, each gathering weights and permuting.
LOOP = (
    HEADER
    + """%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%cond (state: (s32[], bf16[8,16])) -> pred[] {
  %limit = s32[] constant(26)
  %state = (s32[], bf16[8,16]{1,0:T(8,128)(2,1)}) parameter(0)
  %counter = s32[] get-tuple-element(%state), index=0
  ROOT %less = pred[] compare(%counter, %limit), direction=LT
}

%body (state: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %state = (s32[], bf16[8,16]{1,0:T(8,128)(2,1)}) parameter(0)
  %counter = s32[] get-tuple-element(%state), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%counter, %two)
  %part = bf16[8,16]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %whole = bf16[32,16]{1,0:T(8,128)(2,1)} all-gather(%part), channel_id=1, GROUPS, dimensions={0}
  %sent = (bf16[8,16]{1,0}, bf16[8,16]{1,0}, u32[]{:S(2)}) collective-permute-start(%part), PAIRS
  %got = bf16[8,16]{1,0} collective-permute-done(%sent)
  ROOT %out = (s32[], bf16[8,16]{1,0}) tuple(%next, %got)
}

ENTRY %main (x: bf16[8,16]) -> f32[16] {
  %x = bf16[8,16]{1,0} parameter(0)
  %start = s32[] constant(2)
  %init = (s32[], bf16[8,16]{1,0}) tuple(%start, %x)
  %loop = (s32[], bf16[8,16]{1,0}) while(%init), condition=%cond, body=%body
  %grad = f32[16]{0} custom-call(%loop), custom_call_target="f"
  ROOT %all = f32[16]{0} all-reduce(%grad), channel_id=3, replica_groups={{0,1,2,3}}, to_apply=%add
}
"""
)
PAIRS = "source_target_pairs={{0,1},{1,2},{2,3},{3,0}}"
GROUPS = [
    "replica_groups={{0,1},{2,3}}",
    "replica_groups=[2,2]<=[4]",
    "replica_groups=mesh['a'=2,'b'=2] {'b'}",
]
ACROSS = [
    "replica_groups={{0,2},{1,3}}",
    "replica_groups=[2,2]<=[2,2]T(1,0)",
    "replica_groups=mesh['a'=2,'b'=2] {'a'}",
]


def loop(groups: str) -> str:
    return LOOP.replace("GROUPS", groups).replace("PAIRS", PAIRS)


@pytest.mark.parametrize("groups", [*GROUPS, *ACROSS])
def test_collectives_in_a_loop_count_each_turn(groups: str):
    module = Module(loop(groups))
    found = module.collectives(slice_of=(0, 0, 1, 1))
    assert not module.unknown_loops
    part = 8 * 16 * 2
    assert found == [
        Collective("all-gather", 2, groups in ACROSS, 12, 12.0 * 2 * part),
        Collective("collective-permute", 2, True, 12, 12.0 * part),
        Collective("all-reduce", 4, True, 1, 16.0 * 4),
    ]
    assert [item.wire_bytes for item in found] == [12 * part, 12 * part, 2 * 3 / 4 * 64]


def test_a_known_number_of_turns_is_taken():
    text = loop(GROUPS[0]).replace(
        "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}'
    )
    assert {item.times for item in Module(text).collectives()} == {5, 1}


def test_a_loop_of_unknown_length_is_told():
    module = Module(loop(GROUPS[0]).replace("direction=LT", "direction=NE"))
    assert module.unknown_loops == 1
    assert {item.times for item in module.collectives()} == {1}


def test_the_parts_of_one_collective_count_once():
    """TPUs spread a collective over fusions that compute meanwhile; each has a copy of it."""
    text = (
        HEADER
        + """%f1 (p: f32[8]) -> f32[32] {
  %p = f32[8]{0} parameter(0)
  ROOT %g1 = f32[32]{0} all-gather(%p), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
}

%f2 (p: f32[8]) -> f32[32] {
  %p = f32[8]{0} parameter(0)
  ROOT %g2 = f32[32]{0} all-gather(%p), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
}

ENTRY %main (x: f32[8]) -> f32[32] {
  %x = f32[8]{0} parameter(0)
  %a = f32[32]{0} fusion(%x), kind=kCustom, calls=%f1
  ROOT %b = f32[32]{0} fusion(%x), kind=kCustom, calls=%f2
}
"""
    )
    assert Module(text).collectives() == [Collective("all-gather", 4, False, 1, 32.0 * 4)]


def test_traffic_leaves_out_what_stays_on_the_chip_and_counts_slices():
    text = (
        HEADER
        + """%f (stack: f32[10,8], row: f32[1,8], i: s32[]) -> f32[10,8] {
  %stack = f32[10,8]{1,0} parameter(0)
  %row = f32[1,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %new = f32[10,8]{1,0} dynamic-update-slice(%stack, %row, %i, %zero)
}

ENTRY %main (stack: f32[10,8], x: f32[1,8]) -> f32[10,8] {
  %stack = f32[10,8]{1,0} parameter(0)
  %x = f32[1,8]{1,0} parameter(1)
  %i = s32[]{:S(6)} constant(3)
  %near = f32[1,8]{1,0:S(1)} negate(%x)
  %row = f32[1,8]{1,0:S(1)} negate(%near)
  ROOT %out = f32[10,8]{1,0} fusion(%stack, %row, %i), kind=kLoop, calls=%f
}
"""
    )
    read, written = 8 * 4, 8 * 4
    assert Module(text).traffic() == read + written


COMPILED = """
import json, jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxclone.export.hlo import Module
mesh = jax.make_mesh((4,), ("x",), (AxisType.Auto,))
put = lambda shape, *axes: jax.ShapeDtypeStruct(
    shape, jnp.float32, sharding=NamedSharding(mesh, P(*axes)))
def layers(x, ws):
    def layer(x, w):
        w = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))
        return jnp.tanh(x @ w), None
    return jax.lax.scan(layer, x, ws)[0].sum()
compiled = jax.jit(layers).lower(put((8, 64), "x"), put((6, 64, 64), None, "x")).compile()
module = Module(compiled.as_text())
print(json.dumps([
    [[c.kind, c.group, c.times, c.bytes] for c in module.collectives()],
    module.unknown_loops, module.traffic()]))
"""


def test_a_module_that_is_compiled_here():
    """Four devices, six layers whose weights are gathered where they are used."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED],
        env=toy.environment(JAX_NUM_CPU_DEVICES="4"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    collectives, unknown, traffic = json.loads(done.stdout)
    weights = 64 * 64 * 4
    assert ["all-gather", 4, 6, 6 * weights] in collectives
    assert ["all-reduce", 4, 1, 4] in collectives
    assert unknown == 0
    assert traffic > 6 * weights
