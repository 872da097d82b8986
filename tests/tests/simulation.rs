//! Seeded random schedules on the toy model: whatever the engine does to serve them, the text is the one of a
//! plain evaluation, pages are conserved at every step, and every request ends once.

#![expect(clippy::print_stdout, reason = "a simulation says what it covered")]

use std::sync::Arc;
use std::time::Duration;

use arbora_constrained::{Grammar, Limits};
use arbora_radix::{EvictionPolicy, Namespace};
use arbora_runtime::draft::Drafters;
use arbora_runtime::engine::{EngineConfig, SchedulePolicy, Turn};
use arbora_runtime::metrics::Counter;
use arbora_runtime::request::{LogprobsWanted, SamplingParams, StopConditions, SubmitError};
use arbora_runtime::thought_limit::{ThoughtLimit, ThoughtMarks};
use arbora_runtime::token_bytes::TokenBytes;
use arbora_tests::oracle::{spell, token_bytes, vocabulary};
use arbora_tests::random::Random;
use arbora_tests::toy::N_VOCAB;
use arbora_tests::world::{Ask, Device, World};

const N_SCHEDULES: u64 = 10_000;

fn random_config(random: &mut Random) -> EngineConfig {
    let page_size = random.pick(&[1, 2, 4, 4, 16]);
    let pool_tokens = random.pick(&[24, 48, 96, 200, 400]);
    let n_pages = (pool_tokens / page_size).max(2);
    let max_running = random.between(1, 8);
    let mut config = EngineConfig::new(n_pages, 80);
    config.page_size = page_size;
    config.max_running = max_running;
    config.max_batch_tokens = max_running + random.pick(&[1, 2, 5, 16, 64]);
    config.max_waiting = random.pick(&[3, 8, 64]);
    config.max_waiting_tokens = random.pick(&[60, 4000]);
    config.schedule_policy = random.pick(&SchedulePolicy::NAMES).1;
    config.eviction_policy = random.pick(&[
        EvictionPolicy::Lru,
        EvictionPolicy::Lfu,
        EvictionPolicy::Slru,
        EvictionPolicy::Priority,
    ]);
    config.expected_output = random.pick(&[0.0, 0.0, 0.3, 0.7, 1.0]);
    config.max_draft_rows = random.pick(&[0, 1, 4, 64]);
    config.drafters = Drafters {
        ngram: random.one_in(2),
        radix: random.one_in(2),
    };
    config.model_stop_tokens = vec![7];
    config
}

/// Prompts grow from a few common beginnings, so that they share, diverge inside pages and repeat.
struct Prompts {
    known: Vec<Vec<u32>>,
    n_tokens: usize,
}

impl Prompts {
    fn draw(&mut self, random: &mut Random) -> Vec<u32> {
        if !self.known.is_empty() && random.one_in(5) {
            return self.known[random.below(self.known.len())].clone();
        }
        let mut prompt = if self.known.is_empty() || random.one_in(4) {
            Vec::new()
        } else {
            let base = &self.known[random.below(self.known.len())];
            base[..random.between(0, base.len())].to_vec()
        };
        for _ in 0..random.between(1, 20) {
            prompt.push(random.below(self.n_tokens) as u32);
        }
        prompt.truncate(50);
        self.known.push(prompt.clone());
        prompt
    }
}

/// Short marks, which the toy model writes by itself now and then.
fn random_thoughts(random: &mut Random) -> ThoughtLimit {
    let texts: Vec<Vec<u8>> = (0..N_VOCAB as u32).map(token_bytes).collect();
    let marks = ThoughtMarks {
        opening: random.one_in(2).then(|| "a".to_owned()),
        closing: "ab".to_owned(),
        closing_tokens: spell(if random.one_in(2) { b"ab" } else { b"aab" as &[u8] }).into(),
        token_bytes: Arc::new(TokenBytes::new(texts.iter().map(Vec::as_slice))),
    };
    ThoughtLimit::new(random.below(8), Arc::new(marks))
}

