//! The interface of the attention kernels, and how one is chosen.
//!
//! A kernel reduces one block of [`ATTENTION_BLOCK`] tokens of one kv head for any number of query rows. It
//! always starts from nothing and merges the result into the row's state at the end (contract C2):
//!
//! ```text
//! state of a row   | output, head_dim, padded to 16 | sum of weights in lanes, 16 |   largest: its own array
//!
//! block            m = ceil(largest score that the row sees), base 2
//!                  p_t = 2^(s_t - m);  l = sum p_t;  o = sum p_t v_t
//! merge            M = max(m_state, m);  (l, o) = (l, o)_state * 2^(m_state - M) + (l, o) * 2^(m - M)
//! result           o / (sum of l's lanes)
//! ```
//!
//! Where the layer has a soft cap, `s_t = cap * tanh(s_t / cap)` before all that; queries are scaled so that
//! their products come out divided by the cap.
//!
//! m is an integer, so that both factors are exact powers of two and a merge needs no exponential.
//!
//! A row's bits depend on its query, its limit, its window and the tokens in it. Scores of other tokens are
//! masked out; their values are never multiplied, not even by zero.

use super::isa::Isa;
#[cfg(target_arch = "x86_64")]
use super::isa::has_avx512_bf16;
use super::kv::SUBPAGE_TOKENS;
use super::simd::attention_lanes;
use super::simd::lanes::ScalarLanes;
use crate::{ATTENTION_BLOCK, AttentionSpec};

/// Subpages per block.
pub(crate) const BLOCK_SUBPAGES: usize = ATTENTION_BLOCK / SUBPAGE_TOKENS;

/// Most rows that share one pass over a block's keys.
pub(crate) const MOST_GROUP_ROWS: usize = 12;

/// Floats of a row's state before the lanes of its sum.
pub(crate) const fn padded_dim(head_dim: usize) -> usize {
    head_dim.next_multiple_of(16)
}

/// Floats of a row's state.
pub(crate) const fn state_floats(head_dim: usize) -> usize {
    padded_dim(head_dim) + 16
}

/// Query rows of one kv head, and where their states are.
pub(crate) struct QueryRows<'a> {
    /// What `pack` made, `head_dim` words a row.
    pub(crate) packed: *const u32,
    /// The first token that each row sees.
    pub(crate) firsts: &'a [usize],
    /// One more than the last.
    pub(crate) limits: &'a [usize],
    /// [`state_floats`] a row, 64-byte aligned.
    pub(crate) state: *mut f32,
    /// m of each row, minus infinity before the first block.
    pub(crate) largest: *mut f32,
    /// Soft cap of scores in base 2, for kernels that cap.
    pub(crate) cap: f32,
}

/// One block of one kv head.
pub(crate) struct Block {
    /// Its subpages; those beyond every row's limit are not read.
    pub(crate) subpages: [*const u8; BLOCK_SUBPAGES],
    /// The block to prefetch.
    pub(crate) next: [*const u8; BLOCK_SUBPAGES],
    /// Position of its first token.
    pub(crate) first_token: usize,
}

/// Scores, weights and unmerged outputs of a group of rows.
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(dead_code, reason = "only the AVX-512 kernel keeps weights and outputs here")
)]
#[repr(align(64))]
pub(crate) struct Scratch {
    pub(crate) scores: [[f32; ATTENTION_BLOCK]; MOST_GROUP_ROWS],
    pub(crate) weights: [[u32; ATTENTION_BLOCK / 2]; MOST_GROUP_ROWS],
    pub(crate) output: [[f32; 128]; MOST_GROUP_ROWS],
}

impl Scratch {
    pub(crate) fn new() -> Box<Scratch> {
        Box::new(Scratch {
            scores: [[0.0; ATTENTION_BLOCK]; MOST_GROUP_ROWS],
            weights: [[0; ATTENTION_BLOCK / 2]; MOST_GROUP_ROWS],
            output: [[0.0; 128]; MOST_GROUP_ROWS],
        })
    }
}

/// How the queries of a head are packed.
#[derive(Clone, Copy)]
pub(crate) struct QueryHead {
    /// Elements.
    pub(crate) dim: usize,
    /// What they are multiplied by, so that scores come out in base 2.
    pub(crate) scale: f32,
}

/// A row's state outside a kernel: where it is and its m.
#[derive(Clone, Copy)]
pub(crate) struct RowState {
    pub(crate) state: *mut f32,
    pub(crate) largest: *mut f32,
}

