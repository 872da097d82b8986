//! The decoded form of PTX: types, operands, instructions and kernels.
//!
//! Names are resolved by then: registers are indices, shared and local variables are offsets, labels are
//! indices of instructions.

/// Type of an instruction, as it is written after its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ty {
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    Bf16,
    F16x2,
    Bf16x2,
    E4m3,
    E4m3x2,
    Tf32,
    F32,
    F64,
    Pred,
}

impl Ty {
    pub(crate) fn parse(text: &str) -> Option<Ty> {
        Some(match text {
            "b8" => Ty::B8,
            "b16" => Ty::B16,
            "b32" => Ty::B32,
            "b64" => Ty::B64,
            "b128" => Ty::B128,
            "u8" => Ty::U8,
            "u16" => Ty::U16,
            "u32" => Ty::U32,
            "u64" => Ty::U64,
            "s8" => Ty::S8,
            "s16" => Ty::S16,
            "s32" => Ty::S32,
            "s64" => Ty::S64,
            "f16" => Ty::F16,
            "bf16" => Ty::Bf16,
            "f16x2" => Ty::F16x2,
            "bf16x2" => Ty::Bf16x2,
            "e4m3" => Ty::E4m3,
            "e4m3x2" => Ty::E4m3x2,
            "tf32" => Ty::Tf32,
            "f32" => Ty::F32,
            "f64" => Ty::F64,
            "pred" => Ty::Pred,
            _ => return None,
        })
    }

    /// Bytes in a register or in memory.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Ty::B8 | Ty::U8 | Ty::S8 | Ty::E4m3 => 1,
            Ty::B16 | Ty::U16 | Ty::S16 | Ty::F16 | Ty::Bf16 | Ty::E4m3x2 => 2,
            Ty::B64 | Ty::U64 | Ty::S64 | Ty::F64 => 8,
            Ty::B128 => 16,
            _ => 4,
        }
    }

    pub(crate) fn is_signed(self) -> bool {
        matches!(self, Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
    }

    pub(crate) fn is_float(self) -> bool {
        matches!(self, Ty::F16 | Ty::Bf16 | Ty::F32 | Ty::F64)
    }
}

/// State space of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Param,
}

/// Index of a register, or of a predicate.
pub(crate) type Reg = u16;

/// Registers that the hardware fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    TidX,
    TidY,
    TidZ,
    NtidX,
    NtidY,
    NtidZ,
    CtaidX,
    CtaidY,
    CtaidZ,
    NctaidX,
    NctaidY,
    NctaidZ,
    LaneId,
    WarpId,
    LanemaskLt,
    LanemaskLe,
    LanemaskGt,
    LanemaskGe,
    LanemaskEq,
    Clock,
    SmId,
    NsmId,
    DynamicSharedSize,
    Zero,
    One,
}

impl Special {
    /// From its name in PTX.
    pub(crate) fn parse(name: &str) -> Option<Special> {
        Some(match name {
            "%tid.x" => Special::TidX,
            "%tid.y" => Special::TidY,
            "%tid.z" => Special::TidZ,
            "%ntid.x" => Special::NtidX,
            "%ntid.y" => Special::NtidY,
            "%ntid.z" => Special::NtidZ,
            "%ctaid.x" => Special::CtaidX,
            "%ctaid.y" => Special::CtaidY,
            "%ctaid.z" => Special::CtaidZ,
            "%nctaid.x" => Special::NctaidX,
            "%nctaid.y" => Special::NctaidY,
            "%nctaid.z" => Special::NctaidZ,
            "%laneid" => Special::LaneId,
            "%warpid" => Special::WarpId,
            "%lanemask_lt" => Special::LanemaskLt,
            "%lanemask_le" => Special::LanemaskLe,
            "%lanemask_gt" => Special::LanemaskGt,
            "%lanemask_ge" => Special::LanemaskGe,
            "%lanemask_eq" => Special::LanemaskEq,
            "%clock" | "%clock64" | "%globaltimer" | "%globaltimer_lo" => Special::Clock,
            "%smid" => Special::SmId,
            "%nsmid" => Special::NsmId,
            "%dynamic_smem_size" => Special::DynamicSharedSize,
            "%cluster_ctarank" | "%cluster_ctaid.x" => Special::Zero,
            "%cluster_nctarank" | "%cluster_nctaid.x" => Special::One,
            _ => return None,
        })
    }
}

