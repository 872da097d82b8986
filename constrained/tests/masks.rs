//! Masks against the stupid way: every token's bytes, one by one, on a fork of the matcher.

mod common;

use std::sync::Arc;

use arbora_constrained::{Grammar, Limits, MatchError, SchemaOptions, Vocabulary, Whitespace};
use common::{EOS, byte_token, check, vocabulary};

const SCHEMAS: [&str; 36] = [
    r#"{"type":"array","items":{"enum":["a","ab",1,1.0,null]},"uniqueItems":true,"minItems":2}"#,
    "{}",
    r#"{"type":"object","properties":{"name":{"type":"string"},"a":{"type":"integer"}},"required":["a"],"additionalProperties":false}"#,
    r#"{"type":"object","properties":{"ab":{"const":1},"abc":{"type":"boolean"}},"minProperties":2}"#,
    r#"{"type":"object","properties":{"a":true,"b":true,"c":true},"required":["c"],"maxProperties":2,"minProperties":2}"#,
    r#"{"type":"string","minLength":2,"maxLength":5}"#,
    r#"{"type":"string","maxLength":70}"#,
    r#"{"type":"string","minLength":60}"#,
    r#"{"type":"string","pattern":"^[a-c]+é?$","minLength":3,"maxLength":4}"#,
    r#"{"type":"string","format":"date"}"#,
    r#"{"type":"number","minimum":-1.5,"exclusiveMaximum":12}"#,
    r#"{"enum":["a","ab","é\n",12,null,[1,{"x":[]}]]}"#,
    r#"{"type":"array","prefixItems":[{"type":"null"},{"type":"integer"}],"items":{"type":"string"},"minItems":1,"maxItems":4}"#,
    r##"{"$defs":{"t":{"type":"array","items":{"$ref":"#/$defs/t"},"maxItems":2}},"$ref":"#/$defs/t"}"##,
    r#"{"anyOf":[{"type":"string"},{"type":"string","maxLength":3},{"type":"integer","multipleOf":3}]}"#,
    r#"{"type":"array","items":{"enum":[1,2,"a"]},"contains":{"const":1},"minContains":2,"maxContains":3,"maxItems":4}"#,
    r#"{"type":"array","prefixItems":[{"const":1}],"contains":{"type":"string"},"not":{"contains":{"const":"a"}},"minItems":3}"#,
    r#"{"type":"object","properties":{"a":{"type":"integer"}},"not":{"additionalProperties":{"type":"integer"}},"maxProperties":3}"#,
    r#"{"type":"object","patternProperties":{"^a":{"const":1},"b$":{"enum":[1,2]}},"additionalProperties":false}"#,
    r#"{"type":"object","propertyNames":{"enum":["a","ab","abc"]},"additionalProperties":{"type":"null"},"minProperties":1}"#,
    r#"{"oneOf":[{"type":"integer","multipleOf":2},{"type":"integer","minimum":10},{"type":"string","maxLength":2}]}"#,
    r#"{"type":"object","properties":{"a":{"enum":[1,2]}},"if":{"properties":{"a":{"const":1}}},"then":{"required":["b"]},"else":{"maxProperties":1}}"#,
    r#"{"type":"object","anyOf":[{"properties":{"a":{"const":1}},"required":["a"]},{"properties":{"ab":{"const":2}}}],"unevaluatedProperties":false}"#,
    r#"{"type":"array","items":{"type":"string","maxLength":2},"uniqueItems":true}"#,
    r#"{"type":"array","items":{"pattern":"^(a|b|ab[0-9]*)$","type":"string"},"uniqueItems":true,"minItems":2}"#,
    r#"{"type":"array","items":{"type":"integer","minimum":-1,"maximum":40},"uniqueItems":true,"minItems":20}"#,
    r#"{"type":"array","items":{"type":"number"},"uniqueItems":true,"minItems":2}"#,
    r#"{"type":"array","items":{},"uniqueItems":true,"minItems":2}"#,
    r#"{"type":"array","items":{"type":"object","properties":{"a":{"type":"string"},"ab":{"type":"boolean"}},"required":["ab"],"additionalProperties":false},"uniqueItems":true,"minItems":3}"#,
    r#"{"type":"array","items":{"type":"object","properties":{"a":{"enum":[1,12]},"ab":{"type":"boolean"}},"additionalProperties":false},"uniqueItems":true,"minItems":4}"#,
    r#"{"type":"array","items":{"type":"array","items":{"enum":["a","ab","abc"]},"uniqueItems":true},"uniqueItems":true,"minItems":1}"#,
    r#"{"type":"array","prefixItems":[{"enum":["a","ab"]},{"type":["string","null"]}],"items":{"type":"string","maxLength":1},"uniqueItems":true,"minItems":2}"#,
    r#"{"type":"array","items":{"anyOf":[{"enum":["a","ab","abc"]},{"type":"integer","minimum":0,"maximum":1}]},"uniqueItems":true,"minItems":5}"#,
    r#"{"type":"array","items":{"type":"string"},"contains":{"const":"ab"},"uniqueItems":true}"#,
    r#"{"type":"object","additionalProperties":{"type":"integer"},"minProperties":3}"#,
    r#"{"type":"object","patternProperties":{"^(a|ab|abc)$":{"enum":[1]}},"additionalProperties":false,"minProperties":2}"#,
];

