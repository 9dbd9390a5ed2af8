"""What is read from a compiled program's text."""

from dreamjax.train import hlo

# As libtpu writes it, with a loop of four rounds, a collective that is begun and done, and one of two arrays.
TEXT = """
%cond (p: (s32[], f32[8,16])) -> pred[] {
  %p = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %n = s32[]{:T(128)} constant(4)
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}
%product (a: f32[8,16], b: f32[16,16]) -> f32[8,16] {
  %a = f32[8,16]{1,0:T(8,128)} parameter(0)
  %b = f32[16,16]{1,0:T(8,128)} parameter(1)
  ROOT %c = f32[8,16]{1,0:T(8,128)} convolution(%a, %b), dim_labels=bf_io->bf, metadata={op_name="x"}
}
%body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %x = f32[8,16]{1,0:T(8,128)} get-tuple-element(%p.1), index=1
  %w = f32[4,16]{1,0:T(8,128)} get-tuple-element(%p.1), index=2
  %s = (f32[4,16]{1,0}, f32[16,16]{1,0:T(8,128)}) all-gather-start(%w), replica_groups=[1,4]<=[4], dimensions={0}
  %g = f32[16,16]{1,0:T(8,128)} all-gather-done(%s)
  %f = f32[8,16]{1,0:T(8,128)} fusion(%x, %g), kind=kOutput, calls=%product
  ROOT %t = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) tuple(%i.1, %f)
}
ENTRY %main (x: f32[8,16]) -> f32[8,16] {
  %loop = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) while(%tuple), condition=%cond, body=%body
  %last = f32[8,16]{1,0:T(8,128)} get-tuple-element(%loop), index=1
  %first = f32[8,16]{1,0:T(8,128)} fusion(%last, %w.1), kind=kOutput, calls=%product
  %sums = (f32[8]{0:T(128)}, bf16[8]{0:T(128)}) all-reduce(%u, %v), replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %r = f32[8,16]{1,0:T(8,128)} copy(%first)
}
"""


def test_a_programs_text_tells_products_and_what_is_sent():
  program = hlo.Program(TEXT)
  assert program.repeats == {"main": 1, "cond": 4, "body": 4, "product": 5}
  assert program.products() == 5 * 2 * 8 * 16 * 16
  # Of 16x16 floats, three quarters come from others; of 8 of four bytes and 8 of two, half is sent, twice.
  assert program.sent() == {"all-gather": 4 * 0.75 * 1024, "all-reduce": 2 * 0.5 * 48}


def test_products_that_a_dilated_window_leaves_out_are_not_counted():
  # As libtpu writes them: 12 products of matrices, one by 12 others, a convolution padded, and one strided.
  text = """
ENTRY %main (x: f32[8,16]) -> f32[8,16] {
  %x = bf16[12,256,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %y = bf16[12,32,64]{2,1,0:T(8,128)(2,1)} parameter(1)
  %a = f32[12,256,32]{2,1,0} convolution(%x, %y), window={size=12 stride=11 lhs_dilate=12}, dim_labels=0bf_0oi->0bf
  %z = bf16[256,64,1]{1,0,2:T(8,128)(2,1)} parameter(4)
  %b = f32[256,12,32]{2,0,1} convolution(%z, %y), window={size=12 pad=11_11 rhs_reversal=1}, dim_labels=bf0_0oi->b0f
  %i = f32[2,8,8,3]{3,2,1,0} parameter(2)
  %k = f32[3,3,3,5]{3,2,1,0} parameter(3)
  %c = f32[2,8,8,5]{3,2,1,0} convolution(%i, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f
  %d = f32[2,4,3,5]{3,2,1,0} convolution(%i, %k), window={size=3x3 stride=2x2 pad=1_0x0_0}, dim_labels=b01f_01io->b01f
}
"""
  program = hlo.Program(text)
  batch, padded, strided = 2 * 12 * 256 * 32 * 64, 2 * 2 * (22 * 22) * 3 * 5, 2 * 2 * (11 * 9) * 3 * 5
  assert program.products() == 2 * batch + padded + strided


