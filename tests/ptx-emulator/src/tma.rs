//! Tensor maps: what `cuTensorMapEncodeTiled` makes, and which elements a tensor copy of TMA moves.
//!
//! The real map is 128 opaque bytes. Here they are, in little-endian words: a magic number, the address, 5
//! dimensions, 4 strides, 5 box lengths, the element's size, the width of the swizzle and the rank.

use crate::tensor::swizzled;

const MAGIC: u64 = 0x70_6d_72_6f_73_6e_65_74;
/// Bytes of a map; it lies at a multiple of 64.
pub const TENSOR_MAP_BYTES: usize = 128;

/// A tensor in global memory and the box of it that one copy moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// Address of the tensor.
    pub address: u64,
    /// Bytes of an element.
    pub element: u8,
    /// Elements of each dimension, innermost first; as many as the tensor has.
    pub dims: Vec<u64>,
    /// Bytes from one element to the next of dimensions 1 and up.
    pub strides: Vec<u64>,
    /// Elements of a box along each dimension.
    pub boxes: Vec<u32>,
    /// Width of the swizzle in bytes, 0 for none.
    pub swizzle: u8,
}

impl TensorMap {
    /// Says which rule of the driver the map breaks.
    pub fn check(&self) -> Result<(), String> {
        let rank = self.dims.len();
        if rank == 0 || rank > 5 || self.strides.len() + 1 != rank || self.boxes.len() != rank {
            return Err(format!("a tensor of {rank} dimensions, 1 to 5 are possible"));
        }
        let is_unaligned = |&bytes: &u64| !bytes.is_multiple_of(16);
        if is_unaligned(&self.address) || self.strides.iter().any(is_unaligned) {
            return Err("address and strides are multiples of 16 bytes".into());
        }
        if self.boxes.iter().any(|&n| n == 0 || n > 256) {
            return Err(format!(
                "a box of {:?} elements, 1 to 256 are possible",
                self.boxes
            ));
        }
        let row = self.boxes[0] * u32::from(self.element);
        if !row.is_multiple_of(16) || self.swizzle != 0 && row > u32::from(self.swizzle) {
            return Err(format!(
                "inner box of {row} bytes with a swizzle of {}",
                self.swizzle
            ));
        }
        Ok(())
    }

    /// As it lies in memory.
    pub fn to_bytes(&self) -> [u8; TENSOR_MAP_BYTES] {
        let padded = |values: &[u64], n: usize| {
            let mut values = values.to_vec();
            values.resize(n, 0);
            values
        };
        let boxes: Vec<u64> = self.boxes.iter().map(|&n| u64::from(n)).collect();
        let mut words = vec![MAGIC, self.address];
        words.extend(padded(&self.dims, 5));
        words.extend(padded(&self.strides, 4));
        let small = padded(&boxes, 5);
        words.push(small[0] | small[1] << 16 | small[2] << 32 | small[3] << 48);
        let rank = self.dims.len() as u64;
        words.push(small[4] | u64::from(self.element) << 16 | u64::from(self.swizzle) << 24 | rank << 32);
        let mut bytes = [0; TENSOR_MAP_BYTES];
        for (word, out) in words.iter().zip(bytes.chunks_exact_mut(8)) {
            out.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads a map back.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<TensorMap, String> {
        let words: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().expect("chunks of 8 bytes")))
            .collect();
        let rank = (words[12] >> 32) as usize;
        if words[0] != MAGIC || rank == 0 || rank > 5 {
            return Err("no tensor map at this address".into());
        }
        let boxes = (0..rank).map(|at| if at < 4 { words[11] >> (at * 16) } else { words[12] });
        Ok(TensorMap {
            address: words[1],
            element: (words[12] >> 16) as u8,
            dims: words[2..][..rank].to_vec(),
            strides: words[7..][..rank - 1].to_vec(),
            boxes: boxes.map(|n| (n & 0xffff) as u32).collect(),
            swizzle: (words[12] >> 24) as u8,
        })
    }

    /// Bytes that one copy moves.
    pub(crate) fn box_bytes(&self) -> usize {
        let n: usize = self.boxes.iter().map(|&n| n as usize).product();
        n * usize::from(self.element)
    }

    /// Where a box must start in shared memory.
    pub(crate) fn alignment(&self) -> usize {
        if self.swizzle == 0 {
            128
        } else {
            usize::from(self.swizzle) * 8
        }
    }

    /// Calls `copy(shared byte, global address)` for every element of the box whose first element is `at`;
    /// elements outside of the tensor have no address and become zero.
    pub(crate) fn elements(&self, dst: usize, at: &[i64], mut copy: impl FnMut(usize, Option<u64>)) {
        let n: usize = self.boxes.iter().map(|&n| n as usize).product();
        for idx in 0..n {
            let (mut rest, mut offset, mut is_inside) = (idx, 0i64, true);
            for (dim, &length) in self.boxes.iter().enumerate() {
                let position = at[dim] + (rest % length as usize) as i64;
                rest /= length as usize;
                is_inside &= position >= 0 && position < self.dims[dim] as i64;
                let stride = if dim == 0 {
                    u64::from(self.element)
                } else {
                    self.strides[dim - 1]
                };
                offset += position * stride as i64;
            }
            let to = (dst + idx * usize::from(self.element)) as u64;
            let to = if self.swizzle == 0 {
                to
            } else {
                swizzled(to, u64::from(self.swizzle))
            };
            copy(
                to as usize,
                is_inside.then(|| self.address.wrapping_add_signed(offset)),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> TensorMap {
        TensorMap {
            address: 4096,
            element: 2,
            dims: vec![64, 3],
            strides: vec![128],
            boxes: vec![8, 2],
            swizzle: 0,
        }
    }

    #[test]
    fn a_map_survives_its_bytes() {
        assert_eq!(TensorMap::from_bytes(&map().to_bytes()), Ok(map()));
        assert!(TensorMap::from_bytes(&[0; TENSOR_MAP_BYTES]).is_err());
    }

    #[test]
    fn a_map_that_the_driver_refuses_is_refused() {
        assert_eq!(map().check(), Ok(()));
        let bad = [
            TensorMap { address: 8, ..map() },
            TensorMap {
                strides: vec![24],
                ..map()
            },
            TensorMap {
                boxes: vec![8, 257],
                ..map()
            },
            TensorMap {
                boxes: vec![4, 2],
                ..map()
            },
            TensorMap {
                boxes: vec![64, 2],
                swizzle: 32,
                ..map()
            },
            TensorMap {
                dims: vec![64],
                ..map()
            },
        ];
        for map in bad {
            assert!(map.check().is_err(), "{map:?}");
        }
    }

    #[test]
    fn what_lies_outside_of_the_tensor_becomes_zero() {
        let mut copies = Vec::new();
        map().elements(256, &[60, 2], |to, from| copies.push((to, from)));
        assert_eq!(copies.len(), 16);
        assert_eq!(copies[0], (256, Some(4096 + 2 * 128 + 120)));
        assert_eq!((copies[4], copies[8]), ((264, None), (272, None)));
    }
}
