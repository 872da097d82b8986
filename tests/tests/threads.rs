//! The engine on its own thread, with clients on theirs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use arbora_runtime::engine::{Engine, EngineConfig, EngineExit, EngineHandle, Turn};
use arbora_runtime::fair_limit::{FairLimit, Taken};
use arbora_runtime::request::{Event, Finished, Request, SamplingParams, SubmitError};
use arbora_runtime::token_bytes::TokenBytes;
use arbora_tests::oracle::expected;
use arbora_tests::random::Random;
use arbora_tests::toy::ToyBackend;
use tokio::sync::mpsc;

fn build(config: EngineConfig) -> (Engine<ToyBackend>, EngineHandle) {
    let (mut backend, _) = ToyBackend::new(0);
    let decoder = backend.decoder(config.context, config.forward_limits());
    let bytes = Arc::new(TokenBytes::new([]));
    Engine::new(backend, decoder, bytes, config).expect("the configuration is valid")
}

fn start(config: EngineConfig) -> (EngineHandle, thread::JoinHandle<EngineExit>) {
    let (engine, handle) = build(config);
    (handle, thread::spawn(move || engine.run()))
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
    let id = handle.next_id();
    let request = Request {
        sampling: SamplingParams::GREEDY,
        ..Request::new(id, prompt, max_tokens, Instant::now(), sender)
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
fn tenants_that_hammer_the_queue_leave_every_counter_at_zero() {
    const N_TENANTS: usize = 4;
    let mut config = config();
    config.n_tenants = N_TENANTS;
    config.max_waiting_tokens = 400;
    let (mut engine, handle) = build(config);
    let is_over = Arc::new(AtomicBool::new(false));
    let engine = {
        let is_over = Arc::clone(&is_over);
        thread::spawn(move || {
            while engine.turn(&Instant::now) == Turn::Busy || !is_over.load(Ordering::SeqCst) {
                thread::yield_now();
            }
            engine
        })
    };
    let client = |tenant: u32, seed: u64| {
        let handle = handle.clone();
        move || {
            let mut random = Random::new(seed);
            let (mut listeners, mut n_accepted) = (Vec::new(), 0);
            for _ in 0..400 {
                let prompt = vec![tenant; random.between(1, 60)];
                let (mut request, events) = request(&handle, prompt, random.between(1, 10));
                request.tenant = tenant;
                match handle.submit(request) {
                    Ok(()) => {
                        n_accepted += 1;
                        if !random.one_in(3) {
                            listeners.push(events);
                        }
                    }
                    Err(SubmitError::QueueFull { no_room, .. }) => {
                        assert!(no_room.n_held <= Some(no_room.limit), "seed {seed}: {no_room:?}");
                        if random.one_in(2) {
                            listeners.drain(..).map(listen).for_each(drop);
                        }
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            listeners.into_iter().map(listen).for_each(drop);
            n_accepted
        }
    };
    let watcher = {
        let (metrics, is_over) = (handle.metrics(), Arc::clone(&is_over));
        thread::spawn(move || {
            while !is_over.load(Ordering::SeqCst) {
                let now = metrics.gauges();
                let n_pages = now.pages_free + now.pages_cached + now.pages_owned;
                assert_eq!((n_pages, now.pages_total), (40, 40), "of one moment");
                assert!(
                    now.pages_evictable <= now.pages_cached && now.waiting <= 20,
                    "{now:?}"
                );
            }
        })
    };
    let clients: Vec<_> = (0..2 * N_TENANTS)
        .map(|idx| thread::spawn(client((idx % N_TENANTS) as u32, idx as u64)))
        .collect();
    let n_accepted = clients
        .into_iter()
        .map(|client| client.join().expect("the client is content"));
    let n_accepted: u64 = n_accepted.sum();
    is_over.store(true, Ordering::SeqCst);
    let mut engine = engine.join().expect("the engine did not panic");
    watcher.join().expect("every look was right");
    let metrics = handle.metrics();
    assert_eq!(n_accepted, metrics.requests_accepted.value());
    assert!(metrics.requests_refused.value() > 0, "the queue was full");
    assert_eq!(metrics.gauges().waiting, 0);
    assert_eq!(metrics.gauges().waiting_tokens, 0);
    assert_eq!(handle.n_in_flight(), 0);
    // Each tenant finds its place and half of the 16 that are shared, as at the start.
    for tenant in 0..N_TENANTS as u32 {
        let submit = || {
            let (mut request, events) = request(&handle, vec![tenant], 1);
            request.tenant = tenant;
            handle.submit(request).map(|()| events).ok()
        };
        let accepted: Vec<_> = std::iter::from_fn(submit).collect();
        assert_eq!(accepted.len(), 1 + 8, "tenant {tenant}");
        while engine.turn(&Instant::now) == Turn::Busy {}
        accepted.into_iter().map(listen).for_each(drop);
    }
}

#[test]
fn a_limit_hammered_by_many_holds_and_keeps_each_tenants_own_part() {
    const N_TENANTS: usize = 4;
    let limit = Arc::new(FairLimit::new("places", 100, N_TENANTS));
    // Of 100 each has 3 for itself.
    let n_held = Arc::new(AtomicUsize::new(0));
    let hammer = |tenant: usize, seed: u64| {
        let (limit, n_held) = (Arc::clone(&limit), Arc::clone(&n_held));
        move || {
            let mut random = Random::new(seed);
            let mut held: Vec<(Taken, usize)> = Vec::new();
            for _ in 0..20_000 {
                if held.is_empty() || random.one_in(2) {
                    let n = random.between(1, 9);
                    if let Ok(taken) = limit.take(tenant, n) {
                        let before = n_held.fetch_add(n, Ordering::SeqCst);
                        assert!(before + n <= 100, "seed {seed}: {before} and {n}");
                        held.push((taken, n));
                    }
                } else {
                    let (taken, n) = held.swap_remove(random.below(held.len()));
                    n_held.fetch_sub(n, Ordering::SeqCst);
                    limit.give_back(tenant, taken);
                }
            }
            for (taken, n) in held {
                n_held.fetch_sub(n, Ordering::SeqCst);
                limit.give_back(tenant, taken);
            }
        }
    };
    let quiet = {
        let limit = Arc::clone(&limit);
        move || {
            for _ in 0..20_000 {
                let own: Vec<Taken> = (0..3)
                    .map(|_| limit.take(0, 1).expect("its own part is never refused"))
                    .collect();
                own.into_iter().for_each(|taken| limit.give_back(0, taken));
            }
        }
    };
    let mut threads = vec![thread::spawn(quiet)];
    threads.extend((0..6).map(|idx| thread::spawn(hammer(1 + idx % 3, idx as u64))));
    for thread in threads {
        thread.join().expect("nobody was refused what is its own");
    }
    assert_eq!(limit.n_taken(), 0);
    let mut n_alone = 0;
    for tenant in 0..N_TENANTS {
        let all: Vec<Taken> = std::iter::from_fn(|| limit.take(tenant, 1).ok()).collect();
        n_alone += all.len();
        all.into_iter().for_each(|taken| limit.give_back(tenant, taken));
    }
    assert_eq!(
        n_alone,
        N_TENANTS * (3 + 44),
        "each finds half of the 88 and its own"
    );
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
