//! Eight f32 lanes: what an attention kernel needs of an instruction set.

/// Lanes per vector.
pub(crate) const LANES: usize = 8;

/// Eight f32 lanes of one instruction set.
///
/// All functions are unsafe to call:
/// * the machine has the instruction set;
/// * pointers are valid for as many elements as the function's doc states.
pub(crate) trait Lanes: Copy {
    /// Every lane `value`.
    unsafe fn splat(value: f32) -> Self;
    /// 8 floats.
    unsafe fn load(from: *const f32) -> Self;
    /// 8 floats.
    unsafe fn store(self, to: *mut f32);
    /// 8 pairs of bf16: the even elements and the odd ones.
    unsafe fn load_bf16_pairs(from: *const u8) -> (Self, Self);
    /// `self * factor + addend`, fused where the instruction set has that.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// `self * factor`.
    unsafe fn mul(self, factor: Self) -> Self;
    /// `self + addend`.
    unsafe fn add(self, addend: Self) -> Self;
    /// `self - subtrahend`.
    unsafe fn sub(self, subtrahend: Self) -> Self;
    /// `self / divisor`.
    unsafe fn div(self, divisor: Self) -> Self;
    /// The larger of each pair of lanes, `other`'s where one is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller of each pair of lanes, `other`'s where one is NaN.
    unsafe fn min(self, other: Self) -> Self;
    /// `self * 2^n`, n in the low bits of `n`'s lanes.
    unsafe fn scale_by_bits(self, n: Self) -> Self;
    /// Asks for the line at `address`, which need not be readable.
    unsafe fn prefetch(address: *const u8);
}

/// Eight lanes of plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct ScalarLanes([f32; LANES]);

impl ScalarLanes {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        ScalarLanes(std::array::from_fn(|lane| f(self.0[lane], other.0[lane])))
    }
}

impl Lanes for ScalarLanes {
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        ScalarLanes([value; LANES])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's pointer is valid for 8 floats; an array of them needs no more alignment.
        ScalarLanes(unsafe { from.cast::<[f32; LANES]>().read() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as in `load`.
        unsafe { to.cast::<[f32; LANES]>().write(self.0) };
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u8) -> (Self, Self) {
        // SAFETY: the caller's pointer is valid for 8 pairs of 2 bytes.
        let words = unsafe { from.cast::<[u32; LANES]>().read_unaligned() };
        let words = words.map(u32::from_le);
        let even = words.map(|word| f32::from_bits(word << 16));
        let odd = words.map(|word| f32::from_bits(word & 0xffff_0000));
        (ScalarLanes(even), ScalarLanes(odd))
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        // Not fused: without the instruction that would be a library call.
        self.zip(factor, |a, b| a * b).zip(addend, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn mul(self, factor: Self) -> Self {
        self.zip(factor, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn add(self, addend: Self) -> Self {
        self.zip(addend, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(self, subtrahend: Self) -> Self {
        self.zip(subtrahend, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn div(self, divisor: Self) -> Self {
        self.zip(divisor, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    unsafe fn scale_by_bits(self, n: Self) -> Self {
        self.zip(n, |a, n| {
            f32::from_bits(a.to_bits().wrapping_add(n.to_bits() << 23))
        })
    }

    #[inline(always)]
    unsafe fn prefetch(_address: *const u8) {}
}

/// Eight lanes of AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2Lanes;

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::Lanes;

    #[derive(Clone, Copy)]
    pub(crate) struct Avx2Lanes(__m256);

    impl Lanes for Avx2Lanes {
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: the machine has AVX2.
            Avx2Lanes(unsafe { _mm256_set1_ps(value) })
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the machine has AVX2; the caller's pointer is valid for 8 floats.
            Avx2Lanes(unsafe { _mm256_loadu_ps(from) })
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the machine has AVX2; the caller's pointer is valid for 8 floats.
            unsafe { _mm256_storeu_ps(to, self.0) };
        }

        #[inline(always)]
        unsafe fn load_bf16_pairs(from: *const u8) -> (Self, Self) {
            // SAFETY: the machine has AVX2; the caller's pointer is valid for 32 bytes.
            unsafe {
                let words = _mm256_loadu_si256(from.cast());
                let even = _mm256_slli_epi32::<16>(words);
                let odd = _mm256_and_si256(words, _mm256_set1_epi32(0xffff_0000u32 as i32));
                (
                    Avx2Lanes(_mm256_castsi256_ps(even)),
                    Avx2Lanes(_mm256_castsi256_ps(odd)),
                )
            }
        }

        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
            // SAFETY: the machine has FMA.
            Avx2Lanes(unsafe { _mm256_fmadd_ps(self.0, factor.0, addend.0) })
        }

        #[inline(always)]
        unsafe fn mul(self, factor: Self) -> Self {
            // SAFETY: the machine has AVX2.
            Avx2Lanes(unsafe { _mm256_mul_ps(self.0, factor.0) })
        }

        #[inline(always)]
        unsafe fn add(self, addend: Self) -> Self {
            // SAFETY: the machine has AVX2.
            Avx2Lanes(unsafe { _mm256_add_ps(self.0, addend.0) })
        }

        #[inline(always)]
        unsafe fn sub(self, subtrahend: Self) -> Self {
            // SAFETY: the machine has AVX2.
            Avx2Lanes(unsafe { _mm256_sub_ps(self.0, subtrahend.0) })
        }

        #[inline(always)]
        unsafe fn div(self, divisor: Self) -> Self {
            // SAFETY: the machine has AVX2.
            Avx2Lanes(unsafe { _mm256_div_ps(self.0, divisor.0) })
        }

        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            // SAFETY: the machine has AVX2.
            Avx2Lanes(unsafe { _mm256_max_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn min(self, other: Self) -> Self {
            // SAFETY: the machine has AVX2.
            Avx2Lanes(unsafe { _mm256_min_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn scale_by_bits(self, n: Self) -> Self {
            // SAFETY: the machine has AVX2.
            unsafe {
                let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(n.0));
                let bits = _mm256_add_epi32(_mm256_castps_si256(self.0), exponent);
                Avx2Lanes(_mm256_castsi256_ps(bits))
            }
        }

        #[inline(always)]
        unsafe fn prefetch(address: *const u8) {
            // SAFETY: a prefetch reads nothing, wherever it points.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) };
        }
    }
}
