//! Text Generation Inference's API: it says what text completions say of the same prompt.

use serde_json::{Value as Json, json};

use crate::constrained::{judge, person};
use crate::site::{Answer, Setup, Site, chat, json_tokenizer, rendered};

/// A request for at most 9 tokens with these parameters.
fn ask(inputs: &str, parameters: &Json) -> Json {
    let mut body = json!({"inputs": inputs, "parameters": {"max_new_tokens": 9}});
    for (name, value) in parameters.as_object().expect("parameters") {
        body["parameters"][name] = value.clone();
    }
    body
}

fn post(site: &Site, path: &str, body: &Json) -> Json {
    let answer = site.post(path, body);
    assert_eq!(answer.status, 200, "{path} {body}: {}", answer.body);
    answer.json()
}

/// The events of a stream.
fn events(site: &Site, path: &str, body: &Json) -> Vec<Json> {
    let answer = site.post(path, body);
    assert!(
        answer.head.contains("content-type: text/event-stream"),
        "{}",
        answer.head
    );
    let events = answer.body.split_terminator("\n\n");
    events
        .map(|event| serde_json::from_str(event.strip_prefix("data: ").expect("data")).expect("JSON"))
        .collect()
}

#[test]
fn a_text_is_continued_in_every_form() {
    let site = Site::new();
    let (n_prompt, n_output, text) = site.output("once upon a time", 9);
    let body = ask("once upon a time", &json!({}));
    assert_eq!(post(&site, "/generate", &body), json!({"generated_text": text}));
    // As Hugging Face's pipelines answer.
    let whole = format!("once upon a time{text}");
    assert_eq!(post(&site, "/", &body), json!([{"generated_text": whole}]));
    let bare = ask("once upon a time", &json!({"return_full_text": false}));
    assert_eq!(post(&site, "/", &bare), json!([{"generated_text": text}]));
    let told = ask("once upon a time", &json!({"details": true, "top_n_tokens": 2}));
    let answer = post(&site, "/generate", &told);
    let reason = if n_output == 9 { "length" } else { "eos_token" };
    let details = &answer["details"];
    assert_eq!(
        (
            &details["finish_reason"],
            &details["generated_tokens"],
            &details["seed"]
        ),
        (&json!(reason), &json!(n_output), &Json::Null)
    );
    let tokens = details["tokens"].as_array().expect("tokens");
    assert_eq!(tokens.len(), n_output);
    assert!(
        tokens
            .iter()
            .all(|token| token["logprob"].as_f64().is_some_and(|l| l <= 0.0))
    );
    assert_eq!(details["top_tokens"][0].as_array().map(Vec::len), Some(2));
    // The toy lists its first tokens.
    let listed = [0, 1].map(|i| &details["top_tokens"][0][i]["id"]);
    assert_eq!(listed, [&json!(0), &json!(1)]);
    let mut streamed = told.clone();
    streamed["stream"] = true.into();
    for (path, body) in [
        ("/generate_stream", &told),
        ("/generate", &streamed),
        ("/", &streamed),
    ] {
        let events = events(&site, path, body);
        assert_eq!(events.len(), n_output, "an event per token");
        let (last, others) = events.split_last().expect("events");
        assert!(
            others
                .iter()
                .all(|event| event["generated_text"].is_null() && event["details"].is_null())
        );
        let plain = events.iter().filter(|event| event["token"]["special"] == false);
        let joined: String = plain
            .map(|event| event["token"]["text"].as_str().expect("text"))
            .collect();
        assert_eq!(joined, text);
        let opening = if path == "/" { "once upon a time" } else { "" };
        assert_eq!(last["generated_text"], format!("{opening}{text}"));
        assert_eq!(last["details"]["input_length"], n_prompt);
        assert_eq!(last["details"]["finish_reason"], reason);
        let ids = |list: &[Json]| {
            list.iter()
                .map(|event| event["token"]["id"].clone())
                .collect::<Vec<_>>()
        };
        let expected: Vec<Json> = tokens.iter().map(|token| token["id"].clone()).collect();
        assert_eq!(ids(&events), expected);
        let indices: Vec<&Json> = events.iter().map(|event| &event["index"]).collect();
        assert!(indices.iter().zip(1..).all(|(index, n)| **index == json!(n)));
    }
    site.wait_until_quiet();
}

