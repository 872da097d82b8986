//! Random schemas under the options that change what a schema means: a closed object is never more than an
//! open one, and a relaxed schema is never less than the whole one, whatever the parts that are left out may
//! mean.

#[path = "common/bytes.rs"]
mod bytes;
#[path = "common/random.rs"]
mod random;
#[path = "common/random_json.rs"]
mod random_json;

use std::sync::Arc;

use arbora_constrained::{
    AdditionalProperties, CompileError, Enforcement, Grammar, Limits, SchemaOptions, Vocabulary,
};
use bytes::{accepts, vocabulary};
use random::Random;
use random_json::{instance, output, pick, schema_with_definitions, spellings};
use serde_json::{Value, json};

const N_SCHEMAS: u64 = 1_000;
const N_INSTANCES: usize = 20;
/// Spellings tried of one instance.
const MAX_SPELLINGS: usize = 500;

fn compile(
    vocabulary: &Arc<Vocabulary>,
    schema: &Value,
    options: &SchemaOptions,
) -> Result<Grammar, CompileError> {
    Grammar::compile_json_schema(vocabulary, &schema.to_string(), options, &Limits::default())
}

fn closed() -> SchemaOptions {
    SchemaOptions {
        additional_properties: AdditionalProperties::Closed,
        ..SchemaOptions::default()
    }
}

fn relaxed() -> SchemaOptions {
    SchemaOptions {
        enforcement: Enforcement::Relaxed,
        ..SchemaOptions::default()
    }
}

fn is_accepted(grammar: &Grammar, texts: &[String]) -> bool {
    texts.iter().any(|text| accepts(grammar, text))
}

#[test]
fn what_a_closed_object_may_be_an_open_one_may() {
    let vocabulary = vocabulary();
    let (mut n_closed, mut n_outputs, mut n_fewer, mut emptied) = (0, 0, 0, Vec::new());
    for seed in 0..N_SCHEMAS {
        let mut random = Random(seed);
        let schema = schema_with_definitions(&mut random);
        let Ok(open) = compile(&vocabulary, &schema, &SchemaOptions::default()) else {
            continue;
        };
        let closed = match compile(&vocabulary, &schema, &closed()) {
            Ok(closed) => closed,
            Err(error) => {
                emptied.push(format!("seed {seed}: {error} of {schema}"));
                continue;
            }
        };
        n_closed += 1;
        for _ in 0..N_INSTANCES {
            let value = instance(&mut random, 3);
            let texts = spellings(&value);
            if texts.len() > MAX_SPELLINGS {
                continue;
            }
            let (in_closed, in_open) = (is_accepted(&closed, &texts), is_accepted(&open, &texts));
            assert!(in_open || !in_closed, "seed {seed}: {value} of {schema}");
            n_fewer += usize::from(in_open && !in_closed);
        }
        for _ in 0..4 {
            if let Some(output) = output(&closed, &mut random, &schema.to_string()) {
                assert!(accepts(&open, &output), "seed {seed}: {output} of {schema}");
                n_outputs += 1;
            }
        }
    }
    println!("{n_closed} closed, {n_outputs} outputs, {n_fewer} instances kept out");
    assert!(emptied.is_empty(), "{}", emptied.join("\n"));
    assert!(n_closed > 600 && n_outputs > 1_000 && n_fewer > 100);
}

/// A keyword that cannot be enforced.
struct Plant {
    keyword: &'static str,
    value: &'static str,
    /// What it could mean, as a schema beside its own.
    meanings: &'static [&'static str],
    /// A neighbour that would lose its meaning where the keyword speaks of all members or items.
    neighbour: Option<&'static str>,
}

