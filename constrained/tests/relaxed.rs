//! Schemas of which a part cannot be enforced: what the grammar allows is a superset, and it says which part.

#[path = "common/bytes.rs"]
mod bytes;

use arbora_constrained::{
    AdditionalProperties, CallFormat, Enforcement, Grammar, Limits, ParallelCalls, SchemaOptions, Tool,
    ToolChoice, ToolSpec,
};
use bytes::{accepts, vocabulary};

/// What is left out, each as its pointer and keyword.
fn parts(grammar: &Grammar) -> Vec<String> {
    let part = |part: &arbora_constrained::Relaxed| format!("{} {}", part.pointer, part.keyword);
    grammar.relaxed().iter().map(part).collect()
}

/// Compiles under `limits` and checks what is left out and what is still enforced.
fn check_within(limits: &Limits, schema: &str, left_out: &[&str], accepted: &[&str], refused: &[&str]) {
    let options = |enforcement| SchemaOptions {
        enforcement,
        ..SchemaOptions::default()
    };
    let compile =
        |enforcement| Grammar::compile_json_schema(&vocabulary(), schema, &options(enforcement), limits);
    assert!(compile(Enforcement::Whole).is_err(), "{schema}");
    let grammar = compile(Enforcement::Relaxed).unwrap_or_else(|error| panic!("{schema}: {error}"));
    assert_eq!(parts(&grammar), left_out, "{schema}");
    for text in accepted {
        assert!(accepts(&grammar, text), "{text} of {schema}");
    }
    for text in refused {
        assert!(!accepts(&grammar, text), "{text} of {schema}");
    }
}

fn check(schema: &str, left_out: &[&str], accepted: &[&str], refused: &[&str]) {
    check_within(&Limits::default(), schema, left_out, accepted, refused);
}

