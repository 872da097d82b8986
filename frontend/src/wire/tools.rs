//! Tools that a chat offers to the model, and whether it must call one.

use arbora_constrained::{CallFormat, Enforcement, ParallelCalls, Whitespace};
use serde_json::{Value, json};

use super::constraint::{Constraint, Source, ToolCalls, ToolFunction, WhichTool};
use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::strict;

/// Most tools of one request.
pub const MAX_TOOLS: usize = 128;
/// Most bytes of a tool's name.
pub const MAX_NAME_BYTES: usize = 128;

/// What a chat may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tools {
    /// At least one, as the client wrote them; templates print them.
    pub listed: Vec<Value>,
    functions: Vec<ToolFunction>,
    which: WhichTool,
    parallel: ParallelCalls,
}

/// What a request says of calling its tools.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Choice {
    /// The field that says it; complaints name it.
    pub(super) path: String,
    /// Whether and which; absent where nothing may be called.
    pub(super) which: Option<WhichTool>,
    /// Names of those that may be called; absent for all.
    pub(super) allowed: Option<Vec<String>>,
    /// How many.
    pub(super) parallel: ParallelCalls,
}

/// A tool as a request describes it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Described {
    /// Where in the request it stands.
    pub(super) path: String,
    /// As templates print it: in the shape of OpenAI's chats.
    pub(super) listed: Value,
    /// What may be called.
    pub(super) function: ToolFunction,
}

/// Which schemas a tool may have that is strict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StrictRules {
    /// Those that OpenAI allows.
    OpenAi,
    /// All that can be enforced.
    Enforceable,
}

impl Tools {
    /// Reads `tools`, `tool_choice` and `parallel_tool_calls`; `None` where nothing may be called.
    pub fn read(f: &mut Fields) -> Result<Option<Self>, ApiError> {
        let path = f.path_of("tool_choice");
        let choice = f.raw("tool_choice");
        let parallel = match f.optional("parallel_tool_calls")? {
            Some(false) => ParallelCalls::AtMostOne,
            _ => ParallelCalls::Allowed,
        };
        let mut described = Vec::new();
        for (path, value) in f.list("tools", MAX_TOOLS)?.unwrap_or_default() {
            described.push(Described {
                listed: value.clone(),
                function: function(Fields::nested(value, path.clone())?)?,
                path,
            });
        }
        let (which, allowed) = match choice {
            None => (Some(WhichTool::Auto), None),
            Some(Value::String(word)) if word == "none" => (None, None),
            Some(Value::String(word)) if word == "auto" => (Some(WhichTool::Auto), None),
            Some(Value::String(word)) if word == "required" => (Some(WhichTool::Any), None),
            Some(object @ Value::Object(_)) => object_choice(object, &path)?,
            Some(other) => {
                let expected = "\"none\", \"auto\", \"required\" or a function's name in an object";
                return Err(wrong_type(&path, expected, &other));
            }
        };
        let choice = Choice {
            path,
            which,
            allowed,
            parallel,
        };
        Tools::new(described, choice)
    }

    /// The tools of a request; `None` where nothing may be called. Those that the choice leaves out are still
    /// printed by templates, so that prompts with other choices begin alike.
    pub(super) fn new(described: Vec<Described>, choice: Choice) -> Result<Option<Self>, ApiError> {
        let path = choice.path;
        let mut listed = Vec::with_capacity(described.len());
        let mut functions: Vec<ToolFunction> = Vec::with_capacity(described.len());
        for one in described {
            let name = &one.function.name;
            if functions.iter().any(|known| known.name == *name) {
                let path = one.path;
                let message = format!("'{path}' has the name '{name}' of another tool.");
                return Err(ApiError::invalid(path, message));
            }
            listed.push(one.listed);
            functions.push(one.function);
        }
        let Some(which) = choice.which else {
            return Ok(None);
        };
        if functions.is_empty() {
            return match (which, choice.allowed) {
                (WhichTool::Auto, None) => Ok(None),
                _ => {
                    let message = format!("'{path}' asks for a call, but 'tools' is empty.");
                    Err(ApiError::invalid(path, message))
                }
            };
        }
        let named = match &which {
            WhichTool::Named(name) => std::slice::from_ref(name),
            _ => choice.allowed.as_deref().unwrap_or_default(),
        };
        let is_there = |name: &&String| functions.iter().any(|known| known.name == **name);
        if let Some(name) = named.iter().find(|name| !is_there(name)) {
            let message = format!("'{path}' names '{name}', which is not among 'tools'.");
            return Err(ApiError::invalid(path, message));
        }
        if let Some(allowed) = choice.allowed {
            functions.retain(|known| allowed.contains(&known.name));
        }
        Ok(Some(Tools {
            listed,
            functions,
            which,
            parallel: choice.parallel,
        }))
    }

