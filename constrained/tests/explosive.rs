//! Grammars with more and more ways to read an output, because rules that may be empty recurse on either
//! side: however long the output gets, what one token and one mask add to the tables stays within a bound,
//! something may always come, and every run of an output is the same.

#[path = "common/random.rs"]
mod random;

use std::sync::Arc;

use arbora_constrained::{Grammar, Limits, Vocabulary};
use random::Random;

const EOS: u32 = 0;

/// Name and GBNF.
const GRAMMARS: [(&str, &str); 20] = [
    (
        "rules that may be empty, each between others",
        "root ::= a b c a b c
         a ::= \"\" | b c \"x\" | [a-z] a
         b ::= \"\" | a c \"y\" | [a-z] b
         c ::= \"\" | a b \"z\" | [a-z] c",
    ),
    (
        "nothing or brackets on both sides and in the middle",
        "root ::= n root n root n | [a-z]
         n ::= \"\" | \" \" n | \"(\" root \")\"",
    ),
    (
        "hidden double recursion",
        "root ::= a | [a-z ]
         a ::= b b | \"(\" root \")\"
         b ::= c
         c ::= root root? | root \",\" root",
    ),
    (
        "rules that mention all others on all sides",
        "root ::= a \".\"
         a ::= b a c | [a-z] | \"\"
         b ::= c a b | \"x\" | \"\"
         c ::= a b c | \"y\" | \"\"",
    ),
    (
        "triple recursion",
        "root ::= root root root | \"(\" root \")\" | [a-z]?",
    ),
    (
        "triple recursion with two in between",
        "root ::= root \"a\" root n root | n
         n ::= \"\" | [ab] | \"(\" root n \")\"",
    ),
    (
        "unit cycles",
        "root ::= a | b
         a ::= b | root | \"(\" a b \")\" | [a-z]
         b ::= a | root a | \"\" | \"[\" b a \"]\"",
    ),
    (
        "optional parts within optional parts",
        "root ::= ((\"a\"? \"b\"?)? (\"c\"? \"a\"?)? root?)? (\"a\" | \"b\")? root? (\"(\" root \")\")?",
    ),
    (
        "stars within stars",
        "root ::= ((x* y*)* (y* x*)*)* \".\"
         x ::= [a-z] | \"(\" root \")\" | \"\"
         y ::= [a-m] | \"(\" root \")\" | x",
    ),
    (
        "stars of what may be empty within its own rule",
        "root ::= ((\"\" | [a-c])* (\"\" | \"(\" root* \")\")*)* (root \")\")*",
    ),
    (
        "palindromes with anything around them",
        "root ::= n \"a\" root \"a\" n | n \"b\" root \"b\" n | n
         n ::= \"\" | [ab] n | n [ab] | \"(\" root \")\"",
    ),
    (
        "palindromes of palindromes",
        "root ::= (\"a\" root \"a\" | \"b\" root \"b\" | root root | \"\") (\"a\" root \"b\" | \"\")",
    ),
    (
        "any letter, nothing on either side",
        "root ::= n root n | [^x]
         n ::= \"\" | [^y] n | n n | root n",
    ),
    (
        "hidden left recursion behind three parts",
        "root ::= n n n root \"a\" | root n n root | [a-d]
         n ::= m? m?
         m ::= \"\" | \"b\" | n root n",
    ),
    (
        "letters from both ends and none",
        "root ::= [a-d] root [a-d] | root? root? [a-d] | \"\"",
    ),
    (
        "counted parts that may be empty",
        "root ::= (n{0,3} root? n{2,5}){1,4} | [a-d]
         n ::= \"\" | [ab] | \"(\" root \")\"",
    ),
    (
        "statements and expressions side by side",
        "root ::= stmt*
         stmt ::= \"(\" e \") \" stmt | \"(\" e \") \" stmt \"b \" stmt | block | id \" c \" e | e \" \"
         block ::= \"(\" stmt* \")\"
         e ::= e op e | e \"(\" e \")\" | \"(\" e \")\" | id | e \"d\" id | \"a\" e | e e
         op ::= \" a \" | \"a\" | \"b\"
         id ::= [a-d] [a-d]*",
    ),
    (
        "three rules that begin with each other behind nothing",
        "root ::= (r1+ (r1+ | [ab] r1 \"(\"?)* [ab])? (r4 root [b-d()]*)? r3+ | \"a\"
         r4 ::= \"(\" | r1* root* | \")\"? \")\" r2
         r1 ::= r1? | [a-d]
         r2 ::= r1+ | \"a\"
         r3 ::= r1 (r1 root r1?) | \")\"+ r2 | \"(\"",
    ),
    (
        "lists of lists of what may be empty",
        "root ::= l l
         l ::= l? i l? | \"\"
         i ::= \"(\" l l \")\" | [ab]? l [cd]? | \"\"",
    ),
    (
        "four rules that may be empty in one circle",
        "root ::= r0 r1 r2 r3 root? r0
         r0 ::= \"\" | r1 r2 [a-d] r3
         r1 ::= \"\" | r2 r3 [a-d] r0
         r2 ::= \"\" | r3 r0 \"(\" r1 \")\"
         r3 ::= \"\" | r0 r1 [ab] r2 | root \")\"",
    ),
];

