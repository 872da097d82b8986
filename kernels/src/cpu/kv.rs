//! Keys and values of all layers in pages.
//!
//! ```text
//! subpage: one kv head, 16 tokens, 64 * D bytes (D = head_dim), bf16
//!
//!   keys    [D / 2][16 tokens][2]     a 64-byte line = one pair of dimensions of 16 tokens
//!           line 0    k(t0,d0) k(t0,d1) | k(t1,d0) k(t1,d1) | ... | k(t15,d0) k(t15,d1)
//!           line 1    k(t0,d2) k(t0,d3) | ...
//!
//!   values  [8][D][2]                 64 bytes = 16 dimensions of a pair of tokens
//!           pair 0    v(t0,d0) v(t1,d0) | v(t0,d1) v(t1,d1) | ... | v(t0,D-1) v(t1,D-1)
//!           pair 1    v(t2,d0) v(t3,d0) | ...
//!
//! page of S = 16, 32 or 64 tokens    head 0: S / 16 subpages | head 1: S / 16 subpages | ...
//! layer                              page 0 | page 1 | ...
//! pool                               layer 0 | layer 1 | ... | PADDING
//! ```
//!
//! So scores need no horizontal sums (a lane is a token) and neither do values (a lane is a dimension), and
//! one `vdpbf16ps` consumes a line. A page is read from end to end when all kv heads of a sequence are
//! served.

use crate::host::Buffer;
use crate::{BackendError, KvShape};

/// Tokens per subpage: the unit the attention kernels see, whatever the page size.
pub(crate) const SUBPAGE_TOKENS: usize = 16;

/// Readable bytes after the last page, so that a kernel may load whole vectors of a head whose dimension is
/// no multiple of its lanes.
const PADDING: usize = 64;

/// Bytes of a subpage.
pub(crate) const fn subpage_bytes(head_dim: usize) -> usize {
    4 * SUBPAGE_TOKENS * head_dim
}

/// Where a subpage's values start.
pub(crate) const fn values_offset(head_dim: usize) -> usize {
    2 * SUBPAGE_TOKENS * head_dim
}

/// Offset in a subpage, in bytes, of the pair of dimensions `2 * pair` and `2 * pair + 1` of a token's key.
pub(crate) const fn key_pair_offset(token: usize, pair: usize) -> usize {
    4 * (pair * SUBPAGE_TOKENS + token)
}

/// Offset in a subpage, in bytes, of one dimension of a token's value.
pub(crate) const fn value_offset(head_dim: usize, token: usize, dimension: usize) -> usize {
    values_offset(head_dim) + 2 * (token / 2 * 2 * head_dim + 2 * dimension + token % 2)
}

/// Paged keys and values of the CPU backend.
pub struct CpuKv {
    shape: KvShape,
    memory: Buffer<u8>,
}

impl CpuKv {
    /// A pool with every byte touched.
    ///
    /// # Errors
    /// A shape with a zero, an odd head dimension or a page size other than 16, 32 or 64; memory refused.
    pub(crate) fn new(shape: KvShape) -> Result<CpuKv, BackendError> {
        let bad = |reason| Err(BackendError::BadKvShape { shape, reason });
        if !matches!(shape.page_size, 16 | 32 | 64) {
            return bad("the page size is not 16, 32 or 64");
        }
        if shape.head_dim == 0 || !shape.head_dim.is_multiple_of(2) {
            return bad("the head dimension is not even and positive");
        }
        if shape.n_layers == 0 || shape.n_kv_heads == 0 || shape.n_pages == 0 {
            return bad("there are no layers, heads or pages");
        }
        let slots = shape.n_pages.checked_mul(shape.page_size);
        if slots.is_none_or(|slots| slots > u32::MAX as usize) {
            return bad("slot numbers do not fit 32 bits");
        }
        let bytes = [
            shape.n_kv_heads,
            shape.head_dim,
            shape.page_size,
            4,
            shape.n_pages,
        ]
        .into_iter()
        .try_fold(shape.n_layers, usize::checked_mul)
        .and_then(|bytes| bytes.checked_add(PADDING));
        let Some(bytes) = bytes else {
            return bad("its size overflows");
        };
        let mut memory = Buffer::zeroed(bytes, "the KV pool")?;
        memory.touch();
        Ok(CpuKv { shape, memory })
    }

    /// What the pool holds.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Bytes of one page in one layer.
    pub(crate) fn layer_page_bytes(&self) -> usize {
        self.head_bytes() * self.shape.n_kv_heads
    }

    /// Bytes of one kv head in a page.
    pub(crate) fn head_bytes(&self) -> usize {
        self.shape.page_size / SUBPAGE_TOKENS * subpage_bytes(self.shape.head_dim)
    }

