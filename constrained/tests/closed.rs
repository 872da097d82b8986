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

#[test]
fn schemas_of_one_object_close_it_together() {
    let union = [r#"{"a":1}"#, r#"{"b":2}"#, r#"{"a":1,"b":2}"#, "{}"];
    let more = [r#"{"x":1}"#, r#"{"a":1,"x":1}"#, r#"{"a":null}"#];
    for schema in [
        r#"{"allOf": [{"properties": {"a": {"type": "integer"}}}, {"properties": {"b": {}}}], "type": "object"}"#,
        r##"{"$defs": {"a": {"properties": {"a": {"type": "integer"}}}},
             "allOf": [{"$ref": "#/$defs/a"}, {"properties": {"b": {}}}], "type": "object"}"##,
        r##"{"properties": {"a": {"type": "integer"}}, "allOf": [{"$ref": "#/$defs/b"}], "type": "object",
             "$defs": {"b": {"allOf": [{"properties": {"b": {}}}]}}}"##,
    ] {
        check(schema, &union, &more);
    }
    check(
        r##"{"$ref": "#/$defs/a", "properties": {"b": {}}, "$defs": {"a": {"properties": {"a": {}}}}}"##,
        &[r#"{"b":2,"a":1}"#, r#"{"a":1}"#],
        &[r#"{"x":1}"#],
    );
    // One of them closes itself as it always did.
    check(
        r#"{"allOf": [{"properties": {"a": true}, "additionalProperties": false}, {"properties": {"b": true}}]}"#,
        &["{}", r#"{"a":1}"#],
        &[r#"{"b":1}"#, r#"{"x":1}"#],
    );
}

#[test]
fn a_branch_names_its_own_members_only() {
    check(
        r#"{"type": "object", "properties": {"c": true}, "anyOf": [
            {"properties": {"a": true}, "required": ["a"]}, {"properties": {"b": true}, "required": ["b"]}]}"#,
        &[r#"{"c":0,"a":1}"#, r#"{"b":2}"#],
        &["{}", r#"{"c":1}"#, r#"{"a":1,"x":1}"#, r#"{"a":1,"b":1}"#],
    );
    // Where the first branch holds, the second must not: its member is left out, not written wrongly.
    check(
        r#"{"type": "object", "oneOf": [
            {"properties": {"a": {"type": "null"}}, "required": ["a"]},
            {"properties": {"b": {"type": "null"}}, "required": ["b"]}]}"#,
        &[r#"{"a":null}"#, r#"{"b":null}"#],
        &[r#"{"a":null,"b":1}"#, r#"{"a":null,"b":null}"#, "{}"],
    );
    check(
        r#"{"type": "object", "properties": {"kind": {"enum": ["x", "y"]}},
            "if": {"properties": {"kind": {"const": "x"}}, "required": ["kind"]},
            "then": {"properties": {"a": true}, "required": ["a"]}, "else": {"properties": {"b": true}}}"#,
        &[
            r#"{"kind":"x","a":1}"#,
            r#"{"kind":"y","b":1}"#,
            r#"{"b":1}"#,
            "{}",
        ],
        &[
            r#"{"kind":"x","b":1}"#,
            r#"{"kind":"y","a":1}"#,
            r#"{"kind":"x"}"#,
            r#"{"x":1}"#,
        ],
    );
    check(
        r#"{"type": "object", "oneOf": [
            {"properties": {"a": true}, "additionalProperties": false},
            {"properties": {"a": true, "b": true}}]}"#,
        &[r#"{"a":1,"b":1}"#, r#"{"b":1}"#],
        &["{}", r#"{"a":1}"#, r#"{"b":1,"x":1}"#, r#"{"x":1}"#],
    );
}

#[test]
fn members_that_must_be_there_may_be_written() {
    check(
        r#"{"type": "object", "properties": {"a": true}, "required": ["b"]}"#,
        &[r#"{"a":1,"b":2}"#, r#"{"b":2}"#],
        &["{}", r#"{"b":2,"x":1}"#],
    );
    check(
        r#"{"type": "object", "properties": {"a": true}, "dependentRequired": {"a": ["b"]}}"#,
        &["{}", r#"{"a":1,"b":2}"#],
        &[r#"{"a":1}"#, r#"{"x":1}"#],
    );
    check(
        r#"{"type": "object", "properties": {"a": true}, "dependentSchemas": {"a": {"properties": {"b": true}}}}"#,
        &["{}", r#"{"a":1,"b":2}"#, r#"{"a":1}"#],
        &[r#"{"b":1}"#, r#"{"a":1,"x":1}"#],
    );
    // Nothing else makes the object valid.
    check(
        r#"{"type": "object", "properties": {"a": true}, "not": {"properties": {"kind": {"const": 1}}}}"#,
        &[r#"{"kind":2}"#, r#"{"a":1,"kind":2}"#],
        &["{}", r#"{"kind":1}"#, r#"{"kind":2,"x":1}"#],
    );
    check(
        r#"{"type": "object", "properties": {"a": true}, "minProperties": 1}"#,
        &[r#"{"a":1}"#],
        &["{}", r#"{"x":1}"#],
    );
    check(
        r#"{"properties": {"a": true}, "not": {"additionalProperties": {"type": "integer"}}, "type": "object"}"#,
        &[r#"{"a":null}"#],
        &["{}", r#"{"a":1}"#, r#"{"x":null}"#],
    );
}

#[test]
fn what_must_not_hold_names_nothing() {
    check(
        r#"{"type": "object", "not": {"properties": {"a": {"type": "integer"}}, "required": ["a"]}}"#,
        &["{}", r#"{"x":1}"#, r#"{"a":null}"#],
        &[r#"{"a":1}"#],
    );
    check(
        r#"{"type": "object", "properties": {"a": true}, "not": {"required": ["b"]}}"#,
        &["{}", r#"{"a":1}"#],
        &[r#"{"b":1}"#, r#"{"x":1}"#],
    );
    check(
        r#"{"type": "object", "properties": {"a": true, "b": true}, "propertyNames": {"maxLength": 1, "not": {"const": "b"}}}"#,
        &["{}", r#"{"a":1}"#],
        &[r#"{"b":1}"#, r#"{"x":1}"#],
    );
}

#[test]
fn a_condition_closes_nothing() {
    check(
        r#"{"type": "object", "if": {"properties": {"kind": {"const": 1}}, "required": ["kind"]},
            "then": {"required": ["x"]}}"#,
        &[
            "{}",
            r#"{"kind":1,"x":2}"#,
            r#"{"kind":1,"x":2,"y":3}"#,
            r#"{"y":3}"#,
        ],
        &[r#"{"kind":1}"#],
    );
}

#[test]
fn listed_objects_are_as_they_are_listed() {
    check(
        r#"{"properties": {"a": true}, "enum": [{"a": 1, "x": 2}, {}]}"#,
        &["{}", r#"{"a":1,"x":2}"#],
        &[r#"{"a":1}"#],
    );
}
