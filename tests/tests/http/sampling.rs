//! What changes the sampling, and what is told about it.

use arbora_runtime::request::{LogprobsWanted, Request};
use serde_json::{Value as Json, json};

use crate::site::{Answer, Site, chat, rendered};

const PROMPT: &str = "once upon a time";

fn with(mut body: Json, more: &Json) -> Json {
    for (key, value) in more.as_object().expect("fields") {
        body[key] = value.clone();
    }
    body
}

fn completion(more: &Json) -> Json {
    with(
        json!({"prompt": PROMPT, "max_tokens": 12, "temperature": 0}),
        more,
    )
}

/// The chunks of a stream.
fn chunks(answer: &Answer) -> Vec<Json> {
    let events = answer.body.split_terminator("\n\n");
    let data = events.map(|event| event.strip_prefix("data: ").expect("data"));
    let data = data.filter(|data| *data != "[DONE]");
    data.map(|data| serde_json::from_str(data).expect("JSON"))
        .collect()
}

/// A field and what it means.
type Case = (Json, fn(&mut Request));

#[test]
fn penalties_bias_and_bounds_reach_the_sampler() {
    let site = Site::new();
    let cases: [Case; 7] = [
        (json!({"repetition_penalty": 1.5}), |r| {
            r.sampling.repetition_penalty = 1.5;
        }),
        (json!({"presence_penalty": 0.5}), |r| {
            r.sampling.presence_penalty = 0.5;
        }),
        (json!({"frequency_penalty": -0.5}), |r| {
            r.sampling.frequency_penalty = -0.5;
        }),
        (json!({"logit_bias": {"7": -100}}), |r| {
            r.logit_bias = vec![(7, -100.0)];
        }),
        (json!({"min_tokens": 12}), |r| r.stop.min_tokens = 12),
        (json!({"min_tokens": 3, "stop": ["e"]}), |r| {
            r.stop.min_tokens = 3;
            r.stop.strings = vec!["e".to_owned()];
        }),
        (
            json!({"stop_token_ids": [9, 10, 11, 12], "ignore_eos": true}),
            |r| {
                r.stop.token_ids = vec![9, 10, 11, 12];
                r.stop.ignore_eos = true;
            },
        ),
    ];
    let plain = site.output(PROMPT, 12).2;
    let mut n_different = 0;
    for (fields, change) in cases {
        let mut request = site.request(PROMPT, 12);
        change(&mut request);
        let expected = site.expected(&request);
        let answer = site.post("/v1/completions", &completion(&fields)).json();
        let text = answer["choices"][0]["text"].as_str().expect("a text");
        let mut whole = site.text_of(&expected.tokens);
        if let Some(stop) = request.stop.strings.first() {
            // The text is cut before the stop string, but not within what min_tokens exempts.
            assert!(
                whole.starts_with(text) && !text[3..].contains(stop.as_str()),
                "{fields}: {text}"
            );
            whole.truncate(text.len());
        }
        let is_stop = |token: &u32| request.stop.token_ids.contains(token);
        if expected.tokens.last().is_some_and(is_stop) {
            whole = site.text_of(&expected.tokens[..expected.tokens.len() - 1]);
        }
        assert_eq!(text, whole, "{fields}");
        assert_eq!(
            answer["usage"]["completion_tokens"],
            expected.tokens.len(),
            "{fields}"
        );
        n_different += usize::from(text != plain);
    }
    assert!(n_different > 4, "the fields change outputs");
}

#[test]
fn log_probabilities_of_a_chat_are_the_models_and_the_same_streamed() {
    let site = Site::new();
    let fields = json!({"max_tokens": 9, "logprobs": true, "top_logprobs": 2, "ignore_eos": true});
    let whole = site
        .post("/v1/chat/completions", &chat("hello there", &fields))
        .json();
    let content = whole["choices"][0]["logprobs"]["content"]
        .as_array()
        .expect("a list")
        .clone();
    let mut request = site.request(&rendered("hello there"), 9);
    request.stop.ignore_eos = true;
    request.logprobs.output = Some(2);
    let expected = site.expected(&request);
    assert_eq!(content.len(), expected.logprobs.len());
    for (told, row) in content.iter().zip(&expected.logprobs) {
        let bytes = site.tokenizer.token_bytes(row.token.token);
        assert_eq!(told["bytes"], json!(bytes));
        assert_eq!(told["logprob"], json!(row.token.logprob));
        assert_eq!(told["top_logprobs"].as_array().map(Vec::len), Some(2));
        assert_eq!(told["top_logprobs"][1]["logprob"], json!(row.top[1].logprob));
    }
    let streamed = with(chat("hello there", &fields), &json!({"stream": true}));
    let answer = site.post("/v1/chat/completions", &streamed);
    let parts = chunks(&answer);
    let parts = parts
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array());
    assert_eq!(parts.flatten().cloned().collect::<Vec<_>>(), content);
    let plain = site.post(
        "/v1/chat/completions",
        &chat("hello there", &json!({"max_tokens": 3})),
    );
    assert_eq!(plain.json()["choices"][0]["logprobs"], Json::Null);
}

