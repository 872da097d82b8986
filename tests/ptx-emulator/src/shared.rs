//! Shared memory of one block, with a race detector of vector clocks (as in Lamport's happens-before).
//!
//! Every warp, and the copy engine, is an agent with a vector clock. A barrier joins the clocks of who takes
//! part; an access to a word must come after the accesses of others that it conflicts with.
//!
//! ```text
//! write by a at clock c, then an access by b:  legal if b == a or clock(b)[a] >= c
//! ```
//!
//! Lanes of one warp are one agent: races between them are not seen.

/// What is known of four bytes.
#[derive(Clone, Copy, Default)]
struct Word {
    /// Agent plus one, and its clock when it wrote; 0 for nobody.
    writer: u16,
    clock: u32,
    /// Agent plus one whose asynchronous copy into the word is under way.
    pending: u16,
    /// A bit for each byte that was written.
    written: u8,
}

/// The shared memory of a block.
pub(crate) struct Shared {
    pub(crate) bytes: Vec<u8>,
    words: Vec<Word>,
    /// `[word][agent]`: clock of the agent's last read.
    reads: Vec<u32>,
    /// `[agent][agent]`.
    clocks: Vec<u32>,
    /// Of each agent: its clock at its last `fence.proxy.async`.
    fenced: Vec<u32>,
    n_agents: usize,
    checks: bool,
    pub(crate) barriers: Vec<(usize, Mbarrier)>,
}

/// An `mbarrier` object: arrivals and announced bytes that its phase still waits for.
#[derive(Clone, Default)]
pub(crate) struct Mbarrier {
    expected: u32,
    pending: u32,
    bytes: i64,
    pub(crate) phase: u32,
    clock: Vec<u32>,
}

impl Shared {
    /// Unwritten memory; the agents are `n_warps` warps and the copy engine.
    pub(crate) fn new(n_bytes: usize, n_warps: usize, checks: bool) -> Shared {
        let (n_words, n_agents) = (n_bytes.div_ceil(4), n_warps + 1);
        let mut clocks = vec![0; n_agents * n_agents];
        for agent in 0..n_agents {
            clocks[agent * n_agents + agent] = 1;
        }
        let (n_words, n_reads) = if checks {
            (n_words, n_words * n_agents)
        } else {
            (0, 0)
        };
        // Signalling garbage: NaN in every float format.
        Shared {
            bytes: vec![0xff; n_bytes],
            words: vec![Word::default(); n_words],
            reads: vec![0; n_reads],
            clocks,
            fenced: vec![0; n_agents],
            n_agents,
            checks,
            barriers: Vec::new(),
        }
    }

    fn copy_engine(&self) -> usize {
        self.n_agents - 1
    }

    fn clock(&self, agent: usize, of: usize) -> u32 {
        self.clocks[agent * self.n_agents + of]
    }

    fn tick(&mut self, agent: usize) {
        self.clocks[agent * self.n_agents + agent] += 1;
    }

    /// Whether the bytes are there.
    pub(crate) fn fits(&self, at: u64, len: usize) -> bool {
        at.checked_add(len as u64)
            .is_some_and(|end| end <= self.bytes.len() as u64)
    }

    /// `agent` reads `len` bytes; says why it may not.
    pub(crate) fn read(&mut self, agent: usize, at: usize, len: usize) -> Result<(), String> {
        if !self.checks {
            return Ok(());
        }
        for idx in at / 4..(at + len).div_ceil(4) {
            let word = self.words[idx];
            if word.pending != 0 {
                return Err(format!(
                    "shared byte {at} is read while an asynchronous copy into it is under way"
                ));
            }
            let wanted = covered(at, len);
            if word.written & wanted != wanted {
                return Err(format!("shared byte {at} is read and nobody wrote it"));
            }
            let writer = word.writer as usize;
            if writer != 0 && writer - 1 != agent && word.clock > self.clock(agent, writer - 1) {
                let by = self.agent(writer - 1);
                return Err(format!(
                    "race: warp {agent} reads shared byte {at} that {by} wrote, no barrier between"
                ));
            }
            self.reads[idx * self.n_agents + agent] = self.clock(agent, agent);
        }
        Ok(())
    }

    /// What `agent` wrote so far by ordinary stores may be read by the tensor cores and the copy engine.
    pub(crate) fn fence(&mut self, agent: usize) {
        self.fenced[agent] = self.clock(agent, agent);
        self.tick(agent);
    }

    /// A read by the tensor cores in the name of `agent`.
    pub(crate) fn read_by_engine(&mut self, agent: usize, at: usize, len: usize) -> Result<(), String> {
        self.read(agent, at, len)?;
        if self.checks {
            let word = self.words[at / 4];
            let writer = (word.writer as usize).wrapping_sub(1);
            if writer < self.copy_engine() && word.clock > self.fenced[writer] {
                return Err(format!(
                    "the tensor cores read shared byte {at} that warp {writer} wrote without fence.proxy.async"
                ));
            }
        }
        Ok(())
    }

    fn agent(&self, agent: usize) -> String {
        if agent == self.copy_engine() {
            "the copy engine".into()
        } else {
            format!("warp {agent}")
        }
    }

