//! A server without a model: the real radix tree, a scheduler in few words, and a clock that counts rows.
//!
//! ```text
//! a step:  one row per running output | chunks of prompts, in order of admission    <= max_batch_tokens
//! time of a step = step_us + rows * token_us
//! ```
//!
//! The rules are those of the runtime: admission in the queue's order until one does not fit, a lock from
//! admission to the end, prompts put into the tree chunk by chunk, and a request that would compute the same
//! pages as one being prefilled follows it. Under `prefix` a cached token counts as much as having arrived
//! `cached_token_worth` earlier, and [`REFRESHED_PER_STEP`] ranks are looked up again per step.
//!
//! What differs: the runtime's queue lives on real clocks and real sequences, so its rule is written again
//! here; pages are taken for the whole output at admission, so nobody is preempted; attention costs nothing
//! beyond `token_us`; there is one tenant.

use std::collections::{BTreeMap, BTreeSet};

use arbora_radix::{EvictionPolicy, Matched, Namespace, PageAllocator, PageId, PrefixLock, RadixTree};
use clap::ValueEnum;

use super::optimum::Event;
use super::trace::{Arrival, Request};
use crate::http::BenchError;

/// As many as the runtime's queue.
const REFRESHED_PER_STEP: usize = 32;
/// Most times the head of the queue is looked up again in one admission, as in the runtime.
const MAX_LOOKUPS: usize = 256;

/// In which order requests start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Policy {
    /// In the order of arrival.
    Fcfs,
    /// Longest cached prefix first, with aging.
    Prefix,
    /// In the order of the tree of what waits: on from the latest start, after the end from the beginning.
    Dfs,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) policy: Policy,
    pub(super) eviction: EvictionPolicy,
    pub(super) page_size: usize,
    pub(super) n_pages: usize,
    pub(super) max_running: usize,
    pub(super) max_batch_tokens: usize,
    pub(super) step_us: u64,
    pub(super) token_us: u64,
    pub(super) cached_token_worth_us: u64,
}

/// What came of a trace.
#[derive(Debug)]
pub(super) struct Simulated {
    pub(super) n_hits: u64,
    /// From arrival to admission of every request, microseconds.
    pub(super) waits_us: Vec<u64>,
    /// To the end of the last request, microseconds.
    pub(super) duration_us: u64,
    /// Starts and ends in the order in which they happened.
    pub(super) events: Vec<Event>,
}

/// A request that has pages.
struct Running {
    request: usize,
    computed: Vec<u32>,
    /// Tokens with keys and values.
    n_computed: usize,
    n_output: usize,
    pages: Vec<PageId>,
    /// Always there but for the moment in which the tree has it.
    lock: Option<PrefixLock>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    key: i64,
    request: usize,
}

/// Waits until `leader` has computed `n_tokens`, or computes its prompt no more.
struct Follower {
    request: usize,
    leader: usize,
    n_tokens: usize,
}

struct Simulation<'a> {
    requests: &'a [Request],
    settings: Settings,
    tree: RadixTree,
    allocator: PageAllocator,
    now_us: u64,
    /// Those whose time is known, by it.
    to_come: BTreeSet<(u64, usize)>,
    /// Who waits for the end of a request, and how long after it.
    successors: BTreeMap<usize, Vec<(usize, u64)>>,
    arrived_us: Vec<u64>,
    /// The place of each prompt among all in the order of the tree.
    tree_order: Vec<i64>,
    /// The tree's generation of the latest lookup of each, and what it found.
    looked_up: Vec<Option<(u64, usize)>>,
    ranks: Vec<Option<Rank>>,
    queue: BTreeSet<Rank>,
    refreshed: Option<Rank>,
    latest_start: i64,
    followers: Vec<Follower>,
    running: Vec<Running>,
    n_ended: usize,
    result: Simulated,
}

/// Serves the whole trace.
pub(super) fn run(requests: &[Request], settings: Settings) -> Result<Simulated, BenchError> {
    for (i, request) in requests.iter().enumerate() {
        let needed = (request.prompt.len() + request.output.len()).div_ceil(settings.page_size);
        if needed > settings.n_pages {
            let n_pages = settings.n_pages;
            return Err(BenchError::Check(format!(
                "request {i} needs {needed} pages, the pool has {n_pages}"
            )));
        }
    }
    let mut simulation = Simulation::new(requests, settings);
    while simulation.n_ended < requests.len() {
        simulation.step();
    }
    simulation.result.duration_us = simulation.now_us;
    Ok(simulation.result)
}

