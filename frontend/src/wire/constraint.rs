//! What the output must look like, in every spelling clients know. A request has at most one, and tools.
//!
//! ```text
//! OpenAI      response_format: {type: text | json_object | json_schema | structural_tag}
//! vLLM        structured_outputs: {json | regex | choice | grammar | json_object | structural_tag}
//!             guided_json, guided_regex, guided_choice, guided_grammar, guided_json_object (older)
//! SGLang      json_schema, regex, ebnf, structural_tag
//! llama.cpp   grammar (GBNF), json_schema
//! ```
//!
//! Where vLLM takes one field for EBNF and Lark, a text without `::=` is Lark, which has no such sign.

use arbora_constrained::{
    AdditionalProperties, CallFormat, Draft, Enforcement, FormatPolicy, ParallelCalls, SchemaOptions,
    Whitespace,
};
use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::strict;
use crate::thinking::Thinking;

/// Most alternatives of a `choice`.
pub const MAX_CHOICES: usize = 10_000;

/// What the output of a request must look like.
#[derive(Clone, Debug, PartialEq)]
pub struct Constraint {
    /// The field it came from; complaints name it.
    pub param: String,
    /// What was asked for.
    pub source: Source,
}

/// A constraint by its kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// JSON that satisfies a schema.
    JsonSchema {
        /// The schema as JSON, members in the client's order.
        text: String,
        /// How it is written.
        whitespace: Whitespace,
    },
    /// A regular expression that matches everything.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// llama.cpp's grammar format.
    Gbnf(String),
    /// XGrammar's.
    Ebnf(String),
    /// Lark's.
    Lark(String),
    /// Free text and constrained parts, as JSON.
    StructuralTag(String),
    /// Calls of tools.
    Tools(ToolCalls),
    /// Calls of tools, or an output without any.
    CallsOr(ToolCalls, Box<Source>),
    /// The model's thoughts, as the prompt leaves them to it, and then something.
    AfterThinking(Thinking, Box<Source>),
}

/// Which calls an output may or must hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ToolCalls {
    /// Name and schema of each tool.
    pub functions: Vec<(String, String)>,
    /// How a call is written.
    pub format: CallFormat,
    /// Whether and which.
    pub which: WhichTool,
    /// How many.
    pub parallel: ParallelCalls,
}

/// Which tool is called.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum WhichTool {
    /// What the model likes, also none.
    Auto,
    /// At least one.
    Any,
    /// This one.
    Named(String),
}

impl Source {
    /// How schemas are read.
    pub fn schema_options(whitespace: Whitespace) -> SchemaOptions {
        SchemaOptions {
            whitespace,
            draft: Draft::default(),
            formats: FormatPolicy::Enforce,
            additional_properties: AdditionalProperties::Closed,
            enforcement: Enforcement::Whole,
        }
    }
}

/// Any JSON object.
const OBJECT: &str = r#"{"type": "object"}"#;

impl Constraint {
    /// Reads every field that constrains the output.
    pub fn read(f: &mut Fields) -> Result<Option<Self>, ApiError> {
        let mut found: Vec<Constraint> = Vec::new();
        found.extend(response_format(f)?);
        found.extend(structured_outputs(f)?);
        for (name, read) in TOP_LEVEL {
            let path = f.path_of(name);
            if let Some(value) = f.raw(name)
                && let Some(source) = read(value, &path, Whitespace::Any)?
            {
                found.push(Constraint { param: path, source });
            }
        }
        f.refuse_unless("guided_whitespace_pattern", |_| false)?;
        // Which engine a server should use is a matter of the server.
        f.optional::<String>("guided_decoding_backend")?;
        let mut found = found.into_iter();
        let first = found.next();
        match (&first, found.next()) {
            (Some(first), Some(second)) => {
                let message = format!(
                    "'{}' and '{}' both constrain the output; at most one may.",
                    first.param, second.param
                );
                Err(ApiError::invalid(second.param, message))
            }
            _ => Ok(first),
        }
    }
}

impl Constraint {
    /// The same behind the model's thoughts.
    #[must_use]
    pub fn after(self, thinking: Thinking) -> Self {
        let source = match thinking {
            Thinking::None => self.source,
            _ => Source::AfterThinking(thinking, Box::new(self.source)),
        };
        Constraint { source, ..self }
    }
}

