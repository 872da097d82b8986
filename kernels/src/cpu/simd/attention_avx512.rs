//! Attention of one block with AVX-512 bf16 products, for head dimensions that are multiples of 64.
//!
//! ```text
//! rows are cut into groups of 12, 6, 4, 3 or 1 (`group_rows`); for each group of R rows:
//!
//!   packed  [D / 2][R][2] bf16      broadcast, 4 bytes at a time
//!   scores  [R][64] f32             lanes are tokens, dimensions in order, no horizontal sums
//!   weights [R][64] bf16            2^(score - m)
//!   output  [R][D] f32              lanes are dimensions, pairs of tokens in order
//! ```
//!
//! The sum adds the rounded weights (a product with ones), so that rounding does not change their total, and
//! stays in 16 lanes to the end. The group a row is in is not visible in its bits.
//!
//! All functions here share the obligations of `AttentionKernel`: the machine has AVX-512 F, BW, VL, DQ and
//! BF16, and pointers are valid for the sizes their names state.

use std::arch::x86_64::*;

use crate::ATTENTION_BLOCK;
use crate::cpu::attention_kernel::{
    BLOCK_SUBPAGES, Block, POWER_OF_TWO, QueryHead, QueryRows, ROUNDER, RowState, Scratch, Visible,
    state_floats,
};
use crate::cpu::kv::{SUBPAGE_TOKENS, values_offset};

/// Rows of the next group.
fn group_rows(rows_left: usize) -> usize {
    match rows_left {
        12.. => 12,
        6.. => 6,
        4.. => 4,
        3 => 3,
        _ => 1,
    }
}

/// Merges a block into the rows' states.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(crate) unsafe fn fold<const D: usize>(
    rows: &QueryRows<'_>,
    block: &Block,
    _head_dim: usize,
    scratch: &mut Scratch,
) {
    // SAFETY: this function's own obligations.
    unsafe { attend::<D, false>(rows, block, scratch) };
}

/// Replaces the rows' states by the block's own.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(crate) unsafe fn store<const D: usize>(
    rows: &QueryRows<'_>,
    block: &Block,
    _head_dim: usize,
    scratch: &mut Scratch,
) {
    // SAFETY: this function's own obligations.
    unsafe { attend::<D, true>(rows, block, scratch) };
}

/// Scales, rounds and packs queries.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(crate) unsafe fn pack<const D: usize>(
    queries: *const f32,
    offsets: &[usize],
    head: QueryHead,
    packed: *mut u32,
) {
    debug_assert_eq!(head.dim, D);
    let scale = _mm512_set1_ps(head.scale);
    let mut pairs = [0u32; 64];
    const { assert!(D <= 128, "pairs of a head") };
    let mut first = 0;
    while first < offsets.len() {
        let size = group_rows(offsets.len() - first);
        for row in 0..size {
            // SAFETY: each query is D floats, `pairs` holds D / 2 words, and the group's words start at
            // first * D / 2 of the rows * D words that may be written.
            unsafe {
                for part in 0..D / 32 {
                    let source = queries.add(offsets[first + row] + 32 * part);
                    let low = _mm512_mul_ps(_mm512_loadu_ps(source), scale);
                    let high = _mm512_mul_ps(_mm512_loadu_ps(source.add(16)), scale);
                    let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
                    _mm512_storeu_si512(pairs.as_mut_ptr().add(16 * part).cast(), both);
                }
                let target = packed.add(first * D / 2 + row);
                for (pair, words) in pairs[..D / 2].iter().enumerate() {
                    target.add(pair * size).write(*words);
                }
            }
        }
        first += size;
    }
}

/// Merges a stored state into a row's state.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(crate) unsafe fn merge<const D: usize>(row: RowState, stored: RowState, _head_dim: usize) {
    // SAFETY: both are one row's state, 64-byte aligned, and one m.
    unsafe {
        let old = _mm512_set1_ps(row.largest.read());
        let block = _mm512_set1_ps(stored.largest.read());
        let new = _mm512_max_ps(old, block);
        let one = _mm512_set1_ps(1.0);
        let keep = _mm512_cvtss_f32(_mm512_scalef_ps(one, _mm512_sub_ps(old, new)));
        let take = _mm512_cvtss_f32(_mm512_scalef_ps(one, _mm512_sub_ps(block, new)));
        row.largest.write(_mm512_cvtss_f32(new));
        for line in 0..state_floats(D) / 16 {
            let values = _mm512_load_ps(stored.state.add(16 * line));
            merge_line::<false>(row.state.add(16 * line), values, keep, take);
        }
    }
}

