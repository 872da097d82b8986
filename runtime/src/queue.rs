//! The order of waiting sequences.
//!
//! Under the `prefix` policy a cached token counts as much as having arrived `cached_token_worth` earlier:
//!
//! ```text
//! rank = time of arrival - cached tokens * cached_token_worth         smallest first
//! ```
//!
//! So claims grow with the wait on their own, nothing is sorted again as time goes by, and nobody is
//! overtaken by a request that came more than `context * cached_token_worth` after it.
//!
//! A rank is exact when its sequence is considered, and otherwise as old as [`REFRESHED_PER_STEP`] new ones
//! per step make it: the work per step does not grow with the queue.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::time::{Duration, Instant};

use crate::cache::PrefixCache;
use crate::config::{EngineConfig, SchedulePolicy};
use crate::sequence::{Sequence, SequenceSlot, Sequences};

/// Waiting sequences whose cached prefix is looked up again per step, in turn.
const REFRESHED_PER_STEP: usize = 32;

/// Where a sequence stands in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// Negated priority, or 0 where priorities do not count.
    class: i64,
    /// Microseconds.
    time: i64,
    /// Settles ties in order of acceptance.
    number: u64,
    slot: SequenceSlot,
}

impl Rank {
    pub(crate) fn slot(&self) -> SequenceSlot {
        self.slot
    }
}

pub(crate) struct WaitingQueue {
    policy: SchedulePolicy,
    token_worth_us: i64,
    epoch: Instant,
    ordered: BTreeSet<Rank>,
    /// Up to here the ranks have been refreshed in this round.
    refreshed: Option<Rank>,
    scratch: Vec<Rank>,
}

impl WaitingQueue {
    pub(crate) fn new(config: &EngineConfig, epoch: Instant) -> Self {
        WaitingQueue {
            policy: config.schedule_policy,
            token_worth_us: micros(config.cached_token_worth),
            epoch,
            ordered: BTreeSet::new(),
            refreshed: None,
            scratch: Vec::with_capacity(REFRESHED_PER_STEP),
        }
    }

    pub(crate) fn insert(&mut self, slot: SequenceSlot, sequence: &mut Sequence) {
        let rank = self.rank(slot, sequence);
        sequence.rank = Some(rank);
        let is_new = self.ordered.insert(rank);
        assert!(is_new, "a sequence waits once");
    }

    pub(crate) fn remove(&mut self, sequence: &mut Sequence) {
        if let Some(rank) = sequence.rank.take() {
            let was_there = self.ordered.remove(&rank);
            assert!(was_there, "a rank is in the queue");
        }
    }

    pub(crate) fn clear(&mut self) {
        self.ordered.clear();
        self.refreshed = None;
    }

    /// The first sequence whose turn it is.
    pub(crate) fn first(&self) -> Option<Rank> {
        self.ordered.first().copied()
    }

    /// Looks up the next few sequences' cached prefixes.
    pub(crate) fn refresh(&mut self, sequences: &mut Sequences, cache: &PrefixCache) {
        if self.policy != SchedulePolicy::Prefix {
            return;
        }
        let from = self.refreshed.map_or(Bound::Unbounded, Bound::Excluded);
        let mut due = std::mem::take(&mut self.scratch);
        due.extend(
            self.ordered
                .range((from, Bound::Unbounded))
                .take(REFRESHED_PER_STEP),
        );
        self.refreshed = due.last().copied();
        for rank in due.drain(..) {
            self.update(rank, sequences, cache);
        }
        self.scratch = due;
    }

    /// Makes one rank exact. True where it moved.
    pub(crate) fn update(&mut self, rank: Rank, sequences: &mut Sequences, cache: &PrefixCache) -> bool {
        let sequence = &mut sequences[rank.slot];
        let generation = Some(cache.generation());
        if self.policy != SchedulePolicy::Prefix || sequence.matched_generation == generation {
            return false;
        }
        let found = cache.peek(sequence.namespace(), &sequence.tokens);
        sequence.n_matched = found.min(sequence.max_cached());
        sequence.matched_generation = generation;
        let new = self.rank(rank.slot, sequence);
        if new == rank {
            return false;
        }
        self.remove(sequence);
        self.insert(rank.slot, sequence);
        true
    }

    fn rank(&self, slot: SequenceSlot, sequence: &Sequence) -> Rank {
        let request = sequence.request();
        let arrived = micros(request.arrived.saturating_duration_since(self.epoch));
        let cached = i64::try_from(sequence.n_matched).expect("a prompt fits memory");
        let (class, time) = match self.policy {
            SchedulePolicy::Prefix => {
                let worth = cached.saturating_mul(self.token_worth_us);
                (0, arrived.saturating_sub(worth))
            }
            SchedulePolicy::Fcfs => (0, arrived),
            SchedulePolicy::Priority => (-i64::from(request.priority), arrived),
        };
        Rank {
            class,
            time,
            number: sequence.number,
            slot,
        }
    }
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}
