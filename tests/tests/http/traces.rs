//! Traces, as a collector over a real socket gets them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use arbora::otlp::{ExportLimits, ExportSettings, Exporter, read_headers};
use serde_json::{Value as Json, json};

use crate::site::{Answer, Setup, Site, chat, tokenizer};
use crate::{endless, site};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// What a collector does with the request of that number.
type Script = dyn Fn(usize) -> Reply + Send + Sync;

enum Reply {
    /// Status and body.
    Say(u16, &'static str),
    /// Nothing, ever; the connection stays open.
    Nothing,
    HangUp,
}

/// An export as it came.
struct Export {
    head: String,
    body: String,
}

/// A collector that keeps what it was sent.
struct Collector {
    url: String,
    exports: Receiver<Export>,
}

impl Collector {
    fn new(script: impl Fn(usize) -> Reply + Send + Sync + 'static) -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/v1/traces", listener.local_addr().expect("bound"));
        let (sender, exports) = sync_channel(10_000);
        let script: Arc<Script> = Arc::new(script);
        let n_exports = Arc::default();
        drop(std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (sender, script, n) = (sender.clone(), Arc::clone(&script), Arc::clone(&n_exports));
                drop(std::thread::spawn(move || {
                    serve(&stream.expect("a connection"), &sender, &*script, &n);
                }));
            }
        }));
        Collector { url, exports }
    }

    /// The next export; every test gets more than enough time.
    fn next(&self) -> Export {
        let next = self.exports.recv_timeout(Duration::from_secs(60));
        next.expect("an export")
    }

    /// The next `n` spans, which come in whole exports.
    fn spans(&self, n: usize) -> Vec<Json> {
        let mut spans = Vec::new();
        while spans.len() < n {
            spans.extend(spans_of(&self.next()));
        }
        assert_eq!(spans.len(), n, "{spans:#?}");
        spans
    }

    /// All that came and was not asked for yet.
    fn rest(&self) -> Vec<Export> {
        self.exports.try_iter().collect()
    }
}

fn serve(
    stream: &TcpStream,
    exports: &SyncSender<Export>,
    script: &Script,
    n_exports: &std::sync::atomic::AtomicUsize,
) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let head = head.to_ascii_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let length = length.and_then(|length| length.parse().ok()).expect("a length");
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("a body");
        let body = String::from_utf8(body).expect("UTF-8");
        let n = n_exports.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let reply = script(n);
        exports.send(Export { head, body }).ok();
        match reply {
            Reply::Say(status, body) => {
                let n_bytes = body.len();
                let answer = format!(
                    "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {n_bytes}\r\n\r\n{body}"
                );
                (&*stream).write_all(answer.as_bytes()).ok();
            }
            Reply::Nothing => {}
            Reply::HangUp => return,
        }
    }
}

fn spans_of(export: &Export) -> Vec<Json> {
    let body: Json = serde_json::from_str(&export.body).expect("JSON");
    let spans = &body["resourceSpans"][0]["scopeSpans"][0]["spans"];
    spans.as_array().expect("spans").clone()
}

/// The one value of an attribute, whatever its type; `null` where there is none.
fn attribute(span: &Json, key: &str) -> Json {
    let attributes = span["attributes"].as_array().expect("attributes");
    let mut found = attributes.iter().filter(|attribute| attribute["key"] == key);
    let Some(first) = found.next() else {
        return Json::Null;
    };
    assert!(found.next().is_none(), "{key} twice in {span:#}");
    plain(&first["value"])
}

fn plain(value: &Json) -> Json {
    let (kind, inner) = value
        .as_object()
        .and_then(|value| value.iter().next())
        .expect("a value");
    match kind.as_str() {
        "intValue" => inner
            .as_str()
            .and_then(|digits| digits.parse::<u64>().ok())
            .expect("digits")
            .into(),
        "arrayValue" => inner["values"]
            .as_array()
            .expect("values")
            .iter()
            .map(plain)
            .collect(),
        "stringValue" | "doubleValue" | "boolValue" => inner.clone(),
        _ => panic!("{value}"),
    }
}

