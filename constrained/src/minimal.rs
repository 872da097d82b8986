//! The coarsest partition of an automaton's states that its edges respect, by refining blocks of states and
//! bundles of edges in turn: about one step per edge and halving (Valmari, "Fast brief practical DFA
//! minimization", 2012).

/// Items in sets that are split and never joined.
struct Partition {
    items: Vec<u32>,
    /// By item: its place in `items`, and its set.
    place: Vec<u32>,
    set_of: Vec<u32>,
    /// By set: where it begins and ends in `items`, and how many of its first items are marked.
    begin: Vec<u32>,
    end: Vec<u32>,
    n_marked: Vec<u32>,
    touched: Vec<u32>,
}

impl Partition {
    /// One set of `n` items.
    fn whole(n: usize) -> Self {
        let items: Vec<u32> = (0..n as u32).collect();
        Self {
            place: items.clone(),
            items,
            set_of: vec![0; n],
            begin: vec![0],
            end: vec![n as u32],
            n_marked: vec![0],
            touched: Vec::new(),
        }
    }

    /// A set for each run of equal keys of `items`, which are numbered without gaps.
    fn by_runs(items: Vec<u32>, key: impl Fn(u32) -> u32) -> Self {
        let n = items.len();
        let mut partition = Self {
            place: vec![0; n],
            set_of: vec![0; n],
            begin: Vec::new(),
            end: Vec::new(),
            n_marked: Vec::new(),
            touched: Vec::new(),
            items,
        };
        for at in 0..n {
            let item = partition.items[at];
            if at == 0 || key(partition.items[at - 1]) != key(item) {
                partition.begin.push(at as u32);
                partition.end.push(at as u32);
                partition.n_marked.push(0);
            }
            let set = partition.begin.len() - 1;
            partition.end[set] = at as u32 + 1;
            partition.place[item as usize] = at as u32;
            partition.set_of[item as usize] = set as u32;
        }
        partition
    }

    fn n_sets(&self) -> usize {
        self.begin.len()
    }

    fn members(&self, set: usize) -> std::ops::Range<usize> {
        self.begin[set] as usize..self.end[set] as usize
    }

    /// Marks `item`, which is not marked yet.
    fn mark(&mut self, item: u32) {
        let set = self.set_of[item as usize] as usize;
        let from = self.place[item as usize];
        let to = self.begin[set] + self.n_marked[set];
        let other = self.items[to as usize];
        self.items.swap(from as usize, to as usize);
        self.place[other as usize] = from;
        self.place[item as usize] = to;
        if self.n_marked[set] == 0 {
            self.touched.push(set as u32);
        }
        self.n_marked[set] += 1;
    }

    /// Parts marked items from the others of their set. The smaller half becomes the new set.
    fn split(&mut self) {
        while let Some(set) = self.touched.pop() {
            let set = set as usize;
            let (begin, end) = (self.begin[set], self.end[set]);
            let border = begin + std::mem::take(&mut self.n_marked[set]);
            if border == end {
                continue;
            }
            let new = if border - begin <= end - border {
                self.begin[set] = border;
                (begin, border)
            } else {
                self.end[set] = border;
                (border, end)
            };
            let id = self.begin.len() as u32;
            self.begin.push(new.0);
            self.end.push(new.1);
            self.n_marked.push(0);
            for at in new.0..new.1 {
                self.set_of[self.items[at as usize] as usize] = id;
            }
        }
    }
}

/// The numbers of `items` by their keys below `n_keys`, and where those of each key begin and the last end.
fn by_key<T>(items: &[T], n_keys: usize, key: impl Fn(&T) -> u32) -> (Vec<u32>, Vec<u32>) {
    let mut begins = vec![0u32; n_keys + 1];
    items.iter().for_each(|item| begins[key(item) as usize] += 1);
    let mut sum = 0;
    for begin in &mut begins {
        sum += *begin;
        *begin = sum;
    }
    let mut sorted = vec![0u32; items.len()];
    for (number, item) in (0..).zip(items) {
        let begin = &mut begins[key(item) as usize];
        *begin -= 1;
        sorted[*begin as usize] = number;
    }
    (begins, sorted)
}

