//! OpenAI's responses: whole and streamed, kept and gone on from, made while nobody waits, per API key.

use arbora_runtime::tokenizer::SpecialTokens;
use serde_json::{Value as Json, json};

use crate::constrained::{judge, person};
use crate::site::{Answer, Setup, Site, json_tokenizer, rendered, wait_until};

const RESPONSES: &str = "/v1/responses";
/// Opens thoughts.
const THINKS: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
    <|im_start|>assistant\n<think>\n";

/// A greedy request for 9 tokens, with `more`.
fn ask(input: impl Into<Json>, more: &Json) -> Json {
    let mut body = json!({"input": input.into(), "max_output_tokens": 9, "temperature": 0});
    for (name, value) in more.as_object().expect("fields") {
        body[name] = value.clone();
    }
    body
}

/// The response of a stream, of which every event is looked at.
fn joined(body: &str) -> Json {
    let mut items: Vec<Json> = Vec::new();
    let mut text = String::new();
    let mut last = Json::Null;
    for (n, event) in body.split_terminator("\n\n").enumerate() {
        let (name, data) = event.split_once('\n').expect("two lines");
        let data: Json = serde_json::from_str(data.strip_prefix("data: ").expect("data")).expect("JSON");
        let kind = name.strip_prefix("event: response.").expect("a name");
        assert_eq!(data["type"], format!("response.{kind}"));
        assert_eq!(data["sequence_number"], n, "{body}");
        assert!(last.is_null(), "nothing follows the end: {body}");
        let index = items.len().saturating_sub(1);
        match kind {
            "created" | "in_progress" => assert_eq!(data["response"]["status"], "in_progress"),
            "output_item.added" => {
                assert_eq!(data["output_index"], items.len());
                items.push(data["item"].clone());
                text.clear();
            }
            "output_text.delta" | "reasoning_text.delta" | "function_call_arguments.delta" => {
                assert_eq!(
                    (&data["output_index"], &data["item_id"]),
                    (&json!(index), &items[index]["id"])
                );
                text.push_str(data["delta"].as_str().expect("text"));
            }
            "output_text.done" | "reasoning_text.done" => assert_eq!(data["text"], text),
            "function_call_arguments.done" => assert_eq!(data["arguments"], text),
            "content_part.added" => assert_eq!(data["part"]["text"], ""),
            "content_part.done" => assert_eq!(data["part"]["text"], text),
            "output_item.done" => items[index] = data["item"].clone(),
            "completed" | "incomplete" => last = data["response"].clone(),
            other => panic!("{other} in {body}"),
        }
    }
    assert_eq!(last["output"], Json::Array(items), "{body}");
    last
}

/// Without what is never the same.
fn without_ids(mut response: Json) -> Json {
    assert!(
        response["id"].as_str().is_some_and(|id| id.starts_with("resp_")),
        "{response}"
    );
    for name in ["id", "created_at", "completed_at", "usage"] {
        response[name] = Json::Null;
    }
    for item in response["output"].as_array_mut().expect("items") {
        item["id"] = Json::Null;
        if item["type"] == "function_call" {
            item["call_id"] = Json::Null;
        }
    }
    response
}

/// The response, which its stream must be too.
fn both(site: &Site, body: &Json) -> Json {
    let answer = site.post(RESPONSES, body);
    assert_eq!(answer.status, 200, "{body}: {}", answer.body);
    let whole = answer.json();
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let answer = site.post(RESPONSES, &streamed);
    assert!(
        answer.head.contains("content-type: text/event-stream"),
        "{}",
        answer.head
    );
    let streamed = joined(&answer.body);
    for name in ["input_tokens", "output_tokens", "total_tokens"] {
        assert_eq!(streamed["usage"][name], whole["usage"][name]);
    }
    assert_eq!(without_ids(streamed), without_ids(whole.clone()), "{body}");
    whole
}

fn text(response: &Json) -> &str {
    let items = response["output"].as_array().expect("items");
    let message = items.iter().find(|item| item["type"] == "message");
    message
        .and_then(|item| item["content"][0]["text"].as_str())
        .unwrap_or_default()
}

fn id(response: &Json) -> &str {
    response["id"].as_str().expect("an id")
}

