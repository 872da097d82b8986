//! Numbers of schemas: they end, integers are written as integers, listed ones as they are listed, and digits
//! are exact however many there are.

#[path = "common/bytes.rs"]
mod bytes;

use arbora_constrained::{
    CallFormat, Constraint, Enforcement, Grammar, Limits, ParallelCalls, SchemaOptions, Tool, ToolChoice,
    ToolSpec,
};
use bytes::{EOS, accepts, vocabulary};

fn compile(constraint: &Constraint<'_>) -> Grammar {
    let grammar = Grammar::compile(&vocabulary(), constraint, &Limits::default());
    grammar.unwrap_or_else(|error| panic!("{constraint:?}: {error}"))
}

fn schema(schema: &str) -> Grammar {
    let options = SchemaOptions::default();
    compile(&Constraint::JsonSchema { schema, options })
}

/// How many bytes of `more`, over and over, a grammar takes after `begin`.
fn run(grammar: &Grammar, begin: &str, more: &str) -> usize {
    let mut matcher = grammar.matcher();
    for byte in begin.bytes() {
        matcher
            .advance(u32::from(byte))
            .unwrap_or_else(|error| panic!("{begin}: {error}"));
    }
    let bytes = more.bytes().cycle().take(1_000);
    bytes
        .take_while(|byte| matcher.advance(u32::from(*byte)).is_ok())
        .count()
}

/// All outputs of a grammar that has few.
fn outputs(grammar: &Grammar) -> Vec<String> {
    let (mut open, mut done) = (vec![(grammar.matcher(), String::new())], Vec::new());
    while let Some((matcher, text)) = open.pop() {
        let mask = matcher.clone().mask();
        for token in (0..=EOS).filter(|token| mask.allows(*token)) {
            if token == EOS {
                done.push(text.clone());
                continue;
            }
            let mut next = matcher.clone();
            next.advance(token).expect("the mask allows it");
            open.push((next, format!("{text}{}", char::from(token as u8))));
        }
        assert!(
            open.len() + done.len() < 1_000,
            "more than a few outputs: {done:?}"
        );
    }
    done.sort();
    done
}

