//! Attention of one block in f32 over eight lanes, for any even head dimension.
//!
//! ```text
//! rows are cut into groups of 4, 3, 2 or 1; for each group of R rows:
//!
//!   packed  [R][D] f32        the query, scaled
//!   scores  [R][64] f32       lanes are tokens; for each pair of dimensions the even one, then the odd one
//!   weights in the place of the scores: 2^(score - m)
//!   output  [D] f32           lanes are dimensions, tokens in order
//! ```
//!
//! Where D is no multiple of 8 the last vector of a value reaches into what follows it; those lanes are never
//! part of a result.
//!
//! All functions here share the obligations of `AttentionKernel`: the machine has the lanes' instruction set,
//! and pointers are valid for the sizes their names state.

use std::ops::Range;

use super::lanes::{LANES, Lanes};
use crate::ATTENTION_BLOCK;
use crate::cpu::attention_kernel::{
    Block, POWER_OF_TWO, QueryHead, QueryRows, ROUNDER, RowState, Scratch, Visible, padded_dim, state_floats,
};
use crate::cpu::kv::{SUBPAGE_TOKENS, values_offset};
use crate::cpu::tanh::{TANH_DENOMINATOR, TANH_FLAT, TANH_NUMERATOR};

/// Dimensions of a value that are summed in one pass over the tokens.
const PART: usize = 2 * LANES;

/// Scales queries.
#[inline(always)]
pub(crate) unsafe fn pack<V: Lanes>(
    queries: *const f32,
    offsets: &[usize],
    head: QueryHead,
    packed: *mut u32,
) {
    let QueryHead { dim: head_dim, scale } = head;
    for (row, offset) in offsets.iter().enumerate() {
        for dimension in 0..head_dim {
            // SAFETY: each query is head_dim floats, and as many words of each row may be written.
            unsafe {
                let scaled = queries.add(offset + dimension).read() * scale;
                packed.add(row * head_dim + dimension).write(scaled.to_bits());
            }
        }
    }
}

/// Merges a block into the rows' states.
#[inline(always)]
pub(crate) unsafe fn fold<V: Lanes, const CAPPED: bool>(
    rows: &QueryRows<'_>,
    block: &Block,
    head_dim: usize,
    scratch: &mut Scratch,
) {
    // SAFETY: this function's own obligations.
    unsafe { attend::<V, false, CAPPED>(rows, block, head_dim, scratch) };
}

/// Replaces the rows' states by the block's own.
#[inline(always)]
pub(crate) unsafe fn store<V: Lanes, const CAPPED: bool>(
    rows: &QueryRows<'_>,
    block: &Block,
    head_dim: usize,
    scratch: &mut Scratch,
) {
    // SAFETY: this function's own obligations.
    unsafe { attend::<V, true, CAPPED>(rows, block, head_dim, scratch) };
}

/// Merges a stored state into a row's state.
#[inline(always)]
pub(crate) unsafe fn merge<V: Lanes>(row: RowState, stored: RowState, head_dim: usize) {
    // SAFETY: both are one row's state and one m.
    unsafe {
        let factors = Factors::of(row.largest.read(), stored.largest.read());
        row.largest.write(factors.largest);
        for first in (0..state_floats(head_dim)).step_by(LANES) {
            let block = V::load(stored.state.add(first));
            merge_lanes::<V, false>(row.state.add(first), block, &factors);
        }
    }
}

/// Writes a row's result.
#[inline(always)]
pub(crate) unsafe fn finish<V: Lanes>(state: *const f32, head_dim: usize, out: *mut f32) {
    // SAFETY: `state` is one row's, `out` head_dim floats.
    unsafe {
        let sums = state.add(padded_dim(head_dim)).cast::<[f32; LANES]>().read();
        let total = ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
        let factor = 1.0 / total;
        for dimension in 0..head_dim {
            out.add(dimension).write(state.add(dimension).read() * factor);
        }
    }
}

/// The powers of two that scale state and block, and the merged m.
struct Factors {
    largest: f32,
    keep: f32,
    take: f32,
}

impl Factors {
    #[inline(always)]
    fn of(state: f32, block: f32) -> Factors {
        let largest = if state > block { state } else { block };
        Factors {
            largest,
            keep: whole_power_of_two(state - largest),
            take: whole_power_of_two(block - largest),
        }
    }
}

