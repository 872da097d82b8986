//! Tools: which calls an output holds, how they are written in whole answers and streams, and what they do
//! beside a format.

use serde_json::{Value as Json, json};

use crate::constrained::{judge, messages, person};
use crate::site::{Setup, Site, TEMPLATE, chat, json_tokenizer, json_tokenizer_with};
use crate::stream::both;

/// Knows tools as Qwen's do.
const HERMES: &str = "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<tool_call><|im_end|>\n{% endif %}\
    {% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Knows tools as Llama 3's do.
const LLAMA: &str = "{% if tools %}<|start_header_id|>{{ tools | tojson }}{\"name\": N, \"parameters\": P}{% endif %}\
    {% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Where there are control tokens for the brackets of calls, words, or nothing.
fn sites() -> Vec<Site> {
    let of = |template, controls: &[&str], words: &[&str]| {
        let mut setup = Setup::new(json_tokenizer_with(controls, words));
        setup.template = template;
        setup.start()
    };
    let brackets = ["<tool_call>", "</tool_call>"];
    vec![
        of(TEMPLATE, &[], &[]),
        of(TEMPLATE, &brackets, &[]),
        of(HERMES, &brackets, &[]),
        of(HERMES, &[], &brackets),
        of(LLAMA, &[], &[]),
    ]
}