#[test]
fn masks_are_exact_for_schemas() {
    let vocabulary = vocabulary();
    for schema in SCHEMAS {
        for whitespace in [Whitespace::Any, Whitespace::None] {
            let options = SchemaOptions {
                whitespace,
                ..SchemaOptions::default()
            };
            let grammar = Grammar::compile_json_schema(&vocabulary, schema, &options, &Limits::default());
            check(&grammar.expect(schema), schema);
        }
    }
}

#[test]
fn masks_are_exact_for_expressions_and_choices() {
    let vocabulary = vocabulary();
    let limits = Limits::default();
    for regex in [
        "[a-c]{2,4}é?",
        "(?:ab|abc)*0",
        "-?[0-9]+(?:\\.[0-9]+)?",
        "(a|b)*a(a|b){16}",
        "[ab]{0,5000}",
    ] {
        check(
            &Grammar::compile_regex(&vocabulary, regex, &limits).expect(regex),
            regex,
        );
    }
    let choice = Grammar::compile_choice(&vocabulary, &["abc", "ab", "null", "é"], &limits);
    check(&choice.expect("four choices"), "choice");
}

#[test]
fn full_tables_are_replaced_and_nothing_changes() {
    let vocabulary = vocabulary();
    let limits = Limits {
        max_lazy_states: 8,
        ..Limits::default()
    };
    for schema in &SCHEMAS[..4] {
        let grammar = Grammar::compile_json_schema(&vocabulary, schema, &SchemaOptions::default(), &limits);
        check(&grammar.expect(schema), schema);
    }
}

#[test]
fn as_many_containers_are_open_at_once_as_the_limit_says_and_no_more() {
    let vocabulary = vocabulary();
    let compile = |schema| {
        let options = SchemaOptions::default();
        Grammar::compile_json_schema(&vocabulary, schema, &options, &Limits::default()).expect(schema)
    };
    let list = r##"{"type":"array","items":{"$ref":"#"}}"##;
    let tree = r##"{"type":"object","properties":{"a":{"$ref":"#"}},"additionalProperties":false}"##;
    // What opens 256 containers, what would open one more, and what closes them.
    let closed = |text: &str, close: &str| format!("{text}{}", close.repeat(256));
    let nested = "{\"a\":".repeat(255);
    for (schema, open, deeper, rest) in [
        ("{}", "[".repeat(256), "[", closed("", "]")),
        (list, "[".repeat(256), "[", closed("", "]")),
        (tree, format!("{nested}{{"), "\"", closed("", "}")),
        ("{}", "{\"\":".repeat(256), "{", closed("1", "}")),
    ] {
        let mut matcher = compile(schema).matcher();
        let mut take = |text: &str| text.bytes().all(|byte| matcher.advance(byte_token(byte)).is_ok());
        assert!(take(&open) && !take(deeper) && take(&rest), "{schema}");
        assert!(matcher.is_accepting(), "{schema}");
    }
}

#[test]
fn a_refused_token_changes_nothing_and_special_tokens_are_never_allowed() {
    let vocabulary = vocabulary();
    let grammar = Grammar::compile_choice(&vocabulary, &["ab"], &Limits::default()).expect("one choice");
    let mut matcher = grammar.matcher();
    let last = vocabulary.n_vocab() - 1;
    for token in [EOS, last, byte_token(b'b'), u32::MAX] {
        assert_eq!(matcher.advance(token), Err(MatchError::Refused { token }));
    }
    assert_eq!(
        matcher.rollback(1),
        Err(MatchError::Rollback { n: 1, n_taken: 0 })
    );
    assert!(!matcher.mask().allows(last));
    matcher.advance(byte_token(b'a')).expect("it begins with a");
}

