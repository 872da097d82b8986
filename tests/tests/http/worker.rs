//! What routers in front of several servers use.

use std::io::Read;

use arbora::api::generate::StreamForm;
use arbora_tests::toy::N_VOCAB;
use serde_json::{Value as Json, json};

use crate::site::{Answer, Setup, Site, TEMPLATE, bos_tokenizer, rendered, tokenizer};

const PROMPT: &str = "once upon a time";

#[test]
fn generate_answers_in_sglangs_shape() {
    let site = Site::new();
    let mut request = site.request(PROMPT, 5);
    request.stop.ignore_eos = true;
    let tokens = site.expected(&request).tokens;
    let params = json!({"max_new_tokens": 5, "temperature": 0, "ignore_eos": true});
    let ask = json!({"text": PROMPT, "sampling_params": params, "rid": "mine"});
    let answer = site.post("/generate", &ask).json();
    assert_eq!(answer["text"], site.text_of(&tokens));
    assert_eq!(answer["output_ids"], json!(tokens));
    let meta = &answer["meta_info"];
    assert_eq!(meta["id"], "mine");
    assert_eq!(meta["finish_reason"], json!({"type": "length", "length": 5}));
    assert_eq!(meta["prompt_tokens"], request.prompt.len());
    assert_eq!(meta["completion_tokens"], 5);
    assert_eq!(meta["cached_tokens"], 0);
    let again = site.post("/generate", &ask).json();
    assert_eq!(again["meta_info"]["cached_tokens"], request.prompt.len() - 1);
    // Several prompts or outputs give a list.
    let several = json!({"input_ids": [request.prompt, [5, 6]], "sampling_params": params});
    let list = site.post("/generate", &several).json();
    assert_eq!(list.as_array().map(Vec::len), Some(2));
    assert_eq!(list[0]["text"], answer["text"]);
}

#[test]
fn generate_streams_all_that_came_so_far() {
    let site = Site::new();
    let params = json!({"max_new_tokens": 4, "temperature": 0, "ignore_eos": true, "n": 2});
    let ask = json!({"text": PROMPT, "sampling_params": params, "stream": true});
    let answer = site.post("/generate", &ask);
    assert!(answer.body.ends_with("data: [DONE]\n\n"), "{}", answer.body);
    let mut last = [Json::Null, Json::Null];
    for data in answer.body.split_terminator("\n\n") {
        let Ok(output) = serde_json::from_str::<Json>(&data["data: ".len()..]) else {
            continue;
        };
        let idx = output["index"].as_u64().expect("an index") as usize;
        let text = |output: &Json| output["text"].as_str().unwrap_or_default().to_owned();
        assert!(text(&output).starts_with(&text(&last[idx])), "text only grows");
        last[idx] = output;
    }
    let mut whole = ask;
    whole["stream"] = json!(false);
    let whole = site.post("/generate", &whole).json();
    for idx in 0..2 {
        assert_eq!(last[idx]["text"], whole[idx]["text"]);
        assert_eq!(last[idx]["output_ids"], whole[idx]["output_ids"]);
        assert_eq!(last[idx]["meta_info"]["finish_reason"]["type"], "length");
    }
}

/// Every event of a stream of `/generate`, and its bytes.
fn events(site: &Site, ask: &Json) -> (Vec<Json>, usize) {
    let body = site.post("/generate", ask).body;
    let events = body
        .split_terminator("\n\n")
        .map(|event| event.strip_prefix("data: "));
    let events = events.flatten().filter(|data| *data != "[DONE]");
    let events = events.map(|data| serde_json::from_str(data).expect("JSON"));
    (events.collect(), body.len())
}

