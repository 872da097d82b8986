//! The body of an OTLP/HTTP export of traces, as JSON: `ExportTraceServiceRequest` of the protocol's `.proto`
//! files in protobuf's JSON mapping, with OTLP's own changes to it.
//!
//! ```text
//! {"resourceSpans": [{"resource":   {"attributes": [..]},
//!                     "scopeSpans": [{"scope": {"name", "version"}, "spans": [..]}]}]}
//! ```
//!
//! Keys are in lowerCamelCase, ids in hexadecimal digits (not base64), enums are numbers, and integers of 64
//! bits are decimal strings: times in nanoseconds since 1970 and `intValue`.

use std::borrow::Cow;

use serde::{Deserialize, Serialize, Serializer};

use super::Outcome;
use super::context::{SpanId, TraceId};
use crate::random::random_u64;

/// `SpanKind` and `Status.code` as they are numbered.
pub(super) const KIND_INTERNAL: u8 = 1;
pub(super) const KIND_SERVER: u8 = 2;
pub(super) const STATUS_UNSET: u8 = 0;
pub(super) const STATUS_ERROR: u8 = 2;

/// A span.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Span<'a> {
    pub(super) trace_id: TraceId,
    pub(super) span_id: SpanId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) parent_span_id: Option<SpanId>,
    pub(super) name: Cow<'static, str>,
    pub(super) kind: u8,
    #[serde(serialize_with = "decimal")]
    pub(super) start_time_unix_nano: u64,
    #[serde(serialize_with = "decimal")]
    pub(super) end_time_unix_nano: u64,
    pub(super) attributes: Vec<Attribute<'a>>,
    pub(super) status: Status,
}

#[derive(Debug, Serialize)]
pub(super) struct Status {
    pub(super) code: u8,
}

/// A key and its value.
#[derive(Debug, Serialize)]
pub(super) struct Attribute<'a> {
    pub(super) key: &'static str,
    pub(super) value: Value<'a>,
}

/// `AnyValue`, as far as it is used.
#[derive(Clone, Debug, Serialize)]
pub(super) enum Value<'a> {
    #[serde(rename = "stringValue")]
    Text(Cow<'a, str>),
    #[serde(rename = "boolValue")]
    Bool(bool),
    #[serde(rename = "intValue", serialize_with = "decimal")]
    Int(u64),
    #[serde(rename = "doubleValue")]
    Double(f64),
    /// A number of single precision, in the digits in which its client wrote it.
    #[serde(rename = "doubleValue")]
    Single(f32),
    #[serde(rename = "arrayValue")]
    List(Values<'a>),
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Values<'a> {
    values: Vec<Value<'a>>,
}

impl<'a> Value<'a> {
    pub(super) fn texts(texts: impl IntoIterator<Item = &'a str>) -> Self {
        Value::List(Values {
            values: texts.into_iter().map(Value::from).collect(),
        })
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Value::Text(text.into())
    }
}

impl From<String> for Value<'_> {
    fn from(text: String) -> Self {
        Value::Text(text.into())
    }
}

impl From<usize> for Value<'_> {
    fn from(number: usize) -> Self {
        Value::Int(number as u64)
    }
}

impl From<f64> for Value<'_> {
    fn from(number: f64) -> Self {
        Value::Double(number)
    }
}

impl From<f32> for Value<'_> {
    fn from(number: f32) -> Self {
        Value::Single(number)
    }
}

fn decimal<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}

/// Who made the spans: the same for as long as the process lives.
#[derive(Clone, Debug)]
pub(super) struct Resource {
    service_name: String,
    instance_id: String,
}

impl Resource {
    /// This process under the name `service_name`.
    pub(super) fn new(service_name: &str) -> Self {
        // A UUID of version 4, as the conventions ask for.
        let id = u128::from(random_u64()) << 64 | u128::from(random_u64());
        let id = id & !(0xf << 76 | 0xc << 60) | 0x4 << 76 | 0x8 << 60;
        let digits = format!("{id:032x}");
        let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &digits[part]);
        Resource {
            service_name: service_name.to_owned(),
            instance_id: parts.join("-"),
        }
    }
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ExportRequest<'a> {
    resource_spans: [ResourceSpans<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResourceSpans<'a> {
    resource: ResourceField<'a>,
    scope_spans: [ScopeSpans<'a>; 1],
}

#[derive(Serialize)]
struct ResourceField<'a> {
    attributes: [Attribute<'a>; 3],
}

#[derive(Serialize)]
struct ScopeSpans<'a> {
    scope: Scope,
    spans: &'a [Span<'a>],
}

#[derive(Serialize)]
struct Scope {
    name: &'static str,
    version: &'static str,
}

