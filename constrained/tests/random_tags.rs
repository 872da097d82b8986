//! Random structural tags: masks against brute force, whatever the limits and however often the tables start
//! anew.

mod walk;

use arbora_constrained::{Constraint, Grammar, Limits, SchemaOptions, Whitespace};
use walk::{
    EOS, Random, accepts, accepts_tokens, byte_token, check_masks, check_token_masks, first_special,
    vocabulary,
};

const MARKERS: [&str; 9] = ["<", "<t", "<tool", "a", "ab", "ba", "}\n", "é", "\u{1f600}"];
const ENDS: [&str; 6] = [">", "</tool_call>", "b", "12", "\"}", "é"];

fn pick<'a>(random: &mut Random, from: &[&'a str]) -> &'a str {
    from[random.below(from.len())]
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\\\"").replace('\n', "\\n"))
}

/// Some of `from`, separated by commas.
fn some(random: &mut Random, from: &[&str], n_most: usize) -> String {
    let n = random.below(n_most + 1);
    let texts: Vec<String> = (0..n).map(|_| quoted(pick(random, from))).collect();
    texts.join(",")
}

/// A text, or a special token.
fn bracket(random: &mut Random, from: &[&str]) -> String {
    if random.below(3) > 0 {
        return quoted(pick(random, from));
    }
    let token = quoted(pick(random, &walk::common::SPECIAL));
    format!(r#"{{"type":"token","token":{token}}}"#)
}

fn tag(random: &mut Random, begin: &str, depth: usize) -> String {
    let (content, end) = (format(random, depth), bracket(random, &ENDS));
    format!(r#"{{"type":"tag","begin":{begin},"content":{content},"end":{end}}}"#)
}

fn flags(random: &mut Random) -> String {
    let (at_least_one, stop) = (random.below(4) == 0, random.below(4) == 0);
    format!(r#""at_least_one":{at_least_one},"stop_after_first":{stop}"#)
}

fn format(random: &mut Random, depth: usize) -> String {
    let kind = if depth == 0 {
        random.below(4)
    } else {
        4 + random.below(6)
    };
    let below = depth.saturating_sub(1);
    match kind {
        0 => format!(
            r#"{{"type":"const_string","value":{}}}"#,
            quoted(pick(random, &ENDS))
        ),
        1 => r#"{"type":"regex","pattern":"(?:a|ab|<t)*"}"#.to_owned(),
        2 => r#"{"type":"json_schema","json_schema":{"enum":["a",12,{"name":"b"}]}}"#.to_owned(),
        3 => format!(
            r#"{{"type":"any_text","excludes":[{}]}}"#,
            some(random, &MARKERS, 2)
        ),
        4 => {
            let begin = bracket(random, &MARKERS);
            tag(random, &begin, below)
        }
        5 | 6 => {
            let elements = [format(random, below), format(random, below)].join(",");
            let kind = if kind == 5 { "sequence" } else { "or" };
            format!(r#"{{"type":"{kind}","elements":[{elements}]}}"#)
        }
        7 => {
            let rules = [pick(random, &MARKERS), pick(random, &MARKERS)].map(quoted);
            let rules = rules.map(|rule| format!("[{rule},{}]", format(random, below)));
            let is_loop = random.below(2) == 0;
            let excludes = some(random, &MARKERS, 1);
            format!(
                r#"{{"type":"dispatch","rules":[{}],"loop":{is_loop},"excludes":[{excludes}]}}"#,
                rules.join(",")
            )
        }
        8 => {
            let triggers = [pick(random, &MARKERS), pick(random, &MARKERS)];
            let tags = triggers.map(|trigger| {
                let begin = quoted(&format!("{trigger}{}", pick(random, &["", "a", ">"])));
                tag(random, &begin, below)
            });
            let triggers = triggers.map(quoted).join(",");
            format!(
                r#"{{"type":"triggered_tags","triggers":[{triggers}],"tags":[{}],{}}}"#,
                tags.join(","),
                flags(random)
            )
        }
        _ => format!(
            r#"{{"type":"sequence","elements":[{{"type":"star","content":{}}},{}]}}"#,
            format(random, below),
            format(random, 0)
        ),
    }
}

fn source(seed: u64) -> String {
    let format = format(&mut Random(seed), 1 + seed as usize % 3);
    format!(r#"{{"type":"structural_tag","format":{format}}}"#)
}

fn compile(source: &str, limits: &Limits) -> Option<Grammar> {
    let options = SchemaOptions {
        whitespace: Whitespace::None,
        ..SchemaOptions::default()
    };
    let constraint = Constraint::StructuralTag {
        text: source,
        options,
    };
    Grammar::compile(&vocabulary(), &constraint, limits).ok()
}

#[test]
fn masks_of_random_tags_are_exact() {
    let mut n_compiled = 0;
    for seed in 0..300 {
        let source = source(seed);
        // Some contradict themselves, as markers that contain each other do.
        if let Some(grammar) = compile(&source, &Limits::default()) {
            check_masks(&grammar, &format!("seed {seed}: {source}"));
            n_compiled += 1;
        }
    }
    assert!(n_compiled > 150, "{n_compiled} compiled");
}

#[test]
fn tables_that_start_anew_change_no_mask() {
    let mut n_equal = 0;
    for seed in 0..150 {
        let source = source(seed);
        let Some(usual) = compile(&source, &Limits::default()) else {
            continue;
        };
        let tight = Limits {
            max_lazy_states: 6,
            ..Limits::default()
        };
        let tight = compile(&source, &tight).expect("as above");
        let (mut usual, mut tight) = (usual.matcher(), tight.matcher());
        let mut random = Random(seed);
        for _ in 0..30 {
            let mask = usual.mask();
            assert_eq!(mask, tight.mask(), "seed {seed}: {source}");
            n_equal += 1;
            let allowed: Vec<u32> = (0..mask.n_vocab()).filter(|token| mask.allows(*token)).collect();
            let token = allowed[random.below(allowed.len())];
            usual.advance(token).expect("the mask allows it");
            tight.advance(token).expect("the mask allows it");
            if token == EOS {
                break;
            }
        }
    }
    assert!(n_equal > 1_000, "{n_equal} equal");
}

/// A token taken by its number, a marker in the middle of a token and one split over tokens, all found again
/// after the states were let go.
#[test]
fn free_text_is_found_again_after_a_long_rollback() {
    let source = r#"{"type":"structural_tag","format":{"type":"sequence","elements":[
        {"type":"tag","begin":{"type":"token","token":"<|call|>"},"content":{"type":"any_text"},"end":"</think>"},
        {"type":"triggered_tags","triggers":["<t"],"tags":[
            {"begin":"<tool>","content":{"type":"const_string","value":"a"},"end":{"type":"token","token":"<|end|>"}}]}]}}"#;
    let limits = Limits {
        max_lazy_states: 4,
        ..Limits::default()
    };
    let grammar = compile(source, &limits).expect("valid");
    let (call, end) = (first_special(), first_special() + 1);
    let mut tokens = vec![call];
    tokens.extend("x</think>".bytes().map(byte_token));
    for _ in 0..40 {
        tokens.extend("é <tool>a".bytes().map(byte_token));
        tokens.push(end);
    }
    assert!(accepts_tokens(&grammar, &tokens));
    assert!(!accepts(&grammar, "x</think>"));
    check_token_masks(&grammar, source);
    let (mut matcher, mut replayed) = (grammar.matcher(), grammar.matcher());
    for token in &tokens {
        matcher.mask();
        matcher.advance(*token).expect("it is allowed");
    }
    let n_kept = 25;
    matcher
        .rollback(tokens.len() - n_kept)
        .expect("so many were taken");
    for token in &tokens[..n_kept] {
        replayed.advance(*token).expect("it is allowed");
    }
    assert_eq!(matcher.mask(), replayed.mask());
    for token in &tokens[n_kept..] {
        matcher.advance(*token).expect("it was taken before");
    }
    assert!(matcher.is_accepting());
}
