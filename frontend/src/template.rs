//! The model's chat template, rendered the way Hugging Face renders it.
//!
//! The template comes from the operator's model file, never from a client. It runs with bounded fuel and
//! output; everything it is given is plain data.

use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use arbora_constrained::CallFormat;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter};

use crate::thinking::{self, Thinking};
use crate::wire::chat::{Message, PromptEnding};

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

#[derive(Serialize)]
struct TemplateMessage<'a> {
    role: &'static str,
    content: Option<&'a str>,
    #[serde(flatten)]
    extra: &'a serde_json::Map<String, serde_json::Value>,
}

impl<'a> TemplateMessage<'a> {
    fn new(message: &'a Message) -> Self {
        TemplateMessage {
            role: message.role.as_str(),
            content: message.content.as_deref(),
            extra: &message.extra,
        }
    }
}

/// The names every template may count on; Hugging Face defines the same.
#[derive(Serialize)]
struct TemplateValues<'a> {
    messages: Vec<TemplateMessage<'a>>,
    add_generation_prompt: bool,
    bos_token: &'a str,
    eos_token: &'a str,
    tools: Option<&'a [serde_json::Value]>,
    documents: Option<()>,
    #[serde(flatten)]
    more: &'a serde_json::Map<String, serde_json::Value>,
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
        environment.add_function("strftime_now", |format: &str| strftime(format, SystemTime::now()));
        environment.add_filter("tojson", to_json);
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

    /// What `rendered`, a prompt of this template, says about thinking.
    pub fn thinking(&self, rendered: &str) -> Thinking {
        match self.knows_thinking {
            true => Thinking::at_end_of(rendered),
            false => Thinking::None,
        }
    }

    /// The prompt for a chat.
    pub fn render(&self, chat: &Chat<'_>) -> Result<String, TemplateError> {
        let values = TemplateValues {
            messages: chat.messages.iter().map(TemplateMessage::new).collect(),
            add_generation_prompt: chat.ending == PromptEnding::Answer,
            bos_token: &self.bos,
            eos_token: &self.eos,
            tools: Some(chat.tools).filter(|tools| !tools.is_empty()),
            documents: None,
            more: chat.values,
        };
        let template = self
            .environment
            .get_template(NAME)
            .expect("added at construction");
        let mut output = Bounded::default();
        match template.render_captured_to(Value::from(Serde(values)), &mut output) {
            Ok(_) => Ok(String::from_utf8(output.0).expect("templates write UTF-8")),
            Err(error) => Err(classify(error)),
        }
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

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`, which is what templates are written for:
/// a space after commas and colons.
#[expect(clippy::needless_pass_by_value, reason = "the signature minijinja calls")]
fn to_json(value: &Value, indent: Option<usize>, options: minijinja::value::Kwargs) -> Result<Value, Error> {
    let indent = match indent {
        None => options.get::<Option<usize>>("indent")?,
        given => given,
    };
    // Accepted and already so: keys keep their order, nothing is escaped that need not be.
    options.get::<Option<bool>>("ensure_ascii")?;
    options.get::<Option<bool>>("sort_keys")?;
    options.assert_all_used()?;
    let mut output = Vec::new();
    let written = match indent {
        Some(n) if n <= 16 => {
            let spaces = " ".repeat(n);
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(
                &mut output,
                formatter,
            ))
        }
        Some(_) => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "tojson: indent is at most 16",
            ));
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(
            &mut output,
            PythonFormatter,
        )),
    };
    let failed = |e| Error::new(ErrorKind::InvalidOperation, "tojson failed").with_source(e);
    written.map_err(failed)?;
    let text = String::from_utf8(output).expect("JSON is UTF-8");
    Ok(Value::from_safe_string(text))
}

struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        CompactFormatter.write_f64(writer, value)
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];

/// C's `strftime` in UTC for the conversions chat templates use.
fn strftime(format: &str, now: SystemTime) -> Result<String, Error> {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (n_days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil_date(n_days);
    let (month_name, day_name) = (MONTHS[month - 1], DAYS[(n_days % 7) as usize]);
    let mut output = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            output.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => output.push_str(&year.to_string()),
            Some('y') => output.push_str(&format!("{:02}", year % 100)),
            Some('m') => output.push_str(&format!("{month:02}")),
            Some('d') => output.push_str(&format!("{day:02}")),
            Some('B') => output.push_str(month_name),
            Some('b') => output.push_str(&month_name[..3]),
            Some('A') => output.push_str(day_name),
            Some('a') => output.push_str(&day_name[..3]),
            Some('H') => output.push_str(&format!("{:02}", second / 3600)),
            Some('M') => output.push_str(&format!("{:02}", second / 60 % 60)),
            Some('S') => output.push_str(&format!("{:02}", second % 60)),
            Some('%') => output.push('%'),
            other => {
                let message = format!("strftime_now: %{} is not supported", other.unwrap_or(' '));
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
    }
    Ok(output)
}

/// Year, month and day of the month, `n_days` after 1970-01-01.
/// Source: <https://howardhinnant.github.io/date_algorithms.html#civil_from_days>
pub(crate) fn civil_date(n_days: u64) -> (u64, usize, u64) {
    let shifted = n_days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (
        era * 400 + year_of_era + u64::from(month <= 2),
        month as usize,
        day,
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::wire::chat::Role;

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

    // Expected values are those of Python's json.dumps(…, ensure_ascii=False).
    #[test]
    fn tojson_is_pythons() {
        let spaced = render_expression(r#"{'b': [1, 2.5, none], 'a': "é<&'"} | tojson"#);
        assert_eq!(spaced, r#"{"b": [1, 2.5, null], "a": "é<&'"}"#);
        let indented = render_expression("[1, {'a': []}] | tojson(indent=4)");
        assert_eq!(indented, "[\n    1,\n    {\n        \"a\": []\n    }\n]");
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

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let show = |seconds| strftime("%Y-%m-%d %H:%M:%S %A %d %b %y %B %a %%", at(seconds)).expect("known");
        // date -u -d @N '+%Y-%m-%d %H:%M:%S %A %d %b %y %B %a %%'
        assert_eq!(show(0), "1970-01-01 00:00:00 Thursday 01 Jan 70 January Thu %");
        assert_eq!(
            show(951_782_399),
            "2000-02-28 23:59:59 Monday 28 Feb 00 February Mon %"
        );
        assert_eq!(
            show(951_782_400),
            "2000-02-29 00:00:00 Tuesday 29 Feb 00 February Tue %"
        );
        assert_eq!(
            show(4_107_542_400),
            "2100-03-01 00:00:00 Monday 01 Mar 00 March Mon %"
        );
        assert!(strftime("%Q", at(0)).is_err());
    }
}