/// Reads the value of one field; `None` where it asks for nothing.
type Read = fn(Value, &str, Whitespace) -> Result<Option<Source>, ApiError>;

const TOP_LEVEL: [(&str, Read); 11] = [
    ("guided_json", schema),
    ("guided_json_object", json_object),
    ("guided_regex", regex),
    ("guided_choice", choice),
    ("guided_grammar", ebnf_or_lark),
    ("json_schema", schema),
    ("regex", regex),
    ("choice", choice),
    ("ebnf", ebnf),
    ("structural_tag", structural_tag),
    ("grammar", gbnf),
];

fn response_format(f: &mut Fields) -> Result<Option<Constraint>, ApiError> {
    let param = f.path_of("response_format");
    let Some(mut format) = f.object("response_format")? else {
        return Ok(None);
    };
    let kind = format.required::<String>("type")?;
    if kind == "structural_tag" {
        let source = Source::StructuralTag(format.into_value(&kind).to_string());
        return Ok(Some(Constraint { param, source }));
    }
    let (name, source) = match kind.as_str() {
        "text" => return Ok(None),
        "json_object" => {
            // llama.cpp's clients put a schema here.
            let path = format.path_of("schema");
            let given = match format.raw("schema") {
                Some(value) => schema(value, &path, Whitespace::Any)?,
                None => None,
            };
            (path, given.unwrap_or_else(any_object))
        }
        "json_schema" => {
            let Some(mut wrapped) = format.object("json_schema")? else {
                let path = format.path_of("json_schema");
                let message = format!("Missing required parameter: '{path}'.");
                return Err(ApiError::invalid(path, message));
            };
            let path = wrapped.path_of("schema");
            wrapped.optional::<String>("name")?;
            wrapped.optional::<String>("description")?;
            let is_strict = wrapped.optional::<bool>("strict")?.unwrap_or(false);
            let Some(value) = wrapped.raw("schema") else {
                let message = format!("Missing required parameter: '{path}'.");
                return Err(ApiError::invalid(path, message));
            };
            if is_strict {
                strict::check(&value, &path)?;
            }
            wrapped.finish();
            let source = schema(value, &path, Whitespace::Any)?;
            (path, source.unwrap_or_else(any_object))
        }
        _ => {
            let expected = "\"text\", \"json_object\", \"json_schema\" or \"structural_tag\"";
            return Err(wrong_type(
                &format.path_of("type"),
                expected,
                &Value::String(kind),
            ));
        }
    };
    format.finish();
    let param = if kind == "json_schema" { name } else { param };
    Ok(Some(Constraint { param, source }))
}

fn structured_outputs(f: &mut Fields) -> Result<Option<Constraint>, ApiError> {
    const KINDS: [(&str, Read); 6] = [
        ("json", schema),
        ("json_object", json_object),
        ("regex", regex),
        ("choice", choice),
        ("grammar", ebnf_or_lark),
        ("structural_tag", structural_tag),
    ];
    let param = f.path_of("structured_outputs");
    let Some(mut outputs) = f.object("structured_outputs")? else {
        return Ok(None);
    };
    let is_compact = outputs
        .optional::<bool>("disable_any_whitespace")?
        .unwrap_or(false);
    let whitespace = if is_compact {
        Whitespace::None
    } else {
        Whitespace::Any
    };
    outputs.refuse_unless("whitespace_pattern", |_| false)?;
    outputs.refuse_unless("disable_additional_properties", |v| v == &Value::Bool(false))?;
    let mut found = Vec::new();
    for (name, read) in KINDS {
        let param = outputs.path_of(name);
        if let Some(value) = outputs.raw(name)
            && let Some(source) = read(value, &param, whitespace)?
        {
            found.push(Constraint { param, source });
        }
    }
    outputs.finish();
    match found.len() {
        1 => Ok(found.pop()),
        n => {
            let kinds = KINDS.map(|(name, _)| name).join(", ");
            let message = format!("'{param}' must hold exactly one of {kinds}, it holds {n}.");
            Err(ApiError::invalid(param, message))
        }
    }
}

fn any_object() -> Source {
    Source::JsonSchema {
        text: OBJECT.to_owned(),
        whitespace: Whitespace::Any,
    }
}

