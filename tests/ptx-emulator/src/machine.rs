//! Launches: blocks one after the other, the warps of a block interleaved, diverged lanes of a warp by their
//! lowest address.

use crate::asynchronous::Tensor;
use crate::isa::{Instruction, Kernel};
use crate::memory::{AccessError, Memory};
use crate::parse::Module;
use crate::shared::Shared;
use crate::warp::{Warp, lanes_of};

/// x, y, z.
pub type Dim = [u32; 3];

/// Named barriers of a block.
const N_BARRIERS: usize = 16;
/// Polls of an `mbarrier` in a row that change nothing; then nobody is left who could.
pub(crate) const MAX_IDLE_POLLS: u64 = 1 << 16;
const MAX_THREADS: usize = 1024;

/// One launch of a kernel.
pub struct Launch<'a> {
    /// The kernel's module.
    pub module: &'a Module,
    /// What to run.
    pub kernel: &'a Kernel,
    /// Address of each of the module's global variables.
    pub globals: &'a [u64],
    /// Blocks.
    pub grid: Dim,
    /// Threads of a block.
    pub block: Dim,
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: usize,
    /// The parameters as the kernel lays them out.
    pub params: &'a [u8],
}

/// How to run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Orders blocks and warps; every seed is another legal schedule.
    pub seed: u64,
    /// Check shared memory for races and reads of what nobody wrote.
    pub checks_shared: bool,
    /// A launch that runs more warp instructions hangs.
    pub limit: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            seed: 1,
            checks_shared: true,
            limit: 4_000_000_000,
        }
    }
}

/// What kind of error the driver would report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// An access outside of every allocation.
    Address,
    /// A misaligned access.
    Misaligned,
    /// Anything else: a race, a deadlock, a trap, a launch that cannot be.
    Launch,
}

/// What went wrong, and where.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The kernel's name.
    pub kernel: String,
    /// Line of the PTX text.
    pub line: u32,
    /// Line of the CUDA source, 0 if unknown.
    pub source_line: u32,
    /// Index of the block.
    pub block: Dim,
    /// Index of the warp in its block.
    pub warp: usize,
    /// What the driver would call it.
    pub kind: FaultKind,
    /// What happened.
    pub message: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Fault {
            kernel,
            line,
            source_line,
            block,
            warp,
            message,
            ..
        } = self;
        write!(
            f,
            "{kernel}, block {block:?}, warp {warp}, PTX line {line}, source line {source_line}: {message}"
        )
    }
}

impl std::error::Error for Fault {}

/// A fault that does not know its place yet.
pub(crate) struct Trouble {
    pub(crate) kind: FaultKind,
    pub(crate) message: String,
}

impl From<String> for Trouble {
    fn from(message: String) -> Self {
        Trouble {
            kind: FaultKind::Launch,
            message,
        }
    }
}

impl From<&str> for Trouble {
    fn from(message: &str) -> Self {
        Trouble::from(message.to_owned())
    }
}

impl From<AccessError> for Trouble {
    fn from(error: AccessError) -> Self {
        Trouble {
            kind: FaultKind::Address,
            message: error.to_string(),
        }
    }
}

pub(crate) type Result<T, E = Trouble> = std::result::Result<T, E>;

/// What a launch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Instructions issued, once a warp.
    pub instructions: u64,
    /// Of these, matrix products.
    pub matrix: u64,
    /// Reads of global memory, once a warp.
    pub global_loads: u64,
    /// 32-byte sectors that these touch.
    pub global_load_sectors: u64,
    /// Writes of global memory, once a warp.
    pub global_stores: u64,
    /// 32-byte sectors that these touch.
    pub global_store_sectors: u64,
    /// Cycles of accesses to shared memory if no two lanes met in a bank.
    pub shared_ideal: u64,
    /// The same with the conflicts.
    pub shared_cycles: u64,
}

impl std::ops::AddAssign for Statistics {
    fn add_assign(&mut self, other: Self) {
        self.instructions += other.instructions;
        self.matrix += other.matrix;
        self.global_loads += other.global_loads;
        self.global_load_sectors += other.global_load_sectors;
        self.global_stores += other.global_stores;
        self.global_store_sectors += other.global_store_sectors;
        self.shared_ideal += other.shared_ideal;
        self.shared_cycles += other.shared_cycles;
    }
}

