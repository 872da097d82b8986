//! Schemas of which a part cannot be enforced: what the grammar allows is a superset, and it says which part.

#[path = "common/bytes.rs"]
mod bytes;

use arbora_constrained::{
    CallFormat, CompileError, Enforcement, Grammar, Limits, ParallelCalls, SchemaOptions, Tool, ToolChoice,
    ToolSpec,
};
use bytes::{accepts, vocabulary};

fn compile(schema: &str, enforcement: Enforcement) -> Result<Grammar, CompileError> {
    let options = SchemaOptions {
        enforcement,
        ..SchemaOptions::default()
    };
    Grammar::compile_json_schema(&vocabulary(), schema, &options, &Limits::default())
}

fn relaxed(schema: &str) -> Grammar {
    compile(schema, Enforcement::Relaxed).unwrap_or_else(|error| panic!("{schema}: {error}"))
}

/// What is left out, each as its pointer and keyword.
fn parts(grammar: &Grammar) -> Vec<String> {
    let part = |part: &arbora_constrained::Relaxed| format!("{} {}", part.pointer, part.keyword);
    grammar.relaxed().iter().map(part).collect()
}

#[test]
fn the_keyword_that_cannot_be_enforced_is_left_out_and_named() {
    let cases = [
        (
            r#"{"properties": {"a": {"type": "string", "pattern": "^(a)\\1$"}}}"#,
            "#/properties/a pattern",
            &[r#"{"a":"x"}"#][..],
            &[r#"{"a":1}"#][..],
        ),
        (
            r#"{"items": {"$ref": "https://example.com/other"}, "type": "array", "minItems": 1}"#,
            "#/items $ref",
            &["[1]"],
            &["[]"],
        ),
        (
            r#"{"$schema": "https://example.com/dialect", "type": "integer"}"#,
            "# $schema",
            &["1"],
            &["null"],
        ),
        (
            r#"{"type": 5, "maxLength": 1}"#,
            "# type",
            &["1", r#""a""#],
            &[r#""ab""#],
        ),
    ];
    for (schema, part, accepted, refused) in cases {
        assert!(compile(schema, Enforcement::Whole).is_err(), "{schema}");
        let grammar = relaxed(schema);
        assert_eq!(parts(&grammar), [part], "{schema}");
        for text in accepted {
            assert!(accepts(&grammar, text), "{text} of {schema}");
        }
        for text in refused {
            assert!(!accepts(&grammar, text), "{text} of {schema}");
        }
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