#[test]
fn generate_streams_what_came_since_the_event_before_where_that_is_wanted() {
    let mut setup = Setup::new(tokenizer());
    setup.generate_form = StreamForm::Incremental;
    let site = setup.start();
    let params = json!({"max_new_tokens": 40, "temperature": 0, "ignore_eos": true});
    let mut ask = json!({"text": PROMPT, "sampling_params": params, "stream": true, "return_logprob": true,
        "logprob_start_len": 0});
    let (events, _) = events(&site, &ask);
    assert!(events.len() > 1);
    ask["stream"] = false.into();
    let whole = site.post("/generate", &ask).json();
    let text: String = events
        .iter()
        .map(|event| event["text"].as_str().expect("a text"))
        .collect();
    assert_eq!(whole["text"], text);
    let joined = |list: &dyn Fn(&Json) -> Json| -> Json {
        let parts = events.iter().map(list);
        parts
            .flat_map(|part| part.as_array().expect("a list").clone())
            .collect()
    };
    assert_eq!(whole["output_ids"], joined(&|event| event["output_ids"].clone()));
    let told = "output_token_logprobs";
    assert_eq!(
        whole["meta_info"][told],
        joined(&|event| event["meta_info"][told].clone())
    );
    let mut n_tokens = 0;
    for event in &events {
        n_tokens += event["output_ids"].as_array().expect("a list").len();
        assert_eq!(
            event["meta_info"]["completion_tokens"], n_tokens,
            "they are counted from the start"
        );
    }
    assert_eq!(
        events.last().expect("one")["meta_info"]["finish_reason"],
        whole["meta_info"]["finish_reason"]
    );
}

#[test]
fn what_generate_repeats_grows_no_faster_than_the_output() {
    let site = Site::new();
    let asked = |n: usize| {
        let params = json!({"max_new_tokens": n, "temperature": 0, "ignore_eos": true});
        let ask = json!({"text": PROMPT, "sampling_params": params, "stream": true, "return_logprob": true,
            "top_logprobs_num": 20});
        let (events, n_bytes) = events(&site, &ask);
        let last = events.last().expect("an event");
        assert_eq!(last["meta_info"]["completion_tokens"], n);
        (events.len(), n_bytes, last.to_string().len())
    };
    let (few, _, short) = asked(20);
    assert!(few > 1 && short < 16 << 10, "{few} events up to {short} bytes");
    let (n_events, n_bytes, n_last) = asked(2000);
    // Some twenty short ones come first.
    assert!(
        n_bytes < 18 * n_last + few * (16 << 10),
        "{n_bytes} bytes for {n_last}"
    );
    assert!(n_events > 50, "{n_events} events");
}

#[test]
fn generate_lists_log_probabilities_as_tuples() {
    let site = Site::new();
    let ask = json!({"text": PROMPT, "sampling_params": {"max_new_tokens": 3, "temperature": 0},
        "return_logprob": true, "top_logprobs_num": 2, "logprob_start_len": 0});
    let meta = site.post("/generate", &ask).json()["meta_info"].clone();
    let n_prompt = site.request(PROMPT, 1).prompt.len();
    let input = meta["input_token_logprobs"].as_array().expect("a list");
    assert_eq!(input.len(), n_prompt);
    assert_eq!(input[0][0], Json::Null);
    assert!(input[1][0].is_number() && input[1][1].is_number() && input[1][2].is_null());
    assert_eq!(meta["output_token_logprobs"].as_array().map(Vec::len), Some(3));
    assert_eq!(meta["output_top_logprobs"][0].as_array().map(Vec::len), Some(2));
    let late = json!({"text": PROMPT, "sampling_params": {"max_new_tokens": 1, "temperature": 0},
        "return_logprob": true, "logprob_start_len": 4, "return_text_in_logprobs": true});
    let meta = site.post("/generate", &late).json()["meta_info"].clone();
    assert_eq!(
        meta["input_token_logprobs"].as_array().map(Vec::len),
        Some(n_prompt - 4)
    );
    assert!(meta["input_token_logprobs"][0][2].is_string());
}

