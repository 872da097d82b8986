//! Ollama's API: it says what chat completions say of the same prompt, in lines of JSON.

use serde_json::{Value as Json, json};

use crate::constrained::{judge, person};
use crate::site::{Answer, Setup, Site, chat, json_tokenizer, rendered, tokenizer};

/// Opens thoughts unless it is told not to.
const THINKS: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
    <|im_start|>assistant\n{% if enable_thinking %}<think>\n{% else %}<think>\n</think>\n{% endif %}";

/// A greedy chat of at most 9 tokens, with `more`, of which `options` are added to the others.
fn ask(content: &str, more: &Json) -> Json {
    let mut body = json!({"model": "toy", "messages": [{"role": "user", "content": content}],
        "options": {"temperature": 0, "num_predict": 9}});
    for (name, value) in more.as_object().expect("fields") {
        if name != "options" {
            body[name] = value.clone();
            continue;
        }
        for (name, value) in value.as_object().expect("options") {
            body["options"][name] = value.clone();
        }
    }
    body
}

/// The whole answer of `path`, which its stream must say too but for times and what is random.
fn both(site: &Site, path: &str, body: &Json) -> Json {
    let mut whole = body.clone();
    whole["stream"] = false.into();
    let answer = site.post(path, &whole);
    assert_eq!(answer.status, 200, "{body}: {}", answer.body);
    assert!(answer.head.contains("content-type: application/json"));
    let mut whole = answer.json();
    let answer = site.post(path, body);
    assert!(
        answer.head.contains("content-type: application/x-ndjson"),
        "{}",
        answer.head
    );
    let mut lines: Vec<Json> = answer
        .body
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect();
    let mut last = lines.pop().expect("an end");
    assert!(
        lines
            .iter()
            .all(|line| line["done"] == false && line.get("eval_count").is_none())
    );
    for line in &lines {
        for pointer in ["/message/content", "/message/thinking", "/response", "/thinking"] {
            let Some(new) = line
                .pointer(pointer)
                .and_then(Json::as_str)
                .filter(|new| !new.is_empty())
            else {
                continue;
            };
            let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
            let target = last.pointer_mut(parent).expect("of one shape");
            let so_far = target[name].as_str().unwrap_or_default();
            target[name] = format!("{so_far}{new}").into();
        }
        if let Some(calls) = line["message"]["tool_calls"].as_array() {
            last["message"]["tool_calls"] = calls.clone().into();
        }
    }
    for answer in [&mut last, &mut whole] {
        assert_eq!(answer["done"], true);
        for name in [
            "total_duration",
            "load_duration",
            "prompt_eval_duration",
            "eval_duration",
        ] {
            assert!(answer[name].take().is_u64(), "{name}");
        }
        answer["created_at"] = Json::Null;
        let calls = answer.pointer_mut("/message/tool_calls");
        for call in calls.and_then(Json::as_array_mut).into_iter().flatten() {
            let id = call["id"].take();
            assert!(id.as_str().is_some_and(|id| id.starts_with("call_")), "{id}");
        }
    }
    assert_eq!(last, whole, "{body}");
    whole
}

#[test]
fn a_chat_says_what_chat_completions_say() {
    let site = Site::new();
    let (n_prompt, n_output, text) = site.output(&rendered("hello there"), 9);
    let answer = both(&site, "/api/chat", &ask("hello there", &json!({})));
    let reason = if n_output == 9 { "length" } else { "stop" };
    assert_eq!(answer["message"], json!({"role": "assistant", "content": text}));
    assert_eq!(
        (&answer["done_reason"], &answer["model"]),
        (&json!(reason), &json!("toy"))
    );
    assert_eq!(
        (&answer["prompt_eval_count"], &answer["eval_count"]),
        (&json!(n_prompt), &json!(n_output))
    );
    site.wait_until_quiet();
}

#[test]
fn times_are_parts_of_the_whole() {
    let site = Site::new();
    let body = ask(
        "hello there",
        &json!({"stream": false, "options": {"num_predict": 40}}),
    );
    let answer = site.post("/api/chat", &body).json();
    let time = |name: &str| answer[name].as_u64().expect("nanoseconds");
    assert!(time("prompt_eval_duration") > 0, "{answer}");
    let parts = time("load_duration") + time("prompt_eval_duration") + time("eval_duration");
    assert!(parts <= time("total_duration"), "{answer}");
}

