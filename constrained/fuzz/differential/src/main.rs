//! Masks compared with llguidance's on generated schemas: where both compile, every difference has a rule
//! below that says why, or the run fails.
//!
//! ```text
//! cargo run --release -- [SEED [SCHEMAS]]
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use arbora_constrained::{Grammar, Limits, SchemaOptions, Vocabulary, Whitespace};
use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

/// Why a token may be allowed by one and not by the other, judged by the schema and the token's text.
const RULES: [(&str, fn(&Difference<'_>) -> bool); 3] = [
    (
        "ours may escape what is not ASCII in a key, theirs writes it as it is",
        |it| it.is_ours && it.text == b"\\",
    ),
    (
        "ours writes zero as -0 too where zero is the minimum, theirs does not",
        |it| it.is_ours && [&b"-"[..], b"-0"].contains(&it.text) && it.schema.contains("\"minimum\":0"),
    ),
    (
        "ours has DEL in strings as JSON allows it, theirs wants it escaped",
        |it| it.is_ours && it.text.contains(&0x7f),
    ),
];

struct Difference<'a> {
    schema: &'a str,
    text: &'a [u8],
    /// Allowed by ours, not by theirs.
    is_ours: bool,
}

const EOS: u32 = 256;

fn tokens() -> Vec<Vec<u8>> {
    let mut tokens: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
    tokens.push(Vec::new());
    for text in [
        "\"a",
        "a\"",
        "\",\"",
        "\":",
        "{\"",
        "\"}",
        "}}",
        "[[",
        "]]",
        "true",
        "null",
        "12",
        "-1",
        "0.",
        "ab",
        "abc",
        "\"name\":",
        "é",
        "日本",
        "a\",",
        "0,1",
        "e1",
        "]}",
        "},{\"",
        "\"],",
        "x\"}",
        "20",
        "-0",
        "00",
        "ba",
        "]}]",
    ] {
        tokens.push(text.as_bytes().to_vec());
    }
    tokens
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

fn schema(random: &mut Random, depth: usize) -> Value {
    let low = random.below(40) as i64 - 20;
    let n = random.below(4);
    match random.below(if depth == 0 { 9 } else { 13 }) {
        0 => json!({"type": "string"}),
        1 => json!({"type": "string", "minLength": n, "maxLength": n + random.below(5)}),
        2 => json!({"type": "integer"}),
        3 => json!({"type": "integer", "minimum": low, "maximum": low + random.below(300) as i64}),
        4 => json!({"type": "number"}),
        5 => json!({"enum": ["a", "ab", "abc", null, true, "x\"y"]}),
        6 => json!({"type": "boolean"}),
        7 => json!({"type": "string", "pattern": "^[a-c]{1,3}(x|yz)?$"}),
        8 => json!({"const": {"a": [1, "b"]}}),
        9 => json!({"type": "array", "items": schema(random, depth - 1), "minItems": n, "maxItems": n + 2}),
        10 => json!({"anyOf": [schema(random, depth - 1), {"type": "null"}]}),
        _ => {
            let mut properties = serde_json::Map::new();
            let mut required = Vec::new();
            for name in ["name", "a", "ab", "é"] {
                if random.below(3) > 0 {
                    properties.insert(name.to_owned(), schema(random, depth - 1));
                    if random.below(2) == 0 {
                        required.push(name);
                    }
                }
            }
            json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
        }
    }
}

#[derive(Default)]
struct Outcome {
    n_both: usize,
    n_ours_refused: usize,
    n_theirs_refused: usize,
    n_masks: usize,
    n_equal: usize,
    by_rule: BTreeMap<&'static str, usize>,
    unexplained: Vec<String>,
}

fn compare(
    source: &Value,
    vocabulary: &Arc<Vocabulary>,
    factory: &ParserFactory,
    random: &mut Random,
    outcome: &mut Outcome,
) {
    let options = SchemaOptions {
        whitespace: Whitespace::None,
        ..SchemaOptions::default()
    };
    let text = source.to_string();
    let ours = Grammar::compile_json_schema(vocabulary, &text, &options, &Limits::default());
    let mut theirs = source.clone();
    theirs["x-guidance"] = json!({"whitespace_flexible": false, "item_separator": ",", "key_separator": ":"});
    let parser = factory.create_parser(TopLevelGrammar::from_json_schema(theirs));
    let theirs = Matcher::new(parser);
    let Ok(ours) = ours else {
        outcome.n_ours_refused += 1;
        return;
    };
    if theirs.is_error() {
        outcome.n_theirs_refused += 1;
        return;
    }
    outcome.n_both += 1;
    for _ in 0..4 {
        let (mut ours, mut theirs, mut before) = (ours.matcher(), theirs.deep_clone(), Vec::new());
        for _ in 0..24 {
            let (our_mask, Ok(their_mask)) = (ours.mask(), theirs.compute_mask_or_eos()) else {
                outcome
                    .unexplained
                    .push(format!("{text}\n  after {}: no mask", show(&before)));
                return;
            };
            outcome.n_masks += 1;
            let (mut both, mut n_different) = (Vec::new(), 0);
            for token in 0..vocabulary.n_vocab() {
                let (a, b) = (our_mask.allows(token), their_mask.is_allowed(token));
                if a && b && token != EOS && !vocabulary.token_bytes(token).contains(&b'\\') {
                    both.push(token);
                }
                if a == b {
                    continue;
                }
                n_different += 1;
                let it = Difference {
                    schema: &text,
                    text: vocabulary.token_bytes(token),
                    is_ours: a,
                };
                match RULES.iter().find(|(_, holds)| holds(&it)) {
                    Some((rule, _)) => *outcome.by_rule.entry(rule).or_default() += 1,
                    None => outcome.unexplained.push(format!(
                        "{text}\n  after {}: {} is allowed by {} only",
                        show(&before),
                        show(it.text),
                        if a { "ours" } else { "theirs" }
                    )),
                }
            }
            outcome.n_equal += usize::from(n_different == 0);
            if both.is_empty() || theirs.is_stopped() {
                break;
            }
            let token = both[random.below(both.len())];
            ours.advance(token).expect("ours allows it");
            if theirs.consume_token(token).is_err() {
                break;
            }
            before.extend_from_slice(vocabulary.token_bytes(token));
        }
    }
}

fn show(bytes: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(bytes))
}

fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .map(|text| text.parse().expect("a number"));
    let seed: u64 = arguments.next().unwrap_or(1);
    let n_schemas = arguments.next().unwrap_or(300);
    let tokens = tokens();
    let special = |(token, bytes): (usize, &Vec<u8>)| (token != EOS as usize).then(|| bytes.clone());
    let vocabulary = Vocabulary::new(tokens.iter().enumerate().map(special), &[EOS]).expect("300 tokens");
    let vocabulary = Arc::new(vocabulary);
    let mut theirs = tokens.clone();
    theirs[EOS as usize] = b"\xff<eos>".to_vec();
    let trie = TokTrie::from(&TokRxInfo::new(theirs.len() as u32, EOS), &theirs);
    let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&env).expect("a factory");
    factory.quiet();
    let mut outcome = Outcome::default();
    for n in 0..n_schemas {
        let mut random = Random(seed.wrapping_mul(1_000_003).wrapping_add(n));
        let source = schema(&mut random, 3);
        compare(&source, &vocabulary, &factory, &mut random, &mut outcome);
    }
    println!(
        "seed {seed}: {n_schemas} schemas, {} compiled by both, {} refused by ours, {} by theirs",
        outcome.n_both, outcome.n_ours_refused, outcome.n_theirs_refused
    );
    println!(
        "{} masks, {} equal; tokens that differ, by rule:",
        outcome.n_masks, outcome.n_equal
    );
    for (rule, n) in &outcome.by_rule {
        println!("{n:8}  {rule}");
    }
    println!("{:8}  without a rule", outcome.unexplained.len());
    for line in outcome.unexplained.iter().take(20) {
        println!("{line}");
    }
    std::process::exit(i32::from(!outcome.unexplained.is_empty()));
}
