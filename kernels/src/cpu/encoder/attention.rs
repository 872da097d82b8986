//! Attention of encoders: every token of a text sees every other one.
//!
//! ```text
//! item: a head of a text
//!   keys    [head_dim][tokens]     turned round, so that lanes are keys; tokens padded to whole vectors
//!   values  [tokens][head_dim]
//!   for four queries at a time:
//!     scores  [4][tokens] = queries * keys       sums over head_dim ascending
//!     softmax [4][tokens]                        eight partial sums, added pairwise
//!     out     [4][head_dim] = scores * values    sums over tokens ascending
//! ```
//!
//! A text's result depends on that text only (C1): what is four at a time is independent of each other.

use std::ops::Range;

use super::super::simd::lanes::{LANES, Lanes, ScalarLanes};
use super::super::threads::{SharedSlice, ThreadPool};
use super::super::{CpuTensor, Isa};
use crate::cpu::exponential::exp;
use crate::encoder::TextAttention;
use crate::host::Buffer;
use crate::{BackendError, HeadLayout};

/// Queries at a time.
const QUERIES: usize = 4;

/// Vectors of keys, or of elements of values, at a time.
const VECTORS: usize = 2;

/// One head of one text.
struct Head<'a> {
    /// The text's rows of fused queries, keys and values.
    qkv: &'a [f32],
    heads: HeadLayout,
    head: usize,
    scale: f32,
}

impl Head<'_> {
    fn n_tokens(&self) -> usize {
        self.qkv.len() / self.heads.qkv_width()
    }

    /// The elements of this head's query, key (1) or value (2) of a token.
    fn part(&self, token: usize, part: usize) -> &[f32] {
        let HeadLayout {
            n_heads,
            n_kv_heads,
            head_dim,
        } = self.heads;
        let group = self.head / (n_heads / n_kv_heads);
        let slot = match part {
            0 => self.head,
            1 => n_heads + group,
            _ => n_heads + n_kv_heads + group,
        };
        &self.qkv[token * self.heads.qkv_width() + slot * head_dim..][..head_dim]
    }
}

/// Memory of one thread.
struct Space<'a> {
    keys: &'a mut [f32],
    values: &'a mut [f32],
    scores: &'a mut [f32],
}

/// Attends; what is written is the head's part of each token's row of `width` elements.
///
/// # Safety
/// The machine has the kernel's instruction set.
pub(super) type HeadKernel = unsafe fn(&HeadCall<'_>, &mut [f32]);

/// A head and where its results go.
pub(super) struct HeadCall<'a> {
    head: Head<'a>,
    out: &'a SharedSlice<'a, f32>,
    /// Rows of the text in the output.
    rows: Range<usize>,
}

/// Memory of the threads.
pub(super) struct TextSpace {
    values: Vec<Buffer<f32>>,
}

/// Numbers that a head of a text of `n_tokens` needs.
fn space_len(n_tokens: usize, head_dim: usize) -> usize {
    let padded = n_tokens.next_multiple_of(VECTORS * LANES);
    padded * (2 * head_dim + QUERIES)
}

impl TextSpace {
    pub(super) fn new(n_threads: usize) -> TextSpace {
        let empty = || Buffer::zeroed(0, "attention").expect("nothing takes no memory");
        TextSpace {
            values: std::iter::repeat_with(empty).take(n_threads).collect(),
        }
    }

    /// Makes room for texts of up to `n_tokens`.
    pub(super) fn reserve(&mut self, n_tokens: usize, head_dim: usize) -> Result<(), BackendError> {
        let len = space_len(n_tokens, head_dim);
        for values in &mut self.values {
            if values.len() < len {
                *values = Buffer::zeroed(len, "attention")?;
            }
        }
        Ok(())
    }

