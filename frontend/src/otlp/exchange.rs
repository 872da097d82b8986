//! The spans of an exchange: what is noted while it lasts, and what is made of it in the end.
//!
//! ```text
//! POST /v1/chat/completions   arrival .............................................. last byte, or no client
//!   queue     per completion        submitted ... first step
//!   prefill                                       first step ... first token
//!   decode                                                       first token ... ending
//! ```
//!
//! Times of a trace are differences on one steady clock, after one look at the calendar: they are in order
//! whatever happens to the calendar. Those of the phases are the engine's, from the ending of a completion,
//! or from its progress where the client left before. Nothing of a prompt, an output or a key is noted.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arbora_runtime::request::{SamplingParams, Usage};
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::HeaderValue;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};

use super::Traces;
use super::context::{Id, SpanId, TraceId, TraceParent};
use super::encode::{Attribute, KIND_INTERNAL, KIND_SERVER, STATUS_ERROR, STATUS_UNSET, Span, Status, Value};
use crate::stream::Submission;
use crate::wire::error::ApiError;
use crate::wire::options::Options;
use crate::wire::response::UsageBody;

/// Most characters of an answer's id, which a client of `/generate` may choose.
const MAX_ID_CHARS: usize = 128;

/// A route whose exchanges are traced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TracedRoute {
    pub(crate) path: &'static str,
    /// `gen_ai.operation.name`.
    pub(crate) operation: &'static str,
}

/// Where the generation of an exchange tells how it went.
#[derive(Clone, Debug)]
pub struct Exchange(Arc<OnceLock<Generated>>);

impl Exchange {
    /// For the generation by `model` whose answer is called `id` and was asked for with `options`, its tokens
    /// drawn as `sampling` says.
    pub(crate) fn generation(
        &self,
        id: &str,
        options: &Options,
        (model, sampling): (&str, SamplingParams),
    ) -> GenerationSpan {
        GenerationSpan {
            exchange: self.clone(),
            asked: Asked {
                id: id.chars().take(MAX_ID_CHARS).collect(),
                model: model.to_owned(),
                max_tokens: options.max_tokens,
                temperature: sampling.temperature,
                top_p: sampling.top_p,
            },
        }
    }
}

#[derive(Debug)]
struct Asked {
    id: String,
    model: String,
    max_tokens: Option<usize>,
    temperature: f32,
    top_p: f32,
}

/// What is noted of a generation under way.
#[derive(Debug)]
pub struct GenerationSpan {
    exchange: Exchange,
    asked: Asked,
}

/// How a completion ended.
#[derive(Debug)]
pub(crate) struct Ending {
    /// The word that its answer has for it, or the error it was; absent where nobody waited for it.
    pub(crate) reason: Option<Result<&'static str, ApiError>>,
    /// As far as it came.
    pub(crate) usage: Usage,
}

impl GenerationSpan {
    /// The generation is over. `endings` are those of its completions, `usage` is there if each has a reason.
    pub(crate) fn end(self, submission: Submission, endings: Vec<Ending>, usage: Option<UsageBody>) {
        let generated = Generated {
            asked: self.asked,
            submission,
            endings,
            usage,
        };
        let is_first = self.exchange.0.set(generated).is_ok();
        debug_assert!(is_first, "an exchange has one generation");
    }
}

/// A generation that is over.
#[derive(Debug)]
struct Generated {
    asked: Asked,
    submission: Submission,
    endings: Vec<Ending>,
    usage: Option<UsageBody>,
}

/// A part of a completion's time.
#[derive(Debug)]
struct Phase {
    name: &'static str,
    choice: usize,
    start: Instant,
    end: Instant,
}

impl Generated {
    /// The phases of all completions, in order.
    fn phases(&self) -> Vec<Phase> {
        let mut phases = Vec::with_capacity(3 * self.endings.len());
        for (choice, ending) in self.endings.iter().enumerate() {
            let phase = |(name, start, end)| Phase {
                name,
                choice,
                start,
                end,
            };
            phases.extend(self.phases_of(&ending.usage).into_iter().map(phase));
        }
        phases
    }

    fn phases_of(&self, usage: &Usage) -> Vec<(&'static str, Instant, Instant)> {
        let after = |us: u64| self.submission.arrived + Duration::from_micros(us.min(usage.total_us));
        let (arrived, ended) = (self.submission.arrived, after(usage.total_us));
        let (started, first_token) = (after(usage.queue_us), after(usage.ttft_us));
        match (usage.total_us, usage.queue_us, usage.ttft_us) {
            // The engine failed before it could tell.
            (0, ..) => Vec::new(),
            (_, 0, _) => vec![("queue", arrived, ended)],
            (_, _, 0) => vec![("queue", arrived, started), ("prefill", started, ended)],
            _ => vec![
                ("queue", arrived, started),
                ("prefill", started, first_token),
                ("decode", first_token, ended),
            ],
        }
    }

