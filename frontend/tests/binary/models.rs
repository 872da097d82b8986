//! Several models behind one port: by name, on demand, exchanged while they serve.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use super::server::{PATIENCE, Server, next_line, until};
use super::{arbora, said};

const FAMILIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/families");
const ENCODER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/encoders/bert");

/// `arbora serve` as a file of the configuration says.
fn serve(folder: &Path, file: &str) -> Command {
    let path = folder.join("arbora.toml");
    let general = "port = 0\nthreads = 1\nkv-pages = 64\nlog = 'debug'\n";
    std::fs::write(&path, format!("{general}{file}")).expect("writable");
    let mut command = arbora();
    command.arg("serve").arg("--config").arg(path);
    command
}

fn start(file: &str) -> Server {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let (server, log) = Server::start(&mut serve(folder.path(), file));
    // What is said later is for nobody.
    drop(log);
    server
}

/// What the model continues `prompt` with, or the status and the error.
fn complete(server: &Server, model: &str, prompt: &str) -> Result<String, String> {
    let body = format!(
        "{{\"model\": \"{model}\", \"prompt\": \"{prompt}\", \"max_tokens\": 8, \"temperature\": 0, \
         \"ignore_eos\": true}}"
    );
    let answer = server.post("/v1/completions", "", body.as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).expect("a status");
    let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
    match status {
        "200" => Ok(body["choices"][0]["text"].to_string()),
        _ => Err(format!("{status} {}", body["error"]["message"])),
    }
}

fn order(server: &Server, route: &str, body: &str) -> String {
    server.post(&format!("/models/{route}"), "", body.as_bytes())
}

/// Whether the model of this name is loaded, by the list of all.
fn status(server: &Server, model: &str) -> String {
    let answer = server.get("/v1/models");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a head");
    let list: serde_json::Value = serde_json::from_str(body).expect("JSON");
    let models = list["data"].as_array().expect("a list");
    let model = models
        .iter()
        .find(|card| card["id"] == model)
        .expect("it is known");
    model["status"]["value"].as_str().expect("a word").to_owned()
}

fn metric(server: &Server, line: &str) -> String {
    let page = server.get("/metrics");
    let found = page.lines().find_map(|found| found.strip_prefix(line));
    found
        .unwrap_or_else(|| panic!("no '{line}' in {page}"))
        .trim()
        .to_owned()
}

