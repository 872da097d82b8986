//! The engine: the inference loop on one thread, which owns all state.
//!
//! ```text
//! turn:  inbox -> queue          step:  plan      scheduler: rows, evictions, preemptions, admissions
//!        step, panics caught            land      the step before: verify drafts, push tokens, endings,
//!        metrics                                  checkpoint, events; end what is aborted or late
//!                                       prepare   drafts; poison (debug), copy pages, build the batch
//!                                       launch    forward, fill masks, sample
//! ```
//!
//! A step stays in flight while the device computes it, and the next one is planned meanwhile. With a device
//! that is done at once, a step lands before the next is planned.
//!
//! Without work it blocks on the inbox. A test drives [`Engine::turn`] itself, with a clock of its own: no
//! decision reads the real time.
//!
//! A panic inside a step ends every running request with an error and keeps the weights: the tree and the
//! page tables start afresh, requests that wait and hold nothing stay. Who panics too often gives up.

mod commit;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arbora_kernels::{Answers, Backend, BackendError, KvShape, LogprobRow};
use crossbeam::channel::{Receiver, TryRecvError, bounded};

use crate::batch::{BatchEntry, ForwardBatch};
use crate::cache::PrefixCache;
pub use crate::config::{ConfigError, EngineConfig, SchedulePolicy};
use crate::drain::DrainMeter;
use crate::gauges::Gauges;
pub use crate::handle::EngineHandle;
use crate::handle::{Message, Question, RequestLimits, Shared};
use crate::model::decoder::Decoder;
use crate::plan::Plan;
use crate::request::{FinishReason, RequestError};
use crate::runner::{InFlight, Runner, StepBounds};
use crate::scheduler::Scheduler;
use crate::sequence::Stage;
use crate::sequences::SequenceSlot;
use crate::step::{logprob_rows, prepare_rows, sample_rows};
use crate::token_bytes::TokenBytes;

/// Inbox slots beyond the waiting requests: one wake-up and one question.
const N_EXTRA_SLOTS: usize = 2;

/// Messages are taken in for about this long before the next step.
const MAX_POLL_TIME: Duration = Duration::from_millis(2);

/// Panics are counted over this time.
const REBUILD_WINDOW: Duration = Duration::from_secs(60);

/// Why an engine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Limits that contradict each other or the decoder.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The KV pool could not be had.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The engine's thread could not be started.
    #[error("cannot start the engine thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Why an engine's thread returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineExit {
    /// It was asked to drain, or nobody holds a handle any more.
    Drained,
    /// It panicked too often. Every request got its error.
    Failed,
    /// The device is gone for good. Every request got its error.
    DeviceLost,
}

/// What a turn came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There is more to do.
    Busy,
    /// There is nothing to do until somebody calls the handle.
    Idle,
    /// The engine is over; further turns change nothing.
    Over(EngineExit),
}

/// Starts an engine on a thread of its own.
pub fn spawn<B: Backend>(
    backend: B,
    decoder: Decoder<B>,
    token_bytes: Arc<TokenBytes>,
    config: EngineConfig,
) -> Result<(EngineHandle, JoinHandle<EngineExit>), EngineError>
where
    Decoder<B>: Send,
{
    let (engine, handle) = Engine::new(backend, decoder, token_bytes, config)?;
    let thread = std::thread::Builder::new()
        .name("engine".to_owned())
        .spawn(move || engine.run())?;
    Ok((handle, thread))
}

/// A step that the device computes.
struct Flight {
    step: InFlight,
    plan: Plan,
    /// What the device took for it, as far as the host waited.
    device_time: Duration,
}

/// All state of the server's model side.
pub struct Engine<B: Backend> {
    runner: Runner<B>,
    flight: Option<Flight>,
    cache: PrefixCache,
    scheduler: Scheduler,
    token_bytes: Arc<TokenBytes>,
    config: EngineConfig,
    inbox: Receiver<Message>,
    shared: Arc<Shared>,
    plan: Plan,
    /// Memory of the plan before.
    spare_plan: Plan,
    batch: ForwardBatch,
    logprob_rows: Vec<LogprobRow>,
    answers: Answers,
    ending: Vec<(SequenceSlot, FinishReason)>,
    /// When the drain asked for must be over.
    drain_deadline: Option<Instant>,
    is_draining: bool,
    exit: Option<EngineExit>,
    n_flushes: u64,
    /// A question about the cache, to be answered before the next step.
    question: Option<Question>,
    panics: VecDeque<Instant>,
    drain_meter: DrainMeter,
    /// The clock when it was last looked at.
    now: Instant,
}

