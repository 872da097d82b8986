//! Single instructions and checks on hand-written PTX: each test is a kernel of a few lines.

mod support;

use arbora_ptx_emulator::{Fault, FaultKind, Memory, Module, Statistics};
use support::{Param, launch};

/// A kernel with one pointer parameter in `%rd0`, and 8 registers of each kind.
fn kernel(body: &str) -> String {
    format!(
        ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 p)\n{{\n\
         .reg .b64 %rd<8>;\n.reg .b32 %r<8>;\n.reg .f32 %f<8>;\n.reg .pred %p<8>;\n.reg .b16 %h<8>;\n\
         .shared .align 16 .b8 s[256];\n\
         ld.param.u64 %rd0, [p];\nmov.u32 %r0, %tid.x;\n{body}\nret;\n}}\n"
    )
}

/// Runs it with `n_threads` and gives the words that it wrote to `p`.
fn run(body: &str, n_threads: u32) -> Result<(Vec<u32>, Statistics), Fault> {
    let mut memory = Memory::default();
    let out = memory.allocate(256);
    let block = ([1, 1, 1], [n_threads, 1, 1]);
    let statistics = launch(
        &kernel(body),
        "k",
        block,
        &[Param::Address(out)],
        (&mut memory, 1),
    )?;
    let bytes = memory.slice(out, 256).expect("the output is there");
    let words = bytes
        .chunks_exact(4)
        .map(|word| u32::from_le_bytes(word.try_into().expect("4 bytes")));
    Ok((words.collect(), statistics))
}

/// What a body that leaves its result in `%r1` gives in each lane.
fn lanes(body: &str) -> Vec<u32> {
    let store = "mad.wide.u32 %rd1, %r0, 4, %rd0; st.global.u32 [%rd1], %r1;";
    let (words, _) = run(&format!("{body}\n{store}"), 32).unwrap_or_else(|fault| panic!("{fault}"));
    words[..32].to_vec()
}

fn refused(body: &str, n_threads: u32) -> Fault {
    run(body, n_threads).expect_err("a fault")
}

#[test]
fn integer_instructions_are_those_of_the_manual() {
    let of = |instruction: &str| lanes(instruction)[5];
    assert_eq!(of("sub.s32 %r1, %r0, 7;"), -2i32 as u32);
    assert_eq!(of("mul.hi.u32 %r1, %r0, 0x80000000;"), 2);
    assert_eq!(of("bfe.u32 %r1, 0xabcd, 4, 8;"), 0xbc);
    assert_eq!(of("bfe.s32 %r1, 0xabcd, 8, 8;"), 0xffff_ffab);
    assert_eq!(of("bfi.b32 %r1, 0xf, 0, 8, 4;"), 0xf00);
    assert_eq!(of("prmt.b32 %r1, 0x33221100, 0x77665544, 0x7531;"), 0x7755_3311);
    assert_eq!(of("prmt.b32 %r1, 0x00008000, 0, 0x9999;"), 0xffff_ffff);
    assert_eq!(of("lop3.b32 %r1, %r0, 3, 6, 0x96;"), 5 ^ 3 ^ 6);
    assert_eq!(of("shf.l.wrap.b32 %r1, 0x80000000, 1, 1;"), 3);
    assert_eq!(of("popc.b32 %r1, %r0;"), 2);
    assert_eq!(of("clz.b32 %r1, %r0;"), 29);
    assert_eq!(of("bfind.u32 %r1, %r0;"), 2);
    assert_eq!(of("shr.s32 %r1, 0x80000000, 31;"), u32::MAX);
    assert_eq!(of("shr.u32 %r1, 1, 40;"), 0);
    assert_eq!(of("dp4a.s32.s32 %r1, 0xff020304, 0x01010101, 10;"), 18);
    assert_eq!(of("rem.s32 %r1, -7, 3;"), -1i32 as u32);
}

