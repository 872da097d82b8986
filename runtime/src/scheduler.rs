//! The scheduler (continuous batching): admission, preemption, and the rows that the next step computes.
//!
//! ```text
//! a step:  decode rows of running sequences | prefill chunks of running, then of newly admitted sequences
//!          <----------------------------- at most max_batch_tokens ------------------------------------->
//! ```
//!
//! * Which of them a step takes, and how many, is in [`crate::step_rows`] and [`crate::pace`].
//! * Admission is in the queue's order and stops at the first sequence that does not fit, so a large request
//!   is not passed by smaller ones for ever.
//! * A waiting sequence that would compute the same prefix as one being prefilled follows it: it holds
//!   nothing and is looked at again when the common part is in the tree or the leader no longer prefills.
//!   Only running sequences lead, so there is no cycle.
//! * Where places or pages are short, a tenant that holds more than its share gives way to one that stays
//!   within its own ([`crate::shares`]): its sequence with the least progress is preempted. Tenants take
//!   turns as the queue says, so this is at the expense of who got more.
//! * A sequence that decodes and finds no page preempts; in every step at least one sequence keeps its pages
//!   and gets its token, so the whole always ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cache::{AdmissionWish, PrefixCache};
use crate::config::EngineConfig;
use crate::draft::Drafters;
use crate::drafting;
use crate::pace::{Load, MIN_CHUNK, Pace};
use crate::plan::{Plan, PlannedRows};
use crate::queue::{WaitingQueue, Work};
use crate::request::{Request, RequestError};
use crate::sequence::{Following, Sequence, Sequences, Stage};
use crate::sequences::SequenceSlot;
use crate::shares::gives_way;
use crate::step_rows::{Budget, PromptLoad, plan_decode, plan_prompts};
use crate::token_bytes::TokenBytes;

/// A sequence follows at most this often.
const MAX_FOLLOWS: usize = 8;

/// Prefixes looked up at the head of the queue per step.
const MAX_LOOKUPS: usize = 256;

/// Guess of the share of `max_tokens` an output will take, from those that ended.
struct OutputEstimate(f64);

impl OutputEstimate {
    const FLOOR: f64 = 0.1;
    const WEIGHT_OF_ONE: f64 = 0.05;
    const RAISE: f64 = 0.2;

    fn learn(&mut self, n_output: usize, max_tokens: usize) {
        let share = n_output as f64 / max_tokens as f64;
        self.0 = (self.0 + (share - self.0) * Self::WEIGHT_OF_ONE).max(Self::FLOOR);
    }

    fn raise(&mut self) {
        self.0 = (self.0 + Self::RAISE).min(1.0);
    }

    fn tokens(&self, n_output_left: usize) -> usize {
        (n_output_left as f64 * self.0).ceil() as usize
    }
}

/// All sequences and the order in which they are served.
pub(crate) struct Scheduler {
    pub(crate) sequences: Sequences,
    /// In order of admission.
    running: Vec<SequenceSlot>,
    queue: WaitingQueue,
    followers: Vec<SequenceSlot>,
    estimate: OutputEstimate,
    max_running: usize,
    max_batch_tokens: usize,
    max_draft_rows: usize,
    drafters: Drafters,
    pace: Pace,
    n_steps: u64,
    max_scored_rows: usize,
    n_extra_logit_rows: usize,
    page_size: usize,
    model_stops: Vec<u32>,
    n_accepted: u64,
    /// While it plans beside a step in flight.
    is_in_flight: bool,
}

impl Scheduler {
    pub(crate) fn new(config: &EngineConfig, epoch: Instant) -> Self {
        Scheduler {
            sequences: Sequences::default(),
            running: Vec::with_capacity(config.max_running),
            queue: WaitingQueue::new(config, epoch),
            followers: Vec::new(),
            estimate: OutputEstimate(config.expected_output),
            max_running: config.max_running,
            max_batch_tokens: config.max_batch_tokens,
            max_draft_rows: config.max_draft_rows,
            drafters: config.drafters,
            pace: Pace::default(),
            n_steps: 0,
            max_scored_rows: config.max_scored_rows,
            n_extra_logit_rows: config.n_extra_logit_rows(),
            page_size: config.page_size,
            model_stops: config.model_stop_tokens.clone(),
            n_accepted: 0,
            is_in_flight: false,
        }
    }

    pub(crate) fn n_running(&self) -> usize {
        self.running.len()
    }