impl<B: Backend> Engine<B> {
    /// An engine and the first handle to it. All KV memory is allocated here.
    pub fn new(
        backend: B,
        decoder: Decoder<B>,
        token_bytes: Arc<TokenBytes>,
        config: EngineConfig,
    ) -> Result<(Self, EngineHandle), EngineError> {
        config.validate(decoder.limits())?;
        let model = decoder.config();
        let kv = KvShape {
            n_layers: model.layers.len(),
            n_kv_heads: model.heads.n_kv_heads,
            head_dim: model.heads.head_dim,
            page_size: config.page_size,
            n_pages: config.n_pages,
        };
        let limits = RequestLimits {
            n_vocab: model.n_vocab,
            context: config.context.min(model.context).min(config.pool_tokens()),
            n_pages: config.n_pages,
            page_size: config.page_size,
            max_running: config.max_running,
            max_waiting: config.max_waiting,
            n_tenants: config.n_tenants,
            max_waiting_tokens: config.max_waiting_tokens,
            max_queue_wait: config.max_queue_wait,
        };
        let bounds = StepBounds {
            max_sequences: config.max_running,
            max_pages: config.max_running * limits.context.div_ceil(config.page_size),
        };
        let runner = Runner::new(backend, decoder, kv, bounds)?;
        let shared = Arc::new(Shared::new(limits));
        let (sender, inbox) = bounded(config.max_waiting + N_EXTRA_SLOTS);
        let handle = EngineHandle::new(Arc::clone(&shared), sender);
        let epoch = shared.epoch();
        let engine = Engine {
            runner,
            flight: None,
            cache: PrefixCache::new(&config, epoch),
            scheduler: Scheduler::new(&config, epoch),
            token_bytes,
            inbox,
            shared,
            plan: Plan::default(),
            spare_plan: Plan::default(),
            batch: ForwardBatch::default(),
            logprob_rows: Vec::new(),
            answers: Answers::default(),
            ending: Vec::new(),
            drain_deadline: None,
            is_draining: false,
            exit: None,
            n_flushes: 0,
            question: None,
            panics: VecDeque::new(),
            drain_meter: DrainMeter::default(),
            now: epoch,
            config,
        };
        engine.publish();
        Ok((engine, handle))
    }

    /// Serves until it is drained or fails too often.
    pub fn run(mut self) -> EngineExit {
        loop {
            match self.turn(&Instant::now) {
                Turn::Busy => {}
                Turn::Idle => match self.inbox.recv() {
                    Ok(message) => self.receive(message),
                    Err(_) => self.start_draining(),
                },
                Turn::Over(exit) => return exit,
            }
        }
    }

    /// Takes in what handles sent and runs one step, if there is anything to run it for.
    pub fn turn(&mut self, clock: &dyn Fn() -> Instant) -> Turn {
        if let Some(exit) = self.exit {
            return Turn::Over(exit);
        }
        self.poll_inbox(clock);
        if self.scheduler.sequences.is_empty() {
            self.runner.rest();
            self.publish();
            return match self.is_draining {
                true => self.shut_down(EngineExit::Drained),
                false => Turn::Idle,
            };
        }
        self.runner.begin_step();
        let started = clock();
        let stepped = catch_unwind(AssertUnwindSafe(|| self.step(clock)));
        let now = clock();
        let turn = match stepped {
            _ if self.runner.is_lost() => {
                tracing::error!("the device is lost; every request ends with an error");
                self.start_afresh(&RequestError::DeviceLost);
                self.shut_down(EngineExit::DeviceLost)
            }
            Ok(()) => Turn::Busy,
            Err(_) => self.recover(now),
        };
        self.shared.metrics().step_time.record(now - started);
        self.shared.stepped(now);
        self.drain_meter.measure(&self.shared, now);
        self.publish();
        turn
    }

    /// Panics unless every page is in exactly one place (contract C4) and every sequence's state is
    /// consistent.
    pub fn check(&self) {
        let tables = self
            .scheduler
            .sequences
            .iter()
            .filter_map(|(_, s)| s.table.as_ref());
        self.cache.check(tables);
        for (_, sequence) in self.scheduler.sequences.iter() {
            assert_eq!(
                sequence.table.is_some(),
                sequence.stage != Stage::Waiting,
                "who runs holds pages"
            );
            assert!(
                sequence.n_computed < sequence.tokens.len(),
                "the last token was never fed"
            );
        }
    }

