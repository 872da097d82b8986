//! Puts a streamed chat together again, and finds out whether it says what the whole answer says.

use serde_json::{Map, Value as Json, json};

use crate::site::Site;

/// The answer to a chat, whole; a stream of the same must say the same.
pub(crate) fn both(site: &Site, body: &Json) -> Json {
    let answer = site.post("/v1/chat/completions", body);
    assert_eq!(answer.status, 200, "{body}: {}", answer.body);
    let mut whole = answer.json();
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    streamed["stream_options"] = json!({"include_usage": true});
    let answer = site.post("/v1/chat/completions", &streamed);
    assert_eq!(answer.status, 200, "{streamed}: {}", answer.body);
    let (choices, usage) = joined(&answer.body);
    let n_tokens = |usage: &Json| usage["completion_tokens"].as_u64().expect("a count");
    assert_eq!(n_tokens(&usage), n_tokens(&whole["usage"]));
    for choice in whole["choices"].as_array_mut().expect("choices") {
        take_ids(choice);
    }
    assert_eq!(Json::Array(choices), whole["choices"], "{body}");
    whole
}

/// Removes the ids of calls, which are never the same, after a look at them.
fn take_ids(choice: &mut Json) {
    let calls = choice["message"]
        .get_mut("tool_calls")
        .and_then(Json::as_array_mut);
    for call in calls.into_iter().flatten() {
        let id = call.as_object_mut().expect("a call").shift_remove("id");
        let id = id.as_ref().and_then(Json::as_str).expect("an id");
        assert!(id.starts_with("call_") && id.len() > 20, "{id}");
    }
}

/// Choices and usage of a stream, choices without the ids of calls. Checks the shape of every chunk.
fn joined(body: &str) -> (Vec<Json>, Json) {
    let events: Vec<&str> = body.split_terminator("\n\n").collect();
    let (done, events) = events.split_last().expect("events");
    assert_eq!(*done, "data: [DONE]", "{body}");
    let mut choices: Vec<Json> = Vec::new();
    let mut usage = Json::Null;
    for event in events.iter().filter(|event| !event.starts_with(':')) {
        let mut chunk: Json =
            serde_json::from_str(event.strip_prefix("data: ").expect("data")).expect("JSON");
        let given = chunk["choices"].as_array().expect("choices").clone();
        assert_eq!(given.is_empty(), chunk["usage"].is_object(), "{chunk}");
        if given.is_empty() {
            usage = chunk["usage"].take();
        }
        for piece in given {
            add(&mut choices, &piece);
        }
    }
    for choice in &mut choices {
        finish(choice);
    }
    choices.sort_by_key(|choice| choice["index"].as_u64());
    (choices, usage)
}

/// Adds a chunk's piece to the choice it belongs to.
fn add(choices: &mut Vec<Json>, piece: &Json) {
    let index = &piece["index"];
    let known = choices.iter().position(|choice| choice["index"] == *index);
    let delta = piece["delta"].as_object().expect("a delta");
    let at = known.unwrap_or_else(|| {
        assert_eq!(delta["role"], "assistant", "the first delta says who speaks");
        let message = json!({"role": "assistant", "content": "", "refusal": null, "tool_calls": []});
        choices.push(json!({"index": index, "message": message, "logprobs": null, "finish_reason": null}));
        choices.len() - 1
    });
    assert!(known.is_none() || !delta.contains_key("role"), "{piece}");
    let choice = &mut choices[at];
    assert!(choice["finish_reason"].is_null(), "nothing follows the reason");
    choice["finish_reason"] = piece["finish_reason"].clone();
    let message = choice["message"].as_object_mut().expect("a message");
    for name in ["content", "reasoning_content"] {
        if let Some(text) = delta.get(name).and_then(Json::as_str) {
            let so_far = message.entry(name).or_insert_with(|| "".into());
            *so_far = format!("{}{text}", so_far.as_str().expect("text")).into();
        }
    }
    let calls = message["tool_calls"].as_array_mut().expect("calls");
    for call in delta
        .get("tool_calls")
        .and_then(Json::as_array)
        .into_iter()
        .flatten()
    {
        add_call(calls, call.as_object().expect("a call"));
    }
}

fn add_call(calls: &mut Vec<Json>, part: &Map<String, Json>) {
    let index = part["index"].as_u64().expect("every part has the call's index") as usize;
    let function = &part["function"];
    if index == calls.len() {
        assert_eq!(part["type"], "function");
        assert!(
            part["id"].as_str().is_some_and(|id| id.starts_with("call_")),
            "{part:?}"
        );
        calls.push(json!({"type": "function", "function": {"name": function["name"], "arguments": ""}}));
    } else {
        assert_eq!(index + 1, calls.len(), "calls come one after another");
        assert!(!part.contains_key("id") && !part.contains_key("type"), "{part:?}");
        assert!(function.get("name").is_none(), "{part:?}");
    }
    let arguments = &mut calls[index]["function"]["arguments"];
    let more = function["arguments"].as_str().expect("arguments");
    *arguments = format!("{}{more}", arguments.as_str().expect("text")).into();
}

/// Gives a choice the shape of a whole answer's.
fn finish(choice: &mut Json) {
    let message = choice["message"].as_object_mut().expect("a message");
    let is_silent = message["content"] == "";
    if message["tool_calls"] == json!([]) {
        message.shift_remove("tool_calls");
    }
    let says_more = message.contains_key("tool_calls") || message.contains_key("reasoning_content");
    if is_silent && says_more {
        message["content"] = Json::Null;
    }
}
