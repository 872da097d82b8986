//! Looking at a running engine's cache: pictures add up, explanations agree with plain comparisons, and
//! whoever looks disturbs nobody.

use std::time::Duration;

use arbora_radix::Namespace;
use arbora_runtime::config::EngineConfig;
use arbora_runtime::engine::Turn;
use arbora_runtime::explain::{Cause, Explanation, Leaving};
use arbora_runtime::inspect::{CacheView, InspectError, Inspected, Inspection, MAX_NODES};
use arbora_tests::random::Random;
use arbora_tests::toy::N_VOCAB;
use arbora_tests::world::{Ask, World};
use tokio::sync::mpsc;

const MANY: usize = 10_000;

fn world(n_pages: usize) -> World {
    let mut config = EngineConfig::new(n_pages, 400);
    config.page_size = 4;
    config.max_batch_tokens = 16;
    config.max_running = 4;
    config.max_draft_rows = 0;
    World::new(config)
}

/// The answer of an engine that is driven by hand.
fn inspect(world: &mut World, inspection: Inspection) -> Inspected {
    let (reply, mut answers) = mpsc::channel(1);
    world.handle.inspect(inspection, reply).expect("nobody else asks");
    world.turn();
    answers.try_recv().expect("an answer by the next turn")
}

fn view(world: &mut World, max_nodes: usize) -> CacheView {
    match inspect(world, Inspection::Tree { max_nodes }) {
        Inspected::Tree(view) => view,
        other => panic!("not a tree: {other:?}"),
    }
}

fn explanation(world: &mut World, client: usize) -> Explanation {
    let id = world.clients[client].id;
    match inspect(world, Inspection::Requests(vec![id])) {
        Inspected::Requests(mut found) => found.remove(0).expect("a request that started"),
        other => panic!("not an explanation: {other:?}"),
    }
}

fn would_find(world: &mut World, tokens: &[u32]) -> Explanation {
    let inspection = Inspection::Prompt {
        namespace: Namespace::default(),
        tokens: tokens.to_vec(),
    };
    match inspect(world, inspection) {
        Inspected::Prompt(explanation) => explanation,
        other => panic!("not an explanation: {other:?}"),
    }
}

/// Serves a request to its end; the client's index.
fn serve(world: &mut World, prompt: &[u32], max_tokens: usize) -> usize {
    let client = world.submit(&Ask::new(prompt, max_tokens)).expect("it fits");
    world.run(MANY);
    client
}

#[test]
fn pictures_taken_at_any_step_account_for_every_page() {
    let mut random = Random::new(11);
    let mut world = world(120);
    for round in 0..60 {
        let mut prompt: Vec<u32> = vec![5; 4 * random.below(6)];
        prompt.extend((0..=random.below(30)).map(|_| random.below(N_VOCAB) as u32));
        world
            .submit(&Ask::new(&prompt, 1 + random.below(20)))
            .expect("it fits");
        for _ in 0..random.below(4) {
            let view = view(&mut world, MAX_NODES);
            let shown: usize = view.nodes.iter().map(|node| node.n_pages).sum();
            assert_eq!(shown, view.n_cached, "round {round}");
            assert_eq!((view.n_nodes_left_out, view.n_pages_left_out), (0, 0));
            assert!(view.n_free + view.n_cached <= view.n_total);
            let unlocked = view.nodes.iter().filter(|node| node.n_locks == 0);
            let n_unlocked: usize = unlocked.map(|node| node.n_pages).sum();
            assert_eq!(n_unlocked, view.n_evictable);
        }
    }
    world.run(MANY);
    world.verify_quiet();
    let whole = view(&mut world, MAX_NODES);
    assert!(whole.nodes.len() > 20, "{} nodes", whole.nodes.len());
    let part = view(&mut world, 7);
    assert_eq!(part.nodes, whole.nodes[..7]);
    assert_eq!(part.n_nodes_left_out, whole.nodes.len() - 7);
    let n_shown: usize = part.nodes.iter().map(|node| node.n_pages).sum();
    assert_eq!(part.n_pages_left_out, whole.n_cached - n_shown);
}

