//! Grammars whose outputs can be read in very many ways: what compiles runs to its end, however long the
//! output gets, and its masks are those of brute force.

mod common;

use std::fmt::Write;
use std::sync::Arc;

use arbora_constrained::{Constraint, Grammar, Limits, Matcher, SchemaOptions, Vocabulary};
use common::{EOS, Random, brute_force, byte_token, check, vocabulary};

fn gbnf(text: &str) -> Grammar {
    Grammar::compile_gbnf(&vocabulary(), text, &Limits::default()).expect(text)
}

/// After each byte there are twice as many ways to read it.
fn doubling(n: usize) -> String {
    let mut text = "root ::= r0\n".to_owned();
    for i in 0..n {
        let next = i + 1;
        writeln!(text, "r{i} ::= \"x\" r{next} \"y\" | \"x\" r{next} \"z\"").expect("a string");
    }
    text + &format!("r{n} ::= \"w\"\n")
}

/// Name and grammar.
fn cases() -> Vec<(&'static str, Grammar)> {
    let texts = [
        (
            "stars of stars",
            "root ::= (((\"a\"*)* \"b\"*)* \"c\"?)*".to_owned(),
        ),
        (
            "many stars",
            format!("root ::= ({})* \"z\"", "[ab]* ".repeat(500)),
        ),
        (
            "many options",
            format!("root ::= {}\"z\"", "\"a\"? ".repeat(1_000)),
        ),
        (
            "palindromes",
            "root ::= \"a\" root \"a\" | \"b\" root \"b\" | \"\"".to_owned(),
        ),
        (
            "palindromes with a middle of any length",
            "root ::= \"a\" root \"a\" | \"b\" root \"b\" | [ab]*".to_owned(),
        ),
        (
            "stars side by side",
            "root ::= [a-zA-Z]* [a-zA-Z]* (\" \" [a-z]* [a-z]*)*".to_owned(),
        ),
        ("a letter long ago", "root ::= [ab]* \"a\" [ab]{300}".to_owned()),
        (
            "pairs",
            "root ::= root root | \"a\" | \"ab\" | \"(\" root \")\" | \"\"".to_owned(),
        ),
        (
            "sums without precedence",
            "root ::= root \"+\" root | root root | \"(\" root \")\" | [01]+".to_owned(),
        ),
        (
            "a branch that belongs to any condition",
            "root ::= \"a\" root | \"a\" root \"b\" root | \"c\"".to_owned(),
        ),
        (
            "endings that may be owed",
            "root ::= \"a\" root | \"a\" root \"b\" | \"\"".to_owned(),
        ),
        ("twice as many ways after each byte", doubling(200)),
        (
            "counts of one or two",
            "root ::= (\"a\" | \"aa\" | \"b\"){100,200} \"c\"".to_owned(),
        ),
        (
            "counts within counts",
            "root ::= ((\"a\"{1,3}){1,3} \"b\"?){50,90}".to_owned(),
        ),
    ];
    let mut cases: Vec<_> = texts.iter().map(|(name, text)| (*name, gbnf(text))).collect();
    let expressions = [
        ".*a.{12}",
        "(?:.{0,50}a){0,300}",
        "\\p{L}* \\p{L}*",
        "(?:a|b)*a(?:a|b){300}",
    ];
    let limits = Limits::default();
    cases.extend(expressions.map(|expression| {
        let grammar = Grammar::compile_regex(&vocabulary(), expression, &limits);
        (expression, grammar.expect(expression))
    }));
    let schemas = [
        r##"{"anyOf":[{"type":"array","items":{"$ref":"#"}},{"type":"array","items":{"type":"string"}},
            {"type":"string","pattern":"a"},{"type":"string","pattern":"b"},{"type":"string","maxLength":9}]}"##,
        r##"{"$defs":{"a":{"properties":{"a":{"$ref":"#/$defs/a"},"ab":{"type":"string"}}},
            "b":{"properties":{"a":{"$ref":"#/$defs/b"},"ab":{"type":"integer"}}}},
            "anyOf":[{"$ref":"#/$defs/a"},{"$ref":"#/$defs/b"}],"type":"object"}"##,
        r##"{"anyOf":[{"type":"array","items":{"$ref":"#"},"uniqueItems":true},
            {"type":"array","items":{"$ref":"#"},"uniqueItems":true,"maxItems":2},{"type":"boolean"}]}"##,
        r##"{"type":"array","uniqueItems":true,"items":{"anyOf":[{"type":"string","pattern":"a"},
            {"type":"string","maxLength":3},{"type":"array","uniqueItems":true,"items":{"enum":["a","b",1]}}]}}"##,
    ];
    cases.extend(schemas.map(|schema| {
        let options = SchemaOptions::default();
        let constraint = Constraint::JsonSchema { schema, options };
        (
            schema,
            Grammar::compile(&vocabulary(), &constraint, &limits).expect(schema),
        )
    }));
    cases
}

