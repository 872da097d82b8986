//! Ollama's requests: `/api/chat`, `/api/generate`, `/api/embed`, `/api/embeddings`, and those about models.
//!
//! How tokens are drawn stands in `options`. What concerns the machine there (`num_gpu`, `num_thread`) is the
//! server's own matter and changes nothing. A request without a prompt has its model loaded.

use arbora_runtime::model::encoder::TooLong;
use serde_json::{Map, Value};

use crate::encoders::{Encoding, Input};
use crate::thinking::Thoughts;
use crate::wire::chat::{ChatRequest, Conversation, MAX_MESSAGES, PromptEnding, output_logprobs};
use crate::wire::completion::{Bos, Prompt, tokens};
use crate::wire::constraint::Constraint;
use crate::wire::embeddings::{at_least_one, check_count};
use crate::wire::error::ApiError;
use crate::wire::fields::{Fields, wrong_type};
use crate::wire::message::{Message, Role};
use crate::wire::options::{self, Delivery, OneOutput, Options, SamplingAsked, StreamUsage, in_range};
use crate::wire::tools::Tools;
use crate::wire::unsupported::{self, OLLAMA, OLLAMA_MESSAGE, OLLAMA_OPTIONS};

/// A request to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct OllamaRequest {
    /// The model as the client named it.
    pub model: Option<String>,
    /// The context that it counts on.
    pub num_ctx: Option<usize>,
    /// Whether it asks the model to think.
    pub asks_to_think: bool,
    /// Whether the answer comes in lines.
    pub delivery: Delivery,
    /// What is to be done.
    pub task: Task,
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Task {
    /// That the model is loaded.
    Load,
    /// An answer to a chat.
    Chat(Box<ChatRequest>),
    /// That a text goes on.
    Text(Prompt, Box<Options>),
}

/// What the output is made of besides its prompt.
struct Asked {
    request: OllamaRequest,
    options: Options,
    thoughts: Thoughts,
    template_values: Map<String, Value>,
}

impl OllamaRequest {
    /// Reads a body of `/api/chat`.
    ///
    /// # Errors
    /// Names the field that is malformed or not supported.
    pub fn parse_chat(body: &[u8]) -> Result<Self, ApiError> {
        let mut f = Fields::parse(body)?;
        let mut tools = Tools::read(&mut f)?;
        let messages = f.list("messages", MAX_MESSAGES)?.unwrap_or_default();
        let messages = messages
            .into_iter()
            .map(|(path, value)| message(Fields::nested(value, path)?));
        let messages = messages.collect::<Result<Vec<_>, _>>()?;
        let asked = Asked::read(&mut f)?;
        f.finish();
        if messages.is_empty() {
            return Ok(asked.request);
        }
        let listed = tools
            .as_mut()
            .map_or_else(Vec::new, |tools| std::mem::take(&mut tools.listed));
        Ok(asked.chat((messages, Vec::new()), (listed, tools)))
    }

    /// Reads a body of `/api/generate`.
    ///
    /// # Errors
    /// As for [`OllamaRequest::parse_chat`].
    pub fn parse_generate(body: &[u8]) -> Result<Self, ApiError> {
        let mut f = Fields::parse(body)?;
        let prompt = f.optional::<String>("prompt")?.unwrap_or_default();
        let system = f.optional::<String>("system")?.filter(|text| !text.is_empty());
        let before = match f.raw("context") {
            None => Vec::new(),
            Some(Value::Array(list)) => tokens("context", list)?,
            Some(other) => return Err(wrong_type("context", "an array of token ids", &other)),
        };
        let is_raw = f.optional::<bool>("raw")?.unwrap_or(false);
        let asked = Asked::read(&mut f)?;
        f.finish();
        let besides = [("system", system.is_some()), ("context", !before.is_empty())];
        if let (true, Some((name, _))) = (is_raw, besides.into_iter().find(|(_, is_there)| *is_there)) {
            let message = format!("'{name}' is only allowed when 'raw' is not true.");
            return Err(ApiError::invalid(name, message));
        }
        let is_nothing = prompt.is_empty() && system.is_none() && before.is_empty();
        if is_nothing {
            return Ok(asked.request);
        }
        if is_raw {
            let bos = Bos::AsTrained;
            let task = Task::Text(Prompt::Text { text: prompt, bos }, Box::new(asked.options));
            return Ok(OllamaRequest {
                task,
                ..asked.request
            });
        }
        let said = |role, content| Message {
            role,
            content: Some(content),
            extra: Map::new(),
        };
        let system = system.map(|text| said(Role::System, text));
        let messages = system.into_iter().chain([said(Role::User, prompt)]).collect();
        Ok(asked.chat((messages, before), (Vec::new(), None)))
    }
}

