//! The attention plan of one step: work items cut from the page tables, shared prefixes read once.
//!
//! ```text
//! sequences   sorted so that those with equal leading pages are neighbours
//!
//!   S0 |== shared by all ==|-- own --|                    level 0: one segment of all rows of S0, S1, S2
//!   S1 |== shared by all ==|== S1 S2 ==|-- own --|        level 1: own of S0; segment of S1 and S2
//!   S2 |== shared by all ==|== S1 S2 ==|- own -|          level 2: own of S1; own of S2
//!
//! segment     whole blocks of attention that some neighbours share, or what is left of one sequence
//! tile        some rows of a segment, for all kv heads or one
//! item        a tile, or a range of its blocks; claimed by a thread
//! phase       items that may run at the same time
//! ```
//!
//! Invariants:
//! * Segments cut only at multiples of [`ATTENTION_BLOCK`], and every row is in exactly one segment for each
//!   of its blocks, ascending with the level. Every row ends in a segment of its sequence alone.
//! * A row's first segment is of level 0. With a window, blocks that no member of a segment sees are left
//!   out.
//! * Phases are ordered: all of a level before the next one. So blocks reach a row's state in ascending
//!   order.
//! * A tile whose blocks are split leaves the state of every block after the first range by itself; a phase
//!   of its own merges them in ascending order.
//!
//! Nothing of this is visible in the bits of a row (contract C2): cutting is free to look at threads and
//! costs.

use std::cmp::Reverse;
use std::ops::Range;

use crate::{ATTENTION_BLOCK, BatchShape, HeadLayout, KvShape, StepRows};

/// Kernel rows (rows times query heads per kv head) of a large tile.
const TILE_ROWS: usize = 96;

/// Kernel rows below which a smaller tile wastes what loading a key costs.
const SMALL_TILE_ROWS: usize = 12;

/// What loading a block of one kv head costs, in kernel rows: 3 rows cost 0.94 us, 48 rows 4.65 us
/// (16 requests at 1,500 tokens, head_dim 64, one Zen 4 core; bench `attention`).
const LOAD_COST: usize = 8;

/// Items cheaper than this, in kernel rows times blocks, are not cut further: about 10 us.
const SMALL_COST: usize = 100;

/// Sequences that would be spared fewer loads of a block than this are not grouped: a level costs a phase.
const FEWEST_SPARED_LOADS: usize = 4;

/// Levels of sharing that are looked for.
const MOST_LEVELS: usize = 8;

/// Most states of single blocks that are kept between phases, in rows: bounds memory (32 MiB at head_dim 64).
pub(crate) const MOST_STORED_ROWS: usize = 100_000;

/// A query row in the order of the plan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlannedRow {
    /// Row of the batch.
    pub(crate) row: usize,
    /// The first token it sees.
    pub(crate) first: usize,
    /// One more than the last.
    pub(crate) limit: usize,
}

impl PlannedRow {
    /// Whether it sees a token of `block`.
    pub(crate) fn sees(&self, block: usize) -> bool {
        self.first < (block + 1) * ATTENTION_BLOCK && block * ATTENTION_BLOCK < self.limit
    }
}

/// Rows that are attended together.
#[derive(Clone, Debug)]
pub(crate) struct Tile {
    /// Planned rows.
    pub(crate) rows: Range<usize>,
    /// The page table they share for the tile's blocks, in the plan's `page_tables`.
    pub(crate) pages: Range<usize>,
    /// Kv heads.
    pub(crate) heads: Range<usize>,
    /// Whether the rows' states begin with this tile.
    pub(crate) starts: bool,
    /// Whether their results are final after it.
    pub(crate) ends: bool,
    /// Blocks whose states are stored by themselves, and the first of the stored rows.
    pub(crate) stored: Option<(Range<usize>, usize)>,
}

/// What is done to an item's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Merge them into the rows' states.
    Fold,
    /// Store each one's own state.
    Store,
    /// Merge stored states into the rows' states.
    Merge,
}

