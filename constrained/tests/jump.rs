//! Jump-ahead does not change the distribution. A toy model with few outputs: the probability of each one, by
//! plain sampling and with forced text proposed as a draft, by going through all that can happen.

use std::collections::BTreeMap;
use std::sync::Arc;

use arbora_constrained::{Grammar, Limits, Matcher, SchemaOptions, Vocabulary, Whitespace};

const TOKENS: [&str; 24] = [
    "", "a", "b", "c", "ab", "bc", "abc", "x", "y", "xy", "\"", "\":", "{\"", "{", "}", "\"}", ":", ",",
    ",\"", "1", "2", "12", "c\"", "21",
];
const EOS: u32 = 0;

fn vocabulary() -> Arc<Vocabulary> {
    let tokens = TOKENS.map(|token| (!token.is_empty()).then(|| token.as_bytes().to_vec()));
    Arc::new(Vocabulary::new(tokens, &[EOS]).expect("a few tokens"))
}

/// The longest token first; the only tokenisation that this model's training text has.
fn tokenise(text: &[u8]) -> Vec<u32> {
    let (mut at, mut tokens) = (0, Vec::new());
    while at < text.len() {
        let fits = |token: &&(u32, &str)| !token.1.is_empty() && text[at..].starts_with(token.1.as_bytes());
        let all: Vec<(u32, &str)> = (0..).zip(TOKENS).collect();
        let longest = all.iter().filter(fits).max_by_key(|(_, text)| text.len());
        let (token, text) = longest.expect("every byte of these texts is a token");
        tokens.push(*token);
        at += text.len();
    }
    tokens
}

/// The model's probabilities after `prefix`, the masked tokens left out.
fn distribution(prefix: &[u32], matcher: &mut Matcher) -> Vec<(u32, f64)> {
    let mask = matcher.mask();
    let weight = |token: u32| {
        let all = prefix.iter().chain([&token]);
        let hash = all.fold(14_695_981_039_346_656_037u64, |hash, token| {
            (hash ^ u64::from(*token + 1)).wrapping_mul(1_099_511_628_211)
        });
        ((hash >> 40) as f64 / f64::from(1 << 24) * 4.0).exp()
    };
    let allowed: Vec<u32> = (0..mask.n_vocab()).filter(|token| mask.allows(*token)).collect();
    let total: f64 = allowed.iter().map(|token| weight(*token)).sum();
    allowed
        .into_iter()
        .map(|token| (token, weight(token) / total))
        .collect()
}

type Outputs = BTreeMap<Vec<u32>, f64>;

fn plain(matcher: &Matcher, prefix: &mut Vec<u32>, probability: f64, outputs: &mut Outputs) {
    let mut here = matcher.clone();
    for (token, share) in distribution(prefix, &mut here) {
        let mut next = matcher.clone();
        next.advance(token).expect("the mask allows it");
        prefix.push(token);
        if token == EOS {
            *outputs.entry(prefix.clone()).or_default() += probability * share;
        } else {
            plain(&next, prefix, probability * share, outputs);
        }
        prefix.pop();
    }
}

