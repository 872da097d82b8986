//! Paged attention of a batch: runs the items of an [`AttentionPlan`] on the pool.
//!
//! ```text
//! states    [kv head][planned row][query head of the group]   carried from level to level
//! stored    one state per row, head and block that was reduced by itself
//! worker    packed queries, limits, scores: what one thread needs for one item
//! ```

use std::f64::consts::LOG2_E;

use super::attention_kernel::{
    AttentionKernel, BLOCK_SUBPAGES, Block, QueryHead, QueryRows, RowState, Scratch, padded_dim, state_floats,
};
use super::attention_plan::{AttentionPlan, Item, MOST_STORED_ROWS, Tile, Work, most_item_rows};
use super::kv::{CpuKv, SUBPAGE_TOKENS, subpage_bytes};
use super::threads::{SharedSlice, ThreadPool};
use crate::host::Buffer;
use crate::{ATTENTION_BLOCK, BackendError, BatchShape, HeadLayout};

/// States of rows: the kernels' floats, and m of each.
struct States {
    floats: Buffer<f32>,
    largest: Buffer<f32>,
}

impl States {
    fn new() -> States {
        States {
            floats: empty(),
            largest: empty(),
        }
    }

    fn reserve(&mut self, n_rows: usize, floats_per_row: usize) -> Result<(), BackendError> {
        grow(&mut self.floats, n_rows * floats_per_row)?;
        grow(&mut self.largest, n_rows)
    }

    fn shared(&mut self) -> SharedStates<'_> {
        SharedStates {
            floats: SharedSlice::new(&mut self.floats),
            largest: SharedSlice::new(&mut self.largest),
        }
    }
}

fn empty() -> Buffer<f32> {
    Buffer::zeroed(0, "attention").expect("nothing is always there")
}

fn grow(buffer: &mut Buffer<f32>, len: usize) -> Result<(), BackendError> {
    if buffer.len() < len {
        *buffer = Buffer::zeroed(len, "attention")?;
    }
    Ok(())
}

/// States while several threads work on rows of their own.
#[derive(Clone, Copy)]
struct SharedStates<'a> {
    floats: SharedSlice<'a, f32>,
    largest: SharedSlice<'a, f32>,
}

impl SharedStates<'_> {
    /// The state of row `row`.
    fn row(self, row: usize, floats_per_row: usize) -> RowState {
        assert!(
            row < self.largest.len() && (row + 1) * floats_per_row <= self.floats.len(),
            "state {row} of {}",
            self.largest.len()
        );
        RowState {
            state: self.floats.as_mut_ptr().wrapping_add(row * floats_per_row),
            largest: self.largest.as_mut_ptr().wrapping_add(row),
        }
    }
}

struct Worker {
    packed: Vec<u32>,
    offsets: Vec<usize>,
    firsts: Vec<usize>,
    limits: Vec<usize>,
    scratch: Box<Scratch>,
}

/// Memory of attention, made for the largest step there may be.
pub(crate) struct AttentionSpace {
    states: States,
    stored: States,
    /// What the state of each query head begins with, where the layer has sinks: m and the weight.
    sinks: Vec<(f32, f32)>,
    workers: Vec<Worker>,
}

impl AttentionSpace {
    /// For a pool of `n_threads`.
    pub(crate) fn new(n_threads: usize) -> AttentionSpace {
        let worker = || Worker {
            packed: Vec::new(),
            offsets: Vec::new(),
            firsts: Vec::new(),
            limits: Vec::new(),
            scratch: Scratch::new(),
        };
        AttentionSpace {
            states: States::new(),
            stored: States::new(),
            sinks: Vec::new(),
            workers: std::iter::repeat_with(worker).take(n_threads).collect(),
        }
    }