/// 2^n for a whole n <= 0, zero below the normal numbers. NaN stays NaN.
#[inline(always)]
fn whole_power_of_two(n: f32) -> f32 {
    if n < -126.0 {
        return 0.0;
    }
    if n.is_nan() {
        return n;
    }
    f32::from_bits(((n as i32 + 127) as u32) << 23)
}

/// 2^x for x <= 0, flat below -126. NaN stays NaN.
#[inline(always)]
unsafe fn power_of_two<V: Lanes>(x: V) -> V {
    // SAFETY: arithmetic of the lanes' instruction set.
    unsafe {
        let rounder = V::splat(ROUNDER);
        let clamped = V::splat(-126.0).max(x);
        let shifted = clamped.add(rounder);
        let rest = clamped.sub(shifted.sub(rounder));
        let mut value = V::splat(POWER_OF_TWO[0]);
        for coefficient in &POWER_OF_TWO[1..] {
            value = value.mul_add(rest, V::splat(*coefficient));
        }
        value.scale_by_bits(shifted)
    }
}

#[inline(always)]
unsafe fn merge_lanes<V: Lanes, const PARTIAL: bool>(state: *mut f32, block: V, factors: &Factors) {
    // SAFETY: `state` is 8 floats.
    unsafe {
        if PARTIAL {
            block.store(state);
            return;
        }
        let taken = block.mul(V::splat(factors.take));
        V::load(state).mul_add(V::splat(factors.keep), taken).store(state);
    }
}

#[inline(always)]
unsafe fn attend<V: Lanes, const PARTIAL: bool, const CAPPED: bool>(
    rows: &QueryRows<'_>,
    block: &Block,
    head_dim: usize,
    scratch: &mut Scratch,
) {
    let mut row = 0;
    while row < rows.limits.len() {
        let group = Group {
            rows,
            first_row: row,
            block,
            head_dim,
        };
        // SAFETY: this function's own obligations; the group's rows are among `rows`.
        unsafe {
            match rows.limits.len() - row {
                4.. => attend_group::<V, 4, PARTIAL, CAPPED>(&group, scratch),
                3 => attend_group::<V, 3, PARTIAL, CAPPED>(&group, scratch),
                2 => attend_group::<V, 2, PARTIAL, CAPPED>(&group, scratch),
                _ => attend_group::<V, 1, PARTIAL, CAPPED>(&group, scratch),
            }
        }
        row += (rows.limits.len() - row).min(4);
    }
}

struct Group<'a> {
    rows: &'a QueryRows<'a>,
    first_row: usize,
    block: &'a Block,
    head_dim: usize,
}

/// Scores of one subpage for R rows.
#[inline(always)]
unsafe fn score<V: Lanes, const R: usize>(group: &Group<'_>, subpage: usize, scratch: &mut Scratch) {
    let head_dim = group.head_dim;
    // SAFETY: keys are head_dim / 2 lines of 64 bytes, `packed` head_dim floats a row, scores 64 floats a
    // row.
    unsafe {
        let queries = group.rows.packed.add(group.first_row * head_dim).cast::<f32>();
        let mut low = [V::splat(0.0); R];
        let mut high = low;
        for pair in 0..head_dim / 2 {
            let line = group.block.subpages[subpage].add(64 * pair);
            if group.first_row == 0 {
                V::prefetch(group.block.next[subpage].wrapping_add(64 * pair));
            }
            let (low_even, low_odd) = V::load_bf16_pairs(line);
            let (high_even, high_odd) = V::load_bf16_pairs(line.add(4 * LANES));
            for row in 0..R {
                let query = queries.add(row * head_dim + 2 * pair);
                let even = V::splat(query.read());
                let odd = V::splat(query.add(1).read());
                low[row] = odd.mul_add(low_odd, even.mul_add(low_even, low[row]));
                high[row] = odd.mul_add(high_odd, even.mul_add(high_even, high[row]));
            }
        }
        for row in 0..R {
            let target = scratch.scores[row][subpage * SUBPAGE_TOKENS..].as_mut_ptr();
            low[row].store(target);
            high[row].store(target.add(LANES));
        }
    }
}

