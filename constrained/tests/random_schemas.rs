//! Random schemas against the `jsonschema` crate: of instances, valid ones are accepted in one of their
//! spellings and invalid ones in none; of outputs that follow the masks, every one is valid.

#[path = "common/bytes.rs"]
mod bytes;
#[path = "common/random.rs"]
mod random;

use std::sync::Arc;

use arbora_constrained::{CompileError, Draft, Grammar, Limits, PropertyOrder, SchemaOptions, Vocabulary};
use bytes::{accepts, vocabulary};
use random::Random;
use serde_json::{Map, Value, json};

const N_SCHEMAS: u64 = 3_000;
const N_INSTANCES: usize = 40;
const N_OUTPUTS: usize = 6;
/// Spellings tried of one instance; none has more.
const MAX_SPELLINGS: usize = 20_000;

fn pick<'a, T>(random: &mut Random, list: &'a [T]) -> &'a T {
    &list[random.below(list.len())]
}

fn is_one_in(random: &mut Random, n: usize) -> bool {
    random.below(n) == 0
}

const NAMES: [&str; 4] = ["a", "b", "ab", "c"];
const TEXTS: [&str; 6] = ["", "a", "ab", "b", "bba", "1"];
const PATTERNS: [&str; 5] = ["^a", "b$", "[0-9]", "^.?$", "^(a|b)*$"];
const TYPES: [&str; 7] = [
    "null", "boolean", "integer", "number", "string", "array", "object",
];

fn number(random: &mut Random) -> Value {
    match random.below(6) {
        0 => json!(random.below(30) as f64 / 4.0 - 2.0),
        _ => json!(random.below(7) as i64 - 2),
    }
}

fn instance(random: &mut Random, depth: usize) -> Value {
    match random.below(if depth == 0 { 6 } else { 11 }) {
        0 => Value::Null,
        1 => json!(is_one_in(random, 2)),
        2 | 3 => number(random),
        4 | 5 => json!(*pick(random, &TEXTS)),
        6 | 7 => {
            let n = random.below(4);
            (0..n).map(|_| instance(random, depth - 1)).collect()
        }
        _ => {
            let n = random.below(4);
            let member = |random: &mut Random| {
                let name = (*pick(random, &NAMES)).to_owned();
                (name, instance(random, depth - 1))
            };
            Value::Object((0..n).map(|_| member(random)).collect())
        }
    }
}

fn names(random: &mut Random) -> Value {
    let mut names: Vec<&str> = NAMES.to_vec();
    names.retain(|_| is_one_in(random, 2));
    json!(names)
}

fn schemas(random: &mut Random, depth: usize) -> Value {
    let n = 1 + random.below(3);
    (0..n).map(|_| schema(random, depth)).collect()
}

fn schemas_by(random: &mut Random, names: &[&str], depth: usize) -> Value {
    let mut members = Map::new();
    for _ in 0..1 + random.below(2) {
        members.insert((*pick(random, names)).to_owned(), schema(random, depth));
    }
    Value::Object(members)
}

fn schema(random: &mut Random, depth: usize) -> Value {
    if is_one_in(random, 12) {
        return json!(is_one_in(random, 3));
    }
    let mut members = Map::new();
    for _ in 0..1 + random.below(3) {
        let (keyword, value) = keyword(random, depth);
        if let Some(value) = value {
            members.insert(keyword.to_owned(), value);
        }
    }
    Value::Object(members)
}

const SCALAR: [&str; 14] = [
    "type",
    "type",
    "const",
    "enum",
    "minimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "pattern",
    "required",
    "minProperties",
    "maxProperties",
    "maxItems",
];
const NESTED: [&str; 26] = [
    "properties",
    "properties",
    "additionalProperties",
    "patternProperties",
    "propertyNames",
    "items",
    "prefixItems",
    "contains",
    "allOf",
    "anyOf",
    "anyOf",
    "oneOf",
    "oneOf",
    "not",
    "if",
    "then",
    "else",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedProperties",
    "unevaluatedItems",
    "minContains",
    "maxContains",
    "uniqueItems",
    "minItems",
    "$ref",
];