#[test]
fn floating_point_is_rounded_once_and_special_values_are_kept() {
    let of = |body: &str| f32::from_bits(lanes(&format!("{body}\nmov.b32 %r1, %f1;"))[0]);
    assert_eq!(
        of("fma.rn.f32 %f1, 0f3F800001, 0f3F800001, 0fBF800002;"),
        2f32.powi(-46)
    );
    assert_eq!(of("max.f32 %f1, 0f7FC00000, 0f40000000;"), 2.0);
    assert!(of("max.NaN.f32 %f1, 0f7FC00000, 0f40000000;").is_nan());
    assert_eq!(of("mul.ftz.f32 %f1, 0f00800000, 0f3F000000;"), 0.0);
    assert_eq!(of("add.sat.f32 %f1, 0f40000000, 0f40000000;"), 1.0);
    assert_eq!(of("add.rm.f32 %f1, 0f3F800000, 0fAB800000;"), 1f32.next_down());
    assert_eq!(of("add.rp.f32 %f1, 0f3F800000, 0f2B800000;"), 1f32.next_up());
    assert_eq!(of("add.rz.f32 %f1, 0fBF800000, 0f2B800000;"), -(1f32.next_down()));
    assert_eq!(of("cvt.rn.f32.s32 %f1, -3;"), -3.0);
    assert_eq!(of("ex2.approx.f32 %f1, 0f40400000;"), 8.0);
    let bits = lanes("cvt.rn.bf16x2.f32 %r1, 0f3F800000, 0f40490FDB;")[0];
    assert_eq!(bits, 0x3f80_4049);
    assert_eq!(lanes("cvt.rzi.s32.f32 %r1, 0fC0200000;")[0], -2i32 as u32);
    assert_eq!(lanes("cvt.rzi.u32.f32 %r1, 0f4F900000;")[0], u32::MAX);
    assert_eq!(
        lanes("setp.gt.f32 %p1, 0f7FC00000, 0f00000000; selp.u32 %r1, 1, 2, %p1;")[0],
        2
    );
    assert_eq!(
        lanes("setp.gtu.f32 %p1, 0f7FC00000, 0f00000000; selp.u32 %r1, 1, 2, %p1;")[0],
        1
    );
}

#[test]
fn lanes_that_branch_apart_meet_again() {
    // A loop of as many rounds as the lane's number, a shuffle behind it.
    let body = "mov.u32 %r1, 0;\nagain:\nsetp.ge.u32 %p1, %r1, %r0;\n@%p1 bra done;\nadd.u32 %r1, %r1, 1;\n\
                bra again;\ndone:\nshfl.sync.bfly.b32 %r1, %r1, 1, 31, 0xffffffff;";
    let expected: Vec<u32> = (0..32).map(|lane| lane ^ 1).collect();
    assert_eq!(lanes(body), expected);
}

#[test]
fn shuffles_and_votes_are_those_of_the_manual() {
    let up = lanes("shfl.sync.up.b32 %r1|%p1, %r0, 2, 0, 0xffffffff; @!%p1 mov.u32 %r1, 99;");
    assert_eq!(up[..4], [99, 99, 0, 1]);
    let idx = lanes("shfl.sync.idx.b32 %r1, %r0, 3, 0x1c1f, 0xffffffff;");
    assert_eq!((idx[0], idx[5], idx[31]), (3, 7, 31));
    let vote = lanes("setp.lt.u32 %p1, %r0, 4; vote.sync.ballot.b32 %r1, %p1, 0xffffffff;");
    assert_eq!(vote[9], 0xf);
    assert_eq!(lanes("redux.sync.add.u32 %r1, %r0, 0xffffffff;")[3], 31 * 16);
}

#[test]
fn a_race_in_shared_memory_is_found_and_a_barrier_ends_it() {
    let body = |barrier: &str| {
        format!(
            "mov.u32 %r2, s; mad.lo.u32 %r3, %r0, 4, %r2; st.shared.u32 [%r3], %r0;\n{barrier}\n\
             xor.b32 %r4, %r0, 32; mad.lo.u32 %r3, %r4, 4, %r2; ld.shared.u32 %r1, [%r3];\n\
             mad.wide.u32 %rd1, %r0, 4, %rd0; st.global.u32 [%rd1], %r1;"
        )
    };
    let (words, _) = run(&body("bar.sync 0;"), 64).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!((words[0], words[63]), (32, 31));
    let fault = refused(&body(""), 64);
    assert!(
        fault.message.contains("race") || fault.message.contains("nobody wrote it"),
        "{fault}"
    );
}

