//! `POST /v1/responses` and `POST /v1/responses/input_tokens`: the request.
//!
//! ```text
//! body ─parse─► ResponsesRequest ─complete─► ResponsesJob
//!                                   ▲
//!                    items of earlier responses, from those who keep them
//! ```

use std::collections::BTreeMap;

use arbora_constrained::ParallelCalls;
use serde_json::{Map, Value, json};

use super::items::{Thread, normalized};
use crate::thinking::Thoughts;
use crate::wire::chat::{ChatRequest, Conversation, MAX_MESSAGES, PromptEnding};
use crate::wire::constraint::{Constraint, WhichTool};
use crate::wire::error::ApiError;
use crate::wire::fields::{Fields, wrong_type};
use crate::wire::options::{Delivery, OneOutput, Options, SamplingAsked, in_range};
use crate::wire::strict;
use crate::wire::tools::{self, Choice, Described, MAX_TOOLS, StrictRules, Tools};
use crate::wire::unsupported::{self, RESPONSES};

/// Most pairs of `metadata`.
const MAX_METADATA: usize = 16;
/// Fields that an answer repeats as they came, and what it says where they did not.
const REPEATED: [(&str, &str); 3] = [("tools", "[]"), ("tool_choice", "\"auto\""), ("metadata", "{}")];

/// What a client asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct ResponsesRequest {
    /// The response that this one follows.
    pub previous: Option<String>,
    input: Vec<(String, Value)>,
    instructions: Option<String>,
    template_values: Map<String, Value>,
    tools: Option<Tools>,
    options: Options,
    told: Told,
}

/// What is said of a response besides the model's words.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// Fields that the answer repeats, in its order.
    pub repeated: Map<String, Value>,
    /// The namespace of each tool that has one.
    pub namespaces: BTreeMap<String, String>,
    /// Whether the response is kept.
    pub is_kept: bool,
    /// Whether the client does not wait for it.
    pub is_background: bool,
}

/// A request whose items are all known.
#[derive(Clone, Debug, PartialEq)]
pub struct ResponsesJob {
    /// The chat that it is.
    pub chat: ChatRequest,
    /// The client's items, as they are kept.
    pub input: Vec<Value>,
    /// The response that it follows.
    pub previous: Option<String>,
    /// What is said of it besides.
    pub told: Told,
}