/// A source operand.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Src {
    Reg(Reg),
    Imm(u64),
    Special(Special),
    /// Offset of a parameter.
    Param(u32),
    /// Address of a global variable of the module, by its index.
    Global(u32),
    /// Where dynamic shared memory starts.
    DynamicShared,
}

/// A predicate and whether it is negated.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PredSrc {
    Reg(Reg, bool),
    Const(bool),
}

/// An address: a base and a number of bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addr {
    pub(crate) base: Src,
    pub(crate) offset: i64,
}

/// What an instruction on registers computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alu {
    Mov,
    Add,
    Sub,
    Mul,
    MulHi,
    MulWide,
    Mad,
    MadHi,
    MadWide,
    Fma,
    Div,
    Rem,
    Abs,
    Neg,
    Min,
    Max,
    And,
    Or,
    Xor,
    Not,
    Shl,
    Shr,
    /// Funnel shifts; `true` takes the amount modulo 32.
    ShfLeft(bool),
    ShfRight(bool),
    Bfe,
    Bfi,
    Brev,
    Popc,
    Clz,
    Bfind,
    Prmt,
    Lop3,
    Rcp,
    Sqrt,
    Rsqrt,
    Sin,
    Cos,
    Lg2,
    Ex2,
    Tanh,
    /// Whether the bytes of the first and the second operand are signed.
    Dp4a(bool, bool),
    Copysign,
}

/// Comparison of `setp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// Unordered forms: true where an operand is NaN.
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

/// Operation on predicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Logic {
    And,
    Or,
    Xor,
    Not,
    Mov,
}

/// Rounding of `cvt`; the `Int` forms round to a whole number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Round {
    #[default]
    None,
    Nearest,
    ToZero,
    Down,
    Up,
    IntNearest,
    IntZero,
    IntDown,
    IntUp,
}

/// Which lane `shfl` reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShflMode {
    Idx,
    Up,
    Down,
    Bfly,
}

/// Operation of atomics and `redux`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reduce {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

/// What `vote` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VoteMode {
    All,
    Any,
    Uni,
    Ballot,
}

