//! Transition tables of deterministic automata: states reachable and alive, and each kept once.
//!
//! State 0 is dead; `table.len() == n_states × n_columns`. A column stands for all that no state tells apart.

use crate::hash::Map;

pub(crate) const DEAD: u32 = 0;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rows {
    pub(crate) n_columns: usize,
    pub(crate) table: Vec<u32>,
    pub(crate) accepts: Vec<bool>,
    /// `DEAD` when nothing is accepted.
    pub(crate) start: u32,
}

/// By state, the states that lead to it, in one array.
pub(crate) struct Incoming {
    /// State n's begin at `[n]` and end at `[n + 1]`.
    begins: Vec<u32>,
    from: Vec<u32>,
}

impl Incoming {
    /// Of edges `(from, to)` between `n` states.
    pub(crate) fn new<E: Iterator<Item = (u32, u32)>>(n: usize, edges: impl Fn() -> E) -> Self {
        let mut begins = vec![0; n + 2];
        for (_, to) in edges() {
            begins[to as usize + 2] += 1;
        }
        for state in 2..n + 2 {
            begins[state] += begins[state - 1];
        }
        let mut from = vec![0; begins[n + 1] as usize];
        for (origin, to) in edges() {
            let slot = &mut begins[to as usize + 1];
            from[*slot as usize] = origin;
            *slot += 1;
        }
        Self { begins, from }
    }

    pub(crate) fn of(&self, state: u32) -> &[u32] {
        let state = state as usize;
        &self.from[self.begins[state] as usize..self.begins[state + 1] as usize]
    }
}

impl Rows {
    /// Nothing but the dead state.
    pub(crate) fn dead(n_columns: usize) -> Self {
        Self {
            n_columns,
            table: vec![DEAD; n_columns],
            accepts: vec![false],
            start: DEAD,
        }
    }

    pub(crate) fn n_states(&self) -> usize {
        self.accepts.len()
    }

    pub(crate) fn row(&self, state: u32) -> &[u32] {
        &self.table[state as usize * self.n_columns..][..self.n_columns]
    }

    /// Edges, those to the dead state apart: where from, over which column, where to.
    fn edges(&self) -> impl Iterator<Item = (u32, u32, u32)> + '_ {
        let rows = (0..).zip(self.table.chunks_exact(self.n_columns));
        rows.flat_map(|(from, row)| {
            let entries = (0..).zip(row).filter(|(_, to)| **to != DEAD);
            entries.map(move |(column, to)| (from, column, *to))
        })
    }

    /// Without the states from which no accepting state can be reached over `usable` columns alone. Edges
    /// over other columns stay where they lead to a state that is left.
    pub(crate) fn trimmed(&self, usable: impl Fn(u32) -> bool) -> Self {
        self.trimmed_by(&self.incoming(usable))
    }

    /// The edges over `usable` columns, by where they lead.
    pub(crate) fn incoming(&self, usable: impl Fn(u32) -> bool) -> Incoming {
        Incoming::new(self.n_states(), || {
            let edges = self.edges().filter(|(_, column, _)| usable(*column));
            edges.map(|(from, _, to)| (from, to))
        })
    }

    /// Without the states from which `into` leads to no accepting one.
    pub(crate) fn trimmed_by(&self, into: &Incoming) -> Self {
        let mut alive = self.accepts.clone();
        let mut queue: Vec<u32> = (0..alive.len() as u32)
            .filter(|state| alive[*state as usize])
            .collect();
        while let Some(state) = queue.pop() {
            for from in into.of(state) {
                if !std::mem::replace(&mut alive[*from as usize], true) {
                    queue.push(*from);
                }
            }
        }
        self.renumbered(|state| alive[state as usize].then_some(state))
    }

    /// Keeps the states reachable from the start, one for each value of `representative`; `None` is dead.
    /// They are numbered in the order in which they are met.
    pub(crate) fn renumbered(&self, representative: impl Fn(u32) -> Option<u32>) -> Self {
        let mut ids = vec![DEAD; self.n_states()];
        let mut order = Vec::new();
        let mut number = |state: u32, order: &mut Vec<u32>| {
            let Some(state) = (state != DEAD).then(|| representative(state)).flatten() else {
                return DEAD;
            };
            if ids[state as usize] == DEAD {
                order.push(state);
                ids[state as usize] = order.len() as u32;
            }
            ids[state as usize]
        };
        let mut kept = Self::dead(self.n_columns);
        kept.start = number(self.start, &mut order);
        let mut at = 0;
        while at < order.len() {
            let state = order[at];
            at += 1;
            kept.accepts.push(self.accepts[state as usize]);
            for to in self.row(state) {
                kept.table.push(number(*to, &mut order));
            }
        }
        kept
    }

    /// By column, the first one that is equal to it.
    pub(crate) fn equal_columns(&self) -> Vec<usize> {
        let mut first = vec![0; self.n_columns];
        let mut n_kinds = 1.min(self.n_columns);
        for row in self.table.chunks_exact(self.n_columns) {
            if n_kinds == self.n_columns {
                break;
            }
            if (0..self.n_columns).all(|column| row[column] == row[first[column]]) {
                continue;
            }
            let mut seen: Map<(usize, u32), usize> = Map::default();
            for column in 0..self.n_columns {
                first[column] = *seen.entry((first[column], row[column])).or_insert(column);
            }
            n_kinds = seen.len();
        }
        first
    }

    /// The fewest rows of the same language. Needs trimmed ones.
    pub(crate) fn minimal(&self) -> Self {
        let edges: Vec<(u32, u32, u32)> = self.edges().collect();
        let block = crate::minimal::blocks(&self.accepts, &edges);
        let mut first = vec![u32::MAX; self.n_states()];
        for state in (0..self.n_states() as u32).rev() {
            first[block[state as usize] as usize] = state;
        }
        self.renumbered(|state| Some(first[block[state as usize] as usize]))
    }
}
