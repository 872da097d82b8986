//! Embedding engine: dynamic batching of texts on one thread that owns the encoder.
//!
//! ```text
//! submit ─► bounded inbox ─► queue, fair to tenants ─► batch ─► forward pass ─► head ─► answers
//! ```
//!
//! A batch takes what waits, up to so many rows; nothing waits for more to come. Texts of any lengths share a
//! pass without padding, and a text's answer does not depend on the others (C1).
//!
//! A panic in a pass ends the requests that have a text in it, and the engine goes on with the others.

mod handle;
mod queue;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arbora_kernels::encoder::EncoderBackend;
use crossbeam::channel::{Receiver, TryRecvError, bounded};

use crate::engine::EngineExit;
use crate::model::encoder::{Encoder, Head, TextRows};
pub use handle::{EmbedError, EmbeddingHandle, EmbeddingMetrics};
use handle::{Message, N_EXTRA_SLOTS, Shared};
use queue::{Picked, Queue};

/// Between looks at the places that are taken, while nothing waits and the engine drains.
const DRAIN_POLL: Duration = Duration::from_millis(5);

/// Passes that panic one after the other before the engine gives up.
const MAX_PANICS: usize = 3;

/// Limits of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbeddingConfig {
    /// Most requests that are accepted and not answered. Tenants share it as [`crate::fair_limit`] says.
    pub max_waiting: usize,
    /// Most tokens of them, shared likewise.
    pub max_waiting_tokens: usize,
    /// Who shares the limits; at least 1.
    pub n_tenants: usize,
}

impl EmbeddingConfig {
    /// Most rows of a pass unless told otherwise: its activations stay in the caches of the cores.
    pub const MAX_ROWS: usize = 512;
}

impl Default for EmbeddingConfig {
    fn default() -> Self {
        EmbeddingConfig {
            max_waiting: 1024,
            max_waiting_tokens: 1 << 20,
            n_tenants: 1,
        }
    }
}

/// What became of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Which text of the request.
    pub text_idx: usize,
    /// Its vector; of a reranker one number.
    pub vector: Vec<f32>,
}

/// Starts an engine on a thread of its own.
///
/// # Errors
/// Where the thread cannot be had.
pub fn spawn<B: EncoderBackend>(
    backend: B,
    encoder: Encoder<B>,
    head: Head,
    config: EmbeddingConfig,
) -> std::io::Result<(EmbeddingHandle, JoinHandle<EngineExit>)>
where
    Encoder<B>: Send,
{
    let (max_tokens, n_vocab) = (encoder.limits().max_text_rows, encoder.config().n_vocab);
    let shared = Arc::new(Shared::new(config, max_tokens, n_vocab));
    let (sender, inbox) = bounded(config.max_waiting + N_EXTRA_SLOTS);
    let engine = Engine {
        backend,
        encoder,
        head,
        inbox,
        queue: Queue::new(config.n_tenants),
        shared: Arc::clone(&shared),
        batch: Vec::new(),
        rows: TextRows::default(),
    };
    let thread = std::thread::Builder::new()
        .name("engine".to_owned())
        .spawn(move || engine.run())?;
    let inbox = sender;
    Ok((EmbeddingHandle { shared, inbox }, thread))
}

struct Engine<B: EncoderBackend> {
    backend: B,
    encoder: Encoder<B>,
    head: Head,
    inbox: Receiver<Message>,
    queue: Queue,
    shared: Arc<Shared>,
    batch: Vec<Picked>,
    rows: TextRows,
}

impl<B: EncoderBackend> Engine<B> {
    fn run(mut self) -> EngineExit {
        let mut n_panics = 0;
        let mut deadline = None;
        let exit = loop {
            let has_handles = self.receive();
            if let Some(limit) = self.shared.drain_limit() {
                let now = Instant::now();
                let ends = *deadline.get_or_insert_with(|| now.checked_add(limit));
                if ends.is_some_and(|ends| now >= ends) {
                    break EngineExit::Drained;
                }
            }
            self.queue.fill(self.encoder.limits().max_rows, &mut self.batch);
            if self.batch.is_empty() {
                self.backend.rest();
                self.shared.moved(Instant::now());
                let is_over = !has_handles || deadline.is_some() && self.shared.n_in_flight() == 0;
                if is_over {
                    break EngineExit::Drained;
                }
                self.wait(deadline.is_some());
                continue;
            }
            self.backend.begin_step();
            match catch_unwind(AssertUnwindSafe(|| self.encode())) {
                Ok(()) => n_panics = 0,
                Err(_) => n_panics += 1,
            }
            // Those that have no answer find their channel closed.
            self.batch.clear();
            if n_panics == MAX_PANICS {
                break EngineExit::Failed;
            }
        };
        self.shared.stop_accepting();
        self.queue.clear();
        exit
    }

    /// Waits for a message. While the engine drains, a place may be given back without one.
    fn wait(&mut self, is_draining: bool) {
        let message = match is_draining {
            true => self.inbox.recv_timeout(DRAIN_POLL).ok(),
            false => self.inbox.recv().ok(),
        };
        if let Some(message) = message {
            self.take(message);
        }
    }

    /// Takes what is in the inbox; false where nobody can send any more.
    fn receive(&mut self) -> bool {
        loop {
            match self.inbox.try_recv() {
                Ok(message) => self.take(message),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Submit(job) => self.queue.push(*job),
            Message::Wake => self.shared.woken(),
        }
    }

    /// Encodes the batch and answers.
    fn encode(&mut self) {
        let begun = Instant::now();
        self.rows.clear();
        for picked in &self.batch {
            self.rows.push(&picked.text.ids, &picked.text.types);
        }
        let width = self.encoder.config().width;
        let hidden = self.encoder.forward(&mut self.backend, &self.rows);
        // Whoever has an answer finds it counted.
        let metrics = &self.shared.metrics;
        metrics.texts.add(self.batch.len());
        metrics.tokens.add(self.rows.len());
        for (picked, rows) in self.batch.iter().zip(self.rows.ranges()) {
            let vector = self
                .head
                .apply(&hidden[rows.start * width..rows.end * width], width);
            let text_idx = picked.text_idx;
            // A client that left wants no answer; the channel has room for one of each text.
            drop(picked.reply.try_send(Answer { text_idx, vector }));
        }
        let now = Instant::now();
        metrics.batch_time.record(now - begun);
        self.shared.moved(now);
    }
}
