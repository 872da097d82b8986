//! What the tests of the emulator share: numbers, memory, launches, mutants.

#![expect(dead_code, reason = "each test uses another part")]

use arbora_ptx_emulator::{Dim, Fault, Launch, Memory, Module, Options, Statistics, run};

/// xorshift64. The seed is not zero.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Uniform in -1..1.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// Nearest, ties to even.
pub(crate) fn bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

pub(crate) fn wide(bits: u16) -> f64 {
    f64::from(f32::from_bits(u32::from(bits) << 16))
}

/// A new block of device memory with these bytes.
pub(crate) fn upload(memory: &mut Memory, bytes: impl IntoIterator<Item = u8>) -> u64 {
    let bytes: Vec<u8> = bytes.into_iter().collect();
    let at = memory.allocate(bytes.len());
    memory
        .slice_mut(at, bytes.len())
        .expect("just allocated")
        .copy_from_slice(&bytes);
    at
}

pub(crate) fn floats(memory: &Memory, at: u64, n: usize) -> Vec<f32> {
    let bytes = memory.slice(at, 4 * n).expect("the output is there");
    bytes
        .chunks_exact(4)
        .map(|word| f32::from_le_bytes(word.try_into().expect("4 bytes")))
        .collect()
}

/// One parameter of a kernel.
pub(crate) enum Param {
    Address(u64),
    Number(u32),
    Bytes(Vec<u8>, usize),
}

/// The parameters as a kernel lays them out.
pub(crate) fn params(of: &[Param]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::new();
    for param in of {
        let (bytes, alignment) = match param {
            Param::Address(value) => (value.to_le_bytes().to_vec(), 8),
            Param::Number(value) => (value.to_le_bytes().to_vec(), 4),
            Param::Bytes(bytes, alignment) => (bytes.clone(), *alignment),
        };
        out.resize(out.len().next_multiple_of(alignment), 0);
        out.extend(bytes);
    }
    out
}

/// Runs a kernel of a text that declares no global variables.
pub(crate) fn launch(
    text: &str,
    kernel: &str,
    (grid, block): (Dim, Dim),
    of: &[Param],
    (memory, seed): (&mut Memory, u64),
) -> Result<Statistics, Fault> {
    let module = Module::parse(text).unwrap_or_else(|error| panic!("{error}"));
    let params = params(of);
    let launch = Launch {
        module: &module,
        kernel: &module.kernels[kernel],
        globals: &[],
        grid,
        block,
        dynamic_shared: 0,
        params: &params,
    };
    run(
        &launch,
        memory,
        Options {
            seed,
            ..Options::default()
        },
    )
}

/// `sqrt(sum (a - b)^2 / sum b^2)`.
pub(crate) fn relative_error(actual: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let error: f64 = actual
        .iter()
        .zip(expected)
        .map(|(a, e)| (f64::from(*a) - e).powi(2))
        .sum();
    (error / expected.iter().map(|e| e * e).sum::<f64>()).sqrt()
}

/// The text with the `n`th `from` replaced, from 0 on.
pub(crate) fn mutated(text: &str, from: &str, to: &str, n: usize) -> String {
    let (at, _) = text
        .match_indices(from)
        .nth(n)
        .unwrap_or_else(|| panic!("{n} times {from}"));
    format!("{}{to}{}", &text[..at], &text[at + from.len()..])
}

/// The text without one instruction that orders something after something else, for each of these, with the
/// instruction. A shuffle is not taken out but replaced by the lane's own value.
pub(crate) fn without_each_synchronization(text: &str) -> Vec<(String, String)> {
    let kinds = [
        "bar.sync",
        "barrier.sync",
        "cp.async.wait_group",
        "cp.async.commit_group",
        "shfl.sync",
    ];
    let lines: Vec<&str> = text.lines().collect();
    let mut mutants = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(kind) = kinds.iter().find(|kind| line.trim_start().starts_with(**kind)) else {
            continue;
        };
        let mut mutant = lines.clone();
        let mut operands = line.split_whitespace().skip(1);
        let own = format!(
            "mov.b32 {}, {};",
            operands
                .next()
                .unwrap_or_default()
                .split(['|', ','])
                .next()
                .unwrap_or_default(),
            operands.next().unwrap_or_default().trim_end_matches(',')
        );
        mutant[at] = if *kind == "shfl.sync" { &own } else { "" };
        mutants.push((format!("line {}: {}", at + 1, line.trim()), mutant.join("\n")));
    }
    mutants
}
