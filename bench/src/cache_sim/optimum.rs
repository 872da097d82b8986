//! What a cache could have done at best, known afterwards.
//!
//! Both figures are in tokens, without pages, so that no page size does better:
//!
//! * [`Trie::bound`]: every distinct token is computed once. No order, no cache and no knowledge of the
//!   future saves more; a small cache in an order that cannot wait for all requests reaches less.
//! * [`Trie::clairvoyant`]: requests start and end as they did in a simulated run, and whenever room is
//!   short, that goes first which is wanted last (Belady 1966). The best of it over the orders of all
//!   policies is the best that is known to be possible.
//!
//! All tokens of a run of the trie are used by the same requests, so runs are weighed as wholes.

use std::collections::{BTreeSet, HashMap};

use super::trace::Request;

/// Never again.
const NEVER: usize = usize::MAX;

/// Something that happened in a run, in the order of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Start(usize),
    End(usize),
}

#[derive(Debug)]
struct Run {
    /// Where its tokens stand: in the computed tokens of this request, from here.
    request: usize,
    from: usize,
    len: usize,
    children: HashMap<u32, usize>,
}

/// The computed tokens of all requests as a tree, cut wherever one of them may begin or end to count.
#[derive(Debug)]
pub(super) struct Trie {
    computed: Vec<Vec<u32>>,
    runs: Vec<Run>,
    /// Runs of each request from the root on, and how many of them the cache may give.
    paths: Vec<(Vec<usize>, usize)>,
}

impl Trie {
    pub(super) fn new(requests: &[Request]) -> Self {
        let root = Run {
            request: 0,
            from: 0,
            len: 0,
            children: HashMap::new(),
        };
        let mut trie = Self {
            computed: requests.iter().map(Request::computed).collect(),
            runs: vec![root],
            paths: Vec::new(),
        };
        for (i, request) in requests.iter().enumerate() {
            trie.insert(i, request.max_cached());
            trie.insert(i, trie.computed[i].len());
        }
        for (i, request) in requests.iter().enumerate() {
            let path = trie.walk(i, trie.computed[i].len());
            let n_cachable = trie.walk(i, request.max_cached()).len();
            trie.paths.push((path, n_cachable));
        }
        trie
    }

    /// Makes the first `n` computed tokens of request `i` end with a run.
    fn insert(&mut self, i: usize, n: usize) {
        let (mut at, mut done) = (0, 0);
        while done < n {
            let token = self.computed[i][done];
            let Some(&next) = self.runs[at].children.get(&token) else {
                let new = Run {
                    request: i,
                    from: done,
                    len: n - done,
                    children: HashMap::new(),
                };
                self.runs.push(new);
                let new = self.runs.len() - 1;
                self.runs[at].children.insert(token, new);
                return;
            };
            let run = &self.runs[next];
            let known = &self.computed[run.request][run.from..][..run.len];
            let equal = known
                .iter()
                .zip(&self.computed[i][done..n])
                .take_while(|(a, b)| a == b);
            let n_equal = equal.count();
            if n_equal < run.len {
                self.cut(next, n_equal);
            }
            (at, done) = (next, done + n_equal);
        }
    }

    /// Gives what follows the first `n` tokens of a run to a run of its own.
    fn cut(&mut self, run: usize, n: usize) {
        let lower_idx = self.runs.len();
        let upper = &mut self.runs[run];
        let lower = Run {
            request: upper.request,
            from: upper.from + n,
            len: upper.len - n,
            children: std::mem::take(&mut upper.children),
        };
        upper.len = n;
        let token = self.computed[lower.request][lower.from];
        upper.children.insert(token, lower_idx);
        self.runs.push(lower);
    }

    fn walk(&self, i: usize, n: usize) -> Vec<usize> {
        let (mut at, mut done, mut path) = (0, 0, Vec::new());
        while done < n {
            at = self.runs[at].children[&self.computed[i][done]];
            done += self.runs[at].len;
            path.push(at);
        }
        assert_eq!(done, n, "runs are cut where requests end");
        path
    }

    /// Distinct tokens of the trace.
    pub(super) fn n_distinct(&self) -> u64 {
        self.runs.iter().map(|run| run.len as u64).sum()
    }

