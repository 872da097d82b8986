//! What the output must look like, in every spelling clients know. A request has at most one, and tools; the
//! same constraint may be spelled several times.
//!
//! ```text
//! OpenAI        response_format: {type: text | json_object | json_schema | structural_tag}
//! vLLM          structured_outputs: {json | regex | choice | grammar | json_object | structural_tag}
//!               guided_json, guided_regex, guided_choice, guided_grammar, guided_json_object (older)
//! SGLang        json_schema, regex, ebnf, structural_tag
//! llama.cpp     grammar (GBNF), json_schema, response_format: {type: json_object | json_schema, schema}
//! Hugging Face  response_format: {type: json_object, value | json_schema}
//! ```
//!
//! `disable_any_whitespace` asks for compact JSON: in the request, for all of it, or in the object that holds
//! the constraint.
//!
//! Where a field of vLLM's or SGLang's takes EBNF, it takes Lark too, which guidance sends; the definition
//! that the text begins with tells which it is.

use std::collections::BTreeSet;

use arbora_constrained::{
    AdditionalProperties, CallFormat, Draft, Enforcement, FormatPolicy, GrammarSyntax, ParallelCalls,
    PropertyOrder, SchemaOptions, Whitespace,
};
use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::strict;
use super::unsupported::{self, STRUCTURED_OUTPUTS};
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
    /// Lark, as llguidance takes it.
    Lark {
        /// The grammar.
        text: String,
        /// How JSON in it is written.
        whitespace: Whitespace,
    },
    /// Free text and constrained parts.
    StructuralTag {
        /// The tag as JSON.
        text: String,
        /// How JSON in it is written.
        whitespace: Whitespace,
    },
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
    /// The tools.
    pub functions: Vec<ToolFunction>,
    /// How a call is written.
    pub format: CallFormat,
    /// Whether and which.
    pub which: WhichTool,
    /// How many.
    pub parallel: ParallelCalls,
    /// How arguments are written.
    pub whitespace: Whitespace,
}

/// A tool that may be called.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ToolFunction {
    /// Its name.
    pub name: String,
    /// The JSON Schema of its arguments.
    pub parameters: String,
    /// What happens to the parts of that schema that cannot be enforced.
    pub enforcement: Enforcement,
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
            order: PropertyOrder::Schema,
        }
    }
}

/// Any JSON object.
const OBJECT: &str = r#"{"type": "object"}"#;

impl Constraint {
    /// JSON that satisfies the schema in the field `name` of `f`, an object that must be there.
    pub(super) fn of_schema(f: &mut Fields, name: &str) -> Result<Self, ApiError> {
        let param = f.path_of(name);
        match f.raw(name) {
            Some(schema @ Value::Object(_)) => Ok(Constraint {
                source: Source::JsonSchema {
                    text: schema.to_string(),
                    whitespace: Whitespace::Any,
                },
                param,
            }),
            None => {
                let message = format!("Missing required parameter: '{param}'.");
                Err(ApiError::invalid(param, message))
            }
            Some(other) => Err(wrong_type(&param, "a JSON Schema", &other)),
        }
    }

    /// What TGI's clients ask for in the field `name` of `f`: `{type: json | regex | json_schema, value}`.
    pub(super) fn of_format(f: &mut Fields, name: &str) -> Result<Option<Self>, ApiError> {
        format_in(f, name, Whitespace::Any)
    }

    /// Any JSON object, as the field `param` asks.
    pub(super) fn any_object(param: String) -> Self {
        Constraint {
            param,
            source: any_object(Whitespace::Any),
        }
    }