/// Who has come to a named barrier.
#[derive(Clone, Copy, Default)]
pub(crate) struct Named {
    /// Warps, as bits.
    pub(crate) warps: u64,
    pub(crate) n_threads: usize,
}

/// The instruction that is being executed.
#[derive(Clone, Copy, Default)]
struct Place {
    warp: usize,
    line: u32,
    source_line: u32,
}

/// What follows an instruction.
pub(crate) enum Next {
    Step,
    /// These lanes go on at this instruction.
    Jump(u32, u32),
    /// The lanes stay at this instruction until others come.
    Wait,
    /// The warp lets others run; it goes on behind this instruction.
    Yield,
    Exit,
}

/// A block being executed.
pub(crate) struct Machine<'a> {
    pub(crate) launch: &'a Launch<'a>,
    pub(crate) memory: &'a mut Memory,
    pub(crate) statistics: Statistics,
    pub(crate) block: Dim,
    pub(crate) warps: Vec<Warp>,
    pub(crate) shared: Shared,
    pub(crate) named: [Named; N_BARRIERS],
    /// Tensor copies that were issued and have not arrived.
    pub(crate) in_flight: Vec<Tensor>,
    pub(crate) n_idle_polls: u64,
    options: Options,
    random: u64,
    place: Place,
}

/// Runs all blocks of `launch`.
pub fn run(launch: &Launch<'_>, memory: &mut Memory, options: Options) -> Result<Statistics, Fault> {
    let mut machine = Machine {
        launch,
        memory,
        statistics: Statistics::default(),
        block: [0; 3],
        warps: Vec::new(),
        shared: Shared::new(0, 0, false),
        named: [Named::default(); N_BARRIERS],
        in_flight: Vec::new(),
        n_idle_polls: 0,
        options,
        random: options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        place: Place::default(),
    };
    let result = machine.run_blocks();
    result.map_err(|Trouble { kind, message }| Fault {
        kernel: launch.kernel.name.clone(),
        line: machine.place.line,
        source_line: machine.place.source_line,
        block: machine.block,
        warp: machine.place.warp,
        kind,
        message,
    })?;
    Ok(machine.statistics)
}