#[test]
fn digits_come_to_an_end_wherever_a_number_may_stand() {
    let tools = [Tool {
        name: "f",
        parameters: r#"{"type": "object", "properties": {"a": {"type": "number"}}}"#,
        enforcement: Enforcement::Relaxed,
    }];
    let options = SchemaOptions::default();
    let tools = Constraint::Tools(ToolSpec {
        tools: &tools,
        format: CallFormat::Llama3Json,
        choice: ToolChoice::Required,
        parallel: ParallelCalls::AtMostOne,
        options,
    });
    let tag =
        r#"{"type": "structural_tag", "format": {"type": "json_schema", "json_schema": {"type": "array"}}}"#;
    let tag = Constraint::StructuralTag { text: tag, options };
    let grammars = [
        (schema("{}"), ""),
        (schema(r#"{"type": "number"}"#), ""),
        (schema(r#"{"type": "integer"}"#), ""),
        (schema(r#"{"type": "number", "minimum": 0}"#), ""),
        (schema(r#"{"type": "number", "minimum": 0, "maximum": 1}"#), ""),
        (schema(r#"{"type": "number", "exclusiveMaximum": 1e300}"#), ""),
        (schema(r#"{"type": "number", "multipleOf": 0.01}"#), ""),
        (schema(r#"{"type": "integer", "multipleOf": 3}"#), ""),
        (schema(r#"{"not": {"const": 7}}"#), ""),
        (schema(r#"{"not": {"multipleOf": 0.5}, "type": "number"}"#), ""),
        (schema(r#"{"type": "object"}"#), r#"{"x":["#),
        (compile(&tools), r#"{"name": "f", "parameters": {"a":"#),
        (compile(&tag), "["),
    ];
    for (grammar, begin) in &grammars {
        let mut n_runs = 0;
        for (number, digits) in [
            ("", "1"),
            ("", "0"),
            ("1.", "0"),
            ("0.", "3"),
            ("-", "9"),
            ("1e", "0"),
            ("1E-", "9"),
        ] {
            let begin = format!("{begin}{number}");
            let is_number = begin.bytes().scan(grammar.matcher(), |matcher, byte| {
                Some(matcher.advance(u32::from(byte)).is_ok())
            });
            if is_number.into_iter().all(|is_taken| is_taken) {
                let n = run(grammar, &begin, digits);
                assert!(n <= 22, "{n} times {digits} after {begin}");
                n_runs += 1;
            }
        }
        assert!(n_runs > 0, "{begin:?} begins nothing");
    }
}

#[test]
fn listed_numbers_are_written_as_the_schema_has_them_and_integers_as_integers() {
    for (text, expected) in [
        (r#"{"enum": [1, 2, 3]}"#, &["1", "2", "3"][..]),
        (r#"{"const": 5}"#, &["5"]),
        (r#"{"const": 1.0, "type": "integer"}"#, &["1"]),
        (r#"{"const": 1e2}"#, &["100"]),
        (r#"{"enum": [-0, 0.0, -0.0e7]}"#, &["0"]),
        (
            r#"{"enum": [1.5, 2.50, 25e-2, -1e-7]}"#,
            &["-1e-7", "1.5", "2.50", "25e-2"],
        ),
        (r#"{"type": "integer", "enum": [1.5, 2, 3.0]}"#, &["2", "3"]),
        (r#"{"type": "number", "enum": [1, 2], "minimum": 1.5}"#, &["2"]),
        (r#"{"anyOf": [{"const": 1}, {"const": 2}]}"#, &["1", "2"]),
        (r#"{"enum": [1, 2, 3, 4.0], "multipleOf": 2}"#, &["2", "4"]),
        (
            r#"{"enum": [0.5, 0.75, 1], "not": {"multipleOf": 0.5}}"#,
            &["0.75"],
        ),
        (r#"{"const": [1.0, {"a": 2.50}]}"#, &[r#"[1,{"a":2.50}]"#]),
        (
            r#"{"enum": [[1.0], [2]], "items": {"type": "integer"}}"#,
            &["[1]", "[2]"],
        ),
        (
            r#"{"type": "integer", "minimum": -1, "maximum": 1}"#,
            &["-1", "0", "1"],
        ),
        (
            r#"{"type": "integer", "multipleOf": 1.0, "minimum": 0, "maximum": 2}"#,
            &["0", "1", "2"],
        ),
        (r#"{"const": 1e-500}"#, &["1e-500"]),
    ] {
        let options = SchemaOptions {
            whitespace: arbora_constrained::Whitespace::None,
            ..SchemaOptions::default()
        };
        let grammar = compile(&Constraint::JsonSchema {
            schema: text,
            options,
        });
        assert_eq!(outputs(&grammar), expected, "{text}");
    }
}

#[test]
fn no_digit_of_a_schema_is_lost() {
    let cases = [
        (
            r#"{"const": 12345678901234567890123}"#,
            "12345678901234567890123",
            "12345678901234567890124",
        ),
        (
            r#"{"enum": [18446744073709551617]}"#,
            "18446744073709551617",
            "18446744073709551616",
        ),
        (
            r#"{"const": -9223372036854775809}"#,
            "-9223372036854775809",
            "-9223372036854775808",
        ),
        (
            r#"{"const": 0.12345678901234567890123}"#,
            "0.12345678901234567890123",
            "0.1234567890123456789012",
        ),
        (
            r#"{"type": "integer", "minimum": 18446744073709551617, "maximum": 18446744073709551618}"#,
            "18446744073709551618",
            "18446744073709551616",
        ),
        (
            r#"{"type": "integer", "exclusiveMinimum": -18446744073709551620, "maximum": -18446744073709551618}"#,
            "-18446744073709551619",
            "-18446744073709551620",
        ),
        (
            r#"{"type": "number", "minimum": 0.1000000000000000000000000000001}"#,
            "0.1000000000000000000000000000001",
            "0.1000000000000000000000000000000",
        ),
        (
            r#"{"type": "integer", "multipleOf": 123456789012345678901234567890}"#,
            "370370367037037036703703703670",
            "370370367037037036703703703671",
        ),
        (
            r#"{"not": {"const": 123456789012345678901}, "type": "integer"}"#,
            "123456789012345678902",
            "123456789012345678901",
        ),
    ];
    for (text, accepted, refused) in cases {
        let grammar = schema(text);
        assert!(accepts(&grammar, accepted), "{accepted} of {text}");
        assert!(!accepts(&grammar, refused), "{refused} of {text}");
    }
}

#[test]
fn numbers_too_long_to_write_are_refused_where_they_stand_and_only_where_they_matter() {
    for (schema, place) in [
        (
            r#"{"properties": {"a": {"const": 1e400}}}"#,
            "#/properties/a: `const`",
        ),
        (r#"{"enum": [1, [2, -1e999]]}"#, "#: `enum`"),
        (r#"{"type": "number", "minimum": 1e400}"#, "#: `minimum`"),
        (r#"{"type": "number", "multipleOf": 1e40}"#, "#: `multipleOf`"),
    ] {
        let options = SchemaOptions::default();
        let error = Grammar::compile_json_schema(&vocabulary(), schema, &options, &Limits::default());
        let error = error.expect_err(schema).to_string();
        assert!(error.starts_with(place), "{error}");
    }
    for text in [
        r#"{"type": "number", "default": 1e999, "maximum": 1e400, "minimum": -1e99999999999999999999}"#,
        r#"{"not": {"const": 1e999}}"#,
    ] {
        assert!(accepts(&schema(text), "1"), "{text}");
    }
}
