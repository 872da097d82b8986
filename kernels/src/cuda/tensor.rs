//! Activations on the device: rows of f32, allocated once for the most rows they will hold.

use super::device::{Argument, Device};
use super::error::CudaError;
use super::memory::{DeviceBytes, Pinned};

/// `[n_rows, width]` f32, contiguous, `n_rows <= capacity`.
pub struct CudaTensor {
    data: DeviceBytes,
    capacity: usize,
    width: usize,
    n_rows: usize,
}

impl CudaTensor {
    /// No rows yet, room for `capacity`.
    pub(crate) fn new(device: &Device, capacity: usize, width: usize) -> Result<Self, CudaError> {
        let bytes = capacity.saturating_mul(width).saturating_mul(4);
        Ok(CudaTensor {
            data: DeviceBytes::new(device, bytes)?,
            capacity,
            width,
            n_rows: 0,
        })
    }

    /// One row.
    pub(crate) fn of_row(device: &Device, values: &[f32]) -> Result<Self, CudaError> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let data = DeviceBytes::holding(device, &bytes)?;
        Ok(CudaTensor {
            data,
            capacity: 1,
            width: values.len(),
            n_rows: 1,
        })
    }

    /// Rows held now.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Elements per row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Elements of all rows.
    pub(crate) fn len(&self) -> usize {
        self.n_rows * self.width
    }

    /// As an argument of a kernel.
    pub(crate) fn at(&self) -> Argument {
        Argument::U64(self.data.address())
    }

    /// The single row of a weight vector, as an argument.
    ///
    /// # Panics
    /// When there is not exactly one row of `width` elements.
    pub(crate) fn vector(&self, width: usize) -> Argument {
        assert_eq!(
            (self.n_rows, self.width),
            (1, width),
            "rows and width of a weight vector"
        );
        self.at()
    }

    /// Makes it an output of `n_rows` rows of `width` elements, whose old values mean nothing.
    ///
    /// # Panics
    /// When it was not made for that many rows of that width.
    pub(crate) fn output(&mut self, n_rows: usize, width: usize) -> Argument {
        assert!(
            n_rows <= self.capacity && width == self.width,
            "[{n_rows}, {width}] into a tensor of [{}, {}]",
            self.capacity,
            self.width
        );
        self.n_rows = n_rows;
        self.at()
    }

    /// Queues a copy of the rows to the host.
    pub(crate) fn copy_to(&self, to: &mut Pinned) {
        self.data.copy_to(0, to, 0, self.len() * 4);
    }

    /// Queues a copy of one row to the host.
    pub(crate) fn copy_row_to(&self, row: usize, to: &mut Pinned, start: usize) {
        assert!(row < self.n_rows, "row {row} of {}", self.n_rows);
        self.data.copy_to(row * self.width * 4, to, start, self.width * 4);
    }
}
