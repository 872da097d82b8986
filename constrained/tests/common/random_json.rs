//! Random schemas and instances, the spellings of an instance, and outputs that follow the masks.

use arbora_constrained::Grammar;
use serde_json::{Map, Value, json};

use super::random::Random;

pub(crate) fn pick<'a, T>(random: &mut Random, list: &'a [T]) -> &'a T {
    &list[random.below(list.len())]
}

pub(crate) fn is_one_in(random: &mut Random, n: usize) -> bool {
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

pub(crate) fn instance(random: &mut Random, depth: usize) -> Value {
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

/// A random schema whose references lead to two more.
pub(crate) fn schema_with_definitions(random: &mut Random) -> Value {
    let mut schema = schema(random, 3);
    let definitions = json!({"x": self::schema(random, 1), "y": self::schema(random, 1)});
    if let Value::Object(members) = &mut schema {
        members.insert("$defs".to_owned(), definitions);
    }
    schema
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

/// The ways to write `value` without whitespace: members in any order, whole numbers without a fraction.
pub(crate) fn spellings(value: &Value) -> Vec<String> {
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
pub(crate) fn output(grammar: &Grammar, random: &mut Random, schema: &str) -> Option<String> {
    const LIKELY: &[u8] = b"\"}]:,{[ab01tfn.-";
    let mut matcher = grammar.matcher();
    let mut bytes = Vec::new();
    for _ in 0..160 {
        let mask = matcher.mask();
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