const ANY: [&str; 3] = [
    "true",
    "false",
    r#"{"additionalProperties": true, "items": true}"#,
];
const OF_STRINGS: [&str; 2] = ["true", r#"{"not": {"type": "string"}}"#];
const OF_OBJECTS: [&str; 3] = [
    "true",
    r#"{"not": {"type": "object"}}"#,
    r#"{"additionalProperties": true}"#,
];
const OF_ARRAYS: [&str; 3] = ["true", r#"{"not": {"type": "array"}}"#, r#"{"items": true}"#];

const fn plant(
    keyword: &'static str,
    value: &'static str,
    meanings: &'static [&'static str],
    neighbour: Option<&'static str>,
) -> Plant {
    Plant {
        keyword,
        value,
        meanings,
        neighbour,
    }
}

const PLANTS: [Plant; 20] = [
    plant("pattern", r#""(a)\\1""#, &OF_STRINGS, None),
    plant("pattern", "7", &OF_STRINGS, None),
    plant("format", r#""regex""#, &["true"], None),
    plant("minLength", "-1", &OF_STRINGS, None),
    plant("maxLength", r#""2""#, &OF_STRINGS, None),
    plant("$ref", r#""https://example.com/elsewhere""#, &ANY, None),
    plant("$dynamicRef", r##""#nowhere""##, &ANY, None),
    plant("anyOf", "3", &ANY, None),
    plant("oneOf", "[null]", &ANY, None),
    plant("not", "4", &["true", "false"], None),
    plant("if", "[true]", &["true"], None),
    plant("type", r#""text""#, &["true", "false"], None),
    plant("enum", "{}", &["true", "false"], None),
    plant("properties", r#""a""#, &OF_OBJECTS, Some("additionalProperties")),
    plant(
        "patternProperties",
        r#"{"(a)\\1": false}"#,
        &OF_OBJECTS,
        Some("additionalProperties"),
    ),
    plant("additionalProperties", "8", &OF_OBJECTS, None),
    plant("dependentSchemas", "[]", &OF_OBJECTS, None),
    plant(
        "required",
        r#"["a", 1]"#,
        &["true", r#"{"not": {"type": "object"}}"#],
        None,
    ),
    plant("prefixItems", "{}", &OF_ARRAYS, Some("items")),
    plant(
        "contains",
        "5",
        &[r#"{"contains": true}"#, r#"{"contains": false}"#],
        None,
    ),
];

impl Plant {
    /// `schema`, which does not have the keyword, as if it meant the same as `meaning`.
    fn meant(&self, schema: &Value, meaning: &str) -> Value {
        let mut schema = schema.clone();
        let members = schema.as_object_mut().expect("keywords are planted into objects");
        if let Some(neighbour) = self.neighbour.filter(|_| meaning.ends_with("true}")) {
            members.remove(neighbour);
        }
        let all = members.entry("allOf").or_insert_with(|| json!([]));
        let all = all.as_array_mut().expect("random schemas are well-formed");
        all.push(serde_json::from_str(meaning).expect("meanings are JSON"));
        schema
    }
}

/// The pointers of all schemas below `schema` that are objects.
fn places(schema: &Value, place: &str, found: &mut Vec<String>) {
    let Value::Object(members) = schema else {
        return;
    };
    found.push(place.to_owned());
    for (keyword, value) in members {
        let place = format!("{place}/{keyword}");
        match (keyword.as_str(), value) {
            ("const" | "enum" | "required" | "dependentRequired", _) => {}
            ("properties" | "patternProperties" | "dependentSchemas" | "$defs", Value::Object(values)) => {
                for (name, value) in values {
                    let name = name.replace('~', "~0").replace('/', "~1");
                    places(value, &format!("{place}/{name}"), found);
                }
            }
            (_, Value::Array(parts)) => {
                for (i, part) in parts.iter().enumerate() {
                    places(part, &format!("{place}/{i}"), found);
                }
            }
            _ => places(value, &place, found),
        }
    }
}

#[test]
fn whatever_a_keyword_that_is_left_out_means_what_it_admits_is_accepted() {
    let vocabulary = vocabulary();
    let (mut n_planted, mut n_valid, mut n_uncounted, mut wrong) = (0, 0, 0, Vec::new());
    for seed in 0..2 * N_SCHEMAS {
        let mut random = Random(seed);
        let schema = schema_with_definitions(&mut random);
        let mut found = Vec::new();
        places(&schema, "", &mut found);
        let plant = pick(&mut random, &PLANTS);
        if found.is_empty() {
            continue;
        }
        let place = pick(&mut random, &found).clone();
        let own = schema.pointer(&place).expect("it was found there").clone();
        // Two of these beside each other have a meaning of their own.
        let neighbours = [
            "minContains",
            "maxContains",
            "prefixItems",
            "then",
            "else",
            plant.keyword,
        ];
        if neighbours.iter().any(|other| own.get(*other).is_some()) {
            continue;
        }
        let with = |change: Value| {
            let mut changed = schema.clone();
            *changed.pointer_mut(&place).expect("it was found there") = change;
            changed
        };
        let mut planted = own.clone();
        planted[plant.keyword] = serde_json::from_str(plant.value).expect("plants are JSON");
        let planted = with(planted);
        let grammar = compile(&vocabulary, &planted, &relaxed());
        let grammar = grammar.unwrap_or_else(|error| panic!("seed {seed}: {error} of {planted}"));
        n_planted += 1;
        for meaning in plant.meanings {
            let meant = with(plant.meant(&own, meaning));
            let validator = jsonschema::draft202012::new(&meant).expect("it is well-formed");
            for _ in 0..N_INSTANCES {
                let value = instance(&mut random, 3);
                if !validator.is_valid(&value) {
                    continue;
                }
                let texts = spellings(&value);
                if texts.len() > MAX_SPELLINGS {
                    continue;
                }
                n_valid += 1;
                if is_accepted(&grammar, &texts) {
                    continue;
                }
                // Members without a declared name may repeat, so that only one of them counts.
                if meant.to_string().contains("minProperties") {
                    n_uncounted += 1;
                    continue;
                }
                let parts = grammar.relaxed();
                wrong.push(format!(
                    "seed {seed}: {meaning}: {value} of {planted} less {parts:?}"
                ));
            }
        }
    }
    println!("{n_planted} planted, {n_valid} valid");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(n_planted > 1_000 && n_valid > 10_000 && n_uncounted < 10);
}

#[test]
fn within_any_limits_a_relaxed_schema_compiles_and_accepts_what_is_valid() {
    let vocabulary = vocabulary();
    let (mut n_relaxed, mut n_valid, mut wrong) = (0, 0, Vec::new());
    for seed in 0..N_SCHEMAS {
        let mut random = Random(seed);
        let schema = schema_with_definitions(&mut random);
        let limits = Limits {
            max_branches: 1 + random.below(8),
            max_automaton_states: 150 + random.below(200),
            max_compile_work: 1_000 << random.below(9),
            max_nodes: 150 + random.below(200),
            ..Limits::default()
        };
        let text = schema.to_string();
        let grammar = Grammar::compile_json_schema(&vocabulary, &text, &relaxed(), &limits);
        let grammar = grammar.unwrap_or_else(|error| panic!("seed {seed}: {error} of {schema}"));
        n_relaxed += usize::from(!grammar.relaxed().is_empty());
        let validator = jsonschema::draft202012::new(&schema).expect("the schema is well-formed");
        for _ in 0..N_INSTANCES {
            let value = instance(&mut random, 3);
            if !validator.is_valid(&value) {
                continue;
            }
            let texts = spellings(&value);
            if texts.len() > MAX_SPELLINGS {
                continue;
            }
            n_valid += 1;
            if !is_accepted(&grammar, &texts) {
                wrong.push(format!(
                    "seed {seed}: {value} of {schema} less {:?}",
                    grammar.relaxed()
                ));
            }
        }
    }
    println!("{n_relaxed} relaxed, {n_valid} valid");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(n_relaxed > 300 && n_valid > 5_000);
}

#[test]
fn what_can_be_enforced_is_not_relaxed() {
    let vocabulary = vocabulary();
    let (mut n_whole, mut n_parts) = (0, 0);
    for seed in 0..N_SCHEMAS {
        let mut random = Random(seed);
        let schema = schema_with_definitions(&mut random);
        let relaxed = compile(&vocabulary, &schema, &relaxed());
        let relaxed = relaxed.unwrap_or_else(|error| panic!("seed {seed}: {error} of {schema}"));
        match compile(&vocabulary, &schema, &SchemaOptions::default()) {
            Ok(whole) => {
                n_whole += 1;
                assert_eq!(relaxed.relaxed(), [], "seed {seed}: {schema}");
                for _ in 0..N_INSTANCES {
                    let texts = spellings(&instance(&mut random, 2));
                    let is_same = is_accepted(&whole, &texts) == is_accepted(&relaxed, &texts);
                    assert!(is_same, "seed {seed}: {} of {schema}", texts[0]);
                }
            }
            Err(error) => {
                n_parts += 1;
                assert!(!relaxed.relaxed().is_empty(), "seed {seed}: {error} of {schema}");
            }
        }
    }
    assert!(
        n_whole > 600 && n_parts > 50,
        "{n_whole} whole, {n_parts} in parts"
    );
}