#[test]
fn generate_lists_what_a_prompt_asks_for_and_always_the_tokens_of_both_sides() {
    let site = Site::new();
    let n_prompt = site.request(PROMPT, 1).prompt.len();
    let params = json!({"max_new_tokens": 2, "temperature": 0, "ignore_eos": true});
    let ask = json!({"text": [PROMPT, PROMPT], "return_logprob": true, "sampling_params": params,
        "logprob_start_len": [n_prompt - 1, -1], "token_ids_logprob": [[7, 3], null], "rid": ["a", "b"],
        "return_text_in_logprobs": true});
    let list = site.post("/generate", &ask).json();
    let (a, b) = (&list[0]["meta_info"], &list[1]["meta_info"]);
    assert_eq!((&a["id"], &b["id"]), (&json!("a"), &json!("b")));
    assert_eq!(a["input_token_logprobs"].as_array().map(Vec::len), Some(1));
    assert_eq!(b["input_token_logprobs"], json!([]));
    for (name, n_rows) in [("input_token_ids_logprobs", 1), ("output_token_ids_logprobs", 2)] {
        let rows = a[name].as_array().expect("a list");
        assert_eq!(rows.len(), n_rows, "{name}");
        for row in rows {
            assert_eq!((&row[0][1], &row[1][1]), (&json!(7), &json!(3)), "{name}");
            assert!(row[0][0].is_number() && row[0][2].is_string(), "{row}");
        }
        assert!(b.get(name).is_none());
    }
    // What a listed token is told to have is what it has where it comes.
    let came = a["output_token_logprobs"][0].clone();
    let again = json!({"text": PROMPT, "return_logprob": true, "sampling_params": params,
        "token_ids_logprob": [came[1]]});
    let again = site.post("/generate", &again).json()["meta_info"].take();
    assert_eq!(again["output_token_ids_logprobs"][0][0][0], came[0]);
    // A prompt that is only scored is scored whole.
    let scored = json!({"text": PROMPT, "return_logprob": true, "sampling_params": {"max_new_tokens": 0}});
    let scored = site.post("/generate", &scored).json()["meta_info"].take();
    assert_eq!(
        scored["input_token_logprobs"].as_array().map(Vec::len),
        Some(n_prompt)
    );
    assert_eq!(scored["output_token_logprobs"], json!([]));
    let beyond = json!({"text": PROMPT, "return_logprob": true, "logprob_start_len": n_prompt + 1});
    assert_eq!(
        site.post("/generate", &beyond).json()["error"]["param"],
        "logprob_start_len"
    );
}

#[test]
fn prompts_of_one_request_may_differ_in_every_parameter() {
    let site = Site::new();
    let params = [
        json!({"max_new_tokens": 5, "temperature": 0, "ignore_eos": true}),
        json!({"max_new_tokens": 3, "temperature": 0, "regex": "[ab]{7}"}),
    ];
    let ask = json!({"text": [PROMPT, PROMPT], "sampling_params": params});
    let list = site.post("/generate", &ask).json();
    for (idx, params) in params.iter().enumerate() {
        let alone = site
            .post("/generate", &json!({"text": PROMPT, "sampling_params": params}))
            .json();
        assert_eq!(list[idx]["text"], alone["text"]);
        assert_eq!(
            list[idx]["meta_info"]["finish_reason"],
            alone["meta_info"]["finish_reason"]
        );
    }
    assert_ne!(list[0]["text"], list[1]["text"]);
}

#[test]
fn generates_errors_name_the_parameter_as_it_was_spelled() {
    let site = Site::new();
    let ask = json!({"text": PROMPT, "sampling_params": {"max_new_tokens": -1}});
    let answer = site.post("/generate", &ask);
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()["error"]["param"], "sampling_params.max_new_tokens");
    let ask = json!({"text": PROMPT, "sampling_params": {"top_p": 1.5}});
    let error = &site.post("/generate", &ask).json()["error"];
    assert_eq!(error["param"], "sampling_params.top_p");
    assert_eq!(
        error["message"],
        "'sampling_params.top_p' must be in [0, 1], got 1.5."
    );
}

