//! Who is served when: order, followers, starvation, deadlines, draining.

use std::time::Duration;

use arbora_runtime::engine::{EngineConfig, EngineExit, SchedulePolicy, Turn};
use arbora_runtime::request::{FinishReason, RequestError, SubmitError};
use arbora_tests::random::Random;
use arbora_tests::toy::N_VOCAB;
use arbora_tests::world::{Ask, Client, TICK, World};

const MAX_TURNS: usize = 5_000;

fn config() -> EngineConfig {
    let mut config = EngineConfig::new(64, 128);
    config.page_size = 4;
    config.max_running = 4;
    config.max_batch_tokens = 8;
    config
}

fn prompt(seed: u32, n_tokens: usize) -> Vec<u32> {
    (0..n_tokens as u32)
        .map(|i| (seed * 7 + i * i * (seed + 3)) % 48)
        .collect()
}

/// Order in which the clients got their first token.
fn order_of_first_tokens(world: &mut World) -> Vec<usize> {
    let mut order = Vec::new();
    for _ in 0..MAX_TURNS {
        let turn = world.turn();
        for (i, client) in world.clients.iter().enumerate() {
            if !client.tokens.is_empty() && !order.contains(&i) {
                order.push(i);
            }
        }
        if turn == Turn::Idle {
            world.verify_quiet();
            return order;
        }
    }
    panic!("still busy after {MAX_TURNS} turns");
}

/// A cold and a hot request wait while a third runs alone; returns who of them starts first.
fn cold_then_hot(policy: SchedulePolicy, head_start: Duration) -> Vec<usize> {
    let mut config = config();
    config.max_running = 1;
    config.schedule_policy = policy;
    config.cached_token_worth = Duration::from_millis(2);
    let mut world = World::new(config);
    world.submit(&Ask::new(&prompt(1, 40), 1)).expect("it fits");
    world.run(MAX_TURNS);
    world.submit(&Ask::new(&prompt(2, 10), 30)).expect("it fits");
    world.turn();
    let cold = Ask {
        priority: 1,
        ..Ask::new(&prompt(3, 40), 2)
    };
    world.submit(&cold).expect("it fits");
    world.wait(head_start);
    world.submit(&Ask::new(&prompt(1, 40), 2)).expect("it fits");
    order_of_first_tokens(&mut world)
}

#[test]
fn the_prefix_policy_serves_the_cached_prompt_first() {
    assert_eq!(cold_then_hot(SchedulePolicy::Prefix, TICK)[1..], [1, 3, 2]);
}

#[test]
fn a_cached_prompt_does_not_pass_one_that_waited_longer_than_it_saves() {
    // 39 cached tokens at 2 ms each.
    assert_eq!(
        cold_then_hot(SchedulePolicy::Prefix, Duration::from_millis(90))[1..],
        [1, 2, 3]
    );
}

#[test]
fn fcfs_serves_in_order_of_arrival() {
    assert_eq!(cold_then_hot(SchedulePolicy::Fcfs, TICK)[1..], [1, 2, 3]);
}

#[test]
fn priority_serves_the_larger_priority_first() {
    assert_eq!(cold_then_hot(SchedulePolicy::Priority, TICK)[1..], [1, 2, 3]);
    let mut config = config();
    config.max_running = 1;
    config.schedule_policy = SchedulePolicy::Priority;
    let mut world = World::new(config);
    for priority in [0, -1, 5] {
        let ask = Ask {
            priority,
            ..Ask::new(&prompt(4, 10), 2)
        };
        world.submit(&ask).expect("it fits");
    }
    assert_eq!(order_of_first_tokens(&mut world), [2, 0, 1]);
}

