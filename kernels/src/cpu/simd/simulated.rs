//! The AVX-512 kernels on simulated instructions, so that every machine tests them.
//!
//! `linear_avx512.rs` is compiled a second time with [`arch`] in place of `std::arch`: the same names in
//! plain Rust. What it computes must be what the plain kernels do, bit for bit.

use super::{linear, linear_float, linear_scalar};

#[path = "linear_avx512.rs"]
#[expect(clippy::duplicate_mod, reason = "the kernels again, on other instructions")]
mod linear_avx512;

/// Instructions by Intel's names, as Intel's Intrinsics Guide describes them.
#[expect(non_camel_case_types, reason = "the names of the instruction set's types")]
mod arch {
    use crate::quant::f32_from_f16;

    /// A register of N bytes.
    #[derive(Clone, Copy)]
    #[repr(C, align(64))]
    pub(super) struct Register<const N: usize>([u8; N]);

    pub(super) type __m128i = Register<16>;
    pub(super) type __m256i = Register<32>;
    pub(super) type __m512i = Register<64>;

    /// A register of 16 f32.
    #[derive(Clone, Copy)]
    pub(super) struct __m512([f32; 16]);

    pub(super) const _MM_HINT_T1: i32 = 2;
    pub(super) const _MM_HINT_ET0: i32 = 7;

    impl<const N: usize> Register<N> {
        fn of_words<const W: usize>(words: [i32; W]) -> Self {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            Register(bytes.try_into().expect("as many bytes"))
        }

        fn of_halves<const H: usize>(halves: [i16; H]) -> Self {
            let bytes: Vec<u8> = halves.iter().flat_map(|half| half.to_le_bytes()).collect();
            Register(bytes.try_into().expect("as many bytes"))
        }

        fn words<const W: usize>(self) -> [i32; W] {
            std::array::from_fn(|i| i32::from_le_bytes(std::array::from_fn(|j| self.0[4 * i + j])))
        }

        fn halves<const H: usize>(self) -> [i16; H] {
            std::array::from_fn(|i| i16::from_le_bytes([self.0[2 * i], self.0[2 * i + 1]]))
        }

        /// # Safety
        /// * `at` is readable for N bytes.
        unsafe fn load(at: *const Self) -> Self {
            // SAFETY: as the caller promises.
            Register(unsafe { at.cast::<[u8; N]>().read_unaligned() })
        }

        /// Products of four unsigned and four signed bytes, added to each word.
        fn dot_bytes<const W: usize>(sums: Self, unsigned: Self, signed: Self) -> Self {
            let sums = sums.words::<W>();
            Register::of_words::<W>(std::array::from_fn(|i| {
                let products =
                    (4 * i..4 * i + 4).map(|j| i32::from(unsigned.0[j]) * i32::from(signed.0[j] as i8));
                sums[i].wrapping_add(products.sum())
            }))
        }
    }

    #[inline(never)]
    pub(super) unsafe fn _mm_cvtsi32_si128(word: i32) -> __m128i {
        Register::of_words([word, 0, 0, 0])
    }

    #[inline(never)]
    pub(super) unsafe fn _mm_cvtsi128_si32(a: __m128i) -> i32 {
        a.words::<4>()[0]
    }

    #[inline(never)]
    pub(super) unsafe fn _mm_loadu_si128(at: *const __m128i) -> __m128i {
        // SAFETY: as the caller promises.
        unsafe { Register::load(at) }
    }

    #[inline(never)]
    pub(super) unsafe fn _mm_prefetch<const HINT: i32>(_at: *const i8) {}

    #[inline(never)]
    pub(super) unsafe fn _mm256_loadu_si256(at: *const __m256i) -> __m256i {
        // SAFETY: as the caller promises.
        unsafe { Register::load(at) }
    }

    #[inline(never)]
    pub(super) unsafe fn _mm256_storeu_si256(at: *mut __m256i, a: __m256i) {
        // SAFETY: as the caller promises.
        unsafe { at.cast::<[u8; 32]>().write_unaligned(a.0) };
    }

    #[inline(never)]
    pub(super) unsafe fn _mm256_setzero_si256() -> __m256i {
        Register([0; 32])
    }