impl Asked {
    fn read(f: &mut Fields) -> Result<Self, ApiError> {
        unsupported::refuse(f, &[&OLLAMA])?;
        keep_alive(f)?;
        let mut template_values = Map::new();
        let (thinks, thoughts) = think(f, &mut template_values)?;
        let logprobs = output_logprobs(f)?;
        let drawing = Drawing::read(f)?;
        let delivery = match f.optional("stream")? {
            Some(false) => Delivery::Whole,
            _ => Delivery::Stream(StreamUsage::default()),
        };
        let output = OneOutput {
            max_tokens: drawing.max_tokens,
            stops: drawing.stops,
            constraint: format(f)?,
            sampling: drawing.sampling,
            delivery,
        };
        let mut options = Options::of_one(f, output)?;
        options.logprobs.output = logprobs;
        let request = OllamaRequest {
            model: options.model.clone(),
            num_ctx: drawing.num_ctx,
            asks_to_think: thinks == Some(true),
            delivery,
            task: Task::Load,
        };
        Ok(Asked {
            request,
            options,
            thoughts,
            template_values,
        })
    }

    /// The request for an answer to `messages`, which `before` comes before.
    fn chat(
        self,
        (messages, before): (Vec<Message>, Vec<u32>),
        (listed, tools): (Vec<Value>, Option<Tools>),
    ) -> OllamaRequest {
        let chat = ChatRequest {
            conversation: Conversation {
                messages,
                tools: listed,
                ending: PromptEnding::Answer,
                template_values: self.template_values,
                before,
            },
            tools,
            thoughts: self.thoughts,
            thinking_budget: None,
            options: self.options,
        };
        OllamaRequest {
            task: Task::Chat(Box::new(chat)),
            ..self.request
        }
    }
}

/// A message under the names that templates know.
fn message(mut f: Fields) -> Result<Message, ApiError> {
    unsupported::refuse(&mut f, &[&OLLAMA_MESSAGE])?;
    for (theirs, ours) in [("thinking", "reasoning_content"), ("tool_name", "name")] {
        let text = f.optional::<String>(theirs)?.filter(|text| !text.is_empty());
        f.put(ours, text.map(Value::from));
    }
    let content = f.raw("content").unwrap_or_else(|| "".into());
    f.put("content", Some(content));
    Message::read(f)
}

/// Whether and where the model thinks: as it likes and apart from the answer, unless the request says.
fn think(
    f: &mut Fields,
    template_values: &mut Map<String, Value>,
) -> Result<(Option<bool>, Thoughts), ApiError> {
    let thinks = match f.raw("think") {
        None => return Ok((None, Thoughts::Apart)),
        Some(Value::Bool(thinks)) => thinks,
        Some(Value::String(effort)) if ["low", "medium", "high"].contains(&effort.as_str()) => {
            template_values.insert("reasoning_effort".to_owned(), effort.into());
            true
        }
        Some(other) => {
            let expected = "a boolean, \"low\", \"medium\" or \"high\"";
            return Err(wrong_type("think", expected, &other));
        }
    };
    // The two names by which templates ask.
    for name in ["enable_thinking", "thinking"] {
        template_values.insert(name.to_owned(), thinks.into());
    }
    let thoughts = match thinks {
        true => Thoughts::Apart,
        false => Thoughts::LeftOut,
    };
    Ok((Some(thinks), thoughts))
}

/// `format`: `"json"` for any object, or a schema.
fn format(f: &mut Fields) -> Result<Option<Constraint>, ApiError> {
    match f.raw("format") {
        None => Ok(None),
        Some(Value::String(word)) if word.is_empty() => Ok(None),
        Some(Value::String(word)) if word == "json" => Ok(Some(Constraint::any_object("format".to_owned()))),
        Some(schema @ Value::Object(_)) => {
            f.put("format", Some(schema));
            Constraint::of_schema(f, "format").map(Some)
        }
        Some(other) => Err(wrong_type("format", "\"json\" or a JSON Schema", &other)),
    }
}