#[test]
fn nobody_starves_under_a_stream_of_hits() {
    let mut config = config();
    config.max_running = 2;
    let worth = config.cached_token_worth;
    let context = config.context as u32;
    let mut world = World::new(config);
    let hot = prompt(1, 60);
    world.submit(&Ask::new(&hot, 1)).expect("it fits");
    world.run(MAX_TURNS);
    let cold = world.submit(&Ask::new(&prompt(2, 60), 1)).expect("it fits");
    // More hits than the engine can serve, for ever. Those that came before the cold one's claim is worth
    // more than any prefix may pass it; then it is served.
    let bound = context * worth;
    let n_before = (bound.as_millis() / TICK.as_millis()) as usize;
    let mut n_turns = 0;
    while world.clients[cold].tokens.is_empty() {
        if n_turns % 2 == 0 {
            // A full queue refuses, which is the point of the stream.
            drop(world.submit(&Ask::new(&hot, 4)));
        }
        world.turn();
        n_turns += 1;
        assert!(n_turns < 8 * n_before, "the cold request waits for ever");
    }
    world.verify();
}

#[test]
fn a_common_prefix_is_computed_once() {
    let mut world = World::new(config());
    let common = prompt(1, 40);
    for i in 0..4 {
        let mut prompt = common.clone();
        prompt.extend([i, i + 1, i + 2]);
        world.submit(&Ask::new(&prompt, 5)).expect("it fits");
    }
    assert_eq!(world.run(MAX_TURNS), Turn::Idle);
    world.verify_quiet();
    assert_eq!(world.handle.metrics().prefill_tokens.value(), 43 + 3 * 3);
}

#[test]
fn followers_do_not_wait_for_a_leader_that_is_gone() {
    for turn in 1..6 {
        let mut world = World::new(config());
        let leader = world.submit(&Ask::new(&prompt(1, 40), 5)).expect("it fits");
        world.turn();
        for _ in 0..3 {
            world.submit(&Ask::new(&prompt(1, 40), 5)).expect("it fits");
        }
        for _ in 0..turn {
            world.turn();
        }
        world.clients[leader].hang_up();
        assert_eq!(world.run(60), Turn::Idle);
        world.verify_quiet();
        let computed = world.handle.metrics().prefill_tokens.value();
        assert!(computed < 60, "{computed} tokens computed, 40 were common");
    }
}

#[test]
fn different_namespaces_share_nothing() {
    let mut world = World::new(config());
    for adapter in 0..3 {
        let mut ask = Ask::new(&prompt(1, 20), 2);
        ask.namespace.adapter = adapter;
        world.submit(&ask).expect("it fits");
        world.run(MAX_TURNS);
    }
    world.verify_quiet();
    assert_eq!(world.handle.metrics().cached_tokens.value(), 0);
}

#[test]
fn the_next_turn_of_a_chat_computes_only_what_is_new() {
    let mut world = World::new(config());
    let first = world.submit(&Ask::new(&prompt(1, 21), 6)).expect("it fits");
    world.run(MAX_TURNS);
    let mut chat = prompt(1, 21);
    chat.extend(&world.clients[first].tokens);
    chat.extend([1, 2, 3]);
    let second = world.submit(&Ask::new(&chat, 4)).expect("it fits");
    world.run(MAX_TURNS);
    world.verify_quiet();
    let usage = world.clients[second].finished.as_ref().expect("it ended").usage;
    // 21 + 6 tokens, of which the last was never fed back; 26 is no whole number of pages.
    assert_eq!((usage.cached_tokens, usage.copied_tokens), (26, 2));
}

#[test]
fn a_flush_empties_the_cache() {
    let mut world = World::new(config());
    world.submit(&Ask::new(&prompt(1, 30), 2)).expect("it fits");
    world.run(MAX_TURNS);
    assert!(world.handle.metrics().gauges().pages_cached > 0);
    world.handle.flush_cache();
    assert_eq!(world.turn(), Turn::Idle);
    assert_eq!(world.handle.metrics().gauges().pages_cached, 0);
    assert_eq!(world.handle.metrics().gauges().pages_free, 64);
}

