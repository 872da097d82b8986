//! Objects closed where their schema does not say: never more than the open meaning, and never less than what
//! the schema names.

#[path = "common/bytes.rs"]
mod bytes;

use arbora_constrained::{AdditionalProperties, Grammar, Limits, SchemaOptions};
use bytes::{accepts, vocabulary};

fn closed(schema: &str) -> Grammar {
    let options = SchemaOptions {
        additional_properties: AdditionalProperties::Closed,
        ..SchemaOptions::default()
    };
    let grammar = Grammar::compile_json_schema(&vocabulary(), schema, &options, &Limits::default());
    grammar.unwrap_or_else(|error| panic!("{schema}: {error}"))
}

fn check(schema: &str, accepted: &[&str], refused: &[&str]) {
    let grammar = closed(schema);
    for text in accepted {
        assert!(accepts(&grammar, text), "{text} of {schema}");
    }
    for text in refused {
        assert!(!accepts(&grammar, text), "{text} of {schema}");
    }
}

#[test]
fn members_that_are_not_named_are_kept_out() {
    check(
        r#"{"type": "object", "properties": {"a": {"properties": {"b": true}}}}"#,
        &["{}", r#"{"a":{}}"#, r#"{"a":{"b":[1]}}"#, r#"{"a":7}"#],
        &[r#"{"x":1}"#, r#"{"a":{},"x":1}"#, r#"{"a":{"x":1}}"#],
    );
    check(
        r#"{"type": "object", "properties": {}}"#,
        &["{}"],
        &[r#"{"x":1}"#],
    );
    check(
        r#"{"patternProperties": {"^x": {"type": "integer"}}}"#,
        &["{}", r#"{"xa":1}"#],
        &[r#"{"xa":null}"#, r#"{"a":1}"#],
    );
}

#[test]
fn a_schema_that_says_something_of_the_others_or_names_none_stays_open() {
    for schema in [
        "{}",
        r#"{"type": "object"}"#,
        r#"{"type": "object", "propertyNames": {"minLength": 1}}"#,
        r#"{"properties": {"a": true}, "additionalProperties": true}"#,
        r#"{"properties": {"a": true}, "additionalProperties": {"type": "integer"}}"#,
        r#"{"properties": {"a": true}, "unevaluatedProperties": true}"#,
        r#"{"allOf": [{"properties": {"a": true}}], "additionalProperties": {}}"#,
        r#"{"properties": {"a": true}, "minProperties": 2}"#,
    ] {
        check(schema, &[r#"{"a":1,"x":2}"#], &[]);
    }
}
