//! The figures as a table and as a line of JSON with SGLang's names.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use super::arguments::Arguments;
use super::load::Run;
use super::metrics::{Metrics, Pieces, Summary, ttft};
use super::workload::Ask;
use crate::http::BenchError;

/// Errors that fill a screen hide the figures.
const MAX_ERROR_CHARS: usize = 300;

/// What was measured, where and when.
#[derive(Debug)]
pub(super) struct Header<'a> {
    pub(super) arguments: &'a Arguments,
    pub(super) url: &'a str,
    pub(super) model: &'a str,
    pub(super) machine: String,
    /// As the server gave it.
    pub(super) date: Option<String>,
    pub(super) server_info: Option<Value>,
}

pub(super) fn print(header: &Header<'_>, metrics: &Metrics, out: &mut impl Write) -> io::Result<()> {
    let arguments = header.arguments;
    let (backend, dataset) = (name(&arguments.backend), name(&arguments.dataset_name));
    let date = header.date.as_deref().unwrap_or("no date in the answer");
    let limit = arguments.max_concurrency.map(|n| n.to_string());
    let limit = limit.unwrap_or_else(|| "no limit".to_owned());
    writeln!(out, "{}; {date}", header.machine)?;
    writeln!(out, "{backend} at {}, {}", header.url, header.model)?;
    let (rate, seed) = (arguments.request_rate, arguments.seed);
    writeln!(
        out,
        "{dataset}, request rate {rate}, max concurrency {limit}, seed {seed}\n"
    )?;
    let mut row = |label: &str, value: String| writeln!(out, "{label:<36}{value:>14}");
    row("Successful requests", metrics.completed.to_string())?;
    row("Failed requests", metrics.failed().to_string())?;
    row("Benchmark duration (s)", format!("{:.2}", metrics.duration))?;
    let (n_input, n_output) = (metrics.total_input_tokens, metrics.total_output_tokens);
    row("Total input tokens", n_input.to_string())?;
    row("Total generated tokens", n_output.to_string())?;
    let rate = |n: u64| format!("{:.2}", metrics.rate(n));
    row("Request throughput (req/s)", rate(metrics.completed as u64))?;
    row("Input token throughput (tok/s)", rate(n_input))?;
    row("Output token throughput (tok/s)", rate(n_output))?;
    row("Total token throughput (tok/s)", rate(n_input + n_output))?;
    let peak = format!("{:.0}", metrics.max_output_tokens_per_s);
    row("Peak output token throughput (tok/s)", peak)?;
    row(
        "Peak concurrent requests",
        metrics.max_concurrent_requests.to_string(),
    )?;
    row("Concurrency", format!("{:.2}", metrics.concurrency))?;
    let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "not told".to_owned());
    let accepted = metrics.accept_length.map(|value| format!("{value:.2}"));
    row("Accept length", or_unknown(accepted))?;
    let cached = metrics.total_cached_tokens.map(|n| n.to_string());
    row("Cached input tokens", or_unknown(cached))?;
    let hits = metrics
        .cache_hit_rate
        .map(|share| format!("{:.1} %", 100.0 * share));
    row("Cache hit rate", or_unknown(hits))?;
    latencies(metrics, out)?;
    remarks(metrics, out)
}

fn latencies(metrics: &Metrics, out: &mut impl Write) -> io::Result<()> {
    write!(out, "\n{:<9}", "ms")?;
    for name in Summary::NAMES {
        write!(out, "{name:>11}")?;
    }
    writeln!(out)?;
    for (label, summary) in summaries(metrics) {
        write!(out, "{label:<9}")?;
        match summary {
            Some(summary) => {
                for value in summary.values() {
                    write!(out, "{value:>11.2}")?;
                }
            }
            None => write!(out, "{:>11}", "no values")?,
        }
        writeln!(out)?;
    }
    Ok(())
}

/// What a reader must know before the figures are believed.
fn remarks(metrics: &Metrics, out: &mut impl Write) -> io::Result<()> {
    let Pieces {
        n_unsplit,
        n_unsplit_tokens,
    } = metrics.pieces;
    if n_unsplit > 0 {
        writeln!(
            out,
            "\n{n_unsplit_tokens} tokens came in {n_unsplit} pieces of text: ITL takes a piece for a token. \
             --tokenizer tells them apart."
        )?;
    }
    if metrics.n_without_text > 0 {
        writeln!(
            out,
            "\n{} outputs had no text: no TTFT of them.",
            metrics.n_without_text
        )?;
    }
    for (error, n) in &metrics.errors {
        let error: String = error.chars().take(MAX_ERROR_CHARS).collect();
        writeln!(out, "\nfailed {n} times: {error}")?;
    }
    Ok(())
}