#[test]
fn a_queue_deadline_ends_only_who_never_ran() {
    let mut config = config();
    config.max_running = 1;
    let mut world = World::new(config);
    let ask = Ask {
        queue_timeout: Some(5 * TICK),
        ..Ask::new(&prompt(1, 4), 30)
    };
    let runs = world.submit(&ask).expect("it fits");
    let waits = world.submit(&ask).expect("it fits");
    assert_eq!(world.run(MAX_TURNS), Turn::Idle);
    world.verify_quiet();
    assert_eq!(world.clients[runs].reason(), &FinishReason::Length);
    assert_eq!(world.clients[waits].reason(), &FinishReason::QueueDeadline);
    assert!(world.clients[waits].tokens.is_empty());
}

#[test]
fn a_total_deadline_leaves_what_was_made() {
    let mut world = World::new(config());
    let ask = Ask {
        total_timeout: Some(10 * TICK),
        ..Ask::new(&prompt(1, 4), 30)
    };
    let client = world.submit(&ask).expect("it fits");
    assert_eq!(world.run(MAX_TURNS), Turn::Idle);
    world.verify_quiet();
    assert_eq!(world.clients[client].reason(), &FinishReason::Deadline);
    assert_eq!(world.clients[client].tokens.len(), 10);
}

#[test]
fn a_drain_finishes_what_was_accepted_and_refuses_the_rest() {
    let mut world = World::new(config());
    for seed in 0..6 {
        world.submit(&Ask::new(&prompt(seed, 20), 6)).expect("it fits");
    }
    world.turn();
    world.handle.drain(Duration::from_secs(60));
    assert_eq!(world.submit(&Ask::new(&[1], 1)), Err(SubmitError::ShuttingDown));
    assert_eq!(world.run(MAX_TURNS), Turn::Over(EngineExit::Drained));
    world.verify_quiet();
    assert!(
        world
            .clients
            .iter()
            .all(|client| client.reason() == &FinishReason::Length)
    );
}

#[test]
fn a_drain_that_takes_too_long_ends_what_is_left() {
    let mut world = World::new(config());
    for seed in 0..6 {
        world.submit(&Ask::new(&prompt(seed, 20), 100)).expect("it fits");
    }
    world.turn();
    world.handle.drain(20 * TICK);
    assert_eq!(world.run(25), Turn::Over(EngineExit::Drained));
    world.verify_quiet();
    let shutting_down = FinishReason::Error(RequestError::ShuttingDown);
    assert!(
        world
            .clients
            .iter()
            .all(|client| client.reason() == &shutting_down)
    );
}

/// A request of `tenant` whose prompt no other shares.
fn ask_of(tenant: u32, seed: u64, (n_prompt, n_output): (usize, usize)) -> Ask {
    let mut random = Random::new(u64::from(tenant) << 32 | seed);
    let prompt: Vec<u32> = (0..n_prompt).map(|_| random.below(N_VOCAB) as u32).collect();
    Ask {
        tenant,
        ..Ask::new(&prompt, n_output)
    }
}

/// How many of 30 requests of tenant 0 start between the request of `tenant` and its first token.
fn overtaken_by_a_flood(tenant: u32) -> usize {
    let mut config = config();
    config.max_running = 1;
    config.n_tenants = 2;
    let mut world = World::new(config);
    for seed in 0..30 {
        world.submit(&ask_of(0, seed, (10, 5))).expect("it fits");
    }
    for _ in 0..20 {
        world.turn();
    }
    let n_started = |world: &World| {
        world.clients[..30]
            .iter()
            .filter(|c| !c.tokens.is_empty())
            .count()
    };
    let n_before = n_started(&world);
    let single = world.submit(&ask_of(tenant, 99, (10, 5))).expect("it fits");
    while world.clients[single].tokens.is_empty() {
        assert_eq!(world.turn(), Turn::Busy);
    }
    let n_between = n_started(&world) - n_before;
    world.run(MAX_TURNS);
    world.verify_quiet();
    n_between
}

#[test]
fn a_tenant_that_floods_delays_anothers_request_by_at_most_one_of_its_own() {
    assert!(overtaken_by_a_flood(1) <= 1);
    assert!(
        overtaken_by_a_flood(0) > 20,
        "within a tenant it has to wait for all"
    );
}

