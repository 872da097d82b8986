//! The pool of pages of keys and values in device memory.

use super::device::{Argument, Device};
use super::error::allocation;
use super::memory::DeviceBytes;
use crate::{BackendError, KvShape};

/// Keys and values: `[layer][page][keys, values][kv head][token of the page][element]`, bf16.
pub struct CudaKv {
    pub(super) data: DeviceBytes,
    pub(super) shape: KvShape,
}

impl CudaKv {
    /// A pool that is zero everywhere.
    pub(super) fn new(device: &Device, shape: KvShape) -> Result<CudaKv, BackendError> {
        let bytes = shape.page_bytes() * shape.n_pages;
        let data = DeviceBytes::new(device, bytes).map_err(|error| allocation("keys and values", error))?;
        data.fill(0, bytes, 0);
        Ok(CudaKv { data, shape })
    }

    /// Bytes of one page of one layer.
    pub(super) fn page_bytes(&self) -> usize {
        self.shape.page_bytes() / self.shape.n_layers
    }

    pub(super) fn layer(&self, layer: usize) -> Argument {
        assert!(layer < self.shape.n_layers, "layer {layer} of {:?}", self.shape);
        let start = layer * self.shape.n_pages * self.page_bytes();
        Argument::U64(self.data.address() + start as u64)
    }

    /// Where a page starts in each layer.
    pub(super) fn page_starts(&self, page: u32) -> impl Iterator<Item = usize> {
        let (n_pages, page_bytes) = (self.shape.n_pages, self.page_bytes());
        assert!((page as usize) < n_pages, "page {page} of {n_pages}");
        (0..self.shape.n_layers).map(move |layer| (layer * n_pages + page as usize) * page_bytes)
    }
}
