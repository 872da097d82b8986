//! The bench's schemas: what compiles accepts its valid instances as they are written there, and none of its
//! invalid ones; what is refused is listed.

#[path = "common/bytes.rs"]
mod bytes;

use std::path::Path;

use arbora_constrained::{Grammar, Limits, SchemaOptions};
use bytes::{accepts, vocabulary};

/// The texts of a JSON list's items, or of an object's names and values.
fn parts(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut begin) = (Vec::new(), 0, 1);
    let (mut in_string, mut is_escaped) = (false, false);
    for (at, byte) in text.bytes().enumerate() {
        if in_string {
            in_string = byte != b'"' || is_escaped;
            is_escaped = byte == b'\\' && !is_escaped;
            continue;
        }
        in_string = byte == b'"';
        depth += usize::from(b"[{".contains(&byte));
        depth -= usize::from(b"]}".contains(&byte));
        let is_end = depth == 0 && at + 1 == text.len();
        if is_end || depth == 1 && b",:".contains(&byte) {
            let part = text[begin..at].trim();
            parts.extend(Some(part).filter(|part| !part.is_empty()));
            begin = at + 1;
        }
    }
    parts
}

/// Arrays of distinct items of endlessly many values.
const REFUSED: [&str; 0] = [];

#[test]
fn the_schemas_of_the_bench_are_judged_right() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench/constrained/schemas.jsonl");
    let text = std::fs::read_to_string(path).expect("the bench has schemas");
    let vocabulary = vocabulary();
    let (mut n_cases, mut wrong, mut refused) = (0, Vec::new(), Vec::new());
    for line in text.lines() {
        let [_, id, _, schema, _, valid, _, invalid] = parts(line)[..] else {
            panic!("four members: {line}");
        };
        n_cases += 1;
        let options = SchemaOptions::default();
        match Grammar::compile_json_schema(&vocabulary, schema, &options, &Limits::default()) {
            Err(error) => {
                assert!(error.to_string().contains("`uniqueItems`"), "{id}: {error}");
                refused.push(id.trim_matches('"'));
            }
            Ok(grammar) => {
                for (texts, is_valid) in [(valid, true), (invalid, false)] {
                    for text in parts(texts) {
                        if accepts(&grammar, text) != is_valid {
                            wrong.push(format!("{id}: valid {is_valid}, judged otherwise: {text}"));
                        }
                    }
                }
            }
        }
    }
    assert_eq!(n_cases, 320);
    assert_eq!(refused, REFUSED);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn grammar(schema: &str) -> Grammar {
    let options = SchemaOptions::default();
    Grammar::compile_json_schema(&vocabulary(), schema, &options, &Limits::default()).expect("valid")
}

#[test]
fn whitespace_between_tokens_of_json_is_a_space_or_two_and_a_line_with_its_indentation() {
    let grammar = grammar(
        r#"{"type": "object", "properties": {"a": {"items": {"type": "integer"}, "type": "array"}}}"#,
    );
    let most = Limits::default().max_indent;
    let run = |run: &str| format!("{{{run}\"a\"{run}:{run}[{run}1{run},{run}2{run}]{run}}}");
    for space in [
        "",
        " ",
        "  ",
        "\n",
        " \n",
        "\n\t\t",
        "\n \t ",
        &format!("\n{}", " ".repeat(most)),
    ] {
        assert!(accepts(&grammar, &run(space)), "{space:?}");
    }
    // Longer runs, or a second line, are where a model could go on for ever.
    for space in [
        "   ",
        "\n\n",
        "\n \n",
        "\t",
        "\r\n",
        &format!("\n{}", " ".repeat(most + 1)),
    ] {
        for text in [
            format!("{{{space}\"a\":[]}}"),
            format!("{{\"a\":{space}[]}}"),
            format!("{{\"a\":[1{space}]}}"),
        ] {
            assert!(!accepts(&grammar, &text), "{text:?}");
        }
    }
    // Nor does whitespace follow the text, where nothing else would have to come after it.
    assert!(!accepts(&grammar, "{\"a\":[]}\n") && !accepts(&grammar, "{\"a\":[]} "));
}