fn count(response: &Json, pointer: &str) -> u64 {
    response["usage"]
        .pointer(pointer)
        .and_then(Json::as_u64)
        .expect("a count")
}

#[test]
fn a_response_says_what_the_model_says_and_its_stream_the_same() {
    let site = Site::new();
    let (n_prompt, n_output, expected) = site.output(&rendered("hello there"), 9);
    let response = both(&site, &ask("hello there", &json!({"metadata": {"a": "b"}})));
    assert_eq!(text(&response), expected);
    assert_eq!(count(&response, "/input_tokens"), n_prompt as u64);
    assert_eq!(count(&response, "/output_tokens"), n_output as u64);
    let is_cut = n_output == 9;
    assert_eq!(
        response["status"],
        if is_cut { "incomplete" } else { "completed" }
    );
    assert_eq!(response["incomplete_details"].is_object(), is_cut);
    assert_eq!(response["metadata"], json!({"a": "b"}));
    let mut n_completed = 0;
    for i in 0..10 {
        let response = both(
            &site,
            &ask(format!("prompt {i}"), &json!({"max_output_tokens": 400})),
        );
        n_completed += usize::from(response["status"] == "completed");
    }
    assert!(n_completed > 3, "{n_completed} came to their end");
}

#[test]
fn what_follows_a_response_finds_all_of_it_in_the_cache() {
    let site = Site::new();
    let mut n_whole = 0;
    let mut previous = Json::Null;
    for start in 0..8 {
        previous = both(&site, &ask(format!("hello {start}"), &json!({})));
        let mut cached = 0;
        for turn in ["and then", "what else", "is that all"] {
            let more = json!({"previous_response_id": id(&previous)});
            let next = site.post(RESPONSES, &ask(turn, &more));
            assert_eq!(next.status, 200, "{}", next.body);
            let next = next.json();
            let found = count(&next, "/input_tokens_details/cached_tokens");
            assert!(
                found > cached && found >= count(&previous, "/input_tokens"),
                "{found}"
            );
            assert_eq!(next["previous_response_id"], previous["id"]);
            // An output's last token was never computed; control tokens amid an output are not in its text.
            let said = site.tokenizer.encode(text(&previous), SpecialTokens::AsText);
            if said.expect("encodes").len() as u64 == count(&previous, "/output_tokens") {
                assert!(found + 1 >= count(&previous, "/total_tokens"), "{found}");
                n_whole += 1;
            }
            (cached, previous) = (found, next);
        }
    }
    assert!(n_whole > 6, "{n_whole} outputs were found whole");
    // The same conversation, sent whole, is the same prompt.
    let items = site
        .get(&format!("{RESPONSES}/{}/input_items?order=asc", id(&previous)))
        .json();
    let items = items["data"].as_array().expect("items").clone();
    assert_eq!(items.len(), 7, "four of the client and three of the model");
    let counted = site
        .post("/v1/responses/input_tokens", &ask(items, &json!({})))
        .json();
    assert_eq!(counted["input_tokens"], count(&previous, "/input_tokens"));
}

