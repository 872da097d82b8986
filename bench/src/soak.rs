//! Thousands of mixed requests against a running server: short and long, streamed and whole, cancelled
//! half-way, malformed. Ends in failure when an answer is not what it should be, when the server's memory
//! keeps growing, or when it still holds something for requests that are gone.

use std::io::Write;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http::{self, BenchError};
use crate::machine;
use crate::random::Random;

/// After this share of the requests every buffer has had its chance to reach its size.
const WARM_SHARE: usize = 4;
/// Allocators keep a little more or less between two looks.
const GROWTH_LIMIT_KIB: u64 = 8 * 1024;

/// Gauges that read 0 when nobody wants anything.
const GAUGES: [&str; 3] = ["arbora_running", "arbora_waiting", "arbora_pages_owned"];
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A running server.
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    url: String,
    /// Its process, whose memory is watched.
    #[arg(long)]
    pid: u32,
    /// Requests in all.
    #[arg(long, default_value_t = 2000)]
    requests: usize,
    /// Requests at once.
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Seed of the mix.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Prints the report to `out`.
pub(crate) fn run(arguments: &Arguments, out: &mut impl Write) -> Result<(), BenchError> {
    let authority = http::authority(&arguments.url)?;
    let (_, models) = http::fetch(authority, "/v1/models", None)?;
    let models: Value = serde_json::from_str(&models).unwrap_or_default();
    let model = models["data"][0]["id"].as_str().unwrap_or_default();
    let n_warm = arguments.requests / WARM_SHARE;
    let at_start = machine::resident_kib(arguments.pid)?;
    crowd(arguments, authority, model, 0..n_warm)?;
    let warm = machine::resident_kib(arguments.pid)?;
    crowd(arguments, authority, model, n_warm..arguments.requests)?;
    let at_end = machine::resident_kib(arguments.pid)?;
    writeln!(
        out,
        "{} requests, seed {}: {at_start} KiB resident at start, {warm} after {n_warm}, {at_end} at the end",
        arguments.requests, arguments.seed
    )?;
    if at_end > warm + GROWTH_LIMIT_KIB {
        return Err(BenchError::Check(format!("memory grew by {} KiB", at_end - warm)));
    }
    nothing_left(authority)
}

/// Runs the requests with the numbers in `range`, `clients` at a time.
fn crowd(
    arguments: &Arguments,
    authority: &str,
    model: &str,
    range: std::ops::Range<usize>,
) -> Result<(), BenchError> {
    let next = AtomicUsize::new(range.start);
    let client = || loop {
        let i = next.fetch_add(1, Ordering::Relaxed);
        if i >= range.end {
            return Ok(());
        }
        one(
            authority,
            model,
            Random(arguments.seed.wrapping_mul(1 << 32) + i as u64),
        )?;
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..arguments.clients).map(|_| scope.spawn(client)).collect();
        clients
            .into_iter()
            .try_for_each(|client| client.join().expect("a client thread does not panic"))
    })
}

/// One request of the mix, its answer checked.
fn one(authority: &str, model: &str, mut random: Random) -> Result<(), BenchError> {
    let kind = random.below(20);
    let stream = random.below(2) == 0;
    // A few shared openings, so that some of it is in the cache and some is not.
    let opening = Random(random.below(4) as u64).text(40);
    let n_words = 1 + random.below(120);
    let question = random.text(n_words);
    let (path, mut body) = if random.below(2) == 0 {
        let messages =
            json!([{ "role": "system", "content": opening }, { "role": "user", "content": question }]);
        ("/v1/chat/completions", json!({ "messages": messages }))
    } else {
        (
            "/v1/completions",
            json!({ "prompt": format!("{opening} {question}") }),
        )
    };
    body["model"] = json!(model);
    body["max_tokens"] = json!(1 + random.below(24));
    body["temperature"] = json!(if random.below(2) == 0 { 0.0 } else { 0.9 });
    body["stream"] = json!(stream);
    match kind {
        0 => return expect_status(authority, path, "{\"model\": ", 400),
        1 => {
            body["temperature"] = json!(-1);
            return expect_status(authority, path, &body.to_string(), 400);
        }
        2 => {
            body["model"] = json!("no-such-model");
            return expect_status(authority, path, &body.to_string(), 404);
        }
        3..=5 => {
            body["stream"] = json!(true);
            body["max_tokens"] = json!(400);
            http::request(authority, path, Some(&body.to_string()), |_| {
                ControlFlow::Break(())
            })?;
            return Ok(());
        }
        _ => {}
    }
    let (_, text) = http::fetch(authority, path, Some(&body.to_string()))?;
    let complete = if stream {
        text.ends_with("data: [DONE]\n\n")
    } else {
        text.contains("\"cached_tokens\"")
    };
    if complete {
        Ok(())
    } else {
        Err(BenchError::Answer {
            field: "proper end",
            body: text,
        })
    }
}

fn expect_status(authority: &str, path: &str, body: &str, status: u16) -> Result<(), BenchError> {
    match http::fetch(authority, path, Some(body)) {
        Err(BenchError::Status { status: answered, .. }) if answered == status => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(BenchError::Check(format!("{path} accepted {body}"))),
    }
}

/// The server's own word that no request runs, waits or owns pages. A connection that was just cut needs a
/// moment to be noticed.
fn nothing_left(authority: &str) -> Result<(), BenchError> {
    let start = Instant::now();
    loop {
        let (_, metrics) = http::fetch(authority, "/metrics", None)?;
        // With the label of its model.
        let value = |gauge: &str| {
            metrics.lines().find_map(|line| {
                let labelled = line.strip_prefix(gauge)?.strip_prefix('{')?;
                labelled.split_once("} ").map(|(_, value)| value)
            })
        };
        let left = GAUGES.iter().find(|gauge| value(gauge) != Some("0"));
        let Some(gauge) = left else { return Ok(()) };
        if start.elapsed() > SETTLE_LIMIT {
            let value = value(gauge).unwrap_or("absent");
            return Err(BenchError::Check(format!(
                "after the last request {gauge} is {value}"
            )));
        }
        #[expect(clippy::disallowed_methods, reason = "a gauge cannot be waited for over HTTP")]
        thread::sleep(Duration::from_millis(20));
    }
}