impl<'a> Simulation<'a> {
    fn new(requests: &'a [Request], settings: Settings) -> Self {
        let mut to_come = BTreeSet::new();
        let mut successors: BTreeMap<usize, Vec<(usize, u64)>> = BTreeMap::new();
        for (i, request) in requests.iter().enumerate() {
            match request.arrival {
                Arrival::At(at_us) => {
                    to_come.insert((at_us, i));
                }
                Arrival::After { request, pause_us } => {
                    successors.entry(request).or_default().push((i, pause_us));
                }
            }
        }
        let mut order: Vec<usize> = (0..requests.len()).collect();
        order.sort_by(|a, b| requests[*a].prompt.cmp(&requests[*b].prompt));
        let mut tree_order = vec![0; requests.len()];
        for (place, i) in order.into_iter().enumerate() {
            tree_order[i] = place as i64;
        }
        Self {
            requests,
            settings,
            tree: RadixTree::new(settings.page_size, settings.eviction),
            allocator: PageAllocator::new(settings.n_pages),
            now_us: 0,
            to_come,
            successors,
            arrived_us: vec![0; requests.len()],
            tree_order,
            looked_up: vec![None; requests.len()],
            ranks: vec![None; requests.len()],
            queue: BTreeSet::new(),
            refreshed: None,
            latest_start: -1,
            followers: Vec::new(),
            running: Vec::new(),
            n_ended: 0,
            result: Simulated {
                n_hits: 0,
                waits_us: vec![0; requests.len()],
                duration_us: 0,
                events: Vec::with_capacity(2 * requests.len()),
            },
        }
    }

    fn step(&mut self) {
        self.arrive();
        self.return_followers();
        self.refresh();
        self.admit();
        let rows = self.plan();
        if rows.is_empty() {
            let (at_us, _) = self.to_come.first().expect("what waits alone is admitted");
            self.now_us = *at_us;
            return;
        }
        let n_rows: usize = rows.iter().sum();
        self.now_us += self.settings.step_us + n_rows as u64 * self.settings.token_us;
        for (running, n_rows) in self.running.iter_mut().zip(rows) {
            running.compute(n_rows, self.requests, &mut self.tree, &mut self.allocator);
        }
        self.finish();
    }

    fn arrive(&mut self) {
        while let Some(&(at_us, i)) = self.to_come.first() {
            if at_us > self.now_us {
                break;
            }
            self.to_come.pop_first();
            self.arrived_us[i] = at_us;
            self.place(i);
        }
    }

    /// Rows of each running request in the next step.
    fn plan(&self) -> Vec<usize> {
        let decodes = |running: &&Running| running.n_output > 0;
        let n_decoding = self.running.iter().filter(decodes).count();
        let mut n_left = self.settings.max_batch_tokens.saturating_sub(n_decoding);
        let rows = self.running.iter().map(|running| {
            if running.n_output > 0 {
                return 1;
            }
            let n_prompt = self.requests[running.request].prompt.len();
            let n_rows = (n_prompt - running.n_computed).min(n_left);
            n_left -= n_rows;
            n_rows
        });
        rows.collect()
    }

    fn finish(&mut self) {
        let is_done = |running: &mut Running| running.n_output == self.requests[running.request].output.len();
        let done: Vec<Running> = self.running.extract_if(.., is_done).collect();
        for mut running in done {
            let (i, mut unused) = (running.request, Vec::new());
            let lock = running.lock.take().expect("a running request holds its lock");
            let n_prompt = self.requests[i].prompt.len();
            self.tree
                .finish(lock, &running.computed, n_prompt, &running.pages, &mut unused);
            unused.into_iter().for_each(|page| self.allocator.release(page));
            self.result.events.push(Event::End(i));
            self.n_ended += 1;
            for (successor, pause_us) in self.successors.remove(&i).unwrap_or_default() {
                self.to_come.insert((self.now_us + pause_us, successor));
            }
        }
    }

    fn admit(&mut self) {
        while self.running.len() < self.settings.max_running {
            let Some(rank) = self.exact_first() else { return };
            let i = rank.request;
            if let Some(follower) = self.leader_of(i) {
                self.set_aside(i);
                self.followers.push(follower);
                continue;
            }
            if !self.start(i) {
                return;
            }
            self.set_aside(i);
            self.latest_start = self.tree_order[i];
        }
    }