    fn layer_bytes(&self) -> usize {
        self.layer_page_bytes() * self.shape.n_pages
    }

    /// The pages of one layer and what may be read after them.
    pub(crate) fn layer(&self, layer: usize) -> &[u8] {
        assert!(
            layer < self.shape.n_layers,
            "layer {layer} of {}",
            self.shape.n_layers
        );
        &self.memory[layer * self.layer_bytes()..]
    }

    /// The pages of one layer.
    pub(crate) fn layer_mut(&mut self, layer: usize) -> &mut [u8] {
        assert!(
            layer < self.shape.n_layers,
            "layer {layer} of {}",
            self.shape.n_layers
        );
        let bytes = self.layer_bytes();
        &mut self.memory[layer * bytes..][..bytes]
    }

    /// Copies page `from` to page `to` in every layer.
    pub(crate) fn copy_page(&mut self, from: u32, to: u32) {
        let bytes = self.layer_page_bytes();
        let (from, to) = (self.page_start(from), self.page_start(to));
        for layer in 0..self.shape.n_layers {
            self.layer_mut(layer).copy_within(from..from + bytes, to);
        }
    }

    /// Fills a page with NaN in every layer.
    pub(crate) fn poison_page(&mut self, page: u32) {
        let bytes = self.layer_page_bytes();
        let start = self.page_start(page);
        for layer in 0..self.shape.n_layers {
            self.layer_mut(layer)[start..start + bytes].fill(0xff);
        }
    }

    fn page_start(&self, page: u32) -> usize {
        let page = page as usize;
        assert!(page < self.shape.n_pages, "page {page} of {}", self.shape.n_pages);
        page * self.layer_page_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> KvShape {
        KvShape {
            n_layers: 3,
            n_kv_heads: 2,
            head_dim: 6,
            page_size: 32,
            n_pages: 5,
        }
    }

    #[test]
    fn every_element_of_a_subpage_has_its_own_place() {
        for head_dim in [2, 6, 16, 64, 80, 128] {
            let mut taken = vec![0; subpage_bytes(head_dim) / 2];
            for token in 0..SUBPAGE_TOKENS {
                for dimension in 0..head_dim {
                    taken[key_pair_offset(token, dimension / 2) / 2 + dimension % 2] += 1;
                    taken[value_offset(head_dim, token, dimension) / 2] += 1;
                }
            }
            assert!(taken.iter().all(|count| *count == 1), "head_dim {head_dim}");
        }
    }

    #[test]
    fn a_page_is_copied_in_every_layer_and_nothing_else_changes() {
        let mut kv = CpuKv::new(shape()).expect("a small pool fits");
        let page_bytes = kv.layer_page_bytes();
        assert_eq!(page_bytes * shape().n_layers, shape().page_bytes());
        for layer in 0..3 {
            for (index, byte) in kv.layer_mut(layer).iter_mut().enumerate() {
                *byte = (index / page_bytes * 10 + layer) as u8;
            }
        }
        kv.copy_page(4, 1);
        for layer in 0..3 {
            for (page, bytes) in kv.layer_mut(layer).chunks_exact(page_bytes).enumerate() {
                let from = if page == 1 { 4 } else { page };
                assert!(bytes.iter().all(|byte| *byte == (from * 10 + layer) as u8));
            }
        }
    }

    #[test]
    fn a_poisoned_page_reads_as_nan_and_its_neighbours_do_not() {
        let mut kv = CpuKv::new(shape()).expect("a small pool fits");
        kv.poison_page(2);
        let page_bytes = kv.layer_page_bytes();
        for layer in 0..3 {
            for (page, bytes) in kv.layer_mut(layer).chunks_exact(page_bytes).enumerate() {
                for pair in bytes.chunks_exact(2) {
                    let value = f32::from_bits(u32::from(u16::from_le_bytes([pair[0], pair[1]])) << 16);
                    assert_eq!(value.is_nan(), page == 2);
                }
            }
        }
    }

    #[test]
    fn shapes_outside_the_limits_are_refused() {
        for change in [
            KvShape {
                page_size: 8,
                ..shape()
            },
            KvShape {
                page_size: 48,
                ..shape()
            },
            KvShape {
                head_dim: 7,
                ..shape()
            },
            KvShape {
                head_dim: 0,
                ..shape()
            },
            KvShape {
                n_pages: 0,
                ..shape()
            },
            KvShape {
                n_pages: usize::MAX / 64,
                ..shape()
            },
            KvShape {
                n_layers: usize::MAX / 64,
                ..shape()
            },
        ] {
            assert!(
                matches!(CpuKv::new(change), Err(BackendError::BadKvShape { .. })),
                "{change:?}"
            );
        }
    }
}