    fn step(&mut self, clock: &dyn Fn() -> Instant) {
        let is_planned = self.plan_ahead();
        self.land(clock);
        if self.runner.is_lost() {
            return;
        }
        let now = clock();
        self.end_unwanted(now);
        match is_planned {
            true => self.scheduler.settle(&mut self.cache, &mut self.plan),
            false => self.scheduler.plan(&mut self.cache, &mut self.plan),
        }
        assert!(
            is_planned
                || !(self.plan.rows.is_empty() && self.plan.failed.is_empty())
                || self.scheduler.sequences.is_empty(),
            "sequences wait and nothing moves"
        );
        self.note_plan(now);
        self.scheduler.plan_drafts(&mut self.cache, &mut self.plan);
        // Also where no row is left: a sequence that was admitted may have a page to copy.
        self.prepare_pages();
        if !self.plan.rows.is_empty() {
            self.build_batch();
            self.launch(clock);
        }
        if let Some(flight) = &self.flight
            && self.runner.is_done(&flight.step)
        {
            self.land(clock);
        }
        if cfg!(debug_assertions) {
            self.check();
        }
    }

    /// Plans the next step beside the one in flight, where the device still computes that and nothing has to
    /// be preempted.
    fn plan_ahead(&mut self) -> bool {
        let Some(flight) = &self.flight else {
            return false;
        };
        if flight.plan.waits_for_landing || self.runner.is_done(&flight.step) {
            return false;
        }
        self.scheduler.plan_ahead(&mut self.cache, &mut self.plan);
        true
    }

    /// Starts the planned step; masks are filled while the device computes.
    fn launch(&mut self, clock: &dyn Fn() -> Instant) {
        let started = clock();
        let mut step = self.runner.launch(&self.batch);
        let launched = clock();
        prepare_rows(&mut self.plan, &mut self.scheduler.sequences, clock);
        let sample_rows = sample_rows(&self.plan, &self.scheduler.sequences);
        logprob_rows(&self.plan, &self.scheduler.sequences, &mut self.logprob_rows);
        let prepared = clock();
        self.runner.sample(&mut step, &sample_rows, &self.logprob_rows);
        let device_time = (launched - started) + (clock() - prepared);
        for rows in &self.plan.rows {
            self.scheduler.sequences[rows.slot].note_launch(rows);
        }
        let plan = std::mem::replace(&mut self.plan, std::mem::take(&mut self.spare_plan));
        self.flight = Some(Flight {
            step,
            plan,
            device_time,
        });
    }

    /// Ends requests that were aborted or are late, waiting ones too.
    fn end_unwanted(&mut self, now: Instant) {
        let is_over = self.drain_deadline.is_some_and(|deadline| now >= deadline);
        for (slot, sequence) in self.scheduler.sequences.iter() {
            let due = sequence.ending_due(now);
            let due = due.or(is_over.then_some(FinishReason::Error(RequestError::ShuttingDown)));
            self.ending.extend(due.map(|reason| (slot, reason)));
        }
        self.end_all();
    }

    /// Does what the plan decided besides rows: endings, and the accounts of who starts.
    fn note_plan(&mut self, now: Instant) {
        let metrics = self.shared.metrics();
        metrics.preemptions.add(self.plan.n_preempted);
        metrics.evicted_pages.add(self.cache.take_n_evicted());
        for &slot in &self.plan.started {
            let sequence = &mut self.scheduler.sequences[slot];
            metrics.queue_time.record(sequence.start(now));
            let usage = sequence.usage();
            metrics.prompt_tokens.add(usage.prompt_tokens);
            metrics.cached_tokens.add(usage.cached_tokens);
            metrics.copied_tokens.add(usage.copied_tokens);
            metrics.prompt_lengths.record(usage.prompt_tokens);
            self.drain_meter.add(sequence.n_prompt);
            sequence.place = None;
        }
        let failed = self.plan.failed.drain(..);
        self.ending
            .extend(failed.map(|(slot, error)| (slot, FinishReason::Error(error))));
        self.end_all();
    }

    /// Copies come after the poison: a page may have been freed and taken again by the same plan.
    fn prepare_pages(&mut self) {
        for page in self.cache.take_freed() {
            self.runner.poison_page(page);
        }
        while let Some((_, copy)) = self.plan.copies.pop() {
            self.runner.copy_page(copy.from, copy.to);
            self.cache.release_donor(copy);
        }
    }

    fn build_batch(&mut self) {
        self.batch.clear();
        for rows in &self.plan.rows {
            let sequence = &self.scheduler.sequences[rows.slot];
            let table = sequence.table.as_ref().expect("a planned sequence holds pages");
            let end = rows.first_position + rows.n_rows - rows.n_draft;
            let entry = BatchEntry {
                ids: &sequence.tokens[rows.first_position..end],
                draft: &sequence.draft[..rows.n_draft],
                first_position: rows.first_position,
                pages: table.pages(),
                logit_rows: rows.logit_rows.clone(),
            };
            self.batch.push(&entry, self.config.page_size);
            if sequence.stage == Stage::Prefill {
                self.shared.metrics().prefill_tokens.add(rows.n_rows);
            }
        }
    }