impl Machine<'_> {
    /// xorshift64.
    pub(crate) fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn run_blocks(&mut self) -> Result<()> {
        let kernel = self.launch.kernel;
        let n_threads = self.launch.block.iter().map(|&n| n as usize).product::<usize>();
        let limit = if kernel.max_threads == 0 {
            MAX_THREADS
        } else {
            kernel.max_threads
        };
        if n_threads == 0 || n_threads > limit {
            return Err(format!("{n_threads} threads a block, the kernel allows 1 to {limit}").into());
        }
        if self.launch.params.len() < kernel.param_bytes {
            let n = self.launch.params.len();
            return Err(format!("{n} bytes of parameters, the kernel takes {}", kernel.param_bytes).into());
        }
        let [x, y, z] = self.launch.grid.map(u64::from);
        let mut order: Vec<u64> = (0..x * y * z).collect();
        for last in (1..order.len()).rev() {
            let other = (self.next_random() % (last as u64 + 1)) as usize;
            order.swap(last, other);
        }
        for idx in order {
            self.block = [(idx % x) as u32, (idx / x % y) as u32, (idx / x / y) as u32];
            self.run_block(n_threads)?;
        }
        Ok(())
    }

    fn run_block(&mut self, n_threads: usize) -> Result<()> {
        let kernel = self.launch.kernel;
        let n_shared = match self.launch.dynamic_shared {
            0 => kernel.static_shared,
            n => kernel.dynamic_shared_at + n,
        };
        let n_warps = n_threads.div_ceil(32);
        self.shared = Shared::new(n_shared, n_warps, self.options.checks_shared);
        self.named = [Named::default(); N_BARRIERS];
        self.in_flight.clear();
        let lanes = |warp: usize| (n_threads - warp * 32).min(32);
        self.warps = (0..n_warps).map(|warp| Warp::new(kernel, lanes(warp))).collect();
        loop {
            let can_run = |warp: &Warp| warp.alive != 0 && warp.stopped.is_none();
            let runnable: Vec<usize> = (0..n_warps).filter(|&w| can_run(&self.warps[w])).collect();
            if runnable.is_empty() {
                if self.warps.iter().all(|warp| warp.alive == 0) {
                    return Ok(());
                }
                return Err("deadlock: every warp that is left waits at a barrier".into());
            }
            let warp = runnable[self.next_random() as usize % runnable.len()];
            let quantum = if runnable.len() == 1 {
                1 << 20
            } else {
                1 << (self.next_random() % 10)
            };
            self.run_warp(warp, quantum)?;
            if self.statistics.instructions > self.options.limit {
                return Err(format!("more than {} instructions: it hangs", self.options.limit).into());
            }
        }
    }

    /// Runs the lanes with the lowest address until they branch apart, meet others, wait or have had their
    /// turn of `quantum` instructions.
    fn run_warp(&mut self, w: usize, quantum: u64) -> Result<()> {
        let end = self.statistics.instructions + quantum;
        while self.statistics.instructions < end
            && self.warps[w].alive != 0
            && self.warps[w].stopped.is_none()
        {
            let Some((pc, mask, bound)) = self.lowest_lanes(w) else {
                self.place = Place {
                    warp: w,
                    ..self.place
                };
                return Err(
                    "a collective is reached by some lanes of the warp and never by the others".into(),
                );
            };
            self.warps[w].waiting &= !mask;
            if !self.run_lanes(w, (pc, mask), bound, end)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The lowest address of the lanes that can go on, the lanes there (those that wait there too), and the
    /// next address at which others are. `None` where all wait.
    fn lowest_lanes(&self, w: usize) -> Option<(u32, u32, u32)> {
        let warp = &self.warps[w];
        let free = warp.alive & !warp.waiting;
        let pc = lanes_of(free).map(|lane| warp.pc[lane]).min()?;
        let mask = lanes_of(warp.alive)
            .filter(|&lane| warp.pc[lane] == pc)
            .fold(0, |mask, lane| mask | 1 << lane);
        // Lanes that wait further on are met there too.
        let bound = lanes_of(warp.alive & !mask)
            .map(|lane| warp.pc[lane])
            .filter(|&at| at > pc)
            .min();
        Some((pc, mask, bound.unwrap_or(u32::MAX)))
    }

    /// Runs the lanes of `mask` from `pc` on, up to `bound`; `false` where the warp lets others run.
    fn run_lanes(&mut self, w: usize, (mut pc, mask): (u32, u32), bound: u32, end: u64) -> Result<bool> {
        let launch = self.launch;
        loop {
            let Some(instruction) = launch.kernel.code.get(pc as usize) else {
                return Err("the kernel runs past its end".into());
            };
            let Instruction {
                line, source_line, ..
            } = *instruction;
            self.place = Place {
                warp: w,
                line,
                source_line,
            };
            let active = match instruction.guard {
                None => mask,
                Some((reg, negated)) => mask & self.warps[w].pred(crate::isa::PredSrc::Reg(reg, negated)),
            };
            self.statistics.instructions += 1;
            let next = if active == 0 {
                Next::Step
            } else {
                self.execute(w, &instruction.op, active, mask)?
            };
            let warp = &mut self.warps[w];
            match next {
                Next::Step => pc += 1,
                Next::Jump(target, taken) => {
                    warp.set_pc(taken, target);
                    warp.set_pc(mask & !taken, pc + 1);
                    return Ok(true);
                }
                Next::Wait => {
                    warp.waiting |= active;
                    warp.set_pc(active, pc);
                    warp.set_pc(mask & !active, pc + 1);
                    return Ok(true);
                }
                Next::Yield => {
                    warp.set_pc(mask, pc + 1);
                    return Ok(false);
                }
                Next::Exit => {
                    warp.alive &= !active;
                    warp.set_pc(mask & !active, pc + 1);
                    if warp.alive == 0 {
                        self.leave(w)?;
                    }
                    return Ok(true);
                }
            }
            // Others may have been at a lower address, or wait there.
            if self.statistics.instructions >= end || pc >= bound {
                self.warps[w].set_pc(mask, pc);
                return Ok(true);
            }
        }
    }

    /// A warp that ends no longer counts at barriers.
    fn leave(&mut self, w: usize) -> Result<()> {
        let warp = &self.warps[w];
        if !warp.open.is_empty() || !warp.groups.is_empty() {
            return Err("the warp ends while asynchronous copies of its own are under way".into());
        }
        for id in 0..N_BARRIERS {
            self.release(id, None);
        }
        Ok(())
    }
}