impl ResponsesRequest {
    /// Reads a request body.
    ///
    /// # Errors
    /// Names the field that is missing, malformed or not supported.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut f = Fields::parse(body)?;
        unsupported::refuse(&mut f, &[&RESPONSES])?;
        let mut repeated = Map::new();
        for (name, otherwise) in REPEATED {
            let given = f.raw(name);
            let shown = given
                .clone()
                .unwrap_or_else(|| serde_json::from_str(otherwise).expect("a default is JSON"));
            repeated.insert(name.to_owned(), shown);
            f.put(name, given);
        }
        let input = input(&mut f)?;
        let instructions = f.optional::<String>("instructions")?;
        repeated.insert("instructions".to_owned(), instructions.clone().into());
        let mut namespaces = BTreeMap::new();
        let tools = read_tools(&mut f, &mut namespaces, &mut repeated)?;
        let (format, constraint) = text(&mut f)?;
        repeated.insert("text".to_owned(), format);
        let mut template_values = Map::new();
        repeated.insert("reasoning".to_owned(), reasoning(&mut f, &mut template_values)?);
        let max_tokens = in_range(&mut f, "max_output_tokens", 1, u32::MAX as usize)?;
        repeated.insert("max_output_tokens".to_owned(), max_tokens.into());
        let previous = f.optional::<String>("previous_response_id")?;
        repeated.insert("previous_response_id".to_owned(), previous.clone().into());
        labels(&mut f, &mut repeated)?;
        metadata(&mut f)?;
        include(&mut f)?;
        let is_kept = f.optional::<bool>("store")?.unwrap_or(true);
        let is_background = f.optional::<bool>("background")?.unwrap_or(false);
        repeated.insert("store".to_owned(), is_kept.into());
        repeated.insert("background".to_owned(), is_background.into());
        if is_background && !is_kept {
            let message = "'background' needs 'store': nobody could ask for the response.";
            return Err(ApiError::invalid("background", message));
        }
        let output = OneOutput {
            max_tokens,
            stops: Vec::new(),
            constraint,
            sampling: SamplingAsked::read(&mut f)?,
            delivery: Delivery::read(&mut f)?,
        };
        let options = Options::of_one(&mut f, output)?;
        if let Some(mut stream) = f.object("stream_options")? {
            // Deltas are never padded.
            stream.optional::<bool>("include_obfuscation")?;
            stream.finish();
        }
        f.finish();
        Ok(ResponsesRequest {
            previous,
            input,
            instructions,
            template_values,
            tools,
            options,
            told: Told {
                repeated,
                namespaces,
                is_kept,
                is_background,
            },
        })
    }

    /// Puts the conversation together: `past` holds the items of the responses before, and `find` knows items
    /// by their ids.
    ///
    /// # Errors
    /// Where an item is malformed, or nobody knows it.
    pub fn complete(
        self,
        past: Vec<Value>,
        find: impl Fn(&str) -> Option<Value>,
    ) -> Result<ResponsesJob, ApiError> {
        let mut thread = Thread::new(self.instructions);
        for item in past {
            thread.item("previous_response_id".to_owned(), item)?;
        }
        let mut input = Vec::with_capacity(self.input.len());
        for (path, item) in self.input {
            let item = match item["type"] == "item_reference" {
                true => referred((&path, item), &find)?,
                false => item,
            };
            thread.item(path, item.clone())?;
            input.push(normalized(item));
        }
        let messages = thread.finish();
        let mut tools = self.tools;
        Ok(ResponsesJob {
            chat: ChatRequest {
                conversation: Conversation {
                    messages,
                    tools: tools
                        .as_mut()
                        .map_or_else(Vec::new, |tools| std::mem::take(&mut tools.listed)),
                    ending: PromptEnding::Answer,
                    template_values: self.template_values,
                    before: Vec::new(),
                },
                tools,
                thoughts: Thoughts::Apart,
                thinking_budget: None,
                options: self.options,
            },
            input,
            previous: self.previous,
            told: self.told,
        })
    }
}

/// A text, or items.
fn input(f: &mut Fields) -> Result<Vec<(String, Value)>, ApiError> {
    let given = f.raw("input");
    let items = match given {
        Some(Value::String(text)) => {
            vec![("input[0]".to_owned(), json!({"role": "user", "content": text}))]
        }
        Some(list @ Value::Array(_)) => {
            f.put("input", Some(list));
            f.list("input", MAX_MESSAGES)?.unwrap_or_default()
        }
        None => Vec::new(),
        Some(other) => return Err(wrong_type("input", "a string or an array of items", &other)),
    };
    if items.is_empty() {
        let message = "'input' must be a text or hold at least one item.";
        return Err(ApiError::invalid("input", message));
    }
    Ok(items)
}

/// What an `item_reference` refers to.
fn referred((path, item): (&str, Value), find: impl Fn(&str) -> Option<Value>) -> Result<Value, ApiError> {
    let mut f = Fields::nested(item, path.to_owned())?;
    f.raw("type");
    let id = f.required::<String>("id")?;
    f.finish();
    find(&id).ok_or(ApiError::NotKept {
        param: format!("{path}.id"),
        what: "item",
        id: id.chars().take(100).collect(),
    })
}