    /// The code of the first error that was the server's fault.
    fn fault(&self) -> Option<&'static str> {
        let reasons = self.endings.iter().filter_map(|ending| ending.reason.as_ref());
        reasons
            .filter_map(|reason| reason.as_ref().err())
            .find_map(ApiError::fault)
    }

    fn attributes(&self) -> Vec<Attribute<'_>> {
        let asked = &self.asked;
        let reasons = self.endings.iter().map(|ending| match &ending.reason {
            Some(Ok(word)) => word,
            Some(Err(_)) => "error",
            None => "abort",
        });
        let usages = || self.endings.iter().map(|ending| &ending.usage);
        let n_output: usize = usages().map(|usage| usage.completion_tokens).sum();
        let mut attributes = vec![
            attribute("gen_ai.response.id", asked.id.as_str()),
            attribute("gen_ai.response.finish_reasons", Value::texts(reasons)),
            attribute("gen_ai.request.temperature", asked.temperature),
            attribute("gen_ai.request.top_p", asked.top_p),
            attribute("gen_ai.usage.input_tokens", self.submission.prompt_tokens),
            attribute("gen_ai.usage.output_tokens", n_output),
        ];
        let max_tokens = asked
            .max_tokens
            .map(|n| attribute("gen_ai.request.max_tokens", n));
        attributes.extend(max_tokens);
        let first = usages().next().copied().unwrap_or_default();
        let latencies = [
            ("gen_ai.latency.time_in_queue", first.queue_us),
            ("gen_ai.latency.time_to_first_token", first.ttft_us),
        ];
        let known = latencies.into_iter().filter(|(_, us)| *us > 0);
        attributes.extend(known.map(|(key, us)| attribute(key, us as f64 / 1e6)));
        if let Some(explained) = self
            .usage
            .as_ref()
            .and_then(|usage| usage.arbora.as_ref()?.explanation)
        {
            attributes.extend([
                attribute("arbora.cached_tokens", explained.cached_tokens),
                attribute("arbora.computed_tokens", explained.computed_tokens),
                attribute("arbora.drafted_tokens", explained.drafted_tokens),
                attribute("arbora.accepted_tokens", explained.accepted_tokens),
                attribute("arbora.preemptions", explained.preemptions),
            ]);
        }
        attributes
    }
}

fn attribute<'a>(key: &'static str, value: impl Into<Value<'a>>) -> Attribute<'a> {
    let value = value.into();
    Attribute { key, value }
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// All of the answer was handed to the connection.
    Answered,
    /// The client was gone before.
    Disconnected,
}

/// An exchange that is over.
#[derive(Debug)]
pub(super) struct Finished {
    trace_id: TraceId,
    span_id: SpanId,
    parent: Option<SpanId>,
    route: TracedRoute,
    request_id: String,
    began_unix_nano: u64,
    began: Instant,
    ended: Instant,
    end: End,
    /// Of its answer; absent where the client did not wait for one.
    status: Option<u16>,
    /// Absent where nothing was computed.
    generated: Option<Generated>,
    n_spans: usize,
}

impl Finished {
    /// Spans that will be made of it, at least one.
    pub(super) fn n_spans(&self) -> usize {
        self.n_spans
    }

    /// Its spans, the server's first. `model` is the one that is meant where none is named.
    pub(super) fn spans<'a>(&'a self, model: &'a str) -> Vec<Span<'a>> {
        let phases = self.generated.as_ref().map(|generated| generated.phases());
        let mut spans = vec![self.server_span(model)];
        spans.extend(phases.into_iter().flatten().map(|phase| Span {
            trace_id: self.trace_id,
            span_id: Id::random(),
            parent_span_id: Some(self.span_id),
            name: phase.name.into(),
            kind: KIND_INTERNAL,
            start_time_unix_nano: self.unix_nano(phase.start),
            end_time_unix_nano: self.unix_nano(phase.end),
            attributes: vec![attribute("arbora.completion.index", phase.choice)],
            status: Status { code: STATUS_UNSET },
        }));
        spans
    }

