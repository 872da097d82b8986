//! Same request, same tokens (contract C3), on the real default model: alone, in a crowd, after a hit, after
//! a preemption, in chunks of any size, with any number of threads; for every instruction set of this
//! machine.
//!
//! The engine's debug assertions check page conservation (C4) in every step of these runs.

use std::sync::{Arc, LazyLock};
use std::thread::JoinHandle;
use std::time::Instant;

use arbora_kernels::cpu::{CpuBackend, CpuConfig, Isa, Pinning};
use arbora_radix::Namespace;
use arbora_runtime::engine::{self, EngineConfig, EngineExit, EngineHandle};
use arbora_runtime::model::ModelFile;
use arbora_runtime::request::{
    Event, FinishReason, Finished, Request, SamplingParams, StopConditions, SubmitError,
};
use arbora_runtime::token_bytes::TokenBytes;
use arbora_runtime::tokenizer::{SpecialTokens, Tokenizer};
use tokio::sync::mpsc;

const CONTEXT: usize = 1024;

struct Model {
    file: ModelFile,
    tokenizer: Tokenizer,
}

/// Opened once; every engine loads its own copy of the weights.
static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let path = arbora::models::resolve(arbora::models::DEFAULT_MODEL).expect("the default model can be had");
    let file = ModelFile::open(&path).expect("the default model is readable");
    let tokenizer = file.tokenizer().expect("the default model has a tokenizer");
    Model { file, tokenizer }
});

/// What one completion is asked with.
#[derive(Clone, Debug)]
struct Ask {
    prompt: Vec<u32>,
    sampling: SamplingParams,
    max_tokens: usize,
}

const SYSTEM: &str = "<|im_start|>system\nYou are a patient assistant who answers in short, complete sentences. \
    You never invent facts; where you do not know something you say so, and you explain how one could \
    find out. You write plain prose without lists, and you do not repeat the question.<|im_end|>\n";

const TOPICS: [&str; 8] = [
    "why the sea is salty",
    "how a bicycle stays upright",
    "what a radix tree is good for",
    "how bread rises",
    "who wrote the first dictionary",
    "what makes thunder",
    "how to prune an apple tree",
    "why cats purr",
];

/// `n` requests: half greedy, half drawn with a seed; most share the system prompt, some carry a long
/// context, some share a prefix that ends inside a page, some are the same but for the seed.
fn asks(n: usize) -> Vec<Ask> {
    let long = include_str!("../golden/text.txt");
    let ask = |idx: usize| {
        let topic = TOPICS[idx % TOPICS.len()];
        let context = match idx % 4 {
            3 => &long[..long.len().min(600 + 40 * idx)],
            _ => "",
        };
        let greeting = &"Hello there, my friend. "[..(idx * 5) % 24];
        let text = format!(
            "{SYSTEM}<|im_start|>user\n{greeting}{context}\nTell me {topic}.<|im_end|>\n<|im_start|>assistant\n"
        );
        let sampling = match idx % 2 {
            0 => SamplingParams {
                temperature: 0.0,
                ..SamplingParams::default()
            },
            _ => SamplingParams {
                temperature: 0.9,
                top_k: 50 * (idx as u32 % 3),
                top_p: 0.95,
                min_p: 0.0,
                seed: 1000 + idx as u64,
            },
        };
        let prompt = MODEL
            .tokenizer
            .encode(&text, SpecialTokens::Parse)
            .expect("the text can be encoded");
        Ask {
            prompt,
            sampling,
            max_tokens: 16 + idx % 9,
        }
    };
    (0..n).map(ask).collect()
}

struct Server {
    handle: EngineHandle,
    thread: Option<JoinHandle<EngineExit>>,
}

