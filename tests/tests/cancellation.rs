//! A client may hang up at any step; one step later nothing of its request is left, and nobody else notices.

use arbora_runtime::engine::{EngineConfig, Turn};
use arbora_runtime::request::FinishReason;
use arbora_tests::random::Random;
use arbora_tests::toy::N_VOCAB;
use arbora_tests::world::{Ask, Client, Device, World};

const N_REQUESTS: usize = 6;

/// One that is done at once, and some that compute while the next step is planned.
fn devices() -> impl Iterator<Item = Device> {
    [None, Some(1), Some(2), Some(3)].into_iter().map(|late| Device {
        late,
        ..Device::default()
    })
}

/// Requests that wait, follow, prefill in chunks, decode and get preempted.
fn scenario(device: Device) -> World {
    let mut config = EngineConfig::new(14, 48);
    config.page_size = 4;
    config.max_running = 4;
    config.max_batch_tokens = 7;
    config.expected_output = 0.0;
    let mut world = World::with_device(config, device);
    let mut random = Random::new(0xCA);
    let common: Vec<u32> = (0..18).map(|_| random.below(N_VOCAB) as u32).collect();
    for i in 0..N_REQUESTS {
        let mut prompt = common[..18 - i].to_vec();
        prompt.push(random.below(N_VOCAB) as u32);
        world.submit(&Ask::new(&prompt, 6 + 3 * i)).expect("it fits");
    }
    world
}

fn n_turns_undisturbed(device: Device) -> usize {
    let mut world = scenario(device);
    let mut n_turns = 0;
    while world.turn() == Turn::Busy {
        n_turns += 1;
    }
    world.verify_quiet();
    assert!(
        device.late.is_some() || world.handle.metrics().preemptions.value() > 0,
        "the scenario preempts"
    );
    assert!(
        world.handle.metrics().cached_tokens.value() > 0,
        "the scenario shares"
    );
    n_turns
}

#[test]
fn a_request_cancelled_at_any_step_is_gone_one_step_later() {
    devices().for_each(cancel_each_at_each_turn);
}

fn cancel_each_at_each_turn(device: Device) {
    for turn in 0..=n_turns_undisturbed(device) {
        for victim in 0..N_REQUESTS {
            let mut world = scenario(device);
            for _ in 0..turn {
                world.turn();
            }
            let was_over = world.clients[victim].is_over();
            world.clients[victim].hang_up();
            let n_before = world.handle.n_in_flight();
            let n_ended_before = world
                .clients
                .iter()
                .filter(|client| client.finished.is_some())
                .count();
            world.turn();
            let n_ended = world
                .clients
                .iter()
                .filter(|client| client.finished.is_some())
                .count();
            let expected = n_before - usize::from(!was_over) - (n_ended - n_ended_before);
            assert_eq!(
                world.handle.n_in_flight(),
                expected,
                "victim {victim}, turn {turn}"
            );
            assert_eq!(world.run(1_000), Turn::Idle);
            world.verify_quiet();
            for (i, client) in world.clients.iter().enumerate() {
                assert!(i == victim || client.reason() == &FinishReason::Length);
            }
            let aborted = world.handle.metrics().requests_finished[4].value();
            assert_eq!(aborted, u64::from(!was_over));
        }
    }
}

#[test]
fn all_cancelled_at_any_step_leave_an_empty_engine_one_step_later() {
    devices().for_each(cancel_all_at_each_turn);
}

fn cancel_all_at_each_turn(device: Device) {
    for turn in 0..=n_turns_undisturbed(device) {
        let mut world = scenario(device);
        for _ in 0..turn {
            world.turn();
        }
        world.clients.iter_mut().for_each(Client::hang_up);
        world.turn();
        world.verify_quiet();
        assert_eq!(world.turn(), Turn::Idle);
    }
}