    /// `first` is the model that is meant where none is named.
    fn server_span<'a>(&'a self, first: &'a str) -> Span<'a> {
        let model = self
            .generated
            .as_ref()
            .map_or(first, |generated| &generated.asked.model);
        let mut attributes = vec![
            attribute("http.request.method", "POST"),
            attribute("http.route", self.route.path),
            attribute("url.path", self.route.path),
            attribute("url.scheme", "http"),
            attribute(
                "http.request.header.x-request-id",
                Value::texts([self.request_id.as_str()]),
            ),
            attribute("gen_ai.operation.name", self.route.operation),
            attribute("gen_ai.request.model", model),
        ];
        let e2e = self.ended.saturating_duration_since(self.began).as_secs_f64();
        attributes.push(attribute("gen_ai.latency.e2e", e2e));
        let status = self.status.map(usize::from);
        attributes.extend(status.map(|status| attribute("http.response.status_code", status)));
        if self.end == End::Disconnected {
            attributes.push(attribute("arbora.client_disconnected", Value::Bool(true)));
        }
        // An answer that began well may end in an error.
        let fault = self.generated.as_ref().and_then(Generated::fault);
        let failed = status
            .filter(|status| *status >= 500)
            .map(|status| status.to_string());
        let error = fault.map(str::to_owned).or(failed);
        let code = if error.is_some() {
            STATUS_ERROR
        } else {
            STATUS_UNSET
        };
        attributes.extend(error.map(|error| attribute("error.type", error)));
        attributes.extend(self.generated.iter().flat_map(Generated::attributes));
        Span {
            trace_id: self.trace_id,
            span_id: self.span_id,
            parent_span_id: self.parent,
            name: format!("POST {}", self.route.path).into(),
            kind: KIND_SERVER,
            start_time_unix_nano: self.began_unix_nano,
            end_time_unix_nano: self.unix_nano(self.ended),
            attributes,
            status: Status { code },
        }
    }