    /// `agent` writes `len` bytes; says why it may not.
    pub(crate) fn write(&mut self, agent: usize, at: usize, len: usize) -> Result<(), String> {
        if !self.checks {
            return Ok(());
        }
        for idx in at / 4..(at + len).div_ceil(4) {
            let word = self.words[idx];
            if word.pending != 0 {
                return Err(format!(
                    "shared byte {at} is written while an asynchronous copy into it is under way"
                ));
            }
            let writer = word.writer as usize;
            if writer != 0 && writer - 1 != agent && word.clock > self.clock(agent, writer - 1) {
                let by = self.agent(writer - 1);
                return Err(format!(
                    "race: warp {agent} writes shared byte {at} that {by} wrote, no barrier between"
                ));
            }
            for other in 0..self.n_agents {
                if other != agent && self.reads[idx * self.n_agents + other] > self.clock(agent, other) {
                    let by = self.agent(other);
                    return Err(format!(
                        "race: warp {agent} writes shared byte {at} that {by} read, no barrier between"
                    ));
                }
            }
            let clock = self.clock(agent, agent);
            let word = &mut self.words[idx];
            word.writer = agent as u16 + 1;
            word.clock = clock;
            word.written |= covered(at, len);
        }
        Ok(())
    }

    /// An asynchronous copy starts: it counts as a write from now until it ends.
    pub(crate) fn begin_copy(&mut self, agent: usize, at: usize, len: usize) -> Result<(), String> {
        self.write(agent, at, len)?;
        if self.checks {
            for word in &mut self.words[at / 4..(at + len).div_ceil(4)] {
                word.pending = agent as u16 + 1;
            }
        }
        Ok(())
    }

    /// It ends, in the name of `agent`.
    pub(crate) fn end_copy(&mut self, agent: usize, at: usize, len: usize) {
        if self.checks {
            let clock = self.clock(agent, agent);
            for word in &mut self.words[at / 4..(at + len).div_ceil(4)] {
                word.pending = 0;
                word.writer = agent as u16 + 1;
                word.clock = clock;
            }
        }
    }

    /// All of `agents` meet.
    pub(crate) fn join(&mut self, agents: u64) {
        let n = self.n_agents;
        let mut joined = vec![0; n];
        for agent in (0..n).filter(|agent| agents >> agent & 1 == 1) {
            for (joined, clock) in joined.iter_mut().zip(&self.clocks[agent * n..][..n]) {
                *joined = (*joined).max(*clock);
            }
        }
        for agent in (0..n).filter(|agent| agents >> agent & 1 == 1) {
            self.clocks[agent * n..][..n].copy_from_slice(&joined);
            self.tick(agent);
        }
    }

    pub(crate) fn barrier(&mut self, at: usize) -> Result<&mut Mbarrier, String> {
        let found = self.barriers.iter_mut().find(|barrier| barrier.0 == at);
        found
            .map(|barrier| &mut barrier.1)
            .ok_or_else(|| format!("no mbarrier was initialized at shared byte {at}"))
    }

    /// An `mbarrier` for `count` arrivals a phase.
    pub(crate) fn init_barrier(&mut self, at: usize, count: u32) {
        self.barriers.retain(|barrier| barrier.0 != at);
        let barrier = Mbarrier {
            expected: count,
            pending: count,
            clock: vec![0; self.n_agents],
            ..Mbarrier::default()
        };
        self.barriers.push((at, barrier));
    }

    /// `agent` arrives `count` times after announcing `bytes`.
    pub(crate) fn arrive(&mut self, agent: usize, at: usize, count: u32, bytes: i64) -> Result<(), String> {
        let clock = self.clocks[agent * self.n_agents..][..self.n_agents].to_vec();
        let barrier = self.barrier(at)?;
        if barrier.pending < count {
            return Err(format!(
                "mbarrier at shared byte {at}: more arrivals than it was initialized for"
            ));
        }
        barrier.bytes += bytes;
        barrier.pending -= count;
        barrier.join(&clock);
        barrier.complete();
        self.tick(agent);
        Ok(())
    }

    /// The copy engine delivered `bytes`.
    pub(crate) fn delivered(&mut self, at: usize, bytes: i64) -> Result<(), String> {
        let engine = self.copy_engine();
        let clock = self.clocks[engine * self.n_agents..][..self.n_agents].to_vec();
        let barrier = self.barrier(at)?;
        barrier.bytes -= bytes;
        barrier.join(&clock);
        barrier.complete();
        self.tick(engine);
        Ok(())
    }

    /// Whether the phase of this parity is over; if so `agent` is after it.
    pub(crate) fn test(&mut self, agent: usize, at: usize, parity: u32) -> Result<bool, String> {
        let barrier = self.barrier(at)?;
        if barrier.phase & 1 == parity & 1 {
            return Ok(false);
        }
        let clock = barrier.clock.clone();
        for (mine, theirs) in self.clocks[agent * self.n_agents..].iter_mut().zip(clock) {
            *mine = (*mine).max(theirs);
        }
        Ok(true)
    }
}

impl Mbarrier {
    fn join(&mut self, clock: &[u32]) {
        for (mine, theirs) in self.clock.iter_mut().zip(clock) {
            *mine = (*mine).max(*theirs);
        }
    }

    fn complete(&mut self) {
        if self.pending == 0 && self.bytes == 0 {
            self.phase += 1;
            self.pending = self.expected;
        }
    }
}

/// The bytes of a word that an access of `len` bytes at `at` touches, as bits; accesses are aligned.
fn covered(at: usize, len: usize) -> u8 {
    if len >= 4 {
        15
    } else {
        ((1 << len) - 1) << (at % 4)
    }
}
