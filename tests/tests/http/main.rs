//! The server over real sockets, on the toy model: what it says is compared with the plain evaluation, byte
//! by byte where clients look at bytes.

mod bodies;
mod browsers;
mod cache;
mod clients;
mod connections;
mod constrained;
mod drain;
mod embeddings;
mod hostile;
mod messages;
mod models;
mod ollama;
mod openapi;
mod operators;
mod page;
mod render;
mod responses;
mod sampling;
mod site;
mod stream;
mod terminal;
mod tgi;
mod thinking;
mod tools;
mod traces;
mod worker;

use std::io::Read;
use std::net::TcpStream;

use arbora_runtime::tokenizer::SpecialTokens;
use arbora_tests::toy::N_VOCAB;
use serde_json::{Value as Json, json};

use crate::site::{Answer, Setup, Site, bos_tokenizer, chat, rendered};

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
fn texts_begin_with_the_models_first_token_unless_a_client_wants_none() {
    let site = Setup::new(bos_tokenizer()).start();
    let n_prompt = |more: Json| {
        let mut body = json!({"prompt": "abc", "max_tokens": 1});
        for (name, value) in more.as_object().expect("an object") {
            body[name] = value.clone();
        }
        let answer = site.post("/v1/completions", &body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()["usage"]["prompt_tokens"].as_u64().expect("a count")
    };
    assert_eq!(n_prompt(json!({})), 4);
    assert_eq!(n_prompt(json!({"add_special_tokens": true})), 4);
    assert_eq!(n_prompt(json!({"add_special_tokens": false})), 3);
    // It is not doubled where it is spelled out.
    assert_eq!(n_prompt(json!({"prompt": "<|im_start|>abc"})), 4);
    let ids = |more: bool| {
        let body = json!({"prompt": "abc", "add_special_tokens": more});
        let answer = site.post("/tokenize", &body).json();
        answer["tokens"].as_array().expect("tokens").clone()
    };
    assert_eq!(ids(true)[0], 0);
    assert_eq!(ids(true)[1..], ids(false));
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
            json!("messages"),
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
    while site.engine.metrics().gauges().waiting == 0 {
        std::thread::yield_now();
    }
    let refused = site.post("/v1/completions", &json!({"prompt": "b", "max_tokens": 1}));
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert!(refused.head.contains("retry-after: "), "{}", refused.head);
    drop(running);
    assert_eq!(Answer::read(waiting).status, 200, "who waited is served");
}

#[test]
fn a_key_that_floods_the_queue_keeps_no_other_key_out() {
    let keys = ["one", "two"];
    let site = Site::with(&keys, |config| {
        config.max_running = 1;
        config.max_waiting = 8;
    });
    let ask = |key: &str, more: Json| {
        let mut body = json!({"prompt": "a", "max_tokens": 1, "temperature": 0});
        for (name, value) in more.as_object().expect("fields") {
            body[name] = value.clone();
        }
        let key = format!("authorization: Bearer {key}\r\n");
        site.send("POST", "/v1/completions", &key, &body.to_string())
    };
    let metrics = site.engine.metrics();
    let until = |is_so: &dyn Fn() -> bool| {
        while !is_so() {
            std::thread::yield_now();
        }
    };
    let long = json!({"max_tokens": 190_000, "ignore_eos": true});
    let running = ask("one", long.clone());
    until(&|| metrics.gauges().running == 1);
    // Of 8 places one is each key's own and 6 are shared, half of which are left to others.
    let flood: Vec<TcpStream> = (0..4).map(|_| ask("one", long.clone())).collect();
    until(&|| metrics.gauges().waiting == 4);
    for _ in 0..3 {
        let refused = Answer::read(ask("one", json!({})));
        assert_eq!(refused.status, 429, "{}", refused.body);
        assert!(refused.head.contains("retry-after: "), "{}", refused.head);
        assert_eq!(
            refused.json()["error"]["message"],
            "The server is busy: 4 requests of this API key are waiting and 4 of all keys, 1 more would exceed \
             this key's share of 8."
        );
    }
    let quiet = ask("two", json!({"max_tokens": 3, "ignore_eos": true}));
    until(&|| metrics.gauges().waiting == 5);
    drop(running);
    let answer = Answer::read(quiet);
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.json()["usage"]["completion_tokens"], 3);
    drop(flood);
    site.wait_until_quiet();
    assert_eq!(metrics.requests_refused.value(), 3);
    for key in keys {
        let served = Answer::read(ask(key, json!({})));
        assert_eq!(served.status, 200, "{key}: {}", served.body);
    }
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