#[test]
fn a_response_is_kept_listed_and_forgotten_for_its_key_alone() {
    let site = Site::with(&["one", "two"], |_| {});
    let send = |key: &str, method: &str, path: &str, body: &str| {
        let key = format!("authorization: Bearer {key}\r\n");
        Answer::read(site.send(method, path, &key, body))
    };
    let made = send("one", "POST", RESPONSES, &ask("hello", &json!({})).to_string()).json();
    let path = format!("{RESPONSES}/{}", id(&made));
    assert_eq!(send("one", "GET", &path, "").json(), made);
    let items = send("one", "GET", &format!("{path}/input_items"), "").json();
    assert_eq!(items["data"][0]["content"][0]["text"], "hello");
    let item = made["output"][0]["id"].as_str().expect("an id");
    let refer = ask(
        json!([{"type": "item_reference", "id": item}, {"role": "user", "content": "b"}]),
        &json!({}),
    );
    let follow = ask("b", &json!({"previous_response_id": id(&made)}));
    assert_eq!(send("one", "POST", RESPONSES, &refer.to_string()).status, 200);
    for (method, path, body) in [
        ("GET", path.clone(), String::new()),
        ("DELETE", path.clone(), String::new()),
        ("GET", format!("{path}/input_items"), String::new()),
        ("POST", format!("{path}/cancel"), String::new()),
        ("POST", RESPONSES.to_owned(), follow.to_string()),
        ("POST", RESPONSES.to_owned(), refer.to_string()),
    ] {
        let answer = send("two", method, &path, &body);
        assert_eq!(answer.status, 404, "{method} {path}: {}", answer.body);
    }
    let refused = send("one", "POST", &format!("{path}/cancel"), "");
    assert_eq!(refused.status, 400, "{}", refused.body);
    assert_eq!(send("one", "DELETE", &path, "").json()["deleted"], true);
    assert_eq!(send("one", "GET", &path, "").status, 404);
    let gone = send("one", "POST", RESPONSES, &follow.to_string());
    assert_eq!(
        (gone.status, &gone.json()["error"]["code"]),
        (404, &json!("previous_response_not_found"))
    );
    let unkept = send(
        "one",
        "POST",
        RESPONSES,
        &ask("x", &json!({"store": false})).to_string(),
    )
    .json();
    assert_eq!(
        send("one", "GET", &format!("{RESPONSES}/{}", id(&unkept)), "").status,
        404
    );
}

#[test]
fn what_nobody_waits_for_can_be_asked_for_and_stopped() {
    let site = Site::new();
    let look = |id: &str| site.get(&format!("{RESPONSES}/{id}")).json();
    let begun = site
        .post(RESPONSES, &ask("hello there", &json!({"background": true})))
        .json();
    assert_eq!(begun["status"], "in_progress");
    wait_until("the response is over", || {
        look(id(&begun))["status"] != "in_progress"
    });
    let (_, _, expected) = site.output(&rendered("hello there"), 9);
    assert_eq!(text(&look(id(&begun))), expected);

    let mut long = ask(
        "go on",
        &json!({"background": true, "max_output_tokens": 190_000}),
    );
    // No stop token is drawn where every token is forced.
    long["text"] = json!({"format": {"type": "json_schema", "schema": {"type": "object",
        "properties": {"a": {"type": "string", "minLength": 150_000}}, "required": ["a"]}}});
    let long = {
        let site = Setup::new(json_tokenizer(&[])).start();
        let begun = site.post(RESPONSES, &long);
        assert_eq!(begun.status, 200, "{}", begun.body);
        let begun = begun.json();
        let path = format!("{RESPONSES}/{}", id(&begun));
        assert_eq!(site.get(&path).json()["status"], "in_progress");
        let stopped = Answer::read(site.send("POST", &format!("{path}/cancel"), "", "")).json();
        assert_eq!(stopped["status"], "cancelled");
        assert_eq!(site.get(&path).json()["status"], "cancelled");
        site.wait_until_quiet();
        stopped
    };
    assert_eq!(long["output"], json!([]));
    let both = ask("x", &json!({"background": true, "stream": true}));
    assert_eq!(site.post(RESPONSES, &both).status, 400);
}

