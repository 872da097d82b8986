//! The official JSON Schema test suite: what compiles judges every instance right, what is refused is listed.
//!
//! A matcher judges texts, a schema judges values. A valid value must be accepted in one of its spellings
//! (members in any order, whole numbers without a fraction), an invalid one in none.

#[path = "common/bytes.rs"]
mod bytes;

use std::collections::BTreeSet;
use std::path::Path;

use arbora_constrained::{CompileError, Draft, FormatPolicy, Grammar, Limits, SchemaOptions};
use bytes::{accepts, vocabulary};
use serde_json::Value;

const ANNOTATIONS: &str = "draft7/optional/content.json";

/// Spellings tried of one value; objects in the suite are small.
const MAX_SPELLINGS: usize = 5_000;

fn spellings(value: &Value) -> Vec<String> {
    let join = |parts: &[Vec<String>], open: &str, close: &str| {
        let mut all = vec![String::new()];
        for part in parts {
            let longer = |text: &String| {
                let comma = if text.is_empty() { "" } else { ", " };
                part.iter()
                    .map(|more| format!("{text}{comma}{more}"))
                    .collect::<Vec<_>>()
            };
            all = all.iter().flat_map(longer).take(MAX_SPELLINGS).collect();
        }
        all.into_iter()
            .map(|text| format!("{open}{text}{close}"))
            .collect::<Vec<_>>()
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
                let member: Vec<_> = spellings(value)
                    .iter()
                    .map(|text| format!("{name}: {text}"))
                    .collect();
                let insert = |order: &Vec<Vec<String>>| {
                    let places = 0..=order.len();
                    let at = |i| [&order[..i], std::slice::from_ref(&member), &order[i..]].concat();
                    places.map(at).collect::<Vec<_>>()
                };
                orders = orders.iter().flat_map(insert).take(MAX_SPELLINGS).collect();
            }
            orders
                .iter()
                .flat_map(|order| join(order, "{", "}"))
                .take(MAX_SPELLINGS)
                .collect()
        }
        other => vec![other.to_string()],
    }
}

#[derive(Default)]
struct Report {
    refused: BTreeSet<String>,
    wrong: BTreeSet<String>,
    n_compiled: usize,
}

fn run(folder: &str, draft: Draft, formats: FormatPolicy, report: &mut Report) {
    let vocabulary = vocabulary();
    let options = SchemaOptions {
        draft,
        formats,
        ..SchemaOptions::default()
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/suite")
        .join(folder);
    let mut files: Vec<_> = std::fs::read_dir(path)
        .expect("the suite is there")
        .flatten()
        .collect();
    // `contentEncoding` and `contentMediaType` are annotations, which draft 7 leaves to the reader.
    let is_run = |file: &std::fs::DirEntry| file.path().is_file() && !file.path().ends_with(ANNOTATIONS);
    files.retain(is_run);
    files.sort_by_key(std::fs::DirEntry::path);
    for file in files {
        let text = std::fs::read_to_string(file.path()).expect("the suite is readable");
        let groups: Value = serde_json::from_str(&text).expect("the suite is JSON");
        for group in groups.as_array().expect("a list of groups") {
            let title = format!(
                "{folder}/{}: {}",
                file.file_name().display(),
                group["description"]
            );
            let schema = group["schema"].to_string();
            let compiled =
                match Grammar::compile_json_schema(&vocabulary, &schema, &options, &Limits::default()) {
                    // Says that no value is valid.
                    Err(CompileError::Empty { .. }) => Ok(None),
                    Err(error) => Err(error),
                    Ok(grammar) => Ok(Some(grammar)),
                };
            match compiled {
                Err(error) => {
                    report
                        .refused
                        .insert(format!("{title} | {error}").replace('\n', " "));
                }
                Ok(grammar) => {
                    report.n_compiled += 1;
                    for test in group["tests"].as_array().expect("a list of tests") {
                        let is_accepted = spellings(&test["data"])
                            .iter()
                            .any(|text| grammar.as_ref().is_some_and(|grammar| accepts(grammar, text)));
                        if Some(is_accepted) != test["valid"].as_bool() {
                            let name = if is_accepted { "accepted" } else { "not accepted" };
                            let wrong = format!("{title} | {name}: {}", test["data"]);
                            report.wrong.insert(wrong.replace('\n', " "));
                        }
                    }
                }
            }
        }
    }
}

/// Compares what was found with the lines of a file under `tests/suite`.
fn assert_listed(file: &str, found: &BTreeSet<String>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/suite")
        .join(file);
    let listed = std::fs::read_to_string(path).expect("the list is there");
    let listed: BTreeSet<String> = listed.lines().map(str::to_owned).collect();
    let differences: Vec<_> = listed.symmetric_difference(found).cloned().collect();
    assert!(
        differences.is_empty(),
        "{file} differs:\n{}",
        differences.join("\n")
    );
}

#[test]
fn what_compiles_is_judged_right_and_what_is_refused_is_listed() {
    let mut report = Report::default();
    run(
        "draft2020-12",
        Draft::Draft2020,
        FormatPolicy::Annotate,
        &mut report,
    );
    let n_new = (report.n_compiled, report.refused.len());
    run("draft7", Draft::Draft7, FormatPolicy::Annotate, &mut report);
    // Names its dialect in every schema.
    run(
        "draft2019-09",
        Draft::Draft2020,
        FormatPolicy::Annotate,
        &mut report,
    );
    println!("2020-12: {} compiled, {} refused", n_new.0, n_new.1);
    println!(
        "all: {} compiled, {} refused",
        report.n_compiled,
        report.refused.len()
    );
    // A dialect that the document does not explain might give a keyword no meaning; it is enforced.
    assert_listed("stricter.txt", &report.wrong);
    assert_eq!(unsound(&report), None);
    assert_listed("refused.txt", &report.refused);
}

fn unsound(report: &Report) -> Option<&String> {
    report.wrong.iter().find(|wrong| wrong.contains("| accepted:"))
}

/// Formats and other optional parts: an invalid value is never accepted; the valid ones that are not, and
/// the groups that are refused, are listed.
#[test]
fn optional_parts_are_at_most_stricter_and_what_is_refused_is_listed() {
    let mut report = Report::default();
    for (draft, rules) in [("draft2020-12", Draft::Draft2020), ("draft7", Draft::Draft7)] {
        run(
            &format!("{draft}/optional"),
            rules,
            FormatPolicy::Annotate,
            &mut report,
        );
        run(
            &format!("{draft}/optional/format"),
            rules,
            FormatPolicy::Enforce,
            &mut report,
        );
    }
    println!(
        "optional: {} compiled, {} refused",
        report.n_compiled,
        report.refused.len()
    );
    assert_listed("refused-optional.txt", &report.refused);
    assert_listed("stricter-optional.txt", &report.wrong);
    assert_eq!(unsound(&report), None);
}
