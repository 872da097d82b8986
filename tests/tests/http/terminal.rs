//! `arbora chat` with a scripted person and the toy model.

use std::io::{self, Write};

use arbora::chat::{ChatError, Console, End, Style, chat};
use arbora::config::ChatOptions;
use serde_json::json;
use tokio::sync::mpsc;

use crate::site::{Site, rendered};

/// What a person sees; interrupts once `needle` is seen.
struct Screen {
    bytes: Vec<u8>,
    needle: Option<&'static str>,
    interrupt: mpsc::Sender<()>,
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        let shown = String::from_utf8_lossy(&self.bytes);
        if self.needle.is_some_and(|needle| shown.contains(needle)) {
            self.needle = None;
            self.interrupt.try_send(()).expect("nobody interrupted before");
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn options(url: &str) -> ChatOptions {
    ChatOptions {
        url: url.to_owned(),
        model: None,
        api_key: None,
        system: None,
        max_tokens: Some(8),
        temperature: Some(0.0),
    }
}

/// Runs a conversation of `lines`; how it ended and what was on the screen.
fn converse(
    options: &ChatOptions,
    style: Style,
    lines: &[&str],
    needle: Option<&'static str>,
) -> (Result<End, ChatError>, String) {
    let (typed, input) = mpsc::channel(lines.len() + 1);
    for line in lines {
        typed.try_send((*line).to_owned()).expect("there is room");
    }
    drop(typed);
    let (interrupt, interrupts) = mpsc::channel(1);
    let output = Screen {
        bytes: Vec::new(),
        needle,
        interrupt,
    };
    let mut console = Console {
        input,
        interrupts,
        output,
        style,
    };
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let ended = runtime.block_on(chat(options, &mut console));
    let shown = String::from_utf8(console.output.bytes).expect("UTF-8");
    (ended, shown)
}

/// The screen without what depends on the clock.
fn without_speed(shown: &str) -> String {
    let lines = shown.lines().map(|line| match line.rsplit_once(", ") {
        Some((rest, speed)) if speed.ends_with(" tokens/s]") => format!("{rest}]"),
        _ => line.to_owned(),
    });
    lines.map(|line| line + "\n").collect()
}

#[test]
fn a_conversation_keeps_its_history_until_a_reset() {
    let site = Site::new();
    // One whose answer is text, so that it is the same tokens when it comes back.
    let greetings = (0..20).map(|i| format!("hello there {i}"));
    let is_text = |said: &String| {
        let (_, n_tokens, answer) = site.output(&rendered(said), 8);
        n_tokens == 8 && answer.is_ascii()
    };
    let said = greetings.into_iter().find(is_text).expect("there is one");
    let first = rendered(&said);
    let (n_first, _, answer) = site.output(&first, 8);
    let second = format!("{first}{answer}<|im_end|>\n{}", rendered("go on"));
    let (n_second, _, next) = site.output(&second, 8);
    let lines = [&said, "", "go on", "/reset", &said, "/usage"];
    let (ended, shown) = converse(&options(&site.url()), Style::Piped, &lines, None);
    assert_eq!(ended.expect("no failure"), End::Done);
    // What the last token of an answer would read is not cached, nor is the last token of a prompt.
    let cached = n_first + 8 - 1;
    let expected = format!(
        "{answer}\n[{n_first} prompt tokens, 0 cached, {n_first} computed]\n\
         {next}\n[{n_second} prompt tokens, {cached} cached, {} computed]\n\
         the conversation is forgotten\n\
         {answer}\n[{n_first} prompt tokens, {} cached, 1 computed]\n\
         3 answers: {} prompt tokens, {} cached, {} computed, 24 output tokens\n",
        n_second - cached,
        n_first - 1,
        2 * n_first + n_second,
        cached + n_first - 1,
        n_first + n_second - cached + 1,
    );
    assert_eq!(without_speed(&shown), expected);
}

#[test]
fn a_system_message_comes_first_and_can_be_changed() {
    let site = Site::new();
    let ask = "hello there";
    let with = |system: &str| format!("<|im_start|>system\n{system}<|im_end|>\n{}", rendered(ask));
    let (_, _, kind) = site.output(&with("be kind"), 8);
    let (_, _, short) = site.output(&with("be short"), 8);
    let (_, _, none) = site.output(&rendered(ask), 8);
    assert!(kind != short && short != none && kind != none, "the toy heeds it");
    let mut options = options(&format!("{}/v1/", site.url()));
    options.system = Some("be kind".to_owned());
    let lines = [ask, "/system be short", ask, "/system", ask];
    let (ended, shown) = converse(&options, Style::Piped, &lines, None);
    ended.expect("no failure");
    let told = shown.lines().filter(|line| !line.starts_with('['));
    let told: String = told.map(|line| format!("{line}\n")).collect();
    let aside = "a new conversation with this system message";
    let aside_without = "a new conversation without a system message";
    assert_eq!(
        told,
        format!("{kind}\n{aside}\n{short}\n{aside_without}\n{none}\n")
    );
}

#[test]
fn a_terminal_is_prompted_and_gets_dim_asides_and_no_control_characters() {
    let site = Site::new();
    let lines = ["/nonsense", "/help", "//slash", "/exit", "never said"];
    let (ended, shown) = converse(&options(&site.url()), Style::Dimmed, &lines, None);
    assert_eq!(ended.expect("no failure"), End::Done);
    assert!(shown.starts_with("\x1b[2mtoy at http://127.0.0.1"), "{shown}");
    assert!(shown.contains("> \x1b[2mthere is no /nonsense; /help lists commands\x1b[0m\n"));
    assert!(shown.contains("> /reset "), "{shown}");
    let (n_prompt, _, _) = site.output(&rendered("/slash"), 8);
    assert!(
        shown.contains(&format!("\x1b[2m[{n_prompt} prompt tokens, 0 cached")),
        "{shown}"
    );
    let (_, plain) = converse(&options(&site.url()), Style::Plain, &["hello"], None);
    assert!(plain.contains("> ") && !plain.contains('\x1b'), "{plain}");
    assert_eq!(site.engine.metrics().requests_accepted.value(), 2);
}

#[test]
fn an_interrupt_stops_the_answer_and_the_next_one_leaves() {
    let site = Site::new();
    let mut options = options(&site.url());
    options.max_tokens = Some(150_000);
    let (_, _, answer) = site.output(&rendered("go on"), 150);
    assert!(answer.len() > 60, "the toy goes on for a while: {answer:?}");
    let seen: &'static str = String::leak(answer[..20].to_owned());
    let (ended, shown) = converse(&options, Style::Piped, &["go on", "never said"], Some(seen));
    assert_eq!(ended.expect("no failure"), End::Interrupted);
    assert!(shown.ends_with("\n[stopped]\n"), "{shown}");
    site.wait_until_quiet();
    let ended = &site.engine.metrics().requests_finished;
    assert_eq!(
        ended[4].value() + ended[0].value(),
        1,
        "the engine stopped, or had just ended"
    );

    // At the prompt of a terminal whose input goes on.
    let (_typed, input) = mpsc::channel(1);
    let (interrupt, interrupts) = mpsc::channel(1);
    let mut console = Console {
        input,
        interrupts,
        output: Vec::new(),
        style: Style::Plain,
    };
    interrupt.try_send(()).expect("there is room");
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let ended = runtime.block_on(chat(&options, &mut console));
    assert_eq!(ended.expect("no failure"), End::Interrupted);
}

#[test]
fn failures_say_what_to_do() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", nobody.local_addr().expect("bound"));
    drop(nobody);
    let failure = |options: &ChatOptions| {
        let (ended, _) = converse(options, Style::Piped, &["hello"], None);
        ended.expect_err("it fails").to_string()
    };
    let error = failure(&options(&url));
    assert!(error.contains("arbora serve") && error.contains(&url), "{error}");
    assert!(failure(&options("ftp://x")).contains("got 'ftp://x'"));

    let site = Site::with(&["first", "second"], |_| {});
    let mut with_key = options(&site.url());
    assert!(failure(&with_key).contains("ARBORA_API_KEY"));
    with_key.api_key = Some("second,first".to_owned());
    let (ended, shown) = converse(&with_key, Style::Piped, &["hello"], None);
    ended.expect("let in");
    assert!(shown.contains("prompt tokens"));
    with_key.model = Some("other".to_owned());
    let error = failure(&with_key);
    assert!(error.contains("404") && error.contains("'other'"), "{error}");
}

#[test]
fn a_failed_message_is_not_part_of_the_conversation() {
    let site = Site::new();
    let mut options = options(&site.url());
    options.max_tokens = Some(1_000_000);
    let (ended, shown) = converse(&options, Style::Plain, &["hello", "/usage"], None);
    ended.expect("a terminal goes on");
    assert!(shown.contains("the server answered 400: "), "{shown}");
    assert!(shown.contains("0 answers: 0 prompt tokens"), "{shown}");

    options.max_tokens = Some(8);
    site.fuse.light(3);
    let (ended, shown) = converse(&options, Style::Plain, &["hello", "hello again"], None);
    ended.expect("a terminal goes on");
    assert!(
        shown.contains("the answer broke off: The server failed"),
        "{shown}"
    );
    let (n_prompt, _, _) = site.output(&rendered("hello again"), 8);
    assert!(
        shown.contains(&format!("[{n_prompt} prompt tokens")),
        "no history: {shown}"
    );
    assert_eq!(
        site.post("/v1/completions", &json!({"prompt": "a", "max_tokens": 1}))
            .status,
        200
    );
}