fn summaries(metrics: &Metrics) -> [(&'static str, Option<Summary>); 4] {
    [
        ("E2E", metrics.latency),
        ("TTFT", metrics.ttft),
        ("TPOT", metrics.tpot),
        ("ITL", metrics.itl),
    ]
}

/// All figures, and with `--output-details` those of every request.
pub(super) fn line(header: &Header<'_>, metrics: &Metrics, run: &Run, asks: &[Ask]) -> Value {
    let arguments = header.arguments;
    let rate = arguments.request_rate;
    let mut line = json!({
        "backend": name(&arguments.backend),
        "base_url": header.url,
        "model": header.model,
        "machine": header.machine,
        "date": header.date,
        "dataset_name": name(&arguments.dataset_name),
        "num_prompts": asks.len(),
        // JSON has no infinity.
        "request_rate": if rate.is_finite() { json!(rate) } else { json!("inf") },
        "max_concurrency": arguments.max_concurrency,
        "seed": arguments.seed,
        "random_input_len": arguments.random_input_len,
        "random_output_len": arguments.random_output_len,
        "random_range_ratio": arguments.random_range_ratio,
        "gsp_num_groups": arguments.gsp_num_groups,
        "gsp_prompts_per_group": arguments.gsp_prompts_per_group,
        "gsp_system_prompt_len": arguments.gsp_system_prompt_len,
        "gsp_question_len": arguments.gsp_question_len,
        "gsp_output_len": arguments.gsp_output_len,
        "stream": !arguments.disable_stream,
        "extra_request_body": arguments.extra_request_body.0,
        "server_info": header.server_info,
        "duration": metrics.duration,
        "completed": metrics.completed,
        "failed": metrics.failed(),
        "total_input_tokens": metrics.total_input_tokens,
        "total_output_tokens": metrics.total_output_tokens,
        "total_cached_tokens": metrics.total_cached_tokens,
        "cache_hit_rate": metrics.cache_hit_rate,
        "request_throughput": metrics.rate(metrics.completed as u64),
        "input_throughput": metrics.rate(metrics.total_input_tokens),
        "output_throughput": metrics.rate(metrics.total_output_tokens),
        "total_throughput": metrics.rate(metrics.total_input_tokens + metrics.total_output_tokens),
        "max_output_tokens_per_s": metrics.max_output_tokens_per_s,
        "max_concurrent_requests": metrics.max_concurrent_requests,
        "concurrency": metrics.concurrency,
        "accept_length": metrics.accept_length,
    });
    let object = line.as_object_mut().expect("an object was made");
    for (label, summary) in summaries(metrics) {
        let what = if label == "E2E" {
            "e2e_latency".to_owned()
        } else {
            label.to_lowercase()
        };
        for (i, name) in Summary::NAMES.into_iter().enumerate() {
            let value = summary.map(|summary| summary.values()[i]);
            object.insert(format!("{name}_{what}_ms"), json!(value));
        }
    }
    if arguments.output_details {
        object.extend(details(metrics, run, asks));
    }
    line
}

/// Lists with one value for each request, in the order of arrival. A failed one has an error and no lengths.
fn details(metrics: &Metrics, run: &Run, asks: &[Ask]) -> Map<String, Value> {
    let mut itls = metrics.itls.iter();
    let requests = run.outcomes.iter().zip(asks).map(|(outcome, ask)| {
        let answer = outcome.answer.as_ref();
        let usage = answer.map(|answer| answer.usage).unwrap_or_default();
        let texts = answer.iter().flat_map(|answer| &answer.pieces);
        json!({
            "input_lens": usage.prompt_tokens,
            "planned_input_lens": ask.input_len,
            "output_lens": usage.completion_tokens,
            "cached_lens": usage.cached_tokens,
            "start_times": outcome.sent.as_secs_f64(),
            "latencies": answer.ok().map(|answer| answer.latency.as_secs_f64()),
            "ttfts": answer.ok().and_then(ttft),
            "itls": answer.ok().and_then(|_| itls.next()).map_or(&[][..], Vec::as_slice),
            "generated_texts": texts.map(|piece| piece.text.as_str()).collect::<String>(),
            "errors": answer.err().map(ToString::to_string).unwrap_or_default(),
        })
    });
    let mut lists: Map<String, Value> = Map::new();
    for request in requests {
        let Value::Object(fields) = request else {
            unreachable!("made as an object")
        };
        for (name, value) in fields {
            let list = lists.entry(name).or_insert_with(|| json!([]));
            list.as_array_mut().expect("lists only").push(value);
        }
    }
    lists
}

/// Adds `line` to the file's end.
pub(super) fn append(path: &Path, line: &Value) -> Result<(), BenchError> {
    let failed = |error: io::Error| BenchError::Check(format!("{}: {error}", path.display()));
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(failed)?;
    file.write_all(format!("{line}\n").as_bytes()).map_err(failed)
}

/// The word of the command line.
fn name(value: &impl ValueEnum) -> String {
    let value = value.to_possible_value().expect("no value is hidden");
    value.get_name().to_owned()
}
