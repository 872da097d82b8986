//! Tools that a chat offers to the model, and whether it must call one.

use arbora_constrained::{CallFormat, Enforcement, ParallelCalls, Whitespace};
use serde_json::Value;

use super::constraint::{Constraint, Source, ToolCalls, ToolFunction, WhichTool};
use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::strict;

/// Most tools of one request.
pub const MAX_TOOLS: usize = 128;
/// Most bytes of a tool's name.
pub const MAX_NAME_BYTES: usize = 64;

/// What a chat may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tools {
    /// At least one, as the client wrote them; templates print them.
    pub listed: Vec<Value>,
    functions: Vec<ToolFunction>,
    which: WhichTool,
    parallel: ParallelCalls,
}

impl Tools {
    /// Reads `tools`, `tool_choice` and `parallel_tool_calls`; `None` where nothing may be called.
    pub fn read(f: &mut Fields) -> Result<Option<Self>, ApiError> {
        let choice_path = f.path_of("tool_choice");
        let choice = f.raw("tool_choice");
        let parallel = match f.optional("parallel_tool_calls")? {
            Some(false) => ParallelCalls::AtMostOne,
            _ => ParallelCalls::Allowed,
        };
        let mut listed = Vec::new();
        let mut functions: Vec<ToolFunction> = Vec::new();
        for (path, value) in f.list("tools", MAX_TOOLS)?.unwrap_or_default() {
            listed.push(value.clone());
            let function = function(Fields::nested(value, path.clone())?)?;
            if functions.iter().any(|known| known.name == function.name) {
                let message = format!("'{path}' has the name '{}' of another tool.", function.name);
                return Err(ApiError::invalid(path, message));
            }
            functions.push(function);
        }
        let which = match choice {
            None => WhichTool::Auto,
            Some(Value::String(word)) if word == "none" => return Ok(None),
            Some(Value::String(word)) if word == "auto" => WhichTool::Auto,
            Some(Value::String(word)) if word == "required" => WhichTool::Any,
            Some(named @ Value::Object(_)) => WhichTool::Named(named_choice(named, &choice_path)?),
            Some(other) => {
                let expected = "\"none\", \"auto\", \"required\" or a function's name in an object";
                return Err(wrong_type(&choice_path, expected, &other));
            }
        };
        if functions.is_empty() {
            return match which {
                WhichTool::Auto => Ok(None),
                _ => Err(ApiError::invalid(
                    choice_path,
                    "'tool_choice' asks for a call, but 'tools' is empty.",
                )),
            };
        }
        if let WhichTool::Named(name) = &which
            && functions.iter().all(|known| known.name != *name)
        {
            let message = format!("'tool_choice' names '{name}', which is not among 'tools'.");
            return Err(ApiError::invalid(choice_path, message));
        }
        Ok(Some(Tools {
            listed,
            functions,
            which,
            parallel,
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

/// One tool. What of its schema cannot be enforced is refused where it is strict and left out where it is
/// not.
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
    let name = function.required::<String>("name")?;
    let is_letter = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(is_letter) {
        let expected = "1 to 64 of letters, digits, '_', '-' and '.'";
        return Err(wrong_type(
            &function.path_of("name"),
            expected,
            &Value::String(name),
        ));
    }
    function.optional::<String>("description")?;
    let path = function.path_of("parameters");
    let parameters = match function.raw("parameters") {
        None => serde_json::json!({"type": "object", "properties": {}, "additionalProperties": false}),
        Some(schema @ Value::Object(_)) => schema,
        Some(other) => return Err(wrong_type(&path, "a JSON Schema", &other)),
    };
    let is_strict = function.optional::<bool>("strict")?.unwrap_or(false);
    if is_strict {
        strict::check(&parameters, &path)?;
    }
    function.finish();
    Ok(ToolFunction {
        name,
        parameters: parameters.to_string(),
        enforcement: if is_strict {
            Enforcement::Whole
        } else {
            Enforcement::Relaxed
        },
    })
}

/// `{type: function, function: {name}}`; some clients leave the type out, or the function's object.
fn named_choice(choice: Value, path: &str) -> Result<String, ApiError> {
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
        let single = with(r#", "parallel_tool_calls": false"#).expect("tools");
        assert_eq!(single.parallel, ParallelCalls::AtMostOne);
        assert_eq!(read(r#"{"tools": []}"#).expect("nothing to call"), None);
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