fn time(span: &Json, key: &str) -> u64 {
    span[key]
        .as_str()
        .and_then(|digits| digits.parse().ok())
        .expect("nanoseconds as digits")
}

/// Where the children of a server's span are: within it, one after another. Returns their names by
/// completion.
fn phases(server: &Json, spans: &[Json]) -> Vec<Vec<String>> {
    let mut completions: Vec<Vec<String>> = Vec::new();
    let mut last_end = 0;
    let mine = |span: &&Json| span["parentSpanId"] == server["spanId"];
    for child in spans.iter().filter(mine) {
        assert_eq!(
            (&child["traceId"], &child["kind"]),
            (&server["traceId"], &json!(1))
        );
        let index = attribute(child, "arbora.completion.index")
            .as_u64()
            .expect("an index") as usize;
        let (start, end) = (time(child, "startTimeUnixNano"), time(child, "endTimeUnixNano"));
        if index == completions.len() {
            completions.push(Vec::new());
            last_end = start;
        }
        assert_eq!(index + 1, completions.len(), "in order");
        assert_eq!(start, last_end, "one begins where the other ends");
        assert!(start <= end, "{child:#}");
        assert!(time(server, "startTimeUnixNano") <= start && end <= time(server, "endTimeUnixNano"));
        last_end = end;
        completions[index].push(child["name"].as_str().expect("a name").to_owned());
    }
    completions
}

/// A site whose exchanges are traced.
struct Traced {
    site: Site,
    exporter: Exporter,
    collector: Collector,
}

/// Small times, so that no test waits.
fn limits() -> ExportLimits {
    ExportLimits {
        delay: Duration::from_millis(5),
        pause: Duration::from_millis(5),
        ..ExportLimits::default()
    }
}

impl Traced {
    fn new() -> Traced {
        Traced::with(Collector::new(|_| Reply::Say(200, "{}")), limits(), |_| {})
    }

    fn with(collector: Collector, limits: ExportLimits, change: impl FnOnce(&mut Setup)) -> Traced {
        let settings = ExportSettings {
            endpoint: collector.url.clone(),
            headers: read_headers("x-collector-key=a%20key").expect("a header"),
            service_name: "a service".to_owned(),
            model: "toy".to_owned(),
            limits,
        };
        let exporter = Exporter::start(settings).expect("a thread");
        let mut setup = Setup::new(tokenizer());
        setup.traces = Some(exporter.traces());
        change(&mut setup);
        Traced {
            site: setup.start(),
            exporter,
            collector,
        }
    }

    fn ask(&self, path: &str, headers: &str, body: &Json) -> Answer {
        Answer::read(self.site.send("POST", path, headers, &body.to_string()))
    }

    /// Ends the server, then the exporter; what came meanwhile.
    fn end(self) -> (Vec<Export>, u64, u64) {
        drop(self.site);
        let traces = self.exporter.traces();
        self.exporter.stop();
        let metrics = traces.metrics();
        (self.collector.rest(), metrics.n_exported(), metrics.n_dropped())
    }
}

/// What an answer, whole or streamed, says it cost.
fn usage(answer: &Answer) -> Json {
    if let Ok(whole) = serde_json::from_str::<Json>(&answer.body) {
        return whole["usage"].clone();
    }
    let chunks = answer.body.lines().filter_map(|line| line.strip_prefix("data: "));
    let chunks = chunks.filter_map(|chunk| serde_json::from_str::<Json>(chunk).ok());
    let mut usages = chunks.map(|chunk| chunk["usage"].clone()).filter(Json::is_object);
    usages.next_back().expect("a chunk with usage")
}