#[test]
fn a_prompt_is_a_message_or_goes_on_as_it_is() {
    let site = Site::new();
    let ask = |more: Json| {
        let mut body = json!({"prompt": "once upon", "options": {"temperature": 0, "num_predict": 6}});
        body.as_object_mut()
            .expect("an object")
            .extend(more.as_object().expect("fields").clone());
        both(&site, "/api/generate", &body)
    };
    let (_, _, text) = site.output("once upon", 6);
    let raw = ask(json!({"raw": true}));
    assert_eq!((&raw["response"], raw.get("context")), (&json!(text), None));
    let (n_prompt, _, text) = site.output(&rendered("once upon"), 6);
    let answer = ask(json!({}));
    assert_eq!(answer["response"], text);
    let context = answer["context"].as_array().expect("tokens");
    assert!(context.len() > n_prompt, "{answer}");
    let system = ask(json!({"system": "be kind"}));
    let prompt = format!("<|im_start|>system\nbe kind<|im_end|>\n{}", rendered("once upon"));
    assert_eq!(system["response"], site.output(&prompt, 6).2);
    // The next prompt follows all of that.
    let next = ask(json!({"context": context}));
    let n_next = n_prompt + context.len();
    assert_eq!(next["prompt_eval_count"], n_next);
}

#[test]
fn formats_are_enforced() {
    let site = Setup::new(json_tokenizer(&[])).start();
    let schema = person();
    let ended = (0..20).find_map(|i| {
        let more = json!({"format": schema, "stream": false, "options": {"num_predict": 1500}});
        let answer = site.post("/api/chat", &ask(&format!("prompt {i}"), &more)).json();
        let text = answer["message"]["content"].as_str().expect("text").to_owned();
        (answer["done_reason"] == "stop").then_some(text)
    });
    judge(&ended.expect("a prompt leads to an end"), &schema);
    let object = both(&site, "/api/chat", &ask("hello", &json!({"format": "json"})));
    let text = object["message"]["content"].as_str().expect("text").trim_start();
    assert!(text.starts_with('{') || text.is_empty(), "{object}");
}

#[test]
fn calls_come_whole_with_an_object() {
    let site = Setup::new(json_tokenizer(&[])).start();
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {
        "type": "object", "properties": {"city": {"enum": ["Bonn", "Rome"]}}, "required": ["city"],
        "additionalProperties": false}}});
    let more = json!({"tools": [tool], "tool_choice": "required", "options": {"num_predict": 300}});
    let answer = both(&site, "/api/chat", &ask("hello", &more));
    let call = &answer["message"]["tool_calls"][0]["function"];
    assert_eq!(
        (&call["name"], &call["index"]),
        (&json!("f"), &json!(0)),
        "{answer}"
    );
    let city = call["arguments"]["city"].as_str().expect("a city");
    assert!(["Bonn", "Rome"].contains(&city), "{answer}");
    // What a client sends back is a prompt.
    let mut turns = ask("hello", &json!({"stream": false}));
    let earlier = answer["message"].clone();
    let result = json!({"role": "tool", "tool_name": "f", "content": "22 degrees"});
    turns["messages"]
        .as_array_mut()
        .expect("messages")
        .extend([earlier, result]);
    assert_eq!(site.post("/api/chat", &turns).status, 200);
}

#[test]
fn thoughts_come_apart_or_not_at_all() {
    let mut setup = Setup::new(json_tokenizer(&["<think>", "</think>"]));
    setup.template = THINKS;
    let site = setup.start();
    let more = |think: bool| json!({"think": think, "options": {"num_predict": 30}});
    let thinking = both(&site, "/api/chat", &ask("hello", &more(true)));
    assert!(thinking["message"]["thinking"].is_string(), "{thinking}");
    let quiet = both(&site, "/api/chat", &ask("hello", &more(false)));
    assert!(quiet["message"].get("thinking").is_none(), "{quiet}");
    let error = Site::new().post("/api/chat", &ask("hello", &json!({"think": true})));
    assert_eq!(error.status, 400, "{}", error.body);
    assert_eq!(
        error.json(),
        json!({"error": "'think' is not supported: 'toy' does not think."})
    );
}

#[test]
fn log_probabilities_are_those_of_chat_completions() {
    let site = Site::new();
    let body = json!({"max_tokens": 4, "logprobs": true, "top_logprobs": 2});
    let expected = site.post("/v1/chat/completions", &chat("hello", &body)).json();
    let more = json!({"logprobs": true, "top_logprobs": 2, "stream": false, "options": {"num_predict": 4}});
    let answer = site.post("/api/chat", &ask("hello", &more)).json();
    assert_eq!(answer["logprobs"], expected["choices"][0]["logprobs"]["content"]);
    assert!(answer["logprobs"][0]["top_logprobs"][1].is_object(), "{answer}");
}

