//! Outputs that must look like something: always valid when they end by themselves, and the same with and
//! without jump-ahead, which must be worth having.

#![expect(clippy::print_stdout, reason = "a measurement says what it found")]

use std::sync::Arc;

use arbora::grammars::Grammars;
use arbora::wire::constraint::{Constraint, Source};
use arbora::workers::Workers;
use arbora_constrained::Whitespace;
use arbora_kernels::cpu::Isa;
use arbora_runtime::grammar::GrammarState;
use arbora_runtime::request::{FinishReason, SamplingParams};
use arbora_runtime::tokenizer::SpecialTokens;
use jsonschema::Validator;
use serde_json::Value;

use crate::server::{Ask, MODEL, Outcome, Server};

/// Schemas as clients send them, with what to ask for. Strings are bounded, so that a small model comes to an
/// end.
const SCHEMAS: [(&str, &str); 10] = [
    (
        "Describe a person.",
        r#"{"type": "object", "properties": {"first_name": {"type": "string", "maxLength": 16},
            "last_name": {"type": "string", "maxLength": 16}, "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "is_student": {"type": "boolean"}},
            "required": ["first_name", "last_name", "age", "is_student"], "additionalProperties": false}"#,
    ),
    (
        "Plan a meeting.",
        r#"{"type": "object", "properties": {"event_name": {"type": "string", "maxLength": 24},
            "event_date": {"type": "string", "format": "date"},
            "participants": {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 1, "maxItems": 3}},
            "required": ["event_name", "event_date", "participants"], "additionalProperties": false}"#,
    ),
    (
        "Is this review friendly? The food was great.",
        r#"{"type": "object", "properties": {"sentiment": {"enum": ["positive", "negative", "neutral"]},
            "confidence": {"type": "number", "minimum": 0, "maximum": 1}},
            "required": ["sentiment", "confidence"], "additionalProperties": false}"#,
    ),
    (
        "Write a small invoice.",
        r##"{"type": "object", "properties": {"invoice_number": {"type": "string", "pattern": "^INV-[0-9]{4}$"},
            "currency": {"const": "EUR"}, "line_items": {"type": "array", "items": {"$ref": "#/$defs/line_item"},
            "minItems": 1, "maxItems": 2}}, "required": ["invoice_number", "currency", "line_items"],
            "additionalProperties": false, "$defs": {"line_item": {"type": "object", "properties":
            {"description": {"type": "string", "maxLength": 16}, "quantity": {"type": "integer", "minimum": 1, "maximum": 99}},
            "required": ["description", "quantity"], "additionalProperties": false}}}"##,
    ),
    (
        "Name three colours.",
        r#"{"type": "array", "items": {"enum": ["red", "green", "blue", "yellow"]}, "minItems": 3, "maxItems": 3}"#,
    ),
    (
        "Draw a small tree.",
        r##"{"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties":
            {"value": {"type": "integer", "minimum": 0, "maximum": 9},
            "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}},
            "required": ["value", "children"], "additionalProperties": false}}}"##,
    ),
    (
        "Call the weather service for Paris.",
        r#"{"type": "object", "properties": {"function_name": {"const": "get_current_weather"},
            "arguments": {"type": "object", "properties": {"location": {"type": "string", "maxLength": 16},
            "temperature_unit": {"enum": ["celsius", "fahrenheit"]}}, "required": ["location", "temperature_unit"],
            "additionalProperties": false}}, "required": ["function_name", "arguments"], "additionalProperties": false}"#,
    ),
    (
        "How old is the sun?",
        r#"{"anyOf": [{"type": "object", "properties": {"answer": {"type": "integer", "minimum": 0, "maximum": 99999}},
            "required": ["answer"], "additionalProperties": false}, {"type": "object", "properties":
            {"error_message": {"type": "string", "maxLength": 24}}, "required": ["error_message"],
            "additionalProperties": false}]}"#,
    ),
    (
        "Give the coordinates of a city.",
        r#"{"type": "object", "properties": {"latitude": {"type": "number", "minimum": -90, "maximum": 90},
            "longitude": {"type": "number", "minimum": -180, "maximum": 180}},
            "required": ["latitude", "longitude"], "additionalProperties": false}"#,
    ),
    (
        "Describe a bank account.",
        r#"{"type": "object", "properties": {"account_holder": {"type": ["string", "null"], "maxLength": 16},
            "balance_in_cents": {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100000},
            "transactions": {"type": "array", "maxItems": 0}},
            "required": ["account_holder", "balance_in_cents"], "additionalProperties": false}"#,
    ),
];

const CONCURRENCY: usize = 8;
const MAX_TOKENS: usize = 160;