/// Writes a row's result.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(crate) unsafe fn finish<const D: usize>(state: *const f32, _head_dim: usize, out: *mut f32) {
    // SAFETY: `state` is one row's, `out` D floats.
    unsafe {
        let total = _mm512_reduce_add_ps(_mm512_load_ps(state.add(D)));
        let factor = _mm512_set1_ps(1.0 / total);
        for line in 0..D / 16 {
            let value = _mm512_mul_ps(_mm512_load_ps(state.add(16 * line)), factor);
            _mm512_storeu_ps(out.add(16 * line), value);
        }
    }
}

#[inline(always)]
unsafe fn attend<const D: usize, const PARTIAL: bool>(
    rows: &QueryRows<'_>,
    block: &Block,
    scratch: &mut Scratch,
) {
    let mut row = 0;
    while row < rows.limits.len() {
        let size = group_rows(rows.limits.len() - row);
        // SAFETY: this function's own obligations; the group's rows are among `rows`.
        unsafe {
            match (size, row) {
                (12, 0) => attend_group::<D, 12, PARTIAL, true>(rows, row, block, scratch),
                (12, _) => attend_group::<D, 12, PARTIAL, false>(rows, row, block, scratch),
                (6, _) => attend_group::<D, 6, PARTIAL, true>(rows, row, block, scratch),
                (4, _) => attend_group::<D, 4, PARTIAL, true>(rows, row, block, scratch),
                (3, _) => attend_group::<D, 3, PARTIAL, true>(rows, row, block, scratch),
                _ => attend_group::<D, 1, PARTIAL, true>(rows, row, block, scratch),
            }
        }
        row += size;
    }
}

#[inline(always)]
unsafe fn dot(sum: __m512, left: __m512i, right: __m512i) -> __m512 {
    // SAFETY: the machine has BF16; the vectors are 64 plain bytes either way.
    unsafe {
        let left = std::mem::transmute::<__m512i, __m512bh>(left);
        let right = std::mem::transmute::<__m512i, __m512bh>(right);
        _mm512_dpbf16_ps(sum, left, right)
    }
}

/// 2^x for x <= 0, flat below -126. NaN stays NaN.
#[inline(always)]
unsafe fn power_of_two(x: __m512) -> __m512 {
    // SAFETY: arithmetic of AVX-512 F only.
    unsafe {
        let rounder = _mm512_set1_ps(ROUNDER);
        let clamped = _mm512_max_ps(_mm512_set1_ps(-126.0), x);
        let shifted = _mm512_add_ps(clamped, rounder);
        let whole = _mm512_sub_ps(shifted, rounder);
        let rest = _mm512_sub_ps(clamped, whole);
        let mut value = _mm512_set1_ps(POWER_OF_TWO[0]);
        for coefficient in &POWER_OF_TWO[1..] {
            value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(*coefficient));
        }
        let exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
        _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(value), exponent))
    }
}

/// Scores of N subpages for R rows.
#[inline(always)]
unsafe fn score<const D: usize, const R: usize, const N: usize, const FETCH: bool>(
    packed: *const u32,
    block: &Block,
    first: usize,
    scratch: &mut Scratch,
) {
    // SAFETY: keys are D / 2 lines of 64 bytes in each subpage, `packed` D / 2 * R words; a prefetch reads
    // nothing.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); R]; N];
        for pair in 0..D / 2 {
            let mut keys = [_mm512_setzero_si512(); N];
            for (subpage, keys) in keys.iter_mut().enumerate() {
                *keys = _mm512_loadu_si512(block.subpages[first + subpage].add(64 * pair).cast());
                if FETCH {
                    let next = block.next[first + subpage].wrapping_add(64 * pair);
                    _mm_prefetch::<_MM_HINT_T1>(next.cast());
                }
            }
            for row in 0..R {
                let query = _mm512_set1_epi32(packed.add(pair * R + row).read() as i32);
                for (sums, keys) in sums.iter_mut().zip(keys) {
                    sums[row] = dot(sums[row], keys, query);
                }
            }
        }
        for (subpage, sums) in sums.iter().enumerate() {
            for (row, sum) in sums.iter().enumerate() {
                let target = scratch.scores[row][(first + subpage) * SUBPAGE_TOKENS..].as_mut_ptr();
                _mm512_store_ps(target, *sum);
            }
        }
    }
}

