//! The waiting queue: the order in which requests start (scheduling policy, fair queueing among tenants).
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
//!
//! Tenants have a lane each, in this order, and take turns by what was done for them, in weighted tokens:
//! 8 for a token computed of a prompt, 1 for one that was cached, 16 for one of output. The lane with the
//! smallest counter is next. A tenant that had nothing waiting is lifted to the smallest counter of those who
//! have, so that idleness saves nothing up. Who waits is charged nothing while the others are, so every lane
//! has its turn again, and one tenant alone sees no difference.
//!
//! A tenant that holds less than its share of the running places is ahead of those that do not, as long as it
//! is at most [`TURN_SLACK`] beyond the smallest counter: so places settle at equal parts, instead of being
//! given away and taken back by preemption, and work is still equal in the long run.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::time::{Duration, Instant};

use crate::cache::PrefixCache;
use crate::config::{EngineConfig, SchedulePolicy};
use crate::sequence::{Sequence, Sequences};
use crate::sequences::SequenceSlot;

/// Waiting sequences whose cached prefix is looked up again per step, in turn.
const REFRESHED_PER_STEP: usize = 32;

/// How much more work, in weighted tokens, a tenant may have had and still be ahead for want of places.
const TURN_SLACK: u64 = 4096;

/// Tenants looked at for one that wants places.
const MAX_TURNS: usize = 32;

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
    tenant: usize,
}

/// What was done for a tenant, in tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Work {
    pub(crate) n_computed: usize,
    pub(crate) n_cached: usize,
    pub(crate) n_output: usize,
}

impl Work {
    fn weight(self) -> u64 {
        8 * self.n_computed as u64 + self.n_cached as u64 + 16 * self.n_output as u64
    }
}

/// What waits of one tenant.
#[derive(Default)]
struct Lane {
    ordered: BTreeSet<Rank>,
    /// Those in `ordered`, and those that follow a leader.
    n_waiting: usize,
    /// Weight of all work done for the tenant, and what it was lifted by.
    counter: u64,
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
    lanes: Vec<Lane>,
    /// Counter and tenant of every lane that is not empty.
    turns: BTreeSet<(u64, usize)>,
    /// The tenant whose last waiting sequence left latest.
    left_latest: usize,
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
            lanes: (0..config.n_tenants).map(|_| Lane::default()).collect(),
            turns: BTreeSet::new(),
            left_latest: 0,
            refreshed: None,
            scratch: Vec::with_capacity(REFRESHED_PER_STEP),
        }
    }

    /// A sequence begins to wait.
    pub(crate) fn enter(&mut self, slot: SequenceSlot, sequence: &mut Sequence) {
        let tenant = sequence.request().tenant as usize;
        if self.lanes[tenant].n_waiting == 0 {
            let least = self.turns.first().map(|(counter, _)| *counter);
            let least = least.unwrap_or(self.lanes[self.left_latest].counter);
            let lane = &mut self.lanes[tenant];
            lane.counter = lane.counter.max(least);
        }
        self.lanes[tenant].n_waiting += 1;
        self.place(slot, sequence);
    }

    /// A sequence waits no more: it runs or ends.
    pub(crate) fn leave(&mut self, sequence: &mut Sequence) {
        let was_placed = self.set_aside(sequence);
        if was_placed || sequence.following.take().is_some() {
            let tenant = sequence.request().tenant as usize;
            let lane = &mut self.lanes[tenant];
            lane.n_waiting -= 1;
            if lane.n_waiting == 0 {
                self.left_latest = tenant;
            }
        }
    }

    /// A waiting sequence gets its place in its lane.
    pub(crate) fn place(&mut self, slot: SequenceSlot, sequence: &mut Sequence) {
        let rank = self.rank(slot, sequence);
        sequence.rank = Some(rank);
        let lane = &mut self.lanes[rank.tenant];
        if lane.ordered.is_empty() {
            self.turns.insert((lane.counter, rank.tenant));
        }
        let is_new = lane.ordered.insert(rank);
        assert!(is_new, "a sequence waits once");
    }

    /// A waiting sequence gives its place up. False where it had none.
    pub(crate) fn set_aside(&mut self, sequence: &mut Sequence) -> bool {
        let Some(rank) = sequence.rank.take() else {
            return false;
        };
        let lane = &mut self.lanes[rank.tenant];
        let was_there = lane.ordered.remove(&rank);
        assert!(was_there, "a rank is in the queue");
        if lane.ordered.is_empty() {
            self.turns.remove(&(lane.counter, rank.tenant));
        }
        true
    }

    /// Something was done for a tenant.
    pub(crate) fn charge(&mut self, tenant: u32, work: Work) {
        let tenant = tenant as usize;
        let lane = &mut self.lanes[tenant];
        let had_turn = self.turns.remove(&(lane.counter, tenant));
        lane.counter += work.weight();
        if had_turn {
            self.turns.insert((lane.counter, tenant));
        }
    }

    /// Whether anything of `tenant` waits.
    pub(crate) fn waits(&self, tenant: u32) -> bool {
        self.lanes[tenant as usize].n_waiting > 0
    }

    /// Tenants of whom anything waits.
    pub(crate) fn n_tenants_waiting(&self) -> usize {
        self.lanes.iter().filter(|lane| lane.n_waiting > 0).count()
    }

    /// Forgets who waits, and keeps the counters.
    pub(crate) fn clear(&mut self) {
        for lane in &mut self.lanes {
            lane.ordered.clear();
            lane.n_waiting = 0;
        }
        self.turns.clear();
        self.refreshed = None;
    }

    /// Whether nobody has a place in a lane.
    pub(crate) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// The first sequence of the tenant whose turn it is; `wants_places` of those that hold too few.
    pub(crate) fn first(&self, wants_places: impl Fn(u32) -> bool) -> Option<Rank> {
        let &(least, first) = self.turns.first()?;
        let mut near = self.turns.iter().take(MAX_TURNS);
        let ahead = near.find(|(counter, tenant)| {
            *counter <= least.saturating_add(TURN_SLACK)
                && self.turns.len() > 1
                && wants_places(*tenant as u32)
        });
        let tenant = ahead.map_or(first, |(_, tenant)| *tenant);
        self.lanes[tenant].ordered.first().copied()
    }

    /// Looks up the next few sequences' cached prefixes.
    pub(crate) fn refresh(&mut self, sequences: &mut Sequences, cache: &PrefixCache) {
        if self.policy != SchedulePolicy::Prefix {
            return;
        }
        let tenant = self.refreshed.map_or(0, |rank| rank.tenant);
        let from = self.refreshed.map_or(Bound::Unbounded, Bound::Excluded);
        let mut due = std::mem::take(&mut self.scratch);
        let rest_of_lane = self.lanes[tenant].ordered.range((from, Bound::Unbounded));
        let other_lanes = self.lanes[tenant + 1..].iter().flat_map(|lane| &lane.ordered);
        due.extend(rest_of_lane.chain(other_lanes).take(REFRESHED_PER_STEP));
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
        self.set_aside(sequence);
        self.place(rank.slot, sequence);
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
            tenant: request.tenant as usize,
        }
    }
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}
