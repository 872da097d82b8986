//! Too little of everything: pages, queue places, context. What fits is served with the right text, what
//! never fits is refused with the numbers.

use std::time::Duration;

use arbora_runtime::engine::{EngineConfig, Turn};
use arbora_runtime::fair_limit::NoRoom;
use arbora_runtime::request::{SamplingParams, SubmitError};
use arbora_tests::random::Random;
use arbora_tests::toy::N_VOCAB;
use arbora_tests::world::{Ask, Client, TICK, World};

const MAX_TURNS: usize = 5_000;

/// Eight requests that share beginnings and end in different lengths.
fn scenario() -> Vec<Ask> {
    let mut random = Random::new(0xE0);
    let common: Vec<u32> = (0..10).map(|_| random.below(N_VOCAB) as u32).collect();
    (0..8)
        .map(|i| {
            let mut prompt = common[..10 - i].to_vec();
            prompt.extend((0..2 * i).map(|_| random.below(N_VOCAB) as u32));
            Ask::new(&prompt, 3 + 5 * i)
        })
        .collect()
}

/// Serves the scenario with `n_pages`; returns the number of refusals and of preemptions.
fn serve(n_pages: usize, page_size: usize, expected_output: f64) -> (usize, u64) {
    let mut config = EngineConfig::new(n_pages, 64);
    config.page_size = page_size;
    config.max_running = 8;
    config.max_batch_tokens = 12;
    config.expected_output = expected_output;
    let mut world = World::new(config);
    let mut n_refused = 0;
    for ask in scenario() {
        match world.submit(&ask) {
            Ok(_) => {}
            Err(SubmitError::NeverFits { needed, total, .. }) => {
                assert!(needed > total, "{needed} pages fit a pool of {total}");
                n_refused += 1;
            }
            Err(SubmitError::ContextExceeded { context, .. }) => {
                assert_eq!(context, 64.min(n_pages * page_size));
                n_refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(world.run(MAX_TURNS), Turn::Idle);
    world.verify_quiet();
    for client in &world.clients {
        let got = Some(client.reason());
        assert_eq!(
            got,
            client.expected.reason.as_ref(),
            "{n_pages} pages of {page_size}"
        );
    }
    (n_refused, world.handle.metrics().preemptions.value())
}

#[test]
fn a_scenario_is_served_as_far_as_it_fits_with_one_page_two_pages_and_so_on() {
    for page_size in [1, 2, 4, 16] {
        for expected_output in [0.0, 0.7, 1.0] {
            let mut n_preemptions = 0;
            let mut n_pages = 1;
            loop {
                let (n_refused, preempted) = serve(n_pages, page_size, expected_output);
                n_preemptions += preempted;
                if n_refused == 0 && preempted == 0 && n_pages * page_size >= 400 {
                    break;
                }
                n_pages += 1;
            }
            let where_it_was = format!("pages of {page_size}, {expected_output} of the output expected");
            if expected_output == 0.0 {
                assert!(n_preemptions > 0, "{where_it_was}");
            }
            if expected_output == 1.0 {
                assert_eq!(n_preemptions, 0, "{where_it_was}: everything was provided for");
            }
        }
    }
}

#[test]
fn a_prompt_as_large_as_the_pool_is_served_again_and_again() {
    // 4 pages of 4: the prompt takes them all, its cached copy must give way to itself.
    let mut config = EngineConfig::new(4, 16);
    config.page_size = 4;
    let mut world = World::new(config);
    let prompt: Vec<u32> = (0..15).collect();
    for round in 0..6 {
        let mut other = prompt.clone();
        other[round] = 40;
        for ask in [Ask::new(&prompt, 1), Ask::new(&other, 1)] {
            world.submit(&ask).expect("it fits alone");
            assert_eq!(world.run(MAX_TURNS), Turn::Idle);
            world.verify_quiet();
        }
    }
}

fn small_queue() -> World {
    let mut config = EngineConfig::new(64, 64);
    config.max_running = 1;
    config.max_batch_tokens = 4;
    config.max_waiting = 3;
    config.max_waiting_tokens = 30;
    World::new(config)
}

#[test]
fn the_queue_is_bounded_in_requests() {
    let mut world = small_queue();
    for _ in 0..3 {
        world.submit(&Ask::new(&[1], 5)).expect("there is a place");
    }
    let refused = world.submit(&Ask::new(&[1], 5));
    let expected = SubmitError::QueueFull {
        no_room: NoRoom {
            what: "requests",
            n_wanted: 1,
            n_held: None,
            n_taken: 3,
            limit: 3,
        },
        retry_after: Duration::from_secs(1),
    };
    assert_eq!(refused, Err(expected));
    world.turn();
    world
        .submit(&Ask::new(&[1], 5))
        .expect("one runs, its place is free");
    assert_eq!(world.run(MAX_TURNS), Turn::Idle);
    world.verify_quiet();
    assert_eq!(world.handle.metrics().requests_refused.value(), 1);
}

#[test]
fn the_queue_is_bounded_in_tokens() {
    let mut world = small_queue();
    world.submit(&Ask::new(&[1; 20], 5)).expect("20 of 30 tokens");
    let refused = world.submit(&Ask::new(&[2; 11], 5)).expect_err("31 of 30 tokens");
    assert_eq!(
        refused.to_string(),
        "the queue is full: 20 prompt tokens are waiting, 11 more would exceed the limit of 30"
    );
    world.submit(&Ask::new(&[2; 10], 5)).expect("30 of 30 tokens");
    assert_eq!(world.run(MAX_TURNS), Turn::Idle);
    world.verify_quiet();
}

/// A request of `tenant` that no other begins like.
fn ask_of(tenant: u32, n_output: usize) -> Ask {
    Ask {
        tenant,
        ..Ask::new(&[tenant + 1; 4], n_output)
    }
}

/// Submits requests of `tenant` until one is refused for want of a place; returns the others.
fn flood(world: &mut World, tenant: u32) -> Vec<usize> {
    let mut accepted = Vec::new();
    loop {
        match world.submit(&ask_of(tenant, 9)) {
            Ok(client) => accepted.push(client),
            Err(SubmitError::QueueFull { no_room, .. }) => {
                assert_eq!((no_room.what, no_room.limit), ("requests", 16));
                return accepted;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Two tenants with 16 places: one each, and 14 to share.
fn two_tenants(n_pages: usize) -> World {
    let mut config = EngineConfig::new(n_pages, 16);
    config.page_size = 4;
    config.max_running = 4;
    config.max_batch_tokens = 8;
    config.max_waiting = 16;
    config.max_waiting_tokens = 80;
    config.max_rebuilds_per_minute = 100;
    config.n_tenants = 2;
    config.expected_output = 0.0;
    World::new(config)
}

#[test]
fn a_tenant_that_floods_the_queue_leaves_places_for_the_other() {
    let mut world = two_tenants(64);
    assert_eq!(flood(&mut world, 0).len(), 8);
    let quiet = world.submit(&ask_of(1, 9)).expect("the other one's place");
    assert_eq!(
        flood(&mut world, 1).len(),
        4,
        "half of what is left besides its own"
    );
    assert_eq!(world.run(MAX_TURNS), Turn::Idle);
    assert_eq!(world.clients[quiet].tokens.len(), 9);
    world.verify_quiet();
}

#[test]
fn every_way_out_of_the_queue_gives_a_tenant_its_places_back() {
    type Way = (&'static str, fn(&mut World));
    let ways: [Way; 6] = [
        ("served", |_| {}),
        ("aborted", |world| {
            world.clients.iter_mut().for_each(Client::hang_up);
        }),
        ("aborted when some run", |world| {
            world.turn();
            world.clients.iter_mut().for_each(Client::hang_up);
        }),
        ("late", |world| {
            let late = Ask {
                queue_timeout: Some(TICK),
                ..ask_of(1, 9)
            };
            while world.submit(&late).is_ok() {}
            world.wait(2 * TICK);
        }),
        ("failed", |world| {
            world.turn();
            world.fuse.light(3);
        }),
        ("refused for its tokens", |world| {
            let large = Ask {
                tenant: 1,
                ..Ask::new(&[9; 15], 1)
            };
            for _ in 0..20 {
                drop(world.submit(&large));
            }
        }),
    ];
    for (way, act) in ways {
        // Too few pages for all outputs, so some are preempted and wait a second time.
        let mut world = two_tenants(6);
        for round in 0..3 {
            for tenant in [0, 1] {
                assert_eq!(flood(&mut world, tenant).len(), 8, "{way}, round {round}");
                act(&mut world);
                assert_eq!(world.run(MAX_TURNS), Turn::Idle);
                world.verify_quiet();
            }
        }
        let n_preempted = world.handle.metrics().preemptions.value();
        assert!(n_preempted > 0 || way.starts_with("aborted"), "{way}");
    }
}

#[test]
fn retry_after_follows_the_measured_rate() {
    let mut config = EngineConfig::new(64, 64);
    config.max_running = 1;
    config.max_batch_tokens = 4;
    config.max_waiting = 200;
    config.max_queue_wait = None;
    let mut world = World::new(config);
    let full = |world: &mut World| loop {
        match world.submit(&Ask::new(&[1; 10], 40)) {
            Ok(_) => {}
            Err(SubmitError::QueueFull { retry_after, .. }) => return retry_after,
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(full(&mut world), Duration::from_secs(1), "nothing is known yet");
    for _ in 0..200 {
        world.wait(Duration::from_millis(100));
        world.turn();
    }
    // About one request of 10 tokens in 41 steps of 101 ms: half of 2,000 tokens take minutes.
    assert_eq!(full(&mut world), Duration::from_secs(60));
    world.handle.drain(Duration::ZERO);
    assert!(matches!(world.run(2), Turn::Over(_)));
}

/// Requests of `tenant` that are accepted, and why the next one is not.
fn submit_all(world: &mut World, tenant: u32, n_most: usize) -> (usize, Option<SubmitError>) {
    for n in 0..n_most {
        let ask = Ask {
            tenant,
            ..Ask::new(&[tenant + 1; 10], 40)
        };
        if let Err(error) = world.submit(&ask) {
            return (n, Some(error));
        }
    }
    (n_most, None)
}

#[test]
fn what_would_wait_too_long_is_refused_once_that_is_known() {
    let mut config = EngineConfig::new(64, 64);
    config.max_running = 1;
    config.max_batch_tokens = 4;
    config.n_tenants = 2;
    config.max_queue_wait = Some(Duration::from_secs(20));
    config.max_draft_rows = 0;
    let mut world = World::new(config);
    assert_eq!(submit_all(&mut world, 0, 9), (9, None), "nothing is known yet");
    let pass = |world: &mut World, n_turns| {
        for _ in 0..n_turns {
            world.wait(Duration::from_millis(100));
            world.turn();
        }
    };
    // A request of 10 tokens takes about 41 steps of 101 ms.
    pass(&mut world, 200);
    let (n, refused) = submit_all(&mut world, 0, 40);
    let Some(SubmitError::WaitTooLong {
        expected,
        limit,
        retry_after,
    }) = refused
    else {
        panic!("{n} accepted, then {refused:?}");
    };
    assert!(n <= 4, "{n} more besides the four that wait");
    assert_eq!(limit, Duration::from_secs(20));
    assert!((limit..2 * limit).contains(&expected), "{expected:?}");
    assert!((1..=20).contains(&retry_after.as_secs()));
    assert_eq!(world.handle.metrics().requests_refused.value(), 1);
    // The other tenant has its turn in between.
    let (n, refused) = submit_all(&mut world, 1, 40);
    assert!((1..=4).contains(&n), "{n} accepted, then {refused:?}");
    pass(&mut world, 300);
    assert!(
        submit_all(&mut world, 0, 1).1.is_none(),
        "the queue is short again"
    );
    world.handle.drain(Duration::ZERO);
    assert!(matches!(world.run(2), Turn::Over(_)));
}

#[test]
fn what_can_never_be_served_is_refused_with_the_numbers() {
    let mut config = EngineConfig::new(4, 64);
    config.max_waiting_tokens = 40;
    let world = &mut World::new(config);
    let mut refused = |ask: Ask| world.submit(&ask).expect_err("out of range");
    assert_eq!(refused(Ask::new(&[], 1)), SubmitError::EmptyPrompt);
    let biased = |token, bias| Ask {
        logit_bias: vec![(token, bias)],
        ..Ask::new(&[1], 1)
    };
    assert_eq!(
        refused(biased(48, 1.0)),
        SubmitError::BiasOutOfRange {
            token: 48,
            n_vocab: 48
        }
    );
    assert!(matches!(
        refused(biased(1, f32::NAN)),
        SubmitError::BadBias { token: 1, .. }
    ));
    assert_eq!(
        refused(Ask::new(&[1, 2, N_VOCAB as u32], 1)),
        SubmitError::TokenOutOfRange {
            token: N_VOCAB as u32,
            position: 2,
            n_vocab: N_VOCAB
        }
    );
    assert_eq!(
        refused(Ask::new(&[1; 60], 5)),
        SubmitError::ContextExceeded {
            prompt_tokens: 60,
            max_tokens: 5,
            context: 64
        }
    );
    let hot = Ask {
        sampling: SamplingParams {
            temperature: f32::NAN,
            ..SamplingParams::default()
        },
        ..Ask::new(&[1], 1)
    };
    assert!(refused(hot).to_string().contains("temperature"));
    assert_eq!(
        refused(Ask::new(&[1; 41], 1)),
        SubmitError::LongerThanQueue {
            prompt_tokens: 41,
            limit: 40
        }
    );
    assert_eq!(world.handle.n_in_flight(), 0);
    world.verify_quiet();
}
