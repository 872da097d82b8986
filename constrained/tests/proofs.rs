//! Masks of random grammars against brute force, and what a fork shares with what it was forked from.

mod common;

use arbora_constrained::{Grammar, Limits, SchemaOptions, Whitespace};
use common::{Random, brute_force, check, vocabulary};

/// A random expression over a few letters that the vocabulary's longer tokens share.
fn regex(random: &mut Random, depth: usize) -> String {
    let atoms = [
        "a", "b", "ab", "abc", "[a-c]", "[^a]", "é", "\"", "\\\\", "0", "1", "\\n", ".", "null", "true",
    ];
    if depth == 0 {
        return atoms[random.below(atoms.len())].to_owned();
    }
    let part = regex(random, depth - 1);
    match random.below(7) {
        0 => format!("(?:{part})*"),
        1 => format!("(?:{part})?"),
        2 => {
            let low = random.below(3);
            format!("(?:{part}){{{low},{}}}", low + 1 + random.below(4))
        }
        3 | 4 => format!("(?:{part}|{})", regex(random, depth - 1)),
        _ => format!("{part}{}", regex(random, depth - 1)),
    }
}

fn number(random: &mut Random) -> i64 {
    random.below(41) as i64 - 20
}

fn scalar(random: &mut Random) -> String {
    let low = number(random);
    let high = low + random.below(30) as i64;
    let n_chars = random.below(5);
    match random.below(12) {
        0 => r#"{"type":"string"}"#.to_owned(),
        1 => format!(
            r#"{{"type":"string","minLength":{n_chars},"maxLength":{}}}"#,
            n_chars + random.below(30)
        ),
        2 => format!(r#"{{"type":"string","minLength":{}}}"#, n_chars * 20),
        3 => format!(r#"{{"type":"integer","minimum":{low},"maximum":{high}}}"#),
        4 => format!(r#"{{"type":"number","exclusiveMinimum":{low}}}"#),
        5 => r#"{"type":"number"}"#.to_owned(),
        6 => r#"{"enum":["a","ab","abc",null,12,true,"\"é\\"]}"#.to_owned(),
        7 => format!(r#"{{"type":"integer","multipleOf":{}}}"#, 1 + random.below(9)),
        8 => r#"{"type":["boolean","null"]}"#.to_owned(),
        9 => r#"{"type":"string","pattern":"^[a-c]+é?$"}"#.to_owned(),
        10 => format!(
            r#"{{"type":"string","pattern":"[ab]{{2}}","maxLength":{}}}"#,
            2 + random.below(9)
        ),
        _ => r#"{"type":"string","format":"date"}"#.to_owned(),
    }
}

fn schema(random: &mut Random, depth: usize) -> String {
    if depth == 0 || random.below(4) == 0 {
        return scalar(random);
    }
    match random.below(4) {
        0 => {
            let low = random.below(3);
            let high = low + random.below(4);
            let items = schema(random, depth - 1);
            format!(r#"{{"type":"array","items":{items},"minItems":{low},"maxItems":{high}}}"#)
        }
        1 => format!(
            r#"{{"anyOf":[{},{}]}}"#,
            schema(random, depth - 1),
            schema(random, depth - 1)
        ),
        _ => {
            let names = ["name", "a", "ab", "abc", "é", "x\\\"y"];
            let mut properties = Vec::new();
            let mut required = Vec::new();
            for name in names {
                if random.below(2) == 0 {
                    properties.push(format!(r#""{name}":{}"#, schema(random, depth - 1)));
                    if random.below(2) == 0 {
                        required.push(format!(r#""{name}""#));
                    }
                }
            }
            let extra = [
                "",
                r#","additionalProperties":false"#,
                r#","additionalProperties":{"type":"null"}"#,
            ];
            format!(
                r#"{{"type":"object","properties":{{{}}},"required":[{}]{}}}"#,
                properties.join(","),
                required.join(","),
                extra[random.below(extra.len())]
            )
        }
    }
}

#[test]
fn masks_of_random_expressions_are_exact() {
    let vocabulary = vocabulary();
    let mut n_compiled = 0;
    for seed in 0..120 {
        let source = regex(&mut Random(seed), 3 + seed as usize % 3);
        let Ok(grammar) = Grammar::compile_regex(&vocabulary, &source, &Limits::default()) else {
            continue;
        };
        check(&grammar, &format!("seed {seed}: {source}"));
        n_compiled += 1;
    }
    assert!(n_compiled > 100, "{n_compiled} expressions compiled");
}

#[test]
fn masks_of_random_schemas_are_exact() {
    let vocabulary = vocabulary();
    let mut n_compiled = 0;
    for seed in 0..80 {
        let mut random = Random(seed);
        let source = schema(&mut random, 3);
        let whitespace = [Whitespace::Any, Whitespace::None][random.below(2)];
        let options = SchemaOptions {
            whitespace,
            ..SchemaOptions::default()
        };
        match Grammar::compile_json_schema(&vocabulary, &source, &options, &Limits::default()) {
            Ok(grammar) => check(&grammar, &format!("seed {seed}: {source}")),
            Err(error) => panic!("seed {seed}: {source}: {error}"),
        }
        n_compiled += 1;
    }
    assert_eq!(n_compiled, 80);
}

#[test]
fn forks_and_rollbacks_are_replays() {
    let vocabulary = vocabulary();
    let options = SchemaOptions::default();
    let schema = r#"{"type":"array","items":{"type":["string","number","null"]}}"#;
    let grammar = Grammar::compile_json_schema(&vocabulary, schema, &options, &Limits::default());
    let grammar = grammar.expect("valid");
    for seed in 0..20 {
        let mut random = Random(seed);
        let mut outputs = vec![(grammar.matcher(), Vec::new())];
        for _ in 0..150 {
            let at = random.below(outputs.len());
            match random.below(8) {
                0 if outputs.len() < 8 => {
                    let fork = outputs[at].clone();
                    outputs.push(fork);
                }
                1 => {
                    let (matcher, taken) = &mut outputs[at];
                    let n = random.below(taken.len() + 1);
                    matcher.rollback(n).expect("so many were taken");
                    taken.truncate(taken.len() - n);
                }
                _ => {
                    let (matcher, taken) = &mut outputs[at];
                    let mask = matcher.mask();
                    let allowed: Vec<u32> = (0..mask.n_vocab()).filter(|token| mask.allows(*token)).collect();
                    if let Some(token) = allowed.get(random.below(allowed.len().max(1))) {
                        matcher.advance(*token).expect("the mask allows it");
                        taken.push(*token);
                    }
                }
            }
        }
        for (mut matcher, taken) in outputs {
            let mut replayed = grammar.matcher();
            taken
                .iter()
                .for_each(|token| replayed.advance(*token).expect("it was taken before"));
            assert_eq!(matcher.n_tokens(), taken.len());
            assert_eq!(matcher.is_accepting(), replayed.is_accepting(), "seed {seed}");
            assert_eq!(matcher.mask(), replayed.mask(), "seed {seed}");
            assert_eq!(matcher.forced_bytes(), replayed.forced_bytes(), "seed {seed}");
        }
    }
}

#[test]
fn memory_is_told_and_bounded() {
    let vocabulary = vocabulary();
    let limits = Limits {
        max_cache_bytes: 200_000,
        ..Limits::default()
    };
    let schema = r#"{"type":"array","items":{"type":"string","maxLength":9000}}"#;
    let grammar = Grammar::compile_json_schema(&vocabulary, schema, &SchemaOptions::default(), &limits);
    let grammar = grammar.expect("valid");
    let empty = grammar.n_bytes();
    let mut matcher = grammar.matcher();
    matcher.advance(common::byte_token(b'[')).expect("an array");
    matcher.advance(common::byte_token(b'"')).expect("of strings");
    let mut most = 0;
    for _ in 0..8_000 {
        matcher.mask();
        matcher.advance(common::byte_token(b'x')).expect("any text");
        most = most.max(grammar.n_bytes());
    }
    assert!(most > empty, "{most} of {empty}");
    // One call may go a little beyond.
    assert!(most < empty + 240_000, "{most} of {empty}");
    // The states of the beginning are long gone, and found again.
    matcher.rollback(7_990).expect("so many were taken");
    let mut replayed = grammar.matcher();
    for byte in b"[\"xxxxxxxxxx" {
        replayed.advance(common::byte_token(*byte)).expect("as before");
    }
    assert_eq!(matcher.mask(), replayed.mask());
    assert_eq!(matcher.n_tokens(), 12);
    assert!(vocabulary.n_cache_bytes() > 0);
}

/// Many tokens begin with whitespace or a comma: what follows a leaf in them is looked up in the whole tree.
#[test]
fn masks_are_exact_where_many_tokens_go_on_after_a_leaf() {
    let mut texts: Vec<Option<Vec<u8>>> = vec![None];
    texts.extend((0..=255u8).map(|byte| Some(vec![byte])));
    for first in [" ", ",", ", ", ": ", "\": "] {
        for second in ["\"", "[", "1", "-", "n", "t", "{", "a", "]", "}"] {
            for third in ["", "\"", "a", "1", "]", "ul", ",", "}", "abc"] {
                texts.push(Some(format!("{first}{second}{third}").into_bytes()));
            }
        }
    }
    let vocabulary =
        std::sync::Arc::new(arbora_constrained::Vocabulary::new(texts, &[common::EOS]).expect("700"));
    for seed in 0..25 {
        let source = schema(&mut Random(seed), 3);
        let options = SchemaOptions::default();
        let grammar = Grammar::compile_json_schema(&vocabulary, &source, &options, &Limits::default());
        check(&grammar.expect("as above"), &format!("seed {seed}: {source}"));
    }
}

/// At the deepest nesting that is allowed nothing deeper is offered, and there is always a way on: members
/// and items that would need more are left out, and what needs more than is left is not begun.
#[test]
fn masks_are_exact_and_never_empty_up_to_the_deepest_nesting() {
    let lists = r##"{"$defs":{"t":{"anyOf":[{"type":"null"},
        {"type":"array","items":{"$ref":"#/$defs/t"},"minItems":1}]}},"$ref":"#/$defs/t"}"##;
    // The optional member needs three levels more, and two members there must be.
    let members = r##"{"$defs":{"t":{"type":"object","properties":{"a":{"$ref":"#/$defs/t"},"ab":{"type":"array",
        "items":{"const":[[1]]},"minItems":1},"b":{"type":"null"},"c":{"type":"null"},"name":{"$ref":"#/$defs/t"}},
        "minProperties":2,"additionalProperties":false}},"$ref":"#/$defs/t"}"##;
    let counted = r##"{"$defs":{"t":{"type":"array","items":{"anyOf":[{"$ref":"#/$defs/t"},{"type":"null"}]},
        "contains":{"type":"array"},"minContains":0,"maxContains":2,"minItems":1,"maxItems":3}},"$ref":"#/$defs/t"}"##;
    let distinct = r##"{"$defs":{"t":{"type":"array","items":{"$ref":"#/$defs/d"},"minItems":1},
        "d":{"type":"array","items":{"enum":[1,[[2]],"a"]},"uniqueItems":true,"minItems":2}},"$ref":"#/$defs/t"}"##;
    let unnamed = r##"{"$defs":{"t":{"type":"object","properties":{"a":{"type":"null"}},
        "additionalProperties":{"$ref":"#/$defs/t"},"minProperties":1}},"$ref":"#/$defs/t"}"##;
    let schemas = ["{}", lists, members, counted, distinct, unnamed];
    let vocabulary = vocabulary();
    let mut n_refused = 0;
    for (max_output_depth, schema) in (1..14).flat_map(|depth| schemas.map(|schema| (depth, schema))) {
        let limits = Limits {
            max_output_depth,
            ..Limits::default()
        };
        let options = SchemaOptions {
            whitespace: Whitespace::None,
            ..SchemaOptions::default()
        };
        let grammar = match Grammar::compile_json_schema(&vocabulary, schema, &options, &limits) {
            Ok(grammar) => grammar,
            Err(error) => {
                assert!(
                    error.to_string().contains("max_output_depth"),
                    "{schema}: {error}"
                );
                n_refused += 1;
                continue;
            }
        };
        for seed in 0..6 {
            let (mut random, mut matcher) = (Random(seed), grammar.matcher());
            for _ in 0..40 {
                let mask = matcher.mask();
                let allowed: Vec<u32> = (0..mask.n_vocab()).filter(|token| mask.allows(*token)).collect();
                let what = format!("depth {max_output_depth}, seed {seed}: {schema}");
                assert_eq!(allowed, brute_force(&vocabulary, &matcher), "{what}");
                assert!(!allowed.is_empty(), "{what}: nothing may follow");
                // Down as far as it goes.
                let opens = |token: &&u32| {
                    let bytes = vocabulary.token_bytes(**token);
                    bytes.ends_with(b"[") || bytes.ends_with(b"{\"") || bytes.ends_with(b":")
                };
                let deeper: Vec<u32> = allowed.iter().filter(opens).copied().collect();
                let goes_down = !deeper.is_empty() && random.below(8) > 0;
                let choices = if goes_down { deeper } else { allowed };
                let token = choices[random.below(choices.len())];
                matcher.advance(token).expect("the mask allows it");
                if token == common::EOS {
                    break;
                }
            }
        }
    }
    // A list of lists of one level is no output.
    assert_eq!(n_refused, 1);
}

