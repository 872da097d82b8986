//! `/metrics` in Prometheus' text format.

mod connections;
pub mod embedding;
pub mod models;
pub mod vllm;

use std::fmt::{Display, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arbora_kernels::cpu::PoolMetrics;
use arbora_runtime::metrics::{Counter, Histogram, Metrics, Micros, Scale, Tokens};

pub use self::connections::ConnectionMetrics;
use crate::log::LogMetrics;

/// Microseconds per second.
const MICROS: f64 = 1e6;

/// Answers sent, by the first digit of their status, and the connections they were sent on.
#[derive(Debug)]
pub struct HttpMetrics {
    routes: Vec<String>,
    /// Of each route, and last of what is for none.
    by_route: Vec<[AtomicU64; 5]>,
    /// What became of connections.
    pub connections: ConnectionMetrics,
}

impl HttpMetrics {
    /// Nothing yet, of a server with these routes.
    pub fn new(routes: Vec<String>) -> Self {
        HttpMetrics {
            by_route: (0..=routes.len()).map(|_| Default::default()).collect(),
            routes,
            connections: ConnectionMetrics::default(),
        }
    }

    /// Counts an answer with this HTTP status, of the route at this place where it is of one.
    pub fn count(&self, route: Option<usize>, status: u16) {
        let class = usize::from(status / 100).clamp(1, 5);
        let by_class = &self.by_route[route.unwrap_or(self.routes.len())];
        by_class[class - 1].fetch_add(1, Ordering::Relaxed);
    }
}

/// Spans of traces, by what became of them.
#[derive(Debug, Default)]
pub struct TraceMetrics {
    exported: AtomicU64,
    dropped: AtomicU64,
}

impl TraceMetrics {
    /// Spans that the collector took.
    pub fn n_exported(&self) -> u64 {
        self.exported.load(Ordering::Relaxed)
    }

    /// Spans that it did not get or did not take.
    pub fn n_dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(crate) fn export_spans(&self, n: u64) {
        self.exported.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn drop_spans(&self, n: u64) {
        self.dropped.fetch_add(n, Ordering::Relaxed);
    }
}

/// What is counted outside the engine.
#[derive(Clone, Copy, Debug)]
pub struct ServerMetrics<'a> {
    /// Answers and connections.
    pub http: &'a HttpMetrics,
    /// The log.
    pub log: &'a LogMetrics,
    /// The threads that compute.
    pub pool: &'a PoolMetrics,
    /// Bytes of request bodies that are held.
    pub body_bytes: usize,
    /// Spans, where there is a collector.
    pub traces: Option<&'a TraceMetrics>,
}

impl ServerMetrics<'_> {
    fn write(self, page: &mut Page) {
        let ServerMetrics {
            http,
            log,
            pool,
            body_bytes,
            traces,
        } = self;
        page.family(
            "http_responses_total",
            "counter",
            "HTTP answers by route and class of status; other is what no route is for.",
        );
        let routes = http.routes.iter().map(String::as_str).chain(["other"]);
        for (route, by_class) in routes.zip(&http.by_route) {
            page.label = format!("route=\"{}\"", escaped(route));
            for (i, n) in by_class.iter().enumerate() {
                let class = format!("{}xx", i + 1);
                let n = n.load(Ordering::Relaxed);
                // A line for each class of each route would be many that say nothing.
                if n > 0 || route == "other" {
                    page.sample("http_responses_total", Some(("class", class.as_str())), n);
                }
            }
        }
        page.label.clear();
        let dropped =
            "Lines of the log that were not written: nobody read them in time, or they were refused.";
        page.family("log_lines_dropped_total", "counter", dropped);
        page.sample("log_lines_dropped_total", None, log.n_dropped());
        let rescues =
            "Computing threads moved to another core: a busy process had taken theirs, and others waited.";
        page.family("thread_rescues_total", "counter", rescues);
        page.sample("thread_rescues_total", None, pool.n_rescues());
        let waited =
            "Time that a step waited for a computing thread, waits below about 30 microseconds left out.";
        page.family("thread_wait_seconds_total", "counter", waited);
        page.sample("thread_wait_seconds_total", None, pool.waited().as_secs_f64());
        http.connections.write(page);
        let held = "Bytes of request bodies held: received and not yet in the queue.";
        page.family("request_body_bytes", "gauge", held);
        page.sample("request_body_bytes", None, body_bytes);
        if let Some(traces) = traces {
            let exported = "Spans of traces that the collector took.";
            page.family("trace_spans_exported_total", "counter", exported);
            page.sample("trace_spans_exported_total", None, traces.n_exported());
            let dropped = "Spans of traces that were lost: no room, no collector, or refused.";
            page.family("trace_spans_dropped_total", "counter", dropped);
            page.sample("trace_spans_dropped_total", None, traces.n_dropped());
        }
    }
}