    /// Puts a new request into the queue. Its text is spelled as `spelling` says, unless it says otherwise.
    pub(crate) fn accept(&mut self, request: Request, spelling: &Arc<TokenBytes>) -> &mut Sequence {
        self.n_accepted += 1;
        let sequence = Sequence::new(request, self.n_accepted, &self.model_stops, spelling);
        let slot = self.sequences.insert(sequence);
        let sequence = &mut self.sequences[slot];
        self.queue.enter(slot, sequence);
        sequence
    }

    /// `n_output` tokens of output were made for a tenant.
    pub(crate) fn charge_output(&mut self, tenant: u32, n_output: usize) {
        let work = Work {
            n_output,
            ..Work::default()
        };
        self.queue.charge(tenant, work);
    }

    /// Takes a sequence out for its ending. It still holds its pages if it was running.
    pub(crate) fn remove(&mut self, slot: SequenceSlot) -> Sequence {
        let mut sequence = self.sequences.remove(slot);
        self.queue.leave(&mut sequence);
        self.running.retain(|&other| other != slot);
        self.followers.retain(|&other| other != slot);
        sequence
    }

    /// A step that was planned took the device `time`.
    pub(crate) fn note_time(&mut self, plan: &Plan, time: Duration) {
        let mut load = Load::default();
        for rows in &plan.rows {
            match rows.n_rows - rows.n_draft {
                1 => load.n_decode += rows.n_rows,
                n_rows => load.chunks.add(rows.first_position, n_rows),
            }
        }
        self.pace.record(load, time);
        self.pace.charge_masks(plan.mask_time);
    }

    /// An output came to its natural end.
    pub(crate) fn learn(&mut self, sequence: &Sequence) {
        let max_tokens = sequence.request().max_tokens;
        if max_tokens > 0 {
            self.estimate.learn(sequence.n_output(), max_tokens);
        }
    }

    /// Forgets the order, which a panic may have left half changed. Until [`Scheduler::requeue`] sequences
    /// can only be removed.
    pub(crate) fn forget_order(&mut self) {
        self.is_in_flight = false;
        self.running.clear();
        self.followers.clear();
        self.queue.clear();
        for sequence in self.sequences.iter_mut() {
            sequence.rank = None;
            sequence.following = None;
            sequence.matched_generation = None;
        }
    }