/// Leaves that may be left after nearly every token are stepped together with what follows.
#[test]
fn masks_are_exact_where_a_leaf_may_end_anywhere() {
    let mut texts: Vec<Option<Vec<u8>>> = vec![None];
    texts.extend((0..=255u8).map(|byte| Some(vec![byte])));
    for first in b'!'..=b'z' {
        texts.extend((b'!'..=b'z').map(|second| Some(vec![first, second])));
    }
    let vocabulary =
        std::sync::Arc::new(arbora_constrained::Vocabulary::new(texts, &[common::EOS]).expect("8,000"));
    let limits = Limits::default();
    for regex in [".*", "[!-z]*", "(?:[!-z]{1,300},){2}[0-9]+", "(?:[!-z]+,)+"] {
        let grammar = Grammar::compile_regex(&vocabulary, regex, &limits).expect(regex);
        let (mut random, mut matcher) = (Random(1), grammar.matcher());
        for _ in 0..5 {
            let mask = matcher.mask();
            let allowed: Vec<u32> = (0..mask.n_vocab()).filter(|token| mask.allows(*token)).collect();
            assert_eq!(allowed, brute_force(&vocabulary, &matcher), "{regex}");
            let token = allowed[1 + random.below(allowed.len() - 1)];
            matcher.advance(token).expect("the mask allows it");
        }
    }
}

