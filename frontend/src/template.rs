//! The model's chat template, rendered the way Hugging Face renders it.
//!
//! The template comes from the operator's model file, never from a client. It runs with bounded fuel and
//! output; everything it is given is plain data.

mod arguments;
mod json;
mod number;
mod strftime;
mod values;

use std::io::{self, Write};
use std::time::SystemTime;

use arbora_constrained::CallFormat;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};

use crate::thinking::{self, Thinking};
use crate::wire::chat::PromptEnding;
use crate::wire::message::Message;

/// Instructions one rendering may take; a chat of 2,000 messages takes about 100,000.
const FUEL: u64 = 20_000_000;
/// Most bytes of a rendered prompt.
const MAX_OUTPUT: usize = 64 << 20;
const NAME: &str = "chat";

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    call_format: Option<CallFormat>,
    knows_thinking: bool,
    bos: String,
    eos: String,
}

/// Why there is no prompt.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The model's template does not compile.
    #[error("the model's chat template cannot be used: {0}")]
    Invalid(#[source] Error),
    /// The template itself refused the messages, in its own words.
    #[error("the model's chat template refuses these messages: {0}")]
    Refused(String),
    /// The template cannot digest the messages.
    #[error("the model's chat template cannot render these messages")]
    Failed(#[source] Error),
}

/// Texts of the tokens a template may print.
#[derive(Clone, Debug, Default)]
pub struct TemplateTokens {
    /// Beginning of sequence; empty where the model has none.
    pub bos: String,
    /// End of sequence; empty where the model has none.
    pub eos: String,
}

impl ChatTemplate {
    /// Compiles a template.
    pub fn new(source: &str, tokens: TemplateTokens) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.expect("the default delimiters are valid"));
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", |format: &str| {
            strftime::strftime(format, SystemTime::now())
        });
        environment.add_filter("tojson", json::to_json);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(TemplateError::Invalid)?;
        Ok(ChatTemplate {
            environment,
            call_format: call_format(source),
            knows_thinking: source.contains(thinking::CLOSE) || source.contains(thinking::OPEN),
            bos: tokens.bos,
            eos: tokens.eos,
        })
    }

    /// What it was compiled from.
    pub fn source(&self) -> String {
        let template = self.environment.get_template(NAME);
        template.expect("added at construction").source().to_owned()
    }

    /// How the model was taught to call tools; `None` where the template knows of no tools or writes calls
    /// in a way the server does not read.
    pub fn call_format(&self) -> Option<CallFormat> {
        self.call_format
    }

    /// Whether it speaks of thoughts.
    pub fn knows_thinking(&self) -> bool {
        self.knows_thinking
    }

    /// What `rendered`, a prompt of this template, says about thinking.
    pub fn thinking(&self, rendered: &str) -> Thinking {
        match self.knows_thinking {
            true => Thinking::at_end_of(rendered),
            false => Thinking::None,
        }
    }

    /// The prompt for a chat.
    pub fn render(&self, chat: &Chat<'_>) -> Result<String, TemplateError> {
        let template = self
            .environment
            .get_template(NAME)
            .expect("added at construction");
        let mut output = Bounded::default();
        match template.render_captured_to(self.values(chat), &mut output) {
            Ok(_) => Ok(String::from_utf8(output.0).expect("templates write UTF-8")),
            Err(error) => Err(classify(error)),
        }
    }

    /// The names every template may count on, as in Hugging Face's library, and the request's own.
    fn values(&self, chat: &Chat<'_>) -> Value {
        let tools = match chat.tools {
            [] => Value::from(()),
            tools => tools.iter().map(values::from_json).collect(),
        };
        let messages: Value = chat.messages.iter().map(values::from_message).collect();
        let common = [
            ("messages", messages),
            (
                "add_generation_prompt",
                (chat.ending == PromptEnding::Answer).into(),
            ),
            ("bos_token", self.bos.as_str().into()),
            ("eos_token", self.eos.as_str().into()),
            ("tools", tools),
            ("documents", ().into()),
        ];
        let common = common.map(|(name, value)| (Value::from(name), value));
        Value::from_pairs(common.into_iter().chain(values::pairs(chat.values)))
    }
}