    /// Puts every sequence into the queue.
    pub(crate) fn requeue(&mut self) {
        let slots: Vec<SequenceSlot> = self.sequences.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            self.queue.enter(slot, &mut self.sequences[slot]);
        }
    }

    /// Decides the next step but for its drafts, while one is in flight: nobody is preempted, and each
    /// sequence in that step is taken to get one token and to go on. [`settle`](Self::settle) mends the plan.
    pub(crate) fn plan_ahead(&mut self, cache: &mut PrefixCache, plan: &mut Plan) {
        self.is_in_flight = true;
        self.plan(cache, plan);
        self.is_in_flight = false;
    }

    /// Decides the next step but for its drafts. Evicts, preempts and admits as needed.
    pub(crate) fn plan(&mut self, cache: &mut PrefixCache, plan: &mut Plan) {
        plan.clear();
        self.n_steps += 1;
        self.secure_decode_pages(cache, plan);
        self.return_followers();
        self.queue.refresh(&mut self.sequences, cache);
        self.admit(cache, plan);
        let mut budget = self.budget();
        let running = (&self.sequences, self.running.as_slice());
        let masks = plan_decode(plan, running, (&mut budget, &mut self.pace));
        plan_prompts(plan, running, (&mut budget, &mut self.pace), masks);
        for rows in &plan.rows {
            let sequence = &mut self.sequences[rows.slot];
            sequence.latest_step = self.n_steps;
            // What a preempted one computes again is not its tenant's fault.
            if sequence.will_prefill() && sequence.usage().n_preemptions == 0 {
                let work = Work {
                    n_computed: rows.n_rows,
                    ..Work::default()
                };
                self.queue.charge(sequence.request().tenant, work);
            }
        }
        plan.n_rows_left = budget.n_rows;
        plan.n_scored = self.max_scored_rows - budget.n_scored;
    }

    /// Mends a plan that was made before the step in flight had landed: rows of sequences that ended go, and
    /// a sequence that got several tokens goes on after the last.
    pub(crate) fn settle(&mut self, cache: &mut PrefixCache, plan: &mut Plan) {
        plan.rows.retain_mut(|rows| {
            let Some(sequence) = self.sequences.find_mut(rows.slot) else {
                return false;
            };
            if sequence.stage == Stage::Decode {
                rows.first_position = sequence.n_computed;
                let n_tokens = sequence.tokens.len();
                let table = sequence.table.as_mut().expect("a planned sequence holds pages");
                return cache.grow(table, n_tokens);
            }
            true
        });
        let is_there = |slot: &SequenceSlot| self.sequences.find(*slot).is_some();
        for (_, copy) in plan.copies.extract_if(.., |(slot, _)| !is_there(slot)) {
            cache.release_donor(copy);
        }
        plan.started.retain(is_there);
        plan.failed.retain(|(slot, _)| is_there(slot));
    }

    /// What a step can take, decode rows included.
    fn budget(&self) -> Budget {
        Budget {
            n_rows: self.max_batch_tokens,
            n_scored: self.max_scored_rows,
            seconds: self.pace.spare(self.n_decoding()),
            least_chunk: MIN_CHUNK,
        }
    }

    fn n_decoding(&self) -> usize {
        let decodes = |slot: &&SequenceSlot| self.sequences[**slot].will_decode();
        self.running.iter().filter(decodes).count()
    }

    /// A page for every decode row, at the price of preemptions where there is none.
    fn secure_decode_pages(&mut self, cache: &mut PrefixCache, plan: &mut Plan) {
        let mut idx = 0;
        while idx < self.running.len() {
            let slot = self.running[idx];
            let sequence = &mut self.sequences[slot];
            let (n_tokens, will_decode) = (sequence.next_len(), sequence.will_decode());
            let table = sequence.table.as_mut().expect("a running sequence holds pages");
            if !will_decode || cache.grow(table, n_tokens) {
                idx += 1;
                continue;
            }
            if self.is_in_flight {
                plan.without_page.push(slot);
                plan.waits_for_landing = true;
                idx += 1;
                continue;
            }
            if self.running.len() == 1 {
                // Refused at submit; should one get here, it alone ends.
                let needed = n_tokens.div_ceil(self.page_size);
                let total = cache.n_total();
                plan.failed.push((slot, RequestError::TooLarge { needed, total }));
                self.running.clear();
                return;
            }
            let victim_idx = self.victim(|_| true).expect("somebody runs");
            self.preempt(victim_idx, cache, plan);
            self.estimate.raise();
            idx -= usize::from(victim_idx < idx);
        }
    }

    /// Of the running sequences that `may_be` chosen the one with the least progress per page; of equals the
    /// one admitted last.
    fn victim(&self, may_be: impl Fn(&Sequence) -> bool) -> Option<usize> {
        let progress = |&slot: &SequenceSlot| {
            let sequence = &self.sequences[slot];
            let n_pages = sequence.tokens.len().div_ceil(self.page_size);
            sequence.n_output() as f64 / n_pages as f64
        };
        let by_progress = |(i, a): &(usize, &SequenceSlot), (j, b): &(usize, &SequenceSlot)| {
            progress(a).total_cmp(&progress(b)).then(j.cmp(i))
        };
        let running = self.running.iter().enumerate();
        let possible = running.filter(|(_, slot)| may_be(&self.sequences[**slot]));
        possible.min_by(by_progress).map(|(idx, _)| idx)
    }

    fn preempt(&mut self, running_idx: usize, cache: &mut PrefixCache, plan: &mut Plan) {
        let slot = self.running.remove(running_idx);
        let sequence = &mut self.sequences[slot];
        let table = sequence.preempt();
        cache.finish(table, sequence.computed(), sequence.n_prompt);
        sequence.n_computed = 0;
        self.queue.enter(slot, sequence);
        plan.n_preempted += 1;
    }

    /// Followers whose leader got far enough, or leads no more, wait like all others.
    fn return_followers(&mut self) {
        let Scheduler {
            sequences,
            followers,
            queue,
            ..
        } = self;
        followers.retain(|&slot| {
            let following = sequences[slot].following.expect("a follower follows");
            let leads = sequences.find(following.leader).is_some_and(|leader| {
                leader.request().id == following.leader_id
                    && leader.stage == Stage::Prefill
                    && leader.n_computed < following.n_tokens
            });
            if !leads {
                let sequence = &mut sequences[slot];
                sequence.following = None;
                queue.place(slot, sequence);
            }
            leads
        });
    }

    /// Starts waiting sequences as far as the rows of the next step go.
    fn admit(&mut self, cache: &mut PrefixCache, plan: &mut Plan) {
        let mut n_lookups = 0;
        let mut budget = self.budget();
        budget.n_rows -= self.n_decoding();
        let mut load = PromptLoad::new(&self.sequences, &self.running, budget, &self.pace);
        while let Some(rank) = self.queue.first(|tenant| self.wants_places(tenant)) {
            let slot = rank.slot();
            if !load.has_room(self.sequences[slot].request().tenant, budget.n_rows) {
                break;
            }
            if n_lookups < MAX_LOOKUPS {
                n_lookups += 1;
                if self.queue.update(rank, &mut self.sequences, cache) {
                    continue;
                }
            }
            if let Some(following) = self.leader_of(slot) {
                let sequence = &mut self.sequences[slot];
                self.queue.set_aside(sequence);
                sequence.following = Some(following);
                sequence.n_follows += 1;
                self.followers.push(slot);
                continue;
            }
            let n_before = plan.n_preempted;
            if self.running.len() == self.max_running && !self.make_place(slot, cache, plan) {
                break;
            }
            let mut is_admitted = self.try_admit(slot, cache, plan);
            while !is_admitted && self.make_pages(slot, cache, plan) {
                is_admitted = self.try_admit(slot, cache, plan);
            }
            if !is_admitted {
                break;
            }
            if plan.n_preempted > n_before {
                load = PromptLoad::new(&self.sequences, &self.running, budget, &self.pace);
            } else if self.running.last() == Some(&slot) {
                load.add(&self.sequences[slot], budget, &self.pace);
            }
        }
    }

    /// Whether `tenant` holds less than its share of the running places, by a whole one.
    fn wants_places(&self, tenant: u32) -> bool {
        let is_its = |slot: &&SequenceSlot| self.sequences[**slot].request().tenant == tenant;
        let n_own = self.running.iter().filter(is_its).count();
        (n_own + 1) * self.n_active() <= self.max_running
    }

    /// Preempts for a place for `slot` where its tenant may ask for one.
    fn make_place(&mut self, slot: SequenceSlot, cache: &mut PrefixCache, plan: &mut Plan) -> bool {
        let tenant = self.sequences[slot].request().tenant;
        let held = self
            .running
            .iter()
            .map(|&slot| (self.sequences[slot].request().tenant, 1));
        let shared = (self.max_running, self.n_active());
        let other = gives_way(held, (tenant, 1), shared);
        other.is_some_and(|other| self.preempt_one_of(other, cache, plan))
    }

    /// The same for pages. One preemption may not be enough.
    fn make_pages(&mut self, slot: SequenceSlot, cache: &mut PrefixCache, plan: &mut Plan) -> bool {
        let n_pages = |slot| self.sequences[slot].tokens.len().div_ceil(self.page_size);
        let tenant = self.sequences[slot].request().tenant;
        let held = self
            .running
            .iter()
            .map(|&slot| (self.sequences[slot].request().tenant, n_pages(slot)));
        let needed = (tenant, n_pages(slot) + self.expected_growth(slot));
        let other = gives_way(held, needed, (cache.n_total(), self.n_active()));
        other.is_some_and(|other| self.preempt_one_of(other, cache, plan))
    }

    /// Preempts a sequence of `tenant`, none that was admitted just now: its page may not yet be copied.
    fn preempt_one_of(&mut self, tenant: u32, cache: &mut PrefixCache, plan: &mut Plan) -> bool {
        if self.is_in_flight {
            plan.waits_for_landing = true;
            return false;
        }
        let may_be = |s: &Sequence| s.request().tenant == tenant && s.admitted_step < self.n_steps;
        let victim_idx = self.victim(may_be);
        if let Some(idx) = victim_idx {
            self.preempt(idx, cache, plan);
            // It leads nobody any more.
            self.return_followers();
        }
        victim_idx.is_some()
    }

    /// Tenants that run or wait.
    fn n_active(&self) -> usize {
        let tenants = self
            .running
            .iter()
            .map(|&slot| self.sequences[slot].request().tenant);
        let mut idle: Vec<u32> = tenants.filter(|&tenant| !self.queue.waits(tenant)).collect();
        idle.sort_unstable();
        idle.dedup();
        idle.len() + self.queue.n_tenants_waiting()
    }

    /// Drafts get what is left: rows nobody else wants, and pages only where nobody waits for one.
    /// The sequences' tokens are known by now.
    pub(crate) fn plan_drafts(&mut self, cache: &mut PrefixCache, plan: &mut Plan) {
        let mut n_left = plan
            .n_rows_left
            .min(self.max_draft_rows)
            .min(self.n_extra_logit_rows - plan.n_scored);
        let nobody_waits = self.queue.is_empty();
        let n_rows = plan.rows.iter().map(|rows| rows.n_rows).sum();
        let n_tokens = plan.rows.iter().map(PlannedRows::n_sampled).sum();
        let row_cost = self.pace.rows().of_step(n_rows, n_tokens);
        if n_left > 0 {
            drafting::propose(plan, &mut self.sequences, (self.drafters, cache), row_cost);
        }
        for rows in &mut plan.rows {
            let sequence = &mut self.sequences[rows.slot];
            let n_most = sequence.n_output_left().saturating_sub(1).min(n_left);
            let n_wanted = sequence.draft.len().min(n_most);
            if rows.n_sampled() == 0 || n_wanted == 0 {
                continue;
            }
            let n_tokens = sequence.tokens.len();
            let table = sequence.table.as_mut().expect("a running sequence holds pages");
            let n_draft = match nobody_waits {
                true => cache.grow_for_free(table, n_tokens, n_wanted),
                false => cache.room_after(table, n_tokens).min(n_wanted),
            };
            rows.n_rows += n_draft;
            rows.n_draft = n_draft;
            rows.logit_rows.end += n_draft;
            n_left -= n_draft;
        }
    }

    /// A running sequence that is about to compute at least a page this one needs and the tree lacks.
    fn leader_of(&self, slot: SequenceSlot) -> Option<Following> {
        let sequence = &self.sequences[slot];
        if sequence.n_follows == MAX_FOLLOWS {
            return None;
        }
        let n_wanted = sequence.max_cached().min(sequence.tokens.len() - 1);
        let wanted = &sequence.tokens[..n_wanted];
        self.running.iter().find_map(|&leader_slot| {
            let leader = &self.sequences[leader_slot];
            if leader.stage != Stage::Prefill || leader.namespace() != sequence.namespace() {
                return None;
            }
            let n_common = common_prefix(wanted, &leader.tokens);
            let n_tokens = n_common / self.page_size * self.page_size;
            let is_new = n_tokens > leader.n_computed && n_tokens > sequence.n_matched;
            is_new.then(|| Following {
                leader: leader_slot,
                leader_id: leader.request().id,
                n_tokens,
            })
        })
    }

    /// False where it has to wait for pages.
    fn try_admit(&mut self, slot: SequenceSlot, cache: &mut PrefixCache, plan: &mut Plan) -> bool {
        let n_spare = if self.running.is_empty() {
            0
        } else {
            let expected = |&slot: &SequenceSlot| self.expected_growth(slot);
            self.running.iter().map(expected).sum::<usize>() + self.expected_growth(slot)
        };
        let sequence = &mut self.sequences[slot];
        let wish = AdmissionWish {
            namespace: sequence.namespace(),
            first_of: (sequence.usage().n_preemptions == 0).then_some(sequence.request().id),
            tokens: &sequence.tokens,
            max_cached: sequence.max_cached(),
            priority: sequence.request().priority,
            n_spare,
        };
        match cache.admit(&wish) {
            Some(admission) => {
                self.queue.leave(sequence);
                sequence.admitted_step = self.n_steps;
                plan.copies.extend(admission.copy.map(|copy| (slot, copy)));
                if sequence.admit(admission.table, admission.n_cached, admission.n_copied) {
                    let work = Work {
                        n_cached: admission.n_cached,
                        ..Work::default()
                    };
                    self.queue.charge(sequence.request().tenant, work);
                    plan.started.push(slot);
                }
                self.running.push(slot);
                true
            }
            None if self.running.is_empty() => {
                // Refused at submit; should one get here, it alone ends.
                let needed = sequence.tokens.len().div_ceil(self.page_size);
                let total = cache.n_total();
                self.queue.leave(sequence);
                plan.failed.push((slot, RequestError::TooLarge { needed, total }));
                true
            }
            None => false,
        }
    }

    /// Pages the output still to come will probably take.
    fn expected_growth(&self, slot: SequenceSlot) -> usize {
        let sequence = &self.sequences[slot];
        let expected = sequence.tokens.len() + self.estimate.tokens(sequence.n_output_left());
        let now = sequence.tokens.len().div_ceil(self.page_size);
        expected.div_ceil(self.page_size) - now
    }
}