/// The block of each of `accepts.len()` states. `edges` are `(from, class, to)`, one at most from a state
/// over a class; a state without an edge over a class differs from one with it.
pub(crate) fn blocks(accepts: &[bool], edges: &[(u32, u32, u32)]) -> Vec<u32> {
    let n = accepts.len();
    let mut blocks = Partition::whole(n);
    for (state, accepts) in (0..).zip(accepts) {
        if *accepts {
            blocks.mark(state);
        }
    }
    blocks.split();
    let n_classes = edges.iter().map(|(_, class, _)| *class as usize + 1).max();
    let (_, by_class) = by_key(edges, n_classes.unwrap_or(0), |(_, class, _)| *class);
    let mut bundles = Partition::by_runs(by_class, |edge| edges[edge as usize].1);
    let (begins, into) = by_key(edges, n, |(_, _, to)| *to);
    // The first block's edges need no look: to come from it is to come from none of the others.
    let (mut n_blocks, mut n_bundles) = (1, 0);
    loop {
        while n_blocks < blocks.n_sets() {
            for at in blocks.members(n_blocks) {
                let state = blocks.items[at] as usize;
                for edge in &into[begins[state] as usize..begins[state + 1] as usize] {
                    bundles.mark(*edge);
                }
            }
            bundles.split();
            n_blocks += 1;
        }
        if n_bundles == bundles.n_sets() {
            return blocks.set_of;
        }
        for at in bundles.members(n_bundles) {
            blocks.mark(edges[bundles.items[at] as usize].0);
        }
        blocks.split();
        n_bundles += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks by comparing every pair until nothing changes.
    fn slowly(accepts: &[bool], edges: &[(u32, u32, u32)], n_classes: u32) -> Vec<Vec<bool>> {
        let n = accepts.len();
        let step = |state: usize, class: u32| {
            let found = edges
                .iter()
                .find(|edge| edge.0 == state as u32 && edge.1 == class);
            found.map(|edge| edge.2 as usize)
        };
        let mut differ: Vec<Vec<bool>> = (0..n)
            .map(|a| (0..n).map(|b| accepts[a] != accepts[b]).collect())
            .collect();
        loop {
            let mut changed = false;
            for (a, b, class) in
                (0..n).flat_map(|a| (0..n).flat_map(move |b| (0..n_classes).map(move |c| (a, b, c))))
            {
                let is_apart = match (step(a, class), step(b, class)) {
                    (Some(a), Some(b)) => differ[a][b],
                    (None, None) => false,
                    _ => true,
                };
                changed |= is_apart && !std::mem::replace(&mut differ[a][b], true);
            }
            if !changed {
                return differ;
            }
        }
    }

    #[test]
    fn blocks_are_the_states_that_no_text_tells_apart() {
        let mut random = 1u32;
        let mut below = |n: u32| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 16) % n
        };
        for _ in 0..300 {
            let (n, n_classes) = (1 + below(9), 1 + below(3));
            let accepts: Vec<bool> = (0..n).map(|_| below(2) == 0).collect();
            let mut edges = Vec::new();
            for (from, class) in (0..n).flat_map(|from| (0..n_classes).map(move |class| (from, class))) {
                if below(4) > 0 {
                    edges.push((from, class, below(n)));
                }
            }
            let found = blocks(&accepts, &edges);
            let differ = slowly(&accepts, &edges, n_classes);
            for (a, b) in (0..n as usize).flat_map(|a| (0..n as usize).map(move |b| (a, b))) {
                assert_eq!(
                    found[a] != found[b],
                    differ[a][b],
                    "{a} and {b} of {accepts:?} {edges:?}"
                );
            }
        }
    }
}