#[test]
fn models_are_found_with_the_default_tag_loaded_and_pulled() {
    let mut setup = Setup::new(tokenizer());
    setup.encoders = &["bert"];
    let site = setup.start();
    let names = |path: &str| {
        let models = site.get(path).json()["models"].take();
        let models = models.as_array().expect("models").iter();
        models.map(|model| model["name"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(names("/api/tags"), ["toy", "bert"]);
    assert_eq!(names("/api/ps"), ["toy", "bert"]);
    assert!(site.get("/api/version").json()["version"].is_string());
    let tagged = ask("hello", &json!({"model": "toy:latest", "stream": false}));
    assert_eq!(site.post("/api/chat", &tagged).json()["model"], "toy");
    let loaded = site.post("/api/generate", &json!({"model": "toy"})).json();
    assert_eq!(
        (&loaded["done_reason"], &loaded["response"]),
        (&json!("load"), &json!(""))
    );
    let shown = site.post("/api/show", &json!({"model": "toy"})).json();
    assert_eq!(shown["capabilities"], json!(["completion", "tools"]));
    assert_eq!(shown["model_info"]["arbora.context_length"], 200_000);
    let shown = site.post("/api/show", &json!({"name": "bert"})).json();
    assert_eq!(shown["capabilities"], json!(["embedding"]));
    let pulled = site.post("/api/pull", &json!({"model": "toy"}));
    assert_eq!(pulled.body, "{\"status\":\"success\"}\n");
    for (path, body) in [
        ("/api/pull", json!({"model": "other"})),
        ("/api/chat", ask("hello", &json!({"model": "other:latest"}))),
        ("/api/create", json!({"model": "other", "from": "toy"})),
    ] {
        let answer = site.post(path, &body);
        assert_eq!(answer.status, 404, "{path}: {}", answer.body);
        let error = answer.json();
        let only = error.as_object().expect("an error");
        assert!(only.len() == 1 && only["error"].is_string(), "{path}: {error}");
    }
}

#[test]
fn vectors_are_those_of_the_embeddings_route() {
    let mut setup = Setup::new(tokenizer());
    setup.encoders = &["bert"];
    let site = setup.start();
    let expected = site
        .post("/v1/embeddings", &json!({"input": ["a", "b c"]}))
        .json();
    let body = json!({"model": "bert", "input": ["a", "b c"], "keep_alive": "5m"});
    let answer = site.post("/api/embed", &body).json();
    for i in 0..2 {
        assert_eq!(answer["embeddings"][i], expected["data"][i]["embedding"]);
    }
    assert_eq!(answer["prompt_eval_count"], expected["usage"]["prompt_tokens"]);
    let older = site
        .post("/api/embeddings", &json!({"model": "bert", "prompt": "a"}))
        .json();
    assert_eq!(older, json!({"embedding": expected["data"][0]["embedding"]}));
    let long = "a b c d e f g h i j k l m n o p q r s t u v w x y z ".repeat(40);
    let ask = |truncate: bool| site.post("/api/embed", &json!({"input": &long, "truncate": truncate}));
    assert_eq!((ask(true).status, ask(false).status), (200, 400));
    let short = site
        .post("/api/embed", &json!({"input": "a", "dimensions": 7}))
        .json();
    assert_eq!(short["embeddings"][0].as_array().map(Vec::len), Some(7));
}

#[test]
fn a_body_needs_no_content_type_and_no_foreign_page_can_send_one() {
    let site = Site::new();
    let body = ask("hello", &json!({"stream": false})).to_string();
    let send = |headers: &str| {
        let headers = format!("host: localhost\r\n{headers}");
        Answer::read(site.send_bytes("POST /api/chat", &headers, body.as_bytes()))
    };
    for headers in ["", "content-type: application/x-www-form-urlencoded\r\n"] {
        let answer = send(headers);
        assert_eq!(answer.status, 200, "{headers}: {}", answer.body);
    }
    let refused = send("origin: http://pages.example\r\n");
    assert_eq!(refused.status, 403, "{}", refused.body);
    assert!(refused.json()["error"].is_string());
    let looked = Answer::read(site.send("HEAD", "/", "", ""));
    assert_eq!(looked.status, 200, "clients look whether there is a server");
}

#[test]
fn options_beyond_the_model_are_refused() {
    let site = Site::new();
    let options = json!({"options": {"num_ctx": 200_001}});
    let answer = site.post("/api/chat", &ask("hello", &options));
    assert_eq!(answer.status, 400);
    let message = "'options.num_ctx' is 200001, this model has a context of 200000 tokens.";
    assert_eq!(answer.json(), json!({"error": message}));
    // As many as fit.
    let all = json!({"stream": false, "options": {"num_predict": 1_000_000, "stop": ["a", "e", "t"]}});
    assert_eq!(site.post("/api/chat", &ask("hello", &all)).status, 200);
}