    /// What an output that calls these tools in `format` looks like. Where it need not call any, `otherwise`
    /// says how it looks without.
    pub fn constraint(
        &self,
        format: CallFormat,
        whitespace: Whitespace,
        otherwise: Option<Source>,
    ) -> Constraint {
        let mut calls = ToolCalls {
            functions: self.functions.clone(),
            format,
            which: self.which.clone(),
            parallel: self.parallel,
            whitespace,
        };
        let source = match (&self.which, otherwise) {
            (WhichTool::Auto, Some(otherwise)) => {
                calls.which = WhichTool::Any;
                Source::CallsOr(calls, Box::new(otherwise))
            }
            _ => Source::Tools(calls),
        };
        Constraint {
            param: "tools".to_owned(),
            source,
        }
    }

    /// Names of the tools.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.functions.iter().map(|function| function.name.as_str())
    }

    /// Whether an output may do without a call.
    pub fn are_optional(&self) -> bool {
        self.which == WhichTool::Auto
    }
}

/// One tool of a chat.
fn function(mut tool: Fields) -> Result<ToolFunction, ApiError> {
    let kind = tool.required::<String>("type")?;
    if kind != "function" {
        return Err(wrong_type(
            &tool.path_of("type"),
            "\"function\"",
            &Value::String(kind),
        ));
    }
    let path = tool.path_of("function");
    let Some(mut function) = tool.object("function")? else {
        let message = format!("Missing required parameter: '{path}'.");
        return Err(ApiError::invalid(path, message));
    };
    tool.finish();
    let (function_read, _) = described_in(&mut function, "parameters", StrictRules::OpenAi)?;
    function.finish();
    Ok(function_read)
}

/// A tool whose name, description and schema stand side by side, the schema in the field `schema`.
pub(super) fn flat(
    (path, mut tool): (String, Fields),
    schema: &str,
    rules: StrictRules,
) -> Result<Described, ApiError> {
    let (function, description) = described_in(&mut tool, schema, rules)?;
    tool.finish();
    let parameters: Value =
        serde_json::from_str(&function.parameters).expect("a value that was written is read");
    let mut shown = json!({"name": function.name});
    if let Some(description) = description {
        shown["description"] = description.into();
    }
    shown["parameters"] = parameters;
    Ok(Described {
        path,
        listed: json!({"type": "function", "function": shown}),
        function,
    })
}

/// The function and the description in the object `f`. What of the schema cannot be enforced is refused where
/// the tool is strict and left out where it is not.
fn described_in(
    f: &mut Fields,
    schema: &str,
    rules: StrictRules,
) -> Result<(ToolFunction, Option<String>), ApiError> {
    let name = f.required::<String>("name")?;
    let is_letter = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(is_letter) {
        let expected = "1 to 128 of letters, digits, '_', '-' and '.'";
        return Err(wrong_type(&f.path_of("name"), expected, &Value::String(name)));
    }
    let description = f.optional::<String>("description")?;
    let path = f.path_of(schema);
    let parameters = match f.raw(schema) {
        None => json!({"type": "object", "properties": {}, "additionalProperties": false}),
        Some(schema @ Value::Object(_)) => schema,
        Some(other) => return Err(wrong_type(&path, "a JSON Schema", &other)),
    };
    let is_strict = f.optional::<bool>("strict")?.unwrap_or(false);
    if is_strict && rules == StrictRules::OpenAi {
        strict::check(&parameters, &path)?;
    }
    let function = ToolFunction {
        name,
        parameters: parameters.to_string(),
        enforcement: if is_strict {
            Enforcement::Whole
        } else {
            Enforcement::Relaxed
        },
    };
    Ok((function, description))
}