    #[inline(never)]
    pub(super) unsafe fn _mm256_set1_epi8(byte: i8) -> __m256i {
        Register([byte as u8; 32])
    }

    #[inline(never)]
    pub(super) unsafe fn _mm256_set_m128i(high: __m128i, low: __m128i) -> __m256i {
        Register(std::array::from_fn(|i| {
            if i < 16 { low.0[i] } else { high.0[i - 16] }
        }))
    }

    #[inline(never)]
    pub(super) unsafe fn _mm256_castsi256_si128(a: __m256i) -> __m128i {
        Register(std::array::from_fn(|i| a.0[i]))
    }

    #[inline(never)]
    pub(super) unsafe fn _mm256_extracti128_si256<const HALF: i32>(a: __m256i) -> __m128i {
        Register(std::array::from_fn(|i| a.0[16 * HALF as usize + i]))
    }

    #[inline(never)]
    pub(super) unsafe fn _mm256_add_epi32(a: __m256i, b: __m256i) -> __m256i {
        let (a, b) = (a.words::<8>(), b.words::<8>());
        Register::of_words::<8>(std::array::from_fn(|i| a[i].wrapping_add(b[i])))
    }

    #[inline(never)]
    pub(super) unsafe fn _mm256_shuffle_epi32<const ORDER: i32>(a: __m256i) -> __m256i {
        let words = a.words::<8>();
        Register::of_words::<8>(std::array::from_fn(|i| {
            words[i / 4 * 4 + (ORDER as usize >> (2 * (i % 4)) & 3)]
        }))
    }