    fn unix_nano(&self, time: Instant) -> u64 {
        let within = time.clamp(self.began, self.ended);
        self.began_unix_nano + nanos(within.saturating_duration_since(self.began))
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The span of an exchange under way. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct ServerSpan {
    traces: Traces,
    /// Told by the generation, whose end comes before this one's.
    generated: Exchange,
    route: TracedRoute,
    parent: Option<TraceParent>,
    request_id: String,
    began_unix_nano: u64,
    began: Instant,
    status: Option<u16>,
    end: End,
}

impl Traces {
    /// The span of an exchange on `route` that has just begun, if its caller records its own span or has
    /// none.
    pub(crate) fn begin(
        &self,
        route: TracedRoute,
        request: &Request,
        request_id: &HeaderValue,
    ) -> Option<ServerSpan> {
        let parent = TraceParent::read(request.headers());
        if parent.is_some_and(|parent| !parent.is_sampled) {
            return None;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Some(ServerSpan {
            traces: self.clone(),
            generated: Exchange(Arc::default()),
            route,
            parent,
            request_id: String::from_utf8_lossy(request_id.as_bytes()).into_owned(),
            began_unix_nano: now.map_or(0, nanos),
            began: Instant::now(),
            status: None,
            end: End::Disconnected,
        })
    }
}

impl ServerSpan {
    /// For the generation of this exchange.
    pub(crate) fn exchange(&self) -> Exchange {
        self.generated.clone()
    }

    /// The response, whose body ends the span.
    pub(crate) fn follow(mut self, response: Response) -> Response {
        self.status = Some(response.status().as_u16());
        response.map(|body| Body::new(FollowedBody { body, span: self }.checked()))
    }

    fn finish(&mut self) -> Finished {
        let ended = Instant::now();
        // Nobody else holds it any more, unless the generation outlives its exchange.
        let exchange = std::mem::replace(&mut self.generated, Exchange(Arc::default()));
        let generated = Arc::into_inner(exchange.0).and_then(OnceLock::into_inner);
        let n_phases = generated.as_ref().map_or(0, |generated| generated.phases().len());
        Finished {
            trace_id: self.parent.map_or_else(Id::random, |parent| parent.trace_id),
            span_id: Id::random(),
            parent: self.parent.map(|parent| parent.span_id),
            route: self.route,
            request_id: std::mem::take(&mut self.request_id),
            began_unix_nano: self.began_unix_nano,
            began: self.began,
            ended,
            end: self.end,
            status: self.status,
            generated,
            n_spans: 1 + n_phases,
        }
    }
}

impl Drop for ServerSpan {
    fn drop(&mut self) {
        let finished = self.finish();
        self.traces.push(finished);
    }
}

/// A response's body, and the span that ends with it.
struct FollowedBody {
    /// Dropped first: a generation in it tells the span of its end.
    body: Body,
    span: ServerSpan,
}

impl FollowedBody {
    fn checked(mut self) -> Self {
        self.check();
        self
    }

    /// A body of known length is not asked for more when all of it is there.
    fn check(&mut self) {
        if self.body.is_end_stream() {
            self.span.end = End::Answered;
        }
    }
}

impl HttpBody for FollowedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_none() {
            self.span.end = End::Answered;
        }
        self.check();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
impl Finished {
    /// One that nothing was computed for, of which `n_spans` spans are counted.
    pub(super) fn counted(n_spans: usize) -> Finished {
        let now = Instant::now();
        Finished {
            trace_id: Id::random(),
            span_id: Id::random(),
            parent: None,
            route: TracedRoute {
                path: "/v1/chat/completions",
                operation: "chat",
            },
            request_id: "id".to_owned(),
            began_unix_nano: 7,
            began: now,
            ended: now,
            end: End::Answered,
            status: Some(200),
            generated: None,
            n_spans,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generated(usages: &[Usage]) -> Generated {
        let ending = |usage: &Usage| Ending {
            reason: Some(Ok("stop")),
            usage: *usage,
        };
        Generated {
            asked: Asked {
                id: "id".to_owned(),
                model: "m".to_owned(),
                max_tokens: None,
                temperature: 1.0,
                top_p: 1.0,
            },
            submission: Submission::new(1, 0),
            endings: usages.iter().map(ending).collect(),
            usage: None,
        }
    }

    /// Names and times after the arrival, in microseconds.
    fn phases(generated: &Generated) -> Vec<(&'static str, usize, u128, u128)> {
        let us = |time: Instant| time.duration_since(generated.submission.arrived).as_micros();
        let phases = generated.phases();
        let phases = phases.iter();
        phases
            .map(|phase| (phase.name, phase.choice, us(phase.start), us(phase.end)))
            .collect()
    }

    fn usage(queue_us: u64, ttft_us: u64, total_us: u64) -> Usage {
        Usage {
            queue_us,
            ttft_us,
            total_us,
            ..Usage::default()
        }
    }

    #[test]
    fn a_completion_has_the_phases_that_it_came_to() {
        let all = generated(&[usage(2, 5, 9), usage(3, 4, 5)]);
        let expected = [
            ("queue", 0, 0, 2),
            ("prefill", 0, 2, 5),
            ("decode", 0, 5, 9),
            ("queue", 1, 0, 3),
            ("prefill", 1, 3, 4),
            ("decode", 1, 4, 5),
        ];
        assert_eq!(phases(&all), expected);
        let computed = phases(&generated(&[usage(2, 0, 9)]));
        assert_eq!(computed, [("queue", 0, 0, 2), ("prefill", 0, 2, 9)]);
        assert_eq!(phases(&generated(&[usage(0, 0, 9)])), [("queue", 0, 0, 9)]);
        assert_eq!(phases(&generated(&[usage(0, 0, 0)])), []);
        let late = phases(&generated(&[usage(2, 12, 9)]));
        assert_eq!(late[1..], [("prefill", 0, 2, 9), ("decode", 0, 9, 9)]);
    }

    #[test]
    fn what_is_not_known_of_a_completion_that_did_not_end_is_left_out() {
        let mut generated = generated(&[usage(1, 0, 3)]);
        generated.endings[0].reason = None;
        generated.endings[0].usage.completion_tokens = 6;
        let attributes = generated.attributes();
        let find = |key| attributes.iter().find(|attribute| attribute.key == key);
        let value = |key| serde_json::to_value(&find(key).expect("there").value).expect("JSON");
        assert_eq!(value("gen_ai.usage.output_tokens")["intValue"], "6");
        assert_eq!(value("gen_ai.latency.time_in_queue")["doubleValue"], 1e-6);
        let reasons = &value("gen_ai.response.finish_reasons")["arrayValue"]["values"];
        assert_eq!(reasons[0]["stringValue"], "abort");
        for absent in [
            "arbora.cached_tokens",
            "gen_ai.request.max_tokens",
            "gen_ai.latency.time_to_first_token",
        ] {
            assert!(find(absent).is_none(), "{absent}");
        }
    }

    #[test]
    fn times_are_within_the_exchange_whatever_is_noted() {
        let mut finished = Finished::counted(1);
        finished.began_unix_nano = 1_000;
        finished.ended = finished.began + Duration::from_nanos(50);
        assert_eq!(
            finished.unix_nano(finished.began + Duration::from_nanos(7)),
            1_007
        );
        assert_eq!(finished.unix_nano(finished.began - Duration::from_secs(1)), 1_000);
        assert_eq!(finished.unix_nano(finished.ended + Duration::from_secs(1)), 1_050);
    }

    #[test]
    fn an_error_without_a_name_is_its_status() {
        let mut finished = Finished::counted(1);
        for (status, code, error) in [(499, 0, None), (503, 2, Some("503"))] {
            finished.status = Some(status);
            let span = finished.server_span("m");
            assert_eq!(span.status.code, code);
            let found = span
                .attributes
                .iter()
                .find(|attribute| attribute.key == "error.type");
            let found = found.map(|found| serde_json::to_value(&found.value).expect("JSON"));
            assert_eq!(
                found.as_ref().and_then(|found| found["stringValue"].as_str()),
                error
            );
        }
    }
}