    /// Makes room for every plan of batches of `shape`.
    pub(crate) fn reserve(&mut self, shape: &BatchShape) -> Result<(), BackendError> {
        let (heads, max_rows) = (shape.heads, shape.max_rows);
        let floats_per_row = state_floats(heads.head_dim);
        self.states.reserve(max_rows * heads.n_heads, floats_per_row)?;
        self.sinks.clear();
        self.sinks.reserve(heads.n_heads);
        // A row and head store at most a state for each block of a table.
        let n_blocks = (shape.max_pages * shape.kv.page_size).div_ceil(ATTENTION_BLOCK);
        let most_stored = (max_rows * heads.n_heads).saturating_mul(n_blocks);
        self.stored
            .reserve(most_stored.min(MOST_STORED_ROWS), floats_per_row)?;
        let n_rows = most_item_rows(heads);
        for worker in &mut self.workers {
            worker
                .packed
                .resize(worker.packed.len().max(n_rows * heads.head_dim), 0);
            worker.offsets.clear();
            worker.offsets.reserve(n_rows);
            worker.firsts.clear();
            worker.firsts.reserve(n_rows);
            worker.limits.clear();
            worker.limits.reserve(n_rows);
        }
        Ok(())
    }
}

/// What one call of attention reads and writes.
pub(crate) struct AttentionCall<'a> {
    pub(crate) kernel: AttentionKernel,
    /// What queries are multiplied by.
    pub(crate) query_scale: f32,
    /// Soft cap of scores in base 2, for kernels that cap.
    pub(crate) cap: f32,
    pub(crate) plan: &'a AttentionPlan,
    pub(crate) kv: &'a CpuKv,
    pub(crate) layer: usize,
    /// A score for each query head.
    pub(crate) sinks: Option<&'a [f32]>,
    /// Fused rows of the batch.
    pub(crate) qkv: &'a [f32],
    /// `[rows, n_heads * head_dim]`.
    pub(crate) out: &'a mut [f32],
}

/// Runs the plan, phase by phase.
pub(crate) fn attend(pool: &mut ThreadPool, space: &mut AttentionSpace, call: &mut AttentionCall<'_>) {
    let heads = call.plan.heads();
    assert_eq!(
        call.plan.kv(),
        call.kv.shape(),
        "the plan was made for another KV pool"
    );
    let n_rows = call.plan.n_rows();
    assert_eq!(call.qkv.len(), n_rows * heads.qkv_width(), "qkv rows of the plan");
    assert_eq!(
        call.out.len(),
        n_rows * heads.n_heads * heads.head_dim,
        "output rows of the plan"
    );
    assert_eq!(
        call.kernel.head_dim, heads.head_dim,
        "the kernel's head dimension"
    );
    assert_eq!(
        space.workers.len(),
        pool.n_threads(),
        "a worker's space per thread"
    );
    space.sinks.clear();
    space.sinks.extend(call.sinks.into_iter().flatten().map(|score| {
        let score = f64::from(*score) * LOG2_E;
        (score.ceil() as f32, (score - score.ceil()).exp2() as f32)
    }));
    let run = Run {
        kernel: call.kernel,
        query_head: QueryHead {
            dim: heads.head_dim,
            scale: call.query_scale,
        },
        cap: call.cap,
        plan: call.plan,
        kv: call.kv,
        pages: call.kv.layer(call.layer),
        qkv: call.qkv,
        out: SharedSlice::new(&mut *call.out),
        heads,
        group: heads.n_heads / heads.n_kv_heads,
        floats_per_row: state_floats(heads.head_dim),
        sinks: &space.sinks,
        states: space.states.shared(),
        stored: space.stored.shared(),
    };
    let workers = SharedSlice::new(&mut space.workers);
    for items in call.plan.phases() {
        pool.run(items.len(), 1, |thread_idx, claimed| {
            // SAFETY: no two calls at the same time have the same thread index.
            let worker = &mut unsafe { workers.range(thread_idx..thread_idx + 1) }[0];
            for item in &items[claimed] {
                run.item(item, worker);
            }
        });
    }
}

struct Run<'a> {
    kernel: AttentionKernel,
    query_head: QueryHead,
    cap: f32,
    plan: &'a AttentionPlan,
    kv: &'a CpuKv,
    /// Pages of the layer and the padding after them.
    pages: &'a [u8],
    qkv: &'a [f32],
    out: SharedSlice<'a, f32>,
    heads: HeadLayout,
    /// Query heads per kv head.
    group: usize,
    floats_per_row: usize,
    /// Of each query head, or none.
    sinks: &'a [(f32, f32)],
    states: SharedStates<'a>,
    stored: SharedStates<'a>,
}