/// What a thread claims.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) tile: usize,
    pub(crate) heads: Range<usize>,
    pub(crate) blocks: Range<usize>,
    pub(crate) work: Work,
    cost: usize,
}

/// Most kernel rows of one item, over all its kv heads.
pub(crate) fn most_item_rows(heads: HeadLayout) -> usize {
    let group = heads.n_heads / heads.n_kv_heads;
    // A tile has one kv head, or few rows, or one row.
    TILE_ROWS
        .max(group)
        .max(SMALL_TILE_ROWS * heads.n_kv_heads)
        .max(heads.n_heads)
}

/// The work of one step's attention, built once and used by every layer. Keeps its memory.
pub(crate) struct AttentionPlan {
    kv: KvShape,
    heads: HeadLayout,
    window: Option<usize>,
    n_rows: usize,
    page_tables: Vec<u32>,
    sequences: Vec<PlannedSequence>,
    order: Vec<usize>,
    rows: Vec<PlannedRow>,
    first_rows: Vec<usize>,
    groups: Vec<Group>,
    segments: Vec<Segment>,
    tiles: Vec<Tile>,
    items: Vec<Item>,
    phases: Vec<Range<usize>>,
    n_stored_rows: usize,
}

#[derive(Clone, Copy)]
struct PlannedSequence {
    first_row: usize,
    n_rows: usize,
    first_position: usize,
    /// The first block that one of its rows sees.
    first_block: usize,
    first_page: usize,
    n_pages: usize,
}

/// Sequences whose first `n_equal_blocks` blocks are known to be the same pages.
struct Group {
    members: Range<usize>,
    n_equal_blocks: usize,
    first_block: usize,
    level: usize,
}

/// Blocks to be attended by the rows of `members`.
#[derive(Clone)]
struct Segment {
    members: Range<usize>,
    blocks: Range<usize>,
    level: usize,
}

impl AttentionPlan {
    /// An empty plan of batches of this shape for layers with this window.
    pub(crate) fn new(shape: &BatchShape, window: Option<usize>) -> AttentionPlan {
        let (kv, heads) = (shape.kv, shape.heads);
        assert!(
            heads.n_kv_heads == kv.n_kv_heads
                && heads.head_dim == kv.head_dim
                && heads.n_heads > 0
                && heads.n_heads.is_multiple_of(heads.n_kv_heads),
            "{heads:?} on {kv:?}"
        );
        AttentionPlan {
            kv,
            heads,
            window,
            n_rows: 0,
            page_tables: Vec::with_capacity(shape.max_pages),
            sequences: Vec::with_capacity(shape.max_sequences),
            order: Vec::with_capacity(shape.max_sequences),
            rows: Vec::with_capacity(shape.max_rows),
            first_rows: Vec::with_capacity(shape.max_sequences + 1),
            groups: Vec::with_capacity(shape.max_sequences),
            segments: Vec::with_capacity(2 * shape.max_sequences),
            tiles: Vec::new(),
            items: Vec::new(),
            phases: Vec::new(),
            n_stored_rows: 0,
        }
    }

    /// Replaces the plan by one for `rows`, which were checked.
    pub(crate) fn build(&mut self, rows: &StepRows<'_>, n_threads: usize) {
        self.take_rows(rows);
        self.find_segments(ATTENTION_BLOCK / self.kv.page_size);
        self.order_rows();
        self.cut(n_threads);
    }

    /// KV pool it was made for.
    pub(crate) fn kv(&self) -> KvShape {
        self.kv
    }

    /// Heads it was made for.
    pub(crate) fn heads(&self) -> HeadLayout {
        self.heads
    }

    /// Rows of the batch.
    pub(crate) fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Rows in the order of the plan.
    pub(crate) fn rows(&self) -> &[PlannedRow] {
        &self.rows
    }

    /// A tile's page table.
    pub(crate) fn pages(&self, tile: &Tile) -> &[u32] {
        &self.page_tables[tile.pages.clone()]
    }

    /// Tile of an item.
    pub(crate) fn tile(&self, item: &Item) -> &Tile {
        &self.tiles[item.tile]
    }

