//! Anthropic's messages: what they say is what chat completions say of the same prompt, whole and streamed,
//! and errors have their shape wherever they come from.

use serde_json::{Value as Json, json};

use crate::constrained::{judge, person};
use crate::site::{Answer, Setup, Site, json_tokenizer, rendered};

const MESSAGES: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";
/// Opens thoughts unless it is told not to.
const THINKS: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
    <|im_start|>assistant\n{% if enable_thinking %}<think>\n{% else %}<think>\n</think>\n{% endif %}";

/// A greedy request for 9 tokens, with `more`.
fn ask(content: &str, more: &Json) -> Json {
    let mut body =
        json!({"messages": [{"role": "user", "content": content}], "max_tokens": 9, "temperature": 0});
    for (name, value) in more.as_object().expect("fields") {
        body[name] = value.clone();
    }
    body
}

/// Name and data of the events of a stream.
fn events(body: &str) -> Vec<(String, Json)> {
    let events = body.split_terminator("\n\n").map(|event| {
        let (name, data) = event.split_once('\n').expect("two lines");
        let name = name.strip_prefix("event: ").expect("a name");
        let data = data.strip_prefix("data: ").expect("data");
        (name.to_owned(), serde_json::from_str(data).expect("JSON"))
    });
    events.collect()
}

/// Content, reason and usage of a stream, whose shape is checked.
fn joined(body: &str) -> Json {
    let events = events(body);
    assert!(events.iter().all(|(name, data)| data["type"] == *name), "{body}");
    let mut message = events[0].1["message"].clone();
    assert_eq!(
        (&events[0].0[..], &message["content"]),
        ("message_start", &json!([]))
    );
    assert_eq!(events.last().expect("an end").0, "message_stop");
    let mut blocks: Vec<Json> = Vec::new();
    let (mut text, mut is_open) = (String::new(), false);
    for (name, data) in &events[1..events.len() - 1] {
        let last = blocks.len().saturating_sub(1);
        match name.as_str() {
            "content_block_start" => {
                assert!(!is_open && data["index"] == blocks.len(), "{body}");
                blocks.push(data["content_block"].clone());
                (text, is_open) = (String::new(), true);
            }
            "content_block_delta" => {
                assert!(is_open && data["index"] == last, "{body}");
                let delta = &data["delta"];
                for field in ["text", "thinking", "partial_json"] {
                    text.push_str(delta[field].as_str().unwrap_or_default());
                }
                if delta["type"] == "signature_delta" {
                    blocks[last]["signature"] = delta["signature"].clone();
                }
            }
            "content_block_stop" => {
                assert!(is_open && data["index"] == last, "{body}");
                is_open = false;
                match blocks[last]["type"].as_str().expect("a kind") {
                    "tool_use" => blocks[last]["input"] = serde_json::from_str(&text).expect("JSON"),
                    kind => {
                        let kind = kind.to_owned();
                        blocks[last][kind] = text.clone().into();
                    }
                }
            }
            "message_delta" => {
                assert!(!is_open, "{body}");
                message["stop_reason"] = data["delta"]["stop_reason"].clone();
                message["stop_sequence"] = data["delta"]["stop_sequence"].clone();
                message["usage"] = data["usage"].clone();
            }
            other => panic!("{other} in {body}"),
        }
    }
    message["content"] = blocks.into();
    message
}

/// Takes what is never the same out of an answer.
fn without_ids(mut message: Json) -> Json {
    assert!(
        message["id"].as_str().is_some_and(|id| id.starts_with("msg_")),
        "{message}"
    );
    message["id"] = Json::Null;
    for block in message["content"].as_array_mut().expect("blocks") {
        if block["type"] == "tool_use" {
            let id = block["id"].take();
            assert!(id.as_str().is_some_and(|id| id.starts_with("toolu_")), "{id}");
        }
    }
    message
}

/// The answer, which its stream must say too but for what was found in the cache.
fn both(site: &Site, body: &Json) -> Json {
    let answer = site.post(MESSAGES, body);
    assert_eq!(answer.status, 200, "{body}: {}", answer.body);
    let whole = answer.json();
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let answer = site.post(MESSAGES, &streamed);
    assert!(
        answer.head.contains("content-type: text/event-stream"),
        "{}",
        answer.head
    );
    let mut streamed = joined(&answer.body);
    let sum = |usage: &Json| {
        let names = [
            "input_tokens",
            "cache_creation_input_tokens",
            "cache_read_input_tokens",
        ];
        names
            .map(|name| usage[name].as_u64().expect("a count"))
            .iter()
            .sum::<u64>()
    };
    assert_eq!(sum(&streamed["usage"]), sum(&whole["usage"]));
    assert_eq!(
        streamed["usage"]["output_tokens"],
        whole["usage"]["output_tokens"]
    );
    streamed["usage"] = whole["usage"].clone();
    assert_eq!(without_ids(streamed), without_ids(whole.clone()), "{body}");
    whole
}

