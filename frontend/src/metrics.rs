//! `/metrics` in Prometheus' text format.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use arbora_runtime::metrics::{Counter, Gauge, Histogram, Metrics};

/// Answers sent, by the first digit of their status.
#[derive(Debug, Default)]
pub struct HttpMetrics {
    by_class: [AtomicU64; 5],
}

impl HttpMetrics {
    /// Counts an answer with this HTTP status.
    pub fn count(&self, status: u16) {
        let class = usize::from(status / 100).clamp(1, 5);
        self.by_class[class - 1].fetch_add(1, Ordering::Relaxed);
    }
}

/// Everything the engine and the server count, with a line of help each.
pub fn prometheus(engine: &Metrics, http: &HttpMetrics) -> String {
    let mut page = Page::default();
    page.family(
        "http_responses_total",
        "counter",
        "HTTP answers by class of status.",
    );
    for (i, n) in http.by_class.iter().enumerate() {
        page.sample(
            "http_responses_total",
            &format!("{{class=\"{}xx\"}}", i + 1),
            n.load(Ordering::Relaxed),
        );
    }
    page.family("requests_finished_total", "counter", "Requests ended, by reason.");
    for (reason, n) in Metrics::FINISH_REASONS.iter().zip(&engine.requests_finished) {
        page.sample(
            "requests_finished_total",
            &format!("{{reason=\"{reason}\"}}"),
            n.value(),
        );
    }
    for (name, help, by_source) in drafts(engine) {
        page.family(name, "counter", help);
        for (source, n) in Metrics::DRAFT_SOURCES.iter().zip(by_source) {
            page.sample(name, &format!("{{source=\"{source}\"}}"), n.value());
        }
    }
    for (name, help, counter) in counters(engine) {
        page.family(name, "counter", help);
        page.sample(name, "", counter.value());
    }
    for (name, help, gauge) in gauges(engine) {
        page.family(name, "gauge", help);
        page.sample(name, "", gauge.value());
    }
    page.histogram("step_seconds", "Time of one step.", &engine.step_time);
    page.histogram("queue_seconds", "Arrival to first step.", &engine.queue_time);
    page.histogram(
        "time_to_first_token_seconds",
        "Arrival to first token.",
        &engine.time_to_first_token,
    );
    page.text
}

/// Name, help and values of what is counted by who proposed a draft.
fn drafts(engine: &Metrics) -> [(&'static str, &'static str, &[Counter]); 2] {
    [
        (
            "drafted_tokens_total",
            "Tokens proposed as drafts and computed along.",
            &engine.drafted_tokens,
        ),
        (
            "accepted_tokens_total",
            "Of those, the ones that became output.",
            &engine.accepted_tokens,
        ),
    ]
}

/// Name, help and value of what only grows.
fn counters(engine: &Metrics) -> [(&'static str, &'static str, &Counter); 11] {
    [
        (
            "requests_accepted_total",
            "Requests taken in.",
            &engine.requests_accepted,
        ),
        (
            "requests_refused_total",
            "Requests refused because the queue was full.",
            &engine.requests_refused,
        ),
        (
            "prompt_tokens_total",
            "Prompt tokens of admitted requests.",
            &engine.prompt_tokens,
        ),
        (
            "cached_tokens_total",
            "Of those, found in the prefix cache.",
            &engine.cached_tokens,
        ),
        (
            "copied_tokens_total",
            "Of those, copied out of a shared page.",
            &engine.copied_tokens,
        ),
        (
            "prefill_tokens_total",
            "Prompt and resumed tokens computed.",
            &engine.prefill_tokens,
        ),
        (
            "generated_tokens_total",
            "Output tokens.",
            &engine.generated_tokens,
        ),
        (
            "preemptions_total",
            "Sequences sent back to waiting for want of pages.",
            &engine.preemptions,
        ),
        (
            "evicted_pages_total",
            "Cached pages given up.",
            &engine.evicted_pages,
        ),
        ("steps_total", "Forward passes.", &engine.steps),
        ("panics_total", "Steps that panicked.", &engine.panics),
    ]
}

/// Name, help and value of what goes up and down.
fn gauges(engine: &Metrics) -> [(&'static str, &'static str, &Gauge); 8] {
    [
        ("waiting", "Requests waiting.", &engine.waiting),
        ("waiting_tokens", "Their prompt tokens.", &engine.waiting_tokens),
        ("running", "Requests that hold pages.", &engine.running),
        (
            "pages_total",
            "KV pages: free + cached + owned.",
            &engine.pages_total,
        ),
        ("pages_free", "KV pages nobody holds.", &engine.pages_free),
        (
            "pages_cached",
            "KV pages in the prefix cache.",
            &engine.pages_cached,
        ),
        (
            "pages_evictable",
            "Of those, needed by no running request.",
            &engine.pages_evictable,
        ),
        (
            "pages_owned",
            "KV pages that belong to one running request.",
            &engine.pages_owned,
        ),
    ]
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP arbora_{name} {help}"));
        self.line(format_args!("# TYPE arbora_{name} {kind}"));
    }

    fn sample(&mut self, name: &str, labels: &str, value: u64) {
        self.line(format_args!("arbora_{name}{labels} {value}"));
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.family(name, "histogram", help);
        let mut n = 0;
        for (i, in_bucket) in histogram.buckets().into_iter().enumerate() {
            n += in_bucket;
            match Histogram::BOUNDS_US.get(i) {
                Some(bound) => {
                    let seconds = *bound as f64 / 1e6;
                    self.line(format_args!("arbora_{name}_bucket{{le=\"{seconds}\"}} {n}"));
                }
                None => self.line(format_args!("arbora_{name}_bucket{{le=\"+Inf\"}} {n}")),
            }
        }
        let sum = histogram.sum_us() as f64 / 1e6;
        self.line(format_args!("arbora_{name}_sum {sum}"));
        self.line(format_args!("arbora_{name}_count {n}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{line}").expect("writing to a string cannot fail");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_belongs_to_a_family_and_every_line_parses() {
        let http = HttpMetrics::default();
        http.count(200);
        http.count(204);
        http.count(429);
        let text = prometheus(&Metrics::default(), &http);
        let mut family = "";
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                family = rest.split(' ').next().expect("a name");
            } else if !line.starts_with('#') {
                let (name, value) = line.rsplit_once(' ').expect("a name and a value");
                assert!(name.starts_with(family), "{line} in {family}");
                value.parse::<f64>().expect(line);
            }
        }
        assert!(
            text.contains("arbora_http_responses_total{class=\"2xx\"} 2\n"),
            "{text}"
        );
        assert!(text.contains("arbora_cached_tokens_total 0\n"), "{text}");
        assert!(
            text.contains("arbora_step_seconds_bucket{le=\"0.0025\"} 0\n"),
            "{text}"
        );
    }
}
