//! The server over real sockets, on the toy model: what it says is compared with the plain evaluation, byte
//! by byte where clients look at bytes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arbora::api::App;
use arbora::auth::ApiKeys;
use arbora::grammars::Grammars;
use arbora::prompt::PromptEncoder;
use arbora::server::Server;
use arbora::template::{ChatTemplate, TemplateTokens};
use arbora_radix::Namespace;
use arbora_runtime::engine::{EngineConfig, EngineExit, EngineHandle, spawn};
use arbora_runtime::model::metadata::{Metadata, Value};
use arbora_runtime::request::{LogprobsWanted, Request, SamplingParams, StopConditions};
use arbora_runtime::tokenizer::{SpecialTokens, Tokenizer};
use arbora_tests::oracle::expected;
use arbora_tests::toy::{Fuse, N_VOCAB, ToyBackend};
use serde_json::{Value as Json, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Two control tokens, letters, digits and what a sentence needs; `Ã` and `©` are the bytes of `é`.
fn tokenizer() -> Tokenizer {
    let letters = ('a'..='z').chain('0'..='9').chain("ĠĊ.,?!:Ã©T".chars());
    let tokens: Vec<String> = ["<|im_start|>", "<|im_end|>"]
        .map(str::to_owned)
        .into_iter()
        .chain(letters.map(String::from))
        .collect();
    assert_eq!(tokens.len(), N_VOCAB);
    let types = (0..N_VOCAB).map(|id| if id < 2 { 3 } else { 1 }).collect();
    let text = |text: &str| Value::Text(text.to_owned());
    let metadata = Metadata::default()
        .with("tokenizer.ggml.model", text("gpt2"))
        .with("tokenizer.ggml.pre", text("smollm"))
        .with(
            "tokenizer.ggml.tokens",
            Value::Strings(tokens.iter().map(String::as_str).collect()),
        )
        .with("tokenizer.ggml.token_type", Value::Integers(types))
        .with(
            "tokenizer.ggml.merges",
            Value::Strings(std::iter::empty().collect()),
        )
        .with("tokenizer.ggml.eos_token_id", Value::Unsigned(1));
    Tokenizer::from_metadata(&metadata).expect("a vocabulary")
}

/// A running server.
struct Site {
    address: SocketAddr,
    engine: EngineHandle,
    tokenizer: Arc<Tokenizer>,
    fuse: Fuse,
    stop: Option<oneshot::Sender<()>>,
    server: Option<tokio::task::JoinHandle<EngineExit>>,
    runtime: tokio::runtime::Runtime,
}

impl Site {
    fn new() -> Site {
        Site::with(&[], |_| {})
    }

    fn with(api_keys: &[&str], change: impl FnOnce(&mut EngineConfig)) -> Site {
        let tokenizer = Arc::new(tokenizer());
        let mut config = EngineConfig::new(13_000, 200_000);
        config.model_stop_tokens = tokenizer.stop_token_ids().to_vec();
        change(&mut config);
        let (mut backend, fuse) = ToyBackend::new(0);
        let decoder = backend.decoder(config.context, config.forward_limits());
        let token_bytes = Arc::new(tokenizer.text_bytes());
        let (engine, thread) =
            spawn(backend, decoder, Arc::clone(&token_bytes), config).expect("a configuration");
        let template = ChatTemplate::new(TEMPLATE, TemplateTokens::default()).expect("a template");
        let keys: Vec<String> = api_keys.iter().map(|&key| key.to_owned()).collect();
        let app = Arc::new(App {
            engine: engine.clone(),
            grammars: Grammars::new(Arc::clone(&tokenizer), N_VOCAB, tokenizer.stop_token_ids()),
            encoder: Arc::new(PromptEncoder::new(Arc::clone(&tokenizer), Some(template))),
            token_bytes,
            sampling: SamplingParams::default(),
            stop_tokens: tokenizer.stop_token_ids().to_vec(),
            model: "toy".to_owned(),
            started: 7,
            api_keys: ApiKeys::new(&keys),
            body_limit: 100_000,
            http: arbora::metrics::HttpMetrics::default(),
        });
        let runtime = tokio::runtime::Runtime::new().expect("threads");
        let listener = runtime
            .block_on(TcpListener::bind("127.0.0.1:0"))
            .expect("a port");
        let address = listener.local_addr().expect("bound");
        let (stop, stopped) = oneshot::channel::<()>();
        let server = Server {
            listener,
            app,
            drain_timeout: Duration::ZERO,
        };
        let server = runtime.spawn(async move {
            let over = async { tokio::task::spawn_blocking(move || thread.join().expect("no panic")).await };
            let stop = async { drop(stopped.await) };
            server.run(stop, async { over.await.expect("joined") }).await
        });
        Site {
            address,
            engine,
            tokenizer,
            fuse,
            stop: Some(stop),
            server: Some(server),
            runtime,
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("the server listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .expect("a timeout");
        stream
    }

    /// Sends a request whose connection ends with the answer.
    fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
        let mut stream = self.connect();
        let n = body.len();
        let head =
            format!("{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {n}\r\n");
        stream
            .write_all(format!("{head}{headers}\r\n{body}").as_bytes())
            .expect("the server reads");
        stream
    }

    fn post(&self, path: &str, body: &Json) -> Answer {
        Answer::read(self.send("POST", path, "", &body.to_string()))
    }

    fn get(&self, path: &str) -> Answer {
        Answer::read(self.send("GET", path, "", ""))
    }

    /// The greedy output of the toy model for a prompt, and its text.
    fn output(&self, prompt: &str, max_tokens: usize) -> (usize, usize, String) {
        let prompt = self
            .tokenizer
            .encode(prompt, SpecialTokens::Parse)
            .expect("encodes");
        let n_prompt = prompt.len();
        let request = Request {
            id: self.engine.next_id(),
            prompt,
            namespace: Namespace::default(),
            sampling: SamplingParams {
                temperature: 0.0,
                ..SamplingParams::default()
            },
            choice_idx: 0,
            max_tokens,
            stop: StopConditions::default(),
            grammar: None,
            logit_bias: Vec::new(),
            logprobs: LogprobsWanted::default(),
            priority: 0,
            arrived: Instant::now(),
            queue_timeout: None,
            total_timeout: None,
            events: mpsc::channel(1).0,
        };
        let tokens = expected(&request, None, self.tokenizer.stop_token_ids(), 0).tokens;
        let bytes: Vec<u8> = tokens
            .iter()
            .filter(|&&token| !self.tokenizer.is_special(token))
            .flat_map(|&token| self.tokenizer.token_bytes(token))
            .copied()
            .collect();
        (
            n_prompt,
            tokens.len(),
            String::from_utf8_lossy(&bytes).into_owned(),
        )
    }

    /// Waits until the engine holds nothing but its cache.
    fn wait_until_quiet(&self) {
        let metrics = self.engine.metrics();
        while self.engine.n_in_flight() > 0 || metrics.running.value() > 0 {
            std::thread::yield_now();
        }
        assert_eq!(metrics.pages_owned.value(), 0, "no page is owned");
        assert_eq!(metrics.pages_cached.value(), metrics.pages_evictable.value());
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        drop(self.stop.take());
        let server = self.server.take().expect("dropped once");
        let exit = self.runtime.block_on(server).expect("the server ends");
        if !std::thread::panicking() {
            assert_eq!(exit, EngineExit::Drained);
        }
    }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    /// Reads to the end of the connection; undoes chunking.
    fn read(mut stream: TcpStream) -> Answer {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("an answer");
        let text = String::from_utf8(bytes).expect("UTF-8");
        let (head, rest) = text.split_once("\r\n\r\n").expect("a head");
        let is_chunked = head.contains("transfer-encoding: chunked");
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
        Answer {
            status: status.expect("a status"),
            head: head.to_owned(),
            body: if is_chunked { joined(rest) } else { rest.to_owned() },
        }
    }

    fn json(&self) -> Json {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The body with id and time blotted out.
    fn blotted(&self) -> String {
        let mut body = self.body.clone();
        for (key, quote) in [("\"id\":\"", "\""), ("\"created\":", ",")] {
            let mut pieces = body.split(key);
            let mut blotted = pieces.next().expect("a beginning").to_owned();
            for piece in pieces {
                let end = piece.find(quote).expect("an end");
                blotted.push_str(&format!("{key}_{}", &piece[end..]));
            }
            body = blotted;
        }
        body
    }
}

fn joined(mut chunks: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = chunks.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a chunk size");
        whole.push_str(&rest[..size]);
        chunks = &rest[size + 2..];
    }
    whole
}

fn chat(content: &str, more: &Json) -> Json {
    let mut body = json!({"messages": [{"role": "user", "content": content}], "temperature": 0});
    for (key, value) in more.as_object().expect("fields") {
        body[key] = value.clone();
    }
    body
}

fn rendered(content: &str) -> String {
    format!("<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n")
}

#[test]
fn a_chat_answer_is_these_bytes() {
    let site = Site::new();
    let (n_prompt, n_output, text) = site.output(&rendered("hello there"), 9);
    let answer = site.post(
        "/v1/chat/completions",
        &chat("hello there", &json!({"max_tokens": 9})),
    );
    let reason = if n_output == 9 { "length" } else { "stop" };
    let content = Json::String(text);
    let total = n_prompt + n_output;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(answer.head.contains("content-type: application/json"));
    assert_eq!(
        answer.blotted(),
        format!(
            r#"{{"id":"_","object":"chat.completion","created":_,"model":"toy","choices":[{{"index":0,"message":{{"role":"assistant","content":{content},"refusal":null}},"logprobs":null,"finish_reason":"{reason}"}}],"usage":{{"prompt_tokens":{n_prompt},"completion_tokens":{n_output},"total_tokens":{total},"prompt_tokens_details":{{"cached_tokens":0}}}}}}"#
        )
    );
}

#[test]
fn a_stream_says_what_the_whole_answer_says_and_ends_with_usage_and_done() {
    let site = Site::new();
    let ask = |more| chat("tell me more", &more);
    let whole = site
        .post("/v1/chat/completions", &ask(json!({"max_tokens": 30})))
        .json();
    let streamed = site.post(
        "/v1/chat/completions",
        &ask(json!({"max_tokens": 30, "stream": true, "stream_options": {"include_usage": true}})),
    );
    assert!(streamed.head.contains("content-type: text/event-stream"));
    let events: Vec<&str> = streamed.body.split_terminator("\n\n").collect();
    assert_eq!(events.last(), Some(&"data: [DONE]"));
    let chunks: Vec<Json> = events[..events.len() - 1]
        .iter()
        .map(|event| serde_json::from_str(event.strip_prefix("data: ").expect("data")).expect("JSON"))
        .collect();
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let text: String = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(
        text,
        whole["choices"][0]["message"]["content"].as_str().expect("text")
    );
    let (last, others) = chunks.split_last().expect("chunks");
    assert!(others.iter().all(|chunk| chunk["usage"].is_null()));
    assert_eq!(last["choices"], json!([]));
    let (streamed, whole) = (&last["usage"], &whole["usage"]);
    assert_eq!(streamed["completion_tokens"], whole["completion_tokens"]);
    let n_prompt = whole["prompt_tokens"].as_u64().expect("a count");
    assert_eq!(whole["prompt_tokens_details"]["cached_tokens"], 0);
    assert_eq!(
        streamed["prompt_tokens_details"]["cached_tokens"],
        n_prompt - 1,
        "all but the last token was computed by the first request"
    );
}

#[test]
fn completions_echo_take_tokens_and_share_a_prompt_among_choices() {
    let site = Site::new();
    let (_, _, text) = site.output("once upon a time", 6);
    let ask = json!({"prompt": "once upon a time", "max_tokens": 6, "temperature": 0, "echo": true, "n": 2});
    let answer = site.post("/v1/completions", &ask).json();
    let said = format!("once upon a time{text}");
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["choices"][0]["text"], said);
    assert_eq!(answer["choices"][1]["text"], said);
    let ids = site
        .tokenizer
        .encode("once upon a time", SpecialTokens::Parse)
        .expect("encodes");
    let ask = json!({"prompt": ids, "max_tokens": 6, "temperature": 0});
    assert_eq!(
        site.post("/v1/completions", &ask).json()["choices"][0]["text"],
        text
    );
}

#[test]
fn errors_have_their_status_their_field_and_all_four_keys() {
    let site = Site::new();
    let chat_path = "/v1/chat/completions";
    let cases = [
        (chat_path, "{".to_owned(), 400, Json::Null, Json::Null),
        (chat_path, "{}".to_owned(), 400, json!("messages"), Json::Null),
        (
            chat_path,
            chat("a", &json!({"temperature": -1})).to_string(),
            400,
            json!("temperature"),
            Json::Null,
        ),
        (
            chat_path,
            chat("a", &json!({"max_tokens": 1_000_000})).to_string(),
            400,
            Json::Null,
            json!("context_length_exceeded"),
        ),
        (
            chat_path,
            chat("a", &json!({"model": "other"})).to_string(),
            404,
            json!("model"),
            json!("model_not_found"),
        ),
        (
            chat_path,
            chat("a", &json!({"response_format": {"type": "json_object"}})).to_string(),
            400,
            json!("response_format"),
            Json::Null,
        ),
        (
            "/v1/completions",
            json!({"prompt": [N_VOCAB]}).to_string(),
            400,
            json!("prompt"),
            Json::Null,
        ),
        (
            chat_path,
            " ".repeat(100_001),
            413,
            Json::Null,
            json!("request_too_large"),
        ),
        ("/nowhere", "{}".to_owned(), 404, Json::Null, json!("unknown_url")),
        (
            "/v1/models",
            "{}".to_owned(),
            405,
            Json::Null,
            json!("method_not_supported"),
        ),
    ];
    for (path, body, status, param, code) in cases {
        let answer = Answer::read(site.send("POST", path, "", &body));
        let shown = &body[..body.len().min(60)];
        assert_eq!(answer.status, status, "{path} {shown}: {}", answer.body);
        let answer = answer.json();
        let error = answer["error"].as_object().expect("an error");
        assert_eq!(error.len(), 4, "{error:?}");
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()));
        assert!(error["type"].is_string());
        assert_eq!(
            (&error["param"], &error["code"]),
            (&param, &code),
            "{path} {shown}"
        );
    }
    assert_eq!(site.get("/health").status, 200, "the server is as it was");
    site.wait_until_quiet();
}