/// What an object in `tool_choice` asks for: a tool by its name, or some of all.
fn object_choice(choice: Value, path: &str) -> Result<(Option<WhichTool>, Option<Vec<String>>), ApiError> {
    if choice["type"] != "allowed_tools" {
        return Ok((Some(WhichTool::Named(named_choice(choice, path)?)), None));
    }
    let mut choice = Fields::nested(choice, path.to_owned())?;
    choice.raw("type");
    let inner = choice.path_of("allowed_tools");
    let Some(allowed) = choice.object("allowed_tools")? else {
        return Err(ApiError::invalid(
            &inner,
            format!("Missing required parameter: '{inner}'."),
        ));
    };
    choice.finish_strictly()?;
    let (which, names) = allowed_tools(allowed, named_choice)?;
    Ok((Some(which), Some(names)))
}

/// `{mode, tools}`, each of the tools as `name_of` reads it.
pub(super) fn allowed_tools(
    mut f: Fields,
    name_of: fn(Value, &str) -> Result<String, ApiError>,
) -> Result<(WhichTool, Vec<String>), ApiError> {
    let mode = f.required::<String>("mode")?;
    let which = match mode.as_str() {
        "auto" => WhichTool::Auto,
        "required" => WhichTool::Any,
        _ => {
            let expected = "\"auto\" or \"required\"";
            return Err(wrong_type(&f.path_of("mode"), expected, &Value::String(mode)));
        }
    };
    let path = f.path_of("tools");
    let named = f.list("tools", MAX_TOOLS)?.unwrap_or_default();
    if named.is_empty() {
        return Err(ApiError::invalid(
            &path,
            format!("'{path}' must hold at least one tool."),
        ));
    }
    f.finish_strictly()?;
    let names = named.into_iter().map(|(path, tool)| name_of(tool, &path));
    Ok((which, names.collect::<Result<_, _>>()?))
}