fn read_tools(
    f: &mut Fields,
    namespaces: &mut BTreeMap<String, String>,
    repeated: &mut Map<String, Value>,
) -> Result<Option<Tools>, ApiError> {
    let path = f.path_of("tool_choice");
    let choice = f.raw("tool_choice");
    let is_parallel = f.optional::<bool>("parallel_tool_calls")?.unwrap_or(true);
    repeated.insert("parallel_tool_calls".to_owned(), is_parallel.into());
    let mut described = Vec::new();
    for (path, value) in f.list("tools", MAX_TOOLS)?.unwrap_or_default() {
        let mut tool = Fields::nested(value, path.clone())?;
        let kind = tool.required::<String>("type")?;
        match kind.as_str() {
            "function" => described.push(tools::flat((path, tool), "parameters", StrictRules::OpenAi)?),
            "namespace" => described.extend(namespace(tool, namespaces)?),
            _ => {
                let expected = "\"function\" or \"namespace\"";
                return Err(wrong_type(&tool.path_of("type"), expected, &Value::String(kind)));
            }
        }
    }
    let (which, allowed) = match choice {
        None => (Some(WhichTool::Auto), None),
        Some(Value::String(word)) if word == "none" => (None, None),
        Some(Value::String(word)) if word == "auto" => (Some(WhichTool::Auto), None),
        Some(Value::String(word)) if word == "required" => (Some(WhichTool::Any), None),
        Some(object @ Value::Object(_)) if object["type"] == "allowed_tools" => {
            let mut object = Fields::nested(object, path.clone())?;
            object.raw("type");
            let (which, names) = tools::allowed_tools(object, tools::named_choice)?;
            (Some(which), Some(names))
        }
        Some(object @ Value::Object(_)) => {
            let name = tools::named_choice(object, &path)?;
            (Some(WhichTool::Named(name)), None)
        }
        Some(other) => {
            let expected = "\"none\", \"auto\", \"required\" or an object with a function's name";
            return Err(wrong_type(&path, expected, &other));
        }
    };
    let parallel = match is_parallel {
        true => ParallelCalls::Allowed,
        false => ParallelCalls::AtMostOne,
    };
    let choice = Choice {
        path,
        which,
        allowed,
        parallel,
    };
    Tools::new(described, choice)
}

/// `{name, description, tools}`: its functions are called by their names; an answer names the namespace.
fn namespace(
    mut tool: Fields,
    namespaces: &mut BTreeMap<String, String>,
) -> Result<Vec<Described>, ApiError> {
    let name = tool.required::<String>("name")?;
    tool.optional::<String>("description")?;
    let mut described = Vec::new();
    for (path, value) in tool.list("tools", MAX_TOOLS)?.unwrap_or_default() {
        let mut inner = Fields::nested(value, path.clone())?;
        let kind = inner.required::<String>("type")?;
        if kind != "function" {
            let path = inner.path_of("type");
            return Err(wrong_type(&path, "\"function\"", &Value::String(kind)));
        }
        let one = tools::flat((path, inner), "parameters", StrictRules::OpenAi)?;
        namespaces.insert(one.function.name.clone(), name.clone());
        described.push(one);
    }
    tool.finish();
    Ok(described)
}

/// `text`: what the output must look like, and how an answer repeats it.
fn text(f: &mut Fields) -> Result<(Value, Option<Constraint>), ApiError> {
    let (mut shown, mut constraint) = (json!({"type": "text"}), None);
    if let Some(mut text) = f.object("text")? {
        // How much is said is a matter between client and model.
        text.optional::<String>("verbosity")?;
        if let Some(format) = text.raw("format") {
            let path = text.path_of("format");
            shown = format.clone();
            constraint = read_format(Fields::nested(format, path)?)?;
        }
        text.finish();
    }
    Ok((json!({"format": shown}), constraint))
}

fn read_format(mut format: Fields) -> Result<Option<Constraint>, ApiError> {
    let kind = format.required::<String>("type")?;
    let constraint = match kind.as_str() {
        "text" => None,
        "json_object" => Some(Constraint::any_object(format.path_of("type"))),
        "json_schema" => {
            format.optional::<String>("name")?;
            format.optional::<String>("description")?;
            let is_strict = format.optional::<bool>("strict")?.unwrap_or(false);
            let path = format.path_of("schema");
            let schema = format.raw("schema");
            if let (true, Some(schema @ Value::Object(_))) = (is_strict, &schema) {
                strict::check(schema, &path)?;
            }
            format.put("schema", schema);
            Some(Constraint::of_schema(&mut format, "schema")?)
        }
        _ => {
            let path = format.path_of("type");
            let expected = "\"text\", \"json_object\" or \"json_schema\"";
            return Err(wrong_type(&path, expected, &Value::String(kind)));
        }
    };
    format.finish_strictly()?;
    Ok(constraint)
}

