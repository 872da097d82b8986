//! The chat templates (Jinja) that a model comes with: one, or several by name.
//!
//! ```text
//! GGUF     tokenizer.chat_template            `default`
//!          tokenizer.chat_templates           names of the others
//!          tokenizer.chat_template.NAME       the other of that name; `tool_use` without being named, too
//!
//! folder   chat_template.jinja                `default`       \  where one is there,
//!          additional_chat_templates/NAME.jinja               /  those below do not count
//!          tokenizer_config.json, chat_template.json: `chat_template` is
//!            "…" · [{"name": "…", "template": "…"}, …] · {"NAME": "…", …}
//! ```

use std::path::Path;

use serde_json::Value as Json;

use super::directory::{DirectoryError, MAX_SETTINGS_BYTES, read_object, read_optional};
use super::metadata::{KeyError, Metadata};

/// The template for chats without a special one.
pub const DEFAULT: &str = "default";
/// The template for chats with tools.
pub const TOOL_USE: &str = "tool_use";
/// The default template's file in a folder.
pub(super) const FILE: &str = "chat_template.jinja";
/// Where a processor keeps its template.
pub(super) const LEGACY_FILE: &str = "chat_template.json";
/// The folder of the other templates' files.
const FOLDER: &str = "additional_chat_templates";
/// The key of all templates in JSON.
const KEY: &str = "chat_template";
/// Most templates of one model.
const MAX_TEMPLATES: usize = 32;

/// One of a model's templates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedTemplate {
    /// What it is for: [`DEFAULT`], [`TOOL_USE`] or the model's own word.
    pub name: String,
    /// The template.
    pub source: String,
}

impl NamedTemplate {
    fn new(name: &str, source: &str) -> Self {
        NamedTemplate {
            name: name.to_owned(),
            source: source.to_owned(),
        }
    }
}

/// Whether a file in a model's folder is one of the other templates.
pub fn is_other(file: &str) -> bool {
    let name = file.strip_prefix(FOLDER).and_then(|rest| rest.strip_prefix('/'));
    name.is_some_and(|name| name.ends_with(".jinja") && !name.contains('/'))
}