#[test]
fn an_answer_is_these_bytes_and_its_stream_says_the_same() {
    let site = Site::new();
    let (n_prompt, n_output, text) = site.output(&rendered("hello there"), 9);
    let answer = site.post(MESSAGES, &ask("hello there", &json!({})));
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(answer.head.contains("request-id: "), "{}", answer.head);
    let reason = if n_output == 9 { "max_tokens" } else { "end_turn" };
    let content = Json::String(text);
    assert_eq!(
        answer.blotted(),
        format!(
            r#"{{"id":"_","type":"message","role":"assistant","model":"toy","content":[{{"type":"text","text":{content}}}],"stop_reason":"{reason}","stop_sequence":null,"usage":{{"input_tokens":{n_prompt},"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":{n_output}}}}}"#
        )
    );
    for i in 0..10 {
        both(&site, &ask(&format!("prompt {i}"), &json!({"max_tokens": 60})));
    }
}

#[test]
fn a_conversation_reads_what_its_turns_computed() {
    let site = Site::new();
    let marked = json!([{"type": "text", "text": "be kind to everybody who asks",
        "cache_control": {"type": "ephemeral"}}]);
    let first = both(&site, &ask("hello there", &json!({"system": marked})));
    let (created, read) = (
        &first["usage"]["cache_creation_input_tokens"],
        &first["usage"]["cache_read_input_tokens"],
    );
    assert_eq!(
        (first["usage"]["input_tokens"].as_u64(), read.as_u64()),
        (Some(0), Some(0))
    );
    let n_first = created.as_u64().expect("a count");
    let turns = json!([
        {"role": "user", "content": "hello there"},
        {"role": "assistant", "content": first["content"]},
        {"role": "user", "content": [{"type": "text", "text": "and then"}]}
    ]);
    let more = json!({"system": marked, "messages": turns});
    let second = site.post(MESSAGES, &ask("", &more)).json();
    let n_read = second["usage"]["cache_read_input_tokens"]
        .as_u64()
        .expect("a count");
    assert!(
        n_read >= n_first,
        "{n_read} of at least {n_first} tokens were found"
    );
    let counted = site
        .post(COUNT, &json!({"system": marked, "messages": turns}))
        .json();
    let n_new = second["usage"]["cache_creation_input_tokens"]
        .as_u64()
        .expect("a count");
    assert_eq!(counted, json!({"input_tokens": n_read + n_new}));
}

#[test]
fn a_line_that_differs_from_request_to_request_does_not_break_the_prefix() {
    let site = Site::new();
    let asked = |cch: &str| {
        let line = format!("x-anthropic-billing-header: cc_version=2.1.0; cch={cch};");
        let system = json!([{"type": "text", "text": line}, {"type": "text", "text": "be kind"}]);
        site.post(MESSAGES, &ask("hello there", &json!({"system": system})))
            .json()
    };
    let (first, second) = (asked("1f3a"), asked("9b07"));
    let n_prompt = first["usage"]["input_tokens"].as_u64().expect("a count");
    assert_eq!(second["usage"]["cache_read_input_tokens"], n_prompt - 1);
    assert_eq!(first["content"], second["content"]);
}

