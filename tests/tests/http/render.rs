//! Prompts that are rendered and not run.

use serde_json::{Value as Json, json};

use crate::site::{Site, chat, rendered};

const CHAT: &str = "/v1/chat/completions/render";
const TEXTS: &str = "/v1/completions/render";

/// Everything about an answer but its id and its seed, which differ from call to call.
fn known(mut rendered: Json, prefix: &str) -> Json {
    let members = rendered.as_object_mut().expect("an object");
    let id = members.shift_remove("request_id").expect("an id");
    assert!(id.as_str().is_some_and(|id| id.starts_with(prefix)), "{id}");
    rendered
}

#[test]
fn a_chat_is_rendered_as_its_completion_would_read_it() {
    let site = Site::new();
    let more = json!({
        "max_tokens": 9, "temperature": 0.7, "top_p": 0.9, "seed": -3, "stop": "x", "stop_token_ids": [4],
        "logit_bias": {"7": 0.1}, "stream": true, "stream_options": {"include_usage": true}, "priority": 2,
        "logprobs": true, "top_logprobs": 2,
    });
    let mut body = chat("hello there", &more);
    let asked = site.post(CHAT, &body);
    assert_eq!(asked.status, 200, "{}", asked.body);
    let prompt = rendered("hello there");
    let expected = json!({
        "prompt": prompt, "token_ids": site.request(&prompt, 1).prompt, "model": "toy",
        "sampling_params": {
            "n": 1, "temperature": 0.7, "top_p": 0.9, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
            "presence_penalty": 0.0, "frequency_penalty": 0.0, "seed": -3, "max_tokens": 9, "min_tokens": 0,
            "stop": ["x"], "stop_token_ids": [4], "ignore_eos": false, "logit_bias": {"7": 0.1},
            "logprobs": 2, "prompt_logprobs": null,
        },
        "stream": true, "stream_options": {"include_usage": true, "continuous_usage_stats": false}, "priority": 2,
    });
    assert_eq!(known(asked.json(), "chatcmpl-"), expected);
    site.wait_until_quiet();
    assert_eq!(
        site.engine.metrics().requests_accepted.value(),
        0,
        "nothing was run"
    );
    // The prompt is that of the completion.
    body["stream"] = json!(false);
    body.as_object_mut()
        .expect("fields")
        .shift_remove("stream_options");
    let usage = site.post("/v1/chat/completions", &body).json()["usage"].clone();
    let n_tokens = expected["token_ids"].as_array().map(Vec::len);
    assert_eq!(usage["prompt_tokens"], json!(n_tokens));
}

#[test]
fn what_a_chat_does_not_say_is_filled_in() {
    let site = Site::new();
    let messages = json!([{"role": "user", "content": "hi"}]);
    let answer = site.post(CHAT, &json!({"messages": messages})).json();
    let n_prompt = answer["token_ids"].as_array().expect("tokens").len();
    let params = &answer["sampling_params"];
    assert_eq!(params["max_tokens"], site.engine.context() - n_prompt);
    assert_eq!((&params["temperature"], &params["n"]), (&json!(1.0), &json!(1)));
    assert!(params["seed"].is_i64());
    assert_eq!(
        (&answer["stream"], &answer["stream_options"]),
        (&json!(false), &Json::Null)
    );
    // Where the answer begins is the client's choice, as in a completion.
    let closed = json!({"messages": messages, "add_generation_prompt": false});
    let prompt = site.post(CHAT, &closed).json()["prompt"].clone();
    assert_eq!(prompt, "<|im_start|>user\nhi<|im_end|>\n");
}

#[test]
fn texts_are_rendered_one_by_one() {
    let site = Site::new();
    let body = json!({"prompt": ["once upon a time", [0, 5, 6]], "max_tokens": 4, "min_tokens": 1});
    let answer = site.post(TEXTS, &body).json();
    let list = answer.as_array().expect("a list").clone();
    let tokens: Vec<Json> = list.iter().map(|one| one["token_ids"].clone()).collect();
    let text = site.request("once upon a time", 1).prompt;
    assert_eq!(tokens, [json!(text), json!([0, 5, 6])]);
    assert_eq!(list[0]["prompt"], "once upon a time");
    for one in list {
        assert_eq!(one["sampling_params"]["max_tokens"], 4);
        assert_eq!(known(one, "cmpl-")["sampling_params"]["min_tokens"], 1);
    }
    let one = site.post(TEXTS, &json!({"prompt": "a", "max_tokens": 1})).json();
    assert_eq!(
        one.as_array().map(Vec::len),
        Some(1),
        "a list, whatever was asked"
    );
}

#[test]
fn what_a_completion_would_be_refused_for_is_refused() {
    let site = Site::new();
    for (path, body, status, param) in [
        (CHAT, json!({}), 400, json!("messages")),
        (
            CHAT,
            chat("a", &json!({"temperature": -1})),
            400,
            json!("temperature"),
        ),
        (CHAT, chat("a", &json!({"model": "other"})), 404, json!("model")),
        (
            CHAT,
            chat("a", &json!({"logit_bias": {"99": 1}})),
            400,
            json!("logit_bias"),
        ),
        (TEXTS, json!({"prompt": []}), 400, json!("prompt")),
        (TEXTS, json!({"prompt": ""}), 400, json!("prompt")),
        (TEXTS, json!({"prompt": [99]}), 400, json!("prompt")),
    ] {
        let completion = path.strip_suffix("/render").expect("its name");
        for path in [path, completion] {
            let answer = site.post(path, &body);
            assert_eq!(answer.status, status, "{path} {body}: {}", answer.body);
            assert_eq!(answer.json()["error"]["param"], param, "{path} {body}");
        }
    }
    for path in [TEXTS, "/v1/completions"] {
        let answer = site.post(path, &json!({"prompt": "a", "max_tokens": 200_000}));
        assert_eq!(answer.status, 400);
        assert_eq!(
            answer.json()["error"]["code"],
            "context_length_exceeded",
            "{path}"
        );
    }
}
