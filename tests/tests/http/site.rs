//! A server over a real socket on the toy model, and what tests ask it with.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arbora::api::App;
use arbora::api::generate::StreamForm;
use arbora::auth::{ApiKeys, CacheSharing, OperatorKeys};
use arbora::config::MetricsCompat;
use arbora::encoders::ServedEncoder;
use arbora::grammars::Grammars;
use arbora::hosts::{Addresses, AllowedHosts};
use arbora::intake::{Intake, IntakeLimits};
use arbora::kept::{KeptLimits, KeptResponses};
use arbora::origins::AllowedOrigins;
use arbora::otlp::Traces;
use arbora::places::{Patience, Room};
use arbora::prompt::PromptEncoder;
use arbora::registry::Models;
use arbora::served::Served;
use arbora::server::Server;
use arbora::template::{ChatTemplate, TemplateTokens};
use arbora::workers::Workers;
use arbora_kernels::reference::ReferenceBackend;
use arbora_runtime::embedding::{self, EmbeddingConfig};
use arbora_runtime::engine::{EngineConfig, EngineExit, EngineHandle, spawn};
use arbora_runtime::model::encoder::EncoderFile;
use arbora_runtime::model::metadata::{Metadata, Value};
use arbora_runtime::request::{Request, SamplingParams};
use arbora_runtime::tokenizer::{SpecialTokens, Tokenizer};
use arbora_tests::oracle::{Expected, expected};
use arbora_tests::toy::{Fuse, N_VOCAB, ToyBackend};
use serde_json::{Value as Json, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

pub(crate) const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// The tokens that open and close messages; the second ends an output.
const TURNS: [&str; 2] = ["<|im_start|>", "<|im_end|>"];

/// Two control tokens, letters, digits and what a sentence needs; `Ã` and `©` are the bytes of `é`.
pub(crate) fn tokenizer() -> Tokenizer {
    let letters = ('a'..='z').chain('0'..='9').chain("ĠĊ.,?!:Ã©T".chars());
    let tokens: Vec<String> = letters.map(String::from).collect();
    let tokenizer = tokenizer_of([&TURNS, &[]], &tokens, &[]);
    assert_eq!(tokenizer.n_vocab(), N_VOCAB);
    tokenizer
}

/// The same, every printable character, some longer tokens that JSON is spelled with, and `controls`.
pub(crate) fn json_tokenizer(controls: &[&str]) -> Tokenizer {
    json_tokenizer_with(controls, &[])
}

/// The same with `words` that are text and never cut, as Qwen's models have them for thoughts and calls.
pub(crate) fn json_tokenizer_with(controls: &[&str], words: &[&str]) -> Tokenizer {
    const MERGES: [&str; 8] = ["{ \"", "\" :", "\" ,", "t r", "a m", "am e", "n ame", "name \":"];
    let printable = ('!'..='~').chain("ĠĊÃ©".chars()).map(String::from);
    let merged = MERGES.iter().map(|merge| merge.replace(' ', ""));
    let tokens: Vec<String> = printable.chain(merged).collect();
    let controls: Vec<&str> = TURNS.iter().chain(controls).copied().collect();
    tokenizer_of([&controls, words], &tokens, &MERGES)
}

/// Letters, a first token that prompts begin with, and a last one that fills up rows.
pub(crate) fn bos_tokenizer() -> Tokenizer {
    let letters: Vec<String> = ('a'..='z').map(String::from).collect();
    let metadata = vocabulary([&TURNS, &[]], &letters, &[])
        .with("tokenizer.ggml.bos_token_id", Value::Unsigned(0))
        .with("tokenizer.ggml.add_bos_token", Value::Bool(true))
        .with("tokenizer.ggml.padding_token_id", Value::Unsigned(27));
    Tokenizer::from_metadata(&metadata).expect("a vocabulary")
}

fn tokenizer_of(marks: [&[&str]; 2], texts: &[String], merges: &[&str]) -> Tokenizer {
    Tokenizer::from_metadata(&vocabulary(marks, texts, merges)).expect("a vocabulary")
}

/// A byte-level vocabulary: control tokens first, the second of which ends an output, then texts, then words.
fn vocabulary([controls, words]: [&[&str]; 2], texts: &[String], merges: &[&str]) -> Metadata {
    let (controls, words) = (controls.iter().copied(), words.iter().copied());
    let texts = texts.iter().map(String::as_str);
    let kinds = [(3, controls.len()), (1, texts.len()), (4, words.len())];
    let types = kinds
        .into_iter()
        .flat_map(|(kind, n)| std::iter::repeat_n(kind, n));
    let types = types.collect();
    let tokens = controls.chain(texts).chain(words);
    let text = |text: &str| Value::Text(text.to_owned());
    Metadata::default()
        .with("tokenizer.ggml.model", text("gpt2"))
        .with("tokenizer.ggml.pre", text("smollm"))
        .with("tokenizer.ggml.tokens", Value::Strings(tokens.collect()))
        .with("tokenizer.ggml.token_type", Value::Integers(types))
        .with(
            "tokenizer.ggml.merges",
            Value::Strings(merges.iter().copied().collect()),
        )
        .with("tokenizer.ggml.eos_token_id", Value::Unsigned(1))
}

/// What a server is made of.
pub(crate) struct Setup {
    pub(crate) api_keys: Vec<String>,
    pub(crate) hosts: AllowedHosts,
    pub(crate) origins: AllowedOrigins,
    pub(crate) bodies: IntakeLimits,
    pub(crate) kept: KeptLimits,
    pub(crate) generate_form: StreamForm,
    pub(crate) operators: OperatorKeys,
    pub(crate) metrics_compat: MetricsCompat,
    pub(crate) traces: Option<Traces>,
    pub(crate) cache_sharing: CacheSharing,
    pub(crate) tokenizer: Tokenizer,
    /// That of a second model, where there is one: `other`, also called `another`, greedy by default.
    pub(crate) second: Option<Tokenizer>,
    /// Encoders that are served besides, by the names of their folders in `tests/golden/encoders`.
    pub(crate) encoders: &'static [&'static str],
    pub(crate) template: &'static str,
    pub(crate) engine: EngineConfig,
    pub(crate) drain_timeout: Duration,
    pub(crate) room: Room,
    pub(crate) patience: Patience,
}

