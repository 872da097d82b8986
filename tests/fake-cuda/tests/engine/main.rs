//! Whole models through the engine on the emulated device: the CPU's tokens, the same in every batch, chunk,
//! schedule and from the cache, and one ending for every request when the device is lost.

#[path = "../support/emulated.rs"]
mod emulated;
mod logits;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arbora_kernels::Backend;
use arbora_kernels::cpu::{CpuBackend, CpuConfig, Isa, Pinning};
use arbora_runtime::engine::{Engine, EngineConfig, EngineExit, Turn};
use arbora_runtime::model::ModelFile;
use arbora_runtime::request::{Event, FinishReason, Request, SamplingParams, StopConditions};
use cuda::control::Failure;
use emulated::{DEVICE_MEMORY, Emulated};
use tokio::sync::mpsc;

const CONTEXT: usize = 128;
const N_TOKENS: usize = 6;
const ILLEGAL_ADDRESS: i32 = 700;

/// A file of the tiny models that the reference scripts made.
fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../golden/families")
        .join(name)
}

/// One of these models.
fn model(name: &str) -> ModelFile {
    ModelFile::open(&golden(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn cpu() -> CpuBackend {
    let config = CpuConfig {
        n_threads: 1,
        isa: Some(Isa::Scalar),
        pinning: Pinning::Free,
    };
    CpuBackend::new(config).expect("the plain kernels run anywhere")
}

/// Prompts of which some begin alike, and how each is drawn from.
fn asks() -> Vec<(Vec<u32>, SamplingParams)> {
    let shared: Vec<u32> = (0..37).map(|i| 3 + i * 7 % 250).collect();
    let warm = SamplingParams {
        temperature: 0.9,
        top_k: 40,
        seed: 11,
        ..SamplingParams::GREEDY
    };
    vec![
        (shared.clone(), SamplingParams::GREEDY),
        ([&shared[..], &[5, 9]].concat(), warm),
        ([&shared[..20], &[200, 100, 50]].concat(), SamplingParams::GREEDY),
        ((0..70).map(|i| 4 + i * 11 % 300).collect(), warm),
        (vec![8], SamplingParams::GREEDY),
    ]
}

/// An engine and what its clients got.
struct Clients<B: Backend> {
    engine: Engine<B>,
    handle: arbora_runtime::engine::EngineHandle,
    events: Vec<mpsc::Receiver<Event>>,
}

impl<B: Backend> Clients<B> {
    fn new(mut backend: B, file: &ModelFile, config: EngineConfig) -> Self {
        let decoder = file.load_decoder(&mut backend, config.context, config.forward_limits());
        let decoder = decoder.unwrap_or_else(|error| panic!("{error}"));
        let bytes = Arc::new(file.tokenizer().expect("a good tokenizer").text_bytes(&[]));
        let (engine, handle) = Engine::new(backend, decoder, bytes, config).expect("a good configuration");
        Clients {
            engine,
            handle,
            events: Vec::new(),
        }
    }

    fn submit(&mut self, (prompt, sampling): &(Vec<u32>, SamplingParams)) {
        let id = self.handle.next_id();
        let (sender, events) = mpsc::channel(Request::event_capacity(N_TOKENS));
        let request = Request {
            sampling: *sampling,
            stop: StopConditions {
                ignore_eos: true,
                ..StopConditions::default()
            },
            ..Request::new(id, prompt.clone(), N_TOKENS, Instant::now(), sender)
        };
        self.handle
            .submit(request)
            .unwrap_or_else(|error| panic!("{error}"));
        self.events.push(events);
    }

    /// Turns until there is nothing to do.
    fn run(&mut self) -> Turn {
        loop {
            match self.engine.turn(&Instant::now) {
                Turn::Busy => {}
                other => return other,
            }
        }
    }

    /// The tokens and endings of all requests so far.
    fn take(&mut self) -> Vec<(Vec<u32>, Vec<FinishReason>)> {
        let mut taken = Vec::new();
        for mut events in self.events.drain(..) {
            let (mut tokens, mut endings) = (Vec::new(), Vec::new());
            while let Ok(event) = events.try_recv() {
                match event {
                    Event::Tokens(event) => tokens.extend(event.ids),
                    Event::Finished(finished) => endings.push(finished.reason),
                    _ => {}
                }
            }
            taken.push((tokens, endings));
        }
        taken
    }
}

fn config(max_batch_tokens: usize, n_pages: usize) -> EngineConfig {
    EngineConfig {
        max_batch_tokens,
        max_running: 4,
        max_draft_rows: 4,
        max_scored_rows: 4,
        // An emulated device is slow.
        max_queue_wait: None,
        ..EngineConfig::new(n_pages, CONTEXT)
    }
}

/// The outputs of all requests at once; with `again` each is asked a second time, when it is cached.
fn outputs<B: Backend>(backend: B, file: &ModelFile, config: EngineConfig) -> Vec<Vec<u32>> {
    let mut clients = Clients::new(backend, file, config);
    let mut rounds = Vec::new();
    for _ in 0..2 {
        asks().iter().for_each(|ask| clients.submit(ask));
        clients.run();
        let taken = clients.take();
        let reasons = taken.iter().map(|(_, reasons)| &reasons[..]);
        assert!(
            reasons
                .clone()
                .all(|reasons| matches!(reasons, [FinishReason::Length])),
            "{taken:?}"
        );
        rounds.push(taken.into_iter().map(|(tokens, _)| tokens).collect::<Vec<_>>());
    }
    assert_eq!(rounds[0], rounds[1], "cold and cached");
    rounds.swap_remove(0)
}

#[test]
fn tokens_are_those_of_the_cpu_however_they_are_batched() {
    // In one batch, in small chunks, and with so few pages that requests make way for each other; without
    // graphs, with some, and with all that are wanted.
    let cases = [
        ("llama2", 128, 64, 0),
        ("llama2", 7, 64, 3),
        ("llama2", 16, 14, 99),
        ("gemma", 32, 64, 99),
    ];
    for (seed, (name, max_batch_tokens, n_pages, n_graphs)) in (1..).zip(cases) {
        let file = model(name);
        let expected = outputs(cpu(), &file, config(64, 64));
        let Some(device) = Emulated::new(seed) else { return };
        let backend = device
            .backend_with(n_graphs)
            .unwrap_or_else(|error| panic!("{error}"));
        let actual = outputs(backend, &file, config(max_batch_tokens, n_pages));
        let what = format!("{name}, {max_batch_tokens} rows, {n_pages} pages");
        assert_eq!(actual, expected, "{what}: {}", device.driver.fault());
        assert_eq!(device.driver.counts().n_blocks, 0, "{what}: memory is given back");
    }
}

#[test]
fn a_lost_device_ends_every_request_once_and_the_engine_with_it() {
    let file = model("llama2");
    // Without graphs, so that each kernel is a launch.
    let start = || {
        let device = Emulated::new(4)?;
        let backend = device.backend_with(0).unwrap_or_else(|error| panic!("{error}"));
        let mut clients = Clients::new(backend, &file, config(16, 64));
        asks().iter().for_each(|ask| clients.submit(ask));
        Some((device, clients))
    };
    let Some((device, mut clients)) = start() else {
        return;
    };
    let n_before = device.driver.counts().n_launches;
    assert_eq!(clients.run(), Turn::Idle);
    let n_all = u32::try_from(device.driver.counts().n_launches - n_before).expect("a count");
    // One device at a time.
    drop((clients, device));
    for n_launches in [3, n_all / 4, n_all / 2] {
        let Some((device, mut clients)) = start() else {
            return;
        };
        device
            .driver
            .fail("cuLaunchKernel", n_launches, ILLEGAL_ADDRESS, Failure::Sticky);
        assert_eq!(
            clients.run(),
            Turn::Over(EngineExit::DeviceLost),
            "launch {n_launches}"
        );
        for (tokens, reasons) in clients.take() {
            assert_eq!(
                reasons.len(),
                1,
                "launch {n_launches}: {reasons:?} after {} tokens",
                tokens.len()
            );
        }
    }
}

#[test]
fn a_model_that_does_not_fit_is_refused_with_the_numbers() {
    let Some(device) = Emulated::new(4) else { return };
    let mut backend = device.backend().unwrap_or_else(|error| panic!("{error}"));
    let file = model("llama2");
    device.driver.fail("cuMemAlloc_v2", 1, 2, Failure::Once);
    let error = file
        .load_decoder(&mut backend, CONTEXT, config(16, 64).forward_limits())
        .err();
    let said = error.expect("no memory").to_string();
    assert!(said.contains("out of memory"), "{said}");
    assert_eq!(backend.memory().expect("the device goes on").1, DEVICE_MEMORY);
}