#[test]
fn nothing_is_answered_without_a_key() {
    let site = Site::with(&["secret"], |_| {});
    for path in ["/health", "/metrics", "/v1/models", "/nowhere"] {
        let answer = site.get(path);
        assert_eq!(answer.status, 401, "{path}");
        assert_eq!(answer.json()["error"]["code"], "invalid_api_key");
    }
    let with_key = site.send(
        "GET",
        "/v1/models",
        "authorization: Bearer secret\r\nx-request-id: 42\r\n",
        "",
    );
    let answer = Answer::read(with_key);
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("x-request-id: 42"), "{}", answer.head);
    assert_eq!(answer.json()["data"][0]["max_model_len"], 200_000);
}

/// A stream that goes on for as long as the context, and has begun.
fn endless(site: &Site) -> TcpStream {
    let body = json!({"prompt": "go on", "max_tokens": 190_000, "ignore_eos": true, "stream": true});
    let mut stream = site.send("POST", "/v1/completions", "", &body.to_string());
    let mut beginning = [0; 512];
    stream.read_exact(&mut beginning).expect("a beginning");
    stream
}

#[test]
fn a_client_that_hangs_up_leaves_nothing_behind() {
    let site = Site::new();
    drop(endless(&site));
    site.wait_until_quiet();
    let aborted = site.engine.metrics().requests_finished[4].value();
    assert_eq!(aborted, 1, "it did not run to its end");
}

