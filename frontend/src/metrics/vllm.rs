//! The same figures under the names that vLLM gives them, so that dashboards and routers made for it work.
//!
//! Only what Arbora has; a family whose figure would be invented is missing. `kv_cache_usage_perc` is a share
//! in [0, 1], as there, and counts pages that running requests need: cached ones can be given up.

use std::sync::Arc;

use arbora_runtime::metrics::{Counter, Metrics};

use super::{MICROS, Page, escaped};

/// Reasons in vLLM's words, and which of [`Metrics::FINISH_REASONS`] they sum up. An output that its deadline
/// cuts off says `length` to its client too.
const REASONS: [(&str, &[usize]); 4] = [
    ("stop", &[0]),
    ("length", &[1, 2]),
    ("abort", &[4]),
    ("error", &[3, 5]),
];

/// What the engines count, labelled with the names of their models and the number of the one engine of each.
pub fn prometheus(engines: &[(&str, Arc<Metrics>)]) -> String {
    let mut page = Page::new("vllm:");
    for (model, engine) in engines {
        page.label = format!("model_name=\"{}\",engine=\"0\"", escaped(model));
        write_engine(engine, &mut page);
    }
    page.into_text()
}

fn write_engine(engine: &Metrics, page: &mut Page) {
    for (name, help, value) in gauges(engine) {
        page.family(name, "gauge", help);
        page.sample(name, None, value);
    }
    for (name, help, value) in counters(engine) {
        page.family(name, "counter", help);
        page.sample(name, None, value);
    }
    page.family("request_success_total", "counter", "Requests ended, by reason.");
    for (reason, summed) in REASONS {
        let n: u64 = summed
            .iter()
            .map(|&idx| engine.requests_finished[idx].value())
            .sum();
        page.sample("request_success_total", Some(("finished_reason", reason)), n);
    }
    for (name, help, histogram) in [
        (
            "time_to_first_token_seconds",
            "Time to first token, from the arrival of the request.",
            &engine.time_to_first_token,
        ),
        (
            "inter_token_latency_seconds",
            "Time between output tokens (inter-token latency).",
            &engine.inter_token_time,
        ),
        (
            "e2e_request_latency_seconds",
            "End-to-end latency of requests.",
            &engine.request_time,
        ),
        (
            "request_queue_time_seconds",
            "Time in the queue, from the arrival of the request.",
            &engine.queue_time,
        ),
    ] {
        page.histogram(name, help, (histogram, MICROS));
    }
    let (prompts, outputs) = (&engine.prompt_lengths, &engine.output_lengths);
    page.histogram("request_prompt_tokens", "Lengths of prompts.", (prompts, 1.0));
    page.histogram("request_generation_tokens", "Lengths of outputs.", (outputs, 1.0));
}

fn gauges(engine: &Metrics) -> [(&'static str, &'static str, f64); 4] {
    let now = engine.gauges();
    let usage = now.pages_in_use() as f64 / now.pages_total.max(1) as f64;
    [
        (
            "num_requests_running",
            "Requests that are running.",
            now.running as f64,
        ),
        ("num_requests_waiting", "Requests waiting.", now.waiting as f64),
        (
            "kv_cache_usage_perc",
            "Share of KV pages in use by running requests, from 0 to 1.",
            usage,
        ),
        ("gpu_cache_usage_perc", "The same under its older name.", usage),
    ]
}

fn counters(engine: &Metrics) -> [(&'static str, &'static str, u64); 9] {
    let sum = |by_source: &[Counter]| by_source.iter().map(Counter::value).sum();
    let (prompt, cached) = (engine.prompt_tokens.value(), engine.cached_tokens.value());
    [
        (
            "prefix_cache_queries_total",
            "Prompt tokens looked up in the prefix cache.",
            prompt,
        ),
        ("prefix_cache_hits_total", "Of those, tokens found.", cached),
        (
            "prompt_tokens_total",
            "Prompt tokens of admitted requests.",
            prompt,
        ),
        (
            "prompt_tokens_cached_total",
            "Prompt tokens served from the prefix cache.",
            cached,
        ),
        (
            "generation_tokens_total",
            "Output tokens generated.",
            engine.generated_tokens.value(),
        ),
        (
            "num_preemptions_total",
            "Preemptions: running requests sent back to the queue.",
            engine.preemptions.value(),
        ),
        (
            "spec_decode_num_drafts_total",
            "Drafts verified (speculative decoding).",
            sum(&engine.drafts),
        ),
        (
            "spec_decode_num_draft_tokens_total",
            "Tokens proposed as drafts.",
            sum(&engine.drafted_tokens),
        ),
        (
            "spec_decode_num_accepted_tokens_total",
            "Draft tokens accepted as output.",
            sum(&engine.accepted_tokens),
        ),
    ]
}