    /// Reads every field that constrains the output; `whitespace` is what the request asks for.
    pub fn read(f: &mut Fields, whitespace: Whitespace) -> Result<Option<Self>, ApiError> {
        let mut found: Vec<Constraint> = Vec::new();
        found.extend(response_format(f, whitespace)?);
        found.extend(structured_outputs(f, whitespace)?);
        for (name, read) in TOP_LEVEL {
            let path = f.path_of(name);
            if let Some(value) = f.raw(name)
                && let Some(source) = read(value, &path, whitespace)?
            {
                found.push(Constraint { param: path, source });
            }
        }
        // Which engine a server should use is a matter of the server.
        f.optional::<String>("guided_decoding_backend")?;
        let mut found = found.into_iter();
        let Some(mut first) = found.next() else {
            return Ok(None);
        };
        for other in found {
            let Some(source) = both(&first.source, &other.source) else {
                let message = format!(
                    "'{}' and '{}' constrain the output differently; only one constraint is possible.",
                    first.param, other.param
                );
                return Err(ApiError::invalid(other.param, message));
            };
            first.source = source;
        }
        Ok(Some(first))
    }
}

/// The constraint that `a` and `b` both spell; `None` where they ask for different things.
fn both(a: &Source, b: &Source) -> Option<Source> {
    use Source::{Choice, Ebnf, Gbnf, JsonSchema, Lark, StructuralTag};
    let compact = |a, b| match (a, b) {
        (Whitespace::Any, Whitespace::Any) => Whitespace::Any,
        _ => Whitespace::None,
    };
    match (a, b) {
        (
            JsonSchema { text, whitespace },
            JsonSchema {
                text: other,
                whitespace: theirs,
            },
        ) => {
            let text = if is_same_json(text, other) || (other == OBJECT && is_of_objects(text)) {
                text.clone()
            } else if text == OBJECT && is_of_objects(other) {
                other.clone()
            } else {
                return None;
            };
            let whitespace = compact(*whitespace, *theirs);
            Some(JsonSchema { text, whitespace })
        }
        (
            StructuralTag { text, whitespace },
            StructuralTag {
                text: other,
                whitespace: theirs,
            },
        ) => {
            let text = is_same_json(text, other).then(|| text.clone())?;
            let whitespace = compact(*whitespace, *theirs);
            Some(StructuralTag { text, whitespace })
        }
        (Choice(list), Choice(other)) => {
            let set = |list: &[String]| list.iter().cloned().collect::<BTreeSet<_>>();
            (set(list) == set(other)).then(|| a.clone())
        }
        (
            Lark { text, whitespace },
            Lark {
                text: other,
                whitespace: theirs,
            },
        ) if text == other => Some(Lark {
            text: text.clone(),
            whitespace: compact(*whitespace, *theirs),
        }),
        // Each server calls its own dialect a grammar; a client that writes one text for all means it.
        (
            Ebnf(text) | Gbnf(text) | Lark { text, .. },
            Ebnf(other) | Gbnf(other) | Lark { text: other, .. },
        ) => (text == other).then(|| a.clone()),
        _ => (a == b).then(|| a.clone()),
    }
}

/// Whether two texts hold the same JSON, members in any order.
fn is_same_json(a: &str, b: &str) -> bool {
    let read = |text| serde_json::from_str::<Value>(text).ok();
    a == b || read(a).is_some_and(|value| Some(value) == read(b))
}

/// Whether a schema allows nothing but objects, and says so.
fn is_of_objects(schema: &str) -> bool {
    let schema: Option<Value> = serde_json::from_str(schema).ok();
    schema.is_some_and(|schema| schema["type"] == "object")
}

/// What `disable_any_whitespace` says, in a request or in an object that holds a constraint.
pub(super) fn whitespace(f: &mut Fields) -> Result<Whitespace, ApiError> {
    Ok(match f.optional("disable_any_whitespace")? {
        Some(true) => Whitespace::None,
        _ => Whitespace::Any,
    })
}

/// What the object `f` says of whitespace, in a request that says `outer`.
fn whitespace_within(f: &mut Fields, outer: Whitespace) -> Result<Whitespace, ApiError> {
    Ok(match whitespace(f)? {
        Whitespace::Any => outer,
        Whitespace::None => Whitespace::None,
    })
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
    ("guided_json", read_schema),
    ("guided_json_object", json_object),
    ("guided_regex", regex),
    ("guided_choice", choice),
    ("guided_grammar", grammar),
    ("json_schema", read_schema),
    ("regex", regex),
    ("choice", choice),
    ("ebnf", grammar),
    ("structural_tag", structural_tag),
    ("grammar", gbnf),
];