#[test]
fn large_counts_accept_what_the_expressions_match() {
    let vocabulary = vocabulary();
    let mut random = Random(5);
    for (pattern, units) in [
        ("(?:a|ab|b){300,600}", &["a", "ab", "b"][..]),
        ("(?:[ab]+ ?){1,300}", &["a ", "b", "ab "]),
        ("(?:a{2,3}b?){256,300}", &["aa", "aab", "aaab", "aaa"]),
        ("(?:a|(?:ba){260,270}c)*", &["a", "ba", "bac", "babac"]),
        ("(?:[ab]{1,2} ){290,300}x?", &["a ", "ab ", "bb "]),
    ] {
        let oracle = regex_automata::meta::Regex::new(&format!("\\A(?:{pattern})\\z")).expect(pattern);
        let grammar = Grammar::compile_regex(&vocabulary, pattern, &Limits::default()).expect(pattern);
        let (mut n_matches, mut n_others) = (0, 0);
        for _ in 0..80 {
            let n_units = 240 + random.below(120);
            let n_kinds = 1 + random.below(units.len());
            let text: String = (0..n_units).map(|_| units[random.below(n_kinds)]).collect();
            let mut matcher = grammar.matcher();
            let is_taken = text
                .bytes()
                .all(|byte| matcher.advance(common::byte_token(byte)).is_ok());
            let is_match = is_taken && matcher.is_accepting();
            assert_eq!(is_match, oracle.is_match(&text), "{pattern} on {text}");
            *(if is_match { &mut n_matches } else { &mut n_others }) += 1;
        }
        assert!(
            n_matches > 0 && n_others > 0,
            "{pattern}: {n_matches} and {n_others}"
        );
    }
}