/// `{type: function, function: {name}}`; some clients leave the type out, or the function's object.
pub(super) fn named_choice(choice: Value, path: &str) -> Result<String, ApiError> {
    let mut choice = Fields::nested(choice, path.to_owned())?;
    let kind = choice.optional::<String>("type")?;
    if let Some(kind) = kind.filter(|kind| kind != "function") {
        return Err(wrong_type(
            &choice.path_of("type"),
            "\"function\"",
            &Value::String(kind),
        ));
    }
    let name = match choice.object("function")? {
        Some(mut function) => {
            let name = function.required("name")?;
            function.finish_strictly()?;
            name
        }
        None => choice.optional("name")?.ok_or_else(|| {
            let path = choice.path_of("function");
            ApiError::invalid(&path, format!("Missing required parameter: '{path}'."))
        })?,
    };
    choice.finish_strictly()?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEATHER: &str = r#"{"type": "function", "function": {"name": "weather", "parameters":
        {"type": "object", "properties": {"city": {"type": "string"}}}}}"#;

    fn read(json: &str) -> Result<Option<Tools>, ApiError> {
        Tools::read(&mut Fields::parse(json.as_bytes())?)
    }

    #[test]
    fn tools_and_choices_are_read() {
        let with = |rest: &str| read(&format!(r#"{{"tools": [{WEATHER}]{rest}}}"#)).expect(rest);
        let tools = with("").expect("tools");
        assert_eq!(tools.which, WhichTool::Auto);
        assert_eq!(tools.functions[0].name, "weather");
        assert!(tools.functions[0].parameters.contains("city"));
        assert_eq!(with(r#", "tool_choice": "none""#), None);
        assert_eq!(
            with(r#", "tool_choice": "required""#).expect("tools").which,
            WhichTool::Any
        );
        let named = with(r#", "tool_choice": {"type": "function", "function": {"name": "weather"}}"#);
        assert_eq!(
            named.expect("tools").which,
            WhichTool::Named("weather".to_owned())
        );
        let some = with(
            r#", "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required",
                "tools": [{"type": "function", "function": {"name": "weather"}}]}}"#,
        );
        assert_eq!(some.expect("tools").which, WhichTool::Any);
        let single = with(r#", "parallel_tool_calls": false"#).expect("tools");
        assert_eq!(single.parallel, ParallelCalls::AtMostOne);
        assert_eq!(read(r#"{"tools": []}"#).expect("nothing to call"), None);
    }

    #[test]
    fn tools_that_may_not_be_called_are_printed_all_the_same() {
        let add = r#"{"type": "function", "function": {"name": "add"}}"#;
        let json = format!(
            r#"{{"tools": [{WEATHER}, {add}], "tool_choice": {{"type": "allowed_tools", "allowed_tools":
                {{"mode": "auto", "tools": [{{"name": "add"}}]}}}}}}"#
        );
        let tools = read(&json).expect("valid").expect("tools");
        assert_eq!(tools.names().collect::<Vec<_>>(), ["add"]);
        assert_eq!(tools.listed.len(), 2);
    }

    #[test]
    fn what_is_malformed_names_its_field() {
        let cases = [
            (r#"{"tools": [{}]}"#.to_owned(), "tools[0].type"),
            (
                r#"{"tools": [{"type": "web_search"}]}"#.to_owned(),
                "tools[0].type",
            ),
            (
                r#"{"tools": [{"type": "function"}]}"#.to_owned(),
                "tools[0].function",
            ),
            (
                r#"{"tools": [{"type": "function", "function": {"name": "a b"}}]}"#.to_owned(),
                "tools[0].function.name",
            ),
            (
                r#"{"tools": [{"type": "function", "function": {"name": "a", "parameters": 5}}]}"#.to_owned(),
                "tools[0].function.parameters",
            ),
            (
                r#"{"tools": [{"type": "function", "function": {"name": "a", "strict": true,
                    "parameters": {"type": "object"}}}]}"#
                    .to_owned(),
                "tools[0].function.parameters",
            ),
            (format!(r#"{{"tools": [{WEATHER}, {WEATHER}]}}"#), "tools[1]"),
            (r#"{"tool_choice": "required"}"#.to_owned(), "tool_choice"),
            (
                format!(r#"{{"tools": [{WEATHER}], "tool_choice": "always"}}"#),
                "tool_choice",
            ),
            (
                format!(
                    r#"{{"tools": [{WEATHER}], "tool_choice": {{"type": "allowed_tools", "allowed_tools":
                        {{"mode": "auto", "tools": []}}}}}}"#
                ),
                "tool_choice.allowed_tools.tools",
            ),
            (
                format!(
                    r#"{{"tools": [{WEATHER}], "tool_choice": {{"type": "allowed_tools", "allowed_tools":
                        {{"mode": "any", "tools": [{{"name": "weather"}}]}}}}}}"#
                ),
                "tool_choice.allowed_tools.mode",
            ),
            (
                format!(r#"{{"tools": [{WEATHER}], "tool_choice": {{"type": "function"}}}}"#),
                "tool_choice.function",
            ),
            (
                format!(
                    r#"{{"tools": [{WEATHER}], "tool_choice": {{"type": "function", "function": {{"name": "x"}}}}}}"#
                ),
                "tool_choice",
            ),
        ];
        for (json, expected) in cases {
            match read(&json).expect_err(&json) {
                ApiError::Invalid {
                    param: Some(param), ..
                } => assert_eq!(param, expected, "{json}"),
                other => panic!("{json}: {other:?}"),
            }
        }
    }
}