    /// Items phase by phase: those of a phase may run at the same time, the costliest first.
    pub(crate) fn phases(&self) -> impl Iterator<Item = &[Item]> {
        self.phases.iter().map(|phase| &self.items[phase.clone()])
    }

    /// The first token that a row with this limit sees.
    fn first_seen(&self, limit: usize) -> usize {
        self.window.map_or(0, |window| limit.saturating_sub(window))
    }

    fn take_rows(&mut self, rows: &StepRows<'_>) {
        self.page_tables.clear();
        self.page_tables.extend_from_slice(rows.page_tables);
        self.n_rows = rows.ids.len();
        self.sequences.clear();
        for sequence in rows.sequences {
            self.sequences.push(PlannedSequence {
                first_row: sequence.first_row,
                n_rows: sequence.n_rows,
                first_position: sequence.first_position,
                first_block: self.first_seen(sequence.first_position + 1) / ATTENTION_BLOCK,
                first_page: sequence.first_page,
                n_pages: sequence.n_pages,
            });
        }
    }

    /// Sorts the sequences and finds what neighbours share. Every page id is compared about once.
    fn find_segments(&mut self, pages_per_block: usize) {
        self.order.clear();
        self.order.extend(0..self.sequences.len());
        self.segments.clear();
        self.groups.clear();
        if !self.sequences.is_empty() {
            self.groups.push(Group {
                members: 0..self.sequences.len(),
                n_equal_blocks: 0,
                first_block: 0,
                level: 0,
            });
        }
        let tables = Tables {
            page_tables: &self.page_tables,
            sequences: &self.sequences,
            pages_per_block,
        };
        while let Some(mut group) = self.groups.pop() {
            let members = &mut self.order[group.members.clone()];
            if members.len() == 1 || group.level + 1 == MOST_LEVELS {
                for (member, sequence) in group.members.clone().zip(members) {
                    let sequence = self.sequences[*sequence];
                    let first = group.first_block.max(sequence.first_block);
                    self.segments.push(Segment {
                        members: member..member + 1,
                        blocks: first..sequence.n_blocks().max(first),
                        level: group.level,
                    });
                }
                continue;
            }
            let n_shared = tables.n_shared_blocks(members, group.n_equal_blocks);
            let seen = members
                .iter()
                .map(|sequence| self.sequences[*sequence].first_block);
            let first = seen.min().expect("a group has members").max(group.first_block);
            let n_spared = (members.len() - 1) * n_shared.saturating_sub(first);
            if n_spared >= FEWEST_SPARED_LOADS {
                self.segments.push(Segment {
                    members: group.members.clone(),
                    blocks: first..n_shared,
                    level: group.level,
                });
                group.first_block = n_shared;
                group.level += 1;
            }
            members.sort_unstable_by_key(|sequence| (tables.block(*sequence, n_shared), *sequence));
            let mut start = 0;
            for run in members.chunk_by(|a, b| {
                let block = tables.block(*a, n_shared);
                block.is_some() && block == tables.block(*b, n_shared)
            }) {
                let first = group.members.start + start;
                self.groups.push(Group {
                    members: first..first + run.len(),
                    n_equal_blocks: n_shared + 1,
                    first_block: group.first_block,
                    level: group.level,
                });
                start += run.len();
            }
        }
    }

    fn order_rows(&mut self) {
        self.rows.clear();
        self.first_rows.clear();
        for sequence in &self.order {
            self.first_rows.push(self.rows.len());
            let sequence = self.sequences[*sequence];
            for i in 0..sequence.n_rows {
                let limit = sequence.first_position + i + 1;
                self.rows.push(PlannedRow {
                    row: sequence.first_row + i,
                    first: self.first_seen(limit),
                    limit,
                });
            }
        }
        self.first_rows.push(self.rows.len());
    }