/// Weighted tokens computed for the first 60 clients, and for the others, while both have more waiting:
/// large requests of tenant 0 first, then small ones of `second`.
fn work_of_two(second: u32) -> [usize; 2] {
    let mut config = config();
    config.n_tenants = 2;
    config.schedule_policy = SchedulePolicy::Fcfs;
    let mut world = World::new(config);
    for seed in 0..60 {
        world.submit(&ask_of(0, seed, (40, 20))).expect("it fits");
    }
    for seed in 0..400 {
        world
            .submit(&ask_of(second, 100 + seed, (8, 4)))
            .expect("it fits");
    }
    for _ in 0..400 {
        world.turn();
    }
    let (large, small) = world.clients.split_at(60);
    let work = [large, small].map(|clients| {
        assert!(
            clients.last().is_some_and(|client| client.tokens.is_empty()),
            "backlogged"
        );
        let began = clients.iter().filter(|client| !client.tokens.is_empty());
        began
            .map(|client| client.n_prompt + 2 * client.tokens.len())
            .sum()
    });
    world.run(20_000);
    world.verify_quiet();
    work
}

#[test]
fn backlogged_tenants_get_equal_shares_whatever_the_size_of_their_requests() {
    // What runs of one tenant while the other is charged: four requests of at most 40 + 2 * 20, and one more.
    let bound = 5 * 80;
    let [large, small] = work_of_two(1);
    assert!(large.abs_diff(small) <= bound, "{large} and {small}");
    assert!(large > 2 * bound, "{large} says something");
    let [large, small] = work_of_two(0);
    assert!(
        large.abs_diff(small) > 3 * bound,
        "{large} and {small} of one tenant"
    );
}

#[test]
fn a_tenant_saves_nothing_up_while_it_is_idle() {
    let mut config = config();
    config.max_running = 1;
    config.n_tenants = 2;
    let mut world = World::new(config);
    for seed in 0..20 {
        world.submit(&ask_of(0, seed, (10, 5))).expect("it fits");
    }
    for _ in 0..60 {
        world.turn();
    }
    let n_before = world.clients.iter().filter(|client| client.is_over()).count();
    for seed in 0..20 {
        world.submit(&ask_of(1, seed, (10, 5))).expect("it fits");
    }
    for _ in 0..80 {
        world.turn();
    }
    let over = |clients: &[Client]| clients.iter().filter(|client| client.is_over()).count();
    let (first, second) = (over(&world.clients[..20]) - n_before, over(&world.clients[20..]));
    assert!(
        first.abs_diff(second) <= 2,
        "{first} and {second} in the same time"
    );
    assert!(n_before > 4 && second > 4);
    world.run(MAX_TURNS);
    world.verify_quiet();
}

/// Turns until `client` has its first token.
fn turns_to_first_token(world: &mut World, client: usize) -> usize {
    for n in 1..MAX_TURNS {
        assert_eq!(world.turn(), Turn::Busy);
        if !world.clients[client].tokens.is_empty() {
            return n;
        }
    }
    panic!("no token after {MAX_TURNS} turns");
}

/// Pages for whatever four sequences may hold.
fn roomy() -> EngineConfig {
    EngineConfig {
        n_pages: 256,
        ..config()
    }
}

/// Two tenants, of which the first has sent `n` requests of these sizes and 20 turns have passed.
fn flooded(mut config: EngineConfig, n: u64, sizes: (usize, usize)) -> World {
    config.n_tenants = 2;
    let mut world = World::new(config);
    for seed in 0..n {
        world.submit(&ask_of(0, seed, sizes)).expect("it fits");
    }
    for _ in 0..20 {
        world.turn();
    }
    world
}