def test_what_a_program_moves_is_told_from_what_lies_there():
  # In turn: a weight of which a loop of ten rounds, counted by twos, takes a slice and makes something near; one that
  # is padded to whole tiles; a place in a stack that is written, in a buffer that holds it already; a copy to nearer
  # memory.
  text = """
%inner (p: bf16[10,64,128]) -> bf16[64,128] {
  %p = bf16[10,64,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %q = s32[]{:T(128)} parameter(1)
  ROOT %s = bf16[1,64,128]{2,1,0:T(8,128)(2,1)} dynamic-slice(%p, %q), dynamic_slice_sizes={1,64,128}
}
%taken (p.1: bf16[10,64,128]) -> f32[64,128] {
  %p.1 = bf16[10,64,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %q.1 = s32[]{:T(128)} parameter(1)
  %f = bf16[1,64,128]{2,1,0:T(8,128)(2,1)} fusion(%p.1, %q.1), kind=kLoop, calls=%inner
  ROOT %r.1 = f32[64,128]{1,0:T(8,128)S(1)} convert(%f)
}
%put (b: f32[10,8,128]) -> f32[10,8,128] {
  %b = f32[10,8,128]{2,1,0:T(8,128)} parameter(0)
  %u = f32[1,8,128]{2,1,0:T(8,128)} parameter(1)
  %i = s32[]{:T(128)} parameter(2)
  ROOT %d = f32[10,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%b, %u, %i, %i, %i)
}
%body (p.2: (s32[], bf16[10,64,128])) -> (s32[], bf16[10,64,128]) {
  %p.2 = (s32[], bf16[10,64,128]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i.1 = s32[]{:T(128)S(6)} get-tuple-element(%p.2), index=0
  %w = bf16[10,64,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%p.2), index=1
  %g = f32[64,128]{1,0:T(8,128)S(1)} fusion(%w, %i.1), kind=kLoop, calls=%taken
  %two = u32[]{:T(128)S(6)} constant(2)
  %next = u32[]{:T(128)S(6)} add(%i.1, %two)
  ROOT %t = (u32[], bf16[10,64,128]{2,1,0:T(8,128)(2,1)}) tuple(%next, %w)
}
%cond (p.3: (s32[], bf16[10,64,128])) -> pred[] {
  %n = u32[]{:T(128)S(6)} constant(20)
  %i.2 = u32[]{:T(128)S(6)} get-tuple-element(%p.3), index=0
  ROOT %less = pred[]{:T(512)S(6)} compare(%i.2, %n), direction=LT
}
ENTRY %main (x: bf16[10,64,128]) -> f32[4,100] {
  %x = bf16[10,64,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %loop = (s32[], bf16[10,64,128]{2,1,0:T(8,128)(2,1)}) while(%x), condition=%cond, body=%body
  %y = f32[4,100]{1,0:T(8,128)} parameter(1)
  %z = f32[4,100]{1,0:T(8,128)} negate(%y)
  %stack = f32[10,8,128]{2,1,0:T(8,128)} custom-call(), custom_call_target="AllocateBuffer"
  %part = f32[1,8,128]{2,1,0:T(8,128)} parameter(2)
  %put.1 = f32[10,8,128]{2,1,0:T(8,128)} fusion(%stack, %part, %n.1), kind=kLoop, calls=%put
  %begun = (f32[4,100]{1,0:T(8,128)S(1)}, f32[4,100]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%y)
  ROOT %done = f32[4,100]{1,0:T(8,128)S(1)} copy-done(%begun)
}
"""
  program = hlo.Program(text)
  loop, padded, put = 10 * 64 * 128 * 2, 2 * 8 * 128 * 4, 2 * 8 * 128 * 4
  assert program.traffic() == loop + padded + put + 4 * 100 * 4


