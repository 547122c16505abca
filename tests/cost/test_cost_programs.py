"""What is read from the text of a compiled program: loops, collectives, bytes."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import nnkit as nk
from nnkit.cost.programs import collectives, executed, parse, traffic

HEAD = "HloModule jit_f, is_scheduled=true, num_partitions=8\n\n"


def entry(*lines):
    return HEAD + "ENTRY %main (a: f32[64]) -> f32[64] {\n" + "\n".join(lines) + "\n}\n"


def test_collectives_are_read_in_every_form_of_their_groups():
    text = entry(
        "  %a = f32[64]{0:T(128)} parameter(0)",
        "  %r = f32[64]{0} all-reduce(%a), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}},"
        " use_global_device_ids=true, to_apply=%add",
        "  %g = (f32[64]{0}, f32[128]{0:S(1)}) all-gather-start(%r), replica_groups=[4,2]<=[8],"
        " dimensions={0}",
        "  %h = f32[128]{0} all-gather-done(%g)",
        "  %s = bf16[64]{0} convert(%a)",
        "  %t = bf16[8]{0} reduce-scatter(%s), replica_groups=[1,8]<=[8], dimensions={0}",
        "  %p = f32[64]{0} collective-permute(%a), source_target_pairs={{0,1},{1,0}}",
        "  %one = f32[64]{0} all-reduce(%a), replica_groups={{0},{1}}, to_apply=%add",
        "  %m = f32[64]{0} all-reduce(%a), replica_groups=mesh['x'=2,'y'=3] {'y'}, to_apply=%add",
        "  ROOT %z = (f32[64]{0}, f32[64]{0}) all-to-all(%a, %r), replica_groups={}",
    )
    found = {(c.kind, c.group): c[1:] for c in collectives(parse(text))}
    assert found == {
        ("all-reduce", 4): (1, 4, 256.0, 256 * 2 * 3 / 4),
        ("all-reduce", 3): (1, 3, 256.0, 256 * 2 * 2 / 3),
        ("all-gather", 2): (1, 2, 256.0, 256.0),
        ("reduce-scatter", 8): (1, 8, 128.0, 128 * 7 / 8),
        ("collective-permute", 2): (1, 2, 256.0, 256.0),
        ("all-to-all", 8): (1, 8, 512.0, 512 * 7 / 8),
    }


LOOP = """%body (p: (s32[], f32[64])) -> (s32[], f32[64]) {
  %p = (s32[], /*index=1*/f32[64]{0}) parameter(0)
  %x = f32[64]{0} get-tuple-element(%p), index=1
  %r = f32[64]{0} all-reduce(%x), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %t = (s32[], f32[64]{0}) tuple(%i, %r)
}

%cond (p: (s32[], f32[64])) -> pred[] {
  %p = (s32[], f32[64]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(12)
  ROOT %c = pred[] compare(%i, %n), direction=LT
}

"""
WHILE = "  %w = (s32[], f32[64]{0}) while(%s), condition=%cond, body=%body"


@pytest.mark.parametrize(
    ("note", "times"),
    [
        (', backend_config={"known_trip_count":{"n":"5"},"other":{"n":"7"}}', 5),
        ("", 12),  # the bound in the condition
    ],
)
def test_what_a_loop_holds_counts_as_often_as_it_runs(note, times):
    body = entry("  %s = (s32[], f32[64]{0}) parameter(0)", WHILE + note)
    (found,) = collectives(parse(body.replace(HEAD, HEAD + LOOP)))
    assert found == ("all-reduce", times, 8, times * 256.0, times * 256 * 2 * 7 / 8)


def test_a_loop_of_unknown_length_is_said():
    body = entry("  %s = (s32[], f32[64]{0}) parameter(0)", WHILE)
    text = body.replace(HEAD, HEAD + LOOP.replace("constant(12)", "parameter(1)"))
    assert executed(parse(text))[1] == ["w"]


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match=r"expected the text of a compiled program, got 'hello'"):
        parse("hello")


def test_traffic_counts_slices_where_only_slices_are_read_or_written():
    text = HEAD + (
        "%inner (q: f32[100,64], u: f32[1,64], j: s32[]) -> f32[100,64] {\n"
        "  %q = f32[100,64]{1,0} parameter(0)\n"
        "  %u = f32[1,64]{1,0} parameter(1)\n"
        "  %j = s32[] parameter(2)\n"
        "  %k = s32[] constant(0)\n"
        "  ROOT %d = f32[100,64]{1,0} dynamic-update-slice(%q, %u, %j, %k)\n"
        "}\n\n"
        "ENTRY %main (a: f32[100,64], u: f32[1,64], j: s32[]) -> f32[100,64] {\n"
        "  %a = f32[100,64]{1,0} parameter(0)\n"
        "  %u = f32[1,64]{1,0} parameter(1)\n"
        "  %j = s32[] parameter(2)\n"
        "  %s = f32[1,64]{1,0} dynamic-slice(%a, %j, %j), dynamic_slice_sizes={1,64}\n"
        "  %v = f32[1,64]{1,0:T(1,128)S(1)} add(%s, %u)\n"
        "  ROOT %f = f32[100,64]{1,0} fusion(%a, %u, %j), kind=kLoop, calls=%inner\n"
        "}\n"
    )
    row = 64 * 4
    slice_, add = 2 * row, 2 * row  # the sum stays on the chip, S(1)
    fused = row + 4 + row  # the update, its place, and where it goes
    assert traffic(parse(text)) == slice_ + add + fused


def test_a_real_program_moves_what_it_reads_and_writes(optimised):
    x = jnp.ones((1000, 1000))
    text = jax.jit(lambda x: jnp.tanh(x) * 2 + 1).lower(x).compile().as_text()
    assert traffic(parse(text)) == pytest.approx(8e6, rel=0.01)

    def scanned(x):  # a loop over rows reads every row once
        return jax.lax.scan(lambda s, row: (s + row, None), x[0], x)[0]

    moved = traffic(parse(jax.jit(scanned).lower(x).compile().as_text()))
    assert 4e6 <= moved < 30e6  # and not 1000 times the whole


def test_a_real_program_has_the_collectives_that_are_in_its_loop(optimised):
    mesh = nk.mesh(data=8)
    rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())

    def sums(x):
        def body(s, _):
            return jax.lax.with_sharding_constraint((x * s[None]).sum(0), whole), None

        return jax.lax.scan(body, jnp.ones(16), length=6)[0]

    x = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=rows)
    found = collectives(parse(jax.jit(sums).lower(x).compile().as_text()))
    assert found == (("all-reduce", 6, 8, 6 * 64.0, 6 * 64 * 2 * 7 / 8),)