fn begin(grammars: &Grammars, text: &str, whitespace: Whitespace) -> GrammarState {
    let constraint = Constraint {
        param: "schema".to_owned(),
        source: Source::JsonSchema {
            text: text.to_owned(),
            whitespace,
        },
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    runtime
        .block_on(grammars.begin(&constraint, 0))
        .expect("the schema compiles")
        .state
}

/// Greedy and seeded requests over all schemas.
fn asks(n: usize, whitespace: Whitespace) -> Vec<Ask> {
    let tokenizer = Arc::clone(&MODEL.tokenizer);
    let stops = tokenizer.stop_token_ids().to_vec();
    let n_vocab = MODEL.file.config().n_vocab;
    let workers = Workers::start("work", 1, 8).expect("a thread");
    let grammars = Grammars::new((tokenizer, n_vocab, &stops), 1, workers);
    let states: Vec<GrammarState> = SCHEMAS
        .iter()
        .map(|(_, schema)| begin(&grammars, schema, whitespace))
        .collect();
    let ask = |idx: usize| {
        let (question, schema) = SCHEMAS[idx % SCHEMAS.len()];
        let text = format!(
            "<|im_start|>user\n{question} Answer as JSON with this schema: {schema}<|im_end|>\n\
             <|im_start|>assistant\n"
        );
        let round = idx / SCHEMAS.len();
        Ask {
            prompt: MODEL
                .tokenizer
                .encode(&text, SpecialTokens::Parse)
                .expect("the text can be encoded"),
            sampling: SamplingParams {
                temperature: [0.0, 0.7, 1.0][round % 3],
                seed: idx as u64,
                ..SamplingParams::default()
            },
            max_tokens: MAX_TOKENS,
            grammar: Some(states[idx % SCHEMAS.len()].clone()),
        }
    };
    (0..n).map(ask).collect()
}

fn served(asks: &[Ask], max_draft_rows: usize) -> Vec<Outcome> {
    let server = Server::start(Isa::best(), 2, |config| {
        config.max_running = CONCURRENCY;
        config.max_draft_rows = max_draft_rows;
    });
    server.crowd(asks)
}

/// Panics where an output that ended by itself is not what its schema says; returns how many did.
fn validated(outcomes: &[Outcome]) -> usize {
    let validators = SCHEMAS.map(|(_, schema)| {
        let schema: Value = serde_json::from_str(schema).expect("a schema is JSON");
        let options = jsonschema::options().should_validate_formats(true);
        options.build(&schema).expect("a schema")
    });
    let is_valid = |validator: &Validator, text: &str| {
        let value = serde_json::from_str(text).ok();
        value.is_some_and(|value: Value| validator.is_valid(&value))
    };
    let mut n_ended = 0;
    for (idx, outcome) in outcomes.iter().enumerate() {
        let text = MODEL.tokenizer.decode(&outcome.tokens);
        match outcome.finished.reason {
            FinishReason::Length => continue,
            FinishReason::StopToken(_) | FinishReason::Complete => {}
            ref other => panic!("request {idx}: {other:?}: {text}"),
        }
        let text = text.trim_end_matches("<|im_end|>");
        assert!(
            is_valid(&validators[idx % SCHEMAS.len()], text),
            "request {idx}: {text}"
        );
        n_ended += 1;
    }
    n_ended
}

/// Serves `n` requests without and with jump-ahead; returns the share of forward passes it saves.
fn jump_ahead_saves(n: usize, whitespace: Whitespace) -> f64 {
    let asks = asks(n, whitespace);
    let plain = served(&asks, 0);
    let jumped = served(&asks, 64);
    crate::assert_same(&plain, &jumped, "with jump-ahead");
    let n_ended = validated(&jumped);
    assert!(n_ended * 10 > n * 8, "{n_ended} of {n} came to an end");
    assert_eq!(crate::total(&plain, |f| f.usage.drafted_tokens), 0);
    let n_accepted = crate::total(&jumped, |f| f.usage.accepted_tokens);
    let n_drafted = crate::total(&jumped, |f| f.usage.drafted_tokens);
    let n_tokens = crate::total(&jumped, |f| f.usage.completion_tokens);
    let share = n_accepted as f64 / n_tokens as f64;
    println!(
        "{whitespace:?} whitespace: {n_ended} of {n} ended and are valid; {n_tokens} tokens, \
         {n_drafted} drafted, {n_accepted} accepted: {:.1} % of the forward passes saved",
        share * 100.0
    );
    share
}

#[test]
fn constrained_outputs_are_valid_and_jump_ahead_changes_nothing_but_the_work() {
    let flexible = jump_ahead_saves(200, Whitespace::Any);
    assert!(flexible >= 0.10, "{flexible}");
    let compact = jump_ahead_saves(40, Whitespace::None);
    assert!(compact >= 0.18, "{compact}");
}