/// The end of the text, every byte, all texts of two and three of some letters, and long runs.
fn vocabulary() -> Arc<Vocabulary> {
    let letters = || b"abcd() ".iter().copied();
    let bytes = (0..=255u8).map(|byte| vec![byte]);
    let pairs = letters().flat_map(|a| letters().map(move |b| vec![a, b]));
    let triples = letters().flat_map(|a| letters().flat_map(move |b| letters().map(move |c| vec![a, b, c])));
    let runs = letters().flat_map(|a| [8, 16, 64].map(|n| vec![a; n]));
    let tokens = bytes.chain(pairs).chain(triples).chain(runs);
    let tokens = [None].into_iter().chain(tokens.map(Some));
    Arc::new(Vocabulary::new(tokens, &[EOS]).expect("700 tokens"))
}

/// A random token that is allowed, most of them not the end.
fn choose(allowed: &[u32], random: &mut Random) -> u32 {
    let longer = allowed.iter().copied().filter(|token| *token != EOS);
    let longer: Vec<u32> = longer.collect();
    let from = if longer.is_empty() { allowed } else { &longer };
    from[random.below(from.len())]
}

#[test]
fn no_token_of_any_grammar_costs_more_than_a_bound() {
    /// What one mask and one token may add to the tables.
    const MAX_BYTES: usize = 6 << 20;
    const N_TOKENS: usize = 25;
    let vocabulary = vocabulary();
    let limits = Limits {
        // The tables are never begun anew.
        max_cache_bytes: usize::MAX,
        max_lazy_states: usize::MAX,
        ..Limits::default()
    };
    for (name, text) in GRAMMARS {
        let grammar = Grammar::compile_gbnf(&vocabulary, text, &limits).expect(name);
        for seed in 0..2 {
            let (mut random, mut matcher) = (Random(seed), grammar.matcher());
            for n in 0..N_TOKENS {
                let what = format!("{name}, seed {seed}, token {n}");
                let before = grammar.n_bytes();
                let mask = matcher.mask();
                let allowed: Vec<u32> = (0..mask.n_vocab()).filter(|token| mask.allows(*token)).collect();
                assert!(!allowed.is_empty(), "{what}: nothing may follow");
                let token = choose(&allowed, &mut random);
                matcher.advance(token).expect(&what);
                let n_more = grammar.n_bytes() - before;
                assert!(n_more <= MAX_BYTES, "{what}: {n_more} bytes more");
                if token == EOS {
                    break;
                }
            }
        }
    }
}

#[test]
fn what_is_given_up_does_not_depend_on_other_outputs() {
    const N_TOKENS: usize = 25;
    let vocabulary = vocabulary();
    for (name, text) in GRAMMARS {
        let compiled = || Grammar::compile_gbnf(&vocabulary, text, &Limits::default()).expect(name);
        let (fresh, known) = (compiled(), compiled());
        for seed in 10..11 {
            let (mut random, mut other) = (Random(seed), known.matcher());
            for _ in 0..N_TOKENS {
                let mask = other.mask();
                let allowed: Vec<u32> = (0..mask.n_vocab()).filter(|token| mask.allows(*token)).collect();
                let token = choose(&allowed, &mut random);
                other.advance(token).expect("the mask allows it");
                if token == EOS {
                    break;
                }
            }
        }
        let (mut fresh, mut known, mut random) = (fresh.matcher(), known.matcher(), Random(1));
        for n in 0..N_TOKENS {
            let mask = fresh.mask();
            assert_eq!(mask, known.mask(), "{name}, token {n}");
            let allowed: Vec<u32> = (0..mask.n_vocab()).filter(|token| mask.allows(*token)).collect();
            let token = choose(&allowed, &mut random);
            fresh.advance(token).expect("the mask allows it");
            known.advance(token).expect("the mask allows it");
            if token == EOS {
                break;
            }
        }
    }
}