/// A schema, as JSON or as a string that holds JSON.
fn schema(value: Value, path: &str, whitespace: Whitespace) -> Result<Option<Source>, ApiError> {
    let text = match value {
        Value::String(text) => text,
        Value::Object(_) | Value::Bool(_) => value.to_string(),
        other => return Err(wrong_type(path, "a JSON Schema", &other)),
    };
    Ok(Some(Source::JsonSchema { text, whitespace }))
}

fn json_object(value: Value, path: &str, whitespace: Whitespace) -> Result<Option<Source>, ApiError> {
    let text = OBJECT.to_owned();
    match value {
        Value::Bool(true) => Ok(Some(Source::JsonSchema { text, whitespace })),
        Value::Bool(false) => Ok(None),
        other => Err(wrong_type(path, "a boolean", &other)),
    }
}

fn text(value: Value, path: &str) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(path, "a string", &other)),
    }
}

fn regex(value: Value, path: &str, _: Whitespace) -> Result<Option<Source>, ApiError> {
    Ok(Some(Source::Regex(text(value, path)?)))
}

fn ebnf(value: Value, path: &str, _: Whitespace) -> Result<Option<Source>, ApiError> {
    Ok(Some(Source::Ebnf(text(value, path)?)))
}

fn gbnf(value: Value, path: &str, _: Whitespace) -> Result<Option<Source>, ApiError> {
    Ok(Some(Source::Gbnf(text(value, path)?)))
}

fn ebnf_or_lark(value: Value, path: &str, _: Whitespace) -> Result<Option<Source>, ApiError> {
    let text = text(value, path)?;
    Ok(Some(match text.contains("::=") {
        true => Source::Ebnf(text),
        false => Source::Lark(text),
    }))
}

/// As JSON or as a string that holds JSON.
fn structural_tag(value: Value, path: &str, _: Whitespace) -> Result<Option<Source>, ApiError> {
    match value {
        Value::String(text) => Ok(Some(Source::StructuralTag(text))),
        Value::Object(_) => Ok(Some(Source::StructuralTag(value.to_string()))),
        other => Err(wrong_type(path, "a structural tag", &other)),
    }
}