/// Scores in units of the cap become `cap * tanh(score)`. Whole vectors of them.
#[inline(always)]
unsafe fn cap_scores<V: Lanes>(scores: &mut [f32], cap: f32) {
    for place in scores.chunks_exact_mut(LANES) {
        // SAFETY: a chunk is 8 floats.
        unsafe {
            let capped = tanh(V::load(place.as_ptr())).mul(V::splat(cap));
            capped.store(place.as_mut_ptr());
        }
    }
}

/// The rational function of `cpu/tanh.rs` over lanes. NaN stays NaN.
#[inline(always)]
unsafe fn tanh<V: Lanes>(x: V) -> V {
    // SAFETY: arithmetic of the lanes' instruction set.
    unsafe {
        let x = V::splat(TANH_FLAT).min(V::splat(-TANH_FLAT).max(x));
        let square = x.mul(x);
        let polynomial = |coefficients: &[f32]| {
            let mut sum = V::splat(coefficients[0]);
            for coefficient in &coefficients[1..] {
                sum = sum.mul_add(square, V::splat(*coefficient));
            }
            sum
        };
        x.mul(polynomial(&TANH_NUMERATOR))
            .div(polynomial(&TANH_DENOMINATOR))
    }
}

/// Scores of a row become weights, zero for tokens it does not see; merges their sum and gives the factors.
#[inline(always)]
unsafe fn soften<V: Lanes, const PARTIAL: bool>(
    scores: &mut [f32; ATTENTION_BLOCK],
    Range {
        start: unseen,
        end: visible,
    }: Range<usize>,
    lanes_of_sum: *mut f32,
    state_largest: *mut f32,
) -> Factors {
    scores[..unseen].fill(f32::NEG_INFINITY);
    scores[visible..].fill(f32::NEG_INFINITY);
    // SAFETY: scores are 64 floats, the sum's lanes 8, and `state_largest` one.
    unsafe {
        let mut largest = V::load(scores.as_ptr());
        for first in (LANES..ATTENTION_BLOCK).step_by(LANES) {
            largest = largest.max(V::load(scores[first..].as_ptr()));
        }
        let mut lanes = [0f32; LANES];
        largest.store(lanes.as_mut_ptr());
        let larger = |a: f32, b: f32| if a > b { a } else { b };
        let block = lanes.into_iter().fold(f32::NEG_INFINITY, larger).ceil();
        let factors = if PARTIAL {
            Factors {
                largest: block,
                keep: 0.0,
                take: 1.0,
            }
        } else {
            Factors::of(state_largest.read(), block)
        };
        state_largest.write(factors.largest);
        let mut sum = V::splat(0.0);
        for first in (0..visible).step_by(LANES) {
            let place = scores[first..].as_mut_ptr();
            power_of_two(V::load(place).sub(V::splat(block))).store(place);
            scores[first..unseen.clamp(first, first + LANES)].fill(0.0);
            scores[visible.clamp(first, first + LANES)..first + LANES].fill(0.0);
            sum = sum.add(V::load(scores[first..].as_ptr()));
        }
        merge_lanes::<V, PARTIAL>(lanes_of_sum, sum, &factors);
        factors
    }
}

/// Values of the tokens that each of R rows sees, [`PART`] dimensions from `first`, merged into their states.
#[inline(always)]
unsafe fn add_values<V: Lanes, const R: usize, const PARTIAL: bool>(
    group: &Group<'_>,
    visible: &Visible<R>,
    factors: &[Factors; R],
    first: usize,
    scratch: &Scratch,
) {
    let head_dim = group.head_dim;
    let fetch = group.first_row == 0;
    // SAFETY: values are 8 pairs of head_dim words in each subpage; a vector may reach 60 bytes further,
    // which the pool's padding allows. States are padded to PART.
    unsafe {
        let mut sums = [[V::splat(0.0); 2]; R];
        // Tokens that all rows see; before and after them each row has its own.
        let (start, end) = (visible.latest_first / 2, visible.least / 2);
        let start = start.min(end);
        for (row, sums) in sums.iter_mut().enumerate() {
            for token in visible.firsts[row]..(2 * start).min(visible.tokens[row]) {
                let values = load_token::<V>(group, token, first);
                add_token(sums, values, scratch.scores[row][token]);
            }
        }
        for pair in start..end {
            let offset = values_offset(head_dim) + 4 * (pair % 8 * head_dim + first);
            if fetch {
                V::prefetch(group.block.next[pair / 8].wrapping_add(offset));
            }
            let values = load_pair::<V>(group.block.subpages[pair / 8].add(offset));
            for (row, sums) in sums.iter_mut().enumerate() {
                add_token(sums, values[0], scratch.scores[row][2 * pair]);
                add_token(sums, values[1], scratch.scores[row][2 * pair + 1]);
            }
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            let tokens = visible.tokens[row];
            if tokens == 0 {
                continue;
            }
            for token in (2 * end).max(visible.firsts[row])..tokens {
                let values = load_token::<V>(group, token, first);
                add_token(sums, values, scratch.scores[row][token]);
            }
            let state = (group.rows.state).add((group.first_row + row) * state_floats(head_dim) + first);
            merge_lanes::<V, PARTIAL>(state, sums[0], &factors[row]);
            merge_lanes::<V, PARTIAL>(state.add(LANES), sums[1], &factors[row]);
        }
    }
}

