//! Lark as llguidance takes it: what it accepts, what is refused, and that masks are exact.
//!
//! `tests/lark/goldens.json` holds what llguidance accepts, written by `tests/lark/make.py`.

#[path = "common/bytes.rs"]
mod bytes;
mod walk;

use arbora_constrained::{Constraint, Grammar, Limits, SchemaOptions};
use serde_json::Value;
use walk::{accepts, accepts_tokens, byte_token, check_masks, check_token_masks, first_special, vocabulary};

fn lark(text: &str) -> Constraint<'_> {
    Constraint::Lark {
        text,
        options: SchemaOptions::default(),
    }
}

fn compile(text: &str) -> Grammar {
    let grammar = Grammar::compile(&vocabulary(), &lark(text), &Limits::default());
    grammar.unwrap_or_else(|error| panic!("{text}\n{error}"))
}

fn refused(text: &str) -> String {
    let grammar = Grammar::compile(&vocabulary(), &lark(text), &Limits::default());
    grammar.map(|_| ()).expect_err(text).to_string()
}

#[test]
fn what_llguidance_accepts_is_accepted_and_nothing_else() {
    let vocabulary = bytes::vocabulary();
    let goldens: Value = serde_json::from_str(include_str!("lark/goldens.json")).expect("it is JSON");
    for golden in goldens.as_array().expect("a list") {
        let text = golden["grammar"].as_str().expect("a string");
        let grammar = Grammar::compile(&vocabulary, &lark(text), &Limits::default());
        let grammar = grammar.unwrap_or_else(|error| panic!("{text}\n{error}"));
        for (output, is_accepted) in golden["texts"].as_object().expect("an object") {
            assert_eq!(
                bytes::accepts(&grammar, output),
                *is_accepted,
                "{text}\n{output:?}"
            );
        }
    }
}

#[test]
fn masks_of_all_that_goldens_hold_are_exact() {
    let goldens: Value = serde_json::from_str(include_str!("lark/goldens.json")).expect("it is JSON");
    for golden in goldens.as_array().expect("a list") {
        let text = golden["grammar"].as_str().expect("a string");
        let grammar = compile(text);
        if text.contains("<[") || text.contains("max_tokens") {
            check_token_masks(&grammar, text);
        } else {
            check_masks(&grammar, text);
        }
    }
}

#[test]
fn tokens_come_by_name_number_and_range() {
    let call = first_special();
    let grammar = compile("start: <|call|> \"a\" <|end|>");
    let a = byte_token(b'a');
    assert!(accepts_tokens(&grammar, &[call, a, call + 1]));
    assert!(!accepts_tokens(&grammar, &[a, call + 1]) && !accepts(&grammar, "<|call|>a<|end|>"));
    let text = format!("start: <[{call}-{}]> <[ {call}, {a} ]>", call + 2);
    let grammar = compile(&text);
    assert!(accepts_tokens(&grammar, &[call + 2, a]) && accepts_tokens(&grammar, &[call, call]));
    assert!(!accepts_tokens(&grammar, &[a, a]) && !accepts_tokens(&grammar, &[call, call + 1]));
    // Token 0 ends the text, and comes where the grammar ends.
    let grammar = compile("start: <[0-2]>");
    assert!(accepts_tokens(&grammar, &[1]) && !accepts_tokens(&grammar, &[0]));
    for (text, why) in [
        ("start: <[0]>", "token 0 ends the text"),
        ("start: <[99999]>", "token 99999 is outside the vocabulary"),
        ("start: <[5-99999]>", "token 99999 is outside the vocabulary"),
        ("start: <[5-4]>", "the tokens 5 to 4 are none"),
        ("start: <[5,]>", "a number is missing"),
        ("start: <[5;6]>", "`]>` is missing"),
        (
            "start: A\nA: <[5]>",
            "line 2, column 4: a terminal cannot use tokens",
        ),
        ("start: <nothing>", "`<nothing>` is not one token"),
    ] {
        let error = refused(text);
        assert!(error.contains(why), "{text}\n{error}");
    }
}