impl Setup {
    pub(crate) fn new(tokenizer: Tokenizer) -> Setup {
        Setup {
            api_keys: Vec::new(),
            hosts: AllowedHosts::Listed {
                addresses: Addresses::Loopback,
                hosts: Vec::new(),
            },
            origins: AllowedOrigins::Listed(Vec::new()),
            bodies: IntakeLimits {
                body: 100_000,
                memory: 64 << 20,
            },
            kept: KeptLimits {
                bytes: 1 << 20,
                time_to_live: Duration::from_secs(3600),
            },
            generate_form: StreamForm::default(),
            operators: OperatorKeys::default(),
            metrics_compat: MetricsCompat::default(),
            traces: None,
            cache_sharing: CacheSharing::default(),
            tokenizer,
            second: None,
            encoders: &[],
            template: TEMPLATE,
            engine: EngineConfig::new(13_000, 200_000),
            drain_timeout: Duration::ZERO,
            room: Room {
                places: 1000,
                reserved: 10,
            },
            patience: Patience::default(),
        }
    }

    pub(crate) fn start(self) -> Site {
        let workers = Workers::start("work", 2, 256).expect("threads");
        let n_tenants = self.api_keys.len().max(1);
        let mut config = self.engine;
        config.n_tenants = n_tenants;
        let shared = (config, workers.clone());
        let sampling = SamplingParams::default();
        let first = Model::start(("toy", &[]), (self.tokenizer, self.template), &shared, sampling);
        let second = self.second.map(|tokenizer| {
            let names: (_, &[&str]) = ("other", &["another"]);
            Model::start(names, (tokenizer, self.template), &shared, SamplingParams::GREEDY)
        });
        let (second, second_thread) = second.map(|model| (model.served, model.thread)).unzip();
        let (engine, fuse, thread) = (first.served.engine.clone(), first.fuse, first.thread);
        let tokenizer = Arc::clone(first.served.encoder.tokenizer());
        let limits = EmbeddingConfig {
            max_waiting: shared.0.max_waiting,
            n_tenants,
            ..EmbeddingConfig::default()
        };
        let encoders = self.encoders.iter().map(|name| start_encoder(name, limits));
        let (encoders, encoder_threads): (Vec<_>, Vec<_>) = encoders.unzip();
        let generators = std::iter::once(first.served).chain(second).collect();
        let models = Models::of(generators, encoders).expect("names differ");
        let app = Arc::new(App {
            models: Arc::new(models),
            started: 7,
            api_keys: ApiKeys::new(&self.api_keys, self.cache_sharing, self.operators),
            hosts: self.hosts,
            origins: self.origins,
            intake: Intake::new(self.bodies, n_tenants, workers),
            http: arbora::metrics::HttpMetrics::new(arbora::route::paths()),
            responses: KeptResponses::new(self.kept),
            generate_form: self.generate_form,
            metrics_compat: self.metrics_compat,
            traces: self.traces,
            cache: arbora::api::cache::CacheBook::default(),
            log: Arc::default(),
            pool: Arc::default(),
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
            drain_timeout: self.drain_timeout,
            room: self.room,
            patience: self.patience,
        };
        let server = runtime.spawn(async move {
            let join = move || {
                let exit = thread.join().expect("no panic");
                let others = second_thread.into_iter().chain(encoder_threads);
                for thread in others {
                    thread.join().expect("no panic");
                }
                exit
            };
            #[expect(clippy::disallowed_methods, reason = "a test that gets no thread fails")]
            let joined = tokio::task::spawn_blocking(join);
            let stop = async { drop(stopped.await) };
            server.run(stop, async { joined.await.expect("joined") }).await
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
}

/// A golden encoder with its engine.
fn start_encoder(
    name: &str,
    limits: EmbeddingConfig,
) -> (ServedEncoder, std::thread::JoinHandle<EngineExit>) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/encoders");
    let file = EncoderFile::open(&path.join(name)).expect("a good folder");
    let mut backend = ReferenceBackend::new();
    let encoder = file.load(&mut backend, 64).expect("good weights");
    let spawned = embedding::spawn(backend, encoder, file.head().clone(), limits);
    let (engine, thread) = spawned.expect("a thread");
    let (prompts, default_prompt) = file.prompts();
    let served = ServedEncoder {
        name: name.to_owned(),
        aliases: Vec::new(),
        engine,
        tokenizer: Arc::new(file.tokenizer().expect("a good tokenizer")),
        purpose: file.config().purpose,
        width: file.head().n_out(file.config().width),
        prompts: prompts.to_vec(),
        default_prompt: default_prompt.map(str::to_owned),
    };
    (served, thread)
}

/// A toy model with its engine.
struct Model {
    served: Served,
    fuse: Fuse,
    thread: std::thread::JoinHandle<EngineExit>,
}

impl Model {
    /// `sampling` is how its tokens are drawn where requests do not say.
    fn start(
        (name, aliases): (&str, &[&str]),
        (tokenizer, template): (Tokenizer, &str),
        (config, workers): &(EngineConfig, Workers),
        sampling: SamplingParams,
    ) -> Model {
        let tokenizer = Arc::new(tokenizer);
        let n_vocab = tokenizer.n_vocab();
        let (n_tenants, mut config) = (config.n_tenants, config.clone());
        let stops = tokenizer.stop_token_ids().to_vec();
        config.model_stop_tokens.clone_from(&stops);
        let (backend, fuse) = ToyBackend::new(0);
        let mut backend = backend.with_vocabulary(n_vocab);
        let decoder = backend.decoder(config.context, config.forward_limits());
        let token_bytes = Arc::new(tokenizer.text_bytes(&arbora::thinking::MARKS));
        let spawned = spawn(backend, decoder, Arc::clone(&token_bytes), config);
        let (engine, thread) = spawned.expect("a configuration");
        let template = ChatTemplate::new(template, TemplateTokens::default()).expect("a template");
        let for_vocabulary = (Arc::clone(&tokenizer), n_vocab, stops.as_slice());
        let served = Served {
            name: name.to_owned(),
            aliases: aliases.iter().map(|&alias| alias.to_owned()).collect(),
            engine,
            grammars: Grammars::new(for_vocabulary, n_tenants, workers.clone()),
            named_bytes: Arc::new(tokenizer.named_bytes()),
            encoder: Arc::new(PromptEncoder::new(tokenizer, Some(template))),
            token_bytes,
            sampling,
        };
        Model { served, fuse, thread }
    }
}

/// Waits until `is_so`, for at most a minute.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if is_so() {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    panic!("not within a minute: {what}");
}

/// A running server.
pub(crate) struct Site {
    address: SocketAddr,
    pub(crate) engine: EngineHandle,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) fuse: Fuse,
    pub(crate) stop: Option<oneshot::Sender<()>>,
    server: Option<tokio::task::JoinHandle<EngineExit>>,
    runtime: tokio::runtime::Runtime,
}

impl Site {
    pub(crate) fn new() -> Site {
        Setup::new(tokenizer()).start()
    }

