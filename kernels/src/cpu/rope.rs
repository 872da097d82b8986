//! Rotary embedding of queries and keys, and the write of keys and values into their pages.
//!
//! One row at a time: optional RMSNorm of query and key heads, optional rotation in place, then the key
//! and the value of every kv head go to the row's slot, rounded to bf16. Plain arithmetic, nothing fused:
//! the same bits on every ISA.

use std::sync::atomic::{AtomicU16, Ordering};

use super::kv::{CpuKv, SUBPAGE_TOKENS, key_pair_offset, subpage_bytes, value_offset};
use super::norm::inverse_rms;
use crate::quant::bf16_from_f32;
use crate::{HeadLayout, QkNormSpan, RopeStyle, RopeTable};

/// What is done to every row of a call.
pub(crate) struct RowRotation<'a> {
    pub(crate) heads: HeadLayout,
    /// Absent where positions are not told.
    pub(crate) rope: Option<&'a RopeTable>,
    pub(crate) qk_norm: Option<HeadNorms<'a>>,
}

/// RMSNorm of query and key heads: weights of one head, or of all.
pub(crate) struct HeadNorms<'a> {
    pub(crate) span: QkNormSpan,
    pub(crate) query: &'a [f32],
    pub(crate) key: &'a [f32],
    pub(crate) eps: f32,
}

/// Normalizes and rotates the query and key heads of one fused row.
pub(crate) fn rotate_scalar(row: &mut [f32], position: u32, rotation: &RowRotation<'_>) {
    rotate(row, position, rotation);
}

/// [`rotate_scalar`] compiled for 256-bit registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
pub(crate) fn rotate_avx2(row: &mut [f32], position: u32, rotation: &RowRotation<'_>) {
    rotate(row, position, rotation);
}

#[inline(always)]
fn rotate(row: &mut [f32], position: u32, rotation: &RowRotation<'_>) {
    let HeadLayout {
        n_heads,
        n_kv_heads,
        head_dim,
    } = rotation.heads;
    let rotated = &mut row[..(n_heads + n_kv_heads) * head_dim];
    if let Some(norms) = &rotation.qk_norm {
        let (queries, keys) = rotated.split_at_mut(n_heads * head_dim);
        for (part, weight) in [(queries, norms.query), (keys, norms.key)] {
            let span = match norms.span {
                QkNormSpan::EachHead => head_dim,
                QkNormSpan::AllHeads => part.len(),
            };
            for part in part.chunks_exact_mut(span) {
                let scale = inverse_rms(part, norms.eps);
                for (x, weight) in part.iter_mut().zip(weight) {
                    *x = *x * scale * weight;
                }
            }
        }
    }
    let Some(rope) = rotation.rope else { return };
    let rope_dim = rope.rope_dim;
    let angles = &rope.cos_sin[position as usize * rope_dim..][..rope_dim];
    for head in rotated.chunks_exact_mut(head_dim) {
        match rope.style {
            RopeStyle::Interleaved => rotate_neighbours(&mut head[..rope_dim], angles),
            RopeStyle::Halves => rotate_halves(&mut head[..rope_dim], angles),
        }
    }
}

#[inline(always)]
fn rotate_neighbours(head: &mut [f32], angles: &[f32]) {
    let (pairs, _) = head.as_chunks_mut::<2>();
    let (angles, _) = angles.as_chunks::<2>();
    for (pair, [cos, sin]) in pairs.iter_mut().zip(angles) {
        let [a, b] = *pair;
        *pair = [a * cos - b * sin, b * cos + a * sin];
    }
}

#[inline(always)]
fn rotate_halves(head: &mut [f32], angles: &[f32]) {
    let (low, high) = head.split_at_mut(angles.len() / 2);
    let (angles, _) = angles.as_chunks::<2>();
    for ((low, high), [cos, sin]) in low.iter_mut().zip(high).zip(angles) {
        let (a, b) = (*low, *high);
        *low = a * cos - b * sin;
        *high = b * cos + a * sin;
    }
}

/// One layer's pages while several threads write rows to them. Stores are relaxed atomics, which cost what
/// plain stores cost: two rows with one slot would be a bug of the caller, but not undefined behaviour.
pub(crate) struct PageWriter<'a> {
    halves: &'a [AtomicU16],
    heads: HeadLayout,
    page_size: usize,
}

impl<'a> PageWriter<'a> {
    /// A writer to one layer of `kv`.
    pub(crate) fn new(kv: &'a mut CpuKv, layer: usize, heads: HeadLayout) -> PageWriter<'a> {
        let shape = kv.shape();
        assert_eq!(
            (heads.n_kv_heads, heads.head_dim),
            (shape.n_kv_heads, shape.head_dim),
            "heads of the batch and of the KV pool"
        );
        // SAFETY: u16 and AtomicU16 have the same size and validity, and the exclusive borrow of the bytes is
        // held for as long as the atomics live.
        let (before, halves, after) = unsafe { kv.layer_mut(layer).align_to_mut::<AtomicU16>() };
        assert!(before.is_empty() && after.is_empty(), "pages are aligned");
        PageWriter {
            halves,
            heads,
            page_size: shape.page_size,
        }
    }

    /// Writes the keys and values of a fused row to `slot`.
    pub(crate) fn store(&self, row: &[f32], slot: u32) {
        let HeadLayout {
            n_heads,
            n_kv_heads,
            head_dim,
        } = self.heads;
        let slot = slot as usize;
        let subpage_halves = subpage_bytes(head_dim) / 2;
        let subpages_per_head = self.page_size / SUBPAGE_TOKENS;
        let (page, token) = (slot / self.page_size, slot % self.page_size);
        let first = (page * n_kv_heads * subpages_per_head + token / SUBPAGE_TOKENS) * subpage_halves;
        let token = token % SUBPAGE_TOKENS;
        let (keys, values) = row[n_heads * head_dim..].split_at(n_kv_heads * head_dim);
        let heads = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
        for (head, (key, value)) in heads.enumerate() {
            let subpage = &self.halves[first + head * subpages_per_head * subpage_halves..][..subpage_halves];
            for (dimension, element) in key.iter().enumerate() {
                let place = key_pair_offset(token, dimension / 2) / 2 + dimension % 2;
                subpage[place].store(bf16_from_f32(*element), Ordering::Relaxed);
            }
            for (dimension, element) in value.iter().enumerate() {
                let place = value_offset(head_dim, token, dimension) / 2;
                subpage[place].store(bf16_from_f32(*element), Ordering::Relaxed);
            }
        }
    }
}