    pub(super) fn attend(
        &mut self,
        pool: &mut ThreadPool,
        kernel: HeadKernel,
        (qkv, texts): (&CpuTensor, &TextAttention<'_>),
        out: &mut CpuTensor,
    ) {
        let TextAttention { heads, ends, scale } = *texts;
        assert!(
            heads.head_dim.is_multiple_of(LANES),
            "a head of {} elements",
            heads.head_dim
        );
        assert_eq!(
            ends.last().copied().unwrap_or(0),
            qkv.n_rows(),
            "rows of all texts"
        );
        let starts = || std::iter::once(0).chain(ends.iter().copied());
        let longest = starts()
            .zip(ends)
            .map(|(start, end)| end - start)
            .max()
            .unwrap_or(0);
        let len = space_len(longest, heads.head_dim);
        assert!(
            self.values.iter().all(|values| values.len() >= len),
            "a text of {longest} tokens was not expected"
        );
        let spaces: Vec<SharedSlice<'_, f32>> = self
            .values
            .iter_mut()
            .map(|values| SharedSlice::new(values))
            .collect();
        let width = qkv.width();
        let out = SharedSlice::new(out.output(qkv.n_rows(), heads.n_heads * heads.head_dim));
        pool.run(ends.len() * heads.n_heads, 1, |thread, items| {
            let space = &spaces[thread];
            // SAFETY: no two calls at the same time have the same thread.
            let space = unsafe { space.range(0..len) };
            for item in items {
                let (text, head) = (item / heads.n_heads, item % heads.n_heads);
                let start = if text == 0 { 0 } else { ends[text - 1] };
                let rows = start..ends[text];
                let call = HeadCall {
                    head: Head {
                        qkv: &qkv.values()[rows.start * width..rows.end * width],
                        heads,
                        head,
                        scale,
                    },
                    out: &out,
                    rows,
                };
                // SAFETY: the kernel is of an instruction set this machine has.
                unsafe { kernel(&call, space) };
            }
        });
    }
}

/// The kernel of an instruction set.
pub(super) fn kernel(isa: Isa) -> HeadKernel {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx2 => attend_avx2,
        _ => attend_scalar,
    }
}

/// # Safety
/// None: every machine runs it.
unsafe fn attend_scalar(call: &HeadCall<'_>, space: &mut [f32]) {
    // SAFETY: plain Rust runs everywhere.
    unsafe { attend::<ScalarLanes>(call, space) };
}

/// # Safety
/// The machine has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn attend_avx2(call: &HeadCall<'_>, space: &mut [f32]) {
    // SAFETY: this function's own obligation.
    unsafe { attend::<super::super::simd::lanes::Avx2Lanes>(call, space) };
}

/// # Safety
/// The machine has the instruction set of `V`.
#[inline(always)]
unsafe fn attend<V: Lanes>(call: &HeadCall<'_>, space: &mut [f32]) {
    let head = &call.head;
    let (n_tokens, head_dim) = (head.n_tokens(), head.heads.head_dim);
    let padded = n_tokens.next_multiple_of(VECTORS * LANES);
    let (keys, rest) = space.split_at_mut(padded * head_dim);
    let (values, rest) = rest.split_at_mut(padded * head_dim);
    let mut space = Space {
        keys,
        values,
        scores: &mut rest[..QUERIES * padded],
    };
    for token in 0..n_tokens {
        for (element, key) in head.part(token, 1).iter().enumerate() {
            space.keys[element * padded + token] = key * head.scale;
        }
        space.values[token * head_dim..][..head_dim].copy_from_slice(head.part(token, 2));
    }
    for element in 0..head_dim {
        space.keys[element * padded + n_tokens..(element + 1) * padded].fill(0.0);
    }
    let mut first = 0;
    while first < n_tokens {
        // SAFETY: the caller's obligation.
        first += unsafe {
            match n_tokens - first {
                QUERIES.. => queries::<V, QUERIES>(call, first, &mut space),
                2.. => queries::<V, 2>(call, first, &mut space),
                _ => queries::<V, 1>(call, first, &mut space),
            }
        };
    }
}

/// # Safety
/// The machine has the instruction set of `V`; `first + N <= n_tokens`.
#[inline(always)]
unsafe fn queries<V: Lanes, const N: usize>(
    call: &HeadCall<'_>,
    first: usize,
    space: &mut Space<'_>,
) -> usize {
    let head = &call.head;
    let (n_tokens, head_dim) = (head.n_tokens(), head.heads.head_dim);
    let padded = n_tokens.next_multiple_of(VECTORS * LANES);
    let queries: [&[f32]; N] = std::array::from_fn(|query| head.part(first + query, 0));
    // SAFETY: the caller's obligation; the keys are head_dim rows of `padded`, the scores N of them.
    unsafe { scores::<V, N>(&queries, space.keys, padded, space.scores) };
    let mut sums = [0f32; N];
    for (sum, scores) in sums.iter_mut().zip(space.scores.chunks_exact_mut(padded)) {
        *sum = softmax(scores, n_tokens);
    }
    let width = head.heads.n_heads * head_dim;
    let mut outs: [&mut [f32]; N] = std::array::from_fn(|query| {
        let start = (call.rows.start + first + query) * width + head.head * head_dim;
        // SAFETY: this head of this text is claimed once, and heads and rows do not overlap.
        unsafe { call.out.range(start..start + head_dim) }
    });
    let mut element = 0;
    while element < head_dim {
        // SAFETY: the caller's obligation; the values are n_tokens rows of head_dim, and so many elements are
        // left.
        element += unsafe {
            if head_dim - element >= VECTORS * LANES {
                mix::<V, N, VECTORS>(
                    (space.scores, padded),
                    (space.values, n_tokens),
                    element,
                    &mut outs,
                )
            } else {
                mix::<V, N, 1>(
                    (space.scores, padded),
                    (space.values, n_tokens),
                    element,
                    &mut outs,
                )
            }
        };
    }
    for (out, sum) in outs.iter_mut().zip(sums) {
        let inverse = 1.0 / sum;
        out.iter_mut().for_each(|out| *out *= inverse);
    }
    N
}