/// An instruction with its operands: `d` are destinations, `s`, `a`, `b`, `c` sources.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Nop,
    Exit,
    Trap,
    Branch(usize),
    Alu {
        f: Alu,
        ty: Ty,
        mode: FloatMode,
        d: Reg,
        s: [Src; 4],
    },
    Cvt {
        kind: Conversion,
        d: Reg,
        a: Src,
        b: Option<Src>,
    },
    Pack {
        bits: u32,
        d: Reg,
        parts: Vec<Src>,
    },
    Unpack {
        bits: u32,
        d: Vec<Option<Reg>>,
        a: Src,
    },
    Setp {
        cmp: Cmp,
        ty: Ty,
        d: Option<Reg>,
        d_not: Option<Reg>,
        a: Src,
        b: Src,
        combine: Option<(Logic, PredSrc)>,
    },
    PredLogic {
        f: Logic,
        d: Reg,
        a: PredSrc,
        b: PredSrc,
    },
    Selp {
        d: Reg,
        a: Src,
        b: Src,
        p: PredSrc,
    },
    ToGeneric {
        space: Space,
        d: Reg,
        a: Src,
    },
    FromGeneric {
        space: Space,
        d: Reg,
        a: Src,
    },
    Load {
        space: Space,
        ty: Ty,
        d: Vec<Option<Reg>>,
        addr: Addr,
    },
    Store {
        space: Space,
        ty: Ty,
        s: Vec<Src>,
        addr: Addr,
    },
    Atomic {
        space: Space,
        f: Reduce,
        ty: Ty,
        d: Option<Reg>,
        addr: Addr,
        a: Src,
        b: Option<Src>,
    },
    Barrier {
        id: Src,
        n_threads: Option<Src>,
        waits: bool,
    },
    WarpBarrier {
        members: Src,
    },
    Shfl {
        mode: ShflMode,
        d: Reg,
        p: Option<Reg>,
        a: Src,
        b: Src,
        c: Src,
        members: Src,
    },
    Vote {
        mode: VoteMode,
        d: Reg,
        p: PredSrc,
        members: Src,
    },
    ActiveMask {
        d: Reg,
    },
    Elect {
        p: Reg,
        members: Src,
    },
    Redux {
        f: Reduce,
        ty: Ty,
        d: Reg,
        a: Src,
        members: Src,
    },
    Ldmatrix {
        transposed: bool,
        d: Vec<Reg>,
        addr: Addr,
    },
    Stmatrix {
        transposed: bool,
        s: Vec<Src>,
        addr: Addr,
    },
    Mma {
        k: usize,
        ab: Ty,
        d: Vec<Reg>,
        a: Vec<Src>,
        b: Vec<Src>,
        c: Vec<Src>,
    },
    CpAsync {
        bytes: usize,
        dst: Addr,
        src: Addr,
        src_bytes: Option<Src>,
    },
    CpCommit,
    /// `None`: everything, committed or not.
    CpWait(Option<usize>),
    MbarrierInit {
        addr: Addr,
        count: Src,
    },
    MbarrierArrive {
        addr: Addr,
        state: Option<Reg>,
        expect: Option<Src>,
        count: Option<Src>,
    },
    MbarrierWait {
        addr: Addr,
        p: Reg,
        parity: Src,
    },
    Tma {
        n_dims: usize,
        dst: Addr,
        map: Addr,
        at: Vec<Src>,
        barrier: Addr,
    },
    WgmmaFence,
    ProxyFence,
    WgmmaCommit,
    WgmmaWait(usize),
    Wgmma {
        n: usize,
        ab: Ty,
        d: Vec<Reg>,
        a: Vec<Src>,
        b: Src,
        accumulate: PredSrc,
        negate: (bool, bool),
        transposed: (bool, bool),
    },
}

/// How floating-point results are treated.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FloatMode {
    /// Subnormal numbers count as zero.
    pub(crate) ftz: bool,
    /// Results are clamped to 0..1.
    pub(crate) sat: bool,
    /// Minimum and maximum of a NaN are NaN.
    pub(crate) nan: bool,
    /// To the nearest where it does not say.
    pub(crate) round: Round,
}

/// What `cvt` does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conversion {
    pub(crate) to: Ty,
    pub(crate) from: Ty,
    pub(crate) round: Round,
    pub(crate) sat: bool,
    /// Negative results and NaN become zero.
    pub(crate) relu: bool,
    pub(crate) ftz: bool,
}

/// An instruction and where it comes from.
#[derive(Clone, Debug)]
pub(crate) struct Instruction {
    /// Predicate that allows a lane to run it, and whether it is negated.
    pub(crate) guard: Option<(Reg, bool)>,
    /// Line of the PTX text.
    pub(crate) line: u32,
    /// Line of the CUDA source, 0 where the text has no `.loc`.
    pub(crate) source_line: u32,
    pub(crate) op: Op,
}

/// A parameter of a kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Param {
    pub(crate) offset: usize,
    pub(crate) bytes: usize,
}

/// One `.entry`.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    pub(crate) params: Vec<Param>,
    pub(crate) param_bytes: usize,
    pub(crate) n_registers: usize,
    pub(crate) n_predicates: usize,
    /// Bytes of static shared memory; dynamic shared memory starts there, aligned.
    pub static_shared: usize,
    pub(crate) dynamic_shared_at: usize,
    pub(crate) local_bytes: usize,
    /// Threads of a block that `.maxntid` allows; 0 says nothing.
    pub max_threads: usize,
    pub(crate) code: Vec<Instruction>,
}

impl Kernel {
    /// Offset and size of each parameter.
    pub fn parameters(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.params.iter().map(|param| (param.offset, param.bytes))
    }

    /// Instructions in the text.
    pub fn n_instructions(&self) -> usize {
        self.code.len()
    }
}