def test_a_collective_beside_which_others_compute_is_sent_once():
  part = 'f32[2,4]{1,0} all-gather(%p), channel_id=5, replica_groups=[1,4]<=[4], frontend_attributes={chain_id="7"}'
  text = "\n".join(
    [f"%part_{i} (p: f32[8]) -> f32[8] {{\n  ROOT %gather_{i} = {part}\n}}" for i in range(3)]
    + ["ENTRY %main (x: f32[8]) -> f32[8] {"]
    + [f"  %fusion.{i} = f32[2,4]{{1,0}} fusion(%x), kind=kCustom, calls=%part_{i}" for i in range(3)]
    + ["  ROOT %other = f32[2,4]{1,0} all-gather(%x), channel_id=6, replica_groups=[1,4]<=[4]", "}"]
  )
  program = hlo.Program(text)
  assert program.sent() == {"all-gather": 2 * 0.75 * 2 * 4 * 4}


def test_attention_block_by_block_is_counted_though_xla_does_not():
  inputs = "s8[1,8,8]{2,1,0}, bf16[2,8,4096,40]{3,2,1,0}, bf16[2,8,1024,40]{3,2,1,0}, bf16[2,8,1024,40]{3,2,1,0}"
  text = "\n".join([
    "ENTRY %main (x: f32[8,16]) -> f32[8,16] {",
    *(f'  %splash_mha_{name}.1 = (f32[2,512]{{1,0:T(8,128)}}, bf16[2,8,4096,40]{{3,2,1,0}}) custom-call(%x, %q), '
      f'custom_call_target="tpu_custom_call", operand_layout_constraints={{{inputs}}}, metadata={{op_name="x"}}'
      for name in ("fwd_residuals", "dkv_no_residuals")),
    "}",
  ])  # fmt: skip
  program = hlo.Program(text)
  assert program.attention() == 2 * (2 + 5) * 2 * 8 * 4096 * 1024 * 40
  assert program.products() == 0


def test_collectives_of_several_arrays_and_of_all_devices():
  text = """HloModule jit_run, num_partitions=4
ENTRY %main (x: f32[8,16]) -> f32[8,16] {
  %s = ((f32[2], bf16[4]), (f32[8], bf16[16])) all-gather-start(%a, %b), replica_groups={}, dimensions={0}
  %d = (f32[8], bf16[16]) all-gather-done(%s)
  %p = (f32[8], f32[8], u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
  ROOT %r = f32[2] reduce-scatter(%y), replica_groups={}, dimensions={0}, to_apply=%add
}
"""
  program = hlo.Program(text)
  sent = {"all-gather": 0.75 * (32 + 32), "collective-permute": 32.0, "reduce-scatter": 3 * 8.0}
  assert program.sent() == sent


def test_collectives_of_several_arrays_are_sent_whole_however_they_are_written():
  # A permute of two arrays, at once and begun; one begun that says nothing of how far it is; a broadcast; and an
  # exchange of pieces of any length, of which no more can be sent than each device holds.
  text = """HloModule jit_run, num_partitions=4
ENTRY %main (x: f32[8,16]) -> f32[8,16] {
  %a = f32[8]{0:T(128)} parameter(0)
  %b = bf16[4]{0:T(128)} parameter(1)
  %o = s32[4]{0:T(128)} parameter(2)
  %large = f32[32]{0:T(128)} parameter(3)
  %p = (f32[8]{0:T(128)}, bf16[4]{0:T(128)}) collective-permute(%a, %b), source_target_pairs={{0,1},{1,0}}
  %q = ((f32[8], bf16[4]), (f32[8], bf16[4]), u32[], u32[]) collective-permute-start(%a, %b), channel_id=1
  %r = (f32[8]{0:T(128)}, f32[8]{0:T(128)}) collective-permute-start(%a), source_target_pairs={{0,1},{1,0}}
  %s = f32[8]{0:T(128)} collective-broadcast(%a), replica_groups={{0,1},{2,3}}
  ROOT %t = f32[32]{0:T(128)} ragged-all-to-all(%a, %large, %o, %o, %o, %o), replica_groups={{0,1,2,3}}
}
"""
  sent = {"collective-permute": 40.0 + 40.0 + 32.0, "collective-broadcast": 32.0, "ragged-all-to-all": 0.75 * 32}
  assert hlo.Program(text).sent() == sent