#[test]
fn a_full_queue_answers_429_with_retry_after() {
    let site = Site::with(&[], |config| {
        config.max_running = 1;
        config.max_waiting = 1;
    });
    let running = endless(&site);
    let waiting = site.send(
        "POST",
        "/v1/completions",
        "",
        r#"{"prompt": "a", "max_tokens": 1}"#,
    );
    while site.engine.metrics().waiting.value() == 0 {
        std::thread::yield_now();
    }
    let refused = site.post("/v1/completions", &json!({"prompt": "b", "max_tokens": 1}));
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert!(refused.head.contains("retry-after: "), "{}", refused.head);
    drop(running);
    assert_eq!(Answer::read(waiting).status, 200, "who waited is served");
}

#[test]
fn a_failing_step_ends_its_streams_with_an_error_and_the_next_request_is_served() {
    let site = Site::new();
    let mut stream = endless(&site);
    site.fuse.light(5);
    let mut rest = String::new();
    stream.read_to_string(&mut rest).expect("text");
    assert!(
        rest.contains("data: {\"error\":{") && rest.contains("internal_error"),
        "{rest}"
    );
    assert!(!rest.contains("[DONE]"));
    let answer = site.post("/v1/completions", &json!({"prompt": "a", "max_tokens": 3}));
    assert_eq!(answer.status, 200, "{}", answer.body);
}

#[test]
fn a_server_told_to_stop_ends_every_stream_with_a_word() {
    let mut site = Site::new();
    let mut stream = endless(&site);
    drop(site.stop.take());
    let mut rest = String::new();
    stream.read_to_string(&mut rest).expect("text");
    assert!(rest.contains("shutting_down"), "{rest}");
}