/// For how long the model is to stay loaded is the operator's matter; that it goes at once is refused.
fn keep_alive(f: &mut Fields) -> Result<(), ApiError> {
    let stays = match f.raw("keep_alive") {
        None => true,
        Some(Value::Number(seconds)) => seconds.as_f64() != Some(0.0),
        Some(Value::String(text)) if text.chars().all(|c| "0123456789.hmnsu+-".contains(c)) => {
            text.is_empty() || text.chars().any(|c| ('1'..='9').contains(&c))
        }
        Some(other) => return Err(wrong_type("keep_alive", "a duration such as \"5m\"", &other)),
    };
    match stays {
        true => Ok(()),
        false => {
            let message = "'keep_alive' of 0 is not supported: models are unloaded by an operator's POST \
                           /models/unload.";
            Err(ApiError::invalid("keep_alive", message))
        }
    }
}

/// What `options` says.
struct Drawing {
    sampling: SamplingAsked,
    max_tokens: Option<usize>,
    stops: Vec<String>,
    num_ctx: Option<usize>,
}

impl Drawing {
    fn read(f: &mut Fields) -> Result<Self, ApiError> {
        let mut o = match f.object("options")? {
            Some(options) => options,
            None => Fields::nested(Value::Object(Map::new()), "options".to_owned())?,
        };
        unsupported::refuse(&mut o, &[&OLLAMA_OPTIONS])?;
        // How the machine is used.
        for name in ["num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep"] {
            o.optional::<i64>(name)?;
        }
        for name in ["numa", "low_vram", "f16_kv", "use_mmap", "use_mlock"] {
            o.optional::<bool>(name)?;
        }
        // Below 1 as much as fits.
        let max_tokens = in_range(&mut o, "num_predict", -2, i32::MAX)?;
        let path = o.path_of("stop");
        let stops = match o.raw("stop") {
            None => Vec::new(),
            Some(Value::Array(list)) => list,
            Some(one @ Value::String(_)) => vec![one],
            Some(other) => return Err(wrong_type(&path, "a string or an array of strings", &other)),
        };
        let drawing = Drawing {
            sampling: SamplingAsked::read_named(&mut o, "repeat_penalty")?,
            max_tokens: max_tokens
                .and_then(|n| usize::try_from(n).ok())
                .filter(|n| *n > 0),
            stops: options::stop_strings(&path, stops)?,
            num_ctx: in_range(&mut o, "num_ctx", 1, i32::MAX)?.map(|n| n.unsigned_abs() as usize),
        };
        o.finish();
        Ok(drawing)
    }
}

/// Texts to become vectors.
#[derive(Clone, Debug, PartialEq)]
pub struct OllamaEmbed {
    /// The model as the client named it.
    pub model: Option<String>,
    /// At least one.
    pub inputs: Vec<Input>,
    /// The first so many elements, scaled to length 1.
    pub dimensions: Option<usize>,
    /// How long texts become tokens.
    pub encoding: Encoding,
}

impl OllamaEmbed {
    /// Reads a body of `/api/embed`.
    ///
    /// # Errors
    /// As for [`OllamaRequest::parse_chat`].
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut f = Fields::parse(body)?;
        let list = match f.raw("input") {
            None => return Err(ApiError::invalid("input", "Missing required parameter: 'input'.")),
            Some(text @ Value::String(_)) => vec![text],
            Some(Value::Array(list)) => list,
            Some(other) => return Err(wrong_type("input", "a string or an array of strings", &other)),
        };
        if list.is_empty() {
            return Err(ApiError::invalid("input", "'input' must have an element."));
        }
        check_count("input", list.len())?;
        let one = |(i, value)| match value {
            Value::String(text) => Ok(Input::Text(text)),
            other => Err(wrong_type(&format!("input[{i}]"), "a string", &other)),
        };
        let inputs = list.into_iter().enumerate().map(one).collect::<Result<_, _>>()?;
        let long = match f.optional("truncate")? {
            Some(false) => TooLong::Refuse,
            _ => TooLong::Truncate,
        };
        let dimensions = at_least_one(&mut f, "dimensions")?;
        OllamaEmbed::finish(f, (inputs, dimensions, long))
    }

    /// Reads a body of `/api/embeddings`, the older route.
    ///
    /// # Errors
    /// As for [`OllamaRequest::parse_chat`].
    pub fn parse_older(body: &[u8]) -> Result<Self, ApiError> {
        let mut f = Fields::parse(body)?;
        let inputs = vec![Input::Text(f.required("prompt")?)];
        OllamaEmbed::finish(f, (inputs, None, TooLong::Truncate))
    }

    fn finish(
        mut f: Fields,
        (inputs, dimensions, long): (Vec<Input>, Option<usize>, TooLong),
    ) -> Result<Self, ApiError> {
        keep_alive(&mut f)?;
        // Nothing is drawn.
        Drawing::read(&mut f)?;
        let model = f.optional("model")?;
        f.finish();
        let limit = usize::MAX;
        Ok(OllamaEmbed {
            model,
            inputs,
            dimensions,
            encoding: Encoding { limit, long },
        })
    }
}