/// Lanes of a subpage below the row's limit.
#[inline(always)]
fn visible_lanes(visible: usize, subpage: usize) -> u16 {
    let lanes = visible
        .saturating_sub(subpage * SUBPAGE_TOKENS)
        .min(SUBPAGE_TOKENS);
    ((1u32 << lanes) - 1) as u16
}

/// Scores of one subpage of a row, minus infinity beyond the limit.
#[inline(always)]
unsafe fn load_scores<const MASKED: bool>(
    scratch: &Scratch,
    row: usize,
    subpage: usize,
    visible: usize,
) -> __m512 {
    // SAFETY: the row's scores are 64 aligned floats.
    unsafe {
        let scores = _mm512_load_ps(scratch.scores[row][subpage * SUBPAGE_TOKENS..].as_ptr());
        if !MASKED {
            return scores;
        }
        let nothing = _mm512_set1_ps(f32::NEG_INFINITY);
        _mm512_mask_mov_ps(nothing, visible_lanes(visible, subpage), scores)
    }
}

/// m of the block, and the powers of two that scale state and block, for each row.
#[repr(align(64))]
struct Factors {
    largest: [f32; 16],
    keep: [f32; 16],
    take: [f32; 16],
}

/// The block's m of R rows, merged into theirs.
#[inline(always)]
unsafe fn find_largest<const R: usize, const MASKED: bool, const PARTIAL: bool>(
    scratch: &Scratch,
    visible: &[usize; R],
    state_largest: *mut f32,
) -> Factors {
    let mut factors = Factors {
        largest: [f32::NEG_INFINITY; 16],
        keep: [0.0; 16],
        take: [0.0; 16],
    };
    // SAFETY: arrays of 16 aligned floats; `state_largest` is R floats and only those are touched.
    unsafe {
        for (row, visible) in visible.iter().enumerate() {
            let mut largest = load_scores::<MASKED>(scratch, row, 0, *visible);
            for subpage in 1..BLOCK_SUBPAGES {
                let scores = load_scores::<MASKED>(scratch, row, subpage, *visible);
                largest = _mm512_max_ps(largest, scores);
            }
            factors.largest[row] = _mm512_reduce_max_ps(largest);
        }
        let rows = ((1u32 << R) - 1) as u16;
        let block = _mm512_load_ps(factors.largest.as_ptr());
        let block = _mm512_roundscale_ps::<{ _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC }>(block);
        let old = _mm512_maskz_loadu_ps(rows, state_largest);
        let new = if PARTIAL { block } else { _mm512_max_ps(old, block) };
        let one = _mm512_set1_ps(1.0);
        _mm512_mask_storeu_ps(state_largest, rows, new);
        _mm512_store_ps(factors.largest.as_mut_ptr(), block);
        let keep = _mm512_scalef_ps(one, _mm512_sub_ps(old, new));
        let take = _mm512_scalef_ps(one, _mm512_sub_ps(block, new));
        _mm512_store_ps(factors.keep.as_mut_ptr(), keep);
        _mm512_store_ps(factors.take.as_mut_ptr(), take);
    }
    factors
}

/// Scores of a row become weights; gives their sum in 16 lanes.
#[inline(always)]
unsafe fn soften<const MASKED: bool>(
    scratch: &mut Scratch,
    row: usize,
    visible: usize,
    largest: f32,
) -> __m512 {
    // SAFETY: the row's weights are 32 aligned words.
    unsafe {
        let largest = _mm512_set1_ps(largest);
        let mut values = [largest; BLOCK_SUBPAGES];
        for (subpage, value) in values.iter_mut().enumerate() {
            let scores = load_scores::<MASKED>(scratch, row, subpage, visible);
            *value = power_of_two(_mm512_sub_ps(scores, largest));
            if MASKED {
                *value = _mm512_maskz_mov_ps(visible_lanes(visible, subpage), *value);
            }
        }
        let ones = _mm512_set1_epi16(0x3f80);
        let mut sum = _mm512_setzero_ps();
        for half in 0..BLOCK_SUBPAGES / 2 {
            let pairs = _mm512_cvtne2ps_pbh(values[2 * half + 1], values[2 * half]);
            let pairs: __m512i = std::mem::transmute(pairs);
            _mm512_store_si512(scratch.weights[row][16 * half..].as_mut_ptr().cast(), pairs);
            sum = dot(sum, pairs, ones);
        }
        sum
    }
}