#[test]
fn an_exchange_is_a_span_of_the_server_with_the_phases_of_its_completions() {
    let traced = Traced::new();
    let prompt = |streamed: bool| {
        json!({"prompt": "once upon a time", "max_tokens": 6, "n": 2, "temperature": 0.7, "top_p": 0.9,
               "ignore_eos": true, "stream": streamed,
               "stream_options": streamed.then(|| json!({"include_usage": true}))})
    };
    let mut chatted = prompt(true);
    chatted.as_object_mut().expect("fields").remove("prompt");
    chatted["messages"] = json!([{"role": "user", "content": "once upon a time"}]);
    let cases = [
        ("/v1/completions", prompt(false), "text_completion"),
        ("/v1/completions", prompt(true), "text_completion"),
        ("/v1/chat/completions", chatted, "chat"),
    ];
    for (path, body, operation) in cases {
        let answer = traced.ask(path, "x-arbora-usage: 1\r\nx-request-id: 42\r\n", &body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        let spans = traced.collector.spans(7);
        let server = &spans[0];
        let says = |key: &str| attribute(server, key);
        assert_eq!(server["name"], format!("POST {path}"));
        assert_eq!(
            (&server["kind"], &server["status"]["code"]),
            (&json!(2), &json!(0))
        );
        assert!(server.get("parentSpanId").is_none(), "it is the root");
        let expected = json!({
            "http.request.method": "POST",
            "http.route": path,
            "url.path": path,
            "url.scheme": "http",
            "http.response.status_code": 200,
            "http.request.header.x-request-id": ["42"],
            "gen_ai.operation.name": operation,
            "gen_ai.request.model": "toy",
            "gen_ai.request.max_tokens": 6,
            "gen_ai.request.temperature": 0.7,
            "gen_ai.request.top_p": 0.9,
            "gen_ai.response.finish_reasons": ["length", "length"],
            "gen_ai.usage.output_tokens": 12,
            "error.type": null,
            "arbora.client_disconnected": null,
        });
        for (key, value) in expected.as_object().expect("attributes") {
            assert_eq!(&says(key), value, "{key}");
        }
        let id = says("gen_ai.response.id");
        assert!(answer.body.contains(&format!("\"id\":{id}")), "{id}");
        let usage = usage(&answer);
        assert_eq!(says("gen_ai.usage.input_tokens"), usage["prompt_tokens"]);
        assert_eq!(says("gen_ai.usage.output_tokens"), usage["completion_tokens"]);
        for name in [
            "cached_tokens",
            "computed_tokens",
            "drafted_tokens",
            "accepted_tokens",
            "preemptions",
        ] {
            assert_eq!(says(&format!("arbora.{name}")), usage["arbora"][name], "{name}");
        }
        let latency = |name: &str| says(&format!("gen_ai.latency.{name}")).as_f64().expect("seconds");
        let told = |name: &str| usage["arbora"][name].as_f64().expect("milliseconds") / 1e3;
        assert!((latency("time_in_queue") - told("queue_ms")).abs() < 1e-9);
        assert!((latency("time_to_first_token") - told("ttft_ms")).abs() < 1e-9);
        assert!(latency("time_to_first_token") <= latency("e2e"));
        assert_eq!(
            phases(server, &spans),
            vec![vec!["queue", "prefill", "decode"]; 2]
        );
    }
    let (rest, n_exported, n_dropped) = traced.end();
    assert_eq!((rest.len(), n_exported, n_dropped), (0, 21, 0));
}

#[test]
fn what_arrives_at_the_collector_is_an_export_of_json() {
    let traced = Traced::new();
    traced.ask("/v1/completions", "", &json!({"prompt": "a", "max_tokens": 1}));
    let export = traced.collector.next();
    assert!(
        export.head.starts_with("post /v1/traces http/1.1\r\n"),
        "{}",
        export.head
    );
    assert!(
        export.head.contains("content-type: application/json\r\n")
            && export.head.contains("x-collector-key: a key\r\n"),
        "{}",
        export.head
    );
    let body: Json = serde_json::from_str(&export.body).expect("JSON");
    let resource = json!({"attributes": body["resourceSpans"][0]["resource"]["attributes"]});
    assert_eq!(attribute(&resource, "service.name"), "a service");
    assert_eq!(
        attribute(&resource, "service.instance.id").as_str().map(str::len),
        Some(36)
    );
    for span in spans_of(&export) {
        for (key, n_digits) in [("traceId", 32), ("spanId", 16)] {
            let id = span[key].as_str().expect("an id");
            let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
            assert!(id.len() == n_digits && id.chars().all(is_hex), "{id}");
        }
    }
}

#[test]
fn sglangs_route_is_traced_whole_and_streamed() {
    let traced = Traced::new();
    for streamed in [false, true] {
        let body = json!({"text": ["once", "upon"], "rid": "r".repeat(1000), "stream": streamed,
                          "sampling_params": {"max_new_tokens": 4, "ignore_eos": true, "temperature": 0}});
        assert_eq!(traced.ask("/generate", "", &body).status, 200);
        let spans = traced.collector.spans(7);
        let says = |key: &str| attribute(&spans[0], key);
        assert_eq!(spans[0]["name"], "POST /generate");
        assert_eq!(says("gen_ai.response.id"), "r".repeat(128), "not longer");
        assert_eq!(says("gen_ai.usage.input_tokens"), 8);
        assert_eq!(says("gen_ai.usage.output_tokens"), 8);
        assert_eq!(
            phases(&spans[0], &spans),
            vec![vec!["queue", "prefill", "decode"]; 2]
        );
    }
}

#[test]
fn a_prompt_that_is_only_computed_has_no_decode() {
    let traced = Traced::new();
    let body = json!({"prompt": "once upon", "max_tokens": 0, "echo": true, "logprobs": 0});
    assert_eq!(traced.ask("/v1/completions", "", &body).status, 200);
    let spans = traced.collector.spans(3);
    assert_eq!(phases(&spans[0], &spans), [["queue", "prefill"]]);
    assert!(attribute(&spans[0], "gen_ai.latency.time_to_first_token").is_null());
}

#[test]
fn a_client_that_leaves_ends_its_span_with_what_is_known() {
    let traced = Traced::new();
    drop(endless(&traced.site));
    let spans = traced.collector.spans(4);
    let says = |key: &str| attribute(&spans[0], key);
    assert_eq!(says("arbora.client_disconnected"), true);
    assert_eq!(says("http.response.status_code"), 200);
    assert_eq!(says("gen_ai.response.finish_reasons"), json!(["abort"]));
    assert_eq!(says("gen_ai.usage.input_tokens"), "go on".len());
    assert!(
        says("gen_ai.usage.output_tokens")
            .as_u64()
            .is_some_and(|n| (1..190_000).contains(&n))
    );
    assert!(says("arbora.cached_tokens").is_null(), "the engine told nobody");
    assert_eq!(spans[0]["status"]["code"], 0, "not the server's fault");
    assert_eq!(phases(&spans[0], &spans), [["queue", "prefill", "decode"]]);
    traced.site.wait_until_quiet();
}

#[test]
fn a_client_that_does_not_wait_for_a_whole_answer_has_a_span_without_status() {
    let traced = Traced::new();
    let body = json!({"prompt": "go on", "max_tokens": 190_000, "ignore_eos": true}).to_string();
    let stream = traced.site.send("POST", "/v1/completions", "", &body);
    while traced.site.engine.metrics().generated_tokens.value() < 10 {
        std::thread::yield_now();
    }
    drop(stream);
    let spans = traced.collector.spans(4);
    assert!(attribute(&spans[0], "http.response.status_code").is_null());
    assert_eq!(attribute(&spans[0], "arbora.client_disconnected"), true);
    assert_eq!(phases(&spans[0], &spans), [["queue", "prefill", "decode"]]);
    traced.site.wait_until_quiet();
}

#[test]
fn a_client_that_leaves_early_was_in_the_queue_or_in_prefill() {
    let collector = Collector::new(|_| Reply::Say(200, "{}"));
    // Two tokens a step: nobody is so slow that the prompt is computed before it is given up.
    let traced = Traced::with(collector, limits(), |setup| {
        setup.engine.max_running = 1;
        setup.engine.max_batch_tokens = 2;
    });
    let metrics = traced.site.engine.metrics();
    let long = json!({"prompt": "a".repeat(90_000), "max_tokens": 1}).to_string();
    let running = traced.site.send("POST", "/v1/completions", "", &long);
    while metrics.prefill_tokens.value() == 0 {
        std::thread::yield_now();
    }
    let waiting = traced.site.send(
        "POST",
        "/v1/completions",
        "",
        r#"{"prompt": "a", "max_tokens": 1}"#,
    );
    while metrics.gauges().waiting == 0 {
        std::thread::yield_now();
    }
    drop(waiting);
    let spans = traced.collector.spans(2);
    assert_eq!(phases(&spans[0], &spans), [["queue"]]);
    assert!(
        attribute(&spans[0], "gen_ai.latency.time_in_queue").is_null(),
        "it never ended"
    );
    drop(running);
    let spans = traced.collector.spans(3);
    assert_eq!(phases(&spans[0], &spans), [["queue", "prefill"]]);
    assert_eq!(attribute(&spans[0], "gen_ai.usage.input_tokens"), 90_000);
    assert_eq!(attribute(&spans[0], "gen_ai.usage.output_tokens"), 0);
    traced.site.wait_until_quiet();
}

#[test]
fn the_callers_trace_goes_on_and_its_flag_is_heeded() {
    let traced = Traced::new();
    let body = json!({"prompt": "a", "max_tokens": 1});
    let with = |header: &str| traced.ask("/v1/completions", header, &body).status;
    let parent = |flags: &str| format!("traceparent: 00-{TRACE}-{PARENT}-{flags}\r\n");
    assert_eq!(with(&parent("00")), 200);
    assert_eq!(with(&parent("02")), 200);
    assert_eq!(with(&parent("01")), 200);
    let spans = traced.collector.spans(4);
    assert_eq!(
        (&spans[0]["traceId"], &spans[0]["parentSpanId"]),
        (&json!(TRACE), &json!(PARENT))
    );
    assert_eq!(phases(&spans[0], &spans).len(), 1);
    for bad in [
        parent("0"),
        parent("01").repeat(2),
        parent("01").replace("00f0", "00F0"),
    ] {
        assert_eq!(with(&bad), 200);
        let spans = traced.collector.spans(4);
        assert_ne!(spans[0]["traceId"], TRACE);
        assert!(spans[0].get("parentSpanId").is_none(), "{bad}");
    }
    let (rest, n_exported, n_dropped) = traced.end();
    assert_eq!(
        (rest.len(), n_exported, n_dropped),
        (0, 16, 0),
        "what is not sampled is not there"
    );
}

#[test]
fn errors_are_told_and_only_the_servers_own_are_marked() {
    let traced = Traced::with(Collector::new(|_| Reply::Say(200, "")), limits(), |setup| {
        setup.api_keys = vec!["secret".to_owned()];
    });
    let key = "authorization: Bearer secret\r\n";
    let good = json!({"prompt": "a", "max_tokens": 1});
    let cases = [
        (401, "", "/v1/completions", good.clone()),
        (
            400,
            key,
            "/v1/completions",
            json!({"prompt": "a", "max_tokens": -1}),
        ),
        (400, key, "/v1/chat/completions", json!({"messages": 1})),
        (
            404,
            key,
            "/v1/completions",
            json!({"prompt": "a", "model": "other"}),
        ),
    ];
    for (status, headers, path, body) in cases {
        assert_eq!(traced.ask(path, headers, &body).status, status);
        let spans = traced.collector.spans(1);
        assert_eq!(attribute(&spans[0], "http.response.status_code"), status);
        assert_eq!(spans[0]["status"]["code"], 0);
        assert!(
            attribute(&spans[0], "gen_ai.response.id").is_null(),
            "nothing was computed"
        );
    }
    traced.site.fuse.light(3);
    let long = json!({"prompt": "a", "max_tokens": 50, "ignore_eos": true});
    assert_eq!(traced.ask("/v1/completions", key, &long).status, 500);
    let spans = traced.collector.spans(3);
    assert_eq!(spans[0]["status"]["code"], 2);
    assert_eq!(attribute(&spans[0], "error.type"), "internal_error");
    assert_eq!(
        attribute(&spans[0], "gen_ai.response.finish_reasons"),
        json!(["error"])
    );
    assert_eq!(
        phases(&spans[0], &spans),
        [["queue", "prefill"]],
        "it failed in its first step"
    );
    for (path, method) in [
        ("/v1/completions", "GET"),
        ("/v1/models", "GET"),
        ("/tokenize", "POST"),
    ] {
        Answer::read(traced.site.send(method, path, key, "{}"));
    }
    let (rest, ..) = traced.end();
    assert!(rest.is_empty(), "other routes are not traced");
}

#[test]
fn a_stream_that_fails_half_way_is_an_error_although_it_began_with_200() {
    let traced = Traced::new();
    let mut stream = endless(&traced.site);
    traced.site.fuse.light(5);
    let mut rest = String::new();
    stream.read_to_string(&mut rest).expect("text");
    let spans = traced.collector.spans(4);
    assert_eq!(attribute(&spans[0], "http.response.status_code"), 200);
    assert_eq!(attribute(&spans[0], "error.type"), "internal_error");
    assert_eq!(spans[0]["status"]["code"], 2);
    assert!(attribute(&spans[0], "arbora.client_disconnected").is_null());
    assert_eq!(phases(&spans[0], &spans), [["queue", "prefill", "decode"]]);
}

#[test]
fn who_waited_too_long_was_in_the_queue_and_nowhere_else() {
    let traced = Traced::with(Collector::new(|_| Reply::Say(200, "{}")), limits(), |setup| {
        setup.engine.max_running = 1;
    });
    let running = endless(&traced.site);
    let body = json!({"prompt": "a", "max_tokens": 1});
    let answer = traced.ask("/v1/completions", "x-arbora-queue-timeout-ms: 1\r\n", &body);
    assert_eq!(answer.status, 503, "{}", answer.body);
    let spans = traced.collector.spans(2);
    assert_eq!(attribute(&spans[0], "error.type"), "queue_timeout");
    assert_eq!(phases(&spans[0], &spans), [["queue"]]);
    drop(running);
}

#[test]
fn a_collector_that_recovers_gets_every_span_once() {
    let moods = |n| match n {
        0 => Reply::Say(503, ""),
        1 => Reply::HangUp,
        2 => Reply::Say(429, ""),
        _ => Reply::Say(200, "{}"),
    };
    let traced = Traced::with(Collector::new(moods), limits(), |_| {});
    traced.ask("/v1/completions", "", &json!({"prompt": "a", "max_tokens": 1}));
    let tries: Vec<String> = (0..4).map(|_| traced.collector.next().body).collect();
    assert!(
        tries.iter().all(|body| *body == tries[0]),
        "the same batch, until it is taken"
    );
    let (rest, n_exported, n_dropped) = traced.end();
    assert_eq!((rest.len(), n_exported, n_dropped), (0, 4, 0));
}

#[test]
fn what_a_collector_refuses_is_dropped_and_counted() {
    let moods = |n| match n {
        0 => Reply::Say(400, ""),
        1..=5 => Reply::Say(503, ""),
        _ => Reply::Say(
            200,
            r#"{"partialSuccess": {"rejectedSpans": "1", "errorMessage": "no"}}"#,
        ),
    };
    let traced = Traced::with(Collector::new(moods), limits(), |_| {});
    let ask = || traced.ask("/v1/completions", "", &json!({"prompt": "a", "max_tokens": 1}));
    ask();
    traced.collector.spans(4);
    ask();
    for _ in 0..5 {
        traced.collector.spans(4);
    }
    ask();
    traced.collector.spans(4);
    while traced.exporter.traces().metrics().n_exported() == 0 {
        std::thread::yield_now();
    }
    let page = traced.site.get("/metrics").body;
    for line in [
        "arbora_trace_spans_dropped_total 9\n",
        "arbora_trace_spans_exported_total 3\n",
    ] {
        assert!(page.contains(line), "{line} in {page}");
    }
    let (rest, n_exported, n_dropped) = traced.end();
    assert_eq!(
        (rest.len(), n_exported, n_dropped),
        (0, 3, 9),
        "no more tries than allowed"
    );
}

#[test]
fn a_collector_that_never_answers_costs_spans_and_no_request() {
    let limits = ExportLimits {
        max_queued_spans: 10,
        max_batch_spans: 8,
        timeout: Duration::from_secs(3600),
        ..limits()
    };
    let traced = Traced::with(Collector::new(|_| Reply::Nothing), limits, |_| {});
    let ask = || traced.ask("/v1/completions", "", &json!({"prompt": "a", "max_tokens": 1}));
    assert_eq!(ask().status, 200);
    traced.collector.spans(4);
    for _ in 0..20 {
        assert_eq!(ask().status, 200);
    }
    traced.site.wait_until_quiet();
    let (rest, n_exported, n_dropped) = traced.end();
    assert!(rest.len() <= 1, "nothing more while it is waited for");
    // Two exchanges of four spans fit the queue of ten; one is on its way.
    assert_eq!((n_exported, n_dropped), (0, 72));
}

#[test]
fn without_a_collector_requests_are_served_all_the_same() {
    let gone = TcpListener::bind("127.0.0.1:0")
        .expect("a port")
        .local_addr()
        .expect("bound");
    let (_, exports) = sync_channel(1);
    let url = format!("http://{gone}/v1/traces");
    let traced = Traced::with(Collector { url, exports }, limits(), |_| {});
    for _ in 0..3 {
        let answer = traced.ask("/v1/completions", "", &json!({"prompt": "a", "max_tokens": 1}));
        assert_eq!(answer.status, 200);
    }
    let (_, n_exported, n_dropped) = traced.end();
    assert_eq!((n_exported, n_dropped), (0, 12));
}

#[test]
fn what_is_in_the_queue_at_the_end_is_sent() {
    let limits = ExportLimits {
        delay: Duration::from_secs(3600),
        ..limits()
    };
    let traced = Traced::with(Collector::new(|_| Reply::Say(200, "{}")), limits, |_| {});
    for _ in 0..200 {
        traced.ask("/v1/completions", "", &json!({"prompt": "a", "max_tokens": 1}));
    }
    let (rest, n_exported, n_dropped) = traced.end();
    assert_eq!((n_exported, n_dropped), (800, 0));
    let sizes: Vec<usize> = rest.iter().map(|export| spans_of(export).len()).collect();
    assert_eq!(sizes, [512, 288], "one batch was full, the other was the rest");
}

#[test]
fn a_batch_that_waits_for_its_next_try_has_it_at_the_end() {
    let limits = ExportLimits {
        pause: Duration::from_secs(3600),
        ..limits()
    };
    let moods = |n| match n {
        0 => Reply::Say(503, ""),
        _ => Reply::Say(200, "{}"),
    };
    let traced = Traced::with(Collector::new(moods), limits, |_| {});
    traced.ask("/v1/completions", "", &json!({"prompt": "a", "max_tokens": 1}));
    traced.collector.spans(4);
    let (rest, n_exported, n_dropped) = traced.end();
    assert_eq!((rest.len(), n_exported, n_dropped), (1, 4, 0));
}

#[test]
fn no_text_and_no_key_is_in_what_is_exported() {
    let traced = Traced::with(Collector::new(|_| Reply::Say(200, "{}")), limits(), |setup| {
        setup.api_keys = vec!["zanzibar".to_owned()];
    });
    let content = "xylophone quokka";
    let body = chat(
        content,
        &json!({"max_tokens": 30, "ignore_eos": true, "user": "marmalade"}),
    );
    let (_, _, output) = traced.site.output(&site::rendered(content), 30);
    let key = "authorization: Bearer zanzibar\r\ncookie: biscuit\r\nuser-agent: walrus\r\n";
    for path in ["/v1/chat/completions", "/v1/chat/completions?secret=kumquat"] {
        let answer = traced.ask(path, key, &body);
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    let mut exported = String::new();
    while exported.matches("POST /v1/chat/completions").count() < 2 {
        exported.push_str(&traced.collector.next().body);
    }
    let secrets = [
        "zanzibar",
        "xylophone",
        "quokka",
        "marmalade",
        "biscuit",
        "walrus",
        "kumquat",
    ];
    for secret in secrets
        .iter()
        .copied()
        .chain(output.split_whitespace().filter(|word| word.len() > 3))
    {
        assert!(!exported.contains(secret), "{secret} in {exported}");
    }
    assert!(output.split_whitespace().any(|word| word.len() > 3), "{output}");
}
