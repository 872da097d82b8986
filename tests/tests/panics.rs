//! A panic anywhere in a step ends what runs with one error each; the engine keeps serving.

use std::sync::atomic::Ordering;
use std::time::Duration;

use arbora_runtime::engine::{EngineConfig, EngineExit, Turn};
use arbora_runtime::request::{FinishReason, RequestError, SubmitError};
use arbora_tests::random::Random;
use arbora_tests::toy::N_VOCAB;
use arbora_tests::world::{Ask, Client, Device, World};

/// Keeps the injected panics out of the output.
fn hide_injected_panics() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let message = info.payload_as_str().unwrap_or_default();
        if !message.starts_with("injected panic") {
            default(info);
        }
    }));
}

/// Requests that share, copy donor pages, are evicted, preempted and wait.
fn scenario(device: Device) -> World {
    let mut config = EngineConfig::new(12, 44);
    config.page_size = 4;
    config.max_running = 3;
    config.max_batch_tokens = 9;
    config.expected_output = 0.0;
    let mut world = World::with_device(config, device);
    let mut random = Random::new(0xFA);
    let common: Vec<u32> = (0..14).map(|_| random.below(N_VOCAB) as u32).collect();
    for i in 0..5 {
        let mut prompt = common[..14 - i].to_vec();
        prompt.push(random.below(N_VOCAB) as u32);
        world.submit(&Ask::new(&prompt, 8 + 2 * i)).expect("it fits");
    }
    world
}

#[test]
fn a_panic_in_any_call_ends_what_runs_once_and_the_engine_goes_on() {
    hide_injected_panics();
    panic_in_each_call(Device::default());
    for seed in 1..4 {
        panic_in_each_call(Device {
            late: Some(seed),
            ..Device::default()
        });
    }
}

fn panic_in_each_call(device: Device) {
    let mut n_failed = 0;
    let mut n_survived = 0;
    for n in 1.. {
        let mut world = scenario(device);
        world.fuse.light(n);
        assert_eq!(world.run(1_000), Turn::Idle, "panic in call {n}");
        world.verify_quiet();
        if !world.fuse.is_out() {
            assert!(n > 500, "the scenario makes {n} calls");
            break;
        }
        assert_eq!(world.handle.metrics().panics.value(), 1);
        for client in &world.clients {
            match client.reason() {
                FinishReason::Error(RequestError::EngineFailed) => n_failed += 1,
                FinishReason::Length => n_survived += 1,
                other => panic!("{other:?} after a panic in call {n}"),
            }
        }
        let again = world
            .submit(&Ask::new(&[1, 2, 3], 4))
            .expect("the engine accepts");
        assert_eq!(world.run(1_000), Turn::Idle);
        world.verify_quiet();
        assert_eq!(world.clients[again].reason(), &FinishReason::Length);
    }
    assert!(
        n_failed > 0 && n_survived > 0,
        "{n_failed} failed, {n_survived} survived"
    );
}

#[test]
fn an_engine_that_panics_too_often_ends_everything_and_stops() {
    hide_injected_panics();
    let mut world = scenario(Device::default());
    let mut n_panics = 0;
    let exit = loop {
        if world.fuse.is_out() {
            n_panics += 1;
            world.fuse.light(3);
        }
        if let Turn::Over(exit) = world.turn() {
            break exit;
        }
        if world.handle.n_in_flight() < 4 && n_panics < 4 {
            world.submit(&Ask::new(&[9, 9, 9], 3)).expect("it still serves");
        }
    };
    assert_eq!(exit, EngineExit::Failed);
    assert_eq!(
        world.handle.metrics().panics.value(),
        4,
        "three are forgiven within a minute"
    );
    world.verify_quiet();
    assert_eq!(world.submit(&Ask::new(&[1], 1)), Err(SubmitError::ShuttingDown));
    assert_eq!(world.turn(), Turn::Over(EngineExit::Failed));
}

#[test]
fn panics_far_apart_are_forgiven() {
    hide_injected_panics();
    let mut world = scenario(Device::default());
    for _ in 0..12 {
        world.fuse.light(3);
        world.submit(&Ask::new(&[1, 2], 2)).expect("it serves");
        assert_eq!(world.run(1_000), Turn::Idle);
        world.wait(Duration::from_secs(21));
    }
    world.verify_quiet();
    assert_eq!(world.handle.metrics().panics.value(), 12);
}

#[test]
fn a_lost_device_ends_every_request_with_its_error_and_the_engine() {
    for late in [None, Some(1), Some(2), Some(3)] {
        for n_turns in 0..40 {
            let device = Device {
                late,
                ..Device::default()
            };
            let mut world = scenario(device);
            for _ in 0..n_turns {
                world.turn();
            }
            let was_over: Vec<bool> = world.clients.iter().map(Client::is_over).collect();
            world.loss.store(true, Ordering::SeqCst);
            let Turn::Over(exit) = world.turn() else {
                assert!(was_over.iter().all(|over| *over), "an idle engine does not look");
                continue;
            };
            assert_eq!(exit, EngineExit::DeviceLost);
            world.verify_quiet();
            for (client, was_over) in world.clients.iter().zip(was_over) {
                let is_lost = client.reason() == &FinishReason::Error(RequestError::DeviceLost);
                assert!(was_over != is_lost, "{:?}", client.reason());
            }
            assert_eq!(world.submit(&Ask::new(&[1], 1)), Err(SubmitError::ShuttingDown));
        }
    }
}