/// Adds a pair of tokens' values, 64 dimensions from 64 * `part`, to G rows. LAST: only its first token.
#[inline(always)]
unsafe fn add_pair<const D: usize, const G: usize, const LAST: bool>(
    block: &Block,
    scratch: &Scratch,
    (first_row, part, pair): (usize, usize, usize),
    sums: &mut [[__m512; 4]; G],
) {
    // SAFETY: values are 8 pairs of D words in each subpage, and 64 * part < D.
    unsafe {
        let values = block.subpages[pair / 8].add(values_offset(D) + 4 * (pair % 8 * D + 64 * part));
        let mut lines = [_mm512_setzero_si512(); 4];
        for (quarter, line) in lines.iter_mut().enumerate() {
            *line = _mm512_loadu_si512(values.add(64 * quarter).cast());
            if LAST {
                // The partner is beyond the limit and may be NaN.
                *line = _mm512_and_si512(*line, _mm512_set1_epi32(0xffff));
            }
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            let weight = _mm512_set1_epi32(scratch.weights[first_row + row][pair] as i32);
            for (sum, line) in sums.iter_mut().zip(lines) {
                *sum = dot(*sum, line, weight);
            }
        }
    }
}

/// Merges 16 floats of a block into the state: the one place where the fold's rounding happens.
#[inline(always)]
unsafe fn merge_line<const PARTIAL: bool>(state: *mut f32, block: __m512, keep: f32, take: f32) {
    // SAFETY: `state` is 16 aligned floats.
    unsafe {
        if PARTIAL {
            _mm512_store_ps(state, block);
            return;
        }
        let taken = _mm512_mul_ps(block, _mm512_set1_ps(take));
        let merged = _mm512_fmadd_ps(_mm512_load_ps(state), _mm512_set1_ps(keep), taken);
        _mm512_store_ps(state, merged);
    }
}

/// The rest of one row's values, from `first_pair` on, and its merge.
#[inline(always)]
unsafe fn add_row_values<const D: usize, const PARTIAL: bool>(
    block: &Block,
    scratch: &Scratch,
    (row, first_pair, visible): (usize, usize, usize),
    (keep, take): (f32, f32),
    state: *mut f32,
) {
    // SAFETY: this function's own obligations; `state` is the row's.
    unsafe {
        for part in 0..D / 64 {
            let mut sums = [[_mm512_setzero_ps(); 4]; 1];
            let kept = scratch.output[row][64 * part..].as_ptr();
            for (quarter, sum) in sums[0].iter_mut().enumerate() {
                *sum = _mm512_load_ps(kept.add(16 * quarter));
            }
            for pair in first_pair..visible / 2 {
                add_pair::<D, 1, false>(block, scratch, (row, part, pair), &mut sums);
            }
            if visible % 2 == 1 {
                add_pair::<D, 1, true>(block, scratch, (row, part, visible / 2), &mut sums);
            }
            for (quarter, sum) in sums[0].iter().enumerate() {
                merge_line::<PARTIAL>(state.add(64 * part + 16 * quarter), *sum, keep, take);
            }
        }
    }
}

/// What a group's values are added with.
struct GroupValues<'a> {
    block: &'a Block,
    factors: &'a Factors,
    /// Pairs of tokens that every row of the group sees.
    pairs: usize,
    /// Nothing is left after those: merge at once.
    whole: bool,
    /// State of the group's first row.
    state: *mut f32,
}