#[test]
fn pretty_printed_json_is_accepted() {
    fn pretty(depth: usize, unit: &str, line: &str) -> String {
        let indent = unit.repeat(depth);
        let inner = if depth == 12 {
            "1".to_owned()
        } else {
            pretty(depth + 1, unit, line)
        };
        format!(
            "{{{line}{indent}\"a\": [{line}{indent}{inner},{line}{indent}null{line}{indent}]{line}{indent}}}"
        )
    }
    let grammar = grammar("{}");
    for unit in ["", " ", "  ", "    ", "        ", "\t"] {
        for line in ["\n", " \n"] {
            let text = pretty(1, unit, line);
            assert!(accepts(&grammar, &text), "{text}");
        }
    }
    assert!(accepts(&grammar, r#"{ "a" : 1 , "b" : [ 1 , 2 ] }"#));
}

#[test]
fn properties_come_in_the_order_in_which_the_schema_has_them() {
    let grammar = grammar(
        r#"{"type": "object", "properties": {"z": {"type": "integer"}, "a": {"type": "integer"},
            "m": {"type": "integer"}}, "required": ["a", "z"], "additionalProperties": false}"#,
    );
    for text in [r#"{"z":1,"a":2}"#, r#"{"z":1,"a":2,"m":3}"#] {
        assert!(accepts(&grammar, text), "{text}");
    }
    for text in [r#"{"a":2,"z":1}"#, r#"{"z":1,"m":3,"a":2}"#, r#"{"z":1}"#] {
        assert!(!accepts(&grammar, text), "{text}");
    }
}

#[test]
fn values_whose_punctuation_no_token_spells_are_refused() {
    let spelled = |extra: &[u8]| {
        let letters = (b'a'..=b'z').chain(extra.iter().copied());
        let tokens: Vec<_> = letters.map(|byte| Some(vec![byte])).chain([None]).collect();
        let eos = tokens.len() as u32 - 1;
        std::sync::Arc::new(arbora_constrained::Vocabulary::new(tokens, &[eos]).expect("letters"))
    };
    let compiles = |extra: &[u8], schema: &str| {
        let options = SchemaOptions::default();
        let grammar = Grammar::compile_json_schema(&spelled(extra), schema, &options, &Limits::default());
        grammar.map(|grammar| grammar.matcher().mask())
    };
    let object = r#"{"type": "object"}"#;
    let either = r#"{"type": ["object", "array", "null"]}"#;
    for extra in [&b""[..], b"{}", b"{}:", b"{},\"", b"[],"] {
        let error = compiles(extra, object).expect_err("no objects").to_string();
        assert!(error.contains("no token spells"), "{error}");
        compiles(extra, either).expect("null, at least");
    }
    compiles(b"{}:,\"", object).expect("objects");
}

#[test]
fn a_largest_count_that_no_output_reaches_is_none() {
    for (keyword, text) in [
        ("maxLength", "\"a\""),
        ("maxItems", "[1]"),
        ("maxProperties", "{\"a\":1}"),
    ] {
        for count in ["9007199254740991", "1e30", "1073741824"] {
            let grammar = grammar(&format!(r#"{{"{keyword}": {count}, "not": {{"{keyword}": 0}}}}"#));
            assert!(accepts(&grammar, text), "{keyword} {count}");
        }
        for count in ["-1", "0.5", "\"7\""] {
            let schema = format!(r#"{{"{keyword}": {count}}}"#);
            let options = SchemaOptions::default();
            let error = Grammar::compile_json_schema(&vocabulary(), &schema, &options, &Limits::default());
            assert!(error.is_err(), "{schema}");
        }
    }
}

#[test]
fn distinct_containers_may_be_spaced_where_they_begin_like_earlier_ones() {
    let schema = r#"{"type": "array", "uniqueItems": true, "items": {"anyOf": [
        {"type": "array", "uniqueItems": true, "items": {"enum": [0, 1, 2]}},
        {"type": "object", "properties": {"a": {"enum": [0, 1]}, "b": {"enum": [0, 1]}}, "additionalProperties": false}]}}"#;
    let grammar = grammar(schema);
    for text in [
        "[[0, 1], [0, 2]]",
        "[\n  [0, 1],\n  [0,\n    2\n  ]\n]",
        r#"[{"a": 0, "b": 0}, {"a": 0, "b": 1}, {"a": 1, "b": 0}, {"a": 1}]"#,
    ] {
        assert!(accepts(&grammar, text), "{text}");
    }
    for text in ["[[0, 1], [0, 1]]", "[[0, 1], [0,1]]", r#"[{"a": 0}, {"a" : 0}]"#] {
        assert!(!accepts(&grammar, text), "{text}");
    }
}