    fn cut(&mut self, n_threads: usize) {
        self.tiles.clear();
        self.items.clear();
        self.phases.clear();
        self.n_stored_rows = 0;
        self.segments
            .sort_unstable_by_key(|segment| (segment.level, segment.members.start));
        let mut done = 0;
        while done < self.segments.len() {
            let level = self.segments[done].level;
            let n = self.segments[done..]
                .iter()
                .take_while(|s| s.level == level)
                .count();
            let segments = done..done + n;
            done += n;
            let cost: usize = self.segments[segments.clone()].iter().map(|s| self.cost(s)).sum();
            // Two items a thread even out what dynamic claiming leaves uneven.
            let goal = match n_threads {
                1 => usize::MAX,
                _ => (cost / (2 * n_threads)).max(SMALL_COST),
            };
            let (first_tile, first_item) = (self.tiles.len(), self.items.len());
            for segment in segments {
                self.cut_segment(segment, goal);
            }
            self.close_phase(first_item);
            self.merge_stored(first_tile);
        }
    }

    /// Ends a phase that starts with item `first`, if it has any.
    fn close_phase(&mut self, first: usize) {
        if first < self.items.len() {
            self.items[first..]
                .sort_unstable_by_key(|item| (Reverse(item.cost), item.tile, item.heads.start));
            self.phases.push(first..self.items.len());
        }
    }

    /// A phase that merges what the tiles from `first_tile` on have stored.
    fn merge_stored(&mut self, first_tile: usize) {
        let first_item = self.items.len();
        for (tile_idx, tile) in self.tiles.iter().enumerate().skip(first_tile) {
            let Some((blocks, _)) = &tile.stored else {
                continue;
            };
            self.items.extend(tile.heads.clone().map(|head| Item {
                tile: tile_idx,
                heads: head..head + 1,
                blocks: blocks.clone(),
                work: Work::Merge,
                cost: blocks.len(),
            }));
        }
        self.close_phase(first_item);
    }

    /// Kernel rows times blocks and heads of a segment, loads included.
    fn cost(&self, segment: &Segment) -> usize {
        let heads = self.heads();
        let n_rows = self.first_rows[segment.members.end] - self.first_rows[segment.members.start];
        let group = heads.n_heads / heads.n_kv_heads;
        segment.blocks.len() * heads.n_kv_heads * (n_rows * group + LOAD_COST)
    }

    fn cut_segment(&mut self, segment_idx: usize, goal: usize) {
        let segment = self.segments[segment_idx].clone();
        let heads = self.heads();
        let group = heads.n_heads / heads.n_kv_heads;
        let rows = self.first_rows[segment.members.start]..self.first_rows[segment.members.end];
        let n_blocks = segment.blocks.len();
        let mut tile_rows = (TILE_ROWS / group).max(1);
        while n_blocks * (tile_rows * group + LOAD_COST) > goal
            && tile_rows > 1
            && tile_rows * group >= 2 * SMALL_TILE_ROWS
        {
            tile_rows /= 2;
        }
        let n_tiles = rows.len().div_ceil(tile_rows);
        let tile_rows = rows.len().div_ceil(n_tiles);
        // Few rows are bound by reading pages, and a page is read fastest from end to end.
        let together = tile_rows * group <= SMALL_TILE_ROWS || rows.len() == 1;
        let heads_per_tile = if together { heads.n_kv_heads } else { 1 };
        let sequence = self.sequences[self.order[segment.members.start]];
        for first_row in rows.clone().step_by(tile_rows) {
            let tile = Tile {
                rows: first_row..rows.end.min(first_row + tile_rows),
                pages: sequence.first_page..sequence.first_page + sequence.n_pages,
                heads: 0..heads_per_tile,
                starts: segment.level == 0,
                ends: segment.is_own(),
                stored: None,
            };
            let largest = self.rows[tile.rows.clone()].iter().map(|row| row.limit).max();
            let last_block = largest.expect("a tile has rows").div_ceil(ATTENTION_BLOCK);
            let end = segment.blocks.end.min(last_block).max(segment.blocks.start);
            for first_head in (0..heads.n_kv_heads).step_by(heads_per_tile) {
                let tile = Tile {
                    heads: first_head..first_head + heads_per_tile,
                    ..tile.clone()
                };
                self.cut_tile(tile, segment.blocks.start..end, goal);
            }
        }
    }