#[test]
fn a_tenant_that_holds_no_place_starts_at_once_beside_one_that_holds_all() {
    let mut world = flooded(roomy(), 12, (10, 60));
    assert_eq!(world.handle.metrics().gauges().running, 4);
    let light = world.submit(&ask_of(1, 99, (7, 5))).expect("it fits");
    assert!(turns_to_first_token(&mut world, light) <= 3);
    assert_eq!(world.handle.metrics().preemptions.value(), 1);
    world.run(MAX_TURNS);
    world.verify_quiet();
    assert_eq!(
        world.handle.metrics().preemptions.value(),
        1,
        "what gave way comes back when a place is free, not before"
    );
}

#[test]
fn a_tenant_that_holds_no_page_starts_at_once_beside_one_that_holds_all() {
    let mut config = config();
    config.n_pages = 20;
    let mut world = flooded(config, 12, (30, 10));
    assert!(
        world.handle.metrics().gauges().running < 4,
        "pages are what is short"
    );
    let n_before = world.handle.metrics().preemptions.value();
    let light = world.submit(&ask_of(1, 99, (10, 5))).expect("it fits");
    assert!(turns_to_first_token(&mut world, light) <= 5);
    assert!(world.handle.metrics().preemptions.value() <= n_before + 2);
    world.run(MAX_TURNS);
    world.verify_quiet();
}

#[test]
fn a_short_prompt_does_not_wait_for_the_long_ones_of_another_tenant() {
    let mut world = flooded(roomy(), 12, (100, 5));
    let light = world.submit(&ask_of(1, 99, (10, 5))).expect("it fits");
    // Half of the 8 rows of a step.
    assert!(turns_to_first_token(&mut world, light) <= 5);
    world.run(MAX_TURNS);
    world.verify_quiet();
}

#[test]
fn tenants_that_both_flood_divide_the_places_and_leave_each_other_alone() {
    let mut world = flooded(roomy(), 12, (10, 60));
    for seed in 0..12 {
        world.submit(&ask_of(1, seed, (10, 60))).expect("it fits");
    }
    for _ in 0..300 {
        world.turn();
    }
    let n_preemptions = world.handle.metrics().preemptions.value();
    assert!((1..=2).contains(&n_preemptions), "{n_preemptions} for two places");
    world.run(MAX_TURNS);
    world.verify_quiet();
}

#[test]
fn a_tenant_alone_uses_every_place() {
    let mut world = flooded(roomy(), 12, (10, 60));
    assert_eq!(world.handle.metrics().gauges().running, 4);
    world.run(MAX_TURNS);
    world.verify_quiet();
    assert_eq!(world.handle.metrics().preemptions.value(), 0);
}

/// Rows of each step of `world` in which `client` gets a token, until it ends.
fn rows_beside(world: &mut World, client: usize) -> Vec<u64> {
    let mut rows = Vec::new();
    while !world.clients[client].is_over() {
        let (n_rows, n_tokens) = (world.n_rows(), world.clients[client].tokens.len());
        assert_eq!(world.turn(), Turn::Busy);
        if world.clients[client].tokens.len() > n_tokens {
            rows.push(world.n_rows() - n_rows);
        }
    }
    rows
}

#[test]
fn a_long_prompt_is_computed_in_chunks_that_leave_a_running_output_its_pace() {
    let mut config = EngineConfig::new(1024, 2048);
    config.max_draft_rows = 0;
    let mut world = World::new(config);
    world.row_time = Duration::from_micros(100);
    let output = world.submit(&ask_of(0, 1, (20, 200))).expect("it fits");
    for _ in 0..50 {
        world.turn();
    }
    let long = world.submit(&ask_of(0, 2, (1500, 2))).expect("it fits");
    let rows = rows_beside(&mut world, output);
    // A step of 8 rows takes 1.8 ms, and three times that are 44 rows; but as long as only steps of one row
    // were seen, eight are thought to take 3 ms. Without a limit a step has 256 rows.
    let most = rows.iter().copied().max().expect("it went on");
    assert!((17..=90).contains(&most), "{most} rows in a step");
    assert!(
        world.clients[long].is_over(),
        "and the prompt is computed meanwhile"
    );
    world.submit(&ask_of(0, 3, (1500, 2))).expect("it fits");
    let n_before = world.n_rows();
    world.turn();
    assert_eq!(
        world.n_rows() - n_before,
        256,
        "a prompt alone is computed at once"
    );
    world.run(MAX_TURNS);
    world.verify_quiet();
}

