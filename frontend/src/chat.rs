//! `arbora chat`: a conversation on the terminal with a running server.
//!
//! ```text
//! > message            an answer, streamed
//! [36 prompt tokens, 24 cached, 12 computed, 38.5 tokens/s]
//! > /reset             a command
//! interrupt            while an answer comes: stops it, and the engine's work; at the prompt: leaves
//! ```
//!
//! Input that is piped in is one message a line; then nothing is prompted for, and the first failure ends it.

mod client;

use std::borrow::Cow;
use std::io::{self, Write};
use std::time::Instant;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::config::ChatOptions;
use crate::workers::NoThread;
use client::{Client, Heard};

/// An answer that came in less time came in one piece: that tells no speed.
const MEASURABLE_S: f64 = 0.001;

const HELP: &str = "\
/reset           forget the conversation; the system message stays
/system [TEXT]   set the system message and forget the conversation; without TEXT, remove it
/usage           tokens since the start
/help            this list
/exit            leave; so does the end of the input
//…              a message that begins with a slash
Ctrl-C stops an answer; at the prompt it leaves.
";

/// Why a conversation ended early.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// Nobody listens.
    #[error(
        "no server answers at {url} ({reason}): start one with 'arbora serve', or say where it is with --url"
    )]
    NoServer {
        /// As given.
        url: String,
        /// What the connection said.
        reason: String,
    },
    /// The server wants another key, or one at all.
    #[error("the server at {url} wants an API key: pass --api-key KEY or set ARBORA_API_KEY")]
    Unauthorized {
        /// As given.
        url: String,
    },
    /// The server refused, in its own words.
    #[error("the server answered {status}: {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// The connection broke, or what came over it is no answer.
    #[error("the answer broke off: {reason}")]
    Broken {
        /// How.
        reason: String,
    },
    /// It is no URL of HTTP.
    #[error("--url must begin with http:// or https://, got '{url}'")]
    BadUrl {
        /// As given.
        url: String,
    },
    /// There is no thread to listen with.
    #[error(transparent)]
    NoThread(#[from] NoThread),
    /// The terminal is gone.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// How a conversation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The input was over, or said so.
    Done,
    /// Interrupted at the prompt.
    Interrupted,
}

/// What the output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A file or a pipe.
    Piped,
    /// A terminal that wants no colours.
    Plain,
    /// A terminal.
    Dimmed,
}

/// Both ends of a conversation with a person.
#[derive(Debug)]
pub struct Console<W> {
    /// Lines as they are typed.
    pub input: mpsc::Receiver<String>,
    /// Interrupts as they come.
    pub interrupts: mpsc::Receiver<()>,
    /// Where answers go.
    pub output: W,
    /// What `output` is.
    pub style: Style,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answered {
    Whole,
    Stopped,
    Failed,
}

/// Tokens of all answers so far.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    n_answers: u64,
    prompt: u64,
    cached: u64,
    output: u64,
}

struct Conversation {
    client: Client,
    system: Option<String>,
    messages: Vec<Value>,
    max_tokens: Option<usize>,
    temperature: Option<f32>,
    totals: Totals,
}

/// Talks until the input is over or somebody interrupts at the prompt.
pub async fn chat<W: Write>(options: &ChatOptions, console: &mut Console<W>) -> Result<End, ChatError> {
    let client = Client::connect(options).await?;
    let mut conversation = Conversation {
        client,
        system: options.system.clone(),
        messages: Vec::new(),
        max_tokens: options.max_tokens,
        temperature: options.temperature,
        totals: Totals::default(),
    };
    if console.style != Style::Piped {
        let model = conversation.client.model();
        console.aside(&format!("{model} at {}; /help lists commands", options.url))?;
    }
    loop {
        console.prompt()?;
        let line = tokio::select! {
            line = console.input.recv() => line,
            Some(()) = console.interrupts.recv() => {
                writeln!(console.output)?;
                return Ok(End::Interrupted);
            }
        };
        let Some(line) = line else {
            if console.style != Style::Piped {
                writeln!(console.output)?;
            }
            return Ok(End::Done);
        };
        let message = match line.trim() {
            "" => continue,
            "/exit" => return Ok(End::Done),
            message if message.starts_with("//") => &message[1..],
            command if command.starts_with('/') => {
                conversation.obey(command, console)?;
                continue;
            }
            message => message,
        };
        let answered = conversation.answer(message, console).await?;
        // Whoever interrupts a script means all of it.
        if answered == Answered::Stopped && console.style == Style::Piped {
            return Ok(End::Interrupted);
        }
    }
}

impl<W: Write> Console<W> {
    fn prompt(&mut self) -> io::Result<()> {
        if self.style != Style::Piped {
            write!(self.output, "> ")?;
        }
        self.output.flush()
    }

    /// A line about the conversation rather than of it.
    fn aside(&mut self, line: &str) -> io::Result<()> {
        let line = self.shown(line);
        match self.style {
            Style::Dimmed => writeln!(self.output, "\x1b[2m{line}\x1b[0m"),
            Style::Plain | Style::Piped => writeln!(self.output, "{line}"),
        }
    }

    /// Text of a model.
    fn text(&mut self, text: &str) -> io::Result<()> {
        let text = self.shown(text);
        write!(self.output, "{text}")?;
        self.output.flush()
    }

