//! Regular expressions of all syntaxes: which texts match, what is refused, and that masks are exact.
//!
//! `tests/regex/goldens.json` holds what Python and Node match, written by `tests/regex/make.py`.

#[path = "common/bytes.rs"]
mod bytes;

use std::collections::BTreeSet;

use arbora_constrained::{Constraint, FormatPolicy, Grammar, Limits, SchemaOptions};
use bytes::{accepts, vocabulary};
use serde_json::{Value, json};

fn lark(text: &str) -> Constraint<'_> {
    Constraint::Lark {
        text,
        options: SchemaOptions::default(),
    }
}

fn with_pattern(pattern: &str) -> String {
    json!({"type": "string", "pattern": pattern}).to_string()
}

fn schema(text: &str) -> Result<Grammar, String> {
    let options = SchemaOptions {
        formats: FormatPolicy::Enforce,
        ..SchemaOptions::default()
    };
    let grammar = Grammar::compile_json_schema(&vocabulary(), text, &options, &Limits::default());
    grammar.map_err(|error| error.to_string())
}

fn regex(pattern: &str) -> Result<Grammar, String> {
    let grammar = Grammar::compile_regex(&vocabulary(), pattern, &Limits::default());
    grammar.map_err(|error| error.to_string())
}

/// All texts of up to `n` of the given characters.
fn texts(alphabet: &[String], n: u64) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut begin = 0;
    for _ in 0..n {
        let end = all.len();
        for at in begin..end {
            let longer: Vec<String> = alphabet.iter().map(|c| all[at].clone() + c).collect();
            all.extend(longer);
        }
        begin = end;
    }
    all
}