/// Appends the body of an export.
pub(super) fn write_request(resource: &Resource, spans: &[Span<'_>], out: &mut Vec<u8>) {
    let texts = [
        ("service.name", resource.service_name.as_str()),
        ("service.version", VERSION),
        ("service.instance.id", resource.instance_id.as_str()),
    ];
    let attributes = texts.map(|(key, text)| Attribute {
        key,
        value: text.into(),
    });
    let scope = Scope {
        name: "arbora",
        version: VERSION,
    };
    let request = ExportRequest {
        resource_spans: [ResourceSpans {
            resource: ResourceField { attributes },
            scope_spans: [ScopeSpans { scope, spans }],
        }],
    };
    serde_json::to_writer(out, &request).expect("plain structs serialize and a vector takes any bytes");
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ExportResponse {
    partial_success: PartialSuccess,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PartialSuccess {
    /// A number, or the string that protobuf's mapping makes of it.
    rejected_spans: serde_json::Value,
    error_message: String,
}

/// What a collector that answered 200 says of the spans it did not take. An answer in another language than
/// the request's says nothing.
pub(super) fn read_partial_success(answer: &[u8]) -> Outcome {
    let answer: ExportResponse = serde_json::from_slice(answer).unwrap_or_default();
    let partial = answer.partial_success;
    let rejected = &partial.rejected_spans;
    let spelled = || rejected.as_str()?.parse().ok();
    let n_rejected = rejected.as_u64().or_else(spelled).unwrap_or(0);
    Outcome::Taken {
        n_rejected,
        message: format!("the collector rejected spans: {}", partial.error_message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(spans: &[Span<'_>]) -> serde_json::Value {
        let mut out = Vec::new();
        write_request(&Resource::new("a service"), spans, &mut out);
        serde_json::from_slice(&out).expect("JSON")
    }

    #[test]
    fn a_span_is_written_as_the_protocol_wants_it() {
        let (trace_id, span_id, parent) = (TraceId::random(), SpanId::random(), SpanId::random());
        let attribute = |key, value| Attribute { key, value };
        let span = Span {
            trace_id,
            span_id,
            parent_span_id: Some(parent),
            name: "a name".into(),
            kind: KIND_SERVER,
            start_time_unix_nano: 1_544_712_660_000_000_001,
            end_time_unix_nano: u64::MAX,
            attributes: vec![
                attribute("text", "a \"b\"".into()),
                attribute("int", 7.into()),
                attribute("double", 0.25.into()),
                attribute("single", 0.7_f32.into()),
                attribute("bool", Value::Bool(true)),
                attribute("list", Value::texts(["a", "b"])),
            ],
            status: Status { code: STATUS_ERROR },
        };
        let written = json(&[span]);
        let resource = &written["resourceSpans"][0];
        assert_eq!(resource["scopeSpans"][0]["scope"]["name"], "arbora");
        let expected = serde_json::json!({
            "traceId": trace_id.to_string(),
            "spanId": span_id.to_string(),
            "parentSpanId": parent.to_string(),
            "name": "a name",
            "kind": 2,
            "startTimeUnixNano": "1544712660000000001",
            "endTimeUnixNano": "18446744073709551615",
            "attributes": [
                {"key": "text", "value": {"stringValue": "a \"b\""}},
                {"key": "int", "value": {"intValue": "7"}},
                {"key": "double", "value": {"doubleValue": 0.25}},
                {"key": "single", "value": {"doubleValue": 0.7}},
                {"key": "bool", "value": {"boolValue": true}},
                {"key": "list", "value": {"arrayValue": {"values": [{"stringValue": "a"}, {"stringValue": "b"}]}}},
            ],
            "status": {"code": 2},
        });
        assert_eq!(resource["scopeSpans"][0]["spans"], serde_json::json!([expected]));
    }

    #[test]
    fn a_root_has_no_parent_and_the_resource_has_a_name_and_a_uuid() {
        let span = Span {
            trace_id: TraceId::random(),
            span_id: SpanId::random(),
            parent_span_id: None,
            name: "root".into(),
            kind: KIND_INTERNAL,
            start_time_unix_nano: 0,
            end_time_unix_nano: 0,
            attributes: Vec::new(),
            status: Status { code: STATUS_UNSET },
        };
        let written = json(&[span]);
        let resource = &written["resourceSpans"][0];
        let span = resource["scopeSpans"][0]["spans"][0].as_object().expect("a span");
        assert!(!span.contains_key("parentSpanId"), "{span:?}");
        let attributes = resource["resource"]["attributes"].as_array().expect("attributes");
        let value = |key: &str| {
            let found = attributes.iter().find(|attribute| attribute["key"] == key);
            found
                .and_then(|found| found["value"]["stringValue"].as_str())
                .expect("text")
                .to_owned()
        };
        assert_eq!(value("service.name"), "a service");
        assert_eq!(value("service.version"), env!("CARGO_PKG_VERSION"));
        let id = value("service.instance.id");
        let parts: Vec<&str> = id.split('-').collect();
        assert_eq!(
            parts.iter().map(|part| part.len()).collect::<Vec<_>>(),
            [8, 4, 4, 4, 12],
            "{id}"
        );
        assert!(
            parts[2].starts_with('4') && "89ab".contains(&parts[3][..1]),
            "{id}"
        );
        assert_ne!(Resource::new("a").instance_id, Resource::new("a").instance_id);
    }

    #[test]
    fn what_a_collector_rejects_is_read_in_every_spelling() {
        let rejected = |answer: &str| match read_partial_success(answer.as_bytes()) {
            Outcome::Taken { n_rejected, .. } => n_rejected,
            other => panic!("{other:?}"),
        };
        for nothing in ["", "{}", "\n\u{0}", r#"{"partialSuccess": {}}"#, "[1]"] {
            assert_eq!(rejected(nothing), 0, "{nothing}");
        }
        assert_eq!(
            rejected(r#"{"partialSuccess": {"rejectedSpans": "3", "errorMessage": "full"}}"#),
            3
        );
        assert_eq!(
            rejected(r#"{"partialSuccess": {"rejectedSpans": 4, "more": 1}}"#),
            4
        );
    }
}