#[test]
fn calls_thoughts_and_formats_are_items() {
    let site = Setup::new(json_tokenizer(&[])).start();
    let schema = json!({"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"], "additionalProperties": false});
    let tool = json!({"type": "function", "name": "weather", "parameters": schema, "strict": true});
    let space = json!({"type": "namespace", "name": "maps", "description": "x", "tools": [tool]});
    let more = json!({"tools": [space], "tool_choice": "required", "parallel_tool_calls": false,
        "max_output_tokens": 400});
    let mut n_called = 0;
    for i in 0..6 {
        let response = both(&site, &ask(format!("prompt {i}"), &more));
        if response["status"] != "completed" {
            continue;
        }
        n_called += 1;
        let call = &response["output"][0];
        assert_eq!(
            (&call["name"], &call["namespace"]),
            (&json!("weather"), &json!("maps"))
        );
        judge(call["arguments"].as_str().expect("arguments"), &schema);
        let result =
            json!([{"type": "function_call_output", "call_id": call["call_id"], "output": "22 degrees"}]);
        let next = json!({"previous_response_id": id(&response), "tools": [space]});
        let next = site.post(RESPONSES, &ask(result, &next));
        assert_eq!(next.status, 200, "{}", next.body);
        let found = count(&next.json(), "/input_tokens_details/cached_tokens");
        assert!(found >= count(&response, "/input_tokens"), "{found}");
    }
    assert!(n_called > 3, "{n_called} calls");
    let format = json!({"text": {"format": {"type": "json_schema", "name": "person", "strict": true,
        "schema": person()}}, "max_output_tokens": 900});
    let mut n_judged = 0;
    for i in 0..8 {
        let response = both(&site, &ask(format!("prompt {i}"), &format));
        if response["status"] == "completed" {
            judge(text(&response), &person());
            n_judged += 1;
        }
    }
    assert!(n_judged > 4, "{n_judged} answers");
    let mut setup = Setup::new(json_tokenizer(&["<think>", "</think>"]));
    setup.template = THINKS;
    let site = setup.start();
    let mut n_thought = 0;
    for i in 0..8 {
        let response = both(
            &site,
            &ask(format!("prompt {i}"), &json!({"max_output_tokens": 300})),
        );
        let first = &response["output"][0];
        if first["type"] == "reasoning" {
            assert!(count(&response, "/output_tokens_details/reasoning_tokens") > 0);
            n_thought += 1;
        }
    }
    assert!(n_thought > 4, "{n_thought} responses with thoughts");
}

/// What Codex sends: its conversation whole, nothing kept, and flat tools.
#[test]
fn an_agents_follow_up_finds_its_first_turn_in_the_cache() {
    let site = Setup::new(json_tokenizer(&[])).start();
    let shell = json!({"type": "function", "name": "shell", "description": "Runs a shell command", "strict": false,
        "parameters": {"type": "object", "properties": {"command": {"type": "array", "items": {"enum": ["ls", "cat"]}}},
            "required": ["command"], "additionalProperties": false}});
    let said = |role: &str, text: &str| json!({"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]});
    let mut input = vec![
        said("developer", "The sandbox may be read."),
        said("user", "What is in this folder?"),
    ];
    let asked = |input: &[Json]| {
        json!({"model": "toy", "instructions": "You are a coding agent.", "input": input, "tools": [shell],
            "tool_choice": "auto", "parallel_tool_calls": false, "reasoning": {"effort": "medium", "summary": "auto"},
            "store": false, "stream": true, "include": ["reasoning.encrypted_content"], "temperature": 0,
            "prompt_cache_key": "0193e5c8", "text": {"verbosity": "medium"}, "max_output_tokens": 40})
    };
    let first = joined(&site.post(RESPONSES, &asked(&input)).body);
    let call = json!({"type": "function_call", "name": "shell", "call_id": "call_1",
        "arguments": "{\"command\": [\"ls\"]}"});
    let result = json!({"type": "function_call_output", "call_id": "call_1", "output": "README.md"});
    input.extend([call, result]);
    let second = joined(&site.post(RESPONSES, &asked(&input)).body);
    let found = count(&second, "/input_tokens_details/cached_tokens");
    assert!(
        found + 1 >= count(&first, "/input_tokens"),
        "{found} tokens were found"
    );
}

#[test]
fn a_failure_half_way_is_the_last_event_and_is_kept() {
    let site = Site::new();
    let body = ask(
        "go on",
        &json!({"stream": true, "max_output_tokens": 190_000, "top_k": 50, "temperature": 1}),
    );
    let mut failed = None;
    for _ in 0..20 {
        site.fuse.light(3);
        let answer = site.post(RESPONSES, &body).body;
        let last = answer.split_terminator("\n\n").last().expect("events").to_owned();
        if last.starts_with("event: response.failed\n") {
            failed = Some(last);
            break;
        }
    }
    let failed = failed.expect("a step fails before an output ends");
    let data = failed.split_once("data: ").expect("data").1;
    let data: Json = serde_json::from_str(data).expect("JSON");
    assert_eq!(data["response"]["error"]["code"], "internal_error");
    let kept = site.get(&format!("{RESPONSES}/{}", id(&data["response"])));
    assert_eq!(kept.json()["status"], "failed");
}