fn keyword(random: &mut Random, depth: usize) -> (&'static str, Option<Value>) {
    let keyword = if depth == 0 || is_one_in(random, 2) {
        *pick(random, &SCALAR)
    } else {
        *pick(random, &NESTED)
    };
    let below = depth.saturating_sub(1);
    let value = match keyword {
        "type" if is_one_in(random, 3) => {
            let at = random.below(TYPES.len());
            json!([
                TYPES[at],
                TYPES[(at + 1 + random.below(TYPES.len() - 1)) % TYPES.len()]
            ])
        }
        "type" => json!(pick(random, &TYPES)),
        "const" => instance(random, 2),
        "enum" => (0..1 + random.below(4)).map(|_| instance(random, 2)).collect(),
        "minimum" | "exclusiveMaximum" => number(random),
        "multipleOf" => pick(random, &[json!(1), json!(2), json!(0.5), json!(3)]).clone(),
        "minLength" | "minProperties" | "minItems" | "minContains" => json!(random.below(3)),
        "maxLength" | "maxProperties" | "maxItems" | "maxContains" => json!(random.below(4)),
        "pattern" => json!(pick(random, &PATTERNS)),
        "required" => names(random),
        "uniqueItems" => json!(true),
        "properties" | "dependentSchemas" => schemas_by(random, &NAMES, below),
        "patternProperties" => schemas_by(random, &PATTERNS, below),
        "dependentRequired" => json!({ *pick(random, &NAMES): names(random) }),
        "prefixItems" | "allOf" | "anyOf" | "oneOf" => schemas(random, below),
        "$ref" => json!(format!("#/$defs/{}", pick(random, &["x", "y"]))),
        _ => schema(random, below),
    };
    let is_dead = value.as_array().is_some_and(Vec::is_empty) && keyword == "type";
    (keyword, (!is_dead).then_some(value))
}

fn spellings(value: &Value) -> Vec<String> {
    let join = |parts: &[Vec<String>], open: &str, close: &str| {
        let mut all = vec![String::new()];
        for part in parts {
            let longer = |text: &String| {
                let comma = if text.is_empty() { "" } else { "," };
                part.iter()
                    .map(|more| format!("{text}{comma}{more}"))
                    .collect::<Vec<_>>()
            };
            all = all.iter().flat_map(longer).collect();
        }
        let whole = all.into_iter().map(|text| format!("{open}{text}{close}"));
        whole.collect::<Vec<_>>()
    };
    match value {
        Value::Number(number) => {
            let text = number.to_string();
            vec![text.strip_suffix(".0").map_or(text.clone(), str::to_owned)]
        }
        Value::Array(items) => join(&items.iter().map(spellings).collect::<Vec<_>>(), "[", "]"),
        Value::Object(members) => {
            let mut orders = vec![Vec::new()];
            for (name, value) in members {
                let name = Value::from(name.as_str());
                let texts = spellings(value);
                let member: Vec<String> = texts.iter().map(|text| format!("{name}:{text}")).collect();
                let insert = |order: &Vec<Vec<String>>| {
                    let at = |i| [&order[..i], std::slice::from_ref(&member), &order[i..]].concat();
                    (0..=order.len()).map(at).collect::<Vec<_>>()
                };
                orders = orders.iter().flat_map(insert).collect();
            }
            orders.iter().flat_map(|order| join(order, "{", "}")).collect()
        }
        other => vec![other.to_string()],
    }
}

/// A random output that follows the masks; `None` when it grows too long.
fn output(grammar: &Grammar, random: &mut Random, schema: &str) -> Option<String> {
    const LIKELY: &[u8] = b"\"}]:,{[ab01tfn.-";
    let mut matcher = grammar.matcher();
    let mut bytes = Vec::new();
    for _ in 0..160 {
        let mask = matcher.mask().expect("no limit is near");
        let allowed: Vec<u32> = (0..=256).filter(|token| mask.allows(*token)).collect();
        assert!(!allowed.is_empty(), "a dead end after {bytes:?} of {schema}");
        let likely: Vec<u32> = LIKELY.iter().map(|byte| u32::from(*byte)).collect();
        let likely: Vec<u32> = likely
            .into_iter()
            .filter(|token| allowed.contains(token))
            .collect();
        let token = match random.below(8) {
            0 => *pick(random, &allowed),
            1..=3 if mask.allows(256) => 256,
            _ if !likely.is_empty() => *pick(random, &likely),
            _ => *pick(random, &allowed),
        };
        matcher.advance(token).expect("the mask allows it");
        if token == 256 {
            return Some(String::from_utf8(bytes).expect("outputs are text"));
        }
        bytes.push(token as u8);
    }
    None
}

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
    let mut schema = schema(&mut random, 3);
    let defs = json!({"x": self::schema(&mut random, 1), "y": self::schema(&mut random, 1)});
    if let Value::Object(members) = &mut schema {
        members.insert("$defs".to_owned(), defs);
    }
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
