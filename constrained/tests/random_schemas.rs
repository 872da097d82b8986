//! Random schemas against the `jsonschema` crate: of instances, valid ones are accepted in one of their
//! spellings and invalid ones in none; of outputs that follow the masks, every one is valid.

#[path = "common/bytes.rs"]
mod bytes;
#[path = "common/random.rs"]
mod random;
#[path = "common/random_json.rs"]
mod random_json;

use std::sync::Arc;

use arbora_constrained::{CompileError, Draft, Grammar, Limits, PropertyOrder, SchemaOptions, Vocabulary};
use bytes::{accepts, vocabulary};
use random::Random;
use random_json::{instance, output, schema_with_definitions, spellings};
use serde_json::{Map, Value, json};

const N_SCHEMAS: u64 = 3_000;
const N_INSTANCES: usize = 40;
const N_OUTPUTS: usize = 6;
/// Spellings tried of one instance; none has more.
const MAX_SPELLINGS: usize = 20_000;

/// Whether every number is short enough to be exact as a floating-point number.
fn has_exact_numbers(text: &str) -> bool {
    let runs = text.split(|c: char| !(c.is_ascii_digit() || "+-.eE".contains(c)));
    runs.into_iter()
        .all(|run| run.len() <= 6 && !run.contains(['e', 'E']))
}

#[derive(Default)]
struct Tally {
    n_compiled: usize,
    n_empty: usize,
    n_valid: usize,
    n_invalid: usize,
    n_outputs: usize,
    wrong: Vec<String>,
}

/// The same in the words of draft 7; what it has no words for is left out.
fn in_draft_7(schema: &Value) -> Value {
    const UNKNOWN: [&str; 4] = [
        "minContains",
        "maxContains",
        "unevaluatedItems",
        "unevaluatedProperties",
    ];
    match schema {
        Value::Object(members) => {
            let mut renamed = Map::new();
            for (keyword, value) in members {
                let keyword = match keyword.as_str() {
                    "dependentSchemas" | "dependentRequired" => "dependencies",
                    "prefixItems" => "items",
                    "items" if members.contains_key("prefixItems") => "additionalItems",
                    unknown if UNKNOWN.contains(&unknown) => continue,
                    other => other,
                };
                renamed.insert(keyword.to_owned(), in_draft_7(value));
            }
            Value::Object(renamed)
        }
        Value::Array(items) => items.iter().map(in_draft_7).collect(),
        other => other.clone(),
    }
}

fn check(seed: u64, draft: Draft, vocabulary: &Arc<Vocabulary>, tally: &mut Tally) {
    let mut random = Random(seed);
    let mut schema = schema_with_definitions(&mut random);
    if draft == Draft::Draft7 {
        schema = in_draft_7(&schema);
    }
    let text = schema.to_string();
    let order = [PropertyOrder::Schema, PropertyOrder::Any][seed as usize % 2];
    let options = SchemaOptions {
        draft,
        order,
        ..SchemaOptions::default()
    };
    let grammar = match Grammar::compile_json_schema(vocabulary, &text, &options, &Limits::default()) {
        Ok(grammar) => Some(grammar),
        Err(CompileError::Empty { .. }) => None,
        Err(CompileError::Unsupported { .. } | CompileError::Limit { .. }) => return,
        Err(error) => panic!("seed {seed}: {error} of {text}"),
    };
    let validator = match draft {
        Draft::Draft2020 => jsonschema::draft202012::new(&schema),
        Draft::Draft7 => jsonschema::draft7::new(&schema),
    };
    let validator = validator.expect("the schema is well-formed");
    tally.n_compiled += 1;
    tally.n_empty += usize::from(grammar.is_none());
    for _ in 0..N_INSTANCES {
        let value = instance(&mut random, 3);
        let is_valid = validator.is_valid(&value);
        let texts = spellings(&value);
        if texts.len() > MAX_SPELLINGS {
            continue;
        }
        let is_accepted = |text: &String| grammar.as_ref().is_some_and(|grammar| accepts(grammar, text));
        let is_any = texts.iter().any(is_accepted);
        // In any order means in each.
        if order == PropertyOrder::Any && is_any && !texts.iter().all(is_accepted) {
            tally
                .wrong
                .push(format!("seed {seed}: not in every order: {value} of {text}"));
        }
        if is_any != is_valid {
            let wrong = format!("seed {seed}: valid {is_valid}, judged otherwise: {value} of {text}");
            tally.wrong.push(wrong);
        }
        tally.n_valid += usize::from(is_valid);
        tally.n_invalid += usize::from(!is_valid);
    }
    let Some(grammar) = grammar else {
        return;
    };
    for _ in 0..N_OUTPUTS {
        let Some(output) = output(&grammar, &mut random, &text).filter(|text| has_exact_numbers(text)) else {
            continue;
        };
        let value: Value = serde_json::from_str(&output).expect("outputs are JSON");
        assert!(
            validator.is_valid(&value),
            "seed {seed}: output {output} of {text}"
        );
        tally.n_outputs += 1;
    }
}

#[test]
fn random_schemas_are_enforced_exactly_or_refused() {
    let vocabulary = vocabulary();
    let mut tally = Tally::default();
    for seed in 0..N_SCHEMAS {
        let draft = if seed % 3 == 0 {
            Draft::Draft7
        } else {
            Draft::Draft2020
        };
        check(seed, draft, &vocabulary, &mut tally);
    }
    let Tally {
        n_compiled,
        n_empty,
        n_valid,
        n_invalid,
        n_outputs,
        wrong,
    } = tally;
    println!(
        "{n_compiled} compiled, {n_empty} empty, {n_valid} valid, {n_invalid} invalid, {n_outputs} outputs"
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // The test would be worth little if most were refused or nothing was valid.
    assert!(n_compiled * 10 > N_SCHEMAS as usize * 8 && n_valid > 20_000 && n_outputs > 5_000);
}

/// What is enforced of a format is never more than the format.
#[test]
fn outputs_of_formats_are_valid() {
    let vocabulary = vocabulary();
    let formats = [
        "date",
        "time",
        "date-time",
        "duration",
        "uuid",
        "ipv4",
        "ipv6",
        "email",
        "idn-email",
        "hostname",
        "uri",
        "uri-reference",
        "iri",
        "iri-reference",
        "uri-template",
        "json-pointer",
        "relative-json-pointer",
    ];
    for format in formats {
        let schema = json!({"type": "string", "format": format});
        let options = SchemaOptions::default();
        let text = schema.to_string();
        let grammar = Grammar::compile_json_schema(&vocabulary, &text, &options, &Limits::default());
        let grammar = grammar.expect("formats are supported");
        let validator = jsonschema::options()
            .should_validate_formats(true)
            .build(&schema)
            .expect("the schema is well-formed");
        let mut n_outputs = 0;
        for seed in 0..600 {
            let Some(output) = output(&grammar, &mut Random(seed), &text) else {
                continue;
            };
            let value: Value = serde_json::from_str(&output).expect("outputs are JSON");
            assert!(validator.is_valid(&value), "{format}, seed {seed}: {output}");
            n_outputs += 1;
        }
        assert!(n_outputs > 100, "{format}: {n_outputs}");
    }
}
