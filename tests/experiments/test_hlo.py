import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import hlo

PROGRAM = """HloModule jit_f, is_scheduled=true, num_partitions=8

%inside (p: bf16[8,128]) -> bf16[8,128] {
  %p = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %negate.1 = bf16[8,128]{1,0} negate(%p), backend_config={"estimated_cycles":"999"}
  ROOT %all-reduce.9 = bf16[8,128]{1,0} all-reduce(%negate.1), to_apply=%sum
}

%inner_body (p.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.1 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %permute.start = (f32[8], f32[8], /*index=2*/u32[]) collective-permute-start(%p.1), channel_id=3
  %permute.done = f32[8]{0} collective-permute-done(%permute.start)
  %fusion.1 = (f32[]{:T(128)}, f32[8]{0:T(128)}) fusion(%p.1), kind=kOutput, calls=%inside, \
backend_config={"window_config":{"estimated_cycles":"10"}}
  %send = (f32[8], u32[], token[]) send(%permute.done, %token), channel_id=4, \
is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[8], u32[], token[]) recv(%token), channel_id=5, is_host_transfer=true, \
frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %send.2 = (f32[8], u32[], token[]) send(%permute.done, %token), channel_id=6
  ROOT %tuple.1 = (s32[], f32[8]) tuple(%fusion.1, %permute.done)
}

%inner_condition (p.2: (s32[], f32[8])) -> pred[] {
  %p.2 = (s32[], f32[8]) parameter(0)
  %constant.1 = s32[]{:T(128)} constant(5)
  %counter = s32[] get-tuple-element(%p.2), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%counter, %constant.1), direction=LT
}

%outer_body (p.3: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.3 = (s32[], f32[8]) parameter(0)
  ROOT %while.1 = (s32[], f32[8]) while(%p.3), condition=%inner_condition, body=%inner_body
}

%compare (p.4: s32[]) -> pred[] {
  %p.4 = s32[] parameter(0)
  %constant.2 = s32[] constant(3)
  ROOT %le = pred[] compare(%p.4, %constant.2), direction=LE
}

%outer_condition (p.5: (s32[], f32[8])) -> pred[] {
  %p.5 = (s32[], f32[8]) parameter(0)
  %counter.1 = s32[] get-tuple-element(%p.5), index=0
  ROOT %fusion.2 = pred[] fusion(%counter.1), kind=kLoop, calls=%compare
}

%until (p.6: (s32[], f32[8])) -> pred[] {
  %p.6 = (s32[], f32[8]) parameter(0)
  ROOT %found = pred[] get-tuple-element(%p.6), index=0
}

%cheap (p.7: f32[8]) -> f32[8] {
  %p.7 = f32[8] parameter(0)
  ROOT %copy.1 = f32[8] copy(%p.7), backend_config={"estimated_cycles":"1"}
}

%dear (p.8: f32[8]) -> f32[8] {
  %p.8 = f32[8] parameter(0)
  ROOT %copy.2 = f32[8] copy(%p.8), backend_config={"estimated_cycles":"7"}
}

ENTRY %main (p.9: (s32[], f32[8])) -> f32[8] {
  %p.9 = (s32[], f32[8]) parameter(0), sharding={devices=[8,1]<=[8]}
  %while.2 = (s32[], f32[8]) while(%p.9), condition=%outer_condition, body=%outer_body
  %call.1 = f32[8] call(%while.2), to_apply=%cheap
  %call.2 = f32[8] call(%call.1), to_apply=%cheap
  %conditional.1 = f32[8] conditional(%p.9, %call.2), branch_computations={%cheap, %dear}
  %all-gather.1 = f32[64] all-gather(%conditional.1), dimensions={0}
  ROOT %while.3 = (s32[], f32[8]) while(%p.9), condition=%until, body=%outer_body
}
"""


def test_loops_multiply_what_is_in_them():
    whole = hlo.totals(PROGRAM)
    # 4 x 5 times in the one loop, and 5 in the other, whose condition says nothing.
    assert whole.operations == {"fusion.1": 250, "copy.2": 7, "copy.1": 2}
    assert whole.executions == {"fusion.1": 25, "copy.2": 1, "copy.1": 2}
    assert list(whole.operations) == ["fusion.1", "copy.2", "copy.1"]
    assert whole.cycles == 259
    assert whole.collectives == {"all-gather": 1, "all-reduce": 25, "collective-permute": 25}
    assert whole.between_slices == {"all-reduce": 25}
    assert whole.unknown_loops == 1


@pytest.mark.parametrize(
    ("condition", "expected"), [("inner_condition", 5), ("outer_condition", 4), ("until", None)]
)
def test_the_constant_of_a_condition_says_how_often(condition, expected):
    assert hlo.trips(hlo.parse(PROGRAM), condition) == expected


def test_an_instruction_tells_its_shape():
    fusion = hlo.parse(PROGRAM).computations["inner_body"][3]
    assert (fusion.name, fusion.shape, fusion.cycles) == ("fusion.1", "f32[8]", 10)


def test_an_exchange_that_goes_on_behind_other_operations_counts_once():
    text = """HloModule jit_f

%begin (p: f32[8]) -> f32[64] {
  %all-gather.1 = f32[64] all-gather(%p), channel_id=1, dimensions={0}
  ROOT %custom-call.1 = f32[64] custom-call(%all-gather.1), \
custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (p.1: f32[64]) -> f32[64] {
  %all-gather.2 = f32[64] all-gather(%p.1), channel_id=1, dimensions={0}
  ROOT %negate.1 = f32[64] negate(%all-gather.2)
}

%end (p.2: f32[64]) -> f32[64] {
  %all-gather.3 = f32[64] all-gather(%p.2), channel_id=1, dimensions={0}
  ROOT %custom-call.2 = f32[64] custom-call(%all-gather.3), \
custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (p.3: f32[8]) -> f32[64] {
  %async-collective-start = f32[64] fusion(%p.3), kind=kCustom, calls=%begin
  %fusion.1 = f32[64] fusion(%async-collective-start), kind=kOutput, \
calls=%async_collective_fusion.1
  %fusion.2 = f32[64] fusion(%fusion.1), kind=kOutput, calls=%async_collective_fusion.1
  ROOT %async-collective-done = f32[64] fusion(%fusion.2), kind=kCustom, calls=%end
}
"""
    assert hlo.totals(text).collectives == {"all-gather": 1}


def test_two_constants_do_not_say_how_often():
    two = "  %two = s32[] constant(2)\n  %nine = s32[] constant(9)\n"
    text = PROGRAM.replace("  ROOT %found", f"{two}  ROOT %found")
    assert hlo.trips(hlo.parse(text), "until") is None


def test_of_a_real_program_the_trips_are_those_of_its_loops():
    def double(_, x):
        return jax.lax.fori_loop(0, 3, lambda _, y: jnp.sin(y @ y), x)

    def loops(x):
        return jax.lax.fori_loop(0, 7, double, x)

    program = hlo.parse(jax.jit(loops).lower(jnp.ones((4, 4))).compile().as_text())
    found = [
        hlo.trips(program, one.computations("condition")[0])
        for computation in program.computations.values()
        for one in computation
        if one.opcode == "while"
    ]
    assert sorted(found) == [3, 7]


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="no entry computation"):
        hlo.totals("module @jit_f {\n}\n")