#[test]
fn models_answer_by_their_names_and_aliases() {
    let server = start(&format!(
        "[[models]]\nmodel = '{FAMILIES}/qwen2.gguf'\n[[models]]\nmodel = '{FAMILIES}/gemma.gguf'\n\
         name = 'second'\naliases = ['gpt-4o']\n[[models]]\nmodel = '{ENCODER}'\n"
    ));
    let first = complete(&server, "qwen2", "a b").expect("an answer");
    let second = complete(&server, "second", "a b").expect("an answer");
    assert_ne!(first, second, "two models");
    assert_eq!(complete(&server, "gpt-4o", "a b"), Ok(second.clone()));
    let unnamed = server.post("/v1/completions", "", br#"{"prompt": "a b", "max_tokens": 1}"#);
    assert!(unnamed.contains("\"model\":\"qwen2\""), "{unnamed}");
    let vectors = server.post("/v1/embeddings", "", br#"{"input": "a b"}"#);
    assert!(
        vectors.contains("\"model\":\"bert\""),
        "the one of its kind: {vectors}"
    );
    let error = complete(&server, "third", "a").expect_err("unknown");
    assert!(error.starts_with("404 ") && error.contains("'third'"), "{error}");
    for name in ["qwen2", "second", "bert"] {
        assert_eq!(status(&server, name), "loaded");
        assert_eq!(
            metric(&server, &format!("arbora_model_loaded{{model=\"{name}\"}}")),
            "1"
        );
    }
    assert_eq!(server.stop().code(), Some(0));
}

#[test]
fn flags_name_several_models_and_one_name_is_for_one() {
    let paths = ["qwen2.gguf", "gemma.gguf"].map(|file| format!("{FAMILIES}/{file}"));
    let mut command = arbora();
    command.args(["serve", "--port", "0", "--threads", "1", "--kv-pages", "64"]);
    command.args(["--model", &paths[0], "--model", &paths[1]]);
    let (server, log) = Server::start(&mut command);
    drop(log);
    for name in ["qwen2", "gemma"] {
        complete(&server, name, "a").expect("an answer");
    }
    drop(server);
    let named = command
        .args(["--served-model-name", "x"])
        .output()
        .expect("the binary runs");
    assert_eq!(named.status.code(), Some(2));
    assert!(said(&named).contains("there are 2 models"), "{}", said(&named));
}

#[test]
fn a_model_is_loaded_when_it_is_asked_for_and_unloaded_when_it_no_longer_is() {
    let server = start(&format!(
        "[[models]]\nmodel = '{FAMILIES}/qwen2.gguf'\n[[models]]\nmodel = '{FAMILIES}/gemma.gguf'\n\
         on-demand = true\nkeep-alive = 1\n"
    ));
    assert_eq!(status(&server, "gemma"), "unloaded");
    let first = complete(&server, "gemma", "a b").expect("loaded for it");
    until("its end", || status(&server, "gemma") == "unloaded");
    assert_eq!(metric(&server, "arbora_model_loaded{model=\"gemma\"}"), "0");
    assert_eq!(
        complete(&server, "gemma", "a b"),
        Ok(first),
        "the same model again"
    );
    assert_eq!(
        metric(
            &server,
            "arbora_model_loads_total{model=\"gemma\",outcome=\"loaded\"}"
        ),
        "2"
    );
    assert_eq!(server.stop().code(), Some(0));
}

#[test]
fn many_who_ask_for_a_model_have_it_loaded_once() {
    let server = start(&format!(
        "[[models]]\nmodel = '{FAMILIES}/qwen2.gguf'\n[[models]]\nmodel = '{FAMILIES}/gemma.gguf'\n\
         on-demand = true\n"
    ));
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| complete(&server, "gemma", "a").expect("an answer"));
        }
    });
    assert_eq!(
        metric(
            &server,
            "arbora_model_loads_total{model=\"gemma\",outcome=\"loaded\"}"
        ),
        "1"
    );
}

#[test]
fn a_model_that_cannot_be_loaded_is_a_503_and_disturbs_nobody() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = folder.path().join("late.gguf");
    let server = start(&format!(
        "[[models]]\nmodel = '{FAMILIES}/qwen2.gguf'\n[[models]]\nmodel = '{}'\nname = 'late'\n\
         on-demand = true\n",
        path.display()
    ));
    let error = complete(&server, "late", "a").expect_err("no such file");
    assert!(
        error.starts_with("503 ") && error.contains("'late' could not be loaded"),
        "{error}"
    );
    assert!(!error.contains(".gguf"), "paths are the operator's: {error}");
    assert_eq!(status(&server, "late"), "failed");
    complete(&server, "qwen2", "a").expect("the other one serves");
    std::fs::copy(format!("{FAMILIES}/gemma.gguf"), &path).expect("writable");
    let loaded = order(&server, "load", "{\"model\": \"late\"}");
    assert!(loaded.contains("\"value\":\"loaded\""), "{loaded}");
    complete(&server, "late", "a").expect("an answer");
    assert_eq!(server.stop().code(), Some(0));
}

/// Reads the events of a stream up to the `n`th one that holds text.
fn read_events(stream: &mut impl BufRead, n: usize) {
    let mut n_read = 0;
    let mut line = String::new();
    while n_read < n {
        line.clear();
        assert!(
            stream.read_line(&mut line).expect("text") > 0,
            "the stream goes on"
        );
        n_read += usize::from(line.starts_with("data: {"));
    }
}

#[test]
fn a_model_that_is_unloaded_finishes_what_it_writes() {
    let server = start(&format!(
        "[[models]]\nmodel = '{FAMILIES}/qwen2.gguf'\n[[models]]\nmodel = '{FAMILIES}/gemma.gguf'\n"
    ));
    let body = "{\"model\": \"gemma\", \"prompt\": \"a b\", \"max_tokens\": 150, \"temperature\": 0, \
                \"ignore_eos\": true, \"stream\": true}";
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut client = TcpStream::connect(("127.0.0.1", server.port)).expect("it listens");
    client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    client
        .write_all(format!("{head}{body}").as_bytes())
        .expect("it reads");
    let mut stream = BufReader::new(client);
    read_events(&mut stream, 2);
    let gone = order(&server, "unload", "{\"model\": \"gemma\"}");
    assert!(gone.contains("\"value\":\"unloaded\""), "{gone}");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).expect("text");
    assert!(
        rest.contains("\"finish_reason\":\"length\"") && rest.contains("[DONE]"),
        "{rest}"
    );
    let again = order(&server, "unload", "{\"model\": \"gemma\"}");
    assert!(
        again.starts_with("HTTP/1.1 409 ") && again.contains("it is unloaded"),
        "{again}"
    );
    complete(&server, "gemma", "a").expect("loaded again");
}