#[test]
fn what_is_not_supported_or_malformed_is_named_with_its_place() {
    for (text, why) in [
        ("", "line 1, column 1: the grammar has no rule `start`"),
        ("a: \"b\"", "no rule `start`"),
        (
            "%declare A\nstart: A",
            "line 1, column 1: `%declare` is not supported",
        ),
        (
            "%override start: \"a\"",
            "line 1, column 1: `%override` is not supported",
        ),
        (
            "start: a\n%extend a: \"a\"",
            "line 2, column 1: `%extend` is not supported",
        ),
        (
            "start: \"a\" %if true",
            "line 1, column 12: `%if` is not supported",
        ),
        (
            "start: a::0x0\na::_: \"a\"",
            "line 1, column 8: `a` is parametric",
        ),
        ("start: \"a\"\na::_: \"a\"", "line 2, column 2: `a` is parametric"),
        ("start: @other", "line 1, column 8: other grammars (`@name`)"),
        ("start.2: \"b\"", "line 1, column 6: `start` has a priority"),
        (
            "%llguidance {\"allow_invalid_utf8\": true}",
            "`allow_invalid_utf8` is not supported",
        ),
        (
            "%llguidance {\"other\": true}",
            "line 1, column 13: the option `other` is not supported",
        ),
        (
            "%llguidance {\"no_forcing\": 1}",
            "the option `no_forcing` is no boolean",
        ),
        ("%llguidance []", "the options of `%llguidance` are no object"),
        (
            "%llguidance {\"a\" 1}",
            "line 1, column 18: this is not JSON: a colon is missing",
        ),
        ("%llguidance", "this is not JSON"),
        (
            "start: %json {\n \"type\": }",
            "line 2, column 10: this is not JSON",
        ),
        (
            "start: a\na: %json {\"properties\": {\"b\": {\"$ref\": \"http://x/y\"}}}",
            "`%json` at line 2, column 4: #/properties/b: `$ref`",
        ),
        (
            "start: A\nA: %json {}",
            "line 2, column 4: a terminal cannot use `%json`",
        ),
        (
            "start: %json {\"x-guidance\": {\"item_separator\": \";\"}}",
            "line 1, column 14: `x-guidance` may ask for the separators",
        ),
        (
            "start: %json {\"x-guidance\": {\"whitespace_pattern\": \" \"}}",
            "this value of `x-guidance.whitespace_pattern` is not supported",
        ),
        (
            "start: %regex {}",
            "line 1, column 15: `%regex` needs an object with one member",
        ),
        (
            "start: %regex {\"pattern\": \"a\"}",
            "`pattern` is not supported here",
        ),
        (
            "start: %regex {\"substring_words\": [\"a\"]}",
            "`substring_words` is not a string",
        ),
        (
            "start: %regex {\"substring_chunks\": [1]}",
            "`substring_chunks` is not a list of strings",
        ),
        (
            "start: %lark { start: \"a\"",
            "line 1, column 8: `%lark {` is never closed",
        ),
        (
            "start: %lark { a: \"a\" }",
            "line 1, column 8: the grammar has no rule `start`",
        ),
        (
            "start: %lark { start: b } b\nb: \"b\"",
            "line 1, column 23: `b` is used and not defined",
        ),
        (
            "start: a & b\na: \"a\"\nb: \"b\"",
            "line 1, column 10: `&` needs terminals",
        ),
        (
            "start: A\nA: \"a\" ~",
            "line 2, column 8: there is nothing behind `~`",
        ),
        ("start: A\nA: ~~\"a\"", "line 2, column 5: `~` stands twice"),
        (
            "start: A\nA: ~b\nb: \"b\"",
            "line 2, column 5: a terminal cannot use the rule `b`",
        ),
        ("start: A\nA: /a/ & /b/", "`start` derives no text"),
        ("start: A\nA: ~A", "a terminal uses itself: A → A"),
        ("start: \"a\"{3,2}", "a repetition's maximum is below its minimum"),
        ("start: \"a\"{2", "`}` is missing"),
        (
            "start: a\na[foo]: \"a\"",
            "line 2, column 3: the attribute `foo` is not supported",
        ),
        (
            "start: a\na[capture, capture]: \"a\"",
            "line 2, column 12: the attribute `capture` is given twice",
        ),
        (
            "start: a\na[stop=\"a\", suffix=\"b\"]: \"a\"",
            "`stop` and `suffix` cannot stand together",
        ),
        (
            "start: a\na[stop_capture=\"x\"]: \"a\"",
            "`stop_capture` needs `stop` or `suffix`",
        ),
        (
            "start: a\na[suffix=b]: /a*/\nb: \"b\"",
            "a terminal cannot use the rule `b`",
        ),
        (
            "start: a\na[lazy]: b\nb: \"b\"",
            "line 2, column 10: a terminal cannot use the rule `b`",
        ),
        (
            "start: a\na[capture=b]: \"a\"",
            "line 2, column 11: `\"` is missing",
        ),
        (
            "start: A\nA[capture]: \"a\"",
            "line 2, column 2: `A` is a terminal; only rules have attributes",
        ),
        ("start: a\na[capture: \"a\"", "line 2, column 10: `]` is missing"),
        ("start: s{\"a\"}\ns{x}: x", "line 1, column 8: `s` is a template"),
        ("start: \"a\"\ns{x}: x", "line 2, column 2: `s` is a template"),
        ("start: /a", "line 1, column 8: a regular expression has no end"),
        ("start: \"a\" }", "line 1, column 12: `}` is unexpected"),
    ] {
        let error = refused(text);
        assert!(error.contains(why), "{text}\n{error}\nwithout {why}");
    }
}