    fn cut_tile(&mut self, mut tile: Tile, blocks: Range<usize>, goal: usize) {
        let heads = self.heads();
        let kernel_rows = tile.rows.len() * heads.n_heads / heads.n_kv_heads;
        let block_cost = tile.heads.len() * (kernel_rows + LOAD_COST);
        let cost = block_cost * blocks.len();
        let small = kernel_rows <= 2 * SMALL_TILE_ROWS || tile.rows.len() == 1;
        let mut n_ranges = 1;
        if small && cost > goal.saturating_mul(3) / 2 {
            n_ranges = cost.div_ceil(goal).min(blocks.len() / 2).max(1);
        }
        let range_len = blocks.len().div_ceil(n_ranges).max(1);
        let rows_per_block = tile.heads.len() * kernel_rows;
        let room = (MOST_STORED_ROWS - self.n_stored_rows) / rows_per_block;
        let n_stored = blocks.len().saturating_sub(range_len).min(room);
        let stored = blocks.end - n_stored..blocks.end;
        let mut item = Item {
            tile: self.tiles.len(),
            heads: tile.heads.clone(),
            blocks: blocks.start..stored.start,
            work: Work::Fold,
            cost: block_cost * (blocks.len() - n_stored),
        };
        self.items.push(item.clone());
        item.work = Work::Store;
        for first in stored.clone().step_by(range_len) {
            item.blocks = first..stored.end.min(first + range_len);
            item.cost = block_cost * item.blocks.len();
            self.items.push(item.clone());
        }
        if !stored.is_empty() {
            tile.stored = Some((stored, self.n_stored_rows));
            self.n_stored_rows += n_stored * rows_per_block;
        }
        self.tiles.push(tile);
    }
}

impl PlannedSequence {
    /// Blocks that some row sees.
    fn n_blocks(&self) -> usize {
        (self.first_position + self.n_rows).div_ceil(ATTENTION_BLOCK)
    }
}

impl Segment {
    /// Whether it is the rest of one sequence.
    fn is_own(&self) -> bool {
        self.members.len() == 1
    }
}

/// Page tables in blocks.
struct Tables<'a> {
    page_tables: &'a [u32],
    sequences: &'a [PlannedSequence],
    pages_per_block: usize,
}

