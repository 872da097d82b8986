//! The index arrays of a step on the device, copied at once.
//!
//! ```text
//! ids [rows]  positions [rows]  slots [rows]  limits [rows]  tables [rows]  logit rows  pages of all tables
//! ```
//!
//! `limits[r]` is the KV limit of row `r`, `tables[r]` where its page table starts among the pages. Each
//! array has the place that the batch's shape gives it, whatever it holds.

use super::device::{Argument, Device};
use super::error::CudaError;
use super::memory::{DeviceBytes, Event, Pinned};
use crate::{BatchShape, StepRows};

/// Arrays with an element for every row.
const N_ROW_ARRAYS: usize = 5;

/// The index arrays of a step on the device, and the memory of the host that they are copied from.
pub struct CudaBatch {
    shape: BatchShape,
    on_device: DeviceBytes,
    staging: Pinned,
    /// The last copy from `staging`.
    copied: Event,
    pub(crate) n_rows: usize,
    pub(crate) n_logit_rows: usize,
}

impl CudaBatch {
    /// An empty batch with room for any of this shape.
    pub(crate) fn new(device: &Device, shape: BatchShape) -> Result<CudaBatch, CudaError> {
        let bytes = 4 * (N_ROW_ARRAYS * shape.max_rows + shape.max_logit_rows + shape.max_pages);
        Ok(CudaBatch {
            shape,
            on_device: DeviceBytes::new(device, bytes)?,
            staging: Pinned::new(device, bytes)?,
            copied: Event::new(device)?,
            n_rows: 0,
            n_logit_rows: 0,
        })
    }

    /// What it was made for.
    pub(crate) fn shape(&self) -> &BatchShape {
        &self.shape
    }

    /// Replaces the arrays.
    pub(crate) fn upload(&mut self, rows: &StepRows<'_>) {
        rows.check(&self.shape);
        (self.n_rows, self.n_logit_rows) = (rows.ids.len(), rows.logit_rows.len());
        // The copy before reads the same memory.
        self.copied.wait();
        let (max_rows, n_bytes) = (self.shape.max_rows, self.staging.bytes().len());
        let bytes = self.staging.bytes_mut();
        let mut put = |at: usize, value: usize| {
            let value = u32::try_from(value).expect("indices of a step fit u32");
            bytes[at * 4..][..4].copy_from_slice(&value.to_le_bytes());
        };
        for (array, values) in [rows.ids, rows.positions, rows.slots].into_iter().enumerate() {
            for (row, &value) in values.iter().enumerate() {
                put(array * max_rows + row, value as usize);
            }
        }
        for sequence in rows.sequences {
            for i in 0..sequence.n_rows {
                let row = sequence.first_row + i;
                put(3 * max_rows + row, sequence.first_position + i + 1);
                put(4 * max_rows + row, sequence.first_page);
            }
        }
        let logit_rows = N_ROW_ARRAYS * max_rows;
        for (i, &row) in rows.logit_rows.iter().enumerate() {
            put(logit_rows + i, row as usize);
        }
        for (i, &page) in rows.page_tables.iter().enumerate() {
            put(logit_rows + self.shape.max_logit_rows + i, page as usize);
        }
        self.on_device.copy_from(&self.staging, n_bytes);
        self.copied.record();
    }

    fn array(&self, first: usize) -> Argument {
        Argument::U64(self.on_device.address() + 4 * first as u64)
    }

    pub(crate) fn ids(&self) -> Argument {
        self.array(0)
    }

    pub(crate) fn positions(&self) -> Argument {
        self.array(self.shape.max_rows)
    }

    pub(crate) fn slots(&self) -> Argument {
        self.array(2 * self.shape.max_rows)
    }

    pub(crate) fn limits(&self) -> Argument {
        self.array(3 * self.shape.max_rows)
    }

    pub(crate) fn tables(&self) -> Argument {
        self.array(4 * self.shape.max_rows)
    }

    pub(crate) fn logit_rows(&self) -> Argument {
        self.array(N_ROW_ARRAYS * self.shape.max_rows)
    }

    pub(crate) fn pages(&self) -> Argument {
        self.array(N_ROW_ARRAYS * self.shape.max_rows + self.shape.max_logit_rows)
    }
}