    /// Takes pages for all that a request will need. False where there are too few.
    fn start(&mut self, i: usize) -> bool {
        let request = &self.requests[i];
        let namespace = Namespace::default();
        let Matched {
            lock,
            mut pages,
            donor,
        } = self
            .tree
            .match_prefix(&namespace, &request.prompt, request.max_cached(), 0);
        let page_size = self.settings.page_size;
        let n_wanted = (request.prompt.len() + request.output.len()).div_ceil(page_size) - pages.len();
        let has_room = |simulation: &Self| {
            simulation.allocator.n_free() + simulation.tree.n_evictable_pages() >= n_wanted
        };
        let mut n_found = lock.n_tokens();
        if let Some(donor) = donor {
            // A donor is copied before anything is computed, so its lock is short; it must not take the room.
            if has_room(self) {
                n_found += donor.n_tokens;
            }
            self.tree.release_lock(donor.lock);
        }
        if !has_room(self) {
            self.tree.release_lock(lock);
            return false;
        }
        let n_short = n_wanted.saturating_sub(self.allocator.n_free());
        let mut freed = Vec::new();
        self.tree.evict(n_short, &mut freed);
        freed.into_iter().for_each(|page| self.allocator.release(page));
        pages.extend((0..n_wanted).map(|_| self.allocator.allocate().expect("room was made")));
        self.result.n_hits += n_found as u64;
        self.result.waits_us[i] = self.now_us - self.arrived_us[i];
        self.result.events.push(Event::Start(i));
        self.running.push(Running {
            request: i,
            computed: request.computed(),
            n_computed: n_found,
            n_output: 0,
            pages,
            lock: Some(lock),
        });
        true
    }

    /// Of the running requests that compute their prompts, the one that is about to compute most whole pages
    /// that `i` would compute too.
    fn leader_of(&self, i: usize) -> Option<Follower> {
        let request = &self.requests[i];
        let prompt = &request.prompt[..request.max_cached()];
        let n_cached = self.looked_up[i].map_or(0, |(_, n)| n);
        let follow = |running: &Running| {
            let leader = &self.requests[running.request].prompt;
            let n_common = leader.iter().zip(prompt).take_while(|(a, b)| a == b).count();
            let n_tokens = n_common - n_common % self.settings.page_size;
            let leads = running.n_output == 0
                && running.n_computed < n_tokens
                && n_tokens >= n_cached + self.settings.page_size;
            let leader = running.request;
            leads.then_some(Follower {
                request: i,
                leader,
                n_tokens,
            })
        };
        let followers = self.running.iter().filter_map(follow);
        followers.max_by_key(|follower| follower.n_tokens)
    }

    fn return_followers(&mut self) {
        let running = &self.running;
        let may_go_on = |follower: &mut Follower| {
            let leader = running.iter().find(|running| running.request == follower.leader);
            leader.is_none_or(|leader| leader.n_output > 0 || leader.n_computed >= follower.n_tokens)
        };
        let returned: Vec<Follower> = self.followers.extract_if(.., may_go_on).collect();
        for follower in returned {
            self.place(follower.request);
        }
    }

    // The queue.

    fn place(&mut self, i: usize) {
        let key = match self.settings.policy {
            Policy::Fcfs => self.arrived_us[i] as i64,
            Policy::Prefix => {
                let n_cached = self.looked_up[i].map_or(0, |(_, n)| n as u64);
                self.arrived_us[i] as i64 - (n_cached * self.settings.cached_token_worth_us) as i64
            }
            Policy::Dfs => self.tree_order[i],
        };
        let rank = Rank { key, request: i };
        self.ranks[i] = Some(rank);
        self.queue.insert(rank);
    }

    fn set_aside(&mut self, i: usize) {
        let rank = self.ranks[i].take().expect("a waiting request has a rank");
        assert!(self.queue.remove(&rank), "a rank is in the queue");
    }

    fn first(&self) -> Option<Rank> {
        let after = Rank {
            key: self.latest_start,
            request: usize::MAX,
        };
        let onwards = match self.settings.policy {
            Policy::Dfs => self.queue.range(after..).next(),
            Policy::Fcfs | Policy::Prefix => None,
        };
        onwards.or_else(|| self.queue.first()).copied()
    }

    /// The first one by what is cached now.
    fn exact_first(&mut self) -> Option<Rank> {
        for _ in 0..MAX_LOOKUPS {
            let rank = self.first()?;
            if !self.look_up(rank) {
                return Some(rank);
            }
        }
        self.first()
    }

    fn refresh(&mut self) {
        if self.settings.policy != Policy::Prefix {
            return;
        }
        let from = self
            .refreshed
            .map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let rest = self.queue.range((from, std::ops::Bound::Unbounded));
        let due: Vec<Rank> = rest.take(REFRESHED_PER_STEP).copied().collect();
        self.refreshed = due.last().copied();
        for rank in due {
            self.look_up(rank);
        }
    }

    /// Makes one rank exact. True where it moved.
    fn look_up(&mut self, rank: Rank) -> bool {
        let (i, generation) = (rank.request, self.tree.generation());
        if self.looked_up[i].is_some_and(|(seen, _)| seen == generation) {
            return false;
        }
        let request = &self.requests[i];
        let namespace = Namespace::default();
        let found = self
            .tree
            .match_len(&namespace, &request.prompt, request.max_cached());
        self.looked_up[i] = Some((generation, found.n_tokens + found.n_donor_tokens));
        self.set_aside(i);
        self.place(i);
        self.ranks[i] != Some(rank)
    }
}

