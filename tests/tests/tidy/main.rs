//! The rules of the house as a test: what CONTRIBUTING.md says of style and ARCHITECTURE.md of crates is
//! checked here, file by file. Every rule is also shown to refuse a bad sample, so none can go blind.
//! Forbidden words are spelled in two halves, or this file would refuse itself.

mod crates;
mod lengths;
mod names;

use std::path::{Path, PathBuf};

struct File {
    /// Relative to the repository's root, with `/`.
    path: String,
    text: String,
}

/// A rule that one line can break.
struct LineRule {
    what: &'static str,
    applies: fn(path: &str) -> bool,
    /// Sees the line, in Rust without its comment unless `comments` is set.
    is_bad: fn(line: &str) -> bool,
    comments: bool,
    /// A path and a line that the rule refuses.
    sample: (&'static str, &'static str),
}

const LINE_RULES: [LineRule; 9] = [
    LineRule {
        what: "wider than 110 columns",
        applies: |path| path.ends_with(".rs") || path.ends_with(".py") || path.ends_with(".md"),
        // Neither tables nor string literals can be broken by a formatter.
        is_bad: |line| line.chars().count() > 110 && !line.starts_with('|') && !line.contains('"'),
        comments: true,
        sample: (
            "README.md",
            concat!(
                "a line of one hundred and thirty columns is wider than a screen on which two files",
                " stand side by side, however the eye may want to believe"
            ),
        ),
    },
    LineRule {
        what: "unfinished",
        applies: |path| path.ends_with(".rs") || path.ends_with(".py") || path.starts_with(".ci"),
        is_bad: |line| {
            [
                concat!("TO", "DO"),
                concat!("FIX", "ME"),
                concat!("db", "g!("),
                concat!("#[ig", "nore"),
            ]
            .iter()
            .any(|word| line.contains(word))
        },
        comments: true,
        sample: ("radix/src/a.rs", concat!("// TO", "DO later")),
    },
    LineRule {
        // The emulated driver has the C ABI of the real one.
        what: "only kernels may",
        applies: |path| {
            path.ends_with(".rs") && !path.starts_with("kernels/") && !path.starts_with("tests/fake-cuda/")
        },
        is_bad: |line| {
            line.split(|c: char| !c.is_alphanumeric() && c != '_')
                .any(|word| word == concat!("un", "safe") || word == concat!("un", "safe_code"))
        },
        comments: false,
        sample: ("runtime/src/a.rs", concat!("    un", "safe { read() }")),
    },
    LineRule {
        what: "only frontend/src/config.rs and its parts read the environment",
        applies: |path| path.ends_with(".rs") && !path.starts_with("frontend/src/config"),
        is_bad: |line| line.contains(concat!("env::", "var")) || line.contains(concat!("env = \"", "ARBORA")),
        comments: false,
        sample: ("runtime/src/a.rs", concat!("std::env::", "var(\"HOME\")")),
    },
    LineRule {
        what: "engine state has one owner",
        applies: |path| path.starts_with("runtime/src/"),
        is_bad: |line| line.contains("Arc<Mutex") || line.contains("Arc<RwLock"),
        comments: false,
        sample: ("runtime/src/a.rs", "state: Arc<Mutex<State>>"),
    },
    LineRule {
        what: "global mutable state",
        applies: is_product,
        is_bad: |line| {
            let item = line
                .trim_start()
                .trim_start_matches("pub ")
                .trim_start_matches("pub(crate) ");
            let cells = ["Mutex", "RwLock", "Atomic", "Cell<", "OnceLock"];
            let mutable = item.starts_with(concat!("static ", "mut")) || item.contains("thread_local!");
            mutable || item.starts_with("static ") && cells.iter().any(|cell| item.contains(cell))
        },
        comments: false,
        sample: (
            "kernels/src/a.rs",
            "pub static COUNT: AtomicUsize = AtomicUsize::new(0);",
        ),
    },
    LineRule {
        what: "panics where standard error cannot be written, and waits where nobody reads it",
        applies: is_product,
        is_bad: |line| line.contains(concat!("epr", "int!(")) || line.contains(concat!("epr", "intln!(")),
        comments: false,
        sample: ("runtime/src/a.rs", concat!("    epr", "intln!(\"a\");")),
    },
    LineRule {
        what: "no async below the frontend",
        applies: |path| path.ends_with(".rs") && LEAVES.iter().any(|leaf| path.starts_with(leaf)),
        is_bad: |line| {
            let rest = line.replace("tokio::sync::mpsc", "");
            rest.contains("async fn") || rest.contains("tokio::")
        },
        comments: false,
        sample: ("runtime/src/a.rs", "use tokio::net::TcpStream;"),
    },
    LineRule {
        what: "names something outside the project",
        applies: |path| !path.ends_with("Cargo.lock"),
        is_bad: |line| {
            let folders = [concat!("..", "/shared"), concat!("/wo", "rk/")];
            let hosts = [
                concat!("crates", ".io"),
                concat!("pypi", ".org"),
                concat!("python", "hosted"),
                concat!("proxy.go", "lang"),
            ];
            folders.iter().chain(&hosts).any(|name| line.contains(name))
        },
        comments: true,
        sample: ("README.md", concat!("see ..", "/shared/design")),
    },
];
const LEAVES: [&str; 4] = ["radix/", "constrained/", "kernels/", "runtime/"];