#[test]
fn a_worker_tells_its_model_limits_and_load() {
    let site = Site::new();
    for path in ["/model_info", "/get_model_info"] {
        let info = site.get(path).json();
        assert_eq!(info["model_path"], "toy");
        assert_eq!(info["is_generation"], true);
    }
    for path in ["/server_info", "/get_server_info"] {
        let info = site.get(path).json();
        assert_eq!(info["served_model_name"], "toy");
        assert_eq!(info["max_total_num_tokens"], 13_000 * 16);
        assert_eq!(info["context_length"], site.engine.context());
    }
    assert_eq!(site.get("/load").json(), json!({"server_load": 0}));
    let load = site.get("/get_load").json();
    assert_eq!(
        load,
        json!([{"dp_rank": 0, "num_reqs": 0, "num_waiting_reqs": 0, "num_tokens": 0}])
    );
    let _running = site.send(
        "POST",
        "/generate",
        "",
        &json!({"text": PROMPT, "sampling_params": {"max_new_tokens": 190_000, "ignore_eos": true}})
            .to_string(),
    );
    let is_seen = |path: &str| {
        let loads = Answer::json(&site.get(path));
        let timestamp = loads["timestamp"].as_str().expect("gateways read a text");
        assert!(
            timestamp.starts_with("20") && timestamp.ends_with("+00:00"),
            "{timestamp}"
        );
        let load = &loads["loads"][0];
        load["num_running_reqs"] == 1 && load["num_used_tokens"].as_u64() > Some(0)
    };
    for path in ["/v1/loads", "/loads"] {
        assert!(
            (0..10_000).any(|_| is_seen(path)),
            "{path}: a running request is seen"
        );
    }
    assert_eq!(site.get("/load").json(), json!({"server_load": 1}));
}

#[test]
fn a_worker_tells_how_many_tokens_a_step_with_a_draft_gave() {
    let site = Site::new();
    let accept_length =
        || site.get("/server_info").json()["internal_states"][0]["avg_spec_accept_length"].clone();
    let ask = |fields: Json| {
        let mut body = json!({"prompt": PROMPT, "max_tokens": 40, "temperature": 0});
        for (name, value) in fields.as_object().expect("fields") {
            body[name] = value.clone();
        }
        let answer = site.post("/v1/completions", &body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        site.wait_until_quiet();
        answer.json()["usage"]["completion_tokens"].as_u64()
    };
    // Two tokens: neither the text before nor the tree has anything to go on with.
    ask(json!({"max_tokens": 2, "ignore_eos": true}));
    assert_eq!(accept_length(), Json::Null, "nothing was drafted");
    // All is forced, so one step gives it.
    let n_tokens = ask(json!({"guided_choice": ["abcdefghijklmnopqrst"]}));
    assert_eq!(n_tokens, Some(20));
    assert_eq!(accept_length(), 20.0);
    // The first token is the model's choice, and the other six are one step.
    let n_tokens = ask(json!({"guided_choice": ["abcdefg", "uvwxyz0"]}));
    assert_eq!(n_tokens, Some(7));
    assert_eq!(accept_length(), (20.0 + 6.0) / 2.0);
    let page = site.get("/metrics").body;
    assert!(
        page.contains("arbora_drafts_total{model=\"toy\",source=\"grammar\"} 2\n"),
        "{page}"
    );
}

#[test]
fn the_cache_is_flushed_by_get_and_by_post() {
    for method in ["GET", "POST"] {
        let site = Site::new();
        let ask = || {
            let body = json!({"prompt": PROMPT, "max_tokens": 1, "temperature": 0});
            let answer = site.post("/v1/completions", &body).json();
            answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64()
        };
        let n_prompt = site.request(PROMPT, 1).prompt.len() as u64;
        assert_eq!((ask(), ask()), (Some(0), Some(n_prompt - 1)));
        site.wait_until_quiet();
        let answer = Answer::read(site.send(method, "/flush_cache", "", ""));
        assert_eq!(
            (answer.status, answer.json()),
            (200, json!({"status": "flushing"}))
        );
        assert_eq!(ask(), Some(0), "{method}");
    }
}

#[test]
fn health_generate_runs_one_token_where_nobody_else_runs_any() {
    let site = Site::new();
    let metrics = site.engine.metrics();
    let healthy = || {
        let answer = site.get("/health_generate");
        assert_eq!((answer.status, answer.json()), (200, json!({"status": "ok"})));
    };
    healthy();
    site.wait_until_quiet();
    assert_eq!(metrics.requests_accepted.value(), 1);
    assert_eq!(metrics.generated_tokens.value(), 1);
    // It leaves nothing that a client's prompt finds.
    let first = json!({"prompt": [0, 5, 6], "max_tokens": 1});
    let usage = site.post("/v1/completions", &first).json()["usage"].clone();
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);
    let body = json!({"prompt": PROMPT, "max_tokens": 190_000, "ignore_eos": true, "stream": true});
    let mut running = site.send("POST", "/v1/completions", "", &body.to_string());
    running.read_exact(&mut [0; 512]).expect("a beginning");
    let n_accepted = metrics.requests_accepted.value();
    healthy();
    assert_eq!(
        metrics.requests_accepted.value(),
        n_accepted,
        "steps for others are proof enough"
    );
    drop(running);
    site.wait_until_quiet();
    healthy();
}