/// Everything the engines and the server count, with a line of help each. What an engine counts is labelled
/// with the name of its model.
pub fn prometheus(engines: &[(&str, Arc<Metrics>)], server: ServerMetrics<'_>) -> String {
    let mut page = Page::new("arbora_");
    server.write(&mut page);
    for (model, engine) in engines {
        page.label = format!("model=\"{}\"", escaped(model));
        write_engine(engine, &mut page);
    }
    page.into_text()
}

/// Writes a page with what one engine counts.
fn write_engine(engine: &Metrics, page: &mut Page) {
    page.family("requests_finished_total", "counter", "Requests ended, by reason.");
    for (reason, n) in Metrics::FINISH_REASONS.iter().zip(&engine.requests_finished) {
        page.sample("requests_finished_total", Some(("reason", reason)), n.value());
    }
    for (name, help, by_source) in drafts(engine) {
        page.family(name, "counter", help);
        for (source, n) in Metrics::DRAFT_SOURCES.iter().zip(by_source) {
            page.sample(name, Some(("source", source)), n.value());
        }
    }
    for (name, help, counter) in counters(engine) {
        page.family(name, "counter", help);
        page.sample(name, None, counter.value());
    }
    for (name, help, value) in gauges(engine) {
        page.family(name, "gauge", help);
        page.sample(name, None, value);
    }
    for (name, help, histogram) in times(engine) {
        page.histogram(name, help, (histogram, MICROS));
    }
    for (name, help, histogram) in lengths(engine) {
        page.histogram(name, help, (histogram, 1.0));
    }
}

/// Name, help and values of what is counted by who proposed a draft.
fn drafts(engine: &Metrics) -> [(&'static str, &'static str, &[Counter]); 3] {
    [
        (
            "drafts_total",
            "Drafts verified (speculative decoding).",
            &engine.drafts,
        ),
        ("drafted_tokens_total", "Their tokens.", &engine.drafted_tokens),
        (
            "accepted_tokens_total",
            "Draft tokens accepted as output.",
            &engine.accepted_tokens,
        ),
    ]
}

/// Name, help and value of what only grows.
fn counters(engine: &Metrics) -> [(&'static str, &'static str, &Counter); 11] {
    [
        (
            "requests_accepted_total",
            "Requests accepted into the queue.",
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
            "Prompt tokens served from the prefix cache.",
            &engine.cached_tokens,
        ),
        (
            "copied_tokens_total",
            "Prompt tokens served by copying part of a cached page.",
            &engine.copied_tokens,
        ),
        (
            "prefill_tokens_total",
            "Tokens computed by prefill, after preemptions too.",
            &engine.prefill_tokens,
        ),
        (
            "generated_tokens_total",
            "Output tokens generated.",
            &engine.generated_tokens,
        ),
        (
            "preemptions_total",
            "Preemptions: running requests sent back to the queue, for KV pages or for an API key below its share.",
            &engine.preemptions,
        ),
        (
            "evicted_pages_total",
            "KV pages evicted from the prefix cache.",
            &engine.evicted_pages,
        ),
        ("steps_total", "Forward passes.", &engine.steps),
        ("panics_total", "Steps that panicked.", &engine.panics),
    ]
}

