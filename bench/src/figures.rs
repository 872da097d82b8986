//! The figures a reader asks for first: start to ready, time to first token of a long prompt cold and after a
//! hit, output tokens per second at several numbers of concurrent requests.

use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::completion::{self, Ask, Measured};
use crate::http::{self, BenchError};
use crate::machine;
use crate::random::Random;

/// A server that is not ready by then will not be.
const READY_LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A running server.
    #[arg(long, default_value = "http://127.0.0.1:8000", conflicts_with = "server")]
    url: String,
    /// Start this `arbora` binary instead, on a free port, and time its start.
    #[arg(long)]
    server: Option<PathBuf>,
    /// About how long the long prompts are.
    #[arg(long, default_value_t = 1500)]
    prompt_tokens: usize,
    /// Output tokens of each request in the batches.
    #[arg(long, default_value_t = 128)]
    output_tokens: usize,
    /// Numbers of concurrent requests.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32])]
    batches: Vec<usize>,
    /// Each figure is the median of this many runs.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// Seed of all prompts; another one makes them cold again.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Further arguments of `arbora serve`.
    #[arg(last = true)]
    server_arguments: Vec<String>,
}

/// A server process that ends with its owner.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Prints the report to `out`.
pub(crate) fn run(arguments: &Arguments, out: &mut impl Write) -> Result<(), BenchError> {
    let mut url = arguments.url.clone();
    let mut started = None;
    if let Some(binary) = &arguments.server {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        url = format!("http://127.0.0.1:{port}");
        let mut command = Command::new(binary);
        command
            .args(["serve", "--port", &port.to_string()])
            .args(&arguments.server_arguments);
        let start = Instant::now();
        let server = Server(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?,
        );
        wait_until_ready(http::authority(&url)?)?;
        started = Some((server, start.elapsed()));
    }
    let authority = http::authority(&url)?;
    let (head, models) = http::fetch(authority, "/v1/models", None)?;
    let models: Value = serde_json::from_str(&models).unwrap_or_default();
    let model = models["data"][0]["id"].as_str().unwrap_or_default().to_owned();
    let date = head.header("date").unwrap_or("no date in the answer");
    writeln!(out, "{}; {model}; {date}", machine::describe())?;
    if let Some((_, took)) = &started {
        writeln!(out, "start to ready              {:8.0} ms", milliseconds(*took))?;
    }
    let mut random = Random(arguments.seed);
    first_tokens(arguments, authority, &model, &mut random, out)?;
    throughput(arguments, authority, &model, &mut random, out)
}

fn wait_until_ready(authority: &str) -> Result<(), BenchError> {
    let start = Instant::now();
    while http::fetch(authority, "/health", None).is_err() {
        if start.elapsed() > READY_LIMIT {
            return Err(BenchError::Check(format!(
                "no server at {authority} after {READY_LIMIT:?}"
            )));
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "a port that is not open yet cannot be waited for"
        )]
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Time to first token of prompts nobody has seen, then of the same prompts again.
fn first_tokens(
    arguments: &Arguments,
    authority: &str,
    model: &str,
    random: &mut Random,
    out: &mut impl Write,
) -> Result<(), BenchError> {
    let mut ask = Ask {
        model: model.to_owned(),
        prompt: random.text(8),
        max_tokens: 1,
    };
    completion::stream(authority, &ask)?;
    let (mut cold, mut hit) = (Vec::new(), Vec::new());
    for _ in 0..arguments.repeats {
        ask.prompt = random.text(arguments.prompt_tokens);
        cold.push(completion::stream(authority, &ask)?);
        hit.push(completion::stream(authority, &ask)?);
    }
    let ttft = |runs: &[Measured]| median(runs.iter().map(|run| milliseconds(run.ttft)).collect());
    let cached = |runs: &[Measured]| runs.iter().map(|run| run.cached_tokens).max().unwrap_or(0);
    let n_prompt = cold[0].prompt_tokens;
    for (name, runs) in [("cold", &cold), ("hit ", &hit)] {
        writeln!(
            out,
            "first token, {n_prompt} tokens, {name} {:6.1} ms   ({} cached)",
            ttft(runs),
            cached(runs)
        )?;
    }
    writeln!(
        out,
        "cold / hit                  {:8.1} x",
        ttft(&cold) / ttft(&hit)
    )?;
    let prompt_rate = n_prompt as f64 / ttft(&cold) * 1e3;
    writeln!(out, "prompt tokens, cold         {prompt_rate:8.0} tokens/s")?;
    Ok(())
}

/// Output tokens per second of `n` requests at once, from the first request sent to the last stream ended.
fn throughput(
    arguments: &Arguments,
    authority: &str,
    model: &str,
    random: &mut Random,
    out: &mut impl Write,
) -> Result<(), BenchError> {
    let mut alone = None;
    for &n in &arguments.batches {
        let mut rates = Vec::new();
        for _ in 0..arguments.repeats {
            let ask = |_| Ask {
                model: model.to_owned(),
                prompt: random.text(32),
                max_tokens: arguments.output_tokens,
            };
            let asks: Vec<Ask> = (0..n).map(ask).collect();
            rates.push(crowd_rate(authority, &asks)?);
        }
        let rate = median(rates);
        let alone = *alone.get_or_insert(rate);
        writeln!(
            out,
            "output at batch {n:<4}        {rate:8.0} tokens/s   ({:.2} x batch 1)",
            rate / alone
        )?;
    }
    Ok(())
}

fn crowd_rate(authority: &str, asks: &[Ask]) -> Result<f64, BenchError> {
    let start = Instant::now();
    let runs: Result<Vec<Measured>, BenchError> = thread::scope(|scope| {
        let threads: Vec<_> = asks
            .iter()
            .map(|ask| scope.spawn(|| completion::stream(authority, ask)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a client thread does not panic"))
            .collect()
    });
    let n_tokens: u64 = runs?.iter().map(|run| run.completion_tokens).sum();
    Ok(n_tokens as f64 / start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_of_the_sorted_values() {
        assert_eq!(median(vec![9.0, 1.0, 5.0]), 5.0);
        assert_eq!(median(vec![2.0]), 2.0);
    }
}
