//! The engine: one thread, one loop, all state.
//!
//! ```text
//! turn:  inbox -> queue          step:  end what is aborted or late
//!        step, panics caught            plan      scheduler: rows, evictions, preemptions, admissions
//!        metrics                        prepare   poison (debug), copy pages, build the batch
//!                                       forward, fill masks, sample
//!                                       commit    verify drafts, push tokens, endings, checkpoint, events
//! ```
//!
//! Without work it blocks on the inbox. A test drives [`Engine::turn`] itself, with a clock of its own: no
//! decision reads the real time.
//!
//! A panic inside a step ends every running request with an error and keeps the weights: the tree and the
//! page tables start afresh, requests that wait and hold nothing stay. Who panics too often gives up.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arbora_kernels::{Backend, BackendError, KvShape, LogprobRow, RowLogprobs};
use crossbeam::channel::{Receiver, TryRecvError, bounded};

use crate::batch::{BatchEntry, ForwardBatch};
use crate::cache::PrefixCache;
pub use crate::config::{ConfigError, EngineConfig, SchedulePolicy};
use crate::drain::DrainMeter;
use crate::gauges::Gauges;
pub use crate::handle::EngineHandle;
use crate::handle::{Message, Question, RequestLimits, Shared};
use crate::kv::KvPool;
use crate::model::decoder::Decoder;
use crate::request::{FinishReason, RequestError};
use crate::scheduler::{Plan, Scheduler};
use crate::sequence::{Gone, SequenceSlot, Stage};
use crate::step::{StepAnswers, logprob_rows, prepare_rows, sample_rows};
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