impl Running {
    /// `n_rows` more tokens of the prompt, or one more of the output.
    fn compute(
        &mut self,
        n_rows: usize,
        requests: &[Request],
        tree: &mut RadixTree,
        allocator: &mut PageAllocator,
    ) {
        if n_rows == 0 {
            return;
        }
        let n_prompt = requests[self.request].prompt.len();
        if self.n_output == 0 {
            self.n_computed += n_rows;
            let lock = self.lock.take().expect("a running request holds its lock");
            let mut duplicates = Vec::new();
            let computed = &self.computed[..self.n_computed];
            self.lock = Some(tree.checkpoint(lock, computed, &mut self.pages, &mut duplicates));
            duplicates.into_iter().for_each(|page| allocator.release(page));
        }
        // The step that computes a prompt's last token gives the first one of the output.
        if self.n_output > 0 || self.n_computed == n_prompt {
            self.n_output += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::optimum::Trie;
    use super::super::trace::Kind;
    use super::*;
    use crate::random::Random;

    fn settings(policy: Policy, n_pages: usize) -> Settings {
        Settings {
            policy,
            eviction: EvictionPolicy::Lru,
            page_size: 4,
            n_pages,
            max_running: 2,
            max_batch_tokens: 16,
            step_us: 10,
            token_us: 1,
            cached_token_worth_us: 5,
        }
    }

    fn request(at_us: u64, prompt: impl IntoIterator<Item = u32>) -> Request {
        Request {
            arrival: Arrival::At(at_us),
            prompt: prompt.into_iter().collect(),
            output: vec![900, 901],
        }
    }

    #[test]
    fn times_and_hits_of_a_trace_by_hand() {
        let requests = [request(0, 0..8), request(100, 0..9)];
        let simulated = run(&requests, settings(Policy::Fcfs, 100)).expect("it fits");
        // 8 rows, then 1; from 100 on 1 row after 8 cached ones, then 1: the prompt's end at 111.
        assert_eq!(simulated.n_hits, 8);
        assert_eq!(simulated.duration_us, 122);
        assert_eq!(simulated.waits_us, [0, 0]);
        let events = [Event::Start(0), Event::End(0), Event::Start(1), Event::End(1)];
        assert_eq!(simulated.events, events);
    }

    #[test]
    fn a_follower_lets_its_leader_compute_what_both_need() {
        let other = (0..32).chain(700..704);
        let requests = [request(0, 0..40), request(0, other)];
        let simulated = run(&requests, settings(Policy::Fcfs, 100)).expect("it fits");
        assert_eq!(simulated.n_hits, 32);
        assert!(simulated.waits_us[1] > 0);
    }

    #[test]
    fn policies_start_in_their_orders() {
        // The first one runs while the others arrive; the pool holds one of them at a time.
        let requests = [
            request(0, 0..16),
            request(1, 100..116),
            request(2, (0..12).chain([50, 51, 52, 53])),
            request(3, (100..112).chain([60, 61, 62, 63])),
        ];
        let starts = |policy| -> Vec<usize> {
            let settings = Settings {
                max_running: 1,
                ..settings(policy, 10)
            };
            let simulated = run(&requests, settings).expect("it fits");
            let start = |event: &Event| match event {
                Event::Start(i) => Some(*i),
                Event::End(_) => None,
            };
            simulated.events.iter().filter_map(start).collect()
        };
        assert_eq!(starts(Policy::Fcfs), [0, 1, 2, 3]);
        assert_eq!(starts(Policy::Prefix), [0, 2, 1, 3]);
        // By tokens: 0..12 with 12 next, 0..12 with 50, 100..112 with 60, with 112.
        assert_eq!(starts(Policy::Dfs), [0, 2, 3, 1]);
    }

    #[test]
    fn no_order_hits_more_than_is_possible() {
        for kind in Kind::value_variants() {
            let requests = kind.generate(20.0, &mut Random(3));
            let trie = Trie::new(&requests);
            for policy in Policy::value_variants() {
                let settings = Settings {
                    page_size: 16,
                    n_pages: 600,
                    max_running: 8,
                    max_batch_tokens: 256,
                    ..settings(*policy, 0)
                };
                let simulated = run(&requests, settings).expect("it fits");
                let best = trie.clairvoyant(&simulated.events, 600 * 16);
                assert!(simulated.n_hits > 0, "{kind:?} {policy:?}");
                assert!(
                    simulated.n_hits <= best && best <= trie.bound(),
                    "{kind:?} {policy:?}"
                );
            }
        }
    }

    #[test]
    fn what_never_fits_is_refused() {
        let error = run(&[request(0, 0..40)], settings(Policy::Fcfs, 10)).expect_err("11 pages");
        assert!(error.to_string().contains("11 pages"), "{error}");
    }
}
