//! Names that must stand in two places: options in the README, operators in the conformance tests.

use super::{File, root};

/// Options of `frontend/src/config.rs` that `readme` leaves out, and rows of its table without an option.
fn option_differences(config: &str, readme: &str) -> Vec<String> {
    let body = config.split("pub struct Options {").nth(1).unwrap_or_default();
    let body = body.split("\n}").next().unwrap_or_default();
    let lines: Vec<&str> = body.lines().collect();
    // What no flag sets is a key of the file only.
    let is_flag = |idx: &usize| *idx == 0 || lines[*idx - 1].trim() != "#[arg(skip)]";
    let fields = (0..lines.len())
        .filter(is_flag)
        .filter_map(|idx| lines[idx].strip_prefix("    pub ")?.split(':').next());
    let flags: Vec<String> = fields
        .map(|field| format!("`--{}`", field.replace('_', "-")))
        .collect();
    let table = readme.lines().filter(|line| line.starts_with("| `--"));
    let table: String = table.filter_map(|line| line.split('|').nth(1)).collect();
    let left_out = flags.iter().filter(|flag| !table.contains(flag.as_str()));
    let mut found: Vec<String> = left_out
        .map(|flag| format!("the README leaves out {flag}"))
        .collect();
    let named = table
        .split('`')
        .filter(|word| word.starts_with("--"))
        .map(|word| format!("`{word}`"));
    found.extend(
        named
            .filter(|flag| !flags.contains(flag))
            .map(|flag| format!("the README names {flag}")),
    );
    if flags.is_empty() {
        found.push("config.rs has no options".to_owned());
    }
    found
}

/// Methods of the `Backend` trait in `kernels` that no text of `tests` calls.
fn untested_methods(kernels: &str, tests: &[&str]) -> Vec<String> {
    let body = kernels.split("pub trait Backend").nth(1).unwrap_or_default();
    let body = body.split("\n}").next().unwrap_or_default();
    let methods = body
        .lines()
        .filter_map(|line| line.strip_prefix("    fn ")?.split(['(', '<']).next());
    let methods: Vec<&str> = methods.collect();
    let called = |method: &str| tests.iter().any(|text| text.contains(&format!(".{method}(")));
    let untested = methods.iter().filter(|method| !called(method));
    let mut found: Vec<String> = untested
        .map(|method| format!("no conformance test calls {method}"))
        .collect();
    if methods.is_empty() {
        found.push("kernels has no Backend trait".to_owned());
    }
    found
}

#[test]
fn every_option_is_in_the_readme() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).expect("the file is readable");
    let found = option_differences(&read("frontend/src/config.rs"), &read("README.md"));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_backend_method_is_in_the_conformance_tests() {
    let mut files: Vec<File> = Vec::new();
    super::collect(&root().join("kernels"), "", &mut files);
    let of = |prefix: &'static str| files.iter().filter(move |file| file.path.starts_with(prefix));
    let kernels = of("src/lib.rs").next().expect("kernels has a lib.rs");
    let tests: Vec<&str> = of("tests/").map(|file| file.text.as_str()).collect();
    let found = untested_methods(&kernels.text, &tests);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_name_in_one_place_only_is_refused() {
    let config = "pub struct Options {\n    /// Port.\n    pub a_port: u16,\n    pub host: u8,\n}\nX {\n    pub no: u8,";
    let readme = "`--host` in the text does not count\n| `--a-port`, `--gone` | 8000 |\n";
    let found = option_differences(config, readme);
    assert_eq!(
        found,
        ["the README leaves out `--host`", "the README names `--gone`"]
    );
    let kernels = "pub trait Backend {\n    fn embed(&self);\n    fn matmul(&self);\n}\n    fn other() {}";
    assert_eq!(
        untested_methods(kernels, &["b.embed(x)"]),
        ["no conformance test calls matmul"]
    );
    assert_eq!(
        option_differences("", "").len() + untested_methods("", &[]).len(),
        2
    );
}