#[test]
fn a_rule_ends_once_its_tokens_are_used_up_wherever_it_is() {
    let grammar = compile("start: \"(\" x \")\"\nx[max_tokens=2]: /[a-z]*/");
    let token = |text: &str| vocabulary_token(text);
    let (open, close, abc) = (byte_token(b'('), byte_token(b')'), token("abc"));
    // Longer tokens count once.
    assert!(accepts_tokens(&grammar, &[open, abc, abc, close]));
    assert!(!accepts_tokens(&grammar, &[open, abc, abc, abc]));
    // Arrays end in the middle, and what follows does not depend on it.
    let grammar = compile("start: x \"!\"\nx[max_tokens=3]: %json {\"type\": \"array\"}");
    let tokens = |text: &str| text.bytes().map(byte_token).collect::<Vec<_>>();
    assert!(accepts_tokens(&grammar, &tokens("[1,!")) && accepts_tokens(&grammar, &tokens("[]!")));
    assert!(!accepts_tokens(&grammar, &tokens("[1,2")) && !accepts_tokens(&grammar, &tokens("[1!")));
    check_token_masks(&grammar, "a JSON array of three tokens");
    // A token that begins before the rule does not count for it.
    let grammar = compile("start: \"a\" x \"!\"\nx[max_tokens=1]: /[a-z]*/");
    assert!(accepts_tokens(&grammar, &[abc, abc, byte_token(b'!')]));
    assert!(!accepts_tokens(&grammar, &[abc, abc, abc]));
    // Each time it is entered it counts anew, also where the one before was cut.
    let grammar = compile("start: x+ \"!\"\nx[max_tokens=2]: \"aaaa\"");
    assert!(accepts_tokens(&grammar, &tokens("aaaaaa!")) && !accepts_tokens(&grammar, &tokens("a!")));
    // No character is cut.
    let grammar = compile("start: x \"!\"\nx[max_tokens=1]: /[é😀]*/");
    assert!(accepts_tokens(&grammar, &tokens("é!")) && accepts_tokens(&grammar, &tokens("😀!")));
    assert!(!accepts_tokens(&grammar, &tokens("éé!")));
    assert!(!accepts_tokens(&grammar, &[byte_token(0xC3), byte_token(b'!')]));
    check_token_masks(&grammar, "one token of characters");
}

#[test]
fn limits_of_tokens_are_rolled_back_and_force_nothing() {
    let grammar = compile("start: x \"!\"\nx[max_tokens=3]: \"aaaaaa\"");
    let mut matcher = grammar.matcher();
    assert!(
        matcher.forced_bytes().is_empty(),
        "the rule may be cut before its text ends"
    );
    let a = byte_token(b'a');
    for _ in 0..3 {
        matcher.advance(a).expect("it may come");
    }
    assert_eq!(matcher.forced_bytes(), b"!");
    matcher.rollback(2).expect("three were taken");
    assert!(matcher.advance(byte_token(b'!')).is_err());
    let mut fork = matcher.clone();
    for _ in 0..2 {
        fork.advance(a).expect("it may come");
    }
    fork.advance(byte_token(b'!')).expect("three were taken");
    assert!(fork.is_accepting() && !matcher.is_accepting());
}

