//! [`attention_lanes`](super::attention_lanes) compiled for AVX2 and FMA.
//!
//! Obligations as there: the machine has AVX2 and FMA, and pointers are valid for the sizes their names
//! state.

use super::attention_lanes;
use super::lanes::Avx2Lanes;
use crate::cpu::attention_kernel::{Block, QueryHead, QueryRows, RowState, Scratch};

/// Scales queries.
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn pack(queries: *const f32, offsets: &[usize], head: QueryHead, packed: *mut u32) {
    // SAFETY: this function's own obligations.
    unsafe { attention_lanes::pack::<Avx2Lanes>(queries, offsets, head, packed) };
}

/// Merges a block into the rows' states.
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn fold<const CAPPED: bool>(
    rows: &QueryRows<'_>,
    block: &Block,
    head_dim: usize,
    scratch: &mut Scratch,
) {
    // SAFETY: this function's own obligations.
    unsafe { attention_lanes::fold::<Avx2Lanes, CAPPED>(rows, block, head_dim, scratch) };
}

/// Replaces the rows' states by the block's own.
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn store<const CAPPED: bool>(
    rows: &QueryRows<'_>,
    block: &Block,
    head_dim: usize,
    scratch: &mut Scratch,
) {
    // SAFETY: this function's own obligations.
    unsafe { attention_lanes::store::<Avx2Lanes, CAPPED>(rows, block, head_dim, scratch) };
}

/// Merges a stored state into a row's state.
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn merge(row: RowState, stored: RowState, head_dim: usize) {
    // SAFETY: this function's own obligations.
    unsafe { attention_lanes::merge::<Avx2Lanes>(row, stored, head_dim) };
}

/// Writes a row's result.
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn finish(state: *const f32, head_dim: usize, out: *mut f32) {
    // SAFETY: this function's own obligations.
    unsafe { attention_lanes::finish::<Avx2Lanes>(state, head_dim, out) };
}