impl<'a> Tables<'a> {
    /// Pages of a block that the sequence's table has whole and that some row sees; none otherwise.
    fn block(&self, sequence: usize, block: usize) -> Option<&'a [u32]> {
        let sequence = &self.sequences[sequence];
        let first = block * self.pages_per_block;
        let whole = block < sequence.n_blocks() && first + self.pages_per_block <= sequence.n_pages;
        whole.then(|| &self.page_tables[sequence.first_page + first..][..self.pages_per_block])
    }

    /// Leading blocks that all members share, at least `n_known` of them.
    fn n_shared_blocks(&self, members: &[usize], n_known: usize) -> usize {
        let first = members[0];
        let mut n_shared = usize::MAX;
        for other in &members[1..] {
            let mut n = n_known;
            while n < n_shared {
                let block = self.block(first, n);
                if block.is_none() || block != self.block(*other, n) {
                    break;
                }
                n += 1;
            }
            n_shared = n;
        }
        n_shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SequenceRows;
    use crate::cpu::random::Random;

    #[derive(Default)]
    struct Batch {
        sequences: Vec<SequenceRows>,
        page_tables: Vec<u32>,
        /// Ids, positions and slots, which a plan does not look at.
        zeros: Vec<u32>,
    }

    impl Batch {
        /// Adds a sequence whose table starts with `shared` and goes on with fresh pages.
        fn push(&mut self, page_size: usize, shared: &[u32], n_tokens: usize, n_rows: usize) -> Vec<u32> {
            let n_pages = n_tokens.div_ceil(page_size);
            let mut table = shared[..shared.len().min(n_pages)].to_vec();
            let fresh = self.page_tables.len() as u32 + 1_000;
            table.extend((fresh..).take(n_pages - table.len()));
            self.sequences.push(SequenceRows {
                first_row: self.n_rows(),
                n_rows,
                first_position: n_tokens - n_rows,
                first_page: self.page_tables.len(),
                n_pages,
            });
            self.page_tables.extend_from_slice(&table);
            self.zeros.resize(self.n_rows(), 0);
            table
        }

        fn n_rows(&self) -> usize {
            self.sequences.iter().map(|sequence| sequence.n_rows).sum()
        }

        fn rows(&self) -> StepRows<'_> {
            StepRows {
                ids: &self.zeros,
                positions: &self.zeros,
                slots: &self.zeros,
                logit_rows: &[],
                sequences: &self.sequences,
                page_tables: &self.page_tables,
            }
        }
    }

    fn shape(page_size: usize, heads: HeadLayout) -> BatchShape {
        BatchShape {
            heads,
            kv: KvShape {
                n_layers: 1,
                n_kv_heads: heads.n_kv_heads,
                head_dim: 64,
                page_size,
                n_pages: 1 << 20,
            },
            max_rows: 1 << 16,
            max_logit_rows: 0,
            max_sequences: 100,
            max_pages: 1 << 20,
        }
    }

    fn heads(n_heads: usize, n_kv_heads: usize) -> HeadLayout {
        HeadLayout {
            n_heads,
            n_kv_heads,
            head_dim: 64,
        }
    }

    fn plan(batch: &Batch, page_size: usize, heads: HeadLayout, n_threads: usize) -> AttentionPlan {
        plan_within(None, (batch, page_size), heads, n_threads)
    }

    fn plan_within(
        window: Option<usize>,
        (batch, page_size): (&Batch, usize),
        heads: HeadLayout,
        n_threads: usize,
    ) -> AttentionPlan {
        let shape = shape(page_size, heads);
        batch.rows().check(&shape);
        let mut plan = AttentionPlan::new(&shape, window);
        plan.build(&batch.rows(), n_threads);
        check(&plan, batch, page_size);
        plan
    }

    /// Follows every row through the phases.
    fn check(plan: &AttentionPlan, batch: &Batch, page_size: usize) {
        let n_kv_heads = plan.heads().n_kv_heads;
        let pages_per_block = ATTENTION_BLOCK / page_size;
        let n = batch.n_rows() * n_kv_heads;
        let mut folded = vec![0; n];
        let mut stored: Vec<Vec<usize>> = vec![Vec::new(); n];
        let mut ended = vec![false; n];
        let mut slots = vec![false; plan.n_stored_rows];
        let group = plan.heads().n_heads / n_kv_heads;
        for phase in plan.phases() {
            let stored_before = stored.clone();
            let mut touched = vec![false; n];
            for item in phase {
                let tile = plan.tile(item);
                let pages = plan.pages(tile);
                assert!(tile.rows.len() * group * item.heads.len() <= most_item_rows(plan.heads()));
                let starts_later = item.work == Work::Fold && item.blocks.start > 0;
                for (head, row) in item
                    .heads
                    .clone()
                    .flat_map(|h| tile.rows.clone().map(move |r| (h, r)))
                {
                    let planned = plan.rows()[row];
                    let sequence = batch
                        .sequences
                        .iter()
                        .rfind(|s| s.first_row <= planned.row)
                        .expect("a row");
                    let table = &batch.page_tables[sequence.first_page..][..sequence.n_pages];
                    assert_eq!(
                        planned.limit,
                        sequence.first_position + planned.row - sequence.first_row + 1
                    );
                    let n_blocks = planned.limit.div_ceil(ATTENTION_BLOCK);
                    let at = planned.row * n_kv_heads + head;
                    assert_eq!(
                        planned.first,
                        plan.window.map_or(0, |w| planned.limit.saturating_sub(w))
                    );
                    let first_seen = planned.first / ATTENTION_BLOCK;
                    if item.work == Work::Fold && tile.starts {
                        assert!(folded[at] == 0 && item.blocks.start <= first_seen);
                    }
                    if item.work == Work::Fold && item.blocks.start <= first_seen {
                        // What it passed over is before the row's window.
                        folded[at] = folded[at].max(item.blocks.start);
                    }
                    if item.work != Work::Store {
                        assert!(!touched[at], "one item of a phase has a row's state");
                        touched[at] = true;
                        assert!(!ended[at], "nothing follows the end");
                    }
                    assert!(
                        !starts_later
                            || item.blocks.is_empty()
                            || folded[at] == item.blocks.start.min(n_blocks)
                    );
                    for block in item.blocks.clone().filter(|block| *block < n_blocks) {
                        let first = block * pages_per_block;
                        let last = table.len().min(first + pages_per_block);
                        assert_eq!(pages[first..last], table[first..last], "pages of block {block}");
                        if item.work == Work::Store {
                            let (blocks, first) = tile.stored.clone().expect("a tile that stores");
                            let index = (block - blocks.start) * tile.heads.len() + head - tile.heads.start;
                            let slot = first + (index * tile.rows.len() + row - tile.rows.start) * group;
                            assert!(!slots[slot..slot + group].contains(&true), "a slot of its own");
                            slots[slot..slot + group].fill(true);
                            stored[at].push(block);
                            continue;
                        }
                        assert_eq!(folded[at], block, "blocks ascend");
                        folded[at] += 1;
                        if item.work == Work::Merge {
                            assert!(stored_before[at].contains(&block), "stored in a phase before");
                        }
                    }
                    let ends = item.work == Work::Merge || tile.stored.is_none();
                    if item.work != Work::Store && tile.ends && ends {
                        assert_eq!(folded[at], n_blocks, "all blocks at the end");
                        ended[at] = true;
                    }
                }
            }
        }
        assert!(ended.iter().all(|ended| *ended), "every row ends");
    }

    /// Blocks that are loaded for a kv head, over all items.
    fn n_loads(plan: &AttentionPlan) -> usize {
        let loads = plan.phases().flatten().filter(|item| item.work != Work::Merge);
        loads.map(|item| item.blocks.len() * item.heads.len()).sum()
    }

    #[test]
    fn every_row_folds_its_own_blocks_once_and_in_order() {
        let seed = 3;
        let mut random = Random(seed);
        for case in 0..3_000 {
            let page_size = [16, 32, 64][random.below(3)];
            let heads = [heads(9, 3), heads(2, 2), heads(32, 2), heads(100, 1)][random.below(4)];
            let mut batch = Batch::default();
            let mut tables: Vec<Vec<u32>> = vec![Vec::new()];
            for _ in 0..random.below(20) {
                let parent = &tables[random.below(tables.len())];
                let shared = &parent[..random.below(parent.len() + 1)];
                let most_tokens = [40, 400, 3_000][random.below(3)];
                let n_tokens = 1 + random.below(most_tokens);
                let n_rows = match random.below(3) {
                    0 => 1 + random.below(n_tokens),
                    1 => n_tokens.min(5),
                    _ => 1,
                };
                let table = batch.push(page_size, shared, n_tokens, n_rows);
                tables.push(table);
            }
            let n_threads = 1 + random.below(8);
            println!("seed {seed} case {case}");
            let window = [None, None, Some(1), Some(100), Some(1_000)][random.below(5)];
            plan_within(window, (&batch, page_size), heads, n_threads);
        }
    }

    #[test]
    fn a_shared_prefix_is_loaded_once_for_all() {
        let mut batch = Batch::default();
        let system: Vec<u32> = (0..80).collect();
        for _ in 0..32 {
            batch.push(16, &system, 80 * 16 + 10, 1);
        }
        let shared = plan(&batch, 16, heads(9, 3), 1);
        // 20 blocks for all, one block each, for 3 heads. One tile holds the 96 query heads.
        assert_eq!(n_loads(&shared), 3 * (20 + 32));
        let mut apart = Batch::default();
        for _ in 0..32 {
            apart.push(16, &[], 80 * 16 + 10, 1);
        }
        assert_eq!(n_loads(&plan(&apart, 16, heads(9, 3), 1)), 3 * 21 * 32);
    }

    #[test]
    fn blocks_that_no_row_sees_are_not_loaded() {
        let mut batch = Batch::default();
        batch.push(16, &[], 5_000, 1);
        // The last 200 tokens are in 4 blocks of the 79.
        let windowed = plan_within(Some(200), (&batch, 16), heads(9, 3), 1);
        assert_eq!(n_loads(&windowed), 3 * 4);
        let system: Vec<u32> = (0..80).collect();
        let mut shared = Batch::default();
        for _ in 0..32 {
            shared.push(16, &system, 80 * 16 + 10, 1);
        }
        // Of the 20 common blocks the last 10, then one each.
        let windowed = plan_within(Some(640), (&shared, 16), heads(9, 3), 1);
        assert_eq!(n_loads(&windowed), 3 * (10 + 32));
    }

    #[test]
    fn nested_prefixes_are_each_loaded_once() {
        let mut batch = Batch::default();
        let system: Vec<u32> = (0..40).collect();
        for first in [100, 200, 300] {
            let topic: Vec<u32> = system.iter().copied().chain(first..first + 40).collect();
            for _ in 0..8 {
                batch.push(16, &topic, 80 * 16 + 10, 1);
            }
        }
        // 10 blocks of all 24, 10 blocks of each of 3 topics, one block each.
        assert_eq!(n_loads(&plan(&batch, 16, heads(9, 3), 1)), 3 * (10 + 3 * 10 + 24));
    }

    #[test]
    fn a_chain_of_ever_longer_prefixes_has_bounded_levels() {
        let mut batch = Batch::default();
        let longest: Vec<u32> = (0..800).collect();
        for n_shared in 0..100 {
            batch.push(16, &longest[..8 * n_shared], 16 * (8 * n_shared + 3), 1);
        }
        let plan = plan(&batch, 16, heads(9, 3), 2);
        assert!(plan.phases().count() <= 2 * MOST_LEVELS);
    }

    #[test]
    fn a_single_long_row_is_split_over_the_threads_only() {
        let mut batch = Batch::default();
        batch.push(16, &[], 1_500, 1);
        assert_eq!(plan(&batch, 16, heads(9, 3), 1).items.len(), 1);
        for n_threads in 2..=8 {
            let plan = plan(&batch, 16, heads(9, 3), n_threads);
            let first = plan.phases().next().expect("there is work");
            assert!(first.len() >= n_threads, "{} items", first.len());
            assert!(plan.n_stored_rows > 0);
        }
    }

    #[test]
    fn stored_states_are_bounded_whatever_the_context() {
        let mut batch = Batch::default();
        for _ in 0..3 {
            batch.push(16, &[], 1 << 20, 1);
        }
        let plan = plan(&batch, 16, heads(9, 3), 64);
        assert!((1..=MOST_STORED_ROWS).contains(&plan.n_stored_rows));
    }

    #[test]
    fn a_warm_plan_takes_no_memory() {
        let mut batch = Batch::default();
        let system: Vec<u32> = (0..40).collect();
        for i in 0..20 {
            batch.push(16, &system[..2 * i], 1_000 + i, 1 + i % 3);
        }
        let mut plan = plan(&batch, 16, heads(9, 3), 2);
        let memory = |plan: &AttentionPlan| {
            [
                plan.page_tables.capacity(),
                plan.sequences.capacity(),
                plan.order.capacity(),
                plan.rows.capacity(),
                plan.first_rows.capacity(),
                plan.groups.capacity(),
                plan.segments.capacity(),
                plan.tiles.capacity(),
                plan.items.capacity(),
                plan.phases.capacity(),
            ]
        };
        let before = memory(&plan);
        plan.build(&batch.rows(), 2);
        assert_eq!(memory(&plan), before);
    }
}