    #[inline(never)]
    pub(super) unsafe fn _mm256_dpbusd_epi32(sums: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i {
        Register::dot_bytes::<8>(sums, unsigned, signed)
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_dpbusd_epi32(sums: __m512i, unsigned: __m512i, signed: __m512i) -> __m512i {
        Register::dot_bytes::<16>(sums, unsigned, signed)
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_loadu_si512(at: *const __m512i) -> __m512i {
        // SAFETY: as the caller promises.
        unsafe { Register::load(at) }
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_loadu_ps(at: *const f32) -> __m512 {
        // SAFETY: as the caller promises.
        __m512(unsafe { at.cast::<[f32; 16]>().read_unaligned() })
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_storeu_ps(at: *mut f32, a: __m512) {
        // SAFETY: as the caller promises.
        unsafe { at.cast::<[f32; 16]>().write_unaligned(a.0) };
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_setzero_si512() -> __m512i {
        Register([0; 64])
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_setzero_ps() -> __m512 {
        __m512([0.0; 16])
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_set1_ps(value: f32) -> __m512 {
        __m512([value; 16])
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_set1_epi8(byte: i8) -> __m512i {
        Register([byte as u8; 64])
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_set1_epi16(half: i16) -> __m512i {
        Register::of_halves([half; 32])
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_set1_epi32(word: i32) -> __m512i {
        Register::of_words([word; 16])
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_broadcast_i32x4(a: __m128i) -> __m512i {
        Register(std::array::from_fn(|i| a.0[i % 16]))
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_and_si512(a: __m512i, b: __m512i) -> __m512i {
        Register(std::array::from_fn(|i| a.0[i] & b.0[i]))
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_or_si512(a: __m512i, b: __m512i) -> __m512i {
        Register(std::array::from_fn(|i| a.0[i] | b.0[i]))
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_xor_si512(a: __m512i, b: __m512i) -> __m512i {
        Register(std::array::from_fn(|i| a.0[i] ^ b.0[i]))
    }

    /// Within each 16 bytes.
    #[inline(never)]
    pub(super) unsafe fn _mm512_shuffle_epi8(a: __m512i, places: __m512i) -> __m512i {
        Register(std::array::from_fn(|i| match places.0[i] {
            place @ 0..128 => a.0[i / 16 * 16 + usize::from(place & 15)],
            _ => 0,
        }))
    }

    fn count(a: __m128i) -> u32 {
        u64::from_le_bytes(std::array::from_fn(|i| a.0[i])).min(64) as u32
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_sll_epi16(a: __m512i, by: __m128i) -> __m512i {
        let moved = |half: i16| (half as u16).checked_shl(count(by)).unwrap_or(0) as i16;
        Register::of_halves(a.halves::<32>().map(moved))
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_srl_epi16(a: __m512i, by: __m128i) -> __m512i {
        let moved = |half: i16| (half as u16).checked_shr(count(by)).unwrap_or(0) as i16;
        Register::of_halves(a.halves::<32>().map(moved))
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_srli_epi16<const BY: u32>(a: __m512i) -> __m512i {
        Register::of_halves(a.halves::<32>().map(|half| (half as u16 >> BY) as i16))
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_slli_epi32<const BY: u32>(a: __m512i) -> __m512i {
        Register::of_words(a.words::<16>().map(|word| word << BY))
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_srai_epi32<const BY: u32>(a: __m512i) -> __m512i {
        Register::of_words(a.words::<16>().map(|word| word >> BY))
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_madd_epi16(a: __m512i, b: __m512i) -> __m512i {
        let (a, b) = (a.halves::<32>(), b.halves::<32>());
        let product = |i: usize| i32::from(a[i]) * i32::from(b[i]);
        Register::of_words::<16>(std::array::from_fn(|i| {
            product(2 * i).wrapping_add(product(2 * i + 1))
        }))
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_max_epi32(a: __m512i, b: __m512i) -> __m512i {
        let (a, b) = (a.words::<16>(), b.words::<16>());
        Register::of_words::<16>(std::array::from_fn(|i| a[i].max(b[i])))
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_reduce_max_epi32(a: __m512i) -> i32 {
        a.words::<16>().into_iter().max().expect("16 words")
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_cvtepi8_epi32(a: __m128i) -> __m512i {
        Register::of_words(a.0.map(|byte| i32::from(byte as i8)))
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_cvtepu8_epi32(a: __m128i) -> __m512i {
        Register::of_words(a.0.map(i32::from))
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_cvtepi8_epi16(a: __m256i) -> __m512i {
        Register::of_halves(a.0.map(|byte| i16::from(byte as i8)))
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_cvtepu8_epi16(a: __m256i) -> __m512i {
        Register::of_halves(a.0.map(i16::from))
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_cvtepu16_epi32(a: __m256i) -> __m512i {
        Register::of_words(a.halves::<16>().map(|half| i32::from(half as u16)))
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_cvtepi32_epi8(a: __m512i) -> __m128i {
        Register(a.words::<16>().map(|word| word as u8))
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_cvtepi32_ps(a: __m512i) -> __m512 {
        __m512(a.words::<16>().map(|word| word as f32))
    }

    /// Rounded to even; what does not fit, and NaN, is the smallest integer.
    #[inline(never)]
    pub(super) unsafe fn _mm512_cvtps_epi32(a: __m512) -> __m512i {
        let rounded = |value: f32| match value.round_ties_even() {
            fits if (-2_147_483_648.0..2_147_483_648.0).contains(&fits) => fits as i32,
            _ => i32::MIN,
        };
        Register::of_words(a.0.map(rounded))
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_cvtph_ps(a: __m256i) -> __m512 {
        __m512(a.halves::<16>().map(|half| f32_from_f16(half as u16)))
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_castps_si512(a: __m512) -> __m512i {
        Register::of_words(a.0.map(|value| value.to_bits() as i32))
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_castsi512_ps(a: __m512i) -> __m512 {
        __m512(a.words::<16>().map(|word| f32::from_bits(word as u32)))
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_mul_ps(a: __m512, b: __m512) -> __m512 {
        __m512(std::array::from_fn(|i| a.0[i] * b.0[i]))
    }

    #[inline(never)]
    pub(super) unsafe fn _mm512_fmadd_ps(a: __m512, b: __m512, sum: __m512) -> __m512 {
        __m512(std::array::from_fn(|i| a.0[i].mul_add(b.0[i], sum.0[i])))
    }
}

#[cfg(test)]
mod tests {
    use super::linear::{LinearKernels, Prefetch, TileCall};
    use super::{linear_avx512, linear_scalar};
    use crate::MatrixSource;
    use crate::cpu::activations::{PANEL_ROWS, QuantizeRow, ROW_RECORD_BYTES};
    use crate::cpu::layout::{PackedMatrix, TILE_COLUMNS};
    use crate::cpu::threads::{Pinning, ThreadPool};
    use crate::quant::{BLOCK, Format, is_finite};

    /// A linear congruential generator; the high bits are good enough.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u32 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as u32
        }

        /// In (-4, 4), at times 0.
        fn activation(&mut self) -> f32 {
            match self.next() % 16 {
                0 => 0.0,
                _ => self.next() as f32 / (1u32 << 28) as f32 - 4.0,
            }
        }
    }

    /// `n_blocks` blocks of any bytes whose numbers are finite.
    fn blocks(format: Format, n_blocks: usize, random: &mut Random) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < n_blocks * format.block_bytes() {
            let block: Vec<u8> = (0..format.block_bytes()).map(|_| random.next() as u8).collect();
            if is_finite(format, &block) {
                bytes.extend(block);
            }
        }
        bytes
    }

    /// The panel of `rows`, as `kernels` quantize it.
    fn panel(kernels: &LinearKernels, rows: &[Vec<f32>]) -> Vec<u8> {
        let n_blocks = rows[0].len() / BLOCK;
        let mut panel = vec![0; rows.len() * n_blocks * ROW_RECORD_BYTES];
        for (row, values) in rows.iter().enumerate() {
            let target = QuantizeRow {
                panel: panel.as_mut_ptr(),
                n_panel_rows: rows.len(),
                row,
            };
            // SAFETY: the panel has records for the blocks of its rows; these kernels need no instruction
            // set.
            unsafe { (kernels.quantize_row)(values, &target) };
        }
        panel
    }

    fn multiply(kernels: &LinearKernels, weights: &PackedMatrix, rows: &[Vec<f32>]) -> Vec<u32> {
        let input = match weights.format().is_quantized() {
            true => panel(kernels, rows),
            false => rows
                .concat()
                .iter()
                .flat_map(|value| value.to_ne_bytes())
                .collect(),
        };
        let mut output = vec![0f32; rows.len() * TILE_COLUMNS];
        let call = TileCall {
            n_rows: rows.len(),
            tile: weights.tile(0).as_ptr(),
            input: input.as_ptr(),
            depth: weights.depth(),
            output: output.as_mut_ptr(),
            stride: TILE_COLUMNS,
            prefetch: Prefetch {
                start: weights.tile(0).as_ptr(),
                bytes_per_block: 64,
            },
        };
        // SAFETY: tile and input are as deep as the call says, the output has 16 columns for each row, and
        // these kernels need no instruction set.
        unsafe { kernels.tile(weights.format())(&call) };
        output.iter().map(|value| value.to_bits()).collect()
    }

    #[test]
    fn simulated_kernels_give_the_bits_of_the_plain_ones() {
        let mut pool = ThreadPool::new(1, Pinning::Auto).expect("no thread is needed");
        let mut random = Random(7);
        for format in Format::ALL {
            let n_in = 2 * format.block_len().max(BLOCK);
            let n_blocks = TILE_COLUMNS * n_in / format.block_len();
            let bytes = blocks(format, n_blocks, &mut random);
            let source = MatrixSource {
                format,
                n_out: TILE_COLUMNS,
                n_in,
                bytes: &bytes,
            };
            let weights = PackedMatrix::new(&source, &mut pool).expect("whole blocks");
            for n_rows in 1..=PANEL_ROWS {
                let row = |random: &mut Random| (0..n_in).map(|_| random.activation()).collect();
                let mut rows: Vec<Vec<f32>> = (0..n_rows).map(|_| row(&mut random)).collect();
                // A block of zeros, and a row that is not finite.
                rows[0][..BLOCK].fill(0.0);
                if n_rows > 1 {
                    rows[1][BLOCK] = f32::NAN;
                }
                let (plain, simulated) = (&linear_scalar::KERNELS, &linear_avx512::KERNELS);
                assert_eq!(panel(simulated, &rows), panel(plain, &rows), "{n_rows} rows");
                let (found, expected) = (
                    multiply(simulated, &weights, &rows),
                    multiply(plain, &weights, &rows),
                );
                for (i, (found, expected)) in found.into_iter().zip(expected).enumerate() {
                    let (a, b) = (f32::from_bits(found), f32::from_bits(expected));
                    let is_same = found == expected || a.is_nan() && b.is_nan();
                    assert!(is_same, "{format:?}, {n_rows} rows, output {i}: {a} and {b}");
                }
            }
        }
    }
}