fn response_format(f: &mut Fields, whitespace: Whitespace) -> Result<Option<Constraint>, ApiError> {
    format_in(f, "response_format", whitespace)
}

/// What the format in the field `name` of `f` constrains to.
fn format_in(f: &mut Fields, name: &str, whitespace: Whitespace) -> Result<Option<Constraint>, ApiError> {
    let param = f.path_of(name);
    let Some(mut format) = f.object(name)? else {
        return Ok(None);
    };
    if format.is_empty() {
        return Ok(None);
    }
    let kind = format.required::<String>("type")?;
    if kind == "text" {
        return Ok(None);
    }
    let whitespace = whitespace_within(&mut format, whitespace)?;
    let found = match kind.as_str() {
        "structural_tag" => {
            let text = format.into_value(&kind).to_string();
            let source = Source::StructuralTag { text, whitespace };
            return Ok(Some(Constraint { param, source }));
        }
        // TGI calls it "json".
        "json_object" | "json" => json_format(&mut format, (param, whitespace))?,
        "json_schema" => schema_format(&mut format, whitespace)?,
        // TGI's.
        "regex" => {
            let param = format.path_of("value");
            let source = Source::Regex(format.required("value")?);
            Constraint { param, source }
        }
        _ => {
            let expected = "\"text\", \"json_object\", \"json_schema\", \"regex\" or \"structural_tag\"";
            return Err(wrong_type(
                &format.path_of("type"),
                expected,
                &Value::String(kind),
            ));
        }
    };
    format.finish_strictly()?;
    Ok(Some(found))
}

/// `{type: json_object}`: any object, or what a schema allows that some clients put beside it.
fn json_format(
    format: &mut Fields,
    (param, whitespace): (String, Whitespace),
) -> Result<Constraint, ApiError> {
    let mut found: Vec<Constraint> = Vec::new();
    for name in ["schema", "value", "json_schema"] {
        let param = format.path_of(name);
        let Some(value) = format.raw(name) else {
            continue;
        };
        // Wrapped like OpenAI's, or as it is.
        let is_wrapped = name == "json_schema" && value.get("schema").is_some_and(Value::is_object);
        found.push(if is_wrapped {
            wrapped_schema(Fields::nested(value, param)?, whitespace)?
        } else {
            let source = schema(value, &param, whitespace)?;
            Constraint { param, source }
        });
    }
    let mut found = found.into_iter();
    let Some(first) = found.next() else {
        let source = any_object(whitespace);
        return Ok(Constraint { param, source });
    };
    match found.find(|other| both(&first.source, &other.source).is_none()) {
        None => Ok(first),
        Some(other) => {
            let message = format!("'{}' and '{}' are different schemas.", first.param, other.param);
            Err(ApiError::invalid(other.param, message))
        }
    }
}

/// `{type: json_schema}`: a wrapped schema, OpenAI's or in TGI's `value`, or llama.cpp's bare one.
fn schema_format(format: &mut Fields, whitespace: Whitespace) -> Result<Constraint, ApiError> {
    for name in ["json_schema", "value"] {
        if let Some(wrapped) = format.object(name)? {
            return wrapped_schema(wrapped, whitespace);
        }
    }
    let param = format.path_of("schema");
    match format.raw("schema") {
        Some(value) => {
            let source = schema(value, &param, whitespace)?;
            Ok(Constraint { param, source })
        }
        None => {
            let path = format.path_of("json_schema");
            let message = format!("Missing required parameter: '{path}'.");
            Err(ApiError::invalid(path, message))
        }
    }
}