#[test]
fn patterns_match_what_python_and_node_match() {
    let goldens = include_str!("regex/goldens.json");
    let goldens: Vec<Value> = serde_json::from_str(goldens).expect("it was written as JSON");
    assert!(goldens.len() > 100, "{}", goldens.len());
    let strings = |value: &Value| -> Vec<String> {
        let list = value.as_array().expect("a list").iter();
        list.map(|item| item.as_str().expect("a text").to_owned())
            .collect()
    };
    let mut wrong = Vec::new();
    for golden in &goldens {
        let pattern = golden["pattern"].as_str().expect("a text");
        let is_ecma = golden["syntax"] == "ecma";
        let matches: BTreeSet<String> = strings(&golden["matches"]).into_iter().collect();
        let grammar = if is_ecma {
            schema(&with_pattern(pattern))
        } else {
            regex(pattern)
        };
        let n = golden["n"].as_u64().expect("a number");
        for text in texts(&strings(&golden["alphabet"]), n) {
            let spelled = if is_ecma {
                Value::from(text.as_str()).to_string()
            } else {
                text.clone()
            };
            // That nothing matches is said when the pattern is compiled.
            let is_accepted = match &grammar {
                Ok(grammar) => accepts(grammar, &spelled),
                Err(error) if error.contains("no output can satisfy") => false,
                Err(error) => panic!("{pattern}: {error}"),
            };
            if is_accepted != matches.contains(&text) {
                wrong.push(format!(
                    "{} {pattern} on {text:?}: {is_accepted}",
                    golden["syntax"]
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// One expression in every place where one may stand.
fn everywhere(pattern: &str) -> Vec<(&'static str, Result<Grammar, String>)> {
    let limits = Limits::default();
    let vocabulary = vocabulary();
    let compile = |constraint: Constraint<'_>| {
        let grammar = Grammar::compile(&vocabulary, &constraint, &limits);
        grammar.map_err(|error| error.to_string())
    };
    let quoted = Value::from(pattern).to_string();
    let tag = json!({"type": "structural_tag", "format": {"type": "regex", "pattern": pattern}}).to_string();
    let options = SchemaOptions::default();
    vec![
        ("regex", compile(Constraint::Regex(pattern))),
        (
            "EBNF",
            compile(Constraint::Ebnf {
                text: &format!("root ::= Regex({quoted})"),
                root: "root",
            }),
        ),
        ("Lark", compile(lark(&format!("start: /{pattern}/")))),
        ("tag", compile(Constraint::StructuralTag { text: &tag, options })),
    ]
}

#[test]
fn shorthands_are_of_ascii_in_every_spelling_unless_unicode_is_asked_for() {
    for (pattern, of_ascii, beyond) in [
        (r"\d", "7", "٣"),
        (r"\w", "w", "é"),
        (r"\s", " ", "\u{2003}"),
        (r"[\d]", "7", "٣"),
        (r"[^\D]", "7", "٣"),
        (r"[^\W\d]", "w", "é"),
        (r"[^\S]", " ", "\u{2003}"),
    ] {
        for (place, grammar) in everywhere(pattern) {
            let grammar = grammar.expect(place);
            assert!(accepts(&grammar, of_ascii), "{pattern} as {place}");
            assert!(!accepts(&grammar, beyond), "{pattern} as {place} on {beyond}");
        }
        for (place, grammar) in everywhere(&format!("(?u:{pattern})")) {
            let grammar = grammar.expect(place);
            let are_accepted = [of_ascii, beyond].map(|text| accepts(&grammar, text));
            assert_eq!(are_accepted, [true, true], "{pattern} of Unicode as {place}");
        }
    }
    for (pattern, of_ascii, beyond) in [(r"\D", "7", "٣"), (r"\W", "w", "é"), (r"\S", " ", "\u{2003}")] {
        for (place, grammar) in everywhere(pattern) {
            let grammar = grammar.expect(place);
            let are_accepted = [of_ascii, beyond].map(|text| accepts(&grammar, text));
            assert_eq!(are_accepted, [false, true], "{pattern} as {place}");
        }
    }
    // In a schema as ECMA-262 has it: white space is what Unicode has, all else is of ASCII.
    for (pattern, text, is_accepted) in [
        (r"^\d$", "\"٣\"", false),
        (r"^(?u:\d)$", "\"٣\"", true),
        (r"^\w$", "\"é\"", false),
        (r"^\s$", "\"\u{2003}\"", true),
        (r"^.\b.$", "\"aé\"", true),
        (r"^(?u:.\b.)$", "\"aé\"", false),
        (r"^(?u:.\B.)$", "\"aé\"", true),
        (r"(?u:\b)é", "\"aé\"", false),
    ] {
        let grammar = schema(&with_pattern(pattern)).expect(pattern);
        assert_eq!(accepts(&grammar, text), is_accepted, "{pattern} on {text}");
    }
    // What is named is not a shorthand.
    for (pattern, text) in [
        ("[[:alpha:]]", "é"),
        ("[[:^alpha:]]", "e"),
        (r"\p{Nd}", "x"),
        (r"[\pL]", "1"),
    ] {
        assert!(
            !accepts(&regex(pattern).expect(pattern), text),
            "{pattern} on {text}"
        );
    }
}

#[test]
fn rust_s_classes_and_borders_are_read() {
    for (pattern, accepted, refused) in [
        ("[a-z&&[^aeiou]]+", &["xyz"][..], &["a", "xa", ""][..]),
        ("[a-z--m-o]", &["l", "p"], &["m", "n"]),
        ("[a-c~~b-d]", &["a", "d"], &["b", "c"]),
        ("[x[:digit:][^\\x00-y]]", &["x", "5", "z", "é"], &["a", "y"]),
        ("[]-]+", &["]-"], &["a"]),
        ("\\b{start}a|b\\b{end}", &["a", "b"], &["ab"]),
        (
            "(?Rm)a$\\r?\\n?^b",
            &["a\r\nb", "a\nb", "a\rb"],
            &["ab", "a\r\n\nb"],
        ),
        ("(?U)a+", &["aa"], &[""]),
        ("a**", &["", "aaa"], &["b"]),
        ("\\x{e9}\\u{e9}\\u00e9", &["ééé"], &["éé"]),
        ("(?<n>a)(?P<m>b)", &["ab"], &["a"]),
        ("^(?:ab|^cd$)$", &["ab", "cd"], &["abcd"]),
    ] {
        let grammar = regex(pattern).expect(pattern);
        let wrong = accepted.iter().find(|text| !accepts(&grammar, text));
        assert_eq!(wrong, None, "{pattern}");
        let wrong = refused.iter().find(|text| accepts(&grammar, text));
        assert_eq!(wrong, None, "{pattern}");
    }
}

#[test]
fn what_has_no_one_meaning_or_is_not_regular_is_refused_by_name_and_place() {
    let deep = "(".repeat(97) + &")".repeat(97);
    for (pattern, why) in [
        (
            r"^(['\x22]).*\1$",
            "back-references are not regular, at character 13",
        ),
        (r"(?<a>x)\k<a>", "back-references are not regular, at character 8"),
        (
            "(?P<a>x)(?P=a)",
            "back-references are not regular, at character 9",
        ),
        ("a(?R)", "recursion is not regular, at character 2"),
        ("(a(?1))", "recursion is not regular"),
        ("(?(1)a|b)", "conditions are not supported"),
        ("(*SKIP)a", "`(*` begins a verb of PCRE"),
        ("(?>a+b*)", "whose parts have several lengths, at character 1"),
        ("(?:a|bc)++", "whose parts have several lengths"),
        ("(?L)a", "the flag `L` is not supported, at character 3"),
        ("(?'n'a)", "`(?` begins no group that is known"),
        ("a)", "`)` without `(`, at character 2"),
        ("(a", "a group is never closed, at character 1"),
        ("é[a", "a class is never closed, at character 2"),
        ("(?#a", "a comment is never closed"),
        ("*a", "`*` has nothing to repeat, at character 1"),
        ("a|{2}", "a repetition of nothing, at character 3"),
        ("a{3,2}", "maximum is below its minimum"),
        ("a{99999999999}", "a repetition of more than 4294967295 times"),
        (
            "[z-a]",
            "a range whose end is before its beginning, at character 2",
        ),
        (r"[\d-z]b[a-\d]", "a range that does not end in a character"),
        (r"\y", r"`\y` is no escape here, at character 1"),
        (r"\07", "octal escapes are not supported"),
        (r"\u12", "an escape without its 4 hexadecimal digits"),
        (r"\u{110000}", "is beyond U+10FFFF"),
        (r"\ud800", "a surrogate by itself is no character"),
        (r"\p{Nope}", "`Nope` is no property that is known"),
        (r"\<a\>", r"`\<` is a border of a word to some and `<` to others"),
        ("(?x)[a b]", r"whitespace in a class under `(?x)`"),
        ("a\\", "it ends with a backslash"),
        (&deep, "groups are nested deeper than 96"),
        ("(?=(a|b)*a(a|b){18})[ab]*", "max_"),
        // What it matches depends on the last 15 characters.
        ("(?:(?=a.{14}a)a|(?=b.{14}b)b)*.{15}", "max_"),
    ] {
        let error = regex(pattern).map(drop).expect_err(pattern);
        assert!(error.contains(why), "{pattern}: {error}");
    }
    for (pattern, why) in [
        ("a{,2}", "a repetition without a lower bound, which some read"),
        (
            "a**",
            "a repetition of a repetition, which needs a group, at character 3",
        ),
        (
            r"[\ud800-\udfff]",
            "a class of surrogates, which are no characters",
        ),
        (r"\pL", r"`\p` without a name in braces"),
    ] {
        let error = schema(&with_pattern(pattern)).map(drop).expect_err(pattern);
        assert!(error.contains(why), "{pattern}: {error}");
        assert!(error.starts_with("#: `pattern` is not supported"), "{error}");
    }
}

#[test]
fn look_around_works_wherever_a_schema_has_patterns() {
    let names = json!({
        "type": "object",
        "patternProperties": {"^(?!x-)[a-z-]+$": {"type": "integer"}},
        "propertyNames": {"pattern": "^(?=.{2,8}$)(?!.*--)"},
        "additionalProperties": false,
    });
    let grammar = schema(&names.to_string()).expect("it compiles");
    for (text, is_accepted) in [
        (r#"{"ab": 1}"#, true),
        (r#"{"a-b": 1, "yx-": 2}"#, true),
        (r#"{"x-a": 1}"#, false),
        (r#"{"a": 1}"#, false),
        (r#"{"a--b": 1}"#, false),
        (r#"{"abcdefghi": 1}"#, false),
    ] {
        assert_eq!(accepts(&grammar, text), is_accepted, "{text}");
    }
    // Lengths are counted beside the pattern, and both must hold.
    let password = r"^(?=.*[a-z])(?=.*[A-Z])(?=.*\d)(?=.*[@$!%*?&])[A-Za-z\d@$!%*?&]{8,400}$";
    let grammar = schema(&with_pattern(password)).expect("it compiles");
    for (text, is_accepted) in [
        ("\"aA1!aA1!\"".to_owned(), true),
        (format!("\"{}A1!\"", "a".repeat(397)), true),
        (format!("\"{}A1!\"", "a".repeat(398)), false),
        (format!("\"{}A!\"", "a".repeat(300)), false),
        ("\"aA1!aA1\"".to_owned(), false),
    ] {
        assert_eq!(accepts(&grammar, &text), is_accepted, "{text}");
    }
    let not = json!({"type": "string", "not": {"pattern": "^(?!ab)"}, "maxLength": 4});
    let grammar = schema(&not.to_string()).expect("it compiles");
    assert!(accepts(&grammar, "\"abcd\"") && !accepts(&grammar, "\"ba\"") && !accepts(&grammar, "\"abcde\""));
}

#[test]
fn the_format_regex_allows_expressions_only() {
    let grammar = schema(r#"{"type": "string", "format": "regex", "minLength": 1}"#).expect("it compiles");
    for (text, is_accepted) in [
        (r#""^[\\w.-]+@(?:[a-z]+\\.)+[a-z]{2,}$""#, true),
        (r#""^(?!\\s)[^\"\\n]*$""#, true),
        (r#""""#, false),
        (r#""(""#, false),
        (r#""a{2,1}""#, false),
        (r#""\\a""#, false),
    ] {
        assert_eq!(accepts(&grammar, text), is_accepted, "{text}");
    }
    let negated = schema(r#"{"type": "string", "not": {"format": "regex"}}"#);
    let error = negated.map(drop).expect_err("not all are known");
    assert!(
        error.contains("`format`") && error.contains("cannot be negated"),
        "{error}"
    );
}
