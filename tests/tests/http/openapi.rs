//! Answers, chunks and errors are what the API's document says of them: nothing is missing, nothing unnamed.

use jsonschema::Validator;
use serde_json::{Value as Json, json};

use crate::site::{Answer, Setup, Site, chat, json_tokenizer};

/// Opens thoughts, so that there are some.
const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
    <|im_start|>assistant\n<think>\n";

/// The document as the server tells it, where objects have no members but those that are listed.
struct Document(Json);

impl Document {
    fn of(site: &Site) -> Document {
        let answer = site.get("/openapi.json");
        assert_eq!(answer.status, 200);
        let mut document = answer.json();
        close(&mut document["components"]["schemas"]);
        Document(document)
    }

    /// Of what a route answers.
    fn validator(&self, (method, path): (&str, &str), status: u16, kind: &str) -> Validator {
        let mut response = &self.0["paths"][path][method]["responses"][status.to_string()];
        if let Some(target) = response["$ref"].as_str() {
            response = self.0.pointer(&target[1..]).expect("a response");
        }
        let mut schema = &response["content"][kind]["schema"];
        if kind == "text/event-stream" {
            let target = schema["$ref"].as_str().expect("a kind of event");
            let event = self.0.pointer(&target[1..]).expect("an event");
            let data = &event["properties"]["data"];
            schema = match data.get("anyOf") {
                // Not the end, and no error.
                Some(kinds) => &kinds[1]["contentSchema"]["anyOf"][0],
                None => &data["contentSchema"],
            };
        }
        assert!(
            schema.is_object(),
            "{method} {path} {status} {kind} is not described"
        );
        let whole = json!({"allOf": [schema], "components": self.0["components"]});
        jsonschema::draft202012::new(&whole).expect("a schema")
    }
}

/// Forbids members that are not listed, wherever some are.
fn close(schema: &mut Json) {
    match schema {
        Json::Object(members) => {
            let lists_all =
                members.contains_key("properties") && !members.contains_key("additionalProperties");
            members.values_mut().for_each(close);
            if lists_all && members.get("type").is_some() {
                members.insert("additionalProperties".to_owned(), false.into());
            }
        }
        Json::Array(elements) => elements.iter_mut().for_each(close),
        _ => {}
    }
}

