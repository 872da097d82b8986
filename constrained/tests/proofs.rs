//! Masks of random grammars against brute force, and what a fork shares with what it was forked from.

mod common;

use arbora_constrained::{Grammar, Limits, MatchError, SchemaOptions, Whitespace};
use common::{Random, check, vocabulary};

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

/// With few readings allowed at a time most masks with a choice go the long way. Where more are alive the
/// request is refused, never restricted.
#[test]
fn both_ways_to_a_mask_agree() {
    let vocabulary = vocabulary();
    let options = SchemaOptions::default();
    let (mut n_equal, mut n_refused) = (0, 0);
    for seed in 0..80 {
        let source = schema(&mut Random(seed), 2);
        let compile = |max_readings| {
            let limits = Limits {
                max_readings,
                ..Limits::default()
            };
            Grammar::compile_json_schema(&vocabulary, &source, &options, &limits)
        };
        let mut usual = compile(Limits::default().max_readings)
            .expect("as above")
            .matcher();
        let Ok(long) = compile(2 + seed as usize % 12) else {
            n_refused += 1;
            continue;
        };
        let mut long = long.matcher();
        let mut random = Random(seed);
        for _ in 0..30 {
            let mask = usual.mask().expect("no limit is near");
            match long.mask() {
                Ok(other) => assert_eq!(mask, other, "seed {seed}: {source}"),
                Err(error) => {
                    let is_expected = matches!(
                        error,
                        MatchError::Limit {
                            name: "max_readings",
                            ..
                        }
                    );
                    assert!(is_expected, "seed {seed}: {source}: {error}");
                    n_refused += 1;
                    break;
                }
            }
            n_equal += 1;
            let allowed: Vec<u32> = (0..mask.n_vocab()).filter(|token| mask.allows(*token)).collect();
            let token = allowed[random.below(allowed.len())];
            usual.advance(token).expect("the mask allows it");
            if token == common::EOS || long.advance(token).is_err() {
                break;
            }
        }
    }
    assert!(
        n_equal > 300 && n_refused > 5,
        "{n_equal} equal, {n_refused} refused"
    );
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
                    let mask = matcher.mask().expect("no limit is near");
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
fn work_beyond_the_limit_ends_the_request_and_no_other() {
    let vocabulary = vocabulary();
    let compile = |max_mask_work| {
        let limits = Limits {
            max_mask_work,
            ..Limits::default()
        };
        Grammar::compile_regex(&vocabulary, "(?:[a-z]|é)*", &limits).expect("valid")
    };
    let mut tight = compile(20).matcher();
    for _ in 0..2 {
        let error = tight.mask().expect_err("26 letters take more steps");
        assert_eq!(
            error,
            MatchError::Limit {
                name: "max_mask_work",
                limit: 20
            }
        );
    }
    assert!(compile(10_000).matcher().mask().expect("enough").n_allowed() > 26);
    // What another grammar found out does not change what is within the limit.
    assert!(compile(20).matcher().mask().is_err());
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
        matcher.mask().expect("no limit on work is near");
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