/// Name, help and value of what goes up and down, all of one moment.
fn gauges(engine: &Metrics) -> [(&'static str, &'static str, u64); 8] {
    let now = engine.gauges();
    [
        ("waiting", "Requests in the queue.", now.waiting),
        (
            "waiting_tokens",
            "Prompt tokens of waiting requests.",
            now.waiting_tokens,
        ),
        ("running", "Requests that are running.", now.running),
        (
            "pages_total",
            "KV pages in the pool: free, cached and owned.",
            now.pages_total,
        ),
        ("pages_free", "Free KV pages.", now.pages_free),
        ("pages_cached", "KV pages in the prefix cache.", now.pages_cached),
        (
            "pages_evictable",
            "Cached KV pages that no running request uses; they can be evicted.",
            now.pages_evictable,
        ),
        (
            "pages_owned",
            "KV pages owned by a single running request, not in the cache.",
            now.pages_owned,
        ),
    ]
}

/// Name, help and value of what takes time.
fn times(engine: &Metrics) -> [(&'static str, &'static str, &Histogram<Micros>); 5] {
    [
        ("step_seconds", "Time of one step.", &engine.step_time),
        ("queue_seconds", "Arrival to first step.", &engine.queue_time),
        (
            "time_to_first_token_seconds",
            "Time to first token, from the arrival of the request.",
            &engine.time_to_first_token,
        ),
        (
            "inter_token_seconds",
            "Time between output tokens (inter-token latency).",
            &engine.inter_token_time,
        ),
        (
            "request_seconds",
            "End-to-end latency of requests that were not aborted.",
            &engine.request_time,
        ),
    ]
}

/// Name, help and value of what has a length.
fn lengths(engine: &Metrics) -> [(&'static str, &'static str, &Histogram<Tokens>); 2] {
    [
        (
            "prompt_length_tokens",
            "Prompt length of admitted requests, in tokens.",
            &engine.prompt_lengths,
        ),
        (
            "output_length_tokens",
            "Output length of requests that were not aborted, in tokens.",
            &engine.output_lengths,
        ),
    ]
}

/// A page in the text format. All samples of a family stand together, whenever they are written.
struct Page {
    /// Names and texts.
    families: Vec<(String, String)>,
    /// The one that samples belong to.
    current: usize,
    /// What every name begins with.
    prefix: &'static str,
    /// What samples are labelled with from now on, as `name="value"`, or nothing.
    label: String,
}

impl Page {
    fn new(prefix: &'static str) -> Self {
        Page {
            families: Vec::new(),
            current: 0,
            prefix,
            label: String::new(),
        }
    }

    /// The samples that follow belong to family `name`.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let known = self.families.iter().position(|(known, _)| known == name);
        self.current = known.unwrap_or(self.families.len());
        if known.is_none() {
            let prefix = self.prefix;
            let head = format!("# HELP {prefix}{name} {help}\n# TYPE {prefix}{name} {kind}\n");
            self.families.push((name.to_owned(), head));
        }
    }

    fn into_text(self) -> String {
        self.families.into_iter().map(|(_, text)| text).collect()
    }

    /// `label` is the sample's own, besides the one of all.
    fn sample(&mut self, name: &str, label: Option<(&str, &str)>, value: impl Display) {
        let own = label.map(|(name, value)| format!("{name}=\"{value}\""));
        let labels: Vec<&str> = [Some(self.label.as_str()), own.as_deref()]
            .into_iter()
            .flatten()
            .filter(|label| !label.is_empty())
            .collect();
        let labels = match labels.as_slice() {
            [] => String::new(),
            some => format!("{{{}}}", some.join(",")),
        };
        let text = &mut self.families[self.current].1;
        writeln!(text, "{}{name}{labels} {value}", self.prefix).expect("writing to a string cannot fail");
    }

    /// `unit` entries of the histogram are one of what the page shows.
    fn histogram<S: Scale>(&mut self, name: &str, help: &str, (histogram, unit): (&Histogram<S>, f64)) {
        self.family(name, "histogram", help);
        let mut n = 0;
        let bucket = format!("{name}_bucket");
        for (i, in_bucket) in histogram.buckets().into_iter().enumerate() {
            n += in_bucket;
            let bound = S::BOUNDS.get(i).map(|bound| (*bound as f64 / unit).to_string());
            self.sample(&bucket, Some(("le", bound.as_deref().unwrap_or("+Inf"))), n);
        }
        self.sample(&format!("{name}_sum"), None, histogram.sum() as f64 / unit);
        self.sample(&format!("{name}_count"), None, n);
    }
}