/// All state of the server's model side.
pub struct Engine<B: Backend> {
    backend: B,
    decoder: Decoder<B>,
    kv: KvPool<B>,
    cache: PrefixCache,
    scheduler: Scheduler,
    token_bytes: Arc<TokenBytes>,
    config: EngineConfig,
    inbox: Receiver<Message>,
    shared: Arc<Shared>,
    plan: Plan,
    batch: ForwardBatch,
    sampled: Vec<Option<u32>>,
    logprob_rows: Vec<LogprobRow>,
    logprobs: Vec<Option<RowLogprobs>>,
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
        mut backend: B,
        decoder: Decoder<B>,
        token_bytes: Arc<TokenBytes>,
        config: EngineConfig,
    ) -> Result<(Self, EngineHandle), EngineError> {
        config.validate(decoder.limits())?;
        let model = decoder.config();
        let kv = KvPool::new(
            &mut backend,
            KvShape {
                n_layers: model.n_layers,
                n_kv_heads: model.heads.n_kv_heads,
                head_dim: model.heads.head_dim,
                page_size: config.page_size,
                n_pages: config.n_pages,
            },
        )?;
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
        let shared = Arc::new(Shared::new(limits));
        let (sender, inbox) = bounded(config.max_waiting + N_EXTRA_SLOTS);
        let handle = EngineHandle::new(Arc::clone(&shared), sender);
        let epoch = shared.epoch();
        let engine = Engine {
            backend,
            decoder,
            kv,
            cache: PrefixCache::new(&config, epoch),
            scheduler: Scheduler::new(&config, epoch),
            token_bytes,
            inbox,
            shared,
            plan: Plan::default(),
            batch: ForwardBatch::default(),
            sampled: Vec::with_capacity(config.max_running),
            logprob_rows: Vec::new(),
            logprobs: Vec::new(),
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
            self.publish();
            return match self.is_draining {
                true => self.shut_down(EngineExit::Drained),
                false => Turn::Idle,
            };
        }
        let started = clock();
        let stepped = catch_unwind(AssertUnwindSafe(|| self.step(clock)));
        let now = clock();
        let turn = match stepped {
            Ok(()) => {
                self.scheduler.note_time(&self.plan, now - started);
                Turn::Busy
            }
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
        let now = clock();
        self.end_unwanted(now);
        self.scheduler.plan(&mut self.cache, &mut self.plan);
        self.note_plan(now);
        if self.plan.rows.is_empty() {
            return;
        }
        self.prepare_pages();
        self.build_batch();
        let logits = self
            .decoder
            .forward(&mut self.backend, self.kv.kv_mut(), &self.batch);
        // A device computes while the masks are filled.
        prepare_rows(&mut self.plan, &mut self.scheduler.sequences, clock);
        let sample_rows = sample_rows(&self.plan, &self.scheduler.sequences);
        self.backend.sample(logits, &sample_rows, &mut self.sampled);
        logprob_rows(
            &self.plan,
            (&self.scheduler.sequences, &self.sampled),
            &mut self.logprob_rows,
        );
        self.logprobs.clear();
        if !self.logprob_rows.is_empty() {
            self.backend
                .logprobs(logits, &self.logprob_rows, &mut self.logprobs);
        }
        self.commit(clock);
        if cfg!(debug_assertions) {
            self.check();
        }
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
        assert!(
            !(self.plan.rows.is_empty() && self.plan.failed.is_empty())
                || self.scheduler.sequences.is_empty(),
            "sequences wait and nothing moves"
        );
        let failed = self.plan.failed.drain(..);
        self.ending
            .extend(failed.map(|(slot, error)| (slot, FinishReason::Error(error))));
        self.end_all();
    }

    /// Copies come after the poison: a page may have been freed and taken again by the same plan.
    fn prepare_pages(&mut self) {
        for page in self.cache.take_freed() {
            self.kv.poison_page(&mut self.backend, page);
        }
        while let Some(copy) = self.plan.copies.pop() {
            self.kv.copy_page(&mut self.backend, copy.from, copy.to);
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

    /// Takes the step's results in: tokens, endings, shared prefixes.
    fn commit(&mut self, clock: &dyn Fn() -> Instant) {
        let now = clock();
        self.now = now;
        self.shared.metrics().steps.add(1);
        let mut answers = StepAnswers::new(&self.sampled, &mut self.logprobs);
        for rows in &self.plan.rows {
            let sequence = &mut self.scheduler.sequences[rows.slot];
            sequence.n_computed = rows.first_position + rows.n_rows - rows.n_draft;
            if sequence.stage == Stage::Prefill {
                let table = sequence.table.take().expect("a planned sequence holds pages");
                sequence.table = Some(self.cache.checkpoint(table, sequence.computed()));
            }
            let its_own = answers.next(rows, sequence);
            if let Err(error) = sequence.score(its_own.scores) {
                self.ending.push((rows.slot, FinishReason::Error(error)));
                continue;
            }
            if its_own.sampled.is_empty() {
                continue;
            }
            sequence.stage = Stage::Decode;
            let stops = &self.config.model_stop_tokens;
            let (source, before) = (sequence.draft_source(), sequence.usage());
            let started = sequence.request().grammar.is_some().then(clock);
            let (n_new, mut ends) = sequence.verify(its_own.sampled, &self.token_bytes, stops);
            if let Some(started) = started {
                let time = clock().saturating_duration_since(started);
                sequence.mask_time = Some(sequence.mask_time.unwrap_or_default() + time);
                self.plan.mask_time += time;
            }
            let metrics = self.shared.metrics();
            let usage = sequence.usage();
            metrics.generated_tokens.add(n_new);
            let n_drafted = usage.drafted_tokens - before.drafted_tokens;
            metrics.drafts[source.idx()].add(usize::from(n_drafted > 0));
            metrics.drafted_tokens[source.idx()].add(n_drafted);
            metrics.accepted_tokens[source.idx()].add(usage.accepted_tokens - before.accepted_tokens);
            sequence.note_tokens(now, n_new, metrics);
            let sent = sequence.send_scores();
            if sent.and_then(|()| sequence.send_tokens(n_new, its_own.logprobs)) == Err(Gone) {
                ends = Some(FinishReason::Aborted);
            }
            self.ending.extend(ends.map(|reason| (rows.slot, reason)));
            let tenant = sequence.request().tenant;
            self.scheduler.charge_output(tenant, n_new);
        }
        drop(answers);
        self.end_all();
    }

    fn end_all(&mut self) {
        while let Some((slot, reason)) = self.ending.pop() {
            self.end(slot, reason);
        }
    }

    /// The one way out for a sequence: what it computed stays in the tree, its pages are free or cached.
    fn end(&mut self, slot: SequenceSlot, reason: FinishReason) {
        let mut sequence = self.scheduler.remove(slot);
        let is_natural = matches!(
            reason,
            FinishReason::StopToken(_)
                | FinishReason::StopString(_)
                | FinishReason::Complete
                | FinishReason::Length
        );
        if is_natural {
            self.scheduler.learn(&sequence);
        }
        let time = self.now.saturating_duration_since(sequence.request().arrived);
        let metrics = self.shared.metrics();
        metrics.count_finished(&reason, (time, sequence.n_output()));
        sequence.note_total(time);
        // The ending goes out before anything that could fail.
        sequence.end(reason);
        self.shared.leave();
        sequence.place = None;
        if let Some(table) = sequence.table.take() {
            self.cache.finish(table, sequence.computed(), sequence.n_prompt);
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
            Message::Submit(request, place) => self.scheduler.accept(*request).place = Some(place),
            Message::Inspect(question) => self.question = Some(*question),
            Message::Wake => self.shared.woken(),
        }
    }

    fn start_draining(&mut self) {
        self.shared.stop_accepting();
        self.is_draining = true;
    }

    /// Everything in flight gets its error; weights stay, tree and page tables start afresh.
    fn recover(&mut self, now: Instant) -> Turn {
        tracing::error!("a step panicked; running requests end with an error");
        self.shared.metrics().panics.add(1);
        self.plan.abandon();
        self.ending.clear();
        self.scheduler.forget_order();
        let slots: Vec<SequenceSlot> = self.scheduler.sequences.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            let sequence = &mut self.scheduler.sequences[slot];
            let table = sequence.table.take();
            if sequence.stage != Stage::Waiting || table.is_some() {
                let engine_failed = FinishReason::Error(RequestError::EngineFailed);
                self.end(slot, engine_failed);
            }
            if let Some(table) = table {
                table.abandon();
            }
        }
        self.cache.reset();
        self.scheduler.requeue();
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