/// [`PART`] dimensions of a token from `first`.
#[inline(always)]
unsafe fn load_token<V: Lanes>(group: &Group<'_>, token: usize, first: usize) -> [V; 2] {
    let offset = values_offset(group.head_dim) + 4 * (token % SUBPAGE_TOKENS / 2 * group.head_dim + first);
    // SAFETY: a value's part is in its subpage, or in what a vector may reach beyond.
    unsafe { load_pair::<V>(group.block.subpages[token / SUBPAGE_TOKENS].add(offset))[token % 2] }
}

/// [`PART`] dimensions of an even token and of the odd one after it.
#[inline(always)]
unsafe fn load_pair<V: Lanes>(from: *const u8) -> [[V; 2]; 2] {
    // SAFETY: 64 bytes are readable.
    unsafe {
        let (even_low, odd_low) = V::load_bf16_pairs(from);
        let (even_high, odd_high) = V::load_bf16_pairs(from.add(4 * LANES));
        [[even_low, even_high], [odd_low, odd_high]]
    }
}

#[inline(always)]
unsafe fn add_token<V: Lanes>(sums: &mut [V; 2], values: [V; 2], weight: f32) {
    // SAFETY: arithmetic of the lanes' instruction set.
    unsafe {
        let weight = V::splat(weight);
        sums[0] = weight.mul_add(values[0], sums[0]);
        sums[1] = weight.mul_add(values[1], sums[1]);
    }
}

/// One block for a group of R rows.
#[inline(always)]
unsafe fn attend_group<V: Lanes, const R: usize, const PARTIAL: bool, const CAPPED: bool>(
    group: &Group<'_>,
    scratch: &mut Scratch,
) {
    let QueryRows { firsts, limits, .. } = group.rows;
    let (firsts, limits) = (&firsts[group.first_row..], &limits[group.first_row..]);
    let visible = Visible::<R>::new(firsts, limits, group.block.first_token);
    if visible.most == 0 {
        return;
    }
    // SAFETY: this function's own obligations; states and m of R rows from the first are there, and subpages
    // below the largest limit are readable.
    unsafe {
        for subpage in 0..visible.most.div_ceil(SUBPAGE_TOKENS) {
            score::<V, R>(group, subpage, scratch);
        }
        let mut factors = [const {
            Factors {
                largest: 0.0,
                keep: 0.0,
                take: 0.0,
            }
        }; R];
        for (row, factors) in factors.iter_mut().enumerate() {
            if visible.tokens[row] > 0 {
                let state = (group.rows.state).add((group.first_row + row) * state_floats(group.head_dim));
                let lanes_of_sum = state.add(padded_dim(group.head_dim));
                let largest = group.rows.largest.add(group.first_row + row);
                let scores = &mut scratch.scores[row];
                if CAPPED {
                    cap_scores::<V>(
                        &mut scores[..visible.tokens[row].next_multiple_of(LANES)],
                        group.rows.cap,
                    );
                }
                let seen = visible.firsts[row]..visible.tokens[row];
                *factors = soften::<V, PARTIAL>(scores, seen, lanes_of_sum, largest);
            }
        }
        for first in (0..group.head_dim).step_by(PART) {
            add_values::<V, R, PARTIAL>(group, &visible, &factors, first, scratch);
        }
    }
}