/// What a template is rendered with.
#[derive(Clone, Copy, Debug)]
pub struct Chat<'a> {
    /// At least one.
    pub messages: &'a [Message],
    /// What may be called, as the client wrote it.
    pub tools: &'a [serde_json::Value],
    /// Where the answer begins.
    pub ending: PromptEnding,
    /// Further values by name.
    pub values: &'a serde_json::Map<String, serde_json::Value>,
}

/// Told from words that no template of another format has.
fn call_format(source: &str) -> Option<CallFormat> {
    let has = |word| source.contains(word);
    if !has("tools") {
        return None;
    }
    if has("<tool_call>") {
        return Some(CallFormat::Hermes);
    }
    let is_llama = has("<|start_header_id|>") && has("\"parameters\"");
    is_llama.then_some(CallFormat::Llama3Json)
}

const REFUSAL: &str = "raise_exception: ";

fn raise_exception(message: &str) -> Result<String, Error> {
    Err(Error::new(
        ErrorKind::InvalidOperation,
        format!("{REFUSAL}{message}"),
    ))
}

fn classify(error: Error) -> TemplateError {
    match error.detail().and_then(|detail| detail.strip_prefix(REFUSAL)) {
        Some(message) => TemplateError::Refused(message.chars().take(500).collect()),
        None => TemplateError::Failed(error),
    }
}