/// Product code: neither tests nor benches nor fuzz targets.
fn is_product(path: &str) -> bool {
    path.ends_with(".rs")
        && !path
            .split('/')
            .any(|part| ["tests", "benches", "fuzz"].contains(&part))
}

/// What `rule` finds in `file`.
fn broken_lines(rule: &LineRule, file: &File) -> Vec<String> {
    if !(rule.applies)(&file.path) {
        return Vec::new();
    }
    let code = |line| if rule.comments { line } else { before_comment(line) };
    let numbered = file.text.lines().enumerate();
    let bad = numbered.filter(|(_, line)| (rule.is_bad)(code(line)));
    bad.map(|(i, line)| format!("{}:{}: {}: {}", file.path, i + 1, rule.what, line.trim()))
        .collect()
}

fn before_comment(line: &str) -> &str {
    line.split("//").next().expect("split yields at least one part")
}

fn undocumented_module(file: &File) -> Option<String> {
    let missing = file.path.ends_with(".rs") && !file.text.starts_with("//!");
    missing.then(|| format!("{}: starts without a module doc", file.path))
}

/// Paths that ARCHITECTURE.md names in backticks and that do not exist, and top-level entries it leaves out.
fn map_differences(map: &str, top_level: &[String], exists: impl Fn(&str) -> bool) -> Vec<String> {
    let is_path = |word: &&str| {
        let path = word.chars().all(|c| c.is_alphanumeric() || "._-/".contains(c)) && !word.starts_with('/');
        path && (word.contains('/') || [".rs", ".md", ".toml"].iter().any(|end| word.ends_with(end)))
    };
    let named = map.split('`').skip(1).step_by(2).filter(is_path);
    let gone = named
        .filter(|path| !exists(path))
        .map(|path| format!("the map names {path}"));
    let left_out = top_level.iter().filter(|entry| !map.contains(entry.as_str()));
    let left_out = left_out.map(|entry| format!("the map leaves out {entry}"));
    gone.chain(left_out).collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every text file of the project below `folder`.
fn collect(folder: &Path, prefix: &str, files: &mut Vec<File>) {
    for entry in std::fs::read_dir(folder).expect("the repository is readable") {
        let entry = entry.expect("the repository is readable");
        let name = entry.file_name().into_string().expect("our names are UTF-8");
        if [".git", "target", "__pycache__", ".venv", "corpus", "artifacts"].contains(&name.as_str()) {
            continue;
        }
        let path = format!("{prefix}{name}");
        if entry.path().is_dir() {
            collect(&entry.path(), &format!("{path}/"), files);
        } else if let Ok(text) = std::fs::read_to_string(entry.path()) {
            files.push(File { path, text });
        }
    }
}

#[test]
fn every_file_keeps_the_rules() {
    let mut files = Vec::new();
    collect(&root(), "", &mut files);
    assert!(files.len() > 30, "only {} files seen", files.len());
    let mut found: Vec<String> = lengths::stale_exceptions(&files);
    for file in &files {
        found.extend(LINE_RULES.iter().flat_map(|rule| broken_lines(rule, file)));
        found.extend(undocumented_module(file));
        found.extend(lengths::too_long(file));
        found.extend(crates::forbidden_dependencies(file));
    }
    assert!(
        found.is_empty(),
        "{} findings:\n{}",
        found.len(),
        found.join("\n")
    );
}

#[test]
fn the_map_names_what_is_there() {
    let map = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("the map is readable");
    let mut files = Vec::new();
    collect(&root(), "", &mut files);
    let mut top_level: Vec<String> = files
        .iter()
        .map(|file| file.path.split('/').next().unwrap_or_default().to_owned())
        .collect();
    top_level.dedup();
    let found = map_differences(&map, &top_level, |path| root().join(path).exists());
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(
        map.lines().count() <= 250,
        "ARCHITECTURE.md is a map of at most 250 lines"
    );
}

#[test]
fn every_line_rule_refuses_its_sample() {
    for rule in &LINE_RULES {
        let (path, line) = rule.sample;
        let file = File {
            path: path.to_owned(),
            text: line.to_owned(),
        };
        assert_eq!(broken_lines(rule, &file).len(), 1, "{}", rule.what);
        let fine = File {
            path: path.to_owned(),
            text: "let a = 1;".to_owned(),
        };
        assert!(broken_lines(rule, &fine).is_empty(), "{}", rule.what);
    }
    let bare = File {
        path: "radix/src/a.rs".to_owned(),
        text: "use std::fmt;\n".to_owned(),
    };
    assert!(undocumented_module(&bare).is_some());
}

#[test]
fn a_wrong_map_is_refused() {
    let map = "`radix/src/gone.rs` and `radix/` but `/v1/models` is no path";
    let top_level = ["radix".to_owned(), "kernels".to_owned()];
    let found = map_differences(map, &top_level, |path| path == "radix/");
    assert_eq!(
        found,
        ["the map names radix/src/gone.rs", "the map leaves out kernels"]
    );
}