impl Run<'_> {
    fn item(&self, item: &Item, worker: &mut Worker) {
        let tile = self.plan.tile(item);
        match item.work {
            Work::Fold => {
                if tile.starts {
                    self.start(item, tile);
                }
                self.attend(item, tile, worker);
                if tile.ends && tile.stored.is_none() {
                    self.finish(item, tile);
                }
            }
            Work::Store => self.attend(item, tile, worker),
            Work::Merge => {
                self.merge(item, tile);
                if tile.ends {
                    self.finish(item, tile);
                }
            }
        }
    }

    /// Kernel rows of a tile.
    fn kernel_rows(&self, tile: &Tile) -> usize {
        tile.rows.len() * self.group
    }

    /// State of a tile's first kernel row for a kv head; the others follow.
    fn state(&self, tile: &Tile, head: usize) -> RowState {
        let first = head * self.plan.n_rows() * self.group;
        let last = self
            .states
            .row(first + tile.rows.end * self.group - 1, self.floats_per_row);
        debug_assert!(!last.state.is_null());
        self.states
            .row(first + tile.rows.start * self.group, self.floats_per_row)
    }

    /// The same of what a block of the tile stored.
    fn stored(&self, tile: &Tile, head: usize, block: usize) -> RowState {
        let (blocks, first) = tile.stored.as_ref().expect("the tile's blocks are stored");
        let index = (block - blocks.start) * tile.heads.len() + head - tile.heads.start;
        let first = first + index * self.kernel_rows(tile);
        let last = self
            .stored
            .row(first + self.kernel_rows(tile) - 1, self.floats_per_row);
        debug_assert!(!last.state.is_null());
        self.stored.row(first, self.floats_per_row)
    }

    fn start(&self, item: &Item, tile: &Tile) {
        for head in item.heads.clone() {
            let first = self.state(tile, head);
            let n_rows = self.kernel_rows(tile);
            // SAFETY: the tile's states are within the buffers (`state` checked the last) and this item's
            // alone: no other item of the phase has the same rows and heads.
            unsafe {
                first.state.write_bytes(0, n_rows * self.floats_per_row);
                for row in 0..n_rows {
                    let head = head * self.group + row % self.group;
                    let (largest, weight) = match self.sinks.get(head) {
                        Some(sink) => *sink,
                        None => (f32::NEG_INFINITY, 0.0),
                    };
                    first.largest.add(row).write(largest);
                    // The first lane of the sum.
                    let state = first.state.add(row * self.floats_per_row);
                    state.add(padded_dim(self.heads.head_dim)).write(weight);
                }
            }
        }
    }

    fn attend(&self, item: &Item, tile: &Tile, worker: &mut Worker) {
        if item.blocks.is_empty() {
            return;
        }
        self.pack(item, tile, worker);
        let head_words = self.kernel_rows(tile) * self.heads.head_dim;
        for block_idx in item.blocks.clone() {
            for (i, head) in item.heads.clone().enumerate() {
                let block = self.block(tile, head, block_idx);
                let (target, run) = match item.work {
                    Work::Store => (self.stored(tile, head, block_idx), self.kernel.store),
                    Work::Fold | Work::Merge => (self.state(tile, head), self.kernel.fold),
                };
                let rows = QueryRows {
                    packed: worker.packed[i * head_words..][..head_words].as_ptr(),
                    firsts: &worker.firsts,
                    limits: &worker.limits,
                    state: target.state,
                    largest: target.largest,
                    cap: self.cap,
                };
                // SAFETY: the backend chose a kernel of an ISA the machine has. `packed` holds the tile's
                // rows for this head; the target's rows are within their buffer and this item's alone. The
                // block's subpages below the largest limit are pages of the tile's table, which the plan has
                // checked, with the pool's padding after the last; nobody writes the pool while it is
                // borrowed.
                unsafe { run(&rows, &block, self.heads.head_dim, &mut worker.scratch) };
            }
        }
    }

    /// Packs the queries of an item, head after head, and fills in the limits of its rows.
    fn pack(&self, item: &Item, tile: &Tile, worker: &mut Worker) {
        let HeadLayout { head_dim, .. } = self.heads;
        let rows = &self.plan.rows()[tile.rows.clone()];
        worker.firsts.clear();
        worker.limits.clear();
        for row in rows {
            worker.firsts.extend(std::iter::repeat_n(row.first, self.group));
            worker.limits.extend(std::iter::repeat_n(row.limit, self.group));
        }
        let head_words = rows.len() * self.group * head_dim;
        for (i, head) in item.heads.clone().enumerate() {
            worker.offsets.clear();
            for row in rows {
                let first = row.row * self.heads.qkv_width() + head * self.group * head_dim;
                worker
                    .offsets
                    .extend((0..self.group).map(|query| first + query * head_dim));
            }
            let last = worker.offsets.last().expect("a tile has rows");
            assert!(last + head_dim <= self.qkv.len(), "queries are within the batch");
            let packed = &mut worker.packed[i * head_words..][..head_words];
            // SAFETY: the machine has the kernel's ISA; the farthest query was just checked, and `packed` has
            // head_dim words for each.
            unsafe {
                (self.kernel.pack)(
                    self.qkv.as_ptr(),
                    &worker.offsets,
                    self.query_head,
                    packed.as_mut_ptr(),
                );
            }
        }
    }

    /// Where a block of a kv head is, and the one after it.
    fn block(&self, tile: &Tile, head: usize, block_idx: usize) -> Block {
        let first_token = block_idx * ATTENTION_BLOCK;
        let subpage = |number: usize| {
            let page_size = self.kv.shape().page_size;
            let token = first_token + number * SUBPAGE_TOKENS;
            let pages = self.plan.pages(tile);
            // Beyond the table nothing is read; the last page stands in.
            let page = pages[(token / page_size).min(pages.len() - 1)] as usize;
            let offset = page * self.kv.layer_page_bytes()
                + head * self.kv.head_bytes()
                + token % page_size / SUBPAGE_TOKENS * subpage_bytes(self.heads.head_dim);
            self.pages[offset..].as_ptr()
        };
        Block {
            subpages: std::array::from_fn(subpage),
            next: std::array::from_fn(|number| subpage(number + BLOCK_SUBPAGES)),
            first_token,
        }
    }

    /// Merges what was stored into the rows' states, blocks ascending.
    fn merge(&self, item: &Item, tile: &Tile) {
        for head in item.heads.clone() {
            for block in item.blocks.clone() {
                let (state, stored) = (self.state(tile, head), self.stored(tile, head, block));
                for (i, row) in self.plan.rows()[tile.rows.clone()].iter().enumerate() {
                    if !row.sees(block) {
                        continue;
                    }
                    for row in i * self.group..(i + 1) * self.group {
                        let at = |first: RowState| RowState {
                            state: first.state.wrapping_add(row * self.floats_per_row),
                            largest: first.largest.wrapping_add(row),
                        };
                        // SAFETY: the machine has the kernel's ISA; both rows are within their buffers and
                        // this item's alone, and the phase before has written the stored one.
                        unsafe { (self.kernel.merge)(at(state), at(stored), self.heads.head_dim) };
                    }
                }
            }
        }
    }

    /// Writes the results of a tile's rows.
    fn finish(&self, item: &Item, tile: &Tile) {
        let HeadLayout {
            n_heads, head_dim, ..
        } = self.heads;
        for head in item.heads.clone() {
            let first = self.state(tile, head);
            for (i, row) in self.plan.rows()[tile.rows.clone()].iter().enumerate() {
                for query in 0..self.group {
                    let start = (row.row * n_heads + head * self.group + query) * head_dim;
                    let state = first
                        .state
                        .wrapping_add((i * self.group + query) * self.floats_per_row);
                    // SAFETY: a row and query head belong to one tile, so no other thread writes this range;
                    // the state is within its buffer, and the machine has the kernel's ISA.
                    unsafe {
                        let out = self.out.range(start..start + head_dim);
                        (self.kernel.finish)(state, head_dim, out.as_mut_ptr());
                    }
                }
            }
        }
    }
}