#[test]
fn outputs_end_continue_and_look_as_asked() {
    let site = Setup::new(json_tokenizer(&[])).start();
    let text = |answer: &Json| answer["content"][0]["text"].as_str().expect("text").to_owned();
    let stop_of = |said: &str| -> String { said.chars().skip(3).take(2).collect() };
    let ends_inside = |said: &str| {
        said.find(&stop_of(said))
            .is_some_and(|at| at > 0 && said.len() > 8)
    };
    let greetings = (0..20).map(|i| format!("hello {i}"));
    let outputs = greetings.map(|greeting| {
        let whole = both(&site, &ask(&greeting, &json!({"max_tokens": 40})));
        (
            whole["content"][0]["text"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            greeting,
        )
    });
    let (said, greeting) = outputs
        .into_iter()
        .find(|(said, _)| ends_inside(said))
        .expect("there is one");
    let stop = stop_of(&said);
    let stopped = both(
        &site,
        &ask(
            &greeting,
            &json!({"max_tokens": 40, "stop_sequences": ["\u{1}", stop]}),
        ),
    );
    assert_eq!(
        (&stopped["stop_reason"], &stopped["stop_sequence"]),
        (&json!("stop_sequence"), &json!(stop))
    );
    assert!(said.starts_with(&text(&stopped)));
    // What the model said is put into its mouth: it goes on from there.
    let begun: String = said.chars().take(5).collect();
    let messages = json!([{"role": "user", "content": greeting}, {"role": "assistant", "content": begun}]);
    let continued = site.post(
        MESSAGES,
        &ask("", &json!({"messages": messages, "max_tokens": 3})),
    );
    let openai =
        json!({"messages": messages, "continue_final_message": true, "max_tokens": 3, "temperature": 0});
    let openai = site.post("/v1/chat/completions", &openai).json();
    assert_eq!(
        text(&continued.json()),
        openai["choices"][0]["message"]["content"]
    );
    let format = json!({"type": "json_schema", "schema": person()});
    let mut n_judged = 0;
    for i in 0..12 {
        let more = json!({"max_tokens": 900, "output_config": {"format": format}});
        let answer = both(&site, &ask(&format!("prompt {i}"), &more));
        if answer["stop_reason"] == "end_turn" {
            judge(&text(&answer), &person());
            n_judged += 1;
        }
    }
    assert!(n_judged > 6, "{n_judged} answers came to their end");
}

#[test]
fn a_length_beyond_the_context_is_what_fits() {
    let mut setup = Setup::new(crate::site::tokenizer());
    setup.engine.context = 64;
    let site = setup.start();
    let mut n_cut = 0;
    for i in 0..8 {
        let answer = both(
            &site,
            &ask(&format!("prompt {i}"), &json!({"max_tokens": 32_000})),
        );
        let usage = &answer["usage"];
        let n_all = usage["input_tokens"].as_u64().expect("a count")
            + usage["cache_read_input_tokens"].as_u64().expect("a count")
            + usage["output_tokens"].as_u64().expect("a count");
        if answer["stop_reason"] == "model_context_window_exceeded" {
            assert_eq!(n_all, 64);
            n_cut += 1;
        }
    }
    assert!(n_cut > 0, "no answer was that long");
    let refused = site.post(MESSAGES, &ask(&"long ".repeat(50), &json!({})));
    assert_eq!(refused.status, 400);
    let message = refused.json()["error"]["message"]
        .as_str()
        .expect("text")
        .to_owned();
    assert!(message.starts_with("prompt is too long"), "{message}");
}

#[test]
fn calls_are_blocks_whose_results_come_back() {
    let site = Setup::new(json_tokenizer(&[])).start();
    let schema = json!({"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"], "additionalProperties": false});
    let tools = json!([{"name": "weather", "description": "x", "input_schema": schema}]);
    let more = json!({"tools": tools, "max_tokens": 400,
        "tool_choice": {"type": "any", "disable_parallel_tool_use": true}});
    let mut n_called = 0;
    for i in 0..8 {
        let asked = format!("prompt {i}");
        let answer = both(&site, &ask(&asked, &more));
        if answer["stop_reason"] != "tool_use" {
            continue;
        }
        n_called += 1;
        let call = &answer["content"][0];
        assert_eq!(
            (&call["type"], &call["name"]),
            (&json!("tool_use"), &json!("weather"))
        );
        judge(&call["input"].to_string(), &schema);
        let turns = json!([
            {"role": "user", "content": asked},
            {"role": "assistant", "content": answer["content"]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": call["id"], "content": "22 degrees"}]}
        ]);
        let mut next = ask("", &json!({"tools": tools}));
        next["messages"] = turns;
        let next = site.post(MESSAGES, &next);
        assert_eq!(next.status, 200, "{}", next.body);
        let usage = &next.json()["usage"];
        let n_before = answer["usage"]["input_tokens"].as_u64().expect("a count")
            + answer["usage"]["cache_read_input_tokens"]
                .as_u64()
                .expect("a count");
        assert!(
            usage["cache_read_input_tokens"].as_u64().expect("a count") >= n_before,
            "{usage}"
        );
    }
    assert!(n_called > 4, "{n_called} calls");
    let cut = site.post(
        MESSAGES,
        &ask(
            "x",
            &json!({"tools": tools, "max_tokens": 60,
        "tool_choice": {"type": "tool", "name": "weather"}}),
        ),
    );
    assert_eq!(cut.status, 200, "{}", cut.body);
}

#[test]
fn thoughts_come_where_they_are_asked_for() {
    let mut setup = Setup::new(json_tokenizer(&["<think>", "</think>"]));
    setup.template = THINKS;
    let site = setup.start();
    let mut n_thought = 0;
    for i in 0..12 {
        let asked = format!("prompt {i}");
        let on = json!({"max_tokens": 300, "thinking": {"type": "enabled", "budget_tokens": 40}});
        let answer = both(&site, &ask(&asked, &on));
        for block in answer["content"].as_array().expect("blocks") {
            if block["type"] == "thinking" {
                assert_eq!(block["signature"], "arbora");
                n_thought += 1;
            }
        }
        for off in [json!({}), json!({"thinking": {"type": "disabled"}})] {
            let answer = site.post(MESSAGES, &ask(&asked, &off)).json();
            assert!(
                !answer["content"].to_string().contains("\"thinking\""),
                "{answer}"
            );
        }
    }
    assert!(n_thought > 6, "{n_thought} answers with thoughts");
    // A model without thoughts keeps to every limit of them.
    let plain = Site::new();
    let asked = ask(
        "x",
        &json!({"thinking": {"type": "enabled", "budget_tokens": 1024}}),
    );
    assert_eq!(plain.post(MESSAGES, &asked).status, 200);
}

#[test]
fn every_error_has_anthropics_shape() {
    let site = Site::with(&["secret"], |config| {
        config.max_running = 1;
        config.max_waiting = 1;
    });
    let key = "x-api-key: secret\r\n";
    let good = ask("a", &json!({})).to_string();
    let model = ask("a", &json!({"model": "claude"})).to_string();
    for (path, headers, body, status, kind) in [
        (MESSAGES, key, "{".to_owned(), 400, "invalid_request_error"),
        (MESSAGES, key, "{}".to_owned(), 400, "invalid_request_error"),
        (MESSAGES, "", good.clone(), 401, "authentication_error"),
        (
            MESSAGES,
            "x-api-key: other\r\n",
            good.clone(),
            401,
            "authentication_error",
        ),
        (MESSAGES, key, model.clone(), 404, "not_found_error"),
        (COUNT, key, model, 404, "not_found_error"),
        (MESSAGES, key, " ".repeat(100_001), 413, "request_too_large"),
        (
            "/v1/messages/batches",
            "anthropic-version: 2023-06-01\r\nx-api-key: secret\r\n",
            good.clone(),
            404,
            "not_found_error",
        ),
    ] {
        let answer = Answer::read(site.send("POST", path, headers, &body));
        let shown = &body[..body.len().min(60)];
        assert_eq!(answer.status, status, "{path} {shown}: {}", answer.body);
        let told = answer.json();
        assert_eq!(
            (&told["type"], &told["error"]["type"]),
            (&json!("error"), &json!(kind)),
            "{told}"
        );
        assert!(
            told["error"]["message"]
                .as_str()
                .is_some_and(|text| !text.is_empty())
        );
        let id = told["request_id"].as_str().expect("an id");
        assert!(
            answer.head.contains(&format!("request-id: {id}")),
            "{}",
            answer.head
        );
    }
    let answer = Answer::read(site.send("GET", MESSAGES, key, ""));
    assert_eq!((answer.status, &answer.json()["type"]), (405, &json!("error")));
    // Others keep theirs.
    let other = Answer::read(site.send("POST", "/v1/completions", key, "{"));
    assert!(other.json()["error"]["param"].is_null() && other.json().get("type").is_none());

    let endless = json!({"prompt": "go on", "max_tokens": 190_000, "ignore_eos": true, "stream": true});
    let running = site.send("POST", "/v1/completions", key, &endless.to_string());
    while site.engine.metrics().gauges().running == 0 {
        std::thread::yield_now();
    }
    let waiting = site.send("POST", MESSAGES, key, &good);
    while site.engine.metrics().gauges().waiting == 0 {
        std::thread::yield_now();
    }
    let refused = Answer::read(site.send("POST", MESSAGES, key, &good));
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
    assert!(refused.head.contains("retry-after: "), "{}", refused.head);
    let late = "x-api-key: secret\r\nx-arbora-queue-timeout-ms: 1\r\n";
    drop(running);
    assert_eq!(Answer::read(waiting).status, 200);
    let answer = Answer::read(site.send("POST", MESSAGES, late, &good));
    assert!([200, 529].contains(&answer.status), "{}", answer.body);
}

#[test]
fn models_are_listed_as_each_client_knows_them() {
    let site = Site::new();
    let version = "anthropic-version: 2023-06-01\r\n";
    let list = Answer::read(site.send("GET", "/v1/models", version, "")).json();
    let model = json!({"type": "model", "id": "toy", "display_name": "toy", "created_at": "1970-01-01T00:00:07Z",
        "lifecycle": "active", "max_input_tokens": 200_000, "max_tokens": 200_000});
    assert_eq!(
        list,
        json!({"data": [model], "has_more": false, "first_id": "toy", "last_id": "toy"})
    );
    let one = Answer::read(site.send("GET", "/v1/models/toy", version, "")).json();
    assert_eq!(one, model);
    let none = Answer::read(site.send("GET", "/v1/models/claude", version, ""));
    assert_eq!(
        (none.status, &none.json()["error"]["type"]),
        (404, &json!("not_found_error"))
    );
    assert_eq!(site.get("/v1/models").json()["object"], "list");
}