    /// Hit tokens if every distinct token is computed once.
    pub(super) fn bound(&self) -> u64 {
        // Requests that may read a run, and whether one makes it that may not.
        let mut uses: Vec<(u64, bool)> = vec![(0, false); self.runs.len()];
        for (path, n_cachable) in &self.paths {
            for (idx, run) in path.iter().enumerate() {
                match idx < *n_cachable {
                    true => uses[*run].0 += 1,
                    false => uses[*run].1 = true,
                }
            }
        }
        let hits = uses.iter().zip(&self.runs).map(|((n_readers, is_made), run)| {
            let n_hits = n_readers.saturating_sub(u64::from(!is_made));
            n_hits * run.len as u64
        });
        hits.sum()
    }

    /// Hit tokens with the same starts and ends in a cache of `capacity` tokens that knows the future. A
    /// request's tokens are there from its start on and stay until its end.
    pub(super) fn clairvoyant(&self, events: &[Event], capacity: u64) -> u64 {
        let mut uses: Vec<Vec<usize>> = vec![Vec::new(); self.runs.len()];
        for (time, event) in events.iter().enumerate().rev() {
            if let Event::Start(i) = event {
                let (path, n_cachable) = &self.paths[*i];
                path[..*n_cachable].iter().for_each(|run| uses[*run].push(time));
            }
        }
        let mut cache = Clairvoyant {
            trie: self,
            uses,
            resident: vec![0; self.runs.len()],
            n_locks: vec![0; self.runs.len()],
            evictable: BTreeSet::new(),
            n_resident: 0,
            capacity,
        };
        let mut n_hits = 0;
        for (time, event) in events.iter().enumerate() {
            match *event {
                Event::Start(i) => n_hits += cache.start(time, i),
                Event::End(i) => cache.end(i),
            }
        }
        n_hits
    }
}

/// A cache that gives up what is wanted last.
struct Clairvoyant<'a> {
    trie: &'a Trie,
    /// When each run is read again, the next time last.
    uses: Vec<Vec<usize>>,
    /// Tokens of each run that are there, from its first on.
    resident: Vec<usize>,
    n_locks: Vec<u32>,
    /// Next use, depth and run of all that is there and not locked. A run's descendants are wanted no sooner
    /// than it is and are deeper, so the last one has none left.
    evictable: BTreeSet<(usize, usize, usize)>,
    n_resident: u64,
    capacity: u64,
}

