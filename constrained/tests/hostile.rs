//! Schemas made to cost: each compiles within the default limits or is refused with the name of one.

use std::fmt::Write;
use std::sync::Arc;

use arbora_constrained::{Grammar, Limits, SchemaOptions, Vocabulary};

/// `n` texts with a comma between them.
fn list(n: usize, text: impl Fn(usize) -> String) -> String {
    (0..n).map(text).collect::<Vec<_>>().join(",")
}

/// An object that lacks one of eight members at least, so many times over.
fn conditions(n: usize, more: &str) -> String {
    let names = |i: usize| list(8, |j| format!(r#""a{i}b{j}""#));
    let required = list(n, |i| format!(r#"{{"required":[{}]}}"#, names(i)));
    format!(r#"{{{more},"not":{{"anyOf":[{required}]}}}}"#)
}

fn nested(n: usize, open: &str, inner: &str, close: &str) -> String {
    format!("{}{inner}{}", open.repeat(n), close.repeat(n))
}

/// Name, schema, and what comes of it: a limit's name, `compiles`, or a part of another error.
fn cases() -> Vec<(&'static str, String, &'static str)> {
    let any_of = |i: usize| format!(r#"{{"anyOf":[{{"required":["a{i}"]}},{{"required":["b{i}"]}}]}}"#);
    let overlapping = |i: usize| {
        let shared = format!(r#""p{}":{{"minimum":{i}}},"q{i}":{{}}"#, i % 7);
        format!(r#"{{"type":"object","properties":{{{shared}}},"required":["q{i}"]}}"#)
    };
    let conditional = |i: usize| {
        let condition = format!(r#"{{"properties":{{"k{i}":{{"const":{i}}}}},"required":["k{i}"]}}"#);
        format!(r#"{{"if":{condition},"then":{{"required":["t{i}"]}},"else":{{"required":["e{i}"]}}}}"#)
    };
    // The sets of schemas that hold at once are the states of a determinised automaton with 2^24 of them.
    let subsets = |n: usize| {
        let next = |i: usize| format!(r##"{{"$ref":"#/$defs/s{i}"}}"##);
        let mut defs = format!(
            r#""s0":{{"properties":{{"a":{{"allOf":[{},{}]}},"b":{}}}}}"#,
            next(0),
            next(1),
            next(0)
        );
        for i in 1..n {
            let to = next(i + 1);
            write!(defs, r#","s{i}":{{"properties":{{"a":{to},"b":{to}}}}}"#).expect("a string");
        }
        write!(defs, r#","s{n}":{{"required":["end"]}}"#).expect("a string");
        format!(r#"{{"$ref":"{}","$defs":{{{defs}}}}}"#, "#/$defs/s0")
    };
    vec![
        (
            "deep items",
            nested(50_000, r#"{"items":"#, "{}", "}"),
            "max_source_depth",
        ),
        ("deep not", nested(90, r#"{"not":"#, "{}", "}"), "compiles"),
        (
            "deep constant",
            format!(r#"{{"const":{}}}"#, nested(90, "[", "1", "]")),
            "compiles",
        ),
        (
            "deep constant kept out",
            format!(r#"{{"not":{{"const":{}}}}}"#, nested(90, "[", "1", "]")),
            "compiles",
        ),
        (
            "long minimum length",
            r#"{"type":"string","minLength":1000000}"#.to_owned(),
            "compiles",
        ),
        (
            "long strings with a pattern",
            r#"{"type":"string","pattern":"^(ab|cde)*$","minLength":1000000,"maxLength":1000001}"#.to_owned(),
            "compiles",
        ),
        (
            "names up to a million characters",
            r#"{"propertyNames":{"maxLength":1000000}}"#.to_owned(),
            "max_automaton_states",
        ),
        (
            "many items",
            r#"{"type":"array","minItems":1000000}"#.to_owned(),
            "compiles",
        ),
        (
            "many counted items",
            r#"{"type":"array","contains":{"const":1},"minContains":1000000}"#.to_owned(),
            "max_nodes",
        ),
        (
            "five counts",
            format!(
                r#"{{"allOf":[{}]}}"#,
                list(5, |i| format!(r#"{{"contains":{{"const":{i}}}}}"#))
            ),
            "max_branches",
        ),
        (
            "many properties allowed",
            r#"{"type":"object","maxProperties":1000000}"#.to_owned(),
            "compiles",
        ),
        (
            "many properties needed",
            r#"{"minProperties":1000000}"#.to_owned(),
            "minProperties",
        ),
        (
            "a count beyond all",
            r#"{"minItems":1e300}"#.to_owned(),
            "minItems",
        ),
        (
            "a wide range",
            r#"{"type":"integer","minimum":-1e300,"maximum":1e300}"#.to_owned(),
            "compiles",
        ),
        (
            "divisors",
            r#"{"allOf":[{"multipleOf":99991},{"multipleOf":99989}]}"#.to_owned(),
            "compiles",
        ),
        (
            "no multiple",
            r#"{"not":{"multipleOf":99991},"type":"number"}"#.to_owned(),
            "max_automaton_states",
        ),
        (
            "choices of choices",
            format!(r#"{{"allOf":[{}]}}"#, list(20, any_of)),
            "max_branches",
        ),
        (
            "negated choices",
            format!(
                r#"{{"type":"object","not":{{"anyOf":[{}]}}}}"#,
                list(20, |i| format!(r#"{{"required":["a{i}","b{i}"]}}"#))
            ),
            "compiles",
        ),
        (
            "conditions on many members",
            conditions(12, r#""type":"object""#),
            "compiles",
        ),
        (
            "conditions on many members and their number",
            conditions(12, r#""type":"object","maxProperties":90"#),
            "max_branches",
        ),
        (
            "members that must be there without a name",
            format!(
                r#"{{"type":"object","allOf":[{}]}}"#,
                list(40, |i| format!(
                    r#"{{"not":{{"properties":{{"a{i}":true}},"additionalProperties":false}}}}"#
                ))
            ),
            "max_branches",
        ),
        (
            "overlapping branches",
            format!(r#"{{"oneOf":[{}]}}"#, list(40, overlapping)),
            "max_branches",
        ),
        (
            "disjoint branches",
            format!(
                r#"{{"oneOf":[{}]}}"#,
                list(200, |i| format!(
                    r#"{{"type":"object","properties":{{"k":{{"const":{i}}}}},"required":["k"]}}"#
                ))
            ),
            "compiles",
        ),
        (
            "conditions",
            format!(r#"{{"type":"object","allOf":[{}]}}"#, list(30, conditional)),
            "max_branches",
        ),
        (
            "dependent names",
            format!(
                r#"{{"dependentRequired":{{{}}}}}"#,
                list(100, |i| format!(r#""a{i}":["b{i}"]"#))
            ),
            "max_branches",
        ),
        (
            "what many branches leave over",
            format!(
                r#"{{"anyOf":[{}],"unevaluatedProperties":false}}"#,
                list(30, |i| format!(r#"{{"properties":{{"a{i}":{{}}}}}}"#))
            ),
            "max_branches",
        ),
        (
            "many strings",
            format!(r#"{{"enum":[{}]}}"#, list(50_000, |i| format!(r#""value {i}""#))),
            "compiles",
        ),
        (
            "many numbers",
            format!(r#"{{"enum":[{}]}}"#, list(50_000, |i| i.to_string())),
            "compiles",
        ),
        (
            "many lists to have in common",
            format!(
                r#"{{"allOf":[{{"enum":[{0}]}},{{"enum":[{0}]}}]}}"#,
                list(20_000, |i| format!(r#""value {i}""#))
            ),
            "max_compile_work",
        ),
        (
            "many values kept out",
            format!(r#"{{"not":{{"enum":[{}]}}}}"#, list(20_000, |i| i.to_string())),
            "max_compile_work",
        ),
        (
            "many objects under more keywords",
            format!(
                r#"{{"enum":[{}],"minProperties":1}}"#,
                list(20_000, |i| format!(r#"{{"a":{i}}}"#))
            ),
            "max_",
        ),
        (
            "a large constant kept out",
            format!(r#"{{"not":{{"const":[{}]}}}}"#, list(10_000, |i| i.to_string())),
            "max_branches",
        ),
        (
            "a circle of references",
            r##"{"allOf":[{"$ref":"#"}]}"##.to_owned(),
            "reaches itself",
        ),
        (
            "a contradiction",
            r##"{"not":{"$ref":"#"}}"##.to_owned(),
            "reaches itself",
        ),
        (
            "a long chain of references",
            format!(
                r##"{{"$ref":"#/$defs/r0","$defs":{{{},"r5000":{{}}}}}}"##,
                list(5_000, |i| format!(r##""r{i}":{{"$ref":"#/$defs/r{}"}}"##, i + 1))
            ),
            "max_source_depth",
        ),
        ("exponential sets", subsets(24), "max_"),
        (
            "many members",
            format!(
                r#"{{"properties":{{{}}}}}"#,
                list(20_000, |i| format!(r#""property {i}":{{}}"#))
            ),
            "max_compile_work",
        ),
        (
            "many required names",
            format!(
                r#"{{"type":"object","required":[{}],"additionalProperties":false}}"#,
                list(20_000, |i| format!(r#""property {i}""#))
            ),
            "no output",
        ),
        (
            "an exponential pattern",
            r#"{"pattern":"(a|b)*a(a|b){20}"}"#.to_owned(),
            "max_automaton_states",
        ),
        (
            "a pattern of repetitions",
            r#"{"pattern":"((a{1,100}){1,100}){1,100}"}"#.to_owned(),
            "pattern",
        ),
        (
            "many patterns",
            format!(
                r#"{{"anyOf":[{}]}}"#,
                list(200, |i| format!(r#"{{"pattern":"[a-f]{{{},40}}x{i}"}}"#, i % 9))
            ),
            "compiles",
        ),
        (
            "many patterns of names",
            format!(
                r#"{{"patternProperties":{{{}}}}}"#,
                list(30, |i| format!(
                    r#""{}.*{}":{{}}"#,
                    char::from(b'a' + i as u8 % 26),
                    i % 10
                ))
            ),
            "max_",
        ),
    ]
}

#[test]
fn hostile_schemas_compile_within_the_limits_or_are_refused_with_the_name_of_one() {
    let tokens = (0..=255u8).map(|byte| Some(vec![byte])).chain([None]);
    let vocabulary = Arc::new(Vocabulary::new(tokens, &[256]).expect("257 tokens"));
    let mut wrong = Vec::new();
    for (name, schema, expected) in cases() {
        let options = SchemaOptions::default();
        let limits = Limits {
            max_source_bytes: 4 << 20,
            ..Limits::default()
        };
        let grammar = Grammar::compile_json_schema(&vocabulary, &schema, &options, &limits);
        let found = match grammar {
            Err(error) => error.to_string(),
            Ok(grammar) => {
                grammar.matcher().mask();
                "compiles".to_owned()
            }
        };
        if !found.contains(expected) {
            wrong.push(format!("{name}: {expected} expected: {found:.200}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