    pub(crate) fn with(api_keys: &[&str], change: impl FnOnce(&mut EngineConfig)) -> Site {
        let mut setup = Setup::new(tokenizer());
        setup.api_keys = api_keys.iter().map(|&key| key.to_owned()).collect();
        change(&mut setup.engine);
        setup.start()
    }

    /// A value of `/metrics`; `name` is followed by the labels that it has.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let page = self.get("/metrics").body;
        let line = page
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.and_then(|n| n.parse().ok())
            .unwrap_or_else(|| panic!("{name} in {page}"))
    }

    /// Where it is, for clients that take a URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("the server listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .expect("a timeout");
        stream
    }

    /// Sends a request whose connection ends with the answer; a POST says that its body is JSON.
    pub(crate) fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
        let kind = match method {
            "POST" => "content-type: application/json\r\n",
            _ => "",
        };
        let headers = format!("host: localhost\r\n{kind}{headers}");
        self.send_bytes(&format!("{method} {path}"), &headers, body.as_bytes())
    }

    /// Sends a request with these headers and no others but its length and the end of the connection.
    pub(crate) fn send_bytes(&self, method_and_path: &str, headers: &str, body: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        let n = body.len();
        let head = format!(
            "{method_and_path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {n}\r\n{headers}\r\n"
        );
        stream.write_all(head.as_bytes()).expect("the server reads");
        // One that has seen enough closes, and what is still to be sent fails.
        let _ = stream.write_all(body);
        stream
    }

    pub(crate) fn post(&self, path: &str, body: &Json) -> Answer {
        Answer::read(self.send("POST", path, "", &body.to_string()))
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        Answer::read(self.send("GET", path, "", ""))
    }

    /// A greedy request.
    pub(crate) fn request(&self, prompt: &str, max_tokens: usize) -> Request {
        let prompt = self
            .tokenizer
            .encode(prompt, SpecialTokens::Parse)
            .expect("encodes");
        let id = self.engine.next_id();
        Request {
            sampling: SamplingParams::GREEDY,
            ..Request::new(id, prompt, max_tokens, Instant::now(), mpsc::channel(1).0)
        }
    }

    /// What the toy model makes of `request`.
    pub(crate) fn expected(&self, request: &Request) -> Expected {
        expected(request, None, self.tokenizer.stop_token_ids(), 0)
    }

    /// The text of an output.
    pub(crate) fn text_of(&self, tokens: &[u32]) -> String {
        let bytes: Vec<u8> = tokens
            .iter()
            .filter(|&&token| !self.tokenizer.is_special(token))
            .flat_map(|&token| self.tokenizer.token_bytes(token))
            .copied()
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The greedy output of the toy model for a prompt: the lengths of both, and its text.
    pub(crate) fn output(&self, prompt: &str, max_tokens: usize) -> (usize, usize, String) {
        let request = self.request(prompt, max_tokens);
        let tokens = self.expected(&request).tokens;
        (request.prompt.len(), tokens.len(), self.text_of(&tokens))
    }

    /// Waits until the engine holds nothing but its cache, and has said so.
    pub(crate) fn wait_until_quiet(&self) {
        /// Far more than the engine takes to publish its figures.
        const MAX_LOOKS: usize = 10_000_000;
        let metrics = self.engine.metrics();
        while self.engine.n_in_flight() > 0 {
            std::thread::yield_now();
        }
        let is_quiet = || {
            std::thread::yield_now();
            let now = metrics.gauges();
            let is_evictable = now.pages_cached == now.pages_evictable;
            now.running + now.waiting + now.waiting_tokens + now.pages_owned == 0 && is_evictable
        };
        assert!(
            (0..MAX_LOOKS).any(|_| is_quiet()),
            "a request still waits, or a page is still owned or locked: {:?}",
            metrics.gauges()
        );
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

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    /// Reads to the end of the connection; undoes chunking.
    pub(crate) fn read(mut stream: TcpStream) -> Answer {
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

    pub(crate) fn json(&self) -> Json {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The body with id and time blotted out.
    pub(crate) fn blotted(&self) -> String {
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

pub(crate) fn chat(content: &str, more: &Json) -> Json {
    let mut body = json!({"messages": [{"role": "user", "content": content}], "temperature": 0});
    for (key, value) in more.as_object().expect("fields") {
        body[key] = value.clone();
    }
    body
}

pub(crate) fn rendered(content: &str) -> String {
    format!("<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n")
}