#[test]
fn a_request_is_explained_by_a_plain_comparison_with_those_before_it() {
    let mut random = Random::new(5);
    let mut world = world(4000);
    let mut known: Vec<Vec<u32>> = Vec::new();
    for round in 0..80 {
        let mut prompt = match known.len() {
            0 => Vec::new(),
            n => known[random.below(n)].clone(),
        };
        prompt.truncate(random.below(prompt.len() + 1).min(60));
        prompt.extend((0..=random.below(12)).map(|_| random.below(3) as u32));
        let common = |other: &Vec<u32>| other.iter().zip(&prompt).take_while(|(a, b)| a == b).count();
        let longest = known.iter().map(common).max().unwrap_or(0);
        let position = longest.min(prompt.len() - 1);

        let client = serve(&mut world, &prompt, 5);
        let found = explanation(&mut world, client);
        assert_eq!(found.position, position, "round {round}: {prompt:?}");
        assert_eq!(found.n_prompt, prompt.len());
        let usage = world.clients[client].finished.as_ref().expect("it ended").usage;
        assert_eq!(found.n_shared + found.n_copied, usage.cached_tokens);
        assert_eq!(found.n_copied, usage.copied_tokens);
        assert!(
            found
                .before
                .ends_with(&prompt[position.saturating_sub(3)..position])
        );
        assert!(prompt[position..].starts_with(&found.after));
        match found.cause {
            Cause::Whole => assert_eq!(position, prompt.len() - 1),
            Cause::Empty => assert!(known.is_empty()),
            Cause::Diverged => assert_ne!(found.instead[0], prompt[position]),
            Cause::Ends => assert!(found.instead.is_empty() && position > 0),
            other => panic!("nothing was evicted: {other:?}"),
        }
        // The last token sampled is never fed back, so it is not cached.
        let mut computed = prompt;
        computed.extend(&world.clients[client].tokens);
        computed.pop();
        known.push(computed);
    }
}

