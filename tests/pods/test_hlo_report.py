"""The reader of compiled programs, on texts cut from what the TPU compiler writes."""

import pytest

from mdlm_jax.pods.hlo_report import collectives

PROGRAM = """\
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%async_collective_fusion.1 (p: bf16[64,16]) -> bf16[64,64] {
  ROOT %all-gather.7 = bf16[64,64]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=4, \
replica_groups=mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'y'}, dimensions={1}
}

%fused_computation.9 (p: bf16[64,16]) -> bf16[64,64] {
  ROOT %all-gather.8 = bf16[64,64]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=4, \
replica_groups=mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'y'}, dimensions={1}
}

%all-reduce-scatter.2.clone (input: f32[64,64]) -> f32[16,64] {
  %all-reduce.3 = f32[64,64]{1,0} all-reduce(%input), channel_id=5, \
replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add, metadata={op_name="jit(step)/up"}
  ROOT %slice = f32[16,64]{1,0} dynamic-slice(%all-reduce.3, %zero, %zero)
}

%body (state: (s32[], f32[64,64])) -> (s32[], f32[64,64]) {
  %kernel = bf16[64,64]{1,0} custom-call(%x), backend_config={"custom_call_config": {
"xprof_metadata":"{\\"block_q\\": 256}"
}}, metadata={op_name="jit(step)/attention"}
  %a = bf16[64,64]{1,0} fusion(%x), kind=kCustom, calls=%async_collective_fusion.1
  %b = bf16[64,64]{1,0} fusion(%x), kind=kCustom, calls=%fused_computation.9
  %c = f32[16,64]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.2.clone
}

%condition (state: (s32[], f32[64,64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  %counter = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

%data_dependent (state: (s32[], f32[64,64])) -> pred[] {
  ROOT %lt.2 = pred[]{:T(512)} compare(%counter, %total), direction=LT
}

%draw (state: (s32[], f32[64,64])) -> (s32[], f32[64,64]) {
  %permute = s32[256]{0} collective-permute(%z), channel_id=9, \
source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
}

ENTRY %main.1_spmd (x: f32[64,64]) -> f32[64,64] {
  %while.1 = (s32[], f32[64,64]{1,0}) while(%init), condition=%condition, body=%body
  %while.2 = (s32[], f32[64,64]{1,0}) while(%init), condition=%data_dependent, body=%draw
  %all = (f32[8]{0:T(128)}, f32[]{:T(128)}) all-reduce(%u, %w), channel_id=6, \
replica_groups=[1,8]<=[8], to_apply=%add
  %alone = f32[8]{0} all-reduce(%u), channel_id=7, replica_groups={{0},{1}}, to_apply=%add
}
"""


@pytest.fixture(scope="module")
def found():
    return {each.kind: each for each in collectives(PROGRAM)}


def test_copies_of_one_channel_are_one_and_loops_count(found):
    assert set(found) == {"all-gather", "reduce-scatter", "collective-permute", "all-reduce"}
    assert len(collectives(PROGRAM)) == 4
    gather = found["all-gather"]
    assert (gather.times, gather.bounded, gather.group) == (12, True, 4)
    assert gather.size == 64 * 64 * 2
    assert gather.received == 12 * 64 * 64 * 2 * 3 / 4


def test_an_all_reduce_with_its_slice_is_a_reduce_scatter(found):
    scatter = found["reduce-scatter"]
    assert (scatter.times, scatter.group, scatter.source) == (12, 4, "jit(step)/up")
    assert scatter.received == 12 * 64 * 64 * 4 * 3 / 4


def test_an_all_reduce_moves_its_result_twice(found):
    reduce = found["all-reduce"]
    assert reduce.shapes == (("f32", (8,)), ("f32", ()))
    assert reduce.received == 2 * 36 * 7 / 8


def test_a_loop_without_a_known_end_counts_once_and_says_so(found):
    permute = found["collective-permute"]
    assert (permute.times, permute.bounded) == (1, False)
    assert permute.received == 256 * 4


BETWEEN = """\
ENTRY %main.1_spmd (x: bf16[64,8,128]) -> bf16[64,8,128] {
  %send.1 = (bf16[64,8,128]{2,1,0:T(8,128)(2,1)}, u32[], token[]) send(%x, %after), channel_id=2, \
is_host_transfer=true, frontend_attributes={\
_xla_host_transfer_handler_name="xla_megascale_runtime",\
_xla_megascale_transfer_type="ALL_REDUCE"}, metadata={op_name="jit(step)/up"}
  %gather = f32[64]{0} all-gather(%z), channel_id=2, replica_groups={{0,1},{2,3}}, dimensions={0}
  %send-done.1 = token[] send-done(%send.1), channel_id=2, is_host_transfer=true
  %send.2 = (f32[8]{0}, u32[], token[]) send(%y, %after), channel_id=3, is_host_transfer=true
}
"""


def test_what_goes_from_slice_to_slice_is_told_apart():
    # The gather within the slices has the channel of what is sent between them.
    reduce, gather = collectives(BETWEEN, slices=4)
    assert (gather.kind, gather.between_slices, gather.received) == ("all-gather", False, 128)
    assert (reduce.kind, reduce.between_slices, reduce.source) == (
        "all-reduce",
        True,
        "jit(step)/up",
    )
    assert reduce.received == 2 * 64 * 8 * 128 * 2 * 3 / 4
    assert not any(each.between_slices for each in collectives(PROGRAM))