#[test]
fn only_the_keyword_that_cannot_be_enforced_is_left_out() {
    check(
        r#"{"properties": {"a": {"type": "string", "pattern": "^(a)\\1$", "maxLength": 2}}}"#,
        &["#/properties/a pattern"],
        &[r#"{"a":"x"}"#],
        &[r#"{"a":1}"#, r#"{"a":"xxx"}"#],
    );
    check(
        r#"{"items": {"$ref": "https://example.com/other", "type": "integer"}, "type": "array", "minItems": 1}"#,
        &["#/items $ref"],
        &["[1]"],
        &["[]", "[null]"],
    );
    check(
        r#"{"type": 5, "maxLength": 1}"#,
        &["# type"],
        &["1", r#""a""#],
        &[r#""ab""#],
    );
    check(
        r#"{"enum": [1, 2, 3, 40], "multipleOf": 0, "maximum": 9}"#,
        &["# multipleOf"],
        &["1", "3"],
        &["40"],
    );
    check(
        r#"{"type": "integer", "multipleOf": 1e99, "minimum": 5}"#,
        &["# multipleOf"],
        &["5", "7"],
        &["4"],
    );
}

#[test]
fn distinct_items_of_which_there_may_not_be_enough_are_left_out() {
    check(
        r#"{"properties": {"a": {"type": "array", "uniqueItems": true, "minItems": 2,
            "items": {"type": "string", "pattern": "^(|x)$", "maxLength": 0}}}}"#,
        &["#/properties/a uniqueItems"],
        &[r#"{"a":["",""]}"#],
        &[r#"{"a":[""]}"#, r#"{"a":["","x"]}"#],
    );
}

#[test]
fn what_depends_on_a_keyword_is_left_out_with_it() {
    check(
        r#"{"properties": {"a": {"type": "null"}}, "patternProperties": {"(b)\\1": {"type": "null"}},
            "additionalProperties": false}"#,
        &["# patternProperties", "# additionalProperties"],
        &[r#"{"x":1}"#, r#"{"a":null}"#],
        &[r#"{"a":1}"#],
    );
    check(
        r#"{"anyOf": [{"$ref": "elsewhere"}, {"properties": {"b": true}}], "properties": {"a": {"type": "null"}},
            "unevaluatedProperties": false}"#,
        &["#/anyOf/0 $ref", "# unevaluatedProperties"],
        &[r#"{"x":1}"#, r#"{"a":null}"#],
        &[r#"{"a":1}"#],
    );
    check(
        r#"{"if": 7, "then": {"type": "null"}, "else": false, "type": ["null", "boolean"]}"#,
        &["#/if schema"],
        &["null"],
        &["1"],
    );
    check(
        r#"{"$schema": "http://json-schema.org/draft-07/schema#", "$ref": "elsewhere", "type": "null"}"#,
        &["# schema"],
        &["1", "null"],
        &[],
    );
}

#[test]
fn what_must_fail_is_left_out_so_that_more_may() {
    // Were the pattern dropped within `not`, only texts of three characters would be left.
    check(
        r#"{"type": "string", "not": {"pattern": "(a)\\1", "maxLength": 2}}"#,
        &["#/not pattern"],
        &[r#""a""#, r#""abc""#],
        &["1"],
    );
    check(
        r#"{"oneOf": [{"type": "string", "format": "email"}, {"type": "string", "format": "uri"}]}"#,
        &["#/oneOf/1 format", "#/oneOf/0 format"],
        &[r#""a@b.cd""#, r#""a:b""#],
        &[r#""?""#, "1"],
    );
    check(
        r##"{"not": {"required": ["a"], "$dynamicRef": "#nowhere"}, "type": "object"}"##,
        &["#/not $dynamicRef"],
        &["{}", r#"{"a":1}"#],
        &["[]"],
    );
}

#[test]
fn what_exceeds_a_limit_is_left_out_where_it_does() {
    let list = |n: usize, of: fn(usize) -> String| (0..n).map(of).collect::<Vec<_>>().join(",");
    let branches = list(300, |n| format!(r#"{{"required":["k{n}"]}}"#));
    check(
        &format!(
            r#"{{"properties": {{"a": {{"anyOf": [{branches}], "type": "object"}}, "b": {{"type": "null"}}}}}}"#
        ),
        &["#/properties/a anyOf"],
        &[r#"{"a":{},"b":null}"#],
        &[r#"{"a":1}"#, r#"{"b":1}"#],
    );
    let objects = list(300, |n| format!(r#"{{"type":"object","required":["k{n}"]}}"#));
    check(
        &format!(r#"{{"anyOf": [{objects}]}}"#),
        &["# anyOf"],
        &["{}"],
        &["1"],
    );
    let large = "(a|b)*a(a|b){16}";
    check(
        &format!(r#"{{"type": "string", "pattern": "^{large}$", "maxLength": 3}}"#),
        &["# pattern"],
        &[r#""xyz""#],
        &[r#""wxyz""#],
    );
    check(
        r#"{"type": "number", "minimum": 3, "not": {"multipleOf": 99991}}"#,
        &["#/not multipleOf"],
        &["99991"],
        &["2"],
    );
    let deep = format!("{}true{}", r#"{"items":"#.repeat(200), "}".repeat(200));
    check(&deep, &["# schema"], &["[]", "1"], &[]);
    let loops = r##"{"type": "object", "allOf": [{"$ref": "#"}], "properties": {"a": {"type": "null"}}}"##;
    check(
        loops,
        &["#/allOf/0 $ref"],
        &["{}", r#"{"a":null}"#],
        &["1", r#"{"a":1}"#],
    );
    let chain = list(120, |n| format!(r##""d{n}": {{"$ref": "#/$defs/d{}"}}"##, n + 1));
    check(
        &format!(
            r##"{{"$ref": "#/$defs/d0", "type": "null", "$defs": {{{chain}, "d120": {{"type": "null"}}}}}}"##
        ),
        &["#/$defs/d95 $ref"],
        &["null"],
        &["1"],
    );
    let short = Limits {
        max_source_bytes: 20,
        ..Limits::default()
    };
    check_within(
        &short,
        r#"{"type": "null", "title": "long"}"#,
        &["# schema"],
        &["1"],
        &[],
    );
    let counted = (0..6)
        .map(|n| format!(r#"{{"contains": {{"const": {n}}}}}"#))
        .collect::<Vec<_>>()
        .join(",");
    check(
        &format!(r#"{{"type": "array", "minItems": 1, "allOf": [{counted}]}}"#),
        &[
            "#/allOf/0 contains",
            "#/allOf/1 contains",
            "#/allOf/2 contains",
            "#/allOf/3 contains",
            "#/allOf/4 contains",
            "#/allOf/5 contains",
        ],
        &["[7]"],
        &["[]", "1"],
    );
}

#[test]
fn what_is_left_when_the_work_runs_out_is_open() {
    let properties = |n: usize| {
        let property = |n| format!(r#""p{n}": {{"type": "array", "items": {{"enum": [{n}]}}}}"#);
        (0..n).map(property).collect::<Vec<_>>().join(",")
    };
    let schema = format!(
        r#"{{"type": "object", "properties": {{{}}}, "required": ["p0"]}}"#,
        properties(50)
    );
    let work = (5_000..120_000).step_by(5_000).map(|max_compile_work| Limits {
        max_compile_work,
        ..Limits::default()
    });
    let nodes = (100..600).step_by(20).map(|max_nodes| Limits {
        max_nodes,
        ..Limits::default()
    });
    for tighter in [work.collect::<Vec<_>>(), nodes.collect()] {
        let mut n_left_out = Vec::new();
        for limits in tighter {
            let options = SchemaOptions {
                enforcement: Enforcement::Relaxed,
                ..SchemaOptions::default()
            };
            let grammar = Grammar::compile_json_schema(&vocabulary(), &schema, &options, &limits);
            let grammar = grammar.expect("it is relaxed");
            assert!(
                accepts(&grammar, r#"{"p0":[0],"p7":[7],"p49":[49]}"#),
                "{limits:?}"
            );
            n_left_out.push(parts(&grammar).len());
        }
        assert!(n_left_out.is_sorted_by(|a, b| a >= b), "{n_left_out:?}");
        assert!(n_left_out.iter().any(|n| (5..45).contains(n)), "{n_left_out:?}");
        assert_eq!(n_left_out.last(), Some(&0), "{n_left_out:?}");
    }
}

#[test]
fn what_nothing_satisfies_is_relaxed_as_a_whole() {
    for schema in [
        r#"{"type": "object", "properties": {"a": false}, "required": ["a"]}"#,
        "false",
        r#"{"allOf": [{"type": "null"}, {"type": "string"}]}"#,
        r##"{"properties": {"a": {"$ref": "#"}}, "required": ["a"], "type": "object"}"##,
    ] {
        check(schema, &["# schema"], &["1", "{}", r#"{"a":1}"#], &["x"]);
    }
}

#[test]
fn a_tool_says_for_itself_whether_it_is_relaxed() {
    let parameters = r#"{"type": "object", "properties": {"a": {"pattern": "(a)\\1"}}}"#;
    let tool = |name, enforcement| Tool {
        name,
        parameters,
        enforcement,
    };
    let compile = |tools: &[Tool<'_>]| {
        let spec = ToolSpec {
            tools,
            format: CallFormat::Hermes,
            choice: ToolChoice::Required,
            parallel: ParallelCalls::Allowed,
            options: SchemaOptions::default(),
        };
        Grammar::compile_tools(&vocabulary(), &spec, &Limits::default())
    };
    let tools = [tool("f", Enforcement::Relaxed), tool("g", Enforcement::Whole)];
    let grammar = compile(&tools[..1]).expect("it is relaxed");
    assert_eq!(parts(&grammar), ["#/tools/0/parameters/properties/a pattern"]);
    let error = compile(&tools).expect_err("the second one is not").to_string();
    assert!(
        error.starts_with("#/tools/1/parameters/properties/a: `pattern`"),
        "{error}"
    );
}

#[test]
fn arguments_of_a_relaxed_tool_are_an_object_whatever_its_schema_is() {
    for parameters in [
        r#"{"type": "array"}"#,
        r#"{"type": "objekt", "properties": {"a": true}}"#,
        r#"{"$ref": "elsewhere"}"#,
        r#"{"enum": [1, 2]}"#,
        r#"{"properties": {"a": false}, "required": ["a"]}"#,
        r#"{"anyOf": 7, "const": null}"#,
        r#"{"properties": []}"#,
        "false",
    ] {
        let tools = [Tool {
            name: "f",
            parameters,
            enforcement: Enforcement::Relaxed,
        }];
        let spec = ToolSpec {
            tools: &tools,
            format: CallFormat::Llama3Json,
            choice: ToolChoice::Required,
            parallel: ParallelCalls::AtMostOne,
            options: SchemaOptions {
                additional_properties: AdditionalProperties::Closed,
                ..SchemaOptions::default()
            },
        };
        let grammar = Grammar::compile_tools(&vocabulary(), &spec, &Limits::default());
        let grammar = grammar.unwrap_or_else(|error| panic!("{parameters}: {error}"));
        let parts = parts(&grammar);
        assert!(
            !parts.is_empty() && parts[0].starts_with("#/tools/0/parameters"),
            "{parts:?}"
        );
        let call = |arguments: &str| format!(r#"{{"name": "f", "parameters": {arguments}}}"#);
        assert!(accepts(&grammar, &call("{}")), "{parameters}");
        assert!(
            !accepts(&grammar, &call("1")) && !accepts(&grammar, &call("[]")),
            "{parameters}"
        );
    }
}

#[test]
fn objects_of_a_relaxed_schema_are_closed_as_others_are() {
    let options = SchemaOptions {
        enforcement: Enforcement::Relaxed,
        additional_properties: AdditionalProperties::Closed,
        ..SchemaOptions::default()
    };
    let schema = r#"{"properties": {
        "a": {"type": "string", "pattern": "(a)\\1"},
        "b": {"properties": {}, "allOf": [{"$ref": "elsewhere"}]},
        "c": {"properties": {}}
    }}"#;
    let grammar = Grammar::compile_json_schema(&vocabulary(), schema, &options, &Limits::default());
    let grammar = grammar.expect("it is relaxed");
    assert!(accepts(&grammar, r#"{"a":"x","c":{}}"#));
    assert!(!accepts(&grammar, r#"{"x":1}"#) && !accepts(&grammar, r#"{"c":{"x":1}}"#));
    // What is elsewhere may name members.
    assert!(accepts(&grammar, r#"{"b":{"x":1}}"#));
}