/// A label's value as the text format spells it.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engines(names: &[&'static str]) -> Vec<(&'static str, Arc<Metrics>)> {
        names.iter().map(|&name| (name, Arc::default())).collect()
    }

    /// Every family on the page in vLLM's words, without `vllm:`, and its kind.
    const VLLM_NAMES: [(&str, &str); 20] = [
        ("num_requests_running", "gauge"),
        ("num_requests_waiting", "gauge"),
        ("kv_cache_usage_perc", "gauge"),
        ("gpu_cache_usage_perc", "gauge"),
        ("prefix_cache_queries_total", "counter"),
        ("prefix_cache_hits_total", "counter"),
        ("prompt_tokens_total", "counter"),
        ("prompt_tokens_cached_total", "counter"),
        ("generation_tokens_total", "counter"),
        ("num_preemptions_total", "counter"),
        ("request_success_total", "counter"),
        ("spec_decode_num_drafts_total", "counter"),
        ("spec_decode_num_draft_tokens_total", "counter"),
        ("spec_decode_num_accepted_tokens_total", "counter"),
        ("time_to_first_token_seconds", "histogram"),
        ("inter_token_latency_seconds", "histogram"),
        ("e2e_request_latency_seconds", "histogram"),
        ("request_queue_time_seconds", "histogram"),
        ("request_prompt_tokens", "histogram"),
        ("request_generation_tokens", "histogram"),
    ];

    /// Names and kinds of the families of a page, each line of which is checked.
    fn families(text: &str) -> Vec<(String, String)> {
        let mut families = Vec::new();
        let mut family = "";
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a name and a kind");
                family = name;
                families.push((name.to_owned(), kind.to_owned()));
            } else if !line.starts_with('#') {
                let (name, value) = line.rsplit_once(' ').expect("a name and a value");
                assert!(name.starts_with(family), "{line} in {family}");
                value.parse::<f64>().expect(line);
            }
        }
        families
    }

    /// The names of metrics in a dashboard's queries: words that begin with `arbora_`.
    fn names_in(queries: &str) -> Vec<String> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let words = queries.split(|c: char| !is_part(c));
        let names = words.filter(|word| word.starts_with("arbora_"));
        names.map(str::to_owned).collect()
    }

    #[test]
    fn every_sample_belongs_to_a_family_and_every_line_parses() {
        let http = HttpMetrics::new(vec!["/v1/a".to_owned(), "/v1/models/{id}".to_owned()]);
        http.count(None, 200);
        http.count(Some(1), 200);
        http.count(Some(1), 204);
        http.count(Some(1), 429);
        let server = ServerMetrics {
            http: &http,
            log: &LogMetrics::default(),
            pool: &PoolMetrics::default(),
            body_bytes: 70,
            traces: None,
        };
        let text = prometheus(&engines(&["a", "b"]), server);
        families(&text);
        assert!(!text.contains("trace_spans"), "nothing is traced");
        for line in [
            "arbora_http_responses_total{route=\"/v1/models/{id}\",class=\"2xx\"} 2\n",
            "arbora_http_responses_total{route=\"/v1/models/{id}\",class=\"4xx\"} 1\n",
            "arbora_http_responses_total{route=\"other\",class=\"2xx\"} 1\n",
            "arbora_http_responses_total{route=\"other\",class=\"5xx\"} 0\n",
            "arbora_cached_tokens_total{model=\"a\"} 0\narbora_cached_tokens_total{model=\"b\"} 0\n",
            "arbora_log_lines_dropped_total 0\n",
            "arbora_request_body_bytes 70\n",
            "arbora_thread_rescues_total 0\n",
            "arbora_thread_wait_seconds_total 0\n",
            "arbora_step_seconds_bucket{model=\"a\",le=\"0.0025\"} 0\n",
            "arbora_step_seconds_bucket{model=\"b\",le=\"+Inf\"} 0\n",
            "arbora_prompt_length_tokens_bucket{model=\"a\",le=\"131072\"} 0\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[test]
    fn the_page_in_vllms_words_has_its_names_and_the_label_of_the_model() {
        let text = vllm::prometheus(&engines(&["a \"b\" \\c"]));
        let families = families(&text);
        for (name, kind) in VLLM_NAMES {
            let expected = (format!("vllm:{name}"), kind.to_owned());
            assert!(families.contains(&expected), "{expected:?} in {families:?}");
        }
        assert_eq!(families.len(), VLLM_NAMES.len());
        let label = "model_name=\"a \\\"b\\\" \\\\c\",engine=\"0\"";
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples.for_each(|line| assert!(line.contains(label), "{label} in {line}"));
        let stopped = format!("vllm:request_success_total{{{label},finished_reason=\"stop\"}} 0");
        assert!(text.lines().any(|line| line == stopped), "{stopped} in {text}");
    }

    #[test]
    fn the_dashboard_shows_what_is_exported_and_nothing_else() {
        /// What the dashboard leaves out, and why.
        const LEFT_OUT: [(&str, &str); 4] = [
            ("arbora_copied_tokens_total", "part of the cached tokens"),
            ("arbora_steps_total", "the count of the histogram of step times"),
            ("arbora_pages_evictable", "a part of the cached pages"),
            ("arbora_request_body_bytes", "a part of the memory of the process"),
        ];
        let dashboard: serde_json::Value =
            serde_json::from_str(include_str!("../ops/grafana.json")).expect("JSON");
        let panels = dashboard["panels"].as_array().expect("panels");
        let targets = panels
            .iter()
            .flat_map(|panel| panel["targets"].as_array().expect("targets"));
        let queries: Vec<&str> = targets
            .map(|target| target["expr"].as_str().expect("a query"))
            .collect();
        let used = names_in(&queries.join("\n"));
        let server = ServerMetrics {
            http: &HttpMetrics::new(Vec::new()),
            log: &LogMetrics::default(),
            pool: &PoolMetrics::default(),
            body_bytes: 0,
            traces: Some(&TraceMetrics::default()),
        };
        let exported = families(&prometheus(&engines(&["a"]), server));
        let samples = |(name, kind): &(String, String)| match kind.as_str() {
            "histogram" => ["_bucket", "_sum", "_count"]
                .map(|end| format!("{name}{end}"))
                .to_vec(),
            _ => vec![name.clone()],
        };
        let known: Vec<String> = exported.iter().flat_map(samples).collect();
        for name in &used {
            assert!(known.contains(name), "{name} is not exported");
        }
        for family in &exported {
            let is_used = samples(family).iter().any(|name| used.contains(name));
            let is_left_out = LEFT_OUT.iter().any(|(name, _)| *name == family.0);
            assert!(
                is_used != is_left_out,
                "{}: used {is_used}, left out {is_left_out}",
                family.0
            );
        }
    }
}