/// Copies the files of the other templates from one folder to another.
pub(super) fn copy_others(from: &Path, to: &Path) -> std::io::Result<()> {
    let others = from.join(FOLDER);
    if !others.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(to.join(FOLDER))?;
    for entry in std::fs::read_dir(others)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let name = format!("{FOLDER}/{name}");
        if is_other(&name) {
            std::fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}

/// Those in a GGUF file's metadata.
pub(super) fn from_metadata(metadata: &Metadata) -> Result<Vec<NamedTemplate>, KeyError> {
    let text = |name: Option<&str>| match name {
        None => metadata.text("tokenizer.chat_template"),
        Some(name) => metadata.text(&format!("tokenizer.chat_template.{name}")),
    };
    let mut templates = Vec::new();
    templates.extend(text(None)?.map(|source| NamedTemplate::new(DEFAULT, source)));
    let listed = metadata.strings("tokenizer.chat_templates")?;
    let listed = listed.iter().flat_map(|names| names.iter());
    for name in [DEFAULT, TOOL_USE].into_iter().chain(listed).take(MAX_TEMPLATES) {
        let is_new = templates.iter().all(|known: &NamedTemplate| known.name != name);
        if let (true, Some(source)) = (is_new, text(Some(name))?) {
            templates.push(NamedTemplate::new(name, source));
        }
    }
    Ok(templates)
}

/// Those in a folder whose `tokenizer_config.json` holds `settings`.
pub(super) fn from_folder(
    folder: &Path,
    settings: &serde_json::Map<String, Json>,
) -> Result<Vec<NamedTemplate>, DirectoryError> {
    let files = from_files(folder)?;
    if !files.is_empty() {
        return Ok(files);
    }
    if let Some(found) = settings.get(KEY).filter(|found| !found.is_null()) {
        return from_json(found, &folder.join("tokenizer_config.json"));
    }
    let path = folder.join(LEGACY_FILE);
    match read_object(&path)?.as_ref().and_then(|file| file.get(KEY)) {
        Some(found) => from_json(found, &path),
        None => Ok(Vec::new()),
    }
}

fn from_files(folder: &Path) -> Result<Vec<NamedTemplate>, DirectoryError> {
    let mut paths = vec![(DEFAULT.to_owned(), folder.join(FILE))];
    // Without the folder there are no others.
    let others = std::fs::read_dir(folder.join(FOLDER))
        .into_iter()
        .flatten()
        .flatten();
    for path in others.map(|entry| entry.path()).take(MAX_TEMPLATES) {
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(name) = name.and_then(|name| name.strip_suffix(".jinja")) {
            paths.push((name.to_owned(), path));
        }
    }
    paths[1..].sort();
    let mut templates = Vec::new();
    for (name, path) in paths {
        let Some(bytes) = read_optional(&path, MAX_SETTINGS_BYTES)? else {
            continue;
        };
        let source = String::from_utf8(bytes).map_err(|_| DirectoryError::Io {
            path,
            source: std::io::Error::other("it is not UTF-8"),
        })?;
        templates.push(NamedTemplate { name, source });
    }
    Ok(templates)
}

/// What stands under `chat_template` in the file at `path`.
fn from_json(found: &Json, path: &Path) -> Result<Vec<NamedTemplate>, DirectoryError> {
    let wrong = |place: String, expected| DirectoryError::Key {
        path: path.to_owned(),
        source: KeyError::WrongType {
            key: format!("{KEY}{place}"),
            expected,
            found: "something else",
        },
    };
    let templates: Vec<NamedTemplate> = match found {
        Json::String(source) => vec![NamedTemplate::new(DEFAULT, source)],
        Json::Array(list) => {
            let named = |(idx, entry): (usize, &Json)| {
                let text = |key| entry.get(key)?.as_str();
                match (text("name"), text("template")) {
                    (Some(name), Some(source)) => Ok(NamedTemplate::new(name, source)),
                    _ => Err(wrong(format!("[{idx}]"), "an object with `name` and `template`")),
                }
            };
            list.iter().enumerate().map(named).collect::<Result<_, _>>()?
        }
        Json::Object(members) => {
            let named = |(name, source): (&String, &Json)| match source.as_str() {
                Some(source) => Ok(NamedTemplate::new(name, source)),
                None => Err(wrong(format!(".{name}"), "a string")),
            };
            members.iter().map(named).collect::<Result<_, _>>()?
        }
        _ => return Err(wrong(String::new(), "a string, or several by name")),
    };
    if templates.len() > MAX_TEMPLATES {
        let source = KeyError::OutOfRange {
            key: KEY.to_owned(),
            value: format!("{} templates", templates.len()),
            limit: format!("at most {MAX_TEMPLATES}"),
        };
        let path = path.to_owned();
        return Err(DirectoryError::Key { path, source });
    }
    Ok(templates)
}

#[cfg(test)]
mod tests {
    use super::super::metadata::Value;
    use super::*;

    fn names(templates: &[NamedTemplate]) -> Vec<(&str, &str)> {
        let pairs = templates
            .iter()
            .map(|template| (template.name.as_str(), template.source.as_str()));
        pairs.collect()
    }

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join(FOLDER)).expect("a folder within");
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).expect("a file");
        }
        folder
    }

    fn read(files: &[(&str, &str)], settings: &str) -> Result<Vec<NamedTemplate>, DirectoryError> {
        let settings = serde_json::from_str(settings).expect("JSON");
        from_folder(folder(files).path(), &settings)
    }

    #[test]
    fn settings_hold_one_template_or_several_by_name() {
        let several = r#"{"chat_template": [
            {"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}, {"name": "rag", "template": "R"}]}"#;
        let expected = [("default", "D"), ("tool_use", "T"), ("rag", "R")];
        assert_eq!(names(&read(&[], several).expect("a list")), expected);
        let by_name = r#"{"chat_template": {"default": "D", "tool_use": "T", "rag": "R"}}"#;
        assert_eq!(names(&read(&[], by_name).expect("an object")), expected);
        let one = r#"{"chat_template": "D"}"#;
        assert_eq!(names(&read(&[], one).expect("a string")), [("default", "D")]);
        for none in ["{}", r#"{"chat_template": null}"#, r#"{"chat_template": []}"#] {
            assert_eq!(read(&[], none).expect(none), [], "{none}");
        }
        let legacy = [(LEGACY_FILE, by_name)];
        assert_eq!(names(&read(&legacy, "{}").expect("a file")), expected);
        assert_eq!(names(&read(&legacy, one).expect("both")), [("default", "D")]);
    }

    #[test]
    fn files_of_their_own_win_over_settings() {
        let settings = r#"{"chat_template": [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]}"#;
        let own = [
            (FILE, "own"),
            ("additional_chat_templates/tool_use.jinja", "tools"),
        ];
        let found = read(&own, settings).expect("files");
        assert_eq!(names(&found), [("default", "own"), ("tool_use", "tools")]);
        let found = read(&own[..1], settings).expect("a file");
        assert_eq!(names(&found), [("default", "own")]);
        let others = [
            ("additional_chat_templates/rag.jinja", "R"),
            ("additional_chat_templates/a.jinja", "A"),
            ("additional_chat_templates/note.txt", "N"),
        ];
        let found = read(&others, settings).expect("files");
        assert_eq!(names(&found), [("a", "A"), ("rag", "R")]);
    }

    #[test]
    fn what_is_no_template_is_told_by_its_place() {
        let cases = [
            (r#"{"chat_template": 5}"#, "`chat_template` should be a string"),
            (
                r#"{"chat_template": [{"name": "default"}]}"#,
                "`chat_template[0]`",
            ),
            (
                r#"{"chat_template": [{"name": "default", "template": "D"}, "T"]}"#,
                "`chat_template[1]`",
            ),
            (r#"{"chat_template": {"default": []}}"#, "`chat_template.default`"),
        ];
        for (settings, expected) in cases {
            let error = read(&[], settings).expect_err(settings).to_string();
            assert!(
                error.contains(expected) && error.contains("tokenizer_config.json"),
                "{error}"
            );
        }
    }

    #[test]
    fn gguf_files_hold_one_template_or_several_by_name() {
        let with = |keys: &[(&str, &str)], listed: &[&str]| {
            let mut metadata = Metadata::default();
            for (key, text) in keys {
                metadata = metadata.with(key, Value::Text((*text).to_owned()));
            }
            if !listed.is_empty() {
                let listed = Value::Strings(listed.iter().copied().collect());
                metadata = metadata.with("tokenizer.chat_templates", listed);
            }
            from_metadata(&metadata).expect("well typed")
        };
        let default = ("tokenizer.chat_template", "D");
        let tool_use = ("tokenizer.chat_template.tool_use", "T");
        let rag = ("tokenizer.chat_template.rag", "R");
        assert_eq!(with(&[], &[]), []);
        assert_eq!(names(&with(&[default], &[])), [("default", "D")]);
        let both = [("default", "D"), ("tool_use", "T")];
        assert_eq!(names(&with(&[default, tool_use, rag], &[])), both);
        let all = [("default", "D"), ("tool_use", "T"), ("rag", "R")];
        let listed = with(&[default, tool_use, rag], &["rag", "tool_use", "lost"]);
        assert_eq!(names(&listed), all);
    }
}