/// `{name, description, strict, schema}`.
fn wrapped_schema(mut wrapped: Fields, whitespace: Whitespace) -> Result<Constraint, ApiError> {
    let param = wrapped.path_of("schema");
    wrapped.optional::<String>("name")?;
    wrapped.optional::<String>("description")?;
    let is_strict = wrapped.optional::<bool>("strict")?.unwrap_or(false);
    let whitespace = whitespace_within(&mut wrapped, whitespace)?;
    let Some(value) = wrapped.raw("schema") else {
        let message = format!("Missing required parameter: '{param}'.");
        return Err(ApiError::invalid(param, message));
    };
    if is_strict {
        strict::check(&value, &param)?;
    }
    wrapped.finish_strictly()?;
    let source = schema(value, &param, whitespace)?;
    Ok(Constraint { param, source })
}

fn structured_outputs(f: &mut Fields, whitespace: Whitespace) -> Result<Option<Constraint>, ApiError> {
    const KINDS: [(&str, Read); 6] = [
        ("json", read_schema),
        ("json_object", json_object),
        ("regex", regex),
        ("choice", choice),
        ("grammar", grammar),
        ("structural_tag", structural_tag),
    ];
    let param = f.path_of("structured_outputs");
    let Some(mut outputs) = f.object("structured_outputs")? else {
        return Ok(None);
    };
    let whitespace = whitespace_within(&mut outputs, whitespace)?;
    unsupported::refuse(&mut outputs, &[&STRUCTURED_OUTPUTS])?;
    let mut found = Vec::new();
    for (name, read) in KINDS {
        let param = outputs.path_of(name);
        if let Some(value) = outputs.raw(name)
            && let Some(source) = read(value, &param, whitespace)?
        {
            found.push(Constraint { param, source });
        }
    }
    outputs.finish_strictly()?;
    match found.len() {
        0 | 1 => Ok(found.pop()),
        n => {
            let kinds = KINDS.map(|(name, _)| name).join(", ");
            let message = format!("'{param}' must hold at most one of {kinds}, it holds {n}.");
            Err(ApiError::invalid(param, message))
        }
    }
}

fn any_object(whitespace: Whitespace) -> Source {
    Source::JsonSchema {
        text: OBJECT.to_owned(),
        whitespace,
    }
}

/// A schema, as JSON or as a string that holds JSON.
fn schema(value: Value, path: &str, whitespace: Whitespace) -> Result<Source, ApiError> {
    let text = match value {
        Value::String(text) => text,
        Value::Object(_) | Value::Bool(_) => value.to_string(),
        other => return Err(wrong_type(path, "a JSON Schema", &other)),
    };
    Ok(Source::JsonSchema { text, whitespace })
}

fn read_schema(value: Value, path: &str, whitespace: Whitespace) -> Result<Option<Source>, ApiError> {
    match value {
        Value::String(text) if text.is_empty() => Ok(None),
        value => schema(value, path, whitespace).map(Some),
    }
}