/// The functions of one kernel for one head dimension. All are unsafe to call:
/// * the machine has the kernel's ISA;
/// * pointers are valid for the sizes their fields state, the states of different rows apart.
#[derive(Clone, Copy)]
pub(crate) struct AttentionKernel {
    /// Its name in logs.
    pub(crate) name: &'static str,
    /// Elements per head.
    pub(crate) head_dim: usize,
    /// Scales and packs the queries at `offsets` from the pointer; writes `head.dim` words a row.
    pub(crate) pack: unsafe fn(queries: *const f32, offsets: &[usize], head: QueryHead, packed: *mut u32),
    /// Merges a block into the rows' states.
    pub(crate) fold: unsafe fn(rows: &QueryRows<'_>, block: &Block, head_dim: usize, scratch: &mut Scratch),
    /// Replaces the rows' states by the block's own. Rows that see nothing of it are left as they are.
    pub(crate) store: unsafe fn(rows: &QueryRows<'_>, block: &Block, head_dim: usize, scratch: &mut Scratch),
    /// Merges a state that `store` left into a row's state.
    pub(crate) merge: unsafe fn(row: RowState, stored: RowState, head_dim: usize),
    /// Writes the result, `head_dim` floats.
    pub(crate) finish: unsafe fn(state: *const f32, head_dim: usize, out: *mut f32),
}

impl AttentionKernel {
    /// The fastest kernel of an ISA. AVX-512 without bf16 products, other head dimensions, and layers with a
    /// window or a soft cap are served by AVX2.
    pub(crate) fn of(isa: Isa, head_dim: usize, spec: &AttentionSpec) -> AttentionKernel {
        let is_capped = spec.soft_cap.is_some();
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if has_avx512_bf16() && !is_capped && spec.window.is_none() => {
                AttentionKernel::avx512(head_dim).unwrap_or_else(|| AttentionKernel::avx2::<false>(head_dim))
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx2 if is_capped => AttentionKernel::avx2::<true>(head_dim),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx2 => AttentionKernel::avx2::<false>(head_dim),
            _ if is_capped => AttentionKernel::scalar::<true>(head_dim),
            _ => AttentionKernel::scalar::<false>(head_dim),
        }
    }

    /// The kernel of plain Rust.
    fn scalar<const CAPPED: bool>(head_dim: usize) -> AttentionKernel {
        AttentionKernel {
            name: "scalar",
            head_dim,
            pack: attention_lanes::pack::<ScalarLanes>,
            fold: attention_lanes::fold::<ScalarLanes, CAPPED>,
            store: attention_lanes::store::<ScalarLanes, CAPPED>,
            merge: attention_lanes::merge::<ScalarLanes>,
            finish: attention_lanes::finish::<ScalarLanes>,
        }
    }

    /// The kernel of AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    fn avx2<const CAPPED: bool>(head_dim: usize) -> AttentionKernel {
        use super::simd::attention_avx2;
        AttentionKernel {
            name: "avx2",
            head_dim,
            pack: attention_avx2::pack,
            fold: attention_avx2::fold::<CAPPED>,
            store: attention_avx2::store::<CAPPED>,
            merge: attention_avx2::merge,
            finish: attention_avx2::finish,
        }
    }

    /// The kernel of AVX-512 with bf16 products, where there is one for this head dimension.
    #[cfg(target_arch = "x86_64")]
    fn avx512(head_dim: usize) -> Option<AttentionKernel> {
        use super::simd::attention_avx512;
        fn kernel<const D: usize>() -> AttentionKernel {
            AttentionKernel {
                name: "avx512-bf16",
                head_dim: D,
                pack: attention_avx512::pack::<D>,
                fold: attention_avx512::fold::<D>,
                store: attention_avx512::store::<D>,
                merge: attention_avx512::merge::<D>,
                finish: attention_avx512::finish::<D>,
            }
        }
        match head_dim {
            64 => Some(kernel::<64>()),
            128 => Some(kernel::<128>()),
            _ => None,
        }
    }
}

/// Tokens of a block that each of R rows sees, with the extremes.
pub(crate) struct Visible<const R: usize> {
    /// The first, which is 0 for rows without a window.
    pub(crate) firsts: [usize; R],
    /// The largest of these, rounded up to a pair of tokens.
    pub(crate) latest_first: usize,
    /// One more than the last; 0 for a row that sees none.
    pub(crate) tokens: [usize; R],
    pub(crate) most: usize,
    pub(crate) least: usize,
}

impl<const R: usize> Visible<R> {
    #[inline(always)]
    pub(crate) fn new(firsts: &[usize], limits: &[usize], first_token: usize) -> Visible<R> {
        let mut visible = Visible {
            firsts: [0; R],
            latest_first: 0,
            tokens: [0; R],
            most: 0,
            least: ATTENTION_BLOCK,
        };
        for row in 0..R {
            let first = firsts[row].saturating_sub(first_token);
            let end = limits[row].saturating_sub(first_token).min(ATTENTION_BLOCK);
            // A row whose window begins after the block sees none of it.
            let (first, end) = if first < end { (first, end) } else { (0, 0) };
            visible.firsts[row] = first;
            visible.tokens[row] = end;
            visible.latest_first = visible.latest_first.max(first.next_multiple_of(2));
            visible.most = visible.most.max(end);
            visible.least = visible.least.min(end);
        }
        visible
    }
}

/// Minimax (relative) for 2^f, f in -0.5 to 0.5, highest power first; relative error below 3e-6.
pub(crate) const POWER_OF_TWO: [f32; 5] = [
    0.009_570_102,
    0.055_917_86,
    0.240_247_45,
    0.693_121_8,
    0.999_999_3,
];

/// 1.5 * 2^23: adding it rounds to an integer, which is then found in the low bits.
pub(crate) const ROUNDER: f32 = 12_582_912.0;
