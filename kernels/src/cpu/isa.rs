//! Instruction sets the kernels are written for.

/// An instruction set. Within one of them every op gives the same bits on every machine; the linear layers
/// give the same bits on all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// AVX-512 F, BW, DQ, VL and VNNI (attention needs BF16 too and serves with AVX2 where only that is
    /// missing).
    Avx512,
    /// AVX2, FMA and F16C.
    Avx2,
    /// Plain Rust, on every machine.
    Scalar,
}

impl Isa {
    /// All of them, best first.
    pub const ALL: [Isa; 3] = [Isa::Avx512, Isa::Avx2, Isa::Scalar];

    /// Those this machine has, best first; never empty.
    pub fn available() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// The first of [`available`](Self::available).
    pub fn best() -> Isa {
        Isa::available()[0]
    }

    /// Whether this machine, its operating system included, has it.
    #[cfg(target_arch = "x86_64")]
    pub fn is_available(self) -> bool {
        let avx2 = || {
            is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
        };
        match self {
            Isa::Avx512 => {
                avx2()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            Isa::Avx2 => avx2(),
            Isa::Scalar => true,
        }
    }

    /// Whether this machine has it.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_available(self) -> bool {
        self == Isa::Scalar
    }

    /// Its name in logs and errors.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Scalar => "scalar",
        }
    }
}

/// Whether this machine has the bf16 dot products that AVX-512 attention is written for.
#[cfg(target_arch = "x86_64")]
pub fn has_avx512_bf16() -> bool {
    Isa::Avx512.is_available() && is_x86_feature_detected!("avx512bf16")
}

/// Whether this machine has the bf16 dot products that AVX-512 attention is written for.
#[cfg(not(target_arch = "x86_64"))]
pub fn has_avx512_bf16() -> bool {
    false
}
