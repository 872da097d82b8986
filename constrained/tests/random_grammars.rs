//! Random grammars, most of them very ambiguous: what compiles runs to its end, its masks are those of brute
//! force, and no mask takes memory without bounds.

mod common;

use std::fmt::Write;

use arbora_constrained::{Constraint, Grammar, Limits, SchemaOptions};
use common::{EOS, Random, brute_force, vocabulary};

const N_GRAMMARS: u64 = 250;
const N_TOKENS: usize = 60;

const CLASSES: [&str; 10] = [
    "/[a-e]/", "/[ab]/", "/[^A-Z]/", "/[01]/", "\"a\"", "\"ab\"", "\" \"", "\"(\"", "\")\"", "/[^()]/",
];

fn element(random: &mut Random, n_rules: usize, depth: usize, out: &mut String) {
    match random.below(10) {
        0..5 => *out += CLASSES[random.below(CLASSES.len())],
        5..8 => write!(out, "r{}", random.below(n_rules)).expect("a string"),
        _ if depth > 1 => *out += "\"b\"",
        _ => {
            *out += "(";
            alternatives(random, n_rules, depth + 1, out);
            *out += ")";
        }
    }
    *out += ["*", "+", "?", "", "", "", ""][random.below(7)];
}

fn alternatives(random: &mut Random, n_rules: usize, depth: usize, out: &mut String) {
    for n in 0..=random.below(3) {
        *out += if n > 0 { " | " } else { "" };
        for n in 0..=random.below(3) {
            *out += if n > 0 { " " } else { "" };
            element(random, n_rules, depth, out);
        }
    }
}

/// Rules of a grammar in Lark; each has a way to end.
fn lark(seed: u64) -> String {
    let mut random = Random(seed);
    let n_rules = 1 + random.below(5);
    let mut text = "start: r0\n".to_owned();
    for rule in 0..n_rules {
        write!(text, "r{rule}: ").expect("a string");
        alternatives(&mut random, n_rules, 0, &mut text);
        writeln!(text, " | {}", CLASSES[random.below(CLASSES.len())]).expect("a string");
    }
    text
}

/// The same in GBNF.
fn gbnf(seed: u64) -> String {
    let text = lark(seed).replace("start:", "root ::=").replace(": ", " ::= ");
    text.replace('/', "")
}

/// Follows the masks, three times in four with a token that was not the last one.
fn walk(grammar: &Grammar, seed: u64, what: &str) {
    let vocabulary = vocabulary();
    let (mut random, mut matcher) = (Random(seed), grammar.matcher());
    for n in 0..N_TOKENS {
        let mask = matcher.mask();
        let allowed: Vec<u32> = (0..mask.n_vocab()).filter(|token| mask.allows(*token)).collect();
        if n % 10 == 9 {
            assert_eq!(allowed, brute_force(&vocabulary, &matcher), "{what}, token {n}");
        }
        assert!(!allowed.is_empty(), "{what}: nothing may follow {n} tokens");
        let longer: Vec<u32> = allowed.iter().copied().filter(|token| *token != EOS).collect();
        let Some(token) = longer.get(random.below(longer.len().max(1))) else {
            return;
        };
        matcher.advance(*token).expect("the mask allows it");
    }
}

#[test]
fn random_grammars_run_as_long_as_they_are_asked_to() {
    let (mut n_compiled, limits) = (0, Limits::default());
    for seed in 0..N_GRAMMARS {
        let (gbnf, lark) = (gbnf(seed), lark(seed));
        let options = SchemaOptions::default();
        for constraint in [Constraint::Gbnf(&gbnf), Constraint::Lark { text: &lark, options }] {
            let Ok(grammar) = Grammar::compile(&vocabulary(), &constraint, &limits) else {
                continue;
            };
            n_compiled += 1;
            walk(&grammar, seed, &format!("seed {seed}: {constraint:?}"));
        }
    }
    assert!(n_compiled > N_GRAMMARS, "{n_compiled} compiled");
}