#[test]
fn a_miss_because_of_an_eviction_says_when_that_was() {
    let mut world = world(16);
    let first: Vec<u32> = (0..24).collect();
    serve(&mut world, &first, 1);
    world.wait(Duration::from_secs(60));
    let before = world.now();
    serve(&mut world, &[9; 44], 1);
    let after = world.now();
    world.wait(Duration::from_secs(60));

    // The tail went first: of 24 tokens in 6 pages, the pool of 16 kept 16 - 11 = 5 pages.
    let again = serve(&mut world, &first, 1);
    let found = explanation(&mut world, again);
    assert_eq!((found.n_shared, found.position), (20, 20));
    match found.cause {
        Cause::Left { n_tokens, at, how } => {
            assert_eq!((n_tokens, how), (24, Leaving::Evicted));
            assert!(before <= at && at < after, "it says when");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_miss_because_of_a_flush_says_so_until_the_prefix_is_back() {
    let mut world = world(64);
    let prompt: Vec<u32> = (0..22).collect();
    serve(&mut world, &prompt, 1);
    world.handle.flush_cache();
    let longer: Vec<u32> = (0..30).collect();
    let found = would_find(&mut world, &longer);
    let flushed = world.now() - arbora_tests::world::TICK;
    assert_eq!(found.position, 0);
    let left = Cause::Left {
        n_tokens: 22,
        at: flushed,
        how: Leaving::Flushed,
    };
    assert_eq!(
        found.cause, left,
        "up to the end of the last page, which was filled in part"
    );
    serve(&mut world, &prompt, 1);
    assert_eq!(would_find(&mut world, &longer).cause, Cause::Ends);
    assert_eq!(would_find(&mut world, &prompt).cause, Cause::Whole);
}

#[test]
fn a_page_that_cannot_be_copied_for_want_of_room_is_named() {
    let mut world = world(3);
    serve(&mut world, &[1, 2, 3, 4, 5, 6], 1);
    let mut longer = vec![1, 2, 3, 4, 5, 6];
    longer.extend([7; 5]);
    let client = serve(&mut world, &longer, 1);
    let found = explanation(&mut world, client);
    // Two more pages are needed and one is free: the other is the one that would have been copied from.
    assert_eq!((found.n_shared, found.n_copied, found.position), (4, 0, 6));
    assert_eq!(found.cause, Cause::NoRoom);
}

#[test]
fn a_prompt_whose_log_probabilities_are_wanted_says_why_it_was_computed() {
    let mut world = world(64);
    let prompt: Vec<u32> = (0..22).collect();
    serve(&mut world, &prompt, 1);
    let mut ask = Ask::new(&prompt, 1);
    ask.logprobs.prompt = Some(0);
    let client = world.submit(&ask).expect("it fits");
    world.run(MANY);
    let found = explanation(&mut world, client);
    assert_eq!(found.cause, Cause::Logprobs);
    assert_eq!((found.position, found.n_shared, found.n_copied), (0, 0, 0));
}

#[test]
fn a_question_waits_for_the_one_before_it_and_is_bounded() {
    let mut world = world(16);
    let ask = |inspection| {
        let (reply, answers) = mpsc::channel(1);
        world.handle.inspect(inspection, reply).map(|()| answers)
    };
    let too_many = ask(Inspection::Tree {
        max_nodes: MAX_NODES + 1,
    });
    assert!(
        too_many
            .expect_err("bounded")
            .to_string()
            .contains("[1, 2000], got 2001")
    );
    let nothing = ask(Inspection::Prompt {
        namespace: Namespace::default(),
        tokens: Vec::new(),
    });
    assert!(nothing.is_err());
    let first = ask(Inspection::Tree { max_nodes: 1 }).expect("the first");
    let second = ask(Inspection::Tree { max_nodes: 1 });
    assert_eq!(second.expect_err("one at a time"), InspectError::Busy);
    // Who asked is gone: the next may ask all the same.
    drop(first);
    world.turn();
    assert_eq!(view(&mut world, 1).n_total, 16);
    world.handle.drain(Duration::ZERO);
    assert!(matches!(world.run(MANY), Turn::Over(_)));
}

#[test]
fn wake_ups_without_number_leave_room_for_every_request() {
    let mut config = EngineConfig::new(16, 32);
    config.max_waiting = 2;
    let mut world = World::new(config);
    for _ in 0..100 {
        world.handle.flush_cache();
    }
    let (reply, mut answers) = mpsc::channel(1);
    world
        .handle
        .inspect(Inspection::Tree { max_nodes: 5 }, reply)
        .expect("the first question");
    world.submit(&Ask::new(&[1, 2], 1)).expect("there is room");
    world.submit(&Ask::new(&[1, 2], 1)).expect("there is room");
    world.run(MANY);
    assert!(answers.try_recv().is_ok());
    world.verify_quiet();
}

#[test]
fn the_requests_in_the_engine_are_listed_in_the_order_of_their_acceptance() {
    let mut world = world(120);
    for n_prompt in [3, 40, 5, 6, 7] {
        world.submit(&Ask::new(&vec![5; n_prompt], 9)).expect("it fits");
    }
    let mut listed = |max_requests| match inspect(&mut world, Inspection::InFlight { max_requests }) {
        Inspected::InFlight(requests) => requests,
        other => panic!("not requests: {other:?}"),
    };
    let first = listed(64);
    assert_eq!(
        first.iter().map(|request| request.n_prompt).collect::<Vec<_>>(),
        [3, 40, 5, 6, 7]
    );
    assert!(first.iter().all(|request| request.max_tokens == 9));
    let later = listed(2);
    assert_eq!(later.len(), 2, "as many as asked for");
    assert_eq!((later[0].id, later[0].stage), (first[0].id, "decode"));
    assert!(later[0].n_output > 0 && later[0].n_computed >= 3, "{later:?}");
    world.run(MANY);
    assert_eq!(
        inspect(&mut world, Inspection::InFlight { max_requests: 64 }),
        Inspected::InFlight(Vec::new())
    );
}