fn choice(value: Value, path: &str, _: Whitespace) -> Result<Option<Source>, ApiError> {
    let list = match value {
        Value::Array(list) => list,
        other => return Err(wrong_type(path, "an array of strings", &other)),
    };
    if list.is_empty() || list.len() > MAX_CHOICES {
        let n = list.len();
        let message = format!("'{path}' has {n} elements, must have 1 to {MAX_CHOICES}.");
        return Err(ApiError::invalid(path, message));
    }
    let texts = list.into_iter().enumerate();
    let texts = texts.map(|(i, value)| text(value, &format!("{path}[{i}]")));
    Ok(Some(Source::Choice(texts.collect::<Result<_, _>>()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Option<Constraint>, ApiError> {
        Constraint::read(&mut Fields::parse(json.as_bytes())?)
    }

    fn compact(text: &str) -> Source {
        Source::JsonSchema {
            text: text.to_owned(),
            whitespace: Whitespace::None,
        }
    }

    fn flexible(text: &str) -> Source {
        Source::JsonSchema {
            text: text.to_owned(),
            whitespace: Whitespace::Any,
        }
    }

    #[test]
    fn every_spelling_is_read() {
        let schema = r#"{"type":"object","properties":{"z":{},"a":{}}}"#;
        let wrapped =
            format!(r#"{{"type": "json_schema", "json_schema": {{"name": "x", "schema": {schema}}}}}"#);
        let in_text = serde_json::to_string(schema).expect("a string");
        let regex = || Source::Regex("a+".to_owned());
        let choice = || Source::Choice(vec!["a".to_owned(), "b".to_owned()]);
        let cases = [
            (format!(r#"{{"response_format": {wrapped}}}"#), flexible(schema)),
            (
                r#"{"response_format": {"type": "json_object"}}"#.to_owned(),
                any_object(),
            ),
            (
                format!(r#"{{"response_format": {{"type": "json_object", "schema": {schema}}}}}"#),
                flexible(schema),
            ),
            (
                format!(r#"{{"structured_outputs": {{"json": {schema}}}}}"#),
                flexible(schema),
            ),
            (
                format!(r#"{{"structured_outputs": {{"json": {in_text}, "disable_any_whitespace": true}}}}"#),
                compact(schema),
            ),
            (r#"{"structured_outputs": {"regex": "a+"}}"#.to_owned(), regex()),
            (
                r#"{"structured_outputs": {"choice": ["a", "b"]}}"#.to_owned(),
                choice(),
            ),
            (
                r#"{"structured_outputs": {"grammar": "start: \"a\""}}"#.to_owned(),
                Source::Lark("start: \"a\"".to_owned()),
            ),
            (
                r#"{"guided_grammar": "root ::= \"a\""}"#.to_owned(),
                Source::Ebnf("root ::= \"a\"".to_owned()),
            ),
            (format!(r#"{{"guided_json": {in_text}}}"#), flexible(schema)),
            (r#"{"guided_json_object": true}"#.to_owned(), any_object()),
            (r#"{"guided_regex": "a+"}"#.to_owned(), regex()),
            (r#"{"guided_choice": ["a", "b"]}"#.to_owned(), choice()),
            (format!(r#"{{"json_schema": {in_text}}}"#), flexible(schema)),
            (format!(r#"{{"json_schema": {schema}}}"#), flexible(schema)),
            (r#"{"regex": "a+"}"#.to_owned(), regex()),
            (
                r#"{"response_format": {"type":"structural_tag","format":{}}}"#.to_owned(),
                Source::StructuralTag(r#"{"format":{},"type":"structural_tag"}"#.to_owned()),
            ),
            (
                r#"{"structured_outputs": {"structural_tag": {"format":{}}}}"#.to_owned(),
                Source::StructuralTag(r#"{"format":{}}"#.to_owned()),
            ),
            (
                r#"{"ebnf": "root ::= x"}"#.to_owned(),
                Source::Ebnf("root ::= x".to_owned()),
            ),
            (
                r#"{"grammar": "root ::= x"}"#.to_owned(),
                Source::Gbnf("root ::= x".to_owned()),
            ),
        ];
        for (json, expected) in cases {
            let read = read(&json).expect(&json).expect(&json);
            assert_eq!(read.source, expected, "{json}");
            assert!(
                json.contains(read.param.split('.').next().expect("a name")),
                "{read:?}"
            );
        }
        for json in [
            "{}",
            r#"{"response_format": {"type": "text"}, "guided_json_object": false}"#,
        ] {
            assert_eq!(read(json).expect(json), None);
        }
    }

    #[test]
    fn what_is_malformed_names_its_field() {
        let cases = [
            (r#"{"response_format": "json"}"#, "response_format"),
            (r#"{"response_format": {}}"#, "response_format.type"),
            (r#"{"response_format": {"type": "xml"}}"#, "response_format.type"),
            (
                r#"{"response_format": {"type": "json_schema"}}"#,
                "response_format.json_schema",
            ),
            (
                r#"{"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}"#,
                "response_format.json_schema.schema",
            ),
            (
                r#"{"response_format": {"type": "json_schema", "json_schema": {"schema": [1]}}}"#,
                "response_format.json_schema.schema",
            ),
            (r#"{"structured_outputs": {}}"#, "structured_outputs"),
            (
                r#"{"structured_outputs": {"regex": "a", "json": {}}}"#,
                "structured_outputs",
            ),
            (
                r#"{"structured_outputs": {"regex": 5}}"#,
                "structured_outputs.regex",
            ),
            (
                r#"{"structured_outputs": {"choice": []}}"#,
                "structured_outputs.choice",
            ),
            (
                r#"{"structured_outputs": {"choice": ["a", 1]}}"#,
                "structured_outputs.choice[1]",
            ),
            (
                r#"{"structured_outputs": {"regex": "a", "whitespace_pattern": " "}}"#,
                "structured_outputs.whitespace_pattern",
            ),
            (
                r#"{"guided_whitespace_pattern": " "}"#,
                "guided_whitespace_pattern",
            ),
            (
                r#"{"regex": "a", "response_format": {"type": "json_object"}}"#,
                "regex",
            ),
            (r#"{"guided_json": 5}"#, "guided_json"),
            (r#"{"grammar": {}}"#, "grammar"),
        ];
        for (json, expected) in cases {
            match read(json).expect_err(json) {
                ApiError::Invalid {
                    param: Some(param), ..
                } => assert_eq!(param, expected, "{json}"),
                other => panic!("{json}: {other:?}"),
            }
        }
    }
}