/// Number of equal tokens at the start.
fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::sync::mpsc;

    use super::*;
    use crate::request::RequestId;

    /// A scheduler and a cache of `n_pages` pages of 4 tokens.
    fn scheduler(n_pages: usize) -> (Scheduler, PrefixCache) {
        let mut config = EngineConfig::new(n_pages, 1024);
        config.page_size = 4;
        config.max_running = 4;
        config.max_batch_tokens = 8;
        let now = Instant::now();
        (Scheduler::new(&config, now), PrefixCache::new(&config, now))
    }

    fn accept(scheduler: &mut Scheduler, request: Request) {
        scheduler.accept(request, &Arc::new(TokenBytes::new([])));
    }

    fn request(id: u64, prompt: Vec<u32>) -> Request {
        Request::new(RequestId(id), prompt, 8, Instant::now(), mpsc::channel(10).0)
    }

    /// Gives everything back, so that no lock is dropped.
    fn end_all(scheduler: &mut Scheduler, cache: &mut PrefixCache) {
        let slots: Vec<SequenceSlot> = scheduler.sequences.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            let mut sequence = scheduler.remove(slot);
            if let Some(table) = sequence.table.take() {
                cache.finish(table, sequence.computed(), sequence.n_prompt);
            }
        }
    }

    #[test]
    fn a_request_larger_than_the_pool_fails_alone() {
        let (mut scheduler, mut cache) = scheduler(2);
        accept(&mut scheduler, request(0, vec![1; 9]));
        accept(&mut scheduler, request(1, vec![2; 3]));
        let mut plan = Plan::default();
        scheduler.plan(&mut cache, &mut plan);
        let failed: Vec<&RequestError> = plan.failed.iter().map(|(_, error)| error).collect();
        assert_eq!(failed, [&RequestError::TooLarge { needed: 3, total: 2 }]);
        assert_eq!(plan.rows.len(), 1, "the other one runs");
        assert_eq!(plan.rows[0].n_rows, 3);
        end_all(&mut scheduler, &mut cache);
        cache.check(std::iter::empty());
    }

    #[test]
    fn an_output_that_outgrows_the_pool_fails_alone() {
        let (mut scheduler, mut cache) = scheduler(1);
        accept(&mut scheduler, request(0, vec![1; 4]));
        let mut plan = Plan::default();
        scheduler.plan(&mut cache, &mut plan);
        let slot = plan.rows[0].slot;
        let sequence = &mut scheduler.sequences[slot];
        sequence.n_computed = 4;
        sequence.tokens.push(5);
        sequence.stage = Stage::Decode;
        scheduler.plan(&mut cache, &mut plan);
        assert_eq!(
            plan.failed,
            [(slot, RequestError::TooLarge { needed: 2, total: 1 })]
        );
        assert!(plan.rows.is_empty());
        end_all(&mut scheduler, &mut cache);
        cache.check(std::iter::empty());
    }

    #[test]
    fn a_step_stays_within_its_budget_and_asks_logits_of_the_last_row_only() {
        let (mut scheduler, mut cache) = scheduler(64);
        for id in 0..3 {
            accept(&mut scheduler, request(id, vec![id as u32; 5]));
        }
        let mut plan = Plan::default();
        scheduler.plan(&mut cache, &mut plan);
        let rows: Vec<(usize, usize)> = plan
            .rows
            .iter()
            .map(|rows| (rows.n_rows, rows.logit_rows.len()))
            .collect();
        assert_eq!(rows, [(5, 1), (3, 0)], "8 rows; the second prompt is not through");
        assert_eq!(plan.rows[0].logit_rows, 4..5);
        end_all(&mut scheduler, &mut cache);
    }

    #[test]
    fn the_estimate_learns_from_endings_and_rises_with_preemptions() {
        let mut estimate = OutputEstimate(0.7);
        for _ in 0..200 {
            estimate.learn(20, 100);
        }
        assert!((estimate.0 - 0.2).abs() < 0.01, "{}", estimate.0);
        assert_eq!(estimate.tokens(100), (100.0 * estimate.0).ceil() as usize);
        estimate.raise();
        assert!(estimate.0 > 0.39);
        for _ in 0..10 {
            estimate.raise();
        }
        assert_eq!(estimate.0, 1.0);
    }
}