#[test]
fn what_nobody_wrote_is_not_read() {
    let fault = refused("add.u32 %r1, %r2, 1;", 32);
    assert!(
        fault.message.contains("a register is read before it is written"),
        "{fault}"
    );
    let fault = refused("ld.shared.u32 %r1, [s];", 32);
    assert!(fault.message.contains("nobody wrote it"), "{fault}");
}

#[test]
fn bad_accesses_are_found() {
    let fault = refused("st.global.u32 [%rd0+256], %r0;", 1);
    assert_eq!(fault.kind, FaultKind::Address, "{fault}");
    let fault = refused("st.global.u32 [%rd0+2], %r0;", 1);
    assert_eq!(fault.kind, FaultKind::Misaligned, "{fault}");
    let fault = refused("mov.u32 %r2, 0; ld.global.u32 %r1, [16];", 1);
    assert!(fault.message.contains("in no allocation"), "{fault}");
    let fault = refused("mov.u32 %r2, s; st.shared.u32 [%r2+256], %r0;", 1);
    assert_eq!(fault.kind, FaultKind::Address, "{fault}");
}

#[test]
fn collectives_that_not_all_reach_and_deadlocks_are_found() {
    let fault = refused("setp.lt.u32 %p1, %r0, 7; @%p1 exit; bar.warp.sync 0x7f;", 32);
    assert!(fault.message.contains("or not themselves"), "{fault}");
    let fault = refused("setp.lt.u32 %p1, %r0, 32; @%p1 bar.sync 1, 64;", 64);
    assert!(fault.message.contains("deadlock"), "{fault}");
    let fault = refused(
        "setp.lt.u32 %p1, %r0, 7;\n@%p1 bra skip;\nbar.warp.sync 0xffffffff;\nskip:\nbar.warp.sync 0xffffff80;",
        32,
    );
    assert!(
        fault.message.contains("collective") || fault.message.contains("themselves"),
        "{fault}"
    );
    let fault = refused("cp.async.cg.shared.global [s], [%rd0], 16;", 1);
    assert!(fault.message.contains("asynchronous copies"), "{fault}");
}

#[test]
fn sectors_and_bank_conflicts_are_counted() {
    let strided = "mad.wide.u32 %rd1, %r0, 8, %rd0; st.global.u32 [%rd1], %r0;";
    let (_, statistics) = run(strided, 32).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(
        (statistics.global_stores, statistics.global_store_sectors),
        (1, 8)
    );
    let same_bank =
        "mov.u32 %r2, s; and.b32 %r3, %r0, 1; mad.lo.u32 %r3, %r3, 128, %r2; st.shared.u32 [%r3], %r0;";
    let (_, statistics) = run(same_bank, 2).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!((statistics.shared_ideal, statistics.shared_cycles), (1, 2));
}

#[test]
fn what_is_not_understood_is_refused_with_its_line() {
    for (body, what) in [
        ("tcgen05.alloc.b32 [s], 32;", "tcgen05"),
        ("add.u32 %r1, %r0, %r9;", "%r9"),
        ("bra nowhere;", "nowhere"),
        ("ld.global.b128 %rd1, [%rd0];", "ld.global.b128"),
    ] {
        let error = Module::parse(&kernel(body)).expect_err(what);
        assert!(error.to_string().contains(what), "{error}");
        assert!(error.line >= 12, "{error}");
    }
}

#[test]
fn texts_that_break_off_are_refused_and_never_panic() {
    let whole = kernel("setp.lt.u32 %p1, %r0, 7; @%p1 bra a; a: { .reg .b32 t; mov.u32 t, 1; } bar.sync 0;");
    for n in (0..whole.len()).filter(|&n| whole.is_char_boundary(n)) {
        if let Ok(module) = Module::parse(&whole[..n]) {
            assert!(module.kernels.is_empty() || n + 2 >= whole.len(), "{n}");
        }
    }
}
