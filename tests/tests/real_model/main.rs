//! Same request, same tokens (contract C3), on the real default model: alone, in a crowd, after a hit, after
//! a preemption, in chunks of any size, with any number of threads; for every instruction set of this
//! machine.
//!
//! The engine's debug assertions check page conservation (C4) in every step of these runs.

mod constrained;
mod server;

use arbora_kernels::cpu::Isa;
use arbora_runtime::request::{FinishReason, Finished, SamplingParams};
use arbora_runtime::tokenizer::SpecialTokens;
use server::{Ask, Cache, MODEL, Outcome, Server};

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
    let long = include_str!("../../golden/text.txt");
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
            0 => SamplingParams::GREEDY,
            _ => SamplingParams {
                temperature: 0.9,
                top_k: 50 * (idx as u32 % 3),
                top_p: 0.95,
                min_p: 0.0,
                repetition_penalty: [1.0, 1.2][idx / 2 % 2],
                presence_penalty: [0.0, 0.3][idx / 4 % 2],
                frequency_penalty: [0.0, 0.1][idx / 8 % 2],
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
            grammar: None,
        }
    };
    (0..n).map(ask).collect()
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
fn a_nucleus_of_no_probability_is_greedy_at_any_temperature() {
    let server = Server::start(Isa::best(), 2, |_| {});
    let greedy: Vec<Ask> = asks(4)
        .into_iter()
        .map(|ask| drawn(ask, SamplingParams::GREEDY))
        .collect();
    let expected = server.crowd(&greedy);
    for temperature in [0.5, 1.0, 100.0] {
        let nucleus = SamplingParams {
            temperature,
            top_p: 0.0,
            seed: 7,
            ..SamplingParams::default()
        };
        let asks: Vec<Ask> = greedy.iter().map(|ask| drawn(ask.clone(), nucleus)).collect();
        assert_same(&expected, &server.crowd(&asks), &format!("at {temperature}"));
    }
}

/// The same request, its tokens drawn in another way.
fn drawn(ask: Ask, sampling: SamplingParams) -> Ask {
    Ask { sampling, ..ask }
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
