//! What the dependency tree holds, checked against `deny.toml` with nothing but `cargo metadata`: licences,
//! forbidden packages, sources. Offline; advisories need `cargo deny check` and a network.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Is `expression` (SPDX, `AND` binding tighter than `OR`, old `/` for `OR`) satisfied by `allowed` alone?
fn permits(allowed: &BTreeSet<String>, expression: &str) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let ok = any_of(allowed, &words, &mut at);
    ok && at == words.len()
}

fn any_of(allowed: &BTreeSet<String>, words: &[&str], at: &mut usize) -> bool {
    let mut ok = all_of(allowed, words, at);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        ok |= all_of(allowed, words, at);
    }
    ok
}

fn all_of(allowed: &BTreeSet<String>, words: &[&str], at: &mut usize) -> bool {
    let mut ok = one(allowed, words, at);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        ok &= one(allowed, words, at);
    }
    ok
}

fn one(allowed: &BTreeSet<String>, words: &[&str], at: &mut usize) -> bool {
    let Some(word) = words.get(*at) else { return false };
    *at += 1;
    if *word == "(" {
        let ok = any_of(allowed, words, at);
        assert_eq!(words.get(*at), Some(&")"), "unbalanced licence {words:?}");
        *at += 1;
        return ok;
    }
    let mut licence = (*word).to_owned();
    if words.get(*at) == Some(&"WITH") {
        licence = format!("{word} WITH {}", words[*at + 1]);
        *at += 2;
    }
    allowed.contains(&licence)
}

fn strings(value: &toml::Value) -> BTreeSet<String> {
    let list = value.as_array().expect("deny.toml holds a list here");
    list.iter()
        .map(|item| {
            let name = item.as_str().or_else(|| item.get("crate")?.as_str());
            name.expect("an entry is a string or names a crate").to_owned()
        })
        .collect()
}

/// Findings about one package of `cargo metadata`.
fn findings(package: &Value, allowed: &BTreeSet<String>, banned: &BTreeSet<String>) -> Vec<String> {
    let name = package["name"].as_str().expect("packages have names");
    let mut found = Vec::new();
    match package["license"].as_str() {
        Some(licence) if permits(allowed, licence) => {}
        licence => found.push(format!("{name}: licence {licence:?} is not allowed by deny.toml")),
    }
    if banned.contains(name) {
        found.push(format!("{name}: forbidden by deny.toml"));
    }
    let source = package["source"].as_str();
    if source.is_some_and(|source| !source.starts_with("registry+")) {
        found.push(format!("{name}: comes from {source:?}, not from the registry"));
    }
    found
}

#[test]
fn every_dependency_is_allowed_by_deny_toml() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let deny = std::fs::read_to_string(root.join("deny.toml")).expect("deny.toml is readable");
    let deny: toml::Value = toml::from_str(&deny).expect("deny.toml parses");
    let allowed = strings(&deny["licenses"]["allow"]);
    let banned = strings(&deny["bans"]["deny"]);
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline"])
        .args(["--filter-platform", &target])
        .current_dir(&root)
        .output()
        .expect("cargo runs inside cargo test");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let packages = metadata["packages"].as_array().expect("metadata lists packages");
    assert!(packages.len() > 50, "only {} packages seen", packages.len());
    let found: Vec<String> = packages
        .iter()
        .flat_map(|package| findings(package, &allowed, &banned))
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_forbidden_package_is_found() {
    let allowed = BTreeSet::from(["MIT".to_owned()]);
    let banned = BTreeSet::from(["bad".to_owned()]);
    let bad = serde_json::json!({ "name": "bad", "license": "GPL-3.0", "source": "git+ssh://somewhere" });
    assert_eq!(findings(&bad, &allowed, &banned).len(), 3);
    let good = serde_json::json!({ "name": "good", "license": "MIT", "source": null });
    assert!(findings(&good, &allowed, &banned).is_empty());
}

#[test]
fn licence_expressions_are_evaluated() {
    let allowed = BTreeSet::from(["MIT".to_owned(), "Unicode-3.0".to_owned(), "A WITH B".to_owned()]);
    for expression in [
        "MIT",
        "MIT/X",
        "X OR MIT",
        "(MIT OR X) AND Unicode-3.0",
        "X AND Y OR MIT",
        "A WITH B",
    ] {
        assert!(permits(&allowed, expression), "{expression}");
    }
    for expression in ["X", "MIT AND X", "(X OR Y) AND MIT", "", "A", "MIT X"] {
        assert!(!permits(&allowed, expression), "{expression}");
    }
}