#[test]
fn an_end_of_its_own_is_the_last_token() {
    let site = Site::new();
    let prompts = (0..40).map(|i| format!("prompt {i}"));
    let ends = |prompt: &String| site.output(prompt, 60).1 < 60;
    let prompt = prompts.into_iter().find(ends).expect("a prompt leads to an end");
    let (_, n_output, text) = site.output(&prompt, 60);
    let body = ask(&prompt, &json!({"max_new_tokens": 60, "details": true}));
    let answer = post(&site, "/generate", &body);
    assert_eq!(answer["generated_text"], text);
    let details = &answer["details"];
    assert_eq!(details["finish_reason"], "eos_token");
    let last = details["tokens"]
        .as_array()
        .expect("tokens")
        .last()
        .expect("some");
    assert_eq!(
        (&last["special"], &last["text"]),
        (&json!(true), &json!("<|im_end|>"))
    );
    let events = events(&site, "/generate_stream", &body);
    assert_eq!(events.len(), n_output);
    let last = events.last().expect("events");
    assert_eq!(last["token"]["special"], true);
    assert_eq!(last["generated_text"], text);
}

#[test]
fn a_stop_string_ends_the_text_and_is_its_end() {
    let site = Site::new();
    let (_, _, text) = site.output("once upon a time", 30);
    let stop: String = text.chars().skip(4).take(2).collect();
    let end = text.find(&stop).expect("it is there") + stop.len();
    let body = ask(
        "once upon a time",
        &json!({"max_new_tokens": 30, "stop": [stop], "details": true}),
    );
    let answer = post(&site, "/generate", &body);
    assert_eq!(answer["generated_text"], text[..end]);
    assert_eq!(answer["details"]["finish_reason"], "stop_sequence");
    let events = events(&site, "/generate_stream", &body);
    let joined: String = events
        .iter()
        .map(|event| event["token"]["text"].as_str().expect("text"))
        .collect();
    assert_eq!(joined, text[..end]);
}

#[test]
fn the_likeliest_of_several_outputs_is_the_answer() {
    let site = Site::new();
    let body = ask(
        "once upon a time",
        &json!({"best_of": 4, "do_sample": true, "seed": 7, "details": true}),
    );
    let answer = post(&site, "/generate", &body);
    let details = &answer["details"];
    assert_eq!(details["seed"], 7);
    let mean = |tokens: &Json| {
        let tokens = tokens.as_array().expect("tokens");
        let sum: f64 = tokens
            .iter()
            .map(|token| token["logprob"].as_f64().expect("a number"))
            .sum();
        sum / tokens.len() as f64
    };
    let others = details["best_of_sequences"].as_array().expect("the others");
    assert_eq!(others.len(), 3);
    let best = mean(&details["tokens"]);
    assert!(
        others.iter().all(|other| mean(&other["tokens"]) <= best + 1e-6),
        "{answer}"
    );
    assert!(
        others.iter().any(|other| mean(&other["tokens"]) < best),
        "{answer}"
    );
}

#[test]
fn a_prompt_is_told_and_cut_at_its_front() {
    let site = Site::new();
    let told = ask(
        "abcdef",
        &json!({"details": true, "decoder_input_details": true, "max_new_tokens": 2}),
    );
    let answer = post(&site, "/generate", &told);
    let prefill = answer["details"]["prefill"].as_array().expect("tokens").clone();
    let texts: Vec<&str> = prefill
        .iter()
        .map(|token| token["text"].as_str().expect("text"))
        .collect();
    assert_eq!(texts, ["a", "b", "c", "d", "e", "f"]);
    assert!(prefill[0]["logprob"].is_null() && prefill[1]["logprob"].is_number());
    let cut = ask("abcdef", &json!({"truncate": 3}));
    assert_eq!(
        post(&site, "/generate", &cut)["generated_text"],
        site.output("def", 9).2
    );
}