#[derive(Default)]
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(io::Error::other("the rendered prompt is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::Role;

    const SMOLLM2: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
        {{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by \
        Hugging Face<|im_end|>\n' }}\
        {% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}\
        {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    fn message(role: Role, content: &str) -> Message {
        Message {
            role,
            content: Some(content.to_owned()),
            extra: serde_json::Map::new(),
        }
    }

    fn render(source: &str, messages: &[Message]) -> Result<String, TemplateError> {
        let tokens = TemplateTokens {
            bos: "<s>".to_owned(),
            eos: "</s>".to_owned(),
        };
        ChatTemplate::new(source, tokens)?.render(&Chat {
            tools: &[],
            messages,
            ending: PromptEnding::Answer,
            values: &serde_json::Map::new(),
        })
    }

    fn render_expression(expression: &str) -> String {
        let source = format!("{{{{ {expression} }}}}");
        render(&source, &[message(Role::User, " a<b&'c' ")]).expect(expression)
    }

    #[test]
    fn the_default_models_template_renders() {
        let chat = [message(Role::User, "Hi <b>"), message(Role::Assistant, "Yes?")];
        assert_eq!(
            render(SMOLLM2, &chat).expect("renders"),
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
             <|im_start|>user\nHi <b><|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>assistant\n"
        );
        let system = [message(Role::System, "S")];
        assert_eq!(
            render(SMOLLM2, &system).expect("renders"),
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>assistant\n"
        );
    }

    #[test]
    fn blocks_are_trimmed_as_hugging_face_has_jinja_do() {
        let source = "{% for m in messages %}\n    {% if true %}\n  {{ m.content | trim }}\n    {% endif %}\n{% endfor %}\n";
        assert_eq!(
            render(source, &[message(Role::User, " x ")]).expect("renders"),
            "  x\n"
        );
    }

    // Expected values are those of Python's json.dumps(json.loads(…)).
    #[test]
    fn numbers_of_a_request_keep_their_digits() {
        let schema = r#"{"minimum": -12345678901234567890123, "maximum": 18446744073709551616, "step": 1e5,
            "enum": [1.0, 0.1, 1e-7, 9007199254740993]}"#;
        let tools = [serde_json::from_str(schema).expect("JSON")];
        let call =
            r#"[{"function": {"name": "f", "arguments": {"n": 340282366920938463463374607431768211456}}}]"#;
        let mut message = message(Role::Assistant, "");
        let calls = serde_json::from_str(call).expect("JSON");
        message.extra.insert("tool_calls".to_owned(), calls);
        let source = "{{ tools[0] | tojson }} {{ messages[0].tool_calls[0].function.arguments | tojson }} \
            {{ messages[0].tool_calls[0].function.arguments.n }} {{ tools[0].maximum + 1 }}";
        let chat = Chat {
            tools: &tools,
            messages: &[message],
            ending: PromptEnding::Answer,
            values: &serde_json::Map::new(),
        };
        let template = ChatTemplate::new(source, TemplateTokens::default()).expect("a template");
        assert_eq!(
            template.render(&chat).expect("renders"),
            r#"{"minimum": -12345678901234567890123, "maximum": 18446744073709551616, "step": 100000.0, "#
                .to_owned()
                + r#""enum": [1.0, 0.1, 1e-07, 9007199254740993]} "#
                + r#"{"n": 340282366920938463463374607431768211456} "#
                + "340282366920938463463374607431768211456 18446744073709551617"
        );
    }

    // Expected values are those of Python's json.dumps(…, ensure_ascii=False).
    #[test]
    fn tojson_is_pythons() {
        let spaced = render_expression(r#"{'b': [1, 2.5, none], 'a': "é<&'"} | tojson"#);
        assert_eq!(spaced, r#"{"b": [1, 2.5, null], "a": "é<&'"}"#);
        let indented = render_expression("[1, {'a': []}] | tojson(indent=4)");
        assert_eq!(indented, "[\n    1,\n    {\n        \"a\": []\n    }\n]");
        let compact = render_expression("[1, {'a': [], 'b': {}}] | tojson(separators=(',', ':'))");
        assert_eq!(compact, r#"[1,{"a":[],"b":{}}]"#);
        let sorted = render_expression("{'b': 1, 'a': 1e16, 3: none}.items() | list | tojson(indent='-')");
        assert_eq!(
            sorted,
            "[\n-[\n--\"b\",\n--1\n-],\n-[\n--\"a\",\n--1e+16\n-],\n-[\n--3,\n--null\n-]\n]"
        );
        let sorted = render_expression("{'b': 1, 'a': {'d': 2, 'c': 3}} | tojson(sort_keys=true, indent=0)");
        assert_eq!(sorted, "{\n\"a\": {\n\"c\": 3,\n\"d\": 2\n},\n\"b\": 1\n}");
        let ascii = render_expression(r"'é🙂\x7f\x01\b\f' | tojson(true)");
        assert_eq!(ascii, r#""\u00e9\ud83d\ude42\u007f\u0001\b\f""#);
        for refused in [
            "tojson(indent=65)",
            "tojson(separators=',')",
            "tojson(default=1)",
            "tojson(1, ensure_ascii=1)",
        ] {
            let source = format!("{{{{ [1] | {refused} }}}}");
            assert!(render(&source, &[]).is_err(), "{refused}");
        }
        let nested = render_expression("messages | tojson");
        assert_eq!(nested, r#"[{"role": "user", "content": " a<b&'c' "}]"#);
    }

    #[test]
    fn python_methods_work() {
        assert_eq!(
            render_expression("messages[0].content.strip().upper()"),
            "A<B&'C'"
        );
        assert_eq!(render_expression("'a b'.split(' ')[-1]"), "b");
        assert_eq!(
            render_expression("bos_token + eos_token if tools is none else 0"),
            "<s></s>"
        );
    }

    #[test]
    fn a_template_can_refuse_in_its_own_words() {
        let error = render("{{ raise_exception('roles must alternate') }}", &[]).expect_err("refused");
        assert!(
            matches!(&error, TemplateError::Refused(words) if words == "roles must alternate"),
            "{error:?}"
        );
    }

    #[test]
    fn fuel_and_output_are_bounded() {
        let endless = "{% for i in range(10000) %}{% for j in range(10000) %}{% endfor %}{% endfor %}";
        for source in [
            endless,
            "{{ 'x' * 100000000000 }}",
            "{{ undefined_function() }}",
            "{{ [] + 1 }}",
        ] {
            let error = render(source, &[]).expect_err(source);
            assert!(matches!(error, TemplateError::Failed(_)), "{source}: {error:?}");
        }
        let error = render("{% if %}", &[]).expect_err("no expression");
        assert!(matches!(error, TemplateError::Invalid(_)), "{error:?}");
    }

    #[test]
    fn templates_cannot_read_files() {
        for verb in [
            "include '/etc/passwd'",
            "extends '/etc/passwd'",
            "import '/etc/passwd' as x",
        ] {
            assert!(render(&format!("{{% {verb} %}}"), &[]).is_err(), "{verb}");
        }
    }
}