    /// Takes messages in. A request's grammar is looked at here, so what takes long is left to the next turn.
    fn poll_inbox(&mut self, clock: &dyn Fn() -> Instant) {
        let now = clock();
        self.now = now;
        self.cache.set_time(now);
        let mut time = Duration::ZERO;
        while time <= MAX_POLL_TIME {
            match self.inbox.try_recv() {
                Ok(message) => {
                    self.receive(message);
                    time = clock().saturating_duration_since(now);
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    self.start_draining();
                    break;
                }
            }
        }
        if let Some(limit) = self.shared.drain_limit() {
            self.start_draining();
            self.drain_deadline.get_or_insert(now + limit);
        }
        let n_flushes = self.shared.n_flushes();
        if n_flushes != self.n_flushes {
            self.n_flushes = n_flushes;
            self.cache.flush();
        }
        if let Some(question) = self.question.take() {
            self.answer(&question);
        }
    }

    /// Looking changes nothing, so a panic in it costs nobody but who asked.
    fn answer(&self, question: &Question) {
        match catch_unwind(AssertUnwindSafe(|| {
            question.inspection.answer(&self.cache, &self.scheduler.sequences)
        })) {
            // Who asked may be gone by now.
            Ok(inspected) => drop(question.reply.try_send(inspected)),
            Err(_) => tracing::error!("looking at the cache panicked"),
        }
        self.shared.close_question();
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::Submit(request, place) => {
                let sequence = self.scheduler.accept(*request, &self.token_bytes);
                sequence.place = Some(place);
            }
            Message::Inspect(question) => self.question = Some(*question),
            Message::Wake => self.shared.woken(),
        }
    }

    fn start_draining(&mut self) {
        self.shared.stop_accepting();
        self.is_draining = true;
    }

    /// What runs ends with `error`; weights stay, tree and page tables start afresh.
    fn start_afresh(&mut self, error: &RequestError) {
        self.flight = None;
        self.plan.abandon();
        self.ending.clear();
        self.scheduler.forget_order();
        let slots: Vec<SequenceSlot> = self.scheduler.sequences.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            let sequence = &mut self.scheduler.sequences[slot];
            let table = sequence.table.take();
            if sequence.stage != Stage::Waiting || table.is_some() {
                self.end(slot, FinishReason::Error(error.clone()));
            }
            if let Some(table) = table {
                table.abandon();
            }
        }
        self.cache.reset();
        self.scheduler.requeue();
    }

    /// After a panic in a step. Who panics too often gives up.
    fn recover(&mut self, now: Instant) -> Turn {
        tracing::error!("a step panicked; running requests end with an error");
        self.shared.metrics().panics.add(1);
        self.start_afresh(&RequestError::EngineFailed);
        self.panics.push_back(now);
        while self
            .panics
            .front()
            .is_some_and(|&panic| now - panic >= REBUILD_WINDOW)
        {
            self.panics.pop_front();
        }
        if self.panics.len() > self.config.max_rebuilds_per_minute {
            tracing::error!(n_panics = self.panics.len(), "the engine gives up");
            return self.shut_down(EngineExit::Failed);
        }
        Turn::Busy
    }

    /// Ends whatever is left, requests that are on their way into the inbox included.
    fn shut_down(&mut self, exit: EngineExit) -> Turn {
        self.start_draining();
        let error = match exit {
            EngineExit::Drained => RequestError::ShuttingDown,
            EngineExit::Failed => RequestError::EngineFailed,
            EngineExit::DeviceLost => RequestError::DeviceLost,
        };
        while self.shared.n_waiting() > 0 || !self.scheduler.sequences.is_empty() {
            let slots: Vec<SequenceSlot> = self.scheduler.sequences.iter().map(|(slot, _)| slot).collect();
            for slot in slots {
                self.end(slot, FinishReason::Error(error.clone()));
            }
            if let Ok(message) = self.inbox.recv_timeout(Duration::from_millis(1)) {
                self.receive(message);
            }
        }
        if let Some(question) = self.question.take() {
            self.answer(&question);
        }
        self.exit = Some(exit);
        self.publish();
        Turn::Over(exit)
    }

    fn publish(&self) {
        let (total, free, cached) = (self.cache.n_total(), self.cache.n_free(), self.cache.n_cached());
        self.shared.metrics().publish(Gauges {
            waiting: self.shared.n_waiting() as u64,
            waiting_tokens: self.shared.waiting_tokens() as u64,
            running: self.scheduler.n_running() as u64,
            pages_total: total as u64,
            pages_free: free as u64,
            pages_cached: cached as u64,
            pages_evictable: self.cache.n_evictable() as u64,
            pages_owned: (total - free - cached) as u64,
        });
    }
}