/// `reasoning`: as much as templates can be told of it, and how an answer repeats it.
fn reasoning(f: &mut Fields, template_values: &mut Map<String, Value>) -> Result<Value, ApiError> {
    let (mut effort, mut summary) = (None, None);
    if let Some(mut reasoning) = f.object("reasoning")? {
        effort = reasoning.optional::<String>("effort")?;
        // Thoughts come as they are.
        summary = reasoning.optional::<String>("summary")?;
        reasoning.optional::<String>("generate_summary")?;
        reasoning.finish();
    }
    match effort.as_deref() {
        Some("none") => {
            for name in ["enable_thinking", "thinking"] {
                template_values.insert(name.to_owned(), false.into());
            }
        }
        Some(effort) => drop(template_values.insert("reasoning_effort".to_owned(), effort.into())),
        None => {}
    }
    Ok(json!({"effort": effort, "summary": summary}))
}

/// What is known, without effect on the output, and repeated.
fn labels(f: &mut Fields, repeated: &mut Map<String, Value>) -> Result<(), ApiError> {
    for name in [
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "user",
    ] {
        repeated.insert(name.to_owned(), f.optional::<String>(name)?.into());
    }
    let tier = f.optional::<String>("service_tier")?;
    repeated.insert(
        "service_tier".to_owned(),
        tier.unwrap_or_else(|| "auto".to_owned()).into(),
    );
    // Only of tools that the server would run itself.
    in_range(f, "max_tool_calls", 0, u32::MAX as usize)?;
    Ok(())
}

fn metadata(f: &mut Fields) -> Result<(), ApiError> {
    let path = f.path_of("metadata");
    let pairs = match f.raw("metadata") {
        None => return Ok(()),
        Some(Value::Object(pairs)) => pairs,
        Some(other) => return Err(wrong_type(&path, "an object", &other)),
    };
    if pairs.len() > MAX_METADATA {
        let n = pairs.len();
        let message = format!("'{path}' has {n} pairs, at most {MAX_METADATA} are allowed.");
        return Err(ApiError::invalid(path, message));
    }
    match pairs.iter().find(|(_, value)| !value.is_string()) {
        Some((name, value)) => {
            let name: String = name.chars().take(64).collect();
            Err(wrong_type(&format!("{path}.{name}"), "a string", value))
        }
        None => Ok(()),
    }
}