impl Server {
    fn start(isa: Isa, n_threads: usize, change: impl FnOnce(&mut EngineConfig)) -> Self {
        let mut config = EngineConfig::new(32 * CONTEXT / 16, CONTEXT);
        config.model_stop_tokens = MODEL.tokenizer.stop_token_ids().to_vec();
        change(&mut config);
        let cpu = CpuConfig {
            n_threads,
            isa: Some(isa),
            pinning: Pinning::Free,
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

    fn submit(&self, ask: &Ask) -> Result<mpsc::Receiver<Event>, SubmitError> {
        let (events, receiver) = mpsc::channel(Request::event_capacity(ask.max_tokens));
        self.handle.submit(Request {
            id: self.handle.next_id(),
            prompt: ask.prompt.clone(),
            namespace: Namespace::default(),
            sampling: ask.sampling,
            choice_idx: 0,
            max_tokens: ask.max_tokens,
            stop: StopConditions::default(),
            grammar: None,
            priority: 0,
            arrived: Instant::now(),
            queue_timeout: None,
            total_timeout: None,
            events,
        })?;
        Ok(receiver)
    }

    /// One after the other, the cache emptied in between where `cold`.
    fn one_by_one(&self, asks: &[Ask], temperature: Cache) -> Vec<Outcome> {
        let answer = |ask: &Ask| {
            if temperature == Cache::Cold {
                self.handle.flush_cache();
            }
            Outcome::wait(self.submit(ask).expect("accepted"))
        };
        asks.iter().map(answer).collect()
    }

    /// All at once.
    fn crowd(&self, asks: &[Ask]) -> Vec<Outcome> {
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
enum Cache {
    Cold,
    Warm,
}

#[derive(Debug)]
struct Outcome {
    tokens: Vec<u32>,
    finished: Finished,
}

impl Outcome {
    fn wait(mut receiver: mpsc::Receiver<Event>) -> Outcome {
        let mut tokens = Vec::new();
        loop {
            match receiver
                .blocking_recv()
                .expect("an ending comes before the channel closes")
            {
                Event::Tokens(more) => tokens.extend(more),
                Event::Finished(finished) => return Outcome { tokens, finished },
            }
        }
    }
}

fn assert_same<'a>(expected: impl IntoIterator<Item = &'a Outcome>, found: &[Outcome], how: &str) {
    for (idx, (expected, found)) in expected.into_iter().zip(found).enumerate() {
        assert_eq!(expected.tokens, found.tokens, "request {idx} {how}");
        assert_eq!(
            expected.finished.reason, found.finished.reason,
            "request {idx} {how}"
        );
    }
}

fn total(outcomes: &[Outcome], count: impl Fn(&Finished) -> usize) -> usize {
    outcomes.iter().map(|outcome| count(&outcome.finished)).sum()
}

/// Every way of serving `asks` on `isa` gives the tokens of serving each alone from an empty cache.
fn always_the_same(isa: Isa, asks: &[Ask]) {
    let server = Server::start(isa, 1, |_| {});
    let alone = server.one_by_one(asks, Cache::Cold);
    assert_eq!(
        total(&alone, |f| f.usage.cached_tokens),
        0,
        "the cache was emptied each time"
    );
    assert!(alone.iter().all(|o| matches!(
        o.finished.reason,
        FinishReason::Length | FinishReason::StopToken(_)
    )));
    let distinct: std::collections::HashSet<_> = alone.iter().map(|o| &o.tokens).collect();
    assert!(
        distinct.len() * 2 > asks.len(),
        "the requests differ enough to be told apart"
    );

    server.handle.flush_cache();
    let warm = server.one_by_one(asks, Cache::Warm);
    assert!(total(&warm, |f| f.usage.cached_tokens) > 0, "prefixes were hit");
    assert_same(&alone, &warm, "after others filled the cache");
    let again = server.one_by_one(asks, Cache::Warm);
    let copied = total(&again, |f| f.usage.copied_tokens);
    assert!(copied > 0, "parts of pages were copied");
    assert_same(&alone, &again, "after a hit on itself");
    drop(server);

    for n_threads in [1, 2, 3] {
        let server = Server::start(isa, n_threads, |_| {});
        assert_same(
            &alone,
            &server.crowd(asks),
            &format!("in a crowd, {n_threads} threads"),
        );
        assert_same(
            &alone,
            &server.crowd(asks),
            &format!("in a crowd that hits, {n_threads} threads"),
        );
    }
    for (max_running, max_batch_tokens) in [(1, 2), (5, 23), (32, 100)] {
        let server = Server::start(isa, 2, |config| {
            config.max_running = max_running;
            config.max_batch_tokens = max_batch_tokens;
        });
        let few = &asks[..asks.len().min(if max_batch_tokens == 2 { 3 } else { asks.len() })];
        let how = format!("in steps of at most {max_batch_tokens} rows");
        assert_same(&alone[..few.len()], &server.crowd(few), &how);
    }
    squeezed(isa, asks, &alone);
}

/// A pool that holds the longest request and little more, all of it given away to prompts: outputs that grow
/// have to preempt each other.
fn squeezed(isa: Isa, asks: &[Ask], alone: &[Outcome]) {
    // One long request would hold everybody back until the pool is empty.
    let is_short = |ask: &Ask| ask.prompt.len() < 200;
    let length = |ask: &Ask| ask.prompt.len() + ask.max_tokens;
    let (asks, alone): (Vec<Ask>, Vec<&Outcome>) = asks
        .iter()
        .cloned()
        .zip(alone)
        .filter(|(ask, _)| is_short(ask))
        .unzip();
    let longest = asks.iter().map(length).max().expect("some are short");
    let server = Server::start(isa, 2, |config| {
        config.n_pages = longest.div_ceil(16) + 4;
        config.expected_output = 0.0;
    });
    let crowd = server.crowd(&asks);
    assert!(
        total(&crowd, |f| f.usage.n_preemptions) > 0,
        "the pool was too small for the crowd"
    );
    assert_same(alone, &crowd, "with preemptions");
}

#[test]
fn every_request_gives_the_same_tokens_however_it_is_served() {
    for isa in Isa::available() {
        // The same ways for all; the slower the kernels, the fewer the requests.
        let n_asks = match isa {
            Isa::Avx512 => 32,
            Isa::Avx2 => 12,
            Isa::Scalar => 6,
        };
        always_the_same(isa, &asks(n_asks));
    }
}
