//! The figures as a table and as a line of JSON with SGLang's names.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use super::arguments::{Arguments, Dataset};
use super::breakdown::Breakdown;
use super::load::Run;
use super::metrics::{Metrics, Pieces, Summary, ttft};
use super::wire::Answer;
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

/// All that was measured.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) metrics: Metrics,
    pub(super) breakdown: Breakdown,
    pub(super) run: Run,
}

pub(super) fn print(header: &Header<'_>, measured: &Measured, out: &mut impl Write) -> io::Result<()> {
    let metrics = &measured.metrics;
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
    by_request(metrics, &measured.breakdown, out)?;
    latencies(measured, out)?;
    remarks(metrics, out)
}

/// Only those figures that the load has.
fn by_request(metrics: &Metrics, breakdown: &Breakdown, out: &mut impl Write) -> io::Result<()> {
    let mut row = |label: &str, value: String| writeln!(out, "{label:<36}{value:>14}");
    if let Some(n_hits) = breakdown.n_hits {
        row("Requests with cached tokens", n_hits.to_string())?;
    }
    for (turn, rate) in breakdown.hit_rate_by_turn.iter().enumerate() {
        let rate = rate.map(|rate| format!("{:.1} %", 100.0 * rate));
        let rate = rate.unwrap_or_else(|| "not told".to_owned());
        row(&format!("Cache hit rate of turn {}", turn + 1), rate)?;
    }
    if let Some((n_good, share)) = breakdown.n_good.zip(breakdown.good_share()) {
        row(
            "Request goodput (req/s)",
            format!("{:.2}", metrics.rate(n_good as u64)),
        )?;
        row("Good requests", format!("{:.1} %", 100.0 * share))?;
    }
    if let Some((n_valid, n)) = breakdown.valid_objects {
        row("Objects as asked for", format!("{n_valid} of {n}"))?;
    }
    Ok(())
}

fn latencies(measured: &Measured, out: &mut impl Write) -> io::Result<()> {
    write!(out, "\n{:<9}", "ms")?;
    for name in Summary::NAMES {
        write!(out, "{name:>11}")?;
    }
    writeln!(out)?;
    for (label, summary) in summaries(measured) {
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

/// The last one is there where requests follow others.
fn summaries(measured: &Measured) -> Vec<(&'static str, Option<Summary>)> {
    let metrics = &measured.metrics;
    let mut summaries = vec![
        ("E2E", metrics.latency),
        ("TTFT", metrics.ttft),
        ("TPOT", metrics.tpot),
        ("ITL", metrics.itl),
    ];
    if !measured.breakdown.hit_rate_by_turn.is_empty() {
        summaries.push(("TTFT 2+", measured.breakdown.later_ttft));
    }
    summaries
}

/// All figures; with `asks` those of every request too.
pub(super) fn line(header: &Header<'_>, measured: &Measured, asks: Option<&[Ask]>) -> Value {
    let arguments = header.arguments;
    let rate = arguments.request_rate;
    let mut line = json!({
        "backend": name(&arguments.backend),
        "base_url": header.url,
        "model": header.model,
        "machine": header.machine,
        "date": header.date,
        "dataset_name": name(&arguments.dataset_name),
        "num_prompts": measured.breakdown.n_requests,
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
        "dataset": data(arguments),
        "stream": !arguments.disable_stream,
        "extra_request_body": arguments.extra_request_body.0,
        "server_info": header.server_info,
    });
    let object = line.as_object_mut().expect("an object was made");
    if let Value::Object(figures) = figures(measured) {
        object.extend(figures);
    }
    for (label, summary) in summaries(measured) {
        let what = match label {
            "E2E" => "e2e_latency".to_owned(),
            "TTFT 2+" => "later_ttft".to_owned(),
            _ => label.to_lowercase(),
        };
        for (i, name) in Summary::NAMES.into_iter().enumerate() {
            let value = summary.map(|summary| summary.values()[i]);
            object.insert(format!("{name}_{what}_ms"), json!(value));
        }
    }
    if let Some(asks) = asks {
        object.extend(details(measured, asks));
    }
    line
}

/// The sums and rates of a run.
fn figures(measured: &Measured) -> Value {
    let (metrics, breakdown) = (&measured.metrics, &measured.breakdown);
    json!({
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
        "hit_requests": breakdown.n_hits,
        "cache_hit_rate_by_turn": breakdown.hit_rate_by_turn,
        "request_goodput": breakdown.n_good.map(|n| metrics.rate(n as u64)),
        "good_share": breakdown.good_share(),
        "valid_objects": breakdown.valid_objects.map(|(n_valid, _)| n_valid),
    })
}

/// The flags of the dataset that have no name in SGLang's line.
fn data(arguments: &Arguments) -> Value {
    let data = &arguments.data;
    match arguments.dataset_name {
        Dataset::Rag => json!({
            "documents": data.rag_documents,
            "document_len": data.rag_document_len,
            "documents_per_request": data.rag_documents_per_request,
            "question_len": data.rag_question_len,
            "output_len": data.rag_output_len,
            "zipf": data.rag_zipf,
        }),
        Dataset::MultiTurn => json!({
            "chats": data.multi_turn_chats,
            "turns": data.multi_turn_turns,
            "system_len": data.multi_turn_system_len,
            "question_len": data.multi_turn_question_len,
            "output_len": data.multi_turn_output_len,
        }),
        Dataset::JsonSchema => json!({ "schemas": data.json_schemas }),
        Dataset::Sharegpt => json!({
            "path": data.dataset_path,
            "output_len": data.sharegpt_output_len,
            "context_len": data.sharegpt_context_len,
        }),
        Dataset::Trace => json!({
            "path": data.dataset_path,
            "speedup": data.trace_speedup,
            "block_len": data.trace_block_len,
        }),
        Dataset::Random | Dataset::GeneratedSharedPrefix | Dataset::Embeddings => Value::Null,
    }
}

/// Lists with one value for each request, in the order of arrival. A failed one has an error and no lengths.
fn details(measured: &Measured, asks: &[Ask]) -> Map<String, Value> {
    let mut itls = measured.metrics.itls.iter();
    let requests = measured.run.outcomes.iter().zip(asks).map(|(outcome, ask)| {
        let answer = outcome.answer.as_ref();
        let usage = answer.map(|answer| answer.usage).unwrap_or_default();
        json!({
            "input_lens": usage.prompt_tokens,
            "planned_input_lens": ask.input_len,
            "output_lens": usage.completion_tokens,
            "cached_lens": usage.cached_tokens,
            "turns": outcome.turn,
            "start_times": outcome.sent.as_secs_f64(),
            "latencies": answer.ok().map(|answer| answer.latency.as_secs_f64()),
            "ttfts": answer.ok().and_then(ttft),
            "itls": answer.ok().and_then(|_| itls.next()).map_or(&[][..], Vec::as_slice),
            "generated_texts": answer.map(Answer::text).unwrap_or_default(),
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
