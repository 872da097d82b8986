//! What an unknown key of the configuration file was probably meant to be.

use clap::Args;

use super::Options;

/// Names the option nearest to the first key of `text` that is none, if one is near.
pub(super) fn hint(text: &str) -> String {
    let Ok(table) = text.parse::<toml::Table>() else {
        return String::new();
    };
    let command = Options::augment_args(clap::Command::new("serve"));
    let options = command.get_arguments().filter_map(clap::Arg::get_long);
    let names: Vec<&str> = options.chain(["models"]).collect();
    let unknown = table.keys().find(|key| !names.contains(&key.as_str()));
    let Some(unknown) = unknown else {
        return String::new();
    };
    // A file has few keys, but one may be as long as the file.
    let shown: String = unknown.chars().take(40).collect();
    let nearest = names.into_iter().min_by_key(|name| distance(&shown, name));
    match nearest.filter(|name| 2 * distance(&shown, name) <= name.len()) {
        Some(name) => format!("did you mean '{name}' for '{shown}'?"),
        None => String::new(),
    }
}

/// Letters to change, add or drop to make `b` of `a`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in b.iter().enumerate() {
            let changed = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_option_is_named_and_only_if_it_is_near() {
        for (key, expected) in [
            ("api_key", "api-key"),
            ("max-runing", "max-running"),
            ("modle", "model"),
            ("Port", "port"),
        ] {
            let expected = format!("did you mean '{expected}' for '{key}'?");
            assert_eq!(hint(&format!("{key} = 1")), expected);
        }
        for nothing in ["temperature = 1", "port = 1", "= nonsense", ""] {
            assert_eq!(hint(nothing), "", "{nothing}");
        }
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