#[test]
fn distinct_items_never_repeat() {
    let schema = r#"{"type":"array","items":{"enum":["a","b",1,1.0]},"uniqueItems":true,"minItems":2}"#;
    let options = SchemaOptions::default();
    let grammar = Grammar::compile_json_schema(&vocabulary(), schema, &options, &Limits::default());
    let grammar = grammar.expect("three values");
    let accepts = |text: &str| {
        let mut matcher = grammar.matcher();
        text.bytes().all(|byte| matcher.advance(byte_token(byte)).is_ok()) && matcher.is_accepting()
    };
    assert!(accepts("[\"b\", \"a\"]") && accepts("[\"a\", 1, \"b\"]"));
    for text in [
        "[\"a\"]",
        "[\"a\", \"a\"]",
        "[1, 1.0]",
        "[\"a\", 1, \"a\"]",
        "[\"a\", 1, \"b\", 1]",
    ] {
        assert!(!accepts(text), "{text}");
    }
}

#[test]
fn forced_text_is_proposed_up_to_where_tokens_may_differ() {
    let vocabulary = vocabulary();
    let schema = r#"{"type":"object","properties":{"name":{"enum":["abc"]}},"required":["name"],"additionalProperties":false}"#;
    let options = SchemaOptions {
        whitespace: Whitespace::None,
        ..SchemaOptions::default()
    };
    let grammar = Grammar::compile_json_schema(&vocabulary, schema, &options, &Limits::default());
    let mut matcher = grammar.expect("valid").matcher();
    assert_eq!(matcher.forced_bytes(), br#"{"name":"abc"}"#);
    let by_bytes = |text: &[u8]| text.iter().map(|byte| byte_token(*byte)).collect::<Vec<_>>();
    let draft = matcher.forced(&[], by_bytes);
    assert_eq!(draft, by_bytes(br#"{"name":"abc"}"#));
    draft
        .iter()
        .for_each(|token| matcher.advance(*token).expect("a draft is allowed"));
    assert!(matcher.is_accepting() && matcher.forced_bytes().is_empty());

    // After the opening quote several tokens may begin with the last forced bytes.
    let schema = r#"{"type":"object","properties":{"x":{"type":"string"}},"required":["x"]}"#;
    let grammar = Grammar::compile_json_schema(&vocabulary, schema, &options, &Limits::default());
    let draft = grammar.expect("valid").matcher().forced(&[], by_bytes);
    assert_eq!(draft, by_bytes(b"{\"x\":"));
}

#[test]
fn what_cannot_be_spelled_or_satisfied_is_refused_when_compiling() {
    let tokens = (b'a'..=b'z').map(|byte| Some(vec![byte])).chain([None]);
    let vocabulary = Arc::new(Vocabulary::new(tokens, &[26]).expect("27 tokens"));
    let error = Grammar::compile_choice(&vocabulary, &["a1"], &Limits::default()).expect_err("there is no 1");
    assert!(error.to_string().contains("no output"), "{error}");
    let refused = [
        (
            r#"{"properties":{"a":{"items":{"type":"integer","minimum":1,"maximum":40},"uniqueItems":true,"minItems":41}}}"#,
            "#/properties/a: `uniqueItems`",
        ),
        (
            r#"{"properties":{"a/b":{"not":{"uniqueItems":true}}}}"#,
            "#/properties/a~1b/not: `uniqueItems`",
        ),
        (
            r#"{"oneOf":[{"type":"string"},{"format":"email"}]}"#,
            "#/oneOf/1: `format`",
        ),
        (r##"{"$ref":"#"}"##, "$ref"),
        (
            r##"{"properties":{"a":{"$ref":"#"}},"required":["a"],"type":"object"}"##,
            "no output",
        ),
        (r#"{"required":"a"}"#, "`required` is malformed"),
        (r#"{"type":"integer","minimum":3,"maximum":2}"#, "no output"),
    ];
    for (schema, word) in refused {
        let vocabulary = common::vocabulary();
        let grammar =
            Grammar::compile_json_schema(&vocabulary, schema, &SchemaOptions::default(), &Limits::default());
        let error = grammar.map(|_| ()).expect_err(schema).to_string();
        assert!(error.contains(word), "{schema}: {error}");
    }
}

#[test]
fn each_dialect_is_read_by_its_own_rules() {
    let vocabulary = vocabulary();
    let accepts = |schema: &str, text: &str| {
        let grammar =
            Grammar::compile_json_schema(&vocabulary, schema, &SchemaOptions::default(), &Limits::default());
        let mut matcher = grammar.map_err(|error| error.to_string())?.matcher();
        let is_taken = text.bytes().all(|byte| matcher.advance(byte_token(byte)).is_ok());
        Ok::<bool, String>(is_taken && matcher.is_accepting())
    };
    let of =
        |draft: &str, rest: &str| format!(r#"{{"$schema":"http://json-schema.org/{draft}/schema",{rest}}}"#);
    let bound = r#""type":"integer","minimum":3,"exclusiveMinimum":true"#;
    assert_eq!(accepts(&of("draft-04", bound), "3"), Ok(false));
    assert_eq!(accepts(&of("draft-04", bound), "4"), Ok(true));
    let hidden = r##""$ref":"#/definitions/a","type":"null","definitions":{"a":{"type":"boolean"}}"##;
    assert_eq!(accepts(&of("draft-07", hidden), "true"), Ok(true));
    assert!(accepts(&of("draft/2020-12", hidden), "true").is_err());
    // `contains` evaluates items since 2020-12.
    let contained = r#""contains":{"const":1},"unevaluatedItems":false"#;
    assert_eq!(accepts(&of("draft/2020-12", contained), "[1]"), Ok(true));
    assert_ne!(accepts(&of("draft/2019-09", contained), "[1]"), Ok(true));
    // What a dialect does not know may be enforced, but not negated.
    let foreign = r#""not":{"dependentRequired":{"a":["b"]}}"#;
    assert_eq!(accepts(&of("draft/2019-09", foreign), r#"{"a":1}"#), Ok(true));
    let error = accepts(&of("draft-07", foreign), r#"{"a":1}"#).expect_err("it means nothing there");
    assert!(error.contains("dependentRequired"), "{error}");
    // A resource of its own may have a dialect of its own; anywhere else its name says nothing.
    let inner = |names: &str| {
        let part = r##""allOf":[{"$ref":"https://example.com/b","type":"null"}]"##;
        let boolean = r#"{"$id":"https://example.com/b","type":"boolean"}"#;
        let old = r#""$schema":"http://json-schema.org/draft-07/schema#""#;
        format!(r##""$ref":"#/$defs/a","$defs":{{"a":{{{names}{old},{part}}},"b":{boolean}}}"##)
    };
    let resource = inner(r#""$id":"https://example.com/a","#);
    assert_eq!(accepts(&of("draft/2020-12", &resource), "true"), Ok(true));
    assert!(accepts(&of("draft/2020-12", &inner("")), "true").is_err());
}

#[test]
fn the_keywords_of_draft_3_mean_something_in_draft_3() {
    let accepts = |draft: &str, text: &str| {
        let schema = format!(
            r#"{{"$schema":"http://json-schema.org/{draft}/schema#","type":["object","any"],"disallow":"null",
            "extends":{{"properties":{{"b":{{"type":"any","divisibleBy":3}}}}}},
            "properties":{{"a":{{"type":"integer","required":true}},"c":{{"type":"string"}}}}}}"#
        );
        let options = SchemaOptions::default();
        let grammar =
            Grammar::compile_json_schema(&vocabulary(), &schema, &options, &Limits::default()).ok()?;
        let mut matcher = grammar.matcher();
        let is_taken = text.bytes().all(|byte| matcher.advance(byte_token(byte)).is_ok());
        Some(is_taken && matcher.is_accepting())
    };
    for text in [r#"{"a":1,"b":6}"#, r#"{"a":1,"c":"x","b":"y"}"#, "[]", "4"] {
        assert_eq!(accepts("draft-03", text), Some(true), "{text}");
    }
    for text in [r#"{"b":6}"#, r#"{"a":1,"b":7}"#, "null"] {
        assert_eq!(accepts("draft-03", text), Some(false), "{text}");
    }
    // `any` is no type of any other draft.
    assert_eq!(accepts("draft-04", "4"), None);
}

#[test]
fn an_unknown_dialect_is_read_as_all_drafts_agree() {
    let compile = |rest: &str| {
        let schema = format!(r#"{{"$schema":"https://example.com/dialect",{rest}}}"#);
        let options = SchemaOptions::default();
        Grammar::compile_json_schema(&vocabulary(), &schema, &options, &Limits::default()).map(|_| ())
    };
    assert_eq!(
        compile(r#""type":"object","properties":{"a":{"const":1}},"required":["a"]"#),
        Ok(())
    );
    let error = compile(r#""not":{"const":1}"#).expect_err("it may be an annotation there");
    assert!(error.to_string().contains("const"), "{error}");
}
