//! What the backend says when something is missing or fails, and that it hangs nowhere.

use crate::emulated::{DEVICE_MEMORY, Emulated};
use arbora_kernels::cuda::{CudaBackend, CudaConfig, CudaError};
use arbora_kernels::{Answers, Backend, KvShape, SampleRow};
use cuda::control::Failure;

use crate::support::{Rows, SMALL};
use crate::tensor;

const OUT_OF_MEMORY: i32 = 2;
const ILLEGAL_ADDRESS: i32 = 700;
const UNKNOWN: i32 = 999;

#[test]
fn a_device_that_is_not_there_is_refused_with_how_many_there_are() {
    let Some(device) = Emulated::new(1) else { return };
    let config = CudaConfig {
        ordinal: 7,
        library_folders: device.libraries.clone(),
        cache_folder: None,
        max_graphs: 0,
    };
    let error = CudaBackend::new(&config).err().expect("there is no such device");
    assert!(
        matches!(
            error,
            CudaError::NoDevice {
                ordinal: 7,
                n_devices: 2
            }
        ),
        "{error}"
    );
}

#[test]
fn a_failure_of_any_call_at_the_start_is_named_and_leaves_no_memory_behind() {
    let calls = [
        "cuInit",
        "cuDeviceGetCount",
        "cuDeviceGet",
        "cuDeviceGetName",
        "cuDeviceGetAttribute",
        "cuDevicePrimaryCtxRetain",
        "cuCtxSetCurrent",
        "cuStreamCreate",
        "cuModuleGetFunction",
        "cuFuncSetAttribute",
    ];
    for call in calls {
        let Some(device) = Emulated::new(1) else { return };
        device.driver.fail(call, 1, UNKNOWN, Failure::Once);
        let error = device.backend().err().unwrap_or_else(|| panic!("{call} failed"));
        assert!(error.to_string().contains(call), "{call}: {error}");
        assert_eq!(device.driver.counts().n_blocks, 0, "{call}");
        assert!(device.backend().is_ok(), "{call} failed once");
    }
}

#[test]
fn too_little_memory_is_refused_with_the_numbers_and_the_device_goes_on() {
    let Some(device) = Emulated::new(1) else { return };
    let mut backend = device.backend().expect("the emulated device works");
    let shape = KvShape {
        n_layers: 2,
        n_kv_heads: 8,
        head_dim: 128,
        page_size: 64,
        n_pages: 100_000,
    };
    let error = backend.kv(shape).err().expect("more than the device has");
    assert!(
        error
            .to_string()
            .contains(&(shape.page_bytes() * shape.n_pages).to_string()),
        "{error}"
    );
    device
        .driver
        .fail("cuMemAlloc_v2", 1, OUT_OF_MEMORY, Failure::Once);
    assert!(backend.tensor(4, 4).is_err());
    assert!(!backend.is_lost());
    assert!(backend.tensor(4, 4).is_ok());
    assert_eq!(backend.memory().expect("the device answers").1, DEVICE_MEMORY);
}

/// One step that draws a token; what came of it.
fn step(backend: &mut CudaBackend) -> Answers {
    let x = tensor(backend, 4, &[0.0, 1.0, 0.0, 0.0]);
    let mut out = backend.tensor(1, 4).unwrap_or_else(|error| panic!("{error}"));
    let rows = Rows {
        logit_rows: vec![0],
        ..Rows::zeros(1)
    };
    let batch = rows.upload(backend, SMALL);
    backend.gather(&x, &batch, &mut out);
    let mut pending = backend.pending(1).unwrap_or_else(|error| panic!("{error}"));
    backend.sample(&out, &[SampleRow::GREEDY], &[], &mut pending);
    while !backend.is_done(&pending) {
        std::hint::spin_loop();
    }
    let mut answers = Answers::default();
    backend.collect(&mut pending, &mut answers);
    answers
}

#[test]
fn a_device_that_is_lost_in_a_step_says_so_and_answers_nothing() {
    let calls = [
        "cuLaunchKernel",
        "cuMemcpyHtoDAsync_v2",
        "cuMemcpyDtoHAsync_v2",
        "cuEventRecord",
        "cuEventSynchronize",
    ];
    for call in calls {
        let Some(device) = Emulated::new(1) else { return };
        let mut backend = device.backend().expect("the emulated device works");
        assert_eq!(step(&mut backend).tokens, [Some(1)], "{call}");
        // Behind what is copied to fill a tensor.
        let n = match call {
            "cuMemcpyHtoDAsync_v2" => 4,
            "cuMemcpyDtoHAsync_v2" => 1,
            _ => 2,
        };
        device.driver.fail(call, n, ILLEGAL_ADDRESS, Failure::Once);
        let answers = step(&mut backend);
        assert!(backend.is_lost(), "{call}");
        let failure = backend.failure().message().expect("a lost device says why");
        assert!(
            failure.contains("CUDA_ERROR_ILLEGAL_ADDRESS"),
            "{call}: {failure}"
        );
        assert_eq!(answers.tokens, [None], "{call}");
    }
}

#[test]
fn everything_is_given_back_at_the_end() {
    let Some(device) = Emulated::new(1) else { return };
    let mut backend = device.backend().expect("the emulated device works");
    step(&mut backend);
    drop(backend);
    assert_eq!(device.driver.counts().n_blocks, 0);
}