/// Values of the pairs of tokens that all G rows from `first_row` see.
#[inline(always)]
unsafe fn add_values<const D: usize, const G: usize, const PARTIAL: bool, const FETCH: bool>(
    group: &GroupValues<'_>,
    scratch: &mut Scratch,
    first_row: usize,
) {
    // SAFETY: this function's own obligations; states and outputs of G rows from `first_row` are there.
    unsafe {
        for part in 0..D / 64 {
            let mut sums = [[_mm512_setzero_ps(); 4]; G];
            for pair in 0..group.pairs {
                if FETCH {
                    let offset = values_offset(D) + 4 * (pair % 8 * D + 64 * part);
                    let next = group.block.next[pair / 8].wrapping_add(offset);
                    for quarter in 0..4 {
                        _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(64 * quarter).cast());
                    }
                }
                add_pair::<D, G, false>(group.block, scratch, (first_row, part, pair), &mut sums);
            }
            for (row, sums) in sums.iter().enumerate() {
                let row = first_row + row;
                let (keep, take) = (group.factors.keep[row], group.factors.take[row]);
                for (quarter, sum) in sums.iter().enumerate() {
                    let offset = 64 * part + 16 * quarter;
                    if group.whole {
                        let target = group.state.add(row * state_floats(D) + offset);
                        merge_line::<PARTIAL>(target, *sum, keep, take);
                    } else {
                        _mm512_store_ps(scratch.output[row][offset..].as_mut_ptr(), *sum);
                    }
                }
            }
        }
    }
}

/// Scores of the first `n_subpages` for R rows.
#[inline(always)]
unsafe fn score_block<const D: usize, const R: usize, const FETCH: bool>(
    packed: *const u32,
    block: &Block,
    n_subpages: usize,
    scratch: &mut Scratch,
) {
    let mut subpage = 0;
    // SAFETY: this function's own obligations.
    unsafe {
        if R <= 6 && n_subpages == BLOCK_SUBPAGES {
            score::<D, R, BLOCK_SUBPAGES, FETCH>(packed, block, 0, scratch);
            return;
        }
        while subpage + 2 <= n_subpages {
            score::<D, R, 2, FETCH>(packed, block, subpage, scratch);
            subpage += 2;
        }
        if subpage < n_subpages {
            score::<D, R, 1, FETCH>(packed, block, subpage, scratch);
        }
    }
}

/// One block for a group of R rows.
#[inline(always)]
unsafe fn attend_group<const D: usize, const R: usize, const PARTIAL: bool, const FETCH: bool>(
    rows: &QueryRows<'_>,
    first_row: usize,
    block: &Block,
    scratch: &mut Scratch,
) {
    let visible = Visible::<R>::new(
        &rows.firsts[first_row..],
        &rows.limits[first_row..],
        block.first_token,
    );
    if visible.most == 0 {
        return;
    }
    let whole = visible.least == ATTENTION_BLOCK;
    // SAFETY: this function's own obligations; states, m and packed queries of R rows from `first_row` are
    // there, and subpages below the largest limit are readable.
    unsafe {
        let packed = rows.packed.add(first_row * D / 2);
        score_block::<D, R, FETCH>(packed, block, visible.most.div_ceil(SUBPAGE_TOKENS), scratch);
        let state = rows.state.add(first_row * state_floats(D));
        let largest = rows.largest.add(first_row);
        let factors = if whole {
            find_largest::<R, false, PARTIAL>(scratch, &visible.tokens, largest)
        } else {
            find_largest::<R, true, PARTIAL>(scratch, &visible.tokens, largest)
        };
        for (row, tokens) in visible.tokens.into_iter().enumerate() {
            let sum = if whole {
                soften::<false>(scratch, row, tokens, factors.largest[row])
            } else {
                soften::<true>(scratch, row, tokens, factors.largest[row])
            };
            if tokens > 0 {
                let lanes = state.add(row * state_floats(D) + D);
                merge_line::<PARTIAL>(lanes, sum, factors.keep[row], factors.take[row]);
            }
        }
        let group = GroupValues {
            block,
            factors: &factors,
            pairs: visible.least / 2,
            whole,
            state,
        };
        if R == 12 {
            add_values::<D, 6, PARTIAL, FETCH>(&group, scratch, 0);
            add_values::<D, 6, PARTIAL, false>(&group, scratch, 6);
        } else {
            add_values::<D, R, PARTIAL, FETCH>(&group, scratch, 0);
        }
        if whole {
            return;
        }
        for (row, tokens) in visible.tokens.into_iter().enumerate() {
            if tokens > 0 {
                let scale = (factors.keep[row], factors.take[row]);
                let target = state.add(row * state_floats(D));
                add_row_values::<D, PARTIAL>(block, scratch, (row, group.pairs, tokens), scale, target);
            }
        }
    }
}