fn check(validator: &Validator, found: &Json) {
    let errors: Vec<String> = validator
        .iter_errors(found)
        .map(|error| format!("{} at {}", error, error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{errors:#?} in {found:#}");
}

fn post(site: &Site, path: &str, body: &Json) -> Answer {
    Answer::read(site.send("POST", path, "x-arbora-usage: 1\r\n", &body.to_string()))
}

/// The answer to `body`, whole and as a stream; returns what of it is worth a look.
fn both(site: &Site, document: &Document, path: &str, body: &Json) -> (Json, Vec<Json>) {
    let answer = post(site, path, body);
    assert_eq!(answer.status, 200, "{body}: {}", answer.body);
    let whole = answer.json();
    check(
        &document.validator(("post", path), 200, "application/json"),
        &whole,
    );
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    if path.ends_with("completions") {
        streamed["stream_options"] = json!({"include_usage": true});
    }
    let answer = post(site, path, &streamed);
    assert_eq!(answer.status, 200, "{streamed}: {}", answer.body);
    let validator = document.validator(("post", path), 200, "text/event-stream");
    let events = answer.body.split_terminator("\n\n");
    // The data stands behind the name, where an event has one.
    let data = events.filter_map(|event| event.lines().last()?.strip_prefix("data: "));
    let chunks = data.filter(|data| *data != "[DONE]");
    let chunks: Vec<Json> = chunks
        .map(|chunk| serde_json::from_str(chunk).expect("JSON"))
        .collect();
    chunks.iter().for_each(|chunk| check(&validator, chunk));
    assert!(!chunks.is_empty(), "{}", answer.body);
    (whole, chunks)
}

#[test]
fn answers_and_chunks_are_as_the_document_says() {
    let mut setup = Setup::new(json_tokenizer(&["<think>", "</think>"]));
    setup.template = TEMPLATE;
    let site = setup.start();
    let document = Document::of(&site);
    let path = "/v1/chat/completions";
    let scored =
        json!({"max_tokens": 6, "n": 2, "temperature": 1, "seed": 1, "logprobs": true, "top_logprobs": 2});
    let (whole, chunks) = both(&site, &document, path, &chat("hello", &scored));
    assert!(whole["choices"][1]["logprobs"]["content"][0]["top_logprobs"][1].is_object());
    assert!(whole["usage"]["arbora"].is_object() && chunks.last().expect("some")["usage"].is_object());
    let prompt = chat("hello", &json!({"max_tokens": 2, "prompt_logprobs": 1}));
    let answer = post(&site, path, &prompt);
    check(
        &document.validator(("post", path), 200, "application/json"),
        &answer.json(),
    );
    assert!(answer.json()["prompt_logprobs"][1].is_object(), "{}", answer.body);
    let call = json!({"max_tokens": 900, "tools": [{"type": "function", "function": {"name": "f"}}],
        "tool_choice": "required"});
    let answers = (0..6).map(|i| both(&site, &document, path, &chat(&format!("hello {i}"), &call)));
    let answers: Vec<_> = answers.collect();
    let has = |member: &str| {
        let whole = answers
            .iter()
            .any(|(whole, _)| !whole["choices"][0]["message"][member].is_null());
        let pieces = answers.iter().flat_map(|(_, chunks)| chunks);
        whole
            && pieces
                .into_iter()
                .any(|chunk| !chunk["choices"][0]["delta"][member].is_null())
    };
    assert!(has("tool_calls") && has("reasoning_content"), "{answers:#?}");

    let path = "/v1/completions";
    let scored = json!({"prompt": ["abc", "de"], "max_tokens": 5, "temperature": 0, "logprobs": 2});
    let (whole, _) = both(&site, &document, path, &scored);
    assert!(whole["choices"][1]["logprobs"]["top_logprobs"][0].is_object());
    let mut prompt = scored.clone();
    prompt["prompt_logprobs"] = 1.into();
    let answer = post(&site, path, &prompt);
    check(
        &document.validator(("post", path), 200, "application/json"),
        &answer.json(),
    );
    both(
        &site,
        &document,
        path,
        &json!({"prompt": "abc", "choice": ["yes", "no"]}),
    );

    let path = "/v1/messages";
    let asked = |i: usize| {
        json!({"messages": [{"role": "user", "content": format!("hello {i}")}],
        "max_tokens": 900, "temperature": 0, "thinking": {"type": "adaptive"},
        "tools": [{"name": "f", "input_schema": {"type": "object", "properties": {}}}], "tool_choice": {"type": "any"}})
    };
    let answers: Vec<_> = (0..6)
        .map(|i| both(&site, &document, path, &asked(i)).0)
        .collect();
    for kind in ["thinking", "tool_use"] {
        let mut blocks = answers
            .iter()
            .flat_map(|answer| answer["content"].as_array().into_iter().flatten());
        assert!(blocks.any(|block| block["type"] == kind), "{kind}: {answers:#?}");
    }

    let path = "/v1/responses";
    let asked = |i: usize| {
        json!({"input": format!("hello {i}"), "max_output_tokens": 900, "temperature": 0,
        "tools": [{"type": "function", "name": "f"}], "tool_choice": "required"})
    };
    let answers: Vec<_> = (0..6)
        .map(|i| both(&site, &document, path, &asked(i)).0)
        .collect();
    for kind in ["reasoning", "function_call"] {
        let mut items = answers
            .iter()
            .flat_map(|answer| answer["output"].as_array().into_iter().flatten());
        assert!(items.any(|item| item["type"] == kind), "{kind}: {answers:#?}");
    }
    both(
        &site,
        &document,
        path,
        &json!({"input": "hello", "max_output_tokens": 3}),
    );

    let path = "/generate";
    let params = json!({"max_new_tokens": 4, "temperature": 0, "n": 2});
    let scored = json!({"text": "abc", "sampling_params": params, "return_logprob": true, "logprob_start_len": 0,
        "top_logprobs_num": 2, "return_text_in_logprobs": true});
    let (whole, _) = both(&site, &document, path, &scored);
    assert!(whole[1]["meta_info"]["input_top_logprobs"].is_array());
    both(
        &site,
        &document,
        path,
        &json!({"text": "abc", "sampling_params": {"max_new_tokens": 3}}),
    );
}

#[test]
fn everything_else_and_errors_are_as_the_document_says() {
    let site = Site::new();
    let document = Document::of(&site);
    let asked = chat("hello there", &json!({"max_tokens": 4}));
    let answer = post(&site, "/v1/chat/completions", &asked);
    let id = answer.json()["id"].as_str().expect("an id").to_owned();
    let model = site.get("/v1/models").json()["data"][0]["id"]
        .as_str()
        .expect("a name")
        .to_owned();
    let get = |described: &str, path: &str, status: u16| {
        let answer = site.get(path);
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
        check(
            &document.validator(("get", described), status, "application/json"),
            &answer.json(),
        );
    };
    for path in [
        "/v1/models",
        "/health",
        "/ready",
        "/version",
        "/get_load",
        "/v1/loads",
        "/loads",
        "/load",
        "/health_generate",
        "/flush_cache",
        "/tokenizer_info",
        "/model_info",
        "/server_info",
        "/get_server_info",
    ] {
        get(path, path, 200);
    }
    get("/v1/models/{id}", &format!("/v1/models/{model}"), 200);
    get("/v1/models/{id}", "/v1/models/other", 404);
    get("/cache/tree", "/cache/tree?limit=5", 200);
    get("/cache/tree", "/cache/tree?limit=0", 400);
    get("/cache/explain", "/cache/explain", 200);
    get("/cache/explain", &format!("/cache/explain?id={id}"), 200);
    get("/cache/explain", "/cache/explain?id=none", 404);
    let made = post(
        &site,
        "/v1/responses",
        &json!({"input": "x", "max_output_tokens": 3, "background": true}),
    );
    let kept = format!("/v1/responses/{}", made.json()["id"].as_str().expect("an id"));
    get("/v1/responses/{id}", &kept, 200);
    get("/v1/responses/{id}", "/v1/responses/other", 404);
    get(
        "/v1/responses/{id}/input_items",
        &format!("{kept}/input_items?limit=5"),
        200,
    );
    get(
        "/v1/responses/{id}/input_items",
        &format!("{kept}/input_items?limit=0"),
        400,
    );
    for (method, described, path) in [
        ("post", "/v1/responses/{id}/cancel", format!("{kept}/cancel")),
        ("delete", "/v1/responses/{id}", kept),
    ] {
        let answer = Answer::read(site.send(&method.to_uppercase(), &path, "", ""));
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        let validator = document.validator((method, described), 200, "application/json");
        check(&validator, &answer.json());
    }
    let cases = [
        ("/v1/responses", json!({"input": []}), 400),
        ("/v1/responses/input_tokens", json!({"input": "x"}), 200),
        (
            "/tokenize",
            json!({"prompt": "hello there", "return_token_strs": true}),
            200,
        ),
        ("/tokenize", json!({}), 400),
        ("/detokenize", json!({"tokens": [1, 2]}), 200),
        ("/v1/chat/completions/render", asked.clone(), 200),
        (
            "/v1/completions/render",
            json!({"prompt": ["a", [1, 2]], "stop": "x"}),
            200,
        ),
        ("/v1/completions/render", json!({}), 400),
        ("/cache/explain", asked, 200),
        ("/flush_cache", json!({}), 200),
        ("/v1/chat/completions", json!({"messages": []}), 400),
        ("/v1/completions", json!({"prompt": "x", "model": "other"}), 404),
        ("/generate", json!({"text": "x", "lora_path": "y"}), 400),
        (
            "/v1/messages/count_tokens",
            json!({"messages": [{"role": "user", "content": "x"}]}),
            200,
        ),
        ("/v1/messages", json!({"max_tokens": 1, "messages": []}), 400),
    ];
    for (path, body, status) in cases {
        let answer = post(&site, path, &body);
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
        check(
            &document.validator(("post", path), status, "application/json"),
            &answer.json(),
        );
    }
    for (target, headers, status) in [
        ("get /health", "host: pages.example\r\n", 403),
        ("get /flush_cache", "host: localhost\r\norigin: null\r\n", 403),
        (
            "post /flush_cache",
            "host: localhost\r\ncontent-type: text/plain\r\n",
            415,
        ),
        ("post /tokenize", "host: localhost\r\n", 415),
    ] {
        let (method, path) = target.split_once(' ').expect("two words");
        let line = format!("{} {path}", method.to_uppercase());
        let answer = Answer::read(site.send_bytes(&line, headers, b"x"));
        assert_eq!(answer.status, status, "{target}: {}", answer.body);
        check(
            &document.validator((method, path), status, "application/json"),
            &answer.json(),
        );
    }
    let site = Site::with(&["key"], |_| {});
    let answer = site.get("/openapi.json");
    assert_eq!(answer.status, 401);
    check(
        &document.validator(("get", "/openapi.json"), 401, "application/json"),
        &answer.json(),
    );
}