/// # Safety
/// The machine has the instruction set of `V`.
#[inline(always)]
unsafe fn scores<V: Lanes, const N: usize>(
    queries: &[&[f32]; N],
    keys: &[f32],
    padded: usize,
    scores: &mut [f32],
) {
    let head_dim = queries[0].len();
    assert!(keys.len() >= head_dim * padded && scores.len() >= N * padded);
    for token in (0..padded).step_by(VECTORS * LANES) {
        // SAFETY: the caller's obligation; token + 16 <= padded, so all loads and stores are within rows.
        unsafe {
            let mut sums = [[V::splat(0.0); VECTORS]; N];
            for element in 0..head_dim {
                let at = keys.as_ptr().add(element * padded + token);
                let keys: [V; VECTORS] = std::array::from_fn(|i| V::load(at.add(i * LANES)));
                for (sums, query) in sums.iter_mut().zip(queries) {
                    let query = V::splat(*query.get_unchecked(element));
                    for (sum, key) in sums.iter_mut().zip(keys) {
                        *sum = query.mul_add(key, *sum);
                    }
                }
            }
            for (query, sums) in sums.into_iter().enumerate() {
                for (i, sum) in sums.into_iter().enumerate() {
                    sum.store(scores.as_mut_ptr().add(query * padded + token + i * LANES));
                }
            }
        }
    }
}

/// `scores[t] = exp(scores[t] - max)` for the tokens there are; returns their sum.
#[inline(always)]
fn softmax(scores: &mut [f32], n_tokens: usize) -> f32 {
    let scores = &mut scores[..n_tokens];
    let mut largest = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = scores.as_chunks::<LANES>();
    for chunk in whole {
        for (largest, score) in largest.iter_mut().zip(chunk) {
            *largest = if *score > *largest { *score } else { *largest };
        }
    }
    let largest = largest
        .iter()
        .chain(rest)
        .fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    let mut sums = [0f32; LANES];
    let (whole, rest) = scores.as_chunks_mut::<LANES>();
    for chunk in whole {
        for (sum, score) in sums.iter_mut().zip(chunk) {
            *score = exp(*score - largest);
            *sum += *score;
        }
    }
    for (sum, score) in sums.iter_mut().zip(rest) {
        *score = exp(*score - largest);
        *sum += *score;
    }
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
        half /= 2;
    }
    sums[0]
}

/// `outs[q][element..] = sum_t scores[q][t] * values[t][element..]` for some vectors of elements.
///
/// # Safety
/// The machine has the instruction set of `V`; so many elements are left in each output.
#[inline(always)]
unsafe fn mix<V: Lanes, const N: usize, const M: usize>(
    (scores, padded): (&[f32], usize),
    (values, n_tokens): (&[f32], usize),
    element: usize,
    outs: &mut [&mut [f32]; N],
) -> usize {
    let head_dim = outs[0].len();
    assert!(values.len() >= n_tokens * head_dim && scores.len() >= N * padded && n_tokens <= padded);
    // SAFETY: the caller's obligation; the lengths were checked.
    unsafe {
        let mut sums = [[V::splat(0.0); M]; N];
        for token in 0..n_tokens {
            let at = values.as_ptr().add(token * head_dim + element);
            let values: [V; M] = std::array::from_fn(|i| V::load(at.add(i * LANES)));
            for (query, sums) in sums.iter_mut().enumerate() {
                let score = V::splat(*scores.get_unchecked(query * padded + token));
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum = score.mul_add(value, *sum);
                }
            }
        }
        for (out, sums) in outs.iter_mut().zip(sums) {
            for (i, sum) in sums.into_iter().enumerate() {
                sum.store(out.as_mut_ptr().add(element + i * LANES));
            }
        }
    }
    M * LANES
}
