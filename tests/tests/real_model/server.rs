//! The default model behind an engine of its own, and what requests get from it.

use std::sync::{Arc, LazyLock};
use std::thread::JoinHandle;
use std::time::Instant;

use arbora_kernels::cpu::{CpuBackend, CpuConfig, Isa, Pinning};
use arbora_runtime::engine::{self, EngineConfig, EngineExit, EngineHandle};
use arbora_runtime::grammar::GrammarState;
use arbora_runtime::model::ModelFile;
use arbora_runtime::request::{Event, Finished, Request, SamplingParams, SubmitError};
use arbora_runtime::token_bytes::TokenBytes;
use arbora_runtime::tokenizer::Tokenizer;
use tokio::sync::mpsc;

pub(crate) const CONTEXT: usize = 1024;

pub(crate) struct Model {
    pub(crate) file: ModelFile,
    pub(crate) tokenizer: Arc<Tokenizer>,
}

/// Opened once; every engine loads its own copy of the weights.
pub(crate) static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let path = arbora::models::resolve(arbora::models::DEFAULT_MODEL).expect("the default model can be had");
    let file = ModelFile::open(&path).expect("the default model is readable");
    let tokenizer = file.tokenizer().expect("the default model has a tokenizer");
    Model {
        file,
        tokenizer: Arc::new(tokenizer),
    }
});

/// What one completion is asked with.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) prompt: Vec<u32>,
    pub(crate) sampling: SamplingParams,
    pub(crate) max_tokens: usize,
    pub(crate) grammar: Option<GrammarState>,
}

pub(crate) struct Server {
    pub(crate) handle: EngineHandle,
    thread: Option<JoinHandle<EngineExit>>,
}

impl Server {
    pub(crate) fn start(isa: Isa, n_threads: usize, change: impl FnOnce(&mut EngineConfig)) -> Self {
        let mut config = EngineConfig::new(32 * CONTEXT / 16, CONTEXT);
        config.model_stop_tokens = MODEL.tokenizer.stop_token_ids().to_vec();
        // How long a request waits here depends on the machine, and with it what would be refused.
        config.max_queue_wait = None;
        change(&mut config);
        let cpu = CpuConfig {
            n_threads,
            isa: Some(isa),
            pinning: Pinning::Auto,
        };
        let mut backend = CpuBackend::new(cpu).expect("the instruction set is there");
        let decoder = MODEL
            .file
            .load_decoder(&mut backend, CONTEXT, config.forward_limits())
            .expect("the default model loads");
        let tokens = 0..MODEL.tokenizer.n_vocab() as u32;
        let bytes = Arc::new(TokenBytes::new(tokens.map(|id| MODEL.tokenizer.token_bytes(id))));
        let (handle, thread) = engine::spawn(backend, decoder, bytes, config).expect("the engine starts");
        Server {
            handle,
            thread: Some(thread),
        }
    }

    pub(crate) fn submit(&self, ask: &Ask) -> Result<mpsc::Receiver<Event>, SubmitError> {
        let (events, receiver) = mpsc::channel(Request::event_capacity(ask.max_tokens));
        let id = self.handle.next_id();
        self.handle.submit(Request {
            sampling: ask.sampling,
            grammar: ask.grammar.clone(),
            ..Request::new(id, ask.prompt.clone(), ask.max_tokens, Instant::now(), events)
        })?;
        Ok(receiver)
    }

    /// One after the other, the cache emptied in between where `cold`.
    pub(crate) fn one_by_one(&self, asks: &[Ask], temperature: Cache) -> Vec<Outcome> {
        let answer = |ask: &Ask| {
            if temperature == Cache::Cold {
                self.handle.flush_cache();
            }
            Outcome::wait(self.submit(ask).expect("accepted"))
        };
        asks.iter().map(answer).collect()
    }

    /// All at once.
    pub(crate) fn crowd(&self, asks: &[Ask]) -> Vec<Outcome> {
        let receivers: Vec<_> = asks
            .iter()
            .map(|ask| self.submit(ask).expect("accepted"))
            .collect();
        receivers.into_iter().map(Outcome::wait).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.handle.drain(std::time::Duration::ZERO);
        let exit = self
            .thread
            .take()
            .expect("joined once")
            .join()
            .expect("the engine thread ends");
        if !std::thread::panicking() {
            assert_eq!(exit, EngineExit::Drained);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cache {
    Cold,
    Warm,
}

#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) tokens: Vec<u32>,
    pub(crate) finished: Finished,
}

impl Outcome {
    pub(crate) fn wait(mut receiver: mpsc::Receiver<Event>) -> Outcome {
        let mut tokens = Vec::new();
        loop {
            match receiver
                .blocking_recv()
                .expect("an ending comes before the channel closes")
            {
                Event::Prompt(_) => {}
                Event::Tokens(more) => tokens.extend(more.ids),
                Event::Finished(finished) => return Outcome { tokens, finished },
            }
        }
    }
}