impl Clairvoyant<'_> {
    fn key(&self, depth: usize, run: usize) -> (usize, usize, usize) {
        (self.uses[run].last().copied().unwrap_or(NEVER), depth, run)
    }

    /// Returns the hit tokens.
    fn start(&mut self, time: usize, i: usize) -> u64 {
        let (path, n_cachable) = &self.trie.paths[i];
        let (mut n_hits, mut is_whole) = (0, true);
        for (depth, &run) in path.iter().enumerate() {
            let len = self.trie.runs[run].len;
            if self.n_locks[run] == 0 && self.resident[run] > 0 {
                let key = self.key(depth, run);
                assert!(
                    self.evictable.remove(&key),
                    "what is there unlocked can be given up"
                );
            }
            if is_whole && depth < *n_cachable {
                n_hits += self.resident[run] as u64;
                is_whole = self.resident[run] == len;
            }
            if self.uses[run].last() == Some(&time) {
                self.uses[run].pop();
            }
            self.n_resident += (len - self.resident[run]) as u64;
            self.resident[run] = len;
            self.n_locks[run] += 1;
        }
        self.make_room();
        n_hits
    }

    fn end(&mut self, i: usize) {
        for (depth, &run) in self.trie.paths[i].0.iter().enumerate() {
            self.n_locks[run] -= 1;
            if self.n_locks[run] == 0 {
                let key = self.key(depth, run);
                self.evictable.insert(key);
            }
        }
    }

    fn make_room(&mut self) {
        while self.n_resident > self.capacity {
            let last = self.evictable.pop_last();
            let (next, depth, run) = last.expect("what runs together fits");
            let n_gone = (self.n_resident - self.capacity).min(self.resident[run] as u64);
            self.n_resident -= n_gone;
            self.resident[run] -= n_gone as usize;
            if self.resident[run] > 0 {
                self.evictable.insert((next, depth, run));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::trace::Arrival;
    use super::*;
    use crate::random::Random;

    fn request(prompt: &[u32], output: &[u32]) -> Request {
        Request {
            arrival: Arrival::At(0),
            prompt: prompt.to_vec(),
            output: output.to_vec(),
        }
    }

    fn one_by_one(order: &[usize]) -> Vec<Event> {
        order
            .iter()
            .flat_map(|i| [Event::Start(*i), Event::End(*i)])
            .collect()
    }

    #[test]
    fn by_hand() {
        let requests = [
            request(&[1, 2, 3, 4], &[5, 6]),
            request(&[1, 2, 9, 9], &[9]),
            // Goes on after the first one's output, whose last token was never computed.
            request(&[1, 2, 3, 4, 5, 6, 7], &[8]),
        ];
        let trie = Trie::new(&requests);
        // 1 2 3 4 5 | 9 9 | 6 7
        assert_eq!(trie.n_distinct(), 9);
        // The second reads 1 2, the third 1 2 3 4 5.
        assert_eq!(trie.bound(), 7);
        assert_eq!(trie.clairvoyant(&one_by_one(&[0, 1, 2]), 100), 7);
        // 7 tokens: after the second, only 5 of the 9 distinct ones beside its own two are there.
        assert_eq!(trie.clairvoyant(&one_by_one(&[0, 1, 2]), 7), 7);
        assert_eq!(trie.clairvoyant(&one_by_one(&[2, 1, 0]), 100), 5);
    }

    #[test]
    fn a_prompt_that_was_asked_before_computes_its_last_token_again() {
        let requests = [request(&[1, 2, 3], &[4]), request(&[1, 2, 3], &[4])];
        let trie = Trie::new(&requests);
        assert_eq!(trie.bound(), 2);
        assert_eq!(trie.clairvoyant(&one_by_one(&[0, 1]), 3), 2);
    }

    /// Reads and evictions token by token, trying every way to make room.
    fn best(requests: &[Request], left: &[usize], cached: &BTreeSet<Vec<u32>>, capacity: usize) -> usize {
        let Some((&i, rest)) = left.split_first() else {
            return 0;
        };
        let tokens = requests[i].computed();
        let prefixes: BTreeSet<Vec<u32>> = (1..=tokens.len()).map(|n| tokens[..n].to_vec()).collect();
        let is_there = |n: &usize| cached.contains(&tokens[..*n]);
        let n_hits = (1..=requests[i].max_cached()).take_while(is_there).count();
        let others: Vec<&Vec<u32>> = cached.difference(&prefixes).collect();
        let n_kept = (capacity - prefixes.len()).min(others.len());
        let subsets = (0_u32..1 << others.len()).filter(|bits| bits.count_ones() as usize == n_kept);
        let after = subsets.map(|bits| {
            let kept = others.iter().enumerate().filter(|(n, _)| bits >> n & 1 == 1);
            let mut cached: BTreeSet<Vec<u32>> = kept.map(|(_, prefix)| (*prefix).clone()).collect();
            cached.extend(prefixes.iter().cloned());
            best(requests, rest, &cached, capacity)
        });
        n_hits + after.max().unwrap_or_default()
    }

    #[test]
    fn no_way_to_make_room_gives_more_hits() {
        for seed in 0..60 {
            let mut random = Random(seed);
            let requests: Vec<Request> = (0..6)
                .map(|_| {
                    let n = 2 + random.below(3);
                    let prompt: Vec<u32> = (0..n).map(|_| random.below(2) as u32).collect();
                    request(&prompt, &[7])
                })
                .collect();
            let trie = Trie::new(&requests);
            let order: Vec<usize> = (0..requests.len()).collect();
            for capacity in [4, 5, 7] {
                let found = trie.clairvoyant(&one_by_one(&order), capacity as u64);
                let expected = best(&requests, &order, &BTreeSet::new(), capacity);
                assert_eq!(found, expected as u64, "seed {seed}, capacity {capacity}");
                assert!(found <= trie.bound());
            }
        }
    }
}