#[test]
fn health_generate_fails_with_the_engine() {
    let site = Site::new();
    site.fuse.light(1);
    let answer = site.get("/health_generate");
    assert_eq!(
        (answer.status, answer.json()),
        (503, json!({"status": "failing"}))
    );
    assert_eq!(site.get("/health_generate").status, 200, "it was that step only");
}

#[test]
fn a_client_without_the_models_files_is_told_of_the_tokenizer() {
    let site = Site::new();
    let info = site.get("/tokenizer_info").json();
    assert_eq!(
        info,
        json!({
            "tokenizer_class": "PreTrainedTokenizerFast", "vocab_size": N_VOCAB,
            "model_max_length": site.engine.context(), "add_bos_token": false,
            "bos_token": null, "bos_token_id": null, "eos_token": "<|im_end|>", "eos_token_id": 1,
            "pad_token": null, "pad_token_id": null, "chat_template": TEMPLATE,
        })
    );
    // As lm-eval finds the id of a token.
    let body = json!({"prompt": info["eos_token"], "add_special_tokens": false});
    assert_eq!(site.post("/tokenize", &body).json()["tokens"], json!([1]));
    let info = Setup::new(bos_tokenizer()).start().get("/tokenizer_info").json();
    assert_eq!(info["add_bos_token"], true);
    assert_eq!(
        (&info["bos_token"], &info["bos_token_id"]),
        (&json!("<|im_start|>"), &json!(0))
    );
    assert_eq!(
        (&info["pad_token"], &info["pad_token_id"]),
        (&json!("z"), &json!(27))
    );
}

#[test]
fn texts_and_chats_become_tokens_and_texts_again() {
    let site = Site::new();
    let plain = site
        .post("/tokenize", &json!({"prompt": PROMPT, "return_token_strs": true}))
        .json();
    let tokens = site.request(PROMPT, 1).prompt;
    assert_eq!(plain["tokens"], json!(tokens));
    assert_eq!(plain["count"], tokens.len());
    assert_eq!(plain["max_model_len"], site.engine.context());
    let spelled: String = plain["token_strs"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|text| text.as_str().expect("a text"))
        .collect();
    assert_eq!(spelled, PROMPT);
    let messages = json!([{"role": "user", "content": "hello"}]);
    let asked = site.post("/tokenize", &json!({"messages": messages})).json();
    assert_eq!(asked["tokens"], json!(site.request(&rendered("hello"), 1).prompt));
    assert_eq!(asked["token_strs"], Json::Null);
    let again = site
        .post("/detokenize", &json!({"tokens": asked["tokens"]}))
        .json();
    assert_eq!(again["prompt"], rendered("hello"));
    let unknown = site.post("/detokenize", &json!({"tokens": [1, 99]}));
    assert_eq!(unknown.status, 400);
    assert_eq!(unknown.json()["error"]["param"], "tokens[1]");
}

#[test]
fn a_last_message_can_be_continued() {
    let site = Site::new();
    // The word is in the control token after it too: only the true end of the message counts.
    let said = "the end";
    let messages = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": said}]);
    let prompt = format!("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n{said}");
    let fields =
        json!({"messages": messages, "continue_final_message": true, "add_generation_prompt": false});
    let asked = site.post("/tokenize", &fields).json();
    assert_eq!(asked["tokens"], json!(site.request(&prompt, 1).prompt));
    let ask =
        json!({"messages": messages, "continue_final_message": true, "max_tokens": 6, "temperature": 0});
    let answer = site.post("/v1/chat/completions", &ask).json();
    assert_eq!(
        answer["choices"][0]["message"]["content"],
        site.output(&prompt, 6).2
    );
}
