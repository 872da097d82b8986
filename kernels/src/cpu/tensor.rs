//! Activations: rows of f32, allocated once for the most rows they will hold.

use crate::BackendError;
use crate::host::Buffer;

/// `[n_rows, width]` f32, contiguous, `n_rows <= capacity`.
pub struct CpuTensor {
    values: Buffer<f32>,
    capacity: usize,
    width: usize,
    n_rows: usize,
}

impl CpuTensor {
    /// No rows yet, room for `capacity`.
    pub fn new(capacity: usize, width: usize) -> Result<Self, BackendError> {
        let what = "activations";
        let len = capacity.checked_mul(width).ok_or(BackendError::OutOfMemory {
            what,
            bytes: usize::MAX,
        })?;
        Ok(CpuTensor {
            values: Buffer::zeroed(len, what)?,
            capacity,
            width,
            n_rows: 0,
        })
    }

    /// Rows held now.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Most rows it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Elements per row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// All rows, one after the other.
    pub fn values(&self) -> &[f32] {
        &self.values[..self.n_rows * self.width]
    }

    /// All rows, to be changed in place.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values[..self.n_rows * self.width]
    }

    /// Row `row`.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values()[row * self.width..][..self.width]
    }

    /// The single row of a weight vector.
    ///
    /// # Panics
    /// When there is not exactly one row of `width` elements.
    pub fn vector(&self, width: usize) -> &[f32] {
        assert_eq!(
            (self.n_rows, self.width),
            (1, width),
            "rows and width of a weight vector"
        );
        self.values()
    }

    /// Makes it an output of `n_rows` rows of `width` elements, whose old values mean nothing.
    ///
    /// # Panics
    /// When it was not made for that many rows of that width.
    pub fn output(&mut self, n_rows: usize, width: usize) -> &mut [f32] {
        assert!(
            n_rows <= self.capacity && width == self.width,
            "[{n_rows}, {width}] into a tensor of [{}, {}]",
            self.capacity,
            self.width
        );
        self.n_rows = n_rows;
        self.values_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_has_the_rows_asked_for() {
        let mut tensor = CpuTensor::new(3, 5).expect("60 bytes are there");
        assert_eq!((tensor.n_rows(), tensor.values().len()), (0, 0));
        tensor
            .output(2, 5)
            .copy_from_slice(&[0., 1., 2., 3., 4., 5., 6., 7., 8., 9.]);
        assert_eq!(tensor.row(1), [5., 6., 7., 8., 9.]);
        assert_eq!(tensor.output(0, 5).len(), 0);
    }

    #[test]
    #[should_panic(expected = "[4, 5] into a tensor of [3, 5]")]
    fn more_rows_than_the_capacity_are_refused() {
        let mut tensor = CpuTensor::new(3, 5).expect("60 bytes are there");
        tensor.output(4, 5);
    }
}