#[test]
fn another_model_takes_the_place_of_one_and_a_bad_one_does_not() {
    let server = start(&format!(
        "[[models]]\nmodel = '{FAMILIES}/qwen2.gguf'\nname = 'm'\n"
    ));
    let before = complete(&server, "m", "a b").expect("an answer");
    let bad = order(
        &server,
        "load",
        "{\"model\": \"m\", \"source\": \"/nowhere.gguf\"}",
    );
    assert!(
        bad.starts_with("HTTP/1.1 409 ") && bad.contains("/nowhere.gguf"),
        "{bad}"
    );
    assert_eq!(complete(&server, "m", "a b"), Ok(before.clone()), "it goes on");
    let source = format!("{{\"model\": \"m\", \"source\": \"{FAMILIES}/gemma.gguf\"}}");
    let good = order(&server, "load", &source);
    assert!(good.starts_with("HTTP/1.1 200 "), "{good}");
    let after = complete(&server, "m", "a b").expect("an answer");
    assert_ne!(before, after, "another model");
    let added = format!("{{\"model\": \"n\", \"source\": \"{FAMILIES}/qwen2.gguf\"}}");
    assert!(order(&server, "load", &added).starts_with("HTTP/1.1 200 "));
    assert_eq!(complete(&server, "n", "a b"), Ok(before), "by its new name");
    let unknown = order(&server, "load", "{\"model\": \"unheard of\"}");
    assert!(unknown.starts_with("HTTP/1.1 404 "), "{unknown}");
    let field = order(&server, "unload", "{\"model\": \"n\", \"force\": true}");
    assert!(
        field.starts_with("HTTP/1.1 400 ") && field.contains("force"),
        "{field}"
    );
    assert_eq!(server.stop().code(), Some(0));
}

#[test]
fn loads_and_unloads_under_load_lose_no_request() {
    let server = start(&format!(
        "[[models]]\nmodel = '{FAMILIES}/qwen2.gguf'\n[[models]]\nmodel = '{FAMILIES}/gemma.gguf'\n"
    ));
    let expected = ["qwen2", "gemma"].map(|name| complete(&server, name, "a b"));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for client_idx in 0..4 {
            let (server, expected, is_over) = (&server, &expected, &is_over);
            scope.spawn(move || {
                let name = ["qwen2", "gemma"][client_idx % 2];
                while !is_over.load(Ordering::Relaxed) {
                    assert_eq!(complete(server, name, "a b"), expected[client_idx % 2]);
                }
            });
        }
        for _ in 0..10 {
            order(&server, "unload", "{\"model\": \"gemma\"}");
            order(&server, "load", "{\"model\": \"gemma\"}");
            let source = format!("{{\"model\": \"qwen2\", \"source\": \"{FAMILIES}/qwen2.gguf\"}}");
            let exchanged = order(&server, "load", &source);
            assert!(exchanged.starts_with("HTTP/1.1 200 "), "{exchanged}");
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let n_threads = || {
        std::fs::read_dir(format!("/proc/{}/task", server.child.id()))
            .expect("alive")
            .count()
    };
    // Each engine has a thread and one that waits for its end; those of models that went are gone.
    until("the end of old engines", || n_threads() <= 16);
    assert_eq!(server.stop().code(), Some(0));
}

#[test]
fn a_server_whose_models_are_all_unloaded_stops_at_once() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = format!("[[models]]\nmodel = '{FAMILIES}/qwen2.gguf'\non-demand = true\n");
    let (server, mut log) = Server::start(&mut serve(folder.path(), &file));
    server.signal("QUIT");
    next_line(&mut log, "the model is unloaded");
    assert_eq!(server.stop().code(), Some(0));
}