fn random_ask(random: &mut Random, prompts: &mut Prompts, grammars: &[Grammar]) -> Ask {
    let max_tokens = if random.one_in(20) {
        0
    } else {
        random.between(1, 30)
    };
    let mut ask = Ask::new(&prompts.draw(random), max_tokens);
    ask.namespace = Namespace {
        adapter: u32::from(random.one_in(5)),
        ..Namespace::default()
    };
    if random.one_in(2) {
        ask.sampling = SamplingParams {
            temperature: 1.0,
            seed: random.bits() % 4,
            ..SamplingParams::default()
        };
    }
    if random.one_in(3) {
        ask.sampling.repetition_penalty = random.pick(&[1.0, 1.2]);
        ask.sampling.presence_penalty = random.pick(&[0.0, 0.5]);
        ask.sampling.frequency_penalty = random.pick(&[0.0, -0.25]);
        let bias = |random: &mut Random| (random.below(N_VOCAB) as u32, random.pick(&[-100.0, 2.0]));
        ask.logit_bias = (0..random.below(3)).map(|_| bias(random)).collect();
    }
    ask.logprobs = LogprobsWanted {
        output: random.one_in(4).then(|| random.below(4)),
        prompt: random.one_in(4).then(|| random.below(4)),
        listed: (0..random.below(3))
            .map(|_| random.below(N_VOCAB) as u32)
            .collect(),
    };
    let strings = ["ab", "é", "bca", "abab", "c"];
    ask.stop = StopConditions {
        token_ids: if random.one_in(3) {
            vec![random.below(N_VOCAB) as u32]
        } else {
            Vec::new()
        },
        strings: strings
            .iter()
            .filter(|_| random.one_in(8))
            .map(|&s| s.to_owned())
            .collect(),
        ignore_eos: random.one_in(2),
        min_tokens: if random.one_in(3) { random.below(12) } else { 0 },
    };
    if random.one_in(3) {
        ask.grammar = Some(grammars[random.below(grammars.len())].clone());
    } else if random.one_in(8) {
        ask.thoughts = Some(random_thoughts(random));
    }
    ask.priority = random.below(3) as i32;
    ask.queue_timeout = random
        .one_in(8)
        .then(|| Duration::from_millis(random.below(40) as u64));
    ask.total_timeout = random
        .one_in(8)
        .then(|| Duration::from_millis(random.below(60) as u64));
    ask
}

/// Grammars over the toy model's letters: choices, text that is forced for a while, characters of two bytes.
fn grammars() -> Vec<Grammar> {
    let vocabulary = vocabulary(&[7]);
    let compile = |regex| Grammar::compile_regex(&vocabulary, regex, &Limits::default());
    let regexes = [
        "abcabc(a|é)*cccc",
        "(ab|c)+bcbcbc",
        "[abc]{2,9}",
        "aé*b",
        "abbcabcabbc",
    ];
    regexes.map(|regex| compile(regex).expect("a grammar")).to_vec()
}

/// What a schedule came to.
#[derive(Debug, Default)]
struct Counts {
    /// Preemptions, cached tokens, copied tokens.
    shares: [u64; 3],
    /// Tokens by `Metrics::DRAFT_SOURCES`.
    drafted: [u64; 3],
    accepted: [u64; 3],
}

