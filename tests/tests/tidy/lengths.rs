//! How long files and functions may be, tests left out. rustfmt's layout makes it easy: a function ends at
//! the first line that is its own indentation and a brace.

use super::{File, is_product};

/// Lengths above the limit that are left: `path` or `path::function`, and its length today. A ratchet: an
/// entry that has shrunk must be lowered, one that fits must go.
const EXCEPTIONS: [(&str, usize); 0] = [];
const MAX_FILE_LINES: usize = 600;
const MAX_FUNCTION_LINES: usize = 70;

/// The file and each of its functions: key, lines, limit.
fn measure(file: &File) -> Vec<(String, usize, usize)> {
    if !is_product(&file.path) {
        return Vec::new();
    }
    let lines: Vec<&str> = file.text.lines().collect();
    let tests = lines
        .windows(2)
        .position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod "));
    let lines = &lines[..tests.unwrap_or(lines.len())];
    let mut measured = vec![(file.path.clone(), lines.len(), MAX_FILE_LINES)];
    for (start, line) in lines.iter().enumerate() {
        let Some((before, after)) = line.split_once("fn ") else {
            continue;
        };
        let modifiers = [
            "pub",
            "pub(crate)",
            "pub(super)",
            "const",
            "async",
            concat!("un", "safe"),
            "extern",
            "\"C\"",
        ];
        if !before.split_whitespace().all(|word| modifiers.contains(&word)) {
            continue;
        }
        let indent = &line[..line.len() - line.trim_start().len()];
        let is_end = |end: &&str| {
            let rest = end.strip_prefix(indent).unwrap_or_default();
            // A body's brace, or a declaration in a trait.
            rest == "}" || rest.starts_with(')') && rest.ends_with(';')
        };
        let one_line = line.ends_with(';') || line.ends_with('}');
        let n_more = lines[start..]
            .iter()
            .position(is_end)
            .unwrap_or(lines.len() - start - 1);
        let name = after
            .split(['(', '<'])
            .next()
            .expect("split yields at least one part");
        let n_lines = if one_line { 1 } else { 1 + n_more };
        measured.push((format!("{}::{name}", file.path), n_lines, MAX_FUNCTION_LINES));
    }
    measured
}

/// What is longer than its limit or its exception.
pub(crate) fn too_long(file: &File) -> Vec<String> {
    let allowed = |key: &str| EXCEPTIONS.iter().find(|(path, _)| *path == key).map(|(_, n)| *n);
    let long = measure(file)
        .into_iter()
        .filter(|(key, n, limit)| *n > allowed(key).unwrap_or(*limit));
    long.map(|(key, n, limit)| format!("{key}: {n} lines, the limit is {limit}"))
        .collect()
}

/// Exceptions that are gone, fit by now, or are shorter than they say.
pub(crate) fn stale_exceptions(files: &[File]) -> Vec<String> {
    let measured: Vec<_> = files.iter().flat_map(measure).collect();
    let is_exact = |(key, n): &(&str, usize)| {
        measured
            .iter()
            .any(|(path, now, limit)| path == key && now == n && now > limit)
    };
    let stale = EXCEPTIONS.iter().filter(|exception| !is_exact(exception));
    stale
        .map(|(key, n)| format!("{key} is no longer {n} lines: lower or remove its exception"))
        .collect()
}

#[test]
fn a_long_function_and_a_long_file_are_refused() {
    let body = "        g();\n".repeat(MAX_FUNCTION_LINES - 1);
    let long =
        format!("impl A {{\n    pub(crate) fn f<T>(\n        t: T,\n    ) -> T {{\n{body}    }}\n}}\n");
    let file = |text: String| File {
        path: "radix/src/a.rs".to_owned(),
        text,
    };
    let n_lines = MAX_FUNCTION_LINES + 3;
    assert_eq!(
        too_long(&file(long)),
        [format!("radix/src/a.rs::f: {n_lines} lines, the limit is 70")]
    );
    assert_eq!(too_long(&file("//! A.\n".repeat(MAX_FILE_LINES + 1))).len(), 1);
    let tests = format!(
        "#[cfg(test)]\nmod tests {{\n{}}}\n",
        "    // one\n".repeat(MAX_FILE_LINES)
    );
    assert!(too_long(&file(tests)).is_empty());
    let declared = format!(
        "trait A {{\n    fn a(\n        b: u8,\n    ) -> u8;\n{}}}\n",
        "    // b\n".repeat(90)
    );
    assert!(too_long(&file(declared)).is_empty());
}