#[test]
fn the_innermost_temperature_counts_and_the_highest_of_several() {
    let text = "start: \"a\" x \"b\" y\nx[temperature=0.5]: /[xb]*/\n\
                y[temperature=1.5]: %lark {\nstart: \"c\" z\nz[temperature=0]: /d+/\n}";
    let grammar = compile(text);
    let mut matcher = grammar.matcher();
    let mut seen = vec![matcher.temperature()];
    for byte in "axbcd".bytes() {
        matcher.advance(byte_token(byte)).expect("it may come");
        seen.push(matcher.temperature());
    }
    let expected = [None, Some(0.5), Some(0.5), Some(1.5), Some(0.0), Some(0.0)];
    assert_eq!(seen, expected);
    check_masks(&grammar, text);
    for (text, why) in [
        (
            "start: x\nx[temperature=-1]: /a/",
            "line 2, column 15: a temperature is a number from 0 to 100",
        ),
        (
            "start: x\nx[temperature=NaN]: /a/",
            "a temperature is a number from 0 to 100",
        ),
        (
            "start: x\nx[max_tokens=-1]: /a/",
            "line 2, column 14: a number is missing",
        ),
        (
            "start: x\nx[max_tokens=2]: y\ny: \"a\"",
            "a terminal cannot use the rule `y`",
        ),
        (
            "start: x\nx[max_tokens=2]: %json {} | \"a\"",
            "need a body of terminals, or of one `%json` or `%lark`",
        ),
    ] {
        let error = refused(text);
        assert!(error.contains(why), "{text}\n{error}");
    }
}

#[test]
fn hostile_terminals_meet_a_named_limit_or_compile() {
    let doubled = |n: usize| {
        let each = (1..=n).map(|i| format!("A{i}: A{} A{}\n", i - 1, i - 1));
        format!(
            "start: B\nB: A{n} & /a*/\nA0: \"a\" & /./\n{}",
            each.collect::<String>()
        )
    };
    let nested = |n: usize| format!("start: {}\"a\"{}", "%lark { start: ".repeat(n), " }".repeat(n));
    let chars = "ab".repeat(20_000) + "c";
    for (text, limit) in [
        (doubled(40), "max_automaton_states"),
        (
            "start: A\nA: ~/[ab]*a[ab]{20}/".to_owned(),
            "max_automaton_states",
        ),
        (
            "start: A\nA: (~\"a\" & /./){4000000000}".to_owned(),
            "max_automaton_states",
        ),
        (
            format!("start: %regex {{\"substring_chars\": \"{chars}\"}}"),
            "max_",
        ),
        (nested(31), "max_source_depth"),
        (
            format!("start: A\nA: {}\"a\"", "~(".repeat(200)),
            "max_source_depth",
        ),
        (
            format!("start: %json {}1{}", "[".repeat(200), "]".repeat(200)),
            "max_source_depth",
        ),
    ] {
        let grammar = Grammar::compile(&vocabulary(), &lark(&text), &Limits::default()).map(|_| ());
        let error = grammar.expect_err(limit).to_string();
        assert!(error.contains(limit), "{}\n{error}", &text[..60.min(text.len())]);
    }
    for text in [
        doubled(8),
        nested(29),
        "start: x*\nx[max_tokens=4294967295]: /[ab]*/".to_owned(),
        "start: A\nA: ~(~/[ab]*a[ab]{5}/)".to_owned(),
    ] {
        let grammar = compile(&text);
        let (mut matcher, a) = (grammar.matcher(), byte_token(b'a'));
        while matcher.n_tokens() < 100 && matcher.mask().allows(a) {
            matcher.advance(a).expect("the mask allows it");
        }
        assert!(matcher.mask().n_allowed() > 0, "{text}");
    }
}

fn vocabulary_token(text: &str) -> u32 {
    let vocabulary = vocabulary();
    let is = |token: &u32| vocabulary.token_bytes(*token) == text.as_bytes();
    (0..vocabulary.n_vocab()).find(is).expect("it is a token")
}