fn json_object(value: Value, path: &str, whitespace: Whitespace) -> Result<Option<Source>, ApiError> {
    match value {
        Value::Bool(true) => Ok(Some(any_object(whitespace))),
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

/// A grammar's text; an empty one asks for nothing.
fn grammar_text(value: Value, path: &str) -> Result<Option<String>, ApiError> {
    Ok(Some(text(value, path)?).filter(|text| !text.is_empty()))
}

fn regex(value: Value, path: &str, _: Whitespace) -> Result<Option<Source>, ApiError> {
    Ok(grammar_text(value, path)?.map(Source::Regex))
}

fn gbnf(value: Value, path: &str, _: Whitespace) -> Result<Option<Source>, ApiError> {
    Ok(grammar_text(value, path)?.map(Source::Gbnf))
}

/// EBNF or Lark.
fn grammar(value: Value, path: &str, whitespace: Whitespace) -> Result<Option<Source>, ApiError> {
    Ok(
        grammar_text(value, path)?.map(|text| match GrammarSyntax::of(&text) {
            GrammarSyntax::Ebnf => Source::Ebnf(text),
            GrammarSyntax::Lark => Source::Lark { text, whitespace },
        }),
    )
}

/// As JSON or as a string that holds JSON.
fn structural_tag(value: Value, path: &str, whitespace: Whitespace) -> Result<Option<Source>, ApiError> {
    let text = match value {
        Value::String(text) => text,
        Value::Object(_) => value.to_string(),
        other => return Err(wrong_type(path, "a structural tag", &other)),
    };
    Ok((!text.is_empty()).then_some(Source::StructuralTag { text, whitespace }))
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
        let mut fields = Fields::parse(json.as_bytes())?;
        let whitespace = whitespace(&mut fields)?;
        Constraint::read(&mut fields, whitespace)
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

    fn lark(text: &str, whitespace: Whitespace) -> Source {
        Source::Lark {
            text: text.to_owned(),
            whitespace,
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
        let tag = |text: &str| Source::StructuralTag {
            text: text.to_owned(),
            whitespace: Whitespace::Any,
        };
        let cases = [
            (format!(r#"{{"response_format": {wrapped}}}"#), flexible(schema)),
            (
                r#"{"response_format": {"type": "json_object"}}"#.to_owned(),
                any_object(Whitespace::Any),
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
                lark("start: \"a\"", Whitespace::Any),
            ),
            (
                r#"{"ebnf": "// root ::= x\nstart: \"::=\""}"#.to_owned(),
                lark("// root ::= x\nstart: \"::=\"", Whitespace::Any),
            ),
            (
                r#"{"guided_grammar": "%llguidance {}\nstart: \"a\"", "disable_any_whitespace": true}"#
                    .to_owned(),
                lark("%llguidance {}\nstart: \"a\"", Whitespace::None),
            ),
            (
                r##"{"structured_outputs": {"grammar": "# start: x\nroot ::= \"a:\""}}"##.to_owned(),
                Source::Ebnf("# start: x\nroot ::= \"a:\"".to_owned()),
            ),
            (
                r#"{"guided_grammar": "root ::= \"a\""}"#.to_owned(),
                Source::Ebnf("root ::= \"a\"".to_owned()),
            ),
            (format!(r#"{{"guided_json": {in_text}}}"#), flexible(schema)),
            (
                r#"{"guided_json_object": true}"#.to_owned(),
                any_object(Whitespace::Any),
            ),
            (r#"{"guided_regex": "a+"}"#.to_owned(), regex()),
            (r#"{"guided_choice": ["a", "b"]}"#.to_owned(), choice()),
            (format!(r#"{{"json_schema": {in_text}}}"#), flexible(schema)),
            (format!(r#"{{"json_schema": {schema}}}"#), flexible(schema)),
            (r#"{"regex": "a+"}"#.to_owned(), regex()),
            (
                r#"{"response_format": {"type":"structural_tag","format":{}}}"#.to_owned(),
                tag(r#"{"format":{},"type":"structural_tag"}"#),
            ),
            (
                r#"{"structured_outputs": {"structural_tag": {"format":{}}}}"#.to_owned(),
                tag(r#"{"format":{}}"#),
            ),
            (
                format!(r#"{{"response_format": {{"type": "json_object", "value": {schema}}}}}"#),
                flexible(schema),
            ),
            (
                format!(r#"{{"response_format": {{"type": "json_object", "json_schema": {schema}}}}}"#),
                flexible(schema),
            ),
            (
                format!(
                    r#"{{"response_format": {{"type": "json_object", "json_schema": {{"schema": {schema}}}}}}}"#
                ),
                flexible(schema),
            ),
            (
                format!(r#"{{"response_format": {{"type": "json_schema", "schema": {schema}}}}}"#),
                flexible(schema),
            ),
            (
                r#"{"response_format": {"type": "regex", "value": "a+"}}"#.to_owned(),
                regex(),
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
            r#"{"response_format": {}, "structured_outputs": {}, "grammar": "", "regex": ""}"#,
            r#"{"structured_outputs": {"json": null, "regex": null, "whitespace_pattern": null}}"#,
        ] {
            assert_eq!(read(json).expect(json), None);
        }
    }

    #[test]
    fn one_constraint_may_be_spelled_several_times() {
        let object = r#"{"type": "object", "properties": {"a": {"type": "integer"}}}"#;
        let cases = [
            r#"{"guided_choice": ["a", "b"], "structured_outputs": {"choice": ["b", "a"]}}"#.to_owned(),
            r#"{"regex": "a+", "guided_regex": "a+", "structured_outputs": {"regex": "a+"}}"#.to_owned(),
            r#"{"grammar": "root ::= x", "ebnf": "root ::= x", "guided_grammar": "root ::= x"}"#.to_owned(),
            format!(
                r#"{{"guided_json": {object}, "json_schema": {}}}"#,
                Value::from(object)
            ),
            format!(r#"{{"guided_json": {object}, "response_format": {{"type": "json_object"}}}}"#),
            format!(r#"{{"guided_json_object": true, "structured_outputs": {{"json": {object}}}}}"#),
            r#"{"guided_json_object": true, "response_format": {"type": "json_object"}}"#.to_owned(),
        ];
        for json in cases {
            let read = read(&json).expect(&json).expect(&json);
            if json.contains("properties") {
                let Source::JsonSchema { text, .. } = read.source else {
                    panic!("{json}");
                };
                assert!(text.contains("properties"), "{json}: the narrower one counts");
            }
        }
        let compact = format!(
            r#"{{"guided_json": {object}, "structured_outputs": {{"json": {object}, "disable_any_whitespace": true}}}}"#
        );
        let Some(Source::JsonSchema { whitespace, .. }) =
            read(&compact).expect("valid").map(|one| one.source)
        else {
            panic!("{compact}");
        };
        assert_eq!(whitespace, Whitespace::None);
        for json in [
            r#"{"guided_choice": ["a"], "choice": ["b"]}"#,
            r#"{"regex": "a+", "guided_regex": "a*"}"#,
            r#"{"guided_json": {"type": "string"}, "response_format": {"type": "json_object"}}"#,
            r#"{"guided_json": {"const": 1}, "json_schema": {"const": 2}}"#,
            r#"{"response_format": {"type": "json_object", "schema": {"const": 1}, "value": {"const": 2}}}"#,
        ] {
            let error = read(json).expect_err(json).to_string();
            assert!(
                error.contains("differently") || error.contains("different schemas"),
                "{error}"
            );
        }
    }

    #[test]
    fn compact_json_can_be_asked_for_wherever_json_is() {
        for json in [
            r#"{"disable_any_whitespace": true, "guided_json": {}}"#,
            r#"{"disable_any_whitespace": true, "response_format": {"type": "json_object"}}"#,
            r#"{"response_format": {"type": "json_object", "disable_any_whitespace": true}}"#,
            r#"{"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "disable_any_whitespace": true}}}"#,
            r#"{"disable_any_whitespace": true, "structural_tag": {"format": {}}}"#,
            r#"{"structured_outputs": {"structural_tag": {}, "disable_any_whitespace": true}}"#,
        ] {
            let source = read(json).expect(json).expect(json).source;
            let (Source::JsonSchema { whitespace, .. } | Source::StructuralTag { whitespace, .. }) = source
            else {
                panic!("{json}: {source:?}");
            };
            assert_eq!(whitespace, Whitespace::None, "{json}");
        }
    }

    #[test]
    fn what_is_malformed_names_its_field() {
        let cases = [
            (r#"{"response_format": "json"}"#, "response_format"),
            (r#"{"response_format": {"schema": {}}}"#, "response_format.type"),
            (
                r#"{"response_format": {"type": "json_object", "shema": {"type": "string"}}}"#,
                "response_format.shema",
            ),
            (
                r#"{"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "mode": "x"}}}"#,
                "response_format.json_schema.mode",
            ),
            (
                r#"{"structured_outputs": {"jsn": {"type": "string"}}}"#,
                "structured_outputs.jsn",
            ),
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