/// `include`: what else an answer should hold. Most of it is of tools that are not here.
fn include(f: &mut Fields) -> Result<(), ApiError> {
    for (path, value) in f.list("include", 16)?.unwrap_or_default() {
        if !value.is_string() {
            return Err(wrong_type(&path, "a string", &value));
        }
        if value == "message.output_text.logprobs" {
            let message = format!("'{path}' asks for log-probabilities, which responses do not have here.");
            return Err(ApiError::invalid(path, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::Role;

    fn read(body: &Value) -> Result<ResponsesJob, ApiError> {
        ResponsesRequest::parse(body.to_string().as_bytes())?.complete(Vec::new(), |_| None)
    }

    #[test]
    fn a_text_is_a_message_behind_the_instructions() {
        let job = read(&json!({"input": "hello", "instructions": "Be kind."})).expect("valid");
        let messages = job.chat.conversation.messages;
        let shown: Vec<_> = messages
            .iter()
            .map(|message| (message.role, message.content.as_deref()))
            .collect();
        assert_eq!(
            shown,
            [(Role::System, Some("Be kind.")), (Role::User, Some("hello"))]
        );
        assert!(job.told.is_kept);
        assert_eq!(job.input[0]["content"][0]["text"], "hello");
    }

    #[test]
    fn tools_are_those_of_a_chat_and_may_have_a_namespace() {
        let parameters = json!({"type": "object", "properties": {"a": {"type": "string"}}});
        let flat = json!({"type": "function", "name": "f", "description": "x", "parameters": parameters});
        let inner = json!({"type": "function", "name": "g", "parameters": parameters});
        let space = json!({"type": "namespace", "name": "files", "description": "x", "tools": [inner]});
        let job = read(&json!({"input": "x", "tools": [flat, space],
            "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]}}));
        let job = job.expect("valid");
        let shown = json!({"type": "function",
            "function": {"name": "f", "description": "x", "parameters": parameters}});
        assert_eq!(job.chat.conversation.tools[0], shown);
        assert_eq!(job.chat.conversation.tools.len(), 2);
        assert_eq!(job.told.namespaces["g"], "files");
        let tools = job.chat.tools.expect("tools");
        assert_eq!(tools.names().collect::<Vec<_>>(), ["g"]);
        assert!(!tools.are_optional());
    }

    #[test]
    fn references_are_what_they_refer_to() {
        let body =
            json!({"input": [{"type": "item_reference", "id": "msg_1"}, {"role": "user", "content": "b"}]});
        let parsed = ResponsesRequest::parse(body.to_string().as_bytes()).expect("valid");
        let find = |id: &str| (id == "msg_1").then(|| json!({"role": "user", "content": "a", "id": id}));
        let past = vec![json!({"role": "user", "content": "0"})];
        let job = parsed.clone().complete(past, find).expect("known");
        let texts = job
            .chat
            .conversation
            .messages
            .iter()
            .map(|message| message.content.as_deref());
        assert_eq!(texts.collect::<Vec<_>>(), [Some("0"), Some("a"), Some("b")]);
        assert_eq!(job.input[0]["id"], "msg_1");
        let unknown = parsed
            .complete(Vec::new(), |_| None)
            .expect_err("nobody knows it");
        assert_eq!(unknown.body()["error"]["param"], "input[0].id");
    }

    #[test]
    fn what_is_malformed_or_not_supported_names_its_field() {
        for (more, expected) in [
            (json!({"input": []}), "input"),
            (json!({"input": 5}), "input"),
            (json!({"conversation": "conv_1"}), "conversation"),
            (json!({"truncation": "auto"}), "truncation"),
            (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
            (json!({"tools": [{"type": "function"}]}), "tools[0].name"),
            (json!({"tool_choice": "required"}), "tool_choice"),
            (
                json!({"tool_choice": {"type": "file_search"}}),
                "tool_choice.type",
            ),
            (json!({"text": {"format": {"type": "xml"}}}), "text.format.type"),
            (
                json!({"text": {"format": {"type": "json_schema"}}}),
                "text.format.schema",
            ),
            (
                json!({"text": {"format": {"type": "json_schema", "strict": true, "schema": {"type": "object"}}}}),
                "text.format.schema",
            ),
            (json!({"include": ["message.output_text.logprobs"]}), "include[0]"),
            (json!({"metadata": {"a": 1}}), "metadata.a"),
            (json!({"background": true, "store": false}), "background"),
            (json!({"max_output_tokens": 0}), "max_output_tokens"),
            (json!({"max_tokens": 5}), "max_tokens"),
            (json!({"messages": [{"role": "user"}]}), "messages"),
        ] {
            let mut body = json!({"input": "x"});
            for (name, value) in more.as_object().expect("an object") {
                body[name] = value.clone();
            }
            match read(&body).expect_err("refused") {
                ApiError::Invalid {
                    param: Some(param), ..
                } => assert_eq!(param, expected, "{more}"),
                other => panic!("{more}: {other:?}"),
            }
        }
        let ignored =
            json!({"input": "x", "include": ["reasoning.encrypted_content"], "text": {"verbosity": "low"}});
        assert!(read(&ignored).is_ok());
    }
}