/// A request about a model.
#[derive(Clone, Debug, PartialEq)]
pub struct OllamaModel {
    /// Its name.
    pub model: String,
    /// Whether the answer may come in lines.
    pub is_stream: bool,
}

impl OllamaModel {
    /// Reads a body of `/api/show` or `/api/pull`.
    ///
    /// # Errors
    /// As for [`OllamaRequest::parse_chat`].
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut f = Fields::parse(body)?;
        let older = f.optional::<String>("name")?;
        let model = match f.optional::<String>("model")?.or(older) {
            Some(model) => model,
            None => return Err(ApiError::invalid("model", "Missing required parameter: 'model'.")),
        };
        let is_stream = f.optional("stream")?.unwrap_or(true);
        for name in ["verbose", "insecure"] {
            f.optional::<bool>(name)?;
        }
        f.finish();
        Ok(OllamaModel { model, is_stream })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(more: &str) -> Result<OllamaRequest, ApiError> {
        let body = format!(r#"{{"model": "m", "messages": [{{"role": "user", "content": "x"}}]{more}}}"#);
        OllamaRequest::parse_chat(body.as_bytes())
    }

    #[test]
    fn streams_are_the_default_and_limits_below_one_are_none() {
        let request = chat(r#", "options": {"num_predict": -1, "temperature": 0}"#).expect("valid");
        assert_eq!(request.delivery, Delivery::Stream(StreamUsage::default()));
        let Task::Chat(asked) = request.task else {
            panic!("{request:?}");
        };
        assert_eq!(
            (asked.options.max_tokens, asked.thoughts),
            (None, Thoughts::Apart)
        );
        let quiet = chat(r#", "think": false, "stream": false"#).expect("valid");
        assert_eq!(quiet.delivery, Delivery::Whole);
        let Task::Chat(asked) = quiet.task else {
            panic!("{quiet:?}");
        };
        assert_eq!(asked.thoughts, Thoughts::LeftOut);
        assert_eq!(asked.conversation.template_values["enable_thinking"], false);
    }

    #[test]
    fn a_request_without_a_prompt_loads_its_model() {
        let load = |parsed: Result<OllamaRequest, ApiError>| parsed.expect("valid").task == Task::Load;
        assert!(load(OllamaRequest::parse_chat(
            br#"{"model": "m", "messages": []}"#
        )));
        assert!(load(OllamaRequest::parse_generate(br#"{"model": "m"}"#)));
        assert!(load(OllamaRequest::parse_generate(
            br#"{"model": "m", "prompt": ""}"#
        )));
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        for (more, expected) in [
            (r#", "keep_alive": 0"#, "keep_alive"),
            (r#", "keep_alive": "0s""#, "keep_alive"),
            (r#", "keep_alive": "soon""#, "keep_alive"),
            (r#", "options": {"mirostat": 1}"#, "options.mirostat"),
            (r#", "options": {"temperature": -1}"#, "options.temperature"),
            (r#", "options": {"repeat_penalty": 11}"#, "options.repeat_penalty"),
            (r#", "options": {"num_ctx": 0}"#, "options.num_ctx"),
            (r#", "options": {"stop": [""]}"#, "options.stop[0]"),
            (
                r#", "options": {"repeat_penalty": 1.1, "repeat_last_n": 64}"#,
                "options.repeat_last_n",
            ),
            (r#", "format": "xml""#, "format"),
            (r#", "think": "much""#, "think"),
            (r#", "template": "{{ .Prompt }}""#, "template"),
            (r#", "max_tokens": 5"#, "max_tokens"),
        ] {
            match chat(more).expect_err(more) {
                ApiError::Invalid {
                    param: Some(param),
                    message,
                } => {
                    assert_eq!(param, expected, "{message}");
                    assert!(message.contains(&format!("'{expected}'")), "{message}");
                }
                other => panic!("{more}: {other:?}"),
            }
        }
        for fine in [
            r#", "keep_alive": "5m""#,
            r#", "keep_alive": -1"#,
            r#", "format": """#,
        ] {
            assert!(chat(fine).is_ok(), "{fine}");
        }
        let image = br#"{"messages": [{"role": "user", "content": "x", "images": ["eA=="]}]}"#;
        let error = OllamaRequest::parse_chat(image).expect_err("an image");
        assert!(error.to_string().contains("'messages[0].images'"), "{error}");
    }
}