/// Takes a random allowed token, but not the end while anything else may come.
fn step(matcher: &mut Matcher, random: &mut Random, what: &str) -> u32 {
    let mask = matcher.mask();
    let allowed: Vec<u32> = (0..mask.n_vocab()).filter(|token| mask.allows(*token)).collect();
    let vocabulary = vocabulary();
    assert_eq!(allowed, brute_force(&vocabulary, matcher), "{what}");
    assert!(!allowed.is_empty(), "{what}: nothing may follow");
    let longer: Vec<u32> = allowed.iter().copied().filter(|token| *token != EOS).collect();
    let choices = if longer.is_empty() { allowed } else { longer };
    let token = choices[random.below(choices.len())];
    matcher.advance(token).expect("the mask allows it");
    token
}

#[test]
fn masks_of_ambiguous_grammars_are_exact_over_long_outputs() {
    for (name, grammar) in cases() {
        check(&grammar, name);
        for seed in 0..2 {
            let (mut random, mut matcher) = (Random(seed), grammar.matcher());
            for n in 0..220 {
                if step(
                    &mut matcher,
                    &mut random,
                    &format!("{name}, seed {seed}, token {n}"),
                ) == EOS
                {
                    break;
                }
            }
        }
    }
}

/// Long runs of one letter have the most readings.
#[test]
fn masks_are_exact_where_one_letter_is_repeated() {
    let vocabulary = vocabulary();
    for (name, grammar) in cases() {
        let mut matcher = grammar.matcher();
        for n in 0..700 {
            if n % 23 == 0 {
                let mask = matcher.mask();
                let allowed: Vec<u32> = (0..mask.n_vocab()).filter(|token| mask.allows(*token)).collect();
                assert_eq!(
                    allowed,
                    brute_force(&vocabulary, &matcher),
                    "{name}, after {n} times a"
                );
                assert!(!allowed.is_empty(), "{name}: nothing may follow {n} times a");
            }
            if matcher.advance(byte_token(b'a')).is_err() {
                break;
            }
        }
    }
}

fn accepts(grammar: &Grammar, text: &str) -> bool {
    let mut matcher = grammar.matcher();
    text.bytes().all(|byte| matcher.advance(byte_token(byte)).is_ok()) && matcher.is_accepting()
}

fn is_palindrome(text: &str) -> bool {
    text.bytes().eq(text.bytes().rev()) && text.len().is_multiple_of(2)
}

/// With every `b` an `a` before it is used up.
fn owes_no_ending(text: &str) -> bool {
    let n_begun = text.bytes().take_while(|byte| *byte == b'a').count();
    let (_, rest) = text.split_at(n_begun);
    rest.bytes().all(|byte| byte == b'b') && rest.len() <= n_begun
}

/// Twenty times `x`, `w`, and twenty times `y` or `z`.
fn is_doubled(text: &str) -> bool {
    let rest = text.strip_prefix(&"x".repeat(20));
    let rest = rest.and_then(|rest| rest.strip_prefix('w'));
    rest.is_some_and(|rest| rest.len() == 20 && rest.bytes().all(|byte| b"yz".contains(&byte)))
}

/// Sums of ones, whose operators may be left out.
fn is_sum(text: &str) -> bool {
    let (first, last) = (text.bytes().next(), text.bytes().last());
    first == Some(b'1')
        && last == Some(b'1')
        && text.bytes().all(|byte| b"1+".contains(&byte))
        && !text.contains("++")
}

/// Brackets that match, with ones in between.
fn is_balanced(text: &str) -> bool {
    let mut depth = 0i32;
    let closes = text.bytes().all(|byte| {
        depth += i32::from(byte == b'(') - i32::from(byte == b')');
        depth >= 0
    });
    closes && depth == 0
}