fn parameters() -> [(&'static str, Json); 2] {
    let weather = json!({"type": "object", "properties": {"city": {"enum": ["Paris", "Rome {\"}"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["city", "days"],
        "additionalProperties": false});
    let add = json!({"type": "object", "properties": {"numbers": {"type": "array", "items":
        {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3}}, "required": ["numbers"],
        "additionalProperties": false});
    [("weather", weather), ("add.numbers", add)]
}

fn tools() -> Json {
    parameters()
        .map(|(name, parameters)| {
            json!({"type": "function", "function": {"name": name, "parameters": parameters}})
        })
        .into_iter()
        .collect()
}

/// The names of the tools that a message calls; judges their arguments.
fn called(message: &Json) -> Vec<String> {
    let calls = message["tool_calls"].as_array().map_or(&[][..], Vec::as_slice);
    let names = calls.iter().map(|call| {
        assert_eq!(call["type"], "function");
        let name = call["function"]["name"].as_str().expect("a name");
        let known = parameters();
        let (_, schema) = known.iter().find(|(known, _)| *known == name).expect("a tool");
        judge(call["function"]["arguments"].as_str().expect("arguments"), schema);
        name.to_owned()
    });
    let names: Vec<String> = names.collect();
    let expected = if names.is_empty() { "stop" } else { "tool_calls" };
    assert_eq!(message["finish_reason"], expected, "{message}");
    names
}

#[test]
fn required_calls_are_calls_and_nothing_else() {
    for site in sites() {
        let more = json!({"tools": tools(), "tool_choice": "required"});
        let mut n_calls = Vec::new();
        for message in messages(&site, &more, 12) {
            n_calls.push(called(&message).len());
            assert_eq!(message["content"], Json::Null, "{message}");
        }
        assert!(n_calls.len() > 6 && !n_calls.contains(&0), "{n_calls:?}");
        assert!(n_calls.iter().any(|n| *n > 1), "several are allowed: {n_calls:?}");
        let single = json!({"tools": tools(), "tool_choice": "required", "parallel_tool_calls": false});
        for message in messages(&site, &single, 12) {
            assert_eq!(called(&message).len(), 1, "{message}");
        }
    }
}

#[test]
fn a_named_tool_is_called_once_with_arguments_that_fit() {
    for site in sites() {
        for (name, _) in parameters() {
            let choice = json!({"type": "function", "function": {"name": name}});
            let more = json!({"tools": tools(), "tool_choice": choice});
            let found: Vec<_> = messages(&site, &more, 6)
                .map(|message| called(&message))
                .collect();
            assert_eq!(found, vec![vec![name.to_owned()]; found.len()]);
            assert!(found.len() > 3);
        }
    }
}

#[test]
fn no_tool_is_as_if_there_were_none() {
    for site in sites() {
        let with = json!({"tools": tools(), "tool_choice": "none"});
        let without = json!({});
        assert!(messages(&site, &with, 4).eq(messages(&site, &without, 4)));
        let with = json!({"tools": tools(), "tool_choice": "none", "guided_json": person()});
        for message in messages(&site, &with, 4) {
            judge(message["content"].as_str().expect("text"), &person());
        }
    }
}

#[test]
fn a_model_that_may_choose_writes_text_and_calls() {
    // Where a call begins with eleven letters, the toy finds none by chance.
    for site in sites().into_iter().skip(1) {
        let more = json!({"tools": tools()});
        let (mut n_calls, mut n_texts) = (0, 0);
        for message in messages(&site, &more, 300) {
            let calls = called(&message);
            n_calls += calls.len();
            let content = message["content"].as_str().unwrap_or_default();
            n_texts += usize::from(!content.is_empty());
            assert!(!content.contains("<tool_call>"), "{message}");
            assert!(!calls.is_empty() || message["content"].is_string(), "{message}");
            if n_calls > 0 && n_texts > 0 {
                break;
            }
        }
        assert!(n_calls > 0 && n_texts > 0, "{n_calls} calls, {n_texts} texts");
    }
}

#[test]
fn beside_a_format_an_output_is_calls_or_the_format() {
    let similar = json!({"type": "object", "properties": {"name": {"enum": ["weather", "Ann"]},
        "parameter": {"type": "object", "maxProperties": 0}}, "required": ["name", "parameter"],
        "additionalProperties": false});
    for site in sites() {
        for schema in [person(), similar.clone()] {
            // In compact JSON a blank tells a call from the format, so that the toy finds both.
            let format = json!({"json": schema, "disable_any_whitespace": true});
            let ask = |choice: &str| {
                let more = json!({"tools": tools(), "tool_choice": choice, "structured_outputs": format});
                messages(&site, &more, 30).collect::<Vec<_>>()
            };
            let (mut n_calls, mut n_texts) = (0, 0);
            for message in ask("auto") {
                if called(&message).is_empty() {
                    judge(message["content"].as_str().expect("text"), &schema);
                    n_texts += 1;
                } else {
                    assert_eq!(message["content"], Json::Null, "{message}");
                    n_calls += 1;
                }
            }
            assert!(n_calls > 2 && n_texts > 2, "{n_calls} calls, {n_texts} texts");
            assert!(ask("required").iter().all(|message| !called(message).is_empty()));
            for message in ask("none") {
                assert!(called(&message).is_empty());
                judge(message["content"].as_str().expect("text"), &schema);
            }
        }
    }
}

#[test]
fn the_first_delta_of_a_call_has_no_text() {
    for site in sites() {
        let mut body = chat(
            "hello",
            &json!({"tools": tools(), "tool_choice": "required", "stream": true}),
        );
        body["logprobs"] = true.into();
        let answer = site.post("/v1/chat/completions", &body);
        let deltas: Vec<Json> = answer
            .body
            .split_terminator("\n\n")
            .filter_map(|event| serde_json::from_str(event.strip_prefix("data: ")?).ok())
            .map(|chunk: Json| chunk["choices"][0]["delta"].clone())
            .collect();
        assert_eq!(deltas[0], json!({"role": "assistant", "content": null}));
        assert!(deltas.len() > 3, "{}", answer.body);
        for delta in &deltas[1..] {
            assert!(delta.get("content").is_none(), "{delta}");
        }
    }
}

#[test]
fn required_calls_that_are_cut_off_leave_no_markup_in_the_text() {
    for site in sites() {
        for choice in [json!("required"), json!({"function": {"name": "weather"}})] {
            let format = json!({"json": person()});
            for more in [json!({}), json!({"structured_outputs": format})] {
                for max_tokens in 1..60 {
                    let mut body = chat("hello", &more);
                    body["tools"] = tools();
                    body["tool_choice"] = choice.clone();
                    body["max_tokens"] = max_tokens.into();
                    let message = both(&site, &body)["choices"][0]["message"].take();
                    let content = message["content"].as_str().unwrap_or_default();
                    assert_eq!(content, "", "after {max_tokens} tokens: {message}");
                    let calls = message["tool_calls"].as_array().map_or(&[][..], Vec::as_slice);
                    // It could not be sent back otherwise.
                    assert!(
                        calls.iter().all(|call| call["function"]["arguments"] != "{"),
                        "{message}"
                    );
                }
            }
        }
    }
}

/// No automaton finds what was found before.
fn back_reference() -> Json {
    json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "^(['\"]).{1,3}\\1$"}},
        "required": ["a"], "additionalProperties": false})
}

#[test]
fn what_cannot_be_enforced_of_a_tool_that_is_not_strict_is_left_out_and_named() {
    let site = Setup::new(json_tokenizer(&[])).start();
    let loose = json!([{"type": "function", "function": {"name": "f"}},
        {"type": "function", "function": {"name": "g", "parameters": back_reference()}}]);
    let choice = json!({"function": {"name": "g"}});
    let more = json!({"tools": loose, "tool_choice": choice, "max_tokens": 200});
    let mut body = chat("hello", &more);
    let answer = site.post("/v1/chat/completions", &body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let answer = answer.json();
    let relaxed = json!([{"pointer": "#/tools/1/parameters/properties/a", "keyword": "pattern"}]);
    assert_eq!(answer["usage"]["arbora"], json!({"relaxed": relaxed}));
    let call = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls", "{answer}");
    let mut enforced = back_reference();
    enforced["properties"]["a"] = json!({"type": "string"});
    judge(call["arguments"].as_str().expect("a text"), &enforced);
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    let streamed = site.post("/v1/chat/completions", &body).body;
    assert!(streamed.contains(&format!("\"relaxed\":{relaxed}")), "{streamed}");
}

#[test]
fn what_cannot_be_enforced_names_the_tools_or_the_format() {
    let site = Setup::new(json_tokenizer(&[])).start();
    let bad = back_reference();
    let bad_tool =
        json!([{"type": "function", "function": {"name": "f", "parameters": bad, "strict": true}}]);
    let good = json!([{"type": "function", "function": {"name": "f"}}]);
    let cases = [
        (
            json!({"tools": bad_tool}),
            "tools",
            "#/tools/0/parameters/properties/a",
        ),
        (
            json!({"tools": bad_tool, "guided_json": person()}),
            "tools",
            "#/tools/0/parameters/properties/a",
        ),
        (
            json!({"tools": good, "guided_json": bad}),
            "guided_json",
            ": #/properties/a",
        ),
        (
            json!({"tools": good, "tool_choice": "required", "guided_json": bad}),
            "guided_json",
            ": #/properties/a",
        ),
        (
            json!({"tools": good, "tool_choice": "none", "guided_json": bad}),
            "guided_json",
            ": #/properties/a",
        ),
    ];
    for (fields, param, place) in cases {
        let answer = site.post("/v1/chat/completions", &chat("hello", &fields));
        assert_eq!(answer.status, 400, "{fields}: {}", answer.body);
        let error = answer.json()["error"].take();
        assert_eq!(error["param"], param, "{error}");
        assert!(error["message"].to_string().contains(place), "{error}");
    }
}