/// Runs one schedule, on a device that is done at once, or on one that computes while the next step is
/// planned.
fn simulate(seed: u64, is_late: bool, grammars: &[Grammar]) -> Counts {
    let mut random = Random::new(seed);
    let mut config = random_config(&mut random);
    config.n_tenants = 1 + seed as usize % 3;
    let n_tenants = config.n_tenants;
    // As much room for each as there would be for one alone, or the queue is never long.
    config.max_waiting *= n_tenants;
    config.max_waiting_tokens *= n_tenants;
    let not_finite_one_in = if random.one_in(4) { 50 } else { 0 };
    // Where rows take time, steps are kept short: another chunking, the same text. Drafts would seldom pay.
    let row_time = match config.max_draft_rows {
        0 => Duration::from_micros(300),
        _ => Duration::ZERO,
    };
    let device = Device {
        not_finite_one_in,
        late: is_late.then_some(seed),
    };
    let mut world = World::with_device(config, device);
    world.row_time = row_time;
    let mut prompts = Prompts {
        known: Vec::new(),
        n_tokens: random.pick(&[2, 3, 40]),
    };
    let n_requests = random.between(1, 16);
    let mut n_submitted = 0;
    let mut n_turns = 0;
    loop {
        while n_submitted < n_requests && random.one_in(3) {
            n_submitted += 1;
            let mut ask = random_ask(&mut random, &mut prompts, grammars);
            ask.tenant = (ask.prompt.len() % n_tenants) as u32;
            match world.submit(&ask) {
                Ok(_)
                | Err(SubmitError::QueueFull { .. })
                | Err(SubmitError::NeverFits { .. })
                | Err(SubmitError::LongerThanQueue { .. })
                | Err(SubmitError::ContextExceeded { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        if random.one_in(30) && !world.clients.is_empty() {
            let victim = random.below(world.clients.len());
            world.clients[victim].hang_up();
        }
        if random.one_in(40) {
            world.handle.flush_cache();
        }
        let turn = world.turn();
        if turn == Turn::Idle && n_submitted == n_requests {
            break;
        }
        n_turns += 1;
        assert!(
            n_turns < 3000,
            "requests of at most 80 tokens take no {n_turns} turns"
        );
    }
    world.verify_quiet();
    let metrics = world.handle.metrics();
    let [drafted, accepted] = [&metrics.drafted_tokens, &metrics.accepted_tokens];
    Counts {
        shares: [
            &metrics.preemptions,
            &metrics.cached_tokens,
            &metrics.copied_tokens,
        ]
        .map(Counter::value),
        drafted: drafted.each_ref().map(Counter::value),
        accepted: accepted.each_ref().map(Counter::value),
    }
}

fn simulate_range(first: u64, n: u64, is_late: bool) {
    let grammars = grammars();
    let mut seen = Counts::default();
    for seed in first..first + n {
        let result = std::panic::catch_unwind(|| simulate(seed, is_late, &grammars));
        let counts = result.unwrap_or_else(|_| panic!("schedule with seed {seed} failed"));
        let sums = [&mut seen.shares, &mut seen.drafted, &mut seen.accepted];
        for (sums, counts) in sums
            .into_iter()
            .zip([counts.shares, counts.drafted, counts.accepted])
        {
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
    }
    println!("{n} schedules: {seen:?}");
    let [n_preemptions, n_cached, n_copied] = seen.shares;
    assert!(
        n_preemptions > n / 20,
        "the schedules are tight enough to preempt"
    );
    // What a grammar forces is drafted often; a text that stood before, by luck only.
    let least = [n / 10, n / 125, n / 100];
    for ((drafted, accepted), least) in seen.drafted.into_iter().zip(seen.accepted).zip(least) {
        assert!(
            accepted > least && drafted > accepted + n / 20,
            "drafts of each source are accepted and refused"
        );
    }
    assert!(
        n_cached > n && n_copied > n / 10,
        "the schedules share enough to be hit"
    );
}

#[test]
fn random_schedules_give_the_plain_text_first_half() {
    simulate_range(0, N_SCHEDULES / 2, false);
}

#[test]
fn random_schedules_give_the_plain_text_second_half() {
    simulate_range(N_SCHEDULES / 2, N_SCHEDULES / 2, false);
}

#[test]
fn they_do_on_a_device_that_computes_late_first_half() {
    simulate_range(0, N_SCHEDULES / 2, true);
}

#[test]
fn they_do_on_a_device_that_computes_late_second_half() {
    simulate_range(N_SCHEDULES / 2, N_SCHEDULES / 2, true);
}