/// As an engine does it: the draft is taken to get the masks of all its rows, taken back, and each row is
/// sampled until one differs. A mask with one token is committed without the model.
fn with_drafts(
    matcher: &mut Matcher,
    prefix: &[u32],
    probability: f64,
    outputs: &mut Outputs,
    n_saved: &mut usize,
) {
    if prefix.last() == Some(&EOS) {
        *outputs.entry(prefix.to_vec()).or_default() += probability;
        return;
    }
    if let Some([token]) = matcher.mask().ids() {
        let mut next = matcher.clone();
        next.advance(*token).expect("the mask allows it");
        *n_saved += 1;
        return with_drafts(
            &mut next,
            &[prefix, &[*token]].concat(),
            probability,
            outputs,
            n_saved,
        );
    }
    let recent = &prefix[prefix.len().saturating_sub(4)..];
    let draft = matcher.forced(recent, tokenise);
    let mut rows = Vec::new();
    for at in 0..=draft.len() {
        let before = [prefix, &draft[..at]].concat();
        rows.push(distribution(&before, matcher));
        if let Some(token) = draft.get(at) {
            assert!(
                !matcher.is_accepting(),
                "forced {draft:?} at {at} after {prefix:?}, where it may end"
            );
            matcher.advance(*token).expect("a draft is allowed");
        }
    }
    matcher.rollback(draft.len()).expect("the draft was taken");
    let text = |tokens: &[u32]| {
        tokens
            .iter()
            .map(|token| TOKENS[*token as usize])
            .collect::<String>()
    };
    let whole = text(&[recent, &draft].concat());
    if !draft.is_empty() {
        assert_eq!(
            tokenise(whole.as_bytes()),
            [recent, &draft].concat(),
            "not as the tokenizer has it"
        );
    }
    let mut reached = probability;
    for (at, row) in rows.iter().enumerate() {
        for (token, share) in row {
            if draft.get(at) == Some(token) {
                continue;
            }
            let taken = [prefix, &draft[..at], &[*token]].concat();
            let mut next = matcher.clone();
            taken[prefix.len()..]
                .iter()
                .for_each(|token| next.advance(*token).expect("the mask allows it"));
            with_drafts(&mut next, &taken, reached * share, outputs, n_saved);
        }
        if let Some(token) = draft.get(at) {
            let (_, share) = row
                .iter()
                .find(|(allowed, _)| allowed == token)
                .expect("a draft is allowed");
            reached *= share;
            *n_saved += 1;
        }
    }
}

fn compare(grammar: &Grammar, what: &str) -> usize {
    let (mut expected, mut found) = (Outputs::new(), Outputs::new());
    plain(&grammar.matcher(), &mut Vec::new(), 1.0, &mut expected);
    let mut n_saved = 0;
    with_drafts(&mut grammar.matcher(), &[], 1.0, &mut found, &mut n_saved);
    let total: f64 = expected.values().sum();
    assert!((total - 1.0).abs() < 1e-9, "{what}: {total}");
    assert!(expected.len() > 20, "{what}: {} outputs", expected.len());
    assert_eq!(
        expected.keys().collect::<Vec<_>>(),
        found.keys().collect::<Vec<_>>(),
        "{what}"
    );
    for (output, probability) in &expected {
        let other = found[output];
        assert!(
            (probability - other).abs() < 1e-9,
            "{what}: {output:?} {probability} {other}"
        );
    }
    n_saved
}

#[test]
fn outputs_have_the_same_probability_with_and_without_drafts() {
    let (vocabulary, limits) = (vocabulary(), Limits::default());
    for regex in [
        "(ab|abc|b)xy(1|2)?",
        "abc(x|y)abc[12]{0,2}",
        "(abc)?{1,2}(xy|abc,)12",
        "abcabcab(c|,)",
    ] {
        let grammar = Grammar::compile_regex(&vocabulary, regex, &limits).expect(regex);
        compare(&grammar, regex);
    }
    let options = SchemaOptions {
        whitespace: Whitespace::None,
        ..SchemaOptions::default()
    };
    let schema = r#"{"type":"object","properties":{"abc":{"enum":[1,12,21]},"bc":{"enum":["ab","x"]}},
        "required":["abc"],"additionalProperties":false}"#;
    let grammar = Grammar::compile_json_schema(&vocabulary, schema, &options, &limits).expect("valid");
    assert!(compare(&grammar, schema) > 0, "nothing was saved");
}

#[test]
fn a_draft_that_could_be_tokenised_otherwise_is_cut() {
    let (vocabulary, limits) = (vocabulary(), Limits::default());
    // After ab either c or a comma: with c, abc would be one token, so that ab is no part of a draft.
    let grammar = Grammar::compile_regex(&vocabulary, "xyab(c|,)", &limits).expect("valid");
    assert_eq!(grammar.matcher().forced(&[], tokenise), tokenise(b"xy"));
    // The last token before would be another one with what is forced.
    let mut matcher = Grammar::compile_regex(&vocabulary, "xyabc", &limits)
        .expect("valid")
        .matcher();
    for token in tokenise(b"xya") {
        matcher.advance(token).expect("allowed");
    }
    assert_eq!(matcher.forced(&tokenise(b"xya"), tokenise), [] as [u32; 0]);
}