    /// A terminal obeys control characters, so it does not get those of models and servers.
    fn shown<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let is_kept = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
        match self.style {
            Style::Plain | Style::Dimmed if !text.chars().all(is_kept) => {
                text.chars().filter(|c| is_kept(*c)).collect()
            }
            _ => Cow::Borrowed(text),
        }
    }
}

impl Conversation {
    fn obey<W: Write>(&mut self, line: &str, console: &mut Console<W>) -> io::Result<()> {
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match command {
            "/reset" => {
                self.messages.clear();
                console.aside("the conversation is forgotten")
            }
            "/system" => {
                let text = rest.trim();
                self.system = (!text.is_empty()).then(|| text.to_owned());
                self.messages.clear();
                let with = if self.system.is_some() {
                    "with this"
                } else {
                    "without a"
                };
                console.aside(&format!("a new conversation {with} system message"))
            }
            "/usage" => {
                let Totals {
                    n_answers,
                    prompt,
                    cached,
                    output,
                } = self.totals;
                console.aside(&format!(
                    "{n_answers} answers: {prompt} prompt tokens, {cached} cached, {} computed, {output} output tokens",
                    prompt - cached
                ))
            }
            "/help" => write!(console.output, "{HELP}"),
            unknown => console.aside(&format!("there is no {unknown}; /help lists commands")),
        }
    }

    fn body(&self) -> Value {
        let system = self.system.iter();
        let system = system.map(|text| json!({"role": "system", "content": text}));
        let messages: Vec<Value> = system.chain(self.messages.iter().cloned()).collect();
        let mut body = json!({
            "model": self.client.model(),
            "messages": messages,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        if let Some(max_tokens) = self.max_tokens {
            body["max_tokens"] = max_tokens.into();
        }
        if let Some(temperature) = self.temperature {
            body["temperature"] = temperature.into();
        }
        body
    }

    /// Sends a message and shows its answer. A message that failed is not part of the conversation.
    async fn answer<W: Write>(
        &mut self,
        message: &str,
        console: &mut Console<W>,
    ) -> Result<Answered, ChatError> {
        self.messages.push(json!({"role": "user", "content": message}));
        let mut text = String::new();
        match self.stream(&mut text, console).await {
            Ok(answered) => {
                self.messages.push(json!({"role": "assistant", "content": text}));
                Ok(answered)
            }
            Err(ChatError::Io(error)) => Err(error.into()),
            Err(error) => {
                self.messages.pop();
                if !text.is_empty() {
                    writeln!(console.output)?;
                }
                if console.style == Style::Piped {
                    return Err(error);
                }
                console.aside(&error.to_string())?;
                Ok(Answered::Failed)
            }
        }
    }

    async fn stream<W: Write>(
        &mut self,
        text: &mut String,
        console: &mut Console<W>,
    ) -> Result<Answered, ChatError> {
        let mut heard = self.client.ask(&self.body())?;
        let (mut first, mut last, mut usage) = (None, None, None);
        let is_stopped = loop {
            let event = tokio::select! {
                biased;
                // Dropping the receiver closes the connection, which is how the server learns of it.
                Some(()) = console.interrupts.recv() => break true,
                event = heard.recv() => event,
            };
            match event {
                Some(Ok(Heard::Text(piece))) => {
                    last = Some(Instant::now());
                    first = first.or(last);
                    console.text(&piece)?;
                    text.push_str(&piece);
                }
                Some(Ok(Heard::Usage(counts))) => usage = Some(counts),
                Some(Err(error)) => return Err(error),
                None => break false,
            }
        };
        writeln!(console.output)?;
        if is_stopped {
            console.aside("[stopped]")?;
            return Ok(Answered::Stopped);
        }
        let Some(usage) = usage else {
            let reason = "it ended without its usage".to_owned();
            return Err(ChatError::Broken { reason });
        };
        self.totals.n_answers += 1;
        self.totals.prompt += usage.prompt;
        self.totals.cached += usage.cached;
        self.totals.output += usage.output;
        let seconds = first.zip(last).map(|(first, last)| (last - first).as_secs_f64());
        let speed = match seconds {
            Some(seconds) if usage.output > 1 && seconds >= MEASURABLE_S => {
                format!(", {:.1} tokens/s", (usage.output - 1) as f64 / seconds)
            }
            _ => String::new(),
        };
        console.aside(&format!(
            "[{} prompt tokens, {} cached, {} computed{speed}]",
            usage.prompt,
            usage.cached,
            usage.prompt - usage.cached
        ))?;
        Ok(Answered::Whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_no_control_characters_of_others_and_a_pipe_gets_everything() {
        let hostile = "a\x1b]0;title\x07b\u{9b}2Jc\r\n\td";
        for (style, expected) in [
            (Style::Piped, hostile),
            (Style::Plain, "a]0;titleb2Jc\n\td"),
            (Style::Dimmed, "a]0;titleb2Jc\n\td"),
        ] {
            let (_, input) = mpsc::channel(1);
            let (_, interrupts) = mpsc::channel(1);
            let mut console = Console {
                input,
                interrupts,
                output: Vec::new(),
                style,
            };
            console.text(hostile).expect("a vector takes all");
            assert_eq!(console.output, expected.as_bytes());
        }
    }
}
