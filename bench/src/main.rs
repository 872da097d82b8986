//! `arbora-bench`: figures of a running server over HTTP, a load generator for any such server, a soak that
//! watches memory, a simulation of the prefix cache, and kernel benches.
//!
//! Every report names the machine and the date, and quotes ratios beside absolute figures: on shared machines
//! the latter move by tens of percent from one run to the next.

mod attention;
mod cache_sim;
mod completion;
mod encoder;
mod experts;
mod figures;
mod formats;
mod http;
mod kernels;
mod machine;
mod pool;
mod random;
mod rows;
mod serve;
mod soak;
mod step;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Benches of Arbora.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Paged attention against the machine's bf16 peak and read bandwidth.
    Attention(attention::Arguments),
    /// Hits and waits of each scheduling policy on traces of requests, without a model.
    CacheSim(cache_sim::Arguments),
    /// Mixtures of experts: weights read and time per call, beside a call that reads all of them.
    Experts(experts::Arguments),
    /// Forward pass of a small encoder (embeddings), dense layers beside the same in f32.
    Encoder(encoder::Arguments),
    /// Time to first token cold and after a hit, tokens per second at several batch sizes, start to ready.
    Figures(figures::Arguments),
    /// A linear layer in every quantization, beside Q4_1 in the same run.
    Formats(formats::Arguments),
    /// Linear layers against the machine's int8 peak and read bandwidth.
    Kernels(kernels::Arguments),
    /// Thread pool beside busy processes: jobs per second by way of pinning.
    Pool(pool::Arguments),
    /// Norms, rotation, SiLU and sampling: time per row.
    Rows(rows::Arguments),
    /// Load on a server that speaks the OpenAI API, with the flags and metrics of SGLang's bench_serving.
    Serve(Box<serve::Arguments>),
    /// Thousands of mixed requests (streams, cancellations, errors); fails when memory grows or pages leak.
    Soak(soak::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut out = io::stdout().lock();
    let outcome = match &arguments.command {
        Command::Attention(arguments) => attention::run(arguments, &mut out),
        Command::CacheSim(arguments) => cache_sim::run(arguments, &mut out),
        Command::Experts(arguments) => experts::run(arguments, &mut out),
        Command::Encoder(arguments) => encoder::run(arguments, &mut out),
        Command::Figures(arguments) => figures::run(arguments, &mut out),
        Command::Formats(arguments) => formats::run(arguments, &mut out),
        Command::Kernels(arguments) => kernels::run(arguments, &mut out),
        Command::Pool(arguments) => pool::run(arguments, &mut out),
        Command::Rows(arguments) => rows::run(arguments, &mut out),
        Command::Serve(arguments) => serve::run(arguments, &mut out),
        Command::Soak(arguments) => soak::run(arguments, &mut out),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to tell if stderr is gone too.
            let _ = writeln!(io::stderr(), "arbora-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