#[test]
fn rules_that_begin_and_end_with_themselves_are_lists() {
    let cases: [(&str, &[u8], Oracle); 5] = [
        ("root ::= root \"+\" root | root root | \"1\"", b"1+", is_sum),
        ("root ::= root root root | \"1\"", b"1", |text| {
            text.len() % 2 == 1
        }),
        (
            "root ::= root root | \"(\" root \")\" | \"1\" | \"\"",
            b"1()",
            is_balanced,
        ),
        ("root ::= root \"+\" root | \"\"", b"+", |_| true),
        // The other ways may mention the rule, at an end too.
        ("root ::= root root | root \"+\" | \"1\"", b"1+", |text| {
            text.starts_with('1')
        }),
    ];
    for (source, letters, expected) in cases {
        let grammar = gbnf(source);
        for length in 0..8u32 {
            for number in 0..letters.len().pow(length) {
                let letter = |at| letters[number / letters.len().pow(at) % letters.len()] as char;
                let text: String = (0..length).map(letter).collect();
                assert_eq!(accepts(&grammar, &text), expected(&text), "{text} of {source}");
            }
        }
    }
}

type Oracle = fn(&str) -> bool;

#[test]
fn ambiguous_grammars_accept_what_a_simple_look_says() {
    let palindromes = gbnf("root ::= \"a\" root \"a\" | \"b\" root \"b\" | \"\"");
    let endings = gbnf("root ::= \"a\" root | \"a\" root \"b\" | \"\"");
    let doubled = gbnf(&doubling(20));
    let mut random = Random(3);
    let cases: [(&str, &Grammar, Oracle); 3] = [
        ("ab", &palindromes, is_palindrome),
        ("ab", &endings, owes_no_ending),
        ("xwyz", &doubled, is_doubled),
    ];
    for (letters, grammar, expected) in cases {
        let letters: Vec<char> = letters.chars().collect();
        let (mut n_right, mut n_wrong) = (0, 0);
        for n in 0..400 {
            let half: String = (0..n % 90)
                .map(|_| letters[random.below(letters.len())])
                .collect();
            let mut text: String = match n % 3 {
                0 => half.chars().chain(half.chars().rev()).collect(),
                1 => format!("{}{}", "a".repeat(n % 90), "b".repeat(random.below(1 + n % 90))),
                _ => {
                    let ends = (0..20).map(|_| letters[letters.len() - 1 - random.below(2)]);
                    format!("{}w{}", "x".repeat(20), ends.collect::<String>())
                }
            };
            if random.below(3) == 0 && !text.is_empty() {
                text.remove(random.below(text.len()));
            }
            let is_right = expected(&text);
            assert_eq!(accepts(grammar, &text), is_right, "{text}");
            *(if is_right { &mut n_right } else { &mut n_wrong }) += 1;
        }
        assert!(n_right > 20 && n_wrong > 20, "{n_right} and {n_wrong}");
    }
}

/// The end of the text, every byte, and every three letters.
fn many_tokens() -> Arc<Vocabulary> {
    let letters = || b'a'..=b'z';
    let triples = letters().flat_map(|a| letters().flat_map(move |b| letters().map(move |c| vec![a, b, c])));
    let bytes = (0..=255u8).map(|byte| vec![byte]);
    let tokens = [None].into_iter().chain(bytes.chain(triples).map(Some));
    Arc::new(Vocabulary::new(tokens, &[EOS]).expect("18,000 tokens"))
}

#[test]
fn masks_of_very_ambiguous_states_do_not_depend_on_what_is_known() {
    let letters: Vec<String> = (b'a'..=b'z').map(|byte| char::from(byte).to_string()).collect();
    let ways: Vec<String> = letters.iter().map(|a| format!("\"{a}\" root \"{a}\"")).collect();
    let text = format!("root ::= {} | \"\"", ways.join(" | "));
    let vocabulary = many_tokens();
    let compiled = || Grammar::compile_gbnf(&vocabulary, &text, &Limits::default()).expect("palindromes");
    let (fresh, known) = (compiled(), compiled());
    let mut random = Random(7);
    for _ in 0..5 {
        let mut other = known.matcher();
        for _ in 0..20 {
            // Any three letters go on, whether a mask has them or not.
            let token = 257 + random.below(26 * 26 * 26) as u32;
            other.advance(token).expect("every text begins a palindrome");
            other.mask();
        }
    }
    let (mut fresh, mut known) = (fresh.matcher(), known.matcher());
    for _ in 0..40 {
        let mask = fresh.mask();
        assert_eq!(mask, known.mask());
        assert!(letters.iter().all(|a| mask.allows(byte_token(a.as_bytes()[0]))));
        let token = byte_token(b'a' + random.below(26) as u8);
        fresh.advance(token).expect("it is allowed");
        known.advance(token).expect("it is allowed");
    }
}