/// Rows of the steps in which an output goes on while `n` long prompts are computed, at most.
fn most_rows_beside_prompts(n: u64) -> u64 {
    let mut config = EngineConfig::new(1024, 2048);
    config.max_draft_rows = 0;
    let mut world = World::new(config);
    world.row_time = Duration::from_micros(100);
    // Eight outputs, so that the time of a step with as many is known.
    for seed in 0..8 {
        world.submit(&ask_of(0, seed, (20, 200))).expect("it fits");
    }
    for _ in 0..50 {
        world.turn();
    }
    for seed in 10..10 + n {
        world.submit(&ask_of(0, seed, (600, 2))).expect("it fits");
    }
    let most = rows_beside(&mut world, 0).into_iter().max();
    world.run(MAX_TURNS);
    world.verify_quiet();
    most.expect("the output went on")
}

#[test]
fn a_crowd_of_long_prompts_takes_no_more_of_a_step_than_one() {
    let (one, eight) = (most_rows_beside_prompts(1), most_rows_beside_prompts(8));
    assert!(one > 16, "{one} rows beside one prompt");
    // Of the eight, those that are done decode a row each meanwhile.
    assert!(eight <= one + 8, "{eight} rows beside eight, {one} beside one");
}

#[test]
fn many_outputs_of_one_tenant_leave_the_single_one_of_another_its_pace() {
    let mut config = EngineConfig::new(1024, 256);
    config.max_draft_rows = 0;
    config.n_tenants = 2;
    let mut world = World::new(config);
    world.row_time = Duration::from_millis(1);
    for seed in 0..32 {
        world.submit(&ask_of(0, seed, (4, 100))).expect("it fits");
    }
    for _ in 0..30 {
        world.turn();
    }
    let light = world.submit(&ask_of(1, 1, (4, 40))).expect("it fits");
    let rows = rows_beside(&mut world, light);
    assert!(rows[1..].iter().all(|&n| n <= 8), "{rows:?}");
    let n_outputs: Vec<usize> = world.clients[..31].iter().map(|c| c.tokens.len()).collect();
    let (least, most) = (n_outputs.iter().min(), n_outputs.iter().max());
    assert!(
        most.expect("31") - least.expect("31") < 40,
        "they take turns: {n_outputs:?}"
    );
    world.run(MAX_TURNS);
    world.verify_quiet();
}

#[test]
fn prompts_of_a_tenant_with_many_sequences_leave_the_single_output_of_another_its_pace() {
    let mut config = EngineConfig::new(1024, 512);
    config.max_draft_rows = 0;
    config.n_tenants = 2;
    let mut world = World::new(config);
    world.row_time = Duration::from_millis(1);
    world.submit(&ask_of(0, 0, (4, 200))).expect("it fits");
    let light = world.submit(&ask_of(1, 1, (4, 200))).expect("it fits");
    for _ in 0..30 {
        world.turn();
    }
    for seed in 2..22 {
        world.submit(&ask_of(0, seed, (200, 4))).expect("it fits");
    }
    let (n_rows, mut n_tokens) = (world.n_rows(), world.clients[light].tokens.len());
    n_tokens = 200 - n_tokens;
    let most = rows_beside(&mut world, light)
        .into_iter()
        .max()
        .expect("it went on");
    // Alone it has a row a step. A chunk of 8 rows comes at once, but then no other for a while.
    assert!(most <= 12, "{most} rows in a step");
    let average = (world.n_rows() - n_rows) as f64 / n_tokens as f64;
    // A step of one row takes 2 ms, one of six 7 ms.
    assert!((2.0..6.0).contains(&average), "{average} rows a token");
    world.run(MAX_TURNS);
    world.verify_quiet();
}