#[test]
fn grammars_are_enforced() {
    let (site, schema) = (Setup::new(json_tokenizer(&[])).start(), person());
    for grammar in [
        json!({"type": "json", "value": schema}),
        json!({"type": "json_schema", "value": {"name": "person", "schema": schema}}),
    ] {
        let ended = (0..20).find_map(|i| {
            let parameters = json!({"grammar": grammar, "max_new_tokens": 1500, "details": true});
            let answer = post(&site, "/generate", &ask(&format!("prompt {i}"), &parameters));
            let text = answer["generated_text"].as_str().expect("text").to_owned();
            (answer["details"]["finish_reason"] == "eos_token").then_some(text)
        });
        judge(&ended.expect("a prompt leads to an end"), &schema);
    }
    let regex = json!({"grammar": {"type": "regex", "value": "(yes|no)"}});
    let text = post(&site, "/generate", &ask("x", &regex))["generated_text"].take();
    assert!(["yes", "no"].contains(&text.as_str().expect("text")), "{text}");
}

#[test]
fn tokens_have_their_places() {
    let site = Site::new();
    let answer = post(&site, "/tokenize", &json!({"inputs": "ab é"}));
    let tokens = answer.as_array().expect("tokens");
    let places = tokens
        .iter()
        .map(|token| (token["start"].as_u64(), token["stop"].as_u64()));
    let place = |start, stop| (Some(start), Some(stop));
    // The two bytes of the last character are tokens of their own.
    let expected = [place(0, 1), place(1, 2), place(2, 3), place(3, 4), place(4, 4)];
    assert_eq!(places.collect::<Vec<_>>(), expected);
    let ours = post(&site, "/tokenize", &json!({"prompt": "ab é"}));
    let ids: Vec<&Json> = tokens.iter().map(|token| &token["id"]).collect();
    assert_eq!(
        ids,
        ours["tokens"].as_array().expect("ids").iter().collect::<Vec<_>>()
    );
    let both = site.post("/tokenize", &json!({"inputs": "a", "prompt": "a"}));
    assert_eq!(both.status, 400, "{}", both.body);
    let answer = post(&site, "/chat_tokenize", &chat("hello", &json!({})));
    assert_eq!(answer["templated_text"], rendered("hello"));
    let n_tokens = site.request(&rendered("hello"), 1).prompt.len();
    assert_eq!(
        answer["tokenize_response"].as_array().map(Vec::len),
        Some(n_tokens)
    );
}

#[test]
fn the_server_tells_its_limits_and_its_errors_by_kind() {
    let site = Site::new();
    let info = site.get("/info").json();
    assert_eq!(
        (&info["model_id"], &info["max_total_tokens"]),
        (&json!("toy"), &json!(200_000))
    );
    let cases = [
        ("/", ask("x", &json!({"watermark": true})), "parameters.watermark"),
        (
            "/generate",
            ask("x", &json!({"adapter_id": "y"})),
            "parameters.adapter_id",
        ),
        (
            "/generate_stream",
            ask("x", &json!({"best_of": 2})),
            "parameters.best_of",
        ),
        ("/generate", json!({"inputs": "x", "text": "y"}), "text"),
        ("/generate", json!({"inputs": 5}), "inputs"),
        ("/", json!({}), "inputs"),
        (
            "/generate",
            ask("x", &json!({"max_new_tokens": 1_000_000})),
            "maximum context length",
        ),
    ];
    for (path, body, named) in cases {
        let answer = site.post(path, &body);
        assert_eq!(answer.status, 422, "{path}: {}", answer.body);
        let error = answer.json();
        assert_eq!(error["error_type"], "validation");
        assert!(
            error["error"].as_str().is_some_and(|text| text.contains(named)),
            "{error}"
        );
        assert_eq!(error.as_object().map(serde_json::Map::len), Some(2));
    }
    // What is none of TGI's has the shape that it had.
    let answer = site.post("/generate", &json!({"text": 5}));
    assert_eq!(
        (answer.status, &answer.json()["error"]["param"]),
        (400, &json!("text"))
    );
    let page = Answer::read(site.send("GET", "/", "", ""));
    assert!(page.head.contains("text/html"), "the page is where it was");
    let closed = Site::with(&["key"], |_| {});
    assert_eq!(closed.post("/", &ask("x", &json!({}))).status, 401);
    assert_eq!(closed.get("/").status, 200);
}
