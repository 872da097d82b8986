//! The engine on its own thread, with clients on theirs.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use arbora_radix::Namespace;
use arbora_runtime::engine::{EngineConfig, EngineExit, EngineHandle, spawn};
use arbora_runtime::request::{
    Event, Finished, LogprobsWanted, Request, SamplingParams, StopConditions, SubmitError,
};
use arbora_runtime::token_bytes::TokenBytes;
use arbora_tests::oracle::expected;
use arbora_tests::random::Random;
use arbora_tests::toy::ToyBackend;
use tokio::sync::mpsc;

fn start(config: EngineConfig) -> (EngineHandle, thread::JoinHandle<EngineExit>) {
    let (mut backend, _) = ToyBackend::new(0);
    let decoder = backend.decoder(config.context, config.forward_limits());
    let bytes = Arc::new(TokenBytes::new([]));
    spawn(backend, decoder, bytes, config).expect("the configuration is valid")
}

fn config() -> EngineConfig {
    let mut config = EngineConfig::new(40, 100);
    config.page_size = 4;
    config.max_running = 6;
    config.max_batch_tokens = 16;
    config.max_waiting = 20;
    config
}

fn request(handle: &EngineHandle, prompt: Vec<u32>, max_tokens: usize) -> (Request, mpsc::Receiver<Event>) {
    let (sender, receiver) = mpsc::channel(Request::event_capacity(max_tokens));
    let request = Request {
        id: handle.next_id(),
        prompt,
        namespace: Namespace::default(),
        tenant: 0,
        sampling: SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        },
        choice_idx: 0,
        max_tokens,
        stop: StopConditions::default(),
        grammar: None,
        logit_bias: Vec::new(),
        logprobs: LogprobsWanted::default(),
        priority: 0,
        arrived: Instant::now(),
        queue_timeout: None,
        total_timeout: None,
        events: sender,
    };
    (request, receiver)
}

/// Reads until the channel is closed: tokens and the one ending.
fn listen(mut events: mpsc::Receiver<Event>) -> (Vec<u32>, Finished) {
    let mut tokens = Vec::new();
    let mut finished = None;
    while let Some(event) = events.blocking_recv() {
        assert!(finished.is_none(), "an event after the ending");
        match event {
            Event::Prompt(_) => {}
            Event::Tokens(more) => tokens.extend(more.ids),
            Event::Finished(ending) => finished = Some(ending),
        }
    }
    (tokens, finished.expect("every accepted request ends"))
}

#[test]
fn clients_on_many_threads_get_their_own_text() {
    let (handle, engine) = start(config());
    let client = |seed: u64| {
        let handle = handle.clone();
        move || {
            let mut random = Random::new(seed);
            let mut n_served = 0;
            while n_served < 50 {
                let prompt: Vec<u32> = (0..random.between(1, 40)).map(|i| (i % 3) as u32 + 8).collect();
                let (request, events) = request(&handle, prompt, random.between(1, 20));
                let expected = expected(&request, None, &[], 0);
                match handle.submit(request) {
                    Ok(()) if random.one_in(5) => drop(events),
                    Ok(()) => {
                        let (tokens, finished) = listen(events);
                        assert_eq!(tokens, expected.tokens, "seed {seed}");
                        assert_eq!(Some(finished.reason), expected.reason);
                        n_served += 1;
                    }
                    Err(SubmitError::QueueFull { .. }) => thread::yield_now(),
                    Err(error) => panic!("{error}"),
                }
            }
        }
    };
    let clients: Vec<_> = (0..4).map(|seed| thread::spawn(client(seed))).collect();
    for client in clients {
        client.join().expect("the client is content");
    }
    handle.drain(Duration::from_secs(60));
    assert_eq!(
        engine.join().expect("the engine did not panic"),
        EngineExit::Drained
    );
    assert_eq!(handle.n_in_flight(), 0);
}

#[test]
fn requests_that_race_with_a_drain_are_refused_or_ended() {
    for seed in 0..50 {
        let (handle, engine) = start(config());
        let client = {
            let handle = handle.clone();
            move || {
                let mut listeners = Vec::new();
                loop {
                    let (request, events) = request(&handle, vec![1, 2, 3], 10);
                    match handle.submit(request) {
                        Ok(()) => listeners.push(events),
                        Err(SubmitError::QueueFull { .. }) => thread::yield_now(),
                        Err(SubmitError::ShuttingDown) => break,
                        Err(error) => panic!("{error}"),
                    }
                }
                listeners.into_iter().map(listen).count()
            }
        };
        let clients: Vec<_> = (0..2).map(|_| thread::spawn(client.clone())).collect();
        while handle.metrics().requests_accepted.value() < seed {
            thread::yield_now();
        }
        handle.drain(Duration::ZERO);
        assert_eq!(
            engine.join().expect("the engine did not panic"),
            EngineExit::Drained
        );
        let n_ended: usize = clients
            .into_iter()
            .map(|client| client.join().expect("the client is content"))
            .sum();
        assert_eq!(
            n_ended as u64,
            handle.metrics().requests_accepted.value(),
            "seed {seed}"
        );
    }
}

#[test]
fn an_engine_nobody_can_reach_finishes_and_returns() {
    let (handle, engine) = start(config());
    let (request, events) = request(&handle, vec![1, 2, 3], 10);
    handle.submit(request).expect("it fits");
    drop(handle);
    let (tokens, _) = listen(events);
    assert_eq!(tokens.len(), 10);
    assert_eq!(
        engine.join().expect("the engine did not panic"),
        EngineExit::Drained
    );
}