#[test]
fn a_prompt_is_scored_the_same_cold_cached_and_streamed() {
    let site = Site::new();
    let mut request = site.request(PROMPT, 0);
    request.logprobs = LogprobsWanted {
        output: Some(1),
        prompt: Some(1),
        ..LogprobsWanted::default()
    };
    let expected = site.expected(&request);
    let ask = completion(&json!({"max_tokens": 0, "echo": true, "logprobs": 1}));
    let cold = site.post("/v1/completions", &ask).json();
    let told = &cold["choices"][0]["logprobs"];
    assert_eq!(cold["choices"][0]["text"], PROMPT);
    assert_eq!(cold["choices"][0]["finish_reason"], "length");
    assert_eq!(cold["usage"]["completion_tokens"], 0);
    let numbers: Vec<Json> = expected
        .scores
        .iter()
        .map(|row| json!(row.token.logprob))
        .collect();
    let logprobs = told["token_logprobs"].as_array().expect("a list");
    assert_eq!(logprobs[0], Json::Null, "nothing is known of the first");
    assert_eq!(logprobs[1..], numbers);
    let n = request.prompt.len();
    for list in ["tokens", "top_logprobs", "text_offset"] {
        assert_eq!(told[list].as_array().map(Vec::len), Some(n), "{list}");
    }
    let warm = site.post("/v1/completions", &ask).json();
    assert_eq!(warm["choices"], cold["choices"]);
    assert_eq!(
        warm["usage"]["prompt_tokens_details"]["cached_tokens"], 0,
        "all rows are wanted"
    );
    let streamed = site.post("/v1/completions", &with(ask, &json!({"stream": true})));
    let first = &chunks(&streamed)[0]["choices"][0];
    assert_eq!(
        (&first["text"], &first["logprobs"]),
        (&cold["choices"][0]["text"], told)
    );
    site.wait_until_quiet();
}

#[test]
fn a_stop_token_is_listed_after_the_tokens_of_its_text() {
    let site = Site::new();
    let tokens = site.expected(&site.request(PROMPT, 1)).tokens;
    let stop = site.text_of(&tokens);
    let more = json!({"max_tokens": 1, "echo": true, "logprobs": 1, "stop_token_ids": tokens});
    let ask = completion(&more);
    let answer = site.post("/v1/completions", &ask).json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(choice["text"], PROMPT);
    let n_prompt = answer["usage"]["prompt_tokens"].as_u64().expect("a count") as usize;
    let told = &choice["logprobs"];
    for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(told[list].as_array().map(Vec::len), Some(n_prompt + 1), "{list}");
    }
    assert_eq!(told["tokens"][n_prompt], stop.as_str());
    let mut streamed = ask;
    streamed["stream"] = true.into();
    let body = site.post("/v1/completions", &streamed).body;
    let listed = format!("\"tokens\":[{}]", Json::from(stop));
    assert!(body.contains(&listed), "{body}");
}

#[test]
fn prompt_logprobs_come_in_vllms_shape_and_leave_the_output_as_it_is() {
    let site = Site::new();
    let plain = site.post("/v1/completions", &completion(&json!({}))).json();
    assert!(plain["choices"][0].get("prompt_logprobs").is_none());
    let asked = site
        .post("/v1/completions", &completion(&json!({"prompt_logprobs": 2})))
        .json();
    assert_eq!(asked["choices"][0]["text"], plain["choices"][0]["text"]);
    let told = asked["choices"][0]["prompt_logprobs"].as_array().expect("a list");
    let prompt = site.request(PROMPT, 1).prompt;
    assert_eq!(told.len(), prompt.len());
    assert_eq!(told[0], Json::Null);
    for (entry, token) in told[1..].iter().zip(&prompt[1..]) {
        let of_token = &entry[token.to_string()];
        assert!(
            of_token["logprob"].is_number() && of_token["rank"].is_number(),
            "{entry}"
        );
    }
    let fields = json!({"max_tokens": 2, "prompt_logprobs": 0});
    let chat = site.post("/v1/chat/completions", &chat("hello", &fields)).json();
    assert!(
        chat["prompt_logprobs"]
            .as_array()
            .is_some_and(|list| list.len() > 5)
    );
}

#[test]
fn a_deadline_of_the_client_leaves_what_was_made() {
    let site = Site::new();
    let body = completion(&json!({"max_tokens": 150_000, "ignore_eos": true})).to_string();
    let send = |header: &str| Answer::read(site.send("POST", "/v1/completions", header, &body));
    let late = send("x-arbora-timeout-ms: 5\r\n").json();
    assert_eq!(late["choices"][0]["finish_reason"], "length");
    let n = late["usage"]["completion_tokens"].as_u64().expect("a count");
    assert!(n < 150_000, "{n} tokens in time");
    let bad = send("x-arbora-timeout-ms: never\r\n");
    assert_eq!(bad.status, 400);
    assert_eq!(bad.json()["error"]["param"], "x-arbora-timeout-ms");
    site.wait_until_quiet();
}

#[test]
fn what_no_token_can_be_is_refused_with_the_vocabularys_size() {
    let site = Site::new();
    let answer = site.post("/v1/completions", &completion(&json!({"logit_bias": {"48": 1}})));
    assert_eq!(answer.status, 400);
    let error = &answer.json()["error"];
    assert_eq!(error["param"], "logit_bias");
    assert!(error["message"].as_str().is_some_and(|text| text.contains("48")));
}
